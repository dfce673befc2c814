"""The database's schema and its version."""

from __future__ import annotations

from pathlib import Path
from sqlite3 import Connection

from ...errors import JournalError

APPLICATION_ID = 0x6D6A_6A32  # "mjj2"
_FIRST_FORMAT = 0x6D6A_6A6C  # of releases that were never published
VERSION = 1

# Long texts are in a table of their own, so that the check of all intents, which the first process
# makes when it opens the journal, has little to read. Rows with `pruned` are tombstones: they keep
# a key spent. PENDING rows and rows that are not taken are few, so their partial indexes are small;
# where nothing is ever taken, 100,000 rows change their owner at each opening: it is in no index.
_TABLES = (
    "CREATE TABLE meta (commits INTEGER NOT NULL)",
    "INSERT INTO meta VALUES (0)",
    """CREATE TABLE intents (
        number INTEGER PRIMARY KEY, intent_id TEXT NOT NULL UNIQUE, account TEXT NOT NULL,
        origin TEXT NOT NULL, scope TEXT NOT NULL, key TEXT, holds_key INTEGER NOT NULL,
        fingerprint TEXT NOT NULL, token_hash TEXT UNIQUE, metadata TEXT NOT NULL,
        created_at REAL NOT NULL, state TEXT NOT NULL, task_id TEXT, other_task_ids TEXT,
        accepted_at REAL, ended_at REAL, taken INTEGER NOT NULL, supersedes TEXT,
        owner TEXT NOT NULL, pruned INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE UNIQUE INDEX intents_key ON intents (scope, key) WHERE holds_key",
    "CREATE UNIQUE INDEX intents_task ON intents (task_id, origin) WHERE task_id IS NOT NULL",
    "CREATE INDEX intents_twice ON intents (number) WHERE other_task_ids IS NOT NULL",
    "CREATE INDEX intents_pending ON intents (owner) WHERE state IN ('sending', 'resting')",
    """CREATE INDEX intents_open ON intents (scope) WHERE NOT taken AND NOT pruned
        AND state NOT IN ('refused', 'superseded', 'dismissed', 'expired')""",
    "CREATE INDEX intents_ended ON intents (coalesce(ended_at, accepted_at)) WHERE NOT pruned",
    """CREATE TABLE texts (
        number INTEGER PRIMARY KEY REFERENCES intents, request TEXT, details TEXT
    )""",
    """CREATE TABLE accounts (
        account TEXT PRIMARY KEY, boot TEXT NOT NULL, paused_until REAL NOT NULL, allowed INTEGER,
        halves_from REAL NOT NULL, grows_at REAL NOT NULL
    )""",
    """CREATE TABLE slots (
        slot TEXT PRIMARY KEY, account TEXT NOT NULL, boot TEXT NOT NULL, intent_id TEXT NOT NULL,
        owner TEXT NOT NULL, count INTEGER, per REAL NOT NULL, started REAL NOT NULL,
        ends_at REAL NOT NULL, is_open INTEGER NOT NULL
    )""",
    "CREATE INDEX slots_account ON slots (account)",
    """CREATE TABLE notes (
        scope TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
        expires REAL, PRIMARY KEY (scope, kind, name)
    )""",
)


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
    """The version of the database's schema."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def check(connection: Connection, path: Path) -> None:
    """Refuse a database that is not a journal of this release."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application == _FIRST_FORMAT:
        raise JournalError(
            f"{path} was written by a development version of midapi_async, in a format that this "
            "version cannot read: finish the open tasks with that version, then use a new folder "
            "(it does not know the old keys, which would be paid again)"
        )
    if application != APPLICATION_ID:
        raise JournalError(
            f"{path} is no journal of midapi_async: choose another folder, or restore the file "
            "from a backup"
        )
    if (found := version(connection)) > VERSION:
        raise JournalError(
            f"{path} was written by a newer release of midapi_async (schema {found}, this one "
            f"knows {VERSION}): update midapi_async"
        )
    if found < VERSION:
        raise JournalError(
            f"{path} was written by a release of midapi_async that is too old for this one (schema "
            f"{found}): use the release that wrote it"
        )
