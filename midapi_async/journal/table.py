"""The rules for the rows and slots of a journal, once for every store.

A store implements the reads and writes (the abstract methods). It runs every method of the rules
under its lock as one transaction: either everything that it writes is kept, or nothing.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import attrs

from ..config import RateLimit
from ..errors import JournalError
from .protocol import Busy, Claim, Claimed, JournalStats, RowFilter, Standing
from .slots import Account, Slot, admit
from .states import BOUGHT, PENDING, Changes, Intent, State, moved

_log = logging.getLogger("midapi_async.gate")

IN_FLIGHT = 1.0  # seconds that MidAPI may count a POST later than it was sent
STALE = 5.0  # seconds after its claim in which the POST of an owner held for dead may come
WINDOW = 10.0  # seconds that the slot of a client without a limit stays busy: MidAPI's own window
# The states in which an intent can be submitted again by a new one.
_SUPERSEDABLE = frozenset({State.UNKNOWN, State.FAILED})


class Table(ABC):
    """The rows and slots of a store, used by one owner."""

    _has_warned = False  # that clients with different limits share an account

    # ─── what a store implements ─────────────────────────────────────────────────────────────────

    @property
    @abstractmethod
    def me(self) -> str:
        """The owner that uses this table."""

    @abstractmethod
    def is_alive(self, owner: str) -> bool:
        """Whether an owner is alive; see `Journal`."""

    @abstractmethod
    def now(self) -> float:
        """Seconds of the store's clock, the same for all its owners."""

    def today(self) -> float:
        """Epoch seconds, for times that users see and for pruning."""
        return time.time()

    @abstractmethod
    def get(self, intent_id: str) -> Intent | None:
        """The row of an intent."""

    @abstractmethod
    def holder(self, scope: str, key: str) -> Intent | None:
        """The row that has a key."""

    @abstractmethod
    def task_holder(self, origin: str, task_id: str) -> Intent | None:
        """The row that has a task id; other rows may have it among their ``other_task_ids``."""

    @abstractmethod
    def find(
        self,
        intent_id: str | None,
        token_hash: str | None,
        task_id: str | None,
        key: tuple[str, str] | None,
    ) -> Intent | None:
        """See `Journal.find`."""

    @abstractmethod
    def rows(self, scope: str | None, which: RowFilter) -> list[Intent]:
        """See `Journal.rows`."""

    @abstractmethod
    def dead_owners(self) -> list[str]:
        """The dead owners of PENDING rows."""

    @abstractmethod
    def resolve_orphans(self) -> None:
        """Resolve the PENDING rows of dead owners."""

    @abstractmethod
    def take_over(self, scope: str) -> None:
        """See `Journal.take_over`."""

    @abstractmethod
    def prunable(self, before: float) -> list[Intent]:
        """Some rows for which `Intent.is_prunable` is true; none if there are no more."""

    @abstractmethod
    def forget(self, row: Intent, leave: Intent | None) -> None:
        """Remove a row, or leave a tombstone in its place."""

    @abstractmethod
    def note(
        self, scope: str, kind: str, name: str, value: str | None, expires: float | None
    ) -> None:
        """See `Journal.note`."""

    @abstractmethod
    def notes(self, scope: str, kind: str) -> dict[str, str]:
        """See `Journal.notes`."""

    @abstractmethod
    def stats(self) -> JournalStats:
        """See `Journal.stats`."""

    def check(self) -> Sequence[str]:
        """See `Journal.check`."""
        return ()

    def is_same(self, row: Intent, fingerprint: str) -> bool:
        """Whether a row's request has this fingerprint."""
        return row.fingerprint == fingerprint

    @abstractmethod
    def insert(self, row: Intent, account: str) -> None:
        """Write a new row."""

    @abstractmethod
    def update(self, before: Intent, after: Intent) -> None:
        """Write the changes of a row."""

    @abstractmethod
    def account(self, name: str) -> Account:
        """The limits of an account after its last 429."""

    @abstractmethod
    def set_account(self, name: str, account: Account) -> None:
        """Write the limits of an account."""

    @abstractmethod
    def slots(self, account: str) -> list[Slot]:
        """All slots of an account that are stored."""

    @abstractmethod
    def slot(self, name: str) -> tuple[Slot, str] | None:
        """A slot, and its account."""

    @abstractmethod
    def put_slot(self, slot: Slot, account: str) -> None:
        """Write a slot; it replaces the one with the same id."""

    @abstractmethod
    def drop_slots(self, names: Sequence[str]) -> None:
        """Delete slots."""

    @property
    def has_others(self) -> bool:
        """Whether another owner that is alive uses this store."""
        return False

    # ─── the rules ───────────────────────────────────────────────────────────────────────────────

    def claim(
        self, intent: Intent, account: str, limit: RateLimit | None, longest_post: float
    ) -> Claim:
        """See `Journal.claim`."""
        row = self.get(intent.intent_id)
        superseded = self.resolved_row(intent.supersedes) if intent.supersedes is not None else None
        holder = None
        if row is not None:
            # The next POST of a RESTING intent; but it may have been accepted by a callback.
            row = self.resolved(row)
            is_ours = row.owner == self.me and row.state in PENDING
            if not is_ours or row.task_id is not None:
                return Standing(row, same=True)
        else:
            if superseded is not None and superseded.state not in _SUPERSEDABLE:
                return Standing(superseded, same=True)
            if superseded is not None:
                wait = self._post_may_come_until(superseded, account) - self.now()
                if wait > 0:
                    return Busy(wait)
            if intent.key is not None:
                holder = self._resolved_holder(intent.scope, intent.key)
            if (
                holder is not None
                and holder.state is not State.REFUSED
                and holder.intent_id != intent.supersedes
            ):
                return Standing(holder, self.is_same(holder, intent.fingerprint))
        taken = self._take_slot(intent.intent_id, account, limit, longest_post)
        if isinstance(taken, Busy):
            return taken
        if row is not None:
            self.update(row, moved(row, State.SENDING, now=self.today()))
            return taken
        if holder is not None:
            self.update(holder, attrs.evolve(holder, holds_key=False))
        if superseded is not None:
            superseded = self._existing(superseded.intent_id)
            self.update(superseded, moved(superseded, State.SUPERSEDED, now=self.today()))
        has_key = intent.key is not None
        self.insert(attrs.evolve(intent, owner=self.me, holds_key=has_key), account)
        return taken

    def _post_may_come_until(self, row: Intent, account: str) -> float:
        """When no POST of an intent can be on its way any more, on the store's clock.

        The owner of an orphan may only have stood still. It sends no POST whose claim is older than
        `STALE` seconds; see `Submitter`.
        """
        ends = [
            slot.started + STALE if slot.is_open else slot.ends_at
            for slot in self.slots(account)
            if slot.intent_id == row.intent_id and not self.is_alive(slot.owner)
        ]
        return max(ends, default=-math.inf)

    def _take_slot(
        self, intent_id: str, account: str, limit: RateLimit | None, longest_post: float
    ) -> Claimed | Busy:
        now = self.now()
        busy: list[Slot] = []
        over: list[str] = []
        for slot in self.slots(account):
            if slot.started > now:
                # Taken before a reboot that reset the clock: it ends now. That must be written, or
                # each later claim would find again that it ends now.
                kept = attrs.evolve(slot, started=now, ends_at=now)
                self.put_slot(kept, account)
            else:
                kept = slot
            # An open slot of this same intent is replaced by the new one.
            if kept.free_at <= now or (kept.is_open and kept.intent_id == intent_id):
                over.append(kept.slot)
            else:
                busy.append(kept)
        if limit is not None and not self._has_warned:
            smallest = min((slot.count for slot in busy if slot.count is not None), default=None)
            if smallest is not None and smallest < limit.count:
                self._has_warned = True
                _log.warning(
                    "clients with limits of %d and %d share an account: the smaller one holds",
                    smallest,
                    limit.count,
                )
        share = 0.0
        if busy and self.has_others:
            me = self.me
            share = sum(slot.owner == me for slot in busy) / len(busy)
        free = admit(self.account(account), busy, now, limit)
        if isinstance(free, Busy):
            for slot in busy:
                if slot.is_open and not self.is_alive(slot.owner):
                    # What its owner sent before it died arrives a little later.
                    ended = slot.ended(max(now + IN_FLIGHT, slot.started + STALE))
                    self.put_slot(ended, account)
            return attrs.evolve(free, share=share)
        self.drop_slots(over)
        slot = Slot(
            slot=secrets.token_hex(8),
            intent_id=intent_id,
            owner=self.me,
            count=limit.count if limit else None,
            per=limit.per if limit else WINDOW,
            started=now,
            ends_at=now + longest_post,
        )
        self.put_slot(slot, account)
        return Claimed(slot.slot, free - 1, share)

    def release(self, name: str, *, sent: bool, pause: float | None) -> None:
        """See `Journal.release`."""
        found = self.slot(name)
        if found is None:
            return  # it ended long ago and was deleted; the row can be claimed again as it is
        slot, account = found
        now = self.now()
        if not sent:
            self.drop_slots([name])
        elif slot.is_open:  # else an earlier attempt, whose answer was lost, has written the end
            self.put_slot(slot.ended(now), account)
        if pause is not None:
            self.set_account(account, self.account(account).after_429(now, pause, slot))
        row = self._existing(slot.intent_id)
        self.update(row, moved(row, State.RESTING, now=self.today()))

    def advance(
        self, intent_id: str, to: State | None, slot: str | None, changes: Changes
    ) -> Intent:
        """See `Journal.advance`."""
        row = self.resolved_row(intent_id)
        if slot is not None and (found := self.slot(slot)) is not None and found[0].is_open:
            self.put_slot(found[0].ended(self.now()), found[1])
        task_id = changes.get("task_id")
        if task_id is not None and task_id != row.task_id:
            other = self.task_holder(row.origin, task_id)
            if other is not None and other.intent_id != intent_id:
                # The task belongs to another intent, so the result of this POST is not known.
                to = State.UNKNOWN if row.state is State.SENDING else None
                changes = {**changes, "task_id": None}
        after = moved(row, to, now=self.today(), **changes)
        return self._moved_to(row, after)

    def _moved_to(self, before: Intent, after: Intent) -> Intent:
        """Write a move; if a resubmission is refused, restore the intent that it superseded.

        That intent may have been paid for, so it gets its key again.
        """
        self.update(before, after)
        name = after.supersedes if after.state is State.REFUSED is not before.state else None
        superseded = self.get(name) if name is not None else None
        if superseded is None:
            return after
        refused = attrs.evolve(after, holds_key=False)
        self.update(after, refused)
        gets_key = after.holds_key and after.key == superseded.key
        restored = attrs.evolve(superseded, holds_key=gets_key or superseded.holds_key)
        if superseded.state is State.SUPERSEDED:  # else its callback came meanwhile: it was bought
            has_failed = superseded.task_id is not None
            restored = attrs.evolve(
                restored,
                state=State.FAILED if has_failed else State.UNKNOWN,
                ended_at=superseded.ended_at if has_failed else None,
            )
        self.update(superseded, restored)
        return refused

    def is_orphan(self, row: Intent) -> bool:
        """Whether a row is PENDING and its owner is dead."""
        return row.state in PENDING and not self.is_alive(row.owner)

    def resolved(self, row: Intent) -> Intent:
        """The row; an orphan becomes UNKNOWN if it was being sent, else REFUSED."""
        if not self.is_orphan(row):
            return row
        to = State.UNKNOWN if row.state is State.SENDING else State.REFUSED
        return self._moved_to(row, moved(row, to, now=self.today()))

    def _existing(self, intent_id: str) -> Intent:
        row = self.get(intent_id)
        if row is None:
            raise JournalError(f"the journal has no intent {intent_id!r:.60}")
        return row

    def prune(self, before: float) -> int:
        """Prune some rows; return how many. See `Journal.prune`."""
        rows = self.prunable(before)
        for row in rows:
            self.forget(row, tombstone(row))
        return len(rows)

    def resolved_row(self, intent_id: str) -> Intent:
        """The row of an intent, resolved if it is an orphan.

        Raises:
            JournalError: the journal has no such intent.
        """
        return self.resolved(self._existing(intent_id))

    def _resolved_holder(self, scope: str, key: str) -> Intent | None:
        row = self.holder(scope, key)
        if row is None or not self.is_orphan(row):
            return row
        self.resolved(row)
        return self.holder(scope, key)  # it may have given the key back


def tombstone(row: Intent) -> Intent | None:
    """The row that replaces a pruned one so that its key stays spent; None if it needs none."""
    if not row.holds_key or row.state is State.REFUSED:
        return None
    return attrs.evolve(
        row,
        state=State.EXPIRED if row.state in BOUGHT else row.state,
        request=None,
        details=None,
        token_hash=None,
        metadata={},
        other_task_ids=(),
        ended_at=None,
        taken=True,
        supersedes=None,
        owner="",
    )
