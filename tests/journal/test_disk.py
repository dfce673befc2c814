"""A disk that is full, broken or locked by somebody else (S16, S17)."""

import asyncio
import os
import sqlite3
from contextlib import aclosing
from pathlib import Path

import pytest

from midapi_async.errors import JournalError
from midapi_async.journal import Intent, State, _store
from midapi_async.journal.sqlite import SQLiteJournal
from tests.journal.world import SCOPE, intent, together

LONG = {"note": "x" * 4000}


async def full(journal: SQLiteJournal, *, spare: int = 0) -> None:
    """From now on the disk has so many pages left."""

    def limit(store: _store.Store) -> None:
        assert store._rows is not None
        execute = store._rows.connection.execute
        pages = execute("PRAGMA page_count").fetchone()[0] + spare
        execute(f"PRAGMA max_page_count={pages}").fetchall()

    assert journal._writer is not None
    await journal._writer.run(limit)


async def roomy(journal: SQLiteJournal) -> None:
    """The disk has space again."""
    await full(journal, spare=1_000_000)


async def test_s16_a_full_disk(sqlite: SQLiteJournal) -> None:
    """Nothing is claimed; what is there can be read; with space again it goes on by itself."""
    row = await sqlite.claim(intent(key="k"))
    await full(sqlite)
    for _ in range(3):
        with pytest.raises(JournalError, match=r"journal\.sqlite .*full.*free some space"):
            await sqlite.claim(intent(key="lost", metadata=LONG))
    assert await sqlite.rows(SCOPE) == [row]
    assert await sqlite.find(key=(SCOPE, "lost")) is None
    assert list(sqlite._senders) == [row.intent_id]
    await roomy(sqlite)
    await sqlite.claim(intent(key="lost", metadata=LONG))
    assert (await sqlite.check()).problems == ()


async def test_s16_the_last_space(sqlite: SQLiteJournal) -> None:
    """On a disk that is nearly full, who still has room is not refused with those who have not."""
    row = await sqlite.claim(intent())
    await full(sqlite, spare=3)
    big = [sqlite.claim(intent(metadata=LONG)) for _ in range(5)]
    move = sqlite.advance(row.intent_id, State.ACCEPTED, task_id="t")
    *got, moved = await together(sqlite, *big, move)
    assert not isinstance(moved, BaseException)
    assert State.ACCEPTED is moved.state
    kept = {one.intent_id for one in got if not isinstance(one, BaseException)}
    assert 0 < len(kept) < 5
    assert kept | {row.intent_id} == {row.intent_id for row in await sqlite.rows(SCOPE)}
    await roomy(sqlite)


async def test_s17_written_again_later(sqlite: SQLiteJournal) -> None:
    """A task id that could not be written can be when the disk has space again."""
    row = await sqlite.claim(intent())
    await breaking(sqlite, "UPDATE", sqlite3.OperationalError("disk I/O error"))
    with pytest.raises(JournalError, match="disk I/O error"):
        await sqlite.advance(row.intent_id, State.ACCEPTED, task_id="t")
    assert State.SENDING is (await sqlite.rows(SCOPE))[0].state
    await breaking(sqlite, None, None)
    assert (await sqlite.advance(row.intent_id, State.ACCEPTED, task_id="t")).task_id == "t"


@pytest.mark.parametrize("where", ["BEGIN", "INSERT", "COMMIT", "PRAGMA"])
async def test_s16_an_io_error_at_each_step(sqlite: SQLiteJournal, where: str) -> None:
    """Whatever fails, callers are told, nothing is half-written and the next try goes through."""
    await sqlite.claim(intent())
    await breaking(sqlite, where, sqlite3.OperationalError("disk I/O error"))
    got = await together(sqlite, *(sqlite.claim(intent()) for _ in range(5)))
    assert [JournalError] * 5 == [type(one) for one in got]
    assert len({id(one) for one in got}) == 5
    await breaking(sqlite, None, None)
    assert len(await sqlite.rows(SCOPE)) == 1
    assert len(sqlite._senders) == 1
    await asyncio.gather(*(sqlite.claim(intent()) for _ in range(5)))
    assert len(await sqlite.rows(SCOPE)) == 6


