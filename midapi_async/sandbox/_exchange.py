"""One request and what may be done to its connection."""

import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, final

from aiohttp import hdrs, web

from midapi_async.sandbox._clock import Clock

# SO_LINGER on, with no time: the close becomes a reset.
_RESET: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


@final
class Exchange:
    """A request under way: it can be handled, answered by hand, or broken."""

    def __init__(
        self,
        request: web.Request,
        handle: Callable[[], Awaitable[web.Response]],
        clock: Clock,
    ) -> None:
        """Wrap a request; ``handle`` does what the service does and gives its answer."""
        self.request = request
        self.clock = clock
        self.broken = False
        self._handle = handle

    async def handle(self) -> web.Response:
        """Do what the service does with the request, and give what it would answer."""
        return await self._handle()

    async def handle_if(self, *, accepted: bool) -> None:
        """Handle the request for its effect only: the answer is lost."""
        if accepted:
            await self._handle()

    def write(self, data: bytes) -> None:
        """Write bytes of our own making onto the connection."""
        self.broken = True
        if self.request.transport is not None:
            self.request.transport.write(data)

    def close(self) -> web.Response:
        """Close the connection after what was written; the response is never sent."""
        self.broken = True
        if self.request.transport is not None:
            self.request.transport.close()
        return web.Response()

    def reset(self) -> web.Response:
        """Break the connection with a reset; the response is never sent."""
        self.broken = True
        transport = self.request.transport
        if transport is not None:
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
        return web.Response()

    @property
    def gone(self) -> bool:
        """Whether no answer is wanted any more: the client has left, or the sandbox stops."""
        transport = self.request.transport
        return transport is None or transport.is_closing() or self.clock.stopped.is_set()


def head_of(response: web.Response, length: int | None) -> bytes:
    """Give the bytes of a response's head, with the Content-Length that is to be claimed.

    None claims no length: the body ends where the connection does.
    """
    phrase = HTTPStatus(response.status).phrase
    lines = [f"HTTP/1.1 {response.status} {phrase}", "Connection: close"]
    skipped = (hdrs.CONTENT_LENGTH, hdrs.CONNECTION)
    lines += [f"{name}: {value}" for name, value in response.headers.items() if name not in skipped]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def body_of(response: web.Response) -> bytes:
    """Give the whole body of one of the sandbox's own responses."""
    return response.body if isinstance(response.body, bytes) else b""
