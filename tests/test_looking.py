"""Looks that go wrong, over sockets: whose answer it is, how long it takes, what it proves."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from midapi_async import (
    AuthenticationError,
    CallbackReceiver,
    GenerationFailedError,
    MemoryJournal,
    MidAPIError,
    PollPolicy,
    ProtocolError,
    State,
    SubmissionUnknown,
    TaskDetails,
    Timeouts,
    WaitTimeout,
)
from midapi_async._wire.tokens import new_token
from midapi_async.sandbox import Faults, Sandbox, never_end
from tests.support.scripted import (
    Answer,
    Connection,
    Play,
    Received,
    ScriptedServer,
    delay,
    hang,
    lose_answer,
    reply,
)
from tests.world import TASK, accepted, client_of, looked, looks, mid, ok, refused, selling

FAST = PollPolicy(looks_per_second=100)


def now() -> float:
    return asyncio.get_running_loop().time()


def asked_for(request: Received) -> str:
    """The task id that a look asks for."""
    return request.target.rpartition("=")[2]


# ─── an answer about another task ────────────────────────────────────────────────────────────────


class Twice(Answer):
    """An answer that comes again when the connection is idle."""

    async def play(self, line: Connection) -> None:
        await line.send(self.head + self.body)
        await asyncio.sleep(0.002)
        await line.send(self.head + self.body)


@pytest.mark.fault("P6")
async def test_a_doubled_answer_shifts_no_later_ones(caplog: pytest.LogCaptureFixture) -> None:
    """20 tasks, and one answer comes twice: new connections, the old ones are closed, all end."""
    doubled: list[int] = []
    begun = now()
    sell = selling()

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return sell(request)
        answer = looked(asked_for(request), flag=1 if now() - begun >= 120 else 0)
        if not doubled and len(looks(server)) == 5:
            doubled.append(request.connection)
            return Twice(answer.head, answer.body)
        return delay(answer, 0.05)

    async with ScriptedServer(then=step) as server, client_of(server, polling=FAST) as client:
        handles = [await client.generate(f"fox {n}", speed="turbo") for n in range(20)]
        ended = await asyncio.gather(*(handle.wait() for handle in handles))
        assert [details.task_id for details in ended] == [each.task_id for each in handles]
        assert now() - begun < 200
        assert 1 <= client.stats().misdirected <= 2
        assert all(server._lines[number]._reader.at_eof() for number in doubled)
        assert len(client._session._transport._calls) == 2  # type: ignore[union-attr]


@pytest.mark.fault("P6")
async def test_one_look_is_asked_again_over_a_new_connection() -> None:
    """So a user who only asks for the details gets them; a second such answer is the error."""
    other = looked("f" * 32)
    async with (
        ScriptedServer([other, looked(), other, other]) as server,
        client_of(server) as client,
    ):
        assert (await client.details(TASK)).task_id == TASK
        with pytest.raises(ProtocolError, match="another task") as caught:
            await client.details(TASK)
        assert caught.value.task_id == TASK
        assert [request.connection for request in server.requests] == [0, 1, 1, 2]


@pytest.mark.fault("P6")
async def test_old_connections_close_when_their_looks_have_ended() -> None:
    """A look that is under way when another one is misdirected still gets its own answer."""
    slow = "51" * 16

    def step(request: Received) -> Answer:
        if asked_for(request) == slow:
            return delay(looked(slow), 5.0)
        return looked("f" * 32) if len(server.requests) < 2 else looked()

    async with ScriptedServer(then=step) as server, client_of(server) as client:
        waiting = asyncio.create_task(client.details(slow))
        await asyncio.sleep(1)
        assert (await client.details(TASK)).task_id == TASK
        transport = client._session._transport  # type: ignore[union-attr]
        assert len(transport._calls) == 3
        assert (await waiting).task_id == slow
        assert len(transport._calls) == 2


# ─── records that hang ───────────────────────────────────────────────────────────────────────────


async def ended(wait: Awaitable[object]) -> None:
    with suppress(MidAPIError):
        await wait


@pytest.mark.fault("P21")
@pytest.mark.parametrize("moment", [12, 48])
async def test_records_that_hang_delay_no_others(moment: float) -> None:
    """16 hang at every look: others are found at once, while looks are repeated and later."""

    def step(request: Received) -> Play:
        return hang() if asked_for(request).startswith("hangs") else looked(asked_for(request))

    async with ScriptedServer(then=step) as server, client_of(server, polling=FAST) as client:  # type: ignore[arg-type]
        waits = [asyncio.create_task(ended(client.task(f"hangs{n}").wait(90))) for n in range(16)]
        begun = now()
        await asyncio.sleep(moment)
        assert (await client.task("good").wait(9)).is_final
        assert now() - begun < moment + 1
        assert len(looks(server)) > 16
        await asyncio.wait(waits)


@pytest.mark.fault("P21")
async def test_hinted_tasks_have_places_of_their_own() -> None:
    """While as many looks hang as may be under way, a callback's task is looked at at once."""
    async with ScriptedServer(then=mid(accepted(), hang())) as server:
        async with client_of(server, polling=FAST) as client:
            waits = [asyncio.create_task(ended(client.task(f"t{n}").wait(9))) for n in range(40)]
            await asyncio.sleep(1)
            assert len(looks(server)) == 16
            client._session.tracker.hint("t39")  # type: ignore[union-attr]
            await asyncio.sleep(0.1)
            assert asked_for(looks(server)[-1]) == "t39"
            await asyncio.wait(waits)


