"""The guard rails that memory knows; those of the journal are in test_discord_orders.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import discord
import pytest

from midapi_async import ImageToVideo, TextToImage, Upscale, Vary
from midapi_async.integrations.discord import Limits
from midapi_async.integrations.discord import limits as limits_module
from midapi_async.integrations.discord.limits import Guard, pictures_of
from midapi_async.integrations.discord.strings import DEFAULT

FOX = TextToImage("a fox")
DAY = 86_400.0


def asked(user: int = 1, guild: int | None = 2, channel: int = 3, parent: int = 0) -> Any:
    """What a guard reads of an interaction."""
    return SimpleNamespace(
        user=SimpleNamespace(id=user),
        guild_id=guild,
        channel_id=channel,
        channel=SimpleNamespace(parent_id=parent),
    )


async def test_a_cooldown_is_over_when_it_says() -> None:
    guard = Guard(Limits(user_cooldown=10, guild_cooldown=4, jobs_per_user=None), DEFAULT)
    guard.begin(asked(), "a", FOX)
    assert guard.refusal(asked(), FOX) is not None
    assert guard.refusal(asked(user=5), FOX) is not None, "the guild's"
    assert guard.refusal(asked(user=5, guild=6), FOX) is None
    assert guard.refusal(asked(user=5, guild=None), FOX) is None
    await asyncio.sleep(4)
    assert guard.refusal(asked(user=5), FOX) is None
    assert guard.refusal(asked(), FOX) is not None
    await asyncio.sleep(6)
    assert guard.refusal(asked(), FOX) is None


async def test_jobs_of_a_guild_are_those_of_all_its_users() -> None:
    guard = Guard(Limits(user_cooldown=0, jobs_per_user=1, jobs_per_guild=2), DEFAULT)
    first = guard.begin(asked(user=1), "a", FOX)
    assert guard.refusal(asked(user=1, guild=9), FOX) is not None
    guard.begin(asked(user=5), "b", FOX)
    assert guard.refusal(asked(user=6), FOX) is not None
    guard.end(first)
    guard.end(first)
    assert guard.refusal(asked(user=6), FOX) is None


async def test_a_job_that_never_ends_counts_for_a_day() -> None:
    """A task that MidAPI has lost must not lock a user out until the next restart."""
    guard = Guard(Limits(jobs_per_user=1), DEFAULT)
    guard.begin(asked(), "a", FOX)
    await asyncio.sleep(DAY - 1)
    assert guard.refusal(asked(), FOX) is not None
    await asyncio.sleep(2)
    assert guard.refusal(asked(), FOX) is None


async def test_cooldowns_need_no_memory_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ones are forgotten."""
    monkeypatch.setattr(limits_module, "_MOST_REMEMBERED", 10)
    guard = Guard(Limits(user_cooldown=DAY, jobs_per_user=None), DEFAULT)
    for user in range(20):
        guard.begin(asked(user, guild=None), f"{user}", FOX)
        guard.begin(asked(0, guild=None), "0", FOX)
    assert guard.refusal(asked(1, guild=None), FOX) is None
    assert guard.refusal(asked(19, guild=None), FOX) is not None
    assert guard.refusal(asked(0, guild=None), FOX) is not None, "the youngest one"


async def test_threads_of_an_allowed_channel_are_allowed() -> None:
    guard = Guard(Limits(channels=[3]), DEFAULT)
    assert guard.not_allowed(asked(channel=3)) is None
    assert guard.not_allowed(asked(channel=7, parent=3)) is None
    assert guard.not_allowed(asked(channel=7)) == DEFAULT.wrong_channel


async def test_roles_are_those_of_members() -> None:
    """Nobody has one in a direct message."""
    guard = Guard(Limits(roles=[3]), DEFAULT)
    assert guard.not_allowed(asked()) == DEFAULT.wrong_role
    interaction = asked()
    interaction.user = type("Member", (), {"get_role": lambda _, role: role == 3})()
    assert not isinstance(interaction.user, discord.Member)
    assert guard.not_allowed(interaction) == DEFAULT.wrong_role


def test_pictures_are_counted_as_they_are_billed() -> None:
    assert pictures_of(FOX) == 4
    assert pictures_of(Vary("0" * 32, 0)) == 4
    assert pictures_of(Upscale("0" * 32, 0)) == 1
    assert pictures_of(ImageToVideo("x", ["https://a.example/b"], video_batch_size=2)) == 2
    assert pictures_of(None) == 4, "where prompts are not stored"
