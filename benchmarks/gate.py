"""How much of the account's rate limit a full batch uses, in one process and in four.

    python benchmarks/gate.py [--quick] [--per SECONDS] [--windows N] [--processes N]

This process is the server: it notes when each POST arrives, and answers it a little later. The
clients run in processes of their own with more to submit than the limit lets through: one with its
journal in memory, one with a folder, and four that share a folder. The window is short, so that the
benchmark is, too; that makes the figure harder to reach.

The reference is the best that slots allow which are free again ``per`` seconds after their POST has
ended: count / (per + mean time of a POST with its claim). No window of ``per`` seconds, wherever it
begins, may hold more than ``count`` arrivals.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import attrs

from _raw import API_KEY
from _report import Promise, options, report
from _server import Connection, answer, listen
from _timed import TimedFolder, TimedMemory, most_in_a_window, rate_of
from midapi_async import MidAPIClient, RateLimit

IN_USE, LEAST_SHARE = 0.98, 0.1
COUNT = 20  # slots
POST = 0.05  # seconds until the server answers
MEMORY = "-"  # in place of a folder


# ─── in the process of a client ──────────────────────────────────────────────────────────────────


async def submit_all(url: str, folder: str, name: str, times: int, per: float) -> list[float]:
    """Submit until stdin ends; the seconds of each POST with its claim."""
    loop = asyncio.get_running_loop()
    journal = TimedMemory() if folder == MEMORY else TimedFolder(folder)
    limit = RateLimit(COUNT, per=per)
    async with MidAPIClient(API_KEY, base_url=url, journal=journal, rate_limit=limit) as client:
        print("ready", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        submits = [asyncio.create_task(client.generate(f"client {name}")) for _ in range(times)]
        await loop.run_in_executor(None, sys.stdin.read)
        client.stop_waiting()
        await asyncio.gather(*submits, return_exceptions=True)
    await journal.aclose()
    return journal.times


# ─── in the process of the server ────────────────────────────────────────────────────────────────


@attrs.frozen
class Use:
    """What was measured in one setting.

    Attributes:
        rate: POSTs per second, from the first window to the last one.
        ideal: the most that the slots allow.
        post: mean seconds of a POST with its claim.
        most: the largest number of arrivals in a window.
        shares: of the arrivals, for each client.
    """

    rate: float
    ideal: float
    post: float
    most: int
    shares: list[float]


class Clients:
    """So many processes that submit, and the server that they submit to."""

    def __init__(self, processes: int, windows: int, per: float) -> None:
        self._processes = processes
        self._total = COUNT * windows
        self._per = per
        self._arrivals: list[tuple[float, str]] = []
        self._are_all_here = asyncio.Event()

    def _respond(self, _: bytes, body: bytes) -> bytes:
        found = re.search(rb'"prompt": ?"client (\d+)"', body)
        assert found
        self._arrivals.append((time.monotonic(), found[1].decode()))
        if len(self._arrivals) >= self._total:
            self._are_all_here.set()
        return answer({"taskId": f"{len(self._arrivals):032x}"})

    async def measure(self, folder: Path | None) -> Use:
        """Let all submit until enough POSTs have come."""
        server, url = await listen(lambda: Connection(self._respond, POST))
        program = [sys.executable, __file__, "--per", str(self._per), "--submit", url]
        program += [MEMORY if folder is None else str(folder), str(self._total)]
        clients = [
            await asyncio.create_subprocess_exec(
                *program, str(number), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for number in range(self._processes)
        ]
        times: list[float] = []
        for client in clients:
            assert client.stdout is not None
            assert await client.stdout.readline() == b"ready\n"
        for client in clients:
            assert client.stdin is not None
            client.stdin.write(b"go\n")
        await self._are_all_here.wait()
        for client in clients:
            times += json.loads((await client.communicate(b""))[0])
        server.close()
        return self._use(times)

    def _use(self, times: list[float]) -> Use:
        moments, clients = zip(*self._arrivals[: self._total], strict=True)
        shares = Counter(clients)
        post = statistics.fmean(times)
        return Use(
            rate=rate_of(moments, COUNT),
            ideal=COUNT / (self._per + post),
            post=post,
            most=most_in_a_window(moments, self._per),
            shares=[shares[str(number)] / self._total for number in range(self._processes)],
        )


async def measure(place: Path, processes: int, windows: int, per: float) -> dict[str, Use]:
    """Every setting, one after another."""
    settings = {
        "1 process, memory": (1, None),
        "1 process, folder": (1, place / "one"),
        f"{processes} processes, one folder": (processes, place / "many"),
    }
    return {
        name: await Clients(count, windows, per).measure(folder)
        for name, (count, folder) in settings.items()
    }


def arguments() -> argparse.Namespace:
    """The options."""
    parser = options(__file__, __doc__)
    parser.add_argument("--per", type=float, help="seconds; default 2, or 0.5 with --quick")
    parser.add_argument("--processes", type=int, default=4, help="that share a folder")
    parser.add_argument("--windows", type=int, help="default 10, or 3 with --quick")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; else a temporary one")
    parser.add_argument("--submit", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, print and write."""
    given = arguments()
    if given.submit:
        url, folder, times, name = given.submit
        print(json.dumps(asyncio.run(submit_all(url, folder, name, int(times), given.per))))
        return 0
    per = given.per or (0.5 if given.quick else 2.0)
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        windows = given.windows or (3 if given.quick else 10)
        uses = asyncio.run(measure(Path(place), given.processes, windows, per))
    print(f"{'':26}{'POSTs/s':>9}{'ideal':>8}{'in use':>8}{'POST ms':>9}{'most':>6}   shares")
    promises = []
    for name, use in uses.items():
        part = use.rate / use.ideal
        shares = " ".join(f"{100 * share:.0f} %" for share in use.shares)
        print(f"{name:26}{use.rate:9.2f}{use.ideal:8.2f}{part:8.3f}", end="")
        print(f"{1000 * use.post:9.1f}{use.most:6}   {shares}")
        promises += [
            Promise(f"{name}: part of the limit in use", part, IN_USE, at_least=True),
            Promise(f"{name}: POSTs in a window", use.most, COUNT),
        ]
        if len(use.shares) > 1:
            what = f"{name}: smallest share"
            promises.append(Promise(what, min(use.shares), LEAST_SHARE, at_least=True))
    ways = {name: attrs.asdict(use) for name, use in uses.items()}
    report(given.json, {"per": per, "count": COUNT, "ways": ways}, promises)
    return 0


if __name__ == "__main__":
    sys.exit(main())
