"""What is read from a request: its key and its JSON."""

import json
from typing import Final, NoReturn

from aiohttp import hdrs, web

from midapi_async.sandbox import _wire
from midapi_async.sandbox._envelope import Refused

_JSON_LIMIT: Final = 1_048_576


def bearer_key(request: web.Request) -> str:
    """Give the bearer key of a request; empty when there is none."""
    scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def read_json(request: web.Request, limit: int = _JSON_LIMIT) -> dict[str, object]:
    """Give the JSON object in a request's body.

    Raises the refusal with code 413 for more than ``limit`` bytes, with 400 for anything that
    is not a JSON object.
    """
    try:
        data = b"" if (request.content_length or 0) > limit else await request.read()
    except web.RequestPayloadError:
        raise Refused(_wire.BAD_REQUEST, "The body is not what its headers say") from None
    if (request.content_length or 0) > limit or len(data) > limit:
        raise Refused(_wire.TOO_LARGE, f"The body is larger than {limit} bytes", status=413)
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(_wire.BAD_REQUEST, "The body is not valid JSON") from None
    if not isinstance(value, dict):
        raise Refused(_wire.BAD_REQUEST, "The body must be a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


async def body_or_nothing(request: web.Request) -> dict[str, object]:
    """Give the JSON object in a request's body, an empty one if there is none."""
    try:
        return await read_json(request)
    except Refused:
        return {}
