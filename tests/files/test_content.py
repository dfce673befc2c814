import hashlib
import os
import random
import struct
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from midapi_async.files.content import (
    EXTENSIONS,
    LONGEST_START,
    EndCheck,
    extension_of,
    looks_like,
    problem_of,
)

from .samples import (
    CLUSTER,
    EBML,
    INFO,
    LIVE,
    MATROSKA,
    SAMPLES,
    SCRIPT,
    SEGMENT,
    Sample,
    box,
    brands,
    chunk,
    element,
    gif,
    jpeg,
    pillow,
    png,
    segment,
)

CUT = "its end is missing"

each_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def blocks(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def check(extension: str, data: bytes, size: int = 1 << 18) -> tuple[str | None, str | None]:
    """What the check says of a file that comes in blocks of this size: problem and remark."""
    end = EndCheck(extension)
    for block in blocks(data, size):
        end.feed(block)
    return end.finish(), end.remark


# ------------------------------------------------------------------------------------- kinds


@pytest.mark.fault("D16")
@each_sample
def test_the_extension_comes_from_the_content(sample: Sample) -> None:
    """Of every kind, from the first bytes."""
    assert extension_of(sample.data) == sample.extension
    assert extension_of(sample.data[:LONGEST_START]) == sample.extension
    assert sample.extension in EXTENSIONS


def test_there_is_a_sample_of_each_kind() -> None:
    assert {sample.extension for sample in SAMPLES.values()} == {*EXTENSIONS}


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
OTHERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "an empty file"),
    "html": (b"<!DOCTYPE html><html><title>Just a moment", "an HTML page"),
    "html with blanks": (b"\xef\xbb\xbf \r\n\t<HTML><head>", "an HTML page"),
    "html with a comment": (b"<!-- fox --><html><svg>", "an HTML page"),
    "html in UTF-16": ("<html><body>".encode("utf-16"), "an HTML page"),
    "a script": (b"<script>alert(1)</script>", "an HTML page"),
    "svg": (SVG, "an SVG drawing"),
    "svg with a declaration": (b'<?xml version="1.0"?>\n<!-- fox -->\n' + SVG, "an SVG drawing"),
    "xml": (b"<?xml version='1.0'?><Error><Code>", "an HTML or XML document"),
    "json": (b'{"code":404,"msg":"File not found"}', "JSON"),
    "a Windows program": (b"MZ\x90\0\3", "a program"),
    "a Linux program": (b"\x7fELF\2\1\1", "a program"),
    "a macOS program": (b"\xcf\xfa\xed\xfe\7", "a program"),
    "a shell script": (b"#!/bin/sh\nrm", "a program"),
    "php": (b"<?php system($_GET[0]);", "a program"),
    "gzip": (b"\x1f\x8b\x08\0", "compressed data"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04", "compressed data"),
    "zip": (b"PK\3\4\x14\0", "compressed data"),
    "pdf": (b"%PDF-1.7", "a PDF document"),
    "tiff": (b"II*\0\x08\0\0\0", "a picture of another format"),
    "bmp": (b"BM\x36\0\0\0\0\0\0\0", "a picture of another format"),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "a picture of another format"),
    "jpeg xl": (b"\0\0\0\x0cJXL \r\n\x87\n", "a picture of another format"),
    "an audio file": (brands(b"M4A ", b"M4A ", b"mp42"), "a sound"),
    "mp3": (b"ID3\4", "a sound"),
    "a camera's raw picture": (brands(b"crx ", b"isom"), "a video or picture of another format"),
    "matroska": (MATROSKA + element(SEGMENT, b"x"), "a video or picture of another format"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "a video or picture of another format"),
    "text": ("Zugriff verweigert – später".encode(), "text"),
    "noise": (bytes(range(128, 200)) + b"\1\2\3", "unknown data"),
    "zeros": (bytes(600), "unknown data"),
    "the word ftyp": (b"The ftyp", "a video or picture of another format"),
}


