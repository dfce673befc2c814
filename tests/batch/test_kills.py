"""A batch whose process is killed again and again: every row ends once, and is paid for once."""

import asyncio
import json
import random
from collections import Counter
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from midapi_async.sandbox import Faults, Sandbox, answer_code, delay, fail_task, refuse_connection
from tests.batch.life import SCALE, live, prompts
from tests.support.secrets import API_KEY

# SQLite, the kernel and a signal decide here.
pytestmark = [pytest.mark.real_time, pytest.mark.one_python]

SPAWNER = get_context("forkserver")
SPAWNER.set_forkserver_preload(["tests.batch.life", "tests.kills.life"])
LONGEST_LIFE = 120.0  # seconds


@pytest.fixture(scope="module", autouse=True)
def spawner() -> None:
    """The forkserver runs before the first test, so that its pipes are nobody's leak."""
    forkserver.ensure_running()


async def ended(process: ForkServerProcess, seconds: float) -> bool:
    """Whether a process ends within some seconds by itself."""
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process.sentinel, gone.set)
    try:
        async with asyncio.timeout(seconds):
            await gone.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(process.sentinel)
    return True


async def run(sandbox: Sandbox, folder: Path, count: int, last: str, kill_after: float) -> bool:
    """Run the batch in a process; kill it after some seconds; return whether it was killed."""
    process = SPAWNER.Process(target=live, args=(sandbox.url, str(folder), count, last))
    process.start()
    try:
        has_ended = await ended(process, kill_after)
        if not has_ended:
            process.kill()
            await ended(process, LONGEST_LIFE)
        process.join()
        assert not has_ended or process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
    return not has_ended


async def kill_and_check(folder: Path, count: int, kills: int, seed: int) -> None:
    """So many kills, then a run to the end, then one that has nothing to do; then the ledger."""
    chance = random.Random(seed)
    faults = Faults()
    faults.on("submit", chance=0.03, do=answer_code(429))
    faults.on("submit", chance=0.03, do=delay(20))
    faults.on("look", chance=0.1, do=refuse_connection())
    faults.on("file", chance=0.05, do=refuse_connection())
    faults.on("task", chance=0.05, do=fail_task())
    async with Sandbox(
        api_key=API_KEY, faults=faults, seed=seed, time_scale=SCALE, credits=1e9
    ) as sandbox:
        killed = 0
        for _ in range(kills):
            # A run takes about so many seconds; a process needs half of one to begin.
            killed += await run(sandbox, folder, count, "killed", 0.3 + 1.2 * chance.random())
        assert killed >= kills // 2
        await run(sandbox, folder, count, "last", LONGEST_LIFE)
        before = len(sandbox.ledger.requests)
        await run(sandbox, folder, count, "again", LONGEST_LIFE)
        assert len(sandbox.ledger.requests) == before, "a finished batch makes no request"
        paid = Counter(entry.body["prompt"] for entry in sandbox.ledger.accepted)
        items = sorted(json.loads((folder / "last").read_text()))
        assert sorted(json.loads((folder / "again").read_text())) == items

    # Every row ends once, and has all of its files.
    assert [index for index, *_ in items] == [*range(count)]
    outcomes = Counter(outcome for _, outcome, *_ in items)
    assert set(outcomes) <= {"done", "TaskFailed", "unknown"}, outcomes
    assert {files for _, outcome, _, files in items if outcome == "done"} == {4}
    # A kill between the claim and the answer leaves a row of which nobody knows whether it was
    # accepted. All others were paid for exactly once.
    rows = prompts(count)
    wanted = Counter(rows)
    unknown = Counter(rows[index] for index, outcome, *_ in items if outcome == "unknown")
    assert outcomes["unknown"] < count / 2
    for prompt, copies in wanted.items():
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
