"""The database's schema, its versions, and the way from the one before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from sqlite3 import Connection

APPLICATION_ID = 0x6D6A_6A6C  # "mjjl"
VERSION = 1

# A row holds its key for good, unless it was REFUSED or SUPERSEDED and another one came for it.
# `over_at` is when nothing was to be expected of a row any more. Pruned rows are tombstones: they
# keep a key spent. Open rows are few, so their index stays small however many rows there are.
_TABLES = (
    """
    CREATE TABLE intents (
        number INTEGER PRIMARY KEY,
        intent_id TEXT NOT NULL UNIQUE,
        scope TEXT NOT NULL,
        key TEXT,
        holds_key INTEGER NOT NULL,
        request TEXT,
        fingerprint TEXT NOT NULL,
        token_hash TEXT UNIQUE,
        metadata TEXT NOT NULL,
        created_at REAL NOT NULL,
        state TEXT NOT NULL,
        task_id TEXT,
        other_task_ids TEXT,
        accepted_at REAL,
        taken INTEGER NOT NULL,
        supersedes TEXT,
        owner TEXT NOT NULL,
        over_at REAL,
        pruned INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE UNIQUE INDEX intents_key ON intents (scope, key) WHERE holds_key",
    "CREATE INDEX intents_open ON intents (state, scope) WHERE over_at IS NULL",
    "CREATE INDEX intents_over ON intents (over_at) WHERE over_at IS NOT NULL AND NOT pruned",
    "CREATE INDEX intents_task ON intents (task_id) WHERE task_id IS NOT NULL",
    "CREATE INDEX intents_twice ON intents (number) WHERE other_task_ids IS NOT NULL",
)

# The statements that lead from a version to the next one.
MIGRATIONS: Mapping[int, tuple[str, ...]] = {}


def make(connection: Connection) -> None:
    """Make the tables in an empty database."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute("COMMIT")


def version(connection: Connection) -> int:
    """The version of the schema that is there now."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def check(connection: Connection, path: Path) -> None:
    """Take a journal of this release, bring one of the release before up to it, refuse the rest."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise JournalError(
            f"{path} is no journal of midapi_async: name another folder, or restore the journal's "
            "own file from a backup"
        )
    found = version(connection)
    if found > VERSION:
        raise JournalError(
            f"{path} was written by a newer release of midapi_async (schema {found}, this one "
            f"knows {VERSION}): update midapi_async"
        )
    while found < VERSION:
        found = _migrate(connection, path, found)


def check_unchanged(connection: Connection, path: Path) -> None:
    """Write nothing into a schema that a newer release has made in the meantime."""
    if (found := version(connection)) != VERSION:
        raise JournalError(
            f"{path} now has the schema {found} of another release of midapi_async, and this "
            f"process runs with {VERSION}: restart it with that release"
        )


def _migrate(connection: Connection, path: Path, found: int) -> int:
    if found not in MIGRATIONS:
        raise JournalError(
            f"{path} was written by a release of midapi_async that is too old for this one (schema "
            f"{found}): open it once with each release between"
        )
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in MIGRATIONS[found]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={found + 1}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return found + 1
