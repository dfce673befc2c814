"""`Progress`: how far one file is, as ``on_progress`` gets it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import attrs

_log = logging.getLogger("midapi_async.files")

LEAST_INTERVAL = 0.1  # seconds between two reports of one file


@attrs.frozen(kw_only=True)
class Progress:
    """How much of one file has been transferred.

    Attributes:
        name: the name of the file: of the target of a download, of what is uploaded.
        index: the place of the file among those of the call, from 0.
        done: bytes so far; less than before when a transfer was started again.
        total: bytes of the whole file; None if it is not known.
    """

    name: str
    index: int
    done: int
    total: int | None


class Reporter:
    """Calls the ``on_progress`` of one call, whose first exception is logged.

    Args:
        on_progress: what the user gave, or None.
    """

    def __init__(self, on_progress: Callable[[Progress], object] | None) -> None:
        self._on_progress = on_progress
        self._has_failed = False
        self._next: dict[int, float] = {}  # for each file, when the next report may come

    def report(
        self, name: str, index: int, done: int, total: int | None, *, is_last: bool = False
    ) -> None:
        """Report, unless the last report of this file was just now and this is not its end."""
        if self._on_progress is None:
            return
        now = asyncio.get_running_loop().time()
        if not is_last and now < self._next.get(index, now):
            return
        self._next[index] = now + LEAST_INTERVAL
        try:
            self._on_progress(Progress(name=name, index=index, done=done, total=total))
        except Exception as error:  # noqa: BLE001 - its bug must not stop the transfer
            if not self._has_failed:
                self._has_failed = True
                _log.error(
                    "on_progress raised; later exceptions of it are not logged. The transfer goes "
                    "on.",
                    exc_info=error,
                )
