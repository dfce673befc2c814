import os
import subprocess
import sys
from pathlib import Path

import pytest

import midapi_async
from midapi_async import cli
from midapi_async.cli import app as app_module
from midapi_async.sandbox import SandboxThread
from tests.cli.conftest import REPOSITORY, Midapi, ctrl_c_when, finish, spawn, wait_until

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240)]

COMMANDS = [
    *(["demo"], ["generate"], ["task"], ["credits"], ["sandbox"]),
    *(["generate", kind] for kind in ("image", "style", "omni", "video")),
    *(["generate", kind] for kind in ("upscale", "vary", "extend")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_has_help(midapi: Midapi, command: list[str]) -> None:
    """The help shows how to call it, and its options."""
    ran = midapi(*command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: midapi {' '.join(command)}" in ran.out
    assert "--" in ran.out.partition("\n")[2]


def test_the_main_help_names_each_command(midapi: Midapi) -> None:
    """It also lists the exit codes."""
    for arguments in ([], ["--help"]):
        ran = midapi(*arguments)
        assert ran.code == 0
        assert all(f" {command[0]} " in ran.out for command in COMMANDS)
        assert "Exit codes: 0 done, 1 " in ran.out


def test_version_prints_the_package_version(midapi: Midapi) -> None:
    """Nothing else is printed."""
    assert midapi("--version").out == f"{midapi_async.__version__}\n"


def test_an_unknown_command_is_a_usage_error(midapi: Midapi) -> None:
    """The message suggests a command, also as JSON."""
    ran = midapi("genrate", "a fox", "--json")
    assert ran.code == 2
    assert "generate" in ran.error
    assert ran.json["error"]["type"] == "UsageError"


def test_json_after_a_double_dash_is_no_option(midapi: Midapi) -> None:
    """It is a prompt, and asks for no JSON output."""
    assert midapi("genrate", "--", "--json").out == ""


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2."""
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    monkeypatch.delitem(sys.modules, "midapi_async.cli.app")
    assert cli.main(["credits"]) == 2
    assert 'pip install "midapi-async[cli]"\n' in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["credits"]) == 2


def test_another_missing_module_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broken installation is not reported as a missing extra."""
    monkeypatch.setitem(sys.modules, "midapi_async.cli.demo", None)
    monkeypatch.delitem(sys.modules, "midapi_async.cli.app")
    with pytest.raises(ModuleNotFoundError):
        cli.main(["credits"])


def test_an_unexpected_exception_is_one_line(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows no traceback and no API key."""
    monkeypatch.setenv("MIDAPI_API_KEY", "a-secret-key")

    def broken(*_: object) -> None:
        raise RuntimeError("Bearer a-secret-key")

    monkeypatch.setattr(app_module, "app", broken)
    ran = midapi("credits", "--json")
    assert ran.code == 1
    assert ran.error == "Bearer … (RuntimeError: this should not happen, please report it)"
    assert ran.json["error"]["type"] == "RuntimeError"


@pytest.mark.midapi_sandbox(auto=False)
def test_ctrl_c_without_a_task_only_says_interrupted(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """Nothing was bought, so there is nothing to come back to."""
    from midapi_async.sandbox import hang

    midapi_sandbox.faults.on("credit", do=hang())
    with ctrl_c_when(lambda: midapi_sandbox.ledger.count("credit")):
        ran = midapi("credits")
    assert (ran.code, ran.error) == (130, "Interrupted.")


def test_main_without_arguments_uses_those_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`main()` is the entry point."""
    monkeypatch.setattr(sys, "argv", ["midapi", "--version"])
    assert cli.main() == 0
    assert midapi_async.__version__ in capsys.readouterr().out


def test_shell_completion_can_be_installed(midapi: Midapi) -> None:
    """There is an option for it."""
    assert "--install-completion" in midapi("--help").out


# ─── processes of their own ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["credits"], 1), (["nothing"], 2), (["generate"], 2)],
)
def test_exit_codes_of_a_process(arguments: list[str], code: int) -> None:
    """`python -m midapi_async`: 0, 1 for an error of the service, 2 for a usage error."""
    environment = {"MIDAPI_API_KEY": "key", "MIDAPI_BASE_URL": "http://127.0.0.1:9"}
    ran = finish(spawn(*arguments, **environment))
    assert ran.code == code
    assert (ran.err == "") == (code == 0)
    assert "Traceback" not in ran.err


def test_the_entry_point_is_main() -> None:
    """pyproject.toml names it."""
    text = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    assert 'midapi = "midapi_async.cli:main"' in text


@pytest.mark.midapi_sandbox(auto=False)
def test_sigint_ends_a_process_with_130(midapi_sandbox: SandboxThread) -> None:
    """One line says how to come back to the task."""
    import signal

    process = spawn("generate", "a fox")
    wait_until(lambda: midapi_sandbox.ledger.count("look") or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    ran = finish(process)
    assert ran.code == 130
    assert "goes on" in ran.error


def test_a_broken_pipe_ends_the_command_silently(midapi_sandbox: SandboxThread) -> None:
    """`midapi … | true`: no output, and the exit code of SIGPIPE."""
    ours, of_rich = {141}, {1, 141}
    for arguments, codes in (
        (["credits"], ours),
        (["sandbox", "--port", "0"], ours),
        (["--help"], of_rich),
    ):
        process = spawn(*arguments)
        assert process.stdout is not None
        process.stdout.close()
        with process:
            assert process.stderr is not None
            assert process.stderr.read() == ""
        assert process.returncode in codes, arguments


def test_characters_that_the_terminal_cannot_encode_are_escaped(
    midapi_sandbox: SandboxThread,
) -> None:
    """They do not end the command."""
    ran = finish(spawn("demo", "--sandbox", "--prompt", "狐", PYTHONIOENCODING="ascii"))
    assert ran.code == 0, ran.err
    assert '"\\u72d0"' in ran.out


def test_a_warning_is_one_line(midapi_sandbox: SandboxThread) -> None:
    """It does not show the place in the code."""
    ran = finish(
        spawn(
            "credits",
            MIDAPI_ALLOW_HTTP="1",
            MIDAPI_BASE_URL="http://localhost.invalid:9",
            MIDAPI_TIME_SCALE="1",
        )
    )
    assert ran.code == 1
    assert "midapi: warning: the API key travels unencrypted" in ran.err.splitlines()[0]
    assert ".py" not in ran.err


@pytest.mark.fault("I5")
def test_no_output_contains_the_api_key(midapi_sandbox: SandboxThread, elsewhere: Path) -> None:
    """Not even with --verbose."""
    key = os.environ["MIDAPI_API_KEY"]
    ran = finish(spawn("generate", "a fox", "--verbose", "--json"))
    assert ran.code == 0
    assert key not in ran.out + ran.err


@pytest.mark.one_python
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--version"], 0, ""),
        (["gallery", "."], 2, "has no results.jsonl"),
        (["batch", "rows.txt", "--dry-run"], 0, "Every row is valid: 1 row."),
        (["batch", "rows.txt", "--output", "out"], 1, "a journal folder needs the file locks"),
        (["journal", "list", "--folder", "."], 1, "a journal folder needs the file locks"),
    ],
)
def test_without_the_locks_of_unix_only_journal_folders_are_missing(
    tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    """As on Windows: every other command works, and these say what to do."""
    (tmp_path / "rows.txt").write_text("a red fox")
    program = (
        "import sys; sys.modules['fcntl'] = None; import midapi_async.cli as cli; "
        "sys.argv[0] = 'midapi'; sys.exit(cli.main())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MIDAPI_API_KEY": "key"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, text in ran.stderr) == (code, True), ran.stderr
