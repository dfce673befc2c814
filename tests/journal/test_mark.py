"""S23: a -wal or a database that is lost, damaged or replaced never makes a paid key free again.

Each test buys forty keys, damages the files, and claims the forty keys again: every one of them is
still bought, or the journal says what is wrong with it.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from midapi_async.errors import JournalError
from midapi_async.journal import Claimed, Standing, State
from midapi_async.journal.sqlite import SQLiteJournal, store
from midapi_async.journal.sqlite.table import SQLiteTable
from tests.journal.world import SCOPE, accepted, claim, claimed, ids, in_thread, intent, standing
from tests.support.scripted import ScriptedServer
from tests.world import client_of, selling, submits

pytestmark = pytest.mark.fault("S23")
ROOT = Path(__file__).parents[2]
KEYS = [f"key {n}" for n in range(40)]
DATABASE, WAL, LOCK = "journal.sqlite", "journal.sqlite-wal", "journal.lock"
HALF_WAY = "half way"  # the state of a copy that was made after twenty keys


async def checkpoint(journal: SQLiteJournal) -> None:
    """Move what is in the WAL into the database file."""

    def move(its: store.Store) -> None:
        with its._locked() as table:
            its._checkpoint(table.connection)

    await in_thread(journal, move)


async def bought(folder: Path, *, moved: int = 0) -> Path:
    """Buy forty keys; where the folder lies as a killed process has left it.

    Args:
        folder: where the journal is made; beside it lies a copy that was made half way.
        moved: after so many keys, what was written is moved from the WAL into the database.
    """
    journal = SQLiteJournal(folder)
    for n, key in enumerate(KEYS):
        if n == moved > 0:
            await checkpoint(journal)
        if n == 20:
            shutil.copytree(folder, folder.with_name(HALF_WAY))
        await accepted(journal, intent(key=key))
    if moved == len(KEYS):
        await checkpoint(journal)
    killed = folder.with_name("killed")
    shutil.copytree(folder, killed)
    await journal.aclose()
    return killed


async def claim_again(folder: Path) -> str:
    """The error that says what is wrong; empty if all that was paid for is there."""
    journal = SQLiteJournal(folder)
    wanted = [claim(journal, intent(key=key)) for key in KEYS]
    answers = await asyncio.gather(*wanted, return_exceptions=True)
    await journal.aclose()
    assert not [each for each in answers if isinstance(each, Claimed)], "a paid key was free"
    errors = [str(each) for each in answers if isinstance(each, BaseException)]
    assert {type(each) for each in answers} <= {JournalError, Standing}
    for key, each in zip(KEYS, answers, strict=True):
        if isinstance(each, Standing) and each.intent.key == key:
            assert each.intent.state is State.ACCEPTED
    return errors[0] if errors else ""


async def refused(folder: Path, *words: str) -> None:
    """Every opening is an error that names the folder and what is wrong, by reading, too."""
    for _ in range(2):
        error = await claim_again(folder)
        for each in (str(folder), *words):
            assert each in error
    journal = SQLiteJournal(folder)
    with pytest.raises(JournalError):
        await journal.rows(SCOPE)
    await journal.aclose()


async def kept(folder: Path) -> None:
    """All that was paid for is there, and the journal is whole."""
    assert await claim_again(folder) == ""
    journal = SQLiteJournal(folder)
    assert await journal.check() == []
    await claimed(journal)
    await journal.aclose()


def flip(path: Path, byte: int, bit: int = 0) -> None:
    """Change one bit of a file; a negative byte counts from its end."""
    with path.open("r+b") as file:
        file.seek(byte, os.SEEK_SET if byte >= 0 else os.SEEK_END)
        found = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([found ^ 1 << bit]))


def set_flag(folder: Path) -> None:
    """What a process leaves that is killed during a checkpoint."""
    with (folder / LOCK).open("r+b") as file:
        file.seek(store._MARK_AT)
        commits, _ = store._MARK.unpack(file.read(store._MARK.size))
        file.seek(store._MARK_AT)
        file.write(store._MARK.pack(commits, True))


async def test_a_process_that_was_killed(folder: Path) -> None:
    """Nothing is lost, also if it had moved some of it before."""
    await kept(await bought(folder, moved=25))


# ─── the -wal ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moved", [0, 10, 39])
async def test_a_wal_that_was_removed(folder: Path, moved: int) -> None:
    """The opening counts the commits that are gone."""
    killed = await bought(folder, moved=moved)
    (killed / WAL).unlink()
    await refused(killed, f"has lost its last {2 * (40 - moved)} commits", "-wal", "backup")


async def test_a_wal_that_is_not_needed_any_more(folder: Path) -> None:
    """After a checkpoint everything is in the database."""
    killed = await bought(folder, moved=40)
    (killed / WAL).unlink()
    await kept(killed)


def test_a_wal_that_was_removed_after_a_real_kill(folder: Path) -> None:
    """The same with a process that has ended in the middle of its work."""
    program = (
        "import asyncio, os, sys\n"
        "from tests.journal.test_mark import *\n"
        "async def main():\n"
        "    journal = SQLiteJournal(sys.argv[1])\n"
        "    for key in KEYS:\n"
        "        await accepted(journal, intent(key=key))\n"
        "    os._exit(7)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 7
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    asyncio.run(kept(copy))
    (folder / WAL).unlink()
    asyncio.run(refused(folder, "has lost its last 80 commits"))


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.99])
async def test_a_wal_that_was_truncated(folder: Path, part: float) -> None:
    """Cut anywhere: SQLite takes what is left for all there ever was, but the mark does not."""
    killed = await bought(folder)
    os.truncate(killed / WAL, int((killed / WAL).stat().st_size * part))
    await refused(killed, "has lost its last", "commits")


async def test_garbage_behind_the_wal(folder: Path) -> None:
    """What a killed process had not committed is no damage."""
    killed = await bought(folder)
    with (killed / WAL).open("ab") as file:
        file.write(os.urandom(9000))
    await kept(killed)


@pytest.mark.parametrize("byte", [0, 16, 32, 100, "middle", -1])
async def test_a_flipped_bit_in_the_wal(folder: Path, byte: int | str) -> None:
    """At the beginning, in the middle and at the end."""
    killed = await bought(folder)
    middle = (killed / WAL).stat().st_size // 2
    flip(killed / WAL, middle if isinstance(byte, str) else byte)
    await refused(killed, "has lost its last", "commits")


@pytest.mark.timeout(100)
@pytest.mark.parametrize(("name", "moved"), [(WAL, 0), (WAL, 20), (DATABASE, 20), (DATABASE, 40)])
async def test_flipped_bits_anywhere(folder: Path, name: str, moved: int) -> None:
    """25 flips in each file: an error that names the journal, or nothing was lost."""
    killed = await bought(folder, moved=moved)
    if moved == 40:
        (killed / WAL).unlink()
    chance, size, errors = random.Random(moved), (killed / name).stat().st_size, 0
    for number in range(25):
        copy = folder.with_name(f"copy {number}")
        shutil.copytree(killed, copy)
        flip(copy / name, chance.randrange(size), chance.randrange(8))
        if error := await claim_again(copy):
            errors += 1
            assert str(copy) in error or "row that cannot be read" in error
        shutil.rmtree(copy)
    assert errors > (20 if name == WAL else 0)


# ─── the database ────────────────────────────────────────────────────────────────────────────────


def pages_of(folder: Path, table: str) -> list[tuple[int, int]]:
    """Where the cells of a table and of its indexes lie in the database: first byte, last byte."""
    database = sqlite3.connect(f"file:{folder / DATABASE}?immutable=1", uri=True)
    find = "SELECT rootpage FROM sqlite_schema WHERE tbl_name = ?"
    roots = [page for (page,) in database.execute(find, (table,))]
    database.close()
    data, found = (folder / DATABASE).read_bytes(), []
    while roots:
        page = data[(start := (roots.pop() - 1) * 4096) : start + 4096]
        cells = int.from_bytes(page[5:7], "big")
        if cells < 4096:
            found.append((start + cells, start + 4096))
        if page[0] in (2, 5):  # an inner page
            count = int.from_bytes(page[3:5], "big")
            at = [int.from_bytes(page[12 + 2 * n : 14 + 2 * n], "big") for n in range(count)]
            roots += [int.from_bytes(page[each : each + 4], "big") for each in at]
            roots.append(int.from_bytes(page[8:12], "big"))
    return found


@pytest.mark.timeout(100)
async def test_flipped_bits_in_the_intents_and_their_indexes(folder: Path) -> None:
    """Sixty flips where the rows are: most are found at opening, and none frees a key."""
    killed = await bought(folder, moved=40)
    (killed / WAL).unlink()
    chance, places, errors = random.Random(1), pages_of(killed, "intents"), 0
    assert len(places) > 8
    for number in range(60):
        copy = folder.with_name(f"copy {number}")
        shutil.copytree(killed, copy)
        flip(copy / DATABASE, chance.randrange(*chance.choice(places)), chance.randrange(8))
        errors += bool(await claim_again(copy))
        shutil.rmtree(copy)
    assert errors > 30


@pytest.mark.parametrize(("moved", "old_wal"), [(0, "older"), (20, "older"), (20, "none")])
async def test_an_older_copy_is_put_back(folder: Path, moved: int, old_wal: str) -> None:
    """A backup that is older than the lock file beside it has fewer commits."""
    killed = await bought(folder, moved=moved)
    older = folder.with_name(HALF_WAY)
    for name in (DATABASE, WAL):
        (killed / name).unlink()
        if name == DATABASE or old_wal == "older":
            shutil.copy2(older / name, killed / name)
    await refused(killed, "has lost its last", "an older database was put back")


async def test_an_older_database_under_a_newer_wal(folder: Path) -> None:
    """The -wal has the newest count; that rows are missing is found by comparing the indexes."""
    journal = SQLiteJournal(folder)
    for key in KEYS[:39]:
        await accepted(journal, intent(key=key))
        if key == KEYS[9]:
            await checkpoint(journal)
            shutil.copy2(folder / DATABASE, folder.with_name("older"))
    await checkpoint(journal)
    await accepted(journal, intent(key=KEYS[39]))  # the -wal begins again
    killed = folder.with_name("killed")
    shutil.copytree(folder, killed)
    await journal.aclose()
    shutil.copy2(folder.with_name("older"), killed / DATABASE)
    await refused(killed, "damaged")


async def test_a_whole_backup_is_put_back(folder: Path) -> None:
    """All files of a folder from the same moment are a journal; it knows what was bought then."""
    await bought(folder)
    journal = SQLiteJournal(folder.with_name(HALF_WAY))
    assert len(await ids(journal, State.ACCEPTED)) == 20
    await claimed(journal, intent(key=KEYS[20]))
    await journal.aclose()


# ─── while it is open ────────────────────────────────────────────────────────────────────────────


def _remove(path: Path, older: Path) -> None:
    path.unlink()


def _replace(path: Path, older: Path) -> None:
    shutil.copy2(older / path.name, path.with_name("new"))
    path.with_name("new").rename(path)


@pytest.mark.parametrize("name", [WAL, DATABASE, LOCK])
@pytest.mark.parametrize("damage", [_remove, _replace])
async def test_a_file_that_is_lost_while_the_journal_is_open(
    folder: Path, name: str, damage: Callable[[Path, Path], None]
) -> None:
    """The next use is an error that names the file; after closing, nothing was lost or an error."""
    killed = await bought(folder, moved=10)
    journal = SQLiteJournal(killed)
    await claimed(journal)
    damage(killed / name, folder.with_name(HALF_WAY))
    for call in (
        lambda: claim(journal, intent(key=KEYS[30])),
        lambda: journal.find(key=(SCOPE, KEYS[30])),
        lambda: journal.rows(SCOPE),
    ):
        with pytest.raises(JournalError, match=f"{name} was removed or replaced"):
            await call()
    await journal.aclose()
    await claim_again(killed)


@pytest.mark.parametrize("visitor", [False, True])
async def test_a_wal_that_is_removed_while_two_have_it_open(folder: Path, visitor: bool) -> None:
    """Closing saves everything, as the error says, also if somebody looked in meanwhile."""
    journals = [SQLiteJournal(folder), SQLiteJournal(folder)]
    for n, key in enumerate(KEYS):
        await accepted(journals[n % 2], intent(key=key))
    (folder / WAL).unlink()
    for journal in journals:
        with pytest.raises(JournalError, match="close the journal in every program"):
            await claim(journal, intent(key="more"))
    if visitor:
        assert "journal" in await claim_again(folder)
    for journal in journals:
        await journal.aclose()
    await kept(folder)


def _copy_over(folder: Path, older: Path) -> None:
    for name in (DATABASE, WAL, LOCK):
        (folder / name).write_bytes((older / name).read_bytes())


def _copy_database(folder: Path, older: Path) -> None:
    (folder / DATABASE).write_bytes((older / DATABASE).read_bytes())


def _cut_wal(folder: Path, older: Path) -> None:
    os.truncate(folder / WAL, (folder / WAL).stat().st_size // 2)


@pytest.mark.parametrize("damage", [_copy_over, _copy_database, _cut_wal])
async def test_files_that_are_overwritten_while_the_journal_is_open(
    folder: Path, damage: Callable[[Path, Path], None]
) -> None:
    """With another program's write the files keep their names; all the same no key gets free."""
    killed = await bought(folder, moved=30)
    journal = SQLiteJournal(killed)
    await claimed(journal)
    damage(killed, folder.with_name(HALF_WAY))
    wanted = [claim(journal, intent(key=key)) for key in KEYS]
    answers = await asyncio.gather(*wanted, return_exceptions=True)
    assert {type(each) for each in answers} <= {JournalError, Standing}
    await journal.aclose()
    await claim_again(killed)


