"""A receiver with one intent and its own server, and senders that say to it exactly these bytes."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import attrs

from midapi_async import CallbackReceiver
from midapi_async._wire.protocol import Callback
from midapi_async._wire.tokens import new_token, token_hash
from midapi_async.callbacks import Body, Headers
from midapi_async.journal import Intent

TASK = "0f3a" * 8
GOOD = json.dumps({"code": 200, "data": {"taskId": TASK, "resultUrls": ["https://x/1"]}}).encode()
# What the receiver says that it answers.
DOCUMENTED = {200, 400, 401, 404, 405, 408, 413, 415, 503}


class Desk:
    """An inbox with one intent.

    Attributes:
        token: of its callback URL.
        taken: the task id of each callback that it took.
        work: what it awaits with each of them before that.
    """

    def __init__(self, port: int = 0, *, webhook_key: str | None = None) -> None:
        self.token = new_token()
        self.taken: list[str] = []
        self.work: Callable[[], Awaitable[object]] | None = None
        self.receiver = CallbackReceiver(None, port=port, webhook_key=webhook_key)
        self._row = Intent(
            intent_id="0" * 32,
            scope="desk",
            request=None,
            fingerprint="",
            token_hash=token_hash(self.token),
            created_at=0.0,
            task_id=TASK,
        )

    @property
    def port(self) -> int:
        """Where its receiver listens."""
        return int(self.receiver.url.rpartition(":")[2])

    async def find(self, token_hash: str) -> Intent | None:
        return self._row if token_hash == self._row.token_hash else None

    def task_ids(self, row: Intent) -> Collection[str]:
        return [row.task_id] if row.task_id else []

    async def take(self, row: Intent, callback: Callback | None) -> int:
        if self.work is not None:
            await self.work()
        self.taken.append("" if callback is None else callback.task_id)
        return 200

    async def handle(self, token: str, headers: Headers, body: Body) -> int:
        return await self.receiver.handle(token, headers, body)

    def post(self, body: bytes = GOOD, *headers: str, length: int | None = None) -> bytes:
        """A callback; with a length, its header says that it has another one."""
        return request(f"POST /hook/{self.token}", body, *headers, length=length)


@asynccontextmanager
async def a_desk(port: int = 0, *, webhook_key: str | None = None) -> AsyncIterator[Desk]:
    """A desk whose receiver is open."""
    desk = Desk(port, webhook_key=webhook_key)
    await desk.receiver.attach(desk)
    try:
        yield desk
    finally:
        await desk.receiver.detach(desk)


def request(line: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """A request of HTTP/1.1."""
    size = len(body) if length is None else length
    lines = [f"{line} HTTP/1.1", "Host: x", f"Content-Length: {size}", *headers]
    return head(*lines) + body


def head(*lines: str) -> bytes:
    """These lines, and the empty one that ends a header."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@attrs.frozen
class Answer:
    """What a sender was answered; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]

    @property
    def closes(self) -> bool:
        """Whether it says that nothing may follow."""
        return self.headers.get("connection") == "close"


class Sender:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, *parts: bytes) -> None:
        """Send these bytes."""
        for part in parts:
            self._writer.write(part)

    def end(self) -> None:
        """Say nothing more, and go on listening."""
        with suppress(OSError):  # it was cut already
            self._writer.write_eof()

    async def ask(self, *parts: bytes) -> Answer:
        """Send these bytes and read one answer."""
        self.say(*parts)
        return await self.answer()

    async def answer(self) -> Answer:
        """One answer: no body, and no word about the server."""
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        version, number, phrase = first.split(" ", 2)
        status = HTTPStatus(int(number))
        headers = {name.lower(): value for name, value in (line.split(": ") for line in lines)}
        assert ("HTTP/1.1", status.phrase) == (version, phrase)
        if status is not HTTPStatus.CONTINUE:
            assert headers["content-length"] == "0"
            assert headers["date"].endswith(" GMT")
            assert headers.keys() <= {"content-length", "date", "connection", "allow"}
        return Answer(status, headers)

    async def rest(self) -> bytes:
        """What comes until the connection is closed, or reset."""
        try:
            return await self._reader.read()
        except ConnectionError:
            return b""

    async def is_cut(self) -> bool:
        """Wait until it is closed; whether nothing came before that."""
        return await self.rest() == b""


@asynccontextmanager
async def a_sender(port: int, *, receive_buffer: int | None = None) -> AsyncIterator[Sender]:
    """A connection to a server of this machine.

    Args:
        port: the server's.
        receive_buffer: bytes that the system keeps for it until they are read.
    """
    line = socket.socket()
    line.setblocking(False)
    if receive_buffer is not None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", port))
    except OSError:
        line.close()
        raise
    reader, writer = await asyncio.open_connection(sock=line)
    try:
        yield Sender(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def ask(port: int, *parts: bytes) -> Answer:
    """Send bytes on a connection of their own, and read one answer.

    What refuses a request closes its connection as well.
    """
    async with a_sender(port) as sender:
        answer = await sender.ask(*parts)
        assert answer.closes or answer.status == 200
        if answer.closes:
            assert await sender.is_cut()
        return answer
