"""What every room stands on: the clock, and background tasks with an owner."""
