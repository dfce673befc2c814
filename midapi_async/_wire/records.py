"""What MidAPI answers with: envelopes, and records of tasks.

Several shapes are accepted (other programs that use MidAPI handle each of these variants), but
types are strict: a value of a wrong type is an error that names its path, and nothing is coerced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import attrs
from cattrs import Converter
from cattrs.errors import ClassValidationError
from cattrs.gen import make_dict_structure_fn, override

from .._runtime.urls import is_http_url
from ..errors import ProtocolError, shown
from ..requests import TASK_ID
from ..tasks import TaskDetails, TaskStatus
from .json import JSONObject, compact, loads
from .tokens import without_tokens

# ─── types of values on the wire ─────────────────────────────────────────────────────────────────

_DIGITS = re.compile(r"-?[0-9]{1,9}")
_LARGEST = 999_999_999


def described(value: object) -> str:
    """A wrong value in a few words, for an error's text; shows no string: it may be a secret."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"{type(value).__name__} {shown(value)}"
    return f"{type(value).__name__} of length {len(cast('list[object]', value))}"


def _task_id(value: object) -> str:
    if not isinstance(value, str) or not TASK_ID.fullmatch(value):
        raise ValueError(f"is not a task id: {described(value)}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a string, is {described(value)}")
    return value


def _whole(value: object) -> int:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"must be a whole number, is {described(value)}")
    if abs(value) > _LARGEST:
        raise ValueError(f"is too large: {described(value)}")
    return value


def _code(value: object) -> int | str | None:
    """A whole number if it is one, else the string as it is; a huge number becomes a string."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        value = str(value)
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        return value or None
    return _whole(value)


def _time(value: object) -> datetime:
    """Epoch milliseconds, as MidAPI sends, or an ISO string, as it documents."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return moment.astimezone(UTC)
        if isinstance(value, int) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        pass  # the error below describes the value
    raise TypeError(f"must be a time, is {described(value)}")


def _object(value: object) -> JSONObject:
    """A JSON object, or a string that holds one."""
    if isinstance(value, str):
        value = loads(value)
    if not isinstance(value, dict):
        raise TypeError(f"must be an object, is {described(value)}")
    return value


def object_in(value: object) -> JSONObject:
    """A JSON object, or a string that holds one; an empty one for everything else."""
    try:
        return _object(value)
    except (TypeError, ValueError):
        return {}


def _params(value: object) -> JSONObject:
    # A string that cannot be read must not cost the result: it only repeats our request.
    return object_in(value) if isinstance(value, str) else _object(value)


def _urls(value: object) -> tuple[str, ...]:
    """A list of strings, of ``{"resultUrl": …}`` or of ``{"url": …}``."""
    if not isinstance(value, list):
        raise TypeError(f"must be a list, is {described(value)}")
    urls = []
    for index, each in enumerate(value):
        url = each.get("resultUrl") or each.get("url") if isinstance(each, dict) else each
        if not is_http_url(url):
            raise ValueError(f"[{index}] is not a URL: {described(url)}")
        urls.append(url)
    return tuple(urls)


def _nested_urls(value: object) -> tuple[str, ...]:
    """``resultInfoJson``: an object with ``resultUrls``, or a string that holds one."""
    if isinstance(value, str):
        value = loads(value or "null")
    urls = None if value is None else _object(value).get("resultUrls")
    try:
        return () if urls is None else _urls(urls)
    except (TypeError, ValueError) as error:
        raise ProtocolError("resultUrls", str(error)) from None


def task_id_in(data: object, name: str = "taskId") -> str | None:
    """The task id that an object has under a name; None if there is no valid one."""
    found = object_in(data).get(name)
    return found if isinstance(found, str) and TASK_ID.fullmatch(found) else None


# ─── envelopes and records ───────────────────────────────────────────────────────────────────────


def _wire(name: str, read: Callable[[Any], object]) -> dict[str, object]:
    """A field's name on the wire, and what reads its value or raises TypeError or ValueError."""
    return {"wire": override(rename=name, struct_hook=lambda value, _: read(value))}


