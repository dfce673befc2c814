"""Callbacks come in here, as hints.

`CallbackReceiver.handle` is the whole of it: whatever owns the socket, the standalone server or a
web framework, hands it a token, headers and a body, and answers with the status that it returns. A
callback is never believed: it makes the tracker look.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from yarl import URL

from .._runtime.urls import host_in_url, is_loopback, url_problem
from .._wire import protocol as _protocol
from .._wire.tokens import token_hash
from ..config import environment, secret_from_env
from ..errors import InvalidRequestError, JournalError, ProtocolError, ReceiverError
from .signature import SIGNATURE_HEADER, is_signed

if TYPE_CHECKING:
    from aiohttp import web

    from .._wire.protocol import Callback
    from ..journal import Intent
    from .http.asgi import ASGIApplication
    from .http.server import CallbackServer

_log = logging.getLogger("midapi_async")

LARGEST_BODY = 64 * 1024

# What to do about a callback with so a signature, where a webhook key is set.
_ADVICE = {
    "no": "webhook_key is set here; is the key set at MidAPI too?",
    "a wrong": "was the key changed at MidAPI? Give webhook_key the old and the new one meanwhile",
}

# A body, or what reads it when it is wanted; that may raise `BodyTooLarge`.
Body = bytes | Callable[[], Awaitable[bytes]]
Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class BodyTooLarge(Exception):
    """A body is larger than `LARGEST_BODY`."""


class Inbox(Protocol):
    """Where a client takes its callbacks."""

    async def find(self, token_hash: str) -> Intent | None:
        """The intent that a token names, if it is one of this client's."""
        ...

    async def take(self, row: Intent, callback: Callback) -> int:
        """Act on a callback with this intent's token; return the status to answer."""
        ...


