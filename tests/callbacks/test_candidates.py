"""Task ids that callbacks name and that the journal does not know: whose are they?"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from midapi_async import CallbackReceiver, JournalError, MemoryJournal, State, SubmissionUnknown
from midapi_async._submission import candidates
from midapi_async._submission.candidates import LOOKS, MOST_FOLLOWED, MOST_STORED
from midapi_async.journal import Intent
from midapi_async.journal.sqlite import SQLiteJournal
from tests.callbacks.test_receiver import OTHER, Scene, a_scene, callback
from tests.support.scripted import Play, Received, ScriptedServer, Step, delay, lose_answer, reply
from tests.world import TASK, URLS, accepted, client_of, looked, looks, ok, record, refused

NOT_THERE = refused(422, "recordInfo is null")


def critical(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The CRITICAL log lines."""
    return [each.getMessage() for each in caplog.records if each.levelno == logging.CRITICAL]


def task_of(request: Received) -> str:
    """The task that a look asks for."""
    return request.target.rpartition("=")[2]


@asynccontextmanager
async def scripted(step: Callable[[Received], Step], **options: object) -> AsyncIterator[Scene]:
    """A client with a receiver, and a server that answers everything by a function."""
    receiver = CallbackReceiver(None, port=0)
    async with (
        ScriptedServer(then=step) as server,
        client_of(server, receiver=receiver, **options) as client,
    ):
        yield Scene(server, client, receiver)


def until(seconds: float, before: Step) -> Callable[[Received], Step]:
    """A script: every POST is lost, and so many seconds later record-info knows the task."""
    begun = asyncio.get_running_loop().time()

    def step(request: Received) -> Step:
        if request.method == "POST":
            return lose_answer()
        is_there = asyncio.get_running_loop().time() - begun >= seconds
        return looked(task_of(request)) if is_there else before

    return step


CHANGED_PROMPTS = [
    "  a  red fox —v 7 ",
    "a red",
    "un renard roux",
    "a red fox &amp; &#x27;wolf&#x27;",
    "--v 7 a red fox",
    "A RED FOX",
    "a re\u0301d fox",
    "",
]


# ─── a record that cannot be read yet ────────────────────────────────────────────────────────────


