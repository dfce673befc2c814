"""The account's gate: no window of MidAPI's ever sees more submissions than it takes.

A slot comes back ``per`` seconds after its POST has *ended*, not after it was granted: MidAPI
counts a request when it arrives, which can be any time before its end, so this alone holds whatever
the latency. (Counting from the grant let 23 of 20 through in one window, a leaky bucket 39.)

    Gate, Gate …   one for each client
        └── Line       who waits, first come first served; one for all clients of an account that
              │        are open in one event loop
              └── Place    where the slots are: in memory, or in a folder for all its processes
                    └── Slots    pure: take, give back, slow down; decided without waiting

The limit belongs to the account and so do the slots: they are shared, not divided, so that whoever
has something to send may use the whole limit. Clients with different limits on one account do not
share: nobody could say which of them holds. Everything here is in seconds of the loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING, Protocol, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

import attrs

from .._runtime.clock import RESOLUTION
from ..errors import ClientClosed, JournalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._runtime.clock import Clock
    from ..config import RateLimit

_FIRST_RETRY, _LAST_RETRY = 0.005, 0.1  # seconds until a place that was held is tried again


class Slots(Protocol):
    """The slots of an account as they are at one moment; all moments in loop seconds."""

    @property
    def count(self) -> float:
        """How many there are in all."""
        ...

    def catch_up(self, now: float) -> None:
        """Let happen what was due by now: slots come back, the pace recovers."""
        ...

    def take(self, now: float, since: float) -> bool:
        """Take a slot for one who waits since a moment, if one is free and nobody goes before."""
        ...

    def give_back(self, now: float) -> None:
        """The POST in a slot ended at this moment."""
        ...

    def hand_back(self) -> None:
        """A slot was taken and not used."""
        ...

    def slow_down(self, now: float, pause: float) -> None:
        """MidAPI said 429 at this moment."""
        ...

    def look_again_at(self, now: float, waiting: int, since: float) -> float:
        """When a slot may be free for those who wait here.

        Args:
            now: this moment.
            waiting: how many they are.
            since: since when the first of them waits; without meaning if there is none.
        """
        ...

    def free(self) -> float:
        """How many slots are free."""
        ...


class Place(Protocol):
    """Where slots are kept. ``with place as slots:`` sees them alone, and keeps what it changes.

    Entering raises BlockingIOError where somebody else is at them just now. Entering and leaving
    raise `JournalError` where the place cannot be used; then nothing of the block is kept.
    """

    @property
    def where(self) -> str:
        """Its name: the same for places that are one and the same."""
        ...

    @property
    def look_every(self) -> float:
        """Seconds in which others may have changed them unseen; infinite without others."""
        ...

    def __enter__(self) -> Slots: ...

    def __exit__(self, kind: object, error: object, traceback: object, /) -> None: ...

    def last_seen(self) -> Slots | None:
        """The slots as they were seen last; only to show them."""
        ...

    def close(self) -> None:
        """Let go of everything, unless slots of ours are in use; the next use opens it again."""
        ...


class Pace:
    """How many slots there are just now, and since when: less after a 429, and slowly more again.

    Args:
        limit: submissions in a window of loop seconds; None for no limit of ours.
    """

    def __init__(self, limit: RateLimit | None) -> None:
        self.count: float = limit.count if limit else math.inf
        self.per = limit.per if limit else 0.0
        self.allowed = self.count
        self.paused_until = -math.inf
        self.halves_from = -math.inf
        self.grows_at = math.inf

    def slow_down(self, now: float, pause: float) -> None:
        """See `Slots.slow_down`: a pause for all, and then half as many in a window.

        The 429s of one window are one mistake of ours and halve once; each clean window gives one
        slot back.
        """
        self.paused_until = max(self.paused_until, now + pause)
        if now >= self.halves_from and self.count != math.inf:
            self.allowed = max(1.0, self.allowed // 2)
            self.halves_from = now + self.per
        self.grows_at = self.paused_until + self.per

    def recover(self, now: float) -> None:
        """One more slot for each clean window that is over."""
        while self.grows_at <= now and self.allowed < self.count:
            self.allowed += 1
            self.grows_at += self.per

    def next_change(self, now: float, *others: float) -> float:
        """The first moment after now at which the pace changes, or one of the others."""
        grows_at = self.grows_at if self.allowed < self.count else math.inf
        coming = [each for each in (self.paused_until, grows_at, *others) if each > now]
        return min(coming, default=math.inf)


class OwnSlots(Pace):
    """Slots in memory, and the place they are in: nobody else is ever at them."""

    where = ""
    look_every = math.inf

    def __init__(self, limit: RateLimit | None) -> None:
        super().__init__(limit)
        self._inside = 0
        self._cooling: deque[float] = deque()  # when each used slot comes back, in order

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def last_seen(self) -> Slots:
        """See `Place`."""
        return self

    def close(self) -> None:
        """See `Place`."""

    def catch_up(self, now: float) -> None:
        """See `Slots`."""
        while self._cooling and self._cooling[0] <= now:
            self._cooling.popleft()
        if self.allowed < self.count:
            self.recover(now)

    def take(self, now: float, since: float) -> bool:  # noqa: ARG002 - the line has asked in order
        """See `Slots`."""
        if now < self.paused_until or self.free() <= 0:
            return False
        self._inside += 1
        return True

    def give_back(self, now: float) -> None:
        """See `Slots`."""
        self._inside -= 1
        self._cooling.append(now + self.per)

    def hand_back(self) -> None:
        """See `Slots`."""
        self._inside -= 1

    def look_again_at(self, now: float, waiting: int, since: float) -> float:  # noqa: ARG002 - nobody is told
        """See `Slots`."""
        return self.next_change(now, self._cooling[0] if self._cooling else math.inf)

    def free(self) -> float:
        """See `Slots`."""
        return self.allowed - self._inside - len(self._cooling)


@attrs.frozen(eq=False)
class _Waiter:
    """Somebody in the line.

    Attributes:
        gate: the gate of the client that it came with.
        since: since when it waits.
    """

    gate: Gate
    since: float


class Line:
    """Those who wait for a slot in one event loop, whichever client they came with.

    Args:
        place: where the slots are.
        loop: the event loop.
    """

    def __init__(self, place: Place, loop: asyncio.AbstractEventLoop) -> None:
        self.place = place
        self.gates: set[Gate] = set()
        self.waiting: OrderedDict[asyncio.Future[None], _Waiter] = OrderedDict()
        self._loop = loop
        self._pending: list[Callable[[Slots], None]] = []  # what the place is not told yet
        self._timer: asyncio.TimerHandle | None = None
        self._held_since: float | None = None  # as long as somebody else is at the slots

    # ─── coming and going ────────────────────────────────────────────────────────────────────────

    def passes(self) -> bool:
        """Whether one who comes now goes through at once."""
        if self.waiting or self._held_since is not None:
            return False
        now = self._loop.time()
        try:
            with self.place as slots:
                slots.catch_up(now)
                is_taken = slots.take(now, now)
        except BlockingIOError:
            return False
        return is_taken

    def join(self, gate: Gate, *, again: bool) -> asyncio.Future[None]:
        """A turn at the end of the line, or at its front; done when it has come."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self.waiting[turn] = _Waiter(gate, -math.inf if again else self._loop.time())
        if again:
            self.waiting.move_to_end(turn, last=False)
        if len(self.waiting) == 1:
            self._look()
        return turn

    def quit(self, turn: asyncio.Future[None]) -> None:
        """Whoever waited was cancelled: its turn, or the slot that it just got, is passed on."""
        if not turn.cancelled():
            if turn.exception() is None:
                self.hand_back()
        elif self.waiting.pop(turn, None) and not self.waiting:
            self._look()

    def give_back(self) -> None:
        """A POST has ended."""
        now = self._loop.time()
        self._change(now, lambda slots: slots.give_back(now))

    def hand_back(self) -> None:
        """A slot was not used."""
        self._change(self._loop.time(), lambda slots: slots.hand_back())

    def slow_down(self, pause: float) -> None:
        """MidAPI said 429."""
        now = self._loop.time()
        self._change(now, lambda slots: slots.slow_down(now, pause))

    def dismiss(self, gate: Gate) -> None:
        """A client closes: those who came with it get `ClientClosed`, the others wait on."""
        self.gates.discard(gate)
        for turn in [turn for turn, who in self.waiting.items() if who.gate is gate]:
            del self.waiting[turn]
            if not turn.done():
                turn.set_exception(ClientClosed())
        if self._timer and not self.waiting:
            self._look()
        self._let_go()

    # ─── the slots ───────────────────────────────────────────────────────────────────────────────

    def _change(self, now: float, change: Callable[[Slots], None]) -> None:
        """Tell the slots. Where they cannot be told at once, they are told later."""
        if self.waiting or not self.gates or self._held_since is not None:
            self._pending.append(change)
            self._look()
            return
        try:
            with self.place as slots:
                slots.catch_up(now)
                change(slots)
        except (BlockingIOError, JournalError):
            self._pending.append(change)
            self._held_up(now)

    def _look(self) -> None:
        """Go to the slots now, unless they are held; then a timer is set that does."""
        if self._held_since is None:
            self._admit()

    def _admit(self) -> None:
        """Tell what is pending, let in who may go, and see when the next one may."""
        self._stop_timer()
        now = self._loop.time()
        try:
            with self.place as slots:
                slots.catch_up(now)
                for change in self._pending:
                    change(slots)
                let_in = self._first(slots, now) if self.waiting else []
                left = len(self.waiting) - len(let_in)
                look_at = slots.look_again_at(now, left, self._since(len(let_in)))
        except BlockingIOError:
            self._held_up(now)
            return
        except JournalError as error:
            self._fail(error)
            self._held_up(now)
            return
        self._held_since = None
        self._pending.clear()
        for turn in let_in:
            del self.waiting[turn]
            if not turn.done():
                turn.set_result(None)
        if left and (look_at := min(look_at, now + self.place.look_every)) < math.inf:
            self._timer = self._loop.call_at(look_at + RESOLUTION, self._admit)
        if not self.gates:
            self._let_go()

    def _first(self, slots: Slots, now: float) -> list[asyncio.Future[None]]:
        """The first in the line, as many as there are slots for; and the cancelled before them.

        They are let in only when the place has kept it.
        """
        let_in = []
        for turn, who in self.waiting.items():
            if not turn.done() and not slots.take(now, who.since):
                break
            let_in.append(turn)
        return let_in

    def _since(self, index: int) -> float:
        """Since when the one at this place of the line waits; infinite if nobody does."""
        there = next(islice(self.waiting.values(), index, None), None)
        return there.since if there else math.inf

    # ─── a place that cannot be used just now ────────────────────────────────────────────────────

    def _held_up(self, now: float) -> None:
        """Try again soon: nothing that is pending is lost."""
        if not self.waiting and not self._pending:
            self._held_since = None
            return
        if self._held_since is None:
            self._held_since = now
        pause = min(_FIRST_RETRY + (now - self._held_since) / 4, _LAST_RETRY)
        self._timer = self._loop.call_at(now + pause, self._admit)

    def _fail(self, error: JournalError) -> None:
        """Everybody who waits gets the error, each a copy: raised twice it gathers tracebacks."""
        while self.waiting:
            turn, _ = self.waiting.popitem(last=False)
            if not turn.done():
                copy = JournalError(*error.args)
                copy.__cause__ = error.__cause__
                turn.set_exception(copy)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _let_go(self) -> None:
        """Leave the place, if no client of ours is open; what is in flight then keeps it open."""
        if not self.gates and not self._pending:
            self._stop_timer()
            self._held_since = None
            self.place.close()


