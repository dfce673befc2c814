"""The journal in a folder: it outlives its process, and all processes of a machine share it."""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import JournalError
from . import Intent, State
from ._rows import Rows, Sender
from ._store import KEPT, Job, JournalReport, Store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection

    from ..config import RateLimit
    from ._slots import SlotFile

T = TypeVar("T")

POLL = 0.25  # seconds between two looks for what other processes have written
_AT_ONCE = 256  # callers that share one transaction, at most


class SQLiteJournal:
    """Keeps intents in a folder of this machine's disk, for all its processes.

    It opens with its first use and can be used again after ``aclose``. Several clients of a process
    may share one. The folder is private, and never lies on a network file system.

    Args:
        folder: where it lives; made if it is missing.
        store_prompts: False keeps no request, and of what it asked for only a hash that means
            nothing without the folder's own key; then ``request`` of its rows is None.
    """

    def __init__(self, folder: str | os.PathLike[str], *, store_prompts: bool = True) -> None:
        # Made absolute here, so that a program may change its directory.
        self._path = Path(os.path.abspath(folder))  # noqa: PTH100 - keeps links, unlike resolve()
        self._store_prompts = store_prompts
        self._writer: _Writer | None = None
        self._forgotten: weakref.finalize[[], SQLiteJournal] | None = None
        self._watchers: set[_Watcher] = set()
        self._senders: dict[str, Sender] = {}

    def __repr__(self) -> str:
        return f"<SQLiteJournal {str(self._path)!r} {'open' if self._writer else 'closed'}>"

    def __del__(self) -> None:
        writer: _Writer | None = getattr(self, "_writer", None)
        if writer is not None and writer.is_ours and writer.is_open:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    # ─── the protocol ────────────────────────────────────────────────────────────────────────────

    async def claim(self, intent: Intent) -> Intent:
        """See `Journal.claim`."""
        sender = Sender(asyncio.get_running_loop(), intent)
        self._senders[intent.intent_id] = sender
        try:
            row = await self._opened().write(lambda rows: rows.claim(intent))
        except JournalError:
            self._senders.pop(intent.intent_id, None)
            raise
        if row.intent_id != intent.intent_id:
            self._senders.pop(intent.intent_id, None)
        return row

    async def advance(
        self,
        intent_id: str,
        to: State | None = None,
        *,
        task_id: str | None = None,
        taken: bool = False,
    ) -> Intent:
        """See `Journal.advance`."""
        row = await self._opened().write(
            lambda rows: rows.advance(intent_id, to, task_id, taken=taken)
        )
        if row.state is not State.SENDING:
            self._senders.pop(intent_id, None)
        return row

    async def find(
        self,
        *,
        intent_id: str | None = None,
        token_hash: str | None = None,
        task_id: str | None = None,
        key: tuple[str, str] | None = None,
        fingerprint: str | None = None,
    ) -> Intent | None:
        """See `Journal.find`."""
        row = await self._opened().read(
            lambda store: store.find(
                lambda rows: rows.find(
                    intent_id=intent_id,
                    token_hash=token_hash,
                    task_id=task_id,
                    key=key,
                    fingerprint=fingerprint,
                )
            )
        )
        return row.intent if row is not None else None

    async def take_over(self, scope: str) -> list[Intent]:
        """See `Journal.take_over`."""
        rows = await self._opened().write(lambda rows: rows.take_over(scope))
        for intent_id, sender in list(self._senders.items()):
            if sender.loop.is_closed():
                self._senders.pop(intent_id, None)
        return rows

    async def rows(
        self, scope: str, *states: State, task_ids: Collection[str] | None = None
    ) -> list[Intent]:
        """See `Journal.rows`."""
        if task_ids is None:
            return await self._in_states(scope, states)
        wanted = tuple(task_ids)
        return await self._opened().read(
            lambda store: store.read(lambda rows: rows.of_tasks(scope, states, wanted))
        )

    async def _in_states(self, scope: str | None, states: tuple[State, ...]) -> list[Intent]:
        def look(store: Store) -> list[Intent]:
            store.bury()
            return store.read(lambda rows: rows.in_states(scope, states))

        return await self._opened().read(look)

    async def changes(self) -> AsyncGenerator[None, None]:
        """See `Journal.changes`."""
        watcher = _Watcher(asyncio.get_running_loop())
        self._watchers.add(watcher)
        try:
            version = await self._opened().read(Store.version)
            while True:
                watcher.changed.clear()
                yield
                while not await watcher.is_told(POLL):
                    seen, version = version, await self._opened().read(Store.version)
                    if version != seen:
                        break
        finally:
            self._watchers.discard(watcher)

    async def aclose(self) -> None:
        """See `Journal.aclose`."""
        writer, self._writer = self._writer, None
        if self._forgotten is not None:
            self._forgotten.detach()
        if writer is not None and writer.is_ours:
            await writer.aclose()

    # ─── beside the protocol ─────────────────────────────────────────────────────────────────────

    def slots(self, name: str, limit: RateLimit | None) -> SlotFile:
        """Where the slots of an account are kept, for all processes that use this folder.

        Args:
            name: of the account and its limit; it must tell nothing of the API key.
            limit: submissions in a window of loop seconds; None for no limit of ours.
        """
        from ._slots import SlotFile

        return SlotFile(self._path, name, limit)

    # ─── for the command line ────────────────────────────────────────────────────────────────────

    async def everything(self, *states: State) -> list[Intent]:
        """The rows of all accounts and namespaces in these states, or in any, oldest first."""
        return await self._in_states(None, states)

    async def prune(self, *, older_than: float = KEPT) -> int:
        """Remove what was over for so long; a key that was spent stays so.

        Over is what was refused, dismissed, superseded, or bought and taken. What is unknown never
        is.

        Args:
            older_than: seconds.

        Returns:
            How many intents were removed.

        Raises:
            JournalError: they could not be removed, or not all.
        """
        return await self._opened().read(lambda store: store.prune(older_than))

    async def check(self) -> JournalReport:
        """See whether the journal is whole, and what is in it.

        Raises:
            JournalError: it cannot be read at all.
        """
        return await self._opened().read(Store.check)

    def _opened(self) -> _Writer:
        writer = self._writer
        if writer is None:
            store = Store(
                self._path,
                self._senders,
                store_prompts=self._store_prompts,
                changed=_Tell(self._watchers),
            )
            writer = self._writer = _Writer(store)
            self._forgotten = weakref.finalize(self, writer.abandon)
        if not writer.is_ours:
            raise JournalError(
                f"the journal {self._path} was opened in the parent process: make one of your own "
                "after a fork"
            )
        return writer


