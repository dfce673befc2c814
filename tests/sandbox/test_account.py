import asyncio
import math

import pytest

from midapi_async.sandbox import Sandbox
from tests.sandbox.world import CREDIT, FOX, GENERATE, RECORD_INFO, Api, api_of


async def test_no_credits() -> None:
    """A submit that costs more than there is gets code 402 and its text, and takes nothing."""
    async with Sandbox(credits=10.5) as sandbox, api_of(sandbox) as api:
        await api.submit()
        refused = await api.post(GENERATE, FOX)
        assert refused["code"] == 402
        assert refused["msg"].startswith("Credits insufficient : Your current balance isn't")
        assert (
            2.5 == (await api.get(CREDIT))["data"] == (await api.get("/api/v1/chat/credit"))["data"]
        )
        sandbox.credits = 8
        await api.submit()
        assert (await api.get(CREDIT))["data"] == 0
        assert len(sandbox.ledger.accepted) == 2


@pytest.mark.parametrize("balance", [-1, math.nan, math.inf])
async def test_a_balance_that_cannot_be(balance: float) -> None:
    """No account holds such a balance, neither at first nor later."""
    with pytest.raises(ValueError, match="credits"):
        Sandbox(credits=balance)
    sandbox = Sandbox()
    with pytest.raises(ValueError, match="credits"):
        sandbox.credits = balance


@pytest.mark.parametrize("scale", [1.0, 20.0])
async def test_twenty_submits_in_ten_seconds(scale: float) -> None:
    """The 21st within the window is refused, not queued; its place comes back with time."""
    async with Sandbox(time_scale=scale) as sandbox, api_of(sandbox) as api:
        for _ in range(20):
            await api.submit()
            await asyncio.sleep(0.1 / scale)
        refused = await api.post(GENERATE, FOX)
        assert refused == {
            "code": 429,
            "msg": "Your call frequency is too high. Please try again later.",
            "data": None,
        }
        await asyncio.sleep(7.9 / scale)
        assert (await api.post(GENERATE, FOX))["code"] == 429
        await asyncio.sleep(0.15 / scale)
        await api.submit()
        assert (await api.post(GENERATE, FOX))["code"] == 429
        assert len(sandbox.ledger.accepted) == 21


async def test_the_window_is_for_what_was_accepted(api: Api) -> None:
    """Looks, and submits that were refused, do not use it up."""
    for _ in range(30):
        assert (await api.post(GENERATE, {**FOX, "speed": "warp"}))["code"] == 422
        assert (await api.get(RECORD_INFO, taskId="x"))["code"] == 422
    for _ in range(20):
        await api.submit()
