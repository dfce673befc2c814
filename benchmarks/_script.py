"""What people write for a batch: a semaphore, a manifest file, and polling with bare aiohttp.

It is written with care: POSTs keep to a window of the rate limit and are sent again after a 429, a
row is in memory only while it runs, and each task id and result is appended to the manifest, from
which a second run continues. It does not survive what the SDK does: a crash between a POST and its
line, a lost answer, two processes.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import aiohttp

from _raw import BODY, HEADERS

INTERVAL = 5.0  # seconds between two looks at a task


class Manifest:
    """One JSON line for each task that was bought, and one for each result."""

    def __init__(self, path: Path) -> None:
        self.tasks: dict[str, str] = {}
        self.urls: dict[str, list[str]] = {}
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                entry = json.loads(line)
                self.tasks[entry["prompt"]] = entry["task"]
                if "urls" in entry:
                    self.urls[entry["prompt"]] = entry["urls"]
        self._file = path.open("a", encoding="utf-8")

    def write(self, **entry: object) -> None:
        """Append a line."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Script:
    """Buys a picture for each prompt.

    Args:
        url: of the service.
        manifest: the path of the manifest.
        running: how many rows run at a time.
        count: how many POSTs a window may have.
        per: seconds of the window.
        scale: service seconds in a second.
    """

    def __init__(
        self, url: str, manifest: Path, *, running: int, count: int, per: float, scale: float
    ) -> None:
        self._url = url
        self._manifest = Manifest(manifest)
        self._semaphore = asyncio.Semaphore(running)
        self._window: deque[float] = deque(maxlen=count)
        self._turn = asyncio.Lock()
        self._count, self._per, self._scale = count, per / scale, scale
        self.posts: list[float] = []  # seconds of each
        self.done = 0

    async def run(self, prompts: Iterable[str]) -> None:
        """Buy all of them, and wait for their results."""
        headers = {**HEADERS, "Accept-Encoding": "identity"}
        async with (
            aiohttp.ClientSession(self._url, headers=headers) as session,
            asyncio.TaskGroup() as group,
        ):
            for prompt in prompts:
                if prompt in self._manifest.urls:
                    self.done += 1
                    continue
                await self._semaphore.acquire()
                group.create_task(self._row(session, prompt))
        self._manifest.close()

    async def _row(self, session: aiohttp.ClientSession, prompt: str) -> None:
        try:
            task = self._manifest.tasks.get(prompt)
            if task is None:
                task = await self._submit(session, prompt)
                self._manifest.write(prompt=prompt, task=task)
            urls = await self._poll(session, task)
            self._manifest.write(prompt=prompt, task=task, urls=urls)
            self.done += 1
        finally:
            self._semaphore.release()

    async def _submit(self, session: aiohttp.ClientSession, prompt: str) -> str:
        while True:
            async with self._turn:
                if len(self._window) == self._count:
                    await asyncio.sleep(self._window[0] + self._per - time.monotonic())
                self._window.append(time.monotonic())
            begun = time.monotonic()
            body = {**BODY, "prompt": prompt}
            async with session.post("/api/v1/mj/generate", json=body) as response:
                answer = await response.json()
            self.posts.append(time.monotonic() - begun)
            if answer["code"] == 200:
                return str(answer["data"]["taskId"])
            if answer["code"] != 429:
                raise RuntimeError(answer["msg"])
            await asyncio.sleep(self._per)

    async def _poll(self, session: aiohttp.ClientSession, task: str) -> list[str]:
        while True:
            await asyncio.sleep(INTERVAL / self._scale)
            url = "/api/v1/mj/record-info"
            async with session.get(url, params={"taskId": task}) as response:
                record = (await response.json())["data"]
            if record["successFlag"] == 1:
                return [each["resultUrl"] for each in record["resultInfoJson"]["resultUrls"]]
            if record["successFlag"] != 0:
                raise RuntimeError(record["errorMessage"])
