"""The stand-in, by the real discord.py: a small bot does what bots do."""

import asyncio
import io
import re
from collections.abc import Coroutine
from typing import Any

import aiohttp
import discord
import pytest
from discord import app_commands
from discord.ext import commands

from tests.integrations.discord_stand_in import (
    ATTACH_FILES,
    MENTION_EVERYONE,
    READ_MESSAGE_HISTORY,
    SEND_MESSAGES,
    SEND_MESSAGES_IN_THREADS,
    USUAL,
    VIEW_CHANNEL,
    Channel,
    DiscordStandIn,
    File,
)


class Panel(discord.ui.LayoutView):
    """A gallery of one picture, a text and a row of buttons."""

    def __init__(self, text: str, *names: str) -> None:
        super().__init__(timeout=None)
        gallery = [discord.MediaGalleryItem(f"attachment://{name}") for name in names]
        if gallery:
            self.add_item(discord.ui.MediaGallery(*gallery))
        self.add_item(discord.ui.TextDisplay(text))
        self.add_item(discord.ui.ActionRow(Button("Again", "again"), Button("Remix", "remix")))


class Button(discord.ui.Button[Panel]):
    def __init__(self, label: str, custom_id: str) -> None:
        super().__init__(label=label, custom_id=custom_id)

    async def callback(self, interaction: discord.Interaction) -> None:
        if self.custom_id == "remix":
            await interaction.response.send_modal(Remix())
        else:
            await interaction.response.send_message("again", ephemeral=True)


class Remix(discord.ui.Modal, title="Remix"):
    prompt: discord.ui.Label[Panel] = discord.ui.Label(
        text="Prompt",
        component=discord.ui.TextInput(custom_id="prompt", default="a fox", max_length=100),
    )

    async def on_submit(self, interaction: discord.Interaction) -> None:
        assert isinstance(self.prompt.component, discord.ui.TextInput)
        await interaction.response.defer()
        await interaction.edit_original_response(view=Panel(self.prompt.component.value))


class Painter(commands.Cog):
    @app_commands.command(description="Make a picture")
    @app_commands.describe(prompt="what to draw", count="how many", style="a reference")
    async def imagine(
        self,
        interaction: discord.Interaction,
        prompt: str,
        count: app_commands.Range[int, 1, 4] = 1,
        style: discord.Attachment | None = None,
    ) -> None:
        await interaction.response.defer(thinking=True)
        picture = b"pixels" if style is None else await style.read()
        names = [f"{number}.png" for number in range(count)]
        await interaction.edit_original_response(
            view=Panel(prompt, *names),
            attachments=[discord.File(io.BytesIO(picture), name) for name in names],
        )

    @app_commands.command(description="Say it now and later")
    @app_commands.allowed_installs(guilds=True, users=True)
    async def echo(self, interaction: discord.Interaction, text: str, more: int = 0) -> None:
        await interaction.response.send_message(text)
        for number in range(more):
            await interaction.followup.send(f"{text} {number}", wait=True)

    @app_commands.command(description="Think for too long")
    async def sleep(self, interaction: discord.Interaction, seconds: int) -> None:
        await asyncio.sleep(seconds)
        await interaction.response.send_message("awake")

    team = app_commands.Group(name="team", description="A group")

    @team.command(description="Of the group")
    async def pick(self, interaction: discord.Interaction, who: discord.User, style: str) -> None:
        await interaction.response.send_message(f"{who.name} {style}")

    @pick.autocomplete("style")
    async def styles(
        self, interaction: discord.Interaction, typed: str
    ) -> list[app_commands.Choice[str]]:
        return [app_commands.Choice(name=typed * 2, value=typed)]


class Bot(commands.Bot):
    def __init__(self) -> None:
        none = discord.AllowedMentions.none()
        super().__init__("!", intents=discord.Intents.default(), allowed_mentions=none)
        self.errors: list[Exception] = []
        self.resumed = 0
        self.seen: list[discord.Interaction] = []

    async def on_interaction(self, interaction: discord.Interaction) -> None:
        self.seen.append(interaction)

    async def setup_hook(self) -> None:
        await self.add_cog(Painter())
        await self.tree.sync()

        @self.tree.error
        async def on_error(
            interaction: discord.Interaction, error: app_commands.AppCommandError
        ) -> None:
            self.errors.append(getattr(error, "original", error))

    async def on_resumed(self) -> None:
        self.resumed += 1


async def refusal(call: Coroutine[Any, Any, object]) -> tuple[int, int]:
    """Return status and code of the error that a call raises; zeros if it raises none.

    Not with `pytest.raises`, which looks for secrets in the local variables of discord.py: there
    an interaction's token is in the path.
    """
    try:
        await call
    except discord.HTTPException as error:
        return error.status, error.code
    return 0, 0


