"""The rows and slots that were fetched from PostgreSQL for some jobs, and their changes.

The rules in `Table` are synchronous, and cannot wait for the server. So a job runs on what was
fetched before. If it reads anything else, `NotFetched` ends it, and it runs again once that was
fetched, too. Its writes are collected, and sent when all jobs have run.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from ..._wire.bodies import request_to_json
from ...errors import JournalError
from ..protocol import DAY, JournalStats, RowFilter
from ..slots import Account, Slot
from ..states import BOUGHT, OVER, RUNNING, Intent, State
from ..stored import details_to_json, is_same, loop_clock, read_details, read_request, seal, to_json
from ..table import Table
from . import schema

# Its columns have the same name and value as an attribute of `Intent`.
_PLAIN = (
    *("intent_id", "scope", "key", "fingerprint", "token_hash", "created_at", "task_id"),
    *("accepted_at", "ended_at", "supersedes", "owner", "metadata", "taken", "holds_key"),
)
_KINDS = ("id", "key", "token", "task", "account", "slot", "owner")
_PRUNED_AT_ONCE = 500
_CLOCK_IS_WRONG = 1.0  # seconds from the server's clock
_RECALLED = 60.0  # seconds for which the last write's state is recalled
_READS_FIRST = 1.0  # seconds without recalling after it was wrong
_MOST_ACCOUNTS = 16  # that are recalled
_TEXTS = frozenset({"request", "details"})

# What is read: its kind and its name, or an SQL statement and its arguments.
Read: TypeAlias = tuple[Any, ...]


class NotFetched(Exception):
    """A job reads something that was not fetched.

    Attributes:
        read: what to fetch.
    """

    def __init__(self, read: Read) -> None:
        self.read = read


class OwnerLost(Exception):
    """The lock of our owner is no longer held at the server."""


class PostgresTable(Table):
    """The rows and slots that some jobs of one owner use.

    Args:
        name: of the database schema.
        loop: the event loop that is the owner; it may have its own clock.
        secret: seals the fingerprints of rows without prompts.
        hides_prompts: whether to write rows without prompts.
    """

    def __init__(
        self, name: str, loop: asyncio.AbstractEventLoop, secret: bytes, *, hides_prompts: bool
    ) -> None:
        self._schema = name
        self._loop = loop
        self._secret = secret
        self._hides_prompts = hides_prompts
        self._has_others, self._others_at = False, -math.inf
        # Each account with its version and slots as our last write left it, and the server's time
        # at a moment of our own clock.
        self._left: dict[str, tuple[Account, int, dict[str, Slot]]] = {}
        self._clocks = 0.0, -math.inf
        self._recalls_from = -math.inf  # on our own clock
        self.begin("", {})

    def begin(self, me: str, unsure: Mapping[str, str]) -> None:
        """Forget everything.

        Args:
            me: the owner.
            unsure: intents that an earlier attempt of the same jobs may have written, each with the
                owner of that attempt; such rows are adopted.
        """
        self._me = me
        self._unsure = unsure
        self.is_presumed = False  # whether all of it comes from `recall`
        self.fetched: set[Read] = set()
        self.read_at = self._now = 0.0
        self._alive: dict[str, bool] = {}
        self._answers: dict[Read, list[Any]] = {}
        self._stored: dict[str, tuple[Intent, int]] = {}  # each row with its version
        self._adopted: set[str] = set()
        self._stored_slots: dict[str, tuple[Slot, str]] = {}
        self._stored_accounts: dict[str, tuple[Account, int]] = {}
        # Accounts whose times were corrected because the server's clock was set back.
        self._set_back: dict[str, Account] = {}
        self.restart()

    def restart(self) -> None:
        """Forget what the jobs have written, but not what was fetched."""
        self.is_writing = False  # whether the running job may write
        self._rows = {name: row for name, (row, _) in self._stored.items()}
        self._new: dict[str, str] = {}  # the accounts of new rows
        self._slots = dict(self._stored_slots)
        self._accounts = dict(self._set_back)
        self._limits: set[str] = set()  # accounts that `change` writes
        self._removed: list[str] = []
        self._seen: set[str] = set()  # rows on which the writes depend
        self.statements: list[tuple[Any, ...]] = []
        self.wakes = False

    # ─── what was fetched ────────────────────────────────────────────────────────────────────────

    def recall(self, reads: Collection[Read]) -> bool:
        """Presume that accounts are as our last write left them, and that nothing else is stored.

        `schema.WRITE` checks both. A slot that is open here may have ended meanwhile: what follows
        from that is safe, but an answer `Busy` may be wrong.

        Returns:
            False if it does not know all these accounts, or has been wrong a moment ago.
        """
        server_time, noted_at = self._clocks
        elapsed = time.monotonic() - noted_at
        accounts = {read[1] for read in reads if read[0] == "account"}
        is_usable = time.monotonic() >= self._recalls_from and 0.0 <= elapsed < _RECALLED
        if not is_usable or self._unsure or not accounts <= self._left.keys():
            return False
        # A little less than the server's time: nothing may be decided for a moment that has not
        # come there.
        self.read_at = self._now = server_time + elapsed * 0.999
        for name in accounts:
            account, version, slots = self._left[name]
            self._stored_accounts[name] = account, version
            self._stored_slots |= {slot.slot: (slot, name) for slot in slots.values()}
        self.fetched.update(reads)
        self.is_presumed = True
        self.restart()
        if any(slot.started > self.now() for slot, _ in self._slots.values()):
            # The server's clock was set back, which is corrected with what `LOAD` finds.
            self.begin(self._me, {})
        return self.is_presumed

    def doubt(self) -> None:
        """Recall nothing for a moment, unless the next write proves what was recalled."""
        self._recalls_from = time.monotonic() + _READS_FIRST

    def written(self, server_time: float) -> None:
        """After the commit of `change`: remember what `recall` needs."""
        self._clocks = server_time, time.monotonic()
        if self.is_presumed:
            self._recalls_from = -math.inf
        if len(self._left) > _MOST_ACCOUNTS:
            self._left.clear()
        for name in {read[1] for read in self.fetched if read[0] == "account"}:
            account, version = self._stored_accounts.get(name, (Account(), 0))
            account, version = self._accounts.get(name, account), version + (name in self._limits)
            self._left[name] = account, version, {}
        for name, (slot, of) in self._slots.items():
            if of in self._left:
                self._left[of][2][name] = slot
        for name, (_, of) in self._stored_slots.items():
            if of in self._left and name not in self._slots:
                self._left[of][2].pop(name, None)

    def forget_accounts(self) -> None:
        """Recall nothing."""
        self._left.clear()

    @staticmethod
    def load_arguments(reads: Collection[Read]) -> list[list[str]]:
        """The arguments of `schema.LOAD`."""
        named = {kind: [read[1:] for read in reads if read[0] == kind] for kind in _KINDS}
        keys = named["key"]
        return [
            [name for (name,) in named["id"]],
            [scope for scope, _ in keys],
            [key for _, key in keys],
            *([name for (name,) in named[kind]] for kind in _KINDS[2:]),
        ]

    def loaded(self, reads: Collection[Read], found: Mapping[str, Any]) -> None:
        """Take what `schema.LOAD` has found."""
        self.fetched.update(reads)
        self._now = found["now"]
        self.read_at = self.read_at or self._now
        self._take_rows(json.loads(found["rows"] or "[]"))
        for each in json.loads(found["slots"] or "[]"):
            of = each.pop("account")
            self._stored_slots[each["slot"]] = Slot(**each), of
        for each in json.loads(found["accounts"] or "[]"):
            name, version = each.pop("account"), each.pop("version")
            ahead = max(each.pop("written_at") - self.now(), 0.0)
            account = Account(**each)
            self._stored_accounts[name] = account, version
            if ahead:
                self._set_back[name] = attrs.evolve(
                    account,
                    paused_until=account.paused_until - ahead,
                    halves_from=account.halves_from - ahead,
                    grows_at=account.grows_at - ahead,
                )
        self._alive |= json.loads(found["alive"] or "{}")
        if not self._alive.get(self._me, True):
            raise OwnerLost

    def answered(self, read: Read, records: Sequence[Any]) -> None:
        """Take the answer to an SQL statement; rows are in the first column, as JSON."""
        self.fetched.add(read)
        self._answers[read] = list(records)
        if read[0].startswith("SELECT to_json"):
            self._answers[read] = self._take_rows([json.loads(each[0]) for each in records])

    def _take_rows(self, found: Sequence[dict[str, Any]]) -> list[str]:
        for stored in found:
            version = stored["version"]
            row = self._row(stored)
            if row.intent_id in self._unsure and row.owner == self._unsure[row.intent_id]:
                row = attrs.evolve(row, owner=self._me)
                self._adopted.add(row.intent_id)
            if version >= self._stored.get(row.intent_id, (row, 0))[1]:
                self._stored[row.intent_id] = row, version
            self.fetched.add(("id", row.intent_id))
        return [stored["intent_id"] for stored in found]

    @staticmethod
    def _row(stored: dict[str, Any]) -> Intent:
        try:
            return Intent(
                **{name: stored[name] for name in _PLAIN},
                request=read_request(stored["request"]),
                state=State(stored["state"]),
                other_task_ids=tuple(stored["other_task_ids"] or ()),
                details=read_details(stored["details"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise JournalError(
                f"the journal contains a row that cannot be read ({error}): it is damaged, or a "
                "newer release wrote it; update midapi_async or restore the database from a backup"
            ) from error

    def _need(self, *read: str) -> None:
        if read not in self.fetched:
            raise NotFetched(read)

    def _query(self, statement: str, *values: object) -> list[Any]:
        read = schema.sql(statement, self._schema), *values
        if read not in self._answers:
            raise NotFetched(read)
        return self._answers[read]

    def _all(self, condition: str, *values: object) -> list[Intent]:
        names = self._query(
            f"SELECT to_json(i) FROM SCHEMA.intents AS i WHERE {condition}", *values
        )
        return [self._rows[name] for name in names if name in self._rows]

    def _see(self, row: Intent | None) -> Intent | None:
        if row is not None and self.is_writing:
            self._seen.add(row.intent_id)
        return row

    # ─── owners and time ─────────────────────────────────────────────────────────────────────────

    @property
    def me(self) -> str:
        """See `Table`."""
        return self._me

    def is_alive(self, owner: str) -> bool:
        """See `Table`."""
        if owner == self._me:
            return True
        if owner not in self._alive:
            raise NotFetched(("owner", owner))
        return self._alive[owner]

    @property
    def has_others(self) -> bool:
        """See `Table`; checked once a second, unless what was recalled tells of no others."""
        if not self.is_presumed and not 0 <= time.monotonic() - self._others_at < 1.0:
            self._has_others = any(owner != self._me for owner in self._living())
            self._others_at = time.monotonic()
        return self._has_others

    def _living(self) -> list[str]:
        found = self._query(f"SELECT owner FROM SCHEMA.owners WHERE NOT ({schema.IS_DEAD})")
        return [owner for (owner,) in found]

    def now(self) -> float:
        """See `Table`: the server's clock."""
        return loop_clock(self._loop) or self._now

    def today(self) -> float:
        """See `Table`."""
        return self._now

    # ─── reading ─────────────────────────────────────────────────────────────────────────────────

    def get(self, intent_id: str) -> Intent | None:
        """See `Table`."""
        self._need("id", intent_id)
        return self._see(self._rows.get(intent_id))

    def holder(self, scope: str, key: str) -> Intent | None:
        """See `Table`."""
        self._need("key", scope, key)
        rows = (row for row in self._rows.values() if row.key == key and row.scope == scope)
        return self._see(next((row for row in rows if row.holds_key), None))

    def task_holder(self, origin: str, task_id: str) -> Intent | None:
        """See `Table`."""
        self._need("task", task_id)
        rows = (row for row in self._rows.values() if row.task_id == task_id)
        return self._see(next((row for row in rows if row.origin == origin), None))

    def find(
        self,
        intent_id: str | None,
        token_hash: str | None,
        task_id: str | None,
        key: tuple[str, str] | None,
    ) -> Intent | None:
        """See `Table`."""
        if key is not None:
            return self.holder(*key)
        if intent_id is not None:
            return self.get(intent_id)
        if token_hash is not None:
            self._need("token", token_hash)
            return next((row for row in self._rows.values() if row.token_hash == token_hash), None)
        self._need("task", task_id or "")
        named = [
            row for row in self._rows.values() if task_id in (row.task_id, *row.other_task_ids)
        ]
        return min(named, key=lambda row: row.task_id != task_id, default=None)

    def rows(self, scope: str | None, which: RowFilter) -> list[Intent]:
        """See `Table`."""
        states, keys, task_ids = which.get("states"), which.get("keys"), which.get("task_ids")
        metadata, taken = which.get("metadata"), which.get("taken")
        conditions: Mapping[str, object | None] = {
            "scope = {}": scope,
            "state = ANY({})": tuple(map(str, states)) if states else None,
            "holds_key AND key = ANY({})": tuple(keys) if keys is not None else None,
            "task_id = ANY({})": tuple(task_ids) if task_ids is not None else None,
            "starts_with(key, {})": which.get("key_prefix"),
            "metadata @> {}::text::jsonb": to_json(dict(metadata)) if metadata else None,
            "created_at >= {}": which.get("since"),
            "taken = {}": taken,
            "owner = {}": self._me if which.get("mine") else None,
            "number > (SELECT number FROM SCHEMA.intents WHERE intent_id = {})": which.get("after"),
        }
        used = [(text, value) for text, value in conditions.items() if value is not None]
        where = [text.format(f"${n}") for n, (text, _) in enumerate(used, 1)]
        if taken is False and states and not OVER.difference(BOUGHT) & set(states):
            where.append(schema.OPEN)  # implied by the rest; PostgreSQL then uses the partial index
        condition = " AND ".join(["owner <> ''", *where])
        limit = which.get("limit", 500)
        return self._all(
            f"{condition} ORDER BY number LIMIT ${len(used) + 1}",
            *(value for _, value in used),
            limit,
        )

    def is_same(self, row: Intent, fingerprint: str) -> bool:
        """See `Table`."""
        return is_same(row, fingerprint, self._secret)

    # ─── writing ─────────────────────────────────────────────────────────────────────────────────

    def insert(self, row: Intent, account: str) -> None:
        """See `Table`."""
        if self._hides_prompts:
            row = attrs.evolve(row, request=None, fingerprint=seal(row.fingerprint, self._secret))
        ahead = time.time() - self._now
        if abs(ahead) > _CLOCK_IS_WRONG:  # this machine's clock; the row may be read by others
            row = attrs.evolve(row, created_at=row.created_at - ahead)
        self._new[row.intent_id] = account
        self._rows[row.intent_id] = row
        self.fetched.add(("id", row.intent_id))

    def update(self, before: Intent, after: Intent) -> None:
        """See `Table`."""
        self._rows[after.intent_id] = after
        woken = OVER | {State.CALLED_BACK}
        if after.state is not before.state and (
            after.state in woken or (before.state is State.UNKNOWN and after.state in BOUGHT)
        ):
            self.wakes = True

    def forget(self, row: Intent, leave: Intent | None) -> None:
        """See `Table`."""
        self._seen.add(row.intent_id)
        if leave is not None:
            self._rows[row.intent_id] = leave
        else:
            del self._rows[row.intent_id]
            self._removed.append(row.intent_id)

    def change(self, *, presumed: bool = False) -> str | None:
        """The collected writes as JSON for `schema.WRITE`; None if there are none.

        Args:
            presumed: whether the answer may be NULL, because what was recalled is wrong.
        """
        rows = []
        for name, row in self._rows.items():
            before, version = self._stored.get(name, (None, 0))
            if row is not before or name in self._adopted:
                rows.append(self._columns(row, version))
        slots = [each for each in self._slots.items() if self._stored_slots.get(each[0]) != each[1]]
        free = [name for name in self._stored_slots if name not in self._slots]
        # A new slot, like a new limit, depends on all slots of the account: compare its version.
        names = {of for name, (_, of) in slots if name not in self._stored_slots}
        self._limits = names | self._accounts.keys()
        accounts = []
        for name in sorted(self._limits):
            before_, version = self._stored_accounts.get(name, (Account(), 0))
            values = attrs.asdict(self._accounts.get(name, before_))
            values |= {"account": name, "version": version + 1, "written_at": self.now()}
            accounts.append(values)
        if not (rows or slots or free or accounts or self._removed):
            return None
        seen = self._seen.union(row["intent_id"] for row in rows) & self._stored.keys()
        changes = {
            "presumed": presumed,
            "read_at": self.read_at,
            "seen": [{"intent_id": name, "version": self._stored[name][1]} for name in seen],
            # Rows that give up a key or a task id come before rows that take it.
            "rows": sorted(rows, key=_takes_names),
            "removed": self._removed,
            "slots": [{"account": of, **attrs.asdict(slot)} for _, (slot, of) in slots],
            "free": free,
            "accounts": accounts,
        }
        return to_json({name: value for name, value in changes.items() if value})

    def _columns(self, row: Intent, version: int) -> dict[str, Any]:
        details = row.details
        columns = {
            **{name: getattr(row, name) for name in _PLAIN},
            "version": version + 1,
            "metadata": dict(row.metadata),
            "state": row.state,
            "other_task_ids": list(row.other_task_ids) or None,
            "details": details and details_to_json(details, hides_prompts=self._hides_prompts),
        }
        if version:
            return {name: columns[name] for name in ("intent_id", "version", *schema.CHANGING)}
        request = row.request and to_json(request_to_json(row.request))
        account = self._new[row.intent_id]
        return columns | {"request": request, "account": account, "origin": row.origin}

    # ─── dead owners ─────────────────────────────────────────────────────────────────────────────

    def dead_owners(self) -> list[str]:
        """See `Table`."""
        return self._dead(schema.PENDING)

    def _dead(self, condition: str, *values: object) -> list[str]:
        found = self._query(
            f"SELECT owner FROM (SELECT DISTINCT owner FROM SCHEMA.intents WHERE {condition}) AS o "
            f"WHERE {schema.IS_DEAD}",
            *values,
        )
        dead = [owner for (owner,) in found if owner != self._me]
        self._alive |= dict.fromkeys(dead, False)
        return dead

    def resolve_orphans(self) -> None:
        """See `Table`."""
        if dead := self.dead_owners():
            for row in self._all(f"{schema.PENDING} AND owner = ANY($1)", tuple(dead)):
                self.resolved(row)

    def take_over(self, scope: str) -> None:
        """See `Journal.take_over`."""
        self.resolve_orphans()
        if dead := self._dead(f"scope = $1 AND {schema.OPEN}", scope):
            self._execute(
                "UPDATE SCHEMA.intents SET owner = $1, version = version + 1 WHERE scope = $2 "
                f"AND owner = ANY($3) AND {schema.OPEN}",
                *(self._me, scope, dead),
            )
        self._execute(f"DELETE FROM SCHEMA.owners WHERE {schema.IS_DEAD}")

    def _execute(self, statement: str, *values: object) -> None:
        self.statements.append((schema.sql(statement, self._schema), *values))

    # ─── slots ───────────────────────────────────────────────────────────────────────────────────

    def account(self, name: str) -> Account:
        """See `Table`."""
        self._need("account", name)
        stored = self._stored_accounts.get(name)
        return self._accounts.get(name) or (stored[0] if stored else Account())

    def set_account(self, name: str, account: Account) -> None:
        """See `Table`."""
        self._accounts[name] = account

    def slots(self, account: str) -> list[Slot]:
        """See `Table`."""
        self._need("account", account)
        return [slot for slot, of in self._slots.values() if of == account]

    def slot(self, name: str) -> tuple[Slot, str] | None:
        """See `Table`."""
        if name not in self._stored_slots:
            self._need("slot", name)
        return self._slots.get(name)

    def put_slot(self, slot: Slot, account: str) -> None:
        """See `Table`."""
        self._slots[slot.slot] = slot, account

    def drop_slots(self, names: Sequence[str]) -> None:
        """See `Table`."""
        for name in names:
            self._slots.pop(name, None)

    # ─── notes, pruning, counts ──────────────────────────────────────────────────────────────────

    def note(
        self, scope: str, kind: str, name: str, value: str | None, expires: float | None
    ) -> None:
        """See `Journal.note`."""
        self._execute(
            "DELETE FROM SCHEMA.notes WHERE scope = $1 AND kind = $2 AND (name = $3 "
            "OR expires <= extract(epoch FROM clock_timestamp())::float8)",
            *(scope, kind, name),
        )
        if value is not None:
            self._execute(
                "INSERT INTO SCHEMA.notes (scope, kind, name, value, expires) "
                "VALUES ($1, $2, $3, $4, $5) ON CONFLICT (scope, kind, name) "
                "DO UPDATE SET value = excluded.value, expires = excluded.expires",
                *(scope, kind, name, value, expires),
            )

    def notes(self, scope: str, kind: str) -> dict[str, str]:
        """See `Journal.notes`."""
        found = self._query(
            "SELECT name, value FROM SCHEMA.notes WHERE scope = $1 AND kind = $2 AND (expires IS "
            "NULL OR expires > extract(epoch FROM clock_timestamp())::float8) ORDER BY number",
            *(scope, kind),
        )
        return dict(map(tuple, found))

    def prunable(self, before: float) -> list[Intent]:
        """See `Table`."""
        return self._all(
            f"owner <> '' AND {schema.ENDED} < $1 AND (ended_at IS NOT NULL OR state IN "
            "('accepted', 'called_back')) LIMIT $2",
            *(before, _PRUNED_AT_ONCE),
        )

    def stats(self) -> JournalStats:
        """See `Table`."""
        # Each state, with how many rows it has, how many of those are new or not taken, and since
        # when its oldest one is there, its oldest task, and whether any row is ours.
        found = self._query(
            "SELECT state, count(*), count(*) FILTER (WHERE created_at >= extract(epoch FROM "
            f"clock_timestamp())::float8 - {DAY}), count(*) FILTER (WHERE NOT taken), "
            "min(created_at), min(accepted_at), bool_or(owner = $1) "
            "FROM SCHEMA.intents WHERE owner <> '' GROUP BY state",
            self._me,
        )
        of = {State(state): figures for state, *figures in found}
        [(pruned, size)] = self._query(
            "SELECT count(*), (SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c JOIN "
            "pg_namespace AS n ON n.oid = relnamespace WHERE nspname = $1 AND relkind = 'r')::int8 "
            "FROM SCHEMA.intents WHERE owner = ''",
            self._schema,
        )
        living = set(self._living())
        if not any(figures[5] for figures in of.values()):
            living.discard(self._me)  # a command that only reads is not a running program
        return JournalStats(
            counts={state: figures[0] for state, figures in of.items()},
            last_day={state: figures[1] for state, figures in of.items() if figures[1]},
            untaken=sum(of[state][2] for state in BOUGHT & of.keys()),
            oldest_open=min((of[state][3] for state in of.keys() - OVER), default=None),
            oldest_task=min((of[state][4] for state in RUNNING & of.keys()), default=None),
            oldest_unknown=of[State.UNKNOWN][3] if State.UNKNOWN in of else None,
            spent_keys=pruned,
            owners=len(living),
            size=size,
        )

    def mark(self) -> tuple[int, int, int]:
        """The number of writes, and the oldest and the next transaction id of the snapshot."""
        [(writes, oldest, next_one, is_dead)] = self._query(
            "SELECT last_value, pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8, "
            f"{schema.LOCK_IS_FREE.format('$1::text')} "
            "FROM SCHEMA.writes, pg_current_snapshot() AS s",
            self._me,
        )
        if is_dead:  # its connection ended, so notifications no longer arrive
            raise OwnerLost
        return writes, oldest, next_one


def _takes_names(columns: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    is_new = columns["version"] == 1
    return is_new, columns["holds_key"], columns["task_id"] is not None
