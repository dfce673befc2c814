"""The standalone callback server, on aiohttp.web."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiohttp import web

from ..errors import ReceiverError
from . import LARGEST_BODY, Body, BodyTooLarge, Headers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger("midapi_async")

READ_SECONDS = 4.0  # for a body
IDLE_SECONDS = 15.0  # for a connection between two callbacks
LINGER_SECONDS = 1.0  # for the rest of a refused body, so that its sender can read the refusal
SHUTDOWN_SECONDS = 10.0  # for callbacks that are being taken


class CallbackServer:
    """Listens on one port and hands every POST to the receiver.

    Args:
        handle: `CallbackReceiver.handle`.
        host: where to listen.
        port: on which port; 0 picks one.
    """

    def __init__(
        self, handle: Callable[[str, Headers, Body], Awaitable[int]], host: str, port: int
    ) -> None:
        self._handle = handle
        self._host = host
        self._port = port
        self._runner: web.ServerRunner | None = None
        self._starting: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    async def start(self) -> None:
        """Begin to listen, once however often it is called.

        Raises:
            ReceiverError: the port cannot be listened on.
        """
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        await asyncio.wait({self._starting})
        self._starting.result()

    async def _start(self) -> None:
        server = web.Server(
            self._answer,
            access_log=None,
            logger=_quiet(),
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
        )
        runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ReceiverError(
                f"callbacks cannot be received on {self._host}:{self._port}: {error.strerror}. "
                "Choose another port, or stop what uses this one."
            ) from None
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def aclose(self) -> None:
        """Stop listening; what is being taken is finished first."""
        if self._starting is not None and not self._starting.done():
            await asyncio.wait({self._starting})
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST":
            return _response(405)
        segments = [segment for segment in request.path.split("/") if segment]
        token = segments[-1] if segments else ""
        try:
            status = await self._handle(token, request.headers, lambda: _read(request))
        except TimeoutError:
            status = 408
        except ConnectionError:
            status = 400  # its sender is gone; nobody reads this
        except Exception:  # noqa: BLE001 - a defect of ours must not look like the sender's
            _log.exception("a callback met a defect")
            status = 500
        return _response(status)


def _quiet() -> logging.Logger:
    """What anybody may send to an open port is no error of ours, with a traceback each."""
    logger = logging.getLogger("midapi_async.receiver.http")
    logger.disabled = True
    return logger


def _response(status: int) -> web.Response:
    response = web.Response(status=status)
    if status != 200:
        response.force_close()
    return response


async def _read(request: web.BaseRequest) -> bytes:
    if (request.content_length or 0) > LARGEST_BODY:
        raise BodyTooLarge
    body = bytearray()
    async with asyncio.timeout(READ_SECONDS):
        while chunk := await request.content.readany():
            body += chunk
            if len(body) > LARGEST_BODY:
                raise BodyTooLarge
    return bytes(body)