async def test_command_is_deferred_and_becomes_a_gallery(stand_in: DiscordStandIn) -> None:
    """Deferral, edit with files and components, attachments, addresses of the pictures."""
    guild, ada, bot = stand_in.guild(), stand_in.user("ada"), Bot()
    async with stand_in.running(bot):
        file = File("style.png", b"a style")
        asked = await stand_in.slash(ada, guild, "imagine", prompt="a fox", count=2, style=file)
        assert asked.answer == 5
        await stand_in.until(lambda: asked.message.files)
    message = asked.message
    assert message.files == {"0.png": b"a style", "1.png": b"a style"}
    assert message.text == "a fox"
    assert list(message.buttons) == ["Again", "Remix"]
    assert message.gallery == [attachment.url for attachment in message.attachments]
    assert [version.text for version in message.versions] == ["", "a fox"]
    assert not message.is_loading
    assert message.payload()["attachments"] == []  # they are in the components
    assert bot.errors == []


@pytest.mark.real_time
async def test_stand_in_works_on_a_normal_loop(stand_in: DiscordStandIn) -> None:
    guild, ada = stand_in.guild(), stand_in.user("ada")
    async with stand_in.running(Bot()):
        asked = await stand_in.slash(ada, guild, "echo", text="hello")
    assert asked.message.text == "hello"


async def test_button_modal_and_ephemeral_answer(stand_in: DiscordStandIn) -> None:
    """A button's answer is for one user only; a modal's edits the message with the button."""
    guild, ada, bob = stand_in.guild(), stand_in.user("ada"), stand_in.user("bob")
    async with stand_in.running(Bot()):
        asked = await stand_in.slash(ada, guild, "imagine", prompt="a fox")
        await stand_in.until(lambda: asked.message.files)
        clicked = await stand_in.click(bob, asked.message, "Again")
        assert clicked.message.only_for is bob
        shown = await stand_in.click(bob, asked.message, "Remix")
        assert shown.modal is not None
        with pytest.raises(ValueError, match="too long"):
            await stand_in.submit_modal(shown, prompt="x" * 101)
        sent = await stand_in.submit_modal(shown, prompt="a red fox")
        assert sent.answer == 6
        await stand_in.until(lambda: asked.message.text == "a red fox")
        assert sent.message is asked.message


async def test_options_are_checked_as_by_a_users_client(stand_in: DiscordStandIn) -> None:
    guild, ada = stand_in.guild(), stand_in.user("ada")
    async with stand_in.running(Bot()):
        for wrong in ({}, {"prompt": "a", "count": 5}, {"prompt": "a", "colour": "red"}):
            with pytest.raises(ValueError, match=r"prompt|count|colour"):
                await stand_in.slash(ada, guild, "imagine", **wrong)
        with pytest.raises(LookupError, match="no command draw"):
            await stand_in.slash(ada, guild, "draw")


async def test_groups_and_autocompletion(stand_in: DiscordStandIn) -> None:
    guild, ada = stand_in.guild(), stand_in.user("ada")
    async with stand_in.running(Bot()):
        choices = await stand_in.autocomplete(ada, guild, "team pick", "style", "ab")
        assert choices == [{"name": "abab", "value": "ab"}]
        asked = await stand_in.slash(ada, guild, "team pick", who=ada, style="ab")
    assert asked.message.text == "ada ab"


async def test_late_answer_is_refused(stand_in: DiscordStandIn) -> None:
    """After 3 s the interaction is unknown (10062)."""
    guild, ada, bot = stand_in.guild(), stand_in.user("ada"), Bot()
    async with stand_in.running(bot):
        asked = await stand_in.slash(ada, guild, "sleep", seconds=4)
        assert not asked.is_answered
        await stand_in.until(lambda: bot.errors)
    assert isinstance(bot.errors[0], discord.NotFound)
    assert bot.errors[0].code == 10062
    assert "was not answered within 3 s" in stand_in.mistakes[0]
    assert "10062" in stand_in.mistakes[1]
    stand_in.mistakes.clear()


async def test_token_of_an_interaction_dies_after_15_minutes(stand_in: DiscordStandIn) -> None:
    guild, ada, bot = stand_in.guild(), stand_in.user("ada"), Bot()
    async with stand_in.running(bot):
        await stand_in.slash(ada, guild, "echo", text="hello")
        await asyncio.sleep(14 * 60)
        await bot.seen[0].edit_original_response(content="in time")
        await asyncio.sleep(61)
        late = bot.seen[0].edit_original_response(content="late")
        assert await refusal(late) == (401, 50027)
        await post(bot, guild.channels[0], "in the channel")
    assert [message.text for message in guild.channels[0].messages] == ["in time", "in the channel"]
    assert "50027" in stand_in.mistakes.pop()
    assert "resume" not in stand_in.gateway.log  # the connection lived through all that time


async def post(bot: Bot, channel: Channel, text: str, **more: Any) -> discord.Message:
    return await bot.get_partial_messageable(channel.id).send(text, **more)


async def test_second_answer_is_refused(stand_in: DiscordStandIn) -> None:
    """40060, also if another process of the bot tries: discord.py's own check is bypassed."""
    guild, ada, bot = stand_in.guild(), stand_in.user("ada"), Bot()
    async with stand_in.running(bot):
        await stand_in.slash(ada, guild, "echo", text="hello")
        bot.seen[0].response._response_type = None
        assert await refusal(bot.seen[0].response.send_message("again")) == (400, 40060)
    assert "40060" in stand_in.mistakes.pop()


