"""The HTTP side: from requests to the service and back, with the faults between."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final, cast, final

from aiohttp import hdrs, web

from midapi_async.sandbox import _wire
from midapi_async.sandbox._envelope import Refused, refusal, success
from midapi_async.sandbox._exchange import Exchange
from midapi_async.sandbox._files import File, task_of_file
from midapi_async.sandbox._ledger import Asked
from midapi_async.sandbox._ranges import file_response
from midapi_async.sandbox._requests import bearer_key, body_or_nothing, read_json
from midapi_async.sandbox._service import Service
from midapi_async.sandbox._uploads import Uploads
from midapi_async.sandbox.faults import Call

_LOG: Final = logging.getLogger(__name__)
_BODY_LIMIT: Final = 104_857_600
_HOST: Final = re.compile(
    r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?"
)
_KEYLESS: Final = ("file", "other")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_OPERATIONS: Final = {
    **dict.fromkeys(_wire.SUBMITS, "submit"),
    **dict.fromkeys(_wire.CREDITS, "credit"),
    _wire.RECORD_INFO: "look",
    _wire.DOWNLOAD_URL: "download_url",
    **dict.fromkeys(_wire.UPLOADS, "upload"),
}
_FILES: Final = tuple(
    f"{place}/" for place in (_wire.RESULT_FILES, _wire.UPLOADED_FILES, _wire.DOWNLOAD_LINKS)
)


def operation_of(path: str) -> str:
    """Give the word for what a request to this path does."""
    return _OPERATIONS.get(path) or ("file" if path.startswith(_FILES) else "other")


@final
class App:
    """Routes, keys, faults and the ledger around one service."""

    def __init__(self, service: Service, own_url: Callable[[], str]) -> None:
        """Serve a service; ``own_url`` is for requests whose Host says nothing."""
        self._service = service
        self._own_url = own_url
        self._uploads = Uploads(service, self._origin)
        self._running: set[asyncio.Task[object]] = set()

    def application(self) -> web.Application:
        """Give the aiohttp application."""
        app = web.Application(middlewares=[self._serve], client_max_size=_BODY_LIMIT)
        app.add_routes([web.post(path, self._submit) for path in _wire.SUBMITS])
        app.add_routes([web.get(path, self._credits) for path in _wire.CREDITS])
        app.add_routes(
            [
                web.get(_wire.RECORD_INFO, self._look),
                web.post(_wire.DOWNLOAD_URL, self._download_url),
                web.post(_wire.STREAM_UPLOAD, self._uploads.stream),
                web.post(_wire.BASE64_UPLOAD, self._uploads.base64),
                web.post(_wire.URL_UPLOAD, self._uploads.url),
                web.get(f"{_wire.RESULT_FILES}/{{name}}", self._result),
                web.get(f"{_wire.UPLOADED_FILES}/{{token}}/{{name}}", self._uploaded),
                web.get(f"{_wire.DOWNLOAD_LINKS}/{{token}}/{{name}}", self._linked),
            ]
        )
        app.on_response_prepare.append(self._date)
        return app

    async def _date(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers[hdrs.DATE] = self._service.clock.date()

    async def aclose(self, grace: float) -> None:
        """Wait some seconds for handlers whose clients have left; then cancel them.

        aiohttp forgets a handler when its connection is lost, and would leave it behind.
        """
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=grace)
            for handler in late:
                handler.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # --------------------------------------------------------------- around each request

    @web.middleware
    async def _serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Write the request down, let a fault strike, and write down how it was answered."""
        if running := asyncio.current_task():
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        operation = operation_of(request.path)
        task_id = _task_id(operation, request)
        service = self._service
        asked = Asked(
            method=request.method,
            path=request.path,
            operation=operation,
            task_id=task_id,
            at=service.clock.now(),
            with_key=hdrs.AUTHORIZATION in request.headers,
        )
        number = service.book.ask(asked)
        exchange = Exchange(
            request, lambda: self._answer(request, operation, handler), service.clock
        )
        response: web.StreamResponse | None = None
        try:
            response = await self._guarded(exchange, operation, task_id)
            if not exchange.broken:
                service.book.answer(number, response.status)
            return response
        finally:
            service.log.answered(asked, None if exchange.broken else response)

    async def _guarded(
        self, exchange: Exchange, operation: str, task_id: str | None
    ) -> web.StreamResponse:
        """Turn any error, of ours or of the user's faults, into an envelope."""
        try:
            return await self._play(exchange, operation, task_id)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001  logged, and an envelope like everything else
            _LOG.exception("the sandbox failed at a request (%s)", operation)
            broken = Refused(_wire.SERVER_ERROR, status=_wire.SERVER_ERROR)
            return refusal(broken, exchange.request.path)

    async def _play(
        self, exchange: Exchange, operation: str, task_id: str | None
    ) -> web.StreamResponse:
        """Give the true answer, or what a fault makes of it."""
        request = exchange.request
        body: dict[str, object] = {}
        if self._service.director.wants_body(operation) and operation == "submit":
            body = await body_or_nothing(request)
        call = Call(operation, request.method, request.path, task_id, body)
        action = self._service.director.request(call)
        return await (exchange.handle() if action is None else action.play(exchange))

    async def _answer(self, request: web.Request, operation: str, handler: Handler) -> web.Response:
        """Give the service's answer; a refusal is one."""
        try:
            if operation not in _KEYLESS:
                self._service.check_key(bearer_key(request))
            # All handlers here give whole responses; the faults need their bytes.
            return cast("web.Response", await handler(request))
        except Refused as refused:
            if self._service.settings.http_errors:
                refused.status = refused.code
            return refusal(refused, request.path)
        except web.HTTPException as error:
            return _http_refusal(error, request.path)

    # ------------------------------------------------------------------------- handlers

    async def _submit(self, request: web.Request) -> web.Response:
        body = await read_json(request)
        task_id = await self._service.submit(
            request.path, body, self._origin(request), bearer_key(request)
        )
        return success({"taskId": task_id})

    async def _look(self, request: web.Request) -> web.Response:
        return success(self._service.look(request.query.get("taskId", "")))

    async def _credits(self, request: web.Request) -> web.Response:
        return success(self._service.account_of(bearer_key(request)).wire_balance())

    async def _download_url(self, request: web.Request) -> web.Response:
        url = (await read_json(request)).get("url")
        if not isinstance(url, str) or not url:
            raise Refused(_wire.BAD_REQUEST, "url parameter is required")
        return success(self._origin(request) + self._service.files.link(url))

    async def _result(self, request: web.Request) -> web.Response:
        return await self._send_result(request, request.match_info["name"])

    async def _linked(self, request: web.Request) -> web.Response:
        name = self._service.files.linked(request.match_info["token"])
        return await self._send_result(request, name)

    async def _uploaded(self, request: web.Request) -> web.Response:
        return file_response(request, self._service.files.uploaded(request.path))

    async def _send_result(self, request: web.Request, name: str) -> web.Response:
        file: File = await self._service.files.result(name)
        return file_response(request, file)

    def _origin(self, request: web.Request) -> str:
        """Give where the client believes to be, so that the URLs work from there."""
        if self._service.settings.files_url is not None:
            return self._service.settings.files_url
        # Proxies put the client's side first: "X-Forwarded-Proto: https, http".
        proto = request.headers.get(hdrs.X_FORWARDED_PROTO, "").partition(",")[0].strip().lower()
        scheme = proto if proto in {"http", "https"} else request.scheme
        forwarded = request.headers.get(hdrs.X_FORWARDED_HOST, "").partition(",")[0].strip()
        for host in (forwarded, request.headers.get(hdrs.HOST, "")):
            if _HOST.fullmatch(host):
                return f"{scheme}://{host}"
        return self._own_url()


def _task_id(operation: str, request: web.Request) -> str | None:
    """Give the task that a request names outside of its body."""
    if operation == "look":
        return request.query.get("taskId")
    return task_of_file(request.path.rpartition("/")[2]) if operation == "file" else None


def _http_refusal(error: web.HTTPException, path: str) -> web.Response:
    """Give aiohttp's 404, 405 or 413 as an envelope, with its Allow header."""
    response = refusal(Refused(error.status, error.reason, status=error.status), path)
    if allow := error.headers.get(hdrs.ALLOW):
        response.headers[hdrs.ALLOW] = allow
    return response
