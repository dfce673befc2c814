"""Tracking: when to look at tasks, and who waits for them."""
