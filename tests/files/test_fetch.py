"""What a file host may do to a client, over real sockets; the minutes pass in virtual time."""

import asyncio
import gzip
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from midapi_async import (
    ClientClosed,
    DownloadError,
    MidAPIClient,
    ResultExpired,
    TaskDetails,
    TaskStatus,
    UnexpectedContent,
)
from midapi_async.files import fetch
from tests.cli.proxies import CERTIFICATES
from tests.files.samples import SAMPLES, SCRIPT, jpeg, segment
from tests.support.leaks import LoopWatch
from tests.support.scripted import (
    Answer,
    Play,
    Received,
    ScriptedServer,
    cut,
    drip,
    hang,
    raw,
    reply,
)
from tests.world import TASK, client_of, ok, refused

JPEG = jpeg(segment(0xFE, b"x" * 60_000))
HTML = b"<!DOCTYPE html><title>Just a moment...</title>"
NO_LINK = refused(422, "url must be a file that this service generated")
A_MINUTE = [1, 2, 4, 8, 15, 30]


def now() -> float:
    """The time of the loop."""
    return asyncio.get_running_loop().time()


async def read(client: MidAPIClient, url: str, blocks: list[bytes] | None = None) -> bytes:
    """A result, through `open_result`; the blocks are also put into a list."""
    blocks = [] if blocks is None else blocks
    async for block in client.open_result(url):
        blocks.append(block)
    return b"".join(blocks)


async def rest_of(blocks: AsyncIterator[bytes]) -> bytes:
    """What a stream still has."""
    return b"".join([block async for block in blocks])


async def failure(client: MidAPIClient, url: str) -> DownloadError:
    """The error of a result, with which no block was given out."""
    with pytest.raises(DownloadError) as caught:
        await read(client, url)
    text = str(caught.value)
    assert text.startswith(f"{url} could not be downloaded: ")
    assert "buy" not in text
    assert "generate" not in text
    return caught.value


def details_of(server: ScriptedServer, **fields: object) -> TaskDetails:
    """A task with one result, on the server itself."""
    urls = (f"{server.url}/m/x.jpeg",)
    return TaskDetails(task_id=TASK, status=TaskStatus.SUCCEEDED, urls=urls, **fields)  # type: ignore[arg-type]


def unsized(body: bytes) -> Answer:
    """An answer without a length: it ends when the connection does."""
    return raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)


