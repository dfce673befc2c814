"""What the SQLite journal takes for its folder, and what it refuses (L12, L13)."""

import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from midapi_async.errors import JournalError
from midapi_async.journal import State, _folder, _schema
from midapi_async.journal.sqlite import SQLiteJournal
from tests.journal.world import SCOPE, intent

pytestmark = pytest.mark.filterwarnings("error")


async def made(folder: Path, rows: int = 3) -> None:
    """A closed journal with some rows in a folder."""
    journal = SQLiteJournal(folder)
    for _ in range(rows):
        await journal.claim(intent())
    await journal.aclose()


async def refused(folder: Path, *told: str) -> None:
    """Every way into the journal is an error that names the place and what to do."""
    journal = SQLiteJournal(folder)
    calls = (
        lambda: journal.claim(intent()),
        lambda: journal.rows(SCOPE),
        lambda: journal.take_over(SCOPE),
    )
    for call in calls:
        with pytest.raises(JournalError) as caught:
            await call()
        for part in (str(folder), *told):
            assert part in str(caught.value)
    await journal.aclose()


async def test_l13_it_is_private(folder: Path) -> None:
    """The folder is 0700 and each file in it 0600, whatever the umask."""
    before = os.umask(0)
    try:
        journal = SQLiteJournal(folder / "deeper")
        await journal.claim(intent())
    finally:
        os.umask(before)
    path = folder / "deeper"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "owners").stat().st_mode) == 0o700
    files = {each for each in path.rglob("*") if each.is_file()}
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    expected = {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"}
    assert {each.name for each in files if each.parent == path} == expected | {
        "journal.lock",
        "journal.key",
    }
    assert len(list((path / "owners").iterdir())) == 1
    await journal.aclose()
    assert list((path / "owners").iterdir()) == []


async def test_nothing_happens_before_the_first_use(folder: Path) -> None:
    """Neither making nor closing a journal touches the disk."""
    journal = SQLiteJournal(str(folder))
    await journal.aclose()
    assert not folder.exists()


async def test_an_empty_folder_is_taken(folder: Path) -> None:
    """Also one that others may read, and a fresh disk; it is private from then on."""
    folder.mkdir(mode=0o755)
    (folder / "lost+found").mkdir()
    await made(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_l12_a_foreign_folder(folder: Path) -> None:
    """Nothing is written into it."""
    folder.mkdir()
    (folder / "thesis.txt").write_text("…")
    await refused(folder, "holds other things (thesis.txt)", "new or an empty folder")
    assert [each.name for each in folder.iterdir()] == ["thesis.txt"]


async def test_s16_a_file_in_the_folders_place(folder: Path) -> None:
    """It is left as it is."""
    folder.write_text("mine")
    await refused(folder, "is a file", "name another place")
    assert folder.read_text() == "mine"


async def test_s16_a_file_above_the_folder(folder: Path) -> None:
    """The system's own error becomes ours."""
    folder.write_text("mine")
    journal = SQLiteJournal(folder / "deeper")
    with pytest.raises(JournalError, match="cannot be used"):
        await journal.rows(SCOPE)
    await journal.aclose()


@pytest.mark.parametrize("name", [".", "journal.sqlite", "journal.lock", "journal.key"])
async def test_l13_what_others_can_write(folder: Path, name: str) -> None:
    """The folder and each file, with the way to mend it."""
    await made(folder)
    for mode in (0o722, 0o702):
        (folder / name).chmod(mode)
        await refused(folder, "can be written by others", f"chmod go-w {folder / name}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", [".", "journal.sqlite", "journal.lock", "journal.key"])
async def test_l13_what_is_somebody_elses(folder: Path, name: str) -> None:
    """The folder and each file."""
    await made(folder)
    os.chown(folder / name, 1234, -1)
    await refused(folder, "belongs to user 1234", "run as that user")


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.key"])
async def test_l13_a_link(folder: Path, name: str) -> None:
    """A link in a file's place is not followed."""
    await made(folder)
    (folder / name).rename(folder.with_name("elsewhere"))
    (folder / name).symlink_to(folder.with_name("elsewhere"))
    await refused(folder, "no ordinary file")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "fuse.sshfs", "9p"])
