"""The journal on PostgreSQL through what happens to servers, connections and processes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AsyncExitStack,
    ExitStack,
    aclosing,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import attrs
import pytest

from midapi_async import CallbackReceiver, InvalidRequestError, MidAPIClient, TextToImage
from midapi_async.config import RateLimit
from midapi_async.errors import JournalError
from midapi_async.journal import Busy, Claimed, Standing, State
from midapi_async.journal.contract import details_of
from midapi_async.journal.postgres import PostgresJournal
from midapi_async.journal.postgres import journal as journal_module
from midapi_async.journal.postgres import schema as schema_module
from midapi_async.journal.postgres import session as session_module
from midapi_async.journal.postgres import table as table_module
from midapi_async.journal.postgres.session import Session
from tests.callbacks.test_receiver import callback
from tests.journal.world import SCOPE, claim, claimed, intent, standing
from tests.support import secrets
from tests.support.postgres import (
    SUPERUSER,
    Server,
    as_user,
    new_folder,
    new_schema,
    programs,
    server,
)
from tests.support.scripted import ScriptedServer
from tests.support.waiting import free_port
from tests.world import TASK, accepted, client_of, looked, mid, submits

pytestmark = pytest.mark.real_time
ROOT = Path(__file__).parents[2]


@pytest.fixture
def schema() -> str:
    """A schema that is not there yet."""
    return new_schema()


@pytest.fixture
async def make(postgres: Server, schema: str) -> AsyncIterator[Callable[[], PostgresJournal]]:
    """Makes journals on one schema, and closes them."""
    made: list[PostgresJournal] = []

    def make() -> PostgresJournal:
        made.append(PostgresJournal(postgres.url, schema=schema))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


Make = Callable[[], PostgresJournal]


@contextmanager
def program(what: str, url: str, schema: str) -> Iterator[subprocess.Popen[str]]:
    """A program of `postgres_processes.py`."""
    command = [sys.executable, "-m", "tests.journal.postgres_processes", what, url, schema]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def line(process: subprocess.Popen[str]) -> str:
    """What a program says next."""
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


# ─── many at once ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("S6")
async def test_eight_clients_never_get_more_slots_than_there_are(make: Make) -> None:
    """80 claims at once over eight connections, four times: 20 slots each time, 19 are too few."""
    journals, limit = [make() for _ in range(8)], RateLimit(20, per=60.0)
    for account in "abcd":
        calls = [claim(each, intent(), limit, account=account) for each in journals * 10]
        answers = await asyncio.gather(*calls)
        assert sum(isinstance(each, Claimed) for each in answers) == 20


@pytest.mark.fault("S6")
async def test_eight_clients_that_recall_never_get_more_slots(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each remembers the account as its own last claim left it, which is soon wrong."""
    monkeypatch.setattr(table_module, "_READS_FIRST", 0.0)
    journals, limit = [make() for _ in range(8)], RateLimit(20, per=60.0)
    answers = [await claim(each, intent(), limit) for each in journals]
    for _ in range(2):
        answers += await asyncio.gather(*(claim(each, intent(), limit) for each in journals))
    answers += [await claim(each, intent(), limit) for each in journals]
    assert sum(isinstance(each, Claimed) for each in answers) == 20


@contextmanager
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is asked of the server: "read", "write", or what the server has raised."""
    seen: list[str] = []
    ask = Session._ask

    async def watch(session: Session, method: str, statement: str, *values: object) -> Any:
        seen.append("write" if "write_1" in statement else "read")
        try:
            return await ask(session, method, statement, *values)
        except asyncpg.PostgresError as error:
            seen.append(type(error).__name__)
            raise

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_ask", watch)
        yield seen


async def test_a_process_alone_claims_without_reading(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its last write left is enough, with the slots that have ended meanwhile."""
    journal, limit = make(), RateLimit(2, per=0.2)
    for _ in range(2):
        answer = await claim(journal, first := intent(), limit)
        assert isinstance(answer, Claimed)
        await journal.advance(
            first.intent_id, State.ACCEPTED, slot=answer.slot, task_id=first.intent_id
        )
    with asked(monkeypatch) as seen:
        assert isinstance(await claim(journal, intent(), limit), Busy)
        assert "write" not in seen
    await asyncio.sleep(0.25)
    with asked(monkeypatch) as seen:
        assert isinstance(await claim(journal, intent(key="k"), limit), Claimed)
    assert seen == ["write"]


