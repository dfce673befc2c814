"""From the bytes of a callback to the waiter that it wakes, with the look that confirms it.

    python benchmarks/latency.py [--quick] [--tasks N] [--folder FOLDER] [--json FILE]

Another process plays MidAPI: it stamps each callback with CLOCK_MONOTONIC just before it writes it
to the loopback socket, and answers the look. Measured is the time until the waiter runs again; one
callback after another, and 64 at once; with the journal in memory and in a folder; by turns with
the reference, a bare aiohttp.web handler that resolves a future and one raw GET after it. Holds:
p99 below 20 ms.

Looks are not paced here (looks_per_second=10,000), or a burst would measure the pace. What the
default pace makes of a burst is told at the end.
"""

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from _ends import End, our_end, raw_end
from _server import Service
from midapi_async import PollPolicy, __version__

HOLD = 20.0  # ms, at p99
RAW = "raw aiohttp"
BURST = 64
Figures = dict[str, float]


async def wake(service: Service, end: End, tasks: int, at_once: int) -> list[float]:
    """Milliseconds for each of so many tasks that are called back together."""
    resumed: dict[str, float] = {}

    async def wait(task_id: str) -> None:
        await end.wait(task_id)
        resumed[task_id] = time.monotonic()

    task_ids = await end.order(tasks)
    waits = [asyncio.create_task(wait(task_id)) for task_id in task_ids]
    await asyncio.sleep(0)
    calls = await service.call(task_ids, at_once)
    await asyncio.gather(*waits)
    assert calls.statuses == [200]
    pairs = zip(task_ids, calls.sent_at, strict=True)
    return [(resumed[task_id] - sent_at) * 1000 for task_id, sent_at in pairs]


async def block(service: Service, end: End, at_once: int) -> list[float]:
    """As many tasks as a burst holds, one after another or at once."""
    rounds = [await wake(service, end, at_once, at_once) for _ in range(BURST // at_once)]
    return [each for one in rounds for each in one]


def figures(times: Sequence[float], reference: Sequence[float]) -> Figures:
    """What is told of one way."""
    median, p99 = _percentiles(times)
    raw_median, raw_p99 = _percentiles(reference)
    return {
        "p50 ms": median,
        "p99 ms": p99,
        "worst ms": max(times),
        "p50 ratio": median / raw_median,
        "p99 ratio": p99 / raw_p99,
        "tasks": len(times),
    }


def _percentiles(times: Sequence[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return cuts[49], cuts[98]


async def compare(folder: Path, tasks: int) -> dict[str, Figures]:
    """All ways by turns, a block each."""
    told = {}
    async with Service() as service, AsyncExitStack() as exits:
        ends: dict[str, End] = {
            RAW: await exits.enter_async_context(raw_end(service)),
            "memory": await exits.enter_async_context(our_end(service)),
            "folder": await exits.enter_async_context(our_end(service, folder)),
        }
        for at_once in (1, BURST):
            times: dict[str, list[float]] = {name: [] for name in ends}
            for end in ends.values():
                await wake(service, end, at_once, at_once)  # connections, caches
            for _ in range(-(-tasks // BURST)):
                for name, end in ends.items():
                    times[name] += await block(service, end, at_once)
            for name, each in times.items():
                told[f"{name}, {at_once} at once"] = figures(each, times[RAW])
    return told


async def paced(tasks: int) -> list[float]:
    """What the default pace of looks makes of one burst."""
    async with Service() as service, our_end(service, polling=PollPolicy()) as end:
        return sorted(await wake(service, end, tasks, tasks))


def show(told: dict[str, Figures]) -> None:
    """Print the table."""
    print(f"{'':28}{'p50 ms':>9}{'p99 ms':>9}{'worst':>9}{'p50 ×':>8}{'p99 ×':>8}")
    for name, each in told.items():
        verdict = ""
        if not name.startswith(RAW):
            verdict = f"   p99 < {HOLD:g} ms: {'holds' if each['p99 ms'] < HOLD else 'MISSED'}"
        times = f"{each['p50 ms']:9.2f}{each['p99 ms']:9.2f}{each['worst ms']:9.2f}"
        print(f"{name:28}{times}{each['p50 ratio']:8.2f}{each['p99 ratio']:8.2f}{verdict}")


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few tasks: a rough idea")
    parser.add_argument("--tasks", type=int, help="of each way; default 2048, or 64 with --quick")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    parser.add_argument("--json", type=Path, default=Path("latency-benchmark.json"))
    given = parser.parse_args()
    tasks = given.tasks or (BURST if given.quick else 2048)
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        told = asyncio.run(compare(Path(place) / "journal", tasks))
    show(told)
    burst = asyncio.run(paced(8 if given.quick else BURST))
    pace = {"callbacks": len(burst), "p50 ms": statistics.median(burst), "last ms": burst[-1]}
    rate = f"{PollPolicy().looks_per_second:g} looks per second"
    print(
        f"\n{len(burst)} callbacks at once at the default pace ({rate}): the median waiter wakes "
        f"after {pace['p50 ms'] / 1000:.1f} s, the last after {pace['last ms'] / 1000:.1f} s"
    )
    about = {"python": platform.python_version(), "midapi_async": __version__, "hold p99 ms": HOLD}
    given.json.write_text(json.dumps({**about, "ways": told, "default pace": pace}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
