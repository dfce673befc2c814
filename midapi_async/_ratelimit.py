"""The account's gate: no window of MidAPI's ever sees more submissions than it takes.

A slot comes back ``per`` seconds after its POST has *ended*, not after it was granted: MidAPI
counts a request when it arrives, which can be any time before its end, so this alone holds whatever
the latency. (Counting from the grant let 23 of 20 through in one window, a leaky bucket 39.)
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from .errors import ClientClosed

if TYPE_CHECKING:
    from ._clock import Clock
    from .config import RateLimit


class Gate:
    """First come, first served.

    Args:
        limit: submissions in a window; None for no limit of ours (MidAPI's 429 still pause it).
        clock: the client's clock.
    """

    def __init__(self, limit: RateLimit | None, clock: Clock) -> None:
        self._count: float = limit.count if limit else math.inf
        self._per = limit.per if limit else 10.0
        self._clock = clock
        self._allowed = self._count
        self._inside = 0
        self._cooling: deque[float] = deque()  # when each used slot comes back, in order
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._paused_until = -math.inf
        self._halves_from = -math.inf
        self._grows_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        free = self._allowed - self._inside - len(self._cooling)
        return f"<Gate {max(free, 0)} of {self._count} free, {len(self._waiting)} waiting>"

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    async def enter(self, *, again: bool = False) -> None:
        """Wait for a turn; `leave` or `hand_back` must follow. Cancelled, the turn is passed on.

        Args:
            again: this one had its turn and was sent back: it goes to the front.

        Raises:
            ClientClosed: the gate was closed first.
        """
        if self._closed:
            raise ClientClosed
        self._admit()
        if not self._waiting and self._is_open():
            self._inside += 1
            return
        turn: asyncio.Future[None] = self._clock.loop.create_future()
        self._waiting[turn] = None
        if again:
            self._waiting.move_to_end(turn, last=False)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.pop(turn, None)
            elif turn.exception() is None:
                self.hand_back()
            raise

    def leave(self) -> None:
        """The POST has ended: its slot comes back in ``per`` seconds."""
        self._inside -= 1
        if self._count != math.inf:
            self._cooling.append(self._clock.time() + self._per)
        self._admit()

    def hand_back(self) -> None:
        """Nothing was sent: the slot is free at once."""
        self._inside -= 1
        self._admit()

    def slow_down(self, pause: float) -> None:
        """MidAPI said 429: nobody goes for so many seconds, and then half as many in a window.

        The 429s of one window are one mistake of ours and halve once; each clean window gives one
        slot back.
        """
        now = self._clock.time()
        self._paused_until = max(self._paused_until, now + pause)
        if now >= self._halves_from and self._count != math.inf:
            self._allowed = max(1, self._allowed // 2)
            self._halves_from = now + self._per
        self._grows_at = self._paused_until + self._per
        self._admit()

    def close(self) -> None:
        """Nobody goes any more; everybody who waits gets `ClientClosed`."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                turn.set_exception(ClientClosed())

    def _is_open(self) -> bool:
        return (
            self._clock.time() >= self._paused_until
            and self._inside + len(self._cooling) < self._allowed
        )

    def _admit(self) -> None:
        """Let in who may go now, and wake up when the next one may."""
        now = self._clock.time()
        while self._cooling and self._cooling[0] <= now:
            self._cooling.popleft()
        while self._grows_at <= now and self._allowed < self._count:
            self._allowed += 1
            self._grows_at += self._per
        while self._waiting and self._is_open():
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
        self._wake_up()

    def _wake_up(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if not self._waiting or self._closed:
            return
        now = self._clock.time()
        moments = [self._paused_until, self._cooling[0] if self._cooling else -math.inf]
        if self._allowed < self._count:
            moments.append(self._grows_at)
        if coming := [moment for moment in moments if moment > now]:
            self._timer = self._clock.call_at(min(coming), self._admit)
