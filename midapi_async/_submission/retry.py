"""May a refused or unsent submission be sent again, and when.

Only ever asked with a proof in hand that nothing was bought. Of backoff only the wait generators
are used: its decorators know neither Retry-After nor a budget, and its full jitter shortens a
Retry-After.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import backoff

if TYPE_CHECKING:
    from collections.abc import Callable

# Above this a Retry-After is not waited for: the caller is told, and decides.
LONGEST_RETRY_AFTER = 120.0
_LONGEST_PAUSE = 30.0


class Patience:
    """The budget of one submission.

    Args:
        give_up_after: seconds of trying and pausing, all attempts together.
        chance: a source of numbers in [0, 1).
    """

    def __init__(self, give_up_after: float, chance: Callable[[], float]) -> None:
        self._left = give_up_after
        self._chance = chance
        self._pauses = backoff.expo(max_value=_LONGEST_PAUSE)
        next(self._pauses)  # backoff's generators begin with an empty step

    def spend(self, seconds: float) -> None:
        """So much of the budget went into an attempt."""
        self._left -= seconds

    def pause(self, retry_after: float | None = None) -> float | None:
        """Seconds until the next attempt; None to give up.

        A Retry-After is a minimum: jitter only lengthens it. Without one the pauses grow 1, 2, 4 …
        30 s, each between its half and its whole.
        """
        grown = next(self._pauses)
        if retry_after is not None and retry_after > LONGEST_RETRY_AFTER:
            return None
        pause = grown * (1 + self._chance()) / 2
        if retry_after is not None:
            pause = retry_after + self._chance() * min(1.0, grown)
        if pause > self._left:
            return None
        self._left -= pause
        return pause
