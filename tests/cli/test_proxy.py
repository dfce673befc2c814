"""Commands behind an HTTP proxy, by ``--proxy`` or MIDAPI_PROXY."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from yarl import URL

from midapi_async.cli import _checks
from midapi_async.cli._checks import Finding
from midapi_async.sandbox import SandboxThread, lose_answer
from tests.cli.conftest import Midapi
from tests.cli.proxies import CERTIFICATES, Proxy
from tests.support import secrets
from tests.support.http_proxy import HTTPProxy
from tests.support.leaks import LoopWatch
from tests.support.scripted import ScriptedServer, reply

PASSWORD = secrets.known("the-password-of-the-proxy")
LOGIN = f"user:{PASSWORD}"


@contextmanager
def in_a_thread(proxy: HTTPProxy) -> Iterator[HTTPProxy]:
    """The proxy in a loop of its own, since a command blocks this thread."""
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.SelectorEventLoop()

    async def serve() -> None:
        async with proxy:
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture
def proxy() -> Iterator[HTTPProxy]:
    """A proxy that wants a user name and a password."""
    with in_a_thread(HTTPProxy(login=LOGIN)) as serving:
        yield serving


def operations(proxy: HTTPProxy) -> list[str]:
    """What it has passed on: the last part of each path, in order."""
    return [each.rpartition("/")[2].partition("?")[0] for each in proxy.asked]


def test_each_command_connects_through_the_proxy(
    midapi: Midapi, midapi_sandbox: SandboxThread, proxy: HTTPProxy, tmp_path: Path
) -> None:
    """Submissions, looks, files and credits; its password is in no output."""
    way = ("--proxy", proxy.url)
    made = midapi("generate", "a red fox", "--json", *way)
    task_id = made.json["task_id"]
    asked = operations(proxy)
    assert asked[0] == "generate"
    assert "record-info" in asked
    assert [each for each in asked if each.endswith(".jpeg")]
    for command in (
        ("task", task_id),
        ("credits",),
        ("demo", "--yes", "--folder", tmp_path / "demo"),
    ):
        before = len(proxy.asked)
        ran = midapi(*command, *way)
        assert ran.code == 0
        assert len(proxy.asked) > before
        assert not secrets.found_in(ran.out + ran.err)
    assert not secrets.found_in(made.out + made.err)
    assert midapi_sandbox.ledger.accepted[0].body["prompt"] == "a red fox"


def test_the_journal_acts_through_the_proxy(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    proxy: HTTPProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``resubmit`` and ``adopt`` connect; ``settle`` may."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    midapi_sandbox.faults.on("submit", nth={1, 3}, do=lose_answer())
    for action in ("resubmit", "adopt"):
        intent_id = midapi("generate", "a red fox", "--json").json["error"]["intent_id"]
        before = len(proxy.asked)
        task_id = midapi_sandbox.ledger.accepted[-1].task_id
        arguments = (task_id,) if action == "adopt" else ()
        assert midapi("journal", action, intent_id, *arguments, "--proxy", proxy.url).code == 0
        assert len(proxy.asked) == before + 1


def test_the_demo_of_the_sandbox_needs_no_proxy(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No proxy leads to this machine."""
    monkeypatch.setenv("MIDAPI_PROXY", "http://127.0.0.1:9")
    assert midapi("demo").code == 0


