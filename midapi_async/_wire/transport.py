"""The only HTTP session that talks to MidAPI.

One call, one exchange: nothing is sent a second time here, no redirect is followed, and what went
wrong is told with the one fact that matters for money, whether anything may have been sent.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.payload import BytesPayload
from yarl import URL

from .._version import __version__
from ..errors import TransportError
from .protocol import Answer, Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from ssl import SSLContext

    from aiohttp.abc import AbstractStreamWriter

    from .._runtime.clock import Clock
    from ..config import Settings

# MidAPI's answers are a few kilobytes; nobody gets to fill our memory.
LARGEST_ANSWER = 1 << 20
SHORTEST_REAL_KEY = 16
# Servers close idle connections; a POST on one that was just closed is an unknown submission.
LONGEST_IDLE = 2.0


class _WatchedPayload(BytesPayload):
    """A body that knows whether aiohttp began to write it: the proof of "not sent"."""

    written = False

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self.written = True
        await super().write_with_length(writer, content_length)

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.written = True
        await super().write(writer)


class _Incoming:
    """An answer while it arrives; what came before a fault is kept."""

    status: int | None = None
    headers: Mapping[str, str]

    def __init__(self) -> None:
        self.body = bytearray()

    async def read(self, response: aiohttp.ClientResponse) -> None:
        self.status, self.headers = response.status, response.headers
        content = response.content
        try:
            while not content.at_eof():
                self.body += await content.readany()
                if len(self.body) > LARGEST_ANSWER:
                    raise _AnswerTooLarge
        finally:
            response.release()


class _AnswerTooLarge(Exception):
    """The answer is larger than any of MidAPI's."""


class Transport:
    """Sends calls to one base URL with one API key.

    Args:
        settings: the key and the base URL.
        clock: the client's clock.
        connect_timeout: seconds for a connection, TLS included.
        ssl: a context of the user's, or None for the usual checks.
        proxy: an HTTP proxy's URL, or None.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        *,
        connect_timeout: float,
        ssl: SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self._base = str(settings.base_url).rstrip("/")
        self._key = _spelled(settings.api_key)
        runs = re.findall(rb"[a-z0-9]+", settings.api_key.lower().encode())
        self._key_part = max(runs, key=len, default=b"")
        self._clock = clock
        self._proxy = proxy
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                keepalive_timeout=LONGEST_IDLE, ssl=True if ssl is None else ssl
            ),
            # Of the session, and not of each call: aiohttp then copies them without a loop.
            headers={
                "Authorization": f"Bearer {settings.api_key}",
                "User-Agent": f"midapi-async/{__version__}",
                "Accept": "application/json",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=clock.network_seconds(connect_timeout)
            ),
        )

    async def call(self, call: Call, timeout: float) -> Answer:
        """Send one call, once, and read its answer as far as it comes.

        Args:
            call: what to send.
            timeout: seconds for everything, the answer's body included.

        Raises:
            TransportError: no answer came; `sent` tells whether MidAPI may have got the call.
        """
        incoming = _Incoming()
        payload = _WatchedPayload(call.body, content_type="application/json") if call.body else None
        flaw: str | None = None
        try:
            async with asyncio.timeout(None) as scope:
                timer = self._clock.expire(scope, timeout)
                try:
                    await incoming.read(await self._request(call, payload))
                finally:
                    timer.cancel()
        except Exception as error:  # noqa: BLE001 - whatever breaks a paid POST must be judged
            flaw = _told(error)
        # Outside the handler: aiohttp's errors show the API key, and must not hang on to ours.
        if incoming.status is None:
            sent = payload is None or payload.written
            raise TransportError(flaw or "no answer came", sent=sent)
        return Answer(incoming.status, incoming.headers, self._without_key(incoming.body), flaw)

    def _without_key(self, body: bytearray) -> bytes:
        """The body without our key, if a server echoes it; a test's short one may be a word."""
        if self._key is None or self._key_part not in body.lower():
            return bytes(body)
        return self._key.sub(b"***", body)

    def _request(
        self, call: Call, payload: _WatchedPayload | None
    ) -> Awaitable[aiohttp.ClientResponse]:
        return self._session.request(
            call.method,
            URL(self._base + call.path, encoded=True),
            data=payload,
            allow_redirects=False,
            proxy=self._proxy,
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.close()


def _told(fault: Exception) -> str:
    """A fault in a few words, without anything that aiohttp's own texts may show."""
    if isinstance(fault, _AnswerTooLarge):
        return f"its answer is larger than {LARGEST_ANSWER >> 20} MiB"
    if isinstance(fault, aiohttp.ServerDisconnectedError):
        return "the server closed the connection without an answer"
    if isinstance(fault, aiohttp.ClientPayloadError):
        return "its answer was cut short"
    if isinstance(fault, aiohttp.ClientHttpProxyError):
        return f"the proxy refused the connection (HTTP {fault.status})"
    if isinstance(fault, TimeoutError):
        return "no answer came in time"
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.strerror} ({type(fault).__name__})"
    return type(fault).__name__


def _spelled(key: str) -> re.Pattern[bytes] | None:
    """A key, however a JSON library may have written it; None for one that may be a word."""
    if len(key) < SHORTEST_REAL_KEY:
        return None
    ways = (
        c if c.isalnum() else rf"(?:{re.escape(c)}|\\{re.escape(c)}|\\u{ord(c):04x})" for c in key
    )
    return re.compile("".join(ways).encode(), re.IGNORECASE)
