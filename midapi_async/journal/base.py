"""The base of all journals: `Journal` on a `Table`, each method as one or two transactions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Never, TypeAlias, TypeVar, Unpack

from ..config import RateLimit
from .protocol import Claim, JournalStats, RowFilter
from .states import Changes, Intent, State
from .table import Table

T = TypeVar("T")
# Each one is ("id", …), ("token", …), ("task", …), ("slot", …), ("account", …) or ("key", …, …).
Reads: TypeAlias = Sequence[tuple[str, ...]]


class TableJournal(ABC):
    """What the journal in memory and the one in a folder share."""

    def __reduce__(self) -> Never:
        raise TypeError(
            "a journal cannot be copied or pickled: its rows and files belong to this process. "
            "Pass the path of a folder, which processes can share"
        )

    @abstractmethod
    async def step(
        self, work: Callable[[Table], T], *, writes: bool = True, reads: Reads = ()
    ) -> T:
        """Run `work` on the table as one transaction; return its result when that is durable.

        Args:
            work: reads and writes rows.
            writes: whether it may write.
            reads: names of what it will probably read, for a store that fetches that beforehand.
        """

    async def claim(
        self, intent: Intent, account: str, limit: RateLimit | None, *, longest_post: float
    ) -> Claim:
        """See `Journal.claim`."""
        reads: list[tuple[str, ...]] = [("id", intent.intent_id), ("account", account)]
        if intent.key is not None:
            reads.append(("key", intent.scope, intent.key))
        if intent.supersedes is not None:
            reads.append(("id", intent.supersedes))
        return await self.step(
            lambda table: table.claim(intent, account, limit, longest_post), reads=reads
        )

    async def release(self, slot: str, *, sent: bool, pause: float | None = None) -> None:
        """See `Journal.release`."""
        await self.step(
            lambda table: table.release(slot, sent=sent, pause=pause), reads=[("slot", slot)]
        )

    async def advance(
        self,
        intent_id: str,
        to: State | None = None,
        *,
        slot: str | None = None,
        **changes: Unpack[Changes],
    ) -> Intent:
        """See `Journal.advance`."""
        reads = [("id", intent_id)]
        if slot is not None:
            reads.append(("slot", slot))
        if (task_id := changes.get("task_id")) is not None:
            reads.append(("task", task_id))
        return await self.step(
            lambda table: table.advance(intent_id, to, slot, changes), reads=reads
        )

    async def find(
        self,
        *,
        intent_id: str | None = None,
        token_hash: str | None = None,
        task_id: str | None = None,
        key: tuple[str, str] | None = None,
    ) -> Intent | None:
        """See `Journal.find`."""

        def find(table: Table) -> tuple[Intent | None, bool]:
            row = table.find(intent_id, token_hash, task_id, key)
            return row, row is not None and table.is_orphan(row)

        kinds = {"id": intent_id, "token": token_hash, "task": task_id}
        reads = [(kind, name) for kind, name in kinds.items() if name is not None]
        row, is_orphan = await self.step(find, writes=False, reads=reads or [("key", *(key or ()))])
        if row is not None and is_orphan:
            name = row.intent_id
            row = await self.step(lambda table: table.resolved_row(name))
        return row

    async def rows(self, scope: str | None = None, **which: Unpack[RowFilter]) -> list[Intent]:
        """See `Journal.rows`."""
        await self._resolve_orphans()
        return await self.step(lambda table: table.rows(scope, which), writes=False)

    async def _resolve_orphans(self) -> None:
        if await self.step(lambda table: table.dead_owners(), writes=False):
            await self.step(lambda table: table.resolve_orphans())

    async def take_over(self, scope: str) -> None:
        """See `Journal.take_over`."""
        await self.step(lambda table: table.take_over(scope))

    async def note(
        self,
        scope: str,
        kind: str,
        name: str,
        value: str | None = None,
        *,
        expires: float | None = None,
    ) -> None:
        """See `Journal.note`."""
        await self.step(lambda table: table.note(scope, kind, name, value, expires))

    async def notes(self, scope: str, kind: str) -> Mapping[str, str]:
        """See `Journal.notes`."""
        return await self.step(lambda table: table.notes(scope, kind), writes=False)

    async def prune(self, before: float) -> int:
        """See `Journal.prune`."""
        removed = 0
        while some := await self.step(lambda table: table.prune(before)):
            removed += some
        return removed

    async def check(self) -> Sequence[str]:
        """See `Journal.check`."""
        return await self.step(lambda table: table.check(), writes=False)

    async def stats(self) -> JournalStats:
        """See `Journal.stats`."""
        await self._resolve_orphans()
        return await self.step(lambda table: table.stats(), writes=False)
