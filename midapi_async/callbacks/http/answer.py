"""What every mount of the receiver shares: from an HTTP request to the status to answer.

The order keeps what a stranger can cost small: the method, then the token, and only for a token of
ours the encoding and the body, which is bounded in size and in time.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from ..receiver import LARGEST_BODY, Body, BodyTooLarge, Headers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Handle = Callable[[str, Headers, Body], Awaitable[int]]
    Pieces = AsyncGenerator[bytes, None]

_log = logging.getLogger("midapi_async")

READ_SECONDS = 4.0  # for a body


class BodyTooSlow(Exception):
    """A body did not come within `READ_SECONDS`."""


class SenderGone(Exception):
    """The connection was closed before the whole body was there."""


async def answer(
    handle: Handle,
    method: str,
    path: str,
    headers: list[tuple[str, str]],
    body: Callable[[], bytes | Pieces],
) -> int:
    """The status to answer; whatever a sender does, nothing is raised.

    Args:
        handle: `CallbackReceiver.handle`.
        method: of the request.
        path: of the request; what stands before its last non-empty segment is ignored.
        headers: of the request.
        body: the body if it is there already, else begins to read it, in pieces; those may raise
            `SenderGone`.
    """
    if method != "POST":
        return 405
    try:
        return await handle(_last_segment(path), headers, lambda: _read(headers, body()))
    except BodyTooSlow:
        return 408
    except SenderGone:
        return 400  # nobody reads this
    except Exception:  # noqa: BLE001 - a defect of ours must not look like the sender's
        _log.exception("a callback met a defect")
        return 500


def _last_segment(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


async def _read(headers: list[tuple[str, str]], body: bytes | Pieces) -> bytes:
    if not isinstance(body, bytes):
        return await _joined(headers, body)
    if len(body) > LARGEST_BODY:
        raise BodyTooLarge
    return body


async def _joined(headers: list[tuple[str, str]], pieces: Pieces) -> bytes:
    """The whole body; what is declared as too large is not begun."""
    declared = [value for name, value in headers if name.lower() == "content-length"]
    if any(value.isdecimal() and int(value[:20]) > LARGEST_BODY for value in declared):
        raise BodyTooLarge
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS), aclosing(pieces):
            async for piece in pieces:
                body += piece
                if len(body) > LARGEST_BODY:
                    raise BodyTooLarge
    except TimeoutError:
        raise BodyTooSlow from None
    return bytes(body)