@pytest.mark.parametrize(
    "command", [("generate", "a fox"), ("credits",), ("task", "0f3a"), ("demo", "--yes")]
)
def test_a_proxy_that_refuses_is_named(
    command: tuple[str, ...],
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With what to type, and without the password."""
    with in_a_thread(HTTPProxy(login=LOGIN)) as proxy:
        wrong = f"http://user:{secrets.known('another-password')}@127.0.0.1:{proxy.port}"
        monkeypatch.setenv("MIDAPI_PROXY", wrong)
        ran = midapi(*command)
    assert ran.code == 1
    assert f"the proxy 127.0.0.1:{proxy.port} refuses it (HTTP 407)" in ran.err
    assert "--proxy, MIDAPI_PROXY" in ran.err
    assert not secrets.found_in(ran.out + ran.err)
    assert not midapi_sandbox.ledger.requests


def test_a_wrong_proxy_is_a_usage_error(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Before anything is sent."""
    ran = midapi("credits", "--proxy", "127.0.0.1:3128")
    assert ran.code == 2
    assert "like http://proxy.example:3128" in ran.error
    assert not midapi_sandbox.ledger.requests


# ─── the doctor ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_the_doctor_warns_of_a_proxy_that_is_not_read(
    name: str, midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless MIDAPI_PROXY says what to use."""
    monkeypatch.setenv(name, f"http://{LOGIN}@127.0.0.1:9")
    ran = midapi("doctor")
    assert ran.code == 0
    assert f"! proxy: {name} is set, and is not read" in ran.out
    assert "set MIDAPI_PROXY" in ran.out
    assert not secrets.found_in(ran.out)
    monkeypatch.setenv("MIDAPI_PROXY", "http://127.0.0.1:9")
    assert name not in midapi("doctor").out


def test_the_checks_of_the_doctor_go_through_the_proxy(
    midapi: Midapi, midapi_sandbox: SandboxThread, proxy: HTTPProxy
) -> None:
    """The service, its clock and the key."""
    ran = midapi("doctor", "--proxy", proxy.url)
    assert ran.code == 0
    assert f"✓ proxy: 127.0.0.1:{proxy.port} gets the requests" in ran.out
    assert "✓ service" in ran.out
    assert "✓ API key" in ran.out
    assert operations(proxy) == ["", "credit"]
    assert not secrets.found_in(ran.out)


@asynccontextmanager
async def https_service(certificate: str) -> AsyncIterator[int]:
    """The port of a service that answers with a certificate."""
    async with (
        ScriptedServer(then=reply(404, json={"code": 404})) as server,
        Proxy(server.port, certificate=certificate) as tls,
    ):
        yield tls.port


async def found_by_the_doctor(
    proxy: HTTPProxy, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Finding]:
    """Its findings about an https service behind a proxy, by their names; without a secret."""
    monkeypatch.setenv("MIDAPI_API_KEY", secrets.API_KEY)
    monkeypatch.setenv("MIDAPI_BASE_URL", "https://localhost")
    found = await _checks.account(proxy.url)
    secrets.assert_none_in(*found)
    return {each.name: each for each in found}


async def test_the_doctor_looks_through_a_tunnel(
    monkeypatch: pytest.MonkeyPatch, loop_watch: LoopWatch
) -> None:
    """TLS is checked with the service, not with the proxy."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "authority.pem"))
    async with https_service("good.pem") as port:
        async with HTTPProxy(login=LOGIN, routes={"localhost:443": port}) as proxy:
            found = await found_by_the_doctor(proxy, monkeypatch)
            assert found["service"].verdict == "ok"
            assert set(proxy.asked) == {"CONNECT localhost:443"}
    loop_watch.reports.clear()  # asyncio's own: aiohttp has read SSL_CERT_FILE before this test


@pytest.mark.parametrize(
    ("certificate", "text"),
    [("self_signed.pem", "is refused: self-signed"), ("other_name.pem", "Hostname mismatch")],
)
async def test_the_doctor_names_a_certificate_behind_a_proxy(
    certificate: str, text: str, monkeypatch: pytest.MonkeyPatch, loop_watch: LoopWatch
) -> None:
    """As without one."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "authority.pem"))
    async with https_service(certificate) as port:
        async with HTTPProxy(login=LOGIN, routes={"localhost:443": port}) as proxy:
            found = await found_by_the_doctor(proxy, monkeypatch)
    assert text in found["service"].text
    loop_watch.reports.clear()  # asyncio's own, of the server that was hung up on


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_the_doctor_names_a_proxy_that_refuses(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its answer."""
    async with HTTPProxy(login=LOGIN, status=status) as proxy:
        found = await found_by_the_doctor(proxy, monkeypatch)
    assert f"the proxy 127.0.0.1:{proxy.port}" in found["service"].text
    assert f"HTTP {status}" in found["service"].text
    assert "MIDAPI_PROXY" in found["service"].hint


async def test_the_doctor_names_a_proxy_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at its port."""
    async with HTTPProxy() as proxy:
        pass
    found = await found_by_the_doctor(proxy, monkeypatch)
    gone = f"nothing listens on 127.0.0.1:{proxy.port}, where the proxy should be"
    assert gone in found["service"].text
    assert "MIDAPI_PROXY" in found["service"].hint


async def test_callbacks_are_probed_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the Internet is reached only through it."""
    async with ScriptedServer(then=reply(404)) as receiver:
        async with HTTPProxy(routes={"me.example:80": receiver.port}) as proxy:
            settings = _checks.CallbackSettings(
                public_url="http://me.example/hook", port=None, keys=()
            )
            way, _ = _checks.proxy_settings(proxy.url)
            service = URL("https://pictures.example")
            found = await _checks.callbacks(settings, service, proxy=way)
    assert [each.verdict for each in found] == ["warning", "warning"]
    assert receiver.requests[0].path.startswith("/hook/mjt_")
    assert os.environ.get("MIDAPI_PROXY") is None
