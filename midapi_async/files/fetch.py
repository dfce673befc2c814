"""Fetches files over HTTP, and checks each while its blocks arrive: kind, size, speed, end.

There is one `Fetcher` for a client, and one `Fetch` for each file: it makes the attempts. A
download to the disk and ``client.open_result`` read the same blocks, so both have every check.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from ssl import SSLContext
from typing import TypeVar

import aiohttp
import attrs
from yarl import URL

from .._runtime.clock import BLOCKED_LOOP, Clock
from .._version import __version__
from .._wire.protocol import retry_after
from .._wire.transport import LARGEST_HEADER, MOST_HEADERS, failure_of, refused_by_proxy, unseen
from ..config import Settings
from ..errors import (
    ClientClosed,
    DownloadError,
    InvalidRequestError,
    MidAPIError,
    ResultExpired,
    TransportError,
    UnexpectedContent,
    shown,
)
from .content import LONGEST_START, EndCheck, extension_of, looks_like
from .hosts import Connecting, HostRules, connecting, host_of, parsed

T = TypeVar("T")
_log = logging.getLogger("midapi_async.files")

PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between attempts: a minute in all
LONGEST = 600.0  # seconds that a host may let us wait for one file, in all attempts together
WINDOW = 30.0  # seconds of waiting in which a host must send at least:
SLOWEST = 1000  # bytes in a second
MOST_REDIRECTS = 3
READ_AHEAD = 1 << 19  # bytes; aiohttp reads up to twice as many before we take them

# The first byte of each kind of file that we know. A body that begins with one of them and has less
# than _SHORT bytes was cut; so was an empty one.
_FIRST_BYTES = b"\xff\x89RG\x1a\0"
_SHORT = 12
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class AttemptFailed(Exception):
    """An attempt failed, and another one may succeed.

    Attributes:
        error: what to raise if there is no other attempt.
        retry_after: seconds that the host asks to wait; None if it does not.
        is_gone: whether the host says that it does not have the file, or refuses it.
    """

    def __init__(
        self, error: DownloadError, retry_after: float | None = None, *, is_gone: bool = False
    ) -> None:
        super().__init__(error)
        self.error = error
        self.retry_after = retry_after
        self.is_gone = is_gone


@attrs.frozen
class Body:
    """A file that a host has begun to send.

    Attributes:
        extension: for its content.
        total: its size as the host says it, in bytes; None if it does not.
        blocks: its bytes; at the end, whether they are whole is checked.
    """

    extension: str
    total: int | None
    blocks: AsyncIterator[bytes]


def check_file_options(downloads_at_once: object, max_file: object, hosts: object) -> None:
    """Check a client's options for files.

    Raises:
        InvalidRequestError: naming each option that is wrong.
    """
    problems = {}
    for name, value in (("downloads_at_once", downloads_at_once), ("max_file", max_file)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems[name] = f"must be a positive whole number, got {shown(value)}"
    if hosts is not None:
        is_list = not isinstance(hosts, str | bytes | Mapping)
        if not is_list or not isinstance(hosts, Collection) or not all(map(host_of, hosts)):
            problems["result_hosts"] = (
                f"must be a list of hosts, like ['files.example.org'], got {shown(hosts)}"
            )
    if problems:
        raise InvalidRequestError(problems)


class Fetcher:
    """A client's HTTP session for files, and what all of them share: the rules and the slots.

    It is not the session that talks to MidAPI, so that no file host gets the API key.

    Args:
        settings: MidAPI's address and the proxy. With a proxy, only addresses that are written in
            URLs can be checked: the proxy resolves the names.
        clock: the client's clock.
        link: gets a download link for a result's URL from MidAPI.
        connect_timeout: seconds for a connection, TLS included.
        at_once: how many files are fetched at a time.
        max_file: bytes of the largest file.
        hosts: the only hosts that files may come from; see `HostRules`.
        ssl: the user's TLS context, or None for the usual checks.

    Attributes:
        rules: where files may come from.
        slots: one is held while a file is being fetched.
        stopped: set when no attempt is repeated any more.
        folders: where this client has removed the part files of killed processes.
        waits: the timeouts of all waits for a host that are going on.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        link: Callable[[str], Awaitable[str]],
        *,
        connect_timeout: float,
        at_once: int,
        max_file: int,
        hosts: Collection[str] | None,
        ssl: SSLContext | None = None,
    ) -> None:
        self.clock = clock
        self.link = link
        self.max_file = max_file
        self.slots = asyncio.Semaphore(at_once)
        self.stopped = asyncio.Event()
        self.folders: set[Path] = set()
        self.waits: set[asyncio.Timeout] = set()
        self.rules = HostRules(settings.base_url, hosts)
        self.proxy = URL(settings.proxy) if settings.proxy else None
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=True if ssl is None else ssl,
                limit=0,  # the slots are the limit
                socket_factory=None if self.proxy else self.rules.make_socket,
            ),
            headers={
                # Some hosts refuse the default one of a library.
                "User-Agent": f"midapi-async/{__version__}",
                # Else a small body may become a file of any size, and lengths mean nothing.
                "Accept-Encoding": "identity",
            },
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=clock.network_seconds(connect_timeout)
            ),
            read_bufsize=READ_AHEAD,
            max_line_size=LARGEST_HEADER,
            max_field_size=LARGEST_HEADER,
            max_headers=MOST_HEADERS,
        )

    async def stream(self, url: str) -> AsyncGenerator[bytes, None]:
        """The blocks of a file. Until the first one is given out, failures are retried.

        Raises:
            DownloadError: the file could not be fetched.
        """
        fetch, has_begun = Fetch(self, url), False
        while True:
            try:
                async with fetch.open() as body:
                    async for block in body.blocks:
                        has_begun = True
                        yield block
                return
            except AttemptFailed as failure:
                if has_begun:
                    raise failure.error from None
                reason = failure
            await fetch.pause(reason)

    async def aclose(self) -> None:
        """Close every connection; what is being fetched raises `ClientClosed`."""
        self.stopped.set()
        await self.session.close()
        for scope in self.waits:  # aiohttp does not wake them
            with suppress(RuntimeError):  # it is ending
                scope.reschedule(self.clock.loop.time())
        # A stream whose consumer is away keeps its slot. With one more, those that wait for a slot
        # find, one after the other, that the client is closed.
        self.slots.release()


