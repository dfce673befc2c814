"""The gallery in headless Chromium, opened as a file and without a network.

Outside CI they are skipped where Chromium or Playwright is missing; ``.ci/run`` installs both.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from midapi_async import Upscale, request_to_json
from midapi_async.batch.gallery import write_gallery
from tests.batch.folders import errors, results, row
from tests.support.browser import DESKTOP, PHONE, browser, found_by_axe, watched_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

__all__ = ["browser"]

pytestmark = [pytest.mark.slow, pytest.mark.one_python]

COLOURS = ((180, 60, 40), (40, 120, 90), (60, 80, 180), (200, 170, 60))
# A picture is where it belongs if it is there to a pixel.
PIXEL = 1.0


Open = Callable[..., "Page"]


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Open]:
    """Opens a folder's gallery; at the end of the test no page may have reported anything."""
    with watched_pages(browser) as open_url:
        yield lambda folder, *args, **options: open_url(
            (folder / "gallery.html").as_uri(), *args, **options
        )


def draw(folder: Path, count: int = len(COLOURS)) -> list[str]:
    """Make small pictures; their paths in the folder."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    names = [f"pictures/p_{n}.png" for n in range(count)]
    for n, name in enumerate(names):
        Image.new("RGB", (32, 32), COLOURS[n % len(COLOURS)]).save(folder / name)
    return names


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prompts: four succeeded, one failed, one is unknown; one picture was upscaled."""
    folder = tmp_path_factory.mktemp("six prompts")
    files = draw(folder)
    prompts = [
        "a red fox",
        "dunes at dusk",
        "a tea house",
        "<script>document.title='owned'</script>",
    ]
    rows = [row(prompt, n, files=files, metadata={"shot": f"s{n}"}) for n, prompt in
            enumerate(prompts)]  # fmt: skip
    upscaled = request_to_json(Upscale("task0000", 1))
    results(
        folder,
        *rows,
        row(None, 0, "up", kind="Upscale", request=upscaled, files=files[:1], urls=[]),
    )
    refused = {"type": "TaskFailed", "code": 400, "message": "the prompt was refused"}
    lost = {"type": "SubmissionUnknown", "message": "no answer"}
    errors(
        folder,
        row("a bad word", 4, state="failed", error=refused),
        row("a lost answer", 5, state="unknown", error=lost, task_id=None),
    )
    write_gallery(folder)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 prompts with 20,000 pictures, of five shapes."""
    folder = tmp_path_factory.mktemp("large")
    write_large(folder, range(5000))
    return folder


def write_large(folder: Path, numbers: range) -> None:
    files = draw(folder)
    shapes = ["", " --ar 16:9", " --ar 2:3", " --ar 1:2", " in a long prompt" * 20]
    results(folder, *(row(f"number {n}{shapes[n % 5]}", n, files=files) for n in numbers))
    write_gallery(folder)


def tile(page: "Page", label: str) -> "Locator":
    """The link of one picture, by its text for screen readers."""
    return page.get_by_role("link", name=label, exact=True)


def visible_prompts(page: "Page") -> list[str]:
    return page.locator("main h2:visible").all_text_contents()


def wait_until(page: "Page", expression: str) -> None:
    """Wait until a JavaScript expression is true.

    Playwright's own ``wait_for_function`` needs `eval`, which the page's policy forbids.
    """
    deadline = time.monotonic() + 10
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def focused(page: "Page") -> str:
    """The name of what has the focus."""
    return str(
        page.evaluate(
            "(e => e.ariaLabel || e.querySelector?.('img')?.alt || e.id || e.textContent)"
            "(document.activeElement)"
        )
    )


def test_pictures_are_shown_from_a_file_without_a_network(open_page: Open, small: Path) -> None:
    """Each loads by its relative path, with the prompt and its number as its text."""
    page = open_page(small)
    wait_until(page, "[...document.images].filter(i => i.naturalWidth === 32).length === 17")
    assert page.title() == f"{small.name} – gallery"
    assert page.locator("h1").text_content() == small.name
    alts = page.evaluate("[...document.images].slice(0, 5).map(image => image.alt)")
    assert alts == [*(f"a red fox, picture {n} of 4" for n in range(1, 5)), "Upscaled: a red fox"]
    assert "the prompt was refused" in (page.locator(".bad.failed").text_content() or "")
    assert "no answer" in (page.locator(".bad.unknown").text_content() or "")


def test_the_filter_takes_text_and_state(open_page: Open, small: Path) -> None:
    """It says what is left, and outlives a reload."""
    page = open_page(small)
    status = page.get_by_role("status")
    assert status.text_content() == "7 rows, 17 pictures"  # as the button says, "All 7"
    page.get_by_role("searchbox").fill("DUSK s1")
    assert visible_prompts(page) == ["dunes at dusk"]
    assert status.text_content() == "1 of 7 rows, 4 pictures"
    for text, prompts in (
        ("task0002", ["a tea house"]),
        ("batch/4", ["a bad word"]),
        ("refused", ["a bad word"]),
        ("nothing at all", []),
    ):
        page.get_by_role("searchbox").fill(text)
        assert visible_prompts(page) == prompts
    assert page.get_by_text("Nothing fits this filter.").is_visible()
    page.get_by_role("searchbox").fill("a ")
    page.get_by_role("button", name="Unknown 1").click()
    assert visible_prompts(page) == ["a lost answer"]
    page.reload()
    assert visible_prompts(page) == ["a lost answer"]
    assert page.get_by_role("searchbox").input_value() == "a "
    assert page.get_by_role("button", name="Unknown 1").get_attribute("aria-pressed") == "true"
    page.get_by_role("searchbox").press("Escape")
    page.get_by_role("button", name="All 7").click()
    assert len(visible_prompts(page)) == 6


@pytest.mark.parametrize("width", [PHONE[0], 900])
@pytest.mark.parametrize("prompt", ["a red fox", "a red fox in the snow, " * 20])
def test_a_narrow_window_begins_with_the_first_prompt(
    open_page: Open, tmp_path: Path, prompt: str, width: int
) -> None:
    """It is neither far below the bar nor under it, with one line or two, also after a filter."""
    results(tmp_path, row(prompt, 0, files=draw(tmp_path)), row("dunes " * 50, 1, files=[]))
    write_gallery(tmp_path)
    page = open_page(tmp_path, (width, 800))
    gap = """
        [...document.querySelectorAll(".group h2")].find((each) => each.offsetHeight)
            .getBoundingClientRect().top
        - document.querySelector(".bar").getBoundingClientRect().bottom
    """
    assert 0 <= page.evaluate(gap) < 32
    page.get_by_role("searchbox").fill("dunes")
    assert 0 <= page.evaluate(gap) < 32


def test_everything_is_reached_by_keyboard(open_page: Open, small: Path) -> None:
    """Tab to the pictures, arrows between them, a large view, and back to where it was."""
    page = open_page(small)
    keys = page.keyboard

    def press(*names: str) -> str:
        for name in names:
            keys.press(name)
        return focused(page)

    assert press("Tab") == "skip"
    assert press("Enter") == "a red fox, picture 1 of 4"
    assert press("ArrowRight", "ArrowRight") == "a red fox, picture 3 of 4"
    assert press("ArrowDown") == "Upscaled: a red fox"
    assert press("ArrowDown") == "dunes at dusk, picture 1 of 4"
    assert press("ArrowRight", "ArrowUp", "ArrowUp") == "a red fox, picture 1 of 4"
    assert press("ArrowLeft") == "a red fox, picture 1 of 4"
    assert page.locator("main [tabindex='0']").count() == 1

    press("ArrowRight", "Enter")
    view = page.get_by_role("dialog", name="a red fox")
    assert view.locator("img").get_attribute("alt") == "a red fox, picture 2 of 4"
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    press("ArrowRight")
    assert view.locator("img").get_attribute("alt") == "a red fox, picture 3 of 4"
    assert press("Escape") == "a red fox, picture 3 of 4"
    assert not view.is_visible()

    assert press("/") == "filter"
    keys.type("tea")
    assert press("Enter") == "a tea house, picture 1 of 4"
    press("?")
    assert page.get_by_role("dialog", name="Help").is_visible()
    assert press("Escape") == "a tea house, picture 1 of 4"
    assert press("Shift+Tab") == "Help and keys"
    for _ in range(20):  # no trap: round and round
        press("Tab")


def test_the_large_view_shows_everything(open_page: Open, small: Path) -> None:
    """Prompt, settings, ids, the file, what it was made from and what was made of it."""
    page = open_page(small)
    tile(page, "a red fox, picture 2 of 4").click()
    view = page.get_by_role("dialog")
    text = view.inner_text()
    for part in ("a red fox", "task0000", "batch/0", "s0", "pictures/p_1.png", "Picture 2 of 4"):
        assert part in text
    url = view.get_by_role("link", name="Open the file").evaluate("link => link.href")
    assert url == (small / "pictures" / "p_1.png").as_uri()
    view.get_by_role("button", name="task-up").click()
    view.get_by_text("Upscaled").first.wait_for()
    view.get_by_role("button", name="picture 2 of task task0000").click()
    assert "Picture 2 of 4" in view.inner_text()
    copy = view.get_by_role("button", name="Copy the task id")
    copy.click()
    wait_until(
        page, "document.querySelector('#view dd button[aria-label]').textContent === 'Copied'"
    )
    view.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Failed 400: the prompt was refused").click()
    assert "400: the prompt was refused" in page.get_by_role("dialog").inner_text()


def test_stars_are_kept_and_exported(open_page: Open, small: Path, tmp_path: Path) -> None:
    """By mouse, by ``s``, by the space bar, and in the large view; for this folder only."""
    page = open_page(small)
    assert page.get_by_role("contentinfo").is_hidden()
    tile(page, "a red fox, picture 2 of 4").hover()
    page.get_by_role("button", name="Star: a red fox, picture 2 of 4").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("s")
    tile(page, "dunes at dusk, picture 1 of 4").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("s")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    page.reload()
    assert page.get_by_role("contentinfo").get_by_text("4 starred").is_visible()
    assert page.locator(".star[aria-pressed=true]").count() == 4
    assert exported(page) == [
        pick("a red fox", 0, 1), pick("a red fox", 0, 2),
        pick("dunes at dusk", 1, 0), pick("dunes at dusk", 1, 1),
    ]  # fmt: skip
    command = page.locator("#command").input_value()
    assert command == f"midapi batch picks.jsonl --upscale --output '{small}'"

    page.get_by_role("button", name="Starred 4").click()
    assert page.locator("main a.open").count() == 4
    # What loses its star stays until the filter changes: a slip can be undone.
    tile(page, "a red fox, picture 2 of 4").focus()
    page.keyboard.press("s")
    assert page.locator("main a.open").count() == 4
    assert exported(page)[0] == pick("a red fox", 0, 2)

    results(tmp_path, row("a red fox", 0, files=draw(tmp_path)))
    write_gallery(tmp_path)
    page.goto((tmp_path / "gallery.html").as_uri())
    assert page.locator("main a.open").count() == 4
    assert page.locator(".star[aria-pressed=true]").count() == 0
    picks = tmp_path / "picks.jsonl"
    picks.write_text(json.dumps({"task_id": "task0000", "index": 3}) + "\nnot JSON\n{}\n")
    page.get_by_role("button", name="Help").click()
    page.get_by_label("Add the stars of a picks.jsonl").set_input_files(picks)
    wait_until(page, "document.querySelectorAll('.star[aria-pressed=true]').length === 1")
    page.keyboard.press("Escape")
    assert exported(page)[0]["index"] == 3


def pick(prompt: str, number: int, index: int) -> dict[str, object]:
    return {
        "task_id": f"task000{number}",
        "index": index,
        "file": f"pictures/p_{index}.png",
        "prompt": prompt,
        "key": f"batch/{number}",
    }


def exported(page: "Page") -> list[dict[str, Any]]:
    """What the download holds."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download picks.jsonl").click()
    assert download.value.suggested_filename == "picks.jsonl"
    return [json.loads(line) for line in download.value.path().read_text("utf-8").splitlines()]


