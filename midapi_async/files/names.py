"""The names of downloaded files, and the way back from a file to its task.

A name is made of the user's template, the task id, the index and the extension for the content.
Nothing of it comes from a server.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import uuid
from pathlib import Path
from typing import NamedTuple

from .._wire.json import loads
from ..errors import InvalidRequestError, shown
from ..requests import TASK_ID, task_id_problem
from ..tasks import TaskDetails
from .content import EXTENSIONS, problem_of

DEFAULT_NAME = "{task_id}_{index}{ext}"

_LONGEST_NAME = 200  # bytes; file systems take 255, and a part file's name is longer
_LONGEST_SIDECAR = 64 * 1024
_FIELD = re.compile(r"\{(task_id|index|ext)\}")
_NOT_IN_NAMES = '/\\<>:"|?*' if os.name == "nt" else "/\\"
_NAME = re.compile(
    # MidAPI's own names, such as a browser saves them: the first of its two numbers is always 0.
    r"((?P<own>[0-9a-f]{32})_0|(?P<id>[A-Za-z0-9_-]{1,128}))_(?P<index>[0-9]{1,3})"
    r"( ?\([0-9]{1,3}\))?\.(jpe?g|png|webp|gif|webm|mp4|mov|avif|heic)"
)
# The task ids of MidAPI's answers and of its documentation: no other name looks like them.
_KNOWN_IDS = re.compile(
    r"[0-9a-f]{32}|mj_task_[A-Za-z0-9_-]+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)


class ResultFile(NamedTuple):
    """The task of a result file, and the file's index in this task."""

    task_id: str
    """MidAPI's id of the task."""
    index: int  # type: ignore[assignment]  # a tuple's own method, which nobody needs here
    """0-based place among the task's results."""


class _Sidecar(NamedTuple):
    result: ResultFile
    size: int


def check_name(name: str, task_id: str, count: int) -> None:
    """Check the template for the names of a task's files.

    Args:
        name: the template, as in ``"{task_id}_{index}{ext}"``.
        task_id: the task's id.
        count: how many files the task has.

    Raises:
        InvalidRequestError: a file cannot be named so; its field is ``name``, or ``task_id``.
    """
    if problem := task_id_problem(task_id):
        raise InvalidRequestError({"task_id": problem})
    if problem := _name_problem(name, task_id, count):
        raise InvalidRequestError({"name": f"{problem}, got {shown(name)}"})


def _name_problem(name: object, task_id: str, count: int) -> str | None:
    if not isinstance(name, str):
        return "must be a str"
    if not name.endswith("{ext}") or name.count("{ext}") != 1:
        return "must end with {ext}, the extension for the content"
    if re.search(r"[{}]", _FIELD.sub("", name)):
        return "has only the fields {task_id}, {index} and {ext}"
    if count > 1 and "{index}" not in name:
        return f"needs {{index}}, because the task has {count} files"
    longest = file_name(name, task_id, max(count - 1, 0), max(EXTENSIONS, key=len))
    if any(each in longest for each in _NOT_IN_NAMES):
        return f"must be a file's name without {' '.join(_NOT_IN_NAMES)}; folders go into `folder`"
    if longest.startswith("."):
        return "must not begin with a dot, which hides the file"
    if not longest.isprintable():
        return "must not contain control characters or other characters that cannot be seen"
    if (size := len(longest.encode())) > _LONGEST_NAME:
        return f"must not be longer than {_LONGEST_NAME} bytes when it is filled in, not {size}"
    return None


def file_name(name: str, task_id: str, index: int, extension: str) -> str:
    """The name of a file from a template that `check_name` has taken."""
    values = {"task_id": task_id, "index": str(index), "ext": extension}
    return _FIELD.sub(lambda field: values[field[1]], name)


