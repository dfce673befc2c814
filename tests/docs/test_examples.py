"""The programs in `examples/` as their users run them: processes, against a sandbox."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from midapi_async import MidAPIClient
from midapi_async.sandbox import Faults, SandboxThread, hang
from midapi_async.sandbox.pytest_plugin import midapi_sandbox
from tests.docs.blocks import REPOSITORY
from tests.docs.test_blocks import elsewhere, run
from tests.support.waiting import SECONDS, wait_until

__all__ = ["elsewhere", "midapi_sandbox"]  # fixtures

EXAMPLES = REPOSITORY / "examples"

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.slow,
    pytest.mark.one_python,
    pytest.mark.midapi_sandbox(time_scale=60),
]


def command(name: str) -> list[str]:
    """How an example is started; a warning is an error."""
    return [sys.executable, "-W", "error", str(EXAMPLES / name)]


def printed_by(name: str) -> str:
    """Run an example to its end; return what it prints."""
    ended = run(*command(name))
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def prompts(sandbox: SandboxThread) -> list[str]:
    """The prompt of each submission that the sandbox has accepted, and charged."""
    return sorted(str(each.body["prompt"]) for each in sandbox.ledger.accepted)


# ─── first.py ────────────────────────────────────────────────────────────────────────────────────


def test_the_first_program_prints_four_files(midapi_sandbox: SandboxThread) -> None:
    files = [Path(line) for line in printed_by("first.py").splitlines()]
    assert [file.parent.name for file in files] == ["pictures"] * 4
    assert all(file.stat().st_size for file in files)
    assert prompts(midapi_sandbox) == ["a red fox in the snow"]


# ─── script.py ───────────────────────────────────────────────────────────────────────────────────


def test_the_script_buys_each_prompt_once_in_two_runs(midapi_sandbox: SandboxThread) -> None:
    first = printed_by("script.py").splitlines()
    assert sorted(first) == [
        "3 of 3 done, 24 credits spent",
        "animals/fox: 4 files",
        "animals/owl: 4 files",
        "animals/whale: 4 files",
    ]
    files = {each: each.stat().st_mtime_ns for each in Path("pictures").iterdir()}
    requests = len(midapi_sandbox.ledger.requests)
    again = printed_by("script.py").splitlines()
    assert sorted(again) == ["3 of 3 done, 0 credits spent", *sorted(first)[1:]]
    assert len(midapi_sandbox.ledger.requests) == requests
    assert {each: each.stat().st_mtime_ns for each in Path("pictures").iterdir()} == files
    assert len(midapi_sandbox.ledger.accepted) == 3


@pytest.mark.midapi_sandbox(credits=10)
def test_the_script_says_why_it_stopped(midapi_sandbox: SandboxThread) -> None:
    """Without credits it ends with an error that names them, and a later run continues."""
    ended = run(*command("script.py"))
    assert ended.returncode == 1
    assert "InsufficientCreditsError" in ended.stdout
    midapi_sandbox.credits = 1000
    assert "3 of 3 done" in printed_by("script.py")
    assert len(midapi_sandbox.ledger.accepted) == 3


# ─── worker.py ───────────────────────────────────────────────────────────────────────────────────


class Worker:
    """A process that runs `worker.py`; its log goes into a file."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command("worker.py"),
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stderr=file,
                stdout=file,
            )

    def end(self, number: int) -> int:
        """Send a signal, and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@pytest.fixture
def start(elsewhere: Path, midapi_sandbox: SandboxThread) -> Iterator[Callable[[], Worker]]:
    """Start a worker; each that is left at the end of the test is killed."""
    workers: list[Worker] = []

    def started() -> Worker:
        workers.append(Worker(elsewhere / f"worker-{len(workers)}.log"))
        return workers[-1]

    yield started
    for worker in workers:
        print(worker.log.read_text("utf-8"))
        with suppress(ProcessLookupError):
            worker.process.kill()
        worker.process.wait(SECONDS)


def order(number: str, prompt: str) -> None:
    """Write an order as a user of the worker does: beside the folder, then moved."""
    Path("orders").mkdir(exist_ok=True)
    Path("new.txt").write_text(f"{prompt}\n", "utf-8")
    Path("new.txt").rename(f"orders/{number}.txt")


def pictures(number: str) -> int:
    """How many files were delivered for an order."""
    return len([*Path("delivered", number).glob("*.jpeg")])


def reason(number: str) -> str:
    """Why an order has no pictures; '' if nothing says so."""
    file = Path("delivered", f"{number}.txt")
    return file.read_text("utf-8") if file.exists() else ""


def test_the_worker_delivers_pictures_and_reasons(
    midapi_sandbox: SandboxThread, start: Callable[[], Worker]
) -> None:
    order("1", "a red fox")
    order("2", "an owl [[sandbox: fail=out of paint]]")
    order("3", "")
    worker = start()
    wait_until(lambda: reason("3"))
    order("4", "a blue whale")
    wait_until(lambda: pictures("1") == pictures("4") == 4 and reason("2"))
    assert "out of paint" in reason("2")
    assert "prompt" in reason("3")
    assert [*Path("orders").iterdir()] == []
    order("1", "another prompt under the number of an earlier order")
    wait_until(lambda: reason("1"))
    assert worker.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert "Traceback" not in worker.log.read_text("utf-8")
    assert len(midapi_sandbox.ledger.accepted) == 3


def test_the_worker_ends_at_ctrl_c_without_a_traceback(start: Callable[[], Worker]) -> None:
    order("1", "a fox [[sandbox: never]]")
    worker = start()
    wait_until(lambda: not [*Path("orders").iterdir()])
    assert worker.end(signal.SIGINT) == 0
    assert "Traceback" not in worker.log.read_text("utf-8")


def test_an_order_without_credits_waits_and_a_later_worker_buys_it(
    midapi_sandbox: SandboxThread, start: Callable[[], Worker]
) -> None:
    midapi_sandbox.credits = 0
    order("1", "a red fox")
    worker = start()
    wait_until(lambda: "orders must wait" in worker.log.read_text("utf-8"))
    assert worker.end(signal.SIGTERM) == 128 + signal.SIGTERM
    midapi_sandbox.credits = 100
    start()
    wait_until(lambda: pictures("1") == 4)
    assert len(midapi_sandbox.ledger.accepted) == 1


@pytest.mark.midapi_sandbox(
    faults=Faults()
    .on("submit", when=lambda call: "hill 3 " in str(call.body), first=1, do=hang())
    .on("submit", when=lambda call: "hill 6 " in str(call.body), first=1, do=hang(accepted=False))
    .on("submit", when=lambda call: "hill 9 " in str(call.body), first=1, do=hang())
)
def test_killed_workers_deliver_everything_and_buy_nothing_twice(
    midapi_sandbox: SandboxThread, start: Callable[[], Worker]
) -> None:
    """Two workers share a journal, and are killed at a random moment, three times.

    Each time the POST of one of three orders is under way, which MidAPI has accepted, or has not.
    It leaves an unknown submission, which no worker buys again. The test decides about these as a
    user does: it adopts the task that the sandbox has, or else submits the order again.
    """
    random_ = random.Random(16)
    numbers = [str(number) for number in range(1, 10)]

    def submits() -> int:
        return sum(each.operation == "submit" for each in midapi_sandbox.ledger.requests)

    for end in (3, 6, 9):
        workers = [start(), start()]
        for number in numbers[end - 3 : end]:
            seconds = random_.randint(10, 90)
            order(number, f"a fox on hill {number} [[sandbox: seconds={seconds}]]")
        wait_until(lambda: submits() == end)  # noqa: B023 - called at once
        time.sleep(random_.uniform(0, 0.6))
        for worker in workers:
            worker.end(signal.SIGKILL)
    start()
    wait_until(lambda: not [*Path("orders").iterdir()])
    assert asyncio.run(decide(midapi_sandbox)) >= 3
    wait_until(lambda: all(pictures(number) == 4 for number in numbers))
    assert len(prompts(midapi_sandbox)) == len(set(prompts(midapi_sandbox))) == len(numbers)


async def decide(sandbox: SandboxThread) -> int:
    """Decide about each unknown submission, by what the sandbox has accepted; return how many."""
    async with MidAPIClient(journal="journal", ack="manual") as client:
        unknown = await client.intents.unknown()
        for intent in unknown:
            prompt = getattr(intent.request, "prompt", "")
            accepted = [each for each in sandbox.ledger.accepted if each.body["prompt"] == prompt]
            if accepted:
                await client.intents.adopt(intent, accepted[0].task_id)
            else:
                await client.intents.resubmit(intent)
    return len(unknown)
