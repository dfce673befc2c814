"""MidAPI's endpoints, one method each: build the call, send it, read the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..config import Settings, Timeouts
from ..errors import TaskNotFound
from ..tasks import TaskDetails
from .json import dumps
from .protocol import DOWNLOAD_URL, RECORD_INFO, Answer, Call, read_credits, read_look, read_url
from .records import Record, details_of
from .transport import Transport


class Api:
    """MidAPI's endpoints for one account. Nothing here is sent twice.

    Args:
        transport: sends the calls.
        settings: has the path of the credits.
        timeouts: how long a call may take.

    Attributes:
        looks: how many looks were made.
    """

    def __init__(self, transport: Transport, settings: Settings, timeouts: Timeouts) -> None:
        self._transport = transport
        self._credit_path = settings.credit_path
        self._timeouts = timeouts
        self.looks = 0

    def submit(self, call: Call, confirm: Callable[[], Awaitable[object]]) -> Awaitable[Answer]:
        """Send a POST that costs money; return the answer unread. See `Transport.call`."""
        return self._transport.call(call, self._timeouts.submit, confirm)

    async def look(self, task_id: str) -> Record | None:
        """One GET of a task's record; None while MidAPI does not know the task."""
        self.looks += 1
        answer = await self._ask(Call("GET", f"{RECORD_INFO}?taskId={task_id}"))
        return read_look(answer, task_id)

    async def details(self, task_id: str) -> TaskDetails:
        """One look, as the public snapshot.

        Raises:
            TaskNotFound: MidAPI does not know the task, or not yet.
        """
        if (record := await self.look(task_id)) is None:
            raise TaskNotFound(task_id)
        return details_of(record)

    async def credits(self) -> float:
        """The credits that the account has left."""
        return read_credits(await self._ask(Call("GET", self._credit_path)))

    async def download_url(self, url: str) -> str:
        """A link to a result that opens without a key, for 20 minutes."""
        return read_url(await self._ask(Call("POST", DOWNLOAD_URL, dumps({"url": url}))))

    def _ask(self, call: Call) -> Awaitable[Answer]:
        return self._transport.call(call, self._timeouts.look)
