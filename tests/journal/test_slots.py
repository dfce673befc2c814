"""The slots of an account, where the contract of the journals leaves a question open."""

import pytest

from midapi_async import RateLimit
from midapi_async.journal import Busy, Claimed, Journal
from midapi_async.journal.contract import an_intent, ask, expect


@pytest.mark.fault("S6")
async def test_s06_a_refused_post_counts_for_its_own_intent_too(any_journal: Journal) -> None:
    """MidAPI has counted it: the same intent waits a whole window like everybody else."""
    limit, intent = RateLimit(1, per=10.0), an_intent()
    slot = expect(Claimed, await ask(any_journal, intent, limit)).slot
    await any_journal.release(slot, sent=True)
    got = expect(Busy, await ask(any_journal, intent, limit))
    assert got.retry_in == pytest.approx(10.0, abs=0.5)