async def test_two_answers_at_once(stand_in: DiscordStandIn) -> None:
    """Two processes with one token: one of them is refused, and nothing is shown twice."""
    guild, ada = stand_in.guild(), stand_in.user("ada")
    async with stand_in.running(bot := Bot()):
        hold = stand_in.hold("POST /interactions/*/callback")
        asking = asyncio.create_task(stand_in.slash(ada, guild, "echo", text="hello"))
        await hold.arrived.wait()
        bot.seen[0].response._response_type = None
        second = asyncio.create_task(refusal(bot.seen[0].response.send_message("again")))
        hold.release()
        await asking
        await second
    assert len(guild.channels[0].messages) == 1
    assert "40060" in stand_in.mistakes.pop()


async def test_only_answers_that_fit(stand_in: DiscordStandIn) -> None:
    """A command has no message to update, and nothing can follow before the first answer."""
    guild, ada = stand_in.guild(), stand_in.user("ada")
    async with stand_in.running(bot := Bot()):
        asking = asyncio.create_task(stand_in.slash(ada, guild, "sleep", seconds=1))
        await stand_in.until(lambda: bot.seen)
        one = bot.seen[0]
        assert await refusal(one.followup.send("too early", wait=True)) == (404, 10015)
        route = discord.http.Route("POST", f"/interactions/{one.id}/{one.token}/callback")
        for wrong in ({"type": 7, "data": {}}, {"type": 5, "data": {"flags": V2}}):
            assert await refusal(bot.http.request(route, json=wrong)) == (400, 50035)
        assert (await asking).message.text == "awake"
    assert ["10015" in each or "50035" in each for each in stand_in.mistakes] == [True] * 3
    stand_in.mistakes.clear()


async def test_ephemeral_answers_are_reached_by_their_token_only(stand_in: DiscordStandIn) -> None:
    guild, ada, bob = stand_in.guild(), stand_in.user("ada"), stand_in.user("bob")
    async with stand_in.running(bot := Bot()):
        asked = await stand_in.slash(ada, guild, "imagine", prompt="a fox")
        await stand_in.until(lambda: asked.message.files)
        clicked = await stand_in.click(ada, asked.message, "Again")
        answer = clicked.message
        channel = bot.get_partial_messageable(guild.channels[0].id)
        assert await refusal(channel.fetch_message(answer.id)) == (404, 10008)
        assert (await bot.seen[-1].original_response()).content == "again"
        with pytest.raises(LookupError, match="bob sees no button"):
            await stand_in.click(bob, answer, "Again")
        await bot.seen[-1].edit_original_response(content=None, view=Panel("mine"))
        assert clicked.private == [answer]
        await bot.seen[-1].delete_original_response()
        assert await refusal(bot.seen[-1].edit_original_response(content="x")) == (404, 10008)
    assert guild.channels[0].messages == [asked.message]


async def test_history_and_replies(stand_in: DiscordStandIn) -> None:
    """The newest first, or the oldest first after a message; a reply notifies the author."""
    channel = stand_in.guild().channels[0]
    async with stand_in.running(bot := Bot()):
        first, *_ = [await post(bot, channel, str(number)) for number in range(4)]
        place = bot.get_partial_messageable(channel.id)
        assert [each.content async for each in place.history(limit=2)] == ["3", "2"]
        after = [each.content async for each in place.history(after=first, limit=2)]
        assert after == ["1", "2"]
        before = [each.content async for each in place.history(before=first)]
        assert before == []
        assert (await place.fetch_message(first.id)).content == "0"
        await first.reply("pong", mention_author=True)
        assert channel.last.pinged == {stand_in.bot_user.id}
        await first.reply("pong", mention_author=False)
        assert channel.last.pinged == set()
        await first.delete()
        assert await refusal(first.reply("late")) == (400, 50035)
        await stand_in.allow_bot(channel, USUAL & ~READ_MESSAGE_HISTORY)
        assert [each async for each in place.history()] == []
    assert "MESSAGE_REFERENCE_UNKNOWN" in stand_in.mistakes.pop()


async def test_followups_of_user_installs_end_after_five(stand_in: DiscordStandIn) -> None:
    """In a guild without the bot, where it cannot post otherwise; in a guild with it, no limit."""
    with_bot, without = stand_in.guild("ours"), stand_in.guild("theirs", has_bot=False)
    ada, bot = stand_in.user("ada", has_installed=True), Bot()
    async with stand_in.running(bot):
        asked = await stand_in.slash(ada, with_bot, "echo", text="ok", more=6)
        await stand_in.until(lambda: len(asked.followups) == 6)
        assert asked.owners == {"0": str(with_bot.id), "1": str(ada.id)}
        asked = await stand_in.slash(ada, without, "echo", text="ok", more=6)
        await stand_in.until(lambda: bot.errors)
        assert len(asked.followups) == 5
        assert asked.owners == {"1": str(ada.id)}
        assert await refusal(post(bot, without.channels[0], "hello")) == (403, 50001)
    assert "40094" in stand_in.mistakes.pop()


