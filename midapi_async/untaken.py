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
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Self, TypeVar

from ._session import Session
from ._tracking.waits import TrackedTask, Wait
from ._wire.protocol import AnotherTask
from .errors import ClientClosed, JournalError, MidAPIError, TaskNotFound
from .events import Accepted, CalledBack, Event
from .handle import TaskHandle, handle_of, plan_of
from .journal import BOUGHT, Intent
from .tasks import TaskDetails

T = TypeVar("T")
_log = logging.getLogger("midapi_async.tracking")

PAGE = 500  # rows that are read at once
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
            if self._is_closed:
                return None
            if self._ended:
                task_id = self._ended[0]
                wait, intent_id = self._waits[task_id]
                row = await self._end(task_id, wait, intent_id)
                self._session.tracker.leave(wait)
                self._ended.popleft()
                self._waits.pop(task_id, None)  # closed meanwhile
            elif self._found:
                task_id = self._found[0]
                row = next(iter(await self._rows(task_ids=[task_id])), None)
                self._found.popleft()
            elif new := [each for each in self._new if each not in self._waits][:PAGE]:
                for new_row in await self._rows(task_ids=new):
                    self._add(new_row)
                for task_id in new:
                    self._new.pop(task_id, None)
            elif self._scan_at <= self._session.clock.time() or self._scan_at == math.inf:
                await self._read_page()
            else:
                self._new.clear()
                return None
            if row is not None and row.task_id is not None:
                self._yielded[row.task_id] = self._scan
                return row

    async def _rows(
        self, *, after: str | None = None, task_ids: list[str] | None = None
    ) -> list[Intent]:
        """Rows of this client's tasks that are not taken, finished or not; see `Journal.rows`."""
        rows = self._session.journal.rows(
            self._session.scope,
            states=sorted(BOUGHT),
            taken=False,
            mine=True,
            after=after,
            task_ids=task_ids,
            limit=PAGE,
        )
        return await self._use_journal(rows)

    async def _use_journal(self, work: Coroutine[object, object, T]) -> T:
        """Do something with the journal in a task that the client awaits before it closes it.

        Without that, the work's next step could open the journal again.
        """
        if self._is_closed or self._session.is_stopped:
            work.close()
            raise ClientClosed
        task = self._session.recorder.writes.start(_error_or(work), context=Context())
        await asyncio.wait({task})
        if task.cancelled():
            raise ClientClosed
        found = task.result()
        if isinstance(found, JournalError):
            raise found
        return found

    async def _read_page(self) -> None:
        """Read one page of a scan, or begin one, or end one after its last page."""
        clock, journal = self._session.clock, self._session.journal
        began = clock.time()
        if self._scan_at != math.inf:
            await self._use_journal(journal.take_over(self._session.scope))
            self._scan, self._scan_at, self._scan_took = self._scan + 1, math.inf, 0.0
        page = await self._rows(after=self._after)
        for row in page:
            self._add(row)
        now = clock.time()
        self._scan_took += now - began
        self._after = page[-1].intent_id if page else None
        if not page:
            self._scan_at = now + max(SCAN_INTERVAL, SCAN_PAUSE * self._scan_took)
            # The others have been taken, or were pruned.
            self._yielded = {name: of for name, of in self._yielded.items() if of == self._scan}
            self._again = {name: at for name, at in self._again.items() if at > now}

    def _add(self, row: Intent) -> None:
        """Yield a task soon if it is final, else follow it."""
        task_id, session = row.task_id, self._session
        assert task_id is not None  # noqa: S101 - its intent is bought
        if task_id in self._yielded:
            self._yielded[task_id] = self._scan
        elif task_id in self._waits or self._again.get(task_id, -math.inf) > session.clock.time():
            pass
        elif row.details is not None:
            self._yielded[task_id] = self._scan
            self._found.append(task_id)
        elif len(self._waits) < MOST_FOLLOWED:
            kind, since = plan_of(row, session)
            wait = session.tracker.join(
                task_id,
                kind=kind,
                since=since,
                deadline=None,
                token_hash=row.token_hash,
                key=row.key,
                intent_id=row.intent_id,
            )
            self._waits[task_id] = wait, row.intent_id
            wait.add_done_callback(partial(_has_ended, self._ended, self._wake, task_id))

    async def _end(self, task_id: str, wait: Wait, intent_id: str) -> Intent | None:
        """The row of a task that has ended; None if it is taken already, or has no result."""
        session = self._session
        try:
            details = wait.result()
        except ClientClosed:
            raise
        except AnotherTask:
            await self._use_journal(session.outcomes.disown(intent_id, task_id))
            return None
        except MidAPIError as error:
            if isinstance(error, TaskNotFound) and await self._is_expired(wait.task, intent_id):
                _log.warning("untaken task %s was never taken, and MidAPI has deleted it", task_id)
                return None
            _log.warning(
                "untaken task %s has no result for now, and is followed again in %.0f minutes: %s",
                *(task_id, FOLLOW_AGAIN / 60, error),
            )
            self._again[task_id] = session.clock.time() + FOLLOW_AGAIN
            return None
        # If somebody else in this client waits for the task, too, their result counts as taken.
        await asyncio.sleep(0)
        await session.recorder.writes.join()
        write = session.recorder.write(task_id, intent_id, details, taken=False)
        row = await self._use_journal(write)
        return row if row is not None and row.state in BOUGHT and not row.taken else None

    async def _is_expired(self, task: TrackedTask, intent_id: str) -> bool:
        """Whether a task that MidAPI does not know is so old that MidAPI has deleted it."""
        session, age = self._session, math.inf
        if not task.is_age_unknown:
            age = (session.clock.time() - task.accepted_at) / session.clock.scale
        expire = session.recorder.expire(task.task_id, intent_id, session.api.date, age)
        return await self._use_journal(expire)


async def _error_or(work: Awaitable[T]) -> T | JournalError:
    """What some work returns, or its error: the caller's, and not one of a background task."""
    try:
        return await work
    except JournalError as error:
        return error


def _heard(new: dict[str, None], wake: asyncio.Event, event: Event | None) -> None:
    """Hear of an event; None when the client stops waiting."""
    if isinstance(event, Accepted | CalledBack) and event.task_id is not None:
        if len(new) >= MOST_NEW:
            new.clear()
        new[event.task_id] = None
        wake.set()
    elif event is None:
        wake.set()


def _has_ended(
    ended: deque[str], wake: asyncio.Event, task_id: str, wait: asyncio.Future[TaskDetails]
) -> None:
    if not wait.cancelled():
        wait.exception()  # it may never be asked for
    ended.append(task_id)
    wake.set()


def _leave(
    session: Session,
    listener: Callable[[Event | None], object],
    waits: dict[str, tuple[Wait, str]],
) -> None:
    """Follow no task any more."""
    session.listeners.discard(listener)
    for wait, _ in waits.values():
        session.tracker.leave(wait)
    waits.clear()
