"""What is built on a journal works on PostgreSQL as well: batches and the cog for Discord."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from midapi_async import BatchItem, BatchRequest, MidAPIClient, WaitTimeout
from midapi_async.integrations.discord import Limits
from midapi_async.journal.postgres import PostgresJournal
from midapi_async.sandbox import Sandbox, delay
from tests.integrations.conftest import stand_in
from tests.integrations.discord_stand_in import DiscordStandIn
from tests.integrations.discord_world import World, settled, told
from tests.support.postgres import Server, new_schema
from tests.support.secrets import API_KEY

__all__ = ["stand_in"]


@pytest.fixture
def url(postgres: Server) -> str:
    """The URL of a journal with a schema of its own, as on each of several machines."""
    return f"{postgres.url}?schema={new_schema()}"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """It takes each task a minute."""
    async with Sandbox(api_key=API_KEY, durations={("*", "*"): 60.0}) as running:
        yield running


@asynccontextmanager
async def machine(sandbox: Sandbox, url: str) -> AsyncIterator[MidAPIClient]:
    """A client, as on a machine of its own."""
    async with MidAPIClient(API_KEY, base_url=sandbox.url, journal=url, ack="manual") as client:
        yield client


async def test_a_batch_goes_on_at_another_machine(
    sandbox: Sandbox, url: str, tmp_path: Path
) -> None:
    """A run that is left is continued elsewhere; then a third one finds all of it."""
    rows: list[str | BatchRequest] = [
        "a red fox",
        "a red fox",
        BatchRequest("an owl", key="owl", metadata={"row": "3"}),
        *(f"a whale, {number}" for number in range(20)),
    ]
    async with (
        machine(sandbox, url) as client,
        client.generate_many(rows, batch="b", running=5) as batch,
    ):
        async for _ in batch:
            break
    begun = len(sandbox.ledger.accepted)
    assert 5 <= begun < len(rows)
    items: list[BatchItem] = []
    for _ in range(2):
        async with (
            machine(sandbox, url) as client,
            client.generate_many(rows, batch="b", download_to=tmp_path) as batch,
        ):
            items = [item async for item in batch]
        assert [item.error for item in items] == [None] * len(rows)
        assert {len(item.paths) for item in items} == {4}
        assert len(sandbox.ledger.accepted) == len(rows)
    [owl] = [item for item in items if item.key == "owl"]
    assert owl.metadata == {"row": "3"}


async def test_two_machines_run_one_batch_at_once(sandbox: Sandbox, url: str) -> None:
    """Each row is paid once, and both get the result of each."""
    rows = [f"a whale, {number}" for number in range(12)]
    async with (
        machine(sandbox, url) as one,
        machine(sandbox, url) as two,
        one.generate_many(rows, batch="b") as first,
        two.generate_many(rows, batch="b") as second,
    ):
        found = [{item.key: item.intent_id async for item in each} for each in (first, second)]
    assert found[0] == found[1]
    assert len(found[0]) == len(sandbox.ledger.accepted) == len(rows)


async def test_the_host_of_another_process_is_named(
    sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process id says little where there are several machines."""
    monkeypatch.setattr("socket.gethostname", lambda: "web-2")
    sandbox.faults.on("submit", do=delay(100))
    async with machine(sandbox, url) as one, machine(sandbox, url) as two:
        buys = asyncio.create_task(one.generate("a red fox", key="k"))
        await asyncio.sleep(5)
        with pytest.raises(WaitTimeout, match=f"process {os.getpid()} on web-2 sends") as caught:
            await two.generate("a red fox", key="k", timeout=5)
        assert (caught.value.process, caught.value.host) == (os.getpid(), "web-2")
        [row] = await two.intents.rows()
        assert (row.process, row.host) == (os.getpid(), "web-2")
        await buys


async def test_a_discord_bot_delivers_what_another_machine_ordered(
    sandbox: Sandbox, url: str, stand_in: DiscordStandIn
) -> None:
    """The first bot ends; the second has its orders, its notes and its counts."""
    journal = PostgresJournal(url)
    world = World(stand_in, sandbox, journal)
    guild, ada = stand_in.guild(), stand_in.user("ada")
    channel, limits = guild.channels[0], Limits(user_cooldown=0, pictures_per_user=5)
    async with world.bot(limits=limits):
        asked = await stand_in.slash(ada, guild, "imagine", prompt="a red fox")
        await settled(20)
    await journal.aclose()
    assert (world.posts, len(asked.message.files)) == (1, 0)
    async with world.bot(limits=limits) as bot:
        await stand_in.until(lambda: channel.last.files, 300)
        clicked = await stand_in.click(ada, channel.last, "U1")
        await stand_in.until(lambda: clicked.message.files, 300)
        refused = await stand_in.slash(ada, guild, "imagine", prompt="an owl")
        await settled(20)
        found = await bot.cog.client.intents.rows(metadata={"discord_user": str(ada.id)})
        assert world.posts == len(found) == 2
        assert told(refused)
    await journal.aclose()
