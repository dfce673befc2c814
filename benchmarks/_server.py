"""A MidAPI of canned answers in a process of its own, for what is measured against it.

No framework: an `asyncio.Protocol` that knows each request by its first bytes, so that it costs as
little as a server can, and the same for everybody. It answers MidAPI's two calls that matter and,
under their own paths, one POST and one GET of each SDK that is compared. It calls back on command:

    async with Service() as service:
        ...                                  # submit to service.url, with a callBackUrl
        calls = await service.call(task_ids, at_once=64)
        calls.sent_at                        # seconds of CLOCK_MONOTONIC, which all processes share
"""

import asyncio
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import attrs

PARAMS = json.dumps({"prompt": "a red fox in the snow", "speed": "fast", "taskType": "mj_txt2img"})
FILES = [f"https://tempfile.aiquickdraw.com/m/{'0' * 32}_0_{number}.jpeg" for number in range(4)]
ID = "0" * 32  # in the canned texts; every task has one of its own in its place
RECORD = {
    "code": 200,
    "msg": "success",
    "data": {
        "taskId": ID,
        "taskType": "mj_txt2img",
        "paramJson": PARAMS,
        "completeTime": 1760608373000,
        "resultInfoJson": {"resultUrls": [{"resultUrl": url} for url in FILES]},
        "successFlag": 1,
        "createTime": 1760608306000,
        "errorCode": None,
        "errorMessage": None,
    },
}
CALLBACK = {
    "code": 200,
    "msg": "success",
    "data": {"taskId": ID, "promptJson": PARAMS, "resultUrls": FILES},
}
MOMENT = "2025-10-16T10:00:00Z"
PREDICTION = {
    "id": "p",
    "model": "owner/model",
    "version": "v",
    "status": "succeeded",
    "input": {"prompt": "a red fox in the snow"},
    "output": FILES,
    "logs": "",
    "error": None,
    "created_at": MOMENT,
    "urls": {"get": "https://example.org/p", "cancel": "https://example.org/p/cancel"},
}
QUEUED = {
    "request_id": "r",
    "response_url": "BASE/owner/app/requests/r",
    "status_url": "BASE/owner/app/requests/r/status",
    "cancel_url": "BASE/owner/app/requests/r/cancel",
    "queue_position": 0,
}
VIDEO = {
    "id": "v",
    "object": "video",
    "model": "sora-2",
    "status": "completed",
    "progress": 100,
    "created_at": 1760608306,
    "completed_at": 1760608373,
    "seconds": "4",
    "size": "720x1280",
}
PEERS = {
    b"POST /fal/": QUEUED,
    b"GET /fal/": {"status": "COMPLETED", "logs": None, "metrics": {}, "request_id": "r"},
    b"POST /replicate/": PREDICTION,
    b"GET /replicate/": PREDICTION,
    b"POST /openai/": {"created": 1760608306, "data": [{"url": url} for url in FILES]},
    b"GET /openai/": VIDEO,
    b"POST /runwayml/": {"id": "r", "estimatedCost": {"credits": 8}},
    b"GET /runwayml/": {
        "id": "r",
        "status": "SUCCEEDED",
        "createdAt": MOMENT,
        "output": FILES,
        "cost": {"credits": 8},
    },
}


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


class _Answers:
    """What is answered to a request, and the callback URLs that submissions named."""

    def __init__(self) -> None:
        self.callback_urls: dict[str, str] = {}
        self.last: dict[bytes, bytes] = {}  # the last request of each method, as it came
        self._numbers = itertools.count(1)
        self._record = _answer(_dump(RECORD))
        self._peers = {start: _answer(_dump(body)) for start, body in PEERS.items()}

    def stand_at(self, url: str) -> None:
        """Answers that hold URLs are told which."""
        queued = _dump(QUEUED).replace(b"BASE", f"{url}/fal".encode())
        self._peers[b"POST /fal/"] = _answer(queued)

    def to(self, head: bytes, body: bytes) -> bytes:
        """The answer to one request."""
        if head.startswith(b"GET /api/v1/mj/record-info?taskId="):
            return self._record.replace(ID.encode(), head[34:66])
        if head.startswith(b"POST /api/"):
            return self._submit(body)
        start = head[: head.find(b"/", head.find(b"/") + 1) + 1]
        return self._peers[start]

    def _submit(self, body: bytes) -> bytes:
        task_id = f"{next(self._numbers):032x}"
        if found := re.search(rb'"callBackUrl": ?"([^"]+)"', body):
            self.callback_urls[task_id] = found[1].decode()
        return _answer(_dump({"code": 200, "msg": "success", "data": {"taskId": task_id}}))


