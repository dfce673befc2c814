"""The rows of a batch's file: all are checked first, and read again while they are bought."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import attrs
from cyclopts import Group, Parameter

from midapi_async import BatchRequest, InvalidRequestError, Upscale, Vary
from midapi_async.batch.reading import FileRow, Format, format_of, picks_of, rows_of
from midapi_async.batch.records import RowProblem
from midapi_async.requests import has_several_jobs

from ._errors import USAGE, CommandError, in_commands, usage_error
from ._terminal import one_line, say

STDIN = "-"
_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


@Parameter(name="*", group=Group("Rows", sort_key=10))
@attrs.frozen(kw_only=True)
class FileOptions:
    """How the file is read.

    Attributes:
        format: The format of FILE; the default depends on its name (.csv, .jsonl, .txt), or for
            stdin on its content.
        template: The prompt of every row, filled from its columns: "a {{animal}} in {{place}}".
        expand: Make several rows of a prompt with Midjourney's {red, blue} or --repeat 3. Without
            this option MidAPI may run and bill several jobs for such a row, at a price that is not
            documented. The number of rows is printed before anything is bought, and by --dry-run.
        limit: Buy only this many rows, the first of the file, as a trial.
        upscale: FILE is picks.jsonl, from the gallery: buy a larger version of each picture in it.
        vary: FILE is picks.jsonl, from the gallery: buy variations of each picture in it.
    """

    format: Format | None = None
    template: str | None = None
    expand: _Flag = False
    limit: int | None = None
    upscale: _Flag = False
    vary: _Flag = False


@attrs.define
class Rows:
    """The rows of a file, read again each time that this is iterated.

    Attributes:
        lines: the line in the file of each row that is bought.
        count: how many rows the file has, before any were expanded.
    """

    _data: bytes
    _form: Format
    _options: FileOptions
    _folder: Path
    lines: array[int] = attrs.field(factory=lambda: array("L"))
    count: int = 0

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[BatchRequest]:
        for row in self.read():
            if isinstance(row, FileRow):
                yield BatchRequest(row.request, row.key, row.metadata)

    @property
    def noun(self) -> str:
        """What to call them: "rows", or "jobs" after ``--expand``."""
        return "rows" if self.count == len(self.lines) else "jobs"

    @property
    def description(self) -> str:
        """The number of rows, in words."""
        rows = f"{self.count} row{'s'[: self.count != 1]}"
        return rows if self.count == len(self.lines) else f"{rows} ({len(self)} jobs)"

    def read(self, *, check_files: bool = False) -> Iterator[FileRow | RowProblem]:
        """Each row or what is wrong with it, up to ``--limit``."""
        options, seen, last = self._options, 0, -1
        if options.upscale or options.vary:
            rows = picks_of(self._data, Upscale if options.upscale else Vary)
        else:
            rows = rows_of(
                self._data,
                self._form,
                template=options.template,
                expand=options.expand,
                folder=self._folder,
                check_files=check_files,
            )
        for row in rows:
            seen += row.line != last
            last = row.line
            if options.limit is not None and seen > options.limit:
                return
            yield row


def read_rows(source: str, options: FileOptions) -> Rows:
    """The rows of a file, all of them checked.

    Raises:
        InvalidRequestError: it cannot be read.
        CommandError: at least one row is not valid; all such rows were printed.
    """
    if options.limit is not None and options.limit < 1:
        raise InvalidRequestError({"limit": f"must be 1 or more, got {options.limit}"})
    if options.upscale and options.vary:
        raise usage_error("give either --upscale or --vary, not both")
    if (options.upscale or options.vary) and (options.template or options.expand):
        raise usage_error("picks.jsonl has no prompts for --template or --expand")
    data = _bytes_of(source)
    folder = Path() if source == STDIN else Path(source).parent
    form = options.format or format_of(source, data, options.template)
    rows = Rows(data, form, options, folder)
    problems: list[RowProblem] = []
    several, last = 0, -1
    for row in rows.read(check_files=True):
        if isinstance(row, RowProblem):
            problems.append(row)
            continue
        rows.lines.append(row.line)
        several += has_several_jobs(row.request)
        rows.count += row.line != last
        last = row.line
    if problems:
        raise _invalid(source, problems, {*rows.lines})
    if not rows.lines:
        raise InvalidRequestError({"file": f"{shown_source(source, quoted=True)} has no rows"})
    if several:
        advice = "" if options.expand else ". --expand makes a row of each job"
        say(
            f"midapi: WARNING: {{…, …}} or --repeat in {several} prompts of {rows.description}. "
            f"It is not known how many jobs MidAPI runs and bills for these{advice}"
        )
    return rows


def _invalid(source: str, problems: list[RowProblem], lines: set[int]) -> CommandError:
    for each in problems:
        say(f"{shown_source(source)}:{each.line}: {one_line(in_commands(each.problem))}")
    bad = len({each.line for each in problems})
    valid = len(lines - {each.line for each in problems})
    are = "row is" if bad + valid == 1 else "rows are" if bad > 1 else "rows is"
    return CommandError(
        "InvalidRows",
        f"{bad} of {bad + valid} {are} not valid. Nothing was bought",
        facts={"problems": [attrs.asdict(each) for each in problems], "valid": valid},
        exit_code=USAGE,
    )


def _bytes_of(source: str) -> bytes:
    """The content of a file, or of stdin.

    Raises:
        InvalidRequestError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
    except (AttributeError, OSError, ValueError) as error:  # stdin is None if it was closed
        reason = getattr(error, "strerror", None) or error
        problem = f"{shown_source(source, quoted=True)} cannot be read: {reason}"
        raise InvalidRequestError({"file": problem}) from None


def shown_source(source: str, *, quoted: bool = False) -> str:
    """What to call the file in messages; "stdin" for "-"."""
    return "stdin" if source == STDIN else repr(source) if quoted else source
