"""The rules of the wire as pure functions: build a call, read an answer.

Nothing here does I/O or waits. What a code means follows MidAPI's documented table and what was
observed: errors often come with HTTP 200, so both the HTTP status and the envelope's code count.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeGuard, cast

import attrs
from yarl import URL

from .._runtime.urls import is_http_url, url_problem
from ..errors import (
    APIError,
    BadRequestError,
    GenerationFailedError,
    InsufficientCreditsError,
    MaintenanceError,
    NotFoundError,
    PromptRefusedError,
    PromptRejected,
    ProtocolError,
    RateLimitError,
    TaskFailed,
    TransportError,
    UnprocessableError,
    api_error,
)
from ..requests import ExtendVideo, Request, Upscale, Vary, prompt_of
from ..tasks import TaskDetails, TaskStatus
from .bodies import submit_body, task_type
from .json import loads
from .records import (
    Record,
    described,
    details_from_raw,
    may_hold_secret,
    object_in,
    read_envelope,
    read_record,
    readable,
    task_id_in,
)

if TYPE_CHECKING:
    from aiohttp.payload import Payload

GENERATE = "/api/v1/mj/generate"
RECORD_INFO = "/api/v1/mj/record-info"
DOWNLOAD_URL = "/api/v1/common/download-url"
UPLOAD_FILE, UPLOAD_URL = "/api/file-stream-upload", "/api/file-url-upload"

_SUBMIT_PATHS: Mapping[type[Request], str] = {
    Upscale: "/api/v1/mj/generateUpscale",
    Vary: "/api/v1/mj/generateVary",
    ExtendVideo: "/api/v1/mj/generateVideoExtend",
}

# MidAPI's codes for a submission that was refused, whatever the HTTP status; see `proves_refusal`.
REFUSING_CODES = frozenset({400, 401, 402, 404, 422, 429, 433, 455, 501, 505})


@attrs.frozen
class Call:
    """One request to MidAPI, ready to be sent.

    Attributes:
        method: "GET" or "POST".
        path: the path below the base URL, with its query.
        body: the JSON text, or None.
        is_paid: whether it costs money; such a call gets a connection of its own.
        form: a body that is read from a file while it is sent, or None.
    """

    method: str
    path: str
    body: bytes | None = attrs.field(default=None, repr=False)  # holds the callback URL
    is_paid: bool = False
    form: Payload | None = attrs.field(default=None, repr=False)


@attrs.frozen
class Answer:
    """What came back for a call.

    Attributes:
        status: the HTTP status.
        headers: the HTTP headers.
        body: the bytes that arrived.
        flaw: what cut the body short, in a few words; None if it is complete.
        session: the HTTP session over which it came, for `Transport.replace`.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    flaw: str | None = None
    session: object = attrs.field(default=None, repr=False, eq=False)


class AnotherTask(ProtocolError):
    """An answer, or a record, is about another task than the one that was asked for."""


class Unsure(Exception):
    """The answer to a submission neither names a task nor proves a refusal."""


# ─── calls ───────────────────────────────────────────────────────────────────────────────────────


def submit_call(request: Request, callback_url: str | None) -> Call:
    """The POST that buys what a request asks for."""
    path = _SUBMIT_PATHS.get(type(request), GENERATE)
    return Call("POST", path, submit_body(request, callback_url), is_paid=True)


# ─── errors ──────────────────────────────────────────────────────────────────────────────────────


def _error_in(answer: Answer, code: int | None = None, message: str | None = None) -> APIError:
    """The error that an answer means; an answer without MidAPI's own code is not from MidAPI."""
    status, wait = answer.status, retry_after(answer.headers)
    # A code of 200 does not belong to an error status, so only the status counts.
    if code is None or code == 200:
        message = f"the answer was cut ({answer.flaw})" if answer.flaw else page_of(answer)
        return api_error(status, message, status, own_envelope=False, retry_after=wait)
    message = readable(message)
    words = message.casefold()
    # MidAPI was seen to send the text of code 402 with code 500.
    no_credits = ("credits insufficient", "current balance isn't enough")
    if code == 500 and any(text in words for text in no_credits):
        return InsufficientCreditsError(code, message, status)
    return api_error(code, message, status, retry_after=wait)


