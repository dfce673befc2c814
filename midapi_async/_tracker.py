"""Tracking: one scheduler for all waiters, one look per task however many wait.

A waiter is a plain future in its task's entry; looks and deadlines stand in one heap. What moves a
look forward is a hint (a callback); the truth is always record-info. A look that fails is not
repeated, it is scheduled again, and never ends a wait before its deadline.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import time
from collections import OrderedDict, deque
from contextvars import Context
from typing import TYPE_CHECKING

import attrs

from . import _codec
from ._clock import BLOCKED_LOOP, Clock
from ._owned import OwnedTasks
from ._schedule import Kind, Schedule
from .errors import (
    AuthenticationError,
    ClientClosed,
    MidAPIError,
    RateLimitError,
    ResultMissing,
    TaskNotFound,
    WaitTimeout,
)
from .tasks import TaskDetails, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._api import Found
    from ._codec import Record
    from .config import PollPolicy

_log = logging.getLogger("midapi_async")

LOOKS_AT_ONCE = 16
HINT_INTERVAL, HINTS_PER_TASK = 5.0, 12  # how often a hint may move a task's look forward
GRACE, GRACE_LOOKS = 120.0, 5  # before an unknown task, or a success without files, is an error
REMEMBERED = 1_000  # tasks that nobody waits for just now
REMEMBERED_HINTS = 20_000
LONGEST_REST = 120.0  # seconds that MidAPI's 429 can stop all looks for
OLDEST = 3600.0  # seconds; a running task that seems older shows the service's clock, not its age
_DEAD_SHARE = 0.5  # of the heap before it is made anew

NEW_KIND: Kind = ("mj_txt2img", "fast")  # of a task that nothing is known about


@attrs.define(eq=False, slots=True)
class _Tracked:
    """What the tracker knows of one task."""

    task_id: str
    kind: Kind
    since: float  # when MidAPI took it
    due: float = math.inf  # when it is looked at next; -inf while it waits for its turn
    looked_at: float = -math.inf  # when the last look ended
    begun_at: float = -math.inf  # when it began
    hinted_at: float = -math.inf  # the last time that a hint moved a look to
    hints: int = 0
    is_looking: bool = False
    is_hinted: bool = False
    is_urgent: bool = False
    is_seen: bool = False
    is_of_unknown_age: bool = False
    odd_since: float | None = None  # when it was first unknown, or first without files
    odd_looks: int = 0
    faults: int = 0
    waiters: set[asyncio.Future[TaskDetails]] = attrs.field(factory=set)
    overdue: list[asyncio.Future[TaskDetails]] = attrs.field(factory=list)  # end with the next look


@attrs.frozen(eq=False, slots=True)
class _Deadline:
    """When one waiter's patience ends."""

    task: _Tracked
    waiter: asyncio.Future[TaskDetails]
    is_extended: bool = False
    wants_look_since: float | None = None  # a look that began since then has to end first

    @property
    def wants_look(self) -> bool:
        """Whether such a look has not ended yet."""
        since = self.wants_look_since
        return since is not None and (self.task.begun_at < since or self.task.is_looking)


