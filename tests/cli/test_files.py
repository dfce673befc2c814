"""Pictures as arguments: files that are uploaded, and downloaded files that name their task."""

import asyncio
import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from midapi_async import MidAPIClient
from midapi_async.cli import _progress
from midapi_async.files import upload as uploads
from midapi_async.sandbox import SandboxThread, answer_code, delay, drip, gone, hang
from tests.cli.conftest import Midapi, ctrl_c_when, only

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


# ─── reference pictures ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_uploaded_and_its_url_is_sent(
    midapi: Midapi, midapi_sandbox: SandboxThread, kind: str
) -> None:
    """Each kind of request that begins with a picture."""
    ran = midapi("generate", kind, "a fox", "./fox.png", "--no-download")
    assert ran.code == 0
    assert content(only(bought(midapi_sandbox)["fileUrls"])) == PNG
    assert midapi_sandbox.ledger.count("upload") == 1


def test_files_and_urls_keep_their_order(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """The same content is uploaded once."""
    ran = midapi("generate", "image", "a fox", "owl.gif", URL, "fox.png", "owl.gif", "--no-wait")
    assert ran.code == 0
    owl, url, fox, again = bought(midapi_sandbox)["fileUrls"]
    assert (content(owl), url, content(fox), again) == (GIF, URL, PNG, owl)
    assert midapi_sandbox.ledger.count("upload") == 2


WRONG: dict[str, tuple[Callable[[Path], object] | None, str]] = {
    "missing.png": (None, "missing.png does not exist; give a file, or a URL that begins with"),
    "www.example.org/a.png": (None, "www.example.org/a.png does not exist; give a file, or a"),
    "file:///fox.png": (None, "does not exist; give a file, or a URL that begins with https://"),
    "empty.png": (Path.touch, "empty.png is empty"),
    "folder": (Path.mkdir, "folder is a folder"),
    "pipe": (os.mkfifo, "pipe is not a file"),
    "page.png": (
        lambda path: path.write_bytes(b"<!DOCTYPE html><p>no"),
        "page.png is an HTML page, not a picture or a video",
    ),
    "big.png": (
        lambda path: path.write_bytes(PNG + bytes(uploads.LARGEST)),
        "big.png is too large: an upload may have 10 MiB",
    ),
}


@pytest.mark.parametrize("command", [["generate", "image", "a fox"], ["upload"]], ids=" ".join)
@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_uploaded_is_a_usage_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path, name: str, command: list[str]
) -> None:
    """One line that names it, before anything is sent; the good one is not uploaded either."""
    make, says = WRONG[name]
    if make is not None:
        make(elsewhere / name)
    ran = midapi(*command, "fox.png", name)
    assert (ran.code, ran.out) == (2, "")
    assert ran.error.startswith("picture: ")
    assert says in ran.error
    assert midapi_sandbox.ledger.requests == ()


def test_all_that_cannot_be_uploaded_is_named(midapi: Midapi) -> None:
    """In one line; without an API key or a server."""
    error = midapi("generate", "style", "a fox", "a.png", URL, "b.png", "--dry-run").error
    assert error.count("does not exist") == 2


