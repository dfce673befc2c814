"""What is known is not requested again: `details`, on a handle and on the client."""

import asyncio
import logging
import traceback
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async import (
    APIError,
    CallbackReceiver,
    ClientClosed,
    Intent,
    InvalidRequestError,
    JournalError,
    MemoryJournal,
    MidAPIError,
    PollPolicy,
    State,
    SubmissionUnknown,
    TaskFailed,
    TaskNotFound,
)
from midapi_async._tracking import seen as seen_module
from midapi_async._tracking.seen import FORGOTTEN_AFTER, Seen
from midapi_async.handle import check_seconds
from midapi_async.journal.sqlite import SQLiteJournal
from tests.support.scripted import Answer, Received, ScriptedServer, delay, hang, reply
from tests.world import TASK, accepted, client_of, looked, looks, mid, ok, refused

OTHER = "51" * 16


@pytest.mark.fault("P14")
async def test_details_of_one_task_share_a_look() -> None:
    """Twenty who ask at the same time, on the client and on handles: one GET."""
    async with (
        ScriptedServer(then=mid(look=delay(looked(flag=0), 2.0))) as server,
        client_of(server) as client,
    ):
        asking = [client.details(TASK) for _ in range(10)]
        asking += [client.task(TASK).details() for _ in range(10)]
        found = await asyncio.gather(*asking, client.details(OTHER), return_exceptions=True)
        assert not any(details.is_final for details in found[:20])  # type: ignore[union-attr]
        assert isinstance(found[20], MidAPIError)  # the record of another task
        assert sum(TASK in request.target for request in looks(server)) == 1
        await client.details(TASK)  # at another moment
        assert sum(TASK in request.target for request in looks(server)) == 2


@pytest.mark.fault("P14")
async def test_a_cancelled_caller_leaves_the_look_to_the_others() -> None:
    """Also if it is the first one, and also if all of them leave."""
    async with (
        ScriptedServer(then=mid(look=delay(looked(flag=0), 2.0))) as server,
        client_of(server) as client,
    ):
        first, *others = [asyncio.create_task(client.details(TASK)) for _ in range(3)]
        await asyncio.sleep(1)
        first.cancel()
        assert not (await asyncio.gather(*others))[0].is_final
        assert first.cancelled()
        assert len(looks(server)) == 1
        left = asyncio.create_task(client.details(TASK))
        await asyncio.sleep(1)
        left.cancel()
        await asyncio.wait({left})
        assert not (await client.details(TASK)).is_final
        assert len(looks(server)) == 2


@pytest.mark.fault("P14")
@pytest.mark.parametrize(
    ("answer", "kind"),
    [(refused(500, "a detail"), APIError), (ok(None), TaskNotFound), (reply(502), MidAPIError)],
)
async def test_each_caller_gets_its_own_error(answer: Answer, kind: type[MidAPIError]) -> None:
    """With the same facts and text, and a traceback that does not grow."""
    async with (
        ScriptedServer(then=mid(look=delay(answer, 1.0))) as server,
        client_of(server) as client,
    ):
        asking = (client.details(TASK) for _ in range(20))
        errors = await asyncio.gather(*asking, return_exceptions=True)
        assert len(looks(server)) == 1
        assert len({id(error) for error in errors}) == 20
        assert len({(type(error), str(error), error.task_id) for error in errors}) == 1  # type: ignore[union-attr]
        assert len({len(traceback.extract_tb(error.__traceback__)) for error in errors}) == 1  # type: ignore[union-attr]
        assert isinstance(errors[0], kind)
        assert errors[0].task_id == TASK


async def test_closing_the_client_ends_a_shared_look() -> None:
    """Each caller gets `ClientClosed` with the task's id; nothing is left running."""
    async with ScriptedServer(then=mid(look=hang())) as server:
        async with client_of(server) as client:
            asking = [asyncio.create_task(client.details(TASK)) for _ in range(3)]
            await server.arrived()
        for each in asking:
            with pytest.raises(ClientClosed) as caught:
                await each
            assert caught.value.task_id == TASK


