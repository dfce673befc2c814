"""The database of a journal: opened, written under the lock, and left, all in a thread of its own.

Whoever writes, checkpoints or closes holds `journal.lock`, so that no two connections ever do it at
once: SQLite 3.7.0 to 3.51.2 can corrupt a WAL when one commits while another checkpoints. For the
same reason SQLite never checkpoints by itself here.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import attrs

from ..errors import JournalError
from . import _forks, _schema
from ._folder import Folder
from ._locks import Owners
from ._rows import Row, Rows, Seal, Sender
from .protocol import State

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
_log = logging.getLogger("midapi_async")

KEPT = 16 * 86_400.0  # seconds that a row is kept after it was over; MidAPI keeps files for 15 days
_PRUNE_EVERY = 6 * 3600.0  # seconds
_CHECKPOINT_EVERY = 250  # writes; about 1,000 pages of WAL, as SQLite would do by itself
_LARGE_WAL = 4 << 20  # bytes
_CHECKED = 64 << 20  # bytes; up to so large a database is checked for damage when it is opened
_BUSY = 3.0  # seconds that another program may keep the database locked
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "fullfsync=1",  # macOS: without it a sync ends in the disk's cache
    "checkpoint_fullfsync=1",
    "wal_autocheckpoint=0",
    f"journal_size_limit={4 * _LARGE_WAL}",
)
_RESTORE = (
    "restore the folder from a backup. Or move it away to begin anew; then every key is forgotten "
    "and may be paid again"
)
_ADVICE = {
    "SQLITE_FULL": "free some space on that disk",
    "SQLITE_READONLY": "make the file and its disk writable",
    "SQLITE_BUSY": "another program has locked it; end that",
    "SQLITE_LOCKED": "another program has locked it; end that",
    "SQLITE_CANTOPEN": "see that it is there and that this user may read and write it",
    "SQLITE_IOERR": "see what the system's log says of that disk",
    "SQLITE_CORRUPT": f"it is damaged; {_RESTORE}",
    "SQLITE_NOTADB": f"it is damaged; {_RESTORE}",
}


@attrs.frozen(kw_only=True)
class JournalReport:
    """What a check of a journal found.

    Attributes:
        path: the database.
        problems: what SQLite finds wrong with it; empty if it is whole.
        counts: how many rows there are in each state.
        spent_keys: how many keys are kept of rows that were pruned.
        owners: how many journal objects, in all processes, are open and own rows.
        schema: the version of the schema.
        size: of the database and what is not yet moved into it, in bytes.
    """

    path: Path
    problems: tuple[str, ...]
    counts: Mapping[State, int]
    spent_keys: int
    owners: int
    schema: int
    size: int


class Job(Generic[T]):
    """One caller's part of a transaction, or of a look at the rows.

    Args:
        work: reads and writes rows. It may be run again after a transaction that failed.

    Attributes:
        is_done: whether what came of it stands.
        served: resolved once it is done, if somebody waits in an event loop.
    """

    def __init__(self, work: Callable[[Rows], T]) -> None:
        self._work = work
        self._outcomes: list[T] = []
        self._error: BaseException | None = None
        self.is_done = False
        self.served: asyncio.Future[None] | None = None

    def run(self, rows: Rows) -> None:
        """Do it; what comes of it counts once the transaction is synced."""
        self._error = None
        self._outcomes = [self._work(rows)]

    def fail(self, error: BaseException) -> None:
        """It cannot be done."""
        self._error = error

    def result(self) -> T:
        """What came of it.

        Raises:
            JournalError: it could not be done; nothing of it was written.
        """
        if self._error is not None:
            raise self._error
        return self._outcomes[0]


class Store:
    """The database in a folder. Every method is for one thread, and raises `JournalError` only.

    Args:
        path: the folder, absolute.
        senders: the submissions of this process, by intent id; kept by the caller.
        store_prompts: whether requests are kept.
        changed: told after each transaction that wrote something.
    """

    def __init__(
        self,
        path: Path,
        senders: Mapping[str, Sender],
        *,
        store_prompts: bool,
        changed: Callable[[], None],
    ) -> None:
        self._folder = Folder(path)
        self._border = _Border(self._folder)
        self._owners = Owners(path / "owners")
        self._senders = senders
        self._store_prompts = store_prompts
        self._changed = changed
        self._rows: Rows | None = None
        self._writes = 0
        self._openings = 0
        self._prune_at = 0.0

    # ─── what callers want ───────────────────────────────────────────────────────────────────────

    def read(self, work: Callable[[Rows], T]) -> T:
        """Do what only reads."""
        with self._border:
            if self._rows is None:
                with self._exclusive():
                    pass
            with _forks.none():
                try:
                    return work(self._opened())
                except sqlite3.Error:
                    self._disconnect()
                    raise

    def look(self, jobs: Sequence[Job[Any]]) -> None:
        """Do what only reads, all in one go; each job is told what came of it."""
        left = list(jobs)
        while left:
            begun: list[Job[Any]] = []
            try:
                self.read(partial(_run_all, jobs=left, begun=begun))
            except JournalError as error:
                # Whoever failed has begun as the last one; if nobody has, the journal is shut.
                for job in begun[-1:] or left:
                    job.fail(_copy(error))
            for job in begun or left:
                job.is_done = True
            left = left[len(begun) or len(left) :]

    def write(self, jobs: Sequence[Job[Any]]) -> None:
        """Do what writes, all in one synced transaction; each job is told what came of it.

        If that transaction fails, each job gets one of its own.
        """
        begun = False
        try:
            with self._border, self._exclusive() as rows:
                begun = True
                self._transact(rows, jobs)
        except JournalError as error:
            for job in jobs:
                if begun and len(jobs) > 1:
                    self.write([job])
                else:
                    job.fail(_copy(error))
        for job in jobs:
            job.is_done = True

    def once(self, work: Callable[[Rows], T]) -> T:
        """Do one thing that writes."""
        job = Job(work)
        self.write([job])
        return job.result()

    def find(self, work: Callable[[Rows], Row | None]) -> Row | None:
        """The row that the work finds. Nobody is sending for a dead owner: that is UNKNOWN."""
        row = self.read(work)
        if row is not None and row.intent.state is State.SENDING:
            self.bury()
            row = self.read(work)
        return row

    def bury(self) -> None:
        """What dead owners were sending is UNKNOWN."""
        if self.read(Rows.abandoned):
            self.once(Rows.bury)

    def version(self) -> tuple[int, int]:
        """Another one whenever somebody else has written, or one of the senders has died."""
        self.bury()
        version = self.read(lambda rows: rows.connection.execute("PRAGMA data_version").fetchone())
        return self._openings, version[0]

    def prune(self, older_than: float) -> int:
        """Remove what was over for so many seconds; how many rows."""
        before, removed = time.time() - older_than, 0
        while some := self.once(lambda rows: rows.prune(before)):
            removed += some
        return removed

    @property
    def is_untidy(self) -> bool:
        """Whether `tidy` has something to do."""
        return self._rows is not None and (
            self._writes >= _CHECKPOINT_EVERY or time.monotonic() >= self._prune_at
        )

    def tidy(self) -> None:
        """Move what was written into the database file, and prune. A failure is only logged."""
        if self._rows is None:
            return  # closed in the meantime
        try:
            if self._writes >= _CHECKPOINT_EVERY:
                self._writes = 0
                with self._border, self._exclusive() as rows:
                    rows.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            if time.monotonic() >= self._prune_at:
                self._prune_at = time.monotonic() + _PRUNE_EVERY
                self.prune(KEPT)
        except JournalError:
            _log.warning("the journal could not be tidied; trying again later", exc_info=True)

    def check(self) -> JournalReport:
        """See whether the database is whole, and what is in it."""
        return self.read(self._report)

    def close(self) -> None:
        """Let go of everything; the next use opens it again."""
        with suppress(JournalError), self._border, self._folder.lock.held(), _forks.none():
            self._disconnect()
        # Not even then does anything stay open. A last connection that checkpoints without the lock
        # has SQLite's own exclusive one.
        with _forks.none():
            self._disconnect()
        self._owners.leave()
        self._folder.leave()
        _forks.opened.discard(self)

    def abandon(self) -> tuple[int, int] | None:
        """See `Forkable.abandon`."""
        for descriptor in (self._folder.descriptor, self._owners.descriptor):
            if descriptor is not None:
                os.close(descriptor)  # without unlocking: that would unlock it for the parent
        if self._rows is not None:
            import ctypes

            # Not even at the end of this process may it be closed: it could remove the WAL.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._rows.connection))
        return self._folder.identity

    # ─── the connection ──────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _exclusive(self) -> Iterator[Rows]:
        """The rows, under the lock. A connection that failed is not used again."""
        if self._rows is None:
            _forks.watch()
            _forks.opened.add(self)
        lock = self._folder.lock
        if self._folder.identity in _forks.inherited:
            raise JournalError(
                f"{self._folder.path} was open in the parent process when this one was forked: "
                "start processes with 'spawn', or open the journal only after the fork"
            )
        with lock.held(), _forks.none():
            try:
                yield self._opened()
            except sqlite3.Error:
                self._disconnect()
                raise

    def _opened(self) -> Rows:
        if self._rows is None:
            self._rows = self._open()
        else:
            self._folder.check_unmoved()
        return self._rows

    def _open(self) -> Rows:
        self._folder.furnish(_draw)
        connection = _connect(self._folder.database)
        try:
            _schema.check(connection, self._folder.database)
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").fetchall()
            _refuse_damage(connection, self._folder.database)
            seal = Seal(self._folder.key(), is_used=not self._store_prompts)
        except BaseException:
            connection.close()
            raise
        self._openings += 1
        if _size(self._folder.wal) > _LARGE_WAL:
            self._writes = _CHECKPOINT_EVERY
        return Rows(connection, self._owners, self._senders, seal)

    def _disconnect(self) -> None:
        rows, self._rows = self._rows, None
        if rows is not None:
            with suppress(sqlite3.Error):
                rows.connection.close()

    # ─── transactions ────────────────────────────────────────────────────────────────────────────

    def _transact(self, rows: Rows, jobs: Sequence[Job[Any]]) -> None:
        connection = rows.connection
        before = connection.total_changes
        connection.execute("BEGIN IMMEDIATE")
        try:
            _schema.check_unchanged(connection, self._folder.database)
            if not self._all_went(rows, jobs):
                for job in jobs:
                    self._attempt(rows, job)
            if connection.in_transaction:
                connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if connection.total_changes != before:
            self._writes += len(jobs)
            self._changed()

    def _all_went(self, rows: Rows, jobs: Sequence[Job[Any]]) -> bool:
        """Run all jobs, which as a rule can be done; if one cannot, nothing of any stays."""
        try:
            with self._border:
                for job in jobs:
                    job.run(rows)
        except JournalError as error:
            if not rows.connection.in_transaction:
                raise
            rows.connection.execute("ROLLBACK")
            if len(jobs) > 1:
                rows.connection.execute("BEGIN IMMEDIATE")
                return False
            jobs[0].fail(error)
        return True

    def _attempt(self, rows: Rows, job: Job[Any]) -> None:
        """Run one job; if it fails, nothing of it stays, and everything of the others."""
        connection = rows.connection
        connection.execute("SAVEPOINT job")
        try:
            with self._border:
                job.run(rows)
        except JournalError as error:
            if not connection.in_transaction:
                raise
            job.fail(error)
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    def _report(self, rows: Rows) -> JournalReport:
        execute = rows.connection.execute
        problems = [row[0] for row in execute("PRAGMA integrity_check").fetchall()]
        counts = execute("SELECT state, count(*) FROM intents WHERE NOT pruned GROUP BY state")
        spent = execute("SELECT count(*) FROM intents WHERE pruned").fetchone()[0]
        return JournalReport(
            path=self._folder.database,
            problems=tuple(problem for problem in problems if problem != "ok"),
            counts={State(state): count for state, count in counts.fetchall()},
            spent_keys=spent,
            owners=sum(map(self._owners.is_alive, self._owners.names())),
            schema=_schema.version(rows.connection),
            size=_size(self._folder.database) + _size(self._folder.wal),
        )


class _Border:
    """A block in which SQLite's errors and the system's become ours.

    It is crossed several times in each transaction, so it is no generator.

    Args:
        folder: where the journal is.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if error is not None and (told := self._told(error)) is not None:
            raise JournalError(told) from error

    def _told(self, error: BaseException) -> str | None:
        path = self._folder.database
        if isinstance(error, sqlite3.Error):
            name = getattr(error, "sqlite_errorname", None) or ""
            kind = "_".join(name.split("_")[:2])
            advice = _ADVICE.get(kind, "run 'midapi journal check' on it")
            return f"the journal {path} cannot be used: {error} ({name or 'SQLite'}); {advice}"
        if isinstance(error, OSError):
            where = error.filename or self._folder.path
            return (
                f"the journal cannot be used: {error.strerror or error} ({where}); see that its "
                "folder is there, that this user may write to it, and that the disk has space"
            )
        if isinstance(error, UnicodeError):
            return f"the journal {path} cannot hold this text: {error}"
        return None


def _run_all(rows: Rows, jobs: Sequence[Job[Any]], begun: list[Job[Any]]) -> None:
    """Run jobs that only read; tells which ones were begun."""
    for job in jobs:
        begun.append(job)
        job.run(rows)


def _copy(error: JournalError) -> JournalError:
    """An error for each caller: one that is raised twice would gather tracebacks."""
    copy = JournalError(*error.args)
    copy.__cause__ = error.__cause__
    return copy


def _connect(path: Path) -> sqlite3.Connection:
    """A connection to a database that is there already.

    It belongs to one thread; at the interpreter's end that thread is gone, and another one closes.
    """
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=_BUSY,
        isolation_level=None,
        check_same_thread=False,
    )


def _refuse_damage(connection: sqlite3.Connection, path: Path) -> None:
    if _size(path) > _CHECKED:
        return
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise JournalError(f"the journal {path} is damaged ({found}): {_RESTORE}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _draw(path: Path) -> None:
    """Make an empty database, whole in its one file."""
    connection = _connect(path)
    try:
        _schema.make(connection)
    finally:
        connection.close()
