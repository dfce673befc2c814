"""The site: it builds without a warning, lacks no public name, and looks right in a browser."""

import importlib
import os
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag, urlsplit

import attrs
import pytest

from tests.docs.blocks import REPOSITORY
from tests.support.browser import DESKTOP, PHONE, browser, found_by_axe, watched_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]

pytestmark = [pytest.mark.slow, pytest.mark.one_python]

# The modules whose `__all__` is documented.
PUBLIC = (
    *("midapi_async", "midapi_async.events", "midapi_async.testing", "midapi_async.sandbox"),
    *("midapi_async.journal", "midapi_async.journal.postgres"),
    "midapi_async.integrations.discord",
)
# Public names of modules that have no `__all__`.
FURTHER = (
    "midapi_async.journal.contract.JournalContract",
    "midapi_async.journal.contract.SharedJournalContract",
    "midapi_async.sandbox.pytest_plugin.midapi_sandbox",
)
# Its names are not exported; signatures name them.
TYPES = "reference/types.html"

WARNINGS = "warnings.txt"


def build(pages: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as ``nox -s docs`` does."""
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "docs", str(pages), str(site)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once for all processes of the tests; its warnings are in ``WARNINGS``."""
    import fcntl

    if os.environ.get("MIDAPI_TEST_BROWSER") != "required":
        pytest.importorskip("furo", reason="pip install midapi-async[docs]")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "site"
    with (shared / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / WARNINGS).exists():
            made = build(REPOSITORY / "docs", folder)
            (folder / WARNINGS).write_text(made.stderr, "utf-8")
    return folder


def pages(site: Path) -> list[Path]:
    """Every page of the site, without the files of the examples, which can be downloaded."""
    return sorted(each for each in site.rglob("*.html") if "_downloads" not in each.parts)


class References(HTMLParser):
    """What a page refers to.

    Attributes:
        assets: URLs that a browser fetches by itself.
        links: URLs that a reader may click.
        ids: the targets of links.
    """

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.assets: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attributes if value}
        if "id" in given:
            self.ids.add(given["id"])
        self.assets += [given[name] for name in ("src", "srcset", "poster") if name in given]
        if "href" in given:
            (self.links if tag == "a" else self.assets).append(given["href"])


# ─── the build ───────────────────────────────────────────────────────────────────────────────────


def test_no_warning(site: Path) -> None:
    """The pages and the docstrings are what Sphinx understands."""
    assert (site / WARNINGS).read_text("utf-8") == ""


def test_what_does_not_exist_is_an_error(site: Path, tmp_path: Path) -> None:
    """A link to a page or a heading, a name in a docstring, and a page that no menu has."""
    assert site.exists()
    (tmp_path / "orphan.md").write_text("# Orphan\n")
    (tmp_path / "index.md").write_text(
        "# Page\n\n## Part\n\n[a](#part) [b](other.md) [c](#no-such-part)\n\n"
        "```{eval-rst}\n`midapi_async.events` :py:obj:`midapi_async.NoSuchName`\n```\n"
    )
    made = build(tmp_path, tmp_path / "site")
    assert made.returncode != 0
    problems = [line.partition("WARNING: ")[2] for line in made.stderr.splitlines() if line]
    for wrong in ("other.md", "no-such-part", "midapi_async.NoSuchName", "toctree"):
        assert any(wrong in problem for problem in problems), (wrong, problems)
    assert len(problems) == 4, problems


def test_no_asset_comes_from_another_host(site: Path) -> None:
    """Fonts, scripts, style sheets and pictures are in the folder: it needs no network."""
    for page in pages(site):
        for url in References(page).assets:
            assert url.startswith("data:") or not urlsplit(url).netloc, f"{page.name}: {url}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text("utf-8")
        assert "@import" not in text, sheet
        assert not [part for part in text.split("url(")[1:] if "//" in part.partition(")")[0]
                    and not part.startswith(("data:", '"data:', "'data:"))], sheet  # fmt: skip


def test_every_link_leads_somewhere(site: Path) -> None:
    """Also those that Sphinx does not check: of its menus, of raw HTML, to files."""
    known = {page: References(page) for page in pages(site)}
    dead = []
    for page, references in known.items():
        for link in references.links:
            if urlsplit(link).scheme in ("http", "https", "mailto"):
                continue
            place, fragment = urldefrag(link)
            target = (page.parent / unquote(place)).resolve() if place else page
            ids = known[target].ids if target in known else set()
            if not target.exists() or (fragment and unquote(fragment) not in ids):
                dead.append(f"{page.relative_to(site)}: {link}")
    assert not dead


