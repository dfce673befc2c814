"""The reference of benchmarks/looks.py: worlds, the optimum in them, and fixed intervals."""

import math
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, which the programs find beside themselves."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import _worlds

    yield _worlds
    del sys.modules["_worlds"]


def test_the_optimum_is_not_beaten(worlds: ModuleType) -> None:
    """A look left out or added, all of them moved, or a fixed interval: each costs more."""
    spread, price = worlds.TWO_SPEEDS, 1.0
    chance = random.Random(3)
    durations = [spread.draw(chance) for _ in range(4000)]
    best = worlds.optimum(spread, price)

    def cost(plan: tuple[float, ...]) -> float:
        results = [worlds.played(plan, duration) for duration in durations]
        return statistics.fmean(delay + price * looks for delay, looks in results)

    least = cost(best)
    for place in range(4):
        assert cost((*best[:place], *best[place + 1 :])) > least
        middle = math.sqrt(best[place] * best[place + 1])
        assert cost((*best[: place + 1], middle, *best[place + 1 :])) > least
    assert cost(tuple(look * 1.1 for look in best)) > least
    assert cost(tuple(look / 1.1 for look in best)) > least
    for interval in (2.0, 5.0, 6.0, 10.0, 30.0):
        results = [worlds.every(interval, duration) for duration in durations]
        assert statistics.fmean(delay + price * looks for delay, looks in results) > 1.3 * least


def test_spread_computes_the_share_and_the_mean_of_what_it_draws(worlds: ModuleType) -> None:
    """The integrals of the programme agree with drawn durations."""
    spread = worlds.TWO_SPEEDS
    chance = random.Random(4)
    durations = [spread.draw(chance) for _ in range(20_000)]
    for seconds in (50.0, 70.0, 150.0):
        share, total = spread.until(seconds)
        below = [duration for duration in durations if duration <= seconds]
        assert len(below) / len(durations) == pytest.approx(share, abs=0.015)
        assert sum(below) / len(durations) == pytest.approx(total, rel=0.03)


def test_played_and_every_count_the_look_that_finds_it(worlds: ModuleType) -> None:
    """Delay and looks of single tasks, by hand."""
    assert worlds.played((10.0, 20.0), 9.0) == (1.0, 1)
    assert worlds.played((10.0, 20.0), 12.0) == (8.0, 2)
    assert worlds.played((10.0, 20.0), 21.0) == (2.0, 3)
    assert worlds.every(5.0, 14.0) == (1.0, 3)
    assert worlds.every(5.0, 10.0) == (0.0, 2)
