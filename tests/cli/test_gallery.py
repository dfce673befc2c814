from pathlib import Path

from tests.batch.folders import errors, results, row
from tests.cli.conftest import Midapi


def test_the_gallery_is_rebuilt_and_its_path_printed(midapi: Midapi, elsewhere: Path) -> None:
    """It needs no API key."""
    folder = elsewhere / "dunes"
    folder.mkdir()
    results(folder, row("a red fox", 0))
    ran = midapi("gallery", "dunes")
    page = Path("dunes", "gallery.html")
    assert (ran.code, ran.lines, ran.err) == (0, [str(page)], "")
    assert "a red fox" in page.read_text("utf-8")
    page.unlink()
    assert midapi("gallery", folder, "--json").json == {"gallery": str(folder / "gallery.html")}
    assert page.exists()


def test_a_batch_that_only_failed_has_a_gallery(midapi: Midapi, elsewhere: Path) -> None:
    """Its reasons are worth a look."""
    errors(elsewhere, row("a red fox", 0, state="failed", error={"message": "no"}))
    assert midapi("gallery", ".").code == 0


def test_a_folder_of_something_else_is_a_usage_error(midapi: Midapi, elsewhere: Path) -> None:
    """Nothing is written there."""
    for folder in (".", "missing"):
        ran = midapi("gallery", folder)
        assert ran.code == 2
        assert ran.error.startswith(f"{folder} is not the output folder of a batch")
    assert not [*elsewhere.iterdir()]


def test_a_page_that_cannot_be_written_is_an_error(midapi: Midapi, elsewhere: Path) -> None:
    """One line, and no traceback."""
    results(elsewhere, row("a red fox", 0))
    (elsewhere / "gallery.html").mkdir()
    ran = midapi("gallery", ".")
    assert ran.code == 1
    assert ran.error.startswith("Cannot write the gallery: ")
    assert len([*elsewhere.iterdir()]) == 2
