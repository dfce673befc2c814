"""Tracking in virtual time, through the tracker's public methods and through the client."""

import asyncio
import gc
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from itertools import pairwise
from typing import Any, cast

import attrs
import pytest

from midapi_async import (
    AuthenticationError,
    ClientClosed,
    MemoryJournal,
    MidAPIError,
    PollPolicy,
    PromptRejected,
    ProtocolError,
    RateLimitError,
    ResultMissing,
    TaskDetails,
    TaskFailed,
    TaskNotFound,
    TaskStatus,
    Timeouts,
    TransportError,
    WaitTimeout,
)
from midapi_async._runtime.clock import Clock
from midapi_async._tracking.recorder import ResultRecorder
from midapi_async._tracking.schedule import Schedule
from midapi_async._tracking.tracker import (
    AT_ONCE,
    FORGIVEN,
    GRACE_LOOKS,
    HINT_INTERVAL,
    HINTS_PER_TASK,
    RECENT_TASKS,
    SLEEP_CHECK,
    Tracker,
)
from midapi_async._tracking.verdict import age_of, kind_in
from midapi_async._tracking.waits import TrackedTask, Wait
from midapi_async._wire.records import Record, read_record
from midapi_async._wire.tokens import new_token
from midapi_async.events import Event
from tests.support.scripted import Play, ScriptedServer, Step, hang, reply, reset
from tests.world import TASK, accepted, client_of, looked, looks, mid, ok, record, refused

FAST = ("mj_txt2img", "fast")


def now() -> float:
    return asyncio.get_running_loop().time()


def found(data: object) -> Record:
    record = read_record(data)
    assert record is not None
    return record


class World:
    """A service whose tasks finish when a test says, and every look at it."""

    def __init__(self, policy: PollPolicy, scale: float) -> None:
        self.answers: dict[str, Callable[[], Record | None]] = {}
        self.looks: list[tuple[float, str]] = []
        self.events: list[Event] = []
        self.latency = 0.05
        self.born = now()
        self.clock = clock = Clock(scale, chance=lambda: 0.0)
        self.schedule = Schedule(policy)
        self.tracker = Tracker(
            look=self.look,
            schedule=self.schedule,
            learn=self.schedule.learn,
            clock=clock,
            report=self.events.append,
        )

    async def look(self, task_id: str) -> Record | None:
        self.looks.append((now() - self.born, task_id))
        await asyncio.sleep(self.latency)
        return self.answers[task_id]()

    def finishes(self, task_id: str, at: float, **fields: object) -> None:
        """The task succeeds so many seconds after the world began."""

        def answer() -> Record:
            data = record(task_id, 1 if now() - self.born >= at else 0, **fields)
            return found(data)

        self.answers[task_id] = answer

    def says(self, task_id: str, *answers: object) -> None:
        """Each look gets the next answer, and the last one for ever: data, None, or an error."""
        left = list(answers)

        def answer() -> Record | None:
            said = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(said, MidAPIError):
                raise said
            return None if said is None else found(said)

        self.answers[task_id] = answer

    def join(
        self,
        task_id: str = TASK,
        within: float | None = None,
        since: float | None = -1.0,
        *,
        looks_once: bool = False,
        has_callback: bool = False,
    ) -> Wait:
        """Begin to wait for a task of now, or of another time, or of an unknown age."""
        accepted_at = now() if since in {-1.0, None} else since
        return self.tracker.join(
            task_id,
            kind=FAST,
            since=now() if since == -1.0 else since,
            deadline=None if within is None or looks_once else now() + within,
            patience=within + now() - accepted_at if within and looks_once else None,
            token_hash="0" * 64 if has_callback else None,
        )

    async def wait(
        self,
        task_id: str = TASK,
        within: float | None = None,
        since: float | None = -1.0,
        *,
        looks_once: bool = False,
        has_callback: bool = False,
    ) -> TaskDetails:
        """Wait until the task is final."""
        wait = self.join(task_id, within, since, looks_once=looks_once, has_callback=has_callback)
        try:
            return await wait
        finally:
            self.tracker.leave(wait)


@asynccontextmanager
async def a_world(policy: PollPolicy = PollPolicy(), scale: float = 1.0) -> AsyncIterator[World]:  # noqa: B008
    world = World(policy, scale)
    world.tracker.start()
    try:
        yield world
    finally:
        await world.tracker.aclose()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        yield made


async def test_result_is_found_soon_with_few_looks(world: World) -> None:
    """A wait ends within one step of the schedule after the task has finished, with few looks."""
    world.finishes(TASK, at=62)
    details = await world.wait()
    assert len(details.urls) == 4
    assert 62 <= now() - world.born <= 75
    assert len(world.looks) <= 8


@pytest.mark.fault("S21")
async def test_a_new_wait_does_not_check_the_token_of_an_earlier_one(world: World) -> None:
    """That one was for an intent whose task it proved not to be; events have the new names."""
    url = f"http://127.0.0.1/{new_token()}"
    world.finishes(TASK, at=60, paramJson=json.dumps({"callBackUrl": url}))
    options: dict[str, Any] = {"kind": FAST, "since": now(), "deadline": None}
    first = world.tracker.join(TASK, **options, token_hash="0" * 64, key="a", intent_id="1")
    world.tracker.leave(first)
    wait = world.tracker.join(TASK, **options, key="b", intent_id="2")
    assert (await wait).is_final
    assert {(event.key, event.intent_id) for event in world.events} == {("b", "2")}


