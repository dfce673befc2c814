"""The rules of the wire as pure functions: build a call, interpret (status, headers, body).

Nothing here does I/O or waits. Which code means what is MidAPI's documented table, with what was
seen beside it (HTTP 200 around an error is common, so status and code are both judged).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, cast

import attrs

from ..errors import (
    APIError,
    InsufficientCreditsError,
    NotFoundError,
    PromptRejected,
    ProtocolError,
    TaskFailed,
    UnprocessableError,
    api_error,
)
from ..requests import ExtendVideo, Request, Upscale, Vary
from . import codec as _codec

if TYPE_CHECKING:
    from ..tasks import TaskDetails

GENERATE = "/api/v1/mj/generate"
RECORD_INFO = "/api/v1/mj/record-info"
DOWNLOAD_URL = "/api/v1/common/download-url"

_SUBMIT_PATHS: Mapping[type[Request], str] = {
    Upscale: "/api/v1/mj/generateUpscale",
    Vary: "/api/v1/mj/generateVary",
    ExtendVideo: "/api/v1/mj/generateVideoExtend",
}

# A submission that was answered with one of these was refused, whatever the HTTP status.
REFUSING_CODES = frozenset({400, 401, 402, 404, 422, 429, 433, 455, 501, 505})
# Refusals of the moment: the same submission may be taken later.
PASSING_CODES = frozenset({429, 455})


@attrs.frozen
class Call:
    """One request to MidAPI, ready to be sent.

    Attributes:
        method: "GET" or "POST".
        path: the path below the base URL, with its query.
        body: the JSON text, or None.
    """

    method: str
    path: str
    body: bytes | None = attrs.field(default=None, repr=False)  # holds the callback URL


@attrs.frozen
class Answer:
    """What came back, as far as it came.

    Attributes:
        status: the HTTP status.
        headers: the HTTP headers.
        body: the bytes that came.
        flaw: what cut the body short, in a few words; None if it is whole.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    flaw: str | None = None


class Unsure(Exception):
    """The answer to a submission neither names a task nor proves a refusal."""


# ─── calls ───────────────────────────────────────────────────────────────────────────────────────


def submit_call(request: Request, callback_url: str | None) -> Call:
    """The POST that buys what a request asks for."""
    path = _SUBMIT_PATHS.get(type(request), GENERATE)
    return Call("POST", path, _codec.submit_body(request, callback_url))


def look_call(task_id: str) -> Call:
    """The GET of a task's record."""
    return Call("GET", f"{RECORD_INFO}?taskId={task_id}")


def credits_call(path: str) -> Call:
    """The GET of the account's credits."""
    return Call("GET", path)


def download_url_call(url: str) -> Call:
    """The POST that makes a download link."""
    return Call("POST", DOWNLOAD_URL, _codec.dumps({"url": url}))


# ─── answers ─────────────────────────────────────────────────────────────────────────────────────


def interpret(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float | None = None
) -> object:
    """The ``data`` of a good answer.

    Args:
        status: the HTTP status.
        headers: the HTTP headers.
        body: the whole body.
        now: epoch seconds, for a Retry-After that is a date; the wall clock if None.

    Raises:
        APIError: MidAPI, or somebody before it, answered with an error.
        ProtocolError: the answer is not MidAPI's.
    """
    if 300 <= status <= 399:
        raise ProtocolError("status", f"is {status}, a redirect, which is never followed")
    try:
        envelope = _codec.read_envelope(body)
    except ProtocolError:
        if status < 400:
            raise
        raise _page_error(status, headers, "a page that is not MidAPI's", now) from None
    if envelope.code == 200 and status < 400:
        return envelope.data
    code = status if envelope.code == 200 else envelope.code
    raise _envelope_error(code, envelope, status, headers, now)


def _page_error(
    status: int, headers: Mapping[str, str], message: str, now: float | None = None
) -> APIError:
    wait = retry_after(headers, now)
    return api_error(status, message, status, own_envelope=False, retry_after=wait)


def _envelope_error(
    code: int,
    envelope: _codec.Envelope,
    status: int,
    headers: Mapping[str, str],
    now: float | None,
) -> APIError:
    message = _codec.readable(envelope.msg)
    if code == 500 and _tells_no_credits(message):
        return InsufficientCreditsError(code, message, status)
    return api_error(code, message, status, retry_after=retry_after(headers, now))


