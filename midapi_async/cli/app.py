"""The list of commands, and how every error of a command becomes a message and an exit code."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from itertools import takewhile
from typing import TextIO

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from midapi_async import __version__

from ._errors import BROKEN_PIPE, CommandError, command_error, in_commands, usage_error
from ._interrupt import interrupted
from ._options import with_stdin
from ._terminal import one_line, say
from .batch import batch
from .credits import credits_left
from .demo import demo
from .doctor import doctor
from .gallery import gallery
from .generate import generate, upscale, usage_of, vary
from .journal import journal
from .listen import listen
from .sandbox import sandbox
from .task import task
from .upload import upload

app = App(
    name="midapi",
    help="Midjourney pictures and videos from MidAPI. To begin with, run midapi demo: it needs no "
    "API key and costs nothing. What needs an API key takes it from MIDAPI_API_KEY.",
    help_epilogue="Names such as MIDAPI_API_KEY are environment variables. Exit codes: 0 done, "
    "1 an error of MidAPI or of a task, 2 a usage error, 130 interrupted.",
    version=__version__,
    result_action="return_value",
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
)
app.command(demo, sort_key=1)
app.command(generate)
app.command(batch, sort_key=3, usage="Usage: midapi batch [OPTIONS] FILE --output FOLDER")
app.command(upscale, sort_key=3, usage=usage_of("upscale"))
app.command(vary, sort_key=4, usage=usage_of("vary"))
app.command(upload, sort_key=5, usage="Usage: midapi upload [OPTIONS] FILE [FILE ...]")
app.command(gallery, sort_key=3)
app.command(task, sort_key=6)
app.command(credits_left, name="credits", sort_key=7)
app.command(journal)
app.command(doctor, sort_key=9)
app.command(listen, sort_key=10)
app.command(sandbox, sort_key=11)
app.register_install_completion_command()


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code. Errors are printed, not raised."""
    as_json = "--json" in _options(arguments)
    try:
        _escape_what_cannot_be_encoded(sys.stdout, sys.stderr)
        with _plain_warnings():
            return _attempt(arguments, as_json=as_json)
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except SystemExit as end:  # rich ends so at a broken pipe
        return int(end.code or 0)


def _attempt(arguments: Sequence[str], *, as_json: bool) -> int:
    try:
        return int(app(with_stdin(arguments)) or 0)
    except CycloptsError as error:
        ended = usage_error(_usage_text(error))
    except CommandError as error:
        ended = error
    except KeyboardInterrupt:
        ended = interrupted()
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - a command line shows no traceback
        ended = command_error(error)
    return ended.report(as_json=as_json)


def _options(arguments: Sequence[str]) -> list[str]:
    """The arguments before a ``--``; what follows it are no options."""
    return list(takewhile(lambda each: each != "--", arguments))


def _usage_text(error: CycloptsError) -> str:
    error.verbose = False
    chain = " ".join(error.command_chain or ())
    if isinstance(error, MissingArgumentError):
        return f"{error} See midapi {chain} --help."
    takes_prompt = "generate" in (error.command_chain or ())
    if isinstance(error, UnusedCliTokensError):
        text = f"Too many arguments: {shlex.join(error.unused_tokens or ())}."
        hint = (
            "Put a prompt of several words in quotes; pictures follow the prompt of midapi "
            "generate image, style, omni or video."
        )
        return f"{text} {hint if takes_prompt else f'See midapi {chain} --help.'}"
    if isinstance(error, UnknownOptionError) and takes_prompt:
        return f'{error} Midjourney\'s own flags belong in the prompt: "a red fox --tile".'
    return str(error)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print a warning on one line, without the place in the code."""

    def show(message: Warning | str, *_: object) -> None:
        say(f"midapi: warning: {one_line(in_commands(str(message)))}")

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]  # takes what the real one takes
        yield


def _escape_what_cannot_be_encoded(*streams: TextIO | None) -> None:
    """Write an escape for a character that the terminal's encoding lacks; it is no error."""
    for stream in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """After a broken pipe: discard what is still buffered, so that the exit prints no error."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
