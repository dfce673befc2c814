"""A proxy in front of a receiver that changes what it forwards, or answers itself.

It uses nothing of the code under test, and runs in the test's own loop.
"""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import attrs

from tests.support.loopback import LoopbackServer
from tests.support.scripted import abort_with_reset

CERTIFICATES = Path(__file__).with_name("certificates")


@attrs.frozen
class Request:
    """A request as it came to the proxy, or as the proxy sends it on."""

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
        pairs = list(self.without("content-length").headers)
        if "Transfer-Encoding" not in dict(pairs):
            pairs.append(("Content-Length", str(len(self.body))))
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            *(f"{name}: {text}" for name, text in pairs),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


def unchanged(request: Request) -> Request:
    """What a correct proxy does."""
    return request


def answer(status: str, *headers: str, body: str = "") -> bytes:
    """An answer of the proxy's own."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Server: nginx", *headers]
    return "\r\n".join([*lines, "", body]).encode()


class Proxy(LoopbackServer):
    """A proxy.

    Args:
        target: the port that it forwards requests to.
        change: changes a request.
        own_answer: what it answers itself, without forwarding anything.
        preamble: bytes that it sends before the request, as for the PROXY protocol.
        delay: seconds before it forwards a request.
        answer_delay: seconds before it sends back an answer.
        replaced_answer: what it answers in place of the receiver's answer.
        certificate: the file in `CERTIFICATES` that makes it speak TLS.
    """

    def __init__(
        self,
        target: int = 0,
        *,
        change: Callable[[Request], Request] = unchanged,
        own_answer: bytes | None = None,
        preamble: bytes = b"",
        delay: float = 0.0,
        answer_delay: float = 0.0,
        replaced_answer: bytes | None = None,
        certificate: str | None = None,
    ) -> None:
        tls = None
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(CERTIFICATES / certificate)
        super().__init__(tls=tls)
        self._target, self._change, self._own_answer = target, change, own_answer
        self._preamble, self._delay, self._answer_delay = preamble, delay, answer_delay
        self._replaced_answer = replaced_answer

    def url(self, path: str = "/hook", scheme: str = "http") -> str:
        """A public URL of the proxy."""
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    async def _stop(self) -> None:
        await super()._stop()
        await asyncio.sleep(0.1)  # for handshakes that have failed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read(reader)
            await asyncio.sleep(self._delay)
            back = self._own_answer
            if back is None:
                back = await self._forward(self._change(request).written())
            writer.write(back)
            await writer.drain()
        except (OSError, EOFError):
            abort_with_reset(writer)
        finally:
            writer.close()

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            writer.write(self._preamble + request)
            back = await reader.read(65536)
        finally:
            writer.close()
        await asyncio.sleep(self._answer_delay)
        return back if self._replaced_answer is None else self._replaced_answer


async def read(reader: asyncio.StreamReader) -> Request:
    """One request with its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    pairs = tuple((name, value) for name, value in (line.split(": ", 1) for line in head[1:-2]))
    length = next((int(value) for name, value in pairs if name == "Content-Length"), 0)
    return Request(method, path, pairs, await reader.readexactly(length))
