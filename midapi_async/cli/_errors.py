"""How a command ends when it does not succeed: an exit code, a line on stderr, and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from midapi_async import (
    InvalidRequestError,
    MidAPIError,
    SubmissionUnknown,
    TaskDetails,
    WaitTimeout,
)

from . import _env
from ._terminal import one_line, out_json, say

if TYPE_CHECKING:
    from collections.abc import Mapping

FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141

# Attributes of the SDK's errors that the JSON contains, where an error has them.
_FACTS = (
    *("problems", "code", "http_status", "retry_after", "path", "intent_id", "key"),
    *("task_id", "details", "url", "transient"),
)


class CommandError(Exception):
    """A command cannot do what it was asked for.

    Attributes:
        kind: the error's name, for scripts.
        message: its text, for people.
        facts: further fields of the JSON, as values that ``json.dumps`` takes.
        exit_code: of the process.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        facts: Mapping[str, object] | None = None,
        exit_code: int = FAILED,
    ) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
        self.facts = dict(facts or {})
        self.exit_code = exit_code

    def report(self, *, as_json: bool) -> int:
        """Write the error to stderr, and as JSON to stdout if asked for; return the exit code."""
        say(f"midapi: {one_line(self.message)}")
        if as_json:
            out_json({"error": {"type": self.kind, "message": self.message, **self.facts}})
        return self.exit_code


def usage_error(problem: str) -> CommandError:
    """The error for a command line that makes no sense."""
    return CommandError("UsageError", problem, exit_code=USAGE)


def command_error(error: Exception) -> CommandError:
    """Any other exception as the error that ends the command."""
    kind, text = type(error).__name__, _env.without_api_key(str(error))
    if isinstance(error, InvalidRequestError):
        return CommandError(kind, _for_shells(error, text), facts=_facts(error), exit_code=USAGE)
    if isinstance(error, MidAPIError):
        return CommandError(kind, _for_shells(error, text), facts=_facts(error))
    message = f"{text or 'no text'} ({kind}: this should not happen, please report it)"
    return CommandError(kind, message)


def _for_shells(error: MidAPIError, text: str) -> str:
    """The error's text; where that names Python calls, the commands to type instead."""
    if isinstance(error, WaitTimeout) and error.task_id is not None:
        call = f"ait again with client.task({error.task_id!r}).wait()."
        command = f"midapi task {error.task_id} --wait --download"
        return text.replace(f"w{call}", command).replace(f"W{call}", f"Wait again: {command}")
    if isinstance(error, WaitTimeout) and error.intent_id is not None:
        return (
            f"Submission {error.intent_id} was not answered in time. It goes on and may be bought: "
            f"midapi journal settle {error.intent_id}"
        )
    if isinstance(error, SubmissionUnknown):
        return unknown_text(error.intent_id, error.reason)
    if isinstance(error, InvalidRequestError):
        problem = error.problems.get("api_key", "")
        if "is missing: pass" in problem:
            return (
                "The API key is missing: set MIDAPI_API_KEY or MIDAPI_API_KEY_FILE. "
                "These commands need no key: midapi demo, midapi sandbox"
            )
    return text.replace("proxy=, MIDAPI_PROXY", "--proxy, MIDAPI_PROXY")


def unknown_text(intent_id: str, reason: str) -> str:
    """What to say about a submission that may or may not have been accepted."""
    why = f" ({reason})" if reason else ""
    return (
        f"It cannot be known whether MidAPI accepted this submission (intent {intent_id}){why}: it "
        "may have been paid, and was not sent again. Before you submit it again, look for its task "
        "in MidAPI's own log. If the task is there: midapi task TASK_ID --wait --download. "
        "If MIDAPI_JOURNAL names a folder, it keeps the intent: midapi journal list unknown"
    )


def _facts(error: Exception) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name in _FACTS:
        value = getattr(error, name, None)
        if value is not None:
            facts[name] = value.to_dict() if isinstance(value, TaskDetails) else value
    return facts
