"""What waiting costs: memory, and stalls of the event loop.

    python benchmarks/waiters.py [--quick] [--waiters 10000] [--seconds SECONDS]

Each kind of waiter has a process of its own; MidAPI is one more (`_server.py`):

- ``callers``: tasks that each await a bare future. Every program pays this that waits in tasks, so
  memory is counted beyond it.
- ``heap``: the reference. The same futures, each with a deadline in one heap.
- ``tasks``: ``asyncio.create_task(client.task(task_id).wait())``, all of one client.
- ``submits``: ``asyncio.create_task(handle.wait())`` with the handles of accepted submissions; the
  rows of the memory journal are counted, too.

The client makes 500 looks a second all the time. At first it finds one task in twenty finished,
then all of them. Time is scaled by 600, so that there is always a task that is due. A stall is what
a ticker of 1 ms in the same loop waits beyond that; the p99 is what one event in a hundred, coming
at any moment, waits at least. The promise is about the CPU that the loop's thread used meanwhile,
since the rest is the doing of other processes; wall time stands beside it. Memory is resident
memory, read from /proc (Linux); with --quick it is what `tracemalloc` counts, since resident memory
says nothing about a few waiters, and only ``callers`` and ``tasks`` are measured.
"""

import argparse
import asyncio
import gc
import heapq
import json
import logging
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from _ends import each, open_client
from _raw import PROMPT
from _report import Promise, options, report
from _server import Service
from midapi_async import PollPolicy

WAITERS = 10_000
MEGABYTES, P99 = 20.0, 20.0  # MB beyond the callers; ms
LOOKS_PER_SECOND = 500.0
TIME_SCALE = 600.0
TICK = 0.001
OURS = ("tasks", "submits")

Task = asyncio.Task[object]
Figures = dict[str, float]


# ─── the waiters ─────────────────────────────────────────────────────────────────────────────────


class Callers:
    """Tasks that each know a task's id and await a bare future."""

    def __init__(self) -> None:
        self.exits = AsyncExitStack()
        self.futures: list[asyncio.Future[object]] = []

    async def __aenter__(self) -> Self:
        """Prepare what does not grow with the waiters."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close everything."""
        await self.exits.aclose()

    async def join(self, count: int) -> list[Task]:
        """Start some waiters, and return when all of them wait."""
        tasks: list[Task] = []
        while len(tasks) < count:
            tasks += [self.start_one(f"{len(tasks) + n:032x}") for n in range(100)]
            await asyncio.sleep(0)
        return tasks

    def start_one(self, task_id: str) -> Task:
        """One more waiter."""

        async def wait(future: asyncio.Future[object], _task_id: str) -> object:
            return await future

        self.futures.append(asyncio.get_running_loop().create_future())
        return asyncio.create_task(wait(self.futures[-1], task_id))

    async def finish(self) -> None:
        """Resume all, a hundred in a pass of the loop."""
        for number, future in enumerate(self.futures):
            future.set_result(None)
            if number % 100 == 0:
                await asyncio.sleep(0)


class Heap(Callers):
    """The same with a deadline each, all in one heap."""

    def __init__(self) -> None:
        super().__init__()
        self.heap: list[tuple[float, str, asyncio.Future[object]]] = []

    def start_one(self, task_id: str) -> Task:
        """One more waiter."""
        task = super().start_one(task_id)
        heapq.heappush(self.heap, (time.monotonic() + 3600, task_id, self.futures[-1]))
        return task


class Tasks(Callers):
    """Waits of one client for tasks of which it knows only the id."""

    async def __aenter__(self) -> Self:
        """Start the service, open a client, and look once, so that everything is imported."""
        self.service = await self.exits.enter_async_context(Service())
        polling = PollPolicy(looks_per_second=LOOKS_PER_SECOND / TIME_SCALE)
        client = open_client(self.service.url, polling=polling, time_scale=TIME_SCALE)
        self.client = await self.exits.enter_async_context(client)
        await self.client.details(f"{0:032x}")
        await self.service.finish(0.05)
        return self

    def start_one(self, task_id: str) -> Task:
        """One more waiter."""
        return asyncio.create_task(self.client.task(task_id).wait(timeout=None))

    async def finish(self) -> None:
        """Let all tasks be finished."""
        await self.service.finish(1.0)


class Submits(Tasks):
    """Waits of one client for what it has submitted."""

    async def join(self, count: int) -> list[Task]:
        """Submit some requests, 32 at once, and wait for each."""

        async def submit(prompt: str) -> Task:
            handle = await self.client.generate(prompt)
            return asyncio.create_task(handle.wait(timeout=None))

        return await each(submit, [PROMPT] * count, 32)


