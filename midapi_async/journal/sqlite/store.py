"""The SQLite database of a journal: opens it, writes under the lock, finds lost commits, closes it.

Everything here happens in one thread. To write, checkpoint or close, the thread holds
`journal.lock`, so that no two connections do so at once: SQLite 3.7.0 to 3.51.2 can corrupt a WAL
when one connection commits while another checkpoints. For the same reason SQLite is never allowed
to checkpoint by itself.

**The mark.** If the WAL file is lost or damaged, SQLite reports no error: the last commits are just
missing, and paid keys would be free again. So every transaction increments a count in the database,
and after COMMIT the count is also written to `journal.lock` and synced, before the caller goes on.
If the count in the database is below this mark, commits are lost. During a checkpoint a flag is set
next to the mark: the database may then have the newest count and not yet the rows, so the WAL must
not be missing.

**Damage.** SQLite does not notice a changed bit in a key or in an index, and that key would be free
again. The first process that opens the database compares all rows with their indexes. Beside the
mark are the sizes and times of the files after our last write; where they differ later, another
program has written to them, and the database is opened and compared again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from ...errors import JournalError
from ..stored import KEPT
from . import forks, schema
from .folder import DATABASE, KEY, LOCK, LOCK_SIZE, RESTORE, Folder, write_private
from .locks import Owners, open_private, sync
from .table import SQLiteTable

T = TypeVar("T")
_log = logging.getLogger("midapi_async.journal")

_PRUNE_EVERY = 6 * 3600.0  # seconds
_CHECKPOINT_EVERY = 250  # commits; about 1,000 pages of WAL, as SQLite would do by itself
_LARGE_WAL = 4 << 20  # bytes
_BUSY_TIMEOUT = 3.0  # seconds that another program may keep the database locked
_ONE_TRY = 0.2  # seconds of them in which other processes have to wait for our lock
_MARK = struct.Struct("<Q?")  # commits, and whether a checkpoint is under way
_MARK_AT, _FILES_AT = 64, 80  # bytes from the beginning of journal.lock
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "fullfsync=1",  # macOS: without it a sync ends in the disk's cache
    "checkpoint_fullfsync=1",
    "wal_autocheckpoint=0",
    "cell_size_check=1",  # finds some damage
    f"journal_size_limit={4 * _LARGE_WAL}",
)
_ADVICE = {
    "SQLITE_FULL": "free some space on that disk",
    "SQLITE_READONLY": "make the file and its disk writable",
    "SQLITE_BUSY": "another program has locked it; end that program",
    "SQLITE_LOCKED": "another program has locked it; end that program",
    "SQLITE_CANTOPEN": "check that it exists and that this user may read and write it",
    "SQLITE_IOERR": "check what the system's log says about that disk",
    "SQLITE_CORRUPT": f"it is damaged; {RESTORE}",
    "SQLITE_NOTADB": f"it is damaged; {RESTORE}",
}


class Job(Generic[T]):
    """One caller's part of a transaction.

    Args:
        work: reads and writes rows. It may run a second time if the transaction fails.
        writes: whether it may write, and so needs the lock.
        loop: the caller's event loop; its owner gets the rows that are written.
    """

    def __init__(
        self,
        work: Callable[[SQLiteTable], T],
        *,
        writes: bool,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.work = work
        self.writes = writes
        self.loop = loop
        self.error: BaseException | None = None
        self.asked_at = time.monotonic()
        self.has_begun = False
        self._answers: list[T] = []

    def run(self, table: SQLiteTable) -> None:
        """Do the work; its answer is valid only when the transaction is durable."""
        table.loop = self.loop
        self.has_begun = True
        self._answers = [self.work(table)]

    def answer(self) -> T:
        """Return what the work returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self._answers[0]


