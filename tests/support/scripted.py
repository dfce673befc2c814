"""A raw HTTP server that does, request by request, what a script says: above all, that it fails.

    async with ScriptedServer([reply(json={"code": 200}), lose_answer()]) as server:
        ...                                     # the first request is answered, the second is not
        assert 2 == len(server.requests)
        assert 1 == len(server.accepted)

Each request takes the next step of the script. A step that acts on accept (`reset("accept")`) is
taken by the next connection, or by the next request on a connection that is kept: then it comes as
soon as the first byte does, before anything was read. A request for which there is no step is
answered with 500 and makes the end of the `async with` fail, so a POST too many never goes unseen;
`then=` is a step for all of them instead. A function of the whole request may stand for a step.

Everything runs in the test's own loop, hence in virtual time. The ledger, `server.requests`, is
what arrived and not what the client believes: a request is accepted if its whole body came and the
step does not refuse it.
"""

import asyncio
import json as json_module
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from http.client import responses
from types import TracebackType
from typing import Literal, Self, TypeAlias

import attrs

After: TypeAlias = Literal["accept", "headers", "body"]
Ending: TypeAlias = Literal["keep", "close", "reset", "hang"]

_EMPTY: Mapping[str, str] = {}


@attrs.define
class Received:
    """One request, or what came of it."""

    connection: int  # the connections are counted from 0
    method: str = ""
    target: str = ""  # the path with its query, as it was sent
    headers: dict[str, str] = attrs.field(factory=dict)  # lower-case names
    body: bytes = b""
    complete: bool = False  # the whole body arrived
    accepted: bool = False  # it is complete and the script did not refuse it

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def json(self) -> object:
        """Return the body, parsed."""
        return json_module.loads(self.body)


@attrs.frozen
class Answer:
    """The bytes of an answer, and what becomes of the connection behind them."""

    head: bytes
    body: bytes = b""
    ending: Ending = "keep"
    accepts: bool = True
    delay: float = 0.0  # seconds before the first byte
    cut: int | None = None  # this many bytes are sent, and no more
    piece: int | None = None  # bytes at a time; None is all at once
    interval: float = 0.0  # seconds between the pieces

    @property
    def after(self) -> After:
        """An answer comes when the request is complete."""
        return "body"

    async def play(self, line: "Connection") -> None:
        """Send what is to be sent and end as the script says."""
        if self.delay:
            await asyncio.sleep(self.delay)
        sent = (self.head + self.body)[: self.cut]
        size = self.piece or max(len(sent), 1)
        for start in range(0, len(sent), size):
            if start:
                await asyncio.sleep(self.interval)
            await line.send(sent[start : start + size])
        await line.end(self.ending)


@attrs.frozen
class Fault:
    """No answer at all: the connection is closed, reset or left hanging."""

    ending: Ending
    after: After
    accepts: bool = True

    async def play(self, line: "Connection") -> None:
        """End as the script says."""
        await line.end(self.ending)


Step: TypeAlias = Answer | Fault
Play: TypeAlias = Step | Callable[[Received], Step]


# ------------------------------------------------------------------------ what a script is made of


def reply(
    status: int = 200,
    *,
    json: object = None,
    body: bytes | str = b"",
    headers: Mapping[str, str] = _EMPTY,
    close: bool = False,
    accepted: bool | None = None,
) -> Answer:
    """A well-formed answer. A 4xx but 408 refuses the request, unless `accepted` says otherwise."""
    if json is not None:
        body, headers = json_module.dumps(json), {"Content-Type": "application/json", **headers}
    content = body.encode() if isinstance(body, str) else body
    fields = {"Content-Length": str(len(content)), **headers}
    if close:
        fields["Connection"] = "close"
    lines = [_status_line(status), *(f"{name}: {text}" for name, text in fields.items())]
    refused = 400 <= status < 500 and status != 408
    return Answer(
        head="\r\n".join([*lines, "", ""]).encode("latin-1"),
        body=content,
        ending="close" if close else "keep",
        accepts=not refused if accepted is None else accepted,
    )


def raw(data: bytes, *, ending: Ending = "close") -> Answer:
    """Literal bytes, as they are, then the ending."""
    return Answer(head=data, ending=ending)


def garbage() -> Answer:
    """A status line that is none."""
    return raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


def reset(after: After = "body") -> Fault:
    """A TCP reset: on accept, after the headers (the body unread), or after the whole body."""
    return Fault("reset", after)


def close(after: After = "body") -> Fault:
    """Closed without an answer. The kernel makes it a reset if something was left unread."""
    return Fault("close", after)


def hang(after: After = "body") -> Fault:
    """Nothing, until the client goes away."""
    return Fault("hang", after)


def lose_answer(ending: Literal["close", "reset", "hang"] = "close") -> Fault:
    """The request is accepted, and the client never hears of it."""
    return Fault(ending, "body")


def delay(answer: Answer, seconds: float) -> Answer:
    """The answer, later."""
    return attrs.evolve(answer, delay=seconds)


def cut(
    answer: Answer, *, body: int, ending: Literal["close", "reset", "hang"] = "close"
) -> Answer:
    """The answer up to so many bytes of its body; below 0, up to so many before its head's end."""
    return attrs.evolve(answer, cut=len(answer.head) + body, ending=ending)


def drip(answer: Answer, *, piece: int = 1, interval: float = 1.0) -> Answer:
    """The answer in pieces of so many bytes, so many seconds apart."""
    return attrs.evolve(answer, piece=piece, interval=interval)


