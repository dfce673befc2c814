"""The HTTP sessions that talk to MidAPI: one for what costs money, one for everything else.

Each call is sent once: nothing is sent a second time here, and no redirect is followed. An error
says whether anything may have been sent, which decides whether money may have been spent.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from io import BytesIO
from ssl import SSLContext

import aiohttp
from aiohttp import AddrInfoType
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import BytesPayload
from yarl import URL

from .._runtime.clock import Clock
from .._runtime.secret import Secret
from .._runtime.urls import host_in_url, is_loopback
from .._version import __version__
from ..config import Settings
from ..errors import TransportError
from .protocol import Answer, Call

# MidAPI's answers are a few kilobytes; a larger one must not fill our memory, and reading one must
# not hold the event loop (1 MiB: 0.3 s). Of a paid call more is read, to find the task id.
LARGEST_ANSWER, LARGEST_PAID_ANSWER = 1 << 18, 1 << 20
# Bytes of one header, and how many there may be; proxies and firewalls add long ones.
LARGEST_HEADER, MOST_HEADERS = 1 << 16, 1 << 10
SHORTEST_REAL_KEY = 16  # characters
# Seconds. Servers close idle connections, and a look on a closed connection has to be repeated.
LONGEST_IDLE = 2.0
# Seconds in which MidAPI's system must acknowledge what was sent of a call that costs money.
LONGEST_UNSEEN = 10.0


def _socket_of_a_paid_call(connect_timeout: float, address: AddrInfoType) -> socket.socket:
    """A socket that gives up when what it has sent is not acknowledged for some seconds.

    Else the system goes on sending it for many minutes, also after the call has ended with a
    timeout, and a POST that is held for lost would still arrive when the network is back.
    """
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        # It ends connecting, too. The largest number is that of the system.
        unseen = min(1000 * max(LONGEST_UNSEEN, connect_timeout), 2**31 - 1)
        with suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unseen))
    return made


class _WatchedPayload(BytesPayload):
    """A body that records whether aiohttp began to write it; if not, the call was not sent.

    aiohttp sends the headers together with the body, so until then no byte has been sent.

    Args:
        body: the bytes.
        confirm: awaited before the first byte is sent; if it raises, nothing is sent.
    """

    def __init__(self, body: bytes, confirm: Callable[[], Awaitable[object]] | None) -> None:
        super().__init__(body, content_type="application/json")
        self._confirm = confirm
        self.written = False

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        await self._begin()
        await super().write_with_length(writer, content_length)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self._begin()
        await super().write(writer)

    async def _begin(self) -> None:
        if self._confirm is not None:
            await self._confirm()
        self.written = True


class Transport:
    """Sends calls to one base URL with one API key.

    Args:
        settings: the key and the base URL.
        clock: the client's clock.
        connect_timeout: seconds for a connection, TLS included.
        ssl: the user's TLS context, or None for the usual checks.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        *,
        connect_timeout: float,
        ssl: SSLContext | None = None,
    ) -> None:
        self._base = str(settings.base_url).rstrip("/")
        self._proxy = URL(settings.proxy) if settings.proxy else None
        self._key = _key_pattern(settings.api_key)
        self._key_part = max(
            re.findall(rb"[a-z0-9]+", settings.api_key.lower().encode()), key=len, default=b""
        )
        self._clock = clock
        checks = True if ssl is None else ssl
        connect_timeout = clock.network_seconds(connect_timeout)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)

        # Those that are not closed, and how many calls are under way in each.
        self._calls: dict[aiohttp.ClientSession, int] = {}

        def session(connector: aiohttp.TCPConnector, **headers: str) -> aiohttp.ClientSession:
            made = aiohttp.ClientSession(
                connector=connector,
                # Given to the session and not to each call, because aiohttp copies them faster so.
                headers={
                    # A `Secret`, because aiohttp's functions hold it in local variables.
                    "Authorization": Secret(f"Bearer {settings.api_key}"),
                    "User-Agent": f"midapi-async/{__version__}",
                    "Accept": "application/json",
                    # Else aiohttp offers what the installed packages can decode.
                    "Accept-Encoding": "gzip, deflate",
                    **headers,
                },
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=timeout,
                proxy=self._proxy,
                max_line_size=LARGEST_HEADER,
                max_field_size=LARGEST_HEADER,
                max_headers=MOST_HEADERS,
                # aiohttp cannot read an answer whose Content-Encoding is wrong.
                auto_decompress=False,
            )
            self._calls[made] = 0
            return made

        def new_session() -> aiohttp.ClientSession:
            return session(aiohttp.TCPConnector(keepalive_timeout=LONGEST_IDLE, ssl=checks))

        self._new_session = new_session
        self._session = new_session()
        # Each call that costs money gets a new connection: a reused one may have been closed by the
        # server, or contain the answer to another call. There is no limit of connections, because
        # the journal's row is written by then and the call must be sent at once. The answer must
        # not be compressed, so that its beginning can be read even if the rest is lost.
        self._paid_session = session(
            aiohttp.TCPConnector(
                force_close=True,
                limit=0,
                ssl=checks,
                socket_factory=partial(_socket_of_a_paid_call, connect_timeout),
            ),
            **{"Accept-Encoding": "identity"},
        )

    async def call(
        self,
        call: Call,
        timeout: float,
        confirm: Callable[[], Awaitable[object]] | None = None,
    ) -> Answer:
        """Send one call, once, and read as much of its answer as arrives.

        Args:
            call: what to send.
            timeout: seconds for everything, the answer's body included.
            confirm: awaited when there is a connection, before the first byte of a call with a body
                is sent; if it raises, nothing is sent.

        Raises:
            TransportError: no answer came; `sent` is False only if MidAPI cannot have received it.
        """
        payload = _WatchedPayload(call.body, confirm) if call.body else None
        session = self._paid_session if call.is_paid else self._session
        largest = LARGEST_PAID_ANSWER if call.is_paid else LARGEST_ANSWER
        url = URL(self._base + call.path, encoded=True)
        response: aiohttp.ClientResponse | None = None
        received = BytesIO()  # not `bytes`, which a traceback with local variables shows
        failure: TransportError | None = None
        self._calls[session] += 1
        try:
            async with asyncio.timeout(None) as scope:
                timer = self._clock.expire(scope, timeout)
                try:
                    response = await session.request(
                        call.method, url, data=payload or call.form, allow_redirects=False
                    )
                    while not response.content.at_eof() and received.tell() <= largest:
                        received.write(await response.content.readany())
                finally:
                    timer.cancel()
                    if response is not None:
                        response.release()
        except Exception as error:  # noqa: BLE001 - whatever breaks a paid POST must be judged
            failure = failure_of(error, url, self._proxy)
        finally:
            self._calls[session] -= 1
            if session is not self._session:
                await self._close_if_unused(session)
        # Raised outside the handler: aiohttp's error, which contains the API key, is not its cause.
        if response is None:
            failure = failure or TransportError("no answer came")
            failure.sent = payload is None or payload.written
            raise failure
        if self._proxy is not None and url.scheme == "http" and response.status == 407:
            # Over plain http, a proxy that refuses a call answers it in place of MidAPI.
            raise refused_by_proxy(response.status, self._proxy)
        flaw = failure.reason if failure is not None else None
        plain = _decompressed(received.getvalue(), largest)
        if len(plain) > largest:
            flaw = f"its answer is larger than {largest >> 10:,} KiB"
        return Answer(response.status, response.headers, self._without_key(plain), flaw, session)

    async def replace(self, answer: Answer) -> None:
        """Use new connections from now on, after an answer that may belong to another call.

        All later answers on its connection may be shifted, too. The old connections are closed when
        the calls have ended that are under way on them.
        """
        if answer.session is self._session:
            old, self._session = self._session, self._new_session()
            await self._close_if_unused(old)

    async def _close_if_unused(self, session: aiohttp.ClientSession) -> None:
        is_old = session is not self._session and session is not self._paid_session
        if is_old and self._calls.get(session) == 0:
            del self._calls[session]
            await session.close()

    def _without_key(self, body: bytes) -> bytes:
        """The body without our API key, which a server may repeat."""
        if self._key is None or self._key_part not in body.lower():
            return body
        return self._key.sub(b"***", body)

    async def aclose(self) -> None:
        """Close every connection."""
        async with AsyncExitStack() as exits:
            for session in self._calls:
                exits.push_async_callback(session.close)


