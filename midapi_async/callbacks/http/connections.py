"""The open connections of the standalone server: what each of them owes, and until when.

A connection owes the rest of a request, or it owes nothing and is idle, or its callback is being
taken. Everybody has the same time for the same debt, so that in each group the one that has waited
longest stands first: one timer watches all of them, and room is made without a search.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

HEADER_SECONDS = 5.0  # from connecting, or from the first byte after an answer
BODY_SECONDS = HEADER_SECONDS  # who is late with a body is told so a little earlier, by `_http`
IDLE_SECONDS = 15.0  # from an answer to the next byte
MOST_CONNECTIONS = 1000


class Connection(Protocol):
    """What can be cut."""

    def cut(self) -> None:
        """Close at once; what is still to be sent is dropped."""
        ...


class Connections:
    """Cuts what is late, and the oldest idle one when there are too many.

    Args:
        most: how many may be open at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._loop = asyncio.get_running_loop()
        # In the order of their deadlines, which stand beside them.
        self._owing: dict[Connection, float] = {}
        self._idle: dict[Connection, float] = {}
        self._busy: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        idle, owing, busy = len(self._idle), len(self._owing), len(self._busy)
        return f"<Connections {idle} idle, {owing} owing, {busy} busy>"

    def __len__(self) -> int:
        return len(self._owing) + len(self._idle) + len(self._busy)

    def opened(self, connection: Connection) -> None:
        """It owes its first header; there is room for it, at another's cost or its own.

        Whoever has been idle for longest goes, else whoever has owed the rest of a request for
        longest. Nobody goes whose callback is being taken.
        """
        self._put(self._owing, connection, HEADER_SECONDS)
        if len(self) > self._most:
            self._cut_first(self._idle or self._owing)

    def closed(self, connection: Connection) -> bool:
        """It is gone, by whomever it was closed; whether it was one of these until now."""
        if connection in self._busy:
            self._busy.discard(connection)
            return True
        gone = self._owing.pop(connection, None) or self._idle.pop(connection, None)
        return gone is not None

    def stirred(self, connection: Connection) -> None:
        """Bytes came; if it was idle, it owes a header from now on."""
        if self._idle.pop(connection, None) is not None:
            self._put(self._owing, connection, HEADER_SECONDS)

    def taking(self, connection: Connection) -> None:
        """It owes nothing: its callback is being taken, and it cannot be cut."""
        if self.closed(connection):
            self._busy.add(connection)

    def waiting(self, connection: Connection) -> None:
        """It owes a body."""
        if self.closed(connection):
            self._put(self._owing, connection, BODY_SECONDS)

    def ended(self, connection: Connection) -> None:
        """Its request is answered; it is idle."""
        if self.closed(connection):
            self._put(self._idle, connection, IDLE_SECONDS)

    def stop_watching(self) -> None:
        """Cut nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _put(self, group: dict[Connection, float], connection: Connection, seconds: float) -> None:
        deadline = group[connection] = self._loop.time() + seconds
        if self._timer is None or deadline < self._timer.when():
            self._watch(deadline)

    def _watch(self, deadline: float) -> None:
        self.stop_watching()
        self._timer = self._loop.call_at(deadline, self._cut_late)

    def _cut_late(self) -> None:
        self._timer = None
        now = self._loop.time()
        for group in (self._owing, self._idle):
            while group and (deadline := next(iter(group.values()))) <= now:
                self._cut_first(group)
            if group and (self._timer is None or deadline < self._timer.when()):
                self._watch(deadline)

    def _cut_first(self, group: dict[Connection, float]) -> None:
        connection = next(iter(group))
        del group[connection]
        connection.cut()
