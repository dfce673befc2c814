import asyncio

import pytest

from midapi_async import CallbackReceiver, MidAPIClient, PromptRejected
from midapi_async.sandbox import SandboxThread


async def order(prompt: str) -> int:
    async with MidAPIClient() as client:
        return len((await client.generate_and_wait(prompt)).urls)


def test_an_order(midapi_sandbox: SandboxThread) -> None:
    assert asyncio.run(order("a red fox")) == 4
    assert midapi_sandbox.ledger.accepted[0].body["prompt"] == "a red fox"


@pytest.mark.asyncio
@pytest.mark.midapi_sandbox(credits=100)
async def test_a_prompt_that_is_refused(midapi_sandbox: SandboxThread) -> None:
    with pytest.raises(PromptRejected):
        await order("a red fox [[sandbox: fail=nsfw]]")
    assert midapi_sandbox.credits == 92


@pytest.mark.asyncio
@pytest.mark.midapi_sandbox(auto=False)
async def test_a_callback(midapi_sandbox: SandboxThread) -> None:
    async with MidAPIClient(receiver=CallbackReceiver(None, port=0)) as client:
        handle = await client.generate("a red fox")
        midapi_sandbox.finish(handle.task_id)  # sends the callback
        assert len((await handle).urls) == 4
        assert await midapi_sandbox.acall_back(handle.task_id) == 200  # sends it again
