"""`client.untaken()`: each task that is not taken, as it becomes final."""

import asyncio
import gc
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from midapi_async import (
    CallbackReceiver,
    ClientClosed,
    JournalError,
    MemoryJournal,
    MidAPIClient,
    State,
    TaskFailed,
    TaskHandle,
    untaken,
)
from midapi_async.journal import Intent
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import SandboxThread
from midapi_async.testing import VirtualLoop
from tests.support.scripted import Answer, Received, ScriptedServer
from tests.world import accepted, client_of, looked, ok


class World:
    """A service whose tasks end when they are told to; each submission gets a task id in order."""

    def __init__(self) -> None:
        self.server = ScriptedServer(then=self._answer)
        self.flags: dict[str, int] = {}
        self.looks = 0

    def _answer(self, request: Received) -> Answer:
        if request.method == "POST":
            task_id = f"{len(self.flags):032x}"
            self.flags[task_id] = 0
            return accepted(task_id)
        self.looks += 1
        task_id = request.target[-32:]
        flag = self.flags.get(task_id)
        return ok(None) if flag is None else looked(task_id, flag)

    def end(self, *task_ids: str, flag: int = 1) -> None:
        for task_id in task_ids:
            self.flags[task_id] = flag


@asynccontextmanager
async def world_of() -> AsyncIterator[World]:
    world = World()
    async with world.server:
        yield world


async def some(tasks: MidAPIClient | untaken.Untaken, count: int) -> list[TaskHandle]:
    """The first handles of an iteration, which is left then; of a new one for a client."""
    found = []
    async for handle in tasks.untaken() if isinstance(tasks, MidAPIClient) else tasks:
        found.append(handle)
        if len(found) == count:
            break
    return found


def ids(handles: list[TaskHandle]) -> list[str]:
    return [handle.task_id for handle in handles]


def assert_nothing_is_followed(client: MidAPIClient) -> None:
    session = client._session
    assert session is not None
    assert session.tracker.waiting == 0
    assert not session.iterations


def known(tasks: untaken.Untaken) -> set[str]:
    """The tasks that an iteration remembers; there is no other way to see that it forgets them."""
    assert tasks._finder is not None
    frame = tasks._finder.get_coro().cr_frame  # type: ignore[union-attr]
    found: set[str] = frame.f_locals["known"]
    return found


async def test_finished_tasks_come_first_then_each_as_it_ends() -> None:
    """Also failed ones; `final` is set, and awaiting the handle needs no look."""
    async with world_of() as world, client_of(world.server) as client:
        a, b, c, d = ids([await client.generate(name) for name in "abcd"])
        world.end(c)
        await client.details(c)
        ending = asyncio.get_running_loop()
        ending.call_later(100, world.end, d)
        ending.call_later(400, lambda: world.end(a, flag=2))
        ending.call_later(900, world.end, b)
        handles = await some(client, 4)
        assert ids(handles) == [c, d, a, b]
        assert all(handle.final is not None for handle in handles)
        before = world.looks
        for handle in handles:
            if handle.task_id == a:
                with pytest.raises(TaskFailed):
                    await handle
            else:
                assert await handle == handle.final
        assert world.looks == before
        await client._opened().recorder.writes.join()
        assert await client.resume() == []


async def test_leaving_the_loop_leaves_nothing_behind() -> None:
    """After `break` no task is followed; the next loop has what was not taken, and the rest."""
    async with world_of() as world, client_of(world.server) as client:
        a, b, c = ids([await client.generate(name) for name in "abc"])
        world.end(a, b)
        assert set(ids(await some(client, 1))) <= {a, b}
        await asyncio.sleep(0.1)
        assert_nothing_is_followed(client)
        looks = world.looks
        await asyncio.sleep(1000)
        assert world.looks == looks
        world.end(c)
        assert sorted(ids(await some(client, 3))) == [a, b, c]


@pytest.mark.parametrize(
    "way", ["aclose", "exception", "cancel", "unused", "kept", "forgotten", "thread"]
)
async def test_however_the_loop_is_left_nothing_is_followed(way: str) -> None:
    """Closed, by an exception, cancelled while it waits, never begun, freed in another thread."""
    async with world_of() as world, client_of(world.server) as client:
        first = (await client.generate("a")).task_id
        await client.generate("b")
        world.end(first)
        if way == "aclose":
            async with aclosing(client.untaken()) as tasks:
                assert (await anext(tasks)).task_id == first
            with pytest.raises(StopAsyncIteration):
                await anext(tasks)
        elif way == "exception":
            with suppress(ValueError):
                async for _ in client.untaken():
                    raise ValueError
        elif way == "cancel":
            waiting = asyncio.create_task(some(client, 2))
            await asyncio.sleep(500)
            waiting.cancel()
            await asyncio.wait({waiting})
            del waiting
        elif way == "unused":
            client.untaken()
        elif way == "kept":
            tasks = client.untaken()
        elif way == "thread":
            kept = [client.untaken()]
            await anext(kept[0])
            await asyncio.to_thread(kept.clear)
        else:
            tasks = client.untaken()
            await anext(tasks)
            del tasks
        gc.collect()
        await asyncio.sleep(0.1)
        assert_nothing_is_followed(client)


