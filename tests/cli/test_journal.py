import asyncio
import threading
from pathlib import Path

import pytest

from midapi_async import Intent, MemoryJournal, MidAPIClient, State, SubmissionUnknown
from midapi_async.cli._folder import rows_of
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import SandboxThread, lose_answer
from tests.cli.conftest import Midapi, only, wait_until

# At the default scale a slow submission would print its progress.
pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=60)]


async def generate(client: MidAPIClient, key: str) -> str:
    """Submit and wait; return the intent's id if the submission is unknown, else nothing."""
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
    """One line for each intent; the first digits of an id are enough; controls are escaped."""
    lines = midapi("journal", "list").lines
    assert [line.split(" ", 2)[2].partition(" task=")[0] for line in lines] == [
        "succeeded taken key=one",
        "unknown key=two",
    ]
    assert only(midapi("journal", "list", "unknown").lines).split()[0] == unknown
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


def test_show_names_the_final_status_and_other_task_ids(midapi: Midapi, unknown: str) -> None:
    """What is stored of a finished task, and task ids that may belong to an unknown intent."""

    async def add_candidate() -> None:
        journal = SQLiteJournal("journal")
        await journal.advance(unknown, candidate="another-task")
        await journal.aclose()

    asyncio.run(add_candidate())
    assert "other_task_ids: ['another-task']" in midapi("journal", "show", unknown).lines
    finished = only(midapi("journal", "list", "succeeded").lines).split()[0]
    facts = midapi("journal", "show", finished, "--json").json
    assert (facts["status"], len(facts["urls"]), facts["error_message"]) == ("succeeded", 4, None)
    assert "status: succeeded" in midapi("journal", "show", finished).lines


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_listed(midapi: Midapi, unknown: str, state: State) -> None:
    """Its name is an argument; without any such intent, stderr says so."""
    ran = midapi("journal", "list", state)
    assert ran.code == 0
    assert len(ran.lines) == (state in {State.SUCCEEDED, State.UNKNOWN})
    assert ("No such intents." in ran.err) == (not ran.lines)


async def test_a_journal_of_several_pages_is_read_to_its_end() -> None:
    """Each intent comes once, oldest first."""
    journal, names = MemoryJournal(), [f"{number:032x}" for number in range(1_001)]
    for name in names:
        intent = Intent(
            intent_id=name,
            scope="https://me.example bot",
            request=None,
            fingerprint="",
            token_hash=None,
            created_at=0,
        )
        await journal.claim(intent, "account", None, longest_post=1)
    assert [row.intent_id async for row in rows_of(journal)] == names


def test_an_intent_that_does_not_exist(midapi: Midapi, unknown: str) -> None:
    """A usage error that says so; digits that fit several intents are one, too."""
    assert (ran := midapi("journal", "show", "zz")).code == 2
    assert "'zz' is not in this journal" in ran.error
    assert "several" in midapi("journal", "show", "").error


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("list",), "MIDAPI_JOURNAL"),
        (("check", "--folder", "nowhere"), "'nowhere' is not a folder"),
        (("prune", "--folder", ".", "--days", "-1"), "days"),
        (("list", "--folder", "."), "journal"),
    ],
)
def test_a_folder_without_a_journal_is_an_error(
    midapi: Midapi, elsewhere: Path, arguments: tuple[str, ...], text: str
) -> None:
    """No journal is made, and the error says what is wrong."""
    (elsewhere / "other-file").write_text("mine")
    ran = midapi("journal", *arguments)
    assert ran.code in {1, 2}
    assert text in ran.error
    assert list(elsewhere.iterdir()) == [elsewhere / "other-file"]


def test_adopt_while_a_bot_has_the_folder_open(
    midapi: Midapi, midapi_sandbox: SandboxThread, unknown: str
) -> None:
    """A client that waits in settle() gets the task that the command adopted."""
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
        assert (ran.code, ran.lines) == (0, [task_id])
    finally:
        thread.join(20)
    assert settled == [task_id]
    assert midapi("journal", "adopt", unknown, "another").code == 2


def test_settle_times_out_and_dismiss_gives_up(midapi: Midapi, unknown: str) -> None:
    """Neither sends anything."""
    ran = midapi("journal", "settle", unknown, "--timeout", "1")
    assert ran.code == 1
    assert "no callback came in time" in ran.error
    ran = midapi("journal", "dismiss", unknown[:10])
    assert (ran.code, ran.out) == (0, "")
    assert "is dismissed" in ran.err
    assert midapi("journal", "dismiss", "zz").code == 2


def test_resubmit_submits_again(
    midapi: Midapi, midapi_sandbox: SandboxThread, unknown: str
) -> None:
    """A new intent has the key; the old one is superseded."""
    ran = midapi("journal", "resubmit", unknown)
    assert ran.lines == [midapi_sandbox.ledger.accepted[2].task_id]
    assert midapi("journal", "show", unknown, "--json").json["state"] == "superseded"
    assert (ran := midapi("journal", "resubmit", unknown, "--json")).code == 2
    assert "only an unknown or a failed one" in ran.json["error"]["message"]


