"""The client as its users see it: settings, opening and closing, both ways of tracking, resume."""

import asyncio
import gc
import json
import os
import pickle
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from midapi_async import (
    AuthenticationError,
    BadRequestError,
    CallbackReceiver,
    ClientClosed,
    ImageToVideo,
    InsufficientCreditsError,
    InvalidRequestError,
    MemoryJournal,
    MidAPIClient,
    MidAPIError,
    ProtocolError,
    RateLimit,
    ReceiverError,
    ServerError,
    State,
    SubmissionUnknown,
    TaskFailed,
    TaskNotFound,
    TaskStatus,
    TransportError,
    UnprocessableError,
    Upscale,
    WaitTimeout,
)
from midapi_async.events import Queued
from midapi_async.journal import Intent
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import Faults, Sandbox, fail_task, never_call_back, never_end
from midapi_async.sandbox import lose_answer as sandbox_loses_answer
from midapi_async.testing import VirtualLoop
from tests.support.scripted import (
    Answer,
    Play,
    Received,
    ScriptedServer,
    cut,
    delay,
    hang,
    lose_answer,
    raw,
    reply,
)
from tests.support.secrets import API_KEY, WEBHOOK_KEY, assert_none_in, known
from tests.world import (
    TASK,
    URLS,
    accepted,
    assert_secrets_are_kept,
    client_of,
    looked,
    looks,
    mid,
    ok,
    record,
    refused,
    selling,
    submits,
)


def receiver_of(way: str) -> CallbackReceiver | None:
    """Tracking by callbacks, signed, or by looking alone."""
    return CallbackReceiver(None, port=0, webhook_key=WEBHOOK_KEY) if way == "callback" else None


both_ways = pytest.mark.parametrize("way", ["looking", "callback"])


@both_ways
async def test_the_main_job(way: str, tmp_path: Path) -> None:
    """Submit, track, result, download: four real pictures, whichever way they are found."""
    async with Sandbox(api_key=API_KEY, webhook_key=WEBHOOK_KEY) as sandbox:
        options = {"receiver": receiver_of(way), "rate_limit": RateLimit(20)}
        async with client_of(sandbox.url, **options) as client:
            details = await client.generate_and_wait("a red fox", aspect_ratio="16:9")
            assert len(details.urls) == 4
            assert TaskStatus.SUCCEEDED is details.status
            assert details.params["prompt"] == "a red fox"
            assert_secrets_are_kept(details)
            files = await client.download(details, tmp_path / "pictures")
            assert [f"{details.task_id}_{n}.jpeg" for n in range(4)] == [f.name for f in files]
            assert all(file.read_bytes()[-2:] == b"\xff\xd9" for file in files)
            assert sorted(files) == sorted((tmp_path / "pictures").iterdir())
            assert len(sandbox.ledger.accepted) == 1
            assert (1 if way == "callback" else 0) == client.stats().callbacks
            bigger = await client.generate_and_wait(Upscale(details.task_id, image_index=0))
            assert len(bigger.urls) == 1


@both_ways
async def test_a_failed_task_raises(way: str) -> None:
    """The error has the id, the details and MidAPI's text."""
    faults = Faults().on("task", do=fail_task("the model was tired"))
    async with Sandbox(api_key=API_KEY, webhook_key=WEBHOOK_KEY, faults=faults) as sandbox:
        async with client_of(sandbox.url, receiver=receiver_of(way)) as client:
            with pytest.raises(TaskFailed, match="the model was tired") as caught:
                await client.generate_and_wait("a red fox")
            assert sandbox.ledger.accepted[0].task_id == caught.value.task_id


@pytest.mark.fault("P8")
@both_ways
async def test_a_task_that_never_ends(way: str) -> None:
    """WaitTimeout with its id; the task can be awaited again when it is done after all."""
    faults = Faults().on("task", do=never_end())
    async with Sandbox(api_key=API_KEY, webhook_key=WEBHOOK_KEY, faults=faults) as sandbox:
        async with client_of(sandbox.url, receiver=receiver_of(way)) as client:
            with pytest.raises(WaitTimeout) as caught:
                await client.generate_and_wait("a red fox", wait_timeout=300)
            [handle] = await client.resume()
            assert caught.value.task_id == handle.task_id
            sandbox.finish(handle.task_id)
            assert (await handle.wait(timeout=120)).is_final


@both_ways
async def test_a_cancelled_wait_detaches(way: str) -> None:
    """Other waiters and the task go on."""
    async with Sandbox(api_key=API_KEY, webhook_key=WEBHOOK_KEY) as sandbox:
        async with client_of(sandbox.url, receiver=receiver_of(way)) as client:
            handle = await client.generate("a red fox")
            one, two = asyncio.create_task(handle.wait()), asyncio.create_task(handle.wait())
            await asyncio.sleep(1)
            one.cancel()
            assert (await two).is_final
            assert one.cancelled()


async def test_a_callback_needs_one_look_and_wakes_at_once() -> None:
    """With a receiver the result is there when its callback is, confirmed by a look."""
    durations = {("*", "*"): 25.0}
    async with Sandbox(api_key=API_KEY, webhook_key=WEBHOOK_KEY, durations=durations) as sandbox:
        async with client_of(sandbox.url, receiver=receiver_of("callback")) as client:
            begun = asyncio.get_running_loop().time()
            await client.generate_and_wait("a red fox")
            assert 25 <= asyncio.get_running_loop().time() - begun <= 25.5
            assert client.stats().looks == 1


@pytest.mark.fault("C1")
async def test_without_its_callback_looking_finds_it() -> None:
    """The callback never comes."""
    faults = Faults().on("callback", do=never_call_back())
    async with Sandbox(api_key=API_KEY, faults=faults) as sandbox:
        async with client_of(sandbox.url, receiver=receiver_of("callback")) as client:
            assert (await client.generate_and_wait("a red fox")).is_final


