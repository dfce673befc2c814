"""The way to a URL, step by step: its name, its addresses, a connection, TLS, one request."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs

from . import _wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from yarl import URL

    Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]

CONNECT_SECONDS = 5.0
GIVE_UP_SECONDS = 15.0  # MidAPI's own patience with a callback
_NAME_SECONDS = 10.0
_MOST_ADDRESSES = 4


class Fault(Exception):
    """Why there is no answer.

    Attributes:
        kind: one of those that `_diagnosis` explains.
        detail: of the system or of OpenSSL; may be empty.
    """

    def __init__(self, kind: str, detail: object = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = str(detail)


@attrs.frozen
class Place:
    """Where to connect to.

    Attributes:
        address: an IP address.
        port: of it.
        tls_name: the name that its certificate must be for; None for plain http.
    """

    address: str
    port: int
    tls_name: str | None = None

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


@attrs.frozen
class Outcome:
    """What came of one request.

    Attributes:
        place: where it went.
        answer: what came back; None if nothing did.
        fault: why nothing did.
        seconds: all of it took.
        certificate_ends: when the certificate does, in epoch seconds; None without TLS.
    """

    place: Place
    answer: _wire.Message | None = None
    fault: Fault | None = None
    seconds: float = 0.0
    certificate_ends: float | None = None


async def places(url: URL) -> list[Place]:
    """Where a URL leads to; at most four addresses.

    Raises:
        Fault: its name leads nowhere.
    """
    host, port = url.raw_host or "", url.port or 0
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
    tls_name = host if url.scheme == "https" else None
    return [Place(address, port, tls_name) for address in list(addresses)[:_MOST_ADDRESSES]]


async def ask(place: Place, request: bytes) -> Outcome:
    """Send one request and read its answer; nothing is raised."""
    time = asyncio.get_running_loop().time
    begun, ends = time(), None
    try:
        async with _connected(place) as line:
            ends = _certificate_ends(line)
            answer = await _exchange(line, request)
            if answer.status == 400 and await _speaks_tls(place):
                raise Fault("speaks_tls")
    except Fault as fault:
        if fault.kind in {"closed", "garbage"} and await _speaks_tls(place):
            fault = Fault("speaks_tls")
        return Outcome(place, None, fault, time() - begun, ends)
    return Outcome(place, answer, None, time() - begun, ends)


@asynccontextmanager
async def _connected(place: Place) -> AsyncIterator[Line]:
    """A connection, with TLS where that is wanted."""
    async with _plain(place) as line:
        if place.tls_name is None:
            yield line
            return
    async with _secured(place, place.tls_name) as line:
        yield line


@asynccontextmanager
async def _plain(place: Place) -> AsyncIterator[Line]:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            line = await asyncio.open_connection(place.address, place.port)
    except TimeoutError:
        raise Fault("filtered") from None
    except ConnectionRefusedError:
        raise Fault("refused") from None
    except OSError as error:
        raise Fault("unreachable", error.strerror or type(error).__name__) from None
    try:
        yield line
    finally:
        await _hang_up(line)


@asynccontextmanager
async def _secured(place: Place, name: str) -> AsyncIterator[Line]:
    try:
        line = await asyncio.open_connection(
            place.address,
            place.port,
            ssl=ssl.create_default_context(),
            server_hostname=name,
            ssl_handshake_timeout=CONNECT_SECONDS,
        )
    except ssl.SSLCertVerificationError as error:
        raise Fault(f"certificate {error.verify_code}", error.verify_message) from None
    except (OSError, EOFError) as error:
        if await _speaks_http(place):
            raise Fault("plain_http") from None
        if isinstance(error, ConnectionAbortedError):  # so a handshake that takes too long is told
            raise Fault("tls_hangs") from None
        raise Fault("no_tls", getattr(error, "reason", None) or type(error).__name__) from None
    try:
        yield line
    finally:
        await _hang_up(line)


async def _exchange(line: Line, request: bytes) -> _wire.Message:
    reader, writer = line
    try:
        async with asyncio.timeout(GIVE_UP_SECONDS):
            writer.write(request)
            return await _wire.read_answer(reader)
    except TimeoutError:
        raise Fault("slow") from None
    except _wire.NotHTTP as other:
        if not other.start:
            raise Fault("closed") from None
        if other.start[:1] in {b"\x15", b"\x16"}:
            raise Fault("speaks_tls") from None
        raise Fault("garbage", other.start[:40].decode("latin-1").strip()) from None


def _certificate_ends(line: Line) -> float | None:
    certificate = line[1].get_extra_info("peercert") or {}
    ends = certificate.get("notAfter")
    return ssl.cert_time_to_seconds(ends) if ends else None


async def _speaks_http(place: Place) -> bool:
    request = _wire.written("GET / HTTP/1.1", [("Host", str(place))], b"")
    try:
        async with _plain(place) as line:
            return bool((await _exchange(line, request)).status)
    except Fault:
        return False


async def _speaks_tls(place: Place) -> bool:
    if place.tls_name is not None:
        return False
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: only whether it is TLS is asked
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            line = await asyncio.open_connection(place.address, place.port, ssl=context)
    except (OSError, EOFError):
        return False
    await _hang_up(line)
    return True


async def _hang_up(line: Line) -> None:
    line[1].transport.abort()
    with suppress(OSError):  # how it ended is of no interest
        await line[1].wait_closed()
