"""The server of ``midapi listen``: takes callbacks with any token, shows and forwards them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

import aiohttp
import attrs
from yarl import URL

from midapi_async import CallbackReceiver
from midapi_async.callbacks import Body, Callback, Headers, read_body

from ._callback import CallbackSummary, summarize

_FORWARD_SECONDS = 12.0  # MidAPI gives up after 15
_SIGNATURE = "x-webhook-signature"
_FORWARDED_HEADERS = {"content-type", "x-webhook-timestamp", _SIGNATURE}
# A last segment that keeps its meaning at the end of another URL; ".." would not.
_SEGMENT = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._~-]{0,128}")


@attrs.frozen
class Forwarded:
    """What became of a callback at the program that it was forwarded to.

    Attributes:
        status: of the program's answer; None without an answer.
        seconds: until then.
        fault: why there is no answer; empty with one.
    """

    status: int | None
    seconds: float
    fault: str = ""


@attrs.frozen
class Received:
    """One callback, and how it was answered.

    Attributes:
        at: when it came, in epoch seconds.
        answer: the HTTP status that it was answered with.
        summary: what it says; None if it is no callback, or was refused before it was read.
        is_signed: whether it has a signature, valid or not.
        forwarded: what became of it elsewhere; None if it was not forwarded.
    """

    at: float
    answer: int
    summary: CallbackSummary | None
    is_signed: bool
    forwarded: Forwarded | None = None


class _AcceptAll:
    """An `Inbox` that knows every token, and answers 200 to what it can read."""

    async def find(self, token_hash: str) -> str | None:
        return token_hash

    def task_ids(self, found: str, /) -> Collection[str]:  # noqa: ARG002 - see `Inbox`
        return []

    async def take(self, found: str, callback: Callback | None, /) -> int:  # noqa: ARG002
        return 200 if callback is not None else 400


class Listener(CallbackReceiver):
    """A receiver that answers as always, and shows each callback.

    Args:
        host: where to listen.
        port: on which port; 0 picks one.
        keys: the webhook keys; empty leaves signatures unchecked.
        show: called with each callback.
        forward: called with the last segment, headers and body of each callback, or None.

    Raises:
        InvalidRequestError: naming each argument that is wrong.
    """

    def __init__(
        self,
        host: str,
        port: int,
        keys: tuple[str, ...],
        *,
        show: Callable[[Received], None],
        forward: Forward | None,
    ) -> None:
        public_url = None if port == 0 else f"http://{_bracketed(host)}:{port}"
        super().__init__(public_url, host=host, port=port, webhook_key=keys or None)
        self._show = show
        self._forward = forward
        self._inbox = _AcceptAll()

    async def open(self) -> None:
        """Start to listen.

        Raises:
            ReceiverError: the port cannot be listened on.
        """
        await self.attach(self._inbox)

    async def aclose(self) -> None:
        """Stop to listen; callbacks under way are answered first."""
        await self.detach(self._inbox)

    async def handle(self, token: str, headers: Headers, body: Body) -> int:
        """Take one callback, forward and show it; return the status to answer."""
        if not _SEGMENT.fullmatch(token):
            return 404
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        read = b""

        async def keep() -> bytes:
            nonlocal read
            read = await read_body(body)
            return read

        at, forwarded = time.time(), None
        status = await super().handle(token, pairs, keep)
        # With other statuses the body was refused before it was read, or is no callback.
        summary = summarize(read) if status in {200, 401} else None
        if status == 200 and self._forward is not None:
            forwarded = await self._forward(token, pairs, read)
            status = forwarded.status or 503
        is_signed = any(name.lower() == _SIGNATURE for name, _ in pairs)
        self._show(Received(at, status, summary, is_signed, forwarded))
        return status


Forward = Callable[[str, list[tuple[str, str]], bytes], Awaitable[Forwarded]]


def forward_to(url: URL, session: aiohttp.ClientSession) -> Forward:
    """A function that forwards a callback: last segment, body and signature stay the same.

    Args:
        url: the target without the last segment.
        session: sends the requests.
    """

    async def forward(token: str, headers: list[tuple[str, str]], body: bytes) -> Forwarded:
        began = asyncio.get_running_loop().time()
        status, fault = None, ""
        kept = [(name, value) for name, value in headers if name.lower() in _FORWARDED_HEADERS]
        to = url / token if token else url
        timeout = aiohttp.ClientTimeout(total=_FORWARD_SECONDS)
        try:
            async with session.post(
                to, data=body, headers=kept, allow_redirects=False, timeout=timeout
            ) as answer:
                status = answer.status
        except TimeoutError:
            fault = f"no answer in {_FORWARD_SECONDS:.0f} s"
        except (aiohttp.ClientError, OSError) as error:
            fault = getattr(error, "strerror", None) or type(error).__name__
        return Forwarded(status, asyncio.get_running_loop().time() - began, fault)

    return forward


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
