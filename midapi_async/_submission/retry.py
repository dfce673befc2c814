"""How long to wait before a submission is sent again, and when to give up.

Used only after a proof that nothing was bought; `Submitter` decides that. Of the backoff library
only the wait generator is used: its decorators support neither Retry-After nor a budget, and its
full jitter shortens a Retry-After.
"""

from __future__ import annotations

from collections.abc import Callable

import backoff

from .._wire.protocol import LONGEST_RETRY_AFTER

_LONGEST_PAUSE = 30.0  # seconds, without a Retry-After


class RetryBudget:
    """The time that one submission may spend on attempts and on pauses between them.

    Args:
        give_up_after: the seconds of the budget.
        random: returns random numbers in [0, 1).

    Attributes:
        left: the seconds that are left.
    """

    def __init__(self, give_up_after: float, random: Callable[[], float]) -> None:
        self.left = give_up_after
        self._random = random
        self._pauses = backoff.expo(max_value=_LONGEST_PAUSE)
        next(self._pauses)  # the first value of backoff's generators is None

    def spend(self, seconds: float) -> None:
        """Subtract the time of an attempt from the budget."""
        self.left -= seconds

    def pause(self, retry_after: float | None = None) -> float | None:
        """Seconds until the next attempt; None to give up.

        A Retry-After is a minimum: jitter only makes it longer. Without one the pauses grow from 1
        to 2, 4 … 30 s, and jitter makes each up to a half shorter.
        """
        grown = next(self._pauses)
        if retry_after is not None and retry_after > LONGEST_RETRY_AFTER:
            return None
        pause = grown * (1 + self._random()) / 2
        if retry_after is not None:
            pause = retry_after + self._random() * min(1.0, grown)
        if pause > self.left:
            return None
        self.left -= pause
        return pause
