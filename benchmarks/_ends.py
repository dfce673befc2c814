"""Where callbacks arrive: at a bare handler, or at a client with a receiver. Both wait alike."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from aiohttp import web

from _raw import (
    API_KEY,
    PROMPT,
    RawClient,
    RawReceiver,
    application,
    bare_server,
    raw_client,
    served,
)
from _server import Service
from midapi_async import CallbackReceiver, MemoryJournal, MidAPIClient, PollPolicy, TaskHandle
from midapi_async._wire.tokens import new_token

# So fast that nothing waits for its turn: what a look costs is measured, not their pace.
UNPACED = PollPolicy(looks_per_second=10_000.0)


class End(Protocol):
    """One of both."""

    async def order(self, times: int) -> Sequence[str]:
        """Submit so many tasks; their ids."""
        ...

    async def wait(self, task_id: str) -> object:
        """Wait for a task's callback and the look that confirms it."""
        ...


class RawEnd:
    """A future for each token, a handler that resolves it, and one GET then."""

    def __init__(self, client: RawClient, receiver: RawReceiver, url: str) -> None:
        self._client, self._receiver, self._url = client, receiver, url
        self._futures: dict[str, asyncio.Future[None]] = {}

    async def order(self, times: int) -> Sequence[str]:
        """Submit so many tasks; their ids."""
        tokens = [new_token() for _ in range(times)]
        task_ids = [await self._client.submit(f"{self._url}/{token}") for token in tokens]
        self._futures = dict(zip(task_ids, self._receiver.expect(tokens), strict=True))
        return task_ids

    def taken(self) -> int:
        """How many of them were called back."""
        return sum(future.done() for future in self._futures.values())

    async def wait(self, task_id: str) -> object:
        """Wait for a task's callback, and make the GET."""
        await self._futures[task_id]
        return await self._client.look(task_id)


class OurEnd:
    """A client with a receiver."""

    def __init__(self, client: MidAPIClient) -> None:
        self._client = client
        self._handles: dict[str, TaskHandle] = {}
        self._before = 0

    async def order(self, times: int) -> Sequence[str]:
        """Submit so many tasks; their ids."""
        handles = [await self._client.generate(PROMPT) for _ in range(times)]
        self._handles = {handle.task_id: handle for handle in handles}
        self._before = self._client.stats().callbacks
        return list(self._handles)

    def taken(self) -> int:
        """How many of them were called back."""
        return self._client.stats().callbacks - self._before

    async def wait(self, task_id: str) -> object:
        """Wait for a task's result."""
        return await self._handles[task_id].wait()


@asynccontextmanager
async def raw_end(service: Service, *, is_routed: bool = True) -> AsyncIterator[RawEnd]:
    """Bare aiohttp on both sides; without a route, its server without an application."""
    receiver = RawReceiver()
    runner: web.AppRunner | web.ServerRunner = (
        application(receiver.routed) if is_routed else bare_server(receiver.unrouted)
    )
    async with raw_client(service.url) as client, served(runner) as url:
        yield RawEnd(client, receiver, url)


@asynccontextmanager
async def our_end(
    service: Service,
    journal: str | os.PathLike[str] | None = None,
    polling: PollPolicy = UNPACED,
) -> AsyncIterator[OurEnd]:
    """A client with the receiver's own server; without a folder, the journal is in memory."""
    async with open_client(service, CallbackReceiver(None, port=0), journal, polling) as client:
        yield OurEnd(client)


def open_client(
    service: Service,
    receiver: CallbackReceiver | None = None,
    journal: str | os.PathLike[str] | None = None,
    polling: PollPolicy = UNPACED,
) -> MidAPIClient:
    """A client without a limit, whatever the environment says."""
    return MidAPIClient(
        API_KEY,
        base_url=service.url,
        receiver=receiver,
        journal=MemoryJournal() if journal is None else journal,
        rate_limit=None,
        polling=polling,
        time_scale=1.0,
    )
