"""The SQL of the journal: its tables, how they are read, and the one function that writes.

Writing is optimistic. A row, and an account, has a version. A journal reads what it needs without a
lock, applies the rules, and calls `write_1`, which locks what was read, compares the versions and
writes everything, or nothing. So no lock is held while a client computes, is suspended or loses its
connection. What was read may be old, too: the claim of a new intent usually reads nothing, and uses
the account as the last write of its process left it.

The function is VOLATILE: each of its statements sees what was committed before that statement
began, so what it sees is newer than its locks. (A single statement with CTEs allowed 29 claims
where the limit was 20.)
"""

from __future__ import annotations

import secrets
from typing import Any

from ...errors import JournalError

CONFLICT = "MJ001"  # SQLSTATE: a row or an account has changed since it was read
OWNER_LOST = "MJ002"  # SQLSTATE: this owner's lock is free

_COLUMNS = {
    "intent_id": "text NOT NULL UNIQUE",
    "account": "text NOT NULL",
    "origin": "text NOT NULL",
    "scope": "text NOT NULL",
    "key": "text",
    "holds_key": "boolean NOT NULL",
    "fingerprint": "text NOT NULL",
    "token_hash": "text UNIQUE",
    "metadata": "jsonb NOT NULL",
    "created_at": "float8 NOT NULL",
    "state": "text NOT NULL",
    "task_id": "text",
    "other_task_ids": "text[]",
    "accepted_at": "float8",
    "ended_at": "float8",
    "taken": "boolean NOT NULL",
    "supersedes": "text",
    "owner": "text NOT NULL",  # empty in a tombstone
    "request": "text",
    "details": "text",
}
CHANGING = (
    *("holds_key", "token_hash", "metadata", "state", "task_id", "other_task_ids", "accepted_at"),
    *("ended_at", "taken", "supersedes", "owner", "details"),
)
PENDING = "state IN ('sending', 'resting')"
OPEN = (
    "NOT taken AND owner <> '' AND state NOT IN ('refused', 'superseded', 'dismissed', 'expired')"
)
ENDED = "coalesce(ended_at, accepted_at)"
# For rows that change often: with room in each page, a new version needs no new index entry.
_BUSY = "WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05)"

_TABLES = f"""
CREATE TABLE SCHEMA.meta (version integer NOT NULL, secret bytea NOT NULL);
CREATE SEQUENCE SCHEMA.writes;
SELECT nextval('SCHEMA.writes');
CREATE TABLE SCHEMA.intents (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, version bigint NOT NULL,
    {", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())}
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE UNIQUE INDEX intents_key ON SCHEMA.intents (scope, key) WHERE holds_key;
CREATE UNIQUE INDEX intents_task ON SCHEMA.intents (task_id, origin);
CREATE INDEX intents_twice ON SCHEMA.intents USING gin (other_task_ids)
    WHERE other_task_ids IS NOT NULL;
CREATE INDEX intents_pending ON SCHEMA.intents (owner) WHERE {PENDING};
CREATE INDEX intents_open ON SCHEMA.intents (scope, owner) WHERE {OPEN};
CREATE INDEX intents_ended ON SCHEMA.intents ({ENDED}) WHERE owner <> '';
CREATE TABLE SCHEMA.accounts (
    account text PRIMARY KEY, version bigint NOT NULL, paused_until float8 NOT NULL,
    allowed integer, halves_from float8 NOT NULL, grows_at float8 NOT NULL,
    written_at float8 NOT NULL
) {_BUSY};
CREATE TABLE SCHEMA.slots (
    slot text PRIMARY KEY, account text NOT NULL, intent_id text NOT NULL, owner text NOT NULL,
    count integer, per float8 NOT NULL, started float8 NOT NULL, ends_at float8 NOT NULL,
    is_open boolean NOT NULL
) {_BUSY};
CREATE INDEX slots_account ON SCHEMA.slots (account);
CREATE TABLE SCHEMA.notes (
    number bigint GENERATED ALWAYS AS IDENTITY, scope text NOT NULL, kind text NOT NULL,
    name text NOT NULL, value text NOT NULL, expires float8, PRIMARY KEY (scope, kind, name)
);
CREATE TABLE SCHEMA.owners (owner text PRIMARY KEY, since timestamptz DEFAULT clock_timestamp());
"""

