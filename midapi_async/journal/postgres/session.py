"""The two connections of one event loop to a PostgreSQL server, and the queue of its jobs.

The worker connection runs the jobs: those that come while it is busy share its next transaction.
The owner connection holds an advisory lock, which the server releases when the connection ends, and
listens for notifications of other processes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context
from copy import copy
from functools import cache
from typing import Any, Generic, TypeVar

import asyncpg

from ..._runtime.background import OwnedTasks
from ...errors import JournalError
from ..base import Reads
from ..protocol import Claimed
from ..stored import KEPT
from . import schema
from .table import NotFetched, OwnerLost, PostgresTable, Read

T = TypeVar("T")
_log = logging.getLogger("midapi_async.journal")

TIMEOUT = 10.0  # seconds that a caller waits while the server cannot be reached
_ANSWER_TIMEOUT = 10.0  # seconds for the server's answer to a statement
_OLDEST_SERVER = 14
_PRUNE_EVERY = 6 * 3600.0  # seconds
_MOST_TOGETHER = 128  # jobs of one transaction
_OPTIMISTIC_TRIES = 3  # attempts without locks, before an attempt that locks the accounts first
# After a network failure the server ends the session, and with it the lock, after about 10 s.
_KEEPALIVES = (
    "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; "
    "SET tcp_user_timeout = 10000"
)
# Plans that do not depend on statistics, because the tables may grow faster than these: each name
# is looked up in an index. And the server cancels statements for which we no longer wait.
_SETTINGS = (
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off; "
    "SET enable_hashjoin = off; SET enable_mergejoin = off; "
    "SET lock_timeout = 8000; SET client_connection_check_interval = 5000"
)
_CONFLICTS = frozenset({schema.CONFLICT, "23505", "40001", "40P01"})
_POOLER = (
    "connections go through a pooler in transaction mode, which breaks locks and notifications: "
    "give the server's own address, or a pooler with pool_mode = session"
)
_ADVICE = {
    "28": "check the user and the password in its URL",
    "3D": "create that database, or correct its URL",
    "42501": "this role may not do that; let its administrator run GRANT CREATE ON DATABASE … TO "
    "this role once, or create the schema with CREATE SCHEMA … AUTHORIZATION this role",
    "42P01": "another release has changed the schema, or it was removed; update midapi_async",
    "42883": "another release has changed the schema; update midapi_async",
    "53": "the server is out of disk space, memory or connections: free some",
    "55P03": "another process holds a lock; find it in pg_stat_activity",
    "25006": "this server is read-only: give the address of the primary",
    "26000": _POOLER,  # prepared statements of another server connection
    "42P05": _POOLER,
}
_CONNECTION_ERRORS = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    *(OSError, TimeoutError, EOFError),
)


class Job(Generic[T]):
    """One caller's part of a transaction.

    Args:
        work: reads and writes rows; it may run several times.
        writes: whether it may write.
        reads: what it will probably read.
    """

    def __init__(self, work: Callable[[PostgresTable], T], *, writes: bool, reads: Reads) -> None:
        self.work = work
        self.writes = writes
        self.reads = reads
        self.asked_at = time.monotonic()
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.result: T | None = None
        self.error: Exception | None = None

    def run(self, table: PostgresTable) -> None:
        """Do the work; its result is valid only once the transaction is committed."""
        table.is_writing, self.error = self.writes, None
        try:
            self.result = self.work(table)
        except JournalError as error:
            self.error = error

    def end(self, error: Exception | None = None) -> None:
        """Give the caller the result or the error."""
        if self.done.done():
            return
        if (error := error or self.error) is not None:
            self.done.set_exception(error)
            self.done.exception()  # the caller may have left
        else:
            self.done.set_result(self.result)  # type: ignore[arg-type]  # the work has run


class Session:
    """The connections of one event loop, and its owner.

    Args:
        target: a URL, or an asyncpg pool.
        name: of the database schema.
        watchers: events to set after each write, of this or another process.
        store_prompts: whether requests are stored.
    """

    def __init__(
        self,
        target: Any,  # noqa: ANN401 - asyncpg has no types
        name: str,
        watchers: set[asyncio.Event],
        *,
        store_prompts: bool,
    ) -> None:
        self._target = target
        self._name = name
        self._store_prompts = store_prompts
        self.loop = asyncio.get_running_loop()
        self.process = os.getpid()
        self._watchers = watchers
        self._jobs: list[Job[Any]] = []
        self._tasks = OwnedTasks()
        self._working = self._announcing = False
        self._is_announced = True
        self._worker: Any = None
        self._owner: Any = None
        self._me = ""
        self._table: PostgresTable | None = None
        self._is_unconfirmed = self._is_alive = self._has_settings = False
        self._prune_at = 0.0
        # Closed by `aclose`, or else by the runner that ends the loop (shutdown_asyncgens).
        self._life = self._until_closed()
        _watch_forks()
        _sessions.add(self)

    # ─── jobs ────────────────────────────────────────────────────────────────────────────────────

    async def do(self, work: Callable[[PostgresTable], T], *, writes: bool, reads: Reads = ()) -> T:
        """Do one job; return its result once it is committed.

        If the caller is cancelled before a transaction has begun, nothing was written.
        """
        job = Job(work, writes=writes, reads=reads)
        self._jobs.append(job)
        if not self._working:
            self._working = True
            self._tasks.start(self._work(), context=Context(), eagerly=True)
        try:
            await asyncio.wait({job.done})
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._jobs.remove(job)
            raise
        return job.done.result()

    async def _work(self) -> None:
        try:
            while self._jobs:
                # Reads take no locks, so they do not share a transaction with writes.
                for writes in (False, True):
                    jobs = [job for job in self._jobs if job.writes is writes][:_MOST_TOGETHER]
                    self._jobs = [job for job in self._jobs if job not in jobs]
                    if jobs:
                        await self._serve(jobs)
        finally:
            self._working = False
        if time.monotonic() >= self._prune_at and self._me:
            self._prune_at = time.monotonic() + _PRUNE_EVERY
            self._tasks.start(self._prune())

    async def _prune(self) -> None:
        try:
            while await self.do(lambda table: table.prune(table.today() - KEPT), writes=True):
                pass
        except JournalError:
            _log.warning("the journal could not be pruned; trying again later", exc_info=True)

    async def _serve(self, jobs: Sequence[Job[Any]]) -> None:
        try:
            await self._serve_together(jobs)
        except Exception as error:  # noqa: BLE001 - each caller gets it
            if len(jobs) > 1 and isinstance(error.__cause__, asyncpg.PostgresError | ValueError):
                for job in jobs:  # one cannot be written: each is tried alone
                    await self._serve([job])
                return
            for job in jobs:
                mine = copy(error)
                mine.__cause__ = error.__cause__
                job.end(mine)
        else:
            for job in jobs:
                job.end()

    async def _serve_together(self, jobs: Sequence[Job[Any]]) -> None:
        give_up_at = min(job.asked_at for job in jobs) + TIMEOUT
        was_open, unsure, tries = self._table is not None, dict[str, str](), 0
        while True:
            tries += 1
            try:
                with _errors_as_ours():
                    table = await self._opened()
                    table.begin(self._me, unsure)
                    if tries <= _OPTIMISTIC_TRIES:
                        has_written = await self._try_to_serve(jobs, table)
                    else:
                        async with self._worker.transaction():
                            await self._lock_accounts(jobs)
                            has_written = await self._try_to_serve(jobs, table)
            except OwnerLost:
                self._lose_owner()
            except _Retry as retry:
                # A conflict is no failure of the server: the last attempt locks the accounts.
                is_last = not retry.is_conflict or tries > _OPTIMISTIC_TRIES
                is_late = is_last and time.monotonic() >= give_up_at
                was_open = was_open or retry.is_starting
                if is_late or not (was_open or retry.is_conflict):
                    raise JournalError(str(retry)) from retry.__cause__
                if not retry.is_conflict:
                    # The transaction may have been committed although no answer came. The POST that
                    # it allows was not sent yet, so the next attempt adopts such rows.
                    reads = (read for job in jobs if job.writes for read in job.reads)
                    unsure = {read[1]: self._me for read in reads if read[0] == "id"} | unsure
                    self._drop_worker()
                    await asyncio.sleep(0.1 + random.random() / 5)
            else:
                if has_written:
                    self._has_written(table)
                return

    async def _try_to_serve(self, jobs: Sequence[Job[Any]], table: PostgresTable) -> bool:
        """Fetch, apply the rules and write; return whether there was anything to write."""
        missing: set[Read] = {read for job in jobs for read in job.reads}
        if await self._wrote_unread(jobs, table, missing):
            return True
        while True:
            await self._fetch(missing, table, writes=jobs[0].writes)
            table.restart()
            missing = set()
            for job in jobs:
                try:
                    job.run(table)
                except NotFetched as more:
                    missing.add(more.read)
            if not missing:
                break
        change = table.change()
        if change is None and not table.statements:
            return False
        self._is_unconfirmed = False
        write = schema.sql(schema.WRITE, self._name), self._me, change or "{}"
        if table.statements:
            async with self._worker.transaction():
                server_time = await self._ask("fetchval", *write)
                for statement in table.statements:
                    await self._ask("execute", *statement)
        else:
            server_time = await self._ask("fetchval", *write)
        table.written(server_time)
        return True

    async def _wrote_unread(
        self, jobs: Sequence[Job[Any]], table: PostgresTable, reads: set[Read]
    ) -> bool:
        """Write claims without reading anything, from what the last write left; False if not.

        Most claims are of new intents, in the only process that submits at the moment. For all
        others the server writes nothing, and they are served as usual.
        """
        are_claims = all(any(read[0] == "account" for read in job.reads) for job in jobs)
        if not are_claims or not table.recall(reads):
            return False
        with suppress(NotFetched):
            for job in jobs:
                job.run(table)
            if all(isinstance(job.result, Claimed) and not job.error for job in jobs):
                self._is_unconfirmed = False
                table.doubt()
                write = schema.sql(schema.WRITE, self._name), self._me, table.change(presumed=True)
                if (server_time := await self._ask("fetchval", *write)) is not None:
                    table.written(server_time)
                    return True
        table.begin(self._me, {})
        return False

    def _has_written(self, table: PostgresTable) -> None:
        """After a commit: wake the watchers here, and notify other processes."""
        if self._is_unconfirmed:
            raise JournalError(
                "the standby server did not confirm a write, and a failover would lose it: nothing "
                "is sent; check the replication"
            )
        for changed in self._watchers:
            changed.set()
        if table.wakes:
            self._announce()

    async def _fetch(self, reads: set[Read], table: PostgresTable, *, writes: bool) -> None:
        named = {read for read in reads if not read[0].startswith("SELECT")}
        if named or (not table.read_at and writes):  # the time of a write is the server's
            statement = schema.sql(schema.LOAD, self._name)
            found = await self._ask("fetchrow", statement, *table.load_arguments(named))
            table.loaded(named, found)
        for read in reads - named:
            table.answered(read, await self._ask("fetch", *read))

    async def _lock_accounts(self, jobs: Sequence[Job[Any]]) -> None:
        names = sorted({read[1] for job in jobs for read in job.reads if read[0] == "account"})
        await self._ask("execute", "SET LOCAL idle_in_transaction_session_timeout = 5000")
        lock = "SELECT FROM SCHEMA.accounts WHERE account = ANY($1) ORDER BY account FOR UPDATE"
        await self._ask("execute", schema.sql(lock, self._name), names)

    async def _ask(self, method: str, statement: str, *values: object) -> Any:  # noqa: ANN401 - asyncpg has no types
        # After a timeout the connection is dropped: a cancelled statement may have been executed.
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            return await getattr(self._worker, method)(statement, *values)

    # ─── waking others ───────────────────────────────────────────────────────────────────────────

    @property
    def _channel(self) -> str:
        return f"midapi_async {self._name}"[:63]

    def _announce(self) -> None:
        self._is_announced = False
        if not self._announcing:
            self._announcing = True
            self._tasks.start(self._announce_all())

    async def _announce_all(self) -> None:
        """Notify other processes, once for all writes in between; they also poll."""
        try:
            while not self._is_announced:
                self._is_announced = True
                with suppress(*_CONNECTION_ERRORS):
                    async with asyncio.timeout(_ANSWER_TIMEOUT):
                        notify = "SELECT pg_notify($1, $2)"
                        if self._owner is not None:
                            await self._owner.execute(notify, self._channel, self._me)
        finally:
            self._announcing = False

    def _notified(self, _connection: object, _process: int, _channel: str, sender: str) -> None:
        if sender != self._me:
            for changed in self._watchers:
                changed.set()

    # ─── connections ─────────────────────────────────────────────────────────────────────────────

    async def _opened(self) -> PostgresTable:
        """The table, with both connections open."""
        if not self._is_alive:
            self._is_alive = True
            await anext(self._life)
        if self._worker is None or self._worker.is_closed():
            self._drop_worker()
            self._worker = await self._connect()
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT):
                    self._worker.add_log_listener(self._warned)
                    secret = await schema.prepare(self._worker, self._name)
            except BaseException:
                self._drop_worker()
                raise
            if self._table is None:
                self._table = PostgresTable(
                    self._name, self.loop, secret, hides_prompts=not self._store_prompts
                )
        assert self._table is not None  # noqa: S101 - made with the first connection
        if self._owner is None or self._owner.is_closed():
            self._lose_owner()
            self._owner = await self._connect()
            try:
                self._me = await self._become_owner()
            except BaseException:
                self._lose_owner()
                raise
        if not self._has_settings:
            await self._ask("execute", _SETTINGS)
            self._has_settings = True
        return self._table

    async def _connect(self) -> Any:  # noqa: ANN401 - asyncpg has no types
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            if isinstance(self._target, str):
                connection = await _new_connection(self._target)
            else:
                connection = await self._target.acquire()
            try:
                await self._check(connection)
            except BaseException:
                connection.terminate()
                raise
        return connection

    @staticmethod
    async def _check(connection: Any) -> None:  # noqa: ANN401 - asyncpg has no types
        """Refuse a server on which the journal cannot work."""
        if connection.get_server_version().major < _OLDEST_SERVER:
            raise JournalError(f"the PostgreSQL server is older than {_OLDEST_SERVER}: update it")
        if await connection.fetchval("SELECT pg_is_in_recovery()"):
            raise JournalError(
                "the PostgreSQL server is a read-only standby: give the address of the primary (in "
                "a URL with several hosts ?target_session_attrs=primary)"
            )

    async def _become_owner(self) -> str:
        """Lock a new owner name, and listen for notifications; return the name."""
        # It is also the name of a channel, which may have 63 bytes.
        me = f"{os.getpid()}-{secrets.token_hex(16)}-{socket.gethostname()}"[:63]
        heard = asyncio.Event()
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            await self._owner.add_listener(self._channel, self._notified)
            await self._owner.add_listener(me, lambda *_: heard.set())
            await self._owner.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", me)
            process = await self._owner.fetchval("SELECT pg_backend_pid()")
        # Through a pooler in transaction mode both connections may have the same server process, or
        # the notification does not arrive.
        if process == await self._ask("fetchval", "SELECT pg_backend_pid()"):
            raise JournalError(_POOLER)
        await self._ask("execute", "SELECT pg_notify($1, '')", me)
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_TIMEOUT / 5):
                await heard.wait()
        if not heard.is_set():
            raise JournalError(_POOLER)
        # Not before: behind such a pooler another program would get a connection with our settings.
        await self._owner.execute(_KEEPALIVES)
        statement = schema.sql("INSERT INTO SCHEMA.owners (owner) VALUES ($1)", self._name)
        await self._ask("execute", statement, me)
        return me

    def _warned(self, _: object, message: Any) -> None:  # noqa: ANN401 - asyncpg has no types
        if message.sqlstate == "01000":  # canceling wait for synchronous replication
            self._is_unconfirmed = True

    def _drop_worker(self) -> None:
        worker, self._worker, self._has_settings = self._worker, None, False
        if worker is not None:
            worker.terminate()
        if self._table is not None:
            self._table.forget_accounts()  # the next server may be a standby that had less

    def _lose_owner(self) -> None:
        """Release ownership: our rows become orphaned, and the next job gets a new owner."""
        owner, self._owner, self._me = self._owner, None, ""
        if owner is not None:
            owner.terminate()

    async def disown(self) -> None:
        """Make this owner dead, also while nothing can be written."""
        if self._owner is not None:
            with suppress(*_CONNECTION_ERRORS):
                async with asyncio.timeout(_ANSWER_TIMEOUT / 5):
                    await self._owner.execute("SELECT pg_advisory_unlock_all()")
                    leave = schema.sql("DELETE FROM SCHEMA.owners WHERE owner = $1", self._name)
                    await self._owner.execute(leave, self._me)
        self._lose_owner()

    async def aclose(self) -> None:
        """Finish all jobs, then close both connections; the owner is then dead."""
        while len(self._tasks):
            await self._tasks.join()
        if self._is_alive:
            await self._life.aclose()

    async def _until_closed(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.disown()
            worker, self._worker = self._worker, None
            if worker is not None:
                await worker.close(timeout=_ANSWER_TIMEOUT / 5)

    def forget(self) -> None:
        """In a forked child: close the copies of both sockets, without sending anything.

        As long as the child has them open, the server would not notice the end of the parent.
        """
        nothing = os.open(os.devnull, os.O_RDWR)
        for connection in (self._worker, self._owner):
            if connection is not None and not connection.is_closed():
                transport = connection._transport  # noqa: SLF001 - asyncpg shows it nowhere
                os.dup2(nothing, transport.get_extra_info("socket").fileno())
        os.close(nothing)


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[Any]:
    """A connection for queries about the server, closed at the end of the block.

    Raises:
        JournalError: the server does not answer, or refuses a query.
    """
    try:
        with _errors_as_ours():
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                connection = await _new_connection(target)
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT):
                    yield connection
            finally:
                connection.terminate()
    except _Retry as retry:
        raise JournalError(str(retry)) from retry.__cause__


class _Retry(Exception):
    """An attempt failed, and the next may succeed.

    Attributes:
        is_conflict: True if the connection still works and nothing was written.
        is_starting: True if the server has just been started, and will soon take connections.
    """

    def __init__(self, text: str, *, is_conflict: bool, is_starting: bool = False) -> None:
        super().__init__(text)
        self.is_conflict = is_conflict
        self.is_starting = is_starting


@contextmanager
def _errors_as_ours() -> Iterator[None]:
    try:
        yield
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        if state == schema.OWNER_LOST:
            raise OwnerLost from None
        advice = next((text for start, text in _ADVICE.items() if state.startswith(start)), "")
        text = f"the journal cannot be used: {error.args[0]} ({state})"
        text += f"; {advice}" if advice else ""
        # 25P03: this process stood still in a transaction, and the server ended the connection.
        is_lost = state == "25P03" or (state[:2] in {"08", "57"} and state != "57014")
        if state in _CONFLICTS or is_lost:
            is_starting = state == "57P03"
            raise _Retry(text, is_conflict=state in _CONFLICTS, is_starting=is_starting) from error
        raise JournalError(text) from error
    except _CONNECTION_ERRORS as error:
        if isinstance(error, ValueError):  # of asyncpg: an argument that PostgreSQL has no type for
            raise JournalError(f"the journal cannot store this: {error}") from error
        why = str(error) or "no answer in time"
        raise _Retry(
            f"the PostgreSQL server cannot be reached ({why}): check that it runs, and its address",
            is_conflict=False,
        ) from error


async def _new_connection(target: str) -> Any:  # noqa: ANN401 - asyncpg has no types
    """Connect; an error has no tracebacks, because asyncpg's local variables hold the password."""
    try:
        return await asyncpg.connect(target)
    except Exception as error:
        each: BaseException | None = error
        while each is not None:
            each.__traceback__ = None
            each = each.__cause__ or each.__context__
        raise


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    for session in list(_sessions):
        session.forget()
