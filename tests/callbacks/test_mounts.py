"""The receiver mounted in real web frameworks, on real servers, called back by the sandbox."""

import json
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web

from midapi_async import CallbackReceiver, MidAPIClient, TaskDetails
from midapi_async._wire.tokens import new_token
from midapi_async.callbacks import receiver as receiver_module
from midapi_async.callbacks.http.asgi import ASGIApplication
from midapi_async.sandbox import SandboxThread
from tests.callbacks.serving import a_loop_in_a_thread, aiohttp_serving, ask, uvicorn_serving
from tests.callbacks.test_asgi import OneToken
from tests.callbacks.test_receiver import callback
from tests.support.waiting import free_port, wait_until

pytestmark = pytest.mark.real_time

PREFIX = "/hooks/midapi"


class Shop:
    """What every one of these applications does: it buys one picture and shows how many files."""

    def __init__(self, sandbox: SandboxThread, receiver: CallbackReceiver) -> None:
        self.client = MidAPIClient("any-key", base_url=sandbox.url, receiver=receiver)
        self.receiver = receiver
        self.bought: list[TaskDetails] = []

    async def buy(self) -> dict[str, int]:
        """Order, wait, and show."""
        details = await self.client.generate_and_wait("a red fox", wait_timeout=20)
        self.bought.append(details)
        return {"files": len(details.urls), "callbacks": self.client.stats().callbacks}

    @asynccontextmanager
    async def life(self, _: object = None) -> AsyncIterator[None]:
        """The client is open as long as the application."""
        async with self.client:
            yield


def in_aiohttp(shop: Shop, port: int) -> AbstractContextManager[int]:
    """A sub-application."""

    async def buy(_: web.Request) -> web.Response:
        return web.json_response(await shop.buy())

    async def life(_: web.Application) -> AsyncIterator[None]:
        async with shop.life():
            yield

    app = web.Application()
    app.cleanup_ctx.append(life)
    app.router.add_post("/pictures", buy)
    app.add_subapp(f"{PREFIX}/", shop.receiver.aiohttp_app())
    return aiohttp_serving(app, port)


def in_fastapi(shop: Shop, port: int) -> AbstractContextManager[int]:
    """Mounted; the lifespan is FastAPI's."""
    from fastapi import FastAPI

    app = FastAPI(lifespan=shop.life)
    app.post("/pictures")(shop.buy)
    app.mount(PREFIX, shop.receiver.asgi())
    return uvicorn_serving(app, port)


