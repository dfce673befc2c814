"""How far a batch is, as a terminal shows it, and as lines where there is none."""

import asyncio
import io
import os
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from midapi_async import BatchProgress, SubmissionUnknown, events
from midapi_async.cli._batch_display import BatchDisplay
from midapi_async.sandbox import SandboxThread
from tests.cli.conftest import REPOSITORY

BEGUN = BatchProgress(
    total=200,
    submitted=0,
    running=0,
    done=0,
    failed=0,
    unknown=0,
    rate=0.0,
    expected_end=None,
    spent=None,
    paused=None,
    stopped=None,
)
HALF = attrs.evolve(BEGUN, submitted=140, running=40, done=96, failed=3, unknown=1)


def lines(progress: BatchProgress, *seen: events.Event) -> list[str]:
    """What is shown of a batch of 200 rows after some events."""
    display = BatchDisplay(200, "rows")
    for event in seen:
        display.take(event)
    return display.lines(progress)


def test_the_counts_come_first() -> None:
    """Unknown ones only if there are any."""
    assert lines(BEGUN) == ["0 of 200 rows: 0 done, 0 failed, 0 running", "", ""]
    assert lines(HALF)[0] == "100 of 200 rows: 96 done, 3 failed, 1 unknown, 40 running"


def test_the_second_line_has_rate_cost_and_expected_end() -> None:
    """And what it has spent, and when it will end; a day later with the date."""
    fast = attrs.evolve(HALF, rate=118.3, spent=480.0)
    assert lines(fast)[1] == "118 a minute, 480 credits spent so far"
    assert lines(attrs.evolve(HALF, rate=2.04, spent=0.0))[1] == "2.0 a minute"
    end = datetime.now(UTC) + timedelta(seconds=59.9)
    at = end.astimezone().strftime("%H:%M")
    assert lines(attrs.evolve(HALF, expected_end=end))[1].endswith(f"s left, until {at}")
    late = end + timedelta(days=2)
    at = late.astimezone().strftime("%Y-%m-%d %H:%M")
    assert lines(attrs.evolve(HALF, expected_end=late))[1].endswith(f" left, until {at}")
    past = datetime(2020, 1, 1, tzinfo=UTC)
    assert lines(attrs.evolve(HALF, expected_end=past))[1].startswith("about 0.0 s left")


def test_the_third_line_says_what_the_batch_waits_for() -> None:
    """The rate limit, a retry, a pause, and why it has stopped: the most important of these."""
    queued = [events.Queued(intent_id=each, place=0) for each in "abc"]
    retry = events.Retrying(intent_id="a", reason="MidAPI answered 455", delay=1.0, left=9.0)
    gone = [
        events.Sent(intent_id="a"),
        events.Accepted(intent_id="a", task_id="t"),
        events.Failed(intent_id="b", error=SubmissionUnknown("b")),
        events.Sent(intent_id="c"),
    ]
    assert lines(HALF, *queued)[2] == "waiting for a slot of the rate limit: 3"
    assert lines(HALF, *queued, retry)[2] == "waiting to be sent again: 1 (MidAPI answered 455)"
    assert lines(HALF, *queued, retry, *gone)[2] == ""
    paused = attrs.evolve(HALF, paused="no\nnetwork")
    assert lines(paused, *queued, retry)[2] == "pausing, then trying again: no network"
    stopped = attrs.evolve(paused, stopped="max_credits=5: 5 credits are spent.")
    wanted = "submitting nothing more: --max-credits 5: 5 credits are spent."
    assert lines(stopped, *queued, retry)[2] == wanted


counts = st.integers(0, 10_000)


@given(
    width=st.integers(20, 300),
    done=counts,
    failed=counts,
    unknown=counts,
    running=counts,
    paused=st.none() | st.text() | st.just("狐" * 200),
    encoding=st.sampled_from(["utf-8", "ascii"]),
)
def test_a_picture_fits_its_terminal(
    width: int,
    *,
    done: int,
    failed: int,
    unknown: int,
    running: int,
    paused: str | None,
    encoding: str,
) -> None:
    """Four lines, none too long, also with hostile texts; a state that has rows is in the bar."""
    progress = attrs.evolve(
        HALF, done=done, failed=failed, unknown=unknown, running=running, paused=paused
    )
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    total = done + failed + unknown + running
    picture = BatchDisplay(total, "rows").picture(progress, console)
    drawn = [*console.render_lines(picture, pad=False)]
    texts = ["".join(each.text for each in line) for line in drawn]
    assert len(texts) == 4
    assert all(cell_len(text) < width for text in texts)
    assert all(text.isprintable() for text in texts)
    has_rows = sum(count > 0 for count in (done, failed, unknown, running))
    filled = texts[0].count("#" if encoding == "ascii" else "━")
    assert filled == (max(width - 2, 10) if total else 0)
    assert filled >= has_rows


async def test_a_terminal_that_goes_away_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is paid for goes on without a display."""

    async def fail(_: BatchDisplay, __: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(BatchDisplay, "_print_lines", fail)
    async with BatchDisplay(1, "rows").of(None):  # type: ignore[arg-type] # never looked at
        await asyncio.sleep(0)


@pytest.mark.one_python
@pytest.mark.real_time
@pytest.mark.skipif(sys.platform == "win32", reason="has no pty")
@pytest.mark.midapi_sandbox(time_scale=120)
@pytest.mark.parametrize("columns", [80, 120])
def test_a_real_terminal_shows_bars_and_then_the_summary(
    midapi_sandbox: SandboxThread, elsewhere: Path, columns: int
) -> None:
    """The bars are erased at the end, and no line is broken by the terminal."""
    import pty  # Windows has none

    Path("rows.txt").write_text("a red fox\na white hare\n")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "midapi_async", "batch", "rows.txt", "--output", "out"],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": str(columns),
            "TERM": "xterm",
        },
    )
    os.close(theirs)
    written = b""
    with process:
        with suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(ours, 65536):
                written += chunk
        os.close(ours)
    assert process.returncode == 0
    text = written.decode()
    assert "━" * (columns // 2) in text
    assert "0 of 2 rows: 0 done, 0 failed, 2 running" in text
    assert "\x1b[2K" in text  # a line was erased
    summary = text.rsplit("\x1b[2K", 1)[1].splitlines()
    assert summary[-3:] == [
        "2 rows: 2 succeeded. This run spent 16 credits.",
        "Pictures: out/pictures",
        "Gallery: out/gallery.html",
    ]
