"""A batch whose process is killed again and again: every row ends once, and is paid for once."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from midapi_async import InvalidRequestError, SubmissionUnknown, TextToImage
from midapi_async.sandbox import (
    Faults,
    Sandbox,
    answer_code,
    delay,
    fail_task,
    lose_answer,
    refuse_connection,
)
from tests.batch.life import SCALE, client_on, live, prompts
from tests.support.secrets import API_KEY

# SQLite, the kernel and a signal decide here.
pytestmark = [pytest.mark.real_time, pytest.mark.one_python]

SPAWNER = get_context("forkserver")
SPAWNER.set_forkserver_preload(["tests.batch.life", "tests.kills.life"])
REQUESTS = ("submit", "look", "credit", "file", "download_url")
DOWNLOADS_AT_ONCE = 8  # of a client


@pytest.fixture(scope="module", autouse=True)
def spawner() -> None:
    """The forkserver runs before the first test, so that its pipes are nobody's leak."""
    forkserver.ensure_running()


async def ended(process: ForkServerProcess, is_due: Callable[[], bool]) -> bool:
    """Whether a process ends by itself before something is due."""
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process.sentinel, gone.set)
    try:
        while not gone.is_set() and not is_due():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await gone.wait()
    finally:
        loop.remove_reader(process.sentinel)
    return gone.is_set()


async def run(
    sandbox: Sandbox, folder: Path, count: int, last: str, kill: Callable[[], bool] = bool
) -> bool:
    """Run the batch in a process; kill it when that is due; return whether it was killed."""
    process = SPAWNER.Process(target=live, args=(sandbox.url, str(folder), count, last))
    process.start()
    try:
        has_ended = await ended(process, kill)
        if not has_ended:
            process.kill()
            await ended(process, bool)
        process.join()
        assert not has_ended or process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
    return not has_ended


def faulty() -> Faults:
    """A tenth of all requests goes wrong, in every way; a twentieth of the tasks fails."""
    faults = Faults()
    faults.on("submit", chance=0.03, do=answer_code(429))
    faults.on("submit", chance=0.02, do=answer_code(455))
    faults.on("submit", chance=0.03, do=delay(20))
    faults.on("submit", chance=0.01, do=refuse_connection())
    faults.on("submit", chance=0.01, do=lose_answer())
    faults.on("look", chance=0.05, do=refuse_connection())
    faults.on("look", chance=0.05, do=answer_code(500))
    faults.on("file", chance=0.1, do=refuse_connection())
    faults.on("credit", chance=0.1, do=answer_code(500))
    faults.on("task", chance=0.05, do=fail_task())
    return faults


def requests(sandbox: Sandbox) -> int:
    """How many requests came until now."""
    return sum(map(sandbox.ledger.count, REQUESTS))


def is_beyond(sandbox: Sandbox, count: float) -> bool:
    """Whether more requests came."""
    return requests(sandbox) > count


async def settle(sandbox: Sandbox, folder: Path) -> int:
    """Do what a user does about unknown submissions: look into MidAPI's log, adopt or resubmit."""
    async with client_on(sandbox.url, folder) as client:
        count = len(await client.intents.unknown())
        while unknown := await client.intents.unknown():
            for row in unknown:
                assert isinstance(row.request, TextToImage)
                for entry in sandbox.ledger.accepted:
                    if entry.body["prompt"] == row.request.prompt:
                        with suppress(InvalidRequestError):  # it is another row's
                            await client.intents.adopt(row, entry.task_id, force=True)
                            break
                else:
                    with suppress(SubmissionUnknown):
                        await client.intents.resubmit(row)
    return count


