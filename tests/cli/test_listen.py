"""The receiver of `midapi listen`: it shows each callback and forwards it."""

import json
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import attrs
import pytest
from yarl import URL

from midapi_async import sign_callback
from midapi_async.cli import listen as listen_module
from midapi_async.cli._listener import Forwarded, Listener, Received, forward_to
from tests.cli.conftest import Midapi, ctrl_c_when, finish, spawn
from tests.support import secrets
from tests.support.scripted import Play, ScriptedServer, close, delay, reply
from tests.support.secrets import WEBHOOK_KEY
from tests.support.waiting import free_port

TASK = "9f47c52047dda21bb3df0488736cce57"
TOKEN = f"mjt_{'a' * 43}"
FILES = ["https://files.example/0.jpeg", "https://files.example/1.jpeg"]


def body(code: int = 200, msg: str = "success", **data: object) -> bytes:
    """The body of a callback."""
    about = {"taskId": TASK, "promptJson": json.dumps({"prompt": "a red fox"}), **data}
    return json.dumps({"code": code, "msg": msg, "data": about}).encode()


GOOD = body(resultUrls=FILES)
RECORD = {"resultUrls": [{"resultUrl": "u"}]}


@attrs.define
class Scene:
    """A listener, and what it has shown."""

    listener: Listener
    shown: list[Received]
    session: aiohttp.ClientSession

    async def post(
        self,
        data: bytes = GOOD,
        headers: Mapping[str, str] | None = None,
        path: str = f"/any/prefix/{TOKEN}",
    ) -> int:
        """The status of the answer to a callback."""
        url = URL(self.listener.url + path, encoded=True)
        async with self.session.post(url, data=data, headers=headers) as answer:
            return answer.status

    @property
    def lines(self) -> list[str]:
        """What a terminal would show of the one callback."""
        [received] = self.shown
        return listen_module._lines(received)


@asynccontextmanager
async def listening(*keys: str, forward: str | None = None) -> AsyncIterator[Scene]:
    """A listener at a port of its own choice."""
    shown: list[Received] = []
    async with aiohttp.ClientSession() as session:
        to = None if forward is None else forward_to(URL(forward), session)
        listener = Listener("127.0.0.1", 0, keys, show=shown.append, forward=to)
        await listener.open()
        try:
            yield Scene(listener, shown, session)
        finally:
            await listener.aclose()


# ─── what it shows ───────────────────────────────────────────────────────────────────────────────


async def test_a_callback_is_shown_and_answered_200() -> None:
    """Time, task, status, prompt, files; not the token."""
    data = GOOD.replace(b"a red fox", f"a red fox of {TOKEN}".encode())
    async with listening() as scene:
        assert await scene.post(data) == 200
        first, *rest = scene.lines
        facts = listen_module._facts(scene.shown[0])
    assert first.endswith(f"{TASK}  succeeded")
    assert rest == ["    prompt: a red fox of mjt_…", *(f"    {url}" for url in FILES)]
    assert tuple(
        facts[name]
        for name in ("task_id", "status", "prompt", "urls", "answer", "signed", "forwarded")
    ) == (TASK, "succeeded", "a red fox of mjt_…", tuple(FILES), 200, False, None)
    assert not secrets.found_in(json.dumps(facts) + first)


@pytest.mark.parametrize(
    ("data", "status", "more"),
    [
        (body(), "generating", []),
        (body(500, "Image generation failed", resultUrls=[]), "failed", ["Image generation fail"]),
        (body(successFlag=3, errorMessage="no answer"), "failed", ["no answer"]),
        (body(successFlag="2", errorMessage=None), "failed", ["success"]),
        (body(successFlag=1, resultInfoJson=RECORD), "succeeded", ["u"]),
        (body(resultInfoJson='{"resultUrls": [{"url": "u"}, "v", 5, null]}'), "succeeded", ["v"]),
        (body(resultUrls="x"), "succeeded", []),
        (json.dumps({"taskId": TASK, "successFlag": 1}).encode(), "succeeded", []),
    ],
)
async def test_every_form_of_a_callback_is_read(data: bytes, status: str, more: list[str]) -> None:
    """Acknowledgements, failures, and those that look like record-info."""
    async with listening() as scene:
        assert await scene.post(data) == 200
        assert scene.lines[0].endswith(status)
        shown = "\n".join(scene.lines[1:])
    assert all(each in shown for each in more)


