import asyncio
import base64
import hashlib
import hmac
import json
import time
from typing import Any

import aiohttp
import pytest

from midapi_async.sandbox import (
    CallbackAction,
    Faults,
    Sandbox,
    acknowledge_first,
    change_urls,
    duplicate,
    early,
    fail_callback,
    fail_task,
    late,
    like_record,
    lose_answer,
    never_call_back,
    old_timestamp,
    redirect,
    wrong_signature,
)
from midapi_async.sandbox._callbacks import as_it_is, sign
from tests.sandbox.world import CREDIT, EXTEND, FOX, GENERATE, VIDEO, Api, Endpoint, api_of, until


def test_the_signature_of_the_wire_document() -> None:
    """The published test vector."""
    signature = sign("test-webhook-key", "9f47c52047dda21bb3df0488736cce57", "1760557532")
    assert signature == "2xxmyCg67WXJLWSPTYo9hzyTaOawZ9NnLXY684Tj+u4="


async def test_a_success(sandbox: Sandbox, api: Api, endpoint: Endpoint) -> None:
    """promptJson and plain URLs, the same as in the record; not signed without a key."""
    task_id = await api.submit(callBackUrl=endpoint.url)
    await until(lambda: bool(endpoint.received))
    record = await api.look(task_id)
    assert endpoint.bodies[0] == {
        "code": 200,
        "msg": "success",
        "data": {
            "taskId": task_id,
            "promptJson": record["paramJson"],
            "resultUrls": await api.urls(task_id),
        },
    }
    headers = endpoint.received[0][0]
    assert headers["Content-Type"].startswith("application/json")
    assert headers["Connection"] == "close"
    assert not [name for name in headers if name.startswith("X-Webhook")]
    (entry,) = sandbox.ledger.callbacks
    assert (task_id, endpoint.url, "final", 1, 200, None) == (
        *(entry.task_id, entry.url, entry.kind),
        *(entry.attempt, entry.status, entry.error),
    )


async def test_a_failure(sandbox: Sandbox, api: Api, endpoint: Endpoint) -> None:
    """A failure is code 500 with no URLs, for a video with its own text."""
    for fields, text in ((FOX, "Image generation failed"), (VIDEO, "Video generation failed")):
        sandbox.fail(await api.submit(**fields, callBackUrl=endpoint.url))
        await until(lambda: bool(endpoint.received))
        body = endpoint.received.pop()[1]
        assert (500, text, []) == (body["code"], body["msg"], body["data"]["resultUrls"])


async def test_a_video_extension_looks_like_its_record(
    sandbox: Sandbox, api: Api, endpoint: Endpoint
) -> None:
    """resultInfoJson and successFlag, and an errorCode that is a string."""
    parent = await api.submit(**VIDEO)
    sandbox.finish(parent)
    fields = {"taskType": "mj_video_extend_auto", "index": 0, "callBackUrl": endpoint.url}
    good = await api.submit(EXTEND, taskId=parent, **fields)
    bad = await api.submit(EXTEND, taskId=parent, **fields)
    sandbox.finish(good)
    await until(lambda: len(endpoint.received) == 1)
    sandbox.fail(bad, code=501)
    await until(lambda: len(endpoint.received) == 2)
    assert endpoint.bodies[0]["data"] == {**await api.look(good), "errorCode": ""}
    assert endpoint.bodies[1]["data"] == {**await api.look(bad), "errorCode": "501"}
    assert endpoint.bodies[1]["code"] == 500


async def test_it_is_sent_again_until_it_is_taken(
    sandbox: Sandbox, api: Api, endpoint: Endpoint
) -> None:
    """After 1, 5 and 15 minutes, and no more once the answer was 200."""
    endpoint.answers.extend([503, 204, 200])
    await api.submit(callBackUrl=endpoint.url, prompt="x [[sandbox: seconds=1]]")
    await asyncio.sleep(3 * 3600)
    entries = sandbox.ledger.callbacks
    assert [(e.attempt, e.status) for e in entries] == [(1, 503), (2, 204), (3, 200)]
    assert pytest.approx([e.at for e in entries]) == [1, 61, 361]


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/hook?token=a%2Fb%7e&x=1+2&empty=&y", "/hook?token=a%2Fb%7e&x=1+2&empty=&y"),
        ("/a/../b//%41?next=https://e.org/?a=[1]&b={}|^`", None),
        ("/h?%zz&=&a;b='\"<>\\", None),
        ("?only=1", "/?only=1"),
        ("/h?x=1#fragment", "/h?x=1"),
        ("/fö?狐=a b\r\nX: y", "/f%C3%B6?%E7%8B%90=a%20b%0D%0AX:%20y"),
    ],
)
async def test_its_url_is_sent_unchanged(
    sandbox: Sandbox, api: Api, target: str, sent: str | None
) -> None:
    """Letter by letter, since an endpoint may compare it; only blanks and the like are escaped."""
    lines: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        task_id = await api.submit(callBackUrl=f"http://127.0.0.1:{port}{target}")
        assert await sandbox.call_back(task_id) == 200
    assert lines == [f"POST {sent or target} HTTP/1.1\r\n".encode()]


