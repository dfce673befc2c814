"""Cancels a coroutine at each point where it can be cancelled, one after the other.

    for step in cancel_at_each_step():
        async with ScriptedServer([reply(json=ACCEPTED)]) as server, client_of(server) as client:
            task = await step.run(client.generate("a red fox"))
            assert len(server.accepted) <= 1
        assert task.cancelled() or not step.struck

Each turn of the loop makes the world anew and runs the coroutine once. The first turn cancels it at
its first suspension, the second at its second, and so on until it runs through; that last turn, in
which nothing `struck`, is the proof that no point was left out. All this happens twice, since a
cancellation has two moments at each point:

- `waiting`: as the coroutine begins to wait. What it waits for is cancelled with it.
- `ready`: when what it waited for is there, before the coroutine could look at it. This is the
  moment at which answers get lost.
"""

import asyncio
import itertools
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, Generic, Literal, TypeAlias, TypeVar

T = TypeVar("T")
Moment: TypeAlias = Literal["waiting", "ready"]

# A coroutine with so many suspensions is one that polls, and stepping through it would never end.
_TOO_MANY = 2000


def cancel_at_each_step() -> Iterator["Step"]:
    """Give a `Step` for each suspension and moment, until a run was not struck any more."""
    moments: tuple[Moment, ...] = ("waiting", "ready")
    for moment in moments:
        for number in itertools.count(1):
            step = Step(number, moment)
            yield step
            assert step.was_run, "each turn of the loop has to await step.run(…) once"
            if not step.struck:
                break
            assert number < _TOO_MANY, f"still not through after {number} suspensions"


class Step:
    """Cancels what it runs at the `number`-th suspension, counted from 1, at the given moment."""

    def __init__(self, number: int, moment: Moment) -> None:
        self.number = number
        self.moment = moment
        self.was_run = False
        self.struck = False

    def __repr__(self) -> str:
        return f"<Step {self.number}, {self.moment}{', struck' if self.struck else ''}>"

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run the coroutine in a task of its own, to whatever end, and return that task, done.

        Only its own suspensions are counted; the tasks that it made, and all others, run on.
        """
        self.was_run = True
        task = asyncio.create_task(_as_coroutine(_Stepped(coroutine, self)), name=repr(self))
        try:
            await asyncio.wait({task})
        finally:
            if not task.done():
                task.cancel()
        if not task.cancelled():
            task.exception()  # so that it counts as retrieved
        return task

    def at(self, suspension: int, waits_for: object) -> None:
        """Strike, if this is the suspension."""
        if suspension != self.number:
            return
        task = asyncio.current_task()
        assert task is not None
        self.struck = True
        if self.moment == "ready" and isinstance(waits_for, asyncio.Future):
            # Called before the task's own callback, which the task adds after this: the task is
            # woken with a result in hand, and with a cancellation.
            waits_for.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


class _Stepped(Generic[T]):
    """Drives a coroutine by `send`, and so sees each of its suspensions."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], step: Step) -> None:
        self._coroutine = coroutine
        self._step = step

    def __await__(self) -> Generator[Any, Any, T]:
        thrown: BaseException | None = None
        for suspension in itertools.count(1):
            try:
                if thrown is None:
                    waits_for = self._coroutine.send(None)
                else:
                    waits_for = self._coroutine.throw(thrown)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # a coroutine's end carries its result
            self._step.at(suspension, waits_for)
            thrown = None
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001  # it is the coroutine's to handle
                thrown = error
        raise AssertionError("unreachable")


async def _as_coroutine(stepped: _Stepped[T]) -> T:
    return await stepped
