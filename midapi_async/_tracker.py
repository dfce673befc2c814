"""Tracking: one scheduler for all waiters, one look per task however many wait.

A waiter is a plain future in its task's entry; looks and deadlines stand in one heap each. What
moves a look forward is a hint (a callback); the truth is always record-info. A look that fails is
not repeated, it is scheduled again, and never ends a wait before its deadline.

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
from typing import TYPE_CHECKING, Generic, TypeVar

from ._clock import BLOCKED_LOOP, Clock
from ._owned import OwnedTasks
from ._verdict import Failure, Judge, Tracked
from .errors import AuthenticationError, ClientClosed, MidAPIError, RateLimitError, WaitTimeout
from .tasks import TaskDetails, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from ._codec import Found
    from ._schedule import Kind, Schedule
    from .config import PollPolicy

_log = logging.getLogger("midapi_async")

LOOKS_AT_ONCE = 16
HINT_INTERVAL, HINTS_PER_TASK = 5.0, 12  # how often a hint may move a task's look forward
LATE_CALLBACK = 5.0  # seconds after a look has found the result that its callback is still in time
REMEMBERED = 1_000  # tasks that nobody waits for just now
REMEMBERED_HINTS = 20_000
LONGEST_REST = 120.0  # seconds that MidAPI's 429 can stop all looks for
LATE_LOOK, SAID_AGAIN = 10.0, 3600.0  # seconds that looks may come late before it is said
SLEEP_CHECK = 10.0  # loop seconds between two looks at whether the machine has slept
_DEAD_SHARE = 0.5  # of an agenda before it is made anew

NEW_KIND: Kind = ("mj_txt2img", "fast")  # of a task that nothing is known about

Waiter = asyncio.Future[TaskDetails]
DueLook = tuple[float, int, Tracked]
# The last one: a look that began since then has to end first.
Deadline = tuple[float, int, Tracked, Waiter, float | None]
Item = TypeVar("Item", DueLook, Deadline)


class _Agenda(Generic[Item]):
    """A heap of what is due when; what has died in it is thrown out when it is half of all."""

    def __init__(self, is_alive: Callable[[Item], bool]) -> None:
        self._heap: list[Item] = []
        self._is_alive: Callable[[Item], bool] = is_alive
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_moment(self) -> float:
        """When something is due, at the earliest."""
        return self._heap[0][0] if self._heap else math.inf

    def push(self, item: Item) -> bool:
        """Whether it is the first one now."""
        heapq.heappush(self._heap, item)
        return self._heap[0] is item

    def pop(self) -> Item | None:
        """The first one; None if it has died."""
        item = heapq.heappop(self._heap)
        if self._is_alive(item):
            return item
        self._dead = max(0, self._dead - 1)
        return None

    def note_dead(self) -> None:
        """One more will never come due."""
        self._dead += 1
        if self._dead > max(1000, _DEAD_SHARE * len(self._heap)):
            self._heap = [item for item in self._heap if self._is_alive(item)]
            heapq.heapify(self._heap)
            self._dead = 0


def _is_planned(item: DueLook) -> bool:
    return item[2].due == item[0]


def _is_awaited(item: Deadline) -> bool:
    return not item[3].done()


class Tracker:
    """Wakes every waiter of a task when its record is final.

    Args:
        look: one GET of a task's record; None while MidAPI does not know the task.
        schedule: when to look.
        policy: how fast to look.
        clock: the client's clock.
        learn: told the kind of each task that succeeded, and how many seconds it took.
    """

    def __init__(
        self,
        *,
        look: Callable[[str], Awaitable[Found | None]],
        schedule: Schedule,
        policy: PollPolicy,
        clock: Clock,
        learn: Callable[[Kind, float], object] | None = None,
    ) -> None:
        self._look = look
        self._schedule = schedule
        self._policy = policy
        self._clock = clock
        self._learn = learn or schedule.learn
        self._judge = Judge(clock)
        self._active: dict[str, Tracked] = {}
        self._idle: OrderedDict[str, Tracked] = OrderedDict()
        self._due = _Agenda[DueLook](_is_planned)
        self._deadlines = _Agenda[Deadline](_is_awaited)
        self._numbers = itertools.count()
        self._early: dict[str, None] = {}  # hints for tasks that nobody ever waited for
        self._uncalled: dict[str, float] = {}  # finished without a callback; until when it is late
        self._urgent: deque[Tracked] = deque()
        self._ready: deque[DueLook] = deque()
        self._looking = 0
        self._next_turn = -math.inf
        self._rests_until = -math.inf
        self._says_late_from = -math.inf
        self._faults_in_a_row = 0
        self._refusals_in_a_row = 0
        self._slept = clock.slept()
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
        return sum(len(task.waiters) for task in self._active.values())

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
    ) -> tuple[Tracked, Waiter]:
        """A future of the final details of a task, succeeded or failed; `leave` must follow.

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
        task.has_callback |= has_callback
        waiter: Waiter = self._clock.loop.create_future()
        task.waiters.append(waiter)
        if deadline is not None:
            wants_look_since = now if looks_once else None
            self._push_deadline(max(deadline, now), task, waiter, wants_look_since)
        return task, waiter

    def leave(self, task: Tracked, waiter: Waiter, *, has_deadline: bool) -> None:
        """A wait has ended, whatever ended it."""
        if waiter in task.waiters:
            task.waiters.remove(waiter)
        if not task.waiters and self._active.get(task.task_id) is task:
            self._retire(task)
            task.take_overdue()
            self._remember(task)  # so that the next wait keeps to the floor
        if has_deadline:
            self._deadlines.note_dead()

    def hint(self, task_id: str) -> None:
        """Word that a task may have changed: look at it soon, if anybody waits for it."""
        task = self._active.get(task_id)
        if task is None:
            self._remember_hint(task_id)
            return
        task.was_called_back = True
        if task.is_looking:
            task.is_hinted = True
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
        is_queued = task.due == -math.inf and not task.is_urgent
        if notes.hints >= HINTS_PER_TASK or not (moment < task.due or is_queued):
            return
        notes.hints += 1
        notes.hinted_at, task.is_urgent = moment, True
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
        self.stop_waiting()
        await self._scheduler.finish()
        await self._looks.finish()

    # ─── entries ─────────────────────────────────────────────────────────────────────────────────

    def _activate(
        self, task_id: str, kind: Kind | None, since: float | None, now: float
    ) -> Tracked:
        number = next(self._numbers)
        task = self._idle.pop(task_id, None) or Tracked(task_id, number, NEW_KIND, now, now)
        task.awaited_since = now
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
        """At once where a look may already find the result, else where the plan begins."""
        planned = task.since + self._schedule.first_look(task.kind)
        if task.is_hinted or task.task_id in self._early:
            self._early.pop(task.task_id, None)
            task.is_hinted, task.is_urgent, task.was_called_back = False, True, True
            task.notes.hinted_at = now
            return now
        return max(planned, now) if is_new else now

    def _retire(self, task: Tracked) -> None:
        if self._active.get(task.task_id) is task:
            del self._active[task.task_id]
            if not self._active and self.waits_changed is not None:
                self.waits_changed()
        if math.isfinite(task.due):
            self._due.note_dead()
        task.due = math.inf

    def _remember(self, task: Tracked) -> None:
        self._idle[task.task_id] = task
        self._idle.move_to_end(task.task_id)
        if len(self._idle) > REMEMBERED:
            self._idle.popitem(last=False)

    def _plan_look(self, task: Tracked, moment: float) -> None:
        if math.isfinite(task.due):
            self._due.note_dead()
        task.due = moment
        if self._due.push((moment, task.number, task)):
            self._wake.set()

    def _push_deadline(
        self, moment: float, task: Tracked, waiter: Waiter, wants_look_since: float | None
    ) -> None:
        item = (moment, next(self._numbers), task, waiter, wants_look_since)
        if self._deadlines.push(item):
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
        self._note_sleep()
        self._judge_uncalled(now)
        while self._deadlines.next_moment <= now:
            if (deadline := self._deadlines.pop()) is not None:
                self._run_out(deadline, now)
        while self._due.next_moment <= now:
            if (item := self._due.pop()) is not None:
                self._line_up(item, now)
        self._say_late(now)
        more = self._begin_looks(now)
        soon = now + SLEEP_CHECK * self._clock.scale if self._active else math.inf
        return min(more, soon, self._deadlines.next_moment, self._due.next_moment)

    def _line_up(self, item: DueLook, now: float) -> None:
        """A look is due; unless it can be left to the callback, it waits for its turn."""
        _, _, task = item
        if self._is_left_to_callback(task, now):
            task.due = math.inf
            self._plan_look(
                task, task.since + self._schedule.next_look(task.kind, now - task.since)
            )
            return
        task.due = -math.inf
        if task.is_urgent:
            self._urgent.append(task)
        else:
            self._ready.append(item)

    def _is_left_to_callback(self, task: Tracked, now: float) -> bool:
        if not (task.has_callback and self._schedule.trusts_callbacks) or task.is_urgent:
            return False
        seen_until = max(task.looked_at - task.since, 0.0)
        dear = self._schedule.next_look(task.kind, seen_until, is_dear=True)
        return dear > now - task.since

    def _run_out(self, deadline: Deadline, now: float) -> None:
        """A deadline that comes late was held up with the whole process, and so was the result.

        Then, or where one look was promised, the wait ends with a look and not before it.
        """
        moment, _, task, waiter, wants_look_since = deadline
        held_up = BLOCKED_LOOP * self._clock.scale
        if now - moment > held_up and wants_look_since is None:
            self._push_deadline(now + held_up, task, waiter, now)
            self._look_soon(task)
        elif wants_look_since is not None and (task.begun_at < wants_look_since or task.is_looking):
            task.notes.overdue.append(waiter)
            self._look_soon(task)
        else:
            waiter.set_exception(WaitTimeout(task.task_id))

    def _look_soon(self, task: Tracked) -> None:
        """A wait is over but for its look: what is planned for later is made now."""
        moment = max(self._clock.time(), task.looked_at + self._policy.floor)
        if not task.is_looking and moment < task.due:
            self._plan_look(task, moment)

    def _begin_looks(self, now: float) -> float:
        """Begin the looks whose turn it is; return when the next may begin."""
        pace = 1 / self._policy.looks_per_second
        while self._urgent or self._ready:
            task = self._urgent[0] if self._urgent else self._ready[0][2]
            if task.due != -math.inf:
                self._take_first()  # nobody waits for it any more, or a hint came before its turn
                continue
            if self._looking >= LOOKS_AT_ONCE:
                return math.inf  # the end of a look wakes the scheduler
            turn = max(self._rests_until, self._next_turn)
            if turn > now:
                return turn
            self._take_first()
            # Up to a second's worth of looks may go at once.
            self._next_turn = max(self._next_turn + pace, now - 1 + pace)
            task.due, task.is_looking, task.is_urgent = math.inf, True, False
            task.begun_at = now
            self._looking += 1
            self._looks.start(self._look_at(task), context=Context())
        return math.inf

    def _take_first(self) -> None:
        (self._urgent or self._ready).popleft()

    def _say_late(self, now: float) -> None:
        """More looks are due than can be made: say so, once an hour."""
        due = len(self._urgent) + len(self._ready)
        pace = self._policy.looks_per_second
        if due < LATE_LOOK * pace or now < self._says_late_from:
            return
        self._says_late_from = now + SAID_AGAIN
        _log.warning(
            "%d looks are due and %g a second are allowed (PollPolicy.looks_per_second): results "
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
        finally:
            self._wake.set()
            task.is_looking = False
            task.looked_at = self._clock.time()
            self._looking -= 1
            for waiter in task.take_overdue():
                if not waiter.done():
                    waiter.set_exception(WaitTimeout(task.task_id))
            if self._active.get(task.task_id) is task:
                self._plan_next(task)

    def _judge_fault(self, task: Tracked, error: MidAPIError) -> None:
        """A passing fault: looks become rarer, for the task and for the account."""
        task.notes.faults += 1
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

    def _plan_next(self, task: Tracked) -> None:
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

    def _act_on(self, task: Tracked, verdict: TaskDetails | Failure | None) -> None:
        if isinstance(verdict, TaskDetails):
            self._finish(task, verdict)
        elif verdict is not None:
            self._fail(task, verdict)

    def _finish(self, task: Tracked, details: TaskDetails) -> None:
        if details.duration is not None:
            seconds = details.duration.total_seconds()
            self._note_callback(task, seconds)
            if details.status is TaskStatus.SUCCEEDED:
                self._learn(task.kind, seconds)
        self._retire(task)
        waiters, task.waiters = task.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(details)

    def _note_callback(self, task: Tracked, seconds: float) -> None:
        """Whether its callback was in time; what finished before anybody waited tells nothing."""
        if task.was_called_back:
            self._schedule.note_callback(in_time=True)
        elif task.has_callback and task.since + seconds >= task.awaited_since:
            self._uncalled[task.task_id] = self._clock.time() + LATE_CALLBACK

    def _judge_uncalled(self, now: float) -> None:
        while self._uncalled:
            task_id, in_time_until = next(iter(self._uncalled.items()))
            if now <= in_time_until:
                return
            del self._uncalled[task_id]
            self._schedule.note_callback(in_time=False)

    def _fail(self, task: Tracked, error: Failure) -> None:
        """Everybody who waits for a task gets an error of their own."""
        self._retire(task)
        waiters, task.waiters = task.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error(task.task_id))

    def _fail_all(self, error: Failure) -> None:
        for task in list(self._active.values()):
            self._fail(task, error)
