"""The tests of each row of the fault catalogue, and the lists of them on its page.

They are read from the marks in the tests' source (`@pytest.mark.fault("S4")`), without importing a
test. The page in the repository holds the rows alone; Sphinx adds the lists when it builds it.
"""

import ast
from collections.abc import Iterator
from html import escape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

PAGE = "faults"


class UnreadableMarkError(Exception):
    """A mark's row is not written out: only running the test would show it."""


def rows_in(node: ast.AST, tables: dict[str, ast.expr], file: Path) -> Iterator[str]:
    """The rows of the marks in an expression, and in the tables of its module that it names."""
    for part in ast.walk(node):
        match part:
            case ast.Call(func=ast.Attribute(attr="fault"), args=args):
                for row in args:
                    if not (isinstance(row, ast.Constant) and isinstance(row.value, str)):
                        raise UnreadableMarkError(f"{file}:{row.lineno}: write the row as a string")
                    yield row.value
            case ast.Name(id=name) if name in tables:
                others = {other: value for other, value in tables.items() if other != name}
                yield from rows_in(tables[name], others, file)


def marks_of(file: Path) -> list[tuple[str, str]]:
    """(row, test) for each mark in a file of tests, in the order of the file.

    A mark counts for a test if it stands on it or on its class, inside `parametrize`, in a table of
    the module that `parametrize` names, or in `pytestmark`.
    """
    module = ast.parse(file.read_text(encoding="utf-8"))
    tables: dict[str, ast.expr] = {}
    for statement in module.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                tables[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                tables[name] = value

    def tests_in(body: list[ast.stmt], outer: list[str]) -> Iterator[tuple[str, str]]:
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                    outer = [*outer, *rows_in(value, tables, file)]
        for statement in body:
            match statement:
                case ast.ClassDef(body=inner, decorator_list=marks):
                    own = chain.from_iterable(rows_in(mark, tables, file) for mark in marks)
                    yield from tests_in(inner, [*outer, *own])
                    continue
                case (
                    ast.FunctionDef(name=name, decorator_list=marks)
                    | ast.AsyncFunctionDef(name=name, decorator_list=marks)
                ) if name.startswith("test"):
                    pass
                # A state machine of hypothesis: TestLife = Life.TestCase
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.startswith(
                    "Test"
                ):
                    marks = [value]
                case _:
                    continue
            own = chain.from_iterable(rows_in(mark, tables, file) for mark in marks)
            yield from ((row, name) for row in dict.fromkeys([*outer, *own]))

    return list(tests_in(module.body, []))


def marks_by_row(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Row → file below the tests' folder → its tests."""
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(folder.rglob("test_*.py")):
        for row, test in marks_of(file):
            files = found.setdefault(row, {})
            files.setdefault(file.relative_to(folder).as_posix(), []).append(test)
    return found


def shown(tests: dict[str, list[str]]) -> str:
    """HTML for a row: the number of its tests, and their names when that is opened."""
    count = sum(map(len, tests.values()))
    items = "".join(
        f"<li><code>{escape(file)}</code><br>{'<br>'.join(map(escape, names))}</li>"
        for file, names in tests.items()
    )
    what = "1 test" if count == 1 else f"{count} tests"
    return f'<details class="tests"><summary>{what}</summary><ul>{items}</ul></details>'


def add_tests(app: "Sphinx", page: "nodes.document") -> None:
    """Give each row of the page its list of tests, and an anchor (`faults.html#s4`)."""
    from docutils import nodes

    if app.env.docname != PAGE:
        return
    tests = marks_by_row(Path(app.srcdir).parent / "tests")
    for table in page.findall(nodes.table):
        table["classes"].append("faults")
        for row in table.findall(nodes.row):
            name = row[0].astext()
            if name in tests:
                row["ids"].append(name.lower())
                row[-1].append(nodes.raw("", shown(tests[name]), format="html"))


def setup(app: "Sphinx") -> dict[str, bool]:
    """Register the lists with Sphinx, and rebuild the page in every build, because tests change."""
    app.connect("doctree-read", add_tests)
    app.connect("env-get-outdated", lambda *_: [PAGE])
    return {"parallel_read_safe": True, "parallel_write_safe": True}
