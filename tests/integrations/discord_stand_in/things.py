"""The things that Discord knows: users, guilds, channels, messages, interactions.

They are plain values with the payloads that Discord sends of them; `rules` says what is allowed,
`rest` and `gateway` change them, and `DiscordStandIn` has the levers.
"""

import datetime as dt
import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

# Whatever JSON holds; a test reads it, a client gets it.
Json = dict[str, Any]

# Discord's ids count milliseconds since the first second of 2015, above 22 bits that make them
# unique: https://docs.discord.com/developers/reference#snowflakes
_EPOCH_MS = 1_420_070_400_000

VIEW_CHANNEL = 1 << 10
SEND_MESSAGES = 1 << 11
EMBED_LINKS = 1 << 14
ATTACH_FILES = 1 << 15
READ_MESSAGE_HISTORY = 1 << 16
MENTION_EVERYONE = 1 << 17
USE_APPLICATION_COMMANDS = 1 << 31
SEND_MESSAGES_IN_THREADS = 1 << 38
# What a bot usually has; it may not mention everyone.
USUAL = (
    VIEW_CHANNEL | SEND_MESSAGES | EMBED_LINKS | ATTACH_FILES | READ_MESSAGE_HISTORY
    | USE_APPLICATION_COMMANDS | SEND_MESSAGES_IN_THREADS
)  # fmt: skip

# Flags of messages: https://docs.discord.com/developers/resources/message#message-object
SUPPRESS_EMBEDS = 1 << 2
EPHEMERAL = 1 << 6
LOADING = 1 << 7
SUPPRESS_NOTIFICATIONS = 1 << 12
COMPONENTS_V2 = 1 << 15

GUILD_INSTALL, USER_INSTALL = "0", "1"
IN_GUILD, IN_BOT_DM, IN_PRIVATE_CHANNEL = 0, 1, 2


@attrs.define
class Clock:
    """Discord's clock: the wall clock at the start, moved on by the loop's clock."""

    wall_at_start: float
    loop_at_start: float
    loop_time: Callable[[], float]
    _count: int = 0

    def now(self) -> float:
        """Return seconds since 1970."""
        return self.wall_at_start + self.loop_time() - self.loop_at_start

    def new_id(self) -> int:
        """Return a new id, larger than all earlier ones."""
        self._count += 1
        return (int(self.now() * 1000) - _EPOCH_MS << 22) + self._count


def iso(seconds: float) -> str:
    """Return a time as Discord writes it."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()


@attrs.define(eq=False)
class User:
    """Somebody who uses the bot.

    Attributes:
        id: the user's id.
        name: the user's name.
        has_installed: whether the user installed the app for himself, so that its commands follow
            him into guilds and channels where the bot is not.
        takes_dms: whether the bot may write to the user.
        attachment_limit: bytes a file of his may have; Nitro raises it.
    """

    id: int
    name: str
    has_installed: bool = False
    takes_dms: bool = True
    attachment_limit: int = 0
    is_bot: bool = False

    @property
    def mention(self) -> str:
        """What a text must hold to mention the user."""
        return f"<@{self.id}>"

    def payload(self) -> Json:
        """Return Discord's user object."""
        return {
            "id": str(self.id),
            "username": self.name,
            "discriminator": "0",
            "global_name": self.name.title(),
            "avatar": None,
            "bot": self.is_bot,
            "flags": 0,
            "public_flags": 0,
        }


@attrs.define(eq=False)
class Role:
    """A role of a guild."""

    id: int
    name: str

    def payload(self, position: int = 1, permissions: int = 0) -> Json:
        """Return Discord's role object."""
        return {
            "id": str(self.id),
            "name": self.name,
            "permissions": str(permissions),
            "position": position,
            "color": 0,
            "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
            "hoist": False,
            "managed": False,
            "mentionable": False,
            "flags": 0,
        }


