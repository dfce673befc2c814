"""A Discord bot with a command of its own, `/fox`, from the parts of the cog.

pip install "./midapi_async[discord]"
export DISCORD_TOKEN=… MIDAPI_API_KEY=…
python discord_own_bot.py
"""

import os
from contextlib import suppress

import discord
from discord.ext import commands

from midapi_async import MidAPIClient, TaskFailed
from midapi_async.integrations.discord import deliver, metadata_of, progress

client = MidAPIClient(journal="journal", ack="manual")


class Fox(commands.Bot):
    async def setup_hook(self) -> None:
        await client.open()

        @self.tree.command(description="A fox")
        async def fox(interaction: discord.Interaction) -> None:
            answer = await interaction.response.defer(thinking=True)
            key = f"discord:{interaction.id}"
            metadata = metadata_of(interaction, answer.message_id if answer else None)
            async with progress(interaction, client, key, request="a red fox"):
                handle = await client.generate("a red fox", key=key, metadata=metadata)
                with suppress(TaskFailed):  # `deliver` tells it
                    await handle
            await deliver(self, client, handle, live=interaction)

        await self.tree.sync()

    async def close(self) -> None:
        await super().close()
        await client.aclose()


if __name__ == "__main__":
    bot = Fox(commands.when_mentioned, intents=discord.Intents(guilds=True))
    bot.run(os.environ["DISCORD_TOKEN"])