@pytest.mark.fault("P14")
@pytest.mark.fault("L4")
async def test_waits_for_one_task_share_its_looks(world: World) -> None:
    """However many waits there are for one task, each look is one GET."""
    world.finishes(TASK, at=1)
    results = await asyncio.gather(*(world.wait() for _ in range(20)))
    assert len(world.looks) == 1
    assert len({id(details) for details in results}) == 1


@pytest.mark.fault("L4")
async def test_thousands_of_waits_need_one_timer_and_no_task(world: World) -> None:
    """One scheduler serves them all; a wait is a future in its heap."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)
    tasks = asyncio.all_tasks()
    timers = len(loop._scheduled)  # type: ignore[attr-defined]
    waits = [world.join(f"t{n}", within=3600) for n in range(2_000)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert not world.looks
    assert asyncio.all_tasks() == tasks
    assert len(loop._scheduled) <= timers + 1  # type: ignore[attr-defined]
    for wait in waits:
        world.tracker.leave(wait)


async def test_hint_causes_a_look_at_once(world: World) -> None:
    """The look for a hint comes before the planned one."""
    world.finishes(TASK, at=10)
    waiting = asyncio.create_task(world.wait())
    await asyncio.sleep(12)
    world.tracker.hint(TASK)
    await waiting
    assert now() - world.born < 12.1
    assert len(world.looks) == 1


async def test_hinted_task_is_looked_at_before_queued_ones() -> None:
    """With more looks due than are allowed, a hinted task comes next; the others get their look."""
    async with a_world(PollPolicy(looks_per_second=5, burst=5)) as world:
        for n in range(300):
            world.finishes(f"t{n}", at=0)
        waits = [asyncio.create_task(world.wait(f"t{n}", since=now() - 100)) for n in range(300)]
        await asyncio.sleep(5)
        begun = now()
        world.tracker.hint("t299")
        world.tracker.hint("t299")
        await waits[299]
        assert now() - begun < 0.5
        await asyncio.gather(*waits)
        assert len(world.looks) == 300


async def test_each_of_a_thousand_overdue_waits_gets_a_look() -> None:
    """A wait with `looks_once` does not time out without a look, however long the queue is."""
    async with a_world() as world:
        for n in range(1000):
            world.finishes(f"t{n}", at=0)
        ended = await asyncio.gather(
            *(
                world.wait(f"t{n}", within=-1, since=now() - 9000, looks_once=True)
                for n in range(1000)
            )
        )
        assert all(details.is_final for details in ended)


async def test_short_default_wait_looks_at_its_deadline() -> None:
    """Timeouts(wait=5) ends after five seconds, with one look, though the plan begins later."""
    timeouts = Timeouts(wait=5)
    script = [accepted(), looked(flag=0)]
    async with ScriptedServer(script) as server, client_of(server, timeouts=timeouts) as client:
        begun = now()
        handle = await client.generate("a red fox")
        with pytest.raises(WaitTimeout):
            await handle
        assert pytest.approx(now() - begun, abs=0.1) == 5
        assert len(looks(server)) == 1


async def test_overdue_wait_ends_with_its_look(world: World) -> None:
    """It times out if the task is still generating; a deadline in the past is no blocked loop."""
    world.finishes(TASK, at=1e9)
    begun = now()
    with pytest.raises(WaitTimeout):
        await world.wait(within=-5, since=0, looks_once=True)
    assert len(world.looks) == 1
    with pytest.raises(WaitTimeout):
        await world.wait(within=-5)
    assert now() - begun < 0.2


async def test_wait_survives_thousands_of_failed_looks() -> None:
    """The gaps between looks have a bound, also after weeks of failures."""
    async with a_world(PollPolicy(floor=0.01, ceiling=0.02, looks_per_second=1000)) as world:
        wrong = ProtocolError("data.successFlag", "must be a whole number")
        world.says(TASK, *[wrong] * 1500, record(flag=1))
        assert (await world.wait()).is_final


async def test_hint_before_the_first_wait_is_remembered(world: World) -> None:
    """A callback that comes before the first wait makes the first look come at once."""
    world.finishes(TASK, at=0)
    world.tracker.hint(TASK)
    await world.wait()
    assert now() - world.born < 0.2


async def test_hint_during_a_look_causes_another_look(world: World) -> None:
    """The look that is under way may have been answered before the change."""
    world.latency = 2
    world.says(TASK, record(flag=0), record(flag=1))
    waiting = asyncio.create_task(world.wait())
    world.tracker.hint(TASK)
    await asyncio.sleep(1)
    world.tracker.hint(TASK)
    await waiting
    assert now() - world.born < 10


async def test_hint_of_a_wait_that_ended_is_honoured_by_the_next(world: World) -> None:
    """The floor puts off the look for a hint, and the wait ends before it: the next wait looks."""
    world.says(TASK, record(flag=0), record(flag=1))
    waiting = asyncio.create_task(world.wait(since=now() - 100))
    await asyncio.sleep(0.1)
    world.tracker.hint(TASK)
    waiting.cancel()
    await asyncio.wait([waiting])
    await world.wait(since=now() - 100)
    assert now() - world.born < HINT_INTERVAL + 2


@pytest.mark.fault("C22")
async def test_flood_of_hints_moves_few_looks(world: World) -> None:
    """Hints move a look at most every 5 s and twelve times."""
    world.finishes(TASK, at=1e9)
    waiting = asyncio.create_task(world.wait(within=200))
    for _ in range(1_500):
        world.tracker.hint(TASK)
        await asyncio.sleep(0.1)
    with pytest.raises(WaitTimeout):
        await waiting
    planned = 25
    assert HINTS_PER_TASK <= len(world.looks) <= HINTS_PER_TASK + planned
    hinted = [moment for moment, _ in world.looks[: HINTS_PER_TASK - 1]]
    steps = [later - sooner for sooner, later in pairwise(hinted)]
    assert min(steps) >= min(HINT_INTERVAL, 1) - 0.01


@pytest.mark.fault("P1")
async def test_task_that_is_not_known_yet_is_waited_for(world: World) -> None:
    """A task that is too new to be known is found later."""
    world.says(TASK, None, None, None, record(flag=1))
    await world.wait()
    assert len(world.looks) == 4


@pytest.mark.fault("P1")
async def test_unknown_task_is_not_found_after_the_grace(world: World) -> None:
    """After at least 120 s and five looks."""
    world.says(TASK, None)
    with pytest.raises(TaskNotFound, match=TASK):
        await world.wait()
    first = world.looks[0][0]
    assert len(world.looks) >= 5
    assert 120 <= world.looks[-1][0] - first <= 300


@pytest.mark.fault("P1")
async def test_unknown_task_gets_five_looks_however_rare() -> None:
    """With looks a minute apart, two minutes are not enough for TaskNotFound."""
    async with a_world(PollPolicy(floor=60, ceiling=60)) as world:
        world.says(TASK, None)
        with pytest.raises(TaskNotFound):
            await world.wait(since=now() - 100)
        assert len(world.looks) == GRACE_LOOKS


@pytest.mark.fault("P1")
async def test_task_that_was_seen_does_not_become_unknown(world: World) -> None:
    """Once a record was shown, a missing one is a passing fault."""
    world.says(TASK, record(flag=0), *[None] * 20, record(flag=1))
    assert (await world.wait()).is_final


@pytest.mark.fault("P2")
async def test_outage_ends_no_wait_and_costs_few_looks(world: World) -> None:
    """Ten minutes without a server: looks become rare, waits go on, and no stampede follows."""
    tasks = [f"task{n}" for n in range(200)]
    down = TransportError("the server is gone", sent=True)

    def answer_of(task: str) -> Callable[[], Record]:
        def answer() -> Record:
            if now() - world.born < 600:
                raise down
            data = record(task, 1)
            return found(data)

        return answer

    world.answers = {task: answer_of(task) for task in tasks}
    await asyncio.gather(*(world.wait(task, within=3000) for task in tasks))
    during = [moment for moment, _ in world.looks if moment < 600]
    after = [moment for moment, _ in world.looks if moment >= 600]
    assert len(during) < 100
    assert 200 <= len(after) <= 210
    busiest = max(sum(1 for m in after if start <= m < start + 1) for start in after)
    assert busiest <= 22  # the rate is 20, and the first look after the pause


@pytest.mark.fault("P18")
async def test_a_thousand_waits_in_an_outage_are_one_warning_and_one_line(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Not one for each task, nor one about too many looks while they catch up."""
    down = TransportError("the server is gone", sent=True)
    for n in range(1000):
        world.says(f"t{n}", down)
    waits = [asyncio.create_task(world.wait(f"t{n}")) for n in range(1000)]
    await asyncio.sleep(3600)
    for n in range(1000):
        world.finishes(f"t{n}", at=0)
    await asyncio.gather(*waits)
    warning, over = caplog.records
    assert (warning.levelname, over.levelname) == ("WARNING", "INFO")