def in_starlette(shop: Shop, port: int) -> AbstractContextManager[int]:
    """As a route of its own kind."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Mount, Route

    async def buy(_: Request) -> JSONResponse:
        return JSONResponse(await shop.buy())

    routes = [
        Route("/pictures", buy, methods=["POST"]),
        Mount(PREFIX, app=shop.receiver.asgi()),
    ]
    return uvicorn_serving(Starlette(routes=routes, lifespan=shop.life), port)


def in_litestar(shop: Shop, port: int) -> AbstractContextManager[int]:
    """As an ASGI route handler that is a mount."""
    from litestar import Litestar, asgi, post

    async def buy() -> dict[str, int]:
        return await shop.buy()

    mounted = asgi(PREFIX, is_mount=True, copy_scope=True)(shop.receiver.asgi())
    handlers = [post("/pictures")(buy), mounted]
    # Its own logging would be the whole test session's.
    return uvicorn_serving(Litestar(handlers, lifespan=[shop.life], logging_config=None), port)


def in_django(shop: Shop, port: int) -> AbstractContextManager[int]:
    """Django has no mount and no lifespan: a function before it has both."""
    from django.conf import settings  # type: ignore[import-untyped]  # it has no types
    from django.core.asgi import get_asgi_application  # type: ignore[import-untyped]  # as above
    from django.http import HttpRequest, JsonResponse  # type: ignore[import-untyped]  # as above
    from django.urls import path  # type: ignore[import-untyped]  # as above

    async def buy(_: HttpRequest) -> JsonResponse:
        return JsonResponse(await shop.buy())

    urls = sys.modules["tests_django_urls"] = ModuleType("tests_django_urls")
    urls.urlpatterns = [path("pictures", buy)]  # type: ignore[attr-defined]
    if not settings.configured:
        settings.configure(ROOT_URLCONF=urls.__name__, ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)

    hooks, site = shop.receiver.asgi(), get_asgi_application()

    async def live(receive: Callable[[], Any], send: Callable[[dict[str, object]], Any]) -> None:
        await receive()
        async with shop.life():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
        elif scope["type"] == "http" and scope["path"].startswith(f"{PREFIX}/"):
            await hooks(scope, receive, send)
        else:
            await site(scope, receive, send)

    return uvicorn_serving(application, port)


FRAMEWORKS = {
    "aiohttp": in_aiohttp,
    "fastapi": in_fastapi,
    "starlette": in_starlette,
    "litestar": in_litestar,
    "django": in_django,
}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_callback_through_the_mount_wakes_the_request(name: str) -> None:
    """POST /pictures is answered by the one look that the callback caused; none was due yet."""
    port = free_port()
    receiver = CallbackReceiver(f"http://127.0.0.1:{port}{PREFIX}")
    answers = []
    with (
        SandboxThread(auto=False) as sandbox,
        FRAMEWORKS[name](Shop(sandbox, receiver), port),
    ):
        asking = threading.Thread(target=lambda: answers.append(ask(port, "POST", "/pictures")))
        asking.start()
        wait_until(lambda: sandbox.ledger.accepted)
        [accepted] = sandbox.ledger.accepted
        sandbox.finish(accepted.task_id)
        asking.join(30)
        wait_until(lambda: sandbox.ledger.callbacks and sandbox.ledger.callbacks[0].status)
        assert [each.status for each in sandbox.ledger.callbacks] == [200]
        assert sandbox.ledger.looks(accepted.task_id) == 1
        stranger = ask(port, "POST", f"{PREFIX}/{new_token()}", {})
        assert stranger.status == 404
        assert ask(port, "GET", f"{PREFIX}/{new_token()}").status == 405
    [answer] = answers
    assert answer.status in {200, 201}
    assert answer.json == {"files": 4, "callbacks": 1}


# ─── prefix × root_path × trailing slash ─────────────────────────────────────────────────────────


@pytest.fixture
def attached() -> Iterator[tuple[CallbackReceiver, OneToken]]:
    """A receiver whose inbox lives in the event loop of another thread than the mount's."""
    receiver, inbox = CallbackReceiver("https://me.example/hook"), OneToken()
    with a_loop_in_a_thread() as run:
        run(receiver.attach(inbox))
        yield receiver, inbox
        run(receiver.detach(inbox))


def _mounted(hooks: ASGIApplication, prefix: str) -> object:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    return Starlette(routes=[Mount(prefix, app=hooks)])


@pytest.mark.parametrize("root_path", ["", "/api"])
@pytest.mark.parametrize("prefix", [None, "", "/hooks", "/a/b%20c/d"])
def test_any_prefix_root_path_and_slash(
    prefix: str | None, root_path: str, attached: tuple[CallbackReceiver, OneToken]
) -> None:
    """The token is the last segment that is not empty; None is the application by itself."""
    receiver, inbox = attached
    token = inbox.token
    app = receiver.asgi()
    served = app if prefix is None else _mounted(app, prefix.replace("%20", " "))
    body = json.loads(callback())
    with uvicorn_serving(served, root_path=root_path) as port:
        for number, slash in enumerate(("", "/", "//"), start=1):
            answer = ask(port, "POST", f"{prefix or ''}/{token}{slash}", body)
            assert (200, b"", number) == (answer.status, answer.body, inbox.taken)
            assert ask(port, "POST", f"{prefix or ''}/{slash}", body).status == 404
        assert ask(port, "PUT", f"{prefix or ''}/{token}").status == 405


