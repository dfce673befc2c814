"""Between our values and MidAPI's JSON: the one place that knows its spelling and its variants.

Read liberally in shape (each variant was seen in somebody's program) and strictly in kind: a value
of the wrong kind is an error that names its path, and nothing is coerced.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, NewType, TypeVar, cast

import attrs
from cattrs import Converter, transform_error
from cattrs.errors import ClassValidationError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from ..errors import InvalidRequestError, ProtocolError, shown
from ..requests import (
    REQUESTS,
    TASK_ID,
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    OmniReference,
    Request,
    StyleReference,
    TextToImage,
    Upscale,
    Vary,
)
from ..tasks import TaskDetails, TaskStatus
from .tokens import without_tokens

T = TypeVar("T")
JSON = dict[str, object]

# ─── JSON ────────────────────────────────────────────────────────────────────────────────────────


DEEPEST = 64  # levels; MidAPI's own answers have five


def _unique(pairs: list[tuple[str, object]]) -> JSON:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
)


def _decode(text: str) -> object:
    """What the decoder's own `decode` does; a text without white space around it costs half."""
    if text.startswith(("{", "[")):
        value, end = _decoder.raw_decode(text)
        if end == len(text):
            return value
    return _decoder.decode(text)


def loads(text: bytes | str) -> object:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: for everything else, deep nesting, doubled names and NaN included.
    """
    problem = "it is nested too deeply"
    try:
        text = text.decode().removeprefix("\ufeff") if isinstance(text, bytes) else text
        value = _decode(text)
    except RecursionError:
        pass
    except ValueError as error:
        problem = str(error)
    else:
        if text.count("[") + text.count("{") <= DEEPEST or not _is_deep(value):
            return value
    # Outside the handlers: the decoder's errors hold the whole text, with the token in it.
    raise ValueError(problem)


def _is_deep(value: object) -> bool:
    """Whether walking a value, or showing it, could use up the stack."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        insides = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for inside in insides for each in inside if isinstance(each, dict | list)]
        if not level:
            return False
    return True


_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(value: object) -> bytes:
    """A value as compact JSON in UTF-8."""
    return _compact(value).encode()


# ─── the converter ───────────────────────────────────────────────────────────────────────────────

# Kinds of values on the wire; each has one hook below.
Name = NewType("Name", str)
Text = NewType("Text", str)
Whole = NewType("Whole", int)
Moment = NewType("Moment", datetime)
Params = NewType("Params", JSON)
Urls = NewType("Urls", tuple[str, ...])
Code = NewType("Code", object)

_DIGITS = re.compile(r"-?[0-9]{1,9}")
_LARGEST = 999_999_999


def described(value: object) -> str:
    """A wrong value in a few words, for an error's text; a string may be a secret."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"{type(value).__name__} {shown(value)}"
    return f"{type(value).__name__} of length {len(cast('list[object]', value))}"


def _name(value: object, _: object) -> Name:
    if not isinstance(value, str) or not TASK_ID.fullmatch(value):
        raise ValueError(f"is no task id: {described(value)}")
    return Name(value)


def _text(value: object, _: object) -> Text:
    if not isinstance(value, str):
        raise TypeError(f"must be a string, is {described(value)}")
    return Text(value)


def _whole(value: object, _: object) -> Whole:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return Whole(int(value))
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"must be a whole number, is {described(value)}")
    if abs(value) > _LARGEST:
        raise ValueError(f"is too large: {described(value)}")
    return Whole(value)


def _code(value: object, _: object) -> Code:
    """A whole number where it is one, else the string as it is; a huge number is a string."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        value = str(value)
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        return Code(value or None)
    return Code(_whole(value, None))


