"""The standalone callback server: aiohttp's protocol, with what an open port on the internet needs.

`web.Server` and its connections are aiohttp's, and so is every rule of HTTP. What aiohttp has not
is added where it calls its own public methods: deadlines and a bound for connections, and answers
that are written as they stand, without a name of what serves here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from aiohttp import HttpVersion11, web

from ...errors import ReceiverError
from .aiohttp_app import body_of
from .answer import answer
from .connections import MOST_CONNECTIONS, Connections

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.abc import AbstractStreamWriter

    from .answer import Handle, Pieces

LONGEST_LINE = 4096  # bytes of "POST /prefix/TOKEN HTTP/1.1", and of one header's value
LINGER_SECONDS = 1.0  # for the rest of a refused body, so that its sender can read the refusal
SHUTDOWN_SECONDS = 4.5  # for callbacks that are being taken; aiohttp may wait for it twice
BACKLOG = 512  # connections that the system holds until they are accepted, all at once


class CallbackServer:
    """Listens on one port and hands every POST to the receiver.

    A request's header has 5 s from connecting (or from the first byte after an answer), its body
    4 s, an idle connection 15 s. Of 1,000 connections, or half of what RLIMIT_NOFILE allows, the
    one that has been idle for longest makes room. ``X-Forwarded-…`` means nothing here.

    Args:
        handle: `CallbackReceiver.handle`.
        host: where to listen.
        port: on which port; 0 picks one.
    """

    def __init__(self, handle: Handle, host: str, port: int) -> None:
        self._handle = handle
        self._host = host
        self._port = port
        self._connections: Connections | None = None
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._starting: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<CallbackServer {self._host}:{self._port}, {self._connections}>"

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    async def start(self) -> None:
        """Begin to listen, once however often it is called.

        Raises:
            ReceiverError: the port cannot be listened on.
        """
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        await asyncio.wait({self._starting})
        self._starting.result()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        server, connections = web.Server(self._answer), Connections(_most_connections())
        try:
            self._listener = await loop.create_server(
                partial(_Connection, server, connections, loop=loop),
                self._host,
                self._port,
                backlog=BACKLOG,
            )
        except OSError as error:
            raise ReceiverError(
                f"callbacks cannot be received on {self._host}:{self._port}: {error.strerror}. "
                "Choose another port, or stop what uses this one."
            ) from None
        self._server, self._connections = server, connections
        self._port = self._listener.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Stop listening; what is being taken is finished first, for 10 s at most."""
        if self._starting is not None and not self._starting.done():
            await asyncio.wait({self._starting})
        if self._listener is None or self._server is None or self._connections is None:
            return
        self._listener.close()
        self._listener = None
        await asyncio.sleep(0)  # what was accepted already becomes a connection
        self._server.pre_shutdown()
        await self._server.shutdown(SHUTDOWN_SECONDS)
        self._connections.stop_watching()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("_Connection", request.protocol)
        connection.took(request.content)
        try:
            status = await answer(
                self._handle,
                request.method,
                request.path,
                list(request.headers.items()),
                partial(_body, connection, request),
            )
        finally:
            connection.ended()
        keeps = status == 200 and request.keep_alive and request.version == HttpVersion11
        return _KEPT if keeps else _Answer(status)


class _Connection(web.RequestHandler):
    """aiohttp's connection; it says what goes on in it, and can be cut."""

    __slots__ = ("_body", "_connections")

    def __init__(
        self, server: web.Server, connections: Connections, *, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # as aiohttp documents it
            logger=_quiet(),
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
        )
        self._connections = connections
        self._body: StreamReader | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.closed(self)
        super().connection_lost(exc)
        body, self._body = self._body, None  # it knows this connection: no cycle is left to collect
        if body is not None and not body.is_eof():
            body.feed_eof()  # or aiohttp would go on waiting for the rest of a refused body

    def data_received(self, data: bytes) -> None:
        self._connections.stirred(self)
        super().data_received(data)

    def took(self, body: StreamReader) -> None:
        """A request's header is whole, and this is its body."""
        self._body = body
        self._connections.taking(self)

    async def awaited(self, pieces: Pieces) -> Pieces:
        """The pieces of a body that is not there yet; until it is, this connection can be cut."""
        self._connections.waiting(self)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece
        self._connections.taking(self)

    def ended(self) -> None:
        """A request's answer is known."""
        self._connections.ended(self)

    def cut(self) -> None:
        """Close at once; what is still to be sent is dropped."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002 - as aiohttp calls it
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - as aiohttp calls it
    ) -> web.StreamResponse:
        """What is no HTTP is answered like everything else: without a word about the server."""
        if exc is not None:
            exc.__traceback__ = None  # its frames know this connection, and would keep it for long
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
        """Write it, whole; who does not read its answers is not given more of them."""
        transport = request.transport
        if transport is not None:
            transport.write(_written(self.status, self._keeps, int(time.time())))
            await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """It is written already."""


_KEPT = _Answer(200, keeps=True)


@lru_cache(maxsize=64)
def _written(status: int, keeps: bool, second: int) -> bytes:  # noqa: FBT001 - for the cache's key
    """The bytes of an answer, at one second of the day."""
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


def _body(connection: _Connection, request: web.BaseRequest) -> bytes | Pieces:
    """The body; whoever waits to be asked for it is asked now, when its token is known."""
    body = body_of(request)
    if isinstance(body, bytes):
        return body
    if request.headers.get("Expect", "").lower() == "100-continue":
        body = _asked_for(request, body)
    return connection.awaited(body)


async def _asked_for(request: web.BaseRequest, pieces: Pieces) -> Pieces:
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece


def _quiet() -> logging.Logger:
    """What anybody may send to an open port is no error of ours, with a traceback each."""
    logger = logging.getLogger("midapi_async.callbacks.http")
    logger.disabled = True
    return logger


def _most_connections() -> int:
    """1,000, or less where few files may be open: half of them are left for everything else."""
    limit = _files_limit()
    return MOST_CONNECTIONS if limit is None else max(1, min(MOST_CONNECTIONS, limit // 2))


def _files_limit() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
