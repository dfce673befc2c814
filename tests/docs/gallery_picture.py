"""Make docs/images/gallery.png, the picture of a gallery: ``nox -s pictures``.

A sandbox serves the pictures, ``midapi batch`` makes the gallery, and Chromium shows it.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from midapi_async.cli import main
from midapi_async.sandbox import SandboxThread

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "gallery.png"
SIZE = (1280, 800)
LARGEST = 300_000  # bytes
STARS = (1, 6)  # which pictures have a star
ROWS = """\
animal,place,aspect_ratio,metadata.series
red fox,the snow,3:2,north
white hare,a field at dawn,3:2,north
blue whale,the deep sea,3:2,south
barn owl,a library,3:2,north
grey seal,a harbour [[sandbox: fail=nsfw]],3:2,south
"""


def make(folder: Path) -> None:
    """Make the gallery in a folder, and the picture of it.

    Raises:
        RuntimeError: the batch has failed, or the picture is too large.
    """
    (folder / "animals.csv").write_text(ROWS, "utf-8")
    os.chdir(folder)
    template = "a {{animal}} in {{place}}, watercolour"
    with SandboxThread(time_scale=60) as sandbox:
        os.environ |= {
            "MIDAPI_BASE_URL": sandbox.url,
            "MIDAPI_API_KEY": "any",
            "MIDAPI_TIME_SCALE": "60",
        }
        main(["batch", "animals.csv", "--template", template, "--output", "animals"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        page.goto((folder / "animals" / "gallery.html").as_uri())
        for index in STARS:
            page.get_by_role("button", name="Star").nth(index).click()
        # The command without the name of the temporary folder.
        shorten = "(command, folder) => { command.value = command.value.replace(folder, '') }"
        page.locator("#command").evaluate(shorten, f"{folder}/")
        page.wait_for_load_state("networkidle")
        page.screenshot(path=PICTURE)
        browser.close()
    if PICTURE.stat().st_size > LARGEST:
        raise RuntimeError(f"{PICTURE} has {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith("MIDAPI_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as new:
        make(Path(new).resolve())
    sys.stdout.write(f"{PICTURE}\n")
