"""Every parameter of every public call: what is wrong is refused before anything is sent."""

import asyncio
import inspect
import io
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import midapi_async
from midapi_async import (
    BatchRequest,
    CallbackReceiver,
    ImageToImage,
    Intent,
    Intents,
    InvalidRequestError,
    KeyConflict,
    MidAPIClient,
    PollPolicy,
    PromptRefusedError,
    RateLimit,
    RetryPolicy,
    SubmissionUnknown,
    TaskDetails,
    TaskHandle,
    TextToImage,
    Timeouts,
    Upscale,
    Vary,
    WaitTimeout,
    request_from_json,
    request_to_json,
    sign_callback,
)
from midapi_async.requests import JSON, REQUESTS
from midapi_async.sandbox import Faults, Sandbox, answer_code, answer_status, lose_answer
from tests.support.secrets import API_KEY
from tests.world import client_of

URL = "https://files.example/a.png"
PNG = b"\x89PNG\r\n\x1a\n"
DETAILS = TaskDetails(task_id="t1")

# Kinds of wrong values.
NO_STR: list[object] = [True, 5, 1.5, b"x", ["x"], {"x": 1}, (), object(), str, DETAILS]
BAD_TEXT: list[object] = [*NO_STR, "", "a\nb", "\ud800"]
NO_NUMBER: list[object] = [True, "5", b"5", [5], {}, float("nan"), object(), DETAILS]
NO_BOOL: list[object] = [None, 0, 1, "true", "false", [], object()]
NO_ID: list[object] = [None, *NO_STR[:-1], "", "../x", "a b", "\ud800", SubmissionUnknown("i1")]
NO_MAPPING: list[object] = [5, "x", b"x", ["x"], [("a", "b")], object()]
NO_URL: list[object] = [*BAD_TEXT, "files.example", "ftp://h/x", "https://"]

# A call with one wrong argument. It may be awaitable.
Call = Callable[[MidAPIClient, Any], object]
# The call, the values to refuse, and the name in the error if it is not the parameter's.
Entry = tuple[Call, list[object]] | tuple[Call, list[object], str]


def settings_with(name: str) -> Call:
    """A new client, with one setting of its own."""
    return lambda _, wrong: MidAPIClient(**{"api_key": "k", name: wrong})


def generate_with(name: str, *, waits: bool = False) -> Call:
    """A prompt, with one argument of its own."""

    def call(client: MidAPIClient, wrong: object) -> object:
        method: Callable[..., object] = client.generate_and_wait if waits else client.generate
        return method("x", **{name: wrong})

    return call


def many_with(name: str) -> Call:
    """A batch, with one argument of its own."""

    def call(client: MidAPIClient, wrong: object) -> object:
        many: Callable[..., object] = client.generate_many
        return many(["x"], **{name: wrong})

    return call


