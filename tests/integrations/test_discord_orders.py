"""Orders in Discord: from the command to the result and its buttons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from midapi_async import TaskHandle, UnprocessableError
from midapi_async.integrations.discord import Limits
from midapi_async.sandbox import Sandbox, faults
from tests.integrations.discord_stand_in import (
    ATTACH_FILES,
    SEND_MESSAGES,
    USUAL,
    VIEW_CHANNEL,
    DiscordStandIn,
    File,
)  # fmt: skip
from tests.integrations.discord_stand_in.things import Message, User
from tests.integrations.discord_world import World, settled, told


@pytest.fixture
async def world(stand_in: DiscordStandIn) -> AsyncIterator[World]:
    """Jobs of a minute."""
    async with Sandbox(durations={("*", "*"): 60}) as sandbox:
        yield World(stand_in, sandbox)


async def imagined(world: World, user: User, prompt: str = "a red fox") -> Message:
    """The message of a result."""
    guild = next(iter(world.discord._state.guilds.values()))
    asked = await world.discord.slash(user, guild, "imagine", prompt=prompt)
    await world.discord.until(lambda: asked.message.files, 100)
    await settled(2)
    return asked.message


# ─── what works ──────────────────────────────────────────────────────────────────────────────────


async def test_an_order_becomes_pictures_with_buttons(world: World) -> None:
    """The working message becomes the result, in three edits and with all settings."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot() as bot:
        asked = await world.discord.slash(
            ada, guild, "imagine", prompt="a red fox", aspect_ratio="16:9", stylization=250
        )
        assert asked.answer == 5
        await world.discord.until(lambda: asked.message.files, 100)
        await settled(2)
    message = asked.message
    assert [name.rpartition("_")[2] for name in message.files] == [f"{n}.jpeg" for n in range(4)]
    assert message.gallery == [each.url for each in message.attachments]
    assert message.text == (f"**a red fox**\n-# --ar 16:9 --stylize 250 --fast · {ada.mention}")
    assert list(message.buttons) == [
        "Delete", "U1", "U2", "U3", "U4", "Again", "V1", "V2", "V3", "V4", "Remix",
    ]  # fmt: skip
    assert message.pinged == set()
    lines = [version.text.splitlines()[0] for version in message.versions if version.text]
    assert lines[-2] == "Generating. Such an order usually takes 60 s."
    assert len(message.versions) <= 5
    assert [each.outcome for each in bot.audit] == ["bought", "delivered"]
    (row,) = await world.rows()
    assert row.taken
    assert row.key == f"discord:{asked.id}"
    assert row.metadata["discord_user"] == str(ada.id)
    assert row.metadata["discord_guild"] == str(guild.id)
    assert row.metadata["discord_message"] == str(message.id)


async def test_a_reference_picture_and_a_video(world: World) -> None:
    """An attachment is the picture to start from; anything else is refused."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    picture, text = File("fox.png", b"a fox"), File("fox.txt", b"a fox")
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox", reference=picture)
        filmed = await world.discord.slash(
            ada, guild, "video", prompt="it runs", picture=picture, count=2, motion="low"
        )
        wrong = await world.discord.slash(ada, guild, "video", prompt="it runs", picture=text)
        await world.discord.until(lambda: asked.message.files and filmed.message.files, 300)
        await settled(2)
    assert told(wrong) == ["The attachment must be a picture."]
    assert len(filmed.message.files) == 2
    assert list(filmed.message.buttons) == ["Delete", "Again", "Remix"]
    first, second = await world.rows()
    assert first.request is not None
    assert first.request.file_urls == (  # type: ignore[union-attr]  # it has a picture
        asked.data["resolved"]["attachments"].popitem()[1]["url"],
    )
    assert type(second.request).__name__ == "ImageToVideo"


async def test_credits_and_task(world: World) -> None:
    """Both answer privately."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        message = await imagined(world, ada)
        (row,) = world.sandbox.ledger.accepted
        asked = await world.discord.slash(ada, guild, "credits")
        known = await world.discord.slash(ada, guild, "task", task_id=row.task_id)
        unknown = await world.discord.slash(ada, guild, "task", task_id="0" * 32)
        await settled(10)
    assert message.files
    assert told(asked)[0].endswith("credits are left.")
    assert told(known)[0].startswith(f"Task {row.task_id} is succeeded.\n[file 1](http")
    assert told(unknown) == ["MidAPI does not know this task, or has no result of it yet."]


