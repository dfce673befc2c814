"""`client.generate_many`: every row ends once, and what no row has caused stops or pauses all."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from midapi_async import (
    APIError,
    AuthenticationError,
    Batch,
    BatchItem,
    BatchProgress,
    BatchRequest,
    ClientClosed,
    ImageToImage,
    InsufficientCreditsError,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MemoryJournal,
    MidAPIClient,
    PromptRefusedError,
    RateLimit,
    RetryPolicy,
    SpendingCapError,
    SubmissionUnknown,
    TaskFailed,
    TaskStatus,
    TextToImage,
    TransportError,
)
from midapi_async.sandbox import (
    Faults,
    Sandbox,
    answer_code,
    delay,
    fail_task,
    lose_answer,
    refuse_connection,
)
from tests.files.samples import SAMPLES
from tests.support.scripted import Answer, Received, ScriptedServer
from tests.support.scripted import delay as later
from tests.support.secrets import API_KEY
from tests.world import accepted, client_of, looked, mid, ok, refused, selling, submits

NO_PAUSES = RetryPolicy(give_up_after=0.1)


async def run(client: MidAPIClient, requests: Any, **options: Any) -> list[BatchItem]:
    """All items of a batch, by their index."""
    async with client.generate_many(requests, **options) as batch:
        items = [item async for item in batch]
    return sorted(items, key=lambda item: item.index)


async def until_it_stops(batch: Batch) -> tuple[list[BatchItem], Exception | None]:
    """The items of a batch, and the error with which its iteration ends."""
    items: list[BatchItem] = []
    try:
        async for item in batch:
            items.append(item)  # noqa: PERF401 - kept when the iteration raises
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return items, error
    return items, None


def prompts(count: int) -> list[str]:
    """So many different prompts."""
    return [f"prompt {number}" for number in range(count)]


def bought(sandbox: Sandbox) -> Counter[object]:
    """How often each prompt was paid for."""
    return Counter(entry.body["prompt"] for entry in sandbox.ledger.accepted)


# ─── what a batch does ───────────────────────────────────────────────────────────────────────────


async def test_each_row_is_bought_and_downloaded_once(tmp_path: Path) -> None:
    """With its index, request, key, metadata, details and files; and the folder has them."""
    folder = tmp_path / "pictures"
    rows = [
        "a red fox",
        TextToImage("an owl", version="7"),
        BatchRequest("a whale", key="whale", metadata={"row": "3"}),
    ]
    async with (
        Sandbox(api_key=API_KEY) as sandbox,
        client_of(sandbox.url, journal=tmp_path / "journal") as client,
    ):
        fox, owl, whale = await run(client, rows, batch="zoo", download_to=folder)
        assert [each.error for each in (fox, owl, whale)] == [None, None, None]
        assert bought(sandbox) == {"a red fox": 1, "an owl": 1, "a whale": 1}
        assert fox.request == TextToImage("a red fox")
        assert owl.request == rows[1]
        assert (whale.key, whale.metadata) == ("whale", {"row": "3"})
        assert fox.key is not None
        assert fox.key.startswith("zoo/")
        assert fox.details is not None
        assert fox.details.status is TaskStatus.SUCCEEDED
        files = [path for item in (fox, owl, whale) for path in item.paths]
        assert sorted(folder.iterdir()) == sorted(files)
        assert len(files) == 12


async def test_a_second_run_needs_no_request_and_yields_the_same(tmp_path: Path) -> None:
    """In another client, with its rows in another order and one row more than before."""
    rows = [*prompts(5), "prompt 0", "prompt 0"]
    async with Sandbox(api_key=API_KEY) as sandbox:
        options: dict[str, Any] = {"batch": "dunes", "download_to": tmp_path / "out"}
        async with client_of(sandbox.url, journal=tmp_path / "journal") as client:
            first = await run(client, rows, **options)
        before = len(sandbox.ledger.requests)
        assert len(sandbox.ledger.accepted) == 7
        async with client_of(sandbox.url, journal=tmp_path / "journal") as client:
            again = await run(client, rows, **options)
            assert again == first
            back = await run(client, rows[::-1], **options)
            assert {each.key for each in back} == {each.key for each in first}
            assert len(sandbox.ledger.requests) == before
            await run(client, [*rows, "one more"], **options)
            assert len(sandbox.ledger.accepted) == 8


async def test_a_second_run_downloads_only_what_is_missing(tmp_path: Path) -> None:
    """One file was removed, so that one is fetched, and no other."""
    async with (
        Sandbox(api_key=API_KEY) as sandbox,
        client_of(sandbox.url, journal=tmp_path / "journal") as client,
    ):
        options: dict[str, Any] = {"batch": "dunes", "download_to": tmp_path / "out"}
        first = await run(client, prompts(3), **options)
        first[1].paths[2].unlink()
        before = len(sandbox.ledger.requests)
        assert await run(client, prompts(3), **options) == first
        assert [each.operation for each in sandbox.ledger.requests[before:]] == ["file"]
        assert first[1].paths[2].exists()


async def test_a_folder_that_cannot_be_used_is_found_before_anything_is_bought(
    tmp_path: Path,
) -> None:
    """A file is in its place, or in that of the folder above it."""
    (tmp_path / "file").write_text("")
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        for folder in (tmp_path / "file", tmp_path / "file" / "out"):
            with pytest.raises(InvalidRequestError, match="folder: "):
                await run(client, prompts(3), batch="dunes", download_to=folder)
        assert sandbox.ledger.requests == ()


async def test_rows_come_as_they_end_and_progress_counts_them() -> None:
    """The fast one first; `on_progress` sees each step, and its exceptions do not matter."""
    seen: list[BatchProgress] = []

    def look_on(progress: BatchProgress) -> None:
        seen.append(progress)
        raise ValueError

    durations = {("mj_txt2img", "relaxed"): 600.0, ("mj_txt2img", "turbo"): 20.0}
    rows = [TextToImage("slow", speed="relaxed"), TextToImage("quick", speed="turbo")]
    async with (
        Sandbox(api_key=API_KEY, durations=durations, credits=100) as sandbox,
        client_of(sandbox.url) as client,
        client.generate_many(rows, batch="two", on_progress=look_on) as batch,
    ):
        assert [item.index async for item in batch] == [1, 0]
        end = batch.progress
        assert (end.total, end.submitted, end.done, end.running, end.failed) == (2, 2, 2, 0, 0)
        assert end.spent == 100 - sandbox.credits
        assert end.rate > 0
        assert end.expected_end is None
        assert "2 rows have ended" in repr(batch)
    assert [each.submitted for each in seen] == [1, 2, 2, 2, 2]
    assert [each.done for each in seen] == [0, 0, 1, 2, 2]


async def test_at_most_so_many_rows_are_read_ahead() -> None:
    """Rows that have ended and were not taken count, too; an endless iterable may be left."""
    read = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"prompt {read}"

    async with ScriptedServer(then=mid(selling(), selling(), ok(100))) as server:
        async with (
            client_of(server) as client,
            client.generate_many(endless(), batch="b", running=5) as batch,
        ):
            await asyncio.sleep(3600)
            assert read == 5
            async for item in batch:
                assert item.error is None
                if item.index >= 12:
                    break
        assert 13 <= read <= 5 + 13
        assert len(submits(server)) <= read


async def test_leaving_the_block_detaches_what_runs(tmp_path: Path) -> None:
    """Nothing more is submitted; what was bought is yielded by the next run, without a POST."""
    async with (
        Sandbox(api_key=API_KEY) as sandbox,
        client_of(sandbox.url, journal=tmp_path) as client,
    ):
        async with client.generate_many(prompts(50), batch="b", running=10) as batch:
            assert (await anext(batch)).error is None
        count = len(sandbox.ledger.accepted)
        await asyncio.sleep(600)
        assert len(sandbox.ledger.accepted) == count
        assert count < 50
        assert await anext(batch, None) is None
        items = await run(client, prompts(50), batch="b")
        assert [each.error for each in items] == [None] * 50
        assert set(bought(sandbox).values()) == {1}


async def test_closing_the_client_ends_the_iteration() -> None:
    """With `ClientClosed`, as for any other wait; no row is called failed for it."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        async with client.generate_many(prompts(5), batch="b") as batch:
            await asyncio.sleep(5)
            client.stop_waiting()
            with pytest.raises(ClientClosed):
                [item async for item in batch]
            assert batch.progress.failed == 0
            assert batch.progress.stopped is not None


