"""The three ways to upload a file, as the sister product's upload host takes them."""

import base64
import binascii
import posixpath
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.web_request import FileField

from midapi_async.sandbox import _wire
from midapi_async.sandbox._envelope import Refused, json_answer
from midapi_async.sandbox._files import File, Upload, draw_still, place_of
from midapi_async.sandbox._pictures import Picture
from midapi_async.sandbox._requests import read_json
from midapi_async.sandbox._rules import is_web_url
from midapi_async.sandbox._service import Service

_BASE64_LIMIT: Final = 10_485_760
_DATA_URL: Final = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(;[^,;]*)*;base64,")


@final
class Uploads:
    """Handlers of the upload paths."""

    def __init__(self, service: Service, origin: Callable[[web.Request], str]) -> None:
        """Keep uploads in the service's files; ``origin`` says where their URLs begin."""
        self._service = service
        self._origin = origin

    async def stream(self, request: web.Request) -> web.Response:
        """Take a multipart form with the fields file, uploadPath and fileName."""
        form = await _form(request)
        field = form.get("file")
        if not isinstance(field, FileField):
            raise Refused(_wire.BAD_REQUEST, "file parameter is required")
        name = str(form.get("fileName") or field.filename)
        with field.file:
            data = field.file.read()
        return self._keep(request, name, _folder(form), field.content_type, data)

    async def base64(self, request: web.Request) -> web.Response:
        """Take a JSON object with base64Data (bare or a data URL), uploadPath and fileName."""
        body = await read_json(request, limit=2 * _BASE64_LIMIT)
        text = body.get("base64Data")
        if not isinstance(text, str) or not text:
            raise Refused(_wire.BAD_REQUEST, "base64Data parameter is required")
        start = _DATA_URL.match(text)
        content_type = start["type"] if start else None
        data = _decoded(text[start.end() :] if start else text)
        name = _text(body, "fileName") or "upload"
        return self._keep(request, name, _folder(body), content_type, data)

    async def url(self, request: web.Request) -> web.Response:
        """Take a JSON object with fileUrl, uploadPath and fileName.

        Nothing is fetched: the sandbox makes no requests. One of its own files is copied, any
        other URL becomes a picture of itself.
        """
        body = await read_json(request)
        url = body.get("fileUrl")
        if not isinstance(url, str) or not is_web_url(url):
            raise Refused(_wire.BAD_REQUEST, "fileUrl parameter is required")
        folder = _folder(body)
        file = await self._file_at(request, url)
        name = _text(body, "fileName") or posixpath.basename(urlsplit(url).path) or "upload"
        return self._keep(request, name, folder, file.content_type, file.data)

    async def _file_at(self, request: web.Request, url: str) -> File:
        origin = self._origin(request)
        path = place_of(url, origin)
        if path is None:
            return draw_still(Picture(url, 0))
        if not self._service.files.owns(url, origin):
            raise Refused(_wire.BAD_REQUEST, "fileUrl could not be fetched")
        if path.startswith(f"{_wire.UPLOADED_FILES}/"):
            return self._service.files.uploaded(path)
        return await self._service.files.result(posixpath.basename(path))

    def _keep(
        self, request: web.Request, name: str, folder: str, content_type: str | None, data: bytes
    ) -> web.Response:
        upload = self._service.files.upload(name, folder, content_type, data)
        message = "File uploaded successfully"
        data_of_it = _described(upload, self._origin(request))
        envelope = {"success": True, "code": _wire.OK, "msg": message, "data": data_of_it}
        return json_answer(envelope)


def _described(upload: Upload, origin: str) -> dict[str, object]:
    return {
        "fileName": upload.name,
        "filePath": posixpath.join(upload.folder, upload.name),
        "downloadUrl": f"{origin}{upload.place}",
        "fileSize": len(upload.file.data),
        "mimeType": upload.file.content_type,
        "uploadedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }


async def _form(request: web.Request) -> Mapping[str, str | bytes | bytearray | FileField]:
    """Give the fields of a multipart form, none if the body is no such thing."""
    if request.content_type != "multipart/form-data":
        return {}
    try:
        return await request.post()
    except (ValueError, web.RequestPayloadError):
        raise Refused(_wire.BAD_REQUEST, "The body is not a valid multipart form") from None


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(_wire.BAD_REQUEST, "base64Data is not valid base64") from None
    if len(data) > _BASE64_LIMIT:
        raise Refused(_wire.TOO_LARGE, f"base64Data holds more than {_BASE64_LIMIT} bytes")
    return data


def _folder(body: Mapping[str, object]) -> str:
    """Give the uploadPath, which is required."""
    folder = _text(body, "uploadPath")
    if not folder:
        raise Refused(_wire.BAD_REQUEST, "uploadPath parameter is required")
    return folder


def _text(body: Mapping[str, object], name: str) -> str:
    value = body.get(name)
    return value if isinstance(value, str) else ""
