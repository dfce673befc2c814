"""One life of a process that submits, told where to die or stop; a forkserver has imported it."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs

from midapi_async import (
    CallbackReceiver,
    InvalidRequestError,
    JournalError,
    MidAPIClient,
    MidAPIError,
    PollPolicy,
    RateLimit,
    State,
    SubmissionUnknown,
    Timeouts,
    TransportError,
    WaitTimeout,
)
from midapi_async._submission.sender import Sender
from midapi_async._wire.protocol import Call
from midapi_async._wire.transport import Transport
from midapi_async.journal.sqlite import SQLiteJournal

# Every step of a submission's way; a process can die before and after each.
POINTS = (
    "before claim",
    "after claim",
    "before POST",
    "before confirm",
    "after confirm",
    "after POST",
    "before accepted",
    "after accepted",
    "before look",
    "after look",
    "before succeeded",
    "after succeeded",
)
# Where a process may stop and be held for dead, while another one submits the same again. Between
# "after confirm" and the first byte there is no more check: that is the limit of the promise.
STOPS = tuple(point for point in POINTS if point != "after confirm")
BETWEEN_CLAIM_AND_POST = ("after claim", "before POST", "before confirm")

# Exit codes of a life.
ENDED, NO_JOURNAL = 0, 3


@attrs.frozen
class Life:
    """What one process does until it ends or dies.

    Attributes:
        url: where the server is.
        folder: where the journal is.
        keys: what to submit, one after another in each of three tasks.
        point: where the blow falls; None to live until killed or done.
        visit: the how manieth time that the point is passed.
        blow: SIGKILL or SIGSTOP.
        resubmits: whether to submit again, in the end, what is unknown.
    """

    url: str
    folder: str
    keys: tuple[str, ...]
    point: str | None = None
    visit: int = 1
    blow: signal.Signals = signal.SIGKILL
    resubmits: bool = False


def live(life: Life) -> None:
    """Live; os._exit tells how a life ended that came to its end."""
    logging.disable()
    if life.point is not None:
        _strike_at(life)
    try:
        asyncio.run(_live(life))
    except JournalError as error:
        note(life.folder, f"journal {error}")
        os._exit(NO_JOURNAL)
    os._exit(ENDED)


async def _live(life: Life) -> None:
    async with MidAPIClient(
        "k" * 32,
        base_url=life.url,
        journal=life.folder,
        receiver=CallbackReceiver("https://me.example"),  # each intent gets a token
        rate_limit=RateLimit(10_000),
        timeouts=Timeouts(submit=5, look=5, wait=100),
        polling=PollPolicy(floor=0.01, ceiling=0.05, looks_per_second=1000),
        time_scale=100,
    ) as client:

        async def finish(key: str | None, handle: Awaitable[Any]) -> None:
            try:
                details = await handle
            except (WaitTimeout, SubmissionUnknown):
                return  # answers about other tasks: they took its time, or it is another one's
            note(life.folder, f"taken {key} {details.task_id}")

        for handle in await client.resume():
            await finish(handle.key, handle)

        async def work(keys: tuple[str, ...]) -> None:
            for key in keys:
                try:
                    handle = await client.generate(
                        f"prompt {key}", key=key, metadata={"k": key}, timeout=100
                    )
                except (SubmissionUnknown, WaitTimeout, InvalidRequestError):
                    continue
                except TransportError:
                    return  # the server is gone: the test is over
                note(life.folder, f"handle {key} {handle.task_id}")
                await finish(key, handle)

        await asyncio.gather(*(work(life.keys[start::3]) for start in range(3)))
        if life.resubmits:
            for row in await client.intents.unknown():
                try:
                    handle = await client.intents.resubmit(row.intent_id)
                except MidAPIError as error:
                    if isinstance(error, JournalError):
                        raise
                    continue
                note(life.folder, f"handle {row.key} {handle.task_id}")
                await finish(row.key, handle)


def note(folder: str, line: str) -> None:
    """What the user did with it; whole lines survive a kill, O_APPEND keeps them apart."""
    notes = os.open(Path(folder).with_suffix(".notes"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(notes, f"{line}\n".encode())
    os.close(notes)


def _strike_at(life: Life) -> None:
    """Have the blow fall at a point's nth visit."""
    left = [life.visit]

    def reached(name: str) -> None:
        if name == life.point:
            left[0] -= 1
            if left[0] == 0:
                if life.blow is signal.SIGSTOP:
                    note(life.folder, f"stopped {os.getpid()}")
                os.kill(os.getpid(), life.blow)

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
    Sender._confirm = around(Sender._confirm, lambda *_: "confirm")  # type: ignore[method-assign,assignment]
    Transport.call = around(Transport.call, called)  # type: ignore[method-assign,assignment]
