"""The ASGI application by itself, without a server: what the protocol allows and senders do."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest

from midapi_async import CallbackReceiver, JournalError
from midapi_async._wire.tokens import new_token, token_hash
from midapi_async.callbacks.http.answer import LARGEST_BODY
from midapi_async.callbacks.http.asgi import ASGIApplication
from midapi_async.callbacks.receiver import READ_SECONDS
from midapi_async.journal import Intent
from tests.callbacks.test_receiver import callback, signed
from tests.support.secrets import WEBHOOK_KEY

Message = dict[str, object]
Headers = list[tuple[bytes, bytes]]
GONE: Message = {"type": "http.disconnect"}


def piece(body: bytes, *, more: bool = False) -> Message:
    """A part of a body."""
    return {"type": "http.request", "body": body, "more_body": more}


class OneToken:
    """An inbox that knows one token, counts its callbacks, and raises `failure`."""

    def __init__(self) -> None:
        self.token = new_token()
        self.taken = 0
        self.failure: Exception | None = None
        self._row = Intent(
            intent_id="i",
            scope="s",
            request=None,
            fingerprint="f",
            token_hash=token_hash(self.token),
            created_at=0.0,
        )

    async def find(self, token_hash: str) -> Intent | None:
        if self.failure is not None:
            raise self.failure
        return self._row if token_hash == self._row.token_hash else None

    def task_ids(self, row: Intent) -> Collection[str]:
        return [row.task_id] if row.task_id else []

    async def take(self, row: Intent, callback: object) -> int:
        self.taken += 1
        return 200


@attrs.define
class Stage:
    """An application, what it is given, and what it sent."""

    app: ASGIApplication
    inbox: OneToken
    sent: list[Message] = attrs.field(factory=list)
    received: int = 0

    @property
    def status(self) -> object:
        """The one status that was answered."""
        [start] = [each for each in self.sent if each["type"] == "http.response.start"]
        return start["status"]

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The headers of the answer."""
        return dict(self.sent[0]["headers"])  # type: ignore[call-overload, no-any-return]  # bytes

    async def run(self, scope: Mapping[str, object], *messages: Message | Exception) -> None:
        """Serve one connection; after these messages nothing more comes."""
        left = list(messages)

        async def receive() -> Message:
            self.received += 1
            if not left:
                await asyncio.get_running_loop().create_future()
            message = left.pop(0)
            if isinstance(message, Exception):
                raise message
            return message

        async def send(message: Message) -> None:
            self.sent.append(message)

        await self.app(scope, receive, send)

    async def post(
        self,
        *messages: Message | Exception,
        path: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        **scope: object,
    ) -> None:
        """Serve one POST."""
        place = f"/hooks/{self.inbox.token}" if path is None else path
        http = {"type": "http", "method": "POST", "path": place, "headers": headers, **scope}
        await self.run(http, *messages)


@asynccontextmanager
async def a_stage(**options: object) -> AsyncIterator[Stage]:
    receiver, inbox = CallbackReceiver("https://me.example", **options), OneToken()  # type: ignore[arg-type]
    await receiver.attach(inbox)
    yield Stage(receiver.asgi(), inbox)
    await receiver.detach(inbox)


async def test_a_body_in_pieces() -> None:
    """Pieces of any size, empty ones and missing keys included, are one body."""
    body = callback()
    async with a_stage() as stage:
        parts = [piece(body[n : n + 1], more=True) for n in range(len(body))]
        parts.insert(3, {"type": "http.request", "more_body": True})
        await stage.post(*parts, {"type": "http.request"})
        assert (stage.status, stage.inbox.taken) == (200, 1)
        assert stage.headers == {b"content-length": b"0"}
        assert [m["type"] for m in stage.sent] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize(
    ("path", "root_path"),
    [
        ("/{}", ""),
        ("/{}/", ""),
        ("/hooks//{}//", ""),
        ("/api/hooks/{}", "/api"),
        ("/api/hooks/{}", "/api/hooks"),
        ("{}", ""),
    ],
)
async def test_the_token_is_the_last_segment(path: str, root_path: str) -> None:
    """The prefix and the framework's root path do not matter."""
    async with a_stage() as stage:
        place = path.format(stage.inbox.token)
        await stage.post(piece(callback()), path=place, root_path=root_path)
        assert stage.status == 200


