"""How a command ends when it does not succeed: an exit code, a line on stderr, and JSON."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from midapi_async import InvalidRequestError, MidAPIError, SubmissionUnknown, TaskDetails

from . import _env
from ._terminal import one_line, out_json, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

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


def command_error(error: Exception, journal: Path | None = None) -> CommandError:
    """Any other exception as the error that ends the command.

    Args:
        error: the exception.
        journal: the folder of a journal that the environment does not name, or None.
    """
    kind, text = type(error).__name__, _env.without_secrets(str(error))
    if isinstance(error, InvalidRequestError):
        return CommandError(
            kind, _for_shells(error, text, journal), facts=_facts(error), exit_code=USAGE
        )
    if isinstance(error, MidAPIError):
        return CommandError(kind, _for_shells(error, text, journal), facts=_facts(error))
    message = f"{text or 'no text'} ({kind}: this should not happen, please report it)"
    return CommandError(kind, message)


# The SDK's messages tell a programmer which call to make. Here is what to type instead.
_COMMANDS = tuple(
    (re.compile(call, re.DOTALL), command)
    for call, command in (
        (r"client\.task\('([^']+)'\)\.wait\(\)", r"midapi task \1 --wait --download"),
        (r"client\.intents\.settle\('([^']+)'\)", r"midapi journal settle \1"),
        (r"(wait again|open a client and wait) with midapi", "midapi"),
        (r"Wait again with midapi", "Wait again: midapi"),
        (
            r"(open the client again and wait|wait for it with the same key, or) with midapi",
            "midapi",
        ),
        (r"([Tt]ask ([\w-]+)\b.*)client\.details\(task_id\)", r"\1midapi task \2"),
        (r"([Tt]ask ([\w-]+)\b.*)await its handle", r"\1run midapi task \2 --wait"),
        (r"([Tt]ask ([\w-]+)\b.*)Await its handle", r"\1Run midapi task \2 --wait"),
        (r"client\.credits\(\)", "midapi credits"),
        (
            r"is missing: pass api_key=, or set MIDAPI_API_KEY or MIDAPI_API_KEY_FILE",
            "is missing: set MIDAPI_API_KEY or MIDAPI_API_KEY_FILE, or give --api-key-file",
        ),
        (r"\(proxy=, ", "(--proxy, "),
        (r"pass ssl=ssl\.create_default_context\(cafile=…\) or ", ""),
        (r"allow_http=True \((MIDAPI_ALLOW_HTTP=1)\)", r"\1"),
        (
            r"journal='a folder' or MIDAPI_JOURNAL keeps them",
            "a folder in MIDAPI_JOURNAL keeps them",
        ),
        (r"leave journal= out", "leave MIDAPI_JOURNAL out"),
        (r"as long as this client lives", "as long as this command runs"),
        (r"set its public_url to", "set MIDAPI_PUBLIC_URL to"),
        (r"public_url: must", "MIDAPI_PUBLIC_URL: must"),
        (r"webhook_key (is set here|the old)", r"MIDAPI_WEBHOOK_KEY \1"),
        (r"65535, or None", "65535"),
        (r"give generate\(\) a callback_url", "set MIDAPI_PUBLIC_URL"),
        (r"call generate\(\) with it", "submit it with midapi generate"),
        (r"choose another one with port=", "choose another one with --port"),
        (r"Choose another port, or", "Choose another one with --port, or"),
        (r"pass force=True", "give --force"),
        (r"with force=True", "with --force"),
        (r"pass overwrite=True", "give --overwrite"),
        (r"Batch 'batch' ", "The batch "),
        (r"max_credits=", "--max-credits "),
        (r"with retry_failed", "with --retry-failed"),
        (r"download\(sidecar=True\)", "--sidecar"),
        (r"Pass upload_url= or set (MIDAPI_UPLOAD_URL)", r"Set \1 or give --upload-url"),
        (
            r", or pass uploader=, a function that puts a file where MidAPI can fetch it",
            "; or put the file where MidAPI can fetch it, and give its URL",
        ),
        (
            r"a file of this machine must be a Path: Path\('a\.png'\)",
            "upload a file of this machine with midapi upload FILE, and put its URL here",
        ),
        (
            r"give its bytes to client\.upload\(\)",
            "save it as a file, which midapi upload FILE uploads",
        ),
    )
)


def in_commands(text: str) -> str:
    """A message of the SDK; where it names Python calls, the commands to type instead."""
    for call, command in _COMMANDS:
        text = call.sub(command, text)
    return text


def _for_shells(error: MidAPIError, text: str, journal: Path | None) -> str:
    """The error's text, for somebody who types commands."""
    if isinstance(error, SubmissionUnknown):
        return unknown_text(error.intent_id, error.reason, error.candidates, journal)
    text = in_commands(text)
    if isinstance(error, InvalidRequestError) and "is missing" in error.problems.get("api_key", ""):
        return f"{text}. These commands need no key: midapi demo, midapi sandbox"
    return text


def unknown_text(
    intent_id: str, reason: str, candidates: Sequence[str] = (), journal: Path | None = None
) -> str:
    """What to say about a submission that may or may not have been accepted."""
    why = f": {reason.rstrip('. ')}" if reason else ""
    named = f" Callbacks named task {' and task '.join(candidates)} for it." if candidates else ""
    if journal is not None or _env.journal() is not None:
        where = "" if journal is None else f" --folder {shlex.quote(str(journal))}"
        then = (
            f"journal adopt {intent_id} TASK_ID{where}. If not: midapi journal resubmit "
            f"{intent_id}{where}, or, to give it up, midapi journal dismiss {intent_id}{where}"
        )
    else:
        then = (
            "task TASK_ID --wait --download. Set MIDAPI_JOURNAL to a folder, and such intents are "
            "kept: midapi journal list unknown"
        )
    return (
        f"It is not known whether MidAPI accepted this{why}. It may have been paid, and was not "
        f"sent again (intent {intent_id}).{named} Before you submit it again, look for it in the "
        f"list of your tasks on MidAPI's website. If it is there: midapi {then}"
    )


def _facts(error: Exception) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name in _FACTS:
        value = getattr(error, name, None)
        if value is not None:
            facts[name] = value.to_dict() if isinstance(value, TaskDetails) else value
    if isinstance(error, InvalidRequestError):
        facts["problems"] = {each: in_commands(text) for each, text in error.problems.items()}
    return facts
