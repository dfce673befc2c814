"""Connects to a URL step by step (name, address, connection, TLS, request): which one fails?"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs

from . import _http1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from yarl import URL

    Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0  # MidAPI waits this long for the answer to a callback
_NAME_SECONDS = 10.0
_MOST_ADDRESSES = 4


class Fault(Exception):
    """Why there is no answer.

    Attributes:
        kind: one of the kinds that `_diagnosis.explain` knows.
        detail: the text of the system or of OpenSSL; may be empty.
    """

    def __init__(self, kind: str, detail: object = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = str(detail)


@attrs.frozen
class Endpoint:
    """One address to connect to.

    Attributes:
        address: an IP address, or a name for a proxy.
        port: the TCP port.
        tls_name: the name that the certificate must have; None for plain http.
        proxy: the URL of the proxy to go through, or None; then the address is a name.
    """

    address: str
    port: int
    tls_name: str | None = None
    proxy: URL | None = attrs.field(default=None, repr=False)  # may contain a password

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


@attrs.frozen
class Outcome:
    """The result of one request.

    Attributes:
        endpoint: where it was sent.
        answer: what came back, or None.
        fault: why there is no answer, or None.
        seconds: how long it took, from the connection to the answer.
        certificate_ends: when the certificate expires, in epoch seconds; None without TLS.
    """

    endpoint: Endpoint
    answer: _http1.Message | None = None
    fault: Fault | None = None
    seconds: float = 0.0
    certificate_ends: float | None = None


async def resolve(url: URL, proxy: URL | None = None) -> list[Endpoint]:
    """The addresses of a URL; at most four. A proxy resolves the name itself.

    Raises:
        Fault: its name does not resolve.
    """
    host, port = url.raw_host or "", url.port or 0
    tls_name = host if url.scheme == "https" else None
    if proxy is not None:
        return [Endpoint(host, port, tls_name, proxy)]
    try:
        async with asyncio.timeout(_NAME_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
    except TimeoutError:
        raise Fault("name", "no name server answered") from None
    except (OSError, UnicodeError) as error:
        raise Fault("name", getattr(error, "strerror", None) or error) from None
    addresses = dict.fromkeys(str(each[4][0]) for each in found)
    return [Endpoint(address, port, tls_name) for address in list(addresses)[:_MOST_ADDRESSES]]


async def send(endpoint: Endpoint, request: bytes) -> Outcome:
    """The result of sending one request; raises nothing."""
    time = asyncio.get_running_loop().time
    begun, ends = time(), None
    try:
        async with _connected(endpoint) as connection:
            ends = _certificate_ends(connection)
            answer = await _exchange(connection, _for_proxy(endpoint, request))
            if answer.status == 407 and endpoint.proxy is not None:
                raise _refused_by_proxy(endpoint.proxy, answer.status)
            if answer.status == 400 and await _speaks_tls(endpoint):
                raise Fault("speaks_tls")
    except Fault as fault:
        if fault.kind in {"closed", "garbage"} and await _speaks_tls(endpoint):
            fault = Fault("speaks_tls")
        return Outcome(endpoint, None, fault, time() - begun, ends)
    return Outcome(endpoint, answer, None, time() - begun, ends)


@asynccontextmanager
async def _connected(endpoint: Endpoint) -> AsyncIterator[Connection]:
    """A connection, with TLS if the URL is https."""
    async with _plain(endpoint) as connection:
        if endpoint.tls_name is None:
            yield connection
            return
    secured = _secured if endpoint.proxy is None else _tunnelled
    async with secured(endpoint, endpoint.tls_name) as connection:
        yield connection


@asynccontextmanager
async def _plain(endpoint: Endpoint) -> AsyncIterator[Connection]:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await _connection_to(endpoint)
    except TimeoutError:
        raise _fault_at(endpoint, "filtered", "does not answer") from None
    except ConnectionRefusedError:
        raise _fault_at(endpoint, "refused", "refuses the connection") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _fault_at(endpoint, "unreachable", reason) from None
    try:
        yield connection
    finally:
        await _close(connection)


async def _connection_to(endpoint: Endpoint) -> Connection:
    """A connection to the endpoint, or to its proxy."""
    proxy = endpoint.proxy
    if proxy is None:
        return await asyncio.open_connection(endpoint.address, endpoint.port)
    tls = ssl.create_default_context() if proxy.scheme == "https" else None
    return await asyncio.open_connection(proxy.host, proxy.port, ssl=tls)


# ─── proxies ─────────────────────────────────────────────────────────────────────────────────────


def place_of(proxy: URL) -> str:
    """A proxy's host and port, without its password."""
    return str(Endpoint(proxy.host or "", proxy.port or 0))