PROMPTS: dict[str, Call] = {
    "generate": lambda c, wrong: c.generate(wrong),
    "generate_and_wait": lambda c, wrong: c.generate_and_wait(wrong),
}
# By call and parameter.
TABLE: dict[str, Entry] = {
    "MidAPIClient.api_key": (settings_with("api_key"), [*BAD_TEXT, "a b"]),
    "MidAPIClient.base_url": (settings_with("base_url"), [*NO_URL[:-6], "x", "https://h?a=b"]),
    "MidAPIClient.upload_url": (settings_with("upload_url"), [*NO_URL[:-6], "x", "https://h?a=b"]),
    "MidAPIClient.uploader": (settings_with("uploader"), [5, "x", [print]]),
    "MidAPIClient.receiver": (settings_with("receiver"), NO_STR),
    "MidAPIClient.journal": (settings_with("journal"), [*NO_STR, "", "redis://h"]),
    "MidAPIClient.namespace": (settings_with("namespace"), [None, *BAD_TEXT]),
    "MidAPIClient.ack": (settings_with("ack"), [None, *BAD_TEXT, "Auto"]),
    "MidAPIClient.retry": (settings_with("retry"), [None, *NO_STR, RetryPolicy]),
    "MidAPIClient.polling": (settings_with("polling"), [None, *NO_STR, PollPolicy]),
    "MidAPIClient.rate_limit": (settings_with("rate_limit"), [*NO_STR, 20]),
    "MidAPIClient.timeouts": (settings_with("timeouts"), [None, *NO_STR, 60, Timeouts]),
    "MidAPIClient.ssl": (settings_with("ssl"), [*NO_STR, False]),
    "MidAPIClient.proxy": (settings_with("proxy"), [each for each in NO_URL if each != ""]),
    "MidAPIClient.time_scale": (settings_with("time_scale"), [*NO_NUMBER, 0, -1]),
    "MidAPIClient.allow_http": (settings_with("allow_http"), NO_BOOL),
    "MidAPIClient.downloads_at_once": (
        settings_with("downloads_at_once"),
        [None, *NO_NUMBER, 0, -1, 1.5],
    ),
    "MidAPIClient.max_file": (settings_with("max_file"), [None, *NO_NUMBER, 0, -1, 1.5]),
    "MidAPIClient.result_hosts": (
        settings_with("result_hosts"),
        ["files.example", 5, [5], [""], ["https://a.example"], ["a:80"], ["*.a"], {"a": 1}],
    ),
    "MidAPIClient.on_event": (settings_with("on_event"), [5, "x", [print]]),
    "observe.on_event": (lambda c, wrong: c.observe(wrong), [None, *NO_STR[:-2], asyncio.sleep]),
    "expected.request": (lambda c, wrong: c.expected(wrong), [None, *NO_STR]),
    "prepare.request": (lambda c, wrong: c.prepare(wrong), [None, *NO_STR]),
    "upload.source": (
        lambda c, wrong: c.upload(wrong),
        [None, *NO_URL, bytearray(), io.StringIO("x"), io.BytesIO(), Path("/"), Path("no\0file")],
    ),
    "upload.name": (
        lambda c, wrong: c.upload(PNG, name=wrong),
        [*BAD_TEXT, " ", "a/b.png", "..", ".png", "a\\b", 'a"b', "x" * 201],
    ),
    "upload.on_progress": (
        lambda c, wrong: c.upload(PNG, on_progress=wrong),
        [5, "x", asyncio.sleep],
    ),
    "generate_many.requests": (
        lambda c, wrong: c.generate_many(wrong),
        [None, 5, "x", b"x", {"x": 1}, object(), str, TextToImage("x"), BatchRequest("x")],
    ),
    "generate_many.batch": (many_with("batch"), [*BAD_TEXT, "x" * 101]),
    "generate_many.running": (many_with("running"), [None, *NO_NUMBER, 0, -1, 1.5]),
    "generate_many.on_unknown": (many_with("on_unknown"), [None, *BAD_TEXT, "Report"]),
    "generate_many.stop_after_failures": (
        many_with("stop_after_failures"),
        [*NO_NUMBER, 0, -1, 1.5],
    ),
    "generate_many.max_credits": (many_with("max_credits"), [*NO_NUMBER, 0, -1]),
    "generate_many.download_to": (many_with("download_to"), NO_STR),
    "generate_many.retry_failed": (many_with("retry_failed"), NO_BOOL),
    "generate_many.on_progress": (many_with("on_progress"), [5, "x", [print], asyncio.sleep]),
    "find.key": (lambda c, wrong: c.find(wrong), [None, *BAD_TEXT, "x" * 201]),
    "task.task_id": (lambda c, wrong: c.task(wrong), NO_ID),
    "details.task_id": (lambda c, wrong: c.details(wrong), NO_ID),
    "details.max_age": (lambda c, wrong: c.details("t1", wrong), [None, -1, *NO_NUMBER]),
    "download.details": (
        lambda c, wrong: c.download(wrong),
        [None, *NO_STR[:-1], "t1", [URL], DETAILS, WaitTimeout("t1")],
    ),
    "download.folder": (
        lambda c, wrong: c.download(TaskDetails(task_id="t1", urls=(URL,)), wrong),
        [None, *NO_STR],
    ),
    "download.name": (
        lambda c, wrong: c.download(TaskDetails(task_id="t1", urls=(URL, URL)), name=wrong),
        [None, *NO_STR, "", "{task_id}{ext}", "{index}", "a/{index}{ext}", "{x}{index}{ext}"],
    ),
    "download.overwrite": (
        lambda c, wrong: c.download(TaskDetails(task_id="t1", urls=(URL,)), overwrite=wrong),
        NO_BOOL,
    ),
    "download.sidecar": (
        lambda c, wrong: c.download(TaskDetails(task_id="t1", urls=(URL,)), sidecar=wrong),
        NO_BOOL,
    ),
    "download.on_progress": (
        lambda c, wrong: c.download(TaskDetails(task_id="t1", urls=(URL,)), on_progress=wrong),
        [5, "x", asyncio.sleep],
    ),
    "open_result.url": (lambda c, wrong: c.open_result(wrong), [None, *NO_URL]),
    "download_url.url": (lambda c, wrong: c.download_url(wrong), [None, *NO_URL]),
    "wait.timeout": (lambda c, wrong: c.task("t1").wait(wrong), NO_NUMBER),
    "get.intent_id": (lambda c, wrong: c.intents.get(wrong), [None, *NO_STR]),
    "rows.states": (
        lambda c, wrong: c.intents.rows(states=wrong),
        [None, 5, "unknown", ["unknown"], [None], object()],
    ),
    "rows.metadata": (lambda c, wrong: c.intents.rows(metadata=wrong), NO_MAPPING),
    "rows.since": (lambda c, wrong: c.intents.rows(since=wrong), NO_NUMBER),
    "settle.intent_id": (lambda c, wrong: c.intents.settle(wrong), [None, *BAD_TEXT]),
    "settle.timeout": (lambda c, wrong: c.intents.settle("i1", wrong), NO_NUMBER),
    "adopt.intent_id": (lambda c, wrong: c.intents.adopt(wrong, "t1"), [None, *BAD_TEXT]),
    "adopt.task_id": (lambda c, wrong: c.intents.adopt("i1", wrong), NO_ID),
    "adopt.force": (lambda c, wrong: c.intents.adopt("i1", "t1", force=wrong), NO_BOOL),
    "resubmit.intent_id": (lambda c, wrong: c.intents.resubmit(wrong), [None, *BAD_TEXT]),
    "dismiss.intent_id": (lambda c, wrong: c.intents.dismiss(wrong), [None, *BAD_TEXT]),
    "CallbackReceiver.public_url": (lambda _, wrong: CallbackReceiver(wrong), [None, *NO_URL]),
    "CallbackReceiver.host": (
        lambda _, wrong: CallbackReceiver("https://h", host=wrong),
        [None, *BAD_TEXT],
    ),
    "CallbackReceiver.port": (
        lambda _, wrong: CallbackReceiver("https://h", port=wrong),
        [True, "80", 1.5, -1, 65536, 10**5000, [80]],
    ),
    "CallbackReceiver.webhook_key": (
        lambda _, wrong: CallbackReceiver("https://h", webhook_key=wrong),
        [True, 5, b"x", {}, [], [5], "", "a\nb", ["k", None]],
    ),
    "sign_callback.webhook_key": (lambda _, wrong: sign_callback(wrong, "t1"), [None, *BAD_TEXT]),
    "sign_callback.task_id": (lambda _, wrong: sign_callback("k", wrong), [None, *BAD_TEXT]),
    "sign_callback.timestamp": (
        lambda _, wrong: sign_callback("k", "t1", wrong),
        [True, 1.5, "5", -1, 10**12, 10**5000, []],
    ),
    "request_from_json.body": (
        lambda _, wrong: request_from_json(wrong),
        [None, 5, "x", b"{}", ["x"], object()],
    ),
    "request_from_json.kind": (
        lambda _, wrong: request_from_json({"prompt": "x"}, wrong),
        ["TextToImage", 5, [], {}, str, TextToImage("x")],
    ),
    "request_to_json.request": (
        lambda _, wrong: request_to_json(wrong),
        [None, 5, "x", {"prompt": "x"}, TextToImage, object()],
    ),
    "request_to_json.as_sent": (
        lambda _, wrong: request_to_json(TextToImage("x"), as_sent=wrong),
        NO_BOOL,
    ),
    "RateLimit.count": (lambda _, wrong: RateLimit(wrong), [None, 1.5, 0, *NO_NUMBER]),
}
TABLE |= {
    f"{name}.prompt": (
        call,
        [None, *NO_STR, TextToImage, [TextToImage("x")], {"prompt": "x"}],
        "request",
    )
    for name, call in PROMPTS.items()
}
for _waits, _call in ((False, "generate"), (True, "generate_and_wait")):
    _timeout = "wait_timeout" if _waits else "timeout"
    TABLE |= {
        f"{_call}.key": (generate_with("key", waits=_waits), [*BAD_TEXT, "x" * 201]),
        f"{_call}.metadata": (
            generate_with("metadata", waits=_waits),
            [*NO_MAPPING, {"a": 5}, {5: "a"}, {"a": "\ud800"}, {"a": "x" * 5000}],
        ),
        f"{_call}.callback_url": (generate_with("callback_url", waits=_waits), NO_URL),
        f"{_call}.{_timeout}": (generate_with(_timeout, waits=_waits), NO_NUMBER),
        f"{_call}.fields": (generate_with("nonsense", waits=_waits), [None, 5], "nonsense"),
    }
