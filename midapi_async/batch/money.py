"""Whether one more submission would exceed the user's limit of credits; arithmetic only.

The balance is read from time to time. In between each submission is counted with the largest cost
seen so far. If others use the account, their costs count as ours, and submitting stops earlier.
"""

from __future__ import annotations

import attrs

READ_EVERY = 20  # submissions
_ROUNDING = 1e-6  # credits; balances may be fractions


@attrs.define
class Money:
    """What a batch has spent, and may spend.

    Attributes:
        limit: the most credits that the batch may spend; None for no limit.
        balance: the account's credits when they were last read; None before the first time.
        spent: by how much the balance has fallen since it was first read.
        largest: the largest cost of a submission that was seen; None before the first one.
        sending: submissions that were begun and have no outcome yet.
        settled: submissions that were accepted, or may have been, since the balance was read.
        was_tried: whether reading the balance was tried, with or without success.
    """

    limit: float | None = None
    balance: float | None = None
    spent: float = 0.0
    largest: float | None = None
    sending: int = 0
    settled: int = 0
    was_tried: bool = False

    @property
    def must_read(self) -> bool:
        """Whether to read the balance before the next submission."""
        if self.settled >= READ_EVERY:
            return True
        # Without a limit, a balance that cannot be read is not worth a request for each row.
        return self.balance is None and not (self.was_tried and self.limit is None)

    @property
    def may_submit(self) -> bool:
        """Whether one more submission stays within the limit, for all that is known."""
        if self.limit is None:
            return True
        count = self.sending + self.settled
        if self.largest is None:
            # The first submission runs alone, until it is known what one costs.
            return count == 0 and self.spent < self.limit
        return self.spent + self.largest * (count + 1) <= self.limit + _ROUNDING

    def begin(self) -> None:
        """A submission begins."""
        self.sending += 1

    def end(self, *, may_cost: bool) -> None:
        """A submission has ended.

        Args:
            may_cost: whether it was accepted or is unknown; False if it cost nothing.
        """
        self.sending -= 1
        self.settled += may_cost

    def read(self, balance: float, settled: int) -> None:
        """The balance was read.

        Args:
            balance: the credits.
            settled: how many submissions were settled when the reading began. Others may have been
                charged too; those are counted twice until the next reading.
        """
        before, self.balance = self.balance, balance
        self.settled -= settled
        if before is None:
            return
        paid = before - balance
        if paid < 0:  # credits were added, which hides what was spent
            paid = settled * (self.largest or 0.0)
        self.spent += paid
        if settled and paid > 0:
            self.largest = max(self.largest or 0.0, paid / settled)
