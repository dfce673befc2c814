"""What became of accepted intents: the journal is told what was seen and handed over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .._runtime.background import OwnedTasks
from ..errors import JournalError
from ..journal import Experience, State
from ..tasks import TaskDetails, TaskStatus

if TYPE_CHECKING:
    from ..journal import Journal, Kind

_log = logging.getLogger("midapi_async")


class Outcomes:
    """Writes final states, and that results are taken.

    Args:
        journal: where the intents live.
        origin: of the service that the tasks are at.
        takes_at_once: whether a result is taken when a wait has handed it over.
    """

    def __init__(self, journal: Journal, *, origin: str, takes_at_once: bool) -> None:
        self._journal = journal
        self._origin = origin
        self._takes_at_once = takes_at_once
        self._writes = OwnedTasks()

    def hand_over(self, task_id: str, intent_id: str | None, details: TaskDetails) -> None:
        """A wait is about to return these details.

        Written behind its back, and begun only after the caller has gone on: an await between this
        and the return could be cancelled, or the process be killed before the caller's next line,
        and the result would count as taken though nobody got it. So it may be given again.
        """
        final = State.FAILED if details.status is TaskStatus.FAILED else State.SUCCEEDED
        self._writes.start(self._write(task_id, intent_id, final, taken=self._takes_at_once))

    def keep_duration(self, kind: Kind, seconds: float) -> None:
        """A task of this kind took so long; a journal that can, keeps it for the next process."""
        if isinstance(self._journal, Experience):
            self._writes.start(self._keep(self._journal, kind, seconds))

    async def _keep(self, experience: Experience, kind: Kind, seconds: float) -> None:
        try:
            await experience.learn(self._origin, kind, seconds)
        except JournalError:
            _log.debug("the journal did not take that a task took %.0f s", seconds, exc_info=True)

    async def take(self, task_id: str, intent_id: str | None) -> None:
        """The user has what is needed of a result; return when that is safe."""
        await self._write(task_id, intent_id, None, taken=True)

    async def _write(
        self, task_id: str, intent_id: str | None, final: State | None, *, taken: bool
    ) -> None:
        if intent_id is None:
            row = await self._journal.find(task_id=task_id)
            if row is None:
                return  # a task of somebody else: nothing of it is remembered here
            intent_id = row.intent_id
        await self._journal.advance(intent_id, final, taken=taken)

    async def settle(self) -> None:
        """Wait until what was handed over so far is written."""
        await self._writes.settle()

    async def aclose(self, patience: float) -> None:
        """Give what is still to be written so many seconds of the loop."""
        await self._writes.finish(patience)
