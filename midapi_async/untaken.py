"""``client.untaken()``: each task that is not taken, as it becomes final.

`_find` reads the journal again and again; it puts the rows of final tasks into a queue, and for
each other task it starts `_follow`, which does so when the task is final. Both run in tasks of the
session and end with it. The iterator takes a row from the queue, and checks it once more.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Self, TypeAlias

import attrs

from ._runtime.background import OwnedTasks
from ._session import Session
from .errors import ClientClosed, JournalError, MidAPIError, TaskFailed
from .handle import TaskHandle, handle_of
from .journal import BOUGHT, Intent

Ready: TypeAlias = "asyncio.Queue[Intent | None]"  # None at the end
_log = logging.getLogger("midapi_async.tracking")

PAGE = 500  # rows that are read at once
MOST_FOLLOWED = 10_000  # tasks; more are followed when these have ended
# Seconds between two scans of the journal, and after an error of the journal.
SCAN_INTERVAL = 1.0
# The pause after a page is at least so many times as long as reading it, since a scan of 100,000
# rows takes seconds of the journal's thread.
PAGE_PAUSE = 20.0
TAKE_OVER_INTERVAL = 30.0  # seconds between two looks for tasks of processes that have ended
FOLLOW_AGAIN = 900.0  # seconds, after an error that is not the end of the task


class Untaken:
    """An iterator over the tasks of a client's namespace that are not taken, as they become final.

    It ends when the client is closed, or stops waiting. Several tasks may share it.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ready: Ready = asyncio.Queue()
        # Begins with the iteration. It does not refer to `self`, which may be freed before its end.
        self._finder: asyncio.Task[None] | None = None
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TaskHandle:
        session, ready = self._session, self._ready
        if self._finder is None and not (self._is_closed or session.is_stopped):
            self._finder = session.iterations.start(_find(session, ready), context=Context())
            self._finder.add_done_callback(lambda _: ready.put_nowait(None))
        while self._finder is not None and not self._finder.done():
            row = await ready.get()
            try:
                # If somebody else in this client waits for it, too, their result counts as taken.
                await asyncio.sleep(0)
                session.recorder.retry()
                await session.recorder.writes.join()
                if row is None or session.is_stopped:
                    ready.put_nowait(None)  # for the next caller
                    break
                names, write = (row.task_id or "", row.intent_id), session.recorder.write
                with suppress(JournalError):  # then it is yielded as it was found
                    row = await write(*names, row.details, taken=False) or row
            except asyncio.CancelledError:
                ready.put_nowait(row)
                raise
            finally:
                ready.task_done()
            if row.state in BOUGHT and not row.taken:
                return handle_of(row, session)
        if self._finder is not None and self._finder.done() and not self._finder.cancelled():
            self._finder.result()  # it ends by itself only with an exception
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration, and follow its tasks no longer."""
        self._is_closed = True
        if self._finder is not None:
            self._finder.cancel()
            await asyncio.wait({self._finder})

    def __del__(self) -> None:
        if self._finder is not None:
            with suppress(RuntimeError):  # the event loop was closed
                self._session.loop.call_soon_threadsafe(self._finder.cancel)


async def _find(session: Session, ready: Ready) -> None:
    """Put the row of each task that is not taken into the queue, once, when the task is final."""
    clock, journal, scope = session.clock, session.journal, session.scope
    read = partial(journal.rows, scope, states=sorted(BOUGHT), taken=False, mine=True, limit=PAGE)
    known: set[str] = set()  # ids of tasks that are followed, or were put into the queue
    found: set[str] = set()  # ids of all tasks that this scan has read
    after: str | None = None  # the last row that it has read
    take_over_at, has_failed = 0.0, False
    followers = OwnedTasks()
    try:
        while True:
            await ready.join()  # read no page before somebody has asked for the last one
            began = clock.time()
            try:
                if began >= take_over_at:
                    await journal.take_over(scope)
                    take_over_at = began + TAKE_OVER_INTERVAL
                page = await read(after=after)
            except JournalError as error:
                if not has_failed:
                    _log.warning("untaken tasks cannot be read, trying again: %s", error)
                has_failed = True
                await asyncio.sleep(SCAN_INTERVAL / clock.scale)
                continue
            has_failed, pause = False, PAGE_PAUSE * (clock.time() - began)
            for row in page:
                task_id = row.task_id or ""
                found.add(task_id)
                if task_id in known:
                    continue
                if row.details is not None:
                    ready.put_nowait(row)
                elif len(followers) < MOST_FOLLOWED:
                    followers.start(_follow(session, row, ready, known), context=Context())
                else:
                    continue
                known.add(task_id)
            after = page[-1].intent_id if page else None
            if not page:  # the end of a scan: forget the tasks that were taken, or pruned
                known &= found
                found.clear()
                pause = max(pause, SCAN_INTERVAL)
            await asyncio.sleep(pause / clock.scale)
    finally:
        await followers.finish()


async def _follow(session: Session, row: Intent, ready: Ready, known: set[str]) -> None:
    """Put a row into the queue when its task is final; make it unknown if it has no result."""
    # Awaiting the handle of a taken task does not take its result.
    handle = handle_of(attrs.evolve(row, taken=True), session)
    try:
        with suppress(TaskFailed):
            await handle.wait(timeout=None)
        ready.put_nowait(attrs.evolve(row, details=handle.final))
    except ClientClosed:
        pass
    except MidAPIError as error:
        _log.warning(
            "untaken task %s has no result; if it is not over, it is followed again in %.0f "
            "minutes: %s",
            *(handle.task_id, FOLLOW_AGAIN / 60, error),
        )
        await asyncio.sleep(FOLLOW_AGAIN / session.clock.scale)
        known.discard(handle.task_id)
