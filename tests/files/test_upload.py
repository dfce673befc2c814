"""Uploads: what is refused, where it is sent, what is sent again, and once per content."""

import asyncio
import base64
import errno
import hashlib
import io
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from email import message_from_bytes
from email.policy import HTTP
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import attrs
import pytest

from midapi_async import (
    AuthenticationError,
    BadRequestError,
    ClientClosed,
    ImageToImage,
    ImageToVideo,
    InvalidRequestError,
    JournalError,
    KeyConflict,
    MemoryJournal,
    MidAPIError,
    Progress,
    ProtocolError,
    ServerError,
    State,
    StyleReference,
    TaskExpired,
    TextToImage,
    TransportError,
    UploadedURL,
    WaitTimeout,
)
from midapi_async.files import form
from midapi_async.files import source as source_module
from midapi_async.files.source import BLOCK, look_at
from midapi_async.files.upload import KEPT, LARGEST
from midapi_async.journal import Intent
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import Sandbox
from tests.support.scripted import (
    Answer,
    Play,
    Received,
    ScriptedServer,
    Step,
    close,
    cut,
    delay,
    drip,
    hang,
    lose_answer,
    reply,
    reset,
)
from tests.support.secrets import API_KEY
from tests.world import accepted, client_of, looked, mid, refused

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SHA = hashlib.sha256(PNG).hexdigest()
URL = "https://files.example/u/fox.png"


def uploaded(url: str = URL, name: str = "downloadUrl", **envelope: object) -> Answer:
    """An upload that succeeded."""
    return reply(json={"success": True, "code": 200, "msg": "ok", "data": {name: url}} | envelope)


def serving(upload: Play, submit: Play | None = None) -> Callable[[Received], Answer]:
    """A step that answers uploads, and everything else as MidAPI does."""

    def step(request: Received) -> Answer:
        play = upload if "upload" in request.path else submit or mid(accepted(), looked())
        return play(request) if callable(play) else play  # type: ignore[return-value]

    return step


def uploads(server: ScriptedServer | Sandbox) -> list[str]:
    """The paths of the uploads that have arrived."""
    found = server.requests if isinstance(server, ScriptedServer) else server.ledger.requests
    return [request.path for request in found if "upload" in request.path]


def form_of(request: Received) -> dict[str, tuple[str | None, str, bytes]]:
    """The parts of a multipart form by name: the file name, the media type and the content."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    parts = {}
    for part in message_from_bytes(head + request.body, policy=HTTP).get_payload():
        each: Any = part
        name = str(each.get_param("name", header="content-disposition"))
        content: bytes = each.get_payload(decode=True)
        parts[name] = each.get_filename(), each.get_content_type(), content
    return parts


async def fetched(url: str) -> bytes:
    """What is there."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.read()


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    """A small picture on the disk."""
    path = tmp_path / "fox.png"
    path.write_bytes(PNG)
    return path


# ─── what is sent ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", [Path, bytes, bytearray, io.BytesIO, open], ids=str)
async def test_each_kind_of_source_arrives_whole(fox: Path, source: Any) -> None:
    """As a multipart form with the key, a name made from the content, and its type."""
    async with ScriptedServer([uploaded()]) as server, client_of(server) as client:
        with fox.open("rb") as file:
            given: Any = {Path: fox, open: file}.get(source) or source(PNG)
            url = await client.upload(given)
    assert url == URL
    assert url.sha256 == SHA
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/api/file-stream-upload")
    assert request.headers["authorization"] == f"Bearer {API_KEY}"
    assert form_of(request) == {
        "uploadPath": (None, "text/plain", b"midapi-async"),
        "fileName": (None, "text/plain", f"{SHA[:16]}.png".encode()),
        "file": (f"{SHA[:16]}.png", "image/png", PNG),
    }


async def test_the_sandbox_takes_what_is_uploaded(fox: Path) -> None:
    """Over real sockets; its URL leads to the same bytes."""
    async with Sandbox(api_key=API_KEY) as sandbox, client_of(sandbox.url) as client:
        url = await client.upload(fox, name="red fox.png")
        copied = await client.upload(url)
        assert await fetched(url) == PNG
        assert copied.sha256 is None
        assert uploads(sandbox) == ["/api/file-stream-upload", "/api/file-url-upload"]


