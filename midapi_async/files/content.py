"""What kind a file is, told by its first bytes, and whether its end is there.

Neither the server's file name nor its Content-Type is believed, and a file that was cut without a
Content-Length looks like a whole one until its last bytes are looked for. Nothing here decodes a
picture, so a small file that stands for billions of pixels costs nothing.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeAlias, TypeVar

EXTENSIONS = (".jpeg", ".png", ".webp", ".gif", ".webm", ".mp4", ".mov", ".avif", ".heic")
LONGEST_START = 512
"""As many of a file's first bytes as `extension_of` and `looks_like` want to see."""

_BLOCK = 1 << 20  # of a file on disk
_MOST_STEPS = 10_000  # from chunk to chunk; plus one for each KiB, which real files stay far below
_COMMENT = 64 * 1024  # bytes of a comment that are searched for a script
_SCRIPT = re.compile(rb"<script|<\?php", re.IGNORECASE)
_DAMAGED, _NO_DATA = "it is damaged", "there is no picture in it"
_ENDLESS = 1 << 64
_PNG_TEXTS = {b"tEXt", b"iTXt", b"zTXt"}
_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra meta free skip wide uuid udta pdin sidx ssix emsg prft".split()
)
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675

_MAGIC = (
    (re.compile(rb"\xff\xd8\xff"), ".jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp"),
    (re.compile(rb"GIF8[79]a"), ".gif"),
    # EBML with the document type "webm"; other Matroska files are not shown by browsers.
    (re.compile(rb"\x1a\x45\xdf\xa3.{,256}\x42\x82.{1,8}webm", re.DOTALL), ".webm"),
)  # fmt: skip
_BRANDS = {  # of an ISO file ("ftyp"); whatever is not here is a video
    b"avif": ".avif", b"avis": ".avif",
    b"heic": ".heic", b"heix": ".heic", b"heim": ".heic", b"heis": ".heic", b"hevc": ".heic",
    b"hevx": ".heic", b"hevm": ".heic", b"hevs": ".heic",
    b"qt  ": ".mov",
    # Audio, a camera's raw picture, JPEG 2000 and JPEG XL.
    b"M4A ": None, b"M4B ": None, b"M4P ": None, b"F4A ": None, b"F4B ": None, b"crx ": None,
    b"jp2 ": None, b"jpx ": None, b"jxl ": None,
}  # fmt: skip
_FAMILIES = {b"mif1", b"msf1", b"miaf"}  # says only that it is a picture: other brands say which

