"""The eight requests: frozen values, checked when they are made.

The rules are those of MidAPI's documentation of ``/api/v1/mj/generate``, ``generateUpscale``,
``generateVary`` and ``generateVideoExtend`` (docs.midapi.ai). What it only recommends, such as
multiples of 50 for the stylization, is not enforced; flags inside a prompt (``--ar``, ``--sref``,
…) are sent unchanged. Known fields are checked because MidAPI ignores a misspelt one in silence,
and still charges for the task; ``extra`` sends fields and values that are newer than this.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    ClassVar,
    Literal,
    NoReturn,
    Protocol,
    Self,
    SupportsIndex,
    TypeAlias,
    TypedDict,
    cast,
    get_args,
)

import attrs

from ._runtime.urls import url_problem
from .errors import InvalidRequestError, about, shown

# A value of `extra`. Lists become tuples there, and mappings read-only.
JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Speed: TypeAlias = Literal["relaxed", "fast", "turbo"]
AspectRatio: TypeAlias = Literal[
    "1:2", "9:16", "2:3", "3:4", "5:6", "6:5", "4:3", "3:2", "1:1", "16:9", "2:1"
]
# A type checker suggests the known versions and accepts future ones.
Version: TypeAlias = Literal["7", "6.1", "6", "5.2", "5.1", "niji6", "niji7"] | str
Motion: TypeAlias = Literal["high", "low"]
VideoBatchSize: TypeAlias = Literal[1, 2, 4]

MAX_PROMPT = 2000  # characters, as documented
MAX_METADATA = 4096  # bytes
MAX_KEY = 200  # characters
# A token of ours (mjt_…) must not pass as a task id: it is a secret, and task ids are logged.
TASK_ID = re.compile(r"(?!mjt_)[A-Za-z0-9_-]{1,128}")
_LARGEST_INDEX = 2**31 - 1  # no limit is documented; this is the largest 32-bit integer
_DEEPEST = 32  # levels of `extra`
_MOST_BITS = 1024  # of an integer in `extra`; a larger one cannot be read as a float


class Files(Protocol):
    """A list or a tuple of URLs and paths, for type checkers; a `str` does not match it."""

    def __contains__(self, value: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str | Path]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: SupportsIndex, /) -> str | Path: ...


class UploadedURL(str):
    """The URL of a file that was uploaded: a `str` that remembers what the file contains.

    Attributes:
        sha256: the SHA-256 of the content, in lower-case hexadecimal digits; None if it is not
            known. A key is compared by it and not by the URL, so a file that was uploaded again
            makes the same request.

    Raises:
        InvalidRequestError: the hash is not one.
    """

    __slots__ = ("sha256",)
    sha256: str | None

    def __new__(cls, url: str, sha256: str | None = None) -> Self:
        """A URL and the hash of what is there."""
        if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise InvalidRequestError({"sha256": "must be 64 lower-case hexadecimal digits"})
        made = super().__new__(cls, url)
        made.sha256 = sha256
        return made

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.sha256)


_SHA256 = re.compile("[0-9a-f]{64}")


class HasTaskId(Protocol):
    """What you can pass instead of a task id: the details of a task, or its handle."""

    @property
    def task_id(self) -> str:
        """MidAPI's id of the task."""
        ...


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