def _decompressed(body: bytes, largest: int) -> bytes:
    """A body without its compression; at most one byte more than the largest.

    The body itself shows whether and how it is compressed. The Content-Encoding may be wrong or
    missing, because proxies change one and not the other.
    """
    if body[:1] in (b"", b"{"):
        return body
    for window in (47, -15):  # gzip or zlib, by their headers; deflate without one
        with suppress(zlib.error):
            plain = zlib.decompressobj(window).decompress(body, largest + 1)
            if (plain and window > 0) or plain[:1] == b"{":
                return plain
    return body


def failure_of(error: Exception, url: URL, proxy: URL | None) -> TransportError:
    """What has failed, in words; aiohttp's own texts may contain secrets.

    Args:
        error: what aiohttp has raised.
        url: of the call.
        proxy: the proxy's URL, or None.
    """
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return TransportError("the server closed the connection without an answer")
    if isinstance(error, aiohttp.ClientPayloadError):
        return TransportError("its answer was cut short")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        problem = getattr(error.certificate_error, "verify_message", "") or "it is not valid"
        return TransportError(
            f"its certificate is refused: {problem}",
            permanent=True,
            advice="If its authority is your own, pass ssl=ssl.create_default_context(cafile=…) or "
            "set SSL_CERT_FILE",
        )
    if isinstance(error, aiohttp.ClientHttpProxyError) and proxy is not None:
        return refused_by_proxy(error.status, proxy)
    if isinstance(error, aiohttp.ClientResponseError):
        return TransportError("the answer is not HTTP")
    # The rest is about the connection, to the proxy if there is one.
    server = proxy or url
    place = f"{host_in_url(server.host or '')}:{server.port}"
    named = place if proxy is None else f"the proxy {place}"
    settings = "the base URL" if proxy is None else "the proxy's URL (proxy=, MIDAPI_PROXY)"
    advice = f"Check the network and {settings}"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        reason = getattr(error.os_error, "reason", None) or "no reason given"
        if is_loopback(url):
            advice = "If it is the sandbox, use http:// in the base URL"
        return TransportError(f"TLS failed ({reason})", permanent=is_loopback(url), advice=advice)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        reason = error.os_error.strerror or "no reason given"
        what = "the name" if proxy is None else "the proxy's name"
        return TransportError(f"{what} {server.host} does not resolve ({reason})", advice=advice)
    if isinstance(error, TimeoutError):
        is_connected = not isinstance(error, aiohttp.ConnectionTimeoutError)
        what = "no answer came" if is_connected else f"no connection to {named} was made"
        reason = f"{what} in time"
        if blind := unseen(server):
            reason += blind
            advice = "Run the server in the test's own event loop, or use a loop with a real clock"
        return TransportError(reason, timed_out=True, advice=advice)
    if isinstance(error, aiohttp.ClientConnectorError) and error.errno == errno.ECONNREFUSED:
        if not is_loopback(server):
            return TransportError(f"{named} refuses the connection", advice=advice)
        # Not retried: nobody starts a program there within that time.
        advice = (
            "Is the sandbox running ('midapi sandbox')? If not, start it, or correct the base URL "
            "(MIDAPI_BASE_URL)"
            if proxy is None
            else f"Start the proxy, or correct {settings}"
        )
        what = "" if proxy is None else ", where the proxy should be"
        reason = f"nothing listens on {place}{what}"
        return TransportError(reason, permanent=True, advice=advice)
    if isinstance(error, OSError) and error.strerror:
        return TransportError(f"{error.strerror} ({type(error).__name__})", advice=advice)
    return TransportError(type(error).__name__, advice=advice)