LONGEST_RETRY_AFTER = 120.0  # seconds; a longer Retry-After is not waited for


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for; None if it is missing or malformed.

    RFC 9110 allows whole seconds and an HTTP date. A date is compared with the server's own clock,
    in its Date header, since ours may be wrong.

    Args:
        headers: of the answer.
    """
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,12}", text):
        return float(text)
    moment, now = server_time(text), server_time(headers.get("Date"))
    return None if moment is None else max(0.0, moment - (time.time() if now is None else now))


def server_time(text: str | None) -> float | None:
    """Epoch seconds of an HTTP date, as in the Date header; None if it is missing or malformed."""
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def is_challenge(headers: Mapping[str, str]) -> bool:
    """Whether a CDN has stopped a request that it took for a robot's; MidAPI never saw it.

    https://developers.cloudflare.com/cloudflare-challenges/challenge-types/challenge-pages/detect-response/
    """
    return "cf-mitigated" in headers


def page_of(answer: Answer) -> str:
    """An answer that is not MidAPI's in a few words: where it comes from, and its title."""
    if is_challenge(answer.headers):
        return "a challenge page of Cloudflare, which wants to see a browser"
    what = "a page that is not MidAPI's"
    if server := readable(answer.headers.get("Server"), 40):
        what += f", of {server}"
    if found := _TITLE.search(answer.body[:20_000]):
        title = html.unescape(found[1].decode("utf-8", "replace"))
        what += f", titled {readable(' '.join(title.split()), 80)!r}"
    return what


def _redirect_of(answer: Answer) -> str:
    """A redirect in a few words; its whole address may contain secrets."""
    host = None
    with suppress(ValueError):
        host = URL(answer.headers.get("Location", "")).host
    to = f" to {readable(host, 60)}" if host else ""
    return f"a redirect{to}, which is never followed"


_TITLE = re.compile(rb"<title[^>]*>([^<]{1,1000})", re.IGNORECASE)


def proves_refusal(error: APIError, headers: Mapping[str, str]) -> bool:
    """Whether an error that answered a submission proves that nothing was bought.

    MidAPI's own envelope proves it. The page of a proxy, a firewall or a portal does not: some of
    them read MidAPI's answer first, and then replace it. Exceptions are answers that are given
    before a request is processed: 401, 407, 429, and a CDN's challenge.
    """
    if error.own_envelope:
        return error.code in REFUSING_CODES or isinstance(error, InsufficientCreditsError)
    return error.http_status in {401, 407, 429} or (
        400 <= error.http_status <= 499 and is_challenge(headers)
    )


def is_retryable(error: APIError | TransportError) -> TypeGuard[RateLimitError | MaintenanceError]:
    """Whether a refused submission may be sent again later: after 429 and 455.

    A 429 that MidAPI did not write must say when, in a Retry-After.
    """
    if not isinstance(error, RateLimitError | MaintenanceError):
        return False
    return error.own_envelope or error.retry_after is not None


def is_foreign_page(error: BaseException | None) -> bool:
    """Whether something between us and MidAPI has answered with a 4xx page, not asking to wait."""
    return (
        isinstance(error, APIError)
        and not error.own_envelope
        and 400 <= error.http_status <= 499
        and not is_retryable(error)
    )


# ─── answers ─────────────────────────────────────────────────────────────────────────────────────


def read_submit(answer: Answer) -> str:
    """The task id that answers a submission.

    Raises:
        APIError: a proof that nothing was bought.
        Unsure: it cannot be known whether something was bought.
    """
    # A redirect is never followed, and its body does not come from MidAPI.
    if 300 <= answer.status <= 399:
        raise Unsure(f"the answer is {_redirect_of(answer)} (HTTP {answer.status})")

    # A body that was cut short: end it after its first complete task id and read it like any other.
    # So an id counts only where MidAPI puts it, and not where a proxy's page or MidAPI repeats our
    # own request. With a second id, or a code other than 200, nothing of the body is read.
    body = answer.body
    if answer.flaw is not None:
        first = _CUT_ID.search(body)
        ids, codes = set(_CUT_ID.findall(body)), set(_CUT_CODE.findall(body))
        is_clear = first is not None and len(ids) == 1 and codes == {b"200"}
        body = body[: first.end()] + b"}}" if first is not None and is_clear else b""

    code = message = data = None
    try:
        code, message, data = read_envelope(body)
    except ProtocolError as unread:
        # A page that is not MidAPI's, with a good status: from a portal, a login or a proxy.
        if answer.flaw is None and answer.status < 400:
            raise Unsure(f"{page_of(answer)} came (HTTP {answer.status})") from unread

    if code == 200:
        # Accepted and paid for, even if a proxy changed the HTTP status into an error.
        if (task_id := task_id_in(data)) is not None:
            return task_id
        if answer.flaw is None and answer.status < 400:
            raise Unsure("the answer names no task")

    # Everything else is an error. If the body was cut short, only the HTTP status counts.
    error = _error_in(answer, code, message) if answer.flaw is None else _error_in(answer)
    if proves_refusal(error, answer.headers):
        if error.code in {400, 422, 501} and is_moderation(error.message):
            raise PromptRefusedError(error.code, error.message, error.http_status)
        raise error
    reason = f"MidAPI answered {error.code} (HTTP {error.http_status})"
    if not error.own_envelope:
        reason = answer.flaw or f"{error.message} came (HTTP {error.http_status})"
    raise Unsure(reason) from error


