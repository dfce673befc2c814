"""Listens in place of the receiver and keeps each request exactly as it arrived.

A receiver would answer 404 to a path that a proxy has cut, 415 to a body that a proxy has
compressed, and nothing to TLS. Only the request itself shows what happened to it on the way.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import attrs

from . import _http1

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_READ_SECONDS = 20.0
_MOST_ARRIVALS = 100  # scanners send requests to any open port


class PortTaken(Exception):
    """Another program listens on the port."""


@attrs.frozen
class Arrival:
    """What arrived on one connection.

    Attributes:
        message: the request; None if it was not HTTP/1.
        start: the first bytes of what was not HTTP/1.
    """

    message: _http1.Message | None
    start: bytes


class RequestCapture:
    """Listens on one port, answers 200 to each request, and keeps it.

    Args:
        host: the address to listen on.
        port: the port; 0 picks a free one.
    """

    def __init__(self, host: str, port: int) -> None:
        self.arrivals: list[Arrival] = []
        self.port = port
        self._host = host
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(self._accept, self._host, self.port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken from None
            raise
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                self._keep(await _read_request(reader, writer), b"")
            writer.write(_http1.encode("HTTP/1.1 200 OK", (), b""))
            await writer.drain()
        except _http1.NotHTTP as other:
            if other.start:
                self._keep(None, other.start)
        except (OSError, TimeoutError):
            pass  # the other side closed the connection, or sent nothing for too long
        finally:
            writer.close()

    def _keep(self, message: _http1.Message | None, start: bytes) -> None:
        if len(self.arrivals) < _MOST_ARRIVALS:
            self.arrivals.append(Arrival(message, start))


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> _http1.Message:
    head = await _http1.read_head(reader, " HTTP/1.")
    if "100-continue" in head.value("Expect").lower():
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await _http1.read_body(reader, head, to_the_end=False)
