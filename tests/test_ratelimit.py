"""The gate, exact in virtual time."""

import asyncio
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midapi_async import ClientClosed, InvalidRequestError, RateLimit
from midapi_async._runtime.clock import Clock
from midapi_async._submission.gate import Gate
from midapi_async.testing import VirtualLoop


def now() -> float:
    return asyncio.get_running_loop().time()


def gate_of(count: int | None = 20, per: float = 10.0, scale: float = 1.0) -> Gate:
    return Gate(RateLimit(count, per=per) if count else None, Clock(scale))


def busiest_window(moments: list[float], per: float) -> int:
    """The most moments that any half-open window of the server holds."""
    ordered = sorted(moments)
    return max(sum(1 for m in ordered if start <= m < start + per) for start in ordered)


async def through(gate: Gate, latency: float, arrival: float, arrivals: list[float]) -> None:
    """One POST that reaches the server a part of its latency after it was let in."""
    await gate.enter()
    try:
        await asyncio.sleep(latency * arrival)
        arrivals.append(now())
        await asyncio.sleep(latency * (1 - arrival))
    finally:
        gate.leave()


@pytest.mark.parametrize("latency", [0.0, 0.3, 3.0, 12.0])
async def test_no_window_holds_more_than_count(latency: float) -> None:
    """Whatever the latency, and wherever in it a POST arrives, 20 in any 10 s and not one more."""
    gate, arrivals, chance = gate_of(), list[float](), random.Random(7)
    posts = [
        through(gate, latency * chance.random() * 2, chance.random(), arrivals) for _ in range(200)
    ]
    await asyncio.gather(*posts)
    assert len(arrivals) == 200
    assert 20 >= busiest_window(arrivals, 10.0) >= 18


async def test_the_rate_is_nearly_used_up() -> None:
    """With short POSTs 98 % of the account's rate is reached."""
    gate, arrivals = gate_of(), list[float]()
    begun = now()
    await asyncio.gather(*(through(gate, 0.2, 0.5, arrivals) for _ in range(400)))
    assert 400 / (now() - begun) >= 0.98 * 2.0 * 400 / 420


async def test_first_come_first_served() -> None:
    """Turns are given in the order of asking."""
    gate, order = gate_of(1, per=1), list[int]()

    async def one(number: int) -> None:
        await gate.enter()
        order.append(number)
        gate.leave()

    await asyncio.gather(*(one(number) for number in range(10)))
    assert list(range(10)) == order


async def test_who_was_sent_back_goes_first() -> None:
    """A POST that had its turn and was refused for the moment does not queue again."""
    gate, order = gate_of(1, per=1), list[str]()

    async def one(name: str, *, again: bool) -> None:
        await gate.enter(again=again)
        order.append(name)
        gate.leave()

    await gate.enter()
    waiting = [asyncio.create_task(one(f"new {n}", again=False)) for n in range(2)]
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(one("sent back", again=True)))
    gate.leave()
    await asyncio.gather(*waiting)
    assert order == ["sent back", "new 0", "new 1"]


async def test_s18_a_cancelled_waiter_passes_its_turn_on() -> None:
    """Cancelled in the queue, and cancelled in the moment of its turn: nobody starves."""
    gate = gate_of(1, per=5)
    await gate.enter()
    first, second, third = (asyncio.create_task(gate.enter()) for _ in range(3))
    await asyncio.sleep(1)
    first.cancel()
    await asyncio.sleep(0)
    assert gate.waiting == 2
    gate.hand_back()
    second.cancel()
    await asyncio.wait({second, third}, timeout=1)
    assert second.cancelled()
    assert third.done()
    assert third.exception() is None


async def test_a_turn_not_used_is_free_at_once() -> None:
    """Nothing was sent, so the server counted nothing."""
    gate = gate_of(1, per=100)
    begun = now()
    for _ in range(5):
        await gate.enter()
        gate.hand_back()
    assert begun == now()


