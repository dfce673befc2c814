"""The fixture, in this process and in a pytest of its own."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import midapi_async
from midapi_async import MidAPIClient
from midapi_async.sandbox import SandboxThread
from tests.sandbox.test_thread import call, look, submit
from tests.sandbox.world import CREDIT, FOX, GENERATE

ROOT = Path(__file__).parents[2]


def test_the_environment_points_at_it(midapi_sandbox: SandboxThread) -> None:
    """A program that reads the environment finds it."""
    assert midapi_sandbox.url == os.environ["MIDAPI_BASE_URL"]
    assert os.environ["MIDAPI_API_KEY"] == "sandbox-key"
    assert os.environ["MIDAPI_TIME_SCALE"] == "1200.0"
    midapi_sandbox.finish(submit(midapi_sandbox))
    assert len(midapi_sandbox.ledger.accepted) == 1


def documented_variables() -> set[str]:
    """Every environment variable that the package or its README names."""
    sources = [ROOT / "README.md", *Path(midapi_async.__file__).parent.rglob("*.py")]
    return set(re.findall(r"MIDAPI_[A-Z_]*[A-Z]", " ".join(p.read_text("utf-8") for p in sources)))


@pytest.fixture
def developer(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of somebody who works with the real service, and one of a later release."""
    of_the_developer = dict.fromkeys(documented_variables(), "of the developer") | {
        "MIDAPI_API_KEY": "a-key-that-costs-money",
        "MIDAPI_API_KEY_FILE": str(tmp_path / "key"),
        "MIDAPI_BASE_URL": "http://api.example",
        "MIDAPI_ALLOW_HTTP": "1",
        "MIDAPI_TIME_SCALE": "1",
        "MIDAPI_JOURNAL": str(tmp_path / "journal"),
        "MIDAPI_PUBLIC_URL": "https://bot.example",
        "MIDAPI_CALLBACK_PORT": "8080",
        "MIDAPI_WEBHOOK_KEY": "a-webhook-key",
        "MIDAPI_WEBHOOK_KEY_FILE": str(tmp_path / "webhook-key"),
        "MIDAPI_PROXY": "http://proxy.example:3128",
        "MIDAPI_OF_A_LATER_RELEASE": "1",
    }
    # Not with monkeypatch, which the fixture under test uses to put everything back.
    before = {name: value for name, value in os.environ.items() if name.startswith("MIDAPI_")}
    os.environ.update(of_the_developer)
    yield of_the_developer
    for name in of_the_developer:
        del os.environ[name]
    os.environ.update(before)


@pytest.mark.fault("L19")
@pytest.mark.real_time
async def test_the_developer_s_own_variables_are_not_seen(
    developer: dict[str, str],  # set before the fixture under test
    tmp_path: Path,
    midapi_sandbox: SandboxThread,
) -> None:
    """No journal is written and no public URL is called: only the sandbox's variables are set."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("MIDAPI_")}
    assert ours == {
        "MIDAPI_BASE_URL": midapi_sandbox.url,
        "MIDAPI_API_KEY": "sandbox-key",
        "MIDAPI_TIME_SCALE": "1200.0",
    }
    async with MidAPIClient() as client:
        await client.generate_and_wait("a red fox", key="fox")
    assert midapi_sandbox.ledger.accepted[0].callback_url is None
    assert list(tmp_path.iterdir()) == []


def seconds_of_a_test(scale: float) -> float:
    """How long a test takes: a sandbox starts, a client orders a picture, both are closed."""
    begun = time.perf_counter()
    with SandboxThread(time_scale=scale) as sandbox:

        async def order() -> None:
            async with MidAPIClient("k", base_url=sandbox.url, time_scale=scale) as client:
                await client.generate_and_wait("a red fox")

        asyncio.run(order())
    return time.perf_counter() - begun


def test_a_test_with_the_defaults_takes_almost_no_time(midapi_sandbox: SandboxThread) -> None:
    """At most a fifth of one at a second for a minute; a fifteenth was measured."""
    assert midapi_sandbox.url == os.environ["MIDAPI_BASE_URL"]
    scale = float(os.environ["MIDAPI_TIME_SCALE"])
    fast = min(seconds_of_a_test(scale) for _ in range(3))
    assert seconds_of_a_test(60) > 5 * fast


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
    assert "MIDAPI_JOURNAL" not in os.environ

def test_without():
    assert "MIDAPI_BASE_URL" not in os.environ
    assert os.environ["MIDAPI_JOURNAL"] == "of the developer"
"""


@pytest.mark.real_time
def test_in_a_pytest_of_its_own(tmp_path: Path) -> None:
    """It works with strict markers and warnings as errors, closes cleanly, and restores all."""
    (tmp_path / "test_other.py").write_text(OTHER)
    (tmp_path / "conftest.py").write_text(
        "from midapi_async.sandbox.pytest_plugin import midapi_sandbox, pytest_configure\n"
    )
    command = [sys.executable, "-X", "dev", "-m", "pytest", "-q", "-W", "error", "--strict-markers"]
    ours = {"PYTHONPATH": str(ROOT), "MIDAPI_JOURNAL": "of the developer"}
    environment = {**os.environ, **ours}
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
