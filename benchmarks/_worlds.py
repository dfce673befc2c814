"""The worlds of `looks.py`: how long tasks really take there, and the best times to look.

The optimum here shares no code with `midapi_async._tracking.schedule`: it knows the true
distribution, has ten times as many moments to look at, no least time between looks, and no jitter.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache

import attrs

from midapi_async import ImageToVideo, TextToImage

MOMENTS = 1000  # at which the optimum may look
TAIL = 4.75  # deviations: one in a million is beyond
GROWTH = 1.15  # past the last moment, each look of the optimum is this much later
DRIFT = 2.5  # times as slow at the end of the evening


@attrs.frozen
class Spread:
    """Log-normal humps: what a duration is drawn from.

    Attributes:
        humps: of each its weight, its median in seconds, and the deviation of the logarithm.
    """

    humps: tuple[tuple[float, float, float], ...]

    def draw(self, chance: random.Random) -> float:
        """How long one task takes, in seconds."""
        weights = [weight for weight, *_ in self.humps]
        [(_, median, sigma)] = chance.choices(self.humps, weights)
        return median * math.exp(chance.gauss(0, sigma))

    def slower(self, times: float) -> "Spread":
        """The same world, slowed down by a factor."""
        return Spread(
            tuple((weight, times * median, sigma) for weight, median, sigma in self.humps)
        )

    def until(self, seconds: float) -> tuple[float, float]:
        """The share of durations up to this, and their sum in seconds for one task."""
        share = total = 0.0
        for weight, median, sigma in self.humps:
            deviations = math.log(seconds / median) / sigma
            share += weight * _below(deviations)
            total += weight * median * math.exp(sigma**2 / 2) * _below(deviations - sigma)
        return share, total

    @property
    def moments(self) -> list[float]:
        """The beginning, and the moments between the first and the last durations there are."""
        first = min(median * math.exp(-TAIL * sigma) for _, median, sigma in self.humps)
        last = max(median * math.exp(TAIL * sigma) for _, median, sigma in self.humps)
        steps = range(MOMENTS)
        return [0.0, *(first * (last / first) ** (step / (MOMENTS - 1)) for step in steps)]


def _below(deviations: float) -> float:
    return (1 + math.erf(deviations / math.sqrt(2))) / 2


@cache
def optimum(spread: Spread, price: float) -> tuple[float, ...]:
    """When to look if the truth is known: the least delay + price × looks there is.

    A dynamic programme over the cost that remains after a look that found nothing: the next look
    of the tasks that still run, the delay of those that it finds finished, and the rest.
    """
    times = spread.moments
    shares, sums = zip((0.0, 0.0), *map(spread.until, times[1:]), strict=True)
    final = len(times) - 1
    rest = [math.inf] * final + [0.0]
    after = [final] * final
    for here in range(final - 1, -1, -1):
        # The sum of (next − duration) over the tasks that finish between here and next.
        gone, spent = shares[here], sums[here]
        best, after[here] = min(
            (times[to] * (shares[to] - gone) - sums[to] + rest[to], to)
            for to in range(here + 1, final + 1)
        )
        rest[here] = best + spent + price * (1 - gone)
    looks = [after[0]]
    while looks[-1] != final:
        looks.append(after[looks[-1]])
    return tuple(times[look] for look in looks)


def played(plan: Sequence[float], duration: float) -> tuple[float, int]:
    """The delay and the looks of a task that took so long."""
    looks = bisect_right(plan, duration)
    if looks < len(plan):
        return plan[looks] - duration, looks + 1
    moment = plan[-1]
    while moment <= duration:
        moment *= GROWTH
        looks += 1
    return moment - duration, looks


def every(interval: float, duration: float) -> tuple[float, int]:
    """The same with looks at a fixed interval."""
    looks = max(1, math.ceil(duration / interval))
    return looks * interval - duration, looks


Request = TextToImage | ImageToVideo


@attrs.frozen
class World:
    """A kind of task, and how long each takes.

    Attributes:
        name: for tables.
        request: what is bought.
        spread: of the first tasks.
        slower: how much slower a task is than the first, from its index and the number of tasks.
        settles: how many measured tasks are for adapting, and are counted apart.
    """

    name: str
    request: Request
    spread: Spread
    slower: Callable[[int, int], float] = lambda _, __: 1.0
    settles: int = 0

    def at(self, number: int, count: int) -> Spread:
        """The durations that task ``number`` of ``count`` is drawn from; below 0: before them."""
        times = self.slower(number, count) if number >= 0 else 1.0
        return self.spread.slower(times) if times != 1.0 else self.spread


def _evening(number: int, count: int) -> float:
    """Ever slower, in twenty steps, each of which has an optimum of its own."""
    return math.pow(DRIFT, math.ceil(20 * number / count) / 20)


def _jump(_: int, __: int) -> float:
    return DRIFT


def one(median: float, sigma: float) -> Spread:
    """One hump."""
    return Spread(((1.0, median, sigma),))


TURBO = TextToImage("a red fox", speed="turbo")
FAST = TextToImage("a red fox", speed="fast")
RELAXED = TextToImage("a red fox", speed="relaxed")
VIDEO = ImageToVideo("a red fox runs", file_urls=["https://example.com/fox.png"])
FAST_SPREAD, TWO_SPEEDS = one(64, 0.2), Spread(((0.7, 55, 0.12), (0.3, 140, 0.15)))

WORLDS = (
    World("turbo", TURBO, one(33, 0.25)),
    World("fast", FAST, FAST_SPREAD),
    World("relaxed", RELAXED, one(214, 0.4)),
    World("video", VIDEO, one(220, 0.4)),
    World("turbo, two humps", TURBO, Spread(((0.8, 28, 0.15), (0.2, 75, 0.2)))),
    World("fast, two humps", FAST, TWO_SPEEDS),
    World("relaxed, two humps", RELAXED, Spread(((0.5, 110, 0.2), (0.5, 420, 0.25)))),
    World("video, two humps", VIDEO, Spread(((0.6, 120, 0.15), (0.4, 400, 0.2)))),
    World("turbo, a slower evening", TURBO, one(33, 0.25), _evening),
    World("fast, a slower evening", FAST, FAST_SPREAD, _evening),
    World("relaxed, a slower evening", RELAXED, one(214, 0.4), _evening),
    World("video, a slower evening", VIDEO, one(220, 0.4), _evening),
    World("fast, a sudden jump", FAST, FAST_SPREAD, _jump, settles=50),
    World("fast, 4 × the prior", FAST, one(240, 0.3)),
    World("fast, ¼ of the prior", FAST, one(15, 0.3)),
)