async def test_user_install_reaches_private_channels(stand_in: DiscordStandIn) -> None:
    ada, bob = stand_in.user("ada", has_installed=True), stand_in.user("bob")
    private = stand_in.private_channel(ada, bob)
    async with stand_in.running(bot := Bot()):
        asked = await stand_in.slash(ada, private, "echo", text="hello")
        assert asked.message.text == "hello"
        assert bot.seen[0].context.private_channel
        assert bot.seen[0].is_user_integration()
        with pytest.raises(LookupError, match="cannot be used"):
            await stand_in.slash(bob, private, "echo", text="hello")


async def test_direct_messages(stand_in: DiscordStandIn) -> None:
    """They need a shared guild or a user install, and that the user takes them."""
    guild = stand_in.guild()
    ada, bob = stand_in.user("ada"), stand_in.user("bob", takes_dms=False)
    cleo, dan = stand_in.user("cleo"), stand_in.user("dan", has_installed=True)
    async with stand_in.running(bot := Bot()):
        for user in (ada, bob):
            await stand_in.slash(user, guild, "echo", text="hello")
        results = [
            await refusal((await bot.fetch_user(user.id)).send(f"hello {user.name}"))
            for user in (ada, bob, cleo, dan)
        ]
        assert results == [(0, 0), (403, 50007), (403, 50278), (0, 0)]
        asked = await stand_in.slash(ada, stand_in.dm(ada), "echo", text="here")
        assert bot.seen[-1].context.dm_channel
    assert [message.text for message in stand_in.dm(ada).messages] == ["hello ada", "here"]
    assert asked.owners == {"0": "0"}


@pytest.mark.parametrize(
    ("bot_may", "with_file", "expected"),
    [
        (USUAL, True, (0, 0)),
        (USUAL & ~VIEW_CHANNEL, False, (403, 50001)),
        (USUAL & ~SEND_MESSAGES, False, (403, 50013)),
        (USUAL & ~ATTACH_FILES, False, (0, 0)),
        (USUAL & ~ATTACH_FILES, True, (403, 50013)),
    ],
)
async def test_permissions_in_a_channel(
    stand_in: DiscordStandIn, bot_may: int, with_file: bool, expected: tuple[int, int]
) -> None:
    guild = stand_in.guild()
    channel = stand_in.channel(guild, "art", bot_may=bot_may)
    async with stand_in.running(bot := Bot()):
        more = {"file": discord.File(io.BytesIO(b"x"), "a.txt")} if with_file else {}
        assert await refusal(post(bot, channel, "hello", **more)) == expected
        seen = bot.get_channel(channel.id)
        assert isinstance(seen, discord.TextChannel)
        can_send = bool(bot_may & SEND_MESSAGES and bot_may & VIEW_CHANNEL)
        assert seen.permissions_for(seen.guild.me).send_messages == can_send


async def test_threads(stand_in: DiscordStandIn) -> None:
    """They have their channel's permissions, with one of their own, and can be closed."""
    guild, ada = stand_in.guild(), stand_in.user("ada")
    closed = stand_in.channel(guild, "closed", bot_may=USUAL & ~SEND_MESSAGES_IN_THREADS)
    thread, mute = stand_in.thread(guild.channels[0]), stand_in.thread(closed)
    async with stand_in.running(bot := Bot()):
        assert await refusal(post(bot, mute, "hello")) == (403, 50013)
        message = await post(bot, thread, "hello")
        asked = await stand_in.slash(ada, thread, "echo", text="here")
        seen = bot.seen[-1].channel
        assert isinstance(seen, discord.Thread)
        assert seen.parent_id == guild.channels[0].id
        await stand_in.archive(thread)
        assert await refusal(message.edit(content="later")) == (400, 50083)
        await post(bot, thread, "open again")
        await message.edit(content="later")
        await stand_in.archive(thread, locked=True)
        assert await refusal(post(bot, thread, "hello")) == (400, 50083)
    assert [each.text for each in thread.messages] == ["later", "here", "open again"]
    assert asked.message.channel is thread


async def test_nonce_is_sent_once(stand_in: DiscordStandIn) -> None:
    """The same nonce brings the same message, for some minutes; even if the answer was lost."""
    channel = stand_in.guild().channels[0]
    async with stand_in.running(bot := Bot()):
        stand_in.lose_answer("POST /channels/*/messages")
        with pytest.raises(aiohttp.ClientError):
            await post(bot, channel, "result", nonce="intent-1")
        again = await post(bot, channel, "result", nonce="intent-1")
        assert [message.id for message in channel.messages] == [again.id]
        await asyncio.sleep(301)
        await post(bot, channel, "result", nonce="intent-1")
        assert len(channel.messages) == 2


