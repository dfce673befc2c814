"""Rows C of the fault catalogue: the core, and the standalone server over raw sockets."""

import asyncio
import base64
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midapi_async import (
    CallbackReceiver,
    InvalidRequestError,
    JournalError,
    MemoryJournal,
    MidAPIClient,
    ReceiverError,
    State,
    SubmissionUnknown,
    WaitTimeout,
)
from midapi_async._wire.tokens import new_token, token_hash
from midapi_async.callbacks.http.answer import LARGEST_BODY
from midapi_async.callbacks.inbox import PROBE_INTERVAL, PROBES
from midapi_async.callbacks.signature import signature
from midapi_async.events import CalledBack, Event
from midapi_async.journal import Intent
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.testing import VirtualLoop
from tests.support.scripted import Received, ScriptedServer, Step, delay, lose_answer, reply
from tests.support.secrets import API_KEY, WEBHOOK_KEY, assert_none_in, known
from tests.support.waiting import free_port
from tests.world import TASK, URLS, accepted, client_of, looked, looks, ok, record, refused

OTHER = "beef" * 8


def callback(task_id: str = TASK, **fields: object) -> bytes:
    """The body of a good callback."""
    data = {"taskId": task_id, "promptJson": "{}", "resultUrls": list(URLS)} | fields
    return json.dumps({"code": 200, "msg": "success", "data": data}).encode()


def signed(
    task_id: str = TASK, timestamp: str = "1760557532", key: str = WEBHOOK_KEY
) -> dict[str, str]:
    """The headers that MidAPI signs a callback with."""
    value = signature(key.encode(), task_id, timestamp).decode()
    return {"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": value}


class Scene:
    """A client with a receiver, one submission, and the token in its callback URL."""

    def __init__(
        self, server: ScriptedServer, client: MidAPIClient, receiver: CallbackReceiver
    ) -> None:
        self.server = server
        self.client = client
        self.receiver = receiver
        self.journal: MemoryJournal = client._journal  # type: ignore[assignment]

    @property
    def url(self) -> str:
        body = self.server.requests[0].json()
        assert isinstance(body, dict)
        return str(body["callBackUrl"])

    @property
    def token(self) -> str:
        return self.url.rpartition("/")[2]

    async def call_back(self, body: bytes | None = None, headers: Mapping[str, str] = {}) -> int:
        return await self.receiver.handle(self.token, headers, callback() if body is None else body)

    async def row(self) -> Intent:
        [row] = await self.journal.rows(f"{self.server.url} default")
        return row


@asynccontextmanager
async def a_scene(*script: object, **options: object) -> AsyncIterator[Scene]:
    receiver = CallbackReceiver(None, port=0, **options)  # type: ignore[arg-type]
    async with (
        ScriptedServer(script) as server,  # type: ignore[arg-type]
        client_of(server, receiver=receiver) as client,
    ):
        yield Scene(server, client, receiver)


@pytest.mark.fault("C7")
async def test_a_callback_is_a_hint_and_record_info_is_the_truth() -> None:
    """The URLs of the result come from record-info, not from the callback."""
    async with a_scene(accepted(), looked()) as scene:
        handle = await scene.client.generate("a red fox")
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(1)
        assert await scene.call_back(callback(resultUrls=["https://evil.example/x"])) == 200
        assert (await waiting).urls == URLS
        assert len(looks(scene.server)) == 1


@pytest.mark.fault("C2")
async def test_a_hundred_duplicates_at_once() -> None:
    """One outcome, all answered 200, no storm of looks."""
    async with a_scene(accepted(), looked(), looked()) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        answers = await asyncio.gather(*(scene.call_back() for _ in range(100)))
        assert set(answers) == {200}
        assert (await waiting).is_final
        assert len(looks(scene.server)) <= 2


@pytest.mark.fault("C2")
async def test_a_hundred_duplicates_for_a_lost_answer() -> None:
    """Checked once; one intent, one task."""
    async with a_scene(lose_answer(), delay(looked(), 1), looked()) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        answers = await asyncio.gather(*(scene.call_back() for _ in range(100)))
        assert set(answers) == {200}
        assert (await waiting).is_final
        assert len(looks(scene.server)) <= 2


@pytest.mark.fault("S1")
async def test_settling_and_waiting_share_one_timeout() -> None:
    """wait_timeout bounds the whole of generate_and_wait, a lost answer included."""
    async with a_scene(lose_answer(), *(looked(flag=0) for _ in range(30))) as scene:
        begun = asyncio.get_running_loop().time()
        task = asyncio.create_task(scene.client.generate_and_wait("a red fox", wait_timeout=60))
        await scene.server.arrived(1)
        await asyncio.sleep(50)
        assert await scene.call_back() == 200
        with pytest.raises(WaitTimeout):
            await task
        assert pytest.approx(asyncio.get_running_loop().time() - begun, abs=0.1) == 60


