"""What the SQLite journal costs over the disk that it syncs to.

    python benchmarks/journal.py [--folder FOLDER] [--json FILE] [--seconds SECONDS]

Everything is measured in one run, what is compared by turns. The reference is one synced commit of
the same row into the same file, by bare sqlite3 with no lock and no checks: once awaited, in a
thread beside the event loop, as an asyncio program has to do it; and once blocking, as none should.
Holds: a durable submit (a claim and an advance, each synced) takes at most 3 awaited ones, at p50.

A callback finds its intent by its token; then, its body read, it writes down that it came, synced.
The reference does that in bare sqlite3, all who came meanwhile in one turn of a thread and in one
transaction. Holds: with 64 at once at least 0.4 times as many are served in a second. That is what
4,000/s leave, where the reference did 5,990/s with a server around that took 105 µs of each; what
the receiver's own server makes of it, `receiver.py` tells.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from midapi_async import TextToImage
from midapi_async._wire.bodies import fingerprint, request_to_json
from midapi_async.journal import Intent, State
from midapi_async.journal._store import Store
from midapi_async.journal.sqlite import SQLiteJournal

HOLD, RATIO = 3.0, "durable submit / bare commit, awaited"
HOLD_CALLBACKS, CALLBACKS_RATIO = 0.4, "callbacks, 64 at once / bare group commit"
AT_ONCE = 64
FOX = TextToImage("a red fox in the snow, early morning, 35 mm, soft light", aspect_ratio="16:9")
FINGERPRINT = fingerprint(FOX)
BODY = json.dumps(request_to_json(FOX))
INSERT = (
    "INSERT INTO intents (intent_id, scope, request, fingerprint, token_hash, created_at, key, "
    "metadata, state, taken, owner, holds_key) VALUES (?, 'bare', ?, ?, ?, 0, ?, '{}', 'refused', "
    "0, '', 1)"
)


def intent() -> Intent:
    """A submission as clients make them."""
    name = uuid.uuid4().hex
    return Intent(
        intent_id=name,
        scope="https://api.midapi.ai default",
        request=FOX,
        fingerprint=FINGERPRINT,
        token_hash=name + name,
        created_at=time.time(),
        key=f"order {name}",
        metadata={"channel": "42"},
    )


def bare_connection(folder: Path) -> sqlite3.Connection:
    """The same file, with the same promises, and nothing around it."""
    connection = sqlite3.connect(
        folder / "journal.sqlite", isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    return connection


def bare_commit(connection: sqlite3.Connection) -> float:
    """Seconds for one synced commit of one row."""
    name = uuid.uuid4().hex
    started = time.perf_counter()
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(INSERT, (name, BODY, FINGERPRINT, name + name, f"order {name}"))
    connection.execute("COMMIT")
    return time.perf_counter() - started


async def durable_submit(journal: SQLiteJournal) -> tuple[float, float]:
    """Seconds for what a submission writes before its POST, and after it."""
    mine = intent()
    started = time.perf_counter()
    await journal.claim(mine)
    claimed = time.perf_counter()
    await journal.advance(mine.intent_id, State.ACCEPTED, task_id=mine.intent_id)
    return claimed - started, time.perf_counter() - claimed


async def latencies(folder: Path, blocks: int) -> dict[str, float]:
    """Both, by turns, so that whatever else the disk does falls on both."""
    journal = SQLiteJournal(folder)
    await durable_submit(journal)
    connection = bare_connection(folder)
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    bare, awaited, claims, advances = [], [], [], []
    for _ in range(blocks):
        bare += [bare_commit(connection) for _ in range(25)]
        for _ in range(25):
            started = time.perf_counter()
            await loop.run_in_executor(thread, bare_commit, connection)
            awaited.append(time.perf_counter() - started)
        for claim, advance in [await durable_submit(journal) for _ in range(25)]:
            claims.append(claim)
            advances.append(advance)
    thread.shutdown()
    connection.close()
    await journal.aclose()
    submits = [claim + advance for claim, advance in zip(claims, advances, strict=True)]
    p50 = statistics.median
    return {
        "bare synced commit, blocking, p50 µs": p50(bare) * 1e6,
        "bare synced commit, awaited, p50 µs": p50(awaited) * 1e6,
        "claim, p50 µs": p50(claims) * 1e6,
        "advance, p50 µs": p50(advances) * 1e6,
        "durable submit, p50 µs": p50(submits) * 1e6,
        "durable submit, p99 µs": statistics.quantiles(submits, n=100)[-1] * 1e6,
        "durable submit / bare commit, blocking": p50(submits) / p50(bare),
        RATIO: p50(submits) / p50(awaited),
    }


Call = tuple[str, int | str, asyncio.Future[int]]
FIND = "SELECT * FROM intents WHERE token_hash = ?"
WRITE = "UPDATE intents SET state = 'called_back' WHERE number = ?"


class BareGroupCommit:
    """The least that a callback costs: all who wait share a turn of the thread, and its commit."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[Call] = []
        self._is_busy = False

    async def take(self, token_hash: str) -> None:
        """Find it; then, as the body is read only now, write that it came. Return when synced."""
        await self._call(WRITE, await self._call(FIND, token_hash))

    async def _call(self, statement: str, value: int | str) -> int:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        self._waiting.append((statement, value, done))
        if not self._is_busy:
            self._is_busy = True
            loop.call_soon(self._hand_over)
        return await done

    def _hand_over(self) -> None:
        calls, self._waiting = self._waiting, []
        self._is_busy = bool(calls)
        if calls:
            loop = asyncio.get_running_loop()
            turn = loop.run_in_executor(self._thread, self._serve, calls)
            turn.add_done_callback(partial(self._wake, calls))

    def _serve(self, calls: Sequence[Call]) -> list[int]:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        rows = [execute(statement, (value,)).fetchone() for statement, value, _ in calls]
        execute("COMMIT")
        return [row[0] if row is not None else 0 for row in rows]

    def _wake(self, calls: Sequence[Call], turn: asyncio.Future[list[int]]) -> None:
        for (_, _, done), number in zip(calls, turn.result(), strict=True):
            done.set_result(number)
        self._hand_over()

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown()


