"""VirtualLoop: waits take no time, keep their order, and end exactly when they should."""

import asyncio
import concurrent.futures
import functools
import multiprocessing
import multiprocessing.resource_tracker
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from midapi_async.testing import LoopStuck, VirtualLoop

HOUR = 3600.0


def now() -> float:
    """The time on the loop's clock."""
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def served(handler: web.RequestHandler | object) -> AsyncIterator[str]:
    """An aiohttp server on the loopback device, in this loop; gives its URL."""
    app = web.Application()
    app.router.add_route("*", "/", handler)  # type: ignore[arg-type]  # aiohttp's own types of handlers
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/"
    finally:
        await runner.cleanup()


# ---------------------------------------------------------------------------- the clock


def test_an_hour_passes_in_a_moment() -> None:
    """A sleep ends when its time has come on the loop's clock, in next to no real time."""

    async def main() -> float:
        began = now()
        await asyncio.sleep(HOUR)
        return now() - began

    began = time.monotonic()
    assert VirtualLoop.run(main()) == HOUR
    assert time.monotonic() - began < HOUR / 100


def test_a_runner_takes_the_class_as_its_factory() -> None:
    """No policy is needed, and debug mode is the runner's."""
    with asyncio.Runner(loop_factory=VirtualLoop, debug=True) as runner:
        runner.run(asyncio.sleep(HOUR))
        assert isinstance(runner.get_loop(), VirtualLoop)
        assert runner.get_loop().get_debug()


def test_run_raises_what_the_coroutine_raises() -> None:
    """An error goes through, and the loop is closed."""
    loops = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        raise LookupError

    with pytest.raises(LookupError):
        VirtualLoop.run(main())
    assert loops[0].is_closed()


async def test_the_clock_stands_while_there_is_something_to_do() -> None:
    """Any number of turns of the loop takes no time."""
    began = now()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert began == now()


async def test_the_clock_does_not_begin_at_zero() -> None:
    """A duration taken for a point in time is long past, and not right by luck."""
    assert now() >= 1000


async def test_timers_fire_in_order_each_at_its_time() -> None:
    """Timers set in any order fire in the order of their times; equal ones as they were set."""
    loop = asyncio.get_running_loop()
    began = now()
    fired: list[tuple[str, float]] = []

    def fire(name: str) -> None:
        fired.append((name, now() - began))

    for name, delay in [("d", 60.0), ("a", 0.5), ("c", 7.0), ("b", 0.5)]:
        loop.call_later(delay, fire, name)
    await asyncio.sleep(61)
    assert fired == [("a", 0.5), ("b", 0.5), ("c", 7.0), ("d", 60.0)]


async def test_a_cancelled_timer_moves_nothing() -> None:
    """The clock does not stop at a time that nobody wants any more."""
    loop, began = asyncio.get_running_loop(), now()
    seen: list[str] = []
    loop.call_later(5, seen.append, "never").cancel()
    await asyncio.sleep(10)
    assert (seen, now() - began) == ([], 10)


async def test_a_timeout_is_exact_and_the_faster_one_wins() -> None:
    """What ends a moment before the timeout is in time; a moment after, it is not."""
    async with asyncio.timeout(10.0):
        await asyncio.sleep(9.999)
    began = now()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10.0):
            await asyncio.sleep(10.001)
    assert now() - began == 10.0


async def test_a_jump_of_years_is_one_wait() -> None:
    """asyncio waits a day at a time; a sleep of ten years ends all the same, and so does the next.

    By then a float is too coarse for the nanosecond that asyncio allows a timer, which must not
    make a timer wait for ever.
    """
    began, years = now(), 10 * 365 * 24 * HOUR
    await asyncio.sleep(years)
    await asyncio.sleep(0.5)
    assert now() - began == pytest.approx(years + 0.5, abs=1e-5)


# ------------------------------------------------------------------------------ sockets


async def test_requests_over_real_sockets_take_no_virtual_time() -> None:
    """A client and a server in one loop talk without a jump, also when megabytes are on the way."""

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async with served(echo) as url, aiohttp.ClientSession() as session:
        began, body = now(), b"x" * 900_000
        for _ in range(5):
            async with asyncio.timeout(0.001), session.post(url, data=body) as response:
                assert body == await response.read()
        assert began == now()


