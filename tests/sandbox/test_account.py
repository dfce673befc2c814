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


async def test_accounts_of_their_own() -> None:
    """Each such key has its own credits and its own window; all others share one account."""
    accounts = {"rich": 1000, "poor": 0}
    async with Sandbox(credits=8, accounts=accounts) as sandbox:
        async with api_of(sandbox, "rich") as rich, api_of(sandbox, "poor") as poor:
            for _ in range(20):
                await rich.submit()
            assert (await rich.post(GENERATE, FOX))["code"] == 429
            assert (await poor.post(GENERATE, FOX))["code"] == 402
            balances = [(await api.get(CREDIT))["data"] for api in (rich, poor)]
            assert balances == [840, 0]
        async with api_of(sandbox, "one") as one, api_of(sandbox, "other") as other:
            await one.submit()
            assert (await other.post(GENERATE, FOX))["code"] == 402
        assert sandbox.credits == 0


async def test_accounts_beside_the_one_key() -> None:
    """With an api_key, that key and those with an account are let in, and no other."""
    async with Sandbox(api_key="mine", credits=5, accounts={"its": 7}) as sandbox:
        balances = {}
        for key in ("mine", "its", "else"):
            async with api_of(sandbox, key) as api:
                answer = await api.get(CREDIT)
                balances[key] = answer["data"], answer["code"]
    assert balances == {"mine": (5, 200), "its": (7, 200), "else": (None, 401)}


@pytest.mark.parametrize("accounts", [{"": 5}, {"k": -1}, {"k": math.nan}])
def test_accounts_that_cannot_be(accounts: dict[str, float]) -> None:
    """An empty key, or a balance that no account holds."""
    with pytest.raises(ValueError, match=r"accounts|credits"):
        Sandbox(accounts=accounts)
