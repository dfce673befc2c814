import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest

from midapi_async.sandbox import Sandbox, hang, rewrite
from tests.sandbox.world import (
    CREDIT,
    DOWNLOAD_URL,
    FOX,
    GENERATE,
    RECORD_INFO,
    Api,
    api_of,
    raw_get,
    raw_post,
    talk,
)

GUESSED = ("imagine", "upscale", "recordInfo", "status")


@pytest.mark.parametrize("word", GUESSED)
async def test_guessed_paths_stay_404(api: Api, word: str) -> None:
    """What people guess is not there, and says so in JSON."""
    for method in ("GET", "POST"):
        async with api.session.request(method, f"/api/v1/mj/{word}") as response:
            assert response.status == 404
            assert (await response.json())["code"] == 404


async def test_a_wrong_method_is_405_in_json(api: Api) -> None:
    """A 405 is an envelope and names the methods that are allowed."""
    async with api.session.get(GENERATE) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert (await response.json())["code"] == 405


@pytest.mark.parametrize("path", [CREDIT, "/api/v1/chat/credit", RECORD_INFO])
async def test_without_the_key_nothing_is_told(path: str) -> None:
    """Every call of the API needs the key; the refusal is HTTP 200 with code 401."""
    wrong = (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic right",
        "right",
        "Bearer wrong",
        "Bearer schlüssel",
    )
    async with Sandbox(api_key="right") as sandbox, aiohttp.ClientSession(sandbox.url) as session:
        for header in wrong:
            headers = {} if header is None else {"Authorization": header}
            async with session.get(path, headers=headers) as response:
                assert response.status == 200
                envelope = await response.json()
            expected = {"code": 401, "msg": "You do not have access permissions", "data": None}
            assert envelope == expected, header


async def test_the_right_key_opens() -> None:
    """The scheme is read in any case, as HTTP has it."""
    async with Sandbox(api_key="right") as sandbox, aiohttp.ClientSession(sandbox.url) as session:
        for header in ("Bearer right", "bearer right"):
            async with session.get(CREDIT, headers={"Authorization": header}) as response:
                assert (await response.json())["code"] == 200


async def test_any_key_opens_the_one_account(sandbox: Sandbox) -> None:
    """Without an api_key every key that is not empty works, on the same credits."""
    async with api_of(sandbox, "one") as one, api_of(sandbox, "two") as two:
        await one.submit()
        assert (await two.get(CREDIT))["data"] == 9992
        await two.submit()
        await two.submit()
    labels = [entry.account for entry in sandbox.ledger.accepted]
    assert labels[0] != labels[1] == labels[2]
    assert not [label for label in labels if label in ("one", "two")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe{}",
        b'{"taskType": "mj_txt2img", "prompt": "x", "weirdness": NaN}',
        b"[" * 200_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
)
async def test_malformed_json_is_code_400(sandbox: Sandbox, api: Api, body: bytes) -> None:
    """Whatever is no JSON object is refused in the envelope, never with an exception."""
    for path in (GENERATE, DOWNLOAD_URL):
        async with api.session.post(path, data=body) as response:
            assert response.status == 200
            assert (await response.json())["code"] == 400
    assert sandbox.ledger.accepted == ()


BODY = json.dumps(FOX).encode()


