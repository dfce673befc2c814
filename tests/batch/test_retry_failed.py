"""`generate_many(retry_failed=True)`: a failed row is bought again under a key of its own, once."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async import (
    BatchItem,
    BatchRequest,
    InvalidRequestError,
    KeyConflict,
    MemoryJournal,
    RateLimit,
    SubmissionUnknown,
    TaskExpired,
    TaskFailed,
)
from midapi_async.batch.items import key_of_try
from midapi_async.requests import MAX_KEY
from midapi_async.sandbox import Faults, Sandbox, answer_code, fail_task, lose_answer
from tests.batch.test_batch import bought, prompts, run, until_it_stops
from tests.support.secrets import API_KEY
from tests.world import client_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The journal's."""
    return tmp_path / "journal"


def failing(*failures: bool) -> Faults:
    """Tasks of "prompt 0" fail or succeed in this order, and succeed at the end."""
    order: Iterator[bool] = iter(failures)

    def fails(call: Any) -> bool:
        return call.body["prompt"] == "prompt 0" and next(order, False)

    return Faults().on("task", when=fails, do=fail_task())


async def run_anew(sandbox: Sandbox, folder: Path, rows: Any, **options: Any) -> list[BatchItem]:
    """Run a batch in a client of its own."""
    async with client_of(sandbox.url, journal=folder) as client:
        return await run(client, rows, **options)


def facts(items: list[BatchItem]) -> list[BatchItem]:
    """Items that can be compared: two errors are never equal."""
    return [attrs.evolve(item, error=None) for item in items]


def outcomes(items: list[BatchItem]) -> list[type]:
    """The kind of each item's error."""
    return [type(item.error) for item in items]


async def test_a_failed_row_is_bought_again_once_in_each_run_that_asks_for_it(folder: Path) -> None:
    """Others are not; runs that do not ask for it yield the last try, and so does a finished one.

    The key of the item stays the row's own, and its intent is the one of the try.
    """
    batch: dict[str, Any] = {"batch": "b"}
    async with Sandbox(api_key=API_KEY, faults=failing(True, True, True)) as sandbox:
        first = await run_anew(sandbox, folder, prompts(3), **batch)
        assert outcomes(first) == [TaskFailed, type(None), type(None)]
        again = await run_anew(sandbox, folder, prompts(3), **batch)
        assert (facts(again), outcomes(again)) == (facts(first), outcomes(first))
        for tries in (2, 3):
            retried = await run_anew(sandbox, folder, prompts(3), **batch, retry_failed=True)
            assert outcomes(retried) == outcomes(first)
            assert bought(sandbox)["prompt 0"] == tries
            assert [item.key for item in retried] == [item.key for item in first]
            assert retried[0].intent_id != first[0].intent_id
            assert facts(retried)[1:] == facts(first)[1:]
            again = await run_anew(sandbox, folder, prompts(3), **batch)
            assert (facts(again), outcomes(again)) == (facts(retried), outcomes(retried))
        last = await run_anew(sandbox, folder, prompts(3), **batch, retry_failed=True)
        assert outcomes(last) == [type(None)] * 3
        before = len(sandbox.ledger.requests)
        assert await run_anew(sandbox, folder, prompts(3), **batch, retry_failed=True) == last
        assert await run_anew(sandbox, folder, prompts(3), **batch) == last
        assert len(sandbox.ledger.requests) == before
        assert bought(sandbox) == {"prompt 0": 4, "prompt 1": 1, "prompt 2": 1}
        async with client_of(sandbox.url, journal=folder) as client:
            handles = [await client.find(key_of_try(str(first[0].key), n)) for n in range(1, 6)]
            assert [handle is None for handle in handles] == [False] * 4 + [True]
            assert handles[3] is not None
            assert handles[3].intent_id == last[0].intent_id


async def test_a_task_that_fails_in_the_run_that_bought_it_is_not_bought_again(
    folder: Path,
) -> None:
    """Otherwise a prompt that always fails would be bought again and again."""
    async with Sandbox(api_key=API_KEY, faults=failing(True)) as sandbox:
        items = await run_anew(sandbox, folder, prompts(2), batch="b", retry_failed=True)
        assert outcomes(items) == [TaskFailed, type(None)]
        assert len(sandbox.ledger.accepted) == 2


