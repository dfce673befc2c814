"""Locks on files: which process may write now, and which owners are alive.

These are `flock` locks. A POSIX record lock (`lockf`) belongs to a process: two journals in one
process would not exclude each other, and closing any descriptor of the file would drop the lock. A
`flock` lock belongs to one call of `open`, and ends when the last descriptor of that call is
closed, also by a crash. A forked child inherits the descriptor and must close it at once (see
`forks`), or its parent would seem to be alive after it has died.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import JournalError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


LOCK_TIMEOUT = 10.0  # seconds
_OWNER = re.compile(r"[0-9]+-[0-9a-f]{32}")  # process id and a random name


def check_platform() -> None:
    """Check that there are such locks.

    Raises:
        JournalError: there are none.
    """
    if fcntl is None:
        raise JournalError(
            "a journal folder needs the file locks of Linux or macOS: leave journal= out to keep "
            "the journal in memory, or run under WSL"
        )


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a file that only this user can read; child programs do not inherit it."""
    check_platform()
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def sync(descriptor: int) -> None:
    """Make what was written to a file survive a power failure."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync ends in the disk's cache there
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def file_status(file: str | int | Path) -> os.stat_result | None:
    """What the system says about a path or descriptor; None if there is no such file."""
    try:
        return os.stat(file)  # noqa: PTH116 - for speed; each transaction calls it
    except FileNotFoundError:
        return None


def file_identity(file: str | int) -> tuple[int, int] | None:
    """What a path or descriptor refers to; None if there is no such file."""
    found = file_status(file)
    return (found.st_dev, found.st_ino) if found else None


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock a file without waiting; return whether that was possible."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Lock:
    """The exclusive lock on one file: only its holder may write.

    Args:
        path: the file; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        self._waiting: set[int] = set()

    @contextmanager
    def held(self, waited: float = 0.0) -> Iterator[None]:
        """Hold the lock for a block.

        Args:
            waited: seconds that the caller has already waited for earlier jobs.

        Raises:
            JournalError: another process held it until 10 s had passed, including `waited`.
        """
        if not try_lock(self.descriptor):
            self._wait(max(LOCK_TIMEOUT / 10, LOCK_TIMEOUT - waited))
        try:
            yield
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def _wait(self, timeout: float) -> None:
        """Wait for the lock in another thread.

        Only a blocking flock gets the lock without polling, and only in another thread can we give
        it up. That thread locks a descriptor of its own, which then replaces ours; if we have given
        up by then, it closes the descriptor.
        """
        descriptor = open_private(self.path, os.O_RDWR)
        self._waiting.add(descriptor)
        decided, is_ours = threading.Lock(), threading.Event()
        given_up = False

        def acquire() -> None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with decided:
                self._waiting.discard(descriptor)
                if given_up:
                    os.close(descriptor)
                else:
                    is_ours.set()

        threading.Thread(target=acquire, name="midapi-journal-lock", daemon=True).start()
        is_ours.wait(timeout)
        with decided:
            given_up = not is_ours.is_set()
        if given_up:
            raise JournalError(
                f"{self.path} has been locked for more than {LOCK_TIMEOUT:g} s by "
                f"{self._holder()}: check what it is doing, end it if it hangs, then try again"
            )
        old, self.descriptor = self.descriptor, descriptor
        os.close(old)

    def _holder(self) -> str:
        """The process that holds the lock, if the system says which."""
        with suppress(OSError, ValueError):
            inode = os.fstat(self.descriptor).st_ino
            for line in Path("/proc/locks").read_text("ascii").splitlines():
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                    return f"process {int(fields[4])}"
        return "another process"

    def close(self) -> None:
        """Close the file. A thread that still waits closes its descriptor when it gets the lock."""
        os.close(self.descriptor)

    def forget(self) -> None:
        """In a forked child, which has no such thread: close all descriptors, unlock nothing."""
        for descriptor in (self.descriptor, *self._waiting):
            os.close(descriptor)
        self._waiting.clear()


class Owners:
    """The owners of rows. Each has a file with its name, and is alive while that file is locked.

    An owner is one event loop of one journal object. A name is never used twice, so an owner
    without a file is dead, even if it still runs and somebody has removed the file. Files are made,
    checked and removed under the journal's lock, so that no process sees a file that is made and
    not locked yet.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Weak references, so that a closed loop, and the client that it refers to, can be freed.
        self._mine: dict[str, tuple[weakref.ref[asyncio.AbstractEventLoop], int]] = {}

    def of(self, loop: asyncio.AbstractEventLoop) -> str:
        """The name of an event loop's owner; the first call for a loop makes it."""
        if (known := self.known(loop)) is not None:
            return known
        for name in [each for each in self._mine if not self.is_alive(each)]:
            self._remove(name)  # a program may use many loops in turn
        self.folder.mkdir(mode=0o700, exist_ok=True)
        while True:
            name = f"{os.getpid()}-{secrets.token_hex(16)}"
            descriptor = open_private(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            self._mine[name] = weakref.ref(loop), descriptor
            if try_lock(descriptor):
                return name
            self._remove(name)  # another process was just checking whether it is locked

    def known(self, loop: asyncio.AbstractEventLoop | None) -> str | None:
        """The name of an event loop's owner; None if the loop has no owner that is alive."""
        names = (name for name, (each, _) in self._mine.items() if each() is loop)
        return next(filter(self.is_alive, names), None)

    def is_alive(self, name: str) -> bool:
        """Whether an owner's file is locked, and its event loop, if it is ours, not closed."""
        if name in self._mine:
            reference, descriptor = self._mine[name]
            loop = reference()
            # Others see only the file under its name, so that counts, and not what we have open.
            is_there = file_identity(str(self.folder / name)) == file_identity(descriptor)
            return is_there and loop is not None and not loop.is_closed()
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
        """Remove the files of dead owners."""
        for name in self.names():
            if not self.is_alive(name):
                self._remove(name)

    def leave(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Release ownership: from now on our owners, or those of one event loop, are dead."""
        for name, (each, _) in list(self._mine.items()):
            if loop is None or each() is loop:
                self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            (self.folder / name).unlink(missing_ok=True)
        if name in self._mine:
            os.close(self._mine.pop(name)[1])

    def forget(self) -> None:
        """In a forked child: close the descriptors without unlocking the files."""
        for _, descriptor in self._mine.values():
            os.close(descriptor)
        self._mine = {}
