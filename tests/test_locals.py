"""Tracebacks that are rendered with local variables show no key and no token (L15).

`tests/conftest.py` looks at every error that a test expects, and at every error in the log. Here
are the ways of an error that a test suite does not go by itself, and the tools that render one.
"""

import asyncio
import json
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from rich.traceback import Traceback

from midapi_async import (
    CallbackReceiver,
    InvalidRequestError,
    JournalError,
    MemoryJournal,
    MidAPIClient,
    MidAPIError,
    SubmissionUnknown,
    sign_callback,
)
from midapi_async._runtime.secret import clear_locals
from midapi_async._wire import protocol
from midapi_async._wire.tokens import new_token
from midapi_async.journal import Intent
from tests.callbacks.test_receiver import callback, signed
from tests.support.scripted import (
    Play,
    Received,
    ScriptedServer,
    Step,
    drip,
    hang,
    lose_answer,
    reply,
)
from tests.support.secrets import API_KEY, WEBHOOK_KEY, found_in, found_in_locals
from tests.world import TASK, accepted, client_of, ok, record


def rendered(error: BaseException) -> dict[str, str]:
    """An error as tools show it that render local variables, with all its causes."""
    chain = [error]
    for each in chain:  # grows meanwhile; also causes that Python itself would not print
        chain += [other for other in (each.__cause__, each.__context__) if other is not None]
    plain: list[str] = []
    rich: list[str] = []
    for each in chain:
        kind, frames = type(each), each.__traceback__
        plain += traceback.TracebackException.from_exception(each, capture_locals=True).format()
        # What rich would draw, without the lines of code around it: to colour them takes 0.3 s.
        for stack in Traceback.from_exception(kind, each, frames, show_locals=True).trace.stacks:
            rich += [stack.exc_value, *stack.notes]
            for frame in stack.frames:
                rich += [f"{name} = {node}" for name, node in (frame.locals or {}).items()]
    return {"traceback": "".join(plain), "rich": "\n".join(rich)}


def assert_nothing_shows(error: BaseException | None) -> None:
    """Fail if a tool would show a secret."""
    if error is None:
        return
    for tool, text in rendered(error).items():
        assert not found_in(text), f"{tool} shows {found_in(text)}"
    assert not found_in_locals(error)


async def caught(work: Awaitable[object]) -> BaseException | None:
    """The error that something raises, if any; this function has no secret."""
    try:
        await work
    except BaseException as error:  # noqa: BLE001 - also a cancellation
        return error
    return None


PARAMS = json.dumps({"prompt": "a fox", "callBackUrl": f"https://me.example/{new_token()}"})
LEAKY = record(paramJson=PARAMS)
# Answers to a look or a POST that contain our callback URL, and that cannot be what was asked for.
ANSWERS: dict[str, Play] = {
    "another task's record": ok(record("beef" * 8, paramJson=PARAMS)),
    "a wrong task id": ok({**LEAKY, "taskId": 5}),
    "a wrong flag": ok({**LEAKY, "successFlag": {"a": PARAMS}}),
    "wrong files": ok({**LEAKY, "resultInfoJson": PARAMS + "x"}),
    "an error with the record": reply(json={"code": 500, "msg": "no", "data": LEAKY}),
    "a page": reply(502, body=PARAMS.encode()),
    "a wrong code": reply(json={"code": PARAMS, "msg": PARAMS, "data": LEAKY}),
    "no JSON": reply(body=PARAMS.encode() + b"}"),
    "two values": reply(body=PARAMS.encode() * 2),
    "a list": reply(json=[LEAKY]),
    "our key": reply(401, body=f"Bearer {API_KEY} is wrong".encode()),
    "nothing": lose_answer(),
}


