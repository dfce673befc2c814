import json
import re
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest

from midapi_async.sandbox import SandboxThread
from midapi_async.sandbox._pictures import warn_without_pillow
from tests.cli.conftest import Midapi, Ran, ctrl_c_when, finish, spawn, wait_until
from tests.support.waiting import free_port

pytestmark = pytest.mark.real_time

KEY = "a-key-of-the-sandbox"
Play = Callable[..., Ran]


def credits_at(port: int) -> object:
    """The balance of a sandbox; None if it does not answer yet."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/v1/common/credit", headers={"Authorization": f"Bearer {KEY}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - http, loopback
            return json.load(answer)["data"]
    except OSError:
        return None


def test_it_serves_until_it_is_stopped(midapi: Midapi) -> None:
    """One line with the URL, never the key; Ctrl-C ends it with 0."""
    port, seen = free_port(), list[object]()

    def it_serves() -> bool:
        seen.append(credits_at(port))
        return seen[-1] is not None

    with ctrl_c_when(it_serves):
        ran = midapi(
            *("sandbox", "--port", port, "--api-key", KEY, "--credits", 7, "--time-scale", 60)
        )
    assert (ran.code, ran.lines) == (0, [f"http://127.0.0.1:{port}"])
    assert seen[-1] == 7
    assert f"MIDAPI_BASE_URL=http://127.0.0.1:{port}" in ran.err
    assert "MIDAPI_TIME_SCALE=60" in ran.err
    assert KEY not in ran.err


def test_port_0_picks_a_port() -> None:
    """SIGTERM ends it with 0."""
    process = spawn("sandbox", "--port", 0)
    assert process.stdout is not None
    url = process.stdout.readline()
    port = int(url.rpartition(":")[2])
    assert credits_at(port) == 10_000
    process.terminate()
    ran = finish(process)
    assert ran.code == 0
    assert "MIDAPI_API_KEY=anything" in ran.err
    assert "MIDAPI_TIME_SCALE" not in ran.err


def test_a_taken_port_is_an_error(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Exit code 1, one line that names the port."""
    port = midapi_sandbox.url.rpartition(":")[2]
    ran = midapi("sandbox", "--port", port)
    assert ran.code == 1
    assert ran.error == (
        f"cannot listen on 127.0.0.1:{port}: the port is taken; choose another one with --port, "
        "or 0 for any that is free"
    )


# ─── its flags, each over a socket ───────────────────────────────────────────────────────────────

FOX = {"taskType": "mj_txt2img", "prompt": "a red fox [[sandbox: seconds=0]]", "speed": "fast"}
GENERATE = "/api/v1/mj/generate"
CREDIT = "/api/v1/common/credit"


@attrs.frozen
class Program:
    """Somebody's program that speaks to the sandbox."""

    url: str
    context: ssl.SSLContext | None = None

    def call(self, path: str, body: object = None, *, key: str = KEY) -> tuple[int, Any]:
        """Give the status and the JSON of an answer, or its text; OSError if there is none."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - http, loopback
            self.url + path, data, {"Authorization": f"Bearer {key}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5, context=self.context) as answer:  # noqa: S310
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode("latin-1")

    def code(self, path: str, body: object = None, *, key: str = KEY) -> int:
        """Give the code of an answer's envelope."""
        return int(self.call(path, body, key=key)[1]["code"])

    def task(self, **fields: object) -> str:
        """Give the id of an accepted task that ends at once."""
        return str(self.call(GENERATE, FOX | fields)[1]["data"]["taskId"])

    def record(self, task_id: str) -> Any:
        """Give a task's record once it is final."""
        while True:
            data = self.call(f"/api/v1/mj/record-info?taskId={task_id}")[1]["data"]
            if data["successFlag"]:
                return data
            time.sleep(0.01)


@pytest.fixture
def play(midapi: Midapi) -> Play:
    """Serve with some flags, let a program talk to it, and end it with Ctrl-C."""

    def play(use: Callable[[Program], object], *flags: object, scheme: str = "http") -> Ran:
        port, failures = free_port(), list[BaseException]()

        def used() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
            except OSError:
                return False
            context = ssl._create_unverified_context() if scheme == "https" else None  # noqa: S323
            try:
                use(Program(f"{scheme}://127.0.0.1:{port}", context))
            except BaseException as error:  # noqa: BLE001 - raised below, in the test's thread
                failures.append(error)
            return True

        with ctrl_c_when(used):
            ran = midapi("sandbox", "--port", port, *flags)
        for failure in failures:
            raise failure
        assert ran.code == 0, ran.err
        assert KEY not in ran.out + ran.err
        return ran

    return play