async def test_closing_the_client_before_a_shared_look_has_begun() -> None:
    """In the turn of the loop in which it was asked for."""
    async with ScriptedServer(then=mid(look=hang())) as server:
        async with client_of(server) as client:
            asking = asyncio.create_task(client.details(TASK))
            await asyncio.sleep(0)
            await client._session.seen.aclose()  # type: ignore[union-attr]
            with pytest.raises(ClientClosed):
                await asking


async def test_a_final_state_needs_no_second_look() -> None:
    """Whatever `max_age` is, and whatever a handle or a wait has seen it."""
    failed = looked(OTHER, flag=2, errorMessage="no")
    async with ScriptedServer([looked(), failed]) as server, client_of(server) as client:
        handle = client.task(TASK)
        assert handle.final is None
        details = await handle.details()
        assert handle.final == details
        assert await handle == details
        assert await client.details(TASK) == details
        assert await client.task(TASK).details() == details
        with pytest.raises(TaskFailed):
            await client.task(OTHER)
        assert (await client.details(OTHER)).error_message == "no"
        assert len(looks(server)) == 2


@pytest.mark.fault("P5")
async def test_a_final_state_stays_known() -> None:
    """A later look that shows the task generating, as after a callback, does not undo it."""
    answers = iter([looked(), looked(flag=0)])
    async with ScriptedServer(then=lambda _: next(answers)) as server, client_of(server) as client:
        assert (await client.details(TASK)).is_final
        assert await client._session.seen.look(TASK) is not None  # type: ignore[union-attr]
        assert (await client.details(TASK)).is_final
        assert len(looks(server)) == 2


async def test_details_that_are_young_enough_need_no_look() -> None:
    """`max_age` counts from the end of the last look, whoever made it."""
    async with (
        ScriptedServer(then=mid(look=looked(flag=0))) as server,
        client_of(server, polling=PollPolicy(floor=5, ceiling=5)) as client,
    ):
        for max_age, expected in [(5.0, 1), (5, 1), (0, 2), (True + 0.5, 2)]:
            await client.details(TASK, max_age=max_age)
            assert len(looks(server)) == expected
        await asyncio.sleep(3)
        await client.details(TASK, max_age=3.5)
        assert len(looks(server)) == 2
        await client.task(TASK).details(max_age=2.5)
        assert len(looks(server)) == 3
        # The looks of a wait count as well.
        waiting = asyncio.create_task(client.task(TASK).wait())
        await asyncio.sleep(30)
        before = len(looks(server))
        assert before > 3
        await client.details(TASK, max_age=60)
        assert len(looks(server)) == before
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_a_failed_look_leaves_what_was_known() -> None:
    """Within `max_age` the last answer counts; without it, the error is raised."""
    script = [looked(flag=0), reply(502)]
    async with ScriptedServer(script) as server, client_of(server) as client:
        await client.details(TASK)
        with pytest.raises(MidAPIError):
            await client.details(TASK)
        assert not (await client.details(TASK, max_age=60)).is_final


@pytest.mark.parametrize(
    ("answer", "error"),
    [(reply(502), APIError), (refused(422, "recordInfo is null"), TaskNotFound)],
    ids=["failed", "not there yet"],
)
async def test_a_failed_look_is_not_repeated_within_max_age(
    answer: Answer, error: type[MidAPIError]
) -> None:
    """So a page that many people ask for causes few looks, too, while none can be answered."""
    async with (
        ScriptedServer([answer, answer, looked(flag=0), answer]) as server,
        client_of(server) as client,
    ):
        for expected in (1, 2):
            for _ in range(3):
                with pytest.raises(error):
                    await client.details(TASK, max_age=5)
                await asyncio.sleep(1)
            assert len(looks(server)) == expected
            await asyncio.sleep(2)
        await client.details(TASK, max_age=5)
        with pytest.raises(error):
            await client.details(TASK)
        # The failure before is over; what was seen meanwhile counts.
        assert not (await client.details(TASK, max_age=5)).is_final
        assert len(looks(server)) == 4


