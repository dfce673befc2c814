"""The multipart form of an upload."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from .source import BLOCK, Content, opened

FOLDER = "midapi-async"  # of our uploads, at the server


class Form(Payload):
    """A multipart form with one file, which is read from the disk while it is sent.

    Attributes:
        content: what the file has to contain.
        file: the open file.
        has_changed: whether it contained something else.
    """

    def __init__(self, content: Content, name: str, report: Callable[[int, int], None]) -> None:
        boundary = f"midapi-{secrets.token_hex(16)}"
        super().__init__(None, content_type=f"multipart/form-data; boundary={boundary}")
        fields = {"uploadPath": FOLDER, "fileName": name}
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
            for field, value in fields.items()
        )
        head += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            f"Content-Type: {_MEDIA_TYPES[content.extension]}\r\n\r\n"
        )
        self._head, self._tail = head.encode(), f"\r\n--{boundary}--\r\n".encode()
        self._size = len(self._head) + content.size + len(self._tail)
        self._report = report
        self.content = content
        self.file = opened(content.source)
        self.has_changed = False

    def decode(self, *_: object) -> str:
        """It is not a text."""
        raise TypeError("a file is not a text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the form. The last block is sent only if the file is what it was."""
        await writer.write(self._head)
        digest, left = hashlib.sha256(), self.content.size
        while left:
            block = await asyncio.to_thread(self.file.read, min(BLOCK, left))
            left -= len(block)
            digest.update(block)
            is_right = left > 0 or digest.hexdigest() == self.content.sha256
            if not block or not is_right or (left == 0 and self.file.read(1)):
                self.has_changed = True
                raise ValueError("the file has changed")
            await writer.write(block)
            self._report(self.content.size - left, self.content.size)
        await writer.write(self._tail)


_MEDIA_TYPES = {
    **{f".{kind}": f"image/{kind}" for kind in ("jpeg", "png", "webp", "gif", "avif", "heic")},
    **{f".{kind}": f"video/{kind}" for kind in ("webm", "mp4")},
    ".mov": "video/quicktime",
}