def test_stars_work_where_nothing_can_be_stored(open_page: Open, small: Path) -> None:
    """The page says that they end with it."""
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no') }})"
    page = open_page(small, init=refuse)
    assert page.get_by_text("This browser does not keep the stars").is_visible()
    tile(page, "a red fox, picture 1 of 4").focus()
    page.keyboard.press("s")
    assert exported(page) == [pick("a red fox", 0, 0)]


def test_a_prompt_is_never_a_script(open_page: Open, tmp_path: Path) -> None:
    """It is shown as text. Even a script that were in the page would not run, nor fetch."""
    name = "pictures/a 'b' #1 100%?.png"
    draw(tmp_path)
    (tmp_path / "pictures" / "p_0.png").rename(tmp_path / name)
    text = (
        "</script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
    )
    bad = {"type": text, "message": text}
    line = row(text, 0, metadata={text: text}, files=[name], task_id=text, urls=[], kind=text)
    results(tmp_path, line)
    errors(tmp_path, row("x" * 10_000, 1, state=text, error=bad, metadata={"<b>": "<i>"}))
    write_gallery(tmp_path)
    page = open_page(tmp_path, expected="Content Security Policy")
    wait_until(page, "document.images[0]?.naturalWidth === 32")
    assert visible_prompts(page)[0] == text
    tile(page, text).click()
    assert page.get_by_role("dialog").locator("h2").text_content() == text
    page.keyboard.press("ArrowRight")
    assert len(page.get_by_role("dialog").locator("h2").text_content() or "") == 10_000
    ran = page.evaluate(
        """async () => {
            document.body.append(Object.assign(document.createElement("script"),
                                               {textContent: "document.title = 'owned'"}));
            document.body.insertAdjacentHTML("beforeend",
                                             "<img src=data:, onerror=document.title='owned'>");
            const tries = ["https://example.com", "gallery.html"].map(url => fetch(url));
            return (await Promise.allSettled(tries)).map(each => each.status);
        }"""
    )
    assert ran == ["rejected", "rejected"]
    assert page.title() == f"{tmp_path.name} – gallery"


