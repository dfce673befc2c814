"""The open connections of the standalone server: which ones are closed, and when.

A connection is receiving (the rest of a request is still to come), busy (its callback is being
handled), or idle (answered; another request may follow). In each of these states all connections
get the same time, so the one that entered it first times out first: a single timer is enough, and
making room for a new connection needs no search.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from aiohttp.web import RequestHandler

MOST_CONNECTIONS = 1000
SECONDS = {
    # For a header, from connecting or from the first byte after an answer; then again for the body.
    # The receiver stops reading a body after 4 s, so that the sender still gets an answer.
    "receiving": 5.0,
    "idle": 15.0,  # from an answer to the next byte
    "busy": math.inf,
}


class Connections:
    """Closes connections that time out, and the oldest one when there are too many.

    Args:
        most: how many may be open at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._loop = asyncio.get_running_loop()
        # By state: each connection with its deadline, earliest deadline first.
        self._open: dict[str, dict[RequestHandler, float]] = {state: {} for state in SECONDS}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        counts = (f"{len(group)} {state}" for state, group in self._open.items())
        return f"<Connections {', '.join(counts)}>"

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def add(self, connection: RequestHandler) -> None:
        """Add a new connection, as receiving. If there are too many, close the oldest idle one.

        If none is idle, this closes the oldest one that is receiving, which may be the new one. It
        never closes busy connections.
        """
        self._put(connection, "receiving")
        if len(self) > self._most:
            self._close_first(self._open["idle"] or self._open["receiving"])

    def discard(self, connection: RequestHandler) -> bool:
        """Remove a connection that is closed; return whether it was there."""
        return any(group.pop(connection, None) is not None for group in self._open.values())

    def move(self, connection: RequestHandler, state: Literal["receiving", "idle", "busy"]) -> None:
        """Move a connection to another state, with that state's timeout, unless it is closed."""
        if self.discard(connection):
            self._put(connection, state)

    def data_received(self, connection: RequestHandler) -> None:
        """Data has arrived: if the connection was idle, a new request begins."""
        if connection in self._open["idle"]:
            self.move(connection, "receiving")

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _put(self, connection: RequestHandler, state: str) -> None:
        deadline = self._open[state][connection] = self._loop.time() + SECONDS[state]
        self._watch(deadline)

    def _watch(self, deadline: float) -> None:
        """Set the timer to a deadline, unless it is set to an earlier one."""
        if deadline < (math.inf if self._timer is None else self._timer.when()):
            self.stop()
            self._timer = self._loop.call_at(deadline, self._close_late)

    def _close_late(self) -> None:
        self._timer = None
        now = self._loop.time()
        for group in self._open.values():
            while group and (deadline := next(iter(group.values()))) <= now:
                self._close_first(group)
            if group:
                self._watch(deadline)

    def _close_first(self, group: dict[RequestHandler, float]) -> None:
        """Close the first connection at once; data that is not sent yet is dropped."""
        connection = next(iter(group))
        del group[connection]
        transport = connection.transport
        connection.force_close()
        if transport is not None:
            transport.abort()
