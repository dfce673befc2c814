"""The bots in `examples/` and the rest of docs/discord.md, against the stand-in and the sandbox."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import discord
import pytest
from discord.ext import commands

from midapi_async.sandbox import Sandbox
from tests.integrations.discord_stand_in import DiscordStandIn
from tests.support.secrets import API_KEY

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "discord_bot.py"
OWN = EXAMPLE.with_name("discord_own_bot.py")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
async def run(
    stand_in: DiscordStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[str, str], commands.Bot]]:
    """Give the bot that a program makes; it is not started."""
    for name in [name for name in os.environ if name.startswith("MIDAPI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    async with Sandbox() as sandbox:
        monkeypatch.setenv("MIDAPI_BASE_URL", sandbox.url)
        monkeypatch.setenv("MIDAPI_API_KEY", API_KEY)

        def made(program: str, name: str) -> commands.Bot:
            file = tmp_path / "program.py"
            file.write_text(program, "utf-8")
            names: dict[str, Any] = runpy.run_path(str(file), run_name="imported")
            bot: commands.Bot = names[name](
                commands.when_mentioned, intents=discord.Intents(guilds=True)
            )
            return bot

        yield made


async def test_the_example_paints(
    stand_in: DiscordStandIn, run: Callable[[str, str], commands.Bot]
) -> None:
    guild, ada = stand_in.guild(), stand_in.user("ada")
    async with stand_in.running(run(EXAMPLE.read_text("utf-8"), "Bot")):
        asked = await stand_in.slash(ada, guild, "imagine", prompt="a red fox")
        await stand_in.until(lambda: asked.message.files, 300)
    assert Path("journal").is_dir()


def commands_have_ended() -> bool:
    """Whether the result was also written down as taken, which comes after it was shown."""
    return all(task.get_name() != "CommandTree-invoker" for task in asyncio.all_tasks())


async def test_the_bot_of_ones_own_paints(
    stand_in: DiscordStandIn, run: Callable[[str, str], commands.Bot]
) -> None:
    guild, ada = stand_in.guild(), stand_in.user("ada")
    async with stand_in.running(run(OWN.read_text("utf-8"), "Fox")):
        asked = await stand_in.slash(ada, guild, "fox")
        await stand_in.until(lambda: asked.message.files, 300)
        await stand_in.until(commands_have_ended)


async def test_the_bot_of_ones_own_tells_a_failure(
    stand_in: DiscordStandIn, run: Callable[[str, str], commands.Bot]
) -> None:
    guild, ada = stand_in.guild(), stand_in.user("ada")
    program = OWN.read_text("utf-8").replace(
        "a red fox", "a red fox [[sandbox: fail=out of paint]]"
    )
    async with stand_in.running(run(program, "Fox")):
        asked = await stand_in.slash(ada, guild, "fox")
        await stand_in.until(lambda: asked.followups, 300)
        await stand_in.until(commands_have_ended)
    assert asked.followups[0].text.endswith("out of paint")


def test_the_pages_show_the_example() -> None:
    """The README word for word, without its docstring."""
    program = EXAMPLE.read_text("utf-8").split('"""\n\n', 1)[1]
    assert program in BLOCK.findall((REPOSITORY / "README.md").read_text("utf-8"))


def test_the_example_has_ten_lines() -> None:
    """Without blank ones, imports and what runs it."""
    _, program = EXAMPLE.read_text("utf-8").split('"""\n\n', 1)
    code = [line for line in program.splitlines() if line and "import" not in line]
    assert len(code) <= 10


def test_the_page_shows_limits_that_exist() -> None:
    page = (REPOSITORY / "docs" / "discord.md").read_text("utf-8")
    [program] = [each for each in BLOCK.findall(page) if "cog = Midjourney" in each]
    names: dict[str, Any] = {}
    made = program.replace("MidAPIClient(", f"MidAPIClient({API_KEY!r}, ")
    exec(made, names)  # noqa: S102 - our own page
    assert names["cog"].strings.again == "Nochmal"
