"""Rows P and L of the fault catalogue that concern tracking: the scheduler in virtual time."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import cast

import pytest

from midapi_async import (
    AuthenticationError,
    ClientClosed,
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
from midapi_async._tracking.schedule import Schedule
from midapi_async._tracking.tracker import (
    AT_ONCE,
    FORGIVEN,
    HINT_INTERVAL,
    HINTS_PER_TASK,
    REMEMBERED,
    SLEEP_CHECK,
    Tracker,
)
from midapi_async._tracking.verdict import Tracked
from midapi_async._wire.records import Record, read_record
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
        self.latency = 0.05
        self.born = now()
        self.clock = clock = Clock(scale, chance=lambda: 0.0)
        self.schedule = Schedule(
            price=policy.look_price, floor=policy.floor, ceiling=policy.ceiling
        )
        self.tracker = Tracker(look=self.look, schedule=self.schedule, policy=policy, clock=clock)

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

    async def wait(
        self,
        task_id: str = TASK,
        within: float | None = None,
        since: float | None = -1.0,
        *,
        looks_once: bool = False,
        has_callback: bool = False,
    ) -> TaskDetails:
        """Wait for a task of now, or of another time, or of an unknown age."""
        wait = self.tracker.join(
            task_id,
            kind=FAST,
            since=now() if since == -1.0 else since,
            deadline=None if within is None else now() + within,
            looks_once=looks_once,
            has_callback=has_callback,
        )
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


async def test_a_waiter_wakes_soon_after_the_task_is_done(world: World) -> None:
    """Few looks, and a result not later than a schedule's step."""
    world.finishes(TASK, at=62)
    details = await world.wait()
    assert len(details.urls) == 4
    assert 62 <= now() - world.born <= 75
    assert len(world.looks) <= 8


async def test_p14_l04_twenty_waiters_are_one_look(world: World) -> None:
    """However many wait for one task, there is one GET per look."""
    world.finishes(TASK, at=1)
    results = await asyncio.gather(*(world.wait() for _ in range(20)))
    assert len(world.looks) == 1
    assert len({id(details) for details in results}) == 1


async def test_a_hint_is_looked_at_at_once(world: World) -> None:
    """First come of hint and schedule: the hint's look comes before the planned one."""
    world.finishes(TASK, at=10)
    waiting = asyncio.create_task(world.wait())
    await asyncio.sleep(12)
    world.tracker.hint(TASK)
    await waiting
    assert now() - world.born < 12.1
    assert len(world.looks) == 1


async def test_a_hint_overtakes_what_is_queued() -> None:
    """With more tasks due than looks, a callback's task is looked at next, and others not less."""
    async with a_world(PollPolicy(looks_per_second=5)) as world:
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


async def test_a_thousand_overdue_waits_each_get_their_look() -> None:
    """One look at least, however long the queue is: nobody is told a timeout unseen."""
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


async def test_a_short_default_wait_looks_at_its_deadline_not_at_the_plans() -> None:
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


async def test_an_overdue_wait_ends_with_its_look(world: World) -> None:
    """What is still generating then is a WaitTimeout; a deadline in the past is no blocked loop."""
    world.finishes(TASK, at=1e9)
    begun = now()
    with pytest.raises(WaitTimeout):
        await world.wait(within=-5, since=0, looks_once=True)
    assert len(world.looks) == 1
    with pytest.raises(WaitTimeout):
        await world.wait(within=-5)
    assert now() - begun < 0.2


async def test_thousands_of_failed_looks_end_nothing() -> None:
    """The pauses between looks have a bound, also after weeks of faults."""
    async with a_world(PollPolicy(floor=0.01, ceiling=0.02, looks_per_second=1000)) as world:
        wrong = ProtocolError("data.successFlag", "must be a whole number")
        world.says(TASK, *[wrong] * 1500, record(flag=1))

        def only_count(task: Tracked, _: MidAPIError) -> None:
            task.notes.faults += 1

        world.tracker._judge_fault = only_count  # type: ignore[method-assign,assignment]
        assert (await world.wait()).is_final


async def test_an_early_hint_is_remembered(world: World) -> None:
    """A callback that came before anybody waited makes the first look come at once."""
    world.finishes(TASK, at=0)
    world.tracker.hint(TASK)
    await world.wait()
    assert now() - world.born < 0.2