async def test_thousands_from_a_script_keep_the_accounts_limit() -> None:
    """200 prompts at once: none runs into the sandbox's 20 per 10 s, all get their pictures."""
    asyncio.get_running_loop().set_debug(False)
    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, rate_limit=RateLimit(20)) as client:
            async with asyncio.TaskGroup() as group:
                for n in range(200):
                    group.create_task(client.generate_and_wait(f"fox {n}", key=f"{n}"))
            assert len(sandbox.ledger.accepted) == 200
            answers = [asked.status for asked in sandbox.ledger.requests]
            assert set(answers) == {200}
            assert client.stats().submits == 200


# ─── lost answers, intents and resume ────────────────────────────────────────────────────────────


@pytest.mark.fault("S1")
async def test_with_a_receiver_a_lost_answer_costs_nothing() -> None:
    """The callback's token brings the task id; generate_and_wait returns as if nothing happened."""
    faults = Faults().on("submit", do=sandbox_loses_answer())
    async with Sandbox(api_key=API_KEY, webhook_key=WEBHOOK_KEY, faults=faults) as sandbox:
        async with client_of(sandbox.url, receiver=receiver_of("callback")) as client:
            details = await client.generate_and_wait("a red fox", key="k", metadata={"a": "b"})
            assert len(details.urls) == 4
            assert len(sandbox.ledger.accepted) == 1
            again = await client.generate("a red fox", key="k")
            assert details.task_id == again.task_id
            assert again.metadata == {"a": "b"}


@pytest.mark.fault("S1")
async def test_generate_says_that_it_can_be_settled() -> None:
    """generate raises, intents.settle waits for the callback, and gives the handle."""
    faults = Faults().on("submit", do=sandbox_loses_answer())
    async with Sandbox(api_key=API_KEY, webhook_key=WEBHOOK_KEY, faults=faults) as sandbox:
        async with client_of(sandbox.url, receiver=receiver_of("callback")) as client:
            with pytest.raises(SubmissionUnknown) as caught:
                await client.generate("a red fox")
            assert caught.value.can_settle
            assert "settle" in str(caught.value)
            one, two = await asyncio.gather(
                client.intents.settle(caught.value.intent_id),
                client.intents.settle(caught.value.intent_id, timeout=500),
            )
            assert one.task_id == two.task_id == sandbox.ledger.accepted[0].task_id
            assert (await one).is_final
            assert one.task_id == (await client.intents.settle(caught.value.intent_id)).task_id


@pytest.mark.fault("S1")
async def test_a_users_own_callback_url_cannot_settle() -> None:
    """No token of ours in it: the error says so."""
    async with (
        ScriptedServer([lose_answer()]) as server,
        client_of(server, receiver=receiver_of("callback")) as client,
    ):
        with pytest.raises(SubmissionUnknown) as caught:
            await client.generate_and_wait("a red fox", callback_url="https://me.example/")
        assert not caught.value.can_settle


async def test_settle_gives_up_in_time_and_can_be_tried_again() -> None:
    """No callback: SubmissionUnknown again, nothing left behind."""
    async with (
        ScriptedServer([lose_answer()]) as server,
        client_of(server, receiver=receiver_of("callback")) as client,
    ):
        with pytest.raises(SubmissionUnknown) as caught:
            await client.generate("a red fox")
        for _ in range(2):
            with pytest.raises(SubmissionUnknown, match="in time"):
                await client.intents.settle(caught.value.intent_id, timeout=30)
        with pytest.raises(InvalidRequestError):
            await client.intents.settle(caught.value.intent_id, timeout=float("nan"))
        assert len(server.requests) == 1


async def unknown_in(client: MidAPIClient, **options: object) -> str:
    """Make a submission unknown; return its intent's id."""
    with pytest.raises(SubmissionUnknown) as caught:
        await client.generate("a red fox", **options)  # type: ignore[call-overload]
    return caught.value.intent_id


async def test_intents_adopt() -> None:
    """The user knows the task id: the key has its task, whoever settles wakes."""
    async with (
        ScriptedServer([lose_answer()], then=mid(None, looked())) as server,
        client_of(server, receiver=receiver_of("callback")) as client,
    ):
        intent_id = await unknown_in(client, key="k")
        settling = asyncio.create_task(client.intents.settle(intent_id))
        await asyncio.sleep(1)
        handle = await client.intents.adopt(intent_id, TASK)
        assert TASK == handle.task_id == (await settling).task_id
        assert (await client.generate("a red fox", key="k")).task_id == TASK
        assert (await client.intents.adopt(intent_id, TASK)).task_id == TASK
        assert await client.intents.unknown() == []


async def test_intents_adopt_keeps_a_result_that_the_record_shows() -> None:
    """The task may have ended long ago: nobody waits for it as for a new one, or looks again."""
    async with (
        ScriptedServer([lose_answer()], then=mid(None, looked())) as server,
        client_of(server) as client,
    ):
        handle = await client.intents.adopt(await unknown_in(client, key="k"), TASK)
        requests = len(server.requests)
        assert handle.final == await handle
        again = await client.generate("a red fox", key="k")
        assert (again.final, len(server.requests)) == (handle.final, requests)


OTHERS_CALLBACK = {"paramJson": json.dumps({"callBackUrl": "https://x.example/mjt_" + "a" * 43})}


@pytest.mark.fault("S32")
@pytest.mark.parametrize(
    ("look", "problem"),
    [
        (refused(422, "recordInfo is null"), "not known"),
        (looked(**OTHERS_CALLBACK), "another submission's"),
        (looked(taskType="mj_video"), "another submission's"),
        (looked(createTime=1_600_000_000_000), "another submission's"),
    ],
    ids=["unknown", "another callback URL", "another type", "too old"],
)
async def test_adopt_refuses_what_does_not_fit(look: Answer, problem: str) -> None:
    """The record is looked at first; the user may know better."""
    async with (
        ScriptedServer([lose_answer()], then=mid(None, look)) as server,
        client_of(server, receiver=receiver_of("callback")) as client,
    ):
        intent_id = await unknown_in(client, key="k")
        with pytest.raises(InvalidRequestError, match=problem) as caught:
            await client.intents.adopt(intent_id, TASK)
        assert (caught.value.key, caught.value.intent_id) == ("k", intent_id)
        assert [row.intent_id for row in await client.intents.unknown()] == [intent_id]
        assert (await client.intents.adopt(intent_id, TASK, force=True)).task_id == TASK


