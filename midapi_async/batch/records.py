"""The records of a file, each with its line: rows of a CSV file, JSON objects, or lines of text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import attrs

from .._wire.json import loads
from ..errors import shown

_LONGEST_LINE = 1_000_000  # bytes; a prompt may have 2,000 characters
_DELIMITERS = ",;\t"
_DELIMITER_LINE = re.compile(r'"?sep=([,;|\t])"?\s*')
# All but tab, line feed and carriage return. U+0080 to U+009F are signs of another encoding.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@attrs.frozen
class RowProblem:
    """Why a row cannot be bought.

    Attributes:
        line: where the row begins in the file, from 1; or the line of it that is wrong.
        problem: what is wrong and what to do.
    """

    line: int
    problem: str


class Record(NamedTuple):
    """The values of one row of a file, before they are interpreted.

    Attributes:
        line: where it begins, from 1.
        values: by the names of columns or members; empty cells are left out.
    """

    line: int
    values: dict[str, object]


Records: TypeAlias = Iterator[Record | RowProblem]


def text_records(data: bytes) -> Records:
    """One record for each line that is not blank, with its text as the prompt."""
    for number, text, problem in _lines(data):
        prompt = text.strip()
        if problem or "\r" in prompt:
            yield RowProblem(number, problem or "contains a carriage return (U+000D)")
        elif prompt:
            yield Record(number, {"prompt": prompt})


def json_records(data: bytes) -> Records:
    """One record for each line with a JSON object."""
    is_first = True
    for number, text, problem in _lines(data):
        if problem:
            yield RowProblem(number, problem)
            continue
        if not text.strip():
            continue
        if is_first and text.lstrip().startswith("["):
            yield RowProblem(
                number,
                "begins a JSON array; JSON Lines has one object on each line, without [ and ] "
                "around them and commas between them",
            )
            return
        is_first = False
        try:
            value = loads(text)
        except ValueError as error:
            yield RowProblem(number, _json_problem(str(error)))
            continue
        if not isinstance(value, dict):
            yield RowProblem(number, f"must be a JSON object, got {shown(value)}")
        elif "\\" in text and (problem := _problem_inside(value)):
            yield RowProblem(number, problem)
        else:
            yield Record(number, value)


def csv_records(data: bytes, header_problem: Callable[[list[str]], str | None]) -> Records:
    """One record for each row of a CSV file that is not blank.

    Args:
        data: the file. Columns are separated by commas, semicolons or tabs, as its header shows.
        header_problem: says what is wrong with the names of the columns; None if nothing is.
    """
    bad_lines: dict[int, str] = {}

    def texts() -> Iterator[str]:
        for number, text, problem in _lines(data):
            if problem:
                bad_lines[number] = problem
            yield text

    lines, above, delimiters = texts(), 0, _DELIMITERS
    for above, first in enumerate(lines, 1):
        # Spreadsheet programs write a first line "sep=;" that names the delimiter.
        if above == 1 and (named := _DELIMITER_LINE.fullmatch(first)):
            delimiters = named[1]
        elif bad_lines or first.strip():
            break
    else:
        return
    header = bad_lines.get(above) or _header(first, delimiters, header_problem)
    if isinstance(header, str):
        yield RowProblem(above, header)
        return
    delimiter, names = header
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    problem = None
    while problem != _NOT_CLOSED:
        begins = above + reader.line_num + 1
        problem = None
        row: list[str] = []
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = _csv_problem(str(error))
        if bad_lines:
            number = min(bad_lines)
            yield RowProblem(number, bad_lines[number])
            bad_lines.clear()
        elif problem:
            yield RowProblem(begins, problem)
        elif any(cell.strip() for cell in row):
            yield _csv_record(begins, names, row)


_NOT_CLOSED = (
    "has a quotation mark that is not closed, so the rest of the file was not read; a quotation "
    "mark inside a text in quotation marks is written twice"
)


def _csv_problem(problem: str) -> str:
    """What a message of Python's CSV reader means."""
    if "end of data" in problem or "field limit" in problem:
        return _NOT_CLOSED
    if "expected after" in problem:
        return (
            "has text behind a closing quotation mark; a quotation mark inside a text in "
            "quotation marks is written twice"
        )
    return "contains a carriage return (U+000D) outside of quotation marks"