async def test_a_hint_during_a_look_asks_again(world: World) -> None:
    """The look that is on its way may have been answered before the change."""
    world.latency = 2
    world.says(TASK, record(flag=0), record(flag=1))
    waiting = asyncio.create_task(world.wait())
    world.tracker.hint(TASK)
    await asyncio.sleep(1)
    world.tracker.hint(TASK)
    await waiting
    assert now() - world.born < 10


async def test_c22_a_thousand_hints_a_second(world: World) -> None:
    """A flood of hints moves a look at most every 5 s and twelve times."""
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


async def test_p01_unknown_at_first_is_waited_for(world: World) -> None:
    """A task too new to be known is found later."""
    world.says(TASK, None, None, None, record(flag=1))
    await world.wait()
    assert len(world.looks) == 4


async def test_p01_unknown_for_ever_is_task_not_found(world: World) -> None:
    """After 120 s and five looks at least."""
    world.says(TASK, None)
    with pytest.raises(TaskNotFound, match=TASK):
        await world.wait()
    first = world.looks[0][0]
    assert len(world.looks) >= 5
    assert 120 <= world.looks[-1][0] - first <= 300


async def test_p01_a_task_that_was_seen_does_not_get_unknown(world: World) -> None:
    """Once seen, a missing record is a passing fault."""
    world.says(TASK, record(flag=0), *[None] * 20, record(flag=1))
    assert (await world.wait()).is_final


async def test_p02_an_outage_ends_no_wait_and_costs_little(world: World) -> None:
    """Ten minutes without a server: looks become rare, waiters live, nobody stampedes after."""
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
    assert busiest <= 11


async def test_s19_failing_looks_are_not_more_looks(world: World) -> None:
    """Every look fails: fewer looks than normal, and fewer as it lasts."""
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


async def test_s05_a_429_rests_all_looks(world: World) -> None:
    """A Retry-After on a look holds for every task."""
    world.says("one", RateLimitError(429, "slow", retry_after=40), record("one", 1))
    world.finishes("two", at=0)
    one = asyncio.create_task(world.wait("one", since=now() - 100))
    await asyncio.sleep(1)
    two = asyncio.create_task(world.wait("two", since=now() - 100))
    await asyncio.gather(one, two)
    assert all(moment >= 40 for moment, _ in world.looks[1:])


async def test_p03_a_new_flag_is_generating_and_warned_of_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Unknown and missing flags are not final."""
    world.says(TASK, *[record(flag=9)] * 3, record(flag=None), record(flag="0"), record(flag=1))
    assert (await world.wait()).is_final
    assert caplog.text.count("successFlag 9") == 1


async def test_p04_success_without_files_is_asked_again(world: World) -> None:
    """A success that shows no file yet is not the end."""
    empty = record(flag=1, resultInfoJson=None)
    world.says(TASK, empty, empty, record(flag=1))
    assert len((await world.wait()).urls) == 4


async def test_p04_success_without_files_for_ever(world: World) -> None:
    """It ends as ResultMissing with the details, never as a hang."""
    world.says(TASK, record(flag=1, resultInfoJson={"resultUrls": []}))
    with pytest.raises(ResultMissing) as caught:
        await world.wait()
    assert caught.value.details is not None
    assert TaskStatus.SUCCEEDED is caught.value.details.status


async def test_p08_a_deadline_ends_one_wait_and_not_the_task(world: World) -> None:
    """WaitTimeout has the id; others wait on; it can be awaited again."""
    world.finishes(TASK, at=100)
    other = asyncio.create_task(world.wait())
    with pytest.raises(WaitTimeout) as caught:
        await world.wait(within=10)
    assert caught.value.task_id == TASK
    assert pytest.approx(now() - world.born, abs=0.01) == 10
    assert (await other).is_final


async def test_p08_waiting_in_short_bites_keeps_to_the_floor(world: World) -> None:
    """A loop of short waits on an old task costs no more than a look per floor."""
    world.finishes(TASK, at=30)
    for _ in range(1000):
        try:
            await world.wait(within=0.05, since=None)
        except WaitTimeout:
            continue
        break
    assert len(world.looks) <= 31


async def test_p08_waiting_in_bites_keeps_to_the_plan(world: World) -> None:
    """A visitor who asks again every 5 s costs no more looks than one who waits."""
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


async def test_p13_a_look_that_hangs_is_bounded_by_the_wait(world: World) -> None:
    """The deadline does not wait for the GET."""
    world.latency = 10_000
    world.finishes(TASK, at=0)
    with pytest.raises(WaitTimeout):
        await world.wait(within=45)
    assert pytest.approx(now() - world.born, abs=0.01) == 45


async def test_p10_a_blocked_loop_is_no_timeout(world: World) -> None:
    """The loop was blocked past the deadline while the result came: it is delivered."""
    world.finishes(TASK, at=0)
    first = world.schedule.first_look(FAST)
    waiting = asyncio.create_task(world.wait(within=first + 2))
    await asyncio.sleep(first - 0.1)
    asyncio.get_running_loop()._clock.now += 5  # type: ignore[attr-defined]
    assert (await waiting).is_final


async def test_p11_a_revoked_key_ends_every_wait(world: World) -> None:
    """Two 401s of MidAPI's own in a row: all are told, and looking stops."""
    tasks = [f"task{n}" for n in range(500)]
    for task in tasks:
        world.says(task, AuthenticationError(401, "no access", 200))
    ended = await asyncio.gather(
        *(world.wait(task, since=now() - 100) for task in tasks), return_exceptions=True
    )
    assert {type(error) for error in ended} == {AuthenticationError}
    assert len({id(error) for error in ended}) == 500
    assert len(world.looks) <= 20