def _tells_no_credits(message: str) -> bool:
    """Once the text of code 402 was seen with code 500."""
    said = message.casefold()
    return "credits insufficient" in said or "current balance isn't enough" in said


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a Retry-After header asks for; None without one, and for garbage.

    RFC 9110 allows whole seconds and an HTTP date.
    """
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,12}", text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - (time.time() if now is None else now))


def proves_refusal(error: APIError) -> bool:
    """Whether an error that answered a submission proves that nothing was bought."""
    refused_by_status = 400 <= error.http_status <= 499 and error.http_status != 408
    return (
        refused_by_status
        or (error.own_envelope and error.code in REFUSING_CODES)
        or isinstance(error, InsufficientCreditsError)
    )


def may_pass(error: APIError) -> bool:
    """Whether a refused submission may be sent again later: 429 and 455."""
    return error.code in PASSING_CODES


def read_submit(answer: Answer) -> str:
    """The task id that answers a submission.

    A complete task id is the answer, even in a body that was cut after it, and even inside an HTTP
    error: it was paid for.

    Raises:
        APIError: a proof that nothing was bought.
        Unsure: nobody can know.
    """
    if answer.flaw is None:
        return _read_whole_submit(answer)
    if not 300 <= answer.status <= 399 and (task_id := _complete_task_id(answer.body)):
        return task_id
    error = _page_error(answer.status, answer.headers, f"the answer was cut ({answer.flaw})")
    if proves_refusal(error):
        raise error
    raise Unsure(answer.flaw)


def _read_whole_submit(answer: Answer) -> str:
    try:
        data = interpret(answer.status, answer.headers, answer.body)
    except APIError as error:
        if task_id := _bought_task_id(answer.body):
            return task_id  # code 200 inside an HTTP error
        if proves_refusal(error):
            raise
        raise Unsure(f"MidAPI answered {error.code} (HTTP {error.http_status})") from error
    except ProtocolError as error:
        raise Unsure(f"the answer is not MidAPI's: {error.path} {error.problem}") from error
    task_id = _codec.task_id_in(data)
    if task_id is None:
        raise Unsure("the answer names no task")
    return task_id


_CUT_ID = re.compile(rb'"taskId"\s*:\s*"([A-Za-z0-9_-]{1,128})"')
_CUT_CODE = re.compile(rb'"code"\s*:\s*"?(-?[0-9]+)["\s,}]')


def _complete_task_id(body: bytes) -> str | None:
    """The task id of a body that was cut after it.

    The body is closed behind the first complete id and read like any other, so that an id counts
    only where MidAPI puts it: not one that a proxy's page, or MidAPI itself, repeats from our own
    request. Any doubt, such as a second id, is None.
    """
    first = _CUT_ID.search(body)
    ids, codes = set(_CUT_ID.findall(body)), set(_CUT_CODE.findall(body))
    if first is None or len(ids) != 1 or codes != {b"200"}:
        return None
    return _bought_task_id(body[: first.end()] + b"}}")


def _bought_task_id(body: bytes) -> str | None:
    """The task id in an envelope with code 200, whatever the HTTP status says."""
    try:
        envelope = _codec.read_envelope(body)
    except ProtocolError:
        return None
    return _codec.task_id_in(envelope.data) if envelope.code == 200 else None


def read_look(answer: Answer, task_id: str) -> _codec.Found | None:
    """The record of a task with the data it was read from; None while MidAPI does not know it.

    Raises:
        APIError: MidAPI, or somebody before it, answered with an error.
        ProtocolError: the answer is not MidAPI's, or about another task.
    """
    try:
        data = read_data(answer)
    except (NotFoundError, UnprocessableError) as error:
        if error.own_envelope:
            return None  # also "recordInfo is null", for a task that is too new
        raise
    record = _codec.read_record(data)
    if record is None:
        return None
    if record.task_id != task_id:
        raise ProtocolError("data.taskId", f"names another task than {task_id}")
    return _codec.Found(record, data, is_plain=_codec.is_plain(answer.body))


def read_data(answer: Answer) -> object:
    """The ``data`` of a good, whole answer.

    Raises:
        APIError: MidAPI, or somebody before it, answered with an error.
        ProtocolError: the answer is cut, or not MidAPI's.
    """
    if answer.flaw is not None:
        raise ProtocolError("body", f"is cut short ({answer.flaw})")
    return interpret(answer.status, answer.headers, answer.body)


def read_credits(answer: Answer) -> float:
    """The account's credits.

    Raises:
        APIError: MidAPI, or somebody before it, answered with an error.
        ProtocolError: the answer is no number.
    """
    data = read_data(answer)
    if isinstance(data, int | float) and not isinstance(data, bool):
        with suppress(OverflowError):
            return float(data)
    raise ProtocolError("data", f"must be a number, is {_codec.described(data)}")


def read_url(answer: Answer) -> str:
    """A download link.

    Raises:
        APIError: MidAPI, or somebody before it, answered with an error.
        ProtocolError: the answer is no URL.
    """
    data = read_data(answer)
    if not _codec.is_url(data):
        raise ProtocolError("data", f"must be a URL, is {_codec.described(data)}")
    return cast("str", data)


# ─── callbacks ───────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Callback:
    """What is read of a callback; all else is read from record-info.

    Attributes:
        task_id: the task that it is about.
        is_acknowledgement: whether it only says that MidAPI has begun.
    """

    task_id: str
    is_acknowledgement: bool


def read_callback(body: bytes) -> Callback:
    """What a callback says.

    The task id may stand at ``data.taskId``, ``data.task_id``, ``taskId`` or ``task_id``. A good
    one that holds neither results nor a flag is the acknowledgement that comes before the real one.

    Raises:
        ProtocolError: it is no callback.
    """
    try:
        whole = _codec.loads(body)
    except ValueError:
        raise ProtocolError("body", "is no JSON") from None
    if not isinstance(whole, dict):
        raise ProtocolError("body", f"must be an object, is {_codec.described(whole)}")
    data = _codec.object_in(whole.get("data"))
    for place in (data, whole):
        for name in ("taskId", "task_id"):
            if (task_id := _codec.task_id_in(place, name)) is not None:
                return Callback(task_id, _is_acknowledgement(whole, data))
    raise ProtocolError("data.taskId", "is missing or no task id")


def _is_acknowledgement(whole: _codec.JSON, data: _codec.JSON) -> bool:
    told = {**whole, **data}
    results = ("resultUrls", "resultInfoJson", "successFlag")
    return whole.get("code", 200) in (200, "200") and not any(name in told for name in results)


# ─── tasks ───────────────────────────────────────────────────────────────────────────────────────

# No text of a moderation refusal is on record; these are what users' programs look for.
_MODERATION = ("nsfw", "moderat", "sensitive", "safety", "content policy", "violat", "prohibit",
               "banned")  # fmt: skip


def failure(details: TaskDetails) -> TaskFailed:
    """The error for a failed task."""
    said = (details.error_message or "").casefold()
    kind = PromptRejected if any(word in said for word in _MODERATION) else TaskFailed
    return kind(details.task_id, details)


# How much the clocks of MidAPI and of this machine may differ before a record does not fit.
CLOCK_SKEW = 300.0


def fits(
    record: _codec.Record,
    request: Request | None,
    *,
    callback_url_matches: bool | None,
    since: float,
) -> bool:
    """Whether a record can be what became of a submission whose answer was lost.

    Args:
        record: what record-info says.
        request: what was submitted; None if it is not kept.
        callback_url_matches: whether the record's callback URL is ours; None if it shows none.
        since: when it was submitted, in epoch seconds.
    """
    if callback_url_matches is not None:
        return callback_url_matches
    if record.create_time is not None and record.create_time.timestamp() < since - CLOCK_SKEW:
        return False
    return request is None or (_same_type(record, request) and _same_prompt(record, request))


def _same_type(record: _codec.Record, request: Request) -> bool:
    if isinstance(request, Upscale | Vary) or record.task_type is None:
        return True  # MidAPI does not document what it calls these two
    return record.task_type == _codec.task_type(request)


def _same_prompt(record: _codec.Record, request: Request) -> bool:
    ours, theirs = getattr(request, "prompt", None), record.params.get("prompt")
    if getattr(request, "enable_translation", False):
        return True  # MidAPI may have stored the translation
    return not isinstance(theirs, str) or ours is None or theirs.strip() == ours.strip()
