"""The state of a task that is waited for, and of each wait for it."""

from __future__ import annotations

import asyncio
import enum
import math

import attrs

from ..errors import MidAPIError
from ..tasks import TaskDetails
from .schedule import Kind

DEFAULT_KIND: Kind = ("mj_txt2img", "fast")  # for a task whose kind is not known


class Phase(enum.Enum):
    """How far the next look at a task is."""

    IDLE = "no look is planned"
    PLANNED = "the next look is planned"
    QUEUED = "the next look is due and waits for its turn"
    LOOKING = "a look is under way"


class Wait(asyncio.Future[TaskDetails]):
    """One wait for the final details of a task.

    Attributes:
        task: the task that is waited for.
        deadline: when the wait times out; infinite for never.
        patience: it times out so many seconds after the acceptance of the task, and not before a
            look that began during the wait was answered; None if its deadline is a fixed time.
        began: when it began.
        ends_with_look: its deadline has passed, and it times out when the next look is answered.
    """

    def __init__(self, task: TrackedTask) -> None:
        super().__init__()
        self.task = task
        self.deadline = math.inf
        self.patience: float | None = None
        self.began = -math.inf
        self.ends_with_look = False


@attrs.define(eq=False)
class TrackedTask:
    """A task that is waited for, or was until recently. Times are on the client's clock.

    Attributes:
        task_id: MidAPI's id of the task.
        key: the user's own name for its request, if a wait knows it.
        intent_id: the id of its submission, if a wait knows it.
        accepted_at: when MidAPI accepted it; if that is not known, when this client heard of it.
        kind: its type and speed.
        is_age_unknown: `accepted_at` is a guess until a record shows when it was created.
        is_age_confirmed: a record has shown how old it was, by the clock of MidAPI's server.
        token_hash: of its submission's token, until a record has shown no other; None if that is
            not to be checked.
        is_kind_unknown: `kind` is a guess until a record shows it.
        is_seen: MidAPI has shown its record.
        waits: all waits for it that have not been left, as an ordered set.
        deadline: no wait times out before this; the earliest deadline, or earlier.
        phase: how far the next look is.
        due: when the next look is due, while one is planned.
        wakes_at: the time of its valid entry in the tracker's heap; infinite if it has none.
        look_began: when the last look began.
        look_ended: when the last look ended.
        answered: when the last look began that was answered.
        consecutive_failures: looks that failed in a row, for the time of the next one.
        failed_looks: looks that failed in a row, in whatever way.
        failing_since: when the first of them has failed.
        failure: why the last look failed; None if it was answered.
        has_warned: a warning has said that its looks fail.
        is_generating: the last look that was answered has shown it generating.
        is_stuck: the last look got no answer in time.
        is_urgent: its next look comes before those of others, for a wait that ends with it.
        retries_left: how many of the next looks are made soon, independent of the plan.
        doubt: what the last answer said, if that ends the waits only if it stays the same.
        doubtful_since: since when all answers have said so.
        doubtful_looks: how many answers that are.
        is_hinted: a hint has come since the last look began, and the next look is made for it.
        hints: how many hints have moved a look forward.
        hinted_at: the time to which the last hint moved a look.
        is_called_back: a callback has come, and no later look has shown the task generating.
        callback_expected_since: since when a wait has expected its callback; None if it has none.
    """

    task_id: str
    accepted_at: float
    key: str | None = None
    intent_id: str | None = None
    kind: Kind = DEFAULT_KIND
    is_age_unknown: bool = False
    is_age_confirmed: bool = False
    token_hash: str | None = None
    is_kind_unknown: bool = True
    is_seen: bool = False
    waits: dict[Wait, None] = attrs.field(factory=dict)
    deadline: float = math.inf
    phase: Phase = Phase.IDLE
    due: float = math.inf
    wakes_at: float = math.inf
    look_began: float = -math.inf
    look_ended: float = -math.inf
    answered: float = -math.inf
    consecutive_failures: int = 0
    failed_looks: int = 0
    failing_since: float = -math.inf
    failure: MidAPIError | None = None
    has_warned: bool = False
    is_generating: bool = False
    is_stuck: bool = False
    is_urgent: bool = False
    retries_left: int = 0
    doubt: str | None = None
    doubtful_since: float = -math.inf
    doubtful_looks: int = 0
    is_hinted: bool = False
    hints: int = 0
    hinted_at: float = -math.inf
    is_called_back: bool = False
    callback_expected_since: float | None = None
