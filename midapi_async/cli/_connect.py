"""Sends a request to one address of a URL, and says why there is no answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress

import aiohttp
import attrs
from yarl import URL

from midapi_async import __version__
from midapi_async._wire.transport import failure_of, refused_by_proxy

# Seconds for a connection, for a name, and for all; MidAPI waits so long for a callback's answer.
_CONNECT_SECONDS, _NAME_SECONDS, _ANSWER_SECONDS = 5.0, 10.0, 15.0
_PROXY = "Check its URL (--proxy, MIDAPI_PROXY), and that it lets this machine through."
# What to do about an exception of aiohttp; the first one that fits counts.
_HINTS: dict[type[Exception], str] = {
    aiohttp.ClientProxyConnectionError: _PROXY,
    aiohttp.ClientHttpProxyError: _PROXY,
    aiohttp.ClientConnectorCertificateError: (
        "It must not have expired, be made for the name in the URL and by a public authority such "
        "as Let's Encrypt, and be sent with its whole chain (fullchain.pem)."
    ),
    aiohttp.ClientConnectorDNSError: "Check its spelling, and its entry in the DNS.",
    aiohttp.ConnectionTimeoutError: "Check scheme, port and firewall, and try from outside, too.",
    TimeoutError: "MidAPI waits 15 s for the answer to a callback: find out what is slow.",
    Exception: "Does the right program listen there, and for that scheme (http or https)?",
}


@attrs.frozen
class Outcome:
    """The result of one request.

    Attributes:
        fault: why there is no answer; empty with an answer.
        hint: what to do about the fault.
        status: of the answer; 0 without one.
        reason: the text behind the status.
        headers: of the answer.
        page: how its body begins.
        seconds: how long it took, from the connection to the answer.
    """

    fault: str = ""
    hint: str = ""
    status: int = 0
    reason: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    page: bytes = b""
    seconds: float = 0.0


async def resolve(url: URL) -> list[str]:
    """The addresses of a URL's host, at most four.

    Raises:
        OSError: its name does not resolve.
        UnicodeError: it cannot be a name.
    """
    find = asyncio.get_running_loop().getaddrinfo
    async with asyncio.timeout(_NAME_SECONDS):
        found = await find(url.raw_host, url.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))[:4]


async def certificate_days(url: URL) -> float | None:
    """In how many days the certificate of an https URL expires; None if it cannot be known."""
    context = ssl.create_default_context()
    with suppress(OSError):
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(url.raw_host, url.port, ssl=context)
        ends = ssl.cert_time_to_seconds(writer.get_extra_info("peercert")["notAfter"])
        writer.transport.abort()
        with suppress(OSError):  # the other side may reset the connection; else that is logged
            await writer.wait_closed()
        return (ends - time.time()) / 86_400
    return None


async def send(
    url: URL,
    address: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    proxy: URL | None = None,
) -> Outcome:
    """The result of one request; raises nothing.

    Args:
        url: what to ask for.
        address: where to send it, in place of the URL's host.
        headers: more headers.
        body: of a POST; None for a GET.
        proxy: the proxy to go through, or None.
    """
    now = asyncio.get_running_loop().time
    begun, to, page = now(), url.with_host(address), b""
    # Made here, because aiohttp reads SSL_CERT_FILE only once.
    connector = aiohttp.TCPConnector(force_close=True, ssl=ssl.create_default_context())
    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS, sock_connect=_CONNECT_SECONDS)
    own = {"Host": url.raw_authority, "User-Agent": f"midapi-async/{__version__}"}
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(
                "GET" if body is None else "POST",
                to,
                data=body,
                headers={**own, "Accept-Encoding": "identity", **(headers or {})},
                proxy=proxy,
                server_hostname=url.raw_host if url.scheme == "https" else None,
                allow_redirects=False,
            ) as answer,
        ):
            with suppress(aiohttp.ClientPayloadError):  # cut off: the part that arrived is used
                page = await answer.content.read(4096)
    except (aiohttp.ClientError, OSError) as error:
        hint = next(hint for kind, hint in _HINTS.items() if isinstance(error, kind))
        reason = failure_of(error, to, proxy).reason.partition(" (Client")[0]  # aiohttp's own name
        return Outcome(reason, hint, seconds=now() - begun)
    if proxy is not None and answer.status == 407:  # over plain http; else it is an error
        return Outcome(refused_by_proxy(answer.status, proxy).reason, _PROXY)
    passed = now() - begun
    return Outcome("", "", answer.status, answer.reason or "", answer.headers, page, passed)
