"""The folder of a journal: checked before it is used, and made completely or not at all.

    journal.sqlite   the rows; next to it SQLite's own -wal and -shm
    journal.lock     locked by the process that writes. Contains a line once the journal is made, so
                     that a file that is missing later is an error and not a new journal; and how
                     many commits there were (see `store`)
    journal.key      random; makes the hashes of requests meaningless without it, where prompts are
                     not stored
    owners/          a locked file for each owner of rows

The database file is never opened here: closing it would drop the locks that SQLite holds on it in
this process (https://sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from ...errors import JournalError
from .locks import Lock, file_identity, file_status, open_private

DATABASE, LOCK, KEY, OWNERS = "journal.sqlite", "journal.lock", "journal.key", "owners"
DRAFT = f"{DATABASE}.new"
RESTORE = (
    "restore the folder from a backup. Or move it away and start with an empty one; then every key "
    "is forgotten and may be paid again"
)
LOCK_SIZE = 128  # bytes
MOUNTS = Path("/proc/self/mountinfo")
_FILE = struct.Struct("<3Q")
_MADE = b"a journal of midapi_async\n"
_BESIDE = ("-wal", "-shm", "-journal")
# What may be in a folder in which no journal is made yet.
_HARMLESS = {LOCK, KEY, OWNERS, "lost+found", *(DRAFT + end for end in ("", *_BESIDE))}
_REMOTE = re.compile(
    r"(fuse\.)?(9p|afs|beegfs|ceph|cifs|coda|davfs2?|drvfs|gcsfuse|gfs2|glusterfs|gpfs|lustre|ncpfs|"
    r"nfs[34]?|ocfs2|orangefs|rclone|s3fs|smb[23]?|smbfs|sshfs)"
)


class Folder:
    """A journal's folder.

    Args:
        path: its absolute path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / DATABASE
        self.wal = path / f"{DATABASE}-wal"
        self.identity: tuple[int, int] | None = None
        self._identities: dict[str, tuple[int, int] | None] = {}
        self._wal = str(self.wal)
        self._lock: Lock | None = None

    @property
    def lock(self) -> Lock:
        """The lock that a writer holds; the first use checks or makes the folder."""
        if self._lock is None:
            self.identity = _check_or_make(self.path)
            self._lock = Lock(self.path / LOCK)
        return self._lock

    def prepare(self, make_database: Callable[[Path], None]) -> None:
        """Check that every file is there and safe, or make a new journal. The lock must be held.

        Args:
            make_database: makes an empty database at a path.

        Raises:
            JournalError: a file is missing, or other users could have changed it.
        """
        found = os.pread(self.lock.descriptor, LOCK_SIZE, 0)
        if len(found) < LOCK_SIZE or not found.startswith(_MADE):
            self._make(make_database)
        if not self.database.exists() and (self.path / DRAFT).exists():
            (self.path / DRAFT).rename(self.database)  # the last step of making it
            _sync_folder(self.path)
            _sync_folder(self.path.parent)
        for name in (LOCK, DATABASE, KEY):
            _refuse_unsafe(self.path / name, missing_ok=False)
        for end in _BESIDE:
            _refuse_unsafe(self.path / (DATABASE + end), missing_ok=True)
        if not self._identities:
            database = str(self.database)
            self._identities = {
                str(self.lock.path): file_identity(self.lock.descriptor),
                database: file_identity(database),
            }

    def check_unmoved(self) -> None:
        """Check that other processes would open the same files that we have open."""
        for path, identity in self._identities.items():
            if file_identity(path) != identity:
                advice = "put that same file back, not a copy. Or end every program that uses it"
                if path == self._wal:  # the connections still have what was in it
                    advice = "close the journal in every program: the last one saves what was in it"
                raise JournalError(
                    f"{path} was removed or replaced while it was in use: {advice}; then open the "
                    "journal again, and if that says that commits are lost, restore the whole "
                    "folder from a backup"
                )
        # SQLite makes the -wal in the first transaction and keeps it as long as we are connected.
        if self._wal not in self._identities and (identity := file_identity(self._wal)) is not None:
            self._identities[self._wal] = identity

    def forget_wal(self) -> None:
        """Accept another -wal file: SQLite may have removed ours with the last connection."""
        self._identities.pop(self._wal, None)

    def files(self) -> bytes:
        """Inode, size and time of the database and of its -wal; zeros if one is missing or empty.

        They show that another program has written to a file, or has put another one there.
        """
        shown = b""
        for path in (self.database, self.wal):
            found = file_status(path)
            facts = (found.st_ino, found.st_size, found.st_mtime_ns) if found else (0, 0, 0)
            shown += _FILE.pack(*facts) if facts[1] else bytes(_FILE.size)
        return shown

    @property
    def wal_size(self) -> int:
        """Bytes that are not moved into the database file yet."""
        return self.wal.stat().st_size if self.wal.exists() else 0

    @property
    def size(self) -> int:
        """Bytes of the database, including its -wal file."""
        return self.database.stat().st_size + self.wal_size

    def key(self) -> bytes:
        """The folder's secret."""
        return (self.path / KEY).read_bytes()

    def leave(self, *, is_child: bool = False) -> None:
        """Close the lock's file; the next use accepts the files that are there then.

        Args:
            is_child: whether this is a forked child, which must not unlock anything.
        """
        lock, self._lock = self._lock, None
        self._identities = {}
        if lock is not None:
            (lock.forget if is_child else lock.close)()

    def _make(self, make_database: Callable[[Path], None]) -> None:
        """Make every file. The line in the lock comes before the name of the database.

        So a database without the line is always one whose lock file was lost, with the mark in it.
        """
        path = self.path
        if self.database.exists():
            raise JournalError(
                f"{path / LOCK} was removed or cut short, and only it shows whether the last "
                f"commits in {self.database} are missing; {RESTORE}"
            )
        _refuse_foreign(path)
        path.chmod(0o700)
        (path / OWNERS).mkdir(mode=0o700, exist_ok=True)
        (path / KEY).unlink(missing_ok=True)
        write_private(path / KEY, secrets.token_bytes(32))
        for end in ("", *_BESIDE):
            (path / (DRAFT + end)).unlink(missing_ok=True)
        os.close(open_private(path / DRAFT, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        make_database(path / DRAFT)
        _sync_folder(path)
        os.pwrite(self.lock.descriptor, _MADE.ljust(LOCK_SIZE, b"\0"), 0)  # no commits yet
        os.fsync(self.lock.descriptor)


def _check_or_make(path: Path) -> tuple[int, int]:
    """Make the folder if it is missing, check that it is suitable, and return its identity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise JournalError(
                f"{path} is a file, and a journal needs a folder: give another path, or move the "
                "file away"
            ) from None
    found = path.stat()
    _refuse(path, found)
    if _REMOTE.fullmatch(kind := file_system(path.resolve()) or ""):
        raise JournalError(
            f"{path} is on a network file system ({kind}), where SQLite's locks are not reliable: "
            "choose a folder on a local disk"
        )
    if not (path / LOCK).exists() and not (path / DATABASE).exists():
        _refuse_foreign(path)
    return found.st_dev, found.st_ino


def file_system(path: Path) -> str | None:
    """The type of the file system of a path; None where there is no /proc."""
    try:
        lines = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except FileNotFoundError:
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
    """Refuse to make a journal in a folder that contains other files."""
    if foreign := sorted({each.name for each in path.iterdir()} - _HARMLESS):
        shown = ", ".join(foreign[:3]) + ", …" * (len(foreign) > 3)
        raise JournalError(
            f"{path} contains other files ({shown}) and no journal: choose a new or empty folder"
        )


def _refuse_unsafe(path: Path, *, missing_ok: bool) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        if missing_ok:
            return
        raise JournalError(f"{path} is missing, and the journal needs it; {RESTORE}") from None
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"{path} is not a regular file: put the journal's own file back")
    _refuse(path, found)


def _refuse(path: Path, found: os.stat_result) -> None:
    """Refuse a file or folder that another user could change."""
    if found.st_uid != os.geteuid():
        raise JournalError(
            f"{path} belongs to user {found.st_uid}, and user {os.geteuid()} runs this: run as "
            "that user, or choose a folder of your own"
        )
    if found.st_mode & 0o022:
        raise JournalError(
            f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):o}): check that "
            f"no other user has changed it, then run chmod go-w {path}"
        )


def write_private(path: Path, content: bytes) -> None:
    """Make a small file that only this user can read; it survives a power failure."""
    descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
