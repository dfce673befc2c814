"""A bot over weeks: its client, its restarts, what Discord does, and the parts without the cog."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import discord
import pytest
from discord import app_commands
from discord.ext import commands

from midapi_async import (
    CallbackReceiver,
    ClientClosed,
    ImageToImage,
    InvalidRequestError,
    JournalError,
    MemoryJournal,
    MidAPIClient,
    RateLimit,
    State,
    SubmissionUnknown,
    TaskHandle,
)
from midapi_async.integrations.discord import (
    Audit,
    Limits,
    deliver,
    metadata_of,
    progress,
    result_view,
)
from midapi_async.sandbox import Sandbox, faults
from tests.integrations.discord_stand_in import (
    SEND_MESSAGES,
    USUAL,
    VIEW_CHANNEL,
    DiscordStandIn,
    File,
)  # fmt: skip
from tests.integrations.discord_stand_in.things import Message, User
from tests.integrations.discord_world import Bot, World, settled, told


@pytest.fixture
async def world(stand_in: DiscordStandIn) -> AsyncIterator[World]:
    """Jobs of a minute."""
    async with Sandbox(durations={("*", "*"): 60}) as sandbox:
        yield World(stand_in, sandbox)


async def imagined(world: World, user: User, **options: object) -> Message:
    """The message of a result in the first guild."""
    guild = next(iter(world.discord._state.guilds.values()))
    asked = await world.discord.slash(user, guild, "imagine", **{"prompt": "a fox", **options})
    await world.discord.until(lambda: asked.message.files, 100)
    await settled(2)
    return asked.message


# ─── the client ──────────────────────────────────────────────────────────────────────────────────


async def test_a_client_that_is_open_stays_open(world: World) -> None:
    """Whoever has opened it closes it; the cog's own is closed with the bot."""
    world.discord.guild()
    async with world.client() as client:
        async with world.bot(client):
            assert (await imagined(world, world.discord.user())).files
        await client.credits()
    own = world.client()
    async with world.bot(own):
        await own.credits()
    with pytest.raises(ClientClosed):
        await own.credits()


async def test_a_client_that_cannot_be_opened_stops_the_bot(world: World) -> None:
    """With its own error."""

    class Broken(MemoryJournal):
        async def take_over(self, scope: str) -> None:
            raise JournalError("the disk is gone")

    with pytest.raises(JournalError, match="the disk is gone"):
        async with world.bot(world.client(journal=Broken())):
            raise AssertionError


async def test_a_wrong_setting_is_not_taken_for_an_open_client(world: World) -> None:
    class Wrong(MidAPIClient):
        async def open(self) -> None:
            raise InvalidRequestError({"api_key": "is missing"})

    with pytest.raises(InvalidRequestError, match="api_key"):
        async with world.bot(Wrong("key", base_url=world.sandbox.url)):
            raise AssertionError


async def test_the_cog_can_be_loaded_again(world: World) -> None:
    """Its commands and buttons work, and orders of before are delivered."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot() as bot:
        message = await imagined(world, ada)
        await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(10)
        await bot.remove_cog("Midjourney")
        await bot.add_cog(bot.cog)
        clicked = await world.discord.click(ada, message, "U1")
        await world.discord.until(lambda: clicked.message.files, 100)
        await settled(60)
    assert len([each for each in guild.channels[0].messages if each.files]) == 3


@pytest.mark.parametrize("is_prepared", [True, False])
async def test_a_cog_may_be_added_before_the_login(world: World, is_prepared: bool) -> None:
    """As in ``async with bot:``, or even before it. What was ordered before is delivered."""

    class Early(Bot):
        async def setup_hook(self) -> None:
            """Nothing: the cog is there."""

    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(10)
    async with world.client() as client:
        for handle in await client.resume():
            await handle
    async with AsyncExitStack() as stack:
        bot = Early(world.client())
        if is_prepared:
            await stack.enter_async_context(bot)
        await bot.add_cog(bot.cog)
        await settled(10)
        await stack.enter_async_context(world.discord.running(bot))
        await world.discord.until(lambda: guild.channels[0].last.files, 100)
        await settled(5)


async def test_a_bot_leaves_the_orders_of_others_alone(world: World) -> None:
    """Those of another application, and those that are not Discord's."""
    channel = world.discord.guild().channels[0]
    async with world.client() as client:
        place = {"discord_application": "5", "discord_user": "6", "discord_channel": "7"}
        other = await client.generate("a fox", metadata=place)
        none = await client.generate("a fox", metadata={"shop": "8"})
        async with world.bot(client) as bot:
            await settled(100)
            assert bot.audit == []
        assert {each.task_id for each in await client.resume()} == {other.task_id, none.task_id}
    assert channel.messages == []


