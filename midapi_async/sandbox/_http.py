"""The sandbox's HTTP server: aiohttp's, but what is not HTTP gets an envelope, not a traceback."""

import logging
from typing import final

from aiohttp import web

from midapi_async.sandbox._envelope import Refused, refusal

_LOG = logging.getLogger(__name__)


@final
class Runner(web.AppRunner):
    """Runs an application on connections of our own."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        factory = made.request_factory
        return _Server(made.request_handler, request_factory=factory, **made._kwargs)  # noqa: SLF001  aiohttp has no other way


@final
class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        """Give the protocol of a new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)


@final
class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp's parser refuses: a second Content-Type, a header that is none."""
        if status != 400:  # an error of ours
            return super().handle_error(request, status, exc, message)
        _LOG.info("refused a request that is not valid HTTP")
        if exc is not None:
            exc.__traceback__ = None  # its frames refer to this connection
        response = refusal(
            Refused(status, " ".join((message or "").split()) or None, status=status)
        )
        response.force_close()
        return response

    def log_exception(self, *args: object, **options: object) -> None:
        """Log what went wrong beside the handlers, unless it is a body that its sender broke."""
        if not isinstance(options.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **options)