# ─── a refused key, and an outage ────────────────────────────────────────────────────────────────


@pytest.mark.fault("P22")
@pytest.mark.fault("P11")
@pytest.mark.parametrize("status", [200, 401])
async def test_two_seconds_of_401_end_no_wait(status: int) -> None:
    """However many looks are refused in that time."""
    born = now()
    sell = selling()

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return sell(request)
        return refused(401, status=status) if 40 < now() - born < 42 else looked(asked_for(request))

    async with ScriptedServer(then=step) as server:
        async with client_of(server, polling=FAST) as client:
            handles = [await client.generate(f"fox {n}") for n in range(50)]
            await asyncio.sleep(40.5)
            for handle in handles:
                client._session.tracker.hint(handle.task_id)  # type: ignore[union-attr]
            ended = await asyncio.gather(*(handle.wait() for handle in handles))
            assert all(details.is_final for details in ended)
            assert now() - born < 60


@pytest.mark.fault("P22")
async def test_an_error_after_the_purchase_names_its_task() -> None:
    """And does not say that nothing was bought."""
    script = [accepted(), refused(401), refused(501)]
    async with ScriptedServer(script) as server, client_of(server) as client:
        handle = await client.generate("a red fox")
        with pytest.raises(AuthenticationError) as caught:
            await handle.details()
        assert caught.value.task_id == handle.task_id
        assert handle.task_id in str(caught.value)
        with pytest.raises(GenerationFailedError) as failed:
            await client.details(handle.task_id)
        assert handle.task_id in str(failed.value)
        assert "othing was bought" not in str(failed.value)


