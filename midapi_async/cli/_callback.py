"""What a callback says, for people; the SDK itself needs only the task's id."""

from __future__ import annotations

import json

import attrs

from midapi_async import ProtocolError
from midapi_async.callbacks import read_callback, without_tokens

_GOOD_CODES = (None, 200, "200")
_FAILED_FLAGS = (2, 3, "2", "3")


@attrs.frozen
class CallbackSummary:
    """What a callback says.

    Attributes:
        task_id: the task that it is about.
        status: "generating" for the acknowledgement, later "succeeded" or "failed".
        message: MidAPI's text.
        prompt: what was asked for; empty if it does not say.
        urls: of the files.
    """

    task_id: str
    status: str
    message: str
    prompt: str
    urls: tuple[str, ...]


def summarize(body: bytes) -> CallbackSummary | None:
    """What a callback's body says; None if it is no callback."""
    try:
        callback = read_callback(body)
    except ProtocolError:
        return None
    whole = _object(body.decode().removeprefix("\ufeff"))
    data = _object(whole.get("data")) or whole
    request = _object(data.get("promptJson")) or _object(data.get("paramJson"))
    if callback.is_acknowledgement:
        status = "generating"
    elif whole.get("code") in _GOOD_CODES and data.get("successFlag") not in _FAILED_FLAGS:
        status = "succeeded"
    else:
        status = "failed"
    return CallbackSummary(
        callback.task_id,
        status,
        _text(data.get("errorMessage")) or _text(whole.get("msg")),
        _text(request.get("prompt")),
        _urls(data),
    )


def _object(value: object) -> dict[str, object]:
    """A JSON object, or a string that holds one; empty for everything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _urls(data: dict[str, object]) -> tuple[str, ...]:
    """The URLs, as strings or in objects, where callbacks or record-info have them."""
    listed = data.get("resultUrls") or _object(data.get("resultInfoJson")).get("resultUrls")
    values = [
        (each.get("resultUrl") or each.get("url")) if isinstance(each, dict) else each
        for each in (listed if isinstance(listed, list) else [])
    ]
    return tuple(text for value in values if (text := _text(value)))


def _text(value: object) -> str:
    return without_tokens(value) if isinstance(value, str) else ""