def existing(folder: Path, name: str, task_id: str, index: int) -> Path | None:
    """The file that is there already for one result, if it is whole. Reads it: call in a thread.

    Raises:
        InvalidRequestError: a file has this name, and nothing says that it is of this task.
    """
    result = ResultFile(task_id, index)
    stem = os.path.join(folder, file_name(name, task_id, index, ""))  # noqa: PTH118 - faster
    for extension in EXTENSIONS:
        if not os.path.lexists(stem + extension):
            continue
        path = Path(stem + extension)
        sidecar = _read_sidecar(path)
        if "{task_id}" not in name and (sidecar is None or sidecar.result != result):
            problem = (
                f"{str(path)!r} is there, and nothing says that it is result {index} of task "
                f"{task_id}. Put {{task_id}} into the name, or pass overwrite=True to replace it"
            )
            raise InvalidRequestError({"name": problem})
        if problem_of(path) is None and (
            sidecar is None or (sidecar.result == result and sidecar.size == path.stat().st_size)
        ):
            return path
    return None


def sidecar_of(path: Path) -> Path:
    """The path of the JSON file that describes a result file."""
    return path.with_name(f"{path.name}.json")


def remove_other_sidecar(path: Path, task_id: str, index: int, size: int) -> None:
    """Remove the JSON file beside a result file if it describes another file than this one.

    Else the file that is about to get this name would be taken for the one that had it before.

    Raises:
        OSError: it could not be removed.
    """
    sidecar = _read_sidecar(path)
    if sidecar is not None and sidecar != (ResultFile(task_id, index), size):
        sidecar_of(path).unlink(missing_ok=True)


def write_sidecar(path: Path, details: TaskDetails, index: int, size: int, sha256: str) -> None:
    """Write the JSON file that describes a result; call it before the file gets its name.

    Args:
        path: where the result file will be.
        details: its task.
        index: its place in ``details.urls``.
        size: its bytes.
        sha256: their hash, in hex.

    Raises:
        OSError: it could not be written. Nothing is left.
    """
    task = details.to_dict()
    params = task["params"]
    values = {
        "task_id": details.task_id,
        "index": index,
        "url": details.urls[index],
        "size": size,
        "sha256": sha256,
        "prompt": params.get("prompt") if isinstance(params, dict) else None,
        "params": params,
        "created_at": task["created_at"],
        "completed_at": task["completed_at"],
    }
    # Escaped: a prompt's control characters and direction marks do nothing in a terminal.
    text = json.dumps(values, indent=2)
    if len(text) >= _LONGEST_SIDECAR:
        text = json.dumps({**values, "prompt": None, "params": None}, indent=2)
    target = sidecar_of(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        # Opened like the result file itself, so that it has the same permissions.
        with part.open("x", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def task_of(path: str | os.PathLike[str]) -> ResultFile:
    """The task and the index of a downloaded file: its name says it, else the JSON file beside it.

    Raises:
        InvalidRequestError: neither does.
    """
    try:
        path = Path(path)
    except TypeError:
        raise InvalidRequestError({"path": f"must be a path, got {shown(path)}"}) from None
    found = _NAME.fullmatch(path.name)
    task_id = found and (found["own"] or found["id"])
    named = None
    if found and task_id and TASK_ID.fullmatch(task_id):
        named = ResultFile(task_id, int(found["index"]))
    if named and _KNOWN_IDS.fullmatch(named.task_id):
        return named
    if sidecar := _read_sidecar(path):
        return sidecar.result
    # An id of another kind. A name such as IMG_1234.jpeg is none.
    if named and len(named.task_id) >= 16 and re.search("[0-9]", named.task_id):
        return named
    problem = (
        f"{shown(path.name, 220)} does not say which task it is of: its name is not "
        f"TASKID_INDEX.jpeg (or .png, .mp4 …), and {shown(f'{path.name}.json', 220)} beside it, "
        "which download(sidecar=True) writes, is missing or not valid"
    )
    raise InvalidRequestError({"path": problem})


def _read_sidecar(path: Path) -> _Sidecar | None:
    """What the JSON file beside a file says, if there is one and it is valid."""
    try:
        sidecar = sidecar_of(path)
        status = sidecar.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST_SIDECAR:
            return None
        with sidecar.open("rb") as file:
            values = loads(file.read(_LONGEST_SIDECAR))
    except (OSError, ValueError):
        return None
    match values:
        case {"task_id": str(task_id), "index": int(index), "size": int(size)} if (
            TASK_ID.fullmatch(task_id)
            and 0 <= index < 1000
            and bool not in {type(index), type(size)}
        ):
            return _Sidecar(ResultFile(task_id, index), size)
    return None
