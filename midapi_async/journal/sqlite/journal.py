"""The journal in a folder: hands all work to one thread, the only one that uses the disk."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ...errors import InvalidRequestError, JournalError
from ..base import Reads, TableJournal
from ..table import Table
from .locks import check_platform
from .store import Job, Store

T = TypeVar("T")

# A `Path` has only one slash of a URL's two left. A folder of such a name: "./name".
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
_POLL_INTERVAL = 0.25  # seconds between two checks for what other processes have written


class SQLiteJournal(TableJournal):
    """Stores intents in a folder on a local disk, for all processes of the machine.

    It opens with its first use and can be used again after ``aclose``. Several clients of a process
    may share one object. The folder is private to the user, and must not be on a network file
    system.

    Args:
        folder: its path; it is made if it is missing.
        store_prompts: False stores no requests, only hashes of them that are meaningless without
            the folder's own key; then ``request`` of the rows is None.

    Raises:
        InvalidRequestError: the folder is a URL.
        JournalError: this is Windows.
    """

    is_durable = True

    def __init__(self, folder: str | os.PathLike[str], *, store_prompts: bool = True) -> None:
        if url := _URL.match(os.fsdecode(folder)):
            raise InvalidRequestError(
                {
                    "journal": f"there is no journal for {url[1]}: URLs; give the path of a folder "
                    "on a local disk, a postgresql:// URL or a Journal object, or leave it out for "
                    "memory"
                }
            )
        check_platform()
        # Absolute, so that the program may change its working directory.
        self.path = Path(os.path.abspath(folder))  # noqa: PTH100 - keeps links, unlike resolve()
        self._store_prompts = store_prompts
        self._writer: _Writer | None = None
        self._finalizer: weakref.finalize[[], SQLiteJournal] | None = None
        self._watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def __repr__(self) -> str:
        return f"<SQLiteJournal {str(self.path)!r} {'open' if self._writer else 'closed'}>"

    def __del__(self) -> None:
        writer: _Writer | None = getattr(self, "_writer", None)
        if writer is not None and writer.is_ours and writer.is_open:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    async def changes(self) -> AsyncGenerator[None, None]:
        """See `Journal.changes`."""
        changed = asyncio.Event()
        watcher = asyncio.get_running_loop(), changed
        self._watchers.add(watcher)
        try:
            version = await self._opened().run(Store.version)
            while True:
                changed.clear()
                yield
                while not changed.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_INTERVAL):
                            await changed.wait()
                    if (now := await self._opened().run(Store.version)) != version:
                        version = now
                        break
        finally:
            self._watchers.discard(watcher)

    async def backup(self, folder: str | os.PathLike[str]) -> None:
        """Copy the journal as it is at one moment, also while other programs write to it.

        They do not wait for it; what else this program asks of its journals does. The copy is a
        journal's folder, too. It does not know keys that are used after that moment, which would be
        paid again: use it only if the original is lost. Submissions that were under way are unknown
        there, because the original may have finished them.

        Args:
            folder: where to copy it; it must exist, be private to this user, and be empty.

        Raises:
            JournalError: the copy could not be written, or the journal is damaged; files that were
                written so far stay in the folder.
        """
        await self._opened().run(lambda store: store.backup(Path(folder)))

    async def disown(self) -> None:
        """See `Journal.disown`."""
        loop = asyncio.get_running_loop()
        await self._opened().run(lambda store: store.owners.leave(loop))

    async def aclose(self) -> None:
        """See `Journal.aclose`."""
        writer, self._writer = self._writer, None
        if self._finalizer is not None:
            self._finalizer.detach()
        if writer is not None and writer.is_ours:
            await writer.aclose()

    # ─── the thread ──────────────────────────────────────────────────────────────────────────────

    async def step(
        self,
        work: Callable[[Table], T],
        *,
        writes: bool = True,
        reads: Reads = (),  # noqa: ARG002 - it reads at once
    ) -> T:
        """See `TableJournal`."""
        return await self._opened().do(work, writes=writes)

    def _opened(self) -> _Writer:
        writer = self._writer
        if writer is None:
            notify = _notify(self._watchers)
            store = Store(self.path, store_prompts=self._store_prompts, changed=notify)
            writer = self._writer = _Writer(store)
            self._finalizer = weakref.finalize(self, writer.abandon)
        if not writer.is_ours:
            raise JournalError(
                f"the journal {self.path} was opened in the parent process: make a new one after a "
                "fork"
            )
        return writer


class _Writer:
    """The one thread that uses the disk. Jobs that wait for it share its next transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "midapi-journal")
        self._process = os.getpid()
        self._mutex = threading.Lock()
        # For each event loop, the batch of jobs that the thread has not begun yet.
        self._batches: dict[asyncio.AbstractEventLoop, tuple[list[Job[Any]], asyncio.Future[None]]]
        self._batches = {}
        self.is_open = True
        self._is_tidying = False

    @property
    def is_ours(self) -> bool:
        """Whether this is the process in which it was made, and not a fork."""
        return os.getpid() == self._process

    async def do(self, work: Callable[[Table], T], *, writes: bool) -> T:
        """Do one job; return its result when that is durable.

        If the caller is cancelled before the thread has begun, nothing was written.
        """
        loop = asyncio.get_running_loop()
        job = Job(work, writes=writes, loop=loop)
        with self._mutex:
            batch = self._batches.get(loop)
            if batch is not None:
                batch[0].append(job)
            else:
                jobs: list[Job[Any]] = [job]
                # Run by the loop's own executor call, so that a virtual clock waits for its end.
                batch = self._batches[loop] = jobs, self._submit(loop, self._serve, loop)
        try:
            await asyncio.wait({batch[1]})
        except asyncio.CancelledError:
            with self._mutex:
                if self._batches.get(loop) is batch:
                    batch[0].remove(job)
            raise
        batch[1].result()
        return job.answer()

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._mutex:
            jobs, _ = self._batches.pop(loop)
        if jobs:
            self._store.serve(jobs)
        self._tidy_later()

    def _tidy_later(self) -> None:
        if self._store.is_untidy and not self._is_tidying:
            with suppress(RuntimeError):  # the journal was closed in the meantime
                self._thread.submit(self._tidy)
                self._is_tidying = True

    def _tidy(self) -> None:
        self._is_tidying = False
        self._store.tidy()
        self._tidy_later()

    async def run(self, work: Callable[[Store], T]) -> T:
        """Run a method of the store that makes its own transactions."""
        return await self._submit(asyncio.get_running_loop(), work, self._store)

    def _submit(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[Any], T], argument: object
    ) -> asyncio.Future[T]:
        try:
            return loop.run_in_executor(self._thread, work, argument)
        except RuntimeError as error:
            raise JournalError(
                "the journal cannot be used any more: it was closed, or the program is exiting"
            ) from error

    async def aclose(self) -> None:
        """Finish all jobs, then close the store."""
        self.is_open = False
        closing = self._submit(asyncio.get_running_loop(), Store.close, self._store)
        self._thread.shutdown(wait=False)
        await asyncio.wait({closing})

    def abandon(self) -> None:
        """Close the store without waiting, if the journal was never closed."""
        if not self.is_open or not self.is_ours:
            return
        self.is_open = False
        try:
            self._thread.submit(self._store.close)
        except RuntimeError:  # at exit, the interpreter has ended the thread
            self._store.close()
        self._thread.shutdown(wait=False)


def _notify(
    watchers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]],
) -> Callable[[], None]:
    """A function that wakes all watchers, for the writing thread; it keeps no journal alive."""

    def notify() -> None:
        for loop, changed in list(watchers):
            with suppress(RuntimeError):  # the loop was closed before the iterator
                loop.call_soon_threadsafe(changed.set)

    return notify
