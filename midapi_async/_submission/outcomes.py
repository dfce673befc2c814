"""Writes how submissions ended into the journal, and gives it to the callers that wait for it.

The journal may fail just when an outcome is known and MidAPI has been paid. Therefore the outcome
counts in this process at once, and the write is repeated every second until it succeeds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import attrs

from .._runtime.background import OwnedTasks
from .._runtime.clock import Clock
from ..errors import (
    ClientClosed,
    InvalidRequestError,
    JournalError,
    MidAPIError,
    SubmissionUnknown,
    TaskExpired,
    about,
    process_of,
    shown,
)
from ..events import Accepted, Event, Failed
from ..journal import BOUGHT, PENDING, Intent, Journal, Standing, State
from ..journal.watcher import Watcher

_log = logging.getLogger("midapi_async.submission")

_RECHECK_INTERVAL = 0.05  # seconds between two reads of a row that is waited for
_REWRITE_AFTER = 1.0  # seconds until a failed write of an outcome is tried again
_TWO_TASKS = "intent %s has two tasks, %s and %s: both may have been paid for"

# Why an intent is unknown that some process has sent before; the journal does not store it.
_SENT_BEFORE = (
    "it was sent earlier, and its answer was lost, or the program that sent it ended before the "
    "answer came"
)
# What has become of an intent that has no task and will not get one, and what to do.
_NO_TASK = {
    State.REFUSED: "nothing was bought by intent {}. Submit its request again if you still want it",
    State.DISMISSED: "you have dismissed intent {}{}",
    State.SUPERSEDED: "intent {} was submitted again. Wait for the intent that replaced it",
    State.EXPIRED: "MidAPI has deleted the results of intent {}{}",
}

# The accepted row, or the row that has the key, or an error. Cancelled if the last caller left
# before anything was bought.
Outcome = asyncio.Future[Intent | Standing]


@attrs.define(eq=False, repr=False, kw_only=True)
class OutcomeRecorder:
    """Writes the outcomes of submissions, and waits for those of other processes.

    Args:
        journal: stores the intents.
        watcher: watches the journal for changes.
        longest_post: seconds of the loop that a POST may take.
        has_receiver: whether callbacks reach this client.
        report: called with each event.
        clock: the client's clock.

    Attributes:
        outcomes: of the submissions of this client that have not ended, by intent id.
        is_stopped: whether `wait_for_change` returns the row as it is, without waiting.
        unknown_count: how many submissions have become unknown here.
    """

    _journal: Journal
    _watcher: Watcher
    _longest_post: float
    _has_receiver: bool
    _report: Callable[[Event], object]
    _clock: Clock
    _rewrites: OwnedTasks = attrs.field(factory=OwnedTasks, init=False)
    # The callers in `wait_for_change`.
    _wakeups: set[asyncio.Event] = attrs.field(factory=set, init=False)
    # Outcomes that are not in the journal yet, by intent id.
    _unwritten: dict[str, Intent] = attrs.field(factory=dict, init=False)
    # Intents, each with a task that is not its own.
    _disowned: set[tuple[str, str]] = attrs.field(factory=set, init=False)
    _closed: asyncio.Future[None] = attrs.field(factory=asyncio.Future, init=False)
    outcomes: dict[str, Outcome] = attrs.field(factory=dict, init=False)
    is_stopped: bool = attrs.field(default=False, init=False)
    unknown_count: int = attrs.field(default=0, init=False)

    def report(self, kind: type[Event], intent: Intent, **facts: object) -> None:
        """Report an event about an intent."""
        names: dict[str, Any] = {"key": intent.key, "intent_id": intent.intent_id, **facts}
        self._report(kind(task_id=intent.task_id, **names))

    # ─── what a row means for its callers ────────────────────────────────────────────────────────

    def require_task(self, row: Intent) -> Intent:
        """Return the row if its task is known, else raise the error for its state."""
        if row.state in BOUGHT:
            return row
        error: MidAPIError
        if row.state is State.UNKNOWN:
            error = self.unknown_error(row, _SENT_BEFORE)
        elif row.state is State.EXPIRED and row.task_id is not None:
            error = TaskExpired(row.task_id)
        elif row.state in PENDING:
            error = ClientClosed()
        else:
            used = f", so its key {shown(row.key)} stays used. Use another key" if row.key else ""
            problem = _NO_TASK[row.state].format(row.intent_id, used)
            error = InvalidRequestError({"key" if row.key else "intent_id": problem})
        raise about(error, key=row.key, intent_id=row.intent_id)

    def unknown_error(self, intent: Intent, reason: str = "") -> SubmissionUnknown:
        """The error for an intent of which it cannot be known whether it was accepted."""
        can_settle = intent.token_hash is not None and self._has_receiver
        candidates = intent.other_task_ids
        return SubmissionUnknown(intent.intent_id, intent.key, can_settle, reason, candidates)

    # ─── outcomes of this client's POSTs ─────────────────────────────────────────────────────────

    async def _record(
        self, intent: Intent, to: State, *, slot: str | None, task_id: str | None = None
    ) -> Intent:
        """Write an outcome; return the row as it is then.

        If the journal fails, the outcome is returned all the same, and is written later.
        """
        write = partial(self._journal.advance, intent.intent_id, to, slot=slot, task_id=task_id)
        try:
            return await write()
        except Exception:  # noqa: BLE001 - whatever a journal raises, the outcome must not be lost
            row = attrs.evolve(intent, state=to, task_id=task_id, accepted_at=time.time())
            self._unwritten.setdefault(intent.intent_id, row)  # a callback's, of `bind`, stays
            self.wake()
            self.keep_trying(write, row)
            _log.log(
                logging.CRITICAL if task_id else logging.ERROR,
                "intent %s is %s%s, but writing the journal failed; trying again every second",
                intent.intent_id,
                to,
                f" and its task {task_id} was paid for" if task_id else "",
                exc_info=True,
            )
            return row

    async def accepted(self, intent: Intent, slot: str | None, task_id: str) -> Intent:
        """Record that MidAPI has answered a POST with a task's id; return the row.

        Raises:
            SubmissionUnknown: the task belongs to another intent.
        """
        row = await self._record(intent, State.ACCEPTED, slot=slot, task_id=task_id)
        if row.task_id is None:
            _log.critical(
                "MidAPI's answer for intent %s names task %s, which belongs to another intent: it "
                "cannot be known what was bought",
                row.intent_id,
                task_id,
            )
            self.unknown_count += 1
            raise self.unknown_error(row, f"its answer named task {task_id} of another intent")
        if task_id in row.other_task_ids:
            _log.critical(_TWO_TASKS, row.intent_id, row.task_id, task_id)
        elif row.task_id != task_id:
            _log.critical(
                "MidAPI's answer for intent %s, which has task %s, names task %s of another intent",
                row.intent_id,
                row.task_id,
                task_id,
            )
        return row

    async def refused(self, intent: Intent, slot: str | None) -> Intent | None:
        """Record that nothing was bought; return the row if a callback has shown the opposite.

        If the process dies before this is written, the intent becomes UNKNOWN.
        """
        row = await self._record(intent, State.REFUSED, slot=slot)
        return row if row.state in BOUGHT else None

    async def unknown(self, intent: Intent, slot: str | None, reason: str) -> Intent:
        """Record that a POST may have been accepted; return the row if a callback has shown it.

        Raises:
            SubmissionUnknown: no callback has come.
        """
        row = await self._record(intent, State.UNKNOWN, slot=slot)
        if row.state in BOUGHT:
            return row
        self.unknown_count += 1
        _log.warning("it cannot be known whether intent %s was accepted: %s", row.intent_id, reason)
        raise self.unknown_error(row, reason)

    def keep_trying(
        self, write: Callable[[], Awaitable[object]], row: Intent | None = None
    ) -> None:
        """In the background, repeat a failed write every second until it succeeds, or `aclose`."""
        self._rewrites.start(self._write_until_it_succeeds(write, row))

    async def _write_until_it_succeeds(
        self, write: Callable[[], Awaitable[object]], row: Intent | None = None
    ) -> None:
        """Repeat a failed write every second until it succeeds or the client closes."""
        while not self._closed.done():
            await asyncio.wait({self._closed}, timeout=_REWRITE_AFTER)
            with suppress(Exception):
                await write()
                if row is not None and self._unwritten.get(row.intent_id) is row:
                    del self._unwritten[row.intent_id]
                return

    # ─── tasks that callbacks, records or the user have named ────────────────────────────────────

    async def bind(self, row: Intent, task_id: str) -> Intent:
        """Accept a task for an intent, after a callback or the user has named it.

        Returns:
            The row; it has no task if that is another intent's, or if the user has dismissed the
            intent. A dismissed one keeps the task in ``other_task_ids``.

        Raises:
            JournalError: it cannot be written; callers that wait in this client still get the task.
        """
        now, is_news = time.time(), row.state is State.UNKNOWN
        bound = attrs.evolve(row, state=State.ACCEPTED, task_id=task_id, accepted_at=now)
        try:
            bound = await self._journal.advance(row.intent_id, State.ACCEPTED, task_id=task_id)
            self._unwritten.pop(row.intent_id, None)
        except BaseException:
            # Not earlier: the journal may still find that the task belongs to another intent.
            if row.task_id is None:
                self._unwritten[row.intent_id] = bound
            raise
        finally:
            if bound.task_id is not None:
                outcome = self.outcomes.get(row.intent_id)
                if outcome is not None and not outcome.done():
                    outcome.set_result(bound)
                    is_news = True
                if is_news and bound.task_id == task_id:
                    self.report(Accepted, bound)
            self.wake()
        names = bound.intent_id, bound.task_id or bound.state, task_id
        if bound.task_id == task_id:
            pass
        elif task_id not in bound.other_task_ids:
            holder = await self.holder(bound, task_id)
            other = holder.intent_id if holder is not None else "that was pruned"
            _log.critical(
                "intent %s (%s) cannot get task %s, which belongs to intent %s", *names, other
            )
        elif bound.task_id is not None:
            _log.critical(_TWO_TASKS, *names)
        else:  # the user has dismissed the intent
            _log.warning("a callback for intent %s (%s) names task %s: it was paid for", *names)
        return bound

    async def disown(self, intent_id: str, task_id: str) -> SubmissionUnknown:
        """Make an intent unknown whose task, by its record, belongs to another submission.

        Then its POST got the answer to another request, as from a proxy that mixed them up.

        Returns:
            The error for the callers that wait for that task.
        """
        row = await self._journal.advance(intent_id, foreign=task_id)
        error = self.unknown_error(row, f"its answer named task {task_id} of another submission")
        if (intent_id, task_id) not in self._disowned:
            self._disowned.add((intent_id, task_id))
            self.unknown_count += 1
            failed = Failed(key=row.key, intent_id=intent_id, task_id=task_id, error=error)
            self._report(failed)
            _log.critical(
                "task %s is not that of intent %s, as its record shows, but another submission's: "
                "its POST got another request's answer, and it cannot be known what was bought",
                task_id,
                intent_id,
            )
        self.wake()
        return error

    async def holder(self, row: Intent, task_id: str) -> Intent | None:
        """The intent, other than this one, that a task belongs to."""
        for other in await self._journal.rows(task_ids=[task_id]):
            is_holder = other.task_id == task_id and other.origin == row.origin
            if is_holder and other.intent_id != row.intent_id:
                return other
        return None

    # ─── waiting for a row ───────────────────────────────────────────────────────────────────────

    async def wait_for_change(
        self,
        row: Intent,
        states: frozenset[State],
        follow: Callable[[Intent], None] | None = None,
    ) -> Intent:
        """Wait until a row has left these states, or until `stop`; return the row as it is then.

        Args:
            row: the row.
            states: the states to leave.
            follow: called with the row each time that it was read and has not left them.
        """
        changed = asyncio.Event()
        self._wakeups.add(changed)
        self._watcher.add(changed.set)
        text = "intent %s is still being sent by %s; a call waits for that"
        facts = row.intent_id, process_of(row.process, row.host)
        warning = self._clock.loop.call_later(self._longest_post, _log.warning, text, *facts)
        if row.state not in PENDING:
            warning.cancel()
        try:
            while True:
                await changed.wait()
                changed.clear()
                unwritten = self._unwritten.get(row.intent_id)
                if unwritten is not None and unwritten.state not in states:
                    return unwritten
                try:
                    now = await self._journal.find(intent_id=row.intent_id)
                except JournalError:
                    if self.is_stopped:
                        raise
                    # Its POST may be under way, which no failure of the journal may hide.
                    self._clock.loop.call_later(_REWRITE_AFTER, changed.set)
                    continue
                if now is None:
                    raise JournalError(f"intent {row.intent_id} is gone from the journal")
                if now.state not in states or self.is_stopped:
                    return now
                if follow is not None:
                    follow(now)
                # Hundreds may wait while hundreds of rows are written.
                await asyncio.sleep(_RECHECK_INTERVAL)
        finally:
            warning.cancel()
            self._watcher.remove(changed.set)
            self._wakeups.discard(changed)

    def wake(self) -> None:
        """Make every caller in `wait_for_change` read its row again."""
        for changed in self._wakeups:
            changed.set()

    # ─── the end ─────────────────────────────────────────────────────────────────────────────────

    async def aclose(self) -> None:
        """Try for the last time to write what is not written yet."""
        if not self._closed.done():
            self._closed.set_result(None)
        await self._rewrites.finish(_REWRITE_AFTER)
        for row in self._unwritten.values():
            task = f"; its task {row.task_id} was paid for" if row.task_id else ""
            _log.critical(
                "intent %s is %s, which was never written to the journal%s",
                row.intent_id,
                row.state,
                task,
            )
        if self._unwritten:
            # A journal that stays open keeps its owner alive, and so long these rows would stay
            # SENDING. Without an owner they become UNKNOWN.
            await self._journal.disown()
