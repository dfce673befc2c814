"""A standby becomes the server: what the journal knows then, and what it cannot know."""

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from midapi_async import JournalError, MidAPIClient
from midapi_async.config import RateLimit
from midapi_async.journal import Claimed
from midapi_async.journal.postgres import PostgresJournal
from midapi_async.journal.postgres import session as session_module
from midapi_async.sandbox import Sandbox
from tests.journal.world import claim, claimed, intent
from tests.support.postgres import (
    SUPERUSER,
    Server,
    as_user,
    new_folder,
    new_schema,
    programs,
    server,
)
from tests.support.secrets import API_KEY

pytestmark = [pytest.mark.real_time, pytest.mark.one_python]


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A second server, which copies everything from the first."""
    with new_folder() as folder:
        copy = as_user(programs() / "pg_basebackup", "-d", primary.url, "-D", folder / "data")
        options = ["-R", "-c", "fast", "--no-sync"]
        subprocess.run([*copy, *options], check=True, cwd="/", timeout=60)
        standby = Server(folder / "data", {"fsync": "off"})
        standby.start()
        try:
            yield standby
        finally:
            standby.kill()


@asynccontextmanager
async def a_pair(*, is_synchronous: bool) -> AsyncIterator[tuple[Server, Server, str]]:
    """A server, its standby, and the address for clients."""
    with server(wal_level="replica", max_wal_senders="4") as primary, standby_of(primary) as other:
        if is_synchronous:
            await primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            await primary.execute("SELECT pg_reload_conf()")
        state = "sync" if is_synchronous else "async"
        await until(primary, f"SELECT FROM pg_stat_replication WHERE sync_state = '{state}'")
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{other.port}"
        yield (
            primary,
            other,
            f"postgresql://{SUPERUSER}@{hosts}/postgres?target_session_attrs=primary",
        )


async def until(one: Server, query: str) -> None:
    """Wait until a query has an answer."""
    begun = time.monotonic()
    while not await one.execute(query):
        assert time.monotonic() - begun < 20, query
        await asyncio.sleep(0.02)


async def promote(standby: Server) -> None:
    """Make it the server."""
    assert (await standby.execute("SELECT pg_promote()"))[0][0]


@pytest.mark.fault("S14")
async def test_a_synchronous_standby_is_promoted() -> None:
    """Two journals claim the same keys through the failover: each key goes to one, and is known."""
    async with a_pair(is_synchronous=True) as (primary, standby, url):
        schema = new_schema()
        journals = [PostgresJournal(url, schema=schema) for _ in range(2)]
        wins: Counter[str] = Counter()
        begun = asyncio.Event()
        limit = RateLimit(10_000, per=60.0)

        async def claim_all(journal: PostgresJournal) -> None:
            for n in range(400):
                mine = intent(key=f"k{n}")
                if isinstance(await claim(journal, mine, limit), Claimed):
                    wins[f"k{n}"] += 1
                if n == 100:
                    begun.set()

        async def fail_over() -> None:
            await begun.wait()
            primary.kill()
            before.update(wins)
            await promote(standby)

        before: set[str] = set()
        await asyncio.gather(fail_over(), *(claim_all(each) for each in journals))
        assert len(before) < 400, "all was claimed before the failover"
        assert dict(wins) == {f"k{n}": 1 for n in range(400)}
        keys = {row.key for row in await journals[0].rows(limit=1000)}
        assert keys == wins.keys()
        for each in journals:
            await each.aclose()


async def test_an_asynchronous_standby_may_not_know_a_claim() -> None:
    """The documented risk: the last claims are gone, and their keys can be claimed once more."""
    async with a_pair(is_synchronous=False) as (primary, standby, url):
        journal = PostgresJournal(url, schema=new_schema())
        await claimed(journal, intent(key="early"))
        flushed = "SELECT FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()"
        await until(primary, flushed)
        [[sender]] = await primary.execute("SELECT pid FROM pg_stat_replication")
        os.kill(sender, signal.SIGSTOP)
        await claimed(journal, intent(key="late"))
        primary.kill()
        os.kill(sender, signal.SIGKILL)
        await promote(standby)
        assert [row.key for row in await journal.rows()] == ["early"]
        assert isinstance(await claim(journal, intent(key="late")), Claimed)
        assert not isinstance(await claim(journal, intent(key="early")), Claimed)
        await journal.aclose()


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_nothing_is_sent_that_a_standby_did_not_confirm(
    monkeypatch: pytest.MonkeyPatch, *, is_cancelled: bool
) -> None:
    """The order fails, whether the wait for the standby is cancelled or takes too long.

    When the replication works again, the same key is bought once.
    """
    monkeypatch.setattr(session_module, "_ANSWER_TIMEOUT", 10.0 if is_cancelled else 1.0)
    monkeypatch.setattr(session_module, "TIMEOUT", 10.0 if is_cancelled else 1.0)
    with server() as primary:
        async with (
            Sandbox(time_scale=60) as sandbox,
            MidAPIClient(
                API_KEY, base_url=sandbox.url, journal=primary.url, time_scale=60
            ) as client,
        ):
            await client.generate("a fox", key="first")
            await primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            await primary.execute("SELECT pg_reload_conf()")
            await asyncio.sleep(0.5)  # the journal's connections read it when they do something
            ordering = asyncio.ensure_future(client.generate("a fox", key="second"))
            if is_cancelled:
                cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                await until(primary, f"{cancel} WHERE wait_event = 'SyncRep'")
            problem = "did not confirm" if is_cancelled else "no answer in time"
            with pytest.raises(JournalError, match=problem):
                await ordering
            assert len(sandbox.ledger.accepted) == 1
            await primary.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await primary.execute("SELECT pg_reload_conf()")
            async with asyncio.timeout(20):
                await client.generate("a fox", key="second")
            assert len(sandbox.ledger.accepted) == 2