@pytest.mark.fault("S15")
@pytest.mark.parametrize("what", ["key", "other key", "intent", "slots", "clock"])
async def test_what_a_claim_recalls_is_wrong(
    make: Make, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Then nothing is written, it is served as usual, and the server's log has no error."""
    journal, other, limit = make(), make(), RateLimit(3, per=60.0)
    mine = intent(key="k")
    await journal.rows()  # the first job of a journal prunes it afterwards
    await claimed(other, intent(key="k" if what == "key" else "another"))
    resting = await claim(journal, intent(), limit)
    assert isinstance(resting, Claimed)
    if what == "slots":
        assert isinstance(await claim(other, intent(), limit), Claimed)
    elif what == "other key":
        assert isinstance(await claim(other, intent(), account="other"), Claimed)
    elif what == "intent":
        answer = await claim(journal, mine)
        assert isinstance(answer, Claimed)
        await journal.release(answer.slot, sent=False)
    elif what == "clock":  # the process believes that the server is half a second further
        table = journal._session()._table
        assert table is not None
        table._clocks = table._clocks[0] + 0.5, table._clocks[1]
    with asked(monkeypatch) as seen:
        answer = await claim(journal, mine, limit)
    expected = {"key": Standing, "slots": Busy}.get(what, Claimed)
    assert isinstance(answer, expected)
    writes = {"key": 1, "slots": 1, "other key": 1}.get(what, 2)
    assert seen[0] == "write"
    assert seen.count("write") == writes
    assert set(seen) - {"read", "write"} == ({"UnknownPostgresError"} if what == "clock" else set())


@pytest.mark.one_python
@pytest.mark.fault("S15")
async def test_processes_race_for_keys(postgres: Server, schema: str) -> None:
    """Exactly one of three gets each key."""
    with ExitStack() as stack:
        racers = [stack.enter_context(program("race", postgres.url, schema)) for _ in range(3)]
        assert [await line(each) for each in racers] == ["ready"] * 3
        for each in racers:
            print(file=each.stdin, flush=True)
        wins = [(await line(each)).split() for each in racers]
        for each in racers:
            print(file=each.stdin, flush=True)
            each.wait(20)
    assert sorted(int(each) for some in wins for each in some) == list(range(60))


async def test_a_conflict_is_tried_again_however_late(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows that the server works, so nobody gets an error for it."""
    journals = [make() for _ in range(8)]
    await claimed(journals[0])
    await asyncio.gather(*(each.rows() for each in journals))
    monkeypatch.setattr(session_module, "TIMEOUT", 0.0)
    limit = RateLimit(100, per=60.0)
    answers = await asyncio.gather(*(claim(each, intent(), limit) for each in journals * 3))
    assert all(isinstance(each, Claimed) for each in answers)


@pytest.mark.fault("S15")
@pytest.mark.parametrize("is_resting", [True, False])
async def test_a_row_changes_between_reading_and_writing(
    make: Make, monkeypatch: pytest.MonkeyPatch, *, is_resting: bool
) -> None:
    """A callback comes at another machine while the next POST is claimed: it is not sent."""
    journal, other, mine, ask = make(), make(), intent(), Session._ask
    answer = await claim(journal, mine)
    assert isinstance(answer, Claimed)
    if is_resting:
        await journal.release(answer.slot, sent=False)

    async def late(session: Session, method: str, statement: str, *values: object) -> Any:
        if "write_1" in statement:
            monkeypatch.setattr(Session, "_ask", ask)
            await other.advance(mine.intent_id, State.ACCEPTED, task_id="t")
        return await ask(session, method, statement, *values)

    monkeypatch.setattr(Session, "_ask", late)
    assert isinstance(await claim(journal, mine), Standing)
    row = await other.find(intent_id=mine.intent_id)
    assert row is not None
    assert (row.state, row.task_id) == (State.ACCEPTED, "t")


async def test_a_process_that_stands_still_with_the_account_locked(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait 5 s at most: then the server ends its connection, and it tries again."""
    monkeypatch.setattr(session_module, "_OPTIMISTIC_TRIES", 0)
    journal, other, lock = make(), make(), Session._lock_accounts
    await claimed(journal)
    await claimed(other)

    async def stop(session: Session, jobs: Any) -> None:
        await lock(session, jobs)
        if session is journal._session():
            monkeypatch.setattr(Session, "_lock_accounts", lock)
            await session._ask("execute", "SET LOCAL idle_in_transaction_session_timeout = 300")
            stopped.set()
            await asyncio.sleep(1.0)

    stopped = asyncio.Event()
    monkeypatch.setattr(Session, "_lock_accounts", stop)
    claiming = asyncio.ensure_future(claim(journal, intent()))
    await stopped.wait()
    begun = time.monotonic()
    assert isinstance(await claim(other, intent()), Claimed)
    assert 0.2 < time.monotonic() - begun < 0.9
    assert isinstance(await claiming, Claimed)


async def test_ten_processes_create_the_schema_at_once(
    postgres: Server, make: Make, schema: str
) -> None:
    """The schema is made once."""
    await asyncio.gather(*(claimed(make(), intent(key=f"k{n}")) for n in range(10)))
    assert len(await make().rows(SCOPE)) == 10
    assert len(await postgres.execute(f'SELECT * FROM "{schema}".meta')) == 1


async def test_one_text_that_cannot_be_stored(make: Make) -> None:
    """It fails alone, also among others in one transaction."""
    journal = make()
    await journal.rows()
    good, bad = intent(key="good"), intent(key="bad", metadata={"note": "\0"})
    answers = await asyncio.gather(
        *(claim(journal, each) for each in (good, bad, intent())), return_exceptions=True
    )
    assert [type(each) for each in answers] == [Claimed, JournalError, Claimed]
    with pytest.raises(JournalError):
        await journal.find(key=(SCOPE, "\0"))


@pytest.mark.fault("P9")
async def test_the_servers_clock_is_set_back(postgres: Server, make: Make, schema: str) -> None:
    """By an hour: a pause after a 429 and the slots do not last an hour longer."""
    journal, limit = make(), RateLimit(2, per=60.0)
    slots = [await claim(journal, intent(), limit) for _ in range(2)]
    assert isinstance(slots[0], Claimed)
    await journal.release(slots[0].slot, sent=True, pause=5.0)
    for table, columns in (
        ("accounts", ("paused_until", "halves_from", "grows_at", "written_at")),
        ("slots", ("started", "ends_at")),
    ):
        later = ", ".join(f"{column} = {column} + 3600" for column in columns)
        await postgres.execute(f'UPDATE "{schema}".{table} SET {later}')
    for least, most in ((4.0, 5.0), (3.0, 4.5)):
        answer = await claim(journal, intent(), limit)
        assert isinstance(answer, Busy)
        assert least < answer.retry_in <= most
        await asyncio.sleep(0.6)
    slot = await claim(make(), intent(), RateLimit(9, per=0.1), account="other")
    assert isinstance(slot, Claimed)


@asynccontextmanager
async def clock_that_jumps(
    postgres: Server, schema: str
) -> AsyncIterator[tuple[PostgresJournal, Callable[[float], Awaitable[Any]]]]:
    """A journal whose server's clock can be set forward or back by some seconds."""
    clock = new_schema()
    for statement in (
        'CREATE SCHEMA "{0}"',
        'CREATE TABLE "{0}".shift AS SELECT 0.0::float8 AS by',
        """CREATE FUNCTION "{0}".clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
        SELECT pg_catalog.clock_timestamp() + (SELECT by * interval '1 s' FROM "{0}".shift) $$""",
    ):
        await postgres.execute(statement.format(clock))
    journal = PostgresJournal(f"{postgres.url}?search_path={clock},pg_catalog", schema=schema)
    yield journal, lambda by: postgres.execute(f'UPDATE "{clock}".shift SET by = {by}')
    await journal.aclose()
    await postgres.execute(f'DROP SCHEMA "{clock}" CASCADE')


@pytest.mark.fault("P9")
@pytest.mark.parametrize("by", [-3600.0, -0.2, 0.2, 5.0])
@pytest.mark.parametrize("is_resting", [True, False])
async def test_the_servers_clock_jumps_between_two_claims(
    postgres: Server, schema: str, by: float, *, is_resting: bool
) -> None:
    """A claim of what has a row is written, whatever the process recalls."""
    limit = RateLimit(5, per=60.0)
    async with clock_that_jumps(postgres, schema) as (journal, jump):
        await journal.rows()
        other, mine = intent(), intent(key="k")
        slots = [await claim(journal, each, limit) for each in (other, mine)]
        assert isinstance(slots[0], Claimed)
        assert isinstance(slots[1], Claimed)
        if is_resting:
            await journal.release(slots[1].slot, sent=True)
        else:
            await journal.advance(mine.intent_id, State.REFUSED, slot=slots[1].slot)
            mine = intent(key="k")
        await jump(by)
        await journal.advance(other.intent_id, State.ACCEPTED, slot=slots[0].slot, task_id="t")
        assert isinstance(await claim(journal, mine, limit), Claimed)
        row = await journal.find(intent_id=mine.intent_id)
        assert row is not None
        assert row.state is State.SENDING
        assert len(await postgres.execute(f'SELECT FROM "{schema}".slots')) == 3


async def test_without_prompts(postgres: Server, schema: str) -> None:
    """No request and no params of a task are stored; a request can still be compared."""
    journal = PostgresJournal(postgres.url, schema=schema, store_prompts=False)
    row = await claimed(journal, intent(key="k"))
    assert (row.request, row.fingerprint[:7]) == (None, "sealed:")
    assert (await standing(journal, intent(key="k"))).same
    assert not (await standing(journal, intent(TextToImage("a wolf"), key="k"))).same
    await journal.advance(row.intent_id, State.ACCEPTED, task_id="t")
    await journal.advance(row.intent_id, State.SUCCEEDED, details=details_of("t"))
    [stored] = await postgres.execute(f'SELECT request, details FROM "{schema}".intents')
    assert stored["request"] is None
    assert "fox" not in stored["details"]
    await journal.aclose()


async def test_a_caller_that_leaves_before_its_turn(make: Make) -> None:
    """Nothing is written for it; what has begun is finished."""
    journal, begun, waiting = make(), intent(), intent()
    await journal.rows()
    while len(journal._session()._tasks):
        await journal._session()._tasks.join()  # it prunes when it was opened
    calls = [asyncio.ensure_future(claim(journal, begun))]
    for _ in range(3):  # before Python 3.12 its work begins a turn later
        await asyncio.sleep(0)
    calls.append(asyncio.ensure_future(claim(journal, waiting)))
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await journal.note(SCOPE, "after", "all that was", "to be written")
    assert await journal.find(intent_id=waiting.intent_id) is None
    assert await journal.find(intent_id=begun.intent_id) is not None


async def test_a_row_that_cannot_be_read(postgres: Server, make: Make, schema: str) -> None:
    """Of a damaged database, or a newer release; a request that nobody knows is only missing."""
    journal = make()
    row = await claimed(journal, intent(key="k"))
    await postgres.execute(f"""UPDATE "{schema}".intents SET request = '{{"odd": 1}}'""")
    found = await journal.find(intent_id=row.intent_id)
    assert found is not None
    assert found.request is None
    await postgres.execute(f"UPDATE \"{schema}\".intents SET state = 'odd'")
    for call in (journal.rows(), journal.find(intent_id=row.intent_id), claim(journal, row)):
        with pytest.raises(JournalError, match="cannot be read"):
            await call


# ─── owners ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("S14")
@pytest.mark.parametrize("what", ["hold", "fork"])
async def test_a_killed_process(postgres: Server, make: Make, schema: str, what: str) -> None:
    """What it was sending is UNKNOWN at once, also if a child of it lives on."""
    with program(what, postgres.url, schema) as process:
        said = await line(process)
        assert said.startswith("claimed")
        journal = make()
        if what == "hold":
            assert (await standing(journal, intent(key="k"))).intent.state is State.SENDING
            process.kill()
        process.wait(10)
        killed = time.monotonic()
        while (await standing(journal, intent(key="k"))).intent.state is State.SENDING:
            assert time.monotonic() - killed < 2
            await asyncio.sleep(0.005)
        print(f"its lock was free after {time.monotonic() - killed:.3f} s")
        if what == "fork":
            os.kill(int(said.split()[1]), signal.SIGKILL)


async def end_owner(postgres: Server, journal: PostgresJournal) -> None:
    """End the connection that is a journal's owner, at the server."""
    process = journal._session()._owner.get_server_pid()
    await postgres.execute("SELECT pg_terminate_backend($1, 5000)", process)


@pytest.mark.fault("S25")
async def test_a_lost_owner_does_not_send(postgres: Server, make: Make) -> None:
    """The last check before its POST finds that the row is not its own any more."""
    journal, other, limit = make(), make(), RateLimit(5, per=60.0)
    sending = intent(key="k")
    before = await claimed(journal, sending)
    await end_owner(postgres, journal)
    answer = await claim(journal, sending, limit)
    assert isinstance(answer, Standing)
    assert answer.intent.state is State.UNKNOWN
    assert (await standing(other, intent(key="k"))).intent.state is State.UNKNOWN
    after = await claimed(journal, intent())
    assert after.owner not in {"", before.owner}
    late = await journal.advance(sending.intent_id, State.ACCEPTED, task_id="t")
    assert (late.state, late.task_id) == (State.ACCEPTED, "t")


async def test_an_owner_that_has_not_noticed_its_lost_lock(
    postgres: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server checks the lock with each write, whatever the client believes."""
    journal, other, sending = make(), make(), intent(key="k")
    before = await claimed(journal, sending)
    await journal._session()._owner.execute("SELECT pg_advisory_unlock_all()")
    fresh = intent()
    # This reads no row and no slot.
    assert isinstance(await claim(journal, fresh, account="other"), Claimed)
    row = await other.find(intent_id=fresh.intent_id)
    assert row is not None
    assert (row.state, row.owner != before.owner) == (State.SENDING, True)
    await journal._session()._owner.execute("SELECT pg_advisory_unlock_all()")
    answer = await claim(journal, sending)
    assert isinstance(answer, Standing)
    assert answer.intent.state is State.UNKNOWN


async def test_a_lost_owner_that_only_reads(make: Make) -> None:
    """What it was sending is UNKNOWN for itself, too."""
    journal = make()
    row = await claimed(journal)
    await journal._session()._owner.execute("SELECT pg_advisory_unlock_all()")
    found = await journal.find(intent_id=row.intent_id)
    assert found is not None
    assert found.state is State.UNKNOWN


async def test_a_lost_owner_that_only_waits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds that nobody listens for it any more, and has a new owner that does."""
    monkeypatch.setattr(journal_module, "_POLL_INTERVAL", 0.05)
    journal, other = make(), make()
    row = await claimed(other)
    async with aclosing(journal.changes()) as changes:
        await anext(changes)
        session, begun = journal._session(), time.monotonic()
        before = session._me
        await session._owner.execute("SELECT pg_advisory_unlock_all()")
        waiting = asyncio.ensure_future(anext(changes))
        while session._me in {"", before}:
            assert time.monotonic() - begun < 5
            await asyncio.sleep(0.01)
        await other.advance(row.intent_id, State.REFUSED)
        await asyncio.wait_for(waiting, 5)


async def test_a_pool_of_the_programs_own(postgres: Server, schema: str) -> None:
    """Two of its connections are used; it can be used for other things, and closed afterwards."""
    async with asyncpg.create_pool(postgres.url, min_size=0, max_size=3) as pool:
        journal = PostgresJournal(pool, schema=schema)
        row = await claimed(journal, intent(key="k"))
        assert await pool.fetchval("SELECT count(*) FROM pg_stat_activity") > 0
        assert "a pool open" in repr(journal)
        await journal.aclose()
        assert (await standing(journal, intent(key="k"))).intent.intent_id == row.intent_id
        await journal.aclose()


# ─── waking ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("C31")
@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_callback_wakes_a_waiter_elsewhere(
    make: Make, monkeypatch: pytest.MonkeyPatch, *, is_lost: bool
) -> None:
    """At once by a notification; if that is lost, when it looks the next time."""
    monkeypatch.setattr(journal_module, "_POLL_INTERVAL", 0.5 if is_lost else 60.0)
    if is_lost:
        monkeypatch.setattr(Session, "_announce", lambda _: None)
    here, there = make(), make()
    row = await claimed(here, intent())
    await here.advance(row.intent_id, State.ACCEPTED, task_id="t")
    async with aclosing(there.changes()) as changes:
        await anext(changes)
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        begun = time.monotonic()
        await here.advance(row.intent_id, State.CALLED_BACK)
        await asyncio.wait_for(waiting, 5.0)
        assert is_lost or time.monotonic() - begun < 1.0
    found = await there.find(intent_id=row.intent_id)
    assert found is not None
    assert found.state is State.CALLED_BACK


@pytest.mark.fault("C31")
@pytest.mark.fault("I1")
async def test_clients_on_several_machines(make: Make) -> None:
    """One key is bought once from three; its callback comes to a fourth, and wakes all of them."""
    async with ScriptedServer(then=mid(accepted(), looked())) as midapi, AsyncExitStack() as exits:
        receivers = [CallbackReceiver("http://127.0.0.1:1/hook") for _ in range(4)]
        clients = [client_of(midapi, receiver=each, journal=make()) for each in receivers]
        for client in clients:
            await exits.enter_async_context(client)
        waits = [
            asyncio.ensure_future(client.generate_and_wait("a red fox", key="k"))
            for client in clients[:3]
        ]
        await midapi.arrived(1)
        await asyncio.sleep(0.5)
        [body] = [each.json() for each in submits(midapi)]
        assert isinstance(body, dict)
        token = str(body["callBackUrl"]).rpartition("/")[2]
        begun = time.monotonic()
        assert await receivers[3].handle(token, {}, callback()) == 200
        details = await asyncio.wait_for(asyncio.gather(*waits), 10)
        print(f"all woken after {time.monotonic() - begun:.3f} s")
        assert {each.task_id for each in details} == {TASK}
        assert len(submits(midapi)) == 1


async def test_a_write_that_is_not_committed_yet_is_not_missed(
    postgres: Server, make: Make, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has counted already when somebody looks, and commits only after that."""
    monkeypatch.setattr(journal_module, "_POLL_INTERVAL", 0.1)
    journal = make()
    row = await claimed(journal, intent())
    connection = await asyncpg.connect(postgres.url)
    async with aclosing(journal.changes()) as changes:
        await anext(changes)
        async with connection.transaction():
            await connection.execute(f'UPDATE "{schema}".intents SET taken = true')
            await connection.execute(f"SELECT nextval('\"{schema}\".writes')")
            await asyncio.wait_for(anext(changes), 5.0)
        for _ in range(10):
            await asyncio.wait_for(anext(changes), 5.0)
            found = await journal.find(intent_id=row.intent_id)
            if found is not None and found.taken:
                break
        else:
            pytest.fail("the change was missed")
    await connection.close()


# ─── connections and servers that end ────────────────────────────────────────────────────────────


class Proxy:
    """Stands between a journal and a server, and can lose a request or an answer.

    Args:
        port: the server's.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.port = 0
        self.cut: Callable[[], None] | None = None
        self.loses_request = False
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Pass on everything meanwhile."""
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            self.drop()
            await asyncio.sleep(0.05)

    def drop(self) -> None:
        """Cut all connections."""
        for each in self._open:
            each.transport.abort()
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, to_writer}
        with suppress(OSError):
            await asyncio.gather(
                self._pass_on(reader, to_writer), self._pass_on(to_reader, writer, is_answer=True)
            )
        for each in (writer, to_writer):
            each.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool = False
    ) -> None:
        while data := await reader.read(65536):
            if is_answer is not self.loses_request and self.cut is not None:
                cut, self.cut = self.cut, None
                self.drop()
                cut()
                return
            writer.write(data)
            await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def cut_at_a_write(
    monkeypatch: pytest.MonkeyPatch, proxy: Proxy, cut: Callable[[], None]
) -> AsyncIterator[list[str]]:
    """The answer to the next write is lost, and `cut` is called."""
    seen: list[str] = []
    ask = Session._ask

    async def armed(session: Session, method: str, statement: str, *values: object) -> Any:
        if "write_1" in statement and not seen:
            seen.append(statement)
            proxy.cut = cut
        return await ask(session, method, statement, *values)

    monkeypatch.setattr(Session, "_ask", armed)
    yield seen
    assert seen, "nothing was written"
    monkeypatch.setattr(Session, "_ask", ask)


@pytest.mark.fault("S14")
@pytest.mark.parametrize("recalls", [False, True])
@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_connection_is_cut_at_a_commit(
    postgres: Server,
    schema: str,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    lost: str,
    *,
    recalls: bool,
) -> None:
    """Committed or not, the claim succeeds, once; both connections and the owner are new."""
    async with Proxy(postgres.port).running() as proxy:
        proxy.loses_request = lost == "request"
        url = f"postgresql://{SUPERUSER}@127.0.0.1:{proxy.port}/postgres"
        journal, limit, mine = PostgresJournal(url, schema=schema), RateLimit(3, per=60.0), intent()
        await journal.rows()
        await claimed(journal if recalls else make())
        async with cut_at_a_write(monkeypatch, proxy, lambda: None):
            answer = await claim(journal, mine, limit)
        assert isinstance(answer, Claimed)
        assert answer.free == 1  # one slot was taken, not two
        row = await make().find(intent_id=mine.intent_id)
        assert row is not None
        assert row.state is State.SENDING
        async with cut_at_a_write(monkeypatch, proxy, lambda: None):
            after = await journal.advance(
                mine.intent_id, State.ACCEPTED, slot=answer.slot, task_id="t"
            )
        assert (after.state, after.task_id) == (State.ACCEPTED, "t")
        await journal.aclose()


@pytest.mark.one_python
@pytest.mark.fault("S14")
async def test_the_server_is_killed_during_a_claim(
    schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its row was written or not, the claim succeeds when the server is back, once."""
    # Only the processes end: what they have written is the system's, synced or not.
    monkeypatch.setattr(session_module, "TIMEOUT", 60.0)
    with server() as killed:

        def kill() -> None:
            killed.kill()
            killed.start()

        async with Proxy(killed.port).running() as proxy:
            url = f"postgresql://{SUPERUSER}@127.0.0.1:{proxy.port}/postgres"
            journal, limit = PostgresJournal(url, schema=schema), RateLimit(20, per=60.0)
            confirmed = [await claimed(journal, intent(key="first"))]
            for n in range(4):
                mine = intent(key=f"k{n}")
                proxy.loses_request = n % 2 == 1
                async with cut_at_a_write(monkeypatch, proxy, kill):
                    assert isinstance(await claim(journal, mine, limit), Claimed)
                confirmed.append(mine)
            found = {row.intent_id: row.state for row in await journal.rows()}
            assert found.keys() == {each.intent_id for each in confirmed}
            assert found[confirmed[-1].intent_id] is State.SENDING
            slots = await killed.execute(f'SELECT intent_id FROM "{schema}".slots')
            assert len(slots) == len(confirmed)
            await journal.aclose()


async def test_a_server_that_cannot_be_reached(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that never worked says so at once; one that did waits for some seconds."""
    monkeypatch.setattr(session_module, "TIMEOUT", 1.0)
    port = free_port()
    password = secrets.known("a-password-of-postgres")
    journal = PostgresJournal(f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{port}/postgres")
    begun = time.monotonic()
    with pytest.raises(JournalError, match="cannot be reached") as caught:
        await journal.rows()
    assert time.monotonic() - begun < 0.9
    secrets.assert_none_in(journal, caught.value)
    assert secrets.found_in_locals(caught.value) == []
    await journal.aclose()
    await claimed(working := make())
    working._database = f"postgresql://{SUPERUSER}@127.0.0.1:{port}/postgres"
    working._session()._target = working._database
    working._session()._drop_worker()
    with pytest.raises(JournalError, match="cannot be reached"):
        await working.rows()


async def test_a_server_that_is_starting(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and a journal that was not open before waits for it, too; not for ever."""
    connect, refusals = session_module._new_connection, 2

    async def starting(target: str) -> Any:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise asyncpg.CannotConnectNowError("the database system is starting up")
        return await connect(target)

    monkeypatch.setattr(session_module, "_new_connection", starting)
    assert await make().rows() == []
    refusals = sys.maxsize
    monkeypatch.setattr(session_module, "TIMEOUT", 0.5)
    with pytest.raises(JournalError, match="starting up"):
        await make().rows()


@pytest.mark.fault("P23")
@pytest.mark.parametrize("ahead", [3600.0, -3600.0, 0.3])
async def test_a_machine_whose_clock_is_wrong(
    make: Make, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """Its rows are as old as the server says; others compare these times."""
    journal, mine, now = make(), intent(), time.time()
    clock = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + ahead)
    monkeypatch.setattr(table_module, "time", clock)
    row = await claimed(journal, attrs.evolve(mine, created_at=now + ahead))
    assert abs(row.created_at - now) < 1
    second = await claimed(journal, attrs.evolve(intent(), created_at=now + ahead))
    assert abs(second.created_at - now) < 1


# ─── refused ─────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def pgbouncer(port: int, mode: str) -> Iterator[str]:
    """A real pooler before a server; its address."""
    with new_folder() as folder:
        own = free_port()
        (folder / "users").write_text(f'"{SUPERUSER}" ""\n')
        (folder / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={port}\n[pgbouncer]\nlisten_addr=127.0.0.1\n"
            f"listen_port={own}\nunix_socket_dir=\nauth_type=trust\nauth_file={folder}/users\n"
            f"pool_mode={mode}\nserver_round_robin=1\n"
        )
        command = as_user("/usr/sbin/pgbouncer", "-q", folder / "ini")
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log, cwd="/") as process,
        ):
            ready = [str(programs() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(own)]
            until = time.monotonic() + 10
            while subprocess.run(ready, check=False).returncode and time.monotonic() < until:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
            try:
                yield f"postgresql://{SUPERUSER}@127.0.0.1:{own}/postgres"
            finally:
                process.kill()


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("prepares", [True, False])
async def test_a_pooler_in_transaction_mode_is_refused(
    postgres: Server, schema: str, number: int, *, prepares: bool
) -> None:
    """LISTEN and locks get lost there, whether it uses one connection or several by turns."""
    with pgbouncer(postgres.port, "transaction") as url:
        others = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(number)]
        for each in others:
            await each.execute("BEGIN")
        for each in others:
            await each.execute("ROLLBACK")
        # Newer poolers know prepared statements, so those need not be what fails.
        options = {} if prepares else {"statement_cache_size": 0}
        async with asyncpg.create_pool(url, min_size=0, **options) as pool:
            journal = PostgresJournal(pool, schema=schema)
            with pytest.raises(JournalError, match="pool_mode = session"):
                await journal.rows()
            await journal.aclose()
        for each in others:
            await each.close()


async def test_a_pooler_in_session_mode(postgres: Server, schema: str) -> None:
    """It changes nothing."""
    with pgbouncer(postgres.port, "session") as url:
        one, two = (PostgresJournal(url, schema=schema) for _ in range(2))
        row = await claimed(one, intent(key="k"))
        assert (await standing(two, intent(key="k"))).intent == row
        await one.aclose()
        assert (await standing(two, intent(key="k"))).intent.state is State.UNKNOWN
        await two.aclose()


@pytest.mark.one_python
async def test_a_standby_is_refused(schema: str) -> None:
    """And what a standby was to confirm, and did not, is an error: nothing is sent then."""
    with server(wal_level="replica", max_wal_senders="4") as primary, new_folder() as folder:
        copy = as_user(programs() / "pg_basebackup", "-d", primary.url, "-D", folder / "data", "-R")
        await asyncio.to_thread(
            subprocess.run, [*copy, "-c", "fast", "--no-sync"], check=True, cwd="/", timeout=60
        )
        standby = Server(folder / "data", {"hot_standby": "on"})
        try:
            await asyncio.to_thread(standby.start)
            journal = PostgresJournal(standby.url, schema=schema)
            with pytest.raises(JournalError, match="read-only standby"):
                await journal.rows()
            await journal.aclose()
        finally:
            standby.kill()
        await not_confirmed(primary, schema)


async def not_confirmed(primary: Server, schema: str) -> None:
    """A write that waits for a standby, and is told to wait no longer."""
    journal = PostgresJournal(primary.url, schema=schema)
    await claimed(journal, intent())
    await primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await primary.execute("SELECT pg_reload_conf()")
    await asyncio.sleep(0.3)
    claiming = asyncio.ensure_future(claim(journal, intent(key="k")))
    cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    while not await primary.execute(cancel):
        await asyncio.to_thread(time.sleep, 0.05)
    with pytest.raises(JournalError, match="did not confirm"):
        await claiming
    await primary.execute("ALTER SYSTEM RESET synchronous_standby_names")
    await primary.execute("SELECT pg_reload_conf()")
    await journal.aclose()


async def test_a_role_that_may_not_create(postgres: Server, schema: str) -> None:
    """It is told what to do; and where the schema is made for it, it needs no more."""
    await postgres.execute(f'CREATE ROLE "{schema}" LOGIN')
    url = postgres.url.replace(SUPERUSER, schema)
    journal = PostgresJournal(url, schema=schema)
    with pytest.raises(JournalError, match="GRANT CREATE ON DATABASE"):
        await journal.rows()
    await postgres.execute(f'CREATE SCHEMA "{schema}" AUTHORIZATION "{schema}"')
    await claimed(journal, intent())
    await journal.aclose()


async def test_a_schema_of_a_newer_release(postgres: Server, make: Make, schema: str) -> None:
    """It is refused, also by a journal that had it open before."""
    journal = make()
    await claimed(journal)
    version = schema_module.VERSION
    await postgres.execute(f'UPDATE "{schema}".meta SET version = {version + 1}')
    await postgres.execute(f'ALTER FUNCTION "{schema}".write_1 RENAME TO write_2')
    with pytest.raises(JournalError, match="newer release of midapi_async"):
        await make().rows()
    with pytest.raises(JournalError, match="update midapi_async"):
        await claimed(journal)


async def test_a_schema_of_an_older_release(
    postgres: Server, make: Make, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several that start at once one brings it up to date, and nothing is lost."""
    old = make()
    row = await claimed(old, intent(key="k"))
    step = "CREATE TABLE SCHEMA.more (x integer)"
    monkeypatch.setattr(schema_module, "STEPS", (*schema_module.STEPS, step))
    new = [make() for _ in range(4)]
    found = await asyncio.gather(*(standing(each, intent(key="k")) for each in new))
    assert [each.intent for each in found] == [row] * 4
    assert await postgres.execute(f'SELECT * FROM "{schema}".more') == []
    [meta] = await postgres.execute(f'SELECT version FROM "{schema}".meta')
    assert meta["version"] == len(schema_module.STEPS)


async def test_a_server_that_is_too_old(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here, so the newest release is too old for once."""
    monkeypatch.setattr(session_module, "_OLDEST_SERVER", 99)
    with pytest.raises(JournalError, match="older than 99"):
        await make().rows()


@pytest.mark.parametrize("database", [7, "mysql://host/x", "host"])
def test_what_is_no_database(database: object) -> None:
    """It is refused before anything is opened."""
    with pytest.raises(InvalidRequestError, match=r"postgresql://"):
        PostgresJournal(database)
    with pytest.raises(InvalidRequestError, match="small letters"):
        PostgresJournal("postgresql://host/x", schema='a"b')


async def test_a_client_takes_the_url(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, schema: str
) -> None:
    """As an argument or in MIDAPI_JOURNAL."""
    for given in (postgres.url, None):
        if given is None:
            monkeypatch.setenv("MIDAPI_JOURNAL", postgres.url)
        client = MidAPIClient("key", journal=given)
        assert isinstance(client._journal, PostgresJournal)
        where = postgres.url.rpartition("@")[2].partition("?")[0]
        assert repr(client._journal) == f"<PostgresJournal {where} closed>"
