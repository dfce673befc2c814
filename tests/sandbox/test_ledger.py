from types import MappingProxyType
from typing import Any

import aiohttp
import pytest
from attrs.exceptions import FrozenInstanceError

from midapi_async.sandbox import Faults, Ledger, Sandbox, lose_answer
from tests.sandbox.world import FOX, GENERATE, RECORD_INFO, Api, Endpoint, api_of, until


async def test_what_was_accepted(sandbox: Sandbox, api: Api) -> None:
    """One immutable entry for each accepted submit, with the body as it came."""
    body = {**FOX, "version": 7, "bogus": [1]}
    task_id = (await api.post(GENERATE, body))["data"]["taskId"]
    await api.post(GENERATE, {})
    (entry,) = sandbox.ledger.accepted
    assert (task_id, GENERATE, body, None, 8) == (
        *(entry.task_id, entry.path, dict(entry.body)),
        *(entry.callback_url, entry.price),
    )
    assert entry == sandbox.ledger.find(task_id)
    assert isinstance(entry.body, MappingProxyType)
    with pytest.raises(FrozenInstanceError):
        entry.price = 0  # type: ignore[misc]  # that it cannot be done is the test
    with pytest.raises(KeyError, match="nobody"):
        sandbox.ledger.find("nobody")


async def test_accepted_means_that_it_was_paid_for() -> None:
    """Whether or not the answer got through; the entry's time is the sandbox's."""
    async with Sandbox(faults=Faults().on("submit", nth=2, do=lose_answer())) as sandbox:
        async with api_of(sandbox) as api:
            await api.submit()
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await api.submit()
        assert [entry.price for entry in sandbox.ledger.accepted] == [8, 8]
        assert sandbox.credits == 10_000 - 16


async def test_every_request(sandbox: Sandbox, api: Api) -> None:
    """Method, path, operation, task, key, status; counted by operation and by task."""
    task_id = await api.submit()
    for _ in range(3):
        await api.look(task_id)
    await api.get(RECORD_INFO, taskId="nobody")
    await api.download(f"{sandbox.url}/m/{task_id}_0_0.jpeg")
    async with api.session.get("/elsewhere") as response:
        assert response.status == 404
    asked = sandbox.ledger.requests
    seen = [(a.method, a.operation, a.task_id, a.with_key, a.status) for a in asked]
    look: tuple[Any, ...] = ("GET", "look", task_id, True, 200)
    assert seen == [
        ("POST", "submit", None, True, 200),
        *(look, look, look),
        ("GET", "look", "nobody", True, 200),
        ("GET", "file", task_id, False, 404),
        ("GET", "other", None, True, 404),
    ]
    assert asked[-1].path == "/elsewhere"
    ledger = sandbox.ledger
    assert [ledger.count(word) for word in ("submit", "look", "file", "other", "credit")] == [
        1,
        4,
        1,
        1,
        0,
    ]
    assert [ledger.looks(i) for i in (task_id, "nobody", "somebody")] == [3, 1, 0]


async def test_the_log_of_requests_is_bounded(
    sandbox: Sandbox, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go; counts stay exact; a request that is still answered then does no harm."""
    monkeypatch.setattr(Ledger, "REQUESTS_KEPT", 2)
    task_id = await api.submit()
    for _ in range(5):
        await api.look(task_id)
    assert [a.operation for a in sandbox.ledger.requests] == ["look", "look"]
    assert sandbox.ledger.looks(task_id) == 5
    assert sandbox.ledger.count("submit") == 1
    monkeypatch.setattr(Ledger, "REQUESTS_KEPT", 0)
    await api.look(task_id)


async def test_callbacks_are_written_down(sandbox: Sandbox, api: Api, endpoint: Endpoint) -> None:
    """Each try with its answer; and all stays readable when the sandbox is closed."""
    task_id = await api.submit(callBackUrl=endpoint.url)
    await until(lambda: bool(sandbox.ledger.callbacks))
    await sandbox.aclose()
    (entry,) = sandbox.ledger.callbacks
    assert (task_id, 200, "final") == (entry.task_id, entry.status, entry.kind)
    assert len(sandbox.ledger.accepted) == 1
