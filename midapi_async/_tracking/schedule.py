"""When to look: a plan for each kind of task, made from how long such tasks took.

Pure: times go in, times come out; nothing here waits or makes a request.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from operator import add

import attrs

from ..config import PollPolicy

# Task type and speed, as MidAPI names them.
Kind = tuple[str, str | None]

REMEMBERED = 64  # durations per kind
HALF_LIFE = 20  # a duration has half the weight of one that came 20 later, to follow a drift
REPLAN_AFTER = 5  # new durations
SHORTEST, LONGEST = 0.001, 1e6  # seconds; any other duration in a record is an error
SHORTEST_LIMIT, LIMIT_FACTOR = 120.0, 3.0  # see `Schedule.longest`
GROWTH = 1.15  # after the plan's end, each look comes at the elapsed time multiplied by this
GRID = 128  # how many times a plan chooses from
TRUSTED_AFTER = 3  # callbacks in time, in a row
TRUSTED_FACTOR = 20.0  # a look costs this many times its price while callbacks are trusted

PRIOR_WEIGHT = 4.0  # the prior weighs as much as this many durations if they are like it
LEAST_PRIOR = 0.3  # and this many more in any case
# A part of the prior is later and much broader, in case the prior is wrong.
DOUBT_SHARE, DOUBT_SHIFT, DOUBT_WIDTH = 0.1, 0.5, 1.0
NEIGHBOUR, CLOSENESS = 4, 0.5  # a kernel's width is half the distance to its fourth neighbour
LONE_WIDTH, LEAST_WIDTH, MOST_WIDTH = 0.15, 0.01, 0.5  # of a kernel, in log time
NORMAL_QUARTER = 0.637  # width of the densest quarter of a normal distribution, in deviations
NORMAL_P90 = 1.2815515655446004  # the 90 % point of a normal distribution, in deviations

# Log-normal components of a distribution: (weight, mean of the logarithm, its deviation).
_Mixture = tuple[tuple[float, float, float], ...]


@attrs.frozen
class Expected:
    """How long a task of some kind will take, in seconds.

    Attributes:
        median: half of them are finished by then.
        p90: nine of ten are finished by then.
    """

    median: float
    p90: float


def assumed(median: float, sigma: float = 0.3) -> Expected:
    """A log-normal distribution; `sigma` is the deviation of the logarithm."""
    return Expected(median, median * math.exp(sigma * NORMAL_P90))


# From recordings, and from what a reseller states; the figures for video are guesses.
_BY_SPEED: Mapping[str | None, Expected] = {
    "turbo": assumed(30),
    "fast": assumed(60),
    "relaxed": assumed(250),
}
_BY_TYPE: Mapping[str, Expected] = {
    "mj_omni_reference": assumed(250),
    "mj_video": assumed(180, sigma=0.5),
    "mj_video_hd": assumed(180, sigma=0.5),
    "mj_video_extend_auto": assumed(180, sigma=0.5),
    "mj_video_extend_manual": assumed(180, sigma=0.5),
}


def prior(kind: Kind) -> Expected:
    """How long tasks of a kind are assumed to take before any was observed."""
    return _BY_TYPE.get(kind[0]) or _BY_SPEED.get(kind[1]) or _BY_SPEED["fast"]


def _distribution(durations: Sequence[float], prior: Expected) -> _Mixture:
    """Gaussian kernels in log time over the observed durations, the newest last, and the prior."""
    mean, sigma = math.log(prior.median), math.log(prior.p90 / prior.median) / NORMAL_P90
    ages = range(len(durations) - 1, -1, -1)
    observed = sorted(
        (math.log(seconds), math.pow(0.5, age / HALF_LIFE))
        for seconds, age in zip(durations, ages, strict=True)
    )
    logs, total = [log for log, _ in observed], math.fsum(count for _, count in observed)
    # The prior counts less if the observed durations are far from it, or closer together.
    near = math.fsum(
        count * math.exp(-(((log - mean) / sigma) ** 2) / 2) for log, count in observed
    )
    likeness = near / total * min(1.0, _spread(logs) / sigma) if len(logs) > 1 else 1.0
    weight = LEAST_PRIOR + PRIOR_WEIGHT * likeness
    share = weight / (weight + total)
    return (
        (share * (1 - DOUBT_SHARE), mean, sigma),
        (share * DOUBT_SHARE, mean + DOUBT_SHIFT, DOUBT_WIDTH),
        *(
            (count / (weight + total), log, width)
            for (log, count), width in zip(observed, _widths(logs), strict=True)
        ),
    )


def _below(mixture: _Mixture, times: Sequence[float]) -> list[float]:
    """For each time: the probability of a shorter duration."""
    logs = [math.log(seconds) for seconds in times]
    partly, wholly = [0.0] * len(logs), [0.0] * (len(logs) + 1)
    for weight, mean, width in mixture:
        # A component counts only where it is neither nearly zero nor nearly complete.
        first, behind = bisect_left(logs, mean - 6 * width), bisect_left(logs, mean + 6 * width)
        wholly[behind] += weight
        for index in range(first, behind):
            deviations = (logs[index] - mean) / width
            partly[index] += weight * math.erfc(-deviations / math.sqrt(2)) / 2
    return list(map(add, partly, accumulate(wholly)))


def _span(mixture: _Mixture) -> tuple[float, float]:
    """Two times in seconds; nearly all durations are between them."""
    first = min(mean - 3 * width for _, mean, width in mixture if width < DOUBT_WIDTH)
    last = max(mean + (3 if width < DOUBT_WIDTH else 2) * width for _, mean, width in mixture)
    return math.exp(first), math.exp(last)


def _widths(logs: Sequence[float]) -> list[float]:
    """The width of each kernel: by Silverman's rule, or more if its neighbours are far away.

    So an outlier makes a long span of time slightly likely, instead of one moment very likely.
    """
    common, reach = _bandwidth(logs), min(NEIGHBOUR, len(logs) - 1)
    most = max(common, MOST_WIDTH)
    widths = []
    for index, log in enumerate(logs):
        firsts = range(max(0, index - reach), min(index, len(logs) - 1 - reach) + 1)
        near = min(max(log - logs[first], logs[first + reach] - log) for first in firsts)
        widths.append(min(max(common, CLOSENESS * near), most))
    return widths


def _bandwidth(logs: Sequence[float]) -> float:
    """A width by Silverman's rule, with the spread of the densest quarter if that is less.

    So neither outliers nor a second mode make all kernels wide.
    """
    if len(logs) < 2:
        return LONE_WIDTH
    spread, near = _spread(logs), len(logs) // 4
    if near > 1:
        densest = min(far - close for close, far in zip(logs, logs[near:], strict=False))
        spread = min(spread, densest / NORMAL_QUARTER)
    return max(0.9 * spread / math.pow(len(logs), 0.2), LEAST_WIDTH)


def _spread(logs: Sequence[float]) -> float:
    """The standard deviation."""
    mean = math.fsum(logs) / len(logs)
    return math.sqrt(math.fsum((log - mean) ** 2 for log in logs) / len(logs))


def plan(
    durations: Sequence[float], prior: Expected, price: float, floor: float
) -> tuple[float, ...]:
    """When to look at a task, in seconds after its acceptance, rising.

    This is the optimal inspection problem of Barlow, Hunter and Proschan (1963): minimise the
    expected delay plus the price of the expected looks. Their recursion from the first look to all
    others needs a log-concave density and fails with two modes. A dynamic programme over log-spaced
    times does not: it goes backwards and finds the best next look after each time.

    Args:
        durations: how long the last tasks of the kind took, in seconds, the newest last.
        prior: what is assumed before any was observed: a log-normal distribution.
        price: how many seconds of delay one look is worth.
        floor: least seconds between two looks.

    Returns:
        The times of the looks.
    """
    mixture = _distribution(durations, prior)
    first, last = _span(mixture)
    ratio = math.pow(last / first, 1 / (GRID - 1))
    times = [0.0, *(first * math.pow(ratio, step) for step in range(GRID))]
    mass = [0.0, *_below(mixture, times[1:])]
    # The cost after each time: the mean time at which a task is found, since its difference to the
    # delay is the same for all plans, and the price of the looks. After the last time the gaps grow
    # with the elapsed time; the cost there hardly matters.
    cost = [0.0] * GRID + [(1 - mass[-1]) * (price + GROWTH * last)]
    following = [GRID] * (GRID + 1)
    for here in reversed(range(GRID)):
        best, unfinished = math.inf, 1 - mass[here]
        for to in range(bisect_left(times, times[here] + floor, here + 1, GRID), GRID + 1):
            if times[to] * unfinished >= best:
                break  # from here on, all tasks would be found later
            found = times[to] * (mass[to] - mass[here])
            if found + cost[to] < best:
                best, following[here] = found + cost[to], to
        cost[here] = best + price * unfinished
    looks = [following[0]]
    while looks[-1] < GRID:
        looks.append(following[looks[-1]])
    return tuple(times[look] for look in looks)


class Schedule:
    """Plans for every kind of task, learned from tasks that finish.

    After three callbacks in a row that were in time, looks cost 20 times as much, so that few are
    made. One task that finishes without its callback ends that.

    Attributes:
        policy: how much looks cost, and how far apart they are.
    """

    def __init__(self, policy: PollPolicy) -> None:
        self.policy = policy
        self._durations: defaultdict[Kind, deque[float]] = defaultdict(
            partial(deque, maxlen=REMEMBERED)
        )
        self._learned: Counter[Kind] = Counter()  # how many durations
        # By price. They are made when they are needed, and again after a few new durations.
        self._plans: defaultdict[Kind, dict[float, tuple[float, ...]]] = defaultdict(dict)
        self._callbacks_in_time = 0

    # ─── durations ───────────────────────────────────────────────────────────────────────────────

    def learn(self, kind: Kind, seconds: float) -> bool:
        """Learn how long a task of this kind took; return False if that cannot be right."""
        if not (SHORTEST <= seconds <= LONGEST):
            return False
        self._durations[kind].append(seconds)
        self._learned[kind] += 1
        if self._learned[kind] % REPLAN_AFTER == 0 or self._learned[kind] == 1:
            self._plans[kind].clear()
        return True

    def recall(self, kind: Kind, durations: Sequence[float]) -> None:
        """Replace what was learned about a kind by these durations, the newest last."""
        self._durations[kind].clear()
        self._learned[kind] = 0
        for seconds in durations:
            self.learn(kind, seconds)
        self._plans[kind].clear()

    def expected(self, kind: Kind) -> Expected:
        """How long tasks of this kind take."""
        durations = sorted(self._durations[kind])
        if len(durations) < REPLAN_AFTER:
            return prior(kind)
        middle = durations[len(durations) // 2], durations[(len(durations) - 1) // 2]
        return Expected(sum(middle) / 2, durations[math.ceil(0.9 * len(durations)) - 1])

    def longest(self, kind: Kind) -> float:
        """Seconds in which a task of this kind is finished, if it is finished at all."""
        return max(SHORTEST_LIMIT, LIMIT_FACTOR * self.expected(kind).p90)

    # ─── callbacks ───────────────────────────────────────────────────────────────────────────────

    @property
    def trusts_callbacks(self) -> bool:
        """Whether the last callbacks were all in time, so that few looks are needed."""
        return self._callbacks_in_time >= TRUSTED_AFTER

    def note_callback(self, *, in_time: bool) -> None:
        """A task with a callback URL has finished, and its callback was in time or not."""
        self._callbacks_in_time = self._callbacks_in_time + 1 if in_time else 0

    # ─── when to look ────────────────────────────────────────────────────────────────────────────

    def next_look(self, kind: Kind, elapsed: float, *, callback_expected: bool = False) -> float:
        """When to look at a task next, in seconds after its acceptance.

        Args:
            kind: of the task.
            elapsed: seconds since its acceptance.
            callback_expected: whether a callback is expected and callbacks are trusted.
        """
        factor = TRUSTED_FACTOR if callback_expected else 1.0
        times = self._plan(kind, self.policy.look_price * factor)
        index = bisect_right(times, elapsed)
        moment = times[index] if index < len(times) else elapsed * GROWTH
        if index:  # before the plan's first look nothing can be finished: no ceiling
            moment = min(moment, elapsed + self.policy.ceiling * math.sqrt(factor))
        return max(moment, elapsed + self.policy.floor)

    def _plan(self, kind: Kind, price: float) -> tuple[float, ...]:
        plans = self._plans[kind]
        if price not in plans:
            plans[price] = plan(self._durations[kind], prior(kind), price, self.policy.floor)
        return plans[price]
