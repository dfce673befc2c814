"""When to look: a plan for each kind of task, from how long such tasks took.

Pure: times go in, times come out; nothing here waits or looks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from functools import lru_cache
from statistics import NormalDist, median, pstdev
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Task type and speed, as MidAPI names them.
Kind = tuple[str, str | None]

REMEMBERED = 64  # durations of a kind
TRUSTED = 5  # new durations after which a plan is made anew
GROWTH = 1.15  # past the plan each look comes at so many times the elapsed time
GRID = 64  # times at which a plan may look
PRIOR_WEIGHT = 8.0  # durations that the prior stands for
NORMAL_QUARTER = 0.637  # the densest quarter of a normal distribution, in deviations
LONE_WIDTH, LEAST_WIDTH = (
    0.15,
    0.02,
)  # of a kernel, in log time: of a single duration, and of equal ones


@attrs.frozen
class Prior:
    """How long tasks of a kind take before any was seen: log-normal.

    Attributes:
        median: seconds.
        sigma: of the logarithm.
    """

    median: float
    sigma: float = 0.3


# Measured from recordings and stated by a reseller; no figure for video is known.
_BY_SPEED: Mapping[str | None, Prior] = {
    "turbo": Prior(30),
    "fast": Prior(60),
    "relaxed": Prior(250),
}
_BY_TYPE: Mapping[str, Prior] = {
    "mj_omni_reference": Prior(250),
    "mj_video": Prior(180, sigma=0.5),
    "mj_video_hd": Prior(180, sigma=0.5),
    "mj_video_extend_auto": Prior(180, sigma=0.5),
    "mj_video_extend_manual": Prior(180, sigma=0.5),
}


def prior(kind: Kind) -> Prior:
    """What is assumed of a kind of task before any was seen."""
    return _BY_TYPE.get(kind[0]) or _BY_SPEED.get(kind[1]) or _BY_SPEED["fast"]


@attrs.frozen
class Expected:
    """How long a task of some kind will take, in seconds.

    Attributes:
        median: half of them are finished by then.
        p90: nine of ten are finished by then.
    """

    median: float
    p90: float


@attrs.frozen
class _Mixture:
    """Log-normal pieces, each with a weight: what is believed of a duration.

    Attributes:
        pieces: (weight, mean of the logarithm, its deviation); the weights sum to 1.
    """

    pieces: tuple[tuple[float, float, float], ...]

    @classmethod
    def of(cls, durations: Sequence[float], prior: Prior) -> _Mixture:
        """Gaussian kernels in log time over what was seen, and the prior with a weight of 8."""
        total = PRIOR_WEIGHT + len(durations)
        logs = [math.log(seconds) for seconds in durations]
        width = _bandwidth(logs)
        believed = (PRIOR_WEIGHT / total, math.log(prior.median), prior.sigma)
        return cls((believed, *((1 / total, each, width) for each in logs)))

    def below(self, seconds: float) -> tuple[float, float]:
        """The probability of a duration below this, and the mean of what is below, times that."""
        log, mass, moment = math.log(seconds), 0.0, 0.0
        for weight, mean, width in self.pieces:
            mass += weight * _normal((log - mean) / width)
            whole = weight * math.exp(mean + width * width / 2)
            moment += whole * _normal((log - mean) / width - width)
        return mass, moment

    @property
    def span(self) -> tuple[float, float]:
        """Before the first there is hardly a duration, behind the second hardly one more."""
        first = min(mean - 3 * width for _, mean, width in self.pieces)
        last = max(mean + 3 * width for _, mean, width in self.pieces)
        return math.exp(first), math.exp(last)


def _normal(deviations: float) -> float:
    return math.erfc(-deviations / math.sqrt(2)) / 2


def _bandwidth(logs: Sequence[float]) -> float:
    """Silverman's rule; the spread is that of the densest quarter where that is less.

    So neither outliers nor a second hump make the kernels wide.
    """
    if len(logs) < 2:
        return LONE_WIDTH
    ordered, near = sorted(logs), len(logs) // 4
    spread = pstdev(logs)
    if near > 1:
        densest = min(far - close for close, far in zip(ordered, ordered[near:], strict=False))
        spread = min(spread, densest / NORMAL_QUARTER)
    return max(0.9 * spread / math.pow(len(logs), 0.2), LEAST_WIDTH)


def plan(durations: Sequence[float], prior: Prior, price: float, floor: float) -> tuple[float, ...]:
    """When to look at a task, in seconds after its acceptance, rising.

    The optimal inspection problem of Barlow, Hunter and Proschan (1963): minimise the expected
    delay plus the price of the expected looks. Their recursion follows the first look to all
    others; it needs a log-concave density and fails on two humps. A dynamic programme over 64
    log-spaced times does not: from each time, backwards, the best next one.

    Args:
        durations: how long the last tasks of the kind took, in seconds.
        prior: what is assumed before any was seen.
        price: seconds of delay that one look is worth.
        floor: least seconds between two looks.
    """
    believed = _Mixture.of(durations, prior)
    first, last = believed.span
    ratio = math.pow(last / first, 1 / (GRID - 1))
    times = [0.0, *(first * math.pow(ratio, step) for step in range(GRID))]
    mass, moment = zip((0.0, 0.0), *map(believed.below, times[1:]), strict=True)
    # From the last time on looks grow with the elapsed time; what it costs there hardly counts.
    cost = [0.0] * GRID + [(1 - mass[-1]) * (price + (GROWTH - 1) * last)]
    following = [GRID] * (GRID + 1)
    for here in reversed(range(GRID)):
        waits = (
            (times[to] * (mass[to] - mass[here]) - (moment[to] - moment[here]) + cost[to], to)
            for to in range(here + 1, GRID + 1)
            if times[to] - times[here] >= floor or to == GRID
        )
        best, following[here] = min(waits)
        cost[here] = best + price * (1 - mass[here])
    looks = [following[0]]
    while looks[-1] < GRID:
        looks.append(following[looks[-1]])
    return tuple(times[look] for look in looks)


_cached_plan = lru_cache(maxsize=256)(plan)


class Schedule:
    """Plans for every kind of task, learned as tasks finish.

    Args:
        price: seconds of delay that one look is worth.
        floor: least seconds between two looks at a task.
        ceiling: most seconds between two looks at a task past its plan.
    """

    def __init__(self, *, price: float, floor: float, ceiling: float) -> None:
        self._price = price
        self._floor = floor
        self._ceiling = ceiling
        self._durations: dict[Kind, deque[float]] = {}

    def learn(self, kind: Kind, seconds: float) -> None:
        """A task of this kind took so long."""
        if seconds > 0 and math.isfinite(seconds):
            self._durations.setdefault(kind, deque(maxlen=REMEMBERED)).append(seconds)

    def next_look(self, kind: Kind, elapsed: float) -> float:
        """Seconds after its acceptance when a task is to be looked at next.

        Args:
            kind: of the task.
            elapsed: seconds after its acceptance now.
        """
        times = self._plan(kind)
        place = bisect_right(times, elapsed)
        if place < len(times):
            return max(times[place], elapsed + self._floor)
        return max(min(elapsed * GROWTH, elapsed + self._ceiling), elapsed + self._floor)

    def first_look(self, kind: Kind) -> float:
        """Seconds after its acceptance before which no look at a task is worth it."""
        return self._plan(kind)[0]

    def expected(self, kind: Kind) -> Expected:
        """How long tasks of this kind take."""
        seen = sorted(self._durations.get(kind, ()))
        if len(seen) < TRUSTED:
            assumed = prior(kind)
            p90 = assumed.median * math.exp(assumed.sigma * NormalDist().inv_cdf(0.9))
            return Expected(assumed.median, p90)
        return Expected(median(seen), seen[math.ceil(0.9 * len(seen)) - 1])

    def _plan(self, kind: Kind) -> tuple[float, ...]:
        durations = tuple(self._durations.get(kind, ()))
        fresh = len(durations) - len(durations) % TRUSTED
        return _cached_plan(durations[:fresh], prior(kind), self._price, self._floor)
