"""Pictures as arguments: files that are uploaded, and downloaded files that name their task."""

import asyncio
import base64
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from midapi_async import MidAPIClient
from midapi_async.cli import _progress
from midapi_async.sandbox import SandboxThread, drip, gone
from tests.cli.conftest import Midapi, only

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240)]

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x00;"
URL = "https://example.org/fox.png"
TASK = "2431f0c8d4e14c8887881f6901689f70"
KINDS = ["image", "style", "omni", "video"]


@pytest.fixture(autouse=True)
def pictures(elsewhere: Path) -> None:
    """Two pictures in the current folder."""
    (elsewhere / "fox.png").write_bytes(PNG)
    (elsewhere / "owl.gif").write_bytes(GIF)


def content(url: str) -> bytes:
    """What is at a URL of the sandbox."""
    with urlopen(url) as answer:  # noqa: S310 - a sandbox's URL
        return bytes(answer.read())


def bought(sandbox: SandboxThread) -> dict[str, Any]:
    """The body of the one submit that was accepted."""
    return dict(only(sandbox.ledger.accepted).body)


# ─── how downloaded files are named ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fox", "name: must end with {ext}"),
        ("fox{ext}", "name: needs {index}"),
        ("a/{task_id}_{index}{ext}", "name: must be a file's name without /"),
        ("{prompt}_{index}{ext}", "name: has only the fields {task_id}, {index} and {ext}"),
    ],
)
def test_a_wrong_name_is_a_usage_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, name: str, says: str
) -> None:
    """Before anything is bought."""
    ran = midapi("generate", "a fox", "--name", name)
    assert ran.code == 2
    assert says in ran.error
    assert midapi_sandbox.ledger.requests == ()


def test_a_task_with_one_file_needs_no_index(midapi: Midapi) -> None:
    """An upscale, and one video; two videos do."""
    upscale = ["generate", "upscale", TASK, 0, "--name", "fox{ext}", "--dry-run"]
    assert midapi(*upscale).code == 0
    video = ["generate", "video", "a fox", URL, "--name", "fox{ext}", "--dry-run"]
    assert midapi(*video).code == 0
    assert midapi(*video, "--video-batch-size", 2).code == 2


def test_a_file_of_another_task_is_not_replaced(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """The line says what to give; the task was bought, so it is no usage error."""
    named = ["--name", "fox-{index}{ext}"]
    (elsewhere / "fox-0.jpeg").write_bytes(b"mine")
    ran = midapi("generate", "a fox", *named, "--json")
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert ran.code == 1
    assert "Put {task_id} into the name, or give --overwrite to replace it." in ran.err
    assert f"The task itself succeeded; try again with: midapi task {task_id} --download" in ran.err
    assert ran.json["error"]["task_id"] == task_id
    assert (elsewhere / "fox-0.jpeg").read_bytes() == b"mine"
    assert midapi("task", task_id, "--download", *named, "--overwrite").code == 0
    assert (elsewhere / "fox-0.jpeg").read_bytes()[:2] == b"\xff\xd8"


def test_resume_names_its_files(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And writes the JSON files beside them."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")

    async def order() -> None:
        async with MidAPIClient() as client:
            await client.generate("a fox")

    asyncio.run(order())
    ran = midapi(
        "journal", "resume", "--to", "here", "--name", "x-{task_id}-{index}{ext}", "--sidecar"
    )
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert ran.code == 0
    assert sorted(ran.lines) == [f"{task_id} here/x-{task_id}-{index}.jpeg" for index in range(4)]
    assert len([*Path("here").glob("*.json")]) == 4
    assert midapi("journal", "resume", "--name", "x").code == 2


def test_a_failed_download_names_the_files_that_are_there(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """With the status of the host's answer."""
    midapi_sandbox.faults.on("file", nth=[1, *range(5, 60)], do=gone(404))
    ran = midapi("generate", "a fox", "--json")
    assert ran.code == 1
    error = ran.json["error"]
    assert len(error["files"]) == 3
    assert (error["type"], error["status"]) == ("DownloadError", 404)


@pytest.mark.midapi_sandbox(time_scale=60)
def test_a_slow_download_shows_its_progress(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In real seconds, because files do not come faster from a sandbox."""
    monkeypatch.setattr(_progress, "_FIRST_LINE", 0.5)
    midapi_sandbox.faults.on("file", do=drip(piece=2000, seconds=15.0))
    ran = midapi("generate", "a fox")
    assert ran.code == 0
    assert re.search(r"is being downloaded \(0\.\d MB, \d+ %\): \d\.\d s\.", ran.err)
