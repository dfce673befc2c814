"""When to look: plans against known distributions, in a pure calculation."""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async._tracking.schedule import (
    GROWTH,
    REMEMBERED,
    Expected,
    Schedule,
    assumed,
    plan,
    prior,
)
from midapi_async.config import PollPolicy

FAST, RELAXED = ("mj_txt2img", "fast"), ("mj_txt2img", "relaxed")


def cost(looks: Sequence[float], durations: Sequence[float], price: float) -> tuple[float, float]:
    """What a plan costs on average, delay and looks together, and how many looks it makes."""
    total, count = 0.0, 0
    for duration in durations:
        at, made = 0.0, 0
        planned = iter(looks)
        while at < duration:
            at = next(planned, at * GROWTH)
            made += 1
        total += at - duration + price * made
        count += made
    return total / len(durations), count / len(durations)


def log_normal(median: float, sigma: float) -> Callable[[random.Random], float]:
    return lambda chance: math.exp(chance.gauss(math.log(median), sigma))


def two_modes(chance: random.Random) -> float:
    return log_normal(45, 0.12)(chance) if chance.random() < 0.5 else log_normal(150, 0.12)(chance)


WORLDS: dict[str, tuple[Callable[[random.Random], float], Expected]] = {
    "turbo": (log_normal(32, 0.2), assumed(30)),
    "fast": (log_normal(63, 0.15), assumed(60)),
    "relaxed": (log_normal(214, 0.35), assumed(250)),
    "video": (log_normal(200, 0.5), prior(("mj_video", None))),
    "two_modes": (two_modes, assumed(60)),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("price", [0.3, 1.0, 5.0])
def test_learned_plan_beats_every_fixed_interval(world: str, price: float) -> None:
    """After 50 tasks a plan costs less than the best fixed interval."""
    draw, before = WORLDS[world]
    chance = random.Random(5)
    seen, truth = [draw(chance) for _ in range(50)], [draw(chance) for _ in range(2000)]
    ours, _ = cost(plan(seen, before, price, 0.1), truth, price)
    fixed = [0.5 * 1.2**step for step in range(30)]
    best = min(
        cost([interval * n for n in range(1, 3000)], truth[:300], price)[0] for interval in fixed
    )
    assert ours < best


@pytest.mark.parametrize("world", ["turbo", "fast", "relaxed", "video"])
def test_prior_beats_fixed_intervals_with_the_same_delay(world: str) -> None:
    """The first task already needs fewer looks than with a fixed interval."""
    draw, before = WORLDS[world]
    chance = random.Random(6)
    truth = [draw(chance) for _ in range(2000)]
    total, looks = cost(plan((), before, 1.0, 1.0), truth, 1.0)
    interval = 2 * (total - looks)
    _, fixed = cost([interval * n for n in range(1, 3000)], truth, 1.0)
    assert fixed > 1.1 * looks


@given(
    durations=st.lists(st.floats(0.1, 20_000), max_size=REMEMBERED),
    median=st.floats(1, 1000),
    price=st.floats(0.01, 100),
    floor=st.floats(0.01, 20),
)
def test_property_any_plan_is_valid(
    durations: list[float], median: float, price: float, floor: float
) -> None:
    """It is finite, repeatable and not empty, and rises by the floor except in its last step."""
    times = plan(durations, assumed(median), price, floor)
    assert times
    assert all(0 < time < math.inf for time in times)
    assert all(later - sooner >= floor - 1e-9 for sooner, later in pairwise(times[:-1]))
    assert list(times) == sorted(times)
    assert times == plan(durations, assumed(median), price, floor)


def optimum(durations: Sequence[float], price: float, floor: float) -> float:
    """The least that any plan costs on average: a fine programme over the true durations."""
    truth, steps = sorted(durations), 400
    times = [0.0, *(truth[0] * (truth[-1] / truth[0]) ** (n / (steps - 1)) for n in range(steps))]
    times[-1] = truth[-1]
    sums = [0.0, *accumulate(truth)]
    places = [0, *(bisect_right(truth, time) for time in times[1:])]
    least = [0.0] * (steps + 1)
    for here in reversed(range(steps)):
        best = math.inf
        for there in range(here + 1, steps + 1):
            delay = times[there] * (places[there] - places[here])
            delay -= sums[places[there]] - sums[places[here]]
            if delay >= best:
                break
            if times[there] - times[here] >= floor or there == steps:
                best = min(best, delay + least[there])
        least[here] = best + price * (len(truth) - places[here])
    return least[0] / len(truth)


def outliers(chance: random.Random) -> float:
    return log_normal(1500, 0.3)(chance) if chance.random() < 0.03 else log_normal(63, 0.15)(chance)


HARD_WORLDS = {
    **WORLDS,
    "outliers": (outliers, assumed(60)),
    "four_times_the_prior": (log_normal(240, 0.25), assumed(60)),
    "a_quarter_of_the_prior": (log_normal(15, 0.25), assumed(60)),
    "equal": (log_normal(63, 0.01), assumed(60)),
}


@pytest.mark.parametrize("world", HARD_WORLDS)
def test_learned_plan_costs_little_more_than_the_optimum(world: str) -> None:
    """After 50 tasks: at most 1.15 × a plan that knows the true distribution (mean of 8).

    1.4 × where three tasks in a hundred take 25 times as long as the others.
    """
    draw, before = HARD_WORLDS[world]
    truth = [draw(random.Random(n)) for n in range(1500)]
    least = optimum(truth, 1.0, 1.0)
    ratios = []
    for seed in range(8):
        chance = random.Random(1000 + seed)
        seen = [draw(chance) for _ in range(50)]
        ratios.append(cost(plan(seen, before, 1.0, 1.0), truth, 1.0)[0] / least)
    assert sum(ratios) / len(ratios) <= (1.4 if world == "outliers" else 1.15)


def test_plan_is_remade_after_every_fifth_task() -> None:
    """Also when the memory for durations is full."""
    schedule = Schedule(PollPolicy())
    firsts = []
    for n in range(150):
        schedule.learn(FAST, 20.0 + n)
        firsts.append(schedule.next_look(FAST, 0.0))
    changes = [n for n, (sooner, later) in enumerate(pairwise(firsts), 1) if sooner != later]
    assert changes == list(range(4, 150, 5))


def test_impossible_durations_are_not_learned() -> None:
    """And after the first look no gap is longer than the ceiling, however long tasks take."""
    schedule = Schedule(PollPolicy())
    assert not any(schedule.learn(FAST, wrong) for wrong in (1e308, 5e-324, 1e9))
    for _ in range(5):
        schedule.learn(FAST, 28_860.0)
    elapsed = schedule.next_look(FAST, 0.0)
    while elapsed < 28_000:
        following = schedule.next_look(FAST, elapsed)
        assert 1 <= following - elapsed <= 60.001
        elapsed = following


def test_recalled_durations_make_the_same_plan() -> None:
    """They replace what the schedule had learned."""
    first, second = (Schedule(PollPolicy()) for _ in range(2))
    durations = [40.0 + n for n in range(20)]
    for seconds in durations:
        first.learn(FAST, seconds)
    second.learn(FAST, 900.0)
    second.recall(FAST, durations)
    assert first.next_look(FAST, 0.0) == second.next_look(FAST, 0.0)
    assert first.expected(FAST) == second.expected(FAST)


def test_trusted_callbacks_put_off_looks() -> None:
    """Three in a row have to be in time; one that is not ends the trust."""
    schedule = Schedule(PollPolicy())
    callbacks = [True, True, False, True, True, True, True, False]
    trusted = []
    for in_time in callbacks:
        schedule.note_callback(in_time=in_time)
        trusted.append(schedule.trusts_callbacks)
    assert trusted == [False] * 5 + [True, True, False]
    assert schedule.next_look(FAST, 0, callback_expected=True) > schedule.next_look(FAST, 0)


def test_higher_price_means_fewer_looks() -> None:
    """The price of a look trades looks against delay."""
    counts = [len(plan((), assumed(60), price, 1.0)) for price in (0.1, 1.0, 10.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2]


def test_equal_durations_are_looked_at_just_after_them() -> None:
    """A look comes soon after the time that all tasks took."""
    times = plan([63.0] * 60, assumed(60), 1.0, 1.0)
    assert any(63 <= time <= 67 for time in times)


def test_outlier_hardly_changes_the_plan() -> None:
    """One task of an hour among 63 of a minute."""
    chance = random.Random(8)
    seen = [log_normal(60, 0.1)(chance) for _ in range(63)]
    without, _ = cost(plan([*seen, 60.0], assumed(60), 1.0, 1.0), seen, 1.0)
    with_outlier, _ = cost(plan([*seen, 3600.0], assumed(60), 1.0, 1.0), seen, 1.0)
    assert with_outlier < 1.25 * without


def test_drift_is_followed() -> None:
    """When the service gets much slower, the plan forgets the old durations."""
    schedule = Schedule(PollPolicy())
    chance = random.Random(9)
    for _ in range(100):
        schedule.learn(FAST, log_normal(40, 0.1)(chance))
    assert schedule.next_look(FAST, 0.0) < 45
    for _ in range(100):
        schedule.learn(FAST, log_normal(300, 0.1)(chance))
    late = [schedule.next_look(FAST, elapsed) for elapsed in (0.0, 100.0, 250.0)]
    assert late[2] <= 300
    assert 280 <= schedule.expected(FAST).median <= 320


def test_looks_go_on_after_the_plan_with_the_ceiling() -> None:
    """They come at 1.15 × the elapsed time, at most the ceiling apart, for ever."""
    schedule = Schedule(PollPolicy())
    elapsed = 10_000.0
    for _ in range(100):
        following = schedule.next_look(FAST, elapsed)
        assert 1.0 <= following - elapsed <= 60.0
        elapsed = following


def test_floor_holds_between_any_two_looks() -> None:
    """Also between a late look and the next planned one."""
    schedule = Schedule(PollPolicy(look_price=0.01, floor=5.0))
    for elapsed in range(0, 400, 3):
        assert schedule.next_look(FAST, float(elapsed)) - elapsed >= 5.0


def test_kinds_are_learned_separately() -> None:
    """A duration of one kind does not count for another; zero, negative and NaN never count."""
    schedule = Schedule(PollPolicy())
    for seconds in (0.0, -1.0, math.nan, math.inf):
        schedule.learn(FAST, seconds)
    assert (schedule.expected(FAST).median, round(schedule.expected(FAST).p90, 2)) == (60, 88.13)
    for _ in range(10):
        schedule.learn(FAST, 20.0)
    assert Expected(20, 20) == schedule.expected(FAST)
    assert schedule.expected(RELAXED).median == 250


@pytest.mark.parametrize(
    ("kind", "median"),
    [
        (("mj_txt2img", "turbo"), 30),
        (("mj_img2img", "fast"), 60),
        (("mj_style_reference", "relaxed"), 250),
        (("mj_omni_reference", "fast"), 250),
        (("mj_video_hd", None), 180),
        (("mj_upscale", None), 60),
        (("something_new", "warp"), 60),
    ],
)
def test_priors(kind: tuple[str, str | None], median: float) -> None:
    """Each kind has its prior; an unknown kind has that of fast."""
    assert median == prior(kind).median
