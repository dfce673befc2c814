"""What only the SQLite journal does: sharing a folder, dead owners, pruning, hiding prompts."""

import asyncio
import gc
import os
import threading
import time
from contextlib import aclosing
from pathlib import Path

import attrs
import pytest

from midapi_async import (
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    OmniReference,
    StyleReference,
    TextToImage,
    Upscale,
    Vary,
)
from midapi_async._wire.bodies import fingerprint
from midapi_async._wire.tokens import new_token, token_hash
from midapi_async.errors import JournalError
from midapi_async.journal import BOUGHT, Busy, Claimed, State
from midapi_async.journal.sqlite import SQLiteJournal, forks, locks, store, table
from midapi_async.journal.table import Table
from midapi_async.requests import Request
from midapi_async.testing import VirtualLoop
from tests.journal.world import (
    FOX,
    SCOPE,
    accepted,
    claim,
    claimed,
    crash,
    execute,
    ids,
    intent,
    standing,
)

URL = "https://example.com/a.png"
DAY = 86_400.0


# ─── rows ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "request_",
    [
        TextToImage('a "red" fox ö 🦊', aspect_ratio="16:9", version="6.1", variety=5),
        ImageToImage("a fox", file_urls=[URL], speed="turbo"),
        StyleReference("a fox", file_urls=[URL, URL], water_mark="w"),
        OmniReference("a fox", file_urls=[URL], ow=7, enable_translation=True),
        ImageToVideo("it runs", file_urls=[URL], hd=True, motion="low", video_batch_size=2),
        ImageToVideo("it runs", file_urls=[URL]),
        Upscale("t1", image_index=3),
        Vary("t1", image_index=4, water_mark="w"),
        ExtendVideo("t1", index=1, prompt="on it goes"),
        ExtendVideo("t1", index=0),
    ],
    ids=repr,
)
async def test_a_row_is_read_as_it_was_written(
    sqlite: SQLiteJournal, other: SQLiteJournal, request_: Request
) -> None:
    """Another process reads the same row, with the same request, and the process that wrote it."""
    mine = intent(request_, key="order 17", metadata={"a": "ö\n", "": '"'})
    await claim(sqlite, mine)
    found = await other.find(intent_id=mine.intent_id)
    assert found is not None
    assert attrs.evolve(found, owner="", holds_key=False) == mine
    assert found.owner.startswith(f"{os.getpid()}-")
    assert await other.rows(SCOPE) == [found]


async def test_a_request_that_this_release_refuses(
    sqlite: SQLiteJournal, other: SQLiteJournal, caplog: pytest.LogCaptureFixture
) -> None:
    """Its row is read all the same, without the request."""
    row = await claimed(sqlite)
    for text in ('{"taskType":"mj_opera"}', "{"):
        caplog.clear()
        await execute(sqlite, "UPDATE texts SET request = ?", text)
        assert await other.find(intent_id=row.intent_id) == attrs.evolve(row, request=None)
        assert "cannot be read back" in caplog.text


@pytest.mark.parametrize("change", ["state = 'abcepted'", "metadata = '{'", "created_at = 'soon'"])
async def test_a_row_that_cannot_be_read(sqlite: SQLiteJournal, change: str) -> None:
    """What damage makes of a row is a JournalError, wherever the row is needed."""
    row = await claimed(sqlite, intent(key="k"))
    await execute(sqlite, f"UPDATE intents SET {change}")  # noqa: S608 - our own
    for call in (
        sqlite.find(key=(SCOPE, "k")),
        sqlite.rows(SCOPE),
        claim(sqlite, intent(key="k")),
        sqlite.advance(row.intent_id, State.ACCEPTED, task_id="t"),
    ):
        with pytest.raises(JournalError, match="cannot be read"):
            await call


@pytest.mark.fault("I5")
async def test_what_is_in_the_files(folder: Path, sqlite: SQLiteJournal) -> None:
    """Of a token only its hash; without prompts, nothing that tells one."""
    token = new_token()
    await claimed(sqlite, intent(token_hash=token_hash(token)))
    silent = SQLiteJournal(folder, store_prompts=False)
    hidden = TextToImage("a secret wedding dress")
    await claimed(silent, intent(hidden))
    await silent.aclose()
    files = b"".join(each.read_bytes() for each in folder.rglob("*") if each.is_file())
    assert token_hash(token).encode() in files
    assert FOX.prompt.encode() in files
    assert token.encode() not in files
    assert b"wedding" not in files
    assert fingerprint(hidden).encode() not in files


