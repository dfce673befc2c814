"""What the pages on testing, the command line, operations and design say is what the code has."""

import ast
import asyncio
import configparser
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from midapi_async import (
    ClientStats,
    Intent,
    MidAPIClient,
    State,
    SubmissionUnknown,
    _session,
    sandbox,
)
from midapi_async.cli import main
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.journal.states import moved
from midapi_async.sandbox import Sandbox
from tests.cli.test_help import COMMANDS
from tests.docs.blocks import REPOSITORY, blocks
from tests.docs.tables import codes, names, rows
from tests.test_house import HOMES, ORDER

pytestmark = pytest.mark.one_python


def page(name: str) -> str:
    """The text of a page."""
    return (REPOSITORY / "docs" / name).read_text("utf-8")


def sections(text: str) -> dict[str, str]:
    """Each section of a page by its anchor, up to the next heading of any level."""
    parts = re.split(r"^#+ (.+)\n", text, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in parts]
    return dict(zip(anchors[1::2], parts[2::2], strict=True))


def words(text: str) -> set[str]:
    """The words in backticks."""
    return {word for code in codes(text) for word in re.split(r"[ =,]+", code)}


# ─── the command line ────────────────────────────────────────────────────────────────────────────

COMMAND_LINE = page("command-line.md")


def section_of(command: tuple[str, ...]) -> str:
    """The section of a command, or of the command above it, with the sections that it links to."""
    found = sections(COMMAND_LINE)
    for length in range(len(command), 0, -1):
        own = found.get("-".join(("midapi", *command[:length])))
        if own is not None:
            return own + "".join(found[each] for each in re.findall(r"\]\(#([\w-]+)\)", own))
    raise AssertionError(f"no section for midapi {' '.join(command)}")


