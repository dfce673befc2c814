"""A receiver that takes every token and shows what comes, without a client behind it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import aiohttp
import attrs
from yarl import URL

from midapi_async import CallbackReceiver, Intent, ProtocolError
from midapi_async._wire.protocol import read_callback
from midapi_async._wire.tokens import without_tokens
from midapi_async.callbacks.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER

from ._callback import Told, told

if TYPE_CHECKING:
    from midapi_async._wire.protocol import Callback
    from midapi_async.callbacks.receiver import Body, Headers

_FORWARD_SECONDS = 12.0  # MidAPI gives up after 15
_PASSED_ON = {"content-type", TIMESTAMP_HEADER, SIGNATURE_HEADER}
# A last segment that can be put behind another URL and stays there; .. would not.
_SEGMENT = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._~-]{0,128}")


@attrs.frozen
class Forwarded:
    """What a program said to a callback that was passed on to it.

    Attributes:
        status: of its answer; None if there was none.
        seconds: until then.
        fault: why there was none; empty if there was one.
    """

    status: int | None
    seconds: float
    fault: str = ""


@attrs.frozen
class Taken:
    """One callback, and what became of it.

    Attributes:
        at: when it came, in epoch seconds.
        answer: the HTTP status that it was answered with.
        told: what it says; None if it is no callback, or was refused unread.
        is_signed: whether it had a signature, be it right or not.
        forwarded: what became of it elsewhere; None if it was not passed on.
    """

    at: float
    answer: int
    told: Told | None
    is_signed: bool
    forwarded: Forwarded | None = None


class _EveryToken:
    """An inbox that lets every callback in: there is no intent that it could miss."""

    async def find(self, token_hash: str) -> Intent | None:
        return Intent(
            intent_id="",
            scope="",
            request=None,
            fingerprint="",
            token_hash=token_hash,
            created_at=0,
        )

    async def take(self, row: Intent, callback: Callback) -> int:  # noqa: ARG002 - as `Inbox` says
        return 200


class Listener(CallbackReceiver):
    """Answers as any receiver does, and shows each callback.

    Args:
        host: where to listen.
        port: on which port; 0 picks one.
        keys: the webhook keys; without one signatures are not checked.
        show: is given each callback.
        forward: passes a callback on: a last segment, headers and a body.

    Raises:
        InvalidRequestError: naming each argument that is wrong.
    """

    def __init__(
        self,
        host: str,
        port: int,
        keys: tuple[str, ...],
        *,
        show: Callable[[Taken], None],
        forward: Forward | None,
    ) -> None:
        public_url = None if port == 0 else f"http://{_bracketed(host)}:{port}"
        super().__init__(public_url, host=host, port=port, webhook_key=keys or None)
        self._show = show
        self._forward = forward
        self._inbox = _EveryToken()

    async def open(self) -> None:
        """Begin to listen.

        Raises:
            ReceiverError: the port cannot be listened on.
        """
        await self.attach(self._inbox)

    async def aclose(self) -> None:
        """Stop listening; what is being taken is finished first."""
        await self.detach(self._inbox)

    async def handle(self, token: str, headers: Headers, body: Body) -> int:
        """Take one callback, show it, and return the status to answer."""
        if not _SEGMENT.fullmatch(token):
            return 404
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        read = b""

        async def keep() -> bytes:
            nonlocal read
            read = body if isinstance(body, bytes) else await body()
            return read

        at, forwarded = time.time(), None
        status = await super().handle(token, pairs, keep)
        if status == 200 and self._forward is not None:
            forwarded = await self._forward(token, pairs, read)
            status = forwarded.status or 503
        is_signed = any(name.lower() == SIGNATURE_HEADER for name, _ in pairs)
        self._show(Taken(at, status, _told(read), is_signed, forwarded))
        return status


Forward = Callable[[str, list[tuple[str, str]], bytes], Awaitable[Forwarded]]


def forward_to(url: URL, session: aiohttp.ClientSession) -> Forward:
    """What passes callbacks on to a URL: the last segment, the body and the signature stay.

    Args:
        url: what stands before the last segment.
        session: sends them.
    """

    async def forward(token: str, headers: list[tuple[str, str]], body: bytes) -> Forwarded:
        began = asyncio.get_running_loop().time()
        status, fault = None, ""
        passed = [(name, value) for name, value in headers if name.lower() in _PASSED_ON]
        to = url / token if token else url
        timeout = aiohttp.ClientTimeout(total=_FORWARD_SECONDS)
        try:
            async with session.post(
                to, data=body, headers=passed, allow_redirects=False, timeout=timeout
            ) as answer:
                status = answer.status
        except TimeoutError:
            fault = f"no answer in {_FORWARD_SECONDS:.0f} s"
        except (aiohttp.ClientError, OSError) as error:
            fault = getattr(error, "strerror", None) or type(error).__name__
        return Forwarded(status, asyncio.get_running_loop().time() - began, without_tokens(fault))

    return forward


def _told(body: bytes) -> Told | None:
    try:
        return told(read_callback(body), body)
    except ProtocolError:
        return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
