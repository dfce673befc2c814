"""``midapi listen``: print each callback that arrives."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Annotated

import aiohttp
import attrs
from cyclopts import Parameter
from yarl import URL

from midapi_async import InvalidRequestError

from . import _env
from ._common import Output, run_async
from ._interrupt import stopped_by_signals
from ._listener import Forward, Listener, Received, forward_to
from ._terminal import out, out_json, say, seconds

_PORT = 8080
_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def listen(
    *,
    host: Annotated[str, Parameter(show_default=False)] = "127.0.0.1",
    port: int | None = None,
    forward: str | None = None,
    webhook_key: str | None = None,
    as_json: Annotated[_Flag, Parameter(name="--json")] = False,
    verbose: _Flag = False,
) -> int:
    """Receive callbacks and print each one, until Ctrl-C. No API key is needed.

    This is for development: it accepts callbacks at any path, and stores nothing. MidAPI gets the
    answer 200; with --forward, the answer of your program, or 503 if it does not answer, so that
    MidAPI sends the callback again.

    Args:
        host: The address to listen on; 127.0.0.1 if not given; 0.0.0.0 lets other machines in.
        port: The port to listen on; MIDAPI_CALLBACK_PORT if not given, else 8080; 0 picks a free
            one.
        forward: Send each callback on to this URL, such as http://127.0.0.1:3000/midapi. The last
            segment of its path, the body and the signature stay the same.
        webhook_key: The key that you set at MidAPI for signing callbacks; if not given, it is in
            MIDAPI_WEBHOOK_KEY, or in the file that MIDAPI_WEBHOOK_KEY_FILE names. Callbacks that
            are not signed with it are answered 401. Without a key, signatures are not checked.
        as_json: Print each callback as a JSON object on one line.
        verbose: Print each step on stderr, for finding out what goes wrong.
    """
    problems: dict[str, str] = {}
    port = _env.callback_port(port, problems)
    keys = _env.webhook_keys(webhook_key, problems)
    to = _forward_url(forward, problems)
    if problems:
        raise InvalidRequestError(problems)
    output = Output(as_json=as_json, verbose=verbose)
    address = host, _PORT if port is None else port
    return run_async(_serve(address, keys, to, output), output)


def _forward_url(text: str | None, problems: dict[str, str]) -> URL | None:
    if text is None:
        return None
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.host or url.query_string or url.fragment:
        problems["forward"] = f"must be an http or https URL without ? and #, got {text!r:.80}"
    return url


async def _serve(
    address: tuple[str, int], keys: tuple[str, ...], to: URL | None, output: Output
) -> None:
    stop = asyncio.Event()
    screen = _Screen(stop, as_json=output.as_json)
    async with AsyncExitStack() as exits:
        forward: Forward | None = None
        if to is not None:
            session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
            forward = forward_to(to, await exits.enter_async_context(session))
        listener = Listener(*address, keys, show=screen.show, forward=forward)
        exits.enter_context(stopped_by_signals(stop))
        await listener.open()
        exits.push_async_callback(listener.aclose)
        say(f"Callbacks are received at {listener.url}/ANYTHING; every token is accepted.")
        if to is not None:
            say(f"Each is forwarded to {to.with_user(None)}.")
        say("Ctrl-C stops this.")
        await stop.wait()
    if screen.broken is not None:
        raise screen.broken


class _Screen:
    """Prints callbacks; when stdout is closed, it remembers the error and stops the command."""

    def __init__(self, stop: asyncio.Event, *, as_json: bool) -> None:
        self.broken: BrokenPipeError | None = None
        self._stop = stop
        self._as_json = as_json

    def show(self, received: Received) -> None:
        """Print one. A failure is not raised: it must not change the answer to MidAPI."""
        try:
            if self._as_json:
                out_json(_facts(received))
                return
            for line in _lines(received):
                out(line)
        except BrokenPipeError as error:
            self.broken = error
            self._stop.set()


def _lines(received: Received) -> list[str]:
    clock = datetime.fromtimestamp(received.at, UTC).astimezone().strftime("%H:%M:%S")
    summary = received.summary
    if summary is None:
        reason = _REASONS.get(received.answer, "it was not accepted")
        return [f"{clock}  answered {received.answer}: {reason}"]
    lines = [f"{clock}  {summary.task_id}  {summary.status}"]
    if received.answer == 401:
        lines.append("    answered 401: it is not signed with the webhook key")
    if summary.prompt:
        lines.append(f"    prompt: {summary.prompt}")
    if summary.status == "failed" and summary.message:
        lines.append(f"    reason: {summary.message}")
    lines += [f"    {url}" for url in summary.urls]
    return lines + _forwarded_lines(received)


_REASONS = {
    400: "it is not a callback of MidAPI",
    408: "its body did not arrive in time",
    413: "its body is larger than 64 KiB",
    415: "its body is compressed",
}


def _forwarded_lines(received: Received) -> list[str]:
    if (sent := received.forwarded) is None:
        return []
    if sent.status is None:
        return [f"    forwarding failed: {sent.fault}; answered 503, so that MidAPI sends it again"]
    return [f"    forwarded: answered {sent.status} after {seconds(sent.seconds)}"]


def _facts(received: Received) -> dict[str, object]:
    summary = attrs.asdict(received.summary) if received.summary is not None else {}
    return {
        "time": datetime.fromtimestamp(received.at, UTC).isoformat(timespec="milliseconds"),
        "task_id": None,
        **summary,
        "answer": received.answer,
        "signed": received.is_signed,
        "forwarded": attrs.asdict(received.forwarded) if received.forwarded is not None else None,
    }
