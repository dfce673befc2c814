"""Waiting for other threads and processes, and free ports for them."""

import socket
import time
from collections.abc import Callable

# Only a failing test waits so long; a busy machine may start a process in ten seconds.
SECONDS = 60.0


def wait_until(happened: Callable[[], object]) -> None:
    """Wait until something has happened in another thread or process."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def free_port() -> int:
    """A port of loopback that is not in use now."""
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        return int(finder.getsockname()[1])
