"""Everything that can go wrong, one tree.

    MidAPIError
    ├── InvalidRequestError (ValueError)   what was asked for cannot be sent
    │   └── KeyConflict                    the key belongs to another request
    ├── APIError                           MidAPI answered with an error
    │   ├── BadRequestError 400            ├── RateLimitError 429
    │   ├── AuthenticationError 401        ├── SpendingCapError 433
    │   ├── InsufficientCreditsError 402   ├── MaintenanceError 455
    │   ├── NotFoundError 404              ├── ServerError 500, other 5xx
    │   ├── UnprocessableError 422         ├── GenerationFailedError 501
    │   └── FeatureDisabledError 505
    ├── TransportError                     MidAPI could not be reached
    ├── ProtocolError                      the server spoke something else
    ├── SubmissionUnknown                  nobody can know whether a submission was accepted
    ├── TaskError                          one task has no result
    │   ├── TaskFailed
    │   │   └── PromptRejected
    │   ├── TaskNotFound
    │   └── ResultMissing
    ├── WaitTimeout (TimeoutError)         we stopped waiting; the task goes on
    ├── ReceiverError                      callbacks cannot be received
    ├── JournalError                       the journal cannot be read or written
    ├── DownloadError                      a result file could not be fetched
    │   ├── ResultExpired
    │   └── UnexpectedContent
    └── ClientClosed                       the client was closed

From ``generate``, every ``MidAPIError`` but ``SubmissionUnknown`` means: nothing was bought.

Each class keeps the facts it was made from in ``args``, so that errors can be pickled, and builds
its text from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .tasks import TaskDetails


def shown(value: object, limit: int = 60) -> str:
    """A wrong value for an error's text: its `repr`, cut, on one line."""
    try:
        return repr(value)[:limit]
    except Exception:  # noqa: BLE001 - an int of 5,000 digits has none; other people's have bugs
        return f"a {type(value).__name__} that cannot be shown"


class MidAPIError(Exception):
    """The base of every error that this package raises on purpose."""


