"""A process that submits all the time, several at once, until it is ended; run by its tests.

    python -m tests.support.submitters NAME URL FOLDER COUNT PER AT_ONCE

It says "ready" when it is open and begins when it gets a line.
"""

import asyncio
import sys

from midapi_async import MidAPIClient, MidAPIError, RateLimit
from tests.support.secrets import API_KEY


async def submit(name: str, url: str, folder: str, limit: RateLimit, at_once: int) -> None:
    """Submit for ever, so many at once; the prompts begin with the name."""
    async with MidAPIClient(API_KEY, base_url=url, journal=folder, rate_limit=limit) as client:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def one_after_another() -> None:
            while True:
                await client.generate(f"{name} wants a red fox")

        try:
            await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        except MidAPIError as error:
            print(error, flush=True)


if __name__ == "__main__":
    who, where, path, count, per, tasks = sys.argv[1:]
    asyncio.run(submit(who, where, path, RateLimit(int(count), per=float(per)), int(tasks)))
