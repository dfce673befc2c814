"""`DiscordStandIn`: the server and its levers."""

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import attrs
import discord
import yarl
from aiohttp import web

from tests.integrations.discord_stand_in import rules
from tests.integrations.discord_stand_in.gateway import Gateway
from tests.integrations.discord_stand_in.rest import ANSWER_WITHIN, Rest
from tests.integrations.discord_stand_in.state import Hold, Plan, Request, State
from tests.integrations.discord_stand_in.things import (
    GUILD_INSTALL,
    IN_BOT_DM,
    IN_GUILD,
    USER_INSTALL,
    USUAL,
    Attachment,
    Channel,
    Clock,
    Guild,
    Interaction,
    Json,
    Message,
    Role,
    User,
    walk,
)

Place = Guild | Channel

# So long a user takes to do something. Meanwhile the bot has seen the answer to what it sent last,
# and, for instance, has registered the buttons of a message that a user clicks now.
REACTION = 0.2


@attrs.frozen
class File:
    """A file that a user attaches to a command."""

    name: str
    content: bytes = attrs.field(repr=False)


class DiscordStandIn:
    """A local Discord, over real sockets, for the real discord.py.

        async with DiscordStandIn() as stand_in:
            guild = stand_in.guild("studio")
            ada = stand_in.user("ada")
            async with stand_in.running(bot):
                asked = await stand_in.slash(ada, guild, "imagine", prompt="a red fox")
                await stand_in.until(lambda: asked.message.files)
                await stand_in.click(ada, asked.message, "U1")
        assert stand_in.mistakes == []

    It runs in the loop of the test, so a `VirtualLoop` will do: all its times are the loop's. While
    it is open, discord.py's addresses point to it. discord.py itself takes some times from the real
    clock, which does not jump: the timeout of a view, and whether an interaction has expired.

    It refuses what Discord refuses, with Discord's error codes, and keeps each such refusal in
    `mistakes` (see `rules.NOT_A_MISTAKE` for what is none). An interaction that is not answered
    within 3 s is a mistake, too.

    Attributes:
        token: the bot's.
        bot_user: the bot's user.
        mistakes: a line for each mistake of the bot.
        requests: what the bot sent over REST, in order.
        guilds: those that were made.
        gateway: its `log` tells of identify and resume.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._clock = Clock(time.time(), loop.time(), loop.time)
        self.bot_user = User(self._clock.new_id(), "painter", is_bot=True)
        self.token = f"stand-in.{secrets.token_urlsafe(20)}"
        self.guilds: list[Guild] = []
        self.gateway = Gateway(self.token, self._ready, self._guild_payloads)
        self._state = State(self._clock, self.bot_user, self.gateway, self.token)
        self._state.users[self.bot_user.id] = self.bot_user
        self.mistakes = self._state.mistakes
        self.requests = self._state.requests
        self._runner: web.AppRunner | None = None
        self._patches = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(Rest(self._state).routes())
        app.add_routes([web.get("/gateway/", self.gateway.handle)])
        self._runner = web.AppRunner(app, shutdown_timeout=1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self._state.origin = f"http://{host}:{port}"
        self.gateway.url = f"ws://{host}:{port}/gateway/"
        self._patches.enter_context(self._addresses())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self._patches.close()
        self.calm()
        for connection in list(self.gateway.connections):
            connection.drop()
        assert self._runner is not None
        await self._runner.cleanup()

    @contextlib.contextmanager
    def _addresses(self) -> Iterator[None]:
        route, socket = discord.http.Route, discord.gateway.DiscordWebSocket
        before = route.BASE, socket.DEFAULT_GATEWAY
        route.BASE = f"{self._state.origin}/api/v10"
        socket.DEFAULT_GATEWAY = yarl.URL(self.gateway.url)
        try:
            yield
        finally:
            route.BASE, socket.DEFAULT_GATEWAY = before

    @contextlib.asynccontextmanager
    async def running(self, bot: discord.Client) -> AsyncIterator[None]:
        """Log a bot in, wait until it is ready, and close it at the end."""
        sockets: list[aiohttp.ClientWebSocketResponse] = []
        connect = bot.http.ws_connect

        async def remember(url: str, **options: Any) -> aiohttp.ClientWebSocketResponse:
            sockets.append(await connect(url, **options))
            return sockets[-1]

        bot.http.ws_connect = remember  # type: ignore[method-assign]
        try:
            await bot.login(self.token)
            connected = asyncio.create_task(bot.connect())
            try:
                ready = asyncio.create_task(bot.wait_until_ready())
                await asyncio.wait({connected, ready}, return_when=asyncio.FIRST_COMPLETED)
                ready.cancel()
                if connected.done():
                    connected.result()
                yield
            finally:
                await bot.close()
                await asyncio.wait({connected})
                _end_leftovers(bot, sockets)
            connected.result()
        finally:
            await bot.close()

    def secrets(self) -> list[str]:
        """Return the tokens, which no log may show: the bot's, and those of interactions."""
        return [self.token, *self._state.interactions]

    def _ready(self) -> Json:
        return {
            "user": self.bot_user.payload(),
            "application": {"id": str(self.bot_user.id), "flags": 0},
        }

    def _guild_payloads(self) -> list[Json]:
        return [guild.payload(self.bot_user) for guild in self.guilds if guild.has_bot]

    # --------------------------------------------------------------------------- people and places

    def user(
        self, name: str = "ada", *, has_installed: bool = False, takes_dms: bool = True
    ) -> User:
        """Make a user. `has_installed`: the app, for himself (a user install)."""
        user = User(self._clock.new_id(), name, has_installed, takes_dms)
        self._state.users[user.id] = user
        return user

    def guild(self, name: str = "studio", *, has_bot: bool = True, boost_tier: int = 0) -> Guild:
        """Make a guild with one channel. Make it before the bot runs."""
        guild = Guild(self._clock.new_id(), name, has_bot, boost_tier)
        self._state.guilds[guild.id] = guild
        self.guilds.append(guild)
        self.channel(guild, "general")
        return guild

    def channel(self, guild: Guild, name: str = "art", *, bot_may: int = USUAL) -> Channel:
        """Make a further channel of a guild. Make it before the bot runs."""
        channel = Channel(self._clock.new_id(), name, guild, bot_may=bot_may, bot=self.bot_user)
        guild.channels.append(channel)
        self._state.channels[channel.id] = channel
        return channel

    def thread(self, parent: Channel, name: str = "foxes") -> Channel:
        """Make a thread in a channel. Make it before the bot runs."""
        assert parent.guild is not None
        thread = Channel(self._clock.new_id(), name, parent.guild, bot=self.bot_user, parent=parent)
        parent.guild.channels.append(thread)
        self._state.channels[thread.id] = thread
        return thread

    def role(self, guild: Guild, name: str, *members: User) -> Role:
        """Make a role and give it to members."""
        role = Role(self._clock.new_id(), name)
        guild.roles.append(role)
        for user in members:
            guild.members.setdefault(user.id, []).append(role)
        return role

    def dm(self, user: User) -> Channel:
        """Return a user's DM with the bot."""
        return self._state.dm(user)

    def private_channel(self, user: User, other: User) -> Channel:
        """Make a DM between two users, where only a user's own install brings the app."""
        channel = Channel(self._clock.new_id(), "private", recipients=(user, other), with_bot=False)
        self._state.channels[channel.id] = channel
        return channel

    async def kick_bot(self, guild: Guild) -> None:
        """Remove the bot from a guild."""
        guild.has_bot = False
        await self.gateway.dispatch("GUILD_DELETE", {"id": str(guild.id)})

    async def add_bot(self, guild: Guild) -> None:
        """Bring the bot into a guild while it runs."""
        guild.has_bot = True
        await self.gateway.dispatch("GUILD_CREATE", guild.payload(self.bot_user))

    async def allow_bot(self, channel: Channel, bot_may: int) -> None:
        """Change the permissions that the bot has in a channel."""
        channel.bot_may = bot_may
        await self.gateway.dispatch("CHANNEL_UPDATE", channel.payload())

    async def archive(self, thread: Channel, *, locked: bool = False) -> None:
        """Close a thread, as happens by itself after a day; `locked`: as moderators do."""
        thread.is_archived, thread.is_locked = True, locked
        await self.gateway.dispatch("THREAD_UPDATE", thread.payload())

    async def delete_channel(self, channel: Channel) -> None:
        """Delete a channel of a guild."""
        assert channel.guild is not None
        channel.guild.channels.remove(channel)
        del self._state.channels[channel.id]
        await self.gateway.dispatch("CHANNEL_DELETE", channel.payload())

    async def delete_message(self, message: Message) -> None:
        """Delete a message, as a moderator does, or as its reader does with an ephemeral one."""
        await self._state.remove(message)

    # ------------------------------------------------------------------------------ what users do

    async def slash(self, user: User, place: Place, name: str, /, **options: object) -> Interaction:
        """Use a slash command ("imagine", or "group sub"); return when the bot answered.

        After 3 s without an answer it returns, too.

        Raises:
            ValueError: Discord's client would not send this: an unknown option, a missing one, a
                value out of range.
            LookupError: no such command is registered here.
        """
        channel = self._channel(user, place)
        command = self._command(name, channel)
        owners = self._owners(command, user, channel)
        if not owners:
            raise LookupError(f"/{name} cannot be used in {channel.name} by {user.name}")
        data = self._command_data(command, name, options)
        return await self._interact(2, user, channel, data, owners)

    async def autocomplete(
        self, user: User, place: Place, name: str, option: str, typed: str
    ) -> list[Json]:
        """Type into an option and return the choices that the bot offers."""
        channel = self._channel(user, place)
        command = self._command(name, channel)
        data = self._command_data(command, name, {option: typed}, focused=option)
        owners = self._owners(command, user, channel)
        interaction = await self._interact(4, user, channel, data, owners)
        return list(interaction.data.get("choices", []))

    async def click(self, user: User, message: Message, button: str) -> Interaction:
        """Click a button, named by its label or custom_id; return when it is answered.

        Raises:
            LookupError: the user sees no such button.
            ValueError: it cannot be clicked, or opens a page.
        """
        found = [
            each for each in walk(message.components)
            if each["type"] == 2 and (each.get("custom_id") == button or each.get("label") == button
                                      or (each.get("emoji") or {}).get("name") == button)
        ]  # fmt: skip
        if not found or not message.shown_to(user):
            raise LookupError(f"{user.name} sees no button {button} among {list(message.buttons)}")
        if found[0].get("disabled") or "custom_id" not in found[0]:
            raise ValueError(f"the button {button} is disabled, or a link")
        data = {"custom_id": found[0]["custom_id"], "component_type": 2, "id": found[0]["id"]}
        if message.interaction is not None:
            owners = message.interaction.owners
        elif message.channel.guild is not None:
            owners = {GUILD_INSTALL: str(message.channel.guild.id)}
        else:
            owners = {GUILD_INSTALL: "0"}
        return await self._interact(3, user, message.channel, data, owners, source=message)

    async def submit_modal(self, shown: Interaction, **values: str) -> Interaction:
        """Fill in the modal that an interaction was answered with, and send it.

        Args:
            shown: the interaction that the bot answered with a modal.
            values: the texts, by custom_id; what is not named keeps what the bot filled in.

        Raises:
            ValueError: a text is missing, or too long.
        """
        modal = shown.modal
        assert modal is not None, f"the bot answered with {shown.answer}, not with a modal"
        fields = {each["custom_id"]: each for each in walk(modal["components"])
                  if each["type"] == 4}  # fmt: skip
        if unknown := set(values) - set(fields):
            raise ValueError(f"no field {unknown}; fields are {list(fields)}")
        for name, field in fields.items():
            text = values.get(name, field.get("value", ""))
            if field.get("required", True) and not text:
                raise ValueError(f"{name} is required")
            if text and not field.get("min_length", 0) <= len(text) <= field.get(
                "max_length", 4000
            ):
                raise ValueError(f"{name} is too short or too long: {len(text)} characters")
        filled = [_filled(row, values) for row in modal["components"]]
        data = {"custom_id": modal["custom_id"], "components": filled}
        return await self._interact(
            5, shown.user, shown.channel, data, shown.owners, source=shown.source, caused_by=shown
        )

    async def _interact(
        self, kind: int, user: User, channel: Channel, data: Json, owners: dict[str, str],
        *, source: Message | None = None, caused_by: Interaction | None = None,
    ) -> Interaction:  # fmt: skip
        await asyncio.sleep(REACTION)
        token = secrets.token_urlsafe(40)
        interaction = Interaction(
            self._clock.new_id(), token, kind, user, channel, data, owners, self._clock.now(),
            source, caused_by,
        )  # fmt: skip
        self._state.interactions[token] = interaction
        payload = interaction.payload(self.bot_user.id)
        await self.gateway.dispatch("INTERACTION_CREATE", payload)
        with contextlib.suppress(TimeoutError):
            await self.until(lambda: interaction.is_answered, ANSWER_WITHIN)
        if not interaction.is_answered:
            what = data.get("name") or data.get("custom_id")
            self.mistakes.append(f"{what} of {user.name} was not answered within 3 s")
        return interaction

    def _channel(self, user: User, place: Place) -> Channel:
        channel = place.channels[0] if isinstance(place, Guild) else place
        if channel.guild is not None:
            channel.guild.members.setdefault(user.id, [])
        return channel

    def _command(self, name: str, channel: Channel) -> Json:
        guild = channel.guild.id if channel.guild else None
        every = [*self._state.commands.get(guild, []), *self._state.commands.get(None, [])]
        for command in every:
            if command["name"] == name.split(maxsplit=1)[0]:
                return command
        names = [command["name"] for command in every]
        raise LookupError(f"no command {name} is registered; commands are {names}")

    def _owners(self, command: Json, user: User, channel: Channel) -> dict[str, str]:
        """Return who brought the app here; empty if the command cannot be used.

        https://docs.discord.com/developers/interactions/receiving-and-responding
        #interaction-object-authorizing-integration-owners-object
        """
        contexts = command.get("contexts")
        if contexts is None:
            contexts = [0] if command.get("dm_permission") is False else [0, 1, 2]
        if channel.context not in contexts:
            return {}
        installs = command.get("integration_types") or [0, 1]
        owners = {}
        if 0 in installs and channel.context == IN_GUILD and channel.bot_is_here:
            assert channel.guild is not None
            owners[GUILD_INSTALL] = str(channel.guild.id)
        if 0 in installs and channel.context == IN_BOT_DM:
            owners[GUILD_INSTALL] = "0"
        if 1 in installs and user.has_installed:
            owners[USER_INSTALL] = str(user.id)
        return owners

    def _command_data(
        self, command: Json, name: str, given: Mapping[str, object], *, focused: str = ""
    ) -> Json:
        """Return what an interaction says of a command, with sub-commands nested.

        https://docs.discord.com/developers/interactions/receiving-and-responding
        #interaction-object-application-command-data-structure
        """
        resolved: Json = {}
        data: Json = {"id": command["id"], "name": command["name"], "type": 1, "options": []}
        if "guild_id" in command:
            data["guild_id"] = command["guild_id"]
        inner, options = command, data["options"]
        for part in name.split()[1:]:
            inner = next(each for each in inner["options"] if each["name"] == part)
            nested: Json = {"name": part, "type": inner["type"], "options": []}
            options.append(nested)
            options = nested["options"]
        if not focused:  # then everything is filled in
            rules.check_options(inner, {key: _size_of(value) for key, value in given.items()})
        kinds = {option["name"]: option["type"] for option in inner.get("options", [])}
        for key, value in given.items():
            sent = value
            if isinstance(value, File):
                attachment = self._attach(value)
                sent = str(attachment.id)
                resolved.setdefault("attachments", {})[sent] = attachment.payload()
            elif isinstance(value, User):
                sent = str(value.id)
                resolved.setdefault("users", {})[sent] = value.payload()
            option = {"name": key, "type": kinds[key], "value": sent}
            options.append(option | ({"focused": True} if key == focused else {}))
        return data | ({"resolved": resolved} if resolved else {})

    def _attach(self, file: File) -> Attachment:
        place = f"ephemeral-attachments/{self.bot_user.id}"
        return self._state.upload(file.name, file.content, place, is_ephemeral=True)

    # ------------------------------------------------------------------------ what Discord may do

    async def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait until a condition holds, for at most so many seconds of the loop's time."""
        await self._state.until(condition, seconds)

    def sent(self, route: str) -> list[Request]:
        """Return the requests of a route, such as "PATCH /webhooks/*/messages/@original"."""
        return [request for request in self.requests if request.matches(route)]

    def fail(self, route: str, status: int, code: int = 0, *, times: int = 1) -> None:
        """Answer the next requests of a route with an error, and do nothing."""
        self._state.plans.append(Plan(route, times, status=status, code=code))

    def rate_limit(
        self, route: str, retry_after: float, *, times: int = 1, is_global: bool = False
    ) -> None:
        """Answer the next requests of a route with 429."""
        self._state.plans.append(Plan(route, times, retry_after=retry_after, is_global=is_global))

    def lose_answer(self, route: str, *, times: int = 1) -> None:
        """Do what the next requests of a route ask for, but lose the answer: cut the connection."""
        self._state.plans.append(Plan(route, times, loses_answer=True))

    def hold(self, route: str, *, times: int = 1) -> Hold:
        """Hold the next requests of a route back, until `release()`; `arrived` is set by them."""
        hold = Hold()
        self._state.plans.append(Plan(route, times, hold=hold))
        return hold

    def calm(self) -> None:
        """Drop all that was planned by the four methods above."""
        for plan in self._state.plans:
            plan.times = 0
            if plan.hold is not None:
                plan.hold.release()

    def drop_gateway(self) -> None:
        """Cut all connections to the gateway. discord.py resumes."""
        for connection in list(self.gateway.connections):
            connection.drop()

    async def close_gateway(self, code: int) -> None:
        """Close all connections to the gateway with a code."""
        for connection in list(self.gateway.connections):
            await connection.socket.close(code=code)

    async def ask_to_reconnect(self) -> None:
        """Ask the bot to reconnect and resume: https://docs.discord.com/developers/events/gateway."""
        for connection in list(self.gateway.connections):
            await connection.send({"op": 7, "d": None, "s": None, "t": None})

    def forget_sessions(self) -> None:
        """Forget all sessions: the next resume is answered with "invalid session"."""
        self.gateway.sessions.clear()

    async def invalidate_sessions(self, *, resumable: bool = False) -> None:
        """Tell the bot that its session is invalid, now."""
        if not resumable:
            self.forget_sessions()
        for connection in list(self.gateway.connections):
            await connection.send({"op": 9, "d": resumable, "s": None, "t": None})


