"""The sandbox: a server that is MidAPI, on this machine."""

import errno
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self, final
from urllib.parse import urlsplit

from aiohttp import web

from midapi_async.sandbox import _wire
from midapi_async.sandbox._account import Account, checked_balance
from midapi_async.sandbox._actions import CallbackAction
from midapi_async.sandbox._app import App
from midapi_async.sandbox._delivery import Delivery
from midapi_async.sandbox._hints import Failure
from midapi_async.sandbox._http import Runner
from midapi_async.sandbox._ledger import Book, Ledger
from midapi_async.sandbox._log import Log
from midapi_async.sandbox._orders import checked_table
from midapi_async.sandbox._pictures import warn_without_pillow
from midapi_async.sandbox._records import Shape
from midapi_async.sandbox._service import Service, Settings
from midapi_async.sandbox._tls import Certificate
from midapi_async.sandbox.faults import Faults

# How long requests under way may take to end when the sandbox closes, in real seconds.
_GRACE = 0.5
# Connections that wait to be accepted; the system may allow fewer.
_QUEUE = 4096


@final
class Sandbox:
    """A local MidAPI, used with ``async with``.

    Every answer, file and callback goes over real sockets. Tasks, credits and files are in
    memory and end with the sandbox. It runs in the event loop that opened it and uses the clock
    of that loop. It can be opened only once.

    Args:
        host: the address to listen on.
        port: the port; 0 picks a free one.
        api_key: the only API key that is accepted; None accepts every key that is not empty. All
            keys except those in ``accounts`` belong to one account and share its credits and
            its rate limit, like the keys of one real account.
        webhook_key: signs callbacks; None sends them unsigned.
        credits: the balance at the start.
        time_scale: how many times faster than real time it runs. It divides the durations of
            tasks, the window of the rate limit, the pauses between callbacks and the life of
            links. Times in records are not divided, so they are ahead of the real clock. The
            timeout of a callback, 15 s, is never divided to less than 5 s, because a network
            does not become faster.
        faults: what goes wrong; see `Faults`. Rules may be added while it runs.
        seed: the seed of everything random (durations, chances of faults) except task ids.
        shape: "recorded" answers as MidAPI was seen to answer, "documented" as its
            documentation says.
        durations: seconds by (task type, speed), "*" for any; such a task takes exactly this
            long. Other tasks take as long as real ones, with some jitter.
        prices: credits by (task type, speed), "*" for any; those of a video are for each
            video of its batch.
        auto: tasks end by themselves; with False only by `finish` and `fail`.
        files_url: the beginning of the URLs of files, such as "https://fox.example.org". None takes
            the address to which the submission was sent, from the headers Host,
            X-Forwarded-Host and X-Forwarded-Proto.
        tls: serve https, with a certificate that is made when it opens, for localhost, 127.0.0.1,
            ::1, ``host`` and the host of ``files_url``; needs the extra ``tls``. Programs trust
            it when SSL_CERT_FILE is set to `ca_file`; with a path, that file is written there.
        accounts: further API keys and the balance of each. Each has its own account and its own
            rate limit.
        http_errors: a refusal's code is the HTTP status as well; False answers it with HTTP 200.
        log: called with a line for each request, task and callback, without keys and tokens; it
            must not block.

    Raises:
        ValueError: an argument is wrong; the text names it.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        webhook_key: str | None = None,
        credits: float = 10_000.0,
        time_scale: float = 1.0,
        faults: Faults | None = None,
        seed: int = 0,
        shape: Shape = "recorded",
        durations: Mapping[tuple[str, str], float] | None = None,
        prices: Mapping[tuple[str, str], float] | None = None,
        auto: bool = True,
        files_url: str | None = None,
        tls: bool | Path = False,
        accounts: Mapping[str, float] | None = None,
        http_errors: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """Check the arguments; nothing is opened yet."""
        _check(port, time_scale, shape)
        _check_keys(api_key=(api_key,), webhook_key=(webhook_key,), accounts=accounts or ())
        self._host = host
        self._port = port
        self._tls = tls
        self._certificate: Certificate | None = None
        self._faults = Faults() if faults is None else faults
        self._account = Account(credits)
        self._log = Log(log)
        self._book = Book(self._log.note)
        self._settings = Settings(
            api_key=api_key,
            webhook_key=webhook_key,
            time_scale=float(time_scale),
            faults=self._faults,
            seed=seed,
            shape=shape,
            durations=checked_table("durations", durations),
            prices=checked_table("prices", prices),
            auto=auto,
            files_url=_checked_files_url(files_url),
            accounts={key: checked_balance(own) for key, own in (accounts or {}).items()},
            http_errors=http_errors,
        )
        self._service: Service | None = None
        self._app: App | None = None
        self._runner: web.AppRunner | None = None
        self._url: str | None = None

    def __repr__(self) -> str:
        where = self._url or "not open"
        return f"<Sandbox {where}, {len(self._book.accepted)} accepted>"

    async def __aenter__(self) -> Self:
        """Open it: see `open`."""
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it: see `aclose`."""
        await self.aclose()

    async def open(self) -> None:
        """Begin to serve.

        Raises:
            OSError: if the address cannot be listened on, or the CA's certificate not written;
                the text names it.
            RuntimeError: if it was opened before.
            ImportError: for ``tls`` without the extra; the text says how to install it.
        """
        if self._service is not None:
            message = "a sandbox is opened once; make another"
            raise RuntimeError(message)
        if find_spec("PIL") is None:
            warn_without_pillow()
        self._service = Service(self._settings, self._book, self._account, self._log)
        self._app = App(self._service, lambda: self.url)
        self._runner = Runner(
            self._app.application(),
            access_log=None,
            shutdown_timeout=_GRACE,
            lingering_time=2 * _GRACE,
        )
        try:
            self._certificate = self._make_certificate()
            await self._runner.setup()
            self._url = await self._listen(self._runner)
        except BaseException:
            await self.aclose()
            raise

    def _make_certificate(self) -> Certificate | None:
        if self._tls is False:
            return None
        hosts = self._host, urlsplit(self._settings.files_url or "").hostname or ""
        return Certificate(hosts, self._tls if isinstance(self._tls, Path) else None)

    async def _listen(self, runner: web.AppRunner) -> str:
        # Beyond the queue a connection waits a second for its second SYN: no virtual clock sees it.
        ssl = self._certificate.context if self._certificate else None
        site = web.TCPSite(runner, self._host, self._port, backlog=_QUEUE, ssl_context=ssl)
        try:
            await site.start()
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            advice = "the port is taken; choose another one with port=, or 0 for any that is free"
            why = advice if taken else error.strerror or str(error)
            message = f"cannot listen on {self._host}:{self._port}: {why}"
            raise OSError(error.errno, message) from error
        return _url_of("https" if ssl else "http", self._host, site.port)

    async def aclose(self) -> None:
        """Stop serving: end all tasks, callbacks and connections within about a second.

        Closing it again does nothing. The ledger can still be read.
        """
        service, app, runner = self._service, self._app, self._runner
        if service is None or app is None or runner is None:
            return
        self._runner = None
        try:
            await service.stop()
        finally:
            await runner.cleanup()
            await app.aclose(_GRACE)
            service.files.close()
            if self._certificate is not None:
                self._certificate.remove()

    @property
    def url(self) -> str:
        """Where it serves, as "http://127.0.0.1:49152"; RuntimeError before it is open."""
        if self._url is None:
            message = "the sandbox is not open; use `async with Sandbox() as sandbox`"
            raise RuntimeError(message)
        return self._url

    @property
    def ca_file(self) -> Path | None:
        """The certificate of the CA, as PEM, for SSL_CERT_FILE; None without tls.

        If no path was given for it, its folder is removed when the sandbox closes.
        """
        return self._certificate.ca_file if self._certificate else None

    @property
    def ledger(self) -> Ledger:
        """What was accepted, requested and called back; may be read from any thread."""
        return self._book

    @property
    def faults(self) -> Faults:
        """The plan of faults; rules may be added at any time."""
        return self._faults

    @property
    def credits(self) -> float:
        """The balance of the account of every key that is not in ``accounts``; may be set."""
        return self._account.balance

    @credits.setter  # noqa: A003  the property of the class is meant
    def credits(self, balance: float) -> None:
        self._account.balance = checked_balance(balance)

    def finish(self, task_id: str) -> None:
        """Let a task succeed now, and send its callback.

        One that has succeeded stays as it is.

        Raises:
            KeyError: the sandbox has no task with this id.
            ValueError: if the task has failed.
        """
        self._open_service().end(task_id, None)

    def fail(
        self,
        task_id: str,
        *,
        message: str | None = _wire.NO_RESPONSE,
        code: int | str | None = _wire.SERVER_ERROR,
        flag: int = _wire.GENERATION_FAILED,
    ) -> None:
        """Let a task fail now, and send its callback.

        One that has failed stays as it is.

        Args:
            task_id: the task.
            message: the record's errorMessage.
            code: the record's errorCode.
            flag: the record's successFlag, 2 or 3.

        Raises:
            KeyError: the sandbox has no task with this id.
            ValueError: if the task has succeeded, or for another flag.
        """
        self._open_service().end(task_id, Failure(message, code, flag))

    async def call_back(
        self, task_id: str, *changes: CallbackAction, url: str | None = None
    ) -> int | None:
        """Send a task's callback now, once and apart from any that it sends by itself.

        A task that has not ended sends an acknowledgement, with no result.

        Args:
            task_id: the task.
            changes: the actions of `Faults` for callbacks: ``duplicate(3)`` and so on.
            url: where to; None is its own callBackUrl.

        Returns:
            The HTTP status of the answer, None if there was none.

        Raises:
            KeyError: the sandbox has no task with this id.
            ValueError: if there is no URL.
        """
        service = self._open_service()
        task = service.task(task_id)
        target = url or task.order.callback_url
        if target is None:
            message = f"task {task_id} has no callBackUrl; say url="
            raise ValueError(message)
        delivery = Delivery()
        for change in changes:
            delivery = change.change(delivery)
        return await service.caller.call_once(task, target, delivery)

    def _open_service(self) -> Service:
        if self._service is None or self._runner is None:
            message = "the sandbox is not open"
            raise RuntimeError(message)
        return self._service