@pytest.mark.parametrize("prefix", ["/hooks/midapi/", "/hooks"])
def test_any_prefix_and_slash_in_aiohttp(
    prefix: str, attached: tuple[CallbackReceiver, OneToken]
) -> None:
    """As above, for the sub-application; a large body and an encoding are refused as anywhere."""
    receiver, inbox = attached
    token = inbox.token
    app = web.Application()
    app.add_subapp(prefix, receiver.aiohttp_app())
    place = f"{prefix.rstrip('/')}/{token}"
    body = json.loads(callback())
    with aiohttp_serving(app) as port:
        for number, slash in enumerate(("", "/", "//"), start=1):
            answer = ask(port, "POST", place + slash, body)
            assert (200, b"", number) == (answer.status, answer.body, inbox.taken)
        get = ask(port, "GET", place)
        assert (
            get.status,
            get.headers["allow"],
            get.headers["connection"],
        ) == (405, "POST", "close")
        assert ask(port, "POST", f"{place}x", body).status == 404
        assert ask(port, "POST", place, ["x" * 70_000]).status == 413
        assert ask(port, "POST", place, body, {"Content-Encoding": "gzip"}).status == 415
        assert ask(port, "POST", place, []).status == 200
    assert inbox.taken == 4


# ─── senders that no framework protects from ─────────────────────────────────────────────────────

MOUNTS: dict[str, Callable[[CallbackReceiver], AbstractContextManager[int]]] = {
    "uvicorn": lambda receiver: uvicorn_serving(_mounted(receiver.asgi(), PREFIX)),
    "aiohttp": lambda receiver: aiohttp_serving(_with_subapp(receiver)),
}


def _with_subapp(receiver: CallbackReceiver) -> web.Application:
    app = web.Application()
    app.add_subapp(PREFIX, receiver.aiohttp_app())
    return app


def talk(port: int, *parts: bytes, hangs_up: bool = False) -> bytes:
    """Send raw bytes; return everything that is said until the server closes."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        with suppress(ConnectionError):
            for part in parts:
                line.sendall(part)
            while not hangs_up and (some := line.recv(65536)):
                said += some
    return said


def head(token: str, *lines: str) -> bytes:
    """The head of a POST."""
    first = f"POST {PREFIX}/{token} HTTP/1.1"
    return "".join(f"{line}\r\n" for line in (first, "Host: x", *lines, "")).encode()


@pytest.mark.fault("C10")
@pytest.mark.fault("C11")
@pytest.mark.fault("C14")
@pytest.mark.fault("C24")
@pytest.mark.parametrize("name", MOUNTS)
def test_hostile_senders_over_sockets(
    name: str,
    attached: tuple[CallbackReceiver, OneToken],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Large, encoded and slow bodies, and senders that hang up: each is answered and cut."""
    monkeypatch.setattr(receiver_module, "READ_SECONDS", 0.5)
    receiver, inbox = attached
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    chunked = "Transfer-Encoding: chunked"
    cases: list[tuple[int, list[bytes]]] = [
        (404, [head("mjt_unknown", "Content-Length: 65536")]),
        (404, [head("mjt_unknown", chunked)]),
        (413, [head(inbox.token, "Content-Length: 100000000")]),
        (413, [head(inbox.token, chunked), *[chunk] * 17]),
        (415, [head(inbox.token, "Content-Length: 9", "Content-Encoding: gzip")]),
        (408, [head(inbox.token, "Content-Length: 9"), b"{"]),
    ]
    with MOUNTS[name](receiver) as port:
        for expected, parts in cases:
            said = talk(port, *parts)
            assert f"{expected}".encode() == said.split()[1], said
        # aiohttp does not report a malformed chunk to a reader that waits for the body already.
        garbage = talk(port, head(inbox.token, chunked), b"no chunk\r\n")
        assert garbage.split()[1] in {b"400", b"408"}
        # A sender that goes on sending is cut, and may never read the answer.
        assert talk(port, head(inbox.token, chunked), *[chunk] * 1000).split()[1:2] in (
            [],
            [b"413"],
        )
        for parts in ([], [b"{"], [callback()[:20]]):
            talk(port, head(inbox.token, "Content-Length: 5000"), *parts, hangs_up=True)
            talk(port, head(inbox.token, chunked), b"5\r\n{", *parts, hangs_up=True)
        assert inbox.taken == 0
        half = len(callback()) // 2
        pieces = [callback()[:half], callback()[half:]]
        good = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in pieces)
        said = talk(port, head(inbox.token, chunked, "Connection: close"), good, b"0\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 200 ")
        assert inbox.taken == 1
    ours = [each for each in caplog.records if each.name.startswith("midapi_async")]
    assert {"Rejected malformed callback"} >= {each.getMessage().partition(":")[0] for each in ours}
