"""What is known of a task that somebody waits for, and what a look's answer makes of it.

No timers and no futures are touched here: the tracker asks, and acts on the answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from . import _codec
from ._schedule import Kind
from .errors import MidAPIError, ResultMissing, TaskNotFound
from .tasks import TaskDetails, TaskStatus

if TYPE_CHECKING:
    from ._clock import Clock
    from ._codec import Found, Record

_log = logging.getLogger("midapi_async")

GRACE, GRACE_LOOKS = 120.0, 5  # before an unknown task, or a success without files, is an error
OLDEST = 3600.0  # seconds; a running task that seems older shows the service's clock, not its age

# Makes an error of its own for each waiter of a task, from the task's id.
Failure = Callable[[str], MidAPIError]


@attrs.define(eq=False, slots=True, weakref_slot=False)
class Notes:
    """What is noted of a task only when it happens."""

    hints: int = 0  # how often a hint moved its look
    hinted_at: float = -math.inf  # the last time that a hint moved a look to
    odd_since: float | None = None  # when it was first unknown, or first without files
    odd_looks: int = 0
    faults: int = 0  # looks that failed, in a row
    overdue: list[asyncio.Future[TaskDetails]] = attrs.field(factory=list)  # end with the next look


@attrs.define(eq=False, slots=True, weakref_slot=False)
class Tracked:
    """One task that somebody waits for, or did a moment ago. There may be 100,000 of them."""

    task_id: str
    number: int  # tells it from others that are due at the same moment
    kind: Kind
    since: float  # when MidAPI took it
    awaited_since: float
    due: float = math.inf  # when it is looked at next; -inf while it waits for its turn
    begun_at: float = -math.inf  # when the last look began
    looked_at: float = -math.inf  # when it ended
    is_looking: bool = False
    is_urgent: bool = False  # its look was moved by a hint
    is_hinted: bool = False  # a hint came while it was looked at
    is_seen: bool = False  # MidAPI has shown its record
    is_of_unknown_age: bool = False
    has_callback: bool = False  # MidAPI was told to call us back
    was_called_back: bool = False
    waiters: list[asyncio.Future[TaskDetails]] = attrs.field(factory=list)
    _notes: Notes | None = None

    @property
    def notes(self) -> Notes:
        """What was noted of it; made when it is first asked for."""
        if self._notes is None:
            self._notes = Notes()
        return self._notes

    @property
    def faults(self) -> int:
        """How many looks failed in a row."""
        return self._notes.faults if self._notes else 0

    def clear_faults(self) -> None:
        """A look was answered."""
        if self._notes:
            self._notes.faults = 0

    def take_overdue(self) -> list[asyncio.Future[TaskDetails]]:
        """The waiters whose time is up with the look that has just ended."""
        if self._notes is None or not self._notes.overdue:
            return []
        overdue, self._notes.overdue = self._notes.overdue, []
        return overdue


class Judge:
    """Reads what a look found.

    Args:
        clock: the client's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._odd_flags: set[int | None] = set()

    def verdict(self, task: Tracked, found: Found | None) -> TaskDetails | Failure | None:
        """The final details, the error that its waiters get, or None: it goes on."""
        if found is None:
            is_lost = not task.is_seen and self._is_out_of_grace(task)
            return TaskNotFound if is_lost else None
        record = found.record
        task.is_seen = True
        if task.is_of_unknown_age:
            self._note_age(task, record)
        _note_kind(task, record)
        self._tell_odd_flag(record)
        if record.status is TaskStatus.GENERATING:
            return None
        details = _codec.details_of(found)
        if details.is_final:
            return details
        if self._is_out_of_grace(task):
            return lambda task_id: ResultMissing(task_id, details)
        return None

    def _tell_odd_flag(self, record: Record) -> None:
        flag = record.success_flag
        if flag not in _codec.KNOWN_FLAGS and flag not in self._odd_flags:
            self._odd_flags.add(flag)
            _log.warning("successFlag %s is new; it is taken for generating", flag)

    def _note_age(self, task: Tracked, record: Record) -> None:
        """A task of which only the id was known may be older than our knowing it."""
        task.is_of_unknown_age = False
        if record.create_time is not None and self._clock.scale == 1.0:
            age = time.time() - record.create_time.timestamp()
            if 0 < age < OLDEST:
                task.since = min(task.since, self._clock.time() - age)

    def _is_out_of_grace(self, task: Tracked) -> bool:
        now, notes = self._clock.time(), task.notes
        notes.odd_since = now if notes.odd_since is None else notes.odd_since
        notes.odd_looks += 1
        return notes.odd_looks >= GRACE_LOOKS and now - notes.odd_since >= GRACE


def _note_kind(task: Tracked, record: Record) -> None:
    if record.task_type is None:
        return
    speed = record.params.get("speed")
    named = speed.casefold() if isinstance(speed, str) else task.kind[1]
    if (record.task_type, named) != task.kind:
        task.kind = (record.task_type, named)
