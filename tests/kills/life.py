"""One life of a process that submits, told where to die; a forkserver has imported it."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs

from midapi_async import (
    MidAPIClient,
    PollPolicy,
    RateLimit,
    State,
    SubmissionUnknown,
    Timeouts,
    TransportError,
)
from midapi_async._wire.protocol import Call
from midapi_async._wire.transport import Transport
from midapi_async.journal.sqlite import SQLiteJournal

# Every step of a submission's way; a process can die before and after each.
POINTS = (
    "before claim",
    "after claim",
    "before POST",
    "after POST",
    "before accepted",
    "after accepted",
    "before look",
    "after look",
    "before succeeded",
    "after succeeded",
)


@attrs.frozen
class Life:
    """What one process does until it ends or dies.

    Attributes:
        url: where the server is.
        folder: where the journal is.
        keys: what to submit, one after another in each of three tasks.
        point: where to die; None to live until killed or done.
        visit: the how manieth time that the point is passed.
    """

    url: str
    folder: str
    keys: tuple[str, ...]
    point: str | None = None
    visit: int = 1


def live(life: Life) -> None:
    """Live; os._exit tells 0 for a life that came to its end."""
    if life.point is not None:
        _die_at(life.point, life.visit)
    asyncio.run(_live(life))
    os._exit(0)


async def _live(life: Life) -> None:
    async with MidAPIClient(
        "k" * 32,
        base_url=life.url,
        journal=life.folder,
        rate_limit=RateLimit(10_000),
        timeouts=Timeouts(submit=5, look=5, wait=60),
        polling=PollPolicy(floor=0.01, ceiling=0.05, looks_per_second=1000),
        time_scale=100,
    ) as client:
        for handle in await client.resume():
            details = await handle
            _note(life, f"taken {handle.key} {details.task_id}")

        async def work(keys: tuple[str, ...]) -> None:
            for key in keys:
                try:
                    handle = await client.generate(f"prompt {key}", key=key, metadata={"k": key})
                except SubmissionUnknown:
                    continue
                except TransportError:
                    return  # the server is gone: the test is over
                _note(life, f"handle {key} {handle.task_id}")
                details = await handle
                _note(life, f"taken {key} {details.task_id}")

        await asyncio.gather(*(work(life.keys[start::3]) for start in range(3)))


def _note(life: Life, line: str) -> None:
    """What the user did with it; whole lines survive a kill, O_APPEND keeps them apart."""
    notes = os.open(Path(life.folder).with_suffix(".notes"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(notes, f"{line}\n".encode())
    os.close(notes)


def _die_at(point: str, visit: int) -> None:
    """Have SIGKILL strike at a point's nth visit."""
    left = [visit]

    def reached(name: str) -> None:
        if name == point:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(
        method: Callable[..., Awaitable[Any]], name: Callable[..., str | None]
    ) -> Callable[..., Awaitable[Any]]:
        async def wrapped(self: object, *args: Any, **options: Any) -> Any:
            step = name(*args, **options)
            reached(f"before {step}")
            try:
                return await method(self, *args, **options)
            finally:
                reached(f"after {step}")

        return wrapped

    def moved_to(_: str, to: State | None = None, **__: object) -> str | None:
        return to.value if to is not None else None

    def called(call: Call, *_: object) -> str:
        return "POST" if call.method == "POST" else "look"

    SQLiteJournal.claim = around(SQLiteJournal.claim, lambda *_, **__: "claim")  # type: ignore[method-assign,assignment]
    SQLiteJournal.advance = around(SQLiteJournal.advance, moved_to)  # type: ignore[method-assign,assignment]
    Transport.call = around(Transport.call, called)  # type: ignore[method-assign,assignment]