@pytest.mark.parametrize(
    ("url", "encoded"),
    [
        ("http://füchse.example/h", "http://xn--fchse-kva.example/h"),
        ("https://user:p%40w@h:8443/?q=%7e", "https://user:p%40w@h:8443/?q=%7e"),
        ("HTTP://[::1]:8080/", "http://[::1]:8080/"),
    ],
)
def test_its_host_is_written_as_the_network_needs_it(url: str, encoded: str) -> None:
    """Names beyond ASCII are looked up in their other spelling."""
    assert str(as_it_is(url)) == encoded


async def test_a_redirect_is_not_followed(sandbox: Sandbox, api: Api) -> None:
    """It is an answer like any other that is not 200; nothing is sent to where it points."""
    sandbox.faults.on("credit", do=redirect(307, "/elsewhere"))
    task_id = await api.submit(callBackUrl=f"{sandbox.url}{CREDIT}")
    assert await sandbox.call_back(task_id) == 307
    assert sandbox.ledger.count("other") == 0


@pytest.mark.parametrize("scale", [1.0, 60.0])
async def test_it_gives_up_after_three_retries(scale: float, endpoint: Endpoint) -> None:
    """Four tries in all; the scale divides the pauses."""
    endpoint.answers.extend([500] * 9)
    async with Sandbox(time_scale=scale) as sandbox, api_of(sandbox) as api:
        await api.submit(callBackUrl=endpoint.url, prompt="x [[sandbox: seconds=1]]")
        await asyncio.sleep(3 * 3600 / scale)
        assert pytest.approx([e.at for e in sandbox.ledger.callbacks]) == [1, 61, 361, 1261]


async def test_nobody_there(sandbox: Sandbox, api: Api) -> None:
    """A refused connection is written down, harms nobody, and is tried again."""
    await api.submit(callBackUrl="http://127.0.0.1:9/callback")
    await asyncio.sleep(7200)
    entries = sandbox.ledger.callbacks
    assert [(e.status, e.error) for e in entries] == [(None, "ClientConnectorError")] * 4


async def test_an_endpoint_that_does_not_answer(
    sandbox: Sandbox, api: Api, endpoint: Endpoint
) -> None:
    """15 seconds are all that it gets; meanwhile the server serves."""

    async def slow() -> int:
        await asyncio.sleep(20)
        return 200

    endpoint.answers.append(slow)
    await api.submit(callBackUrl=endpoint.url, prompt="x [[sandbox: seconds=1]]")
    await until(lambda: bool(endpoint.received))
    await api.submit()
    await until(lambda: bool(sandbox.ledger.callbacks))
    (entry,) = sandbox.ledger.callbacks
    assert (entry.status, entry.error) == (None, "TimeoutError")
    assert pytest.approx(entry.at) == 16
    await asyncio.sleep(20)


async def test_callbacks_do_not_wait_for_each_other(
    sandbox: Sandbox, api: Api, endpoint: Endpoint
) -> None:
    """However many endpoints are silent, the next callback goes out at once."""

    async def slow() -> int:
        await asyncio.sleep(14)
        return 200

    endpoint.answers.extend([slow] * 120)
    task_id = await api.submit(callBackUrl=endpoint.url)
    silent = []
    # Not all at once: the endpoint's queue of connections is short.
    for count in (60, 120):
        silent.append(asyncio.create_task(sandbox.call_back(task_id, duplicate(60))))
        await until(lambda count=count: len(endpoint.received) == count)  # type: ignore[misc]
    before = asyncio.get_running_loop().time()
    assert await sandbox.call_back(task_id) == 200
    assert asyncio.get_running_loop().time() - before < 1
    assert await asyncio.gather(*silent) == [200, 200]


def verified(headers: dict[str, str], task_id: str) -> bool:
    """Say whether somebody who has the key would believe the headers."""
    text = f"{task_id}.{headers['X-Webhook-Timestamp']}".encode()
    digest = hmac.new(b"the key", text, hashlib.sha256).digest()
    return headers["X-Webhook-Signature"] == base64.b64encode(digest).decode()


async def test_it_is_signed(endpoint: Endpoint) -> None:
    """With a key: the signature fits the task, and the time is the real one."""
    async with Sandbox(webhook_key="the key", time_scale=60) as sandbox, api_of(sandbox) as api:
        task_id = await api.submit(callBackUrl=endpoint.url)
        await until(lambda: bool(endpoint.received))
        await until(lambda: bool(sandbox.ledger.callbacks))
    headers = endpoint.received[0][0]
    assert verified(headers, task_id)
    assert time.time() == pytest.approx(int(headers["X-Webhook-Timestamp"]), abs=30)


