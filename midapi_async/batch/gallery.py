"""The gallery: one HTML page that shows the pictures of a batch's output folder.

It is made from results.jsonl and errors.jsonl. The page needs no network, and no files but
the pictures and videos, to which it has relative paths. Prompts are untrusted: the page's Content
Security Policy allows our script only, and the script never inserts them as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from .._runtime.urls import is_http_url
from .folder import BATCH, ERRORS, GALLERY, RESULTS, json_lines

# A line of the two files. Each member is checked where it is read.
_JSON: TypeAlias = dict[str, Any]

# Settings that are not shown: the values that a request has if the user sets nothing.
_DEFAULTS: Mapping[str, object] = {
    "speed": "fast",
    "enableTranslation": False,
    "motion": "high",
    "videoBatchSize": 1,
}
_NOT_SETTINGS = {"taskType", "prompt", "taskId", "imageIndex", "index", "extra", "fileHashes"}
_RATIO = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,3})?):([0-9]{1,4}(?:\.[0-9]{1,3})?)")
_RATIO_FLAG = re.compile(rf"(?<!\S)(?:--|—)(?:ar|aspect)\s+{_RATIO.pattern}")
_INDEX = re.compile(r"_([0-9]{1,3})\.[^./]*$")
_FOLDER_ID = re.compile(rb'data-folder="([0-9a-f]{16})"')


def write_gallery(folder: Path) -> None:
    """Write ``folder/gallery.html`` from what the batch has written so far; replace an older one.

    It blocks; a program that has an event loop calls it in a thread.

    Raises:
        OSError: a file could not be read or written. An older page is still there.
    """
    target = folder / GALLERY
    part = folder / f".{GALLERY}.{uuid.uuid4().hex}.part"
    try:
        # In pieces: one long call would hold the GIL, and so the event loop in another thread.
        with part.open("x", encoding="utf-8", newline="") as file:
            file.writelines(_page(folder))
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


# ─── the data ────────────────────────────────────────────────────────────────────────────────────


def _object(value: object) -> _JSON:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Python reads and writes NaN and Infinity; a browser could not parse the page's data.
    return value if abs(value) < 1e15 else None


def _path(value: object) -> str | None:
    """A path inside the page's folder; None if it leads out of it, or cannot be part of a URL."""
    if not isinstance(value, str) or "\\" in value or not value.isprintable():
        return None
    parts = value.split("/")
    return None if {"", ".", ".."} & set(parts) else value


def _pictures(row: _JSON) -> list[list[object]]:
    """Each result of a task: its index, its file or None, and without a file its URL or None."""
    found: dict[int, list[object]] = {}
    for index, url in enumerate(_list(row.get("urls"))):
        found[index] = [index, None, url if is_http_url(url) else None]
    for place, name in enumerate(_list(row.get("files"))):
        path = _path(name)
        named = _INDEX.search(path) if path else None
        index = int(named[1]) if named else place
        if path:
            found[index] = [index, path, None]
    return [found[index] for index in sorted(found)]


def _ratio(request: _JSON, prompt: str | None) -> float | None:
    """Width to height of the pictures that were asked for; None if that is not known."""
    asked = request.get("aspectRatio")
    found = _RATIO.fullmatch(asked) if isinstance(asked, str) else None
    found = found or _RATIO_FLAG.search(prompt or "")
    if found is None or not float(found[1]) or not float(found[2]):
        return None
    return round(min(max(float(found[1]) / float(found[2]), 0.25), 4.0), 4)


def _task(row: _JSON, state: str) -> _JSON:
    """One line as the page's script reads it; members without a value are left out."""
    request = _object(row.get("request"))
    request = {**request, **_object(request.get("extra"))}
    prompt = _text(row.get("prompt")) or _text(request.get("prompt"))
    error = _object(row.get("error"))
    parent = _text(request.get("taskId"))
    index = _number(request.get("imageIndex", request.get("index")))
    settings = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in request.items()
        if name not in _NOT_SETTINGS and value is not None
        if (name, value) not in _DEFAULTS.items()
    }
    task = {
        "key": _text(row.get("key")),
        "task": _text(row.get("task_id")),
        "state": state,
        "kind": _text(row.get("kind")),
        "prompt": prompt,
        "settings": settings,
        "metadata": {name: str(value) for name, value in _object(row.get("metadata")).items()},
        "seconds": _number(row.get("seconds")),
        "completed": _text(row.get("completed_at")),
        "ratio": _ratio(request, prompt),
        "pictures": _pictures(row),
        "parent": [parent, index] if parent else None,
        "error": {
            name: str(error[name]) for name in ("type", "code", "message") if error.get(name)
        },
        "place": _number(row.get("index")),
    }
    return {name: value for name, value in task.items() if value not in (None, {}, [])}


