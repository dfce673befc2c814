"""``midapi batch``: buy the rows of a file into a folder, or continue an earlier run."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import attrs
from cyclopts import Group, Parameter

from midapi_async import (
    Batch,
    BatchItem,
    BatchProgress,
    InvalidRequestError,
    JournalError,
    MidAPIError,
    SubmissionUnknown,
    TaskExpired,
    TaskNotFound,
    TaskStatus,
)
from midapi_async.batch.folder import (
    COUNTS,
    ERRORS,
    GALLERY,
    JOURNAL,
    NAME,
    PICTURES,
    RESULTS,
    BatchFolder,
    line_of,
)
from midapi_async.batch.gallery import write_gallery
from midapi_async.config import settings

from ._batch_display import BatchDisplay
from ._batch_rows import STDIN, FileOptions, Rows, read_rows
from ._batch_status import print_status, unfetched
from ._common import Output, run_async
from ._errors import FAILED, CommandError, command_error, in_commands, usage_error
from ._folder import opened_journal
from ._interrupt import interrupted, signals_as_ctrl_c
from ._options import UploadService, is_stdin
from ._receiving import receiving
from ._terminal import one_line, out_json, say, seconds
from .credits import amount

_T = TypeVar("_T")
_Flag = Annotated[bool, Parameter(negative="", show_default=False)]
_MOST_TOGETHER = 500  # items whose lines are written together
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_DISK_TIMEOUT, _RETRY_INTERVAL = 600.0, 1.0  # seconds to wait for room on a full disk
_UPDATE_INTERVAL = 5.0  # seconds between two updates of gallery.html and of batch.json
# What to do about rows that have failed, by `_remedy`.
_REMEDIES = {
    "retry": "To retry rows that were not bought, or not downloaded: run the same command again.",
    "buy again": "To buy rows again whose task failed: add --retry-failed.",
    "look again": "A task that was bought is not known to MidAPI: run the same command later.",
    "other key": "To buy a row that was dismissed, or whose key is used up: give it another key.",
}


@Parameter(name="*", group=Group("Buying", sort_key=15))
@attrs.frozen(kw_only=True)
class Buying:
    """How the rows are bought.

    Attributes:
        max_credits: The most credits that this run may spend, counted by the account's balance; no
            limit if not given. The first row runs alone, to see what one costs; if that is more
            than the limit, the run ends after it.
        running: How many rows may be under way at the same time.
        retry_failed: Also buy rows again, once each, whose task failed at MidAPI in an earlier run.
            Rows that MidAPI refused cost nothing, and are tried again without this option.
        on_unknown: What to do after a row for which it cannot be known whether MidAPI accepted it:
            report it and continue, or stop. Such a row is never bought again automatically.
        stop_after_failures: How many rows must fail, one after another, to stop; 0 for never.
    """

    max_credits: float | None = None
    running: Annotated[int, Parameter(show_default=True)] = 100
    retry_failed: _Flag = False
    on_unknown: Annotated[Literal["report", "stop"], Parameter(show_default=True)] = "report"
    stop_after_failures: Annotated[int, Parameter(show_default=True)] = 20

    def check(self) -> None:
        """Check the numbers, before anything is written.

        Raises:
            InvalidRequestError: naming each number that is out of range.
        """
        problems = {}
        if self.max_credits is not None and not self.max_credits > 0:
            problems["max-credits"] = f"must be above 0, got {self.max_credits:g}"
        if self.running < 1:
            problems["running"] = f"must be 1 or more, got {self.running}"
        if self.stop_after_failures < 0:
            problems["stop-after-failures"] = f"must be 0 or more, got {self.stop_after_failures}"
        if problems:
            raise InvalidRequestError(problems)


_FILE, _BUYING, _SERVICE, _OUTPUT = FileOptions(), Buying(), UploadService(), Output()


def batch(
    file: Annotated[str | None, Parameter(name="FILE")] = None,
    /,
    *,
    folder: Annotated[Path | None, Parameter(name="--output")] = None,
    dry_run: _Flag = False,
    status: _Flag = False,
    reading: FileOptions = _FILE,
    buying: Buying = _BUYING,
    service: UploadService = _SERVICE,
    output: Output = _OUTPUT,
) -> int:
    """Buy all rows of a file, and download their pictures into a folder. This costs credits.

    Each row is bought once. Ctrl-C, a crash or a full disk lose nothing: run the same command again
    to continue, also with more rows in the file. The folder gets the pictures, results.jsonl and
    errors.jsonl with a line for each row, metadata.jsonl, with which the datasets library loads the
    pictures, gallery.html for a browser, and the journal of what was bought.

    Exit code 0 if all rows have succeeded; 1 if any failed, is unknown or was not submitted; 2 if a
    row is not valid (nothing was bought); 130 after Ctrl-C.

    Args:
        file: CSV or JSON Lines whose columns or members are named like the options of midapi
            generate, or prompt, key, metadata.NAME, or kind (one of its commands); or plain text
            with one prompt on each line. - reads stdin.
        folder: The output folder; made if it is missing. Several files can use the same folder.
            Required unless --dry-run is given.
        dry_run: Check each row, and list those that are not valid with their line numbers. Nothing
            is sent, and no API key is needed.
        status: Only print the progress of the batch in the folder, also while another process runs
            it. Needs no FILE, no API key and no network.
    """
    if (file is None and not status) or (folder is None and not dry_run):
        missing = "FILE" if file is None and not status else "--output"
        raise usage_error(f"{missing} is missing: midapi batch FILE --output FOLDER")
    if status and folder is not None:
        return print_status(folder, output)
    buying.check()
    source = STDIN if is_stdin(str(file)) else str(file)
    rows = read_rows(source, reading)
    if dry_run or folder is None:
        _print_counts(rows, output)
        return 0
    if rows.count < len(rows):
        say(f"{rows.description}: each job costs credits.")
    origin = str(settings(service.api_key(), service.base_url).base_url.origin())
    try:
        opened = BatchFolder.open(folder, base_url=origin, rows=len(rows), source=source)
        run = _Run(rows, opened, buying, service, output)
        try:
            _check_journal(opened)
            return run_async(run.carry_out(), output, logs_unknown=True) or run.exit_code
        finally:
            opened.close()
    except OSError as error:
        raise _cannot_write(error, folder) from None


def _check_journal(folder: BatchFolder) -> None:
    """Check that a folder with results still has the journal, which knows what was bought.

    Raises:
        InvalidRequestError: it has none, as after a copy of a part of it.
    """
    has_lines = folder.succeeded or folder.failed
    if has_lines and not (folder.path / JOURNAL / "journal.sqlite").exists():
        where = f"{str(folder.path)!r} has results, but no {JOURNAL}{os.sep}journal.sqlite"
        problem = f"{where}: all rows would be bought again. Put it back, or use another folder"
        raise InvalidRequestError({"output": problem})


def _print_counts(rows: Rows, output: Output) -> None:
    """Print how many rows and jobs there are."""
    if output.as_json:
        out_json({"rows": rows.count, "jobs": len(rows)})
    say(f"Every row is valid: {rows.description}. Nothing was sent.")


@attrs.define
class _Run:
    """One run of the command.

    Attributes:
        rows: the rows to buy.
        folder: the output folder, locked.
        buying: the options of buying.
        service: which MidAPI to use.
        output: what to print.
        progress: the batch's last progress; None before the batch has begun.
        error: what has stopped the batch.
        is_interrupted: whether Ctrl-C has stopped it.
        exit_code: of the process.
    """

    rows: Rows
    folder: BatchFolder
    buying: Buying
    service: UploadService
    output: Output
    progress: BatchProgress | None = None
    error: Exception | None = None
    is_interrupted: bool = False
    exit_code: int = FAILED
    _counts: Counter[str] = attrs.field(factory=lambda: Counter(dict.fromkeys(COUNTS, 0)))
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event)
    _remedies: set[str] = attrs.field(factory=set)  # names in `_REMEDIES`
    _kept: int = 0  # rows with results in the folder that MidAPI and the journal have no longer
    _has_warned: bool = False

    async def carry_out(self) -> None:
        """Buy the rows, write a line for each, and print a summary.

        Raises:
            CommandError: it was interrupted, or an error has stopped it.
        """
        try:
            with signals_as_ctrl_c(), _quiet(verbose=self.output.verbose):
                await self._buy()
        except asyncio.CancelledError:
            # This runs in the main task, which only Ctrl-C cancels; the second one ends it at once.
            task = asyncio.current_task()
            if task is None or task.cancelling() > 1:
                raise
            self.is_interrupted = True
        except (MidAPIError, OSError) as error:
            self.error = error
        if self.progress is None:  # it has not begun
            if self.error is not None:
                raise self.error
            raise interrupted("Nothing was bought.")
        with suppress(OSError):  # a full disk; the next run does it
            await _uninterrupted(self.folder.tidy)
        if self._changed.is_set() or self._is_gallery_old():
            await self._write_gallery()
        await self._finish(self.progress)

    async def _buy(self) -> None:
        display = BatchDisplay(len(self.rows), self.rows.noun)
        journal = self.folder.path / JOURNAL
        async with receiving(self.service, display.take, journal=journal) as (client, _):
            batch = client.generate_many(
                self.rows,
                batch=NAME,
                running=self.buying.running,
                on_unknown=self.buying.on_unknown,
                stop_after_failures=self.buying.stop_after_failures or None,
                max_credits=self.buying.max_credits,
                download_to=self.folder.path / PICTURES,
                retry_failed=self.buying.retry_failed,
            )
            async with batch:
                try:
                    async with display.of(batch):
                        await self._record_all(batch)
                except asyncio.CancelledError:
                    say(
                        "Waiting for MidAPI's answers to submissions that were sent (press Ctrl-C "
                        "again to stop waiting) …"
                    )
                    raise
                finally:
                    self.progress = batch.progress

    async def _record_all(self, batch: Batch) -> None:
        """Write the line of each item as it comes, and from time to time the progress."""
        updater = asyncio.create_task(self._update_files(batch))
        try:
            is_over = False
            while not is_over:
                items, is_over = await self._next_items(batch)
                new = [each for each in items if not await self._is_kept(each)]
                self._kept += len(items) - len(new)
                lines = [self._line(each) for each in new if not self._is_known(each)]
                self._counts["succeeded"] += len(items) - len(new)
                self._counts.update(map(_outcome, new))
                self._remedies.update(_remedy(each) for each in new if _outcome(each) == "failed")
                # Also without lines: the counts have changed.
                await self._write(lines)
                if lines:
                    self._changed.set()
        finally:
            updater.cancel()
            with suppress(asyncio.CancelledError):
                await updater
            with suppress(OSError):  # a full disk
                await _uninterrupted(self.folder.note, self._progress_facts(batch.progress))
        if self.error is not None:
            raise self.error

    async def _write(self, lines: list[dict[str, object]]) -> None:
        """Write the lines of rows. On a full disk, wait for room.

        Meanwhile no items are taken from the batch, so that it soon submits nothing more. Answers
        to POSTs wait in this process until the journal, on the same disk, can be written.

        Raises:
            OSError: they cannot be written for another reason, or the disk stays full.
        """
        deadline = None
        while True:
            try:
                return await _uninterrupted(self.folder.add, lines, self._counts)
            except OSError as error:
                now = asyncio.get_running_loop().time()
                if error.errno not in _FULL or (deadline is not None and now > deadline):
                    raise
                if deadline is None:
                    deadline = now + _FULL_DISK_TIMEOUT
                    problem = f"{error.filename} cannot be written: {error.strerror}"
                    limit = seconds(_FULL_DISK_TIMEOUT)
                    say(f"midapi: WARNING: {problem}. Make room: trying again for up to {limit}.")
            await asyncio.sleep(_RETRY_INTERVAL)

    async def _next_items(self, batch: Batch) -> tuple[list[BatchItem], bool]:
        """The items that are ready, waiting for the first; and whether there are no more."""
        items: list[BatchItem] = []
        try:
            items.append(await anext(batch))
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    while len(items) < _MOST_TOGETHER:
                        items.append(await anext(batch))
        except StopAsyncIteration:
            return items, True
        except MidAPIError as error:  # it has stopped the batch; return the items first
            self.error = error
            return items, True
        return items, False

    def _progress_facts(self, progress: BatchProgress) -> dict[str, object]:
        """The progress of the run for ``batch.json``, which other processes read."""
        end = progress.expected_end
        return {
            "rate": round(progress.rate, 1),
            "expected_end": end and end.isoformat(timespec="seconds"),
            "credits_spent": progress.spent,
            "paused": progress.paused and in_commands(progress.paused),
            "stopped": progress.stopped and in_commands(progress.stopped),
        }

    async def _is_kept(self, item: BatchItem) -> bool:
        """Whether MidAPI keeps the results of a row no longer, but the folder does."""
        if not isinstance(item.error, TaskExpired):
            return False
        with suppress(OSError):
            return await _uninterrupted(self.folder.is_complete, item.key)
        return False

    def _is_known(self, item: BatchItem) -> bool:
        return item.error is None and item.key in self.folder.succeeded

    def _line(self, item: BatchItem) -> dict[str, object]:
        message = "" if item.error is None else command_error(item.error, self._journal).message
        # Only this command has an option that chooses the new key.
        message = message.replace("submit it again under a new key", "add --retry-failed")
        return line_of(item, self.rows.lines[item.index], one_line(message))

    async def _update_files(self, batch: Batch) -> None:
        while True:
            await asyncio.sleep(_UPDATE_INTERVAL)
            with suppress(OSError):  # a full disk; the next line for a row says so
                await _uninterrupted(self.folder.note, self._progress_facts(batch.progress))
            if self._changed.is_set():
                self._changed.clear()
                await self._write_gallery()

    async def _write_gallery(self) -> None:
        try:
            await _uninterrupted(write_gallery, self.folder.path)
        except Exception as error:  # noqa: BLE001 - it must not stop what is paid for
            if not self._has_warned:
                self._has_warned = True
                command = f"midapi gallery {shlex.quote(str(self.folder.path))}"
                problem = f"{GALLERY} was not written: {one_line(error)}"
                say(f"midapi: WARNING: {problem}. Try later: {command}")

    def _is_gallery_old(self) -> bool:
        """Whether the page is older than the files that it shows, or missing."""
        try:
            page = (self.folder.path / GALLERY).stat().st_mtime_ns
            names = (RESULTS, ERRORS)
            return any((self.folder.path / each).stat().st_mtime_ns > page for each in names)
        except OSError:
            return True

    # ─── the end ─────────────────────────────────────────────────────────────────────────────────

    async def _finish(self, progress: BatchProgress) -> None:
        """Print the summary.

        Raises:
            CommandError: it was interrupted, or an error has stopped it.
        """
        facts = await self._facts(progress)
        is_complete = facts["succeeded"] == len(self.rows)
        if self.is_interrupted:
            raise interrupted(self._interruption(facts), **facts)
        for line in self._summary(facts):
            say(line)
        if self.error is not None:
            ended = self._stopped_by(self.error)
            ended.facts = {**ended.facts, **facts}
            raise ended
        if self.output.as_json:
            out_json(facts)
        self.exit_code = 0 if is_complete else FAILED

    @property
    def _journal(self) -> Path:
        return self.folder.path / JOURNAL

    async def _facts(self, progress: BatchProgress) -> dict[str, object]:
        path, running = self.folder.path, 0
        if self.is_interrupted or self.error is not None:
            with suppress(JournalError):  # a full disk
                async with opened_journal(self._journal) as journal:
                    running = unfetched((await journal.stats()).counts, self.folder.ended)
        ended = progress.done + progress.failed + progress.unknown
        return {
            "rows": self.rows.count,
            "jobs": len(self.rows),
            "succeeded": progress.done + self._kept,
            "failed": progress.failed - self._kept,
            "unknown": progress.unknown,
            "running": running,
            "not_submitted": max(0, len(self.rows) - ended - running),
            "credits_spent": progress.spent,
            "stopped": progress.stopped and in_commands(progress.stopped),
            "output": str(path),
            "pictures": str(path / PICTURES),
            "results": str(path / RESULTS),
            "errors": str(path / ERRORS),
            "gallery": str(path / GALLERY),
        }

    def _interruption(self, facts: dict[str, object]) -> str:
        running = facts["running"]
        paid = f" Paid for, but not downloaded yet: {running}." if running else ""
        ended = f"{facts['succeeded']} of {self.rows.description} succeeded"
        return f"{ended}, {facts['failed']} failed.{paid} Run the same command again to continue"

    def _summary(self, facts: dict[str, object]) -> Iterator[str]:
        """The lines for people at the end: the counts, and what to do next."""
        names = ("failed", "unknown", "running", "not_submitted")
        counts = [f"{facts[name]} {name.replace('_', ' ')}" for name in names if facts[name]]
        counts = [f"{facts['succeeded']} succeeded", *counts]
        spent = facts["credits_spent"]
        paid = f" This run spent {amount(spent)} credits." if isinstance(spent, float | int) else ""
        yield f"{self.rows.description}: {', '.join(counts)}.{paid}"
        yield f"Pictures: {facts['pictures']}"
        yield f"Gallery: {facts['gallery']}"
        if facts["failed"]:
            yield f"Why rows failed: {facts['errors']}"
            remedies = dict(_REMEDIES)
            if self.buying.retry_failed:
                remedies["buy again"] = "The same command buys rows again whose task failed."
            yield from (text for name, text in remedies.items() if name in self._remedies)
        if facts["unknown"]:
            yield "Unknown rows may have been paid. Look for them on MidAPI's website, then decide:"
            yield f"  midapi journal list unknown --folder {shlex.quote(str(self._journal))}"
        if facts["running"] or facts["not_submitted"]:
            yield "Run the same command again to continue."

    def _stopped_by(self, error: Exception) -> CommandError:
        if isinstance(error, OSError) and not isinstance(error, MidAPIError):
            return _cannot_write(error, self.folder.path)
        return command_error(error, self._journal)


# Log lines, by logger, that would come for each of many rows. The display shows the same as counts:
# rows that wait to be sent again, and prompts with several jobs.
_OF_EACH_ROW = {"midapi_async": "runs several jobs", "midapi_async.submission": "is sent again in"}


@contextmanager
def _quiet(*, verbose: bool) -> Iterator[None]:
    """Hide the log lines that come for each of many rows, except with --verbose."""

    def is_shown(record: logging.LogRecord) -> bool:
        return verbose or _OF_EACH_ROW[record.name] not in record.getMessage()

    for name in _OF_EACH_ROW:
        logging.getLogger(name).addFilter(is_shown)
    try:
        yield
    finally:
        for name in _OF_EACH_ROW:
            logging.getLogger(name).removeFilter(is_shown)


def _cannot_write(error: OSError, folder: Path) -> CommandError:
    """The error for a file of the output folder that cannot be read or written."""
    where = error.filename or folder
    reason = error.strerror or error
    return CommandError(
        "OSError",
        f"{where} cannot be written: {reason}. Nothing that was bought is lost: repair this, then "
        "run the same command again to continue",
    )


def _outcome(item: BatchItem) -> str:
    """In which of the `COUNTS` a row is counted."""
    if isinstance(item.error, SubmissionUnknown):
        return "unknown"
    return "succeeded" if item.error is None else "failed"


def _remedy(item: BatchItem) -> str:
    """What helps a row that has failed: a name in `_REMEDIES`."""
    error = item.error
    if isinstance(error, TaskNotFound):
        return "look again"
    if item.details is not None and item.details.status is TaskStatus.FAILED:
        return "buy again"
    # An invalid row with an intent: it was dismissed, or the key belongs to another request.
    has_intent = isinstance(error, InvalidRequestError) and error.intent_id is not None
    return "other key" if has_intent or isinstance(error, TaskExpired) else "retry"


async def _uninterrupted(function: Callable[..., _T], *arguments: object) -> _T:
    """Call a function in a thread; if cancelled, as by Ctrl-C, wait for its end first."""
    job = asyncio.create_task(asyncio.to_thread(function, *arguments))
    try:
        await asyncio.wait({job})
    except asyncio.CancelledError:
        await asyncio.wait({job})
        job.exception()
        raise
    return job.result()