def test_a_file_that_is_missing_is_said(open_page: Open, tmp_path: Path) -> None:
    """Its place stays, and a result that was not downloaded has a link to MidAPI's copy."""
    line = row("a red fox", 0, files=["pictures/gone_0.png"])
    results(tmp_path, line)
    write_gallery(tmp_path)
    page = open_page(tmp_path, expected="ERR_FILE_NOT_FOUND")
    page.get_by_text("The file is missing or cannot be shown").first.wait_for()
    assert page.get_by_text("Not downloaded").count() == 3
    page.get_by_text("Not downloaded").first.click()
    link = page.get_by_role("dialog").get_by_role("link", name="Open at MidAPI")
    assert link.get_attribute("href") == "https://cdn.example/task0000/1.jpeg"


RECORD = """async () => {  // a short film of nothing, as bytes
    const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 64});
    const draw = setInterval(() => canvas.getContext("2d").fillRect(0, 0, 64, 64), 20);
    canvas.getContext("2d");
    const stream = canvas.captureStream(20);
    let bytes = [];
    while (bytes.length < 200) {  // a busy machine may have recorded no picture yet
        const recorder = new MediaRecorder(stream, {mimeType: "video/webm"});
        const data = new Promise(done => recorder.ondataavailable = event => done(event.data));
        recorder.start();
        setTimeout(() => recorder.stop(), 500);
        bytes = [...new Uint8Array(await (await data).arrayBuffer())];
    }
    clearInterval(draw);
    return bytes;
}"""


