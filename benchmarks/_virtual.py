"""A MidAPI in virtual time: the real client, on real sockets, in the `VirtualLoop` that runs it.

A look or a submit takes no virtual time, so that all delay comes from the schedule.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import attrs

from _server import Connection, answer, callback, listen, record

BORN = int(time.time() * 1000)


@attrs.define
class Fate:
    """One task, as it really was.

    Attributes:
        begun: when it was accepted, on the loop's clock.
        duration: how long it takes, in seconds.
        body: what was asked for.
        looks: how often it was looked at.
        delay: seconds from its end to the moment its waiter resumed.
    """

    begun: float
    duration: float
    body: dict[str, object]
    looks: int = 0
    delay: float = -1.0

    @property
    def end(self) -> float:
        """When it is finished, on the loop's clock."""
        return self.begun + self.duration


class VirtualService:
    """Tasks with given durations.

    Args:
        durations: of the tasks, in the order in which they are submitted.
        call_back: is awaited with a task's callback URL and body when it is finished.
    """

    def __init__(
        self,
        durations: Iterator[float],
        call_back: Callable[[str, bytes], Awaitable[object]] | None = None,
    ) -> None:
        self.fates: dict[str, Fate] = {}
        self._durations = durations
        self._call_back = call_back
        self._loop = asyncio.get_running_loop()
        self._calls: set[asyncio.Task[object]] = set()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Its URL, while it serves."""
        server, url = await listen(lambda: Connection(self._respond))
        async with server:
            yield url
            if self._calls:
                await asyncio.wait(self._calls)

    def _respond(self, head: bytes, body: bytes) -> bytes:
        """Answer a submission, or a look."""
        if head.startswith(b"POST"):
            return answer({"taskId": self._accept(json.loads(body))})
        task_id = head.split(b" ", 2)[1].rpartition(b"taskId=")[2].decode()
        fate = self.fates[task_id]
        fate.looks += 1
        return answer(self._record(task_id, fate))

    def _accept(self, body: dict[str, object]) -> str:
        task_id = f"{len(self.fates):032x}"
        fate = Fate(self._loop.time(), next(self._durations), body)
        self.fates[task_id] = fate
        if self._call_back is not None:
            self._loop.call_at(fate.end, self._call, task_id, fate)
        return task_id

    def _record(self, task_id: str, fate: Fate) -> dict[str, object]:
        created = BORN + round(fate.begun * 1000)
        took = fate.duration if self._loop.time() >= fate.end else None
        speed = fate.body.get("speed")
        task_type = str(fate.body["taskType"])
        return record(task_id, created, took, task_type, None if speed is None else str(speed))

    def _call(self, task_id: str, fate: Fate) -> None:
        assert self._call_back is not None
        url = str(fate.body["callBackUrl"])
        call = asyncio.ensure_future(self._call_back(url, callback(task_id)))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