async def test_keys_without_prompts(folder: Path, sqlite: SQLiteJournal) -> None:
    """The same request is recognised, also by another process; another one is not."""
    silent = SQLiteJournal(folder, store_prompts=False)
    mine = await claimed(silent, intent(key="k"))
    assert mine.request is None
    assert mine.fingerprint != intent().fingerprint
    for journal in (silent, sqlite):
        assert (await standing(journal, intent(key="k"))).same is True
        assert (await standing(journal, intent(TextToImage("a wolf"), key="k"))).same is False
    await silent.aclose()


async def test_without_prompts_no_request_is_handed_out(folder: Path) -> None:
    """Neither the process that submits it nor a move of the row shows what was asked for."""
    silent = SQLiteJournal(folder, store_prompts=False)
    row = await accepted(silent)
    assert row.request is None
    assert (await silent.advance(row.intent_id, taken=True)).request is None
    assert [each.request for each in await silent.rows(SCOPE)] == [None]
    await silent.aclose()


async def test_few_pages_of_the_database_stay_in_memory(sqlite: SQLiteJournal) -> None:
    """After the check at the opening; else a batch of 10,000 rows grows by all that it wrote."""

    def cache_size(rows: Table) -> int:
        assert isinstance(rows, table.SQLiteTable)
        size: int = rows.connection.execute("PRAGMA cache_size").fetchone()[0]
        return size

    assert await sqlite.step(cache_size, writes=False) == -4000


async def test_rows_of_keys_are_found_by_an_index(sqlite: SQLiteJournal) -> None:
    """Else each page of a batch that runs again reads the whole journal."""
    asked: list[str] = []

    def plan(rows: Table) -> str:
        assert isinstance(rows, table.SQLiteTable)
        rows.connection.set_trace_callback(asked.append)
        rows.rows(SCOPE, {"keys": ["a", "b"], "states": [State.SUCCEEDED]})
        rows.connection.set_trace_callback(None)
        return str(rows.connection.execute(f"EXPLAIN QUERY PLAN {asked[0]}").fetchall())

    found = await sqlite.step(plan, writes=False)
    assert "intents_key" in found
    assert "SCAN intents" not in found


async def test_a_token_is_unique(sqlite: SQLiteJournal) -> None:
    """A second intent with it is not written."""
    first = await claimed(sqlite)
    with pytest.raises(JournalError, match="UNIQUE"):
        await claim(sqlite, intent(token_hash=first.token_hash))
    assert await sqlite.rows(SCOPE) == [first]


async def test_text_that_cannot_be_stored(sqlite: SQLiteJournal) -> None:
    """Half a character is a JournalError, and the next call works."""
    with pytest.raises(JournalError, match="cannot store this text"):
        await sqlite.find(intent_id="\ud800")
    with pytest.raises(JournalError, match="cannot store this text"):
        await claim(sqlite, intent(key="\ud800"))
    await claimed(sqlite)


async def test_a_move_counts_from_what_another_process_has_written(
    sqlite: SQLiteJournal, other: SQLiteJournal
) -> None:
    """What a caller has read of a row before is no ground for its next move."""
    row = await accepted(sqlite)
    await sqlite.find(token_hash=row.token_hash)
    await other.advance(row.intent_id, task_id="second")
    await other.advance(row.intent_id, State.FAILED)
    after = await sqlite.advance(row.intent_id, State.CALLED_BACK, task_id="third", taken=True)
    assert (after.state, after.other_task_ids) == (State.FAILED, ("second", "third"))
    assert await other.find(intent_id=row.intent_id) == after
    assert await other.advance(row.intent_id, State.SUCCEEDED, taken=True) == after


# ─── two on one folder ───────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("S15")
async def test_two_journals_claim_the_same_keys(
    sqlite: SQLiteJournal, other: SQLiteJournal
) -> None:
    """One of them gets each key, and the other one is shown that row."""
    both = (sqlite, other)
    wanted = [(journal, intent(key=f"k{n}")) for n in range(30) for journal in both]
    answers = await asyncio.gather(*(claim(journal, mine) for journal, mine in wanted))
    names = {
        mine.intent_id if isinstance(answer, Claimed) else answer.intent.intent_id  # type: ignore[union-attr]  # never busy
        for (_, mine), answer in zip(wanted, answers, strict=True)
    }
    assert sum(isinstance(answer, Claimed) for answer in answers) == 30
    assert set(await ids(other)) == names
    assert len(names) == 30