@pytest.mark.fault("C26")
@pytest.mark.parametrize("prompt", [*CHANGED_PROMPTS, "x" * 2000])
async def test_a_task_is_bound_though_its_prompt_was_changed(
    prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Token, type and time decide; a changed prompt is only logged."""
    caplog.set_level(logging.INFO)
    changed = looked(paramJson=json.dumps({"prompt": prompt, "speed": "fast"}))
    async with a_scene(lose_answer(), changed, changed) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        assert await scene.call_back() == 200
        assert (await waiting).urls == URLS
    assert any("changed prompt" in each.getMessage() for each in caplog.records)


UNREADABLE: dict[str, Step] = {
    "not there": NOT_THERE,
    "bad gateway": reply(502),
    "another task's": looked(OTHER),
    "too large": ok(record() | {"errorMessage": "x" * (1 << 18)}),
}


@pytest.mark.fault("C26")
@pytest.mark.parametrize("why", UNREADABLE)
@pytest.mark.parametrize("seconds", [0.5, 20, 150])
async def test_a_named_task_is_looked_at_again_until_its_record_is_there(
    why: str, seconds: float
) -> None:
    """One callback is enough: it is never sent again, and the waiter gets its pictures."""
    time = asyncio.get_running_loop().time
    async with scripted(until(seconds, UNREADABLE[why])) as scene:
        begun = time()
        with pytest.raises(SubmissionUnknown) as caught:
            await scene.client.generate("a red fox")
        settled = asyncio.create_task(scene.client.intents.settle(caught.value.intent_id))
        assert await scene.call_back() == 503
        row = await scene.row()
        assert (row.state, row.task_id, row.other_task_ids) == (State.UNKNOWN, None, (TASK,))
        handle = await settled
        assert (await handle.wait()).urls == URLS
        assert time() - begun < seconds * 1.3 + 2
        # A look that is answered about another task is repeated once, over a new connection.
        assert len(looks(scene.server)) < (50 if why == "another task's" else 25)
        row = await scene.row()
        assert (row.task_id, row.other_task_ids) == (TASK, ())


@pytest.mark.fault("C26")
async def test_a_repeated_callback_is_looked_at_before_our_own_next_look() -> None:
    """MidAPI sends it again, since it was not taken; after that no look is made of our own."""
    async with scripted(until(100, NOT_THERE)) as scene:
        with pytest.raises(SubmissionUnknown):
            await scene.client.generate("a red fox")
        assert await scene.call_back() == 503
        await asyncio.sleep(100)
        assert await scene.call_back() == 200
        count = len(looks(scene.server))
        assert (await scene.row()).task_id == TASK
        await asyncio.sleep(3_600)
        assert len(looks(scene.server)) == count


@pytest.mark.fault("C26")
async def test_an_unknown_submission_names_its_candidates() -> None:
    """And the looks at a task that never has a record end after some time."""
    async with scripted(until(1e9, NOT_THERE)) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox", wait_timeout=60))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        assert await scene.call_back() == 503
        with pytest.raises(SubmissionUnknown, match=f"Callbacks named task {TASK}") as caught:
            await waiting
        assert caught.value.candidates == (TASK,)
        await asyncio.sleep(3600)
        count = len(looks(scene.server))
        assert 10 < count < 40
        await asyncio.sleep(36_000)
        assert len(looks(scene.server)) == count


# ─── a restart ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder() -> Iterator[Path]:
    """A journal's folder."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.fault("C26")
@pytest.mark.parametrize("way", ["open", "resume", "settle"])
async def test_candidates_are_looked_at_again_after_a_restart(folder: Path, way: str) -> None:
    """The candidate is in the journal before the callback is answered; whoever opens it goes on."""
    async with ScriptedServer(then=until(100, NOT_THERE)) as server:
        first, receiver = SQLiteJournal(folder), CallbackReceiver(None, port=0)
        second = SQLiteJournal(folder)
        async with client_of(server, journal=first, receiver=receiver) as client:
            with pytest.raises(SubmissionUnknown) as caught:
                await client.generate("a red fox", key="fox")
            assert await Scene(server, client, receiver).call_back() == 503
            row = await second.find(intent_id=caught.value.intent_id)
            assert row is not None
            assert row.other_task_ids == (TASK,)
            if way == "open":
                await first.aclose()
        async with client_of(server, journal=second) as client:
            await first.aclose()  # before that, it is the first client's row
            await asyncio.sleep(50)
            count = len(looks(server))
            assert (count > 1) is (way == "open")
            if way == "resume":
                assert await client.resume() == []
            elif way == "settle":
                settled = client.intents.settle(row.intent_id, 100)
                assert (await settled).task_id == TASK
            await asyncio.sleep(100)
            assert [each.task_id for each in await client.resume()] == [TASK]
            assert (await client.generate("a red fox", key="fox")).task_id == TASK
            row = await second.find(intent_id=row.intent_id)
            assert row is not None
            assert State.CALLED_BACK is row.state
        await second.aclose()


# ─── another namespace ───────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def two_namespaces(step: Callable[[Received], Step]) -> AsyncIterator[tuple[Scene, Scene]]:
    """Two clients that share a journal; only the second one, a bot, is reached by callbacks."""
    journal, takes = MemoryJournal(), CallbackReceiver(None, port=0)
    async with (
        ScriptedServer(then=step) as server,
        client_of(server, journal=journal, namespace="bot", receiver=takes) as bot,
        client_of(server, journal=journal, receiver=CallbackReceiver(takes.url)) as client,
    ):
        yield Scene(server, client, takes), Scene(server, bot, takes)


@pytest.mark.fault("S1")
@pytest.mark.parametrize("is_early", [True, False])
async def test_a_callback_of_another_namespace_settles_a_lost_answer(*, is_early: bool) -> None:
    """The receiver only stores the task; the client that sent it looks whether it is its own."""
    async with two_namespaces(sold(lose_answer())) as (scene, bot):
        with pytest.raises(SubmissionUnknown) as caught:
            await scene.client.generate("a red fox", key="k")
        settling = asyncio.create_task(scene.client.intents.settle(caught.value.intent_id, 100))
        await asyncio.sleep(1)
        data = {"taskId": TASK} if is_early else {"taskId": TASK, "resultUrls": list(URLS)}
        body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
        assert [await scene.call_back(body), await scene.call_back(body)] == [200, 200]
        assert (await settling).task_id == TASK
        assert bot.client.stats().callbacks == 0
        assert await bot.client.resume() == []
        assert (await scene.client.generate("a red fox", key="k")).task_id == TASK


@pytest.mark.fault("S1")
async def test_a_dead_clients_lost_answer_is_settled_by_the_next_one() -> None:
    """Nobody waits when the callback comes: it is stored, and looked at later."""
    async with two_namespaces(sold(lose_answer())) as (scene, _):
        with pytest.raises(SubmissionUnknown) as caught:
            await scene.client.generate("a red fox")
        await scene.client.aclose()
        assert await scene.call_back() == 200
        assert not looks(scene.server)
        row = await scene.journal.find(intent_id=caught.value.intent_id)
        assert row is not None
        assert (row.state, row.other_task_ids) == (State.UNKNOWN, (TASK,))
        await scene.client.open()
        await asyncio.sleep(2)
        assert [each.task_id for each in await scene.client.resume()] == [TASK]


@pytest.mark.fault("C26")
async def test_invented_tasks_of_another_namespace_are_bounded() -> None:
    """With a leaked token: so many are stored, and the others answered 503."""
    async with two_namespaces(sold(lose_answer())) as (scene, _):
        with pytest.raises(SubmissionUnknown):
            await scene.client.generate("a red fox")
        answers = [await scene.call_back(callback(f"{n:032x}")) for n in range(MOST_STORED + 5)]
        assert answers == [200] * MOST_STORED + [503] * 5
        assert await scene.call_back(callback(f"{0:032x}")) == 200
        assert len((await scene.row()).other_task_ids) == MOST_STORED
        assert await scene.call_back(b"garbage") == 503


@pytest.mark.fault("S1")
async def test_a_client_of_another_namespace_stands_in_nobodys_way() -> None:
    """It has the same receiver, got it first, and cannot look at tasks that are not its own."""
    journal, receiver = MemoryJournal(), CallbackReceiver(None, port=0)
    async with (
        ScriptedServer(then=sold(accepted("another"))) as server,
        client_of(server, journal=journal, namespace="bot", receiver=receiver),
        client_of(server, journal=journal, receiver=receiver) as client,
    ):
        scene = Scene(server, client, receiver)
        await client.generate("a red fox")
        # The POST has bought two tasks.
        assert await scene.call_back() == 200
        row = await scene.row()
        assert (row.task_id, row.other_task_ids) == ("another", (TASK,))
        assert client.stats().callbacks == 1


async def test_a_token_of_another_service_is_unknown() -> None:
    """A sandbox's client does not take the callbacks of MidAPI, whose tasks it cannot see."""
    journal, receiver = MemoryJournal(), CallbackReceiver(None, port=0)
    async with ScriptedServer(then=sold(lose_answer())) as one, ScriptedServer() as two:
        async with client_of(two, journal=journal, receiver=receiver):
            reached = CallbackReceiver(receiver.url)
            async with client_of(one, journal=journal, receiver=reached) as client:
                with pytest.raises(SubmissionUnknown):
                    await client.generate("a red fox")
                assert await Scene(one, client, receiver).call_back() == 404


# ─── a task of another intent, and two tasks of one ──────────────────────────────────────────────


def sold(*tasks: Play) -> Callable[[Received], Step]:
    """A script: what is answered to the POSTs, and every look shows a task that fits."""
    answers = iter(tasks)

    def step(request: Received) -> Step:
        play = next(answers) if request.method == "POST" else looked(task_of(request))
        return play(request) if callable(play) else play

    return step


@pytest.mark.fault("C27")
async def test_the_task_of_another_intent_is_critical_and_the_true_callback_binds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Though its record fits: a line names both intents, and the true callback still comes."""
    async with scripted(sold(lose_answer(), accepted(OTHER))) as scene:
        with pytest.raises(SubmissionUnknown) as caught:
            await scene.client.generate("a red fox")
        theirs = await scene.client.generate("a red fox")
        assert await scene.call_back(callback(OTHER)) == 200
        (line,) = critical(caplog)
        assert all(name in line for name in (caught.value.intent_id, str(theirs.intent_id), OTHER))
        assert scene.client.stats().ignored_callbacks == 1
        assert not looks(scene.server)
        row = await scene.journal.find(intent_id=caught.value.intent_id)
        assert row is not None
        assert (row.state, row.other_task_ids) == (State.UNKNOWN, ())
        assert await scene.call_back() == 200
        assert (await scene.client.intents.settle(caught.value.intent_id)).task_id == TASK
        assert len(critical(caplog)) == 1


@pytest.mark.fault("C27")
async def test_another_intent_gets_the_task_during_the_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The journal decides; the intent stays unknown, and the true callback still binds."""
    async with scripted(sold(accepted(OTHER))) as scene:
        scene.server.add(lose_answer(), delay(looked(OTHER), 5))
        with pytest.raises(SubmissionUnknown) as caught:
            await scene.client.generate("a red fox")
        calling = asyncio.create_task(scene.call_back(callback(OTHER)))
        await asyncio.sleep(1)
        theirs = await scene.client.generate("a red fox")
        assert await calling == 200
        (line,) = critical(caplog)
        assert all(name in line for name in (caught.value.intent_id, str(theirs.intent_id), OTHER))
        assert scene.client.stats().ignored_callbacks == 1
        assert await scene.call_back() == 200
        assert (await scene.client.intents.settle(caught.value.intent_id)).task_id == TASK


@pytest.mark.fault("C27")
async def test_a_candidate_that_another_intent_gets_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was named before its own POST was answered; nothing but its own intent may keep it."""
    async with scripted(sold(accepted(OTHER))) as scene:
        scene.server.add(lose_answer(), NOT_THERE)
        with pytest.raises(SubmissionUnknown) as caught:
            await scene.client.generate("a red fox")
        assert await scene.call_back(callback(OTHER)) == 503
        theirs = await scene.client.generate("a red fox")
        await asyncio.sleep(5)
        (line,) = critical(caplog)
        assert all(name in line for name in (caught.value.intent_id, str(theirs.intent_id), OTHER))
        row = await scene.journal.find(intent_id=caught.value.intent_id)
        assert row is not None
        assert (row.state, row.other_task_ids) == (State.UNKNOWN, ())


@pytest.mark.fault("S33")
@pytest.mark.parametrize("proof", ["callback URL", "type and time", "later"])
async def test_a_second_task_that_a_callback_names_is_kept_and_critical(
    proof: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy sent the POST twice: the intent keeps both ids, and one line names both."""
    async with scripted(sold(accepted())) as scene:
        handle = await scene.client.generate("a red fox")
        params = {"prompt": "a red fox"}
        if proof == "callback URL":
            params["callBackUrl"] = scene.url
        found = looked(OTHER, paramJson=json.dumps(params))
        scene.server.add(*([NOT_THERE, NOT_THERE] if proof == "later" else []), found)
        assert await scene.call_back(callback(OTHER)) == (503 if proof == "later" else 200)
        await asyncio.sleep(5)
        row = await scene.row()
        assert (row.task_id, row.other_task_ids) == (TASK, (OTHER,))
        count = len(looks(scene.server))
        assert await scene.call_back(callback(OTHER)) == 200
        assert len(looks(scene.server)) == count
        (line,) = critical(caplog)
        assert "two tasks" in line
        assert TASK in line
        assert OTHER in line
        assert (await handle.wait()).task_id == TASK


@pytest.mark.fault("S33")
async def test_an_answer_that_names_another_intents_task_is_not_called_a_second_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a callback has bound the intent: the other intent keeps the task."""
    async with scripted(sold(delay(accepted(OTHER), 20), accepted(OTHER))) as scene:
        first = asyncio.create_task(scene.client.generate("a red fox"))
        await scene.server.arrived(1)
        assert (await scene.client.generate("a red fox")).task_id == OTHER
        assert await scene.call_back() == 200
        assert (await first).task_id == TASK
        await asyncio.sleep(30)
        rows = await scene.journal.rows()
        assert Counter(each.task_id for each in rows) == {TASK: 1, OTHER: 1}
        assert [each.other_task_ids for each in rows] == [(), ()]
        (line,) = critical(caplog)
        assert "of another intent" in line


# ─── invented task ids ───────────────────────────────────────────────────────────────────────────


def knowing(answer: Step) -> Callable[[Received], Step]:
    """A script: what is answered to a POST, and MidAPI knows one task."""

    def step(request: Received) -> Step:
        if request.method == "POST":
            return answer
        return looked() if task_of(request) == TASK else NOT_THERE

    return step


async def flood(scene: Scene, count: int = 5_000) -> set[int]:
    """Callbacks with invented ids, a hundred at once; returns the answers' statuses."""
    statuses: set[int] = set()
    for begin in range(0, count, 100):
        bodies = (callback(f"{number:032x}") for number in range(begin, begin + 100))
        statuses |= {*await asyncio.gather(*map(scene.call_back, bodies))}
    return statuses


@pytest.mark.fault("C28")
async def test_invented_task_ids_cause_few_looks_and_the_true_callback_gets_through(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """5,000 on the token of a lost answer; MidAPI sends the true one again after a minute."""
    caplog.set_level(logging.WARNING)

    async with scripted(knowing(lose_answer())) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        caplog.clear()
        assert await flood(scene, 2_500) == {503}
        assert await scene.call_back() == 503
        assert await flood(scene, 2_500) == {503}
        assert len(looks(scene.server)) == LOOKS
        row = await scene.row()
        assert len(row.other_task_ids) <= MOST_FOLLOWED
        (line,) = caplog.records
        assert row.intent_id in line.getMessage()
        await asyncio.sleep(60)
        assert await scene.call_back() == 200
        assert (await waiting).task_id == TASK
        await asyncio.sleep(7_200)
        per_task = Counter(task_of(each) for each in looks(scene.server))
        assert len(per_task) <= LOOKS + 1
        assert max(per_task.values()) < 40
        assert len(caplog.records) == 1


@pytest.mark.fault("C28")
async def test_invented_task_ids_for_a_known_task() -> None:
    """The true callback needs no look to be believed, so it wakes its waiter at once."""
    async with scripted(knowing(accepted())) as scene:
        waiting = asyncio.create_task(scene.client.generate_and_wait("a red fox"))
        await scene.server.arrived(1)
        await asyncio.sleep(1)
        assert await flood(scene) == {503}
        begun = asyncio.get_running_loop().time()
        assert await scene.call_back() == 200
        assert (await waiting).task_id == TASK
        assert asyncio.get_running_loop().time() - begun < 1
        assert len(looks(scene.server)) == LOOKS + 1
        assert (await scene.row()).other_task_ids == ()


@pytest.mark.fault("C28")
async def test_an_intent_has_room_for_a_few_candidates() -> None:
    """Ids that come slowly are looked at once each; few are stored, and fewer looked at again."""
    async with scripted(knowing(lose_answer())) as scene:
        with pytest.raises(SubmissionUnknown):
            await scene.client.generate("a red fox")
        for number in range(40):
            assert await scene.call_back(callback(f"{number:032x}")) == 503
            await asyncio.sleep(20)
        assert len((await scene.row()).other_task_ids) == MOST_STORED
        await asyncio.sleep(3_600)
        per_task = Counter(task_of(each) for each in looks(scene.server))
        assert len(per_task) == 40
        # Each is followed for less than five minutes, so three times in these thirteen.
        assert sum(count > 1 for count in per_task.values()) <= 3 * MOST_FOLLOWED
        assert await scene.call_back() == 200


@pytest.mark.fault("C28")
async def test_looks_are_counted_for_a_limited_number_of_intents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The count of the intent that was called back longest ago is dropped."""
    monkeypatch.setattr(candidates, "COUNTED_INTENTS", 2)
    async with scripted(until(1e9, NOT_THERE)) as scene:
        for number in range(3):
            with pytest.raises(SubmissionUnknown):
                await scene.client.generate("a red fox")
            body = scene.server.requests[2 * number].json()
            assert isinstance(body, dict)
            token = str(body["callBackUrl"]).rpartition("/")[2]
            assert await scene.receiver.handle(token, {}, callback()) == 503
        assert len(scene.client._opened().candidates._counts) == 2


# ─── failures ────────────────────────────────────────────────────────────────────────────────────


class Failing(MemoryJournal):
    """Raises an error in one of its methods, as long as that is wanted."""

    method = ""

    async def find(self, **names: object) -> Intent | None:
        if self.method == "find":
            raise JournalError("gone")
        return await super().find(**names)  # type: ignore[arg-type]

    async def advance(self, *args: object, **names: object) -> Intent:
        if self.method == "advance":
            raise JournalError("gone")
        return await super().advance(*args, **names)  # type: ignore[arg-type]

    async def rows(self, *args: object, **names: object) -> list[Intent]:
        if self.method == "rows":
            raise JournalError("gone")
        return await super().rows(*args, **names)  # type: ignore[arg-type]


@pytest.mark.fault("C26")
@pytest.mark.parametrize("method", ["find", "advance", "rows"])
async def test_candidates_outlast_a_broken_journal(method: str) -> None:
    """The looks go on in this process, and the task is bound when the journal works again."""
    journal, receiver = Failing(), CallbackReceiver(None, port=0)
    async with (
        ScriptedServer(then=until(10, NOT_THERE)) as server,
        client_of(server, receiver=receiver, journal=journal) as client,
    ):
        scene = Scene(server, client, receiver)
        with pytest.raises(SubmissionUnknown):
            await client.generate("a red fox")
        journal.method = "advance" if method == "advance" else ""
        assert await scene.call_back() == 503
        journal.method = method
        client._opened().candidates.resume("any")
        await asyncio.sleep(30)
        journal.method = ""
        assert State.UNKNOWN is (await scene.row()).state
        await asyncio.sleep(15)
        assert (await scene.row()).task_id == TASK


@pytest.mark.fault("C26")
async def test_closing_ends_the_looks() -> None:
    """A look under way, one that is planned, and every later one."""
    async with scripted(until(1e9, NOT_THERE)) as scene:
        with pytest.raises(SubmissionUnknown):
            await scene.client.generate("a red fox")
        assert await scene.call_back() == 503
        session, row = scene.client._opened(), await scene.row()
        scene.server.add(delay(looked(OTHER), 5))
        checking = asyncio.create_task(session.candidates.check(row, OTHER))
        await scene.server.arrived(3)
        await session.candidates.aclose()
        assert await checking is None
        count = len(looks(scene.server))
        session.candidates.follow(row)
        await asyncio.sleep(3_600)
        assert len(looks(scene.server)) == count