@pytest.mark.parametrize("path", ["", "/", "//", "/hooks/", "/mjt_x", "/é", "/\udce9", "/" * 9000])
@pytest.mark.fault("C8")
@pytest.mark.fault("C24")
async def test_no_body_is_read_for_an_unknown_token(path: str) -> None:
    """404 before anything of the body is received, and the connection is closed."""
    async with a_stage() as stage:
        await stage.post(path=path)
        assert (stage.status, stage.received) == (404, 0)
        assert stage.headers[b"connection"] == b"close"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "post"])
@pytest.mark.fault("C13")
async def test_other_methods_are_405(method: str) -> None:
    """405, with the one that is allowed; nothing is read."""
    async with a_stage() as stage:
        await stage.post(method=method)
        assert (stage.status, stage.received, stage.headers[b"allow"]) == (405, 0, b"POST")


@pytest.mark.fault("C10")
async def test_a_body_declared_as_too_large_is_413() -> None:
    """413 before anything is received; a length that is no number is the server's business."""
    for length in (str(LARGEST_BODY + 1), "9" * 5000, "100000000"):
        async with a_stage() as stage:
            await stage.post(headers=[(b"Content-Length", length.encode())])
            assert (stage.status, stage.received) == (413, 0)
    async with a_stage() as stage:
        await stage.post(piece(callback()), headers=[(b"content-length", b"-1\xb2")])
        assert stage.status == 200


@pytest.mark.fault("C10")
async def test_endless_pieces_are_413() -> None:
    """Cut at 64 KiB: 413, and no piece more is received."""
    async with a_stage() as stage:
        await stage.post(*[piece(b"x" * 4096, more=True)] * 100)
        assert (stage.status, stage.received) == (413, LARGEST_BODY // 4096 + 1)


@pytest.mark.fault("C11")
async def test_an_encoding_is_415() -> None:
    """415 before anything is received."""
    async with a_stage() as stage:
        await stage.post(headers=[(b"Content-Encoding", b"gzip")])
        assert (stage.status, stage.received) == (415, 0)


@pytest.mark.parametrize("begun", [[], [piece(b"{", more=True)]], ids=["nothing", "half"])
@pytest.mark.fault("C14")
async def test_a_missing_body_is_408(begun: list[Message]) -> None:
    """408 at the deadline."""
    async with a_stage() as stage:
        started = asyncio.get_running_loop().time()
        await stage.post(*begun)
        waited = asyncio.get_running_loop().time() - started
        assert (stage.status, stage.headers[b"connection"]) == (408, b"close")
        assert pytest.approx(READ_SECONDS, abs=0.1) == waited


@pytest.mark.fault("C14")
async def test_a_body_of_one_byte_a_second_is_408() -> None:
    """The deadline is the whole body's, not that of each piece."""
    async with a_stage() as stage:
        app = stage.app

        async def receive() -> Message:
            await asyncio.sleep(1)
            return piece(b" ", more=True)

        async def send(message: Message) -> None:
            stage.sent.append(message)

        path = f"/{stage.inbox.token}"
        await app({"type": "http", "method": "POST", "path": path}, receive, send)
        assert stage.status == 408


@pytest.mark.parametrize("begun", [[], [piece(b"{", more=True)]], ids=["before", "in it"])
async def test_a_sender_that_goes_away(begun: list[Message]) -> None:
    """Nothing is taken, nothing is sent, nothing is raised."""
    async with a_stage() as stage:
        await stage.post(*begun, GONE)
        assert (stage.sent, stage.inbox.taken) == ([], 0)


async def test_a_sender_that_goes_before_the_answer() -> None:
    """What a server raises then (OSError, says ASGI) is no error of the application's."""
    async with a_stage() as stage:
        done = [piece(callback())]

        async def receive() -> Message:
            return done.pop()

        async def send(message: Message) -> None:
            raise BrokenPipeError

        path = f"/{stage.inbox.token}"
        await stage.app({"type": "http", "method": "POST", "path": path}, receive, send)
        assert stage.inbox.taken == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 60_000, b"\xff\xfe", b'{"taskId": "../x"}'])