async def test_a_bot_with_its_own_namespace_shares_a_journal(world: World, tmp_path: Path) -> None:
    """A program that runs while the bot restarts takes over only what is of its own namespace."""
    world.journal = tmp_path
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot(world.client(namespace="discord")):
        prompt = "a fox [[sandbox: seconds=300]]"
        await world.discord.slash(ada, guild, "imagine", prompt=prompt)
        await settled(20)
    async with world.client():
        await settled(100)
        async with world.bot(world.client(namespace="discord")):
            await world.discord.until(lambda: guild.channels[0].last.files, 500)
            await settled(5)


async def test_a_lost_answer_that_a_callback_brings_is_delivered(world: World) -> None:
    """The working message says what it waits for."""
    world.sandbox.faults.on("submit", do=faults.lose_answer())
    guild, ada = world.discord.guild(), world.discord.user("ada")
    receiver = CallbackReceiver(None, port=0)
    async with world.bot(world.client(receiver=receiver)):
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await world.discord.until(lambda: asked.message.files, 300)
        await settled(2)
    texts = [each.text for each in asked.message.versions]
    assert any(text.startswith("MidAPI's answer was lost.") for text in texts)
    assert world.posts == 1


async def test_a_journal_that_fails_is_told(world: World) -> None:
    """Nothing is bought, and whoever runs the bot finds the reason in the log."""

    class Fails(MemoryJournal):
        is_broken = False

        async def rows(self, *given: Any, **which: Any) -> Any:
            if self.is_broken:
                raise JournalError("the disk is full")
            return await super().rows(*given, **which)

        async def find(self, **which: Any) -> Any:
            if self.is_broken:
                raise JournalError("the disk is full")
            return await super().find(**which)

    journal = Fails()
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot(world.client(journal=journal), limits=None) as bot:
        message = await imagined(world, ada)
        await asyncio.sleep(10)
        journal.is_broken = True
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await world.discord.until(lambda: asked.followups)
        clicked = await world.discord.click(ada, message, "U1")
        journal.is_broken = False
    assert told(asked)[0].startswith("The bot has a problem of its own")
    assert told(clicked)[0].startswith("The bot has a problem of its own")
    assert bot.audit[-1].outcome == "failed"
    assert bot.audit[-1].reason.startswith("the disk is full")
    assert world.posts == 1


@pytest.mark.parametrize("has_bot", [True, False])
async def test_a_journal_that_is_away_when_the_result_comes(world: World, has_bot: bool) -> None:
    """The result is shown, and recorded later: it counts as running no longer, and comes once."""

    class Away(MemoryJournal):
        is_away = False

        async def advance(self, *given: Any, **new: Any) -> Any:
            if self.is_away:
                raise JournalError("the disk is full")
            return await super().advance(*given, **new)

    world.journal = journal = Away()
    guild, ada = world.discord.guild(has_bot=has_bot), world.discord.user("ada", has_installed=True)
    async with world.bot(limits=Limits(jobs_per_user=1)) as bot:
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(30)
        journal.is_away = True
        await world.discord.until(lambda: asked.message.files, 100)
        await settled(60)
        journal.is_away = False
        await settled(120)
        (row,) = await bot.cog.client.intents.rows()
        assert (row.taken, row.state) == (True, State.SUCCEEDED)
        second = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await world.discord.until(lambda: second.message.files, 100)
        await settled(5)
    async with world.bot():
        await settled(60)
    assert world.discord.dm(ada).messages == []
    assert len(guild.channels[0].messages) == 2


