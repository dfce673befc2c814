"""The HTTP sessions, over real sockets: what costs money has a connection of its own."""

import asyncio
import gzip
import os
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp.abc import AbstractStreamWriter

from midapi_async import TextToImage, TransportError, __version__
from midapi_async._runtime.clock import Clock
from midapi_async._wire.protocol import Answer, Call, Unsure, read_submit, submit_call
from midapi_async._wire.transport import (
    LARGEST_ANSWER,
    LARGEST_HEADER,
    LARGEST_PAID_ANSWER,
    Transport,
    _WatchedPayload,
)
from midapi_async.config import settings
from tests.support.scripted import (
    ScriptedServer,
    Step,
    cut,
    garbage,
    hang,
    raw,
    reply,
    reset,
    then_close,
)
from tests.support.secrets import API_KEY
from tests.world import TASK, accepted, looked

LOOK = Call("GET", "/api/v1/mj/record-info?taskId=x")
POST = submit_call(TextToImage("a red fox"), None)
GOOD = b'{"code":200,"data":{"taskId":"' + TASK.encode() + b'"}}'


@asynccontextmanager
async def transport_to(url: str, connect: float = 5, **options: str) -> AsyncIterator[Transport]:
    """A transport to a server, closed at the end."""
    transport = Transport(settings(API_KEY, url, **options), Clock(), connect_timeout=connect)  # type: ignore[arg-type]
    try:
        yield transport
    finally:
        await transport.aclose()


def http(body: bytes, *headers: bytes) -> bytes:
    """A whole HTTP answer."""
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


async def until_closed(server: ScriptedServer, number: int) -> None:
    """Wait until the client has closed a connection."""
    line = server._lines[number]
    async with asyncio.timeout(5):
        while line.open and not line._reader.at_eof():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)


async def test_every_post_comes_on_a_new_connection_that_is_closed_after_it() -> None:
    """Neither before nor after it does anything else travel there; looks share one."""
    async with ScriptedServer(then=reply(body=GOOD)) as server:
        async with transport_to(server.url) as transport:
            for call in (LOOK, POST, LOOK, POST, POST, LOOK):
                assert (await transport.call(call, 5)).status == 200
            assert [request.connection for request in server.requests] == [0, 1, 0, 2, 3, 0]
            for request in server.requests:
                is_paid = request.method == "POST"
                assert (request.headers.get("connection") == "close") is is_paid
            for number in (1, 2, 3):
                await until_closed(server, number)
            assert not server._lines[0]._reader.at_eof()


async def test_a_post_waits_for_no_other_post() -> None:
    """Its row is written, so it goes out at once, however many wait for their answers."""
    many = 105  # aiohttp's own limit is 100
    async with ScriptedServer(then=hang("body")) as server:
        async with transport_to(server.url) as transport:
            posts = []
            for number in range(many):  # one by one: the kernel queues few connections
                posts.append(asyncio.create_task(transport.call(POST, 60)))
                async with asyncio.timeout(10):
                    await server.arrived(number + 1)
            for post in posts:
                post.cancel()
            await asyncio.wait(posts)
    assert server.connections == many


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has it")
@pytest.mark.parametrize(("connect", "unseen"), [(5, 10_000), (40, 40_000), (1e9, 2**31 - 1)])
async def test_the_system_does_not_resend_a_post_for_long(connect: float, unseen: int) -> None:
    """After a cut of more than 10 s it ends the connection; a look may be sent for longer.

    With a longer timeout for connecting it is that: the system applies it to connecting, too.
    """

    async def unseen_for(call: Call) -> list[int]:
        async def read() -> None:
            sockets = [each.transport.get_extra_info("socket") for each in connector._acquired]
            option = socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT
            found.extend(each.getsockopt(*option) for each in sockets)

        session = transport._paid_session if call.is_paid else transport._session
        connector: Any = session.connector
        found: list[int] = []
        await transport.call(call, 5, read)
        return found

    async with ScriptedServer(then=reply(body=GOOD)) as server:
        async with transport_to(server.url, connect) as transport:
            assert await unseen_for(POST) == [unseen]
            assert await unseen_for(attrs.evolve(POST, is_paid=False)) == [0]


@pytest.mark.fault("S4")
async def test_a_stale_pooled_connection_cannot_happen_to_a_post() -> None:
    """The server closed the connection that it kept alive: a POST never takes it from the pool."""
    async with ScriptedServer([then_close(looked()), accepted()]) as server:
        async with transport_to(server.url) as transport:
            await transport.call(LOOK, 5)
            # No turn of the loop in between: the client cannot have seen the end yet.
            answer = await transport.call(POST, 5)
    assert read_submit(answer) == TASK
    assert [request.connection for request in server.requests] == [0, 1]


