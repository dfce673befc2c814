"""Sends callbacks: signed, and again until they are taken."""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import string
import time
from collections.abc import Coroutine
from typing import final
from urllib.parse import quote

import aiohttp
from yarl import URL

from midapi_async.sandbox import _wire
from midapi_async.sandbox._clock import Clock
from midapi_async.sandbox._delivery import Delivery
from midapi_async.sandbox._envelope import encode
from midapi_async.sandbox._ledger import Book, CalledBack
from midapi_async.sandbox._records import Records
from midapi_async.sandbox._tasks import Task, failed_copy

_LOG = logging.getLogger(__name__)
_SERVER = re.compile(r"[A-Za-z]+://[^/?#]*")
# A network does not run faster because the sandbox does.
_SHORTEST_TIMEOUT = 5.0


def sign(key: str, task_id: str, timestamp: str) -> str:
    """Give the webhook signature of a task id and a timestamp in Unix seconds."""
    text = f"{task_id}.{timestamp}".encode()
    return base64.b64encode(hmac.digest(key.encode(), text, hashlib.sha256)).decode()


def as_it_is(url: str) -> URL:
    """Give a URL whose path and query are not normalized: an endpoint may compare the letters.

    Only what cannot stand in a request line is escaped: blanks and anything beyond ASCII.
    """
    server = _SERVER.match(url)
    if server is None:
        return URL(url)
    rest = quote(url[server.end() :], safe=string.punctuation)
    return URL(f"{URL(server[0])}{rest}", encoded=True)


def _new_session() -> aiohttp.ClientSession:
    """Give a session that is many senders: no connection is shared, none waits for another."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


@final
class Caller:
    """Owns the session and every callback under way; `aclose` ends them all."""

    def __init__(
        self, clock: Clock, ledger: Book, records: Records, webhook_key: str | None
    ) -> None:
        """Send nothing yet; with a key everything is signed."""
        self._clock = clock
        self._ledger = ledger
        self._records = records
        self._key = webhook_key
        self._session: aiohttp.ClientSession | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._acknowledged: dict[str, asyncio.Event] = {}

    def acknowledge(self, task: Task) -> None:
        """Begin to send the acknowledgement of a task that has just been accepted."""
        wanted = task.delivery.acknowledge and not task.delivery.never
        if wanted and task.order.callback_url and not self._clock.stopped.is_set():
            done = self._acknowledged[task.id] = asyncio.Event()
            self._start(self._acknowledge(task, task.order.callback_url, done))

    def deliver(self, task: Task) -> None:
        """Begin to send the callback of a task that has ended, if it is to have one.

        The task is told when each of its copies was tried once.
        """
        if task.delivery.never or not task.order.callback_url or self._clock.stopped.is_set():
            task.note_called()
        else:
            self._start(self._deliver(task, task.order.callback_url))

    async def call_once(self, task: Task, url: str, delivery: Delivery) -> int | None:
        """Send one callback now and give the status of the answer, None if there was none.

        A task that has not ended gets an acknowledgement.
        """
        if delivery.acknowledge and task.is_final:
            await self._post(task, url, delivery, kind="acknowledgement")
        kind = "final" if task.is_final or delivery.failed else "acknowledgement"
        return (await self._post_copies(task, url, delivery, kind=kind))[0]

    async def aclose(self) -> None:
        """End every callback under way and close the session; nothing is sent any more."""
        for running in self._running:
            running.cancel()
        if self._running:
            await asyncio.wait(self._running)
        if self._session is not None:
            await self._session.close()

    def _start(self, work: Coroutine[object, object, None]) -> None:
        running = asyncio.create_task(work)
        self._running.add(running)
        running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        if not running.cancelled() and (error := running.exception()):
            _LOG.error("a callback could not be sent", exc_info=error)

    async def _acknowledge(self, task: Task, url: str, done: asyncio.Event) -> None:
        try:
            await self._post(task, url, task.delivery, kind="acknowledgement")
        finally:
            done.set()
            del self._acknowledged[task.id]

    async def _deliver(self, task: Task, url: str) -> None:
        try:
            if acknowledged := self._acknowledged.get(task.id):
                await acknowledged.wait()
            await self._clock.sleep(task.delivery.seconds)
            statuses = await self._post_copies(task, url, task.delivery, kind="final")
        finally:
            task.note_called()
        if _wire.OK not in statuses:
            await self._try_again(task, url)

    async def _try_again(self, task: Task, url: str) -> None:
        for attempt, seconds in enumerate(_wire.CALLBACK_RETRIES, start=2):
            await self._clock.sleep(seconds)
            status = await self._post(task, url, task.delivery, kind="final", attempt=attempt)
            if status == _wire.OK:
                return

    async def _post_copies(
        self, task: Task, url: str, delivery: Delivery, *, kind: str
    ) -> list[int | None]:
        copies = range(delivery.times)
        return await asyncio.gather(*(self._post(task, url, delivery, kind=kind) for _ in copies))

    async def _post(
        self, task: Task, url: str, delivery: Delivery, *, kind: str, attempt: int = 1
    ) -> int | None:
        """Send it once, write it down, and give the status of the answer."""
        status, error = None, None
        try:
            status = await self._send(task, url, delivery, kind)
        except (aiohttp.ClientError, OSError, ValueError) as caught:
            error = type(caught).__name__
        now = self._clock.now()
        self._ledger.call_back(CalledBack(task.id, url, kind, attempt, now, status, error))
        return status

    async def _send(self, task: Task, url: str, delivery: Delivery, kind: str) -> int:
        headers = {"Content-Type": "application/json", **self._signature(task.id, delivery)}
        body = encode(self._body(task, delivery, kind))
        seconds = max(_wire.CALLBACK_TIMEOUT / self._clock.scale, _SHORTEST_TIMEOUT)
        if self._session is None:
            self._session = _new_session()
        target = as_it_is(url)
        async with (
            asyncio.timeout(seconds),
            self._session.post(target, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return answer.status

    def _body(self, task: Task, delivery: Delivery, kind: str) -> dict[str, object]:
        if kind == "acknowledgement":
            return self._records.acknowledgement(task)
        if delivery.failed:
            task = failed_copy(task)
        urls = task.urls if delivery.urls is None else delivery.urls
        extended = task.order.path == _wire.EXTEND
        like_record = extended if delivery.like_record is None else delivery.like_record
        write = self._records.record_callback if like_record else self._records.callback
        return write(task, urls)

    def _signature(self, task_id: str, delivery: Delivery) -> dict[str, str]:
        """Give the signature's headers; a receiver compares their time with the real one."""
        if self._key is None:
            return {}
        timestamp = str(int(time.time() - delivery.age))
        key = f"not {self._key}" if delivery.wrong_signature else self._key
        signature = sign(key, task_id, timestamp)
        return {_wire.TIMESTAMP_HEADER: timestamp, _wire.SIGNATURE_HEADER: signature}
