"""The tracker: one scheduler for all waits; each look serves every wait for its task.

A wait is a future that belongs to a task. A task has one valid entry in a heap: the time of its
next look or of its first deadline, whichever is earlier. When a look is due, the task goes to the
`Looker`, which limits the rate. A hint (a callback) only moves a look forward; the result always
comes from the record. A look that fails is planned again and ends no wait before its deadline.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from contextvars import Context
from typing import Any

from .._runtime.background import OwnedTasks
from .._runtime.clock import BLOCKED_LOOP, Clock
from .._wire.protocol import CLOCK_SKEW, AnotherTask, failure
from .._wire.records import KNOWN_FLAGS, Record
from .._wire.tokens import has_foreign_token, has_token
from ..errors import (
    AuthenticationError,
    ClientClosed,
    MidAPIError,
    TransportError,
    WaitTimeout,
    about,
)
from ..events import Event, Failed, Finished, Looked
from ..tasks import TaskDetails, TaskStatus
from .failures import FailureLog
from .looker import Looker
from .schedule import Kind, Schedule
from .verdict import Doubtful, Failure, age_of, kind_in, read_answer, read_error
from .waits import Phase, TrackedTask, Wait

_log = logging.getLogger("midapi_async.tracking")

# A hint may move a task's look forward every 5 s, and 12 times in all.
HINT_INTERVAL, HINTS_PER_TASK = 5.0, 12
# If the look after a hint does not show the end, four more follow after 1, 2, 4 and 8 s (times the
# floor), but only for the first two hints of a task. The same if the first look at a task fails
# whose age is not known.
RETRIES, HINTS_WITH_RETRIES = 4, 2
# An answer that may be temporary (MidAPI does not know the task, shows no files, answers with an
# error or unreadable data) ends the waits if it stays the same for this many seconds and looks.
GRACE, GRACE_LOOKS = 120.0, 5
LATE_CALLBACK = 5.0  # seconds after a result was found in which its callback still is in time
MISSED_CALLBACKS = 3  # how many callbacks must be missing, with none that came, before a warning
# Seconds more for a wait whose deadline passed while the process stood still, or while its looks
# failed.
FORGIVEN = 30.0
# MidAPI has refused the API key so often, over so many seconds: all waits end.
REFUSALS, REFUSED_FOR = 5, 120.0
CREDIBLE = 30.0  # seconds by which the age of a task may differ from what MidAPI shows
SLEEP_CHECK = 10.0  # loop seconds between two checks whether the machine has slept
RECENT_TASKS = 5_000  # how many tasks are remembered that no wait is going on for
AT_ONCE = 500  # how many tasks are served in one turn of the event loop


class Tracker:
    """Ends every wait for a task when its record is final.

    Args:
        look: one GET of a task's record; None while MidAPI does not know the task.
        schedule: when to look, by the client's policy.
        learn: called with the kind of each task that has succeeded, and the seconds that it took.
        clock: the client's clock.
        report: called with each event.

    Attributes:
        waits_changed: called when the first wait for a task begins, and when no task is waited for
            any more.
    """

    def __init__(
        self,
        *,
        look: Callable[[str], Awaitable[Record | None]],
        schedule: Schedule,
        learn: Callable[[Kind, float], object],
        clock: Clock,
        report: Callable[[Event], object],
    ) -> None:
        self.waits_changed: Callable[[], None] | None = None
        self._look = look
        self._schedule = schedule
        self._policy = schedule.policy
        self._clock = clock
        self._learn = learn
        self._report = report
        self._tasks: dict[str, TrackedTask] = {}  # the tasks that are waited for
        # Tasks that were waited for, so that their next wait continues their plan; and tasks that
        # got a hint before they were waited for.
        self._recent: OrderedDict[str, TrackedTask] = OrderedDict()
        self._looker = Looker(schedule.policy, clock)
        self._failures = FailureLog(clock)
        # (time, tie-breaker, task); an entry is valid if its time is the task's `wakes_at`.
        self._heap: list[tuple[float, int, TrackedTask]] = []
        self._numbers = itertools.count()
        # Tasks that finished before their callback, and until when it is still in time.
        self._late_callbacks: dict[str, float] = {}
        self._missed_callbacks = 0
        self._got_callback = False
        # Looks for which MidAPI refused the API key, since the last one that it answered.
        self._refusals = 0
        self._refused_since = self._refused_at = -math.inf
        self._misdirected_at = -math.inf  # when the last look got the record of another task
        self._unknown_flags: set[int | None] = set()  # each is logged once
        self._slept = clock.slept()
        self._wakes_at = math.inf  # when the scheduler's timer wakes it
        self._stall = (math.inf, math.inf)  # when the process last stood still: from, to
        self._wake = asyncio.Event()
        self._is_over = False
        self._background = OwnedTasks()  # the scheduler, and the looks under way

    def __repr__(self) -> str:
        return f"<Tracker {self.waiting} waiting for {len(self._tasks)} tasks>"

    @property
    def waiting(self) -> int:
        """How many waits are going on."""
        return sum(len(task.waits) for task in self._tasks.values())

    @property
    def oldest_age(self) -> float | None:
        """Seconds since the acceptance of the oldest task that is waited for; None without one."""
        oldest = min((task.accepted_at for task in self._tasks.values()), default=None)
        return None if oldest is None else max(0.0, self._clock.time() - oldest)

    @property
    def waited_for(self) -> Collection[str]:
        """The ids of the tasks that are waited for, as a live view."""
        return self._tasks.keys()

    # ─── waits and hints ─────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start the scheduler, in an empty context, since it serves all callers."""
        self._background.start(self._run(), context=Context())

    def join(
        self,
        task_id: str,
        *,
        kind: Kind | None,
        since: float | None,
        deadline: float | None,
        patience: float | None = None,
        token_hash: str | None = None,
        key: str | None = None,
        intent_id: str | None = None,
    ) -> Wait:
        """A future of the final details of a task; `leave` must follow.

        Args:
            task_id: which task.
            kind: its type and speed, for the plan; None if not known.
            since: when MidAPI accepted it, on the client's clock; None if not known. It may be
                wrong, and is corrected by the task's record.
            deadline: when to stop waiting, on the client's clock; None for never.
            patience: in place of a deadline, seconds after the acceptance; the wait then times out
                only after a look that began during it was answered, or has failed for 30 s.
            token_hash: if MidAPI has a callback URL of ours for it, the hash of the token in it.
            key: the user's own name for its request, for events; None if there is none.
            intent_id: the id of its submission, for events; None if it is not known.

        Returns:
            A future; `TaskHandle.wait` lists the errors that it can get.

        Raises:
            ClientClosed: the client is closing.
        """
        if self._is_over:
            raise ClientClosed(task_id)
        now = self._clock.time()
        task = self._tasks.get(task_id) or self._begin_tracking(task_id, kind, since, now)
        if token_hash is not None and task.callback_expected_since is None:
            task.callback_expected_since = now
            task.token_hash = token_hash
        task.key, task.intent_id = key or task.key, intent_id or task.intent_id
        wait = Wait(task)
        wait.began, wait.patience = now, patience
        if patience is not None:
            deadline = patience + (now if since is None else task.accepted_at)
        if deadline is not None:
            wait.deadline = max(deadline, now)
        task.waits[wait] = None
        task.deadline = min(task.deadline, wait.deadline)
        self._wake_for(task)
        return wait

    def _begin_tracking(
        self, task_id: str, kind: Kind | None, since: float | None, now: float
    ) -> TrackedTask:
        task = self._recent.pop(task_id, None) or TrackedTask(task_id, now)
        task.callback_expected_since = task.token_hash = None  # `join` knows them
        if not task.is_seen:
            task.accepted_at, task.is_age_unknown = now if since is None else since, since is None
            if kind is not None:
                task.kind, task.is_kind_unknown = kind, False
        if task.phase is not Phase.LOOKING:
            if since is None and task.look_ended == -math.inf:
                # It may have finished long ago: look at once, and soon again if that look fails.
                due, task.retries_left = now, RETRIES
            else:
                # Begin the plan, or continue that of an earlier wait.
                looked = max(task.look_ended - task.accepted_at, 0.0)
                due = task.accepted_at + self._schedule.next_look(task.kind, looked)
            self._plan(task, max(due, now, task.look_ended + self._policy.floor))
        self._tasks[task_id] = task
        if self.waits_changed is not None:
            self.waits_changed()
        return task

    def leave(self, wait: Wait) -> None:
        """Remove a wait that has ended for any reason."""
        task = wait.task
        if wait in task.waits:  # else `_end` has removed all waits for the task
            del task.waits[wait]
            if not task.waits:
                self._stop_tracking(task)
                self._remember(task)

    def _remember(self, task: TrackedTask) -> None:
        self._recent[task.task_id] = task
        if len(self._recent) > RECENT_TASKS:
            self._recent.popitem(last=False)

    def _stop_tracking(self, task: TrackedTask) -> None:
        del self._tasks[task.task_id]
        if not self._tasks and self.waits_changed is not None:
            self.waits_changed()
        self._looker.remove(task)
        task.deadline = task.wakes_at = math.inf
        if len(self._heap) > 2 * len(self._tasks) + 1000:  # most entries are not valid any more
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].wakes_at]
            heapq.heapify(self._heap)

    def hint(self, task_id: str) -> None:
        """The task may have changed: look at it soon, or when it is waited for next."""
        self._got_callback = True
        now = self._clock.time()
        if (in_time_until := self._late_callbacks.pop(task_id, None)) is not None:
            self._schedule.note_callback(in_time=now <= in_time_until)
        task = self._tasks.get(task_id) or self._recent.get(task_id)
        if task is None:
            task = TrackedTask(task_id, now)
            self._remember(task)
        task.is_called_back = True
        if task.phase in {Phase.PLANNED, Phase.QUEUED}:
            self._move_forward(task)
        else:
            task.is_hinted = True  # for the next look: the one under way may have an older answer

    def _move_forward(self, task: TrackedTask) -> None:
        """Move the next look at a hinted task forward, within the limits for hints."""
        if (task.is_hinted and task.phase is Phase.QUEUED) or task.hints >= HINTS_PER_TASK:
            return
        floor = task.look_ended + self._policy.floor
        moment = max(self._clock.time(), floor, task.hinted_at + HINT_INTERVAL)
        if task.phase is Phase.PLANNED and moment > task.due:
            return
        task.hints += 1
        task.is_hinted, task.hinted_at = True, moment
        if task.hints <= HINTS_WITH_RETRIES:
            task.retries_left = RETRIES
        if task.phase is Phase.QUEUED:
            self._looker.add(task)
            self._wake.set()
        else:
            task.due = moment
            self._wake_for(task)

    def rest(self, seconds: float) -> None:
        """Begin no look for some seconds, because MidAPI has asked for a pause."""
        self._looker.rest(seconds)

    # ─── the end ─────────────────────────────────────────────────────────────────────────────────

    def stop_waiting(self) -> None:
        """End every wait, and each later one, with `ClientClosed` and its task's id."""
        self._is_over = True
        self._background.start(self._fail_all(ClientClosed), context=Context())

    async def aclose(self) -> None:
        """Stop waiting and looking."""
        self._is_over = True
        await self._fail_all(ClientClosed)
        await self._background.finish()

    async def _fail_all(self, error: Failure) -> None:
        """End all current waits, a limited number in each turn of the event loop."""
        for number, task in enumerate(list(self._tasks.values()), 1):
            self._end(task, error)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _end(self, task: TrackedTask, outcome: TaskDetails | Failure) -> None:
        """End all waits for a task, with its details or with an error."""
        if not task.waits:
            return
        self._stop_tracking(task)
        for wait in task.waits:
            if wait.done():
                continue  # it was cancelled or has timed out; `leave` will follow
            if isinstance(outcome, TaskDetails):
                wait.set_result(outcome)
            else:
                wait.set_exception(outcome(task.task_id))
        task.waits.clear()
        # Last, because a logging filter of the user's may raise.
        self._report_end(task, outcome)

    def _report_end(self, task: TrackedTask, outcome: TaskDetails | Failure) -> None:
        """Report that a task has ended, or that its waits end with an error that is about it."""
        if isinstance(outcome, TaskDetails) and outcome.status is TaskStatus.SUCCEEDED:
            self._report(Finished(**_names(task), details=outcome))
            return
        error = failure(outcome) if isinstance(outcome, TaskDetails) else outcome(task.task_id)
        about(error, **_names(task))
        # A record with another submission's token is reported where the intent becomes unknown.
        if not isinstance(error, ClientClosed | AnotherTask):
            self._report(Failed(**_names(task), error=error))

    # ─── the scheduler ───────────────────────────────────────────────────────────────────────────

    def _plan(self, task: TrackedTask, moment: float) -> None:
        task.phase, task.due = Phase.PLANNED, moment
        if task.is_hinted:  # a hint came while no look was planned
            task.is_hinted = False
            self._move_forward(task)
        self._wake_for(task)

    def _wake_for(self, task: TrackedTask) -> None:
        """Make the scheduler wake for a task's next look or first deadline."""
        moment = min(task.due if task.phase is Phase.PLANNED else math.inf, task.deadline)
        if moment >= task.wakes_at:
            return  # its entry in the heap comes early enough
        task.wakes_at = moment
        heapq.heappush(self._heap, (moment, next(self._numbers), task))
        if moment < self._wakes_at:
            self._wake.set()

    async def _run(self) -> None:
        """Serve what is due, then sleep until more is due; go on after a bug, for the waits."""
        while True:
            timer = None
            try:
                self._wake.clear()
                self._wakes_at = self._do_what_is_due()
                if self._wakes_at < math.inf:
                    timer = self._clock.call_at(self._wakes_at, self._wake.set)
                await self._wake.wait()
            except Exception:  # noqa: BLE001 - whatever the bug is, the waits need a scheduler
                _log.exception("a bug: the scheduler failed; it is started again")
                await asyncio.sleep(1.0 / self._clock.scale)
                for task in self._tasks.values():
                    if task.phase is Phase.IDLE:  # planning its look has failed
                        self._plan_next(task)
                    self._wake_for(task)  # a task that was being served has no entry in the heap
            finally:
                if timer is not None:
                    timer.cancel()

    def _do_what_is_due(self) -> float:
        """Serve the tasks that are due and begin looks; return when more is due."""
        now = self._clock.time()
        if now - self._wakes_at > BLOCKED_LOOP * self._clock.scale:
            self._stall = self._wakes_at, now
        self._account_for_sleep(now)
        self._count_missed_callbacks(now)
        for _ in range(AT_ONCE):
            if not self._heap or self._heap[0][0] > now:
                break
            moment, _, due = heapq.heappop(self._heap)
            if moment == due.wakes_at:
                due.wakes_at = math.inf
                self._serve(due, now)
        self._looker.warn_if_behind(now)
        while (task := self._looker.begin(now)) is not None:
            self._background.start(self._look_at(task), context=Context())
        next_entry = self._heap[0][0] if self._heap else math.inf
        next_check = now + SLEEP_CHECK * self._clock.scale if self._tasks else math.inf
        return min(self._looker.next_moment, next_entry, next_check)

    def _account_for_sleep(self, now: float) -> None:
        """Correct the ages of tasks after the machine slept and the loop's clock stood still."""
        total = self._clock.slept()
        slept, self._slept = total - self._slept, total
        if slept < BLOCKED_LOOP * self._clock.scale:
            return
        _log.info("this machine slept for %.0f s; every task is that much older", slept)
        for task in self._tasks.values():
            task.accepted_at -= slept
            if task.phase is Phase.PLANNED:
                task.due = max(now, task.due - slept)
                self._wake_for(task)

    def _serve(self, task: TrackedTask, now: float) -> None:
        """Serve a task whose look is due, or for which a deadline has passed, or both."""
        if task.deadline <= now:
            for wait in task.waits:
                if wait.deadline <= now:
                    self._end_or_extend(wait, now)
            task.deadline = min(wait.deadline for wait in task.waits)
        if task.phase is Phase.PLANNED and task.due <= now:
            if self._leaves_look_to_callback(task, now):
                elapsed = now - task.accepted_at
                task.due = task.accepted_at + self._schedule.next_look(task.kind, elapsed)
            else:
                self._looker.add(task)
        self._wake_for(task)

    def _end_or_extend(self, wait: Wait, now: float) -> None:
        """End a wait whose deadline has passed, or extend it until a look has ended."""
        task = wait.task
        needs_look = wait.patience is not None
        is_first = needs_look and not wait.ends_with_look
        if is_first and (task.look_began < wait.began or task.phase is Phase.LOOKING):
            # It still has no look of its own: it ends with that look, whenever that is.
            wait.deadline = math.inf
        elif is_first and task.answered < wait.began:
            # All its looks have failed: it ends with one that is answered, or after half a minute.
            wait.deadline, task.retries_left, task.is_urgent = now + FORGIVEN, RETRIES, True
        elif not needs_look and self._stall[0] <= wait.deadline <= self._stall[1]:
            # The process stood still when it passed, so the result may be late, too: it ends with
            # the next look, or after half a minute.
            wait.deadline = now + FORGIVEN
        else:
            wait.deadline = math.inf
            if not wait.done():
                wait.set_exception(_timed_out(task))
            return
        wait.ends_with_look = True
        if task.phase is Phase.PLANNED:
            task.due = min(task.due, max(now, task.look_ended + self._policy.floor))

    def _leaves_look_to_callback(self, task: TrackedTask, now: float) -> bool:
        """Whether to skip a look that is due, because the callback will most likely come first.

        That is so if callbacks are trusted and this one has not come; no wait ends before the next
        planned look; and no look is due by the plan in which looks cost twenty times as much.
        """
        if (
            task.callback_expected_since is None
            or task.hints
            or not self._schedule.trusts_callbacks
            or any(wait.ends_with_look for wait in task.waits)
        ):
            return False
        elapsed = now - task.accepted_at
        if task.deadline <= task.accepted_at + self._schedule.next_look(task.kind, elapsed):
            return False
        looked = max(task.look_ended - task.accepted_at, 0.0)
        return self._schedule.next_look(task.kind, looked, callback_expected=True) > elapsed

    # ─── one look ────────────────────────────────────────────────────────────────────────────────

    async def _look_at(self, task: TrackedTask) -> None:
        try:
            record = await self._look(task.task_id)
        except AnotherTask as error:
            # That says nothing about the task, or about MidAPI.
            self._misdirected_at = self._clock.time()
            self._failures.failed(task, error, concerns_task=False)
            self._report(Looked(**_names(task), problem=str(error)))
        except MidAPIError as error:
            task.consecutive_failures += 1
            task.is_stuck = isinstance(error, TransportError) and error.timed_out
            doubtful = read_error(task.task_id, error)
            self._failures.failed(task, error, concerns_task=doubtful is not None)
            self._report(Looked(**_names(task), problem=str(error)))
            if doubtful is not None:
                self._count_doubt(task, doubtful, self._clock.time())
            elif not task.is_stuck:  # a record that hangs concerns no other task
                self._looker.failed(task, error)
            if isinstance(error, AuthenticationError) and error.own_envelope:
                await self._count_refusal(error)
        else:
            self._looker.succeeded()
            self._refusals = task.consecutive_failures = 0
            task.is_stuck, task.answered = False, task.look_began
            self._failures.answered(task)
            status = None if record is None else record.status
            task.is_generating = status is TaskStatus.GENERATING
            self._report(Looked(**_names(task), status=status))
            self._take_answer(task, record)
        finally:
            self._looker.end(task)
            self._wake.set()
            self._end_overdue(task)
            if task.waits:
                self._plan_next(task)

    def _end_overdue(self, task: TrackedTask) -> None:
        """After a look: end the waits that end with it, or extend them if it was not answered."""
        was_answered = task.answered == task.look_began
        for wait in task.waits:
            if not wait.ends_with_look or wait.done():
                continue
            patience = math.inf if wait.patience is None else wait.patience
            if task.doubt is not None and wait.began >= task.accepted_at + patience:
                # The wait began late, for an old task: it goes on until the doubt is resolved.
                wait.deadline = max(task.look_ended, task.doubtful_since + GRACE) + FORGIVEN
                task.deadline = min(task.deadline, wait.deadline)
                continue
            if was_answered or (wait.patience is not None and task.answered >= wait.began):
                wait.set_exception(_timed_out(task))
                continue
            task.is_urgent = True
            if wait.deadline == math.inf:
                # One failed look ends no wait: there are more of them for half a minute.
                wait.deadline, task.retries_left = task.look_ended + FORGIVEN, RETRIES
                task.deadline = min(task.deadline, wait.deadline)

    async def _count_refusal(self, refusal: AuthenticationError) -> None:
        """MidAPI itself has refused the API key. If it goes on doing so, end all waits."""
        now = self._clock.time()
        if not self._refusals or now - self._refused_at > 3 * max(
            REFUSED_FOR, self._policy.ceiling
        ):
            self._refusals, self._refused_since = 0, now
        self._refusals, self._refused_at = self._refusals + 1, now
        if self._refusals >= REFUSALS and now - self._refused_since >= REFUSED_FOR:
            self._refusals = 0
            said = (refusal.code, refusal.message, refusal.http_status)
            await self._fail_all(lambda task_id: about(AuthenticationError(*said), task_id=task_id))

    def _take_answer(self, task: TrackedTask, record: Record | None) -> None:
        """End the waits if the answer is final; else update the task from it."""
        now, answer = self._clock.time(), read_answer(record, is_seen=task.is_seen)
        if record is not None:
            url = record.params.get("callBackUrl")
            if has_foreign_token(url, task.token_hash):
                self._end(task, _foreign)
                return
            if has_token(url, task.token_hash):  # a record without it proves nothing
                task.token_hash = None
            self._learn_from(task, record, now)
        if isinstance(answer, TaskDetails):
            if record is not None and record.unreadable_urls:
                _log.warning(
                    "task %s: %d of its URLs cannot be read and are left out of details.urls; "
                    "details.raw has them",
                    task.task_id,
                    record.unreadable_urls,
                )
            self._finish(task, answer, now)
            return
        if self._count_doubt(task, answer, now):
            return
        if not task.is_hinted:
            task.is_called_back = False  # the callback came before the end of the task
        if not task.hints:
            task.retries_left = 0  # they were in case that the first look failed

    def _count_doubt(self, task: TrackedTask, answer: Doubtful | None, now: float) -> bool:
        """Count an answer that ends the waits only if it stays the same; return whether it has."""
        if answer is None:
            task.doubt = None
            return False
        doubt, outcome = answer
        # Code 501 names no task. While answers come to the wrong looks, it may be about another
        # one, and the journal must not have a failure then.
        is_suspect = isinstance(outcome, TaskDetails) and task.doubtful_since < self._misdirected_at
        if doubt != task.doubt or is_suspect:
            task.doubt, task.doubtful_since, task.doubtful_looks = doubt, now, 0
        task.doubtful_looks += 1
        if task.doubtful_looks < GRACE_LOOKS or now - task.doubtful_since < GRACE:
            return False
        if isinstance(outcome, TaskDetails):
            self._finish(task, outcome, now)
        else:
            self._end(task, outcome)
        return True

    def _learn_from(self, task: TrackedTask, record: Record, now: float) -> None:
        task.is_seen = True
        if not task.is_age_confirmed:
            self._correct_age(task, record, now)
        if task.is_kind_unknown and (kind := kind_in(record)) is not None:
            task.kind, task.is_kind_unknown = kind, False
        flag = record.success_flag
        if flag not in KNOWN_FLAGS and flag not in self._unknown_flags:
            self._unknown_flags.add(flag)
            _log.warning("MidAPI sent an unknown successFlag %s; it is read as generating", flag)

    def _correct_age(self, task: TrackedTask, record: Record, now: float) -> None:
        """Take the age of a task from its record: our wall clock may have been moved since."""
        if (age := age_of(record)) is None:
            return
        was_unknown, task.is_age_unknown, task.is_age_confirmed = task.is_age_unknown, False, True
        if not was_unknown and abs(now - age - task.accepted_at) <= CREDIBLE:
            return
        task.accepted_at = now - age
        for wait in task.waits:
            moment = task.accepted_at + (wait.patience or 0.0)
            if moment > now and (wait.ends_with_look or moment > wait.deadline):
                # It has more time than it seemed to have.
                wait.deadline, wait.ends_with_look = moment, False
                task.deadline = min(task.deadline, moment)

    def _plan_next(self, task: TrackedTask) -> None:
        """Plan the look after one that has ended."""
        now = self._clock.time()
        elapsed = now - task.accepted_at
        gap = self._schedule.next_look(task.kind, elapsed) - elapsed
        if failures := task.consecutive_failures:  # the gap doubles, up to the ceiling
            gap = min(gap * 2 ** min(failures, 10), max(gap, self._policy.ceiling))
        if task.doubt is not None:  # make just the missing looks within the grace period
            left = task.doubtful_since + GRACE - now
            missing = max(1, GRACE_LOOKS - task.doubtful_looks)
            gap = min(gap, max(left / missing, self._policy.floor))
        if task.retries_left:
            gap = min(gap, self._policy.floor * 2 ** (RETRIES - task.retries_left))
            task.retries_left -= 1
        self._plan(task, now + gap * (1 + self._clock.chance() / 20))

    # ─── results and callbacks ───────────────────────────────────────────────────────────────────

    def _finish(self, task: TrackedTask, details: TaskDetails, now: float) -> None:
        """End the waits with the result; learn how long it took and whether its callback came."""
        self._end(task, details)
        if details.duration is not None:
            seconds = details.duration.total_seconds()
            expected_since = task.callback_expected_since
            if task.is_called_back:
                self._schedule.note_callback(in_time=True)
            # A task that finished before it was waited for shows nothing about callbacks.
            elif expected_since is not None and task.accepted_at + seconds >= expected_since:
                self._late_callbacks[task.task_id] = now + LATE_CALLBACK
            # A task cannot have taken longer than since its acceptance, except for a clock's error.
            is_credible = seconds <= now - task.accepted_at + CLOCK_SKEW
            if details.status is TaskStatus.SUCCEEDED and is_credible:
                self._learn(task.kind, seconds)

    def _count_missed_callbacks(self, now: float) -> None:
        """Count finished tasks whose callback did not come in time; warn if none ever comes."""
        for task_id in [each for each, until in self._late_callbacks.items() if until < now]:
            del self._late_callbacks[task_id]
            self._schedule.note_callback(in_time=False)
            self._missed_callbacks += 1
            if self._missed_callbacks == MISSED_CALLBACKS and not self._got_callback:
                _log.warning(
                    "%d tasks finished and no callback came. Can MidAPI reach the receiver? Run "
                    "'midapi doctor' to find out; until then results are found by looking.",
                    MISSED_CALLBACKS,
                )


def _names(task: TrackedTask) -> dict[str, Any]:
    return {"key": task.key, "intent_id": task.intent_id, "task_id": task.task_id}


def _timed_out(task: TrackedTask) -> WaitTimeout:
    problem = None if task.failure is None else str(task.failure)
    error = WaitTimeout(task.task_id, goes_on=task.is_generating, problem=problem)
    error.__cause__ = task.failure
    return error


def _foreign(task_id: str) -> MidAPIError:
    problem = "holds the token of another submission"
    return about(AnotherTask("data.paramJson.callBackUrl", problem), task_id=task_id)
