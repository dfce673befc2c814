"""Rows that are read at once are looked up as one page; what that finds is what `find` would."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from midapi_async import (
    BatchRequest,
    ClientClosed,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MidAPIClient,
    SubmissionUnknown,
    TaskExpired,
    TaskFailed,
)
from midapi_async.journal.base import TableJournal
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import Faults, Sandbox, fail_task, lose_answer
from tests.batch.test_batch import bought, prompts, run, until_it_stops
from tests.batch.test_retry_failed import failing, outcomes
from tests.support.secrets import API_KEY
from tests.world import client_of

COUNT = 12


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many rows of the journal were asked for, one by one and in pages."""
    counts = {"find": 0, "keys": 0, "pages": 0}
    find, rows = TableJournal.find, TableJournal.rows

    async def counted_find(self: TableJournal, **names: Any) -> Any:
        counts["find"] += "key" in names
        return await find(self, **names)

    async def counted_rows(self: TableJournal, scope: str | None = None, **which: Any) -> Any:
        counts["keys"] += len(which.get("keys") or ())
        counts["pages"] += which.get("keys") is not None
        return await rows(self, scope, **which)

    monkeypatch.setattr(TableJournal, "find", counted_find)
    monkeypatch.setattr(TableJournal, "rows", counted_rows)
    return counts


@asynccontextmanager
async def again(sandbox: Sandbox, folder: Path) -> AsyncIterator[MidAPIClient]:
    """A new client on the same folder; nothing is bought while the block lasts."""
    before = len(sandbox.ledger.accepted)
    async with client_of(sandbox.url, journal=folder) as client:
        yield client
    assert len(sandbox.ledger.accepted) == before


async def test_a_finished_batch_is_read_in_pages(
    tmp_path: Path, reads: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows as a page may have, or as may be read ahead; none is asked for by itself."""
    monkeypatch.setattr("midapi_async.batch.run.LARGEST_PAGE", 10)
    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path) as client:
            first = await run(client, prompts(20), batch="b")
        for running, pages in ((1000, 2), (10, 2)):
            reads.update(find=0, keys=0, pages=0)
            async with again(sandbox, tmp_path) as client:
                assert await run(client, prompts(20), batch="b", running=running) == first
            assert reads == {"find": 0, "keys": 20, "pages": pages}


async def test_files_that_are_there_need_no_request(tmp_path: Path, reads: dict[str, int]) -> None:
    """Their rows are looked up in pages, too, and each has its paths."""
    options: dict[str, Any] = {"batch": "b", "download_to": tmp_path / "out"}
    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path / "journal") as client:
            first = await run(client, prompts(COUNT), **options)
        before, reads["find"] = len(sandbox.ledger.requests), 0
        async with again(sandbox, tmp_path / "journal") as client:
            assert await run(client, prompts(COUNT), **options) == first
        assert (len(sandbox.ledger.requests), reads["find"]) == (before, 0)


async def test_a_page_of_rows_in_every_state(tmp_path: Path) -> None:
    """Each outcome is the one of a batch that reads its rows one by one."""
    faults = Faults()
    faults.on("task", when=lambda call: call.body["prompt"] == "prompt 1", do=fail_task())
    faults.on("submit", when=lambda call: call.body["prompt"] == "prompt 2", do=lose_answer())
    faults.on("submit", when=lambda call: call.body["prompt"] == "prompt 3", do=lose_answer())
    rows = [BatchRequest(prompt, key=prompt) for prompt in prompts(COUNT)]
    async with Sandbox(api_key=API_KEY, faults=faults) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path) as client:
            await run(client, rows[4:5])
        journal = SQLiteJournal(tmp_path)
        assert await journal.prune(4e9) == 1
        await journal.aclose()
        async with client_of(sandbox.url, journal=tmp_path) as client:
            first = await run(client, rows)
            await client.intents.dismiss(str(first[3].intent_id))
        rows[5] = BatchRequest("another", key="prompt 5")
        rows[6] = BatchRequest("prompt 6", key="prompt 6", metadata={"new": "notes"})
        async with again(sandbox, tmp_path) as client:
            paged = await run(client, rows)
        async with again(sandbox, tmp_path) as client:
            single = await run(client, rows, running=1)
        assert outcomes(paged) == outcomes(single)
        assert [attrs.evolve(item, error=None) for item in paged] == [
            attrs.evolve(item, error=None) for item in single
        ]
        wanted = [TaskFailed, SubmissionUnknown, InvalidRequestError, TaskExpired, KeyConflict]
        assert outcomes(paged) == [type(None), *wanted, *[type(None)] * (COUNT - 6)]
        assert paged[6].metadata == {"new": "notes"}


async def test_a_page_with_finished_and_unfinished_rows(tmp_path: Path) -> None:
    """New rows among the finished ones are bought, running ones are awaited."""
    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path) as client:
            await run(client, prompts(COUNT)[::3], batch="b")
            async with client.generate_many(prompts(COUNT)[::2], batch="b", running=COUNT) as batch:
                await asyncio.sleep(10)
                assert batch.progress.running > 0
        async with client_of(sandbox.url, journal=tmp_path) as client:
            items = await run(client, prompts(COUNT), batch="b")
        assert [item.error for item in items] == [None] * COUNT
        assert bought(sandbox) == dict.fromkeys(prompts(COUNT), 1)


async def test_the_last_try_of_a_row_counts_in_a_page(tmp_path: Path) -> None:
    """A row that failed and succeeded later, among others that succeeded at once."""
    async with Sandbox(api_key=API_KEY, faults=failing(True)) as sandbox:
        for retry_failed in (False, True):
            async with client_of(sandbox.url, journal=tmp_path) as client:
                await run(client, prompts(COUNT), batch="b", retry_failed=retry_failed)
        for retry_failed in (False, True):
            async with again(sandbox, tmp_path) as client:
                items = await run(client, prompts(COUNT), batch="b", retry_failed=retry_failed)
            assert [item.error for item in items] == [None] * COUNT


async def test_a_page_that_cannot_be_read_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal of the user's own may fail there."""

    async def failing_rows(self: TableJournal, scope: str | None = None, **which: Any) -> Any:
        raise JournalError("not here")

    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path) as client:
            first = await run(client, prompts(COUNT), batch="b")
        async with again(sandbox, tmp_path) as client:
            with monkeypatch.context() as patch:
                patch.setattr(TableJournal, "rows", failing_rows)
                assert await run(client, prompts(COUNT), batch="b") == first