async def accepted(journal: SQLiteJournal, count: int) -> list[str]:
    """The hashes of so many tokens whose callbacks are to come."""
    rows = [intent() for _ in range(count)]

    async def submit(row: Intent) -> None:
        await journal.claim(row)
        await journal.advance(row.intent_id, State.ACCEPTED, task_id=row.intent_id)

    await asyncio.gather(*map(submit, rows))
    return [row.token_hash or "" for row in rows]


async def at_once(take: Callable[[str], Awaitable[None]], hashes: Sequence[str]) -> float:
    """How many are taken in a second, each sender sending one after another."""
    left = iter(hashes)

    async def send() -> None:
        for token_hash in left:
            await take(token_hash)

    started = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return len(hashes) / (time.perf_counter() - started)


async def callbacks(folder: Path, slices: int) -> dict[str, float]:
    """First callbacks, the same again, and the reference, by turns."""
    journal = SQLiteJournal(folder)

    async def take(token_hash: str) -> None:
        row = await journal.find(token_hash=token_hash)
        assert row is not None
        if row.state is not State.CALLED_BACK:
            await journal.advance(row.intent_id, State.CALLED_BACK)

    await accepted(journal, 1)
    connection = bare_connection(folder)
    bare = BareGroupCommit(connection)
    told: list[tuple[float, float, float]] = []
    for _ in range(slices):
        mine, theirs = await accepted(journal, 1000), await accepted(journal, 1000)
        first = await at_once(take, mine)
        told.append((first, await at_once(bare.take, theirs), await at_once(take, mine)))
    bare.close()
    connection.close()
    await journal.aclose()
    firsts, bares, agains = zip(*told, strict=True)
    return {
        "callbacks/s, 64 at once": statistics.median(firsts),
        "the same again/s, 64 at once": statistics.median(agains),
        "bare group commit, callbacks/s, 64 at once": statistics.median(bares),
        CALLBACKS_RATIO: statistics.median(first / other for first, other, _ in told),
    }