async def test_l13_a_network_file_system(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The innermost mount counts, and of two on one place the later one."""
    place = folder.parent / "a share"
    escaped = str(place).replace(" ", r"\040")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:1 / / rw,relatime - ext4 /dev/vda rw\n"
        f"23 22 0:2 / {escaped} rw - ext4 /dev/vdb rw\n"
        f"24 23 0:3 / {escaped} rw,relatime shared:1 - {kind} server:/x rw\n"
        f"25 22 0:4 / {escaped}-not rw - ext4 /dev/vdc rw\n"
    )
    monkeypatch.setattr(_folder, "MOUNTS", mounts)
    place.mkdir()
    await refused(place / "journal", f"network file system ({kind})", "local disk")
    assert list((place / "journal").iterdir()) == []
    await made(folder)  # beside it


async def test_a_system_that_tells_no_mounts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is believed to be local."""
    monkeypatch.setattr(_folder, "MOUNTS", folder / "none")
    await made(folder)


@pytest.mark.parametrize("size", [0, 10, 100, 3000, 8192])
async def test_l12_a_truncated_database(folder: Path, size: int) -> None:
    """It is never taken for an empty one, and stays as it is."""
    await made(folder, 30)
    os.truncate(folder / "journal.sqlite", size)
    await refused(folder)
    assert size == (folder / "journal.sqlite").stat().st_size


@pytest.mark.parametrize("start", [0, 1000, 4096, 20000])
async def test_l12_garbage(folder: Path, start: int) -> None:
    """Damage anywhere is an error."""
    await made(folder, 30)
    with (folder / "journal.sqlite").open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(3000))
    await refused(folder, "damaged", "backup")


async def test_l12_damage_where_nobody_looks_yet(folder: Path) -> None:
    """It is found at opening, before anything is bought, not when it is too late."""
    await made(folder)
    database = sqlite3.connect(folder / "journal.sqlite")
    find = "SELECT rootpage FROM sqlite_schema WHERE name = 'intents_over'"
    (page,) = database.execute(find).fetchone()
    database.close()
    with (folder / "journal.sqlite").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))
    await refused(folder, "damaged", "backup")


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.key"])
async def test_l12_a_file_is_gone(folder: Path, name: str) -> None:
    """A journal that was made is never made again in silence."""
    await made(folder)
    (folder / name).unlink()
    await refused(folder, str(folder / name), "is gone", "backup")
    assert not (folder / name).exists()


async def test_a_lock_file_that_is_gone(folder: Path) -> None:
    """It holds nothing: it is made again."""
    await made(folder, 3)
    (folder / "journal.lock").unlink()
    journal = SQLiteJournal(folder)
    assert len(await journal.rows(SCOPE)) == 3
    await journal.aclose()


async def test_l12_an_interrupted_beginning(folder: Path) -> None:
    """What a crash left of a journal that was never used is made anew."""
    await made(folder, 1)
    (folder / "journal.lock").write_bytes(b"")
    (folder / "journal.sqlite").rename(folder / "journal.sqlite.new")
    os.truncate(folder / "journal.sqlite.new", 5000)
    await made(folder, 1)
    # After the database got its name it only lacks the mark.
    (folder / "journal.lock").write_bytes(b"")
    journal = SQLiteJournal(folder)
    assert len(await journal.rows(SCOPE)) == 1
    await journal.aclose()
    assert (folder / "journal.lock").stat().st_size > 0


async def test_l12_a_foreign_database(folder: Path) -> None:
    """Somebody else's SQLite file in the place of ours stays untouched."""
    await made(folder)
    (folder / "journal.sqlite").unlink()
    foreign = sqlite3.connect(folder / "journal.sqlite")
    foreign.execute("CREATE TABLE notes (text)")
    foreign.close()
    (folder / "journal.sqlite").chmod(0o600)
    before = (folder / "journal.sqlite").read_bytes()
    await refused(folder, "no journal of midapi_async")
    assert before == (folder / "journal.sqlite").read_bytes()


async def test_l12_a_newer_schema(folder: Path) -> None:
    """It is left to the newer release."""
    await made(folder)
    _set_version(folder, _schema.VERSION + 1)
    await refused(folder, "newer release", "update midapi_async")


async def test_a_schema_that_is_too_old(folder: Path) -> None:
    """It says which way leads on."""
    await made(folder)
    _set_version(folder, 0)
    await refused(folder, "too old", "each release between")


