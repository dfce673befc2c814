"""How fast POSTs come, and how long one takes with its claim."""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Unpack

from midapi_async import MemoryJournal, RateLimit
from midapi_async.journal import Claim, Claimed, Intent, State
from midapi_async.journal.base import TableJournal
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.journal.states import Changes


def rate_of(moments: Sequence[float], count: int) -> float:
    """POSTs per second, each of the first window beside the one in its place of the last window."""
    last = len(moments) - count
    return last / statistics.fmean(moments[last + n] - moments[n] for n in range(count))


def most_in_a_window(moments: Sequence[float], per: float) -> int:
    """The largest number of POSTs in any window of this many seconds."""
    window: deque[float] = deque()
    most = 0
    for moment in moments:
        window.append(moment)
        while window[0] <= moment - per:
            window.popleft()
        most = max(most, len(window))
    return most


class Timed(TableJournal):
    """A journal that measures how long a POST takes with its claim."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments)
        self.times: list[float] = []
        self._begun: dict[str, float] = {}

    async def claim(
        self, intent: Intent, account: str, limit: RateLimit | None, *, longest_post: float
    ) -> Claim:
        """See `Journal.claim`."""
        begun = time.monotonic()
        claim = await super().claim(intent, account, limit, longest_post=longest_post)
        if isinstance(claim, Claimed):
            self._begun[claim.slot] = begun
        return claim

    async def advance(
        self,
        intent_id: str,
        to: State | None = None,
        *,
        slot: str | None = None,
        **changes: Unpack[Changes],
    ) -> Intent:
        """See `Journal.advance`."""
        if slot is not None:
            self.times.append(time.monotonic() - self._begun.pop(slot))
        return await super().advance(intent_id, to, slot=slot, **changes)


class TimedMemory(Timed, MemoryJournal):
    """In memory."""


class TimedFolder(Timed, SQLiteJournal):
    """In a folder."""