_CUT_ID = re.compile(rb'"taskId"\s*:\s*"([A-Za-z0-9_-]{1,128})"')
_CUT_CODE = re.compile(rb'"code"\s*:\s*"?(-?[0-9]+)["\s,}]')


def read_data(answer: Answer) -> object:
    """The ``data`` of a complete answer without an error; not for submissions.

    Raises:
        APIError: MidAPI, or a proxy in between, answered with an error.
        ProtocolError: the answer was cut short, or is not MidAPI's.
    """
    data, error = _opened(answer)
    if error is not None:
        raise error
    return data


def _opened(answer: Answer) -> tuple[object, APIError | None]:
    """The ``data`` of a complete answer, and the error that its code or status means, or None."""
    if answer.flaw is not None:
        raise ProtocolError("body", f"is cut short ({answer.flaw})")
    if 300 <= answer.status <= 399:
        raise ProtocolError("status", f"is {answer.status}, {_redirect_of(answer)}")
    try:
        code, message, data = read_envelope(answer.body, is_strict=False)
    except ProtocolError:
        if answer.status >= 400:
            return None, _error_in(answer)
        if is_challenge(answer.headers) or _TITLE.search(answer.body[:20_000]):
            raise ProtocolError("body", f"is {page_of(answer)}") from None
        raise
    if code == 200 and answer.status < 400:
        return data, None
    return data, _error_in(answer, code, message)


def read_look(answer: Answer, task_id: str) -> Record | None:
    """The record of a task; None while MidAPI does not know it.

    A record that shows how the task ended counts, whatever the code around it says. MidAPI's
    sister APIs answer looks at failed tasks with an error's code, and its text is the reason.

    Raises:
        APIError: MidAPI, or a proxy in between, answered with an error.
        ProtocolError: the answer is not MidAPI's; `AnotherTask` if it is about another task.
    """
    data, error = _opened(answer)
    is_plain = not may_hold_secret(answer.body.decode("latin-1"))
    shown_at = answer.headers.get("Date")
    record: Record | None = None
    try:
        record = read_record(data, is_plain=is_plain, shown_at=shown_at)
    except ProtocolError:
        if error is None:
            raise
        # An error's data may be anything.
    if record is not None and record.task_id != task_id:
        raise AnotherTask("data.taskId", f"names another task than {task_id}")
    if error is None:
        return record
    if record is not None:
        if record.status is TaskStatus.SUCCEEDED and record.urls:
            return record
        # An HTTP status of 501 around MidAPI's code 200 comes from a proxy: it says nothing.
        is_code_501 = error.own_envelope and isinstance(error, GenerationFailedError)
        if record.status is TaskStatus.FAILED or is_code_501:
            raw = _with_reason(record, error)
            return read_record(raw, is_plain=is_plain, shown_at=shown_at)
    if error.own_envelope and (
        isinstance(error, NotFoundError)
        or (
            isinstance(error, BadRequestError | UnprocessableError)
            and _UNKNOWN_TASK.search(error.message)
        )
    ):
        return None
    raise error


# 422 "recordInfo is null" is MidAPI's answer for a task that is too new.
_UNKNOWN_TASK = re.compile(
    r"recordinfo is null|\btask (id )?((is|was) )?(not (found|exist)|does(n.t| not) exist)",
    re.IGNORECASE,
)


def _with_reason(record: Record, error: APIError) -> dict[str, object]:
    """The raw record of a failed task, with the code and the text of the error around it."""
    raw = dict(record.raw)
    if record.status is not TaskStatus.FAILED:
        raw["successFlag"] = 3
    if error.own_envelope:  # else its text describes a page that MidAPI did not write
        raw["errorCode"] = record.error_code or error.code
        raw["errorMessage"] = record.error_message or error.message
    return raw


def failed_details(task_id: str, error: APIError) -> TaskDetails:
    """The details of a failed task for which MidAPI shows no record, only this error."""
    said = {"errorCode": error.code, "errorMessage": error.message}
    return details_from_raw({"taskId": task_id, "successFlag": 3, **said})


def read_credits(answer: Answer) -> float:
    """The account's credits.

    Raises:
        APIError: MidAPI, or a proxy in between, answered with an error.
        ProtocolError: the answer is not a number.
    """
    data = read_data(answer)
    if isinstance(data, int | float) and not isinstance(data, bool):
        with suppress(OverflowError):
            return float(data)
    raise ProtocolError("data", f"must be a number, is {described(data)}")


