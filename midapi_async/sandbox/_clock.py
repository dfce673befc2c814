"""Sandbox time: the event loop's clock, faster by a factor."""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from typing import final


@final
class Clock:
    """Seconds of the sandbox since its start, and the end of it.

    Only ``loop.time()`` is asked, so that a loop whose clock jumps works. Wall time is
    taken once, at the start, and is used for the stamps that the wire shows.
    """

    def __init__(self, scale: float) -> None:
        """Start the clock in the running loop; one real second is ``scale`` of its own."""
        self.scale = scale
        self.stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._epoch = time.time()

    def now(self) -> float:
        """Give the seconds of the sandbox since its start."""
        return (self._loop.time() - self._started) * self.scale

    def stamp(self, moment: float) -> int:
        """Give the epoch milliseconds of a moment of this clock.

        They run ahead of the wall when the scale is above 1, so that the difference of two
        stamps is the duration that the sandbox plays, not the real one.
        """
        return math.floor((self._epoch + moment) * 1000)  # rounded, it could be in the future

    def date(self) -> str:
        """Give the Date header of an answer that is sent now, in line with the stamps."""
        return formatdate(self._epoch + self.now(), usegmt=True)

    def call_in(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call a function after some seconds of the sandbox."""
        return self._loop.call_later(seconds / self.scale, callback)

    async def sleep(self, seconds: float) -> None:
        """Wait some seconds of the sandbox, or until it stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds / self.scale):
                await self.stopped.wait()

    def stop(self) -> None:
        """End every sleep; sleeps on a stopped clock end at once."""
        self.stopped.set()
