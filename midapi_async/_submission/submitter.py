"""Submitting: at most one accepted POST per intent, and nothing that was paid for is lost.

A `Submitter` answers callers. It decides what a known key means, and waits for rows that other
processes send. `sender` carries a new submission out, and `outcomes` records how it ended. All
callers with the same key wait for one outcome: that of the POST, or of a callback that came first.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import attrs

from .._runtime.clock import Clock
from .._wire import protocol
from .._wire.bodies import fingerprint
from .._wire.protocol import Call
from .._wire.tokens import new_token, token_hash
from ..errors import (
    ClientClosed,
    JournalError,
    KeyConflict,
    MidAPIError,
    WaitTimeout,
    about,
    process_of,
)
from ..journal import PENDING, Intent, Journal, State
from ..requests import Request, check_arguments
from .outcomes import OutcomeRecorder
from .sender import Sender, Submission

_LAST_READ = 0.5  # seconds for reading a row once more after the deadline


@attrs.define(eq=False, repr=False, kw_only=True)
class Submitter:
    """Turns requests into accepted intents.

    Args:
        journal: stores the intents.
        sender: carries out submissions.
        recorder: knows how they ended.
        scope: the service's origin and the namespace.
        callback_url: makes the callback URL for a token; None without a receiver.
        clock: the client's clock.
    """

    _journal: Journal
    _sender: Sender
    _recorder: OutcomeRecorder
    _scope: str
    _callback_url: Callable[[str], str] | None
    _clock: Clock
    _is_closing: bool = attrs.field(default=False, init=False)

    async def submit(
        self,
        request: Request,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        supersedes: str | None = None,
        deadline: float | None = None,
        stop: asyncio.Future[None] | None = None,
    ) -> tuple[Intent, bool]:
        """Buy what a request asks for, once.

        Args:
            request: what to buy.
            key: the user's own name for it, or None.
            metadata: the user's own notes, or None.
            callback_url: the user's own callback URL, in place of ours.
            supersedes: the intent that it replaces, or None.
            deadline: when to stop waiting, on the client's clock; None for never.
            stop: when it is done, nothing more is sent; a POST that is under way is awaited.

        Returns:
            An intent whose task is known, and whether the key had been used before.

        Raises:
            InvalidRequestError: an argument is wrong, or the key belongs to another request.
            SubmissionUnknown: it cannot be known whether it was bought.
            WaitTimeout, ClientClosed: too late. With an ``intent_id``, a POST is under way.
            MidAPIError: any other error means that nothing was bought.
        """
        intent, call = self._prepare(request, key, metadata, callback_url, supersedes)
        if deadline is not None and deadline <= self._clock.time():
            # There is no time left to send it, but an earlier outcome of its key needs no waiting.
            known = None if key is None else await self._journal.find(key=(self._scope, key))
            if known is None or known.state is State.REFUSED:
                raise about(WaitTimeout(), key=key)
            if known.state not in PENDING:
                deadline = None
        waiting_for: str | None = None
        sender: Intent | None = None
        submission: Submission | None = None
        scope = asyncio.timeout_at(None if deadline is None else deadline / self._clock.scale)
        try:
            async with scope:
                while True:
                    submission = self._sender.start(intent, call, stop)
                    waiting_for = sender = None
                    try:
                        row = await self._sender.outcome(submission, stop)
                    finally:
                        if submission.is_posting:
                            waiting_for = intent.intent_id
                    if isinstance(row, Intent):
                        return row, False
                    # Another row has the key. If that is refused in the end, submit after all.
                    holder = row.intent
                    if not row.same:
                        names = {"intent_id": holder.intent_id, "task_id": holder.task_id}
                        raise about(KeyConflict(key or ""), **names)
                    if holder.state in PENDING:
                        waiting_for, sender = holder.intent_id, holder
                        holder = await self._wait_for_outcome(holder)
                    if holder.state is not State.REFUSED:
                        return self._recorder.require_task(holder), True
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
        cause = submission.problem if submission is not None else None
        raise about(_timeout(waiting_for, sender, cause), key=key) from cause

    async def find(self, key: str) -> Intent | None:
        """The accepted intent that has a key; None if the key is free, or was refused.

        Raises:
            MidAPIError: as `submit` for this key.
        """
        if self._is_closing:
            raise ClientClosed
        check_arguments(key or "", {}, None)
        row = await self._journal.find(key=(self._scope, key))
        if row is not None and row.state in PENDING:
            # Not `_wait_for_outcome`: this asks, and must not be a reason to send it again.
            row = await self._recorder.wait_for_change(row, PENDING)
        return (
            None if row is None or row.state is State.REFUSED else self._recorder.require_task(row)
        )

    async def settle(
        self, row: Intent, deadline: float | None, follow: Callable[[Intent], None]
    ) -> Intent:
        """Wait until an intent that is unknown, or is being sent, has been accepted.

        Args:
            row: the intent.
            deadline: when to stop waiting, on the client's clock; None for never.
            follow: looks at the candidates of a row, which any process may have stored.

        Raises:
            SubmissionUnknown: no callback came before the deadline.
        """
        unsettled = PENDING | {State.UNKNOWN}
        scope = asyncio.timeout_at(None if deadline is None else deadline / self._clock.scale)
        try:
            async with scope:
                row = await self._recorder.wait_for_change(row, unsettled, follow)
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
            raise self._recorder.unknown_error(
                row, f"{process_of(row.process, row.host)} is still sending it"
            )
        if row.state in unsettled:
            missing = "record could be read" if row.other_task_ids else "callback came"
            raise self._recorder.unknown_error(row, f"no {missing} in time")
        return self._recorder.require_task(row)

    def stop(self, *, is_closing: bool = False) -> None:
        """Send nothing more: callers that wait for a slot get `ClientClosed`, and later ones, too.

        Args:
            is_closing: whether callers of `settle` get `ClientClosed` or `SubmissionUnknown`.
        """
        self._is_closing = is_closing
        self._recorder.is_stopped = True
        self._recorder.wake()
        self._sender.stop()

    async def aclose(self, patience: float) -> None:
        """Wait for the answers to POSTs that are under way, and give every caller an outcome.

        Args:
            patience: seconds of the loop; a POST without an answer by then becomes UNKNOWN.
        """
        self.stop(is_closing=True)
        await self._sender.aclose(patience)
        await self._recorder.aclose()

    async def _wait_for_outcome(self, row: Intent) -> Intent:
        """Wait until a row is not PENDING, or until `stop`; return the row as it is then.

        A submission of this client is sent, or sent again, as long as this waits for it.
        """
        submission = self._sender.submissions.get(row.intent_id)
        if submission is not None and not submission.stop.done():
            found = await self._sender.outcome(submission)
            if isinstance(found, Intent):
                return found
        return await self._recorder.wait_for_change(row, PENDING)

    def _prepare(
        self,
        request: Request,
        key: str | None,
        metadata: Mapping[str, str] | None,
        callback_url: str | None,
        supersedes: str | None,
    ) -> tuple[Intent, Call]:
        metadata = {} if metadata is None else metadata
        check_arguments(key, metadata, callback_url)
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


def _timeout(intent_id: str | None, sender: Intent | None, cause: Exception | None) -> WaitTimeout:
    """The error for a submission that was not answered in time; another process may send it."""
    process, host = (sender.process, sender.host) if sender is not None else (None, None)
    problem = None if cause is None else str(cause)
    return WaitTimeout(intent_id=intent_id, process=process, host=host, problem=problem)
