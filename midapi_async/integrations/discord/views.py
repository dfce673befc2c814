"""The message of a result: a gallery, its text, and buttons that work for weeks.

A button's ``custom_id`` contains all that it needs, so buttons also work after a restart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import attrs
import discord
from discord import ui

from midapi_async import ExtendVideo, ImageToVideo, Intent, Request, TaskDetails, Upscale, Vary

from .strings import DEFAULT, MOST_PROMPT, Strings, harmless

if TYPE_CHECKING:
    from .cog import Midjourney

COG = "Midjourney"
# Discord's limits of a message.
MOST_CHARACTERS = 4_000
MOST_FILES = 10
_MOST_DESCRIPTION = 256
_PICTURES = 4  # of one task, each with a U and a V
_FORM = "mj1:R:"  # begins the custom_id of a form for another prompt
_FLAGS = {
    "aspect_ratio": "--ar",
    "version": "--v",
    "stylization": "--stylize",
    "variety": "--chaos",
    "weirdness": "--weird",
    "ow": "--ow",
    "motion": "--motion",
}


class ResultButton(
    ui.DynamicItem[ui.Button[ui.LayoutView]],
    template=r"mj1:(?P<action>[UVARD])(?P<index>[0-3]?):(?P<intent>[0-9a-f]{32}):(?P<user>\d{1,20})",
):
    """A button below a result: U, V, "again", "remix" or delete.

    Attributes:
        action: U, V, A (again), R (remix) or D (delete).
        index: which picture, from 0; None for the last three.
        intent_id: the intent of the result.
        user_id: the user who ordered the result.
    """

    def __init__(
        self, action: str, index: int | None, intent_id: str, user_id: int, label: str = "?"
    ) -> None:
        self.action, self.index, self.intent_id, self.user_id = action, index, intent_id, user_id
        number = "" if index is None else index
        style = {"D": discord.ButtonStyle.danger, "A": discord.ButtonStyle.primary}
        super().__init__(
            ui.Button(
                label=label,
                style=style.get(action, discord.ButtonStyle.secondary),
                custom_id=f"mj1:{action}{number}:{intent_id}:{user_id}",
            )
        )

    @classmethod
    async def from_custom_id(
        cls,
        _interaction: discord.Interaction[Any],
        _item: ui.Item[Any],
        match: re.Match[str],
        /,
    ) -> Self:
        """The button that was pressed."""
        index = int(match["index"]) if match["index"] else None
        return cls(match["action"], index, match["intent"], int(match["user"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        """Have the cog do what the button is for."""
        cog: Midjourney | None = interaction.client.get_cog(COG)
        if cog is not None:
            await cog.pressed(interaction, self)


@attrs.frozen(kw_only=True)
class Shown:
    """The texts of a result's message.

    Attributes:
        prompt: the prompt of the order, or of the order whose picture it used; None if unknown.
        request: what was ordered; None if unknown.
    """

    prompt: str | None
    request: Request | None

    _headings: ClassVar[dict[type, str]] = {Upscale: "upscaled", Vary: "varied"}

    def heading(self, strings: Strings) -> str:
        """The prompt, and what was done with the picture that it is from."""
        prompt = harmless(self.prompt or "", MOST_PROMPT) or strings.untitled
        template = getattr(strings, self._headings.get(type(self.request), "heading"))
        number = getattr(self.request, "image_index", 0) + 1
        text: str = template.format(prompt=prompt, number=number)
        return text

    def settings(self) -> str:
        """The settings as Midjourney's flags; only those that were chosen."""
        chosen = [
            f"{flag} {value}"
            for name, flag in _FLAGS.items()
            if (value := getattr(self.request, name, None)) is not None
        ]
        speed = getattr(self.request, "speed", None)
        return " ".join([*chosen, *([f"--{speed}"] if speed else [])])


