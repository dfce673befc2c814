"""What the faults do to a connection, seen through a raw socket or a plain client."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web

from midapi_async.sandbox import (
    Faults,
    RequestAction,
    Sandbox,
    cut,
    delay,
    drip,
    gone,
    hang,
    huge,
    lose_answer,
    other_content,
    raw_answer,
    refuse_connection,
    reset,
)
from tests.sandbox.world import CREDIT, FOX, GENERATE, Api, api_of, raw_get, raw_post, talk

POST = raw_post(GENERATE, json.dumps(FOX).encode())


def now() -> float:
    """Give the loop's time."""
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(("action", "accepted"), [(lose_answer(), 1), (refuse_connection(), 0)])
async def test_closed_without_an_answer(action: RequestAction, accepted: int) -> None:
    """Not one byte comes; the ledger knows whether it was accepted, and of no status."""
    async with Sandbox(faults=Faults().on("submit", do=action)) as sandbox:
        assert await talk(sandbox, POST) == b""
        assert accepted == len(sandbox.ledger.accepted)
        assert [asked.status for asked in sandbox.ledger.requests] == [None]


@pytest.mark.parametrize("accepted", [True, False])
async def test_a_reset(accepted: bool) -> None:
    """The socket says RST, not the end of a stream."""
    async with Sandbox(faults=Faults().on("submit", do=reset(accepted=accepted))) as sandbox:
        with pytest.raises(ConnectionResetError):
            await talk(sandbox, POST)
        assert accepted == bool(sandbox.ledger.accepted)


async def test_a_reset_while_the_body_goes_out() -> None:
    """It strikes before the body was read: half of one is enough."""
    async with Sandbox(faults=Faults().on("submit", do=reset(accepted=False))) as sandbox:
        with pytest.raises(ConnectionResetError):
            await talk(sandbox, POST[:-5])
        assert sandbox.ledger.accepted == ()


@pytest.mark.parametrize("accepted", [True, False])
async def test_it_hangs_for_ever(accepted: bool) -> None:
    """An hour brings nothing; closing the sandbox ends it at once."""
    faults = Faults().on("submit", do=hang(accepted=accepted))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        waiting = asyncio.create_task(api.post(GENERATE, FOX))
        await asyncio.sleep(3600)
        assert not waiting.done()
        assert accepted == bool(sandbox.ledger.accepted)
        assert sandbox.ledger.count("submit") == 1
        before = now()
        await sandbox.aclose()
        assert now() - before < 2
        with pytest.raises(aiohttp.ClientError):
            await waiting


@pytest.mark.parametrize("scale", [1.0, 10.0])
async def test_a_delay(scale: float) -> None:
    """Accepted at once, answered later, by the sandbox's clock."""
    faults = Faults().on("submit", do=delay(30))
    async with Sandbox(faults=faults, time_scale=scale) as sandbox, api_of(sandbox) as api:
        before = now()
        waiting = asyncio.create_task(api.submit())
        await asyncio.sleep(1)
        assert len(sandbox.ledger.accepted) == 1
        assert await waiting == sandbox.ledger.accepted[0].task_id
        assert 30 / scale == pytest.approx(now() - before, abs=0.1)


async def test_a_delay_ends_with_the_sandbox() -> None:
    """Closing does not wait for it, also when the client has gone."""
    faults = Faults().on("credit", do=delay(10_000))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(api.get(CREDIT), 1)
        waiting = asyncio.create_task(api.get(CREDIT))
        await asyncio.sleep(1)
        before = now()
        await sandbox.aclose()
        assert now() - before < 2
        assert (await waiting)["code"] == 200


@pytest.mark.parametrize("after", [0, 1, 20, 10_000])
async def test_cut_with_a_length(after: int) -> None:
    """Content-Length promises more than comes, however little is cut."""
    async with Sandbox(faults=Faults().on("submit", do=cut(after))) as sandbox:
        head, _, body = (await talk(sandbox, POST)).partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 200 OK"
        (length,) = [int(line[15:]) for line in lines if line.startswith("Content-Length:")]
        assert len(body) < length
        assert body == b'{"code":200,"msg":"success"'[:after] or after > 30
        assert len(sandbox.ledger.accepted) == 1


async def test_cut_without_a_length() -> None:
    """It ends as if it were whole."""
    async with Sandbox(faults=Faults().on("credit", do=cut(10, declared=False))) as sandbox:
        head, _, body = (await talk(sandbox, raw_get(CREDIT))).partition(b"\r\n\r\n")
        assert b"ontent-" in head
        assert b"ontent-Length" not in head
        assert body == b'{"code":20'
        async with api_of(sandbox) as api, api.session.get(CREDIT) as response:
            assert await response.read() == b'{"code":20'


async def test_one_byte_a_second() -> None:
    """The whole answer comes, in as many seconds as it has bytes."""
    async with Sandbox(faults=Faults().on("credit", do=drip())) as sandbox, api_of(sandbox) as api:
        before = now()
        envelope = await api.get(CREDIT)
        assert envelope == {"code": 200, "msg": "success", "data": 10000}
        # The last byte is the one that ends it, so that one pause is not waited for.
        assert len(b'{"code":200,"msg":"success","data":10000}') - 1 == now() - before


