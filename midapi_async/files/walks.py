"""Walks through a file, block by block, to its end: from chunk to chunk, or from box to box.

A walk is a generator that is sent the blocks, and None at the end of the file. It returns the
position of the end of the picture or video, or raises `NotWhole`. It copies headers and at most
64 KiB of a comment. Its steps are counted, so that a million tiny chunks cost as little as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

_MOST_STEPS = 10_000  # and one more for each KiB: a PNG of 100 MB may have 8 KiB in each chunk
_COMMENT = 64 * 1024  # bytes of a comment that are searched for a script
_SCRIPT = re.compile(rb"<(?:script|\?php)", re.IGNORECASE)
_DAMAGED, _NO_DATA = "it is damaged", "there is no picture in it"
_ENDLESS = 1 << 64
_PNG_TEXTS = {b"tEXt", b"iTXt", b"zTXt"}
_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra meta free skip wide uuid udta pdin sidx ssix emsg prft".split()
)
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675


class NotWhole(Exception):
    """The file is not whole; the text says why."""


class _Ended(NotWhole):
    """The file ended where more was needed."""


_T = TypeVar("_T")
_Steps: TypeAlias = Generator[None, bytes | None, _T]
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # no such pair stands in compressed data


class FileBytes:
    """A file for a generator, which yields where it needs the next block and is sent it."""

    def __init__(self) -> None:
        self.block = b""
        self.at = 0  # how far the block was used
        self.before = 0  # bytes of the file before the block
        self.to_skip = 0
        self.steps = 0
        self.script = False
        self.in_pixels = False  # a JPEG's headers have passed

    @property
    def position(self) -> int:
        """Bytes of the file up to here."""
        return self.before + self.at

    def step(self) -> None:
        """Count one more chunk or box; an honest file's have more than 1 KiB on average."""
        self.steps += 1
        if self.steps > _MOST_STEPS + self.position // 1024:
            raise NotWhole("it has too many parts")

    def more(self) -> _Steps[None]:
        """Leave the block and wait for the next one."""
        self.before += len(self.block)
        self.block, self.at = b"", 0
        block = yield
        if block is None:
            raise _Ended("its end is missing")
        self.block = block

    def read(self, size: int) -> _Steps[bytes]:
        """Copy the next bytes."""
        self.step()
        found = bytearray()
        while True:
            part = self.block[self.at : self.at + size - len(found)]
            self.at += len(part)
            found += part
            if len(found) == size:
                return bytes(found)
            yield from self.more()

    def number(self, size: int) -> _Steps[int]:
        """A big-endian number of so many bytes."""
        return int.from_bytes((yield from self.read(size)), "big")

    def skip(self, size: int) -> _Steps[None]:
        """Pass over the next bytes, which costs the same for any number of them."""
        self.to_skip = size
        while True:
            part = min(self.to_skip, len(self.block) - self.at)
            self.at += part
            self.to_skip -= part
            if not self.to_skip:
                return
            yield from self.more()

    def comment(self, size: int) -> _Steps[None]:
        """Skip a text, and note whether there is a script at its beginning."""
        text = yield from self.read(min(size, _COMMENT))
        self.script = self.script or _SCRIPT.search(text) is not None
        yield from self.skip(size - len(text))

    def marker(self) -> _Steps[int]:
        """Skip to behind the next marker of a JPEG, and give its second byte."""
        self.step()
        half = False  # whether the last byte of the block before is the first of a marker
        while True:
            if half and _MARKER.match(b"\xff" + self.block[:1]):
                self.at = 1
                return self.block[0]
            if found := _MARKER.search(self.block, self.at):
                self.at = found.end()
                return self.block[self.at - 1]
            half = self.at < len(self.block) and self.block[-1] == 0xFF
            yield from self.more()

    def sub_blocks(self) -> _Steps[None]:
        """Skip a GIF's data. Not counted as steps: a sub-block has 255 bytes at most."""
        while True:
            block, at, end = self.block, self.at, len(self.block)
            while at < end:
                size = block[at]
                at += size + 1
                if not size:
                    self.at = at
                    return
            self.at = end
            if at > end:
                yield from self.skip(at - end)
            else:
                yield from self.more()


def _jpeg(file: FileBytes) -> _Steps[int]:
    # Between the segments everything is skipped up to the next marker: fill bytes, and the
    # compressed data behind a start of scan (0xDA), of which a progressive picture has several.
    yield from file.skip(2)
    has_data = False
    while (marker := (yield from file.marker())) != 0xD9:
        if marker < 0xC0 or 0xF0 <= marker <= 0xFD or marker == 0xD8:
            continue  # has no length
        size = (yield from file.number(2)) - 2
        if size < 0:
            raise NotWhole(_DAMAGED)
        yield from (file.comment if marker >= 0xE0 else file.skip)(size)
        file.in_pixels = has_data = has_data or marker == 0xDA
    if not has_data:
        raise NotWhole(_NO_DATA)
    return file.position


