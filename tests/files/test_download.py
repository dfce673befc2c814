import asyncio
import errno
import hashlib
import json
import logging
import os
import pickle
import stat
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import attrs
import pytest

from midapi_async import (
    DownloadError,
    InvalidRequestError,
    Progress,
    ResultExpired,
    TaskDetails,
    TaskStatus,
    UnexpectedContent,
)
from midapi_async.sandbox import Faults, Sandbox, gone
from tests.files.samples import SAMPLES
from tests.support.leaks import open_files
from tests.support.scripted import Answer, Play, Received, ScriptedServer, cut, drip, hang, reply
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
        with pytest.raises(InvalidRequestError, match="file' is not a folder"):
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


# ─── what is there already ───────────────────────────────────────────────────────────────────────


async def test_whole_files_are_not_fetched_again(tmp_path: Path) -> None:
    """Only what is missing or damaged; with `overwrite` everything."""
    async with ScriptedServer(then=reply(body=JPEG)) as server, client_of(server) as client:
        details = details_of(server, 3)
        files = await client.download(details, tmp_path)
        assert len(server.requests) == 3
        assert await client.download(details, tmp_path) == files
        assert len(server.requests) == 3
        files[0].unlink()
        files[2].write_bytes(JPEG[:-2])
        assert await client.download(details, tmp_path) == files
        assert sorted(each.path[-7:] for each in server.requests[3:]) == ["_0.jpeg", "_2.jpeg"]
        assert [each.read_bytes() for each in files] == [JPEG] * 3
        await client.download(details, tmp_path, overwrite=True)
        assert len(server.requests) == 8


async def test_names_are_made_of_a_template(tmp_path: Path) -> None:
    """And a file that may be another task's is never replaced silently."""
    async with ScriptedServer(then=reply(body=JPEG)) as server, client_of(server) as client:
        details = details_of(server, 2)
        files = await client.download(details, tmp_path, "fox-{index}{ext}")
        assert [each.name for each in files] == ["fox-0.jpeg", "fox-1.jpeg"]
        with pytest.raises(InvalidRequestError, match="overwrite=True"):
            await client.download(details, tmp_path, "fox-{index}{ext}")
        assert await client.download(details, tmp_path, "fox-{index}{ext}", overwrite=True) == files
        await client.download(details, tmp_path, "owl-{index}{ext}", sidecar=True)
        asked = len(server.requests)
        await client.download(details, tmp_path, "owl-{index}{ext}")
        assert len(server.requests) == asked


async def test_two_tasks_do_not_take_each_others_names(tmp_path: Path) -> None:
    """Also if neither file was there when they began."""
    async with ScriptedServer(then=reply(body=JPEG)) as server, client_of(server) as client:
        tasks = [details_of(server), attrs.evolve(details_of(server), task_id="another")]
        calls = (client.download(each, tmp_path, "fox{ext}") for each in tasks)
        results = await asyncio.gather(*calls, return_exceptions=True)
        kinds = sorted(type(each).__name__ for each in results)
        assert kinds == ["InvalidRequestError", "list"]
        assert [each.name for each in tmp_path.iterdir()] == ["fox.jpeg"]


async def test_a_sidecar_describes_its_file(tmp_path: Path) -> None:
    """Also beside a file that is there already; it is written before the file gets its name."""
    async with ScriptedServer(then=reply(body=JPEG)) as server, client_of(server) as client:
        details = attrs.evolve(details_of(server), params={"prompt": "a fox"})
        [file] = await client.download(details, tmp_path, sidecar=True)
        sidecar = tmp_path / f"{file.name}.json"
        told = json.loads(sidecar.read_text())
        assert told["sha256"] == hashlib.sha256(JPEG).hexdigest()
        assert (told["task_id"], told["index"], told["size"]) == (TASK, 0, len(JPEG))
        assert (told["prompt"], told["url"]) == ("a fox", details.urls[0])
        sidecar.unlink()
        await client.download(details, tmp_path, sidecar=True)
        assert json.loads(sidecar.read_text()) == told
        assert len(server.requests) == 1


@pytest.mark.fault("D8")
async def test_a_sidecar_does_not_describe_the_next_file_of_its_name(tmp_path: Path) -> None:
    """Else that file is taken for the earlier task's, by `task_of` and by the next download."""
    async with ScriptedServer(then=reply(body=JPEG)) as server, client_of(server) as client:
        details = details_of(server)
        another = attrs.evolve(details, task_id="another")
        [file] = await client.download(details, tmp_path, "fox{ext}", sidecar=True)
        sidecar = tmp_path / "fox.jpeg.json"
        told = sidecar.read_text()
        await client.download(details, tmp_path, "fox{ext}", overwrite=True)
        assert sidecar.read_text() == told  # still true
        await client.download(another, tmp_path, "fox{ext}", overwrite=True)
        assert not sidecar.exists()
        with pytest.raises(InvalidRequestError):
            client.task_of(file)
        with pytest.raises(InvalidRequestError, match="nothing says that it is result 0"):
            await client.download(details, tmp_path, "fox{ext}")
        # What is no sidecar stays.
        sidecar.write_text("mine")
        await client.download(details, tmp_path, "fox{ext}", overwrite=True)
        assert sidecar.read_text() == "mine"


