"""Looks against delay: our schedule, the best possible one, and fixed intervals.

    python benchmarks/looks.py [--quick] [--tasks 600] [--worlds NAME;NAME] [--png FILE]

A look costs a request, a late look the user's time. In each world (`_worlds.py`) every policy gets
the same durations:

- ``first``: the real client, in virtual time (`_virtual.py`: real loopback sockets in one
  `VirtualLoop`), a fresh one for each task. All that it knows is the prior.
- ``ours``: the real client, one for all tasks, after it has seen 50. It goes on learning.
- ``optimum``: a dynamic programme on the true distribution, at each moment of an evening that gets
  slower. The client's floor and jitter do not bind it.
- fixed intervals, played exactly.

Delay is from the task's end at the server to the waiter's resumption; cost is delay + price × looks
for each look price. The promise is about ours and the optimum. Beside it stand the looks of a fixed
interval that is as late (interpolated), and two more worlds: a receiver whose callbacks are in
time; and a batch at the account's full rate without a receiver, beside the same batch without a
limit of looks.

The picture of docs/looks.md: ``--worlds "fast;relaxed;fast, a slower evening" --png
docs/images/looks.png``.
"""

import argparse
import asyncio
import math
import os
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import attrs

from _report import Promise, options, report
from _virtual import Fate, VirtualService
from _worlds import WORLDS, World, every, optimum, played
from midapi_async import CallbackReceiver, MidAPIClient, PollPolicy, RateLimit
from midapi_async.testing import VirtualLoop

PRICES = (0.3, 1.0, 3.0)
INTERVALS = (0.1, 0.5, 2.0, 5.0, 6.0, 10.0, 30.0)
SEEN = 50  # tasks before ours is measured
RATIO = 1.15
LIMITED_RATIO = 1.1  # the delay of a batch, over its delay without a limit of looks
UNLIMITED = PollPolicy(looks_per_second=10_000.0, burst=10_000)
FRESH = 4  # one task in four is given to a fresh client
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
    """Submit, wait, and note the delay."""
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
    """The figures of one world at one price.

    Attributes:
        world: its name.
        price: of a look, in seconds.
        first: ours with the prior alone.
        ours: after 50 tasks.
        optimum: on the same durations as ours.
        optimum_first: on the same durations as first.
        settling: ours and the optimum just after a jump; else None.
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
        """The cost of ours over that of the optimum."""
        return self.cost(self.ours) / self.cost(self.optimum)

    @property
    def ratio_first(self) -> float:
        """The same before anything was learned."""
        return self.cost(self.first) / self.cost(self.optimum_first)

    @property
    def fewer(self) -> float:
        """Looks of a fixed interval that is as late as ours, over our looks."""
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
    """The same for the client's tasks."""
    return mean([(fate.delay, fate.looks) for fate in fates])