def _whole(least: int, most: int) -> Rule:
    span = f"from {least} to {most}"

    def rule(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"must be a whole number {span}, got {_kind(value)}"
        if not least <= value <= most:
            return f"must be a whole number {span}, got {shown(value)}"
        return None

    return rule


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else f"must be True or False, got {_kind(value)}"


def _version(value: object) -> str | None:
    if not isinstance(value, str):
        return f"must be a str such as '7' or 'niji6', got {_kind(value)}"
    if re.fullmatch(r"(niji)?[0-9]+(\.[0-9]+)?", value) and len(value) <= 20:
        return None
    return f"must be like '7', '6.1' or 'niji6', got {shown(value)}"


# {red, blue} is a permutation, unless the comma is escaped; --repeat 4 is also written --r 4.
_SEVERAL_JOBS = re.compile(
    r"\{(?:[^{},\\]|\\.)*+,[^{}]*+[{}]|(?<!\S)(?:--|—)(?:repeat|r)\s+[0-9]", re.DOTALL
)


def has_several_jobs(request: Request) -> bool:
    """Whether Midjourney runs several jobs for the prompt, because of {red, blue} or --repeat.

    https://docs.midjourney.com/hc/en-us/articles/32761322355597-Permutations
    """
    prompt = prompt_of(request)
    return isinstance(prompt, str) and _SEVERAL_JOBS.search(prompt) is not None


def prompt_of(request: Request | None) -> object:
    """The prompt that is sent, which may be in `extra`; None if there is none."""
    return request and request.extra.get("prompt", getattr(request, "prompt", None))


def task_id_problem(value: object) -> str | None:
    """What is wrong with a task id, or None."""
    if isinstance(value, str) and TASK_ID.fullmatch(value):
        return None
    return (
        "must be MidAPI's task id: 1 to 128 letters, digits, - or _, "
        f"got {shown(value) if isinstance(value, str) else _kind(value)}"
    )


def checked_task_id(value: str | HasTaskId) -> str:
    """The task id that was given, or that of the details or handle that were given instead.

    Raises:
        InvalidRequestError: it is not a valid task id.
    """
    task_id = _task_id(value)
    if problem := task_id_problem(task_id):
        raise InvalidRequestError({"task_id": problem})
    return task_id


def _urls(exactly: int | None = None) -> Rule:
    wanted = "exactly one URL" if exactly == 1 else "at least one URL"

    def rule(value: object) -> str | None:
        if isinstance(value, str):
            return "must be a list of URLs, got a str: put it into a list, ['https://…']"
        if isinstance(value, Path):
            return "must be a list, got one Path: put it into a list, [Path(…)]"
        if not isinstance(value, tuple):
            return f"must be a list of URLs, got {_kind(value)}"
        if not value or (exactly is not None and len(value) != exactly):
            return f"must hold {wanted}, has {len(value)}"
        for index, each in enumerate(value):
            if not isinstance(each, Path) and (problem := _file_problem(each)):
                return f"[{index}] {problem}"
        return None

    return rule


def _file_problem(value: object) -> str | None:
    """What is wrong with the URL of a reference picture; None if it is valid."""
    if not isinstance(value, str):
        return f"must be a URL or a Path, got {_kind(value)}"
    start = value.lstrip()[:6].casefold()
    if start.startswith("data:"):
        return "is a data URL, which MidAPI does not take: give its bytes to client.upload()"
    if not start.startswith(("http:", "https:")):
        return "is not an http or https URL; a file of this machine must be a Path: Path('a.png')"
    if problem := url_problem(value):
        return f"{problem}; MidAPI must be able to fetch it"
    return None


def paths_of(request: Request) -> dict[int, Path]:
    """The files of this machine that a request names, by their places in its `file_urls`."""
    files = getattr(request, "file_urls", ())
    return {index: each for index, each in enumerate(files) if isinstance(each, Path)}


class _ReadOnly(dict[str, JSON]):
    """A mapping that cannot be changed; a dict, because every JSON encoder accepts one."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a request cannot be changed; make a new one")

    __setitem__ = __delitem__ = __ior__ = clear = _refuse
    pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[object, ...]:
        return _ReadOnly, (dict(self),)


def _frozen(value: object, level: int = 0) -> JSON:
    """A JSON value as it is kept: read-only, with the names of its mappings in order.

    Raises:
        ValueError: it is not JSON; the text says why.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if problem := _text(value):
            raise ValueError(problem)
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise ValueError("contains a number that is too large")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"contains {value}, which is not JSON")
        return float(value)
    if level >= _DEEPEST:
        raise ValueError("is nested too deeply")
    if isinstance(value, list | tuple):
        return tuple(_frozen(each, level + 1) for each in value)
    if isinstance(value, Mapping):
        if wrong := [name for name in value if _text(name)]:
            raise ValueError(f"contains the name {shown(wrong[0])}, which {_text(wrong[0])}")
        names = sorted(value)
        return _ReadOnly({str(name): _frozen(value[name], level + 1) for name in names})
    raise ValueError(f"contains {_kind(value)}, which is not JSON")