# Not here: arguments of callbacks, which come from outside; those of a request and of the policies
# are in tests/test_requests.py and tests/test_config.py.
ELSEWHERE = {"handle.token", "handle.headers", "handle.body", "attach.inbox", "detach.inbox"} | {
    "callback_url.token"
}
POLICIES = (Timeouts, RetryPolicy, PollPolicy, RateLimit)


async def refusal(call: Call, client: MidAPIClient, wrong: object) -> InvalidRequestError | None:
    """How a call refuses a value; None if it takes it."""
    try:
        result = call(client, wrong)
        if isinstance(result, Awaitable):
            await result
    except InvalidRequestError as error:
        return error
    return None


@pytest.mark.parametrize("place", TABLE)
async def test_a_wrong_argument_is_refused_by_name_and_nothing_is_sent(place: str) -> None:
    """One short line that names the parameter, whatever the value; no request leaves."""
    call, values, *other = TABLE[place]
    name = str(other[0]) if other else place.rpartition(".")[2]
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        for number, wrong in enumerate(values):
            error = await refusal(call, client, wrong)
            assert error is not None, f"{place} took value {number}: {wrong!r:.100}"
            assert list(error.problems) == [name], f"value {number}: {error}"
            assert str(error).isprintable()
            assert len(str(error)) < 300
        assert sandbox.ledger.requests == ()
        assert await client.intents.unknown() == []