@pytest.mark.timeout(100)
@pytest.mark.parametrize(("name", "moved"), [(WAL, 0), (DATABASE, 40)])
async def test_flipped_bits_while_the_journal_is_open(folder: Path, name: str, moved: int) -> None:
    """A program that has it open sees them at its next claim, though SQLite reports nothing."""
    killed = await bought(folder, moved=moved)
    chance, errors = random.Random(7), 0
    if moved:
        (killed / WAL).unlink()
        places = pages_of(killed, "intents")
    else:  # the newest pages; older ones are not read any more
        places = [((size := (killed / WAL).stat().st_size) - 8 * 4120, size)]
    for number in range(30):
        copy = folder.with_name(f"copy {number}")
        shutil.copytree(killed, copy)
        journal = SQLiteJournal(copy)
        await claimed(journal)
        time.sleep(0.01)  # noqa: ASYNC251 - a clock of files ticks every 4 ms or so
        flip(copy / name, chance.randrange(*chance.choice(places)), chance.randrange(8))
        wanted = [claim(journal, intent(key=key)) for key in KEYS]
        answers = await asyncio.gather(*wanted, return_exceptions=True)
        assert {type(each) for each in answers} <= {JournalError, Standing}
        errors += JournalError in {type(each) for each in answers}
        await journal.aclose()
        shutil.rmtree(copy)
    assert errors > (5 if moved else 2)


