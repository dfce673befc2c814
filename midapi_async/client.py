"""The client: composes the rooms of the house. No parsing, no loops."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from contextlib import AsyncExitStack
from pathlib import Path
from ssl import SSLContext
from types import EllipsisType
from typing import TYPE_CHECKING, Literal, Self, Unpack, overload

import attrs

from ._runtime.clock import Clock
from ._runtime.urls import is_loopback, url_problem
from ._submission.gate import Gate, shared_gate
from ._submission.submitter import Order, Submitter, Ways
from ._tracking.recorder import Outcomes
from ._tracking.schedule import Expected, Schedule
from ._tracking.tracker import Tracker
from ._wire.bodies import make_request
from ._wire.endpoints import Api
from ._wire.transport import Transport
from .callbacks import CallbackReceiver
from .callbacks.inbox import ClientInbox
from .config import PollPolicy, RateLimit, RetryPolicy, Settings, Timeouts, environment, settings
from .errors import ClientClosed, InvalidRequestError, SubmissionUnknown
from .files.download import Downloader
from .handle import Desk, TaskHandle, check_seconds, handle_of, kind_of
from .intents import Intents
from .journal import Experience
from .journal.memory import MemoryJournal
from .requests import REQUESTS, ImageFields, Request, TextToImage, task_id_problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from .journal import Journal
    from .tasks import TaskDetails

_log = logging.getLogger("midapi_async")

# All frozen, so one of each serves every client.
_DEFAULT_RETRY = RetryPolicy()
_DEFAULT_POLLING = PollPolicy()
_DEFAULT_RATE_LIMIT = RateLimit(20, per=10.0)
_DEFAULT_TIMEOUTS = Timeouts()

CLOSE_PATIENCE = 20.0  # loop seconds that a POST on its way gets when the client closes
RECORD_PATIENCE = 5.0  # loop seconds for what is still to be written then


@attrs.frozen(kw_only=True)
class ClientStats:
    """What a client has done since it was opened.

    Attributes:
        submits: POSTs that were sent to buy something, repeated ones included.
        looks: GETs of record-info.
        callbacks: callbacks that were taken.
        ignored_callbacks: callbacks with a good token that named a task of somebody else.
        waiting: waits that are going on.
        at_the_gate: submissions that wait for their turn.
    """

    submits: int
    looks: int
    callbacks: int
    ignored_callbacks: int
    waiting: int
    at_the_gate: int


class _Presence:
    """Where a client is open: in one process, in one event loop, until it is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_over = False
        self._process = os.getpid()

    def check(self) -> None:
        """Raise if this is not the place."""
        if self.is_over:
            raise ClientClosed
        if os.getpid() != self._process:
            raise InvalidRequestError(
                {"client": "was opened in the parent process: open one of its own after a fork"}
            )
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self.loop:
            raise InvalidRequestError(
                {"client": "is open in another event loop: use it there, or make another client"}
            )


@attrs.frozen(kw_only=True, eq=False)
class _Rooms:
    """What exists while a client is open."""

    presence: _Presence
    clock: Clock
    api: Api
    gate: Gate
    tracker: Tracker
    submitter: Submitter
    inbox: ClientInbox
    outcomes: Outcomes
    downloader: Downloader
    desk: Desk
    intents: Intents
    exits: AsyncExitStack


