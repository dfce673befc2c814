"""The receiver as an aiohttp application, which another one can mount."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import StreamReader, web

from .answer import LARGEST_BODY, Handle, answer


def aiohttp_application(handle: Handle) -> web.Application:
    """An aiohttp application that hands every POST to a receiver.

    Args:
        handle: `CallbackReceiver.handle`.
    """

    async def respond(request: web.Request) -> web.Response:
        body = body_of(request.content)
        status = await answer(handle, request.method, request.path, request.headers, body)
        response = web.Response(status=status)
        if status == 405:
            response.headers["Allow"] = "POST"
        if status != 200:
            response.force_close()  # do not wait for the rest of a refused body
        return response

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", respond)
    return application


def body_of(content: StreamReader) -> bytes | Callable[[], Awaitable[bytes]]:
    """The body itself if all of it has arrived (the usual case), else a function that reads it."""
    if content.is_eof() and content.exception() is None:
        return content.read_nowait()
    return partial(_read, content)


async def _read(content: StreamReader) -> bytes:
    body = bytearray()
    try:
        while len(body) <= LARGEST_BODY and (piece := await content.readany()):
            body += piece
    except Exception as error:  # noqa: BLE001 - a disconnect, or malformed chunks
        error.__traceback__ = None  # else a cycle: the stream keeps the error, that the stream
        raise ConnectionError from None
    return bytes(body)
