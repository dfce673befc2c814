"""The progress of a batch on stderr: a bar on a terminal, else a line from time to time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from midapi_async import Batch, BatchProgress, events

from ._errors import in_commands
from ._progress import stderr_console
from ._terminal import one_line, say, seconds
from .credits import amount

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.text import Text

_FIRST_LINE, _LONGEST_GAP = 10.0, 600.0  # seconds until the first line, and between two later ones
_FRAME = 0.2  # seconds between two pictures of the bars
_CELLS = {"done": "green", "failed": "red", "unknown": "yellow", "running": "cyan"}
_DAY = 86_400.0


class BatchDisplay:
    """Shows the progress of a batch: ``on_event=display.take``, ``async with display.of(batch)``.

    Args:
        total: how many rows there are.
        noun: what they are called, in the plural.
    """

    def __init__(self, total: int, noun: str) -> None:
        self._total = total
        self._noun = noun
        self._in_line: set[str | None] = set()  # intents that wait for a slot
        self._retried: dict[str | None, str] = {}  # intents that wait to be sent again, and why

    def take(self, event: events.Event) -> None:
        """Take an event of the client."""
        match event:
            case events.Queued():
                self._in_line.add(event.intent_id)
            case events.Retrying(reason=reason):
                self._in_line.discard(event.intent_id)
                self._retried[event.intent_id] = reason
            case events.Sent() | events.Accepted() | events.Failed():
                self._in_line.discard(event.intent_id)
                self._retried.pop(event.intent_id, None)

    def lines(self, now: BatchProgress) -> list[str]:
        """The progress in words: the counts, the pace, and what the batch waits for."""
        ended = now.done + now.failed + now.unknown
        counts = [f"{now.done} done", f"{now.failed} failed"]
        counts += [f"{now.unknown} unknown"] if now.unknown else []
        counts += [f"{now.running} running"]
        pace = [speed(now.rate)] if now.rate else []
        # The balance is read after every 20 submissions, so more may have been spent already.
        pace += [f"{amount(now.spent)} credits spent so far"] if now.spent else []
        pace += [left_until(now.expected_end)] if now.expected_end is not None else []
        found = [f"{ended} of {self._total} {self._noun}: {', '.join(counts)}", ", ".join(pace)]
        return [*found, self._waits(now)]

    def _waits(self, now: BatchProgress) -> str:
        """What the batch waits for, in words; empty if only for tasks."""
        if now.stopped is not None:
            return f"submitting nothing more: {one_line(in_commands(now.stopped))}"
        if now.paused is not None:
            return f"pausing, then trying again: {one_line(in_commands(now.paused))}"
        if self._retried:
            reason = one_line(in_commands(next(reversed(self._retried.values()))))
            return f"waiting to be sent again: {len(self._retried)} ({reason})"
        if self._in_line:
            return f"waiting for a slot of the rate limit: {len(self._in_line)}"
        return ""

    @asynccontextmanager
    async def of(self, batch: Batch) -> AsyncIterator[None]:
        """Show the progress of a batch while the block runs."""
        console = stderr_console()
        shown = self._print_lines(batch) if console is None else self._draw(batch, console)
        ticker = asyncio.create_task(shown)
        try:
            yield
        finally:
            ticker.cancel()
            await asyncio.wait({ticker})
            if not ticker.cancelled():
                ticker.exception()  # a lost terminal must not stop a batch that costs money

    async def _print_lines(self, batch: Batch) -> None:
        """Print a line after 10, 20, 40 … seconds, later each 10 minutes."""
        gap = _FIRST_LINE
        while True:
            await asyncio.sleep(gap)
            say("; ".join(filter(None, self.lines(batch.progress))) + ".")
            gap = min(2 * gap, _LONGEST_GAP)

    async def _draw(self, batch: Batch, console: Console) -> None:
        from rich.live import Live

        # Its own thread would outlive Ctrl-C. Lines that are written to stderr appear above it.
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(self.picture(batch.progress, console), refresh=True)
                await asyncio.sleep(_FRAME)

    def picture(self, now: BatchProgress, console: Console) -> Group:
        """The bars, and the state below them, each line cut to the width of the terminal."""
        from rich.console import Group
        from rich.text import Text

        lines = [Text(f" {each}", no_wrap=True) for each in self.lines(now)]
        for line in lines:
            # A terminal shows Ctrl-C as ^C where the last line ends: there must be room for it.
            is_plain = console.options.ascii_only
            line.truncate(console.width - 3, overflow="crop" if is_plain else "ellipsis")
        return Group(self._bar(now, console), *lines)

    def _bar(self, now: BatchProgress, console: Console) -> Text:
        """One bar with a part for each state; a state that has rows has at least one cell."""
        from rich.text import Text

        width = max(console.width - 2, 10)
        bar, drawn, rows = Text(" ", no_wrap=True), 0, 0
        for name, style in _CELLS.items():
            count = getattr(now, name)
            rows += count
            end = min(width, max(drawn + (count > 0), width * rows // max(self._total, 1)))
            bar.append(("#" if console.options.ascii_only else "━") * (end - drawn), style)
            drawn = end
        return bar.append(("-" if console.options.ascii_only else "─") * (width - drawn), "dim")


def speed(rate: float) -> str:
    """How many rows end in a minute, in words."""
    return f"{rate:.0f} a minute" if rate >= 9.95 else f"{rate:.1f} a minute"


def left_until(end: datetime) -> str:
    """How long it still takes until a moment, in words."""
    left = max((end - datetime.now(UTC)).total_seconds(), 0.0)
    at = end.astimezone().strftime("%H:%M" if left < _DAY else "%Y-%m-%d %H:%M")
    return f"about {seconds(left)} left, until {at}"
