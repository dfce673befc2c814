"""When to look: a plan for each kind of task, from how long such tasks took.

Pure: times go in, times come out; nothing here waits or looks.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from functools import lru_cache, partial
from itertools import accumulate
from operator import add
from statistics import NormalDist, median, pstdev
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Task type and speed, as MidAPI names them.
Kind = tuple[str, str | None]

REMEMBERED = 64  # durations of a kind
HALF_LIFE = 20  # durations after which one counts half, so that a drift is followed
FRESH = 5  # new durations after which a plan is made anew
SHORTEST, LONGEST = 0.001, 1e6  # seconds; what else a record may say is a mistake
GROWTH = 1.15  # past the plan each look comes at so many times the elapsed time
GRID = 128  # times at which a plan may look
TRUSTED_AFTER = 3  # callbacks in time, until looks are left to them
DEARER = 20.0  # a look, while callbacks are trusted

PRIOR_WEIGHT = 8.0  # durations that the prior stands for before what is seen tells otherwise
LEAST_PRIOR = 0.3  # durations that it always stands for
DOUBT, DOUBT_SHIFT, DOUBT_WIDTH = 0.1, 0.5, 1.0  # a part of the prior: later, and very broad
NEIGHBOUR, CLOSENESS = 4, 0.5  # a kernel is as wide as half the way to its fourth neighbour
LONE_WIDTH, LEAST_WIDTH, MOST_WIDTH = 0.15, 0.01, 0.5  # of a kernel, in log time
NORMAL_QUARTER = 0.637  # the densest quarter of a normal distribution, in deviations


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
        """Gaussian kernels in log time over what was seen, the newest last, and the prior."""
        assumed = math.log(prior.median), prior.sigma
        if not durations:
            return cls(_assumed(1.0, *assumed))
        ages = range(len(durations) - 1, -1, -1)
        seen = sorted(
            (math.log(seconds), math.pow(0.5, age / HALF_LIFE))
            for seconds, age in zip(durations, ages, strict=True)
        )
        logs, counts = [log for log, _ in seen], [count for _, count in seen]
        kernels = list(zip(counts, logs, _widths(logs), strict=True))
        share, total = _share_of_prior(kernels, assumed), sum(counts)
        left = (1 - share) / total
        seen_pieces = ((left * count, log, width) for count, log, width in kernels)
        return cls((*_assumed(share, *assumed), *seen_pieces))

    def below(self, times: Sequence[float]) -> tuple[list[float], list[float]]:
        """How probable what is below each of these times is, and the mean of that, times it."""
        logs = [math.log(seconds) for seconds in times]
        mass, moment = [0.0] * len(logs), [0.0] * len(logs)
        passed = [0.0] * (len(logs) + 1), [0.0] * (len(logs) + 1)
        for weight, mean, width in self.pieces:
            whole = weight * math.exp(mean + width * width / 2)
            first = bisect_left(logs, mean - 6 * width)
            behind = bisect_left(logs, mean + (6 + width) * width)
            passed[0][behind] += weight
            passed[1][behind] += whole
            for place in range(first, behind):
                deviations = (logs[place] - mean) / width
                mass[place] += weight * _normal(deviations)
                moment[place] += whole * _normal(deviations - width)
        return (
            list(map(add, mass, accumulate(passed[0]))),
            list(map(add, moment, accumulate(passed[1]))),
        )

    @property
    def span(self) -> tuple[float, float]:
        """Before the first there is hardly a duration, behind the second hardly one more."""
        sure = [(mean, width) for _, mean, width in self.pieces if width < DOUBT_WIDTH]
        first = min(mean - 3 * width for mean, width in sure)
        last = max(
            mean + (3 if width < DOUBT_WIDTH else 2) * width for _, mean, width in self.pieces
        )
        return math.exp(first), math.exp(last)


def _assumed(share: float, mean: float, width: float) -> tuple[tuple[float, float, float], ...]:
    """The prior, and the doubt in it: what outlasts the one is looked for as the other says."""
    doubt = share * DOUBT, mean + DOUBT_SHIFT, DOUBT_WIDTH
    return (share * (1 - DOUBT), mean, width), doubt


def _normal(deviations: float) -> float:
    return math.erfc(-deviations / math.sqrt(2)) / 2


def _density(log: float, mean: float, width: float) -> float:
    """Of a normal distribution, but for a factor that all share."""
    return math.exp(-(((log - mean) / width) ** 2) / 2) / width


def _widths(logs: Sequence[float]) -> list[float]:
    """How wide each kernel is: by Silverman's rule, and wider where its neighbours are far.

    So an outlier stands for a long stretch and not for a needle's width of it.
    """
    common, reach = _bandwidth(logs), min(NEIGHBOUR, len(logs) - 1)
    most = max(common, MOST_WIDTH)
    widths = []
    for place, log in enumerate(logs):
        firsts = range(max(0, place - reach), min(place, len(logs) - 1 - reach) + 1)
        near = min(max(log - logs[first], logs[first + reach] - log) for first in firsts)
        widths.append(min(max(common, CLOSENESS * near), most))
    return widths


def _bandwidth(logs: Sequence[float]) -> float:
    """Silverman's rule; the spread is that of the densest quarter where that is less.

    So neither outliers nor a second hump make all kernels wide.
    """
    if len(logs) < 2:
        return LONE_WIDTH
    spread, near = pstdev(logs), len(logs) // 4
    if near > 1:
        densest = min(far - close for close, far in zip(logs, logs[near:], strict=False))
        spread = min(spread, densest / NORMAL_QUARTER)
    return max(0.9 * spread / math.pow(len(logs), 0.2), LEAST_WIDTH)


def _share_of_prior(
    kernels: Sequence[tuple[float, float, float]], prior: tuple[float, float]
) -> float:
    """How much of the whole the prior is: less, the worse it explains what was seen.

    Three rounds of expectation maximisation between the prior and the kernels, in which no duration
    is explained by its own kernel: else the kernels would explain everything.
    """
    total = sum(count for count, _, _ in kernels)
    rivals = []
    for count, log, width in kernels:
        others = -count / width
        for many, mean, wide in kernels:
            if -6 < (log - mean) / wide < 6:
                others += many * _density(log, mean, wide)
        rivals.append((count, _density(log, *prior), others / max(total - count, 1e-9)))
    share = PRIOR_WEIGHT / (PRIOR_WEIGHT + total)
    for _ in range(3):
        explained = sum(
            count * share * ours / (share * ours + (1 - share) * max(theirs, 1e-12) + 1e-300)
            for count, ours, theirs in rivals
        )
        share = (LEAST_PRIOR + explained) / (LEAST_PRIOR + total)
    return share


def plan(durations: Sequence[float], prior: Prior, price: float, floor: float) -> tuple[float, ...]:
    """When to look at a task, in seconds after its acceptance, rising.

    The optimal inspection problem of Barlow, Hunter and Proschan (1963): minimise the expected
    delay plus the price of the expected looks. Their recursion follows the first look to all
    others; it needs a log-concave density and fails on two humps. A dynamic programme over 128
    log-spaced times does not: from each time, backwards, the best next one.

    Args:
        durations: how long the last tasks of the kind took, in seconds, the newest last.
        prior: what is assumed before any was seen.
        price: seconds of delay that one look is worth.
        floor: least seconds between two looks.
    """
    believed = _Mixture.of(durations, prior)
    first, last = believed.span
    ratio = math.pow(last / first, 1 / (GRID - 1))
    times = [0.0, *(first * math.pow(ratio, step) for step in range(GRID))]
    mass, moment = ([0.0, *sums] for sums in believed.below(times[1:]))
    # From the last time on looks grow with the elapsed time; what it costs there hardly counts.
    cost = [0.0] * GRID + [(1 - mass[-1]) * (price + (GROWTH - 1) * last)]
    following = [GRID] * (GRID + 1)
    for here in reversed(range(GRID)):
        best = math.inf
        for to in range(bisect_left(times, times[here] + floor, here + 1, GRID), GRID + 1):
            delay = times[to] * (mass[to] - mass[here]) - (moment[to] - moment[here])
            if delay >= best:
                break  # it only grows from here on
            if delay + cost[to] < best:
                best, following[here] = delay + cost[to], to
        cost[here] = best + price * (1 - mass[here])
    looks = [following[0]]
    while looks[-1] < GRID:
        looks.append(following[looks[-1]])
    return tuple(times[look] for look in looks)


@attrs.define(slots=True)
class _Seen:
    """How long the tasks of a kind took, and the plans that were made of it, by price."""

    durations: deque[float] = attrs.field(factory=partial(deque, maxlen=REMEMBERED))
    fresh: int = 0
    plans: dict[float, tuple[float, ...]] = attrs.field(factory=dict)


class Schedule:
    """Plans for every kind of task, learned as tasks finish.

    A receiver whose callbacks were in time three times in a row makes looks 20 times dearer, so
    that they are few; one finish without a callback undoes that.

    Args:
        price: seconds of delay that one look is worth.
        floor: least seconds between two looks at a task.
        ceiling: most seconds between two looks at a task past its plan.
    """

    def __init__(self, *, price: float, floor: float, ceiling: float) -> None:
        self._price = price
        self._floor = floor
        self._ceiling = ceiling
        self._seen: dict[Kind, _Seen] = {}
        self._in_time = 0

    # ─── what is learned ─────────────────────────────────────────────────────────────────────────

    def learn(self, kind: Kind, seconds: float) -> bool:
        """A task of this kind took so long; whether that can be."""
        if not (SHORTEST <= seconds <= LONGEST):
            return False
        seen = self._seen.setdefault(kind, _Seen())
        seen.durations.append(seconds)
        seen.fresh += 1
        if seen.fresh >= FRESH:
            seen.fresh = 0
            seen.plans.clear()
        return True

    def recall(self, kind: Kind, durations: Sequence[float]) -> None:
        """How long tasks of this kind took before, the newest last; forget what was learned."""
        self._seen[kind] = _Seen()
        for seconds in durations:
            self.learn(kind, seconds)
        self._seen[kind].plans.clear()

    def expected(self, kind: Kind) -> Expected:
        """How long tasks of this kind take."""
        seen = self._seen.get(kind)
        durations = sorted(seen.durations) if seen else []
        if len(durations) < FRESH:
            assumed = prior(kind)
            p90 = assumed.median * math.exp(assumed.sigma * NormalDist().inv_cdf(0.9))
            return Expected(assumed.median, p90)
        return Expected(median(durations), durations[math.ceil(0.9 * len(durations)) - 1])

    # ─── callbacks ───────────────────────────────────────────────────────────────────────────────

    @property
    def trusts_callbacks(self) -> bool:
        """Whether callbacks were in time often enough to leave looks to them."""
        return self._in_time >= TRUSTED_AFTER

    def note_callback(self, *, in_time: bool) -> None:
        """A task that was to be called back is finished, and was, or was not."""
        self._in_time = self._in_time + 1 if in_time else 0

    # ─── when to look ────────────────────────────────────────────────────────────────────────────

    def next_look(self, kind: Kind, elapsed: float, *, is_dear: bool = False) -> float:
        """Seconds after its acceptance when a task is to be looked at next.

        Args:
            kind: of the task.
            elapsed: seconds after its acceptance now.
            is_dear: whether a callback will most likely come first.
        """
        times = self._plan(kind, self._price * DEARER if is_dear else self._price)
        place = bisect_right(times, elapsed)
        moment = times[place] if place < len(times) else elapsed * GROWTH
        if place:  # before the first look there is nothing to see, however long that is
            moment = min(moment, elapsed + self._ceiling * (math.sqrt(DEARER) if is_dear else 1.0))
        return max(moment, elapsed + self._floor)

    def first_look(self, kind: Kind) -> float:
        """Seconds after its acceptance before which no look at a task is worth it."""
        return self._plan(kind, self._price)[0]

    def _plan(self, kind: Kind, price: float) -> tuple[float, ...]:
        seen = self._seen.get(kind)
        if seen is None:
            return _plan_unseen(prior(kind), price, self._floor)
        if price not in seen.plans:
            seen.plans[price] = plan(tuple(seen.durations), prior(kind), price, self._floor)
        return seen.plans[price]


@lru_cache(maxsize=64)
def _plan_unseen(assumed: Prior, price: float, floor: float) -> tuple[float, ...]:
    return plan((), assumed, price, floor)
