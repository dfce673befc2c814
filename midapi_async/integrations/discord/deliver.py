"""Sends a result: into the working message, the channel, or a direct message.

A result counts as taken when Discord has accepted its message, never before. If the bot dies in
between, `deliver` searches for the message before it sends another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias, cast

import aiohttp
import attrs
import discord
from discord import ui

from midapi_async import (
    ClientClosed,
    DownloadError,
    InvalidRequestError,
    MidAPIClient,
    MidAPIError,
    TaskDetails,
    TaskFailed,
    TaskHandle,
    TaskStatus,
)

from .places import Place, place_of
from .strings import DEFAULT, Strings
from .views import MOST_FILES, is_result_of, result_view, text_view

_log = logging.getLogger("midapi_async.discord")

# Loop seconds for which an interaction's token is used; Discord accepts it for 15 minutes.
TOKEN_LIFE = 14.5 * 60
# Seconds between two attempts while Discord does not answer, doubled up to the second one.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
# Messages of a channel that are searched for the result after a restart.
MOST_SEARCHED = 200
_MISSING_PERMISSIONS = 50013  # Discord's code
# Codes of what is over after a while, although the status is the one of what is forbidden: too
# much was written, too many direct messages were opened, or Discord has switched something off.
_PASSING = frozenset({20016, 20028, 20029, 40003, 40004, 40006, 130000})
NOBODY = discord.AllowedMentions.none()
# What a call of discord.py raises if Discord refuses it, or does not answer.
DISCORD_ERRORS = (discord.HTTPException, discord.RateLimited, OSError, aiohttp.ClientError)

Bot: TypeAlias = discord.Client
Send: TypeAlias = "Callable[[ui.LayoutView, Sequence[discord.File]], Awaitable[discord.Message]]"


@attrs.frozen(kw_only=True)
class Live:
    """An interaction, and how long its token can be used.

    Attributes:
        interaction: the interaction.
        until: when its token expires, on the loop's clock.
    """

    interaction: discord.Interaction
    until: float

    @classmethod
    def now(cls, interaction: discord.Interaction, *, age: float = 0.0) -> Live:
        """For an interaction that was created ``age`` seconds ago."""
        now = asyncio.get_running_loop().time()
        return cls(interaction=interaction, until=now + TOKEN_LIFE - age)

    @property
    def is_open(self) -> bool:
        """Whether its token can be used."""
        return asyncio.get_running_loop().time() < self.until


@attrs.frozen(kw_only=True)
class _Route:
    """A way to send a message.

    Attributes:
        name: for the log.
        send: sends the message.
        limit: how many bytes a file may have.
        mention: whether to mention the user, so that Discord notifies them.
    """

    name: str
    send: Send
    limit: int = discord.utils.DEFAULT_FILE_SIZE_LIMIT_BYTES
    mention: bool = False


async def deliver(
    bot: Bot,
    client: MidAPIClient,
    handle: TaskHandle,
    *,
    live: Live | discord.Interaction | None = None,
    place: Place | None = None,
    prompt: str | None = None,
    strings: Strings = DEFAULT,
) -> discord.Message | None:
    """Show the result of an order, and mark it as taken once Discord has accepted the message.

    While the interaction's token is valid, the working message becomes the result. Later the result
    is sent to the channel and mentions the user; where the bot cannot send, it is sent as a direct
    message. While Discord does not answer, this retries. The user is told of a failed task
    privately, where that is possible.

    Args:
        bot: any client of discord.py.
        client: the client that has the task; best with ``ack="manual"``.
        handle: the handle of a task that is final, ordered with the metadata of `metadata_of`.
        live: the interaction, if it is less than 15 minutes old. Without it the message is
            searched for first, because it may have been sent before a restart.
        place: where to send the result; the default is where it was ordered.
        prompt: the prompt to show if the request has none.
        strings: the texts.

    Returns:
        The message; None if no route accepts it. Then the result is not marked as taken, and an
        error is logged.

    Raises:
        ValueError: the handle is not final, or its metadata is not from `metadata_of`.
    """
    place, details = place or place_of(handle), handle.final
    if place is None or details is None:
        raise ValueError("deliver() needs a final handle whose metadata is from metadata_of()")
    if isinstance(live, discord.Interaction):
        age = (discord.utils.utcnow() - live.created_at).total_seconds()
        live = Live.now(live, age=max(0.0, age))
    if details.status is TaskStatus.FAILED:
        routes = _private_routes(bot, place, live, handle.task_id)
        message = await _tell_failure(handle, place, routes, strings)
        if message is not None:
            await _end_working_message(bot, place, live, None)
    else:
        find = partial(find_sent, bot, place, handle.intent_id or "")
        message = await find() if live is None else None
        if message is None:
            async with _fetched(client, details) as paths:
                send = partial(
                    _send_result,
                    handle=handle,
                    place=place,
                    paths=paths,
                    prompt=prompt,
                    strings=strings,
                )
                routes = _routes(bot, place, live, handle.task_id)
                message = await _by_any(routes, send, find)
        if message is not None and message.id != place.message:
            link = strings.elsewhere.format(link=place.url_of(message))
            await _end_working_message(bot, place, live, link)
    if message is None:
        _log.error(
            "the result of task %s cannot be delivered to user %s: neither the channel nor a "
            "direct message can be sent. It stays untaken and is tried again after a restart; "
            "`midapi task %s` shows its files",
            *(handle.task_id, place.user, handle.task_id),
        )
        return None
    await _acknowledge(handle)
    return message


async def _acknowledge(handle: TaskHandle) -> None:
    """Record that a result was shown, also if the journal is away for some minutes."""
    pause = FIRST_PAUSE
    while True:
        try:
            return await handle.ack()
        except MidAPIError as error:
            is_last = pause > LONGEST_PAUSE or isinstance(error, ClientClosed)
            _log.warning(
                "the delivery of task %s cannot be recorded%s: %s",
                *(handle.task_id, "" if is_last else " yet", error),
            )
            if is_last:
                return None
        await asyncio.sleep(pause)
        pause *= 2


async def tell(bot: Bot, place: Place, live: Live, text: str) -> discord.Message | None:
    """Answer a deferred interaction with a text for the user, privately if possible.

    The deferred response is visible to everybody, so it is deleted first.
    """
    await _end_working_message(bot, place, live, None)
    routes = _private_routes(bot, place, live, str(live.interaction.id))
    return await _by_any(routes, partial(_send_text, place, text))


# ─── routes ──────────────────────────────────────────────────────────────────────────────────────


def _routes(
    bot: Bot, place: Place, live: Live | None, task_id: str
) -> Callable[[], Iterator[_Route]]:
    """The routes for a result, the best first, as they are open when this is called."""

    def routes() -> Iterator[_Route]:
        if live is not None and live.is_open:
            reply = partial(live.interaction.edit_original_response, allowed_mentions=NOBODY)
            yield _Route(
                name="the working message",
                send=lambda view, files: reply(view=view, attachments=files),
                limit=live.interaction.filesize_limit,
            )
        yield from _channel(bot, place, task_id)
        yield _direct(bot, place, task_id)

    return routes


def _private_routes(
    bot: Bot, place: Place, live: Live | None, task_id: str
) -> Callable[[], Iterator[_Route]]:
    """The routes for a failure, the most private first."""

    def routes() -> Iterator[_Route]:
        if live is not None and live.is_open:
            follow_up = partial(
                live.interaction.followup.send, ephemeral=True, wait=True, allowed_mentions=NOBODY
            )
            yield _Route(name="a follow-up", send=lambda view, _: follow_up(view=view))
        yield _direct(bot, place, task_id)
        yield from _channel(bot, place, task_id)

    return routes


def _channel(bot: Bot, place: Place, task_id: str) -> Iterator[_Route]:
    if place.channel is None or place.is_guest:
        return
    channel = bot.get_partial_messageable(place.channel, guild_id=place.guild)
    guild = bot.get_guild(place.guild) if place.guild is not None else None
    send = partial(channel.send, nonce=_nonce(task_id), allowed_mentions=only(place.user))
    yield _Route(
        name="the channel",
        send=lambda view, files: send(view=view, files=files),
        limit=guild.filesize_limit if guild else discord.utils.DEFAULT_FILE_SIZE_LIMIT_BYTES,
        mention=True,
    )


def _direct(bot: Bot, place: Place, task_id: str) -> _Route:
    async def send(view: ui.LayoutView, files: Sequence[discord.File]) -> discord.Message:
        direct = await bot.create_dm(discord.Object(place.user))
        return await direct.send(
            view=view, files=files, nonce=_nonce(task_id), allowed_mentions=NOBODY
        )

    return _Route(name="a direct message", send=send)


def only(user: int) -> discord.AllowedMentions:
    """The mentions of a message that may mention this user and nobody else."""
    return discord.AllowedMentions(
        everyone=False, roles=False, users=[discord.Object(user)], replied_user=False
    )


def _nonce(task_id: str) -> str:
    """The nonce of a message, of at most 25 characters.

    For some minutes Discord drops a second message with the same nonce, so a message whose
    response was lost is not sent twice.
    """
    return task_id[-25:]


async def _by_any(
    routes: Callable[[], Iterator[_Route]],
    send: Callable[[_Route, bool], Awaitable[discord.Message]],
    find: Callable[[], Awaitable[discord.Message | None]] | None = None,
) -> discord.Message | None:
    """Send by the first route that accepts the message; None if none does.

    While Discord is unreachable, it retries.

    Args:
        routes: returns the routes that are open now.
        send: sends by a route; with True, links in place of files.
        find: finds a message that was sent although Discord's response was lost.
    """
    closed: set[str] = set()
    pause, as_links, without_files = FIRST_PAUSE, False, set[str]()
    while True:
        route = next((each for each in routes() if each.name not in closed), None)
        if route is None and without_files and not as_links:
            as_links = True
            closed -= without_files
            continue
        if route is None:
            return None
        try:
            return await send(route, as_links)
        except DISCORD_ERRORS as error:
            status = error.status if isinstance(error, discord.HTTPException) else None
            if status == 413 and not as_links:
                as_links = True  # a file within the limit that Discord named was too large
            elif not _is_transient(error):
                _log.info("%s does not accept the message: %s", route.name, reason_of(error))
                closed.add(route.name)
                if getattr(error, "code", None) == _MISSING_PERMISSIONS:
                    without_files.add(route.name)  # files may be what is not allowed there
            else:
                _log.warning("Discord does not accept messages now; retrying: %s", reason_of(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                # The nonce prevents a second message for some minutes only.
                if status != 429 and find is not None and (found := await find()) is not None:
                    return found


def _is_transient(error: Exception) -> bool:
    """Whether Discord may accept the same message later."""
    if isinstance(error, discord.HTTPException):
        return error.status >= 500 or error.status == 429 or error.code in _PASSING
    return True


def reason_of(error: Exception) -> str:
    """An error for the log. Texts of aiohttp may contain the URL, and the token in it."""
    return str(error) if isinstance(error, discord.DiscordException) else type(error).__name__


# ─── what is sent ────────────────────────────────────────────────────────────────────────────────


async def _send_result(
    route: _Route,
    as_links: bool,  # noqa: FBT001 - as `_by_any` calls it
    *,
    handle: TaskHandle,
    place: Place,
    paths: Mapping[int, Path],
    prompt: str | None,
    strings: Strings,
) -> discord.Message:
    """Send the result of a final task by a route; files that cannot be attached become links."""
    details = cast("TaskDetails", handle.final)
    chosen = {} if as_links else await asyncio.to_thread(_fitting, paths, route.limit)
    try:
        view = result_view(
            details,
            intent_id=handle.intent_id or "",
            user_id=place.user,
            request=handle.request,
            prompt=prompt,
            media=list(chosen.values()),
            links=[pair for pair in enumerate(details.urls) if pair[0] not in chosen],
            parent_url=place.parent_url,
            mention=route.mention,
            strings=strings,
        )
        return await route.send(view, list(chosen.values()))
    finally:
        for file in chosen.values():
            file.close()


def _fitting(paths: Mapping[int, Path], limit: int) -> dict[int, discord.File]:
    """The files that are small enough for Discord, opened. For a thread."""
    fit = [index for index, path in paths.items() if path.stat().st_size <= limit]
    return {index: discord.File(paths[index]) for index in fit[:MOST_FILES]}


@asynccontextmanager
async def _fetched(client: MidAPIClient, details: TaskDetails) -> AsyncIterator[dict[int, Path]]:
    """The files of a task in a temporary folder, by their index among the results."""
    paths: dict[int, Path] = {}
    folder: TemporaryDirectory[str] | None = None
    try:
        try:
            folder = await asyncio.to_thread(TemporaryDirectory, prefix="midapi-discord-")
            paths = dict(enumerate(await client.download(details, folder.name)))
        except (OSError, DownloadError, InvalidRequestError) as error:
            # Files that could not be downloaded become links; on a full disk, all of them.
            _log.warning("files of task %s are sent as links: %s", details.task_id, error)
            if isinstance(error, DownloadError):
                paths = {client.task_of(path).index: path for path in error.files}
        yield paths
    finally:
        if folder is not None:
            # Not to_thread: a bot that closes would cancel it before it has begun.
            removing = asyncio.get_running_loop().run_in_executor(None, folder.cleanup)
            await asyncio.wait({removing})
            removing.result()


async def _tell_failure(
    handle: TaskHandle,
    place: Place,
    routes: Callable[[], Iterator[_Route]],
    strings: Strings,
) -> discord.Message | None:
    """Say why an order has no result."""
    text = strings.of_error(TaskFailed(handle.task_id, handle.final))
    try:
        await handle
    except TaskFailed as error:
        text = strings.of_error(error)

    return await _by_any(routes, partial(_send_text, place, text))


def _send_text(place: Place, text: str, route: _Route, _: object) -> Awaitable[discord.Message]:
    mention = f"<@{place.user}> " if route.mention else ""
    return route.send(text_view(mention + text), ())


# ─── messages that exist already ─────────────────────────────────────────────────────────────────


async def find_sent(bot: Bot, place: Place, intent_id: str) -> discord.Message | None:
    """The message of a result that was sent before; None if the bot finds none.

    While Discord is unreachable, it retries.
    """
    pause, can_read_channel = FIRST_PAUSE, not (place.is_guest or place.channel is None)
    while True:
        try:
            if can_read_channel:
                message = await _find_working(bot, place, intent_id)
                if message is None:
                    channel = bot.get_partial_messageable(place.channel or 0, guild_id=place.guild)
                    message = await _find_in(channel, place.message, bot, intent_id)
                return message
            direct = await bot.create_dm(discord.Object(place.user))
            return await _find_in(direct, None, bot, intent_id)
        except DISCORD_ERRORS as error:
            if _is_transient(error):
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            elif can_read_channel:
                can_read_channel = False  # then the result was sent as a direct message
            else:
                return None


async def _find_in(
    channel: discord.abc.Messageable, start: int | None, bot: Bot, intent_id: str
) -> discord.Message | None:
    """The message of a result among those after ``start``, or among the last ones."""
    after = None if start is None else discord.Object(start)
    async for message in channel.history(limit=MOST_SEARCHED, after=after):
        if message.author == bot.user and is_result_of(message, intent_id):
            return message
    return None


async def _find_working(bot: Bot, place: Place, intent_id: str) -> discord.Message | None:
    """The working message of an order, if it has become the result; None if not.

    Raises:
        discord.HTTPException: Discord does not answer.
    """
    if place.is_guest or place.channel is None or place.message is None:
        return None
    channel = bot.get_partial_messageable(place.channel, guild_id=place.guild)
    try:
        message = await channel.fetch_message(place.message)
    except (discord.NotFound, discord.Forbidden):
        return None
    return message if is_result_of(message, intent_id) else None


async def _end_working_message(bot: Bot, place: Place, live: Live | None, link: str | None) -> None:
    """Replace the working message by a link to what was sent, or delete it; ignore failures."""
    view = None if link is None else text_view(link)
    with suppress(*DISCORD_ERRORS):
        if live is not None and live.is_open:
            if view is None:
                await live.interaction.delete_original_response()
            else:
                await live.interaction.edit_original_response(view=view, allowed_mentions=NOBODY)
        elif place.channel is not None and place.message is not None and not place.is_guest:
            channel = bot.get_partial_messageable(place.channel, guild_id=place.guild)
            message = channel.get_partial_message(place.message)
            if view is None:
                await message.delete()
            else:
                await message.edit(view=view, allowed_mentions=NOBODY)
