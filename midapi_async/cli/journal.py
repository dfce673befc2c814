"""``midapi journal``: what a journal's folder holds, and what to do about unknown submissions.

All of it also works while a bot has the folder open.
"""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import attrs
from cyclopts import App, Parameter

from midapi_async import CallbackReceiver, Intent, InvalidRequestError, MidAPIClient, State
from midapi_async.journal.sqlite import SQLiteJournal

from ._terminal import out, out_json, say
from ._trouble import FAILED
from ._work import Output, run_async

journal = App(
    name="journal",
    help="What a journal's folder holds, also while a bot has it open.",
    sort_key=5,
)

Folder = Annotated[Path | None, Parameter(show_default=False)]
IntentId = Annotated[str, Parameter(name="INTENT")]
_OUTPUT = Output()
_DAY = 86_400.0


@journal.command(name="list")
def list_intents(
    *states: Annotated[Literal[tuple(State)], Parameter(name="STATE")],  # type: ignore[valid-type]
    folder: Folder = None,
    output: Output = _OUTPUT,
) -> int:
    """List the intents, oldest first: id, state, time, key and task.

    Args:
        states: Only those in these states; all if none is given.
        folder: The journal; MIDAPI_JOURNAL if not given.
    """
    return run_async(_list(_folder(folder), [State(state) for state in states], output), output)


async def _list(folder: Path, states: list[State], output: Output) -> None:
    async with _opened(folder) as opened:
        rows = await opened.everything(*states)
    if output.as_json:
        out_json({"intents": [_facts(row) for row in rows]})
        return
    for row in rows:
        taken = " taken" if row.taken else ""
        key = f" key={row.key}" if row.key else ""
        task = f" task={row.task_id}" if row.task_id else ""
        out(f"{row.intent_id} {_time(row.created_at)} {row.state}{taken}{key}{task}")
    if not rows:
        say("There is none.")


@journal.command
def show(intent_id: IntentId, /, *, folder: Folder = None, output: Output = _OUTPUT) -> int:
    """Show all that is known of one intent.

    Args:
        intent_id: As `midapi journal list` shows it; its beginning is enough.
        folder: The journal; MIDAPI_JOURNAL if not given.
    """
    return run_async(_show(_folder(folder), intent_id, output), output)


async def _show(folder: Path, intent_id: str, output: Output) -> None:
    async with _opened(folder) as opened:
        row = await _find(opened, intent_id)
    facts = _facts(row)
    if output.as_json:
        out_json(facts)
        return
    for name, value in facts.items():
        if value not in (None, [], {}):
            out(f"{name}: {value}")


@journal.command
def settle(
    intent_id: IntentId,
    /,
    *,
    timeout: float = 600.0,
    folder: Folder = None,
    output: Output = _OUTPUT,
) -> int:
    """Wait until a callback tells that an unknown submission was accepted.

    It comes to whatever receives callbacks for this journal: a bot that has the folder open.

    Args:
        intent_id: As `midapi journal list` shows it; its beginning is enough.
        timeout: Seconds to wait.
        folder: The journal; MIDAPI_JOURNAL if not given.
    """
    return run_async(_act("settle", _folder(folder), intent_id, output, timeout), output)


@journal.command
def adopt(
    intent_id: IntentId,
    task_id: Annotated[str, Parameter(name="TASK")],
    /,
    *,
    folder: Folder = None,
    output: Output = _OUTPUT,
) -> int:
    """Say which task an unknown submission became, as MidAPI's own log shows it.

    Args:
        intent_id: As `midapi journal list` shows it; its beginning is enough.
        task_id: MidAPI's id of the task.
        folder: The journal; MIDAPI_JOURNAL if not given.
    """
    return run_async(_act("adopt", _folder(folder), intent_id, output, task_id), output)


@journal.command
def resubmit(intent_id: IntentId, /, *, folder: Folder = None, output: Output = _OUTPUT) -> int:
    """Buy what an unknown submission asked for again. It may then be paid twice.

    Args:
        intent_id: As `midapi journal list` shows it; its beginning is enough.
        folder: The journal; MIDAPI_JOURNAL if not given.
    """
    return run_async(_act("resubmit", _folder(folder), intent_id, output), output)


@journal.command
def dismiss(intent_id: IntentId, /, *, folder: Folder = None, output: Output = _OUTPUT) -> int:
    """Forget an unknown submission. Its key stays spent.

    Args:
        intent_id: As `midapi journal list` shows it; its beginning is enough.
        folder: The journal; MIDAPI_JOURNAL if not given.
    """
    return run_async(_act("dismiss", _folder(folder), intent_id, output), output)


async def _act(what: str, folder: Path, intent_id: str, output: Output, *arguments: object) -> None:
    """One of the methods of ``client.intents``, for the account that the intent belongs to."""
    async with _opened(folder) as opened:
        row = await _find(opened, intent_id)
        async with _client_of(row, opened, needs_key=what == "resubmit") as client:
            handle = await getattr(client.intents, what)(row.intent_id, *arguments)
        after = await opened.find(intent_id=handle.intent_id if handle else row.intent_id)
    after = after or row
    if output.as_json:
        out_json(_facts(after))
    elif after.task_id is not None:
        out(after.task_id)
    else:
        say(f"Intent {after.intent_id} is {after.state}.")


