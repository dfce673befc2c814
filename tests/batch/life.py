"""One run of a batch in a process of its own, which may be killed; a forkserver has imported it."""

import asyncio
import json
import logging
import os
from pathlib import Path

from midapi_async import MidAPIClient, RateLimit, SubmissionUnknown
from tests.support.secrets import API_KEY

NAME = "killed"
SCALE = 200.0


def prompts(count: int) -> list[str]:
    """So many rows; a few are the same."""
    return [f"prompt {number % (count - 2)}" for number in range(count)]


def client_on(url: str, folder: Path) -> MidAPIClient:
    """A client with its journal in the folder."""
    return MidAPIClient(
        API_KEY,
        base_url=url,
        journal=folder / "journal",
        rate_limit=RateLimit(10_000),
        time_scale=SCALE,
    )


def live(url: str, folder: str, count: int, last: str) -> None:
    """Run the batch to its end; then write what came of each row into a file."""
    logging.disable()
    items = asyncio.run(_live(url, Path(folder), count))
    Path(folder, last).write_text(json.dumps(items))
    os._exit(0)


async def _live(url: str, folder: Path, count: int) -> list[tuple[int, str, str, int]]:
    """The index, outcome, prompt or intent, and number of files of each row."""
    items = []
    async with (
        client_on(url, folder) as client,
        client.generate_many(
            prompts(count), batch=NAME, running=20, download_to=folder / "pictures"
        ) as batch,
    ):
        async for item in batch:
            if isinstance(item.error, SubmissionUnknown):
                items.append((item.index, "unknown", item.error.intent_id, 0))
            else:
                outcome = "done" if item.error is None else type(item.error).__name__
                items.append((item.index, outcome, "", len(item.paths)))
    return items
