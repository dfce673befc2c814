"""The life of a sandbox: opened once, closed in bounded time, nothing left behind."""

import asyncio
import math
import socket
import threading
from contextlib import ExitStack
from typing import Any

import aiohttp
import pytest

from midapi_async.sandbox import Faults, Sandbox, delay
from tests.sandbox.world import CREDIT, Endpoint, api_of


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"time_scale": 0}, "time_scale"),
        ({"time_scale": -1}, "time_scale"),
        ({"time_scale": math.nan}, "time_scale"),
        ({"time_scale": math.inf}, "time_scale"),
        ({"api_key": ""}, "api_key"),
        ({"webhook_key": ""}, "webhook_key"),
        ({"shape": "wrong"}, "shape must be 'recorded' or 'documented'"),
        ({"credits": -1}, "credits"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], text: str) -> None:
    """Before anything is opened, a ValueError names what cannot be meant."""
    with pytest.raises(ValueError, match=text):
        Sandbox(**options)


async def test_used_before_it_is_open() -> None:
    """Every method says so, and the plan and the ledger are there already."""
    sandbox = Sandbox()
    assert "not open" in repr(sandbox)
    with pytest.raises(RuntimeError, match="not open"):
        _ = sandbox.url
    with pytest.raises(RuntimeError, match="not open"):
        sandbox.finish("x")
    with pytest.raises(RuntimeError, match="not open"):
        await sandbox.call_back("x")
    assert sandbox.ledger.accepted == ()
    assert sandbox.faults.rules == ()
    await sandbox.aclose()


async def test_opened_once() -> None:
    """It cannot be opened twice, nor again; closing it twice does nothing."""
    sandbox = Sandbox()
    await sandbox.open()
    with pytest.raises(RuntimeError, match="opened once"):
        await sandbox.open()
    assert sandbox.url in repr(sandbox)
    await sandbox.aclose()
    await sandbox.aclose()
    with pytest.raises(RuntimeError, match="opened once"):
        await sandbox.open()
    with pytest.raises(RuntimeError, match="not open"):
        sandbox.finish("x")


async def test_a_port_that_is_taken(sandbox: Sandbox) -> None:
    """The OSError says which and why, and nothing stays open."""
    port = int(sandbox.url.rpartition(":")[2])
    with pytest.raises(OSError, match=rf"127.0.0.1:{port}: the port is taken; .* port=") as caught:
        await Sandbox(port=port).open()
    assert caught.value.errno is not None


async def test_an_address_that_is_not_ours() -> None:
    """Other errors of listening are told as well."""
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0"):
        await Sandbox(host="192.0.2.1").open()


@pytest.mark.parametrize(
    ("host", "start"),
    [
        ("0.0.0.0", "http://127.0.0.1:"),  # noqa: S104  what is tested
        ("localhost", "http://localhost:"),
        ("::1", "http://[::1]:"),
    ],
)
async def test_the_url_can_be_used(host: str, start: str) -> None:
    """Whatever address is listened on, the URL is one that can be connected to."""
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    async with Sandbox(host=host) as sandbox, api_of(sandbox) as api:
        assert sandbox.url.startswith(start)
        assert (await api.get(CREDIT))["data"] == 10_000


def has_ipv6() -> bool:
    """Say whether ::1 can be listened on."""
    try:
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.real_time
async def test_closing_is_quick_whatever_goes_on(endpoint: Endpoint) -> None:
    """Idle and half-sent connections, tasks, callbacks, delays: about a second ends them all."""
    faults = Faults().on("credit", do=delay(1000))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        waiting = asyncio.create_task(api.get(CREDIT))
        for _ in range(10):
            await api.submit(callBackUrl=endpoint.url)
        host, _, port = sandbox.url.removeprefix("http://").partition(":")
        writers = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(5)]
        for writer in writers[2:]:
            writer.write(b"POST /api/v1/mj/generate HTTP/1.1\r\nContent-Le")
        writers[4].write(b"ngth: 100\r\n\r\n{")
        await asyncio.sleep(0.05)
        before = asyncio.get_running_loop().time()
        await sandbox.aclose()
        assert asyncio.get_running_loop().time() - before < 5
        assert (await waiting)["code"] == 200
        for writer in writers:
            writer.close()


async def test_closed_while_an_exception_passes() -> None:
    """The block's exception comes through and the server is gone."""
    with pytest.raises(ZeroDivisionError):
        async with Sandbox() as sandbox:
            raise ZeroDivisionError
    with pytest.raises(aiohttp.ClientConnectorError):
        async with api_of(sandbox) as api:
            await api.get(CREDIT)


async def test_a_month_passes_in_a_moment() -> None:
    """Only the loop's clock is asked: a loop that jumps takes the sandbox with it."""
    async with Sandbox() as sandbox, api_of(sandbox) as api:
        task_id = await api.submit()
        await asyncio.sleep(30 * 86_400)
        record = await api.look(task_id)
    assert record["completeTime"] - record["createTime"] < 120_000


async def test_nothing_goes_on_after_the_end() -> None:
    """No timer, no thread: the task that was running stays as it was."""
    async with Sandbox() as sandbox, api_of(sandbox) as api:
        done, running = await api.submit(), await api.submit()
        sandbox.finish(done)
        await api.download((await api.urls(done))[0])
        painters = [t for t in threading.enumerate() if "painter" in t.name]
        assert len(painters) == 1
    await asyncio.sleep(1000)
    assert not painters[0].is_alive()
    assert sandbox._service is not None
    assert sandbox._service.task(running).flag == 0


async def test_many_connections_at_once(sandbox: Sandbox) -> None:
    """A burst of connections is queued: none is dropped, to come back a second later."""
    host, _, port = sandbox.url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        # The loop stands still meanwhile, so that nobody accepts them.
        for _ in range(200):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=0.5))
    async with api_of(sandbox) as api:
        assert (await api.get(CREDIT))["data"] == 10_000