class _Watcher:
    """One iterator of `changes`, in its own event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.changed = asyncio.Event()

    async def is_told(self, seconds: float) -> bool:
        """Wait until this process has written, but no longer than this."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        return self.changed.is_set()


class _Tell:
    """Tells every watcher, from the thread that has written."""

    def __init__(self, watchers: set[_Watcher]) -> None:
        self._watchers = watchers

    def __call__(self) -> None:
        for watcher in list(self._watchers):
            with suppress(RuntimeError):  # its loop was closed without closing the iterator
                watcher.loop.call_soon_threadsafe(watcher.changed.set)


class _Writer:
    """The one thread that touches the disk, and the callers who wait for it.

    Each caller has a job in the thread's queue. The first one whose turn comes takes the work of
    all who wait by then into its transaction; the others find theirs done.

    Args:
        store: what the thread works on.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[Job[Any]] = deque()
        self._thread = ThreadPoolExecutor(1, "midapi-journal")
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
        job = Job(work)
        self._waiting.append(job)
        try:
            await self._run(self._commit, job)
        except BaseException:
            with suppress(ValueError):
                self._waiting.remove(job)
            raise
        return job.result()

    async def read(self, work: Callable[[Store], T]) -> T:
        """Do what reads, or what has transactions of its own."""
        return await self._run(work, self._store)

    async def _run(self, work: Callable[[Any], T], argument: object) -> T:
        loop = asyncio.get_running_loop()
        try:
            job = loop.run_in_executor(self._thread, work, argument)
        except RuntimeError as error:
            raise JournalError(
                "the journal cannot be used any more: the program is ending"
            ) from error
        return await job

    def _commit(self, job: Job[Any]) -> None:
        if not job.is_done:
            jobs = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
            self._store.write(jobs)
            if self._store.is_untidy:
                with suppress(RuntimeError):  # closed in the meantime
                    self._thread.submit(self._store.tidy)

    async def aclose(self) -> None:
        """Let everything that was asked for end, then let go."""
        self.is_open = False
        try:
            await self._run(Store.close, self._store)
        except BaseException:
            self._thread.submit(self._store.close)  # cancelled before its turn
            raise
        finally:
            self._thread.shutdown(wait=False)

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