def chunked(body: bytes) -> bytes:
    """An answer in chunks, with its end."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def at_times(step: Play, times: list[float]) -> Callable[[Received], Answer]:
    """A step that also notes when it was taken."""

    def play(request: Received) -> Answer:
        times.append(now())
        answer = step(request) if callable(step) else step
        assert isinstance(answer, Answer)
        return answer

    return play


# ─── what is tried again ─────────────────────────────────────────────────────────────────────────

PASSING: dict[str, Play] = {
    "403": reply(403),
    "a challenge": reply(403, body=HTML, headers={"cf-mitigated": "challenge"}),
    "404": reply(404),
    "429": reply(429),
    "500": reply(500),
    "503, with a page": reply(503, body=HTML),
    "522": reply(522),
    "cut, with a length": cut(reply(body=JPEG), body=40_000),
    "cut, without a length": unsized(JPEG[:40_000]),
    "cut at once, without a length": unsized(b""),
    "cut in the first bytes": unsized(JPEG[:2]),
    "cut, in chunks": raw(chunked(JPEG)[:40_000]),
    "reset": cut(reply(body=JPEG), body=40_000, ending="reset"),
    "silent": hang(),
    "stuck": cut(reply(body=JPEG), body=400, ending="hang"),
}


@pytest.mark.fault("D2")
@pytest.mark.fault("D3")
@pytest.mark.fault("D14")
@pytest.mark.parametrize("fault", PASSING)
async def test_what_may_pass_is_tried_again_for_a_minute(fault: str, tmp_path: Path) -> None:
    """Then with a download link; each attempt begins from the first byte."""
    for failures in (1, 7):
        script = [PASSING[fault]] * failures
        async with ScriptedServer(script) as server, client_of(server) as client:
            if failures == 7:
                server.add(ok(f"{server.url}/d/link"))
            server.add(reply(body=JPEG))
            details = details_of(server)
            [file] = await client.download(details, tmp_path, overwrite=True)
            assert file.read_bytes() == JPEG
            assert list(tmp_path.iterdir()) == [file]
            links = [each.json() for each in server.requests if each.method == "POST"]
            assert links == [{"url": details.urls[0]}] * (failures == 7)
            assert server.requests[-1].path == ("/d/link" if links else "/m/x.jpeg")


@pytest.mark.fault("D14")
async def test_the_pauses_grow_to_a_minute() -> None:
    """They begin with a second; the last attempt is the one through a link."""
    times: list[float] = []
    async with ScriptedServer() as server, client_of(server) as client:
        server.add(*[at_times(reply(403), times)] * 7, NO_LINK)
        error = await failure(client, f"{server.url}/m/x.jpeg")
    assert [after - before for before, after in pairwise(times)] == A_MINUTE
    assert type(error) is DownloadError
    assert error.status == 403
    assert "HTTP 403" in str(error)
    assert "no download link" in str(error)


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    ("asked", "pauses"),
    [("7", [7, 7, 7, 8, 15]), ("0", A_MINUTE), ("61", []), ("soon", A_MINUTE), ("25", [25, 25])],
)
async def test_a_retry_after_counts_within_the_minute(asked: str, pauses: list[float]) -> None:
    """A longer one is not waited for: the link is tried at once."""
    times: list[float] = []
    async with ScriptedServer() as server, client_of(server) as client:
        busy = at_times(reply(503, headers={"Retry-After": asked}), times)
        server.add(*[busy] * (len(pauses) + 1), NO_LINK)
        assert (await failure(client, f"{server.url}/m/x.jpeg")).status == 503
        assert server.steps_left == 0
    assert [after - before for before, after in pairwise(times)] == pauses


FINAL: dict[str, tuple[Play, type[DownloadError], str]] = {
    "401": (reply(401), DownloadError, "HTTP 401"),
    "410": (reply(410), ResultExpired, "HTTP 410"),
    "204": (reply(204), DownloadError, "HTTP 204"),
    "206": (reply(206, body=JPEG), DownloadError, "HTTP 206"),
    "HTML": (reply(body=HTML), UnexpectedContent, "an HTML page"),
    "HTML, called a picture": (
        reply(body=HTML, headers={"Content-Type": "image/jpeg"}),
        UnexpectedContent,
        "an HTML page",
    ),
    "SVG": (reply(body=b"<svg xmlns='x'/>"), UnexpectedContent, "an SVG"),
    "a program": (reply(body=b"MZ" + bytes(600)), UnexpectedContent, "a program"),
    "JSON": (reply(json={"code": 200}), UnexpectedContent, "JSON"),
    "a few letters": (reply(body=b"gone"), UnexpectedContent, "text"),
    "too many redirects": (
        reply(302, headers={"Location": "/again"}),
        DownloadError,
        "more than 3 times",
    ),
    "a redirect to nowhere": (reply(302), DownloadError, "no valid URL"),
    "a redirect to a wrong port": (
        reply(302, headers={"Location": "http://h:x/"}),
        DownloadError,
        "no valid URL",
    ),
}


@pytest.mark.fault("D1")
@pytest.mark.fault("D7")
@pytest.mark.fault("D9")
@pytest.mark.parametrize("fault", FINAL)
async def test_what_will_not_pass_is_reported_at_once(fault: str) -> None:
    """With what came instead."""
    step, kind, says = FINAL[fault]
    async with ScriptedServer(then=step) as server, client_of(server) as client:
        before = now()
        error = await failure(client, f"{server.url}/m/x.jpeg")
        assert type(error) is kind
        assert says in str(error)
        assert now() == before
        assert len(server.requests) == (4 if "too many" in fault else 1)


@pytest.mark.fault("D1")
@pytest.mark.parametrize("status", [403, 404])
async def test_a_missing_file_of_an_old_task_has_expired(status: int, tmp_path: Path) -> None:
    """At once, where the task is known to be older than MidAPI keeps results."""
    for days, kind, requests in ((16, ResultExpired, 1), (14, DownloadError, 8)):
        async with ScriptedServer(then=reply(status)) as server, client_of(server) as client:
            ended = datetime.now(UTC) - timedelta(days=days)
            details = details_of(server, completed_at=ended)
            with pytest.raises(DownloadError) as caught:
                await client.download(details, tmp_path)
            assert type(caught.value) is kind
            assert caught.value.status == status
            assert len(server.requests) == requests


async def test_nothing_is_tried_again_behind_the_first_block() -> None:
    """The consumer has it already."""
    large = jpeg(*[segment(0xFE, b"x" * 60_000)] * 20)
    async with ScriptedServer() as server, client_of(server) as client:
        server.add(cut(reply(body=large), body=900_000))
        blocks: list[bytes] = []
        with pytest.raises(DownloadError, match="cut short"):
            await read(client, f"{server.url}/m/x.jpeg", blocks)
        assert large.startswith(b"".join(blocks))
        server.add(unsized(large[:-2]))
        with pytest.raises(DownloadError, match="its end is missing"):
            await read(client, f"{server.url}/m/x.jpeg")


async def test_the_third_retry_of_a_file_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Earlier ones are for those who want to know."""
    caplog.set_level(logging.INFO, "midapi_async.files")
    async with ScriptedServer([reply(404)] * 4) as server, client_of(server) as client:
        server.add(reply(body=JPEG))
        await read(client, f"{server.url}/m/x.jpeg")
    levels = [each.levelname for each in caplog.records if "trying again" in each.message]
    assert levels == ["INFO", "INFO", "WARNING", "INFO"]


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (JPEG + SCRIPT, f"{len(SCRIPT)} bytes stand behind its end"),
        (jpeg(segment(0xFE, SCRIPT)), "a script stands in its comments"),
    ],
)
async def test_what_is_hidden_in_a_file_is_a_warning(
    body: bytes, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One, and the file is kept."""
    async with ScriptedServer([reply(body=body)]) as server, client_of(server) as client:
        assert await read(client, f"{server.url}/m/x.jpeg") == body
    [warning] = [each for each in caplog.records if each.name == "midapi_async.files"]
    assert warning.levelname == "WARNING"
    assert says in warning.message


# ─── how much, how fast, how long ────────────────────────────────────────────────────────────────


@pytest.mark.fault("D4")
@pytest.mark.parametrize("has_length", [True, False])
async def test_a_file_that_is_too_large_is_not_fetched(has_length: bool) -> None:
    """By its Content-Length at once, else when it has become too large."""
    async with ScriptedServer() as server, client_of(server, max_file=1000) as client:
        server.add(reply(body=JPEG) if has_length else unsized(JPEG))
        blocks: list[bytes] = []
        with pytest.raises(DownloadError, match=r"larger than 1,000 bytes \(max_file\)"):
            await read(client, f"{server.url}/m/x.jpeg", blocks)
        assert len(b"".join(blocks)) <= (0 if has_length else 1000)
        small = SAMPLES["gif of one pixel"].data
        server.add(reply(body=small))
        assert await read(client, f"{server.url}/m/x.gif") == small


@pytest.mark.fault("D17")
@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", ""])
async def test_a_compressed_body_is_no_picture(coding: str) -> None:
    """It was not asked for, and is not unpacked."""
    bomb = gzip.compress(jpeg(*[segment(0xFE, bytes(60_000))] * 100))
    headers = {"Content-Encoding": coding} if coding else {}
    async with ScriptedServer([reply(body=bomb, headers=headers)]) as server:
        async with client_of(server) as client:
            error = await failure(client, f"{server.url}/m/x.jpeg")
            assert server.requests[0].headers["accept-encoding"] == "identity"
    assert type(error) is UnexpectedContent
    assert "compressed" in str(error)


async def test_a_picture_with_a_wrong_content_encoding_is_kept() -> None:
    """The content says what it is."""
    step = reply(body=JPEG, headers={"Content-Encoding": "gzip"})
    async with ScriptedServer([step]) as server, client_of(server) as client:
        assert await read(client, f"{server.url}/m/x.jpeg") == JPEG


@pytest.mark.fault("D4")
async def test_a_host_that_sends_a_byte_a_second_is_too_slow() -> None:
    """Each attempt ends after half a minute."""
    times: list[float] = []
    slow = at_times(drip(reply(body=JPEG), piece=1, interval=1.0), times)
    async with ScriptedServer(then=slow) as server, client_of(server) as client:
        error = await failure(client, f"{server.url}/m/x.jpeg")
    assert "less than 1000 bytes a second" in str(error)
    assert [after - before for before, after in pairwise(times)] == [
        *(pause + 30 for pause in A_MINUTE),
        30,  # the POST for a link
    ]


@pytest.mark.fault("D4")
async def test_a_slow_host_that_is_fast_enough_is_waited_for() -> None:
    """Two kilobytes a second, with a break, then ten minutes are enough."""
    body = jpeg(*[segment(0xFE, b"x" * 60_000)] * 10)
    async with ScriptedServer() as server, client_of(server) as client:
        server.add(drip(reply(body=body), piece=40_000, interval=20.0))
        assert await read(client, f"{server.url}/m/x.jpeg") == body
        endless = jpeg(*[segment(0xFE, b"x" * 60_000)] * 30)
        server.add(drip(reply(body=endless), piece=40_000, interval=20.0))
        before = now()
        with pytest.raises(DownloadError, match="longer than 600 s"):
            await read(client, f"{server.url}/m/x.jpeg")
        assert now() - before == 600


async def test_the_time_of_a_slow_consumer_is_not_the_hosts() -> None:
    """It may take hours between the blocks."""
    body = jpeg(*[segment(0xFE, b"x" * 60_000)] * 60)
    async with ScriptedServer([reply(body=body)]) as server, client_of(server) as client:
        size = 0
        async for block in client.open_result(f"{server.url}/m/x.jpeg"):
            size += len(block)
            await asyncio.sleep(3600)
        assert size == len(body)


@pytest.mark.real_time
async def test_a_blocked_loop_is_not_the_hosts_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came while the loop was blocked is read before the host is called slow."""
    monkeypatch.setattr(fetch, "WINDOW", 0.5)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        line, _ = listener.accept()
        with line:
            line.recv(65536)
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(JPEG))
            time.sleep(0.3)
            line.sendall(JPEG)

    with listener:
        thread = threading.Thread(target=serve)
        thread.start()
        async with client_of(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            asyncio.get_running_loop().call_later(0.1, time.sleep, 2.0)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/m/x.jpeg"
            assert await read(client, url) == JPEG
        thread.join()


# ─── addresses ───────────────────────────────────────────────────────────────────────────────────

PRIVATE = (
    "127.0.0.1", "127.8.9.1", "0.1.2.3", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a00:1::1",
    "2001:0:1::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1",
)  # fmt: skip
PUBLIC = (
    "1.1.1.1", "104.16.0.1", "192.0.1.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:1.1.1.1",
    "2002:101:101::1",
)  # fmt: skip
LOOPBACK = {"127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"}


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of each name: no other name resolves."""
    known: dict[str, list[str]] = {}

    async def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in known[host]
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture
async def fetcher() -> AsyncIterator[fetch.Fetcher]:
    """Of a client of MidAPI itself."""
    async with client_of("https://api.example") as client:
        assert client._session is not None
        yield client._session.fetcher


def literal(address: str) -> str:
    """An address as a host in a URL."""
    return f"[{address}]" if ":" in address else address


@pytest.mark.fault("D7")
@pytest.mark.parametrize("address", [*PRIVATE, *PUBLIC])
async def test_only_public_addresses_are_connected_to(
    address: str, fetcher: fetch.Fetcher, names: dict[str, list[str]]
) -> None:
    """As a literal, or as what a name resolves to; nothing is tried again."""
    assert fetcher.rules.may_connect(ipaddress.ip_address(address)) is (address in PUBLIC)
    if address in PRIVATE:
        names["files.example"] = [address, address]
        for host in (literal(address), "files.example"):
            before = now()
            with pytest.raises(DownloadError, match="not a public address") as caught:
                await rest_of(fetcher.stream(f"https://{host}/m/x.jpeg"))
            assert host.strip("[]") in str(caught.value)
            assert now() == before


@pytest.mark.fault("D7")
@given(number=st.integers(0, 2**32 - 1))
async def test_an_address_is_judged_alike_in_each_form(number: int) -> None:
    """IPv4, IPv4-mapped, NAT64, 6to4."""
    address = ipaddress.IPv4Address(number)
    async with client_of("https://api.example") as client:
        assert client._session is not None
        may_connect = client._session.fetcher.rules.may_connect
        forms = [
            ipaddress.ip_address(f"::ffff:{address}"),
            ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) + number),
            ipaddress.IPv6Address((0x2002 << 112) + (number << 80)),
        ]
        assert {may_connect(each) for each in forms} == {may_connect(address)}


@pytest.mark.fault("D7")
@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "127.0.0.1.", "1.2.3", "localhost."]
)
async def test_unusual_forms_of_an_address_are_refused(host: str, fetcher: fetch.Fetcher) -> None:
    """Some programs read them as 127.0.0.1; so might a proxy."""
    for proxy in (None, URL("http://proxy.example:3128")):
        fetcher.proxy = proxy
        with pytest.raises(DownloadError):
            await rest_of(fetcher.stream(f"https://{host}/m/x.jpeg"))


@pytest.mark.fault("D7")
async def test_a_server_on_loopback_sees_no_connection(names: dict[str, list[str]]) -> None:
    """Of a client of MidAPI itself."""
    names["files.example"] = ["127.0.0.1"]
    names["localhost"] = ["127.0.0.1"]
    async with ScriptedServer() as server, client_of("https://api.example") as client:
        for host in ("127.0.0.1", "files.example", "localhost", "[::ffff:127.0.0.1]"):
            await failure(client, f"https://{host}:{server.port}/m/x.jpeg")
        assert server.connections == 0


@pytest.mark.fault("D7")
async def test_private_addresses_of_a_name_are_passed_over(
    fetcher: fetch.Fetcher, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it has a public one, too, that is tried; if it fails, it is tried again."""
    names["files.example"] = ["10.0.0.1", "1.1.1.1", "fd00::1"]
    tried = []

    async def sock_connect(sock: socket.socket, address: tuple[object, ...]) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    async def link(url: str) -> str:
        return url

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
    monkeypatch.setattr(fetcher, "link", link)
    with pytest.raises(DownloadError, match="connection failed"):
        await rest_of(fetcher.stream("https://files.example/m/x.jpeg"))
    assert set(tried) == {"1.1.1.1"}
    assert len(tried) >= 7


@pytest.mark.fault("D7")
@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254, which is not a public"),
        ("http://inside.example/", "inside.example (10.0.0.7), which is not a public"),
        ("//10.0.0.1/", "10.0.0.1, which is not a public"),
        ("http://[::ffff:10.0.0.1]/", "which is not a public"),
        ("http://[64:ff9b::a00:1]/", "which is not a public"),
        ("file:///etc/passwd", "is no https URL"),
        ("ftp://files.example/x", "is no https URL"),
        ("data:image/png;base64,AAAA", "is no https URL"),
    ],
)
async def test_a_redirect_is_checked_like_the_first_url(
    target: str, says: str, names: dict[str, list[str]]
) -> None:
    """Also where MidAPI is a sandbox on this machine, which may redirect to loopback only."""
    names["inside.example"] = ["10.0.0.7"]
    names["localhost"] = ["127.0.0.1"]
    async with ScriptedServer() as server, client_of(server) as client:
        url = f"{server.url}/m/x.jpeg"
        server.add(reply(302, headers={"Location": target}))
        assert says in str(await failure(client, url))
        near = {"Location": f"http://localhost:{server.port}/y.jpeg"}
        server.add(reply(307, headers=near), reply(301, headers={"Location": "z"}))
        server.add(reply(308, headers={"Location": "/w"}), reply(body=JPEG))
        assert await read(client, url) == JPEG
        assert [each.path for each in server.requests[-4:]] == ["/m/x.jpeg", "/y.jpeg", "/z", "/w"]


