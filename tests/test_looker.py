"""The token bucket of looks, on a clock that the test sets; and a burst of results over sockets."""

import asyncio
import math
from functools import partial
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async import (
    APIError,
    CallbackReceiver,
    MidAPIError,
    PollPolicy,
    RateLimitError,
    ServerError,
)
from midapi_async._runtime.clock import Clock
from midapi_async._tracking.looker import CLEAN_WINDOW, LOOKS_AT_ONCE, SLOWEST, Looker
from midapi_async._tracking.waits import TrackedTask
from midapi_async.sandbox import Sandbox
from tests.world import client_of

SLOW_DOWN = RateLimitError(429, "slow down", 429)


class StillClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        """The time that was set."""
        return self.now

    def chance(self) -> float:
        """No jitter."""
        return 0.0


class Bucket:
    """A looker, and when each of its looks began; they end at once, answered or not."""

    def __init__(self, policy: PollPolicy) -> None:
        self.clock = StillClock()
        self.looker = Looker(policy, cast("Clock", self.clock))
        self.began: list[float] = []

    def add(self, count: int) -> None:
        """Queue some tasks."""
        for _ in range(count):
            self.looker.add(TrackedTask("a task", self.clock.now))

    def look(self, error: MidAPIError | None = None) -> int:
        """Begin and end all looks that may begin now; how many."""
        number = 0
        while (task := self.looker.begin(self.clock.now)) is not None:
            self.began.append(self.clock.now)
            number += 1
            if error is None:
                self.looker.succeeded()
            else:
                self.looker.failed(task, error)
            self.looker.end(task)
        return number

    def look_for(self, seconds: float) -> int:
        """Look whenever a look may begin, for some seconds; how many looks that were."""
        until, number = self.clock.now + seconds, self.look()
        while (moment := self.looker.next_moment) <= until:
            assert moment > self.clock.now
            self.clock.now = moment
            looks = self.look()
            assert looks > 0
            number += looks
        self.clock.now = until
        return number


@given(
    pace=st.floats(0.01, 500),
    burst=st.integers(1, 200),
    steps=st.lists(st.tuples(st.integers(0, 150), st.floats(0, 20)), max_size=10),
    failing=st.sets(st.integers(0, 9)),
)
def test_no_interval_has_more_looks_than_the_bucket_gives(
    pace: float, burst: int, steps: list[tuple[int, float]], failing: set[int]
) -> None:
    """In any t seconds at most `burst` + t · `looks_per_second` looks, also around 429s."""
    bucket = Bucket(PollPolicy(looks_per_second=pace, burst=burst))
    for number, (count, seconds) in enumerate(steps):
        bucket.add(count)
        if number in failing:
            bucket.look(SLOW_DOWN)
        bucket.look_for(seconds)
    # The bucket, played: it never holds less than nothing.
    level, at = float(burst), -math.inf
    for moment in bucket.began:
        level = min(float(burst), level + (moment - at) * pace) - 1
        at = moment
        assert level >= -1e-6


def test_a_full_bucket_gives_its_burst_and_then_the_rate() -> None:
    """100 at once, then 20 in each second; after some idle seconds, the burst again."""
    bucket = Bucket(PollPolicy())
    bucket.add(400)
    assert bucket.look() == 100
    assert bucket.look_for(5) == 100
    bucket.look_for(20)
    assert len(bucket.began) == 400
    bucket.add(150)
    assert bucket.look() == 100


@pytest.mark.fault("S5")
def test_a_429_halves_the_rate_and_clean_windows_restore_it() -> None:
    """After the pause 10 looks in a second, for 10 s; then 20 again, and bursts of 100."""
    bucket = Bucket(PollPolicy())
    bucket.add(1)
    bucket.look(RateLimitError(429, "slow down", 429, retry_after=30.0))
    bucket.add(2000)
    assert bucket.look_for(29.9) == 0
    assert bucket.look_for(0.2) == 2  # no burst
    assert bucket.look_for(5) == pytest.approx(50, abs=2)
    bucket.look_for(5)
    assert bucket.look_for(10) == pytest.approx(200, abs=2)
    bucket.look_for(100)
    bucket.clock.now += 60
    bucket.add(200)
    assert bucket.look() == pytest.approx(100, abs=1)


@pytest.mark.fault("S5")
def test_further_429s_halve_the_rate_again_down_to_a_bound() -> None:
    """Looks that were under way together halve it once; the last one is doubled back in 50 s."""
    bucket = Bucket(PollPolicy(looks_per_second=32.0, burst=64))
    bucket.add(5000)
    together = [bucket.looker.begin(bucket.clock.now) for _ in range(16)]
    for task in together:
        assert task is not None
        bucket.looker.failed(task, SLOW_DOWN)
        bucket.looker.end(task)
    bucket.clock.now = bucket.looker.next_moment
    assert bucket.look_for(1) == pytest.approx(17, abs=1)
    for _ in range(20):
        bucket.clock.now = bucket.looker.next_moment
        bucket.look(SLOW_DOWN)
    bucket.clock.now = bucket.looker.next_moment
    slow = 32 * SLOWEST * CLEAN_WINDOW
    for times in (1, 2, 4, 8, 16, 32):
        assert bucket.look_for(CLEAN_WINDOW) == pytest.approx(times * slow, rel=0.3)


