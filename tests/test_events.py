"""What ``on_event`` gets, in which order; an observer can neither stop nor slow a client."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest

from midapi_async import (
    AuthenticationError,
    BadRequestError,
    CallbackReceiver,
    ClientClosed,
    InvalidRequestError,
    MemoryJournal,
    MidAPIError,
    RateLimit,
    ResultMissing,
    SubmissionUnknown,
    TaskFailed,
    TaskNotFound,
    TaskStatus,
    WaitTimeout,
)
from midapi_async._runtime.observer import MOST_WAITING, Observer
from midapi_async._wire.tokens import new_token
from midapi_async.events import (
    Accepted,
    CalledBack,
    Event,
    Failed,
    Finished,
    Looked,
    Queued,
    Retrying,
    Sent,
)
from tests.callbacks.test_candidates import scripted
from tests.support.leaks import LoopWatch
from tests.support.scripted import Answer, ScriptedServer, lose_answer, reply
from tests.world import TASK, accepted, client_of, looked, mid, ok, refused, selling

EVENTS = [
    Queued(intent_id="1f", key="fox", place=3),
    Sent(intent_id="1f", key="fox"),
    Retrying(intent_id="1f", reason="connection refused", delay=2.0, left=48.0),
    Accepted(intent_id="1f", task_id=TASK),
    Looked(task_id=TASK, status=TaskStatus.GENERATING),
    Looked(task_id=TASK, problem="HTTP 502"),
    CalledBack(intent_id="1f", task_id=TASK),
    Failed(intent_id="1f", key="fox", error=BadRequestError(400, "no")),
]


def submission_events(events: list[Event]) -> list[type[Event]]:
    """The types of those events that are about submissions."""
    kinds = Queued, Sent, Retrying, Accepted, Failed
    return [type(event) for event in events if isinstance(event, kinds)]


async def test_a_submission_is_sent_and_accepted() -> None:
    """Its events name the key and the intent; the task is named as soon as it is known."""
    events: list[Event] = []
    begun = datetime.now(UTC)
    async with (
        ScriptedServer(then=selling()) as server,
        client_of(server, on_event=events.append, journal=MemoryJournal()) as client,
    ):
        handle = await client.generate("a red fox", key="fox")
        assert (await client.generate("a red fox", key="fox")).replayed
    assert submission_events(events) == [Sent, Accepted], "a key that was bought causes none"
    sent, bought = events
    assert {event.key for event in events} == {"fox"}
    assert {event.intent_id for event in events} == {handle.intent_id}
    assert (sent.task_id, bought.task_id) == (None, handle.task_id)
    assert begun <= sent.at <= bought.at <= datetime.now(UTC)
    assert sent.at.utcoffset() == timedelta(0)


async def test_a_submission_that_waits_for_a_slot_says_how_many_are_before_it() -> None:
    """Only one is sent at once; the others are queued in their order."""
    events: list[Event] = []
    limit = RateLimit(1, per=10.0)
    async with (
        ScriptedServer(then=selling()) as server,
        client_of(server, on_event=events.append, rate_limit=limit) as client,
    ):
        await asyncio.gather(*(client.generate(f"fox {n}", key=f"fox {n}") for n in range(4)))
    places = {event.key: event.place for event in events if isinstance(event, Queued)}
    assert places == {"fox 1": 0, "fox 2": 1, "fox 3": 2}
    assert submission_events(events).count(Accepted) == 4


async def test_a_retry_says_why_when_and_for_how_long() -> None:
    """After a refusal that may be sent again."""
    events: list[Event] = []
    answers = iter([refused(429), refused(455, "maintenance"), accepted()])
    async with (
        ScriptedServer(then=mid(submit=lambda _: next(answers))) as server,
        client_of(server, on_event=events.append) as client,
    ):
        await client.generate("a red fox")
    kinds = submission_events(events)
    assert [kind for kind in kinds if kind is not Queued] == [
        *(Sent, Retrying, Sent, Retrying, Sent, Accepted)
    ]
    first, second = (event for event in events if isinstance(event, Retrying))
    assert "429" in first.reason
    assert "maintenance" in second.reason
    assert 0 < second.left < first.left
    assert first.delay > 0


@pytest.mark.parametrize("way", ["refused", "unknown"])
async def test_a_submission_without_a_task_has_failed(way: str) -> None:
    """The event has the error that the caller gets."""
    events: list[Event] = []
    answer = refused(400) if way == "refused" else lose_answer()
    async with (
        ScriptedServer(then=mid(submit=answer)) as server,
        client_of(server, on_event=events.append) as client,
    ):
        with pytest.raises((BadRequestError, SubmissionUnknown)) as caught:
            await client.generate("a red fox", key="fox")
    assert submission_events(events) == [Sent, Failed]
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.error is caught.value
    assert (failed.key, failed.intent_id) == ("fox", caught.value.intent_id)


async def test_a_lost_answer_that_a_callback_brings_is_accepted_once() -> None:
    """The callback comes while the submission is unknown; a second one changes nothing."""
    events: list[Event] = []
    step = mid(submit=lose_answer(), look=looked())
    async with scripted(step, on_event=events.append) as scene:
        with pytest.raises(SubmissionUnknown):
            await scene.client.generate("a red fox")
        assert await scene.call_back() == 200
        assert await scene.call_back() == 200
    assert submission_events(events) == [Sent, Failed, Accepted]
    assert [event.task_id for event in events if isinstance(event, Accepted)] == [TASK]


# ─── tasks that are waited for ───────────────────────────────────────────────────────────────────


def task_events(events: list[Event]) -> list[type[Event]]:
    """The types of the events after the acceptance."""
    return [type(event) for event in events if isinstance(event, Looked | Finished | Failed)]


async def test_a_task_is_looked_at_and_finishes_once_however_many_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The events name key and intent, and are the only lines of the log: two at INFO."""
    events: list[Event] = []
    answers = iter([looked(flag=0), reply(502), looked()])
    caplog.set_level(logging.DEBUG, "midapi_async")
    async with (
        ScriptedServer(then=mid(accepted(), lambda _: next(answers))) as server,
        client_of(server, on_event=events.append) as client,
    ):
        handle = await client.generate("a red fox", key="fox")
        ended = await asyncio.gather(*(handle.wait() for _ in range(3)))
    assert task_events(events) == [Looked, Looked, Looked, Finished]
    names = {(each.key, each.intent_id, each.task_id) for each in events[1:]}
    assert names == {("fox", handle.intent_id, TASK)}
    first, failing, last, finished = events[2:]
    assert isinstance(first, Looked)
    assert isinstance(failing, Looked)
    assert isinstance(last, Looked)
    assert isinstance(finished, Finished)
    assert (first.status, first.problem) == (TaskStatus.GENERATING, None)
    assert failing.status is None
    assert "502" in (failing.problem or "")
    assert last.status is TaskStatus.SUCCEEDED
    assert finished.details is ended[0]
    lines = [(each.levelname, each.getMessage()) for each in caplog.records]
    tracked = [line for each, line in zip(caplog.records, lines, strict=True)
               if each.name == "midapi_async.tracking"]  # fmt: skip
    assert tracked == [("DEBUG", str(each)) for each in (first, failing, last)] + [
        ("INFO", str(finished))
    ]
    assert [level for level, _ in lines].count("INFO") == 2


