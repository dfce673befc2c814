"""The standalone server, with exact bytes: what each kind of sender gets, and for how long."""

import asyncio
import gc
import resource
import socket
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable

import pytest

from midapi_async import CallbackReceiver, JournalError, ReceiverError
from midapi_async._wire.tokens import new_token
from midapi_async.callbacks import signature
from midapi_async.callbacks.http import server
from midapi_async.callbacks.http.answer import LARGEST_BODY
from midapi_async.callbacks.http.server import SECONDS
from tests.callbacks.raw import GOOD, TASK, Desk, Sender, a_desk, a_sender, ask, head, request
from tests.support.secrets import WEBHOOK_KEY, assert_none_in


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """A receiver that is open, with one intent."""
    async with a_desk() as opened:
        yield opened


RECEIVING_SECONDS, IDLE_SECONDS = SECONDS["receiving"], SECONDS["idle"]


def now() -> float:
    """Seconds of the loop's clock."""
    return asyncio.get_running_loop().time()


# ─── slow senders ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("said", [b"", b"P", b"POST /hook/x HTTP/1.1\r\nHost: x\r\nX-Half: ye"])
@pytest.mark.fault("C14")
async def test_an_incomplete_header_is_closed_in_time(desk: Desk, said: bytes) -> None:
    """Nothing, or half of it: closed within five seconds, without an answer."""
    async with a_sender(desk.port) as sender:
        begun = now()
        sender.say(said)
        assert await sender.is_cut()
        assert pytest.approx(now() - begun, abs=0.1) == RECEIVING_SECONDS


async def drip(said: bytes, every: float, say: Callable[[bytes], None]) -> None:
    """One byte now and then."""
    for byte in said:
        await asyncio.sleep(every)
        say(bytes([byte]))


@pytest.mark.parametrize("pause", [None, 0.0, RECEIVING_SECONDS + 1, IDLE_SECONDS - 2])
@pytest.mark.fault("C14")
async def test_a_slow_header_is_closed_in_time(desk: Desk, pause: float | None) -> None:
    """Each byte is no new time: neither in the first request nor in one after an answer."""
    async with a_sender(desk.port) as sender:
        if pause is not None:
            assert (await sender.ask(desk.post())).status == 200
            await asyncio.sleep(pause)
        begun = now()
        dripping = asyncio.create_task(drip(desk.post(), 1, sender.say))
        assert await sender.is_cut()
        first_byte = 0 if pause is None else 1
        assert pytest.approx(now() - begun, abs=0.1) == first_byte + RECEIVING_SECONDS
        dripping.cancel()


@pytest.mark.parametrize("every", [1000, 1])
@pytest.mark.fault("C14")
async def test_a_missing_or_slow_body_is_408(desk: Desk, every: float) -> None:
    """Within five seconds; nothing is taken."""
    async with a_sender(desk.port) as sender:
        begun = now()
        sender.say(desk.post(b"", length=len(GOOD)))
        dripping = asyncio.create_task(drip(GOOD, every, sender.say))
        answer = await sender.answer()
        assert (answer.status, answer.closes) == (408, True)
        assert now() - begun <= 5
        assert await sender.is_cut()
        assert now() - begun <= 6
        dripping.cancel()
    assert not desk.taken


@pytest.mark.fault("C14")
async def test_a_body_in_two_parts_is_taken(desk: Desk) -> None:
    """A pause in the middle of it is no fault; nor is the time that its callback takes then."""
    desk.work = lambda: asyncio.sleep(RECEIVING_SECONDS + 1)
    async with a_sender(desk.port) as sender:
        sender.say(desk.post(GOOD[:5], length=len(GOOD)))
        await asyncio.sleep(2)
        assert (await sender.ask(GOOD[5:])).status == 200
    assert desk.taken == [TASK]


