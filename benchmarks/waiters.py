"""What it costs to wait: memory, stalls of the event loop, and the time until everybody is awake.

    python benchmarks/waiters.py [--sizes 1000,10000,100000] [--only KINDS] [--json FILE]
    python benchmarks/waiters.py --profile [--sizes 100000] [--only tasks]
    python benchmarks/waiters.py --quick

Each kind of waiting and each size has a process of its own; MidAPI is one more (`_service.py`):

- ``callers``: tasks that each await a bare future. What everybody has to pay who waits in tasks;
  "beyond" is beyond this.
- ``heap``: the reference. The same futures with a deadline each in one heap, and nothing more.
- ``naive``: what people write: a task each, with `asyncio.wait_for` around a loop that sleeps 5 s
  and looks. Its looks cost nothing here, ours are real requests.
- ``tasks``: ``asyncio.create_task(client.task(task_id).wait())``, all of one client.
- ``submits``: ``asyncio.create_task(handle.wait())`` with handles of accepted submissions; the
  memory journal's rows are in the count.

While they wait the client makes 500 looks a second and finds one task in twenty finished; then all
are finished and looks go as fast as they can. Time is scaled by 60, so that there is always a task
that is due, and no deadline comes. Stalls are what a ticker of 1 ms in the same loop
sees: p99 is what one event in a hundred, coming at any moment, waits at least; the pauses of the
garbage collector are in it, and shown apart; what of the worst is not CPU is another process's
doing, as the stalls of ``callers`` are. Linux only: memory is read from /proc.
"""

import argparse
import asyncio
import gc
import heapq
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import attrs

from midapi_async import MidAPIClient, PollPolicy, Timeouts

SERVICE = Path(__file__).with_name("_service.py")
LOOKS_PER_SECOND = 500.0  # while they wait
AS_FAST_AS_IT_GOES = 1e9  # while all are woken
TIME_SCALE = 60.0
MEGABYTES, P99, WORST, BACK, LINEAR = 60.0, 20.0, 100.0, 0.02, 1.1  # what is promised
AT = 100_000  # waiters that it is promised for
TICK = 0.001

Task = asyncio.Task[object]


# ─── who waits ───────────────────────────────────────────────────────────────────────────────────


class Crowd:
    """Waiters that nobody looks after: tasks that each know a task's id and await a bare future."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[object]] = []
        self.exits = AsyncExitStack()
        self.finished_meanwhile = "some"

    async def __aenter__(self) -> Self:
        """Have everything ready that does not grow with the waiters."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave nothing behind."""
        await self.exits.aclose()

    async def join(self, count: int) -> list[Task]:
        """Start so many waiters, and return when all of them wait."""
        tasks: list[Task] = []
        while len(tasks) < count:
            tasks += [self.start_one() for _ in range(min(500, count - len(tasks)))]
            await asyncio.sleep(0)
        return tasks

    def start_one(self) -> Task:
        """One more."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        return asyncio.create_task(until(future, f"{len(self.futures):032x}"))

    async def finish(self) -> None:
        """Wake everybody, a hundred in a pass of the loop."""
        self.futures.reverse()
        while self.futures:
            for future in self.futures[-100:]:
                future.set_result(None)
            del self.futures[-100:]
            await asyncio.sleep(0)


async def until(future: asyncio.Future[object], _task_id: str) -> object:
    """What such a task does; the id is its own, also where a client waits for it."""
    return await future


class Heap(Crowd):
    """The same with a deadline each, all in one heap."""

    def __init__(self) -> None:
        super().__init__()
        self.heap: list[tuple[float, int, asyncio.Future[object]]] = []

    def start_one(self) -> Task:
        """One more."""
        task = super().start_one()
        deadline = time.monotonic() + 3600
        heapq.heappush(self.heap, (deadline, len(self.heap), self.futures[-1]))
        return task


class Naive(Crowd):
    """A loop for each that sleeps and looks, and a timeout around it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_finished = False

    def start_one(self) -> Task:
        """One more."""
        return asyncio.create_task(asyncio.wait_for(self.poll(), 3600))

    async def poll(self) -> object:
        """Look every five seconds."""
        while not self.is_finished:  # noqa: ASYNC110 - an event is what it does not know of
            await asyncio.sleep(5)
        return None

    async def finish(self) -> None:
        """The next look of each finds it finished."""
        self.is_finished = True


