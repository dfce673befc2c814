"""The doctor, with a broken proxy or service between its probe and its port."""

import asyncio
import gzip
import json
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from yarl import URL

from midapi_async import CallbackReceiver, JournalError, MemoryJournal, MidAPIClient
from midapi_async.callbacks.inbox import PROBES
from midapi_async.cli import _checks
from midapi_async.cli._checks import CallbackSettings, Finding
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import SandboxThread, lose_answer
from tests.cli.conftest import Midapi, Ran
from tests.cli.proxies import CERTIFICATES, Proxy, Request, answer
from tests.support import secrets
from tests.support.leaks import LoopWatch
from tests.support.scripted import (
    Answer,
    Play,
    Received,
    ScriptedServer,
    close,
    delay,
    hang,
    interim,
    raw,
    reply,
)
from tests.support.secrets import WEBHOOK_KEY
from tests.support.waiting import free_port

PAGE = "<html><head><title>\n Sign in\x1b[31m </title></head></html>"


@pytest.fixture
def receiver_port() -> int:
    """A port of loopback that is free just now."""
    return free_port()


async def examined(
    url: str | None,
    port: int | None,
    *,
    key: str | None = None,
    is_public: bool = False,
    folder: Path | None = None,
) -> list[Finding]:
    """The findings about callbacks; also checks that they contain no secret."""
    settings = CallbackSettings(public_url=url, port=port, keys=() if key is None else (key,))
    service = URL("https://pictures.example" if is_public else "http://127.0.0.1:8787")
    found = await _checks.callbacks(settings, service, folder)
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
    assert f"it has arrived at 127.0.0.1:{receiver_port}" in found[-1].text


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
        lambda it: attrs.evolve(it, body=it.body.replace(b"success", b"*******")),
        lambda it: attrs.evolve(it, body=b"\xef\xbb\xbf" + it.body),
    ],
    ids=[
        *("prefix", "slash", "longer", "escaped", "forwarded", "rewritten_body", "identity"),
        *("filtered_body", "byte_order_mark"),
    ],
)
async def test_harmless_changes_of_a_proxy_are_ignored(
    receiver_port: int, change: Callable[[Request], Request]
) -> None:
    """Only the last segment, the body's task and the signature matter."""
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


async def test_a_port_without_a_public_url_is_enough_for_a_sandbox(receiver_port: int) -> None:
    """As `CallbackReceiver(None, port=…)`; 0 picks a port."""
    assert not bad(await examined(None, receiver_port))
    assert not bad(await examined(None, 0))


# ─── what was done on the way ────────────────────────────────────────────────────────────────────

