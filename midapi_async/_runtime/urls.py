"""URLs: what is wrong with one, and whether it leads to this machine."""

from __future__ import annotations

import ipaddress
from typing import TypeGuard

from yarl import URL


def is_http_url(value: object) -> TypeGuard[str]:
    """Whether a value reads like an http or https URL and is safe to show.

    It is not parsed: this is for URLs that MidAPI made, whose details are not ours to judge.
    """
    return (
        isinstance(value, str)
        and value.startswith(("https://", "http://"))
        and value.isprintable()  # of all white space only the blank is printable
        and " " not in value
        and not value.endswith("://")
    )


def url_problem(value: object, *, is_bare: bool = False) -> str | None:
    """What is wrong with a URL that a user gave, or None.

    The text does not show the URL, which may hold a password.

    Args:
        value: what the user gave.
        is_bare: it may hold nothing but scheme, host, port and path.
    """
    if not isinstance(value, str):
        return f"must be a str, got {'None' if value is None else f'a {type(value).__name__}'}"
    if not value.isprintable() or " " in value:
        return "holds a blank or a control character"
    try:
        url = URL(value)
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.host:
        return "must be an http or https URL"
    if is_bare and ("@" in url.raw_authority or url.query_string or url.fragment):
        return "must hold nothing but scheme, host, port and path"
    return None


def host_in_url(host: str) -> str:
    """A host as it is written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(target: URL | str) -> bool:
    """Whether a URL or a host is this machine, as a literal address or as localhost."""
    host = target if isinstance(target, str) else target.host or ""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Python before 3.13 does not look inside ::ffff:127.0.0.1.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