def _extra(value: object) -> str | None:
    if not isinstance(value, Mapping):
        return f"must be a mapping, as in {{'aspectRatio': '21:9'}}, got {_kind(value)}"
    try:
        _frozen(value)
    except ValueError as error:
        return str(error)
    for name in value:
        known = _WIRE_NAMES.get(letters(name))
        if known == "callBackUrl":
            return "must not contain callBackUrl; give generate() a callback_url"
        if known not in {None, name}:
            return f"contains {name}, which MidAPI would ignore; it spells it {known}"
    return None


# The whole numbers that these fields allow; for programs that offer them to people.
RANGES: Mapping[str, tuple[int, int]] = {
    "variety": (0, 100),
    "stylization": (0, 1000),
    "weirdness": (0, 3000),
    "ow": (1, 1000),
    "image_index": (0, 3),
    "index": (0, _LARGEST_INDEX),
}
_RULES: Mapping[str, Rule] = {
    **{name: _whole(*span) for name, span in RANGES.items()},
    "prompt": _prompt,
    "speed": _one_of(*get_args(Speed)),
    "file_urls": _urls(),
    "aspect_ratio": _one_of(*get_args(AspectRatio)),
    "version": _version,
    "water_mark": _text,
    "enable_translation": _flag,
    "video_batch_size": _one_of(*get_args(VideoBatchSize)),
    "motion": _one_of(*get_args(Motion)),
    "hd": _flag,
    "task_id": task_id_problem,
    "extra": _extra,
}


# ─── names ───────────────────────────────────────────────────────────────────────────────────────


def camel(name: str) -> str:
    """The name of a field in MidAPI's spelling."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def letters(name: str) -> str:
    """A name without what is easily misspelt: upper case, _ and -."""
    return name.casefold().replace("_", "").replace("-", "")


_WIRE_NAMES = {
    letters(name): name
    for name in (*map(camel, _RULES.keys() - {"hd", "extra"}), "taskType", "callBackUrl", "fileUrl")
}
# Names of Midjourney's own flags, and of other SDKs.
_OTHER_NAMES = {
    other: name
    for name, others in {
        "aspect_ratio": "ar ratio size",
        "version": "v model",
        "speed": "mode",
        "variety": "c chaos",
        "stylization": "s stylize",
        "weirdness": "w weird",
        "file_urls": "images imageurls imageurl urls url",
        "enable_translation": "translate",
        "wait_timeout": "timeout",
        "timeout": "waittimeout",
        "extra": "extrabody extrafields",
    }.items()
    for other in others.split()
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one is likely to mean."""
    import difflib  # only for an error, and slow to import

    by_letters = {letters(each): each for each in known}
    meant = letters(_OTHER_NAMES.get(letters(name), name))
    close = difflib.get_close_matches(meant, by_letters, n=1)
    return by_letters[close[0]] if close else None


# ─── conversions of arguments ────────────────────────────────────────────────────────────────────


def _task_id(value: str | HasTaskId) -> str:
    """The task id of details or of a handle; leave anything else for the rule to refuse."""
    found = getattr(value, "task_id", None)
    return cast("str", found if isinstance(found, str) else value)


def _as_tuple(value: Files) -> Files:
    """Freeze a list; leave anything else for the rule to refuse."""
    return tuple(value) if isinstance(value, list) else value