def test_the_table_has_each_parameter() -> None:
    """Of all that users call; a parameter that is added later is tested like the others."""
    calls: dict[str, Callable[..., object]] = {
        "MidAPIClient": MidAPIClient,
        "CallbackReceiver": CallbackReceiver,
        "request_from_json": request_from_json,
        "request_to_json": request_to_json,
        "sign_callback": sign_callback,
    }
    for owner in (MidAPIClient, Intents, TaskHandle, CallbackReceiver):
        calls |= {
            name: found
            for name, found in vars(owner).items()
            if inspect.isfunction(found) and not name.startswith("_")
        }
    found = {
        f"{name}.{parameter.name}"
        for name, call in calls.items()
        for parameter in inspect.signature(call).parameters.values()
        if parameter.name not in {"self", "misnamed"}
    }
    assert found - ELSEWHERE - set(TABLE) == set()
    assert {place.partition(".")[0] for place in TABLE} - {"RateLimit"} <= set(calls)


def test_each_public_name_is_a_call_of_the_table_or_no_call() -> None:
    """Requests, policies, errors and values have tests of their own."""
    others = {*REQUESTS, *POLICIES, Intents, TaskHandle, MidAPIClient, CallbackReceiver}
    functions = {
        name
        for name in midapi_async.__all__
        if inspect.isfunction(found := getattr(midapi_async, name)) and found not in others
    }
    assert functions == {"request_from_json", "request_to_json", "sign_callback"}


