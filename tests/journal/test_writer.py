"""The thread of a journal serves all who wait by the time its turn begins, whoever gives up."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from midapi_async.errors import JournalError
from midapi_async.journal import Intent, State, _locks, _rows, _writer
from midapi_async.journal._store import Job
from midapi_async.journal._writer import Writer
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.testing import VirtualLoop
from tests.journal.world import SCOPE, intent, together

Turns = list[Callable[..., object]]


@pytest.fixture
async def writer(sqlite: SQLiteJournal) -> Writer:
    """That of a journal in a folder, which is open."""
    await sqlite.rows(SCOPE)
    assert sqlite._writer is not None
    return sqlite._writer


@pytest.fixture
async def turns(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turns]:
    """What the loop hands to the thread from now on."""
    seen: Turns = []
    loop = asyncio.get_running_loop()
    hand_over = loop.run_in_executor

    def run(
        executor: Executor, work: Callable[..., object], *args: object
    ) -> asyncio.Future[object]:
        seen.append(work)
        return hand_over(executor, work, *args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "run_in_executor", run)
        yield seen


async def accepted(journal: SQLiteJournal) -> Intent:
    """A row whose callback is to come."""
    row = await journal.claim(intent())
    return await journal.advance(row.intent_id, State.ACCEPTED, task_id=f"t-{row.intent_id}")


async def test_a_turn_serves_all_who_wait(sqlite: SQLiteJournal, turns: Turns) -> None:
    """A hundred looks and as many writes cost two turns: that of the first one, and the next."""
    rows = await asyncio.gather(*(accepted(sqlite) for _ in range(50)))
    turns.clear()
    finds = [sqlite.find(token_hash=row.token_hash) for row in rows]
    moves = [sqlite.advance(row.intent_id, State.CALLED_BACK) for row in rows]
    found, *_ = await asyncio.gather(
        asyncio.gather(*finds), asyncio.gather(*moves), sqlite.rows(SCOPE, task_ids=["t"])
    )
    assert [row.intent_id for row in rows] == [row.intent_id for row in found if row is not None]
    assert 1 <= len(turns) <= 2


async def test_one_alone_costs_one_turn(sqlite: SQLiteJournal, turns: Turns) -> None:
    """Each call that nobody shares is handed over once."""
    row = await accepted(sqlite)
    await sqlite.find(token_hash=row.token_hash)
    await sqlite.advance(row.intent_id, State.CALLED_BACK)
    await sqlite.rows(SCOPE, task_ids=["t"])
    assert len(turns) == 5


async def test_a_transaction_has_an_end(
    sqlite: SQLiteJournal, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait, so many share one at most; all of them are served."""
    await sqlite.claim(intent())
    await sqlite.rows(SCOPE)  # behind what it tidies by itself
    monkeypatch.setattr(_writer, "_AT_ONCE", 10)
    shared: list[int] = []
    write = writer._store.write

    def counted(jobs: Sequence[Job[object]]) -> None:
        shared.append(len(jobs))
        write(jobs)

    monkeypatch.setattr(writer._store, "write", counted)
    got = await together(sqlite, *(sqlite.claim(intent()) for _ in range(25)))
    assert shared == [10, 10, 5]
    assert len({row.intent_id for row in got if isinstance(row, Intent)}) == 25


