"""What the answer to a look means. Pure functions."""

from __future__ import annotations

from collections.abc import Callable

from .._wire.bodies import task_type
from .._wire.protocol import CLOCK_SKEW, server_time
from .._wire.records import Record, details_of
from ..errors import MidAPIError, ResultMissing, TaskNotFound
from ..requests import Request
from ..tasks import TaskDetails, TaskStatus
from .schedule import Kind
from .waits import DEFAULT_KIND

# Makes an error from a task's id. Each wait raises its own error object.
Failure = Callable[[str], MidAPIError]


def read_answer(record: Record | None, *, is_seen: bool) -> TaskDetails | Failure | None:
    """What an answer means for the waits for its task.

    Args:
        record: the answer; None if MidAPI does not know the task.
        is_seen: whether MidAPI has shown the task's record before.

    Returns:
        The final details; or the error that ends the waits if the answer stays like this for the
        grace period; or None while the task goes on.
    """
    if record is None:
        # MidAPI may not know a new task yet. A task that it has shown before cannot disappear, so
        # that answer is a temporary error.
        return None if is_seen else TaskNotFound
    if record.status is TaskStatus.GENERATING:
        return None
    details = details_of(record)
    if details.is_final:
        return details
    # A success whose record shows no file yet.
    return lambda task_id: ResultMissing(task_id, details)


def kind_of(request: Request | None) -> Kind:
    """The task type and speed of a request, by which the schedule learns when to look."""
    if request is None:
        return DEFAULT_KIND
    return task_type(request), getattr(request, "speed", None)


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
    if record.create_time is None or sent is None:
        return None
    age = sent - record.create_time.timestamp()
    return max(0.0, age) if age > -CLOCK_SKEW else None
