"""Runs the command line in this process, against a sandbox over real sockets."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from midapi_async.cli import main
from midapi_async.sandbox.pytest_plugin import midapi_sandbox, pytest_configure
from tests.support.waiting import SECONDS, wait_until

__all__ = ["midapi_sandbox", "pytest_configure", "wait_until"]

REPOSITORY = Path(__file__).parents[2]
PROXIES = ("_PROXY", "_proxy")  # how the variables end that other programs read


@attrs.frozen
class Ran:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it printed."""
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        assert len(self.lines) == 1, self.out
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        errors = [line for line in self.err.splitlines() if line.startswith("midapi: ")]
        assert len(errors) == 1, self.err
        assert "Traceback" not in self.err
        return errors[0].removeprefix("midapi: ")


Midapi = Callable[..., Ran]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and neither MidAPI nor a proxy in the environment."""
    for name in [
        name for name in os.environ if name.startswith("MIDAPI_") or name.endswith(PROXIES)
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def midapi(capsys: pytest.CaptureFixture[str]) -> Midapi:
    """The command line, called in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        return Ran(code, *capsys.readouterr())

    return run


def spawn(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """The command line as a new process, with this one's environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "midapi_async", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        text=True,
        encoding="utf-8",
    )


def finish(process: "subprocess.Popen[str]") -> Ran:
    """Wait for a process and read what it wrote."""
    with process:
        out, err = process.communicate(timeout=SECONDS)
        return Ran(process.returncode, out, err)


@contextmanager
def ctrl_c_when(happened: Callable[[], object], *, times: int = 1) -> Iterator[None]:
    """Press Ctrl-C in this process as soon as something has happened."""

    def press() -> None:
        wait_until(happened)
        for _ in range(times):
            time.sleep(0.2)  # the first one must be handled before the second arrives
            os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        yield
    finally:
        presser.join()


def only(found: Sequence[Any]) -> Any:
    """The only item."""
    assert len(found) == 1, found
    return found[0]
