"""Hints from the journal, about callbacks that another process has taken.

MidAPI's callback may reach any worker of a web application. That worker records it in the journal
before it answers, and the other workers learn about it here. The journal is watched only while
tasks are waited for, and only the rows of these tasks are read, many at once.
"""

from __future__ import annotations

import asyncio
import logging

from .._session import Session
from ..journal import BOUGHT, State

_log = logging.getLogger("midapi_async.callbacks")

PAGE = 500  # tasks in one read, so that a submission does not wait long for the journal
_SHORTEST_PAUSE = 0.05  # loop seconds between two reads
_LARGEST_SHARE = 0.1  # the part of the time that may be spent on reading
_RETRY_AFTER = 1.0  # loop seconds, after an error of the journal
# In these states a callback has come, or another process has seen the end of the task.
_CHANGED = BOUGHT - {State.ACCEPTED}


async def relay_hints(session: Session) -> None:
    """Give the tracker one hint for each task that was called back, until this is cancelled.

    A task whose callback came to this process gets a second hint here, moments later, for which
    the tracker makes no further look.
    """
    time = asyncio.get_running_loop().time
    hinted: set[str] = set()  # tasks that are waited for and have got their hint
    changed = asyncio.Event()  # set when the journal or the waits have changed

    def waits_changed() -> None:
        if session.tracker.waited_for:
            session.watcher.add(changed.set)
        else:
            session.watcher.remove(changed.set)
            hinted.clear()

    session.tracker.waits_changed = waits_changed
    waits_changed()
    try:
        while True:
            await changed.wait()
            changed.clear()
            started = time()
            try:
                await _hint(session, hinted)
            except Exception:  # noqa: BLE001 - after any failure of the journal, try again
                _log.exception("Cannot read the journal; trying again")
                changed.set()
                await asyncio.sleep(_RETRY_AFTER)
            else:
                await asyncio.sleep(max(_SHORTEST_PAUSE, (time() - started) / _LARGEST_SHARE))
    finally:
        session.tracker.waits_changed = None
        session.watcher.remove(changed.set)


async def _hint(session: Session, hinted: set[str]) -> None:
    waited_for = session.tracker.waited_for
    hinted.intersection_update(waited_for)
    candidates = [each for each in waited_for if each not in hinted]
    for begin in range(0, len(candidates), PAGE):
        page = candidates[begin : begin + PAGE]
        for row in await session.journal.rows(
            session.scope, states=_CHANGED, task_ids=page, limit=PAGE
        ):
            task_id = row.task_id or ""
            if task_id in waited_for:  # the wait may have ended since the read began
                hinted.add(task_id)
                session.tracker.hint(task_id)