async def test_two_users_at_once(world: World) -> None:
    """Each gets a result of their own."""
    guild = world.discord.guild()
    ada, bob = world.discord.user("ada"), world.discord.user("bob")
    async with world.bot():
        first, second = await asyncio.gather(
            world.discord.slash(ada, guild, "imagine", prompt="a red fox"),
            world.discord.slash(bob, guild, "imagine", prompt="a blue fox"),
        )
        await world.discord.until(lambda: first.message.files and second.message.files, 100)
        await settled(2)
    assert first.message.text.startswith("**a red fox**")
    assert second.message.text.startswith("**a blue fox**")
    assert set(first.message.files).isdisjoint(second.message.files)
    assert world.posts == 2


# ─── what does not ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (402, "no credits", "out of credits"),
        (422, "Your prompt was flagged", "Moderation refused"),
        (433, "cap", "reached its spending limit"),
        (455, "maintenance", "under maintenance"),
        (401, "key", "does not accept the bot's API key"),
        (505, "off", "switched this kind of order off"),
        (429, "slow down", "MidAPI is busy"),
        (500, "oops", "cannot be known"),
    ],
)
async def test_a_refused_order_is_told_in_plain_words(
    world: World, code: int, message: str, expected: str
) -> None:
    """Only the one who asked sees it; the working message is gone, and nobody is mentioned."""
    world.sandbox.faults.on("submit", do=faults.answer_code(code, message))
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot() as bot:
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a red fox")
        await world.discord.until(lambda: asked.followups, 200)
        await settled(2)
    assert len(told(asked)) == 1
    assert expected in told(asked)[0]
    assert guild.channels[0].messages == [asked.followups[0]]
    assert bot.audit[-1].outcome == ("unknown" if code == 500 else "failed")


async def test_a_failed_task_is_told_privately(world: World) -> None:
    """It was bought, so it is told like a result: once, and then it is taken."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot() as bot:
        prompt = "a fox [[sandbox: fail=out of paint; seconds=30]]"
        asked = await world.discord.slash(ada, guild, "imagine", prompt=prompt)
        await world.discord.until(lambda: asked.followups, 200)
        await settled(2)
    assert told(asked) == ["Midjourney could not finish this order. out of paint"]
    assert guild.channels[0].messages == [asked.followups[0]]
    assert [each.outcome for each in bot.audit] == ["bought", "delivered"]
    (row,) = await world.rows()
    assert row.taken


async def test_an_unknown_submission_is_not_sent_again_and_delivered_when_it_is_adopted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator adopts the task; the result goes to the channel."""
    world.sandbox.faults.on("submit", do=faults.lose_answer())
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot() as bot:
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a red fox")
        await world.discord.until(lambda: asked.followups, 200)
        (row,) = await world.rows()
        assert row.intent_id in told(asked)[0]
        assert f"midapi journal show {row.intent_id}" in caplog.text
        await bot.cog.client.intents.adopt(row.intent_id, world.sandbox.ledger.accepted[0].task_id)
        await world.discord.until(lambda: guild.channels[0].last.files, 100)
    assert world.posts == 1
    assert guild.channels[0].last.pinged == {ada.id}


