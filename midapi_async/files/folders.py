"""Folders for the files that we write: made if they are missing, and synced."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InvalidRequestError


def make_folder(folder: Path, argument: str = "folder", *, must_be_writable: bool = True) -> None:
    """Make a folder and its parents, if they are missing. Blocks.

    Args:
        folder: the folder.
        argument: the name of the user's argument, for the error.
        must_be_writable: whether new files will be put there.

    Raises:
        InvalidRequestError: it cannot be made, is not a folder, or is not writable.
    """
    problem = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if must_be_writable and not os.access(folder, os.W_OK | os.X_OK):
            problem = "is not writable"
    except FileExistsError:
        problem = "is not a folder"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        problem = f"cannot be used: {getattr(error, 'strerror', None) or error}"
    if problem is not None:
        raise InvalidRequestError({argument: f"{str(folder)!r} {problem}"})


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure: new files, and renamed ones. Blocks.

    Raises:
        OSError: it cannot be synced; Windows, for one, cannot open a folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