def result_view(
    details: TaskDetails,
    *,
    intent_id: str,
    user_id: int,
    request: Request | None = None,
    prompt: str | None = None,
    media: Sequence[discord.File | str] = (),
    links: Sequence[tuple[int, str]] = (),
    parent_url: str | None = None,
    mention: bool = False,
    strings: Strings = DEFAULT,
) -> ui.LayoutView:
    """The message of a result: a gallery, a text with a button that deletes it, rows of buttons.

    It never exceeds Discord's 4,000 characters and 40 components. Send it with
    ``allowed_mentions``; the prompt itself mentions nobody.

    Args:
        details: the details of a task that succeeded.
        intent_id: ``handle.intent_id`` of the task; the buttons need it.
        user_id: the id of the user who ordered it.
        request: ``handle.request`` of the task.
        prompt: the prompt to show if the request has none.
        media: the files, attached to the same message, or URLs that Discord can fetch; at most 10
            are shown.
        links: files to show as links: the index of each among the results, from 0, and its URL.
        parent_url: the link to the message of the result that it was made from.
        mention: whether to mention the user above the result.
        strings: the texts.
    """
    shown = Shown(prompt=getattr(request, "prompt", None) or prompt, request=request)
    view = ui.LayoutView(timeout=None)
    if media:
        spoken = (shown.prompt or "")[:_MOST_DESCRIPTION] or None  # for screen readers
        items = (discord.MediaGalleryItem(each, description=spoken) for each in media[:MOST_FILES])
        view.add_item(ui.MediaGallery(*items))
    by = f"<@{user_id}>"
    text = f"{by} {shown.heading(strings)}" if mention else shown.heading(strings)
    text += "\n" + strings.settings.format(settings=shown.settings() or strings.untitled, by=by)
    if parent_url is not None:
        text += f" · [{strings.parent}]({parent_url})"
    for index, url in links:
        link = f"\n[{strings.link.format(number=index + 1)}]({url})"
        # A link that does not fit is left out whole.
        text += link if len(text) + len(link) <= MOST_CHARACTERS else ""
    delete = ResultButton("D", None, intent_id, user_id, strings.delete)
    view.add_item(ui.Section(ui.TextDisplay(text[:MOST_CHARACTERS]), accessory=delete))
    for row in _rows(details, shown, intent_id, user_id, strings):
        view.add_item(row)
    return view


def _rows(
    details: TaskDetails, shown: Shown, intent_id: str, user_id: int, strings: Strings
) -> list[ui.ActionRow[Any]]:
    """The two rows of buttons; those that the result allows."""
    request = shown.request
    is_video = isinstance(request, ImageToVideo | ExtendVideo)
    count = 0 if is_video or isinstance(request, Upscale) else min(len(details.urls), _PICTURES)
    rows: list[list[ui.Item[Any]]] = [
        [ResultButton(action, n, intent_id, user_id, f"{action}{n + 1}") for n in range(count)]
        for action in "UV"
    ]
    # Upscaling again gives the same picture; without a prompt there is nothing to remix.
    if request is not None and not isinstance(request, Upscale):
        rows[0].append(ResultButton("A", None, intent_id, user_id, strings.again))
    if getattr(request, "prompt", None) is not None:
        rows[1].append(ResultButton("R", None, intent_id, user_id, strings.remix))
    return [ui.ActionRow(*row) for row in rows if row]


def text_view(text: str) -> ui.LayoutView:
    """A message of components with only a text, such as the working message."""
    view = ui.LayoutView(timeout=None)
    view.add_item(ui.TextDisplay(text[:MOST_CHARACTERS]))
    return view


def remix_form(intent: Intent, user_id: int, strings: Strings) -> ui.Modal:
    """The form for another prompt, with the old one filled in.

    Nothing is kept in memory: `intent_of_form` finds the intent of a form that was submitted.
    """
    form = ui.Modal(
        title=strings.remix_title, custom_id=f"{_FORM}{intent.intent_id}:{user_id}", timeout=None
    )
    field: ui.TextInput[Any] = ui.TextInput(
        style=discord.TextStyle.paragraph,
        default=getattr(intent.request, "prompt", "")[:MOST_CHARACTERS],
        max_length=MOST_CHARACTERS,
    )
    form.add_item(ui.Label(text=strings.remix_prompt, component=field))
    return form


def intent_of_form(custom_id: str | None) -> str | None:
    """The id of the intent that a form is for; None if it is not one of `remix_form`."""
    if custom_id is None or not custom_id.startswith(_FORM):
        return None
    return custom_id.removeprefix(_FORM).split(":")[0]


def submitted_prompt(data: object) -> str | None:
    """The prompt in the data of a submitted form; None if it has none."""
    if isinstance(data, dict):
        if isinstance(value := data.get("value"), str):
            return value
        nested = [data.get("component"), *(data.get("components") or ())]
        return next(filter(None, map(submitted_prompt, nested)), None)
    return None


def is_result_of(message: discord.Message, intent_id: str) -> bool:
    """Whether a message is the result of an intent, as its buttons show."""
    view = ui.LayoutView.from_message(message, timeout=None)
    ids = (getattr(item, "custom_id", None) or "" for item in view.walk_children())
    return any(f":{intent_id}:" in each for each in ids)
