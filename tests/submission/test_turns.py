"""The line by itself: who may ask for a slot, and when. The answers are made up."""

import asyncio

import pytest

from midapi_async._submission.line import YIELD_SHARE, Line
from midapi_async.journal import Busy, Claim, Claimed

PER = 10.0


class Store:
    """Answers claims in order, each after some seconds, and writes down when it came."""

    def __init__(self, *answers: Claim, latency: float = 0.0) -> None:
        self.answers = list(answers)
        self.latency = latency
        self.moments: list[float] = []
        self.places: list[int] = []
        self.begun = asyncio.get_running_loop().time()

    async def ask(self) -> Claim:
        self.moments.append(asyncio.get_running_loop().time() - self.begun)
        await asyncio.sleep(self.latency)
        return self.answers.pop(0)


async def no_ping() -> None:
    """There is no outage in these tests."""
    raise AssertionError


def waits(line: Line, store: Store, stop: asyncio.Future[None]) -> asyncio.Task[Claim | None]:
    """One more who waits in a line."""
    claim = line.claim(
        store.ask,
        line.ticket(),
        queued=store.places.append,
        per=PER,
        ping=no_ping,
        stop=stop,
        patience=60.0,
    )
    return asyncio.create_task(claim)


@pytest.fixture
async def stop() -> asyncio.Future[None]:
    """What ends a wait."""
    return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
async def test_busy_waits_and_leaves_some_time_to_other_processes(
    stop: asyncio.Future[None], share: float
) -> None:
    """It asks again when a slot may be free, and the later the more of the busy slots it has."""
    store = Store(Busy(2.0, share), Claimed("one", 0))
    await waits(Line(), store, stop)
    assert store.moments == pytest.approx([0.0, 2.0 + YIELD_SHARE * PER * share], abs=1e-3)


@pytest.mark.parametrize(("share", "pause"), [(0.0, 0.0), (0.5, 0.5), (1.0, 0.0)])
async def test_a_claim_leaves_the_next_slot_to_other_processes(
    stop: asyncio.Future[None], share: float, pause: float
) -> None:
    """For a moment, if they have busy slots, too; one that has none or all just goes on."""
    line, store = Line(), Store(Claimed("one", 5, share), Claimed("two", 4))
    await asyncio.gather(waits(line, store, stop), waits(line, store, stop))
    assert store.moments == pytest.approx([0.0, YIELD_SHARE * PER * pause], abs=1e-3)


async def test_the_line_is_empty_where_the_next_may_ask_at_once(
    stop: asyncio.Future[None],
) -> None:
    """It is not while others wait for their turn, nor while asking is of no use."""
    line, store = Line(), Store(Claimed("one", 0), Busy(2.0), Claimed("two", 0))
    assert line.is_open
    first, second = waits(line, store, stop), waits(line, store, stop)
    await asyncio.sleep(0)
    assert not line.is_open, "the second waits for the first one's answer"
    await first
    await asyncio.sleep(1.0)
    assert not line.is_open, "no slot is free"
    await second
    assert line.is_open


async def test_an_empty_line_keeps_nothing_alive(stop: asyncio.Future[None]) -> None:
    """The last one who leaves takes its timer along, and the next one asks at once."""
    line, store = Line(), Store(Busy(1000.0), Claimed("one", 0))
    leaving = waits(line, store, stop)
    await asyncio.sleep(1.0)
    stop.set_result(None)
    assert await leaving is None
    assert line.is_open
    later: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await waits(line, store, later)
    assert store.moments == pytest.approx([0.0, 1.0], abs=1e-3)


@pytest.mark.fault("S18")
async def test_leaving_in_its_turn_gives_the_turn_back(stop: asyncio.Future[None]) -> None:
    """One who is stopped in the very moment of its turn does not ask; the next do, one by one."""
    line, store = Line(), Store(*[Claimed("one", 0)] * 3, latency=1.0)
    stop.set_result(None)
    assert await waits(line, store, stop) is None
    assert line.is_open
    later: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await asyncio.gather(*(waits(line, store, later) for _ in range(3)))
    assert store.moments == pytest.approx([0.0, 1.0, 2.0], abs=1e-3)


@pytest.mark.fault("S18")
@pytest.mark.parametrize("way", ["stopped", "cancelled"])
async def test_leaving_before_its_turn_gives_nothing_back(
    stop: asyncio.Future[None], way: str
) -> None:
    """One who leaves while another one asks: the next asks after that, and not earlier."""
    line, store = Line(), Store(*[Claimed("one", 0)] * 3, latency=1.0)
    later: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asking = waits(line, store, later)
    leaving, waiting = waits(line, store, stop), waits(line, store, later)
    await asyncio.sleep(0.5)
    if way == "stopped":
        stop.set_result(None)
    else:
        leaving.cancel()
    await asyncio.wait({leaving})
    await asyncio.gather(asking, waiting)
    assert store.moments == pytest.approx([0.0, 1.0], abs=1e-3)


async def test_after_busy_they_ask_one_by_one(stop: asyncio.Future[None]) -> None:
    """How many slots will be free then is not known."""
    busy, last = [Busy(2.0)] * 3, [Claimed("last", 0)] * 3
    line, store = Line(), Store(Claimed("one", 5), *busy, *last, latency=1.0)
    await asyncio.gather(*(waits(line, store, stop) for _ in range(4)))
    assert store.moments == pytest.approx([0.0, 1.0, 1.0, 1.0, 4.0, 5.0, 6.0], abs=1e-2)
