"""MidAPI's signature of a callback.

``X-Webhook-Signature`` is base64(HMAC-SHA256(key, task id + "." + timestamp)). It does not cover
the body: it proves that a callback names a task of ours, not what it says about it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING

from ..errors import InvalidRequestError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMESTAMP_HEADER = "x-webhook-timestamp"
SIGNATURE_HEADER = "x-webhook-signature"
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


def sign_callback(webhook_key: str, task_id: str, timestamp: int | None = None) -> dict[str, str]:
    """The two headers with which MidAPI signs a callback, for tests of your own receiver.

    ``X-Webhook-Signature`` is base64(HMAC-SHA256(webhook_key, task_id + "." + timestamp)), as the
    documentation of kie.ai, MidAPI's sister on the same backend, says. The body is not signed.

    Args:
        webhook_key: as set at MidAPI and given to `CallbackReceiver`.
        task_id: the task id that stands in the callback's body.
        timestamp: seconds since 1970; None is now.

    Returns:
        ``{"X-Webhook-Timestamp": …, "X-Webhook-Signature": …}``

    Raises:
        InvalidRequestError: no key, no task id, or a timestamp that is no whole number from 0 to
            999,999,999,999.
    """
    moment = int(time.time()) if timestamp is None else timestamp
    problems = {
        name: f"must be a non-empty str of printable characters, got a {type(value).__name__}"
        for name, value in (("webhook_key", webhook_key), ("task_id", task_id))
        if not isinstance(value, str) or not value or not value.isprintable()
    }
    if type(moment) is not int or not 0 <= moment < 10**12:
        problems["timestamp"] = f"must be whole seconds since 1970, got {shown(timestamp)}"
    if problems:
        raise InvalidRequestError(problems)
    signed = signature(webhook_key.encode(), task_id, f"{moment:d}")
    return {"X-Webhook-Timestamp": f"{moment:d}", "X-Webhook-Signature": signed.decode()}


def signature(key: bytes, task_id: str, timestamp: str) -> bytes:
    """The signature that MidAPI sends for a task at a time."""
    signed = f"{task_id}.{timestamp}".encode(errors="surrogatepass")
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())


def is_signed(keys: Sequence[bytes], headers: Mapping[str, Sequence[str]], task_id: str) -> bool:
    """Whether one of the keys signed this.

    An old timestamp is no reason to refuse: nobody knows whether MidAPI signs its retries, which
    come up to 15 minutes later, anew. What counts is that the headers stand there once, and fit.

    Args:
        keys: the webhook keys; several while one replaces another.
        headers: values by lower-case name.
        task_id: what the body names.
    """
    timestamps, signatures = headers.get(TIMESTAMP_HEADER, ()), headers.get(SIGNATURE_HEADER, ())
    if len(timestamps) != 1 or len(signatures) != 1:
        return False
    if not _TIMESTAMP.fullmatch(timestamps[0]):
        return False
    given = signatures[0].encode(errors="backslashreplace")
    fits = [hmac.compare_digest(signature(key, task_id, timestamps[0]), given) for key in keys]
    return any(fits)