def unseen(server: URL) -> str:
    """What to add to a timeout, if a test's virtual clock cannot see the server; else nothing."""
    serves = getattr(asyncio.get_running_loop(), "serves", None)  # see `midapi_async.testing`
    if serves is None or serves(server.port):
        return ""
    return ", by a virtual clock that cannot see a server outside of its event loop"


def refused_by_proxy(status: int, proxy: URL) -> TransportError:
    """The error for a proxy's own answer, given when it does not forward a call."""
    reason = f"the proxy {host_in_url(proxy.host or '')}:{proxy.port} refuses it (HTTP {status})"
    advice = "Ask the administrator of the proxy, or correct its URL (proxy=, MIDAPI_PROXY)"
    if status == 407:
        reason = f"{reason}: it wants a user name and a password that it knows"
        advice = "Put them into its URL (proxy=, MIDAPI_PROXY): http://USER:PASSWORD@HOST:PORT"
    # After a 4xx it will refuse the next call, too; a 5xx may be temporary.
    is_final = 400 <= status <= 499 and status not in (408, 429)
    return TransportError(reason, permanent=is_final, advice=advice)


def _key_pattern(key: str) -> re.Pattern[bytes] | None:
    """Matches a key with any escapes of JSON; None if it is so short that it may be a word."""
    if len(key) < SHORTEST_REAL_KEY:
        return None
    spellings = (
        c if c.isalnum() else rf"(?:{re.escape(c)}|\\{re.escape(c)}|\\u{ord(c):04x})" for c in key
    )
    return re.compile("".join(spellings).encode(), re.IGNORECASE)
