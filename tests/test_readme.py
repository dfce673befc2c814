"""The README is true: every program and command on it runs, every table is what the code says.

A block that does not run must be named in `NOT_RUN`, with the reason. A `text` block behind a
program is its output; ids, ports, sizes and durations are made equal on both sides.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp import web

import midapi_async
from midapi_async import MidAPIClient
from midapi_async.cli import main
from midapi_async.sandbox import SandboxThread
from midapi_async.sandbox.pytest_plugin import midapi_sandbox

__all__ = ["midapi_sandbox"]  # also where the package is not installed

# slow: on the newest Python only; each program is a process of its own.
# The scale is the README's: at the fixture's own a slow submission would print its progress.
pytestmark = [
    pytest.mark.real_time,
    pytest.mark.slow,
    pytest.mark.midapi_sandbox(time_scale=60),
]

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text("utf-8")
SECONDS = 60.0
TASK_ID = re.compile(r"[0-9a-f]{32}")

# Commands and blocks that no test runs, by how they begin, each with its reason.
NOT_RUN = {
    "pip install": "the network and the user's environment; .ci/run does this in each run",
    "nox -s": "runs these tests",
    "midapi sandbox": "serves until it is stopped; tests/cli/test_sandbox.py runs it",
    "midapi journal": "needs a folder with that intent; tests/cli/test_journal.py runs each",
    "export MIDAPI_BASE_URL": "sets what the fixture sets here",
    "midapi doctor": "asks a public URL; tests/cli/test_doctor.py runs it",
    "midapi listen": "serves until it is stopped; tests/cli/test_listen.py runs it",
    "export MIDAPI_API_KEY": "sets what the next line reads",
    "export MIDAPI_PUBLIC_URL": "sets what the next line reads",
    "curl -i": "asks the application of the line before; test_mounts_programs.py asks it",
    "uvicorn pictures:app": "tests/callbacks/test_mounts_programs.py runs it, with four workers",
    "python first.py": "the first program, run as the first python block",
}


@attrs.frozen
class Block:
    """A fenced block: its language, its text, and where it begins."""

    language: str
    text: str
    line: int

    def __str__(self) -> str:
        """A name for a test."""
        return f"line{self.line}"


def _blocks() -> list[Block]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        Block(found[1], found[2], README[: found.start()].count("\n") + 1)
        for found in fence.finditer(README)
    ]


BLOCKS = _blocks()
PROGRAMS = [block for block in BLOCKS if block.language == "python"]


def is_test(block: Block) -> bool:
    """Whether a program is for pytest."""
    return "def test_" in block.text


def is_web(block: Block) -> bool:
    """Whether a program is a web application."""
    return "web.run_app" in block.text or "FastAPI(" in block.text


def is_bot(block: Block) -> bool:
    """Whether a program needs Discord; tests/integrations/test_discord_example.py runs it."""
    return "import discord" in block.text


def expected_output(program: Block) -> str | None:
    """The text block right behind a program."""
    behind = BLOCKS[BLOCKS.index(program) + 1 :]
    if not behind or behind[0].language != "text":
        return None
    first_of_it = program.line + program.text.count("\n") + 2
    return behind[0].text if behind[0].line - first_of_it <= 2 else None


def plain(text: str) -> str:
    """A text without what differs from run to run."""
    for pattern, put in (
        (TASK_ID, "ID"),
        (r"http://127\.0\.0\.1:[0-9]+", "URL"),
        (r"(after|took) [0-9.]+ s(?=[.\n])", "\\1 N s"),
        (r"[0-9]+ kB", "N kB"),
        (r"looks: [0-9]+", "looks: N"),
        (r"are in \S+:", "are in FOLDER:"),
    ):
        text = re.sub(pattern, put, text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and nothing of MidAPI in the environment but the sandbox's."""
    for name in [name for name in os.environ if name.startswith("MIDAPI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python as a user does, with this folder and environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )


# ─── programs ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "program",
    [each for each in PROGRAMS if not (is_test(each) or is_web(each) or is_bot(each))],
    ids=str,
)
def test_a_program_does_what_stands_behind_it(
    program: Block, midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """Each is a file of its own that a user starts; the files that it names are there."""
    (elsewhere / "program.py").write_text(program.text, "utf-8")
    ran = run_python("-W", "error", "program.py")
    assert ran.returncode == 0, ran.stderr
    wanted = expected_output(program)
    assert wanted is not None, "a program without a text block behind it"
    assert plain(wanted) == plain(ran.stdout)
    named = re.findall(r"^\S+\.(?:jpeg|mp4)$", ran.stdout, re.MULTILINE)
    assert all((elsewhere / path).stat().st_size > 1000 for path in named)


def test_a_script_that_is_started_again_orders_nothing_twice(
    midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """As the README says of the script with many prompts."""
    [program] = [each for each in PROGRAMS if "PROMPTS" in each.text]
    (elsewhere / "program.py").write_text(program.text, "utf-8")
    outputs = {run_python("program.py").stdout for _ in range(2)}
    assert outputs == {expected_output(program)}
    assert len(midapi_sandbox.ledger.accepted) == 3


@pytest.mark.parametrize("program", [each for each in PROGRAMS if is_test(each)], ids=str)
def test_tests_pass(program: Block, elsewhere: Path) -> None:
    """Run by a pytest of its own, with the fixture of this checkout."""
    (elsewhere / "conftest.py").write_text("from midapi_async.sandbox.pytest_plugin import *\n")
    (elsewhere / "test_program.py").write_text(program.text, "utf-8")
    ran = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_program.py")
    assert ran.returncode == 0, ran.stdout
    assert f"{program.text.count('def test_')} passed" in ran.stdout


def test_the_tests_are_those_of_the_project() -> None:
    """`tests/sandbox/test_project.py` runs them where only pytest and this package are known."""
    tested = REPOSITORY / "tests" / "sandbox" / "project" / "test_pictures.py"
    assert [each.text for each in PROGRAMS if is_test(each)] == [tested.read_text("utf-8")]


def _module(program: Block, folder: Path) -> ModuleType:
    """A program, imported: what stands under ``__main__`` does not run."""
    module = ModuleType("program")
    module.__file__ = str(folder / "program.py")
    exec(compile(program.text, module.__file__, "exec"), module.__dict__)  # noqa: S102 - the README
    return module


WEB = [each for each in PROGRAMS if is_web(each)]


def _wait_for_a_callback(sandbox: SandboxThread) -> None:
    deadline = time.monotonic() + SECONDS
    while not sandbox.ledger.callbacks:
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def _serve(app: web.Application, port: int = 0) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    return runner, f"http://127.0.0.1:{site.port}"


async def test_the_web_application_answers_with_the_picture(
    midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """The same order twice is one task; an empty prompt is the visitor's error."""
    runner, url = await _serve(_module(WEB[0], elsewhere).app)
    try:
        async with aiohttp.ClientSession() as visitor:
            answers = []
            for prompt, order in (("a red fox", "1"), ("a red fox", "1"), ("", "2")):
                form = {"prompt": prompt, "order": order}
                async with visitor.post(f"{url}/picture", data=form) as answer:
                    answers.append((answer.status, await answer.text()))
    finally:
        await runner.cleanup()
    assert [status for status, _ in answers] == [200, 200, 400]
    assert answers[0][1] == answers[1][1]
    assert len(midapi_sandbox.ledger.accepted) == 1


def _free_port() -> int:
    import socket

    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        return int(finder.getsockname()[1])


def test_a_program_with_a_receiver_is_called_back(
    midapi_sandbox: SandboxThread, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CallbackReceiver.from_env()`: the same program, with the environment set."""
    [program] = [each for each in PROGRAMS if "from_env()" in each.text and not is_web(each)]
    port = _free_port()
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", str(port))
    (elsewhere / "program.py").write_text(program.text, "utf-8")
    assert run_python("program.py").returncode == 0
    assert midapi_sandbox.ledger.callbacks[0].status == 200


def test_each_program_is_run_by_one_of_these() -> None:
    """No web application but the three; no program that is none."""
    assert len(WEB) == 3
    for program in PROGRAMS:
        starts = re.search(r"^(asyncio|VirtualLoop)\.run\(", program.text, re.MULTILINE)
        is_run = starts or is_test(program) or is_web(program) or is_bot(program)
        assert is_run or expected_output(program), program
    assert {"python", "text", "sh", "console", "csv", ""} >= {block.language for block in BLOCKS}


# ─── commands ────────────────────────────────────────────────────────────────────────────────────


def _sessions(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with its output."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "console"], ids=str)
def test_a_command_prints_what_stands_below_it(
    block: Block,
    midapi_sandbox: SandboxThread,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stdout and stderr together, as on a terminal; the ids of one command are used by the next."""
    if "midapi demo" in block.text:
        monkeypatch.delenv("MIDAPI_API_KEY")
    [rows] = [each.text for each in BLOCKS if each.text.startswith("animal,place")]
    (elsewhere / "animals.csv").write_text(rows, "utf-8")
    ids: dict[str, str] = {}
    for command, output in _sessions(block):
        assert command.startswith("midapi "), command
        printed = _without_progress(_run(_put(ids, command)))
        assert plain(output) == plain(printed)
        ids |= zip(TASK_ID.findall(output), TASK_ID.findall(printed), strict=True)


def _put(ids: Mapping[str, str], command: str) -> str:
    """A command with the ids of this run in place of those that the README tells."""
    return TASK_ID.sub(lambda told: ids[told[0]], command)


def _run(command: str) -> str:
    """The command line in this process, with both streams in one."""
    import io
    from contextlib import redirect_stderr, redirect_stdout

    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        main(shlex.split(command)[1:])
    return printed.getvalue()


def _without_progress(printed: str) -> str:
    """Without the lines that stand for the bar where there is no terminal."""
    return re.sub(r"^Task \w+ is generating: .*\n", "", printed, flags=re.MULTILINE)


def test_each_shell_command_is_run_or_has_a_reason() -> None:
    """What a user is told to type in an `sh` block."""
    lines = [
        line.partition("#")[0].strip()
        for block in BLOCKS
        if block.language == "sh"
        for line in block.text.splitlines()
    ]
    for line in lines:
        assert any(line.startswith(start) for start in NOT_RUN), f"nobody runs {line!r}"
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), f"{start!r} is not in the README"


def test_each_text_block_is_the_output_of_a_program() -> None:
    """None stands alone."""
    outputs = [expected_output(program) for program in PROGRAMS]
    assert [each.text for each in BLOCKS if each.language == "text"] == [o for o in outputs if o]


# ─── tables, names, the picture ──────────────────────────────────────────────────────────────────


def _column(heading: str, column: int = 0) -> list[str]:
    """The cells of a table's column; the table is found by its first heading."""
    table = re.search(rf"^\| {re.escape(heading)} \|.*?(?=\n\n)", README, re.MULTILINE | re.DOTALL)
    assert table is not None, heading
    rows = table[0].splitlines()[2:]
    return [row.strip("|").split("|")[column].strip() for row in rows]


def _codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_error_is_in_the_table() -> None:
    """Whoever catches something finds it there."""
    known = {
        name
        for name in midapi_async.__all__
        if isinstance(found := getattr(midapi_async, name), type)
        and issubclass(found, midapi_async.MidAPIError)
    }
    told = set(_codes(" ".join(_column("error"))))
    assert known - {"MidAPIError"} == told & known


def test_every_request_is_in_the_table_with_its_fields() -> None:
    """Fields in their order; "the same" is the row above."""
    fields: list[str] = []
    told: dict[str, list[str]] = {}
    for call, more in zip(_column("request"), _column("request", 2), strict=True):
        name, _, required = _codes(call)[0].partition("(")
        fields = (fields if "the same" in more else []) + _codes(more)
        told[name] = required.rstrip(")").split(", ") + fields
    for name, names in told.items():
        real = {field.name for field in attrs.fields(getattr(midapi_async, name))}
        assert real - {"water_mark", "extra"} == set(names), name
    assert len(told) == 8


def test_every_default_is_the_real_one() -> None:
    """The table of values, and no value missing from it."""
    told = {}
    for name, default in zip(_column("value"), _column("value", 1), strict=True):
        told[_codes(name)[0]] = float(default)
    real = {
        f"{cls}.{field.name}": field.default
        for cls in ("Timeouts", "RetryPolicy", "PollPolicy")
        for field in attrs.fields(getattr(midapi_async, cls))
    }
    assert real == told


def test_every_argument_of_the_client_is_in_the_table() -> None:
    """And none that it does not have."""
    import inspect

    told = [name for cell in _column("setting") for name in _codes(cell)]
    assert sorted(inspect.signature(MidAPIClient).parameters) == sorted(told)


def test_every_variable_is_read_by_the_code_and_told_by_the_readme() -> None:
    """Environment variables, both ways."""
    sources = [
        path.read_text("utf-8")
        for path in (REPOSITORY / "midapi_async").rglob("*.py")
        if "sandbox" not in path.parts
    ]
    read = set(re.findall(r"\bMIDAPI_[A-Z_]+[A-Z]\b", "\n".join(sources)))
    told = set(re.findall(r"\bMIDAPI_[A-Z_]+[A-Z]\b", README))
    assert told == read


def test_the_picture_shows_the_house_as_it_is() -> None:
    """Each module of the package is in it, and each that is in it exists."""
    [picture] = [block.text for block in BLOCKS if block.language == ""]
    told = set(re.findall(r"[\w/]+(?:\.py|/)", picture))
    package = REPOSITORY / "midapi_async"
    assert all((package / name).exists() for name in told), told
    real = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    real |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert real <= told | {f"{name.partition('/')[0]}/" for name in told}


def test_every_name_in_code_that_looks_public_is_public() -> None:
    """`client.xyz`, `handle.xyz` and `receiver.xyz` in the text exist."""
    owners: Mapping[str, Any] = {
        "client": MidAPIClient,
        "handle": midapi_async.TaskHandle,
        "receiver": midapi_async.CallbackReceiver,
        "details": midapi_async.TaskDetails,
    }
    for owner, name in re.findall(r"\b(client|handle|receiver|details)\.(?!py\b)(\w+)", README):
        known = {field.name for field in getattr(owners[owner], "__attrs_attrs__", ())}
        assert name in known or hasattr(owners[owner], name), f"{owner}.{name}"


def test_links_lead_somewhere() -> None:
    """Those to files of this repository."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (REPOSITORY / target).is_file(), target