@pytest.mark.fault("C3")
async def test_a_callback_before_the_submit_is_answered() -> None:
    """Found by its token: the caller has its handle before the POST's answer comes."""
    async with a_scene(delay(accepted(), 100), looked(), looked()) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        assert await scene.call_back() == 200
        begun = asyncio.get_running_loop().time()
        assert (await waiting).is_final
        assert asyncio.get_running_loop().time() - begun < 5
        await asyncio.sleep(200)
        assert ((await scene.row()).task_id, (await scene.row()).other_task_ids) == (TASK, ())


@pytest.mark.fault("C3")
async def test_a_submission_that_was_called_back_is_not_sent_again_after_a_429() -> None:
    """A callback proves that it was bought, even if the POST is answered with 429."""
    late = delay(refused(429, status=429, Retry_After="5"), 10)
    async with a_scene(late, looked(), looked()) as scene:
        handle = asyncio.create_task(scene.client.generate("a red fox"))
        await scene.server.arrived(1)
        assert await scene.call_back() == 200
        assert (await handle).task_id == TASK
        await asyncio.sleep(60)
        assert scene.client.stats().submits == 1
        assert State.ACCEPTED is (await scene.row()).state


@pytest.mark.fault("C3")
async def test_a_callback_too_early_to_be_checked_is_sent_again() -> None:
    """record-info does not know the task yet: 503, so that the callback comes again."""
    early = refused(422, "recordInfo is null")
    async with a_scene(lose_answer(), early, looked(), looked()) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        assert await scene.call_back() == 503
        assert State.UNKNOWN is (await scene.row()).state
        assert await scene.call_back() == 200
        assert (await waiting).is_final


@pytest.mark.fault("C26")
@pytest.mark.parametrize("fault", [reply(502), ok(record(flag=[1]))])
async def test_a_callback_that_cannot_be_checked_is_sent_again(fault: object) -> None:
    """A look that fails is 503, never a guess."""
    async with a_scene(lose_answer(), fault, looked(), looked()) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        assert await scene.call_back() == 503
        assert await scene.call_back() == 200
        assert (await waiting).is_final


