"""`CallbackReceiver.handle` in other event loops and threads, and with any framework's values."""

import asyncio
import gc
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, make_server

import attrs
import multidict
import pytest
from starlette.datastructures import Headers as StarletteHeaders

from midapi_async import (
    CallbackReceiver,
    InvalidRequestError,
    MemoryJournal,
    MidAPIClient,
    ReceiverError,
    TaskDetails,
)
from midapi_async.callbacks import Body, Headers, sign_callback
from midapi_async.callbacks import receiver as receiver_module
from midapi_async.journal import Intent
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import Faults, Sandbox, lose_answer, never_call_back
from tests.callbacks.raw import a_desk
from tests.callbacks.serving import a_loop_in_a_thread, ask
from tests.callbacks.test_receiver import EveryToken, callback
from tests.support.secrets import WEBHOOK_KEY
from tests.support.waiting import free_port
from tests.world import TASK, client_of

# ─── views that are not async ────────────────────────────────────────────────────────────────────


@contextmanager
def a_sync_site(receiver: CallbackReceiver) -> Iterator[int]:
    """A WSGI server with one view, which is as Django's and Flask's are; gives its port."""

    def application(
        environ: Mapping[str, Any], start: Callable[[str, list[tuple[str, str]]], object]
    ) -> list[bytes]:
        # As in Django: a request's headers, and all of its body.
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").title(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        token = environ["PATH_INFO"].rpartition("/")[2]
        status = asyncio.run(receiver.handle(token, headers, body))
        start(f"{status} Answered", [("Content-Length", "0")])
        return []

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    with make_server("127.0.0.1", 0, application, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@attrs.define
class Order:
    """An order whose POST's answer was lost, at a client that waits for its callback."""

    receiver: CallbackReceiver
    token: str
    body: bytes
    result: "asyncio.Task[TaskDetails]"
    client: MidAPIClient


async def an_order(sandbox: Sandbox, client: MidAPIClient, receiver: CallbackReceiver) -> Order:
    """Submit a prompt whose answer is lost."""
    waiting = asyncio.create_task(client.generate_and_wait("a red fox"))
    while not await client.intents.unknown():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.01)
    bought = sandbox.ledger.accepted[0]
    return Order(
        receiver=receiver,
        token=str(bought.callback_url).rpartition("/")[2],
        body=callback(bought.task_id),
        result=waiting,
        client=client,
    )


def lost() -> Sandbox:
    """A sandbox whose first submission gets no answer, and which sends no callbacks."""
    plan = Faults().on("submit", first=1, do=lose_answer()).on("callback", do=never_call_back())
    return Sandbox(time_scale=60, faults=plan)


