"""The receiver as an aiohttp application, to be added to somebody's own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from .answer import SenderGone, answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .answer import Handle, Pieces


def aiohttp_application(handle: Handle) -> web.Application:
    """An aiohttp application that hands every POST to a receiver.

    Args:
        handle: `CallbackReceiver.handle`.
    """

    async def take(request: web.Request) -> web.Response:
        headers = list(request.headers.items())
        body = partial(body_of, request)
        return _response(await answer(handle, request.method, request.path, headers, body))

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", take)
    return application


def body_of(request: web.BaseRequest) -> bytes | Pieces:
    """The body: at once if it is there already, as it mostly is, else in pieces."""
    content = request.content
    if content.is_eof() and content.exception() is None:
        return content.read_nowait()
    return _pieces(request)


async def _pieces(request: web.BaseRequest) -> AsyncGenerator[bytes, None]:
    while True:
        try:
            piece = await request.content.readany()
        except Exception as error:  # noqa: BLE001 - gone, badly chunked: what a sender does is not ours
            error.__traceback__ = None  # the stream keeps the error, which would keep the stream
            raise SenderGone from None
        if not piece:
            return
        yield piece


def _response(status: int) -> web.Response:
    response = web.Response(status=status)
    if status == 405:
        response.headers["Allow"] = "POST"
    if status != 200:
        response.force_close()  # the rest of a refused body is not waited for
    return response
