"""A disk that is full, broken or locked by another program (S16, S17, S27), no descriptor (S28)."""

import asyncio
import json
import os
import resource
import sqlite3
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest

from midapi_async import CallbackReceiver, MidAPIClient, RateLimit, RetryPolicy, TaskHandle
from midapi_async.errors import (
    ClientClosed,
    JournalError,
    SubmissionUnknown,
    TransportError,
    WaitTimeout,
)
from midapi_async.journal import Claimed, State
from midapi_async.journal.sqlite import SQLiteJournal, store
from tests.journal.world import FOX, SCOPE, claim, claimed, ids, in_thread, intent, together
from tests.support.scripted import Answer, Received, ScriptedServer, reply
from tests.world import TASK, client_of, selling, submits
from tests.world import accepted as accepts

LONG = {"note": "x" * 4000}
IO_ERROR = sqlite3.OperationalError("disk I/O error")


class Disk:
    """Breaks the statements of every connection that is made while it is in place."""

    def __init__(self) -> None:
        self.where: str | None = None
        self.error: Exception = IO_ERROR
        self.left = 0

    def breaks(self, where: str, error: Exception = IO_ERROR, *, times: int = 10**9) -> None:
        """From now on statements that begin so fail."""
        self.where, self.error, self.left = where, error, times

    def mend(self) -> None:
        """They work again."""
        self.where = None

    def meets(self, statement: str) -> None:
        """Raise the error if it is time for it."""
        if self.where is not None and statement.startswith(self.where) and self.left > 0:
            self.left -= 1
            raise self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk under every journal of the test."""
    made = Disk()

    class Breakable(sqlite3.Connection):
        def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
            made.meets(sql)
            return super().execute(sql, *args)  # type: ignore[arg-type]  # passed on

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda *args, **options: connect(*args, factory=Breakable, **options),
    )
    return made


# ─── full ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Set its one number to the most pages that the database may have, or empty it."""
    most: list[int] = []
    connect = store._connect

    def limited(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        if most:
            connection.execute(f"PRAGMA max_page_count={most[0]}").fetchall()
        return connection

    monkeypatch.setattr(store, "_connect", limited)
    return most


async def full(journal: SQLiteJournal, pages: list[int], *, spare: int = 0) -> None:
    """From now on the disk has so many pages left, also for connections that are made later."""

    def limit(its: store.Store) -> None:
        with its._locked() as table:
            (now,) = table.connection.execute("PRAGMA page_count").fetchone()
            pages[:] = [now + spare]
            table.connection.execute(f"PRAGMA max_page_count={pages[0]}").fetchall()

    await in_thread(journal, limit)


@pytest.mark.fault("S16")
async def test_a_full_disk(sqlite: SQLiteJournal, pages: list[int]) -> None:
    """Nothing is claimed; what is there can be read; with space again it goes on by itself."""
    row = await claimed(sqlite, intent(key="k"))
    await full(sqlite, pages)
    for _ in range(3):
        with pytest.raises(JournalError, match=r"journal\.sqlite .*full.*free some space"):
            await claim(sqlite, intent(key="lost", metadata=LONG))
    assert await sqlite.rows(SCOPE) == [row]
    assert await sqlite.find(key=(SCOPE, "lost")) is None
    await full(sqlite, pages, spare=1000)
    await claimed(sqlite, intent(key="lost", metadata=LONG))
    assert await sqlite.check() == []


@pytest.mark.fault("S16")
async def test_the_last_space_on_a_disk(sqlite: SQLiteJournal, pages: list[int]) -> None:
    """A caller whose row still has room is not refused with those that have none."""
    row = await claimed(sqlite)
    await full(sqlite, pages, spare=3)
    big = [intent(metadata=LONG) for _ in range(5)]
    got = await together(
        sqlite,
        *(claim(sqlite, each) for each in big),
        sqlite.advance(row.intent_id, State.ACCEPTED, task_id="t"),
    )
    kept = {big[n].intent_id for n, each in enumerate(got[:5]) if isinstance(each, Claimed)}
    assert 0 < len(kept) < 5
    assert set(await ids(sqlite)) == kept | {row.intent_id}
    assert await ids(sqlite, State.ACCEPTED) == [row.intent_id]


# ─── broken ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("S17")
async def test_a_task_id_is_written_again_later(sqlite: SQLiteJournal, disk: Disk) -> None:
    """A task id that could not be written can be when the disk works again."""
    row = await claimed(sqlite)
    disk.breaks("UPDATE")
    with pytest.raises(JournalError, match="disk I/O error"):
        await sqlite.advance(row.intent_id, State.ACCEPTED, task_id="t")
    assert await sqlite.rows(SCOPE) == [row]
    disk.mend()
    assert (await sqlite.advance(row.intent_id, State.ACCEPTED, task_id="t")).task_id == "t"


@pytest.mark.fault("S16")
@pytest.mark.parametrize("where", ["BEGIN", "INSERT", "UPDATE meta", "COMMIT", "PRAGMA", "SELECT"])
async def test_an_error_of_the_disk_at_each_step(
    sqlite: SQLiteJournal, disk: Disk, where: str
) -> None:
    """Each caller gets an error of its own, nothing is half written and the next try succeeds."""
    await claimed(sqlite)
    disk.breaks(where)
    wanted = [intent() for _ in range(5)]
    got = await together(sqlite, *(claim(sqlite, each) for each in wanted))
    assert [type(each) for each in got] == [JournalError] * 5
    assert len({id(each) for each in got}) == 5
    disk.mend()
    assert len(await sqlite.rows(SCOPE)) == 1
    got = await together(sqlite, *(claim(sqlite, each) for each in wanted))
    assert [type(each) for each in got] == [Claimed] * 5
    assert len(await sqlite.rows(SCOPE)) == 6


@pytest.mark.fault("S16")
@pytest.mark.parametrize("where", ["INSERT", "UPDATE meta", "COMMIT"])
async def test_a_transaction_that_fails_once(sqlite: SQLiteJournal, disk: Disk, where: str) -> None:
    """Those that shared it are tried one by one, and none is refused without need."""
    await claimed(sqlite)
    disk.breaks(where, times=1)
    got = await together(sqlite, *(claim(sqlite, intent()) for _ in range(5)))
    assert [type(each) for each in got] == [Claimed] * 5
    assert len(await sqlite.rows(SCOPE)) == 6


@pytest.mark.fault("S16")
@pytest.mark.fault("S23")
async def test_a_mark_that_cannot_be_written(
    sqlite: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets an error before money is spent; the same intent can be claimed later."""
    await claimed(sqlite)
    mine = intent(key="k")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store, "sync", fail)
    with pytest.raises(JournalError, match="Input/output error"):
        await claim(sqlite, mine)
    monkeypatch.undo()
    assert isinstance(await claim(sqlite, mine), Claimed)
    assert len(await sqlite.rows(SCOPE)) == 2


async def test_reading_from_a_broken_disk(sqlite: SQLiteJournal, disk: Disk) -> None:
    """It is a JournalError; when the disk works again, so does the journal."""
    row = await claimed(sqlite)
    disk.breaks("SELECT", sqlite3.DatabaseError("database disk image is malformed"))
    with pytest.raises(JournalError, match="malformed"):
        await sqlite.find(intent_id=row.intent_id)
    with pytest.raises(JournalError, match="malformed"):
        async with aclosing(sqlite.changes()) as changes:
            await anext(changes)
    assert not sqlite._watchers
    disk.mend()
    assert await sqlite.find(intent_id=row.intent_id) == row


async def test_tidying_on_a_broken_disk(
    sqlite: SQLiteJournal,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only the log says so; what was claimed stands, and the journal opens again."""
    await claimed(sqlite)
    monkeypatch.setattr(store, "_CHECKPOINT_EVERY", 1)
    disk.breaks("PRAGMA wal_checkpoint")
    await claimed(sqlite)
    await sqlite.rows(SCOPE)
    assert "could not be tidied" in caplog.text
    disk.mend()
    assert len(await sqlite.rows(SCOPE)) == 2
    await sqlite.aclose()
    assert len(await sqlite.rows(SCOPE)) == 2


@pytest.mark.fault("S16")
async def test_a_folder_that_cannot_be_made(
    sqlite: SQLiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a JournalError, and nothing else is left of the try."""

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(JournalError, match=r"Read-only file system.*check that its folder"):
        await claim(sqlite, intent())
    monkeypatch.undo()
    await claimed(sqlite)


async def test_a_disk_that_fills_while_the_journal_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half made is no journal; the next try makes a whole one."""

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    journal = SQLiteJournal(folder)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(JournalError, match="No space left"):
        await claim(journal, intent())
    monkeypatch.undo()
    await claimed(journal)
    await journal.aclose()


# ─── locked ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.one_python
@pytest.mark.real_time
@pytest.mark.fault("S27")
async def test_a_database_that_another_program_has_locked(
    sqlite: SQLiteJournal, folder: Path
) -> None:
    """Writers get one error within 10 s, however many there are; readers are served at once."""
    await claimed(sqlite)
    shell = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    calls = [asyncio.ensure_future(claim(sqlite, intent())) for _ in range(10)]
    await asyncio.sleep(0.1)  # behind the first batch
    calls += [asyncio.ensure_future(claim(sqlite, intent())) for _ in range(10)]
    got = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in got] == [JournalError] * 20
    assert "another program has locked it" in str(got[0])
    assert time.monotonic() - started < 10
    started = time.monotonic()
    assert len(await sqlite.rows(SCOPE)) == 1
    assert time.monotonic() - started < 1
    shell.execute("ROLLBACK")
    await claimed(sqlite)
    shell.close()
    assert len(await sqlite.rows(SCOPE)) == 2


@pytest.mark.fault("S27")
async def test_a_database_that_is_locked_while_it_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers and readers get their error after one wait for all; later it opens."""
    monkeypatch.setattr(store, "_BUSY_TIMEOUT", 0.5)
    journal = SQLiteJournal(folder)
    await claimed(journal)
    await journal.aclose()
    shell = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    shell.execute("PRAGMA locking_mode=EXCLUSIVE")
    shell.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    got = await together(
        journal, *(claim(journal, intent()) for _ in range(10)), journal.find(task_id="t")
    )
    assert [type(each) for each in got] == [JournalError] * 11
    assert "locked" in str(got[0])
    assert time.monotonic() - started < 3
    shell.execute("ROLLBACK")
    shell.close()
    await claimed(journal)
    await journal.aclose()


LOCKS_IT = (
    "import sqlite3, sys\n"
    "shell = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    "shell.execute('BEGIN EXCLUSIVE')\n"
    "print('locked', flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.mark.one_python
@pytest.mark.real_time
@pytest.mark.fault("S27")
async def test_a_database_that_stays_locked(folder: Path) -> None:
    """Everybody gets an error within 10 s: a gate full of callers, four processes, a callback."""
    receiver = CallbackReceiver("http://127.0.0.1:1", port=0)
    others = [SQLiteJournal(folder) for _ in range(3)]
    took: list[float] = []

    async def timed(call: Coroutine[object, object, object]) -> object:
        started = time.monotonic()
        (got,) = await asyncio.gather(call, return_exceptions=True)
        took.append(time.monotonic() - started)
        return got

    async with ScriptedServer(then=selling()) as server:
        options = {"journal": folder, "receiver": receiver, "rate_limit": RateLimit(20)}
        async with client_of(server, **options) as client:
            await client.generate("a fox")
            ordered = submits(server)[0].json()
            assert isinstance(ordered, dict)
            token = ordered["callBackUrl"].rpartition("/")[2]
            for journal in others:
                await claimed(journal)
            shell = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", LOCKS_IT, str(folder / "journal.sqlite")),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert shell.stdin is not None
            assert shell.stdout is not None
            await shell.stdout.readline()
            task = {"taskId": f"{0:032x}", "resultUrls": ["https://x/1"]}
            body = json.dumps({"code": 200, "data": task}).encode()
            got = await asyncio.gather(
                *(timed(client.generate("a fox", key=f"k{n}")) for n in range(60)),
                *(timed(claim(journal, intent())) for journal in others for _ in range(5)),
                timed(receiver.handle(token, {}, body)),
            )
            shell.stdin.close()
            await shell.wait()
            assert {type(each) for each in got[:-1]} == {JournalError}
            assert got[-1] == 503

            assert max(took) < 10
            assert len(submits(server)) == 1
            await client.generate("a fox", key="k0")
            assert len(submits(server)) == 2
        for journal in others:
            await journal.aclose()


@pytest.mark.fault("S17")
@pytest.mark.real_time
@pytest.mark.fault("S26")
@pytest.mark.parametrize("answer", ["accepted", "lost"])
async def test_an_outcome_that_cannot_be_written_before_the_client_closes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    """A CRITICAL line says so, and others see UNKNOWN though the journal's object stays open."""
    monkeypatch.setattr(store, "_BUSY_TIMEOUT", 0.3)
    shells: list[sqlite3.Connection] = []

    def locked(request: Received) -> Answer:
        shells.append(sqlite3.connect(folder / "journal.sqlite", isolation_level=None))
        shells[0].execute("BEGIN EXCLUSIVE")
        return accepts(TASK) if answer == "accepted" else reply(502)

    journal = SQLiteJournal(folder)
    async with ScriptedServer([locked]) as server:
        async with client_of(server, journal=journal) as client:
            if answer == "accepted":
                assert (await client.generate("a fox", key="k")).task_id == TASK
            else:
                with pytest.raises(SubmissionUnknown):
                    await client.generate("a fox", key="k")
        found = caplog.records[-1]
        assert found.levelname == "CRITICAL"
        assert "was never written to the journal" in found.getMessage()
        assert (TASK in found.getMessage()) == (answer == "accepted")
        shells[0].close()
        other = SQLiteJournal(folder)
        row = await other.find(key=(f"{server.url} default", "k"))
        assert row is not None
        assert row.state is State.UNKNOWN
        await other.aclose()
    await claimed(journal)
    await journal.aclose()


@pytest.mark.fault("S26")
async def test_a_row_that_another_process_sends(
    folder: Path, sqlite: SQLiteJournal, caplog: pytest.LogCaptureFixture
) -> None:
    """Waits for it end by their deadline or by `stop_waiting`, and name the process."""
    async with ScriptedServer() as server, client_of(server, journal=folder) as client:
        row = await claimed(sqlite, intent(key="k", scope=f"{server.url} default"))
        with pytest.raises(WaitTimeout, match=f"process {os.getpid()} sends") as caught:
            await client.generate(FOX, key="k", timeout=5)
        assert (caught.value.intent_id, caught.value.process) == (row.intent_id, os.getpid())
        with pytest.raises(SubmissionUnknown, match=f"process {os.getpid()} is still sending it"):
            await client.intents.settle(row.intent_id, 5)
        assert not caplog.records
        waiting = asyncio.ensure_future(client.generate(FOX, key="k"))
        settling = asyncio.ensure_future(client.intents.settle(row.intent_id, None))
        await asyncio.sleep(200)
        assert f"still being sent by process {os.getpid()}" in caplog.text
        client.stop_waiting()
        with pytest.raises(ClientClosed):
            await waiting
        with pytest.raises(SubmissionUnknown):
            await settling


# ─── no descriptor ───────────────────────────────────────────────────────────────────────────────


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """For this block, the process can open so many files and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is on the number of a descriptor, so that gaps below it have to be filled.
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1, hard))
    try:
        while True:
            fillers.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for each in fillers[:count]:
        os.close(each)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in fillers[count:]:
            os.close(each)


@pytest.mark.fault("S28")
@pytest.mark.parametrize("begin", ["no folder", "closed", "open"])
async def test_no_descriptor_is_left_at_any_moment(folder: Path, begin: str) -> None:
    """With none left, one, two …: an error for that call, and the next one works."""
    await asyncio.to_thread(int)  # threads and sockets of the loop itself
    failed = 0
    for left in range(1, 14):
        journal = SQLiteJournal(folder.with_name(f"journal {left}"))
        expected = 1
        if begin != "no folder":
            await claimed(journal)
            expected += 1
        if begin == "closed":
            await journal.aclose()
        elif begin == "open":
            # Its thread runs, and its owner has to be made.
            await journal.aclose()
            await journal.rows(SCOPE)
        mine = intent(key="k")
        with descriptors_left(left):
            (got,) = await asyncio.gather(claim(journal, mine), return_exceptions=True)
        if not isinstance(got, Claimed):
            failed += 1
            assert isinstance(got, JournalError)
            assert "cannot be used" in str(got)
        assert isinstance(await claim(journal, mine), Claimed)
        assert len(await journal.rows(SCOPE)) == expected
        await journal.aclose()
    assert failed > (0 if begin == "open" else 2)
    assert left > failed


async def buy_without_descriptors(url: str, folder: Path) -> None:
    """Run as a program. Prints how many orders were bought."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    await asyncio.to_thread(int)
    bought = failed = 0
    for begin in ("closed", "open", "used", "lock wait"):
        for left in range(1, 10):
            path = folder / f"{begin} {left}"
            options = {"rate_limit": RateLimit(20), "retry": RetryPolicy(give_up_after=0)}
            client = client_of(url, journal=path, **options)
            other = SQLiteJournal(path)
            if begin == "lock wait":
                await claimed(other)
            if begin != "closed":
                await client.open()
            if begin == "used":
                await client.generate("a fox")
                bought += 1

            async def work(client: MidAPIClient = client, begin: str = begin) -> TaskHandle:
                if begin == "closed":
                    await client.open()
                return await client.generate("a fox", key="k")

            def hold(its: store.Store) -> None:
                with its._locked():
                    time.sleep(0.1)

            held = None
            if begin == "lock wait":
                held = asyncio.ensure_future(in_thread(other, hold))
                await asyncio.sleep(0.02)
            with descriptors_left(left):
                (got,) = await asyncio.gather(work(), return_exceptions=True)
            if isinstance(got, BaseException):
                assert isinstance(got, JournalError | TransportError), got
                assert not getattr(got, "sent", False)
                failed += 1
            if held is not None:
                await held
            if "not opened" in repr(client):
                await client.open()
            handle = await client.generate("a fox", key="k")
            assert handle.replayed is not isinstance(got, BaseException)
            bought += 1
            await client.aclose()
            await other.aclose()
    assert failed > 5
    print(bought)


@pytest.mark.real_time
@pytest.mark.fault("S28")
async def test_a_program_without_descriptors(folder: Path) -> None:
    """Opening, owner file, lock, name, connection: a typed error for that call; the next works."""
    folder.mkdir()
    program = (
        "import asyncio, sys\n"
        "from tests.journal.test_disk import *\n"
        "asyncio.run(buy_without_descriptors(sys.argv[1], Path(sys.argv[2])))\n"
    )
    async with ScriptedServer(then=selling()) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, url, str(folder)),
            cwd=Path(__file__).parents[2],
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
        assert process.returncode == 0
        assert int(told) == len(submits(server))
