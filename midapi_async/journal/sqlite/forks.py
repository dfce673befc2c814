"""What happens when a process forks while a journal is open.

A forked child must not use its parent's connection, nor close it, nor open the same database:
SQLite would believe that the child holds the parent's locks
(https://sqlite.org/howtocorrupt.html, 2.6). So the child never touches the connection, and cannot
open journals in the same folder. And no fork may happen while a thread is inside SQLite: a mutex
that the thread holds would stay locked in the child, and every other database there would hang.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

# The identities of folders whose journal was open in the parent: they must not be opened here.
inherited: set[tuple[int, int] | None] = set()
# `Store.abandon` of each journal that is open. A child calls them; each returns the identity of its
# folder.
opened: set[Callable[[], tuple[int, int] | None]] = set()

_lock = threading.Lock()


@contextmanager
def no_fork() -> Iterator[None]:
    """Make forks in other threads wait until the end of the block. It must not be nested."""
    with _lock:
        yield


@cache
def watch() -> None:
    """Handle forks from now on."""
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_in_parent,
        after_in_child=_in_child,
    )


def _before_fork() -> None:
    _lock.acquire()


def _in_parent() -> None:
    _lock.release()


def _in_child() -> None:
    global _lock  # noqa: PLW0603 - a new lock: the threads that used the old one are gone here
    _lock = threading.Lock()
    for abandon in opened:
        inherited.add(abandon())
    opened.clear()
