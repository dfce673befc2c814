"""The fixture, in this process and in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from midapi_async.sandbox import SandboxThread
from tests.sandbox.test_thread import call, look, submit
from tests.sandbox.world import CREDIT, FOX, GENERATE

ROOT = Path(__file__).parents[2]


def test_the_environment_points_at_it(midapi_sandbox: SandboxThread) -> None:
    """A program that reads the environment finds it."""
    assert midapi_sandbox.url == os.environ["MIDAPI_BASE_URL"]
    assert os.environ["MIDAPI_API_KEY"] == "sandbox-key"
    assert os.environ["MIDAPI_TIME_SCALE"] == "60.0"
    midapi_sandbox.finish(submit(midapi_sandbox))
    assert len(midapi_sandbox.ledger.accepted) == 1


@pytest.mark.midapi_sandbox(api_key="other", auto=False, credits=5, time_scale=10)
def test_a_marker_gives_arguments(midapi_sandbox: SandboxThread) -> None:
    """The marker's arguments are the sandbox's, and the environment follows."""
    assert os.environ["MIDAPI_API_KEY"] == "other"
    assert os.environ["MIDAPI_TIME_SCALE"] == "10"
    assert midapi_sandbox.credits == 5
    assert call(midapi_sandbox.url + CREDIT)["code"] == 401


@pytest.mark.midapi_sandbox(auto=False, credits=100)
class TestInAClass:
    @pytest.mark.midapi_sandbox(credits=8)
    def test_the_closest_marker_is_the_last_to_speak(self, midapi_sandbox: SandboxThread) -> None:
        """The class says auto, the test says credits."""
        task_id = submit(midapi_sandbox)
        assert call(midapi_sandbox.url + GENERATE, FOX)["code"] == 402
        assert look(midapi_sandbox, task_id)["successFlag"] == 0


def test_the_environment_is_restored() -> None:
    """The tests above left nothing in it."""
    assert "MIDAPI_BASE_URL" not in os.environ


OTHER = """
import os, sys

def test_it(midapi_sandbox):
    assert midapi_sandbox.url == os.environ["MIDAPI_BASE_URL"]
    assert midapi_sandbox.ledger.accepted == ()

def test_without():
    assert "MIDAPI_BASE_URL" not in os.environ
"""


@pytest.mark.real_time
def test_in_a_pytest_of_its_own(tmp_path: Path) -> None:
    """It is found, works with strict markers and warnings as errors, and closes cleanly."""
    (tmp_path / "test_other.py").write_text(OTHER)
    (tmp_path / "conftest.py").write_text(
        "from midapi_async.sandbox.pytest_plugin import midapi_sandbox, pytest_configure\n"
    )
    command = [sys.executable, "-X", "dev", "-m", "pytest", "-q", "-W", "error", "--strict-markers"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-p", "no:asyncio", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