@pytest.mark.fault("S33")
async def test_a_second_task_for_one_token_is_kept_and_critical(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The callback named one task and the POST's late answer another: both may have been paid."""
    async with a_scene(delay(accepted(OTHER), 20), looked(), looked()) as scene:
        handle = asyncio.create_task(scene.client.generate("a red fox"))
        await scene.server.arrived(1)
        await scene.call_back()
        assert (await handle).task_id == TASK
        await asyncio.sleep(30)
        assert (await scene.row()).other_task_ids == (OTHER,)
        assert any(
            entry.levelname == "CRITICAL" and OTHER in entry.getMessage()
            for entry in caplog.records
        )


MISFITS: dict[str, dict[str, object]] = {
    "type": {"taskType": "mj_video"},
    "callback": {"paramJson": json.dumps({"callBackUrl": "https://me.example/" + new_token()})},
    "time": {"createTime": int(time.time() * 1000) - 3_600_000},
}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.fault("C23")
async def test_the_task_of_another_intent_is_not_bound(misfit: str) -> None:
    """Type, time and callback URL must fit: else ignored, counted, still unknown."""
    good: dict[str, object] = {"createTime": 4_000_000_000_000}
    wrong = ok(record(OTHER) | good | MISFITS[misfit])
    async with a_scene(lose_answer(), wrong, ok(record() | good), ok(record() | good)) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        assert await scene.call_back(callback(OTHER)) == 200
        assert State.UNKNOWN is (await scene.row()).state
        stats = scene.client.stats()
        assert (stats.ignored_callbacks, stats.callbacks) == (1, 0)
        assert await scene.call_back() == 200
        assert (await waiting).task_id == TASK


async def test_the_callback_of_a_dismissed_intent_names_what_was_paid_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is taken, its task is kept with the intent and logged, and no other intent is blamed."""
    good = ok(record() | {"createTime": 4_000_000_000_000})
    async with a_scene(lose_answer(), good) as scene:
        with pytest.raises(SubmissionUnknown) as caught:
            await scene.client.generate("a red fox")
        await scene.client.intents.dismiss(caught.value.intent_id)
        assert await scene.call_back() == 200
        row = await scene.row()
        assert (row.state, row.task_id, row.other_task_ids) == (State.DISMISSED, None, (TASK,))
        stats = scene.client.stats()
        assert (stats.callbacks, stats.ignored_callbacks) == (1, 0)
        warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
        (entry,) = (each for each in warnings if TASK in each.getMessage())
        assert (entry.levelname, "was paid for" in entry.getMessage()) == ("WARNING", True)


@pytest.mark.fault("C23")
async def test_our_callback_url_in_the_record_is_the_best_proof() -> None:
    """With our URL in it neither prompt nor time matter (a translated prompt, a skewed clock)."""
    async with a_scene(lose_answer()) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        params = json.dumps({"prompt": "ein roter Fuchs", "callBackUrl": scene.url})
        found = looked(paramJson=params, createTime=1)
        scene.server.add(found, found)
        assert await scene.call_back() == 200
        details = await waiting
        assert_none_in(details, details.raw, details.to_dict(), dict(details.params))


@pytest.mark.fault("C23")
async def test_a_known_task_is_not_replaced() -> None:
    """Once the task id is known, a callback that names another's is counted and ignored."""
    theirs = json.dumps({"callBackUrl": "https://me.example/" + new_token()})
    async with a_scene(accepted(), looked(OTHER, paramJson=theirs), looked()) as scene:
        handle = await scene.client.generate("a red fox")
        waiting = asyncio.create_task(handle.wait())
        assert await scene.call_back(callback(OTHER)) == 200
        await asyncio.sleep(5)
        assert len(looks(scene.server)) == 1
        assert scene.client.stats().ignored_callbacks == 1
        assert (await scene.row()).other_task_ids == ()
        assert (await waiting).task_id == TASK


@pytest.mark.fault("C9")
@pytest.mark.fault("C17")
async def test_late_and_empty_callbacks_are_200() -> None:
    """A finished task's callback again is 200 and nothing; a success without URLs is a hint."""
    async with a_scene(accepted(), looked()) as scene:
        handle = await scene.client.generate("a red fox")
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(1)
        assert await scene.call_back(callback(resultUrls=[])) == 200
        assert (await waiting).is_final
        assert await scene.call_back() == 200
        await asyncio.sleep(100)
        assert len(looks(scene.server)) == 1


async def test_an_acknowledgement_is_not_a_hint() -> None:
    """What holds only taskId and promptJson costs no look; it still brings a lost task id."""
    ack = json.dumps({"code": 200, "data": {"taskId": TASK, "promptJson": "{}"}}).encode()
    async with a_scene(lose_answer(), looked(flag=0), looked()) as scene:
        task = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        assert await scene.call_back(ack) == 200
        assert await scene.call_back(ack) == 200
        assert len(looks(scene.server)) == 1
        assert (await task).is_final


BODIES = {
    "failed": {"code": 500, "msg": "failed", "data": {"taskId": TASK, "resultUrls": []}},
    "record_like": {"code": 200, "data": {"taskId": TASK, "successFlag": 1, "errorCode": "0"}},
    "snake_case": {"code": 200, "data": {"task_id": TASK, "resultUrls": ["x"]}},
    "top_level": {"code": "200", "taskId": TASK, "resultUrls": ["x"]},
    "top_level_snake": {"task_id": TASK, "successFlag": 3},
    "data_is_a_string": {"code": 200, "data": json.dumps({"taskId": TASK, "resultUrls": []})},
    "data_null": {"code": 501, "data": None, "taskId": TASK},
}


@pytest.mark.parametrize("shape", BODIES)
async def test_every_shape_of_a_callback_is_a_hint(shape: str) -> None:
    """Wherever the task id stands."""
    async with a_scene(accepted(), looked()) as scene:
        handle = await scene.client.generate("a red fox")
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(1)
        begun = asyncio.get_running_loop().time()
        assert await scene.call_back(json.dumps(BODIES[shape]).encode()) == 200
        assert (await waiting).is_final
        assert asyncio.get_running_loop().time() - begun < 1


UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "cut": callback()[:-30],
    "null": b"null",
    "a list": b"[" + callback() + b"]",
    "a number": b"5",
    "a form": b"taskId=" + TASK.encode(),
    "not UTF-8": b"\xff\xfe",
    "UTF-16": callback().decode().encode("utf-16"),
    "deep": b"[" * 60_000,
    "deep with a task id": b'{"taskId":"a","data":' + b"[" * 100 + b"]" * 100 + b"}",
    "no task id": b'{"code":200,"msg":"success"}',
    "an empty task id": b'{"data":{"taskId":""}}',
    "a number as task id": b'{"data":{"taskId":5}}',
    "a path as task id": b'{"data":{"taskId":"../x"}}',
    "two task ids": b'{"taskId":"a","taskId":"b"}',
    "NaN": b'{"code":NaN,"taskId":"a"}',
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.fault("C12")
@pytest.mark.fault("C25")
async def test_an_unreadable_callback_is_a_hint_for_the_task_of_its_token(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """200, and the task is looked at, once; a line says what is wrong, without quoting it."""
    caplog.set_level(logging.WARNING)
    async with a_scene(accepted(), looked()) as scene:
        handle = await scene.client.generate("a red fox")
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(1)
        begun = asyncio.get_running_loop().time()
        assert await scene.call_back(body) == 200
        assert (await waiting).urls == URLS
        assert asyncio.get_running_loop().time() - begun < 1
        assert scene.client.stats().callbacks == 1
        (line,) = [each for each in caplog.messages if "Cannot read a callback" in each]
        assert TASK not in line


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.fault("C25")
async def test_an_unreadable_callback_for_a_lost_answer_is_sent_again(body: bytes) -> None:
    """It names no task, so nothing can be looked at: 503, and the next one may be whole."""
    async with a_scene(lose_answer(), looked(), looked()) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        assert await scene.call_back(body) == 503
        assert State.UNKNOWN is (await scene.row()).state
        assert not looks(scene.server)
        assert scene.client.stats().callbacks == 0
        assert await scene.call_back() == 200
        assert (await waiting).urls == URLS


@pytest.mark.fault("C4")
@pytest.mark.fault("C25")
async def test_an_unreadable_callback_must_be_signed_for_the_task_of_its_token() -> None:
    """Another task's signature, a wrong one and none are 401, and nothing changes."""
    async with a_scene(accepted(), looked(), webhook_key=WEBHOOK_KEY) as scene:
        handle = await scene.client.generate("a red fox")
        for headers in ({}, signed(OTHER), signed(key=known("another-webhook-key"))):
            assert await scene.call_back(b"", headers) == 401
        assert scene.client.stats().callbacks == 0
        assert State.ACCEPTED is (await scene.row()).state
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(1)
        assert await scene.call_back(b"", signed()) == 200
        await asyncio.sleep(1)
        assert (await waiting).urls == URLS


@pytest.mark.fault("C4")
@pytest.mark.fault("C25")
async def test_an_unreadable_callback_for_a_lost_answer_cannot_be_signed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """401: the signature covers a task id, and none is known; the log does not blame the key."""
    async with a_scene(lose_answer(), webhook_key=WEBHOOK_KEY) as scene:
        with pytest.raises(SubmissionUnknown):
            await scene.client.generate("a red fox")
        assert await scene.call_back(b"", signed()) == 401
    assert "names no task, and its intent has none yet" in caplog.text
    assert "Was the key changed" not in caplog.text


# ─── acknowledgements ────────────────────────────────────────────────────────────────────────────

ACKNOWLEDGEMENT = json.dumps(
    {"code": 200, "msg": "success", "data": {"taskId": TASK, "promptJson": "{}"}}
).encode()


@pytest.mark.fault("C30")
async def test_an_acknowledgement_changes_nothing(tmp_path: Path) -> None:
    """Long before the end, after a true callback, long after the end: no look, no new state."""
    journal, receiver = SQLiteJournal(tmp_path), CallbackReceiver(None, port=0)
    events: list[Event] = []
    time = asyncio.get_running_loop().time
    begun = time()

    def step(request: Received) -> Step:
        if request.method == "POST":
            return accepted()
        return looked(flag=0 if time() - begun < 40 else 1)

    async with (
        ScriptedServer(then=step) as server,
        client_of(
            server, receiver=receiver, journal=journal, ack="manual", on_event=events.append
        ) as client,
    ):
        scene = Scene(server, client, receiver)

        async def acknowledge() -> State:
            """Send it, and see that nothing changes in the next two seconds."""
            row, count, told = await scene.row(), len(looks(server)), len(called_back(events))
            assert await scene.call_back(ACKNOWLEDGEMENT) == 200
            await asyncio.sleep(2)
            assert await scene.row() == row
            assert len(looks(server)) == count
            assert len(called_back(events)) == told
            assert not row.taken
            return row.state

        handle = await client.generate("a red fox")
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(1)
        assert await acknowledge() is State.ACCEPTED
        assert await scene.call_back() == 200  # too early: it is still generating
        await asyncio.sleep(20)
        assert await acknowledge() is State.CALLED_BACK
        assert (await waiting).urls == URLS
        await asyncio.sleep(1)
        assert await acknowledge() is State.SUCCEEDED
        await asyncio.sleep(86_400)
        assert await acknowledge() is State.SUCCEEDED
        assert (await handle.wait()).urls == URLS
        await handle.ack()
        assert len(called_back(events)) == 1
    await journal.aclose()


def called_back(events: Sequence[Event]) -> list[CalledBack]:
    """The callbacks among some events."""
    return [each for each in events if isinstance(each, CalledBack)]


async def test_each_callback_is_an_event_in_the_process_that_it_came_to(tmp_path: Path) -> None:
    """Duplicates, too; ignored ones and those that another client has taken are not."""
    events: list[Event] = []
    others: list[Event] = []
    journal, receiver = SQLiteJournal(tmp_path), CallbackReceiver(None, port=0)
    second = SQLiteJournal(tmp_path)
    theirs = json.dumps({"callBackUrl": "https://me.example/" + new_token()})

    def step(request: Received) -> Step:
        if request.method == "POST":
            return accepted()
        return looked(OTHER, paramJson=theirs) if OTHER in request.target else looked()

    async with (
        ScriptedServer(then=step) as server,
        client_of(server, receiver=receiver, journal=journal, on_event=events.append) as client,
        client_of(server, journal=second, on_event=others.append) as other,
    ):
        scene = Scene(server, client, receiver)
        handle = await client.generate("a red fox", key="fox")
        waiting = asyncio.create_task(other.task(handle.task_id).wait())
        await asyncio.sleep(1)
        for body in (callback(OTHER), callback(), callback(), b"unreadable"):
            assert await scene.call_back(body) == 200
        await waiting
        assert not called_back(others)
        found = [(each.key, each.intent_id, each.task_id) for each in called_back(events)]
        assert found == [("fox", handle.intent_id, TASK)] * 3
    await journal.aclose()
    await second.aclose()


@pytest.mark.fault("C8")
@pytest.mark.fault("C24")
async def test_an_unknown_token_is_404_before_the_body_is_read() -> None:
    """Neither read nor remembered."""
    async with a_scene(accepted()) as scene:
        await scene.client.generate("a red fox")

        async def body() -> bytes:
            raise AssertionError("the body was read")

        for token in (new_token(), "", "x" * 10_000, "é", "..", "mjt_", token_hash(scene.token)):
            assert await scene.receiver.handle(token, {}, body) == 404


async def a_probe(journal: MemoryJournal, *, lasts: float = 300.0) -> str:
    """Write the note about a probe of `midapi doctor` for task OTHER; return its token."""
    token = new_token()
    await journal.note(*PROBES, token_hash(token), OTHER, expires=time.time() + lasts)
    return token


async def test_a_probe_of_the_doctor_is_taken_once() -> None:
    """It removes its note, wakes nobody and touches no intent; then its token is unknown."""
    async with a_scene(accepted(), webhook_key=WEBHOOK_KEY) as scene:
        await scene.client.generate("a red fox")
        before = await scene.row()
        token = await a_probe(scene.journal)
        other = await a_probe(scene.journal)
        assert await scene.receiver.handle(token, signed(OTHER), callback(OTHER)) == 200
        assert list(await scene.journal.notes(*PROBES)) == [token_hash(other)]
        await asyncio.sleep(PROBE_INTERVAL)
        assert await scene.receiver.handle(token, signed(OTHER), callback(OTHER)) == 404
        assert await scene.row() == before
        assert scene.client.stats().callbacks == 0
        assert not looks(scene.server)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, callback(OTHER), 401),
        (signed(OTHER, key="wrong"), callback(OTHER), 401),
        (signed(OTHER), b"", 400),
        (signed(OTHER), callback(OTHER)[:40], 400),
        (signed(TASK), callback(TASK), 400),
        ({"Content-Encoding": "gzip"}, callback(OTHER), 415),
    ],
    ids=["unsigned", "wrong_key", "no_body", "half_a_body", "another_task", "compressed"],
)
async def test_a_changed_probe_is_refused_like_a_callback(
    headers: dict[str, str], body: bytes, status: int
) -> None:
    """Its note stays, so that the doctor does not take it for received."""
    async with a_scene(accepted(), webhook_key=WEBHOOK_KEY) as scene:
        token = await a_probe(scene.journal)
        assert await scene.receiver.handle(token, headers, body) == status
        assert len(await scene.journal.notes(*PROBES)) == 1