async def test_p11_a_strangers_401_is_a_passing_fault(world: World) -> None:
    """A login page with 401 is not MidAPI's word."""
    strange = AuthenticationError(401, "a page", 401, own_envelope=False)
    world.says(TASK, strange, strange, strange, record(flag=1))
    assert (await world.wait()).is_final


async def test_l05_cancelled_waiters_leave_nothing(world: World) -> None:
    """20 × 500 cancelled waits: entries, futures and heap items are gone, up to a bound."""
    asyncio.get_running_loop().set_debug(False)
    for turn in range(20):
        waits = [asyncio.create_task(world.wait(f"t{turn}-{n}", within=3600)) for n in range(500)]
        await asyncio.sleep(0)
        assert world.tracker.waiting == 500
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
    assert not world.tracker._active
    assert len(world.tracker._agenda) <= 3000
    assert len(world.tracker._idle) <= REMEMBERED


async def test_l06_closing_tells_every_waiter(world: World) -> None:
    """Each gets ClientClosed with its id, at once."""
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


async def test_l08_a_scheduler_that_fails_is_started_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks it, the waiters still get their result, and it is said."""
    world.finishes(TASK, at=0)
    real = world.tracker._do_what_is_due
    failures = iter([RuntimeError("a bug")])

    def once_broken() -> float:
        if (failure := next(failures, None)) is not None:
            raise failure
        return real()

    world.tracker._do_what_is_due = once_broken  # type: ignore[method-assign]
    assert (await world.wait()).is_final
    assert [entry.levelno for entry in caplog.records] == [logging.ERROR]


async def test_l08_what_the_scheduler_had_in_its_hands_is_not_lost(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It fails with a task taken out of the agenda: that one is looked at all the same."""
    world.finishes(TASK, at=0)
    real = world.tracker._line_up
    failures = iter([RuntimeError("a bug")])

    def once_broken(task: Tracked, moment: float) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        real(task, moment)

    world.tracker._line_up = once_broken  # type: ignore[method-assign,assignment]
    assert (await world.wait()).is_final
    assert "a bug" in caplog.text


async def test_l04_one_turn_deals_with_a_part_of_what_is_due(world: World) -> None:
    """2,000 tasks of one moment: a turn of the loop serves some, and asks to go on at once."""
    for n in range(2_000):
        world.finishes(f"t{n}", at=0)
    waits = [asyncio.create_task(world.wait(f"t{n}")) for n in range(2_000)]
    await asyncio.sleep(1)
    asyncio.get_running_loop()._clock.now += 60  # type: ignore[attr-defined]
    assert now() >= world.tracker._do_what_is_due()
    assert len(world.tracker._ready) + world.tracker._looking == AT_ONCE
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)