async def test_s06_after_a_429_half_the_slots_and_back() -> None:
    """A pause for all, half the slots, one more for each clean window."""
    gate = gate_of(8, per=10)
    await gate.enter()
    gate.leave()
    gate.slow_down(5.0)
    begun, moments = now(), list[float]()

    async def one() -> None:
        await gate.enter()
        moments.append(now() - begun)
        gate.leave()

    await asyncio.gather(*(one() for _ in range(60)))
    assert 5.0 <= moments[0] <= 5.01
    per_window = [sum(1 for m in moments if a <= m < b) for a, b in pairwise(range(5, 100, 10))]
    assert per_window[0] <= 4
    assert per_window[0] < per_window[3] <= 8
    assert max(per_window) == 8


async def test_s06_the_429s_of_one_window_halve_once() -> None:
    """Twenty POSTs on their way that all get 429 are one mistake."""
    gate = gate_of(20)
    for _ in range(20):
        gate.slow_down(1.0)
    assert repr(gate) == "<Gate 10 of 20 free, 0 waiting>"
    await asyncio.sleep(11)
    gate.slow_down(1.0)
    assert repr(gate) == "<Gate 5 of 20 free, 0 waiting>"


async def test_without_a_limit_a_429_still_pauses() -> None:
    """rate_limit=None has no slots, and rests all the same."""
    gate = gate_of(None)
    await asyncio.gather(*(gate.enter() for _ in range(1000)))
    gate.slow_down(7.0)
    begun = now()
    await gate.enter()
    assert 7.0 <= now() - begun <= 7.01


async def test_closing_tells_who_waits() -> None:
    """Everybody in the queue, and everybody who comes later, gets ClientClosed."""
    gate = gate_of(1)
    await gate.enter()
    waiting = asyncio.create_task(gate.enter())
    await asyncio.sleep(1)
    gate.close()
    with pytest.raises(ClientClosed):
        await waiting
    with pytest.raises(ClientClosed):
        await gate.enter()


async def test_time_scale_shortens_the_window() -> None:
    """A window of 10 s of the service is 0.1 s of the loop at a scale of 100."""
    gate = gate_of(1, per=10, scale=100)
    begun = now()
    for _ in range(3):
        await gate.enter()
        gate.leave()
    assert 0.2 <= now() - begun <= 0.21


async def test_its_repr_shows_the_state() -> None:
    """How many slots are free, and how many wait."""
    gate = gate_of(3)
    await gate.enter()
    assert repr(gate) == "<Gate 2 of 3 free, 0 waiting>"
    gate.leave()
    assert repr(gate) == "<Gate 2 of 3 free, 0 waiting>"


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5),
    posts=st.lists(
        st.tuples(st.floats(0, 30), st.floats(0, 12), st.floats(0, 1), st.floats(0.1, 40)),
        max_size=25,
    ),
)
def test_property_never_too_many_never_stuck(
    count: int, posts: list[tuple[float, float, float, float]]
) -> None:
    """Whenever they come, however long they take, whoever gives up: the window holds, all end."""
    arrivals: list[float] = []

    async def one(gate: Gate, start: float, latency: float, part: float, patience: float) -> None:
        await asyncio.sleep(start)
        try:
            async with asyncio.timeout(patience):
                await gate.enter()
        except TimeoutError:
            return
        await asyncio.sleep(latency * part)
        arrivals.append(now())
        await asyncio.sleep(latency * (1 - part))
        gate.leave()

    async def main() -> None:
        gate = gate_of(count)
        await asyncio.gather(*(one(gate, *post) for post in posts))
        assert not gate.waiting
        begun = now()
        await gate.enter()
        assert now() - begun <= 10.001

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert not arrivals or busiest_window(arrivals, 10.0) <= count


@pytest.mark.parametrize("wrong", [(0, 10), (-1, 10), (1.5, 10), (1, 0), (1, float("nan"))])
def test_a_limit_that_is_none_is_refused(wrong: tuple[int, float]) -> None:
    """Counts are whole and positive, windows positive."""
    with pytest.raises(InvalidRequestError):
        RateLimit(wrong[0], per=wrong[1])