def _check(port: int, time_scale: float, shape: str) -> None:
    if port not in range(65_536):
        message = f"port must be between 0 and 65535, not {port!r}"
        raise ValueError(message)
    if not (math.isfinite(time_scale) and time_scale > 0):
        message = f"time_scale must be a number above 0, not {time_scale!r}"
        raise ValueError(message)
    if shape not in ("recorded", "documented"):
        message = f"shape must be 'recorded' or 'documented', not {shape!r}"
        raise ValueError(message)


def _check_keys(**keys: Iterable[str | None]) -> None:
    for name, values in keys.items():
        if "" in values:
            message = f"{name}: a key must not be empty"
            raise ValueError(message)


def _checked_files_url(url: str | None) -> str | None:
    """Give the URL without a slash at its end; ValueError when no file could be found below it."""
    if url is None:
        return None
    with suppress(ValueError):
        parts = urlsplit(url)
        whole = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
        if whole and url.isascii() and url.isprintable() and not set(url) & set("?# @"):
            return url.rstrip("/")
    message = "files_url must be an http or https URL without user, ? and #"
    raise ValueError(message)


def _url_of(scheme: str, host: str, port: int) -> str:
    """The URL for programs on this machine."""
    # "All addresses" cannot be connected to.
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  not listened on
    return (
        f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"
    )