class MidAPIClient:
    """Buys pictures and videos of MidAPI, at most once each, and wakes when they are there.

    Use it as ``async with MidAPIClient() as client:``. One event loop at a time; closed, it may be
    opened again in another.

    Args:
        api_key: else MIDAPI_API_KEY, or the file that MIDAPI_API_KEY_FILE names.
        base_url: else MIDAPI_BASE_URL, else https://api.midapi.ai.
        receiver: takes MidAPI's callbacks; without one results are found by looking alone.
        journal: where submissions are remembered: a folder on a local disk, shared by all processes
            of the machine; or a `Journal`, which stays yours to close; else MIDAPI_JOURNAL, a
            folder; else in memory, as long as this client lives.
        namespace: keys, ``resume`` and ``intents`` see only what has the same base URL and this.
        ack: "auto": a result is taken when a wait has handed it over; "manual": when you say so
            with ``handle.ack()``.
        retry: when a submission is given up that certainly was not bought.
        polling: how results are looked for.
        rate_limit: submissions that the account may make; None for no limit of ours. Shared by all
            clients of the account with the same limit in this event loop, and with a journal's
            folder on this machine; those with different limits do not share.
        timeouts: how long to wait for what.
        ssl: a TLS context of your own.
        proxy: an HTTP proxy's URL.
        time_scale: else MIDAPI_TIME_SCALE; divides every wait. For a sandbox on loopback.
        allow_http: else MIDAPI_ALLOW_HTTP; allows plain http beyond loopback, with a warning.

    Raises:
        InvalidRequestError: naming each setting that is missing or wrong.
    """

    _rooms: _Rooms | None = None
    _opened = False
    _is_opening = False
    _closing: asyncio.Task[None] | None = None
    _warned_of_keys = False

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
    ) -> None:
        self._settings = settings(api_key, base_url, time_scale, allow_http=allow_http)
        self._receiver = receiver
        self._journal = _journal(journal)
        self._owns_journal = self._journal is not journal
        self._scope = _scope(self._settings, namespace)
        _check_kinds(
            receiver=(receiver, CallbackReceiver, None),
            retry=(retry, RetryPolicy),
            polling=(polling, PollPolicy),
            rate_limit=(rate_limit, RateLimit, None),
            timeouts=(timeouts, Timeouts),
            ssl=(ssl, SSLContext, None),
        )
        self._proxy = _proxy(proxy)
        self._takes_at_once = _takes_at_once(ack)
        self._retry = retry
        self._polling = polling
        self._rate_limit = rate_limit
        self._timeouts = timeouts
        self._ssl = ssl
        self._schedule = Schedule(
            price=polling.look_price, floor=polling.floor, ceiling=polling.ceiling
        )

    def __repr__(self) -> str:
        state = "open" if self._rooms else "closed" if self._opened else "not opened"
        return f"<MidAPIClient {self._settings.base_url} {state}>"

    def __del__(self) -> None:
        if getattr(self, "_rooms", None) is not None:
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
        """What ``async with`` does first.

        Raises:
            ReceiverError: the receiver cannot listen.
            JournalError: the journal cannot be used.
        """
        if self._closing is not None:
            await asyncio.wait({self._closing})
        if self._rooms is not None and self._rooms.presence.loop.is_closed():
            self._rooms = None  # that loop ended without closing it
        if self._rooms is not None or self._is_opening:
            raise InvalidRequestError({"client": "is open already"})
        self._is_opening = True
        try:
            await self._open()
        finally:
            self._is_opening = False

    async def _open(self) -> None:
        if self._receiver is not None and not is_loopback(self._settings.base_url):
            self._receiver.check_reachable()
        async with AsyncExitStack() as exits:
            if self._owns_journal:
                exits.push_async_callback(self._journal.aclose)
            rooms = self._furnish(exits)
            await self._journal.take_over(self._scope)
            await self._recall()
            if self._receiver is not None:
                await self._receiver.attach(rooms.inbox)
                exits.push_async_callback(self._receiver.detach, rooms.inbox)
                rooms.inbox.open()
            rooms.tracker.start()
            self._rooms = attrs.evolve(rooms, exits=exits.pop_all())
            self._opened = True

    async def _recall(self) -> None:
        """How long tasks took, as far as the journal knows; else what this client saw."""
        if isinstance(self._journal, Experience):
            origin = str(self._settings.base_url.origin())
            for kind, durations in (await self._journal.durations(origin)).items():
                self._schedule.recall(kind, durations)

    def _furnish(self, exits: AsyncExitStack) -> _Rooms:
        """Make every room, from the network inwards; they are left in the reverse order."""
        presence = _Presence()
        clock = Clock(self._settings.time_scale)
        transport = self._make_transport(clock)
        exits.push_async_callback(transport.aclose)
        downloader = self._make_downloader()
        exits.push_async_callback(downloader.aclose)
        api = Api(transport, self._settings, self._timeouts)
        gate = _gate(self._journal, self._settings, self._rate_limit, clock)
        exits.callback(gate.close)
        outcomes = self._make_outcomes()
        tracker = Tracker(
            look=api.look,
            schedule=self._schedule,
            policy=self._polling,
            clock=clock,
            keep=outcomes.keep_duration,
        )
        submitter = self._make_submitter(api, gate, tracker, clock)
        desk = self._make_desk(api, tracker, outcomes, clock, presence)
        return _Rooms(
            presence=presence,
            clock=clock,
            api=api,
            gate=gate,
            tracker=tracker,
            submitter=submitter,
            inbox=self._make_inbox(api, tracker, submitter),
            outcomes=outcomes,
            downloader=downloader,
            desk=desk,
            intents=self._make_intents(submitter, desk),
            exits=exits,
        )

    def _make_outcomes(self) -> Outcomes:
        return Outcomes(
            self._journal,
            origin=str(self._settings.base_url.origin()),
            takes_at_once=self._takes_at_once,
        )

    def _make_transport(self, clock: Clock) -> Transport:
        return Transport(
            self._settings,
            clock,
            connect_timeout=self._timeouts.connect,
            ssl=self._ssl,
            proxy=self._proxy,
        )

    def _make_downloader(self) -> Downloader:
        return Downloader(
            allow_http=is_loopback(self._settings.base_url),
            connect_timeout=self._timeouts.connect,
            read_timeout=self._timeouts.look,
            total_timeout=self._timeouts.wait,
            ssl=self._ssl,
            proxy=self._proxy,
        )

    def _make_submitter(self, api: Api, gate: Gate, tracker: Tracker, clock: Clock) -> Submitter:
        return Submitter(
            journal=self._journal,
            scope=self._scope,
            gate=gate,
            ways=Ways(
                send=api.submit,
                callback_url=self._receiver.callback_url if self._receiver else None,
                slow_down=tracker.rest,
            ),
            clock=clock,
            give_up_after=self._retry.give_up_after,
        )

    def _make_inbox(self, api: Api, tracker: Tracker, submitter: Submitter) -> ClientInbox:
        return ClientInbox(
            journal=self._journal,
            scope=self._scope,
            submitter=submitter,
            tracker=tracker,
            look=api.look,
            is_shared=not isinstance(self._journal, MemoryJournal),
        )

    def _make_desk(
        self, api: Api, tracker: Tracker, outcomes: Outcomes, clock: Clock, presence: _Presence
    ) -> Desk:
        return Desk(
            tracker=tracker,
            look=api.details,
            outcomes=outcomes,
            clock=clock,
            patience=self._timeouts.wait,
            check=presence.check,
        )

    def _make_intents(self, submitter: Submitter, desk: Desk) -> Intents:
        return Intents(
            journal=self._journal,
            scope=self._scope,
            submitter=submitter,
            desk=desk,
            patience=self._timeouts.wait,
        )

    def stop_waiting(self) -> None:
        """End every wait at once, later ones too; everything else works on.

        For servers that let open requests end before they let you close the client, as uvicorn
        does: call it when the server is told to stop. Each wait raises `ClientClosed` with its
        task's id, and ``intents.settle`` raises `SubmissionUnknown`; the tasks go on and can be
        awaited again by another client. Without effect while the client is not open.
        """
        if self._rooms is not None:
            self._rooms.submitter.stop_waiting()
            self._rooms.tracker.stop_waiting()

    async def aclose(self) -> None:
        """Take no more work, let POSTs on their way answer, and let go of everything.

        Every wait gets `ClientClosed` with its task's id. A POST that has no answer after 20 s is
        left as unknown. Closing twice is closing once; cancelled, it goes on by itself.
        """
        rooms = self._rooms
        if rooms is not None and rooms.presence.loop.is_closed():
            self._rooms = rooms = None  # that loop ended without closing it, and all of it
        if rooms is not None:
            rooms.presence.check()
            self._rooms, rooms.presence.is_over = None, True
            self._closing = rooms.presence.loop.create_task(_close(rooms))
        closing = self._closing
        if closing is not None:
            await asyncio.wait({closing})
            self._closing = None
            closing.result()

    def _open_rooms(self) -> _Rooms:
        rooms = self._rooms
        if rooms is None:
            if self._opened:
                raise ClientClosed
            raise InvalidRequestError(
                {"client": "is not open: use it in 'async with client:', or await client.open()"}
            )
        rooms.presence.check()
        return rooms

    # ─── buying ──────────────────────────────────────────────────────────────────────────────────

    @overload
    async def generate(
        self,
        request: str,
        /,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
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
    ) -> TaskHandle: ...

    async def generate(
        self,
        request: str | Request,
        /,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        **fields: object,
    ) -> TaskHandle:
        """Submit a request, once; return the handle of its task.

        Args:
            request: a prompt, or one of the eight requests.
            key: your own name for it. The same key is never paid twice: again with the same
                request, you get the same task's handle.
            metadata: your own notes, at most 4 KiB; they come back with ``handle.metadata`` and
                ``resume()`` and are never sent.
            callback_url: a URL of yours in place of the receiver's; then no callback wakes us, and
                none can tell what became of a lost answer.
            **fields: with a prompt, the other fields of `TextToImage`.

        Raises:
            InvalidRequestError: something is wrong with it; `KeyConflict` if its key is.
            SubmissionUnknown: nobody can know whether it was bought.
            MidAPIError: any other means that nothing was bought.
        """
        rooms = self._open_rooms()
        order = Order(
            request=_request(request, fields),
            key=key,
            metadata={} if metadata is None else metadata,
            callback_url=callback_url,
        )
        if key is not None:
            self._warn_of_keys_in_memory()
        return handle_of(await rooms.submitter.submit(order), rooms.desk)

    @overload
    async def generate_and_wait(
        self,
        request: str,
        /,
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
        request: str | Request,
        /,
        *,
        key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        wait_timeout: float | EllipsisType | None = ...,
        **fields: object,
    ) -> TaskDetails:
        """Submit a request and wait for its result. With a receiver a lost answer costs nothing.

        Args:
            request: a prompt, or one of the eight requests.
            key: as for `generate`.
            metadata: as for `generate`.
            callback_url: as for `generate`.
            wait_timeout: seconds to wait for the result; None for ever; left out,
                ``Timeouts.wait``.
            **fields: with a prompt, the other fields of `TextToImage`.

        Raises:
            MidAPIError: as `generate` and `TaskHandle.wait` raise it.
        """
        rooms = self._open_rooms()
        asked = _request(request, fields)
        if wait_timeout is not None and not isinstance(wait_timeout, EllipsisType):
            check_seconds(wait_timeout)
        try:
            handle = await self.generate(
                asked, key=key, metadata=metadata, callback_url=callback_url
            )
        except SubmissionUnknown as unknown:
            if not unknown.can_settle:
                raise
            begun = rooms.clock.time()
            handle = await rooms.intents.settle(unknown.intent_id, wait_timeout)
            if isinstance(wait_timeout, int | float):
                wait_timeout -= rooms.clock.time() - begun
        return await handle.wait(wait_timeout)

    def _warn_of_keys_in_memory(self) -> None:
        if isinstance(self._journal, MemoryJournal) and not self._warned_of_keys:
            self._warned_of_keys = True
            _log.warning(
                "keys are kept in memory only, as long as this client lives; journal='a folder' or "
                "MIDAPI_JOURNAL keeps them"
            )

    # ─── tasks ───────────────────────────────────────────────────────────────────────────────────

    def task(self, task_id: str) -> TaskHandle:
        """The handle of a task whose id you have.

        Raises:
            InvalidRequestError: it is no task id.
        """
        rooms = self._open_rooms()
        _check_task_id(task_id)
        return TaskHandle(task_id=task_id, desk=rooms.desk)

    async def details(self, task_id: str) -> TaskDetails:
        """One look at a task, whatever its state.

        Raises:
            TaskNotFound: MidAPI does not know it (yet: a new task may take some seconds).
            MidAPIError: the look failed.
        """
        rooms = self._open_rooms()
        _check_task_id(task_id)
        return await rooms.api.details(task_id)

    async def resume(self) -> list[TaskHandle]:
        """The handle of everything in this namespace that nobody has taken yet, finished or not."""
        rooms = self._open_rooms()
        await rooms.outcomes.settle()
        rows = await self._journal.take_over(self._scope)
        return [handle_of(row, rooms.desk) for row in rows]

    @property
    def intents(self) -> Intents:
        """Submissions of which nobody knows whether they were accepted."""
        return self._open_rooms().intents

    # ─── the rest ────────────────────────────────────────────────────────────────────────────────

    def expected(self, request: str | Request) -> Expected:
        """How long such a request takes, in seconds: median and 90 % point, from what was seen."""
        return self._schedule.expected(kind_of(_request(request, {})))

    def stats(self) -> ClientStats:
        """What this client has done since it was opened."""
        rooms = self._open_rooms()
        return ClientStats(
            submits=rooms.submitter.posts_sent,
            looks=rooms.api.looks,
            callbacks=rooms.inbox.taken,
            ignored_callbacks=rooms.inbox.ignored,
            waiting=rooms.tracker.waiting,
            at_the_gate=rooms.gate.waiting,
        )

    async def download(
        self, details: TaskDetails, folder: str | os.PathLike[str] = "."
    ) -> list[Path]:
        """Fetch the files of a task into a folder, which is made if it is missing.

        Args:
            details: of a task that succeeded.
            folder: where to; files there with the same names are replaced, each at once.

        Returns:
            One path for each of ``details.urls``, in their order: ``TASKID_INDEX.jpeg`` and so on.

        Raises:
            DownloadError: one could not be fetched; nothing half-written is left.
        """
        rooms = self._open_rooms()
        if not details.urls:
            raise InvalidRequestError(
                {"details": f"task {details.task_id} is {details.status} and has no files"}
            )
        return await rooms.downloader.fetch_all(details.task_id, details.urls, Path(folder))

    async def credits(self) -> float:
        """The credits that the account has left; may be fractional.

        Raises:
            MidAPIError: they could not be read.
        """
        return await self._open_rooms().api.credits()

    async def download_url(self, url: str) -> str:
        """A link to one of MidAPI's files that anybody can open for 20 minutes.

        Raises:
            UnprocessableError: the URL is not one of MidAPI's.
            MidAPIError: the link could not be made.
        """
        rooms = self._open_rooms()
        if problem := url_problem(url):
            raise InvalidRequestError({"url": problem})
        return await rooms.api.download_url(url)