async def test_changes_of_others(sqlite: SQLiteJournal, other: SQLiteJournal) -> None:
    """They are seen within a quarter of a second."""
    row = await claimed(other)
    now = asyncio.get_running_loop().time
    async with aclosing(sqlite.changes()) as changes:
        await anext(changes)
        for to in (State.UNKNOWN, State.DISMISSED):
            wait = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(1)
            started = now()
            await other.advance(row.intent_id, to)
            await wait
            assert now() - started <= 0.25
            found = await sqlite.find(intent_id=row.intent_id)
            assert found is not None
            assert found.state is to


async def test_without_a_watcher_nothing_is_polled(
    sqlite: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is looked at four times a second while somebody iterates, and then no more."""
    looks: list[int] = []
    version = store.Store.version

    def counted(self: store.Store) -> tuple[int, int]:
        looks.append(1)
        return version(self)

    monkeypatch.setattr(store.Store, "version", counted)
    async with aclosing(sqlite.changes()) as changes:
        await anext(changes)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(changes), 10)
    assert 35 < len(looks) < 45
    await asyncio.sleep(3600)
    assert len(looks) < 45


# ─── dead owners ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("S14")
async def test_the_rows_of_an_owner_that_died(sqlite: SQLiteJournal, other: SQLiteJournal) -> None:
    """What it was sending is UNKNOWN, what rested is REFUSED, and watchers see it happen."""
    rows = [await claimed(other, intent(key=f"k{n}")) for n in range(4)]
    resting = intent(key="resting")
    answer = await claim(other, resting)
    assert isinstance(answer, Claimed)
    await other.release(answer.slot, sent=False)
    alive = await claimed(sqlite)
    assert len(await ids(sqlite, State.SENDING, State.RESTING)) == 6
    async with aclosing(sqlite.changes()) as changes:
        await anext(changes)
        wait = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(1)
        assert not wait.done()
        await crash(other)
        await wait
    assert await ids(sqlite, State.SENDING, State.RESTING) == [alive.intent_id]
    assert await ids(sqlite, State.UNKNOWN) == [row.intent_id for row in rows]
    assert await ids(sqlite, State.REFUSED) == [resting.intent_id]


@pytest.mark.fault("S14")
@pytest.mark.parametrize("way", ["find", "rows", "claim", "supersede", "advance", "take_over"])
async def test_every_way_to_see_a_row_of_a_dead_owner(
    sqlite: SQLiteJournal, other: SQLiteJournal, way: str
) -> None:
    """None of them shows it as being sent."""
    row = await claimed(other, intent(key="k"))
    await crash(other)
    if way == "find":
        found = await sqlite.find(key=(SCOPE, "k"))
    elif way == "rows":
        (found,) = await sqlite.rows(SCOPE)
    elif way == "claim":
        found = (await standing(sqlite, intent(key="k"))).intent
    elif way == "supersede":
        new = intent(key="k", supersedes=row.intent_id)
        answer = await claim(sqlite, new)
        assert isinstance(answer, Busy)  # its POST may still come
        assert answer.retry_in == pytest.approx(5.0)
        await asyncio.sleep(5.1)
        await claimed(sqlite, new)
        found = await sqlite.find(intent_id=row.intent_id)
    elif way == "advance":
        found = await sqlite.advance(row.intent_id, State.RESTING)
    else:
        await sqlite.take_over(SCOPE)
        (found,) = await sqlite.rows(SCOPE, mine=True)
    assert found is not None
    assert found.intent_id == row.intent_id
    assert found.state is (State.SUPERSEDED if way == "supersede" else State.UNKNOWN)


async def test_an_owner_whose_event_loop_was_closed(folder: Path) -> None:
    """Its rows are settled like those of a dead process, also for the journal object itself."""
    journal = SQLiteJournal(folder)
    row = await asyncio.to_thread(VirtualLoop.run, claimed(journal, intent(key="k")))
    await claimed(journal)
    assert await ids(journal, State.UNKNOWN) == [row.intent_id]
    assert (await standing(journal, intent(key="k"))).intent.state is State.UNKNOWN
    await journal.aclose()


@pytest.mark.fault("L11")
def test_event_loops_that_are_closed_are_forgotten(folder: Path) -> None:
    """One journal may serve one loop after another, for ever: it keeps one owner's file."""
    journal = SQLiteJournal(folder)
    for _ in range(5):
        VirtualLoop.run(accepted(journal))
    assert len(list((folder / "owners").iterdir())) == 1
    owned = [
        each
        for each in Path("/proc/self/fd").iterdir()
        if each.is_symlink() and str(folder / "owners") in str(each.readlink())
    ]
    assert len(owned) <= 1
    VirtualLoop.run(journal.aclose())


async def test_a_part_of_a_task_id_finds_nothing(sqlite: SQLiteJournal) -> None:
    """Further task ids share a column; each is found whole, and only whole."""
    row = await accepted(sqlite)
    for task_id in ("first-one", "second-one"):
        row = await sqlite.advance(row.intent_id, candidate=task_id)
    for task_id in ("first-one", "second-one"):
        assert await sqlite.find(task_id=task_id) == row
    for part in ("first", "one", "one second", "-", "econd-on"):
        assert await sqlite.find(task_id=part) is None


@pytest.mark.parametrize("was", [State.UNKNOWN, State.FAILED])
async def test_a_resubmission_that_rested_with_a_dead_owner(
    sqlite: SQLiteJournal, other: SQLiteJournal, was: State
) -> None:
    """The key goes back to the intent that may have been paid for; it is not free."""
    old = await claimed(sqlite, intent(key="k"))
    if was is State.FAILED:
        await sqlite.advance(old.intent_id, State.ACCEPTED, task_id="t")
    await sqlite.advance(old.intent_id, was)
    new = intent(key="k", supersedes=old.intent_id)
    answer = await claim(other, new)
    assert isinstance(answer, Claimed)
    await other.release(answer.slot, sent=True)
    await crash(other)
    found = (await standing(sqlite, intent(key="k"))).intent
    # Whether it had failed is known by its details, of which this one has none.
    assert (found.intent_id, found.state in {was, State.UNKNOWN}) == (old.intent_id, True)
    assert await ids(sqlite, State.REFUSED) == [new.intent_id]


async def test_taking_over(sqlite: SQLiteJournal, other: SQLiteJournal, folder: Path) -> None:
    """The rows of the dead become ours, of this scope only; those of the living stay theirs."""
    mine, theirs = await accepted(sqlite), await accepted(other)
    elsewhere = await claimed(other, intent(scope="elsewhere"))
    for journal, row in ((sqlite, mine), (other, theirs)):
        await journal.take_over(SCOPE)
        assert await journal.rows(SCOPE, mine=True) == [row]
    await crash(other)
    assert len(list((folder / "owners").iterdir())) == 2
    await sqlite.take_over(SCOPE)
    taken_over = attrs.evolve(theirs, owner=mine.owner)
    assert await sqlite.rows(SCOPE, mine=True) == [mine, taken_over]
    assert len(list((folder / "owners").iterdir())) == 1
    await other.take_over(SCOPE)
    assert await other.rows(SCOPE, mine=True) == []
    assert await other.rows("elsewhere", mine=True) == []
    await other.take_over("elsewhere")
    (found,) = await other.rows("elsewhere", mine=True)
    assert (found.intent_id, found.state) == (elsewhere.intent_id, State.UNKNOWN)


async def test_a_reader_owns_nothing(
    sqlite: SQLiteJournal, other: SQLiteJournal, folder: Path
) -> None:
    """A short look from a command line leaves no trace, also when it asks for its own rows."""
    await claimed(sqlite)
    assert len(await other.rows(SCOPE)) == 1
    assert await other.rows(SCOPE, mine=True) == []
    assert (await other.stats()).owners == 1
    assert len(list((folder / "owners").iterdir())) == 1


async def test_an_owners_file_that_another_process_is_trying(
    sqlite: SQLiteJournal, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Whoever counts owners locks each file for a moment; a new owner takes another name then."""
    await sqlite.rows(SCOPE)
    lock, tried = locks.try_lock, []

    def busy_at_first(descriptor: int, *, shared: bool = False) -> bool:
        tried.append(shared)
        return tried.count(False) != 2 and lock(descriptor, shared=shared)

    monkeypatch.setattr(locks, "try_lock", busy_at_first)
    row = await claimed(sqlite)
    monkeypatch.undo()
    assert len(list((folder / "owners").iterdir())) == 1
    assert (await sqlite.stats()).owners == 1
    other = SQLiteJournal(folder)
    assert await other.rows(SCOPE, states=[State.SENDING]) == [row]
    await other.aclose()


async def test_foreign_files_among_the_owners_stay(sqlite: SQLiteJournal, folder: Path) -> None:
    """Only files that are named as owners are swept."""
    await claimed(sqlite)
    (folder / "owners" / "README").write_text("mine")
    (folder / "owners" / f"1-{'0' * 32}").write_text("")
    await sqlite.take_over(SCOPE)
    assert (folder / "owners" / "README").exists()
    assert len(list((folder / "owners").iterdir())) == 2


# ─── pruning ─────────────────────────────────────────────────────────────────────────────────────


async def in_every_state(journal: SQLiteJournal) -> dict[str, str]:
    """A row in each state, with a key and without one; their names by intent id."""
    names: dict[str, str] = {}
    for key in (None, "k"):
        for state in State:
            mine = intent(key=key and f"{key} {state}")
            answer = await claim(journal, mine)
            assert isinstance(answer, Claimed)
            names[mine.intent_id] = f"{state} {'keyed' if key else 'unkeyed'}"
            if state is State.RESTING:
                await journal.release(answer.slot, sent=False)
            elif state in BOUGHT or state is State.EXPIRED:
                await journal.advance(mine.intent_id, State.ACCEPTED, task_id=f"t-{mine.intent_id}")
            elif state not in (State.SENDING, State.REFUSED):
                await journal.advance(mine.intent_id, State.UNKNOWN)
            after = await journal.advance(mine.intent_id, state)
            assert after.state is state
    return names


async def test_pruning(sqlite: SQLiteJournal) -> None:
    """What ended is removed, taken or not; what is pending or unknown stays, however old it is."""
    names = await in_every_state(sqlite)
    now = time.time()
    assert await sqlite.prune(now - DAY) == 0
    assert await sqlite.prune(now + DAY) == 16
    assert await sqlite.prune(now + DAY) == 0
    kept = [names[each] for each in await ids(sqlite)]
    assert kept == [
        f"{state} {key}"
        for key in ("unkeyed", "keyed")
        for state in ("sending", "resting", "unknown")
    ]
    assert await sqlite.check() == []
    stats = await sqlite.stats()
    assert stats.counts == {State.SENDING: 2, State.RESTING: 2, State.UNKNOWN: 2}
    # Of the eight keyed ones that were removed only the refused key is free again.
    assert stats.spent_keys == 7


async def test_a_key_stays_spent(sqlite: SQLiteJournal) -> None:
    """After pruning the same key still names its task, and a new intent does not get it."""
    row = await accepted(sqlite, intent(key="k", metadata={"a": "b"}))
    before = await sqlite.advance(row.intent_id, State.SUCCEEDED, taken=True)
    assert await sqlite.prune(time.time() + DAY) == 1
    tombstone = attrs.evolve(
        before,
        state=State.EXPIRED,
        request=None,
        metadata={},
        token_hash=None,
        ended_at=None,
        owner="",
    )
    for found in (
        await sqlite.find(key=(SCOPE, "k")),
        await sqlite.find(task_id=row.task_id),
        (await standing(sqlite, intent(key="k"))).intent,
        await sqlite.advance(row.intent_id, State.SUCCEEDED, taken=True),
    ):
        assert found == tombstone
    assert (await standing(sqlite, intent(key="k"))).same is True
    assert (await standing(sqlite, intent(TextToImage("a wolf"), key="k"))).same is False
    assert await sqlite.find(token_hash=row.token_hash) is None
    await sqlite.take_over(SCOPE)
    assert await sqlite.rows(SCOPE) == []
    assert await sqlite.rows(SCOPE, mine=True) == []


async def test_a_refused_key_is_free_after_pruning(sqlite: SQLiteJournal) -> None:
    """Nothing was bought with it, so nothing needs to be remembered."""
    row = await claimed(sqlite, intent(key="k"))
    await sqlite.advance(row.intent_id, State.REFUSED)
    assert await sqlite.prune(time.time() + DAY) == 1
    assert await sqlite.find(intent_id=row.intent_id) is None
    await claimed(sqlite, intent(key="k"))


@pytest.mark.fault("L11")
async def test_a_journal_in_use_prunes_itself(
    sqlite: SQLiteJournal, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended more than 16 days ago goes, without being asked for, and in steps."""
    monkeypatch.setattr(table, "_PRUNED_AT_ONCE", 3)
    rows = await asyncio.gather(*(claimed(sqlite) for _ in range(10)))
    await asyncio.gather(*(sqlite.advance(row.intent_id, State.REFUSED) for row in rows))
    await execute(sqlite, "UPDATE intents SET ended_at = ended_at - ?", 17 * DAY)
    await claimed(other)
    await other.rows(SCOPE)  # behind what it tidies by itself
    assert len(await other.rows(SCOPE)) == 1


@pytest.mark.fault("L11")
async def test_the_wal_stays_small(
    folder: Path, sqlite: SQLiteJournal, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written goes into the database file, also if two write by turns."""
    monkeypatch.setattr(store, "_CHECKPOINT_EVERY", 20)
    sizes = set()
    for _ in range(100):
        for journal in (sqlite, other):
            mine = intent()
            await claim(journal, mine)
            await journal.advance(mine.intent_id, State.REFUSED)
        sizes.add((folder / "journal.sqlite-wal").stat().st_size)
    assert max(sizes) < 1_500_000
    assert (folder / "journal.sqlite").stat().st_size > 100_000
    assert len(await sqlite.rows(SCOPE)) == 200


async def test_a_large_wal_that_was_left(
    folder: Path, sqlite: SQLiteJournal, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process that opens the journal moves it into the database."""
    for _ in range(20):
        await claimed(sqlite)
    monkeypatch.setattr(store, "_LARGE_WAL", 1000)
    before = (folder / "journal.sqlite").stat().st_size
    await claimed(other)
    await other.rows(SCOPE)
    assert (folder / "journal.sqlite").stat().st_size > before


# ─── letting go ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("L7")
@pytest.mark.real_time
async def test_a_journal_that_was_never_closed(folder: Path) -> None:
    """It warns once, and lets go of its files and its thread under the lock."""
    journal = SQLiteJournal(folder)
    await claimed(journal)
    with pytest.warns(ResourceWarning, match="was never closed"):  # noqa: PT031 - both together
        del journal
        gc.collect()
    for _ in range(500):
        if not list((folder / "owners").iterdir()):
            break
        await asyncio.sleep(0.01)
    assert not (folder / "journal.sqlite-wal").exists()


async def test_opening_and_closing_leaves_nothing(folder: Path) -> None:
    """One journal can be closed and used again for ever."""
    journal = SQLiteJournal(folder)
    for n in range(20):
        assert len(await journal.rows(SCOPE)) == n
        await claimed(journal)
        assert "open" in repr(journal)
        await journal.aclose()
        assert "closed" in repr(journal)
    assert not forks.opened
    for thread in threading.enumerate():
        if "midapi" in thread.name:
            thread.join(5)  # it is ending, and was not waited for
            assert not thread.is_alive()


async def test_what_was_being_sent_when_the_journal_was_closed(sqlite: SQLiteJournal) -> None:
    """Closed and opened again, a journal is a new owner: its old rows are those of a dead one."""
    row = await claimed(sqlite, intent(key="k"))
    await sqlite.aclose()
    assert await ids(sqlite, State.UNKNOWN) == [row.intent_id]


@pytest.mark.fault("L10")
def test_one_journal_in_two_runs_of_asyncio(folder: Path) -> None:
    """A journal may be left open from one loop to the next."""
    journal = SQLiteJournal(folder)

    async def main() -> int:
        await claimed(journal)
        return len(await journal.rows(SCOPE))

    assert [VirtualLoop.run(main()) for _ in range(2)] == [1, 2]
    VirtualLoop.run(journal.aclose())


def test_the_schema_refuses_two_holders_of_a_key(folder: Path) -> None:
    """If the rules were wrong, the database would still not give a key, or a task, twice."""

    async def main() -> None:
        journal = SQLiteJournal(folder)
        one, two = await accepted(journal, intent(key="k")), await accepted(journal)
        for change in (f"key = '{one.key}', holds_key = 1", f"task_id = '{one.task_id}'"):
            statement = f"UPDATE intents SET {change} WHERE intent_id = ?"  # noqa: S608 - our own
            with pytest.raises(JournalError, match="UNIQUE"):
                await execute(journal, statement, two.intent_id)
        await journal.aclose()

    VirtualLoop.run(main())
