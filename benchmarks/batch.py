"""A finished batch of 1,000 keys is run again: no request, and the time of reading its rows.

    python benchmarks/batch.py [--quick] [--keys N] [--folder FOLDER]

The first run buys each key and waits for its result, in virtual haste: time is scaled. Each later
run is a new client on the same folder, opened, asked for every key and closed: once with all keys
at the same time, and once with one after the other, as in a loop of `generate` and `await handle`.
The reference reads the same rows with bare sqlite3 and their JSON with `json`.
"""

import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from _ends import each, open_client
from _raw import PROMPT
from _report import Promise, options, report
from _server import Service
from midapi_async import TaskDetails

REQUESTS, SECONDS = 0, 1.0
TIME_SCALE = 60.0
FIRST_AT_ONCE = 50  # a busy machine does not answer a thousand POSTs at once within 5 s
READ = "SELECT * FROM intents JOIN texts USING (number)"


async def run(url: str, folder: Path, keys: int, at_once: int) -> float:
    """Ask for every key, some at once; the seconds from opening the client to its end."""
    begun = time.perf_counter()
    async with open_client(url, journal=folder, time_scale=TIME_SCALE) as client:

        async def buy(key: str) -> TaskDetails:
            if at_once > 1:
                return await client.generate_and_wait(PROMPT, key=key)
            return await (await client.generate(PROMPT, key=key))

        details = await each(buy, [f"picture {number}" for number in range(keys)], at_once)
    assert len({each.task_id for each in details}) == keys
    return time.perf_counter() - begun


def read(folder: Path, keys: int) -> float:
    """The seconds in which bare sqlite3 reads the same rows."""
    begun = time.perf_counter()
    connection = sqlite3.connect(folder / "journal.sqlite")
    rows = connection.execute(READ).fetchall()
    for *_, request, details in rows:
        json.loads(request), json.loads(details)
    connection.close()
    assert len(rows) == keys
    return time.perf_counter() - begun


async def measure(folder: Path, keys: int) -> dict[str, float]:
    """The first run, the later ones, and the reference."""
    async with Service() as service:
        first = await run(service.url, folder, keys, min(keys, FIRST_AT_ONCE))
        before = await service.requests()
        again = await run(service.url, folder, keys, keys)
        in_turn = await run(service.url, folder, keys, 1)
        requests = await service.requests() - before
    reading = read(folder, keys)
    return {
        "keys": keys,
        "requests of the first run": before,
        "first run s": first,
        "again, all at once s": again,
        "again, one by one s": in_turn,
        "requests": requests,
        "reading s": reading,
        "all at once / reading": again / reading,
        "one by one / reading": in_turn / reading,
    }


def main() -> int:
    """Measure, print and write."""
    parser = options(__file__, __doc__)
    parser.add_argument("--keys", type=int, help="default 1000, or 100 with --quick")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        keys = given.keys or (100 if given.quick else 1000)
        figures = asyncio.run(measure(Path(place) / "journal", keys))
    for name, value in figures.items():
        print(f"{name:28}{value:10.3f}")
    promises = [
        Promise("requests of a finished batch that is run again", figures["requests"], REQUESTS),
        Promise("its seconds, all keys at once", figures["again, all at once s"], SECONDS),
        Promise("its seconds, one key by one", figures["again, one by one s"], SECONDS),
    ]
    report(given.json, {"figures": figures}, promises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