@pytest.mark.parametrize(
    ("data", "headers", "status", "text"),
    [
        (b"not JSON", {}, 400, "it is not a callback"),
        (b"x" * 70_000, {}, 413, "larger than 64 KiB"),
        (GOOD, {"Content-Encoding": "br"}, 415, "its body is compressed"),
    ],
)
async def test_refused_callbacks_are_shown(
    data: bytes, headers: Mapping[str, str], status: int, text: str
) -> None:
    """With the status that a receiver answers."""
    async with listening() as scene:
        assert await scene.post(data, headers) == status
        assert f"answered {status}: " in scene.lines[0]
        assert text in scene.lines[0]
        assert listen_module._facts(scene.shown[0])["task_id"] is None


@pytest.mark.fault("C4")
async def test_with_a_key_unsigned_callbacks_are_answered_401() -> None:
    """So is a signature with another key; a valid one is answered 200."""
    async with listening(secrets.known("the-old-key"), WEBHOOK_KEY) as scene:
        assert await scene.post() == 401
        assert "not signed with the webhook key" in scene.lines[1]
        assert await scene.post(GOOD, sign_callback("another-key", TASK)) == 401
        assert await scene.post(GOOD, sign_callback(WEBHOOK_KEY, TASK)) == 200
    assert [each.is_signed for each in scene.shown] == [False, True, True]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/hook", 200), ("/a/hook.php/", 200), ("/a/%2e%2e%2f..", 404), ("/%20", 404)],
)
async def test_any_plain_last_segment_is_accepted(path: str, status: int) -> None:
    """A segment that could change a path is refused."""
    async with listening() as scene:
        assert await scene.post(path=path) == status


# ─── passing on ──────────────────────────────────────────────────────────────────────────────────


async def test_a_callback_is_forwarded_unchanged() -> None:
    """Last segment, body, content type and signature; the answer is shown."""
    signed = sign_callback(WEBHOOK_KEY, TASK)
    async with ScriptedServer([delay(reply(202, json={}), 3)]) as program:
        async with listening(forward=f"{program.url}/midapi/") as scene:
            headers = {"Content-Type": "application/json", "X-Other": "x", "Cookie": "a=b"}
            assert await scene.post(GOOD + b" ", headers | signed) == 202
            assert scene.lines[-1] == "    forwarded: answered 202 after 3.0 s"
        [request] = program.requests
    assert (request.path, request.body) == (f"/midapi/{TOKEN}", GOOD + b" ")
    assert request.headers["content-type"] == "application/json"
    for name, value in signed.items():
        assert request.headers[name.lower()] == value
    assert not {"x-other", "cookie"} & set(request.headers)


@pytest.mark.parametrize("how", ["refused", "closed", "slow"])
async def test_without_an_answer_of_the_program_midapi_sends_again(how: str) -> None:
    """503 if it does not listen, closes the connection, or takes too long."""
    plays: dict[str, Play] = {"closed": close(), "slow": delay(reply(200), 60)}
    async with AsyncExitStack() as exits:
        program = ScriptedServer(then=plays.get(how))
        await exits.enter_async_context(program)
        if how == "refused":
            await exits.aclose()
        scene = await exits.enter_async_context(listening(forward=program.url))
        assert await scene.post() == 503
    assert scene.lines[-1].endswith("answered 503, so that MidAPI sends it again")
    forwarded = scene.shown[0].forwarded
    assert isinstance(forwarded, Forwarded)
    assert (forwarded.status, bool(forwarded.fault)) == (None, True)
    assert forwarded.seconds < 14


