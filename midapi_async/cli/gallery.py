"""``midapi gallery``: rebuild the page that shows the results in a batch's folder."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from midapi_async.batch.folder import ERRORS, GALLERY, RESULTS
from midapi_async.batch.gallery import write_gallery

from ._common import Output
from ._errors import CommandError, usage_error
from ._terminal import out, out_json, shown

_OUTPUT = Output()


def gallery(
    folder: Annotated[Path, Parameter(name="FOLDER")], /, *, output: Output = _OUTPUT
) -> int:
    """Write gallery.html again, from the results in a batch's output folder, and print its path.

    midapi batch writes it as well. Open it in a browser: it shows every prompt with its pictures,
    and needs no network. Star the best ones and download picks.jsonl; midapi batch picks.jsonl
    --upscale --output FOLDER then upscales them.

    Args:
        folder: The output folder of midapi batch.
    """
    if not any((folder / each).is_file() for each in (RESULTS, ERRORS)):
        raise usage_error(
            f"{shown(folder)} is not the output folder of a batch: it has no results.jsonl"
        )
    try:
        write_gallery(folder)
    except OSError as error:
        raise CommandError(type(error).__name__, f"Cannot write the gallery: {error}") from error
    path = folder / GALLERY
    if output.as_json:
        out_json({"gallery": str(path)})
    else:
        out(path)
    return 0
