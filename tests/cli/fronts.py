"""What may stand before a receiver: a proxy that does something to what it passes on.

It knows nothing of the code under test, and runs in the test's own loop.
"""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

from tests.support.scripted import abort_with_reset

CERTIFICATES = Path(__file__).with_name("certificates")


@attrs.frozen
class Request:
    """What came to a proxy, or what it makes of it."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def without(self, *names: str) -> "Request":
        """Without these headers, by their names in lower case."""
        kept = tuple(pair for pair in self.headers if pair[0].lower() not in names)
        return attrs.evolve(self, headers=kept)

    def written(self) -> bytes:
        """As bytes, with the length of the body that there is now."""
        pairs = [*self.without("content-length").headers, ("Content-Length", str(len(self.body)))]
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            *(f"{name}: {text}" for name, text in pairs),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


def unchanged(request: Request) -> Request:
    """What a good proxy does."""
    return request


def answer(status: str, *headers: str, body: str = "") -> bytes:
    """An answer of the proxy's own."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Server: nginx", *headers]
    return "\r\n".join([*lines, "", body]).encode()


class Front:
    """A proxy.

    Args:
        target: the port that it passes requests on to.
        change: what it makes of a request.
        says: what it answers itself, without passing anything on.
        ahead: bytes that it sends before the request, as for the PROXY protocol.
        slow: seconds that it takes on the way in.
        slow_back: seconds that it takes on the way back.
        says_then: what it answers in place of the receiver's answer.
        certificate: the file in `CERTIFICATES` that makes it speak TLS.
    """

    def __init__(
        self,
        target: int = 0,
        *,
        change: Callable[[Request], Request] = unchanged,
        says: bytes | None = None,
        ahead: bytes = b"",
        slow: float = 0.0,
        slow_back: float = 0.0,
        says_then: bytes | None = None,
        certificate: str | None = None,
    ) -> None:
        self.port = 0
        self._target, self._change, self._says = target, change, says
        self._ahead, self._slow, self._slow_back = ahead, slow, slow_back
        self._says_then = says_then
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(CERTIFICATES / certificate)
        self._lines: set[asyncio.Task[None]] = set()

    def url(self, path: str = "/hook", scheme: str = "http") -> str:
        """A public URL that leads to it."""
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
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
        await asyncio.sleep(0.1)  # for handshakes that have failed

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.create_task(self._serve(reader, writer))
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read(reader)
            await asyncio.sleep(self._slow)
            said = self._says
            if said is None:
                said = await self._pass_on(self._change(request).written())
            writer.write(said)
            await writer.drain()
        except (OSError, EOFError):
            abort_with_reset(writer)
        finally:
            writer.close()

    async def _pass_on(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            writer.write(self._ahead + request)
            back = await reader.read(65536)
        finally:
            writer.close()
        await asyncio.sleep(self._slow_back)
        return back if self._says_then is None else self._says_then


async def read(reader: asyncio.StreamReader) -> Request:
    """One request with its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    pairs = tuple((name, value) for name, value in (line.split(": ", 1) for line in head[1:-2]))
    length = next((int(value) for name, value in pairs if name == "Content-Length"), 0)
    return Request(method, path, pairs, await reader.readexactly(length))