def _proxy(url: str | None) -> str | None:
    if url is not None and (problem := url_problem(url)):
        raise InvalidRequestError({"proxy": problem})
    return url


def _takes_at_once(ack: object) -> bool:
    if ack not in ("auto", "manual"):
        raise InvalidRequestError({"ack": f"must be 'auto' or 'manual', got {ack!r:.60}"})
    return ack == "auto"


def _check_kinds(**options: tuple[object, *tuple[type | None, ...]]) -> None:
    """Raise for each option that is of none of the kinds behind it."""
    problems = {}
    for name, (value, *kinds) in options.items():
        if not any(value is kind or (kind and isinstance(value, kind)) for kind in kinds):
            wanted = " or ".join(kind.__name__ if kind else "None" for kind in kinds)
            problems[name] = f"must be {wanted}, got {value!r:.60}"
    if problems:
        raise InvalidRequestError(problems)


async def _close(rooms: _Rooms) -> None:
    async with rooms.exits:
        await rooms.tracker.aclose()
        await rooms.submitter.aclose(CLOSE_PATIENCE)
        await rooms.inbox.aclose()
        await rooms.outcomes.aclose(RECORD_PATIENCE)


def _journal(given: Journal | str | os.PathLike[str] | None) -> Journal:
    folder = given if given is not None else environment("MIDAPI_JOURNAL") or None
    if folder is None:
        return MemoryJournal()
    if not isinstance(folder, str | os.PathLike):
        return folder
    from .journal.sqlite import SQLiteJournal

    return SQLiteJournal(folder)


