"""Strict JSON in UTF-8: a text that other programs may read differently is an error."""

from __future__ import annotations

import json
import math
from typing import Any

JSONObject = dict[str, object]

DEEPEST = 64  # levels; MidAPI's own answers have five


def _unique(pairs: list[tuple[str, object]]) -> JSONObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
)


def loads(text: bytes | str) -> object:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is anything else, or has deep nesting, duplicate names or NaN.
    """
    problem = "it is nested too deeply"
    try:
        text = text.decode().removeprefix("\ufeff") if isinstance(text, bytes) else text
        text = text.strip(" \t\n\r")
        value, end = _decoder.raw_decode(text)
        if end != len(text):
            raise ValueError("more text follows the value")
    except RecursionError:
        pass
    except ValueError as error:
        problem = str(error)
    else:
        if text.count("[") + text.count("{") <= DEEPEST or not _is_deep(value):
            return value
    # Raised outside the handlers: the decoder's errors contain the text, with the token in it.
    raise ValueError(problem)


def _is_deep(value: object) -> bool:
    """Whether a value is nested so deeply that a recursive function could exhaust the stack."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        insides = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for inside in insides for each in inside if isinstance(each, dict | list)]
        if not level:
            return False
    return True


# A value as compact JSON text; lone surrogates stay as they are.
compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(value: object) -> bytes:
    """A value as compact JSON in UTF-8.

    Raises:
        UnicodeEncodeError: a string contains a lone surrogate (half of a character).
    """
    return compact(value).encode()
