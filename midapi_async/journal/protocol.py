"""`Journal`: the interface of a store, tested by `midapi_async.journal.contract`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Protocol, TypeAlias, TypedDict, Unpack

import attrs

from ..config import RateLimit
from .states import Changes, Intent, State

DAY = 86_400.0  # seconds, of `JournalStats.last_day`


class RowFilter(TypedDict, total=False):
    """Which rows `Journal.rows` returns.

    Attributes:
        states: only rows in one of these states; empty for any.
        keys: only rows that hold one of these keys, so at most one for each key of a scope.
        task_ids: only rows with one of these task ids.
        key_prefix: only rows whose key begins with this.
        metadata: only rows with all of these notes.
        since: only rows written at this time or later, in epoch seconds.
        taken: True for only taken rows, False for only others.
        mine: True for only rows of this journal object in this event loop.
        after: the intent id of the last row of the previous page.
        limit: most rows in a page; 500 if left out.
    """

    states: Collection[State]
    keys: Collection[str] | None
    task_ids: Collection[str] | None
    key_prefix: str | None
    metadata: Mapping[str, str] | None
    since: float | None
    taken: bool | None
    mine: bool
    after: str | None
    limit: int


@attrs.frozen
class Claimed:
    """The intent is written and its POST may be sent now.

    Attributes:
        slot: the slot's id, for `Journal.release` or `Journal.advance`.
        free: how many more slots were free at that moment.
        share: the part of the account's busy slots that this owner holds, 0 to 1; 0 while no other
            owner uses the journal.
    """

    slot: str
    free: int
    share: float = 0.0


@attrs.frozen
class Standing:
    """Nothing was written: the key belongs to another row, or the row has moved on already.

    Attributes:
        intent: the row that has the key, or the intent's own row.
        same: whether it has the same request as the intent that was to be claimed.
    """

    intent: Intent
    same: bool


@attrs.frozen
class Busy:
    """Nothing was written: no slot is free.

    Attributes:
        retry_in: seconds until a slot may be free.
        share: as in `Claimed`.
    """

    retry_in: float
    share: float = 0.0


Claim: TypeAlias = Claimed | Standing | Busy


@attrs.frozen(kw_only=True)
class JournalStats:
    """What is in a journal.

    Attributes:
        counts: how many intents are in each state; states without intents are left out.
        last_day: the same, of the intents that were written in the last 24 hours.
        untaken: how many tasks were bought and are not taken, finished or not.
        oldest_open: when the oldest intent that is not over was written, in epoch seconds; None
            if all are over.
        oldest_task: when the oldest task whose end is not known was accepted, in epoch seconds;
            None if there is none.
        oldest_unknown: when the oldest unknown intent was written, in epoch seconds; None if there
            is none.
        spent_keys: how many keys of pruned intents are kept.
        owners: how many owners of rows are alive.
        size: bytes on the disk; 0 in memory.
    """

    counts: Mapping[State, int]
    last_day: Mapping[State, int]
    untaken: int
    oldest_open: float | None
    oldest_task: float | None
    oldest_unknown: float | None
    spent_keys: int
    owners: int
    size: int


class Journal(Protocol):
    """Stores intents, and the account's slots. Methods raise `JournalError` and nothing else.

    An owner is one journal object in one event loop. It is dead when its loop is closed, its
    journal is closed, or its process has ended. PENDING rows of dead owners are never returned:
    before such a row is read or claimed, SENDING becomes UNKNOWN and RESTING becomes REFUSED.

    Attributes:
        is_durable: whether rows outlive the process, and other processes may share them.
    """

    is_durable: bool

    async def claim(
        self, intent: Intent, account: str, limit: RateLimit | None, *, longest_post: float
    ) -> Claim:
        """Write an intent before money is spent and take a slot for its POST, in one transaction.

        An intent gets its key if the key is free, or belongs to a REFUSED intent, or to the intent
        that it supersedes; that one must be UNKNOWN or FAILED and becomes SUPERSEDED. If its owner
        died, this is `Busy` until 5 s after its claim: the owner may only stand still. An intent of
        this owner that is RESTING or SENDING and has no task id is claimed again for its next POST.

        A slot is busy until ``limit.per`` seconds after its POST has ended. The POST of an open
        slot counts as ended after ``longest_post`` seconds, or when its owner is dead. While
        clients with different limits share an account, the smallest count holds.

        Args:
            intent: what is about to be sent; its state is SENDING.
            account: a hash of the service's origin and the API key. Slots belong to it.
            limit: slots in a window, in the journal's seconds; None waits for no slot, but for the
                pause after a 429.
            longest_post: seconds that a POST can take.

        Returns:
            `Claimed` when the row is durable; else `Standing` or `Busy`, and nothing was written.
        """
        ...

    async def release(self, slot: str, *, sent: bool, pause: float | None = None) -> None:
        """End a POST that bought nothing; the intent becomes RESTING and can be claimed again.

        A slot ends once: a call that is repeated does not move its end.

        Args:
            slot: of `Claimed`.
            sent: False if MidAPI cannot have received the POST; then its slot is free at once.
            pause: after a 429, seconds for which the account gets no slot; then it has half as many
                slots as before, and one more for each window without a 429.
        """
        ...

    async def advance(
        self,
        intent_id: str,
        to: State | None = None,
        *,
        slot: str | None = None,
        **changes: Unpack[Changes],
    ) -> Intent:
        """Change an intent as far as `moved` allows; return when that is durable.

        A task id that belongs to another intent of the same origin is not accepted: a SENDING
        intent then becomes UNKNOWN, and any other does not change. If the intent becomes REFUSED,
        the intent that it superseded becomes UNKNOWN or FAILED again and gets its key back.

        Args:
            intent_id: which intent.
            to: the state to move to; None to stay.
            slot: the slot whose POST has ended with this.
            **changes: what else became known of the intent.

        Returns:
            The row as it is now, changed or not.
        """
        ...

    async def find(
        self,
        *,
        intent_id: str | None = None,
        token_hash: str | None = None,
        task_id: str | None = None,
        key: tuple[str, str] | None = None,
    ) -> Intent | None:
        """The row with this intent id, token, task id or (scope, key); exactly one must be given.

        A task id also finds a row that has it among its ``other_task_ids``.
        """
        ...

    async def rows(self, scope: str | None = None, **which: Unpack[RowFilter]) -> list[Intent]:
        """One page of rows, oldest first; pruned ones are left out.

        Args:
            scope: only of this scope; None for all.
            **which: see `RowFilter`.
        """
        ...

    async def take_over(self, scope: str) -> None:
        """Become the owner of the rows of a scope whose owners are dead."""
        ...

    def changes(self) -> AsyncGenerator[None, None]:
        """Yield at once, then whenever any process may have changed a row."""
        ...

    async def note(
        self,
        scope: str,
        kind: str,
        name: str,
        value: str | None = None,
        *,
        expires: float | None = None,
    ) -> None:
        """Store a small value; it replaces one with the same scope, kind and name.

        Args:
            scope: an origin, the scope of intents, or who writes it.
            kind: what it is about, as in "duration".
            name: its name, unique for a scope and kind.
            value: the value; None removes it.
            expires: when it is removed, in epoch seconds; None for never.
        """
        ...

    async def notes(self, scope: str, kind: str) -> Mapping[str, str]:
        """The values of a kind by name, without those that have expired."""
        ...

    async def prune(self, before: float) -> int:
        """Remove intents that were over before a time, or were accepted before it and never over.

        A key stays spent: an intent that has one and was not REFUSED is replaced by a row that is
        EXPIRED (or DISMISSED) and keeps only the key and the task id. UNKNOWN intents are kept.

        Args:
            before: epoch seconds.

        Returns:
            How many intents were removed.
        """
        ...

    async def check(self) -> Sequence[str]:
        """The problems of the store, one sentence each; empty if it is undamaged."""
        ...

    async def stats(self) -> JournalStats:
        """What is in the journal."""
        ...

    async def disown(self) -> None:
        """Make this owner dead, also while nothing can be written; the next use has a new owner.

        A client that could not write an outcome calls it when it closes: its SENDING rows are then
        UNKNOWN for others.
        """
        ...

    async def aclose(self) -> None:
        """Finish all writes and close the store; this owner is then dead.

        Close the clients that use it first: a POST that is still under way becomes UNKNOWN here,
        until its answer is written.
        """
        ...
