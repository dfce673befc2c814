"""Output: results to stdout, messages to stderr; control characters are escaped."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping


def shown(text: object) -> str:
    r"""The text with an escape such as ``\x1b`` for each character that does not print."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text)
    )


def one_line(text: object) -> str:
    """The text on one line: white space becomes one blank."""
    return shown(" ".join(str(text).split()))


def out(line: object) -> None:
    """Print one line of the result to stdout."""
    _write(sys.stdout, shown(line))


def out_json(value: Mapping[str, object]) -> None:
    """Print the result as one JSON object in ASCII to stdout."""
    _write(sys.stdout, json.dumps(value))


def say(line: object) -> None:
    """Print one line for people to stderr. A closed stderr must not end what is paid for."""
    with suppress(OSError):
        _write(sys.stderr, shown(line))


def _write(stream: TextIO | None, line: str) -> None:
    if stream is not None:  # None if the parent process closed it
        stream.write(f"{line}\n")
        stream.flush()


def seconds(count: float) -> str:
    """A duration for people, as in ``3.2 s``, ``58 s``, ``4 min 10 s`` or ``2 h 5 min``."""
    if count < 9.95:
        return f"{count:.1f} s"
    if count < 99.5:
        return f"{count:.0f} s"
    minutes, rest = divmod(round(count), 60)
    if minutes >= 120:
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
