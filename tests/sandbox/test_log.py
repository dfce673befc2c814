"""The log: what its lines say, and what they must not."""

import asyncio
import logging
import re

import aiohttp
import pytest

from midapi_async.sandbox import (
    CalledBack,
    Faults,
    Sandbox,
    acknowledge_first,
    bad_task_id,
    change_urls,
    cut,
    garbage,
    hang,
    lose_answer,
)
from tests.sandbox.world import (
    CREDIT,
    DOWNLOAD_URL,
    FOX,
    GENERATE,
    RECORD_INFO,
    UPSCALE,
    Endpoint,
    api_of,
    until,
)

KEY = "a-key-that-nobody-may-see"
TOKEN = "mjt_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"


class Lines(list[str]):
    """Takes the lines of a log, and checks what is true of each."""

    def __call__(self, line: str) -> None:
        assert re.match(r"\d\d:\d\d:\d\d ", line)
        assert line.isprintable()
        assert KEY not in line
        assert TOKEN not in line
        self.append(line[9:])


async def test_a_task_from_its_submit_to_its_files(endpoint: Endpoint) -> None:
    """Each request, the task and its callbacks have a line, which names the task."""
    lines = Lines()
    faults = Faults().on("callback", do=acknowledge_first())
    async with Sandbox(log=lines, faults=faults) as sandbox, api_of(sandbox, KEY) as api:
        task_id = await api.submit(callBackUrl=f"{endpoint.url}?t={TOKEN}#x")
        await until(lambda: len(sandbox.ledger.callbacks) == 1)
        await api.look(task_id)
        await asyncio.sleep(100)
        await until(lambda: len(sandbox.ledger.callbacks) == 2)
        await api.download((await api.urls(task_id))[0])
        upscaled = await api.submit(UPSCALE, taskId=task_id, imageIndex=0)
        sandbox.fail(upscaled, message="no\nscale")
        await api.get(CREDIT)
    place = endpoint.url.removeprefix("http://").removesuffix("/callback")
    lines[:] = [re.sub(r"after \d+ s", "after N s", line) for line in lines]
    assert sorted(lines[:3]) == [
        f"POST {GENERATE} 200 {task_id}",
        f"acknowledgement {task_id} 200 {place}",
        f'task {task_id} accepted: mj_txt2img, 8 credits, "a red fox"',
    ]
    assert lines[3:] == [
        f"GET {RECORD_INFO} 200 {task_id}",
        f"task {task_id} succeeded after N s",
        f"callback {task_id} 200 {place}",
        f"GET {RECORD_INFO} 200 {task_id}",
        f"GET /m/{task_id}_0_0.jpeg 200",
        f"task {upscaled} accepted: generateUpscale, 3 credits",
        f"POST {UPSCALE} 200 {upscaled}",
        f"task {upscaled} failed after N s, code 500: no\\nscale",
        f"GET {CREDIT} 200",
    ]


@pytest.mark.fault("D12")
async def test_unprintable_text_is_escaped() -> None:
    """A prompt, a path and a task id with escapes, newlines and right-to-left marks; long ones."""
    lines = Lines()
    nasty = "a\x1b[31m\n\u202e<b>"
    faults = Faults().on("submit", nth=2, do=bad_task_id("newline"))
    faults.on("submit", nth=3, do=bad_task_id("huge"))
    async with Sandbox(log=lines, faults=faults) as sandbox, api_of(sandbox) as api:
        await api.submit(prompt=nasty + "w" * 1000)
        await api.submit()
        await api.submit()
        await api.get(RECORD_INFO, taskId=nasty)
        await api.get("/a%1B%0Ab")
        await api.get("/" + "a/" * 2000)
    escaped = r"a\x1b[31m\n\u202e<b>"
    assert lines[0].endswith(f'"{escaped}{"w" * 28}…"')
    assert lines[3] == f"POST {GENERATE} 200 a\\nb"
    assert lines[6] == f"GET {RECORD_INFO} 200 {escaped}, code 422: recordInfo is null"
    assert lines[7] == r"GET /a\x1b\nb 404"
    assert max(map(len, lines)) < 500


@pytest.mark.fault("I5")
@pytest.mark.parametrize(
    ("url", "place"),
    [
        (f"http://127.0.0.1:9/cb/{TOKEN}", "127.0.0.1:9"),
        (f"http://{TOKEN}:x@127.0.0.1:9/", "127.0.0.1:9"),
        (f"http://127.0.0.1:9?{TOKEN}", "127.0.0.1:9"),
        (f"http://[1/{TOKEN}", "an unreadable URL"),
        (f"http://[::1]:9/{TOKEN}", "[::1]:9"),
    ],
)
def test_only_the_host_of_a_callback_url_is_logged(url: str, place: str) -> None:
    """Its path, its query and its user may hold a token."""
    lines = Lines()
    sandbox = Sandbox(log=lines)
    sandbox._book.call_back(CalledBack("t", url, "final", 2, 0.0, None, "ClientError"))
    assert lines == [f"callback t no answer {place}, attempt 2: ClientError"]


@pytest.mark.fault("I5")
async def test_no_key_and_no_token_in_any_line() -> None:
    """Also if the key was refused, or a callback was sent here by mistake."""
    lines = Lines()
    async with Sandbox(log=lines, api_key="other") as sandbox, api_of(sandbox, KEY) as api:
        assert (await api.get(CREDIT, key=KEY))["code"] == 401
        assert (await api.post(f"/midapi/{TOKEN}", FOX))["code"] == 404
        assert (await api.post(DOWNLOAD_URL, {"url": KEY}))["code"] == 401
    assert lines == [
        f"GET {CREDIT} 200, code 401: You do not have access permissions",
        "POST /midapi/… 404",
        f"POST {DOWNLOAD_URL} 200, code 401: You do not have access permissions",
    ]


async def test_answers_changed_by_a_fault_are_logged() -> None:
    """A request whose answer was lost has a line too; garbage is no code."""
    lines = Lines()
    faults = Faults().on("submit", do=lose_answer()).on("look", nth=1, do=cut(10))
    faults.on("look", nth=2, do=garbage("deep")).on("look", nth=3, do=garbage("array"))
    faults.on("credit", do=hang()).on("callback", do=change_urls("http://x"))
    async with Sandbox(log=lines, faults=faults) as sandbox, api_of(sandbox) as api:
        waiting = asyncio.ensure_future(api.get(CREDIT))
        for path in (GENERATE, *[f"{RECORD_INFO}?taskId=x"] * 3):
            method = "POST" if path == GENERATE else "GET"
            try:
                async with api.session.request(method, path, json=FOX) as answer:
                    await answer.read()
            except aiohttp.ClientError:
                continue
        await sandbox.aclose()
        with pytest.raises(aiohttp.ClientError):
            await waiting
    assert lines[1:] == [
        f"POST {GENERATE} broken off",
        f"GET {RECORD_INFO} broken off x",
        *[f"GET {RECORD_INFO} 200 x"] * 2,
        f"GET {CREDIT} broken off",
    ]


async def test_a_log_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Its exception is logged once, and changes no answer."""
    calls = []

    def fail(line: str) -> None:
        calls.append(line)
        raise OSError("disk full")

    async with Sandbox(log=fail) as sandbox, api_of(sandbox) as api:
        await api.submit()
        assert (await api.get(CREDIT))["code"] == 200
    assert len(calls) == 1
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
