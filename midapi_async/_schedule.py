"""When to look: a plan for each kind of task, from how long such tasks took.

Pure: times go in, times come out; nothing here waits or looks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from functools import lru_cache
from statistics import NormalDist, median
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Task type and speed, as MidAPI names them.
Kind = tuple[str, str | None]

REMEMBERED = 64  # durations of a kind
TRUSTED = 5  # durations that outweigh the prior
GROWTH = 1.15  # each look comes at so many times the elapsed time of the one before
EARLIEST, LATEST = 0.5, 8.0  # first and last planned look, in medians


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
    "mj_video": Prior(180),
    "mj_video_hd": Prior(180),
    "mj_video_extend_auto": Prior(180),
    "mj_video_extend_manual": Prior(180),
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


def plan(durations: Sequence[float], prior: Prior, price: float, floor: float) -> tuple[float, ...]:
    """When to look at a task, in seconds after its acceptance, rising.

    A plain growing schedule around the median: the dearer a look, the wider its steps.

    Args:
        durations: how long the last tasks of the kind took, in seconds.
        prior: what is assumed before any was seen.
        price: seconds of delay that one look is worth.
        floor: least seconds between two looks.
    """
    middle = median(durations) if len(durations) >= TRUSTED else prior.median
    growth = 1 + (GROWTH - 1) * math.sqrt(price)
    times = [max(EARLIEST * middle, floor)]
    while times[-1] < LATEST * middle:
        times.append(max(times[-1] * growth, times[-1] + floor))
    return tuple(times)


_cached_plan = lru_cache(maxsize=256)(plan)


class Schedule:
    """Plans for every kind of task, learned as tasks finish.

    Args:
        price: seconds of delay that one look is worth.
        floor: least seconds between two looks at a task.
        ceiling: most seconds between two looks at a task.
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
        planned = times[place] if place < len(times) else elapsed * GROWTH
        return max(min(planned, max(times[0], elapsed + self._ceiling)), elapsed + self._floor)

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
