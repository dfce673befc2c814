"""What a test may leave behind: nothing (I4)."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

# Closing takes a few turns of the loop: the transport's own callback, and the other end's EOF.
_TURNS = 50
# A real loop may have to wait for the kernel or for a thread.
_SECONDS = 2.0


@attrs.define
class LoopWatch:
    """Sees the tasks that a loop still has, and the errors that it could only report.

    A test that provokes such a report on purpose takes it out of `reports`.
    """

    reports: list[str] = attrs.field(factory=list)

    def report(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Keep what the loop reports: this is its exception handler."""
        details = ", ".join(f"{k}={v!r}" for k, v in context.items() if k != "message")
        self.reports.append(f"{context.get('message')} ({details})")

    async def settle(self, *, real_time: bool) -> set[asyncio.Task[Any]]:
        """Let the loop finish closing what was closed, and return the tasks that stay."""
        for _ in range(_TURNS):
            if not _others():
                break
            await asyncio.sleep(0)
        if real_time:
            for _ in range(int(_SECONDS * 100)):
                if not _others():
                    break
                await asyncio.sleep(0.01)
        return _others()


def open_files() -> dict[str, str]:
    """Return the open descriptors of this process, by number, and what each one is.

    Sockets and pipes have a number of their own, so that one that was closed and another that was
    opened in its place are two. Known on Linux only; elsewhere it is empty.
    """
    if sys.platform != "linux":
        return {}
    files = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            files[entry.name] = str(entry.readlink())
        except FileNotFoundError:
            continue  # the one that listed them
    return files


def _others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}
