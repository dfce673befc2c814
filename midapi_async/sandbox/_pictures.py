"""Pictures that a person can tell apart, drawn from the prompt.

Pillow is imported when the first one is drawn; without it every picture is one small grey
JPEG, told apart only by a comment in its bytes.
"""

import io
import logging
import textwrap
from base64 import b64decode
from colorsys import hls_to_rgb
from contextlib import suppress
from functools import cache, lru_cache
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

_LOG: Final = logging.getLogger(__name__)
_LONG_SIDE: Final = 512
_MARGIN: Final = 24
_LINES: Final = 7
_SHAPES: Final = 7
_QUALITY: Final = 80
_FONTS: Final = ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf", "NotoSans-Regular.ttf")

# 8 × 8 grey pixels, made once with Pillow.
_PLAIN_JPEG: Final = b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERX"
    "RTc4UG1RV19iZ2hnPk1xeXBkeFxlZ2P/wAALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/EABQQAQAA"
    "AAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AP//Z"
)


@frozen
class Picture:
    """What a picture shows: equal values give equal bytes."""

    prompt: str
    index: int
    """0-based place among the pictures of its task."""
    aspect_ratio: str = "1:1"
    """Width to height, as "16:9"."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; the long side is 512."""
        width, height = (int(part) for part in self.aspect_ratio.split(":"))
        scale = _LONG_SIDE / max(width, height)
        return round(width * scale), round(height * scale)

    @property
    def digest(self) -> bytes:
        """A hash of all that the picture shows."""
        text = f"{self.aspect_ratio}\n{self.index}\n{self.prompt}"
        return sha256(text.encode("utf-8", "surrogatepass")).digest()


@cache
def warn_without_pillow() -> None:
    """Say that the pictures are placeholders, once in this process."""
    _LOG.warning(
        "The sandbox's pictures are grey placeholders, since Pillow is missing: "
        'pip install "midapi-async[sandbox]"'
    )


def draw_jpeg(picture: Picture) -> bytes:
    """Give the picture as a JPEG file; takes some milliseconds and does no I/O."""
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        warn_without_pillow()
        return plain_jpeg(picture)
    chance = Random(picture.digest)
    image = Image.new("RGB", picture.size, _colour(chance, 0.25))
    pencil = ImageDraw.Draw(image)
    _draw_shapes(pencil, picture.size, chance)
    _draw_text(pencil, picture)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def plain_jpeg(picture: Picture) -> bytes:
    """Give a valid JPEG file without Pillow: grey, with the picture's hash as its comment."""
    comment = picture.digest.hex().encode()
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    return _PLAIN_JPEG[:2] + segment + _PLAIN_JPEG[2:]


def _colour(chance: Random, lightness: float) -> tuple[int, int, int]:
    red, green, blue = hls_to_rgb(chance.random(), lightness, 0.6)
    return int(red * 255), int(green * 255), int(blue * 255)


def _draw_shapes(pencil: "ImageDraw.ImageDraw", size: tuple[int, int], chance: Random) -> None:
    """Draw circles, bars and triangles wherever chance puts them."""
    width, height = size
    for _ in range(_SHAPES):
        x, y = chance.uniform(0, width), chance.uniform(0, height)
        reach = chance.uniform(0.1, 0.35) * min(size)
        colour = _colour(chance, chance.uniform(0.35, 0.65))
        box = (x - reach, y - reach, x + reach, y + reach)
        kind = chance.randrange(3)
        if kind == 0:
            pencil.ellipse(box, fill=colour)
        elif kind == 1:
            pencil.rectangle(box, fill=colour)
        else:
            pencil.polygon([(x, y - reach), (x - reach, y + reach), box[2:]], fill=colour)


def _draw_text(pencil: "ImageDraw.ImageDraw", picture: Picture) -> None:
    """Write the index large and the prompt below it, on a dark strip that keeps it readable."""
    width, height = picture.size
    small = max(12, min(width, height) // 18)
    lines = _wrap(picture.prompt, int((width - 2 * _MARGIN) / (small * 0.55)))
    top = height - _MARGIN - int(len(lines) * small * 1.35)
    pencil.rectangle((0, top - _MARGIN // 2, width, height), fill=(16, 16, 24))
    for number, line in enumerate(lines):
        place = (_MARGIN, top + number * small * 1.35)
        _write(pencil, place, line, small)
    _write(pencil, (_MARGIN, _MARGIN), f"#{picture.index}", small * 3)


def _wrap(prompt: str, width: int) -> list[str]:
    """Give the prompt's first lines; what cannot be printed becomes a space."""
    printable = "".join(c if c.isprintable() else " " for c in prompt)
    return textwrap.wrap(printable, max(8, width), max_lines=_LINES, placeholder=" …")


def _write(pencil: "ImageDraw.ImageDraw", place: tuple[float, float], text: str, size: int) -> None:
    font = _font(size)
    try:
        pencil.text(place, text, fill="white", font=font, stroke_width=1, stroke_fill="black")
    except UnicodeEncodeError:
        # Pillow's bitmap font, which it falls back to without FreeType, knows Latin-1 only.
        plain = text.encode("latin-1", "replace").decode("latin-1")
        pencil.text(place, plain, fill="white", font=font)


@lru_cache(maxsize=16)
def _font(size: int) -> "FreeTypeFont | ImageFont":
    """Give a font of the system, which knows more scripts, else the one that Pillow brings."""
    from PIL import ImageFont

    for name in _FONTS:
        with suppress(OSError, ImportError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)
