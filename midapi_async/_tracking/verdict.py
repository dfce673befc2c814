"""What is known of a task that somebody waits for, and what a look's answer makes of it.

No timers and no futures are touched here: the tracker asks, and acts on the answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import attrs

from .._wire.records import KNOWN_FLAGS, details_of
from ..errors import MidAPIError, ResultMissing, TaskNotFound
from ..tasks import TaskDetails, TaskStatus
from .schedule import Kind

if TYPE_CHECKING:
    from .._runtime.clock import Clock
    from .._wire.records import Record

_log = logging.getLogger("midapi_async")

GRACE, GRACE_LOOKS = 120.0, 5  # before an unknown task, or a success without files, is an error
OLDEST = 3600.0  # seconds; a running task that seems older shows the service's clock, not its age

NEW_KIND: Kind = ("mj_txt2img", "fast")  # of a task that nothing is known about

# Makes an error of its own for each waiter of a task, from the task's id.
Failure = Callable[[str], MidAPIError]


class Wait(asyncio.Future[TaskDetails]):
    """One who waits for a task's final details.

    A future with room for more, and not an object beside it, since 100,000 may wait.

    Attributes:
        task: for which task.
        deadline: when the wait ends without them.
        wants_look_since: a look that began since then has to end first; None for none.
    """

    __slots__ = ("deadline", "task", "wants_look_since")

    def __init__(self, task: Tracked, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.task = task
        self.deadline = math.inf
        self.wants_look_since: float | None = None


@attrs.define(eq=False, slots=True, weakref_slot=False)
class Notes:
    """What is noted of a task only when it happens."""

    hints: int = 0  # how often a hint moved its look
    hinted_at: float = -math.inf  # the last time that a hint moved a look to
    is_urgent: bool = False  # its look was moved by a hint
    is_hinted: bool = False  # a hint came while it was looked at
    was_called_back: bool = False  # since it was last seen generating
    quick_looks: int = 0  # that may follow soon, while a callback was not confirmed
    odd_since: float | None = None  # when it was first unknown, or first without files
    odd_looks: int = 0
    faults: int = 0  # looks that failed, in a row
    overdue: list[Wait] = attrs.field(factory=list)  # end with the next look


_NOTHING_NOTED = Notes()


@attrs.define(eq=False, slots=True, weakref_slot=False)
class Tracked:
    """One task that somebody waits for, or did a moment ago. There may be 100,000 of them."""

    task_id: str
    kind: Kind
    since: float  # when MidAPI took it
    called_since: float | None = None  # when the wait for its callback began; None if it has none
    queued: float = math.inf  # the moment of its place in the tracker's heap
    due: float = math.inf  # when it is looked at next; -inf while it waits for its turn
    begun_at: float = -math.inf  # when the last look began
    looked_at: float = -math.inf  # when it ended
    is_seen: bool = False  # MidAPI has shown its record
    is_of_unknown_age: bool = False
    deadline: float = math.inf  # no wait ends without a result before this
    _waits: Wait | dict[Wait, None] | None = None  # a dictionary only where several wait
    _notes: Notes | None = None

    def __lt__(self, other: Tracked) -> bool:
        """Of two that are due at the same moment, none is before the other."""
        return False

    @property
    def is_looking(self) -> bool:
        """Whether a look goes on."""
        return self.begun_at > self.looked_at

    @property
    def waits(self) -> tuple[Wait, ...]:
        """Everybody who waits for it."""
        if self._waits is None:
            return ()
        return (self._waits,) if isinstance(self._waits, Wait) else tuple(self._waits)

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits for it."""
        return bool(self._waits)

    def renew_deadline(self) -> None:
        """When the first wait ends without a result, of those that are left."""
        self.deadline = min((wait.deadline for wait in self.waits), default=math.inf)

    def add(self, wait: Wait) -> None:
        """One more waits for it."""
        self.deadline = min(self.deadline, wait.deadline)
        if not self._waits:
            self._waits = wait
        elif isinstance(self._waits, Wait):
            self._waits = {self._waits: None, wait: None}
        else:
            self._waits[wait] = None

    def remove(self, wait: Wait) -> None:
        """One waits no more, if it still did."""
        if self._waits is wait:
            self._waits, self.deadline = None, math.inf
        elif isinstance(self._waits, dict):
            self._waits.pop(wait, None)

    def take_waits(self) -> tuple[Wait, ...]:
        """Everybody who waits for it, and from now on nobody."""
        waits, self._waits, self.deadline = self.waits, None, math.inf
        return waits

    @property
    def notes(self) -> Notes:
        """What was noted of it, to note more."""
        if self._notes is None:
            self._notes = Notes()
        return self._notes

    @property
    def noted(self) -> Notes:
        """What was noted of it, to read."""
        return self._notes or _NOTHING_NOTED

    def clear_faults(self) -> None:
        """A look was answered."""
        if self._notes:
            self._notes.faults = 0

    def take_overdue(self) -> list[Wait]:
        """Those whose time is up with the look that has just ended."""
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

    def verdict(self, task: Tracked, record: Record | None) -> TaskDetails | Failure | None:
        """The final details, the error that its waiters get, or None: it goes on."""
        if record is None:
            is_lost = not task.is_seen and self._is_out_of_grace(task)
            return TaskNotFound if is_lost else None
        task.is_seen = True
        if task.is_of_unknown_age:
            self._note_age(task, record)
        if task.kind is NEW_KIND:
            _note_kind(task, record)
        self._tell_odd_flag(record)
        if record.status is TaskStatus.GENERATING:
            return None
        details = details_of(record)
        if details.is_final:
            return details
        if self._is_out_of_grace(task):
            return lambda task_id: ResultMissing(task_id, details)
        return None

    def _tell_odd_flag(self, record: Record) -> None:
        flag = record.success_flag
        if flag not in KNOWN_FLAGS and flag not in self._odd_flags:
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
    task.kind = _kind(record.task_type, "relaxed" if named == "relax" else named)


@lru_cache(maxsize=256)
def _kind(task_type: str, speed: str | None) -> Kind:
    """One and the same tuple for each of 100,000 tasks."""
    return task_type, speed
