"""Tracking: one scheduler for all waiters, one look per task however many wait.

A waiter is a plain future in its task's entry, and a task has one place in one heap: where its next
look or its first deadline is due. What moves a look forward is a hint (a callback); the truth is
always record-info. A look that fails is not repeated, it is scheduled again, and never ends a wait
before its deadline.

With more looks due than `PollPolicy.looks_per_second` allows, hinted tasks are looked at first, in
the order of their hints, then the others in the order in which they came due. Each task has one
look due at most, so none is looked at twice before every other one had its turn.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
from collections import OrderedDict, deque
from contextvars import Context
from typing import TYPE_CHECKING

from .._runtime.background import OwnedTasks
from .._runtime.clock import BLOCKED_LOOP, Clock
from .._wire.protocol import CLOCK_SKEW
from ..errors import (
    AuthenticationError,
    ClientClosed,
    MidAPIError,
    ProtocolError,
    RateLimitError,
    WaitTimeout,
)
from ..tasks import TaskDetails, TaskStatus
from .verdict import NEW_KIND, Failure, Judge, Tracked, Wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from .._wire.records import Record
    from ..config import PollPolicy
    from .schedule import Kind, Schedule

_log = logging.getLogger("midapi_async")

LOOKS_AT_ONCE = 16
HINT_INTERVAL, HINTS_PER_TASK = 5.0, 12  # how often a hint may move a task's look forward
# After a callback that a look did not confirm: 1, 2, 4, 8 s later with a floor of 1 s.
QUICK_LOOKS, QUICK_HINTS = 4, 2
LATE_CALLBACK = 5.0  # seconds after a look has found the result that its callback is still in time
MISSED = 3  # callbacks that did not come, and none that did, before it is said
REMEMBERED = 1_000  # tasks that nobody waits for just now
REMEMBERED_HINTS = 20_000
FORGIVEN = 30.0  # seconds that a wait goes on whose deadline passed while the process stood still
LONGEST_REST = 120.0  # seconds that MidAPI's 429 can stop all looks for
LATE_LOOK, SAID_AGAIN = 10.0, 3600.0  # seconds that looks may come late before it is said
SLEEP_CHECK = 10.0  # loop seconds between two looks at whether the machine has slept
AT_ONCE = 500  # tasks that one turn of the event loop deals with
_DEAD_SHARE = 0.5  # of the agenda before it is made anew


class _Agenda:
    """A heap of tasks by when there is something to do for them, each once.

    What has died in it is thrown out when it is half of all.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, Tracked]] = []
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_moment(self) -> float:
        """When something is to be done, at the earliest."""
        return self._heap[0][0] if self._heap else math.inf

    def put(self, task: Tracked) -> bool:
        """Give a task its place, unless it has an earlier one; whether it is the first one now."""
        moment = min(task.due if task.due != -math.inf else math.inf, task.deadline)
        if moment >= task.queued:
            return False
        self.drop(task)
        task.queued = moment
        heapq.heappush(self._heap, (moment, task))
        return self._heap[0][1] is task

    def drop(self, task: Tracked) -> None:
        """There is nothing to do for a task any more."""
        if task.queued == math.inf:
            return
        task.queued = math.inf
        self._dead += 1
        if self._dead > max(1000, _DEAD_SHARE * len(self._heap)):
            self._heap = [item for item in self._heap if item[1].queued == item[0]]
            heapq.heapify(self._heap)
            self._dead = 0

    def pop(self) -> Tracked | None:
        """The first task; None if it has died, or has another place."""
        moment, task = heapq.heappop(self._heap)
        if task.queued != moment:
            self._dead = max(0, self._dead - 1)
            return None
        task.queued = math.inf
        return task


