"""Each endpoint sends one call, to its path, and reads the answer."""

import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from midapi_async import TextToImage, Timeouts
from midapi_async._wire.endpoints import Api
from midapi_async._wire.protocol import Answer, Call, submit_call
from midapi_async._wire.transport import Transport
from midapi_async.config import settings
from tests.support.secrets import API_KEY

TASK = "0f3a9c52047dda21bb3df0488736cce5"
LINK = "https://files.example/a.png"


class Recorder:
    """A transport that answers every call with the same data and keeps the calls."""

    def __init__(self, data: object) -> None:
        self.data = data
        self.calls: list[tuple[Call, float]] = []

    async def call(self, call: Call, timeout: float, confirm: object = None) -> Answer:
        self.confirm = confirm
        self.calls.append((call, timeout))
        return Answer(200, {}, json.dumps({"code": 200, "data": self.data}).encode())


def api_of(transport: Recorder, base_url: str = "https://api.midapi.ai") -> Api:
    timeouts = Timeouts(submit=100, look=10)
    return Api(cast("Transport", transport), settings(API_KEY, base_url), timeouts)


@pytest.mark.parametrize(
    ("ask", "data", "expected", "call"),
    [
        (
            lambda api: api.look(TASK),
            {"taskId": TASK},
            TASK,
            Call("GET", f"/api/v1/mj/record-info?taskId={TASK}"),
        ),
        (lambda api: api.credits(), 12.5, 12.5, Call("GET", "/api/v1/common/credit")),
        (
            lambda api: api.download_url(LINK),
            LINK,
            LINK,
            Call("POST", "/api/v1/common/download-url", b'{"url":"https://files.example/a.png"}'),
        ),
    ],
)
async def test_each_endpoint_has_its_path(
    ask: Callable[[Api], Any], data: object, expected: object, call: Call
) -> None:
    """Sections 4 and 6 of the wire document; within the timeout of a look, and not as paid."""
    transport = Recorder(data)
    found = await ask(api_of(transport))
    assert getattr(found, "task_id", found) == expected
    assert transport.calls == [(call, 10)]
    assert not call.is_paid


async def test_kie_has_another_path_for_credits() -> None:
    """MidAPI's sister, chosen by the host."""
    transport = Recorder(5)
    assert await api_of(transport, "https://api.kie.ai").credits() == 5.0
    assert transport.calls == [(Call("GET", "/api/v1/chat/credit"), 10)]


async def test_a_submission_has_its_own_timeout() -> None:
    """It is the one call that costs money."""
    transport = Recorder({"taskId": TASK})

    async def confirm() -> None: ...

    call = submit_call(TextToImage("a fox"), None)
    assert (await api_of(transport).submit(call, confirm)).status == 200
    assert transport.calls == [(call, 100)]
    assert transport.confirm is confirm
    assert call.is_paid


async def test_looks_are_counted_and_an_unknown_task_is_none() -> None:
    """Whether that is an error depends on the caller."""
    api = api_of(Recorder(None))
    assert await api.look(TASK) is None
    assert api.looks == 1
