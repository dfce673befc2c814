"""The commands, and what their ends mean: 0, 1 for an error of the service, 2 for a usage error."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

from cyclopts import App, CycloptsError, UnusedCliTokensError

from midapi_async._version import __version__

from ._terminal import one_line, say
from ._trouble import BROKEN_PIPE, Trouble, trouble_of, usage
from ._work import interrupted
from .credits import credits_left
from .demo import demo
from .doctor import doctor
from .generate import generate
from .journal import journal
from .listen import listen
from .sandbox import sandbox
from .task import task

app = App(
    name="midapi",
    help="Midjourney pictures and videos from MidAPI. The key comes from MIDAPI_API_KEY.",
    help_epilogue="Exit codes: 0 done, 1 an error of MidAPI or of a task, 2 a usage error, "
    "130 interrupted.",
    version=__version__,
    result_action="return_value",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
app.command(demo, sort_key=1)
app.command(generate)
app.command(task, sort_key=3)
app.command(credits_left, name="credits", sort_key=4)
app.command(journal)
app.command(doctor, sort_key=6)
app.command(listen, sort_key=7)
app.command(sandbox, sort_key=8)
app.register_install_completion_command()


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code. Nothing is raised for what can go wrong."""
    as_json = "--json" in _options(arguments)
    try:
        _take_any_character(sys.stdout, sys.stderr)
        with _plain_warnings():
            return _attempt(arguments, as_json=as_json)
    except BrokenPipeError:
        _drop_stdout()
        return BROKEN_PIPE
    except SystemExit as end:  # rich's way to end at a broken pipe
        return int(end.code or 0)


def _attempt(arguments: Sequence[str], *, as_json: bool) -> int:
    try:
        return int(app(list(arguments)) or 0)
    except CycloptsError as error:
        trouble = usage(_usage_text(error))
    except Trouble as known:
        trouble = known
    except KeyboardInterrupt:
        trouble = interrupted()
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  # a command line shows no traceback
        trouble = trouble_of(error)
    return trouble.tell(as_json=as_json)


def _options(arguments: Sequence[str]) -> list[str]:
    """What stands before a ``--``."""
    before = list(arguments)
    return before[: before.index("--")] if "--" in before else before


def _usage_text(error: CycloptsError) -> str:
    error.verbose = False
    place = " A prompt of several words stands in quotes, and options behind a command's name."
    hint = place if isinstance(error, UnusedCliTokensError) else ""
    return f"{error}{hint}"


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Say a warning of ours in a line, without the place in the code."""

    def show(message: Warning | str, *_: object) -> None:
        say(f"midapi: warning: {one_line(message)}")

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]  # takes what the real one takes
        yield


def _take_any_character(*streams: TextIO | None) -> None:
    """Let no character end the program that the terminal's encoding does not have."""
    for stream in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Nobody reads any more: what is still buffered goes nowhere, without a word at the exit."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
