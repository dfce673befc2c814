"""The queue of looks that are due, and the rate at which they may begin.

If more looks are due than `PollPolicy.looks_per_second` allows, hinted tasks come first, in the
order of their hints, then the others in the order in which they became due. Each task is in the
queue at most once, so none is looked at again before all others had their turn.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque

from .._runtime.clock import Clock
from .._wire.protocol import LONGEST_RETRY_AFTER
from ..config import PollPolicy
from ..errors import MidAPIError, RateLimitError
from .waits import Phase, TrackedTask

_log = logging.getLogger("midapi_async.tracking")

LOOKS_AT_ONCE = 16
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
        self._hinted: OrderedDict[TrackedTask, None] = OrderedDict()
        self._due: OrderedDict[TrackedTask, None] = OrderedDict()
        self._looking = 0
        self._began: deque[float] = deque()  # when the last looks began
        self._rests_until = -math.inf
        self._consecutive_failures = 0
        self._warns_from = -math.inf

    # ─── the queue ───────────────────────────────────────────────────────────────────────────────

    def add(self, task: TrackedTask) -> None:
        """Queue a task whose look is due, or move it to the hinted ones if it is hinted by now."""
        self._due.pop(task, None)
        (self._hinted if task.is_hinted else self._due)[task] = None
        task.phase = Phase.QUEUED

    def remove(self, task: TrackedTask) -> None:
        """Remove a task that needs no look any more; a look that is under way goes on."""
        self._hinted.pop(task, None)
        self._due.pop(task, None)
        if task.phase is not Phase.LOOKING:
            task.phase = Phase.IDLE

    @property
    def next_moment(self) -> float:
        """When the next look may begin; infinite if none is due, or too many are under way."""
        if not (self._hinted or self._due) or self._looking >= LOOKS_AT_ONCE:
            return math.inf
        # In any second, whenever it begins, at most `pace` looks may begin. With a pace below one
        # look per second, there must be 1 / pace seconds between two looks.
        pace = self._policy.looks_per_second
        count = max(1, int(pace))
        while len(self._began) > count:
            self._began.popleft()
        turn = self._began[0] + count / pace if len(self._began) == count else -math.inf
        return max(self._rests_until, turn)

    def begin(self, now: float) -> TrackedTask | None:
        """Take the task whose look begins now; None if no look may begin. `end` must follow."""
        if self.next_moment > now:
            return None
        task, _ = (self._hinted or self._due).popitem(last=False)
        task.phase, task.look_began, task.is_hinted = Phase.LOOKING, now, False
        self._began.append(now)
        self._looking += 1
        return task

    def end(self, task: TrackedTask) -> None:
        """The task's look has ended."""
        task.phase, task.look_ended = Phase.IDLE, max(self._clock.time(), task.look_began)
        self._looking -= 1

    # ─── pauses ──────────────────────────────────────────────────────────────────────────────────

    def rest(self, seconds: float) -> None:
        """Begin no look for some seconds."""
        until = self._clock.time() + min(seconds, LONGEST_RETRY_AFTER)
        self._rests_until = max(self._rests_until, until)

    def succeeded(self) -> None:
        """A look was answered."""
        self._consecutive_failures = 0

    def failed(self, error: MidAPIError) -> None:
        """A look failed. One failure is ignored; from the second in a row on, all looks pause."""
        self._consecutive_failures += 1
        pause = self._policy.floor * (2 ** min(self._consecutive_failures - 1, 10) - 1)
        if isinstance(error, RateLimitError):
            pause = max(pause, self._policy.floor, error.retry_after or 0.0)
        self.rest(pause * (1 + self._clock.chance() / 10))

    def warn_if_behind(self, now: float) -> None:
        """Warn, at most once an hour, if more looks are due than may be made soon."""
        due, pace = len(self._hinted) + len(self._due), self._policy.looks_per_second
        if due < BEHIND * pace or now < self._warns_from:
            return
        self._warns_from = now + WARN_AGAIN
        _log.warning(
            "%d looks are due and PollPolicy.looks_per_second is %.3g: results may be found %.0f s "
            "late. Tasks with a callback are looked at first, the others in the order of their due "
            "times.",
            *(due, pace, due / pace),
        )
