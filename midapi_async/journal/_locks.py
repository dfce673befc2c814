"""Locks on files: who may write now, and which owners are alive.

These are `flock` locks. A POSIX record lock (`lockf`) belongs to a process: two journals in one
process would not keep each other out, and closing any descriptor of the file would drop it. A
`flock` lock belongs to what `open` made, and ends with its last descriptor, also when a process
crashes. A forked child holds such a descriptor too; it has to close it at once (see `_forks`), or
its dead parent would seem to live.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import JournalError

try:
    import fcntl
except ImportError as error:  # pragma: no cover - Windows
    raise JournalError(
        "a journal folder needs the file locks of Linux or macOS: leave journal= out to keep the "
        "journal in memory, or run under WSL"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0  # seconds that we wait for somebody else's lock
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0001, 0.003  # seconds between two attempts
_OWNER = re.compile(r"[0-9a-f]{32}")


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a file that nobody else can read; no child program inherits it."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock what a descriptor stands for; whether that was possible at once."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Lock:
    """The exclusive lock on one file. Whoever holds it may write; nobody else does meanwhile.

    Args:
        path: the file; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = open_private(path, os.O_RDWR | os.O_CREAT)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it for a block.

        Raises:
            JournalError: somebody else held it all the time.
        """
        self._acquire()
        try:
            yield
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def _acquire(self) -> None:
        """Try again and again: a blocking `flock` could be neither bounded nor given up."""
        deadline, pause = time.monotonic() + PATIENCE, _FIRST_PAUSE
        while not try_lock(self.descriptor):
            if time.monotonic() > deadline:
                raise JournalError(
                    f"{self.path} has been locked for more than {PATIENCE:g} s by "
                    f"{self._holder()}: see what it is doing, end it if it hangs, then try again"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _holder(self) -> str:
        """Who holds it, as far as the system tells."""
        with suppress(OSError, ValueError):
            inode = os.fstat(self.descriptor).st_ino
            for line in Path("/proc/locks").read_text("ascii").splitlines():
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                    return f"process {int(fields[4])}"
        return "another process"

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)


class Owners:
    """Who rows belong to: an owner lives as long as the lock on the file with its name is held.

    A name is never used twice, so a file that is gone is an owner that is dead. Files are made,
    tried and removed under the journal's lock, so that none is seen between its making and locking.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.descriptor: int | None = None
        self._mine: str | None = None

    def mine(self) -> str:
        """Our own name; the first call makes us an owner."""
        if self._mine is None:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            name = secrets.token_hex(16)
            self.descriptor = open_private(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try_lock(self.descriptor)
            self._mine = name
        return self._mine

    def is_mine(self, name: str) -> bool:
        """Whether it is our own name."""
        return name == self._mine

    def is_alive(self, name: str) -> bool:
        """Whether an owner's lock is held."""
        if self.is_mine(name):
            return True
        try:
            descriptor = open_private(self.folder / name, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(descriptor, shared=True)
        finally:
            os.close(descriptor)

    def names(self) -> list[str]:
        """The owners that have a file."""
        with suppress(FileNotFoundError):
            return sorted(
                each.name for each in self.folder.iterdir() if _OWNER.fullmatch(each.name)
            )
        return []

    def sweep(self) -> None:
        """Remove the files of the dead."""
        for name in self.names():
            if not self.is_alive(name):
                (self.folder / name).unlink(missing_ok=True)

    def leave(self) -> None:
        """Be no owner any more: what is still ours is a dead owner's from now on."""
        name, self._mine = self._mine, None
        descriptor, self.descriptor = self.descriptor, None
        if name is not None and descriptor is not None:
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
            os.close(descriptor)
