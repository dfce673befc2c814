"""`examples/procrastinate_worker.py`: a job that runs again after a kill pays nothing twice."""

import asyncio
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from procrastinate.exceptions import AlreadyEnqueued

from midapi_async.sandbox import SandboxThread, delay
from midapi_async.sandbox.pytest_plugin import midapi_sandbox
from tests.support.postgres import Server, new_schema
from tests.support.waiting import wait_until

__all__ = ["midapi_sandbox"]

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.one_python,
    pytest.mark.midapi_sandbox(time_scale=60),
]

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "procrastinate_worker.py"
BOUGHT = "SELECT FROM midapi.intents WHERE state = 'accepted'"
DOING, FAILED = (
    f"SELECT FROM procrastinate_jobs WHERE status = '{status}' AND task_name = 'picture'"
    for status in ("doing", "failed")
)


@pytest.fixture
def database(
    postgres: Server,
    midapi_sandbox: SandboxThread,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """The address of a database with the tables of the queue; the programs run in a new folder."""
    name = new_schema()
    asyncio.run(postgres.execute(f"CREATE DATABASE {name}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url := postgres.url.replace("/postgres", f"/{name}"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    asyncio.run(program()["setup"]())
    yield url
    asyncio.run(postgres.execute(f"DROP DATABASE {name} WITH (FORCE)"))


def program() -> dict[str, Any]:
    """The names of the program, for what needs no process of its own."""
    return runpy.run_path(str(EXAMPLE), run_name="imported")


@contextmanager
def worker() -> Iterator["subprocess.Popen[str]"]:
    """A running worker, killed at the end of the block as by a power failure."""
    command = [sys.executable, str(EXAMPLE), "work"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def ask(url: str, statement: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(statement))
    finally:
        await connection.close()


def order() -> None:
    asyncio.run(program()["order"]("a red fox"))


def let_time_pass(url: str) -> None:
    """As if the killed worker's last sign of life were older than 30 s, and a minute had begun."""

    async def defer() -> None:
        names = program()
        async with names["app"].open_async():
            with suppress(AlreadyEnqueued):  # a minute has begun indeed
                await names["retry_stalled"].defer_async(timestamp=0)

    old = "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 minute'"
    asyncio.run(ask(url, old))
    asyncio.run(defer())


def test_a_worker_is_killed_between_purchase_and_result(
    database: str, midapi_sandbox: SandboxThread
) -> None:
    """The job runs again in the next worker, waits for the same picture, and pays nothing."""
    order()
    with worker():
        wait_until(lambda: midapi_sandbox.ledger.accepted)
        wait_until(lambda: asyncio.run(ask(database, BOUGHT)))
    assert asyncio.run(ask(database, DOING))
    let_time_pass(database)
    with worker() as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "job 1: 4 files\n"
    assert len(midapi_sandbox.ledger.accepted) == 1
    assert len(list(Path("pictures").iterdir())) == 4


def test_a_worker_is_killed_while_it_pays(database: str, midapi_sandbox: SandboxThread) -> None:
    """Nobody can know whether that was bought: the job fails, and is not paid again."""
    midapi_sandbox.faults.on("submit", do=delay(600))
    order()
    with worker():
        wait_until(lambda: midapi_sandbox.ledger.accepted)
    let_time_pass(database)
    with worker():
        wait_until(lambda: asyncio.run(ask(database, FAILED)))
    assert len(midapi_sandbox.ledger.accepted) == 1
    [row] = asyncio.run(ask(database, "SELECT key, state FROM midapi.intents"))
    assert tuple(row) == ("job-1", "unknown")
