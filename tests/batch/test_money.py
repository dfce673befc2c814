"""The money guard: others, top-ups and unknown prices make it stop earlier, never later."""

import asyncio
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from midapi_async import AuthenticationError, RetryPolicy, TextToImage
from midapi_async.batch.money import Money
from midapi_async.sandbox import Faults, Sandbox, answer_code
from tests.support.secrets import API_KEY
from tests.world import client_of


async def buy(sandbox: Sandbox, limit: float, rows: Any, **options: Any) -> tuple[int, float, str]:
    """How many rows of a batch were paid for, what it says it has spent, and why it stopped."""
    async with (
        client_of(sandbox.url) as client,
        client.generate_many(rows, batch="b", max_credits=limit, **options) as batch,
    ):
        async for item in batch:
            assert item.error is None
        progress = batch.progress
    return len(sandbox.ledger.accepted), progress.spent or 0.0, progress.stopped or ""


def prompts(count: int) -> list[str]:
    """So many different prompts."""
    return [f"prompt {number}" for number in range(count)]


@pytest.mark.parametrize("running", [1, 5, 15])
async def test_a_batch_spends_no_more_than_its_limit(running: int) -> None:
    """A picture costs 8 here: 100 credits are 12 pictures, or 11 where the guess is high."""
    async with Sandbox(api_key=API_KEY, credits=1000) as sandbox:
        count, spent, stopped = await buy(sandbox, 100, prompts(40), running=running)
        assert spent == 1000 - sandbox.credits == 8 * count
        assert 11 <= count <= 12
        assert "max_credits=100" in stopped


async def test_a_limit_that_is_enough_stops_nothing() -> None:
    """Not even if it is exactly enough."""
    async with Sandbox(api_key=API_KEY) as sandbox:
        assert await buy(sandbox, 80, prompts(10), running=1) == (10, 80.0, "")


async def test_until_a_cost_is_seen_one_row_runs_alone() -> None:
    """The second is submitted when the first has ended; then they run side by side."""
    async with (
        Sandbox(api_key=API_KEY) as sandbox,
        client_of(sandbox.url) as client,
        client.generate_many(prompts(10), batch="b", max_credits=1000, running=10) as batch,
    ):
        await asyncio.sleep(5)
        assert len(sandbox.ledger.accepted) == 1
        await anext(batch)
        await asyncio.sleep(5)
        assert len(sandbox.ledger.accepted) == 10
        assert len([item async for item in batch]) == 9


async def test_others_who_use_the_account_make_it_stop_earlier() -> None:
    """Their costs count as the batch's."""
    async with (
        Sandbox(api_key=API_KEY, credits=1000) as sandbox,
        client_of(sandbox.url) as client,
        client.generate_many(prompts(60), batch="b", max_credits=400, running=2) as batch,
    ):
        async for item in batch:
            if item.index == 10:
                sandbox.credits -= 200
        assert batch.progress.stopped
        assert len(sandbox.ledger.accepted) * 8 <= 200


async def test_a_row_that_pauses_and_one_that_waits_for_it_do_not_block_each_other() -> None:
    """The first row is refused with 455, and meanwhile others spend the whole limit."""
    faults = Faults().on("submit", first=1, do=answer_code(455))
    async with (
        Sandbox(api_key=API_KEY, credits=1000, faults=faults) as sandbox,
        client_of(sandbox.url, retry=RetryPolicy(give_up_after=0.1)) as client,
        client.generate_many(prompts(60), batch="b", max_credits=40, running=5) as batch,
    ):
        await asyncio.sleep(0.5)
        sandbox.credits -= 100
        async with asyncio.timeout(3600):
            items = [item async for item in batch]
        assert len(items) <= 1
        assert "max_credits=40" in (batch.progress.stopped or "")


async def test_a_top_up_hides_nothing() -> None:
    """The balance rises while the batch runs, and it still stops at its limit."""
    async with (
        Sandbox(api_key=API_KEY, credits=1000) as sandbox,
        client_of(sandbox.url) as client,
        client.generate_many(prompts(60), batch="b", max_credits=240, running=2) as batch,
    ):
        async for item in batch:
            if item.index == 10:
                sandbox.credits += 5000
        assert len(sandbox.ledger.accepted) <= 30
        assert batch.progress.spent == 8 * len(sandbox.ledger.accepted)


async def test_dearer_rows_are_counted_with_the_largest_cost() -> None:
    """Rows of 3 and 16 credits: within the limit, after the first reading that shows a dear one."""
    rows = [TextToImage(f"{n}", speed="turbo" if n % 2 == 0 else "relaxed") for n in range(40)]
    async with Sandbox(api_key=API_KEY, credits=1000) as sandbox:
        _, spent, _ = await buy(sandbox, 150, rows, running=10)
        assert spent <= 150


async def test_a_balance_that_cannot_be_read_pauses_a_batch_with_a_limit() -> None:
    """Nothing is bought blindly; without a limit it does not matter."""
    faults = Faults().on("credit", first=3, do=answer_code(500))
    async with Sandbox(api_key=API_KEY, faults=faults) as sandbox:
        count, spent, _ = await buy(sandbox, 1000, prompts(5))
        assert (count, spent) == (5, 40.0)
    faults = Faults().on("credit", do=answer_code(500))
    async with (
        Sandbox(api_key=API_KEY, faults=faults) as sandbox,
        client_of(sandbox.url) as client,
        client.generate_many(prompts(5), batch="b") as batch,
    ):
        assert len([item async for item in batch]) == 5
        assert batch.progress.spent is None
        assert sum(each.operation == "credit" for each in sandbox.ledger.requests) <= 2


async def test_a_key_that_may_not_see_the_balance_stops_a_batch_with_a_limit() -> None:
    """As a refused submission does."""
    faults = Faults().on("credit", do=answer_code(401))
    async with (
        Sandbox(api_key=API_KEY, faults=faults) as sandbox,
        client_of(sandbox.url) as client,
        client.generate_many(prompts(5), batch="b", max_credits=100) as batch,
    ):
        with pytest.raises(AuthenticationError):
            await anext(batch)
        assert sandbox.ledger.accepted == ()


@hypothesis.given(
    prices=st.integers(1, 20),
    limit=st.integers(1, 300),
    steps=st.lists(st.sampled_from(["begin", "end", "refuse", "read", "other"]), max_size=200),
)
def test_whatever_the_order_the_limit_holds(prices: int, limit: int, steps: list[str]) -> None:
    """Submissions of one price end in any order, are charged at once, and are read at any time."""
    money, balance, paid, charged = Money(limit=limit), 10_000.0, 0.0, []
    money.read(balance, 0)
    for step in steps:
        if step == "begin" and money.may_submit:
            money.begin()
            charged.append(prices)
        elif step == "end" and charged:
            balance -= charged.pop()
            paid += prices
            money.end(may_cost=True)
        elif step == "refuse" and charged:
            charged.pop()
            money.end(may_cost=False)
        elif step == "read":
            money.read(balance, money.settled)
        elif step == "other":
            balance -= 1
        assert paid <= max(limit, prices)
