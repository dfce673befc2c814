"""Logs when looks fail and when they are answered again: one warning for any number of tasks."""

from __future__ import annotations

import logging
import math

from .._runtime.clock import Clock
from ..errors import MidAPIError
from .waits import TrackedTask

_log = logging.getLogger("midapi_async.tracking")

IN_A_ROW = 3  # failed looks before a warning
# Seconds between two warnings: about the looks of all tasks, and about those of one task.
WARN_AGAIN, WARN_OF_TASK_AGAIN = 600.0, 60.0


class FailureLog:
    """Counts failed looks in a row, of all tasks together and of each task.

    Args:
        clock: the client's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Looks that failed since the last answered one. Looks that were under way at the same time
        # show one moment of a fault, so together they add only one to the length.
        self._failed = self._length = 0
        self._since = self._failed_at = -math.inf
        self._first: TrackedTask | None = None
        self._is_of_several = False  # whether they were looks at several tasks
        # Warnings whose end has not been logged yet: about all looks, and about one task; and from
        # when the next warning of each kind may come.
        self._has_warned = False
        self._warned_of: TrackedTask | None = None
        self._warns_from = self._warns_of_task_from = -math.inf

    def answered(self, task: TrackedTask) -> None:
        """A look was answered, whatever the answer says about the task."""
        now, over = self._clock.time(), "%s answered again; %d have failed in %.0f s"
        if self._has_warned:
            _log.info(over, "looks are", self._failed, now - self._since)
        elif task is self._warned_of:
            seconds = now - task.failing_since
            _log.info(over, f"looks at task {task.task_id} are", task.failed_looks, seconds)
            self._warned_of = None
        task.failed_looks, task.failure = 0, None
        self._failed = self._length = 0
        self._has_warned = self._is_of_several = False
        self._first = None

    def failed(self, task: TrackedTask, error: MidAPIError, *, concerns_task: bool) -> None:
        """A look has failed, or its answer is an error that is about the task."""
        task.failure = error
        _without_frames(error)
        if concerns_task:  # it ends the waits if it stays the same
            return
        now = self._clock.time()
        if not task.failed_looks:
            task.failing_since = now
        if not self._failed:
            self._since, self._first = now, task
        task.failed_looks, self._failed = task.failed_looks + 1, self._failed + 1
        self._is_of_several |= task is not self._first
        if task.look_began > self._failed_at:
            self._length, self._failed_at = self._length + 1, now
        if self._has_warned:
            return
        if self._is_of_several and self._length >= IN_A_ROW:
            if self._warned_of is not None and self._warned_of.failing_since >= self._since:
                self._has_warned, self._warned_of = True, None  # already warned for that task
            elif now >= self._warns_from:
                self._has_warned, self._warns_from = True, now + WARN_AGAIN
                self._warn("%d looks in a row have failed, the last one at", self._failed, task)
        elif (
            task.failed_looks >= IN_A_ROW
            and not task.has_warned
            and now >= max(self._warns_from, self._warns_of_task_from)
        ):
            self._warned_of, self._warns_of_task_from = task, now + WARN_OF_TASK_AGAIN
            task.has_warned = True
            self._warn("%d looks in a row have failed at", task.failed_looks, task)

    def _warn(self, what: str, count: int, task: TrackedTask) -> None:
        text = f"{what} task %s: %s Waits go on until they time out, and looks become rarer."
        _log.warning(text, count, task.task_id, task.failure)


def _without_frames(error: BaseException | None) -> None:
    """Remove the tracebacks of a stored error, because their frames hold whole answers."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
