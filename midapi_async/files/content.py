"""What kind a file is, told by its first bytes, and whether its end is there.

Neither the server's file name nor its Content-Type is believed, and a file that was cut without a
Content-Length looks like a whole one until its last bytes are looked for. Nothing here decodes a
picture, so a small file that stands for billions of pixels costs nothing.
"""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path

from .walks import WALKS, FileBytes, NotWhole

EXTENSIONS = (".jpeg", ".png", ".webp", ".gif", ".webm", ".mp4", ".mov", ".avif", ".heic")
_MOST_HELD, _TAIL, _JPEG_END = 8 << 20, 64 << 10, b"\xff\xd9"  # see EndCheck
LONGEST_START = 512
"""As many of a file's first bytes as `extension_of` and `looks_like` want to see."""

_BLOCK = 1 << 20  # of a file on disk

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
        rb"BM....\0\0\0\0|II\*\0|MM\0\*|8BPS|\0\0\x01\0|\xff\x0a|....(JXL |jP  )",
    ),
    ("a sound", rb"....ftyp(M4|F4)|ID3|OggS|fLaC|RIFF....WAVE|\xff[\xf2-\xfb]"),
    ("a video or picture of another format", rb"\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|....ftyp"),
    ("compressed data", rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ|PK\x03\x04|7z\xbc\xaf|Rar!"),
    ("a program", rb"MZ|\x7fELF|[\xce\xcf]\xfa\xed\xfe|\xca\xfe\xba\xbe|#!|<\?php"),
    ("a PDF document", rb"%PDF"),
    ("JSON", rb"[{\[]"),
)
_PAGES = re.compile(rb"<(?:(?:!doctype )?html|head|body)|(?P<svg><svg)|<(?:script|title|meta)")


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
        if not (found := _PAGES.search(start.lower())):
            return "an HTML or XML document"
        return "an SVG drawing" if found["svg"] else "an HTML page"
    text = start.decode(errors="ignore")
    return "text" if all(each.isprintable() or each.isspace() for each in text) else "unknown data"


class EndCheck:
    """Looks for a file's end while the file passes by, whatever the sizes of its blocks.

    The pixels of a JPEG have to be searched for its end, which takes a third of the time of a fast
    download. So they are held back, 8 MiB at most: if their last bytes are an end, and the only one
    in the last 64 KiB, the search can be left out.

    Args:
        extension: what `extension_of` gave for it.
    """

    remark: str | None
    """After `finish`: what is odd about a whole file, in a few words."""

    def __init__(self, extension: str) -> None:
        self.remark = None
        self._bytes = FileBytes()
        self._problem: str | None = None
        self._ends_at: int | None = None
        self._held: list[bytes] = []
        self._held_size = 0
        self._walk = WALKS[extension](self._bytes)
        next(self._walk)

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the file."""
        if not block:
            return
        is_walking = self._ends_at is None and self._problem is None
        if is_walking and self._bytes.in_pixels and self._held_size + len(block) <= _MOST_HELD:
            self._held.append(block)
            self._held_size += len(block)
            return
        self._search()
        self._send(block)

    def _search(self) -> None:
        """Search what was held back."""
        held, self._held, self._held_size = self._held, [], 0
        for block in held:
            self._send(block)

    def _ends_plainly(self) -> bool:
        """Whether what was held back ends like a JPEG, with nothing behind it."""
        size, count = 0, 0
        while count < len(self._held) and size < _TAIL:
            count += 1
            size += len(self._held[-count])
        tail = b"".join(self._held[len(self._held) - count :])[-_TAIL:]
        return tail.endswith(_JPEG_END) and tail.find(_JPEG_END) == len(tail) - len(_JPEG_END)

    @property
    def not_needed(self) -> int:
        """As many of the next bytes make no difference."""
        if self._ends_at is not None or self._problem is not None:
            return sys.maxsize
        if self._held:
            return 0
        return max(0, self._bytes.to_skip - 1)  # the last one ends the step

    def skip(self, size: int) -> None:
        """Do without the next bytes of the file, at most `not_needed`, instead of `feed`."""
        self._bytes.to_skip -= size
        self._bytes.before += size

    def finish(self) -> str | None:
        """After the last block: None if the file is whole, else why not, in a few words."""
        if self._ends_plainly():
            self._bytes.before += len(self._bytes.block) + self._held_size
            self._ends_at, self._bytes.block = self._bytes.before, b""
        else:
            self._search()
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
            except NotWhole as problem:
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
