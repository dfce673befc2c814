"""What all pages have in common: links lead somewhere, and names are public."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

import midapi_async
from midapi_async.events import Event
from tests.docs.blocks import INCLUDED, REPOSITORY, pages

OWNERS: Mapping[str, type[Any]] = {
    "client": midapi_async.MidAPIClient,
    "handle": midapi_async.TaskHandle,
    "receiver": midapi_async.CallbackReceiver,
    "details": midapi_async.TaskDetails,
    "event": Event,
}


@pytest.mark.parametrize("page", pages())
def test_every_name_in_code_that_looks_public_is_public(page: str) -> None:
    """`client.xyz`, `handle.xyz` and the like exist."""
    text = (REPOSITORY / page).read_text("utf-8")
    for owner, name in re.findall(rf"(?<![\w.])({'|'.join(OWNERS)})\.(?!py\b|md\b)(\w+)", text):
        known = {field.name for field in getattr(OWNERS[owner], "__attrs_attrs__", ())}
        assert name in known or hasattr(OWNERS[owner], name), f"{owner}.{name}"


@pytest.mark.parametrize("page", pages())
def test_links_and_pictures_lead_to_a_file(page: str) -> None:
    """Those into this repository; Sphinx checks the anchors."""
    text = (REPOSITORY / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        there = (REPOSITORY / page).parent / target
        assert target.startswith(("https://", "http://127.0.0.1")) or there.exists(), target


# The reference is read on the site only: what it shows is made from docstrings.
@pytest.mark.parametrize("page", [each for each in pages() if "reference" not in each])
def test_each_included_file_is_linked_above_it(page: str) -> None:
    """Read as Markdown, in the repository, a page does not show what it includes."""
    text = (REPOSITORY / page).read_text("utf-8")
    for found in INCLUDED.finditer(text):
        before = text[: found.start()].rsplit("```", 1)[-1]  # since the block before it
        assert f"]({found[1]})" in before, found[1]


def test_nobody_installs_a_package_of_our_name_from_the_index() -> None:
    """We have none there; pages and examples install a checkout."""
    files = [*pages(), *(f"examples/{each.name}" for each in REPOSITORY.glob("examples/*.py"))]
    lines = [line for name in files for line in (REPOSITORY / name).read_text("utf-8").splitlines()]
    installing = [line for line in lines if "pip install" in line and "Do not" not in line]
    assert [line for line in installing if "midapi-async" in line] == []
    assert len(installing) > 10
