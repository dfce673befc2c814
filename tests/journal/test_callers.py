"""Many callers of one journal: they share transactions, and what fails of one harms no other."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from pathlib import Path
from typing import Unpack

import pytest

from midapi_async import TaskHandle
from midapi_async import client as client_module
from midapi_async._session import Session
from midapi_async.errors import JournalError
from midapi_async.handle import handle_of
from midapi_async.journal import Claimed, Intent, State, stored
from midapi_async.journal.protocol import RowFilter
from midapi_async.journal.sqlite import SQLiteJournal, locks, store
from midapi_async.journal.table import Table
from tests.journal.world import (
    SCOPE,
    accepted,
    busy,
    claim,
    claimed,
    ids,
    in_thread,
    intent,
    standing,
    together,
)
from tests.world import client_of

Statements = list[str]


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    """Every statement; and none of them runs in the thread of the tests, which has the loop."""
    seen: Statements = []
    loop_thread = threading.get_ident()

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
            assert threading.get_ident() != loop_thread
            seen.append(sql)
            return super().execute(sql, *args)  # type: ignore[arg-type]  # passed on

        def close(self) -> None:
            assert threading.get_ident() != loop_thread
            super().close()

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda *args, **options: connect(*args, factory=Connection, **options),
    )
    return seen


@pytest.fixture
async def opened(sqlite: SQLiteJournal) -> SQLiteJournal:
    """A journal that is open and has tidied already what it tidies after it has opened."""
    await claimed(sqlite, intent(scope="elsewhere"))
    await sqlite.rows(SCOPE)
    return sqlite


# ─── sharing transactions ────────────────────────────────────────────────────────────────────────


async def test_callers_that_wait_share_a_transaction(
    statements: Statements, opened: SQLiteJournal
) -> None:
    """Two hundred calls cost one commit; no statement runs in the loop's thread."""
    statements.clear()
    reads = [opened.find(key=(SCOPE, "k")) for _ in range(100)]
    got = await together(opened, *(claim(opened, intent()) for _ in range(100)), *reads)
    assert sum(isinstance(each, Claimed) for each in got) == 100
    assert (statements.count("BEGIN IMMEDIATE"), statements.count("COMMIT")) == (1, 1)
    assert len(await opened.rows(SCOPE)) == 100
    async with aclosing(opened.changes()) as changes:
        await anext(changes)
    await opened.take_over(SCOPE)
    await opened.check()
    await opened.prune(0.0)
    await opened.aclose()


async def test_one_caller_alone_costs_one_transaction(
    statements: Statements, opened: SQLiteJournal
) -> None:
    """A write is one transaction, and a read is none."""
    mine = intent()
    statements.clear()
    await claim(opened, mine)
    assert statements.count("COMMIT") == 1
    statements.clear()
    await opened.find(token_hash=mine.token_hash)
    assert [each for each in statements if not each.startswith("SELECT")] == []


async def test_a_busy_answer_writes_nothing(statements: Statements, opened: SQLiteJournal) -> None:
    """A repeated key costs no commit that has to be synced: the mark stays where it is."""
    await claimed(opened, intent(key="k"))
    lock = opened.path / "journal.lock"
    before = lock.read_bytes()
    await standing(opened, intent(key="k"))
    assert lock.read_bytes() == before
    await claimed(opened)
    assert lock.read_bytes() != before


# ─── errors of one caller ────────────────────────────────────────────────────────────────────────


async def test_an_error_of_one_caller(sqlite: SQLiteJournal) -> None:
    """What fails of one caller takes nothing from the others in the same transaction."""
    double = "ab" * 32
    wanted = [intent(token_hash=double if n in (3, 7, 8) else None) for n in range(20)]
    got = await together(sqlite, *(claim(sqlite, each) for each in wanted))
    failed = [n for n, each in enumerate(got) if isinstance(each, JournalError)]
    assert failed == [7, 8]
    assert len(await sqlite.rows(SCOPE)) == 18
    moved = await together(
        sqlite, *(sqlite.advance(each.intent_id, State.REFUSED) for each in wanted)
    )
    assert [n for n, each in enumerate(moved) if isinstance(each, JournalError)] == failed