async def test_a_drip_ends_when_nobody_listens() -> None:
    """A client that went, and a sandbox that closes, both end it."""
    async with Sandbox(faults=Faults().on("credit", do=drip())) as sandbox, api_of(sandbox) as api:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(api.get(CREDIT), 5)
        waiting = asyncio.create_task(api.get(CREDIT))
        await asyncio.sleep(5)
        before = now()
        await sandbox.aclose()
        assert now() - before < 2
        with pytest.raises(aiohttp.ClientError):
            await waiting


@pytest.mark.parametrize("accepted", [True, False])
async def test_bytes_of_ones_own(accepted: bool) -> None:
    """Whatever is given is written, and nothing else."""
    action = raw_answer(b"220 smtp ready\r\n", accepted=accepted)
    async with Sandbox(faults=Faults().on("submit", do=action)) as sandbox:
        assert await talk(sandbox, POST) == b"220 smtp ready\r\n"
        assert accepted == bool(sandbox.ledger.accepted)


async def picture(sandbox: Sandbox, api: Api) -> str:
    """Give the URL of a result."""
    task_id = await api.submit()
    sandbox.finish(task_id)
    return (await api.urls(task_id))[0]


@pytest.mark.parametrize("status", [404, 403, 410])
async def test_d1_a_file_that_is_gone(sandbox: Sandbox, api: Api, status: int) -> None:
    """Any of the three that a file host says."""
    url = await picture(sandbox, api)
    sandbox.faults.on("file", do=gone(status))
    assert status == (await api.download(url))[0]


async def test_d2_d3_a_file_that_is_cut(sandbox: Sandbox, api: Api) -> None:
    """With a length the client notices, without one it does not; the next one is whole."""
    url = await picture(sandbox, api)
    sandbox.faults.on("file", nth=1, do=cut(1000))
    sandbox.faults.on("file", nth=2, do=cut(1000, declared=False))
    with pytest.raises(aiohttp.ClientPayloadError):
        await api.download(url)
    short = (await api.download(url))[1]
    whole = (await api.download(url))[1]
    assert whole[:1000] == short != whole


@pytest.mark.parametrize("declared", [True, False])
async def test_d4_a_huge_file(sandbox: Sandbox, api: Api, declared: bool) -> None:
    """It begins as the picture and goes on for as long as was asked."""
    url = await picture(sandbox, api)
    whole = (await api.download(url))[1]
    sandbox.faults.on("file", do=huge(1_000_000, declared=declared))
    async with api.session.get(url) as response:
        assert response.content_length == (1_000_000 if declared else None)
        data = await response.read()
    assert whole == data[: len(whole)]
    assert len(data) == 1_000_000


async def test_d4_a_huge_file_that_nobody_wants_to_its_end(sandbox: Sandbox, api: Api) -> None:
    """A client that leaves ends it, and so does the end of the sandbox."""
    url = await picture(sandbox, api)
    sandbox.faults.on("file", do=huge())
    async with api.session.get(url) as response:
        await response.content.readexactly(100_000)
    response = await api.session.get(url)
    await response.content.readexactly(100_000)
    before = now()
    await sandbox.aclose()
    assert now() - before < 3
    response.close()


async def test_d4_a_slow_file(sandbox: Sandbox, api: Api) -> None:
    """So many bytes every so often."""
    url = await picture(sandbox, api)
    length = len((await api.download(url))[1])
    sandbox.faults.on("file", do=drip(piece=1000, seconds=2))
    before = now()
    assert length == len((await api.download(url))[1])
    assert 2 * (-(-length // 1000) - 1) == now() - before


async def test_d9_another_content(sandbox: Sandbox, api: Api) -> None:
    """A page where a picture was expected."""
    url = await picture(sandbox, api)
    sandbox.faults.on("file", do=other_content("text/html; charset=utf-8", b"<script>"))
    async with api.session.get(url) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert await response.read() == b"<script>"


async def test_a_fault_on_one_tasks_files(sandbox: Sandbox, api: Api) -> None:
    """A file's request names its task by its path."""
    bad, good = await picture(sandbox, api), await picture(sandbox, api)
    task_id = bad.rpartition("/")[2].partition("_")[0]
    sandbox.faults.on("file", task=task_id, do=gone())
    assert [(await api.download(url))[0] for url in (bad, good)] == [404, 200]


class Stubborn(RequestAction):
    """Somebody's own action, which does not care that the sandbox closes."""

    async def play(self, exchange: object) -> web.StreamResponse:
        """Wait for nothing."""
        await asyncio.Event().wait()
        raise AssertionError


async def test_an_action_that_does_not_end_is_ended() -> None:
    """Closing cancels what is left, whether its client still waits or has gone."""
    faults = Faults().on("credit", do=Stubborn())
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(api.get(CREDIT), 1)
        waiting = asyncio.create_task(api.get(CREDIT))
        await asyncio.sleep(1)
        before = now()
        await sandbox.aclose()
        assert now() - before < 3
        with pytest.raises(aiohttp.ClientError):
            await waiting
