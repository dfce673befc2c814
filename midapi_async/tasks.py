"""`TaskDetails`: an immutable snapshot of what MidAPI says about a task."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from html import escape
from types import MappingProxyType

import attrs

from ._runtime.urls import is_http_url

_WIDTH = 320  # pixels of a picture in a notebook
_LONGEST = 500  # characters of a text in a notebook
_VIDEOS = (".mp4", ".webm", ".mov")


class TaskStatus(StrEnum):
    """The state of a task.

    Attributes:
        GENERATING: Midjourney works on it, or it waits there for its turn.
        SUCCEEDED: it is finished; for some seconds its record may show no files yet.
        FAILED: it has no result, and never will; ``error_message`` says why.
    """

    GENERATING = "generating"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


def _read_only(mapping: Mapping[str, object]) -> Mapping[str, object]:
    return MappingProxyType(dict(mapping))


@attrs.frozen(kw_only=True)
class TaskDetails:
    """A snapshot of one task, from one look at MidAPI's record-info.

    Attributes:
        task_id: MidAPI's id of the task.
        task_type: as in ``mj_txt2img``; None if the record does not say.
        status: generating, succeeded or failed.
        urls: the result files, kept by MidAPI for 15 days; empty until the task has succeeded.
        params: the request as MidAPI stored it, in its own camelCase, without the callback URL.
        created_at: when MidAPI accepted the task; aware, UTC; None if the record does not say. A
            time that has no zone in the record is read as UTC+8.
        completed_at: when it was finished; aware, UTC; None while generating.
        error_code: MidAPI's code for the failure, or None.
        error_message: MidAPI's text for the failure, or None.
        raw: the whole record, without the callback URL.
    """

    task_id: str
    task_type: str | None = None
    status: TaskStatus = TaskStatus.GENERATING
    urls: tuple[str, ...] = ()
    params: Mapping[str, object] = attrs.field(factory=dict, converter=_read_only, hash=False)
    created_at: datetime | None = None
    completed_at: datetime | None = None
    error_code: int | str | None = None
    error_message: str | None = None
    raw: Mapping[str, object] = attrs.field(
        factory=dict, converter=_read_only, repr=False, eq=False
    )

    @property
    def is_final(self) -> bool:
        """Whether the task is over: it failed, or it succeeded and its files are there."""
        return self.status is TaskStatus.FAILED or bool(
            self.status is TaskStatus.SUCCEEDED and self.urls
        )

    @property
    def duration(self) -> timedelta | None:
        """How long MidAPI worked on it; None until it is finished."""
        if self.created_at is None or self.completed_at is None:
            return None
        return self.completed_at - self.created_at

    def to_dict(self) -> dict[str, object]:
        """All fields except ``raw``, as plain JSON types for any encoder; times as ISO strings.

        A lone surrogate (half of a character), which many encoders refuse, becomes a "?".
        """
        return {
            "task_id": self.task_id,
            "task_type": self.task_type,
            "status": self.status.value,
            "urls": list(self.urls),
            "params": _plain(self.params),
            "created_at": self.created_at and self.created_at.isoformat(),
            "completed_at": self.completed_at and self.completed_at.isoformat(),
            "duration": None if self.duration is None else self.duration.total_seconds(),
            "error_code": self.error_code,
            "error_message": self.error_message,
        }

    def _repr_html_(self) -> str:
        """The pictures and videos, as a notebook shows them; or the state in words."""
        lines = [f"Task {_escaped(self.task_id)} {_escaped(self.status)}"]
        if self.status is TaskStatus.GENERATING:
            lines[0] = f"Task {_escaped(self.task_id)} is generating"
        if self.error_code or self.error_message:
            said = " ".join(str(each) for each in (self.error_code, self.error_message) if each)
            lines[0] += f": {_escaped(said)}"
        if isinstance(prompt := self.params.get("prompt"), str):
            lines.append(f"<em>{_escaped(prompt)}</em>")
        files = "\n".join(_element(url) for url in self.urls if is_http_url(url))
        return f"<div><p>{'<br>'.join(lines)}</p>\n{files}</div>"

    def __reduce__(self) -> tuple[object, ...]:
        fields = {field.name: getattr(self, field.name) for field in attrs.fields(TaskDetails)}
        return _rebuild, ({**fields, "params": dict(self.params), "raw": dict(self.raw)},)


def _escaped(text: str) -> str:
    """A text from outside as plain text in HTML: short, without control or direction characters."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return escape("".join(each if each.isprintable() else " " for each in cut))


def _element(url: str) -> str:
    """The HTML element that shows a result file; it sends no referrer to the host."""
    source = f'src="{escape(url)}" width="{_WIDTH}"'
    if url.partition("?")[0].lower().endswith(_VIDEOS):
        return f'<video {source} controls preload="metadata"></video>'
    return f'<img {source} loading="lazy" referrerpolicy="no-referrer" alt="">'


def _plain(value: object) -> object:
    """A JSON value of new dicts and lists, which can be written in UTF-8."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {_plain(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _rebuild(fields: dict[str, object]) -> TaskDetails:
    return TaskDetails(**fields)  # type: ignore[arg-type]  # what __reduce__ above took apart
