"""Every program and command of README and docs does what the page says.

The comments that tell how a block is run are explained in `blocks.py`. Ids, ports, dates, sizes
and durations are made equal on both sides before outputs are compared; `…` stands for anything.
"""

import ast
import asyncio
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import midapi_async
from midapi_async import MidAPIClient
from midapi_async.cli import main
from midapi_async.sandbox import SandboxThread
from midapi_async.sandbox.pytest_plugin import midapi_sandbox
from tests.docs.blocks import (
    KINDS,
    REPOSITORY,
    Block,
    all_blocks,
    blocks,
    commands,
    files_before,
    output_of,
    pages,
)

__all__ = ["midapi_sandbox"]  # also where the package is not installed

# slow: on the newest Python only; each program is a process of its own.
# The scale is the one that the pages name: at a larger one a program's own pace would count.
pytestmark = [
    pytest.mark.real_time,
    pytest.mark.slow,
    pytest.mark.midapi_sandbox(time_scale=60),
]

SECONDS = 60.0
BLOCKS = all_blocks()
# Commands that no test runs, by how they begin, each with its reason.
NOT_RUN = {
    "pip install": "the network and the user's environment; .ci/run does it in each run",
    "python -m venv": "makes an environment, for the lines behind it",
    ". .venv/bin/activate": "as above",
    "git clone": "the reader's own copy",
    "nox": "runs these tests",
    "midapi sandbox": "serves until it is stopped; tests/cli/test_sandbox.py runs it",
    "midapi listen": "serves until it is stopped; tests/cli/test_listen.py runs it",
    "jupyter": "serves until it is stopped; tests/docs/test_notebooks.py runs the cells",
    "uvicorn": "serves until it is stopped; tests/callbacks/test_mounts_programs.py runs it",
    "export MIDAPI_BASE_URL": "the fixture has set it",
    "export MIDAPI_API_KEY": "the fixture has set it",
}
# What differs from run to run. Ids come first.
DIFFERS = (
    (r"(?<![0-9A-Za-z])(?=[a-f]*[0-9])(?:[0-9a-f]{32}|[0-9a-f]{8})(?![0-9A-Za-z])", "ID"),
    (r"http://(127\.0\.0\.1|localhost):[0-9]+", "URL"),
    (r"\b20[0-9]{2}-[0-9]{2}-[0-9]{2}([ T][0-9:.]+Z?)?", "DATE"),
    (r"\b[0-9]{2}:[0-9]{2}:[0-9]{2}\b", "TIME"),
    (r"\b[0-9.]+ (s|ms|seconds|kB|MB|bytes)\b", "N UNIT"),
    (r"(looks: |pid |process )[0-9]+", "N"),
)
IDS = re.compile(DIFFERS[0][0])
# Lines that are printed only if the machine is slow enough.
PROGRESS = re.compile(r"^(Task \w+ is|Submission) [a-z ,]+: [0-9].*\n", re.MULTILINE)