# Bytes that a file may have in a guild, by its boost tier. discord.py 2.7 has the same table.
# Discord's page says 20 MiB for tier 0 today (https://docs.discord.com/developers/reference
# #uploading-files): a bot that keeps to the smaller figure is right under both.
_FILE_LIMITS = (10 << 20, 10 << 20, 50 << 20, 100 << 20)


@attrs.define(eq=False)
class Guild:
    """A guild, which Discord's users call a server.

    Attributes:
        has_bot: whether the app is installed there, so that the bot is a member.
        boost_tier: 0 to 3; it raises the limit of a file's size.
        members: the roles of each member.
    """

    id: int
    name: str
    has_bot: bool = True
    boost_tier: int = 0
    channels: list["Channel"] = attrs.field(factory=list)
    roles: list[Role] = attrs.field(factory=list)
    members: dict[int, list[Role]] = attrs.field(factory=dict)

    @property
    def file_limit(self) -> int:
        """Bytes that a file may have."""
        return _FILE_LIMITS[self.boost_tier]

    def member(self, user: User, permissions: int | None = None) -> Json:
        """Return Discord's member object, as an interaction holds it if permissions are given."""
        payload = {
            "user": user.payload(),
            "roles": [str(role.id) for role in self.members.get(user.id, [])],
            "nick": None,
            "avatar": None,
            "joined_at": iso(0),
            "deaf": False,
            "mute": False,
            "flags": 0,
            "pending": False,
        }
        return payload if permissions is None else payload | {"permissions": str(permissions)}

    def payload(self, bot: User) -> Json:
        """Return the guild as GUILD_CREATE brings it: with channels, and of members the bot only.

        https://docs.discord.com/developers/events/gateway-events#guild-create
        """
        everyone = Role(self.id, "@everyone").payload(0, USUAL)
        return {
            "id": str(self.id),
            "name": self.name,
            "icon": None,
            "owner_id": "1",  # somebody else: an owner may do everything
            "afk_timeout": 300,
            "verification_level": 0,
            "default_message_notifications": 0,
            "explicit_content_filter": 0,
            "roles": [everyone, *(role.payload() for role in self.roles)],
            "emojis": [],
            "stickers": [],
            "features": [],
            "mfa_level": 0,
            "premium_tier": self.boost_tier,
            "preferred_locale": "en-US",
            "nsfw_level": 0,
            "unavailable": False,
            "large": False,
            "member_count": len(self.members) + 1,
            "members": [self.member(bot)],
            "channels": [each.payload() for each in self.channels if each.parent is None],
            "threads": [each.payload() for each in self.channels if each.parent is not None],
            "presences": [],
            "voice_states": [],
            "stage_instances": [],
            "guild_scheduled_events": [],
            "soundboard_sounds": [],
        }


