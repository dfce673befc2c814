"""Downloads the files of a task into a folder: each is whole at its target, or not there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import TypeAlias, TypeVar

from .._runtime.observer import is_plain_function
from ..errors import DownloadError, InvalidRequestError, shown
from ..tasks import TaskDetails
from .fetch import AttemptFailed, Body, Fetch, Fetcher
from .folders import make_folder, sync_folder
from .names import check_name, existing, file_name, remove_other_sidecar, sidecar_of, write_sidecar
from .progress import Progress, Reporter

T = TypeVar("T")
_Kept: TypeAlias = tuple[Path, int]  # a file that is there and whole, and its size
_log = logging.getLogger("midapi_async.files")

BLOCK = 1024 * 1024  # bytes that are written at a time
_PART = re.compile(r"\..*\.[0-9a-f]{16}\.part", re.DOTALL)  # the name of a part file
_OLD_PART = 6 * 3600.0  # seconds without a write
RETENTION = 15 * 86_400.0  # seconds for which MidAPI keeps results


async def download_files(
    fetcher: Fetcher,
    details: TaskDetails,
    folder: str | os.PathLike[str],
    name: str,
    *,
    overwrite: bool,
    sidecar: bool,
    on_progress: Callable[[Progress], object] | None,
) -> list[Path]:
    """Download a task's files into a folder, which is made if it is missing.

    Args:
        fetcher: the client's fetcher.
        details: the task.
        folder: where the files will be.
        name: the template for their names.
        overwrite: whether to fetch files that are there already, and replace them.
        sidecar: whether to write a JSON file beside each.
        on_progress: called with each `Progress`, or None.

    Returns:
        One path for each URL, in their order.

    Raises:
        DownloadError: a file could not be fetched. The others are there.
        InvalidRequestError: an argument is wrong, or the folder cannot be used.
    """
    problems = {}
    if not isinstance(folder, str | os.PathLike):
        problems["folder"] = f"must be a path, got {shown(folder)}"
    for option, value in (("overwrite", overwrite), ("sidecar", sidecar)):
        if not isinstance(value, bool):
            problems[option] = f"must be True or False, got {shown(value)}"
    if on_progress is not None and not is_plain_function(on_progress):
        problems["on_progress"] = f"must be a plain function, got {shown(on_progress)}"
    if not details.urls:
        state = f"task {details.task_id} is {details.status} and has no files"
        problems["details"] = state
    if problems:
        raise InvalidRequestError(problems)
    check_name(name, details.task_id, len(details.urls))
    path = Path(folder)
    call = _Call(
        fetcher, details, path, name, overwrite=overwrite, sidecar=sidecar, on_progress=on_progress
    )
    # All at once: each turn through a thread costs as much as some of these looks.
    kept = await in_thread(call.begin)
    # A file that fails does not stop the others.
    results = await asyncio.gather(*starmap(call.download, enumerate(kept)), return_exceptions=True)
    if None in kept:
        with contextlib.suppress(OSError):  # Windows, and some network drives
            await in_thread(sync_folder, path)  # once for all files: it may take milliseconds
    paths = [each for each in results if isinstance(each, Path)]
    for error in results:
        if isinstance(error, DownloadError):
            error.files = tuple(paths)
        if isinstance(error, BaseException):
            raise error
    _log.info("Task %s: %d files are in %s", details.task_id, len(paths), path)
    return paths


class _Call:
    """One call of `download_files`. The arguments are the same."""

    def __init__(
        self,
        fetcher: Fetcher,
        details: TaskDetails,
        folder: Path,
        name: str,
        *,
        overwrite: bool,
        sidecar: bool,
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        self._fetcher = fetcher
        self._details = details
        self._folder = folder
        self._name = name
        self._overwrite = overwrite
        self._has_sidecar = sidecar
        self._reporter = Reporter(on_progress)
        born = details.completed_at or details.created_at
        self._is_old = born is not None and time.time() - born.timestamp() > RETENTION

    def begin(self) -> list[_Kept | Exception | None]:
        """Make the folder, and look for each file: it, None, or why it must not be replaced.

        For a thread.
        """
        make_folder(self._folder, must_be_writable=False)  # all files may be there already
        if self._folder not in self._fetcher.folders:
            self._fetcher.folders.add(self._folder)
            _remove_old_parts(self._folder)
        found: list[_Kept | Exception | None] = []
        for index in range(len(self._details.urls)):
            try:
                found.append(None if self._overwrite else self._kept(index))
            except (OSError, InvalidRequestError) as error:
                found.append(error)
        return found

    async def download(self, index: int, kept: _Kept | Exception | None) -> Path:
        """Download one file, unless it is there and whole."""
        details, url = self._details, self._details.urls[index]
        try:
            if isinstance(kept, Exception):
                raise kept
            if kept is not None:
                path, size = kept
                self._reporter.report(path.name, index, size, size, is_last=True)
                return path
            fetch = Fetch(self._fetcher, url, is_old=self._is_old)
            while True:
                try:
                    async with fetch.open() as body:
                        name = file_name(self._name, details.task_id, index, body.extension)
                        target = self._folder / name
                        await self._save(body, target, index)
                    return target
                except AttemptFailed as failure:
                    reason = failure
                await fetch.pause(reason)
        except OSError as error:
            what = error.strerror or str(error)
            raise DownloadError(url, f"the file cannot be written: {what}") from error

    def _existing(self, index: int) -> Path | None:
        return existing(self._folder, self._name, self._details.task_id, index)

    def _kept(self, index: int) -> _Kept | None:
        """The file that is there and whole, and its size. For a thread."""
        path = self._existing(index)
        if path is None:
            return None
        size = path.stat().st_size
        if self._has_sidecar and not sidecar_of(path).exists():
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            write_sidecar(path, self._details, index, size, sha256)
        return path, size

    def _describe(self, target: Path, index: int, size: int, sha256: str | None) -> None:
        """Before a file gets its name, see to the JSON file beside it. For a thread."""
        if sha256 is not None:
            write_sidecar(target, self._details, index, size, sha256)
        else:
            remove_other_sidecar(target, self._details.task_id, index, size)

    async def _save(self, body: Body, target: Path, index: int) -> None:
        """Write a file beside its target, then rename it. Reading and writing overlap.

        Args:
            body: what the host sends.
            target: where the file will be.
            index: its place in the task.

        Raises:
            OSError: it cannot be written.
        """
        part = _Part(target, is_hashed=self._has_sidecar)
        # Raises if a file is at the target that must not be replaced.
        may_replace = self._overwrite or "{task_id}" in self._name
        find = None if may_replace else partial(self._existing, index)
        loop, writing = asyncio.get_running_loop(), None
        waiting: list[bytes] = []
        waiting_size = done = 0
        try:
            async for block in body.blocks:
                waiting.append(block)
                waiting_size += len(block)
                done += len(block)
                self._reporter.report(target.name, index, done, body.total)
                if waiting_size >= BLOCK:
                    if writing is not None:
                        await ended(writing)
                    writing = loop.run_in_executor(None, part.write, waiting)
                    waiting, waiting_size = [], 0
            if writing is not None:
                await ended(writing)
            await in_thread(part.finish, waiting, find, partial(self._describe, target, index))
        except AttemptFailed:
            if writing is not None:
                await ended(writing)  # if the disk failed as well, there is no other attempt
            raise
        finally:
            try:
                # A thread cannot be cancelled, so wait: it must write nothing after this.
                if writing is not None:
                    with contextlib.suppress(OSError):
                        await ended(writing)
            finally:
                if part.exists:
                    await in_thread(part.discard)
        self._reporter.report(target.name, index, done, done, is_last=True)


# Held while a file gets a name that another task's file may get at the same moment.
_naming = threading.Lock()


class _Part:
    """The file beside a target that becomes the target when it is whole. For threads.

    Args:
        target: where the file will be.
        is_hashed: whether the hash of its content is wanted.

    Attributes:
        exists: whether it is there, under its own name.
    """

    def __init__(self, target: Path, *, is_hashed: bool) -> None:
        self._target = target
        self._path = target.with_name(f".{target.stem}.{secrets.token_hex(8)}.part")
        self._file = -1
        self.exists = False
        self._hash = hashlib.sha256() if is_hashed else None
        self._size = 0

    def _open(self) -> None:
        self._check_target()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.open(self._path, flags, 0o666)
        self.exists = True

    def _check_target(self) -> None:
        """Raise if something else than a file is at the target, which must not be replaced."""
        with contextlib.suppress(FileNotFoundError):
            mode = os.lstat(self._target).st_mode
            if not stat.S_ISREG(mode):
                kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}
                what = kinds.get(stat.S_IFMT(mode), "a device")
                raise OSError(f"{what} is at {str(self._target)!r}")

    def write(self, blocks: list[bytes]) -> None:
        """Write blocks; the file is made with the first ones."""
        if self._file == -1:
            self._open()
        # In one piece: after each call the thread may have to wait for the loop's thread.
        rest = memoryview(b"".join(blocks))
        self._size += len(rest)
        if self._hash is not None:
            self._hash.update(rest)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def finish(
        self,
        blocks: list[bytes],
        find: Callable[[], object] | None,
        describe: Callable[[int, str | None], None],
    ) -> None:
        """Write the last blocks, and give the file its name."""
        self.write(blocks)
        os.fsync(self._file)
        self._close()
        with _naming if find is not None else contextlib.nullcontext():
            if find is not None:
                find()  # again: a file may have come there meanwhile
            self._check_target()
            describe(self._size, None if self._hash is None else self._hash.hexdigest())
            self._path.replace(self._target)
        self.exists = False

    def _close(self) -> None:
        number, self._file = self._file, -1  # also if it fails: the number may be another file's
        if number != -1:
            os.close(number)

    def discard(self) -> None:
        """Remove the file, if it did not get its name."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Call a function in a thread. If cancelled, wait for its end first: the thread goes on."""
    return await ended(asyncio.get_running_loop().run_in_executor(None, function, *args))


async def ended(job: asyncio.Future[T]) -> T:
    """The result of a job in a thread; if cancelled meanwhile, the job has ended as well."""
    cancelled: asyncio.CancelledError | None = None
    while not job.done():
        try:
            await asyncio.wait({job})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        job.exception()  # so that it is not logged as never retrieved
        raise cancelled
    return job.result()


def _remove_old_parts(folder: Path) -> None:
    """Remove what killed processes have left; a living one has written to its part file lately."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for each in entries:
            if _PART.fullmatch(each.name):
                with contextlib.suppress(OSError):
                    if time.time() - each.stat(follow_symlinks=False).st_mtime > _OLD_PART:
                        Path(each).unlink()
