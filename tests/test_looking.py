"""Looks that go wrong, over sockets: whose answer it is, how long it takes, what it proves."""

import asyncio
import json
import logging
import pickle
import re
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from email.utils import formatdate
from functools import partial
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
    PromptRejected,
    ProtocolError,
    ResultMissing,
    State,
    SubmissionUnknown,
    TaskDetails,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TaskStatus,
    Timeouts,
    WaitTimeout,
)
from midapi_async._wire.tokens import new_token
from midapi_async.journal import Journal
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import Faults, Sandbox, never_end
from tests.support.scripted import (
    Answer,
    Connection,
    Play,
    Received,
    ScriptedServer,
    cut,
    delay,
    garbage,
    hang,
    lose_answer,
    reply,
    reset,
)
from tests.world import (
    TASK,
    accepted,
    client_of,
    looked,
    looks,
    mid,
    ok,
    record,
    refused,
    selling,
    submits,
)

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
        ScriptedServer([other, looked(flag=0), other, other]) as server,
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


# ─── looks that fail for an hour ─────────────────────────────────────────────────────────────────

LOGIN = "<html><head><title>Sign in to the hotel's network</title></head></html>"
# The answer to each look, and what the warning and the error say about it.
FAILING: dict[str, tuple[Play, str]] = {
    "challenge": (reply(403, body="<html>", headers={"cf-mitigated": "challenge"}), "Cloudflare"),
    "login": (reply(302, headers={"Location": "https://sso.example/?t=1"}), "redirect to sso.exam"),
    "portal": (reply(body=LOGIN), "Sign in to the hotel"),
    "CDN": (reply(521, body=LOGIN, headers={"Server": "cloudflare"}), "521"),
    "proxy": (reply(407, body="<title>Proxy login</title>"), "407"),
    "MidAPI": (refused(500, "busy"), "busy"),
    "too many": (refused(429), "429"),
    "reset": (reset("headers"), "could not be reached"),
    "hangs": (hang(), "no answer came in time"),
    "mixed up": (looked("f" * 32), "names another task"),
    "cut": (cut(looked(), body=10), "cut short"),
}


def our_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines about looks that are not for developers only."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.name == "midapi_async.tracking" and each.levelno >= logging.INFO
    ]


