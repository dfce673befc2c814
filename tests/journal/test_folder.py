"""What the SQLite journal takes for its folder, and what it refuses (L12, L13)."""

import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from midapi_async import MidAPIClient
from midapi_async.cli import _checks, main
from midapi_async.errors import InvalidRequestError, JournalError
from midapi_async.journal import State
from midapi_async.journal.sqlite import SQLiteJournal, schema
from midapi_async.journal.sqlite import folder as folders
from tests.journal.world import SCOPE, claim, claimed, intent

pytestmark = pytest.mark.filterwarnings("error")


async def made(folder: Path, rows: int = 3) -> None:
    """A closed journal with some rows in a folder."""
    journal = SQLiteJournal(folder)
    for _ in range(rows):
        await claimed(journal)
    await journal.aclose()


async def refused(folder: Path, *told: str) -> None:
    """Every way into the journal is an error that names the place and what to do."""
    journal = SQLiteJournal(folder)
    calls = (
        lambda: claim(journal, intent()),
        lambda: journal.rows(SCOPE),
        lambda: journal.take_over(SCOPE),
    )
    for call in calls:
        with pytest.raises(JournalError) as caught:
            await call()
        for part in (str(folder), *told):
            assert part in str(caught.value)
    await journal.aclose()


@pytest.mark.fault("L13")
async def test_it_is_private(folder: Path) -> None:
    """The folder is 0700 and each file in it 0600, whatever the umask."""
    before = os.umask(0)
    try:
        journal = SQLiteJournal(folder / "deeper")
        await claimed(journal)
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


@pytest.mark.fault("L12")
async def test_what_is_made_is_synced_before_it_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key, line, database: a power failure leaves none, or what the next opening completes.

    There is never a database without the line: that is a lock file that was lost.
    """
    synced, fsync = list[int](), os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        if (folder / "journal.sqlite").exists():
            assert (folder / "journal.lock").read_bytes()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    await made(folder)
    lock = folder / "journal.lock"
    paths = (folder / "journal.key", folder, lock, folder, folder.parent)
    assert synced == [path.stat().st_ino for path in paths]


async def test_nothing_happens_before_the_first_use(folder: Path) -> None:
    """Neither making nor closing a journal touches the disk."""
    journal = SQLiteJournal(str(folder))
    await journal.aclose()
    assert not folder.exists()


@pytest.mark.fault("L20")
@pytest.mark.parametrize(
    "url", ["redis://user:secret@host/0", "mysql://host/db", "SQLite:///journal", "file:/x"]
)
async def test_a_url_is_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As an argument, a path or a variable: no folder is made."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    wanted = f"journal: there is no journal for {url.partition(':')[0]}: URLs; give the path of a"
    for given in (url, Path(url)):
        with pytest.raises(InvalidRequestError, match=wanted):
            MidAPIClient("key", journal=given)
    monkeypatch.setenv("MIDAPI_JOURNAL", url)
    with pytest.raises(InvalidRequestError, match=wanted) as caught:
        MidAPIClient("key")
    assert "secret" not in str(caught.value)
    assert (await _checks.journal(Path(url))).verdict == "failed"
    assert list(folder.iterdir()) == []
    journal = SQLiteJournal("./redis:/x")  # a folder that has such a name
    await claimed(journal)
    await journal.aclose()


@pytest.mark.fault("L20")
@pytest.mark.parametrize("url", ["redis://user:secret@host/0", "mysql://host/db", "file:/x"])
def test_a_url_is_no_folder_for_the_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    """As an option or a variable: no folder is made."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MIDAPI_JOURNAL", url)
    for arguments in (["list"], ["list", "--folder", url], ["check"]):
        assert main(["journal", *arguments]) == 2
        said = capsys.readouterr().err
        assert "give the path of a folder" in said
        assert "secret" not in said
    assert list(folder.iterdir()) == []


