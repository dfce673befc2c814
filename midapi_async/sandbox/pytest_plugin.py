"""The pytest fixture `midapi_sandbox`: a local MidAPI for one test.

    def test_my_bot(midapi_sandbox):
        task_id = my_bot.order("a red fox")          # finds the sandbox in the environment
        assert midapi_sandbox.ledger.accepted[0].body["prompt"] == "a red fox"

    @pytest.mark.midapi_sandbox(auto=False, credits=5)
    def test_that_decides_when(midapi_sandbox):
        ...
        midapi_sandbox.finish(task_id)

Everything heavy is imported when the fixture is used: pytest loads this file at every start.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from midapi_async.sandbox._thread import SandboxOptions, SandboxThread

_API_KEY = "sandbox-key"
_TIME_SCALE = 60.0


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "midapi_sandbox(**options): arguments of Sandbox for the midapi_sandbox fixture"
    )


@pytest.fixture
def midapi_sandbox(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[SandboxThread]":
    """Serve a sandbox in a thread of its own and point the environment at it.

    A minute of its time is a second. Sets MIDAPI_BASE_URL, MIDAPI_API_KEY and
    MIDAPI_TIME_SCALE for the test; the marker ``midapi_sandbox`` gives it other arguments.
    """
    from midapi_async.sandbox._thread import SandboxThread

    options: SandboxOptions = {"time_scale": _TIME_SCALE}
    # The closest marker is the last to speak.
    for marker in reversed(list(request.node.iter_markers("midapi_sandbox"))):
        options.update(marker.kwargs)
    with SandboxThread(**options) as sandbox:
        monkeypatch.setenv("MIDAPI_BASE_URL", sandbox.url)
        monkeypatch.setenv("MIDAPI_API_KEY", options.get("api_key") or _API_KEY)
        monkeypatch.setenv("MIDAPI_TIME_SCALE", str(options.get("time_scale", _TIME_SCALE)))
        yield sandbox