def _moment(value: object, _: object) -> Moment:
    """Epoch milliseconds, as recorded, or an ISO string, as documented."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return Moment(moment.astimezone(UTC))
        if isinstance(value, int) and not isinstance(value, bool):
            return Moment(datetime.fromtimestamp(value / 1000, UTC))
    except (ValueError, OverflowError, OSError):
        pass  # told below, with the value
    raise TypeError(f"must be a time, is {described(value)}")


def _object(value: object) -> JSON:
    """A JSON object, or a string that holds one."""
    if isinstance(value, str):
        value = loads(value)
    if not isinstance(value, dict):
        raise TypeError(f"must be an object, is {described(value)}")
    return value


def _params(value: object, _: object) -> Params:
    if isinstance(value, str):
        return Params(object_in(value))  # a broken echo of our request must not cost the result
    return Params(_object(value))


def _urls(value: object, _: object) -> Urls:
    """Strings, ``{"resultUrl": …}`` or ``{"url": …}``."""
    if not isinstance(value, list):
        raise TypeError(f"must be a list, is {described(value)}")
    return Urls(tuple([_url(each, place) for place, each in enumerate(value)]))


def _url(value: object, place: int) -> str:
    if isinstance(value, dict):
        value = value.get("resultUrl") or value.get("url")
    if not is_url(value):
        raise ValueError(f"[{place}] is no URL: {described(value)}")
    return cast("str", value)


def is_url(value: object) -> bool:
    """Whether a value is a URL that can be shown and asked for."""
    return (
        isinstance(value, str)
        and value.startswith(("https://", "http://"))
        and value.isprintable()  # of all white space only the blank is
        and " " not in value
        and not value.endswith("://")
    )


@attrs.frozen
class Files:
    """``resultInfoJson``: where the files are."""

    result_urls: Urls | None = None


def _files(value: object, _: object) -> Files:
    if isinstance(value, str):
        value = loads(value or "null")
    return Files() if value is None else _structure_files(_object(value), Files)


@attrs.frozen
class Record:
    """``data`` of record-info, and of the callback of a video extension."""

    task_id: Name
    task_type: Text | None = None
    param_json: Params | None = attrs.field(default=None, repr=False)  # our callback URL is in it
    complete_time: Moment | None = None
    create_time: Moment | None = None
    result_info_json: Files | None = None
    result_urls: Urls | None = None
    success_flag: Whole | None = None
    error_code: Code | None = None
    error_message: Text | None = None

    @property
    def params(self) -> JSON:
        """The request as MidAPI stored it; our callback URL may be in it."""
        return {} if self.param_json is None else self.param_json

    @property
    def urls(self) -> tuple[str, ...]:
        """The files, wherever the record holds them."""
        nested = self.result_info_json.result_urls if self.result_info_json else None
        return nested or self.result_urls or ()

    @property
    def status(self) -> TaskStatus:
        """0 is generating, 1 success, 2 and 3 failure; what is new or missing is generating."""
        return _STATUS.get(self.success_flag, TaskStatus.GENERATING)


_STATUS: dict[int | None, TaskStatus] = {
    1: TaskStatus.SUCCEEDED,
    2: TaskStatus.FAILED,
    3: TaskStatus.FAILED,
}
KNOWN_FLAGS = frozenset({None, 0, 1, 2, 3})


class Found(NamedTuple):
    """What a look found.

    Attributes:
        record: what was understood of it.
        data: what it was read from.
        is_plain: whether no callback URL and no token can be in it.
    """

    record: Record
    data: object
    is_plain: bool = False


@attrs.frozen
class Envelope:
    """What every answer of MidAPI is wrapped in."""

    code: Whole
    msg: Text | None = None
    data: Any = None


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _structure_by_camel(cls: type[T], converter: Converter) -> Callable[[Any, Any], T]:
    renamed = {f.name: override(rename=_camel(f.name)) for f in attrs.fields(cast("Any", cls))}
    return make_dict_structure_fn(cls, converter, **cast("Any", renamed))


def _unstructure_by_camel(cls: type[T], converter: Converter) -> Callable[[T], JSON]:
    """CamelCase; None is left out, every other default is sent."""
    renamed = {
        f.name: override(rename=_camel(f.name), omit_if_default=f.default is None)
        for f in attrs.fields(cast("Any", cls))
    }
    return make_dict_unstructure_fn(cls, converter, **cast("Any", renamed))


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=True)
    converter.register_structure_hook_factory(
        attrs.has, lambda cls: _structure_by_camel(cls, converter)
    )
    converter.register_unstructure_hook_factory(
        attrs.has, lambda cls: _unstructure_by_camel(cls, converter)
    )
    kinds = {
        Name: _name,
        Text: _text,
        Whole: _whole,
        Code: _code,
        Moment: _moment,
        Params: _params,
        Urls: _urls,
        Files: _files,
    }
    for kind, hook in kinds.items():
        converter.register_structure_hook(cast("Any", kind), hook)
        # Known before the code for a class is made, so that a field costs one call.
        is_optional = partial(operator.eq, cast("Any", kind) | None)
        converter.register_structure_hook_func(is_optional, _or_none(cast("Any", hook)))
    return converter


def _or_none(hook: Callable[[object, object], T]) -> Callable[[object, object], T | None]:
    return lambda value, kind: None if value is None else hook(value, kind)


_converter = _make_converter()
_structure_files = _structure_by_camel(Files, _converter)
_structure_record = _structure_by_camel(Record, _converter)
_structure_envelope = _structure_by_camel(Envelope, _converter)


def _read(value: object, cls: type[T], structure: Callable[[Any, Any], T], path: str) -> T:
    """Structure a JSON object; a value of the wrong kind is a ProtocolError with its path."""
    if not isinstance(value, dict):
        raise ProtocolError(path or "body", f"must be an object, is {described(value)}")
    try:
        return structure(value, cls)
    except ClassValidationError as error:
        raise _first_problem(error, path) from None


def _first_problem(error: ClassValidationError, path: str) -> ProtocolError:
    told = transform_error(error, path=path or "$", format_exception=_problem)[0]
    problem, _, place = told.rpartition(" @ ")
    parts = [_camel(part) for part in place.removeprefix("$.").split(".")]
    return ProtocolError(".".join(parts), problem)


def _problem(error: BaseException, _: type | None) -> str:
    return "is missing" if isinstance(error, KeyError) else str(error)


# ─── answers ─────────────────────────────────────────────────────────────────────────────────────


def read_envelope(body: bytes) -> Envelope:
    """What an answer is wrapped in.

    Raises:
        ProtocolError: the body is no envelope of MidAPI's.
    """
    try:
        value = loads(body)
    except ValueError as error:
        raise ProtocolError("body", f"is no JSON ({_excerpt(body)}): {_plain(error)}") from None
    return _read(value, Envelope, _structure_envelope, "")


def _plain(error: ValueError) -> str:
    return str(error).partition(":")[0][:80]


def _excerpt(body: bytes) -> str:
    return without_tokens(repr(bytes(body[:400]).decode("utf-8", "replace")))[:60]


def read_record(data: object) -> Record | None:
    """A task's record from ``data``: an object, or a string that holds one; None for null.

    Raises:
        ProtocolError: naming the path of what is of the wrong kind.
    """
    try:
        value = loads(data or "null") if isinstance(data, str) else data
    except ValueError as error:
        raise ProtocolError("data", f"is no JSON: {_plain(error)}") from None
    return None if value is None else _read(value, Record, _structure_record, "data")


def object_in(value: object) -> JSON:
    """A JSON object, or a string that holds one; an empty one for everything else."""
    try:
        return _object(value)
    except (TypeError, ValueError):
        return {}


def task_id_in(data: object, name: str = "taskId") -> str | None:
    """The task id that an object holds under a name; None if there is no usable one."""
    found = object_in(data).get(name)
    return found if isinstance(found, str) and TASK_ID.fullmatch(found) else None


def details_of(found: Found) -> TaskDetails:
    """The public snapshot of a record; our callback URL is a secret and taken out."""
    record, status, params, raw = found.record, found.record.status, found.record.params, found.data
    raw, urls = _object(raw), record.urls if status is TaskStatus.SUCCEEDED else ()
    if not found.is_plain:
        params = cast("JSON", without_callback(params))
        raw = cast("JSON", without_callback(raw))
        urls = tuple(map(without_tokens, urls))
    return TaskDetails(
        task_id=record.task_id,
        task_type=readable(record.task_type, 100) or None,
        status=status,
        urls=urls,
        params=params,
        created_at=record.create_time,
        completed_at=None if status is TaskStatus.GENERATING else record.complete_time,
        error_code=_error_code(record),
        error_message=readable(record.error_message) or None,
        raw=raw,
    )


def _error_code(record: Record) -> int | str | None:
    code = record.error_code
    return (readable(code, 100) if isinstance(code, str) else cast("int | None", code)) or None


def readable(text: str | None, limit: int = 500) -> str:
    """Somebody else's text, safe to log and print: short, one line, no tokens, no controls."""
    if not text:
        return ""
    text = without_tokens(text)
    clean = text[: limit * 2]
    if not clean.isprintable():
        clean = "".join(c if c.isprintable() else " " for c in clean)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _may_hold_a_secret(text: str) -> bool:
    """Whether it is worth a closer look, told at a glance: an escape may hide anything."""
    return "mjt_" in text or "\\u" in text or "back" in text.lower()


