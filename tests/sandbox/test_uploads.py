import asyncio
import base64
import io
import json
from typing import Any

import aiohttp
import pytest

from midapi_async.sandbox import Sandbox, answer_code
from tests.sandbox.world import GENERATE, Api, api_of

STREAM = "/api/file-stream-upload"
BASE64 = "/api/file-base64-upload"
URL = "/api/file-url-upload"
DATA = b"\xff\xd8 not really a picture \xff\xd9"
DAY = 86_400


def form(**fields: str) -> aiohttp.FormData:
    """Give a multipart form with a file in it."""
    data = aiohttp.FormData({"uploadPath": "images", **fields})
    data.add_field("file", io.BytesIO(DATA), filename="fox.jpg", content_type="image/jpeg")
    return data


async def stream(api: Api, data: object) -> dict[str, Any]:
    """Give the answer to a multipart upload."""
    async with api.session.post(STREAM, data=data) as response:
        answer: dict[str, Any] = await response.json()
        return answer


async def test_a_multipart_upload(sandbox: Sandbox, api: Api) -> None:
    """The answer is the documented one and its URL gives the bytes back, without a key."""
    answer = await stream(api, form(uploadPath="images/mine/", fileName="red fox.jpg"))
    assert answer["success"] is True
    assert answer["code"] == 200
    data = answer["data"]
    assert list(data) == [
        *("fileName", "filePath", "downloadUrl"),
        *("fileSize", "mimeType", "uploadedAt"),
    ]
    assert (data["fileName"], data["filePath"]) == ("red_fox.jpg", "images/mine/red_fox.jpg")
    assert (len(DATA), "image/jpeg") == (data["fileSize"], data["mimeType"])
    assert data["downloadUrl"].startswith(f"{sandbox.url}/u/")
    assert await api.download(data["downloadUrl"]) == (200, DATA)


async def test_a_multipart_upload_without_a_name(api: Api) -> None:
    """The file's own name is taken."""
    data = (await stream(api, form()))["data"]
    assert (data["fileName"], data["filePath"]) == ("fox.jpg", "images/fox.jpg")


@pytest.mark.parametrize("data", [{"file": "text"}, {"x": "y"}, b"bytes", None])
async def test_a_multipart_upload_without_a_file(api: Api, data: object) -> None:
    """A form without a file, or no form at all, is code 400 and names the field."""
    answer = await stream(api, data)
    assert (answer["code"], answer["msg"]) == (400, "file parameter is required")


@pytest.mark.parametrize(
    ("prefix", "kind"),
    [("", "image/png"), ("data:image/webp;base64,", "image/webp"), ("data:;base64,", "image/png")],
)
async def test_a_base64_upload(api: Api, prefix: str, kind: str) -> None:
    """Bare base64 or a data URL; the type is the URL's, else the name's."""
    text = prefix + base64.b64encode(DATA).decode()
    body = {"base64Data": text, "fileName": "a.png", "uploadPath": "/x/"}
    data = (await api.post(BASE64, body))["data"]
    assert ("a.png", "x/a.png", kind) == (data["fileName"], data["filePath"], data["mimeType"])
    assert await api.download(data["downloadUrl"]) == (200, DATA)


@pytest.mark.parametrize(
    ("text", "code"),
    [(None, 400), ("", 400), (5, 400), ("not base64!", 400), ("é", 400), ("A" * 14_000_000, 413)],
    ids=["none", "empty", "number", "malformed", "not-ascii", "large"],
)
async def test_a_base64_upload_that_is_none(api: Api, text: object, code: int) -> None:
    """Missing, malformed, or more than 10 MB."""
    body = io.BytesIO(json.dumps({"base64Data": text}).encode())
    async with api.session.post(BASE64, data=body) as response:
        answer = await response.json()
    assert code == answer["code"]
    assert "base64Data" in answer["msg"]


async def test_a_url_upload_copies_our_own_files(sandbox: Sandbox, api: Api) -> None:
    """A result or an upload of this sandbox becomes an upload with the same bytes."""
    task_id = await api.submit()
    sandbox.finish(task_id)
    result = (await api.urls(task_id))[0]
    first = (await api.post(URL, {"fileUrl": result, "uploadPath": "x"}))["data"]
    body = {"fileUrl": first["downloadUrl"], "fileName": "b.jpg", "uploadPath": "x"}
    second = (await api.post(URL, body))["data"]
    assert await api.download(result) == await api.download(second["downloadUrl"])
    assert (second["fileName"], second["mimeType"]) == ("b.jpg", "image/jpeg")


async def test_a_url_upload_fetches_nothing(sandbox: Sandbox, api: Api) -> None:
    """Any other URL becomes a picture of itself: a sandbox needs no network."""
    for url in ("https://example.invalid/a/fox.jpeg", "http://127.0.0.1:9/"):
        data = (await api.post(URL, {"fileUrl": url, "uploadPath": "x"}))["data"]
        status, body = await api.download(data["downloadUrl"])
        assert (status, body[:2]) == (200, b"\xff\xd8")
    assert sandbox.ledger.count("file") == 2


