"""Uploads reference pictures: each content once while its URL lasts, and before anything is paid.

A file is read twice: once to see what it is and to hash it, once to send it. If it has changed in
between, its last bytes are not sent, so that the server never gets a whole file that nobody meant.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from copy import copy
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Any, TypeAlias, cast

import attrs

from .._runtime.background import OwnedTasks
from .._runtime.clock import Clock
from .._runtime.observer import is_plain_function
from .._runtime.urls import url_problem
from .._wire import protocol
from .._wire.bodies import fingerprint
from .._wire.json import dumps
from .._wire.protocol import LONGEST_RETRY_AFTER, Call
from .._wire.transport import Transport
from ..config import Settings, Timeouts
from ..errors import (
    APIError,
    ClientClosed,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MidAPIError,
    ProtocolError,
    TransportError,
    WaitTimeout,
    about,
    shown,
)
from ..journal import PENDING, Intent, Journal, State
from ..requests import ImageToImage, Request, UploadedURL, paths_of
from .form import Form
from .progress import Progress, Reporter
from .source import Content, SourceError, look_at, stamp_of

_log = logging.getLogger("midapi_async.files")

OwnUploader: TypeAlias = Callable[[Path | bytes], Awaitable[str]]
OnProgress: TypeAlias = Callable[[Progress], None]

LARGEST = 10 << 20  # bytes; MidAPI documents no limit, and kie.ai this one for one way to upload
KEPT = 3 * 86_400.0 - 3600.0  # seconds; the server deletes uploads after three days
_FOLDER = "midapi-async"  # of our uploads, at the server
_AT_ONCE = 4
_PAUSES = (1.0, 3.0)  # seconds between the attempts
_LAST_READ = 0.5  # seconds of the loop for files and the journal, even if no time is left
_LONGEST_NAME = 200  # bytes
_NO_HOST = (
    "is not known: MidAPI documents no host for uploads. Pass upload_url= or set "
    "MIDAPI_UPLOAD_URL, or pass uploader=, a function that puts a file where MidAPI can fetch it"
)


@attrs.define(eq=False, repr=False)
class _Upload:
    """One upload that is under way, for all callers who want the same.

    Attributes:
        name: the file's name, for `Progress` and the log.
        reporters: those of the callers that wait for it.
        failure: of its last attempt; None if none has failed.
        task: returns the URL, or the error, of which each caller raises a copy.
    """

    name: str
    reporters: list[Reporter] = attrs.field(factory=list)
    failure: MidAPIError | None = None
    task: asyncio.Task[UploadedURL | Exception] = attrs.field(init=False)

    def report(self, done: int, total: int) -> None:
        """Tell the callers how much was sent."""
        for reporter in self.reporters:
            reporter.report(self.name, 0, done, total, is_last=done == total)


@attrs.define(eq=False, repr=False)
class Uploader:
    """Uploads files, and replaces the paths in requests by the URLs of uploads.

    Args:
        settings: the API key and the upload URL.
        clock: the client's clock.
        journal: remembers what was uploaded, and knows the requests of keys.
        scope: the scope of the client's rows in it.
        timeouts: for connections and answers.
        find: what was bought with a key, as `Submitter.find` returns it.
        ssl: the user's TLS context, or None for the usual checks.
        own: the user's own function in place of the upload URL, or None.
    """

    _settings: Settings
    _clock: Clock
    _journal: Journal
    _scope: str
    _timeouts: Timeouts
    _find: Callable[[str], Awaitable[Intent | None]]
    _ssl: SSLContext | None = None
    _own: OwnUploader | None = None
    _transport: Transport | None = attrs.field(default=None, init=False)  # made when it is needed
    # By the hash of the content, or by the URL to copy; and by the user's name for the file.
    _under_way: dict[tuple[str, str | None], _Upload] = attrs.field(factory=dict, init=False)
    _tasks: OwnedTasks = attrs.field(factory=OwnedTasks, init=False)
    _turns: asyncio.Semaphore = attrs.field(
        factory=partial(asyncio.Semaphore, _AT_ONCE), init=False
    )
    _stopped: asyncio.Future[None] = attrs.field(
        factory=lambda: asyncio.get_running_loop().create_future(), init=False
    )

    async def upload(
        self, source: object, *, name: str | None, on_progress: OnProgress | None
    ) -> UploadedURL:
        """Upload one file; see ``client.upload``.

        Raises:
            InvalidRequestError: an argument is wrong, or the source is not a picture or a video.
            MidAPIError: the upload failed.
        """
        problems = {}
        if name is not None and (problem := _name_problem(name, self._own)):
            problems["name"] = problem
        if on_progress is not None and not is_plain_function(on_progress):
            problems["on_progress"] = f"must be a plain function, got {shown(on_progress)}"
        if isinstance(source, str) and (problem := _url_problem(source, self._own)):
            problems["source"] = problem
        if problems:
            raise InvalidRequestError(problems)
        if isinstance(source, str):
            upload = self._start(str(source), name)
        else:
            upload = self._start((await self._look_at({"source": source}))["source"], name)
        return await self._outcome(upload, "source", on_progress)

    async def prepare(
        self, request: Request, *, key: str | None = None, deadline: float | None = None
    ) -> Request:
        """The request with a URL in place of each path; the same object if it has no paths.

        All files are looked at before the first one is uploaded. A key that was used before needs
        no upload, because its files are compared by their content.

        Args:
            request: what may have paths.
            key: the user's own name for it, or None.
            deadline: when to stop waiting, on the client's clock; None for never.

        Raises:
            InvalidRequestError: naming each file that cannot be uploaded; `KeyConflict` if the key
                belongs to another request.
            WaitTimeout: it took too long; what was begun goes on, for the next call.
            MidAPIError: an upload failed, or what `Submitter.find` raises for the key.
        """
        paths = {f"file_urls[{index}]": path for index, path in paths_of(request).items()}
        if not paths:
            return request
        end = None if deadline is None else deadline / self._clock.scale
        now = self._clock.loop.time()
        # With no time left, a known key must still be answered.
        scope = asyncio.timeout_at(None if end is None else max(end, now + _LAST_READ))
        uploads: dict[str, _Upload] = {}
        try:
            async with scope:
                contents = await self._look_at(paths)
                if key is not None:
                    known = await self._known(request, [*contents.values()], key)
                    if known is not None:
                        return known
                scope.reschedule(end)
                uploads = {field: self._start(each) for field, each in contents.items()}
                urls = [await self._outcome(each, field) for field, each in uploads.items()]
                return _with_urls(request, urls)
        except TimeoutError:
            if not scope.expired():
                raise
        failures = (each.failure for each in uploads.values() if not each.task.done())
        failure = next(filter(None, failures), None)
        problem = "its files were not uploaded yet" + (f": {failure}" if failure else ".")
        raise about(WaitTimeout(problem=problem), key=key) from failure

    async def _known(self, request: Request, contents: list[Content], key: str) -> Request | None:
        """The request with the URLs that were sent for its key; None if it must be uploaded first.

        Raises:
            KeyConflict: the key belongs to another request.
            MidAPIError: what `Submitter.find` raises for the key.
        """
        row = await self._journal.find(key=(self._scope, key))
        if row is None or row.state is State.REFUSED:
            return None
        if row.request is None:
            # It was pruned, or is stored without its request: `find` may raise an error for the
            # key. While it is being sent nothing is known, and `generate` will wait for it.
            if row.state not in PENDING:
                await self._find(key)
            return None
        hashed = _with_urls(request, [UploadedURL(_NOWHERE, each.sha256) for each in contents])
        if row.fingerprint != fingerprint(hashed):
            names = {"intent_id": row.intent_id, "task_id": row.task_id}
            raise about(KeyConflict(key), **names)
        # The same files. If it is being sent just now and is refused in the end, these URLs are new
        # enough to be sent again.
        sent = getattr(row.request, "file_urls", ())
        places = zip(paths_of(request), contents, strict=True)
        return _with_urls(request, [UploadedURL(sent[i], each.sha256) for i, each in places])

    async def _look_at(self, sources: Mapping[str, object]) -> dict[str, Content]:
        """What each source contains, by the field that names it.

        Raises:
            InvalidRequestError: naming each one that cannot be uploaded.
        """
        largest = LARGEST if self._own is None else None
        contents, problems = {}, {}
        for field, source in sources.items():
            try:
                contents[field] = await asyncio.to_thread(look_at, source, largest)
            except SourceError as error:
                problems[field] = str(error)
        if problems:
            raise InvalidRequestError(problems)
        return contents

    # ─── sharing ─────────────────────────────────────────────────────────────────────────────────

    def _start(self, source: Content | str, name: str | None = None) -> _Upload:
        """Upload a content, or copy what is at a URL; or join the same upload if it is under way.

        It goes on when its callers are cancelled: it costs nothing, and the next call finds what it
        has stored.
        """
        if self._stopped.done():
            raise ClientClosed
        identity = source if isinstance(source, str) else source.sha256, name
        upload = self._under_way.get(identity)
        if upload is None:
            default = "upload" if isinstance(source, str) else source.name
            upload = self._under_way[identity] = _Upload(name or default)
            upload.task = self._tasks.start(self._carry_out(upload, source, name))
            upload.task.add_done_callback(lambda _: self._under_way.pop(identity))
        return upload

    async def _carry_out(
        self, upload: _Upload, source: Content | str, name: str | None
    ) -> UploadedURL | Exception:
        try:
            if isinstance(source, str):
                return await self._copy_url(upload, source, name)
            if self._own is not None:
                return await self._upload_by_user(upload, source, self._own)
            return await self._upload_content(upload, source, name)
        except Exception as error:  # noqa: BLE001 - every caller gets it, also what the user's own function raises
            return error

    async def _outcome(
        self, upload: _Upload, field: str, on_progress: OnProgress | None = None
    ) -> UploadedURL:
        """Wait for an upload; return its URL, or raise its error, which names it by its field."""
        reporter = Reporter(on_progress)
        upload.reporters.append(reporter)
        ends: set[asyncio.Future[Any]] = {upload.task, self._stopped}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            upload.reporters.remove(reporter)
        if not upload.task.done() or upload.task.cancelled():
            raise ClientClosed
        found = upload.task.result()
        if isinstance(found, UploadedURL):
            return found
        if isinstance(found, SourceError):
            raise InvalidRequestError({field: str(found)})
        if isinstance(found, MidAPIError):
            # A copy for each caller, because raising adds a traceback, and callers add their key.
            raise copy(found) from found.__cause__
        raise found

    def stop(self) -> None:
        """Upload nothing more: whoever waits for an upload gets `ClientClosed`."""
        if not self._stopped.done():
            self._stopped.set_result(None)
        self._tasks.cancel()

    async def aclose(self) -> None:
        """Wait until nothing is under way and close every connection."""
        self.stop()
        await self._tasks.finish()
        if self._transport is not None:
            await self._transport.aclose()

    # ─── uploading ───────────────────────────────────────────────────────────────────────────────

    async def _upload_content(
        self, upload: _Upload, content: Content, name: str | None
    ) -> UploadedURL:
        """Upload a content to the upload URL, unless that was done before.

        With a name of the user's it is uploaded each time, because another content may have
        replaced it under that name.
        """
        server = str(self._settings.upload_url)
        scope, kind = self._scope.partition(" ")[0], f"upload {content.sha256}"
        url: str | None = None
        if name is None:
            with suppress(JournalError):  # then it is uploaded
                url = (await self._journal.notes(scope, kind)).get(server)
        if url is not None:
            upload.report(content.size, content.size)
            return UploadedURL(url, content.sha256)
        expires = time.time() + KEPT / self._clock.scale
        form = Form(content, _FOLDER, upload.name, upload.report)
        url = await self._send(Call("POST", protocol.UPLOAD_FILE, form=form), upload)
        if name is None:
            try:
                await self._journal.note(scope, kind, server, url, expires=expires)
            except JournalError as error:
                _log.warning("an upload could not be noted and may be repeated: %s", error)
        return UploadedURL(url, content.sha256)

    async def _copy_url(self, upload: _Upload, url: str, name: str | None) -> UploadedURL:
        """Have the server copy what is at a URL."""
        body: dict[str, object] = {"fileUrl": url, "uploadPath": _FOLDER}
        if name is not None:
            body["fileName"] = name
        call = Call("POST", protocol.UPLOAD_URL, dumps(body))
        return UploadedURL(await self._send(call, upload))

    async def _upload_by_user(
        self, upload: _Upload, content: Content, function: OwnUploader
    ) -> UploadedURL:
        """Have the user's own function upload a content."""
        async with self._turns:
            answer = function(content.source)
            url = await answer if isinstance(answer, Awaitable) else None
        if problem := url_problem(url):
            raise InvalidRequestError(
                {"uploader": f"must be async and return a URL, which {problem}"}
            )
        if isinstance(content.source, Path) and stamp_of(content.source) != content.stamp:
            raise content.changed()
        upload.report(content.size, content.size)
        return UploadedURL(url, content.sha256)

    async def _send(self, call: Call, upload: _Upload) -> str:
        """Send a call to the upload URL until it succeeds, three times at most; return the URL."""
        url = self._settings.upload_url
        if url is None:
            raise InvalidRequestError({"upload_url": _NO_HOST})
        if self._transport is None:
            self._transport = Transport(
                attrs.evolve(self._settings, base_url=url),
                self._clock,
                connect_timeout=self._timeouts.connect,
                ssl=self._ssl,
            )
        for pause in (*_PAUSES, None):
            try:
                async with self._turns:
                    return await self._send_once(self._transport, call)
            except MidAPIError as error:
                upload.failure = error
                wait = getattr(error, "retry_after", None) or 0.0
                if pause is None or wait > LONGEST_RETRY_AFTER or not _is_temporary(error):
                    raise
                wait = max(pause * (1 + self._clock.chance() / 2), wait)
                _log.info("The upload of %s failed, again in %.1f s: %s", upload.name, wait, error)
            await asyncio.sleep(wait / self._clock.scale)
        raise AssertionError  # the last attempt returns or raises

    async def _send_once(self, transport: Transport, call: Call) -> str:
        try:
            answer = await transport.call(call, self._timeouts.submit)
        except TransportError as error:
            if isinstance(call.form, Form) and call.form.problem is not None:
                raise call.form.problem from None
            if self._settings.upload_url != self._settings.base_url:
                advice = error.advice.replace("the base URL", "the upload URL")
                error.advice = advice.replace("MIDAPI_BASE_URL", "MIDAPI_UPLOAD_URL")
            raise
        try:
            return protocol.read_upload(answer)
        except ProtocolError:
            # It may answer another call: one that came twice shifts all later ones.
            await transport.replace(answer)
            raise