# ─── what is taken for what is meant ─────────────────────────────────────────────────────────────


async def test_the_prompt_can_be_a_keyword_argument() -> None:
    """With the other fields beside it; `request` is understood, too."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        await client.generate(prompt="a fox", speed="turbo")
        await client.generate_and_wait(prompt="an owl", aspect_ratio="1:1")
        call: Callable[..., Awaitable[object]] = client.generate
        await call(request=TextToImage("a whale"))
        bodies = [entry.body for entry in sandbox.ledger.accepted]
        assert [body["prompt"] for body in bodies] == ["a fox", "an owl", "a whale"]
        assert bodies[0]["speed"] == "turbo"
        assert bodies[1]["aspectRatio"] == "1:1"


@pytest.mark.parametrize(
    ("arguments", "fields", "problem"),
    [
        (("x",), {"extra": {"a": b"x"}}, "extra: contains a bytes, which is not JSON"),
        (("x",), {"speed": "Fast"}, "speed: must be one of 'relaxed', 'fast', 'turbo'"),
        (("x",), {"wait_timeout": 5}, "wait_timeout: is not a field of TextToImage; did you mean "),
        (("x",), {"aspectratio": "1:1"}, "did you mean aspect_ratio?"),
        (("x",), {"aspect-ratio": "1:1"}, "did you mean aspect_ratio?"),
        (("x",), {"ar": "1:1"}, "did you mean aspect_ratio?"),
        (("x",), {"meta": {}}, "did you mean metadata?"),
        (("x",), {"callBackUrl": URL}, "did you mean callback_url?"),
        (("x",), {"image_urls": [URL]}, "image_urls: is not a field of TextToImage; it has prompt"),
        ((TextToImage("x"),), {"speed": "fast"}, "must be given inside TextToImage(…)"),
        ((TextToImage("x"),), {"wait_timeout": 5}, "wait_timeout: is unknown; did you mean timeou"),
        ((b"x",), {}, "got bytes; decode it"),
        ((["x", "y"],), {}, "got list; each request needs a call of its own"),
        (({"prompt": "x"},), {}, "got dict; make a request of it with request_from_json()"),
        ((TextToImage,), {}, "got type; call it with its fields"),
        ((), {}, "got None"),
        ((), {"speed": "fast"}, "got None"),
        ((), {"promt": "x"}, "got None"),
    ],
)
async def test_an_error_names_what_was_meant(
    arguments: tuple[object, ...], fields: Mapping[str, object], problem: str
) -> None:
    """The right name, or what to do with such a value; nothing is sent."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        call: Callable[..., Awaitable[object]] = client.generate
        with pytest.raises(InvalidRequestError) as caught:
            await call(*arguments, **fields)
        assert problem in str(caught.value)
        assert sandbox.ledger.requests == ()


async def test_a_timeout_has_one_name_in_each_call() -> None:
    """The error names the right argument; a type checker also reports it."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        wait: Callable[..., Awaitable[object]] = client.generate_and_wait
        with pytest.raises(InvalidRequestError, match=r"timeout: .* did you mean wait_timeout"):
            await wait("x", timeout=5)
        with pytest.raises(InvalidRequestError, match=r"wait_timeout: .* are called timeout="):
            await client.task("t1").wait(wait_timeout=5)  # type: ignore[arg-type]  # what is tested
        with pytest.raises(InvalidRequestError, match=r"wait_timeout: .* are called timeout="):
            await client.intents.settle("i1", wait_timeout=5)  # type: ignore[arg-type]  # tested
        assert sandbox.ledger.requests == ()


async def test_details_or_a_handle_stand_for_their_task() -> None:
    """Where a task id is asked for; and a handle for its details, once they are known."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        handle = await client.generate("a fox")
        with pytest.raises(InvalidRequestError, match="details: must be what a handle or"):
            await client.download(handle)
        details = await handle
        assert client.task(handle).task_id == client.task(details).task_id == details.task_id
        assert await client.details(handle) == await client.details(details) == details
        assert (await client.generate(Upscale(handle, 0))).request == Upscale(details, 0)
        assert sandbox.ledger.accepted[-1].body["taskId"] == details.task_id


