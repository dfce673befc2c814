"""The command line, ``midapi``, for people and for shell scripts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# What the extra "cli" installs.
_EXTRA = frozenset({"cyclopts", "rich"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: those after ``midapi``; None for those of this process.
    """
    try:
        from .app import run
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _EXTRA:
            raise
        need = 'midapi: the command line needs an extra: pip install "midapi-async[cli]"\n'
        if sys.stderr is not None:
            sys.stderr.write(need)
        return 2
    return run(sys.argv[1:] if arguments is None else arguments)