@pytest.mark.fault("D9")
@pytest.mark.parametrize(("data", "words"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_picture_is_named_in_plain_words(
    data: bytes, words: str, tmp_path: Path
) -> None:
    """The error can say what came in place of the picture."""
    path = tmp_path / "fox.jpeg"
    path.write_bytes(data)
    assert extension_of(data) is None
    assert looks_like(data) == words
    assert problem_of(path) == f"it is {words}"


@pytest.mark.parametrize("sample", ["jpeg", "png", "webp", "gif", "mov", "webm"])
def test_a_start_that_is_too_short_has_no_extension(sample: str) -> None:
    """Less than its magic number proves nothing."""
    data = SAMPLES[sample].data
    known = [size for size in range(64) if extension_of(data[:size])]
    assert known == [*range(known[0], 64)]
    assert known[0] >= 3


@given(st.binary(max_size=LONGEST_START), st.sampled_from([*SAMPLES.values()]))
@example(b"<!--" + b"--><!--" * 70, SAMPLES["png"])
@example(b"\xff\xfe\xd8", SAMPLES["png"])
def test_any_start_has_a_kind_or_words(noise: bytes, sample: Sample) -> None:
    """Nothing in it makes the functions raise."""
    for start in (noise, sample.data[: len(noise)], sample.data[:8] + noise):
        assert extension_of(start) in {None, *EXTENSIONS}
        assert looks_like(start)


# -------------------------------------------------------------------------------------- ends


@pytest.mark.fault("D3")
@each_sample
@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_a_whole_file_is_whole_in_blocks_of_any_size(sample: Sample, size: int) -> None:
    assert check(sample.extension, sample.data, size) == (None, None)


@pytest.mark.fault("D3")
@each_sample
def test_a_file_that_is_cut_anywhere_is_not_whole(sample: Sample, tmp_path: Path) -> None:
    """Except where the format does not say that more should follow."""
    whole = len(sample.data)
    # The large ones are cut everywhere at both ends, and at some places in between.
    step = max(1, whole // 2000)
    sizes = {*range(600), *range(0, whole, step), *range(whole - 600, whole)} & {*range(whole)}
    found = {size for size in sizes if check(sample.extension, sample.data[:size])[0] is None}
    assert found == sample.unnoticed & sizes
    for size in (0, 1, whole // 2, whole - 1):
        path = tmp_path / "file"
        path.write_bytes(sample.data[:size])
        assert (problem_of(path) is None) == (size in sample.unnoticed)


@pytest.mark.fault("D3")
@each_sample
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_cut_is_noticed_in_blocks_of_any_size(sample: Sample, size: int) -> None:
    for cut in (1, 9, len(sample.data) // 2, len(sample.data) - 1):
        problem, _ = check(sample.extension, sample.data[:cut], size)
        assert problem == (None if cut in sample.unnoticed else CUT)


OPEN_ENDS = {"mp4, data to the end"}


@pytest.mark.fault("D13")
@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - OPEN_ENDS - {"webm, live"}))
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_data_behind_the_end_is_noticed(name: str, size: int) -> None:
    """The file is whole, and a remark says how much follows."""
    sample = SAMPLES[name]
    for behind in (SCRIPT, b"PK\3\4" * 1000, bytes(20)):
        found = check(sample.extension, sample.data + behind, size)
        assert found == (None, f"{len(behind):,} bytes stand behind its end")


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    ("name", "behind"),
    [
        *((name, b"\n") for name in ("mp4, its index last", "mov", "avif", "png", "jpeg", "webm")),
        ("mp4, its index last", struct.pack(">I4sQ", 1, b"\x80abc", 0)),
        ("mp4, its index last", struct.pack(">I4s", 5, b"junk")),
        ("mp4, its index last", struct.pack(">I4s", 0xFFFFFFFF, b"junk") + bytes(9)),
        ("mp4, in fragments", b"Content-Length: 5"),
    ],
)
def test_odd_data_behind_the_end_is_no_cut(name: str, behind: bytes) -> None:
    sample = SAMPLES[name]
    found = check(sample.extension, sample.data + behind)
    assert found == (None, f"{len(behind)} bytes stand behind its end")


@pytest.mark.fault("D3")
@pytest.mark.parametrize(
    ("name", "more"),
    [
        # Known boxes that do not fit: the file is cut, even if all that it needs is there.
        ("mp4, its index last", box(b"free", bytes(90))[:-1]),
        ("mp4, its index last", box(b"mdat", bytes(90))[:20]),
        ("mp4, its index last", struct.pack(">I4s", 7, b"moov")),
        ("mp4, in fragments", box(b"moof", bytes(16)) + box(b"mdat", bytes(90))[:8]),
        ("mp4, in fragments", box(b"moof", bytes(16))),
        ("mp4, in fragments", box(b"moof", bytes(16))[:5]),
        ("webm, live", element(CLUSTER, bytes(90))[:-1]),
    ],
)
def test_a_known_part_that_does_not_fit_is_a_cut(name: str, more: bytes) -> None:
    sample = SAMPLES[name]
    assert check(sample.extension, sample.data + more) == (CUT, None)


def test_a_live_video_of_one_cluster_ends_with_the_file() -> None:
    """Neither its segment nor its cluster says how long it is."""
    data = LIVE + element(CLUSTER, bytes(50), b"\xff")
    assert check(".webm", data) == (None, None)
    assert check(".webm", LIVE) == (CUT, None)


ISOM = brands(b"isom")
DAMAGED, NO_DATA = "it is damaged", "there is no picture in it"
WRONG_LENGTHS: dict[str, tuple[str, bytes, str]] = {
    "png, 2^32 - 1": (".png", png()[:8] + b"\xff\xff\xff\xffIHDR" + bytes(999), CUT),
    "png, no letters": (".png", png()[:8] + bytes(999), DAMAGED),
    "png, no data": (".png", png()[:33] + chunk(b"IEND"), NO_DATA),
    "jpeg, no data": (".jpeg", b"\xff\xd8\xff\xd9", NO_DATA),
    "jpeg, only a comment": (".jpeg", b"\xff\xd8" + segment(0xFE, b"x") + b"\xff\xd9", NO_DATA),
    "jpeg, 0": (".jpeg", b"\xff\xd8\xff\xe0\0\0" + jpeg(), DAMAGED),
    "jpeg, 1": (".jpeg", b"\xff\xd8\xff\xda\0\1" + jpeg(), DAMAGED),
    "webp, 0": (".webp", b"RIFF\0\0\0\0WEBPVP8 " + bytes(999), NO_DATA),
    "webp, no chunk": (".webp", b"RIFF\4\0\0\0WEBP" + bytes(999), NO_DATA),
    "webp, 2^32 - 1": (".webp", b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(999), CUT),
    "gif, no data": (".gif", gif()[:19] + b";", NO_DATA),
    "gif, another block": (".gif", gif(b"?"), DAMAGED),
    "mp4, 2": (".mp4", ISOM + b"\0\0\0\2moov" + bytes(999), DAMAGED),
    "mp4, 15 in 64 bits": (".mp4", ISOM + struct.pack(">I4sQ", 1, b"moov", 15), DAMAGED),
    "mp4, 2^64 - 1": (".mp4", ISOM + struct.pack(">I4sQ", 1, b"moov", 2**64 - 1), CUT),
    "mp4, 0": (".mp4", ISOM + struct.pack(">I4s", 0, b"free") + bytes(999), CUT),
    "mp4, only zeros": (".mp4", ISOM + bytes(999), DAMAGED),
    "avif, 2^32 - 1": (".avif", brands(b"avif") + b"\xff\xff\xff\xffmeta" + bytes(99), CUT),
    "avif, 5": (".avif", SAMPLES["avif"].data + b"\0\0\0\5meta" + bytes(99), CUT),
    "webm, 2^56 - 2": (".webm", EBML + SEGMENT + b"\x01" + b"\xff" * 6 + b"\xfe", CUT),
    "webm, 0": (".webm", EBML + SEGMENT + b"\x80", NO_DATA),
    "webm, a byte of 0": (".webm", EBML + bytes(999), DAMAGED),
    "webm, an unknown length": (".webm", LIVE + element(INFO, b"info", b"\xff"), CUT),
}


@pytest.mark.fault("D11")
@pytest.mark.parametrize(
    ("extension", "data", "problem"), WRONG_LENGTHS.values(), ids=WRONG_LENGTHS
)
def test_wrong_lengths_are_never_whole(extension: str, data: bytes, problem: str) -> None:
    for size in (1, 7, 4096):
        assert check(extension, data, size) == (problem, None)


# ----------------------------------------------------------------------------------- comments


COMMENTS: dict[str, tuple[str, bytes]] = {
    "jpeg, comment": (".jpeg", jpeg(segment(0xFE, b"x" + SCRIPT))),
    "jpeg, application data": (".jpeg", jpeg(segment(0xE1, b"http://ns" + SCRIPT))),
    "jpeg, php": (".jpeg", jpeg(segment(0xFE, b"<?php phpinfo();"))),
    "png, text": (".png", png(chunk(b"tEXt", b"Title\0" + SCRIPT))),
    "png, text of 100 kB": (".png", png(chunk(b"iTXt", SCRIPT + bytes(100_000)))),
    "gif, comment": (".gif", gif(b"!\xfe" + bytes([len(SCRIPT)]) + SCRIPT + b"\0")),
}


@pytest.mark.fault("D13")
@pytest.mark.parametrize(("extension", "data"), COMMENTS.values(), ids=COMMENTS)
def test_a_script_in_a_comment_is_noticed(extension: str, data: bytes) -> None:
    remark = "a script stands in its comments"
    for size in (1, 7, 4096):
        assert check(extension, data, size) == (None, remark)
        both = f"9 bytes stand behind its end, and {remark}"
        assert check(extension, data + b"<!-- x ->", size) == (None, both)


def test_a_script_in_the_picture_itself_is_chance() -> None:
    """Only comments are searched, and only 64 KiB of each."""
    assert check(".png", png(chunk(b"tEXt", bytes(65_536) + SCRIPT))) == (None, None)
    assert check(".png", png(chunk(b"IDAT", SCRIPT))) == (None, None)


# --------------------------------------------------------------------------------------- cost


TINY: dict[str, tuple[str, bytes]] = {
    "png chunks": (".png", png()[:33] + chunk(b"prVt") * 1_000_000),
    "png texts": (".png", png()[:33] + chunk(b"tEXt") * 1_000_000),
    "jpeg segments": (".jpeg", b"\xff\xd8" + segment(0xFE, b"") * 1_000_000),
    "jpeg markers": (".jpeg", b"\xff\xd8" + b"\xff\x01" * 1_000_000),
    "jpeg fill bytes": (".jpeg", b"\xff\xd8" + b"\xff" * 1_000_000),
    "gif data": (".gif", gif()[:-5] + b"\x01x" * 1_000_000 + b"\0;"),
    "gif extensions": (".gif", gif()[:19] + b"!\xf9\0" * 1_000_000),
    "gif comments": (".gif", gif()[:19] + b"!\xfe" + b"\1x" * 1_000_000),
    "gif zeros": (".gif", gif()[:19] + bytes(1_000_000)),
    "boxes": (".mp4", ISOM + box(b"free") * 1_000_000),
    "boxes of 64 bits": (".mov", ISOM + box(b"free", long=True) * 1_000_000),
    "boxes behind the end": (".mp4", ISOM + box(b"moov") + box(b"mdat") + box(b"junk") * 1_000_000),
    "indexes": (".heic", ISOM + box(b"meta") * 1_000_000),
    "elements": (".webm", EBML + b"\xec\x80" * 1_000_000),
    "clusters": (".webm", LIVE + element(CLUSTER, size=b"\x80") * 1_000_000),
}  # fmt: skip


@pytest.mark.fault("D11")
@pytest.mark.parametrize(("extension", "data"), TINY.values(), ids=TINY)
def test_a_million_tiny_parts_cost_little(extension: str, data: bytes) -> None:
    """Most are refused; a GIF's data may be in small parts."""
    started = time.process_time()
    problem, _ = check(extension, data)
    assert time.process_time() - started < 0.5
    assert problem in {"it has too many parts", CUT, None}
    assert (problem is None) == (data[-1:] == b";")


@pytest.mark.fault("D11")
def test_a_large_file_may_have_more_parts() -> None:
    """30,000 chunks of 4 KiB are a PNG of 120 MB; a program that writes it so does nothing odd."""
    assert check(".png", png(*[chunk(b"prVt")] * 4_000)) == (None, None)
    whole = png()
    check_end = EndCheck(".png")
    check_end.feed(whole[:33])
    for _ in range(300):
        check_end.feed(chunk(b"IDAT", bytes(4096)) * 100)
    check_end.feed(whole[33:])
    assert check_end.finish() is None


@pytest.mark.one_python
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_the_check_costs_no_more_than_some_hashes(format: str) -> None:
    """A download goes on at its own speed: blocks are not copied, and mostly not looked at."""
    noise = Image.frombytes("RGB", (800, 600), random.Random(5).randbytes(800 * 600 * 3))
    file = BytesIO()
    noise.save(file, format)
    data = file.getvalue()
    parts = [*blocks(data, 1 << 18)]

    def hashed() -> None:
        hash_ = hashlib.sha256()
        for part in parts:
            hash_.update(part)

    def checked() -> None:
        end = EndCheck(f".{format.lower()}")
        for part in parts:
            end.feed(part)
        assert end.finish() is None

    times: dict[object, float] = {}
    for function in (hashed, checked):
        for _ in range(5):
            started = time.process_time()
            function()
            took = time.process_time() - started
            times[function] = min(took, times.get(function, took))
    assert times[checked] < 3 * times[hashed]


PIXELS = b"\xff\xd8\xff\xda\0\2" + b"x\xff\0" * 50_000  # a JPEG without its end


@pytest.mark.fault("D13")
@pytest.mark.parametrize("behind", [b"<script>", b"<script>\xff\xd9", bytes(60_000) + b"\xff\xd9"])
def test_data_behind_a_jpeg_is_noticed_even_if_it_ends_like_one(behind: bytes) -> None:
    """The search is left out only if there is one end in the last 64 KiB."""
    check = EndCheck(".jpeg")
    for block in blocks(PIXELS + b"\xff\xd9" + behind, 7000):
        check.feed(block)
    assert check.finish() is None
    assert check.remark == f"{len(behind):,} bytes stand behind its end"


@pytest.mark.fault("D3")
def test_the_pixels_of_a_jpeg_are_held_back_and_need_no_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But not more than 8 MiB of them; a cut one is searched, and has no end."""
    sent: list[bytes | None] = []
    send = EndCheck._send

    def counted(self: EndCheck, block: bytes | None) -> None:
        sent.append(block)
        send(self, block)

    monkeypatch.setattr(EndCheck, "_send", counted)
    whole, cut, large = (EndCheck(".jpeg") for _ in range(3))
    for block in blocks(PIXELS + b"\xff\xd9", 4096):
        whole.feed(block)
    assert whole.finish() is None
    assert len(sent) == 2  # the first block, and the end
    for block in blocks(PIXELS, 4096):
        cut.feed(block)
    assert cut.finish() == "its end is missing"
    for _ in range(100):
        large.feed(PIXELS)
        assert large._held_size <= 8 << 20


# ------------------------------------------------------------------------------------- any bytes


def parts_of(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


@pytest.mark.fault("D11")
@given(
    st.sampled_from([*SAMPLES.values()]),
    st.binary(max_size=40),
    st.floats(0, 1),
    st.integers(0, 40),
    st.lists(st.integers(0, 300), max_size=30),
)
def test_any_bytes_in_any_blocks_have_one_verdict(
    sample: Sample, noise: bytes, place: float, removed: int, sizes: list[int]
) -> None:
    """A file that is changed anywhere never raises, and its blocks make no difference."""
    at = int(place * len(sample.data))
    data = sample.data[:at] + noise + sample.data[at + removed :]
    end = EndCheck(sample.extension)
    for part in parts_of(data, sizes):
        end.feed(part)
    assert (end.finish(), end.remark) == check(sample.extension, data)


@given(st.sampled_from(EXTENSIONS), st.binary(max_size=2000), st.integers(1, 100))
def test_noise_never_raises(extension: str, noise: bytes, size: int) -> None:
    assert check(extension, noise, size) == check(extension, noise)


# -------------------------------------------------------------------------------------- on disk


@each_sample
def test_a_whole_file_on_disk_has_no_problem(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "fox"
    path.write_bytes(sample.data)
    assert problem_of(path) is None
    path.write_bytes(sample.data + SCRIPT)
    expected = CUT if sample is SAMPLES["webm, live"] else None
    assert problem_of(path) == expected


def test_a_video_on_disk_is_not_read_as_a_whole(tmp_path: Path) -> None:
    """Its boxes say where the next one is: 4 GB of holes take no time, and a cut is noticed."""
    path = tmp_path / "fox.mp4"
    size = 4 << 30
    with path.open("wb") as file:
        file.write(ISOM + box(b"moov") + struct.pack(">I4sQ", 1, b"mdat", size))
        file.truncate(len(ISOM) + 8 + size)
    started = time.process_time()
    assert problem_of(path) is None
    os.truncate(path, size)
    assert problem_of(path) == CUT
    assert time.process_time() - started < 0.5


def test_what_stands_behind_the_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "fox.jpeg"
    path.write_bytes(jpeg())
    os.truncate(path, 4 << 30)
    started = time.process_time()
    assert problem_of(path) is None
    assert time.process_time() - started < 0.5


def test_a_file_that_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    assert problem_of(tmp_path / "fox") == "it cannot be read: No such file or directory"
    assert problem_of(tmp_path) == "it is not a file"
    assert "embedded null" in str(problem_of(tmp_path / "fox\0"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert problem_of(pipe) == "it is not a file"


def test_pillow_agrees_with_the_samples() -> None:
    """Pillow opens what we call whole, where it knows the format."""
    for extension, name in ((".jpeg", "JPEG"), (".png", "PNG"), (".gif", "GIF")):
        for sample in SAMPLES.values():
            if sample.extension == extension:
                with Image.open(BytesIO(sample.data)) as picture:
                    picture.load()
                    assert picture.format == name
    assert pillow("PNG")[:4] == b"\x89PNG"