async def test_a_redirect_of_the_program_is_its_answer() -> None:
    """It is not followed: MidAPI may not follow it either."""
    async with ScriptedServer([reply(307, headers={"Location": "/elsewhere"})]) as program:
        async with listening(forward=program.url) as scene:
            assert await scene.post(path="/") == 307
        assert [each.path for each in program.requests] == ["/"]


async def test_refused_callbacks_are_not_forwarded() -> None:
    """The program gets valid callbacks only."""
    async with ScriptedServer() as program, listening(forward=program.url) as scene:
        assert await scene.post(b"not JSON") == 400


# ─── the command ─────────────────────────────────────────────────────────────────────────────────


def post(url: str, data: bytes = GOOD) -> int:
    """The status of the answer to a callback; 0 if no program listens yet."""
    try:
        with urllib.request.urlopen(url, data, timeout=5) as answer:  # noqa: S310 - http, loopback
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code
    except OSError:
        return 0


def where(process: "subprocess.Popen[str]") -> str:
    """Where a process that listens says that it does."""
    assert process.stderr is not None
    line = process.stderr.readline()
    return line.split("received at ")[1].split("/ANYTHING")[0]


@pytest.mark.real_time
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_listens_until_it_is_stopped(number: int) -> None:
    """One line of JSON for each callback; both signals end it with 0."""
    process = spawn("listen", "--port", 0, "--json")
    url = where(process)
    assert post(f"{url}/{TOKEN}") == 200
    assert post(f"{url}/{TOKEN}", b"no callback") == 400
    process.send_signal(number)
    ran = finish(process)
    assert ran.code == 0
    one, two = (json.loads(line) for line in ran.lines)
    assert (one["task_id"], one["answer"]) == (TASK, 200)
    assert (two["task_id"], two["answer"]) == (None, 400)
    assert not secrets.found_in(ran.out + ran.err)


@pytest.mark.real_time
@pytest.mark.fault("D12")
def test_control_characters_are_escaped(midapi: Midapi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape sequences, line breaks and right-to-left marks."""
    port = free_port()
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", str(port))
    evil = json.dumps({"prompt": "a\x1b[2Jb\nc\u202ed[/]"})
    data = body(500, "no\r\x07", promptJson=evil, resultUrls=["http://e\x1b]0;x"])
    with ctrl_c_when(lambda: post(f"http://127.0.0.1:{port}/x", data)):
        ran = midapi("listen", "--forward", "http://127.0.0.1:9/y")
    assert ran.code == 0
    assert r"prompt: a\x1b[2Jb\nc\u202ed[/]" in ran.out
    assert r"reason: no\r\x07" in ran.out
    assert ran.out.replace("\n", "").isprintable()
    assert "every token is accepted" in ran.err
    assert "forwarded to http://127.0.0.1:9/y." in ran.err


@pytest.mark.real_time
def test_a_closed_stdout_ends_the_command() -> None:
    """As `midapi listen | head -n 1`; the callback itself is answered 200."""
    process = spawn("listen", "--port", 0)
    url = where(process)
    assert process.stdout is not None
    process.stdout.close()
    assert post(f"{url}/x") == 200
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(20) == 141


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--forward", "ftp://x"], "forward"),
        (["--forward", "http://x/?a"], "forward"),
        (["--forward", "http://[x/"], "forward"),
        (["--port", "70000"], "port"),
        (["--webhook-key", "\x01"], "webhook_key"),
        (["--host", "::", "--port", "0"], "host"),
    ],
)
def test_wrong_arguments_are_a_usage_error(
    midapi: Midapi, arguments: list[str], named: str
) -> None:
    """Exit code 2, one line."""
    ran = midapi("listen", *arguments)
    assert ran.code == 2
    assert f"{named}" in ran.error


@pytest.mark.real_time
def test_a_taken_port_is_an_error(midapi: Midapi) -> None:
    """Exit code 1, one line that names the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = midapi("listen", "--port", port)
    assert ran.code == 1
    assert f"callbacks cannot be received on 127.0.0.1:{port}" in ran.error
    assert "Choose another one with --port, or stop the program that uses this one." in ran.error
