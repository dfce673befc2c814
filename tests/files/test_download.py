import asyncio
from pathlib import Path

import pytest

from midapi_async import (
    DownloadError,
    InvalidRequestError,
    MidAPIClient,
    ResultExpired,
    TaskDetails,
    TaskStatus,
    UnexpectedContent,
)
from midapi_async.sandbox import Faults, Sandbox, gone
from tests.files.samples import SAMPLES
from tests.support.scripted import Play, ScriptedServer, cut, hang, reply
from tests.world import TASK, client_of, looked, refused

# A picture that takes several writes.
JPEG = b"\xff\xd8\xff\xda\0\2" + b"x" * 1_500_000 + b"\xff\xd9"
NO_LINK = refused(422)


def details_of(server: ScriptedServer, count: int = 1) -> TaskDetails:
    """A task with results on the server itself."""
    urls = tuple(f"{server.url}/m/{TASK}_0_{index}.jpeg" for index in range(count))
    return TaskDetails(task_id=TASK, status=TaskStatus.SUCCEEDED, urls=urls)


# ─── what is fetched ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("D8")
@pytest.mark.fault("D16")
@pytest.mark.parametrize("sample", SAMPLES)
async def test_names_are_ours(sample: str, tmp_path: Path) -> None:
    """Task id, index and the extension for the content, whatever the server's name says."""
    kind = SAMPLES[sample]
    async with ScriptedServer([reply(body=kind.data)]) as server, client_of(server) as client:
        [file] = await client.download(details_of(server), tmp_path)
        assert file.name == f"{TASK}_0{kind.extension}"
        assert file.read_bytes() == kind.data
        assert list(tmp_path.iterdir()) == [file]


@pytest.mark.fault("D10")
async def test_the_file_host_never_sees_the_key(tmp_path: Path) -> None:
    """Downloads have a session of their own, with our own User-Agent."""
    async with ScriptedServer([reply(body=JPEG)]) as server, client_of(server) as client:
        await client.download(details_of(server), tmp_path)
        headers = server.requests[-1].headers
        assert "authorization" not in headers
        assert headers["user-agent"].startswith("midapi-async/")
        assert headers["accept-encoding"] == "identity"


FAULTS: dict[str, tuple[Play, type[DownloadError], int]] = {
    "403": (reply(403), DownloadError, 7),
    "404": (reply(404), DownloadError, 7),
    "410": (reply(410), ResultExpired, 1),
    "500": (reply(500), DownloadError, 7),
    "HTML": (reply(body="<html>"), UnexpectedContent, 1),
    "empty": (reply(body=b""), UnexpectedContent, 7),
    "cut": (cut(reply(body=JPEG), body=700_000), DownloadError, 7),
    "silent": (hang(), DownloadError, 7),
}


@pytest.mark.fault("D1")
@pytest.mark.fault("D2")
@pytest.mark.fault("D9")
@pytest.mark.fault("D14")
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failed_download_leaves_nothing(fault: str, tmp_path: Path) -> None:
    """Each fault is its own error, after as many attempts; neither a target nor a part is left."""
    step, kind, attempts = FAULTS[fault]
    async with ScriptedServer() as server, client_of(server) as client:
        server.add(*[step] * attempts, *[NO_LINK] * (attempts > 1))
        with pytest.raises(DownloadError) as caught:
            await client.download(details_of(server), tmp_path)
        assert type(caught.value) is kind
        assert caught.value.url == details_of(server).urls[0]
        assert caught.value.task_id == TASK
        assert "buy" not in str(caught.value)
        assert "generate" not in str(caught.value)
        assert server.steps_left == 0
        assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("D5")
async def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    """A file in the folder's place, a folder in the target's place: the error says so."""
    async with ScriptedServer([reply(body=JPEG)]) as server, client_of(server) as client:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InvalidRequestError, match="folder"):
            await client.download(details_of(server), tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"
        (tmp_path / "out" / f"{TASK}_0.jpeg").mkdir(parents=True)
        with pytest.raises(DownloadError, match="written: a folder is at"):
            await client.download(details_of(server), tmp_path / "out")
        assert len(list((tmp_path / "out").iterdir())) == 1


async def test_a_cancelled_download_leaves_nothing(tmp_path: Path) -> None:
    """It takes its part file with it."""
    step = cut(reply(body=JPEG), body=1_400_000, ending="hang")
    async with ScriptedServer([step]) as server, client_of(server) as client:
        task = asyncio.create_task(client.download(details_of(server), tmp_path))
        await server.arrived()
        await asyncio.sleep(1)
        assert len(list(tmp_path.iterdir())) == 1
        task.cancel()
        await asyncio.wait({task})
        assert list(tmp_path.iterdir()) == []


async def test_a_task_without_files(tmp_path: Path) -> None:
    """Before it is finished there is nothing to fetch."""
    async with ScriptedServer([looked(flag=0)]) as server, client_of(server) as client:
        with pytest.raises(InvalidRequestError, match="generating"):
            await client.download(await client.details(TASK), tmp_path)


async def test_files_that_the_sandbox_has_deleted(tmp_path: Path) -> None:
    """They are ResultExpired."""
    async with Sandbox(faults=Faults().on("file", do=gone(410))) as sandbox:
        async with client_of(sandbox.url) as client:
            details = await client.generate_and_wait("a red fox")
            with pytest.raises(ResultExpired):
                await client.download(details, tmp_path)


async def collected(client: MidAPIClient, url: str) -> bytes:
    """A result, read through `open_result`."""
    return b"".join([block async for block in client.open_result(url)])


async def test_a_result_as_a_stream() -> None:
    """All of it, in blocks."""
    async with ScriptedServer([reply(body=JPEG)]) as server, client_of(server) as client:
        assert await collected(client, details_of(server).urls[0]) == JPEG