@pytest.mark.fault("S19")
async def test_failing_looks_become_rarer(world: World) -> None:
    """If every look fails, there are fewer looks than normal, and fewer as it lasts."""
    world.says(TASK, record(flag=0))
    with pytest.raises(WaitTimeout):
        await world.wait(within=1000)
    normal = len(world.looks)
    world.looks.clear()
    world.says("other", ProtocolError("body", "is no JSON"))
    with pytest.raises(WaitTimeout):
        await world.wait("other", within=1000)
    assert normal >= len(world.looks)
    moments = [moment for moment, _ in world.looks]
    assert moments[-1] - moments[-2] >= moments[1] - moments[0]


@pytest.mark.fault("S5")
async def test_rate_limit_pauses_all_looks(world: World) -> None:
    """A Retry-After on a look holds for every task."""
    world.says("one", RateLimitError(429, "slow", retry_after=40), record("one", 1))
    world.finishes("two", at=0)
    one = asyncio.create_task(world.wait("one", since=now() - 100))
    await asyncio.sleep(1)
    two = asyncio.create_task(world.wait("two", since=now() - 100))
    await asyncio.gather(one, two)
    assert all(moment >= 40 for moment, _ in world.looks[1:])


@pytest.mark.fault("P3")
async def test_unknown_flag_is_generating_with_one_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Unknown and missing flags are not final."""
    world.says(TASK, *[record(flag=9)] * 3, record(flag=None), record(flag="0"), record(flag=1))
    assert (await world.wait()).is_final
    assert caplog.text.count("successFlag 9") == 1


@pytest.mark.fault("P4")
async def test_success_without_files_is_looked_at_again(world: World) -> None:
    """A success that shows no file yet is not the end."""
    empty = record(flag=1, resultInfoJson=None)
    world.says(TASK, empty, empty, record(flag=1))
    assert len((await world.wait()).urls) == 4


@pytest.mark.fault("P4")
async def test_success_that_never_shows_files_is_an_error(world: World) -> None:
    """It ends as ResultMissing with the details, and never hangs."""
    world.says(TASK, record(flag=1, resultInfoJson={"resultUrls": []}))
    with pytest.raises(ResultMissing) as caught:
        await world.wait()
    assert caught.value.details is not None
    assert TaskStatus.SUCCEEDED is caught.value.details.status


@pytest.mark.fault("P8")
async def test_deadline_ends_one_wait_and_not_the_task(world: World) -> None:
    """WaitTimeout has the id; other waits go on; the task can be awaited again."""
    world.finishes(TASK, at=100)
    other = asyncio.create_task(world.wait())
    with pytest.raises(WaitTimeout) as caught:
        await world.wait(within=10)
    assert caught.value.task_id == TASK
    assert pytest.approx(now() - world.born, abs=0.01) == 10
    assert (await other).is_final


@pytest.mark.fault("P8")
async def test_repeated_very_short_waits_keep_to_the_floor(world: World) -> None:
    """A loop of short waits for an old task costs no more than one look per floor."""
    world.finishes(TASK, at=30)
    for _ in range(1000):
        try:
            await world.wait(within=0.05, since=None)
        except WaitTimeout:
            continue
        break
    assert len(world.looks) <= 31


@pytest.mark.fault("P8")
async def test_repeated_short_waits_keep_to_the_plan(world: World) -> None:
    """Waiting again every 5 s costs no more looks than one long wait."""
    world.finishes("patient", at=300)
    world.finishes("asks", at=300)
    since = now()
    await world.wait("patient", since=since)
    patient = len(world.looks)
    world.born += 300
    since = now()
    while now() - since < 400:
        try:
            await world.wait("asks", within=5, since=since)
        except WaitTimeout:
            continue
        break
    assert patient >= len(world.looks) - patient


@pytest.mark.fault("P13")
async def test_deadline_does_not_wait_for_a_hanging_look(world: World) -> None:
    """The wait times out while the GET hangs."""
    world.latency = 10_000
    world.finishes(TASK, at=0)
    with pytest.raises(WaitTimeout):
        await world.wait(within=45)
    assert pytest.approx(now() - world.born, abs=0.01) == 45


@pytest.mark.fault("P10")
async def test_blocked_loop_causes_no_timeout(world: World) -> None:
    """The loop was blocked past the deadline while the task finished: the result is delivered."""
    world.finishes(TASK, at=0)
    first = world.schedule.next_look(FAST, 0.0)
    waiting = asyncio.create_task(world.wait(within=first + 2))
    await asyncio.sleep(first - 0.1)
    asyncio.get_running_loop()._clock.now += 5  # type: ignore[attr-defined]
    assert (await waiting).is_final


@pytest.mark.fault("P11")
async def test_revoked_key_ends_every_wait(world: World) -> None:
    """Five of MidAPI's own 401s over two minutes end every wait, and looking stops."""
    tasks = [f"task{n}" for n in range(500)]
    for task in tasks:
        world.says(task, AuthenticationError(401, "no access", 200))
    ended = await asyncio.gather(
        *(world.wait(task, since=now() - 100) for task in tasks), return_exceptions=True
    )
    assert {type(error) for error in ended} == {AuthenticationError}
    assert len({id(error) for error in ended}) == 500
    assert len(world.looks) <= 70
    assert now() - world.born >= 120
    assert {error.task_id for error in ended if isinstance(error, MidAPIError)} == {*tasks}


