"""The folder of a journal: found fit for it or refused, and made whole or not at all.

    journal.sqlite   the rows; beside it SQLite's own -wal and -shm
    journal.lock     locked by whoever writes; says once the journal is made, so that a database
                     that is gone later is not taken for one that never was
    journal.key      random; hides what was asked for where prompts are not stored
    owners/          a locked file for each process that rows belong to
    gates/           the slots of each account's gate, for all processes that submit

The database is never opened here: closing it would drop the locks that SQLite holds on it in this
process (https://sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import JournalError
from ._locks import Lock, open_private

if TYPE_CHECKING:
    from collections.abc import Callable

DATABASE, LOCK, KEY, OWNERS = "journal.sqlite", "journal.lock", "journal.key", "owners"
GATES = "gates"
DRAFT = f"{DATABASE}.new"
MOUNTS = Path("/proc/self/mountinfo")
_MADE = b"a journal of midapi_async\n"
_BESIDE = ("-wal", "-shm", "-journal")
# What may lie in a folder in which no journal is made yet.
_HARMLESS = {LOCK, KEY, OWNERS, GATES, "lost+found", *(DRAFT + end for end in ("", *_BESIDE))}
_REMOTE = re.compile(
    r"(fuse\.)?(9p|afs|beegfs|ceph|cifs|coda|davfs2?|drvfs|gcsfuse|gfs2|glusterfs|gpfs|lustre|ncpfs|"
    r"nfs[34]?|ocfs2|orangefs|rclone|s3fs|smb[23]?|smbfs|sshfs)"
)


class Folder:
    """A journal's folder.

    Args:
        path: where it is, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / DATABASE
        self.wal = path / f"{DATABASE}-wal"
        self.identity: tuple[int, int] | None = None
        self._identities: tuple[tuple[str, tuple[int, int] | None], ...] = ()
        self._lock: Lock | None = None

    @property
    def lock(self) -> Lock:
        """The lock that everybody who writes holds; the first use checks or makes the folder."""
        if self._lock is None:
            self.identity = _check_or_make(self.path)
            self._lock = Lock(self.path / LOCK)
        return self._lock

    @property
    def descriptor(self) -> int | None:
        """The lock's descriptor, if it is open."""
        return self._lock.descriptor if self._lock is not None else None

    def furnish(self, draw: Callable[[Path], None]) -> None:
        """See that every file is there and fit, or make a new journal. The lock must be held.

        Args:
            draw: makes an empty database at a path.

        Raises:
            JournalError: a file is gone, or others could have written it.
        """
        if not self._is_made():
            self._make(draw)
        for name in (LOCK, DATABASE, KEY):
            _refuse_unsafe(self.path / name, missing_ok=False)
        for end in _BESIDE:
            _refuse_unsafe(self.path / (DATABASE + end), missing_ok=True)
        if not self._identities:
            lock, database = os.fstat(self.lock.descriptor), str(self.database)
            self._identities = (
                (str(self.lock.path), (lock.st_dev, lock.st_ino)),
                (database, _identity(database)),
            )
        self.check_unmoved()

    def check_unmoved(self) -> None:
        """See that the files we have open are still the ones that others find."""
        for path, identity in self._identities:
            if _identity(path) != identity:
                raise self._replaced(path)

    def key(self) -> bytes:
        """The folder's secret."""
        return (self.path / KEY).read_bytes()

    def leave(self) -> None:
        """Let go of the lock's file; what is there the next time is taken as it is."""
        lock, self._lock = self._lock, None
        self._identities = ()
        if lock is not None:
            lock.close()

    def _is_made(self) -> bool:
        return os.pread(self.lock.descriptor, len(_MADE), 0) == _MADE

    def _make(self, draw: Callable[[Path], None]) -> None:
        """Make every file; a crash at any point leaves nothing, or all but the mark."""
        path = self.path
        if not self.database.exists():
            _refuse_foreign(path)
            path.chmod(0o700)
            (path / OWNERS).mkdir(mode=0o700, exist_ok=True)
            _write_key(path / KEY)
            for end in ("", *_BESIDE):
                (path / (DRAFT + end)).unlink(missing_ok=True)
            os.close(open_private(path / DRAFT, os.O_RDWR | os.O_CREAT | os.O_EXCL))
            draw(path / DRAFT)
            (path / DRAFT).rename(self.database)
        os.pwrite(self.lock.descriptor, _MADE, 0)
        os.fsync(self.lock.descriptor)
        _sync_folder(path)
        _sync_folder(path.parent)

    def _replaced(self, path: str) -> JournalError:
        return JournalError(
            f"{path} was removed or replaced while it was in use: put it back, or close the "
            "journal and open it again"
        )


def _check_or_make(path: Path) -> tuple[int, int]:
    """The identity of a folder that a journal may live in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise JournalError(
                f"{path} is a file: a journal is a folder; name another place, or move the file "
                "away"
            ) from None
    found = path.stat()
    _refuse(path, found)
    if _REMOTE.fullmatch(kind := file_system(path.resolve()) or ""):
        raise JournalError(
            f"{path} lies on a network file system ({kind}), where SQLite's locks cannot be "
            "trusted: choose a folder on a local disk"
        )
    if not (path / LOCK).exists() and not (path / DATABASE).exists():
        _refuse_foreign(path)
    return found.st_dev, found.st_ino


def file_system(path: Path) -> str | None:
    """The type of the file system that a path lies on; None where the system does not tell."""
    try:
        lines = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    found: tuple[int, str | None] = (-1, None)
    for line in lines:
        # https://www.kernel.org/doc/html/latest/filesystems/proc.html, 3.5
        mount, _, kind = line.partition(" - ")
        point = Path(_unescaped(mount.split(" ")[4]))
        if path.is_relative_to(point) and len(point.parts) >= found[0]:
            found = len(point.parts), kind.split(" ")[0]
    return found[1]


def _unescaped(text: str) -> str:
    for escape, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, plain)
    return text


def _refuse_foreign(path: Path) -> None:
    """A folder in which no journal is made must hold nothing that is not ours."""
    if foreign := sorted({each.name for each in path.iterdir()} - _HARMLESS):
        shown = ", ".join(foreign[:3]) + ", …" * (len(foreign) > 3)
        raise JournalError(
            f"{path} holds other things ({shown}) and no journal: name a new or an empty folder"
        )


def _refuse_unsafe(path: Path, *, missing_ok: bool) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        if missing_ok:
            return
        raise JournalError(
            f"{path} is gone, which the journal needs: restore it from a backup. Or remove the "
            "whole folder to begin anew; then every key is forgotten and may be paid again"
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"{path} is no ordinary file: put the journal's own file back")
    _refuse(path, found)


def _refuse(path: Path, found: os.stat_result) -> None:
    """Nobody but the user who runs this may be able to change what is at a path."""
    if found.st_uid != os.geteuid():
        raise JournalError(
            f"{path} belongs to user {found.st_uid}, and user {os.geteuid()} runs this: run as "
            "that user, or choose a folder of your own"
        )
    if found.st_mode & 0o022:
        raise JournalError(
            f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):o}): see who has "
            f"changed it, then take that right away with chmod go-w {path}"
        )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, in each transaction
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _write_key(path: Path) -> None:
    path.unlink(missing_ok=True)
    descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(descriptor, secrets.token_bytes(32))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Make the names in a folder outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
