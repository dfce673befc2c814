"""``midapi task``: what became of a task."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from midapi_async import MemoryJournal, MidAPIClient, MidAPIError, TaskDetails, TaskStatus

from . import _work
from ._terminal import Pace, say
from ._trouble import Trouble
from ._work import Output, run_async, tell_result, tell_success

_OUTPUT = Output()


def task(
    task_id: Annotated[str, Parameter(name="TASK")],
    /,
    *,
    wait: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    download: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    folder: Annotated[Path, Parameter(show_default=False)] = Path(),
    timeout: float | None = None,
    output: Output = _OUTPUT,
) -> int:
    """Look at a task, once or until it is finished. This costs nothing.

    Prints the URLs of its files, or, with --download, where they are now.

    Args:
        task_id: MidAPI's id of the task.
        wait: Wait until it is finished.
        download: Fetch its files.
        folder: Where the files go; the current folder if not given.
        timeout: Seconds to wait, 3600 if not given.
    """
    if download:
        _work.make_folder(folder)
    return run_async(
        _carry_out(task_id, folder if download else None, output, waits=wait, timeout=timeout),
        output,
    )


async def _carry_out(
    task_id: str, folder: Path | None, output: Output, *, waits: bool, timeout: float | None
) -> None:
    # Not the journal of a bot: to look at its task is not to take its result.
    async with MidAPIClient(journal=MemoryJournal()) as client:
        details = await _look(client, task_id, timeout, waits=waits)
        if details.status is TaskStatus.FAILED:
            await client.task(task_id).wait()  # raises what tells why
        if not details.is_final:
            _tell_unfinished(details, asked_for_files=folder is not None)
            tell_result(details, [], output)
            return
        tell_success(details)
        files = [] if folder is None else await _work.download(client, details, folder)
        tell_result(details, files, output)


async def _look(
    client: MidAPIClient, task_id: str, timeout: float | None, *, waits: bool
) -> TaskDetails:
    """The details of a task: final ones, or those of one look."""
    handle = client.task(task_id)
    try:
        details = await handle.details()
    except MidAPIError:
        if not waits:
            raise
    else:
        if details.is_final or not waits:
            return details
    return await _work.wait(handle, timeout, Pace(scale=_work.time_scale()))


def _tell_unfinished(details: TaskDetails, *, asked_for_files: bool) -> None:
    """Say that a task is not finished.

    Raises:
        Trouble: its files were asked for.
    """
    again = f"midapi task {details.task_id} --wait --download"
    if asked_for_files:
        raise Trouble(
            "NotFinished",
            f"Task {details.task_id} is not finished, so it has no files yet. Wait for it: {again}",
            facts={"task_id": details.task_id, "details": details.to_dict()},
        )
    say(f"Task {details.task_id} is generating. Wait for it: {again}")
