"""A MidAPI in virtual time: the real client, on real sockets, in the `VirtualLoop` that runs it.

A look or a submit takes no time at all there, so that a delay is the schedule's and nothing else.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import attrs

from _service import Connection, record

BORN = int(time.time() * 1000)


@attrs.define
class Fate:
    """One task, as it really was.

    Attributes:
        begun: when it was accepted, on the loop's clock.
        duration: how long it takes, in seconds.
        body: what was asked for.
        looks: how often it was looked at.
        delay: seconds from its end to the moment its waiter went on.
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
    """Tasks that take as long as they are told.

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
        server = await self._loop.create_server(lambda: Connection(self.answer), "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            if self._calls:
                await asyncio.wait(self._calls)

    def answer(self, submitted: bytes | None, task_id: str) -> object:
        """The data of a submission, or of a look."""
        if submitted is not None:
            return {"taskId": self._accept(json.loads(submitted))}
        fate = self.fates[task_id]
        fate.looks += 1
        return self._record(task_id, fate)

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
        return record(
            task_id,
            created,
            took,
            task_type=str(fate.body["taskType"]),
            speed=None if speed is None else str(speed),
        )

    def _call(self, task_id: str, fate: Fate) -> None:
        assert self._call_back is not None
        urls = [f"https://tempfile.aiquickdraw.com/m/{task_id}_0_{n}.jpeg" for n in range(4)]
        data = {"taskId": task_id, "promptJson": "{}", "resultUrls": urls}
        body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
        call = asyncio.ensure_future(self._call_back(str(fate.body["callBackUrl"]), body))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