@pytest.mark.parametrize(
    ("allowed", "bot_may", "expected"),
    [
        (discord.AllowedMentions.none(), USUAL, set()),
        (discord.AllowedMentions.all(), USUAL, {"ada", "bob"}),
        (discord.AllowedMentions.all(), USUAL | MENTION_EVERYONE, {"ada", "bob", "everyone"}),
        (discord.AllowedMentions(everyone=False, users=[discord.Object(1)]), USUAL, set()),
    ],
)
async def test_who_is_pinged(
    stand_in: DiscordStandIn, allowed: discord.AllowedMentions, bot_may: int, expected: set[str]
) -> None:
    """A mention in the text counts if it is allowed; one that is allowed must be in the text."""
    ada, bob = stand_in.user("ada"), stand_in.user("bob")
    channel = stand_in.channel(stand_in.guild(), "art", bot_may=bot_may)
    async with stand_in.running(bot := Bot()):
        text = f"@everyone {ada.mention} {bob.mention}"
        await post(bot, channel, text, allowed_mentions=allowed)
    names = {ada.id: "ada", bob.id: "bob", "everyone": "everyone"}
    assert {names[who] for who in channel.last.pinged} == expected


class Later(discord.ui.DynamicItem[discord.ui.Button[Any]], template=r"later:(?P<number>\d+)"):
    """A button that works after a restart: all that it needs is in its custom_id."""

    def __init__(self, number: int) -> None:
        super().__init__(discord.ui.Button(label="Later", custom_id=f"later:{number}"))
        self.number = number

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction, item: discord.ui.Item[Any], match: re.Match[str]
    ) -> "Later":
        return cls(int(match["number"]))

    async def callback(self, interaction: discord.Interaction) -> None:
        assert self.view is not None
        text = self.view.find_item(2)
        assert isinstance(text, discord.ui.TextDisplay)
        text.content = f"clicked {self.number}"
        await interaction.response.edit_message(view=self.view)


async def test_buttons_live_through_a_restart(stand_in: DiscordStandIn) -> None:
    """A message brings all that discord.py needs to build its view again, and to edit it."""
    channel, ada = stand_in.guild().channels[0], stand_in.user("ada")
    async with stand_in.running(bot := Bot()):
        view = Panel("picture", "a.png").add_item(discord.ui.ActionRow(Later(7)))
        file = discord.File(io.BytesIO(b"a"), "a.png")
        await bot.get_partial_messageable(channel.id).send(view=view, file=file)
    async with stand_in.running(bot := Bot()):
        bot.add_dynamic_items(Later)
        clicked = await stand_in.click(ada, channel.last, "Later")
        assert clicked.answer == 7
    assert channel.last.text == "clicked 7"
    assert channel.last.files == {"a.png": b"a"}


async def test_what_others_change_reaches_the_bot(stand_in: DiscordStandIn) -> None:
    """A bot that is kicked, a channel that is gone or closed, a message that was deleted."""
    guild = stand_in.guild()
    art, gone = stand_in.channel(guild, "art"), stand_in.channel(guild, "gone")
    second = stand_in.guild("other")
    other = second.channels[0]
    async with stand_in.running(bot := Bot()):
        message = await post(bot, art, "hello")
        await stand_in.delete_message(art.last)
        assert await refusal(message.edit(content="again")) == (404, 10008)
        await stand_in.allow_bot(art, USUAL & ~SEND_MESSAGES)
        assert await refusal(post(bot, art, "hello")) == (403, 50013)
        await stand_in.delete_channel(gone)
        assert await refusal(post(bot, gone, "hello")) == (404, 10003)
        await stand_in.kick_bot(second)
        assert await refusal(post(bot, other, "hello")) == (403, 50001)
        assert [each.name for each in bot.guilds] == ["studio"]
        await stand_in.add_bot(second)
        await post(bot, other, "hello")
        assert [each.name for each in bot.guilds] == ["studio", "other"]


# ---------------------------------------------------------------------------------- the gateway


@pytest.mark.parametrize("how", ["cut", "closed", "asked"])
async def test_bot_resumes_and_misses_nothing(stand_in: DiscordStandIn, how: str) -> None:
    """What happens while the bot is away reaches it when it is back, if that is within 3 s."""
    guild, ada, bot = stand_in.guild(), stand_in.user("ada"), Bot()
    async with stand_in.running(bot):
        if how == "cut":
            stand_in.drop_gateway()
        elif how == "closed":
            await stand_in.close_gateway(4000)
        else:
            await stand_in.ask_to_reconnect()
        asked = await stand_in.slash(ada, guild, "echo", text="hello")
        assert asked.message.text == "hello"
        assert bot.resumed == 1
    assert [each for each in stand_in.gateway.log if each != "heartbeat"] == ["identify", "resume"]


async def test_lost_session_begins_anew(stand_in: DiscordStandIn) -> None:
    guild, ada, bot = stand_in.guild(), stand_in.user("ada"), Bot()
    async with stand_in.running(bot):
        stand_in.forget_sessions()
        stand_in.drop_gateway()
        await stand_in.until(lambda: stand_in.gateway.log.count("identify") == 2)
        asked = await stand_in.slash(ada, guild, "echo", text="hello")
        assert asked.message.text == "hello"
        await stand_in.invalidate_sessions()
        await stand_in.until(lambda: stand_in.gateway.log.count("identify") == 3)
    assert stand_in.gateway.log.count("invalid session") == 1
    assert bot.resumed == 0


async def test_wrong_token_is_refused(stand_in: DiscordStandIn) -> None:
    stand_in.token = "another"
    with pytest.raises(discord.LoginFailure):
        async with stand_in.running(Bot()):
            pass
    assert "401" in stand_in.mistakes.pop()


