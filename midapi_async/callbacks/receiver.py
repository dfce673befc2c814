"""The receiver checks MidAPI's callbacks and gives them to the clients.

`CallbackReceiver.handle` does all of this. The standalone server and the mounts for web frameworks
give it a token, headers and a body, and answer with the status that it returns. The contents of a
callback are not trusted: a callback only makes the tracker look at the task.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Collection, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Never, Protocol, TypeVar

from yarl import URL

from .._runtime.secret import Secret, clear_locals, hidden
from .._runtime.urls import host_in_url, is_loopback, url_problem
from .._wire.protocol import Callback, read_callback
from .._wire.tokens import token_hash
from ..config import environment, secret_from_env
from ..errors import InvalidRequestError, JournalError, ProtocolError, ReceiverError, shown
from .http.answer import LARGEST_BODY, Body, Headers, read_body
from .signature import SIGNATURE_HEADER, is_signed

if TYPE_CHECKING:
    from aiohttp import web

    from .http.asgi import ASGIApplication
    from .http.server import CallbackServer

T = TypeVar("T")
_log = logging.getLogger("midapi_async.callbacks")

READ_SECONDS = 4.0  # for a body
ANSWER_SECONDS = 12.0  # until the clients' event loops must have answered; MidAPI waits for 15 s
_LONGEST_TOKEN = 128  # characters
_ADVICE = {
    "missing": "webhook_key is set here; is the key set at MidAPI too?",
    "wrong": "Was the key changed at MidAPI? Give webhook_key the old and the new key meanwhile.",
    "not verifiable": "Its body names no task, and its intent has none yet.",
}


class Inbox(Protocol[T]):
    """Takes callbacks from a receiver, after `CallbackReceiver.attach`.

    A client's inbox takes those for its intents; that of `midapi listen` takes any token.
    """

    async def find(self, token_hash: str) -> T | None:
        """What a token belongs to, as an argument for `take`; None if the token is not known here.

        Raises:
            JournalError: it cannot be known now.
        """
        ...

    def task_ids(self, found: T, /) -> Collection[str]:
        """The tasks that a callback may be about if its body cannot be read."""
        ...

    async def take(self, found: T, callback: Callback | None, /) -> int:
        """Handle a callback; return the HTTP status for the answer.

        Args:
            found: what `find` returned.
            callback: what it says; None if its body cannot be read.

        Raises:
            JournalError: it cannot be recorded now.
        """
        ...


class CallbackReceiver:
    """Takes MidAPI's callbacks for one or several clients.

    Args:
        public_url: the http(s) URL at which MidAPI reaches this receiver. Callbacks come to
            ``public_url/TOKEN``; only the last segment of the path matters, so a proxy may change
            the rest. May be None with a port on loopback, for the sandbox.
        host: the host on which the server listens.
        port: the port; 0 picks a free one; None starts no server: mount `aiohttp_app` or `asgi` in
            your own web application, or call `handle` yourself.
        webhook_key: the key that signs callbacks, as set at MidAPI, or several keys while one
            replaces another; None does not check signatures.

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
        problems = {}
        if not isinstance(host, str) or not host or not host.isprintable():
            problems["host"] = f"must be a name or an address, got {shown(host)}"
        if port is not None and not (type(port) is int and 0 <= port <= 65535):
            problems["port"] = f"must be 0 to 65535, or None; got {shown(port)}"
        if public_url is not None:
            if problem := url_problem(public_url, is_bare=True):
                problems["public_url"] = problem
        elif port is None:
            problems["public_url"] = "is missing: give the URL at which MidAPI reaches the receiver"
        elif not is_loopback(str(host)):
            problems["public_url"] = "is missing; it may be left out only if the host is loopback"
        # Before an error can be raised: `repr` needs them.
        self._public_url = public_url
        self._port = port
        self._inboxes: dict[Inbox[Any], asyncio.AbstractEventLoop] = {}
        given = webhook_key if isinstance(webhook_key, list | tuple) else (webhook_key,)
        keys: Sequence[object] = [hidden(key) for key in given]
        is_given = webhook_key is not None
        del webhook_key, given  # they must not show in a traceback with local variables
        if not is_given:
            keys = ()
        elif not (keys and all(isinstance(key, str) and key and key.isprintable() for key in keys)):
            problems["webhook_key"] = "must be a non-empty str without line breaks, or several"
        if problems:
            raise InvalidRequestError(problems)
        self._host = host
        self._keys = tuple(str(key).encode() for key in keys)
        self._starting: asyncio.Task[CallbackServer] | None = None
        self._server: CallbackServer | None = None
        self._warned_of: set[str] = set()  # kinds of bad signatures; each is logged once

    def __repr__(self) -> str:
        where = self._public_url or f"port {self._port}"
        return f"<CallbackReceiver {where} for {len(self._inboxes)} clients>"

    def __reduce__(self) -> Never:
        raise TypeError(
            "a receiver cannot be copied or pickled: it has connections, and the webhook key. Make "
            "one in each process, as CallbackReceiver.from_env() does"
        )

    @classmethod
    def from_env(cls) -> CallbackReceiver | None:
        """A receiver from the environment; None without MIDAPI_PUBLIC_URL.

        MIDAPI_CALLBACK_PORT is the port. MIDAPI_WEBHOOK_KEY, or the file that
        MIDAPI_WEBHOOK_KEY_FILE names, holds the webhook key, or several keys, one per line.

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
        keys = [Secret(line) for line in key.splitlines()] or None
        return cls(public_url, port=int(port) if port else None, webhook_key=keys)

    def check_reachable(self) -> None:
        """Check that MidAPI can reach the receiver.

        Raises:
            ReceiverError: it is on loopback.
        """
        if self._public_url is None or is_loopback(URL(self._public_url)):
            raise ReceiverError(
                "MidAPI cannot reach a receiver on loopback: set its public_url to a URL at which "
                "MidAPI reaches this machine"
            )

    @property
    def url(self) -> str:
        """The prefix of every callback URL.

        Raises:
            ReceiverError: the server has not picked its port yet.
        """
        if self._public_url is not None:
            return self._public_url.rstrip("/")
        if self._server is None:
            raise ReceiverError("the receiver has no URL until its first client is open")
        return f"http://{host_in_url(self._host)}:{self._server.port}"

    def callback_url(self, token: str) -> str:
        """The callback URL with this token. It is a secret."""
        return Secret(f"{self.url}/{token}")

    async def handle(self, token: str, headers: Headers, body: Body) -> int:
        """Take one callback; return the HTTP status for the answer.

        It may be called in any event loop, also in another thread than the client's: a view that is
        not async calls ``asyncio.run(receiver.handle(…))``.

        Args:
            token: the last non-empty segment of the path.
            headers: the HTTP headers: any mapping, or pairs.
            body: the body, as bytes or str, or a function that reads it. It is called only after
                the token and the headers were accepted, and must end within 4 s. It may stop after
                64 KiB and one byte, and must raise ConnectionError if the sender disconnects.

        Returns:
            200 taken, or nothing to do; 400 the sender has disconnected; 401 not signed; 404
            unknown token; 408 too slow; 413 too large; 415 compressed; 503 not possible now: MidAPI
            will send it again.

        Raises:
            InvalidRequestError: the body is of another type.
        """
        # A whole body, which is the usual case, needs no timeout; a memoryview does not show it.
        whole = memoryview(body) if isinstance(body, bytes | memoryview) else None
        reading = read_body(body) if whole is None else whole
        work = self._handle(Secret(token), headers, reading)
        del token, body  # they must not show in a traceback that is rendered with local variables
        try:
            return await work
        except JournalError:
            _log.exception("Cannot use the journal; MidAPI will send this callback again")
            return 503
        except _LoopLost:
            _log.warning("A client's event loop has ended, or is blocked; MidAPI will try again")
            return 503
        except Exception as error:
            clear_locals(error)
            raise
        finally:
            if not isinstance(reading, memoryview):
                reading.close()

    async def _handle(
        self, token: str, headers: Headers, reading: memoryview | Coroutine[object, object, bytes]
    ) -> int:
        # Cheap checks first, so that a sender without a valid token causes little work.
        running = [each for each in self._inboxes.items() if each[1].is_running()]
        if not running:
            return 503
        if not token.isascii() or len(token) > _LONGEST_TOKEN:
            return 404
        hashed = token_hash(token)
        inboxes = iter(running)
        deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
        for inbox, loop in inboxes:
            if (row := await _run_in(loop, inbox.find(hashed), deadline)) is not None:
                break
        else:
            return 404

        # The token is known. Check the headers, then read the body.
        named = _by_lower_name(headers)
        encodings, lengths = named.get("content-encoding", ()), named.get("content-length", ())
        if any(each.strip().casefold() != "identity" for each in encodings):
            return 415
        if any(each.isdecimal() and int(each[:20]) > LARGEST_BODY for each in lengths):
            return 413
        try:
            if isinstance(reading, memoryview):
                content = bytes(reading)
            else:
                async with asyncio.timeout(READ_SECONDS):
                    content = await reading
        except TimeoutError:
            return 408
        except ConnectionError:
            return 400
        if len(content) > LARGEST_BODY:
            return 413
        callback, problem = None, ""
        try:
            callback = read_callback(content)
        except ProtocolError as error:
            problem = f"{error.path} {error.problem}"
        finally:
            del content  # it contains the token

        # The signature covers the task id in the body, so it is checked only now. If the body
        # cannot be read, the signature must cover a task of the token's intent.
        task_ids = inbox.task_ids(row) if callback is None else [callback.task_id]
        if self._keys and not any(is_signed(self._keys, named, each) for each in task_ids):
            kind = "wrong" if task_ids else "not verifiable"
            self._warn_of_signature(kind if SIGNATURE_HEADER in named else "missing")
            return 401
        if callback is None:
            _log.warning("Cannot read a callback with a valid token: %s", problem)

        status = await _run_in(loop, inbox.take(row, callback), deadline)
        # Clients that share a journal have the same intents: give it to all of them. One of another
        # namespace may be the first, and not be able to take what the intent's own client can.
        for inbox, loop in inboxes:
            row = await _run_in(loop, inbox.find(hashed), deadline)
            if row is not None and await _run_in(loop, inbox.take(row, callback), deadline) == 200:
                status = 200
        return status

    def _warn_of_signature(self, kind: str) -> None:
        """Log what is wrong with a signature, once for each kind."""
        if kind not in self._warned_of:
            self._warned_of.add(kind)
            _log.warning("Rejected callback: its signature is %s. %s", kind, _ADVICE[kind])

    def aiohttp_app(self) -> web.Application:
        """An aiohttp application: ``app.add_subapp("/hooks/midapi/", receiver.aiohttp_app())``.

        It limits a body to 64 KiB and 4 s, and reads it only after the token was accepted. Your own
        server must do the rest: timeouts for headers and idle connections, a limit of connections,
        and an access log without these paths, which are secrets.
        """
        from .http.aiohttp_app import aiohttp_application

        return aiohttp_application(self.handle)

    def asgi(self) -> ASGIApplication:
        """An ASGI application: ``app.mount("/hooks/midapi", receiver.asgi())``.

        The line above is for FastAPI and Starlette. Litestar mounts it with
        ``asgi(path, is_mount=True)``; for Django, write a function that calls it or Django
        depending on ``scope["path"]``. Any prefix works, and none. It limits a body like
        `aiohttp_app`; your server must do the rest.
        """
        from .http.asgi import asgi_application

        return asgi_application(self.handle)

    async def attach(self, inbox: Inbox[Any]) -> None:
        """Give an inbox the callbacks from now on; the first inbox starts the server.

        Raises:
            ReceiverError: the port cannot be listened on, or the server runs in another event loop.
        """
        loop = asyncio.get_running_loop()
        # Drop inboxes, and the server, of event loops that were closed before their clients.
        self._inboxes = {each: its for each, its in self._inboxes.items() if not its.is_closed()}
        starting = self._starting
        if starting is not None and starting.get_loop() is not loop:
            if not starting.get_loop().is_closed():
                raise ReceiverError("the receiver listens in another event loop: use one per loop")
            if self._server is not None:
                self._server.abandon()
            self._server = self._starting = None
        self._inboxes[inbox] = loop
        try:
            if self._port is not None:
                if self._starting is None:
                    from .http.server import CallbackServer

                    # All clients wait for one start, in a task that goes on if its caller leaves.
                    server = CallbackServer(self.handle, self._host, self._port)
                    self._starting = loop.create_task(server.start())
                await asyncio.wait({self._starting})
                self._server = self._starting.result()
        except BaseException:
            await self.detach(inbox)
            raise

    async def detach(self, inbox: Inbox[Any]) -> None:
        """Give an inbox no more callbacks; the last inbox stops the server."""
        self._inboxes.pop(inbox, None)
        if not self._inboxes and self._starting is not None:
            starting, self._starting, self._server = self._starting, None, None
            await asyncio.wait({starting})
            if starting.exception() is None:
                await starting.result().aclose()


class _LoopLost(Exception):
    """A client's event loop has ended, or did not answer in time."""


async def _run_in(
    loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, T], deadline: float
) -> T:
    """Await a coroutine in its client's event loop, which may run in another thread.

    Args:
        loop: the client's event loop.
        work: the coroutine.
        deadline: when to give up, on the clock of the running loop.

    Raises:
        _LoopLost: the client's loop has ended, or has not done it by then.
    """
    here = asyncio.get_running_loop()
    if loop is here:
        return await work
    try:
        done = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:  # it was closed a moment ago
        work.close()
        raise _LoopLost from None
    answer = asyncio.wrap_future(done)
    try:
        await asyncio.wait({answer}, timeout=deadline - here.time())
    finally:
        if not answer.done():
            if not loop.is_closed():
                done.cancel()
            elif inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()
    if not answer.done() or answer.cancelled():
        raise _LoopLost
    return answer.result()


def _by_lower_name(headers: Headers) -> dict[str, list[str]]:
    # Not every framework's headers are a `Mapping`, and ASGI's are bytes.
    items = getattr(headers, "items", None)
    pairs: Any = headers if items is None else items()
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(_text(name).lower(), []).append(_text(value))
    return values


def _text(value: object) -> str:
    return str(value, "latin-1") if isinstance(value, bytes) else str(value)
