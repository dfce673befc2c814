"""A MidAPI of canned answers in a process of its own.

It is an `asyncio.Protocol` without a framework, so that it costs as little as a server can. It
answers a submit and a look of MidAPI and, under their own paths, one POST and one GET of each SDK
that is compared. It also sends callbacks:

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
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import attrs

CREATED = 1_760_608_306_000  # epoch milliseconds
TOOK = 67.0  # seconds
ID = "0" * 32  # stands for the task id in the canned texts
MOMENT = "2025-10-16T10:00:00Z"


def files(task_id: str) -> list[str]:
    """The URLs of a task's pictures."""
    return [f"https://tempfile.aiquickdraw.com/m/{task_id}_0_{number}.jpeg" for number in range(4)]


def record(
    task_id: str,
    created: int,
    took: float | None,
    task_type: str = "mj_txt2img",
    speed: str | None = "fast",
) -> dict[str, object]:
    """The data of record-info, as MidAPI sends it.

    Args:
        task_id: of which task.
        created: when it was accepted, in epoch milliseconds.
        took: seconds; None while it is generating.
        task_type: of the task.
        speed: as it was asked for, or None.
    """
    params = {"prompt": "a red fox in the snow", "taskType": task_type}
    result = {"resultUrls": [{"resultUrl": url} for url in files(task_id)]}
    return {
        "taskId": task_id,
        "taskType": task_type,
        "paramJson": json.dumps(params | ({"speed": speed} if speed else {})),
        "completeTime": None if took is None else created + round(took * 1000),
        "resultInfoJson": None if took is None else result,
        "successFlag": 0 if took is None else 1,
        "createTime": created,
        "errorCode": None,
        "errorMessage": None,
    }


def callback(task_id: str) -> bytes:
    """The body of a callback."""
    data = {"taskId": task_id, "promptJson": "{}", "resultUrls": files(task_id)}
    return _dump({"code": 200, "msg": "success", "data": data})


def answer(data: object) -> bytes:
    """MidAPI's answer with this data, as it goes over the wire."""
    return _response({"code": 200, "msg": "success", "data": data})


def refusal(code: int, message: str) -> bytes:
    """MidAPI's answer that it refuses, as it goes over the wire."""
    return _response({"code": code, "msg": message, "data": None})


def _response(value: object) -> bytes:
    body = _dump(value)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Connection(asyncio.Protocol):
    """One client's connection, without pipelining.

    Args:
        respond: makes the response to a request's head and body.
        delay: seconds until the response is sent.
    """

    def __init__(self, respond: Callable[[bytes, bytes], bytes], delay: float = 0.0) -> None:
        self._respond = respond
        self._delay = delay
        self._buffer = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request when all of it is here."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not end or len(body) < int(length[1] if length else 0):
            return
        self._buffer = b""
        response = self._respond(head, body)
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, response)
        else:
            self._transport.write(response)


