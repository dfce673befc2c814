"""Where files may come from: which URLs, hosts and addresses are fetched."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from contextvars import ContextVar
from typing import Any

import attrs
from yarl import URL

from .._runtime.urls import is_loopback

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL = ipaddress.IPv6Network("2000::/3")


@attrs.define
class Connecting:
    """A connection to a host that is being made; the host may have several addresses.

    Attributes:
        may_be_private: whether every address is allowed.
        refused: the addresses that were not allowed.
        tried: whether one was allowed.
    """

    may_be_private: bool
    refused: list[str] = attrs.field(factory=list)
    tried: bool = False


# The connection that the current task wants. aiohttp calls `make_socket` in the context of that
# task, or in a copy of it.
connecting: ContextVar[Connecting] = ContextVar("connecting")


class HostRules:
    """Which URLs are fetched, and which addresses are connected to.

    Args:
        base_url: MidAPI's address. Files of its own origin are always allowed; if it is on
            loopback, files may be there, too, and come over plain http.
        hosts: the only hosts that are allowed besides MidAPI's own; None for all.
    """

    def __init__(self, base_url: URL, hosts: Collection[str] | None) -> None:
        self._origin = base_url.origin()
        self._is_local = is_loopback(base_url)
        self._hosts = None if hosts is None else {host_of(each) for each in hosts}

    def problem_of(self, url: URL, before: URL | None) -> str | None:
        """Why a URL must not be fetched; None if nothing in the URL itself forbids it.

        Args:
            url: the URL.
            before: the URL that redirected to it, or None.
        """
        host = _normal(url.raw_host or "")
        if url.scheme not in ("http", "https") or not host:
            return f"{_readable(url)} is no https URL"
        if before is not None and before.scheme == "https" and url.scheme == "http":
            return f"it leads from https to plain http ({_readable(url)})"
        if self.is_own(url):
            return None
        if url.scheme == "http" and not self._is_local:
            return "plain http is only for a sandbox on this machine"
        if self._hosts is not None and host not in self._hosts:
            return f"the host {host} is not one of result_hosts"
        # The addresses of a name are judged in `make_socket`; behind a proxy we do not see them.
        if re.fullmatch(r"0x[0-9a-f]*|[0-9]+", host.rpartition(".")[2]) or ":" in host:
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                return f"{host} is an address in an unusual form"
            is_public = self.may_connect(address)
        else:
            is_public = not f".{host}".endswith(".localhost") or self._is_local
        return None if is_public else f"it leads to {host}, which is not a public address"

    def is_own(self, url: URL) -> bool:
        """Whether a URL has the origin of the base URL."""
        return url.origin() == self._origin

    def may_connect(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Whether files may come from an address."""
        if isinstance(address, ipaddress.IPv6Address):
            inner = address.ipv4_mapped or address.sixtofour
            if inner is None and address in _NAT64:
                inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
            if inner is not None:
                return self.may_connect(inner)
        if address.is_loopback:
            return self._is_local
        if address.version == 6 and address not in _GLOBAL:
            return False  # Python counts some of them as global, such as ::127.0.0.1 and fec0::1
        return address.is_global and not address.is_multicast and not address.is_reserved

    def make_socket(self, target: tuple[Any, ...]) -> socket.socket:
        """A socket for an address to which aiohttp is about to connect, if that is allowed."""
        family, kind, protocol, _, place = target
        connection = connecting.get()
        if not connection.may_be_private and not self.may_connect(ipaddress.ip_address(place[0])):
            connection.refused.append(place[0])
            raise OSError(f"{place[0]} is not a public address")
        connection.tried = True
        return socket.socket(family, kind, protocol)


def parsed(text: str) -> URL | None:
    """A URL that may be relative; None if it is empty or not valid."""
    try:
        url = URL(text)
        is_valid = url.port is None or url.port > 0  # the port raises if it is not a number
    except ValueError:
        return None
    return url if text and is_valid else None


def _normal(host: str) -> str:
    """A host in the one spelling in which hosts are compared."""
    return host.lower().rstrip(".")


def host_of(value: object) -> str | None:
    """A host that a user has given, as URLs spell it; None if it is not a host and nothing else."""
    if not isinstance(value, str) or not value.isprintable() or re.search("[ *]", value):
        return None
    try:
        url = URL(f"https://{value}")
        is_bare = url == url.origin() and url.explicit_port is None
    except ValueError:
        return None
    return _normal(url.raw_host or "") if is_bare else None


def _readable(url: URL) -> str:
    """The part of a URL that an error's text may show: the rest may be a secret."""
    return f"{url.scheme}://{url.host}" if url.host else f"{url.scheme[:20]}:"
