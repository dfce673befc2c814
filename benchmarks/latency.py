"""From the bytes of a callback to the waiter that it resumes, with the look that confirms it.

    python benchmarks/latency.py [--quick] [--blocks N] [--rounds N] [--folder FOLDER]

Another process plays MidAPI: it stamps each callback with CLOCK_MONOTONIC just before it writes it
to the loopback socket, and answers the look. Measured is the time until the waiter runs again.

- One callback after another, and 64 at once, with the journal in memory and in a folder; by turns
  with the reference, a bare aiohttp.web handler that resolves a future and one GET after it. Looks
  are not paced here. 64 at once load one core with 64 exchanges, which the reference shows too;
  the promise is about one callback.
- 100 callbacks in one moment, with the default `PollPolicy`, until the last waiter has resumed;
  by turns with the reference, the same GETs over raw aiohttp, 32 at once.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from _ends import End, each, our_end, raw_end
from _raw import raw_client
from _report import Promise, options, report
from _server import Service
from midapi_async import PollPolicy

P99, BURST_RATIO = 20.0, 3.0  # ms; times the reference
RAW = "raw aiohttp"
AT_ONCE, LOOKS_AT_ONCE = 64, 32
Figures = dict[str, float]


async def wake(service: Service, end: End, tasks: int) -> list[float]:
    """Milliseconds from the callbacks of all ``tasks``, sent at once, until each waiter resumes."""
    resumed: dict[str, float] = {}

    async def wait(task_id: str) -> None:
        await end.wait(task_id)
        resumed[task_id] = time.monotonic()

    task_ids = await end.order(tasks)
    waits = [asyncio.create_task(wait(task_id)) for task_id in task_ids]
    await asyncio.sleep(0)
    calls = await service.call(task_ids, tasks)
    await asyncio.gather(*waits)
    assert calls.statuses == [200]
    return [
        (resumed[task_id] - sent_at) * 1000
        for task_id, sent_at in zip(task_ids, calls.sent_at, strict=True)
    ]


def figures(times: Sequence[float], reference: Sequence[float]) -> Figures:
    """The figures of one way."""
    p50, p99 = _percentiles(times)
    raw_p50, raw_p99 = _percentiles(reference)
    return {
        "p50 ms": p50,
        "p99 ms": p99,
        "worst ms": max(times),
        "p50 ratio": p50 / raw_p50,
        "p99 ratio": p99 / raw_p99,
        "tasks": len(times),
    }


def _percentiles(times: Sequence[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return cuts[49], cuts[98]


async def compare(folder: Path, blocks: int, many: int) -> dict[str, Figures]:
    """Measure every way, taking turns: callbacks one by one, and all at once."""
    found = {}
    async with Service() as service, AsyncExitStack() as exits:
        ends: dict[str, End] = {
            RAW: await exits.enter_async_context(raw_end(service)),
            "memory": await exits.enter_async_context(our_end(service)),
            "folder": await exits.enter_async_context(our_end(service, folder)),
        }
        for at_once in (1, many):
            times: dict[str, list[float]] = {name: [] for name in ends}
            for end in ends.values():
                await wake(service, end, at_once)  # connections, caches
            for _ in range(blocks):
                for name, end in ends.items():
                    for _ in range(many // at_once):
                        times[name] += await wake(service, end, at_once)
            for name, mine in times.items():
                found[f"{name}, {at_once} at once"] = figures(mine, times[RAW])
    return found


async def burst(callbacks: int, rounds: int) -> Figures:
    """Seconds until the last waiter of a burst has resumed, and for the same GETs; medians."""
    ours, reference = [], []
    async with Service() as service, raw_client(service.url) as raw:
        for _ in range(rounds):
            async with our_end(service, polling=PollPolicy()) as end:
                ours.append(max(await wake(service, end, callbacks)) / 1000)
            task_ids = [f"{number:032x}" for number in range(callbacks)]
            begun = time.monotonic()
            await each(raw.look, task_ids, LOOKS_AT_ONCE)
            reference.append(time.monotonic() - begun)
    mine, bare = statistics.median(ours), statistics.median(reference)
    return {"callbacks": callbacks, "last waiter s": mine, "GETs s": bare, "ratio": mine / bare}


def main() -> int:
    """Measure, print and write."""
    parser = options(__file__, __doc__)
    parser.add_argument("--blocks", type=int, default=32, help="of 64 callbacks each")
    parser.add_argument("--rounds", type=int, help="of the burst; default 3, or 1 with --quick")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        blocks, many = (1, 16) if given.quick else (given.blocks, AT_ONCE)
        ways = asyncio.run(compare(Path(folder) / "journal", blocks, many))
    print(f"{'':28}{'p50 ms':>9}{'p99 ms':>9}{'worst':>9}{'p50 ×':>8}{'p99 ×':>8}")
    for name, way in ways.items():
        times = f"{way['p50 ms']:9.2f}{way['p99 ms']:9.2f}{way['worst ms']:9.2f}"
        print(f"{name:28}{times}{way['p50 ratio']:8.2f}{way['p99 ratio']:8.2f}")
    rounds = given.rounds or (1 if given.quick else 3)
    moment = asyncio.run(burst(10 if given.quick else 100, rounds))
    print(
        f"\n{moment['callbacks']} callbacks in one moment: the last waiter resumes after "
        f"{moment['last waiter s']:.3f} s; the same GETs take {moment['GETs s']:.3f} s"
    )
    promises = [
        Promise(f"ms from a callback to its waiter, p99: {name}", way["p99 ms"], P99)
        for name, way in ways.items()
        if not name.startswith(RAW) and name.endswith(", 1 at once")
    ]
    what = f"{moment['callbacks']} callbacks in one moment / the same GETs, 32 at once"
    promises.append(Promise(what, moment["ratio"], BURST_RATIO))
    report(given.json, {"ways": ways, "burst": moment}, promises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
