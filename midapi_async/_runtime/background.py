"""Background tasks with an owner: strongly referenced, awaited at the end, never silent."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextvars import Context

T = TypeVar("T")
_EAGERLY: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
_log = logging.getLogger("midapi_async")


class OwnedTasks:
    """The background tasks of one owner. ``await finish()`` leaves none behind."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(
        self,
        work: Coroutine[object, object, T],
        *,
        context: Context | None = None,
        eagerly: bool = False,
    ) -> asyncio.Task[T]:
        """Run a coroutine in the background; a failure of it is logged.

        Args:
            work: the coroutine.
            context: to run it in; a copy of the current one if None.
            eagerly: run it here and now as far as it gets, which saves a turn of the loop; needs
                Python 3.12.
        """
        options = _EAGERLY if eagerly else {}
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), context=context, **options)
        if task.done():
            self._ended(task)
        else:
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            _log.error("a background task failed", exc_info=failure)

    async def settle(self) -> None:
        """Wait for what runs just now."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def finish(self, patience: float = 0.0) -> None:
        """Wait so many seconds of the loop for what still runs, then cancel it."""
        if self._tasks and patience > 0:
            await asyncio.wait(self._tasks, timeout=patience)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