@pytest.mark.fault("P22")
async def test_refusals_of_hours_ago_do_not_count(world: World) -> None:
    """Five refusals over two minutes, with hours between them, are not two minutes of refusals."""
    refusal = AuthenticationError(401, "no access", 200)
    world.says(TASK, refusal)
    with pytest.raises(WaitTimeout):
        await world.wait(within=20, since=None)
    assert len(world.looks) >= 4
    await asyncio.sleep(10_000)
    for n in range(5):
        world.says(f"t{n}", refusal, record(f"t{n}", 1))
    ended = await asyncio.gather(*(world.wait(f"t{n}", since=None) for n in range(5)))
    assert all(details.is_final for details in ended)


@pytest.mark.fault("P11")
async def test_foreign_401_is_a_passing_fault(world: World) -> None:
    """A login page with 401 does not come from MidAPI."""
    strange = AuthenticationError(401, "a page", 401, own_envelope=False)
    world.says(TASK, strange, strange, strange, record(flag=1))
    assert (await world.wait()).is_final


@pytest.mark.fault("L5")
async def test_cancelled_waits_leave_nothing_behind(world: World) -> None:
    """After 50 × 500 cancelled waits, only the intended number of tasks is remembered."""
    asyncio.get_running_loop().set_debug(False)
    for turn in range(50):
        waits = [asyncio.create_task(world.wait(f"t{turn}-{n}", within=3600)) for n in range(500)]
        await asyncio.sleep(0)
        assert world.tracker.waiting == 500
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
    assert not world.tracker.waited_for
    kept = sum(type(each) is TrackedTask for each in gc.get_objects())
    assert kept <= RECENT_TASKS + 1_000


@pytest.mark.fault("L6")
async def test_closing_ends_every_wait(world: World) -> None:
    """Each wait raises ClientClosed with its id, at once."""
    for n in range(100):
        world.finishes(f"t{n}", at=1e9)
    waits = [asyncio.create_task(world.wait(f"t{n}")) for n in range(100)]
    await asyncio.sleep(31)
    await world.tracker.aclose()
    ended = await asyncio.gather(*waits, return_exceptions=True)
    assert {f"t{n}" for n in range(100)} == {getattr(error, "task_id", None) for error in ended}
    assert {type(error) for error in ended} == {ClientClosed}
    with pytest.raises(ClientClosed):
        await world.wait("later")


