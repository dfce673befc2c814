"""The table of ``midapi journal list``: it fits the terminal; elsewhere nothing is cut."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from midapi_async import Intent, State
from midapi_async.journal import BOUGHT

from ._folder import time_of
from ._terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LEAST_DIGITS = 8  # of an intent's id; all commands take the first digits
_ENOUGH = 30  # cells for keys and prompts, which are cut; for them the spare columns are left out
_SPARE = ("TASK", "TAKEN", "TIME (UTC)")
_GAP = "  "


def terminal_width() -> int | None:
    """How many cells a line of stdout has; None if it is no terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def listing(rows: Sequence[Intent], width: int | None) -> Iterator[str]:
    """The lines of the table, the header first.

    On a terminal the prompt of an unknown submission has a line of its own, because one needs it to
    find the task on MidAPI's website. In a file or a pipe each intent is on one line.

    Args:
        rows: at least one.
        width: cells in a line of the terminal; None if nothing is to be cut.
    """
    has_own_line = [width is not None and row.state is State.UNKNOWN for row in rows]
    prompts = [one_line(_prompt(row)) for row in rows]
    columns = {
        "INTENT": [row.intent_id for row in rows],
        "STATE": [row.state.value for row in rows],
        "TAKEN": [("yes" if row.taken else "no") if row.state in BOUGHT else "" for row in rows],
        "TIME (UTC)": [(time_of(row.created_at) or "")[:16].replace("T", " ") for row in rows],
        "KEY": [one_line(row.key or "") for row in rows],
        "TASK": [one_line(row.task_id or "") for row in rows],
        "PROMPT": ["" if own else text for own, text in zip(has_own_line, prompts, strict=True)],
    }
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    if width is not None:
        _fit(columns, width)
    widths = [_width(name, texts) for name, texts in columns.items()]

    def line(texts: Sequence[str]) -> str:
        padded = (
            text + " " * (each - _cells(text)) for text, each in zip(texts, widths, strict=True)
        )
        return _GAP.join(padded).rstrip()

    yield line(list(columns))
    for texts, own, text in zip(
        zip(*columns.values(), strict=True), has_own_line, prompts, strict=True
    ):
        yield line(texts)
        if own and width is not None:
            yield _GAP + _cut(text, width - len(_GAP))


def _fit(columns: dict[str, list[str]], width: int) -> None:
    """Shorten the table to the width of a terminal, that of ids and spare columns first."""
    flexible = [name for name in ("KEY", "PROMPT") if name in columns]
    enough = min(_ENOUGH, sum(_width(name, columns[name]) for name in flexible))

    def room() -> int:
        fixed = sum(_width(name, columns[name]) for name in columns if name not in flexible)
        return width - fixed - len(_GAP) * (len(columns) - 1)

    if room() < enough:
        columns["INTENT"] = _short(columns["INTENT"])
    for name in _SPARE:
        if room() < enough:
            columns.pop(name, None)
    left = max(room(), 0)
    # The narrower one first: what it does not need is left to the other.
    for number, name in enumerate(sorted(flexible, key=lambda name: _width(name, columns[name]))):
        limit = max(len(name), left // (len(flexible) - number))
        columns[name] = [_cut(text, limit) for text in columns[name]]
        left -= _width(name, columns[name])


def _short(ids: list[str]) -> list[str]:
    """The first digits of ids, as many as tell these apart."""
    digits = _LEAST_DIGITS
    while len({each[:digits] for each in ids}) < len(ids):
        digits += 1
    return [each[:digits] for each in ids]


def _prompt(row: Intent) -> str:
    """The prompt of an intent; of a request without one, what kind of request it is."""
    if row.request is None:
        return "(not stored)"
    prompt: str | None = getattr(row.request, "prompt", None)
    task_id: str | None = getattr(row.request, "task_id", None)
    of = f" of task {task_id}" if task_id else ""
    return prompt or f"({type(row.request).__name__}{of})"


def _width(name: str, texts: list[str]) -> int:
    return max(_cells(each) for each in (name, *texts))


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes; a Chinese character takes two."""
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, limit: int) -> str:
    """The text, cut to so many cells."""
    from rich.cells import set_cell_size

    return text if _cells(text) <= limit else f"{set_cell_size(text, limit - 1).rstrip()}…"
