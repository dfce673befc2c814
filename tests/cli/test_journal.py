import asyncio
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from midapi_async import (
    CallbackReceiver,
    Intent,
    MemoryJournal,
    MidAPIClient,
    State,
    SubmissionUnknown,
    TextToImage,
    Upscale,
)
from midapi_async.cli._folder import rows_of
from midapi_async.cli._listing import listing
from midapi_async.cli._terminal import one_line
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import SandboxThread, answer_code, delay, lose_answer
from tests.cli.conftest import REPOSITORY, Midapi, ctrl_c_when, only
from tests.support.waiting import free_port, wait_until

# At the default scale a slow submission would print its progress.
pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240)]


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


COLUMNS = ["INTENT", "STATE", "TAKEN", "TIME", "(UTC)", "KEY", "TASK", "PROMPT"]


def test_list_and_show(midapi: Midapi, unknown: str) -> None:
    """A header and a line for each intent; an id's first digits do; controls are escaped."""
    lines = midapi("journal", "list").lines
    assert lines[0].split() == COLUMNS
    assert [line.split()[1] for line in lines[1:]] == ["succeeded", "unknown"]
    assert all(line.endswith(r"a [red] fox\x1b[31m") for line in lines[1:])
    assert only(midapi("journal", "list", "unknown").lines[1:]).split()[0] == unknown
    assert midapi("journal", "list").err.endswith("  midapi journal dismiss INTENT\n")
    elsewhere = midapi("journal", "list", "--folder", "journal").err.splitlines()
    assert elsewhere[-3] == "  midapi journal adopt INTENT TASK --folder journal"
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
    assert "taken: false" in ran.lines
    assert '"prompt": "a [red] fox\\u001b[31m"' in ran.out
    assert "\x1b" not in ran.out


def test_show_names_the_final_status_and_other_task_ids(midapi: Midapi, unknown: str) -> None:
    """What is stored of a finished task, and task ids that may belong to an unknown intent."""

    async def add_candidate() -> None:
        journal = SQLiteJournal("journal")
        await journal.advance(unknown, candidate="another-task")
        await journal.aclose()

    asyncio.run(add_candidate())
    assert 'other_task_ids: ["another-task"]' in midapi("journal", "show", unknown).lines
    finished = only(midapi("journal", "list", "succeeded").lines[1:]).split()[0]
    facts = midapi("journal", "show", finished, "--json").json
    assert (facts["status"], len(facts["urls"]), facts["error_message"]) == ("succeeded", 4, None)
    assert "status: succeeded" in midapi("journal", "show", finished).lines


def test_every_state_can_be_listed(midapi: Midapi, unknown: str) -> None:
    """Its name is an argument; without any such intent, stderr says so."""
    for state in State:
        ran = midapi("journal", "list", state)
        assert ran.code == 0, state
        shown = [each for each in ("succeeded", "unknown") if each == state]
        assert [line.split()[1] for line in ran.lines[1:]] == shown, state
        assert ("No such intents." in ran.err) == (not ran.lines), state


def test_states_are_written_alike_everywhere(midapi: Midapi, unknown: str) -> None:
    """In help, errors, list, show, check and stats; other spellings are accepted."""

    async def call_back() -> None:
        async with MidAPIClient() as client:
            handle = await client.generate("a fox", key="three")
        journal = SQLiteJournal("journal")
        await journal.advance(str(handle.intent_id), State.CALLED_BACK)
        await journal.aclose()

    asyncio.run(call_back())
    described = " ".join(midapi("journal", "list", "--help").out.replace("│", " ").split())
    assert ", ".join(State) in described
    wrong = midapi("journal", "list", "called")
    assert wrong.code == 2
    assert all(f'"{state.value}"' in wrong.error for state in State)
    for spelling in ("called_back", "called-back", "CALLED_BACK"):
        assert only(midapi("journal", "list", spelling).lines[1:]).split()[1] == "called_back"
    [row] = midapi("journal", "list", "called_back", "--json").json["intents"]
    assert row["state"] == "called_back"
    assert "state: called_back" in midapi("journal", "show", row["intent_id"]).lines
    assert "1 called_back" in midapi("journal", "check").lines
    assert "1 called_back" in midapi("journal", "stats").out
    assert midapi("journal", "stats", "--json").json["states"]["called_back"] == 1


