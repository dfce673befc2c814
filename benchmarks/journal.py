"""What a journal in a folder costs over the disk that it syncs to.

    python benchmarks/journal.py [--quick] [--submits N] [--callbacks N] [--folder FOLDER]

- A durable submit is a claim and an advance, each synced. Its reference is one synced commit of the
  same row in the same journal mode, by bare sqlite3 without a lock or checks: WAL, and after the
  COMMIT a mark in another file, written and synced. A thread does it, awaited by the event loop, as
  an asyncio program has to do it. Both are measured by turns, one at a time.
- Durable callbacks: another process sends them over 64 connections to the receiver's own server,
  for tasks without a waiter; each is on the disk, synced, before it is answered. Beside it a bare
  aiohttp.web handler that resolves a future, and a client with its journal in memory.
"""

import asyncio
import os
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

from _ends import End, our_end, raw_end
from _raw import PROMPT
from _report import Promise, options, report
from _server import Service
from midapi_async import RateLimit, TextToImage
from midapi_async._wire.bodies import fingerprint
from midapi_async.journal import Claimed, Intent, State
from midapi_async.journal.sqlite import SQLiteJournal, schema

SUBMIT_RATIO, CALLBACKS_PER_SECOND = 3.0, 500.0
CONNECTIONS = 64
BLOCK = 25
FOX = TextToImage(PROMPT)
LIMIT = RateLimit(20, per=0.01)
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=0")


def intent() -> Intent:
    """A submission as clients make them."""
    name = uuid.uuid4().hex
    return Intent(
        intent_id=name,
        scope="https://api.midapi.ai default",
        request=FOX,
        fingerprint=fingerprint(FOX),
        token_hash=name + name,
        created_at=time.time(),
        key=f"order {name}",
        metadata={"channel": "42"},
    )


class BareCommit:
    """Bare sqlite3, and a mark beside it.

    Args:
        folder: where it lives.
        row: of the table of intents, by column; each commit inserts one like it.
        text: of the table of texts.
    """

    def __init__(self, folder: Path, row: dict[str, object], text: str) -> None:
        self._row, self._text = row, text
        self._mark = os.open(folder / "bare.mark", os.O_RDWR | os.O_CREAT)
        self._connection = sqlite3.connect(
            folder / "bare.sqlite", isolation_level=None, check_same_thread=False
        )
        schema.make(self._connection)
        for pragma in PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")
        places = ", ".join(f":{name}" for name in row)
        self._insert = f"INSERT INTO intents ({', '.join(row)}) VALUES ({places})"  # noqa: S608
        self._count = 0

    def commit(self) -> None:
        """One synced commit of one row."""
        self._count += 1
        name = uuid.uuid4().hex
        names = {"intent_id": name, "token_hash": name + name, "key": name, "task_id": name}
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        execute(self._insert, {**self._row, **names, "number": self._count})
        execute("INSERT INTO texts VALUES (?, ?, NULL)", (self._count, self._text))
        execute("COMMIT")
        os.pwrite(self._mark, self._count.to_bytes(8, "little"), 0)
        os.fdatasync(self._mark)

    def close(self) -> None:
        """Close both files."""
        self._connection.close()
        os.close(self._mark)


async def durable_submit(journal: SQLiteJournal) -> tuple[float, float]:
    """Seconds for what a submission writes before its POST, and after it."""
    mine = intent()
    begun = time.perf_counter()
    claim = await journal.claim(mine, "account", LIMIT, longest_post=1.0)
    claimed = time.perf_counter()
    assert isinstance(claim, Claimed)
    await journal.advance(mine.intent_id, State.ACCEPTED, slot=claim.slot, task_id=mine.intent_id)
    return claimed - begun, time.perf_counter() - claimed


async def submits(folder: Path, count: int) -> dict[str, float]:
    """Durable submits and bare commits, in blocks by turns."""
    journal = SQLiteJournal(folder)
    await durable_submit(journal)
    with sqlite3.connect(folder / "journal.sqlite") as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM intents").fetchone())
        text = connection.execute("SELECT request FROM texts").fetchone()[0]
    connection.close()
    bare = BareCommit(folder, row, text)
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    commits, claims, advances = [], [], []
    for _ in range(-(-count // BLOCK)):
        for _ in range(BLOCK):
            begun = time.perf_counter()
            await loop.run_in_executor(thread, bare.commit)
            commits.append(time.perf_counter() - begun)
        for _ in range(BLOCK):
            claim, advance = await durable_submit(journal)
            claims.append(claim)
            advances.append(advance)
            await asyncio.sleep(LIMIT.per / LIMIT.count)  # a slot is free for the next one
    thread.shutdown()
    bare.close()
    await journal.aclose()
    both = [claim + advance for claim, advance in zip(claims, advances, strict=True)]
    named = {"bare commit": commits, "claim": claims, "advance": advances, "durable submit": both}
    p50 = {name: 1000 * statistics.median(times) for name, times in named.items()}
    return p50 | {"ratio": p50["durable submit"] / p50["bare commit"]}


async def callbacks(folder: Path, count: int, slices: int) -> dict[str, float]:
    """Callbacks per second over 64 connections, by turns; the medians of the slices."""
    async with Service() as service, AsyncExitStack() as exits:
        ends: dict[str, End] = {
            "raw aiohttp": await exits.enter_async_context(raw_end(service)),
            "memory": await exits.enter_async_context(our_end(service)),
            "folder": await exits.enter_async_context(our_end(service, folder)),
        }
        rates: dict[str, list[float]] = {name: [] for name in ends}
        for name, end in slices * list(ends.items()):
            task_ids = await end.order(CONNECTIONS + count)
            await service.call(task_ids[:CONNECTIONS], CONNECTIONS)  # opens connections
            calls = await service.call(task_ids[CONNECTIONS:], CONNECTIONS)
            rates[name].append(count / (time.monotonic() - min(calls.sent_at)))
            assert calls.statuses == [200]
            assert end.taken() == len(task_ids)
    return {name: statistics.median(each) for name, each in rates.items()}


def main() -> int:
    """Measure, print and write."""
    parser = options(__file__, __doc__)
    parser.add_argument("--submits", type=int, help="default 500, or 25 with --quick")
    parser.add_argument("--callbacks", type=int, help="in a slice; default 1000, or 64")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        times = asyncio.run(
            submits(Path(place) / "one", given.submits or (25 if given.quick else 500))
        )
        count = given.callbacks or (64 if given.quick else 1000)
        rates = asyncio.run(callbacks(Path(place) / "two", count, 1 if given.quick else 3))
    for name, value in times.items():
        print(f"{name + ('' if name == 'ratio' else ', p50 ms'):34}{value:10.2f}")
    for name, value in rates.items():
        print(f"{name + ', callbacks/s':34}{value:10.0f}")
    promises = [
        Promise("durable submit / bare synced commit, p50", times["ratio"], SUBMIT_RATIO),
        Promise(
            "durable callbacks a second over 64 connections",
            rates["folder"],
            CALLBACKS_PER_SECOND,
            at_least=True,
        ),
    ]
    report(given.json, {"submits": times, "callbacks": rates}, promises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
