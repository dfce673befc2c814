"""The files of a sandbox: results, uploads, and links that expire."""

import asyncio
import mimetypes
import re
import secrets
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Final, final
from urllib.parse import urlsplit

from attrs import frozen

from midapi_async.sandbox import _wire
from midapi_async.sandbox._clock import Clock
from midapi_async.sandbox._envelope import Refused
from midapi_async.sandbox._pictures import Picture, draw_jpeg
from midapi_async.sandbox._tasks import Task, Tasks
from midapi_async.sandbox._video import make_mp4

_DRAWN_KEPT: Final = 64
_LINKS_KEPT: Final = 10_000
_UPLOADS_KEPT: Final = 268_435_456
_RESULT: Final = re.compile(r"(?P<task>[A-Za-z0-9_-]{1,128})_0_(?P<n>[0-9]{1,2})\.(jpeg|mp4)")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


@frozen
class File:
    """What is sent for a GET of a file."""

    content_type: str
    data: bytes


@frozen
class Upload:
    """An uploaded file, kept in memory."""

    name: str
    folder: str
    file: File
    place: str
    """Its path on this server."""
    at: float


def task_of_file(name: str) -> str | None:
    """Give the task id in the name of a result file, or None."""
    found = _RESULT.fullmatch(name)
    return found["task"] if found else None


def place_of(url: str, origin: str) -> str | None:
    """Give the path on this server of a URL that begins with its origin, or None."""
    return urlsplit(url.removeprefix(origin)).path if url.startswith(f"{origin}/") else None


@final
class Files:
    """Draws results when they are asked for, and keeps uploads and links while they last."""

    def __init__(self, clock: Clock, tasks: Tasks) -> None:
        """Keep nothing yet; `close` ends the thread that draws."""
        self._clock = clock
        self._tasks = tasks
        self._drawn: OrderedDict[str, File] = OrderedDict()
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        self._uploaded = 0
        self._links: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="midapi-sandbox-painter")

    def close(self) -> None:
        """End the thread that draws; one picture at most is waited for."""
        self._painter.shutdown(cancel_futures=True)

    async def result(self, name: str) -> File:
        """Give a result file by its name; the 404 refusal when it is not there any more."""
        task = self._living_result(name)
        if task is None:
            raise Refused(_wire.NOT_FOUND, "File not found", status=_wire.NOT_FOUND)
        if name not in self._drawn:
            picture = task.order.pictures[_number_of(name)]
            drawing = draw_mp4 if task.order.moving else draw_still
            loop = asyncio.get_running_loop()
            self._drawn[name] = await loop.run_in_executor(self._painter, drawing, picture)
            while len(self._drawn) > _DRAWN_KEPT:
                self._drawn.popitem(last=False)
        self._drawn.move_to_end(name)
        return self._drawn[name]

    def _living_result(self, name: str) -> Task | None:
        """Give the task whose file this is, if it has succeeded and is not too old."""
        task = self._tasks.find(task_of_file(name) or "")
        if task is None or task.completed is None:
            return None
        known = any(url.endswith(f"/{name}") for url in task.urls)
        fresh = self._clock.now() - task.completed < _wire.RESULTS_KEPT
        return task if known and fresh else None

    def upload(self, name: str, folder: str, content_type: str | None, data: bytes) -> Upload:
        """Keep an uploaded file; the oldest go when there are too many bytes of them."""
        safe = _UNSAFE.sub("_", name).strip(".") or "file"
        guessed = mimetypes.guess_type(safe)[0]
        file = File(content_type or guessed or "application/octet-stream", data)
        place = f"{_wire.UPLOADED_FILES}/{secrets.token_hex(8)}/{safe}"
        upload = Upload(safe, folder.strip("/"), file, place, self._clock.now())
        self._uploads[place] = upload
        self._uploaded += len(data)
        while self._uploaded > _UPLOADS_KEPT and len(self._uploads) > 1:
            self._uploaded -= len(self._uploads.popitem(last=False)[1].file.data)
        return upload

    def uploaded(self, place: str) -> File:
        """Give an uploaded file by its path; the 404 refusal when it is not there any more."""
        upload = self._uploads.get(place)
        if upload is None or self._clock.now() - upload.at >= _wire.UPLOADS_KEPT:
            raise Refused(_wire.NOT_FOUND, "File not found", status=_wire.NOT_FOUND)
        return upload.file

    def link(self, url: str) -> str:
        """Give the path of a download link for a result's URL; the 422 refusal for any other."""
        name = self._own_result(url)
        if name is None:
            raise Refused(_wire.UNPROCESSABLE, "url must be a file that this service generated")
        token = secrets.token_urlsafe(16)
        self._links[token] = (name, self._clock.now())
        while len(self._links) > _LINKS_KEPT:
            self._links.popitem(last=False)
        return f"{_wire.DOWNLOAD_LINKS}/{token}/{name}"

    def linked(self, token: str) -> str:
        """Give the result's name behind a download link; the 403 refusal when it has expired."""
        name, at = self._links.get(token, ("", -_wire.DOWNLOAD_LINK_KEPT))
        if self._clock.now() - at >= _wire.DOWNLOAD_LINK_KEPT:
            raise Refused(_wire.FORBIDDEN, status=_wire.FORBIDDEN)
        return name

    def owns(self, url: str, origin: str) -> bool | None:
        """Say whether a URL is a living file here; None if it begins elsewhere."""
        place = place_of(url, origin)
        if place is None:
            return None
        if place.startswith(f"{_wire.RESULT_FILES}/"):
            return self._living_result(place.rpartition("/")[2]) is not None
        try:
            return bool(self.uploaded(place))
        except Refused:
            return False

    def _own_result(self, url: str) -> str | None:
        name = url.rpartition("/")[2]
        task = self._living_result(name)
        return name if task is not None and url in task.urls else None


def _number_of(name: str) -> int:
    return int(name.rpartition(".")[0].rpartition("_")[2])


def draw_still(picture: Picture) -> File:
    """Give a result picture."""
    return File("image/jpeg", draw_jpeg(picture))


def draw_mp4(picture: Picture) -> File:
    """Give a result video, which shows its picture."""
    return File("video/mp4", make_mp4(draw_jpeg(picture), picture.size))