async def test_a_cancelled_wait_for_the_next_task_loses_nothing() -> None:
    """The iterator goes on, as a queue does."""
    async with world_of() as world, client_of(world.server) as client:
        a, b = ids([await client.generate(name) for name in "ab"])
        async with aclosing(client.untaken()) as tasks:
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(7):
                        await anext(tasks)
            world.end(a, b)
            assert sorted([(await anext(tasks)).task_id, (await anext(tasks)).task_id]) == [a, b]


async def test_two_workers_share_an_iterator() -> None:
    """Each task is given to one of them."""
    async with world_of() as world, client_of(world.server) as client:
        made = ids([await client.generate(str(number)) for number in range(6)])
        world.end(*made)
        async with aclosing(client.untaken()) as tasks:
            got = await asyncio.gather(*(anext(tasks) for _ in made))
        assert sorted(ids(list(got))) == made


async def test_tasks_that_are_submitted_meanwhile_come_too() -> None:
    """As soon as they end; a result that a caller has taken does not."""
    async with world_of() as world, client_of(world.server) as client:
        tasks = client.untaken()
        coming = asyncio.create_task(anext(tasks))
        await asyncio.sleep(1)
        taken = asyncio.create_task(client.generate_and_wait("mine"))
        left = (await client.generate("left")).task_id
        await asyncio.sleep(untaken.SCAN_INTERVAL + 1)
        assert client.stats().waiting == 3
        world.end(*world.flags)
        assert (await coming).task_id == left
        assert (await taken).task_id != left
        later = await client.generate("later")
        world.end(later.task_id)
        assert (await anext(tasks)).task_id == later.task_id
        await tasks.aclose()
        assert_nothing_is_followed(client)


@pytest.mark.parametrize("folder", [False, True])
async def test_a_result_that_was_taken_elsewhere_is_not_yielded(
    folder: bool, tmp_path: Path
) -> None:
    """A caller that waits for its own picture, and an acknowledgement by another handle."""
    journal = SQLiteJournal(tmp_path / "journal") if folder else MemoryJournal()
    async with world_of() as world:
        async with client_of(world.server, journal=journal) as client:
            coming = asyncio.create_task(some(client, 1))
            taken = asyncio.create_task(client.generate_and_wait("mine"))
            await asyncio.sleep(1)
            world.end(*world.flags)
            await taken
            await asyncio.sleep(200)
            assert not coming.done()
            coming.cancel()
            await asyncio.wait({coming})
        async with client_of(world.server, journal=journal, ack="manual") as client:
            first, second = [await client.generate(name) for name in "ab"]
            world.end(first.task_id, second.task_id)
            for handle in (first, second):
                await client.details(handle.task_id)
            tasks = client.untaken()
            assert (await anext(tasks)).task_id == first.task_id
            await second.ack()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(200):
                    await anext(tasks)
            await tasks.aclose()
    await journal.aclose()


async def test_acknowledging_is_left_to_the_user() -> None:
    """With manual acks a task comes again in the next loop, until it is acknowledged."""
    async with world_of() as world, client_of(world.server, ack="manual") as client:
        world.end((await client.generate("a")).task_id, (await client.generate("b")).task_id)
        first = await some(client, 2)
        for handle in first:
            await handle
        await first[0].ack()
        [again] = await some(client, 1)
        assert again.task_id == first[1].task_id
        tasks = client.untaken()
        assert (await anext(tasks)).task_id == again.task_id
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(500):  # many scans: it is not yielded twice by one loop
                await anext(tasks)
        assert list(known(tasks)) == [again.task_id]
        await again.ack()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await anext(tasks)
        assert not known(tasks)
        await tasks.aclose()


async def test_what_other_clients_leave_behind_comes_and_what_they_hold_does_not(
    tmp_path: Path,
) -> None:
    """Two journals on one folder are two owners; the tasks of a closed one are taken over."""
    folder = tmp_path / "journal"
    async with world_of() as world, client_of(world.server, journal=folder) as client:
        tasks = client.untaken()
        async with client_of(world.server, journal=folder) as other:
            theirs = (await other.generate("theirs")).task_id
            world.end(theirs)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(300):
                    await anext(tasks)
        coming = asyncio.create_task(anext(tasks))
        await asyncio.sleep(untaken.TAKE_OVER_INTERVAL + 2)
        assert client.stats().waiting == 1
        assert (await coming).task_id == theirs
        await tasks.aclose()