def interim(answer: Answer, status: int = 103, *, times: int = 1) -> Answer:
    """The answer behind some informational ones (1xx)."""
    head = f"{_status_line(status)}\r\n\r\n".encode()
    return attrs.evolve(answer, head=head * times + answer.head)


def then_close(answer: Answer) -> Answer:
    """The answer, then the connection is closed although it was promised to be kept."""
    return attrs.evolve(answer, ending="close")


def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}"


# ------------------------------------------------------------------------------------- the server


class ScriptedServer:
    """A server on the loopback device that plays a script; see the module.

    Args:
        script: a step for each request, in order.
        then: the step for all requests after the script's end; without it they are an error.
    """

    def __init__(self, script: Iterable[Play] = (), *, then: Play | None = None) -> None:
        self.requests: list[Received] = []
        self.port = 0
        self._script = list(script)
        self._then = then
        self._problems: list[str] = []
        self._lines: list[Connection] = []
        self._handlers: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def accepted(self) -> list[Received]:
        """What was accepted: for I1, at most one POST per intent."""
        return [request for request in self.requests if request.accepted]

    @property
    def connections(self) -> int:
        """How many connections there have been."""
        return len(self._lines)

    @property
    def steps_left(self) -> int:
        """How much of the script was not played."""
        return len(self._script)

    def add(self, *steps: Play) -> None:
        """Lengthen the script."""
        self._script.extend(steps)

    async def arrived(self, count: int = 1) -> None:
        """Wait until so many requests have come, whole or as far as their step reads them."""
        while len(self.requests) < count:
            self._arrived.clear()
            await self._arrived.wait()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        if self._handlers:
            await asyncio.wait(self._handlers)
        for line in self._lines:
            line.drop(at_once=True)
        await self._server.wait_closed()
        if error is None:
            assert not self._problems, "; ".join(self._problems)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Connection(len(self._lines), reader, writer)
        self._lines.append(line)
        handler = asyncio.create_task(self._serve(line))
        self._handlers.add(handler)
        handler.add_done_callback(self._handled)

    def _handled(self, handler: asyncio.Task[None]) -> None:
        self._handlers.discard(handler)
        if not handler.cancelled() and (error := handler.exception()) is not None:
            self._problems.append(f"the script failed with {error!r}")

    async def _serve(self, line: "Connection") -> None:
        try:
            await self._fault_on_accept(line)
            while line.open and await line.has_more():
                await self._fault_on_accept(line)
                if line.open:
                    await self._play(line, Received(line.number))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, which is its good right
        finally:
            line.drop()

    async def _fault_on_accept(self, line: "Connection") -> None:
        step = self._script[0] if self._script else self._then
        if isinstance(step, Fault) and step.after == "accept":
            del self._script[:1]
            await step.play(line)

    async def _play(self, line: "Connection", request: Received) -> None:
        await line.read_head(request)
        play = self._next(request)
        try:
            if callable(play) or play.after == "body":
                await line.read_body(request)
                request.complete = True
            step = play(request) if callable(play) else play
            request.accepted = request.complete and step.accepts
        finally:
            self._record(request)
        await step.play(line)

    def _record(self, request: Received) -> None:
        self.requests.append(request)
        self._arrived.set()

    def _next(self, request: Received) -> Play:
        play = self._script.pop(0) if self._script else self._then
        if play is None:
            self._problems.append(f"no step is left for {request.method} {request.target}")
            return reply(500, body="the script has ended", accepted=True)
        return play


class Connection:
    """One connection, as a step sees it."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.open = True
        self.began = b""  # the first byte of a request, which says that there is one
        self._reader = reader
        self._writer = writer

    async def has_more(self) -> bool:
        """Wait for the first byte of a request; False if the client closes instead."""
        self.began = await self._reader.read(1)
        return bool(self.began)

    async def read_head(self, request: Received) -> None:
        """Read the request line and the headers."""
        head = self.began + await self._reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")[:-2]
        request.method, request.target, _ = line.split(" ", 2)
        pairs = (field.partition(":") for field in fields)
        request.headers = {name.strip().lower(): text.strip() for name, _, text in pairs}

    async def read_body(self, request: Received) -> None:
        """Read the body; what came of it stays in the request if the client breaks off."""
        if request.headers.get("expect", "").lower() == "100-continue":
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
                await self._read(size, request)
                await self._reader.readexactly(2)
            await self._reader.readuntil(b"\r\n")
        else:
            await self._read(int(request.headers.get("content-length", "0")), request)

    async def _read(self, size: int, request: Received) -> None:
        while size:
            piece = await self._reader.read(size)
            if not piece:
                raise ConnectionResetError("the client broke off")
            request.body += piece
            size -= len(piece)

    async def send(self, data: bytes) -> None:
        """Write and wait until the kernel has it."""
        self._writer.write(data)
        await self._writer.drain()

    async def end(self, ending: Ending) -> None:
        """Do what the script says when the answer, if there was one, is out."""
        if ending == "keep":
            return
        self.open = False
        if ending == "hang":
            while await self._reader.read(65536):
                pass
        if ending == "reset":
            abort_with_reset(self._writer)

    def drop(self, *, at_once: bool = False) -> None:
        """Close the connection if that has not been done; at once means: unsent bytes are lost."""
        self._writer.close()
        if at_once:
            self._writer.transport.abort()


def abort_with_reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by a TCP reset, at once and whatever is still to be sent."""
    if not writer.is_closing():
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
