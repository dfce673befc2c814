import asyncio
import io
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from midapi_async.cli._progress import Progress
from midapi_async.cli._terminal import one_line, out, out_json, say, seconds, shown
from midapi_async.events import Accepted, CalledBack, Event, Looked, Queued, Retrying, Sent
from midapi_async.sandbox import SandboxThread
from tests.cli.conftest import REPOSITORY

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240)]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("ein Füchslein, 狐", "ein Füchslein, 狐"),
        ("[/bold]", "[/bold]"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("half \udc80", "half \\udc80"),
        ("\x9b0m\x00\x7f", "\\x9b0m\\x00\\x7f"),
    ],
)
@pytest.mark.fault("D12")
def test_unprintable_characters_are_escaped(text: str, safe: str) -> None:
    """Nothing else is changed."""
    assert shown(text) == safe


def test_one_line_joins_wrapped_text() -> None:
    """Line breaks become blanks; control characters are escaped."""
    assert one_line("a\n  b \x1b") == "a b \\x1b"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0.04, "0.0 s"),
        (3.21, "3.2 s"),
        (58.4, "58 s"),
        (60, "60 s"),
        (180, "3 min"),
        (250, "4 min 10 s"),
        (7199, "119 min 59 s"),
        (7200, "2 h"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_for_people(count: float, text: str) -> None:
    """Tenths below ten seconds, minutes from about a hundred, then hours."""
    assert seconds(count) == text


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    """No control character reaches a terminal, and a program still gets each one."""
    out_json({"prompt": "\x1b\u202e狐"})
    written = capsys.readouterr().out
    assert written.isascii()
    assert written.removesuffix("\n").isprintable()
    assert json.loads(written) == {"prompt": "\x1b\u202e狐"}


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stdout, no stderr, or a broken stderr."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    out("x")
    say("x")

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    say("x")


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


async def show(progress: Progress, *steps: Event | float) -> None:
    """Show the progress while these events come, and these seconds pass."""
    async with progress:
        for step in steps:
            if isinstance(step, Event):
                progress.take(step)
            else:
                await asyncio.sleep(step)


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Stderr, as a terminal that can move its cursor."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return terminal


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the elapsed and the usual time; it goes on after that, and is removed at the end."""
    terminal = a_terminal(monkeypatch)
    progress = Progress("Task 0f3a", scale=60)
    progress.expected = 15
    asyncio.run(show(progress, 1.0))
    written = terminal.getvalue()
    times = [float(each) for each in re.findall(r"([0-9.]+) s, usually about 15 s", written)]
    assert times == sorted(times)
    assert times[0] < 15 < times[-1]
    assert written.endswith("\x1b[2K")


EVENTS: dict[str, tuple[Event, str]] = {
    "queued": (Queued(place=3), "waits for a slot of the rate limit, behind 3 others"),
    "next": (Queued(place=0), "waits for a slot of the rate limit: "),
    "sent": (Sent(), "being sent: "),
    "retrying": (
        Retrying(reason="connection\x1b[2J refused", delay=2.0, left=40.0),
        r"waits to be sent again: 0.0 s; last problem: connection\x1b[2J refused",
    ),
    "accepted": (Accepted(task_id="0f3a"), "generating: "),
    "look": (Looked(problem="HTTP 502"), "; last problem: HTTP 502"),
    "called back": (CalledBack(), "was called back"),
}


@pytest.mark.parametrize("name", EVENTS)
def test_a_terminal_shows_what_is_done(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As the last event says, with control characters escaped."""
    event, text = EVENTS[name]
    terminal = a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    asyncio.run(show(Progress(), event, 0.15))
    assert text in terminal.getvalue()


def test_lines_on_stderr_appear_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning of the log is a line of its own, not a part of the bar."""

    async def work() -> None:
        async with Progress():
            await asyncio.sleep(0.15)
            say("midapi: WARNING: it is sent again")
            await asyncio.sleep(0.15)

    terminal = a_terminal(monkeypatch)
    asyncio.run(work())
    assert re.search(r"(^|\x1b\[2K|\n)midapi: WARNING: it is sent again *\n", terminal.getvalue())


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As a file does."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", name)
    asyncio.run(show(Progress("Task 0f3a", scale=100), 0.25))
    assert terminal.getvalue().splitlines() == [
        "Task 0f3a is generating: 10 s.",
        "Task 0f3a is generating: 20 s.",
    ]


def test_a_broken_terminal_does_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is paid for."""

    async def breaks(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Progress, "_print_lines", breaks)
    asyncio.run(show(Progress(), 0.05))


@pytest.mark.skipif(sys.platform == "win32", reason="has no pty")
def test_a_real_terminal_gets_the_bar_on_stderr(
    midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """Stdout holds only the paths."""
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "midapi_async", "generate", "a fox"],
        stdout=subprocess.PIPE,
        stderr=slave,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "100"},
        text=True,
    )
    os.close(slave)
    written = b""
    with process:
        with suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(master, 65536):
                written += chunk
        os.close(master)
        assert process.stdout is not None
        paths = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert len(paths) == 4
    assert "usually about 60 s" in written.decode()
    assert "\x1b[?25h" in written.decode()  # the cursor is back
