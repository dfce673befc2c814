"""The doctor, with a broken proxy or service between its probe and its port."""

import asyncio
import gzip
import json
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from email.utils import formatdate
from pathlib import Path

import attrs
import pytest
from yarl import URL

from midapi_async import CallbackReceiver, MemoryJournal, MidAPIClient
from midapi_async.cli import _checks, _connect, _diagnosis
from midapi_async.cli._capture import RequestCapture
from midapi_async.cli._checks import CallbackSettings
from midapi_async.cli._connect import Endpoint, Outcome
from midapi_async.cli._diagnosis import Finding, Probe
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import SandboxThread
from tests.cli.conftest import Midapi
from tests.cli.proxies import CERTIFICATES, Proxy, Request, answer
from tests.support import secrets
from tests.support.leaks import LoopWatch
from tests.support.scripted import (
    Answer,
    Play,
    Received,
    ScriptedServer,
    abort_with_reset,
    close,
    delay,
    hang,
    interim,
    raw,
    reply,
)
from tests.support.secrets import WEBHOOK_KEY

PAGE = "<html><head><title>\n Sign in\x1b[31m </title></head></html>"


@pytest.fixture
def receiver_port() -> int:
    """A port of loopback that is free just now."""
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        return int(finder.getsockname()[1])


async def examined(
    url: str | None, port: int | None, *, key: str | None = None, is_public: bool = False
) -> list[Finding]:
    """The findings about callbacks; also checks that they contain no secret."""
    settings = CallbackSettings(
        public_url=url, host="127.0.0.1", port=port, keys=() if key is None else (key,)
    )
    found = await _checks.callbacks(settings, is_public=is_public)
    assert not secrets.found_in(json.dumps([attrs.asdict(each) for each in found]))
    return found