FOREIGN = GOOD.replace(TASK.encode(), b"f" * 32)


async def send_more(server: ScriptedServer, number: int, data: bytes) -> None:
    """Send something on an idle connection, and wait until the client has it."""
    await server._lines[number].send(data)
    await asyncio.sleep(0.1)


@pytest.mark.fault("S21")
@pytest.mark.parametrize("is_late", [False, True])
async def test_a_desynchronized_answer_is_never_a_posts(is_late: bool) -> None:
    """An answer too many waits on the connection of the looks: no POST gets it."""
    look = http(b'{"code":200,"data":null}')
    first = raw(look if is_late else look + http(FOREIGN), ending="keep")
    async with ScriptedServer([first, accepted(), accepted("second")]) as server:
        async with transport_to(server.url) as transport:
            await transport.call(LOOK, 5)
            if is_late:
                await send_more(server, 0, http(FOREIGN))
            assert read_submit(await transport.call(POST, 5)) == TASK
            assert read_submit(await transport.call(POST, 5)) == "second"


@pytest.mark.fault("S21")
@pytest.mark.parametrize("is_late", [False, True])
async def test_a_late_duplicate_of_one_post_is_not_the_next_ones(is_late: bool) -> None:
    """Two answers to one POST: the second is lost with its connection."""
    first = raw(http(GOOD) if is_late else http(GOOD) + http(FOREIGN), ending="keep")
    async with ScriptedServer([first, accepted("second")]) as server:
        async with transport_to(server.url) as transport:
            assert read_submit(await transport.call(POST, 5)) == TASK
            if is_late:
                await send_more(server, 0, http(FOREIGN))
            assert read_submit(await transport.call(POST, 5)) == "second"


@pytest.mark.fault("S30")
@pytest.mark.parametrize("call", [LOOK, POST], ids=["look", "post"])
@pytest.mark.parametrize("size", [8_191, LARGEST_HEADER - 10])
async def test_long_headers_are_read(call: Call, size: int) -> None:
    """Proxies and WAFs add cookies and policies that are longer than aiohttp allows by default."""
    text = http(GOOD, b"X: " + b"y" * size)
    async with ScriptedServer([raw(text)]) as server, transport_to(server.url) as transport:
        answer = await transport.call(call, 5)
    assert (len(answer.headers["X"]), answer.body, answer.flaw) == (size, GOOD, None)


@pytest.mark.fault("S30")
@pytest.mark.parametrize("call", [LOOK, POST], ids=["look", "post"])
@pytest.mark.parametrize(("count", "size"), [(4, 16_000), (200, 300), (1_000, 50)])
async def test_many_headers_are_read(call: Call, count: int, size: int) -> None:
    """64 kB of them in all; aiohttp allows 128 by default."""
    text = http(GOOD, *(b"X-%d: " % n + b"y" * size for n in range(count)))
    async with ScriptedServer([raw(text)]) as server, transport_to(server.url) as transport:
        answer = await transport.call(call, 5)
    assert (len(answer.headers), answer.body, answer.flaw) == (count + 1, GOOD, None)


GZIP, ZLIB = gzip.compress(GOOD, mtime=0), zlib.compress(GOOD)
DEFLATE = zlib.compress(GOOD, wbits=-15)
ENCODED = {
    "as it says": (GZIP, ["gzip"]),
    "by its old name": (GZIP, ["X-GZIP"]),
    "deflate": (ZLIB, ["deflate"]),
    "deflate without a header": (DEFLATE, ["deflate"]),
    "gzip that is none": (GOOD, ["gzip"]),
    "deflate that is none": (GOOD, ["deflate"]),
    "gzip that is deflate": (DEFLATE, ["gzip"]),
    "without saying so": (GZIP, []),
    "not offered, and none": (GOOD, ["br"]),
    "not offered, and gzip": (GZIP, ["zstd"]),
    "unknown": (GOOD, ["aws-chunked"]),
    "identity": (GOOD, ["identity"]),
    "two of them": (GZIP, ["gzip", "identity"]),
    "with something behind": (GZIP + b"x", ["gzip"]),
    "without its last bytes": (GZIP[:-8], ["gzip"]),
}


@pytest.mark.fault("S30")
@pytest.mark.parametrize("call", [LOOK, POST], ids=["look", "post"])
@pytest.mark.parametrize(("body", "names"), ENCODED.values(), ids=ENCODED)
async def test_an_answer_is_read_whatever_its_encoding_says(
    call: Call, body: bytes, names: list[str]
) -> None:
    """By what the body is: a proxy may change the body or the header, and not the other."""
    text = http(body, *(f"Content-Encoding: {name}".encode() for name in names))
    async with ScriptedServer([raw(text)]) as server, transport_to(server.url) as transport:
        answer = await transport.call(call, 5)
    assert (answer.body, answer.flaw) == (GOOD, None)