class InvalidRequestError(MidAPIError, ValueError):
    """What was asked for cannot be sent. Nothing was sent.

    Attributes:
        problems: what is wrong and what to do, by the name of the field.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__(dict(problems))
        self.problems: dict[str, str] = dict(problems)

    def __str__(self) -> str:
        return "; ".join(
            f"{field if field.isprintable() else shown(field)}: {problem}"
            for field, problem in self.problems.items()
        )


class KeyConflict(InvalidRequestError):
    """The key was used before, for another request. Nothing was sent."""

    def __init__(self, key: str) -> None:
        super().__init__(
            {
                "key": f"{key!r} belongs to another request; the same key must name the same "
                "request, and another request needs a key of its own"
            }
        )
        self.args = (key,)
        self.key = key


class APIError(MidAPIError):
    """MidAPI answered with an error.

    Attributes:
        code: the ``code`` of MidAPI's envelope, or the HTTP status where there was no envelope.
        message: MidAPI's own text, shortened, without secrets; may be empty.
        http_status: the HTTP status; 200 for most of MidAPI's errors.
        own_envelope: False for a page that MidAPI did not write (a proxy, a login page).
    """

    advice: ClassVar[str] = "The code is in no table of MidAPI's; ask their support"

    def __init__(
        self, code: int, message: str = "", http_status: int = 200, *, own_envelope: bool = True
    ) -> None:
        super().__init__(code, message, http_status)
        self.code = code
        self.message = message
        self.http_status = http_status
        self.own_envelope = own_envelope

    def __str__(self) -> str:
        status = f" (HTTP {self.http_status})" if self.http_status not in (200, self.code) else ""
        said = f": {self.message.rstrip('. ')}" if self.message else ""
        return f"MidAPI answered {self.code}{status}{said}. {self.advice}."


class BadRequestError(APIError):
    """400: a field is missing or wrong."""

    advice = "Correct the field that the text names"


class AuthenticationError(APIError):
    """401: the API key is missing, wrong or revoked."""

    advice = "Check the API key (MIDAPI_API_KEY) and that it belongs to this base URL"


class InsufficientCreditsError(APIError):
    """402: the account has too few credits."""

    advice = "Top up the account, then submit again"


class NotFoundError(APIError):
    """404: no such path or task."""

    advice = "Check the task id and the base URL"


class UnprocessableError(APIError):
    """422: MidAPI refused a value."""

    advice = "Correct the value that the text names"


class RateLimitError(APIError):
    """429: more requests than the account may make.

    Attributes:
        retry_after: seconds after which MidAPI wants to be asked again; None if it did not say.
    """

    advice = "Wait, then try again; MidAPI takes 20 submits per 10 s and account"

    def __init__(
        self,
        code: int = 429,
        message: str = "",
        http_status: int = 200,
        *,
        own_envelope: bool = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, message, http_status, own_envelope=own_envelope)
        self.retry_after = retry_after

    def __str__(self) -> str:
        if self.retry_after is None:
            return super().__str__()
        return f"{super().__str__()} It asks for {self.retry_after:g} s."


class SpendingCapError(APIError):
    """433: this API key has reached its own spending cap."""

    advice = "Raise the cap of this key, or use another one"


class MaintenanceError(APIError):
    """455: MidAPI is under maintenance.

    Attributes:
        retry_after: seconds after which MidAPI wants to be asked again; None if it did not say.
    """

    advice = "Try again later"
    retry_after: float | None = None


class ServerError(APIError):
    """500 and every other 5xx that has no class of its own."""

    advice = "The fault is MidAPI's; try again later"


class GenerationFailedError(APIError):
    """501: MidAPI could not start the generation."""

    advice = "Nothing was bought; submit again, or change the request"


class FeatureDisabledError(APIError):
    """505: the feature is switched off at MidAPI."""

    advice = "Use another kind of request until MidAPI enables it again"


_BY_CODE: dict[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientCreditsError,
    404: NotFoundError,
    422: UnprocessableError,
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
    """The error for one of MidAPI's codes; `APIError` itself for a code that is in no table."""
    if code == 429:
        return RateLimitError(
            code, message, http_status, own_envelope=own_envelope, retry_after=retry_after
        )
    kind = _BY_CODE.get(code, ServerError if 500 <= code <= 599 else APIError)
    error = kind(code, message, http_status, own_envelope=own_envelope)
    if isinstance(error, MaintenanceError):
        error.retry_after = retry_after
    return error


class TransportError(MidAPIError):
    """MidAPI could not be reached, or stopped talking.

    Attributes:
        reason: what happened, in a few words.
        sent: whether any part of the request may have reached the network.
    """

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent

    def __str__(self) -> str:
        return f"MidAPI could not be reached: {self.reason}. Check the network and the base URL."


