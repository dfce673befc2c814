"""What the faults put in the place of a true answer."""

import json
from typing import Any

import aiohttp
import pytest

from midapi_async.sandbox import (
    BAD_TASK_IDS,
    GARBAGE,
    VARIANTS,
    Faults,
    RequestAction,
    Sandbox,
    answer_code,
    answer_status,
    bad_task_id,
    fail_task,
    garbage,
    no_credits_as_500,
    redirect,
    rewrite,
    variant,
)
from tests.sandbox.world import CREDIT, FOX, GENERATE, RECORD_INFO, Api, api_of, raw_get, talk

CODES = (400, 401, 402, 404, 422, 429, 433, 455, 500, 501, 505, 999)


async def test_each_code_inside_http_200(sandbox: Sandbox, api: Api) -> None:
    """HTTP says 200, the envelope says the code, and nothing was accepted."""
    for code in CODES:
        sandbox.faults.clear()
        sandbox.faults.on("submit", do=answer_code(code))
        async with api.session.post(GENERATE, json=FOX) as response:
            assert response.status == 200
            envelope = await response.json()
        assert (code, None) == (envelope["code"], envelope["data"])
        assert envelope["msg"]
    assert sandbox.ledger.accepted == ()


async def test_each_code_as_the_http_status(sandbox: Sandbox, api: Api) -> None:
    """The same number twice; a text and a Retry-After of one's own, whatever they say."""
    statuses = (400, 401, 402, 404, 408, 422, 429, 433, 455, 500, 502, 503, 504, 505)
    for status in statuses:
        sandbox.faults.clear()
        action = answer_status(status, "busy", retry_after="soon", accepted=True)
        sandbox.faults.on("submit", do=action)
        async with api.session.post(GENERATE, json=FOX) as response:
            assert (status, "soon") == (response.status, response.headers["Retry-After"])
            assert await response.json() == {"code": status, "msg": "busy", "data": None}
        assert status == sandbox.ledger.requests[-1].status
    assert len(statuses) == len(sandbox.ledger.accepted)


async def test_somebody_elses_page() -> None:
    """An HTML page with a status, as a proxy sends it, and no Retry-After unless asked."""
    faults = Faults().on("look", do=answer_status(407, page=True))
    async with (
        Sandbox(faults=faults) as sandbox,
        api_of(sandbox) as api,
        api.session.get(RECORD_INFO) as response,
    ):
        assert (response.status, response.content_type) == (407, "text/html")
        assert "Retry-After" not in response.headers


async def test_no_credits_as_500() -> None:
    """The code is 500, the text is that of 402."""
    faults = Faults().on("submit", do=no_credits_as_500())
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        envelope = await api.post(GENERATE, FOX)
    assert envelope["code"] == 500
    assert envelope["msg"].startswith("Credits insufficient")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects(status: int) -> None:
    """To a place of one's choice; followed to the same place, a 307 is accepted twice."""
    faults = Faults().on("submit", nth=1, do=redirect(status, "http://elsewhere.invalid/"))
    faults.on("submit", nth=2, do=redirect(status, accepted=True))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        async with api.session.post(GENERATE, json=FOX, allow_redirects=False) as response:
            assert status == response.status
            assert response.headers["Location"] == "http://elsewhere.invalid/"
        async with api.session.post(GENERATE, json=FOX) as response:
            # aiohttp makes a GET of a 301 and a 302, which the service does not know.
            assert response.status == (200 if status > 302 else 405)
        assert len(sandbox.ledger.accepted) == (2 if status > 302 else 1)


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in GARBAGE if kind != "huge"])
async def test_garbage(kind: str, accepted: bool) -> None:
    """A 200 that is no envelope to be trusted, of a request that was handled, or was not."""
    faults = Faults().on("submit", do=garbage(kind, accepted=accepted))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        async with api.session.post(GENERATE, json=FOX) as response:
            assert response.status == 200
            data = await response.read()
            check = GARBAGE_CHECKS[kind]
            assert check(data), data[:100]
            assert response.content_type == ("text/html" if kind == "html" else "application/json")
        assert accepted == bool(sandbox.ledger.accepted)