@journal.command
def prune(
    *,
    days: Annotated[float, Parameter(show_default=True)] = 16.0,
    folder: Folder = None,
    output: Output = _OUTPUT,
) -> int:
    """Remove what was over for so long. Spent keys stay spent; what is unknown stays.

    Args:
        days: How long ago it must have been over.
        folder: The journal; MIDAPI_JOURNAL if not given.
    """
    return run_async(_prune(_folder(folder), days, output), output)


async def _prune(folder: Path, days: float, output: Output) -> None:
    if not 0 <= days < 100_000:
        raise InvalidRequestError({"days": "must be zero or more"})
    async with _opened(folder) as opened:
        removed = await opened.prune(older_than=days * _DAY)
    if output.as_json:
        out_json({"removed": removed})
    else:
        out(f"{removed} removed")


@journal.command
def check(*, folder: Folder = None, output: Output = _OUTPUT) -> int:
    """See whether the journal is whole, and count what is in it. Exit code 1 if it is damaged.

    Args:
        folder: The journal; MIDAPI_JOURNAL if not given.
    """
    damaged: list[str] = []
    code = run_async(_check(_folder(folder), output, damaged), output)
    return FAILED if damaged else code


async def _check(folder: Path, output: Output, damaged: list[str]) -> None:
    async with _opened(folder) as opened:
        report = await opened.check()
    damaged += report.problems
    counts = {state.value: count for state, count in report.counts.items() if count}
    if output.as_json:
        facts = {"path": str(report.path), "problems": list(report.problems), "counts": counts}
        more = {"spent_keys": report.spent_keys, "owners": report.owners, "schema": report.schema}
        out_json({**facts, **more, "size": report.size})
        return
    out(f"{report.path}: {'damaged' if report.problems else 'whole'}, {report.size:,} bytes")
    for name, count in counts.items():
        out(f"{count} {name}")
    out(f"{report.spent_keys} spent keys of pruned intents, {report.owners} open journals")
    for problem in report.problems:
        say(problem)


def _folder(given: Path | None) -> Path:
    """The folder of a journal that is there: no command here makes one.

    Raises:
        InvalidRequestError: there is none.
    """
    named = os.environ.get("MIDAPI_JOURNAL", "").strip()
    if given is None and not named:
        raise InvalidRequestError({"folder": "is missing: give --folder, or set MIDAPI_JOURNAL"})
    folder = Path(named) if given is None else given
    if not folder.is_dir():
        raise InvalidRequestError({"folder": f"{str(folder)!r} is no folder"})
    return folder


@asynccontextmanager
async def _opened(folder: Path) -> AsyncIterator[SQLiteJournal]:
    opened = SQLiteJournal(folder)
    try:
        yield opened
    finally:
        await opened.aclose()


async def _find(opened: SQLiteJournal, intent_id: str) -> Intent:
    """The one intent whose id begins so."""
    found = [row for row in await opened.everything() if row.intent_id.startswith(intent_id)]
    if len(found) == 1 and intent_id:
        return found[0]
    told = "is the beginning of several" if found else "is in this journal under no intent"
    raise InvalidRequestError({"intent": f"{intent_id!r:.60} {told}"})


def _client_of(row: Intent, opened: SQLiteJournal, *, needs_key: bool) -> MidAPIClient:
    """A client of the account that an intent belongs to.

    Callbacks of what it submits go to the bot: they find their intent in the same folder.
    """
    origin, _, namespace = row.scope.partition(" ")
    public_url = os.environ.get("MIDAPI_PUBLIC_URL", "").strip()
    has_key = any(os.environ.get(name) for name in ("MIDAPI_API_KEY", "MIDAPI_API_KEY_FILE"))
    return MidAPIClient(
        None if needs_key or has_key else "no-key-is-needed-for-this",
        base_url=origin,
        journal=opened,
        namespace=namespace,
        receiver=CallbackReceiver(public_url) if public_url else None,
    )


def _facts(row: Intent) -> dict[str, object]:
    origin, _, namespace = row.scope.partition(" ")
    return {
        "intent_id": row.intent_id,
        "state": row.state.value,
        "taken": row.taken,
        "key": row.key,
        "task_id": row.task_id,
        "other_task_ids": list(row.other_task_ids),
        "created_at": _time(row.created_at),
        "accepted_at": _time(row.accepted_at) if row.accepted_at is not None else None,
        "request": _request(row),
        "metadata": dict(row.metadata),
        "account": origin,
        "namespace": namespace,
        "supersedes": row.supersedes,
    }


def _request(row: Intent) -> dict[str, object] | None:
    if row.request is None:
        return None
    chosen = attrs.asdict(row.request, filter=lambda _, value: value is not None)
    return {"kind": type(row.request).__name__, **chosen}


def _time(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds")