def test_videos_play_when_they_are_asked_to(open_page: Open, tmp_path: Path) -> None:
    """Muted, with controls in the large view, and never by themselves."""
    files = ["pictures/v_0.webm", "pictures/broken_1.mp4"]
    results(tmp_path, row("waves", 0, kind="ImageToVideo", files=files, urls=[]))
    write_gallery(tmp_path)
    (tmp_path / "pictures").mkdir()
    page = open_page(tmp_path, expected="ERR_FILE_NOT_FOUND")
    (tmp_path / files[0]).write_bytes(bytes(page.evaluate(RECORD)))
    page.reload()
    page.get_by_text("The file is missing or cannot be shown").wait_for()
    page.locator("main video").click()
    video = page.get_by_role("dialog").locator("video")
    state = video.evaluate("v => [v.muted, v.controls, v.autoplay, v.paused]")
    assert state == [True, True, False, True]
    video.evaluate("v => v.play()")
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    assert page.locator("video").count() == 1


PLACE = """() => {
    const bar = document.querySelector(".bar").getBoundingClientRect().bottom;
    const found = [...document.querySelectorAll("main a.open")].filter(
        a => a.getBoundingClientRect().top >= bar && a.getBoundingClientRect().top < innerHeight);
    return Object.fromEntries(found.map(a => [a.querySelector("img").alt,
                                             a.getBoundingClientRect().top]));
}"""


