"""What the commands share: options, one client, waiting, downloading, and what Ctrl-C leaves."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
from cyclopts import Group, Parameter

from midapi_async import DownloadError, InvalidRequestError, TaskDetails

from ._terminal import Pace, out, out_json, progress, say, seconds, shown
from ._trouble import INTERRUPTED, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from midapi_async import MidAPIClient, TaskHandle

# Where MIDAPI_JOURNAL names a folder, a bot that shares it shall not resume what was asked here.
NAMESPACE = "command line"
_log = logging.getLogger("midapi_async")


@Parameter(name="*", group=Group("Output", sort_key=30))
@attrs.frozen(kw_only=True)
class Output:
    """How a command speaks.

    Attributes:
        as_json: Print exactly one JSON object on stdout, an error too.
        verbose: Show the SDK's log on stderr.
    """

    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False
    verbose: Annotated[bool, Parameter(negative="", show_default=False)] = False


def run_async(work: Coroutine[object, object, None], output: Output) -> int:
    """Do a command's work in an event loop of its own; return the exit code for its success."""
    with _log_on_stderr(verbose=output.verbose):
        asyncio.run(work)
    return 0


@contextmanager
def _log_on_stderr(*, verbose: bool) -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("midapi: {levelname}: {message}", style="{"))
    level = _log.level
    _log.addHandler(handler)
    _log.setLevel(logging.DEBUG if verbose else logging.WARNING)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)


class _OneLine(logging.Formatter):
    """One line for each record, with the text of its exception and without a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        return shown(self.formatMessage(record) + (f" ({error})" if error else ""))


async def wait(handle: TaskHandle, timeout: float | None, pace: Pace) -> TaskDetails:
    """Wait for a task and show that; say how to come back if it is interrupted.

    Args:
        handle: of the task.
        timeout: seconds; None leaves it to the SDK.
        pace: how long such a task takes.
    """
    try:
        async with progress(handle.task_id, pace):
            return await (handle.wait() if timeout is None else handle.wait(timeout))
    except asyncio.CancelledError:
        # Not passed on: this is the main task, and Ctrl-C the only one who cancels it.
        raise left_running(handle.task_id) from None


def left_running(task_id: str) -> Trouble:
    """Ctrl-C while a task is on its way."""
    return interrupted(
        f"Task {task_id} goes on and is paid for; come back with: "
        f"midapi task {task_id} --wait --download",
        task_id=task_id,
    )


def interrupted(message: str = "", **facts: object) -> Trouble:
    """Ctrl-C, and what it leaves behind."""
    text = f"Interrupted. {message}".rstrip()
    return Trouble("Interrupted", text, facts=facts, exit_code=INTERRUPTED)


def make_folder(folder: Path) -> None:
    """Make a folder for files, if it is missing.

    Raises:
        InvalidRequestError: files cannot be put there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequestError({"folder": f"{str(folder)!r} cannot be used: {reason}"}) from None
    if not writable:
        raise InvalidRequestError({"folder": f"{str(folder)!r} is not writable"})


async def download(client: MidAPIClient, details: TaskDetails, folder: Path) -> list[Path]:
    """Fetch the files of a task; say how to try again if that fails."""
    again = f"try again with: midapi task {details.task_id} --download"
    facts: dict[str, object] = {"task_id": details.task_id, "urls": list(details.urls)}
    try:
        return await client.download(details, folder)
    except DownloadError as error:
        message = f"{error} The task itself succeeded; {again}"
        raise Trouble(type(error).__name__, message, facts={**facts, "url": error.url}) from None
    except asyncio.CancelledError:
        raise interrupted(f"The task itself succeeded; {again}", **facts) from None


def tell_result(details: TaskDetails, files: list[Path], output: Output, **more: object) -> None:
    """Write the result: a JSON object, or the files (without any: the URLs) line by line."""
    if output.as_json:
        out_json({**details.to_dict(), "files": [str(path) for path in files], **more})
        return
    for each in files or details.urls:
        out(each)


def tell_success(details: TaskDetails) -> None:
    """Say that a task succeeded, and how long MidAPI worked on it."""
    took = details.duration
    after = f" after {seconds(took.total_seconds())}" if took is not None else ""
    say(f"Task {details.task_id} succeeded{after}.")


def time_scale() -> float:
    """How much faster than life the client waits; it has checked the variable."""
    return float(os.environ.get("MIDAPI_TIME_SCALE", "").strip() or 1.0)
