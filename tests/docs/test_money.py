"""The walk-through of docs/unknown.md, as a reader types it.

It needs a sandbox that loses answers, in a process of its own as on the page; the sandbox of
`test_blocks.py` answers everything.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docs.blocks import REPOSITORY, Block, blocks, commands
from tests.docs.test_blocks import SECONDS, check_output, new_ids

# slow: on the newest Python only; each command is a process of its own.
pytestmark = [pytest.mark.real_time, pytest.mark.slow]

MIDAPI = (sys.executable, "-m", "midapi_async")
# What is printed only if the machine is slow enough.
PROGRESS = re.compile(r"^(Task \w+ is|Submission) [a-z ,]+: [0-9].*\n", re.MULTILINE)


def _walk() -> list[Block]:
    return [
        each for each in blocks("docs/unknown.md") if each.about.endswith("test_the_walk_through")
    ]


def _free_port() -> int:
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        return int(finder.getsockname()[1])


@contextmanager
def _served(options: list[str], log: Path) -> Iterator[str]:
    """A sandbox in a process of its own, at a free port; its URL."""
    with log.open("w") as output:
        command = [*MIDAPI, "sandbox", *options, "--port", "0"]
        serving = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + SECONDS
        while "Ctrl-C" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield log.read_text().splitlines()[0]
    finally:
        serving.terminate()
        serving.wait(SECONDS)


def test_the_walk_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command prints what the page shows; the ids of one are used by the next ones."""
    for name in [name for name in os.environ if name.startswith("MIDAPI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    first, *others = _walk()
    [(sandbox, shown)] = commands(first)
    ids: dict[str, str] = {}
    log = tmp_path / "sandbox.log"
    with _served(shlex.split(sandbox)[2:], log) as url:
        check_output(shown, log.read_text())
        ports = {"http://127.0.0.1:8787": url, "8080": str(_free_port())}
        for block in others:
            if block.language == "text":  # of the first terminal
                printed = "".join(log.read_text().splitlines(keepends=True)[5:7])
                check_output(block.text, printed)
                ids |= new_ids(block.text, printed)
            for command, expected in commands(block):
                here = command
                for on_the_page, real in (ports | ids).items():
                    here = here.replace(on_the_page, real)
                printed = _run(here, monkeypatch)
                try:
                    check_output(expected, printed)
                except AssertionError as error:
                    raise AssertionError(f"{block}: $ {here}\n{error}") from None
                ids |= new_ids(expected, printed)
    assert log.read_text().count("accepted:") == 5  # nothing but what the page says was bought


def _run(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    name, *words = shlex.split(command)
    if name == "export":
        for variable, _, value in (each.partition("=") for each in words):
            monkeypatch.setenv(variable, value)
        return ""
    ran = subprocess.run(
        [*MIDAPI, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )
    return PROGRESS.sub("", ran.stdout)
