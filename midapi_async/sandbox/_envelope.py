"""The one JSON envelope that every answer of the API wears."""

import json
from typing import final

from aiohttp import web

from midapi_async.sandbox import _wire


@final
class Refused(Exception):
    """The service's refusal: an envelope whose code is not 200.

    ``code`` stands in the body, ``status`` is the HTTP status (200 unless said otherwise,
    as the real service does it), ``msg`` is the text; None takes the code's usual one.
    """

    def __init__(self, code: int, msg: str | None = None, *, status: int = 200) -> None:
        """Make the refusal; nothing is raised by this itself."""
        self.code = code
        self.msg = _wire.TEXTS.get(code, "error") if msg is None else msg
        self.status = status
        super().__init__(f"{code}: {self.msg}")


def encode(value: object) -> bytes:
    """Give JSON as the service sends it: UTF-8, not escaped.

    A lone surrogate becomes "?", which is what the service's Java would send; it must not
    become an exception here, since a prompt may hold one.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_answer(value: object, *, status: int = 200) -> web.Response:
    """Give an HTTP answer with this JSON value as its body."""
    return web.Response(body=encode(value), status=status, content_type="application/json")


def success(data: object) -> web.Response:
    """Give the envelope of a success around ``data``."""
    return json_answer({"code": _wire.OK, "msg": _wire.TEXTS[_wire.OK], "data": data})


def refusal(refused: Refused, path: str = "") -> web.Response:
    """Give the envelope of a refusal of a request to ``path``; its data is null."""
    envelope = {"code": refused.code, "msg": refused.msg, "data": None}
    if path in _wire.UPLOADS:
        envelope = {"success": False, **envelope}
    return json_answer(envelope, status=refused.status)