async def test_a_batch_is_used_once_and_in_a_block() -> None:
    """Otherwise nobody would end its tasks."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        batch = client.generate_many(["a fox"], batch="b")
        with pytest.raises(InvalidRequestError, match="async with"):
            await anext(batch)
        async with batch:
            pass
        with pytest.raises(InvalidRequestError, match="used only once"):
            await batch.__aenter__()


# ─── keys ────────────────────────────────────────────────────────────────────────────────────────


async def test_without_keys_one_warning_says_that_it_cannot_be_resumed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, not for each row; rows with keys of their own need no name of the batch."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        await run(client, [BatchRequest("a fox", key="fox")])
        assert "cannot be resumed" not in caplog.text
        items = await run(client, prompts(3))
        assert [each.key for each in items] == [None] * 3
        assert caplog.text.count("cannot be resumed") == 1
        assert caplog.text.count("keys are kept in memory only") == 1


async def test_a_name_and_a_journal_in_memory_warn_of_the_keys(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As `generate` does with a key."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        await run(client, prompts(3), batch="dunes")
        assert caplog.text.count("keys are kept in memory only") == 1
        assert "cannot be resumed" not in caplog.text


async def test_two_rows_with_one_key_end_the_batch_before_the_second_is_submitted() -> None:
    """The error names both rows; the others that were begun are yielded before it is raised."""
    rows: list[str | BatchRequest] = [
        BatchRequest("a fox", key="a"),
        "an owl",
        BatchRequest("a whale", key="a"),
        "never read",
    ]
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        async with client.generate_many(rows, batch="b") as batch:
            items, error = await until_it_stops(batch)
        assert isinstance(error, InvalidRequestError)
        assert "rows 0 and 2 (counted from 0) have the same key 'a'" in str(error)
        assert [each.error for each in items if each.index != 0] == []
        assert bought(sandbox)["a whale"] == 0


async def test_rows_that_are_wrong_are_items_with_an_error(tmp_path: Path) -> None:
    """Each by itself, and the others are bought; nothing is sent for a wrong one."""
    rows: list[Any] = [
        "",
        5,
        {"prompt": "x"},
        BatchRequest("a fox", key="a\nb"),
        BatchRequest("a fox", metadata={"a": 5}),  # type: ignore[dict-item]
        ImageToImage("a fox", (tmp_path / "missing.png",)),
        ImageToImage("a fox", (tmp_path,)),
        ImageToImage("a fox", (Path(__file__),)),
        "a whale",
    ]
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        items = await run(client, rows, batch="b")
        assert [type(each.error) for each in items] == [InvalidRequestError] * 8 + [type(None)]
        assert "missing.png does not exist" in str(items[5].error)
        assert "not a picture or a video" in str(items[7].error)
        assert bought(sandbox) == {"a whale": 1}


async def test_a_key_that_belongs_to_another_request_is_that_rows_error(tmp_path: Path) -> None:
    """As with `generate`, although a finished row makes no call of it."""
    async with (
        Sandbox(api_key=API_KEY) as sandbox,
        client_of(sandbox.url, journal=tmp_path) as client,
    ):
        await run(client, [BatchRequest("a fox", key="a")])
        [item] = await run(client, [BatchRequest("an owl", key="a")])
        assert isinstance(item.error, KeyConflict)
        assert len(sandbox.ledger.accepted) == 1


async def test_files_count_by_their_content(tmp_path: Path) -> None:
    """A moved picture is the same row; it is uploaded once, and the next run uploads nothing."""
    data = next(iter(SAMPLES.values())).data
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(data)
    async with (
        Sandbox(api_key=API_KEY) as sandbox,
        client_of(sandbox.url, journal=tmp_path / "journal") as client,
    ):
        [first] = await run(client, [ImageToImage("x", (tmp_path / "a.png",))], batch="b")
        assert first.error is None
        before = len(sandbox.ledger.requests)
        [again] = await run(client, [ImageToImage("x", (tmp_path / "b.png",))], batch="b")
        assert again.key == first.key
        assert again.details == first.details
        assert len(sandbox.ledger.requests) == before


async def test_an_iterable_that_fails_ends_the_batch_with_its_error() -> None:
    """The rows that were bought before are yielded."""

    async def broken() -> AsyncIterator[str]:
        yield "a fox"
        await asyncio.sleep(5)
        raise KeyError("line 2")

    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        async with client.generate_many(broken(), batch="b") as batch:
            items, error = await until_it_stops(batch)
        assert isinstance(error, KeyError)
        assert [each.error for each in items] == [None]


# ─── what goes wrong ─────────────────────────────────────────────────────────────────────────────


async def test_rows_that_fail_do_not_stop_the_others(tmp_path: Path) -> None:
    """A failed task and a refused prompt are that row's; the next run says the same for nothing."""
    faults = Faults()
    faults.on("task", when=lambda call: call.body["prompt"] == "prompt 1", do=fail_task())
    faults.on(
        "submit",
        when=lambda call: call.body["prompt"] == "prompt 2",
        do=answer_code(400, "Your prompt was flagged by Website as violating content policies."),
    )
    async with (
        Sandbox(api_key=API_KEY, faults=faults) as sandbox,
        client_of(sandbox.url, journal=tmp_path) as client,
    ):
        items = await run(client, prompts(5), batch="b")
        assert [type(each.error) for each in items] == [
            type(None), TaskFailed, PromptRefusedError, type(None), type(None),
        ]  # fmt: skip
        assert items[1].details is not None
        assert items[1].details.status is TaskStatus.FAILED
        again = await run(client, prompts(5), batch="b", stop_after_failures=2)
        assert isinstance(again[1].error, TaskFailed)
        assert len(sandbox.ledger.accepted) == 4