def raw_with(*lines: str, path: str = GENERATE, body: bytes = BODY) -> bytes:
    """Give the bytes of a POST with these lines among its headers."""
    start, end = raw_post(path, body).split(b"\r\n", 1)
    return b"\r\n".join([start, *(line.encode() for line in lines), end])


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (raw_with("Content-Type: application/json", "Content-Type: text/plain"), "Content-Type"),
        (
            raw_with("Content-Type: a/b", "Content-Type: a/b", path="/api/file-stream-upload"),
            "Content-Type",
        ),
        (raw_with("Host: y"), "Host"),
        (raw_with("X y: z"), "header"),
        (raw_with("X: a\0b"), "header"),
        (raw_with(f"X: {'a' * 9000}"), "8190 bytes"),
        (raw_with("Content-Encoding: gzip"), "headers"),
        (raw_with("Content-Encoding: gzip", path="/api/file-base64-upload"), "headers"),
        (b"nonsense\r\n\r\n", "method"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "HTTP"),
        (b"POST / HTTP/3.0\r\n\r\n", "version"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk"),
    ],
)
async def test_what_is_not_http_gets_an_envelope_and_no_traceback(
    sandbox: Sandbox, sent: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """HTTP 400, code 400 and what is wrong; nothing is accepted, nothing is an error of ours."""
    head, _, body = (await talk(sandbox, sent)).partition(b"\r\n\r\n")
    envelope = json.loads(body)
    status = int(head.split()[1])
    assert (envelope["code"], envelope["data"]) == (400, None)
    assert status in {200, 400}
    assert reason in envelope["msg"]
    assert b"\r\nContent-Type: application/json" in head
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert sandbox.ledger.accepted == ()


async def test_a_body_that_is_too_large_is_413(api: Api) -> None:
    """Declared or not, more than a megabyte of JSON is refused in the envelope."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 300_000

    for data in (io.BytesIO(b" " * 1_048_577), chunks()):
        async with api.session.post(GENERATE, data=data) as response:
            assert response.status == 413
            assert (await response.json())["code"] == 413


async def test_an_unexpected_exception_is_an_envelope_and_logged(
    sandbox: Sandbox, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of the sandbox is code 500 and a log line, never an HTML page."""

    def broken(_: object) -> float:
        raise RuntimeError("oh no")

    monkeypatch.setattr("midapi_async.sandbox._account.Account.wire_balance", broken)
    with caplog.at_level(logging.ERROR):
        async with api.session.get(CREDIT, headers={"Accept": "text/html"}) as response:
            assert response.status == 500
            assert (await response.json())["code"] == 500
    assert "oh no" in caplog.text
    assert sandbox.ledger.requests[-1].status == 500


async def test_a_mistake_in_a_plan_is_an_envelope_and_logged(
    sandbox: Sandbox, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """A predicate or an edit that raises is told, not an HTML page."""
    sandbox.faults.on("look", when=lambda call: call.body["x"] == 1, do=hang())
    sandbox.faults.on("credit", do=rewrite(lambda envelope: {"x": envelope["nothing"]}))
    for path in (RECORD_INFO, CREDIT):
        async with api.session.get(path) as response:
            assert response.status == 500
            assert (await response.json())["code"] == 500
    assert caplog.text.count("KeyError") == 2


async def test_a_prompt_with_any_unicode_comes_back(api: Api) -> None:
    """UTF-8 goes through; a lone surrogate becomes a question mark, as Java writes it."""
    task_id = await api.submit(prompt="füchse 狐 🦊 \x00 \ud800")
    params = json.loads((await api.look(task_id))["paramJson"])
    assert params["prompt"] == "füchse 狐 🦊 \x00 ?"


async def test_answers_are_compact_json(sandbox: Sandbox) -> None:
    """The bytes are those of the recordings: no space behind a colon."""
    answer = await talk(sandbox, raw_get(CREDIT))
    assert answer.endswith(b'\r\n\r\n{"code":200,"msg":"success","data":10000}')
    assert b"\r\nContent-Type: application/json" in answer


async def test_a_client_that_leaves_does_no_harm(sandbox: Sandbox, api: Api) -> None:
    """Half a body and a closed connection: nothing is accepted, the next request works."""
    whole = raw_post(GENERATE, json.dumps(FOX).encode())
    host, _, port = sandbox.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(whole[:-5])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await api.submit()
    assert len(sandbox.ledger.accepted) == 1


PUBLIC = "https://fox.example.org"


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({"Host": "sandbox:8787"}, "http://sandbox:8787"),
        ({"Host": "[::1]:80"}, "http://[::1]:80"),
        ({"Host": "a b"}, None),
        ({"Host": "fox.example.org", "X-Forwarded-Proto": "https"}, PUBLIC),
        ({"X-Forwarded-Host": "fox.example.org", "X-Forwarded-Proto": "HTTPS, http"}, PUBLIC),
        ({"X-Forwarded-Host": "fox.example.org, inner:80"}, "http://fox.example.org"),
        ({"Host": "a:1", "X-Forwarded-Host": "<b>", "X-Forwarded-Proto": "ftp"}, "http://a:1"),
    ],
    ids=str,
)
async def test_urls_begin_where_the_client_believes_to_be(
    sandbox: Sandbox, api: Api, headers: dict[str, str], origin: str | None
) -> None:
    """Results, download links and uploads work behind a tunnel and under a compose service's name.

    An uploaded file is found again when such a URL comes back as a reference.
    """
    api.session.headers.update(headers)
    await check_urls(sandbox, api, origin or sandbox.url)