@pytest.mark.fault("S32")
@pytest.mark.parametrize(("prompt", "warns"), [("a blue whale", True), (" a red fox", False)])
async def test_adopt_warns_of_another_prompt(
    caplog: pytest.LogCaptureFixture, prompt: str, *, warns: bool
) -> None:
    """It may be the same task, whose prompt MidAPI changed; or an id that was mistaken."""
    look = looked(paramJson=json.dumps({"prompt": prompt}))
    async with (
        ScriptedServer([lose_answer()], then=mid(None, look)) as server,
        client_of(server) as client,
    ):
        intent_id = await unknown_in(client, key="k")
        caplog.clear()
        assert (await client.intents.adopt(intent_id, TASK)).task_id == TASK
        assert ("shows another prompt" in caplog.text) is warns


@pytest.mark.fault("S32")
async def test_adopt_changes_nothing_if_the_record_cannot_be_read() -> None:
    """The error is that of the look."""
    async with (
        ScriptedServer([lose_answer()], then=mid(None, reply(502))) as server,
        client_of(server) as client,
    ):
        intent_id = await unknown_in(client)
        with pytest.raises(ServerError):
            await client.intents.adopt(intent_id, TASK)
        assert [row.intent_id for row in await client.intents.unknown()] == [intent_id]


@pytest.mark.fault("S32")
@pytest.mark.parametrize("kept", ["memory", "folder"])
@pytest.mark.parametrize("is_final", [False, True])
async def test_what_was_adopted_wrongly_can_be_mended(
    kept: str, tmp_path: Path, *, is_final: bool
) -> None:
    """Also after its result has come; the right task's result is returned then."""
    journal: MemoryJournal | SQLiteJournal = MemoryJournal()
    if kept == "folder":
        journal = SQLiteJournal(tmp_path / "journal")
    right = "f" * 32

    def look(request: Received) -> Answer:
        return looked(request.target.rpartition("=")[2])

    async with (
        ScriptedServer([lose_answer()], then=mid(None, look)) as server,
        client_of(server, journal=journal) as client,
    ):
        intent_id = await unknown_in(client, key="k")
        wrong = await client.intents.adopt(intent_id, TASK)
        if is_final:
            assert (await wrong).task_id == TASK
            await client._opened().recorder.writes.join()
        with pytest.raises(InvalidRequestError, match=f"has task {TASK} already"):
            await client.intents.adopt(intent_id, right)
        handle = await client.intents.adopt(intent_id, right, force=True)
        assert (handle.task_id, handle.final) == (right, None)
        assert (await handle).task_id == right
        again = await client.generate("a red fox", key="k")
        assert again.task_id == right
        await client._opened().recorder.writes.join()
        row = await journal.find(intent_id=intent_id)
        assert row is not None
        assert row.details is not None
        assert row.details.task_id == right
    await journal.aclose()


@pytest.mark.fault("S32")
@pytest.mark.parametrize("ack", ["auto", "manual"])
async def test_the_handle_of_a_task_that_was_replaced_changes_nothing(ack: str) -> None:
    """Its result is another task's: the intent has no result by it, and is not taken."""
    right, journal = "f" * 32, MemoryJournal()

    def look(request: Received) -> Answer:
        return looked(request.target.rpartition("=")[2])

    async with (
        ScriptedServer([lose_answer()], then=mid(None, look)) as server,
        client_of(server, journal=journal, ack=ack) as client,
    ):
        intent_id = await unknown_in(client, key="k")
        wrong = await client.intents.adopt(intent_id, TASK)
        await client.intents.adopt(intent_id, right, force=True)
        before = await journal.find(intent_id=intent_id)
        assert (await wrong).task_id == TASK
        await wrong.ack()
        await client._opened().recorder.writes.join()
        assert await journal.find(intent_id=intent_id) == before
        [handle] = await client.resume()
        assert (await handle).task_id == right


async def test_intents_adopt_refuses_what_is_somebody_elses() -> None:
    """A task id of another intent, and what is no task id."""
    async with ScriptedServer([accepted(), lose_answer()]) as server, client_of(server) as client:
        await client.generate("a red fox")
        intent_id = await unknown_in(client)
        with pytest.raises(InvalidRequestError, match="belongs to intent"):
            await client.intents.adopt(intent_id, TASK)
        with pytest.raises(InvalidRequestError, match="task_id"):
            await client.intents.adopt(intent_id, "../x")
        with pytest.raises(InvalidRequestError, match="no intent"):
            await client.intents.adopt("nonsense", "a")


async def test_intents_are_found_by_their_id_and_by_what_you_have_noted() -> None:
    """Of this namespace only, of all processes, and without a request to MidAPI."""
    journal = MemoryJournal()
    async with (
        ScriptedServer(then=selling()) as server,
        client_of(server, journal=journal) as client,
        client_of(server, journal=journal, namespace="other") as other,
    ):
        handles = [
            await client.generate(f"fox {n}", metadata={"user": name, "nr": str(n)})
            for n, name in enumerate(["ada", "bob", "ada"])
        ]
        hidden = await other.generate("fox", metadata={"user": "ada"})
        before = len(server.requests)
        row = await client.intents.get(handles[1].intent_id or "")
        assert row is not None
        assert row.task_id == handles[1].task_id
        assert await client.intents.get(hidden.intent_id or "") is None
        assert await client.intents.get("0" * 32) is None
        ada = await client.intents.rows(metadata={"user": "ada"})
        assert [each.task_id for each in ada] == [handles[0].task_id, handles[2].task_id]
        late = await client.intents.rows(since=ada[1].created_at)
        assert [each.task_id for each in late] == [handles[2].task_id]
        assert len(await client.intents.rows(states=[State.ACCEPTED])) == 3
        assert await client.intents.rows(states=[State.FAILED]) == []
        assert len(server.requests) == before


