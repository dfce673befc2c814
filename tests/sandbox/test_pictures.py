import builtins
import io
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageStat

from midapi_async.sandbox import Sandbox
from midapi_async.sandbox._pictures import (
    Picture,
    _font,
    draw_jpeg,
    plain_jpeg,
    warn_without_pillow,
)
from midapi_async.sandbox._video import make_mp4

RATIOS = ("1:2", "9:16", "2:3", "3:4", "5:6", "6:5", "4:3", "3:2", "1:1", "16:9", "2:1")


def opened(data: bytes) -> Image.Image:
    """Give the decoded picture."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_aspect_ratio_is_respected(ratio: str) -> None:
    """The long side has 512 pixels, the other one what the ratio says."""
    width, height = opened(draw_jpeg(Picture("x", 0, ratio))).size
    across, down = (int(part) for part in ratio.split(":"))
    assert max(width, height) == 512
    assert across / down == pytest.approx(width / height, rel=0.01)


def test_pictures_look_different() -> None:
    """Each prompt and each index gives another picture, and always the same one."""
    shown = [Picture("a fox", 0), Picture("a fox", 1), Picture("a whale", 0)]
    drawn = [opened(draw_jpeg(picture)) for picture in shown]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        difference = ImageStat.Stat(ImageChops.difference(drawn[one], drawn[other]).convert("L"))
        assert difference.mean[0] > 20
    assert draw_jpeg(shown[0]) == draw_jpeg(Picture("a fox", 0))


@settings(max_examples=40, deadline=None)
@given(st.text(), st.sampled_from(RATIOS))
def test_any_text_can_be_drawn(prompt: str, ratio: str) -> None:
    """No prompt is too strange: whatever a str can hold gives a whole JPEG."""
    data = draw_jpeg(Picture(prompt, 0, ratio))
    assert data.endswith(b"\xff\xd9")


@pytest.mark.parametrize(
    "prompt", ["", "\ud800", "\x00\x1b[31m", "狐 🦊 مرحبا", "w" * 2000, "a " * 1000]
)
def test_strange_prompts(prompt: str) -> None:
    """Nothing, a lone surrogate, control characters, other scripts, one word without end."""
    assert opened(draw_jpeg(Picture(prompt, 3))).size == (512, 512)


def test_a_font_that_knows_latin_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FreeType, Pillow's font refuses other scripts: question marks are drawn."""
    real, drawn = ImageDraw.ImageDraw.text, []

    def latin_only(
        self: ImageDraw.ImageDraw, place: tuple[float, float], text: str, **options: object
    ) -> None:
        text.encode("latin-1")
        drawn.append(text)
        real(self, place, text, **options)  # type: ignore[arg-type]  # whatever it was given

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", latin_only)
    draw_jpeg(Picture("狐 fox", 0))
    assert drawn == ["? fox", "#0"]


def test_without_a_font_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that Pillow brings is taken."""
    monkeypatch.setattr("midapi_async.sandbox._pictures._FONTS", ("no-such-font.ttf",))
    _font.cache_clear()
    try:
        assert opened(draw_jpeg(Picture("füchse 狐", 0))).size == (512, 512)
    finally:
        _font.cache_clear()


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small valid JPEG, different bytes for different pictures."""
    real = builtins.__import__

    def without_pillow(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> object:
        if name == "PIL":
            raise ImportError(name)
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    data = draw_jpeg(Picture("a fox", 0))
    monkeypatch.undo()
    assert plain_jpeg(Picture("a fox", 0)) == data != plain_jpeg(Picture("a fox", 1))
    assert len(data) < 300
    assert data.endswith(b"\xff\xd9")
    assert opened(data).size == (8, 8)


async def test_without_pillow_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start of the first sandbox, with the command that helps; with Pillow it is not."""
    warn_without_pillow.cache_clear()
    async with Sandbox():
        pass
    assert not caplog.records
    monkeypatch.setitem(sys.modules, "PIL", None)
    for _ in range(2):
        async with Sandbox():
            assert len(caplog.messages) == 1
            draw_jpeg(Picture("a fox", 0))
    (message,) = caplog.messages
    assert 'pip install "midapi-async[sandbox]"' in message


CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl")


def boxes(data: bytes, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Give every box with its path; the lengths must add up exactly."""
    place = 0
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        assert 8 <= length <= len(data) - place
        body = data[place + 8 : place + length]
        name = f"{path}/{kind.decode()}"
        yield name, body
        if kind in CONTAINERS:
            yield from boxes(body, name)
        place += length
    assert len(data) == place


def test_a_video_has_valid_boxes() -> None:
    """ftyp, moov and mdat; the one sample is found where stco says, and is the picture."""
    picture = Picture("a fox", 0, "16:9")
    jpeg = draw_jpeg(picture)
    data = make_mp4(jpeg, picture.size)
    found = dict(boxes(data))
    assert [name for name in found if name.count("/") == 1] == ["/ftyp", "/moov", "/mdat"]
    stbl = "/moov/trak/mdia/minf/stbl"
    start = struct.unpack(">I", found[f"{stbl}/stco"][8:])[0]
    _, count, length = struct.unpack(">3I", found[f"{stbl}/stsz"][4:])
    assert count == 1
    assert jpeg == data[start : start + length] == found["/mdat"]
    width, height = struct.unpack(">2I", found["/moov/trak/tkhd"][-8:])
    assert picture.size == (width >> 16, height >> 16)
    assert len(found["/moov/mvhd"]) == 100
    assert len(found["/moov/trak/tkhd"]) == 84
    assert len(found["/moov/trak/mdia/mdhd"]) == 24
    entry = found[f"{stbl}/stsd"][8:]
    assert entry[4:8] == b"mp4v"
    assert len(entry) == struct.unpack(">I", entry[:4])[0]
    assert entry[8 + 78 + 4 : 8 + 78 + 8] == b"esds"