async def claim_for(folder: Path, seconds: float, at_once: int) -> tuple[int, float, int]:
    """Claims, the seconds they took, and the transactions that they shared."""
    journal = SQLiteJournal(folder)
    await journal.claim(intent())
    transactions = 0
    transact = Store._transact

    def counted(store: Store, *args: object) -> None:
        nonlocal transactions
        transactions += 1
        transact(store, *args)  # type: ignore[arg-type]  # passed on

    Store._transact = counted  # type: ignore[method-assign,assignment]
    started = time.perf_counter()
    done = 0

    async def one_after_another() -> None:
        nonlocal done
        while time.perf_counter() - started < seconds:
            await journal.claim(intent())
            done += 1

    await asyncio.gather(*(one_after_another() for _ in range(at_once)))
    took = time.perf_counter() - started
    Store._transact = transact  # type: ignore[method-assign]
    await journal.aclose()
    return done, took, transactions


def in_processes(count: int, work: Callable[[], tuple[int, float, int]]) -> list[list[float]]:
    """What the same work told in each of several processes at once."""
    pipes = []
    for _ in range(count):
        reads, writes = os.pipe()
        if os.fork() == 0:
            os.write(writes, json.dumps(work()).encode())
            os._exit(0)
        os.close(writes)
        pipes.append(reads)
    told = [json.loads(os.fdopen(pipe, "rb").read()) for pipe in pipes]
    for _ in pipes:
        os.wait()
    return told


def throughput(folder: Path, seconds: float) -> dict[str, float]:
    """Claims per second: one after another, 64 at once, and from four processes."""
    four = in_processes(4, lambda: asyncio.run(claim_for(folder / "four", seconds, 1)))
    four_many = in_processes(4, lambda: asyncio.run(claim_for(folder / "four", seconds, 16)))
    alone = asyncio.run(claim_for(folder / "alone", seconds, 1))
    many = asyncio.run(claim_for(folder / "many", seconds, AT_ONCE))
    shares = [done for done, *_ in four]
    return {
        "claims/s, one process, one at a time": alone[0] / alone[1],
        "claims/s, one process, 64 at once": many[0] / many[1],
        "claims in one transaction, 64 at once": many[0] / many[2],
        "group commit, 64 at once / one at a time": (many[0] / many[1]) / (alone[0] / alone[1]),
        "claims/s, four processes, one at a time each": sum(done / took for done, took, _ in four),
        "claims/s, four processes, 16 at once each": sum(
            done / took for done, took, _ in four_many
        ),
        "four processes: the least share / the largest": min(shares) / max(shares),
    }


def main() -> int:
    """Measure, print, write, and say whether what is promised holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    parser.add_argument("--json", type=Path, default=Path("journal-benchmark.json"))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each throughput")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        # The processes first: none is forked beside threads.
        rates = throughput(Path(place), given.seconds)
        figures = (
            asyncio.run(latencies(Path(place) / "latency", int(20 * given.seconds)))
            | rates
            | asyncio.run(callbacks(Path(place) / "callbacks", int(4 * given.seconds) + 1))
        )
    for name, value in figures.items():
        print(f"{name:50}{value:12.2f}" if value < 100 else f"{name:50}{value:12.0f}")
    given.json.write_text(json.dumps({"sqlite": sqlite3.sqlite_version, **figures}, indent=1))
    held = {
        f"{RATIO} <= {HOLD:g}": figures[RATIO] <= HOLD,
        f"{CALLBACKS_RATIO} >= {HOLD_CALLBACKS:g}": figures[CALLBACKS_RATIO] >= HOLD_CALLBACKS,
    }
    for promise, holds in held.items():
        print(f"{promise}: {'holds' if holds else 'DOES NOT HOLD'}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
