"""MidAPI's endpoints, one method each: build the call, send it, read the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from .._runtime.secret import clear_locals, clearing_locals
from ..config import Settings, Timeouts
from ..errors import MidAPIError, ProtocolError, about
from ..tasks import TaskStatus
from . import protocol
from .json import dumps
from .protocol import DOWNLOAD_URL, RECORD_INFO, AnotherTask, Answer, Call
from .records import Record
from .transport import Transport

T = TypeVar("T")


class Api:
    """MidAPI's endpoints for one account. Nothing here is sent twice.

    Args:
        transport: sends the calls.
        settings: has the path of the credits.
        timeouts: how long a call may take.

    Attributes:
        looks: how many looks were made.
        failed_looks: how many of them failed: no answer came, or an error, or none of MidAPI's.
        misdirected: how many of them were answered with the record of another task.
        unreadable_urls: how many URLs were left out of results, because they could not be read.
        date: the Date header of the last answer that said that MidAPI does not know a task.
    """

    def __init__(self, transport: Transport, settings: Settings, timeouts: Timeouts) -> None:
        self._transport = transport
        self._credit_path = settings.credit_path
        self._timeouts = timeouts
        self.looks = self.failed_looks = 0
        self.misdirected = 0
        self.unreadable_urls = 0
        self.date: str | None = None

    def submit(self, call: Call, confirm: Callable[[], Awaitable[object]]) -> Awaitable[Answer]:
        """Send a POST that costs money; return the answer unread. See `Transport.call`."""
        return self._transport.call(call, self._timeouts.submit, confirm)

    async def look(self, task_id: str) -> Record | None:
        """One GET of a task's record; None while MidAPI does not know the task.

        If the answer is about another task, one more GET goes out at once, over a new connection.
        """
        try:
            return await self._look(task_id)
        except AnotherTask:
            return await self._look(task_id)

    async def _look(self, task_id: str) -> Record | None:
        self.looks += 1
        call = Call("GET", f"{RECORD_INFO}?taskId={task_id}")
        answer: Answer | None = None
        # Not `_ask` and `naming`, which cost more: of looks there are many.
        try:
            answer = await self._transport.call(call, self._timeouts.look)
            record = protocol.read_look(answer, task_id)
        except MidAPIError as error:
            clear_locals(error)
            self.failed_looks += 1
            about(error, task_id=task_id)
            if answer is not None and isinstance(error, ProtocolError):
                self.misdirected += isinstance(error, AnotherTask)
                await self._transport.replace(answer)
            raise
        if record is None:
            self.date = answer.headers.get("Date")
        elif record.unreadable_urls and record.status is TaskStatus.SUCCEEDED:
            self.unreadable_urls += record.unreadable_urls
        return record

    async def credits(self) -> float:
        """The credits that the account has left."""
        return await self._ask(Call("GET", self._credit_path), protocol.read_credits)

    async def download_url(self, url: str) -> str:
        """A link to a result that opens without a key, for 20 minutes."""
        call = Call("POST", DOWNLOAD_URL, dumps({"url": url}))
        return await self._ask(call, protocol.read_url)

    async def _ask(self, call: Call, read: Callable[[Answer], T]) -> T:
        answer = await self._transport.call(call, self._timeouts.look)
        try:
            with clearing_locals():
                return read(answer)
        except ProtocolError:
            # It may answer another call: one that came twice shifts all later ones on a connection.
            await self._transport.replace(answer)
            raise