async def test_a_task_whose_failure_this_run_sees_first_is_bought_again(folder: Path) -> None:
    """An earlier run bought it and was left before its end."""
    async with (
        Sandbox(api_key=API_KEY, faults=failing(True)) as sandbox,
        client_of(sandbox.url, journal=folder) as client,
    ):
        handle = await client.generate("prompt 0", key="fox")
        row = BatchRequest("prompt 0", key="fox")
        [item] = await run(client, [row], retry_failed=True)
        assert item.error is None
        assert item.details is not None
        assert item.details.task_id != handle.task_id
        assert bought(sandbox) == {"prompt 0": 2}


async def test_a_retry_that_was_left_is_awaited_and_not_bought_again(folder: Path) -> None:
    """By a run that retries and by one that does not; it is bought, but has not ended yet."""
    async with Sandbox(api_key=API_KEY, faults=failing(True)) as sandbox:
        [first] = await run_anew(sandbox, folder, prompts(1), batch="b")
        async with client_of(sandbox.url, journal=folder) as client:
            await client.generate("prompt 0", key=f"{first.key}/2")
        for retry_failed in (False, True):
            [item] = await run_anew(
                sandbox, folder, prompts(1), batch="b", retry_failed=retry_failed
            )
            assert item.error is None
        assert bought(sandbox) == {"prompt 0": 2}


async def test_a_retry_that_is_refused_leaves_the_failure_as_it_was(folder: Path) -> None:
    """The run that was refused says so; nothing was bought, so the next one may try once more."""
    faults = failing(True)
    async with Sandbox(api_key=API_KEY, faults=faults) as sandbox:
        first = await run_anew(sandbox, folder, prompts(1), batch="b")
        faults.on("submit", nth=1, do=answer_code(400, "flagged by Website as violating policies"))
        [item] = await run_anew(sandbox, folder, prompts(1), batch="b", retry_failed=True)
        assert item.error is not None
        assert not isinstance(item.error, TaskFailed)
        assert facts(await run_anew(sandbox, folder, prompts(1), batch="b")) == facts(first)
        [item] = await run_anew(sandbox, folder, prompts(1), batch="b", retry_failed=True)
        assert item.error is None
        assert len(sandbox.ledger.accepted) == 2


async def test_a_retry_whose_answer_is_lost_is_unknown_and_never_sent_again(folder: Path) -> None:
    """As any other submission; the failure before it is not all that is known of the row."""
    faults = failing(True)
    async with Sandbox(api_key=API_KEY, faults=faults) as sandbox:
        await run_anew(sandbox, folder, prompts(1), batch="b")
        faults.on("submit", nth=1, do=lose_answer())
        for retry_failed in (True, True, False):
            [item] = await run_anew(
                sandbox, folder, prompts(1), batch="b", retry_failed=retry_failed
            )
            assert isinstance(item.error, SubmissionUnknown)
            assert item.intent_id == item.error.intent_id
        assert len(sandbox.ledger.accepted) == 2


async def test_a_batch_that_stops_does_not_yield_the_rows_that_it_could_not_retry(
    folder: Path,
) -> None:
    """They are not submitted, as rows without a try are."""
    faults = Faults().on("task", do=fail_task())
    async with Sandbox(api_key=API_KEY, faults=faults) as sandbox:
        await run_anew(sandbox, folder, prompts(5), batch="b")
        faults.on("submit", do=answer_code(402))
        async with (
            client_of(sandbox.url, journal=folder) as client,
            client.generate_many(prompts(5), batch="b", retry_failed=True) as batch,
        ):
            items, error = await until_it_stops(batch)
        assert (items, "402" in str(error)) == ([], True)
        assert len(sandbox.ledger.accepted) == 5


async def test_results_that_midapi_has_deleted_are_not_bought_again() -> None:
    """They may have been good ones; of a row that was retried, the last try counts."""
    journal = MemoryJournal()
    async with (
        Sandbox(api_key=API_KEY, faults=failing(True)) as sandbox,
        client_of(sandbox.url, journal=journal) as client,
    ):
        await run(client, prompts(2), batch="b")
        assert await journal.prune(time.time() + 1) == 2
        [item] = await run(client, prompts(1), batch="b", retry_failed=True)
        assert isinstance(item.error, TaskExpired)
        await client.generate_and_wait("prompt 0", key=f"{item.key}/2")
        async with client.generate_many(prompts(2), batch="b", retry_failed=True) as batch:
            items = [item async for item in batch]
        assert {item.index: type(item.error) for item in items} == {0: type(None), 1: TaskExpired}
        assert (batch.progress.submitted, batch.progress.done, batch.progress.failed) == (1, 1, 1)
        assert len(sandbox.ledger.accepted) == 3


