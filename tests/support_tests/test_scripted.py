"""The scripted server fails as it was told to, and its ledger says what arrived."""

import asyncio

import aiohttp
import pytest

from tests.support.scripted import (
    Answer,
    Fault,
    Received,
    ScriptedServer,
    close,
    cut,
    delay,
    drip,
    garbage,
    hang,
    interim,
    lose_answer,
    raw,
    reply,
    reset,
    then_close,
)

OK = {"code": 200}


async def post(session: aiohttp.ClientSession, url: str, body: bytes = b"{}") -> bytes:
    """One POST, and the bytes of its answer."""
    async with session.post(url + "/submit?a=1", data=body) as response:
        return await response.read()


async def test_a_reply_and_what_it_answers_are_recorded() -> None:
    """The ledger has the whole request; an accepted one is one that was not refused."""
    script = [reply(json=OK), reply(429), reply(502), reply(json={"code": 402}, accepted=False)]
    async with ScriptedServer(script) as server, aiohttp.ClientSession() as session:
        assert await post(session, server.url, b'{"prompt": "fox"}') == b'{"code": 200}'
        for _ in range(3):
            await post(session, server.url)
        first = server.requests[0]
        assert (first.method, first.target, first.path) == ("POST", "/submit?a=1", "/submit")
        assert first.json() == {"prompt": "fox"}
        assert first.headers["content-length"] == "17"
        assert [r.accepted for r in server.requests] == [True, False, True, False]
        assert server.accepted == [first, server.requests[2]]
        assert (server.connections, server.steps_left) == (1, 0)


@pytest.mark.parametrize(
    ("step", "error", "accepted"),
    [
        (reset("accept"), aiohttp.ClientOSError, 0),
        (reset("headers"), aiohttp.ClientOSError, 0),
        (reset("body"), aiohttp.ClientOSError, 1),
        (close("accept"), aiohttp.ClientConnectionError, 0),
        (close("body"), aiohttp.ServerDisconnectedError, 1),
        (lose_answer(), aiohttp.ServerDisconnectedError, 1),
        (hang("accept"), TimeoutError, 0),
        (hang("headers"), TimeoutError, 0),
        (hang("body"), TimeoutError, 1),
        (lose_answer("hang"), TimeoutError, 1),
        (garbage(), aiohttp.ClientResponseError, 1),
        (cut(reply(json=OK), body=5), aiohttp.ClientPayloadError, 1),
        (cut(reply(json=OK), body=5, ending="reset"), aiohttp.ClientError, 1),
        (cut(reply(json=OK), body=-5), aiohttp.ServerDisconnectedError, 1),
        (delay(reply(json=OK), 31), TimeoutError, 1),
        (drip(reply(json=OK)), TimeoutError, 1),
    ],
)
async def test_each_fault_is_the_one_of_the_catalogue(
    step: Answer | Fault, error: type[Exception], accepted: int
) -> None:
    """aiohttp fails as it was measured to, and the ledger knows whether it was accepted."""
    timeout = aiohttp.ClientTimeout(total=30)
    async with ScriptedServer([step]) as server:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            # More than one segment, so that there is a body to be left unread.
            with pytest.raises(error):
                await post(session, server.url, b"x" * 300_000)
        assert accepted == len(server.accepted)
        assert server.connections == 1


@pytest.mark.parametrize("step", [lose_answer(), lose_answer("reset"), close("accept")])
async def test_a_stale_connection_is_the_second_step_of_a_kept_one(step: Fault) -> None:
    """The client reuses a connection, and finds it closed."""
    async with ScriptedServer([reply(json=OK), step]) as server, aiohttp.ClientSession() as session:
        await post(session, server.url)
        with pytest.raises(aiohttp.ClientConnectionError):
            await post(session, server.url)
        assert server.connections == 1


async def test_answers_that_are_odd_but_whole() -> None:
    """Late, slow, behind informational ones, literal, closed afterwards: each comes in full."""
    began = asyncio.get_running_loop().time()
    script = [
        delay(reply(json=OK), 7),
        drip(reply(json=OK), piece=10, interval=0.5),
        interim(reply(json=OK), times=3),
        raw(b"HTTP/1.0 200 OK\r\n\r\n" + b'{"code": 200}'),
        then_close(reply(json=OK)),
        reply(299, body="text", close=True),
    ]
    async with ScriptedServer(script) as server, aiohttp.ClientSession() as session:
        for _ in range(5):
            assert await post(session, server.url) == b'{"code": 200}'
        await asyncio.sleep(1)  # else the client would not have heard of the close
        assert await post(session, server.url) == b"text"
        assert server.connections == 3
    assert asyncio.get_running_loop().time() - began >= 7 + 0.5 * 5


async def test_a_function_answers_and_may_be_the_rest_of_the_script() -> None:
    """Steps may be made from the request; `then` is for all that follow, `add` for some."""

    def echo(request: Received) -> Answer:
        return reply(body=request.body)

    async with ScriptedServer(then=echo) as server, aiohttp.ClientSession() as session:
        server.add(reply(json=OK))
        assert await post(session, server.url, b"first") == b'{"code": 200}'
        assert await post(session, server.url, b"more") == b"more"


async def test_a_body_without_a_length_is_read_to_its_end() -> None:
    """Chunked, and announced by Expect: 100-continue."""

    async def chunks() -> object:
        yield b"a" * 70_000
        yield b"b"

    async with ScriptedServer([reply()]) as server, aiohttp.ClientSession() as session:
        async with session.post(server.url, data=chunks(), expect100=True):
            pass
        assert server.accepted[0].body == b"a" * 70_000 + b"b"


async def test_a_body_that_breaks_off_was_not_accepted() -> None:
    """What came is in the ledger, but incomplete."""
    async with ScriptedServer([reply()]) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf")
        writer.close()
        await writer.wait_closed()
        await server.arrived()
        (request,) = server.requests
        assert (request.body, request.complete, request.accepted) == (b"half", False, False)


async def test_one_request_too_many_is_not_overlooked() -> None:
    """It is answered with 500, and the server's end is an error that names it."""
    with pytest.raises(AssertionError, match="no step is left for POST /submit"):  # noqa: PT012  # the end of the block raises
        async with ScriptedServer([reply()]) as server, aiohttp.ClientSession() as session:
            await post(session, server.url)
            assert await post(session, server.url) == b"the script has ended"


async def test_a_step_that_fails_is_not_overlooked() -> None:
    """An error in a function of the script makes the end fail."""

    def broken(_: Received) -> Answer:
        raise ZeroDivisionError

    with pytest.raises(AssertionError, match="the script failed with ZeroDivisionError"):  # noqa: PT012  # the end of the block raises
        async with ScriptedServer([broken]) as server, aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await post(session, server.url)


async def test_a_server_ends_with_connections_open_and_unread() -> None:
    """What a client will not read is thrown away: nothing is left behind (I4)."""
    async with ScriptedServer([reply(body=b"x" * 10_000_000)]) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await server.arrived()
    writer.transport.abort()