async def test_an_older_database_beside_a_process_that_has_the_newer_one_open(folder: Path) -> None:
    """Who opens it then is refused; nobody compares rows and indexes while others are alive."""
    killed = await bought(folder, moved=30)
    journal = SQLiteJournal(killed)
    await claimed(journal)
    _replace(killed / DATABASE, folder.with_name(HALF_WAY))
    assert "was replaced while another process has the old one open" in await claim_again(killed)
    await journal.aclose()
    assert await claim_again(killed) != ""


async def test_another_program_that_only_writes_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of a file's time is no damage: the rows are compared once, and it goes on."""
    journal = SQLiteJournal(folder)
    await accepted(journal, intent(key=KEYS[0]))
    openings, opened = list[store.Store](), store.Store._open

    def record(its: store.Store) -> SQLiteTable:
        openings.append(its)
        return opened(its)

    monkeypatch.setattr(store.Store, "_open", record)
    for name in (DATABASE, WAL):
        os.utime(folder / name)
        for _ in range(3):
            await standing(journal, intent(key=KEYS[0]))
            await claimed(journal)
    assert len(openings) == 2
    await journal.aclose()


# ─── with a client ───────────────────────────────────────────────────────────────────────────────


def _flip_key(folder: Path) -> None:
    flip(folder / DATABASE, (folder / DATABASE).read_bytes().rindex(b"key 7") + 4)


