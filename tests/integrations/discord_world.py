"""A bot with the cog, between the stand-in for Discord and the sandbox for MidAPI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import discord
from discord.ext import commands

from midapi_async import Intent, Journal, MemoryJournal, MidAPIClient
from midapi_async.integrations.discord import Audit, Limits, Midjourney
from midapi_async.sandbox import Sandbox
from tests.integrations.discord_stand_in import DiscordStandIn
from tests.integrations.discord_stand_in.things import Interaction
from tests.support.secrets import API_KEY

# Tests that are about something else order as fast as they like.
FREE = Limits(user_cooldown=0, jobs_per_user=None)


class Bot(commands.Bot):
    """The bot of the README, with options for the cog."""

    def __init__(self, client: MidAPIClient, **options: Any) -> None:
        super().__init__(commands.when_mentioned, intents=discord.Intents(guilds=True))
        self.audit: list[Audit] = []
        self.cog = Midjourney(client, **{"limits": FREE, "audit": self.audit.append, **options})

    async def setup_hook(self) -> None:
        await self.add_cog(self.cog)
        await self.tree.sync()


@attrs.define
class World:
    """Discord, MidAPI, and the journal, which outlives a bot; in memory, a folder, or another."""

    discord: DiscordStandIn
    sandbox: Sandbox
    journal: Path | Journal = attrs.field(factory=MemoryJournal)

    def client(self, **options: Any) -> MidAPIClient:
        """A client as a bot has one."""
        given = {"journal": self.journal, "ack": "manual", **options}
        return MidAPIClient(API_KEY, base_url=self.sandbox.url, **given)

    @asynccontextmanager
    async def bot(self, client: MidAPIClient | None = None, **options: Any) -> AsyncIterator[Bot]:
        """A bot that runs in the block."""
        bot = Bot(client or self.client(), **options)
        async with self.discord.running(bot):
            yield bot

    @property
    def posts(self) -> int:
        """How many submissions the sandbox has accepted."""
        return len(self.sandbox.ledger.accepted)

    async def rows(self) -> list[Intent]:
        """All intents of the journal."""
        async with self.client() as client:
            return await client.intents.rows()


async def settled(seconds: float = 30.0) -> None:
    """Let everything happen that happens by itself."""
    await asyncio.sleep(seconds)


def told(interaction: Interaction) -> list[str]:
    """What only the one who asked was told."""
    shown = [each for each in (interaction.original, *interaction.followups) if each is not None]
    return [each.text for each in shown if each.only_for is interaction.user]
