"""The tasks of a sandbox: what they are and how they end."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import final

from attrs import define, evolve, field, frozen

from midapi_async.sandbox import _wire
from midapi_async.sandbox._clock import Clock
from midapi_async.sandbox._delivery import Delivery
from midapi_async.sandbox._hints import Failure, Outcome
from midapi_async.sandbox._pictures import Picture


@frozen
class Order:
    """A checked submit: all that a task is made of, before it costs anything."""

    path: str
    task_type: str
    speed: str
    params: Mapping[str, object]
    """The request as paramJson shows it."""
    pictures: tuple[Picture, ...]
    price: float
    outcome: Outcome
    callback_url: str | None
    origin: str
    """Where its files' URLs begin, as "http://127.0.0.1:8787"."""

    @property
    def prompt(self) -> str:
        """What its pictures show."""
        return self.pictures[0].prompt

    @property
    def moving(self) -> bool:
        """Whether its results are videos."""
        return self.task_type in _wire.MOVING_TYPES


@define(eq=False)
class Task:
    """One task; moments are seconds of the sandbox's clock."""

    id: str
    order: Order
    created: float
    outcome: Outcome
    flag: int = _wire.GENERATING
    completed: float | None = None
    failure: Failure | None = None
    delivery: Delivery = field(factory=Delivery)
    called: asyncio.Event | None = field(default=None, repr=False)
    """The event for those who wait for its callback: set when that was tried, or is not sent."""
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    def note_called(self) -> None:
        """Wake those who wait for the callback."""
        if self.called is not None:
            self.called.set()

    @property
    def is_final(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self.flag != _wire.GENERATING

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs of its files; none before its success."""
        if self.flag != _wire.SUCCEEDED:
            return ()
        start = f"{self.order.origin}{_wire.RESULT_FILES}/{self.id}_0_"
        suffix = "mp4" if self.order.moving else "jpeg"
        return tuple(f"{start}{n}.{suffix}" for n in range(len(self.order.pictures)))


def failed_copy(task: Task) -> Task:
    """Give the task as it would be had it failed; the task itself stays as it is."""
    failure = task.failure or Failure()
    return evolve(task, failure=failure, flag=failure.flag, timer=None)


@final
class Tasks:
    """All tasks by their id; each ends once."""

    def __init__(self, clock: Clock, on_end: Callable[[Task], None]) -> None:
        """Keep no tasks yet; ``on_end`` is called with each that has just ended."""
        self._clock = clock
        self._on_end = on_end
        self._tasks: dict[str, Task] = {}

    def __iter__(self) -> Iterator[Task]:
        return iter(tuple(self._tasks.values()))

    def find(self, task_id: str) -> Task | None:
        """Give the task of this id, or None."""
        return self._tasks.get(task_id)

    def add(self, task_id: str, order: Order) -> Task:
        """Make a task that does nothing by itself."""
        task = self._tasks[task_id] = Task(task_id, order, self._clock.now(), order.outcome)
        return task

    def run(self, task: Task) -> None:
        """Let the task end by itself, as its outcome says."""
        outcome = task.outcome
        if outcome.seconds is None:
            return
        due = task.created + outcome.seconds
        # The stamp is the moment that was meant: a late timer must not stretch the duration.
        task.timer = self._clock.call_in(
            outcome.seconds, lambda: self.end(task, outcome.failure, due)
        )

    def end(self, task: Task, failure: Failure | None, moment: float | None = None) -> None:
        """End a task now (or at ``moment``); one that has ended stays as it is."""
        if task.is_final:
            return
        self._still(task)
        task.completed = self._clock.now() if moment is None else moment
        task.failure = failure
        task.flag = _wire.SUCCEEDED if failure is None else failure.flag
        self._on_end(task)

    def stop(self) -> None:
        """Take back every timer."""
        for task in self:
            self._still(task)

    @staticmethod
    def _still(task: Task) -> None:
        if task.timer is not None:
            task.timer.cancel()
            task.timer = None
