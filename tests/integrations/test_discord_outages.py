"""The cog while Discord is away, slow or closed to the bot: no result is lost or shown twice."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from midapi_async.sandbox import Sandbox, take
from tests.integrations.discord_stand_in import (
    ATTACH_FILES,
    READ_MESSAGE_HISTORY,
    SEND_MESSAGES,
    USUAL,
    DiscordStandIn,
    Interaction,
)  # fmt: skip
from tests.integrations.discord_world import Bot, World

EDIT = "PATCH /webhooks/*/messages/@original"
POST = "POST /channels/*/messages"
MINUTE = 60.0
LONG = 16 * MINUTE  # longer than the token of an interaction lives


@pytest.fixture
async def world(stand_in: DiscordStandIn) -> AsyncIterator[World]:
    """A picture takes a minute."""
    async with Sandbox(durations={("*", "*"): MINUTE}) as sandbox:
        yield World(stand_in, sandbox)


def is_shown(asked: Interaction) -> bool:
    """Whether the answer to an order has become its result."""
    return asked.original is not None and len(asked.original.files) == 4


async def taken(world: World, bot: Bot) -> list[bool]:
    """Of each order in the journal, whether it was delivered; in the end."""
    await asyncio.sleep(10)  # Discord has it, and now the bot hears of that
    return [row.taken for row in await bot.cog.client.intents.rows()]


# ------------------------------------------------------------------------------- the gateway


@pytest.mark.parametrize("how", ["cut", "asked", "forgotten"])
async def test_result_comes_after_the_gateway_was_away(world: World, how: str) -> None:
    """Results go over REST; buttons work over the new connection, resumed or not."""
    discord = world.discord
    guild, ada = discord.guild(), discord.user("ada")
    async with world.bot() as bot:
        asked = await discord.slash(ada, guild, "imagine", prompt="a red fox")
        await asyncio.sleep(30)
        if how == "asked":
            await discord.ask_to_reconnect()
        else:
            if how == "forgotten":
                discord.forget_sessions()
            discord.drop_gateway()
        await discord.until(lambda: is_shown(asked), 2 * MINUTE)
        clicked = await discord.click(ada, asked.message, "U1")
        await discord.until(lambda: clicked.message.files, 2 * MINUTE)
        assert await taken(world, bot) == [True, True]
    assert world.posts == 2
    assert discord.gateway.log.count("identify") == (2 if how == "forgotten" else 1)


async def test_order_that_comes_too_late_buys_nothing(world: World) -> None:
    """After 3 s Discord takes no answer, and the user has seen "did not respond"."""
    discord = world.discord
    guild, ada = discord.guild(), discord.user("ada")
    async with world.bot():
        hold = discord.hold("POST /interactions/*/callback")
        asked = await discord.slash(ada, guild, "imagine", prompt="a red fox")
        assert not asked.is_answered
        hold.release()
        await asyncio.sleep(MINUTE)
    assert world.posts == 0
    assert ["3 s" in discord.mistakes[0], "10062" in discord.mistakes[1]] == [True, True]
    discord.mistakes.clear()


async def test_order_goes_on_if_only_the_answer_of_discord_is_lost(world: World) -> None:
    """Else the user would see for a quarter of an hour that the bot thinks."""
    discord = world.discord
    guild, ada = discord.guild(), discord.user("ada")
    async with world.bot() as bot:
        discord.lose_answer("POST /interactions/*/callback")
        asked = await discord.slash(ada, guild, "imagine", prompt="a red fox")
        await discord.until(lambda: is_shown(asked), 2 * MINUTE)
        assert await taken(world, bot) == [True]
    assert world.posts == 1


# ------------------------------------------------------------------------- limits and errors


@pytest.mark.parametrize("is_global", [False, True])
async def test_result_waits_for_a_rate_limit(world: World, is_global: bool) -> None:
    """A 429 on the edit that shows the result delays it as long as Discord says, and no longer."""
    discord, loop = world.discord, asyncio.get_running_loop()
    guild, ada = discord.guild(), discord.user("ada")
    async with world.bot() as bot:
        asked = await discord.slash(ada, guild, "imagine", prompt="a red fox")
        await asyncio.sleep(45)
        discord.rate_limit(EDIT, 40, is_global=is_global)
        began = loop.time()
        await discord.until(lambda: is_shown(asked), 2 * MINUTE)
        assert 40 < loop.time() - began < 70
        assert await taken(world, bot) == [True]
    assert len(guild.channels[0].all_messages) == 1


async def test_result_outlasts_a_rate_limit_that_does_not_end(world: World) -> None:
    """discord.py gives up after five tries; the cog does not."""
    discord = world.discord
    guild, ada = discord.guild(), discord.user("ada")
    async with world.bot() as bot:
        asked = await discord.slash(ada, guild, "imagine", prompt="a red fox")
        await asyncio.sleep(45)
        discord.rate_limit(EDIT, 5, times=12)
        await discord.until(lambda: is_shown(asked), 10 * MINUTE)
        assert await taken(world, bot) == [True]
    assert len(guild.channels[0].all_messages) == 1
    assert world.posts == 1


@pytest.mark.parametrize(
    ("bot_may", "posts"), [(USUAL, [200]), (USUAL & ~READ_MESSAGE_HISTORY, [200, 200])]
)
async def test_result_is_posted_once_if_its_answer_is_lost(
    world: World, bot_may: int, posts: list[int]
) -> None:
    """After 15 minutes results go to the channel, where the bot looks whether it was posted.

    Where it may not look, it posts it again, and Discord drops the second one by its nonce.
    """
    discord = world.discord
    guild, ada = discord.guild(), discord.user("ada")
    channel = discord.channel(guild, "art", bot_may=bot_may)
    async with world.bot() as bot:
        world.sandbox.faults.on("task", nth=1, do=take(LONG))
        asked = await discord.slash(ada, channel, "imagine", prompt="a red fox")
        discord.lose_answer(POST)
        await discord.until(lambda: any(each.files for each in channel.messages), 2 * LONG)
        assert await taken(world, bot) == [True]
    assert [each.status for each in discord.sent(POST)] == posts
    result = channel.last
    assert [bool(each.files) for each in channel.messages] == [False, True]
    assert result.pinged == {ada.id}
    assert asked.message.text != ""


async def test_progress_keeps_to_the_limits_of_discord(world: World) -> None:
    """Six orders at once, with their progress, meet no 429."""
    discord = world.discord
    guild, users = discord.guild(), [discord.user(f"user{n}") for n in range(6)]
    async with world.bot():
        asked = await asyncio.gather(
            *(discord.slash(user, guild, "imagine", prompt="a red fox") for user in users)
        )
        await discord.until(lambda: all(map(is_shown, asked)), 5 * MINUTE)
    assert [each for each in discord.requests if each.status == 429] == []
    assert all(len(each.message.versions) <= 6 for each in asked)


# ------------------------------------------------------------------------- closed channels


async def test_bot_that_was_kicked_writes_to_the_user(world: World) -> None:
    """The result comes as a direct message, as long as another guild is shared."""
    discord = world.discord
    guild, other, ada = discord.guild("studio"), discord.guild("other"), discord.user("ada")
    discord.role(other, "member", ada)
    async with world.bot() as bot:
        world.sandbox.faults.on("task", nth=1, do=take(LONG))
        await discord.slash(ada, guild, "imagine", prompt="a red fox")
        await discord.kick_bot(guild)
        await discord.until(lambda: discord.dm(ada).messages, 2 * LONG)
        assert await taken(world, bot) == [True]
    assert len(discord.dm(ada).last.files) == 4


async def test_result_in_a_thread_that_was_closed_meanwhile(world: World) -> None:
    """A thread closes by itself, and a message opens it; from a locked one it goes to the user."""
    discord = world.discord
    guild, ada = discord.guild(), discord.user("ada")
    left, locked = (discord.thread(guild.channels[0], name) for name in ("left", "locked"))
    world.sandbox.faults.on("task", do=take(LONG))
    async with world.bot() as bot:
        for thread in (left, locked):
            await discord.slash(ada, thread, "imagine", prompt="a red fox")
            await discord.archive(thread, locked=thread is locked)
        await discord.until(lambda: left.last.files and discord.dm(ada).messages, 2 * LONG)
        assert await taken(world, bot) == [True, True]
    assert left.last.pinged == {ada.id}
    assert len(discord.dm(ada).last.files) == 4


async def test_result_becomes_links_where_no_file_may_be_attached(world: World) -> None:
    """If the user takes no direct message, either; links are better than nothing."""
    discord = world.discord
    guild, ada = discord.guild(), discord.user("ada", takes_dms=False)
    channel = discord.channel(guild, "art", bot_may=USUAL & ~ATTACH_FILES)
    async with world.bot() as bot:
        world.sandbox.faults.on("task", nth=1, do=take(LONG))
        await discord.slash(ada, channel, "imagine", prompt="a red fox")
        await discord.until(lambda: "file 4" in channel.last.text, 2 * LONG)
        assert await taken(world, bot) == [True]
    assert channel.last.pinged == {ada.id}
    assert channel.last.files == {}
    assert "U1" in channel.last.buttons


async def test_result_that_nobody_takes_is_kept(world: World) -> None:
    """Neither the channel nor the user takes it; after a restart the channel does."""
    discord = world.discord
    guild, ada = discord.guild(), discord.user("ada", takes_dms=False)
    channel = guild.channels[0]
    async with world.bot() as bot:
        world.sandbox.faults.on("task", nth=1, do=take(LONG))
        await discord.slash(ada, guild, "imagine", prompt="a red fox")
        await discord.allow_bot(channel, USUAL & ~SEND_MESSAGES)
        await asyncio.sleep(LONG + MINUTE)
        assert await taken(world, bot) == [False]
    channel.bot_may = USUAL
    async with world.bot() as bot:
        await discord.until(lambda: channel.last.files, 5 * MINUTE)
        assert await taken(world, bot) == [True]
    assert channel.last.pinged == {ada.id}


# ------------------------------------------------------------------------------ user installs


async def test_buttons_of_a_user_install_work_where_the_bot_is_not(world: World) -> None:
    """In a guild without the bot only an interaction's token leads there."""
    discord = world.discord
    guild = discord.guild("theirs", has_bot=False)
    ada = discord.user("ada", has_installed=True)
    async with world.bot() as bot:
        asked = await discord.slash(ada, guild, "imagine", prompt="a red fox")
        assert asked.is_user_install_only
        await discord.until(lambda: is_shown(asked), 2 * MINUTE)
        clicked = await discord.click(ada, asked.message, "V2")
        await discord.until(lambda: is_shown(clicked), 2 * MINUTE)
        assert await taken(world, bot) == [True, True]
    assert discord.sent("* /channels/*") == []


