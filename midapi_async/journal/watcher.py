"""Watches a journal for changes, once for everything in a client that waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from contextvars import Context

from .._runtime.background import OwnedTasks
from .protocol import Journal

_log = logging.getLogger("midapi_async.journal")

_RETRY_AFTER = 1.0  # seconds, after an error of the journal


class Watcher:
    """Calls listeners whenever a row may have changed; watches only while there are listeners."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._listeners: dict[Callable[[], object], None] = {}
        self._tasks = OwnedTasks()
        self._watching: asyncio.Task[None] | None = None

    def add(self, listener: Callable[[], object]) -> None:
        """Call a listener now, and after each change."""
        self._listeners[listener] = None
        listener()
        if self._watching is None:
            self._watching = self._tasks.start(self._watch(), context=Context())

    def remove(self, listener: Callable[[], object]) -> None:
        """Stop calling a listener."""
        self._listeners.pop(listener, None)
        if not self._listeners and self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _watch(self) -> None:
        while True:
            try:
                async with aclosing(self._journal.changes()) as changes:
                    async for _ in changes:
                        for listener in list(self._listeners):
                            listener()
            except Exception:  # noqa: BLE001 - whatever it raises, the listeners still need it
                _log.exception("the journal cannot be watched; trying again")
            await asyncio.sleep(_RETRY_AFTER)

    async def aclose(self) -> None:
        """Stop watching."""
        await self._tasks.finish()