def _tasks(folder: Path, bad: list[str]) -> list[_JSON]:
    """Every row once: a success beats an error, and of several errors the last one counts."""
    by_key: dict[object, _JSON] = {}
    for name in (ERRORS, RESULTS):
        for row in json_lines(folder / name, bad):
            state = "succeeded" if name == RESULTS else _text(row.get("state")) or "failed"
            task = _task(row, state)
            by_key[task.get("key") or object()] = task
    # Rows are written as they end; the page has them in the order of the batch's file.
    return sorted(by_key.values(), key=lambda task: task.get("place", 0))


def _groups(tasks: list[_JSON]) -> list[_JSON]:
    """The tasks by prompt, in the order of their first ones.

    Upscaled pictures, variations and extended videos are with the prompt of the task they were made
    from, behind its other tasks.
    """
    by_id = {task["task"]: task for task in tasks if "task" in task}

    def origin(task: _JSON) -> _JSON:
        seen: set[str] = set()
        while "parent" in task and task["parent"][0] in by_id:
            if task["parent"][0] in seen:  # a circle, which no batch has written
                break
            seen.add(task["parent"][0])
            task = by_id[task["parent"][0]]
        return task

    groups: dict[object, _JSON] = {}
    derived = []
    for task in tasks:
        if (first := origin(task)) is not task:
            derived.append((task, first))
            continue
        prompt = task.get("prompt")
        name = prompt or task.get("parent", [None])[0] or id(task)
        group = groups.setdefault((bool(prompt), name), {"prompt": prompt, "tasks": []})
        group["tasks"].append(task)
        task["group"] = group
    # Single pictures first: they share a line.
    for task, first in sorted(derived, key=lambda pair: len(pair[0].get("pictures", ()))):
        if "ratio" not in task and "ratio" in first:
            task["ratio"] = first["ratio"]
        first["group"]["tasks"].append(task)
    for task in tasks:
        task.pop("group", None)
        task.pop("place", None)
    for group in groups.values():
        for task in group["tasks"]:
            if task.get("prompt") == group["prompt"]:
                task.pop("prompt", None)
    return [*groups.values()]


# ─── the page ────────────────────────────────────────────────────────────────────────────────────


def _page(folder: Path) -> Iterator[str]:
    """The page, in pieces."""
    bad: list[str] = []
    tasks = _tasks(folder, bad)
    name = folder.resolve().name
    style, script = _asset("gallery.css"), _asset("gallery.js")
    facts = {
        "folder": name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": _rows_expected(folder),
        "done": len(tasks),
        "unreadable": {each: bad.count(each) for each in sorted(set(bad))},
    }
    values = {
        "folder-id": _folder_id(folder),
        "style-hash": _hash(style),
        "script-hash": _hash(script),
        "style": style,
        "script": script,
        "facts": _embedded(facts),
    }
    # Placeholders are replaced in one pass: nothing in a value can be one.
    pieces = re.split(r"\{\{([a-z-]+)\}\}", _asset("gallery.html"))
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            yield piece
        elif piece == "groups":
            for place, group in enumerate(_groups(tasks)):
                yield f"{',' if place else ''}\n{_embedded(group)}"
        else:
            yield values[piece]


def _asset(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression by which a Content Security Policy allows one script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(value: object) -> str:
    """JSON that cannot end the script element it is in: without ``<``, and ASCII only."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _rows_expected(folder: Path) -> int | None:
    """How many rows the batch has, if its folder says so."""
    try:
        rows = _object(json.loads((folder / BATCH).read_bytes())).get("rows")
    except (OSError, ValueError, RecursionError):
        return None
    return rows if isinstance(rows, int) and not isinstance(rows, bool) else None


def _folder_id(folder: Path) -> str:
    """The name under which the browser keeps the stars of this folder.

    All pages from ``file:`` share one store. The name stays with the page when its folder is moved;
    a page that was deleted gets the same one again.
    """
    with suppress(OSError), (folder / GALLERY).open("rb") as file:
        if found := _FOLDER_ID.search(file.read(2000)):
            return found[1].decode()
    return hashlib.sha256(str(folder.resolve()).encode(errors="replace")).hexdigest()[:16]
