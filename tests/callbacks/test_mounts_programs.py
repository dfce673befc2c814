"""The web applications of `examples` as processes of their own, against the sandbox."""

import asyncio
import json
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen, check_output

import pytest

from midapi_async._wire.tokens import token_hash
from midapi_async.cli import main
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import (
    Faults,
    SandboxThread,
    answer_code,
    hang,
    lose_answer,
    no_credits_as_500,
)
from tests.callbacks.serving import EXAMPLES, REPOSITORY, Answer, ask, process, uvicorn_serving
from tests.support.secrets import found_in
from tests.support.waiting import free_port, wait_until

# slow: each starts interpreters that import a web framework.
pytestmark = [pytest.mark.real_time, pytest.mark.slow]

FOX = "a red fox in the snow"
SENSITIVE = "the prompt contains sensitive words"
# A worker that the supervisor has told to stop ends as it would have by the signal alone.
ENDED = (0, -signal.SIGTERM)


def uvicorn_of(app: str, port: int, *options: str) -> list[str]:
    """The command line that its page shows."""
    place = ["--host", "127.0.0.1", "--port", str(port)]
    return ["-m", "uvicorn", app, *place, "--no-access-log", *options]


def commands(port: int) -> dict[str, list[str]]:
    """How each program is started."""
    run = f"import web_aiohttp as p; p.web.run_app(p.app, host='127.0.0.1', port={port})"
    return {
        "fastapi": uvicorn_of("web_fastapi:app", port, "--timeout-graceful-shutdown", "20"),
        "aiohttp": ["-c", run],
        "wsgi": [str(EXAMPLES / "web_wsgi.py")],
    }


def environment(sandbox: SandboxThread, port: int, folder: Path, scale: float) -> dict[str, str]:
    """What the programs read."""
    return {
        "MIDAPI_BASE_URL": sandbox.url,
        "MIDAPI_API_KEY": "any-key",
        "MIDAPI_PUBLIC_URL": f"http://127.0.0.1:{port}/hooks/midapi",
        "MIDAPI_JOURNAL": str(folder / "journal"),
        "MIDAPI_TIME_SCALE": str(scale),
    }


@contextmanager
def running(
    name: str,
    sandbox: SandboxThread,
    folder: Path,
    *,
    scale: float = 1.0,
    port: int = 0,
    **variables: str,
) -> Iterator[tuple[int, "Popen[str]"]]:
    """A program that serves, with some more variables; gives its port, and its process."""
    port = port or free_port()
    named = environment(sandbox, port, folder, scale) | {"PORT": str(port)} | variables
    with process(port, *commands(port)[name], **named) as program:
        yield port, program


VISITOR = {"Cookie": "visitor=somebody"}


def order(port: int, prompt: object, key: str) -> Answer:
    """Order a picture."""
    return ask(port, "PUT", f"/pictures/{key}", {"prompt": prompt}, VISITOR)


def look(port: int, key: str, **headers: str) -> Answer:
    """Ask for the state of an order, as somebody unless the cookie is another one."""
    return ask(port, "GET", f"/pictures/{key}", headers={**VISITOR, **headers})


def state(answer: Answer) -> object:
    """The state in an answer."""
    return field(answer, "state")


def field(answer: Answer, name: str) -> object:
    """One field of a JSON answer."""
    assert isinstance(answer.json, dict)
    return answer.json[name]


def detail(answer: Answer) -> str:
    """Why an order got no state, in words for the visitor: without keys and ids."""
    text = str(field(answer, "detail"))
    assert not re.search(r"[0-9a-f]{16}|\b(key|intent|task)\b", text), text
    return text


PROGRAMS = ("fastapi", "aiohttp")
CANCELLED = "This order was cancelled. You may order again."

Decide = Callable[[str], None]


@pytest.fixture
def decide(tmp_path: Path) -> Decide:
    """Runs `midapi journal dismiss` or `resubmit` with the only unknown submission."""

    def midapi(*words: str) -> str:
        # In a process of its own: in the tests with a browser this thread has an event loop.
        folder = ("--folder", str(tmp_path / "journal"))
        command = [sys.executable, "-m", "midapi_async", "journal", *words, *folder]
        return check_output(command, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})

    def run(verb: str) -> None:
        [unknown] = json.loads(midapi("list", "unknown", "--json"))["intents"]
        midapi(verb, unknown["intent_id"])

    return run


