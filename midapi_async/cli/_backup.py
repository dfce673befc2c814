"""``midapi journal backup``: a copy of a journal in one file, also while a bot writes to it."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

import os
import shlex
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from midapi_async import InvalidRequestError
from midapi_async.files.folders import sync_folder
from midapi_async.journal.sqlite import SQLiteJournal

from ._common import Output, run_async
from ._errors import CommandError
from ._folder import Folder, place_of
from ._terminal import out, out_json, say

_OUTPUT = Output()
_WARNING = (
    "Restore it only if the original is lost: keys that were used after this backup are forgotten "
    "by it, and would be paid again."
)


def backup(
    file: Annotated[Path, Parameter(name="FILE")],
    /,
    *,
    force: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    folder: Folder = None,
    output: Output = _OUTPUT,
) -> int:
    """Copy the journal into one tar file, also while a bot has it open.

    The copy is the journal at one moment. Keys that are used after that moment are forgotten by
    it, and would be paid again: restore it only if the original is lost. Submissions that were
    under way at that moment are unknown after a restore, so nothing is sent again by itself.
    The file contains the prompts, and only you can read it. For a journal in a database this prints
    the command to run instead.

    Args:
        file: The tar file to make.
        force: Replace the file if it exists.
    """
    source = place_of(folder)
    if isinstance(source, str):
        raise _for_databases(source)
    target = _target(file, source, force=force)
    return run_async(_back_up(source, target, output), output)


def _target(file: Path, source: Path, *, force: bool) -> Path:
    """The absolute path of the file, without links.

    Raises:
        InvalidRequestError: a backup cannot or should not be put there.
    """
    target = Path(os.path.realpath(file))  # resolve() raises where links form a circle
    try:
        if target.is_dir():
            problem = "is a folder: name the file to make in it, such as journal.tar"
        elif target.is_relative_to(os.path.realpath(source)):
            problem = "is in the journal's folder, and would be lost with it: choose another folder"
        elif target.exists() and not target.is_file():
            problem = "is not a regular file"
        elif target.exists() and not force:
            problem = "exists already: choose another name, or give --force to replace it"
        else:
            return target
    except OSError as error:
        raise _unwritten(target, error) from None
    raise InvalidRequestError({"file": f"{str(file)!r} {problem}"})


async def _back_up(source: Path, target: Path, output: Output) -> None:
    try:
        # Beside the target, so that it can be renamed; the journal is closed before it is removed.
        with tempfile.TemporaryDirectory(prefix=".midapi-backup-", dir=target.parent) as draft:
            opened = SQLiteJournal(source)
            try:
                await opened.backup(draft)
            finally:
                await opened.aclose()
            size = _pack(Path(draft), target)
    except OSError as error:
        raise _unwritten(target, error) from None
    restore = f"mkdir -m 700 NEW && tar -xf {shlex.quote(str(target))} -C NEW"
    if output.as_json:
        out_json({"path": str(target), "size_bytes": size, "restore": restore})
        return
    out(target)
    say(_WARNING)
    say("To restore it into a new folder NEW:")
    say(restore)


def _for_databases(url: str) -> InvalidRequestError:
    """How to back up a journal that is in a database."""
    from midapi_async.journal.postgres.journal import read_url

    _, place, schema = read_url(url)
    command = f"pg_dump --format=custom --schema={schema} --file=FILE {shlex.quote(place)}"
    problem = f"is for a folder; for a database use PostgreSQL's own tools, as in: {command}. "
    return InvalidRequestError({"backup": problem + _WARNING})


def _pack(draft: Path, target: Path) -> int:
    """Make a tar file of the files in a folder, that only this user can read; return its size."""

    def private(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mode = 0o600
        return member

    files, packed = sorted(draft.iterdir()), draft / "tar"
    with open(packed, "xb", opener=_private) as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for each in files:
                tar.add(each, each.name, filter=private)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    packed.replace(target)
    sync_folder(target.parent)
    return size


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _unwritten(target: Path, error: OSError) -> CommandError:
    problem = f"the backup {str(target)!r} cannot be written: {error.strerror or error}"
    return CommandError(type(error).__name__, problem, facts={"path": str(target)})