LOCK_IS_FREE = "pg_try_advisory_xact_lock_shared(hashtextextended({}, 0))"
# Locks are taken in the same order everywhere, accounts first, then rows by their ids, so that
# writers do not deadlock. A claim that was decided more than a second ago, or for a moment that has
# not come yet, is refused.
# If the change was computed from what is `presumed`, that is checked first, and NULL is the answer
# if it is wrong: an exception would leave a line in the server's log. Between this check and the
# write the versions and the unique indexes decide. Otherwise the answer is the server's time.
_WRITE = f"""
CREATE FUNCTION SCHEMA.write_1(me text, change jsonb) RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE
    account SCHEMA.accounts;
    row SCHEMA.intents;
    seen bigint;
BEGIN
    IF change->'presumed' IS NOT NULL AND (
        EXISTS (
            SELECT FROM jsonb_to_recordset(change->'accounts') AS x(account text, version bigint)
            JOIN SCHEMA.accounts AS a USING (account) WHERE a.version <> x.version - 1
        ) OR EXISTS (
            SELECT FROM jsonb_to_recordset(change->'rows') AS x(intent_id text)
            JOIN SCHEMA.intents USING (intent_id)
        ) OR EXISTS (
            SELECT FROM jsonb_to_recordset(change->'rows') AS x(scope text, key text)
            JOIN SCHEMA.intents AS i USING (scope, key) WHERE i.holds_key
        )
    ) THEN
        RETURN NULL;
    END IF;
    IF current_setting('synchronous_commit') NOT IN ('on', 'remote_apply') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    FOR account IN
        SELECT * FROM jsonb_populate_recordset(null::SCHEMA.accounts, change->'accounts')
    LOOP
        IF account.version = 1 THEN
            INSERT INTO SCHEMA.accounts SELECT account.*;
        ELSE
            UPDATE SCHEMA.accounts AS a
            SET version = account.version, paused_until = account.paused_until,
                allowed = account.allowed, halves_from = account.halves_from,
                grows_at = account.grows_at, written_at = account.written_at
            WHERE a.account = account.account AND a.version = account.version - 1;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'the account has changed' USING ERRCODE = '{CONFLICT}';
            END IF;
        END IF;
        IF extract(epoch FROM clock_timestamp())::float8 - (change->>'read_at')::float8
            NOT BETWEEN 0 AND 1
        THEN
            RAISE EXCEPTION 'it was decided for another moment' USING ERRCODE = '{CONFLICT}';
        END IF;
    END LOOP;
    IF change->'seen' IS NOT NULL THEN
        SELECT count(*) INTO seen FROM (
            SELECT 1 FROM jsonb_to_recordset(change->'seen') AS x(intent_id text, version bigint)
            JOIN SCHEMA.intents AS i USING (intent_id, version) ORDER BY intent_id FOR UPDATE OF i
        ) AS locked;
        IF seen <> jsonb_array_length(change->'seen') THEN
            RAISE EXCEPTION 'a row has changed' USING ERRCODE = '{CONFLICT}';
        END IF;
    END IF;
    IF {LOCK_IS_FREE.format("me")} THEN
        RAISE EXCEPTION 'the owner''s lock is free' USING ERRCODE = '{OWNER_LOST}';
    END IF;
    IF change->'removed' IS NOT NULL THEN
        DELETE FROM SCHEMA.intents
            WHERE intent_id IN (SELECT jsonb_array_elements_text(change->'removed'));
    END IF;
    FOR row IN SELECT * FROM jsonb_populate_recordset(null::SCHEMA.intents, change->'rows') LOOP
        IF row.version = 1 THEN
            INSERT INTO SCHEMA.intents (version, {", ".join(_COLUMNS)})
                SELECT 1, {", ".join(f"row.{name}" for name in _COLUMNS)};
        ELSE
            UPDATE SCHEMA.intents AS i SET version = row.version,
                {", ".join(f"{name} = row.{name}" for name in CHANGING)},
                request = CASE WHEN row.owner <> '' THEN i.request END
            WHERE i.intent_id = row.intent_id;
        END IF;
    END LOOP;
    IF change->'free' IS NOT NULL THEN
        DELETE FROM SCHEMA.slots WHERE slot IN (SELECT jsonb_array_elements_text(change->'free'));
    END IF;
    INSERT INTO SCHEMA.slots
        SELECT * FROM jsonb_populate_recordset(null::SCHEMA.slots, change->'slots')
        ON CONFLICT (slot) DO UPDATE
            SET started = excluded.started, ends_at = excluded.ends_at, is_open = excluded.is_open;
    PERFORM nextval('SCHEMA.writes');
    RETURN extract(epoch FROM clock_timestamp());
END $$;
"""
WRITE = "SELECT SCHEMA.write_1($1, $2::jsonb)"

