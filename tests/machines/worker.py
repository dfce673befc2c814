"""A worker on one of several machines: it orders keys, waits for their results and says so.

    python -m tests.machines.worker OPTIONS

OPTIONS and each line of its standard input are JSON. It prints a line for each key that has ended,
and for each error; it ends when its standard input ends.
"""

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import aclosing
from typing import Any

from midapi_async import (
    CallbackReceiver,
    JournalError,
    MidAPIClient,
    MidAPIError,
    RateLimit,
    SubmissionUnknown,
    Timeouts,
    WaitTimeout,
    config,
)
from tests.support.secrets import API_KEY

KEYS_AT_ONCE = 100


def say(**what: object) -> None:
    """One line; it is written at once."""
    os.write(1, f"{json.dumps(what)}\n".encode())


class Shortly(logging.Formatter):
    """One line for each record; for an exception its class and its text."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname} {record.name}: {record.getMessage()}"
        return f"{line}: {record.exc_info[1]!r}"[:300] if record.exc_info else line[:300]


async def order(client: MidAPIClient, key: str) -> None:
    """Ask for a key until it has ended."""
    while True:
        try:
            handle = await client.generate(f"prompt {key}", key=key)
            since = time.monotonic()
            details = await handle
        except SubmissionUnknown as error:
            say(unknown=key, intent=error.intent_id)
        except WaitTimeout as error:
            say(error=str(error), key=key)
        except MidAPIError as error:
            say(error=f"{type(error).__name__}: {error}", key=key)
        else:
            say(done=key, task=details.task_id, since=since, at=time.monotonic())
            return
        await asyncio.sleep(1.0)


async def resubmit(client: MidAPIClient, intent_id: str) -> None:
    """Submit again what is unknown, as a user does who has seen that it was not bought."""
    try:
        handle = await client.intents.resubmit(intent_id)
    except MidAPIError as error:
        say(error=f"resubmit: {type(error).__name__}: {error}", intent=intent_id)
    else:
        say(resubmitted=intent_id, task=handle.task_id)


async def resume(client: MidAPIClient) -> None:
    """Take what no worker before has recorded as taken."""
    handles = await client.resume()
    for handle in handles:
        await handle
    say(resumed=len(handles))


async def work(options: dict[str, Any]) -> None:
    """Serve callbacks, and do what the lines say."""
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    turn = asyncio.Semaphore(KEYS_AT_ONCE)
    lines: asyncio.StreamReader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def in_turn(client: MidAPIClient, key: str) -> None:
        async with turn:
            await order(client, key)

    client = MidAPIClient(
        API_KEY,
        base_url=options["midapi"],
        journal=options["journal"],
        receiver=CallbackReceiver(options["callbacks"], host=options["host"], port=options["port"]),
        rate_limit=RateLimit(20),
        timeouts=Timeouts(wait=None),
        time_scale=options["scale"],
        allow_http=True,
    )
    while True:
        try:
            await client.open()
            break
        except JournalError as error:  # there is no server at the moment
            say(error=f"open: {error}")
            await asyncio.sleep(0.3)
    async with aclosing(client):
        say(ready=time.time())
        while line := await lines.readline():
            command = json.loads(line)
            works = [in_turn(client, key) for key in command.get("keys", ())]
            works += [resubmit(client, name) for name in command.get("resubmit", ())]
            works += [resume(client) for _ in range("resume" in command)]
            for each in works:
                task = asyncio.create_task(each)
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        say(stats=str(client.stats()))


if __name__ == "__main__":
    handler = logging.StreamHandler()
    handler.setFormatter(Shortly())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # A fast sandbox must be on loopback; here it is on another host of the same machine.
    vars(config)["is_loopback"] = lambda _: True
    asyncio.run(work(json.loads(sys.argv[1])))
