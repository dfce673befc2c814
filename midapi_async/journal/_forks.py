"""Forks of a process that has a journal open.

A forked child must not use its parent's connection, nor close it, nor open the same database beside
it: SQLite would believe that the child holds the parent's locks
(https://sqlite.org/howtocorrupt.html, 2.6). So it leaves the connection alone, for ever, and
journals in the same folder are refused in it. And no fork happens while a thread is inside SQLite:
a mutex that it holds there would stay locked in the child, and every other database would hang.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

inherited: set[tuple[int, int] | None] = set()


class Forkable(Protocol):
    """What has something open that a child must not have."""

    def abandon(self) -> tuple[int, int] | None:
        """In the child: let the parent keep what is the parent's; return the folder's identity."""
        ...


opened: set[Forkable] = set()


class _Turnstile:
    """Lets in any number of threads, or one fork."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._inside = 0
        self._forks = 0

    def enter(self) -> None:
        with self._free:
            while self._forks:
                self._free.wait()
            self._inside += 1

    def leave(self) -> None:
        with self._free:
            self._inside -= 1
            self._free.notify_all()

    def close(self) -> None:
        with self._free:
            self._forks += 1
            while self._inside:
                self._free.wait()

    def open(self) -> None:
        with self._free:
            self._forks -= 1
            self._free.notify_all()


_turnstile = _Turnstile()


@contextmanager
def none() -> Iterator[None]:
    """For this block, which must not be entered twice, nobody forks: who wants to, waits."""
    _turnstile.enter()
    try:
        yield
    finally:
        _turnstile.leave()


@cache
def watch() -> None:
    """See to forks from now on."""
    os.register_at_fork(
        before=_turnstile.close, after_in_parent=_turnstile.open, after_in_child=_begin_anew
    )


def _begin_anew() -> None:
    _turnstile.__init__()  # type: ignore[misc]  # whoever else waited there is not in this process
    for each in opened:
        inherited.add(each.abandon())
    opened.clear()
