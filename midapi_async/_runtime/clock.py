"""The one clock of a client: the loop's time, in the service's seconds.

With a ``time_scale`` of 60 a second of the loop is a minute of the service. Every room counts in
the service's seconds and only this one knows the scale; tests put a loop of their own under it.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# The network does not run faster because the sandbox does: scaled network timeouts stop here.
SHORTEST_NETWORK_TIMEOUT = 5.0
# A loop may fire a timer its clock's resolution early.
RESOLUTION = 2e-6
# The clock that goes on while the machine sleeps, and the one that does not; on Windows the loop's
# own clock goes on.
_AWAKE = getattr(time, "CLOCK_UPTIME_RAW", getattr(time, "CLOCK_MONOTONIC", None))
_ALWAYS = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
# A timer that fires this late was held up by a blocked loop, and so was what it waits for.
BLOCKED_LOOP = 1.0


class Clock:
    """Time, sleep and chance for one client in one event loop.

    Args:
        scale: service seconds in one second of the loop.
        loop: the event loop; the running one if None.
        chance: a source of numbers in [0, 1), for jitter.
    """

    def __init__(
        self,
        scale: float = 1.0,
        loop: asyncio.AbstractEventLoop | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.scale = scale
        self.loop = loop or asyncio.get_running_loop()
        self.chance = chance

    def time(self) -> float:
        """Service seconds since some fixed moment; never goes back."""
        return self.loop.time() * self.scale

    def slept(self) -> float:
        """Service seconds that the machine has slept (suspended) since it was booted.

        The loop's clock stands still meanwhile on Linux and macOS; MidAPI does not.
        """
        if _AWAKE is None or _ALWAYS is None:
            return 0.0
        return (time.clock_gettime(_ALWAYS) - time.clock_gettime(_AWAKE)) * self.scale

    async def sleep(self, seconds: float) -> None:
        """Wait for so many service seconds."""
        await asyncio.sleep(seconds / self.scale)

    def call_at(
        self, moment: float, callback: Callable[..., object], *args: object
    ) -> asyncio.TimerHandle:
        """Run a callback at a moment of `time`, and never before it."""
        return self.loop.call_at(moment / self.scale + RESOLUTION, callback, *args)

    def network_seconds(self, seconds: float) -> float:
        """Loop seconds for a network timeout: scaled, but not to less than a network needs."""
        return max(seconds / self.scale, min(seconds, SHORTEST_NETWORK_TIMEOUT))

    def expire(self, scope: asyncio.Timeout, seconds: float) -> asyncio.TimerHandle:
        """End an ``asyncio.timeout`` after network seconds; later when the loop was blocked then.

        A stalled loop fires timers before it reads what has long arrived, which would turn a paid
        answer into an unknown one; it is forgiven once. Cancel what is returned inside the block.
        """
        deadline = self.loop.time() + self.network_seconds(seconds)
        return self.loop.call_at(deadline, self._expire, scope, deadline)

    def _expire(self, scope: asyncio.Timeout, deadline: float) -> None:
        now = self.loop.time()
        if now - deadline <= BLOCKED_LOOP:
            scope.reschedule(now)
        else:
            scope.reschedule(now + BLOCKED_LOOP)