async def test_a_claim_that_was_repeated_returns_the_slot_that_was_written(
    sqlite: SQLiteJournal,
) -> None:
    """The first transaction failed because of another caller, and its slots with it."""
    wanted = intent()
    got, failed = await together(
        sqlite, claim(sqlite, wanted), sqlite.advance("no such intent", State.REFUSED)
    )
    assert isinstance(failed, JournalError)
    assert isinstance(got, Claimed)
    await sqlite.release(got.slot, sent=True)
    assert await ids(sqlite, State.RESTING) == [wanted.intent_id]


async def test_an_error_of_one_reader(sqlite: SQLiteJournal) -> None:
    """Readers that share a turn fail by themselves only, each with an error of its own."""
    row = await accepted(sqlite)
    names = [row.token_hash, "\ud800", row.token_hash, "\ud800", row.token_hash]
    got = await together(sqlite, *(sqlite.find(token_hash=name) for name in names))
    assert [type(each) for each in got] == [Intent, JournalError, Intent, JournalError, Intent]
    assert got[1] is not got[3]


async def test_nothing_stays_of_what_fails_halfway(sqlite: SQLiteJournal) -> None:
    """An intent that cannot be written takes no key and supersedes nothing, alone or not."""
    row = await claimed(sqlite, intent(key="k"))
    old = await sqlite.advance(row.intent_id, State.UNKNOWN)
    for count in (1, 3):
        calls = [
            claim(sqlite, intent(key="k", supersedes=old.intent_id, token_hash=old.token_hash)),
            *(claim(sqlite, intent()) for _ in range(count - 1)),
        ]
        failed, *others = await together(sqlite, *calls)
        assert isinstance(failed, JournalError)
        assert all(isinstance(each, Claimed) for each in others)
        assert await sqlite.find(key=(SCOPE, "k")) == old


async def test_a_move_that_fails_halfway(sqlite: SQLiteJournal) -> None:
    """Nothing of it is written, whether it shares a transaction or not."""
    row = await accepted(sqlite)

    def half(table: Table) -> None:
        table.advance(row.intent_id, State.CALLED_BACK, None, {})
        raise JournalError("halfway")

    writer = sqlite._opened()
    with pytest.raises(JournalError, match="halfway"):
        await writer.do(half, writes=True)
    assert await sqlite.find(intent_id=row.intent_id) == row
    await asyncio.gather(
        writer.do(half, writes=True), claim(sqlite, intent()), return_exceptions=True
    )
    assert await sqlite.find(intent_id=row.intent_id) == row
    after = await sqlite.advance(row.intent_id, State.FAILED)
    assert (after.state, after.task_id) == (State.FAILED, row.task_id)


async def test_an_error_that_is_a_bug(sqlite: SQLiteJournal) -> None:
    """Whatever is raised in the thread is raised in its caller; the thread goes on."""
    writer = sqlite._opened()
    ways: list[Callable[[], Awaitable[object]]] = [
        lambda: writer.do(lambda _: 1 / 0, writes=True),
        lambda: writer.do(lambda _: 1 / 0, writes=False),
        lambda: writer.run(lambda _: 1 / 0),
    ]
    for way in ways:
        with pytest.raises(ZeroDivisionError):
            await way()
    await accepted(sqlite)


