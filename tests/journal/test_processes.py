"""Several processes on one folder: killed, racing, forked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from midapi_async.journal import Journal
from midapi_async.journal.sqlite import SQLiteJournal
from tests.journal.world import SCOPE, claimed, quick_folder

pytestmark = pytest.mark.real_time
ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> str:
    """Run a program of `processes.py`, and show what it printed if it fails."""
    # Python 3.12 warns of forks beside threads; that is what is tested here.
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


@pytest.mark.one_python
@pytest.mark.fault("S14")
def test_killed_at_random(tmp_path: Path) -> None:
    """SIGKILL of three processes, 24 times: what was confirmed is there, on a real disk."""
    assert "confirmed and kept" in run("kill", tmp_path, 24, 1)


@pytest.mark.fault("S14")
@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(2, 7))
def test_killed_at_random_for_long(tmp_path: Path, seed: int) -> None:
    """The same, 200 times."""
    assert "confirmed and kept" in run("kill", tmp_path, 200, seed)


@pytest.mark.fault("S15")
def test_four_processes_race_for_200_keys(tmp_path: Path) -> None:
    """Exactly one of them gets each key, and all are shown that row."""
    assert "200 winners" in run("race", tmp_path / "journal")


@pytest.mark.fault("L10")
def test_a_fork_with_an_open_journal(tmp_path: Path) -> None:
    """The child is refused the journal, and cannot harm the parent's."""
    assert "the parent went on" in run("fork", tmp_path / "journal")


@pytest.mark.fault("L10")
def test_a_child_that_outlives_its_parent(tmp_path: Path) -> None:
    """The parent's lock on its owner file dies with it."""
    assert "its parent did not" in run("outlive", tmp_path / "journal")


@pytest.mark.one_python
@pytest.mark.fault("S27")
def test_a_stopped_process_holds_the_lock(tmp_path: Path) -> None:
    """Callers get an error after 10 s; the lock that comes after that is given back."""
    assert "given back" in run("stop", tmp_path / "journal")


@pytest.mark.fault("S14")
def test_an_owner_that_is_killed(tmp_path: Path) -> None:
    """SENDING becomes UNKNOWN, RESTING becomes REFUSED, and a living owner may take over."""
    assert "were settled" in run("settle", tmp_path / "journal")


@pytest.mark.one_python
def test_the_lock_is_passed_on_promptly() -> None:
    """With four processes 99 of 100 claims take less than 500 ms, or 6 times a flock."""
    claim = 0.0
    for _ in range(3):  # other programs disturb it
        with quick_folder() as folder:
            found = re.findall(r"(?:claim|reference) ([0-9.]+) ms", run("prompt", folder))
        claim, reference = map(float, found)
        if claim < max(500.0, 6 * reference):
            return
    pytest.fail(f"a claim took {claim} ms")


@pytest.mark.fault("L7")
def test_a_program_that_ends_without_closing(tmp_path: Path) -> None:
    """Its journal is closed under the lock all the same, without a word."""
    program = (
        "import asyncio, sys; from tests.journal.world import *\n"
        "journal = SQLiteJournal(sys.argv[1])\n"
        "asyncio.run(claimed(journal))\n"
    )
    folder = tmp_path / "journal"
    command = [sys.executable, "-W", "error", "-c", program, str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (folder / "journal.sqlite-wal").exists()
    assert list((folder / "owners").iterdir()) == []


def test_importing_the_package_loads_no_sqlite(tmp_path: Path) -> None:
    """SQLite is imported by those that use a folder."""
    program = "import sys, midapi_async; assert 'midapi_async.journal.sqlite' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


async def test_it_is_a_journal(tmp_path: Path) -> None:
    """Type checkers agree, and it can be used as one."""
    journal: Journal = SQLiteJournal(tmp_path / "journal")
    row = await claimed(journal)
    assert await journal.rows(SCOPE) == [row]
    await journal.aclose()