@attrs.frozen(kw_only=True)
class Record:
    """What record-info says about a task.

    Attributes:
        params: the request as MidAPI stored it; may contain our callback URL.
        raw: the JSON object that the record was read from; may contain our callback URL.
        is_plain: whether it certainly contains no callback URL and no token.
        shown_at: when MidAPI's server sent it, by its own clock; a Date header, or None.
    """

    task_id: str = attrs.field(metadata=_wire("taskId", _task_id))
    task_type: str | None = attrs.field(default=None, metadata=_wire("taskType", _text))
    params: Mapping[str, object] = attrs.field(
        factory=dict, repr=False, metadata=_wire("paramJson", _params)
    )
    complete_time: datetime | None = attrs.field(
        default=None, metadata=_wire("completeTime", _time)
    )
    create_time: datetime | None = attrs.field(default=None, metadata=_wire("createTime", _time))
    nested_urls: tuple[str, ...] = attrs.field(
        default=(), metadata=_wire("resultInfoJson", _nested_urls)
    )
    result_urls: tuple[str, ...] = attrs.field(default=(), metadata=_wire("resultUrls", _urls))
    success_flag: int | None = attrs.field(default=None, metadata=_wire("successFlag", _whole))
    error_code: int | str | None = attrs.field(default=None, metadata=_wire("errorCode", _code))
    error_message: str | None = attrs.field(default=None, metadata=_wire("errorMessage", _text))
    # Not from MidAPI: whatever it may send under these names is replaced.
    raw: Mapping[str, object] = attrs.field(repr=False, metadata=_wire("raw", lambda it: it))
    is_plain: bool = attrs.field(metadata=_wire("is_plain", lambda it: it))
    shown_at: str | None = attrs.field(default=None, metadata=_wire("shown_at", lambda it: it))

    @property
    def status(self) -> TaskStatus:
        """By successFlag: 1 is success, 2 and 3 failure; 0, none and any other are generating."""
        if self.success_flag == 1:
            return TaskStatus.SUCCEEDED
        return TaskStatus.FAILED if self.success_flag in {2, 3} else TaskStatus.GENERATING


KNOWN_FLAGS = frozenset({None, 0, 1, 2, 3})

_ON_WIRE = {field.name: field.metadata["wire"] for field in attrs.fields(Record)}
_structure = make_dict_structure_fn(Record, Converter(), **_ON_WIRE)


def read_envelope(body: bytes) -> tuple[int, str | None, object]:
    """The code, the message and the data that every answer of MidAPI consists of.

    Raises:
        ProtocolError: the body is not an envelope of MidAPI's.
    """
    try:
        value = loads(body)
    except ValueError as error:
        excerpt = without_tokens(repr(bytes(body[:400]).decode("utf-8", "replace")))[:60]
        raise ProtocolError("body", f"is not JSON ({excerpt}): {_reason(error)}") from None
    if not isinstance(value, dict):
        raise ProtocolError("body", f"must be an object, is {described(value)}")
    message = value.get("msg")
    if not isinstance(message, str | None):
        raise ProtocolError("msg", f"must be a string, is {described(message)}")
    try:
        return _whole(value.get("code")), message, value.get("data")
    except (TypeError, ValueError) as error:
        raise ProtocolError("code", str(error)) from None


def read_record(
    data: object, *, is_plain: bool = False, shown_at: str | None = None
) -> Record | None:
    """A task's record from ``data``: an object, or a string that holds one; None for null.

    Args:
        data: the ``data`` of an answered look.
        is_plain: whether it certainly contains no callback URL and no token.
        shown_at: the Date header of the answer, if there is one.

    Raises:
        ProtocolError: naming the path of the value that is wrong.
    """
    try:
        value = loads(data or "null") if isinstance(data, str) else data
    except ValueError as error:
        raise ProtocolError("data", f"is not JSON: {_reason(error)}") from None
    if value is None:
        return None
    return _record(value, is_plain=is_plain, shown_at=shown_at)


