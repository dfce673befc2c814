"""Buys the pictures of many prompts, each once, and puts the files into the folder pictures/.

    export MIDAPI_API_KEY=…
    python script.py

Run it again to continue, also after a crash: what was bought is not bought again. It knows that
from the folder journal/. The exit code is 1 if a row has no pictures.
"""

import asyncio
import sys

from midapi_async import BatchRequest, MidAPIClient, TextToImage

PROMPTS = {
    "fox": "a red fox in the snow",
    "whale": "a blue whale, seen from above",
    "owl": "an owl that reads",
}


async def main() -> bool:
    # The key is your own name for what you buy: nothing is paid twice under one key.
    rows = [
        BatchRequest(TextToImage(prompt, aspect_ratio="16:9"), key=f"animals/{name}")
        for name, prompt in PROMPTS.items()
    ]
    async with (
        MidAPIClient(journal="journal") as client,
        client.generate_many(
            rows, batch="animals", max_credits=100, download_to="pictures"
        ) as batch,
    ):
        async for item in batch:  # each row as it ends
            print(f"{item.key}: {item.error or f'{len(item.paths)} files'}")
    progress = batch.progress
    print(f"{progress.done} of {progress.total} done, {progress.spent or 0:g} credits spent")
    if progress.stopped:
        print(f"stopped: {progress.stopped}")
    return progress.done == progress.total


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main()) else 1)
