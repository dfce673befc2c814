"""The rows of a batch: requests, results, and the keys by which a later run continues it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from .._wire.bodies import fingerprint
from ..errors import InvalidRequestError, MidAPIError, TaskError, shown
from ..files.source import SourceError, look_at
from ..requests import MAX_KEY, Request, UploadedURL, paths_of
from ..tasks import TaskDetails

if TYPE_CHECKING:
    from ..handle import TaskHandle

_NOWHERE = "https://midapi.invalid/"  # a file counts by its content, wherever it is uploaded
LONGEST_NAME = 100  # characters of a batch's name; a key has 200
_TRY = re.compile("(.+)/(?:[2-9]|[1-9][0-9]+)")  # see `key_of_try`


@attrs.frozen
class BatchRequest:
    """One row of a batch, with its own key or metadata.

    Attributes:
        request: a prompt, or one of the eight requests.
        key: your own name for the row; with None the batch makes the key.
        metadata: your own notes; you get them back with the item.
    """

    request: Request | str
    key: str | None = None
    metadata: Mapping[str, str] | None = None


@attrs.frozen(kw_only=True)
class BatchItem:
    """The result or the error of one row of a batch.

    Attributes:
        index: the row's place among the requests, from 0.
        request: what was asked for; None if the row is not a valid request.
        key: the row's key, yours or made by the batch; the same for each try. None without a key.
        metadata: your own notes.
        intent_id: the id of its submission in the journal; None if that is not known.
        details: the task's details, if it has ended.
        error: why there is no result; None if there is one. ``error.key`` is the key of the try.
        paths: the files that were downloaded.
    """

    index: int
    request: Request | None
    key: str | None = None
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    intent_id: str | None = None
    details: TaskDetails | None = None
    error: MidAPIError | None = None
    paths: tuple[Path, ...] = ()


@attrs.frozen(kw_only=True)
class BatchProgress:
    """The progress of a batch.

    Attributes:
        total: how many rows there are; None if the requests do not have a length.
        submitted: rows whose task was bought, by this run or an earlier one.
        running: rows of ``submitted`` that have not ended.
        done: rows that have succeeded.
        failed: rows that ended with an error, without those counted as unknown.
        unknown: rows for which it cannot be known whether MidAPI accepted them.
        rate: rows a minute that have ended, measured over the last 100; rows that had ended in an
            earlier run do not count.
        expected_end: when the last row will have ended at this rate, in UTC; None if unknown.
        spent: the credits that the account has lost since the batch began; None if nothing was
            submitted, or if the balance could not be read.
        paused: why nothing is submitted for the moment; None if the batch is not paused.
        stopped: why no further row is submitted; None if nothing has stopped the batch.
    """

    total: int | None
    submitted: int
    running: int
    done: int
    failed: int
    unknown: int
    rate: float
    expected_end: datetime | None
    spent: float | None
    paused: str | None
    stopped: str | None


@attrs.define(kw_only=True)
class Row:
    """The state of a row while the batch works on it.

    Attributes:
        index: its place among the requests.
        request: what is asked for.
        hash: of the request; equal for equal requests.
        key: its key, or None.
        metadata: the user's notes.
        attempt: which try this is, from 1; see `key_of_try`.
        failure: why the try before it has no result; None for the first one.
        handle: of the first try, if an earlier run has finished it.
        is_new: whether this run is buying it, or has bought it.
        is_news: whether its outcome is new: no earlier run has seen it.
        was_bought: whether a task for any of its tries is known.
        is_running: whether the task of this try is known and has not ended.
    """

    index: int
    request: Request
    hash: str
    key: str | None = None
    metadata: Mapping[str, str] | None = None
    attempt: int = 1
    failure: TaskError | None = None
    handle: TaskHandle | None = None
    is_new: bool = False
    is_news: bool = False
    was_bought: bool = False
    is_running: bool = False


def hash_of(request: Request) -> str:
    """A hash of a request. Local files are hashed by content, so this reads them and blocks.

    Raises:
        InvalidRequestError: naming each file that cannot be read, or is no picture or video.
    """
    hashes, problems = {}, {}
    for index, path in paths_of(request).items():
        try:
            hashes[index] = look_at(path, None).sha256
        except SourceError as error:
            problems[f"file_urls[{index}]"] = str(error)
    if problems:
        raise InvalidRequestError(problems)
    if hashes:
        urls = list(getattr(request, "file_urls", ()))
        for index, sha256 in hashes.items():
            urls[index] = UploadedURL(_NOWHERE, sha256)
        fields: dict[str, Any] = {"file_urls": tuple(urls)}
        request = attrs.evolve(request, **fields)
    return fingerprint(request)


def key_of_try(key: str, attempt: int) -> str:
    """The key by which a try of a row is bought: the row's own, then ``<key>/2``, ``<key>/3``.

    Where that would be too long, a hash takes the place of the end of the row's key.
    """
    if attempt == 1:
        return key
    end = f"/{attempt}"
    if len(key) + len(end) > MAX_KEY:
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        key = f"{key[: MAX_KEY - len(end) - 33]}-{digest}"
    return key + end


class Keys:
    """The keys of all rows: makes those that are not given, and refuses two that conflict.

    Args:
        rows: how an error names two rows by their numbers, such as ``"lines {} and {}"``.
        batch: the batch's name; None if it has none.
    """

    def __init__(self, rows: str, batch: str | None = None) -> None:
        self._both = rows
        self._batch = batch
        # Hashes instead of keys: a batch may have many rows.
        self._counts: dict[bytes, int] = {}
        self._rows: dict[bytes, int] = {}
        self._tries: dict[bytes, int] = {}  # rows "a/2", by the hash of "a"

    def made(self, request_hash: str) -> str | None:
        """A key for a row that has none; None if the batch has no name.

        The key is made of the name, the hash of the request and how often the same request has
        come before, so that rows may be added, removed and moved between two runs.
        """
        if self._batch is None:
            return None
        digest = bytes.fromhex(request_hash)[:16]
        nth = self._counts[digest] = self._counts.get(digest, 0) + 1
        return f"{self._batch}/{request_hash[:32]}/{nth}"

    def add(self, row: int, key: str) -> None:
        """Record the key of a row.

        Args:
            row: the row's number; the same key may be added again with the same number.
            key: its key.

        Raises:
            InvalidRequestError: an earlier row has the same key, or two rows have keys of which one
                is that of a further try of the other row.
        """
        short = _short(key)
        first = self._rows.setdefault(short, row)
        if first != row:
            both = self._both.format(first, row)
            problem = f"{both} have the same key {shown(key)}; each row needs its own key"
            raise InvalidRequestError({"key": problem})
        # Further tries of a row "a" are bought as "a/2", "a/3", which no other row may have.
        other = self._tries.get(short)
        if (is_try := _TRY.fullmatch(key)) is not None:
            base = _short(is_try[1])
            self._tries.setdefault(base, row)
            other = self._rows.get(base, other)
        if other is not None:
            both = self._both.format(other, row)
            problem = (
                f"{both} have conflicting keys, one of them {shown(key)}: with retry_failed, row "
                "'a' is bought again as 'a/2', so no other row may have such a key"
            )
            raise InvalidRequestError({"key": problem})


def _short(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