# One statement, so that all of it is from the same snapshot, except the locks: a dead owner stays
# dead, and an owner that dies meanwhile is noticed by the next job.
LOAD = f"""
WITH used AS MATERIALIZED (
    SELECT * FROM SCHEMA.slots WHERE account = ANY($6::text[]) OR slot = ANY($7::text[])
), named AS (
    SELECT number FROM SCHEMA.intents
        WHERE intent_id = ANY($1::text[] || array(SELECT intent_id FROM used WHERE slot = ANY($7)))
    UNION SELECT number FROM unnest($2::text[], $3::text[]) AS x(scope, key)
        JOIN SCHEMA.intents USING (scope, key) WHERE holds_key
    UNION SELECT number FROM SCHEMA.intents WHERE token_hash = ANY($4::text[])
    UNION SELECT number FROM SCHEMA.intents WHERE task_id = ANY($5::text[])
    UNION SELECT number FROM SCHEMA.intents WHERE other_task_ids && $5::text[]
), found AS MATERIALIZED (
    SELECT * FROM SCHEMA.intents WHERE number = ANY(array(
        SELECT number FROM named
        UNION SELECT old.number FROM named JOIN SCHEMA.intents AS new USING (number)
            JOIN SCHEMA.intents AS old ON old.intent_id = new.supersedes
    ))
), concerned AS (
    SELECT owner FROM found WHERE {PENDING} UNION SELECT owner FROM used WHERE is_open
    UNION SELECT unnest($8::text[])
)
SELECT extract(epoch FROM clock_timestamp())::float8 AS now,
    (SELECT json_agg(found) FROM found)::text AS rows,
    (SELECT json_agg(used) FROM used)::text AS slots,
    (SELECT json_agg(a) FROM SCHEMA.accounts AS a WHERE account = ANY($6))::text AS accounts,
    (SELECT json_object_agg(owner, NOT {LOCK_IS_FREE.format("owner")}) FROM concerned)::text
        AS alive
"""
# The locks of living owners. (A shared lock is held for a moment by who tests whether it is free.)
LOCKS = (
    "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' "
    "AND mode = 'ExclusiveLock' AND granted AND objsubid = 1 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
IS_DEAD = f"hashtextextended(owner, 0) NOT IN ({LOCKS})"


# Whether a schema has a journal. (to_regclass() may answer from a cache that is out of date.)
EXISTS = "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = $1 AND tablename = 'meta')"


def sql(text: str, schema: str) -> str:
    """An SQL text with the name of the schema filled in."""
    return text.replace("SCHEMA.", f'"{schema}".')


# Each step makes a version of the schema from the version before; the first step creates it. A
# release that needs another `write_1` calls it `write_2`: older processes then get an error.
STEPS = (_TABLES + _WRITE,)
VERSION = len(STEPS)


async def prepare(connection: Any, schema: str) -> bytes:  # noqa: ANN401 - asyncpg has no types
    """Create the schema, or bring it up to date; return the secret that is in it.

    Raises:
        JournalError: a newer release has written it.
    """
    version, secret = await _found(connection, schema)
    if version < len(STEPS):
        async with connection.transaction():
            # If many processes start at once, the first one does this while the others wait.
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"midapi_async {schema}"
            )
            version, secret = await _found(connection, schema)
            is_there = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
            if not version and not await connection.fetchval(is_there, schema):
                await connection.execute(f'CREATE SCHEMA "{schema}"')
            for step in STEPS[version:]:
                await connection.execute(sql(step, schema))
            if not version:
                secret = secrets.token_bytes(32)
                meta = sql("INSERT INTO SCHEMA.meta VALUES (0, $1)", schema)
                await connection.execute(meta, secret)
            if version < len(STEPS):
                update = sql("UPDATE SCHEMA.meta SET version = $1", schema)
                await connection.execute(update, len(STEPS))
    if version > len(STEPS):
        raise JournalError(
            f"the journal in the schema {schema!r} was written by a newer release of midapi_async "
            f"(schema {version}, this one knows {len(STEPS)}): update midapi_async"
        )
    return secret


async def _found(connection: Any, schema: str) -> tuple[int, bytes]:  # noqa: ANN401 - asyncpg has no types
    """The version of the schema, 0 if it has no journal yet, and its secret."""
    if not await connection.fetchval(EXISTS, schema):
        return 0, b""
    version, secret = await connection.fetchrow(
        sql("SELECT version, secret FROM SCHEMA.meta", schema)
    )
    return version, bytes(secret)
