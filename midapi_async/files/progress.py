"""`Progress`: how far one file is, as ``on_progress`` gets it."""

from __future__ import annotations

import attrs


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
