"""Settings: arguments and environment variables, checked before anything is sent.

These environment variables are read here and nowhere else. Blanks around their values are ignored;
so are quotes, which Docker does not remove from an env file, with a warning:

| variable | default of |
|---|---|
| ``MIDAPI_API_KEY``, or the file that ``MIDAPI_API_KEY_FILE`` names | ``api_key`` of a client |
| ``MIDAPI_BASE_URL`` | ``base_url`` of a client |
| ``MIDAPI_UPLOAD_URL`` | ``upload_url`` of a client |
| ``MIDAPI_TIME_SCALE`` | ``time_scale`` of a client |
| ``MIDAPI_ALLOW_HTTP``: 1, true, yes or on | ``allow_http`` of a client |
| ``MIDAPI_PROXY`` | ``proxy`` of a client; ``HTTPS_PROXY`` and the like are not read |
| ``MIDAPI_JOURNAL`` | ``journal`` of a client: a folder, or a ``postgresql://`` URL |
| ``MIDAPI_PUBLIC_URL`` | ``public_url`` of ``CallbackReceiver.from_env`` |
| ``MIDAPI_CALLBACK_PORT`` | its ``port`` |
| ``MIDAPI_WEBHOOK_KEY``, or the file that ``MIDAPI_WEBHOOK_KEY_FILE`` names | its ``webhook_key`` |
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import warnings
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import attrs
from yarl import URL

from ._runtime.secret import Secret, hidden
from ._runtime.urls import is_loopback, url_problem
from .errors import InvalidRequestError, shown

_log = logging.getLogger("midapi_async")

DEFAULT_BASE_URL = "https://api.midapi.ai"
_DEFAULT = URL(f"{DEFAULT_BASE_URL}/")
KIE_UPLOAD_URL = "https://kieai.redpandaai.co"  # of kie.ai, MidAPI's sister
_YES = {"1", "true", "yes", "on"}
_QUOTES = ('""', "''", "“”")


def environment(name: str) -> str:
    """An environment variable, without blanks and quotes around it; '' if it is not set."""
    return _bare(os.environ.get(name, ""), name)


def database_url(place: object) -> Secret | None:
    """A journal's place, if it is the URL of a PostgreSQL database: it may contain a password."""
    if isinstance(place, str) and place.startswith(("postgresql:", "postgres:")):
        return Secret(place)
    return None


def _bare(value: str, name: str) -> str:
    """A value without the blanks, byte order mark and quotes that tools put around it."""
    text = value.strip().strip("\ufeff").strip()
    if len(text) < 2 or text[0] + text[-1] not in _QUOTES or text[0] in text[1:-1]:
        return text
    _warn_once(f"the quotes around {name} were removed; write the value without them")
    return _bare(text[1:-1], name)


@cache
def _warn_once(text: str) -> None:
    _log.warning(text)


def secret_from_env(name: str, problems: dict[str, str], field: str) -> Secret:
    """The variable NAME, else the contents of the file that NAME_FILE names, else ''.

    If the file cannot be read, that is added to `problems` under `field`.
    """
    text = environment(name)
    if not text and (file := environment(f"{name}_FILE")):
        return secret_from_file(file, f"{name}_FILE", problems, field)
    return Secret("\n".join(_bare(line, name) for line in text.strip().splitlines()))


def secret_from_file(file: str, named_by: str, problems: dict[str, str], field: str) -> Secret:
    """What is in a file, as `secret_from_env` gives it."""
    text = ""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # also: not text, or a path with a zero byte
        reason = getattr(error, "strerror", None) or "it is not text"
        problems[field] = f"the file {file!r} of {named_by} cannot be read: {reason}"
    name = f"the text in the file of {named_by}"
    return Secret("\n".join(_bare(line, name) for line in text.strip().splitlines()))