@attrs.define(eq=False)
class Channel:
    """A text channel of a guild, a thread, a user's DM with the bot, or a DM between users.

    Attributes:
        guild: None for a DM.
        recipients: who is in a DM; the bot is in it if it is the bot's DM.
        bot_may: the permissions that the bot has here.
        parent: the channel of a thread.
        is_archived: whether a thread was left alone for long, or was closed.
        is_locked: whether only moderators may open it again.
    """

    id: int
    name: str
    guild: Guild | None = None
    recipients: tuple[User, ...] = ()
    with_bot: bool = True
    bot_may: int = USUAL
    bot: User | None = None
    parent: "Channel | None" = None
    is_archived: bool = False
    is_locked: bool = False
    all_messages: list["Message"] = attrs.field(factory=list)

    @property
    def messages(self) -> list["Message"]:
        """The messages that are there, oldest first."""
        return [message for message in self.all_messages if message.deleted_at is None]

    @property
    def last(self) -> "Message":
        """The newest message."""
        return self.messages[-1]

    @property
    def context(self) -> int:
        """Where an interaction in this channel happens."""
        if self.guild is not None:
            return IN_GUILD
        return IN_BOT_DM if self.with_bot else IN_PRIVATE_CHANNEL

    @property
    def bot_is_here(self) -> bool:
        """Whether the bot, as a user, can use this channel at all."""
        return self.guild.has_bot if self.guild is not None else self.with_bot

    def may(self, permission: int) -> bool:
        """Whether the bot has a permission here: threads have those of their channels.

        https://docs.discord.com/developers/topics/permissions#inherited-permissions-threads
        """
        if self.parent is None:
            return bool(self.bot_may & permission)
        in_thread = {SEND_MESSAGES: SEND_MESSAGES_IN_THREADS}.get(permission, permission)
        return self.parent.may(in_thread)

    def payload(self) -> Json:
        """Return Discord's channel object."""
        common = {"id": str(self.id), "last_message_id": None, "flags": 0}
        if self.guild is None:
            people = [user.payload() for user in self.recipients]
            return common | {"type": 1, "recipients": people}
        if self.parent is not None:
            return common | self._thread_payload(self.parent, self.guild)
        own = {"id": str(self.bot.id) if self.bot else "0", "type": 1,
               "allow": str(self.bot_may), "deny": str(USUAL & ~self.bot_may)}  # fmt: skip
        return common | {
            "type": 0,
            "guild_id": str(self.guild.id),
            "name": self.name,
            "position": 0,
            "parent_id": None,
            "topic": None,
            "nsfw": False,
            "rate_limit_per_user": 0,
            "permission_overwrites": [own],
            "permissions": str(USUAL),
        }

    def _thread_payload(self, parent: "Channel", guild: Guild) -> Json:
        """https://docs.discord.com/developers/topics/threads."""
        return {
            "type": 11,
            "guild_id": str(guild.id),
            "parent_id": str(parent.id),
            "owner_id": "1",
            "name": self.name,
            "rate_limit_per_user": 0,
            "message_count": len(self.messages),
            "member_count": 1,
            "permissions": str(USUAL),
            "thread_metadata": {
                "archived": self.is_archived,
                "locked": self.is_locked,
                "auto_archive_duration": 1440,
                "archive_timestamp": iso(0),
            },
        }


@attrs.define(eq=False)
class Attachment:
    """A file at Discord's CDN."""

    id: int
    filename: str
    content: bytes = attrs.field(repr=lambda content: f"{len(content)} bytes")
    url: str
    expires: float
    description: str | None = None
    is_ephemeral: bool = False

    def payload(self) -> Json:
        """Return Discord's attachment object."""
        kind = mimetypes.guess_type(self.filename)[0]
        return {
            "id": str(self.id),
            "filename": self.filename,
            "size": len(self.content),
            "url": self.url,
            "proxy_url": self.url,
            "ephemeral": self.is_ephemeral,
            **({"content_type": kind} if kind else {}),
            **({"description": self.description} if self.description else {}),
        }


def walk(components: Sequence[Json]) -> Iterator[Json]:
    """Yield components and the ones inside them, as they stand on the screen."""
    for each in components:
        yield each
        yield from walk(each.get("components", []))
        yield from walk([each[name] for name in ("accessory", "component") if each.get(name)])


@attrs.frozen
class Version:
    """How a message looked at one moment."""

    at: float
    text: str
    files: tuple[str, ...]
    components: tuple[Json, ...] = attrs.field(repr=False)


