"""``midapi listen``: see the callbacks that come."""

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
from midapi_async.config import secret_from_env

from ._checkup import port_from_env
from ._listener import Forward, Listener, Taken, forward_to
from ._signals import stopped_by_signals
from ._terminal import out, out_json, say, seconds
from ._work import Output, run_async

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
    """Take callbacks and print each, until it is stopped. No API key is needed.

    This is for development: every token is let in, and nothing is remembered. A callback is
    answered 200, or what the program said to which it was passed on (503 if it said nothing), so
    that MidAPI sends again what that program has not taken.

    Args:
        host: Where to listen; 127.0.0.1 if not given.
        port: On which port; MIDAPI_CALLBACK_PORT if not given, else 8080; 0 picks a free one.
        forward: A URL to pass each callback on to, such as http://127.0.0.1:3000/midapi: the last
            segment of the path, the body and the signature stay as they are.
        webhook_key: As set at MidAPI; MIDAPI_WEBHOOK_KEY, or its _FILE, if not given. With one,
            what is not signed with it is answered 401.
        as_json: Print one JSON object for each callback, on a line of its own.
        verbose: Show the SDK's log on stderr.
    """
    problems: dict[str, str] = {}
    chosen = port if port is not None else port_from_env(problems)
    key = webhook_key or secret_from_env("MIDAPI_WEBHOOK_KEY", problems, "webhook_key")
    to = _forward_url(forward, problems)
    if problems:
        raise InvalidRequestError(problems)
    output = Output(as_json=as_json, verbose=verbose)
    at = host, _PORT if chosen is None else chosen
    return run_async(_serve(at, tuple(key.splitlines()), to, output), output)


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
    at: tuple[str, int], keys: tuple[str, ...], to: URL | None, output: Output
) -> None:
    stop, screen = asyncio.Event(), _Screen(as_json=output.as_json)
    async with AsyncExitStack() as exits:
        forward: Forward | None = None
        if to is not None:
            session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
            forward = forward_to(to, await exits.enter_async_context(session))
        screen.on_end = stop.set
        listener = Listener(*at, keys, show=screen.show, forward=forward)
        exits.enter_context(stopped_by_signals(stop))
        await listener.open()
        exits.push_async_callback(listener.aclose)
        say(f"Callbacks are taken at {listener.url}/ANYTHING; every token is let in.")
        if to is not None:
            say(f"Each is passed on to {to.with_user(None)}.")
        say("Ctrl-C stops it.")
        await stop.wait()
    if screen.broken is not None:
        raise screen.broken


class _Screen:
    """Shows callbacks on stdout, until nobody reads them any more."""

    def __init__(self, *, as_json: bool) -> None:
        self.broken: BrokenPipeError | None = None
        self.on_end = _nothing
        self._as_json = as_json

    def show(self, taken: Taken) -> None:
        """Show one; it was taken, whether or not that can be shown."""
        try:
            if self._as_json:
                out_json(_facts(taken))
                return
            for line in _lines(taken):
                out(line)
        except BrokenPipeError as error:
            self.broken = error
            self.on_end()


def _nothing() -> None:
    """What happens at the end unless somebody waits for it."""


def _lines(taken: Taken) -> list[str]:
    clock = datetime.fromtimestamp(taken.at, UTC).astimezone().strftime("%H:%M:%S")
    if taken.told is None:
        return [f"{clock}  answered {taken.answer}: {_REASONS.get(taken.answer, 'not taken')}"]
    told = taken.told
    lines = [f"{clock}  {told.task_id}  {told.status}"]
    if taken.answer == 401:
        lines.append("    answered 401: it is not signed with the webhook key")
    if told.prompt:
        lines.append(f"    prompt: {told.prompt}")
    if told.status == "failed" and told.message:
        lines.append(f"    reason: {told.message}")
    lines += [f"    {url}" for url in told.urls]
    return lines + _forwarded_lines(taken)


_REASONS = {
    400: "it is no callback of MidAPI",
    413: "its body is larger than 64 KiB",
    415: "its body is encoded",
}


def _forwarded_lines(taken: Taken) -> list[str]:
    if (there := taken.forwarded) is None:
        return []
    if there.status is None:
        return [f"    passed on: {there.fault}; answered 503, so that MidAPI sends it again"]
    return [f"    passed on: {there.status} after {seconds(there.seconds)}"]


def _facts(taken: Taken) -> dict[str, object]:
    told = attrs.asdict(taken.told) if taken.told is not None else {}
    return {
        "time": datetime.fromtimestamp(taken.at, UTC).isoformat(timespec="milliseconds"),
        "task_id": None,
        **told,
        "answer": taken.answer,
        "signed": taken.is_signed,
        "forwarded": attrs.asdict(taken.forwarded) if taken.forwarded is not None else None,
    }