@pytest.mark.fault("P18")
@pytest.mark.parametrize("way", FAILING)
async def test_an_hour_of_failing_looks_is_one_warning(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning, and the error of each wait, name the cause; nothing says that a task goes on."""
    answer, says = FAILING[way]
    async with ScriptedServer(then=mid(look=answer)) as server, client_of(server) as client:
        waits = [client.task(f"{number:032x}").wait() for number in range(5)]
        ended = await asyncio.gather(*waits, return_exceptions=True)
        stats = client.stats()
    assert 20 <= stats.looks - 5 <= stats.failed_looks <= stats.looks  # some may be under way
    [line] = our_lines(caplog)
    assert says in line
    for error in ended:
        assert isinstance(error, WaitTimeout)
        assert isinstance(error.__cause__, MidAPIError)
        assert says in str(error)
        assert "goes on" not in str(error)
        assert error.__cause__.__traceback__ is None, "its frames hold whole answers"


@pytest.mark.fault("P18")
@pytest.mark.parametrize("way", ["refused", "name", "TLS"])
async def test_an_hour_without_a_connection_is_one_warning(
    way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is gone, a name that does not resolve, an answer that is not TLS."""

    async def unknown_name(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with ScriptedServer(then=garbage()) as server:
        url = server.url
        if way == "TLS":
            url = url.replace("http:", "https:")
        elif way == "name":
            url = "https://midapi.invalid"
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown_name)
        else:
            await server.__aexit__(None, None, None)
        async with client_of(url) as client:
            waits = [client.task(f"{number:032x}").wait() for number in range(5)]
            ended = await asyncio.gather(*waits, return_exceptions=True)
    [line] = our_lines(caplog)
    assert "could not be reached" in line
    assert all(isinstance(error, WaitTimeout) for error in ended)
    assert all("could not be reached" in str(error) for error in ended)


@pytest.mark.fault("P18")
@pytest.mark.parametrize("tasks", [1, 2, 20])
async def test_looks_that_are_answered_again_are_one_line(
    tasks: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It says how long, and how many looks failed; the result is there."""
    born = now()

    def step(request: Received) -> Answer:
        return reply(502) if now() - born < 1800 else looked(asked_for(request))

    async with ScriptedServer(then=step) as server, client_of(server) as client:
        await asyncio.gather(*(client.task(f"{number:032x}").wait() for number in range(tasks)))
        stats = client.stats()
    warning, over = (line for line in our_lines(caplog) if "succeeded" not in line)
    assert "502" in warning
    text = rf"looks (at .*)?are answered again; {stats.failed_looks} have failed in (\d+) s"
    seconds = re.fullmatch(text, over)
    assert seconds is not None
    assert 1800 <= int(seconds[2]) < 2000


@pytest.mark.fault("P18")
async def test_looks_that_fail_now_and_then_are_few_warnings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For an hour, five of six looks fail: a warning every ten minutes."""

    def step(request: Received) -> Answer:
        is_good = len(server.requests) % 6 == 0
        return looked(asked_for(request), flag=0) if is_good else reply(502)

    async with ScriptedServer(then=step) as server, client_of(server) as client:
        waits = [ended(client.task(f"{number:032x}").wait(3600)) for number in range(20)]
        await asyncio.gather(*waits)
    warnings = [line for line in our_lines(caplog) if "have failed, the last one" in line]
    assert 3 <= len(warnings) <= 7
    assert len(our_lines(caplog)) <= 30


@pytest.mark.fault("P18")
@pytest.mark.parametrize("failing", [hang(), reply(body="<html>"), looked("f" * 32)])
async def test_one_task_whose_looks_fail_is_named_once(
    failing: Play, caplog: pytest.LogCaptureFixture
) -> None:
    """The looks at all others are answered."""

    def step(request: Received) -> Play:
        return failing if asked_for(request) == TASK else looked(asked_for(request), flag=0)

    async with ScriptedServer(then=step) as server, client_of(server) as client:  # type: ignore[arg-type]
        others = [ended(client.task(f"{number:032x}").wait(1800)) for number in range(10)]
        await asyncio.gather(ended(client.task(TASK).wait(1800)), *others)
    [line] = our_lines(caplog)
    assert f"3 looks in a row have failed at task {TASK}" in line


@pytest.mark.fault("P18")
async def test_an_outage_is_noticed_beside_a_task_that_always_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The task is named; then all looks fail for a while, which is one warning and one line."""
    born = now()

    def step(request: Received) -> Play:
        if asked_for(request) == TASK:
            return hang()
        is_down = 900 < now() - born < 1800
        return reply(502) if is_down else looked(asked_for(request), flag=0)

    async with ScriptedServer(then=step) as server, client_of(server) as client:  # type: ignore[arg-type]
        others = [ended(client.task(f"{number:032x}").wait(2400)) for number in range(10)]
        await asyncio.gather(ended(client.task(TASK).wait(2400)), *others)
    named, down, over = our_lines(caplog)
    assert TASK in named
    assert "looks in a row have failed, the last one" in down
    assert "looks are answered again" in over


@pytest.mark.fault("P18")
async def test_a_task_that_has_failed_is_no_failing_look(caplog: pytest.LogCaptureFixture) -> None:
    """MidAPI answers with code 501 until that is certain: one line, which says how it ended."""
    async with (
        ScriptedServer(then=mid(look=refused(501, "no luck"))) as server,
        client_of(server) as client,
    ):
        with pytest.raises(TaskFailed):
            await client.task(TASK)
    [line] = our_lines(caplog)
    assert "no luck" in line
    assert "in a row" not in line


@pytest.mark.fault("P18")
async def test_a_timeout_says_what_the_last_looks_have_shown() -> None:
    """Generating, then failing looks; and never looked at."""
    answers = iter([looked(flag=0)])
    step = mid(look=lambda _: next(answers, None) or reply(502))
    async with ScriptedServer(then=step) as server, client_of(server) as client:
        with pytest.raises(WaitTimeout) as first:
            await client.task(TASK).wait(timeout=1)
        with pytest.raises(WaitTimeout) as second:
            await client.task(TASK).wait(timeout=300)
        with pytest.raises(WaitTimeout) as third:
            await client.task("f" * 32).wait(timeout=0)
    again = f"ait again with client.task('{TASK}').wait()."
    assert str(first.value).endswith(f"in time. It goes on: w{again}")
    assert (first.value.goes_on, first.value.problem, first.value.__cause__) == (True, None, None)
    assert "It went on when it was last shown, but its last look failed: " in str(second.value)
    assert "502" in str(second.value)
    assert str(second.value).endswith(f" W{again}")
    assert "goes on" not in str(third.value)
    copied = pickle.loads(pickle.dumps(second.value))  # noqa: S301 - our own
    assert str(copied) == str(second.value)


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


@pytest.mark.real_time  # under virtual time a folder asks the loop's clock
@pytest.mark.fault("P9")
@pytest.mark.parametrize("hours", [-2, 2])
async def test_a_pause_and_a_timeout_outlast_a_step_of_the_wall_clock(
    hours: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both are as long as without it, also for another client on the same folder."""
    real = time.time
    script = [refused(429, status=429, Retry_After="1"), accepted("one"), accepted("two")]
    async with (
        ScriptedServer(script, then=looked(flag=0)) as server,
        client_of(server, journal=tmp_path) as client,
        client_of(server, journal=tmp_path) as other,
    ):
        begun = now()
        waiting = asyncio.create_task(client.generate_and_wait("a fox", wait_timeout=3))
        await server.arrived(1)
        await asyncio.sleep(0.2)  # the pause is stored
        monkeypatch.setattr("time.time", lambda: real() + hours * 3600)
        await other.generate("an owl", timeout=10)
        assert 1 <= now() - begun < 2.5
        with pytest.raises(WaitTimeout):
            await waiting
        assert now() - begun == pytest.approx(3, abs=0.5)


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
@pytest.mark.parametrize("way", ["no intent", "callback URL of the user"])
async def test_a_task_that_is_another_intents_is_waited_for_by_those_who_have_only_its_id(
    way: str,
) -> None:
    """The token proves that it is not the task of one intent; the other wait goes on."""
    foreign = looked_with(f"http://127.0.0.1/{new_token()}")
    receiver = CallbackReceiver(None, port=0)
    ids = iter([TASK, "0bad" * 8])
    async with ScriptedServer(then=mid(lambda _: accepted(next(ids)), foreign)) as server:
        async with client_of(server, receiver=receiver) as client:
            wrong, plain = await client.generate("a red fox"), client.task(TASK)
            if way != "no intent":
                plain = await client.generate("a red owl", callback_url="https://me.example/")
                await client._opened().journal.advance(wrong.intent_id or "", foreign=TASK)
                plain = await client.intents.adopt(plain.intent_id or "", TASK, force=True)
            ended = await asyncio.gather(wrong.wait(), plain.wait(), return_exceptions=True)
            assert isinstance(ended[0], SubmissionUnknown)
            assert isinstance(ended[1], TaskDetails)
            assert ended[1].is_final


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


# ─── what an answer means ────────────────────────────────────────────────────────────────────────

GRACE_AND_MORE = 200  # seconds in which a doubtful answer ends a wait, from the first look on
POLICY = "Your prompt was flagged by Website as violating content policies"


def said(code: int, data: object = None, msg: object = POLICY, *, is_status: bool = False) -> Play:
    """Every submission is accepted, and every look answered with this code."""
    answer = {"code": code, "msg": msg, "data": data}
    return mid(accepted(), reply(code if is_status else 200, json=answer, accepted=False))


# A record in the answer, and what it means whatever the code is; None if the code decides.
RECORDS: dict[str, tuple[object, str | None]] = {
    "none": (None, None),
    "text": ("no record", None),
    "generating": (record(flag=0), None),
    "no flag": (record(flag=None), None),
    "succeeded": (record(flag=1), "succeeded"),
    "no files yet": (record(flag=1, resultInfoJson=None), None),
    "failed": (record(flag=2), "failed"),
    "not generated": (record(flag=3), "failed"),
}
# What a code means that is not decided by its record.
CODES = {400: "failed, for this wait", 422: "failed, for this wait", 500: "goes on", 501: "failed"}


@pytest.mark.fault("P16")
@pytest.mark.parametrize("is_status", [False, True], ids=["code", "status"])
@pytest.mark.parametrize("shown", RECORDS)
@pytest.mark.parametrize("code", CODES)
async def test_an_answer_with_an_errors_code(code: int, shown: str, is_status: bool) -> None:
    """A record that shows the end counts; else the code does. The journal has the final state."""
    data, end = RECORDS[shown]
    meaning = end or CODES[code]
    journal, begun = MemoryJournal(), now()
    async with ScriptedServer(then=said(code, data, is_status=is_status)) as server:
        async with client_of(server, journal=journal) as client:
            handle = await client.generate("a red fox")
            if meaning == "succeeded":
                assert len((await handle).urls) == 4
            elif meaning == "goes on":
                with pytest.raises(WaitTimeout):
                    await handle
            else:
                with pytest.raises(PromptRejected) as caught:
                    await handle
                assert POLICY in str(caught.value)
                assert caught.value.task_id == TASK
                assert now() - begun < 45 + GRACE_AND_MORE
        [row] = await journal.rows(f"{server.url} default")
        assert row.state is (State(meaning) if meaning in set(State) else State.ACCEPTED)
        if row.state is State.FAILED:
            assert row.details is not None
            assert row.details.error_message == POLICY
            assert row.details.status is TaskStatus.FAILED
        if meaning == "failed, for this wait":
            assert len(looks(server)) >= 5


@pytest.mark.fault("P16")
async def test_the_text_of_the_record_comes_before_that_of_the_answer() -> None:
    """If the record says why the task failed, the text around it says less."""
    failed = record(flag=3, errorCode=77, errorMessage="it was too red")
    async with ScriptedServer(then=said(501, failed)) as server, client_of(server) as client:
        with pytest.raises(TaskFailed, match="code 77: it was too red"):
            await client.generate_and_wait("a red fox")


@pytest.mark.fault("P16")
@pytest.mark.parametrize("code", [400, 422, 501])
async def test_an_errors_code_for_a_while_ends_no_wait(code: int) -> None:
    """It may be the answer to another look: four of them in 100 s, and then there is the result."""
    begun = now()

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return accepted()
        return refused(code, POLICY) if now() - begun < 140 else looked()

    async with ScriptedServer(then=step) as server, client_of(server) as client:
        assert (await client.generate_and_wait("a red fox")).is_final


@pytest.mark.fault("P1")
@pytest.mark.parametrize("code", [400, 404, 422])
@pytest.mark.parametrize("msg", ["recordInfo is null", "Task not found", "The task does not exist"])
async def test_texts_that_say_that_the_task_is_not_known(code: int, msg: str) -> None:
    """Such a task has not failed."""
    async with ScriptedServer(then=said(code, msg=msg)) as server, client_of(server) as client:
        handle = await client.generate("a red fox")
        with pytest.raises(TaskNotFound):
            await handle.details()
        with pytest.raises(TaskNotFound):
            await handle


@pytest.mark.fault("P16")
@pytest.mark.fault("P22")
@pytest.mark.parametrize("code", [400, 401, 402, 422, 429, 433, 455, 500, 501, 505, 999])
async def test_an_error_of_a_look_does_not_deny_the_purchase(code: int) -> None:
    """The task was bought, and its id is in the text."""
    async with ScriptedServer(then=said(code)) as server, client_of(server) as client:
        handle = await client.generate("a red fox")
        for ask in (handle.details, partial(client.details, TASK)):
            with pytest.raises(MidAPIError) as caught:
                await ask()
            text = str(caught.value)
            assert TASK in text
            assert POLICY in text
            assert "othing was bought" not in text
            assert "ubmit again" not in text
            if code in (400, 422, 501):
                assert "has failed" in text
                assert "not affected" not in text


@pytest.mark.fault("P16")
async def test_the_details_of_a_failed_task_are_shown_whatever_the_code() -> None:
    """Its record stands inside the error."""
    async with ScriptedServer(then=said(501, record(flag=0))) as server:
        async with client_of(server) as client:
            details = await client.details(TASK)
    assert details.status is TaskStatus.FAILED
    assert (details.error_code, details.error_message) == (501, POLICY)
    assert details.created_at is not None


@pytest.mark.fault("P15")
async def test_a_malformed_message_does_not_cost_the_result(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the envelope or in the record; an invalid URL is left out and counted."""
    urls = [None, {"resultUrl": "https://h/1.png"}, "https://h/2.png", {"url": 5}]
    odd = record(errorMessage={"a": 1}, completeTime=[], resultInfoJson={"resultUrls": urls})
    async with ScriptedServer(then=said(200, odd, {"odd": 1})) as server:
        async with client_of(server) as client:
            handle = await client.generate("a red fox")
            assert (await handle).urls == ("https://h/1.png", "https://h/2.png")
            assert (await handle).is_final
            assert client.stats().unreadable_urls == 2
    assert caplog.text.count("2 of its URLs cannot be read") == 1


UNREADABLE: dict[str, Answer] = {
    "flag": looked(flag=[1]),
    "task id": ok({"taskId": 5, "successFlag": 1}),
    "no URL among them": looked(resultInfoJson={"resultUrls": [None]}),
    "a list": ok([1]),
    "a number that is none": reply(body=json.dumps({"code": 200, "data": {"x": float("nan")}})),
    "cut inside": reply(body=json.dumps({"code": 200, "msg": "success", "data": record()})[:-9]),
    "no code": reply(json={"status": "fine"}),
}


@pytest.mark.fault("P17")
@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
async def test_the_same_unreadable_answer_ends_the_wait(answer: Answer) -> None:
    """After five looks over two minutes, with the task id; the task is still in the journal."""
    journal, begun = MemoryJournal(), now()
    async with ScriptedServer(then=mid(accepted(), answer)) as server:
        async with client_of(server, journal=journal) as client:
            handle = await client.generate("a red fox")
            with pytest.raises(ProtocolError) as caught:
                await handle
            assert caught.value.task_id == TASK
            assert now() - begun < 45 + GRACE_AND_MORE
            assert len(looks(server)) >= 5
            [row] = await journal.rows(f"{server.url} default")
            assert row.state is State.ACCEPTED


@pytest.mark.fault("P17")
async def test_each_wait_gets_an_error_of_its_own() -> None:
    """Three waits for one task that cannot be read."""
    async with ScriptedServer(then=mid(accepted(), looked(flag=[1]))) as server:
        async with client_of(server) as client:
            handle = await client.generate("a red fox")
            waits = (handle.wait() for _ in range(3))
            errors = await asyncio.gather(*waits, return_exceptions=True)
    assert len({id(error) for error in errors}) == 3
    assert all(isinstance(error, ProtocolError) for error in errors)


PASSING = {
    "another task": looked("f" * 32),
    "a page": reply(body="<html>Log in</html>"),
    "nothing": reply(),
    "a redirect": reply(302, headers={"Location": "https://login.example/"}),
    "a page with 501": reply(501, body="<html>"),
    "a page with 400": reply(400, body="<html>"),
    "a proxy's status 501": reply(501, json={"code": 200, "data": record(flag=0)}),
    "the same, without files": reply(
        501, json={"code": 200, "data": record(flag=1, resultInfoJson=None)}
    ),
}


@pytest.mark.fault("P17")
@pytest.mark.fault("P7")
@pytest.mark.fault("P6")
@pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING)
async def test_what_is_not_an_answer_to_the_look_ends_no_wait(answer: Answer) -> None:
    """Half an hour of it says nothing about the task."""
    begun = now()

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return accepted()
        return answer if now() - begun < 1800 else looked()

    async with ScriptedServer(then=step) as server, client_of(server) as client:
        assert (await client.generate_and_wait("a red fox")).is_final


@pytest.mark.fault("P16")
@pytest.mark.fault("P6")
async def test_answers_that_are_shifted_fail_no_task() -> None:
    """A proxy answers each look with the answer to another: code 501, which names no task.

    The journal would have a failure for a task that goes on, and it could be paid again.
    """
    good, failed = "600d" * 8, "0bad" * 8
    ids, journal, begun = iter([good, failed]), MemoryJournal(), now()

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return accepted(next(ids))
        is_shifted = now() - begun < 1800
        if (asked_for(request) == good) == is_shifted:
            return refused(501, POLICY)
        return looked(good, flag=0 if is_shifted else 1)

    async with ScriptedServer(then=step) as server:
        async with client_of(server, journal=journal) as client:
            handles = [await client.generate(f"fox {n}") for n in range(2)]
            ended = await asyncio.gather(*(each.wait() for each in handles), return_exceptions=True)
    assert isinstance(ended[0], TaskDetails)
    assert ended[0].is_final
    assert isinstance(ended[1], TaskFailed)
    rows = await journal.rows(f"{server.url} default")
    assert [row.state for row in rows] == [State.SUCCEEDED, State.FAILED]


@pytest.mark.fault("P17")
@pytest.mark.fault("P16")
async def test_answers_that_change_end_no_wait() -> None:
    """Each is repeated for less than two minutes, or a good record stands between them."""
    begun = now()
    bad, good = looked(flag=[1]), looked(flag=0)
    turns = [bad, refused(400), refused(501), refused(404), good, bad, good, bad, good]
    turns += [refused(501), good, refused(501)]

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return accepted()
        turn = int((now() - begun) // 100)
        return turns[turn] if turn < len(turns) else looked()

    async with ScriptedServer(then=step) as server, client_of(server) as client:
        assert (await client.generate_and_wait("a red fox")).is_final
        assert now() - begun >= 100 * len(turns)


@pytest.mark.fault("P16")
@pytest.mark.fault("P17")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refused(501, POLICY), PromptRejected),
        (refused(400, POLICY), PromptRejected),
        (refused(404), TaskNotFound),
        (looked(flag=[1]), ProtocolError),
        (looked(flag=1, resultInfoJson=None), ResultMissing),
        (looked(flag=0), WaitTimeout),
    ],
)
async def test_an_overdue_wait_says_what_became_of_the_task(
    answer: Answer, expected: type[MidAPIError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hours after the submission one look is not enough to say that the task goes on."""
    journal, real = MemoryJournal(), time.time
    async with ScriptedServer(then=mid(accepted(), answer)) as server:
        async with client_of(server, journal=journal) as client:
            await client.generate("a red fox")
        monkeypatch.setattr("time.time", lambda: real() + 7200)
        async with client_of(server, journal=journal) as client:
            [handle] = await client.resume()
            begun = now()
            with pytest.raises(expected):
                await handle
            assert now() - begun < (1 if expected is WaitTimeout else GRACE_AND_MORE)


@pytest.mark.fault("P16")
async def test_a_task_that_failed_delays_no_other_looks() -> None:
    """Twenty that are answered with 501 are no reason to pause: another task is found in time."""
    good = "600d" * 8
    sell = selling()

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return sell(request) if len(submits(server)) < 20 else accepted(good)
        if asked_for(request) != good:
            return refused(501, POLICY)
        return looked(good, flag=1 if now() - begun > 60 else 0)

    async with ScriptedServer(then=step) as server, client_of(server) as client:
        waits = []
        for n in range(20):
            handle = await client.generate(f"fox {n}")
            waits.append(asyncio.create_task(ended(handle.wait())))
            await asyncio.sleep(2)
        begun = now()
        await (await client.generate("a good fox"))
        assert now() - begun < 75
        await asyncio.wait(waits)


# ─── a task that MidAPI has deleted ──────────────────────────────────────────────────────────────

DAY = 86_400.0


class OldTask:
    """A service that knows no task, and a journal with one that was accepted just now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path | None = None) -> None:
        self.journal: Journal = MemoryJournal() if folder is None else SQLiteJournal(folder)
        self.ours = self.theirs = 0.0  # by how much our clock, and MidAPI's, were moved
        self.has_date = True
        real = time.time
        monkeypatch.setattr("time.time", lambda: real() + self.ours)
        self._real = real

    def step(self, request: Received) -> Answer:
        """Accept every submission, and know no task."""
        if request.method == "POST":
            return accepted()
        date = formatdate(self._real() + self.theirs, usegmt=True)
        unknown = {"code": 404, "msg": "Task not found", "data": None}
        return reply(json=unknown, headers={"Date": date} if self.has_date else {})

    async def buy(self, server: ScriptedServer, key: str | None = "fox") -> None:
        """Buy a task in a process that ends before its result."""
        async with client_of(server, journal=self.journal) as client:
            await client.generate("a red fox", key=key)

    async def state(self, server: ScriptedServer) -> State:
        """The state of its intent."""
        [row] = await self.journal.rows(f"{server.url} default")
        return row.state


@pytest.mark.fault("P19")
@pytest.mark.parametrize("key", ["fox", None])
@pytest.mark.parametrize("is_durable", [False, True], ids=["memory", "folder"])
async def test_a_task_older_than_the_retention_expires_once(
    key: str | None, is_durable: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first wait finds it out; `resume` leaves it out from then on, and the key stays spent."""
    world = OldTask(monkeypatch, tmp_path if is_durable else None)
    async with aclosing(world.journal), ScriptedServer(then=world.step) as server:
        await world.buy(server, key)
        world.ours = world.theirs = 15.1 * DAY
        async with client_of(server, journal=world.journal) as client:
            [handle] = await client.resume()
            begun = now()
            with pytest.raises(TaskExpired) as caught:
                await handle
            assert now() - begun < GRACE_AND_MORE
            assert caught.value.task_id == TASK
            assert await world.state(server) is State.EXPIRED
            assert await client.resume() == []
            if key is not None:
                with pytest.raises(TaskExpired):
                    await client.generate("a red fox", key=key)
            # A wait that another handle begins later ends in the same way.
            with pytest.raises(TaskExpired):
                await client.task(TASK)
        looked_at = len(looks(server))
        async with client_of(server, journal=world.journal) as client:
            assert await client.resume() == []
        assert len(looks(server)) == looked_at


@pytest.mark.fault("P19")
@pytest.mark.fault("P23")
@pytest.mark.parametrize(
    ("ours", "theirs", "has_date"),
    [
        (20, 0, True),  # our clock was set forward
        (20, 0, False),  # and MidAPI's is not known
        (0, 20, True),  # MidAPI's clock is wrong, or a cache in between answers
        (14.9, 14.9, True),  # young
        (-20, -20, True),
    ],
)
async def test_a_task_that_may_be_young_does_not_expire(
    ours: float, theirs: float, has_date: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must be old by every clock; else it is not found, and `resume` has it again."""
    world = OldTask(monkeypatch)
    async with ScriptedServer(then=world.step) as server:
        await world.buy(server)
        world.ours, world.theirs, world.has_date = ours * DAY, theirs * DAY, has_date
        async with client_of(server, journal=world.journal) as client:
            [handle] = await client.resume()
            for each in (handle, client.task(TASK)):
                with pytest.raises(TaskNotFound):
                    await each
            assert await world.state(server) is State.ACCEPTED
            assert len(await client.resume()) == 1


@pytest.mark.fault("P19")
async def test_a_clock_that_was_wrong_at_the_submission_lets_no_task_expire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was 20 days late and is set right while the process waits, which knows better."""
    world = OldTask(monkeypatch)
    world.ours = -20 * DAY
    async with ScriptedServer(then=world.step) as server:
        async with client_of(server, journal=world.journal) as client:
            handle = await client.generate("a red fox")
            world.ours = 0.0
            with pytest.raises(TaskNotFound):
                await handle
            assert await world.state(server) is State.ACCEPTED


@pytest.mark.fault("P19")
async def test_an_expired_task_leaves_the_untaken_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not yielded, one line says so, and it is not followed again."""
    world = OldTask(monkeypatch)
    async with ScriptedServer(then=world.step) as server:
        await world.buy(server)
        world.ours = world.theirs = 15.1 * DAY
        async with client_of(server, journal=world.journal) as client:
            with suppress(TimeoutError):
                async with asyncio.timeout(3000):
                    await anext(client.untaken())
            assert await world.state(server) is State.EXPIRED
            assert "MidAPI has deleted it" in caplog.text
            assert len(looks(server)) < 20


@pytest.mark.fault("P19")
async def test_a_second_task_of_an_old_intent_does_not_expire_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MidAPI has deleted that one, and need not have deleted the intent's own."""
    world = OldTask(monkeypatch)
    async with ScriptedServer(then=world.step) as server:
        await world.buy(server)
        [row] = await world.journal.rows(f"{server.url} default")
        await world.journal.advance(row.intent_id, State.ACCEPTED, task_id="second")
        world.ours = world.theirs = 15.1 * DAY
        async with client_of(server, journal=world.journal) as client:
            with pytest.raises(TaskNotFound):
                await client.task("second")
            assert await world.state(server) is State.ACCEPTED


@pytest.mark.fault("P19")
async def test_a_task_without_an_intent_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known about its age."""
    world = OldTask(monkeypatch)
    async with ScriptedServer(then=world.step) as server:
        async with client_of(server, journal=world.journal) as client:
            with pytest.raises(TaskNotFound):
                await client.task(TASK)


@pytest.mark.fault("P19")
async def test_an_old_task_that_is_still_there_does_not_expire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MidAPI may keep results longer than it says."""
    world = OldTask(monkeypatch)
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        await world.buy(server)
        world.ours = world.theirs = 40 * DAY
        async with client_of(server, journal=world.journal) as client:
            [handle] = await client.resume()
            assert (await handle).is_final
        assert await world.state(server) is State.SUCCEEDED
