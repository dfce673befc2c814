"""What stands around a sandbox in a test: a raw client, a raw socket, a callback endpoint."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from midapi_async.sandbox import Sandbox

GENERATE = "/api/v1/mj/generate"
UPSCALE = "/api/v1/mj/generateUpscale"
VARY = "/api/v1/mj/generateVary"
EXTEND = "/api/v1/mj/generateVideoExtend"
RECORD_INFO = "/api/v1/mj/record-info"
CREDIT = "/api/v1/common/credit"
DOWNLOAD_URL = "/api/v1/common/download-url"

FOX: dict[str, Any] = {"taskType": "mj_txt2img", "prompt": "a red fox", "speed": "fast"}
VIDEO: dict[str, Any] = {
    "taskType": "mj_video",
    "prompt": "it turns its head",
    "fileUrls": ["https://example.org/fox.png"],
}


class Api:
    """One session with a key, and the few calls that most tests make."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        """Give the JSON of a GET."""
        async with self.session.get(path, params=params) as response:
            return await _json(response)

    async def post(self, path: str, body: object) -> dict[str, Any]:
        """Give the JSON of a POST."""
        async with self.session.post(path, json=body) as response:
            return await _json(response)

    async def submit(self, path: str = GENERATE, /, **fields: object) -> str:
        """Give the task id of an accepted submit, by default of a fox."""
        body = {**FOX, **fields} if path == GENERATE else fields
        envelope = await self.post(path, body)
        assert envelope["code"] == 200, envelope
        return str(envelope["data"]["taskId"])

    async def look(self, task_id: str) -> dict[str, Any]:
        """Give record-info's data."""
        envelope = await self.get(RECORD_INFO, taskId=task_id)
        assert envelope["code"] == 200, envelope
        data: dict[str, Any] = envelope["data"]
        return data

    async def urls(self, task_id: str) -> list[str]:
        """Give the URLs in a task's record."""
        info = (await self.look(task_id))["resultInfoJson"]
        return [item["resultUrl"] for item in info["resultUrls"]]

    async def download(self, url: str) -> tuple[int, bytes]:
        """Give status and body of a GET without a key."""
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.read()


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    value: dict[str, Any] = await response.json()
    return value


@asynccontextmanager
async def api_of(sandbox: Sandbox, key: str = "key-of-a-test") -> AsyncIterator[Api]:
    """Give a session for a sandbox."""
    headers = {"Authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(sandbox.url, headers=headers, timeout=timeout) as session:
        yield Api(session)


async def until(true: Callable[[], bool]) -> None:
    """Let the loop run until something has become true; five minutes of it at most."""
    async with asyncio.timeout(300):
        while not true():  # noqa: ASYNC110  what it waits for knows of no event
            await asyncio.sleep(0.2)


async def talk(sandbox: Sandbox, sent: bytes) -> bytes:
    """Write bytes onto a connection and give all that comes until it is closed."""
    parts = urlsplit(sandbox.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(sent)
        return await reader.read()
    finally:
        writer.close()


def raw_get(path: str) -> bytes:
    """Give the bytes of a GET that asks for the connection to be closed."""
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nConnection: close\r\n\r\n"
    return head.encode()


def raw_post(path: str, body: bytes) -> bytes:
    """Give the bytes of a POST that asks for the connection to be closed."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Endpoint:
    """Takes callbacks and answers each as `answers` says, 200 when it says nothing."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.answers: deque[int | Callable[[], Awaitable[int]]] = deque()
        self.url = ""
        app = web.Application()
        app.router.add_post("/callback", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What came."""
        return [body for _, body in self.received]

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site.port}/callback"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.received.append((dict(request.headers), await request.json()))
        answer = self.answers.popleft() if self.answers else 200
        return web.Response(status=answer if isinstance(answer, int) else await answer())
