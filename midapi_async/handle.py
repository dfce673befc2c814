"""The awaitable for one task."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import UTC, datetime
from types import EllipsisType, MappingProxyType
from typing import TYPE_CHECKING, cast

import attrs

from ._runtime.clock import Clock
from ._tracking.recorder import Outcomes
from ._tracking.schedule import Kind
from ._tracking.tracker import Tracker
from ._wire.bodies import task_type
from ._wire.protocol import failure
from .errors import ClientClosed, InvalidRequestError, JournalError, shown
from .journal import TOLD
from .requests import Request
from .tasks import TaskDetails, TaskStatus

if TYPE_CHECKING:
    from ._tracking.verdict import Wait
    from .journal import Intent


@attrs.frozen(kw_only=True)
class Desk:
    """What a handle needs of its client.

    Attributes:
        tracker: tells when the task is final.
        look: one look at a task.
        outcomes: tells the journal what was handed over.
        clock: the client's clock.
        patience: seconds from acceptance for which a wait goes on if it is not told; None for ever.
        check: raises if the client is not open here.
    """

    tracker: Tracker
    look: Callable[[str], Awaitable[TaskDetails]]
    outcomes: Outcomes
    clock: Clock
    patience: float | None
    check: Callable[[], object]


_NO_METADATA: Mapping[str, str] = MappingProxyType({})


@attrs.define(eq=False, repr=False, kw_only=True, on_setattr=attrs.setters.NO_OP)
class TaskHandle:
    """One task of yours: await it for its result.

    Attributes:
        request: what was asked for; None if only the task id is known.
        key: your own name for it, or None.
        metadata: your own notes, as you gave them to ``generate``.
        intent_id: the journal's name of its submission; None if only the task id is known.
        submitted_at: when MidAPI's answer named the task; aware, UTC; None if not known.
    """

    _task_id: str
    request: Request | None = None
    key: str | None = None
    metadata: Mapping[str, str] = _NO_METADATA
    intent_id: str | None = None
    submitted_at: datetime | None = None
    _desk: Desk
    _kind: Kind | None = None
    _since: float | None = None
    _has_callback: bool = False
    _final: TaskDetails | None = attrs.field(default=None, init=False)

    def __repr__(self) -> str:
        key = f" key={self.key!r}" if self.key is not None else ""
        return f"<TaskHandle {self.task_id}{key} {self._final.status if self._final else ''}>"

    @property
    def task_id(self) -> str:
        """MidAPI's name of the task."""
        return self._task_id

    def __await__(self) -> Generator[object, None, TaskDetails]:
        """The same as ``wait()``."""
        return self.wait().__await__()

    async def wait(self, timeout: float | EllipsisType | None = ...) -> TaskDetails:
        """Wait until the task has succeeded; return its details.

        A wait that is cancelled or runs out never ends the task; wait again at any time.

        Args:
            timeout: seconds from now; None for ever; left out, ``Timeouts.wait`` counted from the
                acceptance of the task, and one look at least.

        Raises:
            WaitTimeout: it was not finished in time.
            TaskFailed: it failed; `PromptRejected` if its prompt or picture was found improper.
            TaskNotFound: MidAPI does not know it, also after a grace of two minutes.
            ResultMissing: it succeeded, and its record never showed a file.
            AuthenticationError: the API key was refused twice in a row.
            ClientClosed: the client was closed.
        """
        if self._final is None:
            wait = self._join(timeout)
            try:
                self._final = await wait
            finally:
                self._desk.tracker.leave(wait)
            self._desk.outcomes.hand_over(self.task_id, self.intent_id, self._final)
        if self._final.status is TaskStatus.FAILED:
            raise failure(self._final)
        return self._final

    def _join(self, timeout: float | EllipsisType | None) -> Wait:
        self._check()
        return self._desk.tracker.join(
            self.task_id,
            kind=self._kind,
            since=self._since,
            deadline=self._deadline(timeout),
            looks_once=timeout is ...,
            has_callback=self._has_callback,
        )

    def _deadline(self, timeout: float | EllipsisType | None) -> float | None:
        now = self._desk.clock.time()
        if timeout is None or (isinstance(timeout, EllipsisType) and self._desk.patience is None):
            return None
        if isinstance(timeout, EllipsisType):
            since = now if self._since is None else self._since
            return since + (self._desk.patience or 0.0)
        return now + check_seconds(timeout)

    async def details(self) -> TaskDetails:
        """One look at the task, whatever its state.

        Raises:
            TaskNotFound: MidAPI does not know it (yet).
            MidAPIError: the look failed.
        """
        self._check()
        return await self._desk.look(self.task_id)

    async def ack(self) -> None:
        """Say that you have what you need of the result; `resume` will not give it again.

        With ``ack="auto"`` a finished wait says so by itself.
        """
        self._check()
        await self._desk.outcomes.take(self.task_id, self.intent_id)

    def _check(self) -> None:
        try:
            self._desk.check()
        except ClientClosed:
            raise ClientClosed(self.task_id) from None


def check_seconds(timeout: object) -> float:
    """A timeout that is a number.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        seconds = float(timeout) if isinstance(timeout, int | float) else math.nan
    except OverflowError:
        seconds = math.inf if cast("int", timeout) > 0 else -math.inf
    if isinstance(timeout, bool) or math.isnan(seconds):
        raise InvalidRequestError({"timeout": f"must be a number or None, got {shown(timeout)}"})
    return seconds


def handle_of(row: Intent, desk: Desk) -> TaskHandle:
    """The handle of an accepted intent."""
    if row.task_id is None or row.accepted_at is None:
        raise JournalError(f"intent {row.intent_id} is {row.state} and names no task")
    age = max(0.0, time.time() - row.accepted_at) * desk.clock.scale
    is_over = row.state in TOLD  # then a wait need not wait to look
    return TaskHandle(
        task_id=row.task_id,
        request=row.request,
        key=row.key,
        metadata=row.metadata,
        intent_id=row.intent_id,
        submitted_at=datetime.fromtimestamp(row.accepted_at, UTC),
        desk=desk,
        kind=kind_of(row.request) if row.request is not None else None,
        since=None if is_over else desk.clock.time() - age,
        has_callback=row.token_hash is not None,
    )


def kind_of(request: Request) -> Kind:
    """The kind of task that a request makes, for the plan of looks."""
    return task_type(request), getattr(request, "speed", None)
