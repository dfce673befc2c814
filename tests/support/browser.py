"""Headless Chromium, without a network, for what people see in a browser.

Outside CI its tests are skipped where Chromium or Playwright is missing; ``.ci/run`` installs both.
"""

import importlib.resources
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Playwright gives each browser an empty profile of its own, which it deletes.
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
]
DESKTOP, PHONE = (1440, 900), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if os.environ.get("MIDAPI_TEST_BROWSER") != "required":
        pytest.importorskip("playwright", reason="pip install midapi-async[browser]")
        if program is None:
            pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield opened
        opened.close()


def new_page(browser: "Browser", size: tuple[int, int], scheme: Any, **options: Any) -> "Page":
    """An empty page in a context of its own.

    Args:
        browser: where.
        size: of the window, in pixels.
        scheme: "light" or "dark".
        options: further ones of the context.
    """
    is_phone = size == PHONE
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        is_mobile=is_phone,
        has_touch=is_phone,
        **options,
    )
    context.set_default_timeout(20_000)
    return context.new_page()


@contextmanager
def watched_pages(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Opens pages; at the end none may have reported an error, or asked a host for anything."""
    pages: list[Page] = []
    reports: list[str] = []

    def open_url(
        url: str,
        size: tuple[int, int] = DESKTOP,
        *,
        scheme: Any = "light",
        init: str = "",
        expected: str = "",
    ) -> "Page":
        """Open a page in a context of its own.

        Args:
            url: where it is; a file of this machine.
            size: of the window, in pixels.
            scheme: "light" or "dark".
            init: runs before the page's own script.
            expected: a report with this text is no failure.
        """

        def report(what: str) -> None:
            if not expected or expected not in what:
                reports.append(what)

        def asked(url: str) -> None:
            if not url.startswith(("file:", "data:", "blob:")):
                report(url)

        page = new_page(browser, size, scheme, offline=True)
        pages.append(page)
        if init:
            page.add_init_script(init)
        page.on("pageerror", lambda error: report(str(error)))
        page.on("console", lambda message: report(message.text))
        page.on("request", lambda request: asked(request.url))
        page.goto(url)
        return page

    try:
        yield open_url
    finally:
        for page in pages:
            page.context.close()
    assert not reports, "\n".join(reports)


def found_by_axe(page: "Page", *impacts: str) -> list[tuple[str, list[str]]]:
    """What axe finds on a page, which keeps people out: rules, with the elements that break them.

    Args:
        page: the page.
        impacts: only findings that are so bad: "minor", "moderate", "serious", "critical".
    """
    axe = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
    page.evaluate(axe.read_text("utf-8"))
    found = page.evaluate("axe.run({preload: false}).then(results => results.violations)")
    return [
        (each["id"], [node["html"] for node in each["nodes"]])
        for each in found
        if not impacts or each["impact"] in impacts
    ]