@pytest.mark.fault("L15")
@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_answer_that_cannot_be_used(answer: str) -> None:
    """Neither the answer nor the headers of the request are in a variable of the traceback."""
    async with ScriptedServer(then=ANSWERS[answer]) as server:
        receiver = CallbackReceiver(None, port=0)
        async with client_of(server, receiver=receiver) as client:
            for work in (
                client.details(TASK),
                client.credits(),
                client.task(TASK).wait(600),
                client.generate("a red fox", key="fox", timeout=100),
            ):
                error = await caught(work)
                assert isinstance(error, MidAPIError | None)
                assert_nothing_shows(error)
            for row in await client.intents.unknown():
                assert_nothing_shows(await caught(client.intents.adopt(row.intent_id, TASK)))


@pytest.mark.fault("L15")
@pytest.mark.parametrize("how", ["no answer", "half an answer", "no connection"])
@pytest.mark.parametrize("wanted", ["credits", "look", "submit"])
async def test_a_call_that_is_cancelled_or_times_out(how: str, wanted: str) -> None:
    """A user's own timeout goes through aiohttp's functions, which have the headers."""
    half = drip(ok(LEAKY), piece=500, interval=1000)
    step: Step = half if how == "half an answer" else hang()
    async with ScriptedServer(then=step) as server:
        url = server.url if how != "no connection" else "http://127.0.0.1:9"
        async with client_of(url, receiver=CallbackReceiver(None, port=0)) as client:
            works: dict[str, Callable[[], Awaitable[object]]] = {
                "credits": client.credits,
                "look": lambda: client.details(TASK),
                "submit": lambda: client.generate("a red fox"),
            }
            work = works[wanted]

            async def call() -> None:
                async with asyncio.timeout(1):
                    await work()

            assert_nothing_shows(await caught(call()))
            task = asyncio.ensure_future(work())
            await asyncio.sleep(0.5)
            task.cancel()
            assert_nothing_shows(await caught(task))
        await asyncio.sleep(0)


@pytest.mark.fault("L15")
@pytest.mark.parametrize(
    "make",
    [
        lambda: MidAPIClient(API_KEY, base_url="ftp://x"),
        lambda: MidAPIClient(f"{API_KEY} x"),
        lambda: MidAPIClient(API_KEY, ack="never"),  # type: ignore[arg-type]  # what is tested
        lambda: MidAPIClient(API_KEY, proxy="x"),
        lambda: CallbackReceiver("x", webhook_key=WEBHOOK_KEY),
        lambda: CallbackReceiver("x", webhook_key=[WEBHOOK_KEY, "\n"]),
        lambda: CallbackReceiver("https://me.example", webhook_key=(WEBHOOK_KEY, "")),
        lambda: sign_callback(WEBHOOK_KEY, ""),
    ],
)
def test_wrong_arguments_beside_a_key(make: Callable[[], object]) -> None:
    """The error is about another argument, and the key is among the variables."""
    with pytest.raises(InvalidRequestError) as raised:
        make()
    frames = raised.value.__traceback__
    assert frames is not None
    # The functions of this test know the key themselves.
    assert frames.tb_next is not None
    assert_nothing_shows(raised.value.with_traceback(frames.tb_next.tb_next))


@pytest.mark.fault("L15")
def test_wrong_keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read by us, so no function of the user has them."""
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", "https://me.example")
    monkeypatch.setenv("MIDAPI_WEBHOOK_KEY", f"{WEBHOOK_KEY}\n\nx")
    monkeypatch.setenv("MIDAPI_API_KEY", f"{API_KEY} x")
    for make in (MidAPIClient, CallbackReceiver.from_env):
        with pytest.raises(InvalidRequestError) as raised:
            make()
        assert_nothing_shows(raised.value)


class Broken(MemoryJournal):
    """A journal that fails when it is asked for a token."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def find(self, **names: object) -> Intent | None:
        if "token_hash" in names:
            raise self.error
        return await super().find(**names)  # type: ignore[arg-type]


