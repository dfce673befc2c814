"""The stepper strikes at every suspension, at both moments, and nowhere else."""

import asyncio

import pytest

from tests.support.stepper import Step, cancel_at_each_step


async def test_every_suspension_is_struck_and_the_last_run_is_whole() -> None:
    """Three awaits: four runs for each moment, of which the last comes to its end."""
    reached: list[tuple[str, int, int]] = []
    for step in cancel_at_each_step():
        passed: list[int] = []

        async def main(passed: list[int] = passed) -> str:
            for number in (1, 2, 3):
                await asyncio.sleep(number)
                passed.append(number)
            return "done"

        task = await step.run(main())
        assert task.cancelled() == step.struck
        assert step.struck or task.result() == "done"
        reached.append((step.moment, step.number, len(passed)))
    runs = [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert [(m, *run) for m in ("waiting", "ready") for run in runs] == reached


async def test_the_two_moments_differ_in_what_has_happened() -> None:
    """`waiting` cancels what is awaited; at `ready` its result was there and is lost."""
    loop = asyncio.get_running_loop()

    first: asyncio.Future[str] = loop.create_future()
    assert (await Step(1, "waiting").run(_wait_for(first))).cancelled()
    assert first.cancelled()

    second: asyncio.Future[str] = loop.create_future()
    loop.call_later(1, second.set_result, "id")
    assert (await Step(1, "ready").run(_wait_for(second))).cancelled()
    assert second.result() == "id"


async def test_only_its_own_suspensions_count_and_others_run_on() -> None:
    """What a helper task does in between is neither counted nor cancelled."""
    for step in cancel_at_each_step():
        ticks: list[int] = []

        async def tick(ticks: list[int] = ticks) -> None:
            for number in range(5):
                await asyncio.sleep(1)
                ticks.append(number)

        helper = asyncio.create_task(tick())
        await step.run(asyncio.sleep(3.5))
        assert step.number <= 2
        await helper
        assert ticks == [0, 1, 2, 3, 4]


async def test_a_bare_yield_is_a_suspension() -> None:
    """sleep(0) can be cancelled, too."""
    struck = 0
    for step in cancel_at_each_step():
        await step.run(_turns(2))
        struck += step.struck
    assert struck == 4


async def test_a_coroutine_that_swallows_a_cancellation_is_seen() -> None:
    """The task is done and not cancelled, though it was struck (L9)."""
    seen = []
    for step in cancel_at_each_step():
        task = await step.run(_deaf())
        seen.append((step.struck, task.cancelled()))
    assert seen == [(True, False), (False, False)] * 2


async def test_what_the_coroutine_does_after_the_strike_runs_to_its_end() -> None:
    """Awaits in its `finally` are carried out, and errors come through unchanged."""
    for step in cancel_at_each_step():
        log: list[str] = []
        task = await step.run(_cleans_up(log))
        assert log == ["cleaned"]
        if not task.cancelled():
            assert isinstance(task.exception(), LookupError)


async def test_timeouts_inside_work_as_in_any_task() -> None:
    """The coroutine is its task's own: asyncio.timeout tells its cancellation from ours."""
    for step in cancel_at_each_step():
        task = await step.run(_times_out())
        assert task.cancelled() or task.result() == "late"
        assert task.cancelled() == step.struck or step.moment == "ready"


async def test_a_turn_that_runs_nothing_is_an_error() -> None:
    """A loop that forgets to run the step would otherwise test nothing."""
    steps = cancel_at_each_step()
    assert repr(next(steps)) == "<Step 1, waiting>"
    with pytest.raises(AssertionError, match=r"await step\.run"):
        next(steps)


async def test_the_steppers_own_cancellation_ends_the_run() -> None:
    """A test that is cancelled leaves no task behind."""
    running = asyncio.create_task(Step(99, "waiting").run(asyncio.sleep(10)))
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def _wait_for(answer: asyncio.Future[str]) -> str:
    return await answer


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _deaf() -> None:
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        return


async def _cleans_up(log: list[str]) -> None:
    try:
        await asyncio.sleep(1)
        raise LookupError
    finally:
        if not log:
            try:
                await asyncio.sleep(1)
            finally:
                log.append("cleaned")


async def _times_out() -> str:
    try:
        async with asyncio.timeout(5):
            await asyncio.sleep(10)
    except TimeoutError:
        return "late"
    return "in time"
