import json
import socket
import urllib.request

import pytest

from midapi_async.sandbox import SandboxThread
from tests.cli.conftest import Midapi, ctrl_c_when, finish, spawn

pytestmark = pytest.mark.real_time

KEY = "a-key-of-the-sandbox"


def free_port() -> int:
    """A port that is free."""
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        return int(finder.getsockname()[1])


def credits_at(port: int) -> object:
    """The balance of a sandbox; None if it does not answer yet."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/common/credit", headers={"Authorization": f"Bearer {KEY}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - http, loopback
            return json.load(answer)["data"]
    except OSError:
        return None


def test_it_serves_until_it_is_stopped(midapi: Midapi) -> None:
    """One line with the URL, never the key; Ctrl-C ends it with 0."""
    port, seen = free_port(), list[object]()

    def it_serves() -> bool:
        seen.append(credits_at(port))
        return seen[-1] is not None

    with ctrl_c_when(it_serves):
        ran = midapi(
            *("sandbox", "--port", port, "--api-key", KEY, "--credits", 7, "--time-scale", 60)
        )
    assert (ran.code, ran.lines) == (0, [f"http://127.0.0.1:{port}"])
    assert seen[-1] == 7
    assert f"MIDAPI_BASE_URL=http://127.0.0.1:{port}" in ran.err
    assert "MIDAPI_TIME_SCALE=60" in ran.err
    assert KEY not in ran.err


def test_port_0_picks_a_port() -> None:
    """SIGTERM ends it with 0."""
    process = spawn("sandbox", "--port", 0)
    assert process.stdout is not None
    url = process.stdout.readline()
    port = int(url.rpartition(":")[2])
    assert credits_at(port) == 10_000
    process.terminate()
    ran = finish(process)
    assert ran.code == 0
    assert "MIDAPI_API_KEY=anything" in ran.err
    assert "MIDAPI_TIME_SCALE" not in ran.err


def test_a_taken_port_is_an_error(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Exit code 1, one line that names the port."""
    port = midapi_sandbox.url.rpartition(":")[2]
    ran = midapi("sandbox", "--port", port)
    assert ran.code == 1
    assert f"cannot listen on 127.0.0.1:{port}: the port is taken" in ran.error


@pytest.mark.parametrize(
    "arguments", [["--time-scale", "0"], ["--port", "many"], ["--api-key", ""], ["--credits", "x"]]
)
def test_wrong_arguments_are_a_usage_error(midapi: Midapi, arguments: list[str]) -> None:
    """Exit code 2, one line."""
    ran = midapi("sandbox", *arguments)
    assert ran.code == 2
    assert ran.error
