"""Midjourney in Discord, for bots of discord.py: a ready cog, and its parts for bots of your own.

    class Bot(commands.Bot):
        async def setup_hook(self) -> None:
            await self.add_cog(Midjourney(MidAPIClient(journal="journal", ack="manual")))
            await self.tree.sync()

Needs ``pip install "midapi-async[discord]"``.
"""

from .cog import Midjourney
from .deliver import deliver
from .limits import Audit, Limits
from .places import metadata_of
from .progress import progress
from .strings import Strings
from .views import result_view

__all__ = [
    "Audit",
    "Limits",
    "Midjourney",
    "Strings",
    "deliver",
    "metadata_of",
    "progress",
    "result_view",
]
