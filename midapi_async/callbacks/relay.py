"""Hints that come by the journal: callbacks that another process of this machine has taken.

MidAPI's callback lands on any worker of a web application, and the one that takes it writes that
into the journal before it answers. Here the others hear of it. The journal is watched only while
somebody waits, and only the rows of the tasks that are waited for are read, many at once.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from contextvars import Context
from typing import TYPE_CHECKING

from .._runtime.background import OwnedTasks
from ..journal import TOLD

if TYPE_CHECKING:
    from .._tracking.tracker import Tracker
    from ..journal import Journal

_log = logging.getLogger("midapi_async")

SHORTEST_REST = 0.05  # seconds of the loop between two reads
LARGEST_SHARE = 0.1  # of the time that may be spent reading, however many tasks are waited for
TASKS_AT_ONCE = 500  # in one read, so that submissions need not wait long for the journal
TRY_AGAIN_AFTER = 1.0  # seconds, when the journal fails


class Relay:
    """Hints at the tasks that are waited for here and whose callbacks came elsewhere.

    Args:
        journal: shared with those that take callbacks.
        scope: which of its rows are the client's.
        tracker: gets the hints.
    """

    def __init__(self, *, journal: Journal, scope: str, tracker: Tracker) -> None:
        self._journal = journal
        self._scope = scope
        self._tracker = tracker
        self._hinted: set[str] = set()
        self._stirred = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._tasks = OwnedTasks()

    def __repr__(self) -> str:
        return f"<Relay {'watching' if self._watching else 'idle'}>"

    def open(self) -> None:
        """Watch the journal from now on, whenever somebody waits."""
        self._tracker.waits_changed = self._waits_changed

    def knows(self, task_id: str) -> None:
        """The tracker has had the hint of this task already."""
        if task_id in self._tracker.waited_for:
            self._hinted.add(task_id)

    def _waits_changed(self) -> None:
        is_waiting = bool(self._tracker.waited_for)
        if is_waiting and self._watching is None:
            self._watching = self._tasks.start(self._watch(), context=Context())
        elif is_waiting:
            self._stirred.set()
        elif self._watching is not None:
            self._watching.cancel()
            self._watching = None
            self._hinted.clear()

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(self._listen())
            both.create_task(self._read())

    async def _listen(self) -> None:
        while True:
            try:
                async with aclosing(self._journal.changes()) as changes:
                    async for _ in changes:
                        self._stirred.set()
            except Exception:  # noqa: BLE001 - whatever a journal raises, somebody still waits
                _log.exception("the journal cannot be watched; trying again")
            await asyncio.sleep(TRY_AGAIN_AFTER)

    async def _read(self) -> None:
        """Read at first, after each change and for whoever began to wait since; then rest."""
        time = asyncio.get_running_loop().time
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            begun = time()
            try:
                await self._hint()
            except Exception:  # noqa: BLE001 - whatever a journal raises, somebody still waits
                _log.exception("the journal cannot be read; trying again")
                self._stirred.set()
                await asyncio.sleep(TRY_AGAIN_AFTER)
            else:
                await asyncio.sleep(max(SHORTEST_REST, (time() - begun) / LARGEST_SHARE))

    async def _hint(self) -> None:
        self._hinted.intersection_update(self._tracker.waited_for)
        unheard = [each for each in self._tracker.waited_for if each not in self._hinted]
        for begin in range(0, len(unheard), TASKS_AT_ONCE):
            some = unheard[begin : begin + TASKS_AT_ONCE]
            for row in await self._journal.rows(self._scope, *TOLD, task_ids=some):
                task_id = row.task_id or ""
                if task_id in self._tracker.waited_for and task_id not in self._hinted:
                    self._hinted.add(task_id)
                    self._tracker.hint(task_id)

    async def aclose(self) -> None:
        """Watch no more."""
        self._tracker.waits_changed = None
        await self._tasks.finish()