def _fault_at(endpoint: Endpoint, kind: str, reason: str) -> Fault:
    """Why there is no connection: the endpoint's own fault, or its proxy's."""
    if endpoint.proxy is None:
        return Fault(kind, reason)
    return Fault("proxy", f"{place_of(endpoint.proxy)}: {reason}")


def _refused_by_proxy(proxy: URL, status: int) -> Fault:
    wants = ", it wants a user name and a password that it knows" if status == 407 else ""
    return Fault("proxy", f"{place_of(proxy)}: it refuses the request (HTTP {status}{wants})")


def _login(proxy: URL) -> str:
    """The header line with the user name and the password in a proxy's URL; may be empty."""
    if proxy.user is None:
        return ""
    login = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    return f"Proxy-Authorization: Basic {login}\r\n"


def _for_proxy(endpoint: Endpoint, request: bytes) -> bytes:
    """A request of plain http as its proxy wants it: with the whole URL in the first line."""
    if endpoint.proxy is None or endpoint.tls_name is not None:
        return request
    method, _, rest = request.partition(b" ")
    first, _, lines = rest.partition(b"\r\n")
    login = _login(endpoint.proxy)
    return b"%b http://%b%b\r\n%b%b" % (
        method,
        str(endpoint).encode(),
        first,
        login.encode(),
        lines,
    )


@asynccontextmanager
async def _tunnelled(endpoint: Endpoint, name: str) -> AsyncIterator[Connection]:
    """A connection with TLS through a proxy."""
    proxy = endpoint.proxy
    assert proxy is not None  # noqa: S101 - as its caller has checked
    async with _plain(endpoint) as connection:
        reader, writer = connection
        head = f"CONNECT {endpoint} HTTP/1.1\r\nHost: {endpoint}\r\n{_login(proxy)}\r\n"
        writer.write(head.encode("latin-1"))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status = (await _http1.read_head(reader, "HTTP/1.")).status
        except (TimeoutError, _http1.NotHTTP):
            raise _fault_at(endpoint, "slow", "it does not answer like a proxy") from None
        if status != 200:
            raise _refused_by_proxy(proxy, status)
        try:
            await writer.start_tls(
                ssl.create_default_context(),
                server_hostname=name,
                ssl_handshake_timeout=CONNECT_SECONDS,
            )
        except ssl.SSLCertVerificationError as error:
            raise Fault(f"certificate {error.verify_code}", error.verify_message) from None
        except (OSError, EOFError) as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            raise Fault("no_tls", reason) from None
        yield connection


# ─── TLS ─────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def _secured(endpoint: Endpoint, name: str) -> AsyncIterator[Connection]:
    try:
        connection = await asyncio.open_connection(
            endpoint.address,
            endpoint.port,
            ssl=ssl.create_default_context(),
            server_hostname=name,
            ssl_handshake_timeout=CONNECT_SECONDS,
        )
    except ssl.SSLCertVerificationError as error:
        raise Fault(f"certificate {error.verify_code}", error.verify_message) from None
    except (OSError, EOFError) as error:
        if await _speaks_http(endpoint):
            raise Fault("plain_http") from None
        if isinstance(error, ConnectionAbortedError):  # how asyncio reports a handshake timeout
            raise Fault("tls_hangs") from None
        raise Fault("no_tls", getattr(error, "reason", None) or type(error).__name__) from None
    try:
        yield connection
    finally:
        await _close(connection)


async def _exchange(connection: Connection, request: bytes) -> _http1.Message:
    reader, writer = connection
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            writer.write(request)
            return await _http1.read_answer(reader)
    except TimeoutError:
        raise Fault("slow") from None
    except _http1.NotHTTP as other:
        if not other.start:
            raise Fault("closed") from None
        if other.start[:1] in {b"\x15", b"\x16"}:
            raise Fault("speaks_tls") from None
        raise Fault("garbage", other.start[:40].decode("latin-1").strip()) from None


def _certificate_ends(connection: Connection) -> float | None:
    certificate = connection[1].get_extra_info("peercert") or {}
    ends = certificate.get("notAfter")
    return ssl.cert_time_to_seconds(ends) if ends else None


async def _speaks_http(endpoint: Endpoint) -> bool:
    request = _http1.encode("GET / HTTP/1.1", [("Host", str(endpoint))], b"")
    try:
        async with _plain(endpoint) as connection:
            return bool((await _exchange(connection, request)).status)
    except Fault:
        return False


async def _speaks_tls(endpoint: Endpoint) -> bool:
    if endpoint.tls_name is not None or endpoint.proxy is not None:
        return False
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: this only finds out whether it is TLS
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await asyncio.open_connection(endpoint.address, endpoint.port, ssl=context)
    except (OSError, EOFError):
        return False
    await _close(connection)
    return True


async def _close(connection: Connection) -> None:
    connection[1].transport.abort()
    with suppress(OSError):  # closed already
        await connection[1].wait_closed()