async def sent_with(
    endpoint: Endpoint, *actions: CallbackAction, count: int, fail: bool = False
) -> tuple[str, list[dict[str, Any]]]:
    """Give the task id and the record of a task whose callback was changed by actions."""
    faults = Faults().on("callback", do=actions)
    async with Sandbox(webhook_key="the key", faults=faults) as sandbox, api_of(sandbox) as api:
        task_id = await api.submit(callBackUrl=endpoint.url)
        if fail:
            sandbox.fail(task_id)
        await asyncio.sleep(500)
        assert count == len(endpoint.received)
        return task_id, [await api.look(task_id)]


async def test_an_acknowledgement_first(endpoint: Endpoint) -> None:
    """Only taskId and promptJson, before the real one."""
    task_id, (record,) = await sent_with(endpoint, acknowledge_first(), count=2)
    data = {"taskId": task_id, "promptJson": record["paramJson"]}
    assert endpoint.bodies[0] == {"code": 200, "msg": "success", "data": data}
    assert len(endpoint.bodies[1]["data"]["resultUrls"]) == 4


async def test_an_acknowledgement_that_is_slow_to_be_taken(endpoint: Endpoint) -> None:
    """The real one waits for it: the order holds."""

    async def slow() -> int:
        await asyncio.sleep(10)
        return 200

    endpoint.answers.append(slow)
    faults = Faults().on("callback", do=acknowledge_first())
    async with Sandbox(faults=faults, auto=False) as sandbox, api_of(sandbox) as api:
        sandbox.finish(await api.submit(callBackUrl=endpoint.url))
        await until(lambda: len(sandbox.ledger.callbacks) == 2)
        assert [e.kind for e in sandbox.ledger.callbacks] == ["acknowledgement", "final"]


async def test_duplicates(endpoint: Endpoint) -> None:
    """The same callback so many times at once."""
    await sent_with(endpoint, duplicate(5), count=5)
    assert [endpoint.bodies[0]] * 5 == endpoint.bodies


async def test_a_callback_that_says_failed(endpoint: Endpoint) -> None:
    """The callback lies, the record does not."""
    _, (record,) = await sent_with(endpoint, fail_callback(), count=1)
    assert endpoint.bodies[0]["code"] == 500
    assert record["successFlag"] == 1


async def test_a_callback_like_the_record(endpoint: Endpoint) -> None:
    """Also for images, if a plan says so."""
    _, (record,) = await sent_with(endpoint, like_record(), count=1)
    assert endpoint.bodies[0]["data"] == {**record, "errorCode": ""}


async def test_no_callback(endpoint: Endpoint) -> None:
    """Never is never, acknowledgements included."""
    await sent_with(endpoint, never_call_back(), acknowledge_first(), count=0)


async def test_a_late_callback(endpoint: Endpoint) -> None:
    """So many seconds after the end of the task."""
    faults = Faults().on("callback", do=late(100))
    async with Sandbox(faults=faults, auto=False) as sandbox, api_of(sandbox) as api:
        sandbox.finish(await api.submit(callBackUrl=endpoint.url))
        await asyncio.sleep(99)
        assert not endpoint.received
        await asyncio.sleep(2)
        assert len(endpoint.received) == 1


async def test_a_wrong_signature(endpoint: Endpoint) -> None:
    """The headers are there and do not fit."""
    task_id, _ = await sent_with(endpoint, wrong_signature(), count=1)
    assert not verified(endpoint.received[0][0], task_id)


@pytest.mark.parametrize("age", [3600.0, -3600.0])
async def test_another_time(endpoint: Endpoint, age: float) -> None:
    """The signature fits a timestamp that is old, or still to come."""
    task_id, _ = await sent_with(endpoint, old_timestamp(age), count=1)
    headers = endpoint.received[0][0]
    assert verified(headers, task_id)
    assert time.time() - age == pytest.approx(int(headers["X-Webhook-Timestamp"]), abs=30)


@pytest.mark.parametrize("shape", [(), (like_record(),)])
async def test_changed_urls(endpoint: Endpoint, shape: tuple[CallbackAction, ...]) -> None:
    """The signature fits, the URLs are somebody else's."""
    task_id, _ = await sent_with(endpoint, change_urls("https://evil.example/a"), *shape, count=1)
    assert verified(endpoint.received[0][0], task_id)
    assert "https://evil.example/a" in json.dumps(endpoint.bodies[0])
    assert f"/m/{task_id}" not in json.dumps(endpoint.bodies[0])