async def test_a_failed_connection_is_named_after_the_last_redirect() -> None:
    """Not after the host that has redirected to it, which answers."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        near = {"Location": f"http://127.0.0.1:{closed.getsockname()[1]}/y.jpeg"}
        async with (
            ScriptedServer([reply(302, headers=near)]) as server,
            client_of(server) as client,
        ):
            text = str(await failure(client, f"{server.url}/m/x.jpeg"))
        assert f"nothing listens on 127.0.0.1:{closed.getsockname()[1]}" in text


@pytest.mark.fault("D7")
async def test_https_is_never_left(fetcher: fetch.Fetcher, loop_watch: LoopWatch) -> None:
    """Neither by a URL nor by a redirect, also where http is allowed."""
    assert "plain http" in str(fetcher.rules.problem_of(URL("http://files.example/x"), None))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATES / "good.pem")
    trusted = ssl.create_default_context(cafile=CERTIFICATES / "authority.pem")
    async with ScriptedServer() as server:
        listening = await asyncio.start_server(server._accept, "127.0.0.1", 0, ssl=tls)
        async with listening:
            base = f"https://localhost:{listening.sockets[0].getsockname()[1]}"
            async with client_of(base, ssl=trusted) as client:
                server.add(reply(302, headers={"Location": "/y"}), reply(body=JPEG))
                assert await read(client, f"{base}/m/x.jpeg") == JPEG
                server.add(reply(302, headers={"Location": f"{server.url}/x"}))
                error = await failure(client, f"{base}/m/x.jpeg")
                assert "from https to plain http (http://127.0.0.1)" in str(error)
            async with client_of(base) as client:
                error = await failure(client, f"{base}/m/x.jpeg")
                assert "its certificate is refused" in str(error)
        loop_watch.reports.clear()  # the server's, of that
        assert len(server.requests) == 3


@pytest.mark.fault("D7")
@pytest.mark.filterwarnings("ignore:the API key travels unencrypted")
async def test_files_of_the_api_itself_are_always_allowed(names: dict[str, list[str]]) -> None:
    """A sandbox in a private network, over http, beside others that are not allowed."""
    names["sandbox.example"] = names["other.example"] = ["127.0.0.1"]
    async with ScriptedServer([reply(body=JPEG)]) as server:
        base = f"http://sandbox.example:{server.port}"
        hosts = ["files.example"]
        async with client_of(base, allow_http=True, result_hosts=hosts) as client:
            assert await read(client, f"{base}/m/x.jpeg") == JPEG
            for url in (
                f"http://other.example:{server.port}",
                f"https://sandbox.example:{server.port}",
            ):
                await failure(client, f"{url}/m/x.jpeg")
        assert len(server.requests) == 1


@pytest.mark.fault("D7")
async def test_result_hosts_are_the_only_ones(names: dict[str, list[str]]) -> None:
    """For URLs, redirects and download links; names are compared as they stand in URLs."""
    async with ScriptedServer() as server:
        for name in ("files.example", "cdn.example", "xn--bcher-kva.example"):
            names[name] = ["127.0.0.1"]
        hosts = ["Files.Example.", "bücher.example"]
        async with client_of(server, result_hosts=hosts) as client:
            good = f"http://files.example:{server.port}/x.jpeg"
            bad = f"http://cdn.example:{server.port}/x.jpeg"
            server.add(reply(body=JPEG), reply(body=JPEG))
            assert await read(client, good) == JPEG
            assert await read(client, f"http://bücher.example:{server.port}/x") == JPEG
            assert "cdn.example is not one of result_hosts" in str(await failure(client, bad))
            server.add(reply(302, headers={"Location": bad}))
            assert "result_hosts" in str(await failure(client, good))
            server.add(*[reply(403)] * 7, ok(bad))
            assert "result_hosts" in str(await failure(client, good))


# ─── the pool, and the end ───────────────────────────────────────────────────────────────────────


@pytest.mark.fault("D15")
async def test_one_pool_for_the_client(tmp_path: Path) -> None:
    """Not one for each call; between two attempts, others have the slot."""
    open_now = most = 0

    def step(request: Received) -> Answer:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        return Slow(head=b"", body=b"")

    @attrs.frozen
    class Slow(Answer):
        async def play(self, line: object) -> None:
            nonlocal open_now
            await asyncio.sleep(1)
            open_now -= 1
            await reply(body=JPEG).play(line)  # type: ignore[arg-type]

    async with (
        ScriptedServer(then=step) as server,
        client_of(server, downloads_at_once=3) as client,
    ):
        tasks = [
            TaskDetails(
                task_id=f"task{number}",
                status=TaskStatus.SUCCEEDED,
                urls=(f"{server.url}/a", f"{server.url}/b"),
            )
            for number in range(10)
        ]
        before = now()
        await asyncio.gather(*(client.download(each, tmp_path) for each in tasks))
        assert most == 3
        assert now() - before == 7
        assert len(list(tmp_path.iterdir())) == 20


async def test_a_pause_holds_no_slot() -> None:
    """A file that is not there yet does not hold up one that is."""
    async with ScriptedServer() as server, client_of(server, downloads_at_once=1) as client:
        server.add(reply(404), reply(404), reply(body=JPEG), reply(body=JPEG))
        missing = asyncio.create_task(read(client, f"{server.url}/missing"))
        await server.arrived(2)
        before = now()
        assert await read(client, f"{server.url}/there") == JPEG
        assert now() == before
        assert await missing == JPEG


async def test_a_stream_that_is_left_frees_its_slot() -> None:
    """By a break, or by an exception of the consumer."""
    body = jpeg(*[segment(0xFE, b"x" * 60_000)] * 60)
    async with ScriptedServer(then=reply(body=body)) as server:
        async with client_of(server, downloads_at_once=1) as client:
            async for _ in client.open_result(f"{server.url}/m/x.jpeg"):
                break
            assert await read(client, f"{server.url}/m/x.jpeg") == body


@pytest.mark.parametrize("when", ["asking", "reading", "pausing", "waiting for a slot"])
async def test_closing_the_client_ends_every_fetch(when: str) -> None:
    """At once, with ClientClosed."""
    steps: dict[str, Play] = {"asking": hang(), "pausing": reply(404)}
    step = steps.get(when, cut(reply(body=JPEG), body=400, ending="hang"))
    async with ScriptedServer([step]) as server, client_of(server, downloads_at_once=1) as client:
        tasks = [asyncio.create_task(read(client, f"{server.url}/m/x.jpeg"))]
        if "slot" in when:
            tasks.append(asyncio.create_task(read(client, f"{server.url}/m/y.jpeg")))
        await server.arrived()
        await asyncio.sleep(0.5)
        before = now()
        await client.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert now() - before < 1
        kinds = [DownloadError] if when == "pausing" else [ClientClosed] * len(tasks)
        assert [type(each) for each in results] == kinds


async def test_closing_while_a_wait_for_the_host_is_ending(
    fetcher: fetch.Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is up, and what it has begun takes a moment to end: nothing is left to wake."""

    async def get(*_: object, **__: object) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)

    monkeypatch.setattr(fetcher.session, "get", get)
    task = asyncio.create_task(rest_of(fetcher.stream("https://files.example/x.jpeg")))
    await asyncio.sleep(fetch.WINDOW + 0.5)
    await fetcher.aclose()
    with pytest.raises(ClientClosed):
        await task