def test_list_limit_shows_the_newest(midapi: Midapi, unknown: str) -> None:
    """Still oldest first; stderr says how many are left out; a limit below 1 is an error."""
    ran = midapi("journal", "list", "--limit", "1")
    assert only(ran.lines[1:]).split()[0] == unknown
    assert "Older ones that are not shown: 1" in ran.err.splitlines()
    [row] = midapi("journal", "list", "--limit", "1", "--json").json["intents"]
    assert (row["intent_id"], row["request"]["prompt"]) == (unknown, "a [red] fox\x1b[31m")
    ran = midapi("journal", "list", "--limit", "2")
    assert [line.split()[1] for line in ran.lines[1:]] == ["succeeded", "unknown"]
    assert "Older" not in ran.err
    ran = midapi("journal", "list", "--limit", "0")
    assert (ran.code, "must be 1 or more" in ran.error) == (2, True)


def test_list_says_what_to_do_about_unknown_ones(midapi: Midapi, unknown: str) -> None:
    """On stderr, and only if there are any."""
    assert "midapi journal adopt INTENT TASK" in midapi("journal", "list").err
    assert not midapi("journal", "list", "succeeded").err
    assert not midapi("journal", "list", "unknown", "--json").err


@pytest.mark.one_python
@pytest.mark.skipif(sys.platform == "win32", reason="has no pty")
@pytest.mark.fault("D12")
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_list_fits_a_real_terminal(midapi: Midapi, unknown: str, columns: int) -> None:
    """The prompt of an unknown one has its own line; ids are whole where there is room."""
    header, succeeded, row, prompt, *advice = on_terminal(columns, "journal", "list")
    assert [succeeded.split()[1], row.split()[1]] == ["succeeded", "unknown"]
    assert prompt == r"  a [red] fox\x1b[31m"
    assert all(len(line) <= columns for line in (header, succeeded, row))
    assert row.split()[0] == (unknown if columns == 200 else unknown[:8])
    assert midapi("journal", "show", row.split()[0]).code == 0
    assert ("TASK" in header, "TIME" in header) == (columns == 200, columns > 60)
    assert header.endswith("PROMPT")
    assert len(advice) == 4
    assert all(len(line) <= 80 for line in advice)


HOSTILE = "[/] \x1b[2J\x1b]0;title\x07 <script>\u202egnp.exe\u2066\r\n\tend"
texts = st.text() | st.sampled_from(["", HOSTILE, "狐" * 99, "e\u0301" * 99, "k" * 300])


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    """An intent in any state, with any texts."""
    state = draw(st.sampled_from(State))
    prompt = draw(texts)
    request = attrs.evolve(TextToImage("a"), prompt=prompt) if prompt.strip() else None
    return Intent(
        intent_id=draw(st.uuids()).hex,
        scope="https://me.example bot",
        request=draw(st.sampled_from([request, Upscale("a" * 32, 1)])),
        fingerprint="",
        token_hash=None,
        created_at=draw(st.floats(0, 4e9)),
        key=draw(texts),
        state=state,
        task_id=draw(st.none() | st.uuids().map(str)),
        taken=draw(st.booleans()),
    )


