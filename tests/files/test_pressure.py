"""Downloads under pressure: killed processes, a thousand files at once, and a very large file."""

import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midapi_async import MidAPIClient, TaskDetails, TaskStatus
from tests.journal.processes import Main, fork
from tests.support.scripted import Answer, Received, ScriptedServer, reply
from tests.support.secrets import API_KEY
from tests.world import TASK, client_of

KILLS = int(os.environ.get("MIDAPI_TEST_KILLS", "30"))
FILES = 8
DESCRIPTORS = 256
LARGE = 500_000_000


def picture(number: int, size: int = 300_000) -> bytes:
    """A picture of its own for each number, as far as its structure goes."""
    head = b"\xff\xd8\xff\xda\0\2" + bytes([number % 255])
    return head + b"x" * (size - len(head) - 2) + b"\xff\xd9"


def by_number(received: Received) -> Answer:
    """The picture whose number is in the path."""
    return reply(body=picture(int(received.path.rpartition("/")[2])))


def details_of(url: str, count: int = 1, task_id: str = TASK) -> TaskDetails:
    """A task with so many pictures at a host."""
    urls = tuple(f"{url}/m/{number}" for number in range(count))
    return TaskDetails(task_id=task_id, status=TaskStatus.SUCCEEDED, urls=urls)


# ─── killed ──────────────────────────────────────────────────────────────────────────────────────


async def serve(report: Callable[[str], None]) -> None:
    """A file host, until it is killed."""
    async with ScriptedServer(then=by_number) as server:
        report(server.url)
        await asyncio.sleep(3600)


def downloader(url: str, folder: Path) -> Main:
    """A program that downloads the same files again and again, until it is killed."""

    async def download(report: Callable[[str], None]) -> None:
        async with MidAPIClient(API_KEY, base_url=url) as client:
            report("open")
            while True:
                details = details_of(url, FILES)
                await client.download(details, folder, overwrite=True, sidecar=True)

    return download


async def complete(url: str, folder: Path) -> list[Path]:
    """The next run, which is not killed."""
    async with MidAPIClient(API_KEY, base_url=url) as client:
        return await client.download(details_of(url, FILES), folder)


def wait_for_files(folder: Path, count: int) -> None:
    """Wait until a download has begun that many pictures and sidecars."""
    deadline = time.monotonic() + 20
    while len(list(folder.glob("*"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.fault("D6")
@pytest.mark.real_time
def test_a_killed_process_leaves_whole_files_or_none(tmp_path: Path) -> None:
    """Whatever has its final name is whole, picture and sidecar; the next run completes it."""
    host = fork(serve)
    try:
        url = host.line()
        seen = set()
        for number in range(KILLS):
            folder = tmp_path / str(number)
            child = fork(downloader(url, folder))
            assert child.line() == "open"
            wait_for_files(folder, random.randrange(2 * FILES))
            time.sleep(random.uniform(0, 0.005))
            child.signal(signal.SIGKILL)
            assert child.lines() == []
            child.ended()
            names = {each.name for each in folder.glob("*")} if folder.exists() else set()
            shown = {name for name in names if not name.startswith(".")}
            for name in shown:
                content = (folder / name).read_bytes()
                index = int(name.removeprefix(f"{TASK}_").partition(".")[0])
                if name.endswith(".json"):
                    assert json.loads(content)["index"] == index
                else:
                    assert content == picture(index)
            seen.add((len(shown) > 0, any(name.startswith(".") for name in names)))
            if number % 10 == 0:
                paths = asyncio.run(complete(url, folder))
                assert [each.read_bytes() for each in paths] == [picture(n) for n in range(FILES)]
        # It was killed at different moments: before any file, between them and within one.
        assert len(seen) > 1
    finally:
        host.signal(signal.SIGKILL)
        host.lines()
        host.ended()


# ─── many ────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def few_descriptors() -> Iterator[None]:
    """This process may open few files and connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.fault("D15")
async def test_a_thousand_downloads_at_once_need_few_descriptors(tmp_path: Path) -> None:
    """One pool for the client: the other downloads open nothing while they wait."""
    small = reply(body=picture(0, 2_000))
    async with ScriptedServer(then=small) as server, client_of(server) as client:
        with few_descriptors():
            tasks = [details_of(server.url, 1, f"{n:032x}") for n in range(1000)]
            found = await asyncio.gather(*(client.download(each, tmp_path) for each in tasks))
    paths = [path for [path] in found]
    assert len(set(paths)) == 1000
    assert {path.stat().st_size for path in paths} == {2_000}
    assert len({each.connection for each in server.requests}) < DESCRIPTORS / 2
    assert {*tmp_path.iterdir()} == {*paths}


# ─── large ───────────────────────────────────────────────────────────────────────────────────────

DOWNLOAD_LARGE = """
import asyncio, resource, sys
from midapi_async import MidAPIClient, TaskDetails, TaskStatus

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def main(url, folder):
    async with MidAPIClient("key-of-a-test-0123", base_url=url) as client:
        for size in map(int, sys.argv[3:]):
            details = TaskDetails(
                task_id=f"size-{size}", status=TaskStatus.SUCCEEDED, urls=(f"{url}/{size}",)
            )
            [path] = await client.download(details, folder)
            assert path.stat().st_size == size
            print(peak())

asyncio.run(main(*sys.argv[1:3]))
"""


async def send_video(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A file host that sends a video of as many bytes as the path says."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.split(b" ")[1].rpartition(b"/")[2])
    start = b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x08moov"
    start += (size - len(start)).to_bytes(4) + b"mdat"
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
    writer.write(start)
    block, left = bytes(1 << 20), size - len(start)
    while left:
        part = min(left, len(block))
        writer.write(block[:part])
        await writer.drain()
        left -= part
    writer.close()


@pytest.mark.slow
@pytest.mark.fault("D4")
@pytest.mark.real_time
async def test_memory_stays_flat_for_a_large_file(tmp_path: Path) -> None:
    """A video of 500 MB needs no more memory than one of 20 MB."""
    server = await asyncio.start_server(send_video, "127.0.0.1")
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DOWNLOAD_LARGE, url, str(tmp_path), "20000000", str(LARGE)),
        stdout=subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    server.close()
    assert process.returncode == 0
    small, large = map(int, printed.split())
    assert large - small < 8_000_000
