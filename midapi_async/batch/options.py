"""The arguments of ``generate_many``, checked."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, cast

import attrs

from .._runtime.observer import is_plain_function
from ..errors import InvalidRequestError, shown
from ..requests import REQUESTS
from .items import LONGEST_NAME, BatchProgress, BatchRequest


@attrs.frozen(kw_only=True)
class Options:
    """The checked arguments of ``generate_many``; their meaning is described there."""

    batch: str | None
    running: int
    on_unknown: Literal["report", "stop"]
    stop_after_failures: int | None
    max_credits: float | None
    download_to: Path | None
    on_progress: Callable[[BatchProgress], object] | None
    retry_failed: bool


def batch_options(
    requests: object,
    *,
    batch: object,
    running: object,
    on_unknown: object,
    stop_after_failures: object,
    max_credits: object,
    download_to: object,
    on_progress: object,
    retry_failed: object,
) -> Options:
    """The arguments of ``generate_many``, checked.

    Raises:
        InvalidRequestError: naming each argument that is wrong.
    """
    problems = {}
    is_one = isinstance(requests, (str, bytes, Mapping, type, BatchRequest, *REQUESTS))
    if is_one or not isinstance(requests, Iterable | AsyncIterable):
        problems["requests"] = f"must be an iterable of requests, got {shown(requests)}"
    is_name = isinstance(batch, str) and 0 < len(batch) <= LONGEST_NAME and batch.isprintable()
    if batch is not None and not is_name:
        problems["batch"] = f"must be a str of 1 to {LONGEST_NAME} printable characters, or None"
    if not _is_count(running):
        problems["running"] = f"must be an int of 1 or more, got {shown(running)}"
    if on_unknown not in ("report", "stop"):
        problems["on_unknown"] = f"must be 'report' or 'stop', got {shown(on_unknown)}"
    if stop_after_failures is not None and not _is_count(stop_after_failures):
        problem = f"must be an int of 1 or more, or None; got {shown(stop_after_failures)}"
        problems["stop_after_failures"] = problem
    is_number = isinstance(max_credits, int | float) and not isinstance(max_credits, bool)
    if max_credits is not None and not (is_number and max_credits > 0):  # type: ignore[operator] # a number
        problems["max_credits"] = f"must be a number above 0, or None; got {shown(max_credits)}"
    if download_to is not None and not isinstance(download_to, str | os.PathLike):
        problems["download_to"] = f"must be a folder's path, or None; got {shown(download_to)}"
    if on_progress is not None and not is_plain_function(on_progress):
        problems["on_progress"] = f"must be a plain function, got {shown(on_progress)}"
    if not isinstance(retry_failed, bool):
        problems["retry_failed"] = f"must be True or False, got {shown(retry_failed)}"
    if problems:
        raise InvalidRequestError(problems)
    return Options(
        batch=cast("str | None", batch),
        running=cast("int", running),
        on_unknown=cast("Literal['report', 'stop']", on_unknown),
        stop_after_failures=cast("int | None", stop_after_failures),
        max_credits=cast("float | None", max_credits),
        download_to=None if download_to is None else Path(cast("str", download_to)),
        on_progress=cast("Callable[[BatchProgress], object] | None", on_progress),
        retry_failed=cast("bool", retry_failed),
    )


def _is_count(value: object) -> bool:
    """Whether a value is an int of 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
