import asyncio
import threading
from pathlib import Path

import pytest

from midapi_async import MidAPIClient, SubmissionUnknown
from midapi_async.sandbox import SandboxThread, lose_answer
from tests.cli.conftest import Midapi, only, wait_until

pytestmark = pytest.mark.real_time


async def generate(client: MidAPIClient, key: str) -> str:
    """Submit and wait; the intent's id if nobody knows."""
    try:
        await client.generate_and_wait("a [red] fox\x1b[31m", key=key, metadata={"a": "b"})
    except SubmissionUnknown as unknown:
        return unknown.intent_id
    return ""


@pytest.fixture
def unknown(midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a finished intent and an unknown one, named in the environment."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    midapi_sandbox.faults.on("submit", nth=2, do=lose_answer())

    async def fill() -> str:
        async with MidAPIClient() as client:
            assert not await generate(client, "one")
            return await generate(client, "two")

    return asyncio.run(fill())


def test_list_and_show(midapi: Midapi, unknown: str) -> None:
    """One line for each intent; a beginning of its id is enough; nothing raw reaches a terminal."""
    lines = midapi("journal", "list").lines
    assert [line.split(" ", 2)[2].partition(" task=")[0] for line in lines] == [
        "succeeded taken key=one",
        "unknown key=two",
    ]
    assert unknown == only(midapi("journal", "list", "unknown").lines).split()[0]
    assert len(midapi("journal", "list", "--json").json["intents"]) == 2
    facts = midapi("journal", "show", unknown[:8], "--json").json
    assert (
        facts["state"],
        facts["key"],
        facts["metadata"],
        facts["task_id"],
    ) == ("unknown", "two", {"a": "b"}, None)
    assert facts["request"]["kind"] == "TextToImage"
    ran = midapi("journal", "show", unknown)
    assert f"intent_id: {unknown}" in ran.lines
    assert "\x1b" not in ran.out


def test_an_intent_that_is_not_there(midapi: Midapi, unknown: str) -> None:
    """A usage error that says so; so is a beginning that fits several."""
    assert (ran := midapi("journal", "show", "zz")).code == 2
    assert "'zz' is in this journal under no intent" in ran.error
    assert "several" in midapi("journal", "show", "").error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("list",), "MIDAPI_JOURNAL"),
        (("check", "--folder", "nowhere"), "'nowhere' is no folder"),
        (("prune", "--folder", ".", "--days", "-1"), "days"),
        (("list", "--folder", "."), "journal"),
    ],
)
def test_folders_that_are_no_journal(
    midapi: Midapi, elsewhere: Path, arguments: tuple[str, ...], told: str
) -> None:
    """None is made, and what is in the way is named."""
    (elsewhere / "somebody-elses").write_text("mine")
    ran = midapi("journal", *arguments)
    assert ran.code in {1, 2}
    assert told in ran.error
    assert list(elsewhere.iterdir()) == [elsewhere / "somebody-elses"]


def test_adopt_while_a_bot_has_the_folder_open(
    midapi: Midapi, midapi_sandbox: SandboxThread, unknown: str
) -> None:
    """The bot that settles wakes in its own process's client, with the task that was adopted."""
    task_id = midapi_sandbox.ledger.accepted[1].task_id
    settled: list[str] = []
    waiting = threading.Event()

    async def bot() -> None:
        async with MidAPIClient() as client:
            waiting.set()
            settled.append((await client.intents.settle(unknown, timeout=1000)).task_id)

    thread = threading.Thread(target=lambda: asyncio.run(bot()))
    thread.start()
    try:
        wait_until(waiting.is_set)
        ran = midapi("journal", "adopt", unknown, task_id)
        assert (0, [task_id]) == (ran.code, ran.lines)
    finally:
        thread.join(20)
    assert settled == [task_id]
    assert midapi("journal", "adopt", unknown, "another").code == 2


def test_settle_gives_up_and_dismiss_forgets(midapi: Midapi, unknown: str) -> None:
    """Nothing is sent by either."""
    ran = midapi("journal", "settle", unknown, "--timeout", "1")
    assert ran.code == 1
    assert "no callback came in time" in ran.error
    ran = midapi("journal", "dismiss", unknown[:10])
    assert (ran.code, ran.out) == (0, "")
    assert "is dismissed" in ran.err
    assert midapi("journal", "dismiss", "zz").code == 2


def test_resubmit_buys_again(midapi: Midapi, midapi_sandbox: SandboxThread, unknown: str) -> None:
    """A new intent has the key; the old one is superseded."""
    ran = midapi("journal", "resubmit", unknown)
    assert ran.lines == [midapi_sandbox.ledger.accepted[2].task_id]
    assert midapi("journal", "show", unknown, "--json").json["state"] == "superseded"
    assert (ran := midapi("journal", "resubmit", unknown, "--json")).code == 2
    assert "only an unknown one" in ran.json["error"]["message"]


def test_resubmit_needs_a_key_and_adopt_does_not(
    midapi: Midapi, unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what talks to MidAPI asks for the API key."""
    monkeypatch.delenv("MIDAPI_API_KEY")
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", "https://me.example/midapi")
    assert "API key" in midapi("journal", "resubmit", unknown).error
    assert midapi("journal", "adopt", unknown, "some-task", "--json").json["task_id"] == "some-task"


def test_prune_and_check(midapi: Midapi, unknown: str) -> None:
    """What was over goes, its key stays spent, what is unknown stays; a whole journal is 0."""
    assert midapi("journal", "prune").lines == ["0 removed"]
    assert midapi("journal", "prune", "--days", "0", "--json").json == {"removed": 1}
    report = midapi("journal", "check", "--json").json
    assert (
        report["problems"],
        {state: count for state, count in report["counts"].items() if state == "unknown"},
        report["spent_keys"],
    ) == ([], {"unknown": 1}, 1)
    assert "whole" in midapi("journal", "check").lines[0]
    assert "There is none." in midapi("journal", "list", "refused").err


def test_a_damaged_journal_is_1(midapi: Midapi, unknown: str, elsewhere: Path) -> None:
    """The error names the file."""
    [database] = (elsewhere / "journal").glob("*.sqlite")
    database.write_bytes(b"garbage" * 10_000)
    ran = midapi("journal", "check")
    assert ran.code == 1
    assert str(database) in ran.error