@attrs.define(eq=False)
class Message:
    """A message.

    Attributes:
        nonce: what the bot named it, to send it only once.
        interaction: the interaction that brought it, if one did.
        only_for: who alone sees it, if it is ephemeral.
        pinged: whom its creation notified; "everyone" is one of them.
        versions: how it looked, after its creation and after each edit; the last one is as it is.
    """

    id: int
    channel: Channel
    author: User
    created_at: float
    content: str = ""
    embeds: list[Json] = attrs.field(factory=list)
    components: list[Json] = attrs.field(factory=list, repr=False)
    attachments: list[Attachment] = attrs.field(factory=list)
    flags: int = 0
    nonce: str | None = None
    interaction: "Interaction | None" = attrs.field(default=None, repr=False)
    only_for: User | None = None
    pinged: set[int | str] = attrs.field(factory=set)
    mentioned: list[User] = attrs.field(factory=list, repr=False)
    versions: list[Version] = attrs.field(factory=list, repr=False)
    edited_at: float | None = None
    deleted_at: float | None = None

    @property
    def is_loading(self) -> bool:
        """Whether it shows that the bot is thinking: a deferred answer."""
        return bool(self.flags & LOADING)

    @property
    def is_v2(self) -> bool:
        """Whether it is made of components only."""
        return bool(self.flags & COMPONENTS_V2)

    @property
    def text(self) -> str:
        """All text that it shows, without the labels of buttons."""
        shown = [self.content] if self.content else []
        shown += [each["content"] for each in walk(self.components) if each["type"] == 10]
        return "\n".join(shown)

    @property
    def files(self) -> dict[str, bytes]:
        """The content of its files, by name."""
        return {each.filename: each.content for each in self.attachments}

    @property
    def gallery(self) -> list[str]:
        """The addresses of the pictures in its media galleries."""
        galleries = [each for each in walk(self.components) if each["type"] == 12]
        return [item["media"]["url"] for each in galleries for item in each["items"]]

    @property
    def buttons(self) -> dict[str, Json]:
        """Its buttons, by label (by emoji, where one has no label)."""
        found = [each for each in walk(self.components) if each["type"] == 2]
        return {each.get("label") or each["emoji"]["name"]: each for each in found}

    def shown_to(self, user: User) -> bool:
        """Whether a user sees it."""
        return self.deleted_at is None and self.only_for in (None, user)

    def keep_version(self, at: float) -> None:
        """Note how it looks now."""
        files = tuple(each.filename for each in self.attachments)
        self.versions.append(Version(at, self.text, files, tuple(self.components)))

    def payload(self) -> Json:
        """Return Discord's message object.

        A file that a component shows is not in `attachments`:
        https://github.com/discord/discord-api-docs/issues/8277
        """
        in_components = {item.get("attachment_id") for item in media(self.components)}
        payload: Json = {
            "id": str(self.id),
            "type": 20 if self.interaction and self.interaction.kind == 2 else 0,
            "channel_id": str(self.channel.id),
            "author": self.author.payload(),
            "content": self.content,
            "embeds": self.embeds,
            "components": self.components,
            "attachments": [
                each.payload() for each in self.attachments if str(each.id) not in in_components
            ],
            "flags": self.flags,
            "timestamp": iso(self.created_at),
            "edited_timestamp": None if self.edited_at is None else iso(self.edited_at),
            "tts": False,
            "pinned": False,
            "mention_everyone": "everyone" in self.pinged,
            "mentions": [user.payload() for user in self.mentioned],
            "mention_roles": [],
        }
        if self.channel.guild is not None:
            payload["guild_id"] = str(self.channel.guild.id)
        if self.nonce is not None:
            payload["nonce"] = self.nonce
        if self.interaction is not None:
            payload["application_id"] = payload["webhook_id"] = str(self.author.id)
            payload["interaction_metadata"] = self.interaction.metadata()
        return payload


def media(components: Sequence[Json]) -> Iterator[Json]:
    """Yield each picture or file that components show: objects with a `url`."""
    for each in walk(components):
        if each["type"] == 12:
            yield from (item["media"] for item in each.get("items", []))
        for name in ("media", "file"):  # of a thumbnail, of a file
            if isinstance(each.get(name), dict):
                yield each[name]


