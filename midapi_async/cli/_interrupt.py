"""Ctrl-C and SIGTERM: what ends, what goes on and is paid for, and how to come back to it."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from midapi_async import SubmissionUnknown
from midapi_async.requests import paths_of

from ._errors import INTERRUPTED, CommandError, unknown_text
from ._terminal import say, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from midapi_async import Intent, MidAPIClient, Request, TaskHandle

_LEAST_PATIENCE = 120.0  # service seconds to wait for the callback after a lost answer


@contextmanager
def stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM only set an event of the running loop; for commands that serve."""
    loop = asyncio.get_running_loop()

    def wake(*_: object) -> None:
        loop.call_soon_threadsafe(stop.set)

    # Plain handlers: Windows has no `loop.add_signal_handler`.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, wake) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM and a terminal that is closed do what Ctrl-C does to the current task.

    The first signal cancels it, a second SIGTERM ends it at once. SIGHUP may come several times: a
    shell and the system both send it.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end(number: int, _: object) -> None:
        if number != signal.SIGTERM and task is not None and task.cancelling():
            return
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        elif task is None or task.cancelling():
            raise KeyboardInterrupt
        else:  # a shell makes what it starts with "&" ignore SIGINT
            task.cancel()
            loop.call_soon_threadsafe(lambda: None)  # to wake it

    numbers = [signal.SIGTERM]
    # Windows has no SIGHUP; nohup ignores it.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted(message: str = "", **facts: object) -> CommandError:
    """The error for Ctrl-C.

    Args:
        message: what goes on, and how to come back to it.
        facts: further fields of the JSON.
    """
    text = f"Interrupted. {message}".rstrip()
    return CommandError("Interrupted", text, facts=facts, exit_code=INTERRUPTED)


def interrupted_wait(task_id: str) -> CommandError:
    """The error for Ctrl-C while a task is generating."""
    return interrupted(
        f"Task {task_id} goes on and is paid for; come back with: "
        f"midapi task {task_id} --wait --download",
        task_id=task_id,
    )


async def submit(
    client: MidAPIClient,
    request: Request,
    *,
    key: str | None = None,
    metadata: Mapping[str, str] | None = None,
    patience: float | None = None,
) -> TaskHandle:
    """Submit a request; wait for its callback if MidAPI's answer is lost.

    After Ctrl-C, find out first what it bought.

    Args:
        client: the open client.
        request: what to submit.
        key: the user's own name for it, or None.
        metadata: the user's own notes, or None.
        patience: seconds to wait for a callback at most; None for no further limit.

    Raises:
        CommandError: interrupted; the text says what was bought.
    """
    since = time.time()
    try:
        try:
            return await client.generate(request, key=key, metadata=metadata)
        except SubmissionUnknown as unknown:
            if not unknown.can_settle:
                raise
            # As long as `generate_and_wait` waits: such a task has ended by then, or never began.
            longest = max(_LEAST_PATIENCE, 3 * client.expected(request).p90)
            limit = longest if patience is None else min(longest, patience)
            why = f": {unknown.reason.rstrip('. ')}" if unknown.reason else ""
            say(f"It is not known whether MidAPI accepted this{why}.")
            say(f"Waiting up to {seconds(limit)} for MidAPI's callback: it comes if it was bought.")
            return await client.intents.settle(unknown, limit)
    except asyncio.CancelledError:
        # Not re-raised: this runs in the main task, which only Ctrl-C cancels.
        raise await _outcome(client, request, key, since) from None


async def _outcome(
    client: MidAPIClient, request: Request, key: str | None, since: float
) -> CommandError:
    """What an interrupted submission bought. Waits for MidAPI's answer, so that no id is lost.

    Args:
        client: the open client that submitted it; it is closed by this and opened again.
        request: what was submitted.
        key: its key, or None.
        since: epoch seconds; it was not submitted before.
    """
    say("Waiting for MidAPI's answer to what was sent already (Ctrl-C again ends this, too) …")
    await client.aclose()
    await client.open()

    def is_it(found: TaskHandle | Intent, at: float) -> bool:
        # A request that still has files is one whose key was used before.
        is_same = found.request == request or bool(paths_of(request))
        return is_same and found.key == key and (key is not None or at >= since)

    for handle in await client.resume():
        if handle.submitted_at and is_it(handle, handle.submitted_at.timestamp()):
            return interrupted_wait(handle.task_id)
    for intent in await client.intents.unknown():
        if is_it(intent, intent.created_at):
            reason = "the command was interrupted before the answer came"
            text = unknown_text(intent.intent_id, reason)
            return interrupted(text, intent_id=intent.intent_id)
    return interrupted("Nothing was bought.")
