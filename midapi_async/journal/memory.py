"""The journal that lives as long as its object: for tests, scripts and whoever wants no file."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from ..errors import JournalError
from ._durations import KEPT_DURATIONS
from .protocol import BOUGHT, Intent, State, moved

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from .protocol import Kind

# So many finished and taken intents without a key are remembered, for late callbacks.
REMEMBERED = 10_000


class MemoryJournal:
    """Keeps intents in dictionaries; nothing is left of them when the process ends.

    Hand the same object to a second client, and that one goes on where the first one stopped.
    """

    def __init__(self) -> None:
        self._rows: dict[str, Intent] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._tokens: dict[str, str] = {}
        self._tasks: dict[str, str] = {}
        self._senders: dict[str, asyncio.AbstractEventLoop] = {}
        self._finished: deque[str] = deque()
        self._watchers: set[asyncio.Event] = set()
        self._durations: dict[tuple[str, Kind], deque[float]] = {}

    def __repr__(self) -> str:
        return f"<MemoryJournal {len(self._rows)} intents>"

    async def claim(self, intent: Intent) -> Intent:
        """See `Journal.claim`."""
        old = self._row(intent.supersedes) if intent.supersedes is not None else None
        if old is not None and old.state is not State.UNKNOWN:
            return old
        if intent.key is not None:
            holder = self._holder(intent.scope, intent.key)
            if holder is not None and holder is not old and holder.state is not State.REFUSED:
                return holder
            self._keys[intent.scope, intent.key] = intent.intent_id
        if old is not None:
            self._write(moved(old, State.SUPERSEDED, None, time.time(), taken=False))
        if intent.token_hash is not None:
            self._tokens[intent.token_hash] = intent.intent_id
        self._senders[intent.intent_id] = asyncio.get_running_loop()
        self._write(intent)
        return intent

    async def advance(
        self,
        intent_id: str,
        to: State | None = None,
        *,
        task_id: str | None = None,
        taken: bool = False,
    ) -> Intent:
        """See `Journal.advance`."""
        row = self._row(intent_id)
        after = moved(row, to, task_id, time.time(), taken=taken)
        if to is State.UNKNOWN:
            self._give_key_back(row)
        if after is not row:
            self._write(after)
        return after

    async def find(
        self,
        *,
        intent_id: str | None = None,
        token_hash: str | None = None,
        task_id: str | None = None,
        key: tuple[str, str] | None = None,
        fingerprint: str | None = None,  # noqa: ARG002 - rows here have it as it is
    ) -> Intent | None:
        """See `Journal.find`."""
        if token_hash is not None:
            intent_id = self._tokens.get(token_hash)
        elif task_id is not None:
            intent_id = self._tasks.get(task_id)
        elif key is not None:
            intent_id = self._keys.get(key)
        return self._rows.get(intent_id) if intent_id is not None else None

    async def take_over(self, scope: str) -> list[Intent]:
        """See `Journal.take_over`. A sender is dead here when its event loop is closed."""
        dead = [
            row
            for row in self._rows.values()
            if row.scope == scope
            and row.state is State.SENDING
            and self._senders[row.intent_id].is_closed()
        ]
        for row in dead:
            await self.advance(row.intent_id, State.UNKNOWN)
        return [row for row in await self.rows(scope, *BOUGHT) if not row.taken]

    async def rows(
        self, scope: str, *states: State, task_ids: Collection[str] | None = None
    ) -> list[Intent]:
        """See `Journal.rows`."""
        rows = self._rows.values() if task_ids is None else self._of_tasks(task_ids)
        return [row for row in rows if row.scope == scope and (not states or row.state in states)]

    def _of_tasks(self, task_ids: Collection[str]) -> list[Intent]:
        names = (self._tasks.get(task_id) for task_id in task_ids)
        return [self._rows[name] for name in names if name is not None]

    async def changes(self) -> AsyncGenerator[None, None]:
        """See `Journal.changes`."""
        changed = asyncio.Event()
        changed.set()
        self._watchers.add(changed)
        try:
            while True:
                await changed.wait()
                changed.clear()
                yield
        finally:
            self._watchers.discard(changed)

    async def learn(self, origin: str, kind: Kind, seconds: float) -> None:
        """See `Experience.learn`."""
        seen = self._durations.setdefault((origin, kind), deque(maxlen=KEPT_DURATIONS))
        seen.append(seconds)

    async def durations(self, origin: str) -> dict[Kind, list[float]]:
        """See `Experience.durations`."""
        return {
            kind: list(seen) for (place, kind), seen in self._durations.items() if place == origin
        }

    async def aclose(self) -> None:
        """See `Journal.aclose`. The rows stay, for the next client."""

    def _row(self, intent_id: str) -> Intent:
        try:
            return self._rows[intent_id]
        except KeyError:
            raise JournalError(f"the journal holds no intent {intent_id!r}") from None

    def _holder(self, scope: str, key: str) -> Intent | None:
        held_by = self._keys.get((scope, key))
        return self._rows.get(held_by) if held_by is not None else None

    def _give_key_back(self, row: Intent) -> None:
        """What took over a key and was refused leaves it to the intent that it superseded."""
        holder = self._holder(row.scope, row.key) if row.key is not None else None
        if row.key is None or holder is None or holder.state in BOUGHT:
            return
        if holder.supersedes == row.intent_id:
            self._keys[row.scope, row.key] = row.intent_id

    def _write(self, row: Intent) -> None:
        self._rows[row.intent_id] = row
        if row.state is not State.SENDING:
            self._senders.pop(row.intent_id, None)
        if row.task_id is not None:
            self._tasks[row.task_id] = row.intent_id
        for task_id in row.other_task_ids:
            self._tasks[task_id] = row.intent_id
        if row.key is None and self._is_over(row):
            self._finished.append(row.intent_id)
            if len(self._finished) > REMEMBERED:
                self._forget(self._finished.popleft())
        for changed in self._watchers:
            changed.set()

    @staticmethod
    def _is_over(row: Intent) -> bool:
        return row.state in (State.REFUSED, State.DISMISSED) or (row.taken and row.state in BOUGHT)

    def _forget(self, intent_id: str) -> None:
        row = self._rows.get(intent_id)
        if row is None or not self._is_over(row):
            return  # bought after all: its callback came late
        del self._rows[intent_id]
        self._tokens.pop(row.token_hash or "", None)
        for task_id in (row.task_id, *row.other_task_ids):
            self._tasks.pop(task_id or "", None)
