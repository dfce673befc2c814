"""Downloads with every check are nearly as fast as bare aiohttp that writes to a file.

    python benchmarks/files.py [--quick] [--folder FOLDER]

Two cases: one video of 300 MB, and 200 pictures of 1.5 MB, eight at a time. The server is a process
of its own and sends from memory. Both ways download the same files by turns into new folders. The
first reference is what people write: `iter_chunked` and a `write`. The second one also makes the
file durable, as the SDK does: a sync before the file counts as downloaded. On a slow disk that sync
is most of the time.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import aiohttp
import attrs

from _ends import open_client
from _report import Promise, options, report
from midapi_async import MidAPIClient, TaskDetails, TaskStatus

SPEED = 0.9
AT_ONCE = 8  # the default of the client
PICTURE = 1_500_000  # bytes
CHUNK = 1 << 16  # what the reference reads at a time
BLOCK = os.urandom(1 << 20).replace(b"\xff", b"\xff\0")  # as compressed data has it


def jpeg(size: int) -> list[bytes]:
    """The parts of a picture, as a JPEG walker sees it; nothing could draw it."""
    head, end = (
        b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + bytes(9) + b"\xff\xda\x00\x08" + bytes(6),
        b"\xff\xd9",
    )
    return [head, *filled(size - len(head) - len(end)), end]


def mp4(size: int) -> list[bytes]:
    """The parts of a video, as a walker of its boxes sees it."""
    head = b"\x00\x00\x00\x10ftypisom\0\0\0\0" + b"\x00\x00\x00\x10moov" + bytes(8)
    return [head, (size - len(head)).to_bytes(4), b"mdat", *filled(size - len(head) - 8)]


def filled(size: int) -> list[bytes]:
    """So many bytes, in blocks."""
    return [BLOCK] * (size // len(BLOCK)) + [BLOCK[: size % len(BLOCK)]]


# ─── the server ──────────────────────────────────────────────────────────────────────────────────


async def serve() -> None:
    """Send files from memory until the process is killed: /f/KIND/SIZE/NUMBER."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            _, _, kind, size, _ = head.split(b" ")[1].decode().split("/")
            parts = {"jpeg": jpeg, "mp4": mp4}[kind](int(size))
            length = sum(map(len, parts))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
            for part in parts:
                writer.write(part)
                await writer.drain()

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer_all, "127.0.0.1")
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# ─── the ways ────────────────────────────────────────────────────────────────────────────────────


async def bare(urls: Sequence[str], folder: Path, *, is_synced: bool) -> None:
    """Download with aiohttp alone, some files at a time."""
    turns = asyncio.Semaphore(AT_ONCE)

    async with aiohttp.ClientSession() as session:

        async def fetch(index: int, url: str) -> None:
            async with turns, session.get(url) as response:
                with (folder / f"{index}").open("wb") as file:
                    async for chunk in response.content.iter_chunked(CHUNK):
                        file.write(chunk)
                    if is_synced:
                        file.flush()
                        await asyncio.to_thread(os.fsync, file.fileno())

        await asyncio.gather(*(fetch(index, url) for index, url in enumerate(urls)))


async def ours(client: MidAPIClient, urls: Sequence[str], folder: Path) -> None:
    """Download with the SDK, every check included."""
    details = TaskDetails(task_id="0" * 32, status=TaskStatus.SUCCEEDED, urls=tuple(urls))
    paths = await client.download(details, folder)
    assert len({*paths}) == len(urls)


@attrs.frozen
class Run:
    """One way's downloads of one case: seconds, and seconds of CPU of this process."""

    seconds: float
    cpu: float


async def run(download: Callable[[Path], Awaitable[None]], place: Path, size: int) -> Run:
    """Download into a new folder, see that all bytes are there, and remove it."""
    folder = Path(tempfile.mkdtemp(dir=place))
    begun, cpu = time.perf_counter(), time.process_time()
    await download(folder)
    done = Run(time.perf_counter() - begun, time.process_time() - cpu)
    with os.scandir(folder) as found:
        assert sum(each.stat().st_size for each in found) == size
    shutil.rmtree(folder)
    os.sync()  # so that no later run waits for what this one left to write
    return done


async def compare(urls: Sequence[str], size: int, rounds: int, place: Path) -> Mapping[str, float]:
    """All ways by turns: speeds in MB/s, and the ratios of neighbouring runs.

    Args:
        urls: the files.
        size: of each, in bytes.
        rounds: how often each way runs.
        place: a folder on the disk to measure.
    """
    count, host = len(urls), urls[0].partition("/f/")[0]
    runs: dict[str, list[Run]] = {"bare": [], "bare, synced": [], "SDK": []}
    async with open_client(host) as client:
        ways: dict[str, Callable[[Path], Awaitable[None]]] = {
            "bare": lambda folder: bare(urls, folder, is_synced=False),
            "bare, synced": lambda folder: bare(urls, folder, is_synced=True),
            "SDK": lambda folder: ours(client, urls, folder),
        }
        for number in range(rounds + 1):
            for name, way in ways.items():
                done = await run(way, place, size * count)
                if number:  # the first round warms everything up
                    runs[name].append(done)

    def ratio(reference: str, value: Callable[[Run], float]) -> float:
        pairs = zip(runs[reference], runs["SDK"], strict=True)
        return statistics.median(value(one) / value(own) for one, own in pairs)

    megabytes = size * count / 1e6
    return {
        **{
            f"{name} MB/s": megabytes / statistics.median(each.seconds for each in done)
            for name, done in runs.items()
        },
        "speed / bare": ratio("bare", lambda each: each.seconds),
        "speed / bare, synced": ratio("bare, synced", lambda each: each.seconds),
        "CPU / bare": 1 / ratio("bare", lambda each: each.cpu),
        "CPU / bare, synced": 1 / ratio("bare, synced", lambda each: each.cpu),
    }


async def measure(place: Path, *, quick: bool) -> Mapping[str, Mapping[str, float]]:
    """Every case, against one server."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        host = f"http://127.0.0.1:{int(await server.stdout.readline())}"
        rounds = 1 if quick else 9
        size, count = (20_000_000, 16) if quick else (300_000_000, 200)
        video = [f"{host}/f/mp4/{size}/0"]
        pictures = [f"{host}/f/jpeg/{PICTURE}/{number}" for number in range(count)]
        return {
            "video": await compare(video, size, rounds, place),
            "pictures": await compare(pictures, PICTURE, rounds, place),
        }
    finally:
        server.kill()
        await server.wait()


def main() -> int:
    """Measure, print and write."""
    parser = options(__file__, __doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    parser.add_argument("--serve", action="store_true", help="be the server; for this program only")
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        cases = asyncio.run(measure(Path(place), quick=given.quick))
    for case, figures in cases.items():
        print(case)
        for name, value in figures.items():
            print(f"  {name:28}{value:10.2f}")
    promises = [
        Promise(
            f"{case}: speed of a download / {way}", figures[f"speed / {way}"], SPEED, at_least=True
        )
        for case, figures in cases.items()
        for way in ("bare", "bare, synced")
    ]
    report(given.json, {"cases": cases}, promises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
