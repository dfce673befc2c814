"""Stores intents: what was about to be bought, and what became of it."""

from .protocol import Busy, Claim, Claimed, Journal, JournalStats, Standing
from .states import BOUGHT, OVER, PENDING, Intent, State, moved

__all__ = [
    "BOUGHT",
    "OVER",
    "PENDING",
    "Busy",
    "Claim",
    "Claimed",
    "Intent",
    "Journal",
    "JournalStats",
    "Standing",
    "State",
    "moved",
]
