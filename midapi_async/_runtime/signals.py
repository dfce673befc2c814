"""SIGTERM and SIGINT: something to do first, then what would have been done without us."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def before_signals(callback: Callable[[], object]) -> Iterator[None]:
    """Call a function in the running event loop at SIGTERM and SIGINT, then the previous handler.

    Where there is no previous handler, the signal would kill the process at once. Instead it
    cancels the current task, as Ctrl-C does in ``asyncio.run``, and the block ends with
    ``SystemExit(128 + signal)``; a second signal kills. Without effect outside the main thread,
    which alone gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    # Plain handlers: Windows has no `loop.add_signal_handler`. A handler that was added that way
    # still runs, since the loop gets each signal by itself.
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    deadly: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(callback)
        previous = before[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)
        elif previous is signal.SIG_DFL:
            deadly.append(number)
            signal.signal(number, signal.SIG_DFL)
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

    for each, previous in before.items():
        if previous is not None:  # else a handler that is not Python's, which we could not restore
            signal.signal(each, handle)
    try:
        yield
    finally:
        for each, previous in before.items():
            if previous is not None:
                signal.signal(each, previous)
        if deadly:
            raise SystemExit(128 + deadly[0])