async def test_l08_a_look_that_breaks_is_a_passing_fault(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect in one look neither kills the tracker nor the wait."""
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
    """After three callbacks in time a task costs the look that its callback asks for, and no more.

    Before, the plan looks as if no callback would come.
    """
    assert await called_back(world, "first", 70) > 1
    await called_back(world, "second", 70)
    await called_back(world, "third", 70)
    assert [await called_back(world, f"t{n}", 70) for n in range(5)] == [1] * 5


async def test_c01_one_silent_finish_undoes_the_trust(world: World) -> None:
    """A callback that never comes is found by the plan, and the next task is looked at as ever."""
    for n in range(4):
        await called_back(world, f"t{n}", 70)
    assert world.schedule.trusts_callbacks
    assert await called_back(world, "silent", 70, after=None) >= 1
    assert await called_back(world, "next", 95) > 1
    assert not world.schedule.trusts_callbacks


async def test_trust_is_withdrawn_for_those_who_wait_already(world: World) -> None:
    """A hundred tasks that were left to their callbacks are looked at when the first is silent."""
    for n in range(4):
        await called_back(world, f"t{n}", 70)
    begun = now()
    waits = [called_back(world, f"late{n}", 70, after=None) for n in range(20)]
    await asyncio.gather(*waits)
    assert now() - begun - 10 < 70 + 40


async def test_a_callback_just_behind_a_look_was_in_time(world: World) -> None:
    """A look may win the race by a second or two: that is no silent finish."""
    for n in range(6):
        await called_back(world, f"t{n}", 70, after=4.0)
    assert world.schedule.trusts_callbacks


async def test_what_was_finished_before_anybody_waited_is_not_silent(world: World) -> None:
    """An old task that is awaited at last says nothing about callbacks."""
    for n in range(4):
        await called_back(world, f"t{n}", 70)
    world.finishes("old", at=0)
    await world.wait("old", since=now() - 900, has_callback=True)
    await asyncio.sleep(10)
    assert world.schedule.trusts_callbacks


async def test_p10_a_process_that_stood_still_looks_before_it_gives_up() -> None:
    """Ten minutes in which nothing ran: a wait whose time is up gets its result all the same."""
    policy = PollPolicy(looks_per_second=5)
    async with a_world(policy) as stopped:
        for n in range(50):
            stopped.finishes(f"t{n}", at=30)
        waits = [asyncio.create_task(stopped.wait(f"t{n}", within=40)) for n in range(50)]
        await asyncio.sleep(1)
        asyncio.get_running_loop()._clock.now += 600  # type: ignore[attr-defined]
        ended = await asyncio.gather(*waits)
        assert all(details.is_final for details in ended)
        assert len(stopped.looks) == 50
        moments = [moment for moment, _ in stopped.looks]  # no stampede: so many in any second
        assert all(later - sooner >= 1 for sooner, later in zip(moments, moments[5:], strict=False))


async def test_p10_a_machine_that_slept_looks_at_once() -> None:
    """The loop's clock stood still for an hour: what is finished meanwhile is seen soon."""
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


async def test_i3_a_stall_makes_no_wait_later_than_half_a_minute() -> None:
    """1,000 deadlines passed while nothing ran, and five looks a second: each wait ends soon."""
    async with a_world() as world:
        for n in range(1_000):
            world.finishes(f"t{n}", at=1e9)
        waits = [asyncio.create_task(world.wait(f"t{n}", within=30)) for n in range(1_000)]
        await asyncio.sleep(28)
        asyncio.get_running_loop()._clock.now += 5  # type: ignore[attr-defined]
        ended = await asyncio.gather(*waits, return_exceptions=True)
        assert {type(each) for each in ended} == {WaitTimeout}
        assert now() - world.born <= 30 + 5 + FORGIVEN


async def test_a_callback_just_before_its_record_is_looked_for_again(world: World) -> None:
    """A trusted callback that comes a second too early costs some seconds and not more."""
    for n in range(4):
        await called_back(world, f"t{n}", 70)
    for name, early in (("sooner", -0.5), ("soonest", -2.0)):
        begun = now()
        await called_back(world, name, 70, after=early)
        assert now() - begun - 10 <= 78
    assert world.schedule.trusts_callbacks is False


async def test_c01_callbacks_that_never_come_are_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """One line after three tasks, so that nobody pays for a receiver that is not reached."""
    for n in range(6):
        await called_back(world, f"t{n}", 70, after=None)
    assert sum("midapi doctor" in entry.message for entry in caplog.records) == 1


async def test_a_callback_at_the_start_earns_no_trust(world: World) -> None:
    """It says that MidAPI has begun, and nothing of when it ends."""
    for n in range(6):
        await called_back(world, f"t{n}", 70, after=-68.0)
    assert not world.schedule.trusts_callbacks


async def test_c01_short_waits_are_not_left_to_callbacks_that_stopped(world: World) -> None:
    """Each makes its last planned look before it gives up, and so finds out."""
    for n in range(4):
        await called_back(world, f"t{n}", 55)
    for n in range(8):
        world.finishes(f"silent{n}", at=now() - world.born + 55)
        assert (await world.wait(f"silent{n}", within=70, has_callback=True)).is_final


async def test_p06_a_record_that_is_none_is_its_own_tasks_trouble(world: World) -> None:
    """Twenty tasks that only ever show somebody else's record do not slow down the others."""
    for n in range(20):
        world.says(f"bad{n}", ProtocolError("data.taskId", "names another task"))
    bad = [asyncio.create_task(world.wait(f"bad{n}")) for n in range(20)]
    world.finishes("good", at=60)
    await world.wait("good")
    assert now() - world.born < 75
    for each in bad:
        each.cancel()
    await asyncio.wait(bad)


async def test_a_task_of_unknown_age_that_goes_on_is_left_to_the_plan(world: World) -> None:
    """The look at once was answered: nothing is to be looked for soon."""
    world.finishes(TASK, at=300)
    wait = asyncio.create_task(world.wait(since=None))
    await asyncio.sleep(20)
    assert len(world.looks) == 1
    wait.cancel()
    await asyncio.wait([wait])


async def test_callbacks_that_come_late_are_not_said_to_be_missing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """They do reach the receiver: whether in time is another question."""
    for n in range(5):
        await called_back(world, f"t{n}", 70 + n, after=9.5)
        await asyncio.sleep(5)
    assert not any("midapi doctor" in entry.message for entry in caplog.records)


async def test_an_old_task_whose_first_look_fails_is_looked_at_again_soon(world: World) -> None:
    """It was due at once, and still is."""
    world.says(TASK, RateLimitError(429, "no", 429, retry_after=1), record(flag=1))
    await world.wait(since=None)
    assert now() - world.born < 5


async def test_p14_many_waits_on_one_task_cost_the_same_each(world: World) -> None:
    """Their deadlines are not gone through for each that comes or goes."""
    world.finishes(TASK, at=1e9)
    waits = [asyncio.create_task(world.wait(within=100 + n)) for n in range(3_000)]
    await asyncio.sleep(1)
    task, calls = world.tracker._active[TASK], 0

    def counted() -> None:
        nonlocal calls
        calls += 1

    real, type(task).renew_deadline = type(task).renew_deadline, lambda _: counted()  # type: ignore[assignment,method-assign]
    try:
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
    finally:
        type(task).renew_deadline = real  # type: ignore[method-assign]
    assert calls <= 2


async def test_more_tasks_than_looks_is_fair_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """300 tasks and two looks a second: each is looked at before any is looked at again."""
    async with a_world(PollPolicy(looks_per_second=2)) as world:
        for n in range(300):
            world.finishes(f"t{n}", at=400)
        await asyncio.gather(*(world.wait(f"t{n}") for n in range(300)))
        order = [task_id for _, task_id in world.looks]
        seen_before = [order[:place].count(task_id) for place, task_id in enumerate(order)]
        rounds = list(itertools.accumulate(seen_before, max))
        assert all(most - count <= 1 for most, count in zip(rounds, seen_before, strict=True))
    assert sum("looks_per_second" in entry.message for entry in caplog.records) == 1


async def test_looks_are_bounded_in_rate_and_number() -> None:
    """looks_per_second holds over any second beyond a second's burst; all tasks get their turn."""
    async with a_world(PollPolicy(looks_per_second=5)) as world:
        tasks = [f"task{n}" for n in range(300)]
        for task in tasks:
            world.finishes(task, at=0)
        await asyncio.gather(*(world.wait(task, since=now() - 100) for task in tasks))
        assert len(world.looks) == 300
        assert 58 <= now() - world.born <= 62
        moments = [moment for moment, _ in world.looks]
        assert max(sum(1 for m in moments if s <= m < s + 1) for s in moments) <= 10


async def test_the_schedule_learns() -> None:
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


async def test_time_scale_divides_every_wait() -> None:
    """With a scale of 60 a minute of the service is a second of the loop."""
    async with a_world(scale=60) as world:
        world.finishes(TASK, at=1.0)
        await world.wait(since=now() * 60)
        assert 1.0 <= now() - world.born <= 1.3


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
async def test_a_failed_task_is_its_own_error(message: str, kind: type, flag: int) -> None:
    """Flag 2 and 3 raise TaskFailed with the details; the transient text is told as such."""
    failed = looked(flag=flag, errorCode="500", errorMessage=message)
    async with ScriptedServer(then=mid(accepted(), failed)) as server, client_of(server) as client:
        with pytest.raises(TaskFailed) as caught:
            await client.generate_and_wait("a red fox")
        assert kind is type(caught.value)
        assert (message or "").startswith("No response") == caught.value.transient
        assert caught.value.details is not None
        assert caught.value.details.error_code == 500


async def test_p05_a_final_state_stays() -> None:
    """What a handle has handed over once it hands over again, whatever the record says now."""
    script = [accepted(), looked(flag=1), looked(flag=0)]
    async with ScriptedServer(script) as server, client_of(server) as client:
        handle = await client.generate("a red fox")
        first = await handle
        assert first is await handle
        assert len(looks(server)) == 1


PASSING: dict[str, Step] = {
    "p06_another_task": looked("f" * 32),
    "p07_html": reply(body="<html>login</html>"),
    "p07_http_403_page": reply(403, body="<html>"),
    "p07_http_511_page": reply(511, body="<html>"),
    "p07_redirect": reply(302, headers={"Location": "https://elsewhere.example/"}),
    "p02_reset": reset("headers"),
    "p02_http_502": reply(502),
    "p02_code_500": refused(500),
    "s11_deep": reply(body="[" * 100_000),
    "wrong_kind": ok(record(flag=[1])),
    "p01_422": refused(422, "recordInfo is null"),
    "p01_404": refused(404, "Task not found", status=404),
    "p01_null": ok(None),
    "s05_429": refused(429, status=429, Retry_After="3"),
}


@pytest.mark.parametrize("fault", PASSING)
async def test_a_passing_fault_of_a_look_ends_no_wait(fault: str) -> None:
    """The next look finds the result."""
    script = [accepted(), PASSING[fault], looked()]
    async with ScriptedServer(script) as server, client_of(server) as client:
        details = await client.generate_and_wait("a red fox")
        assert len(details.urls) == 4
        assert not server.steps_left


async def test_p12_a_compressed_bomb_is_capped() -> None:
    """The cap counts decoded bytes."""
    import gzip

    bomb = reply(body=gzip.compress(b"[" * (64 << 20)), headers={"Content-Encoding": "gzip"})
    script = [accepted(), bomb, looked()]
    async with ScriptedServer(script) as server, client_of(server) as client:
        assert (await client.generate_and_wait("a red fox")).is_final


async def test_p13_wait_timeout_bounds_a_hanging_get() -> None:
    """Over sockets: the GET hangs, the wait ends in time, and can be taken up again."""
    script: list[Play] = [accepted(), hang(), looked()]
    async with ScriptedServer(script) as server, client_of(server) as client:
        handle = await client.generate("a red fox")
        begun = now()
        with pytest.raises(WaitTimeout):
            await handle.wait(timeout=40)
        assert pytest.approx(now() - begun, abs=0.1) == 40
        assert (await handle.wait(timeout=100)).is_final


async def test_the_default_wait_counts_from_acceptance_and_looks_once_at_least() -> None:
    """Timeouts.wait bounds await handle; an old handle still gets a look."""
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