async def test_before_the_submit_is_answered(endpoint: Endpoint) -> None:
    """The callback was taken, and the record is final, when the answer comes."""
    seen: list[str] = []

    async def take() -> int:
        seen.append("callback")
        return 200

    endpoint.answers.append(take)
    faults = Faults().on("callback", do=early())
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        task_id = await api.submit(callBackUrl=endpoint.url)
        seen.append("answer")
        assert (await api.look(task_id))["successFlag"] == 1
        await api.submit()
    assert seen == ["callback", "answer"]
    assert task_id == endpoint.bodies[0]["data"]["taskId"]


async def test_the_answer_is_lost_and_the_callback_comes(endpoint: Endpoint) -> None:
    """A submit whose answer is lost still runs and still calls back, failed or not."""
    faults = Faults().on("submit", do=lose_answer()).on("task", nth=2, do=fail_task("x", flag=2))
    async with Sandbox(faults=faults.on("callback", nth=2, do=early())) as sandbox:
        async with api_of(sandbox) as api:
            for _ in range(2):
                with pytest.raises(aiohttp.ServerDisconnectedError):
                    await api.post(GENERATE, {**FOX, "callBackUrl": endpoint.url})
            await until(lambda: len(endpoint.received) == 2)
        assert [body["code"] for body in endpoint.bodies] == [500, 200]
        ids = {entry.task_id for entry in sandbox.ledger.accepted}
        assert ids == {body["data"]["taskId"] for body in endpoint.bodies}


async def test_only_what_would_call_back_is_counted(endpoint: Endpoint) -> None:
    """nth counts callbacks: tasks without a URL have none."""
    faults = Faults().on("callback", nth=2, do=never_call_back())
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        for url in ("", endpoint.url, "", endpoint.url, endpoint.url):
            await api.submit(callBackUrl=url)
        await asyncio.sleep(500)
    assert len(endpoint.received) == 2


async def test_call_back_by_hand(sandbox: Sandbox, api: Api, endpoint: Endpoint) -> None:
    """It is sent now, with changes, and the answer's status is given."""
    task_id = await api.submit(callBackUrl=endpoint.url)
    endpoint.answers.append(202)
    assert await sandbox.call_back(task_id) == 202
    assert list(endpoint.bodies[0]["data"]) == ["taskId", "promptJson"]
    assert await sandbox.call_back(task_id, fail_callback()) == 200
    assert endpoint.bodies[1]["code"] == 500
    await until(lambda: len(endpoint.received) == 3)
    assert await sandbox.call_back(task_id, duplicate(2), acknowledge_first()) == 200
    assert len(endpoint.received) == 6
    counts = [len(body["data"].get("resultUrls", "-")) for body in endpoint.bodies]
    assert counts == [1, 0, 4, 1, 4, 4]


async def test_call_back_by_hand_elsewhere(sandbox: Sandbox, api: Api, endpoint: Endpoint) -> None:
    """A task without a callBackUrl needs a URL; one where nobody is gives None."""
    task_id = await api.submit()
    with pytest.raises(ValueError, match="callBackUrl"):
        await sandbox.call_back(task_id)
    assert await sandbox.call_back(task_id, url=endpoint.url) == 200
    assert await sandbox.call_back(task_id, url="http://127.0.0.1:9/") is None
    assert await sandbox.call_back(task_id, url="nonsense") is None
    with pytest.raises(KeyError):
        await sandbox.call_back("nobody")


async def test_a_callback_that_cannot_be_written(
    sandbox: Sandbox, api: Api, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake in a plan is logged, and neither server nor task suffers."""
    sandbox.faults.on("callback", nth=1, do=change_urls(object()))  # type: ignore[arg-type]  # the mistake
    for _ in range(2):
        sandbox.finish(await api.submit(callBackUrl=endpoint.url))
    await until(lambda: bool(endpoint.received))
    assert "a callback could not be sent" in caplog.text
    assert len(endpoint.received) == 1


async def test_closing_ends_what_is_being_sent(endpoint: Endpoint) -> None:
    """Neither a callback under way nor one that waits for its retry outlives the sandbox."""
    never = asyncio.Event()

    async def hang() -> int:
        await never.wait()
        return 200

    endpoint.answers.extend([500, hang])
    async with Sandbox(auto=False) as sandbox, api_of(sandbox) as api:
        first, second = [await api.submit(callBackUrl=endpoint.url) for _ in range(2)]
        sandbox.finish(first)
        await until(lambda: bool(sandbox.ledger.callbacks))
        sandbox.finish(second)
        await until(lambda: len(endpoint.received) == 2)
        before = asyncio.get_running_loop().time()
    never.set()
    assert asyncio.get_running_loop().time() - before < 5
    await asyncio.sleep(7200)
    assert len(endpoint.received) == 2
