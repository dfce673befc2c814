"""The tables of docs are what the code says, in both directions."""

import ast
import inspect
import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs
import pytest

import midapi_async
from midapi_async import CallbackReceiver, ClientStats, MidAPIClient, MidAPIError, State, events
from tests.docs.blocks import REPOSITORY, blocks
from tests.docs.tables import codes, names, rows

pytestmark = pytest.mark.one_python

DOCS = REPOSITORY / "docs"
PACKAGE = REPOSITORY / "midapi_async"
VARIABLE = re.compile(r"\bMIDAPI_[A-Z_]+[A-Z]\b")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


# ─── errors ──────────────────────────────────────────────────────────────────────────────────────


def _errors() -> dict[str, type[MidAPIError]]:
    every = [getattr(midapi_async, name) for name in midapi_async.__all__]
    kinds = [each for each in every if isinstance(each, type) and issubclass(each, MidAPIError)]
    return {each.__name__: each for each in kinds}


def test_every_error_is_in_one_table() -> None:
    """And no name that is none."""
    assert sorted(names("docs/errors.md", "error")) == sorted(_errors().keys() - {"MidAPIError"})


def test_the_tree_of_errors_is_the_real_one() -> None:
    """Each class stands below its base, with its built-in base behind it."""
    [tree] = [each.text for each in blocks("docs/errors.md") if each.language == "text"][1:]
    shown: dict[str, list[str]] = {}
    above: list[str] = []
    for line in tree.splitlines():
        found = re.fullmatch(r"([│├└─ ]*)(\w+)(?: \((\w+)\))?(?: {2,}\S.*)?", line)
        assert found is not None, line
        above[len(found[1]) // 4 :] = [found[2]]
        shown[found[2]] = [*above[-2:-1], *filter(None, [found[3]])]
    real = {name: [base.__name__ for base in kind.__bases__] for name, kind in _errors().items()}
    assert shown == real | {"MidAPIError": []}


def test_every_attribute_of_an_error_is_in_the_table() -> None:
    """Those that the class documents; `every error` stands for the base of all."""
    shown: dict[str, set[str]] = {}
    for first, owners, _ in rows("docs/errors.md", "attribute"):
        for owner in codes(owners) or ["MidAPIError"]:
            shown.setdefault(owner, set()).update(codes(first))
    known = _errors()
    own = {name: _documented(kind) for name, kind in known.items()}
    for name, kind in known.items():
        inherited = [shown.get(base.__name__, set()) for base in kind.__mro__]
        assert own[name] <= set().union(*inherited), name
    for name, told in shown.items():
        assert told <= own[name], name


def _documented(kind: type) -> set[str]:
    """The names in the `Attributes` of a class, and its properties."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:")[2]
    properties = {name for name, each in vars(kind).items() if isinstance(each, property)}
    return properties | set(re.findall(r"^ {4}(\w+):", text, re.MULTILINE))


# ─── settings ────────────────────────────────────────────────────────────────────────────────────


def test_every_argument_of_the_client_is_in_the_table() -> None:
    """And none that it does not have."""
    assert names("docs/settings.md", "setting") == list(inspect.signature(MidAPIClient).parameters)


def test_every_argument_of_the_receiver_is_in_the_table() -> None:
    """The same."""
    shown = [codes(row[0])[0] for row in rows("docs/settings.md", "argument of `CallbackReceiver`")]
    assert shown == list(inspect.signature(CallbackReceiver).parameters)


def test_every_default_is_the_real_one() -> None:
    """The table of values, and no value missing from it."""
    shown = {codes(row[0])[0]: float(row[1]) for row in rows("docs/settings.md", "value")}
    real = {
        f"{name}.{field.name}": field.default
        for name in ("Timeouts", "RetryPolicy", "PollPolicy")
        for field in attrs.fields(getattr(midapi_async, name))
    }
    assert shown == real


def test_every_variable_is_in_the_table() -> None:
    """The table names those that the package reads, and no page names another."""
    sources = [path for path in PACKAGE.rglob("*.py") if "sandbox" not in path.parts]
    read = {name for path in sources for name in VARIABLE.findall(path.read_text("utf-8"))}
    assert sorted(names("docs/settings.md", "variable")) == sorted(read)
    for page in (REPOSITORY / "README.md", *DOCS.rglob("*.md")):
        assert set(VARIABLE.findall(page.read_text("utf-8"))) <= read, page.name


def test_every_figure_is_in_the_table() -> None:
    """Of `client.stats()`."""
    assert names("docs/settings.md", "figure") == [each.name for each in attrs.fields(ClientStats)]


def test_every_event_is_in_the_table() -> None:
    """With its own attributes, its logger and its level."""
    shown = {codes(row[0])[0]: row for row in rows("docs/settings.md", "event")}
    assert sorted([*shown, "Event"]) == sorted(events.__all__)
    common = {field.name for field in attrs.fields(events.Event)}
    for name, row in shown.items():
        kind = getattr(events, name)
        own = {field.name for field in attrs.fields(kind)} - common
        assert set(codes(row[2])) == own, name
        assert (codes(row[3]), row[4]) == ([kind.logger], logging.getLevelName(kind.level)), name


def test_every_state_of_an_intent_is_in_the_table() -> None:
    """On the page about money."""
    assert sorted(names("docs/money.md", "state")) == sorted(state.value for state in State)


# ─── lines of the log ────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Line:
    """A call of a logger in the source.

    Attributes:
        logger: its name.
        levels: the level; two if it depends.
        text: what it says, with "…" for what differs.
        where: it is.
    """

    logger: str
    levels: frozenset[str]
    text: str
    where: str


def _plain(node: ast.expr | None, scope: ast.AST) -> str | None:
    """A text of the source with "…" for its parts that differ; None if it is not one.

    Args:
        node: what is logged: a literal, or a name that is set in the function or the module.
        scope: that function or module.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub("…+", "…", re.sub(r"%(?:\.\d)?[sdfg]", "…", node.value))
    if isinstance(node, ast.JoinedStr):
        parts = [_plain(each, scope) or "…" for each in node.values]
        return re.sub("…+", "…", "".join(parts))
    if isinstance(node, ast.Name):
        for each in ast.walk(scope):
            if isinstance(each, ast.Assign):
                [target] = each.targets
                is_tuple = isinstance(target, ast.Tuple) and isinstance(each.value, ast.Tuple)
                names = target.elts if is_tuple else [target]  # type: ignore[attr-defined]
                values = each.value.elts if is_tuple else [each.value]  # type: ignore[attr-defined]
                for name, value in zip(names, values, strict=True):
                    if isinstance(name, ast.Name) and name.id == node.id:
                        return _plain(value, scope)
    return None


def _arguments(call: ast.Call) -> tuple[str, list[ast.expr]] | None:
    """The level of a call of a logger, and what is logged; None if it is another call.

    A logger's method that is given to `call_later` is called with the arguments behind it.
    """
    names = [call.func, *call.args]
    for index, each in enumerate(names):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
            if each.value.id == "_log" and each.attr in {*LEVELS, "log"}:
                return each.attr, names[index + 1 + (each.attr == "log") :]
        elif index == 0 and isinstance(each, ast.Name) and each.id == "_warn_once":
            return "warning", names[1:]
    return None


def _lines_of(path: Path) -> Iterator[Line]:
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    logger = re.search(r'^_log = logging\.getLogger\("([\w.]+)"\)', source, re.MULTILINE)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [each for each in ast.walk(tree) if isinstance(each, kinds)]
    for function in functions:
        for call in ast.walk(function):
            if not isinstance(call, ast.Call) or function.name == "_warn_once":
                continue
            if (found := _arguments(call)) is None:
                continue
            assert logger is not None, path
            level, arguments = found
            where = f"{path.relative_to(PACKAGE)}:{call.lineno}"
            text = _plain(arguments[0], function) or _plain(arguments[0], tree)
            if text == "…":  # a whole sentence
                text = _plain(arguments[1], function)
            assert text is not None, f"{where}: what does it say?"
            levels = {"ERROR" if level == "exception" else level.upper()}
            if level == "log":
                used = {each.attr for each in ast.walk(function) if isinstance(each, ast.Attribute)}
                levels = used & {each.upper() for each in LEVELS}
            yield Line(logger[1], frozenset(levels), text, where)


@cache
def _lines() -> list[Line]:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if "sandbox" not in path.parts]
    return list({each.where: each for path in paths for each in _lines_of(path)}.values())