# For an error's text: how other files begin.
_OTHERS = (
    (
        "a picture of another format",
        rb"BM....\0\0\0\0|II\*\0|MM\0\*|8BPS|\0\0\1\0|\xff\x0a|....(JXL |jP  )",
    ),
    ("a sound", rb"....ftyp(M4|F4)|ID3|OggS|fLaC|RIFF....WAVE|\xff[\xf2-\xfb]"),
    ("a video or picture of another format", rb"\x1a\x45\xdf\xa3|RIFF....AVI |FLV\1|....ftyp"),
    ("compressed data", rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ|PK\3\4|7z\xbc\xaf|Rar!"),
    ("a program", rb"MZ|\x7fELF|[\xce\xcf]\xfa\xed\xfe|\xca\xfe\xba\xbe|#!|<\?php"),
    ("a PDF document", rb"%PDF"),
    ("JSON", rb"[{\[]"),
)
_PAGE = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title", b"<meta")


def extension_of(start: bytes) -> str | None:
    """The extension for a file's content, from its first bytes; None if it is not one of ours."""
    for pattern, extension in _MAGIC:
        if pattern.match(start):
            return extension
    if start[4:8] != b"ftyp" or len(start) < 12:
        return None
    size = int.from_bytes(start[:4], "big")
    major, others = start[8:12], [start[at : at + 4] for at in range(16, min(size, len(start)), 4)]
    if major in _FAMILIES:
        return ".avif" if {b"avif", b"avis"} & {*others} else ".heic"
    return _BRANDS.get(major, ".mp4")


def looks_like(start: bytes) -> str:
    """What a file that is neither a picture nor a video seems to be, for an error's text."""
    if not start:
        return "an empty file"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        start = start[:LONGEST_START].decode("utf-16", "replace").encode()
    start = start[:LONGEST_START].removeprefix(b"\xef\xbb\xbf").lstrip() or b" "
    for words, pattern in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            return words
    if start.startswith(b"<"):
        page = start.lower()
        if any(tag in page for tag in _PAGE):
            return "an HTML page"
        return "an SVG drawing" if b"<svg" in page else "an HTML or XML document"
    text = start.decode(errors="ignore")
    return "text" if all(each.isprintable() or each.isspace() for each in text) else "unknown data"


class EndCheck:
    """Looks for a file's end while the file passes by, whatever the sizes of its blocks.

    Args:
        extension: what `extension_of` gave for it.
    """

    remark: str | None
    """After `finish`: what is odd about a whole file, in a few words."""

    def __init__(self, extension: str) -> None:
        self.remark = None
        self._bytes = _Bytes()
        self._problem: str | None = None
        self._ends_at: int | None = None
        self._walk = _WALKS[extension](self._bytes)
        next(self._walk)

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the file."""
        if block:
            self._send(block)

    @property
    def not_needed(self) -> int:
        """As many of the next bytes will not be looked at; the last one to skip ends the step."""
        return max(0, self._bytes.to_skip - 1)

    def skip(self, size: int) -> None:
        """Stands for `feed` with the next bytes of the file, at most `not_needed`."""
        self._bytes.to_skip -= size
        self._bytes.before += size

    def finish(self) -> str | None:
        """After the last block: None if the file is whole, else why not, in a few words."""
        self._send(None)
        if self._problem is None and self._ends_at is not None:
            remarks = ["a script stands in its comments"] if self._bytes.script else []
            if behind := self._bytes.before - self._ends_at:
                remarks.insert(0, f"{behind:,} bytes stand behind its end")
            self.remark = ", and ".join(remarks) or None
        return self._problem

    def _send(self, block: bytes | None) -> None:
        if self._ends_at is None and self._problem is None:
            try:
                self._walk.send(block)
            except StopIteration as stop:
                self._ends_at = stop.value
                # The rest of this block stands behind the file's end.
                self._bytes.before += len(self._bytes.block)
            except _NotWhole as problem:
                self._problem = str(problem)
        elif block is not None:
            self._bytes.before += len(block)


def problem_of(path: Path) -> str | None:
    """Why a file on disk is not a whole picture or video, in a few words; None if it is one."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "it is not a file"
        with path.open("rb") as file:
            block = file.read(_BLOCK)
            if (extension := extension_of(block[:LONGEST_START])) is None:
                return f"it is {looks_like(block)}"
            check = EndCheck(extension)
            while block:
                check.feed(block)
                # Most of a file need not be read: only a JPEG's end is known by its content.
                size = max(0, min(check.not_needed, status.st_size - file.tell()))
                file.seek(size, 1)
                check.skip(size)
                block = file.read(_BLOCK)
            return check.finish()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return f"it cannot be read: {getattr(error, 'strerror', None) or error}"


# -------------------------------------------------------- walking through a file, block by block


class _NotWhole(Exception):
    """The file is not whole; the text says why."""


class _Ended(_NotWhole):
    """The file ended where more was needed."""


_T = TypeVar("_T")
_Steps: TypeAlias = Generator[None, bytes | None, _T]
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # no such pair stands in compressed data


class _Bytes:
    """A file for a generator, which yields where it needs the next block and is sent it."""

    def __init__(self) -> None:
        self.block = b""
        self.at = 0  # how far the block was used
        self.before = 0  # bytes of the file before the block
        self.to_skip = 0
        self.steps = 0
        self.script = False

    @property
    def position(self) -> int:
        return self.before + self.at

    def step(self) -> None:
        """Counts the chunks and boxes, so that a file of tiny ones keeps nobody busy."""
        self.steps += 1
        if self.steps > _MOST_STEPS + self.position // 1024:
            raise _NotWhole("it has too many parts")

    def more(self) -> _Steps[None]:
        self.before += len(self.block)
        self.block, self.at = b"", 0
        block = yield
        if block is None:
            raise _Ended("its end is missing")
        self.block = block

    def read(self, size: int) -> _Steps[bytes]:
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
        return int.from_bytes((yield from self.read(size)), "big")

    def skip(self, size: int) -> _Steps[None]:
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


# Each gives the position of the file's end, or raises _NotWhole. They read and skip only, so that
# each step moves on, and none of them needs more memory than for one comment.


def _jpeg(file: _Bytes) -> _Steps[int]:
    yield from file.skip(2)
    has_data = False
    while (marker := (yield from file.marker())) != 0xD9:
        if marker < 0xC0 or 0xF0 <= marker <= 0xFD or marker == 0xD8:
            continue  # has no length
        size = (yield from file.number(2)) - 2
        if size < 0:
            raise _NotWhole(_DAMAGED)
        yield from (file.comment if marker >= 0xE0 else file.skip)(size)
        has_data = has_data or marker == 0xDA
    if not has_data:
        raise _NotWhole(_NO_DATA)
    return file.position


def _png(file: _Bytes) -> _Steps[int]:
    yield from file.skip(8)
    has_data = False
    while True:
        size, kind = (yield from file.number(4)), (yield from file.read(4))
        if not kind.isalpha():
            raise _NotWhole(_DAMAGED)
        yield from (file.comment if kind in _PNG_TEXTS else file.skip)(size)
        yield from file.skip(4)  # the checksum
        has_data = has_data or kind == b"IDAT"
        if kind == b"IEND":
            break
    if not has_data:
        raise _NotWhole(_NO_DATA)
    return file.position


def _webp(file: _Bytes) -> _Steps[int]:
    yield from file.skip(4)
    size = int.from_bytes((yield from file.read(4)), "little")
    if size < 12:  # "WEBP" and the header of one chunk
        raise _NotWhole(_NO_DATA)
    yield from file.skip(size)
    return file.position


def _gif(file: _Bytes) -> _Steps[int]:
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
        else:
            raise _NotWhole(_DAMAGED)
    if not has_data:
        raise _NotWhole(_NO_DATA)
    return file.position


def _gif_table(flags: int) -> int:
    """The size of a table of colours."""
    return 6 << (flags & 7) if flags & 0x80 else 0


def _iso(file: _Bytes, index: frozenset[bytes]) -> _Steps[int]:
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
                raise _NotWhole(_DAMAGED)
            if kind == b"meta" and size:
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


def _webm(file: _Bytes) -> _Steps[int]:
    """Elements to the end of the segment, which is the end of the file if its size is unknown."""
    has_data = False
    while True:
        start, kind = file.position, 0
        size: int | None = None
        try:
            kind, _ = yield from _ebml_number(file)
            _, size = yield from _ebml_number(file)
            if kind == _SEGMENT and size == 0:
                raise _NotWhole(_NO_DATA)
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


def _ebml_number(file: _Bytes) -> _Steps[tuple[int, int | None]]:
    """A number with and without the bit that tells its length; None without it: not known."""
    first = yield from file.number(1)
    if not first:
        raise _NotWhole(_DAMAGED)
    more = 8 - first.bit_length()
    number = (first << 8 * more) + (yield from file.number(more))
    value = number - (1 << 7 * (more + 1))
    return number, None if value == (1 << 7 * (more + 1)) - 1 else value


def _video(file: _Bytes) -> _Steps[int]:
    return _iso(file, frozenset({b"moov"}))


def _still(file: _Bytes) -> _Steps[int]:
    return _iso(file, frozenset({b"meta", b"moov"}))


_WALKS: dict[str, Callable[[_Bytes], _Steps[int]]] = {
    ".jpeg": _jpeg, ".png": _png, ".webp": _webp, ".gif": _gif, ".webm": _webm,
    ".mp4": _video, ".mov": _video, ".avif": _still, ".heic": _still,
}  # fmt: skip
