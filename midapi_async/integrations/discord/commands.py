"""The slash commands; options, choices and ranges come from the request classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_args

import discord
from discord import app_commands

from midapi_async import ImageToImage, ImageToVideo, Request, TextToImage
from midapi_async.requests import RANGES, AspectRatio, Motion, Speed, Version, VideoBatchSize

from .strings import DEFAULT

if TYPE_CHECKING:
    from .cog import Midjourney

T = TypeVar("T")
_VERSIONS = get_args(get_args(Version)[0])  # the known ones, without "or any str"


def _range(name: str) -> Any:  # noqa: ANN401 - what discord.py reads as an annotation
    return app_commands.Range[int, RANGES[name][0], RANGES[name][1]]


def _choices(values: tuple[str, ...]) -> list[app_commands.Choice[str]]:
    return [app_commands.Choice(name=each, value=each) for each in values]


if TYPE_CHECKING:
    _Stylization: TypeAlias = int
    _Variety: TypeAlias = int
    _Weirdness: TypeAlias = int
else:
    _Stylization, _Variety, _Weirdness = map(_range, ("stylization", "variety", "weirdness"))


def commands_of(cog: Midjourney) -> list[app_commands.Command[Any, ..., Any]]:
    """The commands of a cog, with its texts."""
    made = [_imagine(cog), _video(cog), *_questions(cog)]
    for command in made:
        # Installed by a server or a user, and in every context in which Discord can show a command.
        command.allowed_installs = app_commands.AppInstallationType(guild=True, user=True)
        command.allowed_contexts = app_commands.AppCommandContext(
            guild=True, dm_channel=True, private_channel=True
        )
    return made


def _described(cog: Midjourney, *names: str) -> Callable[[T], T]:
    options = {**DEFAULT.options, **cog.strings.options}
    return app_commands.describe(**{name: options[name] for name in names})


def _imagine(cog: Midjourney) -> app_commands.Command[Any, ..., Any]:
    @app_commands.command(name="imagine", description=cog.strings.imagine)
    @_described(cog, "prompt", "aspect_ratio", "speed", "version", "stylization", "variety")
    @_described(cog, "weirdness", "reference")
    @app_commands.choices(
        aspect_ratio=_choices(get_args(AspectRatio)),
        speed=_choices(get_args(Speed)),
        version=_choices(_VERSIONS),
    )
    async def imagine(  # noqa: PLR0917 - the options of a command
        interaction: discord.Interaction,
        prompt: str,
        aspect_ratio: str | None = None,
        speed: str | None = None,
        version: str | None = None,
        stylization: _Stylization | None = None,
        variety: _Variety | None = None,
        weirdness: _Weirdness | None = None,
        reference: discord.Attachment | None = None,
    ) -> None:
        fields: dict[str, Any] = {
            "aspect_ratio": aspect_ratio,
            "version": version,
            "stylization": stylization,
            "variety": variety,
            "weirdness": weirdness,
            **({"speed": speed} if speed is not None else {}),
        }

        def request() -> Request:
            if reference is None:
                return TextToImage(prompt, **fields)
            return ImageToImage(prompt, [reference.url], **fields)

        await cog.ordered(interaction, "imagine", request, reference)

    return imagine


def _video(cog: Midjourney) -> app_commands.Command[Any, ..., Any]:
    @app_commands.command(name="video", description=cog.strings.video)
    @_described(cog, "prompt", "picture", "motion", "hd", "aspect_ratio", "count")
    @app_commands.choices(aspect_ratio=_choices(get_args(AspectRatio)))
    async def video(  # noqa: PLR0917 - as above
        interaction: discord.Interaction,
        prompt: str,
        picture: discord.Attachment,
        motion: Motion = "high",
        hd: bool = False,  # noqa: FBT001, FBT002 - an option of a command
        aspect_ratio: str | None = None,
        count: VideoBatchSize = 1,
    ) -> None:
        def request() -> Request:
            return ImageToVideo(
                prompt,
                [picture.url],
                motion=motion,
                hd=hd,
                aspect_ratio=aspect_ratio,  # type: ignore[arg-type]  # one of the choices above
                video_batch_size=count,
            )

        await cog.ordered(interaction, "video", request, picture)

    return video


def _questions(cog: Midjourney) -> list[app_commands.Command[Any, ..., Any]]:
    @app_commands.command(name="credits", description=cog.strings.credits)
    async def show_credits(interaction: discord.Interaction) -> None:
        await cog.show_credits(interaction)

    @app_commands.command(name="task", description=cog.strings.task)
    @_described(cog, "task_id")
    async def show_task(interaction: discord.Interaction, task_id: str) -> None:
        await cog.show_task(interaction, task_id)

    return [show_credits, show_task]
