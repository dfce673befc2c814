"""The HTTP status for a request, the same for every way to serve callbacks."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

LARGEST_BODY = 64 * 1024  # bytes

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
# A body, or a function that reads it; see `CallbackReceiver.handle`.
Body = bytes | Callable[[], Awaitable[bytes]]
Handle = Callable[[str, Headers, Body], Awaitable[int]]

_log = logging.getLogger("midapi_async.callbacks")


async def answer(handle: Handle, method: str, path: str, headers: Headers, body: Body) -> int:
    """The HTTP status for a request; nothing is raised, whatever the sender does.

    Args:
        handle: `CallbackReceiver.handle`.
        method: of the request.
        path: of the request; its last non-empty segment is the token.
        headers: of the request.
        body: the whole body if it has arrived, else a function that reads it.
    """
    if method != "POST":
        return 405
    token = path.rstrip("/").rpartition("/")[2]
    try:
        return await handle(token, headers, body)
    except Exception:  # noqa: BLE001 - a bug of ours must not break the application around us
        _log.exception("A callback could not be handled because of a bug")
        return 500