@pytest.mark.parametrize(
    ("code", "error"),
    [(401, AuthenticationError), (402, InsufficientCreditsError), (433, SpendingCapError)],
)
async def test_a_refused_key_stops_at_once_and_says_how_far_it_got(
    code: int, error: type[APIError]
) -> None:
    """Rows that were bought are yielded, the others are no failures; few POSTs are sent."""
    sell, left = selling(), [*range(10)]

    def submit(request: Received) -> Answer:
        return sell(request) if left and left.pop() >= 0 else refused(code)

    play = mid(submit, sell, ok(100))
    async with ScriptedServer(then=play) as server, client_of(server) as client:
        async with client.generate_many(prompts(500), batch="b", running=20) as batch:
            items, raised = await until_it_stops(batch)
            assert isinstance(raised, error)
            assert [each.error for each in items] == [None] * 10
            assert (batch.progress.done, batch.progress.failed) == (10, 0)
            assert str(code) in (batch.progress.stopped or "")
        assert "10 rows submitted" in raised.__notes__[0]
        assert len(submits(server)) <= 10 + 20


async def test_failures_in_a_row_stop_the_batch() -> None:
    """The last one's error is raised; with None it goes on."""
    play = mid(refused(400, "bad"), looked(), ok(100))
    async with ScriptedServer(then=play) as server, client_of(server) as client:
        async with client.generate_many(
            prompts(100), batch="b", running=1, stop_after_failures=4
        ) as batch:
            items, error = await until_it_stops(batch)
            assert len(items) == 4
            assert error is items[-1].error
            assert "4 rows in a row have failed" in (batch.progress.stopped or "")
        assert len(submits(server)) == 4
        items = await run(client, prompts(100), batch="c", stop_after_failures=None)
        assert len(items) == 100