@pytest.mark.fault("S16")
@pytest.mark.fault("S27")
async def test_all_callers_wait_once_for_a_lock_that_is_held(
    sqlite: SQLiteJournal, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone gets an error after one wait, not one after another; readers need no lock."""
    await ids(sqlite)
    await ids(other)
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.2)
    waits: list[None] = []
    wait = locks.Lock._wait

    def counted(lock: locks.Lock, timeout: float) -> None:
        waits.append(None)
        wait(lock, timeout)

    monkeypatch.setattr(locks.Lock, "_wait", counted)
    began, held = threading.Event(), threading.Event()

    def hold(its: store.Store) -> None:
        with its.folder.lock.held():
            began.set()
            held.wait(10)

    holding = asyncio.ensure_future(in_thread(other, hold))
    await asyncio.to_thread(began.wait)
    fresh = SQLiteJournal(sqlite.path)
    for journal, readers in ((sqlite, type(None)), (fresh, JournalError)):
        waits.clear()
        got = await together(
            journal,
            *(claim(journal, intent()) for _ in range(10)),
            *(journal.find(token_hash="t") for _ in range(10)),
        )
        assert [type(each) for each in got] == [JournalError] * 10 + [readers] * 10
        assert len({id(each) for each in got[:10]}) == 10
        assert len(waits) == 1
        assert "journal.lock has been locked for more than 0.2 s by process " in str(got[0])
    held.set()
    await holding
    monkeypatch.undo()
    assert await ids(sqlite) == []
    await claimed(sqlite)
    await claimed(fresh)
    await fresh.aclose()


@pytest.mark.fault("S27")
async def test_the_wait_for_a_lock_counts_from_the_call(
    sqlite: SQLiteJournal, other: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that came while others waited in vain does not wait as long once more."""
    await ids(sqlite)
    await ids(other)
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.5)
    began, held, waiting = threading.Event(), threading.Event(), threading.Event()
    timeouts: list[float] = []
    wait = locks.Lock._wait

    def counted(lock: locks.Lock, timeout: float) -> None:
        timeouts.append(timeout)
        waiting.set()
        wait(lock, timeout)

    def hold(its: store.Store) -> None:
        with its.folder.lock.held():
            began.set()
            held.wait(10)

    holding = asyncio.ensure_future(in_thread(other, hold))
    await asyncio.to_thread(began.wait)
    monkeypatch.setattr(locks.Lock, "_wait", counted)
    calls = [asyncio.ensure_future(claim(sqlite, intent()))]
    await asyncio.to_thread(waiting.wait)
    calls.append(asyncio.ensure_future(claim(sqlite, intent())))
    got = await asyncio.gather(*calls, return_exceptions=True)
    held.set()
    await holding
    assert [type(each) for each in got] == [JournalError] * 2
    assert (timeouts[0] > 0.3, timeouts[1] < 0.3) == (True, True)


# ─── cancelled callers ───────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("L9")
@pytest.mark.parametrize("cancelled", [{0}, {0, 3}, {4}, {0, 1, 2, 3, 4}])
async def test_callers_that_are_cancelled_before_their_turn(
    sqlite: SQLiteJournal, cancelled: set[int]
) -> None:
    """Nothing of theirs is written; the others, who share their turn, are served."""
    await ids(sqlite)
    wanted = [intent() for _ in range(5)]
    async with busy(sqlite):
        claims = [asyncio.ensure_future(claim(sqlite, each)) for each in wanted]
        await asyncio.sleep(0)
        for n in cancelled:
            claims[n].cancel()
        await asyncio.sleep(0)
    got = await asyncio.gather(*claims, return_exceptions=True)
    assert {
        n for n, each in enumerate(got) if isinstance(each, asyncio.CancelledError)
    } == cancelled
    kept = [each.intent_id for n, each in enumerate(wanted) if n not in cancelled]
    assert await ids(sqlite) == kept
    await accepted(sqlite)


@pytest.mark.fault("L9")
async def test_a_caller_that_is_cancelled_in_its_turn(sqlite: SQLiteJournal) -> None:
    """What was begun is written, and those who are served in the same turn get their answers."""
    await ids(sqlite)
    begun, held = threading.Event(), threading.Event()
    row = intent()

    def slow(table: Table) -> None:
        begun.set()
        held.wait(10)
        table.claim(row, "account", None, 10.0)

    async with busy(sqlite):
        first = asyncio.ensure_future(sqlite._opened().do(slow, writes=True))
        others = [asyncio.ensure_future(claim(sqlite, intent())) for _ in range(3)]
        await asyncio.sleep(0)
    await asyncio.to_thread(begun.wait)
    first.cancel()
    await asyncio.sleep(0)
    held.set()
    assert [type(each) for each in await asyncio.gather(*others)] == [Claimed] * 3
    with suppress(asyncio.CancelledError):
        await first
    assert first.cancelled()
    assert row.intent_id in await ids(sqlite)
    assert len(await ids(sqlite)) == 4


