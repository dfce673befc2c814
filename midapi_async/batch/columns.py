"""The columns of a CSV file: their names, and their cells as values of request fields."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

import attrs

from .._wire.json import loads
from ..errors import InvalidRequestError, shown
from ..requests import REQUESTS, nearest
from .template import Template, folded, unknown_in

_FIELDS = {name for cls in REQUESTS for name in attrs.fields_dict(cls)}
NAMES = (*sorted(_FIELDS), "kind", "key", "metadata")
BY_FOLDED = {folded(name): name for name in NAMES}


@lru_cache(maxsize=1000)
def own_name(column: str) -> str:
    """Our name for a column, or its name in the file if we have none."""
    first, dot, note = column.partition(".")
    if dot and folded(first) == "metadata":
        return f"metadata.{note}"
    return BY_FOLDED.get(folded(column), column)


@lru_cache(maxsize=1000)
def meant_by(name: str) -> str | None:
    """Our name that an unknown name is probably a misspelling of, or None.

    With a template, a file may have columns that nothing uses. A misspelt setting is an error all
    the same: it would be ignored in silence.
    """
    close = difflib.get_close_matches(folded(name), BY_FOLDED, n=1, cutoff=0.8)
    return BY_FOLDED[close[0]] if close else None


def header_problem(columns: list[str], template: Template | None) -> str | None:
    """What is wrong with the names of the columns; None if nothing is."""
    names = [own_name(column) for column in columns if column]
    seen: set[str] = set()
    used = {folded(name) for name in template[1::2]} if template else set()
    problems, unknown = [], []
    for name in names:
        if folded(name) in seen:
            problems.append(f"the column {shown(name)} occurs twice")
        seen.add(folded(name))
        if name in NAMES or name.startswith("metadata.") or folded(name) in used:
            continue
        if template is None and (near := nearest(name, NAMES)):
            problems.append(f"the column {shown(name)} is not known; did you mean {near}?")
        elif template is None:
            unknown.append(shown(name))
        elif meant := meant_by(name):
            problems.append(f"the column {shown(name)} is not used; did you mean {meant}?")
    if unknown:
        problems.append(
            f"not known as columns: {', '.join(unknown)}; the known columns are {', '.join(NAMES)} "
            "(the first row must name the columns; --template makes prompts from others, and "
            "metadata.NAME keeps a note of yours)"
        )
    if template and (problem := unknown_in(template, names)):
        problems.append(problem)
    if not problems and not template and seen.isdisjoint({"prompt", "taskid"}):
        problems.append("there is no column named prompt")
    return "; ".join(problems) or None


def converted(fields: Mapping[str, object]) -> dict[str, object]:
    """The texts of cells as the values that the request fields take.

    Raises:
        InvalidRequestError: naming each cell that cannot be converted.
    """
    values, problems = dict(fields), {}
    for name, text in fields.items():
        if name in _CONVERSIONS:
            try:
                values[name] = _CONVERSIONS[name](str(text))
            except ValueError as error:
                problems[name] = str(error)
    if problems:
        raise InvalidRequestError(problems)
    return values


def _number(text: str) -> int:
    # A program that has no empty whole numbers writes 50 as 50.0.
    if found := re.fullmatch(r"([+-]?[0-9]{1,18})(?:\.0+)?", text):
        return int(found[1])
    raise ValueError(f"must be a whole number, got {shown(text)}")


def _flag(text: str) -> bool:
    if (low := text.casefold()) in {"true", "yes", "1", "1.0"}:
        return True
    if low in {"false", "no", "0", "0.0"}:
        return False
    raise ValueError(f"must be true or false, got {shown(text)}")


def _ratio(text: str) -> str:
    # Spreadsheet programs take 16:9 for a time of day, and write 16:09 or 16:09:00.
    if found := re.fullmatch(r"0*([1-9][0-9]?):0*([1-9][0-9]?)(?::00)?", text):
        return f"{found[1]}:{found[2]}"
    return text


def _paths(text: str) -> list[str]:
    return [each.strip() for each in re.split(r"[\n|]", text) if each.strip()]


def _object(text: str) -> object:
    try:
        return loads(text)
    except ValueError:
        raise ValueError(f"must be a JSON object, got {shown(text)}") from None


_CONVERSIONS: Mapping[str, Callable[[str], object]] = {
    "aspect_ratio": _ratio,
    "enable_translation": _flag,
    "extra": _object,
    "file_urls": _paths,
    "hd": _flag,
    "image_index": _number,
    "index": _number,
    "metadata": _object,
    "ow": _number,
    "stylization": _number,
    "variety": _number,
    "video_batch_size": _number,
    "weirdness": _number,
}
