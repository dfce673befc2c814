"""The program of docs/callbacks.md, with its environment set; the other tests run it without."""

import sys
from pathlib import Path

import pytest

from midapi_async.sandbox import SandboxThread
from midapi_async.sandbox.pytest_plugin import midapi_sandbox
from tests.docs.blocks import blocks
from tests.docs.test_blocks import elsewhere, run
from tests.support.waiting import free_port

__all__ = ["elsewhere", "midapi_sandbox"]  # fixtures

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.slow,
    pytest.mark.midapi_sandbox(time_scale=60),
]


def test_a_program_with_a_receiver_is_called_back(
    midapi_sandbox: SandboxThread, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same program, told by the environment where MidAPI reaches it."""
    program = next(each for each in blocks("docs/callbacks.md") if each.is_program)
    port = free_port()
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", str(port))
    (elsewhere / "program.py").write_text(program.text, "utf-8")
    ran = run(sys.executable, "program.py")
    assert ran.returncode == 0, ran.stdout
    assert midapi_sandbox.ledger.callbacks[0].status == 200