@attrs.define(eq=False)
class Interaction:
    """What a user did with the bot, and what the bot answered.

    Attributes:
        kind: 2 for a command, 3 for a button, 5 for a modal.
        owners: by whom the app was installed: `authorizing_integration_owners`.
        source: the message with the button.
        caused_by: the interaction that opened the modal.
        answer: the type of the first answer; None if there was none within 3 s.
        original: what `@original` is: the answer, or the message with the button.
        modal: the modal that was shown.
        followups: further messages.
    """

    id: int
    token: str = attrs.field(repr=False)
    kind: int
    user: User
    channel: Channel
    data: Json
    owners: dict[str, str]
    created_at: float
    source: Message | None = None
    caused_by: "Interaction | None" = None
    answer: int | None = None
    original: Message | None = None
    modal: Json | None = None
    followups: list[Message] = attrs.field(factory=list)

    @property
    def is_answered(self) -> bool:
        """Whether the bot answered in time."""
        return self.answer is not None

    @property
    def private(self) -> list[Message]:
        """The messages that only the user sees: the answer, or follow-ups."""
        every = [self.original, *self.followups]
        return [each for each in every if each is not None and each.only_for is self.user]

    @property
    def message(self) -> Message:
        """The message that is the answer."""
        assert self.original is not None, f"the bot answered with {self.answer}, not a message"
        return self.original

    def metadata(self) -> Json:
        """Return what a message says of the interaction that brought it."""
        payload = {
            "id": str(self.id),
            "type": self.kind,
            "user": self.user.payload(),
            "authorizing_integration_owners": self.owners,
        }
        if self.kind == 2:
            payload["name"] = self.data["name"]
        if self.kind == 3 and self.source is not None:
            payload["interacted_message_id"] = str(self.source.id)
        if self.kind == 5 and self.caused_by is not None:
            payload["triggering_interaction_metadata"] = self.caused_by.metadata()
        return payload

    def payload(self, application_id: int) -> Json:
        """Return Discord's interaction object.

        https://docs.discord.com/developers/interactions/receiving-and-responding
        """
        guild = self.channel.guild
        payload = {
            "id": str(self.id),
            "application_id": str(application_id),
            "type": self.kind,
            "token": self.token,
            "version": 1,
            "data": self.data,
            "channel": self.channel.payload(),
            "channel_id": str(self.channel.id),
            "context": self.channel.context,
            "locale": "en-US",
            "entitlements": [],
            "entitlement_sku_ids": [],
            "authorizing_integration_owners": self.owners,
            "attachment_size_limit": self.file_limit,
        }
        if guild is None:
            payload |= {"user": self.user.payload()}
            payload |= {"app_permissions": str(ATTACH_FILES | EMBED_LINKS | MENTION_EVERYONE)}
        else:
            payload |= {
                "guild_id": str(guild.id),
                "guild": {"id": str(guild.id), "locale": "en-US", "features": []},
                "guild_locale": "en-US",
                "member": guild.member(self.user, USUAL),
                "app_permissions": str((self.channel.parent or self.channel).bot_may),
            }
        if self.source is not None:
            payload["message"] = self.source.payload()
        return payload

    @property
    def file_limit(self) -> int:
        """`attachment_size_limit`: the larger one of the user's and the guild's limit.

        https://docs.discord.com/developers/reference#uploading-files
        """
        guild = self.channel.guild
        return max(self.user.attachment_limit, guild.file_limit if guild else _FILE_LIMITS[0])

    @property
    def is_user_install_only(self) -> bool:
        """Whether only the user brought the app here, which limits follow-ups to 5."""
        return set(self.owners) == {USER_INSTALL}


def mentions_in(text: str) -> tuple[list[int], bool]:
    """Return the users that a text mentions, and whether it mentions everyone."""
    return [int(number) for number in re.findall(r"<@!?(\d+)>", text)], bool(
        re.search(r"@(everyone|here)\b", text)
    )


def pinged_by(
    text: str, allowed: Mapping[str, Any] | None, *, may_mention_all: bool
) -> set[int | str]:
    """Return whom a new message notifies: users by id, and "everyone".

    Without `allowed_mentions` each mention counts, as if it were typed by a user; everyone only if
    the bot may do that.
    https://docs.discord.com/developers/resources/message#allowed-mentions-object
    """
    users, everyone = mentions_in(text)
    parse = ["users", "roles", "everyone"] if allowed is None else allowed.get("parse", [])
    named = {int(number) for number in (allowed or {}).get("users", [])}
    pinged: set[int | str] = {user for user in users if "users" in parse or user in named}
    if everyone and "everyone" in parse and may_mention_all:
        pinged.add("everyone")
    return pinged
