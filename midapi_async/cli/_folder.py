"""The journal of ``midapi journal``: open it, find intents in it, show them."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import attrs
from cyclopts import Parameter

from midapi_async import Intent, InvalidRequestError, Journal, State
from midapi_async.journal.sqlite import SQLiteJournal

from . import _env
from ._env import Place

JOURNAL_HELP = (
    "The journal's folder, or its postgresql:// URL; MIDAPI_JOURNAL if not given. If the URL has a "
    "password, use MIDAPI_JOURNAL: other users of this machine can see command lines."
)
Folder = Annotated[
    str | None, Parameter(("--folder", "--journal"), show_default=False, help=JOURNAL_HELP)
]
ID_HELP = "As `midapi journal list` shows it; the first digits are enough."
_FILES = ("journal.sqlite", "journal.lock")  # each shows that there is, or was, a journal


def place_of(given: str | None) -> Place:
    """Where a journal is: no command here makes one.

    Raises:
        InvalidRequestError: there is no such folder, or no journal in it. A database is asked when
            it is opened.
    """
    folder = _env.journal(given)
    if folder is None:
        raise InvalidRequestError({"folder": "is missing: give --folder, or set MIDAPI_JOURNAL"})
    if isinstance(folder, str):
        return folder
    SQLiteJournal(folder)  # says that a URL is no folder
    if not folder.is_dir():
        # The first submission with MIDAPI_JOURNAL makes it.
        problem = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise InvalidRequestError({"folder": f"{str(folder)!r} {problem}"})
    if not any((folder / name).exists() for name in _FILES):
        raise InvalidRequestError({"folder": f"{str(folder)!r} contains no journal"})
    return folder


def shown_place(place: Place) -> str:
    """Where a journal is, for people: a URL without its password."""
    if isinstance(place, str):
        from midapi_async.journal.postgres.journal import read_url

        return read_url(place)[1]
    return str(place)


def option_of(given: str | None) -> str:
    """The option that names a given journal to the next command; nothing for the environment's."""
    if given is None:
        return ""
    place = place_of(given)
    name = "--folder" if isinstance(place, Path) else "--journal"
    return f" {name} {shlex.quote(shown_place(place))}"


async def _existing_in_database(url: str) -> Journal:
    """The journal in a database; it is not created if it is missing."""
    from midapi_async.journal.postgres import PostgresJournal, schema  # they need asyncpg
    from midapi_async.journal.postgres.journal import read_url
    from midapi_async.journal.postgres.session import connected

    opened, (target, where, name) = PostgresJournal(url), read_url(url)
    async with connected(target) as connection:
        exists = await connection.fetchval(schema.EXISTS, name)
    if not exists:
        problem = f"{where} contains no journal (schema {name}); the first submission makes it"
        raise InvalidRequestError({"journal": problem})
    return opened


@asynccontextmanager
async def opened_journal(place: Place) -> AsyncIterator[Journal]:
    """The journal in a folder or a database, closed at the end of the block.

    Raises:
        InvalidRequestError: there is no journal in that database.
        JournalError: the database cannot be reached, or refuses the question.
    """
    opened: Journal
    if isinstance(place, str):
        opened = await _existing_in_database(place)
    else:
        opened = SQLiteJournal(place)
    try:
        yield opened
    finally:
        await opened.aclose()


async def rows_of(opened: Journal, *states: State) -> AsyncIterator[Intent]:
    """Every intent in these states, oldest first; in any state if none is given."""
    after = None
    while page := await opened.rows(states=states, after=after):
        for row in page:
            yield row
        after = page[-1].intent_id


async def find_rows(opened: Journal, intent_ids: Sequence[str]) -> list[Intent]:
    """For each of these, the one intent whose id begins with these digits.

    Raises:
        InvalidRequestError: one of them fits no intent, or several, or the same one as another.
    """
    fitting: list[list[Intent]] = [[] for _ in intent_ids]
    async for row in rows_of(opened):
        for digits, rows in zip(intent_ids, fitting, strict=True):
            if row.intent_id.startswith(digits):
                rows.append(row)
    found: dict[str, Intent] = {}
    for digits, rows in zip(intent_ids, fitting, strict=True):
        if not rows:
            problem = "is not in this journal; for the ids: midapi journal list"
        elif len(rows) > 1 or not digits:
            problem = f"fits several intents, {rows[0].intent_id} and others: give more digits"
        elif rows[0].intent_id in found:
            problem = "is given twice"
        else:
            found[rows[0].intent_id] = rows[0]
            continue
        raise InvalidRequestError({"intent": f"{digits!r:.60} {problem}"})
    return list(found.values())


def facts_of(row: Intent) -> dict[str, object]:
    """Everything that is known about an intent, for JSON."""
    origin, _, namespace = row.scope.partition(" ")
    return {
        "intent_id": row.intent_id,
        "state": row.state.value,
        "taken": row.taken,
        "key": row.key,
        "task_id": row.task_id,
        "other_task_ids": list(row.other_task_ids),
        "created_at": time_of(row.created_at),
        "accepted_at": time_of(row.accepted_at),
        "ended_at": time_of(row.ended_at),
        "status": row.details.status.value if row.details is not None else None,
        "urls": list(row.details.urls) if row.details is not None else [],
        "error_message": row.details.error_message if row.details is not None else None,
        "request": _request(row),
        "metadata": dict(row.metadata),
        "account": origin,
        "namespace": namespace,
        "supersedes": row.supersedes,
        "owner": row.owner or None,
    }


def _request(row: Intent) -> dict[str, object] | None:
    if row.request is None:
        return None
    chosen = attrs.asdict(row.request, filter=lambda _, value: value is not None)
    return {"kind": type(row.request).__name__, **chosen}


def time_of(epoch: float | None) -> str | None:
    """A time in UTC, as in 2026-01-31T12:00:00+00:00."""
    if epoch is None:
        return None
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds")
