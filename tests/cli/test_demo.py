import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import midapi_async.cli.demo
from midapi_async.sandbox import SandboxThread, delay
from midapi_async.sandbox._pictures import warn_without_pillow
from tests.cli.conftest import REPOSITORY, Midapi, Ran, ctrl_c_when, finish, only, spawn
from tests.support.waiting import free_port

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240)]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo in half a second."""
    monkeypatch.setattr(midapi_async.cli.demo, "_TIME_SCALE", 120.0)


def test_without_a_key_it_runs_against_a_sandbox(midapi: Midapi, elsewhere: Path) -> None:
    """It gets a callback, downloads four pictures, and shows the price."""
    ran = midapi("demo")
    assert ran.code == 0, ran.err
    pictures = sorted((elsewhere / "midapi-demo").iterdir())
    assert len(pictures) == 4
    assert all(path.stat().st_size > 1000 for path in pictures)
    assert "1  A local MidAPI serves at http://127.0.0.1:" in ran.out
    assert "4  Its callback came" in ran.out
    assert "POSTs: 1, " in ran.out
    assert f"5  4 pictures are in {elsewhere / 'midapi-demo'}:" in ran.out
    assert "The account has 9992 credits: 8 fewer." in ran.out
    assert all(path.name in ran.out for path in pictures)


def test_without_pillow_it_says_how_to_get_colour(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures are grey then."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    warn_without_pillow.cache_clear()
    ran = midapi("demo", "--folder", "there")
    assert ran.code == 0
    assert 'pip install "midapi-async[sandbox]"' in ran.error
    assert len(list(Path("there").iterdir())) == 4


def test_with_a_key_it_uses_the_real_service(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """It says first that this costs credits; without a receiver it polls."""
    ran = midapi("demo", "--yes", "--prompt", "a [/] blue whale")
    assert ran.code == 0, ran.err
    assert f"An API key is set, so this uses {midapi_sandbox.url} and costs credits." in ran.out
    assert "MIDAPI_PUBLIC_URL is not set" in ran.out
    assert "4  A look found it" in ran.out
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert f"midapi generate upscale {task_id} 0" in ran.out
    assert "a [/] blue whale" in ran.out
    assert len(list(Path("midapi-demo").iterdir())) == 4


def test_with_a_public_url_it_receives_callbacks(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MIDAPI_PUBLIC_URL and MIDAPI_CALLBACK_PORT make a receiver."""
    port = free_port()
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", f"http://127.0.0.1:{port}/callbacks")
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", str(port))
    ran = midapi("demo", "--yes")
    assert ran.code == 0, ran.err
    assert f"receives callbacks at http://127.0.0.1:{port}/callbacks." in ran.out
    assert midapi_sandbox.ledger.callbacks[0].status == 200


def test_it_asks_before_it_spends_credits(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal it is a usage error; with one, only a yes goes on."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stdin, code in ((None, 2), (io.StringIO("y\n"), 2), (Terminal("\n"), 1), (Terminal(), 1)):
        monkeypatch.setattr(sys, "stdin", stdin)
        ran = midapi("demo")
        assert (ran.code, ran.out) == (code, "")
        assert midapi_sandbox.url in ran.err
        assert "costs nothing" in ran.err
    assert not midapi_sandbox.ledger.requests
    monkeypatch.setattr(sys, "stdin", Terminal("Y\n"))
    assert midapi("demo").code == 0
    assert len(midapi_sandbox.ledger.accepted) == 1


def test_sandbox_option_ignores_the_key(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """--sandbox sends nothing to the account of the key."""
    assert midapi("demo", "--sandbox").code == 0
    assert midapi_sandbox.ledger.requests == ()


@pytest.mark.midapi_sandbox(time_scale=1)
def test_ctrl_c_during_the_post_names_the_task(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """As with `midapi generate`."""
    midapi_sandbox.faults.on("submit", do=delay(1.0))
    with ctrl_c_when(lambda: midapi_sandbox.ledger.accepted):
        ran = midapi("demo", "--yes")
    assert ran.code == 130
    assert only(midapi_sandbox.ledger.accepted).task_id in ran.err


def test_an_unusable_folder_is_a_usage_error(midapi: Midapi) -> None:
    """Before anything is done."""
    Path("taken").write_text("")
    ran = midapi("demo", "--folder", "taken")
    assert (ran.code, ran.out) == (2, "")


def closing_lines(ran: Ran) -> list[str]:
    """What the demo says to try next, without the comments."""
    after = ran.lines[ran.lines.index("What to try next:") + 1 :]
    return [line.strip() for line in after if not line.strip().startswith("#")]


def shell(folder: Path, *lines: str) -> "subprocess.Popen[str]":
    """A shell that runs lines in an empty folder, where `midapi` is our command line."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    program = programs / "midapi"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m midapi_async "$@"\n')
    program.chmod(0o755)
    (folder / "empty").mkdir(exist_ok=True)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["/bin/sh", "-ec", "\n".join(lines)],
        cwd=folder / "empty",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.one_python
@pytest.mark.skipif(os.name == "nt", reason="the lines are for a POSIX shell")
def test_the_lines_at_the_end_work_as_they_stand(midapi: Midapi, elsewhere: Path) -> None:
    """In an empty folder, without a key: a sandbox, and what uses it in another terminal."""
    serve, *others = closing_lines(midapi("demo"))
    port = 8787
    with socket.socket() as finder:
        is_taken = finder.connect_ex(("127.0.0.1", port)) == 0
    if is_taken:  # by another program, as by a test in another process: as they stand but for that
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        serve += f" --port {port}"
        others = [line.replace(":8787", f":{port}") for line in others]
    assert serve.startswith("midapi sandbox")
    assert [line.partition(" ")[0] for line in others] == [
        "export",
        "MIDAPI_TIME_SCALE=20",
        "midapi",
    ]
    with shell(elsewhere, f"exec {serve}") as sandbox:
        try:
            assert sandbox.stdout is not None
            assert sandbox.stdout.readline() == f"http://127.0.0.1:{port}\n"
            ran = finish(shell(elsewhere, *others))
        finally:
            sandbox.terminate()
            sandbox.communicate()
    assert ran.code == 0, ran.err
    assert "Usage: midapi COMMAND" in ran.out
    assert len(list((elsewhere / "empty").iterdir())) == 4


@pytest.mark.one_python
@pytest.mark.skipif(os.name == "nt", reason="the lines are for a POSIX shell")
def test_after_a_real_service_the_lines_name_it(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given to the demo is given again; only the sandbox would not end by itself."""
    key = elsewhere / "my key"
    key.write_text(os.environ["MIDAPI_API_KEY"])
    for name in ("MIDAPI_API_KEY", "MIDAPI_BASE_URL"):
        monkeypatch.delenv(name)
    ran = midapi("demo", "--yes", "--base-url", midapi_sandbox.url, "--api-key-file", key)
    lines = [line for line in closing_lines(ran) if not line.startswith("midapi sandbox")]
    assert len(lines) == 3
    ran = finish(shell(elsewhere, *lines))
    assert ran.code == 0, ran.err
    assert [each.body.get("prompt") for each in midapi_sandbox.ledger.accepted] == [
        "a red fox in the snow",
        None,
        "a blue whale",
    ]
    assert len(list((elsewhere / "empty").iterdir())) == 5


def test_it_runs_as_a_process(elsewhere: Path) -> None:
    """As a user starts it."""
    ran = finish(spawn("demo"))
    assert ran.code == 0, ran.err
    assert len(list((elsewhere / "midapi-demo").iterdir())) == 4
