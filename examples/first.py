"""Orders a picture, waits for it, and downloads the four files that come."""

import asyncio

from midapi_async import MidAPIClient


async def main() -> None:
    async with MidAPIClient() as client:  # the key comes from MIDAPI_API_KEY
        details = await client.generate_and_wait("a red fox in the snow", aspect_ratio="16:9")
        for path in await client.download(details, "pictures"):
            print(path)


asyncio.run(main())
