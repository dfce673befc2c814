"""Settings: what a client is told, checked before anything is sent."""

from __future__ import annotations

import ipaddress
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

import attrs
from yarl import URL

from .errors import InvalidRequestError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_BASE_URL = "https://api.midapi.ai"


def _check(owner: object, allowed: Mapping[str, str]) -> None:
    """Raise for each named number that is not finite and positive ("+") or not negative ("0")."""
    problems = {}
    for name, kind in allowed.items():
        value = getattr(owner, name)
        if not _is_finite(value) or value < 0 or (kind == "+" and value == 0):
            least = "positive" if kind == "+" else "zero or positive"
            problems[name] = f"must be a {least} number, got {shown(value)}"
    if problems:
        raise InvalidRequestError(problems)


def _is_finite(value: object) -> bool:
    """Whether a value is a number that a float can hold."""
    try:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(cast("float", value))
    except OverflowError:
        return False


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long we wait, in seconds.

    Attributes:
        connect: for a connection, TLS included.
        submit: for the whole POST of a submission, its answer included.
        look: for any other request, its answer included.
        wait: for a result, counted from the acceptance of the task; None waits for ever.
    """

    connect: float = 10.0
    submit: float = 180.0
    look: float = 30.0
    wait: float | None = 3600.0

    def __attrs_post_init__(self) -> None:
        numbers = {"connect": "+", "submit": "+", "look": "+"}
        _check(self, numbers if self.wait is None else {**numbers, "wait": "+"})


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """When a submission is given up that certainly was not bought (not sent, 429, 455).

    Attributes:
        give_up_after: seconds of trying; waiting for a turn at the gate does not count.
    """

    give_up_after: float = 60.0

    def __attrs_post_init__(self) -> None:
        _check(self, {"give_up_after": "0"})


@attrs.frozen(kw_only=True)
class PollPolicy:
    """How a result is looked for.

    With more looks due than ``looks_per_second`` allows, tasks whose callback has come are looked
    at first, then the others in the order in which they came due: none twice before every other
    one had its turn. One line of the log says so, at most once an hour.

    Attributes:
        look_price: how many seconds of delay one look is worth; more of it, fewer looks.
        floor: least seconds between two looks at one task.
        ceiling: most seconds between two looks at one task that takes longer than any did.
        looks_per_second: most looks of the client in a second.
    """

    look_price: float = 1.0
    floor: float = 1.0
    ceiling: float = 60.0
    looks_per_second: float = 5.0

    def __attrs_post_init__(self) -> None:
        _check(self, {"look_price": "+", "floor": "+", "ceiling": "+", "looks_per_second": "+"})
        if self.ceiling < self.floor:
            raise InvalidRequestError({"ceiling": f"must not be below the floor ({self.floor:g})"})


@attrs.frozen
class RateLimit:
    """How many submissions an account may make; the default is what MidAPI documents.

    Attributes:
        count: submissions in a window.
        per: the window in seconds.
    """

    count: int
    per: float = attrs.field(default=10.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check(self, {"count": "+", "per": "+"})
        if not isinstance(self.count, int):
            raise InvalidRequestError({"count": f"must be a whole number, got {shown(self.count)}"})


@attrs.frozen(kw_only=True)
class Endpoints:
    """The paths that differ between MidAPI and its sister kie.ai.

    Attributes:
        credit: the path of the account's credits.
        upload_url: the origin that takes uploads; None where no such host is known.
    """

    credit: str = "/api/v1/common/credit"
    upload_url: str | None = None

    @classmethod
    def of(cls, base_url: URL) -> Endpoints:
        """The endpoints behind a base URL, chosen by its host."""
        host = base_url.host or ""
        if host == "kie.ai" or host.endswith(".kie.ai"):
            return cls(credit="/api/v1/chat/credit", upload_url="https://kieai.redpandaai.co")
        return cls(upload_url=str(base_url.origin()) if is_loopback(base_url) else None)


@attrs.frozen(kw_only=True)
class Settings:
    """What a client needs to know about its account and server; made by `settings`."""

    api_key: str = attrs.field(repr=False)
    base_url: URL
    endpoints: Endpoints
    time_scale: float = 1.0


def settings(
    api_key: str | None = None,
    base_url: str | None = None,
    time_scale: float | None = None,
    *,
    allow_http: bool = False,
) -> Settings:
    """Fill what was not given from the environment, and check all of it.

    Raises:
        InvalidRequestError: naming each setting that is missing or wrong.
    """
    problems: dict[str, str] = {}
    key = _api_key(api_key, problems)
    is_http_allowed = allow_http or _env("MIDAPI_ALLOW_HTTP").casefold() in {
        "1",
        "true",
        "yes",
        "on",
    }
    url = _base_url(
        base_url or _env("MIDAPI_BASE_URL") or DEFAULT_BASE_URL,
        problems,
        allow_http=is_http_allowed,
    )
    scale = _time_scale(time_scale, url, problems)
    if problems:
        raise InvalidRequestError(problems)
    return Settings(api_key=key, base_url=url, endpoints=Endpoints.of(url), time_scale=scale)


def is_loopback(url: URL) -> bool:
    """Whether a URL names this machine, as a literal address or as localhost."""
    return is_loopback_host(url.host or "")


def is_loopback_host(host: str) -> bool:
    """Whether a host is this machine, as a literal address or as localhost."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Python before 3.13 does not look inside ::ffff:127.0.0.1.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def secret_from_env(name: str, problems: dict[str, str], field: str) -> str:
    """The variable NAME, else the contents of the file that NAME_FILE names, else ''."""
    if value := _env(name):
        return value
    if not (file := _env(f"{name}_FILE")):
        return ""
    try:
        return Path(file).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        problems[field] = f"the file {file!r} of {name}_FILE cannot be read: {reason}"
        return ""