async def test_an_error_or_an_intent_stands_for_its_intent_id() -> None:
    """As they come from `generate` and ``intents.unknown()``."""
    faults = Faults().on("submit", first=3, do=lose_answer())
    async with Sandbox(api_key=API_KEY, faults=faults) as sandbox:
        async with client_of(sandbox.url) as client:
            errors = []
            for prompt in ("a fox", "an owl", "a whale"):
                with pytest.raises(SubmissionUnknown) as caught:
                    await client.generate(prompt)
                errors.append(caught.value)
            task = client.task(sandbox.ledger.accepted[0].task_id or "")
            adopted = await client.intents.adopt(errors[0], task)
            assert adopted.intent_id == errors[0].intent_id
            assert (await client.intents.settle(errors[0], 5)).task_id == task.task_id
            second, third = await client.intents.unknown()
            await client.intents.dismiss(second)
            await client.intents.resubmit(third)
            assert await client.intents.unknown() == []


async def test_an_expired_timeout_sends_nothing() -> None:
    """A timeout that has passed already; what a key has bought is returned all the same."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        for seconds in (0, -1, -1.5):
            for key in (None, "k"):
                with pytest.raises(WaitTimeout) as caught:
                    await client.generate("x", key=key, timeout=seconds)
                assert (caught.value.task_id, caught.value.intent_id) == (None, None)
                with pytest.raises(WaitTimeout):
                    await client.generate_and_wait("x", key=key, wait_timeout=seconds)
        assert sandbox.ledger.requests == ()
        bought = await client.generate("x", key="k")
        assert (await client.generate("x", key="k", timeout=0)).task_id == bought.task_id


async def test_a_handle_is_an_awaitable_but_not_a_coroutine() -> None:
    """As the README says: gather and wait_for take it, create_task takes its wait."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        first, second = await client.generate("a fox"), await client.generate("an owl")
        with pytest.raises(TypeError):
            await asyncio.create_task(first)  # type: ignore[arg-type]  # what is tested
        found = await asyncio.create_task(first.wait())
        assert list(await asyncio.gather(first, second)) == [found, await second]


# ─── extra ───────────────────────────────────────────────────────────────────────────────────────


async def test_extra_is_sent_and_belongs_to_the_key(tmp_path: Any) -> None:
    """Over a socket, as it is; the key holds for the same extra only, also in another client."""
    extra: dict[str, JSON] = {
        "aspectRatio": "16:9",
        "styleRaw": True,
        "new": {"a": [1, None, "狐"]},
    }
    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path) as client:
            handle = await client.generate("a fox", extra=extra, aspect_ratio="1:1", key="k")
            body = sandbox.ledger.accepted[0].body
            assert {**body, **extra} == dict(body)
        async with client_of(sandbox.url, journal=tmp_path) as client:
            (again,) = await client.resume()
            assert again.request == TextToImage("a fox", extra=extra, aspect_ratio="1:1")
            same = await client.generate(again.request, key="k")
            assert (same.task_id, same.replayed) == (handle.task_id, True)
            with pytest.raises(KeyConflict):
                await client.generate("a fox", aspect_ratio="1:1", key="k")
        assert len(sandbox.ledger.accepted) == 1