@pytest.mark.parametrize("folder", [True, False])
async def test_final_details_come_from_the_journal(folder: bool, tmp_path: Path) -> None:
    """Another client on the same journal looks no more: not for an id, nor for a handle."""
    journal = SQLiteJournal(tmp_path / "journal") if folder else MemoryJournal()
    async with ScriptedServer([accepted(), looked()]) as server:
        async with client_of(server, journal=journal) as client:
            details = await client.generate_and_wait("a red fox")
        async with client_of(server, journal=journal) as client:
            assert await client.details(TASK) == details
            assert await client.task(TASK).details() == details
        assert len(looks(server)) == 1
    await journal.aclose()


async def test_a_look_of_details_is_kept_in_the_journal() -> None:
    """So a later process knows the end of a task that nobody waited for; it is not taken."""
    journal = MemoryJournal()
    async with ScriptedServer([accepted(), looked(flag=0), looked()]) as server:
        async with client_of(server, journal=journal) as client:
            await client.generate("a red fox")
            await client.details(TASK)
            [row] = await journal.rows()
            assert row.state is State.ACCEPTED
            await client.details(TASK)
        async with client_of(server, journal=journal) as client:
            [handle] = await client.resume()
            assert handle.final is not None
            assert (await handle).is_final
        assert len(looks(server)) == 2
    [row] = await journal.rows()
    assert (row.state, row.taken) == (State.SUCCEEDED, True)


