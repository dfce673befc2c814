"""What a callback says, read for people: the SDK itself believes none and needs only its task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from midapi_async._wire.json import loads
from midapi_async._wire.records import object_in
from midapi_async._wire.tokens import without_tokens

if TYPE_CHECKING:
    from midapi_async._wire.protocol import Callback

_SUCCESS = (None, 200, "200")
_FAILED_FLAGS = (2, 3, "2", "3")


@attrs.frozen
class Told:
    """What a callback says.

    Attributes:
        task_id: what it is about.
        status: "generating" for the acknowledgement before the real one, "succeeded" or "failed".
        message: MidAPI's text.
        prompt: what was asked for; empty if it does not say.
        urls: of the files.
    """

    task_id: str
    status: str
    message: str
    prompt: str
    urls: tuple[str, ...]


def told(callback: Callback, body: bytes) -> Told:
    """What a callback says.

    Args:
        callback: what the SDK reads of it.
        body: the body that this was read from.
    """
    whole = object_in(loads(body))
    data = object_in(whole.get("data")) or whole
    asked = object_in(data.get("promptJson")) or object_in(data.get("paramJson"))
    flag, code = data.get("successFlag"), whole.get("code")
    has_failed = code not in _SUCCESS or flag in _FAILED_FLAGS
    status = "failed" if has_failed else "succeeded"
    return Told(
        callback.task_id,
        "generating" if callback.is_acknowledgement else status,
        _text(data.get("errorMessage")) or _text(whole.get("msg")),
        _text(asked.get("prompt")),
        _urls(data),
    )


def _urls(data: dict[str, object]) -> tuple[str, ...]:
    """The URLs, as texts or in objects, where callbacks or record-info have them."""
    listed = data.get("resultUrls") or object_in(data.get("resultInfoJson")).get("resultUrls")
    each = listed if isinstance(listed, list) else []
    opened = ((one.get("resultUrl") or one.get("url")) if isinstance(one, dict) else one
              for one in each)  # fmt: skip
    return tuple(text for one in opened if (text := _text(one)))


def _text(value: object) -> str:
    return without_tokens(value) if isinstance(value, str) else ""