class Locals(logging.Handler):
    """Keeps the errors of log records, as a handler of an error tracker does."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.errors.append(record.exc_info[1])


@pytest.mark.fault("L15")
@pytest.mark.parametrize("kind", [JournalError, ZeroDivisionError])
@pytest.mark.parametrize("way", ["handle", "aiohttp", "asgi"])
async def test_a_callback_that_cannot_be_handled(
    kind: type[Exception], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The token is in the path, and the body repeats our callback URL."""
    caplog.set_level(logging.CRITICAL + 1)
    log, handler = logging.getLogger("midapi_async.callbacks"), Locals()
    log.addHandler(handler)
    token = new_token()
    body = callback(promptJson=PARAMS)
    receiver = CallbackReceiver(None, port=0, webhook_key=WEBHOOK_KEY)
    try:
        async with (
            ScriptedServer() as server,
            client_of(server, receiver=receiver, journal=Broken(kind("down"))),
        ):
            if way == "handle":
                handling = receiver.handle(str(token), signed(), body)
                if kind is JournalError:
                    assert await handling == 503
                else:
                    error = await caught(handling)
                    assert error is not None
                    handler.errors.append(error)
            elif way == "aiohttp":
                from midapi_async.callbacks.http.answer import answer

                status = await answer(receiver.handle, "POST", f"/{token}", signed(), body)
                assert status in {500, 503}
            else:

                async def receive() -> dict[str, object]:
                    return {"type": "http.request", "body": body}

                async def send(message: dict[str, object]) -> None:
                    assert message.get("status", 500) in {500, 503}

                scope = {"type": "http", "method": "POST", "path": f"/{token}", "headers": []}
                await receiver.asgi()(scope, receive, send)
    finally:
        log.removeHandler(handler)
    (seen,) = handler.errors
    assert_nothing_shows(seen)


@pytest.mark.fault("L15")
async def test_a_parsed_body_is_refused_without_showing_it() -> None:
    """A program that gives the callback as a dict instead of its bytes."""
    receiver, token = CallbackReceiver(None, port=0), []

    def remember(request: Received) -> Step:
        body = cast("dict[str, object]", request.json())
        token.append(str(body["callBackUrl"]).rpartition("/")[2])
        return accepted()

    async with (
        ScriptedServer(then=remember) as server,
        client_of(server, receiver=receiver) as client,
    ):
        await client.generate("a red fox")
        parsed = json.loads(callback(promptJson=PARAMS))
        error = await caught(receiver.handle(token[0], {}, parsed))
        assert isinstance(error, InvalidRequestError)
        assert_nothing_shows(error)


@pytest.mark.fault("L15")
async def test_a_bug_while_an_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged with its traceback, whose functions have the answer."""
    monkeypatch.setattr(protocol, "read_envelope", abs)  # of bytes, a TypeError
    log, handler = logging.getLogger("midapi_async.submission"), Locals()
    log.addHandler(handler)
    try:
        answer = reply(json={"data": LEAKY})
        async with ScriptedServer([answer]) as server, client_of(server) as client:
            error = await caught(client.generate("a red fox"))
    finally:
        log.removeHandler(handler)
    assert isinstance(error, SubmissionUnknown)
    assert any(isinstance(each, TypeError) for each in handler.errors)
    for each in (error, *handler.errors):
        assert_nothing_shows(each)


def test_suspended_functions_of_others_are_not_touched() -> None:
    """An error that was raised twice leads to the coroutine that caught it first; that goes on."""
    error = ZeroDivisionError()

    async def catch_and_go_on(seen: asyncio.Event) -> str:
        secret = "kept"
        try:
            raise error
        except ZeroDivisionError:
            await seen.wait()
        return secret

    async def main() -> str:
        seen = asyncio.Event()
        task = asyncio.create_task(catch_and_go_on(seen))
        await asyncio.sleep(0)
        clear_locals(error)
        seen.set()
        return await task

    assert asyncio.run(main()) == "kept"