def is_plain(body: bytes) -> bool:
    """Whether no callback URL and no token can be in an answer; most need no closer look."""
    return not _may_hold_a_secret(body.decode("latin-1"))


# As MidAPI spells it, and as others do: callbackurl, call_back_url, callback.
_CALLBACK = re.compile(r"call[-_ ]?back", re.IGNORECASE)


def without_callback(value: object, levels: int = 2) -> object:
    """A JSON value without any callback URL or token, also inside strings that hold JSON.

    Args:
        value: the JSON value.
        levels: how many strings within strings are opened; MidAPI has one.
    """
    if isinstance(value, str):
        if not _may_hold_a_secret(value):
            return value
        return without_tokens(_string_without_callback(value, levels))
    if isinstance(value, dict):
        return {
            without_tokens(name): without_callback(each, levels) if each else each
            for name, each in value.items()
            if not ("back" in name.lower() and _CALLBACK.search(name))
        }
    if isinstance(value, list):
        return [without_callback(each, levels) for each in value]
    return value


def _string_without_callback(text: str, levels: int) -> str:
    found = _CALLBACK.search(text)
    if (not found and "\\u" not in text) or text.lstrip()[:1] not in {"{", "[", '"'}:
        return text
    try:
        return _compact(without_callback(loads(text), levels - 1)) if levels else "…"
    except ValueError:
        # Half a JSON text cannot be cut precisely, and may hold half of a token.
        return text[: found.start()] + "…" if found else text


