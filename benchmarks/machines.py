"""What a journal on PostgreSQL costs over a bare INSERT and COMMIT.

    python benchmarks/machines.py [--quick] [--claims N] [--callbacks N] [--url URL]

Without a URL it starts a server of its own, which syncs to a disk. Everything is measured by turns.

- A claim, beside the INSERT of the same row into the same table in a transaction of its own, and as
  a single statement; one at a time.
- Claims per second, 64 at once; beside it, INSERTs over 8 connections.
- Durable callbacks: another process sends them over 64 connections to the receiver's own server.
- How long after a callback was written at one client another one wakes.
- What the import costs: asyncpg's part, which cannot be avoided, and ours.
"""

import asyncio
import secrets
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from _ends import our_end
from _raw import PROMPT
from _report import Promise, options, report
from _server import Service
from imports import import_once
from midapi_async import RateLimit, TextToImage
from midapi_async._wire.bodies import fingerprint
from midapi_async.journal import Claimed, Intent, State
from midapi_async.journal.postgres import PostgresJournal

CLAIM_RATIO, CALLBACKS_PER_SECOND, WAKE_MS, IMPORT_MS = 1.5, 500.0, 100.0, 15.0
AT_ONCE, CONNECTIONS = 64, 8
FOX = TextToImage(PROMPT)
LIMIT = RateLimit(1000, per=0.01)


def intent() -> Intent:
    """A submission as clients make them."""
    name = secrets.token_hex(16)
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


async def claim(journal: PostgresJournal, mine: Intent) -> str:
    """Claim an intent; return its slot."""
    answer = await journal.claim(mine, "account", LIMIT, longest_post=1.0)
    assert isinstance(answer, Claimed)
    return answer.slot


class Bare:
    """Writes rows like those of a journal into a table of the same form.

    Args:
        connection: to the database.
        schema: with the journal's tables, one row at least.
    """

    def __init__(self, connection: Any, schema: str) -> None:  # noqa: ANN401 - asyncpg has no types
        self.connection = connection
        self._schema = schema
        self._row: dict[str, object] = {}
        self._insert = ""

    async def prepare(self) -> None:
        """Make the table; learn what a row is like."""
        table = f'"{self._schema}".bare'
        like = f'"{self._schema}".intents'
        await self.connection.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (LIKE {like} INCLUDING ALL)"
        )
        self._row = dict(await self.connection.fetchrow(f"SELECT * FROM {like} LIMIT 1"))  # noqa: S608 - our own
        del self._row["number"]
        values = ", ".join(f"${n}" for n in range(1, len(self._row) + 1))
        self._insert = f"INSERT INTO {table} ({', '.join(self._row)}) VALUES ({values})"  # noqa: S608 - our own

    async def insert(self) -> None:
        """One row, durable; a single statement."""
        name = secrets.token_hex(16)
        names = {"intent_id": name, "token_hash": name + name, "key": name, "task_id": name}
        await self.connection.execute(self._insert, *{**self._row, **names}.values())

    async def insert_and_commit(self) -> None:
        """One row, durable; in a transaction."""
        async with self.connection.transaction():
            await self.insert()


async def one_by_one(journal: PostgresJournal, bare: Bare, count: int) -> dict[str, float]:
    """The medians, in ms, and the CPU of this process, in µs."""

    async def buy() -> None:
        slot = await claim(journal, mine := intent())
        ends.append((mine.intent_id, slot))

    ends: list[tuple[str, str]] = []
    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "INSERT + COMMIT": bare.insert_and_commit,
        "INSERT alone": bare.insert,
        "claim": buy,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    cpu = dict.fromkeys(ways, 0.0)
    # One of each by turns: how long a disk takes to sync changes from moment to moment.
    for _ in range(count):
        for name, way in ways.items():
            begun_cpu, begun = time.process_time(), time.perf_counter()
            await way()
            times[name].append(time.perf_counter() - begun)
            cpu[name] += time.process_time() - begun_cpu
        for name, slot in ends:
            await journal.advance(name, State.ACCEPTED, slot=slot, task_id=name)
        ends.clear()
        await asyncio.sleep(2 * LIMIT.per)
    figures = {f"{name}, p50 ms": 1000 * statistics.median(each) for name, each in times.items()}
    figures |= {f"{name}, CPU µs": 1e6 * cpu[name] / len(times[name]) for name in ways}
    p50 = {name: statistics.median(each) for name, each in times.items()}
    return figures | {
        "claim / INSERT + COMMIT": p50["claim"] / p50["INSERT + COMMIT"],
        "claim / INSERT alone": p50["claim"] / p50["INSERT alone"],
    }


async def many(work: Callable[[int], Awaitable[object]], count: int, at_once: int) -> float:
    """How many per second."""
    queue = iter(range(count))

    async def take() -> None:
        for n in queue:
            await work(n)

    begun = time.perf_counter()
    await asyncio.gather(*(take() for _ in range(at_once)))
    return count / (time.perf_counter() - begun)


