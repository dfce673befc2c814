"""The queue for slots: the submissions of one account in one event loop, first come, first served.

The rate limit itself is in `journal.slots`, and the journal gives out the slots (`Journal.claim`).
The line decides which submission asks the journal, and when. As many ask at once as slots were free
at the last answer, so that their claims share a transaction. After `Busy` the next one asks when a
slot may be free. During an outage one submission at a time may ask; see `outage`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sys
from collections.abc import Awaitable, Callable
from typing import TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from .._runtime.clock import RESOLUTION
from ..journal import Busy, Claim, Claimed, Standing
from .outage import Outage

# A process that holds all busy slots waits for this part of the window before it asks again, so
# that other processes get the next slot. Measured beside three busy processes, one that wakes 50 ms
# late gets 20 % of the slots; without this wait it gets 3 %.
YIELD_SHARE = 0.03

Ticket: TypeAlias = int


class Line:
    """Submissions that wait for a slot. Each takes one ticket and keeps it through its retries.

    Args:
        scale: service seconds in one second of the loop.

    Attributes:
        outage: whether submissions pause; call `proceed` after it was told of an outcome.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.outage = Outage(scale)
        self._tickets = itertools.count()
        self._waiting: list[tuple[Ticket, asyncio.Future[None]]] = []  # a heap
        self._asking = 0  # claims under way
        self._free = 1  # free slots at the last answer: how many may ask at once
        self._timer: asyncio.TimerHandle | None = None  # set while no slot can be free

    def __repr__(self) -> str:
        return f"<Line {len(self._waiting)} waiting, {self._asking} asking>"

    @property
    def is_open(self) -> bool:
        """Whether a submission that joins now may ask at once."""
        return not self._waiting and self._timer is None and not self.outage.is_on

    def ticket(self) -> Ticket:
        """A place at the end of the line."""
        return next(self._tickets)

    async def claim(
        self,
        ask: Callable[[], Awaitable[Claim]],
        ticket: Ticket,
        *,
        queued: Callable[[int], object],
        per: float,
        ping: Callable[[], Awaitable[object]],
        stop: asyncio.Future[None],
        patience: float,
    ) -> Claimed | Standing | None:
        """Wait for a slot, or until another row has the key.

        Args:
            ask: claims a slot at the journal; a claim under way is not cancelled by `stop`.
            ticket: the position in the line.
            queued: called once if it has to wait, with how many are before it.
            per: seconds of the window, on the loop's clock.
            ping: makes a free request, to see whether an outage is over.
            stop: done when the slot is no longer wanted.
            patience: seconds to wait for the end of an outage, on the loop's clock.

        Returns:
            The journal's answer; None if `stop` came first.

        Raises:
            TransportError: an outage lasts longer than `patience`.
        """
        give_up_at, is_queued = asyncio.get_running_loop().time() + patience, False
        while True:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (ticket, turn))
            self.proceed()
            try:
                if not turn.done():  # a turn that came at once needs no wait, which costs much
                    if not is_queued:
                        queued(sum(each < ticket for each, _ in self._waiting))
                    is_queued = True
                    await asyncio.wait({turn, stop}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                self._leave(turn)
                raise
            if stop.done():
                self._leave(turn)
                return None
            answer: Claim | None = None
            try:
                await self.outage.wait(ticket, ping, stop, give_up_at)
                if not stop.done():
                    answer = await ask()
            except Exception:
                self._free = sys.maxsize  # if the journal hangs, all wait for it at the same time
                raise
            finally:
                self._asking -= 1
                if not isinstance(answer, Claimed):
                    self.outage.left(ticket)
                self._learn(answer, per)
            if not isinstance(answer, Busy):
                return answer

    def _learn(self, answer: Claim | None, per: float) -> None:
        """Learn from an answer how many may ask next, and when."""
        pause = None
        if isinstance(answer, Busy):
            self._free = 1
            pause = answer.retry_in + YIELD_SHARE * per * answer.share
        elif isinstance(answer, Claimed):
            self._free = max(1, answer.free)
            if 0 < answer.share < 1:  # other processes hold slots and may wait for the next one
                pause = YIELD_SHARE * per * answer.share
        if pause is not None:
            if self._timer is not None:
                self._timer.cancel()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(pause + RESOLUTION, self._pause_is_over)
        self.proceed()

    def _pause_is_over(self) -> None:
        self._timer = None
        self.proceed()

    def proceed(self) -> None:
        """Let the next ones ask, as many as may."""
        while self._waiting and self._timer is None and self._asking < self._may_ask():
            _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._asking += 1
                turn.set_result(None)

    def _may_ask(self) -> int:
        if self.outage.is_on:
            return 0 if self.outage.trying is not None else 1
        return self._free

    def _leave(self, turn: asyncio.Future[None]) -> None:
        """Remove one that waits no longer; its turn may have come already."""
        if not turn.cancel():
            self._asking -= 1
        while self._waiting and self._waiting[0][1].done():
            heapq.heappop(self._waiting)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()  # the timer would keep an empty line alive
            self._timer = None
        self.proceed()


# A line exists as long as a client refers to it.
_LINES: WeakKeyDictionary[
    asyncio.AbstractEventLoop, WeakValueDictionary[tuple[str, bool], Line]
] = WeakKeyDictionary()


def line_of(account: str, *, is_limited: bool, scale: float) -> Line:
    """The line of an account in the running event loop, shared by all its clients.

    Clients without a limit have a separate line, and do not wait behind the others.
    """
    lines = _LINES.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    return lines.setdefault((account, is_limited), Line(scale))