async def test_the_release_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its journal is read and brought up to this release; what it runs now must be restarted."""
    old = SQLiteJournal(folder)
    row = await old.claim(intent())
    monkeypatch.setattr(_schema, "VERSION", _schema.VERSION + 1)
    monkeypatch.setattr(
        _schema,
        "MIGRATIONS",
        {
            _schema.VERSION - 1: (
                "ALTER TABLE intents ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'",
                "CREATE INDEX intents_colour ON intents (colour)",
            )
        },
    )
    new = SQLiteJournal(folder)
    assert await new.rows(SCOPE) == [row]
    assert (await new.check()).schema == _schema.VERSION
    monkeypatch.undo()
    with pytest.raises(JournalError, match="restart it with that release"):
        await old.advance(row.intent_id, State.ACCEPTED, task_id="t")
    await old.aclose()
    await new.aclose()


async def test_durations_are_no_part_of_the_schema(folder: Path) -> None:
    """A release that does not know them can go on beside this one; what is damaged is left out."""
    await made(folder)
    journal = SQLiteJournal(folder)
    assert await journal.durations("https://one") == {}
    await journal.learn("https://one", ("mj_video", None), 180.0)
    await journal.aclose()
    with sqlite3.connect(folder / "journal.sqlite") as connection:
        connection.execute(
            "INSERT INTO durations (origin, task_type, speed, seconds) "
            "VALUES ('https://one', 'mj_video', '', 'soon')"
        )
    connection.close()
    assert await journal.durations("https://one") == {("mj_video", None): [180.0]}
    await journal.aclose()


async def test_a_migration_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it stays."""
    await made(folder)
    monkeypatch.setattr(_schema, "VERSION", _schema.VERSION + 1)
    broken = ("CREATE TABLE half (way)", "ALTER TABLE nowhere ADD COLUMN x")
    monkeypatch.setattr(_schema, "MIGRATIONS", {_schema.VERSION - 1: broken})
    await refused(folder, "nowhere")
    monkeypatch.undo()
    journal = SQLiteJournal(folder)
    assert len(await journal.rows(SCOPE)) == 3
    await journal.aclose()


async def test_l12_a_torn_wal(folder: Path) -> None:
    """What was whole in it is kept, whatever stands behind it."""
    journal = SQLiteJournal(folder)
    rows = [await journal.claim(intent()) for _ in range(20)]
    torn = folder.with_name("torn")
    shutil.copytree(folder, torn, ignore=shutil.ignore_patterns("*-shm", "owners"))
    await journal.aclose()
    wal = torn / "journal.sqlite-wal"
    whole = wal.stat().st_size
    os.truncate(wal, whole - 5000)
    with wal.open("ab") as file:
        file.write(os.urandom(9000))
    survivor = SQLiteJournal(torn)
    kept = [row.intent_id for row in await survivor.rows(SCOPE)]
    assert 0 < len(kept) < len(rows)
    assert [row.intent_id for row in rows[: len(kept)]] == kept
    await survivor.claim(intent())
    assert (await survivor.check()).problems == ()
    await survivor.aclose()


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.lock"])
async def test_l12_a_file_that_is_replaced_while_in_use(folder: Path, name: str) -> None:
    """Nothing is written where nobody finds it; with the file back, it goes on."""
    journal = SQLiteJournal(folder)
    await journal.claim(intent())
    (folder / name).rename(folder / "away")
    for _ in range(2):
        with pytest.raises(JournalError, match="removed or replaced while it was in use"):
            await journal.claim(intent())
    (folder / "away").rename(folder / name)
    await journal.claim(intent())
    assert len(await journal.rows(SCOPE)) == 2
    await journal.aclose()


async def test_l12_a_folder_that_is_removed_while_in_use(folder: Path) -> None:
    """It is not made again behind anybody's back."""
    journal = SQLiteJournal(folder)
    await journal.claim(intent())
    shutil.rmtree(folder)
    for _ in range(2):
        with pytest.raises(JournalError, match="removed or replaced"):
            await journal.rows(SCOPE)
    await journal.aclose()
    assert not folder.exists()


async def test_the_program_changes_its_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative name means what it meant when the journal was made."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    journal = SQLiteJournal("here")
    monkeypatch.chdir("/")
    await journal.claim(intent())
    assert (folder / "here" / "journal.sqlite").exists()
    await journal.aclose()


def _set_version(folder: Path, version: int) -> None:
    database = sqlite3.connect(folder / "journal.sqlite")
    database.execute(f"PRAGMA user_version={version}")
    database.close()