async def test_a_restarted_worker_gets_the_rest(tmp_path: Path) -> None:
    """Final details are in the journal by then, so what was seen needs no second look."""
    async with world_of() as world:
        async with client_of(world.server, journal=tmp_path / "journal", ack="manual") as client:
            made = ids([await client.generate(str(number)) for number in range(5)])
            world.end(*made[:3])
            for handle in (await some(client, 3))[:2]:
                await handle.ack()
        looks = world.looks
        async with client_of(world.server, journal=tmp_path / "journal", ack="manual") as client:
            [first] = await some(client, 1)
            assert first.task_id in made[:3]
            assert world.looks == looks
            world.end(*made)
            assert len(set(ids(await some(client, 3)))) == 3


@pytest.mark.parametrize("way", ["close", "stop_waiting"])
async def test_the_loop_ends_when_the_client_stops(way: str) -> None:
    """Whether it waits, or has tasks to give; and a new one has none."""
    async with world_of() as world:
        client = client_of(world.server)
        async with client:
            for number in range(3):
                world.end((await client.generate(str(number))).task_id)
            await client.generate("goes on")
            tasks = client.untaken()
            await anext(tasks)
            waiting = asyncio.create_task(some(client, 10))
            await asyncio.sleep(100)
            if way == "stop_waiting":
                client.stop_waiting()
                assert len(await waiting) == 3
                assert [handle async for handle in tasks] == []
                assert [handle async for handle in client.untaken()] == []
                assert_nothing_is_followed(client)
        assert len(await waiting) == 3
        assert [handle async for handle in tasks] == []
        with pytest.raises(ClientClosed):
            client.untaken()


async def test_closing_during_a_scan_does_not_open_the_journal_again(tmp_path: Path) -> None:
    """In whichever step of the iteration the client is closed."""
    async with world_of() as world:
        for turns in range(40):
            async with client_of(world.server, journal=tmp_path / "journal") as client:
                if not turns:
                    await client.generate("a")
                waiting = asyncio.create_task(some(client.untaken(), 1))
                for _ in range(turns):
                    await asyncio.sleep(0)
            assert await waiting == []
            assert "closed" in repr(client._journal)


async def test_closing_when_a_task_is_followed_is_no_problem_of_the_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In whichever step of the iteration the client is closed, or stops waiting."""
    async with world_of() as world:
        for turns in range(40):
            async with client_of(world.server) as client:
                await client.generate("a")
                waiting = asyncio.create_task(some(client.untaken(), 1))
                for _ in range(turns // 2):
                    await asyncio.sleep(0)
                if turns % 2:
                    client.stop_waiting()
            assert await waiting == []
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_an_iterator_may_outlive_its_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is freed without a warning then."""
    unraisable: list[object] = []  # what goes wrong while an object is freed; also a warning
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    async def begin() -> untaken.Untaken:
        async with world_of() as world, client_of(world.server) as client:
            world.end((await client.generate("a")).task_id)
            tasks = client.untaken()
            await anext(tasks)
            return tasks

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        tasks = runner.run(begin())
    del tasks
    gc.collect()
    assert not unraisable


async def test_what_no_journal_may_raise_ends_the_iteration() -> None:
    """With that exception: a loop that just ended would look like a closed client."""

    class Buggy(MemoryJournal):
        async def rows(self, scope: str | None = None, **which: object) -> list[Intent]:
            raise ZeroDivisionError

    async with world_of() as world, client_of(world.server, journal=Buggy()) as client:
        tasks = client.untaken()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await anext(tasks)


async def test_a_task_that_is_not_shown_is_followed_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line says so; it is not looked at all the time, and comes when it is there."""
    caplog.set_level(logging.WARNING)
    async with world_of() as world, client_of(world.server) as client:
        task_id = (await client.generate("a")).task_id
        del world.flags[task_id]
        coming = asyncio.create_task(some(client, 1))
        await asyncio.sleep(untaken.FOLLOW_AGAIN)
        assert [each.message for each in caplog.records if task_id in each.message]
        assert "15 minutes" in caplog.text
        assert len(caplog.records) == 1
        assert world.looks < 20
        world.end(task_id)
        assert ids(await coming) == [task_id]


async def test_a_task_of_another_submission_is_not_yielded() -> None:
    """Its record has another token: its intent is unknown then."""
    foreign = {"callBackUrl": f"https://a.example/mjt_{'x' * 43}"}
    async with ScriptedServer([accepted()], then=looked(paramJson=foreign)) as server:
        journal, receiver = MemoryJournal(), CallbackReceiver(None, port=0)
        async with client_of(server, receiver=receiver, journal=journal) as client:
            await client.generate("a")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1000):
                    await some(client, 1)
            [row] = await client.intents.unknown()
            assert row.state is State.UNKNOWN


class BrokenJournal(MemoryJournal):
    """A journal whose rows cannot be read for a while."""

    is_broken = True

    async def rows(self, scope: str | None = None, **which: object) -> list[Intent]:
        if self.is_broken:
            raise JournalError("it is locked")
        return await super().rows(scope, **which)  # type: ignore[arg-type]


async def test_a_journal_that_fails_for_a_while_does_not_end_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning; it goes on when the journal works again."""
    journal = BrokenJournal()
    async with world_of() as world, client_of(world.server, journal=journal) as client:
        task_id = (await client.generate("a")).task_id
        world.end(task_id)
        coming = asyncio.create_task(some(client, 1))
        await asyncio.sleep(60)
        assert [
            each.message for each in caplog.records if each.name == "midapi_async.tracking"
        ] == ["untaken tasks cannot be read, trying again: it is locked"]
        journal.is_broken = False
        assert ids(await coming) == [task_id]


