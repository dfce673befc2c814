"""Where intents live: what was about to be bought, and what became of it."""

from .protocol import BOUGHT, TOLD, Experience, Intent, Journal, Kind, State, moved

__all__ = ["BOUGHT", "TOLD", "Experience", "Intent", "Journal", "Kind", "State", "moved"]