class Client(Crowd):
    """One client; its handles know nothing but their task's id."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = PollPolicy(looks_per_second=LOOKS_PER_SECOND / TIME_SCALE)
        self.service: subprocess.Popen[str]
        self.client: MidAPIClient
        self.numbers = itertools.count()

    async def __aenter__(self) -> Self:
        """Start the service, open a client, and look once, so that all is imported."""
        self.service = self.exits.enter_context(
            subprocess.Popen(  # noqa: ASYNC220 - nobody waits yet
                [sys.executable, SERVICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        assert self.service.stdin is not None
        self.exits.enter_context(self.service.stdin)
        assert self.service.stdout is not None
        url = f"http://127.0.0.1:{self.service.stdout.readline().strip()}"
        self.client = await self.exits.enter_async_context(
            MidAPIClient(
                "a-key",
                base_url=url,
                polling=self.policy,
                rate_limit=None,
                timeouts=Timeouts(wait=1e6),
                time_scale=TIME_SCALE,
            )
        )
        await self.client.details("warm")
        return self

    def order(self, what: str) -> None:
        """Have the service finish none, some or all of its tasks."""
        assert self.service.stdin is not None
        assert self.service.stdout is not None
        self.service.stdin.write(f"{what}\n")
        self.service.stdin.flush()
        assert self.service.stdout.readline().strip() == what

    async def join(self, count: int) -> list[Task]:
        """Start so many waiters, and return when all of them wait."""
        tasks = await super().join(count)
        await asyncio.sleep(0)
        self.order(self.finished_meanwhile)
        return tasks

    def start_one(self) -> Task:
        """One more."""
        handle = self.client.task(f"{next(self.numbers):032x}")
        return asyncio.create_task(handle.wait())

    async def finish(self) -> None:
        """Everything is finished; look as fast as it goes."""
        self.order("all")
        # The policy is frozen; but two clients would not be one crowd.
        object.__setattr__(self.policy, "looks_per_second", AS_FAST_AS_IT_GOES)


class Submits(Client):
    """One client; its handles are those of accepted submissions."""

    async def join(self, count: int) -> list[Task]:
        """Buy so many, a hundred at once, and wait for each."""
        tasks: list[Task] = []
        while len(tasks) < count:
            group = min(100, count - len(tasks))
            handles = await asyncio.gather(
                *(self.client.generate("a red fox in the snow") for _ in range(group))
            )
            tasks += [asyncio.create_task(handle.wait()) for handle in handles]
        await asyncio.sleep(0)
        self.order(self.finished_meanwhile)
        return tasks


KINDS: dict[str, Callable[[], Crowd]] = {
    "callers": Crowd,
    "heap": Heap,
    "naive": Naive,
    "tasks": Client,
    "submits": Submits,
}
OURS = ("tasks", "submits")


# ─── what is measured ────────────────────────────────────────────────────────────────────────────


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def traced() -> int:
    """Bytes that Python's objects take."""
    return tracemalloc.get_traced_memory()[0]


