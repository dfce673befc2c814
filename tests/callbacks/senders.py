"""Senders in a process of their own: slow ones that hold on to a receiver, and good ones.

    async with running("slow", port=…, token=…, count=5000) as slow, running("good", …) as good:
        ...
    slow.told                   # what each of them says when it is stopped

Slow are, in equal parts: one that says nothing, one that says half a header, one whose body never
comes, one whose body comes a byte a second, and one that stays after its answer. Who is cut comes
again after a rest. A good one sends its callbacks at fixed times, whether those before it were
answered or not, each on a connection of its own; its time begins when it should have been sent.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

TASK = "0f3a" * 8
GOOD = json.dumps({"code": 200, "data": {"taskId": TASK, "resultUrls": ["https://x/1"]}}).encode()
SLOW = ("nothing", "half a header", "no body", "a dripping body", "idle after the answer")
ROOT = Path(__file__).parents[2]


def file_limit() -> int:
    """How many files this process may open: as many as the system lets it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class SlowSenders:
    """Hold on for as long as they are let."""

    def __init__(self, port: int, token: str, *, count: int, rest: float) -> None:
        self._port = port
        self._head = (
            f"POST /hook/{token} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GOOD)}\r\n\r\n"
        ).encode()
        self._count = count
        self._rest = rest
        self._held: Counter[str] = Counter()
        self.told: dict[str, object] = {"connections": 0, "refused": 0, "most held": 0}
        self.longest: dict[str, float] = dict.fromkeys(SLOW, 0.0)

    async def run(self) -> None:
        """All of them, for ever; they begin within one rest."""
        kinds = itertools.cycle(SLOW)
        async with asyncio.TaskGroup() as all_of_them:
            for number in range(self._count):
                begin = self._rest * number / self._count
                all_of_them.create_task(self._again_and_again(next(kinds), begin))

    async def _again_and_again(self, kind: str, begin: float) -> None:
        await asyncio.sleep(begin)
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                self._count_up("refused")
            else:
                await self._hold(kind, reader, writer)
            await asyncio.sleep(self._rest)

    async def _hold(
        self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        begun = time.monotonic()
        self._count_up("connections")
        self._held[kind] += 1
        self.told["most held"] = max(self._held.total(), int(str(self.told["most held"])))
        dripping = None
        if kind == "a dripping body":
            dripping = asyncio.create_task(self._drip(writer))
        try:
            writer.write(self._said(kind))
            while await reader.read(4096):
                pass  # an answer
        except OSError:
            pass  # cut with bytes under way
        finally:
            if dripping is not None:
                dripping.cancel()
            writer.transport.abort()
            self._held[kind] -= 1
            self.longest[kind] = max(self.longest[kind], time.monotonic() - begun)

    def _said(self, kind: str) -> bytes:
        return {
            "nothing": b"",
            "half a header": self._head[: len(self._head) // 2],
            "idle after the answer": self._head + GOOD,
        }.get(kind, self._head)

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        for byte in GOOD:
            await asyncio.sleep(1)
            writer.write(bytes([byte]))

    def _count_up(self, name: str) -> None:
        self.told[name] = int(str(self.told[name])) + 1


class GoodSenders:
    """A callback at each of these times."""

    def __init__(self, port: int, token: str, *, rate: float, task: str) -> None:
        self._port = port
        body = GOOD.replace(TASK.encode(), task.encode())
        self._request = (
            f"POST /hook/{token} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode() + body
        self._rate = rate
        self._times: list[float] = []
        self._statuses: Counter[str] = Counter()
        self.told: dict[str, object] = {"ms": self._times, "statuses": self._statuses}

    async def run(self) -> None:
        """For ever."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as sending:
            for number in itertools.count():
                due = begun + number / self._rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                sending.create_task(self._send(due))

    async def _send(self, due: float) -> None:
        status = "none"
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(self._request)
            status = (await reader.read())[9:12].decode() or "none"
            writer.transport.abort()
        except OSError:
            pass
        self._times.append((time.monotonic() - due) * 1000)
        self._statuses[status] += 1


async def main(kind: str, options: dict[str, str]) -> None:
    """Send until stdin ends, then say what came of it."""
    file_limit()
    port, token = int(options["port"]), options["token"]
    senders: SlowSenders | GoodSenders
    if kind == "slow":
        senders = SlowSenders(port, token, count=int(options["count"]), rest=float(options["rest"]))
        senders.told["longest held"] = senders.longest
    else:
        senders = GoodSenders(port, token, rate=float(options["rate"]), task=options["task"])
    running = asyncio.create_task(senders.run())
    end = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(end)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    begun = time.monotonic()
    print("sending", flush=True)
    await end.read()
    seconds = time.monotonic() - begun
    print(json.dumps({"seconds": seconds, **senders.told}), flush=True)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Senders:
    """Such a process.

    Attributes:
        told: what it said when it was stopped.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.told: dict[str, object] = {}


@asynccontextmanager
async def running(kind: str, **options: object) -> AsyncIterator[Senders]:
    """Senders that send while the block lasts: ``slow`` or ``good``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.callbacks.senders",
        kind,
        *(f"{name}={value}" for name, value in options.items()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 26,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    senders = Senders(process)
    try:
        assert await process.stdout.readline() == b"sending\n"
        yield senders
    finally:
        process.stdin.close()
        last = await process.stdout.read()
        await process.wait()
    senders.told = json.loads(last)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], dict(word.split("=", 1) for word in sys.argv[2:])))
