"""The output folder of a batch, for one run at a time: pictures, a line for each row, the journal.

``results.jsonl`` has one line for each key that has succeeded, ``errors.jsonl`` the last line of
each other key, ``metadata.jsonl`` a line for each picture, as the ``datasets`` library reads it.
The journal decides what was bought. These files only repeat it, so a line that is missing after a
crash or on a full disk is added by the next run.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from .._wire.bodies import request_to_json
from ..errors import (
    APIError,
    DownloadError,
    InvalidRequestError,
    MidAPIError,
    ProtocolError,
    SubmissionUnknown,
    TransportError,
    WaitTimeout,
)
from ..files.folders import make_folder, sync_folder
from ..journal.sqlite.locks import open_private, sync, try_lock
from ..requests import Request, UploadedURL, paths_of, prompt_of
from .items import BatchItem

BATCH, RESULTS, ERRORS, METADATA = "batch.json", "results.jsonl", "errors.jsonl", "metadata.jsonl"
PICTURES, JOURNAL, GALLERY, LOCK = "pictures", "journal", "gallery.html", "batch.lock"
NAME = "batch"  # of the batch; its keys are found in this folder's own journal only
_VERSION = 1
_IMAGES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".avif", ".heic")  # not the videos
COUNTS = ("succeeded", "failed", "unknown")
_TEXTS = ("key", "state", "task_id", "intent_id", "prompt")  # or null
_FACTS = ("code", "http_status", "status", "problems", "reason", "url")  # of an error
_Line = dict[str, Any]


@attrs.define
class BatchFolder:
    """An output folder that this process has locked. Every method may block; call it in a thread.

    Attributes:
        path: the folder.
        succeeded: the keys in ``results.jsonl``.
        failed: for each other key the `_identity` of its line in ``errors.jsonl``.
    """

    path: Path
    succeeded: set[str] = attrs.field(factory=set, repr=False)
    failed: dict[str, tuple[object, ...]] = attrs.field(factory=dict, repr=False)
    _prompts: dict[str, str] = attrs.field(factory=dict, repr=False)  # by task id
    _counts: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(COUNTS, 0))
    # Lines of metadata.jsonl that could not be written together with those of results.jsonl.
    _unwritten_pictures: list[bytes] = attrs.field(factory=list, repr=False)
    _facts: _Line = attrs.field(factory=dict, repr=False)  # of batch.json
    _complete: set[str] | None = attrs.field(default=None, repr=False)  # keys; see `is_complete`
    _mutex: threading.Lock = attrs.field(factory=threading.Lock, repr=False)
    _lock: int = -1
    _files: dict[str, int] = attrs.field(factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path, *, base_url: str, rows: int, source: str) -> BatchFolder:
        """Lock a folder, and repair what a killed run has left; made if it is missing.

        Args:
            path: the folder.
            base_url: the origin of the service.
            rows: how many rows this run has.
            source: the name of the file that they are from.

        Raises:
            InvalidRequestError: it cannot be used, belongs to another service, or another process
                has it.
            OSError: a file in it cannot be read or written.
        """
        make_folder(path, "output")
        lock = _locked(path)
        folder = cls(path, lock=lock)
        try:
            before = _batch_before(path, base_url)
            for name in (RESULTS, ERRORS, METADATA):
                folder._files[name] = _opened(path / name)
            folder._read()
            run = {"base_url": base_url, "rows": rows, "input": source}
            folder._facts = {"version": _VERSION, **run, "started": _now()}
            if run.items() <= before.items() and "progress" in before:
                # The same run again: its progress is that of the run before until `note` is called.
                folder._facts["progress"] = before["progress"]
                folder._write_batch()
            else:
                folder.note({})
        except BaseException:
            folder.close()
            raise
        return folder

    def _read(self) -> None:
        """Read which keys have a line; correct the other files by ``results.jsonl``."""
        pictures: list[bytes] = []
        for line in lines_of(self.path / RESULTS):
            if (key := str(line["key"])) not in self.succeeded:
                pictures += map(_encoded, self._pictures_of(line))
            self.succeeded.add(key)
        self._tidy()
        for line in lines_of(self.path / ERRORS):
            self.failed[str(line["key"])] = _identity(line)
        if (self.path / METADATA).read_bytes() != b"".join(pictures):
            self._rewrite(METADATA, pictures)

    def add(self, lines: Sequence[_Line], counts: Mapping[str, int]) -> None:
        """Append the lines of rows that have ended, and sync them.

        A key that has succeeded keeps its line.

        Args:
            lines: the lines, from `line_of`.
            counts: how many rows of this run have ended, for each of `COUNTS`.

        Raises:
            OSError: they cannot be written. Then no part of a line is left behind, and the same
                lines can be added again.
        """
        with self._mutex:
            self._add(lines)
            self._counts = dict(counts)

    def _add(self, lines: Sequence[_Line]) -> None:
        results, errors = dict[str, bytes](), list[bytes]()
        pictures, failed = list[bytes](), dict[str, tuple[object, ...]]()
        for line in lines:
            key = str(line["key"])
            if "error" not in line:
                if key not in self.succeeded and key not in results:
                    results[key] = _encoded(line)
                    pictures += map(_encoded, self._pictures_of(line))
            elif line["key"] is None or self.failed.get(key) != _identity(line):
                failed[key] = _identity(line)
                errors.append(_encoded(line))
        self._append(RESULTS, [*results.values()])
        for key in results:
            self.succeeded.add(key)
            self.failed.pop(key, None)
        self._unwritten_pictures += pictures
        self._append(METADATA, self._unwritten_pictures)
        self._unwritten_pictures.clear()
        self._append(ERRORS, errors)
        self.failed |= failed

    def _pictures_of(self, line: _Line) -> Iterator[_Line]:
        """The lines of ``metadata.jsonl`` for one of ``results.jsonl``: one for each picture.

        They have the two columns that ``load_dataset("imagefolder")`` needs, and some that lead to
        the row. Videos get no line, because it cannot load them. An upscaled picture has the prompt
        of the task that it was made from.
        """
        text = line["prompt"] or self._prompts.get((line["request"] or {}).get("taskId", ""), "")
        self._prompts[str(line["task_id"])] = text
        notes = {f"metadata.{name}": value for name, value in line["metadata"].items()}
        for index, name in enumerate(line["files"]):
            if name.endswith(_IMAGES):
                found = {"file_name": name, "text": text, "key": line["key"]}
                yield {**found, "task_id": line["task_id"], "index": index, **notes}

    def _append(self, name: str, lines: Sequence[bytes]) -> None:
        try:
            if lines:
                _append(self._files[name], b"".join(lines))
        except OSError as error:
            error.filename = str(self.path / name)
            raise

    def note(self, progress: Mapping[str, object]) -> None:
        """Write into ``batch.json`` how far the run is, for other processes.

        Args:
            progress: what to write beside the counts.
        """
        with self._mutex:
            states = (str(state) for state, *_ in self.failed.values())
            lines = _counted(len(self.succeeded), states)
            self._facts["progress"] = {**progress, **self._counts, "at": _now(), "lines": lines}
            self._write_batch()

    def _write_batch(self) -> None:
        _replace(self.path / BATCH, [_encoded(self._facts)])

    def close(self) -> None:
        """Unlock the folder."""
        while self._files:
            os.close(self._files.popitem()[1])
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def ended(self) -> int:
        """How many tasks in the folder have succeeded and need nothing more."""
        states = [state for state, *_ in self.failed.values()]
        return len(self.succeeded) + states.count("not_downloaded")

    def is_complete(self, key: str | None) -> bool:
        """Whether a row that has succeeded in an earlier run has its line and all of its files."""
        with self._mutex:
            if self._complete is None:
                there = {each.name for each in (self.path / PICTURES).iterdir()}
                self._complete = {
                    line["key"]
                    for line in lines_of(self.path / RESULTS)
                    if there.issuperset(Path(name).name for name in line["files"])
                }
            return key in self._complete

    def tidy(self) -> None:
        """Keep the last line of each key in ``errors.jsonl`` that is not in ``results.jsonl``."""
        with self._mutex:
            self._tidy()

    def _tidy(self) -> None:
        kept: dict[str, _Line] = {}
        count = 0
        for line in lines_of(self.path / ERRORS):
            count += 1
            kept.pop(str(line["key"]), None)
            if not _is_superseded(line, self.succeeded):
                kept[str(line["key"])] = line
        size = (self.path / ERRORS).stat().st_size
        whole = [_encoded(line) for line in kept.values()]
        if len(kept) < count or size != sum(map(len, whole)):
            self._rewrite(ERRORS, whole)

    def _rewrite(self, name: str, lines: Sequence[bytes]) -> None:
        """Replace one of the files atomically, and append to the new one from now on."""
        _replace(self.path / name, lines)
        os.close(self._files.pop(name))
        self._files[name] = _opened(self.path / name)


# ─── lines ───────────────────────────────────────────────────────────────────────────────────────


def line_of(item: BatchItem, line: int | None, message: str = "") -> _Line:
    """The line for a row in ``results.jsonl`` or ``errors.jsonl``.

    Args:
        item: what came of the row.
        line: the row's line in the user's file, from 1; None if unknown.
        message: the error, for people who type commands.
    """
    details, error, prompt = item.details, item.error, prompt_of(item.request)
    took = None if details is None else details.duration
    facts: _Line = {
        "key": item.key,
        "line": line,
        "index": item.index,
        "metadata": dict(item.metadata),
        "kind": None if item.request is None else type(item.request).__name__,
        "request": None if item.request is None else _body(item.request),
        "prompt": prompt if isinstance(prompt, str) else None,
        "task_id": details.task_id if details is not None else getattr(error, "task_id", None),
        "intent_id": getattr(item, "intent_id", None) or getattr(error, "intent_id", None),
        "state": "succeeded" if error is None else _state_of(error),
        "created_at": details and details.created_at and details.created_at.isoformat(),
        "completed_at": details and details.completed_at and details.completed_at.isoformat(),
        "seconds": None if took is None else took.total_seconds(),
        "urls": [] if details is None else list(details.urls),
        "files": [f"{PICTURES}/{path.name}" for path in item.paths],
    }
    if error is not None:
        known = {name: getattr(error, name, None) for name in _FACTS}
        facts["error"] = {"type": type(error).__name__, "message": message or str(error)}
        facts["error"] |= {name: value for name, value in known.items() if value is not None}
    return facts


def _state_of(error: MidAPIError) -> str:
    """The state of a row that has not succeeded, for its line."""
    if isinstance(error, SubmissionUnknown):
        return "unknown"
    if isinstance(error, InvalidRequestError):
        return "invalid"
    if isinstance(error, DownloadError):
        return "not_downloaded"
    is_of_call = isinstance(error, APIError | TransportError | ProtocolError)
    if isinstance(error, WaitTimeout) or (is_of_call and error.task_id is not None):
        return "unfinished"  # bought, and a look at its task has failed
    return "refused" if isinstance(error, APIError) else "failed"


def _body(request: Request) -> _Line:
    """A request as JSON, with the paths of its files in place of URLs."""
    paths = paths_of(request)
    if paths:
        urls = list(getattr(request, "file_urls", ()))
        for index in paths:
            urls[index] = UploadedURL("https://midapi.invalid/")
        fields: dict[str, Any] = {"file_urls": tuple(urls)}
        request = attrs.evolve(request, **fields)
    body: _Line = dict(request_to_json(request))
    if isinstance(places := body.get("fileUrls"), list):
        for index, path in paths.items():
            places[index] = str(path)
    return body


def _identity(line: _Line) -> tuple[object, ...]:
    """What two errors of a row have in common if the second needs no new line."""
    return (line["state"], str(line["error"]["type"]), line.get("task_id"), line.get("intent_id"))


def _is_superseded(line: _Line, succeeded: set[str]) -> bool:
    """Whether the line of an error is out of date."""
    # A row without a key has a new line in each run.
    return line["key"] is None or line["key"] in succeeded


def lines_of(path: Path) -> Iterator[_Line]:
    """The lines of one of the files of a batch; lines that are not ours are left out."""
    return (line for line in json_lines(path, []) if _is_ours(line))


def json_lines(path: Path, unreadable: list[str]) -> Iterator[_Line]:
    """The objects in a JSON Lines file, without an incomplete last line; a missing file has none.

    Args:
        path: the file.
        unreadable: the file's name is added for each line that cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            if not raw.strip():
                continue
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                line = None
            if isinstance(line, dict):
                yield line
            else:
                unreadable.append(path.name)


