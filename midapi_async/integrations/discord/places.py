"""Where an order came from and its result is sent, stored as metadata of its intent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import attrs
import discord

from midapi_async import TaskHandle

# One prefix for all of them, because the bot's own metadata may stand beside them.
_PREFIX = "discord_"


@attrs.frozen(kw_only=True)
class Place:
    """Where an order came from. It contains no secret: an interaction's token is never stored.

    Attributes:
        application: the id of the bot's application.
        user: the id of the user who ordered.
        guild: the guild's id; None for a direct message.
        channel: the channel's id; None if Discord did not name it.
        is_guest: only the user has installed the app, so the bot itself cannot send messages there.
        message: the id of the working message; None if unknown.
        parent: for U, V, "again" and "remix" the intent of the result that was clicked on.
        parent_url: the link to that message.
    """

    application: int
    user: int
    guild: int | None = None
    channel: int | None = None
    is_guest: bool = False
    message: int | None = None
    parent: str | None = None
    parent_url: str | None = None

    @classmethod
    def of(cls, interaction: discord.Interaction, message: int | None = None) -> Self:
        """The place of an interaction, and the bot's answer to it, if that is known."""
        # A direct message with the bot is a place of the bot's own; a group is not.
        is_own = interaction.context.dm_channel or interaction.is_guild_integration()
        return cls(
            application=interaction.application_id,
            user=interaction.user.id,
            guild=interaction.guild_id,
            channel=interaction.channel_id,
            is_guest=not is_own,
            message=message,
        )

    @classmethod
    def found_in(cls, metadata: Mapping[str, str]) -> Self | None:
        """The place that is in an intent's metadata; None if the intent is not Discord's."""
        try:
            found = {
                field.name: _read(field.name, metadata[_PREFIX + field.name])
                for field in attrs.fields(cls)
                if _PREFIX + field.name in metadata
            }
        except ValueError:
            return None  # other metadata whose names happen to begin alike
        if not {"application", "user"} <= found.keys():
            return None
        return cls(**found)  # type: ignore[arg-type]  # as `metadata` wrote them

    @property
    def metadata(self) -> dict[str, str]:
        """The place as metadata of an intent."""
        every = attrs.asdict(self).items()
        return {f"{_PREFIX}{name}": str(value) for name, value in every if value}

    @staticmethod
    def note(name: str, value: int) -> dict[str, str]:
        """The metadata of all orders with one user, or in one guild."""
        return {f"{_PREFIX}{name}": str(value)}

    def url_of(self, message: discord.Message) -> str:
        """The link to a message in this channel, or to a direct message."""
        is_here = message.channel.id == self.channel and self.guild is not None
        where = self.guild if is_here else "@me"
        return f"https://discord.com/channels/{where}/{message.channel.id}/{message.id}"


def _read(name: str, value: str) -> str | int | bool:
    if name == "is_guest":
        return value == "True"
    return value if name.startswith("parent") else int(value)


def place_of(handle: TaskHandle) -> Place | None:
    """The place of an order; None if it is not Discord's."""
    return Place.found_in(handle.metadata)


def metadata_of(interaction: discord.Interaction, message: int | None = None) -> dict[str, str]:
    """The metadata from which `deliver` knows where to send: give it to ``client.generate``.

    Args:
        interaction: the interaction of the order.
        message: the id of the bot's answer to it, if that is known.
    """
    return Place.of(interaction, message=message).metadata