@pytest.mark.fault("L8")
async def test_failed_scheduler_is_restarted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The waits still get their result, and the failure is logged."""
    world.finishes(TASK, at=0)
    failures = iter([RuntimeError("a bug")])

    def once_broken() -> float:
        if (failure := next(failures, None)) is not None:
            raise failure
        return 0.0

    world.clock.slept = once_broken  # type: ignore[method-assign]
    assert (await world.wait()).is_final
    assert [entry.levelno for entry in caplog.records] == [logging.ERROR]


@pytest.mark.fault("L8")
async def test_task_that_the_scheduler_failed_at_is_not_lost(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler fails while it serves a task: that task is looked at all the same."""
    world.finishes(TASK, at=0)
    failures = iter([RuntimeError("a bug")])

    def once_broken(_: Schedule) -> bool:
        if (failure := next(failures, None)) is not None:
            raise failure
        return False

    monkeypatch.setattr(Schedule, "trusts_callbacks", property(once_broken))
    assert (await world.wait(has_callback=True)).is_final
    assert "a bug" in caplog.text


async def pass_deadlines(_: World) -> None:
    await asyncio.sleep(20)


async def stop_waiting(world: World) -> None:
    world.tracker.stop_waiting()


async def close(world: World) -> None:
    await world.tracker.aclose()


async def refuse_key(world: World) -> None:
    for n in range(2_000):
        world.says(f"t{n}", AuthenticationError(401, "no access", 200))


