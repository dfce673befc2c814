"""What several commands share: output options, the log on stderr, waiting, downloading, results."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Coroutine
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
from cyclopts import Group, Parameter

from midapi_async import DownloadError, InvalidRequestError, TaskDetails

from ._errors import CommandError, command_error, in_commands
from ._interrupt import interrupted, interrupted_wait
from ._terminal import out, out_json, say, seconds, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from midapi_async import MidAPIClient, TaskHandle

    from ._options import Naming
    from ._progress import Progress

# Keeps what is bought here apart from a bot that shares the folder of MIDAPI_JOURNAL: its
# `resume()` must not return the tasks of the command line.
NAMESPACE = "command line"
_log = logging.getLogger("midapi_async")


@Parameter(name="*", group=Group("Output", sort_key=30))
@attrs.frozen(kw_only=True)
class Output:
    """What a command prints.

    Attributes:
        as_json: Print the result, or the error, as exactly one JSON object on stdout.
        verbose: Print each step on stderr, for finding out what goes wrong.
    """

    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False
    verbose: Annotated[bool, Parameter(negative="", show_default=False)] = False


def run_async(
    work: Coroutine[object, object, None], output: Output, *, logs_unknown: bool = False
) -> int:
    """Run a command's coroutine in an event loop; return the exit code of success.

    Args:
        work: the command.
        output: what to print.
        logs_unknown: whether unknown submissions are log lines, because no error is printed for
            each of them.
    """
    with _log_on_stderr(verbose=output.verbose, logs_unknown=logs_unknown):
        asyncio.run(work)
    return 0


def _is_of_unknown(record: logging.LogRecord) -> bool:
    return str(record.msg).startswith("it cannot be known whether intent")


@contextmanager
def _log_on_stderr(*, verbose: bool, logs_unknown: bool) -> Iterator[None]:
    handler = _StderrHandler()
    handler.addFilter(lambda each: verbose or logs_unknown or not _is_of_unknown(each))
    handler.setFormatter(_OneLineFormatter("midapi: {levelname}: {message}", style="{"))
    level = _log.level
    _log.addHandler(handler)
    _log.setLevel(logging.DEBUG if verbose else logging.WARNING)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)


class _StderrHandler(logging.Handler):
    """Writes to what is stderr at that moment, which a progress bar replaces by its own."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


class _OneLineFormatter(logging.Formatter):
    """One line for each record, with the text of its exception and without a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        return shown(in_commands(self.formatMessage(record) + (f" ({error})" if error else "")))


async def wait(handle: TaskHandle, timeout: float | None) -> TaskDetails:
    """Wait for a task.

    Args:
        handle: of the task.
        timeout: seconds; None for the SDK's own.

    Raises:
        CommandError: interrupted; the text says how to come back.
    """
    try:
        return await (handle.wait() if timeout is None else handle.wait(timeout))
    except asyncio.CancelledError:
        # Not re-raised: this runs in the main task, which only Ctrl-C cancels.
        raise interrupted_wait(handle.task_id) from None


def into(folder: Path) -> str:
    """The option that names a folder in a command to type; nothing for the current folder."""
    return "" if folder == Path() else f" --folder {shlex.quote(str(folder))}"


async def download(
    client: MidAPIClient,
    details: TaskDetails,
    folder: Path,
    progress: Progress,
    naming: Naming | None = None,
) -> list[Path]:
    """Download the files of a task.

    Args:
        client: the open client.
        details: of the task.
        folder: where to put the files.
        progress: shows how far the files are.
        naming: how to name them; None for the default.

    Raises:
        CommandError: failed or interrupted; the text says how to try again.
    """
    again = f"try again with: midapi task {details.task_id} --download{into(folder)}"
    facts: dict[str, object] = {"task_id": details.task_id, "urls": list(details.urls)}
    report = progress.transfers("is being downloaded", len(details.urls))
    named = {} if naming is None else attrs.asdict(naming)
    try:
        async with progress:
            return await client.download(details, folder, on_progress=report, **named)
    except DownloadError as error:
        message = f"{error} The task itself succeeded; {again}"
        facts |= {"url": error.url, "status": error.status}
        facts["files"] = [str(each) for each in error.files]
        raise CommandError(type(error).__name__, message, facts=facts) from None
    except InvalidRequestError as error:
        # No usage error, whose exit code would say that nothing was sent.
        message = f"{command_error(error).message}. The task itself succeeded; {again}"
        raise CommandError(type(error).__name__, message, facts=facts) from None
    except asyncio.CancelledError:
        raise interrupted(f"The task itself succeeded; {again}", **facts) from None


def print_result(details: TaskDetails, files: list[Path], output: Output, **more: object) -> None:
    """Print the result: one JSON object, or a line for each file, or for each URL if no files."""
    if output.as_json:
        out_json({**details.to_dict(), "files": [str(path) for path in files], **more})
        return
    for each in files or details.urls:
        out(each)


def say_success(details: TaskDetails) -> None:
    """Say that a task succeeded, and how long MidAPI worked on it."""
    took = details.duration
    after = f" after {seconds(took.total_seconds())}" if took is not None else ""
    say(f"Task {details.task_id} succeeded{after}.")