def _end_leftovers(bot: discord.Client, sockets: Sequence[aiohttp.ClientWebSocketResponse]) -> None:
    """End what discord.py leaves behind when it is closed while it reconnects."""
    for socket in sockets:
        socket._response.close()
    # The task that waits for guilds after each new session.
    if (waiting := bot._connection._ready_task) is not None:
        waiting.cancel()
    # The heartbeats of a connection that was lost just before; 41 s later they miss their loop.
    for thread in threading.enumerate():
        if (
            isinstance(thread, discord.gateway.KeepAliveHandler)
            and thread.ws._connection is bot._connection
        ):
            thread.stop()


def _size_of(value: object) -> object:
    return "" if isinstance(value, (File, User)) else value


def _filled(row: Json, values: Mapping[str, str]) -> Json:
    """Return a part of a modal as it comes back: types, ids and what was typed.

    https://docs.discord.com/developers/components/using-modal-components
    """
    made: dict[str, Any] = {"type": row["type"], "id": row.get("id", 1)}
    if row["type"] == 4:
        made["custom_id"] = row["custom_id"]
        made["value"] = values.get(row["custom_id"], row.get("value", ""))
    if "components" in row:
        made["components"] = [_filled(each, values) for each in row["components"]]
    if "component" in row:
        made["component"] = _filled(row["component"], values)
    return made
