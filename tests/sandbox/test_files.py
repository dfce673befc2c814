import asyncio
import io

import pytest
from PIL import Image

from midapi_async.sandbox import Sandbox
from tests.sandbox.world import DOWNLOAD_URL, VIDEO, Api

DAY = 86_400


async def fox(sandbox: Sandbox, api: Api, **fields: object) -> list[str]:
    """Give the URLs of a finished task."""
    task_id = await api.submit(**fields)
    sandbox.finish(task_id)
    return await api.urls(task_id)


async def test_four_jpegs_without_a_key(sandbox: Sandbox, api: Api) -> None:
    """Results are pictures that can be told apart, of the aspect ratio, and need no key."""
    urls = await fox(sandbox, api, aspectRatio="16:9")
    bodies = [(await api.download(url))[1] for url in urls]
    assert len(set(bodies)) == 4
    for body in bodies:
        assert body.startswith(b"\xff\xd8")
        assert body.endswith(b"\xff\xd9")
        with Image.open(io.BytesIO(body)) as image:
            assert (image.format, image.size) == ("JPEG", (512, 288))
    assert [a.with_key for a in sandbox.ledger.requests if a.operation == "file"] == [False] * 4


async def test_the_same_file_twice(sandbox: Sandbox, api: Api) -> None:
    """A file does not change between two downloads, even when it was drawn anew."""
    url = (await fox(sandbox, api))[0]
    first = await api.download(url)
    for other in range(17):
        for filler in await fox(sandbox, api, prompt=f"filler {other}"):
            await api.download(filler)
        await asyncio.sleep(1)
    assert await api.download(url) == (200, first[1])


async def test_a_video_is_an_mp4(sandbox: Sandbox, api: Api) -> None:
    """The videos of a batch are served as such."""
    urls = await fox(sandbox, api, **VIDEO, videoBatchSize=2)
    assert [url.endswith(f"_0_{n}.mp4") for n, url in enumerate(urls)] == [True, True]
    async with api.session.get(urls[1]) as response:
        assert response.content_type == "video/mp4"
        assert (await response.read())[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("header", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=100-", 206, slice(100, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=10-999999", 206, slice(10, None)),
        ("bytes=999999-", 416, slice(0)),
        ("bytes=9-1", 416, slice(0)),
        ("lines=1-2", 416, slice(0)),
    ],
)
async def test_ranges(sandbox: Sandbox, api: Api, header: str, status: int, part: slice) -> None:
    """A range is answered with its bytes and its place, one that is not there with 416."""
    url = (await fox(sandbox, api))[0]
    whole = (await api.download(url))[1]
    async with api.session.get(url, headers={"Range": header}) as response:
        assert status == response.status
        body = await response.read()
        assert whole[part] == body
        start = range(len(whole))[part][:1]
        place = f"{start[0]}-{start[0] + len(body) - 1}" if body else "*"
        assert response.headers["Content-Range"] == f"bytes {place}/{len(whole)}"


async def test_a_range_of_another_version(sandbox: Sandbox, api: Api) -> None:
    """If-Range with this ETag gives the part, with another the whole file."""
    url = (await fox(sandbox, api))[0]
    async with api.session.get(url) as response:
        tag = response.headers["ETag"]
    for given, status in ((tag, 206), ('"another"', 200)):
        headers = {"Range": "bytes=5-", "If-Range": given}
        async with api.session.get(url, headers=headers) as response:
            assert status == response.status


async def test_head(sandbox: Sandbox, api: Api) -> None:
    """HEAD tells the length and sends nothing."""
    url = (await fox(sandbox, api))[0]
    whole = (await api.download(url))[1]
    async with api.session.head(url) as response:
        assert (200, str(len(whole))) == (response.status, response.headers["Content-Length"])
        assert await response.read() == b""


async def test_results_last_fifteen_days(sandbox: Sandbox, api: Api) -> None:
    """Then the file is 404, in JSON, and the record still stands."""
    url = (await fox(sandbox, api))[0]
    await asyncio.sleep(15 * DAY - 1)
    assert (await api.download(url))[0] == 200
    await asyncio.sleep(2)
    status, body = await api.download(url)
    assert (status, body[:11]) == (404, b'{"code":404')
    assert (await api.post(DOWNLOAD_URL, {"url": url}))["code"] == 422


async def test_files_that_never_were(sandbox: Sandbox, api: Api) -> None:
    """Of a task that runs, that failed, or is not known; other numbers; other endings."""
    running, failed = await api.submit(), await api.submit()
    sandbox.fail(failed)
    good = (await fox(sandbox, api))[0].partition("/m/")[2]
    names = [
        *(f"{running}_0_0.jpeg", f"{failed}_0_0.jpeg", f"{'0' * 32}_0_0.jpeg"),
        *(good.replace("_0_0", "_0_4"), good.replace("_0_0", "_0_00"), good.replace("jpeg", "mp4")),
        *("x", "..%2Fx", "%00"),
    ]
    for name in names:
        assert (await api.download(f"{sandbox.url}/m/{name}"))[0] == 404, name


async def test_a_download_link_lasts_twenty_minutes(sandbox: Sandbox, api: Api) -> None:
    """It is a string, needs no key, gives the same file, and then 403."""
    url = (await fox(sandbox, api))[2]
    link = (await api.post(DOWNLOAD_URL, {"url": url}))["data"]
    assert isinstance(link, str)
    assert url != link
    assert await api.download(url) == await api.download(link)
    await asyncio.sleep(20 * 60 - 2)
    assert (await api.download(link))[0] == 200
    await asyncio.sleep(3)
    assert (await api.download(link))[0] == 403
    assert (await api.download(url))[0] == 200
    assert (await api.download(f"{sandbox.url}/d/made-up/x.jpeg"))[0] == 403


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, 400),
        ({"url": ""}, 400),
        ({"url": 5}, 400),
        ({"url": "https://example.org/a.jpeg"}, 422),
        ({"url": "https://example.org/m/SAME"}, 422),
        ({"url": "x"}, 422),
    ],
)
async def test_links_only_for_what_was_generated(
    sandbox: Sandbox, api: Api, body: dict[str, object], code: int
) -> None:
    """A foreign URL is 422, also one with the name of a file of ours."""
    name = (await fox(sandbox, api))[0].rpartition("/")[2]
    sent = {
        key: str(v).replace("SAME", name) if isinstance(v, str) else v for key, v in body.items()
    }
    assert code == (await api.post(DOWNLOAD_URL, sent))["code"]


async def test_the_oldest_links_go_first(
    sandbox: Sandbox, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are bounded in number."""
    monkeypatch.setattr("midapi_async.sandbox._files._LINKS_KEPT", 2)
    url = (await fox(sandbox, api))[0]
    links = [(await api.post(DOWNLOAD_URL, {"url": url}))["data"] for _ in range(3)]
    assert [(await api.download(link))[0] for link in links] == [403, 200, 200]