async def test_a_row_that_waits_to_be_bought_again_is_not_running(folder: Path) -> None:
    """It counts as submitted once, whichever try it is."""
    faults = Faults().on("task", during=(0, 600), do=fail_task())
    async with Sandbox(api_key=API_KEY, faults=faults) as sandbox:
        await run_anew(sandbox, folder, prompts(3), batch="b")
        await asyncio.sleep(600)
        async with (
            client_of(sandbox.url, journal=folder, rate_limit=RateLimit(1, per=600)) as client,
            client.generate_many(prompts(3), batch="b", retry_failed=True) as batch,
        ):
            await asyncio.sleep(10)
            assert (batch.progress.submitted, batch.progress.running) == (3, 1)
            assert [item.error async for item in batch] == [None] * 3
            end = batch.progress
            assert (end.submitted, end.running, end.done, end.failed) == (3, 0, 3, 0)


# ─── keys ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [1, 5, MAX_KEY - 2, MAX_KEY - 1, MAX_KEY])
async def test_a_row_with_a_key_of_its_own_is_bought_again(folder: Path, length: int) -> None:
    """Also if there is no room for a number behind the key."""
    rows = [BatchRequest("prompt 0", key="k" * length)]
    async with Sandbox(api_key=API_KEY, faults=failing(True, True)) as sandbox:
        for tries in (1, 2, 3, 3):
            [item] = await run_anew(sandbox, folder, rows, retry_failed=True)
            assert item.key == "k" * length
            assert (item.error is None) == (tries == 3)
            assert bought(sandbox) == {"prompt 0": tries}


@given(st.text("ab/2", min_size=190, max_size=MAX_KEY), st.integers(2, 2000))
def test_each_try_has_a_key_of_its_own(key: str, attempt: int) -> None:
    """Each fits into the journal; rows whose long keys differ at their ends have other keys."""
    others = {key_of_try(key, attempt + 1), key_of_try(f"{key[:-1]}c", attempt), key}
    made = key_of_try(key, attempt)
    assert len(made) <= MAX_KEY
    assert made not in others
    assert made == key_of_try(key, attempt)


@pytest.mark.parametrize(
    "keys", [("a", "a/2"), ("a/2", "a"), ("a", "b", "a/10"), ("a/3/2", "x", "a/3")]
)
async def test_rows_of_which_one_could_be_a_try_of_the_other_are_refused(
    keys: tuple[str, ...],
) -> None:
    """Else the retry of the one would get the picture of the other."""
    rows = [BatchRequest(f"prompt {number}", key=key) for number, key in enumerate(keys)]
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        async with client.generate_many(rows, running=1) as batch:
            _, error = await until_it_stops(batch)
        assert isinstance(error, InvalidRequestError)
        assert f"rows 0 and {len(keys) - 1} " in str(error)
        assert len(sandbox.ledger.accepted) == len(keys) - 1


async def test_keys_that_no_try_can_have_are_accepted() -> None:
    """A try's number is plain and 2 or more; rows with one prompt have keys that are numbered."""
    keys = ["a", "a/1", "a/02", "a/0", "a/b", "a/-2", "a/2/3", "a/", "/2", "2"]
    rows: list[Any] = [BatchRequest("x", key=key) for key in keys]
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        items = await run(client, [*rows, *["y"] * 12], batch="b")
        assert [item.error for item in items] == [None] * 22


async def test_a_key_of_another_request_is_no_try_of_a_row(folder: Path) -> None:
    """It was bought outside of the batch: the failure is still all that is known of the row."""
    rows = [BatchRequest("prompt 0", key="a")]
    async with Sandbox(api_key=API_KEY, faults=failing(True)) as sandbox:
        first = await run_anew(sandbox, folder, rows)
        async with client_of(sandbox.url, journal=folder) as client:
            await client.generate("an owl", key="a/2")
        assert facts(await run_anew(sandbox, folder, rows)) == facts(first)
        [item] = await run_anew(sandbox, folder, rows, retry_failed=True)
        assert isinstance(item.error, KeyConflict)
        assert len(sandbox.ledger.accepted) == 2


async def test_rows_without_a_key_are_bought_in_each_run_anyway() -> None:
    """The flag changes nothing for them."""
    async with Sandbox(api_key=API_KEY, faults=failing(True)) as sandbox:
        async with client_of(sandbox.url) as client:
            [item] = await run(client, prompts(1), retry_failed=True)
        assert isinstance(item.error, TaskFailed)
        assert len(sandbox.ledger.accepted) == 1