class Store:
    """The database in a folder. All methods are called in one thread, and raise `JournalError`.

    Args:
        path: the absolute path of the folder.
        store_prompts: whether requests are stored.
        changed: called after each transaction that wrote something.
    """

    def __init__(self, path: Path, *, store_prompts: bool, changed: Callable[[], None]) -> None:
        self.folder = Folder(path)
        self.owners = Owners(path / "owners")
        self._store_prompts = store_prompts
        self._changed = changed
        self._table: SQLiteTable | None = None
        self._commits_since_checkpoint = 0
        self._openings = 0
        self._highest = 0  # the most commits that were seen since it was opened
        self._prune_at = 0.0

    # ─── what the thread is asked to do ──────────────────────────────────────────────────────────

    def serve(self, jobs: Sequence[Job[Any]]) -> None:
        """Do all jobs, in one transaction if any of them writes.

        If that fails, each job gets a transaction of its own, so that one failure does not affect
        the other jobs.
        """
        try:
            self._serve_together(jobs)
        except BaseException as error:  # noqa: BLE001 - each caller gets it
            if len(jobs) == 1:
                jobs[0].error = error
                return
            has_begun = any(job.has_begun for job in jobs)
            for job in jobs:
                if has_begun or (self._table is not None and not job.writes):
                    self.serve([job])
                else:
                    # The lock or the connection failed, for which all have waited once already.
                    job.error = copy(error)
                    job.error.__cause__ = error

    def once(self, work: Callable[[SQLiteTable], T], *, writes: bool = True) -> T:
        """Do one job in a transaction of its own."""
        job = Job(work, writes=writes)
        self._serve_together([job])
        return job.answer()

    def resolve_orphans(self) -> None:
        """Resolve the PENDING rows of dead owners; without any, this only reads."""
        if self.once(SQLiteTable.dead_owners, writes=False):
            self.once(SQLiteTable.resolve_orphans)

    def version(self) -> tuple[int, int]:
        """A value that changes when another process writes, or an owner of a PENDING row dies."""
        self.resolve_orphans()
        return self._openings, self.once(SQLiteTable.data_version, writes=False)

    def tidy(self) -> None:
        """Checkpoint and prune, when it is time for that.

        A failure is only logged: the next attempt may succeed.
        """
        if self._table is None:
            return  # closed in the meantime
        try:
            if self._commits_since_checkpoint >= _CHECKPOINT_EVERY:
                with self._errors_as_ours(), self._locked() as table:
                    self._checkpoint(table.connection)
            if time.monotonic() >= self._prune_at:
                self._prune_at = time.monotonic() + _PRUNE_EVERY
                if self.once(lambda table: table.prune(time.time() - KEPT)):
                    self._prune_at = 0.0  # there may be more; other jobs come first
        except JournalError:
            _log.warning("the journal could not be tidied; trying again later", exc_info=True)

    def backup(self, folder: Path) -> None:
        """Copy the journal into an empty folder; see `SQLiteJournal.backup`."""

        def copy(table: SQLiteTable) -> int:
            source = table.connection
            source.execute("BEGIN")  # for reading: everybody else can read and write meanwhile
            try:
                commits = self._commits(source)
                with self._errors_as_ours("the copy cannot be written"):
                    self._copy(source, folder / DATABASE)
            finally:
                source.execute("ROLLBACK")
            return commits

        commits = self.once(copy, writes=False)
        with self._errors_as_ours():
            line = os.pread(self.folder.lock.descriptor, _MARK_AT, 0)
            mark = _MARK.pack(commits, False)  # noqa: FBT003 - no checkpoint is under way
            write_private(folder / LOCK, (line + mark).ljust(LOCK_SIZE, b"\0"))
            write_private(folder / KEY, self.folder.key())

    def _copy(self, source: sqlite3.Connection, path: Path) -> None:
        os.close(open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        with closing(_connect(path)) as copy:
            source.backup(copy)
            # Such a row could become REFUSED when the copy is used, and its key be free again. But
            # the original may have sent it in the meantime.
            copy.execute("UPDATE intents SET state = 'sending' WHERE state = 'resting'")
            self._refuse_damaged(copy)

    def close(self) -> None:
        """Close the database and release the owners; the next use opens it again."""
        if self._table is not None:
            with suppress(JournalError), self._errors_as_ours(), self._locked() as table:
                # When the last connection closes, SQLite would do this without our flag.
                self._checkpoint(table.connection)
                self._disconnect()
        with forks.no_fork():
            self._disconnect()
        self.owners.leave()
        self.folder.leave()
        self._highest = 0
        forks.opened.discard(self.abandon)

    def abandon(self) -> tuple[int, int] | None:
        """In a forked child: leave the database to the parent; return the folder's identity."""
        self.owners.forget()
        self.folder.leave(is_child=True)
        if self._table is not None:
            import ctypes

            # The connection must never be freed: closing it could remove the parent's WAL file.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._table.connection))
        return self.folder.identity

    # ─── transactions ────────────────────────────────────────────────────────────────────────────

    def _serve_together(self, jobs: Sequence[Job[Any]]) -> None:
        asked_at = min(job.asked_at for job in jobs)
        with self._errors_as_ours():
            while True:
                try:
                    return self._try_to_serve(jobs, asked_at)
                except sqlite3.Error as error:
                    # Another program has locked the database. Waiting for that in SQLite would keep
                    # our own lock, and other processes would wait one after another.
                    is_late = time.monotonic() - asked_at >= _BUSY_TIMEOUT
                    if not _is_busy(error) or is_late or any(job.has_begun for job in jobs):
                        raise

    def _try_to_serve(self, jobs: Sequence[Job[Any]], asked_at: float) -> None:
        if any(job.writes for job in jobs):
            with self._locked(asked_at) as table:
                self._transact(table, jobs)
            return
        if self._table is None:
            with self._locked(asked_at) as table:
                pass  # this has opened the database
        else:
            table = self._table
            self.folder.check_unmoved()
        with self._connection_that_fails_is_closed(), forks.no_fork():
            for job in jobs:
                job.run(table)

    def _transact(self, table: SQLiteTable, jobs: Sequence[Job[Any]]) -> None:
        connection = table.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            if schema.version(connection) != schema.VERSION:  # another release has changed it
                schema.check(connection, self.folder.database)
            commits = self._commits(connection)
            before = connection.total_changes
            for job in jobs:
                job.run(table)
            has_written = connection.total_changes != before
            if has_written:
                connection.execute("UPDATE meta SET commits = ?", (commits + 1,))
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if has_written:
            self._write_mark(commits + 1, is_checkpointing=False)
            self._commits_since_checkpoint += 1
            self._changed()

    def _commits(self, connection: sqlite3.Connection) -> int:
        """The count of commits in the database; raises if it is below the mark."""
        # The folder may have been overwritten with an older one, mark included.
        marked = max(self._mark()[0], self._highest)
        (commits,) = connection.execute("SELECT commits FROM meta").fetchone() or (None,)
        if not isinstance(commits, int):
            raise JournalError(f"the journal {self.folder.database} is damaged; {RESTORE}")
        if commits < marked:
            raise JournalError(
                f"the journal {self.folder.database} has lost its last {marked - commits} "
                f"commits: its -wal file was removed or damaged, or an older database was put "
                f"back; {RESTORE}"
            )
        self._highest = commits
        return commits

    def _mark(self) -> tuple[int, bool]:
        found = os.pread(self.folder.lock.descriptor, _MARK.size, _MARK_AT)
        return _MARK.unpack(found)

    def _files(self) -> bytes:
        """`Folder.files` at the last mark."""
        return os.pread(self.folder.lock.descriptor, LOCK_SIZE - _FILES_AT, _FILES_AT)

    def _write_mark(self, commits: int, *, is_checkpointing: bool) -> None:
        descriptor = self.folder.lock.descriptor
        mark = _MARK.pack(commits, is_checkpointing).ljust(_FILES_AT - _MARK_AT, b"\0")
        os.pwrite(descriptor, mark + self.folder.files(), _MARK_AT)
        sync(descriptor)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move the contents of the WAL into the database file. The lock must be held."""
        commits = self._commits(connection)
        _, was_interrupted = self._mark()
        if not was_interrupted and not self.folder.wal_size:
            return
        self._write_mark(commits, is_checkpointing=True)
        try:
            _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error:
            # Closing tries once more, and removes the WAL only when all of it was moved.
            connection.close()
            if not self.folder.wal.exists():
                self._write_mark(commits, is_checkpointing=False)
            raise
        if was_interrupted and pages <= 0:
            # The database may have the newest count without the rows.
            raise JournalError(
                f"{self.folder.wal} was removed or damaged while it was being moved into the "
                f"database; {RESTORE}"
            )
        self._write_mark(commits, is_checkpointing=False)
        self._commits_since_checkpoint = 0

    # ─── the connection ──────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _locked(self, asked_at: float | None = None) -> Iterator[SQLiteTable]:
        """Hold the lock and give the table, which is opened if necessary.

        Args:
            asked_at: when the caller began to wait, on the monotonic clock; None for now.
        """
        if self._table is None:
            forks.watch()
            forks.opened.add(self.abandon)
        lock = self.folder.lock
        if self.folder.identity in forks.inherited:
            raise JournalError(
                f"{self.folder.path} was open in the parent process when this process was forked: "
                "start processes with 'spawn', or open the journal only after the fork"
            )
        waited = time.monotonic() - asked_at if asked_at is not None else 0.0
        with lock.held(waited), forks.no_fork(), self._connection_that_fails_is_closed():
            if self._table is not None:
                self.folder.check_unmoved()
                if self._files() != self.folder.files():
                    # Another program has written to the files, or one of ours was killed.
                    if self._mark()[1]:
                        self._checkpoint(self._table.connection)
                    self._disconnect()
            if self._table is None:
                self._table = self._open()
                self.folder.check_unmoved()
            yield self._table

    @contextmanager
    def _connection_that_fails_is_closed(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if not _is_busy(error):
                self._disconnect()  # else readers can go on with it
            raise

    def _open(self) -> SQLiteTable:
        database = self.folder.database
        self.folder.prepare(_make_database)
        seen, now = self._files(), self.folder.files()
        is_first = not any(map(self.owners.is_alive, self.owners.names()))
        if not is_first and any(seen) and seen[:8] != now[:8]:
            raise JournalError(
                f"{database} was replaced while another process has the old one open: end every "
                "program that uses it, then put the right one back, or the whole folder from a "
                "backup"
            )
        connection = _connect(database)
        try:
            schema.check(connection, database)
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").fetchall()
            commits = self._commits(connection)
            if self._mark()[1]:
                self._checkpoint(connection)
            if is_first or seen != now:
                # `quick_check` is not enough: it does not compare rows with their indexes, and a
                # key that is missing in an index would be paid again.
                connection.execute("PRAGMA cache_size=-16000")  # 16 MB, for 100,000 rows
                self._refuse_damaged(connection, "('intents')")
                self._write_mark(commits, is_checkpointing=False)
            connection.execute("PRAGMA cache_size=-4000")
            hides_prompts = not self._store_prompts
            table = SQLiteTable(connection, self.owners, self.folder, hides_prompts=hides_prompts)
        except BaseException:
            connection.close()
            raise
        self._openings += 1
        if self.folder.wal_size > _LARGE_WAL:
            self._commits_since_checkpoint = _CHECKPOINT_EVERY
        return table

    def _refuse_damaged(self, connection: sqlite3.Connection, table: str = "") -> None:
        for (found,) in connection.execute(f"PRAGMA integrity_check{table}"):
            if found != "ok":
                raise JournalError(
                    f"the journal {self.folder.database} is damaged ({found}): {RESTORE}"
                )

    def _disconnect(self) -> None:
        table, self._table = self._table, None
        if table is not None:
            with suppress(sqlite3.Error):
                table.connection.close()
            self.folder.forget_wal()

    @property
    def is_untidy(self) -> bool:
        """Whether it is time for `tidy`."""
        return self._table is not None and (
            self._commits_since_checkpoint >= _CHECKPOINT_EVERY
            or time.monotonic() >= self._prune_at
        )

    @contextmanager
    def _errors_as_ours(self, what: str = "") -> Iterator[None]:
        """Turn errors of SQLite and of the system into `JournalError`.

        Args:
            what: does not work, if that is not the journal.
        """
        path = self.folder.database
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", None) or ""
            advice = _ADVICE.get("_".join(name.split("_")[:2]), "run 'midapi journal check' on it")
            what = what or f"the journal {path} cannot be used"
            raise JournalError(f"{what}: {error} ({name or 'SQLite'}); {advice}") from error
        except OSError as error:
            where = error.filename or self.folder.path
            raise JournalError(
                f"the journal cannot be used: {error.strerror or error} ({where}); check that its "
                "folder exists, that this user may write to it, and that the disk has space"
            ) from error
        except UnicodeDecodeError as error:
            raise JournalError(f"the journal {path} is damaged ({error}); {RESTORE}") from error
        except UnicodeError as error:
            raise JournalError(f"the journal {path} cannot store this text: {error}") from error


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def _connect(path: Path) -> sqlite3.Connection:
    """A connection to an existing database.

    One thread uses it, but at exit that thread has ended, and another one has to close it.
    """
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=_ONE_TRY,
        isolation_level=None,
        check_same_thread=False,
    )


def _make_database(path: Path) -> None:
    """Make an empty database, completely in one file."""
    connection = _connect(path)
    try:
        schema.make(connection)
    finally:
        connection.close()