def test_what_talks_to_midapi_needs_an_api_key(
    midapi: Midapi, unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`adopt` looks at the task's record, unless it is forced."""
    monkeypatch.delenv("MIDAPI_API_KEY")
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", "https://me.example/midapi")
    assert "set MIDAPI_API_KEY" in midapi("journal", "resubmit", unknown).error
    assert "set MIDAPI_API_KEY" in midapi("journal", "adopt", unknown, "some-task").error
    forced = midapi("journal", "adopt", unknown, "some-task", "--force", "--json")
    assert forced.json["task_id"] == "some-task"


def test_prune_and_check(midapi: Midapi, unknown: str) -> None:
    """Prune removes what is over and keeps its key and what is unknown; check then exits with 0."""
    assert midapi("journal", "prune").lines == ["0 removed"]
    assert midapi("journal", "prune", "--days", "0", "--json").json == {"removed": 1}
    report = midapi("journal", "check", "--json").json
    assert (
        report["problems"],
        {state: count for state, count in report["counts"].items() if state == "unknown"},
        report["spent_keys"],
    ) == ([], {"unknown": 1}, 1)
    assert "intact" in midapi("journal", "check").lines[0]
    assert "No such intents." in midapi("journal", "list", "refused").err


def test_check_of_a_damaged_journal_fails(midapi: Midapi, unknown: str, elsewhere: Path) -> None:
    """The error names the file."""
    [database] = (elsewhere / "journal").glob("*.sqlite")
    database.write_bytes(b"garbage" * 10_000)
    ran = midapi("journal", "check")
    assert ran.code == 1
    assert str(database) in ran.error


FIGURES = (
    *("path", "states", "last_24h", "unknown", "oldest_unknown_seconds", "open"),
    *("oldest_open_seconds", "untaken", "size_bytes", "used_keys_of_removed_intents"),
    "running_programs",
)


def test_stats_for_monitoring(midapi: Midapi, unknown: str) -> None:
    """Names that stay, every state, ages in seconds; also as a table."""
    figures = midapi("journal", "stats", "--json").json
    assert tuple(figures) == FIGURES
    for name in ("states", "last_24h"):
        assert set(figures[name]) == set(State)
        assert {state: count for state, count in figures[name].items() if count} == {
            "succeeded": 1,
            "unknown": 1,
        }
    assert (figures["unknown"], figures["open"], figures["untaken"]) == (1, 0, 0)
    assert 0 <= figures["oldest_unknown_seconds"] < 60
    assert figures["oldest_open_seconds"] is None
    assert figures["size_bytes"] > 10_000
    lines = midapi("journal", "stats").lines
    assert [line.split()[0] for line in lines] == list(FIGURES)
    assert lines[1].endswith("1 unknown, 1 succeeded")
    assert lines[6].split() == ["oldest_open_seconds", "-"]


def test_stats_while_a_bot_writes(midapi: Midapi, unknown: str) -> None:
    """A client that has the folder open and an open task is counted, and not disturbed."""
    read, done = threading.Event(), threading.Event()

    async def write() -> None:
        async with MidAPIClient(namespace="bot") as client:
            handle = await client.generate("a red fox")
            read.set()
            number = 0
            while not done.is_set():
                await client.generate("another", key=f"{(number := number + 1)}")
            await handle

    writing = threading.Thread(target=asyncio.run, args=(write(),))
    writing.start()
    assert read.wait(30)
    figures = midapi("journal", "stats", "--json").json
    done.set()
    writing.join()
    assert figures["open"] >= 1
    assert figures["untaken"] >= 1
    assert figures["oldest_open_seconds"] >= 0
    assert figures["running_programs"] >= 1


@pytest.mark.parametrize(
    "command", [["stats"], ["list"], ["check"], ["prune"], ["show", "1"], ["dismiss", "1"]]
)
def test_no_command_makes_a_journal(midapi: Midapi, tmp_path: Path, command: list[str]) -> None:
    """A folder without one, or none, is an error of usage, and stays as it is."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, problem in [
        ("empty", "contains no journal"),
        ("missing", "is not a folder"),
        ("file", "is not a folder"),
    ]:
        ran = midapi("journal", *command, "--folder", str(tmp_path / name), "--json")
        assert ran.code == 2
        assert problem in ran.json["error"]["message"]
    assert not list((tmp_path / "empty").iterdir())
    assert not (tmp_path / "missing").exists()


def test_stats_of_a_journal_that_cannot_be_read(
    midapi: Midapi, unknown: str, elsewhere: Path
) -> None:
    """A damaged or removed database has exit code 1, and is not made again."""
    [database] = (elsewhere / "journal").glob("*.sqlite")
    database.write_bytes(b"garbage" * 10_000)
    assert midapi("journal", "stats", "--json").code == 1
    database.unlink()
    ran = midapi("journal", "stats", "--json")
    assert ran.code == 1
    assert ran.json["error"]["type"] == "JournalError"
    assert not database.exists()
