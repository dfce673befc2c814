"""What the sandbox does, in a line for each request, task and callback."""

import json
import logging
import re
import time
from collections.abc import Callable
from typing import Final, final
from urllib.parse import urlsplit

from aiohttp import web

from midapi_async.sandbox._ledger import Accepted, Asked, CalledBack
from midapi_async.sandbox._tasks import Task
from midapi_async.sandbox._variants import data_of

_LOG: Final = logging.getLogger(__name__)
# Longer texts are cut: a task id of a fault has 10 kB, a prompt up to 2,000 characters.
_LONGEST: Final = 200
_PROMPT: Final = 40
_LONG_SEGMENT: Final = re.compile(r"[^/]{25,}")


@final
class Log:
    """Gives lines to a function; with None for it, does nothing.

    No line has an API key or a callback's token in it: of a callback's URL it shows where it
    leads, of a request the path without its query. Control characters are escaped.
    """

    def __init__(self, write: Callable[[str], None] | None) -> None:
        """Give each line to ``write``, until that raises an exception."""
        self._write = write

    def answered(self, asked: Asked, response: web.StreamResponse | None) -> None:
        """Log a request with its answer; None is one that never got its whole answer."""
        if self._write is None:
            return
        envelope = _envelope_of(response)
        named = asked.task_id if asked.operation == "look" else data_of(envelope).get("taskId")
        path = asked.path
        if asked.operation == "other":
            # A callback that was sent here by mistake has its token in its path.
            path = _LONG_SEGMENT.sub("…", path)
        words = [asked.method, path, str(response.status) if response else "broken off"]
        if isinstance(named, str) and asked.operation in {"submit", "look"}:
            words.append(named)
        line = " ".join(_cut(word) for word in words)
        code = envelope.get("code")
        if response is not None and code not in (None, response.status):
            line += f", code {_cut(code)}: {_cut(envelope.get('msg'))}"
        self._say(line)

    def note(self, entry: Accepted | CalledBack) -> None:
        """Log a task that has just been accepted, or a callback that has just been tried."""
        if self._write is None:
            return
        if isinstance(entry, Accepted):
            kind = entry.body.get("taskType") or entry.path.rpartition("/")[2]
            prompt = entry.body.get("prompt")
            shown = f', "{_cut(prompt, _PROMPT)}"' if prompt else ""
            credits_ = f"{entry.price:g} credits"
            self._say(f"task {entry.task_id} accepted: {_cut(kind)}, {credits_}{shown}")
            return
        again = f", attempt {entry.attempt}" if entry.attempt > 1 else ""
        result, why = entry.status or "no answer", f": {entry.error}" if entry.error else ""
        what = "callback" if entry.kind == "final" else entry.kind
        self._say(f"{what} {entry.task_id} {result} {_place(entry.url)}{again}{why}")

    def ended(self, task: Task) -> None:
        """Log the end of a task, after how many seconds of the sandbox."""
        if self._write is None:
            return
        seconds = f"{(task.completed or 0) - task.created:.0f} s"
        if task.failure is None:
            self._say(f"task {task.id} succeeded after {seconds}")
            return
        why = f"code {_cut(task.failure.code)}: {_cut(task.failure.message)}"
        self._say(f"task {task.id} failed after {seconds}, {why}")

    def _say(self, text: str) -> None:
        if self._write is None:
            return
        try:
            self._write(f"{time.strftime('%H:%M:%S')} {text}")
        except Exception:  # noqa: BLE001  logged; no answer to a client may depend on it
            _LOG.exception("the sandbox's log ends: its function failed")
            self._write = None


def _envelope_of(response: web.StreamResponse | None) -> dict[str, object]:
    """Give the answer's JSON object; empty if it is something else, as a fault may make it."""
    if isinstance(response, web.Response) and response.content_type == "application/json":
        try:
            value = json.loads(response.body if isinstance(response.body, bytes) else b"")
        except (ValueError, RecursionError):
            return {}
        if isinstance(value, dict):
            return value
    return {}


def _place(url: str) -> str:
    """Give host and port of a URL: its path may have a token in it, and its user a password."""
    try:
        return _cut(urlsplit(url).netloc.rpartition("@")[2])
    except ValueError:
        return "an unreadable URL"


def _cut(value: object, longest: int = _LONGEST) -> str:
    """Give a text on one line, not too long, with an escape for what does not print."""
    text = str(value)
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
