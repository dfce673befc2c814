"""Intents are plain values."""

import copy
import pickle
from collections.abc import Callable

import pytest

from midapi_async import Intent, State
from tests.journal.world import intent


@pytest.mark.parametrize(
    "through",
    [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))],  # noqa: S301 - ours
    ids=["copy", "deepcopy", "pickle"],
)
def test_an_intent_can_be_copied_and_pickled(through: Callable[[Intent], Intent]) -> None:
    """For queues and worker processes."""
    row = intent(key="order 17", metadata={"channel": "42"})
    assert through(row) == row


@pytest.mark.parametrize(
    ("state", "accepted_at", "ended_at", "prunable"),
    [
        (State.UNKNOWN, None, None, False),
        (State.UNKNOWN, 1.0, None, False),
        (State.SENDING, None, None, False),
        (State.REFUSED, None, 1.0, True),
        (State.REFUSED, None, 3.0, False),
        (State.SUCCEEDED, 1.0, 3.0, False),
        (State.SUCCEEDED, 1.0, 1.5, True),
        (State.ACCEPTED, 1.0, None, True),
        (State.ACCEPTED, 3.0, None, False),
    ],
)
def test_which_intents_may_be_pruned(
    state: State, accepted_at: float | None, ended_at: float | None, *, prunable: bool
) -> None:
    """What ended before a time; what was accepted before it, if its end was never seen."""
    row = Intent(
        intent_id="i",
        scope="https://api.midapi.ai default",
        request=None,
        fingerprint="",
        token_hash=None,
        created_at=0.0,
        state=state,
        accepted_at=accepted_at,
        ended_at=ended_at,
    )
    assert row.is_prunable(2.0) == prunable