@pytest.mark.fault("L9")
async def test_closing_that_is_cancelled(sqlite: SQLiteJournal, folder: Path) -> None:
    """It lets go all the same."""
    await claimed(sqlite)
    thread = sqlite._opened()._thread
    async with busy(sqlite):
        closing = asyncio.ensure_future(sqlite.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(closing, return_exceptions=True)
    assert closing.cancelled()
    await asyncio.to_thread(thread.shutdown)
    assert list((folder / "owners").iterdir()) == []


# ─── closing and ending ──────────────────────────────────────────────────────────────────────────


async def test_closing_with_work_in_flight(folder: Path) -> None:
    """What is asked for before it closes is written before it lets go, and nothing opens again."""
    journal = SQLiteJournal(folder)
    await claimed(journal)
    its = journal._opened()._store
    claims = [asyncio.ensure_future(claim(journal, intent())) for _ in range(3)]
    await asyncio.sleep(0)
    await journal.aclose()
    assert [type(each) for each in await asyncio.gather(*claims)] == [Claimed] * 3
    assert its._table is None
    assert list((folder / "owners").iterdir()) == []
    assert len(await ids(journal)) == 4
    await journal.aclose()
    await journal.aclose()


async def test_a_store_that_is_closed_is_not_tidied(opened: SQLiteJournal) -> None:
    """Closing may come between a write and the tidying that follows it; nothing opens again."""
    its = opened._opened()._store
    await opened.aclose()
    its._commits_since_checkpoint, its._prune_at = 10_000, 0.0
    await asyncio.to_thread(its.tidy)
    assert its._table is None


@pytest.mark.fault("L7")
async def test_callers_when_the_program_is_ending(opened: SQLiteJournal) -> None:
    """All who ask then get an error at once; none waits for a turn that does not come."""
    writer = opened._opened()
    thread, writer._thread = writer._thread, ThreadPoolExecutor(1)
    writer._thread.shutdown()
    calls = [claim(opened, intent()), opened.find(key=(SCOPE, "k")), opened.stats()]
    got = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in got] == [JournalError] * 3
    assert "the program is exiting" in str(got[0])
    writer._thread = thread
    await accepted(opened)


# ─── several event loops ─────────────────────────────────────────────────────────────────────────


@pytest.mark.real_time
@pytest.mark.fault("S15")
def test_four_event_loops_at_once(folder: Path) -> None:
    """Four threads, each with a loop of its own, may share one journal; each key is bought once."""
    journal = SQLiteJournal(folder)
    won: list[int] = []
    start = threading.Barrier(4)

    async def main() -> None:
        async with aclosing(journal.changes()) as changes:
            await anext(changes)
            await asyncio.to_thread(start.wait)
            got = await asyncio.gather(
                *(claim(journal, intent(key=f"{n}")) for n in range(50)),
            )
            await claim(journal, intent(scope="elsewhere"))
            await asyncio.wait_for(anext(changes), 30)
            won.append(sum(isinstance(each, Claimed) for each in got))
            await asyncio.to_thread(start.wait)  # until all are done, every owner is alive

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 4
    assert sum(won) == 50

    async def close() -> None:
        assert len(await ids(journal)) == 50
        assert await ids(journal, State.SENDING) == []  # their loops are closed
        await journal.aclose()

    asyncio.run(close())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_waiting_for_a_lock_leaves_no_descriptor(tmp_path: Path) -> None:
    """It is got on a descriptor of the thread that waited; the one before is closed."""
    one, two = locks.Lock(tmp_path / "lock"), locks.Lock(tmp_path / "lock")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        holding = one.held()
        holding.__enter__()
        end = threading.Timer(0.1, holding.__exit__, (None, None, None))
        end.start()
        with two.held():
            pass
        end.join()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    one.close()
    two.close()


def test_a_caller_that_waited_long_for_others_still_gets_a_moment(tmp_path: Path) -> None:
    """For the lock: it must not fail at once because earlier jobs of its process took long."""
    one, two = locks.Lock(tmp_path / "lock"), locks.Lock(tmp_path / "lock")
    holding = one.held()
    holding.__enter__()
    end = threading.Timer(0.1, holding.__exit__, (None, None, None))
    end.start()
    with two.held(waited=100.0):
        end.join()
    one.close()
    two.close()


