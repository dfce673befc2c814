"""A worker that turns orders into pictures, for months; several may run at once.

An order is a text file in the folder orders/. Its name is the order's number, its text the prompt.
The pictures are put into a folder with that number in delivered/. If there are none, a text file
there has the reason.

    export MIDAPI_API_KEY=…
    python worker.py  # until Ctrl-C or SIGTERM
    echo "a red fox in the snow" > 4711.txt && mv 4711.txt orders/  # in another terminal

Everything that was bought is in the folder journal/. After a crash, or a `kill -9`, start the
worker again: it delivers what was bought, and does not buy it again. Delivery is at least once: a
worker that is killed between the delivery and `ack()` delivers again after its restart.
"""

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from midapi_async import (
    BadRequestError,
    InvalidRequestError,
    MidAPIClient,
    MidAPIError,
    ResultExpired,
    SubmissionUnknown,
    TaskError,
    TaskHandle,
    UnprocessableError,
)

ORDERS, DELIVERED = Path("orders"), Path("delivered")
PAUSE = 30.0  # seconds after a problem that may pass
log = logging.getLogger("worker")


async def main() -> None:
    for folder in (ORDERS, DELIVERED):
        folder.mkdir(exist_ok=True)
    async with MidAPIClient(journal="journal", ack="manual") as client:
        # At SIGTERM or Ctrl-C, wait for the answers to POSTs that are under way, then end.
        with client.stop_on_signals():
            async with asyncio.TaskGroup() as group:
                group.create_task(take_orders(client))
                group.create_task(deliver_all(client))


# ─── orders ──────────────────────────────────────────────────────────────────────────────────────


async def take_orders(client: MidAPIClient) -> None:
    while True:
        files = sorted(ORDERS.glob("*.txt"))[:100]
        problems = [each for each in await asyncio.gather(*(buy(client, f) for f in files)) if each]
        if problems:
            log.warning("%d orders must wait: %s", len(problems), problems[0])
        await asyncio.sleep(PAUSE if problems else 1)


async def buy(client: MidAPIClient, file: Path) -> MidAPIError | None:
    """Buy what a file orders, and remove it; return the problem if the order must wait."""
    order = file.stem
    try:
        # The order's number is the key, so it is bought once, however often the file is read.
        await client.generate(file.read_text("utf-8", errors="replace").strip(), key=order)
    except FileNotFoundError:  # another worker has taken it
        return None
    except (InvalidRequestError, BadRequestError, UnprocessableError, TaskError) as error:
        give_reason(order, error)  # another try would not help
    except SubmissionUnknown as error:
        # It may have been bought. Decide with `midapi journal`; then its task is delivered.
        log.critical("order %s needs your decision: %s", order, error)
    except MidAPIError as error:  # no network, no credits, maintenance: nothing was bought
        return error
    file.unlink(missing_ok=True)
    return None


# ─── delivery ────────────────────────────────────────────────────────────────────────────────────


async def deliver_all(client: MidAPIClient) -> None:
    async with asyncio.TaskGroup() as group:
        # Each task when it succeeds or fails, including those of earlier and of killed workers.
        async for handle in client.untaken():
            group.create_task(deliver(client, handle))


async def deliver(client: MidAPIClient, handle: TaskHandle) -> None:
    order = handle.key or handle.task_id
    while True:
        try:
            try:
                files = await client.download(await handle, DELIVERED / order)
                log.info("order %s: %d files", order, len(files))
            except (TaskError, ResultExpired) as error:  # a failed task: deliver its reason
                give_reason(order, error)
            await handle.ack()  # after the delivery: if we are killed before, it is repeated
        except (MidAPIError, OSError) as error:  # no network, a full disk
            log.warning("order %s is not delivered yet: %s", order, error)
            await asyncio.sleep(PAUSE)
        else:
            return


def give_reason(order: str, error: MidAPIError) -> None:
    log.warning("order %s has no pictures: %s", order, error)
    (DELIVERED / f"{order}.txt").write_text(f"{error}\n", "utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