async def listen(connection: Callable[[], Connection]) -> tuple[asyncio.Server, str]:
    """A server on loopback, and its URL."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", 0, backlog=1024)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# ─── in the process of the server ────────────────────────────────────────────────────────────────


def _peers(url: str) -> dict[bytes, bytes]:
    """The answers to other SDKs, by the beginning of the request."""
    queue = f"{url}/fal/owner/app/requests/r"
    prediction = {
        "id": "p",
        "model": "owner/model",
        "version": "v",
        "status": "succeeded",
        "input": {"prompt": "a red fox in the snow"},
        "output": files(ID),
        "logs": "",
        "error": None,
        "created_at": MOMENT,
        "urls": {"get": "https://example.org/p", "cancel": "https://example.org/p/cancel"},
    }
    answers: dict[bytes, object] = {
        b"POST /fal/": {
            "request_id": "r",
            "response_url": queue,
            "status_url": f"{queue}/status",
            "cancel_url": f"{queue}/cancel",
            "queue_position": 0,
        },
        b"GET /fal/": {"status": "COMPLETED", "logs": None, "metrics": {}, "request_id": "r"},
        b"POST /replicate/": prediction,
        b"GET /replicate/": prediction,
        b"POST /openai/": {"created": 1760608306, "data": [{"url": each} for each in files(ID)]},
        b"GET /openai/": {
            "id": "v",
            "object": "video",
            "model": "sora-2",
            "status": "completed",
            "progress": 100,
            "created_at": 1760608306,
            "completed_at": 1760608373,
            "seconds": "4",
            "size": "720x1280",
        },
        b"POST /runwayml/": {"id": "r", "estimatedCost": {"credits": 8}},
        b"GET /runwayml/": {
            "id": "r",
            "status": "SUCCEEDED",
            "createdAt": MOMENT,
            "output": files(ID),
            "cost": {"credits": 8},
        },
    }
    return {start: _response(value) for start, value in answers.items()}


class _Answers:
    """The responses, and what was asked for."""

    def __init__(self) -> None:
        self.callback_urls: dict[str, str] = {}  # by task id
        self.last: dict[str, str] = {}  # the last request of each method
        self.requests = 0
        self.finished = 1.0  # the share of the tasks that are
        self.peers: dict[bytes, bytes] = {}
        self._numbers = itertools.count(1)
        self._done = answer(record(ID, CREATED, TOOK))
        self._generating = answer(record(ID, CREATED, None))

    def respond(self, head: bytes, body: bytes) -> bytes:
        """The response to a request."""
        self.requests += 1
        method = head[: head.find(b" ")].decode()
        self.last[method] = f"{head.decode()}\r\n\r\n{body.decode()}"
        if head.startswith(b"GET /api/v1/mj/record-info?taskId="):
            task_id = head[34:66]
            is_finished = int(task_id, 16) * 0.618034 % 1 < self.finished
            return (self._done if is_finished else self._generating).replace(ID.encode(), task_id)
        if head.startswith(b"POST /api/"):
            name = f"{next(self._numbers):032x}"
            if found := re.search(rb'"callBackUrl": ?"([^"]+)"', body):
                self.callback_urls[name] = found[1].decode()
            return answer({"taskId": name})
        if head.startswith(b"GET /api/v1/common/credit "):
            return answer(1e6)
        return self.peers[head[: head.find(b"/", head.find(b"/") + 1) + 1]]


class _Line(asyncio.Protocol):
    """A kept connection to a receiver that carries one callback after another."""

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
        """When the bytes were written, and the status of the answer."""
        self._buffer, self._status = b"", asyncio.get_running_loop().create_future()
        sent_at = time.monotonic()
        self._transport.write(message)
        return sent_at, await self._status


class _Caller:
    """Sends callbacks."""

    def __init__(self, callback_urls: dict[str, str]) -> None:
        self._urls = callback_urls
        self._lines: dict[str, list[_Line]] = {}  # by host and port

    async def call(self, task_ids: Sequence[str], at_once: int) -> dict[str, object]:
        """Call back for each task over some connections, one after another on each."""
        messages = [self._message(task_id) for task_id in task_ids]
        place = urlsplit(self._urls[task_ids[0]])
        kept = self._lines.setdefault(place.netloc, [])
        lines = [line for line in kept if line.is_open][:at_once]
        loop = asyncio.get_running_loop()
        while len(lines) < min(at_once, len(task_ids)):
            _, line = await loop.create_connection(_Line, place.hostname or "", place.port or 80)
            lines.append(line)
        answers: list[tuple[float, int]] = [(0.0, 0)] * len(messages)
        queue = iter(enumerate(messages))

        async def carry(line: _Line) -> None:
            for index, message in queue:
                answers[index] = await line.call(message)

        await asyncio.gather(*map(carry, lines))
        kept[:] = {*kept, *lines}
        sent_at, statuses = zip(*answers, strict=True)
        return {"sent_at": sent_at, "statuses": sorted(set(statuses))}

    def _message(self, task_id: str) -> bytes:
        place, body = urlsplit(self._urls[task_id]), callback(task_id)
        head = (
            f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\n"
            "User-Agent: okhttp/4.9.0\r\nAccept: */*\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def _serve() -> None:
    """Serve until stdin ends; each line of it is a command, each line of stdout its answer."""
    answers = _Answers()
    caller = _Caller(answers.callback_urls)
    _, url = await listen(lambda: Connection(answers.respond))
    answers.peers = _peers(url)
    commands = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(json.dumps(url), flush=True)
    while line := await commands.readline():
        command = json.loads(line)
        if "call" in command:
            result: object = await caller.call(command["call"], command["at_once"])
        else:
            answers.finished = command.get("finished", answers.finished)
            result = {"last": answers.last, "requests": answers.requests}
        print(json.dumps(result), flush=True)


# ─── in the process that measures ────────────────────────────────────────────────────────────────


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
    """The server's process, while the block lasts."""

    url: str

    async def __aenter__(self) -> Self:
        """Start it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=1 << 24,
        )
        self.url = str(await self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def call(self, task_ids: Sequence[str], at_once: int = 1) -> Calls:
        """Call back for each of these tasks, over some connections at once."""
        return Calls(**await self._ask({"call": list(task_ids), "at_once": at_once}))

    async def last(self, method: str) -> str:
        """The last request of a method, head and body, as it came."""
        return str((await self._ask({}))["last"][method])

    async def requests(self) -> int:
        """How many requests came until now."""
        return int((await self._ask({}))["requests"])

    async def finish(self, share: float) -> None:
        """Let this share of the tasks be finished, the others not."""
        await self._ask({"finished": share})

    async def _ask(self, command: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        answers: dict[str, Any] = await self._read()
        return answers

    async def _read(self) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())


if __name__ == "__main__":
    asyncio.run(_serve())
