"""One submission: it waits in the line for a slot, and at most one of its POSTs is accepted.

The journal writes a submission's row together with the slot, then the POST is sent, then its
outcome is recorded. This runs in a background task, so that an answer is not lost when the caller
is cancelled. But a POST is sent, or sent again, only while a caller waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import attrs

from .._runtime.background import OwnedTasks
from .._runtime.clock import Clock
from .._runtime.secret import clearing_locals
from .._wire import protocol
from .._wire.protocol import Answer, Call
from ..config import RateLimit
from ..errors import APIError, ClientClosed, MidAPIError, SubmissionUnknown, TransportError, about
from ..events import Accepted, Failed, Queued, Retrying, Sent
from ..journal import Busy, Claim, Claimed, Intent, Journal, Standing, State
from .line import Line, Ticket
from .outcomes import Outcome, OutcomeRecorder
from .retry import RetryBudget

_log = logging.getLogger("midapi_async.submission")

_CLAIM_HOLDS = 1.0  # seconds after a claim in which its POST may begin without another claim


class Submission:
    """One submission of this client, from the line to its outcome."""

    def __init__(self, intent: Intent, call: Call, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        self.intent = intent
        self.call = call
        self.ticket = ticket  # its place in the line
        self.slot: str | None = None  # the last one that it got; its row exists since the first
        # A journal that lost its server during a claim may have written the row, and answer `Busy`.
        self.was_busy = False
        self.claimed_at = -math.inf  # when it asked for that slot, on `Clock.boot_time`
        # The second claim, made if the POST begins late; see `_confirm`.
        self.late_claim: asyncio.Task[Claim | Exception] | None = None
        # From a POST's start until it is proven that it bought nothing, or its outcome is written.
        self.is_posting = False
        self.problem: MidAPIError | None = None  # why it is sent again
        self.callers = 0  # how many wait for the outcome
        self.outcome: Outcome = loop.create_future()
        self.stop: asyncio.Future[None] = loop.create_future()  # done: send nothing from now on


@attrs.define(eq=False, repr=False, kw_only=True)
class Sender:
    """Carries out submissions.

    Args:
        journal: stores the intents.
        recorder: writes how they ended.
        account: a hash of the service's origin and the API key.
        line: the account's line.
        rate_limit: slots in a window of loop seconds; None for no limit on our side.
        send: sends one POST and returns its answer; awaits a function before the first byte.
        ping: makes a free request, to see whether MidAPI answers.
        longest_post: seconds of the loop that a POST may take.
        slow_down: called after a 429 or 455 with the seconds for which to make no looks.
        give_up_after: service seconds of attempts and pauses after which to give up.
        clock: the client's clock.

    Attributes:
        posts_sent: how many POSTs were sent, repeated ones included.
        submissions: those that have not ended, by intent id.
    """

    _journal: Journal
    _recorder: OutcomeRecorder
    _account: str
    _line: Line
    _rate_limit: RateLimit | None
    _send: Callable[[Call, Callable[[], Awaitable[object]]], Awaitable[Answer]]
    _ping: Callable[[], Awaitable[object]]
    _longest_post: float
    _slow_down: Callable[[float], None]
    _give_up_after: float
    _clock: Clock
    _tasks: OwnedTasks = attrs.field(factory=OwnedTasks, init=False)
    _is_stopped: bool = attrs.field(default=False, init=False)
    posts_sent: int = attrs.field(default=0, init=False)
    submissions: dict[str, Submission] = attrs.field(factory=dict, init=False)

    @property
    def at_the_gate(self) -> int:
        """How many submissions have not been sent yet, or wait to be sent again."""
        return sum(not each.is_posting for each in self.submissions.values())

    def start(
        self, intent: Intent, call: Call, stop: asyncio.Future[None] | None = None
    ) -> Submission:
        """Begin a submission, if `stop` is not done; the caller must then await `outcome`."""
        if self._is_stopped or (stop is not None and stop.done()):
            raise ClientClosed
        submission = Submission(intent, call, self._line.ticket())
        self.submissions[intent.intent_id] = submission
        self._recorder.outcomes[intent.intent_id] = submission.outcome
        self._tasks.start(self._run(submission), eagerly=True)
        return submission

    async def outcome(
        self, submission: Submission, stop: asyncio.Future[None] | None = None
    ) -> Intent | Standing:
        """Wait for a submission's outcome. When the last caller leaves, nothing more is sent.

        Args:
            submission: which one.
            stop: when it is done, this caller only waits for a POST that is under way.

        Raises:
            ClientClosed: `stop` came before anything was sent.
        """
        outcome, is_wanted = submission.outcome, True
        submission.callers += 1
        try:
            if stop is not None:
                either: set[asyncio.Future[Any]] = {outcome, stop}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                is_wanted = self._leave(submission)
            await asyncio.wait({outcome})
            if outcome.cancelled() and not is_wanted:
                raise ClientClosed
            return outcome.result()
        finally:
            if is_wanted:
                self._leave(submission)

    @staticmethod
    def _leave(submission: Submission) -> bool:
        """One caller does not want it to be sent any more; returns False."""
        submission.callers -= 1
        if not submission.callers and not submission.stop.done():
            submission.stop.set_result(None)
        return False

    def stop(self) -> None:
        """Send nothing more: callers that wait for a slot get `ClientClosed`, later ones too."""
        self._is_stopped = True
        for submission in self.submissions.values():
            if not submission.stop.done():
                submission.stop.set_result(None)

    async def aclose(self, patience: float) -> None:
        """Wait some seconds of the loop for answers to POSTs; those without become UNKNOWN."""
        self.stop()
        await self._tasks.finish(patience)

    # ─── one submission ──────────────────────────────────────────────────────────────────────────

    async def _run(self, submission: Submission) -> None:
        """Carry out a submission, and resolve its outcome whatever happens."""
        outcome = submission.outcome
        try:
            row = await self._buy(submission)
            if outcome.done():
                return  # a callback came first
            if row is not None:
                outcome.set_result(row)
                if isinstance(row, Intent):
                    self._recorder.report(Accepted, row)
            elif self._is_stopped:
                outcome.set_exception(ClientClosed())
            else:
                outcome.cancel()  # all callers have left
        except Exception as error:  # noqa: BLE001 - the callers get it
            if isinstance(error, MidAPIError) and submission.slot is not None:
                about(error, intent_id=submission.intent.intent_id)  # its row was written
            if not outcome.done():
                outcome.set_exception(error)
                if isinstance(error, MidAPIError):
                    self._recorder.report(Failed, submission.intent, error=error)
        except BaseException:
            # This task was cancelled: the client closes, or the loop ends.
            if not outcome.done():
                outcome.set_exception(await self._interrupted(submission))
            raise
        finally:
            submission.is_posting = False
            self._line.outage.left(submission.ticket)
            self._line.proceed()
            self.submissions.pop(submission.intent.intent_id, None)
            self._recorder.outcomes.pop(submission.intent.intent_id, None)
            if outcome.done() and not outcome.cancelled():
                outcome.exception()  # the callers may have left

    async def _buy(self, submission: Submission) -> Intent | Standing | None:
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
            queued=lambda place: self._recorder.report(Queued, intent, place=place),
            per=self._rate_limit.per if self._rate_limit else 0.0,
            ping=self._ping,
            stop=submission.stop,
            patience=self._give_up_after / self._clock.scale,
        )
        holder = None
        if intent.key is not None and not self._line.is_open:
            holder = await self._journal.find(key=(intent.scope, intent.key))
        # The outcome of a known key needs no slot.
        is_known = holder is not None and holder.state is not State.REFUSED
        while True:
            try:
                answer = await ask() if is_known else None
                if answer is None or isinstance(answer, Busy):
                    answer = await wait_for_slot()
            except Exception:
                if submission.slot is None:
                    withdraw = partial(self._withdraw, submission)
                    self._recorder.keep_trying(withdraw)
                elif (row := await self._refuse(submission)) is not None:
                    return row
                raise
            is_known = False
            if isinstance(answer, Standing):
                # Another row has the key; or this one was accepted by a callback during a pause.
                is_own = answer.intent.intent_id == intent.intent_id
                return self._recorder.require_task(answer.intent) if is_own else answer
            if answer is None or submission.stop.done():
                return await self._end_unsent(submission)
            started = self._clock.time()
            try:
                task_id = await self._post(submission)
            except (APIError, TransportError) as proof:
                submission.is_posting = False
                late = await self._late_claim(submission)
                if isinstance(late, Standing):
                    # Nothing was sent: another process took this one for dead and moved the row.
                    return self._recorder.require_task(late.intent)
                if isinstance(late, Busy):
                    continue
                budget = budget or RetryBudget(self._give_up_after, self._clock.chance)
                budget.spend(self._clock.time() - started)
                pause = await self._pause_after(submission, proof, budget)
                if pause is None:
                    if (row := await self._refuse(submission)) is not None:
                        return row
                    raise
            except protocol.Unsure as error:
                return await self._recorder.unknown(intent, submission.slot, str(error))
            except Exception as error:  # noqa: BLE001 - the POST may have been accepted
                _log.exception("a bug: the POST of intent %s failed", intent.intent_id)
                return await self._recorder.unknown(
                    intent, submission.slot, f"a bug: {type(error).__name__}"
                )
            else:
                return await self._recorder.accepted(intent, submission.slot, task_id)
            await asyncio.wait({submission.stop}, timeout=pause / self._clock.scale)

    async def _claim(self, submission: Submission) -> Claim:
        asked_at = self._clock.boot_time()
        answer = await self._journal.claim(
            submission.intent, self._account, self._rate_limit, longest_post=self._longest_post
        )
        if isinstance(answer, Claimed):
            submission.slot, submission.claimed_at = answer.slot, asked_at
        submission.was_busy |= isinstance(answer, Busy)
        return answer

    async def _confirm(self, submission: Submission) -> None:
        """Before the first byte of a POST: claim again if the last claim was long ago.

        The process may have stood still since then (SIGSTOP, a suspended laptop, a slow connect).
        Other processes may have taken it for dead and moved its row. Raises if the row is no longer
        ours. If the claims themselves are slow, each one is valid for twice as long as the last.
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

    async def _try_to_claim(self, submission: Submission) -> Claim | Exception:
        try:
            return await self._claim(submission)
        except Exception as error:  # noqa: BLE001 - whatever a journal raises, `_late_claim` raises
            return error

    async def _late_claim(self, submission: Submission) -> Claim | None:
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
            await self._refuse(submission)
            raise
        return answer

    async def _post(self, submission: Submission) -> str:
        """Send a POST once; return the id of its task.

        Raises:
            APIError, TransportError: a proof that nothing was bought.
            Unsure: it cannot be known whether it was bought.
        """
        self.posts_sent += 1
        submission.is_posting = True
        self._recorder.report(Sent, submission.intent)
        outage, ticket = self._line.outage, submission.ticket
        try:
            answer = await self._send(submission.call, partial(self._confirm, submission))
            with clearing_locals():
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
        self, submission: Submission, proof: APIError | TransportError, budget: RetryBudget
    ) -> float | None:
        """Release the slot and return the seconds until the POST is sent again; None to give up.

        Raises:
            JournalError: the journal cannot be used, so the POST cannot be sent again.
        """
        sent, gate_pause = True, None
        if protocol.is_retryable(proof):
            pause = budget.pause(proof.retry_after)
            rest = pause
            if rest is None:
                rest = min(proof.retry_after or 0.0, protocol.LONGEST_RETRY_AFTER)
            self._slow_down(rest)
            gate_pause = rest / self._clock.scale
        elif isinstance(proof, TransportError):
            pause, sent = None if proof.permanent else budget.pause(), False
        else:
            return None  # MidAPI would refuse it again; the slot is released with the outcome
        try:
            await self._journal.release(submission.slot or "", sent=sent, pause=gate_pause)
        except Exception:
            await self._refuse(submission)
            raise
        if pause is not None:
            submission.problem = proof
            facts = {"reason": str(proof), "delay": pause, "left": budget.left}
            self._recorder.report(Retrying, submission.intent, **facts)
        return pause

    async def _end_unsent(self, submission: Submission) -> Intent | None:
        """As `_refuse`, when the last caller has left or the client closes, before a POST."""
        if submission.slot is not None:
            return await self._refuse(submission)
        if submission.was_busy:
            self._recorder.keep_trying(partial(self._withdraw, submission))
        return None

    async def _refuse(self, submission: Submission) -> Intent | None:
        """Record that nothing was bought; return the row if a callback has shown the opposite."""
        return await self._recorder.refused(submission.intent, submission.slot)

    async def _interrupted(self, submission: Submission) -> Exception:
        """The error for the callers if the client closes before the POST was sent or answered."""
        if submission.slot is None:
            with suppress(Exception):
                await self._withdraw(submission)
            return ClientClosed()
        try:
            row = await self._recorder.unknown(
                submission.intent, submission.slot, "the client was closed before the answer came"
            )
        except SubmissionUnknown as error:
            return error
        return about(ClientClosed(row.task_id), intent_id=row.intent_id)

    async def _withdraw(self, submission: Submission) -> None:
        """After claims without a slot: refuse the row, in case it was written; nothing was sent."""
        if await self._journal.find(intent_id=submission.intent.intent_id) is not None:
            await self._journal.advance(submission.intent.intent_id, State.REFUSED)
