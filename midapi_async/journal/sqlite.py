"""The journal in a folder: it outlives its process, and all processes of a machine share it."""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import JournalError
from . import _durations
from ._rows import Row, Rows, Sender
from ._store import KEPT, JournalReport, Store
from ._writer import Writer
from .protocol import Intent, State

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from ..config import RateLimit
    from ._slots import SlotFile
    from .protocol import Kind

POLL = 0.25  # seconds between two looks for what other processes have written


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
        self._writer: Writer | None = None
        self._forgotten: weakref.finalize[[], SQLiteJournal] | None = None
        self._watchers: set[_Watcher] = set()
        self._senders: dict[str, Sender] = {}

    def __repr__(self) -> str:
        return f"<SQLiteJournal {str(self._path)!r} {'open' if self._writer else 'closed'}>"

    def __del__(self) -> None:
        writer: Writer | None = getattr(self, "_writer", None)
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

        def look(rows: Rows) -> Row | None:
            return rows.find(
                intent_id=intent_id,
                token_hash=token_hash,
                task_id=task_id,
                key=key,
                fingerprint=fingerprint,
            )

        row, is_abandoned = await self._opened().look(lambda rows: rows.with_fate(look(rows)))
        if is_abandoned:
            row = await self._opened().run(lambda store: store.find(look))
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
        return await self._opened().look(lambda rows: rows.of_tasks(scope, states, wanted))

    async def _in_states(self, scope: str | None, states: tuple[State, ...]) -> list[Intent]:
        def look(store: Store) -> list[Intent]:
            store.bury()
            return store.read(lambda rows: rows.in_states(scope, states))

        return await self._opened().run(look)

    async def changes(self) -> AsyncGenerator[None, None]:
        """See `Journal.changes`."""
        watcher = _Watcher(asyncio.get_running_loop())
        self._watchers.add(watcher)
        try:
            version = await self._opened().run(Store.version)
            while True:
                watcher.changed.clear()
                yield
                while not await watcher.is_told(POLL):
                    seen, version = version, await self._opened().run(Store.version)
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

    async def learn(self, origin: str, kind: Kind, seconds: float) -> None:
        """See `Experience.learn`."""
        await self._opened().write(
            lambda rows: _durations.add(rows.connection, origin, kind, seconds)
        )

    async def durations(self, origin: str) -> dict[Kind, list[float]]:
        """See `Experience.durations`."""
        return await self._opened().look(lambda rows: _durations.of(rows.connection, origin))

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
        return await self._opened().run(lambda store: store.prune(older_than))

    async def check(self) -> JournalReport:
        """See whether the journal is whole, and what is in it.

        Raises:
            JournalError: it cannot be read at all.
        """
        return await self._opened().run(Store.check)

    def _opened(self) -> Writer:
        writer = self._writer
        if writer is None:
            store = Store(
                self._path,
                self._senders,
                store_prompts=self._store_prompts,
                changed=_Tell(self._watchers),
            )
            writer = self._writer = Writer(store)
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
