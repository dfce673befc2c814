"""The HTTP status for a request, the same for every way to serve callbacks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from ..._runtime.secret import Secret, clear_locals
from ...errors import InvalidRequestError

LARGEST_BODY = 64 * 1024  # bytes

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
Content = bytes | bytearray | memoryview | str
# A body, or a function that reads it; see `CallbackReceiver.handle`.
Body = Content | Callable[[], Awaitable[Content] | Content]
Handle = Callable[[str, Headers, Body], Awaitable[int]]

_log = logging.getLogger("midapi_async.callbacks")


async def read_body(body: Body) -> bytes:
    """The bytes of a body.

    Raises:
        InvalidRequestError: it is of another type.
    """
    content: object = body() if callable(body) else body
    if inspect.isawaitable(content):
        content = await content
    if isinstance(content, str):
        return content.encode(errors="surrogatepass")
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    kind = type(content).__name__
    del body, content  # they must not show in a traceback that is rendered with local variables
    raise InvalidRequestError({"body": f"must be the body as it came, as bytes or str; got {kind}"})


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
    # Both contain the token, which must not show in a traceback with local variables.
    path, body = Secret(path), memoryview(body) if isinstance(body, bytes) else body
    try:
        return await handle(Secret(path.rstrip("/").rpartition("/")[2]), headers, body)
    except Exception as error:  # noqa: BLE001 - a bug of ours must not break the application around
        clear_locals(error)
        _log.exception("A callback could not be handled because of a bug")
        return 500
