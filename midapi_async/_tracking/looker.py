"""The queue of looks that are due, and the rate at which they may begin.

Looks come out of a token bucket, see `PollPolicy`. If more are due than it allows, hinted tasks
come first, in the order of their hints, then the others in the order in which they became due.
Each task is in the queue at most once, so no task is looked at twice before every other one once.

Only some looks are under way at once. Hinted tasks have places of their own, and tasks whose last
look got no answer in time have few, so records that hang delay no others.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict

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
# A 429 on a look halves the rate and the size of the bucket, down to a 32nd. Both double again
# after each 10 s without a 429 on a look, counted from the end of the pause.
CLEAN_WINDOW, SLOWEST = 10.0, 1 / 32
BEHIND = 10.0  # seconds of looks in the queue, for so many seconds, before a warning
CATCH_UP = 60.0  # seconds after a pause, in which there is no such warning
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
        # The token bucket: when it is full again. Each look moves this on by 1 / rate.
        self._full_at = -math.inf
        self._rate = policy.looks_per_second
        self._doubles_from = -math.inf  # when it may double, after a 429 has halved it
        self._rests_until = -math.inf
        self._consecutive_failures = 0
        self._failed_at = -math.inf
        self._behind_since: float | None = None
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
        return max(self._rests_until, self._full_at - self._spare)

    @property
    def _spare(self) -> float:
        """Seconds that the bucket may still need until it is full when a look begins."""
        return max(0.0, self._policy.burst / self._policy.looks_per_second - 1 / self._rate)

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
        while self._rate < self._policy.looks_per_second and now >= self._doubles_from:
            self._rate = min(self._rate * 2, self._policy.looks_per_second)
            self._doubles_from += CLEAN_WINDOW
        queue = self._next_queue()
        if queue is None or self.next_moment > now:
            return None
        task, _ = self._queues[queue].popitem(last=False)
        task.phase, task.look_began = Phase.LOOKING, now
        task.is_hinted = task.is_urgent = False
        self._full_at = max(self._full_at, now) + 1 / self._rate
        self._looking[task] = queue
        self._places[queue] += 1
        return task

    def end(self, task: TrackedTask) -> None:
        """The task's look has ended."""
        task.phase, task.look_ended = Phase.IDLE, max(self._clock.time(), task.look_began)
        self._places[self._looking.pop(task)] -= 1

    # ─── pauses ──────────────────────────────────────────────────────────────────────────────────

    def rest(self, seconds: float) -> None:
        """Begin no look for some seconds; then one, and the next ones at the usual rate.

        This avoids a burst of looks when the server works again.
        """
        until = self._clock.time() + min(seconds, LONGEST_RETRY_AFTER)
        self._rests_until = max(self._rests_until, until)
        self._full_at = max(self._full_at, self._rests_until + self._spare)

    def succeeded(self) -> None:
        """A look was answered."""
        self._consecutive_failures = 0

    def failed(self, task: TrackedTask, error: MidAPIError) -> None:
        """A look failed. One failure is ignored; from the second in a row on, all looks pause.

        Looks that were under way together count as one: they show one moment of a fault. A
        429 pauses all looks at once, and halves their rate.
        """
        is_new = task.look_began > self._failed_at
        if is_new:
            self._consecutive_failures += 1
            self._failed_at = self._clock.time()
        pause = self._policy.floor * (2 ** min(self._consecutive_failures - 1, 10) - 1)
        if isinstance(error, RateLimitError):
            pause = max(pause, self._policy.floor, error.retry_after or 0.0)
            if is_new:
                self._rate = max(self._rate / 2, self._policy.looks_per_second * SLOWEST)
        if pause > 0:
            self.rest(pause * (1 + self._clock.chance() / 10))
        if isinstance(error, RateLimitError):
            self._doubles_from = self._rests_until + CLEAN_WINDOW

    def warn_if_behind(self, now: float) -> None:
        """Warn, at most once an hour, if looks are late and do not catch up.

        Looks that became due at the same moment, or were paused, get some time to catch up first.
        """
        due = sum(map(len, self._queues))
        late = max(self._full_at - now, 0.0) + due / self._rate - self._spare
        if late < BEHIND or now < self._rests_until + CATCH_UP:
            self._behind_since = None
            return
        self._behind_since = now if self._behind_since is None else self._behind_since
        if now < max(self._warns_from, self._behind_since + BEHIND):
            return
        self._warns_from = now + WARN_AGAIN
        _log.warning(
            "%d looks are due and PollPolicy.looks_per_second is %.3g: results may be found %.0f s "
            "late. Tasks with a callback are looked at first, the others in the order of their due "
            "times.",
            *(due, self._policy.looks_per_second, late),
        )
