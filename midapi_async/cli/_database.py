"""The doctor's checks of a PostgreSQL server and the journal in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midapi_async import errors
from midapi_async.journal.postgres import PostgresJournal, schema
from midapi_async.journal.postgres.journal import read_url
from midapi_async.journal.postgres.session import connected

from ._checks import Finding
from ._errors import in_commands

_CREATE = "GRANT CREATE ON DATABASE … TO …, or CREATE SCHEMA … AUTHORIZATION …"


async def check(url: str) -> list[Finding]:
    """Checks a database, its server, and the journal in it; none is created.

    If the first finding has failed, the journal cannot be used.

    Raises:
        InvalidRequestError: the URL is wrong.
    """
    opened, (target, place, name) = PostgresJournal(url), read_url(url)
    try:
        async with connected(target) as connection:
            found = await _server(connection, place)
            exists, problem = await _rights(connection, name)
            if exists and not problem:
                problem = await _version(connection, name)
        if not exists and not problem:
            text = f"{place} contains no journal yet (schema {name}); the first use makes it"
            found.insert(0, Finding("journal", "warning", text, "Is this the right database?"))
        elif problem:
            found.insert(0, problem)
        else:
            found.insert(0, await _journal(opened, f"{place}, schema {name}"))
    except errors.JournalError as error:
        return [Finding("journal", "failed", in_commands(str(error)))]
    return found


async def _version(connection: Any, name: str) -> Finding | None:  # noqa: ANN401 - asyncpg has no types
    """What to say about tables of an older release: opening the journal would change them."""
    version = await connection.fetchval(schema.sql("SELECT version FROM SCHEMA.meta", name))
    if version >= schema.VERSION:
        return None
    text = f"the tables of the schema {name} have version {version}; the first use by this release "
    text += f"makes version {schema.VERSION} of them, and programs of older releases then stop"
    return Finding("journal", "warning", text, "Update midapi_async on all hosts at once.")


async def _journal(opened: PostgresJournal, place: str) -> Finding:
    """Opens the journal, which finds poolers, standbys and other releases."""
    try:
        count = sum((await opened.stats()).counts.values())
    except errors.JournalError as error:
        return Finding("journal", "failed", in_commands(str(error)))
    finally:
        await opened.aclose()
    text = f"{place} can be used (version {schema.VERSION} of the tables); intents: {count}"
    return Finding("journal", "ok", text)


async def _rights(connection: Any, name: str) -> tuple[bool, Finding | None]:  # noqa: ANN401 - asyncpg has no types
    """Whether the schema has a journal, and what the role may not do there."""
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        text = "the server is a read-only standby"
        return False, Finding("journal", "failed", text, "Give the address of the primary.")
    who = await connection.fetchval("SELECT current_user")
    if not await connection.fetchval(schema.EXISTS, name):
        can = await connection.fetchval(
            "SELECT coalesce((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE "
            "nspname = $1), has_database_privilege(current_database(), 'CREATE'))",
            name,
        )
        text = f"the role {who} may not create the schema {name}, or tables in it"
        return False, None if can else Finding("journal", "failed", text, f"Once: {_CREATE}")
    may = await connection.fetchrow(
        "SELECT bool_and(has_schema_privilege(n.oid, 'USAGE')) AND bool_and(CASE relkind WHEN 'S' "
        "THEN has_sequence_privilege(c.oid, 'USAGE') ELSE has_table_privilege(c.oid, 'SELECT') "
        "AND (relname = 'meta' OR has_table_privilege(c.oid, 'INSERT') AND "
        "has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')) END) AS "
        "can_use FROM pg_namespace AS n JOIN pg_class AS c ON relnamespace = n.oid AND relkind IN "
        "('r', 'S') WHERE nspname = $1",
        name,
    )
    if may["can_use"]:
        return True, None
    text = f"the role {who} may not read and write all tables of the schema {name}"
    return True, Finding("journal", "failed", text, "Use the role that made them, or GRANT these.")


async def _server(connection: Any, place: str) -> list[Finding]:  # noqa: ANN401 - asyncpg has no types
    """The findings about a server that answers."""
    await connection.execute("SET tcp_keepalives_idle = 5")
    facts = await connection.fetchrow(
        "SELECT current_setting('server_version') AS version, pg_backend_pid() AS process, "
        "inet_server_addr() IS NULL AS is_local, current_setting('fsync') AS fsync, "
        "current_setting('tcp_keepalives_idle') AS keepalives, "
        "current_setting('full_page_writes') AS pages, current_setting('autovacuum') AS vacuum, "
        "current_setting('synchronous_standby_names') AS names, "
        "(SELECT count(*) FROM pg_stat_replication) AS standbys, "
        "(SELECT count(*) FROM pg_stat_replication WHERE state IS NULL OR sync_state <> 'async') "
        "AS confirming"
    )
    return judged({**facts, "named_process": connection.get_server_pid()}, place)


def judged(facts: Mapping[str, Any], place: str) -> list[Finding]:
    """The findings about a server, from its settings.

    Args:
        facts: the settings, by the names in `_server`.
        place: the server's name in the texts.
    """
    found = [Finding("PostgreSQL", "ok", f"{place} answers; release {facts['version']}")]
    if "off" in {facts["fsync"], facts["pages"]}:
        text = "fsync or full_page_writes is off: a power failure can lose or damage the journal"
        found.append(Finding("durability", "warning", text, "Set both to on."))
    if facts["vacuum"] == "off":
        text = "autovacuum is off: tables that change often grow without limit"
        found.append(Finding("vacuum", "warning", text, "Set autovacuum to on."))
    found.append(_replication(facts))
    if facts["named_process"] != facts["process"]:
        text = "connections go through a pooler, and only the pooler can notice a lost client"
        hint = "Give the server's own address, or set the pooler's keepalives to about 10 s."
        return [*found, Finding("keepalives", "warning", text, hint)]
    if facts["is_local"]:
        return [*found, Finding("keepalives", "ok", "not needed: the server is on this machine")]
    if facts["keepalives"] == "5":
        return [*found, Finding("keepalives", "ok", "a lost connection is noticed after 10 s")]
    text = "no TCP keepalives on the server: it may take hours to notice a lost connection"
    return [*found, Finding("keepalives", "warning", text, "Run the server on Linux.")]


def _replication(facts: Mapping[str, Any]) -> Finding:
    """The finding about what a failover would lose."""
    if facts["names"]:
        if facts["confirming"]:
            text = (
                f"synchronous ({facts['names']}): a failover to a synchronous standby loses nothing"
            )
            return Finding("replication", "ok", text)
        text = "synchronous, but no synchronous standby is connected: each submission waits for it"
        return Finding("replication", "warning", text, "Repair the standby.")
    if not facts["standbys"]:
        text = "no standby is connected; if the server loses its disk, all keys are lost"
        return Finding("replication", "ok", text)
    text = (
        "asynchronous: a failover loses the last commits, and a key that was claimed in them can "
    )
    text += "be claimed, and paid, again"
    hint = "Set synchronous_standby_names, and fail over only to a standby that is named there."
    return Finding("replication", "warning", text, hint)