async def kill_and_check(folder: Path, count: int, kills: int, seed: int) -> None:
    """So many kills, then a run to the end, then one that has nothing to do; then the ledger."""
    chance = random.Random(seed)
    async with Sandbox(
        api_key=API_KEY, faults=faulty(), seed=seed, time_scale=SCALE, credits=1e9
    ) as sandbox:
        killed = 0
        for number in range(kills):
            # Each life does its part of what is left, or a little of it.
            before = requests(sandbox)
            left = count - sandbox.ledger.count("submit")
            part = 9 * left / (kills - number) * chance.choice((0.02, 0.5, 1.0, 1.5))
            is_due = partial(is_beyond, sandbox, before + max(20.0, part))
            killed += await run(sandbox, folder, count, "killed", is_due)
        assert killed >= kills // 2
        await run(sandbox, folder, count, "last")
        before = requests(sandbox)
        await run(sandbox, folder, count, "again")
        assert requests(sandbox) == before, "a finished batch makes no request"
        items = sorted(json.loads((folder / "last").read_text()))
        assert sorted(json.loads((folder / "again").read_text())) == items
        check(sandbox, folder, items, count)
        fetched = fetches(sandbox)
        unknown = await settle(sandbox, folder)
        assert unknown == sum(outcome == "unknown" for _, outcome, *_ in items)
        await run(sandbox, folder, count, "settled")
        settled = sorted(json.loads((folder / "settled").read_text()))
        check(sandbox, folder, settled, count)
        assert Counter(e.body["prompt"] for e in sandbox.ledger.accepted) == Counter(prompts(count))
        assert {outcome for _, outcome, *_ in settled} == {"done", "TaskFailed"}

        # A file that was on its way at a kill is fetched again, and no other one.
        again = sum(times - 1 for times in fetches(sandbox).values())
        assert again <= killed * DOWNLOADS_AT_ONCE
        later = fetches(sandbox) - fetched
        assert max(later.values()) == 1
        assert len(fetches(sandbox)) == 4 * sum(outcome == "done" for _, outcome, *_ in settled)
    print(
        f"{count} rows, {killed} kills, {unknown} unknown rows; {requests(sandbox)} requests, "
        f"{again} of {len(fetches(sandbox))} files fetched twice"
    )


def fetches(sandbox: Sandbox) -> Counter[str]:
    """How often each result file was sent."""
    assert requests(sandbox) < sandbox.ledger.REQUESTS_KEPT
    asked = sandbox.ledger.requests
    return Counter(each.path for each in asked if each.operation == "file" and each.status == 200)


def check(sandbox: Sandbox, folder: Path, items: list[Any], count: int) -> None:
    """Every row has ended once, was paid for once, and has all of its files."""
    assert [index for index, *_ in items] == [*range(count)]
    outcomes = Counter(outcome for _, outcome, *_ in items)
    assert set(outcomes) <= {"done", "TaskFailed", "unknown"}, outcomes
    assert {files for _, outcome, _, files in items if outcome == "done"} == {4}
    # A kill between the claim and the answer leaves a row of which nobody knows whether it was
    # accepted. All others were paid for exactly once.
    rows = prompts(count)
    paid = Counter(entry.body["prompt"] for entry in sandbox.ledger.accepted)
    unknown = Counter(rows[index] for index, outcome, *_ in items if outcome == "unknown")
    assert outcomes["unknown"] < count / 2
    for prompt, copies in Counter(rows).items():
        assert copies - unknown[prompt] <= paid[prompt] <= copies, prompt
    # A part file of a killed process is removed by a download some hours later.
    pictures = [file for file in (folder / "pictures").iterdir() if file.suffix != ".part"]
    assert len(pictures) == 4 * outcomes["done"]


@pytest.mark.timeout(300)
async def test_a_batch_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """Nothing is paid twice, no row is lost or comes twice, and no file is missing."""
    await kill_and_check(tmp_path, count=120, kills=6, seed=14)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
async def test_a_large_batch_that_is_killed_ten_times(tmp_path: Path) -> None:
    """The same with 5,000 rows."""
    await kill_and_check(tmp_path, count=5000, kills=10, seed=15)
