"""The rows and slots in an SQLite database; `Table` has the rules."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import attrs

from ..._wire.bodies import request_to_json
from ...errors import JournalError
from ..protocol import DAY, JournalStats, RowFilter
from ..slots import Account, Slot
from ..states import BOUGHT, OVER, RUNNING, Intent, State
from ..stored import details_to_json, is_same, loop_clock, read_details, read_request, seal, to_json
from ..table import Table
from .folder import Folder
from .locks import Owners

# Columns with the same name and value as an attribute of `Intent`.
_PLAIN = (
    *("intent_id", "scope", "key", "fingerprint", "token_hash", "created_at", "task_id"),
    *("accepted_at", "ended_at", "supersedes", "owner"),
)
_COLUMNS = (*_PLAIN, "metadata", "state", "other_task_ids", "taken", "holds_key")
_SELECT = (
    f"SELECT intents.number, request, details, {', '.join(_COLUMNS)} "
    "FROM intents LEFT JOIN texts USING (number)"
)
_TOMBSTONE = (
    "UPDATE intents SET pruned = 1, state = ?, metadata = '{}', token_hash = NULL, "
    "other_task_ids = NULL, ended_at = NULL, taken = 1, supersedes = NULL, owner = '' "
    "WHERE intent_id = ?"
)
_PRUNABLE = (
    "NOT pruned AND coalesce(ended_at, accepted_at) < ? AND (ended_at IS NOT NULL OR state IN "
    "('accepted', 'called_back'))"
)
_OPEN = (
    "NOT taken AND NOT pruned AND state NOT IN ('refused', 'superseded', 'dismissed', 'expired')"
)
_IS_PENDING = "state IN ('sending', 'resting')"
_PRUNED_AT_ONCE = 500
_HAS_NOTE = "EXISTS (SELECT 1 FROM json_each(metadata) AS n WHERE n.key = ? AND n.value = ?)"


class SQLiteTable(Table):
    """The rows and slots, through one connection, in the thread that uses it.

    Methods that write must run in a transaction, under the journal's lock.

    Args:
        connection: to the database.
        owners: the owners of rows.
        folder: where the database is; its key seals the fingerprints of rows without prompts.
        hides_prompts: whether to write rows without prompts.
    """

    def __init__(
        self, connection: Connection, owners: Owners, folder: Folder, *, hides_prompts: bool
    ) -> None:
        self.connection = connection
        self._owners = owners
        self._folder = folder
        self._secret = folder.key()
        self._hides_prompts = hides_prompts
        # The event loop of the running job's caller: it is the owner, and may have its own clock.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._others_checked_at = -1.0
        self._has_others = False

    # ─── owners and time ─────────────────────────────────────────────────────────────────────────

    @property
    def me(self) -> str:
        """See `Table`."""
        assert self.loop is not None  # noqa: S101 - every job sets it
        return self._owners.of(self.loop)

    def is_alive(self, owner: str) -> bool:
        """See `Table`."""
        return self._owners.is_alive(owner)

    @property
    def has_others(self) -> bool:
        """See `Table`; checked once a second, since it needs some system calls."""
        now = time.monotonic()
        if not 0 <= now - self._others_checked_at < 1.0:
            self._others_checked_at = now
            me = self.me
            names = (name for name in self._owners.names() if name != me)
            self._has_others = any(map(self._owners.is_alive, names))
        return self._has_others

    def now(self) -> float:
        """See `Table`: the seconds since the machine was booted, sleep included."""
        return loop_clock(self.loop) or time.clock_gettime(_BOOT_CLOCK)

    def _boot(self) -> str:
        """The id of the clock of `now`, which starts again after a reboot."""
        return "test" if loop_clock(self.loop) else _BOOT_ID

    # ─── reading ─────────────────────────────────────────────────────────────────────────────────

    def get(self, intent_id: str) -> Intent | None:
        """See `Table`."""
        return self._first("intent_id = ?", intent_id)

    def holder(self, scope: str, key: str) -> Intent | None:
        """See `Table`."""
        return self._first("scope = ? AND key = ? AND holds_key", scope, key)

    def task_holder(self, origin: str, task_id: str) -> Intent | None:
        """See `Table`."""
        return self._first("task_id = ? AND origin = ?", task_id, origin)

    def find(
        self,
        intent_id: str | None,
        token_hash: str | None,
        task_id: str | None,
        key: tuple[str, str] | None,
    ) -> Intent | None:
        """See `Table`."""
        if token_hash is not None:
            return self._first("token_hash = ?", token_hash)
        if key is not None:
            return self.holder(*key)
        if task_id is not None:
            among = "other_task_ids IS NOT NULL AND instr(' ' || other_task_ids || ' ', ?)"
            return self._first("task_id = ?", task_id) or self._first(among, f" {task_id} ")
        return self.get(intent_id or "")

    def rows(self, scope: str | None, which: RowFilter) -> list[Intent]:
        """See `Table`."""
        states, prefix = which.get("states", ()), which.get("key_prefix")
        since, taken, after = which.get("since"), which.get("taken"), which.get("after")
        where: list[str] = ["NOT pruned"]
        values: list[object] = []

        def only(condition: str, *some: object) -> None:
            where.append(condition)
            values.extend(some)

        if scope is not None:
            only("scope = ?", scope)
        if states:
            only(f"state IN ({_marks(states)})", *states)
        if prefix is not None:
            only("substr(key, 1, ?) = ?", len(prefix), prefix)
        for name, value in (which.get("metadata") or {}).items():
            only(_HAS_NOTE, name, value)
        if since is not None:
            only("created_at >= ?", since)
        if taken is not None:
            only("taken = ?", taken)
            is_open = not taken and states and not OVER.difference(BOUGHT) & set(states)
            if is_open and which.get("task_ids") is None:
                only(_OPEN)  # always true here; with it SQLite uses the small index
        if which.get("mine"):
            # Not `me`, which would make an owner and needs the lock; without an owner: no rows.
            only("owner = ?", self._owners.known(self.loop))
        if which.get("keys") is not None:
            only("holds_key")  # the index of keys has only these
        if after is not None:
            only("intents.number > (SELECT number FROM intents WHERE intent_id = ?)", after)
        for column, names in (("key", which.get("keys")), ("task_id", which.get("task_ids"))):
            if names is not None:  # one parameter for all, since SQLite limits their number
                only(f"{column} IN (SELECT value FROM json_each(?))", to_json(list(names)))
        condition = f"{' AND '.join(where)} ORDER BY intents.number LIMIT ?"
        return self._all(condition, *values, which.get("limit", 500))

    def _first(self, condition: str, *values: object) -> Intent | None:
        return next(iter(self._all(f"{condition} LIMIT 1", *values)), None)

    def _all(self, condition: str, *values: object) -> list[Intent]:
        found = self.connection.execute(f"{_SELECT} WHERE {condition}", values).fetchall()
        try:
            return [self._row(*each) for each in found]
        except (ValueError, TypeError, AttributeError) as error:
            raise JournalError(
                f"the journal contains a row that cannot be read ({error}): it is damaged, or a "
                "newer release wrote it; update midapi_async or restore the folder from a backup"
            ) from error

    def _row(self, _: int, request: str | None, details: str | None, *columns: Any) -> Intent:  # noqa: ANN401 - as SQLite gives them
        stored = dict(zip(_COLUMNS, columns, strict=True))
        stored["created_at"] = float(stored["created_at"])  # SQLite keeps in a column what it gets
        return Intent(
            **{name: stored[name] for name in _PLAIN},
            request=read_request(request),
            metadata=json.loads(stored["metadata"]),
            state=State(stored["state"]),
            other_task_ids=tuple((stored["other_task_ids"] or "").split()),
            details=read_details(details),
            taken=bool(stored["taken"]),
            holds_key=bool(stored["holds_key"]),
        )

    @staticmethod
    def _stored(row: Intent) -> dict[str, object]:
        """The columns of a row."""
        return {
            **{name: getattr(row, name) for name in _PLAIN},
            "metadata": to_json(dict(row.metadata)),
            "state": row.state,
            "other_task_ids": " ".join(row.other_task_ids) or None,
            "taken": row.taken,
            "holds_key": row.holds_key,
        }

    def is_same(self, row: Intent, fingerprint: str) -> bool:
        """See `Table`."""
        return is_same(row, fingerprint, self._secret)

    # ─── writing ─────────────────────────────────────────────────────────────────────────────────

    def insert(self, row: Intent, account: str) -> None:
        """See `Table`."""
        stored = self._stored(row) | {"account": account, "origin": row.origin}
        if self._hides_prompts:
            stored["fingerprint"] = seal(row.fingerprint, self._secret)
        cursor = self.connection.execute(
            f"INSERT INTO intents ({', '.join(stored)}) VALUES ({_marks(stored)})",
            tuple(stored.values()),
        )
        if row.request is not None and not self._hides_prompts:
            request = to_json(request_to_json(row.request))
            self.connection.execute(
                "INSERT INTO texts (number, request) VALUES (?, ?)", (cursor.lastrowid, request)
            )

    def update(self, before: Intent, after: Intent) -> None:
        """See `Table`."""
        old, new = self._stored(before), self._stored(after)
        if changes := {name: value for name, value in new.items() if old[name] != value}:
            self.connection.execute(
                f"UPDATE intents SET {', '.join(f'{name} = ?' for name in changes)} "
                "WHERE intent_id = ?",
                (*changes.values(), after.intent_id),
            )
        details = after.details
        if details is None and before.details is not None:
            self.connection.execute(
                "UPDATE texts SET details = NULL WHERE number = "
                "(SELECT number FROM intents WHERE intent_id = ?)",
                (after.intent_id,),
            )
        if details is not None and before.details is None:
            raw = details_to_json(details, hides_prompts=self._hides_prompts)
            self.connection.execute(
                "INSERT INTO texts (number, details) SELECT number, ? FROM intents "
                "WHERE intent_id = ? ON CONFLICT (number) DO UPDATE SET details = excluded.details",
                (raw, after.intent_id),
            )

    # ─── dead owners ─────────────────────────────────────────────────────────────────────────────

    def dead_owners(self) -> list[str]:
        """See `Table`."""
        found = self.connection.execute(f"SELECT DISTINCT owner FROM intents WHERE {_IS_PENDING}")
        return [owner for (owner,) in found.fetchall() if not self.is_alive(owner)]

    def resolve_orphans(self) -> None:
        """See `Table`."""
        for owner in self.dead_owners():
            for row in self._all(f"{_IS_PENDING} AND owner = ?", owner):
                self.resolved(row)

    def take_over(self, scope: str) -> None:
        """See `Journal.take_over`."""
        self.resolve_orphans()
        found = self.connection.execute(
            f"SELECT DISTINCT owner FROM intents WHERE scope = ? AND {_OPEN}",
            (scope,),
        )
        for owner in [owner for (owner,) in found.fetchall() if not self.is_alive(owner)]:
            self.connection.execute(
                f"UPDATE intents SET owner = ? WHERE scope = ? AND owner = ? AND {_OPEN}",
                (self.me, scope, owner),
            )
        self._owners.sweep()

    # ─── slots ───────────────────────────────────────────────────────────────────────────────────

    def account(self, name: str) -> Account:
        """See `Table`."""
        found = self.connection.execute(
            "SELECT paused_until, allowed, halves_from, grows_at FROM accounts "
            "WHERE account = ? AND boot = ?",
            (name, self._boot()),
        ).fetchone()
        return Account(*found) if found is not None else Account()

    def set_account(self, name: str, account: Account) -> None:
        """See `Table`."""
        self.connection.execute(
            "INSERT OR REPLACE INTO accounts (account, boot, paused_until, allowed, halves_from, "
            "grows_at) VALUES (?, ?, ?, ?, ?, ?)",
            (name, self._boot(), *attrs.astuple(account)),
        )

    def slots(self, account: str) -> list[Slot]:
        """See `Table`."""
        found = self.connection.execute(f"{_SELECT_SLOT} WHERE account = ?", (account,)).fetchall()
        boot = self._boot()
        # Slots of an earlier boot are free: booting takes longer than a slot stays busy.
        return [_slot(each) for each in found if each[1] == boot]

    def slot(self, name: str) -> tuple[Slot, str] | None:
        """See `Table`."""
        found = self.connection.execute(f"{_SELECT_SLOT} WHERE slot = ?", (name,)).fetchone()
        return (_slot(found), found[0]) if found else None

    def put_slot(self, slot: Slot, account: str) -> None:
        """See `Table`."""
        self.connection.execute(
            "DELETE FROM slots WHERE account = ? AND boot <> ?", (account, self._boot())
        )
        self.connection.execute(
            f"INSERT OR REPLACE INTO slots (account, boot, {_SLOT_COLUMNS}) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (account, self._boot(), *attrs.astuple(slot)),
        )

    def drop_slots(self, names: Sequence[str]) -> None:
        """See `Table`."""
        self.connection.executemany("DELETE FROM slots WHERE slot = ?", [(name,) for name in names])

    # ─── notes, pruning, counts ──────────────────────────────────────────────────────────────────

    def note(
        self, scope: str, kind: str, name: str, value: str | None, expires: float | None
    ) -> None:
        """See `Journal.note`."""
        self.connection.execute(
            "DELETE FROM notes WHERE scope = ? AND kind = ? AND (name = ? OR expires <= ?)",
            (scope, kind, name, time.time()),
        )
        if value is not None:
            self.connection.execute(
                "INSERT INTO notes (scope, kind, name, value, expires) VALUES (?, ?, ?, ?, ?)",
                (scope, kind, name, value, expires),
            )

    def notes(self, scope: str, kind: str) -> dict[str, str]:
        """See `Journal.notes`."""
        found = self.connection.execute(
            "SELECT name, value FROM notes WHERE scope = ? AND kind = ? "
            "AND (expires IS NULL OR expires > ?) ORDER BY rowid",
            (scope, kind, time.time()),
        )
        return dict(found.fetchall())

    def prunable(self, before: float) -> list[Intent]:
        """See `Table`."""
        return self._all(f"{_PRUNABLE} LIMIT ?", before, _PRUNED_AT_ONCE)

    def forget(self, row: Intent, leave: Intent | None) -> None:
        """See `Table`."""
        name = row.intent_id
        number = "(SELECT number FROM intents WHERE intent_id = ?)"
        self.connection.execute(f"DELETE FROM texts WHERE number = {number}", (name,))
        if leave is not None:
            self.connection.execute(_TOMBSTONE, (leave.state, name))
        else:
            self.connection.execute("DELETE FROM intents WHERE intent_id = ?", (name,))

    def check(self) -> list[str]:
        """The problems that SQLite finds in the database."""
        found = self.connection.execute("PRAGMA integrity_check").fetchall()
        return [problem for (problem,) in found if problem != "ok"]

    def stats(self) -> JournalStats:
        """See `Table`."""
        # Each state, with how many rows it has, how many of those are new or not taken, and since
        # when its oldest one is there, and its oldest task.
        found = self.connection.execute(
            "SELECT state, count(*), sum(created_at >= ?), sum(NOT taken), min(created_at), "
            "min(accepted_at) FROM intents WHERE NOT pruned GROUP BY state",
            (time.time() - DAY,),
        ).fetchall()
        of = {State(state): figures for state, *figures in found}
        pruned = self.connection.execute("SELECT count(*) FROM intents WHERE pruned").fetchone()
        return JournalStats(
            counts={state: figures[0] for state, figures in of.items()},
            last_day={state: figures[1] for state, figures in of.items() if figures[1]},
            untaken=sum(of[state][2] for state in BOUGHT & of.keys()),
            oldest_open=min((of[state][3] for state in of.keys() - OVER), default=None),
            oldest_task=min((of[state][4] for state in RUNNING & of.keys()), default=None),
            oldest_unknown=of[State.UNKNOWN][3] if State.UNKNOWN in of else None,
            spent_keys=pruned[0],
            owners=sum(map(self.is_alive, self._owners.names())),
            size=self._folder.size,
        )

    def data_version(self) -> int:
        """A number that changes when another connection writes."""
        found: int = self.connection.execute("PRAGMA data_version").fetchone()[0]
        return found


_SLOT_COLUMNS = "slot, intent_id, owner, count, per, started, ends_at, is_open"
_SELECT_SLOT = f"SELECT account, boot, {_SLOT_COLUMNS} FROM slots"

# The clock that goes on while the machine sleeps, as MidAPI does.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _slot(found: Sequence[Any]) -> Slot:
    name, intent_id, owner, count, per, started, ends_at, is_open = found[2:]
    return Slot(name, intent_id, owner, count, per, started, ends_at, bool(is_open))


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""  # macOS: slots of an earlier boot are known by a start in the future


_BOOT_ID = _boot_id()


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