async def test_shutdown_is_told_to_users_whose_orders_wait(world: World) -> None:
    """What was not sent yet is not sent; what was bought is delivered after the restart."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.client(rate_limit=RateLimit(1, per=60)) as client:
        async with world.bot(client):
            bought = await world.discord.slash(ada, guild, "imagine", prompt="a red fox")
            waiting = await world.discord.slash(ada, guild, "imagine", prompt="a blue fox")
            await settled(10)
            assert waiting.message.text.startswith("Waiting in line: 0 before")
        assert waiting.message.deleted_at
        assert told(waiting)[0].startswith("The bot is being restarted.")
        async with world.bot(client):
            await world.discord.until(lambda: guild.channels[0].last.files, 100)
            await settled(100)
    assert "It is ready" in bought.message.text
    assert world.posts == 1


async def test_orders_that_a_killed_bot_was_sending_are_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the bot's own."""
    world.sandbox.faults.on("submit", do=faults.lose_answer(), first=3)
    async with world.client() as client:
        for application in (world.discord.bot_user.id, 5, "x"):
            place = {"discord_application": str(application), "discord_user": "6"}
            with pytest.raises(SubmissionUnknown):
                await client.generate("a fox", metadata=place)
    async with world.bot():
        await settled(5)
    assert "unknown orders: 1." in caplog.text


@pytest.mark.parametrize("decision", ["adopt", "resubmit", "dismiss"])
async def test_the_operator_decides_about_an_unknown_order(
    world: World, tmp_path: Path, decision: str
) -> None:
    """By another program, while the bot runs, as `midapi journal` does."""
    world.journal = tmp_path
    world.sandbox.faults.on("submit", do=faults.lose_answer(), first=1)
    guild, ada = world.discord.guild(), world.discord.user("ada")
    channel = guild.channels[0]
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a red fox")
        await world.discord.until(lambda: asked.followups, 200)
        async with world.client() as other:
            (row,) = await other.intents.unknown()
            if decision == "adopt":
                await other.intents.adopt(row, world.sandbox.ledger.accepted[0].task_id)
            elif decision == "resubmit":
                await other.intents.resubmit(row)
            else:
                await other.intents.dismiss(row)
        await settled(180)
        results = [each for each in channel.messages if each.files]
        assert len(results) == (decision != "dismiss")
        assert all(each.pinged == {ada.id} for each in results)
    assert world.posts == (2 if decision == "resubmit" else 1)


async def test_an_error_of_the_loop_that_delivers_is_not_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    untaken, broken = MidAPIClient.untaken, [True]

    def once(self: MidAPIClient) -> Any:
        if broken.pop():
            broken.append(False)
            raise ZeroDivisionError
        broken.append(False)
        return untaken(self)

    monkeypatch.setattr(MidAPIClient, "untaken", once)
    world.discord.guild()
    async with world.bot():
        assert (await imagined(world, world.discord.user("ada"))).files
    assert "delivery of results failed; it restarts in 30 s" in caplog.text