@pytest.mark.fault("D12")
@given(rows=st.lists(intents(), min_size=1, max_size=5), width=st.integers(40, 250) | st.none())
def test_a_listing_fits_its_width_and_prints_plainly(rows: list[Intent], width: int | None) -> None:
    """Each intent can be found; a line per unknown prompt on a terminal, one per row elsewhere."""
    header, *lines = listing(rows, width)
    assert all(line.isprintable() for line in lines)
    if width is not None:
        assert all(cell_len(line) <= width for line in (header, *lines))
    starts = [line for line in lines if width is None or not line.startswith("  ")]
    assert len(starts) == len(rows)
    for line, row in zip(starts, rows, strict=True):
        digits, state = line.split()[:2]
        assert row.intent_id.startswith(digits)
        assert (len(digits) >= 8, state) == (True, row.state.value)
        if width is None:
            assert one_line(row.key) in line
            assert digits == row.intent_id
    unknown = sum(row.state is State.UNKNOWN for row in rows)
    assert len(lines) - len(rows) == (unknown if width is not None else 0)


def on_terminal(columns: int, *arguments: str) -> list[str]:
    """The lines of a command on a terminal so wide."""
    import pty  # Windows has none

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "midapi_async", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": str(columns)},
    )
    os.close(theirs)
    written = b""
    with process:
        with suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(ours, 65536):
                written += chunk
        os.close(ours)
    assert process.returncode == 0
    return written.decode().splitlines()


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
    assert "'zz' is not in this journal; for the ids: midapi journal list" in ran.error
    oldest = midapi("journal", "list", "--json").json["intents"][0]["intent_id"]
    several = f"fits several intents, {oldest} and others: give more digits"
    assert several in midapi("journal", "show", "").error


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("list",), "MIDAPI_JOURNAL"),
        (("check", "--folder", "nowhere"), "'nowhere' does not exist"),
        (("check", "--folder", "other-file"), "'other-file' is not a folder"),
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


DECISIONS = ("adopt {} TASK", "resubmit {}", "dismiss {}")