async def test_an_empty_folder_is_taken(folder: Path) -> None:
    """Also one that others may read, and a fresh disk; it is private from then on."""
    folder.mkdir(mode=0o755)
    (folder / "lost+found").mkdir()
    await made(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.fault("L12")
async def test_a_foreign_folder(folder: Path) -> None:
    """Nothing is written into it."""
    folder.mkdir()
    (folder / "thesis.txt").write_text("…")
    await refused(folder, "contains other files (thesis.txt)", "new or empty folder")
    assert [each.name for each in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.fault("S16")
async def test_a_file_in_the_folders_place(folder: Path) -> None:
    """It is left as it is."""
    folder.write_text("mine")
    await refused(folder, "is a file", "give another path")
    assert folder.read_text() == "mine"


@pytest.mark.fault("S16")
async def test_a_file_above_the_folder(folder: Path) -> None:
    """The system's own error becomes ours."""
    folder.write_text("mine")
    journal = SQLiteJournal(folder / "deeper")
    with pytest.raises(JournalError, match="cannot be used"):
        await journal.rows(SCOPE)
    await journal.aclose()


@pytest.mark.fault("L13")
@pytest.mark.parametrize("name", [".", "journal.sqlite", "journal.lock", "journal.key"])
async def test_what_others_can_write(folder: Path, name: str) -> None:
    """The folder and each file, with the way to mend it."""
    await made(folder)
    for mode in (0o720, 0o702):
        (folder / name).chmod(mode)
        await refused(folder, "can be written by others", f"chmod go-w {folder / name}")


@pytest.mark.fault("L13")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", [".", "journal.sqlite", "journal.lock", "journal.key"])
async def test_what_belongs_to_another_user(folder: Path, name: str) -> None:
    """The folder and each file."""
    await made(folder)
    os.chown(folder / name, 1234, -1)
    await refused(folder, "belongs to user 1234", "run as that user")


@pytest.mark.fault("L13")
@pytest.mark.parametrize("name", ["journal.sqlite", "journal.key"])
async def test_a_link_in_the_place_of_a_file(folder: Path, name: str) -> None:
    """A link in a file's place is not followed."""
    await made(folder)
    (folder / name).rename(folder.with_name("elsewhere"))
    (folder / name).symlink_to(folder.with_name("elsewhere"))
    await refused(folder, "is not a regular file")


@pytest.mark.fault("L13")
@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "fuse.sshfs", "9p"])
async def test_a_network_file_system(
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
    monkeypatch.setattr(folders, "MOUNTS", mounts)
    place.mkdir()
    await refused(place / "journal", f"network file system ({kind})", "local disk")
    assert list((place / "journal").iterdir()) == []
    await made(folder)  # beside it


@pytest.mark.fault("L13")
@pytest.mark.fault("S28")
async def test_mounts_that_cannot_be_read_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that tells its mounts, but not at this moment, is not believed to be local."""
    read = Path.read_text

    def fail(path: Path, *args: str) -> str:
        if path == folders.MOUNTS:
            raise OSError(24, "Too many open files", str(path))
        return read(path, *args)

    monkeypatch.setattr(Path, "read_text", fail)
    journal = SQLiteJournal(folder)
    with pytest.raises(JournalError, match="Too many open files"):
        await claim(journal, intent())
    monkeypatch.undo()
    await claimed(journal)
    await journal.aclose()


async def test_a_system_that_tells_no_mounts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is believed to be local."""
    monkeypatch.setattr(folders, "MOUNTS", folder / "none")
    await made(folder)


@pytest.mark.fault("L12")
@pytest.mark.parametrize("size", [0, 10, 100, 3000, 8192])
async def test_a_truncated_database(folder: Path, size: int) -> None:
    """It is never taken for an empty one, and stays as it is."""
    await made(folder, 30)
    os.truncate(folder / "journal.sqlite", size)
    await refused(folder)
    assert size == (folder / "journal.sqlite").stat().st_size


@pytest.mark.fault("L12")
@pytest.mark.parametrize("start", [0, 1000, 4096, 20000])
async def test_garbage_in_the_database(folder: Path, start: int) -> None:
    """Damage anywhere is an error."""
    await made(folder, 30)
    with (folder / "journal.sqlite").open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(3000))
    await refused(folder, "damaged", "backup")


@pytest.mark.fault("L12")
async def test_damage_in_an_index(folder: Path) -> None:
    """It is found at opening, before anything is bought, not when it is too late."""
    await made(folder)
    database = sqlite3.connect(folder / "journal.sqlite")
    find = "SELECT rootpage FROM sqlite_schema WHERE name = 'intents_ended'"
    (page,) = database.execute(find).fetchone()
    database.close()
    with (folder / "journal.sqlite").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))
    await refused(folder, "damaged", "backup")


