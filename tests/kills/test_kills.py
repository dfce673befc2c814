"""S14: SIGKILL at every step and at random; nothing is paid twice and nothing paid for is lost."""

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import forkserver
from pathlib import Path

import pytest

from midapi_async import State
from midapi_async.journal.sqlite import SQLiteJournal
from tests.kills.life import POINTS, Life, live
from tests.support.scripted import Answer, Received, ScriptedServer, delay
from tests.world import accepted, looked

pytestmark = pytest.mark.real_time

SPAWNER = multiprocessing.get_context("forkserver")
SPAWNER.set_forkserver_preload(["tests.kills.life", "midapi_async.journal.sqlite"])


@pytest.fixture(scope="module", autouse=True)
def spawner() -> None:
    """The forkserver runs before the first test, so that its pipes are nobody's leak."""
    forkserver.ensure_running()


class World:
    """A server with a ledger, and the lives that were lived against it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.server = ScriptedServer(then=self.answer)
        self.given: dict[int, str] = {}  # task ids, by the POST's object, which the server keeps
        self.deaths: Counter[str] = Counter()

    def answer(self, request: Received) -> Answer:
        """Accept every POST, a little later; every task is done."""
        if request.method == "POST":
            task = self.given[id(request)] = f"task-{len(self.given)}"
            return delay(accepted(task), self.chance.random() * 0.02)
        return looked(request.target.rpartition("=")[2])

    def paid(self) -> dict[str, list[str]]:
        """The task ids that were given out, by key: the ledger."""
        found: dict[str, list[str]] = {}
        for request in self.server.accepted:
            if request.method == "POST":
                key = json.loads(request.body)["prompt"].split()[1]
                found.setdefault(key, []).append(self.given[id(request)])
        return found

    async def live(self, keys: tuple[str, ...], point: str | None, seconds: float | None) -> int:
        """Live once, until the end, the point or the time; return the exit code."""
        life = Life(self.server.url, str(self.folder), keys, point, self.chance.randint(1, 4))
        process = SPAWNER.Process(target=live, args=(life,))
        process.start()
        ended = asyncio.to_thread(process.join, 60 if seconds is None else seconds)
        await ended
        if process.is_alive():
            assert seconds is not None, "a life did not come to its end"
            process.kill()
            await asyncio.to_thread(process.join, 60)
        code = process.exitcode
        process.close()
        assert code is not None
        self.deaths[point or "at random" if code == -signal.SIGKILL else "lived"] += 1
        return code

    async def check(self) -> None:
        """I1 and I2, from the server's ledger and the journal."""
        paid, notes = self.paid(), self.notes()
        twice = {key: tasks for key, tasks in paid.items() if len(tasks) > 1}
        assert not twice, f"paid twice: {twice}"
        journal = SQLiteJournal(self.folder)
        try:
            rows = await journal.rows(f"{self.server.url} default", limit=sys.maxsize)
        finally:
            await journal.aclose()
        known = {row.task_id for row in rows}
        unknown = {row.key for row in rows if row.state in (State.UNKNOWN, State.SENDING)}
        lost = {
            key: tasks
            for key, tasks in paid.items()
            if not set(tasks) <= known and key not in unknown
        }
        assert not lost, f"lost: {lost}"
        given = {line.split()[2] for line in notes if line.startswith("handle")}
        assert given <= known, "a handle was given out before its task id was safe"
        taken = {row.task_id for row in rows if row.taken}
        noted = {line.split()[2] for line in notes if line.startswith("taken")}
        assert taken <= noted, "something counts as taken that nobody got"

    def notes(self) -> list[str]:
        file = self.folder.with_suffix(".notes")
        return file.read_text().splitlines() if file.exists() else []


@asynccontextmanager
async def a_world(folder: Path, seed: int) -> AsyncIterator[World]:
    world = World(folder / "journal", seed)
    async with world.server:
        yield world


async def kill_and_check(folder: Path, kills: int, seed: int) -> Counter[str]:
    """So many lives that die at a point or at random, then one that lives on; then the ledger."""
    async with a_world(folder, seed) as world:
        points = [*POINTS, *[None] * len(POINTS)]
        generation = 0
        while sum(world.deaths.values()) - world.deaths["lived"] < kills:
            generation += 1
            keys = tuple(f"{generation - back}-{n}" for back in (1, 0) for n in range(6))
            point = points[generation % len(points)]
            seconds = None if point else world.chance.random() * 0.25
            await world.live(keys, point, seconds)
            assert generation < 4 * kills + 20, f"they do not die: {world.deaths}"
        assert await world.live(("last",), None, None) == 0
        await world.check()
        return world.deaths


@pytest.mark.timeout(600)
async def test_s14_killed_at_every_step_and_at_random(tmp_path: Path) -> None:
    """Some dozens of kills: double payments 0, lost ids 0; every point was hit."""
    deaths = await kill_and_check(tmp_path, 40, seed=14)
    assert set(POINTS) <= set(deaths)
    assert deaths["at random"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_s14_many_kills(tmp_path: Path) -> None:
    """As many as MIDAPI_TEST_KILLS says, 200 otherwise."""
    kills = int(os.environ.get("MIDAPI_TEST_KILLS", "200"))
    deaths = await kill_and_check(
        tmp_path, kills, seed=int(os.environ.get("MIDAPI_TEST_SEED", "7"))
    )
    print(f"deaths: {dict(deaths)}")


async def test_the_check_would_notice_a_second_payment(tmp_path: Path) -> None:
    """The driver can fail: with the journal thrown away between two lives, keys are paid twice."""
    async with a_world(tmp_path, 1) as world:
        assert await world.live(("a", "b"), None, None) == 0
        world.folder.rename(tmp_path / "thrown-away")
        assert await world.live(("a", "b"), None, None) == 0
        with pytest.raises(AssertionError, match="paid twice"):
            await world.check()
