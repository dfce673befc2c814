"""Ctrl-C and SIGTERM as the usual end of a command that serves."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM set an event of the running loop, and end nothing else."""
    loop = asyncio.get_running_loop()

    def wake(*_: object) -> None:
        loop.call_soon_threadsafe(stop.set)

    # Plain handlers: a loop's own are not there on Windows.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, wake) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
