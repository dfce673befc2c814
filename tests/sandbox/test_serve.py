"""Serving from a command line: a process that prints its URL and ends when it is told to."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midapi_async.sandbox import Sandbox, run, serve
from tests.sandbox.test_thread import call
from tests.sandbox.world import CREDIT

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.real_time
SCRIPT = "import sys; from midapi_async.sandbox import run; sys.exit(run(port=int(sys.argv[1])))"


@contextmanager
def served(port: int = 0) -> Iterator["subprocess.Popen[str]"]:
    """Give a process that serves."""
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT, str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_url_and_ends_with_0(number: signal.Signals) -> None:
    """The URL is the first line, at once; a signal ends it cleanly, with nothing on stderr."""
    with served() as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        assert call(url + CREDIT)["code"] == 200
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")


async def test_serve_in_a_loop() -> None:
    """It announces the URL, ends with a signal, and gives the handlers back."""
    before = signal.getsignal(signal.SIGTERM)
    urls: list[str] = []

    def announce(url: str) -> None:
        urls.append(url)
        os.kill(os.getpid(), signal.SIGTERM)

    await asyncio.wait_for(serve(port=0, announce=announce), 30)
    assert len(urls) == 1
    assert before == signal.getsignal(signal.SIGTERM)


async def test_a_port_that_is_taken(sandbox: Sandbox) -> None:
    """The OSError comes through, and the handlers are given back."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="the port is taken"):
        await serve(port=int(sandbox.url.rpartition(":")[2]))
    assert before == signal.getsignal(signal.SIGINT)


def test_run_prints_and_gives_0(capsys: pytest.CaptureFixture[str]) -> None:
    """In this process: the URL on a line of its own, then 0."""

    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        assert run(port=0) == 0
    finally:
        signal.signal(signal.SIGALRM, before)
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
