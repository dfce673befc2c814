"""A MidAPI that costs little: as much HTTP as our client speaks, on one `asyncio.Protocol`.

    python benchmarks/_service.py

In a process of its own it is what `waiters.py` waits for. It prints its port and takes orders, a
line each: ``some`` lets one task in twenty be finished, ``all`` all of them, ``none`` none; each is
answered with its own name. It ends with its input. `_virtual.py` answers looks from a virtual
clock.
"""

import asyncio
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Callable

MEDIAN, SIGMA = 60.0, 0.3  # of how long its tasks took, in seconds
SHARE = {"none": 0.0, "some": 0.05, "all": 1.0}
BORN = int(time.time() * 1000)


# What answers: the body of a submit, or None and the id of the task that is looked at, makes data.
Answering = Callable[[bytes | None, str], object]


class Service:
    """Tasks that are finished when it is told so; whether each is, and what it took, is in its id.

    Attributes:
        finished: the share of tasks that are.
    """

    def __init__(self) -> None:
        self.finished = SHARE["none"]
        self._numbers = itertools.count()

    def answer(self, submitted: bytes | None, task_id: str) -> object:
        """The data of a submission, or of a look."""
        if submitted is not None:
            return {"taskId": f"{next(self._numbers):032x}"}
        chance = random.Random(task_id)
        took = math.exp(chance.gauss(math.log(MEDIAN), SIGMA))
        return record(task_id, BORN, took if chance.random() < self.finished else None)


def record(
    task_id: str,
    created: int,
    took: float | None,
    task_type: str = "mj_txt2img",
    speed: str | None = "fast",
) -> dict[str, object]:
    """The data of record-info, as recorded.

    Args:
        task_id: of which task.
        created: when it was accepted, in epoch milliseconds.
        took: seconds; None while it is generating.
        task_type: of the task.
        speed: as it was asked for, if it was.
    """
    url = f"https://tempfile.aiquickdraw.com/m/{task_id}_0_"
    params = {"prompt": "a red fox", "taskType": task_type} | ({"speed": speed} if speed else {})
    result = {"resultUrls": [{"resultUrl": f"{url}{n}.jpeg"} for n in range(4)]}
    return {
        "taskId": task_id,
        "taskType": task_type,
        "paramJson": json.dumps(params),
        "completeTime": None if took is None else created + round(took * 1000),
        "resultInfoJson": None if took is None else result,
        "successFlag": 0 if took is None else 1,
        "createTime": created,
        "errorCode": None,
        "errorMessage": None,
    }


class Connection(asyncio.Protocol):
    """HTTP as far as one client of ours speaks it: no pipelining, a length with each body."""

    def __init__(self, answer: Answering) -> None:
        self._answer = answer
        self._buffer = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request when it is whole."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length:")
        if not end or len(body) < int(length.split(b"\r")[0] or b"0"):
            return
        self._buffer = b""
        method, target, _ = head.split(b" ", 2)
        submitted = body if method == b"POST" else None
        answered = self._answer(submitted, target.rpartition(b"taskId=")[2].decode())
        content = json.dumps({"code": 200, "msg": "success", "data": answered}).encode()
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(content), content)
        )


async def main() -> None:
    """Serve until the input ends."""
    loop, service = asyncio.get_running_loop(), Service()
    server = await loop.create_server(lambda: Connection(service.answer), "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        while order := await asyncio.to_thread(sys.stdin.readline):
            service.finished = SHARE[order.strip()]
            print(order.strip(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
