"""A small MP4 file around one JPEG picture: valid boxes, one long frame."""

import struct
from typing import Final

_TIMESCALE: Final = 1000
_DURATION: Final = 5000
_MATRIX: Final = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
# Object type 0x6C of MPEG-4 systems: JPEG pictures as a visual stream.
_JPEG_STREAM: Final = 0x6C
_VISUAL_STREAM: Final = 0x11


def make_mp4(jpeg: bytes, size: tuple[int, int]) -> bytes:
    """Give an MP4 file that shows this JPEG for five seconds; ``size`` in pixels."""
    brands = _box(b"ftyp", b"isom", struct.pack(">I", 0x200), b"isom", b"mp41")
    # The picture's place stands in moov, whose length does not depend on it.
    start = len(brands) + len(_movie(jpeg, size, 0)) + 8
    return brands + _movie(jpeg, size, start) + _box(b"mdat", jpeg)


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def _full_box(kind: bytes, *parts: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags), *parts)


def _movie(jpeg: bytes, size: tuple[int, int], start: int) -> bytes:
    times = struct.pack(">4I", 0, 0, _TIMESCALE, _DURATION)
    rate = struct.pack(">IH10x", 0x10000, 0x100)
    header = _full_box(b"mvhd", times, rate, _MATRIX, bytes(24), struct.pack(">I", 2))
    return _box(b"moov", header, _track(jpeg, size, start))


def _track(jpeg: bytes, size: tuple[int, int], start: int) -> bytes:
    width, height = size
    place = struct.pack(">5I", 0, 0, 1, 0, _DURATION) + bytes(16)
    pixels = struct.pack(">2I", width << 16, height << 16)
    header = _full_box(b"tkhd", place, _MATRIX, pixels, flags=3)
    return _box(b"trak", header, _media(jpeg, size, start))


def _media(jpeg: bytes, size: tuple[int, int], start: int) -> bytes:
    times = struct.pack(">4IHH", 0, 0, _TIMESCALE, _DURATION, 0x55C4, 0)
    handler = _full_box(b"hdlr", struct.pack(">I4s12x", 0, b"vide"), b"video\0")
    reference = _full_box(b"dref", struct.pack(">I", 1), _full_box(b"url ", flags=1))
    information = _box(
        b"minf",
        _full_box(b"vmhd", bytes(8), flags=1),
        _box(b"dinf", reference),
        _samples(jpeg, size, start),
    )
    return _box(b"mdia", _full_box(b"mdhd", times), handler, information)


def _samples(jpeg: bytes, size: tuple[int, int], start: int) -> bytes:
    one = struct.pack(">I", 1)
    return _box(
        b"stbl",
        _full_box(b"stsd", one, _visual_entry(size, len(jpeg))),
        _full_box(b"stts", one, struct.pack(">2I", 1, _DURATION)),
        _full_box(b"stsc", one, struct.pack(">3I", 1, 1, 1)),
        _full_box(b"stsz", struct.pack(">3I", 0, 1, len(jpeg))),
        _full_box(b"stco", one, struct.pack(">I", start)),
    )


def _visual_entry(size: tuple[int, int], length: int) -> bytes:
    width, height = size
    head = struct.pack(">6xH16x2H", 1, width, height)
    resolution = struct.pack(">3IH", 0x480000, 0x480000, 0, 1)
    tail = bytes(32) + struct.pack(">Hh", 24, -1)
    return _box(b"mp4v", head, resolution, tail, _full_box(b"esds", _descriptor(length)))


def _descriptor(length: int) -> bytes:
    """Give the elementary stream descriptor: a decoder for JPEG, with no configuration."""
    stream = _JPEG_STREAM, _VISUAL_STREAM, length.to_bytes(3, "big")
    decoder = struct.pack(">BB3sII", *stream, length * 8, length * 8)
    body = struct.pack(">HB", 1, 0) + _tagged(4, decoder) + _tagged(6, b"\x02")
    return _tagged(3, body)


def _tagged(tag: int, body: bytes) -> bytes:
    return bytes((tag, len(body))) + body