async def test_privileged_intents_are_off_in_the_portal(stand_in: DiscordStandIn) -> None:
    bot = commands.Bot("!", intents=discord.Intents.all())
    with pytest.raises(discord.PrivilegedIntentsRequired):
        async with stand_in.running(bot):
            pass


# ------------------------------------------------------------------------------- rate limits


async def test_bot_waits_after_429(stand_in: DiscordStandIn) -> None:
    """discord.py waits as long as it is told, and sends again."""
    channel, loop = stand_in.guild().channels[0], asyncio.get_running_loop()
    async with stand_in.running(bot := Bot()):
        stand_in.rate_limit("POST /channels/*/messages", 7.5)
        began = loop.time()
        await post(bot, channel, "hello")
        assert 7.5 <= loop.time() - began < 8
        stand_in.rate_limit("POST /channels/*/messages", 20, is_global=True)
        await asyncio.gather(post(bot, channel, "one"), bot.fetch_user(stand_in.bot_user.id))
        assert [each.status for each in stand_in.sent("POST /channels/*")] == [429, 200, 429, 200]
    assert len(channel.messages) == 2


async def test_routes_have_limits_that_their_headers_tell(stand_in: DiscordStandIn) -> None:
    """discord.py reads the headers, so that twelve messages take two pauses and no 429."""
    channel, loop = stand_in.guild().channels[0], asyncio.get_running_loop()
    async with stand_in.running(bot := Bot()):
        began = loop.time()
        await asyncio.gather(*(post(bot, channel, str(number)) for number in range(12)))
        assert 10 <= loop.time() - began < 16
    assert {each.status for each in stand_in.sent("POST /channels/*")} == {200}


