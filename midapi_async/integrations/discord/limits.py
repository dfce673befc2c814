"""Limits: who may order what, and how much; and the entries of the audit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

import attrs
import discord

from midapi_async import ImageToVideo, Intent, MidAPIClient, Request, State, Upscale
from midapi_async.requests import has_several_jobs

from .deliver import Live
from .places import Place
from .strings import Strings

_DAY = 86_400.0
_PICTURES = 4  # of one order that makes pictures
# States of orders that have cost nothing, or were given up: they do not count.
_NOT_COUNTED = frozenset({State.REFUSED, State.SUPERSEDED, State.DISMISSED, State.FAILED})
_COUNTED = tuple(state for state in State if state not in _NOT_COUNTED)
_RUNNING = frozenset({State.SENDING, State.RESTING, State.ACCEPTED, State.CALLED_BACK})
_MOST_REMEMBERED = 10_000  # users and guilds whose last order is remembered


def _now() -> float:
    return asyncio.get_running_loop().time()


def _ids(given: Collection[int]) -> frozenset[int]:
    return frozenset(given)


@attrs.frozen(kw_only=True)
class Limits:
    """Who may order, and how much; None means no limit.

    Attributes:
        user_cooldown: seconds between two orders of one user; 0 for none.
        guild_cooldown: seconds between two orders in one guild; 0 for none.
        jobs_per_user: orders of one user that may be under way.
        jobs_per_guild: orders of one guild that may be under way.
        pictures_per_user: pictures and videos of one user in 24 hours, counted from the journal.
        pictures_per_guild: the same of one guild.
        several_jobs: whether a prompt may contain {red, blue} or --repeat, for which Midjourney
            runs several jobs; MidAPI does not document what it charges for them.
        roles: the ids of roles of which a user must have one; empty for everybody. With any, only
            members of a guild may order.
        channels: the ids of the channels where orders are taken, threads included; empty for all.
    """

    user_cooldown: float = 3.0
    guild_cooldown: float = 0.0
    jobs_per_user: int | None = 3
    jobs_per_guild: int | None = None
    pictures_per_user: int | None = None
    pictures_per_guild: int | None = None
    several_jobs: bool = False
    roles: Collection[int] = attrs.field(default=(), converter=_ids)
    channels: Collection[int] = attrs.field(default=(), converter=_ids)


@attrs.frozen(kw_only=True)
class Audit:
    """One action of a user and its outcome, as ``Midjourney(audit=…)`` receives it.

    Attributes:
        action: "imagine", "video", "again", "remix", "U1" to "V4", or "delete".
        outcome: "declined" by the limits, "failed", "unknown", "bought", "shown" (it was bought
            before), "delivered", "undelivered", or "deleted".
        user: the user's id.
        guild: the guild's id; None for a direct message.
        channel: the channel's id; None if Discord did not name it.
        request: the request, if it is valid.
        intent_id: the id of its submission, once there is one.
        task_id: MidAPI's id of its task, once it was bought.
        reason: why it was declined, or the text of the error; else empty.
    """

    action: str
    outcome: str
    user: int
    guild: int | None = None
    channel: int | None = None
    request: Request | None = None
    intent_id: str | None = None
    task_id: str | None = None
    reason: str = ""


@attrs.define(eq=False, kw_only=True)
class Order:
    """An order of this process that is under way.

    Attributes:
        key: its key.
        user: the user's id.
        guild: the guild's id; None for a direct message.
        pictures: how many pictures or videos it makes.
        live: its interaction.
        began: when it began, on the loop's clock.
        is_final: set when its result is there.
        progress_ended: set when its working message is edited no longer.
    """

    key: str
    user: int
    guild: int | None
    pictures: int
    live: Live
    began: float = attrs.field(factory=_now)
    is_final: asyncio.Event = attrs.field(factory=asyncio.Event)
    progress_ended: asyncio.Event = attrs.field(factory=asyncio.Event)


class Guard:
    """Applies the limits.

    Attributes:
        orders: the orders of this process that are under way, by key.
    """

    def __init__(self, limits: Limits, strings: Strings) -> None:
        self._limits = limits
        self._strings = strings
        self._last: dict[tuple[str, int], float] = {}  # loop times of the last orders
        self.orders: dict[str, Order] = {}

    def not_allowed(self, interaction: discord.Interaction) -> str | None:
        """Why this user may not use the bot here; None if they may."""
        limits, strings = self._limits, self._strings
        if limits.channels and _channels(interaction).isdisjoint(limits.channels):
            return strings.wrong_channel
        if limits.roles and not any(_has_role(interaction, role) for role in limits.roles):
            return strings.wrong_role
        return None

    def refusal(self, interaction: discord.Interaction, request: Request) -> str | None:
        """Why a request may not be ordered now, judged without the journal; None if it may."""
        limits, strings = self._limits, self._strings
        if text := self.not_allowed(interaction):
            return text
        if not limits.several_jobs and has_several_jobs(request):
            return strings.several_jobs
        user, guild, now = interaction.user.id, interaction.guild_id, _now()
        for kind, id_, cooldown in (
            ("user", user, limits.user_cooldown),
            ("guild", guild, limits.guild_cooldown),
        ):
            last = self._last.get((kind, id_ or 0))
            if cooldown > 0 and id_ is not None and last is not None and now < last + cooldown:
                over = int(time.time() + last + cooldown - now) + 1
                return strings.wait.format(when=f"<t:{over}:R>")
        for kind, id_, most in (
            ("user", user, limits.jobs_per_user),
            ("guild", guild, limits.jobs_per_guild),
        ):
            if most is not None and id_ is not None and len(self._mine(kind, id_)) >= most:
                return strings.too_many_jobs.format(limit=most)
        return None

    def begin(self, interaction: discord.Interaction, key: str, request: Request) -> Order:
        """Count an order from now on; between `refusal` and this, nothing may be awaited."""
        user, guild, now = interaction.user.id, interaction.guild_id, _now()
        for kind, id_ in (("user", user), ("guild", guild)):
            if id_ is not None:
                self._last.pop(
                    (kind, id_), None
                )  # to the end of the dict: the oldest entry is dropped first
                self._last[kind, id_] = now
        while len(self._last) > _MOST_REMEMBERED:
            self._last.pop(next(iter(self._last)))
        pictures, live = pictures_of(request), Live.now(interaction)
        order = Order(key=key, user=user, guild=guild, pictures=pictures, live=live)
        self.orders[key] = order
        return order

    def end(self, order: Order) -> None:
        """Stop counting an order: it bought nothing, or was delivered."""
        if self.orders.get(order.key) is order:
            del self.orders[order.key]

    async def refusal_of_journal(self, client: MidAPIClient, order: Order) -> str | None:
        """Why an order exceeds what the journal counts; None if it does not.

        Orders from before a restart are in the journal only, and an order that has just begun is
        not in it yet.

        Raises:
            JournalError: the journal cannot be read.
        """
        limits = self._limits
        for kind, most_jobs, most_pictures in (
            ("user", limits.jobs_per_user, limits.pictures_per_user),
            ("guild", limits.jobs_per_guild, limits.pictures_per_guild),
        ):
            id_: int | None = getattr(order, kind)
            if id_ is None or (most_jobs is None and most_pictures is None):
                continue
            rows = await client.intents.rows(
                states=_COUNTED,
                metadata=Place.note(kind, id_),
                since=time.time() - _DAY,
            )
            mine = self._mine(kind, id_)
            if text := self._exceeded(rows, mine, order, most_jobs, most_pictures):
                return text
        return None

    def _mine(self, kind: str, id_: int) -> list[Order]:
        """The orders of a user, or of a guild; an order that never ended is dropped after a day."""
        start = _now() - _DAY
        every = self.orders.values()
        return [each for each in every if getattr(each, kind) == id_ and each.began > start]

    def _exceeded(
        self,
        rows: Collection[Intent],
        mine: Collection[Order],
        order: Order,
        most_jobs: int | None,
        most_pictures: int | None,
    ) -> str | None:
        written = {row.key for row in rows}
        # Orders that began later than this one must wait for it, and not the other way round.
        unwritten = [each for each in _up_to(mine, order) if each.key not in written]
        jobs = len([row for row in rows if row.state in _RUNNING]) + len(unwritten)
        if most_jobs is not None and jobs > most_jobs:
            return self._strings.too_many_jobs.format(limit=most_jobs)
        pictures = sum(map(_pictures_in, rows)) + sum(each.pictures for each in unwritten)
        if most_pictures is not None and pictures > most_pictures:
            return self._strings.too_many_pictures.format(limit=most_pictures)
        return None


def pictures_of(request: Request | None) -> int:
    """How many pictures or videos an order makes."""
    if isinstance(request, Upscale):
        return 1
    if isinstance(request, ImageToVideo):
        return request.video_batch_size
    return _PICTURES


def _pictures_in(row: Intent) -> int:
    return len(row.details.urls) if row.details is not None else pictures_of(row.request)


def _up_to(orders: Collection[Order], last: Order) -> list[Order]:
    every = list(orders)
    return every[: every.index(last) + 1]


def _channels(interaction: discord.Interaction) -> set[int]:
    parent = getattr(interaction.channel, "parent_id", None)
    return {each for each in (interaction.channel_id, parent) if each is not None}


def _has_role(interaction: discord.Interaction, role: int) -> bool:
    # A role is known only of a guild in which the bot is, too.
    user = interaction.user
    return isinstance(user, discord.Member) and user.get_role(role) is not None
