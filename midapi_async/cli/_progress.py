"""Progress on stderr, drawn from the client's events: a bar on a terminal, else some lines."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from midapi_async import SubmissionUnknown, events

from ._terminal import one_line, say, seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from midapi_async import Progress as Transferred

_FIRST_LINE = 10.0  # service seconds until the first line about progress
_FRAME = 0.1  # seconds between two pictures of the bar


class Progress:
    """What one submission or task is doing; pass `take` as ``on_event``, then use ``async with``.

    All times are shown in service seconds, those of files that are transferred in real ones.

    Args:
        name: what is waited for, until an event names the task.
        scale: service seconds in one real second; 1 except for a sandbox.

    Attributes:
        expected: service seconds that such a task usually takes; None if not known.
    """

    def __init__(self, name: str = "Submission", *, scale: float = 1.0) -> None:
        self.expected: float | None = None
        self._name = name
        self._scale = scale
        self._doing = "is generating" if name != "Submission" else "is prepared"
        self._problem = ""
        self._is_transfer = False
        self._since = 0.0  # loop seconds: when it began what it is doing
        self._ticker: asyncio.Task[None] | None = None

    def take(self, event: events.Event) -> None:
        """Take an event of the client."""
        match event:
            case events.Queued(place=place):
                others = f", behind {place} others" if place else ""
                self._now(f"waits for a slot of the rate limit{others}")
            case events.Sent():
                self._now("is being sent")
            case events.Retrying(reason=reason):
                self._now("waits to be sent again", reason)
            case events.Accepted(task_id=task_id):
                self._name = f"Task {task_id}"
                self._now("is generating")
            case events.Looked(problem=problem):
                self._problem = problem or ""
            case events.Failed(error=SubmissionUnknown(can_settle=True)):
                self._now("waits for its callback, as its answer was lost")
            case events.CalledBack():
                self._now("was called back")

    def describe(self, doing: str) -> None:
        """Show this as what is being done, until an event shows something else."""
        self._doing = doing

    def transfers(self, doing: str, count: int) -> Callable[[Transferred], None]:
        """Show this as what is being done, and how much of these files was transferred.

        Args:
            doing: what is being done with the files.
            count: how many files.

        Returns:
            What takes the progress of each file, as ``on_progress``.
        """
        self._now(doing)
        self._is_transfer = True
        files: dict[tuple[str, int], Transferred] = {}

        def take(file: Transferred) -> None:
            files[file.name, file.index] = file
            done, totals = sum(each.done for each in files.values()), list[int]()
            totals += [each.total for each in files.values() if each.total is not None]
            # Files that have not begun have no size yet.
            is_known = len(totals) == count and sum(totals) > 0
            part = f", {done * 100 // sum(totals)} %" if is_known else ""
            self._doing = f"{doing} ({done / 1e6:.1f} MB{part})"

        return take

    def _now(self, doing: str, problem: str = "") -> None:
        self._doing, self._problem, self._is_transfer = doing, problem, False
        if doing != "was called back":
            self._since = asyncio.get_running_loop().time()

    def _elapsed(self) -> float:
        scale = 1.0 if self._is_transfer else self._scale
        return (asyncio.get_running_loop().time() - self._since) * scale

    @property
    def _usual(self) -> float | None:
        """Service seconds that what is being done usually takes; None if that is not known."""
        is_task = self._name != "Submission" and not self._is_transfer
        return self.expected if is_task else None

    def _state(self, elapsed: float) -> str:
        """What it is doing, for how long, and how long is usual."""
        usual = f", usually about {seconds(self._usual)}" if self._usual else ""
        problem = f"; last problem: {one_line(self._problem)}" if self._problem else ""
        return f"{self._doing}: {seconds(elapsed)}{usual}{problem}"

    async def __aenter__(self) -> Self:
        console = stderr_console()
        self._since = asyncio.get_running_loop().time()
        self._ticker = asyncio.create_task(
            self._print_lines() if console is None else self._draw_bar(console)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        ticker = self._ticker
        if ticker is not None:
            ticker.cancel()
            await asyncio.wait({ticker})
            if not ticker.cancelled():
                ticker.exception()  # a terminal that went away must not end what is paid for

    async def _print_lines(self) -> None:
        """Print a line after 10, 20, 40 … seconds of doing the same."""
        since, due = self._since, _FIRST_LINE
        while True:
            await asyncio.sleep(min(_FRAME, 1.0 / self._scale))
            if self._since != since:
                since, due = self._since, _FIRST_LINE
            if self._elapsed() >= due:
                say(f"{self._name} {self._state(due)}.")
                due *= 2

    async def _draw_bar(self, console: Console) -> None:
        with _bar(console) as bar:
            row = bar.add_task("", total=None, state="")
            while True:
                elapsed, usual = self._elapsed(), self._usual
                total = usual if usual is not None and elapsed < usual else None
                # Without the long name, which was printed before: it has to fit into one line.
                state = self._state(elapsed).removeprefix("is ")
                bar.update(row, completed=elapsed, total=total, state=state)
                bar.refresh()
                await asyncio.sleep(_FRAME)


def stderr_console() -> Console | None:
    """A rich console, if stderr is a terminal that can move its cursor."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return None if console.is_dumb_terminal else console


def _bar(console: Console) -> RichProgress:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    # Lines that are written to stderr meanwhile appear above the bar.
    return Progress(
        SpinnerColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}", markup=False),
        console=console,
        auto_refresh=False,  # its thread would outlive Ctrl-C
        transient=True,
    )
