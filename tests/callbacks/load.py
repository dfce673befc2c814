"""The receiver under load: thousands of slow senders, and a thousand hints a second.

    python -m tests.callbacks.load [--senders 5000] [--seconds 30] [--rate 100]

All senders are in processes of their own. First, thousands hold on to the standalone server with
nothing, half a header, no body, a dripping body or an idle connection, and come again when they are
cut (C14): good callbacks are answered 200, 99 of 100 within 200 ms. Then a thousand hints a second
come with a good token for a task that runs (C22): its looks do not multiply, and submissions take
no longer than twice their time. Whoever cannot open so many files is held to fewer senders, and
told so.
"""

import argparse
import asyncio
import gc
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import cast

import attrs

from midapi_async import CallbackReceiver, MidAPIClient
from tests.callbacks.raw import TASK, a_desk
from tests.callbacks.senders import file_limit, running

HOLD_P99 = 200.0  # ms, for good callbacks among slow senders
HOLD_STALL = 50.0  # ms, at p99
HOLD_SUBMITS = 2.0  # times what a submission takes without hints
SUBMIT_EVERY = 0.6  # seconds: fewer than 20 in 10 s
API_KEY = "load-test-api-key"


def percentile(values: Sequence[float], percent: int) -> float:
    """Of these values; of a single one, itself."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


class Pulse:
    """How late this loop is, a hundred times a second.

    Attributes:
        stalls: milliseconds that it was late.
        own: milliseconds of CPU that it had worked then; the rest is other processes' doing.
        connections: how many the receiver's server held.
    """

    def __init__(self) -> None:
        self.stalls: list[float] = []
        self.own: list[float] = []
        self.connections: list[int] = []

    async def beat(self, receiver: CallbackReceiver) -> None:
        """For ever."""
        while True:
            begun, worked = time.monotonic(), time.thread_time()
            await asyncio.sleep(0.01)
            late = time.monotonic() - begun - 0.01
            self.stalls.append(late * 1000)
            self.own.append(min(late, time.thread_time() - worked) * 1000)
            server = receiver._server
            if server is not None:
                self.connections.append(sum(map(len, server.states.values())))


@asynccontextmanager
async def a_pulse(receiver: CallbackReceiver) -> AsyncIterator[Pulse]:
    """A pulse while the block lasts."""
    pulse = Pulse()
    beating = asyncio.create_task(pulse.beat(receiver))
    try:
        yield pulse
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


@attrs.frozen
class Held:
    """What came of slow senders and good callbacks.

    Attributes:
        times: milliseconds that each good callback took.
        statuses: what they were answered, and how often.
        slow: what the slow senders say.
        pulse: the loop's.
    """

    times: Sequence[float]
    statuses: dict[str, int]
    slow: dict[str, object]
    pulse: Pulse


async def hold(senders: int, seconds: float, rate: float, rest: float) -> Held:
    """Good callbacks among slow senders, who are given two seconds to arrive."""
    async with a_desk() as desk, a_pulse(desk.receiver) as pulse:
        place = {"port": desk.port, "token": desk.token}
        async with running("slow", **place, count=senders, rest=rest) as slow:
            await asyncio.sleep(2)
            async with running("good", **place, rate=rate, task=TASK) as good:
                await asyncio.sleep(seconds)
    times = cast("list[float]", good.told["ms"])
    return Held(times, cast("dict[str, int]", good.told["statuses"]), slow.told, pulse)


def said_of(pulse: Pulse) -> str:
    """How late its loop was."""
    late, own = (
        f"{percentile(each, 99):.1f} ms at p99 and {max(each):.1f} ms at worst"
        for each in (pulse.stalls, pulse.own)
    )
    return f"its loop was late by {late}; by work of its own by {own}"


def show_held(senders: int, held: Held) -> bool:
    """Print it; whether it is as good as promised."""
    p99, stall = percentile(held.times, 99), percentile(held.pulse.own, 99)
    print(f"{senders} slow senders: {held.slow}")
    print(f"  connections of the server: {max(held.pulse.connections)} at most")
    print(f"  {said_of(held.pulse)}")
    print(
        f"  {len(held.times)} good callbacks: {held.statuses}, p50 "
        f"{percentile(held.times, 50):.1f} ms, p99 {p99:.1f} ms, worst {max(held.times):.1f} ms"
    )
    is_good = {*held.statuses} == {"200"} and p99 < HOLD_P99 and stall < HOLD_STALL
    print(
        f"  all 200, p99 < {HOLD_P99:g} ms, own stalls < {HOLD_STALL:g} ms at p99: {_said(is_good)}"
    )
    return is_good


@asynccontextmanager
async def a_sandbox() -> AsyncIterator[str]:
    """The URL of a sandbox in a process of its own, where no task ends by itself in time."""
    command = ["sandbox", "--port", "0", "--api-key", API_KEY]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "midapi_async",
        *command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        while not (found := re.search(rb"http://\S+", await process.stdout.readline())):
            assert process.returncode is None
        yield found[0].decode()
    finally:
        process.terminate()
        await process.communicate()


async def submit(client: MidAPIClient, seconds: float) -> list[float]:
    """Milliseconds that each submission took, at a pace that MidAPI allows for as long as this."""
    times = []
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        await client.generate("a red fox in the snow", speed="relaxed")
        times.append((time.monotonic() - begun) * 1000)
        await asyncio.sleep(SUBMIT_EVERY)
    return times


class TellingReceiver(CallbackReceiver):
    """A receiver that tells the tokens of its callback URLs, which are secrets elsewhere."""

    @cached_property
    def tokens(self) -> list[str]:
        """In the order of the submissions."""
        return []

    def callback_url(self, token: str) -> str:
        """Where MidAPI is to call back."""
        self.tokens.append(token)
        return super().callback_url(token)


async def hint(seconds: float, rate: float) -> bool:
    """Hints for one running task while others are submitted; print it."""
    receiver = TellingReceiver(None, port=0)
    async with (
        a_sandbox() as url,
        MidAPIClient(API_KEY, base_url=url, receiver=receiver, rate_limit=None) as client,
        a_pulse(receiver) as pulse,
    ):
        handle = await client.generate("a red fox in the snow", speed="relaxed")
        waiting = asyncio.create_task(handle.wait())
        before = await submit(client, seconds / 2)
        looks = client.stats().looks
        options = {"port": int(receiver.url.rpartition(":")[2]), "token": receiver.tokens[0]}
        async with running("good", **options, rate=rate, task=handle.task_id) as good:
            await asyncio.sleep(0.5)
            during = await submit(client, seconds)
        looks = client.stats().looks - looks
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    return show_hints(good.told, before, during, looks, pulse)


def show_hints(
    told: dict[str, object],
    before: Sequence[float],
    during: Sequence[float],
    looks: int,
    pulse: Pulse,
) -> bool:
    """Print it; whether it is as good as promised."""
    times, statuses = cast("list[float]", told["ms"]), cast("dict[str, int]", told["statuses"])
    ratio = statistics.median(during) / statistics.median(before)
    seconds = cast("float", told["seconds"])
    rate = len(times) / seconds
    print(f"{len(times)} hints for one task, {rate:.0f} a second: {statuses}")
    print(f"  looks at it meanwhile: {looks}; p99 of a hint {percentile(times, 99):.1f} ms")
    print(
        f"  submissions: {statistics.median(before):.2f} ms without, "
        f"{statistics.median(during):.2f} ms with hints at p50 ({ratio:.2f} times)"
    )
    print(f"  {said_of(pulse)}")
    most = min(12, seconds / 5 + 1) + 2
    is_good = {*statuses} == {"200"} and looks <= most and ratio < HOLD_SUBMITS
    print(f"  all 200, {most:g} looks, {HOLD_SUBMITS:g} times at most: {_said(is_good)}")
    return is_good


def _said(is_good: bool) -> str:
    return "holds" if is_good else "MISSED"


def main() -> int:
    """Run both and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--senders", type=int, default=5000, help="slow ones; default 5000")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each part; default 30")
    parser.add_argument("--rate", type=float, default=100.0, help="of good callbacks; default 100")
    given = parser.parse_args()
    gc.collect()
    gc.freeze()  # what was imported is not walked again and again
    limit = file_limit()
    senders = min(given.senders, limit - 500)
    print(f"RLIMIT_NOFILE is {limit}, so there are {senders} slow senders")
    held = asyncio.run(hold(senders, given.seconds, given.rate, rest=5.0))
    is_held = show_held(senders, held)
    is_hinted = asyncio.run(hint(given.seconds, 1000.0))
    return 0 if is_held and is_hinted else 1


if __name__ == "__main__":
    sys.exit(main())
