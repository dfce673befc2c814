"""Several processes on one folder: killed, racing, forked."""

import subprocess
import sys
from pathlib import Path

import pytest

from midapi_async.journal import Journal
from midapi_async.journal.sqlite import SQLiteJournal
from tests.journal.world import SCOPE, intent

pytestmark = pytest.mark.real_time
ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> str:
    """Run a program of `processes.py`, and show what it said if it fails."""
    # Python 3.12 warns of forks beside threads; that is what is tried here.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    command = [sys.executable, *warnings, "-m", "tests.journal.processes"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return done.stdout


def test_s14_killed_at_random(tmp_path: Path) -> None:
    """SIGKILL of three processes, forty times: what was confirmed is there, on a real disk."""
    assert "confirmed and kept" in run("kill", tmp_path, 40, 1)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(2, 7))
def test_s14_killed_at_random_for_long(tmp_path: Path, seed: int) -> None:
    """The same, 200 times."""
    assert "confirmed and kept" in run("kill", tmp_path, 200, seed)


def test_s15_four_processes_race_for_200_keys(tmp_path: Path) -> None:
    """Exactly one of them gets each key, and all know which."""
    assert "200 winners" in run("race", tmp_path / "journal")


def test_l10_a_fork_with_an_open_journal(tmp_path: Path) -> None:
    """The child is refused the journal, and cannot harm the parent's."""
    assert "the parent went on" in run("fork", tmp_path / "journal")


def test_l10_a_child_that_outlives_its_parent(tmp_path: Path) -> None:
    """The parent's lock on its owner file dies with it."""
    assert "its parent did not" in run("outlive", tmp_path / "journal")


def test_l7_a_program_that_ends_without_closing(tmp_path: Path) -> None:
    """Its journal is closed under the lock all the same, and nothing is said on its last breath."""
    program = (
        "import asyncio, sys; from tests.journal.world import *\n"
        "journal = SQLiteJournal(sys.argv[1])\n"
        "asyncio.run(journal.claim(intent()))\n"
    )
    folder = tmp_path / "journal"
    command = [sys.executable, "-W", "error", "-c", program, str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (folder / "journal.sqlite-wal").exists()
    assert list((folder / "owners").iterdir()) == []


def test_importing_the_package_loads_no_sqlite(tmp_path: Path) -> None:
    """What few people need is imported when it is used."""
    program = "import sys, midapi_async; assert 'midapi_async.journal._store' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


async def test_it_is_a_journal(tmp_path: Path) -> None:
    """Type checkers agree, and so does somebody who uses it as one."""
    journal: Journal = SQLiteJournal(tmp_path / "journal")
    row = await journal.claim(intent())
    assert await journal.rows(SCOPE) == [row]
    await journal.aclose()
