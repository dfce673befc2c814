"""Downloads result files: streams each to a temporary file, checks it, renames it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from ssl import SSLContext
from typing import BinaryIO

import aiohttp
from yarl import URL

from .._wire.transport import failure_of, refused_by_proxy
from ..errors import DownloadError, InvalidRequestError, ResultExpired, UnexpectedContent
from ..requests import TASK_ID

_log = logging.getLogger("midapi_async.files")

BLOCK = 256 * 1024
_GONE = frozenset({403, 404, 410})  # what file hosts answer when a file was deleted
_AT_ONCE = 4

# How a file begins, and the extension that it gets; the server's names are not used.
_KINDS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\xff\xd8\xff"), ".jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp"),
    (re.compile(rb"GIF8[79]a"), ".gif"),
    (re.compile(rb"....ftyp", re.DOTALL), ".mp4"),
)
_LONGEST_MAGIC = 12


class Downloader:
    """Downloads result files, with a session of its own, so that no file host gets the API key.

    Args:
        allow_http: whether plain http is allowed (a sandbox on loopback).
        connect_timeout: seconds for a connection.
        read_timeout: seconds without any data after which the download fails.
        total_timeout: seconds for one file.
        ssl: the user's TLS context, or None for the usual checks.
        proxy: an HTTP proxy's URL, or None.
    """

    def __init__(
        self,
        *,
        allow_http: bool,
        connect_timeout: float,
        read_timeout: float,
        total_timeout: float | None,
        ssl: SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self._schemes = {"https", "http"} if allow_http else {"https"}
        self._proxy = URL(proxy) if proxy is not None else None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=True if ssl is None else ssl),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=total_timeout, sock_connect=connect_timeout, sock_read=read_timeout
            ),
        )

    async def fetch_all(self, task_id: str, urls: Sequence[str], folder: Path) -> list[Path]:
        """Fetch a task's files into a folder, which is made if it is missing.

        Returns:
            One path for each URL, in their order: ``TASKID_INDEX.jpeg``, ``.png``, ``.mp4`` ….

        Raises:
            DownloadError: a file could not be fetched. Others may be there, but no partial file.
        """
        if not TASK_ID.fullmatch(task_id):
            raise InvalidRequestError({"task_id": "is not a task id, so it cannot name a file"})
        await asyncio.to_thread(_make_folder, folder)
        turns = asyncio.Semaphore(_AT_ONCE)

        async def fetch(index: int, url: str) -> Path:
            async with turns:
                return await self._fetch(url, folder / f"{task_id}_{index}")

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(fetch(index, url)) for index, url in enumerate(urls)]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        _log.info("Task %s: %d files are in %s", task_id, len(tasks), folder)
        return [task.result() for task in tasks]

    async def _fetch(self, url: str, stem: Path) -> Path:
        try:
            scheme, _ = URL(url).scheme, URL(url).port
        except ValueError:
            raise DownloadError(url, "it is not a valid URL") from None
        if scheme not in self._schemes:
            raise DownloadError(url, "plain http is only for a sandbox on this machine")
        part = stem.with_name(f".{stem.name}.{uuid.uuid4().hex}.part")
        try:
            with _made(part) as file:
                suffix = await self._stream(url, file)
                await asyncio.to_thread(_sync, file)
            target = stem.with_name(stem.name + suffix)
            await asyncio.to_thread(part.replace, target)
        except OSError as error:
            raise _io_error(url, error) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return target

    async def _stream(self, url: str, file: BinaryIO) -> str:
        """Copy the body to a file; return the extension for its content."""
        suffix, block, failed = "", bytearray(), ""
        try:
            async with self._session.get(url, allow_redirects=False, proxy=self._proxy) as response:
                if self._proxy is not None and response.status == 407:
                    failure = refused_by_proxy(response.status, self._proxy)
                    raise DownloadError(url, f"{failure.reason}. {failure.advice}")
                _check_status(url, response.status)
                async for chunk in response.content.iter_any():
                    block += chunk
                    if len(block) >= BLOCK:
                        suffix = suffix or _suffix(url, block)
                        await asyncio.to_thread(file.write, bytes(block))
                        block.clear()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            failure = failure_of(error, URL(url), self._proxy)
            failed = f"the connection failed: {failure.reason}"
            if failure.permanent:
                failed += f". {failure.advice}"
        if failed:  # raised outside the handler, since aiohttp's error has the proxy's password
            raise DownloadError(url, failed)
        suffix = suffix or _suffix(url, block)
        await asyncio.to_thread(file.write, bytes(block))
        return suffix

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.close()


def _check_status(url: str, status: int) -> None:
    if status in _GONE:
        raise ResultExpired(url, f"it is gone (HTTP {status}); files are kept for 15 days")
    if status != 200:
        raise DownloadError(url, f"the file host answered HTTP {status}")


def _suffix(url: str, start: bytearray) -> str:
    for pattern, suffix in _KINDS:
        if pattern.match(bytes(start[:_LONGEST_MAGIC])):
            return suffix
    raise UnexpectedContent(url, "the content is neither a picture nor a video")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(
            {"folder": f"{str(folder)!r} cannot be used: {error.strerror}"}
        ) from None


def _made(part: Path) -> BinaryIO:
    """A new file. Not opened in a thread: if cancelled there, it would never be closed."""
    return part.open("xb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _io_error(url: str, error: OSError) -> DownloadError:
    return DownloadError(url, f"the file cannot be written: {error.strerror}")
