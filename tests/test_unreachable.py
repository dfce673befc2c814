"""A MidAPI that cannot be reached: every call says why, in the same words."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from midapi_async import (
    DownloadError,
    MidAPIClient,
    MidAPIError,
    RetryPolicy,
    TaskDetails,
    TaskStatus,
    TransportError,
    WaitTimeout,
)
from midapi_async.sandbox import Sandbox
from tests.cli.proxies import CERTIFICATES, Proxy
from tests.support import secrets
from tests.support.http_proxy import HTTPProxy
from tests.support.leaks import LoopWatch
from tests.support.scripted import ScriptedServer, hang, reply
from tests.world import TASK, accepted, client_of, looked, looks, mid, ok, submits

PASSWORD = secrets.known("the-password-of-the-proxy")
Call = Callable[[MidAPIClient, str, Path], Awaitable[object]]


def details_at(url: str) -> TaskDetails:
    """Details whose one file is at a URL."""
    return TaskDetails(task_id=TASK, status=TaskStatus.SUCCEEDED, urls=(f"{url}/fox.png",))


# Each call that connects; the URL is that of the service.
CALLS: dict[str, Call] = {
    "generate": lambda client, _url, _folder: client.generate("a red fox", key="order-17"),
    "look": lambda client, _url, _folder: client.details(TASK),
    "credits": lambda client, _url, _folder: client.credits(),
    "download_url": lambda client, url, _folder: client.download_url(f"{url}/fox.png"),
    "download": lambda client, url, folder: client.download(details_at(url), folder),
}
EACH_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def closed_port() -> int:
    """A port of loopback at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def error_of(call: Call, url: str, folder: Path, **options: object) -> MidAPIError:
    """The error of a call, which comes within a second and contains no secret."""
    async with client_of(url, **options) as client:
        begun = asyncio.get_running_loop().time()
        with pytest.raises((TransportError, DownloadError)) as caught:
            await call(client, url, folder)
        assert asyncio.get_running_loop().time() - begun < 1
        assert client.stats().submits <= 1
    secrets.assert_none_in(caught.value, *caught.value.args)
    assert not secrets.found_in(repr(caught.value.__context__))
    return caught.value


# ─── nothing listens ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("S2")
@EACH_CALL
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_a_refused_connection_on_loopback_is_reported_at_once(
    call: Call, host: str, tmp_path: Path
) -> None:
    """Nobody starts a sandbox within the time of the retries."""
    port = closed_port()
    error = await error_of(call, f"http://{host}:{port}", tmp_path)
    assert f"nothing listens on {host}:{port}" in str(error)
    assert "Is the sandbox running ('midapi sandbox')?" in str(error)