def test_a_dry_run_says_what_would_be_uploaded(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent, no key is needed, and what is printed is JSON."""
    monkeypatch.delenv("MIDAPI_API_KEY")
    ran = midapi("generate", "image", "a fox", "./fox.png", URL, "--dry-run")
    urls = json.loads(ran.out)["fileUrls"]
    assert urls == ["(upload of fox.png)", URL]
    said = "Nothing was sent. These files would be uploaded first: fox.png.\n"
    assert (ran.code, ran.err) == (0, said)
    other = ["--extra", f'fileUrls=["{URL}"]']
    found = midapi("generate", "image", "a fox", "fox.png", *other, "--dry-run", "--json").json
    assert found["fileUrls"] == [URL]
    assert midapi_sandbox.ledger.requests == ()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("fox.png", "upload a file of this machine with midapi upload FILE, and put its URL here"),
        ("data:image/png;base64,AAAA", "save it as a file, which midapi upload FILE uploads"),
    ],
)
def test_a_body_with_a_file_is_a_usage_error(
    midapi: Midapi, elsewhere: Path, url: str, says: str
) -> None:
    """A request in JSON has URLs only; the line says how to get one."""
    body = {"taskType": "mj_img2img", "prompt": "a fox", "fileUrls": [url]}
    (elsewhere / "body.json").write_text(json.dumps(body))
    ran = midapi("generate", "--from-json", "body.json")
    assert ran.code == 2
    assert says in ran.error


@pytest.mark.fault("I1")
def test_a_used_key_needs_no_upload(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the upload has expired; another picture is another request."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    monkeypatch.setattr(uploads, "KEPT", -1.0)  # a note that has expired when it is written
    order = ["generate", "image", "a fox", "--key", "order-17", "--no-download", "--json"]
    first, second = midapi(*order, "fox.png"), midapi(*order, "./fox.png")
    assert first.json["task_id"] == second.json["task_id"]
    assert midapi(*order, "owl.gif").json["error"]["type"] == "KeyConflict"
    assert midapi_sandbox.ledger.count("upload") == 1
    assert len(midapi_sandbox.ledger.accepted) == 1


def test_a_failed_upload_names_the_file(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """After three attempts; nothing was bought."""
    midapi_sandbox.faults.on("upload", do=answer_code(500, "a bad moment"))
    ran = midapi("generate", "image", "a fox", "fox.png", "--json")
    assert ran.code == 1
    assert "fox.png was not uploaded: MidAPI answered 500" in ran.error
    error = ran.json["error"]
    assert (error["type"], error["code"], error["file"]) == ("ServerError", 500, "fox.png")
    assert midapi_sandbox.ledger.count("upload") == 3
    assert midapi_sandbox.ledger.accepted == ()


@pytest.mark.parametrize("arguments", [["--key", "mine"], []])
def test_ctrl_c_during_the_upload_buys_nothing(
    midapi: Midapi, midapi_sandbox: SandboxThread, arguments: list[str]
) -> None:
    """Exit code 130, and a line that says so."""
    midapi_sandbox.faults.on("upload", do=hang())
    with ctrl_c_when(lambda: midapi_sandbox.ledger.count("upload")):
        ran = midapi("generate", "image", "a fox", "fox.png", *arguments)
    assert ran.code == 130
    assert "midapi: Interrupted. Nothing was bought.\n" in ran.err
    assert midapi_sandbox.ledger.accepted == ()


@pytest.mark.midapi_sandbox(time_scale=1, auto=False)
@pytest.mark.fault("S13")
@pytest.mark.parametrize("journal", ["", "journal"])
def test_ctrl_c_during_the_post_of_an_uploaded_picture_loses_no_task(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    """The command finds what it has bought, although the request has another URL in it."""
    monkeypatch.setenv("MIDAPI_JOURNAL", journal)
    midapi_sandbox.faults.on("submit", do=delay(1.0))
    with ctrl_c_when(lambda: midapi_sandbox.ledger.accepted):
        ran = midapi("generate", "image", "a fox", "fox.png")
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert ran.code == 130
    assert f"midapi task {task_id} --wait --download" in ran.err


@pytest.mark.midapi_sandbox(time_scale=1)
def test_a_slow_upload_shows_its_progress(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the other progress: a line after some seconds of it, with what has been sent."""
    monkeypatch.setattr(_progress, "_FIRST_LINE", 0.5)
    midapi_sandbox.faults.on("upload", do=delay(1.0))
    ran = midapi("upload", "fox.png")
    assert ran.code == 0
    assert "The command waits for the upload of 1 file (0.0 MB, 100 %): 0.5 s." in ran.err
    ran = midapi("generate", "image", "a fox", "fox.png", "owl.gif", "--no-wait")
    assert "Submission waits for the upload of 2 files (0.0 MB, 100 %): 0.5 s." in ran.err


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
    assert not re.search(r"is being downloaded .*: (\d\d s|\d+ min)", ran.err)


# ─── midapi upload ───────────────────────────────────────────────────────────────────────────────


def test_upload_prints_a_url_on_each_line(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """In the order of the files; nothing else is on stdout."""
    ran = midapi("upload", "owl.gif", "./fox.png")
    assert (ran.code, ran.err) == (0, "")
    assert [content(url) for url in ran.lines] == [GIF, PNG]


def test_upload_as_json_has_the_hash(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """A URL is copied, and the hash of what is there is not known."""
    ran = midapi("upload", "fox.png", URL, "--json")
    fox, copied = ran.json["uploads"]
    assert (fox["path"], fox["sha256"]) == ("fox.png", hashlib.sha256(PNG).hexdigest())
    assert content(fox["url"]) == PNG
    assert (copied["path"], copied["sha256"]) == (URL, None)
    assert copied["url"].startswith(midapi_sandbox.url)


def test_the_same_content_is_uploaded_once_with_a_journal(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    """Also by the next command, and under another name."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    (elsewhere / "copy.png").write_bytes(PNG)
    first, second = midapi("upload", "fox.png"), midapi("upload", "copy.png")
    assert first.out == second.out
    assert midapi("generate", "image", "a fox", "fox.png", "--no-wait").code == 0
    assert bought(midapi_sandbox)["fileUrls"] == first.lines
    assert midapi_sandbox.ledger.count("upload") == 1


@pytest.mark.parametrize("command", [["upload"], ["generate", "image", "a fox"]], ids=" ".join)
def test_an_unknown_upload_host_is_a_usage_error(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """MidAPI documents none; the line says what to set, and names nothing of Python."""
    monkeypatch.setenv("MIDAPI_API_KEY", "key")
    ran = midapi(*command, "fox.png", "--base-url", "https://api.midapi.ai")
    assert ran.code == 2
    assert "Set MIDAPI_UPLOAD_URL or give --upload-url; or put the file where" in ran.error


@pytest.mark.parametrize("command", [["upload"], ["generate", "video", "a fox"]], ids=" ".join)
def test_the_upload_url_can_be_given(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    """As an option or a variable; the option counts."""
    ran = midapi(*command, "fox.png", "--upload-url", "http://files.example.org")
    assert ran.code == 2
    assert "upload_url: must be https" in ran.error
    monkeypatch.setenv("MIDAPI_UPLOAD_URL", "http://files.example.org")
    assert "MIDAPI_UPLOAD_URL must be https" in midapi(*command, "fox.png").error
    assert midapi_sandbox.ledger.requests == ()
    ran = midapi(*command, "fox.png", "--upload-url", midapi_sandbox.url)
    assert ran.code == 0


# ─── from a file to its task ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("group", [[], ["generate"]], ids=["", "generate"])
@pytest.mark.parametrize("command", ["upscale", "vary"])
@pytest.mark.parametrize(
    "name",
    [f"{TASK}_2.jpeg", f"{TASK}_2 (1).png", f"{TASK}_0_2.jpeg", f"pictures/{TASK}_2.webp"],
)
def test_a_downloaded_picture_is_enough(
    midapi: Midapi, group: list[str], command: str, name: str
) -> None:
    """Its name says task and index, also when it is MidAPI's own; it need not be here."""
    by_file = midapi(*group, command, name, "--dry-run", "--json")
    by_id = midapi(*group, command, TASK, 2, "--dry-run", "--json")
    assert by_file.json == by_id.json == {"taskId": TASK, "imageIndex": 2}


def test_a_renamed_picture_is_known_by_the_json_file_beside_it(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """Downloaded with --sidecar and --name; upscaled, varied and looked at by that file alone."""
    made = midapi("generate", "a fox", "--sidecar", "--name", "fox-{index}{ext}")
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert made.lines == [f"fox-{index}.jpeg" for index in range(4)]
    assert json.loads((elsewhere / "fox-1.jpeg.json").read_text())["task_id"] == task_id
    for command in ("upscale", "vary"):
        assert midapi(command, "fox-1.jpeg", "--no-download").code == 0
        body = midapi_sandbox.ledger.accepted[-1].body
        assert (body["taskId"], body["imageIndex"]) == (task_id, 1)
    looked = midapi("task", "./fox-3.jpeg")
    assert (looked.code, len(looked.lines)) == (0, 4)
    assert f"Task {task_id} succeeded" in looked.err


def test_a_file_that_is_named_like_an_id_is_a_file(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """Where an index is given, it is a task id all the same."""
    (elsewhere / TASK).write_bytes(PNG)
    values = {"task_id": "abc", "index": 3, "size": len(PNG)}
    (elsewhere / f"{TASK}.json").write_text(json.dumps(values))
    found = midapi("upscale", TASK, "--dry-run", "--json").json
    assert found == {"taskId": "abc", "imageIndex": 3}
    found = midapi("upscale", TASK, 1, "--dry-run", "--json").json
    assert found == {"taskId": TASK, "imageIndex": 1}
    assert "Task abc is not known to MidAPI" in midapi("task", TASK).error
    (elsewhere / TASK).unlink()
    assert f"Task {TASK} is not known to MidAPI" in midapi("task", TASK).error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["upscale", TASK], f"INDEX is missing: which picture of task {TASK}, 0 to 3. Or give a"),
        (["vary", "fox.png", "0"], "'fox.png' is a file, which tells its INDEX itself: leave it"),
        (["upscale", "fox.png"], "'fox.png' does not say which task it is of: its name is not"),
        (["upscale", "fox.png"], "which --sidecar writes, is missing or not valid"),
        (["task", "fox.png"], "'fox.png' does not say which task it is of: its name is not"),
        (["upscale", "lost.png"], "got 'lost.png'; and there is no such file"),
        (["task", "lost.png"], "got 'lost.png'; and there is no such file"),
        (["task", "../x"], "task_id: must be MidAPI's task id"),
        (["task", "x" * 5000], "and there is no such file"),
        (["upscale", f"https://example.org/{'x' * 300}.png"], "and there is no such file"),
        (["upscale", ".", "0"], "task_id: must be MidAPI's task id"),
        (["upscale", f"{TASK}_4.png"], "image_index: must be a whole number from 0 to 3, got 4"),
        (["upscale"], "requires an argument. See midapi upscale --help."),
    ],
)
def test_what_names_no_picture_is_a_usage_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, arguments: list[str], says: str
) -> None:
    """Exit code 2, and one line that says what to give."""
    ran = midapi(*arguments)
    assert ran.code == 2
    assert says in ran.error
    assert midapi_sandbox.ledger.requests == ()


def test_task_takes_a_downloaded_file(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """One that is here, or its name alone."""
    path = midapi("generate", "a fox").lines[2]
    assert len(midapi("task", path).lines) == 4
    Path(path).unlink()
    assert midapi("task", path, "--download").lines[2] == path
    assert Path(path).is_file()


@pytest.mark.parametrize("prompt", ["fox.png", "./fox.png"])
def test_a_picture_in_place_of_the_prompt_buys_nothing(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path, prompt: str
) -> None:
    """Four pictures of a file's name are not what anybody wants."""
    (elsewhere / "fox.png").write_bytes(PNG)
    ran = midapi("generate", prompt)
    assert ran.code == 2
    assert f"midapi generate image PROMPT {prompt}" in ran.error
    assert midapi_sandbox.ledger.requests == ()
    assert midapi("generate", "fox", "--dry-run").code == 0
    assert midapi("generate", "x" * 1900, "--dry-run").code == 0


# ─── how downloaded files are named ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fox", "name: must end with {ext}"),
        ("fox{ext}", "name: needs {index}, because the task has 4 files"),
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
