"""What MidAPI answers with: envelopes, and records of tasks.

Several shapes are accepted (other programs that use MidAPI handle each of these variants), but
types are strict: nothing is coerced. A value of a wrong type is an error that names its path if it
decides the outcome of a task: the task id, the flag, and the URLs of a success. Any other field
with a wrong type counts as missing, because it must not cost the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
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
    if value in ("", "null"):
        return None
    if isinstance(value, int) and abs(value) > _LARGEST:
        value = str(value)
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        return value
    return _whole(value)


# A guess: times without a zone are UTC+8 on a sister API of MidAPI. See `Record.created`.
_GUESSED_ZONE = timezone(timedelta(hours=8))
_FIRST_YEAR = 1971  # seconds that are taken for milliseconds are before it


def _time(value: object) -> datetime:
    """Epoch milliseconds, as MidAPI sends, also in a string; or an ISO string, as it documents."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=_GUESSED_ZONE)
    if isinstance(value, int) and not isinstance(value, bool):
        return datetime.fromtimestamp(value / 1000, UTC)
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


def _urls(value: object) -> tuple[list[str], list[str]]:
    """The URLs in a list of strings, of ``{"resultUrl": …}`` or of ``{"url": …}``.

    Returns:
        The URLs, and what is wrong with the other values.
    """
    if not isinstance(value, list):
        return [], [] if value is None else [f"must be a list, is {described(value)}"]
    urls, problems = [], []
    for index, each in enumerate(value):
        given = [each.get("resultUrl"), each.get("url")] if isinstance(each, dict) else [each]
        if (url := next(filter(is_http_url, given), None)) is not None:
            urls.append(url)
        else:
            problems.append(f"[{index}] is not a URL: {described(given[0])}")
    return urls, problems


def _result_urls(record: JSONObject) -> tuple[list[str], int, ProtocolError | None]:
    """The URLs of the result, from the first place that has any.

    They are under ``resultInfoJson``, directly in the record, or (older) under ``response``. Each
    of the outer two may be a string that holds the object.

    Returns:
        The URLs; how many others cannot be read; and if there is no URL, what is wrong, or None.
    """
    wrong: ProtocolError | None = None
    for name in ("resultInfoJson", None, "response"):
        path, outer = "data", record
        try:
            if name is not None:
                path, inner = f"data.{name}", record.get(name)
                outer = {} if inner in (None, "", "null") else _object(inner)
            path += ".resultUrls"
            urls, problems = _urls(outer.get("resultUrls"))
        except (TypeError, ValueError) as error:
            urls, problems = [], [str(error)]
        if urls:
            return urls, len(problems), None
        if problems and wrong is None and name != "response":  # few records have `response`
            wrong = ProtocolError(path, problems[0])
    return [], 0, wrong


def task_id_in(data: object, name: str = "taskId") -> str | None:
    """The task id that an object has under a name; None if there is no valid one."""
    found = object_in(data).get(name)
    return found if isinstance(found, str) and TASK_ID.fullmatch(found) else None


# ─── envelopes and records ───────────────────────────────────────────────────────────────────────


def _wire(
    name: str, read: Callable[[Any], object] = lambda value: value, *, decides: bool = False
) -> dict[str, object]:
    """A field's name on the wire, and what reads its value or raises TypeError or ValueError.

    In a field that does not decide the outcome, an unreadable value becomes None.
    """

    def read_or_none(value: object, _: object) -> object:
        try:
            return read(value)
        except (TypeError, ValueError, OverflowError, OSError):
            if decides:
                raise
            return None

    return {"wire": override(rename=name, struct_hook=read_or_none)}