async def test_the_number_of_followed_tasks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are followed when these have ended; finished ones come all the same."""
    monkeypatch.setattr(untaken, "MOST_FOLLOWED", 3)
    async with world_of() as world, client_of(world.server) as client:
        made = ids([await client.generate(str(number)) for number in range(10)])
        world.end(made[-1])
        await client.details(made[-1])
        tasks = client.untaken()
        assert (await anext(tasks)).task_id == made[-1]
        coming = asyncio.create_task(anext(tasks))
        await asyncio.sleep(100)
        assert client.stats().waiting == 3
        world.end(*made)
        rest = [await coming, *[await anext(tasks) for _ in range(8)]]
        assert sorted(ids(rest)) == made[:-1]
        await tasks.aclose()


@pytest.mark.fault("L18")
async def test_many_rows_are_read_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only as many as are asked for, and each is given once."""
    monkeypatch.setattr(untaken, "PAGE", 10)
    journal = SQLiteJournal(tmp_path / "journal")
    async with world_of() as world:
        async with client_of(world.server, journal=journal) as client:
            made = ids([await client.generate(str(number)) for number in range(55)])
            world.end(*made)
            await asyncio.gather(*(client.details(task_id) for task_id in made[:50]))
        async with client_of(world.server, journal=journal, ack="manual") as client:
            tasks, found = client.untaken(), []
            async for handle in tasks:
                found.append(handle.task_id)
                assert tasks._ready.qsize() <= 10
                assert client.stats().waiting <= 5
                if len(found) == 55:
                    break
            assert sorted(found) == made
            assert world.looks == 55
            await tasks.aclose()
    await journal.aclose()


SUBMIT = """
import asyncio, os, sys
from midapi_async import MidAPIClient

async def main():
    async with MidAPIClient("key", base_url=sys.argv[1], journal=sys.argv[2]) as client:
        for number in range(2):
            handle = await client.generate(f"left {number}", key=f"{os.getpid()} {number}")
            print(handle.task_id, flush=True)
        if sys.argv[3] == "dies":
            os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.real_time
@pytest.mark.fault("L18")
@pytest.mark.parametrize("end", ["dies", "ends"])
async def test_tasks_of_processes_that_ended_come(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of its own process, with a real sandbox, while other processes submit and end."""
    with SandboxThread(api_key="key", time_scale=200) as sandbox:
        folder = tmp_path / "journal"
        client = MidAPIClient("key", base_url=sandbox.url, journal=folder, time_scale=200)
        async with client, asyncio.timeout(60):
            coming = asyncio.create_task(some(client, 4))
            left: set[str] = set()
            for _ in range(2):
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", SUBMIT, sandbox.url, str(folder), end),
                    stdout=subprocess.PIPE,
                )
                left.update((await process.communicate())[0].decode().split())
            assert {handle.task_id for handle in await coming} == left
            assert len(left) == 4


async def test_what_the_journal_missed_is_recorded_with_the_acknowledgement() -> None:
    """Else a result that was taken would count as running for ever."""

    class Away(MemoryJournal):
        is_away = False

        async def advance(self, *given: Any, **new: Any) -> Intent:
            if self.is_away:
                raise JournalError("it is locked")
            return await super().advance(*given, **new)

    journal = Away()
    async with (
        world_of() as world,
        client_of(world.server, journal=journal, ack="manual") as client,
    ):
        task_id = (await client.generate("a")).task_id
        journal.is_away = True
        world.end(task_id)
        (handle,) = await some(client, 1)
        journal.is_away = False
        await handle.ack()
        (row,) = await client.intents.rows()
    assert (row.state, row.taken) == (State.SUCCEEDED, True)
    assert row.details == handle.final