@pytest.mark.fault("S5")
def test_windows_without_looks_restore_the_rate_too() -> None:
    """After a quiet minute there is the whole bucket."""
    bucket = Bucket(PollPolicy())
    for _ in range(10):
        bucket.add(1)
        bucket.clock.now = max(bucket.clock.now, bucket.looker.next_moment + 0.001)
        bucket.look(SLOW_DOWN)
    bucket.add(200)
    bucket.clock.now = bucket.looker.next_moment + 60
    assert bucket.look() == pytest.approx(100, abs=1)


@pytest.mark.fault("S5")
def test_a_rate_that_doubles_does_not_shorten_a_pause() -> None:
    """The clean window ends during a pause that has another cause."""
    bucket = Bucket(PollPolicy(looks_per_second=1.0, burst=5))
    bucket.add(50)
    bucket.look(SLOW_DOWN)
    bucket.clock.now += 1 + CLEAN_WINDOW - 0.5
    bucket.looker.rest(20)
    bucket.clock.now += 1
    assert bucket.look() == 0
    assert bucket.looker.next_moment == bucket.clock.now + 19


@pytest.mark.fault("P2")
def test_catching_up_after_a_pause_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """1,000 looks are due when a server is back: they take 50 s, and nothing has to be changed."""
    for pause in (0, 30):
        bucket = Bucket(PollPolicy())
        if pause:
            bucket.looker.rest(pause)
        bucket.add(1000)
        for _ in range(80):
            bucket.looker.warn_if_behind(bucket.clock.now)
            bucket.look_for(1)
        assert len(caplog.records) == (not pause)
        caplog.clear()


def test_a_short_peak_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """400 looks are due at once, and the last ones 15 s late; that is over after 5 s."""
    bucket = Bucket(PollPolicy())
    for _ in range(5):
        bucket.add(400)
        for _ in range(60):
            bucket.looker.warn_if_behind(bucket.clock.now)
            bucket.look_for(1)
    assert not caplog.records


@pytest.mark.parametrize(("due", "is_late"), [(290, False), (310, True)])
def test_what_the_bucket_holds_is_not_late(due: int, is_late: bool) -> None:
    """With a full bucket, 290 looks begin within 10 s; with an empty one, 190."""
    for is_full in (True, False):
        bucket = Bucket(PollPolicy())
        if not is_full:
            bucket.add(100)
            bucket.look()
        bucket.add(due - 100 * (not is_full))
        bucket.looker.warn_if_behind(bucket.clock.now)
        assert (bucket.looker._behind_since is not None) == is_late


@pytest.mark.fault("P2")
@pytest.mark.parametrize("error", [ServerError(502, "down", 502), SLOW_DOWN])
def test_no_burst_follows_a_pause(error: APIError) -> None:
    """The bucket is not full when failing looks have paused, however long the pause was."""
    bucket = Bucket(PollPolicy())
    bucket.add(500)
    for _ in range(6):
        bucket.clock.now = max(bucket.clock.now, bucket.looker.next_moment) + 0.001
        bucket.look(error)
    bucket.clock.now = bucket.looker.next_moment
    assert bucket.look() == 1
    assert bucket.look_for(1) <= 20


@pytest.mark.fault("P20")
def test_one_failed_look_takes_no_burst_away() -> None:
    """Of a hundred due looks the first one fails: the others begin all the same."""
    bucket = Bucket(PollPolicy())
    bucket.add(100)
    task = bucket.looker.begin(bucket.clock.now)
    assert task is not None
    bucket.looker.failed(task, ServerError(502, "a moment", 502))
    bucket.looker.end(task)
    assert bucket.look() == 99


def test_looks_under_way_are_bounded() -> None:
    """However many tokens there are, half of the places are for hinted tasks."""
    bucket = Bucket(PollPolicy(looks_per_second=1000, burst=1000))
    bucket.add(100)
    hinted = [TrackedTask(f"hinted {n}", 0.0, is_hinted=True) for n in range(100)]
    while bucket.looker.begin(bucket.clock.now):
        pass
    assert bucket.looker.next_moment == math.inf
    for task in hinted:
        bucket.looker.add(task)
    begun = set(iter(partial(bucket.looker.begin, bucket.clock.now), None))
    assert begun <= set(hinted)
    assert len(begun) == LOOKS_AT_ONCE[0] - LOOKS_AT_ONCE[1]


# ─── a hundred results in one moment, over sockets ───────────────────────────────────────────────


@pytest.mark.fault("P20")
@pytest.mark.parametrize("ways", ["memory", "folder", "another process"])
async def test_a_hundred_simultaneous_callbacks_wake_their_waiters(
    ways: str, tmp_path: pytest.TempPathFactory
) -> None:
    """Within a second, one look each; also if another process on the folder takes the callbacks."""
    journal = None if ways == "memory" else tmp_path
    receiver = CallbackReceiver(None, port=0)
    time = asyncio.get_running_loop().time
    async with (
        Sandbox(auto=False) as sandbox,
        client_of(sandbox.url, journal=journal, receiver=receiver) as taker,
    ):
        ours = CallbackReceiver(receiver.url) if ways == "another process" else None
        async with client_of(sandbox.url, journal=journal, receiver=ours) as other:
            waiter = taker if ours is None else other
            handles = []
            for number in range(100):
                if number % 20 == 0:
                    await asyncio.sleep(11)
                handles.append(await waiter.generate(f"fox {number}", speed="relaxed"))
            waits = [asyncio.create_task(handle.wait()) for handle in handles]
            await asyncio.sleep(1)
            begun = time()
            for handle in handles:
                sandbox.finish(handle.task_id)
            await asyncio.gather(*waits)
            assert time() - begun < 1
            assert (taker.stats().callbacks, waiter.stats().looks) == (100, 100)