Doctor = Callable[[Path, str, SandboxThread], dict[str, dict[str, str]]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs `midapi doctor` in this process, beside the program; returns its findings by name."""
    for name in [name for name in os.environ if name.startswith("MIDAPI_")]:
        monkeypatch.delenv(name)

    def run(folder: Path, public_url: str, sandbox: SandboxThread) -> dict[str, dict[str, str]]:
        monkeypatch.setenv("MIDAPI_BASE_URL", sandbox.url)
        monkeypatch.setenv("MIDAPI_API_KEY", "any-key")
        monkeypatch.setenv("MIDAPI_PUBLIC_URL", public_url)
        monkeypatch.setenv("MIDAPI_JOURNAL", str(folder))
        capsys.readouterr()
        code = main(["doctor", "--json"])
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert code == (not found["ok"])
        assert not found_in(out + err)
        return {each["name"]: each for each in found["checks"]}

    return run


async def make_journal(folder: Path) -> None:
    """Make a journal without intents."""
    journal = SQLiteJournal(folder)
    await journal.stats()
    await journal.aclose()


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_doctor_checks_a_mounted_receiver_of_a_running_program(
    name: str, tmp_path: Path, doctor: Doctor
) -> None:
    """Reached with its journal, with another one, with a wrong prefix, and not running."""
    asyncio.run(make_journal(tmp_path / "other"))
    with SandboxThread() as sandbox:
        with running(name, sandbox, tmp_path) as (port, _):
            right, wrong = (f"http://127.0.0.1:{port}/{path}" for path in ("hooks/midapi", "hook"))
            reached = doctor(tmp_path / "journal", right, sandbox)
            other = doctor(tmp_path / "other", right, sandbox)["callback"]
            lost = doctor(tmp_path / "journal", wrong, sandbox)["callback"]
        gone = doctor(tmp_path / "journal", right, sandbox)["callback"]
    assert {each["verdict"] for each in reached.values()} == {"ok"}
    assert "it has arrived at your application" in reached["callback"]["text"]
    assert "404 Not Found" in other["text"]
    assert "a receiver answers, and does not know the token of this check" in other["text"]
    assert "Set MIDAPI_JOURNAL here as for your application" in other["hint"]
    assert "404 Not Found" in lost["text"]
    assert "Not Found" in lost["text"].partition("a page")[2]
    assert "is the receiver mounted at that path?" in lost["hint"]
    assert (gone["verdict"], "nothing listens on" in gone["text"]) == ("failed", True)


@pytest.mark.parametrize("name", PROGRAMS)
def test_orders_and_their_answers(name: str, tmp_path: Path) -> None:
    """200 in time; 202 before; the same key once; each error its own status."""
    plan = Faults().on("submit", when=lambda call: "poor" in str(call.body), do=no_credits_as_500())
    plan.on("submit", when=lambda call: "lost" in str(call.body), do=lose_answer(), nth=1)
    plan.on("submit", when=lambda call: "rude" in str(call.body), do=answer_code(400, SENSITIVE))
    with (
        SandboxThread(time_scale=12, faults=plan) as sandbox,
        running(name, sandbox, tmp_path, scale=12) as (port, _),
    ):
        quick = order(port, f"{FOX} [[sandbox: seconds=4]]", "1")
        assert (quick.status, state(quick)) == (200, "succeeded")
        assert len(field(quick, "urls")) == 4  # type: ignore[arg-type]  # a list, if this passes
        assert quick.json == order(port, f"{FOX} [[sandbox: seconds=4]]", "1").json

        slow = order(port, f"{FOX} [[sandbox: seconds=60]]", "2")
        assert (slow.status, state(slow)) == (202, "generating")
        wait_until(lambda: state(look(port, "2")) == "succeeded")
        assert order(port, f"{FOX} [[sandbox: seconds=60]]", "2").status == 200

        # Its answer was lost; its callback tells what became of it.
        assert state(order(port, "lost [[sandbox: seconds=10]]", "3")) in {"unknown", "succeeded"}
        wait_until(lambda: state(look(port, "3")) == "succeeded")

        other = order(port, "a blue whale", "1")
        assert (other.status, "another prompt" in detail(other)) == (409, True)
        for key, reason in (("4", "nsfw"), ("5", "gone")):
            failing = order(port, f"{FOX} [[sandbox: fail={reason}; seconds=3]]", key)
            assert (failing.status, state(failing)) == (200, "failed")
            assert field(failing, "detail") == reason
            assert failing.json == look(port, key).json
        refused = order(port, "rude", "6")
        assert refused.status == 422
        assert SENSITIVE in detail(refused)
        poor = order(port, "poor", "7")
        assert (poor.status, field(poor, "detail")) == (502, "This is not possible now.")
        assert len(sandbox.ledger.accepted) == 5
        assert {each.status for each in sandbox.ledger.callbacks} == {200}


@pytest.mark.parametrize("name", [*PROGRAMS, "wsgi"])
def test_a_dismissed_order_is_answered_as_cancelled(
    name: str, tmp_path: Path, decide: Decide
) -> None:
    """410 without keys and ids, to each request, until the page orders with another id."""
    plan = Faults().on("submit", do=lose_answer(), nth=1)
    with (
        SandboxThread(time_scale=20, faults=plan, auto=False) as sandbox,
        running(name, sandbox, tmp_path, scale=20) as (port, _),
    ):
        lost = order(port, FOX, "1")
        assert (lost.status, state(lost)) == (202, "unknown")
        decide("dismiss")
        for answer in (look(port, "1"), order(port, FOX, "1")):
            assert (answer.status, detail(answer)) == (410, CANCELLED)
        other = order(port, "a blue whale", "1")
        assert (other.status, "another prompt" in detail(other)) == (409, True)
        assert len(sandbox.ledger.accepted) == 1
        again = order(port, FOX, "2")
        assert (again.status, state(again)) == (202, "generating")
        assert len(sandbox.ledger.accepted) == 2


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_order_that_is_resubmitted_while_its_request_waits(
    name: str, tmp_path: Path, decide: Decide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request gets the state of the new task, and is not told to order again."""
    plan = Faults().on("submit", do=lose_answer(), nth=1)
    with (
        SandboxThread(faults=plan, auto=False) as sandbox,
        running(name, sandbox, tmp_path) as (port, _),
        ThreadPoolExecutor() as threads,
    ):
        for variable, value in environment(sandbox, port, tmp_path, 1.0).items():
            monkeypatch.setenv(variable, value)
        asked = threads.submit(order, port, FOX, "1")
        wait_until(lambda: sandbox.ledger.accepted)
        time.sleep(1)  # until it is unknown, and the request waits for a callback
        assert not asked.done()
        decide("resubmit")
        answer = asked.result(20)
        assert (answer.status, state(answer)) == (202, "generating")
        assert len(sandbox.ledger.accepted) == 2


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_missing_or_wrong_in_a_request_is_a_400(name: str, tmp_path: Path) -> None:
    """With a reason as JSON; nothing is sent, and no task can be asked for by its id."""
    with (
        SandboxThread(time_scale=12) as sandbox,
        running(name, sandbox, tmp_path, scale=12) as (port, _),
    ):
        bodies: list[object] = [
            *({}, [], "prompt", None),
            *(b'{"prompt": "a fo', b'{"prompt": "\\ud800"}', b"\xff\xfe", b"[" * 100_000),
        ]
        malformed = [
            *(ask(port, "PUT", "/pictures/1", body, VISITOR) for body in bodies),
            order(port, FOX, "no.key"),
            order(port, "", "1"),
            order(port, None, "1"),
            order(port, ["a"], "1"),
            ask(port, "PUT", "/pictures/1", {"prompt": FOX}),
            look(port, "%20"),
            look(port, "1", Cookie="other=1"),
        ]
        assert [answer.status for answer in malformed] == [400] * len(malformed)
        assert all(isinstance(field(answer, "detail"), str) for answer in malformed)
        bought = order(port, f"{FOX} [[sandbox: seconds=4]]", "1")
        [accepted] = sandbox.ledger.accepted
        asked = len(sandbox.ledger.requests)
        for answer in (
            look(port, accepted.task_id),
            look(port, "0" * 32),
            look(port, "1", Cookie="visitor=somebody-else"),
        ):
            assert answer.status == 404
        assert look(port, "1").json == bought.json
        assert len(sandbox.ledger.requests) == asked


@pytest.mark.parametrize("name", PROGRAMS)
def test_fifty_visitors_of_a_status_cause_few_looks(name: str, tmp_path: Path) -> None:
    """While the task is made, and while looks at it fail."""
    with (
        SandboxThread(time_scale=5, auto=False) as sandbox,
        running(name, sandbox, tmp_path, scale=5) as (port, _),
        ThreadPoolExecutor(10) as threads,
    ):
        assert order(port, FOX, "1").status == 202
        [accepted] = sandbox.ledger.accepted

        def fifty() -> list[Answer]:
            before, begun = sandbox.ledger.looks(accepted.task_id), time.monotonic()
            answers = list(threads.map(lambda _: look(port, "1"), range(50)))
            most = 1 + (time.monotonic() - begun)  # one in 5 s, which are a second here
            assert sandbox.ledger.looks(accepted.task_id) - before <= most
            return answers

        assert {state(answer) for answer in fifty()} == {"generating"}
        sandbox.faults.on("look", do=answer_code(500))
        time.sleep(1)
        assert {answer.status for answer in fifty()} == {502}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_stop_signal_while_a_request_waits(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The request is answered, the process ends at once, the next one goes on."""
    with SandboxThread(auto=False) as sandbox, ThreadPoolExecutor() as threads:
        with running(name, sandbox, tmp_path) as (port, program):
            asked = threads.submit(order, port, FOX, "1")
            wait_until(lambda: sandbox.ledger.accepted or asked.done())
            assert sandbox.ledger.accepted, asked.result()
            wait_until((tmp_path / "journal").exists)
            time.sleep(0.5)  # until the answer has reached the client, and it waits
            assert not asked.done()
            begun = time.monotonic()
            program.send_signal(signal.SIGTERM)
            answer = asked.result(20)
            code = program.wait(20)
            took = time.monotonic() - begun
        assert code in ENDED
        assert took < 5, "it waited for its patience to end, and not for the signal"
        [accepted] = sandbox.ledger.accepted
        assert (answer.status, state(answer)) == (202, "generating")
        with running(name, sandbox, tmp_path, port=port):
            assert state(look(port, "1")) == "generating"
            again = threads.submit(order, port, FOX, "1")
            time.sleep(0.5)
            sandbox.finish(accepted.task_id)
            assert again.result(20).status == 200
            assert again.result().json == look(port, "1").json
        assert len(sandbox.ledger.accepted) == 1
    assert not found_in(capfd.readouterr().out)


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_order_is_found_again_after_a_kill_while_it_was_sent(name: str, tmp_path: Path) -> None:
    """It is unknown and not sent again; its callback shows that it was bought."""
    with (
        SandboxThread(time_scale=5, auto=False, faults=Faults().on("submit", do=hang())) as sandbox,
        ThreadPoolExecutor() as threads,
    ):
        # At its own pace: the 5 s for which `known` waits are the same at each scale.
        with running(name, sandbox, tmp_path) as (port, program):
            asked = threads.submit(order, port, FOX, "1")
            wait_until(lambda: sandbox.ledger.accepted)
            assert state(look(port, "1")) == "generating"  # it waits for the answer
            program.kill()
            with pytest.raises(ConnectionError):
                asked.result(20)
        with running(name, sandbox, tmp_path, scale=5, port=port):
            again = order(port, FOX, "1")
            assert (again.status, state(again)) == (202, "unknown")
            assert state(look(port, "1")) == "unknown"
            sandbox.finish(sandbox.ledger.accepted[0].task_id)
            wait_until(lambda: state(look(port, "1")) == "succeeded")
        assert len(sandbox.ledger.accepted) == 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_order_that_does_not_get_a_slot_in_time_is_sent_by_its_next_request(
    name: str, tmp_path: Path
) -> None:
    """503 with Retry-After, nothing was bought, and there is no order to ask for."""
    must_wait = True
    plan = Faults().on("submit", when=lambda _: must_wait, do=answer_code(429))
    with (
        SandboxThread(time_scale=60, faults=plan) as sandbox,
        running(name, sandbox, tmp_path, scale=60) as (port, _),
    ):
        # 202 on a slow machine: if its POST is under way when the request has waited long enough.
        wait_until(lambda: order(port, FOX, "1").headers.get("retry-after") == "5")
        assert look(port, "1").status == 404
        must_wait = False
        wait_until(lambda: order(port, FOX, "1").status != 503)
        wait_until(lambda: state(look(port, "1")) == "succeeded")
        assert len(sandbox.ledger.accepted) == 1


def listen(port: int, key: str) -> list[object]:
    """The states that an event stream sends until the server ends it."""
    answer = look(port, key, Accept="text/event-stream")
    assert answer.headers["content-type"] == "text/event-stream"
    lines = answer.body.decode().splitlines()
    return [json.loads(line[6:])["state"] for line in lines if line.startswith("data: ")]


def test_event_streams_share_a_wait_and_end_with_the_process(tmp_path: Path) -> None:
    """Thirty cause no more looks than one; a browser connects again, and learns the rest."""
    with SandboxThread(time_scale=5, auto=False) as sandbox, ThreadPoolExecutor(30) as threads:
        with running("aiohttp", sandbox, tmp_path, scale=5) as (port, program):
            assert order(port, FOX, "1").status == 202
            streams = [threads.submit(listen, port, "1") for _ in range(30)]
            assert look(port, "2", Accept="text/event-stream").status == 404
            time.sleep(1)  # until all have their first event, and wait
            begun = time.monotonic()
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) in ENDED
            assert time.monotonic() - begun < 5
            assert [each.result(1) for each in streams] == [["generating"]] * 30
        [accepted] = sandbox.ledger.accepted
        assert sandbox.ledger.looks(accepted.task_id) <= 2
        with running("aiohttp", sandbox, tmp_path, scale=5, port=port):
            streams = [threads.submit(listen, port, "1") for _ in range(30)]
            time.sleep(1)
            sandbox.finish(accepted.task_id)
            assert [each.result(20) for each in streams] == [["generating", "succeeded"]] * 30
            assert listen(port, "1") == ["succeeded"]
        assert sandbox.ledger.looks(accepted.task_id) <= 6


def test_a_program_without_asyncio(tmp_path: Path) -> None:
    """Orders in threads, callbacks through `receiver.handle`, and an end at SIGTERM."""
    with SandboxThread(time_scale=20, auto=False) as sandbox, ThreadPoolExecutor(10) as threads:
        with running("wsgi", sandbox, tmp_path, scale=20) as (port, program):
            bodies: list[object] = [{}, [], b"{", b"\xff", {"prompt": ""}, {"prompt": 1}]
            for body in bodies:
                assert ask(port, "PUT", "/pictures/1", body).status == 400
            assert order(port, FOX, "a/b").status == 404
            twice = list(threads.map(lambda _: order(port, FOX, "1"), range(2)))
            assert [each.status for each in twice] == [202, 202]
            [accepted] = sandbox.ledger.accepted
            begun = time.monotonic()
            asked = list(threads.map(lambda _: ask(port, "GET", "/pictures/1"), range(50)))
            assert {state(each) for each in asked} == {"generating"}
            most = 1 + (time.monotonic() - begun) * 20 / 5
            assert sandbox.ledger.looks(accepted.task_id) <= most
            sandbox.finish(accepted.task_id)
            wait_until(lambda: [each.status for each in sandbox.ledger.callbacks] == [200])
            wait_until(lambda: state(ask(port, "GET", "/pictures/1")) == "succeeded")
            assert ask(port, "GET", "/pictures/2").status == 404
            assert ask(port, "POST", "/hooks/midapi/mjt_unknown", b"{}").status == 404
            begun = time.monotonic()
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) == 0
            assert time.monotonic() - begun < 5
    assert len(sandbox.ledger.accepted) == 1


def test_the_fastapi_program_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a test client runs it: nothing of it needs the main thread."""
    port = free_port()
    with SandboxThread(time_scale=12) as sandbox:
        for variable, value in environment(sandbox, port, tmp_path, 12).items():
            monkeypatch.setenv(variable, value)
        program = runpy.run_path(str(EXAMPLES / "web_fastapi.py"), run_name="pictures")
        with uvicorn_serving(program["app"], port):
            assert order(port, f"{FOX} [[sandbox: seconds=4]]", "1").status == 200
            wait_until(lambda: [each.status for each in sandbox.ledger.callbacks] == [200])


@contextmanager
def four_workers(sandbox: SandboxThread, folder: Path) -> Iterator[tuple[int, "Popen[str]"]]:
    """The FastAPI program on four workers that share one folder."""
    port = free_port()
    command = uvicorn_of("tests.callbacks.apps.workers:app", port, "--workers", "4")
    named = environment(sandbox, port, folder, 1.0)
    with process(port, *command, TEST_WORKERS_LOG=str(folder / "log"), **named) as supervisor:
        pids: set[str] = set()

        def all_serve() -> bool:
            pids.add(ask(port, "GET", "/nothing").headers["x-worker"])
            return len(pids) == 4

        wait_until(all_serve)
        yield port, supervisor


def test_four_workers_share_keys_and_callbacks(tmp_path: Path) -> None:
    """A callback may land on any of them: whoever waits looks at once, and nothing is paid twice.

    No look is planned before the requests' patience ends, so each answer with a picture was caused
    by a callback. Of each two orders with one key, each is answered.
    """
    with (
        SandboxThread(auto=False) as sandbox,
        four_workers(sandbox, tmp_path) as (port, supervisor),
        ThreadPoolExecutor(32) as threads,
    ):
        asked = [threads.submit(order, port, FOX, f"{n % 12}") for n in range(24)]
        wait_until(lambda: len(sandbox.ledger.accepted) == 12)
        time.sleep(1)  # until all have seen whose key it is, and wait
        for accepted in sandbox.ledger.accepted:
            sandbox.finish(accepted.task_id)
        answers = [each.result(30) for each in asked]
        assert {answer.status for answer in answers} == {200}
        assert len(sandbox.ledger.accepted) == 12
        assert {each.status for each in sandbox.ledger.callbacks} == {200}
        assert_some_crossed(sandbox, answers, tmp_path / "log")
        assert all(sandbox.ledger.looks(each.task_id) <= 2 for each in sandbox.ledger.accepted)
        assert order(port, FOX, "3").json == answers[3].json
        assert len(sandbox.ledger.accepted) == 12
        waiting = [threads.submit(order, port, FOX, f"last-{n}") for n in range(4)]
        wait_until(lambda: len(sandbox.ledger.accepted) == 16)
        time.sleep(0.5)  # until all have their answer, and wait
        begun = time.monotonic()
        supervisor.send_signal(signal.SIGTERM)
        assert {each.result(30).status for each in waiting} == {202}
        assert supervisor.wait(30) in ENDED
        assert time.monotonic() - begun < 8, "they waited for their patience to end"
    assert len(sandbox.ledger.accepted) == 16


def assert_some_crossed(sandbox: SandboxThread, answers: list[Answer], log: Path) -> None:
    """Some waited in another worker than the one that took their callback."""
    took = dict(line.split() for line in log.read_text().splitlines())
    taker = {
        each.task_id: took[token_hash(str(each.callback_url).rpartition("/")[2])]
        for each in sandbox.ledger.accepted
    }
    crossed = []
    for answer in answers:
        [worker] = [took for task_id, took in taker.items() if task_id in str(answer.json)]
        crossed += [answer] if answer.headers["x-worker"] != worker else []
    assert crossed
    print(len(crossed), "of", len(answers), "waited in another worker")