class Tracker:
    """Wakes every waiter of a task when its record is final.

    Args:
        look: one GET of a task's record; None while MidAPI does not know the task.
        schedule: when to look.
        policy: how fast to look.
        clock: the client's clock.
        keep: told the kind of each task that succeeded, and how many seconds it took.
    """

    def __init__(
        self,
        *,
        look: Callable[[str], Awaitable[Record | None]],
        schedule: Schedule,
        policy: PollPolicy,
        clock: Clock,
        keep: Callable[[Kind, float], object] | None = None,
    ) -> None:
        self._look = look
        self._schedule = schedule
        self._policy = policy
        self._clock = clock
        self._keep = keep
        self._judge = Judge(clock)
        self._active: dict[str, Tracked] = {}
        self._idle: OrderedDict[str, Tracked] = OrderedDict()
        self._agenda = _Agenda()
        self._early: dict[str, None] = {}  # hints for tasks that nobody ever waited for
        self._uncalled: dict[str, float] = {}  # finished without a callback; until when it is late
        self._missed_callbacks = 0.0
        self._urgent: deque[Tracked] = deque()
        self._ready: deque[Tracked] = deque()
        self._looking = 0
        self._begun: deque[float] = deque()  # when the last looks began
        self._rests_until = -math.inf
        self._says_late_from = -math.inf
        self._faults_in_a_row = 0
        self._refusals_in_a_row = 0
        self._slept = clock.slept()
        self._wakes_at = math.inf  # when the scheduler is to wake by itself
        self._stalled = (math.inf, math.inf)  # from when to when the process last stood still
        self._looks = OwnedTasks()
        self._scheduler = OwnedTasks()
        self._wake = asyncio.Event()
        self._is_over = False
        # Told when a task begins to be waited for, and when none is any more.
        self.waits_changed: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Tracker {self.waiting} waiting for {len(self._active)} tasks>"

    @property
    def waiting(self) -> int:
        """How many waits are going on."""
        return sum(len(task.waits) for task in self._active.values())

    @property
    def waited_for(self) -> Collection[str]:
        """The ids of the tasks that somebody waits for."""
        return self._active.keys()

    def start(self) -> None:
        """Start the scheduler, in an empty context: it is nobody's request."""
        self._scheduler.start(self._supervise(), context=Context())

    # ─── what others ask of it ───────────────────────────────────────────────────────────────────

    def join(
        self,
        task_id: str,
        *,
        kind: Kind | None,
        since: float | None,
        deadline: float | None,
        looks_once: bool = False,
        has_callback: bool = False,
    ) -> Wait:
        """A future of the final details of a task; `leave` must follow.

        A plain future and no coroutine, since 100,000 may wait.

        Args:
            task_id: which task.
            kind: its type and speed, for the plan; None if not known.
            since: when MidAPI took it, on the client's clock; None if not known.
            deadline: when to stop waiting, on the client's clock; None for never.
            looks_once: stop only after a look that began during this wait.
            has_callback: whether MidAPI was told to call us back.

        Raises:
            ClientClosed: nobody can wait any more. The future raises it when that comes first, and
                WaitTimeout when the deadline does; TaskNotFound or ResultMissing when MidAPI does
                not know the task or shows no file; AuthenticationError when it refuses the API key.
        """
        if self._is_over:
            raise ClientClosed(task_id)
        now = self._clock.time()
        task = self._active.get(task_id) or self._activate(task_id, kind, since, now)
        if has_callback and task.called_since is None:
            task.called_since = now
        wait = Wait(task, self._clock.loop)
        if deadline is not None:
            wait.deadline = max(deadline, now)
            wait.wants_look_since = now if looks_once else None
        task.add(wait)
        self._put(task)
        return wait

    def leave(self, wait: Wait) -> None:
        """A wait has ended, whatever ended it."""
        task = wait.task
        task.remove(wait)
        if not task.is_awaited and self._active.get(task.task_id) is task:
            self._retire(task)
            task.take_overdue()
            self._remember(task)  # so that the next wait keeps to the floor

    def hint(self, task_id: str) -> None:
        """Word that a task may have changed: look at it soon, if anybody waits for it."""
        self._missed_callbacks = -math.inf  # they do come
        task = self._active.get(task_id)
        if task is None:
            self._remember_hint(task_id)
            return
        task.notes.was_called_back = True
        if task.is_looking:
            task.notes.is_hinted = True
        else:
            self._plan_hinted(task)

    def _remember_hint(self, task_id: str) -> None:
        if (in_time_until := self._uncalled.pop(task_id, None)) is not None:
            self._schedule.note_callback(in_time=self._clock.time() <= in_time_until)
            return
        self._early[task_id] = None
        if len(self._early) > REMEMBERED_HINTS:
            del self._early[next(iter(self._early))]

    def _plan_hinted(self, task: Tracked) -> None:
        notes = task.notes
        floor = task.looked_at + self._policy.floor
        moment = max(self._clock.time(), floor, notes.hinted_at + HINT_INTERVAL)
        is_queued = task.due == -math.inf and not notes.is_urgent
        if notes.hints >= HINTS_PER_TASK or not (moment < task.due or is_queued):
            return
        notes.hints += 1
        if notes.hints <= QUICK_HINTS:
            notes.quick_looks = QUICK_LOOKS
        notes.hinted_at, notes.is_urgent = moment, True
        if is_queued:
            self._urgent.append(task)  # its place among those that are due is skipped then
            self._wake.set()
        else:
            self._plan_look(task, moment)

    def rest(self, seconds: float) -> None:
        """MidAPI wants nothing from us for so long."""
        until = self._clock.time() + min(seconds, LONGEST_REST)
        self._rests_until = max(self._rests_until, until)

    def stop_waiting(self) -> None:
        """Everybody who waits, and whoever comes later, gets `ClientClosed` with the task's id."""
        self._is_over = True
        self._fail_all(ClientClosed)

    async def aclose(self) -> None:
        """Stop waiting and looking."""
        self._is_over = True
        while self._active:
            for task in list(itertools.islice(self._active.values(), AT_ONCE)):
                self._fail(task, ClientClosed)
            await asyncio.sleep(0)
        await self._scheduler.finish()
        await self._looks.finish()

    # ─── entries ─────────────────────────────────────────────────────────────────────────────────

    def _activate(
        self, task_id: str, kind: Kind | None, since: float | None, now: float
    ) -> Tracked:
        task = self._idle.pop(task_id, None) or Tracked(task_id, NEW_KIND, now)
        task.called_since = None
        if not task.is_seen:
            task.kind, task.since = kind or task.kind, now if since is None else since
            task.is_of_unknown_age = since is None
        self._active[task_id] = task
        if self.waits_changed is not None:
            self.waits_changed()
        if not task.is_looking:
            first = self._first_look(task, now, is_new=since is not None)
            self._plan_look(task, max(first, task.looked_at + self._policy.floor))
        return task

    def _first_look(self, task: Tracked, now: float, *, is_new: bool) -> float:
        """Where the plan begins, or goes on for a task that was looked at; else at once."""
        if is_known := task.looked_at > -math.inf:
            planned = self._schedule.next_look(task.kind, max(task.looked_at - task.since, 0.0))
        else:
            planned = self._schedule.first_look(task.kind)
        if task.noted.is_hinted or task.task_id in self._early:
            self._early.pop(task.task_id, None)
            notes = task.notes
            notes.is_urgent, notes.was_called_back = True, True
            notes.hints, notes.quick_looks = notes.hints + 1, QUICK_LOOKS
            notes.is_hinted, notes.hinted_at = False, now
            return now
        if is_new or is_known:
            return max(task.since + planned, now)
        task.notes.quick_looks = QUICK_LOOKS  # if this one fails
        return now

    def _retire(self, task: Tracked) -> None:
        if self._active.get(task.task_id) is task:
            del self._active[task.task_id]
            if not self._active and self.waits_changed is not None:
                self.waits_changed()
        self._agenda.drop(task)
        task.due = math.inf

    def _remember(self, task: Tracked) -> None:
        self._idle[task.task_id] = task
        self._idle.move_to_end(task.task_id)
        if len(self._idle) > REMEMBERED:
            self._idle.popitem(last=False)

    def _plan_look(self, task: Tracked, moment: float) -> None:
        task.due = moment
        self._put(task)

    def _put(self, task: Tracked) -> None:
        if self._agenda.put(task):
            self._wake.set()

    # ─── the scheduler ───────────────────────────────────────────────────────────────────────────

    async def _supervise(self) -> None:
        while True:
            try:
                await self._run()
            except Exception:  # noqa: BLE001 - whatever it was, the waiters need a scheduler
                _log.exception("the scheduler failed and is started again")
                await self._clock.sleep(1.0)
                self._find_lost()

    def _find_lost(self) -> None:
        """What the scheduler had in its hands when it failed gets its place again."""
        for task in self._active.values():
            if task.due == math.inf and not task.is_looking:
                self._plan_next(task)
            self._put(task)

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
        if now - self._wakes_at > BLOCKED_LOOP * self._clock.scale:
            self._stalled = self._wakes_at, now
        self._note_sleep()
        self._judge_uncalled(now)
        for _ in range(AT_ONCE):
            if self._agenda.next_moment > now:
                break
            if (task := self._agenda.pop()) is not None:
                self._serve(task, now)
        self._say_late(now)
        more = self._begin_looks(now)
        soon = now + SLEEP_CHECK * self._clock.scale if self._active else math.inf
        self._wakes_at = min(more, soon, self._agenda.next_moment)
        return self._wakes_at

    def _serve(self, task: Tracked, now: float) -> None:
        """A deadline of a task has come, or its look is due, or both."""
        if task.deadline <= now:
            for wait in task.waits:
                if wait.deadline <= now:
                    self._run_out(wait, now)
            task.renew_deadline()
        if -math.inf < task.due <= now:
            self._line_up(task, now)
        if self._active.get(task.task_id) is task:
            self._put(task)

    def _line_up(self, task: Tracked, now: float) -> None:
        """A look is due; unless it can be left to the callback, it waits for its turn."""
        if self._is_left_to_callback(task, now):
            task.due = task.since + self._schedule.next_look(task.kind, now - task.since)
            return
        task.due = -math.inf
        (self._urgent if task.noted.is_urgent else self._ready).append(task)
        if len(self._ready) > 2 * len(self._active) + AT_ONCE:  # most of it nobody waits for now
            self._ready = deque(each for each in self._ready if each.due == -math.inf)

    def _is_left_to_callback(self, task: Tracked, now: float) -> bool:
        """Whether its callback is trusted to come, and comes before anybody gives up."""
        if task.called_since is None or task.noted.hints or not self._schedule.trusts_callbacks:
            return False
        elapsed = now - task.since
        if task.deadline <= task.since + self._schedule.next_look(task.kind, elapsed):
            return False
        seen_until = max(task.looked_at - task.since, 0.0)
        dear = self._schedule.next_look(task.kind, seen_until, is_dear=True)
        return dear > elapsed

    def _run_out(self, wait: Wait, now: float) -> None:
        """A deadline that passed while the process stood still: the result was held up, too.

        Then the wait ends with a look, if that comes within half a minute; where one look was
        promised, with that look whenever it comes.
        """
        task, since = wait.task, wait.wants_look_since
        stood_still = self._stalled[0] <= wait.deadline <= self._stalled[1]
        if since is None and stood_still:
            wait.deadline = now + FORGIVEN
        elif since is not None and (task.begun_at < since or task.is_looking):
            wait.deadline = math.inf
        else:
            wait.deadline = math.inf
            if not wait.done():
                wait.set_exception(WaitTimeout(task.task_id))
            return
        task.notes.overdue.append(wait)
        self._look_soon(task)

    def _look_soon(self, task: Tracked) -> None:
        """A wait is over but for its look: what is planned for later is made now."""
        moment = max(self._clock.time(), task.looked_at + self._policy.floor)
        if not task.is_looking and moment < task.due:
            self._plan_look(task, moment)

    def _begin_looks(self, now: float) -> float:
        """Begin the looks whose turn it is; return when the next may begin."""
        for _ in range(AT_ONCE):
            if not (queue := self._urgent or self._ready):
                return math.inf
            task = queue[0]
            if task.due != -math.inf:
                queue.popleft()  # nobody waits for it any more, or a hint came before its turn
                continue
            if self._looking >= LOOKS_AT_ONCE:
                return math.inf  # the end of a look wakes the scheduler
            turn = max(self._rests_until, self._next_turn())
            if turn > now:
                return turn
            queue.popleft()
            self._begun.append(now)
            task.due, task.begun_at = math.inf, now
            if task.noted.is_urgent:
                task.notes.is_urgent = False
            self._looking += 1
            self._looks.start(self._look_at(task), context=Context())
        return now

    def _next_turn(self) -> float:
        """When one more look keeps to `looks_per_second`, in whatever second one counts."""
        pace = self._policy.looks_per_second
        count = max(1, int(pace))
        while len(self._begun) > count:
            self._begun.popleft()
        return self._begun[0] + count / pace if len(self._begun) == count else -math.inf

    def _say_late(self, now: float) -> None:
        """More looks are due than can be made: say so, once an hour."""
        due = len(self._urgent) + len(self._ready)
        pace = self._policy.looks_per_second
        if due < LATE_LOOK * pace or now < self._says_late_from:
            return
        self._says_late_from = now + SAID_AGAIN
        _log.warning(
            "%d looks are due and %.3g a second are allowed (PollPolicy.looks_per_second): results "
            "may be seen %.0f s late; looked at are tasks with a callback first, then all others "
            "in the order in which they came due",
            due,
            pace,
            due / pace,
        )

    def _note_sleep(self) -> None:
        """A machine that slept: its tasks are older than the loop's clock tells."""
        total = self._clock.slept()
        slept, self._slept = total - self._slept, total
        if slept < BLOCKED_LOOP * self._clock.scale:
            return
        _log.info("this machine slept for %.0f s; every task is that much older", slept)
        for task in self._active.values():
            task.since -= slept
            if math.isfinite(task.due):
                self._plan_look(task, max(self._clock.time(), task.due - slept))

    # ─── one look ────────────────────────────────────────────────────────────────────────────────

    async def _look_at(self, task: Tracked) -> None:
        try:
            found = await self._look(task.task_id)
        except MidAPIError as error:
            self._judge_fault(task, error)
        else:
            self._faults_in_a_row = self._refusals_in_a_row = 0
            task.clear_faults()
            self._act_on(task, self._judge.verdict(task, found))
            if task.noted.was_called_back and not task.noted.is_hinted:
                task.notes.was_called_back = False  # it was too early, and says nothing of the end
            if task.noted.quick_looks and not task.noted.hints:
                task.notes.quick_looks = 0  # they were for a look that fails
        finally:
            self._wake.set()
            task.looked_at = max(self._clock.time(), task.begun_at)
            self._looking -= 1
            for wait in task.take_overdue():
                if not wait.done():
                    wait.set_exception(WaitTimeout(task.task_id))
            if self._active.get(task.task_id) is task:
                self._plan_next(task)

    def _judge_fault(self, task: Tracked, error: MidAPIError) -> None:
        """A passing fault: looks become rarer, for the task and for the account."""
        task.notes.faults += 1
        if not isinstance(error, ProtocolError):  # a record that is no record is its task's alone
            self._rest_after(error)
        refused = isinstance(error, AuthenticationError) and error.own_envelope
        self._refusals_in_a_row = self._refusals_in_a_row + 1 if refused else 0
        _log.debug("a look at task %s failed: %s", task.task_id, error)
        if isinstance(error, AuthenticationError) and self._refusals_in_a_row >= 2:
            said = (error.code, error.message, error.http_status)
            self._fail_all(lambda _: AuthenticationError(*said))
            self._refusals_in_a_row = 0

    def _rest_after(self, error: MidAPIError) -> None:
        """One fault may be chance; from the second one in a row on the whole account rests."""
        self._faults_in_a_row += 1
        pause = self._policy.floor * (2 ** min(self._faults_in_a_row - 1, 10) - 1)
        if isinstance(error, RateLimitError):
            pause = max(pause, self._policy.floor, error.retry_after or 0.0)
        if pause:
            self.rest(min(pause, LONGEST_REST) * (1 + self._clock.chance() / 10))

    def _plan_next(self, task: Tracked) -> None:
        now = self._clock.time()
        elapsed = now - task.since
        gap = self._schedule.next_look(task.kind, elapsed) - elapsed
        if faults := task.noted.faults:
            gap = min(gap * 2 ** min(faults, 10), max(gap, self._policy.ceiling))
        if left := task.noted.quick_looks:
            task.notes.quick_looks -= 1
            gap = min(gap, self._policy.floor * 2 ** (QUICK_LOOKS - left))
        self._plan_look(task, now + gap * (1 + self._clock.chance() / 20))
        if task.noted.is_hinted:
            task.notes.is_hinted = False
            self._plan_hinted(task)

    # ─── outcomes ────────────────────────────────────────────────────────────────────────────────

    def _act_on(self, task: Tracked, verdict: TaskDetails | Failure | None) -> None:
        if isinstance(verdict, TaskDetails):
            self._finish(task, verdict)
        elif verdict is not None:
            self._fail(task, verdict)

    def _finish(self, task: Tracked, details: TaskDetails) -> None:
        if details.duration is not None:
            seconds = details.duration.total_seconds()
            self._note_callback(task, seconds)
            is_good = details.status is TaskStatus.SUCCEEDED
            # No task takes longer than we have known it; with a clock that is off, a little.
            is_good &= seconds <= self._clock.time() - task.since + CLOCK_SKEW
            if is_good and self._schedule.learn(task.kind, seconds) and self._keep:
                self._keep(task.kind, seconds)
        self._retire(task)
        for wait in task.take_waits():
            if not wait.done():
                wait.set_result(details)

    def _note_callback(self, task: Tracked, seconds: float) -> None:
        """Whether its callback was in time; what finished before anybody waited tells nothing."""
        if task.noted.was_called_back:
            self._schedule.note_callback(in_time=True)
        elif task.called_since is not None and task.since + seconds >= task.called_since:
            self._uncalled[task.task_id] = self._clock.time() + LATE_CALLBACK

    def _judge_uncalled(self, now: float) -> None:
        while self._uncalled:
            task_id, in_time_until = next(iter(self._uncalled.items()))
            if now <= in_time_until:
                return
            del self._uncalled[task_id]
            self._schedule.note_callback(in_time=False)
            self._missed_callbacks += 1
            if self._missed_callbacks == MISSED:
                _log.warning(
                    "%d tasks finished and no callback came for any: does MidAPI reach the "
                    "receiver? 'midapi doctor' tells; until then results are found by looking",
                    MISSED,
                )

    def _fail(self, task: Tracked, error: Failure) -> None:
        """Everybody who waits for a task gets an error of their own."""
        self._retire(task)
        for wait in task.take_waits():
            if not wait.done():
                wait.set_exception(error(task.task_id))

    def _fail_all(self, error: Failure) -> None:
        for task in list(self._active.values()):
            self._fail(task, error)
