"""Submitting: at most one accepted POST per intent, and nothing that was paid for is lost.

The way of one submission: the gate, a row in the journal, the POST, a row in the journal. From the
first row on it runs in a task of ours, so that no cancellation of the caller's can lose an answer
that was paid for. Whoever waits for the outcome, waits for the same arrival: the caller, a second
caller with the same key, and `settle`. It comes from the POST's answer or from a callback,
whichever is first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import attrs

from .._runtime.background import OwnedTasks
from .._runtime.urls import url_problem
from .._wire import protocol as _protocol
from .._wire.bodies import fingerprint
from .._wire.json import dumps
from .._wire.protocol import Answer, Call, Unsure
from .._wire.tokens import new_token, token_hash
from ..errors import (
    APIError,
    ClientClosed,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MaintenanceError,
    RateLimitError,
    SubmissionUnknown,
    TransportError,
)
from ..journal import BOUGHT, Intent, Journal, State
from ..requests import Request
from .retry import Patience

if TYPE_CHECKING:
    from .._runtime.clock import Clock
    from .gate import Gate

_log = logging.getLogger("midapi_async")
MAX_METADATA = 4096  # bytes
MAX_KEY = 200  # characters
_REWRITE_AFTER = 1.0  # seconds until a failed write of a paid task id is tried again


@attrs.frozen(kw_only=True)
class Order:
    """What the user asked `generate` for, checked.

    Attributes:
        request: what to buy.
        key: the user's own name for it, or None.
        metadata: the user's own notes.
        callback_url: the user's own callback URL, in place of ours.
    """

    request: Request
    key: str | None = None
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    callback_url: str | None = None

    def __attrs_post_init__(self) -> None:
        key, metadata = _key_problem(self.key), _metadata_problem(self.metadata)
        callback_url = _callback_problem(self.callback_url)
        if key or metadata or callback_url:
            found = {"key": key, "metadata": metadata, "callback_url": callback_url}
            raise InvalidRequestError({name: each for name, each in found.items() if each})


def _key_problem(key: object) -> str | None:
    if key is None or (isinstance(key, str) and 0 < len(key) <= MAX_KEY and key.isprintable()):
        return None
    return f"must be a str of 1 to {MAX_KEY} printable characters"


def _metadata_problem(metadata: object) -> str | None:
    if not metadata and isinstance(metadata, dict):
        return None
    if not isinstance(metadata, Mapping) or not all(
        isinstance(part, str) for pair in metadata.items() for part in pair
    ):
        return "must be a mapping of str to str"
    try:
        size = len(dumps(dict(metadata)))
    except UnicodeEncodeError:
        return "holds half of a character (a lone surrogate) that cannot be stored"
    return None if size <= MAX_METADATA else f"must be at most {MAX_METADATA:,} bytes, is {size:,}"


def _callback_problem(url: object) -> str | None:
    return None if url is None else url_problem(url)


@attrs.frozen(kw_only=True)
class Ways:
    """How a submitter reaches the rest of the house.

    Attributes:
        send: sends one submission and reads its answer.
        callback_url: makes the callback URL for a token; None without a receiver.
        slow_down: told for how many seconds MidAPI wants nothing from us.
    """

    send: Callable[[Call], Awaitable[Answer]]
    callback_url: Callable[[str], str] | None
    slow_down: Callable[[float], None]


class Submitter:
    """Turns orders into accepted intents.

    Args:
        journal: where intents live.
        scope: the account's origin and namespace.
        gate: the account's gate.
        ways: how to reach the rest of the house.
        clock: the client's clock.
        give_up_after: seconds of sending again after a proof that nothing was bought.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        scope: str,
        gate: Gate,
        ways: Ways,
        clock: Clock,
        give_up_after: float,
    ) -> None:
        self._journal = journal
        self._scope = scope
        self._gate = gate
        self._ways = ways
        self._clock = clock
        self._give_up_after = give_up_after
        self._arrivals: dict[str, _Arrival] = {}
        self._posts = OwnedTasks()
        self._others = OwnedTasks()
        self._watcher: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] = clock.loop.create_future()
        self._settling: set[asyncio.Timeout] = set()
        self._settles_at_once = False
        self.posts_sent = 0

    # ─── the way of one submission ───────────────────────────────────────────────────────────────

    async def submit(self, order: Order, *, supersedes: str | None = None) -> Intent:
        """Buy what an order asks for, once, and return its accepted intent.

        Args:
            order: what to buy.
            supersedes: the unknown intent whose place it takes, or None.

        Raises:
            SubmissionUnknown: nobody can know whether it was bought.
            MidAPIError: any other means that nothing was bought.
        """
        while True:
            if supersedes is None and (row := await self._standing(order)) is not None:
                return row
            intent, callback_url = self._intent(order, supersedes)
            await self._gate.enter()
            # From here on nothing depends on the caller, who may be cancelled at any await.
            arrival = self._arrivals[intent.intent_id] = _Arrival(self._clock.loop)
            call = _protocol.submit_call(order.request, callback_url)
            self._posts.start(self._carry_out(intent, call, arrival), eagerly=True)
            row = await arrival.outcome()
            if row.intent_id == intent.intent_id:
                return row
            if supersedes is not None:
                return self._bought(row)
            # Somebody else got the key while this one waited at the gate.

    async def _standing(self, order: Order) -> Intent | None:
        """The accepted intent that holds the order's key; None if the order is to be submitted."""
        if order.key is None:
            return None
        asked = fingerprint(order.request)
        row = await self._journal.find(key=(self._scope, order.key), fingerprint=asked)
        if row is None or row.state is State.REFUSED:
            return None
        if row.fingerprint != asked:
            raise KeyConflict(order.key)
        if row.state is State.SENDING:
            row = await self._change_of(row, while_in=frozenset({State.SENDING}))
        return None if row.state is State.REFUSED else self._bought(row)

    def _intent(self, order: Order, supersedes: str | None) -> tuple[Intent, str | None]:
        token, callback_url = None, order.callback_url
        if callback_url is None and self._ways.callback_url is not None:
            token = new_token()
            callback_url = self._ways.callback_url(token)
        intent = Intent(
            intent_id=os.urandom(16).hex(),
            scope=self._scope,
            request=order.request,
            fingerprint=fingerprint(order.request) if order.key is not None else "",
            token_hash=token_hash(token) if token is not None else None,
            created_at=time.time(),
            key=order.key,
            metadata=MappingProxyType(dict(order.metadata)),
            supersedes=supersedes,
        )
        return intent, callback_url

    async def _carry_out(self, intent: Intent, call: Call, arrival: _Arrival) -> None:
        """Everything from the first row to the outcome; the arrival gets what the caller gets."""
        is_claimed = False
        try:
            row = await self._claim(intent)
            is_claimed = True
            if row.intent_id == intent.intent_id:
                row = await self._send_and_record(intent, call)
        except Exception as error:  # noqa: BLE001 - it is the caller's, wherever that waits
            arrival.fail(error)
        except BaseException:
            await self._abandon(intent, arrival, is_claimed=is_claimed)
            raise
        else:
            arrival.succeed(row)
        finally:
            self._arrivals.pop(intent.intent_id, None)

    async def _claim(self, intent: Intent) -> Intent:
        """The row that holds the key; unless that is ours, the turn at the gate is not used."""
        row = None
        try:
            row = await self._journal.claim(intent)
        finally:
            if row is None or row.intent_id != intent.intent_id:
                self._gate.hand_back()
        return row

    async def _send_and_record(self, intent: Intent, call: Call) -> Intent:
        try:
            task_id = await self._deliver(intent, call)
        except Unsure as error:
            why = str(error)
        except (APIError, TransportError, JournalError, ClientClosed):
            await self._record_refusal(intent)
            raise
        except Exception as error:  # noqa: BLE001 - after the POST only one thing is certain: unknown
            _log.exception("a defect struck intent %s on its way", intent.intent_id)
            why = f"a defect: {type(error).__name__}"
        else:
            return await self._record_acceptance(intent, task_id)
        return await self._record_unknown(intent, why)

    async def _deliver(self, intent: Intent, call: Call) -> str:
        """The task id. The call is sent again only after a proof that nothing was bought.

        Raises:
            APIError, TransportError, ClientClosed: the last proof.
            JournalError: it was not sent again, since the gate's file cannot be used.
            Unsure: nobody can know.
        """
        patience = None
        while True:
            started = self._clock.time()
            try:
                return await self._post_once(call)
            except (APIError, TransportError) as proof:
                patience = patience or Patience(self._give_up_after, self._clock.chance)
                patience.spend(self._clock.time() - started)
                pause = self._pause_after(proof, patience)
                if pause is None:
                    raise
            await self._rest(pause)
            if (task_id := await self._called_back(intent)) is not None:
                return task_id
            await self._gate.enter(again=True)

    async def _called_back(self, intent: Intent) -> str | None:
        """The task that a callback named though MidAPI refused: then it was bought all the same."""
        with suppress(Exception):  # no callback could be written there either
            row = await self._journal.find(intent_id=intent.intent_id)
            return row.task_id if row is not None else None
        return None

    async def _post_once(self, call: Call) -> str:
        self.posts_sent += 1
        try:
            return _protocol.read_submit(await self._ways.send(call))
        except TransportError as error:
            if error.sent:
                raise Unsure(error.reason) from None
            raise
        finally:
            self._gate.leave()

    def _pause_after(self, proof: APIError | TransportError, patience: Patience) -> float | None:
        """Seconds until the call is sent again; None where that is not to be."""
        if isinstance(proof, APIError) and not _protocol.may_pass(proof):
            return None
        if not isinstance(proof, RateLimitError | MaintenanceError):
            return patience.pause()
        pause = patience.pause(proof.retry_after)
        rest = pause if pause is not None else min(proof.retry_after or 0.0, 120.0)
        self._gate.slow_down(rest)
        self._ways.slow_down(rest)
        return pause

    async def _rest(self, seconds: float) -> None:
        """Pause, unless the client closes first."""
        await asyncio.wait({self._closing}, timeout=seconds / self._clock.scale)
        if self._closing.done():
            raise ClientClosed

    # ─── what became of it ───────────────────────────────────────────────────────────────────────

    async def _record_acceptance(self, intent: Intent, task_id: str) -> Intent:
        """The task id is in the journal before anybody gets it; if that fails, it is not lost."""
        try:
            row = await self._journal.advance(intent.intent_id, State.ACCEPTED, task_id=task_id)
        except Exception:  # noqa: BLE001 - what a journal raises must not lose what is known
            _log.critical(
                "task %s of intent %s was paid for and could not be written to the journal; it is "
                "kept in memory and written again",
                task_id,
                intent.intent_id,
                exc_info=True,
            )
            accept = partial(
                self._journal.advance, intent.intent_id, State.ACCEPTED, task_id=task_id
            )
            last_word = f"task {task_id} of intent {intent.intent_id} is in no journal"
            self._others.start(self._write_again(accept, last_word))
            return _accepted(intent, task_id)
        if row.task_id != task_id:
            _log.critical(
                "intent %s has two tasks, %s and %s: both may have been paid for",
                intent.intent_id,
                row.task_id,
                task_id,
            )
        return row

    async def _record_refusal(self, intent: Intent) -> None:
        """Nothing was bought; a process that dies before this is written leaves an UNKNOWN."""
        try:
            await self._refuse(intent)
        except Exception:  # noqa: BLE001 - what a journal raises must not lose what is known
            _log.exception("the journal is not told yet: intent %s was refused", intent.intent_id)
            self._others.start(self._write_again(partial(self._refuse, intent)))

    async def _refuse(self, intent: Intent) -> None:
        if intent.supersedes is not None:
            # First, so that the key of what may have been paid for is free at no time.
            await self._journal.advance(intent.supersedes, State.UNKNOWN)
        await self._journal.advance(intent.intent_id, State.REFUSED)

    async def _record_unknown(self, intent: Intent, reason: str) -> Intent:
        """The row as UNKNOWN, unless its callback came first."""
        try:
            row = await self._journal.advance(intent.intent_id, State.UNKNOWN)
        except Exception:  # noqa: BLE001 - what a journal raises must not lose what is known
            _log.exception("the journal is not told yet: intent %s is unknown", intent.intent_id)
            forget = partial(self._journal.advance, intent.intent_id, State.UNKNOWN)
            self._others.start(self._write_again(forget))
        else:
            if row.state in BOUGHT:
                return row
        _log.warning("nobody can know whether intent %s was accepted: %s", intent.intent_id, reason)
        raise self._unknown(intent, reason)

    async def _write_again(
        self, write: Callable[[], Awaitable[object]], last_word: str | None = None
    ) -> None:
        """What the journal did not take, every second until it does or the client closes."""
        while not self._closing.done():
            await asyncio.wait({self._closing}, timeout=_REWRITE_AFTER)
            with suppress(Exception):
                await write()
                return
        if last_word is not None:
            _log.critical(last_word)

    async def _abandon(self, intent: Intent, arrival: _Arrival, *, is_claimed: bool) -> None:
        """The client closes, or the loop ends, with the POST on its way, or before it."""
        if not is_claimed:
            with suppress(Exception):  # most likely it was not even written
                await self._refuse(intent)
            arrival.fail(ClientClosed())
            return
        try:
            row = await self._record_unknown(intent, "the client was closed before the answer came")
        except SubmissionUnknown as error:
            arrival.fail(error)
        else:
            arrival.succeed(row)

    def _unknown(self, intent: Intent, reason: str = "") -> SubmissionUnknown:
        can_settle = intent.token_hash is not None and self._ways.callback_url is not None
        return SubmissionUnknown(intent.intent_id, intent.key, can_settle, reason)

    # ─── rows that are there already ─────────────────────────────────────────────────────────────

    def _bought(self, row: Intent) -> Intent:
        """The row, if its task is known; else the error that says where it stands."""
        if row.state in BOUGHT:
            return row
        if row.state is State.UNKNOWN:
            raise self._unknown(row)
        told = f"intent {row.intent_id} is {row.state}; a new submission needs a key of its own"
        raise InvalidRequestError({"key" if row.key else "intent_id": told})

    async def settle(self, row: Intent, seconds: float | None) -> Intent:
        """Wait until an unknown intent turns out to be accepted.

        Args:
            row: the intent.
            seconds: how long to wait; None for ever.

        Raises:
            SubmissionUnknown: it did not, in so many seconds.
        """
        waiting = frozenset({State.SENDING, State.UNKNOWN})
        seconds = 0.0 if self._settles_at_once else seconds
        scope = asyncio.timeout(None if seconds is None else seconds / self._clock.scale)
        try:
            async with scope:
                self._settling.add(scope)
                row = await self._change_of(row, while_in=waiting)
        except TimeoutError:
            raise self._unknown(row, "no callback came in time") from None
        finally:
            self._settling.discard(scope)
        return self._bought(row)

    def stop_waiting(self) -> None:
        """Whoever settles, now or later, is told at once what is known."""
        self._settles_at_once = True
        for scope in self._settling:
            scope.reschedule(self._clock.loop.time())

    async def bind(self, row: Intent, task_id: str) -> Intent:
        """A callback with the intent's token named its task, and the task's record fits.

        Raises:
            JournalError: it cannot be written; who waits here gets the task all the same.
        """
        bound = _accepted(row, task_id)
        try:
            bound = await self._journal.advance(row.intent_id, State.ACCEPTED, task_id=task_id)
        finally:
            if arrival := self._arrivals.get(row.intent_id):
                arrival.succeed(bound)
        return bound

    async def _change_of(self, row: Intent, while_in: frozenset[State]) -> Intent:
        """Wait until a row has left these states, here or in another process."""
        while row.state in while_in:
            arrival = self._arrivals.get(row.intent_id) or self._watch_for(row)
            arrival.waiting += 1  # before any await: as long as somebody counts, it stays known
            try:
                # Registered first and read then: nothing that happens in between is missed.
                now = await self._journal.find(intent_id=row.intent_id)
                if now is None:
                    raise JournalError(f"intent {row.intent_id} is gone from the journal")
                row = await arrival.outcome() if now.state is row.state else now
            finally:
                arrival.waiting -= 1
                self._unwatch(row.intent_id, arrival)
        return row

    def _watch_for(self, row: Intent) -> _Arrival:
        arrival = self._arrivals[row.intent_id] = _Arrival(self._clock.loop, row.state)
        if self._watcher is None or self._watcher.done():
            self._watcher = self._others.start(self._watch())
        return arrival

    def _unwatch(self, intent_id: str, arrival: _Arrival) -> None:
        if arrival.is_ours or (arrival.waiting and not arrival.is_done):
            return
        if self._arrivals.get(intent_id) is arrival:
            del self._arrivals[intent_id]
        if self._watcher and all(each.is_ours for each in self._arrivals.values()):
            self._watcher.cancel()
            self._watcher = None

    async def _watch(self) -> None:
        """Tell those who wait what somebody else did to their rows."""
        while True:
            try:
                async with aclosing(self._journal.changes()) as changes:
                    async for _ in changes:
                        await self._tell_changes()
            except Exception:  # noqa: BLE001 - whatever a journal raises, somebody still waits
                _log.exception("the journal cannot be watched; trying again")
                await asyncio.sleep(_REWRITE_AFTER)

    async def _tell_changes(self) -> None:
        for intent_id, arrival in list(self._arrivals.items()):
            if not arrival.is_ours:
                row = await self._journal.find(intent_id=intent_id)
                if row is not None and row.state is not arrival.state:
                    arrival.succeed(row)

    async def aclose(self, patience: float) -> None:
        """Let POSTs on their way answer, and give everybody who still waits an outcome.

        Args:
            patience: seconds of the loop that a POST gets; what has no answer then is UNKNOWN.
        """
        self._gate.close()
        if not self._closing.done():
            self._closing.set_result(None)
        await self._posts.finish(patience)
        for arrival in self._arrivals.values():
            arrival.fail(ClientClosed())
        self._arrivals.clear()
        await self._others.finish(_REWRITE_AFTER)


def _accepted(row: Intent, task_id: str) -> Intent:
    return attrs.evolve(row, state=State.ACCEPTED, task_id=task_id, accepted_at=time.time())


class _Arrival:
    """The outcome of one submission, for whoever waits for it.

    Args:
        loop: the client's event loop.
        state: the state that somebody else's submission was seen in; None for one of ours, which a
            task of this client carries out.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, state: State | None = None) -> None:
        self.state = state
        self.waiting = 0
        self.is_done = False
        self._loop = loop
        self._outcome: Intent | Exception | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def is_ours(self) -> bool:
        """Whether a task of this client carries the submission out."""
        return self.state is None

    async def outcome(self) -> Intent:
        """Wait for it. Cancelled, only this wait ends."""
        if not self.is_done:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)
        if isinstance(self._outcome, Intent):
            return self._outcome
        raise cast("Exception", self._outcome)

    def succeed(self, row: Intent) -> None:
        """The row as it is now; the first outcome counts."""
        self._settle(row)

    def fail(self, error: Exception) -> None:
        """The error that everybody who waits gets; the first outcome counts."""
        self._settle(error)

    def _settle(self, outcome: Intent | Exception) -> None:
        if self.is_done:
            return
        self._outcome, self.is_done = outcome, True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