@pytest.mark.fault("C14")
async def test_an_idle_connection_is_kept_for_a_while(desk: Desk) -> None:
    """Fifteen seconds after each answer, and not a moment less."""
    async with a_sender(desk.port) as sender:
        for _ in range(3):
            answer = await sender.ask(desk.post())
            assert (answer.status, answer.closes) == (200, False)
            await asyncio.sleep(IDLE_SECONDS - 0.5)
        assert (await sender.ask(desk.post())).status == 200
        begun = now()
        assert await sender.is_cut()
        assert pytest.approx(now() - begun, abs=0.1) == IDLE_SECONDS


@pytest.mark.fault("C14")
async def test_a_sender_that_reads_no_answers_is_closed(desk: Desk) -> None:
    """When they pile up nothing more is taken, and then the connection is cut."""
    assert desk.receiver._server is not None
    listener = desk.receiver._server._listener
    listener.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    async with a_sender(desk.port, receive_buffer=2048) as sender:
        many = 500
        while True:
            before = len(desk.taken)
            sender.say(desk.post() * many)
            await asyncio.sleep(1)
            if len(desk.taken) < before + many:
                break
        stuck = len(desk.taken)
        await asyncio.sleep(IDLE_SECONDS)
        assert stuck == len(desk.taken)
        assert desk.receiver._server.connections == []


@pytest.mark.fault("C14")
async def test_the_oldest_idle_connection_is_closed_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Idle before half-sent before busy, the oldest first; never one whose callback is taken."""
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 5)
    async with a_desk() as desk, a_sender(desk.port) as busy:
        done = asyncio.Event()
        desk.work = done.wait
        busy.say(desk.post())
        await asyncio.sleep(0.1)
        desk.work = None
        async with (
            a_sender(desk.port) as half,
            a_sender(desk.port) as younger_half,
            a_sender(desk.port) as idle,
            a_sender(desk.port) as older_idle,
        ):
            for each in (older_idle, idle):
                assert (await each.ask(desk.post())).status == 200
            half.say(b"POST /")
            order: list[str] = []

            async def watch(sender: Sender, name: str) -> None:
                assert await sender.is_cut()
                order.append(name)

            names = {
                half: "half",
                younger_half: "younger half",
                idle: "idle",
                older_idle: "older idle",
            }
            watches = [asyncio.create_task(watch(each, name)) for each, name in names.items()]
            async with a_sender(desk.port), a_sender(desk.port), a_sender(desk.port) as last:
                await asyncio.sleep(0.1)
                assert order == ["older idle", "idle", "half"]
                assert (await last.ask(desk.post())).status == 200
                done.set()
                assert (await busy.answer()).status == 200
            await asyncio.gather(*watches)


@pytest.mark.fault("C14")
async def test_a_connection_that_receives_a_body_is_closed_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A good token does not help: no callback is being taken before its body is there."""
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    async with a_desk() as desk, a_sender(desk.port) as one, a_sender(desk.port) as other:
        for each in (one, other):
            each.say(desk.post(GOOD[:5], length=len(GOOD)))
        await asyncio.sleep(0.1)
        async with a_sender(desk.port) as good:
            assert (await good.ask(desk.post())).status == 200
            assert await one.is_cut()
            assert (await other.ask(GOOD[5:])).status == 200
        assert desk.taken == [TASK, TASK]


@pytest.mark.fault("C14")
async def test_a_new_connection_is_refused_if_all_are_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is closed at once, and comes again."""
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    async with a_desk() as desk, a_sender(desk.port) as one, a_sender(desk.port) as other:
        done = asyncio.Event()
        desk.work = done.wait
        one.say(desk.post())
        other.say(desk.post())
        await asyncio.sleep(0.1)
        begun = now()
        async with a_sender(desk.port) as late:
            assert await late.is_cut()
        assert begun == pytest.approx(now(), abs=0.1)
        done.set()
        assert (await one.answer()).status == 200
        assert (await other.answer()).status == 200


@pytest.mark.parametrize(("files", "most"), [(None, 1000), (20_000, 1000), (256, 128), (1, 1)])
@pytest.mark.fault("C14")
def test_few_files_mean_few_connections(
    files: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them are left for everything else."""
    limit = resource.RLIM_INFINITY if files is None else files
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert server._most_connections() == most