def _env(name: str) -> str:
    return os.environ.get(name, "").strip()


def _api_key(given: object, problems: dict[str, str]) -> str:
    if not isinstance(given, str | None):
        problems["api_key"] = f"must be a str, got {type(given).__name__}"
        return ""
    key = (
        given.strip()
        if given is not None
        else secret_from_env("MIDAPI_API_KEY", problems, "api_key")
    )
    if not key:
        problems.setdefault(
            "api_key", "is missing: pass api_key=, or set MIDAPI_API_KEY or MIDAPI_API_KEY_FILE"
        )
    elif not key.isascii() or not key.isprintable() or " " in key:
        problems["api_key"] = "holds a character that no API key has (a blank, a line break, …)"
    return key


def _base_url(text: str, problems: dict[str, str], *, allow_http: bool) -> URL:
    try:
        url = URL(text)
    except (TypeError, ValueError):
        url = URL()
    if problem := _base_url_problem(url, allow_http=allow_http):
        problems["base_url"] = problem
        return URL(DEFAULT_BASE_URL)
    return url.with_path(url.raw_path.rstrip("/") or "/", encoded=True)


def _base_url_problem(url: URL, *, allow_http: bool) -> str | None:
    if url.scheme not in {"http", "https"} or not url.host:
        return f"must be like {DEFAULT_BASE_URL}"
    if url.raw_authority.count("@") or url.query_string or url.fragment:
        return "must hold nothing but scheme, host, port and path"
    if url.scheme == "https" or is_loopback(url):
        return None
    if not allow_http:
        return (
            "must be https, else the API key could be read on the way; plain http is for "
            "loopback, or set allow_http=True (MIDAPI_ALLOW_HTTP=1) for a network of your own"
        )
    warnings.warn("the API key travels unencrypted to an http base URL", stacklevel=5)
    return None


def _time_scale(given: float | None, url: URL, problems: dict[str, str]) -> float:
    chosen = given if given is not None else _env("MIDAPI_TIME_SCALE") or 1.0
    try:
        scale = math.nan if isinstance(chosen, bool) else float(chosen)
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if not math.isfinite(scale) or scale <= 0:
        problems["time_scale"] = f"must be a positive number, got {shown(chosen)}"
        return 1.0
    if scale != 1.0 and not is_loopback(url):
        problems["time_scale"] = "is for a sandbox on loopback; the real service keeps its own time"
    return scale
