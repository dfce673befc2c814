"""What the tests of the journals share: intents, and journals that can crash."""

import asyncio
import os
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

from midapi_async import TextToImage
from midapi_async._wire.bodies import fingerprint
from midapi_async.config import RateLimit
from midapi_async.journal import Claim, Claimed, Intent, Journal, Standing, State
from midapi_async.journal.postgres import PostgresJournal
from midapi_async.journal.postgres.table import PostgresTable
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.journal.sqlite.store import Store
from midapi_async.journal.sqlite.table import SQLiteTable
from midapi_async.journal.table import Table
from midapi_async.requests import Request

T = TypeVar("T")
SCOPE = "https://api.midapi.ai default"
ACCOUNT = "account"
LONGEST_POST = 185.0
FOX = TextToImage("a red fox in the snow")


def intent(
    request: Request = FOX,
    *,
    intent_id: str | None = None,
    scope: str = SCOPE,
    token_hash: str | None = None,
    key: str | None = None,
    metadata: dict[str, str] | None = None,
    supersedes: str | None = None,
) -> Intent:
    """A new intent, with names of its own."""
    return Intent(
        intent_id=intent_id or uuid.uuid4().hex,
        scope=scope,
        request=request,
        fingerprint=fingerprint(request),
        token_hash=token_hash or uuid.uuid4().hex * 2,
        created_at=time.time(),
        key=key,
        metadata=metadata or {},
        supersedes=supersedes,
    )


async def claim(
    journal: Journal, wanted: Intent, limit: RateLimit | None = None, *, account: str = ACCOUNT
) -> Claim:
    """What a journal answers; without a limit a slot is always free."""
    return await journal.claim(wanted, account, limit, longest_post=LONGEST_POST)


async def claimed(journal: Journal, wanted: Intent | None = None) -> Intent:
    """An intent that was claimed, as the journal now holds it."""
    wanted = wanted or intent()
    answer = await claim(journal, wanted)
    assert isinstance(answer, Claimed), answer
    row = await journal.find(intent_id=wanted.intent_id)
    assert row is not None
    return row


async def late_locks_end() -> None:
    """Wait for threads that still wait for a lock; each gets it late and closes its file."""
    started = time.monotonic()
    while any(each.name == "midapi-journal-lock" for each in threading.enumerate()):
        assert time.monotonic() - started < 10
        await asyncio.to_thread(time.sleep, 0.01)


async def standing(journal: Journal, wanted: Intent) -> Standing:
    """What stands in the way of an intent."""
    answer = await claim(journal, wanted)
    assert isinstance(answer, Standing), answer
    return answer


async def accepted(journal: Journal, wanted: Intent | None = None) -> Intent:
    """An intent that was bought; its task id is "t-" and its own id."""
    row = await claimed(journal, wanted)
    return await journal.advance(row.intent_id, State.ACCEPTED, task_id=f"t-{row.intent_id}")


async def ids(journal: Journal, *states: State, scope: str = SCOPE) -> list[str]:
    """The intents in some states, or in any."""
    return [row.intent_id for row in await journal.rows(scope, states=states)]


async def crash(journal: SQLiteJournal | PostgresJournal) -> None:
    """Leave a journal as a killed process leaves it: its owners' files stay, their locks do not."""
    if isinstance(journal, PostgresJournal):
        session = journal._session()
        await session.do(lambda _: None, writes=False)
        me = session._me
        session._lose_owner()  # the server is not told, and sees that the connection has ended
        while me in await session.do(living, writes=False):
            await asyncio.to_thread(time.sleep, 0.005)
        return
    if journal._writer is not None:
        await journal._writer.run(_die)
    await journal.aclose()


def living(table: PostgresTable) -> list[str]:
    """The owners whose locks are held."""
    return table._living()


def _die(store: Store) -> None:
    for _, descriptor in store.owners._mine.values():
        os.close(descriptor)
    store.owners._mine.clear()


@asynccontextmanager
async def busy(journal: SQLiteJournal) -> AsyncIterator[None]:
    """For this block the journal's thread is busy, and whatever is asked for waits."""
    held = threading.Event()
    block = asyncio.ensure_future(journal._opened().run(lambda _: held.wait(10)))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        held.set()
        await asyncio.wait({block})


async def together(
    journal: SQLiteJournal, *calls: Coroutine[object, object, T]
) -> list[T | BaseException]:
    """What came of calls that waited together for their turn, errors included."""
    async with busy(journal):
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
    return await asyncio.gather(*waiting, return_exceptions=True)


async def in_thread(journal: SQLiteJournal, work: Callable[[Store], T]) -> T:
    """Do something in the journal's thread, without a transaction."""
    return await journal._opened().run(work)


async def execute(journal: SQLiteJournal, statement: str, *values: object) -> None:
    """Do something to the rows behind the journal's back."""

    def work(table: Table) -> None:
        assert isinstance(table, SQLiteTable)
        table.connection.execute(statement, values)

    await journal._opened().do(work, writes=True)


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder for a journal that is synced in no time, where the system has one."""
    memory = "/dev/shm"  # noqa: S108 - a folder of our own in it
    with tempfile.TemporaryDirectory(dir=memory if Path(memory).is_dir() else None) as folder:
        yield Path(folder) / "journal"
