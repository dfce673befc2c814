"""A local Discord for tests of bots: gateway, REST and CDN over real sockets.

`DiscordStandIn` is where to begin; `rules` is what Discord enforces, with the pages that say so.
"""

from tests.integrations.discord_stand_in.stand_in import DiscordStandIn, File
from tests.integrations.discord_stand_in.state import Hold, Request
from tests.integrations.discord_stand_in.things import (
    ATTACH_FILES,
    MENTION_EVERYONE,
    READ_MESSAGE_HISTORY,
    SEND_MESSAGES,
    SEND_MESSAGES_IN_THREADS,
    USUAL,
    VIEW_CHANNEL,
    Channel,
    Guild,
    Interaction,
    Message,
    Role,
    User,
)

__all__ = [
    "ATTACH_FILES",
    "MENTION_EVERYONE",
    "READ_MESSAGE_HISTORY",
    "SEND_MESSAGES",
    "SEND_MESSAGES_IN_THREADS",
    "USUAL",
    "VIEW_CHANNEL",
    "Channel",
    "DiscordStandIn",
    "File",
    "Guild",
    "Hold",
    "Interaction",
    "Message",
    "Request",
    "Role",
    "User",
]
