"""Uploads reference pictures: each content once while its URL lasts, and before anything is paid.

A file is read twice: once to see what it is and to hash it, once to send it. If it has changed in
between, its last bytes are not sent, so that the server never gets a whole file that nobody meant.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import copy
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import TypeAlias, cast

import attrs
from yarl import URL

from .._runtime.background import OwnedTasks
from .._runtime.clock import Clock
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
from .form import FOLDER, Form
from .progress import Progress, Reporter
from .source import Changed, Content, look_at_bytes, look_at_file, read_all, stamp_of

_log = logging.getLogger("midapi_async.files")

OwnUploader: TypeAlias = Callable[[Path | bytes], Awaitable[str]]
OnProgress: TypeAlias = Callable[[Progress], None]

LARGEST = 10 << 20  # bytes; the sister documents it for one of its ways to upload
KEPT = 3 * 86_400.0 - 3600.0  # seconds; the server deletes uploads after three days
_AT_ONCE = 4
_PAUSES = (1.0, 3.0, None)  # seconds after each failed attempt
_LAST_READ = 0.5  # seconds of the loop for files and the journal when there is no time left
_LONGEST_NAME = 200  # bytes
_NO_HOST = (
    "is not known: MidAPI documents no host for uploads. Pass upload_url= or set "
    "MIDAPI_UPLOAD_URL, or pass uploader=, a function that puts a file where MidAPI can fetch it"
)


@attrs.define
class _Asking:
    """The callers that wait for one upload.

    Attributes:
        name: the name of the upload.
        callers: what each of them waits for, and its `on_progress`.
        failure: of the last attempt.
    """

    name: str
    callers: list[tuple[asyncio.Future[object], Reporter]] = attrs.field(factory=list)
    failure: MidAPIError | None = None

    def report(self, done: int, total: int) -> None:
        """Tell those who still wait how far it is."""
        for waiting, reporter in self.callers:
            if not waiting.done():
                reporter.report(self.name, 0, done, total, is_last=done == total)

    def resolve(self, found: object) -> None:
        """Give the outcome to all who still wait."""
        for waiting, _ in self.callers:
            if not waiting.done():
                waiting.set_result(found)


@attrs.define(eq=False, repr=False)
class Uploader:
    """Uploads files, and replaces the paths in requests by the URLs of uploads.

    Args:
        settings: the API key and the upload URL.
        clock: the client's clock.
        journal: remembers what was uploaded, and knows the requests of keys.
        scope: the scope of the client's rows in it.
        timeouts: for connections and answers.
        find: what was bought with a key, as `Submitter.find` has it.
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
    _shared: dict[str, _Asking] = attrs.field(factory=dict, init=False)
    _tasks: OwnedTasks = attrs.field(factory=OwnedTasks, init=False)
    _turns: asyncio.Semaphore = attrs.field(
        factory=partial(asyncio.Semaphore, _AT_ONCE), init=False
    )
    _is_stopped: bool = attrs.field(default=False, init=False)

    async def upload(
        self, source: object, *, name: str | None, on_progress: OnProgress | None
    ) -> UploadedURL:
        """Upload one file; see ``client.upload``.

        Raises:
            InvalidRequestError: an argument is wrong, or the source is not a picture or a video.
            MidAPIError: the upload failed.
        """
        problems = {}
        if name is not None and (problem := _name_problem(name)):
            problems["name"] = problem
        elif name is not None and self._own is not None:
            problems["name"] = "cannot be given with your own uploader=, which names its files"
        if on_progress is not None and not callable(on_progress):
            problems["on_progress"] = f"must be a function, got {shown(on_progress)}"
        if isinstance(source, str) and (problem := _url_problem(source, self._own)):
            problems["source"] = problem
        if problems:
            raise InvalidRequestError(problems)
        if isinstance(source, str):
            return await self._outcome(self._start_url(str(source), name), "source")
        content = await self._looked_at(source)
        if isinstance(content, str):
            raise InvalidRequestError({"source": content})
        return await self._outcome(self._start(content, name, on_progress), "source")

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
        paths = paths_of(request)
        if not paths:
            return request
        end = None if deadline is None else deadline / self._clock.scale
        now = self._clock.loop.time()
        # With no time left, a known key must still be answered.
        scope = asyncio.timeout_at(None if end is None else max(end, now + _LAST_READ))
        started: dict[int, asyncio.Future[object]] = {}
        urls: dict[int, UploadedURL] = {}
        try:
            async with scope:
                contents = await self._all_looked_at(paths)
                unsent = {i: _url_of(each, _NOWHERE) for i, each in contents.items()}
                hashed = _with_files(request, unsent)
                if key is not None and (row := await self._known(hashed, key)) is not None:
                    # The same files. If it is being sent just now and is refused in the end, these
                    # URLs are new enough to be sent again.
                    before = getattr(row.request, "file_urls", ())
                    urls = {i: _url_of(each, before[i]) for i, each in contents.items()}
                    return _with_files(request, urls)
                scope.reschedule(end)
                started = {i: self._start(each) for i, each in contents.items()}
                for index, waiting in started.items():
                    urls[index] = await self._outcome(waiting, f"file_urls[{index}]")
        except TimeoutError:
            if not scope.expired():
                raise
        else:
            return _with_files(request, urls)
        mine = {*started.values()}
        failed = next(
            (
                asking.failure
                for asking in self._shared.values()
                if asking.failure is not None and mine & {each for each, _ in asking.callers}
            ),
            None,
        )
        problem = "its files were not uploaded yet" + (f": {failed}" if failed is not None else ".")
        raise about(WaitTimeout(problem=problem), key=key) from failed

    async def _all_looked_at(self, paths: dict[int, Path]) -> dict[int, Content]:
        """What each file contains; all problems are reported together."""
        contents, problems = {}, {}
        for index, path in paths.items():
            found = await self._looked_at(path)
            if isinstance(found, str):
                problems[f"file_urls[{index}]"] = found
            else:
                contents[index] = found
        if problems:
            raise InvalidRequestError(problems)
        return contents

    async def _known(self, hashed: Request, key: str) -> Intent | None:
        """The row of a key with the request in it; None if the request must be uploaded first.

        Args:
            hashed: the request, with the hashes of its files and no true URLs yet.
            key: the user's own name for it.

        Raises:
            KeyConflict: the key belongs to another request.
        """
        row = await self._journal.find(key=(self._scope, key))
        if row is None or row.state is State.REFUSED:
            return None
        if row.request is not None:
            if row.fingerprint != fingerprint(hashed):
                names = {"intent_id": row.intent_id, "task_id": row.task_id}
                raise about(KeyConflict(key), **names)
            return row
        if row.state not in PENDING:
            # Pruned, or stored without its request: raise what there is to raise for the key.
            await self._find(key)
        return None

    # ─── what is uploaded ────────────────────────────────────────────────────────────────────────

    async def _looked_at(self, source: object) -> Content | str:
        """What a source contains; or what is wrong with it."""
        if self._is_stopped:
            raise ClientClosed
        most = LARGEST if self._own is None else None
        if isinstance(source, os.PathLike) and isinstance(path := os.fspath(source), str):
            return await asyncio.to_thread(look_at_file, Path(path), most)
        if callable(read := getattr(source, "read", None)):
            source = await asyncio.to_thread(read_all, read, most)
            if isinstance(source, str):
                return source
        if isinstance(source, bytes | bytearray | memoryview):
            return await asyncio.to_thread(look_at_bytes, bytes(source), most)
        kind = "None" if source is None else f"a {type(source).__name__}"
        return f"must be a Path, bytes, a file that is open for reading, or a URL, got {kind}"

    def _host(self) -> URL:
        """Where to upload.

        Raises:
            InvalidRequestError: that is not known.
        """
        if self._settings.upload_url is None:
            raise InvalidRequestError({"upload_url": _NO_HOST})
        return self._settings.upload_url

    # ─── sharing ─────────────────────────────────────────────────────────────────────────────────

    def _start(
        self, content: Content, name: str | None = None, on_progress: OnProgress | None = None
    ) -> asyncio.Future[object]:
        """Begin to upload a content, or share an upload of it that is under way."""
        if self._own is not None:
            work = partial(self._upload_by_user, self._own, content)
        else:
            work = partial(self._upload, content, name, str(self._host()))
        called = name or content.name
        return self._share(f"{content.sha256} {called}", called, work, on_progress)

    def _start_url(self, url: str, name: str | None) -> asyncio.Future[object]:
        body: dict[str, object] = {"fileUrl": url, "uploadPath": FOLDER}
        if name is not None:
            body["fileName"] = name
        call = Call("POST", protocol.UPLOAD_URL, dumps(body))

        async def work(asking: _Asking) -> UploadedURL:
            return UploadedURL(await self._send(lambda: call, asking))

        return self._share(f"{url} {name}", name or "upload", work, None)

    def _share(
        self,
        identity: str,
        name: str,
        work: Callable[[_Asking], Awaitable[UploadedURL]],
        on_progress: OnProgress | None,
    ) -> asyncio.Future[object]:
        """Wait for an upload, which is begun if it is not under way.

        It has a task of its own and goes on when its callers are cancelled: it costs nothing, and
        the next call finds what it has stored.
        """
        if self._is_stopped:
            raise ClientClosed
        own: asyncio.Future[object] = self._clock.loop.create_future()
        reporter = Reporter(on_progress)
        asking = self._shared.get(identity)
        if asking is not None:
            asking.callers.append((own, reporter))
            return own
        asking = self._shared[identity] = _Asking(name, [(own, reporter)])
        self._tasks.start(self._carry_out(identity, asking, work))
        return own

    async def _carry_out(
        self,
        identity: str,
        asking: _Asking,
        work: Callable[[_Asking], Awaitable[UploadedURL]],
    ) -> None:
        found: object = ClientClosed()
        try:
            found = await work(asking)
        except Exception as error:  # noqa: BLE001 - every caller gets it, also what the user's own function raises
            found = error
        finally:
            del self._shared[identity]
            asking.resolve(found)

    async def _outcome(self, waiting: asyncio.Future[object], field: str) -> UploadedURL:
        found = await waiting
        if isinstance(found, UploadedURL):
            return found
        if isinstance(found, Changed):
            raise InvalidRequestError({field: found.problem})
        if isinstance(found, MidAPIError):  # raising adds a traceback, so each caller gets a copy
            error = copy(found)
            error.__cause__ = found.__cause__
            raise error
        raise cast("Exception", found)

    def stop(self) -> None:
        """Upload nothing more: whoever waits for an upload gets `ClientClosed`."""
        self._is_stopped = True
        for asking in self._shared.values():
            asking.resolve(ClientClosed())
        self._tasks.cancel()

    async def aclose(self) -> None:
        """Wait until nothing is under way and close every connection."""
        self.stop()
        await self._tasks.finish()
        if self._transport is not None:
            await self._transport.aclose()

    # ─── uploading ───────────────────────────────────────────────────────────────────────────────

    async def _upload(
        self, content: Content, name: str | None, server: str, asking: _Asking
    ) -> UploadedURL:
        """Upload a content to the upload URL, unless that was done before.

        With a name of the user's it is uploaded each time, because another content may have
        replaced it under that name.
        """
        scope, kind = self._scope.partition(" ")[0], f"upload {content.sha256}"
        url: str | None = None
        if name is None:
            with suppress(JournalError):  # then it is uploaded
                url = (await self._journal.notes(scope, kind)).get(server)
        if url is not None:
            asking.report(content.size, content.size)
            return _url_of(content, url)
        expires = time.time() + KEPT / self._clock.scale

        def call() -> Call:
            try:
                form = Form(content, name or content.name, asking.report)
            except OSError:
                raise Changed(content) from None
            return Call("POST", protocol.UPLOAD_FILE, form=form)

        url = await self._send(call, asking)
        if name is None:
            try:
                await self._journal.note(scope, kind, server, url, expires=expires)
            except JournalError as error:
                _log.warning("an upload could not be noted and may be repeated: %s", error)
        return _url_of(content, url)

    async def _upload_by_user(
        self, upload: OwnUploader, content: Content, asking: _Asking
    ) -> UploadedURL:
        """Have the user's own function upload a content."""
        async with self._turns:
            answer = upload(content.source)
            url = await answer if isinstance(answer, Awaitable) else None
        if problem := url_problem(url):
            raise InvalidRequestError(
                {"uploader": f"must be async and return a URL, which {problem}"}
            )
        if isinstance(content.source, Path) and stamp_of(content.source) != content.stamp:
            raise Changed(content)
        asking.report(content.size, content.size)
        return _url_of(content, url)

    async def _send(self, make_call: Callable[[], Call], asking: _Asking) -> str:
        """Send a call to the upload URL until it succeeds, three times at most; return the URL."""
        if self._transport is None:
            self._transport = Transport(
                attrs.evolve(self._settings, base_url=self._host()),
                self._clock,
                connect_timeout=self._timeouts.connect,
                ssl=self._ssl,
            )
        for pause in _PAUSES:
            try:
                async with self._turns:
                    return await self._send_once(self._transport, make_call())
            except MidAPIError as error:
                asking.failure = error
                wait = getattr(error, "retry_after", None) or 0.0
                if pause is None or wait > LONGEST_RETRY_AFTER or not _is_passing(error):
                    raise
                wait = max(pause * (1 + self._clock.chance() / 2), wait)
                _log.info("The upload of %s failed, again in %.1f s: %s", asking.name, wait, error)
            await asyncio.sleep(wait / self._clock.scale)
        raise AssertionError  # the last attempt returns or raises

    async def _send_once(self, transport: Transport, call: Call) -> str:
        try:
            answer = await transport.call(call, self._timeouts.submit)
        except TransportError as error:
            if isinstance(call.form, Form) and call.form.has_changed:
                raise Changed(call.form.content) from None
            raise self._renamed(error) from None
        finally:
            if isinstance(call.form, Form):
                call.form.file.close()
        try:
            return protocol.read_upload(answer)
        except ProtocolError:
            # It may answer another call: one that came twice shifts all later ones.
            await transport.replace(answer)
            raise

    def _renamed(self, error: TransportError) -> TransportError:
        """The error with advice about the upload URL, if that is another one than the base URL."""
        if self._settings.upload_url != self._settings.base_url:
            advice = error.advice.replace("the base URL", "the upload URL")
            error.advice = advice.replace("MIDAPI_BASE_URL", "MIDAPI_UPLOAD_URL")
        return error


