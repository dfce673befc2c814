"""Looks against delay: our schedule, the best there is, and fixed intervals.

    python benchmarks/looks.py [--tasks 600] [--worlds NAME;NAME] [--json FILE] [--png FILE]
    python benchmarks/looks.py --quick

A look costs a request, a late look the user's time. For each world (`_worlds.py`) the same
durations go to everybody:

- ``first``: the real client, in virtual time (`_virtual.py`: real loopback sockets in one
  `VirtualLoop`), a fresh one for each task. All that it knows is the prior.
- ``ours``: the real client, one for all tasks, after it has seen 50. It goes on learning.
- ``optimum``: a dynamic programme on the true distribution, at each moment of an evening that gets
  slower. Neither the client's floor nor its jitter binds it.
- fixed intervals, played exactly.

Delay is from the task's end at the server to the waiter's resumption; cost is delay + price × looks
for each look price. Holds: ours costs at most 1.15 × the optimum; a fixed interval that is as late
(interpolated) looks at least 1.7 × as often. Two more worlds: 2,000 tasks at once with five looks a
second, and a receiver whose callbacks are in time.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import random
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import attrs

from _virtual import Fate, VirtualService
from _worlds import WORLDS, World, every, optimum, played
from midapi_async import CallbackReceiver, MidAPIClient, PollPolicy
from midapi_async.testing import VirtualLoop

PRICES = (0.3, 1.0, 3.0)
INTERVALS = (0.1, 0.5, 2.0, 5.0, 6.0, 10.0, 30.0)
SEEN = 50  # tasks before ours is measured
RATIO, FEWER = 1.15, 1.7  # what is promised
CROWD, FRESH = 2000, 4  # tasks at once; one task in so many is given to a fresh client
SEED = 20

# Of each world and price, beside what was played.
FIGURES = ("ratio", "ratio_first", "fewer", "fewer_at_best")

# The mean delay in seconds and the mean number of looks.
Point = tuple[float, float]


# ─── the real client ─────────────────────────────────────────────────────────────────────────────


def client(url: str, price: float, **options: object) -> MidAPIClient:
    """A client of ours; its gate is not what is measured."""
    chosen: dict[str, object] = {
        "rate_limit": None,
        "polling": PollPolicy(look_price=price),
        **options,
    }
    return MidAPIClient("a-key", base_url=url, **chosen)  # type: ignore[arg-type]  # passed on


async def wait_for_one(midapi: MidAPIClient, service: VirtualService, request: object) -> None:
    """Buy, wait, and write down how late that was."""
    handle = await midapi.generate(request)  # type: ignore[call-overload]  # one of the requests
    await handle.wait()
    fate = service.fates[handle.task_id]
    fate.delay = asyncio.get_running_loop().time() - fate.end


async def fresh_clients(world: World, durations: Sequence[float], price: float) -> list[Fate]:
    """Each task is the first one of its client."""
    service = VirtualService(iter(durations))

    async def alone(url: str) -> None:
        async with client(url, price) as midapi:
            await wait_for_one(midapi, service, world.request)

    async with service.served() as url:
        for begun in range(0, len(durations), 25):
            await asyncio.gather(*(alone(url) for _ in durations[begun : begun + 25]))
    return list(service.fates.values())


async def learned_client(
    world: World, durations: Sequence[float], price: float, **options: object
) -> list[Fate]:
    """One client: 50 tasks that it learns from, then those that count, three or so at a time."""
    service = VirtualService(iter(durations))
    pause = statistics.fmean(durations) / 3
    async with service.served() as url, client(url, price, **options) as midapi:
        await asyncio.gather(*(wait_for_one(midapi, service, world.request) for _ in range(SEEN)))
        async with asyncio.TaskGroup() as waits:
            for _ in durations[SEEN:]:
                waits.create_task(wait_for_one(midapi, service, world.request))
                await asyncio.sleep(pause)
    return list(service.fates.values())[SEEN:]


# ─── one world at one price ──────────────────────────────────────────────────────────────────────


@attrs.frozen
class Played:
    """What one world showed at one price.

    Attributes:
        world: its name.
        price: of a look, in seconds.
        first: ours with the prior alone.
        ours: after 50 tasks.
        optimum: on the same durations as ours.
        optimum_first: on the same durations as first.
        settling: ours and the optimum while a jump was news; else nothing.
        fixed: for each interval.
        is_steady: whether first and ours are about the same distribution.
    """

    world: str
    price: float
    first: Point
    ours: Point
    optimum: Point
    optimum_first: Point
    settling: tuple[Point, Point] | None
    fixed: dict[float, Point]
    is_steady: bool

    def cost(self, point: Point) -> float:
        """Delay + price × looks."""
        return point[0] + self.price * point[1]

    @property
    def ratio(self) -> float:
        """What ours costs, of the optimum."""
        return self.cost(self.ours) / self.cost(self.optimum)

    @property
    def ratio_first(self) -> float:
        """What it costs before anything was learned."""
        return self.cost(self.first) / self.cost(self.optimum_first)

    @property
    def fewer(self) -> float:
        """How many times as often a fixed interval looks that is as late as ours."""
        return as_late(self.fixed, self.ours[0]) / self.ours[1]

    @property
    def fewer_at_best(self) -> float:
        """The same of the optimum: where tasks differ much, no schedule can be much better."""
        return as_late(self.fixed, self.optimum[0]) / self.optimum[1]


def as_late(fixed: dict[float, Point], delay: float) -> float:
    """The looks of a fixed interval with this mean delay: between two of them, in logarithms."""
    points = sorted(fixed.values())
    pairs = list(pairwise(points))
    low, high = next((pair for pair in pairs if delay <= pair[1][0]), pairs[-1])
    share = math.log(delay / low[0]) / math.log(high[0] / low[0])
    return math.exp(math.log(low[1]) + share * math.log(high[1] / low[1]))


def mean(results: Sequence[tuple[float, int]]) -> Point:
    """The mean delay and looks."""
    delays, looks = zip(*results, strict=True)
    return statistics.fmean(delays), statistics.fmean(looks)


def of(fates: Sequence[Fate]) -> Point:
    """The same of what the client did."""
    return mean([(fate.delay, fate.looks) for fate in fates])


def play(name: str, price: float, tasks: int) -> Played:
    """One world at one price: the same durations for everybody."""
    world = next(world for world in WORLDS if world.name == name)
    chance = random.Random(f"{SEED} {name}")  # the same durations at each price
    random.seed(SEED)  # the client's jitter
    count = world.settles + tasks
    spreads = [world.at(number, count) for number in range(-SEEN, count)]
    durations = [spread.draw(chance) for spread in spreads]
    best = [
        played(optimum(spread, price), duration)
        for spread, duration in zip(spreads[SEEN:], durations[SEEN:], strict=True)
    ]
    virgin = [world.spread.draw(chance) for _ in range(max(tasks // FRESH, 20))]
    first = VirtualLoop.run(fresh_clients(world, virgin, price))
    ours = VirtualLoop.run(learned_client(world, durations, price))
    news = world.settles
    return Played(
        world=name,
        price=price,
        first=of(first),
        ours=of(ours[news:]),
        optimum=mean(best[news:]),
        optimum_first=mean([played(optimum(world.spread, price), each) for each in virgin]),
        settling=(of(ours[:news]), mean(best[:news])) if news else None,
        fixed={
            interval: mean([every(interval, each) for each in durations[SEEN + news :]])
            for interval in INTERVALS
        },
        is_steady=spreads[0] == spreads[-1],
    )


# ─── two more worlds ─────────────────────────────────────────────────────────────────────────────


def crowded(count: int) -> dict[str, float]:
    """So many tasks at once, and five looks a second for all of them."""
    random.seed(SEED)
    chance, world = random.Random(SEED), WORLDS[1]
    durations = [world.spread.draw(chance) for _ in range(count)]

    async def run() -> list[Fate]:
        service = VirtualService(iter(durations))
        async with service.served() as url, client(url, 1.0) as midapi:
            await asyncio.gather(
                *(wait_for_one(midapi, service, world.request) for _ in range(count))
            )
        return list(service.fates.values())

    fates = VirtualLoop.run(run())
    delays = sorted(fate.delay for fate in fates)
    looks = [fate.looks for fate in fates]
    oracle = sorted(queued(durations, PollPolicy().looks_per_second))
    return {
        "delay p50": statistics.median(delays),
        "delay p99": delays[int(0.99 * count)],
        "delay worst": delays[-1],
        "looks per task": statistics.fmean(looks),
        "looks at one task, most": float(max(looks)),
        "an oracle's delay p50": statistics.median(oracle),
        "an oracle's delay p99": oracle[int(0.99 * count)],
        "an oracle's delay worst": oracle[-1],
    }


def queued(durations: Sequence[float], per_second: float) -> Iterator[float]:
    """The delays if somebody told which tasks are finished: one look each, first come first."""
    turns: deque[float] = deque()
    free = 0.0
    for end in sorted(durations):
        turn = max(end, free)
        free = turn + 1 / per_second
        turns.append(turn - end)
    return iter(turns)


def called_back(tasks: int) -> dict[str, float]:
    """A receiver whose callbacks come as tasks finish: what looks are left."""
    random.seed(SEED)
    chance, world = random.Random(SEED), WORLDS[1]
    durations = [world.spread.draw(chance) for _ in range(SEEN + tasks)]

    async def run() -> list[Fate]:
        receiver = CallbackReceiver("https://example.com/midapi")

        async def call_back(url: str, body: bytes) -> object:
            headers = {"Content-Type": "application/json"}
            return await receiver.handle(url.rpartition("/")[2], headers, body)

        service = VirtualService(iter(durations), call_back)
        pause = statistics.fmean(durations) / 3
        async with (
            service.served() as url,
            client(url, 1.0, receiver=receiver) as midapi,
            asyncio.TaskGroup() as waits,
        ):
            for _ in durations:
                waits.create_task(wait_for_one(midapi, service, world.request))
                await asyncio.sleep(pause)
        return list(service.fates.values())[SEEN:]

    delay, looks = of(VirtualLoop.run(run()))
    return {"mean delay": delay, "looks per task": looks}


# ─── tables ──────────────────────────────────────────────────────────────────────────────────────


def tables(results: Sequence[Played]) -> None:
    """Delay and looks of each, and the two figures that are held."""
    print(f"{'':32}{'first task':>16}{'after 50 tasks':>16}{'optimum':>16}", end="")
    print(
        f"{'/ optimum':>14}{'fixed, as late':>16}{'at best':>9}\n{'world':26}{'price':>6}", end=""
    )
    print(3 * f"{'delay':>8}{'looks':>8}" + f"{'first':>7}{'ours':>7}{'looks':>8}{'fewer':>8}")
    for each in results:
        points = (each.first, each.ours, each.optimum)
        told = "".join(f"{delay:>8.2f}{looks:>8.2f}" for delay, looks in points)
        print(f"{each.world:26}{each.price:>6}{told}", end="")
        print(f"{each.ratio_first:>7.2f}{each.ratio:>7.2f}", end="")
        print(f"{as_late(each.fixed, each.ours[0]):>8.2f}", end="")
        print(f"{each.fewer:>8.2f}{each.fewer_at_best:>9.2f}")
        if each.settling is not None:
            news, best = each.settling
            ratio = each.cost(news) / each.cost(best)
            print(f"{'  the first 50 after it':32}{'':16}{news[0]:>8.2f}{news[1]:>8.2f}", end="")
            print(f"{best[0]:>8.2f}{best[1]:>8.2f}{'':7}{ratio:>7.2f}")
    fixed_table({each.world: each.fixed for each in results})


def fixed_table(worlds: dict[str, dict[float, Point]]) -> None:
    """What fixed intervals do; no price changes that."""
    print(f"\n{'fixed interval':26}" + "".join(f"{interval:>14} s" for interval in INTERVALS))
    print(f"{'':26}" + len(INTERVALS) * f"{'delay':>8}{'looks':>8}")
    for world, fixed in worlds.items():
        told = "".join(f"{delay:>8.2f}{looks:>8.1f}" for delay, looks in fixed.values())
        print(f"{world:26}{told}")


def holds(results: Sequence[Played]) -> dict[str, bool]:
    """Whether what is promised holds, each line says so; the worst world is named."""
    costly = max(results, key=lambda each: each.ratio)
    often = min(results, key=lambda each: each.fewer)
    kept = [each for each in results if each.ratio <= RATIO]
    rare = [each for each in results if each.fewer >= FEWER]
    print()
    for what, limit, good, worst, value in (
        ("cost / optimum after 50 tasks, at most", RATIO, kept, costly, costly.ratio),
        ("looks of a fixed interval as late, at least", FEWER, rare, often, often.fewer),
    ):
        verdict = "holds" if len(good) == len(results) else "MISSED"
        print(f"{what:46}{limit:>6} × : {verdict}, {len(good)} of {len(results)}; ", end="")
        print(f"worst {value:.2f} ({worst.world}, price {worst.price})")
    able = sum(each.fewer_at_best >= FEWER for each in results)
    print(f"{'  the optimum itself reaches the latter in':58}{able:>4} of {len(results)}")
    return {"cost": len(kept) == len(results), "looks": len(rare) == len(results)}


def measured(given: argparse.Namespace, names: Sequence[str]) -> list[Played]:
    """Every world at every price, in as many processes as there are cores."""
    prices = PRICES[1:2] if given.quick else PRICES
    jobs = [(name, price, given.tasks) for name in names for price in prices]
    if given.quick:
        return [play(*job) for job in jobs]
    with ProcessPoolExecutor(given.jobs) as pool:
        return list(pool.map(play, *zip(*jobs, strict=True)))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=600, help="for each world and price")
    parser.add_argument("--worlds", help="their names, with ; between them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, default=Path("looks-benchmark.json"))
    parser.add_argument("--png", type=Path, help="draw the curves (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    return parser.parse_args()


def main() -> int:
    """Play, print, write, draw, and say whether what is promised holds."""
    given = arguments()
    names = given.worlds.split(";") if given.worlds else [world.name for world in WORLDS]
    if given.quick:
        given.tasks, names = 40, names[:2]
    results = measured(given, names)
    tables(results)
    verdicts = holds(results)
    crowd = crowded(CROWD // 20 if given.quick else CROWD)
    trusted = called_back(given.tasks)
    for what, figures in (("more tasks than looks", crowd), ("callbacks in time", trusted)):
        print(f"\n{what}")
        for name, value in figures.items():
            print(f"  {name:38}{value:10.2f}")
    told = {
        "python": platform.python_version(),
        "tasks": given.tasks,
        "worlds": [
            attrs.asdict(each) | {name: getattr(each, name) for name in FIGURES} for each in results
        ],
        "holds": verdicts,
        "more tasks than looks": crowd,
        "callbacks in time": trusted,
    }
    given.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    if given.png:
        from _drawing import draw

        draw(results, given.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