@pytest.mark.fault("I6")
@pytest.mark.parametrize("end", [pass_deadlines, stop_waiting, close, refuse_key])
@pytest.mark.fault("L4")
async def test_many_waits_end_in_several_turns_of_the_loop(
    world: World, end: Callable[[World], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 waits end at one moment: the event loop is not held until all have ended."""
    within = 2_000 if end is refuse_key else 20
    waits = [world.join(f"t{n}", within=within) for n in range(2_000)]
    loop = asyncio.get_running_loop()
    run_once, done = loop._run_once, [0]  # type: ignore[attr-defined]

    def count_done() -> None:
        run_once()
        done.append(sum(wait.done() for wait in waits))

    monkeypatch.setattr(loop, "_run_once", count_done)
    await asyncio.sleep(0)
    await end(world)
    await asyncio.wait(waits)
    monkeypatch.undo()
    assert max(later - sooner for sooner, later in pairwise(done)) <= AT_ONCE
    kinds = {type(wait.exception()) for wait in waits}
    assert kinds <= {WaitTimeout, ClientClosed, AuthenticationError}


@pytest.mark.fault("L8")
async def test_defect_in_a_look_is_a_passing_fault(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends neither the tracker nor the wait."""
    broken = iter([True])

    def answer() -> Record:
        if next(broken, False):
            raise RuntimeError("a bug")
        data = record(TASK, 1)
        return found(data)

    world.answers[TASK] = answer
    assert (await world.wait()).is_final
    assert "a bug" in caplog.text


async def called_back(world: World, task_id: str, at: float, after: float | None = 0.1) -> int:
    """Wait for a task that takes so long, with its callback so long after it; how many looks."""
    before = len(world.looks)
    begun, loop = now(), asyncio.get_running_loop()

    def answer() -> Record:
        is_done = now() - begun >= at
        data = record(task_id, 1 if is_done else 0)
        if is_done:
            data["completeTime"] = cast("int", data["createTime"]) + int(at * 1000)
        return found(data)

    world.answers[task_id] = answer
    if after is not None:
        loop.call_later(at + after, world.tracker.hint, task_id)
    await world.wait(task_id, has_callback=True)
    await asyncio.sleep(10)
    return len(world.looks) - before


async def test_callbacks_in_time_make_looks_few(world: World) -> None:
    """After three callbacks in time a task costs one look: the one that its callback causes."""
    assert await called_back(world, "first", 70) > 1
    await called_back(world, "second", 70)
    await called_back(world, "third", 70)
    assert [await called_back(world, f"t{n}", 70) for n in range(5)] == [1] * 5


@pytest.mark.fault("C1")
async def test_one_missing_callback_ends_the_trust(world: World) -> None:
    """The plan finds that task, and the next one is looked at as without callbacks."""
    for n in range(4):
        await called_back(world, f"t{n}", 70)
    assert world.schedule.trusts_callbacks
    assert await called_back(world, "silent", 70, after=None) >= 1
    assert await called_back(world, "next", 95) > 1
    assert not world.schedule.trusts_callbacks


async def test_trust_ends_for_running_waits_too(world: World) -> None:
    """Looks that were left to callbacks are made once the first callback is missing."""
    for n in range(4):
        await called_back(world, f"t{n}", 70)
    begun = now()
    waits = [called_back(world, f"late{n}", 70, after=None) for n in range(20)]
    await asyncio.gather(*waits)
    assert now() - begun - 10 < 70 + 40


async def test_callback_just_after_a_look_is_in_time(world: World) -> None:
    """A look may find the result a few seconds before the callback comes."""
    for n in range(6):
        await called_back(world, f"t{n}", 70, after=4.0)
    assert world.schedule.trusts_callbacks


async def test_task_finished_before_the_wait_says_nothing_about_callbacks(world: World) -> None:
    """Awaiting an old task does not end the trust."""
    for n in range(4):
        await called_back(world, f"t{n}", 70)
    world.finishes("old", at=0)
    await world.wait("old", since=now() - 900, has_callback=True)
    await asyncio.sleep(10)
    assert world.schedule.trusts_callbacks


@pytest.mark.fault("P10")
async def test_overdue_waits_get_a_look_after_a_stall() -> None:
    """After ten minutes in which nothing ran, waits that are overdue still get their result."""
    policy = PollPolicy(looks_per_second=5, burst=5)
    async with a_world(policy) as stopped:
        for n in range(50):
            stopped.finishes(f"t{n}", at=30)
        waits = [asyncio.create_task(stopped.wait(f"t{n}", within=40)) for n in range(50)]
        await asyncio.sleep(1)
        asyncio.get_running_loop()._clock.now += 600  # type: ignore[attr-defined]
        ended = await asyncio.gather(*waits)
        assert all(details.is_final for details in ended)
        assert len(stopped.looks) == 50
        moments = [moment for moment, _ in stopped.looks]
        # No stampede: in any second at most the burst and the looks of a second.
        pairs = zip(moments, moments[10:], strict=False)
        assert all(later - sooner >= 1 - 1e-6 for sooner, later in pairs)


@pytest.mark.fault("P10")
async def test_machine_that_slept_looks_soon() -> None:
    """The loop's clock stood still for an hour: a result of that time is found soon."""
    slept = [0.0]
    async with a_world() as world:
        world.clock.slept = lambda: slept[0]  # type: ignore[method-assign]
        world.finishes(TASK, at=3)
        wait = asyncio.create_task(world.wait())
        await asyncio.sleep(4)
        assert not world.looks
        slept[0] = 3600.0
        await wait
        assert world.looks[0][0] < SLEEP_CHECK + 1
        assert len(world.looks) == 1


@pytest.mark.fault("P10")
async def test_stall_extends_waits_by_half_a_minute_at_most() -> None:
    """1,000 deadlines passed during a stall, with five looks per second: each wait ends soon."""
    async with a_world(PollPolicy(looks_per_second=5, burst=5)) as world:
        for n in range(1_000):
            world.finishes(f"t{n}", at=1e9)
        waits = [asyncio.create_task(world.wait(f"t{n}", within=30)) for n in range(1_000)]
        await asyncio.sleep(28)
        asyncio.get_running_loop()._clock.now += 5  # type: ignore[attr-defined]
        ended = await asyncio.gather(*waits, return_exceptions=True)
        assert {type(each) for each in ended} == {WaitTimeout}
        assert now() - world.born <= 30 + 5 + FORGIVEN


async def test_promised_look_is_not_left_to_a_trusted_callback(world: World) -> None:
    """A wait with `looks_once` ends with a look at its deadline, and not when callbacks are due."""
    for n in range(4):
        await called_back(world, f"t{n}", 70)
    world.finishes(TASK, at=1e9)
    begun = now()
    with pytest.raises(WaitTimeout):
        await world.wait(within=5, looks_once=True, has_callback=True)
    assert now() - begun < 6


async def test_callback_before_its_record_costs_some_seconds(world: World) -> None:
    """After a trusted callback that comes a little too early, looks follow soon."""
    for n in range(4):
        await called_back(world, f"t{n}", 70)
    for name, early in (("sooner", -0.5), ("soonest", -2.0)):
        begun = now()
        await called_back(world, name, 70, after=early)
        assert now() - begun - 10 <= 78
    assert world.schedule.trusts_callbacks is False


@pytest.mark.fault("C1")
async def test_missing_callbacks_cause_one_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """One line after three tasks: MidAPI may not be able to reach the receiver."""
    for n in range(6):
        await called_back(world, f"t{n}", 70, after=None)
    assert sum("midapi doctor" in entry.message for entry in caplog.records) == 1


@pytest.mark.fault("C30")
async def test_callback_at_the_start_earns_no_trust(world: World) -> None:
    """It says nothing about when the task ends."""
    for n in range(6):
        await called_back(world, f"t{n}", 70, after=-68.0)
    assert not world.schedule.trusts_callbacks


@pytest.mark.fault("C1")
async def test_short_wait_makes_its_last_planned_look(world: World) -> None:
    """A wait that ends before the callback plan looks anyway, and so notices missing callbacks."""
    for n in range(4):
        await called_back(world, f"t{n}", 55)
    for n in range(8):
        world.finishes(f"silent{n}", at=now() - world.born + 55)
        assert (await world.wait(f"silent{n}", within=70, has_callback=True)).is_final


@pytest.mark.fault("P6")
async def test_wrong_records_of_some_tasks_do_not_slow_down_others(world: World) -> None:
    """Twenty tasks that only ever show another task's record delay no other task."""
    for n in range(20):
        world.says(f"bad{n}", ProtocolError("data.taskId", "names another task"))
    bad = [asyncio.create_task(world.wait(f"bad{n}")) for n in range(20)]
    world.finishes("good", at=60)
    await world.wait("good")
    assert now() - world.born < 75
    for each in bad:
        each.cancel()
    await asyncio.wait(bad)


async def test_answered_first_look_at_an_old_task_is_not_repeated_soon(world: World) -> None:
    """The look at once was answered: the next one follows the plan."""
    world.finishes(TASK, at=300)
    wait = asyncio.create_task(world.wait(since=None))
    await asyncio.sleep(20)
    assert len(world.looks) == 1
    wait.cancel()
    await asyncio.wait([wait])


async def test_late_callbacks_cause_no_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """They do reach the receiver, in time or not."""
    world.finishes("busy", at=1e9)
    busy = asyncio.create_task(world.wait("busy"))
    for n in range(5):
        await called_back(world, f"t{n}", 70, after=30)
        await asyncio.sleep(40)
    assert not any("midapi doctor" in entry.message for entry in caplog.records)
    busy.cancel()
    await asyncio.wait([busy])


async def test_failed_first_look_at_an_old_task_is_repeated_soon(world: World) -> None:
    """Its result may be there already."""
    world.says(TASK, RateLimitError(429, "no", 429, retry_after=1), record(flag=1))
    await world.wait(since=None)
    assert now() - world.born < 5


@pytest.mark.fault("P14")
async def test_cost_of_a_wait_does_not_grow_with_their_number(world: World) -> None:
    """Joining and leaving compare a few deadlines, and not those of all other waits."""
    compared = 0

    class Deadline(float):
        """Counts how often it is compared."""

        def __lt__(self, other: float) -> bool:
            nonlocal compared
            compared += 1
            return float(self) < other

        def __gt__(self, other: float) -> bool:
            nonlocal compared
            compared += 1
            return float(self) > other

    world.finishes(TASK, at=1e9)
    waits = [
        world.tracker.join(TASK, kind=FAST, since=now(), deadline=Deadline(now() + 100 + n))
        for n in range(3_000)
    ]
    await asyncio.sleep(1)
    for wait in waits:
        world.tracker.leave(wait)
    await asyncio.sleep(1)
    assert 3_000 <= compared <= 5 * 3_000


async def test_more_tasks_than_looks_is_fair_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With two looks per second, each of 300 tasks is looked at before any is looked at again."""
    async with a_world(PollPolicy(looks_per_second=2, burst=2)) as world:
        for n in range(300):
            world.finishes(f"t{n}", at=400)
        await asyncio.gather(*(world.wait(f"t{n}") for n in range(300)))
        order = [task_id for _, task_id in world.looks]
        seen_before = [order[:place].count(task_id) for place, task_id in enumerate(order)]
        rounds = list(itertools.accumulate(seen_before, max))
        assert all(most - count <= 1 for most, count in zip(rounds, seen_before, strict=True))
    assert sum("looks_per_second" in entry.message for entry in caplog.records) == 1


async def test_looks_keep_to_the_rate() -> None:
    """looks_per_second holds over any second after the burst; all tasks get their turn."""
    async with a_world(PollPolicy(looks_per_second=5, burst=5)) as world:
        tasks = [f"task{n}" for n in range(300)]
        for task in tasks:
            world.finishes(task, at=0)
        await asyncio.gather(*(world.wait(task, since=now() - 100) for task in tasks))
        assert len(world.looks) == 300
        assert 58 <= now() - world.born <= 62
        moments = [moment for moment, _ in world.looks]
        assert max(sum(1 for m in moments if s <= m < s + 1) for s in moments) <= 10


async def test_schedule_learns_from_finished_tasks() -> None:
    """Tasks that take 200 s are not looked at from second 30 on for ever."""
    async with a_world() as world:
        for n in range(50):
            begun = now() - world.born
            times = {"createTime": 1_000_000, "completeTime": 1_000_000 + 200_000}
            world.finishes(f"t{n}", at=begun + 200, **times)
            world.looks.clear()
            await world.wait(f"t{n}")
        assert len(world.looks) <= 5
        assert world.schedule.expected(FAST).median == 200


async def test_impossible_duration_is_not_kept() -> None:
    """What the schedule does not learn, the next process does not read, either."""
    journal = MemoryJournal()
    recorder = ResultRecorder(
        journal, origin="o", takes_at_once=True, schedule=Schedule(PollPolicy())
    )
    for seconds in (0.0, 42.0, 1e9):
        recorder.learn(FAST, seconds)
    await recorder.writes.join()
    assert await journal.notes("o", "duration") == {"mj_txt2img fast": "[42.0]"}
    await journal.aclose()


async def test_time_scale_divides_every_wait() -> None:
    """With a scale of 60 a minute of the service is a second of the loop."""
    async with a_world(scale=60) as world:
        world.finishes(TASK, at=1.0)
        await world.wait(since=now() * 60)
        assert 1.0 <= now() - world.born <= 1.3


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"paramJson": '{"speed": "Relax"}'}, ("mj_txt2img", "relaxed")),
        ({"paramJson": '{"speed": "turbo"}'}, ("mj_txt2img", "turbo")),
        ({"taskType": "mj_video", "paramJson": "{}"}, ("mj_video", "fast")),
        ({"taskType": None}, None),
    ],
)
def test_kind_of_a_record(fields: dict[str, object], kind: tuple[str, str] | None) -> None:
    """MidAPI's "relax" is our "relaxed"; a record without a type shows no kind."""
    assert kind_in(found(record(TASK, 1, **fields))) == kind


CREATED = 1_700_000_000


@pytest.mark.fault("P23")
@pytest.mark.parametrize(
    ("age", "expected"), [(60, 60), (90_000, 90_000), (-2, 0), (-8 * 3600, None), (None, None)]
)
def test_age_of_a_record(age: float | None, expected: float | None) -> None:
    """By the Date header that came with it: our own clock does not count."""
    shown_at = None if age is None else formatdate(CREATED + age, usegmt=True)
    shown = read_record(record(createTime=CREATED * 1000), shown_at=shown_at)
    assert shown is not None
    assert age_of(shown) == expected
    assert age_of(attrs.evolve(shown, create_time=None)) is None


@pytest.mark.fault("P15")
@pytest.mark.fault("P23")
@pytest.mark.parametrize(
    "created", ["2023-11-14 22:13:20", "2023-11-15T06:13:20", CREATED, str(CREATED), 5, -1, "x", {}]
)
def test_an_unsure_time_shows_no_age(created: object) -> None:
    """A text without a zone, a number that is not in milliseconds, and anything else."""
    shown = read_record(record(createTime=created), shown_at=formatdate(CREATED + 60, usegmt=True))
    assert shown is not None
    assert age_of(shown) is None


async def test_unknown_kind_and_age_are_taken_from_the_record(world: World) -> None:
    """A task of which only the id is known counts for the kind that its record shows."""
    created = int(time.time() * 1000) - 3_000_000
    fields: dict[str, object] = {
        "createTime": created,
        "completeTime": created + 2_500_000,
        "paramJson": '{"speed": "relax"}',
    }
    shown = found(record(TASK, 1, **fields))
    shown = attrs.evolve(shown, shown_at=formatdate(created / 1000 + 3000, usegmt=True))
    for n in range(5):
        world.answers[f"t{n}"] = lambda: shown
        wait = world.tracker.join(f"t{n}", kind=None, since=None, deadline=None)
        assert (await wait).is_final
    assert world.schedule.expected(("mj_txt2img", "relaxed")).median == 2500


# ─── through the client, over sockets ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Your prompt contains NSFW words", PromptRejected),
        ("No response from MidJourney Official Website after multiple attempts.", TaskFailed),
        (None, TaskFailed),
    ],
)
@pytest.mark.parametrize("flag", [2, 3])
async def test_failed_task_raises_its_error(message: str, kind: type, flag: int) -> None:
    """Flags 2 and 3 raise TaskFailed with the details, and say whether the failure is transient."""
    failed = looked(flag=flag, errorCode="500", errorMessage=message)
    async with ScriptedServer(then=mid(accepted(), failed)) as server, client_of(server) as client:
        with pytest.raises(TaskFailed) as caught:
            await client.generate_and_wait("a red fox")
        assert kind is type(caught.value)
        assert (message or "").startswith("No response") == caught.value.transient
        assert caught.value.details is not None
        assert caught.value.details.error_code == 500