async def test_what_no_row_has_caused_pauses_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was sent for a minute: one warning, one line at its end, and every row succeeds."""
    caplog.set_level(logging.INFO)
    faults = Faults()
    async with (
        Sandbox(api_key=API_KEY, faults=faults) as sandbox,
        client_of(sandbox.url, retry=NO_PAUSES, rate_limit=RateLimit(15)) as client,
    ):
        faults.on("submit", during=(0, 120), do=answer_code(455))
        items = await run(client, prompts(30), batch="b")
        assert [each.error for each in items] == [None] * 30
        assert set(bought(sandbox).values()) == {1}
    lines = [each.getMessage() for each in caplog.records if each.name == "midapi_async.batch"]
    assert [line for line in lines if "pauses" in line] == lines[:1]
    assert sum("goes on" in line for line in lines) == 1


async def test_the_progress_says_why_it_pauses() -> None:
    """As long as it does; before and after that, None."""
    faults = Faults()
    async with (
        Sandbox(api_key=API_KEY, faults=faults) as sandbox,
        client_of(sandbox.url, retry=NO_PAUSES) as client,
        client.generate_many(prompts(3), batch="b") as batch,
    ):
        faults.on("submit", first=3, do=answer_code(455))
        assert batch.progress.paused is None
        async with asyncio.timeout(60):
            while (reason := batch.progress.paused) is None:  # noqa: ASYNC110 - no event says it
                await asyncio.sleep(0.1)
        assert "455" in reason
        assert [item.error async for item in batch] == [None] * 3
        assert batch.progress.paused is None


async def test_a_journal_that_fails_pauses_the_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is sent without it; when it is back, every row is bought."""
    find, loop = MemoryJournal.find, asyncio.get_running_loop()
    back_at = loop.time() + 60

    async def failing(self: MemoryJournal, **names: Any) -> Any:
        if loop.time() < back_at:
            raise JournalError("the disk is full")
        return await find(self, **names)

    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        monkeypatch.setattr(MemoryJournal, "find", failing)
        items = await run(client, prompts(10), batch="b")
        assert [each.error for each in items] == [None] * 10
        assert len(sandbox.ledger.accepted) == 10
    assert caplog.text.count("pauses, and tries again by itself: the disk is full") == 1


