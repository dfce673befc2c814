"""Callbacks that another process took: two clients on one folder stand for two processes."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from midapi_async import (
    CallbackReceiver,
    ClientClosed,
    JournalError,
    MidAPIClient,
    PollPolicy,
    State,
    SubmissionUnknown,
    TaskHandle,
)
from midapi_async._tracking.tracker import RETRIES
from midapi_async.callbacks import relay
from midapi_async.journal import Intent
from midapi_async.journal.sqlite import SQLiteJournal
from tests.callbacks.test_receiver import callback
from tests.support.scripted import Answer, Received, ScriptedServer, lose_answer
from tests.world import TASK, accepted, client_of, looked, looks, mid, submits


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a journal may be made: in memory, where the system has a file system there."""
    memory = "/dev/shm"  # noqa: S108 - a folder of our own in it
    with TemporaryDirectory(dir=memory if Path(memory).is_dir() else None) as made:
        yield Path(made) / "journal"


class Journal(SQLiteJournal):
    """A journal that counts, and fails while `is_down`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reads: list[int] = []
        self.writes: list[State | None] = []
        self.is_down = False

    async def rows(
        self,
        scope: str | None = None,
        *,
        task_ids: Collection[str] | None = None,
        **options: Any,
    ) -> list[Intent]:
        if self.is_down:
            raise JournalError("gone")
        if task_ids is not None:
            self.reads.append(len(task_ids))
        return await super().rows(scope, task_ids=task_ids, **options)

    async def advance(
        self,
        intent_id: str,
        to: State | None = None,
        **options: Any,
    ) -> Intent:
        if self.is_down:
            raise JournalError("gone")
        self.writes.append(to)
        return await super().advance(intent_id, to, **options)

    async def changes(self) -> AsyncGenerator[None, None]:
        if self.is_down:
            raise JournalError("gone")
        async with aclosing(super().changes()) as changes:
            async for _ in changes:
                yield

    @property
    def is_watched(self) -> bool:
        """Whether its changes are watched."""
        return bool(self._watchers)


class Worker:
    """A client with a mounted receiver and a journal object of its own."""

    def __init__(self, client: MidAPIClient, receiver: CallbackReceiver, journal: Journal) -> None:
        self.client = client
        self.receiver = receiver
        self.journal = journal


@asynccontextmanager
async def some_workers(
    server: ScriptedServer, folder: Path, number: int = 2, **options: object
) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as exits:
        workers = []
        for _ in range(number):
            receiver, journal = CallbackReceiver("http://127.0.0.1:1/hook"), Journal(folder)
            exits.push_async_callback(journal.aclose)
            client = client_of(server, receiver=receiver, journal=journal, **options)
            await exits.enter_async_context(client)
            workers.append(Worker(client, receiver, journal))
        yield workers


def token_of(request: Received) -> str:
    body = request.json()
    assert isinstance(body, dict)
    return str(body["callBackUrl"]).rpartition("/")[2]


async def ordered(server: ScriptedServer, worker: Worker) -> tuple[TaskHandle, str]:
    """The handle of a submission, and its token."""
    handle = await worker.client.generate("a red fox", key="k")
    return handle, token_of(submits(server)[-1])


async def seconds_of(waiting: "asyncio.Task[object]", since: float) -> float:
    await waiting
    return asyncio.get_running_loop().time() - since


@pytest.mark.fault("C31")
async def test_a_callback_taken_by_another_worker_wakes_a_wait(folder: Path) -> None:
    """It is in the shared file before it is answered; only the process that waits looks."""
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with some_workers(server, folder) as [here, there]:
            handle, token = await ordered(server, here)
            waiting = asyncio.create_task(handle.wait())
            await asyncio.sleep(1)
            since = asyncio.get_running_loop().time()
            assert await there.receiver.handle(token, {}, callback()) == 200
            row = await here.journal.find(task_id=TASK)
            assert row is not None
            assert State.CALLED_BACK is row.state
            assert await seconds_of(waiting, since) < 1
            assert len(looks(server)) == 1
            assert (there.client.stats().callbacks, here.client.stats().callbacks) == (1, 0)


@pytest.mark.fault("C31")
@pytest.mark.fault("I1")
async def test_every_process_that_waits_is_woken(folder: Path) -> None:
    """Three workers wait for one key, one takes the callback: one payment, a look for each."""
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with some_workers(server, folder, 4) as workers:
            _, token = await ordered(server, workers[0])
            waits = [
                asyncio.create_task(worker.client.generate_and_wait("a red fox", key="k"))
                for worker in workers[:3]
            ]
            await asyncio.sleep(1)
            since = asyncio.get_running_loop().time()
            assert await workers[3].receiver.handle(token, {}, callback()) == 200
            await asyncio.gather(*waits)
            assert asyncio.get_running_loop().time() - since < 1
            assert (len(submits(server)), len(looks(server))) == (1, 3)


async def test_a_callback_for_a_second_task_of_an_intent_does_not_hide_that_of_the_first(
    folder: Path,
) -> None:
    """It is a hint; the intent is called back when the callback for its own task comes."""
    other = "beef" * 8
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with some_workers(server, folder, 1) as [worker]:
            handle, token = await ordered(server, worker)
            await worker.journal.advance(handle.intent_id or "", task_id=other)
            for task_id, state in ((other, State.ACCEPTED), (TASK, State.CALLED_BACK)):
                assert await worker.receiver.handle(token, {}, callback(task_id)) == 200
                row = await worker.journal.find(task_id=TASK)
                assert row is not None
                assert row.state is state
            assert worker.client.stats().callbacks == 2


@pytest.mark.parametrize("pause", [0.0, 1.0])
async def test_a_wait_that_begins_after_the_callback(folder: Path, pause: float) -> None:
    """With a handle from before it, too: it looks at once, whether others wait already or not."""
    other = "beef" * 8
    ids = iter([TASK, other])

    def look(request: Received) -> Answer:
        task_id = request.target.partition("taskId=")[2]
        return looked(task_id, flag=1 if task_id == TASK else 0)

    async with ScriptedServer(then=mid(lambda _: accepted(next(ids)), look)) as server:
        async with some_workers(server, folder) as [here, there]:
            handle, token = await ordered(server, here)
            busy = asyncio.create_task((await here.client.generate("a blue whale")).wait())
            await asyncio.sleep(pause)
            assert await there.receiver.handle(token, {}, callback()) == 200
            await asyncio.sleep(pause)
            since = asyncio.get_running_loop().time()
            assert (await handle.wait()).task_id == TASK
            assert asyncio.get_running_loop().time() - since < 1
            busy.cancel()
            await asyncio.wait({busy})


async def test_a_wait_that_begins_the_moment_the_client_is_open(folder: Path) -> None:
    """It is woken like any other, though nothing else has run since."""
    time = asyncio.get_running_loop().time
    called_back_at = float("inf")

    def look(_: Received) -> Answer:
        return looked(flag=0 if time() < called_back_at else 1)

    async def call_back(worker: Worker, token: str) -> None:
        nonlocal called_back_at
        await asyncio.sleep(100)
        called_back_at = time()
        assert await worker.receiver.handle(token, {}, callback()) == 200

    async with ScriptedServer(then=mid(accepted(), look)) as server:
        async with some_workers(server, folder, 1) as [there]:
            _, token = await ordered(server, there)
            receiver = CallbackReceiver("http://127.0.0.1:1/hook")
            calling = asyncio.create_task(call_back(there, token))
            async with client_of(server, receiver=receiver, journal=folder) as here:
                await here.task(TASK).wait()
                assert time() - called_back_at < 1
            await calling


async def test_a_handle_of_what_was_called_back_looks_at_once(folder: Path) -> None:
    """After a restart, resume() gives it, and the plan of looks is not waited for."""
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with some_workers(server, folder, 1) as [first]:
            _, token = await ordered(server, first)
            assert await first.receiver.handle(token, {}, callback()) == 200
            assert not looks(server)
        async with client_of(server, journal=folder) as second:  # without a receiver
            [handle] = await second.resume()
            since = asyncio.get_running_loop().time()
            assert (await handle.wait()).is_final
            assert asyncio.get_running_loop().time() - since < 1
            assert len(looks(server)) == 1


async def test_one_process_makes_one_look(folder: Path) -> None:
    """Its own callback is not also a hint by the journal; duplicates are not written again."""
    async with ScriptedServer(then=mid(accepted(), looked(flag=0))) as server:
        async with some_workers(server, folder, 1) as [worker]:
            handle, token = await ordered(server, worker)
            waiting = asyncio.create_task(handle.wait())
            await asyncio.sleep(1)
            assert await worker.receiver.handle(token, {}, callback()) == 200
            await asyncio.sleep(20)
            assert len(looks(server)) == 1 + RETRIES  # which did not confirm it
            for _ in range(50):
                assert await worker.receiver.handle(token, {}, callback()) == 200
            assert worker.journal.writes.count(State.CALLED_BACK) == 1
            waiting.cancel()
            await asyncio.wait({waiting})


async def test_the_journal_is_watched_only_while_tasks_are_waited_for(folder: Path) -> None:
    """Idle workers poll nothing, nor do workers whose last wait has ended, in any way."""
    async with ScriptedServer(then=mid(accepted(), looked(flag=0))) as server:
        async with some_workers(server, folder, 1) as [worker]:
            handle, _ = await ordered(server, worker)
            assert not worker.journal.is_watched
            for _ in range(3):
                waiting = asyncio.create_task(handle.wait())
                await asyncio.sleep(1)
                assert worker.journal.is_watched
                waiting.cancel()
                await asyncio.wait({waiting})
                await asyncio.sleep(0.1)
                assert not worker.journal.is_watched


async def test_thousands_of_waiters_are_read_in_pages(folder: Path) -> None:
    """Some reads for all of them; one busy minute of others costs a few more, not one a change."""
    slow = PollPolicy(looks_per_second=0.001)
    ids = (f"{number:032x}" for number in itertools.count())
    script = mid(lambda _: accepted(next(ids)), looked(flag=0))
    async with ScriptedServer(then=script) as server:
        async with some_workers(server, folder, polling=slow) as [here, there]:
            handles = [here.client.task(f"task-{n}") for n in range(1_200)]
            waits = [asyncio.create_task(handle.wait()) for handle in handles]
            await asyncio.sleep(1)
            assert len(here.journal.reads) <= 12
            assert max(here.journal.reads) == relay.PAGE
            here.journal.reads.clear()
            for n in range(60):
                await there.client.generate("a red fox", key=f"{n}")
            await asyncio.sleep(1)
            assert 1_200 <= sum(here.journal.reads) <= 1_200 * 10
            for each in waits:
                each.cancel()
            await asyncio.wait(waits)


@pytest.mark.fault("C21")
async def test_a_journal_that_cannot_be_written(folder: Path) -> None:
    """503, so that it is sent again; waits in this process are woken all the same."""
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with some_workers(server, folder, 1) as [worker]:
            handle, token = await ordered(server, worker)
            waiting = asyncio.create_task(handle.wait())
            await asyncio.sleep(1)
            worker.journal.is_down = True
            assert await worker.receiver.handle(token, {}, callback()) == 503
            assert (await waiting).is_final
            worker.journal.is_down = False
            assert await worker.receiver.handle(token, {}, callback()) == 200


@pytest.mark.fault("C21")
async def test_a_journal_that_cannot_be_read_for_a_while(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The hint comes when it can be read again."""
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with some_workers(server, folder) as [here, there]:
            handle, token = await ordered(server, here)
            waiting = asyncio.create_task(handle.wait())
            await asyncio.sleep(1)
            here.journal.is_down = True
            assert await there.receiver.handle(token, {}, callback()) == 200
            await asyncio.sleep(3)
            assert not waiting.done()
            assert not looks(server)
            here.journal.is_down = False
            since = asyncio.get_running_loop().time()
            assert await seconds_of(waiting, since) < 3
    assert "Cannot read the journal; trying again" in caplog.text


