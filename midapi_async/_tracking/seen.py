"""What is known of tasks without a new look: their last records, and the journal's rows."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from copy import copy
from typing import TypeAlias

import attrs

from .._runtime.background import OwnedTasks
from .._runtime.clock import Clock
from .._wire.records import Record
from .._wire.tokens import has_foreign_token
from ..errors import ClientClosed, JournalError, TaskNotFound
from ..tasks import TaskDetails, TaskStatus
from .recorder import ResultRecorder
from .verdict import read_answer

Found: TypeAlias = Record | TaskDetails | Exception

REMEMBERED = 300  # tasks; a record takes about 3 KB
FORGOTTEN_AFTER = 3600.0  # seconds after which a record is dropped


@attrs.define(eq=False, repr=False)
class Seen:
    """Remembers the last record of each task, and lets callers share a look.

    Args:
        look: one GET of a task's record; None while MidAPI does not know the task.
        recorder: reads and writes the final details in the journal.
        clock: the client's clock.
    """

    _look: Callable[[str], Awaitable[Record | None]]
    _recorder: ResultRecorder
    _clock: Clock
    # When each record came, by task id; the last one is the newest.
    _records: OrderedDict[str, tuple[float, Record]] = attrs.field(factory=OrderedDict, init=False)
    # When each look failed, and its error, by task id; a look that is answered removes it.
    _failures: OrderedDict[str, tuple[float, Exception]] = attrs.field(
        factory=OrderedDict, init=False
    )
    # The callers that wait for the same look, by task id.
    _shared: dict[str, list[asyncio.Future[Found]]] = attrs.field(factory=dict, init=False)
    _tasks: OwnedTasks = attrs.field(factory=OwnedTasks, init=False)

    async def look(self, task_id: str) -> Record | None:
        """One GET of a task's record, which is remembered; None while MidAPI does not know it."""
        record = await self._look(task_id)
        if record is not None:
            self._remember(record)
        return record

    def _remember(self, record: Record) -> None:
        now, before = self._clock.time(), self._records.pop(record.task_id, None)
        if before is not None and before[1].status is not TaskStatus.GENERATING is record.status:
            now, record = before  # a final state stays
        self._records[record.task_id] = now, record
        oldest, _ = next(iter(self._records.values()))
        if len(self._records) > REMEMBERED or now - oldest > FORGOTTEN_AFTER:
            self._records.popitem(last=False)

    async def find(self, task_id: str, max_age: float) -> Record | TaskDetails:
        """What is known of a task: by its last record, by the journal, or by a look.

        All who ask for a task at the same time share the look. It goes on if one of them is
        cancelled.

        Args:
            task_id: which task.
            max_age: for how many seconds a record that is not final is valid, and a failure, too.

        Raises:
            TaskNotFound: MidAPI does not know it.
            ClientClosed: the client was closed.
            MidAPIError: the look failed.
        """
        seen_at, record = self._records.get(task_id, (0.0, None))
        if record is not None:
            age = self._clock.time() - seen_at
            if age <= FORGOTTEN_AFTER and (age < max_age or final_in(record)):
                return record
        failed_at, failed = self._failures.get(task_id, (0.0, None))
        if failed is not None and self._clock.time() - failed_at < max_age:
            raise _copy(failed)
        own: asyncio.Future[Found] = self._clock.loop.create_future()
        asking = self._shared.setdefault(task_id, [])
        asking.append(own)
        if len(asking) == 1:
            # The first caller starts the look, in a task of its own, because any caller may be
            # cancelled. Callers wait for futures, which resume them one turn of the loop earlier
            # than waiting for the task would.
            work = self._answer(task_id, asking)
            self._tasks.start(work, context=Context(), eagerly=True)
        found = await own
        if not isinstance(found, Exception):
            return found
        raise _copy(found)

    async def _answer(self, task_id: str, asking: list[asyncio.Future[Found]]) -> None:
        """Find out about a task and give it to every caller that waits for that."""
        found: Found = ClientClosed(task_id)
        try:
            found = await self._find_out(task_id)
        except Exception as error:  # noqa: BLE001 - every caller gets it, even a bug
            found = error
        finally:
            self._shared.pop(task_id)
            self._failures.pop(task_id, None)
            if isinstance(found, Exception):
                self._failures[task_id] = self._clock.time(), _copy(found)
                if len(self._failures) > REMEMBERED:
                    self._failures.popitem(last=False)
            _resolve(asking, found)

    async def _find_out(self, task_id: str) -> Record | TaskDetails:
        """The final details in the journal, or else one look."""
        row = None
        with suppress(JournalError):  # the look shows it, too
            row = await self._recorder.row_of(task_id)
        if row is not None and row.details is not None:
            return row.details
        if (record := await self.look(task_id)) is None:
            raise TaskNotFound(task_id)
        if (
            row is not None
            and (details := final_in(record)) is not None
            and not has_foreign_token(record.params.get("callBackUrl"), row.token_hash)
        ):
            write = self._recorder.try_to_write(task_id, row.intent_id, details, taken=False)
            self._recorder.writes.start(write)
        return record

    async def aclose(self) -> None:
        """End the looks that are shared; their callers get `ClientClosed`."""
        await self._tasks.finish()
        for task_id, asking in self._shared.items():  # `_answer` was cancelled before it began
            _resolve(asking, ClientClosed(task_id))
        self._shared.clear()


def _copy(error: Exception) -> Exception:
    """A copy for one caller, because raising an error adds a traceback to it."""
    copied = copy(error)
    copied.__cause__ = error.__cause__
    return copied


def _resolve(asking: list[asyncio.Future[Found]], found: Found) -> None:
    for own in asking:
        if not own.done():  # else that caller was cancelled
            own.set_result(found)


def final_in(record: Record) -> TaskDetails | None:
    """The final details that a record shows; None if it shows none."""
    answer = read_answer(record, is_seen=True)
    return answer if isinstance(answer, TaskDetails) else None
