"""What durable journals share: stored requests and details, sealed fingerprints, test clocks."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Callable

from .._wire.bodies import request_from_json
from .._wire.records import details_from_raw
from ..errors import InvalidRequestError, ProtocolError
from ..requests import Request
from ..tasks import TaskDetails
from .states import Intent

_log = logging.getLogger("midapi_async.journal")

KEPT = 16 * 86_400.0  # seconds that a row is kept after its end; MidAPI keeps files for 15 days
_SEALED = "sealed:"

to_json = json.JSONEncoder(separators=(",", ":")).encode


def read_request(stored: str | None) -> Request | None:
    """A stored request; None if there is none, or this release does not accept it any more."""
    if stored is None:
        return None
    try:
        return request_from_json(json.loads(stored))
    except (InvalidRequestError, ValueError) as error:
        _log.warning("a stored request cannot be read back; its row stays: %s", error)
        return None


def read_details(stored: str | None) -> TaskDetails | None:
    """The stored details of a task; None if there are none, or they cannot be read any more."""
    if stored is None:
        return None
    try:
        return details_from_raw(json.loads(stored))
    except (ProtocolError, ValueError) as error:
        _log.warning("stored details cannot be read back; the task is looked at again: %s", error)
        return None


def details_to_json(details: TaskDetails, *, hides_prompts: bool) -> str:
    """The details of a task as JSON for the store; with ``hides_prompts`` without the prompt."""
    raw = dict(details.raw)
    if hides_prompts:
        raw.pop("paramJson", None)
    return to_json(raw)


def seal(fingerprint: str, secret: bytes) -> str:
    """A fingerprint keyed with the store's secret, so that prompts cannot be guessed from it."""
    return _SEALED + hmac.digest(secret, fingerprint.encode(), hashlib.sha256).hex()


def is_same(row: Intent, fingerprint: str, secret: bytes) -> bool:
    """Whether a row's request has this fingerprint."""
    if row.fingerprint.startswith(_SEALED):
        return hmac.compare_digest(row.fingerprint, seal(fingerprint, secret))
    return row.fingerprint == fingerprint


def loop_clock(loop: asyncio.AbstractEventLoop | None) -> float | None:
    """The time of an event loop with its own clock, as in tests (`VirtualLoop`); else None."""
    has_own = isinstance(loop, asyncio.BaseEventLoop) and type(loop).time is not _REAL_TIME
    return loop.time() if has_own and loop is not None else None


_REAL_TIME: Callable[[asyncio.BaseEventLoop], float] = asyncio.BaseEventLoop.time