def _csv_record(line: int, names: list[str], row: list[str]) -> Record | RowProblem:
    while len(row) > len(names) and not row[-1].strip():
        row.pop()
    if len(row) != len(names):
        hint = "; a text that contains the separator must stand in quotation marks"
        cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
        return RowProblem(
            line, f"has {cells} and the header {len(names)}{hint if len(row) > len(names) else ''}"
        )
    values: dict[str, object] = {}
    for name, cell in zip(names, row, strict=True):
        if not cell.strip():
            continue
        if not name:
            return RowProblem(line, f"has {shown(cell)} in a column without a name")
        values[name] = cell.strip()
    return Record(line, values)


def _header(
    text: str, delimiters: str, header_problem: Callable[[list[str]], str | None]
) -> tuple[str, list[str]] | str:
    """The delimiter and the names of the columns; or what is wrong with the header."""
    headers: dict[str, list[str]] = {}
    for delimiter in delimiters:
        try:
            row = next(csv.reader([text], delimiter=delimiter, strict=True))
        except csv.Error as error:
            if delimiter == delimiters[-1] and not headers:
                return f"is the header, and {_csv_problem(str(error))}"
            continue
        headers[delimiter] = [name.strip() for name in row]
    several = {each: names for each, names in headers.items() if len(names) > 1}
    if not several:
        several = dict(list(headers.items())[:1])
    fitting = several
    if len(several) > 1:
        fitting = {each: names for each, names in several.items() if not header_problem(names)}
    if len(fitting) != 1:
        found = " and ".join("a tab" if each == "\t" else f'"{each}"' for each in several)
        problem = "it is not clear which of them separates the columns"
        return f"is the header, and contains {found}: {problem}"
    delimiter, names = fitting.popitem()
    return header_problem(names) or (delimiter, names)


def _lines(data: bytes) -> Iterator[tuple[int, str, str | None]]:
    """Each line: its number, its text, and what is wrong with it."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        yield 1, "", "is UTF-16; save the file as UTF-8"
        return
    if data.startswith(b"PK\x03\x04"):
        yield 1, "", "begins a spreadsheet file (or a ZIP file); save the sheet as CSV in UTF-8"
        return
    if b"\r" in data and b"\n" not in data:  # from a very old Mac, or "CSV (Macintosh)" of Excel
        data = data.replace(b"\r", b"\n")
    file = io.BytesIO(data)
    if data.startswith(b"\xef\xbb\xbf"):
        file.seek(3)
    for number, raw in enumerate(file, 1):
        if len(raw) > _LONGEST_LINE:
            yield number, "", f"has {len(raw):,} bytes; a row may have at most {_LONGEST_LINE:,}"
            continue
        problem = None
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            text = raw.decode(errors="replace")
            problem = f"is not UTF-8 (byte 0x{raw[error.start]:02X}); save the file as UTF-8"
        else:
            if found := _CONTROL.search(text):
                problem = _control_problem(found[0])
        yield number, text, problem


def _control_problem(character: str) -> str:
    hint = "; if the file is UTF-16, save it as UTF-8" if character == "\0" else ""
    return f"contains a control character (U+{ord(character):04X}){hint}"


def _problem_inside(value: object) -> str | None:
    """What is wrong with a text inside a JSON value that was written with backslashes."""
    if isinstance(value, str):
        if found := _CONTROL.search(value):
            return _control_problem(found[0])
        try:
            value.encode()
        except UnicodeEncodeError:
            return "contains a lone surrogate (half of a character), which cannot be sent"
    elif isinstance(value, dict):
        return next(filter(None, map(_problem_inside, [*value, *value.values()])), None)
    elif isinstance(value, list):
        return next(filter(None, map(_problem_inside, value)), None)
    return None


def _json_problem(problem: str) -> str:
    """What is wrong with a line of JSON Lines, by the message of the JSON reader."""
    if problem.startswith("Exceeds the limit"):
        problem = "a number is too large"
    # The reader sees one line only, so its line number would mislead.
    problem = re.sub(r": line \d+ column (\d+) \(char \d+\)", r" (column \1)", problem)
    return f"is not valid JSON: {problem}"