# ─── the reference ───────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Entry:
    """A name in the reference.

    Attributes:
        name: the whole of it, with its module.
        kind: as in "class".
        page: where it is.
    """

    name: str
    kind: str
    page: str

    @property
    def value(self) -> object:
        """What has this name."""
        module, _, name = self.name.rpartition(".")
        return getattr(importlib.import_module(module), name)


def entries(site: Path) -> list[Entry]:
    """The names in the reference that are not members of a class."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    found = []
    for line in zlib.decompress(packed).decode().splitlines():
        name, kind, priority, page, _ = line.split(" ", 4)
        if kind.startswith("py:") and priority != "-1":  # which is another name of the same
            found.append(Entry(name, kind.removeprefix("py:"), page.partition("#")[0]))
    names = {entry.name for entry in found}
    return [entry for entry in found if entry.name.rpartition(".")[0] not in names]


def test_every_public_name_is_in_the_reference_once(site: Path) -> None:
    """Under one of its names, if several modules export it; and nothing else is there."""
    public = {
        id(getattr(importlib.import_module(module), name)): f"{module}.{name}"
        for module in reversed(PUBLIC)
        for name in importlib.import_module(module).__all__
    }
    for name in FURTHER:
        public[id(Entry(name, "", "").value)] = name
    described = [entry for entry in entries(site) if entry.page != TYPES]
    times = Counter(id(entry.value) for entry in described)
    assert [name for key, name in public.items() if times[key] != 1] == []
    assert [entry.name for entry in described if id(entry.value) not in public] == []
    assert [entry.name for entry in entries(site) if id(entry.value) in public
            and entry.page == TYPES] == []  # fmt: skip


def test_classes_without_a_signature_are_in_the_reference(site: Path) -> None:
    """The extension lists them by name; a name that is gone would stay there."""
    from docs._extensions.reference import GIVEN, LONG

    described = {entry.name.rpartition(".")[2] for entry in entries(site)}
    assert sorted((GIVEN | LONG) - described) == []


# ─── in a browser ────────────────────────────────────────────────────────────────────────────────

Open = Callable[..., "Page"]


@pytest.fixture
def open_page(browser: "Browser", site: Path) -> Iterator[Open]:
    """Opens a page; at the end of the test none may have reported anything."""
    with watched_pages(browser) as open_url:
        yield lambda name, *args, **options: open_url((site / name).as_uri(), *args, **options)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_page_scrolls_sideways(open_page: Open, site: Path, size: tuple[int, int]) -> None:
    """Wide tables, pictures and programs scroll by themselves; no page has an error."""
    page = open_page("index.html", size)
    for each in pages(site):
        page.goto(each.as_uri())
        # Not of the page itself, where the theme hides what is too wide. Headings begin and end
        # half a rem, which is 8 pixels, outside of the text; beside the menu, programs may reach
        # into the margin of the content.
        boxes = ".content, article" if size == PHONE else ".content"
        excess = page.evaluate(
            f"[...document.querySelectorAll('{boxes}')]"
            ".map(each => each.scrollWidth - each.clientWidth)"
        )
        assert max(excess) <= 8, f"{each.relative_to(site)} is {max(excess)} pixels too wide"
        # A table becomes cards on a phone; beside the menu a line of 100 columns is seen whole.
        narrow = ".table-wrapper" if size == PHONE else "section > .highlight-python"
        cut = page.evaluate(
            f"[...document.querySelectorAll('{narrow}')]"
            ".flatMap(each => [each, ...each.querySelectorAll('pre')])"
            ".filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.innerText)"
        )
        assert not cut, f"{each.relative_to(site)} cuts {cut[0][:80]!r}"
        missing = page.evaluate(
            "[...document.images].filter(each => each.complete && !each.naturalWidth)"
            ".map(each => each.src)"
        )
        assert not missing


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_axe_finds_nothing_serious(open_page: Open, size: tuple[int, int], scheme: str) -> None:
    """On pages with text, programs, tables and signatures."""
    for name in ("index.html", "errors.html", "reference/values.html"):
        page = open_page(name, size, scheme=scheme)
        assert not found_by_axe(page, "serious", "critical"), name


def test_the_search_needs_no_server(open_page: Open) -> None:
    """A word and a public name are found in the folder, as a file in the browser."""
    for words, found in (("SubmissionUnknown", "midapi_async.SubmissionUnknown"),
                         ("epoch seconds", "Intents and journals")):  # fmt: skip
        page = open_page("search.html")
        page.goto(f"{page.url}?q={words}")
        page.locator("#search-results li a", has_text=found).first.wait_for()