def _flip_index(folder: Path) -> None:
    data = (folder / DATABASE).read_bytes()
    found = [each.start() for each in re.finditer(f"{SCOPE.split()[1]}key 7".encode(), data)]
    flip(folder / DATABASE, found[0] + len("defaultkey "))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "the -wal is removed": lambda folder: (folder / WAL).unlink(),
    "a bit at its beginning": lambda folder: flip(folder / WAL, 3),
    "half of the -wal": lambda folder: _cut_wal(folder, folder),
    "a bit in a key": _flip_key,
    "a bit in the index of keys": _flip_index,
}


@pytest.mark.real_time
async def test_forty_orders_a_kill_and_damaged_files(tmp_path: Path) -> None:
    """Five kinds of damage after a SIGKILL: no order is paid again, and each is an error."""
    folder = tmp_path / "journal"
    program = (
        "import asyncio, os, signal, sys\n"
        "from tests.journal.test_mark import KEYS\n"
        "from tests.world import client_of\n"
        "async def main():\n"
        "    async with client_of(sys.argv[1], journal=sys.argv[2]) as client:\n"
        "        await asyncio.gather(*(client.generate('a fox', key=key) for key in KEYS))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    async with ScriptedServer(then=selling()) as server:
        command = (sys.executable, "-c", program, server.url, str(folder))
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
        assert await process.wait() == -signal.SIGKILL
        assert len(submits(server)) == 40
        for name, damage in DAMAGES.items():
            copy = tmp_path / name
            shutil.copytree(folder, copy)
            if "-wal" not in name and "beginning" not in name:
                with closing(sqlite3.connect(copy / DATABASE)) as database:
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            damage(copy)
            for _ in range(2):
                with pytest.raises(JournalError, match="backup"):
                    async with client_of(server, journal=copy) as client:
                        await client.generate("a fox", key=KEYS[0])
        assert len(submits(server)) == 40
        async with client_of(server, journal=folder) as client:
            handles = [await client.generate("a fox", key=key) for key in KEYS]
        assert all(handle.replayed for handle in handles)
        assert len(submits(server)) == 40


# ─── checkpoints ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moved", [0, 20, 40])
async def test_a_kill_during_a_checkpoint(folder: Path, moved: int) -> None:
    """With the -wal there, nothing is lost, and the checkpoint is finished at the opening."""
    killed = await bought(folder, moved=moved)
    set_flag(killed)
    await kept(killed)
    (killed / WAL).unlink(missing_ok=True)
    await kept(killed)


@pytest.mark.parametrize("damage", ["removed", "emptied", "header", "first frame"])
async def test_a_wal_that_is_lost_during_a_checkpoint(folder: Path, damage: str) -> None:
    """The database may have the newest count and not the rows: that is an error."""
    killed = await bought(folder)
    set_flag(killed)
    # So far the checkpoint had come: the count was moved, and the rows were not.
    whole = folder.with_name("whole")
    shutil.copytree(killed, whole)
    await kept(whole)  # its closing moves everything
    database = sqlite3.connect(f"file:{whole / DATABASE}?immutable=1", uri=True)
    find = "SELECT rootpage FROM sqlite_schema WHERE name = 'meta'"
    start = (database.execute(find).fetchone()[0] - 1) * 4096
    database.close()
    with (killed / DATABASE).open("r+b") as file:
        file.seek(start)
        file.write((whole / DATABASE).read_bytes()[start : start + 4096])
    if damage == "removed":
        (killed / WAL).unlink()
    elif damage == "emptied":
        os.truncate(killed / WAL, 0)
    else:
        flip(killed / WAL, 5 if damage == "header" else 60)
    await refused(killed, "-wal was removed or damaged while it was being moved", "backup")


async def test_a_checkpoint_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The -wal stays, or closing has moved all of it; either way it opens again."""

    class Full(sqlite3.Connection):
        def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
            if sql.startswith("PRAGMA wal_checkpoint"):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *args)  # type: ignore[arg-type]  # passed on

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **o: connect(*a, factory=Full, **o))
    killed = await bought(folder)
    journal = SQLiteJournal(killed)
    await journal.rows(SCOPE)
    with pytest.raises(sqlite3.OperationalError):
        await checkpoint(journal)
    monkeypatch.undo()
    await journal.aclose()
    await kept(killed)


# ─── the mark ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moved", [0, 20])
@pytest.mark.parametrize("size", [None, 0, 26, 68, 100])
async def test_the_mark_is_lost(folder: Path, size: int | None, moved: int) -> None:
    """Without it nobody can see whether the -wal is whole, or was lost together with it."""
    killed = await bought(folder, moved=moved)
    for wal in ("there", "removed"):
        (killed / LOCK).unlink() if size is None else os.truncate(killed / LOCK, size)
        await refused(killed, f"{LOCK} was removed or cut short", "restore the folder")
        if wal == "there":
            (killed / WAL).unlink(missing_ok=True)


@pytest.mark.parametrize("byte", range(9))
async def test_a_flipped_bit_in_the_mark(folder: Path, byte: int) -> None:
    """It is an error, or nothing was lost."""
    killed = await bought(folder)
    flip(killed / LOCK, store._MARK_AT + byte, 3)
    error = await claim_again(killed)
    assert error == "" or str(killed) in error


async def test_a_damaged_count(folder: Path) -> None:
    """A count in the database that is no number is damage, not a crash."""
    journal = SQLiteJournal(folder)
    await claimed(journal)
    await journal.aclose()
    for value in ("'many'", "NULL", "1.5", "x'00'"):
        database = sqlite3.connect(folder / DATABASE)
        database.executescript(
            "PRAGMA writable_schema=1;"
            "UPDATE sqlite_schema SET sql = 'CREATE TABLE meta (commits)' WHERE name = 'meta';"
        )
        database.close()
        database = sqlite3.connect(folder / DATABASE)
        database.executescript(f"UPDATE meta SET commits = {value}")  # noqa: S608 - our own
        database.close()
        assert "is damaged" in await claim_again(folder)
    database = sqlite3.connect(folder / DATABASE)
    database.executescript("DELETE FROM meta")
    database.close()
    assert "is damaged" in await claim_again(folder)


async def test_every_commit_is_counted(sqlite: SQLiteJournal, other: SQLiteJournal) -> None:
    """Two processes count on, and the mark is where the database is after each call."""

    def counts(its: store.Store) -> tuple[int, tuple[int, bool]]:
        with its._locked() as table:
            return its._commits(table.connection), its._mark()

    await claimed(sqlite)
    before, _ = await in_thread(sqlite, counts)
    for n in range(1, 6):
        for side, journal in enumerate((sqlite, other)):
            await claim(journal, intent())
            expected = before + 2 * n - 1 + side
            assert await in_thread(journal, counts) == (expected, (expected, False))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What a journal does for safety, in order: commits, checkpoints, marks and their syncs."""
    seen: list[object] = []
    write = store.Store._write_mark

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
            if sql == "COMMIT" or "wal_checkpoint" in sql:
                seen.append(sql)
            return super().execute(sql, *args)  # type: ignore[arg-type]  # passed on

    def mark(its: store.Store, commits: int, *, is_checkpointing: bool) -> None:
        write(its, commits, is_checkpointing=is_checkpointing)
        seen.append(("mark", is_checkpointing))
        assert its._mark() == (commits, is_checkpointing)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **o: connect(*a, factory=Connection, **o))
    monkeypatch.setattr(store.Store, "_write_mark", mark)
    monkeypatch.setattr(store, "sync", lambda _: seen.append("sync"))
    return seen


async def test_a_commit_is_marked_and_synced(steps: list[object], sqlite: SQLiteJournal) -> None:
    """Before its caller goes on, and only after the commit: a mark too many would be an error."""
    await claimed(sqlite)
    steps.clear()
    await claimed(sqlite)
    assert steps == ["COMMIT", "sync", ("mark", False)]


async def test_a_checkpoint_sets_a_flag_while_it_runs(
    steps: list[object], sqlite: SQLiteJournal
) -> None:
    """Between its syncs the database may have the newest count without the rows."""
    await claimed(sqlite)
    steps.clear()
    await checkpoint(sqlite)
    moves = "PRAGMA wal_checkpoint(PASSIVE)"
    assert steps == ["sync", ("mark", True), moves, "sync", ("mark", False)]


async def test_how_the_database_is_opened(sqlite: SQLiteJournal) -> None:
    """Each commit is synced, and SQLite moves nothing into the database behind our back."""
    await claimed(sqlite)

    def pragmas(its: store.Store) -> list[object]:
        names = ("journal_mode", "synchronous", "wal_autocheckpoint", "fullfsync")
        with its._locked() as table:
            return [table.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await in_thread(sqlite, pragmas) == ["wal", 2, 0, 1]
