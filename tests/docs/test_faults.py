"""The fault catalogue, docs/faults.md, and the marks of the tests agree."""

import re
from pathlib import Path

import attrs
import pytest

from docs._extensions.fault_tests import UnreadableMarkError, marks_by_row, marks_of, shown

pytestmark = pytest.mark.one_python
REPOSITORY = Path(__file__).parents[2]
_SECTION = re.compile(r"## ([A-Z]): ")


@attrs.frozen
class Row:
    """A row of the catalogue: its section's letter, its id, what goes wrong, what is true then."""

    section: str
    id: str
    fault: str
    truth: str


def rows_of_page() -> list[Row]:
    """All rows, in the order of the page."""
    section, rows = "", []
    for line in (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8").splitlines():
        if found := _SECTION.match(line):
            section = found[1]
        elif line.startswith("| ") and not line.startswith("| row |"):
            rows.append(Row(section, *(cell.strip() for cell in line.strip("|").split("|"))))
    return rows


def test_each_row_has_a_test_and_each_mark_a_row() -> None:
    """A row without a test is a promise that nobody holds; a mark without a row is a slip."""
    rows, marks = {row.id for row in rows_of_page()}, set(marks_by_row(REPOSITORY / "tests"))
    assert len(rows) > 100
    assert rows - marks == set(), "rows without a test"
    assert marks - rows == set(), "marks of no row"


def test_rows_are_unique_and_sorted() -> None:
    """By number, under the heading of their letter."""
    for section in dict.fromkeys(row.section for row in rows_of_page()):
        ids = [row.id for row in rows_of_page() if row.section == section]
        assert [each[0] for each in ids] == [section] * len(ids)
        numbers = [int(each[1:]) for each in ids]
        assert numbers == sorted(set(numbers))


def test_each_row_is_told_in_sentences() -> None:
    """Each cell has at least one, which begins with a capital and ends with a full stop."""
    short = [
        (row.id, cell)
        for row in rows_of_page()
        for cell in (row.fault, row.truth)
        if not re.fullmatch(r"[A-Z`].*\.", cell) or len(cell.split()) < 3
    ]
    assert not short


MARKED = """
import pytest
from pytest import mark

ROW = pytest.mark.fault("S3")
CASES: list = [pytest.param(1, marks=ROW), pytest.param(2, marks=[pytest.mark.fault("S4")])]
OTHERS = [pytest.param(1, marks=pytest.mark.fault("S5"))]

@pytest.mark.fault("S1")
@mark.fault("S2")
@pytest.mark.fault("S1")
async def test_two_rows(): ...

@pytest.mark.parametrize("case", CASES)
def test_table(case): ...

@pytest.mark.fault("P1")
class TestClass:
    pytestmark = pytest.mark.fault("P2")

    @pytest.mark.parametrize("case", [pytest.param(1, marks=pytest.mark.fault("P3"))])
    def test_method(self, case): ...

@pytest.mark.fault("P4")
def helper(): ...

def test_without(): ...

TestMachine = pytest.mark.fault("C1")(Machine.TestCase)
"""


def test_marks_are_read_wherever_they_stand(tmp_path: Path) -> None:
    """On tests, classes and state machines, in parameters and in tables of them."""
    file = tmp_path / "test_marked.py"
    file.write_text(MARKED)
    assert marks_of(file) == [
        ("S1", "test_two_rows"),
        ("S2", "test_two_rows"),
        ("S3", "test_table"),
        ("S4", "test_table"),
        ("P1", "test_method"),
        ("P2", "test_method"),
        ("P3", "test_method"),
        ("C1", "TestMachine"),
    ]
    file.write_text(f'{MARKED}\npytestmark = [pytest.mark.fault("L1")]\n')
    assert ("L1", "test_without") in marks_of(file)
    assert len([test for row, test in marks_of(file) if row == "L1"]) == 5


def test_a_row_that_is_not_written_out_is_an_error(tmp_path: Path) -> None:
    """Else the test would be missing on the page in silence."""
    file = tmp_path / "test_marked.py"
    file.write_text("import pytest\n\n@pytest.mark.fault(row)\ndef test_it(): ...\n")
    with pytest.raises(UnreadableMarkError, match=r"test_marked\.py:3: write the row as a string"):
        marks_of(file)


def test_the_list_of_a_row_is_closed_at_first() -> None:
    """It shows how many tests there are; their names are escaped."""
    assert shown({"test_a.py": ["test_x"]}) == (
        '<details class="tests"><summary>1 test</summary>'
        "<ul><li><code>test_a.py</code><br>test_x</li></ul></details>"
    )
    assert "<summary>3 tests</summary>" in shown({"a": ["x", "y"], "<b>": ["z"]})
    assert "&lt;b&gt;" in shown({"<b>": ["z"]})