def _scope(settings: Settings, namespace: object) -> str:
    if not isinstance(namespace, str) or not namespace or not namespace.isprintable():
        raise InvalidRequestError({"namespace": "must be a non-empty, printable str"})
    return f"{settings.base_url.origin()} {namespace}"


def _check_task_id(task_id: str) -> None:
    if problem := task_id_problem(task_id):
        raise InvalidRequestError({"task_id": problem})


def _request(asked: object, fields: Mapping[str, object]) -> Request:
    if isinstance(asked, str):
        if not fields:
            return TextToImage(asked)
        return make_request(TextToImage, {"prompt": asked, **fields})
    if not isinstance(asked, REQUESTS):
        kinds = ", ".join(cls.__name__ for cls in REQUESTS)
        raise InvalidRequestError(
            {"request": f"must be a prompt or one of {kinds}; got {type(asked).__name__}"}
        )
    if fields:
        raise InvalidRequestError(
            dict.fromkeys(fields, f"belongs into {type(asked).__name__}(…), not beside it")
        )
    return asked


def _gate(journal: Journal, settings: Settings, limit: RateLimit | None, clock: Clock) -> Gate:
    """The gate of the account; a journal that can, shares it with everybody who uses its folder."""
    account = f"{settings.base_url.origin()}\n{settings.api_key}"
    return shared_gate(account, limit, clock, getattr(journal, "slots", None))
