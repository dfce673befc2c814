"""`PostgresJournal`: keeps a `Session` for each event loop that uses it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from ..._runtime.secret import Secret, hidden
from ...errors import InvalidRequestError, JournalError, shown
from ..base import Reads, TableJournal
from ..table import Table

try:
    from .session import Session
    from .table import PostgresTable
except ImportError as error:
    raise InvalidRequestError(
        {"journal": "PostgreSQL needs asyncpg: pip install 'midapi-async[postgres]'"}
    ) from error

T = TypeVar("T")

_POLL_INTERVAL = 2.0  # seconds between two checks for changes that were not notified
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,49}")


class PostgresJournal(TableJournal):
    """Stores intents in a PostgreSQL database, for processes on any number of machines.

    It connects with its first use, and again with a use after ``aclose``. It keeps two connections
    for each event loop that uses it. The schema is created if it is missing. It needs PostgreSQL 14
    or later (tested with 15), and does not work through a pooler in transaction mode.

    Args:
        database: a URL such as ``postgresql://user:password@host/database``, or a pool of asyncpg,
            from which it takes two connections for as long as the journal is open.
        schema: the name of the schema with the journal's tables: up to 50 small letters, digits and
            _. ``?schema=`` in a URL takes precedence.
        store_prompts: False stores no requests, only hashes of them that are meaningless without
            the journal's secret; then ``request`` of the rows is None.

    Raises:
        InvalidRequestError: ``database`` is neither such a URL nor a pool, or the schema's name is
            wrong. Importing this module raises it if asyncpg is not installed.
    """

    is_durable = True

    def __init__(
        self, database: object, *, schema: str = "midapi", store_prompts: bool = True
    ) -> None:
        database, self._place = hidden(database), "a pool"  # a URL may contain a password
        if isinstance(database, str):
            database, self._place, schema = read_url(database, schema)
        elif not hasattr(database, "acquire"):
            raise InvalidRequestError(
                {"database": f"must be a postgresql:// URL or a pool, got {shown(database)}"}
            )
        if not _SCHEMA.fullmatch(schema):
            raise InvalidRequestError(
                {"schema": f"must be small letters, digits and _, got {shown(schema)}"}
            )
        self._database: Any = database
        self._schema = schema
        self._store_prompts = store_prompts
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}
        self._watchers: dict[asyncio.AbstractEventLoop, set[asyncio.Event]] = {}

    def __repr__(self) -> str:
        where = self._place.partition("//")[2] or self._place
        return f"<PostgresJournal {where} {'open' if self._sessions else 'closed'}>"

    async def step(
        self, work: Callable[[Table], T], *, writes: bool = True, reads: Reads = ()
    ) -> T:
        """See `TableJournal`."""
        return await self._session().do(work, writes=writes, reads=reads)

    async def changes(self) -> AsyncGenerator[None, None]:
        """See `Journal.changes`."""
        changed, watchers = asyncio.Event(), self._watchers_here()
        watchers.add(changed)
        try:
            writes, oldest, fence = await self._session().do(PostgresTable.mark, writes=False)
            is_settled = oldest >= fence
            while True:
                changed.clear()
                yield
                while not changed.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_INTERVAL):
                            await changed.wait()
                        break
                    await self._resolve_orphans()
                    now, oldest, newest = await self._session().do(PostgresTable.mark, writes=False)
                    if now != writes:
                        # The counter grows before the commit. Check again until all transactions
                        # that were open at this moment have ended.
                        writes, fence, is_settled = now, newest, False
                        break
                    if not is_settled:
                        is_settled = oldest >= fence
                        break
        finally:
            watchers.discard(changed)

    async def disown(self) -> None:
        """See `Journal.disown`."""
        await self._session().disown()

    async def aclose(self) -> None:
        """See `Journal.aclose`."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None and session.process == os.getpid():
            await session.aclose()

    def _session(self) -> Session:
        loop = asyncio.get_running_loop()
        for each in [each for each in self._sessions if each.is_closed()]:
            del self._sessions[each]
            self._watchers.pop(each, None)
        if loop not in self._sessions:
            self._sessions[loop] = Session(
                self._database,
                self._schema,
                self._watchers_here(),
                store_prompts=self._store_prompts,
            )
        session = self._sessions[loop]
        if any(each.process != os.getpid() for each in self._sessions.values()):
            raise JournalError(
                f"{self!r} was opened in the parent process: make a new one after a fork"
            )
        return session

    def _watchers_here(self) -> set[asyncio.Event]:
        return self._watchers.setdefault(asyncio.get_running_loop(), set())


def read_url(url: str, schema: str = "midapi") -> tuple[Secret, str, str]:
    """Read a ``postgresql://`` URL.

    Args:
        url: the URL; it may name several hosts, and a schema in ``?schema=``.
        schema: the schema if the URL names none.

    Returns:
        The URL for asyncpg; the same without user, password and parameters, for messages; the
        schema.

    Raises:
        InvalidRequestError: it is not such a URL. The error does not contain the URL.
    """
    url = hidden(url)
    if (found := _read_url(url, schema)) is not None:
        return found
    raise InvalidRequestError(
        {
            "database": "must be a URL like postgresql://user:password@host:5432/database; in the "
            "password, write special characters as %40 for @, %2F for /, %23 for #, %3F for ?"
        }
    )


def _read_url(url: str, schema: str) -> tuple[Secret, str, str] | None:
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        hosts = parts.netloc.rpartition("@")[2]
        ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
        if any(port and not (port.isdecimal() and int(port) < 65_536) for port in ports):
            return None
    except ValueError:
        return None
    if not url.startswith(("postgresql://", "postgres://")) or parts.fragment or "@" in parts.path:
        return None  # # and @ may be unescaped characters of a password
    rest = urlencode([pair for pair in query if pair[0] != "schema"], quote_via=quote)
    target, schema = f"{url.partition('?')[0]}?{rest}", dict(query).get("schema", schema)
    return Secret(target.rstrip("?")), f"postgresql://{hosts}{parts.path}", schema
