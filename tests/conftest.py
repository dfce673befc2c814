"""What holds for every test: virtual time, nothing left behind (I4), no secret in a log (I5).

- An async test runs in a `VirtualLoop`; one marked `real_time` in a normal one.
- Tests marked `slow` or `chaos` are deselected, and counted as such, unless `--slow` or `--chaos`
  is given.
- asyncio's debug mode is on (`asyncio_debug` in pyproject.toml); nox leaves it on for the oldest
  Python only.
"""

import asyncio
import gc
import itertools
import logging
import os
import signal
import traceback
from asyncio import constants
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType, TracebackType

import hypothesis
import pytest
from pytest_asyncio import is_async_test

from midapi_async.testing import VirtualLoop
from tests.support import secrets
from tests.support.leaks import LoopWatch, open_files
from tests.support.postgres import Server, programs, server, show_to_virtual_clocks

# The same examples in every run of CI; new ones, without a deadline, everywhere else.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


# asyncio's debug mode keeps the stack that made each future and handle. All frames of all futures
# take two thirds of the CPU of a run with debug mode; the nearest ones say where it was.
FRAMES_IN_DEBUG_MODE = 5

# Markers whose tests run only where they are asked for.
DESELECTED = ("slow", "chaos")
TESTS_BETWEEN_FREEZES = 20

_ended = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--slow` and `--chaos`."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption("--chaos", action="store_true", help="run the tests marked chaos, too")


def pytest_configure() -> None:
    """Take Ctrl-C even where a shell started the tests with ``&``, which makes them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _check_locals_of_raised_errors()
    _keep_short_stacks_in_debug_mode()


def _keep_short_stacks_in_debug_mode() -> None:
    walk = traceback.walk_stack

    def walk_a_few(f: FrameType | None) -> Iterator[tuple[FrameType, int]]:
        # Without a frame it looks for that of its caller, so nothing may stand between them.
        return itertools.islice(walk(f), FRAMES_IN_DEBUG_MODE) if f else walk(f)

    traceback.walk_stack = walk_a_few
    constants.DEBUG_STACK_DEPTH = FRAMES_IN_DEBUG_MODE  # type: ignore[misc]  # called final


def _check_locals_of_raised_errors() -> None:
    """L15: no error that a test expects shows a secret in the local variables of its traceback.

    Errors that come along the same lines are looked at once in a run: that costs next to nothing.
    """
    leave = pytest.RaisesExc.__exit__

    def check_and_leave(
        raises: pytest.RaisesExc[BaseException],
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> bool:
        if error is not None:
            found = secrets.found_in_locals(error, again=False)
            assert not found, "secrets in local variables:\n" + "\n".join(found)
        return leave(raises, kind, error, frames)

    pytest.RaisesExc.__exit__ = check_and_leave  # type: ignore[method-assign]


def pytest_report_header(config: pytest.Config) -> str:
    """Say whether the slow tests and the chaos run."""
    told = (f"{name} tests: {'run' if config.getoption(f'--{name}') else 'deselected'}"
            for name in DESELECTED)  # fmt: skip
    return f"{', '.join(told)} (see --slow and --chaos)"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is slow, and the chaos."""
    unwanted = [name for name in DESELECTED if not config.getoption(f"--{name}")]
    left_out = {item for item in items if any(map(item.get_closest_marker, unwanted))}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Keep the collector from walking, after each test, what stays for ever."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish() -> None:
    """Do the same, now and then, with what the tests that ended have left in caches and reports.

    Each test ends with a collection. Without this, one costs 0.15 s after 3,000 tests: half of the
    time of a whole run.
    """
    if next(_ended) % TESTS_BETWEEN_FREEZES == 0:
        gc.collect()
        gc.freeze()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Choose the loop of an async test."""
    if item.get_closest_marker("real_time"):
        return {"real": asyncio.SelectorEventLoop}
    return {"virtual": VirtualLoop}


@pytest.fixture
def loop_watch() -> LoopWatch:
    """What the loop reported in this test; a test that expects a report removes it here."""
    return LoopWatch()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, loop_watch: LoopWatch) -> Iterator[None]:
    """I4: no task, socket or file stays, and nothing went wrong that nobody was told."""
    if is_async_test(request.node):
        # Set up before, and so torn down after, every other fixture of the test.
        request.getfixturevalue("_watched_loop")
    before = open_files()
    yield
    gc.collect()
    left = [what for number, what in open_files().items() if before.get(number) != what]
    assert not left, f"left open: {left}"
    assert not loop_watch.reports, "the loop reported:\n" + "\n".join(loop_watch.reports)


@pytest.fixture
async def _watched_loop(
    request: pytest.FixtureRequest, loop_watch: LoopWatch
) -> AsyncIterator[None]:
    asyncio.get_running_loop().set_exception_handler(loop_watch.report)
    yield
    real_time = request.node.get_closest_marker("real_time") is not None
    left = await loop_watch.settle(real_time=real_time)
    assert not left, f"tasks left behind: {left}"


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[Server]:
    try:
        programs()
    except AssertionError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with server() as running:
        yield running


@pytest.fixture
def postgres(_postgres_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A PostgreSQL server, one for all tests of a worker; virtual clocks see its work."""
    show_to_virtual_clocks(monkeypatch)
    return _postgres_server


@pytest.fixture(autouse=True)
def no_secret_in_a_log() -> Iterator[None]:
    """I5: no record that reaches the root logger shows a secret; ours are caught from DEBUG on."""
    log = _Log()
    ours, root = logging.getLogger("midapi_async"), logging.getLogger()
    level = ours.level
    ours.setLevel(logging.DEBUG)
    root.addHandler(log)
    yield
    root.removeHandler(log)
    ours.setLevel(level)
    shown = [line for line in log.lines if secrets.found_in(line)]
    assert not shown, "secrets in the log:\n" + "\n".join(shown)


class _Log(logging.Handler):
    """Formats each record at once, with its exception, as handlers that show local variables do."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        # A web server's own record shows its own variables, such as the path with the token.
        is_ours = record.name.startswith("midapi_async")
        if is_ours and record.exc_info and record.exc_info[1] is not None:
            self.lines += secrets.found_in_locals(record.exc_info[1], again=False)
