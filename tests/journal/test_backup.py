"""`SQLiteJournal.backup`: a copy that never makes free what the original may have bought."""

import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from midapi_async.errors import JournalError
from midapi_async.journal import Claimed, Intent, Standing, State
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.journal.sqlite.store import Store
from tests.journal.world import SCOPE, accepted, claim, claimed, in_thread, intent

Made = Callable[[SQLiteJournal, Intent], Coroutine[object, object, object]]


async def rests(journal: SQLiteJournal, wanted: Intent) -> None:
    """An intent whose POST was refused for now, and is sent again later."""
    answer = await claim(journal, wanted)
    assert isinstance(answer, Claimed)
    await journal.release(answer.slot, sent=True)


def ended(state: State) -> Made:
    """An intent that has left SENDING for a state."""

    async def make(journal: SQLiteJournal, wanted: Intent) -> None:
        row = await claimed(journal, wanted)
        await journal.advance(row.intent_id, state)

    return make


def empty(folder: Path) -> Path:
    """A new private folder."""
    folder.mkdir(mode=0o700)
    return folder


@pytest.mark.parametrize(
    ("make", "before", "after"),
    [
        (claimed, State.SENDING, State.UNKNOWN),
        (rests, State.RESTING, State.UNKNOWN),
        (accepted, State.ACCEPTED, State.ACCEPTED),
        (ended(State.UNKNOWN), State.UNKNOWN, State.UNKNOWN),
        (ended(State.REFUSED), State.REFUSED, State.REFUSED),
    ],
    ids=lambda value: value if isinstance(value, State) else "",
)
async def test_what_was_under_way_is_unknown_in_the_copy(
    tmp_path: Path, make: Made, before: State, after: State
) -> None:
    """The original may have bought it after the copy was made; so its key is not free there.

    Not even if the original itself refuses the intent later.
    """
    journal, wanted = SQLiteJournal(tmp_path / "journal"), intent(key="fox")
    await make(journal, wanted)
    await journal.backup(empty(tmp_path / "copy"))
    row = await journal.find(intent_id=wanted.intent_id)
    assert row is not None
    assert row.state is before
    restored = SQLiteJournal(tmp_path / "copy")
    found = await restored.find(intent_id=wanted.intent_id)
    assert found is not None
    assert found.state is after
    again = await claim(restored, intent(key="fox"))
    assert isinstance(again, Claimed if after is State.REFUSED else Standing)
    assert await restored.check() == []
    await restored.aclose()
    await journal.aclose()


async def test_a_copy_is_complete_without_the_original(tmp_path: Path) -> None:
    """It has the rows that are only in the -wal, and the key of hidden prompts; it is private."""
    journal = SQLiteJournal(tmp_path / "journal", store_prompts=False)
    rows = [await accepted(journal, intent(key=f"key {n}")) for n in range(5)]
    copy = empty(tmp_path / "copy")
    await journal.backup(copy)
    await journal.aclose()
    shutil.rmtree(tmp_path / "journal")
    files = {"journal.key", "journal.lock", "journal.sqlite"}
    assert {each.name for each in copy.iterdir()} == files
    assert {each.stat().st_mode & 0o777 for each in copy.iterdir()} == {0o600}
    restored = SQLiteJournal(copy, store_prompts=False)
    for row in rows:
        again = await claim(restored, intent(key=row.key))
        assert isinstance(again, Standing)
        assert again.same  # sealed with the same secret
    await restored.aclose()


async def test_the_files_of_two_copies_are_not_mixed(tmp_path: Path) -> None:
    """The mark of a copy is its own count of commits: an older database beside it is an error."""
    journal = SQLiteJournal(tmp_path / "journal")
    for name in ("old", "new"):
        await accepted(journal)
        await journal.backup(empty(tmp_path / name))
    await journal.aclose()
    (tmp_path / "old" / "journal.sqlite").replace(tmp_path / "new" / "journal.sqlite")
    mixed = SQLiteJournal(tmp_path / "new")
    with pytest.raises(JournalError, match="has lost its last"):
        await mixed.rows(SCOPE)
    await mixed.aclose()


WRITER = """
import asyncio, sys
from midapi_async.journal.sqlite import SQLiteJournal
from tests.journal.world import accepted

async def main():
    journal = SQLiteJournal(sys.argv[1])
    await accepted(journal)
    await journal.aclose()

asyncio.run(main())
"""


@pytest.mark.real_time
async def test_other_programs_write_while_a_copy_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not wait for the copy, and what they write meanwhile is not in it."""
    journal, copy = SQLiteJournal(tmp_path / "journal"), Store._copy
    first = await accepted(journal)

    def slow(store: Store, source: sqlite3.Connection, path: Path) -> None:
        command = [sys.executable, "-c", WRITER, str(tmp_path / "journal")]
        subprocess.run(command, check=True, timeout=20, cwd=Path(__file__).parents[2])
        copy(store, source, path)

    monkeypatch.setattr(Store, "_copy", slow)
    await journal.backup(empty(tmp_path / "copy"))
    assert len(await journal.rows(SCOPE)) == 2
    restored = SQLiteJournal(tmp_path / "copy")
    assert [row.intent_id for row in await restored.rows(SCOPE)] == [first.intent_id]
    await restored.aclose()
    await journal.aclose()


async def test_a_damaged_journal_is_not_copied(tmp_path: Path) -> None:
    """An error that says so, rather than a backup that is worth nothing."""
    journal = SQLiteJournal(tmp_path / "journal")
    await accepted(journal, intent(key="fox"))

    def damage(store: Store) -> None:
        with store._locked() as table:
            table.connection.execute("PRAGMA writable_schema=1")
            table.connection.execute("DELETE FROM sqlite_master WHERE name = 'intents_key'")

    await in_thread(journal, damage)
    with pytest.raises(JournalError, match="damaged"):
        await journal.backup(empty(tmp_path / "copy"))
    await journal.aclose()


async def test_a_copy_that_cannot_be_written(tmp_path: Path) -> None:
    """One error that says what to do, and the journal works on."""
    journal = SQLiteJournal(tmp_path / "journal")
    await accepted(journal)
    with pytest.raises(JournalError, match="check that its folder exists"):
        await journal.backup(tmp_path / "nowhere")
    copy = empty(tmp_path / "copy")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(JournalError, match=r"^the copy cannot be written: .*disk"):
            await journal.backup(copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await accepted(journal)
    assert len(await journal.rows(SCOPE)) == 2
    await journal.aclose()