# ─── several files, progress ─────────────────────────────────────────────────────────────────────


async def test_a_file_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """The error names those that are there; trying again fetches only the rest."""

    def step(request: Received) -> Answer:
        return reply(410) if request.path.endswith("_1.jpeg") else reply(body=JPEG)

    async with ScriptedServer(then=step) as server, client_of(server) as client:
        details = details_of(server, 4)
        with pytest.raises(ResultExpired) as caught:
            await client.download(details, tmp_path)
        assert caught.value.url == details.urls[1]
        assert caught.value.files == tuple(tmp_path / f"{TASK}_{n}.jpeg" for n in (0, 2, 3))
        assert sorted(tmp_path.iterdir()) == list(caught.value.files)
        assert f"other files are there: {tmp_path / TASK}_0.jpeg, " in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).files == caught.value.files  # noqa: S301
        assert len(server.requests) == 4
        with pytest.raises(ResultExpired):
            await client.download(details, tmp_path)
        assert len(server.requests) == 5


async def test_progress_is_reported(tmp_path: Path) -> None:
    """Of each file, ten times a second at most, and at its end; also where it was there already."""
    moments: list[tuple[float, Progress]] = []

    def note(progress: Progress) -> None:
        moments.append((asyncio.get_running_loop().time(), progress))

    slow = drip(reply(body=JPEG), piece=50_000, interval=0.03)
    async with ScriptedServer(then=slow) as server, client_of(server) as client:
        details = details_of(server, 2)
        await client.download(details, tmp_path, on_progress=note)
        for index in (0, 1):
            own = [(moment, each) for moment, each in moments if each.index == index]
            assert {each.name for _, each in own} == {f"{TASK}_{index}.jpeg"}
            assert {each.total for _, each in own} == {len(JPEG)}
            done = [each.done for _, each in own]
            assert done == sorted(done)
            assert done[-1] == len(JPEG)
            assert 5 < len(done) <= 12
            # The last one comes whenever the file is whole.
            gaps = [after - before for (before, _), (after, _) in pairwise(own[:-1])]
            assert min(gaps) >= 0.1
        moments.clear()
        await client.download(details, tmp_path, on_progress=note)
        assert [each.done for _, each in moments] == [len(JPEG)] * 2


async def test_an_exception_of_on_progress_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The download goes on."""

    def fail(progress: Progress) -> None:
        raise ZeroDivisionError(progress.name)

    async with ScriptedServer(then=reply(body=JPEG)) as server, client_of(server) as client:
        files = await client.download(details_of(server, 4), tmp_path, on_progress=fail)
        assert [each.read_bytes() for each in files] == [JPEG] * 4
    [record] = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "on_progress raised" in record.message


# ─── the disk ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("D5")
@pytest.mark.parametrize("kind", ["a folder", "a link", "a dangling link", "a pipe"])
async def test_what_is_no_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    """With or without `overwrite`."""
    target, elsewhere = tmp_path / "out" / f"{TASK}_0.jpeg", tmp_path / "elsewhere"
    target.parent.mkdir()
    if kind == "a folder":
        target.mkdir()
    elif kind == "a pipe":
        os.mkfifo(target)
    else:
        target.symlink_to(elsewhere)
        if kind == "a link":
            elsewhere.write_text("mine")

    def state() -> tuple[int, ...]:
        found = os.lstat(target)  # without the time of access, which looking changes
        return found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns

    before = state()
    async with ScriptedServer(then=reply(body=JPEG)) as server, client_of(server) as client:
        for overwrite in (False, True):
            with pytest.raises(DownloadError, match=r"the file cannot be written: a .* is at"):
                await client.download(details_of(server), target.parent, overwrite=overwrite)
    assert state() == before
    assert list(target.parent.iterdir()) == [target]
    if kind == "a link":
        assert elsewhere.read_text() == "mine"


@pytest.mark.fault("D5")
async def test_a_target_is_looked_at_before_and_after(tmp_path: Path) -> None:
    """With its first bytes, also if the host then breaks off, and when the file gets its name."""
    target, elsewhere = tmp_path / f"{TASK}_0.jpeg", tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    part = cut(reply(body=JPEG), body=1_200_000, ending="hang")
    whole = drip(reply(body=JPEG), piece=500_000, interval=5.0)
    async with ScriptedServer([part, whole]) as server, client_of(server) as client:
        target.symlink_to(elsewhere)
        before = asyncio.get_running_loop().time()
        with pytest.raises(DownloadError, match="a link is at"):
            await client.download(details_of(server), tmp_path)
        assert asyncio.get_running_loop().time() - before <= 60
        assert len(server.requests) == 1
        target.unlink()
        task = asyncio.create_task(client.download(details_of(server), tmp_path))
        await asyncio.sleep(12)
        assert len(list(tmp_path.iterdir())) == 2
        target.symlink_to(elsewhere)
        with pytest.raises(DownloadError, match="a link is at"):
            await task
    assert elsewhere.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [target, elsewhere]


DISK = {
    "open": (errno.EACCES, "Permission denied"),
    "write": (errno.ENOSPC, "No space left on device"),
    "fsync": (errno.EIO, "Input/output error"),
    "close": (errno.EDQUOT, "Disk quota exceeded"),
    "replace": (errno.EROFS, "Read-only file system"),
}


@pytest.mark.fault("D5")
@pytest.mark.parametrize("call", DISK)
@pytest.mark.parametrize("is_there", [False, True])
async def test_a_disk_that_fails_leaves_the_target_as_it_was(
    call: str, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part file is gone, its descriptor is closed, and nothing is fetched again."""
    number, text = DISK[call]
    works = getattr(os, call)
    target = tmp_path / f"{TASK}_0.jpeg"
    if is_there:
        target.write_bytes(b"damaged")

    def fail(*args: object, **options: object) -> object:
        if call == "open" and ".part" not in str(args[0]):
            return works(*args, **options)
        if call == "close":  # which closes even if it fails
            works(*args)
            if not sys._getframe(1).f_code.co_filename.endswith("download.py"):
                return None
        raise OSError(number, text)

    async with ScriptedServer(then=reply(body=JPEG)) as server, client_of(server) as client:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(DownloadError, match=f"cannot be written: {text}"):
                await client.download(details_of(server), tmp_path)
        assert len(server.requests) == 1
        assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"damaged"] * is_there
        [file] = await client.download(details_of(server), tmp_path)
        assert file.read_bytes() == JPEG


