"""``midapi upload``: upload pictures, and print their URLs."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from midapi_async import MidAPIClient

from . import _env
from ._common import NAMESPACE, Output, run_async
from ._files import pictures_of, upload_all
from ._options import UploadService
from ._progress import Progress
from ._terminal import out, out_json

_SERVICE, _OUTPUT = UploadService(), Output()


def upload(
    files: Annotated[list[str], Parameter(name="FILE")],
    /,
    *,
    service: UploadService = _SERVICE,
    output: Output = _OUTPUT,
) -> int:
    """Upload pictures or videos to refer to, and print the URL of each. This costs nothing.

    The server keeps them for three days. If MIDAPI_JOURNAL is set, the same content is not uploaded
    again until then. midapi generate uploads files by itself.

    Args:
        files: The files, each of at most 10 MiB; an http(s) URL is copied.
    """
    return run_async(_carry_out(pictures_of(files), service, output), output)


async def _carry_out(files: list[str | Path], service: UploadService, output: Output) -> None:
    progress = Progress("The command", scale=_env.time_scale())
    async with (
        MidAPIClient(
            service.api_key(),
            base_url=service.base_url,
            proxy=service.proxy,
            upload_url=service.upload_url,
            namespace=NAMESPACE,
        ) as client,
        progress,
    ):
        urls = await upload_all(client, files, progress)
    if output.as_json:
        found = zip(files, urls, strict=True)
        each = [{"path": str(file), "url": url, "sha256": url.sha256} for file, url in found]
        out_json({"uploads": each})
        return
    for url in urls:
        out(url)