@pytest.mark.fault("S30")
@pytest.mark.parametrize("call", [LOOK, POST], ids=["look", "post"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>xx",
        b"Sorry",  # these bytes are also compressed data, by chance
        b"x",
        b"xyz\x9c",
        b" [1]",
        GZIP[:3],
        GZIP[:12] + b"\xff" * 9,
        b"\x0b\x02\x80",
    ],
)
async def test_a_body_that_cannot_be_decoded_is_no_error(call: Call, body: bytes) -> None:
    """It is judged like any other page."""
    text = http(body, b"Content-Encoding: gzip")
    async with ScriptedServer([raw(text)]) as server, transport_to(server.url) as transport:
        answer = await transport.call(call, 5)
    assert answer.flaw is None
    assert body.startswith(GZIP[:3]) or answer.body == body
    with pytest.raises(Unsure):
        read_submit(answer)


@pytest.mark.fault("S30")
@pytest.mark.fault("S11")
async def test_a_compressed_answer_to_a_post_is_read_as_far_as_it_came() -> None:
    """Its task id is found though the rest is lost."""
    whole = gzip.compress(GOOD + b" " * 10 + os.urandom(500))
    step = cut(reply(body=whole, headers={"Content-Encoding": "gzip"}), body=len(whole) - 300)
    async with ScriptedServer([step]) as server, transport_to(server.url) as transport:
        answer = await transport.call(POST, 5)
    assert answer.flaw == "its answer was cut short"
    assert read_submit(answer) == TASK


@pytest.mark.fault("P12")
@pytest.mark.parametrize("call", [LOOK, POST], ids=["look", "post"])
async def test_a_bomb_is_decoded_only_to_the_limit(call: Call) -> None:
    """With or without a header that says so."""
    largest = LARGEST_PAID_ANSWER if call.is_paid else LARGEST_ANSWER
    for headers in ({"Content-Encoding": "gzip"}, {}):
        bomb = reply(body=gzip.compress(b"[" * (64 << 20), 1), headers=headers)
        async with ScriptedServer([bomb]) as server, transport_to(server.url) as transport:
            answer = await transport.call(call, 5)
        assert len(answer.body) == largest + 1
        assert "larger than" in (answer.flaw or "")


@pytest.mark.fault("S30")
async def test_a_post_offers_no_compression() -> None:
    """A compressed answer would be one more way not to read what was paid for."""
    async with ScriptedServer(then=reply(body=GOOD)) as server:
        async with transport_to(server.url) as transport:
            for call in (POST, LOOK):
                await transport.call(call, 5)
    paid, free = server.requests
    assert paid.headers["accept-encoding"] == "identity"
    assert free.headers["accept-encoding"] == "gzip, deflate"  # whatever packages are installed
    for request in (paid, free):
        assert request.headers["user-agent"] == f"midapi-async/{__version__}"
        assert request.headers["authorization"] == f"Bearer {API_KEY}"


@pytest.mark.parametrize("call", [LOOK, POST], ids=["look", "post"])
async def test_cookies_are_not_kept_and_redirects_not_followed(call: Call) -> None:
    """Nothing of one answer gets into the next request, and the key goes to one server only."""
    steps: list[Step] = [
        reply(307, headers={"Location": "/elsewhere", "Set-Cookie": "a=b"}),
        reply(body=GOOD),
    ]
    async with ScriptedServer(steps) as server:
        # By name: cookies of an IP address are not kept anyway.
        url = server.url.replace("127.0.0.1", "localhost")
        async with transport_to(url) as transport:
            assert (await transport.call(call, 5)).status == 307
            await transport.call(call, 5)
    assert [request.target for request in server.requests] == [call.path] * 2
    assert not [request for request in server.requests if "cookie" in request.headers]


async def test_both_sessions_use_the_proxy() -> None:
    """Plain http goes through it with the whole URL as the target."""
    async with ScriptedServer(then=reply(body=GOOD)) as proxy:
        async with transport_to("http://127.0.0.1:9", proxy=proxy.url) as transport:
            for call in (LOOK, POST):
                await transport.call(call, 5)
    expected = [f"http://127.0.0.1:9{call.path}" for call in (LOOK, POST)]
    assert [request.target for request in proxy.requests] == expected


