"""Small whole files of each kind, and the builders of their parts."""

import io
import struct
import zlib
from typing import NamedTuple

from PIL import Image

from midapi_async.sandbox._pictures import Picture, draw_jpeg, plain_jpeg
from midapi_async.sandbox._video import make_mp4

SCRIPT = b"<ScRiPt>alert(1)</script>"


class Sample(NamedTuple):
    extension: str
    data: bytes
    unnoticed: frozenset[int] = frozenset()
    """Lengths to which it can be cut without losing what it says of itself."""


def pillow(format: str, **options: object) -> bytes:
    """A picture of 40 × 30 pixels."""
    picture = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    """A PNG of one grey pixel, with further chunks before its data."""
    header = chunk(b"IHDR", struct.pack(">2I5B", 1, 1, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0\x80"))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND")


def segment(marker: int, data: bytes) -> bytes:
    """One segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(*segments: bytes) -> bytes:
    """A JPEG with further segments at its beginning."""
    plain = plain_jpeg(Picture("a fox", 0))
    return plain[:2] + b"".join(segments) + plain[2:]


def gif(*blocks: bytes) -> bytes:
    """A GIF of one pixel, with further blocks before its data."""
    start = b"GIF89a" + struct.pack("<2H3B", 1, 1, 0x80, 0, 0) + bytes(6)
    picture = b"," + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return start + b"".join(blocks) + picture + b";"


def box(kind: bytes, data: bytes = b"", *, long: bool = False) -> bytes:
    """One box of an ISO file; ``long`` with a length of 64 bits."""
    if long:
        return struct.pack(">I4sQ", 1, kind, len(data) + 16) + data
    return struct.pack(">I4s", len(data) + 8, kind) + data


def brands(major: bytes, *others: bytes) -> bytes:
    """The box that an ISO file begins with."""
    return box(b"ftyp", major + bytes(4) + b"".join(others))


def element(kind: bytes, data: bytes = b"", size: bytes | None = None) -> bytes:
    """One element of a WebM file; with ``size``, which may say that it is not known."""
    return kind + (size or struct.pack(">Q", 1 << 56 | len(data))) + data


EBML = element(b"\x1a\x45\xdf\xa3", b"\x42\x86\x81\x01\x42\x82\x84webm")
MATROSKA = element(b"\x1a\x45\xdf\xa3", b"\x42\x86\x81\x01\x42\x82\x88matroska")
SEGMENT, CLUSTER, INFO = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\x15\x49\xa9\x66"
LIVE = EBML + element(SEGMENT, size=b"\x01" + b"\xff" * 7) + element(INFO, b"info")

_PICTURE = Picture("a red fox in the snow", 2, "3:2")
_MP4 = make_mp4(plain_jpeg(_PICTURE), _PICTURE.size)
_ISOM = brands(b"isom", b"isom", b"mp42")
_MOOV, _MDAT = box(b"moov", bytes(40)), box(b"mdat", bytes(60))
_FRAGMENT = box(b"moof", bytes(16)) + box(b"mdat", bytes(30))
_TO_THE_END = _ISOM + _MOOV + struct.pack(">I4s", 0, b"mdat")

SAMPLES: dict[str, Sample] = {
    "jpeg": Sample(".jpeg", pillow("JPEG")),
    "jpeg, progressive": Sample(".jpeg", pillow("JPEG", progressive=True, comment=b"a comment")),
    "jpeg, with restarts": Sample(".jpeg", pillow("JPEG", restart_marker_blocks=1)),
    "jpeg, with a thumbnail": Sample(".jpeg", jpeg(segment(0xE1, b"Exif\0\0" + pillow("JPEG")))),
    "jpeg, with fill bytes": Sample(".jpeg", pillow("JPEG")[:-2] + b"\xff\xff\xff\xd9"),
    "jpeg, with a stray marker": Sample(".jpeg", jpeg()[:-2] + b"\xff\x01\xff\xd9"),
    "jpeg, with a stray byte": Sample(".jpeg", jpeg(segment(0xFE, b"\xff") + b"\xd9")),
    "jpeg of the sandbox": Sample(".jpeg", draw_jpeg(_PICTURE)),
    "jpeg of the sandbox, without Pillow": Sample(".jpeg", plain_jpeg(_PICTURE)),
    "png": Sample(".png", pillow("PNG")),
    "png, with a text": Sample(".png", png(chunk(b"tEXt", b"Title\0A fox"))),
    "png, moving": Sample(
        ".png", pillow("PNG", save_all=True, append_images=[Image.new("RGB", (40, 30), "red")])
    ),
    "webp": Sample(".webp", pillow("WEBP")),
    "webp, lossless": Sample(".webp", pillow("WEBP", lossless=True, exif=b"Exif\0\0MM\0*")),
    "gif": Sample(".gif", pillow("GIF", comment=b"a comment")),
    "gif, moving": Sample(
        ".gif", pillow("GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), "red")])
    ),
    "gif of one pixel": Sample(".gif", gif()),
    "mp4 of the sandbox": Sample(".mp4", make_mp4(draw_jpeg(_PICTURE), _PICTURE.size)),
    "mp4 of the sandbox, without Pillow": Sample(".mp4", _MP4),
    "mp4, its index last": Sample(".mp4", _ISOM + box(b"free") + _MDAT + _MOOV),
    "mp4, 64-bit length": Sample(".mp4", _ISOM + _MOOV + box(b"mdat", bytes(60), long=True)),
    "mp4, data to the end": Sample(
        ".mp4", _TO_THE_END + bytes(30), frozenset(range(len(_TO_THE_END), len(_TO_THE_END) + 30))
    ),
    "mp4, in fragments": Sample(
        ".mp4",
        brands(b"iso5", b"dash") + _MOOV + _FRAGMENT + _FRAGMENT,
        frozenset({len(brands(b"iso5", b"dash") + _MOOV + _FRAGMENT)}),
    ),
    "mov": Sample(".mov", brands(b"qt  ", b"qt  ") + box(b"wide") + _MDAT + _MOOV),
    "avif": Sample(".avif", brands(b"avif", b"mif1", b"avif") + box(b"meta", bytes(40)) + _MDAT),
    "avif, moving": Sample(".avif", brands(b"avis", b"avif", b"msf1") + _MOOV + _MDAT),
    "avif, its data in its index": Sample(
        ".avif", brands(b"mif1", b"avif") + box(b"meta", bytes(4) + box(b"idat", bytes(30)))
    ),
    "heic": Sample(".heic", brands(b"heic", b"mif1", b"heic") + box(b"meta", bytes(40)) + _MDAT),
    "heic, of a family": Sample(
        ".heic", brands(b"mif1", b"heic") + box(b"meta", bytes(40)) + _MDAT
    ),
    "webm": Sample(
        ".webm", EBML + element(SEGMENT, element(INFO, b"info") + element(CLUSTER, bytes(40)))
    ),
    "webm, short lengths": Sample(
        ".webm",
        b"\x1a\x45\xdf\xa3\x87\x42\x82\x84webm\xec\x81\0" + element(SEGMENT, bytes(9), b"\x89"),
    ),
    "webm, live": Sample(
        ".webm",
        LIVE + element(CLUSTER, bytes(20)) + element(CLUSTER, bytes(30)),
        frozenset({len(LIVE + element(CLUSTER, bytes(20)))}),
    ),
}  # fmt: skip
"""By a name for the test's id."""
