"""The tables of README and docs, and what is in backticks in them."""

import re
from functools import cache

from tests.docs.blocks import REPOSITORY


@cache
def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of all tables of a page whose first column has this heading."""
    source = (REPOSITORY / page).read_text("utf-8")
    table = re.compile(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", re.MULTILINE)
    found = table.findall(source)
    assert found, f"{page} has no table {heading!r}"
    lines = "".join(found).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


def codes(text: str) -> list[str]:
    """What is in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def names(page: str, heading: str) -> list[str]:
    """What is in backticks in the first column of these tables."""
    return [name for row in rows(page, heading) for name in codes(row[0])]
