"""The journal in memory, for tests, scripts, and programs without a disk."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

import attrs

from .base import Reads, TableJournal
from .protocol import DAY, JournalStats, RowFilter
from .slots import Account, Slot
from .states import BOUGHT, OVER, RUNNING, Intent, State
from .table import Table

T = TypeVar("T")

# How many intents that are over and have no key are kept, because their callbacks may come late.
REMEMBERED = 10_000


class MemoryJournal(TableJournal):
    """Stores intents in dictionaries; they are lost when the process ends.

    A second client that gets the same object continues where the first one stopped. The slots of an
    account are shared by all memory journals of an event loop.
    """

    is_durable = False

    def __init__(self) -> None:
        self._table = _MemoryTable()
        self._watchers: set[asyncio.Event] = set()

    def __repr__(self) -> str:
        return f"<MemoryJournal {len(self._table.by_id)} intents>"

    async def step(
        self,
        work: Callable[[Table], T],
        *,
        writes: bool = True,
        reads: Reads = (),  # noqa: ARG002 - it reads at once
    ) -> T:
        """See `TableJournal`."""
        answer = work(self._table)
        if writes:
            for changed in self._watchers:
                changed.set()
        return answer

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

    async def disown(self) -> None:
        """See `Journal.disown`. Nothing can fail to be written here."""

    async def aclose(self) -> None:
        """See `Journal.aclose`. The rows stay, for the next client."""


# The owner of each event loop; the references are weak, so that closed loops can be freed.
_OWNERS: WeakKeyDictionary[asyncio.AbstractEventLoop, str] = WeakKeyDictionary()
_NUMBERS = itertools.count()
# The slots, and the limits after a 429, for all memory journals of an event loop.
_SLOTS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, tuple[Slot, str]]]
_SLOTS = WeakKeyDictionary()
_ACCOUNTS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Account]] = WeakKeyDictionary()


class _MemoryTable(Table):
    """The rows in dictionaries; an owner is an event loop."""

    def __init__(self) -> None:
        self.by_id: dict[str, Intent] = {}  # oldest first
        self._keys: dict[tuple[str, str], str] = {}
        self._tokens: dict[str, str] = {}
        self._tasks: dict[str, list[str]] = {}  # intent ids by task id
        self._forgettable: deque[str] = deque()  # over and without a key, oldest first
        self._notes: dict[tuple[str, str], dict[str, tuple[str, float | None]]] = {}

    # ─── owners and time ─────────────────────────────────────────────────────────────────────────

    @property
    def me(self) -> str:
        loop = asyncio.get_running_loop()
        if loop not in _OWNERS:
            _OWNERS[loop] = f"loop {next(_NUMBERS)}"
        return _OWNERS[loop]

    def is_alive(self, owner: str) -> bool:
        return any(name == owner and not loop.is_closed() for loop, name in _OWNERS.items())

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    # ─── reading ─────────────────────────────────────────────────────────────────────────────────

    def get(self, intent_id: str) -> Intent | None:
        return self.by_id.get(intent_id)

    def holder(self, scope: str, key: str) -> Intent | None:
        return self.by_id.get(self._keys.get((scope, key), ""))

    def task_holder(self, origin: str, task_id: str) -> Intent | None:
        rows = self._by_task_ids([task_id])
        held = (r for r in rows if r.task_id == task_id and r.origin == origin)
        return next(held, None)

    def _by_task_ids(self, task_ids: Collection[str]) -> list[Intent]:
        """The rows that have one of these task ids, or have it among others, oldest first."""
        names = {name for task_id in task_ids for name in self._tasks.get(task_id, ())}
        return sorted(map(self.by_id.__getitem__, names), key=lambda row: row.created_at)

    def find(
        self,
        intent_id: str | None,
        token_hash: str | None,
        task_id: str | None,
        key: tuple[str, str] | None,
    ) -> Intent | None:
        if key is not None:
            return self.holder(*key)
        if task_id is not None:
            rows = self._by_task_ids([task_id])
            return next((r for r in rows if r.task_id == task_id), rows[0] if rows else None)
        if token_hash is not None:
            intent_id = self._tokens.get(token_hash)
        return self.by_id.get(intent_id or "")

    def rows(self, scope: str | None, which: RowFilter) -> list[Intent]:
        task_ids, after = which.get("task_ids"), which.get("after")
        rows = self.by_id.values() if task_ids is None else self._by_task_ids(task_ids)
        if after is not None:
            begun = itertools.dropwhile(lambda row: row.intent_id != after, rows)
            rows = list(begun)[1:]
        found = (row for row in rows if self._fits(row, scope, which))
        return list(itertools.islice(found, which.get("limit", 500)))

    def _fits(self, row: Intent, scope: str | None, which: RowFilter) -> bool:
        states, keys, prefix = which.get("states"), which.get("keys"), which.get("key_prefix")
        task_ids, metadata = which.get("task_ids"), which.get("metadata")
        since, taken = which.get("since"), which.get("taken")
        return bool(
            row.owner  # a tombstone has none
            and (scope is None or row.scope == scope)
            and (not states or row.state in states)
            and (keys is None or (row.holds_key and row.key in keys))
            and (task_ids is None or row.task_id in task_ids)
            and (prefix is None or (row.key is not None and row.key.startswith(prefix)))
            and (metadata is None or metadata.items() <= row.metadata.items())
            and (since is None or row.created_at >= since)
            and (taken is None or row.taken == taken)
            and (not which.get("mine") or row.owner == self.me)
        )

    # ─── writing ─────────────────────────────────────────────────────────────────────────────────

    def insert(self, row: Intent, account: str) -> None:  # noqa: ARG002 - slots know the account here
        if row.token_hash is not None:
            self._tokens[row.token_hash] = row.intent_id
        self.update(row, row)

    def update(self, before: Intent, after: Intent) -> None:
        self.by_id[after.intent_id] = after
        if before.task_id is not None and after.task_id is None:
            self._tasks[before.task_id].remove(after.intent_id)
        if after.holds_key and after.key is not None:
            self._keys[after.scope, after.key] = after.intent_id
        self._unlist(before.intent_id, *{*before.other_task_ids} - {*after.other_task_ids})
        for task_id in filter(None, (after.task_id, *after.other_task_ids)):
            names = self._tasks.setdefault(task_id, [])
            if after.intent_id not in names:
                names.append(after.intent_id)
        if self._is_forgettable(after) and (before is after or not self._is_forgettable(before)):
            self._forgettable.append(after.intent_id)
            if len(self._forgettable) > REMEMBERED:
                oldest = self.by_id.get(self._forgettable.popleft())
                if oldest is not None and self._is_forgettable(oldest):
                    self.forget(oldest, None)  # else a late callback has shown that it was bought

    @staticmethod
    def _is_forgettable(row: Intent) -> bool:
        is_done = row.state in OVER and (row.taken or row.state not in BOUGHT)
        return is_done and row.key is None

    def forget(self, row: Intent, leave: Intent | None) -> None:
        del self.by_id[row.intent_id]
        self._tokens.pop(row.token_hash or "", None)
        self._unlist(row.intent_id, *filter(None, (row.task_id, *row.other_task_ids)))
        if leave is not None:
            self.update(leave, leave)
        elif row.holds_key and row.key is not None:
            del self._keys[row.scope, row.key]

    def _unlist(self, intent_id: str, *task_ids: str) -> None:
        for task_id in task_ids:
            self._tasks[task_id].remove(intent_id)
            if not self._tasks[task_id]:
                del self._tasks[task_id]

    def dead_owners(self) -> list[str]:
        owners = {row.owner for row in self.by_id.values() if row.owner}
        return [owner for owner in owners if not self.is_alive(owner)]

    def resolve_orphans(self) -> None:
        for row in list(self.by_id.values()):
            self.resolved(row)

    def take_over(self, scope: str) -> None:
        self.resolve_orphans()
        for row in list(self.by_id.values()):
            is_done = row.taken or row.state in OVER - BOUGHT
            if row.scope == scope and not (is_done or self.is_alive(row.owner)):
                self.update(row, attrs.evolve(row, owner=self.me))

    def prunable(self, before: float) -> list[Intent]:
        rows = (row for row in self.by_id.values() if row.owner)
        return [row for row in rows if row.is_prunable(before)]

    # ─── slots, notes, counts ────────────────────────────────────────────────────────────────────

    @property
    def _slots(self) -> dict[str, tuple[Slot, str]]:
        return _SLOTS.setdefault(asyncio.get_running_loop(), {})

    def account(self, name: str) -> Account:
        return _ACCOUNTS.get(asyncio.get_running_loop(), {}).get(name) or Account()

    def set_account(self, name: str, account: Account) -> None:
        _ACCOUNTS.setdefault(asyncio.get_running_loop(), {})[name] = account

    def slots(self, account: str) -> list[Slot]:
        return [slot for slot, of in self._slots.values() if of == account]

    def slot(self, name: str) -> tuple[Slot, str] | None:
        return self._slots.get(name)

    def put_slot(self, slot: Slot, account: str) -> None:
        self._slots[slot.slot] = slot, account

    def drop_slots(self, names: Sequence[str]) -> None:
        for name in names:
            self._slots.pop(name, None)

    def note(
        self, scope: str, kind: str, name: str, value: str | None, expires: float | None
    ) -> None:
        notes = self._notes.setdefault((scope, kind), {})
        notes.pop(name, None)
        if value is not None:
            notes[name] = value, expires

    def notes(self, scope: str, kind: str) -> dict[str, str]:
        notes, now = self._notes.get((scope, kind), {}), time.time()
        for name in [name for name, (_, expires) in notes.items() if expires and expires <= now]:
            del notes[name]
        return {name: value for name, (value, _) in notes.items()}

    def stats(self) -> JournalStats:
        rows, day_ago = [row for row in self.by_id.values() if row.owner], time.time() - DAY
        open_since = (row.created_at for row in rows if row.state not in OVER)
        running_since = (row.accepted_at or 0.0 for row in rows if row.state in RUNNING)
        unknown_since = (row.created_at for row in rows if row.state is State.UNKNOWN)
        return JournalStats(
            counts=Counter(row.state for row in rows),
            last_day=Counter(row.state for row in rows if row.created_at >= day_ago),
            untaken=sum(row.state in BOUGHT and not row.taken for row in rows),
            oldest_open=min(open_since, default=None),
            oldest_task=min(running_since, default=None),
            oldest_unknown=min(unknown_since, default=None),
            spent_keys=len(self.by_id) - len(rows),
            owners=len({row.owner for row in rows if self.is_alive(row.owner)}),
            size=0,
        )