async def test_intents_resubmit() -> None:
    """A new intent takes over the key; the old one is superseded, and only unknown ones can be."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([lose_answer(), accepted()]) as server,
        client_of(server, journal=journal) as client,
    ):
        intent_id = await unknown_in(client, key="k", metadata={"a": "b"})
        handle = await client.intents.resubmit(intent_id)
        assert intent_id != handle.intent_id
        assert handle.metadata == {"a": "b"}
        assert (await client.generate("a red fox", key="k")).task_id == TASK
        rows = await journal.rows(f"{server.url} default")
        assert [row.state for row in rows] == [State.SUPERSEDED, State.ACCEPTED]
        with pytest.raises(InvalidRequestError, match="superseded"):
            await client.intents.resubmit(intent_id)
        assert len(submits(server)) == 2


@pytest.mark.parametrize("kept", ["memory", "folder"])
async def test_intents_a_refused_resubmit_gives_everything_back(kept: str, tmp_path: Path) -> None:
    """What may have been paid for is unknown again, with its key; nothing is sent for that key."""
    journal: MemoryJournal | SQLiteJournal = MemoryJournal()
    if kept == "folder":
        journal = SQLiteJournal(tmp_path / "journal")
    script: list[Play] = [lose_answer(), refused(402), accepted()]
    async with ScriptedServer(script) as server, client_of(server, journal=journal) as client:
        intent_id = await unknown_in(client, key="k")
        with pytest.raises(InsufficientCreditsError):
            await client.intents.resubmit(intent_id)
        assert [row.intent_id for row in await client.intents.unknown()] == [intent_id]
        assert intent_id == await unknown_in(client, key="k")
        assert len(submits(server)) == 2
        handle = await client.intents.resubmit(intent_id)
        assert handle.task_id == (await client.generate("a red fox", key="k")).task_id
        older = await client.intents.adopt(intent_id, "older", force=True)
        assert older.task_id == "older"
        assert handle.task_id == (await client.generate("a red fox", key="k")).task_id
    await journal.aclose()


@pytest.mark.parametrize("kept", ["memory", "folder"])
async def test_intents_a_refused_resubmit_of_what_was_bought(kept: str, tmp_path: Path) -> None:
    """Its callback came while the resubmit was refused: it has its key again."""
    journal: MemoryJournal | SQLiteJournal = MemoryJournal()
    if kept == "folder":
        journal = SQLiteJournal(tmp_path / "journal")
    script: list[Play] = [lose_answer(), delay(refused(402), 5)]
    async with ScriptedServer(script) as server, client_of(server, journal=journal) as client:
        intent_id = await unknown_in(client, key="k")
        resubmit = asyncio.create_task(client.intents.resubmit(intent_id))
        await server.arrived(2)
        await journal.advance(intent_id, State.ACCEPTED, task_id="late")
        with pytest.raises(InsufficientCreditsError):
            await resubmit
        assert (await client.generate("a red fox", key="k")).task_id == "late"
        assert len(submits(server)) == 2
    await journal.aclose()


async def test_two_settles_of_one_intent_do_not_strand_each_other() -> None:
    """One gives up while the other still reads the journal: that one is woken all the same."""

    class Slow(MemoryJournal):
        slow = False

        async def find(self, **names: object) -> Intent | None:
            if self.slow:
                await asyncio.sleep(2)
            return await super().find(**names)  # type: ignore[arg-type]

    journal = Slow()
    async with ScriptedServer([lose_answer()]) as server:
        client = client_of(server, journal=journal)
        await client.open()
        intent_id = await unknown_in(client)
        one = asyncio.create_task(client.intents.settle(intent_id, timeout=5))
        await asyncio.sleep(1)
        journal.slow = True
        two = asyncio.create_task(client.intents.settle(intent_id, timeout=None))
        await asyncio.sleep(3)
        one.cancel()
        await asyncio.sleep(3)
        journal.slow = False
        await client.aclose()
        with pytest.raises(ClientClosed):
            await two


async def test_wait_timeout_bounds_the_gate_and_settling_too() -> None:
    """It counts from the call: 200 s at the gate and 100 s for a lost answer need more than 299."""
    async with Sandbox(
        faults=Faults().on("submit", nth=2, do=sandbox_loses_answer()), durations={("*", "*"): 100}
    ) as sandbox:
        options = {"rate_limit": RateLimit(1, per=200), "receiver": CallbackReceiver(None, port=0)}
        async with client_of(sandbox.url, **options) as client:
            await client.generate("first")
            begun = asyncio.get_running_loop().time()
            assert (await client.generate_and_wait("second", wait_timeout=310)).is_final
            assert 300 <= asyncio.get_running_loop().time() - begun <= 310
            begun = asyncio.get_running_loop().time()
            with pytest.raises(WaitTimeout, match="Nothing was bought") as caught:
                await client.generate_and_wait("third", wait_timeout=50)
            assert asyncio.get_running_loop().time() - begun == pytest.approx(50, abs=0.1)
            assert (caught.value.task_id, caught.value.intent_id) == (None, None)
        assert len(sandbox.ledger.accepted) == 2


async def test_two_clients_that_share_everything_are_both_woken() -> None:
    """Receiver, journal and namespace: each callback is a hint for both."""
    journal, receiver = MemoryJournal(), CallbackReceiver(None, port=0)
    async with Sandbox(durations={("*", "*"): 10.0}) as sandbox:
        options = {"journal": journal, "receiver": receiver}
        async with client_of(sandbox.url, **options) as one:
            async with client_of(sandbox.url, **options) as two:
                handle = await one.generate("a red fox", key="k")
                again = await two.generate("a red fox", key="k")
                begun = asyncio.get_running_loop().time()
                await asyncio.gather(handle.wait(), again.wait())
                assert asyncio.get_running_loop().time() - begun < 11


async def test_what_is_known_to_be_finished_is_looked_at_at_once() -> None:
    """A second handle of a finished task does not follow the plan."""
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with client_of(server) as client:
            await client.generate_and_wait("a red fox", key="k", speed="relaxed")
            await client.resume()
            begun = asyncio.get_running_loop().time()
            again = await client.generate("a red fox", key="k", speed="relaxed")
            await again
            assert asyncio.get_running_loop().time() - begun < 2


async def test_opening_and_closing_at_once() -> None:
    """Two opens are one and an error; an open waits for the close before it."""
    async with Sandbox() as sandbox:
        receiver = CallbackReceiver(None, port=0)
        client = client_of(sandbox.url, receiver=receiver)
        ended = await asyncio.gather(client.open(), client.open(), return_exceptions=True)
        assert [type(each) for each in ended if each is not None] == [InvalidRequestError]
        await asyncio.gather(client.aclose(), client.open())
        assert await client.credits() == 10_000
        other = client_of(sandbox.url, receiver=receiver)
        await client.aclose()
        await asyncio.gather(client.open(), other.open())
        await asyncio.gather(client.aclose(), other.aclose())


@pytest.mark.fault("S20")
async def test_handles_and_intents_of_a_closed_client(tmp_path: Path) -> None:
    """They say so, and open nothing again."""
    async with ScriptedServer([accepted(), accepted("second"), looked()]) as server:
        client = client_of(server, journal=tmp_path / "journal")
        async with client:
            handle, second = await client.generate("a"), await client.generate("b")
            await handle
            intents = client.intents
        for call in (
            handle.details,
            handle.ack,
            second.wait,
            intents.unknown,
            lambda: intents.settle("x"),
            lambda: intents.dismiss("x"),
        ):
            with pytest.raises(ClientClosed):
                await call()
        assert (await handle.wait()).is_final
        assert "closed" in repr(client._journal)


@pytest.mark.fault("I5")
async def test_a_key_in_another_spelling() -> None:
    """A server that escapes what it echoes."""
    key = known("c2VjcmV0LWtleQ/with+signs==")
    said = json.dumps({"code": 401, "msg": f"bad {key}"})
    spelled = said.replace("=", r"\u003d").replace("+", r"\u002b").replace("/", r"\/")
    for body in (said, said.replace("/", r"\/"), spelled):
        async with ScriptedServer([reply(body=body)]) as server:
            async with MidAPIClient(key, base_url=server.url) as client:
                with pytest.raises(AuthenticationError) as caught:
                    await client.credits()
                assert_none_in(caught.value)


@pytest.mark.fault("I5")
async def test_no_context_holds_the_answers_text() -> None:
    """A page with our token in it is in no error that the caller can reach."""
    page = "<html>mjt_" + "a" * 43
    async with ScriptedServer([reply(502, body=page), reply(body=page)]) as server:
        async with client_of(server) as client:
            for _ in range(2):
                with pytest.raises(MidAPIError) as caught:
                    await client.credits()
                error: BaseException | None = caught.value
                while error is not None:
                    assert_none_in(error, error.__dict__, getattr(error, "doc", ""))
                    error = error.__context__


async def test_intents_two_resubmits_at_once_pay_once() -> None:
    """The second finds the intent superseded."""
    async with (
        ScriptedServer([lose_answer(), delay(accepted(), 2)]) as server,
        client_of(server) as client,
    ):
        intent_id = await unknown_in(client)
        ended = await asyncio.gather(
            client.intents.resubmit(intent_id),
            client.intents.resubmit(intent_id),
            return_exceptions=True,
        )
        assert sum(isinstance(each, InvalidRequestError) for each in ended) == 1
        assert len(submits(server)) == 2


async def test_intents_dismiss() -> None:
    """Forgotten; its key stays spent."""
    async with ScriptedServer([lose_answer()]) as server, client_of(server) as client:
        intent_id = await unknown_in(client, key="k")
        await client.intents.dismiss(intent_id)
        assert await client.intents.unknown() == []
        with pytest.raises(InvalidRequestError, match="dismissed"):
            await client.generate("a red fox", key="k")
        with pytest.raises(InvalidRequestError, match="dismissed"):
            await client.intents.resubmit(intent_id)
        await client.intents.dismiss(intent_id)


@pytest.mark.parametrize("key", ["owl", None])
@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State.REFUSED, "nothing was bought by intent ID. Submit its request again if you still"),
        (State.DISMISSED, "you have dismissed intent ID"),
        (State.SUPERSEDED, "intent ID was submitted again. Wait for the intent that replaced it"),
    ],
)
async def test_an_intent_that_gets_no_task_says_what_became_of_it(
    state: State, text: str, key: str | None
) -> None:
    """Whatever its state, in whole sentences; that its key stays used only where it has one."""
    first = refused(402) if state is State.REFUSED else lose_answer()
    async with ScriptedServer([first, accepted()]) as server, client_of(server) as client:
        with pytest.raises(MidAPIError) as caught:
            await client.generate("a grey owl", key=key)
        intent_id = caught.value.intent_id
        assert intent_id is not None
        if state is State.DISMISSED:
            await client.intents.dismiss(intent_id)
        elif state is State.SUPERSEDED:
            await client.intents.resubmit(intent_id)
        with pytest.raises(InvalidRequestError) as settled:
            await client.intents.settle(intent_id)
    [(field, problem)] = settled.value.problems.items()
    assert field == ("key" if key else "intent_id")
    assert problem.startswith(text.replace("ID", intent_id))
    used = ", so its key 'owl' stays used. Use another key"
    assert problem.endswith(used) == (state is State.DISMISSED and key is not None)
    assert "{" not in problem


async def test_intents_adopt_loses_a_race_with_dismiss(tmp_path: Path) -> None:
    """The error says that the intent is dismissed, and not that another intent has the task."""
    async with (
        ScriptedServer([lose_answer()]) as server,
        client_of(server, journal=tmp_path / "journal") as client,
    ):
        intent_id = await unknown_in(client)
        adopted, dismissed = await asyncio.gather(
            client.intents.adopt(intent_id, TASK, force=True),
            client.intents.dismiss(intent_id),
            return_exceptions=True,
        )
        assert dismissed is None
        assert isinstance(adopted, InvalidRequestError)
        assert "is dismissed" in str(adopted)


async def test_resume_gives_what_nobody_took() -> None:
    """A second client on the journal of the first: handles with metadata, and no second POST."""
    journal = MemoryJournal()
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with client_of(server, journal=journal) as first:
            await first.generate("a red fox", key="k", metadata={"channel": "42"})
        async with client_of(server, journal=journal) as second:
            [handle] = await second.resume()
            assert handle.metadata == {"channel": "42"}
            assert handle.key == "k"
            assert handle.submitted_at is not None
            assert handle.submitted_at.tzinfo is not None
            assert len((await handle).urls) == 4
            assert await second.resume() == []
        async with client_of(server, journal=journal, namespace="other") as third:
            assert await third.resume() == []
        assert len(submits(server)) == 1


@pytest.mark.fault("L14")
async def test_manual_ack_gives_the_result_until_it_is_acknowledged() -> None:
    """Between the result and the user's own work nothing is lost."""
    journal = MemoryJournal()
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        for turn in range(3):
            async with client_of(server, journal=journal, ack="manual") as client:
                if turn == 0:
                    await client.generate_and_wait("a red fox")
                [handle] = await client.resume()
                assert (await handle).is_final
                if turn == 2:
                    await handle.ack()
                    assert await client.resume() == []
                    [row] = await journal.rows(f"{server.url} default")
                    assert State.SUCCEEDED is row.state