@pytest.mark.fault("C21")
async def test_a_journal_that_cannot_be_watched_for_a_while(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wait that begins meanwhile is woken when it can be watched again."""
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with some_workers(server, folder) as [here, there]:
            handle, token = await ordered(server, here)
            here.journal.is_down = True
            waiting = asyncio.create_task(handle.wait())
            await asyncio.sleep(3)
            assert await there.receiver.handle(token, {}, callback()) == 200
            assert not looks(server)
            here.journal.is_down = False
            since = asyncio.get_running_loop().time()
            assert await seconds_of(waiting, since) < 3
    assert "the journal cannot be watched; trying again" in caplog.text


async def test_a_callback_of_an_unknown_submission_settles_it_everywhere(folder: Path) -> None:
    """The answer was lost; another worker takes the callback, and the wait here goes on."""
    async with ScriptedServer(then=mid(lose_answer(), looked())) as server:
        async with some_workers(server, folder) as [here, there]:
            waiting = asyncio.create_task(here.client.generate_and_wait("a red fox"))
            await server.arrived(1)
            await asyncio.sleep(1)
            since = asyncio.get_running_loop().time()
            token = token_of(submits(server)[0])
            assert await there.receiver.handle(token, {}, callback()) == 200
            assert await seconds_of(waiting, since) < 1
            assert len(submits(server)) == 1


# ─── stop_waiting ────────────────────────────────────────────────────────────────────────────────


async def test_stop_waiting_ends_waits_and_nothing_else(folder: Path) -> None:
    """Each gets its task's id, later ones too; looks and callbacks work on, nothing is sent."""
    async with ScriptedServer(then=mid(accepted(), looked(flag=0))) as server:
        async with some_workers(server, folder, 1) as [worker]:
            client = worker.client
            handle, token = await ordered(server, worker)
            waits = [asyncio.create_task(handle.wait()) for _ in range(3)]
            await asyncio.sleep(1)
            client.stop_waiting()
            for waiting in waits:
                with pytest.raises(ClientClosed) as caught:
                    await waiting
                assert caught.value.task_id == TASK
            with pytest.raises(ClientClosed) as caught:
                await handle.wait()
            assert caught.value.task_id == TASK
            for key in ("k", None):
                with pytest.raises(ClientClosed):
                    await client.generate_and_wait("a red fox", key=key)
            assert len(submits(server)) == 1
            assert not (await client.details(TASK)).is_final
            assert await worker.receiver.handle(token, {}, callback()) == 200
            assert client.stats().waiting == 0
            client.stop_waiting()


async def test_stop_waiting_raises_for_unknown_submissions() -> None:
    """The error says that it may have been paid for, not that nothing was sent."""
    receiver = CallbackReceiver(None, port=0)
    async with (
        ScriptedServer(then=mid(lose_answer())) as server,
        client_of(server, receiver=receiver) as client,
    ):
        waiting = asyncio.create_task(client.generate_and_wait("a red fox"))
        await server.arrived(1)
        await asyncio.sleep(1)
        client.stop_waiting()
        since = asyncio.get_running_loop().time()
        with pytest.raises(SubmissionUnknown) as caught:
            await waiting
        with pytest.raises(SubmissionUnknown):
            await client.intents.settle(caught.value.intent_id)
        assert asyncio.get_running_loop().time() - since < 1
        assert len(submits(server)) == 1


async def test_stop_waiting_is_over_when_the_client_opens_again() -> None:
    """It is of no effect on a client that is not open."""
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        client = client_of(server)
        client.stop_waiting()
        async with client:
            client.stop_waiting()
        client.stop_waiting()
        async with client:
            assert (await client.generate_and_wait("a red fox")).is_final
