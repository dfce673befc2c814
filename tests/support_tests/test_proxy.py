"""The proxy spoils the line as it was told to."""

import asyncio

import aiohttp
import pytest

from tests.support.proxy import Line, Proxy
from tests.support.scripted import Answer, Received, ScriptedServer, hang, reply


def echo(request: Received) -> Answer:
    """Answer with the body of the request."""
    return reply(body=request.body)


async def exchange(url: str, body: bytes) -> float:
    """POST, check that the body comes back, and return how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with aiohttp.ClientSession() as session, session.post(url, data=body) as response:
        assert body == await response.read()
    return loop.time() - began


async def test_a_good_line_changes_nothing() -> None:
    """A big body goes through in no time."""
    async with ScriptedServer(then=echo) as server, Proxy(server.url) as proxy:
        assert await exchange(proxy.url, b"x" * 900_000) == 0


async def test_latency_is_added_in_each_direction_and_not_to_each_segment() -> None:
    """A long body is under way as long as a short one."""
    up, down = Line(latency=0.5), Line(latency=2.0)
    async with ScriptedServer(then=echo) as server, Proxy(server.url, up=up, down=down) as proxy:
        assert await exchange(proxy.url, b"x") == 2.5
        assert await exchange(proxy.url, b"x" * 200_000) == 2.5


async def test_bandwidth_makes_a_body_slow() -> None:
    """A hundred thousand bytes at ten thousand a second take ten seconds."""
    line = Line(bandwidth=10_000)
    async with ScriptedServer(then=echo) as server, Proxy(server.url, down=line) as proxy:
        assert await exchange(proxy.url, b"x" * 100_000) == pytest.approx(10, abs=0.1)


async def test_slices_arrive_one_by_one() -> None:
    """A client that reads sees each slice by itself."""
    async with ScriptedServer(then=echo) as server, Proxy(server.url, down=Line(slices=3)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read(100) == b"HTT"
        assert await reader.read(100) == b"P/1"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (Line(cut_after=0), aiohttp.ServerDisconnectedError),
        (Line(reset_after=0), aiohttp.ClientConnectionError),
        (Line(cut_after=60), aiohttp.ClientPayloadError),
        (Line(reset_after=60), aiohttp.ClientError),
    ],
)
async def test_an_answer_is_cut_or_reset_after_so_many_bytes(
    line: Line, error: type[Exception]
) -> None:
    """The server answered in full, the client has a part."""
    async with ScriptedServer(then=echo) as server, Proxy(server.url, down=line) as proxy:
        with pytest.raises(error):
            await exchange(proxy.url, b"x" * 100)
        assert len(server.accepted) == 1


async def test_a_request_that_is_cut_on_its_way_is_not_accepted() -> None:
    """The client fails, and the server has a part of the body."""
    async with (
        ScriptedServer(then=echo) as server,
        Proxy(server.url, up=Line(cut_after=5000)) as proxy,
    ):
        with pytest.raises(aiohttp.ClientError):
            await exchange(proxy.url, b"x" * 100_000)
        await server.arrived()
        assert server.accepted == []


async def test_a_server_that_is_gone_and_comes_back() -> None:
    """Connections are reset, new ones refused, and later all is well at the same port."""
    async with ScriptedServer([hang()], then=echo) as server, Proxy(server.url) as proxy:
        waiting = asyncio.create_task(exchange(proxy.url, b"x"))
        await server.arrived()
        async with proxy.gone():
            with pytest.raises(aiohttp.ClientOSError):
                await waiting
            with pytest.raises(aiohttp.ClientConnectorError):
                await exchange(proxy.url, b"x")
        await exchange(proxy.url, b"x")


async def test_a_proxy_without_a_server_closes() -> None:
    """Nobody listens behind it: the client is disconnected."""
    async with ScriptedServer() as server:
        url = server.url
    async with Proxy(url) as proxy:
        with pytest.raises(aiohttp.ClientConnectionError):
            await exchange(proxy.url, b"x")
