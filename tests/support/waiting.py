"""Waiting for other threads and processes, and free ports for them."""

import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress

# Only a failing test waits so long; a busy machine may start a process in ten seconds.
SECONDS = 60.0


def wait_until(happened: Callable[[], object]) -> None:
    """Wait until something has happened in another thread or process."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def free_port() -> int:
    """A port of loopback that is not in use now.

    It is none that the system gives away by itself: a server of the same test that asks for any
    port could get it before it is used.
    """
    while True:
        port = secrets.randbelow(12_000) + 20_000
        with socket.socket() as finder, suppress(OSError):
            finder.bind(("127.0.0.1", port))
            return port
