"""A TCP proxy on the loopback device that makes the line between two programs bad.

    async with Proxy(server.url, down=Line(latency=0.2, slices=1)) as proxy:
        ...                                     # talk to proxy.url

It knows nothing of HTTP. `up` is the way to the server, `down` the way back; both may be exchanged
while it runs. It lives in the test's own loop, so its delays are virtual there.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import attrs

from tests.support.loopback import LoopbackServer
from tests.support.scripted import abort_with_reset

_CHUNK = 65536
# Enough for the other end to have read a slice before the next one goes out.
_BETWEEN_SLICES = 0.001


@attrs.frozen
class Line:
    """What one direction does to the bytes of a connection."""

    latency: float = 0.0  # seconds that each byte is under way
    bandwidth: float | None = None  # bytes in a second
    slices: int | None = None  # bytes in a segment
    cut_after: int | None = None  # bytes, then both ends are closed
    reset_after: int | None = None  # bytes, then both ends are reset


class Proxy(LoopbackServer):
    """Forwards each connection to the server; see the module.

    Args:
        target: the server's URL.
        up: the way of the requests.
        down: the way of the answers.
    """

    def __init__(self, target: str, *, up: Line | None = None, down: Line | None = None) -> None:
        super().__init__()
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self.up = up or Line()
        self.down = down or Line()
        self._target = parts.hostname, parts.port
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """The base URL to use in the server's place."""
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def gone(self) -> AsyncIterator[None]:
        """Inside, nobody listens at the port, and the connections there were have been reset."""
        await self._stop()
        try:
            yield
        finally:
            await self._listen()

    def reset(self) -> None:
        """Reset every connection there is."""
        for writer in self._writers:
            abort_with_reset(writer)
        self._writers.clear()

    async def _stop(self) -> None:
        self._server.close()
        self.reset()
        await super()._stop()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        self._writers.add(writer)
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            ends.append(server_writer)
            self._writers.add(server_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, server_writer, up=True))
                group.create_task(self._forward(server_reader, writer, up=False))
        except* _EndOfLine as ended:
            if any(end.by_reset for end in ended.exceptions if isinstance(end, _EndOfLine)):
                for end in ends:
                    abort_with_reset(end)
        except* OSError:
            pass  # one end is gone, so the other goes too
        finally:
            for end in ends:
                end.close()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        """Carry one direction: one task takes the bytes in, this one gives them out when due."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def take_in() -> None:
            data = b"more"
            while data:
                data = await reader.read(_CHUNK)
                line = self.up if up else self.down
                await under_way.put((loop.time() + line.latency, data))

        taking = asyncio.create_task(take_in())
        try:
            passed = 0
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(max(due - loop.time(), 0))
                if not data:
                    break
                passed = await self._give_out(writer, data, passed, self.up if up else self.down)
        finally:
            taking.cancel()
            await asyncio.wait({taking})
        raise _EndOfLine(by_reset=False)

    async def _give_out(
        self, writer: asyncio.StreamWriter, data: bytes, passed: int, line: Line
    ) -> int:
        end = min((n for n in (line.cut_after, line.reset_after) if n is not None), default=None)
        allowed = data if end is None else data[: max(end - passed, 0)]
        size = line.slices or max(len(allowed), 1)
        if line.bandwidth:
            size = min(size, max(int(line.bandwidth / 10), 1))
        for start in range(0, len(allowed), size):
            piece = allowed[start : start + size]
            if line.bandwidth:
                await asyncio.sleep(len(piece) / line.bandwidth)
            writer.write(piece)
            await writer.drain()
            if line.slices:
                await asyncio.sleep(_BETWEEN_SLICES)
        passed += len(allowed)
        if end is not None and passed >= end:
            raise _EndOfLine(by_reset=end == line.reset_after)
        return passed


class _EndOfLine(Exception):  # no error, but a way out of both directions at once
    def __init__(self, *, by_reset: bool) -> None:
        super().__init__()
        self.by_reset = by_reset