@pytest.mark.parametrize("others", [0, 3])
async def test_l9_the_first_one_gives_up_before_its_turn(
    sqlite: SQLiteJournal, writer: Writer, others: int
) -> None:
    """Nothing of it is written; who relied on its turn is served all the same."""
    held = threading.Event()
    block = asyncio.ensure_future(writer.run(lambda _: held.wait(5)))
    await asyncio.sleep(0)
    claims = [asyncio.ensure_future(sqlite.claim(intent())) for _ in range(1 + others)]
    await asyncio.sleep(0)
    claims[0].cancel()
    await asyncio.sleep(0)
    held.set()
    first, *rest = await asyncio.gather(*claims, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    names = [row.intent_id for row in rest if isinstance(row, Intent)]
    assert others == len(names)
    assert names == [row.intent_id for row in await sqlite.rows(SCOPE)]
    await block
    await accepted(sqlite)


async def test_l9_the_first_one_gives_up_in_its_turn(sqlite: SQLiteJournal, writer: Writer) -> None:
    """Those who are served in the same turn are woken, and what was begun is written."""
    blocked, begun, held = threading.Event(), threading.Event(), threading.Event()
    block = asyncio.ensure_future(writer.run(lambda _: blocked.wait(5)))
    await asyncio.sleep(0)
    row = intent()

    def slow(rows: _rows.Rows) -> Intent:
        begun.set()
        held.wait(5)
        return rows.claim(row)

    first = asyncio.ensure_future(writer.write(slow))
    others = [asyncio.ensure_future(sqlite.claim(intent())) for _ in range(3)]
    await asyncio.sleep(0)
    blocked.set()
    await block
    await asyncio.to_thread(begun.wait)
    first.cancel()
    await asyncio.sleep(0)
    held.set()
    assert len({each.intent_id for each in await asyncio.gather(*others)}) == 3
    assert first.cancelled()
    assert len(await sqlite.rows(SCOPE)) == 4


async def test_l9_all_give_up(sqlite: SQLiteJournal, writer: Writer) -> None:
    """Nothing is written, and the next one is served."""
    held = threading.Event()
    block = asyncio.ensure_future(writer.run(lambda _: held.wait(5)))
    await asyncio.sleep(0)
    calls = [
        *(asyncio.ensure_future(accepted(sqlite)) for _ in range(4)),
        *(asyncio.ensure_future(sqlite.rows(SCOPE, task_ids=["t"])) for _ in range(4)),
    ]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    got = await asyncio.gather(*calls, return_exceptions=True)
    assert [asyncio.CancelledError] * 8 == [type(each) for each in got]
    held.set()
    await block
    assert await sqlite.rows(SCOPE) == []
    await accepted(sqlite)


async def test_closing_ends_what_a_crowd_asked_for(folder: Path) -> None:
    """What is asked for before it closes is written before it lets go, and nothing opens again."""
    journal = SQLiteJournal(folder)
    await together(journal, *(journal.claim(intent()) for _ in range(3)))
    assert journal._writer is not None
    store = journal._writer._store
    claims = [asyncio.ensure_future(journal.claim(intent())) for _ in range(3)]
    await asyncio.gather(journal.aclose(), *claims)
    assert store._rows is None
    assert list((folder / "owners").iterdir()) == []
    assert len(await journal.rows(SCOPE)) == 6
    await journal.aclose()


async def test_a_store_that_is_closed_is_not_tidied(sqlite: SQLiteJournal, writer: Writer) -> None:
    """Closing may come between a write and the tidying that follows it; nothing opens again."""
    await sqlite.claim(intent())
    await sqlite.aclose()
    store = writer._store
    store._writes = 10_000
    store._prune_at = 0.0
    await asyncio.to_thread(store.tidy)
    assert store._rows is None


async def test_one_bad_look(sqlite: SQLiteJournal) -> None:
    """What fails of one takes nothing from the others who look in the same turn."""
    row = await accepted(sqlite)
    names = [row.token_hash, "\ud800", row.token_hash, "\ud800", row.token_hash]
    got = await together(sqlite, *(sqlite.find(token_hash=name) for name in names))
    assert [type(each) for each in got] == [Intent, JournalError, Intent, JournalError, Intent]
    assert got[1] is not got[3]


async def test_s16_looks_at_a_journal_that_is_locked(
    folder: Path, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who wait for it to open are told after one wait for the lock, not one after another."""
    await other.rows(SCOPE)
    monkeypatch.setattr(_locks, "PATIENCE", 0.05)
    waits: list[float] = []
    acquire = _locks.Lock._acquire

    def counted(lock: _locks.Lock) -> None:
        waits.append(_locks.PATIENCE)
        acquire(lock)

    journal = SQLiteJournal(folder)
    assert other._writer is not None
    with other._writer._store._folder.lock.held():
        monkeypatch.setattr(_locks.Lock, "_acquire", counted)
        got = await together(journal, *(journal.find(token_hash="t") for _ in range(20)))
    assert [JournalError] * 20 == [type(each) for each in got]
    assert len({id(each) for each in got}) == 20
    assert len(waits) == 1
    assert await journal.find(token_hash="t") is None
    await journal.aclose()


async def test_whatever_is_raised_is_raised_where_somebody_waits(
    sqlite: SQLiteJournal, writer: Writer
) -> None:
    """Also what is no error of a journal; the thread goes on."""
    for way in (writer.look, writer.write, writer.run):
        with pytest.raises(ZeroDivisionError):
            await way(lambda _: 1 / 0)
    await accepted(sqlite)


@pytest.mark.parametrize("count", [1, 3])
async def test_l7_the_program_is_ending(writer: Writer, count: int) -> None:
    """All who ask then are told so; nobody waits for a turn that does not come."""
    lane = writer._lane()
    thread, lane._thread = lane._thread, ThreadPoolExecutor(1)
    lane._thread.shutdown()
    calls = [call(lambda _: None) for _ in range(count) for call in (writer.look, writer.write)]
    got = await asyncio.gather(*calls, return_exceptions=True)
    assert [JournalError] * 2 * count == [type(each) for each in got]
    assert "the program is ending" in str(got[0])
    lane._thread = thread
    await writer.write(lambda _: None)


async def test_l7_a_crowd_when_the_program_ends(sqlite: SQLiteJournal, writer: Writer) -> None:
    """Who waits among others is told so as well."""
    await together(sqlite, *(sqlite.claim(intent()) for _ in range(3)))
    await test_l7_the_program_is_ending(writer, 3)


def test_l10_loops_that_are_closed_are_forgotten(folder: Path) -> None:
    """One journal may serve one loop after another, for ever."""
    journal = SQLiteJournal(folder)
    for _ in range(5):
        VirtualLoop.run(accepted(journal))
    assert journal._writer is not None
    assert len(journal._writer._lanes) == 1
    VirtualLoop.run(journal.aclose())


# ─── what is known of rows ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["find", "advance"])
async def test_a_row_that_somebody_else_has_moved(
    sqlite: SQLiteJournal, other: SQLiteJournal, way: str
) -> None:
    """What is remembered of it is no ground to move it: what counts is what is there."""
    row = await accepted(sqlite)
    if way == "find":
        await sqlite.find(token_hash=row.token_hash)
    await other.advance(row.intent_id, task_id="second")
    await other.advance(row.intent_id, State.FAILED)
    after = await sqlite.advance(row.intent_id, State.CALLED_BACK, task_id="third", taken=True)
    assert (after.state, after.other_task_ids) == (State.FAILED, ("second", "third"))
    assert after == await other.find(intent_id=row.intent_id)
    assert after == await other.advance(row.intent_id, State.SUCCEEDED, taken=True)


async def test_a_move_that_was_not_written(sqlite: SQLiteJournal, writer: Writer) -> None:
    """What was remembered of it in a transaction that failed is no ground for the next one."""
    row = await accepted(sqlite)

    def half(rows: _rows.Rows) -> None:
        rows.advance(row.intent_id, State.CALLED_BACK, None, taken=False)
        raise JournalError("halfway")

    with pytest.raises(JournalError, match="halfway"):
        await writer.write(half)
    found = await sqlite.find(intent_id=row.intent_id)
    assert found == row
    await asyncio.gather(writer.write(half), sqlite.claim(intent()), return_exceptions=True)
    after = await sqlite.advance(row.intent_id, State.FAILED)
    assert after == attrs.evolve(row, state=State.FAILED)
    assert after == await sqlite.find(intent_id=row.intent_id)


async def test_l11_what_is_remembered_has_a_bound(
    sqlite: SQLiteJournal, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest rows that were bought, and no more of them."""
    monkeypatch.setattr(_rows, "_KNOWN", 3)
    rows = [await accepted(sqlite) for _ in range(6)]
    for row in rows:
        assert row == await sqlite.find(token_hash=row.token_hash)
    await sqlite.find(token_hash=rows[-1].token_hash)
    known = await writer.look(lambda rows: list(rows._known))
    assert [row.intent_id for row in rows[-3:]] == known


async def test_i5_without_prompts_none_is_remembered(folder: Path) -> None:
    """Once it is submitted, nothing in memory tells what was asked for, nor what it hashes to."""
    silent = SQLiteJournal(folder, store_prompts=False)
    row = await accepted(silent)
    assert silent._writer is not None
    assert await silent._writer.look(lambda rows: list(rows._known)) == []
    await silent.find(token_hash=row.token_hash)
    (known,) = await silent._writer.look(lambda rows: list(rows._known.values()))
    assert known.request is None
    assert row.fingerprint != known.fingerprint
    await silent.aclose()