async def test_prompts_for_several_jobs_are_refused(world: World) -> None:
    """It is not known what they cost. The operator may allow them."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        for prompt in ("a {red, blue} fox", "a fox --repeat 40"):
            asked = await world.discord.slash(ada, guild, "imagine", prompt=prompt)
            assert told(asked)[0].startswith("A prompt with {…, …} or --repeat")
    async with world.bot(limits=Limits(several_jobs=True)):
        assert (await imagined(world, ada, prompt="a {red, blue} fox")).files
    assert world.posts == 1


# ─── what Discord does ───────────────────────────────────────────────────────────────────────────


async def test_an_interaction_that_discord_repeats_is_ordered_once(world: World) -> None:
    """As after a resume of the gateway: at once, and later."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        repeated = asked.payload(world.discord.bot_user.id)
        await world.discord.gateway.dispatch("INTERACTION_CREATE", repeated)
        await world.discord.until(lambda: asked.message.files, 100)
        await settled(10)
        await world.discord.gateway.dispatch("INTERACTION_CREATE", repeated)
        await settled(10)
    assert world.posts == 1
    assert len(guild.channels[0].messages) == 1
    assert world.discord.mistakes
    assert all("40060" in each for each in world.discord.mistakes)  # answered already
    world.discord.mistakes.clear()


async def test_a_working_message_that_was_deleted_is_replaced(world: World) -> None:
    """By one in the channel, which mentions the one who asked."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    channel = guild.channels[0]
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(10)
        asked.message.deleted_at = 1.0
        await world.discord.until(lambda: channel.messages and channel.last.files, 100)
        await settled(2)
    assert channel.last.pinged == {ada.id}
    assert len(channel.messages) == 1


async def test_progress_that_discord_takes_late_does_not_replace_the_result(world: World) -> None:
    """The result waits for an edit that is under way."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot() as bot:
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        hold = world.discord.hold("PATCH /webhooks/*/messages/@original")
        await hold.arrived.wait()
        await world.discord.until(lambda: world.posts)
        world.sandbox.finish(world.sandbox.ledger.accepted[0].task_id)
        (row,) = await bot.cog.client.intents.rows()
        await bot.cog.client.task(row.task_id or "").wait()
        await settled(5)
        hold.release()
        await settled(20)
    assert len(asked.message.files) == 4
    assert asked.message.text.startswith("**a fox**")


async def test_an_answer_that_comes_too_late_buys_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.discord.fail("POST /interactions/*/callback", 404, 10062)
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(30)
    assert asked.answer is None
    assert world.posts == 0
    assert "could not be answered in time; nothing was bought" in caplog.text
    world.discord.mistakes.clear()


async def test_a_direct_message_to_the_bot(world: World) -> None:
    """The result goes there, also after a restart."""
    ada = world.discord.user("ada", has_installed=True)
    direct = world.discord.dm(ada)
    async with world.bot():
        asked = await world.discord.slash(ada, direct, "imagine", prompt="a fox")
        await world.discord.until(lambda: asked.message.files, 100)
        await world.discord.slash(ada, direct, "imagine", prompt="a fox")
        await settled(10)
    async with world.bot():
        await world.discord.until(lambda: len(direct.messages) == 3, 100)
        await settled(5)
    assert [len(each.files) for each in direct.messages] == [4, 0, 4]


async def test_a_private_channel_of_a_user_install(world: World) -> None:
    """After a restart the result becomes a direct message."""
    ada, bob = world.discord.user("ada", has_installed=True), world.discord.user("bob")
    private = world.discord.private_channel(ada, bob)
    async with world.bot():
        asked = await world.discord.slash(ada, private, "imagine", prompt="a fox")
        await settled(10)
    async with world.bot():
        await world.discord.until(lambda: world.discord.dm(ada).messages, 100)
        await settled(5)
    assert len(world.discord.dm(ada).last.files) == 4
    assert len(world.discord.dm(ada).messages) == 1
    assert not asked.message.files


