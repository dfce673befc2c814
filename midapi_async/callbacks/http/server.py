"""The standalone callback server: aiohttp's, made safe for an open port on the internet.

`web.Server`, its connections and all of HTTP are aiohttp's. This module adds timeouts, a limit of
connections, and answers that do not name the server.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Literal, Self, cast

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.abc import AbstractStreamWriter

from ...errors import ReceiverError
from .aiohttp_app import body_of
from .answer import Handle, answer

MOST_CONNECTIONS = 1000
SECONDS = {
    # For a header, from connecting or from the first byte after an answer; then again for the body.
    # The receiver stops reading a body after 4 s, so that the sender still gets an answer.
    "receiving": 5.0,
    "idle": 15.0,  # from an answer to the next byte
    "busy": math.inf,
}
LONGEST_LINE = 4096  # bytes of "POST /prefix/TOKEN HTTP/1.1", and of one header's value
LINGER_SECONDS = 1.0  # for the rest of a refused body, so that its sender can read the refusal
SHUTDOWN_SECONDS = 4.5  # for callbacks that are being handled; aiohttp may wait twice that long
BACKLOG = 512  # connections that the system holds until they are accepted, all at once

# Malformed requests are normal on an open port; aiohttp would log each with a traceback.
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)  # noqa: LOG001 - not configurable


class CallbackServer(web.Server):
    """Listens on one port and hands every POST to the receiver.

    The header of a request may take 5 s from connecting (or from the first byte after an answer),
    its body 4 s; an idle connection is closed after 15 s. At most 1,000 connections, or half of
    what RLIMIT_NOFILE allows, are open at once; a further one closes the oldest idle one. Headers
    like ``X-Forwarded-For`` are ignored.

    Args:
        handle: `CallbackReceiver.handle`.
        host: the host on which to listen.
        port: the port; 0 picks a free one.

    Attributes:
        port: the port that it listens on.
    """

    _listener: asyncio.Server

    def __init__(self, handle: Handle, host: str, port: int) -> None:
        super().__init__(self._answer)
        self.port = port
        self._handle = handle
        self._host = host
        self._most = _most_connections()
        # The open connections by state; the one that has been in it for longest comes first.
        self.states: dict[str, dict[_Connection, None]] = {state: {} for state in SECONDS}

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(group)} {state}" for state, group in self.states.items())
        return f"<CallbackServer {self._host}:{self.port}, {counts}>"

    def __call__(self) -> web.RequestHandler:
        """A new connection, for the listener."""
        return _Connection(self)

    async def start(self) -> Self:
        """Begin to listen; return the server itself.

        Raises:
            ReceiverError: the port cannot be listened on.
        """
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self, self._host, self.port, backlog=BACKLOG
            )
        except OSError as error:
            # asyncio's own text repeats the address; a host that is not found has no such number.
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror or error
            raise ReceiverError(
                f"callbacks cannot be received on {self._host}:{self.port}: {reason}. "
                "Choose another port, or stop the program that uses this one."
            ) from None
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def aclose(self) -> None:
        """Stop listening; callbacks that are being handled get up to 10 s to finish."""
        self._listener.close()
        await asyncio.sleep(0)  # let sockets that were already accepted become connections
        self.pre_shutdown()
        await self.shutdown(SHUTDOWN_SECONDS)

    def abandon(self) -> None:
        """Free the port, after the event loop was closed without `aclose`."""
        self._listener.close()

    def make_room(self) -> None:
        """If there are too many connections, close the one that has been idle for longest.

        If none is idle, this closes the one that has been receiving for longest, which may be the
        new one. It never closes busy connections.
        """
        if sum(map(len, self.states.values())) > self._most:
            oldest = next(iter(self.states["idle"] or self.states["receiving"]))
            oldest.abort()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("_Connection", request.protocol)
        connection.body = request.content
        body = body_of(request.content)
        if not isinstance(body, bytes):
            body = partial(connection.read, request, body)
        connection.enter("busy")
        try:
            status = await answer(self._handle, request.method, request.path, request.headers, body)
        finally:
            connection.enter("idle")
        keeps = status == 200 and request.keep_alive and request.version == HttpVersion11
        return _KEPT if keeps else _Answer(status)


class _Connection(web.RequestHandler):
    """A connection of aiohttp that closes itself when its sender is too slow.

    It is receiving (the rest of a request is still to come), busy (its callback is being handled),
    or idle (answered; another request may follow).
    """

    __slots__ = ("_deadline", "_group", "_server", "_timer", "body")

    def __init__(self, server: CallbackServer) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # as aiohttp documents it
            logger=_SILENT,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
        )
        self._server = server
        self._group: dict[_Connection, None] = {}  # the connections in its state, if it is open
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None  # set to the deadline or earlier
        self.body: StreamReader | None = None  # of the request that is being handled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.enter("receiving")
        self._server.make_room()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._leave()
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        # The body refers to this connection: break the cycle.
        body, self.body = self.body, None
        if body is not None and not body.is_eof():
            body.feed_eof()  # else aiohttp would wait for the rest of a refused body

    def data_received(self, data: bytes) -> None:
        if self._group is self._server.states["idle"]:
            self.enter("receiving")  # a new request begins
        super().data_received(data)

    def enter(self, state: Literal["receiving", "idle", "busy"]) -> None:
        """Enter a state, with its timeout, unless the connection is closed."""
        if self.transport is None:
            return
        self._group.pop(self, None)
        self._group = self._server.states[state]
        self._group[self] = None
        self._deadline = self._loop.time() + SECONDS[state]
        # A timer that is set too early is kept, because a new one for each state costs more.
        if self._timer is None or self._timer.when() > self._deadline:
            self._close_if_late()

    def _close_if_late(self) -> None:
        """Close the connection if its deadline has passed; else check again then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadline <= self._loop.time():
            self.abort()
        elif self._deadline < math.inf:
            self._timer = self._loop.call_at(self._deadline, self._close_if_late)

    def _leave(self) -> None:
        self._group.pop(self, None)
        self._group = {}

    def abort(self) -> None:
        """Close the connection at once; data that is not sent yet is dropped."""
        self._leave()
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    async def read(self, request: web.BaseRequest, body: Callable[[], Awaitable[bytes]]) -> bytes:
        """Read a body that has not arrived yet; meanwhile this connection may be closed."""
        self.enter("receiving")
        expects = request.headers.get("Expect", "").lower() == "100-continue"
        if expects and self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        whole = await body()
        self.enter("busy")
        return whole

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002 - as aiohttp calls it
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - as aiohttp calls it
    ) -> web.StreamResponse:
        """Answer malformed HTTP like everything else, without naming the server."""
        if exc is not None:
            exc.__traceback__ = None  # its frames refer to this connection
        return _Answer(status)


class _Answer(web.StreamResponse):
    """An answer without a body, and without the header ``Server``."""

    def __init__(self, status: int, *, keeps: bool = False) -> None:
        super().__init__(status=status)
        self._keeps = keeps

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow on its connection."""
        return self._keeps

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write the whole answer; wait if the sender does not read its answers."""
        transport = request.transport
        if transport is not None:
            transport.write(_written(self.status, self._keeps, int(time.time())))
            await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """`prepare` has written all of it."""


_KEPT = _Answer(200, keeps=True)


@lru_cache(maxsize=64)
def _written(status: int, keeps: bool, second: int) -> bytes:  # noqa: FBT001 - for the cache's key
    """The bytes of an answer at a time in epoch seconds."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Date: {formatdate(second, usegmt=True)}",
        "Content-Length: 0",
    ]
    if status == 405:
        lines.append("Allow: POST")
    if not keeps:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode()


def _most_connections() -> int:
    """1,000, or half of the files that the process may open if that is less."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_limited = soft != resource.RLIM_INFINITY
    return max(1, min(MOST_CONNECTIONS, soft // 2)) if is_limited else MOST_CONNECTIONS
