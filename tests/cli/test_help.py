"""Each page of `midapi --help`, read as a user who has never seen the project."""

import re
from collections.abc import Iterator

import pytest
from cyclopts import App

from midapi_async.cli.app import app
from tests.cli.conftest import Midapi

# What a programmer would write: a name with an underscore, a constant, a class, a call.
PYTHON = re.compile(
    r"\b[a-z0-9]+_[a-z0-9_]+\b|\b(None|True|False|Path|str|bool|tuple|dict)\b"
    r"|\b[A-Z][a-z]+[A-Z]\w*|\w\(\)"
)
# A company; a fault, a state and a field of a name, as they are typed.
WORDS = {"MiB", "PostgreSQL", "pg_dump", "MidAPI", "answer_status", "called_back", "task_id"}


def commands(found: App = app, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """Each command and sub-command, with the words that call it."""
    yield path, found
    for name in found:
        if not name.startswith("-"):
            yield from commands(found[name], (*path, name))


def options(command: App) -> Iterator[tuple[str, str]]:
    """Each option and argument of a command, and its help text."""
    if command.default_command is not None:
        for each in command.assemble_argument_collection(parse_docstring=True):
            if each.show:
                yield each.names[0], each.parameter.help or ""


COMMANDS = dict(commands())


def python_names(text: str) -> list[str]:
    """The words of a text that only a program would use."""
    found = [each.group() for each in PYTHON.finditer(text)]
    return [each for each in found if each not in WORDS]


def test_every_command_is_in_the_table() -> None:
    """The walk finds the sub-commands, and their options."""
    assert {(), ("generate", "vary"), ("journal", "list"), ("doctor",)} <= {*COMMANDS}
    found = {path: {name for name, _ in options(each)} for path, each in COMMANDS.items()}
    assert {"PROMPT", "--from-json", "--speed", "--key", "--proxy"} <= found["generate",]
    assert {"TASK", "--wait", "--folder", "--json"} <= found["task",]
    assert sum(map(len, found.values())) > 150


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_option_has_a_sentence(path: tuple[str, ...]) -> None:
    """Three words at least, as a sentence, without a name of the program's own code."""
    for name, text in options(COMMANDS[path]):
        assert len(text.split()) >= 3, name
        assert text[0].isupper(), name
        assert text.endswith("."), name
        assert python_names(text) == [], name


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_page_fits_and_shows_no_python(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...], width: int
) -> None:
    """The text above the options, too, and the defaults that are shown."""
    monkeypatch.setenv("COLUMNS", str(width))
    # cyclopts keeps the console, with its width, of the first error or page of a command.
    monkeypatch.setattr(COMMANDS[path], "_fallback_console", None)
    ran = midapi(*path, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert max(map(len, ran.lines)) <= width
    assert python_names(ran.out) == []
    assert len(ran.lines[2].split()) >= 3


@pytest.mark.parametrize(
    "text",
    ["None to wait", "as for RateLimit", "call wait()", "time_scale", "[default: True]"],
)
def test_a_python_name_is_found(text: str) -> None:
    """The pattern itself finds what it is there for."""
    assert python_names(text)