class CallbackReceiver:
    """Takes MidAPI's callbacks for the clients that it is given to.

    Args:
        public_url: the http(s) URL under which MidAPI reaches this receiver. Callbacks come to
            ``public_url/TOKEN``; what a proxy puts before the last segment is ignored. None with a
            port on loopback, for the sandbox.
        host: where the server listens.
        port: on which port; 0 picks one; None starts no server: mount `aiohttp_app` or `asgi` in
            your own web application, or feed `handle` yourself.
        webhook_key: the key that signs callbacks, as set at MidAPI, or several while one replaces
            another; None leaves signatures unchecked.

    Raises:
        InvalidRequestError: naming each argument that is wrong.
    """

    def __init__(
        self,
        public_url: str | None,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        webhook_key: str | Sequence[str] | None = None,
    ) -> None:
        problems = _problems(public_url, host, port)
        self._keys = _webhook_keys(webhook_key, problems)
        if problems:
            raise InvalidRequestError(problems)
        self._public_url = public_url
        self._host = host
        self._port = port
        self._inboxes: list[Inbox] = []
        self._server: CallbackServer | None = None
        self._told_of_signatures: set[str] = set()

    def __repr__(self) -> str:
        place = self._public_url or f"port {self._port}"
        return f"<CallbackReceiver {place} for {len(self._inboxes)} clients>"

    @classmethod
    def from_env(cls) -> CallbackReceiver | None:
        """A receiver as MIDAPI_PUBLIC_URL, MIDAPI_CALLBACK_PORT and MIDAPI_WEBHOOK_KEY say.

        The key may stand in a file that MIDAPI_WEBHOOK_KEY_FILE names; several, while one replaces
        another, stand one on a line. Without a URL: None.

        Raises:
            InvalidRequestError: naming what is wrong.
        """
        public_url = environment("MIDAPI_PUBLIC_URL")
        if not public_url:
            return None
        problems: dict[str, str] = {}
        key = secret_from_env("MIDAPI_WEBHOOK_KEY", problems, "webhook_key")
        port = environment("MIDAPI_CALLBACK_PORT")
        if port and not (port.isascii() and port.isdigit()):
            problems["port"] = f"MIDAPI_CALLBACK_PORT must be a port number, is {port!r}"
        if problems:
            raise InvalidRequestError(problems)
        keys = key.splitlines() or None
        return cls(public_url, port=int(port) if port else None, webhook_key=keys)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self._public_url is None or is_loopback(URL(self._public_url))

    def check_reachable(self) -> None:
        """Raise ReceiverError if the real MidAPI cannot reach it."""
        if self.is_local:
            raise ReceiverError(
                "MidAPI cannot call back to a receiver on loopback: give it the public_url under "
                "which this machine is reached"
            )

    @property
    def url(self) -> str:
        """The prefix of every callback URL.

        Raises:
            ReceiverError: there is none before the server has picked its port.
        """
        if self._public_url is not None:
            return self._public_url.rstrip("/")
        if self._server is None:
            raise ReceiverError("the receiver has no URL before its first client is open")
        return f"http://{host_in_url(self._host)}:{self._server.port}"

    def callback_url(self, token: str) -> str:
        """Where MidAPI is to call back for the intent that a token names. It is a secret."""
        return f"{self.url}/{token}"

    async def handle(self, token: str, headers: Headers, body: Body) -> int:
        """Take one callback; return the HTTP status to answer.

        Args:
            token: the last non-empty segment of the path.
            headers: the HTTP headers.
            body: the body, or what reads it; it is not read before the token is known.

        Returns:
            200 taken, or nothing to do; 400 no callback; 401 signature; 404 token; 413 too large;
            415 encoded; 503 not now, send it again.
        """
        if not self._inboxes:
            return 503
        try:
            inbox, row = await self._find(token)
        except JournalError:
            _log.exception("the journal cannot be read; MidAPI will send this callback again")
            return 503
        if inbox is None or row is None:
            return 404
        values = _by_lower_name(headers)
        if any(
            value.strip().casefold() != "identity" for value in values.get("content-encoding", ())
        ):
            return 415
        try:
            callback = _protocol.read_callback(body if isinstance(body, bytes) else await body())
        except BodyTooLarge:
            return 413
        except ProtocolError as error:
            _log.warning("a callback is none: its %s %s", error.path, error.problem)
            return 400
        if not self._is_signed(values, callback.task_id):
            return 401
        return await self._hand_out(token_hash(token), inbox, row, callback)

    def aiohttp_app(self) -> web.Application:
        """An aiohttp application: ``app.add_subapp("/hooks/midapi/", receiver.aiohttp_app())``.

        It bounds a body (64 KiB, 4 s) and asks for none before it knows the token. What the socket
        is owed is the business of your own server: deadlines for headers and idle connections, a
        cap on connections, and an access log without these paths, which are secrets.
        """
        from .http.aiohttp_app import aiohttp_application

        return aiohttp_application(self.handle)

    def asgi(self) -> ASGIApplication:
        """An ASGI application: ``app.mount("/hooks/midapi", receiver.asgi())``.

        FastAPI and Starlette mount it so, Litestar with ``asgi(path, is_mount=True)``; before
        Django put a function that chooses by ``scope["path"]``. Any prefix will do, also none. It
        bounds a body and leaves the rest to your server as `aiohttp_app` does.
        """
        from .http.asgi import asgi_application

        return asgi_application(self.handle)

    async def _hand_out(self, token: str, first: Inbox, row: Intent, callback: Callback) -> int:
        """Every client that shares the intent takes the callback; the first one's answer counts."""
        status = await first.take(row, callback)
        for inbox in self._inboxes.copy():
            if inbox is not first and status == 200:
                try:
                    also = await inbox.find(token)
                except JournalError:
                    return 503
                if also is not None:
                    await inbox.take(also, callback)
        return status

    async def _find(self, token: str) -> tuple[Inbox | None, Intent | None]:
        if not token.isascii() or len(token) > 128:
            return None, None
        hashed = token_hash(token)
        for inbox in self._inboxes.copy():
            if (row := await inbox.find(hashed)) is not None:
                return inbox, row
        return None, None

    def _is_signed(self, headers: Mapping[str, Sequence[str]], task_id: str) -> bool:
        if not self._keys or is_signed(self._keys, headers, task_id):
            return True
        what = "a wrong" if SIGNATURE_HEADER in headers else "no"
        if what not in self._told_of_signatures:
            self._told_of_signatures.add(what)
            _log.warning("a callback came with %s signature: %s", what, _ADVICE[what])
        return False

    async def attach(self, inbox: Inbox) -> None:
        """A client opened; the first one starts the server.

        Raises:
            ReceiverError: the port cannot be listened on.
        """
        self._inboxes.append(inbox)
        try:
            if self._port is not None:
                await self._listen(self._port)
        except BaseException:
            await self.detach(inbox)
            raise

    async def _listen(self, port: int) -> None:
        """Clients that open at once share one server and wait for the same start."""
        if self._server is None:
            from .http.server import CallbackServer

            self._server = CallbackServer(self.handle, self._host, port)
        await self._server.start()

    async def detach(self, inbox: Inbox) -> None:
        """A client closes; the last one stops the server."""
        self._inboxes.remove(inbox)
        if not self._inboxes and self._server is not None:
            server, self._server = self._server, None
            await server.aclose()


def _problems(public_url: object, host: object, port: object) -> dict[str, str]:
    found = {}
    is_port = isinstance(port, int) and not isinstance(port, bool) and 0 <= port <= 65535
    if port is not None and not is_port:
        found["port"] = f"must be 0 to 65535, or None; got {port!r}"
    if public_url is None:
        if port is None:
            found["public_url"] = "is needed: MidAPI must know where to call back"
        elif not is_loopback(str(host)):
            found["public_url"] = "is needed for a host that is not loopback"
    elif problem := url_problem(public_url, is_bare=True):
        found["public_url"] = problem
    return found


def _webhook_keys(given: object, problems: dict[str, str]) -> tuple[bytes, ...]:
    if given is None:
        return ()
    keys = given if isinstance(given, list | tuple) else (given,)
    if not keys or not all(isinstance(key, str) and key and key.isprintable() for key in keys):
        problems["webhook_key"] = "must be a non-empty str without line breaks, or several"
        return ()
    return tuple(key.encode() for key in keys)


def _by_lower_name(headers: Headers) -> dict[str, list[str]]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name.lower(), []).append(value)
    return values
