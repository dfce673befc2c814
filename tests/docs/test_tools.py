"""What the pages on testing, the command line, operations and design say is what the code has."""

import inspect
import re
from collections.abc import Iterator

import pytest

from midapi_async import sandbox
from midapi_async.sandbox import Sandbox
from tests.cli.test_help import COMMANDS
from tests.docs.blocks import REPOSITORY

pytestmark = pytest.mark.one_python


def page(name: str) -> str:
    """The text of a page."""
    return (REPOSITORY / "docs" / name).read_text("utf-8")


def sections(text: str) -> dict[str, str]:
    """Each section of a page by its anchor, up to the next heading of any level."""
    parts = re.split(r"^#+ (.+)\n", text, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in parts]
    return dict(zip(anchors[1::2], parts[2::2], strict=True))


def codes(text: str) -> set[str]:
    """The words in backticks."""
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[ =,]+", code)}


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
    told = codes(section_of(command))
    for names in names_of(command):
        assert set(names) & told, f"midapi {' '.join(command)}: {names[0]}"


def test_the_page_names_no_option_that_does_not_exist() -> None:
    """Neither in the tables nor in the text."""
    real = {name for command in COMMANDS for each in names_of(command) for name in each}
    of_the_app = {"--", "--help", "--install-completion"}
    of_midjourney = {"--repeat"}
    told = {code for code in codes(COMMAND_LINE) if code.startswith("--")}
    assert told <= real | of_the_app | of_midjourney


# ─── the sandbox ─────────────────────────────────────────────────────────────────────────────────

TESTING = page("testing.md")


def column(text: str, heading: str) -> set[str]:
    """The codes in the first column of each table whose first heading this is."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert tables, heading
    rows = "".join(tables).splitlines()
    return codes("\n".join(row.split("|")[1] for row in rows))


def test_every_fault_is_on_the_page() -> None:
    """Each function of `midapi_async.sandbox` that makes an action, under what it can act on."""
    for heading, kind in (
        ("on a request", sandbox.RequestAction),
        ("on a task", sandbox.TaskAction),
        ("on a callback", sandbox.CallbackAction),
    ):
        told = {each.partition("(")[0] for each in column(TESTING, heading) if "(" in each}
        real = {
            name
            for name in sandbox.__all__
            if inspect.isfunction(make := getattr(sandbox, name))
            and make.__annotations__.get("return") in (kind, kind.__name__)
        }
        assert told == real, heading


def test_every_argument_of_the_sandbox_is_in_the_table() -> None:
    """And none that it does not have."""
    assert column(TESTING, "argument") == set(inspect.signature(Sandbox).parameters)


def test_every_entry_of_the_ledger_is_in_the_table() -> None:
    """With all of its fields."""
    [table] = re.findall(r"^\| in the ledger \|.*?\n\n", TESTING, re.MULTILINE | re.DOTALL)
    for name, entry in (
        ("accepted", sandbox.Accepted),
        ("callbacks", sandbox.CalledBack),
        ("requests", sandbox.Asked),
    ):
        [row] = [each for each in table.splitlines() if each.startswith(f"| `{name}`")]
        assert codes(row) == {name, *entry.__annotations__}
