"""Checks of URLs: whether one is valid, and whether it leads to this machine."""

from __future__ import annotations

import ipaddress
from typing import TypeGuard

from yarl import URL


def is_http_url(value: object) -> TypeGuard[str]:
    """Whether a value looks like an http or https URL and is safe to print.

    It is not parsed: this is for URLs from MidAPI, and odd ones must not cost a result.
    """
    return (
        isinstance(value, str)
        and value.startswith(("https://", "http://"))
        and value.isprintable()  # the blank is the only white space that passes this
        and " " not in value
        and not value.endswith("://")
    )


def url_problem(value: object, *, is_bare: bool = False, may_have_path: bool = True) -> str | None:
    """What is wrong with a URL that a user gave; None if it is valid.

    The text does not show the URL, which may contain a password.

    Args:
        value: what the user gave.
        is_bare: whether only scheme, host, port and path are allowed.
        may_have_path: whether a bare URL may have a path.
    """
    if not isinstance(value, str):
        return f"must be a str, got {'None' if value is None else f'a {type(value).__name__}'}"
    if not value.isprintable() or " " in value:
        return "contains a blank or a control character"
    try:
        url = URL(value)
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.host:
        return "must be an http or https URL"
    parts = {
        "a user name or password": "@" in url.raw_authority,
        "a path": url.raw_path.strip("/") and not may_have_path,
        "a query": url.query_string,
        "a fragment": url.fragment,
    }
    if is_bare and (excess := [name for name, is_there in parts.items() if is_there]):
        allowed = "scheme, host, port and path" if may_have_path else "scheme, host and port"
        return f"has {' and '.join(excess)}, and must contain nothing but {allowed}"
    return None


def host_in_url(host: str) -> str:
    """A host as it is written in a URL: an IPv6 address gets brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(target: URL | str) -> bool:
    """Whether a URL or a host is this machine: a loopback address, or localhost."""
    host = target if isinstance(target, str) else target.host or ""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Python before 3.13 does not look inside ::ffff:127.0.0.1.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
