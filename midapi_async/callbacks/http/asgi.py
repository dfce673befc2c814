"""The receiver as an ASGI application, which FastAPI, Starlette, Litestar and Django can mount.

ASGI is a protocol (https://asgi.readthedocs.io/en/stable/specs/main.html): nothing is imported
of any framework or server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .answer import SenderGone, answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

    from .answer import Handle

    Scope = Mapping[str, object]
    Receive = Callable[[], Awaitable[Mapping[str, object]]]
    Send = Callable[[dict[str, object]], Awaitable[None]]

_POLICY_VIOLATION = 1008  # of RFC 6455: there is no websocket here


class ASGIApplication(Protocol):
    """What an ASGI server or framework calls, once for each connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        ...


def asgi_application(handle: Handle) -> ASGIApplication:
    """An ASGI application that hands every POST to a receiver.

    Args:
        handle: `CallbackReceiver.handle`.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            await _serve(handle, scope, receive, send)
        elif kind == "lifespan":
            await _live(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            raise ValueError(f"the callback receiver serves http, and knows no {kind!r} of ASGI")

    return application


async def _serve(handle: Handle, scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in _pairs(scope)]
    is_gone = False

    async def body() -> AsyncGenerator[bytes, None]:
        nonlocal is_gone
        more: object = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                is_gone = True
                raise SenderGone
            piece, more = message.get("body", b""), message.get("more_body", False)
            yield piece if isinstance(piece, bytes) else b""

    status = await answer(handle, str(scope["method"]), str(scope["path"]), headers, body)
    if not is_gone:
        await _respond(status, scope, send)


def _pairs(scope: Scope) -> Iterable[tuple[bytes, bytes]]:
    pairs: Iterable[tuple[bytes, bytes]] = scope.get("headers", ())  # type: ignore[assignment]  # as ASGI says
    return pairs


async def _respond(status: int, scope: Scope, send: Send) -> None:
    headers = [(b"content-length", b"0")]
    if status == 405:
        headers.append((b"allow", b"POST"))
    if status != 200 and str(scope.get("http_version", "1.1")).startswith("1"):
        # The rest of a refused body is not waited for. HTTP/2 has no such header.
        headers.append((b"connection", b"close"))
    try:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
    except OSError:
        return  # as ASGI says of a send after the sender has gone


async def _live(receive: Receive, send: Send) -> None:
    """Nothing is to be opened or closed here: the client is its application's own."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
