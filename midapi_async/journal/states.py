"""The states of an intent, and the moves between them. Pure: every journal uses `moved`.

    SENDING ──► ACCEPTED ──► CALLED_BACK ──► SUCCEEDED | FAILED    final, with the details
       │ ▲         └──────────────┼────────► EXPIRED               MidAPI does not know it any more
       │ │                        └────────► UNKNOWN               the task is another submission's
       ▼ │
    RESTING                           nothing was bought; it will be sent again
       │
       ├──► REFUSED                   proof that nothing was bought, and no more attempts
       └──► UNKNOWN (from SENDING)    it cannot be known whether it was accepted
               ├──► ACCEPTED          by its callback, settle() or adopt()
               ├──► SUPERSEDED        resubmit(): a new intent takes over the key, and gives it
               │                      back when it is refused
               └──► DISMISSED         by the user

An ACCEPTED or CALLED_BACK intent whose task proves to be another submission's becomes UNKNOWN and
has no task any more (`Changes.foreign`; no other move leads there). REFUSED, RESTING and SUPERSEDED
become ACCEPTED when a callback with the intent's token proves it. A FAILED intent can be
SUPERSEDED, too. When the new intent is REFUSED, the superseded one is UNKNOWN or FAILED again, and
has its key again.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypedDict, Unpack

import attrs

from ..requests import Request
from ..tasks import TaskDetails


class State(StrEnum):
    """The state of an intent.

    Attributes:
        SENDING: its POST is under way, or is about to be sent.
        RESTING: its POST bought nothing, and will be sent again.
        REFUSED: certainly nothing was bought, and it is not sent again; its key is free.
        ACCEPTED: MidAPI has accepted it: it is paid for, and its task is known.
        CALLED_BACK: the same, and a callback for its task has come.
        UNKNOWN: it cannot be known whether MidAPI accepted it. This does not change until a
            callback comes or you decide: see `Intents`.
        SUPERSEDED: it was unknown or had failed, and a new intent has taken over its key.
        DISMISSED: it was unknown, and you have given it up; its key cannot be used again.
        SUCCEEDED: its task has a result.
        FAILED: its task has failed.
        EXPIRED: it was bought, and MidAPI does not know its task any more.
    """

    SENDING = "sending"
    RESTING = "resting"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    CALLED_BACK = "called_back"
    UNKNOWN = "unknown"
    SUPERSEDED = "superseded"
    DISMISSED = "dismissed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"


# A POST is under way, or will be sent again.
PENDING = frozenset({State.SENDING, State.RESTING})
# The task is known and may still be asked for.
BOUGHT = frozenset({State.ACCEPTED, State.CALLED_BACK, State.SUCCEEDED, State.FAILED})
# The task is known, and its end is not.
RUNNING = frozenset({State.ACCEPTED, State.CALLED_BACK})
# Nothing more is expected to happen to the intent; it is pruned some time after that.
OVER = frozenset(
    {
        State.REFUSED,
        State.SUPERSEDED,
        State.DISMISSED,
        State.SUCCEEDED,
        State.FAILED,
        State.EXPIRED,
    }
)

_NEXT: Mapping[State, frozenset[State]] = {
    State.SENDING: frozenset({State.RESTING, State.REFUSED, State.ACCEPTED, State.UNKNOWN}),
    State.RESTING: frozenset({State.SENDING, State.REFUSED, State.ACCEPTED}),
    State.REFUSED: frozenset({State.ACCEPTED}),
    State.UNKNOWN: frozenset({State.ACCEPTED, State.SUPERSEDED, State.DISMISSED}),
    State.SUPERSEDED: frozenset({State.ACCEPTED}),
    State.ACCEPTED: frozenset({State.CALLED_BACK, State.SUCCEEDED, State.FAILED, State.EXPIRED}),
    State.CALLED_BACK: frozenset({State.SUCCEEDED, State.FAILED, State.EXPIRED}),
    State.FAILED: frozenset({State.SUPERSEDED}),
}


@attrs.frozen(kw_only=True)
class Intent:
    """The journal's record of a request, written before the request is sent.

    Attributes:
        intent_id: its id, 32 hexadecimal digits.
        scope: the service's origin, a blank, and the namespace; keys are unique in it.
        request: what was asked for; None where prompts are not stored.
        fingerprint: a hash of the request, to compare requests with the same key; empty without a
            key.
        token_hash: the hash of the token in its callback URL; None if that URL is not ours.
        created_at: when it was written, in epoch seconds.
        key: the user's own name for it, or None.
        metadata: the user's own notes.
        state: its state.
        task_id: MidAPI's id of its task, once that is known.
        other_task_ids: further task ids that answers or callbacks named for the same token; each
            may have cost money.
        accepted_at: when its task id was written, in epoch seconds.
        ended_at: when it came into a state of `OVER`, in epoch seconds; None until then.
        details: the final details of its task, once they are known.
        taken: whether the user has taken its result.
        supersedes: the intent that this one replaced, or None.
        owner: the owner that submitted it or took it over, see `Journal`; in a folder the process
            id, a dash and a random name.
        holds_key: whether it holds its key; a REFUSED intent gives the key to the next one.
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
    ended_at: float | None = None
    details: TaskDetails | None = attrs.field(default=None, repr=False)
    taken: bool = False
    supersedes: str | None = None
    owner: str = ""
    holds_key: bool = False

    def is_prunable(self, before: float) -> bool:
        """Whether it ended before a time, or was accepted before it and its end was never seen."""
        ended_at = self.accepted_at if self.state in BOUGHT and not self.ended_at else self.ended_at
        return ended_at is not None and ended_at < before

    @property
    def process(self) -> int | None:
        """The process id of its owner; None if the owner's name has none."""
        number, dash, _ = self.owner.partition("-")
        return int(number) if dash and number.isdecimal() else None

    @property
    def host(self) -> str | None:
        """The name of its owner's host, in a journal of several machines; else None."""
        return self.owner.partition("-")[2].partition("-")[2] or None

    @property
    def origin(self) -> str:
        """The service that the intent is for; a task id is unique there."""
        return self.scope.partition(" ")[0]


