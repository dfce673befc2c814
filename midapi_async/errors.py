"""Everything that can go wrong, one tree.

    MidAPIError
    ├── InvalidRequestError (ValueError)   an argument or a setting is wrong
    │   └── KeyConflict                    the key belongs to another request
    ├── APIError                           MidAPI answered with an error
    │   ├── BadRequestError 400            ├── RateLimitError 429
    │   │   └── PromptRefusedError         ├── SpendingCapError 433
    │   ├── AuthenticationError 401        ├── MaintenanceError 455
    │   ├── InsufficientCreditsError 402   ├── ServerError 500, other 5xx
    │   ├── NotFoundError 404              ├── GenerationFailedError 501
    │   ├── UnprocessableError 422         └── FeatureDisabledError 505
    ├── TransportError                     no answer came from MidAPI
    ├── ProtocolError                      the server's answer is not MidAPI's
    ├── SubmissionUnknown                  it cannot be known whether a submission was accepted
    ├── TaskError                          one task has no result
    │   ├── TaskFailed
    │   │   └── PromptRejected
    │   ├── TaskNotFound
    │   ├── TaskExpired
    │   └── ResultMissing
    ├── WaitTimeout (TimeoutError)         the wait timed out; the task goes on
    ├── ReceiverError                      callbacks cannot be received
    ├── JournalError                       the journal cannot be read or written
    ├── DownloadError                      a result file could not be fetched
    │   ├── ResultExpired
    │   └── UnexpectedContent
    └── ClientClosed                       the client was closed

If ``generate`` raises a ``MidAPIError``, nothing was bought, except for ``SubmissionUnknown``,
``TaskExpired``, and a ``WaitTimeout`` or ``ClientClosed`` with an ``intent_id``.

Each class keeps the facts it was made from in ``args`` (attrs does that), so that errors can be
pickled, and builds its text from them. `InvalidRequestError`, `ReceiverError`, `JournalError` and
`DownloadError` get the part that says what is wrong from the code that raises them.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .tasks import TaskDetails


def shown(value: object, limit: int = 60) -> str:
    """A wrong value for an error's text: its `repr`, cut, on one line, without a callback token."""
    try:
        return re.sub(r"mjt_[A-Za-z0-9_-]{16,}", "mjt_…", repr(value))[:limit]
    except Exception:  # noqa: BLE001 - an int of 5,000 digits, or a class whose repr has a bug
        return f"a {type(value).__name__} that cannot be shown"


def process_of(number: int | None, host: str | None = None) -> str:
    """What to call a process: "process 4711", or "process 4711 on web-2"."""
    return f"process {number or '?'}{f' on {host}' if host else ''}"


class MidAPIError(Exception):
    """The base of every error that this package raises on purpose.

    Attributes:
        key: the user's own name for the request, if the call knows it.
        intent_id: the id of the submission in the journal, if the call knows it.
        task_id: the id of the task, if the call knows it; then the task was bought.
    """

    key: str | None = None
    intent_id: str | None = None
    task_id: str | None = None

    def __str__(self) -> str:
        """What happened and what to do, and the names that this text does not contain."""
        text, names = self._text(), []
        if self.task_id is not None and not _is_in(self.task_id, text):
            names.append(f"task {self.task_id}")
        if self.intent_id is not None and not _is_in(self.intent_id, text):
            names.append(f"intent {self.intent_id}")
        if self.key is not None and shown(self.key, 220) not in text:
            names.append(f"key {shown(self.key, 220)}")
        return f"{text} ({', '.join(names)})" if names else text

    def _text(self) -> str:
        return super().__str__()

    def _unaffected(self) -> str:
        """For the error of a look: a sentence that its task goes on."""
        return "" if self.task_id is None else f" Task {self.task_id} is not affected by it."


