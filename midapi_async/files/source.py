"""What a file or bytes contain that are to be uploaded, and what is wrong with them."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import attrs

from ..errors import shown
from .content import LONGEST_START, extension_of, looks_like

BLOCK = 256 * 1024


@attrs.frozen
class Content:
    """What is to be uploaded, after it was looked at.

    Attributes:
        source: the file, or the bytes themselves.
        size: how many bytes it has.
        sha256: their hash.
        extension: for what kind of file that is, as in ".png".
        stamp: changes when the file changes; None for bytes.
    """

    source: Path | bytes = attrs.field(repr=False)
    size: int
    sha256: str
    extension: str
    stamp: object = None

    @property
    def name(self) -> str:
        """The name that it gets at the server, if the user gives none."""
        return f"{self.sha256[:16]}{self.extension}"


class Changed(Exception):
    """A file is not any more what it was when it was looked at."""

    def __init__(self, content: Content) -> None:
        super().__init__()
        self.problem = f"{_named(content.source)}was changed or removed while it was uploaded"


def opened(source: Path | bytes) -> BinaryIO:
    """A file or bytes, open for reading; a named pipe is opened without waiting for its writer."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    no_waiting = getattr(os, "O_NONBLOCK", 0)
    return open(source, "rb", opener=lambda path, flags: os.open(path, flags | no_waiting))


def _named(source: Path | bytes) -> str:
    """A file's name for the beginning of a sentence, on one line; nothing for bytes."""
    name = "" if isinstance(source, bytes) else f"{source} "
    return name if name.isprintable() else f"{shown(str(source), 200)} "


def stamp_of(file: Path | int) -> object:
    """What changes with a file; None if it is gone."""
    with suppress(OSError):
        found = os.stat(file)  # noqa: PTH116 - also for a descriptor
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return None


def look_at_file(path: Path, most: int | None) -> Content | str:
    """What a file contains, if it has at most so many bytes; or what is wrong with it."""
    try:
        with opened(path) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return f"{_named(path)}is not a file"
            return _look_at(file, path, stamp_of(file.fileno()), most)
    except FileNotFoundError:
        return f"{_named(path)}does not exist"
    except IsADirectoryError:
        return f"{_named(path)}is a folder"
    except (OSError, ValueError) as error:  # also: a path with a zero byte
        return f"{_named(path)}cannot be read: {getattr(error, 'strerror', None) or error}"


def look_at_bytes(data: bytes, most: int | None) -> Content | str:
    """What bytes contain; or what is wrong with them."""
    return _look_at(io.BytesIO(data), data, None, most)


def _look_at(
    file: BinaryIO, source: Path | bytes, stamp: object, most: int | None
) -> Content | str:
    """What a file contains; or what is wrong with it, beginning with its name."""
    named = _named(source)
    start = file.read(LONGEST_START)
    if not start:
        return f"{named}is empty"
    extension = extension_of(start)
    if extension is None:
        return f"{named}is {looks_like(start)}, not a picture or a video"
    digest, size = hashlib.sha256(start), len(start)
    while block := file.read(BLOCK):
        size += len(block)
        digest.update(block)
        if most is not None and size > most:
            return f"{named}is too large: an upload may have {most >> 20} MiB"
    return Content(source, size, digest.hexdigest(), extension, stamp)


def read_all(read: Callable[[int], object], most: int | None) -> bytes | str:
    """What is left to read of an open file; or what is wrong with it."""
    data = bytearray()
    try:
        while most is None or len(data) <= most:
            block = read(BLOCK)
            if not isinstance(block, bytes | bytearray):
                return f"must be open in binary mode: its read() returns {shown(block)}"
            if not block:
                break
            data += block
    except UnicodeDecodeError:
        return "must be open in binary mode"
    except (OSError, ValueError) as error:  # also: it is closed, or not open for reading
        return f"cannot be read: {error}"
    return bytes(data)