class Tracker:
    """Wakes every waiter of a task when its record is final.

    Args:
        look: one GET of a task's record; None while MidAPI does not know the task.
        schedule: when to look.
        policy: how fast to look.
        clock: the client's clock.
    """

    def __init__(
        self,
        *,
        look: Callable[[str], Awaitable[Found | None]],
        schedule: Schedule,
        policy: PollPolicy,
        clock: Clock,
    ) -> None:
        self._look = look
        self._schedule = schedule
        self._policy = policy
        self._clock = clock
        self._active: dict[str, _Tracked] = {}
        self._idle: OrderedDict[str, _Tracked] = OrderedDict()
        self._heap: list[tuple[float, int, _Tracked | _Deadline]] = []
        self._numbers = itertools.count()
        self._dead = 0
        self._early: dict[str, None] = {}  # hints for tasks that nobody ever waited for
        self._urgent: deque[_Tracked] = deque()
        self._ready: deque[_Tracked] = deque()
        self._looking = 0
        self._next_turn = -math.inf
        self._rests_until = -math.inf
        self._faults_in_a_row = 0
        self._refusals_in_a_row = 0
        self._odd_flags: set[int | None] = set()
        self._looks = OwnedTasks()
        self._scheduler = OwnedTasks()
        self._wake = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Tracker {self.waiting} waiting for {len(self._active)} tasks>"

    @property
    def waiting(self) -> int:
        """How many waits are going on."""
        return sum(len(task.waiters) for task in self._active.values())

    def start(self) -> None:
        """Start the scheduler, in an empty context: it is nobody's request."""
        self._scheduler.start(self._supervise(), context=Context())

    # ─── what others ask of it ───────────────────────────────────────────────────────────────────

    async def wait(
        self,
        task_id: str,
        *,
        kind: Kind | None,
        since: float | None,
        deadline: float | None,
        looks_once: bool = False,
    ) -> TaskDetails:
        """The final details of a task, succeeded or failed.

        Args:
            task_id: which task.
            kind: its type and speed, for the plan; None if not known.
            since: when MidAPI took it, on the client's clock; None if not known.
            deadline: when to stop waiting, on the client's clock; None for never.
            looks_once: stop only after a look that began during this wait.

        Raises:
            WaitTimeout: the deadline came first; the task goes on.
            TaskNotFound, ResultMissing: MidAPI does not know the task, or shows no file.
            AuthenticationError: the API key is refused.
            ClientClosed: the client was closed first.
        """
        if self._closed:
            raise ClientClosed(task_id)
        task = self._activate(task_id, kind, since)
        waiter: asyncio.Future[TaskDetails] = self._clock.loop.create_future()
        task.waiters.add(waiter)
        if deadline is not None:
            now = self._clock.time()
            wants = now if looks_once else None
            self._push(max(deadline, now), _Deadline(task, waiter, wants_look_since=wants))
        try:
            return await waiter
        finally:
            self._detach(task, waiter, has_deadline=deadline is not None)

    def hint(self, task_id: str) -> None:
        """Word that a task may have changed: look at it soon, if anybody waits for it."""
        task = self._active.get(task_id)
        if task is None:
            self._early[task_id] = None
            if len(self._early) > REMEMBERED_HINTS:
                del self._early[next(iter(self._early))]
        elif task.is_looking:
            task.is_hinted = True
        else:
            self._plan_hinted(task)

    def _plan_hinted(self, task: _Tracked) -> None:
        floor = task.looked_at + self._policy.floor
        moment = max(self._clock.time(), floor, task.hinted_at + HINT_INTERVAL)
        is_queued = task.due == -math.inf and not task.is_urgent
        if task.hints >= HINTS_PER_TASK or not (moment < task.due or is_queued):
            return
        task.hints += 1
        task.hinted_at, task.is_urgent = moment, True
        if is_queued:
            self._urgent.append(task)  # its place among those that are due is skipped then
            self._wake.set()
        else:
            self._plan_look(task, moment)

    def rest(self, seconds: float) -> None:
        """MidAPI wants nothing from us for so long."""
        until = self._clock.time() + min(seconds, LONGEST_REST)
        self._rests_until = max(self._rests_until, until)

    async def aclose(self) -> None:
        """Stop looking; everybody who waits gets `ClientClosed` with the task's id."""
        self._closed = True
        self._fail_all(ClientClosed)
        await self._scheduler.finish()
        await self._looks.finish()

    # ─── entries ─────────────────────────────────────────────────────────────────────────────────

    def _activate(self, task_id: str, kind: Kind | None, since: float | None) -> _Tracked:
        task = self._active.get(task_id)
        if task is not None:
            return task
        now = self._clock.time()
        task = self._idle.pop(task_id, None) or _Tracked(task_id, NEW_KIND, now)
        if not task.is_seen:
            task.kind, task.since = kind or task.kind, now if since is None else since
            task.is_of_unknown_age = since is None
        self._active[task_id] = task
        if not task.is_looking:
            first = self._first_look(task, now, is_new=since is not None)
            self._plan_look(task, max(first, task.looked_at + self._policy.floor))
        return task

    def _first_look(self, task: _Tracked, now: float, *, is_new: bool) -> float:
        """At once where a look may already find the result, else where the plan begins."""
        planned = task.since + self._schedule.first_look(task.kind)
        if task.is_hinted or task.task_id in self._early:
            self._early.pop(task.task_id, None)
            task.is_hinted, task.is_urgent, task.hinted_at = False, True, now
            return now
        return max(planned, now) if is_new else now

    def _detach(
        self, task: _Tracked, waiter: asyncio.Future[TaskDetails], *, has_deadline: bool
    ) -> None:
        task.waiters.discard(waiter)
        self._dead += has_deadline
        if not task.waiters and self._active.get(task.task_id) is task:
            self._retire(task)
            task.overdue.clear()
            self._remember(task)  # so that the next wait keeps to the floor
        if self._dead > max(1000, _DEAD_SHARE * len(self._heap)):
            self._heap = [item for item in self._heap if self._is_alive(item)]
            heapq.heapify(self._heap)
            self._dead = 0

    def _retire(self, task: _Tracked) -> None:
        if self._active.get(task.task_id) is task:
            del self._active[task.task_id]
        self._dead += math.isfinite(task.due)
        task.due = math.inf

    def _remember(self, task: _Tracked) -> None:
        self._idle[task.task_id] = task
        self._idle.move_to_end(task.task_id)
        if len(self._idle) > REMEMBERED:
            self._idle.popitem(last=False)

    def _is_alive(self, item: tuple[float, int, _Tracked | _Deadline]) -> bool:
        moment, _, what = item
        if isinstance(what, _Deadline):
            return not what.waiter.done()
        return what.due == moment

    def _plan_look(self, task: _Tracked, moment: float) -> None:
        self._dead += math.isfinite(task.due)
        task.due = moment
        self._push(moment, task)

    def _push(self, moment: float, what: _Tracked | _Deadline) -> None:
        heapq.heappush(self._heap, (moment, next(self._numbers), what))
        if self._heap[0][2] is what:
            self._wake.set()

    # ─── the scheduler ───────────────────────────────────────────────────────────────────────────

    async def _supervise(self) -> None:
        while True:
            try:
                await self._run()
            except Exception:  # noqa: BLE001 - whatever it was, the waiters need a scheduler
                _log.exception("the scheduler failed and is started again")
                await self._clock.sleep(1.0)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            moment = self._do_what_is_due()
            timer = None
            if moment < math.inf:
                timer = self._clock.call_at(moment, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                if timer:
                    timer.cancel()

    def _do_what_is_due(self) -> float:
        """End what has run out, begin the looks whose turn it is; tell when more is due."""
        now = self._clock.time()
        while self._heap and self._heap[0][0] <= now:
            item = heapq.heappop(self._heap)
            moment, _, what = item
            if not self._is_alive(item):
                self._dead = max(0, self._dead - 1)
            elif isinstance(what, _Deadline):
                self._run_out(what, late=now - moment)
            else:
                what.due = -math.inf
                (self._urgent if what.is_urgent else self._ready).append(what)
        more = self._begin_looks(now)
        return min(more, self._heap[0][0] if self._heap else math.inf)

    def _run_out(self, deadline: _Deadline, late: float) -> None:
        """A deadline that comes late was held up by a blocked loop, and so was the result."""
        if late > BLOCKED_LOOP * self._clock.scale and not deadline.is_extended:
            extended = attrs.evolve(deadline, is_extended=True)
            self._push(self._clock.time() + BLOCKED_LOOP * self._clock.scale, extended)
        elif deadline.wants_look:
            deadline.task.overdue.append(deadline.waiter)
            self._look_soon(deadline.task)
        else:
            deadline.waiter.set_exception(WaitTimeout(deadline.task.task_id))

    def _look_soon(self, task: _Tracked) -> None:
        """A wait is over but for its look: what is planned for later is made now."""
        moment = max(self._clock.time(), task.looked_at + self._policy.floor)
        if not task.is_looking and moment < task.due:
            self._plan_look(task, moment)

    def _begin_looks(self, now: float) -> float:
        """Begin looks, hinted ones first, then as they came due; return when the next may begin."""
        pace = 1 / self._policy.looks_per_second
        while queue := self._urgent or self._ready:
            task = queue[0]
            if task.due != -math.inf:
                queue.popleft()  # nobody waits for it any more, or a hint had it looked at before
                continue
            if self._looking >= LOOKS_AT_ONCE:
                return math.inf  # the end of a look wakes the scheduler
            turn = max(self._rests_until, self._next_turn)
            if turn > now:
                return turn
            queue.popleft()
            # Up to a second's worth of looks may go at once.
            self._next_turn = max(self._next_turn + pace, now - 1 + pace)
            task.due, task.is_looking, task.is_urgent = math.inf, True, False
            task.begun_at = now
            self._looking += 1
            self._looks.start(self._look_at(task), context=Context())
        return math.inf

    # ─── one look ────────────────────────────────────────────────────────────────────────────────

    async def _look_at(self, task: _Tracked) -> None:
        try:
            found = await self._look(task.task_id)
        except MidAPIError as error:
            self._judge_fault(task, error)
        else:
            self._faults_in_a_row = self._refusals_in_a_row = task.faults = 0
            self._judge(task, found)
        finally:
            self._wake.set()
            task.is_looking = False
            task.looked_at = self._clock.time()
            self._looking -= 1
            self._end_overdue(task)
            if self._active.get(task.task_id) is task:
                self._plan_next(task)

    def _end_overdue(self, task: _Tracked) -> None:
        for waiter in task.overdue:
            if not waiter.done():
                waiter.set_exception(WaitTimeout(task.task_id))
        task.overdue.clear()

    def _judge(self, task: _Tracked, found: Found | None) -> None:
        if found is None:
            if not task.is_seen and self._is_out_of_grace(task):
                self._fail(task, TaskNotFound)
            return
        record, data = found
        task.is_seen = True
        if task.is_of_unknown_age:
            self._note_age(task, record)
        self._note_kind(task, record)
        if record.success_flag not in _codec.KNOWN_FLAGS | self._odd_flags:
            self._odd_flags.add(record.success_flag)
            _log.warning("successFlag %s is new; it is taken for generating", record.success_flag)
        if record.status is TaskStatus.GENERATING:
            return
        details = _codec.details_of(record, data)
        if details.is_final:
            self._finish(task, details)
        elif self._is_out_of_grace(task):
            self._fail(task, lambda task_id: ResultMissing(task_id, details))

    def _note_age(self, task: _Tracked, record: Record) -> None:
        """A task of which only the id was known may be older than our knowing it."""
        task.is_of_unknown_age = False
        if record.create_time is not None and self._clock.scale == 1.0:
            age = time.time() - record.create_time.timestamp()
            if 0 < age < OLDEST:
                task.since = min(task.since, self._clock.time() - age)

    def _note_kind(self, task: _Tracked, record: Record) -> None:
        if record.task_type is not None:
            speed = record.params.get("speed")
            named = speed.casefold() if isinstance(speed, str) else task.kind[1]
            task.kind = (record.task_type, named)

    def _is_out_of_grace(self, task: _Tracked) -> bool:
        now = self._clock.time()
        task.odd_since = now if task.odd_since is None else task.odd_since
        task.odd_looks += 1
        return task.odd_looks >= GRACE_LOOKS and now - task.odd_since >= GRACE

    def _judge_fault(self, task: _Tracked, error: MidAPIError) -> None:
        """A passing fault: looks become rarer, for the task and for the account."""
        task.faults += 1
        self._faults_in_a_row += 1
        pause = min(self._policy.floor * 2 ** min(self._faults_in_a_row - 1, 10), LONGEST_REST / 2)
        if isinstance(error, RateLimitError) and error.retry_after is not None:
            pause = max(pause, error.retry_after)
        self.rest(pause * (1 + self._clock.chance() / 10))
        refused = isinstance(error, AuthenticationError) and error.own_envelope
        self._refusals_in_a_row = self._refusals_in_a_row + 1 if refused else 0
        _log.debug("a look at task %s failed: %s", task.task_id, error)
        if isinstance(error, AuthenticationError) and self._refusals_in_a_row >= 2:
            said = (error.code, error.message, error.http_status)
            self._fail_all(lambda _: AuthenticationError(*said))
            self._refusals_in_a_row = 0

    def _plan_next(self, task: _Tracked) -> None:
        now = self._clock.time()
        elapsed = now - task.since
        gap = self._schedule.next_look(task.kind, elapsed) - elapsed
        if task.faults:
            gap = min(gap * 2 ** min(task.faults, 10), max(gap, self._policy.ceiling))
        self._plan_look(task, now + gap * (1 + self._clock.chance() / 20))
        if task.is_hinted:
            task.is_hinted = False
            self._plan_hinted(task)

    # ─── outcomes ────────────────────────────────────────────────────────────────────────────────

    def _finish(self, task: _Tracked, details: TaskDetails) -> None:
        if details.duration is not None and details.status is TaskStatus.SUCCEEDED:
            self._schedule.learn(task.kind, details.duration.total_seconds())
        self._retire(task)
        for waiter in task.waiters:
            if not waiter.done():
                waiter.set_result(details)

    def _fail(self, task: _Tracked, error: Callable[[str], MidAPIError]) -> None:
        """Everybody who waits for a task gets an error of their own."""
        self._retire(task)
        for waiter in task.waiters:
            if not waiter.done():
                waiter.set_exception(error(task.task_id))

    def _fail_all(self, error: Callable[[str], MidAPIError]) -> None:
        for task in list(self._active.values()):
            self._fail(task, error)
