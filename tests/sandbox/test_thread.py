"""The sandbox in a thread, as somebody uses it who does not await."""

import json
import threading
import time
import urllib.request
from typing import Any

import pytest

from midapi_async.sandbox import (
    Faults,
    Sandbox,
    SandboxThread,
    answer_code,
    duplicate,
    fail_callback,
)
from midapi_async.sandbox._thread import SandboxOptions
from tests.sandbox.world import FOX, GENERATE, RECORD_INFO, Endpoint


def call(url: str, body: object = None) -> dict[str, Any]:
    """Give the JSON of a plain call with urllib."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Authorization": "Bearer k"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        envelope: dict[str, Any] = json.load(response)
        return envelope


def submit(sandbox: SandboxThread, **fields: object) -> str:
    """Give the task id of a fox."""
    return str(call(sandbox.url + GENERATE, {**FOX, **fields})["data"]["taskId"])


def look(sandbox: SandboxThread, task_id: str) -> dict[str, Any]:
    """Give record-info's data."""
    data: dict[str, Any] = call(f"{sandbox.url}{RECORD_INFO}?taskId={task_id}")["data"]
    return data


def test_it_does_what_a_sandbox_does() -> None:
    """Submit, finish, fail, credits, ledger and faults, from a program without a loop."""
    with SandboxThread(auto=False, credits=24) as sandbox:
        assert sandbox.url in repr(sandbox)
        first, second = submit(sandbox), submit(sandbox)
        assert [entry.task_id for entry in sandbox.ledger.accepted] == [first, second]
        sandbox.finish(first)
        sandbox.fail(second, message="no", code=None, flag=2)
        assert look(sandbox, first)["successFlag"] == 1
        assert (
            look(sandbox, second)["successFlag"],
            look(sandbox, second)["errorMessage"],
        ) == (2, "no")
        assert sandbox.credits == 8
        sandbox.credits = 3
        assert call(sandbox.url + GENERATE, FOX)["code"] == 402
        sandbox.faults.on("submit", do=answer_code(455))
        assert call(sandbox.url + GENERATE, FOX)["code"] == 455
        with pytest.raises(KeyError, match="nobody"):
            sandbox.finish("nobody")


def test_it_calls_back() -> None:
    """By hand, with the answer's status; here the endpoint is another sandbox's 404."""
    with SandboxThread() as endpoint, SandboxThread(auto=False) as sandbox:
        task_id = submit(sandbox, callBackUrl=f"{endpoint.url}/callback")
        assert sandbox.call_back(task_id, duplicate(2)) == 404
        assert len(sandbox.ledger.callbacks) == 2
        assert sandbox.call_back(task_id, url=f"{endpoint.url}/other") == 404
        assert endpoint.ledger.count("other") == 3


@pytest.mark.real_time
async def test_it_calls_back_to_a_server_in_the_loop_of_a_test(endpoint: Endpoint) -> None:
    """`acall_back` leaves the loop free to answer; `call_back` would block it, and says so."""
    with SandboxThread(auto=False) as sandbox:
        task_id = submit(sandbox, callBackUrl=endpoint.url)
        with pytest.raises(RuntimeError, match=r"await sandbox\.acall_back"):
            sandbox.call_back(task_id)
        assert sandbox.ledger.callbacks == ()
        endpoint.answers.append(503)
        assert await sandbox.acall_back(task_id) == 503
        sandbox.finish(task_id)
        assert await sandbox.acall_back(task_id, fail_callback()) == 200
        assert 500 in [body["code"] for body in endpoint.bodies]
        assert await sandbox.acall_back(task_id, url="http://127.0.0.1:9/") is None
        with pytest.raises(KeyError, match="nobody"):
            await sandbox.acall_back("nobody")
    with pytest.raises(RuntimeError, match="not open"):
        await sandbox.acall_back(task_id)


def test_its_thread_ends_with_it() -> None:
    """Nothing is left, closing again does nothing, and using it then says so."""
    before = threading.active_count()
    sandbox = SandboxThread()
    with pytest.raises(RuntimeError, match="not open"):
        sandbox.finish("x")
    with sandbox:
        assert before < threading.active_count()
    assert before == threading.active_count()
    sandbox.close()
    with pytest.raises(RuntimeError, match="not open"):
        sandbox.finish("x")


def test_a_port_that_is_taken_ends_the_thread() -> None:
    """The OSError is the caller's, and no thread stays."""
    with SandboxThread() as first:
        before = threading.active_count()
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(OSError, match="the port is taken"), SandboxThread(port=port):
            pass
        assert before == threading.active_count()


def test_many_threads_at_once() -> None:
    """What is asked from several threads is all counted, and nothing breaks."""
    with SandboxThread(auto=False, time_scale=1e6) as sandbox:

        def work() -> None:
            for _ in range(10):
                sandbox.finish(submit(sandbox))
                assert sandbox.ledger.accepted
                assert sandbox.ledger.requests

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(sandbox.ledger.accepted) == 40
        assert sandbox.ledger.count("submit") == 40


def test_time_passes_by_itself() -> None:
    """Tasks end on the real clock, divided by the scale."""
    with SandboxThread(time_scale=6000, faults=Faults()) as sandbox:
        task_id = submit(sandbox)
        deadline = time.monotonic() + 30
        while look(sandbox, task_id)["successFlag"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_the_options_are_those_of_the_sandbox() -> None:
    """A new argument of Sandbox must not be forgotten here."""
    annotations = dict(Sandbox.__init__.__annotations__)
    assert annotations.pop("return") is None
    assert set(annotations) == set(SandboxOptions.__annotations__)