def _is_passing(error: MidAPIError) -> bool:
    """Whether a failed upload may succeed a little later."""
    if isinstance(error, TransportError):
        return not error.permanent
    if isinstance(error, APIError):
        return error.code >= 500 or error.code in {408, 425, 429, 455}
    return isinstance(error, ProtocolError)


def _url_of(content: Content, url: str) -> UploadedURL:
    return UploadedURL(url, content.sha256)


# The URL of a file in a request that is only compared, and never sent.
_NOWHERE = "https://not-uploaded.invalid/"


def _with_files(request: Request, files: dict[int, UploadedURL]) -> Request:
    """The request with other files at these places of its `file_urls`."""
    before = getattr(request, "file_urls", ())
    after = tuple(files.get(index, each) for index, each in enumerate(before))
    return attrs.evolve(cast("ImageToImage", request), file_urls=after)


# ─── arguments ───────────────────────────────────────────────────────────────────────────────────


def _name_problem(name: object) -> str | None:
    if not isinstance(name, str):
        return f"must be a str, got {shown(name)}"
    is_plain = name.isprintable() and not any(c in name for c in '/\\"') and name[:1] != "."
    if not name.strip() or not is_plain or len(name.encode(errors="replace")) > _LONGEST_NAME:
        return f"must be a file name without a folder, as in 'fox.png', got {shown(name)}"
    return None


def _url_problem(source: str, own: OwnUploader | None) -> str | None:
    if not source.startswith(("http://", "https://")):
        return "is a str that is not an http or https URL; for a file write Path('a.png')"
    if own is not None:
        return "is a URL, which your own uploader= cannot copy; give it to the request as it is"
    return url_problem(source)