class Ticker:
    """How long, while it runs, the loop kept a timer of a millisecond waiting."""

    def __init__(self) -> None:
        self.gaps: list[float] = []  # seconds between two ticks beyond the millisecond
        self.pauses: list[float] = []  # of the garbage collector, in each gap
        self.busy: list[float] = []  # CPU seconds of this thread in each gap: what was our doing
        self._collecting_since = 0.0
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        """Begin."""
        gc.callbacks.append(self._note_collection)
        self._begun, self._cpu = time.perf_counter(), time.process_time()
        self._plan_tick()
        return self

    def __exit__(self, *_: object) -> None:
        """End; what is late just now counts."""
        self._timer.cancel()
        self._note()
        gc.callbacks.remove(self._note_collection)
        self.seconds = time.perf_counter() - self._begun
        self.cpu = time.process_time() - self._cpu

    def _tick(self) -> None:
        self._note()
        self._plan_tick()

    def _plan_tick(self) -> None:
        self._paused, self._busy_until = 0.0, time.thread_time()
        self._expected = self._loop.time() + TICK
        self._timer = self._loop.call_at(self._expected, self._tick)

    def _note(self) -> None:
        self.gaps.append(max(0.0, self._loop.time() - self._expected))
        self.pauses.append(self._paused)
        self.busy.append(time.thread_time() - self._busy_until)

    def _note_collection(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.perf_counter()
        else:
            self._paused += time.perf_counter() - self._collecting_since

    @property
    def figures(self) -> dict[str, float]:
        """The stalls in milliseconds, and the seconds that all took."""
        apart = [gap - pause for gap, pause in zip(self.gaps, self.pauses, strict=True)]
        return {
            "p99 ms": 1e3 * felt(self.gaps),
            "p99 without gc ms": 1e3 * felt([max(0.0, gap) for gap in apart]),
            "worst ms": 1e3 * max(self.gaps),
            "worst cpu ms": 1e3 * max(self.busy),
            "worst without gc ms": 1e3 * max(0.0, *apart),
            "worst gc ms": 1e3 * max(self.pauses),
            "seconds": self.seconds,
            "cpu seconds": self.cpu,
        }


def felt(gaps: list[float], share: float = 0.01) -> float:
    """Seconds that such a share of events, coming at any moment, waits at least.

    The share of late ticks would count a stall of a second as one tick among thousands.
    """
    whole = sum(gaps) + TICK * len(gaps)
    low, high = 0.0, max(gaps)
    for _ in range(40):
        middle = (low + high) / 2
        late = sum(gap - middle for gap in gaps if gap > middle)
        low, high = (middle, high) if late > share * whole else (low, middle)
    return high


async def all_done(tasks: list[Task]) -> None:
    """Return when all have ended; let go of each and its result soon after it has."""
    waiting = deque(tasks)
    tasks.clear()
    while waiting:
        await asyncio.sleep(TICK)
        for _ in range(min(500, len(waiting))):
            task = waiting.popleft()
            if not task.done():
                waiting.append(task)


async def live(kind: str, size: int, seconds: float) -> dict[str, object]:
    """A crowd comes, waits, and is woken: memory and stalls."""
    async with KINDS[kind]() as crowd:
        gc.collect()
        idle = resident()
        with Ticker() as joining:
            tasks = await crowd.join(size)
        gc.collect()
        joined = resident() - idle
        with Ticker() as waiting:
            await asyncio.sleep(seconds)
        gc.collect()
        waited = resident() - idle
        with Ticker() as waking:
            await crowd.finish()
            await all_done(tasks)
        return {
            "resident bytes": max(joined, waited),
            "joining": joining.figures,
            "waiting": waiting.figures,
            "waking": waking.figures,
        }


async def trace(kind: str, size: int, seconds: float) -> dict[str, object]:
    """The same crowd, slower: what Python's objects take. `seconds` is how long it waits."""
    tracemalloc.start()
    async with KINDS[kind]() as crowd:
        gc.collect()
        idle = traced()
        tasks = await crowd.join(size)
        await asyncio.sleep(seconds)
        gc.collect()
        held = traced() - idle
        await end(tasks)
        return {"traced bytes": held}


async def cancel(kind: str, size: int, seconds: float) -> dict[str, object]:
    """Everybody is cancelled at once, as a TaskGroup does it: time and stall."""
    async with KINDS[kind]() as crowd:
        tasks = await crowd.join(size)
        await asyncio.sleep(seconds)
        gc.collect()
        with Ticker() as cancelling:
            await end(tasks)
        return {"cancelling": cancelling.figures}


async def end(tasks: list[Task]) -> None:
    """Cancel all, and return when they have ended."""
    for task in tasks:
        task.cancel()
    await all_done(tasks)


async def churn(kind: str, size: int, seconds: float) -> dict[str, object]:
    """L5: a hundred times a second such a crowd comes and is cancelled. Is the memory back?"""
    tracemalloc.start()
    async with KINDS[kind]() as crowd:
        crowd.finished_meanwhile = "none"  # what is learned stays, and is not theirs
        after: list[int] = []
        for _ in range(round(100 * seconds)):
            tasks = await crowd.join(size)
            await asyncio.sleep(0.01)
            await end(tasks)
            gc.collect()
            after.append(traced())
        held = await held_by(crowd, size)
    # The first rounds fill what is remembered of tasks that nobody waits for.
    early, late = statistics.median(after[5:15]), statistics.median(after[-10:])
    return {
        "bytes after 10 rounds": early,
        "bytes at the end": late,
        "growth": late / early - 1,
    } | held


async def held_by(crowd: Crowd, size: int) -> dict[str, object]:
    """What one more such crowd takes while it waits."""
    before = traced()
    tasks = await crowd.join(size)
    held = traced() - before
    await end(tasks)
    return {"bytes of one crowd": held}


async def profile(kind: str, size: int, seconds: float) -> dict[str, object]:
    """Which lines made the objects that are held while a crowd waits: bytes and blocks each."""
    tracemalloc.start()
    async with KINDS[kind]() as crowd:
        gc.collect()
        before = tracemalloc.take_snapshot()
        tasks = await crowd.join(size)
        await asyncio.sleep(seconds)
        gc.collect()
        lines = tracemalloc.take_snapshot().compare_to(before, "lineno")
        await end(tasks)
    return {
        f"{Path(line.traceback[0].filename).name}:{line.traceback[0].lineno}": [
            line.size_diff / size,
            line.count_diff / size,
        ]
        for line in lines[:24]
    }


WAYS = {each.__name__: each for each in (live, trace, cancel, churn, profile)}


# ─── processes and tables ────────────────────────────────────────────────────────────────────────


def apart(way: str, kind: str, size: int, seconds: float) -> dict[str, object]:
    """One measurement, in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", way, kind, str(size), str(seconds)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    figures: dict[str, object] = json.loads(done.stdout)
    return figures


@attrs.frozen
class Row:
    """All that was measured of one kind and size."""

    kind: str
    size: int
    figures: dict[str, object]

    def number(self, *path: str) -> float:
        """One figure."""
        value: object = self.figures
        for name in path:
            assert isinstance(value, dict)
            value = value[name]
        assert isinstance(value, int | float)
        return value


def measure(kinds: list[str], sizes: list[int], seconds: float) -> list[Row]:
    """Every kind at every size, the sizes by turns."""
    rows = []
    for size, kind in itertools.product(sizes, kinds):
        figures: dict[str, object] = {}
        for way in ("live", "trace", "cancel"):
            figures |= apart(way, kind, size, seconds if way == "live" else min(seconds, 1.0))
        rows.append(Row(kind, size, figures))
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def beyond(rows: list[Row], row: Row, name: str) -> float:
    """Bytes that a crowd takes more than callers alone."""
    alone = next(each for each in rows if (each.kind, each.size) == ("callers", row.size))
    return row.number(name) - alone.number(name)


def exponent(rows: list[Row], kind: str, value: Callable[[Row], float]) -> float:
    """With which power of the number of waiters something grows, over the last step of ten."""
    last = [row for row in rows if row.kind == kind][-2:]
    if len(last) < 2 or min(map(value, last)) <= 0:
        return math.nan
    return math.log(value(last[1]) / value(last[0])) / math.log(last[1].size / last[0].size)


def tables(rows: list[Row]) -> None:
    """What was measured, for each waiter side by side."""
    print(f"\n{'bytes each':24}{'resident':>10}{'beyond':>10}{'traced':>10}{'beyond':>10}")
    for row in rows:
        told = [
            row.number("resident bytes"),
            beyond(rows, row, "resident bytes"),
            row.number("traced bytes"),
            beyond(rows, row, "traced bytes"),
        ]
        print(f"{row.kind:14}{row.size:>10,}" + "".join(f"{n / row.size:>10,.0f}" for n in told))
    for phase in ("joining", "waiting", "waking", "cancelling"):
        print(f"\n{phase:24}{'stall p99':>10}{'worst':>10}{'of it CPU':>10}", end="")
        print(f"{'gc apart':>10}{'gc worst':>10}", end="")
        print(f"{'seconds':>10}{'cpu':>10}{'µs each':>10}")
        for row in rows:
            names = ("p99 ms", "worst ms", "worst cpu ms", "worst without gc ms", "worst gc ms")
            ms = "".join(f"{row.number(phase, name):>10.1f}" for name in names)
            taken, cpu = (row.number(phase, name) for name in ("seconds", "cpu seconds"))
            each = f"{1e6 * cpu / row.size:>10.1f}" if phase != "waiting" else f"{'':10}"
            print(f"{row.kind:14}{row.size:>10,}{ms}{taken:>10.2f}{cpu:>10.2f}{each}")


def growth(rows: list[Row], kinds: list[str]) -> dict[str, float]:
    """The powers: 1 is linear."""
    figures = {
        f"{kind}, growth of {name}": exponent(rows, kind, value)
        for kind in kinds
        for name, value in (
            ("memory", lambda row: row.number("traced bytes")),
            ("waking, CPU", lambda row: row.number("waking", "cpu seconds")),
            ("cancelling, CPU", lambda row: row.number("cancelling", "cpu seconds")),
        )
    }
    print("\ngrowth with the number of waiters, as a power of it (1 is linear)")
    for name, value in figures.items():
        print(f"{name:50}{value:12.2f}")
    return figures


def holds(rows: list[Row], grown: dict[str, float], churned: dict[str, object]) -> dict[str, bool]:
    """Whether what is promised holds; each line says so."""
    size = max(row.size for row in rows)
    verdicts: dict[str, bool] = {}

    def say(what: str, value: float, limit: float) -> None:
        verdicts[what] = value <= limit
        print(f"{what:56}{value:10.2f} <= {limit:g}: {'holds' if value <= limit else 'MISSED'}")

    print(f"\nheld at {AT:,} waiters; this is at {size:,}")
    for row in rows:
        if row.size == size and row.kind in OURS:
            say(f"{row.kind}: MB beyond the callers' own", megabytes(rows, row), MEGABYTES)
            for phase in ("waiting", "waking"):
                say(f"{row.kind}: p99 stall while {phase}, ms", row.number(phase, "p99 ms"), P99)
                p99 = row.number(phase, "p99 without gc ms")
                say(f"{row.kind}: p99 stall while {phase} (gc apart), ms", p99, P99)
                worst = row.number(phase, "worst without gc ms")
                say(f"{row.kind}: worst stall while {phase} (gc apart), ms", worst, WORST)
    for name, value in grown.items():
        if name.startswith(OURS) and not math.isnan(value):
            say(name, value, LINEAR)
    back = churned["growth"]
    assert isinstance(back, float)
    say("memory after 100 x 1,000 cancelled waiters (L5)", back, BACK)
    return verdicts


def megabytes(rows: list[Row], row: Row) -> float:
    """Beyond the callers' own."""
    return beyond(rows, row, "resident bytes") / 1e6


def show_profiles(kinds: list[str], size: int) -> None:
    """Print which lines hold the memory."""
    for kind in kinds:
        print(f"\n{kind}, {size:,} waiters{'bytes each':>24}{'blocks':>10}")
        for line, held in apart("profile", kind, size, 1.0).items():
            assert isinstance(held, list)
            print(f"  {line:34.34}{held[0]:10.1f}{held[1]:10.2f}")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--only", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--seconds", type=float, default=5.0, help="that a crowd waits")
    parser.add_argument("--json", type=Path, default=Path("waiters-benchmark.json"))
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--profile", action="store_true", help="show what holds the memory")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, print, write, and say whether what is promised holds."""
    given = arguments()
    if given.measure:
        way, kind, size, seconds = given.measure
        print(json.dumps(asyncio.run(WAYS[way](kind, int(size), float(seconds)))))
        return 0
    kinds = [kind for kind in KINDS if kind in given.only.split(",")]
    sizes = [100, 500] if given.quick else [int(size) for size in given.sizes.split(",")]
    if given.profile:
        show_profiles(kinds, sizes[-1])
        return 0
    kinds = list(dict.fromkeys(["callers", *kinds]))
    rows = measure(kinds, sizes, 0.2 if given.quick else given.seconds)
    churned = apart("churn", "tasks", *((200, 0.2) if given.quick else (1000, 1.0)))
    tables(rows)
    grown = growth(rows, kinds)
    verdicts = holds(rows, grown, churned)
    told = {
        "python": platform.python_version(),
        "rows": [attrs.asdict(row) for row in rows],
        "growth": grown,
        "churn": churned,
        "holds": verdicts,
    }
    given.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
