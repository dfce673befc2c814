"""What the answer to a look means. Pure functions."""

from __future__ import annotations

from collections.abc import Callable

from .._wire.bodies import task_type
from .._wire.protocol import CLOCK_SKEW, failed_details, failure, server_time
from .._wire.records import Record, details_of
from ..errors import (
    APIError,
    BadRequestError,
    GenerationFailedError,
    MidAPIError,
    ProtocolError,
    ResultMissing,
    TaskNotFound,
    UnprocessableError,
    about,
)
from ..requests import Request
from ..tasks import TaskDetails, TaskStatus
from .schedule import Kind
from .waits import DEFAULT_KIND

# Makes an error from a task's id. Each wait raises its own error object.
Failure = Callable[[str], MidAPIError]


# An answer that ends the waits only if it stays the same: what it says, and how they end then.
Doubtful = tuple[str, TaskDetails | Failure]


def read_answer(record: Record | None, *, is_seen: bool) -> TaskDetails | Doubtful | None:
    """What an answer means for the waits for its task.

    Args:
        record: the answer; None if MidAPI does not know the task.
        is_seen: whether MidAPI has shown the task's record before.

    Returns:
        The final details; or how the waits end if the answer stays the same for the grace period;
        or None while the task goes on.
    """
    if record is None:
        # MidAPI may not know a new task yet. A task that it has shown before cannot disappear, so
        # that answer is a temporary error.
        return None if is_seen else ("not found", TaskNotFound)
    if record.status is TaskStatus.GENERATING:
        return None
    details = details_of(record)
    if details.is_final:
        return details
    # A success whose record shows no file yet.
    return "no files", lambda task_id: ResultMissing(task_id, details)


def read_error(task_id: str, error: MidAPIError) -> Doubtful | None:
    """What an error in answer to a look means; None if it says nothing about the task.

    Network errors, pages that MidAPI did not write, and MidAPI's errors that concern every task say
    nothing about it. `AnotherTask` does not come here.
    """
    if isinstance(error, APIError) and error.own_envelope:
        # No record comes with these codes, so they may be the answer to another look.
        details = failed_details(task_id, error)
        if isinstance(error, GenerationFailedError):
            return "501", details
        if isinstance(error, BadRequestError | UnprocessableError):
            return str(error.code), lambda _: failure(details)
    if isinstance(error, ProtocolError):
        path, problem = error.path, error.problem
        if path not in {"body", "status"}:  # a page, a redirect, or a body that was cut short
            return path, lambda task_id: about(ProtocolError(path, problem), task_id=task_id)
    return None


def kind_of(request: Request | None) -> Kind:
    """The task type and speed of a request, by which the schedule learns when to look."""
    if request is None:
        return DEFAULT_KIND
    speed = request.extra.get("speed", getattr(request, "speed", None))
    return task_type(request), speed if isinstance(speed, str) else None


def kind_in(record: Record) -> Kind | None:
    """The type and speed of a task according to its record; None if it has no type."""
    if record.task_type is None:
        return None
    speed = record.params.get("speed")
    speed = speed.casefold() if isinstance(speed, str) else DEFAULT_KIND[1]
    return record.task_type, "relaxed" if speed == "relax" else speed


def age_of(record: Record) -> float | None:
    """How old a task was when its record was sent, in seconds, by the clock of MidAPI's server."""
    sent = server_time(record.shown_at)
    if record.created is None or sent is None:
        return None
    age = sent - record.created
    return max(0.0, age) if age > -CLOCK_SKEW else None