@pytest.mark.fault("L12")
@pytest.mark.parametrize("name", ["journal.sqlite", "journal.key", "journal.lock"])
async def test_a_file_that_is_gone(folder: Path, name: str) -> None:
    """A journal that was made is never made again in silence."""
    await made(folder)
    (folder / name).unlink()
    problem = "was removed" if name == "journal.lock" else "is missing"
    await refused(folder, str(folder / name), problem, "backup")
    assert name == "journal.lock" or not (folder / name).exists()


@pytest.mark.fault("L12")
async def test_an_interrupted_beginning(folder: Path) -> None:
    """What a crash left of a journal that was never used is made anew."""
    await made(folder, 1)
    (folder / "journal.lock").write_bytes(b"")
    (folder / "journal.sqlite").rename(folder / "journal.sqlite.new")
    os.truncate(folder / "journal.sqlite.new", 5000)
    await made(folder, 1)


@pytest.mark.fault("S23")
@pytest.mark.parametrize("step", ["line", "name"])
async def test_a_crash_while_the_journal_is_made(
    folder: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after the line in the lock: nothing was bought yet, and the next opening works."""

    def fail(*_: object) -> None:
        raise OSError(5, "the power fails")

    if step == "line":
        monkeypatch.setattr(os, "pwrite", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail)
    journal = SQLiteJournal(folder)
    with pytest.raises(JournalError, match="the power fails"):
        await journal.rows(SCOPE)
    await journal.aclose()
    monkeypatch.undo()
    assert not (folder / "journal.sqlite").exists()
    assert (folder / "journal.sqlite.new").exists()
    await made(folder)
    assert not (folder / "journal.sqlite.new").exists()


@pytest.mark.fault("L12")
async def test_a_beginning_that_fails_leaves_no_database(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets its name when it is complete: half of one would be taken for a damaged journal."""

    def fail(_: sqlite3.Connection) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(schema, "make", fail)
    journal = SQLiteJournal(folder)
    with pytest.raises(JournalError, match="no space left"):
        await claimed(journal)
    assert not (folder / "journal.sqlite").exists()
    monkeypatch.undo()
    await claimed(journal)
    await journal.aclose()


@pytest.mark.fault("L12")
async def test_a_foreign_database(folder: Path) -> None:
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


@pytest.mark.fault("L12")
async def test_a_newer_schema(folder: Path) -> None:
    """It is left to the newer release."""
    await made(folder)
    _set_version(folder, schema.VERSION + 1)
    await refused(folder, "newer release", "update midapi_async")


async def test_a_schema_that_is_too_old(folder: Path) -> None:
    """It says which way leads on."""
    await made(folder)
    _set_version(folder, 0)
    await refused(folder, "too old", "use the release that wrote it")


async def test_a_newer_release_while_in_use(folder: Path) -> None:
    """What runs now writes nothing into a schema that it does not know."""
    old = SQLiteJournal(folder)
    row = await claimed(old)
    _set_version(folder, schema.VERSION + 1)
    with pytest.raises(JournalError, match="newer release"):
        await old.advance(row.intent_id, State.ACCEPTED, task_id="t")
    _set_version(folder, schema.VERSION)
    assert await old.find(intent_id=row.intent_id) == row
    await old.aclose()


@pytest.mark.fault("L12")
@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal", "journal.lock"])
async def test_a_file_that_is_replaced_while_in_use(folder: Path, name: str) -> None:
    """Nothing is written where nobody finds it; with the file back, it goes on."""
    journal = SQLiteJournal(folder)
    await claimed(journal)
    (folder / name).rename(folder / "away")
    for _ in range(2):
        with pytest.raises(JournalError, match="removed or replaced while it was in use"):
            await claimed(journal)
    (folder / "away").rename(folder / name)
    await claimed(journal)
    assert len(await journal.rows(SCOPE)) == 2
    await journal.aclose()


@pytest.mark.fault("L12")
async def test_a_folder_that_is_removed_while_in_use(folder: Path) -> None:
    """It is not made again behind anybody's back."""
    journal = SQLiteJournal(folder)
    await claimed(journal)
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
    await claimed(journal)
    assert (folder / "here" / "journal.sqlite").exists()
    await journal.aclose()


def _set_version(folder: Path, version: int) -> None:
    database = sqlite3.connect(folder / "journal.sqlite")
    database.execute(f"PRAGMA user_version={version}")
    database.close()