@pytest.mark.fault("C12")
@pytest.mark.fault("C25")
async def test_the_inbox_decides_about_an_unreadable_callback(body: bytes) -> None:
    """It is given the callback of a valid token whatever the body is."""
    async with a_stage() as stage:
        await stage.post(piece(body))
        assert (stage.status, stage.inbox.taken) == (200, 1)


@pytest.mark.fault("C4")
async def test_signatures_are_checked() -> None:
    """Header names of any case; doubled ones do not hold; bytes that are no ASCII do no harm."""
    good = [(name.encode(), value.encode()) for name, value in signed().items()]
    upper = [(name.upper(), value) for name, value in good]
    cases: list[tuple[int, Headers]] = [
        (200, good),
        (200, upper),
        (401, []),
        (401, [*good, good[0]]),
        (401, [good[0], (good[1][0], b"\xff\xfe")]),
    ]
    for expected, headers in cases:
        async with a_stage(webhook_key=WEBHOOK_KEY) as stage:
            await stage.post(piece(callback()), headers=headers)
            assert stage.status == expected


@pytest.mark.fault("C21")
async def test_a_broken_journal_is_503_and_a_bug_is_500(caplog: pytest.LogCaptureFixture) -> None:
    """503 and 500; neither reaches the framework."""
    async with a_stage() as stage:
        stage.inbox.failure = JournalError("gone")
        await stage.post(piece(callback()))
        assert stage.status == 503
    async with a_stage() as stage:
        stage.inbox.failure = RuntimeError("a defect")
        await stage.post(piece(callback()))
        assert stage.status == 500
    assert "because of a bug" in caplog.text


async def test_without_an_open_client() -> None:
    """503: MidAPI sends again."""
    stage = Stage(CallbackReceiver("https://me.example").asgi(), OneToken())
    await stage.post(piece(callback()))
    assert stage.status == 503


async def test_http_2_has_no_connection_header() -> None:
    """There it would be an error of protocol."""
    async with a_stage() as stage:
        await stage.post(path="/x", http_version="2")
        assert stage.headers == {b"content-length": b"0"}


async def test_it_answers_lifespan() -> None:
    """As a server asks that runs it alone; a mounted application is not asked."""
    async with a_stage() as stage:
        messages: list[Message] = [{"type": f"lifespan.{each}"} for each in ("startup", "shutdown")]
        await stage.run({"type": "lifespan"}, *messages)
        expected = ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert [each["type"] for each in stage.sent] == expected


async def test_a_websocket_is_closed() -> None:
    """Before it is accepted: the server answers 403."""
    async with a_stage() as stage:
        path = f"/{stage.inbox.token}"
        await stage.run({"type": "websocket", "path": path}, {"type": "websocket.connect"})
        assert stage.sent == [{"type": "websocket.close", "code": 1008}]


async def test_an_unknown_scope_is_refused() -> None:
    """As ASGI wants it: by an exception, so that the server knows."""
    async with a_stage() as stage:
        with pytest.raises(ValueError, match="'carrier pigeon'"):
            await stage.run({"type": "carrier pigeon"})


@pytest.mark.parametrize("when", ["reading", "taking"])
async def test_a_framework_that_cancels(when: str) -> None:
    """The cancellation goes through, and leaves nothing behind."""
    held = asyncio.Event()

    class Slow(OneToken):
        async def take(self, row: Intent, callback: object) -> int:
            held.set()
            await asyncio.sleep(1000)
            return 200

    receiver, inbox = CallbackReceiver("https://me.example"), Slow()
    await receiver.attach(inbox)
    stage = Stage(receiver.asgi(), inbox)
    serving = asyncio.create_task(stage.post(*[piece(callback())] * (when == "taking")))
    await asyncio.sleep(1)
    assert held.is_set() == (when == "taking")
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert stage.sent == []


def test_it_is_what_frameworks_expect() -> None:
    """A coroutine function of (scope, receive, send): some servers and Litestar look at that."""
    import inspect

    app: Callable[..., object] = CallbackReceiver("https://me.example").asgi()
    assert inspect.iscoroutinefunction(app)
    assert list(inspect.signature(app).parameters) == ["scope", "receive", "send"]