def _is_ours(line: _Line) -> bool:
    """Whether a line has the members that are read again, with their types."""

    def is_text(*values: object) -> bool:
        return all(value is None or isinstance(value, str) for value in values)

    if not is_text(*map(line.get, _TEXTS)):
        return False
    if "error" in line:
        error = line["error"]
        return {"key", "state"} <= line.keys() and isinstance(error, dict) and "type" in error
    files, request = line.get("files"), line.get("request")
    return (
        isinstance(line.get("key"), str)
        and {"task_id", "prompt"} <= line.keys()
        and isinstance(line.get("metadata"), dict)
        and (isinstance(files, list) and None not in files and is_text(*files))
        and (request is None or (isinstance(request, dict) and is_text(request.get("taskId"))))
    )


# ─── batch.json and batch.lock ───────────────────────────────────────────────────────────────────


def read_batch(path: Path) -> _Line:
    """Read ``batch.json``.

    Raises:
        InvalidRequestError: it is missing, cannot be read, or is not that of a batch.
    """
    problem = "is not the output folder of a batch: it has no batch.json"
    try:
        facts = json.loads((path / BATCH).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        facts = None
    except OSError as error:
        facts, problem = None, f"cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        facts, problem = None, "has a batch.json that is not valid JSON"
    if not isinstance(facts, dict) or "version" not in facts:
        raise InvalidRequestError({"output": f"{str(path)!r} {problem}"})
    if facts["version"] != _VERSION:
        problem = "was written by another version of midapi: continue it with that version"
        raise InvalidRequestError({"output": f"{str(path)!r} {problem}"})
    if not _is_complete(facts):
        problem = "has a batch.json that is damaged: remove that file, then run the batch again"
        raise InvalidRequestError({"output": f"{str(path)!r} {problem}"})
    return facts


def _is_complete(batch: _Line) -> bool:
    """Whether ``batch.json`` has the members that are read again from it."""
    progress = batch.get("progress")
    lines = progress.get("lines") if isinstance(progress, dict) else None
    counts = [batch.get("rows")]
    for found in (progress, lines):
        counts += map(found.get, COUNTS) if isinstance(found, dict) else [None]
    texts = map(batch.get, ("base_url", "input", "started"))
    return all(isinstance(each, int) for each in counts) and all(
        isinstance(each, str) for each in texts
    )


def counts_of(path: Path, batch: Mapping[str, Any]) -> dict[str, int]:
    """How many rows of the last run have "succeeded", "failed" and are "unknown".

    "ended" is how many tasks in the folder have succeeded and need nothing more.

    Args:
        path: the folder.
        batch: what `read_batch` has returned. A run writes it every few seconds; rows that got
            a line since then are added here.
    """
    succeeded = {str(line["key"]) for line in lines_of(path / RESULTS)}
    states = {
        str(line["key"]): str(line.get("state"))
        for line in lines_of(path / ERRORS)
        if line["key"] not in succeeded
    }
    now, progress = _counted(len(succeeded), states.values()), batch["progress"]
    since = {name: now[name] - progress["lines"][name] for name in COUNTS}
    ended = len(succeeded) + [*states.values()].count("not_downloaded")
    return {**{name: max(0, progress[name] + since[name]) for name in COUNTS}, "ended": ended}


def _counted(succeeded: int, states: Iterable[str]) -> dict[str, int]:
    of_errors = [*states]
    unknown = of_errors.count("unknown")
    return {"succeeded": succeeded, "failed": len(of_errors) - unknown, "unknown": unknown}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def process_of(path: Path) -> int | None:
    """The id of the process that runs the batch of a folder now; 0 if unknown, None if none runs.

    Raises:
        OSError: the lock file cannot be opened.
    """
    try:
        descriptor = open_private(path / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return None if try_lock(descriptor, shared=True) else _number_in(descriptor)
    finally:
        os.close(descriptor)


def _number_in(descriptor: int) -> int:
    text = os.pread(descriptor, 20, 0)
    return int(text) if text.isdigit() else 0


# ─── files ───────────────────────────────────────────────────────────────────────────────────────


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of the folder, until it is closed.

    Raises:
        InvalidRequestError: another process holds it.
    """
    descriptor = open_private(path / LOCK, os.O_RDWR | os.O_CREAT)
    if not try_lock(descriptor):
        number = _number_in(descriptor)
        os.close(descriptor)
        who = f"process {number}" if number else "another process"
        problem = f"is in use: {who} runs this batch. Wait for it, or stop it with Ctrl-C"
        raise InvalidRequestError({"output": f"{str(path)!r} {problem}"})
    os.ftruncate(descriptor, 0)
    with suppress(OSError):  # a full disk: then the process id is not known to others
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _batch_before(path: Path, base_url: str) -> _Line:
    """``batch.json`` of the run before; empty if there was none.

    Raises:
        InvalidRequestError: its rows were bought from another service.
    """
    if not (path / BATCH).exists():
        return {}
    before = read_batch(path)
    if before["base_url"] != base_url:
        seller = before["base_url"]
        problem = f"has results from {seller}, but this run uses {base_url}: use another folder"
        raise InvalidRequestError({"output": f"{str(path)!r} {problem}"})
    return before


def _opened(path: Path) -> int:
    """A descriptor for appending to a file; an incomplete last line is cut off."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    size = os.fstat(descriptor).st_size
    end = size
    while end:
        start = max(0, end - 65_536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return descriptor


def _append(descriptor: int, data: bytes) -> None:
    """Append to a file and sync it; on an error nothing is appended."""
    size = os.fstat(descriptor).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        sync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    """Replace a file atomically: a reader sees the old or the new one, also after a crash."""
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            file.writelines(lines)
            file.flush()
            sync(file.fileno())
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _encoded(line: Mapping[str, Any]) -> bytes:
    """A line as ASCII: no character in it is a line break for any reader."""
    return json.dumps(line).encode() + b"\n"