def _record(value: object, *, is_plain: bool, shown_at: str | None = None) -> Record:
    """The record that a JSON object holds; null counts as missing."""
    if not isinstance(value, dict):
        raise ProtocolError("data", f"must be an object, is {described(value)}")
    given = {name: each for name, each in value.items() if each is not None}
    given |= {"raw": value, "is_plain": is_plain, "shown_at": shown_at}
    try:
        return _structure(given, Record)
    except ClassValidationError as error:
        problem, note = error.group_exceptions()[0][0]
    # Raised outside the handler: cattrs' errors would keep the values, with the token in them.
    path = f"data.{_ON_WIRE[note.name].rename}"
    if isinstance(problem, ProtocolError):  # of an object inside this one
        raise ProtocolError(f"{path}.{problem.path}", problem.problem)
    raise ProtocolError(path, "is missing" if isinstance(problem, KeyError) else str(problem))


def _reason(error: ValueError) -> str:
    """Why a text is not JSON, without quoting it."""
    return str(error).partition(":")[0][:80]


# ─── snapshots ───────────────────────────────────────────────────────────────────────────────────


def details_of(record: Record) -> TaskDetails:
    """The public snapshot of a record, without our callback URL, which is a secret."""
    if not record.is_plain:
        # Every field is read again from what is left, so that none can contain the secret. The task
        # id stays as it is: without it, what was paid for could not be found.
        raw = {**cast("JSONObject", without_callback(record.raw)), "taskId": record.task_id}
        return details_from_raw(raw)
    status, code = record.status, record.error_code
    return TaskDetails(
        task_id=record.task_id,
        task_type=readable(record.task_type, 100) or None,
        status=status,
        urls=record.nested_urls or record.result_urls if status is TaskStatus.SUCCEEDED else (),
        params=record.params,
        created_at=record.create_time,
        completed_at=None if status is TaskStatus.GENERATING else record.complete_time,
        error_code=(readable(code, 100) if isinstance(code, str) else code) or None,
        error_message=readable(record.error_message) or None,
        raw=record.raw,
    )


def details_from_raw(raw: Mapping[str, object]) -> TaskDetails:
    """The snapshot that has this ``TaskDetails.raw``, equal in every field.

    Raises:
        ProtocolError: it is not the ``raw`` of a snapshot.
    """
    return details_of(_record(dict(raw), is_plain=True))


def readable(text: str | None, limit: int = 500) -> str:
    """A text from outside, safe to print: short, one line, no tokens or control characters."""
    if not text:
        return ""
    text = without_tokens(text)
    clean = text[: limit * 2]
    if not clean.isprintable():
        clean = "".join(c if c.isprintable() else " " for c in clean)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


# ─── secrets ─────────────────────────────────────────────────────────────────────────────────────


def may_hold_secret(text: str) -> bool:
    """A cheap check whether a text may contain a callback URL or a token."""
    return "mjt_" in text or "\\u" in text or "back" in text.lower()  # an escape may hide anything


# callBackUrl, and other spellings: callbackurl, call_back_url, callback.
_CALLBACK = re.compile(r"call[-_ ]?back", re.IGNORECASE)


def without_callback(value: object, levels: int = 2) -> object:
    """A JSON value without any callback URL or token, also inside strings that hold JSON.

    Args:
        value: the JSON value.
        levels: how deep strings within strings are read; MidAPI sends one level.
    """
    if isinstance(value, dict):
        return {
            without_tokens(name): without_callback(each, levels) if each else each
            for name, each in value.items()
            if not ("back" in name.lower() and _CALLBACK.search(name))
        }
    if isinstance(value, list):
        return [without_callback(each, levels) for each in value]
    if not isinstance(value, str) or not may_hold_secret(value):
        return value
    found = _CALLBACK.search(value)
    # A text that is not JSON has no callback field to remove, but may contain a token.
    if (not found and "\\u" not in value) or value.lstrip()[:1] not in {"{", "[", '"'}:
        return without_tokens(value)
    if not levels:
        return "…"
    try:
        return without_tokens(compact(without_callback(loads(value), levels - 1)))
    except ValueError:
        # In broken JSON the end of the field cannot be found, so everything from it on is removed.
        return without_tokens(value[: found.start()] + "…" if found else value)
