"""CPU time of several ways to do one thing, by turns in short slices.

What else the machine does falls on all of them, and a ratio is that of two neighbours in time.
"""

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs


async def _nothing(times: int) -> None:
    """There is nothing to prepare."""


@attrs.frozen
class Way:
    """One way to do the thing.

    Attributes:
        name: for the table.
        run: does it so many times.
        prepare: what has to be there first, and is not measured.
    """

    name: str
    run: Callable[[int], Awaitable[object]]
    prepare: Callable[[int], Awaitable[object]] = _nothing


def one_by_one(name: str, once: Callable[[], Awaitable[object]]) -> Way:
    """A way that does the thing once, made one that does it many times."""

    async def run(times: int) -> None:
        for _ in range(times):
            await once()

    return Way(name, run)


@attrs.frozen
class Cost:
    """What one way costs.

    Attributes:
        us: µs of CPU, user and system, for one time; the median of the slices.
        ratio: the same over the reference's neighbouring slices; the median.
        low: a quarter of the slices' ratios lie below this one.
        high: and a quarter above this one.
    """

    us: float
    ratio: float
    low: float
    high: float


async def slice_of(way: Way, times: int) -> float:
    """µs of CPU for one time, the mean of a slice.

    What was there before is hidden from the garbage collector, so that nobody pays for the objects
    of others; what the slice itself leaves behind is collected as ever.
    """
    await way.prepare(times)
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    await way.run(times)
    return (time.process_time() - begun) / times * 1e6


async def compare(
    ways: Sequence[Way], slices: int, seconds: float, most: int = 100_000
) -> Mapping[str, Cost]:
    """Measure all ways by turns; the first is the reference.

    Args:
        ways: the ways.
        slices: how many slices each gets.
        seconds: of CPU for about one slice.
        most: times in a slice.
    """
    times = {}
    for way in ways:
        await slice_of(way, 10)  # connections, caches
        times[way.name] = min(most, int(seconds / await slice_of(way, 20) * 1e6) + 1)
    costs: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(max(slices, 2)):
        # There and back, so that a machine that slows down slows all of them.
        for way in ways if number % 2 else reversed(ways):
            costs[way.name].append(await slice_of(way, times[way.name]))
    reference = costs[ways[0].name]
    return {name: _cost(each, reference) for name, each in costs.items()}


def _cost(mine: Sequence[float], reference: Sequence[float]) -> Cost:
    ratios = [one / other for one, other in zip(mine, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Cost(statistics.median(mine), middle, low, high)
