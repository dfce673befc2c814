"""``client.untaken()``: each task that is not taken, as it becomes final.

One page of the journal is read at a time, and only ids are kept. A task that is not final yet has a
future at the tracker. There are no background tasks, so an iteration that is not continued costs
nothing but the looks of the tracker, and those end when the object is closed or freed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Self

from ._session import Session
from ._tracking.waits import Wait
from ._wire.protocol import AnotherTask
from .errors import ClientClosed, JournalError, MidAPIError
from .events import Accepted, CalledBack, Event
from .handle import TaskHandle, handle_of, plan_of
from .intents import rows_of
from .journal import BOUGHT, Intent, Journal

_log = logging.getLogger("midapi_async.tracking")

MOST_FOLLOWED = 10_000  # tasks; more are followed when these have ended
MOST_NEW = 10_000  # task ids that events have named; if there are more, the next scan finds them
# Seconds between two scans of the journal, for tasks that no event of this client has named: those
# that another process has left behind, or that the user has adopted. A scan of 100,000 rows takes
# seconds of the journal's thread, so the pause is also at least 50 times as long as the scan.
SCAN_INTERVAL, SCAN_PAUSE = 30.0, 50.0
FOLLOW_AGAIN = 900.0  # seconds, after an error that is not the end of the task
RETRY = 1.0  # seconds, after an error of the journal


class Untaken:
    """An iterator over the tasks of a client's namespace that are not taken, as they become final.

    It ends when the client is closed, or stops waiting.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = asyncio.Lock()  # several tasks may share the iterator
        self._is_closed = False
        # Task ids: final ones of the page that was read last; those that events have named; and
        # those that were yielded or will be, with the number of the last scan that found them.
        self._found: deque[str] = deque()
        self._new: dict[str, None] = {}
        self._yielded: dict[str, int] = {}
        # The tasks that are followed, with their intents; those of them that have ended; and those
        # that ended with an error that is not final, with the time from which to follow them again.
        self._waits: dict[str, tuple[Wait, str]] = {}
        self._ended: deque[str] = deque()
        self._again: dict[str, float] = {}
        self._scan = 0  # the number of the scan
        self._scan_at = -math.inf  # when the next scan begins; infinite during a scan
        self._scan_took = 0.0
        self._after: str | None = None  # the last row of the scan
        self._wake = asyncio.Event()
        self._has_failed = False
        # Neither this nor the futures' callbacks may refer to `self`, which could not be freed.
        self._listener = partial(_heard, self._new, self._wake)
        session.listeners.add(self._listener)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskHandle:
        async with self._lock:
            while not (self._is_closed or self._session.is_stopped):
                self._wake.clear()
                try:
                    row = await self._next()
                    self._has_failed, pause = False, self._scan_at - self._session.clock.time()
                except ClientClosed:
                    break
                except JournalError as error:
                    row, pause = None, RETRY
                    if not self._has_failed:
                        _log.warning("untaken tasks cannot be read, trying again: %s", error)
                    self._has_failed = True
                if row is not None:
                    return handle_of(row, self._session)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, pause) / self._session.clock.scale):
                        await self._wake.wait()
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration, and follow its tasks no longer."""
        self._is_closed = True
        self._wake.set()
        _leave(self._session, self._listener, self._waits)

    def __del__(self) -> None:
        if not self._is_closed:
            leave = partial(_leave, self._session, self._listener, self._waits)
            with suppress(RuntimeError):  # the loop was closed
                self._session.loop.call_soon_threadsafe(leave)

    # ─── the next task ───────────────────────────────────────────────────────────────────────────

    async def _next(self) -> Intent | None:
        """The row of the next task to yield; None if there is none now.

        If this is cancelled, nothing is lost: what it works on is removed only after the last
        `await`.
        """
        while True:
            row = None
            if self._ended:
                task_id = self._ended[0]
                row = await self._end(task_id, *self._waits[task_id])
                self._ended.popleft()
                del self._waits[task_id]
            elif self._found:
                task_id = self._found[0]
                row = next(iter(await self._rows(task_ids=[task_id])), None)
                self._found.popleft()
            elif new := [each for each in self._new if each not in self._waits][:500]:
                for new_row in await self._rows(task_ids=new):
                    self._add(new_row)
                for task_id in new:
                    del self._new[task_id]
            elif self._scan_at <= self._session.clock.time() or self._scan_at == math.inf:
                await self._read_page()
            else:
                self._new.clear()
                return None
            if row is not None and row.task_id is not None:
                self._yielded[row.task_id] = self._scan
                return row

    async def _rows(self, after: str | None = None, task_ids: list[str] | None = None)
