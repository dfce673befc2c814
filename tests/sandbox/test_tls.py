"""Serving https: what a program needs to trust it, and what is left behind."""

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from midapi_async.sandbox import Faults, Sandbox, SandboxThread, lose_answer, reset
from tests.sandbox.world import CREDIT, raw_get

ROOT = Path(__file__).parents[2]
URLLIB = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer k"})
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""
SDK = """
import asyncio, sys
from midapi_async import CallbackReceiver, MidAPIClient

async def main():
    receiver = CallbackReceiver(None, port=0)
    async with MidAPIClient("k", base_url=sys.argv[1], receiver=receiver, time_scale=600) as client:
        details = await client.generate_and_wait("a fox")
        files = await client.download(details, sys.argv[2])
        print(len(files), client.stats().callbacks, details.urls[0].startswith(sys.argv[1]))

asyncio.run(main())
"""


def run(ca_file: Path | None, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run a program that has no other certificates than these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SSL_CERT_", "CURL_"))}
    trusted = {} if ca_file is None else {"SSL_CERT_FILE": str(ca_file)}
    return subprocess.run(
        command,
        env={**kept, **trusted, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.real_time
def test_programs_need_ssl_cert_file_and_no_more(tmp_path: Path) -> None:
    """Python's urllib, curl and the SDK (callbacks and downloads too); without it they refuse."""
    with SandboxThread(tls=True, time_scale=600) as sandbox:
        assert sandbox.url.startswith("https://127.0.0.1:")
        url, ca_file = sandbox.url + CREDIT, sandbox.ca_file
        ran = run(ca_file, sys.executable, "-c", URLLIB, url)
        assert '"data":10000' in ran.stdout, ran.stderr
        ran = run(ca_file, sys.executable, "-W", "error", "-c", SDK, sandbox.url, str(tmp_path))
        assert ran.stdout.split() == ["4", "1", "True"], ran.stderr
        if (curl := shutil.which("curl")) and sys.platform == "linux":  # macOS's has its own store
            ran = run(ca_file, curl, "-sS", "-H", "Authorization: Bearer k", url)
            assert '"data":9992' in ran.stdout, ran.stderr
        ran = run(None, sys.executable, "-c", URLLIB, url)
        assert "CERTIFICATE_VERIFY_FAILED" in ran.stderr


async def answered(sandbox: Sandbox, name: str) -> bytes:
    """Give what a client gets that trusts the file and connects by this name."""
    context = ssl.create_default_context(cafile=str(sandbox.ca_file))
    parts = urlsplit(sandbox.url)
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port, ssl=context, server_hostname=name
    )
    try:
        writer.write(raw_get(CREDIT))
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "127.0.0.2", "sandbox"])
async def test_the_names_in_the_certificate(name: str) -> None:
    """This machine's own, that of `host`, and that under which others see the files."""
    async with Sandbox(tls=True, host="127.0.0.2", files_url="https://sandbox:8787") as sandbox:
        assert b'"data":10000' in await answered(sandbox, name)


async def test_every_address_is_no_name() -> None:
    """0.0.0.0 is listened on, and the URL is one that the certificate is for."""
    async with Sandbox(tls=True, host="0.0.0.0") as sandbox:  # noqa: S104  what is tested
        assert sandbox.url.startswith("https://127.0.0.1:")
        assert b'"data":10000' in await answered(sandbox, "localhost")


async def test_connections_break_as_they_do_without_it() -> None:
    """A reset and a lost answer reach a client over https."""
    faults = Faults().on("credit", nth=1, do=reset()).on("credit", nth=2, do=lose_answer())
    async with Sandbox(tls=True, faults=faults) as sandbox:
        with pytest.raises(ConnectionResetError):
            await answered(sandbox, "localhost")
        assert await answered(sandbox, "localhost") == b""
        assert b'"data":10000' in await answered(sandbox, "localhost")


async def test_nothing_is_left_behind() -> None:
    """The file has a private folder, which goes when the sandbox closes; no key was in it."""
    sandbox = Sandbox(tls=True)
    assert sandbox.ca_file is None
    async with sandbox:
        assert sandbox.ca_file is not None
        folder = sandbox.ca_file.parent
        assert folder.stat().st_mode & 0o077 == 0
        assert list(folder.iterdir()) == [sandbox.ca_file]
        assert "PRIVATE" not in sandbox.ca_file.read_text()
    assert not folder.exists()


async def test_nothing_is_left_behind_by_a_port_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A sandbox that cannot open removes its folder as well."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with Sandbox(tls=True) as sandbox:
        with pytest.raises(OSError, match="the port is taken"):
            await Sandbox(tls=True, port=urlsplit(sandbox.url).port or 0).open()
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


async def test_a_file_of_your_own(tmp_path: Path) -> None:
    """It is written where it was asked for, stays there, and is written anew by the next one."""
    file = tmp_path / "ca.pem"
    for _ in range(2):
        async with Sandbox(tls=file) as sandbox:
            assert sandbox.ca_file == file
            assert b'"data":10000' in await answered(sandbox, "127.0.0.1")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"tls": Path("/nowhere/ca.pem")}, OSError, "cannot write '/nowhere/ca.pem': No such"),
        ({"tls": True, "files_url": "https://a_b"}, ValueError, "no certificate .* a_b"),
    ],
)
async def test_a_certificate_that_cannot_be_made(
    options: dict[str, object], kind: type[Exception], words: str
) -> None:
    """The error names the file or the host."""
    with pytest.raises(kind, match=words):
        await Sandbox(**options).open()  # type: ignore[arg-type]  # as parametrized


async def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install; a sandbox without tls needs nothing."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ImportError, match=r'pip install "midapi-async\[tls\]"'):
        await Sandbox(tls=True).open()
    async with Sandbox():
        pass
