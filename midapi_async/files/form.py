"""The multipart form of an upload."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import secrets
from collections.abc import Callable

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from .source import BLOCK, Content, SourceError, opened

_MEDIA_TYPES = {
    **{f".{kind}": f"image/{kind}" for kind in ("jpeg", "png", "webp", "gif", "avif", "heic")},
    **{f".{kind}": f"video/{kind}" for kind in ("webm", "mp4")},
    ".mov": "video/quicktime",
}


class Form(Payload):
    """A multipart form with one file, which is read from the disk each time the form is sent.

    Args:
        content: what the file has to contain.
        folder: where the server has to put it.
        name: the name that it gets there.
        report: called with the bytes that were sent of it, and its size.

    Attributes:
        problem: why it could not be sent, if the file has changed; else None.
    """

    def __init__(
        self, content: Content, folder: str, name: str, report: Callable[[int, int], None]
    ) -> None:
        boundary = f"midapi-{secrets.token_hex(16)}"
        super().__init__(None, content_type=f"multipart/form-data; boundary={boundary}")
        part = f"--{boundary}\r\nContent-Disposition: form-data; name="
        self._head = (
            f'{part}"uploadPath"\r\n\r\n{folder}\r\n'
            f'{part}"fileName"\r\n\r\n{name}\r\n'
            f'{part}"file"; filename="{name}"\r\n'
            f"Content-Type: {_MEDIA_TYPES[content.extension]}\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._size = len(self._head) + content.size + len(self._tail)
        self._content = content
        self._report = report
        self.problem: SourceError | None = None

    def decode(self, *_: object) -> str:
        """It is not a text."""
        raise TypeError("a file is not a text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the form. The last block is sent only if the file is what it was."""
        content, digest = self._content, hashlib.sha256()
        left = content.size
        try:
            file = opened(content.source)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # no fault of the file, and it may soon pass
            raise self._changed() from None
        with file:
            await writer.write(self._head)
            while left:
                block = await asyncio.to_thread(file.read, min(BLOCK, left))
                left -= len(block)
                digest.update(block)
                is_right = left > 0 or digest.hexdigest() == content.sha256
                if not block or not is_right or (left == 0 and file.read(1)):
                    raise self._changed()
                await writer.write(block)
                self._report(content.size - left, content.size)
        await writer.write(self._tail)

    def _changed(self) -> SourceError:
        # Kept as well, because aiohttp hides what its writer raises.
        self.problem = self._content.changed()
        return self.problem
