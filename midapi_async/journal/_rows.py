"""The rows of the SQLite journal: what each method of the protocol reads and writes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import attrs

from .._wire.bodies import request_from_json, request_to_json
from ..errors import InvalidRequestError, JournalError
from .protocol import BOUGHT, Intent, State, moved

if TYPE_CHECKING:
    from collections.abc import Mapping
    from sqlite3 import Connection

    from ..requests import Request
    from ._locks import Owners

_log = logging.getLogger("midapi_async")

_COLUMNS = (
    "intent_id, scope, request, fingerprint, token_hash, created_at, key, metadata, state, "
    "task_id, other_task_ids, accepted_at, taken, supersedes, owner"
)
_SELECT = f"SELECT {_COLUMNS} FROM intents"  # noqa: S608 - a constant
_INSERT = (
    f"INSERT INTO intents ({_COLUMNS}, holds_key) "  # noqa: S608 - constants
    f"VALUES ({', '.join('?' * 15)}, ?)"
)
# A row to which nobody has done anything since we knew it: it need not be read again.
_AS_KNOWN = (
    " AND state = ? AND task_id IS ? AND other_task_ids IS ? AND accepted_at IS ? AND taken = ? "
    "AND NOT pruned"
)
_SEALED = "sealed:"

_OVER = (State.REFUSED, State.SUPERSEDED, State.DISMISSED)
_PRUNED_AT_ONCE = 500
_KNOWN = 4096  # rows that were bought, as they were last seen
_TASKS_AT_ONCE = 500  # in one statement; SQLite's own limit was 999 once


class Row(NamedTuple):
    """An intent, and whose it is."""

    intent: Intent
    owner: str


@attrs.frozen
class Sender:
    """Who of this process submits an intent, and what.

    Attributes:
        loop: the event loop; once it is closed nobody submits any more.
        intent: the intent as it was claimed, which need not be read back from the database.
    """

    loop: asyncio.AbstractEventLoop
    intent: Intent


@attrs.frozen
class Seal:
    """Hides what was asked for, where prompts are not stored.

    Attributes:
        key: the folder's secret.
        is_used: whether new rows are sealed.
    """

    key: bytes = attrs.field(repr=False)
    is_used: bool

    def stored(self, fingerprint: str) -> str:
        """What is kept of a fingerprint."""
        return self._sealed(fingerprint) if self.is_used else fingerprint

    def shown(self, row: Intent, fingerprint: str | None) -> Intent:
        """The row with the fingerprint that it was sealed from, if that is this one."""
        if fingerprint is None or not row.fingerprint.startswith(_SEALED):
            return row
        if not hmac.compare_digest(self._sealed(fingerprint), row.fingerprint):
            return row
        return attrs.evolve(row, fingerprint=fingerprint)

    def _sealed(self, fingerprint: str) -> str:
        return _SEALED + hmac.digest(self.key, fingerprint.encode(), hashlib.sha256).hex()


class Rows:
    """The rows, in one connection and in the thread that it belongs to.

    What writes has to be called within a transaction, under the journal's lock.

    Args:
        connection: to the database.
        owners: who is alive.
        senders: the submissions of this process, by intent id; kept by the caller.
        seal: hides what was asked for.
    """

    def __init__(
        self, connection: Connection, owners: Owners, senders: Mapping[str, Sender], seal: Seal
    ) -> None:
        self.connection = connection
        self._owners = owners
        self._senders = senders
        self._seal = seal
        self._known: dict[str, Intent] = {}

    # ─── reading ─────────────────────────────────────────────────────────────────────────────────

    def by(self, condition: str, *values: object) -> Row | None:
        """The row that fits a condition, or the first one."""
        found = self.connection.execute(f"{_SELECT} WHERE {condition}", values).fetchone()
        return self._row(found) if found is not None else None

    def all(self, condition: str, *values: object) -> list[Intent]:
        """The rows that fit a condition, oldest first."""
        found = self.connection.execute(f"{_SELECT} WHERE {condition} ORDER BY number", values)
        return [self._row(each).intent for each in found.fetchall()]

    def by_task(self, task_id: str) -> Row | None:
        """The row that a task answers for."""
        return self.by("task_id = ?", task_id) or self.by(
            "other_task_ids IS NOT NULL AND instr(' ' || other_task_ids || ' ', ?)", f" {task_id} "
        )

    def in_states(self, scope: str | None, states: tuple[State, ...]) -> list[Intent]:
        """The rows of a scope, or of all, in these states, or in any."""
        if scope is None:
            rows = self.all("NOT pruned")
            return [row for row in rows if not states or row.state in states]
        if not states:
            return self.all("scope = ? AND NOT pruned", scope)
        marks = ", ".join("?" * len(states))
        are_open = " AND over_at IS NULL" * (not set(states) - {State.SENDING, State.UNKNOWN})
        condition = f"state IN ({marks}) AND scope = ? AND NOT pruned{are_open}"
        return self.all(condition, *states, scope)

    def of_tasks(
        self, scope: str, states: tuple[State, ...], task_ids: tuple[str, ...]
    ) -> list[Intent]:
        """The rows of a scope, in these states or in any, that answer for one of these tasks."""
        found: list[Intent] = []
        of_states = f" AND state IN ({', '.join('?' * len(states))})" * bool(states)
        for begin in range(0, len(task_ids), _TASKS_AT_ONCE):
            some = task_ids[begin : begin + _TASKS_AT_ONCE]
            condition = f"task_id IN ({', '.join('?' * len(some))}) AND scope = ?{of_states}"
            found += self.all(condition, *some, scope, *states)
        return found

    def with_fate(self, row: Row | None) -> tuple[Row | None, bool]:
        """A row, and whether it is abandoned."""
        return row, row is not None and self.is_abandoned(row)

    def is_abandoned(self, row: Row) -> bool:
        """Whether a dead owner is SENDING it still."""
        return row.intent.state is State.SENDING and not self._owners.is_alive(row.owner)

    def abandoned(self) -> list[str]:
        """The dead owners of what is still SENDING."""
        found = self.connection.execute(
            "SELECT DISTINCT owner FROM intents WHERE state = ? AND over_at IS NULL",
            (State.SENDING,),
        )
        return [owner for (owner,) in found.fetchall() if not self._owners.is_alive(owner)]

    def _row(self, found: tuple[str, ...]) -> Row:
        known = self._known.get(found[0])
        if known is not None and found[2] is not None and found[8:13] == _standing(known):
            return Row(known, found[14])
        intent = Intent(
            intent_id=found[0],
            scope=found[1],
            request=self._request(found[0], found[2]),
            fingerprint=found[3],
            token_hash=found[4],
            created_at=float(found[5]),
            key=found[6],
            metadata={} if found[7] == "{}" else json.loads(found[7]),
            state=State(found[8]),
            task_id=found[9],
            other_task_ids=tuple((found[10] or "").split()),
            accepted_at=None if found[11] is None else float(found[11]),
            taken=bool(found[12]),
            supersedes=found[13],
        )
        return Row(intent, found[14])

    def _request(self, intent_id: str, stored: str | None) -> Request | None:
        """What was asked for. It never changes, so it is not read twice without need."""
        if (sender := self._senders.get(intent_id)) is not None:
            return sender.intent.request
        if stored is not None and (known := self._known.get(intent_id)) is not None:
            return known.request
        return _request(stored)

    def _remember(self, row: Intent) -> None:
        """Keep a row in mind that was bought: it will be asked for, and moved on, again."""
        is_secret = self._seal.is_used and row.intent_id in self._senders
        if row.state not in BOUGHT or is_secret:
            return
        self._known.pop(row.intent_id, None)
        if len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[row.intent_id] = row

    # ─── the protocol ────────────────────────────────────────────────────────────────────────────

    def find(
        self,
        *,
        intent_id: str | None,
        token_hash: str | None,
        task_id: str | None,
        key: tuple[str, str] | None,
        fingerprint: str | None,
    ) -> Row | None:
        """See `Journal.find`."""
        if token_hash is not None:
            row = self.by("token_hash = ?", token_hash)
        elif task_id is not None:
            row = self.by_task(task_id)
        elif key is not None:
            row = self.by("scope = ? AND key = ? AND holds_key", *key)
        else:
            row = self.by("intent_id = ?", intent_id)
        if row is None:
            return None
        self._remember(row.intent)
        return Row(self._seal.shown(row.intent, fingerprint), row.owner)

    def claim(self, intent: Intent) -> Intent:
        """See `Journal.claim`."""
        old = self._get(intent.supersedes) if intent.supersedes is not None else None
        if old is not None and old.state is not State.UNKNOWN:
            return old
        holder = self._holder(intent)
        if holder is not None:
            if holder.intent_id != intent.supersedes and holder.state is not State.REFUSED:
                return self._seal.shown(holder, intent.fingerprint)
            self._set(holder.intent_id, {"holds_key": 0})
        if old is not None:
            self._write(old, moved(old, State.SUPERSEDED, None, time.time(), taken=False))
        self._insert(intent)
        return intent

    def advance(
        self, intent_id: str, to: State | None, task_id: str | None, *, taken: bool
    ) -> Intent:
        """See `Journal.advance`."""
        now = time.time()
        sender = self._senders.get(intent_id)
        known = sender.intent if sender is not None else self._known.get(intent_id)
        if known is not None:
            after = moved(known, to, task_id, now, taken=taken)
            if self._write(known, after, is_as_known=True):
                self._remember(after)
                return after
        before = self._get(intent_id)
        after = moved(before, to, task_id, now, taken=taken)
        if to is State.UNKNOWN and self._took_key_from(before):
            self._set(intent_id, {"holds_key": 1})
        self._write(before, after)
        self._remember(after)
        return after

    def take_over(self, scope: str) -> list[Intent]:
        """See `Journal.take_over`."""
        mine = self._owners.mine()
        self.bury()
        self._bury_own(scope)
        for owner in self._others(scope):
            if not self._owners.is_alive(owner):
                self.connection.execute(
                    "UPDATE intents SET owner = ? WHERE scope = ? AND owner = ? "
                    "AND over_at IS NULL",
                    (mine, scope, owner),
                )
        self._owners.sweep()
        return self.all(
            f"state IN ({', '.join('?' * len(BOUGHT))}) AND scope = ? AND owner = ? "
            "AND NOT taken AND over_at IS NULL",
            *sorted(BOUGHT),
            scope,
            mine,
        )

    def bury(self) -> None:
        """What dead owners were sending is UNKNOWN."""
        for owner in self.abandoned():
            for row in self.all(
                "state = ? AND over_at IS NULL AND owner = ?", State.SENDING, owner
            ):
                self._write(row, moved(row, State.UNKNOWN, None, time.time(), taken=False))

    def _bury_own(self, scope: str) -> None:
        """What a closed event loop of this process was sending is UNKNOWN, too."""
        for intent_id, sender in list(self._senders.items()):
            row = self.by("intent_id = ?", intent_id) if sender.loop.is_closed() else None
            if row is not None and row.intent.scope == scope:
                after = moved(row.intent, State.UNKNOWN, None, time.time(), taken=False)
                self._write(row.intent, after)

    def _others(self, scope: str) -> list[str]:
        found = self.connection.execute(
            "SELECT DISTINCT owner FROM intents WHERE scope = ? AND over_at IS NULL", (scope,)
        )
        return [owner for (owner,) in found.fetchall() if not self._owners.is_mine(owner)]

    # ─── pruning ─────────────────────────────────────────────────────────────────────────────────

    def prune(self, before: float) -> int:
        """Remove some rows that were over before a point in time; how many.

        Those that hold a key which must stay spent become tombstones.
        """
        found = self.connection.execute(
            "SELECT number, holds_key AND state <> ? FROM intents "
            "WHERE over_at IS NOT NULL AND NOT pruned AND over_at < ? LIMIT ?",
            (State.REFUSED, before, _PRUNED_AT_ONCE),
        ).fetchall()
        for number, is_spent in found:
            self.connection.execute(_BURY if is_spent else _REMOVE, (number,))
        return len(found)

    # ─── writing ─────────────────────────────────────────────────────────────────────────────────

    def _get(self, intent_id: str) -> Intent:
        row = self.by("intent_id = ?", intent_id)
        if row is None:
            raise JournalError(f"the journal holds no intent {intent_id!r:.60}")
        return self._alive(row)

    def _holder(self, intent: Intent) -> Intent | None:
        if intent.key is None:
            return None
        row = self.by("scope = ? AND key = ? AND holds_key", intent.scope, intent.key)
        return self._alive(row) if row is not None else None

    def _alive(self, row: Row) -> Intent:
        """The intent; what a dead owner is SENDING is UNKNOWN."""
        intent = row.intent
        if not self.is_abandoned(row):
            return intent
        after = moved(intent, State.UNKNOWN, None, time.time(), taken=False)
        self._write(intent, after)
        return after

    def _insert(self, intent: Intent) -> None:
        request = None
        if intent.request is not None and not self._seal.is_used:
            request = _json(request_to_json(intent.request))
        values = (
            intent.intent_id,
            intent.scope,
            request,
            self._seal.stored(intent.fingerprint),
            intent.token_hash,
            intent.created_at,
            intent.key,
            _json(dict(intent.metadata)),
            intent.state,
            intent.task_id,
            " ".join(intent.other_task_ids) or None,
            intent.accepted_at,
            intent.taken,
            intent.supersedes,
            self._owners.mine(),
        )
        self.connection.execute(_INSERT, (*values, intent.key is not None))

    def _write(self, before: Intent, after: Intent, *, is_as_known: bool = False) -> bool:
        """Write what has changed of a row; whether anything was written.

        Args:
            before: the row.
            after: what becomes of it.
            is_as_known: whether the row that is there must be the one before, in all that matters.
        """
        if after is before:
            return False
        changes: dict[str, object] = {
            name: getattr(after, name)
            for name in ("state", "task_id", "accepted_at", "taken")
            if getattr(after, name) != getattr(before, name)
        }
        if after.other_task_ids != before.other_task_ids:
            changes["other_task_ids"] = " ".join(after.other_task_ids)
        if is_over(after) != is_over(before):
            changes["over_at"] = time.time() if is_over(after) else None
        if not is_as_known:
            return self._set(after.intent_id, changes)
        return self._set(after.intent_id, changes, _AS_KNOWN, _standing(before))

    def _took_key_from(self, row: Intent) -> bool:
        """Whether what superseded a row, and was not bought, held its key; it has lost it then."""
        done = self.connection.execute(
            "UPDATE intents SET holds_key = 0 "
            "WHERE scope = ? AND key = ? AND holds_key AND supersedes = ? AND task_id IS NULL",
            (row.scope, row.key, row.intent_id),
        )
        return done.rowcount > 0

    def _set(
        self,
        intent_id: str,
        changes: Mapping[str, object],
        condition: str = "",
        values: tuple[object, ...] = (),
    ) -> bool:
        columns = ", ".join(f"{name} = ?" for name in changes)
        done = self.connection.execute(
            f"UPDATE intents SET {columns} WHERE intent_id = ?{condition}",  # noqa: S608 - ours
            (*changes.values(), intent_id, *values),
        )
        return done.rowcount > 0


_REMOVE = "DELETE FROM intents WHERE number = ?"
_BURY = (
    "UPDATE intents SET pruned = 1, request = NULL, metadata = '{}', token_hash = NULL, "
    "other_task_ids = NULL, owner = '' WHERE number = ?"
)


def _standing(row: Intent) -> tuple[object, ...]:
    """What of a row can change, but for pruning: the columns from `state` to `taken`."""
    others = " ".join(row.other_task_ids) or None
    return row.state, row.task_id, others, row.accepted_at, row.taken


def is_over(row: Intent) -> bool:
    """Whether nothing is expected of a row any more."""
    return row.state in _OVER or (row.taken and row.state in BOUGHT)


_json = json.JSONEncoder(separators=(",", ":")).encode


def _request(stored: str | None) -> Request | None:
    """What was asked for; None if it was not stored, or this release would not take it any more."""
    if stored is None:
        return None
    try:
        return request_from_json(json.loads(stored))
    except (InvalidRequestError, ValueError) as error:
        _log.warning("a stored request cannot be read back; its row is kept: %s", error)
        return None