@pytest.mark.parametrize("where", ["COMMIT", "SAVEPOINT", "RELEASE"])
async def test_s16_a_transaction_that_fails_once(sqlite: SQLiteJournal, where: str) -> None:
    """Those who shared it are tried one by one, and nobody is refused without need."""
    await sqlite.claim(intent())
    await breaking(sqlite, where, sqlite3.OperationalError("disk I/O error"), times=1)
    rows = await together(sqlite, *(sqlite.claim(intent()) for _ in range(5)))
    assert len({row.intent_id for row in rows if isinstance(row, Intent)}) == 5
    assert len(await sqlite.rows(SCOPE)) == 6


async def test_reading_from_a_broken_disk(sqlite: SQLiteJournal) -> None:
    """It is our error; with the disk mended it goes on."""
    row = await sqlite.claim(intent())
    await breaking(sqlite, "SELECT", sqlite3.DatabaseError("database disk image is malformed"))
    with pytest.raises(JournalError, match="malformed"):
        await sqlite.find(intent_id=row.intent_id)
    with pytest.raises(JournalError, match="malformed"):
        async with aclosing(sqlite.changes()) as changes:
            await anext(changes)
    assert not sqlite._watchers
    await breaking(sqlite, None, None)
    assert row == await sqlite.find(intent_id=row.intent_id)


async def test_tidying_on_a_broken_disk(
    sqlite: SQLiteJournal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is told but the log; what was claimed stands."""
    await sqlite.claim(intent())
    monkeypatch.setattr(_store, "_CHECKPOINT_EVERY", 1)
    error = sqlite3.OperationalError("disk I/O error")
    await breaking(sqlite, "PRAGMA wal_checkpoint", error)
    await sqlite.claim(intent())
    await sqlite.rows(SCOPE)
    assert "could not be tidied" in caplog.text
    await breaking(sqlite, None, None)
    assert len(await sqlite.rows(SCOPE)) == 2


async def test_s16_locked_by_another_program(
    sqlite: SQLiteJournal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody with the sqlite3 shell who forgets a transaction is waited for, not for ever."""
    monkeypatch.setattr(_store, "_BUSY", 0.1)
    await sqlite.claim(intent())
    shell = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalError, match=r"locked.*another program has locked it"):
        await sqlite.claim(intent())
    assert len(await sqlite.rows(SCOPE)) == 1
    shell.execute("ROLLBACK")
    await sqlite.claim(intent())
    shell.close()
    assert len(await sqlite.rows(SCOPE)) == 2


async def test_s16_a_disk_that_cannot_be_written(
    sqlite: SQLiteJournal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder cannot even be made: an error, and nothing else is left of the try."""

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(JournalError, match=r"Read-only file system.*see that its folder"):
        await sqlite.claim(intent())
    monkeypatch.undo()
    await sqlite.claim(intent())


async def test_a_disk_that_fills_while_the_journal_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half made is no journal; the next try makes a whole one."""
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    journal = SQLiteJournal(folder)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(JournalError, match="No space left"):
        await journal.claim(intent())
    monkeypatch.setattr(os, "fsync", fsync)
    await journal.claim(intent())
    await journal.aclose()


async def breaking(
    journal: SQLiteJournal, where: str | None, error: Exception | None, *, times: int = 10**9
) -> None:
    """From now on statements that begin so fail, also after it was opened again."""
    left = [times]

    class Broken(sqlite3.Connection):
        def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
            if where is not None and sql.startswith(where) and left[0] > 0:
                left[0] -= 1
                assert error is not None
                raise error
            return super().execute(sql, *args)  # type: ignore[arg-type]  # passed on

    def connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Broken)

    def reopen(store: _store.Store) -> None:
        with store._folder.lock.held():
            store._disconnect()

    _store._connect = connect  # undone by the fixture below
    assert journal._writer is not None
    await journal._writer.run(reopen)


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each test the next journal gets real connections again."""
    monkeypatch.setattr(_store, "_connect", _store._connect)
