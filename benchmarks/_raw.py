"""The reference: what a program without an SDK does, with bare aiohttp and the same bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import aiohttp
from aiohttp import web

from midapi_async import __version__

API_KEY = "a1b2c3d4e5f6a7b8c9d0a1b2c3d4e5f6"
PROMPT = "a red fox in the snow"
BODY = {"taskType": "mj_txt2img", "prompt": PROMPT, "speed": "fast", "enableTranslation": False}
HEADERS = {
    "Authorization": f"Bearer {API_KEY}",
    "User-Agent": f"midapi-async/{__version__}",
    "Accept": "application/json",
}


class RawClient:
    """MidAPI's two calls, written down as they stand in its documentation.

    Args:
        session: for looks.
        paid_session: for submits; it opens a connection for each.
        url: of the service.
    """

    def __init__(
        self, session: aiohttp.ClientSession, paid_session: aiohttp.ClientSession, url: str
    ) -> None:
        self._session = session
        self._paid_session = paid_session
        self._url = url

    async def submit(self, callback_url: str | None = None) -> str:
        """One POST; the task id."""
        body = BODY if callback_url is None else {**BODY, "callBackUrl": callback_url}
        url = f"{self._url}/api/v1/mj/generate"
        async with self._paid_session.post(url, json=body) as response:
            return str((await response.json())["data"]["taskId"])

    async def look(self, task_id: str) -> dict[str, object]:
        """One GET; the record."""
        url = f"{self._url}/api/v1/mj/record-info?taskId={task_id}"
        async with self._session.get(url) as response:
            data: dict[str, object] = (await response.json())["data"]
            return data


@asynccontextmanager
async def raw_client(url: str) -> AsyncIterator[RawClient]:
    """Two sessions with the SDK's headers, and JSON spelt as the SDK spells it."""
    compact = partial(json.dumps, separators=(",", ":"), ensure_ascii=False)
    async with (
        aiohttp.ClientSession(headers=HEADERS) as session,
        aiohttp.ClientSession(
            headers={**HEADERS, "Accept-Encoding": "identity"},
            json_serialize=compact,
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
        ) as paid_session,
    ):
        yield RawClient(session, paid_session, url)


class RawReceiver:
    """Callbacks that resolve a future, found by the path, after the body is read."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[None]] = {}

    def expect(self, tokens: Iterable[str]) -> list[asyncio.Future[None]]:
        """A future for each token."""
        loop = asyncio.get_running_loop()
        self._futures = {token: loop.create_future() for token in tokens}
        return list(self._futures.values())

    async def routed(self, request: web.Request) -> web.Response:
        """The handler of an application with a route."""
        await request.read()
        self._resolve(request.match_info["token"])
        return web.Response()

    async def unrouted(self, request: web.BaseRequest) -> web.Response:
        """The handler of a bare `web.Server`."""
        await request.read()
        self._resolve(request.path[1:])
        return web.Response()

    def _resolve(self, token: str) -> None:
        future = self._futures[token]
        if not future.done():
            future.set_result(None)


@asynccontextmanager
async def served(runner: web.AppRunner | web.ServerRunner) -> AsyncIterator[str]:
    """The URL of what a runner serves on loopback."""
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def application(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.AppRunner:
    """An application with one route, and no access log."""
    app = web.Application()
    app.router.add_post("/{token}", handler)
    return web.AppRunner(app, access_log=None, shutdown_timeout=1.0)


def bare_server(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> web.ServerRunner:
    """aiohttp's server without an application, as the SDK's own receiver uses it."""
    return web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=1.0)
