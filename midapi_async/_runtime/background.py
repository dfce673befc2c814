"""Background tasks with an owner, which keeps them alive, awaits them and logs their failures."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")
_EAGERLY: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
_log = logging.getLogger("midapi_async")


class OwnedTasks:
    """The background tasks of one owner. After ``await finish()`` none is running."""

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
        """Run a coroutine in the background and log its failure.

        Args:
            work: the coroutine.
            context: to run it in; a copy of the current one if None.
            eagerly: run it at once up to its first wait, which saves a turn of the loop; without
                effect before Python 3.12.
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

    async def join(self) -> None:
        """Wait for the tasks that are running now."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Cancel the tasks that are running now, and do not wait for their ends."""
        for task in self._tasks:
            task.cancel()

    async def finish(self, patience: float = 0.0) -> None:
        """Wait up to `patience` seconds of the loop for the tasks, then cancel the rest."""
        if self._tasks and patience > 0:
            await asyncio.wait(self._tasks, timeout=patience)
        while self._tasks:
            self.cancel()
            await asyncio.wait(self._tasks)