CUT = "The last one must stay last and unchanged: check the rewrites"
LOST_BODY = "400 Bad Request came back: its body was lost or changed, or it arrived in another"
CHANGES: dict[str, tuple[Callable[[Request], Request], str]] = {
    "eats_the_last_segment": (
        lambda it: attrs.evolve(it, path=it.path.rpartition("/")[0]),
        f"was sent to /hook/TOKEN, and its last segment arrived as hook | {CUT}",
    ),
    "eats_the_path": (lambda it: attrs.evolve(it, path="/"), f"segment arrived as nothing | {CUT}"),
    "adds_a_segment": (
        lambda it: attrs.evolve(it, path=f"{it.path}/index.php"),
        f"segment arrived as index.php | {CUT}",
    ),
    "forgets_a_slash": (
        lambda it: attrs.evolve(it, path=f"/callbacks{it.path.rpartition('/')[2]}"),
        f"segment arrived as callbacksTOKEN | {CUT}",
    ),
    "changes_case": (
        lambda it: attrs.evolve(it, path=it.path.lower()),
        f"was sent to /hook/TOKEN, and its last segment arrived as token | {CUT}",
    ),
    "changes_the_method": (
        lambda it: attrs.evolve(it, method="PUT"),
        "405 Method Not Allowed came back: it did not arrive as a POST",
    ),
    "strips_the_body": (lambda it: attrs.evolve(it, body=b""), LOST_BODY),
    "cuts_the_body": (lambda it: attrs.evolve(it, body=it.body[:9]), LOST_BODY),
    "compresses": (
        lambda it: attrs.evolve(
            it, body=gzip.compress(it.body), headers=(*it.headers, ("Content-Encoding", "gzip"))
        ),
        "415 Unsupported Media Type came back: its body arrived compressed",
    ),
    "strips_the_signature": (
        lambda it: it.without("x-webhook-signature"),
        "its signature was lost or changed on the way | The proxy must forward both headers",
    ),
    "strips_all_that_begins_with_x": (
        lambda it: it.without("x-webhook-signature", "x-webhook-timestamp"),
        "its signature was lost or changed",
    ),
    "doubles_the_signature": (
        lambda it: attrs.evolve(
            it, headers=(*it.headers, *(each for each in it.headers if "Signature" in each[0]))
        ),
        "its signature was lost or changed",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_each_harmful_change_of_a_proxy_is_named(
    receiver_port: int, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The finding says what changed and what to do, and never shows the token."""
    change, text = CHANGES[what]
    async with Proxy(receiver_port, change=change) as proxy:
        found = failure(await examined(proxy.url(), receiver_port, key=WEBHOOK_KEY))
    assert text in found
    assert "mjt_" not in found
    assert "webhook_key is set here" not in caplog.text  # the receiver's own advice


async def test_a_lost_signature_without_a_key_is_only_a_warning(receiver_port: int) -> None:
    """It does not matter before a key is set."""
    async with Proxy(receiver_port, change=CHANGES["strips_the_signature"][0]) as proxy:
        [one] = bad(await examined(proxy.url(), receiver_port))
    assert one.verdict == "warning"
    assert "Without a webhook key this does not matter" in one.hint


async def test_a_post_that_became_a_get(receiver_port: int) -> None:
    """It has lost path and body, too; the method is named first."""

    def forget(request: Request) -> Request:
        return Request("GET", "/", (("Host", "me.example"),), b"")

    async with Proxy(receiver_port, change=forget) as proxy:
        found = await examined(proxy.url(), receiver_port)
    assert "405 Method Not Allowed came back: it did not arrive as a POST" in failure(found)


@pytest.mark.parametrize(
    "ahead",
    [
        b"PROXY TCP4 1.2.3.4 127.0.0.1 1 2\r\n",
        b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c",
        b"\x16\x03\x01\x02\0\x01\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["proxy_protocol_1", "proxy_protocol_2", "tls", "http2"],
)
async def test_another_protocol_at_the_port_is_a_finding(receiver_port: int, ahead: bytes) -> None:
    """The receiver reads plain HTTP/1.1 only; the hint names what proxies send in its place."""
    async with Proxy(receiver_port, preamble=ahead) as proxy:
        found = failure(await examined(proxy.url(), receiver_port))
    assert "or it arrived in another protocol" in found
    assert f"plain HTTP/1.1 for 127.0.0.1:{receiver_port}: no TLS, no HTTP/2, no PROXY" in found


# ─── what came back ──────────────────────────────────────────────────────────────────────────────

SCHEME = "Does the right program listen there, and for that scheme (http or https)?"
ANSWERS = {
    "redirect": (
        answer("301 Moved", "Location: https://me.example/hook/"),
        "it is redirected to https://me.example/hook/ | Use that as public_url",
    ),
    "login": (
        answer("401 Unauthorized"),
        "a login comes first, or the signature is refused | Exem",
    ),
    "bot_filter": (answer("403 Forbidden", body=PAGE), "access is denied before the receiver"),
    "login_page": (
        answer("200 OK", body=PAGE),
        'a page "Sign in\x1b[31m" came back: another program answered | MidAPI would take this for',
    ),
    "another_program": (answer("204 No Content"), "204 No Content from nginx came back: another"),
    "not_found": (answer("404 Not Found"), "404 Not Found from nginx came back, and not from the"),
    "not_found_page": (
        answer("404 Not Found", body="404: Not Found"),
        'nginx, a page "404: Not Found" came back, and not from the receiver | Does the applicat',
    ),
    "program_is_down": (
        answer("500 Internal Server Error"),
        "and not from the receiver | Does the application run? Does the proxy forward",
    ),
    "bad_gateway": (answer("502 Bad Gateway"), "the proxy does not reach the receiver"),
    "unavailable": (answer("503 Service Unavailable"), "does not reach the receiver"),
    "method": (answer("405 Not Allowed", body=PAGE), "or at a web server for files"),
    "too_large": (answer("413 Too Large"), "bodies of this size are refused"),
    "teapot": (answer("418 I'm a teapot"), "I'm a teapot from nginx came back, and not from the"),
    "garbage": (b"SSH-2.0-OpenSSH_9.6\r\n", f"the answer is not HTTP | {SCHEME}"),
    "nothing": (b"", f"closed the connection without an answer | {SCHEME}"),
    "half_a_head": (b"HTTP/1.1 200 OK\r\nServ", "closed the connection without an answer"),
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
        assert "it is redirected to /hook/TOKEN/ |" in failure(
            await examined(f"{server.url}/hook", receiver_port)
        )


async def test_an_answer_that_is_replaced_is_a_failure(receiver_port: int) -> None:
    """The callback arrived and was answered 200, but MidAPI would see another status."""
    async with Proxy(receiver_port, replaced_answer=answer("500 Oops")) as proxy:
        text = failure(await examined(proxy.url(), receiver_port))
    assert "it has arrived and was answered 200, but 500 Oops from nginx came back" in text


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
    assert all("15 s" in each.hint for each in found)
    assert ("it has arrived, but then" in "".join(each.text for each in found)) is (
        way == "answer_delay" and seconds > 15
    )


# ─── the way there ───────────────────────────────────────────────────────────────────────────────


async def test_a_name_that_does_not_resolve(receiver_port: int) -> None:
    """The finding shows the name and asks for a DNS entry."""
    text = failure(await examined("https://no-such-name.invalid/hook", receiver_port))
    assert "the name no-such-name.invalid does not resolve (" in text
    assert "its entry in the DNS" in text


async def test_a_name_server_that_does_not_answer(
    receiver_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails after 10 s."""

    async def silent(*_: object, **__: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", silent)
    found = await examined("http://me.example/hook", None)
    assert "the name me.example does not resolve (no name server answered)" in failure(found)


async def test_a_name_that_cannot_be_one(receiver_port: int) -> None:
    """A label is too long."""
    found = await examined(f"http://{'x' * 64}.example/hook", receiver_port)
    assert "does not resolve (" in failure(found)
    assert "no name server" not in failure(found)


async def test_a_port_that_refuses_connections(receiver_port: int) -> None:
    """No program listens at the public URL."""
    async with Proxy() as proxy:
        url = proxy.url()
    assert f"nothing listens on {URL(url).authority} | {SCHEME}" in failure(
        await examined(url, receiver_port)
    )


async def test_a_port_that_does_not_answer(
    receiver_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a firewall it fails after 5 s, not after minutes."""

    async def dropped(*_: object, **__: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", dropped)
    # The port stands for one of another machine, and not for one that the virtual clock misses.
    monkeypatch.setattr(asyncio.get_running_loop(), "serves", lambda _port: True)
    begun = asyncio.get_running_loop().time()
    text = failure(await examined("http://127.0.0.1:9/hook", receiver_port))
    assert "no connection to 127.0.0.1:9 was made in time | Check scheme, port and firew" in text
    assert "try from outside" in text
    assert asyncio.get_running_loop().time() - begun < 10


async def test_an_unreachable_address(receiver_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding repeats the system's own words."""

    async def unreachable(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", unreachable)
    assert f"Network is unreachable | {SCHEME}" in failure(
        await examined("http://[::1]:9/hook", receiver_port)
    )


async def test_of_several_addresses_one_may_fail(
    receiver_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is tried; if one works, a failure of another is a warning that names it."""

    async def two(url: URL) -> list[str]:
        return ["127.0.0.1", "127.0.0.2"]  # the proxy listens on the first only

    monkeypatch.setattr(_checks, "resolve", two)
    async with Proxy(receiver_port) as proxy:
        [one] = bad(await examined(proxy.url(), receiver_port))
    assert one.verdict == "warning"
    assert f"through 127.0.0.2: nothing listens on 127.0.0.2:{proxy.port}" in one.text


async def test_what_has_arrived_through_one_address_is_not_taken_for_another(
    receiver_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one leads to a proxy that knows no such path."""

    async def two(url: URL) -> list[str]:
        return ["127.0.0.1", "127.0.0.2"]

    monkeypatch.setattr(_checks, "resolve", two)
    async with Proxy(receiver_port) as proxy:
        other = await asyncio.start_server(not_found, "127.0.0.2", proxy.port)
        async with other:
            [one] = bad(await examined(proxy.url(), receiver_port))
    assert "through 127.0.0.2: 404 Not Found came back, and not from the receiver" in one.text


async def not_found(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer like a proxy without pages."""
    await reader.readuntil(b"}}")
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    writer.close()


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
    assert _checks.check_address(given, is_public=True).verdict == ("ok" if ok else "failed")
    assert _checks.check_address(given, is_public=False).verdict == "ok"


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
    """It is checked for the name in the URL."""
    async with Proxy(receiver_port, certificate="good.pem") as proxy:
        assert not bad(await examined(proxy.url(scheme="https"), receiver_port))


@pytest.mark.parametrize(("days", "verdicts"), [(60.5, []), (3.4, ["warning"])])
async def test_a_certificate_that_expires_soon_is_a_warning(
    receiver_port: int,
    trusted: None,
    monkeypatch: pytest.MonkeyPatch,
    days: float,
    verdicts: list[str],
) -> None:
    """Two weeks before its end."""
    monkeypatch.setattr(ssl, "cert_time_to_seconds", lambda _: time.time() + days * 86_400)
    async with Proxy(receiver_port, certificate="good.pem") as proxy:
        found = bad(await examined(proxy.url(scheme="https"), receiver_port))
    assert [each.verdict for each in found] == verdicts
    assert all("the certificate expires in 3 days" in each.text for each in found)


CERTIFICATE = "It must not have expired, be made for the name in the URL and by a public authority"


@pytest.mark.parametrize(
    ("certificate", "text"),
    [
        ("expired.pem", "certificate has expired"),
        ("other_name.pem", "not valid for '127.0.0.1'"),
        ("self_signed.pem", "self-signed certificate"),
    ],
)
async def test_tls_with_a_bad_certificate(
    receiver_port: int, trusted: None, certificate: str, text: str
) -> None:
    """Expired, for another name, self-signed: OpenSSL's words, and what a good one is like."""
    async with Proxy(receiver_port, certificate=certificate) as proxy:
        found = failure(await examined(proxy.url(scheme="https"), receiver_port))
    assert "its certificate is refused: " in found
    assert text in found
    assert CERTIFICATE in found


async def test_tls_with_an_unknown_authority(receiver_port: int, tls: None) -> None:
    """A chain that is not sent completely looks the same."""
    async with Proxy(receiver_port, certificate="good.pem") as proxy:
        found = failure(await examined(proxy.url(scheme="https"), receiver_port))
    assert f"unable to get local issuer certificate | {CERTIFICATE}" in found
    assert "be sent with its whole chain (fullchain.pem)" in found


@pytest.mark.parametrize(
    ("play", "text"),
    [
        (reply(404), "no connection to 127.0.0.1"),
        (close("accept"), "Connection reset by peer"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "no connection to 127.0.0.1"),
        (hang("accept"), "no connection to 127.0.0.1"),
    ],
    ids=["http", "closed", "ssh", "silent"],
)
async def test_https_to_a_port_without_tls(receiver_port: int, play: Play, text: str) -> None:
    """Whatever speaks there, and however, the hint names the scheme."""
    async with ScriptedServer(then=play) as server:
        found = failure(await examined(server.url.replace("http://", "https://"), receiver_port))
    assert text in found
    assert "scheme" in found


async def test_https_to_a_web_server_of_plain_http(receiver_port: int) -> None:
    """It answers at once, because a handshake is no request."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = failure(await examined(f"https://127.0.0.1:{port}", receiver_port))
    assert "TLS failed (" in found
    assert SCHEME in found


async def test_http_to_a_port_of_tls(receiver_port: int, tls: None) -> None:
    """As above."""
    async with Proxy(receiver_port, certificate="good.pem") as proxy:
        assert f"closed the connection without an answer | {SCHEME}" in failure(
            await examined(proxy.url(), receiver_port)
        )


@pytest.mark.parametrize(
    ("play", "text"),
    [
        (
            reply(400, body="<title>400 The plain HTTP request was sent to HTTPS port</title>"),
            'a page "400 The plain HTTP request was sent to HTTPS port" came back',
        ),
        (raw(b"\x15\x03\x01\0\x02\x02\x16"), f"the answer is not HTTP | {SCHEME}"),
        (close(), f"closed the connection without an answer | {SCHEME}"),
    ],
    ids=["a_page_of_nginx", "an_alert", "nothing"],
)
async def test_each_answer_of_a_tls_port_to_plain_http_names_the_scheme(
    receiver_port: int, play: Play, text: str
) -> None:
    """A page, an alert, or a closed connection."""
    async with ScriptedServer(then=play) as server:
        found = failure(await examined(server.url, receiver_port))
    assert text in found
    assert "https" in found.partition(" | ")[2]


# ─── a program that runs already ─────────────────────────────────────────────────────────────────


async def test_a_running_receiver_whose_journal_is_not_known(receiver_port: int) -> None:
    """Its 404 to an unknown token is only a warning: it proves nothing."""
    receiver = CallbackReceiver(None, port=receiver_port)
    async with (
        ScriptedServer() as service,
        MidAPIClient("key", base_url=service.url, receiver=receiver, journal=MemoryJournal()),
        Proxy(receiver_port) as proxy,
    ):
        port, _, callback = await examined(proxy.url(), receiver_port)
    assert (port.name, port.verdict) == ("port", "warning")
    assert "Address already in use" in port.text
    assert "leave out --port" in port.hint
    assert callback.verdict == "warning"
    assert "as a receiver answers to an unknown token" in callback.text
    assert "set MIDAPI_JOURNAL" in callback.hint


async def test_a_running_program_that_is_not_a_receiver() -> None:
    """Neither its page nor its silence is taken for a receiver."""
    async with ScriptedServer(then=reply(404, body=PAGE)) as server:
        found = await examined(None, server.port)
    assert found[0].verdict == "warning"
    assert "came back, and not from the receiver" in failure(found)
    async with ScriptedServer(then=close()) as server:
        assert "closed the connection" in failure(await examined(None, server.port))


async def test_a_receiver_without_an_open_client() -> None:
    """It answers 503."""
    async with ScriptedServer(then=interim(reply(503), 103)) as server:
        assert "or that has no open client" in failure(await examined(None, server.port))


async def test_a_mounted_receiver_is_judged_by_its_answer() -> None:
    """Without a port the doctor does not listen, and without a journal it has no token."""
    async with ScriptedServer([reply(404), delay(reply(404), 7), reply(200)]) as server:
        [_, one] = await examined(server.url, None)
        assert "--port" in one.hint
        assert "came back after 7.0 s" in (await examined(server.url, None))[-1].text
        assert "another program answered" in failure(await examined(server.url, None))


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    """The finding names it."""
    settings = CallbackSettings(
        public_url="http://127.0.0.1:1/", host="203.0.113.1", port=0, keys=()
    )
    port, _, callback = await _checks.callbacks(settings, URL("http://127.0.0.1:2"))
    assert (port.name, port.verdict, callback.verdict) == ("port", "warning", "failed")
    assert "callbacks cannot be received on 203.0.113.1:0: " in port.text
    assert "None" not in port.text


# ─── the probe and the journal of a running application ──────────────────────────────────────────


@asynccontextmanager
async def running(folder: Path, port: int = 0, **options: Any) -> AsyncIterator[MidAPIClient]:
    """An application with its journal in a folder."""
    receiver = CallbackReceiver(None, port=port, **options)
    async with (
        ScriptedServer() as service,
        MidAPIClient("key", base_url=service.url, receiver=receiver, journal=folder) as client,
    ):
        yield client


async def notes_in(folder: Path) -> dict[str, str]:
    """The notes about probes that are left in a journal."""
    journal = SQLiteJournal(folder)
    try:
        return dict(await journal.notes(*PROBES))
    finally:
        await journal.aclose()


async def test_a_running_application_takes_the_probe(receiver_port: int, tmp_path: Path) -> None:
    """Through a proxy, with and without the port, however many unknown tokens came just before."""
    folder = tmp_path / "journal"
    async with (
        running(folder, receiver_port) as client,
        Proxy(receiver_port) as proxy,
        aiohttp.ClientSession() as session,
    ):
        found: list[Finding] = []
        for port in (receiver_port, None):
            async with session.post(f"{proxy.url()}/mjt_unknown", data=b"{}") as refused:
                assert refused.status == 404
            found = await examined(proxy.url(), port, folder=folder)
            assert not bad(found)
            assert "it has arrived at " in found[-1].text
        assert found[-1].text.startswith("it has arrived at your application, and was answered in")
        assert client.stats().callbacks == 0
    assert await notes_in(folder) == {}


async def test_an_application_with_another_journal(receiver_port: int, tmp_path: Path) -> None:
    """It answers, and does not know the token."""
    async with running(tmp_path / "its"), running(tmp_path / "ours", receiver_port):
        async with Proxy(receiver_port) as proxy:
            found = await examined(proxy.url(), None, folder=tmp_path / "its")
    assert "a receiver answers, and does not know the token of this check" in failure(found)
    assert "Set MIDAPI_JOURNAL here as for your application" in failure(found)
    assert await notes_in(tmp_path / "its") == {}


@pytest.mark.parametrize("what", ["strips_the_body", "compresses", "strips_the_signature"])
async def test_a_running_application_refuses_a_changed_probe(
    receiver_port: int, tmp_path: Path, what: str
) -> None:
    """As it would refuse a callback; the token does not stay."""
    text = {
        "strips_the_signature": "401 Unauthorized came back: a login comes first, or the signat"
    }
    async with (
        running(tmp_path, receiver_port, webhook_key=WEBHOOK_KEY),
        Proxy(receiver_port, change=CHANGES[what][0]) as proxy,
    ):
        found = await examined(proxy.url(), None, key=WEBHOOK_KEY, folder=tmp_path)
    assert text.get(what, CHANGES[what][1]) in failure(found)
    assert await notes_in(tmp_path) == {}


async def test_another_webhook_key_than_the_applications(
    receiver_port: int, tmp_path: Path
) -> None:
    """The hint names the variable; the journal is found all the same."""
    async with running(tmp_path, receiver_port, webhook_key=WEBHOOK_KEY):
        url = f"http://127.0.0.1:{receiver_port}/hook"
        for key in (None, secrets.known("another-key")):
            found = failure(await examined(url, None, key=key, folder=tmp_path))
            assert "or the signature is refused" in found
            assert "(MIDAPI_WEBHOOK_KEY) need the same webhook key" in found


async def test_a_journal_that_breaks_meanwhile(
    receiver_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding is the journal's own error."""

    async def fail(*_: object, **__: object) -> None:
        raise JournalError("the disk is full")

    monkeypatch.setattr(SQLiteJournal, "note", fail)
    found = await examined(f"http://127.0.0.1:{receiver_port}", None, folder=tmp_path)
    assert "the disk is full" in found[-1].text


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
async def test_a_probe_shows_neither_its_token_nor_a_key(receiver_port: int) -> None:
    """Not even if an answer repeats it."""
    token = ""

    def repeat(request: Received) -> Answer:
        nonlocal token
        token = secrets.known(request.path.rpartition("/")[2])
        return reply(404, body=f"<title>no {token} at {request.path.upper()}</title>")

    async with ScriptedServer(then=repeat) as server:
        found = await examined(server.url, receiver_port, key=WEBHOOK_KEY)
    assert 'a page "no TOKEN at /' in failure(found)
    assert token[4:24].upper() not in failure(found)


# ─── the account ─────────────────────────────────────────────────────────────────────────────────


def credits_left(count: float) -> Answer:
    """The answer to a question for the credits."""
    return reply(json={"code": 200, "msg": "", "data": count})


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
    async with ScriptedServer([reply(404, headers=date)], then=credits_left(8.5)) as server:
        client_env(server.url)
        [_, clock, _] = await _checks.account()
    assert clock.verdict == verdict
    assert text in clock.text
    assert (verdict != "ok") is ("MIDAPI_TIME_SCALE" in clock.hint)


@pytest.mark.parametrize("date", ["", "soon", "Mon, 99 Foo 2026 00:00:00 GMT"])
async def test_a_service_without_a_date(client_env: Callable[[str], None], date: str) -> None:
    """There is no finding about the clock."""
    play = reply(404, headers={"Date": date})
    async with ScriptedServer([play], then=credits_left(8.5)) as server:
        client_env(server.url)
        assert [each.name for each in await _checks.account()] == ["service", "API key"]


async def test_the_clock_of_a_faster_sandbox_is_not_compared(
    client_env: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs ahead of ours."""
    play = reply(404, headers={"Date": formatdate(time.time() + 7200, usegmt=True)})
    async with ScriptedServer([play], then=credits_left(8.5)) as server:
        client_env(server.url)
        monkeypatch.setenv("MIDAPI_TIME_SCALE", "60")
        assert [each.name for each in await _checks.account()] == ["service", "API key"]


@pytest.mark.parametrize(
    ("play", "verdict", "text"),
    [
        (credits_left(8.5), "ok", "8.50 credits are left"),
        (credits_left(0), "warning", "no credits are left"),
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
    assert "cannot be reached: nothing listens on 127.0.0.1" in failure(await _checks.account())
    client_env("https://no-such-name.invalid")
    assert "the name no-such-name.invalid does not resolve" in failure(await _checks.account())


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
        "Check its spelling, the current folder, and who may write there.",
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
    assert (found.verdict, "the first use cannot make it" in found.text) == ("failed", True)


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
    assert ran.err.endswith("No problems found, but see the 1 line with !.\n")
    assert not secrets.found_in(ran.out + ran.err)
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", str(receiver_port))
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", f"http://127.0.0.1:{receiver_port}/hook")
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    ran = midapi("doctor", "--json")
    assert ran.json["ok"]
    assert ran.json["checks"][-1]["name"] == "callback"
    assert "journal does not exist" in str(ran.json)


@pytest.mark.real_time
@pytest.mark.midapi_sandbox(time_scale=60)
def test_the_last_line_leads_to_the_lines_that_matter(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    receiver_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing has to be repaired, but somebody must decide about a submission."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    assert midapi("generate", "a fox", "--no-wait").code == 0
    callbacks = ("--port", receiver_port, "--webhook-key", WEBHOOK_KEY)
    ran = midapi("doctor", *callbacks)
    assert (ran.code, ran.err) == (0, "No problems found.\n")
    midapi_sandbox.faults.on("submit", do=lose_answer())
    assert midapi("generate", "a hare").code == 1
    ran = midapi("doctor")
    assert [line[:22] for line in ran.lines if line.startswith("!")] == [
        "! unknown submissions:",
        "! callbacks: off: MIDA",
    ]
    assert (ran.code, ran.err) == (0, "No problems found, but see the 2 lines with !.\n")


@pytest.mark.real_time
@pytest.mark.midapi_sandbox(api_key=secrets.API_KEY, time_scale=1)
@pytest.mark.parametrize("key", ["right", "wrong"])
def test_what_cannot_be_checked_is_not_called_free_of_problems(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    receiver_port: int,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
) -> None:
    """A program receives, and its journal is not known here; also beside another problem."""
    if key == "wrong":
        monkeypatch.setenv("MIDAPI_API_KEY", secrets.known("a-key-that-is-wrong"))
    receiver = CallbackReceiver(None, port=receiver_port)

    async def serve() -> Ran:
        async with MidAPIClient("key", receiver=receiver, journal=MemoryJournal()):
            url = f"http://127.0.0.1:{receiver_port}/hook"
            options = ("--public-url", url, "--journal", "nowhere")
            return await asyncio.to_thread(midapi, "doctor", *options)

    ran = asyncio.run(serve())
    assert "! callback: 404 Not Found came back" in ran.out
    problems = "" if key == "right" else "1 problem must be fixed. "
    assert ran.err == f"{problems}Not everything could be checked.\n"
    assert ran.code == (key == "wrong")


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


@pytest.mark.real_time
@pytest.mark.midapi_sandbox(api_key=secrets.API_KEY, time_scale=1)
def test_one_wrong_setting_hides_no_other(
    midapi: Midapi, midapi_sandbox: SandboxThread, tmp_path: Path, receiver_port: int
) -> None:
    """A journal that cannot be used, and a base URL that is none; callbacks need the latter."""
    (tmp_path / "file").touch()
    way = ("--public-url", f"http://127.0.0.1:{receiver_port}/hook", "--json")
    ran = midapi("doctor", "--journal", tmp_path / "file", *way)
    assert [(each["name"], each["verdict"]) for each in ran.json["checks"][-3:]] == [
        ("journal", "failed"),
        ("address", "ok"),
        ("callback", "failed"),
    ]
    ran = midapi("doctor", "--base-url", "pictures.example", *way)
    assert [(each["name"], each["verdict"]) for each in ran.json["checks"]] == [
        ("base_url", "failed"),
        ("journal", "warning"),
        ("callbacks", "warning"),
    ]


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
