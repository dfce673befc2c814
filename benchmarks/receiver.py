"""What the receiver's own server takes: callbacks per second, and CPU for each of them.

    python benchmarks/receiver.py [--quick] [--callbacks N] [--slices N] [--connections N ...]
                                  [--folder FOLDER] [--json FILE]

The sender is another process; it keeps its connections and sends on each of them one callback after
another, for tasks that nobody waits for. By turns, in one run: a bare aiohttp.web handler that
resolves a future (the reference), the same without a router, a client with its journal in memory,
and one with its journal in a folder, which has each callback on disk, synced, before it is
answered. Holds: in memory at most 1.3 times the reference's CPU, over all connections; in a folder
at least 4,000 callbacks a second over 64 connections.

CPU is user and system time of this process, the journal's threads included. The first callbacks of
each slice, one on each connection, open what was closed and are not measured.
"""

import argparse
import asyncio
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import attrs

from _ends import OurEnd, RawEnd, our_end, raw_end
from _server import Service
from midapi_async import __version__

HOLD_CPU, HOLD_RATE = 1.3, 4000.0
RATE_AT = 64  # connections
CONNECTIONS = (1, 64, 1000)
RAW, UNROUTED, MEMORY, FOLDER = "raw aiohttp", "raw aiohttp, no router", "memory", "folder"


@attrs.frozen
class Figure:
    """One way at so many connections.

    Attributes:
        way: its name.
        connections: how many were kept.
        rate: callbacks per second; the median of the slices.
        us: µs of CPU for one; the median of the slices.
        ratio: the same over the reference's neighbouring slices; the median.
    """

    way: str
    connections: int
    rate: float
    us: float
    ratio: float


async def call(service: Service, task_ids: Sequence[str], connections: int) -> float:
    """Call back for each task; the seconds from the first byte sent to the last answer read."""
    calls = await service.call(task_ids, connections)
    assert calls.statuses == [200], calls.statuses
    return time.monotonic() - calls.sent_at[0]


async def slice_of(
    service: Service, end: RawEnd | OurEnd, callbacks: int, connections: int
) -> tuple[float, float]:
    """Callbacks per second, and µs of CPU for one."""
    task_ids = await end.order(connections + callbacks)
    await call(service, task_ids[:connections], connections)
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    seconds = await call(service, task_ids[connections:], connections)
    cpu = time.process_time() - begun
    assert end.taken() == len(task_ids)
    return callbacks / seconds, cpu / callbacks * 1e6


async def measure(
    folder: Path, numbers: Sequence[int], callbacks: int, slices: int
) -> list[Figure]:
    """Every way at every number of connections, by turns."""
    figures = []
    async with Service() as service, AsyncExitStack() as exits:
        ends: dict[str, RawEnd | OurEnd] = {
            RAW: await exits.enter_async_context(raw_end(service)),
            UNROUTED: await exits.enter_async_context(raw_end(service, is_routed=False)),
            MEMORY: await exits.enter_async_context(our_end(service)),
            FOLDER: await exits.enter_async_context(our_end(service, folder)),
        }
        for connections in numbers:
            told: dict[str, list[tuple[float, float]]] = {way: [] for way in ends}
            for number in range(slices + 1):
                # There and back, so that a machine that slows down slows all of them.
                for way in list(ends)[:: -1 if number % 2 else 1]:
                    measured = await slice_of(service, ends[way], callbacks, connections)
                    if number:  # the first one is a rehearsal
                        told[way].append(measured)
            figures += [figure(way, connections, each, told[RAW]) for way, each in told.items()]
    return figures


def figure(
    way: str,
    connections: int,
    mine: Sequence[tuple[float, float]],
    reference: Sequence[tuple[float, float]],
) -> Figure:
    """What is told of one way."""
    ratios = [one / other for (_, one), (_, other) in zip(mine, reference, strict=True)]
    rate, us = (statistics.median(each) for each in zip(*mine, strict=True))
    return Figure(way, connections, rate, us, statistics.median(ratios))


def show(figures: Sequence[Figure]) -> None:
    """Print the table."""
    print(f"{'':26}{'connections':>11}{'callbacks/s':>13}{'CPU µs':>9}{'ratio':>8}")
    for each in figures:
        told = f"{each.connections:11}{each.rate:13,.0f}{each.us:9.0f}{each.ratio:8.2f}"
        print(f"{each.way:26}{told}")


def verdicts(figures: Sequence[Figure]) -> Mapping[str, Mapping[str, object]]:
    """What is promised, what was measured, and whether it holds."""
    cpu = statistics.median(each.ratio for each in figures if each.way == MEMORY)
    found = {
        f"memory: CPU over raw aiohttp <= {HOLD_CPU:g}": {
            "measured": cpu,
            "holds": cpu <= HOLD_CPU,
        }
    }
    for each in figures:
        if each.way == FOLDER and each.connections == RATE_AT:
            found[f"folder: callbacks/s over {RATE_AT} connections >= {HOLD_RATE:g}"] = {
                "measured": each.rate,
                "holds": each.rate >= HOLD_RATE,
            }
    return found


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few callbacks: a rough idea")
    parser.add_argument("--callbacks", type=int, help="in a slice; default 2000, or 128")
    parser.add_argument("--slices", type=int, help="of each way; default 9, or 1 with --quick")
    parser.add_argument("--connections", type=int, nargs="+", help="default 1 64 1000, or 1 64")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    parser.add_argument("--json", type=Path, default=Path("receiver-benchmark.json"))
    given = parser.parse_args()
    callbacks = given.callbacks or (128 if given.quick else 2000)
    slices = given.slices or (1 if given.quick else 9)
    numbers = given.connections or (CONNECTIONS[:2] if given.quick else CONNECTIONS)
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        figures = asyncio.run(measure(Path(place) / "journal", numbers, callbacks, slices))
    show(figures)
    held = verdicts(figures)
    for promise, verdict in held.items():
        said = "holds" if verdict["holds"] else "MISSED"
        print(f"{promise}: {verdict['measured']:,.2f}, {said}")
    about = {"python": platform.python_version(), "midapi_async": __version__}
    told = [attrs.asdict(each) for each in figures]
    given.json.write_text(json.dumps({**about, "ways": told, "verdicts": held}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
