"""A finished batch of 1,000 keys is run again: no request, and the time of reading its rows.

    python benchmarks/batch.py [--quick] [--keys N] [--folder FOLDER]

The first run buys each key and waits for its result, in virtual haste: time is scaled. The second
run is a new client on the same folder, opened, asked for every key and closed. The reference reads
the same rows with bare sqlite3 and their JSON with `json`.
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

REQUESTS, SECONDS = 0, 1.0
TIME_SCALE = 60.0
READ = "SELECT * FROM intents JOIN texts USING (number)"


async def run(url: str, folder: Path, keys: int) -> float:
    """Ask for every key, a thousand at once; the seconds from opening the client to its end."""
    begun = time.perf_counter()
    async with open_client(url, journal=folder, time_scale=TIME_SCALE) as client:
        names = [f"picture {number}" for number in range(keys)]
        details = await each(
            lambda key: client.generate_and_wait(PROMPT, key=key), names, min(keys, 1000)
        )
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
    """The first run, the second one, and the reference."""
    async with Service() as service:
        first = await run(service.url, folder, keys)
        before = await service.requests()
        again = await run(service.url, folder, keys)
        requests = await service.requests() - before
    reading = read(folder, keys)
    return {
        "keys": keys,
        "requests of the first run": before,
        "first run s": first,
        "again s": again,
        "requests": requests,
        "reading s": reading,
        "again / reading": again / reading,
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
        Promise("its seconds", figures["again s"], SECONDS),
    ]
    report(given.json, {"figures": figures}, promises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