async def test_rows_that_come_slowly_do_not_wait_for_a_page(tmp_path: Path) -> None:
    """Each is carried out when it was read; the finished ones come before the next is read."""
    seen: list[int] = []

    async def slowly() -> AsyncIterator[str]:
        for number, prompt in enumerate(prompts(COUNT)):
            assert len(seen) == number
            yield prompt
            await asyncio.sleep(10)

    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path) as client:
            await run(client, prompts(COUNT), batch="b")
        async with (
            again(sandbox, tmp_path) as client,
            client.generate_many(slowly(), batch="b") as batch,
        ):
            async for item in batch:
                seen.append(item.index)  # noqa: PERF401 - the generator looks at it
    assert seen == [*range(COUNT)]


async def test_a_client_that_closes_ends_a_page(tmp_path: Path) -> None:
    """With `ClientClosed`, and no row that was not yielded counts as done."""
    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path) as client:
            await run(client, prompts(COUNT), batch="b")
        async with again(sandbox, tmp_path) as client:
            async with client.generate_many(prompts(COUNT), batch="b") as batch:
                await client.aclose()
                items, error = await until_it_stops(batch)
            assert isinstance(error, ClientClosed)
            assert len(items) == batch.progress.done


async def test_leaving_while_a_page_is_read_leaves_nothing_behind(tmp_path: Path) -> None:
    """The rows of the page are neither carried out nor lost for the next run."""
    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path) as client:
            first = await run(client, prompts(COUNT), batch="b")
        for turns in range(8):
            async with again(sandbox, tmp_path) as client:
                async with client.generate_many(prompts(COUNT), batch="b"):
                    for _ in range(turns):
                        await asyncio.sleep(0)
                assert await run(client, prompts(COUNT), batch="b") == first