async def test_a_server_that_takes_an_hour_answers_after_an_hour() -> None:
    """A real request that waits an hour for its answer is over in a moment."""

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(HOUR)
        return web.json_response({"waited": True})

    timeout = aiohttp.ClientTimeout(total=None)
    async with served(slow) as url, aiohttp.ClientSession(timeout=timeout) as session:
        began = now()
        async with session.get(url) as response:
            assert await response.json() == {"waited": True}
        assert now() - began == HOUR


async def test_aiohttps_own_timeout_is_exact() -> None:
    """The client gives up on its second: not earlier and not later."""

    async def never(_: web.Request) -> web.Response:
        await asyncio.sleep(10 * HOUR)
        return web.Response()

    timeout = aiohttp.ClientTimeout(total=30)
    async with served(never) as url, aiohttp.ClientSession(timeout=timeout) as session:
        began = now()
        with pytest.raises(TimeoutError):
            await session.get(url)
        assert now() - began == 30


# ----------------------------------------------------------------------- jobs elsewhere


async def test_a_job_in_a_thread_is_waited_for() -> None:
    """A timeout of any length does not fire while a thread works on the answer."""
    began = now()
    async with asyncio.timeout(0.001):
        assert await asyncio.to_thread(_work, "done") == "done"
    assert began == now()


async def test_a_job_that_nobody_awaits_any_more_still_holds_the_clock() -> None:
    """Cancelling the wait does not end the thread: what it does is seen before the next timer."""
    loop, release, seen = asyncio.get_running_loop(), threading.Event(), []

    def job() -> None:
        release.wait(10)
        seen.append("job")

    future = loop.run_in_executor(None, job)
    await asyncio.sleep(0)
    future.cancel()
    threading.Timer(0.02, release.set).start()
    await asyncio.sleep(HOUR)
    assert seen == ["job"]


async def test_jobs_one_after_the_other_and_many_at_once() -> None:
    """The clock stands for all of them and walks on after the last."""
    began = now()
    async with asyncio.timeout(0.001):
        for number in range(50):
            assert number == await asyncio.to_thread(_work, number)
        await asyncio.gather(*(asyncio.to_thread(_work, number) for number in range(50)))
    await asyncio.sleep(1)
    assert now() - began == 1


async def test_a_job_that_never_began_lets_the_clock_go() -> None:
    """Cancelled in the queue of an executor, a job is over."""
    loop, release = asyncio.get_running_loop(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as one:
        first = loop.run_in_executor(one, release.wait, 10)
        second = loop.run_in_executor(one, release.wait, 10)
        second.cancel()
        release.set()
        assert await first
    began = now()
    await asyncio.sleep(1)
    assert now() - began == 1


async def test_an_executor_of_ones_own_and_one_that_was_set() -> None:
    """Whichever executor has the job, the clock stands; the default may be chosen as always."""
    loop, began = asyncio.get_running_loop(), now()
    with concurrent.futures.ThreadPoolExecutor(1, "own") as own:
        async with asyncio.timeout(0.001):
            assert await loop.run_in_executor(own, _thread_name) == "own_0"
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1, "chosen"))
    async with asyncio.timeout(0.001):
        assert await loop.run_in_executor(None, _thread_name) == "chosen_0"
    assert began == now()


@pytest.fixture(scope="module")
def resource_tracker() -> None:
    """Start what multiprocessing keeps to the end, before the test that would seem to leave it."""
    multiprocessing.resource_tracker.ensure_running()


@pytest.mark.usefixtures("resource_tracker")
async def test_a_pool_of_processes_is_seen_too() -> None:
    """A job in another process holds the clock just as one in a thread."""
    loop = asyncio.get_running_loop()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        async with asyncio.timeout(0.001):
            assert await loop.run_in_executor(pool, abs, -7) == 7


async def test_a_job_raises_and_names_are_resolved() -> None:
    """Errors come back from the thread; getaddrinfo is such a job."""
    async with asyncio.timeout(0.001):
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        found = await asyncio.get_running_loop().getaddrinfo(
            "127.0.0.1", 80, type=socket.SOCK_STREAM
        )
    assert found[0][4] == ("127.0.0.1", 80)


