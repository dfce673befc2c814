"""``midapi task``: the state and the files of one task."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from midapi_async import (
    MemoryJournal,
    MidAPIClient,
    MidAPIError,
    TaskDetails,
    TaskHandle,
    TaskStatus,
)
from midapi_async.files.folders import make_folder

from . import _common, _env
from ._common import Output, print_result, run_async, say_success
from ._errors import CommandError
from ._files import task_id_of
from ._options import Naming, Service
from ._progress import Progress
from ._receiving import receiving
from ._terminal import say

_NAMING, _SERVICE, _OUTPUT = Naming(), Service(), Output()


def task(
    task: Annotated[str, Parameter(name="TASK")],
    /,
    *,
    wait: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    download: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    folder: Annotated[Path, Parameter(show_default=False)] = Path(),
    timeout: float | None = None,
    naming: Naming = _NAMING,
    service: Service = _SERVICE,
    output: Output = _OUTPUT,
) -> int:
    """Look at a task, once or until it is finished. This costs nothing.

    Prints the URLs of its files, or with --download the paths of the downloaded files.

    Args:
        task: MidAPI's id of the task, or one of its downloaded files: its name says the task, or
            else the JSON file beside it that --sidecar writes. What could be an id is a file only
            if a file of this name is there.
        wait: Wait until it is finished, instead of looking once.
        download: Download its files, instead of printing their URLs.
        folder: Where to put the files; the current folder if not given.
        timeout: Seconds to wait with --wait; 3600 if not given. The task goes on after that.
    """
    if download:
        make_folder(folder)
    task_id, target = task_id_of(task), folder if download else None
    naming.check()
    looking = _carry_out(task_id, target, naming, service, output, waits=wait, timeout=timeout)
    return run_async(looking, output)


async def _carry_out(
    task_id: str,
    folder: Path | None,
    naming: Naming,
    service: Service,
    output: Output,
    *,
    waits: bool,
    timeout: float | None,
) -> None:
    progress = Progress(f"Task {task_id}", scale=_env.time_scale())
    async with AsyncExitStack() as exits:
        if waits and _env.public_url() is not None and _env.journal() is not None:
            # "manual": this must not mark the result as taken from a bot that shares the journal.
            opening = receiving(service, progress.take, ack="manual")
            client, _ = await exits.enter_async_context(opening)
        else:  # without a journal, a receiver knows no token
            client = await exits.enter_async_context(
                MidAPIClient(
                    service.api_key(),
                    base_url=service.base_url,
                    proxy=service.proxy,
                    journal=MemoryJournal(),
                    on_event=progress.take,
                )
            )
        handle = client.task(task_id)
        async with progress:
            details = await _look(handle, timeout, waits=waits)
        if details.status is TaskStatus.FAILED:
            await handle.wait()  # raises the error that says why, without another look
        if not details.is_final:
            _say_unfinished(details, asked_for_files=folder is not None)
            print_result(details, [], output)
            return
        say_success(details)
        files = []
        if folder is not None:
            files = await _common.download(client, details, folder, progress, naming)
        print_result(details, files, output)


async def _look(handle: TaskHandle, timeout: float | None, *, waits: bool) -> TaskDetails:
    """The details of a task: final ones with `waits`, else those of one look."""
    try:
        details = await handle.details()
    except MidAPIError:
        if not waits:
            raise
    else:
        if details.is_final or not waits:
            return details
    return await _common.wait(handle, timeout)


def _say_unfinished(details: TaskDetails, *, asked_for_files: bool) -> None:
    """Say that a task is not finished.

    Raises:
        CommandError: its files were asked for.
    """
    again = f"midapi task {details.task_id} --wait --download"
    if asked_for_files:
        raise CommandError(
            "NotFinished",
            f"Task {details.task_id} is not finished, so it has no files yet. Wait for it: {again}",
            facts={"task_id": details.task_id, "details": details.to_dict()},
        )
    say(f"Task {details.task_id} is generating. Wait for it: {again}")