def read_url(answer: Answer) -> str:
    """A download link.

    Raises:
        APIError: MidAPI, or a proxy in between, answered with an error.
        ProtocolError: the answer is not a URL.
    """
    data = read_data(answer)
    if not is_http_url(data):
        raise ProtocolError("data", f"must be a URL, is {described(data)}")
    return data


def read_upload(answer: Answer) -> str:
    """The URL of a file that was uploaded.

    kie's documentation shows it as ``downloadUrl`` and, on another page, as ``fileUrl``.

    Raises:
        APIError: the server, or a proxy in between, answered with an error.
        ProtocolError: the answer is no success with a URL.
    """
    data = object_in(read_data(answer))
    whole = object_in(answer.body.decode("utf-8", "replace"))
    if whole.get("success", True) is not True:
        reason = readable(str(whole.get("msg") or "no reason given"), 200)
        raise ProtocolError("success", f"is not true: {reason}")
    url = data.get("downloadUrl") or data.get("fileUrl")
    if problem := url_problem(url):
        raise ProtocolError("data.downloadUrl", problem)
    return cast("str", url)


# ─── callbacks ───────────────────────────────────────────────────────────────────────────────────


@attrs.frozen
class Callback:
    """The part of a callback that is used; everything else comes from record-info.

    Attributes:
        task_id: the task that it is about.
        is_acknowledgement: whether it only says that MidAPI has begun.
    """

    task_id: str
    is_acknowledgement: bool


def read_callback(body: bytes) -> Callback:
    """Read a callback's body.

    The task id may be at ``data.taskId``, ``data.task_id``, ``taskId`` or ``task_id``. A callback
    with code 200 and neither results nor a flag is the acknowledgement that MidAPI sends first.

    Raises:
        ProtocolError: it is not a callback.
    """
    try:
        whole = loads(body)
    except ValueError:
        raise ProtocolError("body", "is not JSON") from None
    if not isinstance(whole, dict):
        raise ProtocolError("body", f"must be an object, is {described(whole)}")
    data = object_in(whole.get("data"))
    ids = (task_id_in(each, name) for each in (data, whole) for name in ("taskId", "task_id"))
    task_id = next(filter(None, ids), None)
    if task_id is None:
        raise ProtocolError("data.taskId", "is missing or not a task id")
    results = {"resultUrls", "resultInfoJson", "successFlag"} & {*whole, *data}
    is_good = whole.get("code", 200) in (200, "200")
    return Callback(task_id, is_acknowledgement=is_good and not results)


# ─── tasks ───────────────────────────────────────────────────────────────────────────────────────

# Only one text of MidAPI's moderation was observed, for a refused submission: "Your prompt was
# flagged by Website as violating content policies". Other programs search for these words.
_MODERATION = re.compile(
    "nsfw|moderat|(?<!case[ -])sensitive|safety|content polic|violat|prohibit|banned|flagged",
    re.IGNORECASE,
)


def is_moderation(text: str) -> bool:
    """Whether an error's text says that moderation refused the prompt or the picture."""
    return _MODERATION.search(text) is not None


def failure(details: TaskDetails) -> TaskFailed:
    """The error for a failed task."""
    kind = PromptRejected if is_moderation(details.error_message or "") else TaskFailed
    return kind(details.task_id, details)


CLOCK_SKEW = 300.0  # seconds by which MidAPI's clock and this machine's may differ


def fits(
    record: Record,
    request: Request | None,
    *,
    callback_url_matches: bool | None,
    since: float,
) -> bool:
    """Whether a record can belong to a submission whose answer was lost.

    Args:
        record: what record-info says.
        request: what was submitted; None if it was not stored.
        callback_url_matches: whether the record's callback URL is ours; None if it has none.
        since: when it was submitted, in epoch seconds.
    """
    # If the record has a callback URL, that decides: the token in ours cannot be guessed.
    if callback_url_matches is not None:
        return callback_url_matches
    if record.created is not None and record.created < since - CLOCK_SKEW:
        return False
    # MidAPI does not document the task types of upscales and variations. The prompt is not
    # compared: MidAPI may have stored it with other blanks, dashes or flags, translated or cut.
    if request is None or record.task_type is None or isinstance(request, Upscale | Vary):
        return True
    return record.task_type == task_type(request)


def has_other_prompt(record: Record, request: Request | None) -> bool:
    """Whether a record shows another prompt than was submitted, as far as both are known."""
    ours, theirs = prompt_of(request), record.params.get("prompt")
    return isinstance(ours, str) and isinstance(theirs, str) and theirs.strip() != ours.strip()