def _is_in(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def about(
    error: MidAPIError,
    *,
    key: str | None = None,
    intent_id: str | None = None,
    task_id: str | None = None,
) -> MidAPIError:
    """The error, with the names that it does not have yet."""
    for name, value in (("key", key), ("intent_id", intent_id), ("task_id", task_id)):
        if value is not None and getattr(error, name) is None:
            setattr(error, name, value)
    return error


@contextmanager
def naming(**names: str | None) -> Iterator[None]:
    """Call `about` with these names and an error that the block raises."""
    try:
        yield
    except MidAPIError as error:
        about(error, **names)
        raise


class InvalidRequestError(MidAPIError, ValueError):
    """An argument or a setting is wrong. Nothing was sent.

    Attributes:
        problems: what is wrong and what to do, by the name of the field.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__(dict(problems))
        self.problems: dict[str, str] = dict(problems)

    def _text(self) -> str:
        return "; ".join(
            f"{field if field.isprintable() else shown(field)}: {problem}"
            for field, problem in self.problems.items()
        )


class KeyConflict(InvalidRequestError):
    """The key was used before, for another request. Nothing was sent."""

    def __init__(self, key: str) -> None:
        problem = (
            f"{key!r} was used for another request; a different request needs a key of its own"
        )
        super().__init__({"key": problem})
        self.args = (key,)
        self.key = key


@attrs.define(slots=False)
class APIError(MidAPIError):
    """MidAPI answered with an error.

    Attributes:
        code: the ``code`` of MidAPI's envelope, or the HTTP status where there was no envelope.
        message: MidAPI's own text, shortened, without secrets; may be empty.
        http_status: the HTTP status; 200 for most of MidAPI's errors.
        own_envelope: False for a page that MidAPI did not write (a proxy, a login page).
    """

    advice: ClassVar[str] = "MidAPI does not document this code; ask their support"
    # Replaces the advice in the answer to a look, because the task was bought in any case.
    look_advice: ClassVar[str] = "which is not affected by it. Look again later"

    code: int
    message: str = ""
    http_status: int = 200
    own_envelope: bool = True

    def _text(self) -> str:
        if not self.own_envelope:
            what = self.message or "a page that is not MidAPI's"
            return (
                f"HTTP {self.http_status} came from something between here and MidAPI: {what}. "
                f"Check the base URL, and any proxy or firewall.{self._unaffected()}"
            )
        status = f" (HTTP {self.http_status})" if self.http_status not in (200, self.code) else ""
        said = f": {self.message.rstrip('. ')}" if self.message else ""
        advice = self.advice
        if self.task_id is not None:
            advice = f"It answered a look at task {self.task_id}, {self.look_advice}"
        return f"MidAPI answered {self.code}{status}{said}. {advice}."


class BadRequestError(APIError):
    """400: a field is missing or wrong; or, as the answer to a look, the task has failed."""

    advice = "Correct the field that this message names"
    look_advice = (
        "which was bought. If MidAPI goes on to answer so for two minutes, the task has failed: "
        "await its handle to find out"
    )


class PromptRefusedError(BadRequestError):
    """400, 422 or 501: moderation refused the prompt or the picture. Nothing was bought.

    If moderation rejects them after the task was accepted, that is `PromptRejected`.
    """

    advice = "Nothing was bought. Change the prompt or the picture; the same is refused again"


class AuthenticationError(APIError):
    """401: the API key is missing, wrong or revoked."""

    advice = "Check the API key (MIDAPI_API_KEY) and that it belongs to this base URL"
    look_advice = f"which is not affected by it. {advice}"


class InsufficientCreditsError(APIError):
    """402: the account has too few credits."""

    advice = "Top up the account, then try again"


class NotFoundError(APIError):
    """404: MidAPI does not know the path or the task."""

    advice = "Check the base URL, and the task id or URL that was sent"


class UnprocessableError(APIError):
    """422: MidAPI refused a value; or, as the answer to a look, the task has failed."""

    advice = "Correct the value that this message names"
    look_advice = BadRequestError.look_advice


@attrs.define(slots=False)
class RateLimitError(APIError):
    """429: the account has made too many requests.

    Attributes:
        retry_after: seconds that MidAPI asks to wait; None if it did not say.
    """

    advice = "Wait, then try again; MidAPI accepts 20 submissions in 10 s from one account"
    look_advice = "which is not affected by it. Wait, then look again"

    code: int = 429
    message: str = ""
    http_status: int = 200
    own_envelope: bool = True
    retry_after: float | None = None

    def _text(self) -> str:
        if self.retry_after is None:
            return super()._text()
        return f"{super()._text()} It asks to wait {self.retry_after:g} s."


class SpendingCapError(APIError):
    """433: the API key has reached its spending cap."""

    advice = "Raise the cap of this key, or use another one"


class MaintenanceError(APIError):
    """455: MidAPI is under maintenance.

    Attributes:
        retry_after: seconds that MidAPI asks to wait; None if it did not say.
    """

    advice = "Try again later"
    retry_after: float | None = None


class ServerError(APIError):
    """500, and every other 5xx without its own class."""

    advice = "The error is on MidAPI's side; try again later"


class GenerationFailedError(APIError):
    """501: MidAPI could not start the generation; or, as the answer to a look, it has failed."""

    advice = "Try again, or change the request"
    look_advice = (
        "which was bought, and says that it has failed. Await its handle to be sure; a new try "
        "needs a new key"
    )


class FeatureDisabledError(APIError):
    """505: MidAPI has switched the feature off."""

    advice = "Use another kind of request until MidAPI enables it again"


_BY_CODE: dict[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientCreditsError,
    404: NotFoundError,
    422: UnprocessableError,
    429: RateLimitError,
    433: SpendingCapError,
    455: MaintenanceError,
    501: GenerationFailedError,
    505: FeatureDisabledError,
}


def api_error(
    code: int,
    message: str,
    http_status: int,
    *,
    own_envelope: bool = True,
    retry_after: float | None = None,
) -> APIError:
    """The error for one of MidAPI's codes; `APIError` itself for a code that is not documented."""
    kind = _BY_CODE.get(code, ServerError if 500 <= code <= 599 else APIError)
    error = kind(code, message, http_status, own_envelope=own_envelope)
    if isinstance(error, RateLimitError | MaintenanceError):
        error.retry_after = retry_after
    return error


@attrs.define(slots=False)
class TransportError(MidAPIError):
    """No answer came from MidAPI.

    Attributes:
        reason: what happened, in a few words.
        sent: whether any part of the request may have reached the network.
        permanent: whether a retry is useless, as with a wrong certificate.
        timed_out: whether the timeout of the request passed.
        advice: what to do.
    """

    reason: str
    sent: bool = False
    permanent: bool = False
    timed_out: bool = False
    advice: str = "Check the network and the base URL"

    def _text(self) -> str:
        is_unsent = self.intent_id is not None and self.task_id is None and not self.sent
        bought = " Nothing was bought." if is_unsent else ""
        return (
            f"MidAPI could not be reached: {self.reason.rstrip('. ')}.{bought} {self.advice}."
            f"{self._unaffected()}"
        )


@attrs.define(slots=False)
class ProtocolError(MidAPIError):
    """The server's answer is not one that MidAPI would give.

    Attributes:
        path: the part of the answer that is wrong, as in ``data.successFlag``; ``body`` for all.
        problem: what is wrong with that part.
    """

    path: str
    problem: str

    def _text(self) -> str:
        return (
            f"The server's answer is not MidAPI's: {self.path} {self.problem}. "
            f"Check the base URL, and any proxy in between.{self._unaffected()}"
        )


@attrs.define(slots=False)
class SubmissionUnknown(MidAPIError):
    """It cannot be known whether MidAPI accepted a submission. It is not sent again by itself.

    Attributes:
        intent_id: the submission's id in the journal, for ``client.intents``.
        key: the user's own name for it, or None.
        can_settle: whether a callback may still show that it was accepted (there is a receiver).
        reason: what happened to the answer, in a few words.
        candidates: the ids of tasks that callbacks have named for it and whose records could not
            be read yet; the client looks at them again.
    """

    intent_id: str
    key: str | None = None
    can_settle: bool = False
    reason: str = ""
    candidates: tuple[str, ...] = ()

    def _text(self) -> str:
        named = f"intent {self.intent_id}" + (f", key {self.key!r}" if self.key else "")
        why = f": {self.reason.rstrip('. ')}" if self.reason else ""
        settle = named_tasks = ""
        if self.can_settle:
            settle = "await client.intents.settle(intent_id) to wait for its callback, "
        if self.candidates:
            named_tasks = (
                f" Callbacks named task {' and task '.join(self.candidates)} for it; the record "
                "could not be read yet."
            )
        return (
            f"It is not known whether MidAPI accepted this{why}. It may have been paid, and was "
            f"not sent again ({named}).{named_tasks} Do one of: {settle}"
            "client.intents.adopt(intent_id, task_id) if the list of your tasks on MidAPI's "
            "website shows it, .resubmit(intent_id) to pay again, .dismiss(intent_id) to give it "
            "up. In a shell: midapi journal list unknown."
        )


@attrs.define(slots=False)
class TaskError(MidAPIError):
    """One task has no result.

    Attributes:
        task_id: which task.
        details: its last snapshot, or None if there was none.
    """

    text: ClassVar[str] = "has no result"

    task_id: str
    details: TaskDetails | None = None

    def _text(self) -> str:
        return f"Task {self.task_id} {self.text}."


class TaskFailed(TaskError):
    """MidAPI accepted the task and could not finish it."""

    advice: ClassVar[str] = "Change the request, or submit it again under a new key"

    @property
    def transient(self) -> bool:
        """Whether the same request is likely to succeed when it is submitted again."""
        said = (self.details.error_message or "") if self.details else ""
        return "no response from midjourney" in said.casefold()

    def _text(self) -> str:
        details = self.details
        code = f" with code {details.error_code}" if details and details.error_code else ""
        said = f": {details.error_message}" if details and details.error_message else ""
        advice = self.advice
        if self.transient:
            advice = "This is likely to be temporary: submit it again under a new key"
        return f"Task {self.task_id} failed{code}{said.rstrip('. ')}. {advice}."


class PromptRejected(TaskFailed):
    """The task failed because MidAPI's moderation rejected its prompt or picture."""

    advice = "Change the prompt or the picture; the same one will be rejected again"


class TaskNotFound(TaskError):
    """MidAPI does not know the task. A new task may take some seconds to appear."""

    def _text(self) -> str:
        text = (
            f"Task {self.task_id} is not known to MidAPI, which may take some seconds to know a "
            "new task, and forgets it after 15 days."
        )
        if self.intent_id is None:
            return f"{text} Check the task id, or look again later."
        # The id came from MidAPI itself.
        return f"{text} It was bought: look again later, and ask MidAPI's support if that fails."


class ResultMissing(TaskError):
    """The task succeeded, and its record never showed any file."""

    text = (
        "succeeded, but its record shows no file. Look again later with client.details(task_id), "
        "and ask MidAPI's support if there is still none"
    )


class TaskExpired(TaskError):
    """The task was bought more than 15 days ago, and MidAPI has deleted its results."""

    text = (
        "was bought, and MidAPI has deleted its results, which it keeps for 15 days. Use another "
        "key to buy it again"
    )


@attrs.define(slots=False)
class WaitTimeout(MidAPIError, TimeoutError):
    """The timeout passed. A task can be awaited again; a POST that is under way goes on.

    If the last look at the task failed, its error is the ``__cause__``.

    Attributes:
        task_id: the task, which was bought and can be awaited again; None if it is not known.
        intent_id: without a ``task_id``, the submission whose POST is under way and may buy it;
            None if nothing was bought.
        process: the id of the process that sends it; None if this client does, or if it is not
            known.
        goes_on: whether the last look that was answered has shown the task generating.
        problem: why the last look or the last POST failed, in words; None if it did not.
        host: the name of the process's host, in a journal of several machines; else None.
    """

    task_id: str | None = None
    intent_id: str | None = None
    process: int | None = None
    goes_on: bool = False
    problem: str | None = None
    host: str | None = None

    def _text(self) -> str:
        if self.task_id is not None:
            text = f"Task {self.task_id} was not finished in time"
            again = f"ait again with client.task({self.task_id!r}).wait()."
            if self.problem is None:
                return f"{text}. It goes on: w{again}" if self.goes_on else f"{text}. W{again}"
            seen = ". It went on when it was last shown, but" if self.goes_on else ", and"
            return f"{text}{seen} its last look failed: {self.problem} W{again}"
        if self.intent_id is not None:
            sender = process_of(self.process, self.host)
            by = f", which {sender} sends," if self.process is not None else ""
            return (
                f"Submission {self.intent_id}{by} was not answered in time. It goes on, and may be "
                "accepted and paid for: wait for it with the same key, or with "
                f"client.intents.settle({self.intent_id!r})."
            )
        why = f" It was not sent before because: {self.problem}" if self.problem else ""
        return (
            "The timeout passed while the submission waited to be sent. Nothing was bought; submit "
            f"it again.{why}"
        )


class ReceiverError(MidAPIError):
    """Callbacks cannot be received: the port is in use, or the receiver is set up wrongly."""


class JournalError(MidAPIError):
    """The journal cannot be read or written. Nothing is sent without it."""


@attrs.define(slots=False)
class DownloadError(MidAPIError):
    """A result file could not be fetched or written. No partial file is left.

    Attributes:
        url: the file's address.
        reason: what happened, in a few words.
        status: the HTTP status of the file host's answer; None if that is not the reason.
        files: the other files of the task that this call has fetched or found.
    """

    advice: ClassVar[str] = "No partial file is left; try again: MidAPI keeps results for 15 days"

    url: str
    reason: str
    status: int | None = None
    files: tuple[Path, ...] = ()

    def _text(self) -> str:
        text = f"{self.url} could not be downloaded: {self.reason}. {self.advice}."
        if self.files:
            text += f" The task's other files are there: {', '.join(map(str, self.files))}."
        return text


class ResultExpired(DownloadError):
    """The file is gone: MidAPI keeps results for 15 days, uploads for 3."""

    advice = (
        "MidAPI keeps results for 15 days and uploads for 3; ask MidAPI's support about a file "
        "that is younger"
    )


class UnexpectedContent(DownloadError):
    """The file's content is neither a picture nor a video."""

    advice = "It was not kept; check that the URL is a result's, and any proxy in between"


@attrs.define(slots=False)
class ClientClosed(MidAPIError):
    """The client was closed. A task that was waited for goes on and can be awaited again.

    Attributes:
        task_id: the task that was waited for; None if nothing was waited for.
    """

    task_id: str | None = None

    def _text(self) -> str:
        if self.task_id is not None:
            return (
                f"The client was closed. Task {self.task_id} goes on: open a client and wait with "
                f"client.task({self.task_id!r}).wait()."
            )
        if self.intent_id is not None:
            return (
                f"The client was closed. Submission {self.intent_id} may have been accepted: open "
                f"the client again and wait with client.intents.settle({self.intent_id!r})."
            )
        return (
            "The client was closed before this call bought anything. Open it again and repeat the "
            "call."
        )
