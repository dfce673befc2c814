"""The programs of looks and waiters run, and what they compare with is what they say."""

import importlib.util
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"

Figures = dict[str, object]


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of worlds, which programs import as they find it: beside themselves."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import _worlds

    yield _worlds
    del sys.modules["_worlds"]


def figures(folder: Path, name: str, *options: str) -> Figures:
    """Run a program in a folder; return what it wrote there, having seen that it printed."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "holds" in done.stdout or "MISSED" in done.stdout
    told: Figures = json.loads((folder / f"{name}-benchmark.json").read_text(encoding="utf-8"))
    return told


@pytest.mark.real_time
def test_looks_plays_every_policy_on_the_same_tasks(tmp_path: Path) -> None:
    """Each policy has a delay and looks, and nobody beats the optimum by more than chance."""
    picture = tmp_path / "looks.png"
    can_draw = importlib.util.find_spec("matplotlib") is not None
    told = figures(tmp_path, "looks", *(["--png", str(picture)] if can_draw else []))
    assert can_draw == picture.exists()
    worlds = told["worlds"]
    assert isinstance(worlds, list)
    assert len(worlds) == 2
    for world in worlds:
        assert 0.9 < world["ratio"] < 2
        assert all(delay > 0 for delay, _ in world["fixed"].values())
        # At any interval it takes as many looks as intervals that the task lasts, and the last one.
        assert world["fixed"]["0.1"][1] > 4 * world["fixed"]["0.5"][1]


@pytest.mark.real_time
def test_waiters_measures_what_callers_and_ours_take(tmp_path: Path) -> None:
    """Ours takes more than the callers alone, and grows with the waiters."""
    told = figures(tmp_path, "waiters", "--only", "tasks")
    rows = told["rows"]
    assert isinstance(rows, list)
    traced = {(row["kind"], row["size"]): row["figures"]["traced bytes"] for row in rows}
    assert traced["callers", 500] < traced["tasks", 500]
    assert 4 * traced["callers", 100] < traced["callers", 500] < 6 * traced["callers", 100]
    assert traced["tasks", 100] < traced["tasks", 500]


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


def test_spread_knows_the_share_and_the_mean_of_what_it_draws(worlds: ModuleType) -> None:
    """The programme's integrals are those of the drawn durations."""
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