async def at_once(url: str, schema: str, journal: PostgresJournal, count: int) -> dict[str, float]:
    """Claims, and callbacks as the journal sees them, per second; how soon others wake."""
    connections = [await asyncpg.connect(url) for _ in range(CONNECTIONS)]
    bares = [Bare(each, schema) for each in connections]
    for each in bares:
        await each.prepare()
    free = list(bares)

    async def insert(_: int) -> None:
        bare = free.pop()
        await bare.insert()
        free.append(bare)

    intents = [intent() for _ in range(count)]
    figures = {"INSERTs/s, 8 connections": await many(insert, count, CONNECTIONS)}
    for each in connections:
        await each.close()

    async def buy(n: int) -> None:
        await journal.claim(intents[n], "other", LIMIT, longest_post=0.01)

    async def accept(n: int) -> None:
        name = intents[n].intent_id
        await journal.advance(name, State.ACCEPTED, task_id=name)

    async def call_back(n: int) -> None:
        row = await journal.find(token_hash=intents[n].token_hash)
        assert row is not None
        await journal.advance(row.intent_id, State.CALLED_BACK, task_id=row.task_id)

    figures["claims/s, 64 at once"] = await many(buy, count, AT_ONCE)
    figures["acceptances/s, 64 at once"] = await many(accept, count, AT_ONCE)
    figures["callbacks/s, 64 at once"] = await many(call_back, count, AT_ONCE)
    other = PostgresJournal(url, schema=schema)
    wakes: list[float] = []
    async with aclosing(other.changes()) as changes:
        await anext(changes)
        for mine in [intent() for _ in range(min(count, 200))]:
            await claim(journal, mine)
            name = mine.intent_id
            await journal.advance(name, State.ACCEPTED, task_id=name)
            waiting = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0.002)
            begun = time.perf_counter()
            await journal.advance(name, State.CALLED_BACK)
            await waiting
            wakes.append(time.perf_counter() - begun)
    await other.aclose()
    wakes.sort()
    figures["wake elsewhere, p50 ms"] = 1000 * statistics.median(wakes)
    figures["wake elsewhere, p99 ms"] = 1000 * wakes[len(wakes) * 99 // 100]
    return figures


async def receiver(url: str, count: int, slices: int) -> dict[str, float]:
    """Callbacks per second over 64 connections to a receiver; the median of the slices."""
    rates = []
    async with Service() as service, our_end(service, url) as end:
        for _ in range(slices):
            task_ids = await end.order(AT_ONCE + count)
            await service.call(task_ids[:AT_ONCE], AT_ONCE)  # opens connections
            calls = await service.call(task_ids[AT_ONCE:], AT_ONCE)
            rates.append(count / (time.monotonic() - min(calls.sent_at)))
            assert calls.statuses == [200]
            assert end.taken() == len(task_ids)
    return {"receiver's callbacks/s, 64 connections": statistics.median(rates)}


def imported(runs: int) -> dict[str, float]:
    """ms of CPU that the import of the journal costs beyond that of the package, and its parts."""
    ways = ("midapi_async", "midapi_async, asyncpg", "midapi_async, midapi_async.journal.postgres")
    for way in ways:
        import_once(way)  # compiles what a fresh checkout has not compiled yet
    times = [[import_once(way) / 1000 for way in ways] for _ in range(runs)]
    median = statistics.median
    return {
        "import, ms of CPU": median(ours - package for package, _, ours in times),
        "import, asyncpg's part": median(driver - package for package, driver, _ in times),
        "import, our part": median(ours - driver for _, driver, ours in times),
    }


@contextmanager
def a_server(url: str | None) -> Iterator[str]:
    """The address of the server that was given, or of a new one."""
    if url is not None:
        yield url
        return
    sys.path.append(str(Path(__file__).parents[1]))
    from tests.support.postgres import server

    with server(is_durable=True) as new:
        yield new.url


async def measure(url: str, claims: int, callbacks: int, slices: int) -> dict[str, float]:
    """All of it, in a schema that is removed afterwards."""
    schema = f"benchmark_{secrets.token_hex(4)}"
    journal = PostgresJournal(url, schema=schema)
    await claim(journal, intent())
    connection = await asyncpg.connect(url)
    bare = Bare(connection, schema)
    await bare.prepare()
    try:
        figures = await one_by_one(journal, bare, claims)
        figures |= await at_once(url, schema, journal, 4 * callbacks)
        figures |= await receiver(url, callbacks, slices)
    finally:
        await journal.aclose()
        await connection.execute(f'DROP SCHEMA "{schema}" CASCADE')
        await connection.close()
    return figures


def main() -> int:
    """Measure, print and write."""
    parser = options(__file__, __doc__)
    parser.add_argument("--claims", type=int, help="one by one; default 500, or 25 with --quick")
    parser.add_argument("--callbacks", type=int, help="in a slice; default 1000, or 64")
    parser.add_argument("--url", help="of a server; else one is started")
    given = parser.parse_args()
    count = given.callbacks or (64 if given.quick else 1000)
    with a_server(given.url) as url:
        claims = given.claims or (25 if given.quick else 500)
        figures = asyncio.run(measure(url, claims, count, 1 if given.quick else 3))
    figures |= imported(2 if given.quick else 15)
    for name, value in figures.items():
        print(f"{name:44}{value:10.2f}")
    rate = figures["receiver's callbacks/s, 64 connections"]
    promises = [
        Promise("claim / INSERT + COMMIT, p50", figures["claim / INSERT + COMMIT"], CLAIM_RATIO),
        Promise("durable callbacks a second", rate, CALLBACKS_PER_SECOND, at_least=True),
        Promise("wake at another machine, p99 ms", figures["wake elsewhere, p99 ms"], WAKE_MS),
        Promise("import beyond the package's, ms", figures["import, ms of CPU"], IMPORT_MS),
    ]
    report(given.json, {"figures": figures}, promises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