async def test_a_file_that_discord_refuses_becomes_a_link(world: World) -> None:
    """Although it is smaller than the limit that Discord has named."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(30)
        world.discord.fail("PATCH /webhooks/*/messages/@original", 413, 40005)
        await world.discord.until(lambda: "file 4" in asked.message.text, 100)
        await settled(2)
    assert asked.message.files == {}
    world.discord.mistakes.clear()


async def test_a_file_that_cannot_be_fetched_becomes_a_link(world: World) -> None:
    """The other three are shown."""
    world.sandbox.faults.on("file", do=faults.gone(), when=lambda call: "_2." in str(call.path))
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await world.discord.until(lambda: asked.message.files, 300)
        await settled(2)
    assert len(asked.message.files) == 3
    assert asked.message.text.count("[file ") == 1
    assert "[file 3](" in asked.message.text


async def test_discord_is_unreachable_after_a_restart(world: World) -> None:
    """While nobody knows whether the result was sent, it is not sent again."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    channel = guild.channels[0]
    async with world.bot():
        await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(10)
    world.discord.fail("GET /channels/*/messages/*", 503, times=5)
    async with world.bot():
        await world.discord.until(lambda: channel.last.files, 500)
        await settled(5)
    assert len([each for each in channel.messages if each.files]) == 1


async def test_a_message_whose_answer_was_lost_long_ago_is_not_sent_again(world: World) -> None:
    """Discord has forgotten its nonce, and the bot finds it in the channel."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    channel = guild.channels[0]
    async with world.bot() as bot:
        await world.discord.slash(ada, guild, "imagine", prompt="a fox [[sandbox: seconds=1000]]")
        await settled(990)
        world.discord.lose_answer("POST /channels/*/messages")
        await world.discord.until(lambda: channel.last.files, 100)
        for route in ("POST /channels/*/messages", "GET /channels/*/messages/*"):
            world.discord.fail(route, 503, times=8)
        await world.discord.until(lambda: len(bot.audit) == 2, 5000)
        await settled(5)
    assert len([each for each in channel.messages if each.files]) == 1
    assert bot.audit[-1].outcome == "delivered"


async def test_a_direct_message_is_found_after_a_restart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent because the channel was closed, and could not be recorded."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    channel = world.discord.channel(guild, "art", bot_may=USUAL & ~VIEW_CHANNEL)
    with monkeypatch.context() as patch:
        patch.setattr(TaskHandle, "ack", _dies)
        async with world.bot():
            prompt = "a fox [[sandbox: seconds=1000]]"
            await world.discord.slash(ada, channel, "imagine", prompt=prompt)
            await world.discord.until(lambda: world.discord.dm(ada).messages, 1100)
            await settled(5)
    await asyncio.sleep(600)  # Discord has forgotten the nonce
    async with world.bot() as bot:
        await settled(60)
        assert [each.outcome for each in bot.audit] == ["delivered"]
    assert len(world.discord.dm(ada).messages) == 1


async def _dies(_: TaskHandle) -> None:
    await asyncio.get_running_loop().create_future()


async def test_pictures_are_read_in_threads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are opened and read there, so that the loop is never held by them."""
    threads: set[int] = set()

    class Watched(discord.File):
        def __init__(self, path: Path) -> None:
            threads.add(threading.get_ident())
            super().__init__(path)
            inner = self.fp

            class Reader(type(inner)):  # type: ignore[misc]  # of whatever kind it is
                def read(self, size: int | None = -1) -> bytes:
                    threads.add(threading.get_ident())
                    return super().read(size)  # type: ignore[no-any-return]

            self.fp = Reader(inner.detach())

    monkeypatch.setattr(discord, "File", Watched)
    world.discord.guild()
    async with world.bot():
        message = await imagined(world, world.discord.user("ada"))
    assert len(message.files) == 4
    assert threads
    assert threading.get_ident() not in threads


# ─── old buttons ─────────────────────────────────────────────────────────────────────────────────


async def test_a_button_whose_order_was_pruned_says_so(world: World) -> None:
    ada = world.discord.user("ada")
    world.discord.guild()
    async with world.bot():
        message = await imagined(world, ada)
        form = await world.discord.click(ada, message, "Remix")
    world.journal = MemoryJournal()
    async with world.bot():
        answers = [await world.discord.click(ada, message, name) for name in ("U1", "Again")]
        answers.append(await world.discord.submit_modal(form))
    assert {told(each)[0] for each in answers} == {
        "That is too old: the bot has no record of it any more."
    }


