"""Where callbacks arrive: at a bare handler, or at a client with a receiver. Both have one API."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

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
from midapi_async import CallbackReceiver, MidAPIClient, PollPolicy, TaskHandle
from midapi_async._wire.tokens import new_token

T = TypeVar("T")
A = TypeVar("A")

# No look waits for its turn: what is measured is the cost of looks, not their rate.
UNPACED = PollPolicy(looks_per_second=10_000.0)


async def each(work: Callable[[A], Awaitable[T]], items: Sequence[A], at_once: int) -> list[T]:
    """Do something with every item, some at once; the results in order."""
    results: dict[int, T] = {}
    queue = iter(enumerate(items))

    async def take() -> None:
        for index, item in queue:
            results[index] = await work(item)

    await asyncio.gather(*(take() for _ in range(at_once)))
    return [results[index] for index in range(len(items))]


class End(Protocol):
    """Submits tasks with a callback URL, and waits for the callbacks."""

    async def order(self, times: int) -> Sequence[str]:
        """Submit some tasks; return their ids."""
        ...

    def taken(self) -> int:
        """How many of them were called back."""
        ...

    async def wait(self, task_id: str) -> object:
        """Wait for a task's callback and the look that confirms it."""
        ...


class RawEnd:
    """A future for each token, a handler that resolves it, and then one GET."""

    def __init__(self, client: RawClient, receiver: RawReceiver, url: str) -> None:
        self._client, self._receiver, self._url = client, receiver, url
        self._futures: dict[str, asyncio.Future[None]] = {}

    async def order(self, times: int) -> Sequence[str]:
        """Submit some tasks; return their ids."""
        tokens = [new_token() for _ in range(times)]
        task_ids = await each(self._client.submit, [f"{self._url}/{t}" for t in tokens], 32)
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
        """Submit some tasks; return their ids."""
        handles = await each(self._client.generate, [PROMPT] * times, 32)
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
    receiver = CallbackReceiver(None, port=0)
    async with open_client(service.url, receiver, journal, polling) as client:
        yield OurEnd(client)


def open_client(
    url: str,
    receiver: CallbackReceiver | None = None,
    journal: str | os.PathLike[str] | None = None,
    polling: PollPolicy = UNPACED,
    time_scale: float = 1.0,
) -> MidAPIClient:
    """A client without a rate limit; environment variables do not change it."""
    # A variable of the environment would name a folder.
    os.environ.pop("MIDAPI_JOURNAL", None)
    return MidAPIClient(
        API_KEY,
        base_url=url,
        receiver=receiver,
        journal=journal,
        rate_limit=None,
        polling=polling,
        time_scale=time_scale,
    )