async def test_a_probe_needs_its_whole_token_in_time() -> None:
    """Neither the hash that the journal holds nor an expired token is known."""
    async with a_scene(accepted()) as scene:
        token = await a_probe(scene.journal)
        expired = await a_probe(scene.journal, lasts=-1.0)
        for wrong in (token_hash(token), token[:-1], token.upper(), expired, OTHER):
            assert await scene.receiver.handle(wrong, {}, callback(OTHER)) == 404
        assert await scene.receiver.handle(token, {}, callback(OTHER)) == 200


@pytest.mark.fault("C8")
async def test_unknown_tokens_cost_one_read_of_the_probes_in_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many come; and a probe is known at the latest one second after it was written."""
    reads = []

    async def counted(journal: MemoryJournal, scope: str, kind: str) -> Mapping[str, str]:
        reads.append(asyncio.get_running_loop().time())
        return await read(journal, scope, kind)

    read = MemoryJournal.notes
    async with a_scene(accepted()) as scene:
        await scene.client.generate("a red fox")
        monkeypatch.setattr(MemoryJournal, "notes", counted)
        for _ in range(1000):
            assert await scene.receiver.handle(new_token(), {}, callback()) == 404
            await asyncio.sleep(0.003)
        assert len(reads) == 3
        assert await scene.call_back() == 200  # a known token reads none
        token = await a_probe(scene.journal)
        for _ in range(400):
            assert await scene.receiver.handle(new_token(), {}, callback()) == 404
            await asyncio.sleep(0.003)
        assert await scene.receiver.handle(token, {}, callback(OTHER)) == 200
        assert len(reads) == 5


async def test_clients_that_share_a_receiver_all_know_a_probe() -> None:
    """The journal may be that of any of them."""
    async with a_scene(accepted()) as first:
        async with client_of(first.server, receiver=first.receiver) as second:
            for client in (first.client, second):
                token = await a_probe(client._journal)  # type: ignore[arg-type]  # in memory
                await asyncio.sleep(PROBE_INTERVAL)
                assert await first.receiver.handle(token, {}, callback(OTHER)) == 200


@pytest.mark.fault("C10")
@pytest.mark.fault("C11")
async def test_encodings_are_415() -> None:
    """An encoding is refused before the body is read."""
    async with a_scene(accepted()) as scene:
        await scene.client.generate("a red fox")
        assert await scene.call_back(headers={"content-encoding": "gzip"}) == 415
        assert await scene.call_back(headers={"Content-Encoding": "br"}) == 415
        assert await scene.call_back(headers={"Content-Encoding": "identity"}) == 200


async def test_without_an_open_client_it_is_503() -> None:
    """So that MidAPI sends again."""
    receiver = CallbackReceiver("https://me.example/hook")
    assert await receiver.handle(new_token(), {}, b"") == 503
    with pytest.raises(ReceiverError):
        _ = CallbackReceiver(None, port=0).url


@pytest.mark.fault("C21")
async def test_a_broken_journal_is_503_and_waits_go_on() -> None:
    """503 if it cannot be read or written; waits in this process get the result all the same."""

    class Down(MemoryJournal):
        reads = writes = True

        async def find(self, **names: object) -> Intent | None:
            if not self.reads:
                raise JournalError("gone")
            return await super().find(**names)  # type: ignore[arg-type]

        async def advance(self, *args: object, **names: object) -> Intent:
            if not self.writes:
                raise JournalError("gone")
            return await super().advance(*args, **names)  # type: ignore[arg-type]

    journal, receiver = Down(), CallbackReceiver(None, port=0)
    async with (
        ScriptedServer([lose_answer(), *[looked()] * 3]) as server,
        client_of(server, receiver=receiver, journal=journal) as client,
    ):
        task = asyncio.create_task(client.generate_and_wait("a red fox"))
        await server.arrived(1)
        await asyncio.sleep(1)
        scene = Scene(server, client, receiver)
        journal.reads = False
        assert await scene.call_back() == 503
        journal.reads, journal.writes = True, False
        assert await scene.call_back() == 503
        assert (await task).is_final
        assert State.UNKNOWN is (await scene.row()).state
        journal.reads = journal.writes = True
        assert await scene.call_back() == 200
        assert (await scene.row()).task_id == TASK


# ─── signatures ──────────────────────────────────────────────────────────────────────────────────

NOT_SIGNED: dict[str, list[tuple[str, str]]] = {
    "missing": [],
    "no_signature": [("X-Webhook-Timestamp", "1760557532")],
    "no_timestamp": [("X-Webhook-Signature", signed()["X-Webhook-Signature"])],
    "wrong_key": [*signed(key="another").items()],
    "wrong_task": [*signed(OTHER).items()],
    "changed_time": [*(signed() | {"X-Webhook-Timestamp": "1760557533"}).items()],
    "time_not_a_number": [*signed(timestamp="soon").items()],
    "time_of_other_digits": [*signed(timestamp="١٢٣").items()],
    "time_with_blanks": [*signed(timestamp=" 1_0 ").items()],
    "doubled_signature": [*signed().items(), *list(signed().items())[1:]],
    "doubled_timestamp": [*signed().items(), *list(signed().items())[:1]],
    "non_ascii": [("X-Webhook-Timestamp", "1"), ("X-Webhook-Signature", "é\udce9\ud800")],
    "with_junk": [
        ("X-Webhook-Timestamp", "1760557532"),
        ("X-Webhook-Signature", signed()["X-Webhook-Signature"] + "!"),
    ],
}


@pytest.mark.parametrize("wrong", NOT_SIGNED)
@pytest.mark.fault("C4")
@pytest.mark.fault("C5")
async def test_a_wrong_signature_is_401(wrong: str) -> None:
    """Nothing changes, nothing is said."""
    async with a_scene(accepted(), webhook_key=WEBHOOK_KEY) as scene:
        await scene.client.generate("a red fox")
        assert await scene.receiver.handle(scene.token, NOT_SIGNED[wrong], callback()) == 401
        assert scene.client.stats().callbacks == 0


@pytest.mark.parametrize("timestamp", ["0", "1", "1760557532", "999999999999"])
@pytest.mark.fault("C5")
async def test_an_old_timestamp_is_still_a_hint(timestamp: str) -> None:
    """It is not known whether retries are signed again."""
    async with a_scene(accepted(), webhook_key=[known("the-new-key"), WEBHOOK_KEY]) as scene:
        await scene.client.generate("a red fox")
        headers = {name.upper(): value for name, value in signed(timestamp=timestamp).items()}
        assert await scene.call_back(headers=headers) == 200
        headers = signed(timestamp=timestamp, key="the-new-key")
        assert await scene.call_back(headers=headers) == 200
        assert scene.client.stats().callbacks == 2


@pytest.mark.fault("C4")
async def test_a_missing_signature_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line: is the key set at MidAPI too?"""
    async with a_scene(accepted(), webhook_key=WEBHOOK_KEY) as scene:
        await scene.client.generate("a red fox")
        for _ in range(5):
            assert await scene.call_back() == 401
    assert caplog.text.count("is the key set at MidAPI too?") == 1