async def test_an_invalid_order_is_told_at_once(world: World) -> None:
    """A prompt of 6,000 characters, which Discord allows and MidAPI does not."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="x" * 6_000)
    assert "must have at most 2,000 characters" in told(asked)[0]
    assert world.posts == 0


async def test_a_closed_client_says_that_the_bot_is_restarted(world: World) -> None:
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.client() as client, world.bot(client):
        client.stop_waiting()
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a red fox")
        await world.discord.until(lambda: asked.followups, 100)
    assert told(asked)[0].startswith("The bot is being restarted.")


# ─── longer than an interaction lives ────────────────────────────────────────────────────────────


@pytest.fixture
async def slow(stand_in: DiscordStandIn) -> AsyncIterator[World]:
    """Jobs that take longer than an interaction lives."""
    async with Sandbox(durations={("*", "*"): 1000}) as sandbox:
        yield World(stand_in, sandbox)


async def test_a_job_of_20_minutes_goes_to_the_channel_with_a_mention(slow: World) -> None:
    """The working message leads there."""
    guild, ada = slow.discord.guild(), slow.discord.user("ada")
    channel, prompt = guild.channels[0], "a fox [[sandbox: seconds=1200]]"
    async with slow.bot():
        asked = await slow.discord.slash(ada, guild, "imagine", prompt=prompt, speed="relaxed")
        await slow.discord.until(lambda: channel.last.files, 2000)
        await settled(2)
    result = channel.last
    assert result is not asked.message
    assert result.pinged == {ada.id}
    assert result.text.startswith(f"{ada.mention} **a fox ")
    assert f"/{channel.id}/{result.id}" in asked.message.text
    assert "longer than most orders" in [each.text for each in asked.message.versions][-2]
    assert len(asked.message.versions) <= 6


async def test_a_user_install_gets_a_direct_message(slow: World) -> None:
    """The bot cannot speak in a guild that it is not a member of."""
    guild = slow.discord.guild(has_bot=False)
    ada = slow.discord.user("ada", has_installed=True)
    async with slow.bot():
        await slow.discord.slash(ada, guild, "imagine", prompt="a fox")
        await slow.discord.until(lambda: slow.discord.dm(ada).messages, 2000)
        await settled(2)
    assert len(slow.discord.dm(ada).last.files) == 4
    (row,) = await slow.rows()
    assert row.taken


async def test_a_user_install_gets_a_quick_result_where_it_was_asked(world: World) -> None:
    guild = world.discord.guild(has_bot=False)
    ada = world.discord.user("ada", has_installed=True)
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await world.discord.until(lambda: asked.message.files, 100)
        await settled(2)
    assert len(guild.channels[0].messages) == 1


@pytest.mark.parametrize("lost", [VIEW_CHANNEL, SEND_MESSAGES, ATTACH_FILES])
async def test_without_a_permission_the_result_becomes_a_direct_message(
    slow: World, lost: int
) -> None:
    guild, ada = slow.discord.guild(), slow.discord.user("ada")
    channel = slow.discord.channel(guild, "art", bot_may=USUAL & ~lost)
    async with slow.bot():
        await slow.discord.slash(ada, channel, "imagine", prompt="a fox")
        await slow.discord.until(lambda: slow.discord.dm(ada).messages, 2000)
        await settled(2)
    assert len(slow.discord.dm(ada).last.files) == 4
    assert all("403" in each or "5001" in each for each in slow.discord.mistakes)
    slow.discord.mistakes.clear()


async def test_a_result_that_nobody_can_be_shown_stays_untaken(
    slow: World, caplog: pytest.LogCaptureFixture
) -> None:
    guild, ada = slow.discord.guild(), slow.discord.user("ada", takes_dms=False)
    channel = slow.discord.channel(guild, "art", bot_may=USUAL & ~SEND_MESSAGES)
    async with slow.bot() as bot:
        await slow.discord.slash(ada, channel, "imagine", prompt="a fox")
        await slow.discord.until(lambda: bot.audit[-1:] and len(bot.audit) == 2, 2000)
    assert bot.audit[-1].outcome == "undelivered"
    assert "stays untaken" in caplog.text
    (row,) = await slow.rows()
    assert not row.taken
    slow.discord.mistakes.clear()


# ─── restarts ────────────────────────────────────────────────────────────────────────────────────


async def test_a_restart_in_the_middle_delivers_to_the_channel(
    world: World, tmp_path: Path
) -> None:
    """With a journal's folder."""
    world.journal = tmp_path
    guild, ada = world.discord.guild(), world.discord.user("ada")
    channel = guild.channels[0]
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(20)
    async with world.bot():
        await world.discord.until(lambda: channel.last.files, 100)
        await settled(5)
    assert channel.last.pinged == {ada.id}
    assert str(channel.last.id) in asked.message.text
    assert world.posts == 1
    async with world.bot():
        await settled(60)
    assert len(channel.messages) == 2


