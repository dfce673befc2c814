"""The queue of looks that are due, and the rate at which they may begin.

If more looks are due than `PollPolicy.looks_per_second` allows, hinted tasks come first, in the
order of their hints, then the others in the order in which they became due. Each task is in the
queue at most once, so none is looked at again before all others had their turn.

Only some looks are under way at once. Hinted tasks have places of their own, and tasks whose last
look got no answer in time have few, so records that hang delay no others.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict, deque

from .._runtime.clock import Clock
from .._wire.protocol import LONGEST_RETRY_AFTER
from ..config import PollPolicy
from ..errors import MidAPIError, RateLimitError
from .waits import Phase, TrackedTask

_log = logging.getLogger("midapi_async.tracking")

# How many looks may be under way: all of them; those at tasks without a hint; and those at tasks
# whose last look got no answer in time.
LOOKS_AT_ONCE = (32, 16, 4)
_HINTED, _DUE, _STUCK = range(3)
BEHIND = 10.0  # seconds of looks in the queue before a warning
WARN_AGAIN = 3600.0  # seconds until the next warning


class Looker:
    """The queue of due looks.

    Args:
        policy: how fast to look.
        clock: the client's clock.
    """

    def __init__(self, policy: PollPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        # Hinted tasks; others that are due; and those whose last look got no answer in time.
        self._queues: tuple[OrderedDict[TrackedTask, None], ...]
        self._queues = (OrderedDict(), OrderedDict(), OrderedDict())
        self._looking: dict[TrackedTask, int] = {}  # with the queue that each was in
        self._places: Counter[int] = Counter()  # how many looks are under way from each queue
        self._began: deque[float] = deque()  # when the last looks began
        self._rests_until = -math.inf
        self._consecutive_failures = 0
        self._failed_at = -math.inf
        self._warns_from = -math.inf

    # ─── the queue ───────────────────────────────────────────────────────────────────────────────

    def add(self, task: TrackedTask) -> None:
        """Queue a task whose look is due, or move it to the hinted ones if it is hinted by now."""
        self.remove(task)
        is_first = task.is_hinted or task.is_urgent
        self._queues[_STUCK if task.is_stuck else _HINTED if is_first else _DUE][task] = None
        task.phase = Phase.QUEUED

    def remove(self, task: TrackedTask) -> None:
        """Remove a task that needs no look any more; a look that is under way goes on."""
        for queue in self._queues:
            queue.pop(task, None)
        if task.phase is not Phase.LOOKING:
            task.phase = Phase.IDLE

    @property
    def next_moment(self) -> float:
        """When the next look may begin; infinite if none is due, or too many are under way."""
        if self._next_queue() is None:
            return math.inf
        # In any second, whenever it begins, at most `pace` looks may begin. With a pace below one
        # look per second, there must be 1 / pace seconds between two looks.
        pace = self._policy.looks_per_second
        count = max(1, int(pace))
        while len(self._began) > count:
            self._began.popleft()
        turn = self._began[0] + count / pace if len(self._began) == count else -math.inf
        return max(self._rests_until, turn)

    def _next_queue(self) -> int | None:
        """Which queue the next look comes from; None if none is due, or too many are under way."""
        ready, under_way = [], 0
        for queue in (_STUCK, _DUE, _HINTED):
            under_way += self._places[queue]
            if self._queues[queue] and under_way < LOOKS_AT_ONCE[queue]:
                ready.append(queue)
        if len(ready) < 2 or _HINTED in ready:
            return ready[-1] if ready else None
        return min(ready, key=lambda queue: next(iter(self._queues[queue])).due)

    def begin(self, now: float) -> TrackedTask | None:
        """Take the task whose look begins now; None if no look may begin. `end` must follow."""
        queue = self._next_queue()
        if queue is None or self.next_moment > now:
            return None
        task, _ = self._queues[queue].popitem(last=False)
        task.phase, task.look_began = Phase.LOOKING, now
        task.is_hinted = task.is_urgent = False
        self._began.append(now)
        self._looking[task] = queue
        self._places[queue] += 1
        return task

    def end(self, task: TrackedTask) -> None:
        """The task's look has ended."""
        task.phase, task.look_ended = Phase.IDLE, max(self._clock.time(), task.look_began)
        self._places[self._looking.pop(task)] -= 1

    # ─── pauses ──────────────────────────────────────────────────────────────────────────────────

    def rest(self, seconds: float) -> None:
        """Begin no look for some seconds."""
        until = self._clock.time() + min(seconds, LONGEST_RETRY_AFTER)
        self._rests_until = max(self._rests_until, until)

    def succeeded(self) -> None:
        """A look was answered."""
        self._consecutive_failures = 0

    def failed(self, task: TrackedTask, error: MidAPIError) -> None:
        """A look failed. One failure is ignored; from the second in a row on, all looks pause.

        Looks that were under way together count as one: they show the same moment of a fault.
        """
        if task.look_began > self._failed_at:
            self._consecutive_failures += 1
            self._failed_at = self._clock.time()
        pause = self._policy.floor * (2 ** min(self._consecutive_failures - 1, 10) - 1)
        if isinstance(error, RateLimitError):
            pause = max(pause, self._policy.floor, error.retry_after or 0.0)
        self.rest(pause * (1 + self._clock.chance() / 10))

    def warn_if_behind(self, now: float) -> None:
        """Warn, at most once an hour, if more looks are due than may be made soon."""
        due, pace = sum(map(len, self._queues)), self._policy.looks_per_second
        if due < BEHIND * pace or now < self._warns_from:
            return
        self._warns_from = now + WARN_AGAIN
        _log.warning(
            "%d looks are due and PollPolicy.looks_per_second is %.3g: results may be found %.0f s "
            "late. Tasks with a callback are looked at first, the others in the order of their due "
            "times.",
            *(due, pace, due / pace),
        )