def play(name: str, price: float, tasks: int) -> Played:
    """One world at one price, with the same durations for every policy."""
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
    fresh = [world.spread.draw(chance) for _ in range(max(tasks // FRESH, 20))]
    first = VirtualLoop.run(fresh_clients(world, fresh, price))
    ours = VirtualLoop.run(learned_client(world, durations, price))
    news = world.settles
    return Played(
        world=name,
        price=price,
        first=of(first),
        ours=of(ours[news:]),
        optimum=mean(best[news:]),
        optimum_first=mean([played(optimum(world.spread, price), each) for each in fresh]),
        settling=(of(ours[:news]), mean(best[:news])) if news else None,
        fixed={
            interval: mean([every(interval, each) for each in durations[SEEN + news :]])
            for interval in INTERVALS
        },
        is_steady=spreads[0] == spreads[-1],
    )


# ─── two more worlds ─────────────────────────────────────────────────────────────────────────────


def called_back(tasks: int) -> Point:
    """A receiver whose callbacks come as tasks finish: the delay, and the looks that are left."""
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

    return of(VirtualLoop.run(run()))


def batch(tasks: int, polling: PollPolicy) -> Point:
    """A batch at the account's full rate, without a receiver: the delay, and the looks."""
    random.seed(SEED)
    chance, world = random.Random(SEED), WORLDS[1]
    durations = [world.spread.draw(chance) for _ in range(tasks)]

    async def run() -> list[Fate]:
        service = VirtualService(iter(durations))
        limit = RateLimit(20, per=10.0)
        async with (
            service.served() as url,
            client(url, 1.0, polling=polling, rate_limit=limit) as midapi,
            asyncio.TaskGroup() as waits,
        ):
            for _ in durations:
                waits.create_task(wait_for_one(midapi, service, world.request))
        return list(service.fates.values())

    return of(VirtualLoop.run(run()))


# ─── tables ──────────────────────────────────────────────────────────────────────────────────────


def tables(results: Sequence[Played]) -> None:
    """Delay and looks of each policy, and what they are compared by."""
    print(f"{'':32}{'first task':>16}{'after 50 tasks':>16}{'optimum':>16}", end="")
    print(
        f"{'/ optimum':>14}{'fixed, as late':>16}{'at best':>9}\n{'world':26}{'price':>6}", end=""
    )
    print(3 * f"{'delay':>8}{'looks':>8}" + f"{'first':>7}{'ours':>7}{'looks':>8}{'fewer':>8}")
    for each in results:
        points = (each.first, each.ours, each.optimum)
        cells = "".join(f"{delay:>8.2f}{looks:>8.2f}" for delay, looks in points)
        print(f"{each.world:26}{each.price:>6}{cells}", end="")
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
    """The fixed intervals, which do not depend on the price."""
    print(f"\n{'fixed interval':26}" + "".join(f"{interval:>14} s" for interval in INTERVALS))
    print(f"{'':26}" + len(INTERVALS) * f"{'delay':>8}{'looks':>8}")
    for world, fixed in worlds.items():
        cells = "".join(f"{delay:>8.2f}{looks:>8.1f}" for delay, looks in fixed.values())
        print(f"{world:26}{cells}")


def promises(results: Sequence[Played]) -> list[Promise]:
    """What is promised; the worst world is named."""
    worst = max(results, key=lambda each: each.ratio)
    rare = min(results, key=lambda each: each.fewer)
    print(f"\nfixed intervals that are as late look at least {rare.fewer:.2f} × as often", end="")
    print(f" ({rare.world}, price {rare.price})")
    what = f"cost / optimum after 50 tasks ({worst.world}, price {worst.price})"
    return [Promise(what, worst.ratio, RATIO)]


def measured(given: argparse.Namespace, names: Sequence[str]) -> list[Played]:
    """Every world at every price, in as many processes as there are cores."""
    prices = PRICES[1:2] if given.quick else PRICES
    jobs = [(name, price, given.tasks) for name in names for price in prices]
    if given.quick:
        return [play(*job) for job in jobs]
    with ProcessPoolExecutor(given.jobs) as pool:
        return list(pool.map(play, *zip(*jobs, strict=True)))


def main() -> int:
    """Play, print, write and draw."""
    parser = options(__file__, __doc__)
    parser.add_argument("--tasks", type=int, default=600, help="for each world and price")
    parser.add_argument("--worlds", help="their names, with ; between them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--png", type=Path, help="draw the curves (needs matplotlib)")
    given = parser.parse_args()
    names = given.worlds.split(";") if given.worlds else [world.name for world in WORLDS]
    if given.quick:
        given.tasks, names = 40, names[1:2]
    results = measured(given, names)
    tables(results)
    delay, looks = called_back(given.tasks)
    print(f"\nwith callbacks in time: {looks:.2f} looks for each task, delay {delay:.2f} s")
    limited, unlimited = (batch(given.tasks, policy) for policy in (PollPolicy(), UNLIMITED))
    print(
        f"a batch of {given.tasks} at full rate: {limited[1]:.2f} looks for each task, delay "
        f"{limited[0]:.2f} s; without a limit of looks {unlimited[1]:.2f}, {unlimited[0]:.2f} s"
    )
    what = "delay of a batch at full rate / the same without a limit of looks"
    promise = Promise(what, limited[0] / unlimited[0], LIMITED_RATIO)
    worlds = [
        attrs.asdict(each) | {name: getattr(each, name) for name in FIGURES} for each in results
    ]
    in_time = {"mean delay": delay, "looks per task": looks}
    figures = {"tasks": given.tasks, "worlds": worlds, "callbacks in time": in_time}
    report(given.json, figures, [*promises(results), promise])
    if given.png:
        from _drawing import draw

        draw(results, given.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