def _png(file: FileBytes) -> _Steps[int]:
    yield from file.skip(8)
    has_data = False
    while True:
        size, kind = (yield from file.number(4)), (yield from file.read(4))
        if not kind.isalpha():
            raise NotWhole(_DAMAGED)
        yield from (file.comment if kind in _PNG_TEXTS else file.skip)(size)
        yield from file.skip(4)  # the checksum
        has_data = has_data or kind == b"IDAT"
        if kind == b"IEND":
            break
    if not has_data:
        raise NotWhole(_NO_DATA)
    return file.position


def _webp(file: FileBytes) -> _Steps[int]:
    yield from file.skip(4)
    size = int.from_bytes((yield from file.read(4)), "little")
    if size < 12:  # "WEBP" and the header of one chunk
        raise NotWhole(_NO_DATA)
    yield from file.skip(size)
    return file.position


def _gif(file: FileBytes) -> _Steps[int]:
    yield from file.skip(10)
    yield from file.skip(_gif_table((yield from file.number(1))) + 2)
    has_data = False
    while (kind := (yield from file.read(1))) != b";":
        if kind == b",":
            yield from file.skip(8)
            yield from file.skip(_gif_table((yield from file.number(1))) + 1)
            yield from file.sub_blocks()
            has_data = True
        elif kind == b"!" and (yield from file.read(1)) == b"\xfe":
            while size := (yield from file.number(1)):
                yield from file.comment(size)
        elif kind == b"!":
            yield from file.sub_blocks()
        elif kind != b"\0":  # some programs write one more end of a block
            raise NotWhole(_DAMAGED)
    if not has_data:
        raise NotWhole(_NO_DATA)
    return file.position


def _gif_table(flags: int) -> int:
    """The size of a table of colours."""
    return 6 << (flags & 7) if flags & 0x80 else 0


def _iso(file: FileBytes, index: frozenset[bytes]) -> _Steps[int]:
    """Boxes, to the end of the file. It needs a box of ``index`` and the data that this is about.

    What is no known box and longer than the file is data behind its end, if nothing is missing.
    """
    has_index = has_data = fragmented = False
    while True:
        start, kind, size = file.position, b"", -1
        try:
            size, kind = (yield from file.number(4)), (yield from file.read(4))
            header = 8
            if size == 1:
                size, header = (yield from file.number(8)), 16
            fits = size >= header or (size == 0 and kind in _BOXES)  # 0: to the end of the file
            if not fits and not (has_index and has_data):
                raise NotWhole(_DAMAGED)
            if kind == b"meta" and size and fits:
                # Small pictures have their data in here.
                text = yield from file.read(min(size - header, _COMMENT))
                header += len(text)
                has_data = has_data or b"idat" in text
            yield from file.skip(size - header if size and fits else _ENDLESS)
        except _Ended:
            if size == 0 and kind in _BOXES:
                start = file.position
                has_index, has_data = has_index or kind in index, has_data or kind == b"mdat"
            is_cut = start < file.position and (kind in _BOXES or (fragmented and not kind))
            if has_index and has_data and not is_cut:
                return start
            raise
        has_index = has_index or kind in index
        has_data = (has_data or kind == b"mdat") and kind != b"moof"
        fragmented = fragmented or kind == b"moof"


def _webm(file: FileBytes) -> _Steps[int]:
    """Elements to the end of the segment, which is the end of the file if its size is unknown."""
    has_data = False
    while True:
        start, kind = file.position, 0
        size: int | None = 0
        try:
            kind, _ = yield from _ebml_number(file)
            _, size = yield from _ebml_number(file)
            if kind == _SEGMENT and size == 0:
                raise NotWhole(_NO_DATA)
            if kind == _SEGMENT and size is None:
                continue  # its elements follow
            yield from file.skip(_ENDLESS if size is None else size)
        except _Ended:
            if has_data and file.position == start:
                return start
            if kind == _CLUSTER and size is None:
                return file.position
            raise
        if kind == _SEGMENT:
            return file.position
        has_data = has_data or kind == _CLUSTER


def _ebml_number(file: FileBytes) -> _Steps[tuple[int, int | None]]:
    """A number with and without the bit that tells its length; None without it: not known."""
    first = yield from file.number(1)
    if not first:
        raise NotWhole(_DAMAGED)
    more = 8 - first.bit_length()
    number = (first << 8 * more) + (yield from file.number(more))
    value = number - (1 << 7 * (more + 1))
    return number, None if value == (1 << 7 * (more + 1)) - 1 else value


def _video(file: FileBytes) -> _Steps[int]:
    return _iso(file, frozenset({b"moov"}))


def _still(file: FileBytes) -> _Steps[int]:
    return _iso(file, frozenset({b"meta", b"moov"}))


WALKS: dict[str, Callable[[FileBytes], _Steps[int]]] = {
    ".jpeg": _jpeg, ".png": _png, ".webp": _webp, ".gif": _gif, ".webm": _webm,
    ".mp4": _video, ".mov": _video, ".avif": _still, ".heic": _still,
}  # fmt: skip