def make_room(desk: Desk) -> None:
    """Close the connection that has been receiving for longest."""
    next(iter(desk.receiver._server.states["receiving"])).abort()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["nothing", "half", "body", "gone", "cut", "good", "bad", "404"])
@pytest.mark.fault("C14")
async def test_closed_connections_leave_no_reference_cycle(desk: Desk, kind: str) -> None:
    """Nothing waits for the garbage collector, whose pauses are what slow senders could cause."""
    said = {
        "half": b"POST /",
        "body": desk.post(b"", length=50),
        "gone": desk.post(b"", length=50),
        "cut": desk.post(b"", length=50),
        "good": desk.post(),
        "bad": b"nonsense\r\n\r\n",
        "404": request(f"POST /{new_token()}", GOOD),
    }.get(kind, b"")
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            async with a_sender(desk.port) as sender:
                sender.say(said)
                await asyncio.sleep(0.1)
                if kind == "cut":
                    make_room(desk)
                elif kind != "gone":
                    await sender.rest()
            await asyncio.sleep(2)
        left = [each for each in gc.get_objects() if type(each) is server._Connection]
        assert not left
    finally:
        gc.enable()


@pytest.mark.fault("C14")
def test_a_system_without_a_limit_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has none, and no module `resource`."""
    assert 0 < server._most_connections() <= 1000
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    monkeypatch.setitem(sys.modules, "resource", None)
    assert server._most_connections() == 1000


# ─── bodies ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("C10")
async def test_a_body_declared_as_too_large_is_413_at_once(desk: Desk) -> None:
    """100 MB: answered before any of it came, and closed soon, though it does come."""
    async with a_sender(desk.port) as sender:
        begun = now()
        sender.say(desk.post(b"", length=100_000_000))
        answer = await sender.answer()
        assert (answer.status, answer.closes) == (413, True)
        assert begun == pytest.approx(now(), abs=0.1)
        dripping = asyncio.create_task(drip(b"x" * 60, 0.5, sender.say))
        assert await sender.is_cut()
        assert now() - begun <= 2
        dripping.cancel()
    assert (await ask(desk.port, desk.post(b"x" * (LARGEST_BODY + 1)))).status == 413
    assert (await ask(desk.port, desk.post(b"x" * LARGEST_BODY))).status == 200


@pytest.mark.parametrize("size", [1, 0x1000, LARGEST_BODY + 1])
@pytest.mark.fault("C10")
async def test_endless_chunks_are_413(desk: Desk, size: int) -> None:
    """However large each of them is."""
    line = head(f"POST /{desk.token} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
    chunk = f"{size:x}\r\n".encode() + b"x" * size + b"\r\n"
    answer = await ask(desk.port, line, chunk * (LARGEST_BODY // size + 1))
    assert answer.status == 413


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Encoding: gzip"],
        ["content-encoding: br"],
        ["Content-Encoding: identity, gzip"],
        ["Content-Encoding: identity", "Content-Encoding: deflate"],
        ["Content-Encoding: zstd"],
        ["Content-Encoding: \x00"],
    ],
)
@pytest.mark.fault("C11")
async def test_an_encoding_is_refused_before_the_body_comes(desk: Desk, headers: list[str]) -> None:
    """At once, though the body never comes."""
    begun = now()
    answer = await ask(desk.port, desk.post(b"", *headers, length=50))
    assert (400 if "\x00" in headers[0] else 415) == answer.status
    assert now() - begun <= 2
    assert (await ask(desk.port, desk.post(GOOD, "Content-Encoding: identity"))).status == 200


@pytest.mark.parametrize("body", [b"", b"x" * LARGEST_BODY])
@pytest.mark.fault("C24")
async def test_an_unknown_token_is_404_before_its_body_is_read(desk: Desk, body: bytes) -> None:
    """Whether its body comes or not."""
    line = f"POST /hook/{new_token()}"
    answer = await ask(desk.port, request(line, body, length=LARGEST_BODY))
    assert (answer.status, answer.closes) == (404, True)


@pytest.mark.fault("C8")
async def test_a_hundred_thousand_unknown_tokens(desk: Desk) -> None:
    """404 each, and no memory is kept."""

    async def send(times: int) -> None:
        for _ in range(times):
            assert await desk.handle(new_token(), (), GOOD) == 404

    await send(100)
    gc.collect()
    tracemalloc.start()
    try:
        await send(1000)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await send(1000)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()
    before = len(gc.get_objects())
    await send(98_000)
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    for _ in range(200):
        assert (await ask(desk.port, request(f"POST /{new_token()}", GOOD))).status == 404
    assert "0 receiving, 0 idle, 0 busy" in repr(desk.receiver._server)


# ─── callbacks ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("C2")
async def test_a_hundred_duplicates_on_a_hundred_connections(desk: Desk) -> None:
    """All answered 200."""
    answers = await asyncio.gather(*(ask(desk.port, desk.post()) for _ in range(100)))
    assert {answer.status for answer in answers} == {200}
    assert desk.taken == [TASK] * 100


@pytest.mark.fault("C4")
@pytest.mark.fault("C5")
async def test_signatures_over_the_socket() -> None:
    """One good pair is taken, however old; anything else is 401 and changes nothing."""
    time, sign = "1760557532", signature.signature(WEBHOOK_KEY.encode(), TASK, "1760557532")
    stamp, good = f"X-Webhook-Timestamp: {time}", f"X-Webhook-Signature: {sign.decode()}"
    wrong: list[list[str]] = [
        [],
        [stamp],
        [good],
        [stamp, good[:-1]],
        [stamp, good + "\xe9"],
        [stamp, stamp, good],
        [stamp, good, good],
        ["X-Webhook-Timestamp: soon", good],
        ["X-Webhook-Timestamp: 1760557533", good],
    ]
    async with a_desk(webhook_key=WEBHOOK_KEY) as desk:
        for headers in wrong:
            assert (await ask(desk.port, desk.post(GOOD, *headers))).status == 401
        assert not desk.taken
        for names in (stamp, good), (good.replace("X-W", "x-w"), stamp.upper()):
            assert (await ask(desk.port, desk.post(GOOD, *names))).status == 200
        assert desk.taken == [TASK, TASK]


@pytest.mark.fault("C9")
async def test_the_same_callback_again_on_the_same_connection(desk: Desk) -> None:
    """200 each time, and the connection stays."""
    async with a_sender(desk.port) as sender:
        for _ in range(20):
            answer = await sender.ask(desk.post())
            assert (answer.status, answer.closes) == (200, False)


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"data":' * 8_000, b"{", b"", b"null", b"\xff"])
@pytest.mark.fault("C12")
@pytest.mark.fault("C25")
async def test_unreadable_callbacks_with_a_valid_token_are_taken(desk: Desk, body: bytes) -> None:
    """Deep, cut, empty."""
    assert (await ask(desk.port, desk.post(body))).status == 200
    assert desk.taken == [""]


@pytest.mark.fault("C21")
async def test_a_broken_journal_is_503(desk: Desk, caplog: object) -> None:
    """So that MidAPI sends it again; then it is taken."""

    async def find(_: str) -> None:
        raise JournalError("gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk, "find", find)
        assert (await ask(desk.port, desk.post())).status == 503
    assert (await ask(desk.port, desk.post())).status == 200


# ─── malformed requests ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.fault("C13")
async def test_other_methods_are_405(desk: Desk, method: str) -> None:
    """It says which one is allowed, whatever stands in headers that ask for another."""
    sent = request(f"{method} /{desk.token}", GOOD, "X-HTTP-Method-Override: POST")
    answer = await ask(desk.port, sent)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert not desk.taken


@pytest.mark.parametrize("path", ["/", "//", "/hook", "*", "/%00", "/?token=TOKEN", "/TOKEN/x"])
@pytest.mark.fault("C13")
async def test_other_paths_are_4xx(desk: Desk, path: str) -> None:
    """Whatever headers say about the path or the host that was meant."""
    line = f"POST {path.replace('TOKEN', desk.token)}"
    sent = request(
        line, GOOD, f"X-Original-URL: /{desk.token}", f"X-Forwarded-Prefix: {desk.token}"
    )
    assert (await ask(desk.port, sent)).status in {400, 404}
    assert not desk.taken


MALFORMED = {
    "nonsense": b"nonsense\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "http_2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version": head("POST /TOKEN HTTP/3.0", "Host: x", "Content-Length: 0"),
    "no_version": head("POST /TOKEN", "Host: x"),
    "a_blank_before_the_colon": head("POST /TOKEN HTTP/1.1", "Host: x", "Content-Length : 0"),
    "a_folded_line": head("POST /TOKEN HTTP/1.1", "Host: x", "X: 1", " 2", "Content-Length: 0"),
    "nul": head("POST /TOKEN HTTP/1.1", "Host: x", "X: \x00", "Content-Length: 0"),
    "no_name": head("POST /TOKEN HTTP/1.1", "Host: x", ": y", "Content-Length: 0"),
    "8_kB_header": head("POST /TOKEN HTTP/1.1", "Host: x", f"X: {'y' * 8000}"),
    "8_kB_path": head(f"POST /{'y' * 8000}/TOKEN HTTP/1.1", "Host: x"),
    "8_kB_name": head("POST /TOKEN HTTP/1.1", "Host: x", f"{'y' * 8000}: x"),
    "200_headers": head("POST /TOKEN HTTP/1.1", "Host: x", *["X: y"] * 200),
    "length_negative": head("POST /TOKEN HTTP/1.1", "Host: x", "Content-Length: -1"),
    "length_with_a_sign": head("POST /TOKEN HTTP/1.1", "Host: x", "Content-Length: +9"),
    "length_hexadecimal": head("POST /TOKEN HTTP/1.1", "Host: x", "Content-Length: 0x9"),
    "length_huge": head("POST /TOKEN HTTP/1.1", "Host: x", f"Content-Length: {'9' * 30}"),
    "two_lengths": head(
        "POST /TOKEN HTTP/1.1", "Host: x", "Content-Length: 0", "Content-Length: 9"
    ),
    "lengths_in_a_list": head("POST /TOKEN HTTP/1.1", "Host: x", "Content-Length: 9, 9"),
    "length_and_chunks": head(
        "POST /TOKEN HTTP/1.1", "Host: x", "Content-Length: 5", "Transfer-Encoding: chunked"
    ),
    "chunks_and_length": head(
        "POST /TOKEN HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Content-Length: 5"
    ),
    "unknown_coding": head("POST /TOKEN HTTP/1.1", "Host: x", "Transfer-Encoding: xchunked"),
    "chunked_twice": head(
        "POST /TOKEN HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Transfer-Encoding: x"
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.fault("C13")
async def test_malformed_http_is_4xx_and_closed(desk: Desk, name: str) -> None:
    """Also where two readers could see two requests in it: a smuggled one is not taken."""
    smuggled = desk.post()
    sent = MALFORMED[name].replace(b"TOKEN", desk.token.encode())
    async with a_sender(desk.port) as sender:
        answer = await sender.ask(sent + smuggled)
        assert answer.closes
        assert answer.status in {400, 413}
        assert await sender.is_cut()
    assert not desk.taken


@pytest.mark.parametrize(
    "garbage",
    [
        b"zz\r\n",
        b"-1\r\nx\r\n",
        b"1\r\nxx\r\n0\r\n\r\n",
        b"5\nhello\n",
        b"0\r\nbad trailer\r\n\r\n",
    ],
)
@pytest.mark.fault("C13")
async def test_malformed_chunks_are_refused_and_closed(desk: Desk, garbage: bytes) -> None:
    """At the first one and at a later one: at once, or when the time for a body is over."""
    line = head(f"POST /{desk.token} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
    for parts in ([line + garbage], [line, garbage], [line, b"2\r\n{}\r\n", garbage]):
        async with a_sender(desk.port) as sender:
            begun = now()
            for part in parts:
                sender.say(part)
                await asyncio.sleep(0.1)
            assert (await sender.answer()).status in {400, 408}
            await sender.rest()
            assert now() - begun <= 6
    assert not desk.taken


async def test_chunks_are_taken_as_a_proxy_may_send_them(desk: Desk) -> None:
    """With extensions and a trailer, each byte on its own."""
    line = head(f"POST /{desk.token} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
    chunks = [b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (GOOD[:7], GOOD[7:])]
    async with a_sender(desk.port) as sender:
        for byte in b"".join([line, *chunks, b"0\r\n\r\n"]):
            sender.say(bytes([byte]))
            await asyncio.sleep(0)
        assert (await sender.answer()).status == 200
        assert (await sender.ask(desk.post())).status == 200


@pytest.mark.fault("C13")
async def test_pipelined_callbacks_are_answered_in_order(desk: Desk) -> None:
    """A hundred in one write; what is refused is the last one on its connection."""
    async with a_sender(desk.port) as sender:
        sender.say(desk.post() * 100)
        assert {(await sender.answer()).status for _ in range(100)} == {200}
        sender.say(desk.post() + request(f"POST /{new_token()}", GOOD) + desk.post())
        assert (await sender.answer()).status == 200
        assert (await sender.answer()).status == 404
        assert await sender.is_cut()
    assert len(desk.taken) == 101


async def test_http_1_0_and_connection_close_are_closed_after_the_answer(desk: Desk) -> None:
    """As a proxy with its defaults sends it."""
    lines = f"POST /{desk.token} HTTP/1.0", f"Content-Length: {len(GOOD)}"
    for sent in (
        head(*lines) + GOOD,
        head(*lines, "Connection: keep-alive") + GOOD,
        desk.post(GOOD, "Connection: close"),
    ):
        answer = await ask(desk.port, sent)
        assert (answer.status, answer.closes) == (200, True)


async def test_the_absolute_form_and_a_query_are_taken(desk: Desk) -> None:
    """A server must understand the form that is meant for proxies; the host in it is not ours."""
    for target in (f"http://elsewhere.example/hook/{desk.token}", f"/{desk.token}?x=/y"):
        assert (await ask(desk.port, request(f"POST {target}", GOOD))).status == 200


@pytest.mark.fault("C13")
async def test_tunnels_and_upgrades_are_not_supported(desk: Desk) -> None:
    """CONNECT is 405 or no HTTP; an offer to upgrade is ignored, and hides nothing behind it."""
    tunnel = head("CONNECT example.org:443 HTTP/1.1", "Host: example.org:443")
    assert (await ask(desk.port, tunnel + desk.post())).status in {400, 405}
    offer = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    async with a_sender(desk.port) as sender:
        assert (await sender.ask(desk.post(GOOD, *offer))).status == 200
        assert (await sender.ask(desk.post())).status == 200
    assert desk.taken == [TASK, TASK]


async def test_expect_100_continue_is_answered_once_the_token_is_known(
    desk: Desk,
) -> None:
    """Expect: 100-continue; what is refused is refused without asking."""
    expect = "Expect: 100-continue"
    async with a_sender(desk.port) as sender:
        assert (await sender.ask(desk.post(b"", expect, length=len(GOOD)))).status == 100
        assert (await sender.ask(GOOD)).status == 200
        assert (await sender.ask(desk.post(GOOD, expect))).status == 200
    unknown = request(f"POST /{new_token()}", b"", expect, length=50)
    assert (await ask(desk.port, unknown)).status == 404
    assert (await ask(desk.port, desk.post(b"", expect, "Content-Encoding: br"))).status == 415
    assert (await ask(desk.port, desk.post(b"", expect, length=LARGEST_BODY + 1))).status == 413


async def test_a_sender_that_disconnects_leaves_nothing_behind(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """In the header, in the body, before the answer: nothing is taken twice, nothing is logged."""
    gate = asyncio.Event()
    for said in (b"", b"POST", desk.post(GOOD[:9], length=len(GOOD)), desk.post(), desk.post() * 2):
        desk.work = gate.wait if said == desk.post() else None
        async with a_sender(desk.port) as sender:
            sender.say(said)
            await asyncio.sleep(0.1)
    gate.set()
    await asyncio.sleep(1)
    assert "0 receiving, 0 idle, 0 busy" in repr(desk.receiver._server)
    assert desk.taken == [TASK] * 3
    assert not caplog.records


@pytest.mark.fault("I4")
async def test_a_sender_that_leaves_after_a_refusal_is_not_waited_for(desk: Desk) -> None:
    """Though the rest of the body was still to come; what is left open fails the test."""
    async with a_sender(desk.port) as sender:
        answer = await sender.ask(request(f"POST /{new_token()}", b"", length=50))
        assert (answer.status, answer.closes) == (404, True)


# ─── start and shutdown ───────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("C19")
async def test_a_port_in_use_is_a_clear_error() -> None:
    """With the port and what to do; and the receiver can be opened once it is free."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        receiver = CallbackReceiver(None, port=port)
        for _ in range(2):
            with pytest.raises(ReceiverError, match=f"127.0.0.1:{port}.*another port"):
                await receiver.attach(Desk())
    async with a_desk(port) as desk:
        assert (await ask(port, desk.post())).status == 200


