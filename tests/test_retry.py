"""How long a submission that was certainly not bought is tried again."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async._submission.retry import RetryBudget
from midapi_async._wire.protocol import LONGEST_RETRY_AFTER

CHANCES = st.floats(0, 1, exclude_max=True)


def pauses(budget: float, chance: float, count: int) -> list[float | None]:
    """The first pauses without a Retry-After."""
    patience = RetryBudget(budget, lambda: chance)
    return [patience.pause() for _ in range(count)]


@pytest.mark.fault("S6")
def test_pauses_grow_and_are_jittered() -> None:
    """1, 2, 4 … 30 s at the most, each between its half and its whole."""
    assert pauses(1e9, 0.0, 7) == [0.5, 1, 2, 4, 8, 15, 15]
    assert pauses(1e9, 0.5, 7) == [0.75, 1.5, 3, 6, 12, 22.5, 22.5]


@pytest.mark.fault("S2")
@given(CHANCES)
def test_pauses_stay_inside_the_budget(chance: float) -> None:
    """However the dice fall, all pauses together are no longer than the budget."""
    patience = RetryBudget(60.0, lambda: chance)
    spent = sum(itertools.takewhile(bool, (patience.pause() or 0.0 for _ in range(100))))
    assert 0 < spent <= 60.0


@pytest.mark.fault("S2")
def test_attempts_cost_budget_too() -> None:
    """What an attempt took is no longer there for pauses."""
    patience = RetryBudget(60.0, lambda: 0.0)
    patience.spend(59.6)
    assert patience.pause() is None
    patience = RetryBudget(60.0, lambda: 0.0)
    patience.spend(59.5)
    assert patience.pause() == 0.5
    assert patience.pause() is None


def test_no_budget_is_no_second_attempt() -> None:
    """`give_up_after=0` sends once."""
    assert RetryBudget(0.0, lambda: 0.0).pause() is None
    assert RetryBudget(0.0, lambda: 0.0).pause(0.0) == 0.0  # told to come back at once


@pytest.mark.fault("S5")
@given(CHANCES, st.floats(0, LONGEST_RETRY_AFTER))
def test_a_retry_after_is_a_minimum(chance: float, asked: float) -> None:
    """Jitter only lengthens it, by a second at the most."""
    pause = RetryBudget(1e9, lambda: chance).pause(asked)
    assert pause is not None
    assert asked <= pause <= asked + 1.0


@pytest.mark.fault("S5")
@pytest.mark.parametrize("asked", [120.001, 1e9, float("inf")])
def test_a_long_retry_after_is_told_at_once(asked: float) -> None:
    """Above the cap nobody waits, however large the budget."""
    assert RetryBudget(1e12, lambda: 0.0).pause(asked) is None


@pytest.mark.fault("S5")
def test_a_retry_after_beyond_the_budget_is_told_at_once() -> None:
    """There is no use in a pause that the budget does not hold; a shorter one still fits."""
    patience = RetryBudget(60.0, lambda: 0.0)
    assert patience.pause(61.0) is None
    assert patience.pause(60.0) == 60.0
