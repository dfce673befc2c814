"""What the SDK costs over raw aiohttp: CPU of a submit, of a look and of a callback.

    python benchmarks/overhead.py [--quick] [--slices N] [--seconds SECONDS] [--only CASE ...]
                                  [--json FILE]
    python benchmarks/overhead.py --profile CASE

CPU is user and system time of this process; the server is another one. Each case is measured by
turns in short slices, in one run: raw aiohttp, which sends the same bytes, the SDK, and what other
SDKs are installed, doing what is nearest to it. Holds: at most 1.3 times raw aiohttp.

- ``submit``: `generate`, with the journal in memory and no rate limit.
- ``look``: `details`, of a thousand tasks in turn.
- ``callback``: a callback that nobody waits for, through the receiver's own server, against a
  handler that reads the body and resolves a future.
- ``wake``: a callback that somebody waits for, its look and the waiter's waking; against such a
  handler, one GET and a waiter that awaits both. For this one no figure is promised.
"""

import argparse
import asyncio
import cProfile
import itertools
import json
import platform
import pstats
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs

from _ends import End, OurEnd, RawEnd, open_client, our_end, raw_end
from _measure import Cost, Way, compare, one_by_one
from _peers import Peer, peers, versions
from _raw import PROMPT, raw_client
from _server import Service
from midapi_async import __version__

HOLD = 1.3
CASES = ("submit", "look", "callback", "wake")
RAW, OURS = "raw aiohttp", "midapi_async"
MOST_CALLBACKS = 500  # in a slice: each needs a submission


# ─── submit and look ─────────────────────────────────────────────────────────────────────────────


async def check_bytes(
    service: Service, method: str, *requests: Coroutine[object, object, object]
) -> None:
    """All of these send the same bytes; only the order of the headers may differ."""
    sent = set()
    for request in requests:
        await request
        head, _, body = (await service.last(method)).partition("\r\n\r\n")
        sent.add((*sorted(head.splitlines()), body))
    assert len(sent) == 1, f"the reference does not send the same bytes: {sent}"


@asynccontextmanager
async def submits(service: Service, others: Sequence[Peer]) -> AsyncIterator[list[Way]]:
    """One POST each."""
    async with raw_client(service.url) as raw, open_client(service) as client:
        await check_bytes(service, "POST", raw.submit(), client.generate(PROMPT))
        yield [
            one_by_one(RAW, raw.submit),
            one_by_one(OURS, lambda: client.generate(PROMPT)),
            *(one_by_one(f"{peer.name} {peer.post}", peer.submit) for peer in others),
        ]


@asynccontextmanager
async def looks(service: Service, others: Sequence[Peer]) -> AsyncIterator[list[Way]]:
    """One GET each."""
    async with raw_client(service.url) as raw, open_client(service) as client:
        one, other = (itertools.cycle([f"{n:032x}" for n in range(1000)]) for _ in range(2))
        await check_bytes(service, "GET", raw.look(next(one)), client.details(next(other)))
        yield [
            one_by_one(RAW, lambda: raw.look(next(one))),
            one_by_one(OURS, lambda: client.details(next(other))),
            *(one_by_one(f"{peer.name} {peer.get}", peer.look) for peer in others),
        ]


# ─── callbacks ───────────────────────────────────────────────────────────────────────────────────


async def call(service: Service, task_ids: Sequence[str]) -> None:
    """Call back for each, one after another."""
    assert (await service.call(task_ids)).statuses == [200]


def way_to_take(name: str, service: Service, end: RawEnd | OurEnd) -> Way:
    """Callbacks for tasks that nobody waits for."""
    ordered: list[str] = []

    async def order(times: int) -> None:
        ordered[:] = await end.order(times)

    async def take(times: int) -> None:
        await call(service, ordered)
        assert end.taken() == times

    return Way(name, take, order)