@cache
def _shown_lines() -> list[tuple[str, str, frozenset[str]]]:
    """The logger, the text and the levels of each row of the tables."""
    shown = []
    source = (DOCS / "settings.md").read_text("utf-8").partition("## Loggers")[2]
    for section in source.split("\n### ")[1:]:
        [logger] = codes(section.splitlines()[0])
        for text, levels in re.findall(r"^\| `(.+?)` \| ([A-Z, ]+) \|", section, re.MULTILINE):
            shown.append((logger, text, frozenset(levels.split(", "))))
    return shown


def _rows_of(line: Line) -> list[tuple[str, str, frozenset[str]]]:
    """The rows that show a line: the whole of it, or its beginning and " …".

    Where a part that differs is a whole phrase, there is a row for each.
    """
    rows = [row for row in _shown_lines() if row[0] == line.logger]
    exact = [
        row
        for row in rows
        if line.text == row[1] or (row[1].endswith(" …") and line.text.startswith(row[1][:-1]))
    ]
    pattern = re.escape(line.text).replace("…", ".+?")
    return exact or [row for row in rows if re.fullmatch(pattern, row[1])]


def test_every_line_of_the_log_is_in_the_tables() -> None:
    """Each call has a row with its level, and each row has a call."""
    lines, shown = _lines(), _shown_lines()
    assert len(lines) > 60
    problems, used = [], set()
    for line in lines:
        rows = _rows_of(line)
        used.update(rows)
        if not rows or any(row[2] != line.levels for row in rows):
            problems.append(f"{line} is not {rows}")
    problems += [f"nothing logs {row}" for row in shown if row not in used]
    problems += [f"twice: {row}" for row in set(shown) if shown.count(row) > 1]
    assert not problems, "\n".join(problems)


def test_every_critical_line_is_on_the_page_about_operations() -> None:
    """By words that it contains; and neither of the page's tables has words that nobody logs."""
    lines, tables = _lines(), rows("docs/operations.md", "the line contains")
    words = {row[0].strip("`").replace("%s", "…"): len(row) for row in tables}
    for line in lines:
        if "CRITICAL" in line.levels:  # what has happened, and what to do: three columns
            assert [columns for each, columns in words.items() if each in line.text] == [3], line
    texts = [line.text for line in lines] + [text for _, text, _ in _shown_lines()]
    assert [each for each in words if not any(each in text for text in texts)] == []


def test_every_logger_has_a_table() -> None:
    """Also one that only events use."""
    used = {line.logger for line in _lines()} | {each.logger for each in _kinds_of_events()}
    assert {logger for logger, _, _ in _shown_lines()} == used


def _kinds_of_events() -> list[type[events.Event]]:
    return [getattr(events, name) for name in events.__all__]
