"""Templates of prompts, such as ``a {{animal}} in {{place}}``, filled from the values of a row."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import TypeAlias

from ..errors import InvalidRequestError, shown
from ..requests import letters

_PLACE = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")

# Texts and names in turn; the first and the last are texts.
Template: TypeAlias = "list[str]"


def parsed_template(text: str) -> Template:
    """A template, ready to be filled.

    Raises:
        InvalidRequestError: it is wrong.
    """
    parts = _PLACE.split(text)
    problem = None
    if any("{{" in each or "}}" in each for each in parts[::2]):
        problem = "contains {{ or }} outside of a {{name}}; for two braces in a prompt, write { {"
    elif not all(parts[1::2]):
        problem = "contains {{}} without the name of a column"
    elif len(parts) == 1:
        problem = "must name a column, as in 'a {{animal}} in the snow'; every prompt is the same"
    if problem:
        raise InvalidRequestError({"template": problem})
    return parts


@lru_cache(maxsize=1000)
def folded(name: str) -> str:
    """A column's name in the form in which names are compared: no upper case, blanks, _ or -."""
    return "".join(letters(name).split())


def unknown_in(template: Template, names: Collection[str]) -> str | None:
    """What is wrong with a template that names anything but these names; None if it does not."""
    known = {folded(name): name for name in names}
    for name in template[1::2]:
        if folded(name) not in known:
            close = difflib.get_close_matches(folded(name), known, n=1)
            hint = f"; did you mean {shown(known[close[0]])}?" if close else ""
            return f"the template names {shown(name)}, which the row does not have{hint}"
    return None


def filled(template: Template, values: Mapping[str, object]) -> str:
    """The prompt for a row; its values are inserted as they are.

    Raises:
        ValueError: a value is missing, empty or not a text or a number; the text names it.
    """
    known = {folded(name): value for name, value in values.items()}
    parts = list(template)
    problems = []
    for index in range(1, len(parts), 2):
        value = values.get(parts[index], known.get(folded(parts[index])))
        if value is None or (isinstance(value, str) and not value.strip()):
            problems.append(f"{shown(parts[index])} is empty or missing")
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            parts[index] = str(value)
        else:
            problems.append(f"{shown(parts[index])} must be a text or a number")
    if problems:
        raise ValueError(f"for the template, {' and '.join(dict.fromkeys(problems))}")
    return "".join(parts)