# Groups that are higher, or lower, with their pictures than they were without.
WRONG = """[...document.querySelectorAll("article.group")].filter(
    group => Math.abs(group.getBoundingClientRect().height - parseFloat(group.style.minHeight)) > .1
).map(group => group.textContent)"""


def settle(page: "Page") -> None:
    """Wait until what the page does after scrolling is done."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_20_000_pictures_can_be_scrolled(
    open_page: Open, large: Path, size: tuple[int, int]
) -> None:
    """Wherever one is, each picture in view moves as far as the page is scrolled, and no further.

    The page's height never changes, and few pictures are in the document at a time.
    """
    page = open_page(large, size)
    height = page.evaluate("document.documentElement.scrollHeight")
    for start in (0, height / 3, height - 8000):
        page.evaluate("y => scrollTo(0, y)", start)
        settle(page)
        for step in (700, 700, 130, 2900, -700, -700, -1800):
            before = page.evaluate(PLACE)
            assert before, "no picture is in view"
            scrolled = page.evaluate("scrollY")
            page.evaluate("y => scrollBy(0, y)", step)
            settle(page)
            moved = page.evaluate("scrollY") - scrolled
            after = page.evaluate(PLACE)
            for name in before.keys() & after.keys():
                assert abs(before[name] - after[name] - moved) < PIXEL
            if abs(step) < 500:
                assert before.keys() & after.keys()
        wait_until(
            page,
            """[...document.images].filter(i => i.getBoundingClientRect().top < innerHeight
               && i.getBoundingClientRect().bottom > 0).every(i => i.naturalWidth === 32)""",
        )
        assert page.evaluate("document.images.length") < 200
        assert page.evaluate(WRONG) == []
    assert page.evaluate("document.documentElement.scrollHeight") == height


def test_the_picture_in_view_stays(open_page: Open, tmp_path: Path) -> None:
    """When the window gets narrower, the filter is cleared, or the page was rewritten meanwhile."""
    write_large(tmp_path, range(1000, 5000))
    page = open_page(tmp_path)
    page.evaluate("scrollTo(0, 400_000)")
    wait_until(page, "history.state?.place?.id")
    before = page.evaluate(PLACE)
    write_large(tmp_path, range(5000))  # a thousand rows above it have ended
    page.reload()
    settle(page)
    after = page.evaluate(PLACE)
    assert before
    assert before.keys() == after.keys()
    assert all(abs(before[name] - after[name]) < PIXEL for name in before)
    first = next(iter(before))
    number = " ".join(first.split()[:2])

    wait_until(page, "history.state?.place?.id")
    page.set_viewport_size({"width": 700, "height": 900})
    settle(page)
    assert first in page.evaluate(PLACE)

    page.get_by_role("searchbox").fill(number)
    assert first in page.evaluate(PLACE)
    page.get_by_role("searchbox").fill("")
    settle(page)
    assert first in page.evaluate(PLACE)


def test_arrows_go_through_20_000_pictures(open_page: Open, large: Path) -> None:
    """The focus is always on a picture that is in the window, also after a jump."""
    page = open_page(large)
    page.evaluate("scrollTo(0, 900_000)")
    settle(page)
    page.get_by_role("button", name="Help").focus()
    page.keyboard.press("Tab")
    start = focused(page)
    assert start in page.evaluate(PLACE) or start.startswith("number")
    for _ in range(30):
        page.keyboard.press("ArrowDown")
    bounds = page.evaluate(
        "(r => [r.top, r.bottom, innerHeight])(document.activeElement.getBoundingClientRect())"
    )
    assert 0 < bounds[0] < bounds[1] < bounds[2]
    number = int(focused(page).split(",")[0].split()[1])
    assert number == int(start.split(",")[0].split()[1]) + 30

    page.evaluate("scrollTo(0, 0)")
    settle(page)
    page.keyboard.press("ArrowRight")
    assert focused(page).startswith(f"number {number}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(
    open_page: Open, small: Path, scheme: str, size: tuple[int, int]
) -> None:
    """On the page, with stars, in the large view, of a failure too, and in the help."""
    page = open_page(small, size, scheme=scheme)

    def check() -> None:
        assert not found_by_axe(page)

    check()
    tile(page, "a red fox, picture 1 of 4").focus()
    page.keyboard.press("s")
    check()
    page.keyboard.press("Enter")
    check()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Failed 1").click()
    page.get_by_role("button", name="Failed 400").click()
    check()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Help").click()
    check()


def test_dark_mode_has_a_dark_background(open_page: Open, small: Path) -> None:
    """The page follows the system's setting, also when that changes."""
    page = open_page(small, scheme="dark")
    get = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(get) == "rgb(20, 20, 20)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(get) == "rgb(247, 247, 245)"