class ProtocolError(MidAPIError):
    """The server spoke something that is not MidAPI's language.

    Attributes:
        path: where in the answer, as in ``data.successFlag``; ``body`` for the whole.
        problem: what is wrong there.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return (
            f"The server's answer is not MidAPI's: {self.path} {self.problem}. "
            "Check the base URL and what stands between."
        )


class SubmissionUnknown(MidAPIError):
    """Nobody can know whether this submission was accepted. It is never sent again by itself.

    Attributes:
        intent_id: the journal's name of the submission, for ``client.intents``.
        key: the user's own name for it, or None.
        can_settle: whether a callback may still tell (there is a receiver).
        reason: what happened to the answer, in a few words.
    """

    def __init__(
        self,
        intent_id: str,
        key: str | None = None,
        can_settle: bool = False,  # noqa: FBT001, FBT002 - facts stand in args, in order
        reason: str = "",
    ) -> None:
        super().__init__(intent_id, key, can_settle, reason)
        self.intent_id = intent_id
        self.key = key
        self.can_settle = can_settle
        self.reason = reason

    def __str__(self) -> str:
        named = f"intent {self.intent_id}" + (f", key {self.key!r}" if self.key else "")
        why = f" ({self.reason})" if self.reason else ""
        settle = "await client.intents.settle(intent_id) to wait for its callback, " * (
            self.can_settle
        )
        return (
            f"Nobody can know whether MidAPI accepted this submission ({named}){why}; it may have "
            f"been paid and was not sent again. Do one of: {settle}client.intents.adopt(intent_id, "
            "task_id) if MidAPI's log shows its task, .resubmit(intent_id) to pay again, "
            ".dismiss(intent_id) to forget it."
        )


class TaskError(MidAPIError):
    """One task has no result.

    Attributes:
        task_id: which task.
        details: its last snapshot, or None if there was none.
    """

    text: ClassVar[str] = "has no result"

    def __init__(self, task_id: str, details: TaskDetails | None = None) -> None:
        super().__init__(task_id, details)
        self.task_id = task_id
        self.details = details

    def __str__(self) -> str:
        return f"Task {self.task_id} {self.text}."


class TaskFailed(TaskError):
    """MidAPI took the task and could not finish it."""

    advice: ClassVar[str] = "Change the request, or submit it again under a new key"

    @property
    def transient(self) -> bool:
        """Whether the same request is likely to succeed when it is submitted again."""
        said = (self.details.error_message or "") if self.details else ""
        return "no response from midjourney" in said.casefold()

    def __str__(self) -> str:
        details = self.details
        code = f" with code {details.error_code}" if details and details.error_code else ""
        said = f": {details.error_message}" if details and details.error_message else ""
        advice = (
            "The fault is passing: submit it again, under a new key"
            if self.transient
            else self.advice
        )
        return f"Task {self.task_id} failed{code}{said.rstrip('. ')}. {advice}."


class PromptRejected(TaskFailed):
    """The task failed because its prompt or picture was found improper."""

    advice = "Change the prompt or the picture; the same one will be refused again"


class TaskNotFound(TaskError):
    """MidAPI does not know the task, also after the grace that new tasks get."""

    text = (
        "is unknown to MidAPI. Check the task id, and that the API key is the one that it was "
        "submitted with"
    )


class ResultMissing(TaskError):
    """The task succeeded, and its record never showed any file."""

    text = (
        "succeeded, but its record shows no file. Look again later with client.details(task_id), "
        "and ask MidAPI's support if it stays so"
    )


class WaitTimeout(MidAPIError, TimeoutError):
    """We stopped waiting. The task goes on, stays in the journal and can be awaited again.

    Attributes:
        task_id: which task.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return (
            f"Task {self.task_id} was not finished in time. It goes on: wait again with "
            f"client.task({self.task_id!r}).wait()."
        )


class ReceiverError(MidAPIError):
    """Callbacks cannot be received: a port is taken, or the receiver is set up wrongly."""


class JournalError(MidAPIError):
    """The journal cannot be read or written. Nothing is sent without it."""


class DownloadError(MidAPIError):
    """A result file could not be fetched. Nothing half-written was left.

    Attributes:
        url: the file's address.
        reason: what happened, in a few words.
    """

    advice: ClassVar[str] = "Nothing was left of it; try again"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.url} could not be downloaded: {self.reason}. {self.advice}."


class ResultExpired(DownloadError):
    """The file is gone: MidAPI keeps results for 15 days, uploads for 3."""

    advice = "MidAPI keeps results for 15 days and uploads for 3; it has to be generated again"


class UnexpectedContent(DownloadError):
    """What came is not a picture or a video."""

    advice = "It was not kept; see what stands between, and whether the URL is the result's"


class ClientClosed(MidAPIError):
    """The client was closed. A task that was waited for goes on and can be awaited again.

    Attributes:
        task_id: the task that was waited for; None if it was none.
    """

    def __init__(self, task_id: str | None = None) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        if self.task_id is None:
            return "The client was closed before anything was sent. Open it again and repeat this."
        return (
            f"The client was closed while task {self.task_id} was waited for. The task goes on: "
            f"open a client and wait with client.task({self.task_id!r}).wait()."
        )
