"""A process that submits as fast as the gate lets it; run by `test_gate_processes.py`.

    python -m tests.journal.gate_processes NAME URL FOLDER COUNT PER AT_ONCE

It prints "ready" when its client is open, and begins when it reads a line. Its keys are counted
from 0, so that a second process with the same name asks for what the first one may have bought.
"""

import asyncio
import itertools
import sys

from midapi_async import MidAPIClient, MidAPIError, RateLimit, SubmissionUnknown
from tests.support.secrets import API_KEY


async def submit(name: str, url: str, folder: str, limit: RateLimit, at_once: int) -> None:
    """Submit until the process is ended, so many at once; each prompt is also its key."""
    numbers = itertools.count()
    async with MidAPIClient(API_KEY, base_url=url, journal=folder, rate_limit=limit) as client:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def one_after_another() -> None:
            for number in numbers:
                prompt = f"{name} {number}"
                try:
                    await client.generate(prompt, key=prompt)
                except SubmissionUnknown:
                    continue  # sent by a process that was killed

        try:
            await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        except MidAPIError as error:
            print(f"{name} failed: {error}", file=sys.stderr, flush=True)
            raise


if __name__ == "__main__":
    who, where, path, count, per, tasks = sys.argv[1:]
    asyncio.run(submit(who, where, path, RateLimit(int(count), per=float(per)), int(tasks)))