async def test_bot_that_does_not_read_headers_gets_429(stand_in: DiscordStandIn) -> None:
    """Five messages in five seconds, and fifty requests a second in all."""
    channel = stand_in.guild().channels[0]
    url = f"{discord.http.Route.BASE}/channels/{channel.id}/messages"
    headers = {"Authorization": f"Bot {stand_in.token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        answers = [await session.post(url, json={"content": "hello"}) for _ in range(6)]
        assert [each.status for each in answers] == [200] * 5 + [429]
        assert answers[4].headers["X-RateLimit-Remaining"] == "0"
        body = await answers[5].json()
        assert body["retry_after"] == 5.0
        assert body["global"] is False
        me = f"{discord.http.Route.BASE}/users/@me"
        answers = [await session.get(me) for _ in range(45)]
        assert answers[-1].status == 429
        assert answers[-1].headers["X-RateLimit-Scope"] == "global"
        await asyncio.sleep(1)
        assert (await session.get(me)).status == 200
        gone = await session.get(f"{discord.http.Route.BASE}/stickers/1")
        assert gone.status == 404
    assert "the stand-in has no such route" in stand_in.mistakes.pop()


async def test_planned_errors_and_held_requests(stand_in: DiscordStandIn) -> None:
    channel = stand_in.guild().channels[0]
    async with stand_in.running(bot := Bot()):
        stand_in.fail("POST /channels/*/messages", 403, 50013, times=2)
        for _ in range(2):
            assert await refusal(post(bot, channel, "hello")) == (403, 50013)
        hold = stand_in.hold("POST /channels/*/messages")
        sending = asyncio.create_task(post(bot, channel, "hello"))
        await hold.arrived.wait()
        assert channel.messages == []
        hold.release()
        await sending
    assert channel.last.text == "hello"


async def test_addresses_of_attachments_die_after_a_day(stand_in: DiscordStandIn) -> None:
    channel = stand_in.guild().channels[0]
    async with stand_in.running(bot := Bot()):
        file = discord.File(io.BytesIO(b"pixels"), "a.png", description="a fox")
        sent = await post(bot, channel, "look", file=file)
        assert await sent.attachments[0].read() == b"pixels"
        assert sent.attachments[0].content_type == "image/png"
    await asyncio.sleep(24 * 3600)
    async with aiohttp.ClientSession() as session, session.get(sent.attachments[0].url) as got:
        assert got.status == 404


# ------------------------------------------------------------------------ what a message may be


def row(*custom_ids: str) -> dict[str, Any]:
    buttons = [{"type": 2, "style": 1, "label": each[:5], "custom_id": each} for each in custom_ids]
    return {"type": 1, "components": buttons}


def text(content: str) -> dict[str, Any]:
    return {"type": 10, "content": content}


def button(**fields: Any) -> dict[str, Any]:
    one = {"type": 2, "style": 1, "label": "go", "custom_id": "go"} | fields
    return {"type": 1, "components": [one]}


def section(*texts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": 9, "components": list(texts), **more}


def container(*inside: dict[str, Any]) -> dict[str, Any]:
    return {"type": 17, "components": list(inside)}


def gallery(*urls: str) -> dict[str, Any]:
    return {"type": 12, "items": [{"media": {"url": url}} for url in urls]}


V2 = 1 << 15


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"content": "x" * 2001}, "2000 or fewer"),
        ({"content": ""}, "50006"),
        ({"flags": V2}, "50006"),
        ({"flags": V2, "content": "a", "components": [text("b")]}, "LEGACY_FIELDS"),
        ({"flags": V2, "embeds": [{}], "components": [text("b")]}, "LEGACY_FIELDS"),
        ({"components": [text("b")]}, "UNION_TYPE_CHOICES"),
        ({"flags": V2, "components": [text("b")] * 41}, "TOTAL_COMPONENTS_EXCEEDED"),
        ({"flags": V2, "components": [text("x" * 2001)] * 2}, "DISPLAYABLE_TEXT_SIZE_EXCEEDED"),
        ({"flags": V2, "components": [text("")]}, "BASE_TYPE_BAD_LENGTH"),
        ({"flags": V2, "components": [row(*"abcdef")]}, "between 1 and 5"),
        ({"components": [row("a"), row("a")]}, "COMPONENT_CUSTOM_ID_DUPLICATED"),
        ({"components": [row("x" * 101)]}, "between 1 and 100"),
        ({"components": [row(str(n)) for n in range(6)]}, "between 1 and 5"),
        ({"flags": V2, "components": [gallery()]}, "between 1 and 10"),
        ({"flags": V2, "components": [gallery(*["http://a.b"] * 11)]}, "between 1 and 10"),
        ({"flags": V2, "components": [gallery("attachment://a.png")]}, "ATTACHMENT_NOT_FOUND"),
        ({"flags": V2, "components": [gallery("ftp://a.b/c.png")]}, "INVALID_SCHEME"),
        ({"flags": V2, "components": [{"type": 2}]}, "UNION_TYPE_CHOICES"),
        ({"flags": V2, "components": [text("a") | {"id": 5}] * 2}, "COMPONENT_ID_DUPLICATED"),
        ({"components": [button(style=9)]}, "BASE_TYPE_CHOICES"),
        ({"components": [button(label=None)]}, "LABEL_OR_EMOJI"),
        ({"components": [button(label="x" * 81)]}, "between 0 and 80"),
        ({"components": [button(style=5)]}, "BUTTON_COMPONENT_INVALID"),
        ({"components": [button(type=3, options=[])]}, "between 1 and 25"),
        ({"flags": V2, "components": [section(text("a"))]}, "BASE_TYPE_REQUIRED"),
        ({"flags": V2, "components": [section(accessory=text("a"))]}, "between 1 and 3"),
        ({"flags": V2, "components": [section(text("a"), accessory=text("a"))]}, "(2, 11)"),
        ({"flags": V2, "components": [container(container())]}, "(1, 9, 10, 12, 13, 14)"),
        ({"content": "a", "embeds": [{}] * 11}, "10 or fewer"),
        ({"content": "a", "nonce": "x" * 26}, "between 0 and 25"),
        ({"content": "a", "attachments": [{"id": 3}]}, "Attachment not found"),
        ({"content": "a", "allowed_mentions": {"parse": ["users"], "users": [1]}}, "exclusive"),
    ],
)
async def test_messages_that_discord_refuses(
    stand_in: DiscordStandIn, payload: dict[str, Any], said: str
) -> None:
    """Each with 400, and as a mistake of the bot."""
    channel = stand_in.guild().channels[0]
    async with stand_in.running(bot := Bot()):
        route = discord.http.Route("POST", f"/channels/{channel.id}/messages")
        assert (await refusal(bot.http.request(route, json=payload)))[0] == 400
    assert channel.messages == []
    assert said in stand_in.mistakes.pop()


async def test_the_largest_message_is_taken(stand_in: DiscordStandIn) -> None:
    """What the table above refuses is one more than what is allowed."""
    channel = stand_in.guild().channels[0]
    parts = [text("x" * 1000) for _ in range(4)]
    parts += [row(*(f"{line}{n}" + "x" * 98 for n in range(5))) for line in range(5)]
    go = {"type": 2, "style": 5, "label": "go", "url": "http://a.b"}
    parts[3] = container(section(parts[3], accessory=go))
    parts += [gallery(*["http://a.b"] * 10) for _ in range(3)]
    async with stand_in.running(bot := Bot()):
        route = discord.http.Route("POST", f"/channels/{channel.id}/messages")
        await bot.http.request(route, json={"flags": V2, "components": parts})
        await post(bot, channel, "x" * 2000, nonce="x" * 25)
    assert len(channel.messages) == 2


async def test_components_cannot_be_taken_back(stand_in: DiscordStandIn) -> None:
    """Only once, and by then content is gone: the flag stays on a message."""
    channel = stand_in.guild().channels[0]
    async with stand_in.running(bot := Bot()):
        message = await post(bot, channel, "words")
        assert await refusal(message.edit(view=Panel("layout"))) == (400, 50035)
        assert "LEGACY_FIELDS" in stand_in.mistakes.pop()
        message = await message.edit(content=None, view=Panel("layout"))
        assert channel.last.is_v2
        assert await refusal(message.edit(content="words")) == (400, 50035)
        assert "LEGACY_FIELDS" in stand_in.mistakes.pop()
        route = discord.http.Route("PATCH", f"/channels/{channel.id}/messages/{message.id}")
        back = {"flags": 0, "content": "words", "components": []}
        assert await refusal(bot.http.request(route, json=back)) == (400, 50035)
        assert "CANNOT_REMOVE_COMPONENTS_V2_FLAG" in stand_in.mistakes.pop()
    assert [version.text for version in channel.last.versions] == ["words", "layout"]