@pytest.mark.fault("P5")
async def test_final_state_stays() -> None:
    """A handle returns the same details again, whatever the record says later."""
    script = [accepted(), looked(flag=1), looked(flag=0)]
    async with ScriptedServer(script) as server, client_of(server) as client:
        handle = await client.generate("a red fox")
        first = await handle
        assert first is await handle
        assert len(looks(server)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(looked("f" * 32), id="another_task", marks=pytest.mark.fault("P6")),
        pytest.param(reply(body="<html>login</html>"), id="html", marks=pytest.mark.fault("P7")),
        pytest.param(reply(403, body="<html>"), id="http_403_page", marks=pytest.mark.fault("P7")),
        pytest.param(reply(511, body="<html>"), id="http_511_page", marks=pytest.mark.fault("P7")),
        pytest.param(
            reply(302, headers={"Location": "https://elsewhere.example/"}),
            id="redirect",
            marks=pytest.mark.fault("P7"),
        ),
        pytest.param(reset("headers"), id="reset", marks=pytest.mark.fault("P2")),
        pytest.param(reply(502), id="http_502", marks=pytest.mark.fault("P2")),
        pytest.param(refused(500), id="code_500", marks=pytest.mark.fault("P2")),
        pytest.param(reply(body="[" * 100_000), id="deep", marks=pytest.mark.fault("S11")),
        pytest.param(ok(record(flag=[1])), id="wrong_kind", marks=pytest.mark.fault("S11")),
        pytest.param(refused(422, "recordInfo is null"), id="422", marks=pytest.mark.fault("P1")),
        pytest.param(
            refused(404, "Task not found", status=404), id="404", marks=pytest.mark.fault("P1")
        ),
        pytest.param(ok(None), id="null", marks=pytest.mark.fault("P1")),
        pytest.param(
            refused(429, status=429, Retry_After="3"), id="429", marks=pytest.mark.fault("S5")
        ),
    ],
)
async def test_passing_fault_of_a_look_ends_no_wait(answer: Step) -> None:
    """The next look finds the result."""
    script: list[Play] = [accepted(), answer, looked()]
    async with ScriptedServer(script) as server, client_of(server) as client:
        details = await client.generate_and_wait("a red fox")
        assert len(details.urls) == 4
        assert not server.steps_left