@pytest.mark.parametrize(
    ("look", "error"),
    [
        (looked(flag=3, errorMessage="no"), TaskFailed),
        (ok(None), TaskNotFound),
        (refused(401), AuthenticationError),
        (looked(flag=1, resultInfoJson=None), ResultMissing),
        (looked(flag=1, paramJson=json.dumps({"callBackUrl": "http://me/" + new_token()})),
         SubmissionUnknown),
    ],
)  # fmt: skip
async def test_a_task_without_a_result_has_failed(look: Answer, error: type[MidAPIError]) -> None:
    """Once for each task, with the error that its callers get, and with its names."""
    events: list[Event] = []
    receiver = CallbackReceiver(None, port=0)
    async with (
        ScriptedServer(then=mid(accepted(), look)) as server,
        client_of(server, on_event=events.append, receiver=receiver) as client,
    ):
        handle = await client.generate("a red fox", key="fox")
        caught = await asyncio.gather(*(handle.wait() for _ in range(3)), return_exceptions=True)
    assert {type(each) for each in caught} == {error}
    assert task_events(events).count(Failed) == 1
    assert Finished not in task_events(events)
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert type(failed.error) is error
    assert str(failed.error) == str(caught[0])
    assert (failed.key, failed.intent_id, failed.task_id) == ("fox", handle.intent_id, TASK)


async def test_a_wait_that_ends_without_its_task_is_no_event() -> None:
    """A timeout and a closed client say nothing about the task; an id alone has no other names."""
    events: list[Event] = []
    async with (
        ScriptedServer(then=mid(look=looked(flag=0))) as server,
        client_of(server, on_event=events.append) as client,
    ):
        with pytest.raises(WaitTimeout):
            await client.task(TASK).wait(timeout=100)
        waiting = asyncio.create_task(client.task(TASK).wait())
        await asyncio.sleep(100)
        client.stop_waiting()
        with pytest.raises(ClientClosed):
            await waiting
    assert set(task_events(events)) == {Looked}
    assert {(each.key, each.intent_id, each.task_id) for each in events} == {(None, None, TASK)}


# ─── observers ───────────────────────────────────────────────────────────────────────────────────