# ─── many rows ───────────────────────────────────────────────────────────────────────────────────


async def fill(folder: Path, count: int, scope: str, *, age: float = 0.0) -> None:
    """A journal with so many finished tasks that nobody took, of an owner that is dead."""
    journal = SQLiteJournal(folder)
    row = await accepted(journal, intent(key="key 0", scope=scope))
    await journal.advance(row.intent_id, State.SUCCEEDED)
    await journal.aclose()
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database, database:
        database.execute(
            "WITH RECURSIVE n(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < ?) "
            "INSERT INTO intents SELECT n + 1, printf('%032x', n), account, origin, scope, "
            "'key ' || n, 1, fingerprint, printf('%064x', n), '{}', created_at, state, "
            "printf('t%031x', n), NULL, accepted_at - ?, ended_at - ?, 0, NULL, owner, 0 "
            "FROM intents, n",
            (count - 1, age, age),
        )


@pytest.mark.fault("L18")
async def test_resume_reads_pages_and_gives_the_loop_a_turn_between_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,500 rows are four reads, and no turn of the loop makes more handles than a page has."""
    turns, counts, made = 0, list[int](), list[Intent]()

    def make(row: Intent, session: Session) -> TaskHandle:
        made.append(row)
        return handle_of(row, session)

    monkeypatch.setattr(client_module, "handle_of", make)

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    class Counting(SQLiteJournal):
        async def rows(self, *args: str | None, **which: Unpack[RowFilter]) -> list[Intent]:
            if State.UNKNOWN in which.get("states", ()):
                return await super().rows(*args, **which)  # those with candidates
            assert len(made) == sum(counts)
            found = await super().rows(*args, **which)
            counts.append(len(found))
            pages.append(turns)
            return found

    pages: list[int] = []
    await fill(folder, 1500, "http://127.0.0.1:9 default")
    journal = Counting(folder)
    async with client_of("http://127.0.0.1:9", journal=journal) as client:
        ticking = asyncio.ensure_future(tick())
        handles = await client.resume()
        ticking.cancel()
        assert isinstance(handles, list)
        assert [handle.key for handle in handles] == [f"key {n}" for n in range(1500)]
    assert counts == [500, 500, 500, 0]
    assert pages == sorted(set(pages))
    await journal.aclose()


@pytest.mark.fault("L18")
async def test_old_rows_are_pruned_in_turns(folder: Path) -> None:
    """16 days after its end a row goes, taken or not; a caller waits for one page of them."""
    await fill(folder, 1500, SCOPE, age=stored.KEPT + 60)
    journal = SQLiteJournal(folder)
    left = [sum((await journal.stats()).counts.values()) for _ in range(20)]
    assert (await journal.stats()).spent_keys == 1499
    assert left[-1] == 1  # the one that has just ended
    assert 1000 in left
    await journal.aclose()


@pytest.mark.fault("I6")
@pytest.mark.slow
@pytest.mark.real_time
@pytest.mark.fault("L18")
async def test_a_hundred_thousand_rows_that_nobody_took(folder: Path) -> None:
    """Opening takes no longer than a few times SQLite's own check; resume holds the loop little."""
    await fill(folder, 100_000, "http://127.0.0.1:9 default")
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database:
        started = time.monotonic()
        database.execute("PRAGMA integrity_check('intents')").fetchall()
        reference = time.monotonic() - started
    client = client_of("http://127.0.0.1:9", journal=folder)
    started = time.monotonic()
    await client.open()
    opening = time.monotonic() - started
    loop, stalls = asyncio.get_running_loop(), list[float]()

    async def tick() -> None:
        while True:
            before = loop.time()
            await asyncio.sleep(0.001)
            stalls.append(loop.time() - before)

    ticking = asyncio.ensure_future(tick())
    started = time.monotonic()
    assert len(await client.resume()) == 100_000
    took = time.monotonic() - started
    ticking.cancel()
    await client.aclose()
    print(f"check {reference:.2f} s, opening {opening:.2f} s, resume {took:.2f} s, "
          f"longest stall {max(stalls) * 1000:.0f} ms")  # fmt: skip
    assert opening < 4 * reference
    assert max(stalls) < took / 10