@pytest.mark.parametrize(
    ("step", "status", "flaw"),
    [
        (cut(reply(body=GOOD), body=10), 200, "its answer was cut short"),
        (reply(body=b"x" * (LARGEST_PAID_ANSWER + 1)), 200, "its answer is larger than 1,024 KiB"),
        (reply(503, body=b"busy"), 503, None),
    ],
    ids=["cut", "too large", "whole"],
)
async def test_an_answer_is_kept_as_far_as_it_came(
    step: Step, status: int, flaw: str | None
) -> None:
    """With what was wrong with it, and its connection is closed."""
    async with ScriptedServer([step]) as server, transport_to(server.url) as transport:
        answer = await transport.call(POST, 5)
        assert isinstance(answer, Answer)
        assert (answer.status, answer.flaw) == (status, flaw)
        await until_closed(server, 0)


@pytest.mark.parametrize(
    ("step", "is_sent"),
    [(reset("accept"), True), (reset("headers"), True), (hang("body"), True)],
    ids=["accept", "headers", "no answer"],
)
async def test_no_answer_says_whether_it_may_have_been_sent(step: Step, is_sent: bool) -> None:
    """What was written at all, may have arrived."""
    async with ScriptedServer([step]) as server, transport_to(server.url) as transport:
        with pytest.raises(TransportError) as caught:
            await transport.call(POST, 5)
        assert caught.value.sent is is_sent
        await until_closed(server, 0)


@pytest.mark.fault("S2")
async def test_a_refused_connection_proves_that_nothing_was_sent() -> None:
    """The payload was never written."""
    async with ScriptedServer() as gone:
        url = gone.url
    async with transport_to(url) as transport:
        with pytest.raises(TransportError) as caught:
            await transport.call(POST, 5)
    assert not caught.value.sent


async def test_an_answer_that_is_not_http_is_named() -> None:
    """In words, and not by the name of an exception."""
    async with ScriptedServer(then=garbage()) as server, transport_to(server.url) as transport:
        with pytest.raises(TransportError, match="the answer is not HTTP") as caught:
            await transport.call(POST, 5)
    assert caught.value.sent


@pytest.mark.fault("I5")
async def test_the_key_is_taken_out_of_an_answer() -> None:
    """A server that repeats our headers must not get the key into a log."""
    echo = reply(body=f'{{"code":400,"msg":"Bearer {API_KEY}"}}')
    async with ScriptedServer([echo]) as server, transport_to(server.url) as transport:
        answer = await transport.call(LOOK, 5)
    assert answer.body == b'{"code":400,"msg":"Bearer ***"}'


class _Writer(AbstractStreamWriter):
    """The connection breaks with the first byte, which may have left by then."""

    async def write(self, chunk: object) -> None:
        raise ConnectionResetError

    async def write_eof(self, chunk: bytes = b"") -> None:
        raise ConnectionResetError

    async def drain(self) -> None:
        raise ConnectionResetError

    def enable_compression(self, *args: object, **options: object) -> None:
        raise NotImplementedError

    def enable_chunking(self) -> None:
        raise NotImplementedError

    async def write_headers(self, *args: object) -> None:
        raise NotImplementedError


@pytest.mark.fault("S3")
@pytest.mark.parametrize("way", ["write", "write_with_length"])
async def test_a_body_counts_as_sent_from_the_start_of_its_write(way: str) -> None:
    """Whichever of its methods aiohttp uses; else the POST would be sent once more."""
    body = _WatchedPayload(b"{}", None)
    assert not body.written
    is_plain = way == "write"
    writing = body.write(_Writer()) if is_plain else body.write_with_length(_Writer(), 2)
    with pytest.raises(ConnectionResetError):
        await writing
    assert body.written


@pytest.mark.fault("S2")
@pytest.mark.parametrize("error", [OSError("odd"), ValueError("odd"), RuntimeError("odd")])
async def test_any_error_says_whether_the_call_was_sent(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only those of aiohttp. A call without a body may always have been sent."""

    async def request(*args: object, **options: object) -> None:
        raise error

    async with transport_to("http://127.0.0.1:9") as transport:
        monkeypatch.setattr(aiohttp.ClientSession, "request", request)
        for call, sent in ((POST, False), (LOOK, True)):
            with pytest.raises(TransportError) as caught:
                await transport.call(call, 5)
            assert caught.value.sent is sent


@pytest.mark.parametrize(("call", "limit"), [(POST, LARGEST_PAID_ANSWER), (LOOK, LARGEST_ANSWER)])
async def test_a_large_answer_is_not_read_to_its_end(call: Call, limit: int) -> None:
    """A server that sends without end must not fill the memory, nor a record hold the loop."""
    large = cut(reply(body=b"x" * (limit * 3)), body=limit * 2, ending="hang")
    async with ScriptedServer([large]) as server, transport_to(server.url) as transport:
        begun = asyncio.get_running_loop().time()
        answer = await transport.call(call, 60)
        assert answer.flaw == f"its answer is larger than {limit // 1024:,} KiB"
        assert len(answer.body) < 2 * limit
        assert asyncio.get_running_loop().time() - begun < 5.0
