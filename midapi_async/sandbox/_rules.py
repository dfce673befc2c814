"""What the service checks in a submit's body, as a table.

A field that is not in the table is ignored in silence, because the real service does that.
A null, an empty text or an empty list of files is a field that was not set. Every other field of
the table is checked, also one that the task type does not have.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from midapi_async.sandbox import _wire
from midapi_async.sandbox._envelope import Refused

_UNSET: Final = (None, "")
_VERSION: Final = re.compile(r"(niji)?[0-9]+(\.[0-9]+)?")

Check = Callable[[str, object], object]
"""Gives the value as it is stored, or raises the refusal that names the field."""


def _wrong(name: str, rule: str) -> Refused:
    return Refused(_wire.UNPROCESSABLE, f"{name} must be {rule}")


def _text(limit: int | None = None) -> Check:
    def check(name: str, value: object) -> str:
        if not isinstance(value, str):
            raise _wrong(name, "a string")
        if limit is not None and len(value) > limit:
            raise _wrong(name, f"no longer than {limit} characters")
        return value

    return check


def _one_of(choices: tuple[str, ...]) -> Check:
    def check(name: str, value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise _wrong(name, f"one of {', '.join(choices)}")

    return check


def _speed(_: str, value: object) -> str:
    if isinstance(value, str) and value in _wire.SPEEDS:
        return value
    raise Refused(_wire.UNPROCESSABLE, _wire.NO_SPEED)


def _version(name: str, value: object) -> str:
    # Documented are 7, 6.1, 6, 5.2, 5.1, niji6 and niji7; later ones must work here as they come.
    # A JSON number was seen to be accepted and stored as text.
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1000:
        value = str(value).removesuffix(".0")
    if isinstance(value, str) and len(value) <= 20 and _VERSION.fullmatch(value):
        return value
    raise _wrong(name, "a version like 7, 6.1 or niji6")


def _whole(low: int, high: int) -> Check:
    def check(name: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(name, "a whole number")
        if not low <= value <= high:
            raise _wrong(name, f"between {low} and {high}")
        return value

    return check


def _batch(name: str, value: object) -> int:
    if isinstance(value, bool) or value not in (1, 2, 4) or not isinstance(value, int):
        raise _wrong(name, "one of 1, 2, 4")
    return value


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false")
    return value


def is_web_url(value: object) -> bool:
    """Say whether the value is a text with an http(s) scheme and a host."""
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _callback(name: str, value: object) -> str:
    if is_web_url(value):
        return str(value)
    raise _wrong(name, "an http or https URL")


def _texts(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, "a list of strings")
    return value


_COMMON: Final[Mapping[str, Check]] = {"waterMark": _text(), "callBackUrl": _callback}
_GENERATE: Final[Mapping[str, Check]] = {
    "taskType": _one_of(_wire.IMAGE_TYPES + _wire.VIDEO_TYPES),
    "prompt": _text(_wire.PROMPT_LIMIT),
    "speed": _speed,
    "fileUrl": _text(),
    "fileUrls": _texts,
    "aspectRatio": _one_of(_wire.ASPECT_RATIOS),
    "version": _version,
    "variety": _whole(0, 100),
    "stylization": _whole(0, 1000),
    "weirdness": _whole(0, 3000),
    "ow": _whole(1, 1000),
    "enableTranslation": _switch,
    "videoBatchSize": _batch,
    "motion": _one_of(("high", "low")),
    **_COMMON,
}
_UPSCALE: Final[Mapping[str, Check]] = {
    "taskId": _text(),
    "imageIndex": _whole(0, 3),
    **_COMMON,
}
# Documented as 0-3 in one place and 1-4 in another: both are let through.
_VARY: Final[Mapping[str, Check]] = {**_UPSCALE, "imageIndex": _whole(0, 4)}
_EXTEND: Final[Mapping[str, Check]] = {
    "taskId": _text(),
    "taskType": _one_of(_wire.EXTEND_TYPES),
    "index": _whole(0, 3),
    "prompt": _text(_wire.PROMPT_LIMIT),
    **_COMMON,
}
_RULES: Final[Mapping[str, tuple[Mapping[str, Check], tuple[str, ...]]]] = {
    _wire.GENERATE: (_GENERATE, ("taskType", "prompt")),
    _wire.UPSCALE: (_UPSCALE, ("taskId", "imageIndex")),
    _wire.VARY: (_VARY, ("taskId", "imageIndex")),
    _wire.EXTEND: (_EXTEND, ("taskId", "taskType", "index")),
}


def check_body(path: str, body: Mapping[str, object]) -> dict[str, object]:
    """Give the known fields of a submit that were set, as they are stored.

    ``path`` is one of the four submits. Raises the refusal (400 for a field that is missing,
    422 for a value that is not allowed) whose text names the field.
    """
    fields, required = _RULES[path]
    given = {name: body[name] for name in fields if body.get(name) not in _UNSET}
    for name in required:
        if name not in given:
            raise _missing(name)
    checked = {name: fields[name](name, value) for name, value in given.items()}
    params = {name: value for name, value in checked.items() if value != []}
    _check_between(path, params)
    return params


def _missing(name: str) -> Refused:
    return Refused(_wire.BAD_REQUEST, f"{name} parameter is required")


def _check_between(path: str, params: Mapping[str, object]) -> None:
    """Check what several fields say together."""
    task_type = params.get("taskType")
    needs_prompt = path == _wire.GENERATE or task_type == "mj_video_extend_manual"
    if needs_prompt and not str(params.get("prompt", "")).strip():
        raise _missing("prompt")
    if path == _wire.GENERATE:
        if task_type in _wire.SPEED_TYPES and "speed" not in params:
            raise Refused(_wire.UNPROCESSABLE, _wire.NO_SPEED)
        _check_files(str(task_type), file_urls(params))


def _check_files(task_type: str, urls: tuple[str, ...]) -> None:
    if task_type == "mj_txt2img":
        return
    if not urls:
        raise Refused(_wire.BAD_REQUEST, f"fileUrls parameter is required for {task_type}")
    if len(urls) > (1 if task_type in _wire.VIDEO_TYPES else math.inf):
        raise _wrong("fileUrls", f"exactly one URL for {task_type}")
    if any(url.lstrip().lower().startswith("data:") for url in urls):
        raise _wrong("fileUrls", "URLs that can be fetched, not the data of a file")


def file_urls(params: Mapping[str, object]) -> tuple[str, ...]:
    """Give the reference URLs of a submit: ``fileUrls``, else the one ``fileUrl``."""
    several = params.get("fileUrls")
    if isinstance(several, list) and several:
        return tuple(several)
    single = params.get("fileUrl")
    return (single,) if isinstance(single, str) and single else ()