# ─── requests ────────────────────────────────────────────────────────────────────────────────────

_TASK_TYPES: Mapping[type[Request], str] = {
    TextToImage: "mj_txt2img",
    ImageToImage: "mj_img2img",
    StyleReference: "mj_style_reference",
    OmniReference: "mj_omni_reference",
    ImageToVideo: "mj_video",
    Upscale: "mj_upscale",
    Vary: "mj_vary",
    ExtendVideo: "mj_video_extend_auto",
}
# These two are our own names: the paths say it, their bodies hold no taskType.
_PATH_ONLY = frozenset({Upscale, Vary})


def task_type(request: Request) -> str:
    """MidAPI's name for what a request asks for."""
    if isinstance(request, ImageToVideo) and request.hd:
        return "mj_video_hd"
    if isinstance(request, ExtendVideo) and request.prompt is not None:
        return "mj_video_extend_manual"
    return _TASK_TYPES[type(request)]


def request_to_json(request: Request) -> JSON:
    """A request as MidAPI spells it, with its task type; what `request_from_json` reads."""
    body: JSON = {"taskType": task_type(request), **_UNSTRUCTURE[type(request)](request)}
    body.pop("hd", None)
    return body


_UNSTRUCTURE: Mapping[type[Request], Callable[[Any], JSON]] = {
    cls: _unstructure_by_camel(cls, _converter) for cls in REQUESTS
}


def submit_body(request: Request, callback_url: str | None) -> bytes:
    """The body of a request's POST."""
    body = request_to_json(request)
    if type(request) in _PATH_ONLY:
        del body["taskType"]
    if callback_url is not None:
        body["callBackUrl"] = callback_url
    return dumps(body)


def fingerprint(request: Request) -> str:
    """A hash of what the user set; equal for requests that ask for the same."""
    chosen = {
        field.name: getattr(request, field.name)
        for field in attrs.fields(type(request))
        if getattr(request, field.name) != field.default
    }
    named = [type(request).__name__, sorted(chosen.items())]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


_BY_TASK_TYPE: Mapping[str, type[Request]] = {
    **{name: cls for cls, name in _TASK_TYPES.items()},
    "mj_video_hd": ImageToVideo,
    "mj_video_extend_manual": ExtendVideo,
}


# MidAPI's spelling of each field of each request, and every name that it knows at all.
_FIELD_NAMES: Mapping[type, Mapping[str, str]] = {
    cls: {_camel(f.name): f.name for f in attrs.fields(cls) if f.name != "hd"} for cls in REQUESTS
}
_ALL_NAMES = {name for names in _FIELD_NAMES.values() for name in names} | {
    "taskType",
    "callBackUrl",
    "fileUrl",
}