def names_of(command: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The names of each option of a command, as a user types them."""
    if COMMANDS[command].default_command is None:
        return
    for each in COMMANDS[command].assemble_argument_collection(parse_docstring=True):
        if each.show and each.names[0].startswith("--"):
            yield each.names


@pytest.mark.parametrize("command", [path for path in COMMANDS if path], ids=" ".join)
def test_every_command_and_option_is_on_the_page(command: tuple[str, ...]) -> None:
    """In the command's own section, or in one of the shared lists that it links to."""
    assert f"midapi {' '.join(command)}" in COMMAND_LINE
    told = words(section_of(command))
    for option in names_of(command):
        assert set(option) & told, f"midapi {' '.join(command)}: {option[0]}"


def test_the_page_names_no_option_that_does_not_exist() -> None:
    """Neither in the tables nor in the text."""
    real = {name for command in COMMANDS for each in names_of(command) for name in each}
    of_the_app = {"--", "--help", "--install-completion"}
    of_midjourney = {"--repeat"}
    told = {word for word in words(COMMAND_LINE) if word.startswith("--")}
    assert told <= real | of_the_app | of_midjourney


# ─── the sandbox ─────────────────────────────────────────────────────────────────────────────────


def test_every_fault_is_on_the_page() -> None:
    """Each function of `midapi_async.sandbox` that makes an action, under what it can act on."""
    for heading, kind in (
        ("on a request", sandbox.RequestAction),
        ("on a task", sandbox.TaskAction),
        ("on a callback", sandbox.CallbackAction),
    ):
        told = {each.partition("(")[0] for each in names("docs/sandbox.md", heading) if "(" in each}
        real = {
            name
            for name in sandbox.__all__
            if inspect.isfunction(make := getattr(sandbox, name))
            and make.__annotations__.get("return") in (kind, kind.__name__)
        }
        assert told == real, heading


def test_every_argument_of_the_sandbox_is_in_the_table() -> None:
    """And none that it does not have."""
    assert set(names("docs/sandbox.md", "argument")) == set(inspect.signature(Sandbox).parameters)


def test_every_entry_of_the_ledger_is_in_the_table() -> None:
    """With all of its fields."""
    fields = {
        codes(first)[0]: set(codes(" ".join(others)))
        for first, *others in rows("docs/testing.md", "in the ledger")
    }
    for name, entry in (
        ("accepted", sandbox.Accepted),
        ("callbacks", sandbox.CalledBack),
        ("requests", sandbox.Asked),
    ):
        assert fields[name] == set(entry.__annotations__)


@pytest.mark.real_time
def test_the_hook_gives_virtual_time(tmp_path: Path) -> None:
    """The hook of the page, with its test of ten minutes, beside the tests that use the fixture."""
    name = test_the_hook_gives_virtual_time.__name__
    hook, test = [each.text for each in blocks("docs/testing.md") if each.about.endswith(name)]
    project = REPOSITORY / "tests" / "sandbox" / "project" / "test_pictures.py"
    plugin = "from midapi_async.sandbox.pytest_plugin import *  # where it is not installed\n"
    (tmp_path / "conftest.py").write_text(plugin + hook, "utf-8")
    (tmp_path / "test_minutes.py").write_text(test, "utf-8")
    shutil.copy(project, tmp_path)
    option = "asyncio_default_fixture_loop_scope=function"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", option],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "4 passed" in ran.stdout


# ─── operations ──────────────────────────────────────────────────────────────────────────────────


async def make_journal(folder: Path) -> None:
    """Make an empty journal in a folder."""
    journal = SQLiteJournal(folder)
    await journal.stats()
    await journal.aclose()


def test_every_figure_is_on_the_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Those of `midapi journal stats --json`, and those of `client.stats()`."""
    asyncio.run(make_journal(tmp_path))
    assert main(["journal", "stats", "--json", "--folder", str(tmp_path)]) == 0
    of_journals = set(json.loads(capsys.readouterr().out))
    of_clients = {field.name for field in attrs.fields(ClientStats)}
    assert set(names("docs/operations.md", "figure")) == of_journals | of_clients


def alarm(*arguments: str, folder: Path) -> tuple[int, str]:
    """Run the page's `midapi journal stats --json | python alarm.py`; its exit code and output."""
    [program] = [each.text for each in blocks("docs/operations.md") if each.about == "alarm.py"]
    stats = [sys.executable, "-m", "midapi_async", "journal", "stats", "--json"]
    figures = subprocess.run(
        [*stats, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        input=figures.stdout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return ran.returncode, ran.stdout.decode().rstrip()


@pytest.mark.real_time
@pytest.mark.slow
def test_the_alarm_says_what_is_wrong(tmp_path: Path) -> None:
    """Also that there is no journal, or that it is damaged; it prints nothing if all is fine."""
    folder = tmp_path / "journal"
    code, printed = alarm(folder=folder)
    assert (code, "does not exist" in printed) == (1, True), printed
    asyncio.run(make_journal(folder))
    assert alarm(folder=folder) == (0, "")
    assert alarm("2", folder=folder) == (1, "running programs: 0, expected: 2")
    asyncio.run(lose_one(folder))
    asked = "unknown submissions: 1; midapi journal list unknown"
    assert alarm(folder=folder) == (1, asked)
    for file in folder.glob("journal*"):
        file.write_bytes(b"damaged " * 1000)
    code, printed = alarm(folder=folder)
    assert (code, str(folder) in printed, "Traceback" in printed) == (1, True, False), printed


async def lose_one(folder: Path) -> None:
    """Submit a request whose answer is lost."""
    plan = sandbox.Faults().on("submit", do=sandbox.lose_answer())
    async with (
        Sandbox(faults=plan) as server,
        MidAPIClient("any-key", base_url=server.url, journal=folder) as client,
    ):
        with pytest.raises(SubmissionUnknown):
            await client.generate("a red fox")


def unit(name: str) -> str:
    """The systemd unit of a page, or some lines of one."""
    [found] = [each for each in blocks(f"docs/{name}") if each.language == "ini"]
    return found.text


def unit_of_the_bot() -> str:
    """The unit with the lines of the page about Discord in place of its program."""
    return re.sub("^ExecStart=.*\n", unit("discord.md"), unit("operations.md"), flags=re.MULTILINE)


def test_the_unit_stops_in_order() -> None:
    """It waits longer than a client needs to close, and keeps the journal and the key private."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # as its documentation says
    parser.read_string(unit("operations.md"))
    service = dict(parser["Service"])
    assert int(service["TimeoutStopSec"]) > _session.CLOSE_PATIENCE + 10
    assert service["SuccessExitStatus"] == str(128 + signal.SIGTERM)  # as `stop_on_signals` exits
    assert service["StateDirectoryMode"] == "0700"
    assert "KillSignal" not in service
    assert set(parser.sections()) == {"Unit", "Service", "Install"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("made", [unit("operations.md"), unit_of_the_bot()], ids=["any", "bot"])
def test_systemd_accepts_the_unit(tmp_path: Path, made: str) -> None:
    """With a program that exists in place of the reader's."""
    file = tmp_path / "pictures.service"
    start = f"ExecStart={sys.executable}"
    text, count = re.subn("^ExecStart=/srv/.*", start, made, flags=re.MULTILINE)
    assert count == 1
    file.write_text(text, "utf-8")
    ran = subprocess.run(
        ["systemd-analyze", "verify", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in ran.stderr.splitlines() if "pictures.service" in line]
    assert (ran.returncode, complaints) == (0, []), ran.stderr


# ─── design ──────────────────────────────────────────────────────────────────────────────────────

DESIGN = page("design.md")


def test_the_picture_shows_the_house_as_it_is() -> None:
    """Each module of the package is in it, and each that is in it exists."""
    [picture] = [each.text for each in blocks("docs/design.md") if not each.language]
    told = set(re.findall(r"[\w/]+(?:\.py|/)", picture))
    package = REPOSITORY / "midapi_async"
    assert all((package / name).exists() for name in told), told
    real = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    real |= {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert real <= told | {f"{name.partition('/')[0]}/" for name in told}


def test_the_order_of_imports_is_the_one_that_is_tested() -> None:
    """By `tests/test_house.py`; the libraries and their homes, too."""
    [told] = [each.text for each in blocks("docs/design.md") if "errors →" in each.text]
    assert [set(place.strip().split(", ")) for place in told.split("→")] == ORDER
    for library in ("cattrs", "backoff", "sqlite3", "cyclopts"):
        [home] = HOMES[library] - {"sandbox"}
        assert f"{library} in `{home}`" in " ".join(DESIGN.split())


def test_every_state_is_in_the_diagram() -> None:
    """As its name is written."""
    [diagram] = [each.text for each in blocks("docs/design.md") if "called_back" in each.text]
    assert {str(state) for state in State} <= set(re.findall(r"[a-z_]+", diagram))


def test_every_move_is_in_the_table() -> None:
    """As `moved` allows them, and no other."""
    told = {(*codes(old), *codes(new)) for old, new, *_ in rows("docs/design.md", "from")}
    empty = Intent(
        intent_id="i", scope="s d", request=None, fingerprint="", token_hash=None, created_at=0.0
    )
    intents = [attrs.evolve(empty, state=state) for state in State]
    real = {
        (str(row.state), str(to))
        for row in intents
        for to in State
        if to is not row.state and moved(row, to, now=1.0).state is to
    }
    assert told == real


def test_every_path_on_the_page_exists() -> None:
    """Modules, in the package or in one of its rooms, tests and benchmarks."""
    package = REPOSITORY / "midapi_async"
    rooms = [REPOSITORY, package, *(each for each in package.rglob("*") if each.is_dir())]
    for path in re.findall(r"`([\w./]+(?:\.py|/))`", DESIGN):
        assert any((room / path).exists() for room in rooms), path
    for folder in re.findall(r"`(tests/\w+)`", DESIGN):
        assert (REPOSITORY / folder).is_dir(), folder


def test_every_session_of_nox_is_in_the_table() -> None:
    """And none that it does not have."""
    tree = ast.parse((REPOSITORY / "noxfile.py").read_text("utf-8"))
    real = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any("nox.session" in ast.unparse(each) for each in node.decorator_list)
    }
    told = set(re.findall(r"`nox -s ([a-z]+)", DESIGN))
    assert told == real
