"""HTTP/1 messages exactly as they are on the connection; a library would repair or hide faults."""

from __future__ import annotations

from asyncio import LimitOverrunError
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

LARGEST_BODY = 64 * 1024
_END = b"\r\n\r\n"


class NotHTTP(Exception):
    """What arrived is not an HTTP/1 message.

    Attributes:
        start: its first bytes; empty if the connection was closed without any.
    """

    def __init__(self, start: bytes) -> None:
        super().__init__(start)
        self.start = start


@attrs.frozen
class Message:
    """A request or an answer.

    Attributes:
        first: its first line.
        headers: names and values, as they arrived.
        body: up to `LARGEST_BODY` bytes.
    """

    first: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        """The values of one header."""
        return [value for each, value in self.headers if each.lower() == name.lower()]

    def value(self, name: str) -> str:
        """The first value of one header; empty without it."""
        return next(iter(self.values(name)), "")

    @property
    def status(self) -> int:
        """The status of an answer; 0 if it has none."""
        word = self.first.split(" ")[1:2]
        return int(word[0]) if word and word[0].isascii() and word[0].isdigit() else 0

    @property
    def method(self) -> str:
        """The method of a request."""
        return self.first.partition(" ")[0]

    @property
    def path(self) -> str:
        """The path of a request as it was sent, without a query."""
        return self.first.partition(" ")[2].partition(" ")[0].partition("?")[0]


def encode(first: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """A message as bytes, with Content-Length and Connection: close added."""
    fields = (*headers, ("Content-Length", str(len(body))), ("Connection", "close"))
    lines = (first, *(f"{name}: {value}" for name, value in fields))
    return "\r\n".join(lines).encode("latin-1") + _END + body


async def read_answer(reader: asyncio.StreamReader) -> Message:
    """The answer to a request; interim answers (1xx) are skipped.

    Raises:
        NotHTTP: something else arrived, or nothing.
    """
    while True:
        head = await read_head(reader, "HTTP/1.")
        if not 100 <= head.status < 200:
            return await read_body(reader, head, to_the_end=True)


async def read_head(reader: asyncio.StreamReader, mark: str) -> Message:
    """The first line and the headers of a message.

    Args:
        reader: of the connection.
        mark: text that is in the first line of every such message.

    Raises:
        NotHTTP: something else arrived, or nothing.
    """
    start = await _start(reader, mark.encode())
    if not start.endswith(_END):
        raise NotHTTP(start)
    first, *lines = start.removesuffix(_END).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Message(first, tuple((name.strip(), value.strip()) for name, _, value in pairs))


async def _start(reader: asyncio.StreamReader, mark: bytes) -> bytes:
    """Everything up to the end of a head, or as much as shows that this is no HTTP/1 message."""
    start = b""
    try:
        start = await reader.read(1)
        if not start.isalpha():
            return start  # closed, or TLS, in which a line may never end
        while not start.endswith(_END) and len(start) < LARGEST_BODY:
            start += await reader.readuntil(b"\n")
            if mark not in start:
                return start
    except (OSError, EOFError, LimitOverrunError) as error:
        start += getattr(error, "partial", b"")
    return start


async def read_body(reader: asyncio.StreamReader, head: Message, *, to_the_end: bool) -> Message:
    """The message with as much of its body as arrived.

    Args:
        reader: of the connection.
        head: the message without its body.
        to_the_end: whether a body without a length lasts until the connection ends.
    """
    body = bytearray()
    with suppress(OSError, EOFError, ValueError):  # cut off: the part that arrived is used
        if "chunked" in head.value("Transfer-Encoding").lower():
            await _read_chunks(reader, body)
        elif (length := head.value("Content-Length")).isdigit():
            await _read_up_to(reader, body, int(length))
        elif to_the_end:
            await _read_up_to(reader, body, LARGEST_BODY)
    return attrs.evolve(head, body=bytes(body))


async def _read_up_to(reader: asyncio.StreamReader, body: bytearray, length: int) -> None:
    end = min(len(body) + length, LARGEST_BODY)
    while len(body) < end and (piece := await reader.read(end - len(body))):
        body += piece


async def _read_chunks(reader: asyncio.StreamReader, body: bytearray) -> None:
    while len(body) < LARGEST_BODY:
        size = int((await reader.readline()).partition(b";")[0], 16)
        if size == 0:
            return
        await _read_up_to(reader, body, size)
        await reader.readline()