@pytest.mark.fault("D15")
async def test_no_free_descriptor_is_not_the_files_fault(
    fox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again like a failed connection."""
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]

    def opened(source: Path | bytes) -> BinaryIO:
        if failures:
            raise failures.pop()
        return source_module.opened(source)

    monkeypatch.setattr(form, "opened", opened)
    async with ScriptedServer(then=uploaded()) as server, client_of(server) as client:
        assert await client.upload(fox) == URL
    assert failures == []


async def test_a_large_file_is_sent_in_blocks_and_its_progress_is_shown(tmp_path: Path) -> None:
    """Never more than it has; the last report says that all of it was sent."""
    path = tmp_path / "large.png"
    path.write_bytes(PNG + bytes(LARGEST - len(PNG)))
    seen: list[Progress] = []
    async with ScriptedServer([uploaded()]) as server, client_of(server) as client:
        await client.upload(path, name="large.png", on_progress=seen.append)
    assert form_of(server.requests[0])["file"][2] == path.read_bytes()
    assert seen[-1] == Progress(name="large.png", index=0, done=LARGEST, total=LARGEST)
    assert [each.done for each in seen] == sorted(each.done for each in seen)


async def test_a_function_that_fails_does_not_end_the_upload(
    fox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, with a traceback."""

    def fail(progress: Progress) -> None:
        raise ValueError("a bug of the user's")

    fox.write_bytes(PNG + bytes(3 * BLOCK))
    async with ScriptedServer([drip(uploaded())]) as server, client_of(server) as client:
        assert await client.upload(fox, on_progress=fail) == URL
    assert caplog.text.count("on_progress raised") == 1


async def test_a_url_is_copied_by_the_server() -> None:
    """Its content is not known, so it has no hash and is copied each time."""
    async with ScriptedServer(then=uploaded(name="fileUrl")) as server, client_of(server) as client:
        for name in (None, "a.png"):
            url = await client.upload("https://h/x.png", name=name)
            assert (url, url.sha256) == (URL, None)
    bodies = [request.json() for request in server.requests]
    plain = {"fileUrl": "https://h/x.png", "uploadPath": "midapi-async"}
    assert bodies == [plain, {**plain, "fileName": "a.png"}]


# ─── what is refused before anything is sent ─────────────────────────────────────────────────────


def unreadable(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be uploaded, and what is said of each."""
    for name, data in {
        "empty.png": b"",
        "page.png": b"<!doctype html><html><title>Log in",
        "text.png": b"hello",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "large.png": PNG + bytes(LARGEST + 1 - len(PNG)),
    }.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "a\nb.png").write_bytes(b"")
    said = {
        "no.png": "does not exist",
        "": "is a folder",
        "empty.png": "is empty",
        "page.png": "is an HTML page, not a picture or a video",
        "text.png": "is text, not",
        "drawing.png": "is an SVG drawing, not",
        "large.png": "is too large: an upload may have 10 MiB",
        "pipe.png": "is not a file",
        "loop.png": "cannot be read: Too many levels of symbolic links",
        "a\0b.png": "cannot be read: embedded null byte",
        "a\nb.png": "a\\nb.png' is empty",
        "a\udcffb.png": "a\\udcffb.png' does not exist",
    }
    return {name or "folder": (folder / name, text) for name, text in said.items()}


async def test_a_wrong_file_costs_nothing(fox: Path, tmp_path: Path) -> None:
    """Named with its reason by each call; nothing is sent, nothing is written, in 5 s of doubt."""
    async with ScriptedServer() as server, client_of(server, journal=tmp_path / "j") as client:
        for name, (path, text) in unreadable(tmp_path).items():
            with pytest.raises(InvalidRequestError) as caught:
                await client.upload(path)
            assert list(caught.value.problems) == ["source"], name
            assert text in str(caught.value), name
            assert str(caught.value).isprintable()
            request = ImageToImage("x", [fox, URL, path, tmp_path / "neither.png"])
            for call in (client.prepare, client.generate, client.generate_and_wait):
                with pytest.raises(InvalidRequestError) as caught:
                    await call(request)
                assert list(caught.value.problems) == ["file_urls[2]", "file_urls[3]"], name
                assert text in str(caught.value), name
        assert await client._journal.rows() == []
    assert server.requests == []


@pytest.mark.parametrize("options", [{"key": ""}, {"metadata": {"a": 5}}, {"callback_url": "x"}])
async def test_a_wrong_argument_is_refused_before_the_upload(fox: Path, options: Any) -> None:
    """An upload costs time."""
    async with ScriptedServer() as server, client_of(server) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.generate(ImageToImage("x", [fox]), **options)
        assert list(caught.value.problems) == list(options)
    assert server.requests == []


async def test_without_a_known_host_the_error_says_what_to_set(fox: Path) -> None:
    """For MidAPI itself; a wrong file is named first."""
    async with client_of("https://api.midapi.ai") as client:
        calls: list[Awaitable[object]] = [
            client.upload(fox),
            client.prepare(ImageToImage("x", [fox])),
        ]
        for call in calls:
            with pytest.raises(InvalidRequestError, match="is not known: MidAPI doc") as caught:
                await call
            ((name, problem),) = caught.value.problems.items()
            assert name == "upload_url"
            assert {"upload_url=", "MIDAPI_UPLOAD_URL,", "uploader=,"} <= {*problem.split()}
        with pytest.raises(InvalidRequestError, match="does not exist"):
            await client.prepare(ImageToImage("x", [fox.with_name("no.png")]))
        plain = ImageToImage("x", [URL])
        assert await client.prepare(plain) is plain


async def test_the_api_key_goes_to_the_upload_url_and_errors_name_it(fox: Path) -> None:
    """Which may be another server than MidAPI."""
    async with ScriptedServer([uploaded()]) as host, ScriptedServer() as server:
        async with client_of(server, upload_url=host.url) as client:
            assert await client.upload(fox) == URL
    assert server.requests == []
    async with client_of(server, upload_url=host.url) as client:
        with pytest.raises(TransportError, match="MIDAPI_UPLOAD_URL"):
            await client.upload(fox)


# ─── failures ────────────────────────────────────────────────────────────────────────────────────

PAGE = reply(body="<html><title>Log in</title></html>", headers={"Content-Type": "text/html"})
PASSING: dict[str, Any] = {
    "500": reply(500),
    "500 of MidAPI": refused(500),
    "503 with a Retry-After": reply(503, headers={"Retry-After": "7"}),
    "429": refused(429),
    "429 with a Retry-After": refused(429, Retry_After="20"),
    "455": refused(455),
    "a page": PAGE,
    "a redirect": reply(302, headers={"Location": "https://evil.example/"}),
    "a cut answer": cut(uploaded(), body=30),
    "no answer": lose_answer(),
    "reset in the body": reset("headers"),
    "closed at once": close("accept"),
    "no success": uploaded(success=False, code=200, msg="try again"),
    "no URL": uploaded(data={}),
    "no data": uploaded(data=None),
    "a URL that is none": uploaded("file:///etc/passwd"),
    "not JSON": reply(body="{"),
}


@pytest.mark.parametrize("name", PASSING)
async def test_a_failure_that_may_pass_is_tried_again(fox: Path, name: str) -> None:
    """Twice, with pauses; the file is sent from its beginning each time."""
    step = PASSING[name]
    async with ScriptedServer([step, step, uploaded()]) as server, client_of(server) as client:
        begun = asyncio.get_running_loop().time()
        url = await client.upload(fox)
        assert 4 <= asyncio.get_running_loop().time() - begun <= 60
    assert url == URL
    assert form_of(server.requests[-1])["file"][2] == PNG


@pytest.mark.parametrize("name", PASSING)
async def test_the_third_failure_is_raised(fox: Path, name: str) -> None:
    """As an error of the usual tree that speaks of no purchase; the next call tries again."""
    async with ScriptedServer([PASSING[name]] * 3 + [uploaded()]) as server:
        async with client_of(server) as client:
            with pytest.raises(MidAPIError) as caught:
                await client.upload(fox)
            assert not isinstance(caught.value, InvalidRequestError)
            assert "bought" not in str(caught.value)
            assert await client.upload(fox) == URL


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (refused(400), BadRequestError),
        (refused(401), AuthenticationError),
        (refused(413), MidAPIError),
        (reply(413), MidAPIError),
        (reply(403, body="<title>Blocked</title>"), MidAPIError),
        (refused(429, Retry_After="3600"), MidAPIError),
    ],
)
async def test_a_refusal_is_raised_at_once(
    fox: Path, step: Answer, kind: type[MidAPIError]
) -> None:
    """The same file would be refused again; nothing is bought without it."""
    async with ScriptedServer(then=step) as server, client_of(server) as client:
        with pytest.raises(kind):
            await client.generate(ImageToImage("x", [fox]))
    assert uploads(server) == ["/api/file-stream-upload"]
    assert len(server.requests) == 1


async def test_an_answer_that_comes_before_the_end_of_the_file_is_read() -> None:
    """Servers refuse a large body when they have seen its headers, and then read no more of it."""
    answer = refused(413, "too large", 413)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer.head + answer.body)
        await writer.drain()
        await asyncio.sleep(60)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with client_of(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(MidAPIError, match="answered 413: too large"):
                await client.upload(PNG + bytes(LARGEST - 100))
        await asyncio.sleep(60)


async def test_a_server_that_hangs_is_given_up(fox: Path) -> None:
    """Three times the timeout of a POST."""
    async with ScriptedServer(then=hang()) as server, client_of(server) as client:
        with pytest.raises(TransportError, match="no answer came in time"):
            await client.upload(fox)
    assert len(server.requests) == 3


@pytest.mark.parametrize("change", ["shorter", "longer", "other", "replaced", "removed"])
async def test_a_file_that_changes_is_not_uploaded(tmp_path: Path, change: str) -> None:
    """Between the first look and the last byte: the server never gets a whole file."""
    path, large = tmp_path / "fox.png", PNG + bytes(12 * BLOCK)
    path.write_bytes(large)

    async with ScriptedServer(then=uploaded()) as server, client_of(server) as client:
        uploader = client._opened().uploader
        content = look_at(path, LARGEST)
        if change == "removed":
            path.unlink()
        else:
            path.write_bytes(
                {
                    "shorter": large[:-1],
                    "longer": large + b"x",
                    "other": large[:-1] + b"x",
                    "replaced": PNG,
                }[change]
            )
        with pytest.raises(InvalidRequestError, match=r"file_urls\[1\]: .*changed or removed"):
            await uploader._outcome(uploader._start(content), "file_urls[1]")
        assert not any(request.complete for request in server.requests)
        assert await client._journal.notes(server.url, f"upload {content.sha256}") == {}


# ─── once per content ────────────────────────────────────────────────────────────────────────────


async def test_a_content_is_uploaded_once_by_all_clients_of_a_journal(
    fox: Path, tmp_path: Path
) -> None:
    """Whatever its source; again if the user names it, because that name may be another's now."""
    async with Sandbox(api_key=API_KEY) as sandbox:
        async with client_of(sandbox.url, journal=tmp_path / "j") as client:
            first = await client.upload(fox)
            assert await client.upload(PNG) == first
        async with client_of(sandbox.url, journal=tmp_path / "j") as client:
            assert await client.upload(io.BytesIO(PNG)) == first
            assert len(uploads(sandbox)) == 1
            assert await client.upload(fox, name="fox.png") != first
            assert await client.upload(fox, name="fox.png") != first
            assert len(uploads(sandbox)) == 3


async def test_a_note_is_of_one_host_and_ends_before_the_upload_does(
    fox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour before the three days are over."""
    journal = MemoryJournal()
    async with ScriptedServer(then=uploaded()) as server, ScriptedServer(then=uploaded()) as host:
        async with client_of(server, journal=journal) as client:
            await client.upload(fox)
        async with client_of(server, journal=journal, upload_url=host.url) as client:
            await client.upload(fox)
        assert (len(server.requests), len(host.requests)) == (1, 1)
        now = time.time()
        for age, count in ((KEPT - 60, 1), (KEPT + 60, 2)):
            monkeypatch.setattr(time, "time", lambda age=age: now + age)
            async with client_of(server, journal=journal) as client:
                await client.upload(fox)
            assert len(server.requests) == count


async def test_uploads_of_one_content_at_once_share_a_request(fox: Path) -> None:
    """One caller that is cancelled takes nothing from the others, and not from the next."""
    async with ScriptedServer([delay(uploaded(), 5)]) as server, client_of(server) as client:
        calls = [asyncio.create_task(client.upload(each)) for each in (fox, PNG, fox)]
        await server.arrived()
        calls[0].cancel()
        assert await calls[1] == await calls[2] == URL
        assert calls[0].cancelled()
        assert await client.upload(fox) == URL


async def test_each_caller_that_still_waits_is_told_the_progress() -> None:
    """Also one that came later; not one that was cancelled."""

    async def upload(source: Path | bytes) -> str:
        await asyncio.sleep(10)
        return URL

    seen: list[list[Progress]] = [[], [], []]
    async with client_of("https://api.midapi.ai", uploader=upload) as client:
        calls = []
        for reports in seen:
            call = client.upload(PNG, on_progress=reports.append)
            calls.append(asyncio.create_task(call))
            await asyncio.sleep(1)
        calls[1].cancel()
        await asyncio.wait(calls)
    found = [[each.done for each in reports] for reports in seen]
    assert found == [[len(PNG)], [], [len(PNG)]]


async def test_an_upload_goes_on_when_all_its_callers_are_cancelled(fox: Path) -> None:
    """So that calls with a short timeout get there in the end."""
    async with ScriptedServer([delay(uploaded(), 5)]) as server, client_of(server) as client:
        for _ in range(4):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await client.upload(fox)
        assert await client.upload(fox) == URL
    assert len(server.requests) == 1


async def test_each_caller_of_a_failed_upload_gets_an_error_of_its_own(fox: Path) -> None:
    """With nothing of the others in it."""
    async with ScriptedServer(then=delay(refused(400), 1)) as server, client_of(server) as client:
        request = ImageToImage("x", [fox])
        found = await asyncio.gather(
            *(client.generate(request, key=key) for key in ("a", "b")), return_exceptions=True
        )
        one, two = found
        assert isinstance(one, BadRequestError)
        assert isinstance(two, BadRequestError)
        assert (one.key, two.key) == ("a", "b")
    assert len(server.requests) == 1


async def test_four_uploads_run_at_once() -> None:
    """The others wait for their turns."""
    running = most = 0

    async def upload(source: Path | bytes) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return URL

    async with client_of("https://api.midapi.ai", uploader=upload) as client:
        await asyncio.gather(*(client.upload(PNG + bytes([n])) for n in range(20)))
    assert most == 4


async def test_a_journal_that_fails_does_not_fail_an_upload(
    fox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its notes the content is uploaded again."""

    async def fail(*_: object, **__: object) -> None:
        raise JournalError("the disk is full")

    async with ScriptedServer(then=uploaded()) as server, client_of(server) as client:
        for name in ("note", "notes"):
            monkeypatch.setattr(client._journal, name, fail)
        assert await client.upload(fox) == await client.upload(fox) == URL
    assert len(server.requests) == 2
    assert "may be repeated: the disk is full" in caplog.text


# ─── the user's own uploader ─────────────────────────────────────────────────────────────────────


async def test_an_uploader_of_the_users_gets_the_path_or_the_bytes(fox: Path) -> None:
    """Its URL is what MidAPI gets; nothing goes to the upload URL, and 10 MiB is no limit."""
    got: list[Path | bytes] = []

    async def upload(source: Path | bytes) -> str:
        got.append(source)
        return URL

    large = PNG + bytes(LARGEST)
    async with ScriptedServer([accepted()]) as server, client_of(server, uploader=upload) as client:
        handle = await client.generate(ImageToImage("x", [fox]))
        assert handle.request == ImageToImage("x", [URL])
        assert (await client.upload(io.BytesIO(large))).sha256 == hashlib.sha256(large).hexdigest()
        assert got == [fox, large]
        with pytest.raises(InvalidRequestError, match="source: is a URL, which your own"):
            await client.upload(URL)
        with pytest.raises(InvalidRequestError, match="name: cannot be given"):
            await client.upload(fox, name="a.png")


@pytest.mark.parametrize(
    "url", [None, 5, b"https://h/x", "", "x.png", "https://h/a b", "file:///x"]
)
async def test_what_an_uploader_returns_is_checked(fox: Path, url: Any) -> None:
    """It would be paid for and could not be fetched."""

    async def upload(source: Path | bytes) -> str:
        return url  # type: ignore[no-any-return]

    async with ScriptedServer() as server, client_of(server, uploader=upload) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.generate(ImageToImage("x", [fox]))
        assert list(caught.value.problems) == ["uploader"]
    assert server.requests == []


async def test_an_uploaders_own_error_comes_as_it_is(fox: Path) -> None:
    """It belongs to the user's code; a file that it has changed is an error of ours."""

    async def fail(source: Path | bytes) -> str:
        raise LookupError("no such bucket")

    async def change(source: Path | bytes) -> str:
        fox.write_bytes(PNG + b"x")
        return URL

    async with client_of("https://api.midapi.ai", uploader=fail) as client:
        with pytest.raises(LookupError, match="no such bucket"):
            await client.generate(ImageToImage("x", [fox]))
    async with client_of("https://api.midapi.ai", uploader=change) as client:
        with pytest.raises(InvalidRequestError, match=r"file_urls\[0\]: .*changed or removed"):
            await client.generate(ImageToImage("x", [fox]))


# ─── requests with paths ─────────────────────────────────────────────────────────────────────────


async def test_generate_uploads_what_its_request_names(fox: Path, tmp_path: Path) -> None:
    """In their places; one file twice is one upload."""
    owl = tmp_path / "owl.png"
    owl.write_bytes(PNG + b"owl")
    async with Sandbox(api_key=API_KEY, time_scale=1000) as sandbox:
        async with client_of(sandbox.url, time_scale=1000) as client:
            details = await client.generate_and_wait(StyleReference("x", [fox, URL, owl, fox]))
            assert details.urls
            (order,) = sandbox.ledger.accepted
            urls: Any = order.body["fileUrls"]
            assert urls[1] == URL
            assert urls[0] == urls[3] != urls[2]
            assert await fetched(urls[2]) == owl.read_bytes()
            assert len(uploads(sandbox)) == 2


async def test_prepare_replaces_paths_only(fox: Path) -> None:
    """Everything else stays; the user's own URLs as they are."""
    async with ScriptedServer([uploaded()]) as server, client_of(server) as client:
        mine = UploadedURL("https://h/mine.png", "0" * 64)
        request = ImageToImage("x", [mine, fox], version="7", extra={"a": 1})
        prepared = await client.prepare(request)
        assert prepared == attrs.evolve(request, file_urls=(mine, URL))
        hashes = [getattr(each, "sha256", None) for each in prepared.file_urls]
        assert hashes == ["0" * 64, SHA]
        assert await client.prepare(prepared) is prepared
        text = TextToImage("x")
        assert await client.prepare(text) is text


@pytest.mark.parametrize("durable", [False, True])
async def test_a_known_key_needs_no_upload(fox: Path, tmp_path: Path, *, durable: bool) -> None:
    """Also when the upload has expired and its host is gone; prepared or not."""
    journal: Any = SQLiteJournal(tmp_path / "j") if durable else MemoryJournal()
    request = ImageToImage("x", [URL, fox])
    async with ScriptedServer(then=serving(uploaded())) as server:
        async with client_of(server, journal=journal) as client:
            bought = await client.generate(request, key="fox")
            prepared = await client.prepare(request)
        await journal.note(server.url, f"upload {SHA}", f"{server.url}/", None)

        def gone(source: Path | bytes) -> Any:
            raise AssertionError("nothing needs to be uploaded")

        async with client_of(server, journal=journal, uploader=gone) as client:
            for again in (request, prepared, ImageToImage("x", [URL, fox])):
                handle = await client.generate(again, key="fox")
                assert handle.replayed
                assert handle.task_id == bought.task_id
            late = await client.generate(request, key="fox", timeout=0)
            assert late.task_id == bought.task_id
            await client.generate_and_wait(request, key="fox")
            fox.write_bytes(PNG + b"another")
            with pytest.raises(KeyConflict) as caught:
                await client.generate(request, key="fox")
            assert caught.value.task_id == bought.task_id
            with pytest.raises(KeyConflict):
                await client.generate(ImageToImage("y", [URL, fox]), key="fox")
    await journal.aclose()
    assert len(uploads(server)) == 1
    assert len([r for r in server.accepted if "generate" in r.path]) == 1


@pytest.mark.parametrize("stores_prompts", [False, True])
async def test_a_pruned_key_needs_no_upload(
    fox: Path, tmp_path: Path, *, stores_prompts: bool
) -> None:
    """Its task has expired, whatever the file contains now."""
    journal = SQLiteJournal(tmp_path / "j", store_prompts=stores_prompts)
    async with ScriptedServer(then=serving(uploaded())) as server:
        async with client_of(server, journal=journal) as client:
            await client.generate_and_wait(ImageToImage("x", [fox]), key="fox")
            await client._opened().recorder.writes.join()
            assert await journal.prune(time.time() + 60) == 1
        async with client_of(server, journal=journal, uploader=pytest.fail) as client:
            with pytest.raises(TaskExpired):
                await client.generate(ImageToImage("x", [fox]), key="fox")
    await journal.aclose()


async def test_without_stored_prompts_the_content_still_decides(fox: Path, tmp_path: Path) -> None:
    """The journal compares sealed hashes; it is uploaded for that, and not bought again."""
    journal = SQLiteJournal(tmp_path / "j", store_prompts=False)
    request = ImageToImage("x", [fox])
    async with ScriptedServer(then=serving(uploaded())) as server:
        async with client_of(server, journal=journal) as client:
            bought = await client.generate(request, key="fox")
            assert (await client.generate(request, key="fox")).task_id == bought.task_id
            fox.write_bytes(PNG + b"another")
            with pytest.raises(KeyConflict):
                await client.generate(request, key="fox")
    await journal.aclose()
    assert len([r for r in server.accepted if "generate" in r.path]) == 1


async def test_a_refused_key_is_uploaded_and_bought(fox: Path) -> None:
    """A key that bought nothing is free, also for another file."""
    script = iter([refused(400), accepted()])
    server = ScriptedServer(then=serving(uploaded(), lambda _: next(script)))
    async with server, client_of(server) as client:
        with pytest.raises(BadRequestError):
            await client.generate(ImageToImage("x", [fox]), key="fox")
        fox.write_bytes(PNG + b"another")
        handle = await client.generate(ImageToImage("x", [fox]), key="fox")
        assert not handle.replayed
    assert len(uploads(server)) == 2


async def test_a_key_that_another_client_sends_is_known_by_its_content(fox: Path) -> None:
    """The second client takes the first one's URL, and submits it if the first was refused."""
    script = iter([delay(refused(400), 5), accepted()])
    journal, request = MemoryJournal(), ImageToImage("x", [fox])
    async with ScriptedServer(then=serving(uploaded(), lambda _: next(script))) as server:
        own = [None, pytest.fail]  # the second must upload nothing
        clients = [client_of(server, journal=journal, uploader=each) for each in own]
        async with clients[0] as one, clients[1] as other:
            first = asyncio.create_task(one.generate(request, key="fox"))
            await server.arrived(2)
            second = asyncio.create_task(other.generate(request, key="fox"))
            with pytest.raises(BadRequestError):
                await first
            assert not (await second).replayed
        sent = [r.json() for r in server.requests if "generate" in r.path]
    assert [body["fileUrls"] for body in sent] == [[URL], [URL]]  # type: ignore[index]
    assert len(uploads(server)) == 1


async def test_another_content_never_gets_the_url_of_a_row_that_is_refused_meanwhile(
    fox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of somebody else's order would be paid for."""
    script = iter([refused(400), accepted()])
    journal = MemoryJournal()
    async with ScriptedServer(then=serving(uploaded(), lambda _: next(script))) as server:
        async with client_of(server, journal=journal) as client:
            with pytest.raises(BadRequestError):
                await client.generate(ImageToImage("x", [fox]), key="fox")
            (row,) = await journal.rows()
            before = attrs.evolve(row, state=State.SENDING)

            async def find(**_: object) -> Intent:
                return before

            monkeypatch.setattr(journal, "find", find)
            fox.write_bytes(PNG + b"another")
            with pytest.raises(KeyConflict):
                await client.generate(ImageToImage("x", [fox]), key="fox")
        assert len([r for r in server.requests if "generate" in r.path]) == 1


async def test_an_unknown_submission_can_be_submitted_again_under_its_key(
    fox: Path, tmp_path: Path
) -> None:
    """The journal has kept what its file contained, so the key still knows the file."""
    script: Iterator[Step] = iter([lose_answer(), accepted()])
    async with ScriptedServer(then=serving(uploaded(), lambda _: next(script))) as server:
        async with client_of(server, journal=tmp_path / "j") as client:
            with pytest.raises(MidAPIError):
                await client.generate(ImageToImage("x", [fox]), key="fox")
        async with client_of(server, journal=tmp_path / "j") as client:
            (row,) = await client.intents.unknown()
            assert row.request is not None
            (kept,) = row.request.file_urls  # type: ignore[union-attr]
            assert isinstance(kept, UploadedURL)
            assert (kept, kept.sha256) == (URL, SHA)
            bought = await client.intents.resubmit(row.intent_id)
            again = await client.generate(ImageToImage("x", [fox]), key="fox")
            assert again.task_id == bought.task_id


# ─── time ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("waits", [False, True])
async def test_an_upload_counts_within_the_timeout(
    fox: Path, tmp_path: Path, *, waits: bool
) -> None:
    """What was under way goes on for the next call; nothing was written or bought."""
    server = ScriptedServer(then=serving(delay(uploaded(), 50)))
    request = ImageToImage("x", [fox])
    async with server, client_of(server, journal=tmp_path / "j") as client:
        for _ in range(2):
            begun = asyncio.get_running_loop().time()
            call: Callable[..., Awaitable[object]] = client.generate
            options: dict[str, Any] = {"timeout": 20}
            if waits:
                call, options = client.generate_and_wait, {"wait_timeout": 20}
            with pytest.raises(WaitTimeout, match="its files were not uploaded yet") as caught:
                await call(request, key="fox", **options)
            assert asyncio.get_running_loop().time() - begun == pytest.approx(20, abs=1)
            assert (caught.value.key, caught.value.intent_id) == ("fox", None)
        assert await client._journal.rows() == []
        await client.generate(request, key="fox", timeout=20)
    assert len(uploads(server)) == 1


async def test_a_short_timeout_is_kept(fox: Path) -> None:
    """The files are looked at in any case; the upload is not waited for."""
    server = ScriptedServer(then=serving(delay(uploaded(), 50)))
    async with server, client_of(server) as client:
        for timeout in (0, 0.25):
            begun = asyncio.get_running_loop().time()
            with pytest.raises(WaitTimeout):
                await client.generate(ImageToImage("x", [fox]), timeout=timeout)
            assert asyncio.get_running_loop().time() - begun < timeout + 0.1
        with pytest.raises(InvalidRequestError, match="does not exist"):
            await client.generate(ImageToImage("x", [fox.with_name("no.png")]), timeout=0)


async def test_the_timeout_says_why_an_upload_has_failed_so_far(fox: Path) -> None:
    """Not of another call's upload."""
    async with ScriptedServer(then=serving(reply(503))) as server, client_of(server) as client:
        with pytest.raises(WaitTimeout, match="HTTP 503") as caught:
            await client.generate(ImageToImage("x", [fox]), timeout=2)
        assert isinstance(caught.value.__cause__, ServerError)


@pytest.mark.parametrize("point", range(12))
async def test_a_cancelled_generate_loses_nothing(fox: Path, point: int) -> None:
    """At any moment: the next call with the key buys it, once."""
    journal = MemoryJournal()
    server = ScriptedServer(then=serving(delay(uploaded(), 1), delay(accepted(), 1)))
    async with server, client_of(server, journal=journal) as client:
        call = asyncio.create_task(client.generate(ImageToImage("x", [fox]), key="fox"))
        await asyncio.wait({call}, timeout=point / 5)
        call.cancel()
        await asyncio.wait({call})
        handle = await client.generate(ImageToImage("x", [fox]), key="fox")
        (row,) = await journal.rows()
        assert (row.state, row.task_id) == (State.ACCEPTED, handle.task_id)
    assert len(uploads(server)) == 1
    assert len([r for r in server.requests if "generate" in r.path]) == 1


@pytest.mark.parametrize("way", ["stop_waiting", "aclose"])
async def test_the_end_of_the_client_ends_uploads(fox: Path, way: str) -> None:
    """Those that are under way, that wait for the next attempt or a turn, and later ones."""
    async with ScriptedServer(then=hang()) as server, client_of(server) as client:
        calls: list[asyncio.Task[Any]]
        calls = [asyncio.create_task(client.upload(PNG + bytes([n]))) for n in range(6)]
        calls += [asyncio.create_task(client.generate(ImageToImage("x", [fox])))]
        await server.arrived(4)
        calls += [asyncio.create_task(client.upload(PNG))]
        await asyncio.sleep(0)
        if way == "aclose":
            await client.aclose()
        else:
            client.stop_waiting()
            with pytest.raises(ClientClosed):
                await client.upload(PNG)
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in found] == [ClientClosed] * len(calls)


async def test_the_end_of_the_client_does_not_wait_for_an_uploader_of_the_users() -> None:
    """It may need time to clean up after it was cancelled."""

    async def upload(source: Path | bytes) -> str:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(10)
        return URL

    async with client_of("https://api.midapi.ai", uploader=upload) as client:
        call = asyncio.create_task(client.upload(PNG))
        await asyncio.sleep(1)
        begun = asyncio.get_running_loop().time()
        client.stop_waiting()
        with pytest.raises(ClientClosed):
            await call
        assert asyncio.get_running_loop().time() == pytest.approx(begun, abs=1)


async def test_an_upload_that_has_not_begun_is_ended(fox: Path) -> None:
    """Its task was cancelled before its first step."""
    async with ScriptedServer() as server, client_of(server) as client:
        uploader = client._opened().uploader
        waiting = uploader._start(look_at(fox, LARGEST))
        client.stop_waiting()
        with pytest.raises(ClientClosed):
            await uploader._outcome(waiting, "source")


async def test_the_file_is_closed_however_the_upload_ends(fox: Path) -> None:
    """`tests/conftest.py` looks for open files; here it is cancelled while it is sent."""
    fox.write_bytes(PNG + bytes(LARGEST - 100))
    async with ScriptedServer(then=hang("headers")) as server, client_of(server) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.upload(fox)
        await server.arrived()


async def test_an_upload_that_goes_well_says_little(
    fox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed attempt is a line at INFO."""
    caplog.set_level(logging.INFO, "midapi_async")
    async with ScriptedServer([reply(500), uploaded()]) as server, client_of(server) as client:
        await client.upload(fox)
        await client.upload(fox)
    (record,) = [each for each in caplog.records if each.name == "midapi_async.files"]
    assert record.levelno == logging.INFO
    assert "failed, again in" in record.getMessage()


async def test_a_video_takes_one_path(fox: Path) -> None:
    """The other kind of request with a picture."""
    async with ScriptedServer(then=serving(uploaded())) as server, client_of(server) as client:
        handle = await client.generate(ImageToVideo("it runs", [fox]))
        assert handle.request == ImageToVideo("it runs", [URL])


async def test_an_answer_that_is_no_success_says_what_the_server_said(fox: Path) -> None:
    """On one line."""
    step = uploaded(success=False, msg="quota\nexceeded")
    async with ScriptedServer(then=step) as server, client_of(server) as client:
        with pytest.raises(ProtocolError, match="success is not true: quota exceeded"):
            await client.upload(fox)