@pytest.mark.parametrize("flag", [1, 2])
async def test_a_result_is_in_the_journal_for_the_next_client(flag: int) -> None:
    """With its details: a repeated key needs no further look."""
    journal = MemoryJournal()
    async with ScriptedServer(then=mid(accepted(), looked(flag=flag))) as server:
        async with client_of(server, journal=journal) as client:
            with suppress(TaskFailed):
                await client.generate_and_wait("a red fox", key="k")
        [row] = await journal.rows()
        assert row.state is (State.SUCCEEDED if flag == 1 else State.FAILED)
        assert row.details is not None
        assert row.details.task_id == TASK
        number = len(looks(server))
        async with client_of(server, journal=journal) as client:
            handle = await client.generate("a red fox", key="k")
            with suppress(TaskFailed):
                await handle
        assert len(looks(server)) == number
        assert len(submits(server)) == 1


async def test_an_acknowledged_result_is_written_when_ack_returns() -> None:
    """The user's own work may end the process right after it."""

    class Slow(MemoryJournal):
        async def advance(self, *args: Any, **names: Any) -> Intent:
            await asyncio.sleep(1)
            return await super().advance(*args, **names)

    journal = Slow()
    async with (
        ScriptedServer(then=mid(accepted(), looked())) as server,
        client_of(server, journal=journal, ack="manual") as client,
    ):
        handle = await client.generate("a red fox")
        await handle
        assert [row.taken for row in await journal.rows()] == [False]
        await handle.ack()
        assert [row.taken for row in await journal.rows()] == [True]