async def test_a_sync_observer_that_raises_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client goes on, and the observer gets the later events."""
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        raise ZeroDivisionError

    async with (
        ScriptedServer(then=selling()) as server,
        client_of(server, on_event=observe) as client,
    ):
        for _ in range(3):
            await client.generate("a red fox")
    assert submission_events(events) == [Sent, Accepted] * 3
    (line,) = [each for each in caplog.records if "on_event" in each.getMessage()]
    assert line.levelno == logging.ERROR


async def test_an_async_observer_gets_one_event_after_the_other() -> None:
    """In their order, also those that are waiting when the client closes."""
    events: list[Event] = []
    busy = 0

    class Slow:
        async def __call__(self, event: Event) -> None:
            nonlocal busy
            busy += 1
            assert busy == 1
            await asyncio.sleep(0.5)
            events.append(event)
            busy -= 1

    async with (
        ScriptedServer(then=selling()) as server,
        client_of(server, on_event=Slow()) as client,
    ):
        handles = [await client.generate(f"fox {n}") for n in range(3)]
        assert len(events) < 6, "the client has not waited for the observer"
    assert submission_events(events) == [Sent, Accepted] * 3
    assert [event.task_id for event in events[1::2]] == [handle.task_id for handle in handles]


async def test_an_event_in_the_turn_in_which_the_queue_was_emptied_is_delivered() -> None:
    """The last event of a client would wait for the next one, which never comes."""
    got: list[int] = []

    async def observe(number: int) -> None:
        got.append(number)

    observer: Observer[int] = Observer(observe)
    observer.notify(1)
    asyncio.get_running_loop().call_soon(observer.notify, 2)  # right after 1 was delivered
    await asyncio.sleep(0.1)
    assert got == [1, 2]
    await observer.aclose(1.0)


@pytest.mark.parametrize("text", ["accepted", "succeeded"])
async def test_a_logging_filter_that_raises_loses_no_result(
    text: str, loop_watch: LoopWatch
) -> None:
    """The caller gets what was paid for; the failure of the filter is logged elsewhere."""

    def refuse(entry: logging.LogRecord) -> bool:
        if entry.levelno >= logging.INFO and text in entry.getMessage():
            raise ZeroDivisionError
        return True

    logs = [logging.getLogger(f"midapi_async.{name}") for name in ("submission", "tracking")]
    for log in logs:
        log.addFilter(refuse)
    try:
        async with ScriptedServer(then=selling()) as server, client_of(server) as client:
            async with asyncio.timeout(600):
                assert (await client.generate_and_wait("a red fox")).is_final
    finally:
        for log in logs:
            log.removeFilter(refuse)
    loop_watch.reports.clear()


async def test_an_async_observer_that_raises_or_hangs_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its failure is logged once; closing waits some seconds for it, not for ever."""
    count = 0

    async def observe(_: Event) -> None:
        nonlocal count
        count += 1
        if count < 4:
            raise ZeroDivisionError
        await asyncio.sleep(1e6)

    time = asyncio.get_running_loop().time
    async with ScriptedServer(then=selling()) as server:
        async with client_of(server, on_event=observe) as client:
            for _ in range(3):
                await client.generate("a red fox")
            begun = time()
        assert time() - begun < 10.0
    assert count == 4
    assert len([each for each in caplog.records if "on_event" in each.getMessage()]) == 1


async def test_events_beyond_the_queue_are_dropped_and_counted() -> None:
    """The oldest are kept, in their order."""
    got: list[int] = []

    async def observe(number: int) -> None:
        got.append(number)

    observer: Observer[int] = Observer(observe)
    for number in range(MOST_WAITING + 5):
        observer.notify(number)
    assert observer.dropped == 5
    await observer.aclose(1.0)
    assert got == list(range(MOST_WAITING))


async def test_a_further_observer_gets_the_events_while_its_block_runs() -> None:
    """Beside the client's own one; one that raises keeps the events from nobody."""
    own: list[Event] = []
    further: list[Event] = []

    def broken(_: Event) -> None:
        raise ZeroDivisionError

    async def never(_: Event) -> None:
        raise AssertionError

    async with (
        ScriptedServer(then=selling()) as server,
        client_of(server, on_event=own.append) as client,
    ):
        await client.generate("a red fox")
        with client.observe(broken), client.observe(further.append):
            await client.generate("a blue fox")
        await client.generate("a green fox")
        with pytest.raises(InvalidRequestError, match="on_event: must be a function"):
            client.observe(never)  # it would have to be awaited
    assert submission_events(own) == [Sent, Accepted] * 3
    assert further == own[2:4]


@pytest.mark.parametrize("observer", ["print", 1, [print]])
def test_an_observer_that_cannot_be_called_is_refused(observer: object) -> None:
    """With an error that names the option."""
    with pytest.raises(InvalidRequestError, match="on_event: must be a function"):
        client_of("http://127.0.0.1:1", on_event=observer)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_a_sentence(event: Event) -> None:
    """It names what it is about."""
    text = str(event)
    assert (event.task_id or event.intent_id or "") in text
    assert event.key is None or repr(event.key) in text
    assert "\n" not in text
