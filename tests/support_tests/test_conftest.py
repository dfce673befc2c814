"""What conftest.py promises for every test: each of these tests has to fail, or be deselected."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CULPRITS = """
import asyncio, gc, logging, os, socket
import aiohttp, pytest
from tests.support import secrets

log = logging.getLogger("midapi_async.somewhere")
kept = []

async def test_good(): await asyncio.sleep(3600)
@pytest.mark.real_time
async def test_good_real(): await asyncio.sleep(0.001)
def test_good_sync(): log.debug("nothing secret")
async def test_good_cancels_its_task():
    task = asyncio.create_task(asyncio.sleep(9)); await asyncio.sleep(1); task.cancel()
async def test_good_expects_the_report(loop_watch):
    asyncio.get_running_loop().call_exception_handler({"message": "expected"})
    assert "expected" in loop_watch.reports.pop()
@pytest.fixture
async def background():
    task = asyncio.create_task(asyncio.sleep(3600)); yield; task.cancel()
async def test_good_fixture_with_a_task(background): pass

async def test_bad_task(): kept.append(asyncio.create_task(asyncio.sleep(3600)))
async def test_bad_session(): aiohttp.ClientSession()
async def test_bad_never_retrieved():
    async def fail(): raise LookupError
    asyncio.create_task(fail()); await asyncio.sleep(1)
async def test_bad_pending_destroyed():
    async def wait(): await asyncio.get_running_loop().create_future()
    task = asyncio.create_task(wait()); await asyncio.sleep(1); del task; gc.collect()
async def test_bad_socket(): kept.append(socket.socket())
def test_bad_file(): kept.append(open(os.devnull))
async def test_bad_transport():
    server = await asyncio.start_server(lambda r, w: kept.append(w), "127.0.0.1", 0)
    kept.append(await asyncio.open_connection(*server.sockets[0].getsockname())); server.close()
def test_bad_key_in_a_message(): log.debug("sent %s", {"Authorization": secrets.API_KEY})
def test_bad_token_in_an_exception():
    try: raise ValueError("https://host/mjt_" + "a" * 30)
    except ValueError: log.exception("failed")
def test_bad_new_secret(): log.warning(secrets.known("hunter2hunter2"))
@pytest.mark.slow
def test_slow(): pass
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of pytest over the culprits, with this project's configuration."""
    folder = tmp_path_factory.mktemp("culprits")
    (folder / "test_culprits.py").write_text(CULPRITS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    options = [f"--rootdir={ROOT}", "-c", f"{ROOT}/pyproject.toml", "-rA", str(folder)]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.fault("I4")
@pytest.mark.fault("I5")
def test_the_good_pass_and_the_bad_fail(report: str) -> None:
    """A test fails exactly if it leaves something behind or shows a secret."""
    names = set(re.findall(r"def (test_\w+)", CULPRITS)) - {"test_slow"}
    blamed = set(re.findall(r"^(?:ERROR|FAILED) \S+::(test_\w+)", report, re.MULTILINE))
    assert {name for name in names if name.startswith("test_bad")} == blamed, report


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_bad_task", "tasks left behind"),
        ("test_bad_session", "Unclosed client session"),
        ("test_bad_never_retrieved", "exception was never retrieved"),
        ("test_bad_pending_destroyed", "was destroyed but it is pending"),
        ("test_bad_socket", "left open: .'socket:"),
        ("test_bad_file", "left open: .'/dev/null'"),
        ("test_bad_transport", "left open: .'socket:"),
        ("test_bad_key_in_a_message", "secrets in the log"),
        ("test_bad_token_in_an_exception", "secrets in the log"),
        ("test_bad_new_secret", "secrets in the log"),
    ],
)
def test_the_reason_is_said(report: str, name: str, reason: str) -> None:
    """The failure names what was left or shown."""
    _, *sections = re.split(rf"^_+ (?:ERROR at \w+ of )?{name} _+$", report, flags=re.MULTILINE)
    assert any(re.search(reason, section.split("\n____")[0]) for section in sections), report


def test_what_is_slow_is_deselected_and_counted(report: str) -> None:
    """Not skipped in silence: the closing line has it."""
    assert re.search(r"=== .*1 deselected.* in .*===", report)
    assert "slow tests: deselected" in report
