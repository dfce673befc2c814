"""Discord's REST routes, as far as bots of this kind use them.

https://docs.discord.com/developers/reference#http-api
"""

import asyncio
import collections
import copy
import json
import re
from collections.abc import Awaitable, Callable, Mapping

import attrs
from aiohttp import BodyPartReader, web

from tests.integrations.discord_stand_in import rules
from tests.integrations.discord_stand_in.rules import NOT_A_MISTAKE, Refused, invalid
from tests.integrations.discord_stand_in.state import Request, State
from tests.integrations.discord_stand_in.things import (
    ATTACH_FILES,
    COMPONENTS_V2,
    EPHEMERAL,
    LOADING,
    MENTION_EVERYONE,
    READ_MESSAGE_HISTORY,
    SEND_MESSAGES,
    SUPPRESS_EMBEDS,
    SUPPRESS_NOTIFICATIONS,
    VIEW_CHANNEL,
    Attachment,
    Channel,
    Interaction,
    Json,
    Message,
    User,
    media,
    mentions_in,
    pinged_by,
    walk,
)

ANSWER_WITHIN = 3.0
TOKEN_LASTS = 15 * 60.0
# "Past few minutes": https://docs.discord.com/developers/resources/message#create-message
NONCE_LASTS = 300.0
MOST_USER_INSTALL_FOLLOWUPS = 5
# https://docs.discord.com/developers/topics/rate-limits#global-rate-limit
GLOBAL_LIMIT, GLOBAL_PER = 50, 1.0

Files = Mapping[int, tuple[str, bytes]]


@attrs.define
class Call:
    """One request, read.

    Attributes:
        ids: the variable parts of the path.
        query: behind the question mark.
        payload: its JSON.
        files: by the number in `files[n]`: name and content.
    """

    ids: Mapping[str, str]
    query: Mapping[str, str]
    payload: Json
    files: Files


@attrs.frozen
class Route:
    """A route, and its rate limit: so many requests in so many seconds, per top-level resource.

    Discord does not publish its figures; these are what its headers said of late. Bots are to read
    the headers: https://docs.discord.com/developers/topics/rate-limits
    """

    method: str
    path: str
    handle: Callable[[Call], Awaitable[object]]
    limit: int = 50
    per: float = 1.0

    @property
    def needs_token(self) -> bool:
        """Whether the bot's token is asked for: an interaction's token stands in the path."""
        return not self.path.startswith(("/interactions/", "/webhooks/"))


