"""Files as arguments: pictures to upload, and downloaded files that name their task."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import attrs

from midapi_async import (
    ImageToImage,
    InvalidRequestError,
    MidAPIClient,
    MidAPIError,
    Request,
    ResultFile,
    UploadedURL,
)
from midapi_async.files.upload import file_problem
from midapi_async.requests import paths_of, task_id_problem

from ._errors import command_error, usage_error
from ._interrupt import interrupted
from ._options import is_stdin
from ._progress import Progress

# ─── pictures to upload ──────────────────────────────────────────────────────────────────────────


def pictures_of(arguments: Sequence[str]) -> list[str | Path]:
    """The pictures that arguments name: an http(s) URL stays one, anything else is a file.

    Raises:
        InvalidRequestError: naming each file that cannot be uploaded. Nothing was sent.
    """
    found = [_picture(each) for each in arguments]
    hint = "; give a file, or a URL that begins with https:// or http://"
    problems = [file_problem(each, hint) for each in found if isinstance(each, Path)]
    if text := "; ".join(each for each in problems if each):
        raise InvalidRequestError({"picture": text})
    return found


def _picture(argument: str) -> str | Path:
    is_url = argument.casefold().startswith(("http://", "https://"))
    return argument if is_url else Path("-" if is_stdin(argument) else argument)


async def upload_pictures(
    client: MidAPIClient, request: Request, key: str | None, progress: Progress
) -> Request:
    """The request with its files uploaded.

    With a key that was used before, it keeps the files: the client compares their content with what
    was bought, and needs no upload for that.

    Args:
        client: the open client.
        request: what may have files.
        key: the user's own name for it, or None.
        progress: shows how far the uploads are.

    Raises:
        CommandError: an upload failed, or was interrupted. Nothing was bought.
    """
    paths = paths_of(request)
    if not paths:
        return request
    try:
        if key is not None and await _is_used(client, key):
            return request
        uploaded = await upload_all(client, list(paths.values()), progress)
    except asyncio.CancelledError:
        # Not re-raised: this runs in the main task, which only Ctrl-C cancels.
        raise interrupted("Nothing was bought.") from None
    return with_files(request, dict(zip(paths, uploaded, strict=True)))


async def _is_used(client: MidAPIClient, key: str) -> bool:
    try:
        return await client.find(key) is not None
    except MidAPIError:
        return True  # `generate` raises it again, or says that the key belongs to another request


def with_files(request: Request, urls: dict[int, UploadedURL]) -> Request:
    """The request with these URLs in place of its files, by their places in its `file_urls`."""
    if not urls:
        return request
    has_files = cast("ImageToImage", request)  # or another kind that has them
    changed = [urls.get(index, each) for index, each in enumerate(has_files.file_urls)]
    return attrs.evolve(has_files, file_urls=changed)


async def upload_all(
    client: MidAPIClient, sources: Sequence[str | Path], progress: Progress
) -> list[UploadedURL]:
    """Upload files, several at a time; the URL of each, in their order.

    Raises:
        CommandError: an upload failed; it names the file.
    """
    files = "1 file" if len(sources) == 1 else f"{len(sources)} files"
    report = progress.transfers(f"waits for the upload of {files}", len(sources))

    async def upload(source: str | Path) -> UploadedURL:
        try:
            return await client.upload(source, on_progress=report)
        except InvalidRequestError as error:
            if "source" not in error.problems:
                raise  # not about this file, as without an upload URL
            raise InvalidRequestError({"picture": error.problems["source"]}) from None
        except MidAPIError as error:
            ended = command_error(error)
            ended.message = f"{source} was not uploaded: {ended.message}"
            ended.facts["file"] = str(source)
            raise ended from None

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(upload(each)) for each in sources]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [each.result() for each in tasks]


# ─── from a file to its task ─────────────────────────────────────────────────────────────────────


def is_file(argument: str) -> bool:
    """Whether there is a file with this name."""
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def task_id_of(argument: str) -> str:
    """The task id that an argument is, or that of the downloaded file that it names.

    What may be a task id is one, unless there is a file with this name. Anything else, such as a
    name with a dot or a slash, is a file; it need not be there if its name tells the task.

    Raises:
        InvalidRequestError: it is no task id, and no file that tells its task.
    """
    if task_id_problem(argument) is None and not is_file(argument):
        return argument
    return _result_of(argument).task_id


def picture_of(argument: str, index: int | None) -> ResultFile:
    """The task and the index of one of its pictures.

    Args:
        argument: with an index a task id, without one a downloaded picture.
        index: the index, or None.

    Raises:
        CommandError: the index is missing, or one too many.
        InvalidRequestError: the picture does not tell its task.
    """
    is_task_id = task_id_problem(argument) is None
    if index is not None:
        if not is_task_id and is_file(argument):
            raise usage_error(f"{argument!r} is a file, which tells its INDEX itself: leave it out")
        return ResultFile(argument, index)  # the request says what is wrong with them
    if is_task_id and not is_file(argument):
        raise usage_error(
            f"INDEX is missing: which picture of task {argument}, 0 to 3. Or give a downloaded "
            "picture instead of both"
        )
    return _result_of(argument)


def _result_of(argument: str) -> ResultFile:
    try:
        return MidAPIClient.task_of(argument)
    except InvalidRequestError:
        if os.path.lexists(argument):
            raise
    problem = f"{task_id_problem(argument)}; and there is no such file"
    raise InvalidRequestError({"task_id": problem})