@pytest.fixture(params=["memory", "folder"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryJournal | SQLiteJournal:
    """A journal of either kind; the test closes it."""
    return MemoryJournal() if request.param == "memory" else SQLiteJournal(tmp_path)


@pytest.mark.fault("C29")
@pytest.mark.real_time
async def test_a_sync_view_settles_a_lost_answer(journal: MemoryJournal | SQLiteJournal) -> None:
    """`asyncio.run(receiver.handle(…))` in the thread of a WSGI server, over real sockets."""
    receiver = CallbackReceiver("http://127.0.0.1:9/hooks")
    async with (
        lost() as sandbox,
        MidAPIClient(
            "a-key", base_url=sandbox.url, time_scale=60, receiver=receiver, journal=journal
        ) as client,
    ):
        order = await an_order(sandbox, client, receiver)
        with a_sync_site(receiver) as port:
            path, data = f"/hooks/{order.token}", json.loads(order.body)
            # Several at once, each in an event loop of its own.
            posts = [asyncio.to_thread(ask, port, "POST", path, data) for _ in range(3)]
            assert [each.status for each in await asyncio.gather(*posts)] == [200] * 3
            assert (await asyncio.to_thread(ask, port, "POST", f"{path}x", data)).status == 404
        assert (await order.result).urls
        assert client.stats().callbacks == 3
    await journal.aclose()


@pytest.mark.fault("C29")
def test_a_loop_in_the_main_thread_and_the_client_in_another(
    journal: MemoryJournal | SQLiteJournal,
) -> None:
    """As in a program whose client lives in a thread: each `handle` has a short loop of its own."""
    receiver = CallbackReceiver("http://127.0.0.1:9/hooks")
    ordered: list[Order] = []
    over: list[asyncio.Event] = []

    async def live() -> None:
        over.append(asyncio.Event())
        async with (
            lost() as sandbox,
            MidAPIClient(
                "a-key", base_url=sandbox.url, time_scale=60, receiver=receiver, journal=journal
            ) as client,
        ):
            ordered.append(await an_order(sandbox, client, receiver))
            assert (await ordered[0].result).urls
            await over[0].wait()
        await journal.aclose()

    with ThreadPoolExecutor(1) as threads:
        living = threads.submit(asyncio.run, live())
        deadline = time.monotonic() + 20
        while not ordered:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        order = ordered[0]
        for _ in range(3):
            assert asyncio.run(receiver.handle(order.token, {}, order.body)) == 200
        order.result.get_loop().call_soon_threadsafe(over[0].set)
        living.result(20)
        # Its client is closed, and so is its event loop.
        assert asyncio.run(receiver.handle(order.token, {}, order.body)) == 503


# ─── event loops that do not answer ──────────────────────────────────────────────────────────────


class Stuck(EveryToken):
    """An inbox whose `take` does something to its own event loop."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.do = do
        self.cancelled = 0

    async def take(self, row: Intent, callback: object) -> int:
        self.do()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return 200


def handled(receiver: CallbackReceiver) -> int:
    """What a view that is not async gets."""
    return asyncio.run(receiver.handle("token", {}, callback()))


@pytest.mark.fault("C29")
def test_a_loop_that_is_blocked_is_503_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded time later; when the loop goes on, nothing is left in it."""
    monkeypatch.setattr(receiver_module, "ANSWER_SECONDS", 0.3)
    receiver, inbox = CallbackReceiver("https://me.example"), Stuck(lambda: time.sleep(1))
    with a_loop_in_a_thread() as run:
        run(receiver.attach(inbox))
        begun = time.monotonic()
        assert handled(receiver) == 503
        assert time.monotonic() - begun < 0.8
        run(asyncio.sleep(0))
        assert inbox.cancelled == 1
        run(receiver.detach(inbox))


@pytest.mark.fault("C29")
@pytest.mark.parametrize("how", ["cancels all", "stops"])
def test_a_loop_that_ends_meanwhile_is_503(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it cancels what runs in it, as `asyncio.run` does, or not."""
    monkeypatch.setattr(receiver_module, "ANSWER_SECONDS", 0.3)
    receiver, over = CallbackReceiver("https://me.example"), threading.Event()
    loop = asyncio.new_event_loop()

    def end() -> None:
        if how == "cancels all":
            for task in asyncio.all_tasks(loop):
                task.cancel()
        else:
            loop.call_soon(loop.stop)

    def live() -> None:
        loop.run_until_complete(receiver.attach(Stuck(end)))
        loop.call_soon(over.set)
        loop.run_forever()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    assert over.wait(10)
    assert handled(receiver) == 503
    if how == "cancels all":
        loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.fault("C29")
@pytest.mark.parametrize("seconds", [0, 0.1])
def test_a_loop_that_was_closed_a_moment_ago_is_503(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or that is closed before it begins: no error, and no coroutine that was never awaited."""
    monkeypatch.setattr(receiver_module, "ANSWER_SECONDS", 0.3)
    receiver, loop = CallbackReceiver("https://me.example"), asyncio.new_event_loop()
    loop.run_until_complete(receiver.attach(EveryToken()))
    here = threading.current_thread()
    # For `handle` it runs; what closes it sees that it does not.
    monkeypatch.setattr(loop, "is_running", lambda: threading.current_thread() is here)
    closing = threading.Timer(seconds, loop.close)
    closing.start()
    if not seconds:
        closing.join()
    assert handled(receiver) == 503
    closing.join()
    gc.collect()


@pytest.mark.fault("C29")
@pytest.mark.real_time
async def test_a_caller_that_leaves_cancels_its_work_in_the_other_loop() -> None:
    """As a web framework does when the sender has disconnected."""
    receiver, begun = CallbackReceiver("https://me.example"), threading.Event()
    inbox = Stuck(begun.set)
    with a_loop_in_a_thread() as run:
        run(receiver.attach(inbox))
        handling = asyncio.create_task(receiver.handle("token", {}, callback()))
        await asyncio.to_thread(begun.wait, 10)
        handling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handling
        run(asyncio.sleep(0.01))
        assert inbox.cancelled == 1
        run(receiver.detach(inbox))


# ─── event loops that ended without close ────────────────────────────────────────────────────────


@pytest.mark.fault("C29")
@pytest.mark.fault("L7")
@pytest.mark.fault("L10")
@pytest.mark.parametrize("again", ["same client", "new client"])
def test_a_receiver_with_a_port_works_again_after_a_crash(again: str) -> None:
    """The first `asyncio.run` ended with an exception, and nothing was closed; twice."""
    port = free_port()
    receiver = CallbackReceiver(f"http://127.0.0.1:{port}", port=port)
    journal = MemoryJournal()
    client = client_of("http://127.0.0.1:9", receiver=receiver, journal=journal)

    async def crash(client: MidAPIClient) -> None:
        await client.open()
        assert (await asyncio.to_thread(ask, port, "POST", "/unknown", {})).status == 404
        raise ZeroDivisionError

    async def live(client: MidAPIClient) -> None:
        async with client:
            assert (await asyncio.to_thread(ask, port, "POST", "/unknown", {})).status == 404

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                asyncio.run(crash(client))
            if again == "new client":
                client = client_of("http://127.0.0.1:9", receiver=receiver, journal=journal)
            gc.collect()
        asyncio.run(live(client))
        gc.collect()
        ours = sum("MidAPIClient" in str(each.message) for each in caught)
        caught.clear()  # they keep what they warn of
        gc.collect()
    assert ours == (2 if again == "new client" else 0)


@pytest.mark.fault("C29")
def test_clients_in_several_loops_share_a_receiver_without_a_port() -> None:
    """Each gets its own tokens; with a port, the receiver belongs to one loop."""
    receiver = CallbackReceiver("https://me.example")
    listening = CallbackReceiver(None, port=0)
    with a_loop_in_a_thread() as one, a_loop_in_a_thread() as two:
        first, second = EveryToken(), EveryToken()
        one(receiver.attach(first))
        two(receiver.attach(second))
        assert handled(receiver) == 200
        one(receiver.detach(first))
        assert handled(receiver) == 200
        two(receiver.detach(second))
        assert handled(receiver) == 503
        one(listening.attach(first))
        with pytest.raises(ReceiverError, match="another event loop"):
            two(listening.attach(second))
        one(listening.detach(first))


# ─── what frameworks give ────────────────────────────────────────────────────────────────────────

TEXT = callback().decode()


async def _reads() -> bytes:
    return TEXT.encode()


BODIES: dict[str, Body] = {
    "bytes": TEXT.encode(),
    "bytearray": bytearray(TEXT.encode()),
    "memoryview": memoryview(TEXT.encode()),
    "str": TEXT,
    "an async function": _reads,
    "a function": TEXT.encode,
}


@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_of_any_type(kind: str) -> None:
    """As frameworks, and clouds' functions, give it."""
    async with a_desk() as desk:
        assert await desk.handle(desk.token, {}, BODIES[kind]) == 200
        assert desk.taken == [TASK]


async def test_a_body_with_a_lone_surrogate_is_a_hint() -> None:
    """It cannot be written as UTF-8, so it cannot be read."""
    async with a_desk() as desk:
        assert await desk.handle(desk.token, {}, TEXT + "\ud800") == 200
        assert desk.taken == [""]


@pytest.mark.parametrize("body", [None, {"taskId": TASK}, 5, ["x"]])
async def test_a_body_that_was_parsed_already_is_an_error(body: object) -> None:
    """The caller made a mistake; the error says what to pass."""
    async with a_desk() as desk:
        with pytest.raises(InvalidRequestError, match="body: must be the body as it came"):
            await desk.handle(desk.token, {}, body)  # type: ignore[arg-type]
        assert desk.taken == []


class _Werkzeug:
    """As `werkzeug.datastructures.Headers`: no mapping; its iterator gives pairs."""

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self._pairs = list(pairs.items())

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def items(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)


def _django(pairs: Mapping[str, str]) -> Headers:
    from django.http.request import HttpHeaders  # type: ignore[import-untyped]  # it has no types

    environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in pairs.items()}
    return cast("Headers", HttpHeaders(environ | {"wsgi.input": None}))


def _of_the_library(pairs: Mapping[str, str]) -> Headers:
    message = Message()  # of `http.server`
    for name, value in pairs.items():
        message[name] = value
    return cast("Headers", message)


def _litestar(pairs: Mapping[str, str]) -> Headers:
    from litestar.datastructures import Headers as LitestarHeaders

    return LitestarHeaders(pairs)


def _raw(pairs: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in pairs.items()]


HEADERS: dict[str, Callable[[Mapping[str, str]], object]] = {
    "dict": dict,
    "pairs": lambda pairs: list(pairs.items()),
    "a generator of pairs": lambda pairs: ((name, value) for name, value in pairs.items()),
    "ASGI": _raw,
    "Starlette": lambda pairs: StarletteHeaders(raw=_raw(pairs)),
    "Litestar": _litestar,
    "aiohttp": lambda pairs: multidict.CIMultiDictProxy(multidict.CIMultiDict(pairs)),
    "Django": _django,
    "Flask": _Werkzeug,
    "http.server": _of_the_library,
    "a number as length": lambda pairs: {**pairs, "Content-Length": len(TEXT)},
}


@pytest.mark.parametrize("framework", HEADERS)
async def test_headers_of_any_framework(framework: str) -> None:
    """The signature is found in them; one too many is found as well, where they can hold it."""
    async with a_desk(webhook_key=WEBHOOK_KEY) as desk:
        pairs = sign_callback(WEBHOOK_KEY, TASK)
        headers = cast("Headers", HEADERS[framework](pairs))
        assert await desk.handle(desk.token, headers, TEXT) == 200
        wrong = cast("Headers", HEADERS[framework](sign_callback(WEBHOOK_KEY, "x")))
        assert await desk.handle(desk.token, wrong, TEXT) == 401
        encoded = cast("Headers", HEADERS[framework]({**pairs, "Content-Encoding": "gzip"}))
        assert await desk.handle(desk.token, encoded, TEXT) == 415
