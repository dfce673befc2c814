"""Output: results to stdout, messages and progress to stderr; control characters are escaped."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TextIO

import attrs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from rich.console import Console
    from rich.progress import Progress

_FIRST_LINE = 10.0  # service seconds until the first line about progress
_FRAME = 0.1  # seconds between two pictures of the bar


def shown(text: object) -> str:
    r"""The text with an escape such as ``\x1b`` for each character that does not print."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text)
    )


def one_line(text: object) -> str:
    """The text on one line: white space becomes one blank."""
    return shown(" ".join(str(text).split()))


def out(line: object) -> None:
    """Print one line of the result to stdout."""
    _write(sys.stdout, shown(line))


def out_json(value: Mapping[str, object]) -> None:
    """Print the result as one JSON object in ASCII to stdout."""
    _write(sys.stdout, json.dumps(value))


def say(line: object) -> None:
    """Print one line for people to stderr. A closed stderr must not end what is paid for."""
    with suppress(OSError):
        _write(sys.stderr, shown(line))


def _write(stream: TextIO | None, line: str) -> None:
    if stream is not None:  # None if the parent process closed it
        stream.write(f"{line}\n")
        stream.flush()


def seconds(count: float) -> str:
    """A duration for people, as in ``3.2 s``, ``58 s`` or ``4 min 10 s``."""
    if count < 9.95:
        return f"{count:.1f} s"
    if count < 99.5:
        return f"{count:.0f} s"
    minutes, rest = divmod(round(count), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


@attrs.frozen(kw_only=True)
class Pace:
    """How long a task takes, for the progress; all times are shown in service seconds.

    Attributes:
        expected: service seconds that such a task usually takes; None if not known.
        scale: service seconds in one real second; 1 except for a sandbox.
    """

    expected: float | None = None
    scale: float = 1.0

    def state(self, elapsed: float) -> str:
        """How long the task has taken after this many real seconds, and how long is usual."""
        usual = "" if self.expected is None else f", usually about {seconds(self.expected)}"
        return f"{seconds(elapsed * self.scale)}{usual}"


@asynccontextmanager
async def progress(task_id: str, pace: Pace) -> AsyncGenerator[None, None]:
    """Show progress on stderr inside: a bar on a terminal, else a line at 10, 20, 40 … seconds."""
    console = _console()
    work = _lines(task_id, pace) if console is None else _bar(console, task_id, pace)
    ticker = asyncio.create_task(work)
    try:
        yield
    finally:
        ticker.cancel()
        await asyncio.wait({ticker})
        if not ticker.cancelled():
            ticker.exception()  # retrieved: a terminal that went away must not end the wait


def _console() -> Console | None:
    """A rich console, if stderr is a terminal that can move its cursor."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return None if console.is_dumb_terminal else console


async def _lines(task_id: str, pace: Pace) -> None:
    elapsed, pause = 0.0, _FIRST_LINE / pace.scale
    while True:
        await asyncio.sleep(pause)
        elapsed += pause
        pause = elapsed  # doubles: 10, 20, 40 … seconds
        say(f"Task {task_id} is generating: {pace.state(elapsed)}.")


async def _bar(console: Console, task_id: str, pace: Pace) -> None:
    now = asyncio.get_running_loop().time
    started = now()
    usual = None if pace.expected is None else pace.expected / pace.scale
    with _progress(console) as bar:
        row = bar.add_task(f"Task {task_id}", total=usual, state="")
        while True:
            elapsed = now() - started
            total = usual if usual is not None and elapsed < usual else None
            bar.update(row, completed=elapsed, total=total, state=pace.state(elapsed))
            bar.refresh()
            await asyncio.sleep(_FRAME)


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}", markup=False),
        console=console,
        auto_refresh=False,  # its thread would outlive Ctrl-C
        transient=True,
    )
