"""Tracking: when to look at a task, and who waits for it."""
