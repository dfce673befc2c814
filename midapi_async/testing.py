"""An event loop whose clock jumps, for tests of code that waits.

An hour of `asyncio.sleep` passes in a moment, and everything happens in the order in which it
would have happened in an hour. Sockets are real: an aiohttp client and an aiohttp server in one
loop talk over the loopback device while the time jumps around them.

    import asyncio
    from midapi_async.testing import VirtualLoop

    async def main() -> None:
        await asyncio.sleep(3600)

    VirtualLoop.run(main())                         # or: asyncio.Runner(loop_factory=VirtualLoop)

With pytest-asyncio, 1.4 or later, a hook in `conftest.py` gives every async test such a loop; tests
of what the clock cannot see (read on in `VirtualLoop`) get a real one:

    def pytest_asyncio_loop_factories(config, item):
        if item.get_closest_marker("real_time"):
            return {"real": asyncio.SelectorEventLoop}
        return {"virtual": VirtualLoop}

This module needs nothing of the SDK and nothing but the standard library.
"""

import asyncio
import math
import selectors
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["LoopStuck", "VirtualLoop"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Not zero, so that code which takes a duration for a point in time does not pass by luck; small and
# whole, so that the whole seconds that a test waits for are exact.
_START = 1000.0
# The folder of the standard library.
_LIBRARY = str(Path(asyncio.__file__).parents[1])
# By so much a loop lets its timers fire early.
_RESOLUTION = time.get_clock_info("monotonic").resolution


class LoopStuck(RuntimeError):
    """Nothing has woken a `VirtualLoop` for `patience` seconds: what the test awaits never comes.

    The message names each pending task and the line of your code at which it waits.
    """

    def __init__(self, patience: float, tasks: set[asyncio.Task[Any]], *, jobs: int) -> None:
        if jobs:
            why = f"{jobs} job(s) in an executor did not end, so the clock stood still"
            then = "Give a slow job a loop with more patience; do not let a job wait for a timer"
        else:
            why = "no timer is set, no job runs and nothing came in"
            then = "What shall wake these tasks? Threads and processes need a real loop"
        waiting = "".join(f"\n  {_whereabouts(task)}" for task in tasks) or " nothing"
        super().__init__(f"stuck for {patience:g} s: {why}. {then}. Waiting:{waiting}")


class VirtualLoop(asyncio.SelectorEventLoop):
    """A `SelectorEventLoop` that jumps to its next timer instead of waiting for it.

    The clock stands still while there is anything to do: a callback that is ready, a socket that is
    readable, a job in an executor that has not ended. If there is nothing to do, it jumps exactly
    to the next timer. So a timeout is exact, and never fires because a machine is slow. Running
    code takes no time on this clock, so debug mode never warns of slow callbacks.

    **What the clock sees:** sockets whose both ends are in this loop (each request of 18,000 under
    load was in time, on Linux), and `run_in_executor`, with all that is built on it: `to_thread`,
    `getaddrinfo`, pools of threads and of processes.

    **What it cannot see:** a thread that calls back with `call_soon_threadsafe`, a server in
    another thread, another process, another machine. Nothing says that an answer is under way, so
    the clock jumps and timeouts fire at once. Such tests belong in a normal loop.

    If nothing can wake the loop, a test would hang for ever. This loop waits `patience` seconds of
    real time, then raises `LoopStuck`.

    Args:
        patience: how long, in seconds of real time, to wait for something outside: with no timer
            set, or while a job runs. `functools.partial(VirtualLoop, patience=60)` is a factory.
    """

    def __init__(self, *, patience: float = 10.0) -> None:
        self._clock = _Clock(patience, self._stuck)
        self._pool: ThreadPoolExecutor | None = None
        super().__init__(self._clock)

    @classmethod
    def run(cls, main: Coroutine[Any, Any, T], /) -> T:
        """Run a coroutine in a new loop, close the loop and return the result."""
        with asyncio.Runner(loop_factory=cls) as runner:
            return runner.run(main)

    def time(self) -> float:
        """Return the virtual time in seconds. It begins at 1000."""
        return self._clock.now

    def serves(self, port: int | None) -> bool:
        """Whether a server in this loop listens on a port: only then can the clock see it."""
        return self._clock.serves(port)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run a function in an executor; until it has ended, the clock stands still."""
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        job = (executor or self._default_pool()).submit(func, *args)
        self._clock.jobs.add(job)
        future = asyncio.wrap_future(job, loop=self)
        # Behind the callback of wrap_future, so that the result comes first.
        job.add_done_callback(self._job_ended)
        return future

    def set_default_executor(self, executor: ThreadPoolExecutor) -> None:  # type: ignore[override]  # typeshed 3.11 says Executor; the loop takes no other
        """Choose who runs the jobs that name no executor."""
        super().set_default_executor(executor)
        self._pool = executor

    async def shutdown_default_executor(
        self,
        timeout: float | None = None,  # noqa: ARG002  # it would fire at once: a thread ends unseen
    ) -> None:
        """Wait for the threads of the default executor to end, however long that takes."""
        await super().shutdown_default_executor()

    def _default_pool(self) -> ThreadPoolExecutor:
        pool = self._pool
        if pool is None:
            pool = ThreadPoolExecutor(thread_name_prefix="asyncio")
            self.set_default_executor(pool)
        return pool

    def _job_ended(self, job: Future[T]) -> None:
        # Called in whatever thread ended the job. The loop itself strikes it off: that wakes it,
        # and it never sees the job gone while the result is still on its way.
        with suppress(RuntimeError):  # closed in the meantime: no clock is left to hold
            self.call_soon_threadsafe(self._clock.jobs.discard, job)

    def _stuck(self) -> LoopStuck:
        clock = self._clock
        return LoopStuck(clock.patience, asyncio.all_tasks(self), jobs=len(clock.jobs))


class _Clock(selectors.BaseSelector):
    """A selector that, asked to wait until a timer is due, moves the time there instead."""

    def __init__(self, patience: float, stuck: Callable[[], LoopStuck]) -> None:
        self.now = _START
        self.patience = patience
        self.jobs: set[object] = set()
        self._stuck = stuck
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = self._real.select(0)
        if events or timeout == 0:
            return events
        if timeout is not None and not self.jobs:
            self._jump(timeout)
            return []
        events = self._real.select(self.patience)
        if not events:
            raise self._stuck()
        return events

    def _jump(self, seconds: float) -> None:
        self.now += seconds
        if self.now + _RESOLUTION == self.now:
            # After half a year a float is coarser than what the loop allows a timer to be early,
            # and no timer would ever be due.
            self.now = math.nextafter(self.now, math.inf)

    def serves(self, port: int | None) -> bool:
        for key in list(self._real.get_map().values()):
            with suppress(OSError):  # it is a pipe
                borrowed = socket.socket(fileno=key.fd)
                try:
                    name = borrowed.getsockname()
                finally:
                    borrowed.detach()
                if isinstance(name, tuple) and name[1] == port:
                    return True
        return False

    def register(
        self, fileobj: "FileDescriptorLike", events: int, data: object = None
    ) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(
        self, fileobj: "FileDescriptorLike", events: int, data: object = None
    ) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping["FileDescriptorLike", selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def _whereabouts(task: asyncio.Task[Any]) -> str:
    """Name a task, the line at which it waits, and the innermost coroutine it awaits.

    The line is not inside the standard library, unless all of the task is.
    """
    chain: list[Any] = [task.get_coro()]
    while hasattr(inner := getattr(chain[-1], "cr_await", None), "cr_frame"):
        chain.append(inner)
    frames = [each.cr_frame for each in chain if getattr(each, "cr_frame", None)]  # Cython has none
    own = [each for each in frames if not _is_standard(each.f_code.co_filename)]
    line = "".join(f" at {it.f_code.co_filename}:{it.f_lineno}" for it in (own or frames)[-1:])
    return f"{task.get_name()}{line} in {getattr(chain[-1], '__qualname__', repr(chain[-1]))}"


def _is_standard(file: str) -> bool:
    """Whether a file is of the standard library, in whose folder installed packages may be."""
    return file.startswith(_LIBRARY) and "-packages" not in file.removeprefix(_LIBRARY)
