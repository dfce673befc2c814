"""The eight requests: frozen values, checked when they are made.

The rules are those of MidAPI's documentation of ``/api/v1/mj/generate``, ``generateUpscale``,
``generateVary`` and ``generateVideoExtend`` (docs.midapi.ai). What it only recommends, such as
multiples of 50 for the stylization, is not enforced; flags inside a prompt (``--ar``, ``--sref``,
…) are sent unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias, TypedDict, get_args

import attrs

from ._runtime.urls import url_problem
from .errors import InvalidRequestError, shown

Speed: TypeAlias = Literal["relaxed", "fast", "turbo"]
AspectRatio: TypeAlias = Literal[
    "1:2", "9:16", "2:3", "3:4", "5:6", "6:5", "4:3", "3:2", "1:1", "16:9", "2:1"
]
# A type checker suggests the known versions and accepts future ones.
Version: TypeAlias = Literal["7", "6.1", "6", "5.2", "5.1", "niji6", "niji7"] | str
Motion: TypeAlias = Literal["high", "low"]
VideoBatchSize: TypeAlias = Literal[1, 2, 4]

MAX_PROMPT = 2000  # characters, as documented
# A token of ours (mjt_…) must not pass as a task id: it is a secret, and task ids are logged.
TASK_ID = re.compile(r"(?!mjt_)[A-Za-z0-9_-]{1,128}")
_LARGEST_INDEX = 2**31 - 1  # no limit is documented; this is the largest 32-bit integer

# A rule returns what is wrong with a value, or None.
Rule: TypeAlias = Callable[[object], str | None]


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        return f"must be a str, got {_kind(value)}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate (half of a character), which cannot be sent"
    return None


def _prompt(value: object) -> str | None:
    if problem := _text(value):
        return problem
    prompt = str(value)
    if not prompt.strip():
        return "must not be empty"
    if len(prompt) > MAX_PROMPT:
        return f"must have at most {MAX_PROMPT:,} characters, has {len(prompt):,}"
    return None


def _one_of(*allowed: object) -> Rule:
    def rule(value: object) -> str | None:
        if any(value == each and type(value) is type(each) for each in allowed):
            return None
        return f"must be one of {', '.join(map(repr, allowed))}, got {shown(value)}"

    return rule


def _whole(least: int, most: int, step: int = 1) -> Rule:
    span = f"from {least} to {most}"

    def rule(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"must be a whole number {span}, got {_kind(value)}"
        if not least <= value <= most:
            return f"must be a whole number {span}, got {shown(value)}"
        return None if value % step == 0 else f"must be a multiple of {step}, got {value}"

    return rule


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else f"must be True or False, got {_kind(value)}"


def _version(value: object) -> str | None:
    if not isinstance(value, str):
        return f"must be a str such as '7' or 'niji6', got {_kind(value)}"
    if re.fullmatch(r"(niji)?[0-9]+(\.[0-9]+)?", value) and len(value) <= 20:
        return None
    return f"must be like '7', '6.1' or 'niji6', got {shown(value)}"


def task_id_problem(value: object) -> str | None:
    """What is wrong with a task id, or None."""
    if isinstance(value, str) and TASK_ID.fullmatch(value):
        return None
    return (
        "must be MidAPI's task id: 1 to 128 letters, digits, - or _, "
        f"got {shown(value) if isinstance(value, str) else _kind(value)}"
    )


def _urls(exactly: int | None = None) -> Rule:
    wanted = "exactly one URL" if exactly == 1 else "at least one URL"

    def rule(value: object) -> str | None:
        if not isinstance(value, tuple):
            return f"must be a list of URLs, got {_kind(value)}"
        if not value or (exactly is not None and len(value) != exactly):
            return f"must hold {wanted}, has {len(value)}"
        for index, each in enumerate(value):
            if problem := url_problem(each):
                return (
                    f"[{index}] {problem}; MidAPI must be able to fetch it, so upload local files"
                )
        return None

    return rule


_RULES: Mapping[str, Rule] = {
    "prompt": _prompt,
    "speed": _one_of(*get_args(Speed)),
    "file_urls": _urls(),
    "aspect_ratio": _one_of(*get_args(AspectRatio)),
    "version": _version,
    "variety": _whole(0, 100, step=5),
    "stylization": _whole(0, 1000),
    "weirdness": _whole(0, 3000),
    "ow": _whole(1, 1000),
    "water_mark": _text,
    "enable_translation": _flag,
    "video_batch_size": _one_of(*get_args(VideoBatchSize)),
    "motion": _one_of(*get_args(Motion)),
    "hd": _flag,
    "task_id": task_id_problem,
    "image_index": _whole(0, 3),
    "index": _whole(0, _LARGEST_INDEX),
}


def _as_tuple(value: Sequence[str]) -> tuple[str, ...]:
    """Freeze a list; leave anything else for the rule to refuse."""
    return tuple(value) if isinstance(value, list) else value  # type: ignore[return-value]


@attrs.frozen
class _Request:
    """Checks every field against its rule and reports all problems together."""

    _own_rules: ClassVar[Mapping[str, Rule]] = {}

    def __attrs_post_init__(self) -> None:
        problems = {}
        for field in self.__attrs_attrs__:
            value = getattr(self, field.name)
            if value is field.default:
                continue  # a default needs no check
            rule = self._own_rules.get(field.name) or _RULES[field.name]
            if problem := rule(value):
                problems[field.name] = problem
        if problems:
            raise InvalidRequestError(problems)


@attrs.frozen
class _Image(_Request):
    prompt: str
    speed: Speed = attrs.field(default="fast", kw_only=True)
    aspect_ratio: AspectRatio | None = attrs.field(default=None, kw_only=True)
    version: Version | None = attrs.field(default=None, kw_only=True)
    variety: int | None = attrs.field(default=None, kw_only=True)
    stylization: int | None = attrs.field(default=None, kw_only=True)
    weirdness: int | None = attrs.field(default=None, kw_only=True)
    water_mark: str | None = attrs.field(default=None, kw_only=True)
    enable_translation: bool = attrs.field(default=False, kw_only=True)


@attrs.frozen
class TextToImage(_Image):
    """Four pictures from a prompt.

    Attributes:
        prompt: what to draw, 1 to 2,000 characters; may contain Midjourney's own ``--flags``.
        speed: "relaxed", "fast" (the default) or "turbo". The price depends on it.
        aspect_ratio: width to height, as in "16:9"; None lets Midjourney choose.
        version: Midjourney's model, as in "7", "6.1" or "niji6"; None is the newest.
        variety: how much the four pictures differ, 0 to 100 in steps of 5.
        stylization: how strong Midjourney's own style is, 0 to 1000.
        weirdness: how unusual the pictures are, 0 to 3000.
        water_mark: a text to mark the pictures with.
        enable_translation: have MidAPI translate the prompt to English first.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """


@attrs.frozen
class ImageToImage(_Image):
    """Four pictures from a prompt and pictures to start from.

    Attributes:
        file_urls: the pictures, as http(s) URLs that MidAPI can reach.

    The other fields, and what is raised, are those of `TextToImage`.
    """

    file_urls: Sequence[str] = attrs.field(converter=_as_tuple)


@attrs.frozen
class StyleReference(_Image):
    """Four pictures from a prompt, in the style of other pictures.

    Attributes:
        file_urls: the pictures whose style to take, as http(s) URLs that MidAPI can reach.

    The other fields, and what is raised, are those of `TextToImage`.
    """

    file_urls: Sequence[str] = attrs.field(converter=_as_tuple)


@attrs.frozen
class OmniReference(_Image):
    """Four pictures from a prompt that show a person or thing from another picture.

    Attributes:
        file_urls: pictures of that person or thing, as http(s) URLs that MidAPI can reach.
        ow: omni weight: how closely to follow those pictures, 1 to 1000.

    The other fields, and what is raised, are those of `TextToImage`.
    """

    file_urls: Sequence[str] = attrs.field(converter=_as_tuple)
    ow: int | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class ImageToVideo(_Request):
    """Videos from a picture and a prompt.

    Attributes:
        prompt: what should happen, 1 to 2,000 characters.
        file_urls: the one picture, as an http(s) URL that MidAPI can reach.
        hd: True for the high-definition mode.
        motion: "high" (the default) or "low".
        video_batch_size: how many videos: 1 (the default), 2 or 4.
        aspect_ratio: width to height, as in "16:9"; None lets Midjourney choose.
        water_mark: a text to mark the videos with.
        enable_translation: have MidAPI translate the prompt to English first.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """

    _own_rules: ClassVar[Mapping[str, Rule]] = {"file_urls": _urls(exactly=1)}

    prompt: str
    file_urls: Sequence[str] = attrs.field(converter=_as_tuple)
    hd: bool = attrs.field(default=False, kw_only=True)
    motion: Motion = attrs.field(default="high", kw_only=True)
    video_batch_size: VideoBatchSize = attrs.field(default=1, kw_only=True)
    aspect_ratio: AspectRatio | None = attrs.field(default=None, kw_only=True)
    water_mark: str | None = attrs.field(default=None, kw_only=True)
    enable_translation: bool = attrs.field(default=False, kw_only=True)


@attrs.frozen
class Upscale(_Request):
    """An enlarged version of one of the four pictures of a task.

    Attributes:
        task_id: the finished task.
        image_index: which of its pictures, 0 to 3.
        water_mark: a text to mark the picture with.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """

    task_id: str
    image_index: int
    water_mark: str | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class Vary(_Request):
    """Variations of one of the four pictures of a task.

    Attributes:
        task_id: the finished task.
        image_index: which of its pictures. MidAPI documents it both as 0 to 3 (its schema) and as
            1 to 4 (its notes and sample), so 0 to 4 is accepted and sent unchanged.
        water_mark: a text to mark the pictures with.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """

    _own_rules: ClassVar[Mapping[str, Rule]] = {"image_index": _whole(0, 4)}

    task_id: str
    image_index: int
    water_mark: str | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class ExtendVideo(_Request):
    """A longer version of a task's video.

    Attributes:
        task_id: the finished video task.
        index: which of its videos, counted from 0.
        prompt: what should happen next, 1 to 2,000 characters; None lets Midjourney choose.
        water_mark: a text to mark the video with.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """

    task_id: str
    index: int
    prompt: str | None = None
    water_mark: str | None = attrs.field(default=None, kw_only=True)


Request: TypeAlias = (
    TextToImage
    | ImageToImage
    | StyleReference
    | OmniReference
    | ImageToVideo
    | Upscale
    | Vary
    | ExtendVideo
)
REQUESTS: tuple[type[Request], ...] = get_args(Request)


class ImageFields(TypedDict, total=False):
    """The fields that ``client.generate("a prompt", …)`` takes: those of `TextToImage`."""

    speed: Speed
    aspect_ratio: AspectRatio | None
    version: Version | None
    variety: int | None
    stylization: int | None
    weirdness: int | None
    water_mark: str | None
    enable_translation: bool