async def test_a_consumer_may_be_away_when_the_client_is_closed() -> None:
    """When it comes back, it does not wait for what never comes."""
    step = cut(reply(body=JPEG), body=40_000, ending="hang")
    async with ScriptedServer([step]) as server, client_of(server) as client:
        blocks = client.open_result(f"{server.url}/m/x.jpeg")
        await anext(blocks)
        await client.aclose()
        before = now()
        with pytest.raises(ClientClosed):
            await rest_of(blocks)
        assert now() == before


@pytest.mark.fault("D15")
async def test_closing_ends_what_waits_for_a_consumer_that_is_away(tmp_path: Path) -> None:
    """Streams that nobody reads on keep their slots; the files that wait for one do not hang."""
    body = jpeg(*[segment(0xFE, b"x" * 60_000)] * 60)
    async with (
        ScriptedServer(then=reply(body=body)) as server,
        client_of(server, downloads_at_once=1) as client,
    ):
        blocks = client.open_result(f"{server.url}/m/x.jpeg")
        await anext(blocks)
        tasks = [
            asyncio.create_task(client.download(details_of(server), tmp_path / str(number)))
            for number in range(3)
        ]
        await asyncio.sleep(0.5)
        before = now()
        await client.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in results] == [ClientClosed] * 3
        assert now() - before < 1
        assert not [each for each in tmp_path.rglob("*") if each.is_file()]


async def test_stop_waiting_ends_the_pauses() -> None:
    """What is being fetched goes on; nothing is tried again."""
    async with ScriptedServer() as server, client_of(server) as client:
        server.add(*[reply(404)] * 4)
        task = asyncio.create_task(read(client, f"{server.url}/m/x.jpeg"))
        await server.arrived(4)
        before = now()
        client.stop_waiting()
        with pytest.raises(DownloadError, match="HTTP 404"):
            await task
        assert now() == before
