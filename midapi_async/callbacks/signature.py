"""MidAPI's signature of a callback.

``X-Webhook-Signature`` is base64(HMAC-SHA256(key, task id + "." + timestamp)). It does not cover
the body, so it proves that MidAPI knows the task id, but not what the callback says about the task.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping, Sequence

from .._runtime.secret import hidden
from ..errors import InvalidRequestError, shown

TIMESTAMP_HEADER = "x-webhook-timestamp"
SIGNATURE_HEADER = "x-webhook-signature"
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


def sign_callback(webhook_key: str, task_id: str, timestamp: int | None = None) -> dict[str, str]:
    """The two headers with which MidAPI signs a callback, for tests of your own receiver.

    ``X-Webhook-Signature`` is base64(HMAC-SHA256(webhook_key, task_id + "." + timestamp)), as
    documented by kie.ai, MidAPI's sister on the same backend. The body is not signed.

    Args:
        webhook_key: as set at MidAPI and given to `CallbackReceiver`.
        task_id: the task id in the callback's body.
        timestamp: seconds since 1970; None for now.

    Returns:
        ``{"X-Webhook-Timestamp": …, "X-Webhook-Signature": …}``

    Raises:
        InvalidRequestError: the key or the task id is empty, or the timestamp is not a whole number
            from 0 to 999,999,999,999.
    """
    webhook_key = hidden(webhook_key)
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
    """Whether a callback is signed with one of the keys.

    Each header must be there exactly once. The age of the timestamp is not checked: MidAPI repeats
    a callback up to 15 minutes later, and it is not known whether it makes a new signature then.

    Args:
        keys: the webhook keys; several while one replaces another.
        headers: values by lower-case name.
        task_id: the task id in the body.
    """
    timestamps, signatures = headers.get(TIMESTAMP_HEADER, ()), headers.get(SIGNATURE_HEADER, ())
    if len(timestamps) != 1 or len(signatures) != 1:
        return False
    if not _TIMESTAMP.fullmatch(timestamps[0]):
        return False
    given = signatures[0].encode(errors="backslashreplace")
    # All keys are compared, so that the time does not show which one fits.
    matches = [hmac.compare_digest(signature(key, task_id, timestamps[0]), given) for key in keys]
    return any(matches)
