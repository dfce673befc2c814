"""A batch of 1,000 and of 10,000 rows, beside what people write; and a finished one run again.

    python benchmarks/batch.py [--quick] [--rows N N] [--scale SCALE] [--keys N] [--folder FOLDER]

This process is MidAPI: it accepts 20 POSTs in 10 s and refuses more with 429, and answers each
request after 20 ms. A task takes about 60 s. Time is scaled, as little as patience allows (all of
it takes 20 minutes), since what a busy machine adds to a pause is a part of a short window. Each
batch runs in a process of its own, one with `client.generate_many` and a journal in a folder, and
one with `_script.py`: bare aiohttp, a semaphore, a manifest file, and a look every 5 s. Of each:

- POSTs in 10 s, and the part of the account's limit that is in use, of count / (per + mean time of
  a POST with its claim), as in gate.py; 200 rows run at a time, so that the limit is what holds
  them up. The script counts its window from the start of each POST; some are refused for that;
- requests and CPU for each row;
- the memory of the process at its end (resident, from /proc; Linux).

Then the finished batch is run again, five times, with a new client each. It must need no request.
The reference reads the same rows with `Journal.rows`, in the same process and by turns; what bare
sqlite3 and `json` take for that, and the script for its manifest, is printed beside it. These are
seconds of CPU: a finished batch waits for nothing, and elapsed time would include other load.

At last a finished batch of 1,000 keys of `generate_and_wait` is run again: all keys at the same
time, and one after the other, as in a loop of `generate` and `await handle`.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from _ends import each, open_client
from _raw import API_KEY, PROMPT
from _report import Promise, options, report
from _script import Script
from _server import CREATED, Connection, Service, answer, listen, record, refusal
from _timed import TimedFolder, most_in_a_window, rate_of
from midapi_async import MidAPIClient, RateLimit, TaskDetails

IN_USE, MEGABYTES, RATIO, REQUESTS, SECONDS = 0.98, 10.0, 2.0, 0, 1.0
COUNT, PER = 20, 10.0  # POSTs in a window of service seconds
ANSWER = 0.02  # seconds until an answer is sent
TASK = 60.0  # service seconds
RUNNING = 200
TIMES = 5  # that a finished batch is run again
KEYS_SCALE = 60.0
FIRST_AT_ONCE = 50  # a busy machine does not answer a thousand POSTs at once within 5 s
READ = "SELECT * FROM intents JOIN texts USING (number)"

Figures = dict[str, float]


# ─── in the process of a batch ───────────────────────────────────────────────────────────────────


def prompts(count: int) -> Iterator[str]:
    """So many different prompts."""
    return (f"row {number}" for number in range(count))


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def opened(
    url: str, folder: Path, scale: float, journal: TimedFolder | None = None
) -> MidAPIClient:
    """A client that keeps to the limit."""
    return MidAPIClient(
        API_KEY,
        base_url=url,
        journal=journal or folder / "journal",
        rate_limit=RateLimit(COUNT, per=PER),
        time_scale=scale,
    )


async def with_the_sdk(client: MidAPIClient, rows: int) -> None:
    """Run a batch."""
    done = 0
    async with (
        client,
        client.generate_many(prompts(rows), batch="rows", running=RUNNING) as batch,
    ):
        async for item in batch:
            if item.error is not None:
                raise item.error
            done += 1
    assert done == rows


def script(url: str, folder: Path, scale: float) -> Script:
    """What people write."""
    manifest = folder / "manifest.jsonl"
    return Script(url, manifest, running=RUNNING, count=COUNT, per=PER, scale=scale)


async def run(kind: str, url: str, folder: Path, rows: int, scale: float) -> Figures:
    """Run a batch for the first time."""
    folder.mkdir()  # noqa: ASYNC240 - nothing else runs
    if kind == "script":
        peer = script(url, folder, scale)
        await peer.run(prompts(rows))
        assert peer.done == rows
        times = peer.posts
    else:
        journal = TimedFolder(str(folder / "journal"))
        await with_the_sdk(opened(url, folder, scale, journal), rows)
        await journal.aclose()
        times = journal.times
    cpu = time.process_time()
    gc.collect()
    return {
        "POST s": statistics.fmean(times),
        "CPU ms a row": 1000 * cpu / rows,
        "MB": resident() / 1e6,
    }


async def pages(folder: Path, rows: int) -> None:
    """Read all rows with the journal itself."""
    journal, count, after = TimedFolder(str(folder / "journal")), 0, None
    while page := await journal.rows(after=after):
        count += len(page)
        after = page[-1].intent_id
    await journal.aclose()
    assert count == rows


def read(folder: Path, rows: int) -> None:
    """Read the same with bare sqlite3."""
    connection = sqlite3.connect(folder / "journal.sqlite")
    found = connection.execute(READ).fetchall()
    for *_, request, details in found:
        json.loads(request), json.loads(details)
    connection.close()
    assert len(found) == rows


async def run_again(kind: str, url: str, folder: Path, rows: int, scale: float) -> Figures:
    """Run a finished batch again, and read its rows in between; the medians."""
    found: dict[str, list[float]] = {}

    def note(name: str, begun: float) -> float:
        found.setdefault(name, []).append(time.process_time() - begun)
        return time.process_time()

    for _ in range(TIMES):
        begun = time.process_time()
        if kind == "script":
            await script(url, folder, scale).run(prompts(rows))
            note("again, CPU s", begun)
            continue
        await with_the_sdk(opened(url, folder, scale), rows)
        begun = note("again, CPU s", begun)
        await pages(folder, rows)
        begun = note("reading, CPU s", begun)
        read(folder / "journal", rows)
        note("bare reading, CPU s", begun)
    figures = {name: statistics.median(times) for name, times in found.items()}
    if kind != "script":
        pairs = zip(found["again, CPU s"], found["reading, CPU s"], strict=True)
        figures["again / reading"] = statistics.median(again / reading for again, reading in pairs)
    return figures


# ─── in the process of MidAPI ────────────────────────────────────────────────────────────────────


class MidAPI:
    """Accepts, refuses and shows tasks; counts what was asked.

    Args:
        scale: service seconds in a second.
    """

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._chance = random.Random(14)
        self._tasks: dict[str, tuple[float, float]] = {}  # when each ends, and its service seconds
        self._window: deque[float] = deque(maxlen=COUNT)
        self.accepted: list[float] = []  # when
        self.prompts: Counter[str] = Counter()
        self.requests = self.refused = 0

    def respond(self, head: bytes, body: bytes) -> bytes:
        """The answer to a request."""
        self.requests += 1
        now = time.monotonic()
        if head.startswith(b"POST"):
            per = PER / self._scale
            if len(self._window) == COUNT and now - self._window[0] < per:
                self.refused += 1
                return refusal(429, "too many requests")
            self._window.append(now)
            self.accepted.append(now)
            found = re.search(rb'"prompt": ?"([^"]+)"', body)
            assert found
            self.prompts[found[1].decode()] += 1
            task_id = f"{len(self.accepted):032x}"
            took = TASK * self._chance.lognormvariate(0.0, 0.25)
            self._tasks[task_id] = now + took / self._scale, took
            return answer({"taskId": task_id})
        if b"record-info" not in head:
            return answer(1e6)
        task_id = head.split(b" ", 2)[1].rpartition(b"taskId=")[2].decode()
        end, took = self._tasks[task_id]
        return answer(record(task_id, CREATED, took if now >= end else None))

    async def measure(self, kind: str, folder: Path, rows: int) -> Figures:
        """Run a batch and run it again, each in a process of its own."""
        server, url = await listen(lambda: Connection(self.respond, ANSWER))
        figures = await in_a_process("run", kind, url, folder, rows, self._scale)
        requests = self.requests
        figures |= await in_a_process("run_again", kind, url, folder, rows, self._scale)
        server.close()
        assert self.prompts == Counter(prompts(rows))
        rate, per = rate_of(self.accepted, COUNT), PER / self._scale
        return figures | {
            "POSTs in 10 s": rate * per,
            "limit in use": rate * (per + figures["POST s"]) / COUNT,
            "most in a window": most_in_a_window(self.accepted, per),
            "refused": self.refused,
            "requests a row": requests / rows,
            "requests again": self.requests - requests,
        }


async def in_a_process(what: str, *arguments: object) -> Figures:
    """Do one thing in a fresh process."""
    program = [sys.executable, __file__, "--do", what, *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE)
    written, _ = await process.communicate()
    figures: Figures = json.loads(written)
    return figures


# ─── keys ────────────────────────────────────────────────────────────────────────────────────────


async def ask(url: str, folder: Path, keys: int, at_once: int) -> float:
    """Ask for every key, some at once; the seconds from opening the client to its end."""
    begun = time.perf_counter()
    async with open_client(url, journal=folder, time_scale=KEYS_SCALE) as client:

        async def buy(key: str) -> TaskDetails:
            if at_once > 1:
                return await client.generate_and_wait(PROMPT, key=key)
            return await (await client.generate(PROMPT, key=key))

        details = await each(buy, [f"picture {number}" for number in range(keys)], at_once)
    assert len({each.task_id for each in details}) == keys
    return time.perf_counter() - begun


async def with_keys(folder: Path, keys: int) -> Figures:
    """The first run, the later ones, and the reference."""
    async with Service() as service:
        first = await ask(service.url, folder, keys, min(keys, FIRST_AT_ONCE))
        before = await service.requests()
        again = await ask(service.url, folder, keys, keys)
        in_turn = await ask(service.url, folder, keys, 1)
        requests = await service.requests() - before
    begun = time.perf_counter()
    read(folder, keys)
    reading = time.perf_counter() - begun
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


# ─── all of it ───────────────────────────────────────────────────────────────────────────────────


def arguments() -> argparse.Namespace:
    """The options."""
    parser = options(__file__, __doc__)
    parser.add_argument("--rows", type=int, nargs=2, help="default 1000 10000, or 60 200")
    parser.add_argument("--scale", type=float, help="default 10, or 250 with --quick")
    parser.add_argument("--keys", type=int, help="default 1000, or 100 with --quick")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    parser.add_argument("--do", nargs=6, help=argparse.SUPPRESS)
    return parser.parse_args()


async def measure(place: Path, rows: list[int], scale: float) -> dict[str, Figures]:
    """Both ways, with few and with many rows."""
    return {
        f"{kind}, {count} rows": await MidAPI(scale).measure(kind, place / f"{kind}{count}", count)
        for count in rows
        for kind in ("script", "generate_many")
    }


def main() -> int:
    """Measure, print and write."""
    given = arguments()
    if given.do:
        logging.disable()
        what, kind, url, folder, count, time_scale = given.do
        work = {"run": run, "run_again": run_again}[what]
        figures = asyncio.run(work(kind, url, Path(folder), int(count), float(time_scale)))
        print(json.dumps(figures))
        return 0
    rows = given.rows or ([60, 200] if given.quick else [1000, 10_000])
    scale = given.scale or (250.0 if given.quick else 10.0)
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        ways = asyncio.run(measure(Path(place), rows, scale))
        keys = asyncio.run(
            with_keys(Path(place) / "keys", given.keys or (100 if given.quick else 1000))
        )
    for name in ways[f"generate_many, {rows[0]} rows"]:
        values = "".join(f"{figures.get(name, float('nan')):12.3f}" for figures in ways.values())
        print(f"{name:28}{values}")
    print(" " * 28 + "".join(f"{name.replace('generate_many', 'SDK'):>22}" for name in ways))
    for name, value in keys.items():
        print(f"{name:28}{value:12.3f}")
    few, many = (ways[f"generate_many, {count} rows"] for count in rows)
    growth = many["MB"] - few["MB"]
    promises = [
        Promise(f"MB more for {rows[1]} rows than for {rows[0]}", growth, MEGABYTES),
        *(
            promise
            for count, ours in zip(rows, (few, many), strict=True)
            for promise in (
                Promise(f"{count} rows: limit in use", ours["limit in use"], IN_USE, at_least=True),
                Promise(f"{count} rows: POSTs in a window", ours["most in a window"], COUNT),
                Promise(f"{count} rows again: requests", ours["requests again"], REQUESTS),
                Promise(f"{count} rows again / reading them", ours["again / reading"], RATIO),
            )
        ),
        Promise("keys asked for again: requests", keys["requests"], REQUESTS),
        Promise("their seconds, all keys at once", keys["again, all at once s"], SECONDS),
        Promise("their seconds, one key by one", keys["again, one by one s"], SECONDS),
    ]
    report(given.json, {"rows": rows, "ways": ways, "keys": keys}, promises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
