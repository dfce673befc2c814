"""Processes that submit are killed and stopped, their files damaged, their answers mixed up.

Nothing is paid twice and nothing paid for is lost, whatever happens to them and in whatever order.
"""

import asyncio
import os
import random
import shutil
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.kills.life import POINTS
from tests.kills.world import World, a_world

# SQLite, the kernel and a signal decide here.
pytestmark = [pytest.mark.real_time, pytest.mark.one_python]

ROUNDS_OF_A_WORLD = 20
WORLDS_AT_ONCE = 4


@pytest.fixture(scope="module", autouse=True)
def spawner() -> None:
    """The forkserver runs before the first test, so that its pipes are nobody's leak."""
    forkserver.ensure_running()


async def kill_and_check(folder: Path, kills: int, seed: int) -> Counter[str]:
    """So many lives that die at a point or at random, then one that lives on; then the ledger."""
    async with a_world(folder, seed) as world:
        points = [*POINTS, *[None] * len(POINTS)]
        while sum(world.deaths.values()) - world.deaths["lived"] < kills:
            keys = world.next_keys()
            point = points[world.generation % len(points)]
            seconds = None if point else world.chance.random() * 0.25
            await world.live(keys, point, seconds)
            assert world.generation < 4 * kills + 20, f"they do not die: {world.deaths}"
        assert await world.live(("last",)) == 0
        await world.check()
        return world.deaths


async def play(folder: Path, seed: int, rounds: list[str]) -> World:
    """Some rounds of one world, then a life that lives on; then the ledger."""
    folder.mkdir()
    async with a_world(folder, seed) as world:
        for each in rounds:
            await getattr(world, each)()
        assert await world.live(("last",)) == 0
        await world.check()
    return world


@pytest.mark.fault("I1")
@pytest.mark.fault("I2")
@pytest.mark.fault("S14")
@pytest.mark.timeout(600)
async def test_killed_at_every_step_and_at_random(tmp_path: Path) -> None:
    """Some dozens of kills: double payments 0, lost ids 0; every point was hit."""
    deaths = await kill_and_check(tmp_path, 36, seed=14)
    assert set(POINTS) <= set(deaths)
    assert deaths["at random"] >= 5


@pytest.mark.fault("I1")
@pytest.mark.fault("I2")
@pytest.mark.fault("S14")
@pytest.mark.chaos
@pytest.mark.timeout(7200)
async def test_many_kills(tmp_path: Path) -> None:
    """As many as MIDAPI_TEST_KILLS says, 200 otherwise."""
    kills = int(os.environ.get("MIDAPI_TEST_KILLS", "200"))
    deaths = await kill_and_check(
        tmp_path, kills, seed=int(os.environ.get("MIDAPI_TEST_SEED", "7"))
    )
    print(f"deaths: {dict(deaths)}")


@pytest.mark.fault("I1")
@pytest.mark.fault("I2")
@pytest.mark.fault("S21")
@pytest.mark.fault("S23")
@pytest.mark.fault("S25")
@pytest.mark.timeout(300)
async def test_stopped_damaged_and_mixed_up(tmp_path: Path) -> None:
    """A few rounds of each kind, in three worlds at once."""
    async with asyncio.TaskGroup() as group:
        plays = [
            group.create_task(play(tmp_path / rounds[-1], seed, rounds))
            for seed, rounds in enumerate(
                (
                    ["stop", "lose_lock", "kill", "lose_lock"],
                    ["kill", "damage", "damage", "damage"],
                    ["mix_up", "kill", "mix_up", "mix_up"],
                )
            )
        ]
    worlds = [each.result() for each in plays]
    done, tricks = sum((world.done for world in worlds), Counter()), worlds[2].proxy.tricks
    assert done["stops"] >= 1, done
    assert done["lock files removed"] >= 1, done
    assert sum(n for name, n in done.items() if name.endswith("JournalError")) >= 2, done
    assert min(tricks["doubled"], tricks["old one first"]) >= 1, tricks


@pytest.mark.fault("I1")
@pytest.mark.fault("I2")
@pytest.mark.chaos
@pytest.mark.timeout(7200)
async def test_many_rounds_of_everything(tmp_path: Path) -> None:
    """As many rounds as MIDAPI_TEST_KILLS says, 200 otherwise, in worlds of 20 rounds."""
    rounds = int(os.environ.get("MIDAPI_TEST_KILLS", "200"))
    first_seed = int(os.environ.get("MIDAPI_TEST_SEED", "7")) * 1000
    kinds = ["kill", "stop", "lose_lock", "damage", "mix_up"] * (ROUNDS_OF_A_WORLD // 5)
    turn = asyncio.Semaphore(WORLDS_AT_ONCE)
    done: Counter[str] = Counter()

    async def a_play(seed: int) -> None:
        async with turn:
            folder = tmp_path / str(seed)
            try:
                world = await play(folder, seed, random.Random(seed).sample(kinds, len(kinds)))
            except BaseException:
                print(f"seed {seed}")
                raise
            done.update(world.done + world.proxy.tricks + Counter(deaths=world.deaths.total()))
            done.update(paid=len(world.paid), worlds=1)
            shutil.rmtree(folder)

    async with asyncio.TaskGroup() as group:
        for number in range(-(-rounds // ROUNDS_OF_A_WORLD)):
            group.create_task(a_play(first_seed + number))
    print(f"{rounds} rounds: {dict(done)}")


@pytest.mark.fault("I1")
async def test_the_check_would_notice_a_second_payment(tmp_path: Path) -> None:
    """The driver can fail: with the journal thrown away between two lives, keys are paid twice."""
    async with a_world(tmp_path, 1) as world:
        assert await world.live(("a", "b")) == 0
        world.folder.rename(tmp_path / "thrown-away")
        assert await world.live(("a", "b")) == 0
        with pytest.raises(AssertionError, match="paid twice"):
            await world.check()
