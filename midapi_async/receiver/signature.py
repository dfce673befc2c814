"""MidAPI's signature of a callback.

``X-Webhook-Signature`` is base64(HMAC-SHA256(key, task id + "." + timestamp)). It does not cover
the body: it proves that a callback names a task of ours, not what it says about it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMESTAMP_HEADER = "x-webhook-timestamp"
SIGNATURE_HEADER = "x-webhook-signature"


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
    if not re.fullmatch(r"[0-9]{1,12}", timestamps[0]):
        return False
    given = signatures[0].encode(errors="backslashreplace")
    fits = [hmac.compare_digest(signature(key, task_id, timestamps[0]), given) for key in keys]
    return any(fits)