def fails(data: bytes) -> bool:
    """Say whether a plain reader chokes on it."""
    try:
        json.loads(data.decode())
    except (ValueError, RecursionError):
        return True
    return False


GARBAGE_CHECKS: dict[str, Any] = {
    "html": lambda data: b"<form" in data,
    "empty": lambda data: data == b"",
    "truncated": lambda data: data.startswith(b'{"code":200') and fails(data),
    "deep": fails,
    "duplicate_keys": lambda data: data.count(b'"code":') == 3,
    "nan": lambda data: b"NaN" in data,
    "utf16": lambda data: fails(data) and json.loads(data.decode("utf-16"))["code"] == 200,
    "not_utf8": fails,
    "array": lambda data: isinstance(json.loads(data), list),
    "number": lambda data: json.loads(data) == 200,
}


async def test_a_huge_answer() -> None:
    """Megabytes where a line was expected."""
    faults = Faults().on("look", do=garbage("huge"))
    async with (
        Sandbox(faults=faults) as sandbox,
        api_of(sandbox) as api,
        api.session.get(RECORD_INFO) as response,
    ):
        assert len(await response.read()) > 4_000_000


async def test_a_garbage_status_line() -> None:
    """The first line is no HTTP."""
    faults = Faults().on("look", do=garbage("status_line"))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        assert (await talk(sandbox, raw_get(RECORD_INFO))).startswith(b"HTP/one.1")
        with pytest.raises(aiohttp.ClientResponseError):
            await api.get(RECORD_INFO)