@attrs.frozen(kw_only=True)
class Record:
    """What record-info says about a task.

    Attributes:
        params: the request as MidAPI stored it; may contain our callback URL.
        create_time: in UTC, or in a zone that is guessed; `created` is only for sure ones.
        urls: the result files.
        unreadable_urls: how many others could not be read.
        raw: the JSON object that the record was read from; may contain our callback URL.
        is_plain: whether it certainly contains no callback URL and no token.
        shown_at: when MidAPI's server sent it, by its own clock; a Date header, or None.
    """

    task_id: str = attrs.field(metadata=_wire("taskId", _task_id, decides=True))
    task_type: str | None = attrs.field(default=None, metadata=_wire("taskType", _text))
    params: Mapping[str, object] = attrs.field(
        factory=dict, repr=False, metadata=_wire("paramJson", object_in)
    )
    complete_time: datetime | None = attrs.field(
        default=None, metadata=_wire("completeTime", _time)
    )
    create_time: datetime | None = attrs.field(default=None, metadata=_wire("createTime", _time))
    success_flag: int | None = attrs.field(
        default=None, metadata=_wire("successFlag", _whole, decides=True)
    )
    error_code: int | str | None = attrs.field(default=None, metadata=_wire("errorCode", _code))
    error_message: str | None = attrs.field(default=None, metadata=_wire("errorMessage", _text))
    # Not from MidAPI: whatever it may send under these names is replaced.
    urls: tuple[str, ...] = attrs.field(metadata=_wire("urls"))
    unreadable_urls: int = attrs.field(metadata=_wire("unreadable_urls"))
    raw: Mapping[str, object] = attrs.field(repr=False, metadata=_wire("raw"))
    is_plain: bool = attrs.field(metadata=_wire("is_plain"))
    shown_at: str | None = attrs.field(default=None, metadata=_wire("shown_at"))

    @property
    def status(self) -> TaskStatus:
        """By successFlag: 1 is success, 2 and 3 failure; 0, none and any other are generating."""
        if self.success_flag == 1:
            return TaskStatus.SUCCEEDED
        return TaskStatus.FAILED if self.success_flag in {2, 3} else TaskStatus.GENERATING

    @property
    def created(self) -> float | None:
        """When the task was created, in epoch seconds; None if that is not sure."""
        moment = self.create_time
        if moment is None or moment.tzinfo is not UTC or moment.year < _FIRST_YEAR:
            return None
        return moment.timestamp()


KNOWN_FLAGS = frozenset({None, 0, 1, 2, 3})

_ON_WIRE = {field.name: field.metadata["wire"] for field in attrs.fields(Record)}
_structure = make_dict_structure_fn(Record, Converter(), **_ON_WIRE)


def read_envelope(body: bytes, *, is_strict: bool = True) -> tuple[int, str | None, object]:
    """The code, the message and the data that every answer of MidAPI consists of.

    Args:
        body: of the answer.
        is_strict: whether a message that is no string is an error; else it counts as missing.

    Raises:
        ProtocolError: the body is not an envelope of MidAPI's.
    """
    try:
        value = loads(body)
    except ValueError as error:
        excerpt = without_tokens(repr(bytes(body[:400]).decode("utf-8", "replace")))[:60]
        path = "object" if body.lstrip()[:1] == b"{" else "body"  # else a foreign page
        raise ProtocolError(path, f"is not JSON ({excerpt}): {_reason(error)}") from None
    if not isinstance(value, dict):
        raise ProtocolError("body", f"must be an object, is {described(value)}")
    message = value.get("msg")
    if not isinstance(message, str | None):
        if is_strict:
            raise ProtocolError("msg", f"must be a string, is {described(message)}")
        message = None
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
    urls, unreadable, wrong = _result_urls(given)
    given |= {"urls": tuple(urls), "unreadable_urls": unreadable}
    given |= {"raw": value, "is_plain": is_plain, "shown_at": shown_at}
    try:
        record = _structure(given, Record)
    except ClassValidationError as error:
        problem, note = error.group_exceptions()[0][0]
    else:
        if wrong is None or record.status is not TaskStatus.SUCCEEDED:
            return record
        raise wrong
    # Raised outside the handler: cattrs' errors would keep the values, with the token in them.
    path = f"data.{_ON_WIRE[note.name].rename}"
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
        urls=record.urls if status is TaskStatus.SUCCEEDED else (),
        params=record.params,
        created_at=_in_utc(record.create_time),
        completed_at=None if status is TaskStatus.GENERATING else _in_utc(record.complete_time),
        error_code=(readable(code, 100) if isinstance(code, str) else code) or None,
        error_message=readable(record.error_message) or None,
        raw=record.raw,
    )


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment and moment.astimezone(UTC)


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
