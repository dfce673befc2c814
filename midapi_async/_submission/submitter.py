"""Submitting: at most one accepted POST per intent, and nothing that was paid for is lost.

A submission waits in the line for a slot; the journal writes its row together with the slot; the
POST is sent; its outcome is written to the journal. All this runs in a background task, so that an
answer is not lost when the caller is cancelled. But a POST is sent, or sent again, only while a
caller waits for it. All callers with the same key wait for one future, the outcome. The answer to
the POST resolves it, or a callback if that comes first.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import attrs

from .._runtime.background import OwnedTasks
from .._runtime.clock import Clock
from .._runtime.urls import url_problem
from .._wire import protocol
from .._wire.bodies import fingerprint
from .._wire.json import dumps
from .._wire.protocol import Answer, Call
from .._wire.tokens import new_token, token_hash
from ..config import RateLimit
from ..errors import (
    APIError,
    ClientClosed,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MidAPIError,
    SubmissionUnknown,
    TaskExpired,
    TransportError,
    WaitTimeout,
    about,
)
from ..events import Accepted, Event, Retrying
from ..journal import BOUGHT, PENDING, Busy, Claim, Claimed, Intent, Journal, Standing, State
from ..journal.watcher import Watcher
from ..requests import Request
from .line import Line, Ticket
from .retry import RetryBudget

_log = logging.getLogger("midapi_async.submission")

MAX_METADATA = 4096  # bytes
MAX_KEY = 200  # characters
_RECHECK_INTERVAL = 0.05  # seconds between two reads of a row that is waited for
_LAST_READ = 0.5  # seconds for reading a row once more after the deadline
_REWRITE_AFTER = 1.0  # seconds until a failed write of an outcome is tried again
_POST_MARGIN = 5.0  # seconds that a POST may take beyond its timeout, on a busy machine
_TWO_TASKS = "intent %s has two tasks, %s and %s: both may have been paid for"
_CLAIM_HOLDS = 1.0  # seconds after a claim in which its POST may begin without another claim


def _check_arguments(key: object, metadata: object, callback_url: object) -> None:
    """Check the arguments that come with a request.

    Raises:
        InvalidRequestError: naming each argument that is wrong.
    """
    problems = {}
    is_short = isinstance(key, str) and 0 < len(key) <= MAX_KEY
    if key is not None and not (is_short and str(key).isprintable()):
        problems["key"] = f"must be a str of 1 to {MAX_KEY} printable characters"
    pairs = metadata.items() if isinstance(metadata, Mapping) else ()
    if not isinstance(metadata, Mapping) or not all(
        isinstance(each, str) for each in sum(pairs, ())
    ):
        problems["metadata"] = "must be a mapping of str to str"
    elif metadata:
        try:
            size = len(dumps(dict(metadata)))
        except UnicodeEncodeError:
            problems["metadata"] = (
                "contains a lone surrogate (half of a character), which cannot be stored"
            )
        else:
            if size > MAX_METADATA:
                problems["metadata"] = f"must be at most {MAX_METADATA:,} bytes, is {size:,}"
    if callback_url is not None and (problem := url_problem(callback_url)):
        problems["callback_url"] = problem
    if problems:
        raise InvalidRequestError(problems)


def _names(intent: Intent) -> dict[str, Any]:
    """What an event about an intent is about."""
    return {"key": intent.key, "intent_id": intent.intent_id, "task_id": intent.task_id}


class _Submission:
    """One submission of this client, from the line to its outcome."""

    def __init__(self, intent: Intent, call: Call, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        self.intent = intent
        self.call = call
        self.ticket = ticket  # its place in the line
        self.slot: str | None = None  # the last one that it got; its row exists since the first
        self.claimed_at = -math.inf  # when it asked for that slot, on `Clock.boot_time`
        # Another claim, if the POST's first byte comes late; see `_confirm`.
        self.late_claim: asyncio.Task[Claim | Exception] | None = None
        # From a POST's start until it is proven that it bought nothing, or its outcome is written.
        self.is_posting = False
        self.callers = 0  # how many wait for the outcome
        # The accepted row, or the row that has the key, or an error. It is cancelled if the last
        # caller has left before anything was bought.
        self.outcome: asyncio.Future[Intent | Standing] = loop.create_future()
        self.stop: asyncio.Future[None] = loop.create_future()  # done: send nothing from now on


class Submitter:
    """Turns requests into accepted intents.

    Args:
        journal: stores the intents.
        watcher: watches the journal for changes.
        scope: the service's origin and the namespace.
        account: a hash of the service's origin and the API key.
        line: the account's line.
        rate_limit: slots in a window of service seconds; None for no limit on our side.
        send: sends one POST and returns its answer; awaits a function before the first byte.
        ping: makes a free request, to see whether MidAPI answers.
        post_timeout: service seconds that a POST may take.
        callback_url: makes the callback URL for a token; None without a receiver.
        slow_down: called after a 429 or 455 with the seconds for which to make no looks.
        give_up_after: service seconds of attempts and pauses after which to give up.
        report: called with each event.
        clock: the client's clock.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        watcher: Watcher,
        scope: str,
        account: str,
        line: Line,
        rate_limit: RateLimit | None,
        send: Callable[[Call, Callable[[], Awaitable[object]]], Awaitable[Answer]],
        ping: Callable[[], Awaitable[object]],
        post_timeout: float,
        callback_url: Callable[[str], str] | None,
        slow_down: Callable[[float], None],
        give_up_after: float,
        report: Callable[[Event], object],
        clock: Clock,
    ) -> None:
        self._journal = journal
        self._watcher = watcher
        self._scope = scope
        self._account = account
        self._line = line
        # The journal counts in seconds of the machine.
        self._limit = rate_limit and attrs.evolve(rate_limit, per=rate_limit.per / clock.scale)
        self._longest_post = _POST_MARGIN + clock.network_seconds(post_timeout)
        self._send = send
        self._ping = ping
        self._callback_url = callback_url
        self._slow_down = slow_down
        self._give_up_after = give_up_after
        self._report = report
        self._clock = clock
        self._submissions: dict[str, _Submission] = {}  # by intent id
        self._tasks = OwnedTasks()
        self._rewrites = OwnedTasks()
        self._wakeups: set[asyncio.Event] = set()  # of the callers in `_wait_for_change`
        self._unwritten: dict[str, Intent] = {}  # outcomes that are not in the journal yet
        self._disowned: set[tuple[str, str]] = set()  # intents and the tasks that are not theirs
        self._is_stopped = False
        self._is_closing = False
        self._closed: asyncio.Future[None] = clock.loop.create_future()
        self.posts_sent = 0

    @property
    def at_the_gate(self) -> int:
        """How many submissions have not been sent yet, or wait to be sent again."""
        return sum(not each.is_posting for each in self._submissions.values())

    # ─── what callers wait for ───────────────────────────────────────────────────────────────────

    async def submit(
        self,
        request: Request,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        supersedes: str | None = None,
        deadline: float | None = None,
    ) -> tuple[Intent, bool]:
        """Buy what a request asks for, once.

        Args:
            request: what to buy.
            key: the user's own name for it, or None.
            metadata: the user's own notes, or None.
            callback_url: the user's own callback URL, in place of ours.
            supersedes: the intent that it replaces, or None.
            deadline: when to stop waiting, on the client's clock; None for never.

        Returns:
            An intent whose task is known, and whether the key had been used before.

        Raises:
            InvalidRequestError: an argument is wrong, or the key belongs to another request.
            SubmissionUnknown: it cannot be known whether it was bought.
            WaitTimeout: the deadline passed. With an ``intent_id``, a POST is under way.
            MidAPIError: any other error means that nothing was bought.
        """
        metadata = {} if metadata is None else metadata
        _check_arguments(key, metadata, callback_url)
        intent, call = self._prepare(request, key, metadata, callback_url, supersedes)
        waiting_for: str | None = None
        process: int | None = None
        submission: _Submission | None = None
        scope = asyncio.timeout_at(None if deadline is None else deadline / self._clock.scale)
        try:
            async with scope:
                while True:
                    submission = self._start(intent, call)
                    waiting_for = process = None
                    try:
                        row = await self._outcome(submission)
                    finally:
                        if submission.is_posting:
                            waiting_for = intent.intent_id
                    if isinstance(row, Intent):
                        return row, False
                    # Another row has the key. If that is refused in the end, submit after all.
                    holder = row.intent
                    if not row.same:
                        raise KeyConflict(key or "")
                    if holder.state in PENDING:
                        waiting_for, process = holder.intent_id, holder.process
                        holder = await self._wait_for_change(holder, PENDING)
                    if holder.state is not State.REFUSED:
                        return self._require_task(holder), True
        except MidAPIError as error:
            about(error, key=key)
            raise
        except TimeoutError:
            if not scope.expired():
                raise
        # The outcome may have come in the same turn of the loop as the deadline.
        if submission is not None and submission.outcome.done():
            found = None if submission.outcome.cancelled() else submission.outcome.result()
            if isinstance(found, Intent):
                return found, False
        raise about(WaitTimeout(intent_id=waiting_for, process=process), key=key)

    async def find(self, key: str) -> Intent | None:
        """The accepted intent that has a key; None if the key is free, or was refused.

        Raises:
            MidAPIError: as `submit` for this key.
        """
        if self._is_closing:
            raise ClientClosed
        row = await self._journal.find(key=(self._scope, key))
        if row is not None and row.state in PENDING:
            try:
                row = await self._wait_for_change(row, PENDING)
            except (APIError, TransportError):
                return None  # its submission in this client was refused
        return None if row is None or row.state is State.REFUSED else self._require_task(row)

    async def settle(self, row: Intent, deadline: float | None) -> Intent:
        """Wait until an intent that is unknown, or is being sent, has been accepted.

        Args:
            row: the intent.
            deadline: when to stop waiting, on the client's clock; None for never.

        Raises:
            SubmissionUnknown: no callback came before the deadline.
        """
        unsettled = PENDING | {State.UNKNOWN}
        scope = asyncio.timeout_at(None if deadline is None else deadline / self._clock.scale)
        try:
            async with scope:
                row = await self._wait_for_change(row, unsettled)
        except TimeoutError:
            if not scope.expired():
                raise
            # Callbacks may have named candidates meanwhile.
            with suppress(JournalError, TimeoutError):
                async with asyncio.timeout(_LAST_READ):
                    row = await self._journal.find(intent_id=row.intent_id) or row
        if row.state in unsettled and self._is_closing:
            raise ClientClosed
        if row.state in PENDING:
            raise self._unknown_error(row, f"process {row.process or '?'} is still sending it")
        if row.state in unsettled:
            missing = "record could be read" if row.other_task_ids else "callback came"
            raise self._unknown_error(row, f"no {missing} in time")
        return self._require_task(row)

    async def bind(self, row: Intent, task_id: str) -> Intent:
        """Accept a task for an intent, after a callback or the user has named it.

        Returns:
            The row; it has no task if that is another intent's, or if the user has dismissed the
            intent. A dismissed one keeps the task in ``other_task_ids``.

        Raises:
            JournalError: it cannot be written; callers that wait in this client still get the task.
        """
        now = time.time()
        bound = attrs.evolve(row, state=State.ACCEPTED, task_id=task_id, accepted_at=now)
        try:
            bound = await self._journal.advance(row.intent_id, State.ACCEPTED, task_id=task_id)
            self._unwritten.pop(row.intent_id, None)
        except BaseException:
            # Only now: while the journal decides, the task may still be another intent's.
            if row.task_id is None:
                self._unwritten[row.intent_id] = bound
            raise
        finally:
            if bound.task_id is not None:
                submission = self._submissions.get(row.intent_id)
                if submission is not None and not submission.outcome.done():
                    submission.outcome.set_result(bound)
            for changed in self._wakeups:
                changed.set()
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
        """The record of an intent's task belongs to another submission: the intent is unknown.

        So the answer to its POST was that of another request, as after a proxy that mixed them up.

        Returns:
            The error for the callers that wait for that task.
        """
        row = await self._journal.advance(intent_id, foreign=task_id)
        if (intent_id, task_id) not in self._disowned:
            self._disowned.add((intent_id, task_id))
            _log.critical(
                "task %s is not that of intent %s, as its record shows, but another submission's: "
                "its POST got another request's answer, and it cannot be known what was bought",
                task_id,
                intent_id,
            )
        for changed in self._wakeups:
            changed.set()
        return self._unknown_error(row, f"task {task_id} is another submission's")

    async def holder(self, row: Intent, task_id: str) -> Intent | None:
        """The intent, other than this one, that a task belongs to."""
        for other in await self._journal.rows(task_ids=[task_id]):
            is_holder = other.task_id == task_id and other.origin == row.origin
            if is_holder and other.intent_id != row.intent_id:
                return other
        return None

    def stop(self, *, is_closing: bool = False) -> None:
        """Send nothing more: callers that wait for a slot get `ClientClosed`, and later ones, too.

        Args:
            is_closing: whether callers of `settle` get `ClientClosed` or `SubmissionUnknown`.
        """
        self._is_stopped, self._is_closing = True, is_closing
        for changed in self._wakeups:
            changed.set()
        for submission in self._submissions.values():
            if not submission.stop.done():
                submission.stop.set_result(None)

    async def aclose(self, patience: float) -> None:
        """Wait for the answers to POSTs that are under way, and give every caller an outcome.

        Args:
            patience: seconds of the loop; a POST without an answer by then becomes UNKNOWN.
        """
        self.stop(is_closing=True)
        await self._tasks.finish(patience)
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
            # A journal that others have open keeps its owner alive, and such a row would be SENDING
            # for as long as that. Without its owner it is UNKNOWN.
            await self._journal.disown()

    async def _outcome(self, submission: _Submission) -> Intent | Standing:
        """Wait for a submission's outcome. When the last caller leaves, nothing more is sent."""
        submission.callers += 1
        try:
            await asyncio.wait({submission.outcome})
            return submission.outcome.result()
        finally:
            submission.callers -= 1
            if not submission.callers and not submission.stop.done():
                submission.stop.set_result(None)

    async def _wait_for_change(self, row: Intent, states: frozenset[State]) -> Intent:
        """Wait until a row has left these states, or until `stop`; return the row as it is then."""
        submission = self._submissions.get(row.intent_id)
        if submission is not None and not submission.stop.done():
            try:
                found = await self._outcome(submission)
            except SubmissionUnknown:
                if State.UNKNOWN not in states:
                    raise  # else its callback may still come
            else:
                if isinstance(found, Intent):
                    return found
        changed = asyncio.Event()
        self._wakeups.add(changed)
        self._watcher.add(changed.set)
        text = "intent %s is still being sent by process %s; a call waits for that"
        facts = row.intent_id, row.process or "?"
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
                    if self._is_stopped:
                        raise
                    # Its POST may be under way, which no failure of the journal may hide.
                    self._clock.loop.call_later(_REWRITE_AFTER, changed.set)
                    continue
                if now is None:
                    raise JournalError(f"intent {row.intent_id} is gone from the journal")
                if now.state not in states or self._is_stopped:
                    return now
                # Hundreds may wait while hundreds of rows are written.
                await asyncio.sleep(_RECHECK_INTERVAL)
        finally:
            warning.cancel()
            self._watcher.remove(changed.set)
            self._wakeups.discard(changed)

    def _require_task(self, row: Intent) -> Intent:
        """Return the row if its task is known, else raise the error for its state."""
        if row.state in BOUGHT:
            return row
        if row.state is State.UNKNOWN:
            raise self._unknown_error(row)
        if row.state is State.EXPIRED and row.task_id is not None:
            raise TaskExpired(row.task_id)
        if row.state in PENDING:
            raise ClientClosed
        problem = f"intent {row.intent_id} is {row.state}; use another key to submit it again"
        raise InvalidRequestError({"key" if row.key else "intent_id": problem})

    def _unknown_error(self, intent: Intent, reason: str = "") -> SubmissionUnknown:
        can_settle = intent.token_hash is not None and self._callback_url is not None
        candidates = intent.other_task_ids
        return SubmissionUnknown(intent.intent_id, intent.key, can_settle, reason, candidates)

    # ─── one submission ──────────────────────────────────────────────────────────────────────────

    def _prepare(
        self,
        request: Request,
        key: str | None,
        metadata: Mapping[str, str],
        callback_url: str | None,
        supersedes: str | None,
    ) -> tuple[Intent, Call]:
        token = None
        if callback_url is None and self._callback_url is not None:
            token = new_token()
            callback_url = self._callback_url(token)
        intent = Intent(
            intent_id=os.urandom(16).hex(),
            scope=self._scope,
            request=request,
            fingerprint=fingerprint(request) if key is not None else "",
            token_hash=token_hash(token) if token is not None else None,
            created_at=time.time(),
            key=key,
            metadata=dict(metadata),
            supersedes=supersedes,
        )
        return intent, protocol.submit_call(request, callback_url)

    def _start(self, intent: Intent, call: Call) -> _Submission:
        if self._is_stopped:
            raise ClientClosed
        submission = _Submission(intent, call, self._line.ticket())
        self._submissions[intent.intent_id] = submission
        self._tasks.start(self._run(submission), eagerly=True)
        return submission

    async def _run(self, submission: _Submission) -> None:
        """Carry out a submission, and resolve its outcome whatever happens."""
        outcome = submission.outcome
        try:
            row = await self._buy(submission)
            if outcome.done():
                return  # a callback came first
            if row is not None:
                outcome.set_result(row)
            elif self._is_stopped:
                outcome.set_exception(ClientClosed())
            else:
                outcome.cancel()  # all callers have left
        except Exception as error:  # noqa: BLE001 - the callers get it
            if isinstance(error, MidAPIError) and submission.slot is not None:
                about(error, intent_id=submission.intent.intent_id)  # its row was written
            if not outcome.done():
                outcome.set_exception(error)
        except BaseException:
            # This task was cancelled: the client closes, or the loop ends.
            if not outcome.done():
                outcome.set_exception(await self._interrupted(submission))
            raise
        finally:
            submission.is_posting = False
            self._line.outage.left(submission.ticket)
            self._line.proceed()
            self._submissions.pop(submission.intent.intent_id, None)
            if outcome.done() and not outcome.cancelled():
                outcome.exception()  # the callers may have left

    async def _buy(self, submission: _Submission) -> Intent | Standing | None:
        """Claim a slot, send the POST and record its outcome; repeat while it may be sent again.

        The POST is sent again only after a proof that nothing was bought.

        Returns:
            The accepted row; or the row that has the key; or None if `stop` came first.

        Raises:
            APIError, TransportError: the last proof that nothing was bought.
            JournalError: the journal cannot be used, so the POST was not sent, or not again.
            SubmissionUnknown: it cannot be known whether it was bought.
        """
        intent, budget = submission.intent, None
        ask = partial(self._claim, submission)
        wait_for_slot = partial(
            self._line.claim,
            ask,
            submission.ticket,
            per=self._limit.per if self._limit else 0.0,
            ping=self._ping,
            stop=submission.stop,
            patience=self._give_up_after / self._clock.scale,
        )
        holder = None
        if intent.key is not None and not self._line.is_open:
            holder = await self._journal.find(key=(intent.scope, intent.key))
        # What is known already need not wait for a slot.
        is_known = holder is not None and holder.state is not State.REFUSED
        while True:
            try:
                answer = await ask() if is_known else None
                if answer is None or isinstance(answer, Busy):
                    answer = await wait_for_slot()
            except Exception:
                if submission.slot is None:
                    withdraw = partial(self._withdraw, submission)
                    self._rewrites.start(self._write_until_it_succeeds(withdraw))
                elif (row := await self._record_refused(submission)) is not None:
                    return row
                raise
            is_known = False
            if isinstance(answer, Standing):
                # Another row has the key; or this one was accepted by a callback during a pause.
                is_own = answer.intent.intent_id == intent.intent_id
                return self._require_task(answer.intent) if is_own else answer
            if answer is None or submission.stop.done():
                # The last caller has left, or the client closes.
                return await self._record_refused(submission) if submission.slot else None
            started = self._clock.time()
            try:
                task_id = await self._post(submission)
            except (APIError, TransportError) as proof:
                submission.is_posting = False
                late = await self._late_claim(submission)
                if isinstance(late, Standing):
                    # Nothing was sent: others held this process for dead and gave the row up.
                    return self._require_task(late.intent)
                if isinstance(late, Busy):
                    continue
                budget = budget or RetryBudget(self._give_up_after, self._clock.chance)
                budget.spend(self._clock.time() - started)
                pause = await self._pause_after(submission, proof, budget)
                if pause is None:
                    if (row := await self._record_refused(submission)) is not None:
                        return row
                    raise
            except protocol.Unsure as error:
                return await self._record_unknown(submission, str(error))
            except Exception as error:  # noqa: BLE001 - the POST may have been accepted
                _log.exception("a bug: the POST of intent %s failed", intent.intent_id)
                return await self._record_unknown(submission, f"a bug: {type(error).__name__}")
            else:
                return await self._record_accepted(submission, task_id)
            await asyncio.wait({submission.stop}, timeout=pause / self._clock.scale)

    async def _claim(self, submission: _Submission) -> Claim:
        asked_at = self._clock.boot_time()
        answer = await self._journal.claim(
            submission.intent, self._account, self._limit, longest_post=self._longest_post
        )
        if isinstance(answer, Claimed):
            submission.slot, submission.claimed_at = answer.slot, asked_at
        return answer

    async def _confirm(self, submission: _Submission) -> None:
        """Before the first byte of a POST: claim again if the last claim was long ago.

        The process may have stood still since then (SIGSTOP, a suspended laptop, a slow connect).
        Others may hold it for dead, and may have given its row up. Raises if the row is not ours
        any more. Where claims themselves take long, each of them holds for twice as long.
        """
        holds = _CLAIM_HOLDS
        while self._clock.boot_time() - submission.claimed_at > holds:
            # A task of its own: if this is cancelled, a slot that it takes must not be lost.
            submission.late_claim = self._tasks.start(self._try_to_claim(submission))
            await asyncio.wait({submission.late_claim})
            if isinstance(submission.late_claim.result(), Claimed):
                holds *= 2
            else:
                raise TransportError("the claim does not hold any more")  # see `_late_claim`

    async def _try_to_claim(self, submission: _Submission) -> Claim | Exception:
        try:
            return await self._claim(submission)
        except Exception as error:  # noqa: BLE001 - whatever a journal raises, `_late_claim` raises
            return error

    async def _late_claim(self, submission: _Submission) -> Claim | None:
        """After a POST that was not sent: what its late claim has found, if there was one.

        Raises:
            JournalError: the journal cannot be used, so the POST cannot be sent.
        """
        claiming, submission.late_claim = submission.late_claim, None
        if claiming is None:
            return None
        await asyncio.wait({claiming})
        try:
            answer = claiming.result()
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, Busy):
                await self._journal.release(submission.slot or "", sent=False)
        except Exception:
            await self._record_refused(submission)
            raise
        return answer

    async def _post(self, submission: _Submission) -> str:
        """Send a POST once; return the id of its task.

        Raises:
            APIError, TransportError: a proof that nothing was bought.
            Unsure: it cannot be known whether it was bought.
        """
        self.posts_sent += 1
        submission.is_posting = True
        outage, ticket = self._line.outage, submission.ticket
        try:
            answer = await self._send(submission.call, partial(self._confirm, submission))
            task_id = protocol.read_submit(answer)
        except APIError as error:
            if protocol.is_foreign_page(error):
                outage.unknown(ticket, str(error), is_page=True)
            else:
                outage.refused()
            raise
        except TransportError as error:
            if not error.sent:
                raise
            outage.unknown(ticket, error.reason, is_page=False)
            raise protocol.Unsure(error.reason) from None
        except protocol.Unsure as error:
            is_page = protocol.is_foreign_page(error.__cause__)
            outage.unknown(ticket, str(error), is_page=is_page)
            raise
        else:
            outage.accepted()
            return task_id
        finally:
            outage.left(ticket)
            self._line.proceed()

    async def _pause_after(
        self, submission: _Submission, proof: APIError | TransportError, budget: RetryBudget
    ) -> float | None:
        """Release the slot and return the seconds until the POST is sent again; None to give up.

        Raises:
            JournalError: the journal cannot be used, so the POST cannot be sent again.
        """
        sent, gate_pause = True, None
        if protocol.is_retryable(proof):
            pause = budget.pause(proof.retry_after)
            rest = (
                min(proof.retry_after or 0.0, protocol.LONGEST_RETRY_AFTER)
                if pause is None
                else pause
            )
            self._slow_down(rest)
            gate_pause = rest / self._clock.scale
        elif isinstance(proof, TransportError):
            pause, sent = None if proof.permanent else budget.pause(), False
        else:
            return None  # MidAPI would refuse it again; the slot is released with the outcome
        try:
            await self._journal.release(submission.slot or "", sent=sent, pause=gate_pause)
        except Exception:
            await self._record_refused(submission)
            raise
        if pause is not None:
            names, reason = _names(submission.intent), str(proof)
            self._report(Retrying(**names, reason=reason, delay=pause, left=budget.left))
        return pause

    # ─── outcomes ────────────────────────────────────────────────────────────────────────────────

    async def _record(
        self, submission: _Submission, to: State, *, task_id: str | None = None
    ) -> Intent:
        """Write an outcome; return the row as it is then.

        If the journal fails, the outcome is returned all the same, and is written later.
        """
        intent = submission.intent
        write = partial(
            self._journal.advance, intent.intent_id, to, slot=submission.slot, task_id=task_id
        )
        try:
            return await write()
        except Exception:  # noqa: BLE001 - whatever a journal raises, the outcome must not be lost
            row = attrs.evolve(intent, state=to, task_id=task_id, accepted_at=time.time())
            self._unwritten.setdefault(intent.intent_id, row)  # a callback's, of `bind`, stays
            for changed in self._wakeups:
                changed.set()
            self._rewrites.start(self._write_until_it_succeeds(write, row))
            _log.log(
                logging.CRITICAL if task_id else logging.ERROR,
                "intent %s is %s%s, but writing the journal failed; trying again every second",
                intent.intent_id,
                to,
                f" and its task {task_id} was paid for" if task_id else "",
                exc_info=True,
            )
            return row

    async def _record_accepted(self, submission: _Submission, task_id: str) -> Intent:
        row = await self._record(submission, State.ACCEPTED, task_id=task_id)
        if row.task_id is None:
            _log.critical(
                "MidAPI's answer for intent %s names task %s, which belongs to another intent: it "
                "cannot be known what was bought",
                row.intent_id,
                task_id,
            )
            raise self._unknown_error(row, f"the answer names task {task_id} of another intent")
        if task_id in row.other_task_ids:
            _log.critical(_TWO_TASKS, row.intent_id, row.task_id, task_id)
        elif row.task_id != task_id:
            _log.critical(
                "MidAPI's answer for intent %s, which has task %s, names task %s of another intent",
                row.intent_id,
                row.task_id,
                task_id,
            )
        self._report(Accepted(**_names(row)))
        return row

    async def _record_refused(self, submission: _Submission) -> Intent | None:
        """Record that nothing was bought; return the row if a callback has shown the opposite.

        If the process dies before this is written, the intent becomes UNKNOWN.
        """
        row = await self._record(submission, State.REFUSED)
        return row if row.state in BOUGHT else None

    async def _record_unknown(self, submission: _Submission, reason: str) -> Intent:
        """Record that a POST may have been accepted; return the row if a callback has shown it.

        Raises:
            SubmissionUnknown: no callback has come.
        """
        row = await self._record(submission, State.UNKNOWN)
        if row.state in BOUGHT:
            return row
        _log.warning("it cannot be known whether intent %s was accepted: %s", row.intent_id, reason)
        raise self._unknown_error(row, reason)

    async def _interrupted(self, submission: _Submission) -> Exception:
        """The error for the callers if the client closes before the POST was sent or answered."""
        if submission.slot is None:
            with suppress(Exception):
                await self._withdraw(submission)
            return ClientClosed()
        try:
            row = await self._record_unknown(submission, "the client was closed before the answer")
        except SubmissionUnknown as error:
            return error
        return ClientClosed(row.task_id)

    async def _withdraw(self, submission: _Submission) -> None:
        """After a claim that failed: refuse the row, in case it was written; nothing was sent."""
        if await self._journal.find(intent_id=submission.intent.intent_id) is not None:
            await self._journal.advance(submission.intent.intent_id, State.REFUSED)

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