header_text = st.text(max_size=40) | st.sampled_from([*signed().values(), "0", "1e3", "=" * 44])


@settings(max_examples=200, deadline=None)
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                ["X-Webhook-Timestamp", "x-webhook-signature", "Content-Encoding", "X"]
            ),
            header_text,
        ),
        max_size=6,
    ),
    body=st.binary(max_size=80) | st.just(callback()),
)
def test_any_headers_have_one_outcome(headers: list[tuple[str, str]], body: bytes) -> None:
    """Always a status, never an exception; 200 only with exactly one good pair."""

    async def main() -> int:
        receiver = CallbackReceiver("https://me.example", webhook_key=WEBHOOK_KEY)
        await receiver.attach(EveryToken())
        return await receiver.handle(new_token(), headers, body)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        status = runner.run(main())
    assert status in {200, 400, 401, 415}
    if status == 200:
        named = [name.lower() for name, _ in headers]
        assert 1 == named.count("x-webhook-timestamp") == named.count("x-webhook-signature")


# ─── the standalone server ───────────────────────────────────────────────────────────────────────


async def talk(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send raw bytes to the server, with pauses; return everything it says until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause)
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with pytest.MonkeyPatch.context():
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def port_of(receiver: CallbackReceiver) -> int:
    return int(receiver.url.rpartition(":")[2])