@pytest.mark.fault("P12")
async def test_compressed_bomb_is_capped() -> None:
    """The cap counts decoded bytes."""
    import gzip

    bomb = reply(body=gzip.compress(b"[" * (64 << 20)), headers={"Content-Encoding": "gzip"})
    script = [accepted(), bomb, looked()]
    async with ScriptedServer(script) as server, client_of(server) as client:
        assert (await client.generate_and_wait("a red fox")).is_final


@pytest.mark.fault("P13")
async def test_wait_timeout_bounds_a_hanging_get() -> None:
    """Over sockets: the GET hangs, the wait ends in time, and a later wait succeeds."""
    script: list[Play] = [accepted(), hang(), looked()]
    async with ScriptedServer(script) as server, client_of(server) as client:
        handle = await client.generate("a red fox")
        begun = now()
        with pytest.raises(WaitTimeout):
            await handle.wait(timeout=40)
        assert pytest.approx(now() - begun, abs=0.1) == 40
        assert (await handle.wait(timeout=100)).is_final


async def test_default_wait_counts_from_acceptance_and_looks_once() -> None:
    """Timeouts.wait bounds `await handle`; an old handle still gets one look."""
    script = [accepted(), *(looked(flag=0) for _ in range(20))]
    timeouts = Timeouts(wait=50)
    async with ScriptedServer(script) as server, client_of(server, timeouts=timeouts) as client:
        handle = await client.generate("a red fox")
        begun = now()
        with pytest.raises(WaitTimeout):
            await handle
        assert pytest.approx(now() - begun, abs=0.1) == 50
        seen = len(looks(server))
        with pytest.raises(WaitTimeout):
            await handle
        assert seen < len(looks(server))
