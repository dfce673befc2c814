"""Where intents live: what was about to be bought, and what became of it.

    SENDING ──► ACCEPTED ──► SUCCEEDED | FAILED        the way it goes
       │           └► CALLED_BACK ─┘                   its callback came; the record is not read yet
       ├──────► REFUSED                                a proof that nothing was bought
       └──────► UNKNOWN ──► ACCEPTED                   its callback, settle(), adopt()
                   ├──────► SUPERSEDED ──► UNKNOWN     resubmit(): a new intent takes over the key,
                   │                                   and gives it back if it is refused
                   └──────► DISMISSED                  by the user

A REFUSED or SUPERSEDED intent whose callback comes after all becomes ACCEPTED: its token proves it.
A journal is anything with the seven methods of `Journal`; which moves are allowed is told by
`moved`, so that every journal agrees.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Any, Protocol, runtime_checkable

import attrs

from ..requests import Request

# Task type and speed, as MidAPI names them.
Kind = tuple[str, str | None]


class State(StrEnum):
    """Where an intent stands."""

    SENDING = "sending"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    CALLED_BACK = "called_back"
    UNKNOWN = "unknown"
    SUPERSEDED = "superseded"
    DISMISSED = "dismissed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


BOUGHT = frozenset({State.ACCEPTED, State.CALLED_BACK, State.SUCCEEDED, State.FAILED})
# A look finds more than when it was accepted.
TOLD = BOUGHT - {State.ACCEPTED}
_NEXT: Mapping[State, frozenset[State]] = {
    State.SENDING: frozenset({State.REFUSED, State.ACCEPTED, State.UNKNOWN}),
    State.REFUSED: frozenset({State.ACCEPTED}),
    State.UNKNOWN: frozenset({State.ACCEPTED, State.SUPERSEDED, State.DISMISSED}),
    State.SUPERSEDED: frozenset({State.ACCEPTED, State.UNKNOWN}),
    State.ACCEPTED: frozenset({State.CALLED_BACK, State.SUCCEEDED, State.FAILED}),
    State.CALLED_BACK: frozenset({State.SUCCEEDED, State.FAILED}),
}


@attrs.frozen(kw_only=True)
class Intent:
    """The record of a request that is about to cost money, or did.

    Attributes:
        intent_id: its name, 32 hexadecimal digits.
        scope: the account's origin and namespace; keys are unique in it.
        request: what was asked for; None where prompts are not stored.
        fingerprint: a hash of what was asked for, to compare by its key; empty without one.
        token_hash: the hash of the token in its callback URL; None if it has none of ours.
        created_at: when it was written, in epoch seconds.
        key: the user's own name for it, or None.
        metadata: the user's own notes.
        state: where it stands.
        task_id: MidAPI's name of its task, once that is known.
        other_task_ids: further tasks that answered to the same token; each may have cost money.
        accepted_at: when its task id was written, in epoch seconds.
        taken: whether its result was handed over.
        supersedes: the intent whose place this one took, or None.
    """

    intent_id: str
    scope: str
    request: Request | None
    fingerprint: str
    token_hash: str | None
    created_at: float
    key: str | None = None
    metadata: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    state: State = State.SENDING
    task_id: str | None = None
    other_task_ids: tuple[str, ...] = ()
    accepted_at: float | None = None
    taken: bool = False
    supersedes: str | None = None


_NAMES = tuple(field.name for field in attrs.fields(Intent))
_values = attrgetter(*_NAMES)


def _changed(row: Intent, changes: Mapping[str, object]) -> Intent:
    """What `attrs.evolve` does, in half its time: each submission pays for it."""
    values: dict[str, Any] = dict(zip(_NAMES, _values(row), strict=True))
    return Intent(**{**values, **changes})


def moved(row: Intent, to: State | None, task_id: str | None, now: float, *, taken: bool) -> Intent:
    """The row after an attempted move; the same one if that is not allowed or changes nothing.

    Args:
        row: what the journal holds.
        to: the state to move to; None to stay.
        task_id: the task that answers for it.
        now: epoch seconds.
        taken: whether its result is handed over with this.
    """
    changes: dict[str, object] = {}
    if to in _NEXT.get(row.state, frozenset()):
        changes["state"] = to
    if task_id is not None and row.task_id is None and (changes or row.state in BOUGHT):
        changes |= {"task_id": task_id, "accepted_at": now}
    elif task_id is not None and task_id not in (row.task_id, *row.other_task_ids):
        changes["other_task_ids"] = (*row.other_task_ids, task_id)
    if taken and not row.taken and row.state in BOUGHT:
        changes["taken"] = True
    return _changed(row, changes) if changes else row


@runtime_checkable
class Experience(Protocol):
    """What a journal may do besides: remember how long tasks took, for the plan of looks."""

    async def learn(self, origin: str, kind: Kind, seconds: float) -> None:
        """A task of this kind took so long, at the service with this origin."""
        ...

    async def durations(self, origin: str) -> Mapping[Kind, Sequence[float]]:
        """How many seconds the last tasks of each kind took, the newest last."""
        ...


class Journal(Protocol):
    """What a journal can do. Every method raises `JournalError` when it cannot."""

    async def claim(self, intent: Intent) -> Intent:
        """Write a new intent before money is spent; return when it is safe.

        The intent gets its key if nobody holds it, or if the holder is REFUSED or the intent that
        it supersedes. That one must be UNKNOWN and becomes SUPERSEDED. Otherwise nothing is
        written.

        Returns:
            This intent, or the row that stands in its way.
        """
        ...

    async def advance(
        self,
        intent_id: str,
        to: State | None = None,
        *,
        task_id: str | None = None,
        taken: bool = False,
    ) -> Intent:
        """Move an intent on, if the states allow it; return when that is safe.

        Moved to UNKNOWN, it has its key again if what superseded it holds that and was not bought.

        Returns:
            The row as it now is, moved or not.
        """
        ...

    async def find(
        self,
        *,
        intent_id: str | None = None,
        token_hash: str | None = None,
        task_id: str | None = None,
        key: tuple[str, str] | None = None,
        fingerprint: str | None = None,
    ) -> Intent | None:
        """The row with one of these names; a key stands with its scope before it.

        With ``fingerprint``, what the caller is about to ask for: a journal that does not store
        prompts has only a keyed hash of it, and shows this one in a row that stands for it.
        """
        ...

    async def take_over(self, scope: str) -> list[Intent]:
        """Make the rows of dead owners ours; what they were sending is UNKNOWN.

        Returns:
            Every row of ours that was bought and not taken yet, these included, oldest first.
        """
        ...

    async def rows(
        self, scope: str, *states: State, task_ids: Collection[str] | None = None
    ) -> list[Intent]:
        """The rows of a scope in these states, or in any, oldest first.

        With ``task_ids`` only those that answer for one of these tasks, which costs no more than
        there are such rows and tasks; then in any order.
        """
        ...

    def changes(self) -> AsyncGenerator[None, None]:
        """Yields at once, then whenever a row may have changed, whoever changed it."""
        ...

    async def aclose(self) -> None:
        """Sync what is left and let go of everything."""
        ...