def way_to_wake(name: str, service: Service, end: End) -> Way:
    """Callbacks for tasks that somebody waits for."""
    ordered: list[str] = []

    async def order(times: int) -> None:
        ordered[:] = await end.order(times)

    async def wake(times: int) -> None:
        waits = [asyncio.create_task(end.wait(task_id)) for task_id in ordered]
        await asyncio.sleep(0)
        await call(service, ordered)
        assert len(await asyncio.gather(*waits)) == times

    return Way(name, wake, order)


@asynccontextmanager
async def callbacks(service: Service, _: Sequence[Peer]) -> AsyncIterator[list[Way]]:
    """One callback each, and no wait; also to aiohttp's server without an application."""
    async with (
        raw_end(service) as raw,
        our_end(service) as ours,
        raw_end(service, is_routed=False) as unrouted,
    ):
        yield [
            way_to_take(RAW, service, raw),
            way_to_take(OURS, service, ours),
            way_to_take(f"{RAW}, no router", service, unrouted),
        ]


@asynccontextmanager
async def wakes(service: Service, _: Sequence[Peer]) -> AsyncIterator[list[Way]]:
    """One callback, one GET and one waiter each."""
    async with raw_end(service) as raw, our_end(service) as ours:
        yield [way_to_wake(RAW, service, raw), way_to_wake(OURS, service, ours)]


# ─── the program ─────────────────────────────────────────────────────────────────────────────────

WAYS = {"submit": submits, "look": looks, "callback": callbacks, "wake": wakes}


def told(case: str, costs: Mapping[str, Cost]) -> None:
    """Print one case."""
    print(f"\n{case:36}{'µs':>8}{'ratio':>8}   middle half")
    for name, cost in costs.items():
        verdict = ""
        if name == OURS and case != "wake":
            verdict = f"   <= {HOLD}: {'holds' if cost.ratio <= HOLD else 'MISSED'}"
        spread = f"{cost.low:.2f} to {cost.high:.2f}"
        print(f"  {name:34}{cost.us:8.0f}{cost.ratio:8.2f}   {spread:16}{verdict}")


async def measure(cases: Sequence[str], slices: int, seconds: float) -> dict[str, object]:
    """Every case, printed as soon as it is there."""
    figures = {}
    async with Service() as service, peers(service.url) as others:
        for case in cases:
            async with WAYS[case](service, others) as ways:
                most = MOST_CALLBACKS if case in {"callback", "wake"} else 100_000
                costs = await compare(ways, slices, seconds, most)
            told(case, costs)
            figures[case] = {name: attrs.asdict(cost) for name, cost in costs.items()}
        used = {OURS: __version__, **versions("aiohttp", *(peer.name for peer in others))}
    about = {"python": platform.python_version(), "versions": used, "slices": slices}
    return {**about, "hold": HOLD, "cases": figures}


async def profile(case: str, times: int) -> None:
    """Where the time of a case goes, of ours alone."""
    async with Service() as service, AsyncExitStack() as exits:
        ways = await exits.enter_async_context(WAYS[case](service, ()))
        ours = next(way for way in ways if way.name == OURS)
        for rehearsal in (True, False):
            await ours.prepare(times)
            with cProfile.Profile() as watch:
                await ours.run(times)
            if not rehearsal:
                stats = pstats.Stats(watch).strip_dirs()
                stats.sort_stats("tottime").print_stats(40)
                stats.sort_stats("cumulative").print_stats(60)


def main() -> int:
    """Measure, print and write; or profile one case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few short slices: a rough idea")
    parser.add_argument("--slices", type=int, help="of each way; default 60, or 3 with --quick")
    parser.add_argument("--seconds", type=float, help="of CPU in a slice; default 0.04, or 0.01")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--profile", choices=CASES, help="show where its time goes, of ours alone")
    parser.add_argument("--json", type=Path, default=Path("overhead-benchmark.json"))
    given = parser.parse_args()
    if given.profile:
        asyncio.run(profile(given.profile, 100 if given.quick else 2000))
        return 0
    slices = given.slices or (3 if given.quick else 60)
    seconds = given.seconds or (0.01 if given.quick else 0.04)
    figures = asyncio.run(measure(given.only, slices, seconds))
    given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