async def test_a_restart_between_result_and_delivery(world: World) -> None:
    """Discord took nothing before the restart; afterwards it gets the result once."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    channel = guild.channels[0]
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(30)
        world.discord.fail("PATCH /webhooks/*/messages/@original", 500, times=1000)
        await settled(90)
        assert not asked.message.files
    async with world.bot():
        await world.discord.until(lambda: channel.last.files, 100)
        await settled(60)
    assert len([each for each in channel.messages if each.files]) == 1


@pytest.mark.parametrize("minutes", [1, 20])
async def test_a_restart_between_delivery_and_its_record_shows_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """The message is found by its buttons: the working message, or one in the channel."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    channel = guild.channels[0]
    with monkeypatch.context() as patch:
        patch.setattr(TaskHandle, "ack", _dies)
        async with world.bot():
            prompt = f"a fox [[sandbox: seconds={minutes * 60}]]"
            await world.discord.slash(ada, guild, "imagine", prompt=prompt)
            await world.discord.until(lambda: channel.last.files, 2000)
            await settled(2)
    (row,) = await world.rows()
    assert not row.taken
    await asyncio.sleep(600)  # Discord has forgotten the nonce
    async with world.bot():
        await settled(120)
    (row,) = await world.rows()
    assert row.taken
    assert len([each for each in channel.messages if each.files]) == 1


async def _dies(_: TaskHandle) -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_gateway_that_resumes_loses_no_order(world: World) -> None:
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        world.discord.drop_gateway()
        await world.discord.until(lambda: asked.message.files, 100)
        await settled(10)
        await world.discord.slash(ada, guild, "credits")
        await settled(2)
    assert "resume" in world.discord.gateway.log
    assert world.posts == 1


