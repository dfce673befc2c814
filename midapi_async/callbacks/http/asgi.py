"""The receiver as an ASGI application, which FastAPI, Starlette, Litestar and Django can mount.

It follows https://asgi.readthedocs.io/en/stable/specs/main.html and imports no framework or server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import cast

from ..._runtime.secret import Secret
from .answer import LARGEST_BODY, Handle, answer

Scope = Mapping[str, object]
Receive = Callable[[], Awaitable[Mapping[str, object]]]
Send = Callable[[dict[str, object]], Awaitable[None]]
# An ASGI server or framework calls it once for each connection.
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY_VIOLATION = 1008  # of RFC 6455


def asgi_application(handle: Handle) -> ASGIApplication:
    """An ASGI application that hands every POST to a receiver.

    Args:
        handle: `CallbackReceiver.handle`.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            serving = _serve(handle, scope, receive, send)
            del scope  # its path ends with the token, which no traceback must show
            await serving
        elif kind == "lifespan":
            # Nothing to open or close: the client belongs to the surrounding application.
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            raise ValueError(f"the callback receiver does not support the ASGI scope {kind!r}")

    return application


async def _serve(handle: Handle, scope: Scope, receive: Receive, send: Send) -> None:
    method, path = str(scope["method"]), Secret(scope["path"])
    is_http1 = str(scope.get("http_version", "1.1")).startswith("1")
    pairs = cast("Iterable[tuple[bytes, bytes]]", scope.get("headers", ()))
    del scope
    headers = [(str(name, "latin-1"), str(value, "latin-1")) for name, value in pairs]
    is_disconnected = False

    async def read_body() -> bytes:
        nonlocal is_disconnected
        body, is_more = bytearray(), True
        while is_more and len(body) <= LARGEST_BODY:
            message = await receive()
            if message["type"] != "http.request":
                is_disconnected = True
                raise ConnectionError
            body += cast("bytes", message.get("body", b""))
            is_more = bool(message.get("more_body", False))
        return bytes(body)

    status = await answer(handle, method, path, headers, read_body)
    if is_disconnected:
        return
    answered = [(b"content-length", b"0")]
    if status == 405:
        answered.append((b"allow", b"POST"))
    if status != 200 and is_http1:
        # Do not wait for the rest of a refused body. HTTP/2 has no such header.
        answered.append((b"connection", b"close"))
    try:
        await send({"type": "http.response.start", "status": status, "headers": answered})
        await send({"type": "http.response.body", "body": b""})
    except OSError:
        return  # how ASGI servers report that the sender has disconnected
