"""Stands where the receiver would, and keeps what arrives exactly as it arrived.

The receiver itself would answer 404 to a path that a proxy has cut, 415 to a body that it has
compressed, and nothing to one that speaks TLS to it. What was done to the request on its way can
only be told by who sees the request.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import attrs

from . import _wire

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_READ_SECONDS = 20.0
_MOST = 100  # a port that is open to the world has other visitors


class PortTaken(Exception):
    """Another program listens there."""


@attrs.frozen
class Arrival:
    """What came on one connection.

    Attributes:
        message: the request; None if it was none.
        start: the first bytes of what was no request.
        at: when it was there, in seconds of the loop.
    """

    message: _wire.Message | None
    start: bytes
    at: float


class Recorder:
    """Listens on one port, answers 200 to each request, and keeps it.

    Args:
        host: where to listen.
        port: on which port; 0 picks one.
    """

    def __init__(self, host: str, port: int) -> None:
        self.arrivals: list[Arrival] = []
        self.port = port
        self._host = host
        self._lines: set[asyncio.Task[None]] = set()

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
        for line in self._lines:
            line.cancel()
        if self._lines:
            await asyncio.wait(self._lines)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                self._keep(await _read_request(reader, writer), b"")
            writer.write(_wire.written("HTTP/1.1 200 OK", (), b""))
            await writer.drain()
        except _wire.NotHTTP as other:
            if other.start:
                self._keep(None, other.start)
        except (OSError, TimeoutError):
            pass  # whoever it was, they are gone
        finally:
            writer.close()

    def _keep(self, message: _wire.Message | None, start: bytes) -> None:
        if len(self.arrivals) < _MOST:
            self.arrivals.append(Arrival(message, start, asyncio.get_running_loop().time()))


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> _wire.Message:
    head = await _wire.read_head(reader, " HTTP/1.")
    if "100-continue" in head.value("Expect").lower():
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await _wire.read_body(reader, head, to_the_end=False)