def _check_numbers(policy: object, *names: str, may_be_zero: bool = False) -> None:
    """Raise InvalidRequestError naming each of these fields that is not a positive number."""
    problems = {}
    for name in names:
        value = getattr(policy, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Neither NaN nor an infinity nor an int that no float can hold passes the comparison.
        is_finite = is_number and 0 <= value <= sys.float_info.max
        if not is_finite or (value == 0 and not may_be_zero):
            least = "zero or positive" if may_be_zero else "positive"
            problems[name] = f"must be a {least} number, got {shown(value)}"
    if problems:
        raise InvalidRequestError(problems)


def _check_whole(policy: object, name: str) -> None:
    """Raise InvalidRequestError if this field, a positive number, is not an int."""
    if not isinstance(value := getattr(policy, name), int):
        raise InvalidRequestError({name: f"must be a whole number, got {shown(value)}"})


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long to wait, in seconds.

    Attributes:
        connect: for a connection, TLS included.
        submit: for the whole POST of a submission, or of a file, its answer included.
        look: for any other request, its answer included.
        wait: for a result, counted from the acceptance of the task; None for no limit.
    """

    connect: float = 10.0
    submit: float = 180.0
    look: float = 10.0
    wait: float | None = 3600.0

    def __attrs_post_init__(self) -> None:
        names = ["connect", "submit", "look"] if self.wait is None else attrs.fields_dict(Timeouts)
        _check_numbers(self, *names)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How long to retry a submission that was certainly not bought (not sent, or 429, or 455).

    Attributes:
        give_up_after: seconds for all attempts and pauses; waiting for a slot does not count. A
            submission waits as long as this for the end of an outage.
    """

    give_up_after: float = 60.0

    def __attrs_post_init__(self) -> None:
        _check_numbers(self, "give_up_after", may_be_zero=True)


@attrs.frozen(kw_only=True)
class PollPolicy:
    """How to look for results.

    A token bucket limits the looks: ``burst`` at the same moment, ``looks_per_second`` on average.
    If more are due, tasks with a callback go first, then the others in the order in which they
    became due; each gets one look before any gets a second one. A warning says so, at most once an
    hour. If MidAPI answers a look with 429, both numbers are halved, and doubled again for
    each 10 s without another 429.

    Attributes:
        look_price: how many seconds of delay one look is worth; a higher price means fewer looks.
        floor: the shortest time between two looks at one task, in seconds.
        ceiling: the longest time between two looks at one task, after its first look, in seconds.
        looks_per_second: how many looks the client makes in a second, on average, at most.
        burst: how many looks may begin at the same moment, after some seconds with fewer looks; at
            most 32 of them are under way at a time.
    """

    look_price: float = 1.0
    floor: float = 1.0
    ceiling: float = 60.0
    looks_per_second: float = 20.0
    burst: int = 100

    def __attrs_post_init__(self) -> None:
        _check_numbers(self, "look_price", "floor", "ceiling", "looks_per_second", "burst")
        _check_whole(self, "burst")
        if self.ceiling < self.floor:
            raise InvalidRequestError({"ceiling": f"must not be below the floor ({self.floor:g})"})


@attrs.frozen
class RateLimit:
    """How many submissions an account may make in a window of time; MidAPI documents 20 in 10 s.

    Attributes:
        count: submissions in a window.
        per: the length of the window, in seconds.
    """

    count: int
    per: float = attrs.field(default=10.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check_numbers(self, "count", "per")
        _check_whole(self, "count")


@attrs.frozen(kw_only=True)
class Settings:
    """A client's account and server, as `settings` has checked them.

    Attributes:
        api_key: the account's key.
        base_url: MidAPI's address, without a slash at its end.
        time_scale: service seconds in one second of the loop.
        proxy: the URL of an HTTP proxy, which may contain a password; None for no proxy.
        credit_path: the path of the account's credits.
        upload_url: where files are uploaded; None if that is not known.
    """

    api_key: Secret = attrs.field(repr=False)
    base_url: URL
    time_scale: float
    proxy: str | None = attrs.field(repr=False)
    credit_path: str
    upload_url: URL | None


def settings(
    api_key: str | None = None,
    base_url: str | None = None,
    time_scale: float | None = None,
    *,
    proxy: str | None = None,
    allow_http: bool = False,
    upload_url: str | None = None,
) -> Settings:
    """The settings; what was not given comes from the environment.

    Raises:
        InvalidRequestError: naming each setting that is missing or wrong.
    """
    problems: dict[str, str] = {}
    key = Secret(_api_key(api_key, problems))
    del api_key  # it must not show in a traceback that is rendered with local variables
    if not isinstance(allow_http, bool):
        problems["allow_http"] = f"must be True or False, got {shown(allow_http)}"

    # Where the API key travels to. The sister's upload host is documented, and a sandbox takes
    # uploads itself; MidAPI documents none.
    is_allowed = allow_http is True or environment("MIDAPI_ALLOW_HTTP").casefold() in _YES
    check = partial(_server, problems, is_allowed=is_allowed)
    url = check("base_url", base_url, environment("MIDAPI_BASE_URL")) or _DEFAULT
    is_local, is_sister = is_loopback(url), f".{url.host}".endswith(".kie.ai")
    upload = check("upload_url", upload_url, environment("MIDAPI_UPLOAD_URL"))
    if upload is None:
        upload = url if is_local else URL(f"{KIE_UPLOAD_URL}/") if is_sister else None

    # The time scale: only a sandbox can run faster than real time.
    chosen = time_scale if time_scale is not None else environment("MIDAPI_TIME_SCALE") or 1.0
    variable = "" if time_scale is not None else "MIDAPI_TIME_SCALE "
    try:
        scale = math.nan if isinstance(chosen, bool) else float(chosen)
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if not math.isfinite(scale) or scale <= 0:
        problems["time_scale"] = f"{variable}must be a positive number, got {shown(chosen)}"
    elif scale != 1.0 and not is_local and "base_url" not in problems:
        problems["time_scale"] = (
            f"{variable}is only for a sandbox on loopback; leave it out for MidAPI"
        )

    # The proxy: its URL may contain a password, so no text shows it.
    proxy = hidden(proxy)
    way = proxy if proxy is not None else Secret(environment("MIDAPI_PROXY"))
    if way != "" and (problem := url_problem(way)):
        variable = "" if proxy is not None else "MIDAPI_PROXY "
        problems["proxy"] = f"{variable}{problem}, like http://proxy.example:3128"
    if problems:
        raise InvalidRequestError(problems)

    # kie.ai, MidAPI's sister, has another path for the credits.
    credit_path = "/api/v1/chat/credit" if is_sister else "/api/v1/common/credit"
    return Settings(
        api_key=key,
        base_url=url,
        time_scale=scale,
        proxy=Secret(way) if way else None,
        credit_path=credit_path,
        upload_url=upload,
    )


def _server(
    problems: dict[str, str], name: str, given: str | None, from_env: str, *, is_allowed: bool
) -> URL | None:
    """The base URL or the upload URL, as given or from its variable; None if neither is set.

    It must be https, unless it is on this machine or the user allows http.
    """
    # The error names the variable, because the user may not know that it is set.
    text, variable = from_env, f"MIDAPI_{name.upper()} "
    if given is not None and given != "":
        text, variable = given, ""
    if text == "":
        return None
    if problem := _base_url_problem(text):
        problems[name] = variable + problem
        return None
    url = URL(text).with_path("/")
    if url.scheme == "http" and not is_loopback(url):
        what = name.replace("_url", " URL")
        if is_allowed:
            warnings.warn(f"the API key travels unencrypted to an http {what}", stacklevel=4)
        else:
            problems[name] = (
                f"{variable}must be https, else others could read the API key; plain http is for "
                "loopback, or set allow_http=True (MIDAPI_ALLOW_HTTP=1) for a private network"
            )
    return url


def _base_url_problem(value: object) -> str | None:
    """What is wrong with a base URL, and how it should look; None if it is valid."""
    problem = url_problem(value, is_bare=True, may_have_path=False)
    if problem is None:
        return None
    right = DEFAULT_BASE_URL
    if isinstance(value, str):
        scheme = "" if "://" in value else "http://"
        if scheme:
            problem = "must begin with https:// or http://"
        with suppress(ValueError):
            url = URL(scheme + value)
            # With an @, what looks like the host may be part of a password.
            if "@" not in value and (is_loopback(url) if scheme else url_problem(value) is None):
                right = str(url.origin())
    return f"{problem}, like {right}"


def _api_key(given: object, problems: dict[str, str]) -> str:
    if given is None:
        given = secret_from_env("MIDAPI_API_KEY", problems, "api_key")
    if not isinstance(given, str):
        problems["api_key"] = f"must be a str, got {type(given).__name__}"
        return ""
    key = _bare(given, "the API key")
    if found := re.match(r"(authorization:\s*)?bearer(\s+|$)", key, re.IGNORECASE):
        _warn_once("the word Bearer before the API key was removed; give only the key")
        key = _bare(key[found.end() :], "the API key")
    if not key:
        missing = "is missing: pass api_key=, or set MIDAPI_API_KEY or MIDAPI_API_KEY_FILE"
        problems.setdefault("api_key", missing)
    elif not key.isascii() or not key.isprintable() or re.search("[ \"']", key):
        problems["api_key"] = "contains a character that no API key has (a blank, a line break, …)"
    return key
