"""`TaskHandle`: the awaitable for one task."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from types import EllipsisType, MappingProxyType
from typing import Never

import attrs

from ._session import Session
from ._tracking.schedule import Kind
from ._tracking.verdict import kind_of
from ._wire.protocol import AnotherTask, failure
from ._wire.records import details_of
from ._wire.tokens import has_foreign_token
from .errors import (
    InvalidRequestError,
    JournalError,
    MidAPIError,
    SubmissionUnknown,
    TaskExpired,
    TaskNotFound,
    about,
    naming,
    shown,
)
from .journal import Intent, State
from .requests import Request
from .tasks import TaskDetails, TaskStatus

# If another task of a TaskGroup fails in the turn of the loop in which a wait returns, the group
# cancels the caller in the next turn; in nested groups, one turn later for each.
_CANCEL_TURNS = 4
_CLOCK_STEP = 5.0  # seconds by which a clock that is kept in time may be set back
_NO_METADATA: Mapping[str, str] = MappingProxyType({})


@attrs.define(eq=False, repr=False, kw_only=True, on_setattr=attrs.setters.frozen)
class TaskHandle:
    """One task: await it for its result.

    Attributes:
        task_id: MidAPI's id of the task.
        request: what was asked for; None if only the task id is known.
        key: your own name for the request, or None.
        metadata: your own notes, as you gave them to ``generate``.
        intent_id: the id of its submission in the journal; None if only the task id is known.
        submitted_at: when MidAPI accepted the task; aware, UTC; None if that is not known.
        replayed: whether the key had been used before, so that this call bought nothing.
    """

    task_id: str
    request: Request | None = None
    key: str | None = None
    metadata: Mapping[str, str] = _NO_METADATA
    intent_id: str | None = None
    submitted_at: datetime | None = None
    replayed: bool = False
    _session: Session
    _kind: Kind | None = None
    _since: float | None = None
    _token_hash: str | None = None
    _final: TaskDetails | None = attrs.field(default=None, on_setattr=attrs.setters.NO_OP)
    _is_recorded: bool = attrs.field(default=False, on_setattr=attrs.setters.NO_OP)

    def __repr__(self) -> str:
        key = f" key={self.key!r}" if self.key is not None else ""
        status = f" {self._final.status}" if self._final else ""
        return f"<TaskHandle {self.task_id}{key}{status}>"

    def __reduce__(self) -> Never:
        raise TypeError(
            "a handle cannot be copied or pickled: it belongs to an open client. Pass "
            "handle.task_id, and use client.task(task_id) there; values such as details can be"
        )

    @property
    def final(self) -> TaskDetails | None:
        """The final details if they are already known, else None; makes no request."""
        return self._final

    def __await__(self) -> Generator[object, None, TaskDetails]:
        """The same as ``wait()``."""
        return self.wait().__await__()

    async def wait(
        self, timeout: float | EllipsisType | None = ..., **misnamed: Never
    ) -> TaskDetails:
        """Wait until the task has succeeded; return its details.

        If a wait is cancelled or times out, the task goes on; wait again at any time.

        Args:
            timeout: seconds from now; None waits without a limit; left out, ``Timeouts.wait``
                counted from the acceptance of the task, but until one look was answered, or looks
                have failed for 30 s.
            **misnamed: refused with an error that names the right argument.

        Raises:
            WaitTimeout: it was not finished in time.
            SubmissionUnknown: its record belongs to another submission: the answer to the POST was
                not MidAPI's answer to this one, and it cannot be known what was bought.
            TaskFailed: it failed; `PromptRejected` if moderation rejected its prompt or picture.
            TaskNotFound: MidAPI has not known it for two minutes.
            TaskExpired: the same, and it is older than the 15 days for which MidAPI keeps results.
            ProtocolError: its record could not be read for two minutes, in at least five looks.
            ResultMissing: it succeeded, and its record has shown no file for two minutes.
            AuthenticationError: MidAPI has refused the API key for two minutes, in at least five
                looks. The task goes on.
            ClientClosed: the client was closed.
        """
        with self._naming():
            refuse_misnamed(misnamed)
            deadline, details = deadline_of(timeout, self._session), self._final
        while details is None:
            with self._naming():
                self._session.check()
                tracker = self._session.tracker
                wait = tracker.join(
                    self.task_id,
                    kind=self._kind,
                    since=self._since,
                    deadline=deadline,
                    patience=self._session.timeouts.wait if timeout is ... else None,
                    token_hash=self._token_hash,
                    key=self.key,
                    intent_id=self.intent_id,
                )
            try:
                details = await wait
            except AnotherTask:
                if self._token_hash is not None:
                    raise await self._disown() from None
                # It is not the task of another intent, which was waited for, too. This one has no
                # intent, or one whose callback URL is the user's: it waits again.
            except MidAPIError as error:
                # `_naming` around the wait would take memory for each of thousands of waits.
                about(error, key=self.key, intent_id=self.intent_id)
                if isinstance(error, TaskNotFound) and await self._is_expired():
                    names = {"key": self.key, "intent_id": self.intent_id}
                    raise about(TaskExpired(self.task_id), **names) from None
                raise
            finally:
                tracker.leave(wait)
            self._final = details
        if not self._is_recorded and not self._session.is_over:
            self._is_recorded = True
            # Without a task (another runner of coroutines) nothing is counted: `int()` is 0.
            cancels: Callable[[], int] = getattr(asyncio.current_task(), "cancelling", int)
            self._session.recorder.writes.start(self._hand_over(details, cancels, cancels()))
        if details.status is TaskStatus.FAILED:
            raise about(failure(details), key=self.key, intent_id=self.intent_id)
        return details

    def _naming(self) -> AbstractContextManager[None]:
        return naming(key=self.key, intent_id=self.intent_id, task_id=self.task_id)

    async def _disown(self) -> SubmissionUnknown:
        with self._naming():
            return await self._session.outcomes.disown(self.intent_id or "", self.task_id)

    async def _is_expired(self) -> bool:
        """Whether a task that MidAPI does not know is so old that MidAPI has deleted it."""
        session, age = self._session, math.inf
        if self._since is not None:
            age = (session.clock.time() - self._since) / session.clock.scale
        date = session.api.date
        with suppress(JournalError):  # without the journal, it is only not found
            return await session.recorder.expire(self.task_id, self.intent_id, date, age)
        return False

    async def _hand_over(
        self, details: TaskDetails, cancels: Callable[[], int], before: int
    ) -> None:
        """Record that a wait has returned these details; runs in the background.

        So it is written only after the caller has continued. If the wait awaited the write, the
        caller could be cancelled or killed in between: the result would count as taken although the
        caller never got it. This way a result may be returned twice, but is never lost.

        Args:
            details: what the wait has returned.
            cancels: how often its caller has been cancelled.
            before: how often that was when the wait returned.
        """
        recorder = self._session.recorder
        for _ in range(_CANCEL_TURNS):
            await asyncio.sleep(0)
            if cancels() > before:
                self._is_recorded = False  # the caller did not get it
        taken = recorder.takes_at_once and self._is_recorded
        await recorder.try_to_write(self.task_id, self.intent_id, details, taken=taken)

    async def details(self, max_age: float = 0.0) -> TaskDetails:
        """What is known of the task, whatever its state; as ``MidAPIClient.details``.

        Args:
            max_age: seconds for which details that are not final, or a failed look, are valid.

        Raises:
            InvalidRequestError: ``max_age`` is not a number, or is negative.
            TaskNotFound: MidAPI does not know it, or not yet.
            SubmissionUnknown: as in ``wait``.
            MidAPIError: the look failed.
        """
        with self._naming():
            max_age = check_seconds(max_age, "max_age", least=0.0)
            self._session.check()
            if self._final is not None:
                return self._final
            found = await self._session.seen.find(self.task_id, max_age)
        if isinstance(found, TaskDetails):
            details = found
        elif has_foreign_token(found.params.get("callBackUrl"), self._token_hash):
            raise await self._disown()
        else:
            details = details_of(found)
        if details.is_final:
            self._final = details
        return details

    async def ack(self) -> None:
        """Mark the result as taken, so that ``resume`` leaves the task out from now on.

        With ``ack="auto"`` a finished wait does this by itself.
        """
        with self._naming():
            self._session.check()
            recorder = self._session.recorder
            row = await recorder.row_of(self.task_id, self.intent_id)
            self._session.check()  # a journal that was closed meanwhile would be opened again
            if row is not None:
                # The result, too: the journal may have been away when the task became final.
                await recorder.write(self.task_id, row.intent_id, self._final, taken=True)


def refuse_misnamed(misnamed: Mapping[str, object]) -> None:
    """Refuse unknown arguments of a call that has a `timeout`.

    Raises:
        InvalidRequestError: there is any.
    """
    if misnamed:
        problem = "is not an argument here; seconds to wait are called timeout="
        raise InvalidRequestError(dict.fromkeys(misnamed, problem))


def check_seconds(value: object, name: str, *, least: float = -math.inf) -> float:
    """A number of seconds as a finite float.

    Args:
        value: what the user gave.
        name: of the argument, for the error.
        least: the smallest number that is allowed; without one, the argument may be None.

    Raises:
        InvalidRequestError: it is not a number, or too small.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= least:
        largest = sys.float_info.max  # an int may be too large for a float
        return float(max(-largest, min(value, largest)))
    rule = "or None" if least < 0 else f"{least:g} or more"
    raise InvalidRequestError({name: f"must be a number of seconds, {rule}; got {shown(value)}"})