class Fetch:
    """The attempts to fetch one file, and how much time is left for them.

    Args:
        fetcher: the client's fetcher.
        url: of the file.
        is_old: whether its task is so old that MidAPI has deleted the file.
    """

    def __init__(self, fetcher: Fetcher, url: str, *, is_old: bool = False) -> None:
        self._fetcher = fetcher
        self._clock = fetcher.clock
        self._time = fetcher.clock.loop.time
        self._url = url
        self._is_old = is_old
        self._from = url  # what is asked for: the file's URL, or in the end a link to it
        self._at = URL()  # where its redirects have led so far
        self._pauses = list(PAUSES)
        self._pause_left = sum(PAUSES)
        # How long the host may still let us wait, in seconds of the loop: for the whole file, and
        # until its speed is checked again.
        self._left = self._clock.network_seconds(LONGEST)
        self._window = self._clock.network_seconds(WINDOW)
        self._window_left = self._window
        self._window_bytes = 0

    # ─── attempts ────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Body]:
        """One attempt: ask for the file, and check its first bytes.

        Raises:
            AttemptFailed: it failed, here or while the blocks were read; call `pause`, then repeat.
            DownloadError: it failed, and trying again is useless.
        """
        async with self._fetcher.slots:
            self._window_left, self._window_bytes = self._window, 0
            response = await self._ask()
            try:
                self._check_status(response)
                total = response.content_length
                if total is not None and total > self._fetcher.max_file:
                    raise self._too_large()
                start = b""
                while len(start) < LONGEST_START and (block := await self._read(response)):
                    start += block
                extension = extension_of(start[:LONGEST_START])
                if extension is None:
                    raise self._unexpected(start, response)
                yield Body(extension, total, self._blocks(start, response, EndCheck(extension)))
            finally:
                response.release()  # this closes the connection if the body was not read to its end

    async def pause(self, failure: AttemptFailed) -> None:
        """Wait until the next attempt.

        Raises:
            DownloadError: there is no other attempt; this is why the last one failed.
        """
        if failure.is_gone and self._is_old:
            reason = f"{failure.error.reason}, and its task is older than 15 days"
            raise ResultExpired(self._url, reason, failure.error.status)
        if self._left <= 0 or self._from != self._url or self._fetcher.stopped.is_set():
            raise failure.error
        pause = max(self._pauses.pop(0), failure.retry_after or 0.0) if self._pauses else math.inf
        if pause <= self._pause_left:
            self._pause_left -= pause
            is_third = len(PAUSES) - len(self._pauses) == 3
            level, reason = logging.WARNING if is_third else logging.INFO, failure.error.reason
            _log.log(level, "%s: %s; trying again in %g s", self._url, reason, pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause / self._clock.scale):
                    await self._fetcher.stopped.wait()
                    raise failure.error
            return
        # The pauses are used up: make one last attempt, through a link from MidAPI.
        self._pauses.clear()
        try:
            self._from = await self._fetcher.link(self._url)
        except MidAPIError as error:
            reason = f"{failure.error.reason}, and MidAPI gave no download link for it either"
            raise attrs.evolve(failure.error, reason=reason) from error
        if self._from == self._url:
            raise failure.error

    # ─── one attempt ─────────────────────────────────────────────────────────────────────────────

    async def _ask(self) -> aiohttp.ClientResponse:
        """The answer to a GET, after redirects."""
        fetcher, before, url = self._fetcher, None, parsed(self._from)
        if url is None:
            raise DownloadError(self._url, "it is not a valid URL")
        for _ in range(MOST_REDIRECTS + 1):
            if problem := fetcher.rules.problem_of(url, before):
                raise DownloadError(self._url, problem)
            response = await self._get(url)
            if response.status not in _REDIRECTS:
                return response
            response.release()
            target = parsed(response.headers.get("Location", ""))
            if target is None:
                reason = f"the host redirects to no valid URL (HTTP {response.status})"
                raise DownloadError(self._url, reason, response.status)
            before, url = url, url.join(target)
        raise DownloadError(self._url, f"it redirects more than {MOST_REDIRECTS} times")

    async def _get(self, url: URL) -> aiohttp.ClientResponse:
        fetcher, self._at = self._fetcher, url
        connection = Connecting(may_be_private=fetcher.rules.is_own(url))
        token = connecting.set(connection)
        try:
            return await self._wait(
                lambda: fetcher.session.get(url, allow_redirects=False, proxy=fetcher.proxy)
            )
        except AttemptFailed:
            if not connection.refused or connection.tried:
                raise
        finally:
            connecting.reset(token)
        address = connection.refused[0]
        where = url.host if address == url.host else f"{url.host} ({address})"
        raise DownloadError(self._url, f"it leads to {where}, which is not a public address")

    def _check_status(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status == 200:
            return
        if status == 407 and self._fetcher.proxy is not None:
            failure = refused_by_proxy(status, self._fetcher.proxy)
            raise DownloadError(self._url, f"{failure.reason}. {failure.advice}", status)
        if status == 410:
            raise ResultExpired(self._url, "the file host says that it was deleted (HTTP 410)", 410)
        meaning = {
            403: "refuses it (HTTP 403): it may refuse this network or this program, or the file "
            "was deleted",
            404: "does not have it (HTTP 404): it may not be there yet, or it was deleted",
            429: "gets too many requests (HTTP 429)",
        }.get(status, f"answered HTTP {status}")
        error = DownloadError(self._url, f"the file host {meaning}", status)
        if status in (403, 404, 408, 425, 429) or status >= 500:
            asked = retry_after(response.headers)
            raise AttemptFailed(error, asked, is_gone=status in (403, 404))
        raise error

    def _unexpected(self, start: bytes, response: aiohttp.ClientResponse) -> Exception:
        coding = response.headers.get("Content-Encoding", "identity").lower()
        what = looks_like(start)
        if coding != "identity":
            what = f"compressed ({coding[:20]!r}), which was not asked for"
        error = UnexpectedContent(
            self._url, f"the content is {what}, not a picture or a video", 200
        )
        was_cut = len(start) < _SHORT and start[:1] in _FIRST_BYTES
        return AttemptFailed(error) if was_cut else error

    async def _blocks(
        self, block: bytes, response: aiohttp.ClientResponse, end: EndCheck
    ) -> AsyncIterator[bytes]:
        """The blocks of a file, from the first one on."""
        size, largest = 0, self._fetcher.max_file
        while block:
            size += len(block)
            if size > largest:
                raise self._too_large()
            end.feed(block)
            yield block
            block = await self._read(response)
        if problem := end.finish():
            raise AttemptFailed(DownloadError(self._url, f"it came incomplete: {problem}"))
        if end.remark:
            _log.warning("%s: %s. The file is kept.", self._url, end.remark)

    def _too_large(self) -> DownloadError:
        largest = self._fetcher.max_file
        return DownloadError(self._url, f"it is larger than {largest:,} bytes (max_file)")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        block = await self._wait(response.content.readany)
        self._window_bytes += len(block)
        return block

    async def _wait(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call what waits for the host, and check that the host does not take too long.

        Only this time counts: not what the reader of the blocks takes, nor the pauses.
        """
        while True:
            if self._fetcher.session.closed:
                raise ClientClosed
            began, patience = self._time(), min(self._left, self._window_left)
            failure: TransportError | None = None
            results: list[T] = []
            scope = asyncio.timeout(patience)
            try:
                async with scope:
                    self._fetcher.waits.add(scope)
                    results.append(await call())
            except Exception as error:
                if self._fetcher.session.closed:
                    raise ClientClosed from None
                if not isinstance(error, aiohttp.ClientError | OSError | ValueError):
                    raise
                if not scope.expired():
                    failure = failure_of(error, self._at, self._fetcher.proxy)
            finally:
                self._fetcher.waits.discard(scope)
            took = self._time() - began
            self._left -= min(took, patience)
            self._window_left -= min(took, patience)
            # Raised outside the handler, since aiohttp's error has the proxy's password.
            if failure is not None:
                raise self._failed(failure)
            if scope.expired() and took - patience > BLOCKED_LOOP:
                # The loop was blocked, so the data may have arrived without being read yet. Wait a
                # little longer for it, and do not call the host slow.
                self._window_left = BLOCKED_LOOP
                self._window_bytes = int(SLOWEST * self._window)
            self._check_speed()
            if results:
                return results[0]

    def _failed(self, failure: TransportError) -> Exception:
        reason = f"the connection failed: {failure.reason}"
        if failure.permanent:
            return DownloadError(self._url, f"{reason}. {failure.advice}")
        return AttemptFailed(DownloadError(self._url, reason))

    def _check_speed(self) -> None:
        """Raise if the time for the file is over, or if the host was too slow in this window."""
        if self._left <= 0:
            raise DownloadError(self._url, f"it took longer than {LONGEST:g} s")
        if self._window_left <= 0:
            if self._window_bytes < SLOWEST * self._window:
                reason = f"the file host sent less than {SLOWEST} bytes a second"
                reason += unseen(self._fetcher.proxy or self._at)
                raise AttemptFailed(DownloadError(self._url, reason))
            self._window_left, self._window_bytes = self._window, 0