class Changes(TypedDict, total=False):
    """What became known of an intent.

    Attributes:
        task_id: its task. A second one is stored in ``other_task_ids``.
        candidate: a task id that may be its task, without a proof.
        foreign: its task, or a candidate, that proves to be another submission's. Without its task
            the intent is UNKNOWN; the state needs no name then.
        details: the final details of its task. Nothing changes if they are another task's: the
            intent had that one before.
        taken: True when the user has taken its result.
    """

    task_id: str | None
    candidate: str | None
    foreign: str | None
    details: TaskDetails | None
    taken: bool


def moved(row: Intent, to: State | None = None, *, now: float, **what: Unpack[Changes]) -> Intent:
    """The row after a move, as far as it is allowed; the same object if nothing changes.

    Args:
        row: the row before.
        to: the state to move to; None to stay.
        now: epoch seconds.
        **what: what became known of it.
    """
    task_id, candidate, details = what.get("task_id"), what.get("candidate"), what.get("details")
    if row.task_id is not None and what.get("foreign") == row.task_id and row.state in BOUGHT:
        # Its POST got the answer to another request, or the user adopted a wrong task.
        return attrs.evolve(
            row,
            state=State.UNKNOWN,
            task_id=None,
            accepted_at=None,
            ended_at=None,
            details=None,
            taken=False,
        )
    if details is not None and details.task_id != row.task_id:
        return row  # of a task that proved to be another submission's, or was adopted wrongly
    changes: dict[str, object] = {}
    if to is not None and to in _NEXT.get(row.state, ()):
        changes["state"] = to
        if (to in OVER) != (row.state in OVER):
            changes["ended_at"] = now if to in OVER else None
    is_bought = changes.get("state", row.state) in BOUGHT
    others = list(row.other_task_ids)
    if task_id is not None and row.task_id is None and is_bought:
        changes |= {"task_id": task_id, "accepted_at": now}
        others = [each for each in others if each != task_id]
    elif task_id is not None and task_id not in (row.task_id, *others):
        others.append(task_id)
    if candidate is not None and candidate not in (row.task_id, *others):
        others.append(candidate)
    others = [each for each in others if each != what.get("foreign")]
    if tuple(others) != row.other_task_ids:
        changes["other_task_ids"] = tuple(others)
    if details is not None and row.details is None and is_bought:
        changes["details"] = details
    if what.get("taken") and not row.taken and is_bought:
        changes["taken"] = True
    return attrs.evolve(row, **changes) if changes else row  # type: ignore[arg-type]  # its fields
