"""What every other package uses: the clock, background tasks with an owner, checks of URLs."""