@pytest.mark.parametrize("url", [PUBLIC, f"{PUBLIC}/sandbox/", "http://[::1]:80"])
async def test_urls_begin_with_files_url(url: str) -> None:
    """It wins over every header; a path stands before that of the file."""
    async with Sandbox(files_url=url) as sandbox, api_of(sandbox) as api:
        api.session.headers["X-Forwarded-Host"] = "other.example.org"
        await check_urls(sandbox, api, url.rstrip("/"))


async def check_urls(sandbox: Sandbox, api: Api, origin: str) -> None:
    """Check that each kind of URL begins with the origin, and leads to a file."""
    data = {"base64Data": "aGk=", "fileName": "a.png", "uploadPath": "x"}
    upload = (await api.post("/api/file-base64-upload", data))["data"]["downloadUrl"]
    task_id = await api.submit(taskType="mj_img2img", fileUrls=[upload])
    sandbox.finish(task_id)
    result = (await api.urls(task_id))[0]
    link = (await api.post(DOWNLOAD_URL, {"url": result}))["data"]
    again = {"fileUrl": upload, "uploadPath": "x"}
    copy = (await api.post("/api/file-url-upload", again))["data"]["downloadUrl"]
    for url, place in ((upload, "/u/"), (result, "/m/"), (link, "/d/"), (copy, "/u/")):
        assert url.startswith(f"{origin}{place}")
        status, content = await api.download(f"{sandbox.url}{url.removeprefix(origin)}")
        assert status == 200
        assert content.startswith(b"hi" if place == "/u/" else b"\xff\xd8")
    # A file of ours that is not there is noticed: the task fails, as it would at MidAPI.
    gone = {"taskType": "mj_img2img", "fileUrls": [f"{origin}/u/none/a.png"]}
    failing = await api.submit(**gone, prompt="[[sandbox: seconds=0]]")
    await asyncio.sleep(1)
    assert (await api.look(failing))["successFlag"] == 3


@pytest.mark.parametrize(
    "url",
    ["", "fox.example.org", "ftp://a", "https://", "https://a:99999", "http://a/?b", "http://u@a"],
)
def test_a_files_url_that_is_none(url: str) -> None:
    """An error at once, which says what it must be."""
    with pytest.raises(ValueError, match="files_url must be an http or https URL"):
        Sandbox(files_url=url)


async def test_refusals_as_http_errors() -> None:
    """With http_errors the status is the code, and the body is the same."""
    statuses = {}
    for http_errors in (False, True):
        async with (
            Sandbox(credits=0, http_errors=http_errors) as sandbox,
            api_of(sandbox) as api,
            api.session.post(GENERATE, json=FOX) as paid,
            api.session.get(RECORD_INFO, params={"taskId": "x"}) as looked,
            api.session.get(CREDIT, headers={"Authorization": ""}) as keyless,
            api.session.get(CREDIT) as good,
        ):
            answers = [
                (each.status, (await each.json())["code"]) for each in (paid, looked, keyless, good)
            ]
            statuses[http_errors] = answers
    codes = [402, 422, 401, 200]
    assert statuses == {
        False: [(200, code) for code in codes],
        True: [(code, code) for code in codes],
    }
