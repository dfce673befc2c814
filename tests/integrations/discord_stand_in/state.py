"""All that Discord knows and has seen, shared by the REST routes, the gateway and the levers."""

import asyncio
import contextlib
import fnmatch
import secrets
from collections.abc import Callable

import attrs

from tests.integrations.discord_stand_in.gateway import Gateway
from tests.integrations.discord_stand_in.things import (
    Attachment,
    Channel,
    Clock,
    Guild,
    Interaction,
    Json,
    Message,
    User,
)

# An attachment's signed address is good for a day:
# https://docs.discord.com/developers/reference#signed-attachment-cdn-urls
ADDRESS_LASTS = 24 * 3600.0


@attrs.define
class Request:
    """One request that the bot sent, and how it was answered.

    Attributes:
        at: when, on the loop's clock.
        method: of HTTP.
        path: without host and version, such as "/channels/17/messages".
        payload: its JSON, if it had any.
        files: the names of its files.
        status: of the answer; 0 while there is none.
        code: Discord's error code; 0 if there is none.
    """

    at: float
    method: str
    path: str
    payload: Json = attrs.field(factory=dict, repr=False)
    files: tuple[str, ...] = ()
    status: int = 0
    code: int = 0

    def matches(self, route: str) -> bool:
        """Whether this is a request of a route, such as "PATCH /webhooks/*/messages/@original"."""
        return fnmatch.fnmatchcase(f"{self.method} {self.path}", route)


@attrs.define(eq=False)
class Hold:
    """Requests that are held back: they have arrived, and nothing has happened yet."""

    arrived: asyncio.Event = attrs.field(factory=asyncio.Event)
    released: asyncio.Event = attrs.field(factory=asyncio.Event)

    def release(self) -> None:
        """Let them go on."""
        self.released.set()


@attrs.define(eq=False)
class Plan:
    """What shall happen to the next requests of a route, instead of the usual.

    Attributes:
        route: "METHOD /path", with * for any characters.
        times: for how many requests.
        status: answer with this one, and do nothing.
        code: Discord's error code beside the status.
        retry_after: answer with 429.
        is_global: the 429 is for all routes.
        hold: wait until it is released.
        loses_answer: do what is asked, and cut the connection instead of answering.
    """

    route: str
    times: int = 1
    status: int | None = None
    code: int = 0
    retry_after: float | None = None
    is_global: bool = False
    hold: Hold | None = None
    loses_answer: bool = False


@attrs.define
class State:
    """What Discord knows and has seen.

    Attributes:
        token: the bot's.
        bot: the bot's user; its id is the application's, too.
        origin: where the server is, such as "http://127.0.0.1:49152".
        commands: the registered commands, by guild; None for the global ones.
        interactions: by token.
        mistakes: what the bot did that Discord refuses or that a user would see as a failure.
        requests: everything that came over REST.
        plans: what a test wants to happen to requests.
    """

    clock: Clock
    bot: User
    gateway: Gateway
    token: str
    origin: str = ""
    users: dict[int, User] = attrs.field(factory=dict)
    guilds: dict[int, Guild] = attrs.field(factory=dict)
    channels: dict[int, Channel] = attrs.field(factory=dict)
    attachments: dict[int, Attachment] = attrs.field(factory=dict)
    commands: dict[int | None, list[Json]] = attrs.field(factory=dict)
    interactions: dict[str, Interaction] = attrs.field(factory=dict)
    mistakes: list[str] = attrs.field(factory=list)
    requests: list[Request] = attrs.field(factory=list)
    plans: list[Plan] = attrs.field(factory=list)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    def changed(self) -> None:
        """Wake whoever waits in `until`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], object], seconds: float) -> None:
        """Wait until a condition holds; `TimeoutError` after so many seconds of the loop's time.

        It is looked at after each request, and each second, since it may be about the bot.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition():
            if loop.time() >= deadline:
                raise TimeoutError(f"not so within {seconds:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(1.0, deadline - loop.time()))

    def plan_for(self, request: Request) -> Plan | None:
        """Return what shall happen to this request, and count it."""
        for plan in self.plans:
            if plan.times > 0 and request.matches(plan.route):
                plan.times -= 1
                return plan
        return None

    def upload(
        self,
        filename: str,
        content: bytes,
        place: str,
        *,
        description: str | None = None,
        is_ephemeral: bool = False,
    ) -> Attachment:
        """Keep a file at the CDN, under a signed address that ends after a day."""
        number = self.clock.new_id()
        expires = self.clock.now() + ADDRESS_LASTS
        signature = f"ex={int(expires):x}&is={int(self.clock.now()):x}&hm={secrets.token_hex(8)}&"
        url = f"{self.origin}/{place}/{number}/{filename}?{signature}"
        attachment = Attachment(number, filename, content, url, expires, description, is_ephemeral)
        self.attachments[number] = attachment
        return attachment

    def dm(self, user: User) -> Channel:
        """Return a user's DM with the bot; it exists from the first use on."""
        for channel in self.channels.values():
            if channel.guild is None and channel.with_bot and channel.recipients == (user,):
                return channel
        channel = Channel(self.clock.new_id(), f"dm-{user.name}", recipients=(user,))
        self.channels[channel.id] = channel
        return channel

    def message(self, channel: Channel, number: int) -> Message | None:
        """Return a message that is there and that the bot can reach without a token."""
        for message in channel.messages:
            if message.id == number and message.only_for is None:
                return message
        return None

    async def remove(self, message: Message) -> None:
        """Delete a message."""
        message.deleted_at = self.clock.now()
        await self.show("MESSAGE_DELETE", message)

    async def show(self, event: str, message: Message) -> None:
        """Tell the bot of a message, if it is in the channel and the message is for all."""
        self.changed()
        if message.channel.bot_is_here and message.only_for is None:
            await self.gateway.dispatch(event, message.payload())