@pytest.mark.parametrize(
    "extra",
    [
        {"aspectRatio": "21:9"},
        {"taskType": "mj_new"},
        {"taskType": ["mj_txt2img"]},
        {"prompt": 5},
        {"speed": {"a": 1}},
        {"version": [7]},
        {"fileUrls": "x"},
    ],
)
async def test_a_refused_value_costs_nothing(extra: dict[str, Any]) -> None:
    """The sandbox knows only what is documented; it says so, and the key is free again."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        with pytest.raises(midapi_async.APIError) as caught:
            await client.generate("a fox", extra=extra, key="k")
        assert next(iter(extra)) in caught.value.message
        assert sandbox.ledger.accepted == ()
        await client.generate("a fox", key="k")


# ─── prompts ─────────────────────────────────────────────────────────────────────────────────────

POLICY = "Your prompt was flagged by Website as violating content policies"


@pytest.mark.fault("S8")
@pytest.mark.parametrize("fault", [answer_code(400, POLICY), answer_status(400, msg=POLICY)])
async def test_a_refused_prompt_has_an_error_of_its_own(fault: Any) -> None:
    """Nothing was bought; its key may be used again, for another prompt."""
    faults = Faults().on("submit", first=1, do=fault)
    async with Sandbox(api_key=API_KEY, faults=faults) as sandbox:
        async with client_of(sandbox.url) as client:
            with pytest.raises(PromptRefusedError, match="flagged") as caught:
                await client.generate_and_wait("something bad", key="k")
            assert (caught.value.code, caught.value.key) == (400, "k")
            assert caught.value.task_id is None
            assert sandbox.ledger.accepted == ()
            assert await client.intents.unknown() == []
            await client.generate("a fox", key="k")


async def test_a_prompt_for_several_jobs_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By each client; not for other prompts, and not where nothing is bought."""
    caplog.set_level(logging.WARNING, "midapi_async")

    def warnings() -> int:
        return sum("several jobs" in record.getMessage() for record in caplog.records)

    async with Sandbox(api_key=API_KEY) as sandbox:
        for expected in (1, 2):
            async with client_of(sandbox.url) as client:
                await client.generate("a fox {no list}")
                await client.generate("a fox", key="k")
                assert warnings() == expected - 1
                await client.generate("a {red, blue} fox", key="of both")
                await client.generate("a fox --repeat 4")
                assert warnings() == expected


async def test_a_replayed_key_does_not_warn(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is bought then."""
    async with Sandbox(api_key=API_KEY) as sandbox:
        for _ in range(2):
            async with client_of(sandbox.url, journal=tmp_path) as client:
                await client.generate("a {red, blue} fox", key="k")
    assert sum("several jobs" in record.getMessage() for record in caplog.records) == 1


# ─── types ───────────────────────────────────────────────────────────────────────────────────────


async def refused_by_type_checkers(
    client: MidAPIClient, details: TaskDetails, intent: Intent, error: SubmissionUnknown
) -> None:
    """Never run. Mypy, with --strict, reports each ignore below that is not needed."""
    await client.generate(b"x")  # type: ignore[call-overload]
    await client.generate("x", wait_timeout=5)  # type: ignore[call-overload]
    await client.generate("x", aspectratio="1:1")  # type: ignore[call-overload]
    await client.generate(TextToImage("x"), speed="fast")  # type: ignore[call-overload]
    await client.generate("x", extra={"a": object()})  # type: ignore[dict-item]
    await client.generate("x", extra={5: 1})  # type: ignore[dict-item]
    await client.generate_and_wait("x", timeout=5)  # type: ignore[call-overload]
    await client.intents.dismiss(details)  # type: ignore[arg-type]
    client.task(intent)  # type: ignore[arg-type]  # it may have no task
    ImageToImage("x", URL)  # type: ignore[arg-type]
    ImageToImage("x", {URL})  # type: ignore[arg-type]
    Upscale(5, 0)  # type: ignore[arg-type]
    # and what they take
    await client.generate(prompt="x", extra={"a": [1, {"b": None}]})
    await client.generate_and_wait(prompt="x", wait_timeout=5)
    await client.intents.adopt(intent, details)
    await client.intents.settle(error, timeout=5)
    await client.download(client.task(details))
    ImageToImage("x", [URL])
    ImageToImage("x", (URL,))
    Vary(details, 0)