async def seen_with(
    action: RequestAction, *, end: str = "finish"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the true envelope of a look and the one that the action makes of it."""
    faults = Faults().on("look", nth=2, do=action).on("task", nth=1, do=fail_task("m", code="7"))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        task_id = await api.submit(prompt="x [[sandbox: seconds=0]]" if end == "fail" else "x")
        if end == "finish":
            sandbox.finish(task_id)
        true = await api.get(RECORD_INFO, taskId=task_id)
        return true, await api.get(RECORD_INFO, taskId=task_id)


def urls_of(true: dict[str, Any]) -> list[str]:
    """Give the plain URLs of a true envelope."""
    return [item["resultUrl"] for item in true["data"]["resultInfoJson"]["resultUrls"]]


DATA_VARIANTS: dict[str, Any] = {
    "flag_null": lambda true: {"successFlag": None},
    "new_flag": lambda true: {"successFlag": 7},
    "new_task_type": lambda true: {"taskType": "mj_something_new"},
    "result_info_null": lambda true: {"resultInfoJson": None},
    "result_info_as_string": lambda true: {
        "resultInfoJson": json.dumps(true["data"]["resultInfoJson"])
    },
    "urls_as_strings": lambda true: {"resultInfoJson": {"resultUrls": urls_of(true)}},
    "urls_as_url_objects": lambda true: {
        "resultInfoJson": {"resultUrls": [{"url": url} for url in urls_of(true)]}
    },
    "urls_under_data": lambda true: {"resultInfoJson": None, "resultUrls": urls_of(true)},
    "no_urls": lambda true: {"resultInfoJson": {"resultUrls": []}},
    "error_code_int": lambda true: {"errorCode": 0},
    "error_code_string": lambda true: {"errorCode": "0"},
    "error_code_null": lambda true: {},
    "complete_time_set": lambda true: {},
    "another_task": lambda true: {"taskId": "0" * 32},
}


@pytest.mark.parametrize("name", DATA_VARIANTS)
async def test_variants_of_a_success(name: str) -> None:
    """Exactly what the name says differs from the true answer."""
    true, seen = await seen_with(variant(name))
    assert seen == {**true, "data": {**true["data"], **DATA_VARIANTS[name](true)}}


async def test_variants_of_the_whole_envelope() -> None:
    """Codes as strings, data null, data as a JSON text, a flag or an id of another name."""
    true, seen = await seen_with(variant("codes_as_strings"))
    assert (seen["code"], seen["data"]["successFlag"]) == ("200", "1")
    true, seen = await seen_with(variant("data_null"))
    assert seen == {**true, "data": None}
    true, seen = await seen_with(variant("data_as_string"))
    assert true["data"] == json.loads(seen["data"])
    true, seen = await seen_with(variant("flag_missing"))
    assert set(true["data"]) - set(seen["data"]) == {"successFlag"}
    true, seen = await seen_with(variant("snake_case_id"))
    assert true["data"]["taskId"] == seen["data"]["task_id"]
    assert "taskId" not in seen["data"]


async def test_variants_of_a_running_task() -> None:
    """completeTime is set though nothing is complete; what concerns results changes nothing."""
    true, seen = await seen_with(variant("complete_time_set"), end="")
    assert true["data"]["createTime"] == seen["data"]["completeTime"]
    assert seen["data"]["successFlag"] == 0
    true, seen = await seen_with(variant("urls_as_strings"), end="")
    assert true == seen


@pytest.mark.parametrize(
    ("name", "code"), [("error_code_int", 7), ("error_code_string", "7"), ("error_code_null", None)]
)
async def test_variants_of_a_failure(name: str, code: object) -> None:
    """errorCode as a number, a text, or null."""
    faults = Faults().on("look", do=variant(name)).on("task", do=fail_task("m", code=7))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        task_id = await api.submit(prompt="x [[sandbox: seconds=0]]")
        record = await api.look(task_id)
    assert (code, "m") == (record["errorCode"], record["errorMessage"])


async def test_a_variant_leaves_a_refusal_alone(sandbox: Sandbox, api: Api) -> None:
    """Only true successes are said in another way; a balance has no fields to change."""
    expected: dict[str, dict[str, object]] = {
        "data_null": {"data": None},
        "data_as_string": {"data": "10000"},
        "codes_as_strings": {"code": "200"},
    }
    for name in VARIANTS:
        sandbox.faults.clear()
        for operation in ("look", "credit"):
            sandbox.faults.on(operation, do=variant(name))
        assert (await api.get(RECORD_INFO, taskId="nobody"))["code"] == 422
        true = {"code": 200, "msg": "success", "data": 10000}
        assert await api.get(CREDIT) == {**true, **expected.get(name, {})}, name


async def test_an_upload_that_says_file_url() -> None:
    """The other page of the upload host's documentation."""
    faults = Faults().on("upload", do=variant("file_url"))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        body = {"fileUrl": "http://e.org/a", "uploadPath": "x"}
        data = (await api.post("/api/file-url-upload", body))["data"]
        assert (await api.download(data["fileUrl"]))[0] == 200
    assert "downloadUrl" not in data


@pytest.mark.parametrize("kind", BAD_TASK_IDS)
async def test_a_task_id_that_is_none(kind: str) -> None:
    """The submit is accepted, the answer is a success, its id is nothing to work with."""
    expected: dict[str, Any] = {
        "null": None,
        "empty": "",
        "number": 12345,
        "list": ["a"],
        "huge": "a" * 10_240,
        "path": "../x",
        "newline": "a\nb",
    }
    faults = Faults().on("submit", do=bad_task_id(kind))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        envelope = await api.post(GENERATE, FOX)
        assert len(sandbox.ledger.accepted) == 1
    assert envelope["code"] == 200
    assert ({} if kind == "missing" else {"taskId": expected[kind]}) == envelope["data"]


async def test_an_edit_of_ones_own(sandbox: Sandbox, api: Api) -> None:
    """What no name says can be written as a function of the envelope."""
    sandbox.faults.on("credit", do=rewrite(lambda envelope: {**envelope, "data": -1}))
    assert (await api.get(CREDIT))["data"] == -1


@pytest.mark.parametrize(("flag", "message"), [(2, "text"), (2, None), (3, "text"), (3, None)])
async def test_a_failed_task(flag: int, message: str | None) -> None:
    """Flag 2 and 3, with a text and without one."""
    faults = Faults().on("task", do=fail_task(message, code=None, flag=flag))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        record = await api.look(await api.submit(prompt="x [[sandbox: seconds=0]]"))
    assert (flag, message, None) == (
        record["successFlag"],
        record["errorMessage"],
        record["errorCode"],
    )
