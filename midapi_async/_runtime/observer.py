"""Gives events to the observer that a user has passed to the client."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Generic, TypeVar, cast

from .background import OwnedTasks

E = TypeVar("E")
_log = logging.getLogger("midapi_async")

MOST_WAITING = 10_000  # events that wait for an async observer


def is_plain_function(value: object) -> bool:
    """Whether a value can be called and is not async."""
    call = getattr(value, "__call__", None)  # noqa: B004 - an object may have an async __call__
    return callable(value) and not any(map(inspect.iscoroutinefunction, (value, call)))


class Observer(Generic[E]):
    """Calls a user's observer with each event, in their order.

    A sync observer is called at once. An async one gets the events from a queue, one at a time;
    while the queue is full, new events are dropped. The first exception of an observer is logged.

    Args:
        on_event: the observer, or None.

    Attributes:
        dropped: how many events were dropped.
    """

    def __init__(self, on_event: Callable[[E], object] | None) -> None:
        self._on_event = on_event
        self._others: list[Callable[[E], object]] = []
        self._is_async = on_event is not None and not is_plain_function(on_event)
        self._queue: asyncio.Queue[E] = asyncio.Queue(MOST_WAITING)
        self._tasks = OwnedTasks()
        self._is_delivering = False
        self._has_failed = False
        self.dropped = 0

    def notify(self, event: E) -> None:
        """Give an event to the observers; never raises, never waits."""
        for other in tuple(self._others):
            self._call(other, event)
        if self._on_event is None:
            return
        if not self._is_async:
            self._call(self._on_event, event)
            return
        if self._queue.full():
            self.dropped += 1
            return
        self._queue.put_nowait(event)
        if not self._is_delivering:
            self._is_delivering = True
            self._tasks.start(self._deliver(), context=Context())  # empty: it serves all callers

    @contextmanager
    def observed(self, on_event: Callable[[E], object]) -> Iterator[None]:
        """Call a plain function with each event, too, while the block runs."""
        self._others.append(on_event)
        try:
            yield
        finally:
            self._others.remove(on_event)

    def _call(self, observer: Callable[[E], object], event: E) -> None:
        try:
            observer(event)
        except Exception as error:  # noqa: BLE001 - the observer's bug must not stop the client
            self._observer_failed(error)

    async def _deliver(self) -> None:
        """Give the events in the queue to the async observer."""
        observer = cast("Callable[[E], Awaitable[object]]", self._on_event)
        try:
            while not self._queue.empty():
                try:
                    await observer(self._queue.get_nowait())
                except Exception as error:  # noqa: BLE001 - as in `_call`
                    self._observer_failed(error)
        finally:
            self._is_delivering = False

    def _observer_failed(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            _log.error(
                "on_event raised; later exceptions of it are not logged. Events go on.",
                exc_info=error,
            )

    async def aclose(self, patience: float) -> None:
        """Wait some seconds until an async observer has got its events, then cancel it."""
        await self._tasks.finish(patience)