@pytest.mark.fault("S20")
async def test_an_ack_does_not_write_into_a_journal_that_was_closed_meanwhile() -> None:
    """A folder would be opened again, and stay open."""

    class Slow(MemoryJournal):
        async def find(self, **names: Any) -> Intent | None:
            row = await super().find(**names)
            await asyncio.sleep(1)
            return row

    journal = Slow()
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        async with client_of(server, journal=journal, ack="manual") as client:
            handle = await client.generate("a red fox")
            await handle
            acking = asyncio.create_task(handle.ack())
            await asyncio.sleep(0.5)
        with pytest.raises(ClientClosed):
            await acking
    assert [row.taken for row in await journal.rows()] == [False]


async def test_a_failed_task_is_taken_too() -> None:
    """A failure that was raised is handed over."""
    script = mid(accepted(), looked(flag=2))
    async with ScriptedServer(then=script) as server, client_of(server) as client:
        with pytest.raises(TaskFailed):
            await client.generate_and_wait("a red fox", key="k")
        assert await client.resume() == []
        handle = await client.generate("a red fox", key="k")
        with pytest.raises(TaskFailed):
            await handle
        assert len(submits(server)) == 1


@pytest.mark.fault("S14")
def test_a_loop_that_died_leaves_unknowns_and_handles() -> None:
    """A loop ended with one POST under way: that is UNKNOWN, and what was accepted is resumed."""
    journal = MemoryJournal()

    async def die() -> str:
        server = ScriptedServer([accepted(), hang()])
        await server.__aenter__()
        client = client_of(server, journal=journal)
        await client.open()
        await client.generate("first")
        asyncio.get_running_loop()._orphan = asyncio.create_task(  # type: ignore[attr-defined]
            client.generate("second", key="k")
        )
        await server.arrived(2)
        client._session = None  # as if the process had died here
        return server.url

    async def live_again(url: str) -> None:
        async with client_of(url, journal=journal) as client:
            assert [handle.task_id for handle in await client.resume()] == [TASK]
            assert [row.key for row in await client.intents.unknown()] == ["k"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            url = runner.run(die())
            runner.get_loop().set_exception_handler(lambda *_: None)
        gc.collect()
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(live_again(url))


# ─── opening and closing ─────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("S20")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_used_while_not_open(when: str) -> None:
    """Every method says so, and nothing is sent."""
    async with ScriptedServer() as server:
        client = client_of(server)
        if when == "after":
            async with client:
                pass
        expected = InvalidRequestError if when == "before" else ClientClosed
        for call in (
            lambda: client.generate("x"),
            lambda: client.generate_and_wait("x"),
            lambda: client.details("a"),
            client.resume,
            client.credits,
            lambda: client.download_url(URLS[0]),
        ):
            with pytest.raises(expected):
                await call()
        for use in (lambda: client.task("a"), lambda: client.intents, client.stats):
            with pytest.raises(expected):
                use()
        assert not server.requests


@pytest.mark.fault("S20")
async def test_opened_twice() -> None:
    """A second open while it is open says so and changes nothing."""
    async with ScriptedServer([ok(5)]) as server, client_of(server) as client:
        with pytest.raises(InvalidRequestError, match="already open"):
            await client.open()
        assert await client.credits() == 5.0


@pytest.mark.fault("S20")
@pytest.mark.fault("L10")
def test_one_loop_at_a_time_and_asyncio_run_twice() -> None:
    """Another loop is refused while it is open; closed, it opens in the next loop."""

    async def first() -> MidAPIClient:
        async with ScriptedServer([ok(1)]) as server, client_of(server) as client:
            await client.credits()

            def elsewhere() -> None:
                with asyncio.Runner() as other:
                    other.run(client.credits())

            with pytest.raises(InvalidRequestError, match="another event loop"):
                await asyncio.to_thread(elsewhere)
        return client

    async def second(client: MidAPIClient) -> None:
        async with client:
            assert client.stats().submits == 0

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        client = client_of("http://127.0.0.1:9")
        runner.run(client.open())
        with pytest.raises(InvalidRequestError, match="another event loop"):
            client.task("a")
        runner.run(client.aclose())
        client = runner.run(first())
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(second(client))


@pytest.mark.fault("L10")
def test_a_loop_that_ended_while_the_client_closed() -> None:
    """Ctrl-C during `aclose`: the client can be opened again in another loop."""

    async def interrupted() -> MidAPIClient:
        async with ScriptedServer([hang()]) as server:
            client = client_of(server)
            await client.open()
            posting = asyncio.create_task(client.generate("a red fox"))
            await server.arrived()
            closing = asyncio.create_task(client.aclose())
            await asyncio.wait({posting, closing}, timeout=1)
            closing.cancel()
            return client

    async def again(client: MidAPIClient) -> None:
        async with client:
            assert client.stats().submits == 0

    client = VirtualLoop.run(interrupted())
    VirtualLoop.run(client.aclose())
    VirtualLoop.run(again(client))


@pytest.mark.fault("L10")
async def test_a_forked_child_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child must not use its parent's connections."""
    async with ScriptedServer() as server, client_of(server) as client:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(InvalidRequestError, match="fork"):
            await client.credits()
        monkeypatch.undo()


@pytest.mark.fault("L7")
def test_never_closed_is_a_resource_warning() -> None:
    """One warning that names the client."""

    async def forget() -> None:
        client = client_of("http://127.0.0.1:9")
        await client.open()
        await client._exits.aclose()  # aiohttp warns of its own
        with pytest.warns(ResourceWarning, match="never closed"):
            del client

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(forget())


@pytest.mark.fault("C19")
async def test_a_port_that_is_taken_says_so() -> None:
    """An error at start that names the port; nothing is left half open."""
    async with ScriptedServer() as taken, ScriptedServer() as server:
        receiver = CallbackReceiver(None, port=taken.port)
        client = client_of(server, receiver=receiver)
        with pytest.raises(ReceiverError, match=str(taken.port)):
            await client.open()
        with pytest.raises(InvalidRequestError, match="not open"):
            await client.credits()


async def test_a_receiver_on_loopback_is_not_for_the_real_service() -> None:
    """MidAPI could not reach it; that is said before anything is sent."""
    for url in (None, "http://127.0.0.1:8000/hook"):
        client = MidAPIClient(API_KEY, receiver=CallbackReceiver(url, port=0))
        with pytest.raises(ReceiverError, match="public_url"):
            await client.open()


async def test_one_receiver_for_two_clients() -> None:
    """The first client opened starts its server, the last one closed stops it."""
    receiver = CallbackReceiver(None, port=0)
    async with Sandbox() as sandbox:
        async with client_of(sandbox.url, receiver=receiver) as one:
            async with client_of(sandbox.url, receiver=receiver) as two:
                await asyncio.gather(one.generate_and_wait("a"), two.generate_and_wait("b"))
                assert (one.stats().callbacks, two.stats().callbacks) == (1, 1)
            await one.generate_and_wait("c")
        with pytest.raises(ReceiverError):
            _ = receiver.url


# ─── the rest of its face ────────────────────────────────────────────────────────────────────────


async def test_credits_and_download_url() -> None:
    """A bare number, a bare string; wrong kinds are named."""
    script = [ok(99.5), ok("https://files.example/x"), refused(422), ok("99"), ok(None), ok(True)]
    async with ScriptedServer(script) as server, client_of(server) as client:
        assert await client.credits() == 99.5
        assert await client.download_url(URLS[0]) == "https://files.example/x"
        with pytest.raises(UnprocessableError):
            await client.download_url(URLS[0])
        for _ in range(3):
            with pytest.raises(ProtocolError, match="data"):
                await client.credits()
        with pytest.raises(InvalidRequestError):
            await client.download_url("file:///etc/passwd")
        paths = [request.target for request in server.requests]
        assert paths[0] == "/api/v1/common/credit"
        assert paths[1] == "/api/v1/common/download-url"
        assert server.requests[1].json() == {"url": URLS[0]}


async def test_details_is_one_look() -> None:
    """Whatever the state; unknown is TaskNotFound, a bad id costs nothing."""
    script = [looked(flag=0), ok(None), reply(502), cut(looked(), body=20)]
    async with ScriptedServer(script) as server, client_of(server) as client:
        details = await client.details(TASK)
        assert not details.is_final
        with pytest.raises(TaskNotFound):
            await client.task(TASK).details()
        with pytest.raises(Exception, match="502"):
            await client.details(TASK)
        with pytest.raises(ProtocolError, match="cut"):
            await client.details(TASK)
        for wrong in ("../x", "", "a b", None, 5):
            with pytest.raises(InvalidRequestError, match="task_id"):
                await client.details(wrong)  # type: ignore[arg-type]
            with pytest.raises(InvalidRequestError, match="task_id"):
                client.task(wrong)  # type: ignore[arg-type]
        assert len(looks(server)) == 4


async def test_a_handle_from_an_id() -> None:
    """It waits like any other, hashes, and knows nothing more than the id."""
    async with ScriptedServer([looked()]) as server, client_of(server) as client:
        handle = client.task(TASK)
        assert {handle: 1}[handle]
        assert handle.request is None
        assert handle.submitted_at is None
        begun = asyncio.get_running_loop().time()
        assert (await handle.wait(timeout=10)).is_final
        assert asyncio.get_running_loop().time() - begun < 1
        with pytest.raises(AttributeError):
            handle.task_id = "other"
        await handle.ack()
        for wrong in ("soon", float("nan"), True):
            with pytest.raises(InvalidRequestError, match="timeout"):
                await client.task("x").wait(timeout=wrong)  # type: ignore[arg-type]


async def test_expected_comes_from_priors_then_from_what_was_seen() -> None:
    """Median and 90 % point, in seconds."""
    async with ScriptedServer() as server:
        async with client_of(server) as client:
            prior = client.expected("a red fox")
            assert 60 == prior.median < prior.p90
            assert client.expected(ImageToVideo("x", ["https://a.example/b"])).median == 180
            for n in range(5):
                server.add(accepted(f"{n:032x}"), looked(f"{n:032x}"))
                await client.generate_and_wait(f"{n}")
            assert client.expected("a red fox").median == 67


async def test_stats_count_what_needs_attention() -> None:
    """Submissions that ended unknown, the age of the oldest task, and events that were dropped."""

    async def slow(_: object) -> None:
        await asyncio.sleep(100)

    script: list[Play] = [lose_answer(), refused(402), accepted(), accepted("f" * 32)]
    async with (
        ScriptedServer(script, then=mid(look=looked(flag=0))) as server,
        client_of(server, on_event=slow) as client,
    ):
        empty = client.stats()
        assert (empty.unknown, empty.oldest_open, empty.dropped_events) == (0, None, 0)
        await unknown_in(client)
        with pytest.raises(InsufficientCreditsError):
            await client.generate("a red fox")
        handle = await client.generate("a red fox")
        await asyncio.sleep(100)
        assert client.stats().oldest_open is None  # nobody waits
        younger = await client.generate("a red fox")
        waits = [asyncio.create_task(each.wait()) for each in (younger, handle)]
        await asyncio.sleep(20)
        assert client.stats().oldest_open == pytest.approx(120, abs=1)
        for _ in range(10_010):
            client._session.report(Queued(place=0))  # type: ignore[union-attr]
        stats = client.stats()
        assert (stats.unknown, stats.submits) == (1, 4)
        assert stats.dropped_events > 0
        for each in waits:
            each.cancel()
        await asyncio.wait(waits)
        assert client.stats().oldest_open is None


async def test_metadata_is_never_sent_nor_shown() -> None:
    """It comes back with the handle and stands in no repr."""
    async with ScriptedServer([accepted()]) as server, client_of(server) as client:
        handle = await client.generate("a red fox", metadata={"channel": "secret-channel"})
        assert "secret-channel" not in repr(handle)
        assert b"secret-channel" not in server.requests[0].body


@pytest.mark.fault("I5")
@pytest.mark.parametrize("where", ["msg", "data"])
async def test_a_server_that_echoes_the_key(where: str) -> None:
    """The API key shows in no error, even when the server sends it back."""
    answer = {"code": 400, "msg": f"bad key {API_KEY}", "data": None}
    data = record(flag=2, errorMessage=f"denied for {API_KEY}")
    script = [reply(json=answer)] if where == "msg" else [accepted(), ok(data)]
    async with ScriptedServer(script) as server, client_of(server) as client:
        with pytest.raises((BadRequestError, TaskFailed)) as caught:
            await client.generate_and_wait("a red fox")
        assert_none_in(caught.value, *caught.value.args)
        assert_none_in(pickle.loads(pickle.dumps(caught.value)))  # noqa: S301 - our own bytes


@pytest.mark.fault("I5")
async def test_nothing_of_the_transport_shows_the_key() -> None:
    """The error of a broken connection has no cause that holds the request."""
    async with ScriptedServer([raw(b"nonsense\r\n\r\n")]) as server, client_of(server) as client:
        with pytest.raises(TransportError) as caught:
            await client.credits()
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert_none_in(caught.value, client, client.__dict__)


# ─── settings ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ack": "never"}, "ack"),
        ({"retry": 3}, "retry"),
        ({"polling": 5}, "polling"),
        ({"rate_limit": 20}, "rate_limit"),
        ({"timeouts": 60}, "timeouts"),
        ({"receiver": "https://me.example"}, "receiver"),
        ({"namespace": ""}, "namespace"),
        ({"namespace": "a\nb"}, "namespace"),
        ({"base_url": "http://api.example"}, "base_url"),
        ({"base_url": "ftp://api.example"}, "base_url"),
        ({"time_scale": 60}, "time_scale"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "a b"}, "api_key"),
    ],
)
def test_wrong_settings_are_named_in_the_constructor(
    options: dict[str, object], named: str
) -> None:
    """Before anything is sent, by name, without the key."""
    with pytest.raises(InvalidRequestError) as caught:
        MidAPIClient(**{"api_key": API_KEY, **options})  # type: ignore[arg-type]
    assert list(caught.value.problems) == [named]


