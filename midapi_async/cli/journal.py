"""``midapi journal``: show what is in a journal, and act on unknown submissions.

All of this also works while a bot has the journal open.
"""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

import json
import time
from collections import deque
from typing import Annotated

import attrs
from cyclopts import App, Parameter

from midapi_async import Intent, InvalidRequestError, JournalError, State

from ._backup import backup
from ._common import Output, run_async
from ._env import Place
from ._errors import FAILED
from ._folder import (
    ID_HELP,
    Folder,
    facts_of,
    find_rows,
    opened_journal,
    option_of,
    place_of,
    rows_of,
    shown_place,
    time_of,
)
from ._listing import listing, terminal_width
from ._resume import resume
from ._terminal import out, out_json, say
from ._unknown import adopt, dismiss, resubmit, settle

journal = App(
    name="journal",
    help="Show and change what is in a journal, also while a bot has it open.",
    sort_key=8,
)
journal.command(backup)
journal.command(resume)

_OUTPUT = Output()
_DAY = 86_400.0


def _spelled(name: str) -> str:
    """A state's name as it is printed; cyclopts itself would ask for "called-back"."""
    return name.lower().replace("-", "_")


@journal.command(name="list", usage="Usage: midapi journal list [OPTIONS] [STATE ...]")
def list_intents(
    *states: Annotated[State, Parameter(name="STATE", name_transform=_spelled)],
    limit: int | None = None,
    folder: Folder = None,
    output: Output = _OUTPUT,
) -> int:
    """List the intents, oldest first.

    TAKEN says whether a program has taken the result. On a terminal, ids, keys and prompts are
    cut where they do not fit, and an unknown submission has its prompt on a line of its own. In a
    file or a pipe nothing is cut, and each intent is on one line.

    Args:
        states: Only intents in these states; all if not given.
        limit: Only this many, the newest ones, still oldest first; all if not given.
    """
    if limit is not None and limit < 1:
        raise InvalidRequestError({"limit": f"must be 1 or more, got {limit}"})
    return run_async(_list(folder, states, limit, output), output)


async def _list(
    folder: str | None, states: tuple[State, ...], limit: int | None, output: Output
) -> None:
    count, rows = 0, deque[Intent](maxlen=limit)
    async with opened_journal(place_of(folder)) as opened:
        async for row in rows_of(opened, *states):
            count += 1
            rows.append(row)
    if output.as_json:
        out_json({"intents": [facts_of(row) for row in rows]})
        return
    if not rows:
        say("No such intents." if states else "The journal is empty.")
        return
    for line in listing(rows, terminal_width()):
        out(line)
    if count > len(rows):
        say(f"Older ones that are not shown: {count - len(rows)}")
    if any(row.state is State.UNKNOWN for row in rows):
        say("Unknown ones may have been paid. Look for them on MidAPI's website, then:")
        for decision in ("adopt INTENT TASK", "resubmit INTENT", "dismiss INTENT"):
            say(f"  midapi journal {decision}{option_of(folder)}")


@journal.command
def show(
    intent_id: Annotated[str, Parameter(name="INTENT", help=ID_HELP)],
    /,
    *,
    folder: Folder = None,
    output: Output = _OUTPUT,
) -> int:
    """Show everything that is known about one intent."""
    return run_async(_show(place_of(folder), intent_id, output), output)


async def _show(place: Place, intent_id: str, output: Output) -> None:
    async with opened_journal(place) as opened:
        [row] = await find_rows(opened, [intent_id])
    facts = facts_of(row)
    if output.as_json:
        out_json(facts)
        return
    for name, value in facts.items():
        if value not in (None, [], {}):
            is_text = isinstance(value, str)
            out(f"{name}: {value if is_text else json.dumps(value, ensure_ascii=False)}")


journal.command(settle)
journal.command(adopt, usage="Usage: midapi journal adopt [OPTIONS] INTENT TASK [INTENT TASK ...]")
journal.command(resubmit)
journal.command(dismiss)


@journal.command
def prune(
    *,
    days: Annotated[float, Parameter(show_default=True)] = 16.0,
    folder: Folder = None,
    output: Output = _OUTPUT,
) -> int:
    """Remove old intents. Their keys stay used; unknown submissions stay in the journal.

    Args:
        days: Remove intents that ended more than this many days ago.
    """
    if not 0 <= days < 100_000:
        raise InvalidRequestError({"days": f"must be from 0 to 100000, got {days:g}"})
    return run_async(_prune(place_of(folder), days, output), output)


async def _prune(place: Place, days: float, output: Output) -> None:
    async with opened_journal(place) as opened:
        removed = await opened.prune(before=time.time() - days * _DAY)
    if output.as_json:
        out_json({"removed": removed})
    else:
        out(f"{removed} removed")


@journal.command
def check(*, folder: Folder = None, output: Output = _OUTPUT) -> int:
    """Check the journal for damage, and count what is in it. Exit code 1 if it is damaged."""
    problems: list[str] = []
    code = run_async(_check(place_of(folder), problems, output), output)
    return FAILED if problems else code


async def _check(place: Place, problems: list[str], output: Output) -> None:
    async with opened_journal(place) as opened:
        problems += await opened.check()
        try:
            stats = await opened.stats()
        except JournalError:
            if not problems:
                raise
            stats = None  # the damage is reported; what is left cannot be counted
    facts: dict[str, object] = {"path": shown_place(place), "problems": problems}
    if stats is not None:
        facts |= attrs.asdict(stats)
        facts["counts"] = {str(state): count for state, count in stats.counts.items()}
        facts["oldest_open"] = time_of(stats.oldest_open)
    if output.as_json:
        out_json(facts)
        return
    size = "" if stats is None else f", {stats.size:,} bytes"
    out(f"{shown_place(place)}: {'damaged' if problems else 'intact'}{size}")
    if stats is not None:
        for state, count in sorted(stats.counts.items()):
            out(f"{count} {state}")
        out(f"{stats.spent_keys} used keys of removed intents")
        out(f"{stats.owners} running programs")
    for problem in problems:
        say(problem)


@journal.command
def stats(*, folder: Folder = None, output: Output = _OUTPUT) -> int:
    """Print figures for monitoring: what waits, for how long, and what is not known.

    The names in the JSON stay as they are. Exit code 0 means that the journal was read, whatever
    the figures are; 1, that it cannot be read; 2, that there is none.
    """
    return run_async(_stats(place_of(folder), output), output)


async def _stats(place: Place, output: Output) -> None:
    async with opened_journal(place) as opened:
        stats = await opened.stats()
    now = time.time()

    def age(since: float | None) -> float | None:
        return None if since is None else round(max(0.0, now - since), 1)

    facts: dict[str, object] = {
        "path": shown_place(place),
        "states": {state.value: stats.counts.get(state, 0) for state in State},
        "last_24h": {state.value: stats.last_day.get(state, 0) for state in State},
        "unknown": stats.counts.get(State.UNKNOWN, 0),
        "oldest_unknown_seconds": age(stats.oldest_unknown),
        "open": sum(stats.counts.get(state, 0) for state in (State.ACCEPTED, State.CALLED_BACK)),
        "oldest_open_seconds": age(stats.oldest_task),
        "untaken": stats.untaken,
        "size_bytes": stats.size,
        "used_keys_of_removed_intents": stats.spent_keys,
        "running_programs": stats.owners,
    }
    if output.as_json:
        out_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            counted = ", ".join(f"{count} {state}" for state, count in value.items() if count)
            value = counted or "none"  # noqa: PLW2901 - shown in place of the mapping
        out(f"{name:30}{'-' if value is None else value}")
