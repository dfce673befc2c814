"""Programs on one PostgreSQL journal, as other machines run them: `test_postgres.py` starts them.

python -m tests.journal.postgres_processes WHAT URL SCHEMA
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from midapi_async.journal import Claimed, Standing
from midapi_async.journal.postgres import PostgresJournal
from tests.journal.world import SCOPE, claim, claimed, intent


def report(line: str) -> None:
    """Say something to the test."""
    print(line, flush=True)


async def hold(journal: PostgresJournal) -> None:
    """Claim a key and stand in the middle of its POST."""
    await claimed(journal, intent(key="k"))
    report("claimed")
    await asyncio.sleep(60)


async def race(journal: PostgresJournal) -> None:
    """Claim 60 keys; say which of them are ours."""
    await journal.rows()
    report("ready")
    await asyncio.to_thread(sys.stdin.readline)
    ours = []
    for n in range(60):
        answer = await claim(journal, intent(key=f"k{n}"))
        assert isinstance(answer, Claimed | Standing), answer
        if isinstance(answer, Claimed):
            ours.append(str(n))
    report(" ".join(ours))
    await asyncio.to_thread(sys.stdin.readline)  # SENDING of a living owner, while others try
    await journal.aclose()


async def fork(journal: PostgresJournal) -> None:
    """Claim a key, and leave a child behind that lives on."""
    await claimed(journal, intent(key="k"))
    child = os.fork()
    if child == 0:
        os.close(1)
        try:
            asyncio.run(journal.rows(SCOPE))  # it is the parent's
        except BaseException:  # noqa: BLE001 - either way it must stay alive and not come back
            os.read(0, 1)
        os._exit(0)
    report(f"claimed {child}")
    os.kill(os.getpid(), 9)


def main() -> None:
    """Run one of them."""
    what, url, schema = sys.argv[1:]
    works: dict[str, Callable[[PostgresJournal], Awaitable[None]]]
    works = {"hold": hold, "race": race, "fork": fork}

    async def work() -> None:
        await works[what](PostgresJournal(url, schema=schema))

    asyncio.run(work())


if __name__ == "__main__":
    main()