async def test_a_url_upload_that_is_none(sandbox: Sandbox, api: Api) -> None:
    """No URL, or a file of ours that is not there."""
    for url in (None, "", "x", "ftp://a/b", 5):
        answer = await api.post(URL, {"fileUrl": url, "uploadPath": "x"})
        assert (answer["code"], "fileUrl" in answer["msg"]) == (400, True)
    missing = {"fileUrl": f"{sandbox.url}/m/nobody_0_0.jpeg", "uploadPath": "x"}
    assert (await api.post(URL, missing))["msg"] == "fileUrl could not be fetched"


@pytest.mark.parametrize("folder", [None, "", 5])
async def test_an_upload_without_a_folder(sandbox: Sandbox, api: Api, folder: object) -> None:
    """uploadPath is required in all three ways, and nothing is kept."""
    good = {"uploadPath": folder, "base64Data": "aGk=", "fileUrl": "https://example.org/a.png"}
    text = form(uploadPath="")
    answers = [await api.post(BASE64, good), await api.post(URL, good), await stream(api, text)]
    refused = {"success": False, "code": 400, "msg": "uploadPath parameter is required"}
    assert answers == [{**refused, "data": None}] * 3


async def test_every_refused_upload_says_no_success(sandbox: Sandbox, api: Api) -> None:
    """Beside the code, whoever refuses: the service, aiohttp's limits, a fault, a wrong key."""
    sandbox.faults.on("upload", nth=4, do=answer_code(500))
    answers = [
        await api.post(BASE64, []),
        await api.post(URL, {}),
        await stream(api, form(uploadPath="")),
        await stream(api, form()),
    ]
    async with api.session.get(URL) as response:
        answers.append(await response.json())
    async with api_of(sandbox, "") as stranger:
        answers.append(await stranger.post(URL, {}))
    codes = [(answer["success"], answer["code"]) for answer in answers]
    assert codes == [(False, code) for code in (400, 400, 400, 500, 405, 401)]
    assert "success" not in await api.post(GENERATE, {})


async def test_uploads_last_three_days(api: Api) -> None:
    """Then they are 404."""
    url = (await stream(api, form()))["data"]["downloadUrl"]
    await asyncio.sleep(3 * DAY - 1)
    assert (await api.download(url))[0] == 200
    await asyncio.sleep(2)
    assert (await api.download(url))[0] == 404


async def test_the_oldest_uploads_go_first(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory for uploads is bounded, but the newest always stays."""
    monkeypatch.setattr("midapi_async.sandbox._files._UPLOADS_KEPT", 2 * len(DATA) + 1)
    urls = [(await stream(api, form()))["data"]["downloadUrl"] for _ in range(3)]
    assert [(await api.download(url))[0] for url in urls] == [404, 200, 200]
    monkeypatch.setattr("midapi_async.sandbox._files._UPLOADS_KEPT", 1)
    last = (await stream(api, form()))["data"]["downloadUrl"]
    assert [(await api.download(url))[0] for url in (*urls[1:], last)] == [404, 404, 200]


@pytest.mark.parametrize(
    ("name", "safe"),
    [("../../etc/passwd", "_.._etc_passwd"), ("a b\nc", "a_b_c"), ("..", "file"), ("<x>", "_x_")],
)
async def test_names_are_made_safe(api: Api, name: str, safe: str) -> None:
    """A name can be no path, and a page that was uploaded is no page of this origin."""
    body = {"base64Data": "aGk=", "fileName": name, "uploadPath": "x"}
    data = (await api.post(BASE64, body))["data"]
    assert safe == data["fileName"]
    async with api.session.get(data["downloadUrl"]) as response:
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_an_upload_beyond_the_limit(
    api: Api, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    """More than the limit is 413, in JSON."""
    data = aiohttp.FormData()
    data.add_field("file", io.BytesIO(bytes(104_857_601)), filename="big")
    answer = await stream(api, data)
    assert answer["code"] == 413


async def test_a_form_that_is_none(api: Api) -> None:
    """A multipart body that cannot be read is code 400, not an exception."""
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
        headers = {"Content-Type": content_type}
        async with api.session.post(STREAM, data=b"--y\r\nnonsense", headers=headers) as response:
            assert (await response.json())["code"] == 400


async def test_uploads_need_the_key(sandbox: Sandbox) -> None:
    """All three paths are part of the API."""
    async with aiohttp.ClientSession(sandbox.url) as session:
        for path in (STREAM, BASE64, URL):
            async with session.post(path, json={}) as response:
                assert (await response.json())["code"] == 401
