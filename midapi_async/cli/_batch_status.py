"""``midapi batch --status``: the progress of the batch in a folder, from its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from midapi_async import JournalError, State
from midapi_async.batch.folder import GALLERY, JOURNAL, counts_of, process_of, read_batch

from ._batch_display import left_until, speed
from ._batch_rows import shown_source
from ._common import Output, run_async
from ._errors import CommandError
from ._folder import opened_journal, place_of
from ._terminal import one_line, out, out_json, say

_LIVE = ("rate", "expected_end", "paused")  # printed only while a process runs the batch


def print_status(folder: Path, output: Output) -> int:
    """Print the progress of the batch in a folder; return the exit code.

    Raises:
        InvalidRequestError: it is not the folder of a batch.
        CommandError: a file in it cannot be read.
    """
    batch = read_batch(folder)
    try:
        facts = {**batch["progress"], **counts_of(folder, batch), "process": process_of(folder)}
    except OSError as error:
        text = f"{error.filename or folder} cannot be read: {error.strerror}"
        raise CommandError("OSError", text) from None
    return run_async(_print(folder, batch, facts, output), output)


async def _print(
    folder: Path, batch: dict[str, Any], facts: dict[str, Any], output: Output
) -> None:
    counts: Mapping[State, int] | None = {}
    if (folder / JOURNAL).is_dir():  # else it has not begun
        try:
            async with opened_journal(place_of(str(folder / JOURNAL))) as journal:
                counts = (await journal.stats()).counts
        except JournalError as error:  # a full disk, or one that is read only
            counts = None
            say(f"midapi: WARNING: it is not known what is running: {one_line(error)}")
    known = sum(facts[name] for name in ("succeeded", "failed", "unknown"))
    running = None
    if counts is not None:
        sending = counts.get(State.SENDING, 0) + counts.get(State.RESTING, 0)
        running = min(sending + unfetched(counts, facts["ended"]), max(0, batch["rows"] - known))
    is_live = facts["process"] is not None
    found = {
        "rows": batch["rows"],
        "succeeded": facts["succeeded"],
        "failed": facts["failed"],
        "unknown": facts["unknown"],
        "running": running,
        "not_submitted": None if running is None else max(0, batch["rows"] - known - running),
        **{name: facts.get(name) if is_live else None for name in _LIVE},
        "credits_spent": facts.get("credits_spent"),
        "stopped": facts.get("stopped"),
        "process": facts["process"],
        "input": batch["input"],
        "base_url": batch["base_url"],
        "started": batch["started"],
        "output": str(folder),
        "gallery": str(folder / GALLERY),
    }
    if output.as_json:
        out_json(found)
    else:
        for line in _lines(folder, found):
            out(line)


def unfetched(counts: Mapping[State, int], ended: int) -> int:
    """How many tasks were bought but have no line in the folder yet.

    Args:
        counts: intents in the journal, by state.
        ended: how many tasks in the folder have succeeded and need nothing more.
    """
    succeeded = max(0, counts.get(State.SUCCEEDED, 0) - ended)
    return counts.get(State.ACCEPTED, 0) + counts.get(State.CALLED_BACK, 0) + succeeded


def _lines(folder: Path, found: dict[str, Any]) -> Iterator[str]:
    """The same facts as lines for people."""
    process = found["process"]
    who = "not running now" if process is None else f"process {process or '?'} is running it"
    rows = f"{found['rows']} row{'s'[: found['rows'] != 1]}"
    yield f"{folder}: {rows} of {shown_source(found['input'])}, {who}"
    running = "bought, not finished" if process is None else "running"
    for name in ("succeeded", "failed", "unknown", "running", "not_submitted"):
        if found[name] is not None:
            yield f"{found[name]} {running if name == 'running' else name.replace('_', ' ')}"
    if found["expected_end"]:
        left = left_until(datetime.fromisoformat(found["expected_end"]))
        yield f"{speed(found['rate'])}, {left}"
    if found["paused"]:
        yield f"Pausing, then trying again: {found['paused']}"
    if found["stopped"]:
        yield f"Submitting nothing more: {found['stopped']}"
    if process is None and (found["running"] or found["not_submitted"]):
        yield "Run the same command again to continue."
    yield f"Gallery: {found['gallery']}"