def test_settle_says_at_once_what_it_waits_for(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which program must receive the callback; if none runs, how to decide without a callback."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    midapi_sandbox.faults.on("submit", nth=1, do=lose_answer())
    waiting = "Waiting up to 0.1 s for a callback. A program that has this journal open must "

    def settle(intent_id: str, *options: str) -> list[str]:
        ran = midapi("journal", "settle", intent_id[:12], "--timeout", "0.1", *options)
        assert (ran.code, ran.out) == (1, "")
        return ran.err.splitlines()[:-1]

    async def lose_one() -> tuple[str, list[str]]:
        receiver = CallbackReceiver("http://127.0.0.1:1/hooks", port=free_port())
        async with MidAPIClient(receiver=receiver) as client:
            lost = await generate(client, "fox")
            return lost, await asyncio.to_thread(settle, lost)

    intent_id, while_it_runs = asyncio.run(lose_one())
    assert while_it_runs == [f"{waiting}receive it; 1 is running."]
    first, advice, *commands = settle(intent_id, "--folder", "journal")
    assert first == f"{waiting}receive it, and none is running that has submitted anything."
    assert advice == "If none can come, press Ctrl-C, and decide with one of these:"
    assert commands == [
        f"  midapi journal {each.format(intent_id)} --folder journal" for each in DECISIONS
    ]


def test_settle_says_that_no_callback_was_asked_for(midapi: Midapi, unknown: str) -> None:
    """Then the commands that decide without one are named; JSON stays alone on stdout."""
    ran = midapi("journal", "settle", unknown, "--timeout", "0.1", "--json")
    assert "It was submitted without a receiver, so probably none comes." in ran.err
    assert f"  midapi journal dismiss {unknown}\n" in ran.err
    assert ran.json["error"]["type"] == "SubmissionUnknown"


def test_settle_of_what_is_decided_waits_for_nothing(midapi: Midapi, unknown: str) -> None:
    """A dismissed intent: what became of its key, and no line about a callback."""
    assert midapi("journal", "dismiss", unknown).code == 0
    ran = midapi("journal", "settle", unknown)
    assert ran.err == (
        f"midapi: key: you have dismissed intent {unknown}, so its key 'two' stays used. Use "
        "another key\n"
    )


def test_resubmit_submits_again(
    midapi: Midapi, midapi_sandbox: SandboxThread, unknown: str
) -> None:
    """A new intent has the key; the old one is superseded."""
    ran = midapi("journal", "resubmit", unknown)
    assert ran.lines == [midapi_sandbox.ledger.accepted[2].task_id]
    assert midapi("journal", "show", unknown, "--json").json["state"] == "superseded"
    assert (ran := midapi("journal", "resubmit", unknown, "--json")).code == 2
    assert "only an unknown or a failed one" in ran.json["error"]["message"]


@pytest.fixture
def three_unknown(midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with three unknown intents, the last one in another namespace."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    for nth in (1, 2, 3):
        midapi_sandbox.faults.on("submit", nth=nth, do=lose_answer())

    async def fill() -> list[str]:
        async with MidAPIClient() as first, MidAPIClient(namespace="other") as second:
            clients = {"one": first, "two": first, "three": second}
            return [await generate(client, key) for key, client in clients.items()]

    return asyncio.run(fill())


def states(midapi: Midapi) -> list[str]:
    """The states of all intents, oldest first."""
    return [each["state"] for each in midapi("journal", "list", "--json").json["intents"]]


def test_dismiss_takes_several(midapi: Midapi, three_unknown: list[str]) -> None:
    """Each is reported, also after one that cannot be dismissed."""
    first, second, third = three_unknown
    ran = midapi("journal", "dismiss", first, second[:10])
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.splitlines() == [f"Intent {each} is dismissed." for each in (first, second)]
    assert states(midapi) == ["dismissed", "dismissed", "unknown"]
    assert midapi("journal", "adopt", third, "some-task", "--force").code == 0
    ran = midapi("journal", "dismiss", third, first)
    assert ran.code == 1
    failed, dismissed, summary = ran.err.splitlines()
    assert failed.startswith(f"midapi: intent {third}: ")
    assert "is accepted; only an unknown one can be changed" in failed
    assert dismissed == f"Intent {first} is dismissed."
    assert summary == "midapi: 1 of 2 intents failed; each has a line above."


def test_resubmit_takes_several(
    midapi: Midapi, midapi_sandbox: SandboxThread, three_unknown: list[str]
) -> None:
    """Each is submitted once, in its namespace; after one that is refused the others go on."""
    midapi_sandbox.faults.on("submit", nth=1, do=answer_code(422, "no"))
    first, second, third = three_unknown
    ran = midapi("journal", "resubmit", first, third, second)
    assert ran.code == 1
    tasks = [each.task_id for each in midapi_sandbox.ledger.accepted[3:]]
    assert ran.lines == [f"{third} {tasks[0]}", f"{second} {tasks[1]}"]
    refused, summary = ran.err.splitlines()
    assert refused.startswith(f"midapi: intent {first}: ")
    assert summary == "midapi: 1 of 3 intents failed; each has a line above."
    rows = midapi("journal", "list", "--json").json["intents"]
    assert [row["state"] for row in rows[:3]] == ["unknown", "superseded", "superseded"]
    assert {row["supersedes"]: row["namespace"] for row in rows[3:] if row["task_id"]} == {
        second: "default",
        third: "other",
    }


def test_json_of_several_names_each(
    midapi: Midapi, midapi_sandbox: SandboxThread, three_unknown: list[str]
) -> None:
    """Also where some have failed: one JSON object says what became of each."""
    first, second, third = three_unknown
    midapi_sandbox.faults.on("submit", nth=2, do=lose_answer())
    ran = midapi("journal", "resubmit", first, second, third, "--json")
    assert ran.code == 1
    error = ran.json["error"]
    assert error["type"] == "IntentsFailed"
    assert [row["supersedes"] for row in error["intents"]] == [first, third]
    [failed] = error["failed"]
    assert (failed["intent_id"], failed["type"]) == (second, "SubmissionUnknown")
    assert "It may have been paid" in failed["message"]
    ran = midapi("journal", "dismiss", *unknown_ids(midapi), "--json")
    assert (ran.code, ran.json["state"]) == (0, "dismissed")


def unknown_ids(midapi: Midapi) -> list[str]:
    """The ids of all unknown intents."""
    return [
        row["intent_id"] for row in midapi("journal", "list", "unknown", "--json").json["intents"]
    ]


def test_adopt_takes_several_pairs(
    midapi: Midapi, midapi_sandbox: SandboxThread, three_unknown: list[str]
) -> None:
    """An intent and its task, and so on; a pair that does not fit is named."""
    tasks = [each.task_id for each in midapi_sandbox.ledger.accepted]
    first, second, third = three_unknown
    ran = midapi("journal", "adopt", first, "nowhere", second, tasks[1], third, tasks[2])
    assert ran.code == 1
    assert ran.lines == [f"{second} {tasks[1]}", f"{third} {tasks[2]}"]
    assert f"midapi: intent {first}: " in ran.err
    assert "is not known to MidAPI" in ran.err
    ran = midapi("journal", "adopt", first, tasks[0], second, tasks[1], "--json")
    assert ran.code == 0
    assert [row["task_id"] for row in ran.json["intents"]] == tasks[:2]
    assert ran.json["failed"] == []


def test_one_client_for_each_namespace(
    midapi: Midapi, three_unknown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that several submissions share one gate, and one connection where they can."""
    made = []

    class Counted(MidAPIClient):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(options["namespace"])

    monkeypatch.setattr("midapi_async.cli._unknown.MidAPIClient", Counted)
    assert midapi("journal", "dismiss", *three_unknown).code == 0
    assert made == ["default", "other"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("dismiss",), "INTENT"),
        (("resubmit",), "INTENT"),
        (("adopt",), "INTENT TASK"),
        (("adopt", "{0}"), "Each INTENT needs its TASK after it, got 1 argument:"),
        (("adopt", "{0}", "task", "{1}"), "got 3 arguments: midapi journal adopt INTENT TASK"),
        (("adopt", "{0}", "task", "{0}", "another"), "is given twice"),
        (("dismiss", "{0}", "{0}"), "is given twice"),
        (("resubmit", "{0}", "{0:.9}"), "is given twice"),
        (("resubmit", "{0}", "zz"), "'zz' is not in this journal"),
        (("dismiss", "{0}", ""), "fits several intents"),
    ],
)
def test_nothing_is_done_if_one_argument_is_wrong(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    three_unknown: list[str],
    arguments: tuple[str, ...],
    problem: str,
) -> None:
    """All intents are found before the first one is changed."""
    ran = midapi("journal", *(each.format(*three_unknown) for each in arguments))
    assert ran.code == 2
    assert problem in ran.error
    assert states(midapi) == ["unknown"] * 3
    assert len(midapi_sandbox.ledger.accepted) == 3


def test_ctrl_c_among_several_says_what_is_done(
    midapi: Midapi, midapi_sandbox: SandboxThread, three_unknown: list[str]
) -> None:
    """The submission that is under way is finished and recorded; the rest stays as it was."""
    midapi_sandbox.faults.on("submit", nth=2, do=delay(60))
    with ctrl_c_when(lambda: midapi_sandbox.ledger.count("submit") == 5):
        ran = midapi("journal", "resubmit", *three_unknown)
    assert ran.code == 130
    assert "Done: 1 of 3." in ran.error
    assert len(midapi_sandbox.ledger.accepted) == 5
    assert states(midapi)[:3] == ["superseded", "superseded", "unknown"]


def test_help_says_that_an_unknown_one_may_be_paid_twice(midapi: Midapi) -> None:
    """And how several are given."""
    assert "An unknown one may then be paid twice." in midapi("journal", "resubmit", "--help").out
    for command in ("resubmit", "dismiss"):
        assert "[OPTIONS] INTENT..." in midapi("journal", command, "--help").out
    assert "INTENT TASK [INTENT TASK ...]" in midapi("journal", "adopt", "--help").out


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
        ("missing", "does not exist"),
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