def plain(text: str) -> str:
    """A text without what differs from run to run."""
    for pattern, put in DIFFERS:
        text = re.sub(pattern, put, text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def check_output(expected: str, printed: str) -> None:
    """Compare what a page shows with what was printed."""
    wanted, got = plain(expected), plain(printed)
    if "…" not in wanted:
        assert got == wanted
        return
    pattern = re.escape(wanted)
    pattern = re.sub(r"^…\\\n", "(?:.*\\n)*?", pattern, flags=re.MULTILINE)
    pattern = pattern.replace("…", ".*?")
    assert re.fullmatch(pattern, got), f"not as the page shows:\n{got}\nbut\n{wanted}"


def new_ids(expected: str, printed: str) -> dict[str, str]:
    """For each id that a page shows, the one of this run: the n-th of both."""
    shown, real = (list(dict.fromkeys(IDS.findall(text))) for text in (expected, printed))
    return dict(zip(shown, real, strict=False))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and nothing of MidAPI in the environment but the sandbox's."""
    for name in [name for name in os.environ if name.startswith("MIDAPI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as a user does: with this folder and environment, both streams in one."""
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )


def write_files(files: Mapping[str, str]) -> None:
    """Make them in the current folder."""
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, "utf-8")


# ─── each block is run, or says why not ──────────────────────────────────────────────────────────


def _problem(block: Block) -> str | None:
    """Why nobody runs a block; None if somebody does."""
    if block.kind and block.kind not in KINDS:
        return f"unknown comment {block.kind!r}"
    match block.kind:
        case "run by":
            path, _, name = block.about.partition("::")
            test = REPOSITORY / path
            there = test.is_file() and f"def {name}(" in test.read_text("utf-8")
            return None if there else f"there is no test {block.about!r}"
        case "same as":
            file = REPOSITORY / block.about
            is_same = file.is_file() and file.read_text("utf-8") == block.text
            return None if is_same else f"not the text of {block.about}"
        case "not run":
            return None if len(block.about.split()) > 2 else "no reason"
        case "file" | "module":
            return None
        case "inside":
            return None if block.about == "client" else f"inside of what? {block.about!r}"
    match block.language:
        case "python" | "console" | "sh":
            return None
        case "text":
            here = blocks(block.page)
            place = here.index(block)
            if place and block.follows and here[place - 1].has_output:
                return None
    return "no test knows what to do with it"


def test_each_block_is_run_or_says_why_not() -> None:
    """A new block without a comment, and a comment that names a test that is gone."""
    problems = [f"{each}: {found}" for each in BLOCKS if (found := _problem(each))]
    assert not problems, "\n".join(problems)


# ─── programs ────────────────────────────────────────────────────────────────────────────────────


def _of_kind(kind: str) -> list[Block]:
    return [each for each in BLOCKS if each.language == "python" and each.kind == kind]


@pytest.mark.parametrize("program", [each for each in _of_kind("") if not each.is_test], ids=str)
def test_a_program_does_what_stands_behind_it(
    program: Block, midapi_sandbox: SandboxThread
) -> None:
    """Each is a file of its own that a user starts; the files that it names are there."""
    write_files({**files_before(program), "program.py": program.text})
    ran = run(sys.executable, "-W", "error", "program.py")
    assert ran.returncode == 0, ran.stdout
    check_output(output_of(program) or "", ran.stdout)
    named = re.findall(r"^\S+\.(?:jpeg|mp4)$", ran.stdout, re.MULTILINE)
    assert all(Path(path).stat().st_size > 1000 for path in named)


def test_tests_pass() -> None:
    """All are run by one pytest of their own, with the fixture of this checkout."""
    programs = [each for each in BLOCKS if each.is_test]
    files = {f"test_{number}.py": each.text for number, each in enumerate(programs)}
    files["conftest.py"] = "from midapi_async.sandbox.pytest_plugin import *\n"
    for each in programs:
        write_files(files_before(each))
    write_files(files)
    options = ("-p", "no:cacheprovider", "-o", "asyncio_mode=auto")
    ran = run(sys.executable, "-m", "pytest", "-q", *options)
    assert ran.returncode == 0, ran.stdout
    assert "passed" in ran.stdout


@pytest.mark.parametrize("fragment", _of_kind("module"), ids=str)
def test_a_module_can_be_imported(fragment: Block, midapi_sandbox: SandboxThread) -> None:
    """What stands under ``__main__`` does not run."""
    write_files(files_before(fragment))
    execute(fragment.text)


def execute(source: str) -> dict[str, Any]:
    """Execute a module's source, with everything that the package exports at hand."""
    module = ModuleType("program")
    module.__file__ = str(Path("program.py").resolve())
    names = {name: getattr(midapi_async, name) for name in midapi_async.__all__}
    module.__dict__.update(names | {"asyncio": asyncio, "Path": Path})
    exec(compile(source, module.__file__, "exec"), module.__dict__)  # noqa: S102 - our own pages
    return module.__dict__


@pytest.mark.midapi_sandbox(time_scale=600)
@pytest.mark.parametrize("fragment", _of_kind("inside"), ids=str)
async def test_statements_run_in_a_client(
    fragment: Block, midapi_sandbox: SandboxThread, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `client`, and what it uses of `handle`, `details` and `task_id`."""
    write_files(files_before(fragment))
    used = {node.id for node in ast.walk(ast.parse(fragment.text)) if isinstance(node, ast.Name)}
    ready = ("client", "handle", "details", "task_id")
    body = textwrap.indent(fragment.text, "    ")
    inside = execute(f"async def inside({', '.join(ready)}):\n{body}")["inside"]
    async with MidAPIClient(journal="journal") as client:
        handle = details = None
        if used & {"handle", "details", "task_id"}:
            handle = await client.generate("a red fox", key="fox")
            details = await handle if "details" in used else None
        capsys.readouterr()
        async with asyncio.timeout(SECONDS):
            await inside(client, handle, details, handle.task_id if handle else None)
    check_output(output_of(fragment) or "", capsys.readouterr().out)


# ─── commands ────────────────────────────────────────────────────────────────────────────────────


def _with_commands(page: str) -> list[Block]:
    """The blocks of a page whose commands run."""
    run_here = [each for each in blocks(page) if each.language in ("console", "sh")]
    return [
        each
        for each in run_here
        if not each.kind and any(_is_run(command) for command, _ in commands(each))
    ]


def _is_run(command: str) -> bool:
    return not any(command.startswith(start) for start in NOT_RUN)


@pytest.mark.parametrize("page", [page for page in pages() if _with_commands(page)])
def test_commands_print_what_stands_below_them(
    page: str, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All commands of a page run in one folder, one after another, as a reader types them.

    The ids that a command prints are used by the next ones.
    """
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, arguments in (("midapi", "-m midapi_async"), ("python", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n', "utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    ids: dict[str, str] = {}
    for block in _with_commands(page):
        write_files(files_before(block))
        run_commands(block, ids, monkeypatch)


def run_commands(block: Block, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands of a block, and compare what they print with the page.

    Args:
        block: of a `console`, whose outputs are compared, or `sh`, whose commands must succeed.
        ids: those that the page has shown so far, each with the one of this run; the ids that
            these commands print are added.
        monkeypatch: changes the folder and the environment.
    """
    for shown, expected in commands(block):
        if not _is_run(shown):
            continue
        command = IDS.sub(lambda found: ids.get(found[0], found[0]), shown)
        code, printed = _run_command(command, monkeypatch)
        if block.language == "sh":
            assert code == 0, f"{block}: {command}\n{printed}"
            continue
        try:
            check_output(expected, printed)
        except AssertionError as error:
            raise AssertionError(f"{block}: $ {command}\n{error}") from None
        ids.update(new_ids(expected, printed))


def _run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run a line of a shell: its exit code, and what it prints without lines of progress."""
    words = shlex.split(command)
    match words[0]:
        case "export":
            for each in words[1:]:
                name, _, value = each.partition("=")
                monkeypatch.setenv(name, value)
            return 0, ""
        case "cd":
            monkeypatch.chdir(words[1])
            return 0, ""
        case "midapi" if not re.search(r"[|<>&;$*]", command):
            with monkeypatch.context() as without_key:
                if words[1] == "demo":  # with a key it would use the account
                    without_key.delenv("MIDAPI_API_KEY")
                code, printed = _run_midapi(words[1:])
        case _:
            ran = run("bash", "-c", command)
            code, printed = ran.returncode, ran.stdout
    return code, PROGRESS.sub("", printed)


def _run_midapi(arguments: list[str]) -> tuple[int, str]:
    """The command line in this process, which is faster than one of its own."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = main(arguments)
    return code, printed.getvalue()
