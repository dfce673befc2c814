"""The awaitable for one task."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import datetime
from types import EllipsisType

import attrs

from ._protocol import failure
from ._schedule import Kind
from ._tracker import Tracker
from .errors import InvalidRequestError
from .requests import Request
from .tasks import TaskDetails, TaskStatus


@attrs.frozen(kw_only=True)
class Desk:
    """What a handle needs of its client.

    Attributes:
        tracker: tells when the task is final.
        look: one look at a task.
        hand_over: notes that the final details were seen, and that they are taken if they are.
        ack: notes that the result of a task is taken; returns when that is safe.
        now: the client's clock.
        patience: seconds from acceptance for which a wait goes on if it is not told; None for ever.
        last_look: seconds that a wait gets which begins after that, so that it looks once.
    """

    tracker: Tracker
    look: Callable[[str], Awaitable[TaskDetails]]
    hand_over: Callable[[TaskHandle, TaskDetails], None]
    ack: Callable[[TaskHandle], Awaitable[None]]
    now: Callable[[], float]
    patience: float | None
    last_look: float


@attrs.define(eq=False, kw_only=True)
class TaskHandle:
    """One task of yours: await it for its result.

    Attributes:
        task_id: MidAPI's name of the task.
        request: what was asked for; None if only the task id is known.
        key: your own name for it, or None.
        metadata: your own notes, as you gave them to ``generate``.
        intent_id: the journal's name of its submission; None if only the task id is known.
        submitted_at: when MidAPI's answer named the task; aware, UTC; None if not known.
    """

    task_id: str = attrs.field(on_setattr=attrs.setters.frozen)
    request: Request | None = attrs.field(default=None, repr=False)
    key: str | None = None
    metadata: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    intent_id: str | None = None
    submitted_at: datetime | None = None
    _desk: Desk = attrs.field(repr=False)
    _kind: Kind | None = attrs.field(default=None, repr=False)
    _since: float | None = attrs.field(default=None, repr=False)
    _final: TaskDetails | None = attrs.field(default=None, init=False, repr=False)

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
            self._final = await self._desk.tracker.wait(
                self.task_id, kind=self._kind, since=self._since, deadline=self._deadline(timeout)
            )
        self._desk.hand_over(self, self._final)
        if self._final.status is TaskStatus.FAILED:
            raise failure(self._final)
        return self._final

    def _deadline(self, timeout: float | EllipsisType | None) -> float | None:
        now = self._desk.now()
        if timeout is None or (isinstance(timeout, EllipsisType) and self._desk.patience is None):
            return None
        if isinstance(timeout, EllipsisType):
            since = now if self._since is None else self._since
            return max(since + (self._desk.patience or 0.0), now + self._desk.last_look)
        return now + check_seconds(timeout)

    async def details(self) -> TaskDetails:
        """One look at the task, whatever its state.

        Raises:
            TaskNotFound: MidAPI does not know it (yet).
            MidAPIError: the look failed.
        """
        return await self._desk.look(self.task_id)

    async def ack(self) -> None:
        """Say that you have what you need of the result; `resume` will not give it again.

        With ``ack="auto"`` a finished wait says so by itself.
        """
        await self._desk.ack(self)


def check_seconds(timeout: object) -> float:
    """A timeout that is a number.

    Raises:
        InvalidRequestError: it is none.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or math.isnan(timeout):
        raise InvalidRequestError({"timeout": f"must be a number or None, got {timeout!r}"})
    return timeout