async def test_discord_is_unreachable_when_the_result_arrives(world: World) -> None:
    """The delivery is tried again, and the result is shown once."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(30)
        world.discord.fail("PATCH /webhooks/*/messages/@original", 503, times=12)
        await world.discord.until(lambda: asked.message.files, 300)
        await settled(2)
    assert len(guild.channels[0].messages) == 1


# ─── buttons ─────────────────────────────────────────────────────────────────────────────────────


async def test_u_and_v_send_the_index_from_0(world: World) -> None:
    """The result shows what was done with which picture, and links to its parent."""
    ada = world.discord.user("ada")
    world.discord.guild()
    async with world.bot():
        message = await imagined(world, ada)
        upscaled = await world.discord.click(ada, message, "U2")
        varied = await world.discord.click(ada, message, "V4")
        await world.discord.until(lambda: upscaled.message.files and varied.message.files, 200)
        await settled(2)
    first, upscale, vary = await world.rows()
    assert upscale.request.image_index == 1  # type: ignore[union-attr]  # it is an Upscale
    assert vary.request.image_index == 3  # type: ignore[union-attr]  # it is a Vary
    assert upscale.key == f"discord:{first.intent_id}:U1"
    assert upscaled.message.text.startswith("**a red fox**, picture 2 upscaled")
    assert f"[made from](https://discord.com/channels/{message.channel.guild.id}/" in (  # type: ignore[union-attr]
        upscaled.message.text
    )
    assert list(upscaled.message.buttons) == ["Delete"]
    assert "U1" in varied.message.buttons
    assert "Remix" not in varied.message.buttons


async def test_a_second_click_by_anyone_buys_nothing(world: World) -> None:
    """While it runs it says so; later it leads to the result; if that is gone, it shows it."""
    ada, bob = world.discord.user("ada"), world.discord.user("bob")
    world.discord.guild()
    async with world.bot():
        message = await imagined(world, ada)
        first, second = await asyncio.gather(
            world.discord.click(ada, message, "U1"), world.discord.click(bob, message, "U1")
        )
        asked, other = (first, second) if first.answer == 5 else (second, first)
        assert told(other) == ["This order is already under way."]
        await world.discord.until(lambda: asked.message.files, 100)
        await settled(10)
        third = await world.discord.click(bob, message, "U1")
        await world.discord.until(lambda: third.followups)
        assert str(asked.message.id) in told(third)[0]
        deleted = await world.discord.click(asked.user, asked.message, "Delete")
        assert deleted.answer == 6
        await world.discord.until(lambda: asked.message.deleted_at)
        fourth = await world.discord.click(bob, message, "U1")
        await world.discord.until(lambda: fourth.message.files, 30)
        await settled(2)
    assert world.posts == 2


async def test_buttons_of_old_messages_work_after_a_restart(world: World) -> None:
    """And so does a form that was open meanwhile."""
    ada = world.discord.user("ada")
    world.discord.guild()
    async with world.bot():
        message = await imagined(world, ada)
        form = await world.discord.click(ada, message, "Remix")
    async with world.bot():
        upscaled = await world.discord.click(ada, message, "U1")
        remixed = await world.discord.submit_modal(form)
        await world.discord.until(lambda: upscaled.message.files and remixed.message.files, 200)
        await settled(2)
    assert world.posts == 3


async def test_again_and_remix_buy_anew_but_not_twice_in_a_moment(world: World) -> None:
    """Again: the same request with another key. Remix: a form with the prompt filled in."""
    ada = world.discord.user("ada")
    world.discord.guild()
    async with world.bot():
        message = await imagined(world, ada)
        again = await world.discord.click(ada, message, "Again")
        twice = await world.discord.click(ada, message, "Again")
        assert told(twice) == ["That was ordered a moment ago."]
        form = await world.discord.click(ada, message, "Remix")
        assert form.modal is not None
        (field,) = [each["component"] for each in form.modal["components"]]
        assert field["value"] == "a red fox"
        remixed = await world.discord.submit_modal(form, **{field["custom_id"]: "a blue fox"})
        twice = await world.discord.submit_modal(form)
        assert told(twice) == ["That was ordered a moment ago."]
        await world.discord.until(lambda: again.message.files and remixed.message.files, 200)
        await asyncio.sleep(10)
        await world.discord.click(ada, message, "Again")
        await settled(100)
    rows = await world.rows()
    prompts = [row.request.prompt for row in rows]  # type: ignore[union-attr]  # they have one
    assert prompts == ["a red fox", "a red fox", "a blue fox", "a red fox"]
    assert len({row.key for row in rows}) == 4


async def test_only_the_requester_deletes(world: World) -> None:
    ada, bob = world.discord.user("ada"), world.discord.user("bob")
    world.discord.guild()
    async with world.bot():
        message = await imagined(world, ada)
        refused = await world.discord.click(bob, message, "Delete")
        assert told(refused) == ["Only the person who ordered this can delete it."]
        await world.discord.click(ada, message, "Delete")
        await world.discord.until(lambda: message.deleted_at)


# ─── Discord's limits ────────────────────────────────────────────────────────────────────────────


async def test_the_place_in_line_is_shown(world: World) -> None:
    """The 21st order of an account waits for the limit of 20 in 10 s, and says so."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        orders = await asyncio.gather(
            *(
                world.discord.slash(ada, guild, "imagine", prompt=f"fox {number}")
                for number in range(24)
            )
        )
        await world.discord.until(lambda: all(each.message.files for each in orders), 300)
        await settled(2)
    texts = [version.text for each in orders for version in each.message.versions]
    for place in range(4):
        assert any(text.startswith(f"Waiting in line: {place} before") for text in texts)
    assert not any("4 before" in text for text in texts)
    assert world.posts == 24


async def test_edits_that_are_limited_lose_no_result(world: World) -> None:
    guild, ada = world.discord.guild(), world.discord.user("ada")
    world.discord.rate_limit("PATCH /webhooks/*/messages/@original", 20.0, times=2)
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await world.discord.until(lambda: asked.message.files, 200)
        await settled(2)
    assert len(guild.channels[0].messages) == 1


async def test_files_that_are_too_large_become_links(world: World) -> None:
    world.sandbox.faults.on("file", do=faults.huge(11 << 20))
    guild, ada = world.discord.guild(), world.discord.user("ada")
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await world.discord.until(lambda: "file 4" in asked.message.text, 200)
        await settled(2)
    assert asked.message.files == {}
    assert asked.message.text.count("](http") == 4


