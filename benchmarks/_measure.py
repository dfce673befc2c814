"""CPU time of several ways to do one thing, measured by turns in short slices.

Other load on the machine slows all ways alike, and a ratio compares two slices that ran one after
the other.
"""

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs


async def _nothing(times: int) -> None:
    """Prepare nothing."""


@attrs.frozen
class Way:
    """One way to do the thing.

    Attributes:
        name: for the table.
        run: does it as often as its argument says.
        prepare: is run before it and not measured.
    """

    name: str
    run: Callable[[int], Awaitable[object]]
    prepare: Callable[[int], Awaitable[object]] = _nothing


def one_by_one(name: str, once: Callable[[], Awaitable[object]]) -> Way:
    """A way that awaits `once` again and again."""

    async def run(times: int) -> None:
        for _ in range(times):
            await once()

    return Way(name, run)


@attrs.frozen
class Cost:
    """What one way costs.

    Attributes:
        us: µs of CPU, user and system, for one time; the median of the slices.
        ratio: `us` divided by that of the reference's neighbouring slice; the median.
        low: the lower quartile of the ratios.
        high: the upper quartile of the ratios.
    """

    us: float
    ratio: float
    low: float
    high: float


async def slice_of(way: Way, times: int) -> float:
    """µs of CPU for one time, the mean of a slice.

    Older objects are hidden from the garbage collector, so that a slice pays for its own only.
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
    """Measure all ways by turns; the first one is the reference.

    Args:
        ways: the ways.
        slices: how many slices each way gets.
        seconds: of CPU for about one slice.
        most: largest number of times in a slice.
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
    return {name: cost_of(each, reference) for name, each in costs.items()}


def cost_of(mine: Sequence[float], reference: Sequence[float]) -> Cost:
    """The figures of one way from its slices and the neighbouring ones of the reference."""
    ratios = [one / other for one, other in zip(mine, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Cost(statistics.median(mine), middle, low, high)
