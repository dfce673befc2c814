"""The one clock of a client: the event loop's time, counted in the service's seconds.

With a ``time_scale`` of 60, a second of the loop is a minute of the service. Times and durations
are in the service's seconds wherever nothing else is said, and tests run on a loop with a clock of
its own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

# Seconds. The network is not faster in a fast sandbox, so no network timeout is scaled below this.
SHORTEST_NETWORK_TIMEOUT = 5.0
# A loop may fire a timer too early, by as much as its clock's resolution.
RESOLUTION = 2e-6
# The clock that stops while the machine sleeps, and the one that does not. Windows has neither, and
# does not need them: the loop's own clock goes on there.
_AWAKE = getattr(time, "CLOCK_UPTIME_RAW", getattr(time, "CLOCK_MONOTONIC", None))
_ALWAYS = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
# A timer that fires this many seconds late shows that the loop was blocked, and everything that the
# loop was waiting for is late, too.
BLOCKED_LOOP = 1.0


class Clock:
    """Time and random numbers for one client in one event loop.

    Args:
        scale: service seconds in one second of the loop.
        chance: returns random numbers in [0, 1), for jitter.
    """

    def __init__(
        self,
        scale: float = 1.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.scale = scale
        self.loop = asyncio.get_running_loop()
        self.chance = chance

    def time(self) -> float:
        """Service seconds since some fixed moment; never goes back."""
        return self.loop.time() * self.scale

    def slept(self) -> float:
        """Service seconds that the machine has slept (was suspended) since it was booted.

        On Linux and macOS the loop's clock stands still during that time; MidAPI goes on.
        """
        if _AWAKE is None or _ALWAYS is None:
            return 0.0
        return (time.clock_gettime(_ALWAYS) - time.clock_gettime(_AWAKE)) * self.scale

    def boot_time(self) -> float:
        """Real seconds since some fixed moment, including those that the machine has slept."""
        return self.loop.time() + self.slept() / self.scale

    def call_at(
        self, moment: float, callback: Callable[..., object], *args: object
    ) -> asyncio.TimerHandle:
        """Run a callback at a moment of `time`, and never before it."""
        return self.loop.call_at(moment / self.scale + RESOLUTION, callback, *args)

    def network_seconds(self, seconds: float) -> float:
        """A network timeout in seconds of the loop: scaled, but not below what a network needs."""
        return max(seconds / self.scale, min(seconds, SHORTEST_NETWORK_TIMEOUT))

    def expire(self, scope: asyncio.Timeout, seconds: float) -> asyncio.TimerHandle:
        """End an ``asyncio.timeout`` after a network timeout; once more later if the loop blocked.

        After a loop was blocked, it fires timers before it reads data that arrived long ago. A POST
        that was paid for would then become an unknown submission, so the answer gets one more
        second. Cancel the timer that is returned inside the block of the timeout.
        """
        deadline = self.loop.time() + self.network_seconds(seconds)
        return self.loop.call_at(deadline, self._expire, scope, deadline)

    def _expire(self, scope: asyncio.Timeout, deadline: float) -> None:
        now = self.loop.time()
        if now - deadline <= BLOCKED_LOOP:
            scope.reschedule(now)
        else:
            scope.reschedule(now + BLOCKED_LOOP)