def request_from_json(body: Mapping[str, object], kind: type[Request] | None = None) -> Request:
    """The request that a JSON body asks for, as it stands in MidAPI's documentation.

    Fields that MidAPI knows and this kind of task does not take are dropped, as MidAPI ignores
    them, and so is ``callBackUrl``. A ``fileUrl`` becomes the one of ``file_urls``.

    Args:
        body: the fields in MidAPI's spelling.
        kind: which request it is, where the body does not say: those of `Upscale` and `Vary` look
            alike. Where it does say, both must agree.

    Raises:
        InvalidRequestError: naming every field that is wrong, missing or misspelt. MidAPI itself
            ignores a misspelt field in silence.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequestError({"body": f"must be a mapping, got {type(body).__name__}"})
    if misspelt := _misspelt(body):
        raise InvalidRequestError(misspelt)
    cls = _request_class(body, kind)
    names = _FIELD_NAMES[cls]
    given = {names[name]: value for name, value in body.items() if name in names}
    fields = {name: value for name, value in given.items() if value is not None}
    if "file_urls" in names.values() and not fields.get("file_urls") and body.get("fileUrl"):
        fields["file_urls"] = [body["fileUrl"]]
    if "version" in fields:
        fields["version"] = _version(fields["version"])
    if cls is ImageToVideo:
        fields["hd"] = body.get("taskType") == "mj_video_hd"
    if body.get("taskType") == "mj_video_extend_auto":
        fields.pop("prompt", None)
    if body.get("taskType") == "mj_video_extend_manual":
        fields.setdefault("prompt", "")  # which its rule refuses: without one it would be auto
    return make_request(cls, fields)


def _version(value: object) -> object:
    """The text of a number: MidAPI takes 7 for "7"."""
    if type(value) in {int, float} and abs(cast("float", value)) < 1000:
        return str(value).removesuffix(".0")
    return value


# The names that each request takes, and those that it cannot do without.
_FIELDS: Mapping[type, tuple[frozenset[str], frozenset[str]]] = {
    cls: (
        frozenset(attrs.fields_dict(cls)),
        frozenset(f.name for f in attrs.fields(cls) if f.default is attrs.NOTHING),
    )
    for cls in REQUESTS
}


def make_request(cls: type[Request], fields: Mapping[str, object]) -> Request:
    """A request from named fields; unknown and missing ones are problems like any other.

    Raises:
        InvalidRequestError: naming every field that is wrong, missing or unknown.
    """
    known, needed = _FIELDS[cls]
    if not (known >= fields.keys() >= needed):
        problems = {
            name: f"is no field of {cls.__name__}{_did_you_mean(name, attrs.fields_dict(cls))}"
            for name in fields
            if name not in known
        }
        missing = dict.fromkeys(sorted(needed), f"is missing; {cls.__name__} needs it")
        raise InvalidRequestError(
            problems | {name: told for name, told in missing.items() if name not in fields}
        )
    return cast("Callable[..., Request]", cls)(**fields)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    by_letters = {_letters(each): each for each in known}
    close = difflib.get_close_matches(_letters(name), by_letters, n=1)
    named = ", ".join(by_letters.values())
    return f"; did you mean {by_letters[close[0]]}?" if close else f"; it has {named}"


def _letters(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")


def _misspelt(body: Mapping[str, object]) -> dict[str, str]:
    near = partial(_did_you_mean, known=sorted(_ALL_NAMES))
    return {
        str(name): f"is no field of MidAPI's{near(str(name))}"
        for name in body
        if name not in _ALL_NAMES
    }


def _request_class(body: Mapping[str, object], kind: type[Request] | None) -> type[Request]:
    named = body.get("taskType")
    cls = _BY_TASK_TYPE.get(named) if isinstance(named, str) else None
    if named is not None and cls is None:
        known = ", ".join(_BY_TASK_TYPE)
        raise InvalidRequestError({"taskType": f"must be one of {known}; got {shown(named)}"})
    if cls and kind and cls is not kind:
        raise InvalidRequestError({"taskType": f"{named} is no {kind.__name__}"})
    if cls or kind:
        return cast("type[Request]", cls or kind)
    if "imageIndex" in body:
        raise InvalidRequestError(
            {"taskType": "is missing, and Upscale and Vary look alike: pass kind=Upscale or Vary"}
        )
    if "taskId" in body:
        return ExtendVideo
    return TextToImage