@pytest.mark.fault("S17")
async def test_a_journal_that_fails_under_results_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever finds them, and again after it has worked; each caller has got its result."""

    class Full(MemoryJournal):
        is_full = True

        async def advance(self, intent_id: str, *args: object, **names: object) -> Intent:
            if self.is_full and names.get("details") is not None:
                raise JournalError("no space left")
            return await super().advance(intent_id, *args, **names)  # type: ignore[arg-type]

    def warnings() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]

    journal, ids = Full(), iter([f"{number:032x}" for number in range(6)])
    answers = mid(lambda _: accepted(next(ids)), lambda request: looked(request.target[-32:]))
    async with ScriptedServer(then=answers) as server, client_of(server, journal=journal) as client:

        async def get(count: int) -> None:
            for _ in range(count):
                handle = await client.generate("a red fox")
                assert (await client.details(handle.task_id)).is_final
                assert (await handle).is_final
            await client._opened().recorder.writes.join()

        await get(3)
        text = "results could not be recorded, and may be returned once more later: no space left"
        assert warnings() == [text]
        journal.is_full = False
        await get(1)
        journal.is_full = True
        await get(2)
        assert warnings() == [text, text]


@pytest.mark.fault("S16")
@pytest.mark.parametrize("then", ["the next one", "resume", "untaken", "close"])
async def test_results_that_could_not_be_recorded_are_recorded_later(then: str) -> None:
    """Taken or not: none that was returned is returned again, here or by the next process."""

    class Full(MemoryJournal):
        is_full = True

        async def advance(self, intent_id: str, *args: object, **names: object) -> Intent:
            if self.is_full and names.get("details") is not None:
                raise JournalError("no space left")
            return await super().advance(intent_id, *args, **names)  # type: ignore[arg-type]

    journal, ids = Full(), iter([f"{number:032x}" for number in range(6)])
    answers = mid(lambda _: accepted(next(ids)), lambda request: looked(request.target[-32:]))
    async with ScriptedServer(then=answers) as server, client_of(server, journal=journal) as client:
        handles = [await client.generate("a red fox") for _ in range(6)]
        for handle in handles[:3]:
            await handle
        for handle in handles[3:5]:
            assert (await client.details(handle.task_id)).is_final
        tasks = {handle.task_id for handle in handles[3:]}
        await client._opened().recorder.writes.join()
        assert {row.state for row in await journal.rows()} == {State.ACCEPTED}
        journal.is_full = False
        if then == "the next one":
            await handles[5]
            for _ in range(2):  # that one, and the rest
                await client._opened().recorder.writes.join()
            rows = await journal.rows()
            assert [row.taken for row in rows] == [True, True, True, False, False, True]
        elif then == "resume":
            assert {each.task_id for each in await client.resume()} == tasks
        elif then == "untaken":
            async with aclosing(client.untaken()) as untaken:
                assert {(await anext(untaken)).task_id for _ in range(3)} == tasks
    rows = await journal.rows()
    assert {row.state for row in rows[:5]} == {State.SUCCEEDED}
    assert [row.taken for row in rows[:5]] == [True, True, True, False, False]


async def test_a_result_is_not_recorded_for_another_task_of_the_intent() -> None:
    """A task that is only among the other tasks of an intent does not end the intent."""
    journal = MemoryJournal()
    answers = mid(accepted(), lambda request: looked(request.target[-32:]))
    async with ScriptedServer(then=answers) as server:
        async with client_of(server, journal=journal) as client:
            handle = await client.generate("a red fox")
            await journal.advance(handle.intent_id or "", candidate=OTHER)
            await client.task(OTHER)
            await client.details(OTHER)
        [row] = await journal.rows()
        assert (row.state, row.taken, row.details) == (State.ACCEPTED, False, None)


@pytest.mark.parametrize("flag", [0, 1])
async def test_a_remembered_record_of_another_submission_is_no_details_of_a_handle(
    flag: int,
) -> None:
    """A handle compares the token also in a record that is remembered; the journal gets none."""
    foreign = {"callBackUrl": f"https://a.example/mjt_{'x' * 43}"}
    record, journal = looked(flag=flag, paramJson=foreign), MemoryJournal()
    async with ScriptedServer(then=mid(accepted(), record)) as server:
        receiver = CallbackReceiver(None, port=0)
        async with client_of(server, receiver=receiver, journal=journal) as client:
            handle = await client.generate("a red fox")
            assert (await client.details(TASK)).is_final == bool(flag)
            await client._session.recorder.writes.join()  # type: ignore[union-attr]
            [row] = await journal.rows()
            assert (row.state, row.details) == (State.ACCEPTED, None)
            with pytest.raises(SubmissionUnknown):
                await handle.details(max_age=60)
            assert handle.final is None
            assert len(looks(server)) == 1


@pytest.mark.parametrize("wrong", [-1, -0.001, float("nan"), float("-inf"), True, None, "5", [1]])
async def test_a_wrong_max_age_is_refused(wrong: object) -> None:
    """Before anything is sent, whatever is known."""
    async with ScriptedServer([looked()]) as server, client_of(server) as client:
        await client.details(TASK)
        handle = client.task(TASK)
        for asking in (handle.details(wrong), client.details(TASK, wrong)):  # type: ignore[arg-type]
            with pytest.raises(InvalidRequestError, match="max_age: must be a number"):
                await asking


@given(st.integers(min_value=0) | st.floats(min_value=0))
def test_every_age_that_is_not_negative_is_accepted(age: float) -> None:
    """Also huge and infinite ones, as a finite float."""
    assert 0 <= check_seconds(age, "max_age", least=0.0) < float("inf")


async def test_what_is_remembered_is_bounded_and_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of tasks, and an hour; a record that is looked at again is the newest."""

    def step(request: Received) -> Answer:
        return looked(request.target[-32:], flag=0)

    monkeypatch.setattr(seen_module, "REMEMBERED", 20)
    async with ScriptedServer(then=step) as server, client_of(server) as client:
        seen: Seen = client._session.seen  # type: ignore[union-attr]
        for number in range(30):
            await client.details(f"{number:032x}")
        assert len(seen._records) == 20
        before = len(looks(server))
        await client.details(f"{9:032x}", max_age=1e9)
        assert len(looks(server)) == before + 1
        await client.details(f"{11:032x}", max_age=1e9)
        assert len(looks(server)) == before + 1
        await asyncio.sleep(FORGOTTEN_AFTER + 1)
        await client.details(f"{11:032x}", max_age=1e9)
        assert len(looks(server)) == before + 2
        assert len(seen._records) < 20
        assert not seen._shared
