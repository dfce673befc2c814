"""What went wrong, for people in one line and for scripts as JSON."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from midapi_async import (
    InvalidRequestError,
    MidAPIError,
    SubmissionUnknown,
    TaskDetails,
    WaitTimeout,
)

from ._terminal import one_line, out_json, say

if TYPE_CHECKING:
    from collections.abc import Mapping

FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141

# The facts that errors of the SDK carry, by the name of their attribute.
_FACTS = (
    *("problems", "code", "http_status", "retry_after", "path", "intent_id", "key"),
    *("task_id", "details", "url", "transient"),
)


class Trouble(Exception):
    """An end that is not the one that was asked for.

    Attributes:
        kind: its name, for scripts.
        message: its text, for people.
        facts: what a program may want to know of it, as values that ``json.dumps`` takes.
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

    def tell(self, *, as_json: bool) -> int:
        """Write it down; return the exit code.

        Args:
            as_json: whether stdout gets it too, as JSON.
        """
        say(f"midapi: {one_line(self.message)}")
        if as_json:
            out_json({"error": {"type": self.kind, "message": self.message, **self.facts}})
        return self.exit_code


def trouble_of(error: Exception) -> Trouble:
    """The trouble that an error is."""
    kind, text = type(error).__name__, _without_key(str(error))
    if isinstance(error, InvalidRequestError):
        return Trouble(kind, _for_shells(error, text), facts=_facts(error), exit_code=USAGE)
    if isinstance(error, MidAPIError):
        return Trouble(kind, _for_shells(error, text), facts=_facts(error))
    return Trouble(kind, f"{text or 'no text'} ({kind}: this should not happen, please report it)")


def usage(problem: str) -> Trouble:
    """The trouble of a command that cannot be meant."""
    return Trouble("UsageError", problem, exit_code=USAGE)


def _for_shells(error: MidAPIError, text: str) -> str:
    """The error's text, where that speaks of Python with what to type instead."""
    if isinstance(error, WaitTimeout):
        return (
            f"Task {error.task_id} was not finished in time. It goes on: "
            f"midapi task {error.task_id} --wait --download"
        )
    if isinstance(error, SubmissionUnknown):
        return unknown_text(error.intent_id, error.reason)
    if isinstance(error, InvalidRequestError) and "is missing: pass" in error.problems.get(
        "api_key", ""
    ):
        return (
            "The API key is missing: set MIDAPI_API_KEY or MIDAPI_API_KEY_FILE. "
            "Without a key there are: midapi demo, midapi sandbox"
        )
    return text


def unknown_text(intent_id: str, reason: str) -> str:
    """What to say of a submission of which nobody knows whether it was accepted."""
    why = f" ({reason})" if reason else ""
    return (
        f"Nobody can know whether MidAPI accepted this submission (intent {intent_id}){why}; it "
        "may have been paid and was not sent again. Look into MidAPI's own log before you submit "
        "it again; if its task is there: midapi task TASK_ID --wait --download. What is in a "
        "folder: midapi journal list unknown"
    )


def _facts(error: Exception) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name in _FACTS:
        value = getattr(error, name, None)
        if value is not None:
            facts[name] = value.to_dict() if isinstance(value, TaskDetails) else value
    return facts


def _without_key(text: str) -> str:
    """The text without the API key, should anything have put it there."""
    key = os.environ.get("MIDAPI_API_KEY", "").strip()
    return text.replace(key, "…") if len(key) > 3 else text