def test_closing_waits_for_the_threads() -> None:
    """asyncio gives the threads 300 s to end; on this clock they are never late."""
    ended = []

    class SlowToEnd(concurrent.futures.ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            time.sleep(0.02)
            super().shutdown(wait, cancel_futures=cancel_futures)
            ended.append(True)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(SlowToEnd(1))
        loop.run_in_executor(None, time.sleep, 0.02)

    VirtualLoop.run(main())
    assert ended[0]


def test_a_job_ends_after_its_loop(caplog: pytest.LogCaptureFixture) -> None:
    """A thread that outlives a loop closed by hand ends in peace, and in silence."""
    release, pool = threading.Event(), concurrent.futures.ThreadPoolExecutor(1)
    loop = VirtualLoop()
    loop.run_in_executor(pool, release.wait, 10)
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_in_executor(pool, release.wait, 10)
    release.set()
    pool.shutdown()
    assert caplog.messages == []


# -------------------------------------------------------------- what cannot be or be seen


def test_a_wait_for_nothing_is_an_error_that_names_the_line() -> None:
    """A deadlock does not hang: the error says which tasks wait, and where in the user's code."""

    async def outer() -> None:
        await inner()

    async def inner() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(outer(), name="the one that waits")

    impatient = functools.partial(VirtualLoop, patience=0.02)
    with (
        pytest.raises(LoopStuck, match=r"no timer is set") as caught,
        asyncio.Runner(loop_factory=impatient) as runner,
    ):
        runner.run(main())
    line = inner.__code__.co_firstlineno + 1
    where = f"the one that waits at {__file__}:{line} in Event.wait"
    assert where in str(caught.value).replace("\n", " ")


def test_a_task_of_the_standard_library_alone_has_a_line_there() -> None:
    """Where no code of the user waits, the innermost line is named as it is."""
    impatient = functools.partial(VirtualLoop, patience=0.02)
    with (
        pytest.raises(LoopStuck, match=r"locks\.py:\d+ in Event\.wait"),
        asyncio.Runner(loop_factory=impatient) as runner,
    ):
        runner.run(asyncio.Event().wait())


def test_a_job_that_waits_for_a_timer_is_an_error() -> None:
    """The clock stands for the job and the job waits for the clock: said, not hung."""

    async def main() -> None:
        loop, release = asyncio.get_running_loop(), threading.Event()
        loop.call_later(1, release.set)
        try:
            await asyncio.to_thread(release.wait, 10)
        finally:
            release.set()

    impatient = functools.partial(VirtualLoop, patience=0.02)
    with (
        pytest.raises(LoopStuck, match=r"1 job\(s\) in an executor did not end"),
        asyncio.Runner(loop_factory=impatient) as runner,
    ):
        runner.run(main())


def test_a_loop_with_nothing_to_do_at_all_is_stuck_too() -> None:
    """run_forever without a task ends with the same error, and the loop can still be closed."""
    loop = VirtualLoop(patience=0.01)
    with pytest.raises(LoopStuck, match="Waiting: nothing"):
        loop.run_forever()
    loop.close()


def test_a_thread_may_wake_a_loop_that_waits_for_nothing_else() -> None:
    """Without a timer there is nowhere to jump to: within its patience the loop waits for real."""

    async def main() -> bool:
        loop, called = asyncio.get_running_loop(), asyncio.Event()
        thread = threading.Timer(0.02, loop.call_soon_threadsafe, [called.set])
        thread.start()
        return await called.wait()

    assert VirtualLoop.run(main())


async def test_what_the_clock_cannot_see() -> None:
    """The documented limit: beside a timer, a thread that calls back comes too late."""
    loop, called = asyncio.get_running_loop(), asyncio.Event()
    thread = threading.Timer(0.02, loop.call_soon_threadsafe, [called.set])
    thread.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(called.wait(), HOUR)
    await asyncio.to_thread(thread.join)


async def test_it_knows_which_servers_are_in_it() -> None:
    """By the port; one of a thread is not, and a pipe beside the sockets does no harm."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)

    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    reading, writing = os.pipe()
    loop.add_reader(reading, lambda: None)
    try:
        async with served(answer) as url:
            port = int(url.rstrip("/").rpartition(":")[2])
            assert loop.serves(port)
        assert not loop.serves(port)
        with socket.create_server(("127.0.0.1", 0)) as elsewhere:
            assert not loop.serves(elsewhere.getsockname()[1])
        assert not loop.serves(None)
    finally:
        loop.remove_reader(reading)
        os.close(reading)
        os.close(writing)


@pytest.mark.real_time
async def test_a_test_marked_real_time_has_a_real_loop() -> None:
    """The hook of the documentation, as this project's conftest uses it."""
    assert not isinstance(asyncio.get_running_loop(), VirtualLoop)


def _work(result: object) -> object:
    time.sleep(0.001)
    return result


def _thread_name() -> str:
    return threading.current_thread().name
