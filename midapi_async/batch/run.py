"""`Batch`: submits the rows of a batch, and yields the result or the error of each.

One task reads the requests and starts a task for each row, as long as there is room for it: a row
takes up room until the user has received its item. A row's task buys the row, waits for its result
and downloads it. Rows that are read in the same moment are looked up in the journal as one page,
and those that have succeeded in an earlier run need no task. Every decision that concerns all rows
is made here: to pause, to stop, to pay.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sized,
)
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Never, Self, TypeAlias

from .._runtime.background import OwnedTasks
from .._runtime.clock import RESOLUTION, Clock
from ..errors import (
    AuthenticationError,
    ClientClosed,
    DownloadError,
    InsufficientCreditsError,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MaintenanceError,
    MidAPIError,
    RateLimitError,
    SpendingCapError,
    SubmissionUnknown,
    TaskError,
    TaskExpired,
    TaskFailed,
    TransportError,
    about,
)
from ..files.folders import make_folder
from ..requests import Request, check_arguments, paths_of
from ..tasks import TaskStatus
from .items import BatchItem, BatchProgress, BatchRequest, Keys, Row, hash_of, key_of_try
from .money import Money
from .options import Options

if TYPE_CHECKING:
    from ..client import MidAPIClient
    from ..handle import TaskHandle

Asked: TypeAlias = Request | str | BatchRequest
Requests: TypeAlias = Iterable[Asked] | AsyncIterable[Asked]
_log = logging.getLogger("midapi_async.batch")

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 120.0  # service seconds; each pause is twice as long as the last
RATE_OF = 100  # rows that the rate is measured with
LARGEST_PAGE = 100  # rows that are looked up at once
SMALLEST_PAGE = 8  # with fewer rows, a lookup for each is as fast
# Errors that every other row would get, too.
_STOPPING = (AuthenticationError, InsufficientCreditsError, SpendingCapError, ClientClosed)
# Transient errors: the row has not caused them, and bought nothing.
_TRANSIENT = (TransportError, RateLimitError, MaintenanceError, JournalError)


class Batch:
    """Yields the rows of a batch as they end: ``async with … as batch: async for item in batch``.

    Several tasks may share the iteration. Leaving the block stops submitting; running tasks
    continue at MidAPI, and the next run with the same keys waits for them.
    """

    def __init__(
        self,
        client: MidAPIClient,
        requests: Requests,
        options: Options,
        *,
        clock: Clock,
        request_of: Callable[[object], Request],
        buy: Callable[..., Awaitable[TaskHandle]],
        settle: Callable[[SubmissionUnknown, Request], Awaitable[TaskHandle]],
        succeeded: Callable[[Collection[str]], Awaitable[Mapping[str, TaskHandle]]],
    ) -> None:
        self._client = client
        self._requests = requests
        self._options = options
        self._clock = clock
        self._request_of = request_of
        self._buy_now = buy
        self._settle = settle
        self._succeeded = succeeded
        self._keys = Keys("rows {} and {} (counted from 0)", options.batch)
        self._money = Money(options.max_credits)
        self._turn = asyncio.Lock()  # one row at a time asks whether it may be paid for
        self._changed = asyncio.Event()  # set when anything changes that `_admit` waits for
        self._room = asyncio.Semaphore(options.running)
        self._ready: asyncio.Queue[BatchItem | None] = asyncio.Queue()  # None at the end
        self._main: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._rows = OwnedTasks()
        self._page: list[Row] = []  # rows that were read since the last turn of the loop
        self._uploading: set[asyncio.Task[object]] = set()  # tasks of rows; they may be cancelled
        self._is_left = False
        self._stopping = asyncio.Event()
        # Done when submissions that wait to be sent are given up, too.
        self._giving_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped: str | None = None
        self._error: BaseException | None = None  # the iteration ends with it
        self._pause, self._pauses_until, self._pause_reason = 0.0, 0.0, ""
        self._failures = 0  # in a row
        self._submitted = self._running = self._done = self._failed = self._unknown = 0
        self._waited_for = 0  # rows of this run whose submission was begun and that have not ended
        self._ends: deque[float] = deque(maxlen=RATE_OF)
        self._warned_of_keys = self._progress_has_failed = False

    def __repr__(self) -> str:
        name = f" {self._options.batch!r}" if self._options.batch is not None else ""
        ended = self._done + self._failed + self._unknown
        state = "stopped" if self._stopped else "over" if self._is_over else "running"
        return f"<Batch{name} {state}: {ended} rows have ended, {self._running} are running>"

    def __reduce__(self) -> Never:
        raise TypeError(
            "a batch cannot be copied or pickled: it belongs to an open client. Call "
            "generate_many() there with the same batch= to continue it. Its items can be pickled"
        )

    # ─── what the user calls ─────────────────────────────────────────────────────────────────────

    @property
    def progress(self) -> BatchProgress:
        """The progress of the batch at this moment."""
        total = len(self._requests) if isinstance(self._requests, Sized) else None
        ended = self._done + self._failed + self._unknown
        rate = expected_end = None
        if len(self._ends) > 1 and (seconds := self._ends[-1] - self._ends[0]) > 0:
            rate = 60 * (len(self._ends) - 1) / seconds
        if rate and total is not None and ended < total and not self._stopped:
            expected_end = datetime.now(UTC) + timedelta(minutes=(total - ended) / rate)
        return BatchProgress(
            total=total,
            submitted=self._submitted,
            running=self._running,
            done=self._done,
            failed=self._failed,
            unknown=self._unknown,
            rate=rate or 0.0,
            expected_end=expected_end,
            spent=None if self._money.balance is None else self._money.spent,
            paused=self._pause_reason if self._clock.time() < self._pauses_until else None,
            stopped=self._stopped,
        )

    async def __aenter__(self) -> Self:
        if self._main is not None:
            raise InvalidRequestError({"batch": "can be used only once: call generate_many() anew"})
        if self._options.download_to is not None:  # before anything is bought
            make_folder(self._options.download_to, must_be_writable=False)
        self._main = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_left = True
        main, reader = self._main, self._reader
        for task in (main, reader):
            if task is not None:
                task.cancel()
        await self._rows.finish()
        await asyncio.wait({task for task in (main, reader) if task is not None})
        self._ready.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BatchItem:
        if self._main is None:
            raise InvalidRequestError({"batch": "use it in 'async with … as batch:'"})
        item = await self._ready.get()
        if item is not None:
            self._room.release()
            return item
        self._ready.put_nowait(None)  # for the next caller
        error, self._error = self._error, None
        if error is not None and not self._is_left:
            raise error
        raise StopAsyncIteration

    # ─── all rows ────────────────────────────────────────────────────────────────────────────────

    @property
    def _is_over(self) -> bool:
        return self._main is not None and self._main.done()

    async def _run(self) -> None:
        self._reader = asyncio.create_task(self._read())
        await asyncio.wait({self._reader})
        while self._rows:  # a page starts its rows
            await self._rows.join()
        if self._money.settled:
            with suppress(MidAPIError):
                await self._read_balance()
        self._report()
        _log.info("%s: %s", self._name, self._summary())
        self._ready.put_nowait(None)

    async def _read(self) -> None:
        """Read the requests, and start a task for each, while there is room."""
        index = 0
        try:
            async with aclosing(_each(self._requests)) as requests:
                while not self._stopping.is_set():
                    await self._room.acquire()
                    try:
                        asked = await anext(requests)
                    except StopAsyncIteration:
                        return
                    await self._start(index, asked)
                    index += 1
        except InvalidRequestError as error:  # two rows have the same key
            self._stop(str(error), error)
        except Exception as error:  # noqa: BLE001 - the user's iterable; the iteration raises it
            self._stop(f"reading the requests failed: {error!r}", error)

    async def _start(self, index: int, asked: object) -> None:
        """Start the task of a row; one that is not valid ends at once.

        Raises:
            InvalidRequestError: an earlier row has the same key.
        """
        given = asked if isinstance(asked, BatchRequest) else BatchRequest(asked)  # type: ignore[arg-type] # checked here
        request = None
        try:
            request = self._request_of(given.request)
            check_arguments(given.key, {} if given.metadata is None else given.metadata, None)
            if paths_of(request):
                digest = await asyncio.to_thread(hash_of, request)
            else:
                digest = hash_of(request)
            row = Row(
                index=index,
                request=request,
                hash=digest,
                key=given.key,
                metadata=given.metadata,
            )
        except InvalidRequestError as error:
            self._failed += 1
            key = given.key if isinstance(given.key, str) else None
            self._ready.put_nowait(BatchItem(index=index, request=request, key=key, error=error))
            self._report()
            return
        if row.key is None:
            row.key = self._keys.made(row.hash)
        if row.key is None:
            if not self._warned_of_keys:
                self._warned_of_keys = True
                _log.warning(
                    "This batch cannot be resumed: a second run would buy its rows again. "
                    "generate_many(batch='a name') gives each row a key"
                )
            self._rows.start(self._carry_out(row))
            return
        self._keys.add(index, row.key)
        if not self._page:
            self._page = []  # the page before belongs to its task
            self._rows.start(self._carry_out_page(self._page))
        self._page.append(row)
        if len(self._page) == LARGEST_PAGE:
            self._page = []

    async def _carry_out_page(self, page: list[Row]) -> None:
        """Yield the rows that have succeeded in an earlier run, and start a task for each other."""
        if self._page is page:
            self._page = []
        known: Mapping[str, TaskHandle] = {}
        if len(page) >= SMALLEST_PAGE:
            # If this fails, each row asks for itself, and handles the error.
            with suppress(Exception):
                known = await self._succeeded([row.key for row in page if row.key is not None])
        needs_no_task = self._options.download_to is None and not self._pause
        for row in page:
            row.handle = known.get(row.key or "")
            if needs_no_task and row.handle is not None:
                await self._carry_out(row)  # waits for nothing
            else:
                self._rows.start(self._carry_out(row))

    def _stop(
        self, reason: str, error: BaseException | None = None, *, at_once: bool = False
    ) -> None:
        """Submit nothing more. Rows that were bought are awaited.

        Args:
            reason: why, in words.
            error: what the iteration raises at its end.
            at_once: whether submissions that wait to be sent are given up, too.
        """
        if self._stopped is not None:
            return
        self._stopped, self._error = reason, error
        self._stopping.set()
        self._changed.set()
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        if at_once:
            self._giving_up.set_result(None)
            for task in self._uploading:
                task.cancel()
        said = f"{self._name} submits nothing more: {reason} So far: {self._summary()}"
        _log.warning("%s", said)
        if error is not None:
            error.add_note(said)

    @property
    def _name(self) -> str:
        return "The batch" if self._options.batch is None else f"Batch {self._options.batch!r}"

    def _summary(self) -> str:
        spent = "" if self._money.balance is None else f"; {self._money.spent:,g} credits spent"
        return (
            f"{self._submitted} rows submitted, {self._done} done, {self._failed} failed, "
            f"{self._unknown} unknown, {self._running} running{spent}"
        )

    def _report(self) -> None:
        if self._options.on_progress is None:
            return
        try:
            self._options.on_progress(self.progress)
        except Exception as error:  # noqa: BLE001 - its bug must not stop the batch
            if not self._progress_has_failed:
                self._progress_has_failed = True
                _log.error(
                    "on_progress raised; later exceptions of it are not logged. The batch goes on.",
                    exc_info=error,
                )

    # ─── one row ─────────────────────────────────────────────────────────────────────────────────

    async def _carry_out(self, row: Row) -> None:
        """Buy a row, wait for its result, download it, and put its item into the queue."""
        try:
            item = await self._outcome(row)
        except ClientClosed as error:
            self._stop("the client was closed.", error, at_once=True)
            return
        except Exception as error:  # noqa: BLE001 - a bug; the iteration raises it
            self._stop(f"a bug: {error!r}.", error)
            return
        finally:
            self._running -= row.is_running
            self._waited_for -= row.is_new
            self._changed.set()
        if item is not None:
            self._count(row, item)
            self._ready.put_nowait(item)
            self._report()

    async def _outcome(self, row: Row) -> BatchItem | None:
        """The item of a row; None if it was not bought because the batch has stopped."""
        while True:
            item = await self._outcome_of_try(row)
            error = None if item is None else item.error
            if row.is_new or row.key is None or error is row.failure:
                return item
            # A try of an earlier run has failed: look at the next try, if there was one.
            if not isinstance(error, TaskFailed | TaskExpired):
                return item
            row.failure = error
            row.attempt += 1
            self._running -= row.is_running
            row.is_running = False

    async def _outcome_of_try(self, row: Row) -> BatchItem | None:
        handle = details = failure = None
        paths: tuple[Path, ...] = ()
        try:
            handle = await self._handle(row)
            if handle is None:
                return None
            self._submitted += not row.was_bought
            self._running += 1
            row.was_bought = row.is_running = True
            self._report()
            details = await handle.wait()
            if self._options.download_to is not None:
                paths = tuple(await self._client.download(details, self._options.download_to))
        except ClientClosed:
            raise
        except MidAPIError as error:
            failure = error
            if isinstance(error, TaskError) and details is None:
                details = error.details
            if isinstance(error, DownloadError):
                paths = error.files
        known_by = handle or failure
        return BatchItem(
            index=row.index,
            request=row.request,
            key=row.key,
            metadata=dict(row.metadata or {}),
            intent_id=known_by.intent_id if known_by is not None else None,
            details=details,
            error=failure,
            paths=paths,
        )

    async def _handle(self, row: Row) -> TaskHandle | None:
        """The handle of a row's task, bought now or earlier; None if the batch has stopped.

        Raises:
            MidAPIError: the row itself cannot be bought, or it is unknown.
        """
        while not self._stopping.is_set():
            if await self._has_stopped(self._pauses_until - self._clock.time()):
                break
            began, is_admitted = self._clock.time(), True
            try:
                handle = await self._known(row)
                if handle is None:
                    is_admitted = False  # an error of `_admit` is never the row's
                    is_admitted = await self._admit(row)
                    handle = await self._buy(row) if is_admitted else None
            except SubmissionUnknown as unknown:
                return await self._settled(row, unknown)
            except MidAPIError as error:
                if error.task_id is not None:
                    raise
                if isinstance(error, _STOPPING) or getattr(error, "permanent", False):
                    self._stop(str(error), error, at_once=True)
                    return None
                if is_admitted and not isinstance(error, _TRANSIENT):
                    raise
                self._begin_pause(error, began)
                continue
            return handle
        return None

    async def _known(self, row: Row) -> TaskHandle | None:
        """The handle of this try, if an earlier call bought it; None if it may be bought.

        Raises:
            TaskError: the error of the previous try, if this one was not bought and must not be.
        """
        if row.key is None:
            return None
        handle, row.handle = row.handle, None
        if handle is None:
            handle = await self._client.find(key_of_try(row.key, row.attempt))
        before = None if handle is None else handle.request
        is_same = before is None or before == row.request or hash_of(before) == row.hash
        if row.failure is not None and (handle is None or not is_same):
            # An expired task may have succeeded, and so may one whose record cannot be read.
            details = row.failure.details
            is_failed = details is not None and details.status is TaskStatus.FAILED
            if not (self._options.retry_failed and is_failed):
                raise row.failure
        if handle is None:
            return None
        if not is_same:
            conflict = KeyConflict(key_of_try(row.key, row.attempt))
            raise about(conflict, intent_id=handle.intent_id, task_id=handle.task_id)
        row.is_news = row.is_news or handle.final is None
        return handle

    async def _buy(self, row: Row) -> TaskHandle | None:
        """Submit a row; None if the batch has stopped before it was sent."""
        may_cost = True
        try:
            handle = await self._generate(row)
            may_cost = handle is not None
        except MidAPIError as error:
            may_cost = isinstance(error, SubmissionUnknown | ClientClosed)
            raise
        finally:
            self._money.end(may_cost=may_cost)
            if not may_cost:
                # If the row pauses now, others must not wait for it: it may have to wait for them.
                row.is_new = False
                self._waited_for -= 1
            self._changed.set()
        if self._pause and handle is not None:
            self._pause = 0.0
            _log.info("%s goes on: a row was submitted", self._name)
        return handle

    async def _generate(self, row: Row) -> TaskHandle | None:
        request, task = row.request, asyncio.current_task()
        if paths_of(request) and task is not None:
            self._uploading.add(task)
            try:
                request = await self._client.prepare(request)
            except asyncio.CancelledError:
                if self._is_left or not self._giving_up.done():
                    raise
                task.uncancel()
                return None
            finally:
                self._uploading.discard(task)
        key = None if row.key is None else key_of_try(row.key, row.attempt)
        return await self._buy_now(request, key=key, metadata=row.metadata, stop=self._giving_up)

    async def _settled(self, row: Row, unknown: SubmissionUnknown) -> TaskHandle:
        """Wait for the callback of a submission whose answer was lost.

        Raises:
            SubmissionUnknown: there is no receiver, or no callback came.
        """
        handle = await self._settle(unknown, row.request)
        row.is_news = True
        return handle

    def _count(self, row: Row, item: BatchItem) -> None:
        """Count what came of a row; stop if it says that no other row should be submitted."""
        error, options = item.error, self._options
        self._done += error is None
        self._unknown += isinstance(error, SubmissionUnknown)
        self._failed += error is not None and not isinstance(error, SubmissionUnknown)
        if row.is_news:
            # Failures that an earlier run has seen must not stop this one.
            self._failures = 0 if error is None else self._failures + 1
            self._ends.append(asyncio.get_running_loop().time())
        if error is None:
            return
        is_unwanted = isinstance(error, SubmissionUnknown) and options.on_unknown == "stop"
        if is_unwanted or isinstance(error, _STOPPING):
            self._stop(str(error), error, at_once=True)
        elif self._failures == options.stop_after_failures:
            reason = f"{self._failures} rows in a row have failed, the last one with: {error}"
            self._stop(reason, error, at_once=True)

    # ─── pauses and money ────────────────────────────────────────────────────────────────────────

    def _begin_pause(self, error: MidAPIError, began: float) -> None:
        """Pause all rows; an attempt that began before the last pause has ended changes nothing."""
        if began < self._pauses_until:
            return
        if not self._pause:
            _log.warning("%s pauses, and tries again by itself: %s", self._name, error)
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        retry_after = getattr(error, "retry_after", None) or 0.0
        self._pauses_until = self._clock.time() + max(self._pause, retry_after)
        self._pause_reason = str(error)

    async def _has_stopped(self, seconds: float) -> bool:
        """Wait some service seconds, or until the batch stops; return whether it has."""
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds / self._clock.scale + RESOLUTION):
                    await self._stopping.wait()
        return self._stopping.is_set()

    async def _admit(self, row: Row) -> bool:
        """Wait until a row may be paid for; False if the batch stops.

        Raises:
            MidAPIError: the balance must be known and could not be read.
        """
        money = self._money
        async with self._turn:
            while not self._stopping.is_set():
                self._changed.clear()
                # With nothing under way, the balance shows the cost of all that was submitted.
                is_quiet = not money.sending
                if money.largest is None:
                    # A task may be charged only when it ends.
                    is_quiet = is_quiet and self._waited_for == row.is_new
                is_blocked = not money.may_submit
                if money.must_read or (is_blocked and is_quiet and money.settled):
                    await self._read_balance()
                    is_blocked = not money.may_submit
                if not is_blocked:
                    money.begin()
                    self._waited_for += not row.is_new
                    row.is_new = row.is_news = True
                    return True
                if is_quiet and not money.settled:
                    self._stop(
                        f"max_credits={money.limit:g}: {money.spent:g} credits are spent, and one "
                        f"more row may cost {round(money.largest or 0, 2):g}."
                    )
                elif not (is_quiet and money.settled):
                    await self._changed.wait()
        return False

    async def _read_balance(self) -> None:
        """Read the balance.

        Raises:
            MidAPIError: it cannot be read, and there is a limit.
        """
        settled, self._money.was_tried = self._money.settled, True
        try:
            balance = await self._client.credits()
        except MidAPIError:
            if self._money.limit is not None:
                raise
            self._money.settled -= settled  # the next balance shows their cost
        else:
            self._money.read(balance, settled)


async def _each(requests: Requests) -> AsyncGenerator[Asked, None]:
    if isinstance(requests, AsyncIterable):
        async for asked in requests:
            yield asked
    else:
        for asked in requests:
            yield asked
