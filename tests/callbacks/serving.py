"""Real servers for the tests of mounts: in a thread of this process, or as a process of its own."""

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import attrs
import uvicorn
from aiohttp import web

from tests.support.waiting import SECONDS, wait_until

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"


def bound_socket(port: int = 0) -> socket.socket:
    """A socket on a port of loopback; 0 picks one."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


@attrs.frozen
class Answer:
    """What a server answered; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> object:
        """The body as JSON."""
        return json.loads(self.body)


def ask(
    port: int,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request on its own connection, and read the answer; the body is JSON, or bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    kind = {"Content-Type": "application/json"} if body is not None else {}
    try:
        connection.request(method, path, data, {**kind, **(headers or {})})
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())
    finally:
        connection.close()


def in_thread(work: Coroutine[object, object, None]) -> threading.Thread:
    """Run a coroutine in a thread, on a loop of its own."""
    thread = threading.Thread(target=asyncio.run, args=(work,), daemon=True)
    thread.start()
    return thread


@contextmanager
def a_loop_in_a_thread() -> Iterator[Callable[[Coroutine[object, object, None]], None]]:
    """An event loop that runs in a thread; gives a function that runs a coroutine in it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SECONDS)
        loop.close()


@contextmanager
def uvicorn_serving(app: object, port: int = 0, *, root_path: str = "") -> Iterator[int]:
    """Serve an ASGI application by uvicorn in a thread; gives the port."""
    listener = bound_socket(port)
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # of any framework
        root_path=root_path,
        log_config=None,
        access_log=False,
        lifespan="on",  # an application that does not answer that is an error
    )
    server = uvicorn.Server(config)
    thread = in_thread(server.serve([listener]))
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


@contextmanager
def aiohttp_serving(app: web.Application, port: int = 0) -> Iterator[int]:
    """Serve an aiohttp application in a thread; gives the port."""
    listener = bound_socket(port)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def live() -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, lingering_time=0.5)
        stop = asyncio.Event()
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
        except BaseException as error:
            started.set_exception(error)
            raise
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        await runner.cleanup()

    thread = in_thread(live())
    loop, stop = started.result(SECONDS)
    try:
        yield int(listener.getsockname()[1])
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(SECONDS)
        assert not thread.is_alive()


@contextmanager
def process(port: int, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Run Python as a user does, until it listens on a port; killed if it has not ended by then."""
    old = {name: value for name, value in os.environ.items() if not name.startswith("MIDAPI_")}
    paths = os.pathsep.join([str(REPOSITORY), str(EXAMPLES)])
    started = subprocess.Popen(
        [sys.executable, *arguments],
        env={**old, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: is_listening(port) or started.poll() is not None)
        assert started.poll() is None, started.communicate()[0]
        yield started
    finally:
        if started.poll() is None:
            started.terminate()
        try:
            said, _ = started.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            said, _ = started.communicate()
        print(said)


def is_listening(port: int) -> bool:
    """Whether a port of loopback is listened on."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