def test_keys_with_credits_of_their_own(play: Play) -> None:
    """Each has its balance, a key without one has --credits, and no other key is let in."""
    balances: dict[str, object] = {}

    def use(program: Program) -> None:
        for key in ("A", "B", "C==", "D"):
            balances[key] = program.call(CREDIT, key=key)[1]["data"]
        assert program.code(GENERATE, FOX, key="B") == 402
        assert program.code(GENERATE, FOX, key="A") == 200

    flags = ("--api-key", "A=100", "--api-key", "B=0", "--api-key", "C==", "--credits", 7)
    ran = play(use, *flags)
    assert balances == {"A": 100, "B": 0, "C==": 7, "D": None}
    assert "MIDAPI_API_KEY=…" in ran.err


def test_refusals_as_http_errors(play: Play) -> None:
    """The code of a refusal is its HTTP status."""

    def use(program: Program) -> None:
        status, envelope = program.call(GENERATE, FOX)
        assert (status, envelope["code"]) == (402, 402)

    play(use, "--http-errors", "--credits", 0)


def test_an_acknowledgement_comes_first(play: Play) -> None:
    """Two callbacks for a task; only the second has results."""
    bodies: list[Any] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def use(program: Program) -> None:
            callback = f"http://127.0.0.1:{server.server_port}/"
            program.task(callBackUrl=callback, prompt="x [[sandbox: seconds=5]]")
            wait_until(lambda: len(bodies) == 2)

        play(use, "--acknowledge", "--time-scale", 20)
        server.shutdown()
    assert ["resultUrls" in body["data"] for body in bodies] == [False, True]


def test_answers_are_lost(play: Play) -> None:
    """So often, and the same ones with the same seed; what was lost was paid for."""

    def lost(program: Program) -> str:
        """Give one letter for each submission: x if its answer was lost."""
        letters = ""
        for _ in range(12):
            try:
                program.task()
                letters += "."
            except OSError:
                letters += "x"
        assert program.call(CREDIT)[1]["data"] == 10_000 - 12 * 8
        return letters

    seen: list[str] = []
    for seed in (1, 1, 2):
        play(lambda it: seen.append(lost(it)), "--lose-answers", 0.5, "--seed", seed)
    assert seen[0] == seen[1] != seen[2]
    assert set(seen[0]) == {"x", "."}
    play(lambda it: seen.append(lost(it)), "--lose-answers", 1)
    assert seen[-1] == "x" * 12


def test_an_outage(play: Play) -> None:
    """It begins with the first accepted submission, and ends."""

    def use(program: Program) -> None:
        assert program.call(CREDIT)[0] == 200
        task_id = program.task()
        assert program.call(CREDIT)[0] == 503
        assert program.call(GENERATE, FOX)[0] == 503
        assert program.call(f"/m/{task_id}_0_0.jpeg", key="")[0] == 200
        wait_until(lambda: program.call(CREDIT)[0] == 200)

    play(use, "--outage", 120, "--time-scale", 60)


def test_any_other_fault(play: Play) -> None:
    """Several rules, each as text; they go before the answers that are lost."""

    def use(program: Program) -> None:
        statuses = [program.call(CREDIT)[0] for _ in range(3)]
        assert statuses == [200, 418, 200]
        assert program.code(GENERATE, FOX) == 455

    rules = ("--fault", "credit answer_status 418 nth=2", "--fault", "submit answer_code 455")
    play(use, *rules, "--lose-answers", 1)


def test_the_list_of_faults(midapi: Midapi) -> None:
    """--fault help prints it, and serves nothing."""
    ran = midapi("sandbox", "--fault", "help")
    assert ran.code == 0
    assert "  cut AFTER [declared=yes]" in ran.lines
    assert max(map(len, ran.lines)) <= 80


def test_the_documented_shape(play: Play) -> None:
    """Task ids and times look as the documentation has them."""

    def use(program: Program) -> None:
        task_id = program.task()
        assert task_id.startswith("mj_task_")
        assert program.record(task_id)["createTime"].endswith("Z")

    play(use, "--shape", "documented")


def test_urls_of_files(play: Play) -> None:
    """They begin with what was given."""

    def use(program: Program) -> None:
        url = program.record(program.task())["resultInfoJson"]["resultUrls"][0]["resultUrl"]
        assert url.startswith("https://fox.example.org/m/")

    play(use, "--files-url", "https://fox.example.org/")


def test_https(play: Play) -> None:
    """It says which variable makes programs trust it; the file goes when it ends."""
    files: list[str] = []

    def use(program: Program) -> None:
        assert program.code(CREDIT) == 200
        assert program.record(program.task())["resultInfoJson"]

    ran = play(use, "--tls", scheme="https")
    files += re.findall(r"^  export SSL_CERT_FILE=(\S+)$", ran.err, re.MULTILINE)
    assert ran.out.startswith("https://127.0.0.1:")
    assert "export MIDAPI_BASE_URL=https://127.0.0.1:" in ran.err
    assert len(files) == 1
    assert not Path(files[0]).exists()