def _is_temporary(error: MidAPIError) -> bool:
    """Whether a failed upload may succeed a little later."""
    if isinstance(error, TransportError):
        return not error.permanent
    if isinstance(error, APIError):
        return error.code >= 500 or error.code in {408, 425, 429, 455}
    return isinstance(error, ProtocolError)


# The URL of a file in a request that is only compared, and never sent.
_NOWHERE = "https://not-uploaded.invalid/"


def _with_urls(request: Request, urls: Iterable[UploadedURL]) -> Request:
    """The request with URLs in place of its paths, in their order."""
    left = iter(urls)
    has_files = cast("ImageToImage", request)  # or another kind that has them
    files = [next(left) if isinstance(each, Path) else each for each in has_files.file_urls]
    return attrs.evolve(has_files, file_urls=files)


# ─── arguments ───────────────────────────────────────────────────────────────────────────────────


def _name_problem(name: object, own: OwnUploader | None) -> str | None:
    if own is not None:
        return "cannot be given with your own uploader=, which names its files"
    if isinstance(name, str) and name.isprintable() and name.strip():
        is_plain = not re.search(r'^\.|[/\\"]', name)
        if is_plain and len(name.encode()) <= _LONGEST_NAME:
            return None
    return f"must be a file name without a folder, as in 'fox.png', got {shown(name)}"


def _url_problem(source: str, own: OwnUploader | None) -> str | None:
    if not source.startswith(("http://", "https://")):
        return "is a str that is not an http or https URL; for a file write Path('a.png')"
    if own is not None:
        return "is a URL, which your own uploader= cannot copy; give it to the request as it is"
    return url_problem(source)


def file_problem(path: Path, hint_if_missing: str) -> str | None:
    """Why a file cannot be uploaded; None if it can. Blocks: it reads the whole file.

    Args:
        path: the file.
        hint_if_missing: what to add if there is no such file.
    """
    try:
        look_at(path, LARGEST)
    except SourceError as error:
        return f"{error}{'' if os.path.lexists(path) else hint_if_missing}"
    return None