class Gate:
    """One client's gate: first come, first served, among all clients that share its line.

    Args:
        limit: submissions in a window; None for no limit of ours (MidAPI's 429 still pause it).
        clock: the client's clock.
        line: the line that it shares; None for one of its own.
    """

    def __init__(self, limit: RateLimit | None, clock: Clock, line: Line | None = None) -> None:
        self._scale = clock.scale
        self._is_limited = limit is not None
        self._line = line or _make_line(None, "", limit, clock)
        self._line.gates.add(self)
        self._closed = False

    def __repr__(self) -> str:
        slots = self._line.place.last_seen()
        free = f"{max(slots.free(), 0):g} of {slots.count:g} free" if slots else "not used yet"
        return f"<Gate {free}, {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        """How many of this client wait for their turn."""
        return sum(who.gate is self for who in self._line.waiting.values())

    async def enter(self, *, again: bool = False) -> None:
        """Wait for a turn; `leave` or `hand_back` must follow. Cancelled, the turn is passed on.

        Args:
            again: this one had its turn and was sent back: it goes to the front.

        Raises:
            ClientClosed: the gate was closed first.
            JournalError: the slots are in a journal's folder, which cannot be used.
        """
        if self._closed:
            raise ClientClosed
        if self._line.passes():
            return
        turn = self._line.join(self, again=again)
        try:
            await turn
        except asyncio.CancelledError:
            self._line.quit(turn)
            raise

    def leave(self) -> None:
        """The POST has ended: its slot comes back in ``per`` seconds."""
        if self._is_limited:
            self._line.give_back()

    def hand_back(self) -> None:
        """Nothing was sent: the slot is free at once."""
        if self._is_limited:
            self._line.hand_back()

    def slow_down(self, pause: float) -> None:
        """MidAPI said 429: nobody goes for so many seconds of the service, then half as many."""
        self._line.slow_down(pause / self._scale)

    def close(self) -> None:
        """Nobody of this client goes any more; each who waits gets `ClientClosed`."""
        if not self._closed:
            self._closed = True
            self._line.dismiss(self)


def shared_gate(
    account: str,
    limit: RateLimit | None,
    clock: Clock,
    keep: Callable[[str, RateLimit | None], Place] | None = None,
) -> Gate:
    """A gate that shares the line of all clients with the same account, limit and time scale.

    Args:
        account: the service's URL and the API key; only a hash of them is kept.
        limit: submissions in a window, or None. Clients with different limits do not share.
        clock: the client's clock; clients in different event loops share through a place only.
        keep: where slots are shared beyond this event loop, by a name that tells nothing of the
            account and the limit in loop seconds; None to keep them in memory.
    """
    told = f"{account}\n{limit and (limit.count, limit.per)}\n{clock.scale}"
    name = hashlib.sha256(told.encode()).hexdigest()[:32]
    line = _make_line(keep, name, limit, clock)
    lines = _lines.setdefault(clock.loop, WeakValueDictionary())
    return Gate(limit, clock, lines.setdefault((name, line.place.where), line))


# Nothing is kept alive here: a line lives as long as a client's gate does.
_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[tuple[str, str], Line]] = (
    WeakKeyDictionary()
)


def _make_line(
    keep: Callable[[str, RateLimit | None], Place] | None,
    name: str,
    limit: RateLimit | None,
    clock: Clock,
) -> Line:
    in_loop = limit and attrs.evolve(limit, per=limit.per / clock.scale)
    place = keep(name, in_loop) if keep else OwnSlots(in_loop)
    return Line(place, clock.loop)