async def test_again_with_a_reference_picture_whose_link_has_expired(world: World) -> None:
    """Discord's links live for a day, and MidAPI would bill for a picture without it."""
    ada = world.discord.user("ada")
    world.discord.guild()
    async with world.bot() as bot:
        message = await imagined(world, ada, reference=File("fox.png", b"a fox"))
        again = await world.discord.click(ada, message, "Again")
        await world.discord.until(lambda: again.message.files, 100)
        (row, *_) = await bot.cog.client.intents.rows()
        stale = "https://cdn.discordapp.com/ephemeral-attachments/1/2/fox.png?ex=5f000000&is=5"

        assert isinstance(row.request, ImageToImage)
        request = attrs.evolve(row.request, file_urls=[stale])
        old = await bot.cog.client.generate(request, metadata=row.metadata)
        await settled(100)
        name = str(old.intent_id)
        found = [each for each in message.channel.messages if name in str(each.components)]
        refused = await world.discord.click(ada, found[0], "Again")
        form = await world.discord.click(ada, found[0], "Remix")
        also = await world.discord.submit_modal(form)
        await settled(2)
    for each in (refused, also):
        assert told(each)[0].startswith("The reference picture is no longer at Discord.")


async def test_a_second_click_on_what_has_failed_says_why(world: World) -> None:
    """Nothing is bought, and the limits do not matter."""
    ada = world.discord.user("ada")
    world.discord.guild()
    async with world.bot(limits=None):
        message = await imagined(world, ada)
        world.sandbox.faults.on("task", do=faults.fail_task("out of paint"))
        await asyncio.sleep(10)
        first = await world.discord.click(ada, message, "V1")
        await world.discord.until(lambda: first.followups, 200)
        second = await world.discord.click(ada, message, "V1")
        await world.discord.until(lambda: second.followups, 200)
        await settled(2)
    assert told(first) == told(second) == ["Midjourney could not finish this order. out of paint"]
    assert world.posts == 2


async def test_a_second_click_after_a_restart_while_it_runs(world: World) -> None:
    ada = world.discord.user("ada")
    world.discord.guild()
    async with world.bot():
        message = await imagined(world, ada)
        await world.discord.click(ada, message, "V1")
        await settled(10)
    async with world.bot() as bot:
        second = await world.discord.click(ada, message, "V1")
        await world.discord.until(lambda: second.followups)
        assert told(second) == ["This order is already under way."]
        await settled(60)
        assert [each.outcome for each in bot.audit] == ["shown", "delivered"]
        result = message.channel.last
        assert result.pinged == {ada.id}
        third = await world.discord.click(ada, message, "V1")
        await world.discord.until(lambda: third.followups)
        assert f"/{result.channel.id}/{result.id}" in told(third)[0]


async def test_a_second_click_shows_what_could_not_be_delivered(world: World) -> None:
    """The working message was deleted, and neither the channel nor the user takes another one."""
    guild, ada = world.discord.guild(), world.discord.user("ada", takes_dms=False)
    channel = world.discord.channel(guild, "art", bot_may=USUAL & ~SEND_MESSAGES)
    async with world.bot() as bot:
        asked = await world.discord.slash(ada, channel, "imagine", prompt="a fox")
        await world.discord.until(lambda: asked.message.files, 100)
        first = await world.discord.click(ada, asked.message, "U1")
        first.message.deleted_at = 1.0
        await world.discord.until(lambda: bot.audit[-1].outcome == "undelivered", 100)
        second = await world.discord.click(ada, asked.message, "U1")
        await world.discord.until(lambda: second.message.files, 100)
        await settled(5)
        assert all(row.taken for row in await bot.cog.client.intents.rows())
    assert world.posts == 2
    world.discord.mistakes.clear()


