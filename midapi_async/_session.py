"""What exists while a client is open; the only module that connects the packages."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from ssl import SSLContext

import attrs

from ._runtime.background import OwnedTasks
from ._runtime.clock import Clock
from ._runtime.observer import Observer
from ._submission.candidates import Candidates
from ._submission.line import line_of
from ._submission.outcomes import OutcomeRecorder
from ._submission.sender import Sender
from ._submission.submitter import Submitter
from ._tracking.recorder import ResultRecorder
from ._tracking.schedule import Schedule
from ._tracking.seen import Seen
from ._tracking.tracker import Tracker
from ._tracking.verdict import kind_of
from ._wire.endpoints import Api
from ._wire.transport import Transport
from .config import RateLimit, RetryPolicy, Settings, Timeouts
from .errors import ClientClosed, InvalidRequestError
from .events import Event
from .files import Fetcher, Uploader
from .journal import Journal
from .journal.watcher import Watcher

CLOSE_PATIENCE = 20.0  # loop seconds to wait for answers to POSTs when the client closes
RECORD_PATIENCE = 5.0  # loop seconds to wait for results that are still being written then
POST_MARGIN = 5.0  # loop seconds that a POST may take beyond its timeout, on a busy machine
EVENT_PATIENCE = 5.0  # loop seconds that an async observer of events has for the last ones

_logger = cache(logging.getLogger)  # which takes a lock each time


class Session:
    """One client while it is open, in one process and one event loop.

    Attributes:
        clock: time, in the service's seconds.
        api: MidAPI's endpoints.
        journal: stores the intents.
        watcher: watches the journal for changes.
        origin: the service's origin.
        scope: the service's origin and the namespace; the scope of the client's rows.
        tracker: finds out when tasks are final.
        recorder: writes results into the journal.
        seen: what is known of tasks without a look.
        outcomes: knows how submissions ended.
        sender: carries out submissions.
        submitter: submits requests.
        candidates: finds out whether tasks that callbacks name belong to their intents.
        fetcher: fetches result files.
        uploader: uploads reference pictures.
        timeouts: the client's timeouts.
        observer: gets the events.
        iterations: a task for each iteration over `untaken()`, which finds what it yields.
        is_stopped: all waits have ended, because the client is closed or stops waiting.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        journal: Journal,
        scope: str,
        callback_url: Callable[[str], str] | None,
        takes_at_once: bool,
        schedule: Schedule,
        retry: RetryPolicy,
        rate_limit: RateLimit | None,
        timeouts: Timeouts,
        ssl: SSLContext | None,
        make_fetcher: Callable[..., Fetcher],
        on_event: Callable[[Event], object] | None,
        uploader: Callable[[Path | bytes], Awaitable[str]] | None,
    ) -> None:
        self.origin = origin = str(settings.base_url.origin())
        account = hashlib.sha256(f"{origin}\n{settings.api_key}".encode()).hexdigest()
        self.loop = asyncio.get_running_loop()
        self.is_over = False
        self.is_stopped = False
        self._process = os.getpid()
        self.clock = clock = Clock(settings.time_scale)
        self.journal = journal
        self.scope = scope
        self.timeouts = timeouts
        self.observer = Observer(on_event)
        self._transport = Transport(settings, clock, connect_timeout=timeouts.connect, ssl=ssl)
        self.api = Api(self._transport, settings, timeouts)
        self.fetcher = make_fetcher(
            settings, clock, self.api.download_url, connect_timeout=timeouts.connect, ssl=ssl
        )
        self.watcher = Watcher(journal)
        self.iterations = OwnedTasks()
        self.recorder = ResultRecorder(
            journal, origin=origin, takes_at_once=takes_at_once, schedule=schedule
        )
        self.seen = Seen(self.api.look, self.recorder, clock)
        self.tracker = Tracker(
            look=self.seen.look,
            schedule=schedule,
            learn=self.recorder.learn,
            clock=clock,
            report=self.report,
        )
        longest_post = POST_MARGIN + clock.network_seconds(timeouts.submit)
        self.outcomes = OutcomeRecorder(
            journal=journal,
            watcher=self.watcher,
            longest_post=longest_post,
            has_receiver=callback_url is not None,
            report=self.report,
            clock=clock,
        )
        self.sender = self._sender(account, longest_post, rate_limit, retry)
        self.submitter = Submitter(
            journal=journal,
            sender=self.sender,
            recorder=self.outcomes,
            scope=scope,
            callback_url=callback_url,
            clock=clock,
        )
        self.uploader = Uploader(
            settings, clock, journal, scope, timeouts, self.submitter.find, ssl=ssl, own=uploader
        )
        self.candidates = Candidates(
            self.outcomes,
            journal,
            look=self.seen.look,
            hint=self.tracker.hint,
            patience=lambda request: schedule.longest(kind_of(request)),
            clock=clock,
        )

    def _sender(
        self, account: str, longest_post: float, rate_limit: RateLimit | None, retry: RetryPolicy
    ) -> Sender:
        scale = self.clock.scale
        return Sender(
            journal=self.journal,
            recorder=self.outcomes,
            account=account,
            line=line_of(account, is_limited=rate_limit is not None, scale=scale),
            # The journal counts in seconds of the machine.
            rate_limit=rate_limit and attrs.evolve(rate_limit, per=rate_limit.per / scale),
            send=self.api.submit,
            ping=self.api.credits,
            longest_post=longest_post,
            slow_down=self.tracker.rest,
            give_up_after=retry.give_up_after,
            clock=self.clock,
        )

    def check(self) -> None:
        """Check that the client is open, in this process and event loop.

        Raises:
            ClientClosed: it is closed.
            InvalidRequestError: it is open in another process or event loop.
        """
        if self.is_over:
            raise ClientClosed
        if os.getpid() != self._process:
            raise InvalidRequestError(
                {"client": "was opened in the parent process: open a new one after a fork"}
            )
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self.loop:
            raise InvalidRequestError(
                {"client": "is open in another event loop: use it there, or open a new one here"}
            )

    def report(self, event: Event) -> None:
        """Log an event, and give it to the observer."""
        log = _logger(event.logger)
        if log.isEnabledFor(event.level):
            log.log(event.level, "%s", event, stacklevel=2)
        self.observer.notify(event)

    async def open(self) -> None:
        """Use the journal for the first time.

        Raises:
            JournalError: the journal cannot be used.
        """
        await self.journal.take_over(self.scope)
        await self.recorder.recall_durations()
        self.candidates.resume(self.scope)

    def stop_waiting(self) -> None:
        """End all waits with `ClientClosed`, and send nothing more."""
        self.is_stopped = True
        self.iterations.cancel()
        self.fetcher.stopped.set()
        self.uploader.stop()
        self.submitter.stop()
        self.tracker.stop_waiting()

    async def finish(self) -> None:
        """Wait for the answers to POSTs, and end every wait."""
        self.is_stopped = True
        self.uploader.stop()
        self.submitter.stop(is_closing=True)
        await self.iterations.finish()
        await self.tracker.aclose()
        await self.submitter.aclose(CLOSE_PATIENCE)

    async def close_connections(self) -> None:
        """Finish the writes to the journal and close every connection."""
        try:
            await self.candidates.aclose()
            await self.seen.aclose()
            self.recorder.retry()
            await self.recorder.writes.finish(RECORD_PATIENCE)
            await self.watcher.aclose()
            await self.observer.aclose(EVENT_PATIENCE)
        finally:
            await self.uploader.aclose()
            await self.fetcher.aclose()
            await self._transport.aclose()
