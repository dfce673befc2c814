"""`midapi generate` and `midapi task` with MIDAPI_PUBLIC_URL: callbacks, also a bot's."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midapi_async import CallbackReceiver, MidAPIClient, SubmissionUnknown
from midapi_async.cli._options import Service
from midapi_async.cli._receiving import receiving
from midapi_async.sandbox import SandboxThread, lose_answer, never_call_back
from tests.cli.conftest import REPOSITORY, Midapi, ctrl_c_when, only, wait_until
from tests.support.waiting import free_port

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240)]

BOT = """
import asyncio, sys
from midapi_async import CallbackReceiver, MidAPIClient

async def main():
    async with MidAPIClient(receiver=CallbackReceiver.from_env()):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch, midapi_sandbox: SandboxThread) -> int:
    """A free port that MidAPI reaches, named in the environment."""
    port = free_port()
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", f"http://127.0.0.1:{port}/hooks")
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", str(port))
    return port


@contextmanager
def a_bot() -> Iterator[None]:
    """Another program that receives callbacks on the port, in its own namespace."""
    with subprocess.Popen(
        [sys.executable, "-c", BOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
    ) as bot:
        assert bot.stdout is not None
        assert bot.stdout.readline() == "ready\n"
        yield
        bot.communicate()


@contextmanager
def taken(port: int) -> Iterator[None]:
    """A program that is no receiver has the port."""
    with socket.create_server(("127.0.0.1", port)):
        yield


def statuses(sandbox: SandboxThread) -> set[int | None]:
    """How the callbacks were answered."""
    return {each.status for each in sandbox.ledger.callbacks}


@pytest.mark.fault("S1")
@pytest.mark.parametrize("waits", [True, False])
def test_a_lost_answer_is_settled_by_the_callback(
    midapi: Midapi, midapi_sandbox: SandboxThread, port: int, *, waits: bool
) -> None:
    """The result is printed all the same, and is paid once."""
    midapi_sandbox.faults.on("submit", do=lose_answer())
    more = [] if waits else ["--no-wait"]
    ran = midapi("generate", "a fox", "--json", "--key", "k", *more)
    assert ran.code == 0, ran.err
    order = only(midapi_sandbox.ledger.accepted)
    assert (ran.json["task_id"], ran.json["key"]) == (order.task_id, "k")
    assert len(ran.json["files"]) == (4 if waits else 0)
    assert "Waiting up to 4 min 24 s for MidAPI's callback: it comes if it was bought." in ran.err
    assert f"Task {order.task_id} was submitted" in ran.err


@pytest.mark.midapi_sandbox(time_scale=20)
def test_the_wait_for_a_lost_answer_is_bounded(
    midapi: Midapi, midapi_sandbox: SandboxThread, port: int
) -> None:
    """--timeout bounds it, too; Ctrl-C ends it, and both name the intent."""
    midapi_sandbox.faults.on("submit", do=lose_answer())
    midapi_sandbox.faults.on("callback", do=never_call_back())
    ran = midapi("generate", "a fox", "--timeout", "5", "--json")
    assert "Waiting up to 5.0 s for MidAPI's callback" in ran.err
    assert ran.json["error"]["type"] == "SubmissionUnknown"
    with ctrl_c_when(lambda: len(midapi_sandbox.ledger.accepted) == 2):
        ran = midapi("generate", "a fox", "--json")
    assert ran.code == 130
    assert len(ran.json["error"]["intent_id"]) == 32


def test_without_a_port_and_a_journal_it_polls(
    midapi: Midapi, midapi_sandbox: SandboxThread, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that is mounted somewhere cannot know the callback."""
    monkeypatch.delenv("MIDAPI_CALLBACK_PORT")
    ran = midapi("generate", "a fox", "--no-download")
    assert "Callbacks need MIDAPI_CALLBACK_PORT, which is not set. MidAPI is asked for" in ran.err
    assert "callBackUrl" not in only(midapi_sandbox.ledger.accepted).body


def test_without_a_journal_a_taken_port_means_polling(
    midapi: Midapi, midapi_sandbox: SandboxThread, port: int
) -> None:
    """The program on the port would not know the callback, so MidAPI is asked for none."""
    with taken(port):
        ran = midapi("generate", "a fox", "--no-download")
    assert ran.code == 0, ran.err
    [line] = [line for line in ran.err.splitlines() if "allback" in line]
    assert line == (
        f"Callbacks cannot be received on 127.0.0.1:{port}: Address already in use. MidAPI is "
        "asked for no callbacks, and the result is found by polling."
    )
    assert "callBackUrl" not in only(midapi_sandbox.ledger.accepted).body
    assert not midapi_sandbox.ledger.callbacks


@pytest.mark.fault("S1")
@pytest.mark.parametrize("is_mounted", [True, False])
def test_a_bot_with_the_same_journal_takes_the_callbacks(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_mounted: bool,
) -> None:
    """It settles a lost answer of another process and another namespace, and takes no result.

    Without MIDAPI_CALLBACK_PORT its receiver may stand anywhere, as in a web application.
    """
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    midapi_sandbox.faults.on("submit", nth=1, do=lose_answer())
    with a_bot():
        if is_mounted:
            monkeypatch.delenv("MIDAPI_CALLBACK_PORT")
        lost = midapi("generate", "a fox", "--no-download", "--json")
        known = midapi("generate", "a fox", "--no-download", "--json")
        wait_until(lambda: len(midapi_sandbox.ledger.callbacks) == 2)
    assert (lost.code, known.code) == (0, 0), lost.err
    bought = [each.task_id for each in midapi_sandbox.ledger.accepted]
    assert bought == [lost.json["task_id"], known.json["task_id"]]
    assert statuses(midapi_sandbox) == {200}
    line = "The program there takes them for this command if it shares MIDAPI_JOURNAL."
    assert (line in known.err) is not is_mounted
    assert midapi("journal", "list", "--state", "unknown").out == ""

    async def left() -> list[str]:
        async with MidAPIClient() as client:
            return [handle.task_id for handle in await client.resume()]

    assert asyncio.run(left()) == []


@pytest.mark.midapi_sandbox(auto=False)
def test_waiting_for_a_task_takes_callbacks_for_a_bot(
    midapi: Midapi, midapi_sandbox: SandboxThread, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the bot is away; its task is not taken, and its lost answer is settled later."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    midapi_sandbox.faults.on("submit", nth=2, do=lose_answer())

    async def order() -> tuple[str, str]:
        receiver = CallbackReceiver(os.environ["MIDAPI_PUBLIC_URL"])
        async with MidAPIClient(receiver=receiver) as client:
            handle = await client.generate("a fox")
            with pytest.raises(SubmissionUnknown) as caught:
                await client.generate("a whale")
            return handle.task_id, caught.value.intent_id

    async def settled(intent_id: str) -> tuple[str, set[str]]:
        receiver = CallbackReceiver(os.environ["MIDAPI_PUBLIC_URL"])
        async with MidAPIClient(receiver=receiver) as client:
            handle = await client.intents.settle(intent_id, 60)
            return handle.task_id, {each.task_id for each in await client.resume()}

    task_id, intent_id = asyncio.run(order())
    lost = midapi_sandbox.ledger.accepted[1].task_id

    def finish() -> bool:
        midapi_sandbox.finish(lost)
        midapi_sandbox.finish(task_id)
        return True

    timer = threading.Timer(1.0, finish)
    timer.start()
    ran = midapi("task", task_id, "--wait")
    timer.join()
    assert ran.code == 0, ran.err
    wait_until(lambda: len(midapi_sandbox.ledger.callbacks) >= 2)
    assert statuses(midapi_sandbox) == {200}
    assert asyncio.run(settled(intent_id)) == (lost, {lost, task_id})


async def test_a_receiver_that_midapi_cannot_reach(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A public URL on loopback for a service elsewhere: it goes on without callbacks."""
    monkeypatch.setenv("MIDAPI_API_KEY", "k")
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", "http://127.0.0.1:8080/hooks")
    for journal in ("", str(tmp_path / "journal")):
        monkeypatch.setenv("MIDAPI_JOURNAL", journal)
        service = Service(base_url="https://midapi.example.org")
        async with receiving(service, lambda _: None) as (_, receiver):
            assert receiver is None
        assert "MidAPI is asked for no callbacks" in capsys.readouterr().err