async def test_a_second_click_on_what_became_a_direct_message(world: World) -> None:
    """It leads there who got it; anybody else is shown the picture."""
    guild = world.discord.guild(has_bot=False)
    ada, bob = (world.discord.user(name, has_installed=True) for name in ("ada", "bob"))
    async with world.bot():
        message = await imagined(world, ada)
        await world.discord.click(ada, message, "U1")
        await settled(10)
    async with world.bot():
        await world.discord.until(lambda: world.discord.dm(ada).messages, 100)
        await settled(5)
        again = await world.discord.click(ada, message, "U1")
        other = await world.discord.click(bob, message, "U1")
        await world.discord.until(lambda: other.message.files, 100)
        await settled(5)
    assert "https://discord.com/channels/@me/" in told(again)[0]
    assert other.message.channel is guild.channels[0]
    assert world.posts == 2


async def test_a_second_click_on_an_unknown_submission(world: World) -> None:
    """It is not sent again, whoever clicks."""
    ada = world.discord.user("ada")
    world.discord.guild()
    async with world.bot():
        message = await imagined(world, ada)
        world.sandbox.faults.on("submit", do=faults.lose_answer())
        first = await world.discord.click(ada, message, "U1")
        await world.discord.until(lambda: first.followups, 100)
        second = await world.discord.click(ada, message, "U1")
        await settled(5)
    assert told(first) == told(second)
    assert told(first)[0].startswith("It cannot be known")
    assert world.posts == 2


# ─── the parts, for bots of one's own ────────────────────────────────────────────────────────────


class Own(commands.Bot):
    """A bot without the cog, as in docs/discord.md."""

    def __init__(self, client: MidAPIClient) -> None:
        super().__init__(commands.when_mentioned, intents=discord.Intents(guilds=True))
        self.midapi = client

    async def setup_hook(self) -> None:
        @self.tree.command(description="A fox")
        async def fox(interaction: discord.Interaction) -> None:
            answer = await interaction.response.defer(thinking=True)
            key, message = f"discord:{interaction.id}", answer.message_id if answer else None
            async with progress(interaction, self.midapi, key, request="a red fox"):
                handle = await self.midapi.generate(
                    "a red fox", key=key, metadata=metadata_of(interaction, message)
                )
                await handle
            await deliver(self, self.midapi, handle, live=interaction)

        assert isinstance(fox, app_commands.Command)
        await self.tree.sync()


async def test_the_parts_work_without_the_cog(world: World) -> None:
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.client() as client, world.discord.running(Own(client)):
        asked = await world.discord.slash(ada, guild, "fox")
        await world.discord.until(lambda: asked.message.files, 100)
        await settled(2)
        assert await client.resume() == []
    texts = [each.text.splitlines()[0] for each in asked.message.versions if each.text]
    assert texts[-2:] == ["Generating. Such an order usually takes 60 s.", "**a red fox**"]


async def test_deliver_needs_a_final_task_with_its_place(world: World) -> None:
    async with world.client() as client, world.discord.running(bot := Own(client)):
        for metadata in ({}, {"discord_application": "1", "discord_user": "2"}):
            handle = await client.generate("a red fox", metadata=metadata)
            with pytest.raises(ValueError, match="final handle"):
                await deliver(bot, client, handle)


async def test_progress_that_cannot_be_shown_stops_nothing(world: World) -> None:
    """Discord answers with errors, or not at all; or the message was deleted."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    route = "PATCH /webhooks/*/messages/@original"
    async with world.client() as client, world.discord.running(Own(client)):
        for lever in ("fail", "lose_answer", "delete"):
            if lever == "fail":
                world.discord.fail(route, 500, times=5)
            elif lever == "lose_answer":
                world.discord.lose_answer(route)
            asked = await world.discord.slash(ada, guild, "fox")
            if lever == "delete":
                asked.message.deleted_at = 1.0
            await world.discord.until(lambda: guild.channels[0].last.files, 100)
            await settled(2)
    assert world.posts == 3


def test_the_audit_names_no_secret() -> None:
    """An interaction's token would let others speak as the bot."""
    assert not [each.name for each in attrs.fields(Audit) if "token" in each.name]
    assert "token" not in result_view.__code__.co_varnames
