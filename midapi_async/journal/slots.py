"""The rate limit: may one more POST of an account be sent now? Pure; the stores keep the values.

Each POST needs a slot, and a slot is busy until ``per`` seconds after its POST has *ended*. MidAPI
counts a request when it arrives, which can be at any moment before its end. So no window of MidAPI
ever contains more POSTs than there are slots, whatever the latency. (When slots were counted from
the start of the POST, 23 POSTs got into a window of 20; with a leaky bucket 39.) All times are
seconds of the store's own clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ..config import RateLimit
from .protocol import Busy

UNLIMITED_AT_ONCE = 64  # claims of a client without a limit that may share a transaction


@attrs.frozen
class Slot:
    """One POST that is under way, or has ended a short time ago.

    Attributes:
        slot: its id.
        intent_id: the intent that the POST submits.
        owner: the owner that sends the POST.
        count: the limit of the client that took the slot; None if it has no limit.
        per: seconds that the slot stays busy after the POST has ended.
        started: when it was taken.
        ends_at: when the POST ended; while it is under way, when it must have ended at the latest.
        is_open: whether the POST is still under way.
    """

    slot: str
    intent_id: str
    owner: str
    count: int | None
    per: float
    started: float
    ends_at: float
    is_open: bool = True

    def ended(self, now: float) -> Slot:
        """The slot of a POST that has just ended."""
        return attrs.evolve(self, ends_at=now, is_open=False)

    @property
    def free_at(self) -> float:
        """When the slot is free again."""
        return self.ends_at + self.per


@attrs.frozen
class Account:
    """The limits of an account after a 429: first a pause, then fewer slots, one more per window.

    Attributes:
        paused_until: no slot is given out before this.
        allowed: how many slots there are until ``grows_at``; None if no 429 came.
        halves_from: a 429 before this does not halve the slots again; it has the same cause.
        grows_at: when the first slot comes back; then one more in each window.
    """

    paused_until: float = 0.0
    allowed: int | None = None
    halves_from: float = 0.0
    grows_at: float = 0.0

    def allowed_at(self, now: float, count: int, per: float) -> int:
        """How many slots there are at a time."""
        if self.allowed is None:
            return count
        grown = int((now - self.grows_at) / per) + 1 if now >= self.grows_at else 0
        return min(count, self.allowed + grown)

    def after_429(self, now: float, pause: float, slot: Slot) -> Account:
        """The limits after another 429: a pause, then half as many slots."""
        paused_until = max(self.paused_until, now + pause)
        if slot.count is None:
            return attrs.evolve(self, paused_until=paused_until)
        allowed = self.allowed_at(now, slot.count, slot.per)
        is_new = now >= self.halves_from
        return Account(
            paused_until=paused_until,
            allowed=max(1, allowed // 2) if is_new else allowed,
            halves_from=now + slot.per if is_new else self.halves_from,
            grows_at=paused_until + slot.per,
        )


def admit(
    account: Account, busy: Sequence[Slot], now: float, limit: RateLimit | None
) -> Busy | int:
    """How many slots are free, at least one; or `Busy` with the time until one may be free.

    Args:
        account: the limits after the last 429.
        busy: the slots that are not free now.
        now: the time.
        limit: the limit of the client that asks; None for one that only waits for the pause.
    """
    if now < account.paused_until:
        return Busy(account.paused_until - now)
    if limit is None:
        return UNLIMITED_AT_ONCE
    # If clients have different limits, it is not known which one is right; the smallest is safe.
    count = min([limit.count, *(slot.count for slot in busy if slot.count is not None)])
    allowed = account.allowed_at(now, count, limit.per)
    if len(busy) < allowed:
        return allowed - len(busy)
    # The POST of an open slot may end at any moment from now on.
    earliest = [
        min(now + slot.per, slot.free_at) if slot.is_open else slot.free_at for slot in busy
    ]
    free_at = sorted(earliest)[len(busy) - allowed]
    if allowed < count:  # after a 429: an additional slot may come back earlier than that
        grown = max(0, allowed - (account.allowed or 0))
        free_at = min(free_at, account.grows_at + grown * limit.per)
    return Busy(free_at - now)
