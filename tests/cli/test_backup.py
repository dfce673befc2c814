import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from midapi_async.journal import PENDING, Intent, State
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.journal.sqlite.store import Store
from tests.cli.conftest import REPOSITORY, Midapi, ctrl_c_when
from tests.journal.world import SCOPE, accepted, intent

pytestmark = pytest.mark.real_time

# Buys keys one after another, beside a submission that is never answered, and one that is refused
# for now. It prints a key when the journal has confirmed it.
BOT = """
import asyncio, itertools, sys
from tests.journal.test_backup import rests
from tests.journal.world import SQLiteJournal, accepted, claimed, intent

async def main():
    journal = SQLiteJournal("journal")
    await rests(journal, intent(key="resting"))
    await claimed(journal, intent(key="sending"))
    for n in itertools.count():
        await accepted(journal, intent(key=f"key {n}"))
        print(f"key {n}", flush=True)

asyncio.run(main())
"""


def rows_in(folder: Path) -> dict[str | None, Intent]:
    """What a journal holds, by key."""

    async def read() -> list[Intent]:
        journal = SQLiteJournal(folder)
        rows = await journal.rows(SCOPE, limit=100_000)
        await journal.aclose()
        return rows

    return {row.key: row for row in asyncio.run(read())}


@pytest.fixture
def journal(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal with one bought key, named in the environment."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")

    async def fill() -> None:
        journal = SQLiteJournal("journal")
        await accepted(journal, intent(key="fox"))
        await journal.aclose()

    asyncio.run(fill())
    return elsewhere / "journal"


def leftovers(folder: Path) -> list[str]:
    """What is in a folder beside the journal."""
    return sorted(each.name for each in folder.iterdir() if each.name != "journal")


def test_backup_while_a_bot_writes_and_restore(midapi: Midapi, elsewhere: Path) -> None:
    """The printed command restores a whole journal with all that was confirmed before.

    Nothing in it can be sent again: what the bot had under way is unknown.
    """
    with subprocess.Popen(
        [sys.executable, "-c", BOT],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
    ) as bot:
        assert bot.stdout is not None
        confirmed = ["sending", "resting", *(bot.stdout.readline().strip() for _ in range(50))]
        ran = midapi("journal", "backup", "it's a backup.tar", "--folder", "journal")
        time.sleep(0.3)  # the bot goes on
        bot.kill()
        *_, later = bot.stdout
    assert ran.code == 0, ran.err
    assert ran.lines == [str(elsewhere / "it's a backup.tar")]
    assert leftovers(elsewhere) == ["it's a backup.tar"]
    assert (elsewhere / "it's a backup.tar").stat().st_mode & 0o777 == 0o600
    restore = ran.err.splitlines()[-1]
    assert restore.startswith("mkdir -m 700 NEW && tar -xf '")
    subprocess.run(["sh", "-c", restore], check=True, timeout=20)
    restored = rows_in(elsewhere / "NEW")
    assert set(confirmed) <= restored.keys()
    assert later.strip() not in restored
    assert not [row for row in restored.values() if row.state in PENDING]
    assert {restored[key].state for key in ("sending", "resting")} == {State.UNKNOWN}
    check = midapi("journal", "check", "--folder", "NEW", "--json").json
    assert check["problems"] == []


def test_json_names_the_file_and_how_to_restore_it(
    midapi: Midapi, journal: Path, elsewhere: Path
) -> None:
    """One object, nothing on stderr, and the same command."""
    ran = midapi("journal", "backup", "b.tar", "--json")
    path = elsewhere / "b.tar"
    assert ran.json == {
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "restore": f"mkdir -m 700 NEW && tar -xf {path} -C NEW",
    }
    assert ran.err == ""


def test_the_warning_is_printed_and_in_the_help(midapi: Midapi, journal: Path) -> None:
    """An old backup in place of a journal that works would make keys free that were paid."""
    text = "keys that were used after"
    assert text in midapi("journal", "backup", "b.tar").err
    assert "would be paid again" in " ".join(midapi("journal", "backup", "--help").out.split())


def test_a_file_is_replaced_only_with_force(midapi: Midapi, journal: Path, elsewhere: Path) -> None:
    """Whole, and through a link, which stays."""
    (elsewhere / "real.tar").write_text("mine")
    (elsewhere / "b.tar").symlink_to("real.tar")
    ran = midapi("journal", "backup", "b.tar")
    assert ran.code == 2
    assert "exists already" in ran.error
    assert "--force" in ran.error
    assert (elsewhere / "real.tar").read_text() == "mine"
    assert midapi("journal", "backup", "b.tar", "--force").code == 0
    assert (elsewhere / "b.tar").is_symlink()
    with tarfile.open(elsewhere / "real.tar") as tar:
        assert tar.getnames() == ["journal.key", "journal.lock", "journal.sqlite"]
        assert {each.mode for each in tar.getmembers()} == {0o600}
    assert leftovers(elsewhere) == ["b.tar", "real.tar"]


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    ("file", "code", "text"),
    [
        ("folder", 2, "is a folder"),
        ("journal/b.tar", 2, "is in the journal's folder"),
        ("/dev/null", 2, "is not a regular file"),
        ("nowhere/b.tar", 1, "b.tar' cannot be written: No such file or directory"),
        ("/proc/b.tar", 1, "'/proc/b.tar' cannot be written: "),
        ("folder/" + "b" * 300, 1, "cannot be written: File name too long"),
    ],
)
def test_a_target_that_cannot_be_used(
    midapi: Midapi, elsewhere: Path, file: str, code: int, text: str
) -> None:
    """One line says why, and nothing is left behind."""
    (elsewhere / "folder").mkdir()
    ran = midapi("journal", "backup", file, "--force")
    assert ran.code == code
    assert text in ran.error
    assert leftovers(elsewhere) == ["folder"]
    assert leftovers(elsewhere / "folder") == []


@pytest.mark.parametrize(
    ("where", "text"),
    [("copy", "the copy cannot be written: "), ("tar", "the backup '")],
)
def test_a_full_disk(midapi: Midapi, journal: Path, elsewhere: Path, where: str, text: str) -> None:
    """It fills up in the copy of the database, or in the tar file; neither is left behind."""
    space = 40 << 10 if where == "copy" else (journal / "journal.sqlite").stat().st_size
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, hard))
    try:
        ran = midapi("journal", "backup", "b.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ran.code == 1
    assert ran.error.startswith(text)
    assert leftovers(elsewhere) == []


def test_ctrl_c_leaves_nothing_behind(
    midapi: Midapi, journal: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 130."""
    copy, has_begun = Store._copy, threading.Event()

    def slow(store: Store, source: sqlite3.Connection, path: Path) -> None:
        has_begun.set()
        time.sleep(0.5)
        copy(store, source, path)

    monkeypatch.setattr(Store, "_copy", slow)
    with ctrl_c_when(has_begun.is_set):
        assert midapi("journal", "backup", "b.tar").code == 130
    assert leftovers(elsewhere) == []