@pytest.mark.fault("S2")
@EACH_CALL
async def test_a_proxy_that_does_not_run_is_reported_at_once(call: Call, tmp_path: Path) -> None:
    """On this machine, as above; the text is about the proxy."""
    port = closed_port()
    proxy = f"http://user:{PASSWORD}@127.0.0.1:{port}"
    error = await error_of(call, "https://api.example", tmp_path, proxy=proxy)
    assert f"nothing listens on 127.0.0.1:{port}, where the proxy should be" in str(error)
    assert "MIDAPI_PROXY" in str(error)
    assert "sandbox" not in str(error)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://nowhere.invalid", "the name nowhere.invalid does not resolve"),
        (f"https://0.0.0.0:{closed_port()}", "refuses the connection"),
    ],
    ids=["name", "port"],
)
async def test_each_retry_says_why(url: str, says: str, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for each, with the time that is left; then the same in the error."""
    caplog.set_level(logging.WARNING, "midapi_async")
    async with client_of(url, retry=RetryPolicy(give_up_after=20)) as client:
        with pytest.raises(TransportError) as caught:
            await client.generate("a red fox")
        tries = client.stats().submits
    assert len(caplog.records) == tries - 1 >= 3
    assert all(says in line and "s left" in line for line in caplog.messages)
    assert says in str(caught.value)
    assert "Nothing was bought. Check the network and the base URL." in str(caught.value)


@pytest.mark.parametrize("call", ["look", "credits", "generate", "download"])
async def test_a_server_that_the_virtual_clock_cannot_see_is_named(
    call: str, tmp_path: Path
) -> None:
    """As a `SandboxThread`: every timeout passes at once, and "check the network" would mislead."""
    with socket.create_server(("127.0.0.1", 0)) as outside:
        url = f"http://127.0.0.1:{outside.getsockname()[1]}"
        async with client_of(url) as client:
            with pytest.raises(MidAPIError) as caught:
                await CALLS[call](client, url, tmp_path)
    text = str(caught.value)
    assert ", by a virtual clock that cannot see a server outside of its event loop" in text
    assert "Check the network" not in text
    assert ("the test's own event loop" in text) == (call in {"look", "credits"})


async def test_a_server_in_the_loop_that_hangs_is_no_problem_of_the_clock() -> None:
    """A timeout in such a test is meant, so its text is that of a real one."""
    async with ScriptedServer([hang()]) as server, client_of(server) as client:
        with pytest.raises(TransportError) as caught:
            await client.credits()
    assert "no answer came in time. Check the network" in str(caught.value)


async def test_a_timeout_between_retries_has_the_last_failure_as_its_cause() -> None:
    """So that a short timeout does not hide why nothing was sent."""
    async with client_of("https://nowhere.invalid") as client:
        with pytest.raises(WaitTimeout) as caught:
            await client.generate("a red fox", timeout=5)
    assert "does not resolve" in str(caught.value.__cause__)


# ─── certificates ────────────────────────────────────────────────────────────────────────────────


@EACH_CALL
async def test_each_call_says_how_to_trust_an_authority(
    call: Call, tmp_path: Path, loop_watch: LoopWatch
) -> None:
    """A certificate that is refused names ``ssl=`` and SSL_CERT_FILE, and is not tried again."""
    async with Proxy(certificate="self_signed.pem") as server:
        error = await error_of(call, server.url("", scheme="https"), tmp_path)
    assert "its certificate is refused: self-signed certificate" in str(error)
    assert "ssl=ssl.create_default_context(cafile=…)" in str(error)
    assert "SSL_CERT_FILE" in str(error)
    loop_watch.reports.clear()  # asyncio's own, of the server that was hung up on


async def test_https_for_a_sandbox_is_reported_at_once(tmp_path: Path) -> None:
    """A sandbox uses plain http."""
    async with Sandbox() as sandbox:
        error = await error_of(CALLS["generate"], sandbox.url.replace("http:", "https:"), tmp_path)
    assert "use http:// in the base URL" in str(error)


# ─── proxies ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_variable", [False, True], ids=["argument", "variable"])
async def test_every_request_goes_through_the_proxy(
    is_variable: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Submissions, looks, credits, links and files; with a user name and a password."""
    async with Sandbox(time_scale=60) as sandbox, HTTPProxy(login=f"user:{PASSWORD}") as proxy:
        options: dict[str, object] = {"time_scale": 60}
        if is_variable:
            monkeypatch.setenv("MIDAPI_PROXY", proxy.url)
        else:
            options["proxy"] = proxy.url
        async with client_of(sandbox.url, **options) as client:
            secrets.assert_none_in(client)
            details = await client.generate_and_wait("a red fox")
            await client.credits()
            await client.download_url(details.urls[0])
            assert len(await client.download(details, tmp_path)) == 4
        looked_at = [each for each in proxy.asked if "record-info" in each]
        others = [each for each in proxy.asked if "record-info" not in each]
        assert len(looked_at) == client_looks(sandbox)
        assert others[:3] == [
            f"POST {sandbox.url}/api/v1/mj/generate",
            f"GET {sandbox.url}/api/v1/common/credit",
            f"POST {sandbox.url}/api/v1/common/download-url",
        ]
        assert sorted(others[3:]) == sorted(f"GET {url}" for url in details.urls)


def client_looks(sandbox: Sandbox) -> int:
    """How many looks the sandbox has answered."""
    return sum(call.path.endswith("record-info") for call in sandbox.ledger.requests)


async def test_https_goes_through_a_tunnel() -> None:
    """MidAPI's name is not resolved here, and the proxy sees neither the key nor the prompt."""
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(CERTIFICATES / "good.pem")
        trusted = ssl.create_default_context(cafile=CERTIFICATES / "authority.pem")
        listening = await asyncio.start_server(server._accept, "127.0.0.1", 0, ssl=tls)
        async with listening:
            port = listening.sockets[0].getsockname()[1]
            async with (
                HTTPProxy(login=f"u:{PASSWORD}", routes={"localhost:443": port}) as proxy,
                client_of("https://localhost", proxy=proxy.url, ssl=trusted) as client,
            ):
                assert (await client.generate_and_wait("a red fox")).task_id == TASK
        assert set(proxy.asked) == {"CONNECT localhost:443"}
        assert (len(submits(server)), len(looks(server))) == (1, 1)
        assert "proxy-authorization" not in server.requests[0].headers


@EACH_CALL
@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        ("https://api.example", 407, "user name and a password"),
        ("https://api.example", 403, "HTTP 403"),
        ("http://127.0.0.1:9", 407, "user name and a password"),
    ],
)
async def test_a_proxy_that_refuses_is_named(
    call: Call, url: str, status: int, says: str, tmp_path: Path
) -> None:
    """At once: it would refuse the next request, too. Its password is not shown."""
    async with HTTPProxy(login=f"user:{PASSWORD}", status=status) as proxy:
        error = await error_of(call, url, tmp_path, proxy=proxy.url)
    assert f"the proxy 127.0.0.1:{proxy.port} refuses it" in str(error)
    assert says in str(error)
    assert "proxy=, MIDAPI_PROXY" in str(error)


async def test_a_proxy_that_cannot_connect_now_is_tried_again() -> None:
    """A 503 of a proxy says nothing about the next minute."""
    async with ScriptedServer([reply(503), reply(503)], then=reply(407)) as proxy:
        async with client_of("https://api.example", proxy=proxy.url) as client:
            with pytest.raises(TransportError, match="HTTP 407"):
                await client.generate("a red fox")
            assert client.stats().submits == 3


async def test_http_proxies_of_the_environment_are_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the README says."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    async with ScriptedServer(then=ok(5.0)) as server, client_of(server) as client:
        assert await client.credits() == 5.0