class _Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, answers: _Answers) -> None:
        self._answers = answers
        self._buffer = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        for head, body in self._requests():
            self._answers.last[head[:4].strip()] = head + b"\r\n\r\n" + body
            self._transport.write(self._answers.to(head, body))

    def _requests(self) -> Iterator[tuple[bytes, bytes]]:
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            body, self._buffer = self._buffer[end + 4 : whole], self._buffer[whole:]
            yield head, body


class _Line(asyncio.Protocol):
    """One connection that is kept, and carries one callback after another."""

    def __init__(self) -> None:
        self._buffer = b""
        self._status: asyncio.Future[int] | None = None
        self._transport: asyncio.WriteTransport

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._status and not self._status.done() and self._buffer.endswith(b"\r\n\r\n"):
            self._status.set_result(int(self._buffer[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._status and not self._status.done():
            self._status.set_exception(exc or ConnectionResetError("closed without an answer"))

    async def call(self, message: bytes) -> tuple[float, int]:
        """When its bytes were written, and the status that was answered."""
        self._buffer, self._status = b"", asyncio.get_running_loop().create_future()
        sent_at = time.monotonic()
        self._transport.write(message)
        return sent_at, await self._status


class _Caller:
    """Sends callbacks."""

    def __init__(self, callback_urls: dict[str, str]) -> None:
        self._urls = callback_urls
        self._lines: dict[tuple[str, int], list[_Line]] = {}

    async def call(self, task_ids: Sequence[str], at_once: int) -> dict[str, object]:
        """Call back for each task, over so many connections, each one after another."""
        messages = [self._message(task_id) for task_id in task_ids]
        host, port = _place(self._urls[task_ids[0]])
        lines = [await self._line(host, port) for _ in range(min(at_once, len(task_ids)))]
        told: list[tuple[float, int]] = [(0.0, 0)] * len(messages)
        queue = iter(enumerate(messages))

        async def carry(line: _Line) -> None:
            for number, message in queue:
                told[number] = await line.call(message)

        await asyncio.gather(*map(carry, lines))
        self._lines[host, port] += lines
        return {"sent_at": [at for at, _ in told], "statuses": sorted({s for _, s in told})}

    async def _line(self, host: str, port: int) -> _Line:
        kept = self._lines.setdefault((host, port), [])
        while kept:
            if (line := kept.pop()).is_open:
                return line
        return (await asyncio.get_running_loop().create_connection(_Line, host, port))[1]

    def _message(self, task_id: str) -> bytes:
        url = self._urls[task_id]
        host, port = _place(url)
        body = _dump(CALLBACK).replace(ID.encode(), task_id.encode())
        head = (
            f"POST {urlsplit(url).path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            "User-Agent: okhttp/4.9.0\r\nAccept: */*\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


async def _serve() -> None:
    """Serve until stdin ends; each line of it is a command, each line of stdout its answer."""
    loop, answers = asyncio.get_running_loop(), _Answers()
    caller = _Caller(answers.callback_urls)
    server = await loop.create_server(lambda: _Connection(answers), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    answers.stand_at(url)
    commands = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(json.dumps({"url": url}), flush=True)
    while line := await commands.readline():
        command = json.loads(line)
        if "call" in command:
            told = await caller.call(command["call"], command["at_once"])
        else:
            told = {method.decode(): each.decode() for method, each in answers.last.items()}
        print(json.dumps(told), flush=True)


@attrs.frozen
class Calls:
    """Callbacks that were answered.

    Attributes:
        sent_at: when the bytes of each were written, in the order of the tasks.
        statuses: every status that was answered.
    """

    sent_at: Sequence[float]
    statuses: Sequence[int]


class Service:
    """The process, while the block lasts."""

    url: str

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=1 << 24,
        )
        self.url = str((await self._told())["url"])
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def call(self, task_ids: Sequence[str], at_once: int = 1) -> Calls:
        """Call back for each of these tasks, over so many connections at once."""
        told = await self._ask({"call": list(task_ids), "at_once": at_once})
        return Calls(**told)

    async def last(self, method: str) -> str:
        """The last request of a method, head and body, as it came."""
        return str((await self._ask({}))[method])

    async def _ask(self, command: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return await self._told()

    async def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return told


if __name__ == "__main__":
    asyncio.run(_serve())
