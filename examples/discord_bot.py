"""A Discord bot with /imagine, /video, /credits and /task; docs/discord.md tells how to set it up.

It reads DISCORD_TOKEN and MIDAPI_API_KEY.
"""

import os

import discord
from discord.ext import commands

from midapi_async import MidAPIClient
from midapi_async.integrations.discord import Midjourney


class Bot(commands.Bot):
    async def setup_hook(self) -> None:
        await self.add_cog(Midjourney(MidAPIClient(journal="journal", ack="manual")))
        await self.tree.sync()


if __name__ == "__main__":
    bot = Bot(commands.when_mentioned, intents=discord.Intents(guilds=True))
    bot.run(os.environ["DISCORD_TOKEN"])