def post(token: str, body: bytes = b"", headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = (
        f"POST /some/prefix/{token}/ HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{headers}\r\n"
    )
    return head.encode("latin-1") + body


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


async def test_the_server_passes_callbacks_to_the_receiver() -> None:
    """Any prefix, a trailing slash, a real client."""
    async with a_scene(accepted(), looked()) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        async with aiohttp.ClientSession() as session:
            for path in (scene.token, f"a/b/{scene.token}", f"{scene.token}//"):
                url = f"{scene.receiver.url}/{path}"
                async with session.post(url, data=callback()) as response:
                    assert response.status == 200
        assert (await waiting).is_final


@pytest.mark.fault("C13")
async def test_methods_paths_and_malformed_requests_are_refused() -> None:
    """405 for another method, 404 for another path, 4xx for what is no HTTP; all closed."""
    async with a_scene(accepted()) as scene:
        await scene.client.generate("a red fox")
        port = port_of(scene.receiver)
        get = f"GET /{scene.token} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        assert status_of(await talk(port, get)) == 405
        assert status_of(await talk(port, post(new_token()))) == 404
        assert status_of(await talk(port, b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")) == 404
        assert status_of(await talk(port, b"nonsense\r\n\r\n")) == 400
        long = post(scene.token, headers=f"X: {'y' * 10_000}\r\n")
        assert status_of(await talk(port, long)) == 400


@pytest.mark.fault("C10")
async def test_a_large_body_is_413_and_closed() -> None:
    """Declared, and in endless chunks: refused without reading it all."""
    async with a_scene(accepted()) as scene:
        await scene.client.generate("a red fox")
        port = port_of(scene.receiver)
        assert status_of(await talk(port, post(scene.token, length=100_000_000))) == 413
        head = f"POST /{scene.token} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
        many = LARGEST_BODY // 0x1000 + 2
        assert status_of(await talk(port, head.encode(), *[chunk] * many)) == 413


@pytest.mark.fault("C11")
async def test_an_encoding_is_415_over_the_socket() -> None:
    """Before the body comes."""
    async with a_scene(accepted()) as scene:
        await scene.client.generate("a red fox")
        request = post(scene.token, headers="Content-Encoding: gzip\r\n", length=50)
        assert status_of(await talk(port_of(scene.receiver), request)) == 415


@pytest.mark.fault("C14")
async def test_an_incomplete_body_is_408() -> None:
    """Within five seconds."""
    async with a_scene(accepted()) as scene:
        await scene.client.generate("a red fox")
        begun = asyncio.get_running_loop().time()
        answer = await talk(port_of(scene.receiver), post(scene.token, b"{", length=50))
        assert status_of(answer) == 408
        assert asyncio.get_running_loop().time() - begun < 6


@pytest.mark.fault("C20")
async def test_shutdown_waits_for_open_callbacks() -> None:
    """It is finished, within the bound."""
    async with a_scene(lose_answer(), delay(looked(), 3)) as scene:
        task = asyncio.create_task(scene.client.generate("a red fox"))
        await scene.server.arrived(1)
        await asyncio.wait({task})
        task.exception()
        talking = asyncio.create_task(talk(port_of(scene.receiver), post(scene.token, callback())))
        await scene.server.arrived(2)
        begun = asyncio.get_running_loop().time()
        await scene.client.aclose()
        assert asyncio.get_running_loop().time() - begun < 15
        assert status_of(await talking) in {200, 503}


async def test_the_server_listens_on_loopback_by_default() -> None:
    """Not on every address of the machine."""
    async with a_scene() as scene:
        server = scene.receiver._server
        assert server is not None
        assert server._listener is not None
        assert {each.getsockname()[0] for each in server._listener.sockets} == {"127.0.0.1"}


async def test_an_ipv6_receiver() -> None:
    """Its URL has brackets."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        receiver = CallbackReceiver(None, host="::1", port=0)
        with pytest.raises(ReceiverError):
            await receiver.attach(object())  # type: ignore[arg-type]
        return
    receiver = CallbackReceiver(None, host="::1", port=0)
    async with ScriptedServer() as server, client_of(server, receiver=receiver):
        assert receiver.url.startswith("http://[::1]:")


# ─── settings ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"public_url": None}, "public_url"),
        ({"public_url": None, "port": 1, "host": "0.0.0.0"}, "public_url"),  # noqa: S104
        ({"public_url": "me.example"}, "public_url"),
        ({"public_url": "https://"}, "public_url"),
        ({"public_url": "https://a:b@me.example"}, "public_url"),
        ({"public_url": "https://me.example/?a=1"}, "public_url"),
        ({"public_url": 5}, "public_url"),
        ({"public_url": "https://me.example", "port": -1}, "port"),
        ({"public_url": "https://me.example", "port": 65536}, "port"),
        ({"public_url": "https://me.example", "port": True}, "port"),
        ({"public_url": "https://me.example", "webhook_key": ""}, "webhook_key"),
        ({"public_url": "https://me.example", "webhook_key": []}, "webhook_key"),
        ({"public_url": "https://me.example", "webhook_key": ["a", 5]}, "webhook_key"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, object], named: str) -> None:
    """In the constructor."""
    with pytest.raises(InvalidRequestError) as caught:
        CallbackReceiver(**options)  # type: ignore[arg-type]
    assert list(caught.value.problems) == [named]


def test_from_env(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """The three variables, the key's file, and None without a URL."""
    assert CallbackReceiver.from_env() is None
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", "https://me.example/hook/")
    assert CallbackReceiver.from_env().url == "https://me.example/hook"  # type: ignore[union-attr]
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", "8080")
    monkeypatch.setenv("MIDAPI_WEBHOOK_KEY", WEBHOOK_KEY)
    receiver = CallbackReceiver.from_env()
    assert receiver is not None
    assert (8080, (WEBHOOK_KEY.encode(),)) == (receiver._port, receiver._keys)
    assert_none_in(receiver)
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", "http")
    with pytest.raises(InvalidRequestError, match="MIDAPI_CALLBACK_PORT"):
        CallbackReceiver.from_env()
    monkeypatch.delenv("MIDAPI_WEBHOOK_KEY")
    monkeypatch.setenv("MIDAPI_WEBHOOK_KEY_FILE", f"{tmp_path}/none")
    with pytest.raises(InvalidRequestError) as caught:
        CallbackReceiver.from_env()
    assert set(caught.value.problems) == {"webhook_key", "port"}


def test_the_vector_of_the_wire_document() -> None:
    """Section 5's signature."""
    expected = "2xxmyCg67WXJLWSPTYo9hzyTaOawZ9NnLXY684Tj+u4="
    assert (
        signature(b"test-webhook-key", "9f47c52047dda21bb3df0488736cce57", "1760557532").decode()
        == expected
    )
    assert len(base64.b64decode(expected, validate=True)) == 32
    assert API_KEY not in expected


# ─── event loops ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("C29")
@pytest.mark.real_time
async def test_a_callback_handled_in_another_thread_wakes_the_client() -> None:
    """The body is read where it came; the client's own event loop does the rest."""
    async with a_scene(accepted(), looked()) as scene:
        handle = await scene.client.generate("a red fox")
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(0)
        loops = []

        async def body() -> bytes:
            loops.append(asyncio.get_running_loop())
            return callback()

        def call_back() -> int:
            return asyncio.run(scene.receiver.handle(scene.token, {}, body))

        assert await asyncio.to_thread(call_back) == 200
        assert (await asyncio.wait_for(waiting, 10)).urls == URLS
        assert loops != [asyncio.get_running_loop()]
        assert scene.client.stats().callbacks == 1


class EveryToken:
    """An inbox that takes everything."""

    async def find(self, token_hash: str) -> Intent | None:
        return Intent(
            intent_id="i",
            scope="s",
            request=None,
            fingerprint="f",
            token_hash=token_hash,
            created_at=0.0,
            task_id=TASK,
        )

    def task_ids(self, row: Intent) -> Collection[str]:
        return [row.task_id] if row.task_id else []

    async def take(self, row: Intent, callback: object) -> int:
        return 200


@pytest.mark.fault("C29")
def test_a_receiver_works_again_after_its_event_loop_ended_without_closing_it() -> None:
    """What that loop left is not asked any more, and its port is free for the next server."""

    async def main() -> tuple[int, int]:
        await receiver.attach(EveryToken())
        answer = await talk(port_of(receiver), post("token", callback(), "Connection: close\r\n"))
        return port_of(receiver), status_of(answer)

    receiver = CallbackReceiver(None, port=free_port())
    for _ in range(2):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            assert runner.run(main()) == (receiver._port, 200)
        with asyncio.Runner() as runner:
            assert runner.run(receiver.handle("token", {}, callback())) == 503
    assert receiver._server is not None
    receiver._server.abandon()


@pytest.mark.fault("C29")
def test_a_server_belongs_to_one_event_loop() -> None:
    """A client in a second loop is refused, not left without callbacks."""
    receiver, inbox = CallbackReceiver(None, port=0), EveryToken()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner, asyncio.Runner() as other:
        runner.run(receiver.attach(inbox))
        with pytest.raises(ReceiverError, match="another event loop"):
            other.run(receiver.attach(EveryToken()))
        runner.run(receiver.detach(inbox))
