"""A program that somebody wrote for kie.ai, with nothing changed but its base URL."""

import asyncio
import json
import time
import urllib.request
from typing import Any

import aiohttp
import pytest

from midapi_async.sandbox import Sandbox, SandboxThread

SECONDS_OF_SANDBOX = 3000


class KieMidjourney:
    """Blocking, with urllib: submit, look every so often, download."""

    def __init__(self, base_url: str, api_key: str, interval: float) -> None:
        self.base_url = base_url
        self.interval = interval
        self.headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}

    def request(self, method: str, path: str, payload: object = None) -> dict[str, Any]:
        """Call the API and give data; every code but 200 is an error."""
        data = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(  # noqa: S310
            self.base_url + path, data=data, headers=self.headers, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            result = json.loads(response.read())
        if result["code"] != 200:
            raise RuntimeError(f"API error: {result.get('msg')}")
        data_of_it: dict[str, Any] = result["data"]
        return data_of_it

    def wait(self, task_id: str) -> list[str]:
        """Poll until the end and give the URLs."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            status = self.request("GET", f"/api/v1/mj/record-info?taskId={task_id}")
            if status["successFlag"] == 1:
                return [item["resultUrl"] for item in status["resultInfoJson"]["resultUrls"]]
            if status["successFlag"] in (2, 3):
                raise RuntimeError(status["errorMessage"] or "generation failed")
            time.sleep(self.interval)
        raise TimeoutError(task_id)


@pytest.mark.real_time
def test_a_blocking_program() -> None:
    """Generate, poll, download, upscale, and a failure that it reports."""
    with SandboxThread(time_scale=SECONDS_OF_SANDBOX) as sandbox:
        client = KieMidjourney(sandbox.url, "some-key", 30 / SECONDS_OF_SANDBOX)
        body = {
            "taskType": "mj_txt2img",
            "speed": "fast",
            "prompt": "Help me generate a sci-fi themed fighter jet in a beautiful sky",
            "fileUrl": "",
            "aspectRatio": "16:9",
            "version": "7",
            "variety": 5,
            "stylization": 1,
            "weirdness": 1,
            "waterMark": "",
        }
        first = client.request("POST", "/api/v1/mj/generate", body)["taskId"]
        urls = client.wait(first)
        assert len(urls) == 4
        for url in urls:
            with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310
                assert response.read().startswith(b"\xff\xd8")
        upscale = {"taskId": first, "imageIndex": 0, "waterMark": "", "callBackUrl": ""}
        second = client.request("POST", "/api/v1/mj/generateUpscale", upscale)["taskId"]
        assert len(client.wait(second)) == 1
        assert client.request("GET", "/api/v1/chat/credit") != {"data": 1}
        body["prompt"] = "x [[sandbox: fail=Banned prompt]]"
        third = client.request("POST", "/api/v1/mj/generate", body)["taskId"]
        with pytest.raises(RuntimeError, match="Banned prompt"):
            client.wait(third)


async def test_an_asyncio_program() -> None:
    """The same with aiohttp: a loop of looks thirty seconds apart."""
    async with Sandbox(api_key="k") as sandbox:
        headers = {"Authorization": "Bearer k"}
        async with aiohttp.ClientSession(sandbox.url, headers=headers) as session:
            payload = {"taskType": "mj_txt2img", "prompt": "a castle", "speed": "relaxed"}
            async with session.post("/api/v1/mj/generate", json=payload) as response:
                task_id = (await response.json())["data"]["taskId"]
            looks = 0
            while True:
                params = {"taskId": task_id}
                async with session.get("/api/v1/mj/record-info", params=params) as response:
                    data = (await response.json())["data"]
                looks += 1
                if data["successFlag"]:
                    break
                await asyncio.sleep(30)
        assert data["successFlag"] == 1
        assert 6 < looks < 14
        assert looks == sandbox.ledger.looks(task_id)
