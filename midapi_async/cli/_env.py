"""The environment variables that the commands need beside those that the SDK reads by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from midapi_async import InvalidRequestError
from midapi_async.config import (
    DEFAULT_BASE_URL,
    database_url,
    environment,
    secret_from_env,
    secret_from_file,
)

# Where a journal is: a folder, or a database's URL, which may contain a password.
Place: TypeAlias = Path | str


def has_api_key() -> bool:
    """Whether an API key is set, directly or in a file."""
    return bool(environment("MIDAPI_API_KEY") or environment("MIDAPI_API_KEY_FILE"))


def api_key_in(file: Path) -> str:
    """The API key in a file that the command line names.

    Raises:
        InvalidRequestError: the file cannot be read, or is empty.
    """
    problems: dict[str, str] = {}
    key = secret_from_file(str(file), "--api-key-file", problems, "api_key")
    if problems or not key:
        raise InvalidRequestError(problems or {"api_key": f"the file {str(file)!r} is empty"})
    return key


def without_secrets(text: str) -> str:
    """The text without the API key and the journal's password, in case an error contains them."""
    key = environment("MIDAPI_API_KEY").rpartition(" ")[2]  # there may be a Bearer before it
    before, at, _ = environment("MIDAPI_JOURNAL").rpartition("@")  # as in …//user:password@host
    for secret in (key, before.partition("//")[2].partition(":")[2] if at else ""):
        text = text.replace(secret, "…") if len(secret) > 3 else text
    return text


def base_url(given: str | None = None) -> str:
    """The given URL of the service, else the environment's, else MidAPI's; unchecked."""
    return given or environment("MIDAPI_BASE_URL") or DEFAULT_BASE_URL


def proxy(given: str | None) -> str:
    """The given proxy's URL, else the environment's, else ""; unchecked."""
    return environment("MIDAPI_PROXY") if given is None else given


def other_proxies() -> list[str]:
    """The variables that are set, and from which other programs take their proxy."""
    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    return [name for name in names if environment(name)]


def time_scale() -> float:
    """How many times faster than real time the service runs; an open client has checked it."""
    return float(environment("MIDAPI_TIME_SCALE") or 1.0)


def journal(given: str | None = None) -> Place | None:
    """Where the given journal is, else the environment's; None for memory. Unchecked."""
    text = given or environment("MIDAPI_JOURNAL")
    return database_url(text) or (Path(text) if text else None)


def public_url() -> str | None:
    """The URL under which MidAPI reaches this machine, unchecked, or None."""
    return environment("MIDAPI_PUBLIC_URL") or None


def asks_for_callbacks() -> bool:
    """Whether MidAPI is asked for callbacks, unless the port turns out to be taken."""
    listens = environment("MIDAPI_CALLBACK_PORT") or journal() is not None
    return public_url() is not None and bool(listens)


def callback_port(given: int | None, problems: dict[str, str]) -> int | None:
    """The given port for callbacks, else the environment's, else None.

    A value that is not a port is added to the problems.
    """
    if given is not None:
        return given
    port = environment("MIDAPI_CALLBACK_PORT")
    if port.isascii() and port.isdigit():
        return int(port)
    if port:
        problems["port"] = f"MIDAPI_CALLBACK_PORT must be a port number, is {port!r}"
    return None


def webhook_keys(given: str | None, problems: dict[str, str]) -> tuple[str, ...]:
    """The given webhook keys, else the environment's, one on each line.

    A file that cannot be read is added to the problems.
    """
    keys = given or secret_from_env("MIDAPI_WEBHOOK_KEY", problems, "webhook_key")
    return tuple(keys.splitlines())
