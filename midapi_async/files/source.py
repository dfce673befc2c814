"""What is to be uploaded: looks at a file or bytes, and says what is wrong with them."""

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

BLOCK = 256 * 1024  # bytes that are read at a time


class SourceError(Exception):
    """A file or bytes cannot be uploaded; the text says why, and begins with the file's name."""

    def __init__(self, problem: str, source: Path | bytes = b"") -> None:
        name = "" if isinstance(source, bytes) else f"{source} "
        if not name.isprintable():
            name = f"{shown(str(source), 200)} "
        super().__init__(f"{name}{problem}")


@attrs.frozen
class Content:
    """What is to be uploaded, after it was looked at.

    Attributes:
        source: the file, or the bytes themselves.
        size: how many bytes it has.
        sha256: their hash.
        extension: the one for its kind of file, such as ".png".
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

    def changed(self) -> SourceError:
        """The error for a file that is no longer what it was when it was looked at."""
        return SourceError("was changed or removed while it was uploaded", self.source)


def look_at(source: object, largest: int | None) -> Content:
    """Read a source to its end, and return what it contains. For a thread.

    Args:
        source: a path, bytes, or a file that is open for reading.
        largest: bytes that it may have; None for any number.

    Raises:
        SourceError: it is none of these, cannot be read, or is not a picture or a video.
    """
    if isinstance(source, os.PathLike) and isinstance(path := os.fspath(source), str):
        return _look_at_file(Path(path), largest)
    if callable(read := getattr(source, "read", None)):
        source = _read_all(read, largest)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return _content_of(io.BytesIO(data), data, None, largest)
    kind = "None" if source is None else f"a {type(source).__name__}"
    kinds = "a Path, bytes, a file that is open for reading, or a URL"
    raise SourceError(f"must be {kinds}, got {kind}")


def opened(source: Path | bytes) -> BinaryIO:
    """A file or bytes, open for reading; a named pipe is opened without waiting for its writer."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    no_waiting = getattr(os, "O_NONBLOCK", 0)
    return open(source, "rb", opener=lambda path, flags: os.open(path, flags | no_waiting))


def stamp_of(file: Path | int) -> object:
    """What changes with a file; None if it is gone."""
    with suppress(OSError):
        found = os.stat(file)  # noqa: PTH116 - also for a descriptor
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _look_at_file(path: Path, largest: int | None) -> Content:
    try:
        with opened(path) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return _content_of(file, path, stamp_of(file.fileno()), largest)
            problem = "is not a file"
    except FileNotFoundError:
        problem = "does not exist"
    except IsADirectoryError:
        problem = "is a folder"
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    raise SourceError(problem, path)


def _read_all(read: Callable[[int], object], largest: int | None) -> bytes:
    """What is left to read of an open file; of a file that is too large, only a part."""
    data = bytearray()
    try:
        while largest is None or len(data) <= largest:
            block = read(BLOCK)
            if not isinstance(block, bytes | bytearray):
                what = shown(block)
                raise SourceError(f"must be open in binary mode: its read() returns {what}")
            if not block:
                break
            data += block
    except UnicodeDecodeError:
        raise SourceError("must be open in binary mode") from None
    except (OSError, ValueError) as error:  # ValueError: it is closed, or not open for reading
        raise SourceError(f"cannot be read: {error}") from None
    return bytes(data)


def _content_of(
    file: BinaryIO, source: Path | bytes, stamp: object, largest: int | None
) -> Content:
    start = file.read(LONGEST_START)
    if not start:
        raise SourceError("is empty", source)
    extension = extension_of(start)
    if extension is None:
        raise SourceError(f"is {looks_like(start)}, not a picture or a video", source)
    digest, size = hashlib.sha256(start), len(start)
    while block := file.read(BLOCK):
        size += len(block)
        digest.update(block)
        if largest is not None and size > largest:
            limit = f"an upload may have {largest >> 20} MiB"
            raise SourceError(f"is too large: {limit}", source)
    return Content(source, size, digest.hexdigest(), extension, stamp)