def bad(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that are not ok."""
    return [each for each in findings if each.verdict != "ok"]


def failure(findings: Sequence[Finding]) -> str:
    """The one failure, with its hint."""
    [one] = [each for each in findings if each.verdict == "failed"]
    assert one.hint
    return f"{one.text} | {one.hint}"


# ─── it reaches me ───────────────────────────────────────────────────────────────────────────────


async def test_a_correct_proxy_passes_every_check(receiver_port: int) -> None:
    """One of the checks says that a callback arrived."""
    async with Proxy(receiver_port) as proxy:
        found = await examined(proxy.url(), receiver_port, key=WEBHOOK_KEY)
    assert [each.name for each in found] == ["port", "address", "callback"]
    assert not bad(found)
    assert "arrived unchanged" in found[-1].text


@pytest.mark.parametrize(
    "change",
    [
        lambda it: attrs.evolve(it, path=it.path.removeprefix("/hook")),
        lambda it: attrs.evolve(it, path=it.path + "/"),
        lambda it: attrs.evolve(it, path="/a/b" + it.path + "?x=1"),
        lambda it: attrs.evolve(it, path=it.path.replace("_", "%5F")),
        lambda it: attrs.evolve(it, headers=(*it.headers, ("X-Forwarded-For", "1.2.3.4"))),
        lambda it: attrs.evolve(it, body=json.dumps(json.loads(it.body), indent=1).encode()),
        lambda it: attrs.evolve(it, headers=(*it.headers, ("Content-Encoding", "identity"))),
    ],
    ids=["prefix", "slash", "longer", "escaped", "forwarded", "rewritten_body", "identity"],
)
async def test_harmless_changes_of_a_proxy_are_ignored(
    receiver_port: int, change: Callable[[Request], Request]
) -> None:
    """Only the last segment, the meaning of the body and the signature matter."""
    async with Proxy(receiver_port, change=change) as proxy:
        assert not bad(await examined(proxy.url(), receiver_port, key=WEBHOOK_KEY))


async def test_chunked_bodies_and_interim_answers_are_read(receiver_port: int) -> None:
    """Some proxies send them."""

    def chunk(request: Request) -> Request:
        pieces = f"{len(request.body):x};a=b\r\n".encode() + request.body + b"\r\n0\r\n\r\n"
        headers = (*request.without("content-length").headers, ("Transfer-Encoding", "chunked"))
        return attrs.evolve(request, headers=headers, body=pieces)

    async with Proxy(receiver_port, change=chunk) as proxy:
        assert not bad(await examined(proxy.url(), receiver_port))


async def test_expect_100_continue_is_answered(receiver_port: int) -> None:
    """Some proxies send a body only after that."""
    async with RequestCapture("127.0.0.1", receiver_port) as capture:
        reader, writer = await asyncio.open_connection("127.0.0.1", receiver_port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
    [arrival] = capture.arrivals
    assert arrival.message is not None
    assert arrival.message.body == b"ok"


async def test_connections_that_send_no_whole_request_are_closed(receiver_port: int) -> None:
    """After 20 s, when they are reset, and at the end; none is an arrival."""
    async with RequestCapture("127.0.0.1", receiver_port) as capture:
        lines = [await asyncio.open_connection("127.0.0.1", receiver_port) for _ in range(2)]
        lines[0][1].write(b"POST / HT")
        lines[1][1].write(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n")
        await asyncio.sleep(1)
        abort_with_reset(lines[1][1])
        assert await lines[0][0].read() == b""
        lines[0][1].close()
        _, late = await asyncio.open_connection("127.0.0.1", receiver_port)
        await asyncio.sleep(1)
    late.close()
    assert not [each for each in capture.arrivals if each.message and each.message.body]


async def test_the_number_of_kept_requests_is_bounded(receiver_port: int) -> None:
    """Scanners send requests to any open port; the first hundred are kept."""
    async with RequestCapture("127.0.0.1", receiver_port) as capture:
        for _ in range(120):
            _, writer = await asyncio.open_connection("127.0.0.1", receiver_port)
            writer.write(b"\x16\x03\x01")
            await asyncio.sleep(0.01)
            writer.close()
        assert len(capture.arrivals) == 100


async def test_a_port_without_a_public_url_is_enough_for_a_sandbox(receiver_port: int) -> None:
    """As `CallbackReceiver(None, port=…)`; 0 picks a port."""
    assert not bad(await examined(None, receiver_port))
    assert not bad(await examined(None, 0))


# ─── what was done on the way ────────────────────────────────────────────────────────────────────

CHANGES: dict[str, tuple[Callable[[Request], Request], str]] = {
    "eats_the_last_segment": (
        lambda it: attrs.evolve(it, path=it.path.rpartition("/")[0]),
        "was sent to /hook/TOKEN and arrived at /hook | The last segment was lost",
    ),
    "eats_the_path": (
        lambda it: attrs.evolve(it, path="/"),
        "arrived at / | The last segment was lost",
    ),
    "adds_a_segment": (
        lambda it: attrs.evolve(it, path=f"{it.path}/index.php"),
        "arrived at /hook/TOKEN/index.php | Something was added after",
    ),
    "forgets_a_slash": (
        lambda it: attrs.evolve(it, path=f"/callbacks{it.path.rpartition('/')[2]}"),
        "arrived at /callbacksTOKEN | A slash is missing before the last segment",
    ),
    "changes_case": (
        lambda it: attrs.evolve(it, path=it.path.lower()),
        "Upper case became lower case",
    ),
    "changes_the_method": (
        lambda it: attrs.evolve(it, method="PUT"),
        "sent as POST and arrived as PUT",
    ),
    "strips_the_body": (lambda it: attrs.evolve(it, body=b""), "its body was lost"),
    "cuts_the_body": (lambda it: attrs.evolve(it, body=it.body[:9]), "its body was changed"),
    "changes_the_body": (
        lambda it: attrs.evolve(it, body=it.body.replace(b"success", b"*******")),
        "its body was changed",
    ),
    "compresses": (
        lambda it: attrs.evolve(
            it, body=gzip.compress(it.body), headers=(*it.headers, ("Content-Encoding", "gzip"))
        ),
        "arrived compressed (gzip)",
    ),
    "strips_the_signature": (
        lambda it: it.without("x-webhook-signature"),
        "X-Webhook-Signature lost on the way | Every callback will be refused (401)",
    ),
    "strips_all_that_begins_with_x": (
        lambda it: it.without("x-webhook-signature", "x-webhook-timestamp"),
        "X-Webhook-Timestamp and X-Webhook-Signature lost",
    ),
    "doubles_the_signature": (
        lambda it: attrs.evolve(
            it, headers=(*it.headers, *(each for each in it.headers if "Signature" in each[0]))
        ),
        "its signature was changed",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_each_harmful_change_of_a_proxy_is_named(receiver_port: int, what: str) -> None:
    """The finding says what changed and what to do, and never shows the token."""
    change, text = CHANGES[what]
    async with Proxy(receiver_port, change=change) as proxy:
        assert text in failure(await examined(proxy.url(), receiver_port, key=WEBHOOK_KEY))


async def test_a_lost_signature_without_a_key_is_only_a_warning(receiver_port: int) -> None:
    """It does not matter before a key is set."""
    async with Proxy(receiver_port, change=CHANGES["strips_the_signature"][0]) as proxy:
        [one] = bad(await examined(proxy.url(), receiver_port))
    assert one.verdict == "warning"
    assert "after a webhook key is set" in one.hint


async def test_a_request_that_lost_path_and_body_is_shown(
    receiver_port: int,
) -> None:
    """It cannot be recognized as the probe, but it may be the probe."""

    def forget(request: Request) -> Request:
        return Request("GET", "/", (("Host", "me.example"),), b"")

    async with Proxy(
        receiver_port, change=forget, replaced_answer=answer("404 Not Found")
    ) as proxy:
        found = await examined(proxy.url(), receiver_port)
    assert "404 Not Found from nginx came back" in failure(found)
    assert "another request arrived: GET /" in bad(found)[-1].text


@pytest.mark.parametrize(
    ("ahead", "what"),
    [
        (b"PROXY TCP4 1.2.3.4 127.0.0.1 1 2\r\n", "the PROXY protocol"),
        (b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c", "the PROXY protocol"),
        (b"\x16\x03\x01\x02\0\x01\0", "TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
    ],
)
async def test_another_protocol_at_the_port_is_named(
    receiver_port: int, ahead: bytes, what: str
) -> None:
    """The receiver reads plain HTTP/1.1 only."""
    async with Proxy(receiver_port, preamble=ahead) as proxy:
        found = await examined(proxy.url(), receiver_port)
    assert f"{what} arrived at the port, not plain HTTP/1.1" in found[-1].text


# ─── what came back ──────────────────────────────────────────────────────────────────────────────

ANSWERS = {
    "redirect": (
        answer("301 Moved", "Location: https://me.example/hook/"),
        "was redirected (301) to https://me.example/hook/ | Use the URL behind the redirect",
    ),
    "login": (answer("401 Unauthorized"), "access is denied before the receiver"),
    "bot_filter": (answer("403 Forbidden", body=PAGE), "bot filter"),
    "login_page": (answer("200 OK", body=PAGE), 'a page "Sign in\x1b[31m" | MidAPI would take'),
    "another_program": (answer("204 No Content"), "another program answered: 204 No Content"),
    "not_found": (answer("404 Not Found"), "404 Not Found from nginx came back, and not from the"),
    "bad_gateway": (answer("502 Bad Gateway"), "the proxy does not reach the receiver | Does the"),
    "unavailable": (answer("503 Service Unavailable"), "does not reach the receiver"),
    "too_large": (answer("413 Too Large"), "refuses bodies of this size"),
    "garbage": (b"SSH-2.0-OpenSSH_9.6\r\n", "is not HTTP: SSH-2.0-OpenSSH_9.6"),
    "nothing": (b"", "closed the connection without an answer"),
    "half_a_head": (b"HTTP/1.1 200 OK\r\nServ", "is not HTTP"),
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_an_answer_of_the_proxy_itself_is_explained(receiver_port: int, what: str) -> None:
    """The callback did not arrive; the finding says who answered, and what to do."""
    says, text = ANSWERS[what]
    async with Proxy(receiver_port, own_answer=says) as proxy:
        assert text in failure(await examined(proxy.url(), receiver_port))


async def test_a_redirect_does_not_show_the_token(receiver_port: int) -> None:
    """Its Location repeats the path with the token."""

    def redirect(request: Received) -> Answer:
        return reply(308, headers={"Location": f"{request.target}/"})

    async with ScriptedServer(then=redirect) as server:
        assert "redirected (308) to /hook/TOKEN/" in failure(
            await examined(f"{server.url}/hook", receiver_port)
        )


async def test_an_answer_that_is_replaced_is_a_failure(receiver_port: int) -> None:
    """The callback arrived and was answered 200, but MidAPI would see another status."""
    async with Proxy(receiver_port, replaced_answer=answer("500 Oops")) as proxy:
        text = failure(await examined(proxy.url(), receiver_port))
    assert "it arrived and was answered 200, but 500 Oops from nginx came back" in text


@pytest.mark.parametrize(("seconds", "verdict"), [(4, None), (6, "warning"), (20, "failed")])
@pytest.mark.parametrize("way", ["delay", "answer_delay"])
async def test_a_slow_answer_is_a_finding(
    receiver_port: int, way: str, seconds: float, verdict: str | None
) -> None:
    """Above 5 s a warning; above 15 s, when MidAPI gives up, a failure."""
    proxy = Proxy(receiver_port, **{way: seconds})  # type: ignore[arg-type]
    async with proxy:
        found = bad(await examined(proxy.url(), receiver_port))
    assert [each.verdict for each in found] == [verdict] * bool(verdict)
    assert all("MidAPI gives up" in each.text for each in found)
    assert ("it arrived, but then" in "".join(each.text for each in found)) is (
        way == "answer_delay" and seconds > 15
    )


# ─── the way there ───────────────────────────────────────────────────────────────────────────────


async def test_a_name_that_does_not_resolve(receiver_port: int) -> None:
    """The finding shows the name and asks for a DNS entry."""
    text = failure(await examined("https://no-such-name.invalid/hook", receiver_port))
    assert "no-such-name.invalid: its name does not resolve" in text
    assert "DNS has an entry" in text


async def test_a_name_server_that_does_not_answer(
    receiver_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails after 10 s."""

    async def silent(*_: object, **__: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", silent)
    found = await examined("http://me.example/hook", None)
    assert "me.example: its name does not resolve (no name server answered)" in failure(found)


async def test_a_port_that_refuses_connections(receiver_port: int) -> None:
    """No program listens at the public URL."""
    async with Proxy() as proxy:
        url = proxy.url()
    assert "refuses the connection | Nothing listens there" in failure(
        await examined(url, receiver_port)
    )


async def test_a_port_that_does_not_answer(
    receiver_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a firewall it fails after 5 s, not after minutes."""

    async def dropped(*_: object, **__: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncio, "open_connection", dropped)
    begun = asyncio.get_running_loop().time()
    text = failure(await examined("http://127.0.0.1:9/hook", receiver_port))
    assert "127.0.0.1:9 does not answer" in text
    assert asyncio.get_running_loop().time() - begun < 10


async def test_an_unreachable_address(receiver_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding repeats the system's own words."""

    async def unreachable(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(asyncio, "open_connection", unreachable)
    text = failure(await examined("http://[::1]:9/hook", receiver_port))
    assert "[::1]:9 cannot be reached: Network is unreachable" in text


async def test_of_several_addresses_one_may_fail(
    receiver_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is tried; if one works, a failure of another is a warning that names it."""

    async def two(*_: object, **__: object) -> list[Endpoint]:
        return [Endpoint("127.0.0.1", proxy.port), Endpoint("127.0.0.2", closed)]

    async with Proxy() as gone:
        closed = gone.port
    monkeypatch.setattr(_checks, "resolve", two)
    async with Proxy(receiver_port) as proxy:
        [one] = bad(await examined(proxy.url(), receiver_port))
    assert one.verdict == "warning"
    assert f"through 127.0.0.2: 127.0.0.2:{closed} refuses" in one.text


@pytest.mark.parametrize(
    ("given", "ok"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.1.5", False),
        ("100.64.0.1", False),
        ("169.254.1.1", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),  # noqa: S104 - asked about, not listened on
    ],
)
def test_the_real_midapi_reaches_public_addresses_only(given: str, ok: bool) -> None:
    """A local service, such as the sandbox, also reaches private ones."""
    endpoint = Endpoint(given, 443)
    found = _diagnosis.check_address(endpoint, is_public=True)
    assert found.verdict == ("ok" if ok else "failed")
    assert _diagnosis.check_address(endpoint, is_public=False).verdict == "ok"


async def test_loopback_and_plain_http_are_no_public_url(receiver_port: int) -> None:
    """The real MidAPI cannot use them, though the probe arrives."""
    found = bad(await examined(None, receiver_port, is_public=True))
    assert [(it.name, it.verdict) for it in found] == [("address", "failed"), ("TLS", "warning")]
    assert "127.0.0.1 is this machine itself: MidAPI cannot reach it" in found[0].text


# ─── TLS ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tls(loop_watch: LoopWatch) -> Iterator[None]:
    """Ignores failed handshakes, which asyncio reports in its debug mode."""
    yield
    failed = "Error on transport creation for incoming connection"
    loop_watch.reports[:] = [each for each in loop_watch.reports if failed not in each]


@pytest.fixture
def trusted(tls: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusts the authority of `CERTIFICATES`."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "authority.pem"))


async def test_tls_with_a_good_certificate(receiver_port: int, trusted: None) -> None:
    """The finding says how long it is still valid."""
    async with Proxy(receiver_port, certificate="good.pem") as proxy:
        found = await examined(proxy.url(scheme="https"), receiver_port)
    assert not bad(found)
    assert "the certificate is valid for" in next(it.text for it in found if it.name == "TLS")


@pytest.mark.parametrize(
    ("certificate", "text", "hint"),
    [
        ("expired.pem", "certificate has expired", "Renew it"),
        ("other_name.pem", "not valid for '127.0.0.1'", "Get one for the name in the URL"),
        ("self_signed.pem", "self-signed certificate", "from a public authority"),
    ],
)
async def test_tls_with_a_bad_certificate(
    receiver_port: int, trusted: None, certificate: str, text: str, hint: str
) -> None:
    """Expired, for another name, self-signed: OpenSSL's words, and what to do."""
    async with Proxy(receiver_port, certificate=certificate) as proxy:
        found = failure(await examined(proxy.url(scheme="https"), receiver_port))
    assert text in found
    assert hint in found


async def test_tls_with_an_unknown_authority(receiver_port: int, tls: None) -> None:
    """A chain that is not sent completely looks the same."""
    async with Proxy(receiver_port, certificate="good.pem") as proxy:
        found = failure(await examined(proxy.url(scheme="https"), receiver_port))
    assert "unable to get local issuer certificate | Make the server send the whole chain" in found


async def test_https_to_a_port_of_plain_http(receiver_port: int) -> None:
    """The finding says that http would work."""
    async with ScriptedServer(then=reply(404)) as server:
        url = server.url.replace("http://", "https://")
        assert "uses plain http, and the URL says https" in failure(
            await examined(url, receiver_port)
        )


async def test_http_to_a_port_of_tls(receiver_port: int, tls: None) -> None:
    """The finding says that https would work."""
    async with Proxy(receiver_port, certificate="good.pem") as proxy:
        assert "uses TLS, and the URL says http |" in failure(
            await examined(proxy.url(), receiver_port)
        )


@pytest.mark.parametrize(
    "play",
    [
        reply(400, body="<title>400 The plain HTTP request was sent to HTTPS port</title>"),
        raw(b"\x15\x03\x01\0\x02\x02\x16"),
        close(),
    ],
    ids=["a_page_of_nginx", "an_alert", "nothing"],
)
async def test_each_answer_of_a_tls_port_to_plain_http_is_recognized(
    receiver_port: int, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page, an alert, or a closed connection."""

    async def yes(endpoint: Endpoint) -> bool:
        return endpoint.tls_name is None

    monkeypatch.setattr(_connect, "_speaks_tls", yes)
    async with ScriptedServer(then=play) as server:
        assert "uses TLS, and the URL says http |" in failure(
            await examined(server.url, receiver_port)
        )


@pytest.mark.parametrize("says", [b"", answer("400 Bad Request")])
async def test_over_tls_a_closed_connection_is_no_wrong_scheme(
    receiver_port: int, trusted: None, says: bytes
) -> None:
    """Nor is a 400."""
    async with Proxy(receiver_port, certificate="good.pem", own_answer=says) as proxy:
        assert "the URL says" not in failure(
            await examined(proxy.url(scheme="https"), receiver_port)
        )


@pytest.mark.parametrize(
    ("play", "text"),
    [
        (close("accept"), "refuses TLS"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "accepts the connection"),
        (hang("accept"), "accepts the connection and then sends nothing"),
    ],
)
async def test_https_to_a_port_of_another_protocol(
    receiver_port: int, play: Play, text: str
) -> None:
    """It closes, sends something else, or is silent."""
    async with ScriptedServer(then=play) as server:
        url = server.url.replace("http://", "https://")
        assert text in failure(await examined(url, receiver_port))


@pytest.mark.parametrize(("days", "verdict"), [(60.5, "ok"), (3.5, "warning")])
def test_a_certificate_that_expires_soon_is_a_warning(days: float, verdict: str) -> None:
    """Two weeks before its end."""
    outcome = Outcome(Endpoint("8.8.8.8", 443), certificate_ends=time.time() + days * 86400)
    [one] = _diagnosis.check_certificate(outcome)
    assert one.verdict == verdict
    assert f"valid for {int(days)} more days" in one.text


# ─── a program that runs already ─────────────────────────────────────────────────────────────────


async def test_a_running_receiver_gets_the_probe(receiver_port: int) -> None:
    """Its 404 to an unknown token is only a warning: it proves nothing."""
    receiver = CallbackReceiver(None, port=receiver_port)
    async with (
        ScriptedServer() as service,
        MidAPIClient("key", base_url=service.url, receiver=receiver, journal=MemoryJournal()),
        Proxy(receiver_port) as proxy,
    ):
        found = await examined(proxy.url(), receiver_port)
    assert "a receiver has 127.0.0.1" in found[0].text
    [one] = bad(found)
    assert (one.verdict, "it may not be your receiver" in one.text) == ("warning", True)


async def test_a_running_program_that_is_not_a_receiver() -> None:
    """Neither its page nor its silence is taken for a receiver."""
    async with ScriptedServer(then=reply(404, body=PAGE)) as server:
        found = [it for it in await examined(None, server.port) if it.verdict == "failed"]
    assert "that is not a receiver: it answered 404 Not Found" in found[0].text
    async with ScriptedServer(then=close()) as server:
        found = [it for it in await examined(None, server.port) if it.verdict == "failed"]
    assert "but 127.0.0.1" in found[0].text


async def test_a_receiver_without_an_open_client() -> None:
    """It answers 503, and MidAPI sends again."""
    async with ScriptedServer(then=interim(reply(503), 103)) as server:
        found = await examined(None, server.port)
    assert "has no open client" in found[0].text
    assert not [each for each in found if each.verdict == "failed"]


async def test_a_mounted_receiver_is_judged_by_its_answer() -> None:
    """Without a port the doctor does not listen."""
    async with ScriptedServer([reply(404), delay(reply(404), 7), reply(200)]) as server:
        [_, one] = await examined(server.url, None)
        assert "--port" in one.hint
        assert "it took 7.0 s" in (await examined(server.url, None))[-1].text
        assert "another program answered" in failure(await examined(server.url, None))


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    """The finding names it."""
    settings = CallbackSettings(
        public_url="http://127.0.0.1:1/", host="203.0.113.1", port=0, keys=()
    )
    [one] = await _checks.callbacks(settings, is_public=False)
    assert (one.name, one.verdict) == ("port", "failed")
    assert "cannot listen on 203.0.113.1:0" in one.text


async def test_other_requests_at_the_port_are_ignored(
    receiver_port: int,
) -> None:
    """Scanners and silent connections do not change the result."""

    async def scan() -> None:
        for hello in (
            b"",
            b"GET /.env HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", receiver_port)
            writer.write(hello)
            writer.close()

    async with Proxy(receiver_port, delay=1) as proxy:
        examining = asyncio.create_task(examined(proxy.url(), receiver_port))
        await asyncio.sleep(0.5)
        await scan()
        assert not bad(await examining)


@pytest.mark.fault("I5")
def test_a_probe_shows_neither_its_token_nor_a_key() -> None:
    """Nor do the texts that it makes."""
    probe = Probe(URL("http://me.example/"), (WEBHOOK_KEY,))
    secrets.assert_none_in(probe, probe.shown(probe.path), probe.shown(probe.path.lower()))
    assert probe.shown(probe.path) == "/TOKEN"


# ─── the account ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def client_env(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the environment of a client."""

    def use(url: str) -> None:
        monkeypatch.setenv("MIDAPI_API_KEY", secrets.API_KEY)
        monkeypatch.setenv("MIDAPI_BASE_URL", url)

    return use


@pytest.mark.parametrize(
    ("off", "verdict", "text"),
    [
        (0, "ok", "agrees"),
        (150, "warning", "s ahead of MidAPI's"),
        (-150, "warning", "s behind MidAPI's"),
        (900, "failed", "15 min"),
    ],
)
async def test_a_wrong_clock_is_a_finding(
    client_env: Callable[[str], None], off: int, verdict: str, text: str
) -> None:
    """Above 30 s a warning; above five minutes, when lost answers cannot be matched, a failure."""
    date = {"Date": formatdate(time.time() - off, usegmt=True)}
    async with ScriptedServer([reply(404, headers=date)]) as server:
        client_env(server.url)
        [_, clock] = await _checks.service()
    assert clock.verdict == verdict
    assert text in clock.text


@pytest.mark.parametrize("date", ["", "soon", "Mon, 99 Foo 2026 00:00:00 GMT"])
async def test_a_service_without_a_date(client_env: Callable[[str], None], date: str) -> None:
    """There is no finding about the clock."""
    async with ScriptedServer([reply(404, headers={"Date": date})]) as server:
        client_env(server.url)
        assert len(await _checks.service()) == 1


@pytest.mark.parametrize(
    ("play", "verdict", "text"),
    [
        (reply(json={"code": 200, "msg": "", "data": 8.5}), "ok", "8.50 credits are left"),
        (reply(json={"code": 200, "msg": "", "data": 0}), "warning", "no credits are left"),
        (reply(json={"code": 401, "msg": "You do not have access"}), "failed", "refuses it"),
        (reply(500, body="oops"), "failed", "could not be checked"),
    ],
)
async def test_the_api_key_is_checked(
    client_env: Callable[[str], None], play: Play, verdict: str, text: str
) -> None:
    """By asking for the credits, which costs nothing; the key is never shown."""
    async with ScriptedServer([reply(404)], then=play) as server:
        client_env(server.url)
        found = await _checks.account()
    assert (found[-1].name, found[-1].verdict) == ("API key", verdict)
    assert text in found[-1].text
    secrets.assert_none_in(*found)


async def test_an_unreachable_service(client_env: Callable[[str], None]) -> None:
    """The API key is not checked then."""
    async with ScriptedServer() as server:
        client_env(server.url)
    assert "cannot be reached: 127.0.0.1" in failure(await _checks.account())
    client_env("https://no-such-name.invalid")
    assert "its name does not resolve" in failure(await _checks.account())


async def test_wrong_settings_of_a_client(
    client_env: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in the client's own words; all other checks still run."""
    client_env("http://pictures.example")
    assert [each.name for each in await _checks.account()] == ["base_url"]
    monkeypatch.delenv("MIDAPI_API_KEY")
    async with ScriptedServer([reply(404)]) as server:
        monkeypatch.setenv("MIDAPI_BASE_URL", server.url)
        found = await _checks.account()
    assert [(it.name, it.verdict) for it in found] == [("API key", "failed"), ("service", "ok")]


# ─── the journal ─────────────────────────────────────────────────────────────────────────────────


async def test_the_journal_is_checked(tmp_path: Path) -> None:
    """Missing, intact and private, readable by others, writable by others, damaged."""
    folder = tmp_path / "journal"
    assert await _checks.journal(folder) == Finding(
        "journal", "warning", f"{folder} does not exist; the first use makes it",
        "If it should exist already, check its spelling and the current folder.",
    )  # fmt: skip
    journal = SQLiteJournal(folder)
    await journal.check()
    await journal.aclose()
    assert (
        "is private, on a local disk, and not damaged; intents: 0"
        in (await _checks.journal(folder)).text
    )
    folder.chmod(0o755)
    assert "other users can read" in (await _checks.journal(folder)).text
    folder.chmod(0o777)
    found = await _checks.journal(folder)
    assert (found.verdict, "can be written by others" in found.text) == ("failed", True)
    folder.chmod(0o700)
    database = folder / "journal.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE odd (a, b)")
        connection.execute("CREATE INDEX by_a ON odd (a)")
        connection.execute("INSERT INTO odd VALUES (1, 2)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_schema SET sql = 'CREATE INDEX by_a ON odd (b)' WHERE name = 'by_a'"
        )
        connection.commit()
    found = await _checks.journal(folder)
    assert found.verdict == "failed"
    assert found.text.startswith(f"{folder} is damaged: ")
    database.write_bytes(b"x" * 8192)
    assert (await _checks.journal(folder)).verdict == "failed"


async def test_a_journal_that_cannot_be_made(tmp_path: Path) -> None:
    """There can be no folder inside a file."""
    (tmp_path / "file").touch()
    found = await _checks.journal(tmp_path / "file" / "journal")
    assert (found.verdict, "cannot be made" in found.text) == ("failed", True)


# ─── the command ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.real_time
@pytest.mark.midapi_sandbox(api_key=secrets.API_KEY, time_scale=1)
def test_without_problems_the_exit_code_is_0(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    receiver_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A line for each check, and no secret."""
    ran = midapi("doctor", "--port", receiver_port, "--webhook-key", WEBHOOK_KEY)
    assert ran.code == 0
    marks = [line[:1] for line in ran.lines if not line.startswith(" ")]
    assert marks == ["✓", "✓", "✓", "!", "✓", "✓", "✓"]
    assert "No problems found." in ran.err
    assert not secrets.found_in(ran.out + ran.err)
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", str(receiver_port))
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", f"http://127.0.0.1:{receiver_port}/hook")
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    ran = midapi("doctor", "--json")
    assert ran.json["ok"]
    assert ran.json["checks"][-1]["name"] == "callback"
    assert "journal does not exist" in str(ran.json)


@pytest.mark.real_time
@pytest.mark.midapi_sandbox(api_key=secrets.API_KEY, time_scale=1)
def test_with_problems_the_exit_code_is_1(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In plain words and as JSON; the key is never shown."""
    monkeypatch.setenv("MIDAPI_API_KEY", secrets.known("a-key-that-is-wrong"))
    ran = midapi("doctor", "--public-url", "ftp://me.example", "--journal", "folder")
    assert ran.code == 1
    assert "✗ API key: " in ran.out
    assert "✗ public_url: must be an http or https URL" in ran.out
    assert "2 problems must be fixed." in ran.err
    assert not secrets.found_in(ran.out + ran.err)
    ran = midapi("doctor", "--json")
    assert (ran.code, ran.json["ok"]) == (1, False)
    assert "MIDAPI_PUBLIC_URL is not set" in str(ran.json)


def test_the_environment_is_checked_like_from_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the messages of `CallbackReceiver.from_env`."""
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", "http")
    [one] = _checks.callback_settings(None, "127.0.0.1", None, None)  # type: ignore[misc]  # a list
    assert (one.name, one.verdict) == ("callbacks", "warning")
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", "https://me.example/hook")
    monkeypatch.setenv("MIDAPI_WEBHOOK_KEY_FILE", "none")
    found = _checks.callback_settings(None, "127.0.0.1", None, None)
    assert isinstance(found, list)
    assert {each.name for each in found} == {"port", "webhook_key"}
    monkeypatch.delenv("MIDAPI_WEBHOOK_KEY_FILE")
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", "8080")
    monkeypatch.setenv("MIDAPI_WEBHOOK_KEY", f"{WEBHOOK_KEY}\n{secrets.known('the-new-key')}")
    settings = _checks.callback_settings(None, "127.0.0.1", None, None)
    assert isinstance(settings, CallbackSettings)
    assert (settings.port, len(settings.keys)) == (8080, 2)
    secrets.assert_none_in(settings)
