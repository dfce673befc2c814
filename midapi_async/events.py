"""The events that a client passes to ``MidAPIClient(on_event=…)``.

Each submission is `Queued`, then `Sent`, and once more `Queued` and `Sent` after each `Retrying`,
until it is `Accepted` or has `Failed`, or its callers have left or the client is closed. While
somebody waits for its task, the task is `Looked` at, and in the end it is `Finished` or has
`Failed`. `CalledBack` comes with each callback. Events of the same task are in this order; a
callback may overtake `Accepted`.

``str(event)`` is a sentence; the client logs it, too.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import ClassVar

import attrs

from .errors import MidAPIError
from .tasks import TaskDetails, TaskStatus

__all__ = [
    "Accepted",
    "CalledBack",
    "Event",
    "Failed",
    "Finished",
    "Looked",
    "Queued",
    "Retrying",
    "Sent",
]


def _now() -> datetime:
    return datetime.now(UTC)


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened to one submission or task.

    Attributes:
        at: when; aware, UTC.
        key: your own name for the request; None if it has none, or if only the task id is known.
        intent_id: the id of its submission; None if only the task id is known.
        task_id: MidAPI's id of the task; None until it was accepted.
    """

    at: datetime = attrs.field(factory=_now)
    key: str | None = None
    intent_id: str | None = None
    task_id: str | None = None

    logger: ClassVar[str] = "midapi_async"  # by which the client logs it, and at which level
    level: ClassVar[int] = logging.DEBUG

    @property
    def _name(self) -> str:
        name = f"Task {self.task_id}" if self.task_id else f"Submission {self.intent_id}"
        return name if self.key is None else f"{name} (key {self.key!r})"


@attrs.frozen(kw_only=True)
class Queued(Event):
    """A submission waits for a slot of the account's rate limit.

    Attributes:
        place: how many submissions of this process wait before it; 0 if it is the next one.
    """

    logger: ClassVar[str] = "midapi_async.gate"

    place: int

    def __str__(self) -> str:
        return f"{self._name} waits for a slot behind {self.place} others"


@attrs.frozen(kw_only=True)
class Sent(Event):
    """A submission got its slot, its row is in the journal, and its POST begins."""

    logger: ClassVar[str] = "midapi_async.submission"

    def __str__(self) -> str:
        return f"{self._name} is being sent"


@attrs.frozen(kw_only=True)
class Retrying(Event):
    """A POST certainly bought nothing; it is sent again.

    Attributes:
        reason: what was wrong, in words.
        delay: seconds until it is sent again.
        left: seconds after which there are no more retries; see ``RetryPolicy.give_up_after``.
    """

    logger: ClassVar[str] = "midapi_async.submission"
    level: ClassVar[int] = logging.WARNING

    reason: str
    delay: float
    left: float

    def __str__(self) -> str:
        return (
            f"{self._name} is sent again in {self.delay:.1f} s, with {self.left:.0f} s left: "
            f"{self.reason}"
        )


@attrs.frozen(kw_only=True)
class Accepted(Event):
    """MidAPI has accepted a submission: it is paid for, and its task is in the journal."""

    logger: ClassVar[str] = "midapi_async.submission"
    level: ClassVar[int] = logging.INFO

    def __str__(self) -> str:
        key = "" if self.key is None else f" (key {self.key!r})"
        return f"Submission {self.intent_id}{key} was accepted as task {self.task_id}"


@attrs.frozen(kw_only=True)
class Looked(Event):
    """A look at a task has ended.

    Attributes:
        status: what MidAPI has shown; None if the look failed, or MidAPI does not know the task.
        problem: why the look failed, in words; None if it was answered.
    """

    logger: ClassVar[str] = "midapi_async.tracking"

    status: TaskStatus | None = None
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"A look at {self._name[0].lower()}{self._name[1:]} failed: {self.problem}"
        return f"{self._name}: MidAPI shows {self.status or 'that it does not know it'}"


@attrs.frozen(kw_only=True)
class CalledBack(Event):
    """MidAPI's callback for a task has come to this process, and was accepted.

    Acknowledgements, and callbacks that other processes have taken, are no events.
    """

    logger: ClassVar[str] = "midapi_async.callbacks"

    def __str__(self) -> str:
        return f"{self._name} was called back"


@attrs.frozen(kw_only=True)
class Finished(Event):
    """A task that is waited for has succeeded.

    Attributes:
        details: its final details.
    """

    logger: ClassVar[str] = "midapi_async.tracking"
    level: ClassVar[int] = logging.INFO

    details: TaskDetails

    def __str__(self) -> str:
        return f"{self._name} succeeded with {len(self.details.urls)} files"


@attrs.frozen(kw_only=True)
class Failed(Event):
    """A submission was refused or is unknown, or a task that is waited for has no result.

    Attributes:
        error: what its callers get; `SubmissionUnknown` if it may have been bought.
    """

    logger: ClassVar[str] = "midapi_async.tracking"
    level: ClassVar[int] = logging.INFO

    error: MidAPIError

    def __str__(self) -> str:
        return f"{self._name} failed: {self.error}"