async def test_limits_of_files(stand_in: DiscordStandIn) -> None:
    """Ten a message; their size by the guild's boost tier, in a direct message 10 MiB."""
    small, large = stand_in.guild("small").channels[0], stand_in.guild(boost_tier=2).channels[0]

    def files(count: int, size: int) -> list[discord.File]:
        return [discord.File(io.BytesIO(bytes(size)), f"{n}.bin") for n in range(count)]

    async with stand_in.running(bot := Bot()):
        assert small.guild is not None
        seen = bot.get_guild(small.guild.id)
        assert seen is not None
        assert seen.filesize_limit == small.guild.file_limit == 10 << 20
        await post(bot, small, "ten", files=files(10, 1))
        assert await refusal(post(bot, small, "big", files=files(1, (10 << 20) + 1))) == (
            413, 40005)  # fmt: skip
        await post(bot, large, "big", files=files(1, (10 << 20) + 1))
        route = discord.http.Route("POST", f"/channels/{small.id}/messages")
        form = [{"name": f"files[{n}]", "value": b"x", "filename": f"{n}"} for n in range(11)]
        assert await refusal(bot.http.request(route, form=form)) == (400, 50035)
    assert [len(each.files) for each in (*small.messages, *large.messages)] == [10, 1]
    assert "40005" in stand_in.mistakes.pop(0)
    assert "10 or fewer" in stand_in.mistakes.pop(0)


async def test_files_of_a_message_are_kept_by_name_or_replaced(stand_in: DiscordStandIn) -> None:
    channel = stand_in.guild().channels[0]
    async with stand_in.running(bot := Bot()):
        a = discord.File(io.BytesIO(b"a"), "a.png")
        message = await bot.get_partial_messageable(channel.id).send(
            view=Panel("1", "a.png"), file=a
        )
        assert message.attachments == []  # they are in the components
        await message.edit(view=Panel("2", "a.png"))
        assert channel.last.files == {"a.png": b"a"}
        b = discord.File(io.BytesIO(b"b"), "b.png")
        await message.edit(view=Panel("3", "b.png"), attachments=[b])
        assert channel.last.files == {"b.png": b"b"}
        await message.delete()
    assert channel.messages == []
    assert channel.all_messages[0].versions[0].files == ("a.png",)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ({"name": "Big", "description": "a"}, "INVALID_NAME"),
        ({"name": "a", "description": ""}, "between 1 and 100"),
        ({"name": "a", "description": "x" * 101}, "between 1 and 100"),
        ({"name": "a", "description": "a", "options": [
            {"name": "b", "description": "b", "type": 3, "required": False},
            {"name": "c", "description": "c", "type": 3, "required": True}]}, "REQUIRED_INVALID"),
        ({"name": "a", "description": "a", "options": [
            {"name": "b", "description": "b", "type": 3,
             "choices": [{"name": str(n), "value": n} for n in range(26)]}]}, "25 or fewer"),
        ({"name": "a", "description": "a", "options": [
            {"name": f"b{n}", "description": "x" * 100, "type": 3,
             "choices": [{"name": "x" * 20, "value": "x" * 20}] * 10} for n in range(17)]},
         "TOO_LARGE"),
    ],
)  # fmt: skip
async def test_commands_that_cannot_be_registered(
    stand_in: DiscordStandIn, command: dict[str, Any], said: str
) -> None:
    async with stand_in.running(bot := Bot()):
        assert bot.application_id is not None
        call = bot.http.bulk_upsert_global_commands(bot.application_id, [command])
        assert await refusal(call) == (400, 50035)
    assert said in stand_in.mistakes.pop()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"title": "x" * 46}, "between 1 and 45"),
        ({"custom_id": "x" * 101}, "between 1 and 100"),
        ({"components": []}, "between 1 and 5"),
        ({"components": [row("a")] * 6}, "between 1 and 5"),
        ({"components": [{"type": 18, "label": "x", "component": {
            "type": 4, "custom_id": "a", "style": 2, "max_length": 5, "value": "123456"}}]},
         "between 0 and 5"),
    ],
)  # fmt: skip
async def test_modals_that_discord_refuses(
    stand_in: DiscordStandIn, change: dict[str, Any], said: str
) -> None:
    guild, ada, bot = stand_in.guild(), stand_in.user("ada"), Bot()
    modal = Remix().to_dict() | change
    Remix.to_dict, before = (lambda self: modal), Remix.to_dict  # type: ignore[method-assign]
    try:
        async with stand_in.running(bot):
            asked = await stand_in.slash(ada, guild, "imagine", prompt="a fox")
            await stand_in.until(lambda: asked.message.files)
            await stand_in.click(ada, asked.message, "Remix")
    finally:
        Remix.to_dict = before  # type: ignore[method-assign]
    assert said in stand_in.mistakes[0]
    stand_in.mistakes.clear()