KINDS: dict[str, Callable[[], Callers]] = {
    "callers": Callers,
    "heap": Heap,
    "tasks": Tasks,
    "submits": Submits,
}


# ─── what is measured ────────────────────────────────────────────────────────────────────────────


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def traced() -> int:
    """Bytes of Python's objects."""
    return tracemalloc.get_traced_memory()[0]


class Ticker:
    """Notes, while its block lasts, for how long the loop kept a timer of a millisecond waiting."""

    def __init__(self) -> None:
        self.stalls: list[float] = []  # seconds
        self.cpu: list[float] = []  # seconds of this thread in each of them

    async def __aenter__(self) -> Self:
        """Begin."""
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End."""
        await asyncio.sleep(TICK)
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            begun, used = time.perf_counter(), time.thread_time()
            await asyncio.sleep(TICK)
            self.cpu.append(time.thread_time() - used)
            self.stalls.append(max(0.0, time.perf_counter() - begun - TICK))


def p99(stalls: Sequence[float]) -> float:
    """The milliseconds that one event in a hundred, coming at any moment, waits at least.

    A share of the ticks would count a stall of a second as one tick among thousands.
    """
    whole = sum(stalls) + TICK * len(stalls)
    low, high = 0.0, max(stalls)
    for _ in range(40):
        middle = (low + high) / 2
        late = sum(stall - middle for stall in stalls if stall > middle)
        low, high = (middle, high) if late > 0.01 * whole else (low, middle)
    return 1000 * high


async def live(kind: str, waiters: int, seconds: float, memory: Callable[[], int]) -> Figures:
    """Waiters come, wait, and are resumed: memory and stalls."""
    async with KINDS[kind]() as crowd:
        gc.collect()
        idle = memory()
        tasks = await crowd.join(waiters)
        async with Ticker() as waiting:
            await asyncio.sleep(seconds)
        gc.collect()
        held = memory() - idle
        async with Ticker() as resuming:
            begun = time.process_time()
            await crowd.finish()
            await asyncio.wait(tasks)
        return {
            "MB": held / 1e6,
            "waiting, p99 ms": p99(waiting.stalls),
            "of it CPU": p99(waiting.cpu),
            "resuming, p99 ms": p99(resuming.stalls),
            "of that CPU": p99(resuming.cpu),
            "CPU µs to resume": 1e6 * (time.process_time() - begun) / waiters,
        }


def in_a_process(kind: str, waiters: int, seconds: float, memory: str) -> Figures:
    """One measurement, in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", kind, str(waiters), str(seconds), memory],
        stdout=subprocess.PIPE,
        check=True,
    )
    figures: Figures = json.loads(done.stdout)
    return figures


def measure(kinds: Sequence[str], waiters: int, seconds: float, memory: str) -> dict[str, Figures]:
    """Every kind, the callers first."""
    found = {kind: in_a_process(kind, waiters, seconds, memory) for kind in kinds}
    for figures in found.values():
        figures["MB beyond"] = figures["MB"] - found["callers"]["MB"]
    return found


def main() -> int:
    """Measure, print and write."""
    parser = options(__file__, __doc__)
    parser.add_argument("--waiters", type=int, help="default 10000, or 200 with --quick")
    parser.add_argument("--seconds", type=float, help="that they wait; default 5, or 0.2")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        kind, waiters, seconds, memory = given.measure
        if memory == "traced":
            tracemalloc.start()
        logging.disable()  # that more looks are due than may be made is intended here
        count = traced if memory == "traced" else resident
        print(json.dumps(asyncio.run(live(kind, int(waiters), float(seconds), count))))
        return 0
    waiters = given.waiters or (200 if given.quick else WAITERS)
    seconds = given.seconds or (0.2 if given.quick else 5.0)
    kinds = ["callers", "tasks"] if given.quick else list(KINDS)
    memory = "traced" if given.quick else "resident"
    found = measure(kinds, waiters, seconds, memory)
    names = list(found["callers"])
    print(f"{waiters:,} waiters\n{'':10}" + "".join(f"{name:>20}" for name in names))
    for kind, figures in found.items():
        print(f"{kind:10}" + "".join(f"{figures[name]:>20,.1f}" for name in names))
    promises = []
    for kind in [kind for kind in OURS if kind in found]:
        figures = found[kind]
        megabytes = figures["MB beyond"] * WAITERS / waiters
        what = f"{kind}: MB of 10,000 beyond the callers' own tasks"
        promises.append(Promise(what, megabytes, MEGABYTES))
        for phase, name in (("waiting", "of it CPU"), ("resuming", "of that CPU")):
            what = f"{kind}: CPU ms of a stall while {phase}, p99"
            promises.append(Promise(what, figures[name], P99))
    report(given.json, {"waiters": waiters, "memory": memory, "kinds": found}, promises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
