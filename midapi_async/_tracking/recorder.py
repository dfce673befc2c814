"""Writes results into the journal: how a task ended, and that its result was taken."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress

import attrs

from .._runtime.background import OwnedTasks
from .._wire.protocol import server_time
from ..errors import JournalError
from ..journal import Intent, Journal, State
from ..tasks import TaskDetails, TaskStatus
from .schedule import REMEMBERED, Kind, Schedule

_log = logging.getLogger("midapi_async.journal")

RETENTION = 15 * 86_400.0  # seconds for which MidAPI keeps results
_MOST_UNWRITTEN = 10_000  # results
_DURATION = "duration"  # the kind of notes that hold how long tasks took


@attrs.define(eq=False, repr=False)
class ResultRecorder:
    """Writes final states, taken results, and how long tasks took.

    Args:
        journal: stores the intents.
        origin: the origin of the service's base URL.
        takes_at_once: see the attribute.
        schedule: learns how long tasks take.

    Attributes:
        takes_at_once: whether a result counts as taken when a wait has returned it.
        writes: those that are under way.
    """

    _journal: Journal
    _origin: str
    takes_at_once: bool
    _schedule: Schedule
    writes: OwnedTasks = attrs.field(factory=OwnedTasks, init=False)
    _new_durations: dict[Kind, list[float]] = attrs.field(factory=dict, init=False)
    _has_failed: bool = attrs.field(default=False, init=False)
    # What could not be written in the background, by task id, until a later write succeeds.
    _unwritten: dict[str, tuple[str | None, TaskDetails, bool]] = attrs.field(
        factory=dict, init=False
    )

    async def write(
        self,
        task_id: str,
        intent_id: str | None,
        details: TaskDetails | None = None,
        *,
        taken: bool,
    ) -> Intent | None:
        """Record a task's final details, if they are given, and whether its result was taken.

        Returns:
            The row as it is then; None if the task has no row here: it is of another program, or
            proved to be another submission's.
        """
        if intent_id is None or details is None:
            row = await self.row_of(task_id, intent_id)
            if row is None:
                return None
            intent_id = row.intent_id
        final = None
        if details is not None:
            final = State.FAILED if details.status is TaskStatus.FAILED else State.SUCCEEDED
        return await self._journal.advance(intent_id, final, details=details, taken=taken)

    async def try_to_write(
        self, task_id: str, intent_id: str | None, details: TaskDetails, *, taken: bool
    ) -> None:
        """As `write`, for the background: a journal that fails is logged, once until it works.

        What could not be written is written after the next one that could be, or by `retry`.
        """
        try:
            await self.write(task_id, intent_id, details, taken=taken)
        except JournalError as error:
            if not self._has_failed:
                _log.warning(
                    "results could not be recorded, and may be returned once more later: %s",
                    error,
                )
            self._has_failed = True
            if len(self._unwritten) < _MOST_UNWRITTEN:
                was_taken = self._unwritten.get(task_id, (None, None, False))[2]
                self._unwritten[task_id] = intent_id, details, taken or was_taken
        else:
            self._has_failed = False
            self.retry()

    def retry(self) -> None:
        """Begin to write what could not be written."""
        if self._unwritten:
            self.writes.start(self._write_rest())

    async def _write_rest(self) -> None:
        """Write what could not be written; one that fails again is given up until `resume()`."""
        with suppress(JournalError):
            while self._unwritten:
                task_id, (intent_id, details, taken) = self._unwritten.popitem()
                await self.write(task_id, intent_id, details, taken=taken)

    async def row_of(self, task_id: str, intent_id: str | None = None) -> Intent | None:
        """The row of a task of this service; None if there is none.

        Args:
            task_id: which task.
            intent_id: the intent that had it; by now it may have another one, or none.
        """
        find = self._journal.find
        row = await (find(intent_id=intent_id) if intent_id else find(task_id=task_id))
        is_its = row is not None and (row.task_id, row.origin) == (task_id, self._origin)
        return row if is_its else None

    async def expire(
        self, task_id: str, intent_id: str | None, server_date: str | None, age: float
    ) -> bool:
        """Record that MidAPI has deleted a task, if it is older than MidAPI keeps results.

        Any clock may be wrong, so the task must be that old by each of them: this machine's clock,
        the clock of MidAPI's server, and the caller's own measure.

        Args:
            task_id: which task.
            intent_id: its submission; None if that is not known.
            server_date: the Date header of MidAPI's last answer that did not know the task.
            age: seconds for which the caller has known it; infinite if that is not known.

        Returns:
            Whether it has expired.
        """
        row = await self.row_of(task_id, intent_id)
        server_now = server_time(server_date)
        if row is None or row.accepted_at is None or server_now is None:
            return False
        if min(age, min(time.time(), server_now) - row.accepted_at) < RETENTION:
            return False
        row = await self._journal.advance(row.intent_id, State.EXPIRED)
        return row.state is State.EXPIRED

    async def recall_durations(self) -> None:
        """Give the schedule the durations that earlier processes saw."""
        for name, value in (await self._journal.notes(self._origin, _DURATION)).items():
            task_type, _, speed = name.partition(" ")
            self._schedule.recall((task_type, speed or None), _durations(value))

    def learn(self, kind: Kind, seconds: float) -> None:
        """Tell the schedule how long a task of a kind took, and keep it for the next process."""
        if not self._schedule.learn(kind, seconds):
            return
        new = self._new_durations.setdefault(kind, [])
        new.append(round(seconds, 3))
        if len(new) == 1:  # else the write that waits for its turn takes this one along
            self.writes.start(self._keep(kind))

    async def _keep(self, kind: Kind) -> None:
        name = " ".join(filter(None, kind))
        try:
            notes = await self._journal.notes(self._origin, _DURATION)
            new = self._new_durations.pop(kind)
            value = json.dumps([*_durations(notes.get(name, "[]")), *new][-REMEMBERED:])
            await self._journal.note(self._origin, _DURATION, name, value)
        except JournalError:
            _log.debug("how long tasks took could not be written", exc_info=True)


def _durations(value: str) -> list[float]:
    try:
        return [float(seconds) for seconds in json.loads(value)]
    except (TypeError, ValueError):
        return []  # not written by us; the next write replaces it