@pytest.mark.parametrize("width", [320, 500, 700, 820, 1000, 1130, 1300])
def test_no_width_needs_scrolling_sideways(open_page: Open, small: Path, width: int) -> None:
    """Nor is anything of the bar cut off."""
    page = open_page(small, (width, 700))
    tile(page, "a red fox, picture 1 of 4").focus()
    page.keyboard.press("s")
    right = """Math.max(...[...document.querySelectorAll("button, input, main *")].filter(
        each => !each.closest("#states")).map(each => each.getBoundingClientRect().right))"""
    assert page.evaluate(right) <= page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_phone_shows_it_without_scrolling_sideways(open_page: Open, small: Path) -> None:
    """Two pictures in a line, and everything to touch is 44 pixels large."""
    page = open_page(small, PHONE)
    tile(page, "a red fox, picture 1 of 4").wait_for()
    page.locator(".star").first.tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    tops = page.evaluate(
        "[...document.querySelectorAll('main a.open')].map(a => a.getBoundingClientRect().top)"
    )
    assert tops[0] == tops[1] < tops[2] == tops[3]
    small_targets = """[...document.querySelectorAll("button, input, a:not(.skip)")]
        .filter(each => {
        const box = each.getBoundingClientRect();
        return box.width && (box.width < 44 || box.height < 44);
    }).map(each => each.outerHTML)"""
    assert page.evaluate(small_targets) == []
    tile(page, "a red fox, picture 1 of 4").tap()
    page.get_by_role("dialog").wait_for()
    assert page.evaluate(small_targets) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    assert page.evaluate("document.querySelector('#view').scrollWidth") <= PHONE[0]

    touches = page.context.new_cdp_session(page)  # a finger moves to the left
    for kind, x in (
        ("touchStart", 300),
        ("touchMove", 200),
        ("touchMove", 100),
        ("touchEnd", None),
    ):
        points = [] if x is None else [{"x": x, "y": 200}]
        touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.get_by_role("dialog").get_by_text("Picture 2 of 4").wait_for()