def deadline_of(
    timeout: float | EllipsisType | None, session: Session, name: str = "timeout"
) -> float | None:
    """When a timeout passes, on the client's clock; None without a limit, or if it was left out.

    Raises:
        InvalidRequestError: it is not a number; the error uses the name of the argument.
    """
    if timeout is None or isinstance(timeout, EllipsisType):
        return None
    return session.clock.time() + check_seconds(timeout, name)


def handle_of(row: Intent, session: Session, *, replayed: bool = False) -> TaskHandle:
    """The handle of an accepted intent."""
    if row.task_id is None or row.accepted_at is None:
        error = JournalError(f"intent {row.intent_id} is {row.state} and names no task")
        raise about(error, key=row.key, intent_id=row.intent_id)
    kind, since = plan_of(row, session)
    return TaskHandle(
        task_id=row.task_id,
        request=row.request,
        key=row.key,
        metadata=row.metadata,
        intent_id=row.intent_id,
        submitted_at=datetime.fromtimestamp(row.accepted_at, UTC),
        replayed=replayed,
        session=session,
        kind=kind,
        since=since,
        token_hash=row.token_hash,
        final=row.details,
        is_recorded=row.taken,
    )


def plan_of(row: Intent, session: Session) -> tuple[Kind | None, float | None]:
    """For the plan of the looks: the kind of an intent's task, and when MidAPI accepted it.

    None for what is not known; without a time, a wait begins with a look.
    """
    age = time.time() - (row.accepted_at or 0.0)
    # After a callback, or a final look, it may be finished. If the wall clock was moved back
    # meanwhile, it is not known how old the task is. Any other mistake of that clock is corrected
    # by the first look.
    may_be_final = row.state is not State.ACCEPTED or age < -_CLOCK_STEP
    since = None if may_be_final else session.clock.time() - max(0.0, age) * session.clock.scale
    return kind_of(row.request) if row.request is not None else None, since
