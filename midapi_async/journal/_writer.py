"""The one thread that touches the disk, and the callers who wait for it."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import JournalError
from ._store import Job, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._rows import Rows

T = TypeVar("T")

_AT_ONCE = 256  # callers that share one transaction, at most


class Writer:
    """The one thread that touches the disk.

    Whoever waits for it shares its turns, see `_Lane`; what has transactions of its own has a turn
    of its own.

    Args:
        store: what the thread works on.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "midapi-journal")
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}
        self._process = os.getpid()
        self.is_open = True

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that it was made in, and no fork of it."""
        return os.getpid() == self._process

    async def write(self, work: Callable[[Rows], T]) -> T:
        """Do what writes; return when it is synced.

        A caller who is cancelled before its turn has written nothing.
        """
        lane = self._lane()
        return await lane.wait_for(Job(work), lane.writes)

    async def look(self, work: Callable[[Rows], T]) -> T:
        """Do what only reads."""
        lane = self._lane()
        return await lane.wait_for(Job(work), lane.looks)

    async def run(self, work: Callable[[Store], T]) -> T:
        """Do what has transactions of its own."""
        return await _in_thread(asyncio.get_running_loop(), self._thread, work, self._store)

    def _lane(self) -> _Lane:
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            for each in list(self._lanes):
                if each.is_closed():
                    self._lanes.pop(each, None)
            lane = self._lanes[loop] = _Lane(loop, self._thread, self._store)
        return lane

    async def aclose(self) -> None:
        """Let everything that was asked for end, then let go."""
        self.is_open = False
        try:
            await self.run(self._close)
        except BaseException:
            self._thread.submit(self._close, self._store)  # cancelled before its turn
            raise
        finally:
            self._thread.shutdown(wait=False)

    def _close(self, store: Store) -> None:
        for lane in list(self._lanes.values()):
            lane.serve()  # in a crowd, the thread may not have been called yet
        store.close()

    def abandon(self) -> None:
        """Let go without waiting, when nobody has closed it."""
        if not self.is_open or not self.is_ours:
            return
        self.is_open = False
        try:
            self._thread.submit(self._store.close)
        except RuntimeError:  # the interpreter has ended the thread
            self._store.close()
        self._thread.shutdown(wait=False)


class _Lane:
    """Those of one event loop who wait for the thread.

    A turn of the thread serves all who wait by the time it begins. Whoever comes after that calls
    it again, so it goes from one turn right to the next. One alone calls it at once and waits for
    its turn to end; in a crowd it is called once everybody who is ready has come.

    Args:
        loop: where they wait.
        thread: the thread, which serves other lanes too.
        store: what it works on.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, thread: ThreadPoolExecutor, store: Store
    ) -> None:
        self.looks: deque[Job[Any]] = deque()
        self.writes: deque[Job[Any]] = deque()
        self._loop = loop
        self._thread = thread
        self._store = store
        self._is_called = False
        self._is_crowded = False
        self._turns = 0  # that are called and have not ended
        self._served: deque[Job[Any]] = deque()  # and not woken yet

    async def wait_for(self, job: Job[T], queue: deque[Job[Any]]) -> T:
        """What comes of a job that takes its place in one of our queues."""
        queue.append(job)
        turn: asyncio.Future[None] | None = None
        try:
            if self._turns or self._is_called or self._is_crowded:
                await self._among_others(job)
            else:
                turn = self._call()
                await turn
        except BaseException:
            with suppress(ValueError):
                queue.remove(job)
            if turn is not None and not self._loop.is_closed():
                self._call_for_all()  # it is cancelled with us, or nobody else hears of its end
            raise
        return job.result()

    async def _among_others(self, job: Job[T]) -> None:
        job.served = self._loop.create_future()
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon(self._call_for_all)
        await job.served

    def _call_for_all(self) -> None:
        try:
            self._call()
        except JournalError as error:
            for queue in (self.looks, self.writes):
                for job in _taken(queue, len(queue)):
                    job.fail(error)
                    self._served.append(job)
            self._wake()

    def _call(self) -> asyncio.Future[None]:
        self._is_called = True  # before the thread can take it back
        try:
            turn = _in_thread(self._loop, self._thread, _Lane.serve, self)
        except BaseException:
            self._is_called = False
            raise
        self._turns += 1
        turn.add_done_callback(self._ended)
        return turn

    def _ended(self, _: asyncio.Future[None]) -> None:
        self._turns -= 1
        self._wake()

    def serve(self) -> None:
        """A turn, in the thread."""
        self._is_called = False  # before anything is taken: who comes now calls again
        looks = _taken(self.looks, len(self.looks))
        count = len(self.writes)
        self._is_crowded = len(looks) + count > 1
        if looks:
            self._tell(self._store.look, looks)
        for _ in range(0, count, _AT_ONCE):
            self._tell(self._store.write, _taken(self.writes, _AT_ONCE))
        if self._store.is_untidy:
            with suppress(RuntimeError):  # closed in the meantime
                self._thread.submit(self._store.tidy)

    def _tell(self, serve: Callable[[list[Job[Any]]], None], jobs: list[Job[Any]]) -> None:
        """Serve some jobs; each knows then what came of it, whatever that is."""
        try:
            serve(jobs)
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            for job in jobs:
                if not job.is_done:
                    job.fail(error)
        self._served.extend(jobs)

    def _wake(self) -> None:
        """Let those go on who were served; some of them were cancelled meanwhile."""
        for job in _taken(self._served, len(self._served)):
            if job.served is not None and not job.served.done():
                job.served.set_result(None)


def _in_thread(
    loop: asyncio.AbstractEventLoop,
    thread: ThreadPoolExecutor,
    work: Callable[[Any], T],
    argument: object,
) -> asyncio.Future[T]:
    """A job that the loop can see; a virtual clock stands until it has ended."""
    try:
        return loop.run_in_executor(thread, work, argument)
    except RuntimeError as error:
        raise JournalError("the journal cannot be used any more: the program is ending") from error


def _taken(queue: deque[Job[Any]], count: int) -> list[Job[Any]]:
    """The first ones of a queue, from which the loop removes whoever is cancelled."""
    taken: list[Job[Any]] = []
    with suppress(IndexError):
        while len(taken) < count:
            taken += (queue.popleft(),)
    return taken
