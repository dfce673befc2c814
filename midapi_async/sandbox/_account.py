"""The account behind the keys: its credits and its rate window."""

import math
from collections import deque
from typing import final

from midapi_async.sandbox import _wire
from midapi_async.sandbox._envelope import Refused


def checked_balance(credits_: float) -> float:
    """Give the balance back, or raise ValueError when no account could hold it."""
    if not math.isfinite(credits_) or credits_ < 0:
        message = f"credits must be a number of at least 0, not {credits_!r}"
        raise ValueError(message)
    return float(credits_)


@final
class Account:
    """Credits, and the times of the last accepted submits in seconds of the sandbox."""

    def __init__(self, balance: float) -> None:
        """Open the account with some credits; ValueError if that is not an amount."""
        self.balance = checked_balance(balance)
        self._accepted: deque[float] = deque(maxlen=_wire.WINDOW_SUBMITS)

    def check_rate(self, now: float) -> None:
        """Raise the 429 refusal when the window holds its twenty; nothing is queued."""
        full = len(self._accepted) == _wire.WINDOW_SUBMITS
        if full and now - self._accepted[0] < _wire.WINDOW:
            raise Refused(_wire.TOO_OFTEN)

    def pay(self, price: float, now: float) -> None:
        """Take the price and a place in the window; raise the 402 refusal if it is not there."""
        if price > self.balance:
            raise Refused(_wire.NO_CREDITS)
        self.balance -= price
        self._accepted.append(now)

    def wire_balance(self) -> float:
        """Give the balance as the wire shows it: a whole number where it is one."""
        return int(self.balance) if self.balance.is_integer() else self.balance