async def test_a_server_that_cannot_be_reached_stops_the_batch(unused_tcp_port: int) -> None:
    """It is useless to try again without a change, and no row has caused it."""
    async with client_of(f"http://127.0.0.1:{unused_tcp_port}") as client:
        async with client.generate_many(prompts(10), batch="b") as batch:
            items, error = await until_it_stops(batch)
        assert isinstance(error, TransportError)
        assert items == []
        assert batch.progress.failed == 0


async def test_unknown_rows_are_reported_and_never_sent_again(tmp_path: Path) -> None:
    """With "report" the others go on; the next run reports them again; with "stop" it ends."""
    faults = Faults().on("submit", nth=3, do=lose_answer())
    async with (
        Sandbox(api_key=API_KEY, faults=faults) as sandbox,
        client_of(sandbox.url, journal=tmp_path) as client,
    ):
        for _ in range(2):
            items = await run(client, prompts(10), batch="b", running=3)
            errors = [type(each.error) for each in items]
            assert Counter(errors) == {type(None): 9, SubmissionUnknown: 1}
            assert len(sandbox.ledger.accepted) == 10
        faults.on("submit", nth=1, do=lose_answer())
        async with client.generate_many(
            [f"more {n}" for n in range(50)], batch="b", running=2, on_unknown="stop"
        ) as batch:
            with pytest.raises(SubmissionUnknown):
                [item async for item in batch]
            assert batch.progress.unknown == 1
        assert len(sandbox.ledger.accepted) < 20


@pytest.mark.parametrize("name", ["b", None])
async def test_submissions_that_wait_to_be_sent_are_given_up_when_the_batch_stops(
    name: str | None,
) -> None:
    """Those whose POST is under way are awaited and yielded; rows need no keys for it."""
    sell, count = selling(), 0

    def slow_then_refused(request: Received) -> Answer:
        nonlocal count
        count += 1
        if count == 4:
            return refused(402)
        return later(accepted(f"{count:032x}"), 5.0) if count < 4 else sell(request)

    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with (
        ScriptedServer(then=mid(slow_then_refused, sell, ok(100))) as server,
        client_of(server, rate_limit=RateLimit(4, per=600)) as client,
    ):
        async with client.generate_many(prompts(50), batch=name, running=20) as batch:
            items, error = await until_it_stops(batch)
        assert isinstance(error, InsufficientCreditsError)
        assert sorted(each.index for each in items) == [0, 1, 2]
        assert len(submits(server)) == 4
        assert loop.time() - begun < 300
        # What was given up blocks nobody: the next one gets the next slot.
        await client.generate("another")
        assert len(submits(server)) == 5