def test_https_with_a_file_of_your_own(play: Play, tmp_path: Path) -> None:
    """It stays, and is all that a program needs."""
    file = tmp_path / "ca.pem"

    def use(program: Program) -> None:
        trusting = Program(program.url, ssl.create_default_context(cafile=str(file)))
        assert trusting.code(CREDIT) == 200

    ran = play(use, "--tls-ca", file, scheme="https")
    assert f"export SSL_CERT_FILE={file}\n" in ran.err
    assert file.exists()


def test_https_without_the_extra(midapi: Midapi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that helps."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    ran = midapi("sandbox", "--tls", "--port", 0)
    assert ran.code == 2
    assert ran.error == '--tls needs trustme: pip install "midapi-async[tls]"'


@pytest.mark.fault("I5")
@pytest.mark.fault("D12")
def test_the_log(play: Play) -> None:
    """A line on stderr for each request and task; without it there is none."""
    body = FOX | {"prompt": "a fox \x1b[31m[[sandbox: seconds=0]]"}

    def use(program: Program) -> None:
        program.call(GENERATE, body)
        program.code(CREDIT)

    ran = play(use, "--log", "--api-key", KEY)
    lines = [line[9:] for line in ran.err.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    text = re.sub(r"[0-9a-f]{32}", "ID", "\n".join(sorted(lines)))
    assert text.splitlines() == [
        f"GET {CREDIT} 200",
        f"POST {GENERATE} 200 ID",
        r'task ID accepted: mj_txt2img, 8 credits, "a fox \x1b[31m[[sandbox: seconds=0]]"',
        "task ID succeeded after 0 s",
    ]
    assert len(ran.lines) == 1
    assert "POST" not in play(use).err


def test_without_pillow(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says at its start that the pictures are placeholders."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    warn_without_pillow.cache_clear()
    ran = play(lambda program: program.code(CREDIT))
    assert 'placeholders, since Pillow is missing: pip install "midapi-async[sandbox]"' in ran.error


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--time-scale", "0", "must be a number above 0"),
        ("--time-scale", "nan", "must be a number above 0"),
        ("--time-scale", "fast", ""),
        ("--port", "many", ""),
        ("--port", "70000", "must be between 0 and 65535"),
        ("--credits", "x", ""),
        ("--credits", "-1", "must be a number of at least 0"),
        ("--api-key", "", "a key is empty or given twice"),
        ("--api-key", "=5", "a key is empty or given twice"),
        ("--api-key", "secret=x", "the credits must be a number of at least 0"),
        ("--api-key", "secret=-1", "the credits must be a number of at least 0"),
        ("--api-key", "secret=nan", "the credits must be a number of at least 0"),
        ("--webhook-key", "", "must not be empty"),
        ("--files-url", "fox.example.org", "must be an http or https URL"),
        ("--lose-answers", "5", "chance must be between 0 and 1"),
        ("--lose-answers", "often", ""),
        ("--outage", "0", "seconds must be at least"),
        ("--outage", "-5", "seconds must be at least"),
        ("--outage", "nan", "seconds must be at least"),
        ("--fault", "submit lose", "unknown action 'lose' for submit; choose from"),
        ("--fault", "look hang nth=x", "nth must be a number"),
        ("--seed", "x", ""),
        ("--shape", "round", ""),
    ],
)
def test_wrong_values_are_a_usage_error(midapi: Midapi, flag: str, value: str, words: str) -> None:
    """Exit code 2, and one line that names the flag, and never a key."""
    ran = midapi("sandbox", flag, value)
    assert ran.code == 2
    assert flag in ran.error
    assert words in ran.error
    assert "secret" not in ran.error


def test_a_key_given_twice(midapi: Midapi) -> None:
    """It is not said which one."""
    ran = midapi("sandbox", "--api-key", "secret=1", "--api-key", "secret=2")
    assert (ran.code, ran.error) == (2, "--api-key: a key is empty or given twice")


def test_a_certificate_that_cannot_be_made(midapi: Midapi, tmp_path: Path) -> None:
    """A host that no certificate can name; a folder that is not there."""
    ran = midapi("sandbox", "--port", 0, "--tls", "--files-url", "https://a_b")
    assert ran.code == 2
    assert "--tls: no certificate can be made for" in ran.error
    ran = midapi("sandbox", "--port", 0, "--tls-ca", tmp_path / "none" / "ca.pem")
    assert ran.code == 1
    assert f"cannot write '{tmp_path}/none/ca.pem': No such file" in ran.error