@pytest.mark.fault("D6")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot sync a folder")
async def test_a_file_and_its_name_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the call returns: the file is synced before it gets its name, the folder after."""
    synced: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def note(number: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(number).st_mode)
        synced.append((is_folder, (tmp_path / f"{TASK}_0.jpeg").exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    async with ScriptedServer([reply(body=JPEG)]) as server, client_of(server) as client:
        await client.download(details_of(server), tmp_path)
    assert synced == [(False, False), (True, True)]


@pytest.mark.fault("D5")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
async def test_a_full_disk(tmp_path: Path) -> None:
    """A real one: no file may be larger than 1 MB."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with ScriptedServer(then=reply(body=JPEG)) as server, client_of(server) as client:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        try:
            with pytest.raises(DownloadError, match="cannot be written: File too large"):
                await client.download(details_of(server), tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real_time
@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_write_that_was_cancelled_has_ended(
    cancels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread writes, and no part file comes back, when the call has ended."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()
    write = os.write

    def slow(number: int, data: bytes) -> int:
        begun.set()
        may_end.wait(10)
        ended.set()
        return write(number, data)

    monkeypatch.setattr(os, "write", slow)
    async with ScriptedServer([reply(body=JPEG)]) as server, client_of(server) as client:
        task = asyncio.create_task(client.download(details_of(server), tmp_path))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0.02)
        assert not task.done()
        may_end.set()
        await asyncio.wait({task})
        assert task.cancelled()
        assert ended.is_set()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("D6")
async def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    """Its part files, once they are old; not one that is being written, nor a user's file."""
    names = (f".a.{'0' * 16}.part", f".b.{'1' * 16}.part", ".c.part")
    old, new, mine = (tmp_path / name for name in names)
    for each in (old, new, mine):
        each.write_bytes(b"cut")
        if each != new:
            os.utime(each, times=(0, time.time() - 86_400))
    async with ScriptedServer([reply(body=JPEG)]) as server, client_of(server) as client:
        [file] = await client.download(details_of(server), tmp_path)
    assert {*tmp_path.iterdir()} == {file, new, mine}


@pytest.mark.fault("D15")
async def test_a_part_file_is_opened_when_the_first_bytes_are_there(tmp_path: Path) -> None:
    """Not while the host is silent, and never for what is no picture."""
    async with ScriptedServer([cut(reply(body=JPEG), body=400, ending="hang")]) as server:
        async with client_of(server) as client:
            task = asyncio.create_task(client.download(details_of(server), tmp_path))
            await server.arrived()
            await asyncio.sleep(1)
            assert list(tmp_path.iterdir()) == []
            task.cancel()
            await asyncio.wait({task})


@pytest.mark.fault("D15")
async def test_many_downloads_open_few_files(tmp_path: Path) -> None:
    """A pool of four: four connections, four files, whatever is asked for at once."""
    most = 0

    def step(request: Received) -> Answer:
        nonlocal most
        most = max(most, len(open_files()))
        return reply(body=JPEG)

    before = len(open_files())
    async with (
        ScriptedServer(then=step) as server,
        client_of(server, downloads_at_once=4) as client,
    ):
        tasks = [attrs.evolve(details_of(server, 4), task_id=f"task{each}") for each in range(25)]
        await asyncio.gather(*(client.download(each, tmp_path) for each in tasks))
        assert server.connections <= 8
    assert len(list(tmp_path.iterdir())) == 100
    assert most - before < 30