@pytest.mark.fault("P22")
@pytest.mark.parametrize("down_for", [2, 60])
async def test_a_failed_look_after_a_long_downtime_is_no_timeout(
    down_for: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is overdue, and ends with a look that is answered; or half a minute after it."""
    journal, real = MemoryJournal(), time.time
    born = now()

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return accepted()
        return reply(502) if now() - born < down_for else looked()

    async with ScriptedServer(then=step) as server:
        async with client_of(server, journal=journal) as client:
            await client.generate("a red fox")
        monkeypatch.setattr("time.time", lambda: real() + 7200)
        async with client_of(server, journal=journal) as client:
            [handle] = await client.resume()
            if down_for < 30:
                assert (await handle).is_final
                assert now() - born < 20
            else:
                with pytest.raises(WaitTimeout):
                    await handle
                assert now() - born == pytest.approx(30, abs=1)
                assert len(looks(server)) >= 5


# ─── the wall clock ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("P23")
@pytest.mark.parametrize("hours", [-2, 2])
@pytest.mark.parametrize("when", ["while it runs", "before resume"])
async def test_the_wall_clock_is_moved(
    hours: float, when: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No wait ends early by it, and no look is late: only the server's own clock counts."""
    real = time.time
    async with Sandbox(durations={("*", "*"): 300.0}) as sandbox:

        def move() -> None:
            monkeypatch.setattr("time.time", lambda: real() + hours * 3600)

        async with client_of(sandbox.url, journal=tmp_path) as client:
            born = now()
            handle = await client.generate("a red fox", speed="relaxed")
            if when == "while it runs":
                await asyncio.sleep(10)
                move()
                assert (await handle).is_final
                assert 300 <= now() - born < 330
                return
        await asyncio.sleep(100)
        move()
        async with client_of(sandbox.url, journal=tmp_path) as client:
            [handle] = await client.resume()
            assert (await handle).is_final
            assert 300 <= now() - born < 330
            asked = [each for each in sandbox.ledger.requests if each.task_id == handle.task_id]
            assert len(asked) < 12


@pytest.mark.fault("P23")
@pytest.mark.parametrize("hours", [-2, 2])
async def test_an_overdue_wait_ends_in_time_after_the_clock_was_moved(
    hours: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`Timeouts.wait` counts from the acceptance, by MidAPI's record and its Date header."""
    real = time.time
    async with Sandbox(faults=Faults().on("task", do=never_end())) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path) as client:
            born = now()
            await client.generate("a red fox")
        await asyncio.sleep(100)
        monkeypatch.setattr("time.time", lambda: real() + hours * 3600)
        timeouts = Timeouts(wait=600)
        async with client_of(sandbox.url, journal=tmp_path, timeouts=timeouts) as client:
            [handle] = await client.resume()
            with pytest.raises(WaitTimeout):
                await handle
            # A clock that was moved back hides how long ago it was accepted.
            assert now() - born == pytest.approx(600 if hours > 0 else 700, abs=10)


@pytest.mark.fault("P23")
async def test_a_retry_after_with_a_date_is_read_by_the_servers_clock() -> None:
    """Our own clock may be two hours off."""
    server_time = time.time() - 7200
    wait = refused(
        429,
        status=429,
        Date=formatdate(server_time, usegmt=True),
        Retry_After=formatdate(server_time + 30, usegmt=True),
    )
    async with ScriptedServer([wait, accepted()]) as server, client_of(server) as client:
        begun = now()
        await client.generate("a red fox")
        assert now() - begun == pytest.approx(30, abs=5)


# ─── a record with another submission's token ────────────────────────────────────────────────────


def looked_with(url: str | None, flag: int = 1) -> Callable[[Received], Answer]:
    """A look at a task whose record has this callback URL."""
    params = {"prompt": "a red fox"} | ({"callBackUrl": url} if url else {})
    return lambda request: looked(asked_for(request), flag, paramJson=json.dumps(params))


@pytest.mark.fault("S21")
@pytest.mark.parametrize("way", ["wait", "details", "generate_and_wait"])
async def test_a_record_with_a_foreign_token_is_not_ours(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The POST got another request's answer: unknown, one CRITICAL line, and no result."""
    url = f"http://127.0.0.1/{new_token()}"
    receiver = CallbackReceiver(None, port=0)
    async with ScriptedServer(then=mid(accepted(), looked_with(url))) as server:
        async with client_of(server, receiver=receiver) as client:
            if way == "generate_and_wait":
                with pytest.raises(SubmissionUnknown, match=TASK):
                    await client.generate_and_wait("a red fox", key="k")
            else:
                handle = await client.generate("a red fox", key="k")
                for _ in range(2):
                    with pytest.raises(SubmissionUnknown, match=TASK) as caught:
                        await getattr(handle, way)()
                    assert (caught.value.key, caught.value.can_settle) == ("k", True)
            with pytest.raises(SubmissionUnknown):
                await client.generate("a red fox", key="k")
            [row] = await client.intents.unknown()
            assert (row.state, row.task_id, row.taken) == (State.UNKNOWN, None, False)
            assert await client.resume() == []
    critical = [entry for entry in caplog.records if entry.levelno == logging.CRITICAL]
    assert len(critical) == 1
    assert TASK in critical[0].message


@pytest.mark.fault("S21")
@pytest.mark.parametrize("url", [None, "https://me.example/", "http://127.0.0.1/mjt_" + "a" * 20])
async def test_a_record_without_a_whole_token_proves_nothing(url: str | None) -> None:
    """MidAPI may leave it out, or cut it."""
    receiver = CallbackReceiver(None, port=0)
    async with ScriptedServer(then=mid(accepted(), looked_with(url))) as server:
        async with client_of(server, receiver=receiver) as client:
            assert (await client.generate_and_wait("a red fox")).is_final


@pytest.mark.fault("S21")
@pytest.mark.parametrize(
    "first", [ok({"taskId": TASK}), looked(flag=0, paramJson=None)], ids=["bare", "no params"]
)
async def test_a_foreign_token_in_a_later_record_is_noticed(first: Answer) -> None:
    """A first record without a callback URL has proven nothing."""
    answers = iter([first])
    foreign = looked_with(f"http://127.0.0.1/{new_token()}")

    def look(request: Received) -> Answer:
        return next(answers, None) or foreign(request)

    receiver = CallbackReceiver(None, port=0)
    async with ScriptedServer(then=mid(accepted(), look)) as server:
        async with client_of(server, receiver=receiver) as client:
            with pytest.raises(SubmissionUnknown, match=TASK):
                await client.generate_and_wait("a red fox")


@pytest.mark.fault("S21")
async def test_our_own_token_is_ours() -> None:
    """The record repeats the callback URL that was sent."""

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return accepted()
        sent = server.requests[0].json()
        assert isinstance(sent, dict)
        return looked_with(sent["callBackUrl"])(request)

    receiver = CallbackReceiver(None, port=0)
    async with ScriptedServer(then=step) as server:
        async with client_of(server, receiver=receiver) as client:
            assert (await client.generate_and_wait("a red fox")).is_final


# ─── an answer that is lost, and no callback ─────────────────────────────────────────────────────


@pytest.mark.fault("S29")
@pytest.mark.parametrize(
    ("speed", "wait_timeout", "seconds"),
    [("turbo", ..., 132), ("fast", ..., 264), ("fast", None, 264), ("relaxed", 40, 40)],
)
async def test_settling_takes_no_longer_than_such_a_task(
    speed: str, wait_timeout: float | None, seconds: float
) -> None:
    """Three times its 90 % point, at least two minutes, within `wait_timeout`; not an hour."""
    options: dict[str, Any] = {"speed": speed, "wait_timeout": wait_timeout}
    for answer in (reply(503), lose_answer()):
        receiver = CallbackReceiver(None, port=0)
        async with ScriptedServer([answer]) as server:
            async with client_of(server, receiver=receiver) as client:
                begun = now()
                with pytest.raises(SubmissionUnknown, match="in time"):
                    await client.generate_and_wait("a red fox", **options)
                assert now() - begun == pytest.approx(seconds, abs=2)


# ─── a result is taken when its caller has it ────────────────────────────────────────────────────


@pytest.mark.fault("L14")
@pytest.mark.parametrize("depth", [1, 2])
async def test_a_caller_that_is_cancelled_in_that_turn_has_not_taken_the_result(depth: int) -> None:
    """Another task of its TaskGroup fails in the turn in which the wait returns."""
    saved: list[TaskDetails] = []

    async def fail(returned: asyncio.Event) -> None:
        await returned.wait()
        raise RuntimeError("a sibling failed")

    async def group(work: Callable[[], object], depth: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(work() if depth == 1 else group(work, depth - 1))  # type: ignore[arg-type]
            if depth == max_depth:
                tasks.create_task(fail(returned))

    max_depth = depth
    async with (
        ScriptedServer(then=mid(accepted(), looked())) as server,
        client_of(server) as client,
    ):
        handle = await client.generate("a red fox")
        returned = asyncio.Event()

        async def caller() -> None:
            details = await handle
            returned.set()
            await asyncio.sleep(1)  # saves it
            saved.append(details)

        with pytest.raises(ExceptionGroup):
            await group(caller, depth)
        assert not saved
        [again] = await client.resume()
        assert again.final is not None  # the result itself is in the journal
        assert (await handle).is_final  # and this caller takes it
        assert await client.resume() == []
