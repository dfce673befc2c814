"""An HTTP proxy on the loopback device, as companies run one: it tunnels https and forwards http.

    async with HTTPProxy(login="user:password") as proxy:
        ...                                     # use proxy.url as the proxy
        assert proxy.asked == ["CONNECT api.example:443"]

It runs in the test's own loop.
"""

import asyncio
import base64
from collections.abc import Mapping
from http.client import responses
from urllib.parse import urlsplit

from tests.support.loopback import LoopbackServer

_CHUNK = 65536
_NO_ROUTES: Mapping[str, int] = {}


class HTTPProxy(LoopbackServer):
    """A proxy; see the module.

    Args:
        login: ``user:password`` that it wants to see; None lets everybody in.
        status: if it is not 200, the proxy answers so, and passes nothing on.
        routes: the local port that stands for a ``host:port``; others are used as they are.
    """

    def __init__(
        self,
        *,
        login: str | None = None,
        status: int = 200,
        routes: Mapping[str, int] = _NO_ROUTES,
    ) -> None:
        super().__init__()
        self.asked: list[str] = []  # method and target of each request that it has passed on
        self._login = login
        self._status = status
        self._routes = routes

    @property
    def url(self) -> str:
        """What to use as the proxy."""
        login = "" if self._login is None else f"{self._login}@"
        return f"http://{login}127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request, and whatever follows it on the connection."""
        writers = [writer]
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, _ = head.split(" ", 2)
            status = self._status if self._lets_in(head) else 407
            if status != 200:
                writer.write(_answer(status))
                await writer.drain()
                return
            self.asked.append(f"{method} {target}")
            is_tunnel = method == "CONNECT"
            place = target if is_tunnel else urlsplit(target).netloc
            if urlsplit(f"//{place}").port is None:
                place = f"{place}:80"
            host, _, port = place.rpartition(":")
            if (route := self._routes.get(place)) is not None:
                host, port = "127.0.0.1", str(route)
            back, onward = await asyncio.open_connection(host.strip("[]"), int(port))
            writers.append(onward)
            if is_tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                # One request for each connection, so that each is seen here.
                names = ("Proxy-", "Connection:")
                lines = [line for line in head.split("\r\n") if not line.startswith(names)]
                path = target.partition("://")[2].partition("/")[2]
                lines[:1] = [f"{method} /{path} HTTP/1.1", "Connection: close"]
                onward.write("\r\n".join(lines).encode("latin-1"))
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, onward))
                group.create_task(_copy(back, writer))
        except* (OSError, EOFError):
            pass  # one end is gone, so the other goes too
        finally:
            for each in writers:
                each.close()

    def _lets_in(self, head: str) -> bool:
        wanted = base64.b64encode((self._login or "").encode()).decode()
        return self._login is None or f"Proxy-Authorization: Basic {wanted}\r\n" in head


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()


def _answer(status: int) -> bytes:
    more = 'Proxy-Authenticate: Basic realm="us"\r\n' if status == 407 else ""
    line = f"HTTP/1.1 {status} {responses[status]}\r\n"
    return f"{line}{more}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
