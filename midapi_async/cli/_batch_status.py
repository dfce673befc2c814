"""``midapi batch --status``: how far the batch in a folder is, for what its files say."""

from __future__ import annotations

from pathlib import Path

from midapi_async import State
from midapi_async.batch.folder import GALLERY, JOURNAL, count_lines, process_of, read_batch

from ._common import Output, run_async
from ._errors import CommandError
from ._folder import folder_of, opened_journal
from ._terminal import out, out_json

_RUNNING = (State.SENDING, State.RESTING, State.ACCEPTED, State.CALLED_BACK)


def print_status(folder: Path, output: Output) -> int:
    """Print how far the batch in a folder is; return the exit code.

    Raises:
        InvalidRequestError: it is not the folder of a batch.
        CommandError: a file in it cannot be read.
    """
    batch = read_batch(folder)
    try:
        lines, process = count_lines(folder), process_of(folder)
    except OSError as error:
        text = f"{error.filename or folder} cannot be read: {error.strerror}"
        raise CommandError("OSError", text) from None
    return run_async(_print(folder, batch, lines, process, output), output)


async def _print(
    folder: Path,
    batch: dict[str, object],
    lines: dict[str, int],
    process: int | None,
    output: Output,
) -> None:
    counts: dict[State, int] = {}
    if (folder / JOURNAL).is_dir():  # else it has not begun
        async with opened_journal(folder_of(folder / JOURNAL)) as journal:
            counts = {**(await journal.stats()).counts}
    facts = facts_of(folder, batch, lines, counts, process)
    if output.as_json:
        out_json(facts)
        return
    who = f"process {process}" if process else "another process"
    state = "not running now" if process is None else f"{who} is running it"
    out(f"{folder}: {batch['rows']} rows of {batch['input']}, {state}")
    for name in ("succeeded", "failed", "unknown", "running", "not_submitted"):
        out(f"{facts[name]} {name.replace('_', ' ')}")
    out(f"Look at it: {facts['gallery']}")


def facts_of(
    folder: Path,
    batch: dict[str, object],
    lines: dict[str, int],
    counts: dict[State, int],
    process: int | None,
) -> dict[str, object]:
    """The figures, for JSON. The journal knows what is bought, the lines what has ended."""
    succeeded, unknown = lines["succeeded"], counts.get(State.UNKNOWN, 0)
    failed = sum(lines.values()) - succeeded - lines.get("unknown", 0)
    fetched = succeeded + lines.get("not_downloaded", 0)
    running = sum(counts.get(each, 0) for each in _RUNNING)
    running += max(0, counts.get(State.SUCCEEDED, 0) - fetched)  # being downloaded
    rows = batch["rows"]
    left = rows - succeeded - failed - unknown - running if isinstance(rows, int) else 0
    return {
        "rows": rows,
        "succeeded": succeeded,
        "failed": failed,
        "unknown": unknown,
        "running": running,
        "not_submitted": max(0, left),
        "process": process,
        "input": batch.get("input"),
        "base_url": batch.get("base_url"),
        "started": batch.get("started"),
        "output": str(folder),
        "gallery": str(folder / GALLERY),
    }
