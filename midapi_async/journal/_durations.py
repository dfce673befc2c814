"""How long tasks took, kept for the next process: the last ones of each kind.

The table is made with the first of them. It is no part of the schema and its version, since a
release that does not know it may go on beside this one, in the middle of a submission.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite3 import Connection

    from .protocol import Kind

KEPT_DURATIONS = 64  # of a kind, as many as a plan is made of

_TABLE = (
    """
    CREATE TABLE IF NOT EXISTS durations (
        number INTEGER PRIMARY KEY,
        origin TEXT NOT NULL,
        task_type TEXT NOT NULL,
        speed TEXT NOT NULL,
        seconds REAL NOT NULL
    )
    """,
    "CREATE INDEX IF NOT EXISTS durations_kind ON durations (origin, task_type, speed, number)",
)


def add(connection: Connection, origin: str, kind: Kind, seconds: float) -> None:
    """One more; the oldest one of its kind goes."""
    for statement in _TABLE:
        connection.execute(statement)
    of_kind = origin, kind[0], kind[1] or ""
    connection.execute(
        "INSERT INTO durations (origin, task_type, speed, seconds) VALUES (?, ?, ?, ?)",
        (*of_kind, seconds),
    )
    connection.execute(
        "DELETE FROM durations WHERE origin = ? AND task_type = ? AND speed = ? AND number <= "
        "(SELECT number FROM durations WHERE origin = ? AND task_type = ? AND speed = ? "
        "ORDER BY number DESC LIMIT 1 OFFSET ?)",
        (*of_kind, *of_kind, KEPT_DURATIONS),
    )


def of(connection: Connection, origin: str) -> dict[Kind, list[float]]:
    """Those of one service by kind, the newest last."""
    kinds: dict[Kind, list[float]] = {}
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'durations'").fetchone():
        return kinds
    found = connection.execute(
        "SELECT task_type, speed, seconds FROM durations WHERE origin = ? ORDER BY number",
        (origin,),
    )
    for task_type, speed, seconds in found.fetchall():
        if isinstance(seconds, float):  # SQLite keeps in a column what it is given
            kinds.setdefault((str(task_type), str(speed) or None), []).append(seconds)
    return kinds
