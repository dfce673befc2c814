"""The slots of an account, where the contract of the journals leaves a question open."""

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from midapi_async import RateLimit
from midapi_async.journal import Busy, Claimed, Journal
from midapi_async.journal.contract import FLOAT, an_intent, ask, claimed, expect, fill, free_slots
from midapi_async.journal.sqlite import SQLiteJournal


@pytest.mark.fault("S6")
async def test_a_refused_post_counts_for_its_own_intent_too(any_journal: Journal) -> None:
    """MidAPI has counted it: the same intent waits a whole window like everybody else."""
    limit, intent = RateLimit(1, per=10.0), an_intent()
    slot = expect(Claimed, await ask(any_journal, intent, limit)).slot
    await any_journal.release(slot, sent=True)
    got = expect(Busy, await ask(any_journal, intent, limit))
    assert got.retry_in == pytest.approx(10.0, abs=0.5)


async def test_an_overdue_post_counts_from_its_real_end(any_journal: Journal) -> None:
    """On a busy machine a POST can take longer than it should; MidAPI may count it at its end."""
    limit = RateLimit(1, per=10.0)
    slot = expect(Claimed, await ask(any_journal, None, limit, longest_post=5.0)).slot
    await asyncio.sleep(8.0)
    await any_journal.release(slot, sent=True)
    got = expect(Busy, await ask(any_journal, None, limit))
    assert got.retry_in == pytest.approx(10.0, abs=0.5)


@pytest.mark.fault("S5")
async def test_a_429_of_a_client_without_a_limit_pauses_all(any_journal: Journal) -> None:
    """It pauses the account like any other 429; there is no limit of this client to halve."""
    limit = RateLimit(4, per=10.0)
    slot = expect(Claimed, await ask(any_journal, None, None)).slot
    await any_journal.release(slot, sent=True, pause=7.0)
    for asked in (None, limit):
        got = expect(Busy, await ask(any_journal, None, asked))
        assert got.retry_in == pytest.approx(7.0, abs=0.5)
    await asyncio.sleep(7.0 + FLOAT)
    assert await free_slots(any_journal, limit) == 3  # its own slot is still busy


@pytest.mark.fault("S6")
async def test_a_429_that_is_not_waited_for_halves_too(any_journal: Journal) -> None:
    """A submission that gives up at once needs no pause; the limit was exceeded all the same."""
    limit = RateLimit(8, per=10.0)
    slot = expect(Claimed, await ask(any_journal, None, limit)).slot
    await any_journal.release(slot, sent=True, pause=0.0)
    assert await free_slots(any_journal, limit) == 3  # of four; its own is still busy


async def test_retry_in_while_more_slots_are_busy_than_allowed(any_journal: Journal) -> None:
    """After a 429 two of four slots are allowed, so three of the four must be free again."""
    limit = RateLimit(4, per=10.0)
    for slot in await fill(any_journal, limit):
        await any_journal.release(slot, sent=True, pause=0.5)
        await asyncio.sleep(1.0)
    got = expect(Busy, await ask(any_journal, None, limit))
    assert got.retry_in == pytest.approx(8.0, abs=0.2)


async def test_a_post_of_a_dead_owner_may_still_be_on_its_way(
    sqlite: SQLiteJournal, other: SQLiteJournal
) -> None:
    """The owner may only stand still, and send it until 5 s after its claim."""
    limit, waited = RateLimit(1, per=10.0), 0.0
    expect(Claimed, await ask(other, None, limit))
    await other.aclose()
    while isinstance(got := await ask(sqlite, None, limit), Busy):
        await asyncio.sleep(got.retry_in + FLOAT)
        waited += got.retry_in
    assert waited == pytest.approx(15.0, abs=0.5)


async def test_slots_that_are_free_again_are_deleted(sqlite: SQLiteJournal, folder: Path) -> None:
    """Each claim reads the account's slots, so they must not pile up for months."""
    limit = RateLimit(2, per=10.0)
    for _ in range(5):
        for slot in await fill(sqlite, limit):
            await sqlite.release(slot, sent=True)
        await asyncio.sleep(10.0 + FLOAT)
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database:
        (count,) = database.execute("SELECT count(*) FROM slots").fetchone()
    assert count == 2


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_slot_of_the_future_is_free_after_a_window(
    sqlite: SQLiteJournal, folder: Path, *, is_open: bool
) -> None:
    """After a reboot the clock begins again, and not every system tells one boot from another."""
    limit, waited = RateLimit(1, per=10.0), 0.0
    (slot,) = await fill(sqlite, limit)
    if not is_open:
        await sqlite.release(slot, sent=True)
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database, database:
        database.execute("UPDATE slots SET started = started + 1e6, ends_at = ends_at + 1e6")
    while isinstance(got := await ask(sqlite, None, limit), Busy) and waited < 100.0:
        await asyncio.sleep(got.retry_in + FLOAT)
        waited += got.retry_in
    assert waited == pytest.approx(10.0, abs=0.5)


async def test_slots_and_limits_of_another_boot_are_over(
    sqlite: SQLiteJournal, folder: Path
) -> None:
    """The clock of the machine began again; a reboot takes longer than a window."""
    limit = RateLimit(4, per=10.0)
    await sqlite.release((await fill(sqlite, limit))[0], sent=True, pause=5.0)
    expect(Busy, await ask(sqlite, None, limit))
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database, database:
        database.execute("UPDATE slots SET boot = 'another'")
        database.execute("UPDATE accounts SET boot = 'another'")
    assert len(await fill(sqlite, limit)) == 4


def test_slots_count_on_a_clock_that_nobody_sets(folder: Path) -> None:
    """Setting the wall clock must free no slot, and the machine may sleep meanwhile."""

    async def take() -> None:
        journal = SQLiteJournal(folder)
        await claimed(journal, an_intent())
        await journal.aclose()

    asyncio.run(take())
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database:
        (started,) = database.execute("SELECT started FROM slots").fetchone()
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    assert started == pytest.approx(time.clock_gettime(clock), abs=60.0)