@pytest.mark.parametrize("name", ["b", None])
async def test_a_row_that_is_to_be_sent_again_is_given_up_when_the_batch_stops(
    name: str | None,
) -> None:
    """It rests after a 429 of its own; nothing was bought, and nothing more is sent."""
    answers = [later(refused(402), 0.5), refused(429)]
    play = mid(lambda _: answers.pop(), looked(), ok(100))
    async with ScriptedServer(then=play) as server, client_of(server) as client:
        async with client.generate_many(prompts(2), batch=name) as batch:
            items, error = await until_it_stops(batch)
        assert isinstance(error, InsufficientCreditsError)
        assert items == []
        await asyncio.sleep(600)
        assert len(submits(server)) == 2


async def test_another_caller_of_a_rows_key_still_gets_it_when_the_batch_stops() -> None:
    """The batch gives up its rows, and not what others of the same client ask for."""
    sell, count = selling(), 0

    def submit(request: Received) -> Answer:
        nonlocal count
        count += 1
        return later(refused(402), 5.0) if count == 1 else sell(request)

    rows = [BatchRequest(prompt, key=prompt) for prompt in prompts(3)]
    async with (
        ScriptedServer(then=mid(submit, sell, ok(100))) as server,
        client_of(server, rate_limit=RateLimit(1, per=10)) as client,
        client.generate_many(rows) as batch,
    ):
        await asyncio.sleep(1)
        mine = asyncio.create_task(client.generate("prompt 1", key="prompt 1"))
        items, error = await until_it_stops(batch)
        assert isinstance(error, InsufficientCreditsError)
        assert (await mine).key == "prompt 1"
        assert items == []
        assert len(submits(server)) == 2


# ─── how fast it is ──────────────────────────────────────────────────────────────────────────────


async def test_the_whole_limit_of_the_account_is_in_use(tmp_path: Path) -> None:
    """98 % of count / (per + time of a POST), and never more than count in a window."""
    loop, sell = asyncio.get_running_loop(), selling()
    arrivals: list[float] = []

    def submit(request: Received) -> Answer:
        arrivals.append(loop.time())
        return later(sell(request), 1.0)

    async with (
        ScriptedServer(then=mid(submit, sell, ok(100))) as server,
        client_of(server, journal=tmp_path, rate_limit=RateLimit(20, per=10)) as client,
    ):
        await run(client, prompts(80), batch="b")
    assert all(late - early >= 10 for early, late in zip(arrivals, arrivals[20:], strict=False))
    # Each arrival of the first window beside the one in its place of the last window.
    seconds = sum(arrivals[60:]) / 20 - sum(arrivals[:20]) / 20
    assert 60 / seconds >= 0.98 * 20 / (10 + 1)


# ─── a tenth of all requests goes wrong ──────────────────────────────────────────────────────────


async def test_every_row_ends_once_whatever_goes_wrong(tmp_path: Path) -> None:
    """Refusals, lost connections, slow answers and failed tasks; the ledger has each row once."""
    faults = Faults()
    faults.on("submit", chance=0.03, do=answer_code(429))
    faults.on("submit", chance=0.03, do=delay(20))
    faults.on("submit", chance=0.03, do=answer_code(455))
    faults.on("look", chance=0.1, do=refuse_connection())
    faults.on("file", chance=0.1, do=refuse_connection())
    faults.on("credit", chance=0.1, do=answer_code(500))
    faults.on("task", chance=0.03, do=fail_task())
    async with (
        Sandbox(api_key=API_KEY, faults=faults, seed=14) as sandbox,
        client_of(sandbox.url, journal=tmp_path / "j", rate_limit=None, retry=NO_PAUSES) as client,
    ):
        items = await run(client, prompts(60), batch="b", download_to=tmp_path / "out")
        assert [each.index for each in items] == [*range(60)]
        assert all(isinstance(each.error, TaskFailed | type(None)) for each in items)
        assert bought(sandbox) == dict.fromkeys(prompts(60), 1)
