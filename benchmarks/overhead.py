"""What the SDK costs over raw aiohttp: CPU of a submit, of a look and of a callback.

    python benchmarks/overhead.py [--quick] [--slices N] [--seconds SECONDS] [--only CASE ...]
    python benchmarks/overhead.py --profile CASE

CPU is user and system time of this process; the server is another one. The ways of each case are
measured by turns in short slices: raw aiohttp, which sends the same bytes; the SDK; and other SDKs
that are installed, with the call that is nearest to it.

- ``submit``: `generate`, with the journal in memory, on a connection of its own.
- ``look``: one look of the tracker, and `get` of the peers; of a thousand tasks in turn.
- ``callback``: a callback without a waiter, through the receiver's own server, against a handler
  that reads the body and resolves a future.
- ``wake``: a callback with a waiter, its look, and the waiter's resumption; against such a handler,
  one GET, and a waiter that awaits both. No figure is promised for it.
"""

import asyncio
import cProfile
import itertools
import pstats
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import attrs

from _ends import End, open_client, our_end, raw_end
from _measure import Cost, Way, compare, one_by_one
from _peers import Peer, peers, versions
from _raw import PROMPT, raw_client
from _report import Promise, options, report
from _server import Service

HOLD = {"submit": 1.5, "look": 1.35, "callback": 1.2}  # times raw aiohttp
BELOW_PEERS = 3.0  # times as much as ours, for a look
RAW, OURS = "raw aiohttp", "midapi_async"
MOST_CALLBACKS = 200  # in a slice: each needs a submission


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
    async with raw_client(service.url) as raw, open_client(service.url) as client:
        await check_bytes(service, "POST", raw.submit(), client.generate(PROMPT))
        yield [
            one_by_one(RAW, raw.submit),
            one_by_one(OURS, lambda: client.generate(PROMPT)),
            *(one_by_one(f"{peer.name} {peer.post}", peer.submit) for peer in others),
        ]


@asynccontextmanager
async def looks(service: Service, others: Sequence[Peer]) -> AsyncIterator[list[Way]]:
    """One GET each."""
    async with raw_client(service.url) as raw, open_client(service.url) as client:
        one, other = (itertools.cycle([f"{n:032x}" for n in range(1000)]) for _ in range(2))
        look = client._opened().seen.look  # not `details`: what is known already is no look
        await check_bytes(service, "GET", raw.look(next(one)), look(next(other)))
        yield [
            one_by_one(RAW, lambda: raw.look(next(one))),
            one_by_one(OURS, lambda: look(next(other))),
            *(one_by_one(f"{peer.name} {peer.get}", peer.look) for peer in others),
        ]


# ─── callbacks ───────────────────────────────────────────────────────────────────────────────────


def called_back(name: str, service: Service, end: End, *, waits: bool) -> Way:
    """Callbacks one after another, for tasks with or without a waiter."""
    ordered: list[str] = []

    async def order(times: int) -> None:
        ordered[:] = await end.order(times)

    async def run(times: int) -> None:
        tasks = [asyncio.create_task(end.wait(task_id)) for task_id in ordered if waits]
        await asyncio.sleep(0)
        assert (await service.call(ordered)).statuses == [200]
        await asyncio.gather(*tasks)
        assert end.taken() == times

    return Way(name, run, order)


@asynccontextmanager
async def callbacks(service: Service, _: Sequence[Peer]) -> AsyncIterator[list[Way]]:
    """One callback each and no wait; also to aiohttp's server without an application."""
    async with (
        raw_end(service) as raw,
        our_end(service) as ours,
        raw_end(service, is_routed=False) as unrouted,
    ):
        yield [
            called_back(RAW, service, raw, waits=False),
            called_back(OURS, service, ours, waits=False),
            called_back(f"{RAW}, no router", service, unrouted, waits=False),
        ]


@asynccontextmanager
async def wakes(service: Service, _: Sequence[Peer]) -> AsyncIterator[list[Way]]:
    """One callback, one GET and one waiter each."""
    async with raw_end(service) as raw, our_end(service) as ours:
        yield [
            called_back(RAW, service, raw, waits=True),
            called_back(OURS, service, ours, waits=True),
        ]


# ─── the program ─────────────────────────────────────────────────────────────────────────────────

CASES = {"submit": submits, "look": looks, "callback": callbacks, "wake": wakes}


def show(case: str, costs: Mapping[str, Cost]) -> None:
    """Print one case."""
    print(f"\n{case:36}{'µs':>8}{'ratio':>8}   middle half")
    for name, cost in costs.items():
        print(f"  {name:34}{cost.us:8.0f}{cost.ratio:8.2f}   {cost.low:.2f} to {cost.high:.2f}")


def promises(case: str, costs: Mapping[str, Cost]) -> list[Promise]:
    """What is promised for a case."""
    found = []
    if case in HOLD:
        found.append(Promise(f"CPU of a {case} / raw aiohttp", costs[OURS].ratio, HOLD[case]))
    if case == "look":
        for name, cost in costs.items():
            if name not in {RAW, OURS}:
                what = f"CPU of {name} / CPU of a look"
                found.append(Promise(what, cost.us / costs[OURS].us, BELOW_PEERS, at_least=True))
    return found


async def measure(
    cases: Sequence[str], slices: int, seconds: float
) -> tuple[object, list[Promise]]:
    """Every case, printed as soon as it is measured."""
    figures, held = {}, []
    async with Service() as service, peers(service.url) as others:
        for case in cases:
            async with CASES[case](service, others) as ways:
                most = MOST_CALLBACKS if case in {"callback", "wake"} else 100_000
                costs = await compare(ways, slices, seconds, most)
            show(case, costs)
            held += promises(case, costs)
            figures[case] = {name: attrs.asdict(cost) for name, cost in costs.items()}
        print(f"\n{versions('aiohttp', *(peer.name for peer in others))}")
    return figures, held


async def profile(case: str, times: int) -> None:
    """Show where the time of a case goes in the SDK."""
    async with Service() as service, AsyncExitStack() as exits:
        ways = await exits.enter_async_context(CASES[case](service, ()))
        ours = next(way for way in ways if way.name == OURS)
        await ours.prepare(times)
        await ours.run(times)  # once without the profiler: connections, caches
        await ours.prepare(times)
        with cProfile.Profile(time.process_time) as watch:  # CPU alone
            await ours.run(times)
    stats = pstats.Stats(watch).strip_dirs()
    stats.sort_stats("tottime").print_stats(40)
    stats.sort_stats("cumulative").print_stats(60)


def main() -> int:
    """Measure, print and write; or profile one case."""
    parser = options(__file__, __doc__)
    parser.add_argument("--slices", type=int, help="of each way; default 60, or 3 with --quick")
    parser.add_argument("--seconds", type=float, help="of CPU in a slice; default 0.04, or 0.01")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--profile", choices=CASES, help="show where the time of a case goes")
    given = parser.parse_args()
    if given.profile:
        asyncio.run(profile(given.profile, 100 if given.quick else 2000))
        return 0
    slices = given.slices or (3 if given.quick else 60)
    seconds = given.seconds or (0.01 if given.quick else 0.04)
    figures, held = asyncio.run(measure(given.only, slices, seconds))
    report(given.json, {"cases": figures}, held)
    return 0


if __name__ == "__main__":
    sys.exit(main())
