"""The pytest fixture `midapi_sandbox`: a local MidAPI for one test.

    from midapi_async.sandbox import SandboxThread

    def test_my_bot(midapi_sandbox: SandboxThread) -> None:
        task_id = my_bot.order("a red fox")          # finds the sandbox in the environment
        assert midapi_sandbox.ledger.accepted[0].body["prompt"] == "a red fox"

    @pytest.mark.midapi_sandbox(auto=False, credits=5)
    def test_that_decides_when(midapi_sandbox: SandboxThread) -> None:
        ...
        midapi_sandbox.finish(task_id)

Everything heavy is imported when the fixture is used: pytest loads this file at every start.
"""

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from midapi_async.sandbox._thread import SandboxOptions, SandboxThread

_OURS = "MIDAPI_"
_API_KEY = "sandbox-key"
# A picture takes a minute, so that a test takes 0.05 s. Timeouts of the network are not scaled
# below 5 s, neither here nor in the SDK.
_TIME_SCALE = 1200.0


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

    A minute of its time is a twentieth of a second; the marker ``midapi_sandbox`` gives it
    another time_scale, or other arguments.

    For the test, all environment variables whose names begin with ``MIDAPI_`` are removed, since
    they are the developer's: a journal folder, a public URL, a key that costs money. Then
    MIDAPI_BASE_URL, MIDAPI_API_KEY and MIDAPI_TIME_SCALE are set. Set others in the test, or in
    a fixture that itself uses this one.
    """
    from midapi_async.sandbox._thread import SandboxThread

    options: SandboxOptions = {"time_scale": _TIME_SCALE}
    # The closest marker is the last to speak.
    for marker in reversed(list(request.node.iter_markers("midapi_sandbox"))):
        options.update(marker.kwargs)
    # By their prefix: a variable that a later release reads must not get through, either.
    for name in [name for name in os.environ if name.startswith(_OURS)]:
        monkeypatch.delenv(name)
    with SandboxThread(**options) as sandbox:
        monkeypatch.setenv("MIDAPI_BASE_URL", sandbox.url)
        monkeypatch.setenv("MIDAPI_API_KEY", options.get("api_key") or _API_KEY)
        monkeypatch.setenv("MIDAPI_TIME_SCALE", str(options.get("time_scale", _TIME_SCALE)))
        yield sandbox