def test_a_missing_key_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names both variables."""
    monkeypatch.delenv("MIDAPI_API_KEY", raising=False)
    with pytest.raises(InvalidRequestError, match="MIDAPI_API_KEY_FILE"):
        MidAPIClient()


def test_its_repr_shows_the_state() -> None:
    """Where it talks to and whether it is open; never the key."""
    client = MidAPIClient(API_KEY)
    assert repr(client) == "<MidAPIClient https://api.midapi.ai/ not opened>"


@pytest.mark.parametrize("kind", ["memory", "folder"])
async def test_what_was_learned_outlives_the_client(kind: str, tmp_path: Path) -> None:
    """A second client on the same journal expects from its first task on what the first one saw."""
    journals = [MemoryJournal()] * 2 if kind == "memory" else [tmp_path / "j", tmp_path / "j"]
    script = mid(
        lambda request: accepted(f"t{len(request.body)}"), lambda request: took(request, 25)
    )
    async with ScriptedServer(then=script) as server:
        async with client_of(server, journal=journals[0]) as first:
            assert first.expected("a red fox").median == 60
            for n in range(8):
                await first.generate_and_wait("x" * (n + 1))
            assert first.expected("a red fox").median == 25
        async with client_of(server, journal=journals[1]) as second:
            assert second.expected("another").median == 25
            assert client_of(server).expected("another").median == 60


def took(request: Received, seconds: int) -> Answer:
    """The record of a task that took so long."""
    data = record(request.target.rpartition("=")[2], 1)
    return ok(data | {"completeTime": int(str(data["createTime"])) + seconds * 1000})


@pytest.mark.fault("L14")
async def test_nothing_is_taken_before_the_caller_goes_on() -> None:
    """Killed in its next line, the caller gets the result again: only then is it written down."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([accepted(), looked()]) as server,
        client_of(server, journal=journal) as client,
    ):
        handle = await client.generate("a red fox")
        await handle
        assert not (await journal.rows())[0].taken
        await asyncio.sleep(1)
        assert (await journal.rows())[0].taken