@pytest.mark.fault("C20")
async def test_shutdown_finishes_open_callbacks_and_closes_idle_connections() -> None:
    """Nobody new comes in meanwhile."""
    async with a_desk() as desk, a_sender(desk.port) as busy, a_sender(desk.port) as idle:
        port = desk.port
        assert (await idle.ask(desk.post())).status == 200
        desk.work = lambda: asyncio.sleep(3)
        busy.say(desk.post())
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(desk.receiver._server.aclose())  # type: ignore[union-attr]
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectionRefusedError):
            await ask(port, desk.post())
        answer = await busy.answer()
        assert answer.status == 200
        assert await idle.is_cut()
        await closing
    assert desk.taken == [TASK, TASK]


@pytest.mark.fault("C20")
async def test_shutdown_waits_ten_seconds_at_most() -> None:
    """Nor does a body that is still awaited."""
    async with a_desk() as desk, a_sender(desk.port) as busy, a_sender(desk.port) as slow:
        desk.work = lambda: asyncio.sleep(1000)
        busy.say(desk.post())
        slow.say(desk.post(b"", length=50))
        await asyncio.sleep(0.1)
        begun = now()
        await desk.receiver._server.aclose()  # type: ignore[union-attr]
        assert now() - begun <= 10
        assert await busy.is_cut()
        await slow.rest()
    assert not desk.taken


@pytest.mark.fault("I5")
async def test_the_server_shows_no_token(desk: Desk) -> None:
    """Not in its repr, also while a callback is taken."""
    gate = asyncio.Event()
    desk.work = gate.wait
    async with a_sender(desk.port) as sender:
        sender.say(desk.post())
        await asyncio.sleep(0.1)
        assert "1 busy" in repr(desk.receiver._server)
        assert_none_in(desk.receiver, desk.receiver._server)
        gate.set()
        assert (await sender.answer()).status == 200
