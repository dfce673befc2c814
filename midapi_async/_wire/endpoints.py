"""MidAPI's endpoints, one method each: build the call, send it, read the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import TaskNotFound
from . import codec as _codec
from . import protocol as _protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ..config import Endpoints, Timeouts
    from ..tasks import TaskDetails
    from .codec import Found
    from .protocol import Answer, Call
    from .transport import Transport


class Api:
    """What one account can ask of MidAPI. Nothing here is sent twice.

    Args:
        transport: sends calls.
        endpoints: the paths that differ between MidAPI and its sister.
        timeouts: how long a call may take.

    Attributes:
        looks: how many looks were made.
    """

    def __init__(self, transport: Transport, endpoints: Endpoints, timeouts: Timeouts) -> None:
        self._transport = transport
        self._endpoints = endpoints
        self._timeouts = timeouts
        self.looks = 0

    def submit(self, call: Call) -> Awaitable[Answer]:
        """Send a POST that costs money, and return whatever came back."""
        return self._transport.call(call, self._timeouts.submit)

    async def look(self, task_id: str) -> Found | None:
        """One GET of a task's record; None while MidAPI does not know the task."""
        self.looks += 1
        return _protocol.read_look(await self._ask(_protocol.look_call(task_id)), task_id)

    async def details(self, task_id: str) -> TaskDetails:
        """One look, as the public snapshot.

        Raises:
            TaskNotFound: MidAPI does not know the task (yet).
        """
        if (found := await self.look(task_id)) is None:
            raise TaskNotFound(task_id)
        return _codec.details_of(found)

    async def credits(self) -> float:
        """The credits that the account has left."""
        call = _protocol.credits_call(self._endpoints.credit)
        return _protocol.read_credits(await self._ask(call))

    async def download_url(self, url: str) -> str:
        """A link to a result that anybody can open for 20 minutes."""
        return _protocol.read_url(await self._ask(_protocol.download_url_call(url)))

    def _ask(self, call: Call) -> Awaitable[Answer]:
        return self._transport.call(call, self._timeouts.look)
