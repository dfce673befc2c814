"""Sends bytes as a file: whole, or the range that was asked for."""

from hashlib import sha256
from http import HTTPStatus

from aiohttp import hdrs, web

from midapi_async.sandbox._files import File


def file_response(request: web.Request, file: File) -> web.Response:
    """Give the answer to a GET or HEAD of a file, with Range, If-Range and an ETag."""
    tag = f'"{sha256(file.data).hexdigest()[:32]}"'
    headers = {
        hdrs.CONTENT_TYPE: file.content_type,
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.ETAG: tag,
        # An uploaded page must not become a page of this origin.
        "X-Content-Type-Options": "nosniff",
    }
    if request.headers.get(hdrs.IF_RANGE, tag) != tag:
        return web.Response(body=file.data, headers=headers)
    try:
        wanted = request.http_range
    except ValueError:
        return _unsatisfiable(len(file.data))
    if wanted.start is None and wanted.stop is None:
        return web.Response(body=file.data, headers=headers)
    return _part(file.data, wanted, headers)


def _part(data: bytes, wanted: slice, headers: dict[str, str]) -> web.Response:
    start, stop, _ = wanted.indices(len(data))
    if start >= stop:
        return _unsatisfiable(len(data))
    headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{len(data)}"
    return web.Response(status=HTTPStatus.PARTIAL_CONTENT, body=data[start:stop], headers=headers)


def _unsatisfiable(length: int) -> web.Response:
    headers = {hdrs.CONTENT_RANGE: f"bytes */{length}"}
    return web.Response(status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=headers)
