"""The client: what a user calls. Each method is a few steps; the other packages do the work."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from ssl import SSLContext
from types import EllipsisType, NoneType, TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal, Never, Self, Unpack, overload

import attrs

from ._runtime.observer import is_plain_function
from ._runtime.secret import hidden
from ._runtime.signals import before_signals
from ._runtime.urls import is_loopback, url_problem
from ._session import Session
from ._tracking.schedule import Expected, Schedule
from ._tracking.verdict import kind_of
from ._wire.bodies import make_request
from .callbacks import CallbackReceiver
from .callbacks.inbox import ClientInbox
from .config import (
    PollPolicy,
    RateLimit,
    RetryPolicy,
    Timeouts,
    database_url,
    environment,
    settings,
)
from .errors import ClientClosed, InvalidRequestError, SubmissionUnknown, naming, shown
from .events import Event
from .files import (
    DEFAULT_NAME,
    Fetcher,
    Progress,
    ResultFile,
    check_file_options,
    download_files,
    task_of,
)
from .handle import TaskHandle, deadline_of, handle_of
from .intents import Intents, pages_of
from .journal import BOUGHT, Journal, State
from .journal.memory import MemoryJournal
from .requests import (
    REQUESTS,
    HasTaskId,
    ImageFields,
    Request,
    TextToImage,
    UploadedURL,
    check_arguments,
    checked_task_id,
    has_several_jobs,
    nearest,
    paths_of,
)
from .tasks import TaskDetails
from .untaken import Untaken

if TYPE_CHECKING:
    from .batch import Batch, BatchProgress, BatchRequest

_log = logging.getLogger("midapi_async")

# All frozen, so one of each serves every client.
_DEFAULT_RETRY = RetryPolicy()
_DEFAULT_POLLING = PollPolicy()
_DEFAULT_RATE_LIMIT = RateLimit(20, per=10.0)
_DEFAULT_TIMEOUTS = Timeouts()


@attrs.frozen(kw_only=True)
class ClientStats:
    """What a client has done since it was opened.

    Attributes:
        submits: POSTs of submissions, retries included.
        unknown: submissions that ended as unknown: they may have been accepted. A callback may have
            settled some of them since then; ``intents.unknown()`` has the others.
        looks: GETs of record-info.
        failed_looks: looks that failed: no answer, an error, or an answer that is not MidAPI's.
        callbacks: callbacks that were accepted.
        ignored_callbacks: callbacks with a valid token that named another intent's task.
        misdirected: looks that were answered with the record of another task.
        unreadable_urls: URLs of results that could not be read and were left out.
        waiting: waits for a result at this moment.
        at_the_gate: submissions that wait for a slot, or for a retry.
        oldest_open: seconds since MidAPI accepted the oldest task for which somebody waits, or, if
            that is not known, since its first wait began; None if nobody waits.
        dropped_events: events that an async ``on_event`` was too slow for.
    """

    submits: int
    unknown: int
    looks: int
    failed_looks: int
    callbacks: int
    ignored_callbacks: int
    misdirected: int
    unreadable_urls: int
    waiting: int
    at_the_gate: int
    oldest_open: float | None
    dropped_events: int


class MidAPIClient:
    """Buys pictures and videos from MidAPI, each at most once, and waits until they are ready.

    Use it as ``async with MidAPIClient() as client:``. It works in one event loop at a time; after
    it was closed it may be opened again, also in another loop.

    Args:
        api_key: your key; the default is MIDAPI_API_KEY, or the file in MIDAPI_API_KEY_FILE.
        base_url: MidAPI's address; the default is MIDAPI_BASE_URL, else https://api.midapi.ai.
        receiver: takes MidAPI's callbacks; without one, results are found by looking only.
        journal: where submissions are stored: a folder on a local disk, shared by all processes of
            the machine; a ``postgresql://`` URL, shared by all machines; or a `Journal`, which you
            close yourself. The default is MIDAPI_JOURNAL, else memory, for as long as this client
            lives.
        namespace: keys, ``resume`` and ``intents`` see only submissions with the same base URL and
            the same namespace.
        ack: "auto": a result counts as taken when a wait has returned it; "manual": when you call
            ``handle.ack()``.
        retry: how long to retry a submission that was certainly not bought.
        polling: how to look for results.
        rate_limit: how many submissions the account may make; None for no limit in the client. All
            clients of the account in this event loop share it; with a folder as journal, all on
            this machine; with PostgreSQL, all on all machines. If their limits differ, the smallest
            one applies.
        timeouts: how long to wait for connections, answers and results.
        ssl: your own TLS context.
        proxy: the URL of an HTTP proxy, ``http://user:password@host:port``; "" for none; the
            default is MIDAPI_PROXY. HTTPS_PROXY is not read.
        time_scale: divides every waiting time, for a sandbox on loopback; the default is
            MIDAPI_TIME_SCALE.
        allow_http: allow plain http to other machines, with a warning; the default is
            MIDAPI_ALLOW_HTTP.
        downloads_at_once: how many files are fetched at a time; each stream of `open_result` counts
            as one while it is read.
        max_file: bytes of the largest file that is fetched.
        result_hosts: the names of the only hosts from which files are fetched, besides the base
            URL's; redirects and download links included. The default is every host with a public
            address. Set it behind a proxy, where addresses cannot be checked.
        on_event: called with each `Event` of ``midapi_async.events``. A function must not block; an
            async function gets the events one at a time from a queue, and while 10,000 are waiting,
            new ones are dropped and counted in ``stats()``. Its exceptions are logged once.
        upload_url: the server that takes uploads; the default is MIDAPI_UPLOAD_URL, else the one
            that kie.ai documents if the base URL is kie.ai's, else the base URL if that is a
            sandbox on loopback. MidAPI documents none. It gets the API key.
        uploader: your own async function. It puts a file where MidAPI can fetch it, such as a
            bucket, and returns the URL. It gets a Path, or bytes if there is no file, and replaces
            ``upload_url``. Its uploads are not remembered, so it may get the same file again.

    Raises:
        InvalidRequestError: naming each setting that is missing or wrong.
    """

    _session: Session | None = None
    _inbox: ClientInbox
    _exits: AsyncExitStack
    _was_opened = False
    _is_opening = False
    _closing: asyncio.Task[None] | None = None
    _warned_of_keys = False
    _warned_of_jobs = False

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        receiver: CallbackReceiver | None = None,
        journal: Journal | str | os.PathLike[str] | None = None,
        namespace: str = "default",
        ack: Literal["auto", "manual"] = "auto",
        retry: RetryPolicy = _DEFAULT_RETRY,
        polling: PollPolicy = _DEFAULT_POLLING,
        rate_limit: RateLimit | None = _DEFAULT_RATE_LIMIT,
        timeouts: Timeouts = _DEFAULT_TIMEOUTS,
        ssl: SSLContext | None = None,
        proxy: str | None = None,
        time_scale: float | None = None,
        allow_http: bool = False,
        downloads_at_once: int = 8,
        max_file: int = 1 << 30,
        result_hosts: Collection[str] | None = None,
        on_event: Callable[[Event], object] | None = None,
        upload_url: str | None = None,
        uploader: Callable[[Path | bytes], Awaitable[str]] | None = None,
    ) -> None:
        # For tracebacks with local variables; a journal's URL may contain a password.
        api_key, proxy, journal = hidden(api_key), hidden(proxy), hidden(journal)
        self._settings = settings(
            api_key,
            base_url,
            time_scale,
            proxy=proxy,
            allow_http=allow_http,
            upload_url=upload_url,
        )
        self._receiver = receiver
        self._journal = _journal(journal)
        self._owns_journal = self._journal is not journal
        _check_options(
            namespace,
            ack,
            {"on_event": on_event, "uploader": uploader},
            receiver=(receiver, CallbackReceiver, None),
            retry=(retry, RetryPolicy),
            polling=(polling, PollPolicy),
            rate_limit=(rate_limit, RateLimit, None),
            timeouts=(timeouts, Timeouts),
            ssl=(ssl, SSLContext, None),
        )
        check_file_options(downloads_at_once, max_file, result_hosts)
        self._schedule = Schedule(polling)
        # Called by `open`: everything that exists only while the client is open.
        self._make_session = partial(
            Session,
            settings=self._settings,
            journal=self._journal,
            scope=f"{self._settings.base_url.origin()} {namespace}",
            callback_url=receiver.callback_url if receiver else None,
            takes_at_once=ack == "auto",
            schedule=self._schedule,
            retry=retry,
            rate_limit=rate_limit,
            timeouts=timeouts,
            ssl=ssl,
            make_fetcher=partial(
                Fetcher, at_once=downloads_at_once, max_file=max_file, hosts=result_hosts
            ),
            on_event=on_event,
            uploader=uploader,
        )

    def __repr__(self) -> str:
        state = "open" if self._session else "closed" if self._was_opened else "not opened"
        made = getattr(self, "_settings", None)  # __init__ may have failed
        return f"<MidAPIClient {made.base_url if made else 'not made'} {state}>"

    def __reduce__(self) -> Never:
        raise TypeError(
            "a client cannot be copied or pickled: it has connections, and the API key. Make one "
            "in each process; with the same folder as journal they share keys and tasks"
        )

    def __del__(self) -> None:
        if getattr(self, "_session", None) is not None:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    # ─── opening and closing ─────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Open the client, as ``async with`` does at its start.

        Raises:
            ReceiverError: the receiver cannot listen on its port.
            JournalError: the journal cannot be used.
        """
        if self._closing is not None and not self._closing.get_loop().is_closed():
            await asyncio.wait({self._closing})
        if self._session is not None and self._session.loop.is_closed():
            self._session = None  # that loop was closed and the client was not
        if self._session is not None or self._is_opening:
            raise InvalidRequestError({"client": "is already open"})
        self._is_opening = True
        try:
            await self._open()
        finally:
            self._is_opening = False

    async def _open(self) -> None:
        receiver = self._receiver
        if receiver is not None and not is_loopback(self._settings.base_url):
            receiver.check_reachable()
        async with AsyncExitStack() as exits:
            if self._owns_journal:
                exits.push_async_callback(self._journal.aclose)
            session = self._make_session()
            inbox = ClientInbox(session)
            # They run in reverse order: the receiver must still answer callbacks while POSTs end.
            exits.push_async_callback(session.close_connections)
            await session.open()
            exits.push_async_callback(inbox.aclose)
            if receiver is not None:
                await receiver.attach(inbox)
                exits.push_async_callback(receiver.detach, inbox)
                inbox.open()
            exits.push_async_callback(session.finish)
            session.tracker.start()
            self._session, self._inbox, self._exits = session, inbox, exits.pop_all()
            self._was_opened = True

    def stop_waiting(self) -> None:
        """End every wait now, and every later one at once, and send nothing more.

        Some servers, such as uvicorn, finish their open requests before you can close the client.
        Call this when such a server begins to shut down. Each wait raises `ClientClosed` with its
        task's id; so does a submission that waits to be sent, and every later one (without an id);
        ``intents.settle`` raises `SubmissionUnknown`. Uploads end, too. POSTs that are under way
        finish. Tasks go on and can be awaited by another client. Without effect while the client is
        not open.
        """
        if self._session is not None:
            self._session.stop_waiting()

    def stop_on_signals(self) -> AbstractContextManager[None]:
        """At SIGTERM and SIGINT call `stop_waiting`, then the old handler, while the block runs.

        Use it inside ``async with client:``, around the code that runs. If there is no old handler,
        the signal would kill the process, and the answers to POSTs that are under way would be
        lost. Instead the current task is cancelled and the block ends with `SystemExit`, so that
        the client is closed; a second signal kills the process. Without effect outside the main
        thread.
        """
        self._opened()
        return before_signals(self.stop_waiting)

    async def aclose(self) -> None:
        """Close the client: send nothing more, wait for the answers to POSTs, close everything.

        Every wait raises `ClientClosed` with its task's id. A POST without an answer after 20 s
        becomes an unknown submission. A second call waits for the first one; if this is cancelled,
        closing goes on in the background.
        """
        session = self._session
        if session is not None and session.loop.is_closed():
            self._session = session = None  # with its loop, everything in it has ended
        if session is not None:
            session.check()
            self._session, session.is_over = None, True
            self._closing = session.loop.create_task(self._exits.aclose())
        closing = self._closing
        if closing is not None and not closing.get_loop().is_closed():
            await asyncio.wait({closing})
            self._closing = None
            closing.result()

    def _opened(self) -> Session:
        session = self._session
        if session is None:
            if self._was_opened:
                raise ClientClosed
            raise InvalidRequestError(
                {"client": "is not open: use it in 'async with client:', or await client.open()"}
            )
        session.check()
        return session

    # ─── buying ──────────────────────────────────────────────────────────────────────────────────

    @overload
    async def generate(
        self,
        prompt: str,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        timeout: float | None = None,
        **fields: Unpack[ImageFields],
    ) -> TaskHandle: ...

    @overload
    async def generate(
        self,
        request: Request,
        /,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        timeout: float | None = None,
    ) -> TaskHandle: ...

    async def generate(
        self,
        prompt: str | Request | None = None,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        timeout: float | None = None,
        **fields: object,
    ) -> TaskHandle:
        """Submit a request, once; return the handle of its task.

        Args:
            prompt: a prompt, or one of the eight requests.
            key: your own name for the request. A key is never paid for twice: the second call with
                the same key and request returns the handle of the first call's task.
            metadata: your own notes, at most 4 KiB; you get them back from ``handle.metadata`` and
                ``resume()``, and they are never sent.
            callback_url: your own URL for callbacks, in place of the receiver's. Then no callback
                reaches this client, and a lost answer cannot be settled by one.
            timeout: seconds for everything: uploads, waiting for a slot, the POST, retries; None
                waits without a limit.
            **fields: with a prompt, the other fields of `TextToImage`.

        Raises:
            InvalidRequestError: an argument is wrong; `KeyConflict` if the key belongs to another
                request.
            SubmissionUnknown: it cannot be known whether it was bought.
            TaskExpired: the key was bought longer ago than MidAPI keeps results.
            WaitTimeout: it took longer than ``timeout``. With an ``intent_id``, a POST is under
                way, goes on, and may buy it; without one, nothing was bought.
            ClientClosed: the client was closed, or has stopped all waits; otherwise as WaitTimeout.
            MidAPIError: any other error means that nothing was bought.
        """
        with naming(key=key):
            session = self._opened()
            asked = _request(prompt, fields, "key", "metadata", "callback_url", "timeout")
            deadline = deadline_of(timeout, session)
            if paths_of(asked):
                # Whatever is wrong must show before files are uploaded.
                check_arguments(key, {} if metadata is None else metadata, callback_url)
                asked = await session.uploader.prepare(asked, key=key, deadline=deadline)
        return await self._buy(
            asked, key=key, metadata=metadata, callback_url=callback_url, deadline=deadline
        )

    async def _buy(
        self,
        asked: Request,
        *,
        key: str | None,
        metadata: Mapping[str, str] | None,
        callback_url: str | None = None,
        deadline: float | None = None,
        stop: asyncio.Future[None] | None = None,
    ) -> TaskHandle:
        """Submit a request without paths; see `generate`.

        When ``stop`` is done, nothing more is sent, and what was not sent raises `ClientClosed`.
        """
        session = self._opened()
        if key and not self._journal.is_durable and not self._warned_of_keys:
            self._warned_of_keys = True
            _log.warning(
                "keys are kept in memory only, as long as this client lives; journal='a folder' or "
                "MIDAPI_JOURNAL keeps them"
            )
        row, replayed = await session.submitter.submit(
            asked,
            key=key,
            metadata=metadata,
            callback_url=callback_url,
            deadline=deadline,
            stop=stop,
        )
        if not replayed and not self._warned_of_jobs and has_several_jobs(asked):
            self._warned_of_jobs = True
            _log.warning(
                "a prompt contains {…, …} or --repeat, for which Midjourney runs several jobs: it "
                "is not known how many MidAPI runs and bills; client.credits() shows what is left"
            )
        return handle_of(row, session, replayed=replayed)

    @overload
    async def generate_and_wait(
        self,
        prompt: str,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        wait_timeout: float | EllipsisType | None = ...,
        **fields: Unpack[ImageFields],
    ) -> TaskDetails: ...

    @overload
    async def generate_and_wait(
        self,
        request: Request,
        /,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        wait_timeout: float | EllipsisType | None = ...,
    ) -> TaskDetails: ...

    async def generate_and_wait(
        self,
        prompt: str | Request | None = None,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        wait_timeout: float | EllipsisType | None = ...,
        **fields: object,
    ) -> TaskDetails:
        """Submit a request and wait for its result.

        If the answer to the POST is lost and there is a receiver, it waits for the task's callback
        before it raises `SubmissionUnknown`: three times as long as nine of ten such tasks take,
        and at least two minutes.

        Args:
            prompt: a prompt, or one of the eight requests.
            key: as for `generate`.
            metadata: as for `generate`.
            callback_url: as for `generate`.
            wait_timeout: seconds for everything: uploads, waiting for a slot, the POST, the
                callback after a lost answer, the result; None waits without a limit; left out,
                ``Timeouts.wait`` counted from the acceptance of the task.
            **fields: with a prompt, the other fields of `TextToImage`.

        Raises:
            MidAPIError: as in `generate` and `TaskHandle.wait`.
        """
        with naming(key=key):
            session = self._opened()
            asked = _request(prompt, fields, "key", "metadata", "callback_url", "wait_timeout")
            deadline, time = deadline_of(wait_timeout, session, "wait_timeout"), session.clock.time
        try:
            handle = await self.generate(
                asked,
                key=key,
                metadata=metadata,
                callback_url=callback_url,
                timeout=None if deadline is None else deadline - time(),
            )
        except SubmissionUnknown as unknown:
            left = None if deadline is None else max(0.0, deadline - time())
            handle = await self._settle(unknown, asked, left)
        return await handle.wait(wait_timeout if deadline is None else max(0.0, deadline - time()))

    async def _settle(
        self, unknown: SubmissionUnknown, asked: Request, left: float | None = None
    ) -> TaskHandle:
        """Wait for the callback of a submission whose answer was lost.

        Raises:
            SubmissionUnknown: there is no receiver, or no callback came in time.
        """
        if not unknown.can_settle:
            raise unknown
        # No longer than such a task takes: after a refused POST no callback ever comes.
        seconds = self._schedule.longest(kind_of(asked))
        return await self.intents.settle(
            unknown.intent_id, seconds if left is None else min(seconds, left)
        )

    def generate_many(
        self,
        requests: Iterable[Request | str | BatchRequest]
        | AsyncIterable[Request | str | BatchRequest],
        *,
        batch: str | None = None,
        running: int = 100,
        on_unknown: Literal["report", "stop"] = "report",
        stop_after_failures: int | None = 20,
        max_credits: float | None = None,
        download_to: str | os.PathLike[str] | None = None,
        on_progress: Callable[[BatchProgress], object] | None = None,
        retry_failed: bool = False,
    ) -> Batch:
        """Buy many requests, each once, and get the result or the error of each as it ends.

        ``async with client.generate_many(prompts, batch="dunes") as batch:`` and in it
        ``async for item in batch:``, which yields a `BatchItem` for each row; its ``error`` says
        why there is no result. With a durable journal, a second run with the same name continues
        the batch: bought rows are not bought again, and finished rows need no HTTP request. Rows
        may be added, removed and moved between two runs.

        Errors that no row has caused (no network, 429, maintenance, the journal) pause the batch,
        which then retries. Submitting stops when the API key is refused (401), when credits (402)
        or a spending cap (433) are used up, and after ``stop_after_failures``. Rows that were
        bought are still yielded, then the iteration raises that error, with a note of the counts.
        Leaving the block stops submitting; tasks that were bought continue at MidAPI.

        Args:
            requests: an iterable or async iterable of prompts, requests and `BatchRequest`; it is
                read only as ``running`` allows, so it may be endless.
            batch: a name of 1 to 100 characters. Rows without a key get one made of this name and
                their request. A row without any key cannot be continued by a second run.
            running: how many rows may be in the batch at the same time: read, submitted, running,
                or ended and not yet taken from the iteration.
            on_unknown: "report" yields a row for which it cannot be known whether MidAPI accepted
                it as an item with `SubmissionUnknown`; "stop" also stops submitting.
            stop_after_failures: how many rows must fail, one after another, to stop; None for
                never. Rows that failed in an earlier run do not count.
            max_credits: how many credits this run may spend; None for no limit. They are counted by
                the account's balance, so if others use the account, the batch stops earlier. The
                first row runs alone, to see what a row costs. At the limit the iteration ends
                without an error, and ``batch.progress.stopped`` says why. A row that costs more
                than all before it can exceed the limit, because its cost is not known before.
            download_to: a folder for the files of each row, as with `download`; None downloads
                nothing.
            on_progress: called in the event loop with ``batch.progress`` whenever a row was bought
                or has ended. Its exceptions are logged once.
            retry_failed: buy rows with a key again, once each, whose task failed at MidAPI in an
                earlier run. The second try has the key ``<key>/2``, the third ``<key>/3``; later
                runs yield the last try of a row.

        Raises:
            InvalidRequestError: an argument is wrong; or, from the iteration, two rows have the
                same key, or one row's key is that of a further try of the other.
        """
        from .batch.options import batch_options
        from .batch.run import Batch

        options = batch_options(
            requests,
            batch=batch,
            running=running,
            on_unknown=on_unknown,
            stop_after_failures=stop_after_failures,
            max_credits=max_credits,
            download_to=download_to,
            on_progress=on_progress,
            retry_failed=retry_failed,
        )
        return Batch(
            self,
            requests,
            options,
            clock=self._opened().clock,
            request_of=partial(_request, fields={}),
            buy=self._buy,
            settle=self._settle,
            succeeded=self._succeeded,
        )

    async def _succeeded(self, keys: Collection[str]) -> Mapping[str, TaskHandle]:
        """The handles of those keys whose tasks are known to have succeeded, read in one page.

        A journal in memory finds each by itself as fast.
        """
        session, journal = self._opened(), self._journal
        states = [State.SUCCEEDED]
        rows = journal.is_durable and await journal.rows(session.scope, states=states, keys=keys)
        return {
            row.key or "": handle_of(row, session, replayed=True)
            for row in rows or ()
            if row.details is not None
        }

    async def prepare(self, request: Request) -> Request:
        """The request with the URL of an upload in place of each `Path`; `generate` does it itself.

        All files are checked before the first one is uploaded. Without paths it is the same object.

        Args:
            request: one of the eight requests.

        Raises:
            InvalidRequestError: naming each file that is missing, or is no picture or video.
            MidAPIError: a file could not be uploaded.
        """
        return await self._opened().uploader.prepare(_request(request, {}))

    async def upload(
        self,
        source: Path | bytes | BinaryIO | str,
        *,
        name: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> UploadedURL:
        """Upload a reference picture or video, of 10 MiB at most; return its URL.

        The server keeps it for three days. Until then the same content is not uploaded again, not
        even by another process with the same journal.

        Args:
            source: a file, its content, a file that is open for reading, or an http(s) URL to copy.
            name: its name at the server, where it may replace a file with that name, so it is
                always uploaded; the default is made from the content.
            on_progress: called while the file is sent, in the event loop, up to ten times a second;
                after a failed attempt it begins again.

        Raises:
            InvalidRequestError: it is missing, too large, or no picture or video; or it is not
                known where to upload (see ``upload_url``). Nothing was sent.
            MidAPIError: three attempts have failed, or MidAPI refused it.
        """
        return await self._opened().uploader.upload(source, name=name, on_progress=on_progress)

    async def find(self, key: str) -> TaskHandle | None:
        """The handle of what was bought with a key; None if the key is free. Sends nothing.

        While its POST is under way, this waits for the outcome, as `generate` does.

        Args:
            key: your own name for a request.

        Raises:
            SubmissionUnknown: it cannot be known whether it was bought.
            TaskExpired: it was bought longer ago than MidAPI keeps results.
            InvalidRequestError: the key belongs to an intent that was dismissed.
        """
        with naming(key=key):
            session = self._opened()
            row = await session.submitter.find(key)
        return None if row is None else handle_of(row, session, replayed=True)

    # ─── tasks ───────────────────────────────────────────────────────────────────────────────────

    def task(self, task_id: str | HasTaskId) -> TaskHandle:
        """The handle of a task whose id, or details, you have. Makes no request.

        Args:
            task_id: MidAPI's id of the task, its details, or another handle of it.

        Raises:
            InvalidRequestError: it is not a valid task id.
        """
        task_id = checked_task_id(task_id)
        with naming(task_id=task_id):
            return TaskHandle(task_id=task_id, session=self._opened())

    async def details(self, task_id: str | HasTaskId, max_age: float = 0.0) -> TaskDetails:
        """What is known of a task, whatever its state.

        Final details never change, so they come from this client's last look or from the journal,
        if they are known there. Otherwise this is one look, which is shared by all callers who ask
        this client for the same task at that moment.

        Args:
            task_id: which task.
            max_age: seconds for which details that are not final, or the failure of a look, are
                valid; at most 3600. With 5.0, many visitors of a page cause one look every 5 s.

        Raises:
            InvalidRequestError: the task id is not valid; or ``max_age`` is not a number, or is
                negative.
            TaskNotFound: MidAPI does not know it, or not yet: a new task may take some seconds.
            MidAPIError: the look failed.
        """
        return await self.task(task_id).details(max_age)

    async def resume(self) -> list[TaskHandle]:
        """The handles of all tasks in this namespace that are not taken yet, finished or not.

        Tasks that belong to another process which is still running are left out.
        """
        session = self._opened()
        session.recorder.retry()
        await session.recorder.writes.join()
        await session.journal.take_over(session.scope)
        session.candidates.resume(session.scope)
        pages = pages_of(session, states=sorted(BOUGHT), taken=False, mine=True)
        return [handle_of(row, session) async for page in pages for row in page]

    def untaken(self) -> Untaken:
        """Each task in this namespace that is not taken, as soon as it has succeeded or failed.

        ``async for handle in client.untaken():`` yields finished tasks first, then each other task
        when it ends. It includes tasks that this client submits meanwhile, and (within about half a
        minute) tasks of a process that has ended. The loop ends when the client is closed, or at
        ``stop_waiting``; you can leave it at any time.

        ``handle.final`` is set, and ``await handle`` returns or raises at once. A task that was
        yielded is not taken yet: with ``ack="auto"`` await its handle, with ``ack="manual"`` call
        ``handle.ack()``. A task that you do not take is not yielded again by this loop, but by the
        next one. Not yielded are tasks of another process that is still running, and unknown
        submissions, which ``intents`` has. If MidAPI has no record of a task, a warning is logged,
        and the task is looked at again a quarter of an hour later.
        """
        return Untaken(self._opened())

    @property
    def intents(self) -> Intents:
        """The intents of the journal, and what to do about unknown submissions."""
        return Intents(self._opened())

    # ─── the rest ────────────────────────────────────────────────────────────────────────────────

    def observe(self, on_event: Callable[[Event], object]) -> AbstractContextManager[None]:
        """Call a function with each `Event` while the block runs, in addition to ``on_event``.

        Use ``with client.observe(function):`` if other code has made the client.

        Args:
            on_event: a plain function, as in `MidAPIClient`; it must not block.

        Raises:
            InvalidRequestError: it is not a plain function.
        """
        if not is_plain_function(on_event):
            raise InvalidRequestError({"on_event": f"must be a function, got {shown(on_event)}"})
        return self._opened().observer.observed(on_event)

    def expected(self, request: str | Request) -> Expected:
        """How many seconds such a request takes: median and 90th percentile of past tasks.

        Before the first task they are assumptions. Makes no request.

        Args:
            request: a prompt, or one of the eight requests; only its type and speed matter.

        Raises:
            InvalidRequestError: it is neither.
        """
        return self._schedule.expected(kind_of(_request(request, {})))

    def stats(self) -> ClientStats:
        """What this client has done since it was opened."""
        session = self._opened()
        return ClientStats(
            submits=session.sender.posts_sent,
            unknown=session.outcomes.unknown_count,
            looks=session.api.looks,
            failed_looks=session.api.failed_looks,
            callbacks=self._inbox.taken,
            ignored_callbacks=self._inbox.ignored,
            misdirected=session.api.misdirected,
            unreadable_urls=session.api.unreadable_urls,
            waiting=session.tracker.waiting,
            at_the_gate=session.sender.at_the_gate,
            oldest_open=session.tracker.oldest_age,
            dropped_events=session.observer.dropped,
        )

    async def download(
        self,
        details: TaskDetails | TaskHandle,
        folder: str | os.PathLike[str] = ".",
        name: str = DEFAULT_NAME,
        *,
        overwrite: bool = False,
        sidecar: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[Path]:
        """Download the files of a task into a folder, which is created if it is missing.

        A file that is already there and complete is not fetched again. Each other file is checked
        while it is fetched: it must be a complete picture or video, not larger than ``max_file``.
        It gets its name when all of it is on the disk. Failures are retried for a minute, then with
        a download link from MidAPI. If a file fails, the others are still fetched.

        Args:
            details: of a task that succeeded; or its handle, once it was awaited.
            folder: where to put them.
            name: the template for their names, with ``{task_id}``, ``{index}`` (from 0) and, at
                its end, ``{ext}``: the extension for the content, such as ``.jpeg``.
            overwrite: also fetch files that are already there, and replace them.
            sidecar: also write ``NAME.jpeg.json`` beside each file, with the task's id, prompt and
                other parameters, and the file's size and SHA-256.
            on_progress: called in the event loop with each `Progress`, at most ten times a second
                for each file, and at its end. Its exceptions are logged once.

        Returns:
            One path for each of ``details.urls``, in the same order.

        Raises:
            InvalidRequestError: an argument is wrong, or the folder cannot be used.
            DownloadError: a file could not be fetched or written; no partial file is left, and
                ``files`` has the others. `ResultExpired` if MidAPI has deleted it,
                `UnexpectedContent` if it is neither a picture nor a video.
        """
        given, details = details, (isinstance(details, TaskHandle) and details.final) or details
        if not isinstance(details, TaskDetails):
            problem = f"must be what a handle or client.details() returns, got {shown(given)}"
            if isinstance(given, TaskHandle):
                problem += "; await the handle first"
            raise InvalidRequestError({"details": problem})
        with naming(task_id=details.task_id):
            session = self._opened()
            return await download_files(
                session.fetcher,
                details,
                folder,
                name,
                overwrite=overwrite,
                sidecar=sidecar,
                on_progress=on_progress,
            )

    def open_result(self, url: str) -> AsyncGenerator[bytes, None]:
        """The content of a result file, block by block: for your own storage.

        ``async for block in client.open_result(url)``. It is checked and retried as in `download`,
        until the first block is yielded; later failures raise. Only after the last block is it
        known whether the file is complete, so use it only if the loop ends without an error.

        Args:
            url: one of ``details.urls``.

        Raises:
            InvalidRequestError: it is not a valid URL.
            DownloadError: it could not be fetched.
        """
        session = self._opened()
        if problem := url_problem(url):
            raise InvalidRequestError({"url": problem})
        return session.fetcher.stream(url)

    @staticmethod
    def task_of(path: str | os.PathLike[str]) -> ResultFile:
        """The task to which a downloaded file belongs, and the file's index in this task.

        They are read from the name: ``TASKID_INDEX.jpeg``, or MidAPI's own name as a browser saves
        it. A file with another name needs the JSON file beside it that ``download(sidecar=True)``
        writes.

        Args:
            path: the file. It need not exist if its name has both.

        Raises:
            InvalidRequestError: neither the name nor a JSON file has them.
        """
        return task_of(path)

    async def credits(self) -> float:
        """The credits that the account has left; may be a fraction.

        Raises:
            MidAPIError: they could not be fetched.
        """
        return await self._opened().api.credits()

    async def download_url(self, url: str) -> str:
        """A link to one of MidAPI's files that opens without an API key, for 20 minutes.

        Args:
            url: the URL of a file at MidAPI, such as one of ``details.urls``.

        Raises:
            InvalidRequestError: it is not a valid URL.
            UnprocessableError: the URL is not one of MidAPI's.
            MidAPIError: the link could not be fetched.
        """
        session = self._opened()
        if problem := url_problem(url):
            raise InvalidRequestError({"url": problem})
        return await session.api.download_url(url)


def _check_options(
    namespace: object,
    ack: object,
    functions: Mapping[str, object],
    **options: tuple[object, *tuple[type | None, ...]],
) -> None:
    """Check a client's options.

    Args:
        namespace: see `MidAPIClient`.
        ack: see `MidAPIClient`.
        functions: each is a function or None.
        **options: each is a value and the types that are allowed for it.

    Raises:
        InvalidRequestError: naming each option that is wrong.
    """
    problems = {}
    if not isinstance(namespace, str) or not namespace or not namespace.isprintable():
        problems["namespace"] = "must be a non-empty, printable str"
    if ack not in ("auto", "manual"):
        problems["ack"] = f"must be 'auto' or 'manual', got {shown(ack)}"
    for name, function in functions.items():
        if function is not None and not callable(function):
            problems[name] = f"must be a function of one argument, got {shown(function)}"
    for name, (value, *types) in options.items():
        if not isinstance(value, tuple(each or NoneType for each in types)):
            wanted = " or ".join(each.__name__ if each else "None" for each in types)
            problems[name] = f"must be {wanted}, got {shown(value)}"
    if problems:
        raise InvalidRequestError(problems)


def _journal(given: Journal | str | os.PathLike[str] | None) -> Journal:
    folder = given if given is not None else environment("MIDAPI_JOURNAL") or None
    if (url := database_url(folder)) is not None:
        given = folder = url
        from .journal.postgres import PostgresJournal

        return PostgresJournal(url)
    if folder is None:
        return MemoryJournal()
    if not isinstance(folder, str | os.PathLike):
        if isinstance(folder, type) or not hasattr(folder, "claim"):
            raise InvalidRequestError({"journal": f"must be a folder, got {shown(folder)}"})
        return folder
    if not os.fspath(folder):
        raise InvalidRequestError({"journal": "is empty; give a folder, or None for memory"})
    from .journal.sqlite import SQLiteJournal

    return SQLiteJournal(str(folder) if isinstance(folder, str) else folder)  # no `Secret`


_HINTS = {
    bytes: "; decode it",
    Mapping: "; make a request of it with request_from_json()",
    list: "; each request needs a call of its own",
    tuple: "; each request needs a call of its own",
    type: "; call it with its fields",
}


def _request(asked: object, fields: Mapping[str, object], *options: str) -> Request:
    """The request that a call asks for.

    Args:
        asked: a prompt or a request; None if it may be among the fields.
        fields: the other fields of `TextToImage`.
        options: the names of the call's other arguments.

    Raises:
        InvalidRequestError: naming each argument that is wrong.
    """
    if asked is None and "request" in fields:
        asked, fields = fields["request"], {n: v for n, v in fields.items() if n != "request"}
    if isinstance(asked, str) and not fields:
        return TextToImage(asked)
    if isinstance(asked, str):
        return make_request(TextToImage, {"prompt": asked, **fields}, options)
    if not isinstance(asked, REQUESTS):
        names = ", ".join(cls.__name__ for cls in REQUESTS)
        kind = "None" if asked is None else type(asked).__name__
        hint = next((hint for known, hint in _HINTS.items() if isinstance(asked, known)), "")
        raise InvalidRequestError(
            {"request": f"must be a prompt or one of {names}; got {kind}{hint}"}
        )
    problems = {}
    for name in fields:
        meant = nearest(name, options)
        problems[name] = f"must be given inside {type(asked).__name__}(…)"
        if meant is not None and name not in attrs.fields_dict(type(asked)):
            problems[name] = f"is unknown; did you mean {meant}?"
    if problems:
        raise InvalidRequestError(problems)
    return asked