async def test_a_hostile_prompt_mentions_nobody(world: World) -> None:
    """Mentions, Markdown, links and direction marks are only text."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    bob = world.discord.user("bob")
    prompt = f"@everyone {bob.mention} [x](https://evil.example) `**\u202e\n# big"
    async with world.bot():
        asked = await world.discord.slash(ada, guild, "imagine", prompt=prompt)
        await world.discord.until(lambda: asked.message.files, 100)
        await settled(2)
    text = asked.message.text
    assert asked.message.pinged == set()
    assert f"\\<\\@{bob.id}\\>" in text
    assert "\\[x\\]\\(https\\:\\/\\/evil" in text
    assert "\u202e" not in text
    assert "\n#" not in text


# ─── guard rails ─────────────────────────────────────────────────────────────────────────────────


async def test_cooldowns_and_jobs_at_once(world: World) -> None:
    guild, ada, bob = world.discord.guild(), world.discord.user("ada"), world.discord.user("bob")
    async with world.bot(limits=Limits(user_cooldown=10, jobs_per_user=2, guild_cooldown=1)) as bot:
        ordered = [
            await world.discord.slash(ada, guild, "imagine", prompt="a fox") for _ in range(2)
        ]
        assert told(ordered[1])[0].startswith("You can order again <t:")
        await asyncio.sleep(10)
        ordered.append(await world.discord.slash(ada, guild, "imagine", prompt="a fox"))
        await asyncio.sleep(10)
        ordered.append(await world.discord.slash(ada, guild, "imagine", prompt="a fox"))
        assert told(ordered[3])[0].startswith("The limit of 2 orders under way")
        both = await asyncio.gather(
            world.discord.slash(bob, guild, "imagine", prompt="a fox"),
            world.discord.slash(ada, guild, "imagine", prompt="a fox"),
        )
        assert told(both[1])
        await settled(100)
    assert world.posts == 3
    assert [each.outcome for each in bot.audit].count("declined") == 3


async def test_jobs_and_pictures_are_counted_across_a_restart(world: World) -> None:
    """The journal has them."""
    guild, ada = world.discord.guild(), world.discord.user("ada")
    limits = Limits(user_cooldown=0, jobs_per_user=1, pictures_per_user=8, pictures_per_guild=9)
    async with world.bot(limits=limits):
        await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await settled(20)
    async with world.bot(limits=limits):
        second = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await world.discord.until(lambda: second.followups)
        assert told(second)[0].startswith("The limit of 1 orders under way")
        await settled(60)
        await imagined(world, ada)
        third = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        await world.discord.until(lambda: third.followups)
        assert told(third)[0].startswith("The limit of 8 pictures")
    assert world.posts == 2


async def test_roles_and_channels(world: World) -> None:
    guild, ada, bob = world.discord.guild(), world.discord.user("ada"), world.discord.user("bob")
    art = world.discord.channel(guild, "art")
    painters = world.discord.role(guild, "painters", ada)
    async with world.bot(limits=Limits(roles=[painters.id], channels=[art.id])) as bot:
        elsewhere = await world.discord.slash(ada, guild, "imagine", prompt="a fox")
        assert told(elsewhere) == ["That is not allowed in this channel."]
        refused = await world.discord.slash(bob, art, "credits")
        assert told(refused) == ["You need another role for that."]
        asked = await world.discord.slash(ada, art, "imagine", prompt="a fox")
        await world.discord.until(lambda: asked.message.files, 100)
        refused = await world.discord.click(bob, asked.message, "U1")
        assert told(refused) == ["You need another role for that."]
        await settled(2)
    assert world.posts == 1
    assert bot.audit[0].reason == "That is not allowed in this channel."


async def test_an_audit_hook_that_raises_stops_no_order(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def audit(_: object) -> None:
        raise UnprocessableError(422)

    world.discord.guild()
    async with world.bot(audit=audit):
        assert (await imagined(world, world.discord.user("ada"))).files
    assert "the audit hook raised" in caplog.text