@attrs.define
class Rest:
    """Answers requests."""

    state: State
    _used: dict[tuple[str, str], tuple[float, int]] = attrs.field(factory=dict)
    _lately: collections.deque[float] = attrs.field(factory=collections.deque)

    def routes(self) -> list[web.RouteDef]:
        """Return all routes, for aiohttp."""
        found = [
            Route("GET", "/gateway/bot", self._gateway),
            Route("GET", "/users/@me", self._me),
            Route("GET", "/users/{user}", self._user),
            Route("GET", "/applications/@me", self._application),
            Route("GET", "/oauth2/applications/@me", self._application),
            Route("POST", "/users/@me/channels", self._open_dm),
            Route("GET", "/applications/{application}/commands", self._commands),
            Route("PUT", "/applications/{application}/commands", self._put_commands),
            Route("GET", "/applications/{application}/guilds/{guild}/commands", self._commands),
            Route("PUT", "/applications/{application}/guilds/{guild}/commands", self._put_commands),
            Route("GET", "/guilds/{guild}/members/{user}", self._member),
            Route("GET", "/channels/{channel}", self._channel),
            Route("POST", "/channels/{channel}/typing", self._typing, 5, 5),
            Route("GET", "/channels/{channel}/messages", self._history, 5, 5),
            Route("POST", "/channels/{channel}/messages", self._post, 5, 5),
            Route("GET", "/channels/{channel}/messages/{message}", self._get, 5, 5),
            Route("PATCH", "/channels/{channel}/messages/{message}", self._patch, 5, 5),
            Route("DELETE", "/channels/{channel}/messages/{message}", self._delete, 5, 1),
            Route("POST", "/interactions/{interaction}/{token}/callback", self._callback),
            Route("POST", "/webhooks/{application}/{token}", self._follow_up, 5, 2),
            Route("GET", "/webhooks/{application}/{token}/messages/{message}", self._get_own, 5, 2),
            Route(
                "PATCH", "/webhooks/{application}/{token}/messages/{message}", self._edit_own, 5, 2
            ),
            Route(
                "DELETE",
                "/webhooks/{application}/{token}/messages/{message}",
                self._delete_own,
                5,
                2,
            ),
        ]
        every = [web.route(r.method, f"/api/v10{r.path}", self._serve(r)) for r in found]
        every.append(web.get("/attachments/{place}/{number}/{filename}", self._download))
        every.append(web.get("/ephemeral-attachments/{place}/{number}/{filename}", self._download))
        every.append(web.route("*", "/api/v10/{rest:.*}", self._unknown))
        return every

    # ------------------------------------------------------------------- what all requests meet

    def _serve(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            payload, files = await _read(request)
            seen = Request(
                asyncio.get_running_loop().time(),
                request.method,
                request.path.removeprefix("/api/v10"),
                payload,
                tuple(name for name, _ in files.values()),
            )
            self.state.requests.append(seen)
            call = Call(dict(request.match_info), dict(request.query), payload, files)
            answer = await self._answer(route, request, seen, call)
            seen.status = answer.status
            self.state.changed()
            return answer

        return serve

    async def _answer(
        self, route: Route, request: web.Request, seen: Request, call: Call
    ) -> web.Response:
        plan = self.state.plan_for(seen)
        if plan is not None and plan.hold is not None:
            plan.hold.arrived.set()
            await plan.hold.released.wait()
        if plan is not None and plan.retry_after is not None:
            return _too_many(plan.retry_after, is_global=plan.is_global)
        if plan is not None and plan.status is not None:
            return self._refuse(seen, Refused(plan.status, plan.code), is_planned=True)
        limited, headers = self._count(route, call)
        if limited is not None:
            return limited
        try:
            if route.needs_token and request.headers.get("Authorization") != (
                f"Bot {self.state.token}"
            ):
                raise Refused(401, 0)
            result = await route.handle(call)
        except Refused as refused:
            return self._refuse(seen, refused, headers=headers)
        if plan is not None and plan.loses_answer and request.transport is not None:
            request.transport.abort()
        return _json(204 if result is None else 200, result, headers)

    def _refuse(
        self,
        seen: Request,
        refused: Refused,
        *,
        is_planned: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> web.Response:
        seen.code = refused.code
        if not is_planned and refused.code not in NOT_A_MISTAKE:
            self.state.mistakes.append(f"{seen.method} {seen.path}: {refused}")
        return _json(refused.status, refused.body(), headers or {})

    def _count(self, route: Route, call: Call) -> tuple[web.Response | None, dict[str, str]]:
        """Count a request against its route's limit, and against the bot's.

        https://docs.discord.com/developers/topics/rate-limits
        """
        now = asyncio.get_running_loop().time()
        if route.needs_token:
            while self._lately and self._lately[0] <= now - GLOBAL_PER:
                self._lately.popleft()
            if len(self._lately) >= GLOBAL_LIMIT:
                return _too_many(self._lately[0] + GLOBAL_PER - now, is_global=True), {}
            self._lately.append(now)
        top = "channel" if "channel" in call.ids else "guild" if "guild" in call.ids else "token"
        key = (f"{route.method} {route.path}", call.ids.get(top, ""))
        since, used = self._used.get(key, (now, 0))
        if now >= since + route.per:
            since, used = now, 0
        left = since + route.per - now
        headers = {
            "X-RateLimit-Limit": str(route.limit),
            "X-RateLimit-Remaining": str(max(route.limit - used - 1, 0)),
            "X-RateLimit-Reset": f"{self.state.clock.now() + left:.3f}",
            "X-RateLimit-Reset-After": f"{left:.3f}",
            "X-RateLimit-Bucket": re.sub(r"\W+", "-", key[0]).strip("-").lower(),
        }
        if used >= route.limit:
            return _too_many(left, headers=headers), headers
        self._used[key] = (since, used + 1)
        return None, headers

    async def _unknown(self, request: web.Request) -> web.Response:
        self.state.mistakes.append(
            f"{request.method} {request.path}: the stand-in has no such route"
        )
        return _json(404, {"message": "404: Not Found", "code": 0}, {})

    async def _download(self, request: web.Request) -> web.Response:
        """https://docs.discord.com/developers/reference#signed-attachment-cdn-urls."""
        attachment = self.state.attachments.get(int(request.match_info["number"]))
        if attachment is None or self.state.clock.now() >= attachment.expires:
            return web.Response(status=404, text="This content is no longer available.")
        kind = attachment.payload().get("content_type", "application/octet-stream")
        return web.Response(body=attachment.content, content_type=kind)

    # --------------------------------------------------------------------------- who and where

    async def _gateway(self, call: Call) -> Json:
        limit = {"total": 1000, "remaining": 1000, "reset_after": 0, "max_concurrency": 1}
        return {"url": self.state.gateway.url, "shards": 1, "session_start_limit": limit}

    async def _me(self, call: Call) -> Json:
        return self.state.bot.payload() | {"verified": True, "mfa_enabled": False}

    async def _user(self, call: Call) -> Json:
        return self._find_user(call.ids["user"]).payload()

    async def _application(self, call: Call) -> Json:
        """https://docs.discord.com/developers/resources/application#application-object."""
        return {
            "id": str(self.state.bot.id),
            "name": self.state.bot.name,
            "icon": None,
            "description": "",
            "bot_public": True,
            "bot_require_code_grant": False,
            "verify_key": "00" * 32,
            "flags": 0,
            "owner": self.state.bot.payload(),
            "team": None,
            "integration_types_config": {"0": {}, "1": {}},
        }

    async def _member(self, call: Call) -> Json:
        guild = self.state.guilds.get(int(call.ids["guild"]))
        if guild is None or not guild.has_bot:
            raise Refused(404, 10004)
        return guild.member(self._find_user(call.ids["user"]))

    async def _channel(self, call: Call) -> Json:
        return self._reach(call).payload()

    async def _typing(self, call: Call) -> None:
        self._reach(call, SEND_MESSAGES)

    async def _open_dm(self, call: Call) -> Json:
        """Open a DM; that works even if nothing can be sent into it.

        https://docs.discord.com/developers/resources/user#create-dm
        """
        return self.state.dm(self._find_user(call.payload["recipient_id"])).payload()

    def _find_user(self, number: object) -> User:
        user = self.state.users.get(int(str(number)))
        if user is None:
            raise Refused(404, 10013)
        return user

    def _reach(self, call: Call, *needed: int) -> Channel:
        """Return the channel of a request, if the bot may use it.

        https://docs.discord.com/developers/topics/permissions
        """
        channel = self.state.channels.get(int(call.ids["channel"]))
        if channel is None:
            raise Refused(404, 10003)
        if not channel.bot_is_here or not channel.may(VIEW_CHANNEL):
            raise Refused(403, 50001)
        if not all(map(channel.may, needed)):
            raise Refused(403, 50013)
        return channel

    # -------------------------------------------------------------------------------- commands

    async def _commands(self, call: Call) -> list[Json]:
        return self.state.commands.get(self._scope(call), [])

    async def _put_commands(self, call: Call) -> list[Json]:
        """Replace all commands of a guild, or the global ones.

        https://docs.discord.com/developers/interactions/application-commands
        #bulk-overwrite-global-application-commands
        """
        given: list[Json] = call.payload["list"]
        if len(given) > 100:
            raise invalid("", "APPLICATION_COMMANDS_MAX", "At most 100 commands")
        for command in given:
            rules.check_command(command)
        scope = self._scope(call)
        before = {command["name"]: command["id"] for command in await self._commands(call)}
        self.state.commands[scope] = [
            {"options": [], "description": "", "type": 1, "default_member_permissions": None}
            | command
            | {
                "id": before.get(command["name"], str(self.state.clock.new_id())),
                "application_id": str(self.state.bot.id),
                "version": str(self.state.clock.new_id()),
            }
            | ({} if scope is None else {"guild_id": str(scope)})
            for command in given
        ]
        return self.state.commands[scope]

    def _scope(self, call: Call) -> int | None:
        guild = call.ids.get("guild")
        if guild is None:
            return None
        if int(guild) not in self.state.guilds:
            raise Refused(403, 50001)
        return int(guild)

    # ---------------------------------------------------------------- messages, as the bot user

    async def _history(self, call: Call) -> list[Json]:
        """https://docs.discord.com/developers/resources/message#get-channel-messages."""
        channel = self._reach(call)
        if not channel.may(READ_MESSAGE_HISTORY):
            return []
        found = [message for message in channel.messages if message.only_for is None]
        if "after" in call.query:
            found = [message for message in found if message.id > int(call.query["after"])]
        if "before" in call.query:
            found = [message for message in found if message.id < int(call.query["before"])]
        limit = int(call.query.get("limit", 50))
        found = found[:limit] if "after" in call.query else found[-limit:]
        return [message.payload() for message in reversed(found)]

    async def _post(self, call: Call) -> Json:
        """https://docs.discord.com/developers/resources/message#create-message."""
        channel = self._reach(call, SEND_MESSAGES, *([ATTACH_FILES] if call.files else []))
        if channel.guild is None:
            self._check_dm(channel.recipients[0])
        if channel.is_locked:
            raise Refused(400, 50083)
        channel.is_archived = False  # a message opens a thread again
        nonce = call.payload.get("nonce")
        if nonce is not None:
            rules.check_length("nonce", str(nonce), 0, 25)
        if nonce is not None and call.payload.get("enforce_nonce"):
            # Of the same author, in whichever channel:
            # https://github.com/discord/discord-api-docs/pull/6647
            every = (m for each in self.state.channels.values() for m in each.all_messages)
            for message in every:
                age = self.state.clock.now() - message.created_at
                if message.nonce == str(nonce) and age < NONCE_LASTS:
                    if message.deleted_at is not None:
                        raise Refused(404, 10008)
                    return message.payload()
        limit = channel.guild.file_limit if channel.guild else 10 << 20
        message = Message(
            self.state.clock.new_id(),
            channel,
            self.state.bot,
            self.state.clock.now(),
            nonce=None if nonce is None else str(nonce),
        )
        self._fill(message, call.payload, call.files, limit)
        await self._add(message)
        return message.payload()

    def _check_dm(self, user: User) -> None:
        shares = any(guild.has_bot and user.id in guild.members
                     for guild in self.state.guilds.values())  # fmt: skip
        if not shares and not user.has_installed:
            raise Refused(403, 50278)
        if not user.takes_dms:
            raise Refused(403, 50007)

    async def _get(self, call: Call) -> Json:
        return self._find_message(self._reach(call, READ_MESSAGE_HISTORY), call).payload()

    async def _patch(self, call: Call) -> Json:
        """https://docs.discord.com/developers/resources/message#edit-message."""
        channel = self._reach(call, *([ATTACH_FILES] if call.files else []))
        message = self._find_message(channel, call)
        if message.author is not self.state.bot:
            raise Refused(403, 50005)
        if channel.is_archived:
            raise Refused(400, 50083)
        limit = channel.guild.file_limit if channel.guild else 10 << 20
        await self._edit(message, call.payload, call.files, limit)
        return message.payload()

    async def _delete(self, call: Call) -> None:
        message = self._find_message(self._reach(call), call)
        if message.author is not self.state.bot:
            raise Refused(403, 50013)
        if message.channel.is_archived:
            raise Refused(400, 50083)
        await self.state.remove(message)

    def _find_message(self, channel: Channel, call: Call) -> Message:
        message = self.state.message(channel, int(call.ids["message"]))
        if message is None:
            raise Refused(404, 10008)
        return message

    # ---------------------------------------------------------------------------- interactions

    async def _callback(self, call: Call) -> object:
        """Take the first answer to an interaction.

        https://docs.discord.com/developers/interactions/receiving-and-responding
        #create-interaction-response
        """
        interaction = self.state.interactions.get(call.ids["token"])
        if interaction is None or interaction.id != int(call.ids["interaction"]):
            raise Refused(404, 10062)
        if interaction.is_answered:
            raise Refused(400, 40060)
        if self.state.clock.now() - interaction.created_at >= ANSWER_WITHIN:
            raise Refused(404, 10062)
        kind, data = call.payload["type"], call.payload.get("data") or {}
        if kind not in _allowed_answers(interaction):
            raise invalid("type", "INTERACTION_APPLICATION_COMMAND_INVALID_TYPE", f"not {kind}")
        interaction.answer = kind  # before anything is awaited, so that a second one is refused
        try:
            await self._take_answer(interaction, kind, data, call.files)
        except Refused:
            interaction.answer = None
            raise
        self.state.changed()
        if call.query.get("with_response", "").lower() not in ("1", "true"):
            return None
        return _callback_result(interaction)

    async def _take_answer(
        self, interaction: Interaction, kind: int, data: Json, files: Files
    ) -> None:
        if kind in (4, 5):
            await self._answer_with_message(interaction, kind, data, files)
        elif kind == 7 and interaction.source is not None:
            await self._edit(interaction.source, data, files, interaction.file_limit)
        elif kind == 9:
            rules.check_modal(data)
            interaction.modal = data
        elif kind == 8:
            interaction.data["choices"] = data["choices"]
        if kind in (6, 7):
            interaction.original = interaction.source

    async def _answer_with_message(
        self, interaction: Interaction, kind: int, data: Json, files: Files
    ) -> None:
        ephemeral = data.get("flags", 0) & EPHEMERAL
        message = Message(
            self.state.clock.new_id(),
            interaction.channel,
            self.state.bot,
            self.state.clock.now(),
            interaction=interaction,
            only_for=interaction.user if ephemeral else None,
        )
        if kind == 5:
            if data.get("flags", 0) & ~EPHEMERAL:
                raise invalid("data.flags", "BITFIELD", "Only EPHEMERAL can be set on a deferral")
            message.flags = LOADING | ephemeral
        else:
            self._fill(message, data, files, interaction.file_limit)
        interaction.original = message
        await self._add(message)

    def _by_token(self, call: Call) -> Interaction:
        """Return the interaction of a webhook's route, while its token lives."""
        interaction = self.state.interactions.get(call.ids["token"])
        if interaction is None or int(call.ids["application"]) != self.state.bot.id:
            raise Refused(401, 50027)
        if self.state.clock.now() - interaction.created_at >= TOKEN_LASTS:
            raise Refused(401, 50027)
        if not interaction.is_answered:
            raise Refused(404, 10015)
        return interaction

    def _own_message(self, call: Call) -> tuple[Interaction, Message]:
        interaction = self._by_token(call)
        if call.ids["message"] == "@original":
            found = interaction.original
        else:
            number = int(call.ids["message"])
            own = [*interaction.followups, interaction.original]
            found = next((each for each in own if each is not None and each.id == number), None)
        if found is None or found.deleted_at is not None:
            raise Refused(404, 10008)
        return interaction, found

    async def _get_own(self, call: Call) -> Json:
        return self._own_message(call)[1].payload()

    async def _edit_own(self, call: Call) -> Json:
        interaction, message = self._own_message(call)
        await self._edit(message, call.payload, call.files, interaction.file_limit)
        return message.payload()

    async def _delete_own(self, call: Call) -> None:
        await self.state.remove(self._own_message(call)[1])

    async def _follow_up(self, call: Call) -> Json:
        """Add a message to an interaction; directly after a deferral it becomes the answer.

        https://docs.discord.com/developers/interactions/receiving-and-responding
        #create-followup-message
        """
        interaction = self._by_token(call)
        original = interaction.original
        if original is not None and original.is_loading and original.deleted_at is None:
            await self._edit(original, call.payload, call.files, interaction.file_limit)
            return original.payload()
        if (
            interaction.is_user_install_only
            and len(interaction.followups) >= MOST_USER_INSTALL_FOLLOWUPS
        ):
            raise Refused(400, 40094)
        message = Message(
            self.state.clock.new_id(),
            interaction.channel,
            self.state.bot,
            self.state.clock.now(),
            interaction=interaction,
            only_for=interaction.user if call.payload.get("flags", 0) & EPHEMERAL else None,
        )
        self._fill(message, call.payload, call.files, interaction.file_limit)
        interaction.followups.append(message)
        await self._add(message)
        return message.payload()

    # ------------------------------------------------------------------- what a message becomes

    def _fill(self, message: Message, payload: Json, files: Files, file_limit: int) -> None:
        """Give a new message, or one that was loading, its content."""
        self._change(message, payload, files, file_limit)
        allowed = payload.get("allowed_mentions")
        may_mention_all = message.channel.may(MENTION_EVERYONE)
        message.pinged = pinged_by(message.text, allowed, may_mention_all=may_mention_all)
        reference = payload.get("message_reference")
        if reference is not None:
            self._refer(message, int(reference["message_id"]), allowed)

    def _refer(self, message: Message, number: int, allowed: Json | None) -> None:
        """Make a message a reply, which notifies the other one's author unless told otherwise."""
        other = self.state.message(message.channel, number)
        if other is None:
            raise invalid("message_reference", "MESSAGE_REFERENCE_UNKNOWN_MESSAGE", "Unknown")
        if allowed is None or allowed.get("replied_user"):
            message.pinged.add(other.author.id)

    def _change(self, message: Message, payload: Json, files: Files, file_limit: int) -> None:
        """Change what a payload names, if the message that this makes is allowed; else nothing."""
        rules.check_allowed_mentions(payload.get("allowed_mentions"))
        flags = payload.get("flags")
        if flags is not None and message.is_v2 and not flags & COMPONENTS_V2:
            raise invalid(
                "flags",
                "MESSAGE_CANNOT_REMOVE_COMPONENTS_V2_FLAG",
                "The IS_COMPONENTS_V2 flag cannot be removed",
            )
        # An edit cannot make a message ephemeral, or for all.
        kept = EPHEMERAL if message.only_for is not None else 0
        settable = COMPONENTS_V2 | SUPPRESS_EMBEDS | SUPPRESS_NOTIFICATIONS
        new_flags = kept | ((message.flags if flags is None else flags) & settable)
        content = payload.get("content", message.content) or ""
        embeds = payload.get("embeds", message.embeds) or []
        components = payload.get("components", message.components) or []
        planned = self._attachments(message, payload, files, file_limit)
        rules.check_message(
            content=content,
            embeds=embeds,
            components=components,
            flags=new_flags,
            filenames=[name for name, *_ in planned],
        )
        attachments = [
            kept or self.state.upload(
                name, files[number][1], f"attachments/{message.channel.id}",
                description=description, is_ephemeral=message.only_for is not None)
            for name, number, kept, description in planned
        ]  # fmt: skip
        message.content, message.embeds, message.flags = content, list(embeds), new_flags
        message.attachments = attachments
        message.components = _resolved(components, attachments)
        users, _ = mentions_in(message.text)
        message.mentioned = [self.state.users[each] for each in users if each in self.state.users]

    def _attachments(
        self, message: Message, payload: Json, files: Files, file_limit: int
    ) -> list[tuple[str, int, Attachment | None, str | None]]:
        """Return name, number, the old file if it is one, and description of each file.

        https://docs.discord.com/developers/reference#editing-message-attachments
        """
        if any(len(content) > file_limit for _, content in files.values()):
            raise Refused(413, 40005)
        old = {each.id: each for each in message.attachments}
        listed = payload.get("attachments")
        if listed is None:
            listed = [*({"id": each} for each in old), *({"id": number} for number in files)]
        found: list[tuple[str, int, Attachment | None, str | None]] = []
        for index, entry in enumerate(listed):
            number = int(entry["id"])
            if number in old:
                found.append((old[number].filename, number, old[number], None))
            elif number in files:
                name = entry.get("filename") or files[number][0]
                found.append((name, number, None, entry.get("description")))
            else:
                raise invalid(
                    f"attachments.{index}.id", "ATTACHMENT_NOT_FOUND", "Attachment not found"
                )
        return found

    async def _add(self, message: Message) -> None:
        message.keep_version(asyncio.get_running_loop().time())
        message.channel.all_messages.append(message)
        await self.state.show("MESSAGE_CREATE", message)

    async def _edit(self, message: Message, payload: Json, files: Files, file_limit: int) -> None:
        """Edit a message. An edit notifies nobody, unless it ends a deferral."""
        if message.is_loading:
            self._fill(message, payload, files, file_limit)
        else:
            self._change(message, payload, files, file_limit)
            message.edited_at = self.state.clock.now()
        message.keep_version(asyncio.get_running_loop().time())
        await self.state.show("MESSAGE_UPDATE", message)


async def _read(request: web.Request) -> tuple[Json, Files]:
    """Read JSON, or a form with `payload_json` and `files[n]`.

    https://docs.discord.com/developers/reference#uploading-files
    """
    payload: Json = {}
    files: dict[int, tuple[str, bytes]] = {}
    if request.content_type != "multipart/form-data":
        body = await request.read()
        read = json.loads(body) if body else {}
        return ({"list": read} if isinstance(read, list) else read), files
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        name = part.name or ""
        if name == "payload_json":
            payload = json.loads(await part.read())
        elif (number := re.fullmatch(r"files\[(\d+)\]", name)) is not None:
            files[int(number[1])] = (part.filename or "", bytes(await part.read()))
    return payload, files


def _json(status: int, content: object, headers: Mapping[str, str]) -> web.Response:
    # discord.py reads JSON only if the type is exactly this, and takes a 429 for Discord's own (not
    # a proxy's) only if there is a Via.
    sent = {"Via": "1.1 google", **headers}
    if content is None:
        return web.Response(status=status, headers=sent)
    body = json.dumps(content).encode()
    return web.Response(
        status=status, body=body, headers=sent | {"Content-Type": "application/json"}
    )


def _too_many(
    retry_after: float, *, is_global: bool = False, headers: Mapping[str, str] | None = None
) -> web.Response:
    """https://docs.discord.com/developers/topics/rate-limits#exceeding-a-rate-limit."""
    retry_after = round(retry_after, 3)
    body = {
        "message": "You are being rate limited.",
        "retry_after": retry_after,
        "global": is_global,
    }
    scope = {"X-RateLimit-Scope": "global" if is_global else "user"}
    more = {"Retry-After": str(int(retry_after) + 1)} | scope
    more |= {"X-RateLimit-Global": "true"} if is_global else {}
    return _json(429, body, {**(headers or {}), **more})


def _allowed_answers(interaction: Interaction) -> set[int]:
    """Return the types of answer that fit: 6 and 7 need a message with components.

    https://docs.discord.com/developers/interactions/receiving-and-responding
    #interaction-response-object-interaction-callback-type
    """
    if interaction.kind == 4:
        return {8}
    allowed = {4, 5}
    if interaction.kind != 5:
        allowed |= {9}
    if interaction.source is not None:
        allowed |= {6, 7}
    return allowed


def _callback_result(interaction: Interaction) -> Json:
    """https://docs.discord.com/developers/interactions/receiving-and-responding
    #interaction-callback-interaction-callback-response-object.
    """  # noqa: D205
    about: Json = {"id": str(interaction.id), "type": interaction.kind}
    result: Json = {"interaction": about}
    message = interaction.original
    if message is not None:
        about["response_message_id"] = str(message.id)
        about["response_message_loading"] = message.is_loading
        about["response_message_ephemeral"] = message.only_for is not None
    if interaction.answer in (4, 7) and message is not None:
        result["resource"] = {"type": interaction.answer, "message": message.payload()}
    return result


def _resolved(components: list[Json], attachments: list[Attachment]) -> list[Json]:
    """Number the components, and give pictures the addresses of the files they refer to.

    https://docs.discord.com/developers/components/reference#anatomy-of-a-component
    """
    made = copy.deepcopy(components)
    taken = {each["id"] for each in walk(made) if each.get("id")}
    free = (number for number in range(1, 1000) if number not in taken)
    for each in walk(made):
        if not each.get("id"):
            each["id"] = next(free)
    by_name = {each.filename: each for each in attachments}
    for each in media(made):
        scheme, _, name = each["url"].partition("://")
        if scheme == "attachment":
            file = by_name[name].payload()
            each |= {"url": file["url"], "proxy_url": file["proxy_url"]}
            each |= {"attachment_id": file["id"], "content_type": file.get("content_type")}
            each |= {"loading_state": 2, "flags": 0, "width": 1, "height": 1}
    return made