async def test_result_waits_while_direct_messages_are_opened_too_fast(world: World) -> None:
    """Discord says 403 then, as if it were for ever; there is no other way to this user."""
    discord = world.discord
    guild = discord.guild("theirs", has_bot=False)
    ada = discord.user("ada", has_installed=True)
    async with world.bot() as bot:
        world.sandbox.faults.on("task", nth=1, do=take(LONG))
        await discord.slash(ada, guild, "imagine", prompt="a red fox")
        discord.fail("POST /users/@me/channels", 403, 40003, times=3)
        await discord.until(lambda: discord.dm(ada).messages, 2 * LONG)
        assert await taken(world, bot) == [True]
    assert [len(each.files) for each in discord.dm(ada).messages] == [4]


async def test_user_install_gets_a_late_result_as_direct_message(world: World) -> None:
    discord = world.discord
    ada, bob = discord.user("ada", has_installed=True), discord.user("bob")
    private = discord.private_channel(ada, bob)
    async with world.bot() as bot:
        world.sandbox.faults.on("task", nth=1, do=take(LONG))
        await discord.slash(ada, private, "imagine", prompt="a red fox")
        await discord.until(lambda: discord.dm(ada).messages, 2 * LONG)
        await asyncio.sleep(10)
        clicked = await discord.click(ada, discord.dm(ada).last, "U1")
        await discord.until(lambda: clicked.message.files, 2 * MINUTE)
        assert await taken(world, bot) == [True, True]
    assert [len(each.files) for each in discord.dm(ada).messages] == [4, 1]


async def test_clicks_of_a_user_install_stay_below_five_follow_ups(world: World) -> None:
    """Each click is an interaction of its own, so that seven of them do not add up."""
    discord = world.discord
    guild = discord.guild("theirs", has_bot=False)
    ada = discord.user("ada", has_installed=True)
    async with world.bot():
        asked = await discord.slash(ada, guild, "imagine", prompt="a red fox")
        await discord.until(lambda: is_shown(asked), 2 * MINUTE)
        clicked = [await discord.click(ada, asked.message, "U1")]
        await asyncio.sleep(2 * MINUTE)
        for _ in range(6):
            clicked.append(await discord.click(ada, asked.message, "U1"))
            await asyncio.sleep(12)
    assert world.posts == 2
    assert max(len(each.followups) for each in clicked) <= 1
