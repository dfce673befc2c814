"""Hints from the journal, about callbacks that another process has taken.

MidAPI's callback may reach any worker of a web application. That worker records it in the journal
before it answers, and the other workers learn about it here. The journal is watched only while
tasks are waited for, and only the rows of these tasks are read, many at once.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context

from .._runtime.background import OwnedTasks
from .._session import Session
from ..journal import BOUGHT, State

_log = logging.getLogger("midapi_async.callbacks")

PAGE = 500  # tasks in one read, so that a submission does not wait long for the journal
_SHORTEST_PAUSE = 0.05  # loop seconds between two reads
_LARGEST_SHARE = 0.1  # the part of the time that may be spent on reading
_RETRY_AFTER = 1.0  # loop seconds, after an error of the journal
# In these states a callback has come, or another process has seen the end of the task.
_CHANGED = BOUGHT - {State.ACCEPTED}


class Relay:
    """Gives the tracker hints about tasks whose callbacks other processes have taken."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tracker = session.tracker
        self._hinted: set[str] = set()  # tasks that need no more hints from here
        self._changed = asyncio.Event()  # set when the journal or the waits have changed
        self._reading: asyncio.Task[None] | None = None
        self._tasks = OwnedTasks()

    def open(self) -> None:
        """Watch the journal from now on, while tasks are waited for."""
        self._tracker.waits_changed = self._waits_changed

    async def aclose(self) -> None:
        """Stop watching."""
        self._tracker.waits_changed = None
        self._stop()
        await self._tasks.finish()

    def skip(self, task_id: str) -> None:
        """Give no hint about a task, because the tracker already has it."""
        if task_id in self._tracker.waited_for:
            self._hinted.add(task_id)

    def _waits_changed(self) -> None:
        if not self._tracker.waited_for:
            self._stop()
        elif self._reading is None:
            self._reading = self._tasks.start(self._read(), context=Context())
            self._session.watcher.add(self._changed.set)
        else:
            self._changed.set()

    def _stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
            self._session.watcher.remove(self._changed.set)
            self._hinted.clear()

    async def _read(self) -> None:
        """Read now and after each change, with pauses in between."""
        time = asyncio.get_running_loop().time
        while True:
            await self._changed.wait()
            self._changed.clear()
            started = time()
            try:
                await self._hint()
            except Exception:  # noqa: BLE001 - after any failure of the journal, try again
                _log.exception("Cannot read the journal; trying again")
                self._changed.set()
                await asyncio.sleep(_RETRY_AFTER)
            else:
                await asyncio.sleep(max(_SHORTEST_PAUSE, (time() - started) / _LARGEST_SHARE))

    async def _hint(self) -> None:
        waited_for = self._tracker.waited_for
        self._hinted.intersection_update(waited_for)
        candidates = [each for each in waited_for if each not in self._hinted]
        for begin in range(0, len(candidates), PAGE):
            page = candidates[begin : begin + PAGE]
            for row in await self._session.journal.rows(
                self._session.scope, states=_CHANGED, task_ids=page, limit=PAGE
            ):
                # Since the read began, the wait may have ended, or the callback may have come here.
                task_id = row.task_id or ""
                if task_id in waited_for and task_id not in self._hinted:
                    self._hinted.add(task_id)
                    self._tracker.hint(task_id)