def _as_frozen(extra: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """Freeze a mapping; leave anything else for the rule to refuse."""
    if isinstance(extra, Mapping):
        try:
            return cast("_ReadOnly", _frozen(extra)) if extra else _NO_EXTRA
        except ValueError:
            return extra
    return extra


_NO_EXTRA = _ReadOnly()


def _as_text(extra: Mapping[str, JSON]) -> str:
    return json.dumps(extra) if extra else ""


def _extra_last(_: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """The order of the fields in a `repr`."""
    return sorted(fields, key=lambda field: field.name == "extra")


@attrs.frozen
class _Request:
    """Checks every field against its rule and reports all problems together."""

    _own_rules: ClassVar[Mapping[str, Rule]] = {}

    # Compared as text, in which 1, 1.0 and True differ.
    extra: Mapping[str, JSON] = attrs.field(
        default=_NO_EXTRA, kw_only=True, converter=_as_frozen, eq=_as_text
    )

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


@attrs.frozen(field_transformer=_extra_last)
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


@attrs.frozen(field_transformer=_extra_last)
class TextToImage(_Image):
    """Four pictures from a prompt.

    Attributes:
        prompt: what to draw, 1 to 2,000 characters; may contain Midjourney's own ``--flags``.
        speed: "relaxed", "fast" (the default) or "turbo". The price depends on it.
        aspect_ratio: width to height, as in "16:9"; None lets Midjourney choose.
        version: Midjourney's model, as in "7", "6.1" or "niji6"; None is the newest.
        variety: how much the four pictures differ, 0 to 100.
        stylization: how strong Midjourney's own style is, 0 to 1000.
        weirdness: how unusual the pictures are, 0 to 3000.
        water_mark: a text to mark the pictures with.
        enable_translation: have MidAPI translate the prompt to English first.
        extra: fields of MidAPI that this release does not know, or other values of known ones, as
            in ``{"aspectRatio": "21:9"}``: sent as they are, in MidAPI's spelling, unchecked.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """


@attrs.frozen(field_transformer=_extra_last)
class ImageToImage(_Image):
    """Four pictures from a prompt and pictures to start from.

    Attributes:
        file_urls: the pictures: http(s) URLs that MidAPI can reach, or a `Path` for each file on
            this machine, which ``generate`` uploads.

    The other fields, and what is raised, are those of `TextToImage`.
    """

    file_urls: Files = attrs.field(converter=_as_tuple)


@attrs.frozen(field_transformer=_extra_last)
class StyleReference(_Image):
    """Four pictures from a prompt, in the style of other pictures.

    Attributes:
        file_urls: the pictures whose style to take, as in `ImageToImage`.

    The other fields, and what is raised, are those of `TextToImage`.
    """

    file_urls: Files = attrs.field(converter=_as_tuple)


@attrs.frozen(field_transformer=_extra_last)
class OmniReference(_Image):
    """Four pictures from a prompt that show a person or thing from another picture.

    Attributes:
        file_urls: pictures of that person or thing, as in `ImageToImage`.
        ow: omni weight: how closely to follow those pictures, 1 to 1000.

    The other fields, and what is raised, are those of `TextToImage`.
    """

    file_urls: Files = attrs.field(converter=_as_tuple)
    ow: int | None = attrs.field(default=None, kw_only=True)


@attrs.frozen(field_transformer=_extra_last)
class ImageToVideo(_Request):
    """Videos from a picture and a prompt.

    Attributes:
        prompt: what should happen, 1 to 2,000 characters.
        file_urls: the one picture, as in `ImageToImage`.
        hd: True for the high-definition mode.
        motion: "high" (the default) or "low".
        video_batch_size: how many videos: 1 (the default), 2 or 4.
        aspect_ratio: width to height, as in "16:9"; None lets Midjourney choose.
        water_mark: a text to mark the videos with.
        enable_translation: have MidAPI translate the prompt to English first.
        extra: as in `TextToImage`.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """

    _own_rules: ClassVar[Mapping[str, Rule]] = {"file_urls": _urls(exactly=1)}

    prompt: str
    file_urls: Files = attrs.field(converter=_as_tuple)
    hd: bool = attrs.field(default=False, kw_only=True)
    motion: Motion = attrs.field(default="high", kw_only=True)
    video_batch_size: VideoBatchSize = attrs.field(default=1, kw_only=True)
    aspect_ratio: AspectRatio | None = attrs.field(default=None, kw_only=True)
    water_mark: str | None = attrs.field(default=None, kw_only=True)
    enable_translation: bool = attrs.field(default=False, kw_only=True)


@attrs.frozen(field_transformer=_extra_last)
class Upscale(_Request):
    """A larger version of one of the four pictures of a task.

    Attributes:
        task_id: the finished task: its id, its details or its handle.
        image_index: which of its pictures, 0 to 3.
        water_mark: a text to mark the picture with.
        extra: as in `TextToImage`.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """

    task_id: str = attrs.field(converter=_task_id)
    image_index: int
    water_mark: str | None = attrs.field(default=None, kw_only=True)


@attrs.frozen(field_transformer=_extra_last)
class Vary(_Request):
    """Variations of one of the four pictures of a task.

    Attributes:
        task_id: the finished task: its id, its details or its handle.
        image_index: which of its pictures. MidAPI documents it both as 0 to 3 (its schema) and as
            1 to 4 (its notes and sample), so 0 to 4 is accepted and sent unchanged.
        water_mark: a text to mark the pictures with.
        extra: as in `TextToImage`.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """

    _own_rules: ClassVar[Mapping[str, Rule]] = {"image_index": _whole(0, 4)}

    task_id: str = attrs.field(converter=_task_id)
    image_index: int
    water_mark: str | None = attrs.field(default=None, kw_only=True)


@attrs.frozen(field_transformer=_extra_last)
class ExtendVideo(_Request):
    """A longer version of a task's video.

    Attributes:
        task_id: the finished video task: its id, its details or its handle.
        index: which of its videos, counted from 0.
        prompt: what should happen next, 1 to 2,000 characters; None lets Midjourney choose.
        water_mark: a text to mark the video with.
        extra: as in `TextToImage`.

    Raises:
        InvalidRequestError: naming every field that is wrong.
    """

    task_id: str = attrs.field(converter=_task_id)
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
    extra: Mapping[str, JSON]


def check_arguments(key: object, metadata: object, callback_url: object) -> None:
    """Check the arguments that come with a request.

    Raises:
        InvalidRequestError: naming each argument that is wrong.
    """
    problems = {}
    is_short = isinstance(key, str) and 0 < len(key) <= MAX_KEY
    if key is not None and not (is_short and str(key).isprintable()):
        problems["key"] = f"must be a str of 1 to {MAX_KEY} printable characters"
    pairs = metadata.items() if isinstance(metadata, Mapping) else ()
    if not isinstance(metadata, Mapping) or not all(
        isinstance(each, str) for each in sum(pairs, ())
    ):
        problems["metadata"] = "must be a mapping of str to str"
    elif metadata:
        try:
            text = json.dumps(dict(metadata), ensure_ascii=False, separators=(",", ":"))
            size = len(text.encode())
        except UnicodeEncodeError:
            problems["metadata"] = (
                "contains a lone surrogate (half of a character), which cannot be stored"
            )
        else:
            if size > MAX_METADATA:
                problems["metadata"] = f"must be at most {MAX_METADATA:,} bytes, is {size:,}"
    if callback_url is not None and (problem := url_problem(callback_url)):
        problems["callback_url"] = problem
    if problems:
        valid_key = key if isinstance(key, str) and "key" not in problems else None
        raise about(InvalidRequestError(problems), key=valid_key)
