"""`midapi batch`: a file of rows becomes a folder of pictures, and the same command goes on."""

import asyncio
import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from midapi_async import JournalError
from midapi_async.batch.folder import BatchFolder, lines_of
from midapi_async.cli import _batch_display, batch
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import (
    SandboxThread,
    answer_code,
    delay,
    fail_task,
    lose_answer,
    never_end,
)
from tests.cli.conftest import Midapi, ctrl_c_when, finish, only, spawn, wait_until
from tests.support.waiting import free_port

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=1200)]


def rows(count: int, name: str = "rows.txt") -> str:
    """A file with so many prompts; its name."""
    Path(name).write_text("".join(f"prompt {number}\n" for number in range(count)))
    return name


def bought(sandbox: SandboxThread) -> Counter[object]:
    """How often each prompt was paid for."""
    return Counter(entry.body.get("prompt") for entry in sandbox.ledger.accepted)


def results(folder: str = "out") -> list[dict[str, Any]]:
    """The lines of results.jsonl."""
    return [*lines_of(Path(folder, "results.jsonl"))]


def errors(folder: str = "out") -> list[dict[str, Any]]:
    """The lines of errors.jsonl."""
    return [*lines_of(Path(folder, "errors.jsonl"))]


def test_a_file_of_prompts_becomes_a_folder(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Four pictures and one line for each row, a page, and a summary; again, it is free."""
    ran = midapi("batch", rows(3), "--output", "out")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.splitlines() == [
        "3 rows: 3 succeeded. This run spent 24 credits.",
        "Pictures: out/pictures",
        "Gallery: out/gallery.html",
    ]
    assert sorted(line["prompt"] for line in results()) == ["prompt 0", "prompt 1", "prompt 2"]
    assert all(line["line"] == line["index"] + 1 for line in results())
    files = [name for line in results() for name in line["files"]]
    assert {Path("out", each) for each in files} == {*Path("out/pictures").iterdir()}
    assert len(files) == 12
    named = [json.loads(line) for line in Path("out/metadata.jsonl").read_text().splitlines()]
    assert [each["file_name"] for each in named] == files
    assert {each["text"] for each in named} == {"prompt 0", "prompt 1", "prompt 2"}
    assert "prompt 2" in Path("out/gallery.html").read_text()
    listed = midapi("journal", "list", "--folder", "out/journal", "--json").json["intents"]
    assert [each["state"] for each in listed] == ["succeeded"] * 3
    before = len(midapi_sandbox.ledger.requests), results()
    again = midapi("batch", "rows.txt", "--output", "out", "--json")
    assert (again.code, again.json["succeeded"], again.json["credits_spent"]) == (0, 3, None)
    assert (len(midapi_sandbox.ledger.requests), results()) == before


def test_what_is_missing_is_made_good(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """A picture that was deleted comes back, more rows are bought, another file is welcome."""
    midapi("batch", rows(2), "--output", "out")
    lost = next(Path("out/pictures").iterdir())
    lost.unlink()
    Path("out/gallery.html").unlink()
    assert midapi("batch", rows(3), "--output", "out").code == 0
    assert lost.exists()
    assert "prompt 2" in Path("out/gallery.html").read_text()
    Path("other.jsonl").write_text('{"prompt": "a whale", "key": "w", "metadata": {"a": "b"}}\n')
    assert midapi("batch", "other.jsonl", "--output", "out").code == 0
    whale = results()[-1]
    assert (whale["key"], whale["metadata"], whale["line"]) == ("w", {"a": "b"}, 1)
    assert set(bought(midapi_sandbox).values()) == {1}
    assert len(results()) == 4
    found = midapi("batch", "--output", "out", "--status", "--json").json
    assert [found[name] for name in ("input", "rows", "succeeded", "not_submitted")] == [
        *("other.jsonl", 1, 1, 0)
    ]


def test_weeks_later_it_has_still_succeeded(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """MidAPI keeps results for 15 days, and the journal no longer; the folder has them."""
    assert midapi("batch", rows(2), "--output", "out").code == 0

    async def forget() -> None:
        async with aclosing(SQLiteJournal("out/journal")) as journal:
            assert await journal.prune(time.time() + 1) == 2

    asyncio.run(forget())
    before = Path("out/results.jsonl").read_bytes()
    ran = midapi("batch", rows(3), "--output", "out", "--json")
    assert (ran.code, ran.json["succeeded"], ran.json["failed"]) == (0, 3, 0)
    assert Path("out/results.jsonl").read_bytes().startswith(before)
    assert len(results()) == 3
    assert errors() == []
    assert midapi("batch", "--output", "out", "--status", "--json").json["succeeded"] == 3
    Path("out", results()[1]["files"][2]).unlink()
    ran = midapi("batch", "rows.txt", "--output", "out", "--json")
    assert (ran.code, ran.json["succeeded"], ran.json["failed"]) == (1, 2, 1)
    assert set(bought(midapi_sandbox).values()) == {1}


def test_the_json_is_one_object(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """With everything that the lines for people say."""
    ran = midapi("batch", rows(2), "--output", "out", "--json")
    assert ran.code == 0
    assert ran.json == {
        "rows": 2,
        "jobs": 2,
        "succeeded": 2,
        "failed": 0,
        "unknown": 0,
        "running": 0,
        "not_submitted": 0,
        "credits_spent": 16.0,
        "stopped": None,
        "output": "out",
        "pictures": "out/pictures",
        "results": "out/results.jsonl",
        "errors": "out/errors.jsonl",
        "gallery": "out/gallery.html",
    }


# ─── the rows ────────────────────────────────────────────────────────────────────────────────────

CSV = """prompt,aspect_ratio,key
a fox,16:9,f
a whale,9:9,w
a hare,1:1,f
"""


@pytest.mark.parametrize("options", [["--dry-run"], ["--output", "out"]], ids=lambda each: each[0])
def test_every_bad_row_is_listed_and_nothing_is_bought(
    midapi: Midapi, midapi_sandbox: SandboxThread, options: list[str]
) -> None:
    """With its line number, on stderr or as JSON; no folder is made."""
    Path("rows.csv").write_text(CSV)
    ran = midapi("batch", "rows.csv", *options)
    assert ran.code == 2
    assert ran.error == "2 of 3 rows are not valid. Nothing was bought"
    first, second, _ = ran.err.splitlines()
    assert first.startswith("rows.csv:3: aspect_ratio: must be one of ")
    assert second.startswith("rows.csv:4: key: lines 2 and 4 have the same key 'f'")
    found = midapi("batch", "rows.csv", *options, "--json").json["error"]
    assert (found["type"], found["valid"]) == ("InvalidRows", 1)
    assert [each["line"] for each in found["problems"]] == [3, 4]
    assert not Path("out").exists()
    assert midapi_sandbox.ledger.requests == ()


def test_a_key_that_could_be_another_try_is_refused_first(midapi: Midapi) -> None:
    """With --retry-failed, a row "a" is bought again as "a/2"; also where --expand makes these."""
    Path("rows.csv").write_text("prompt,key\na fox,a\na hare,b\na whale,a/2\n")
    ran = midapi("batch", "rows.csv", "--dry-run")
    assert ran.code == 2
    assert ran.err.startswith(
        "rows.csv:4: key: lines 2 and 4 have conflicting keys, one of them 'a/2': "
    )
    assert "with --retry-failed, row 'a' is bought again as 'a/2'" in ran.err
    Path("rows.csv").write_text('prompt,key\n"a {red, blue} fox",a\na hare,a\n')
    assert midapi("batch", "rows.csv", "--dry-run", "--expand").code == 2


def test_a_dry_run_needs_no_key(midapi: Midapi) -> None:
    """Nor an output folder: it counts the rows, and the jobs that --expand makes of them."""
    Path("rows.txt").write_text("a {red, blue} fox\na whale --repeat 3\na hare\n")
    plain = midapi("batch", "rows.txt", "--dry-run")
    assert plain.code == 0
    warning, last = plain.err.splitlines()
    assert warning.startswith("midapi: WARNING: {…, …} or --repeat in 2 prompts of 3 rows.")
    assert last == "Every row is valid: 3 rows. Nothing was sent."
    ran = midapi("batch", "rows.txt", "--dry-run", "--expand", "--json")
    assert (ran.code, ran.json) == (0, {"rows": 3, "jobs": 6})
    assert ran.err == "Every row is valid: 3 rows (6 jobs). Nothing was sent.\n"
    one = midapi("batch", "rows.txt", "--dry-run", "--expand", "--limit", "1", "--json")
    assert one.json == {"rows": 1, "jobs": 2}


def test_permutations_are_bought_as_rows_of_their_own(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """Their number is shown first. Unexpanded, one warning says how many rows have some."""
    Path("rows.txt").write_text("a {red, blue} fox\na {red, blue} hare\na whale\n")
    ran = midapi("batch", "rows.txt", "--output", "out", "--expand")
    assert ran.code == 0
    assert ran.err.startswith("3 rows (5 jobs): each job costs credits.\n3 rows (5")
    assert len(bought(midapi_sandbox)) == 5
    assert Counter(line["line"] for line in results()) == {1: 2, 2: 2, 3: 1}
    ran = midapi("batch", "rows.txt", "--output", "other")
    assert ran.code == 0
    assert ran.err.count("WARNING") == 1
    assert "2 prompts of 3 rows" in ran.err


def test_rows_from_stdin_with_a_template(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The columns fill the prompt; --limit takes the first rows only."""
    raw = b"animal,place\nfox,snow\nwhale,sea\nhare,field\n"
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(raw)))
    ran = midapi(
        *("batch", "-", "--output", "out", "--limit", "2"),
        *("--template", "a {{animal}} in {{place}}", "--format", "csv"),
    )
    assert ran.code == 0, ran.err
    assert set(bought(midapi_sandbox)) == {"a fox in snow", "a whale in sea"}
    status = midapi("batch", "--output", "out", "--status")
    assert status.lines[0] == "out: 2 rows of stdin, not running now"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"prompt,speed\na fox,fast\na fox,never\n", "stdin:3: speed: "),
        (b"", "file: stdin has no rows"),
    ],
)
def test_messages_call_stdin_by_its_name(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch, raw: bytes, text: str
) -> None:
    """Not "-", which is only how it is spelled in a command."""
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(raw)))
    ran = midapi("batch", "-", "--output", "out", "--format", "csv")
    assert ran.code == 2
    assert text in ran.err


def test_the_status_of_one_row(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """In the singular."""
    Path("rows.txt").write_text("a fox\n")
    assert midapi("batch", "rows.txt", "--output", "out").code == 0
    status = midapi("batch", "--output", "out", "--status")
    assert status.lines[0] == "out: 1 row of rows.txt, not running now"


def test_paths_in_a_file_are_relative_to_it(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """They are uploaded; a line names the path."""
    picture = next(iter(midapi_results(midapi)))
    Path("data").mkdir()
    shutil.copy(picture, "data/fox.jpeg")
    Path("data/rows.csv").write_text(
        "kind,prompt,file_urls\nimage,a fox,fox.jpeg\nimage,a,none.png\n"
    )
    ran = midapi("batch", "data/rows.csv", "--dry-run")
    assert ran.code == 2
    assert "data/rows.csv:3: file_urls: " in ran.err
    ran = midapi("batch", "data/rows.csv", "--output", "out2", "--limit", "1")
    assert ran.code == 0, ran.err
    assert only(results("out2"))["request"]["fileUrls"] == ["data/fox.jpeg"]
    sent = dict(midapi_sandbox.ledger.accepted[-1].body)
    assert str(sent["fileUrls"]).startswith(f"['{midapi_sandbox.url}")


def midapi_results(midapi: Midapi) -> list[Path]:
    """The pictures of a batch with one row."""
    midapi("batch", rows(1, "one.txt"), "--output", "out")
    return sorted(Path("out/pictures").iterdir())


@pytest.mark.parametrize(("option", "files"), [("--upscale", 1), ("--vary", 4)])
def test_picked_pictures_are_bought_larger_or_varied(
    midapi: Midapi, midapi_sandbox: SandboxThread, option: str, files: int
) -> None:
    """Into the same folder; metadata.jsonl has the prompt of the picture."""
    parent = results()[0] if midapi_results(midapi) else {}
    pick = {"task_id": parent["task_id"], "index": 2, "prompt": "x", "key": "k"}
    Path("picks.jsonl").write_text(json.dumps({**pick, "file": parent["files"][2]}) + "\n")
    assert "give --upscale or --vary" in midapi("batch", "picks.jsonl", "--dry-run").err
    ran = midapi("batch", "picks.jsonl", option, "--output", "out")
    assert ran.code == 0, ran.err
    sent = midapi_sandbox.ledger.accepted[-1].body
    assert (sent["taskId"], sent["imageIndex"]) == (parent["task_id"], 2)
    assert len(results()[-1]["files"]) == files
    last = json.loads(Path("out/metadata.jsonl").read_text().splitlines()[-1])
    assert last["text"] == "prompt 0"


# ─── what goes wrong ─────────────────────────────────────────────────────────────────────────────


def test_failed_rows_are_bought_again_only_if_asked_for(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """The summary says how; a row that then succeeds is no error any more."""
    midapi_sandbox.faults.on("task", nth=[2, 4], do=fail_task("the fox ran away"))
    ran = midapi("batch", rows(3), "--output", "out")
    assert ran.code == 1
    assert "3 rows: 2 succeeded, 1 failed." in ran.err
    assert "Why rows failed: out/errors.jsonl" in ran.err
    assert ran.err.splitlines()[4:] == ["To buy rows again whose task failed: add --retry-failed."]
    error = only(errors())
    assert (error["state"], error["error"]["type"]) == ("failed", "TaskFailed")
    advice = "the fox ran away. Change the request, or add --retry-failed."
    assert advice in error["error"]["message"]
    assert midapi("batch", "rows.txt", "--output", "out", "--json").json["failed"] == 1
    assert len(errors()) == 1
    assert len(midapi_sandbox.ledger.accepted) == 3
    ran = midapi("batch", "rows.txt", "--output", "out", "--retry-failed")
    assert ran.err.endswith("The same command buys rows again whose task failed.\n")
    ran = midapi("batch", "rows.txt", "--output", "out", "--retry-failed")
    assert ran.code == 0, ran.err
    assert len(midapi_sandbox.ledger.accepted) == 5
    assert (len(results()), errors()) == (3, [])


def test_an_unknown_row_is_never_bought_again(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """What is said leads to the journal of this folder, where it can be decided."""
    midapi_sandbox.faults.on("submit", nth=2, do=lose_answer())
    ran = midapi("batch", rows(3), "--output", "out", "--json")
    assert (ran.code, ran.json["unknown"]) == (1, 1)
    assert "  midapi journal list unknown --folder out/journal" in ran.err
    error = only(errors())
    assert error["state"] == "unknown"
    where = f"midapi journal adopt {error['intent_id']} TASK_ID --folder out/journal"
    assert where in error["error"]["message"]
    again = midapi("batch", "rows.txt", "--output", "out")
    assert again.code == 1
    assert len(midapi_sandbox.ledger.accepted) == 3
    lost = midapi_sandbox.ledger.accepted[1].task_id
    midapi("journal", "adopt", error["intent_id"], lost, "--folder", "out/journal")
    assert midapi("batch", "rows.txt", "--output", "out").code == 0
    assert (len(results()), errors()) == (3, [])


@pytest.mark.parametrize("options", [[], ["--retry-failed"]], ids=["plain", "retry"])
def test_a_dismissed_row_needs_another_key(
    midapi: Midapi, midapi_sandbox: SandboxThread, options: list[str]
) -> None:
    """No option buys it; the summary names no other way. With another key it is bought."""
    Path("rows.csv").write_text("prompt,key\na fox,f\na hare,h\n")
    command = ("batch", "rows.csv", "--output", "out", *options)
    midapi_sandbox.faults.on("submit", nth=1, do=lose_answer())
    assert midapi(*command, "--running", "1").code == 1
    intent = only(errors())["intent_id"]
    midapi("journal", "dismiss", intent, "--folder", "out/journal")
    ran = midapi(*command)
    assert ran.code == 1
    assert ran.err.splitlines()[4:] == [
        "To buy a row that was dismissed, or whose key is used up: give it another key."
    ]
    Path("rows.csv").write_text("prompt,key\na fox,f again\na hare,h\n")
    assert midapi(*command).code == 0


@pytest.mark.parametrize("options", [[], ["--retry-failed"]], ids=["plain", "retry"])
def test_a_task_that_midapi_does_not_know_is_looked_at_later(
    midapi: Midapi, midapi_sandbox: SandboxThread, options: list[str]
) -> None:
    """It was bought, so no run buys it again; a later run downloads it."""
    midapi_sandbox.faults.on("look", do=answer_code(422, "recordInfo is null"))
    ran = midapi("batch", rows(1), "--output", "out", *options)
    assert only(errors())["error"]["type"] == "TaskNotFound"
    assert ran.err.splitlines()[4:] == [
        "A task that was bought is not known to MidAPI: run the same command later."
    ]
    midapi_sandbox.faults.clear()
    assert midapi("batch", "rows.txt", "--output", "out", *options).code == 0
    assert len(midapi_sandbox.ledger.accepted) == 1


def test_each_advice_is_for_a_row_that_it_helps(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """A row that was refused and one whose task failed: two lines, also in the next run."""
    midapi_sandbox.faults.on("submit", nth=[1, 4], do=answer_code(400, "no"))
    midapi_sandbox.faults.on("task", nth=1, do=fail_task("the fox ran away"))
    rows(3)
    for _ in range(2):
        ran = midapi("batch", "rows.txt", "--output", "out", "--running", "1")
        assert ran.err.splitlines()[4:] == [
            "To retry rows that were not bought, or not downloaded: run the same command again.",
            "To buy rows again whose task failed: add --retry-failed.",
        ]


def test_it_can_stop_at_an_unknown_row(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """The error says what to type; the rest is not submitted."""
    midapi_sandbox.faults.on("submit", nth=1, do=lose_answer())
    ran = midapi(
        *("batch", rows(5), "--output", "out", "--json"),
        *("--on-unknown", "stop", "--running", "1"),
    )
    assert ran.code == 1
    error = ran.json["error"]
    assert (error["type"], error["unknown"], error["not_submitted"]) == ("SubmissionUnknown", 1, 4)
    assert f"{error['intent_id']} TASK_ID --folder out/journal" in error["message"]


@pytest.mark.parametrize("verbose", [False, True])
def test_rows_that_are_sent_again_have_no_lines_of_their_own(
    midapi: Midapi, midapi_sandbox: SandboxThread, *, verbose: bool
) -> None:
    """There may be many, and the display counts them; with --verbose each one has its lines."""
    midapi_sandbox.faults.on("submit", nth=1, do=answer_code(455))
    options = ["--verbose"] if verbose else []
    ran = midapi("batch", rows(2), "--output", "out", *options)
    assert ran.code == 0
    assert ("is sent again in" in ran.err) is verbose


@pytest.mark.parametrize("code", [401, 402, 433])
def test_what_concerns_all_rows_ends_it(
    midapi: Midapi, midapi_sandbox: SandboxThread, code: int
) -> None:
    """A refused key, no credits, a spending cap: exit code 1, and how far it got."""
    midapi_sandbox.faults.on("submit", nth=2, do=answer_code(code))
    ran = midapi("batch", rows(3), "--output", "out", "--running", "1", "--json")
    error = ran.json["error"]
    assert (ran.code, error["code"]) == (1, code)
    assert (error["succeeded"], error["not_submitted"]) == (1, 2)
    assert errors() == []
    assert midapi("batch", "rows.txt", "--output", "out").code == 0
    assert set(bought(midapi_sandbox).values()) == {1}


@pytest.mark.midapi_sandbox(credits=20)
def test_without_credits_it_ends_and_goes_on_later(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """Rows that were bought are recorded; the last line says why it ended."""
    ran = midapi("batch", rows(4), "--output", "out", "--running", "1", "--json")
    assert ran.code == 1
    error = ran.json["error"]
    assert (error["type"], error["code"]) == ("InsufficientCreditsError", 402)
    assert (error["succeeded"], error["not_submitted"]) == (2, 2)
    assert error["stopped"]
    assert "4 rows: 2 succeeded, 2 not submitted. This run spent 16 credits." in ran.err
    assert "Run the same command again to continue." in ran.err
    assert len(results()) == 2


def test_max_credits_limits_the_run(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """It is no error, but not all rows have succeeded."""
    ran = midapi("batch", rows(4), "--output", "out", "--max-credits", "16", "--json")
    assert (ran.code, ran.json["succeeded"], ran.json["not_submitted"]) == (1, 2, 2)
    assert "midapi: WARNING: The batch submits nothing more: --max-credits 16: " in ran.err
    assert midapi("batch", "rows.txt", "--output", "out", "--max-credits", "100").code == 0


def test_failures_in_a_row_stop_it(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """What they have in common is said once more at the end."""
    midapi_sandbox.faults.on("submit", do=answer_code(400))
    ran = midapi(
        *("batch", rows(9), "--output", "out", "--json"),
        *("--stop-after-failures", "2", "--running", "1"),
    )
    assert (ran.code, ran.json["error"]["failed"]) == (1, 2)
    assert {line["state"] for line in errors()} == {"refused"}
    assert ran.json["error"]["not_submitted"] == 7


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["batch"], "FILE is missing: midapi batch FILE --output FOLDER"),
        (["batch", "rows.txt"], "--output is missing: midapi batch FILE --output FOLDER"),
        (["batch", "--status"], "--output is missing"),
        (["batch", "none.txt", "--output", "out"], "file: 'none.txt' cannot be read: No such file"),
        (["batch", "empty.txt", "--output", "out"], "file: 'empty.txt' has no rows"),
        (["batch", "rows.txt", "--output", "rows.txt"], "output: 'rows.txt' is not a folder"),
        (["batch", "rows.txt", "--output", "out", "--limit", "0"], "limit: must be 1 or more"),
        (["batch", "rows.txt", "--output", "out", "--running", "0"], "running: must be 1 or more"),
        (
            ["batch", "rows.txt", "--output", "out", "--max-credits", "nan"],
            "max-credits: must be above 0, got nan",
        ),
        (
            ["batch", "rows.txt", "--output", "out", "--stop-after-failures", "-1"],
            "stop-after-failures: must be 0 or more",
        ),
        (
            ["batch", "rows.txt", "--output", "out", "--upscale", "--vary"],
            "give either --upscale or --vary, not both",
        ),
        (
            ["batch", "rows.txt", "--output", "out", "--vary", "--expand"],
            "picks.jsonl has no prompts for --template or --expand",
        ),
        (["batch", "--status", "--output", "none"], "'none' is not the output folder of a batch"),
    ],
)
def test_wrong_options_are_usage_errors(
    midapi: Midapi, midapi_sandbox: SandboxThread, arguments: list[str], says: str
) -> None:
    """Exit code 2, before anything is made or sent."""
    rows(1)
    Path("empty.txt").write_text("\n")
    ran = midapi(*arguments)
    assert ran.code == 2
    assert says in ran.error
    assert not Path("out").exists()
    assert midapi_sandbox.ledger.requests == ()


def test_without_a_key_no_folder_is_made(midapi: Midapi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which variable to set."""
    monkeypatch.delenv("MIDAPI_API_KEY", raising=False)
    ran = midapi("batch", rows(1), "--output", "out")
    assert ran.code == 2
    assert "MIDAPI_API_KEY" in ran.error
    assert not Path("out").exists()


def test_a_gallery_that_cannot_be_written_ends_nothing(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning, which says how to get it later."""

    def fail(_: Path) -> None:
        raise ValueError("no page")

    monkeypatch.setattr(batch, "write_gallery", fail)
    monkeypatch.setattr(batch, "_UPDATE_INTERVAL", 0.01)
    ran = midapi("batch", rows(2), "--output", "out")
    assert ran.code == 0
    warning = (
        "midapi: WARNING: gallery.html was not written: no page. Try later: midapi gallery out"
    )
    assert ran.err.count("WARNING") == 1
    assert warning in ran.err


def test_a_full_disk_ends_it_and_loses_nothing(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for room first; then the same command adds the lines that are missing."""
    real = BatchFolder.add

    def full(folder: BatchFolder, lines: list[dict[str, Any]], counts: dict[str, int]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out/results.jsonl")

    with monkeypatch.context() as patch:
        patch.setattr(BatchFolder, "add", full)
        patch.setattr(batch, "_FULL_DISK_TIMEOUT", 0.1)
        patch.setattr(batch, "_RETRY_INTERVAL", 0.2)
        ran = midapi("batch", rows(3), "--output", "out", "--json")
    assert ran.code == 1
    assert ran.json["error"]["type"] == "OSError"
    problem = "midapi: out/results.jsonl cannot be written: No space left on device. Nothing that"
    assert ran.err.splitlines()[-1].startswith(problem)
    assert "Make room: trying again for up to 0.1 s." in ran.err
    assert results() == []
    assert BatchFolder.add is real
    assert midapi("batch", "rows.txt", "--output", "out").code == 0
    assert len(results()) == 3
    assert set(bought(midapi_sandbox).values()) == {1}


def test_a_folder_that_has_lost_its_journal_buys_nothing(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """A copy without it would pay for every row again."""
    assert midapi("batch", rows(2), "--output", "out").code == 0
    Path("out/journal").rename("journal")
    ran = midapi("batch", "rows.txt", "--output", "out")
    assert ran.code == 2
    assert "'out' has results, but no journal/journal.sqlite: all rows would be bought again" in (
        ran.error
    )
    assert len(midapi_sandbox.ledger.accepted) == 2
    Path("journal").rename("out/journal")
    assert midapi("batch", "rows.txt", "--output", "out").code == 0
    assert len(midapi_sandbox.ledger.accepted) == 2


def test_a_file_that_cannot_be_opened(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Nothing is sent, and the error names it."""
    Path("out/results.jsonl").mkdir(parents=True)
    ran = midapi("batch", rows(1), "--output", "out")
    assert ran.code == 1
    assert ran.error.startswith("out/results.jsonl cannot be written: Is a directory. ")
    assert midapi_sandbox.ledger.requests == ()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_waited_for(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """With one warning. A disk that is broken ends it at once."""
    real, failed = BatchFolder.add, list[int]()

    def twice(folder: BatchFolder, lines: list[dict[str, Any]], counts: dict[str, int]) -> None:
        if len(failed) < 2:
            failed.append(number)
            raise OSError(number, "is bad", "out/results.jsonl")
        real(folder, lines, counts)

    monkeypatch.setattr(BatchFolder, "add", twice)
    monkeypatch.setattr(batch, "_RETRY_INTERVAL", 0.01)
    ran = midapi("batch", rows(2), "--output", "out")
    assert ran.code == (number == errno.EIO)
    assert ran.err.count("WARNING") == (number != errno.EIO)
    assert len(results()) == (0 if number == errno.EIO else 2)


# ─── while it runs, and after Ctrl-C ─────────────────────────────────────────────────────────────


def test_the_status_of_a_batch_that_runs(midapi: Midapi) -> None:
    """Whoever runs it has noted how fast it is, and what it waits for."""
    folder = BatchFolder.open(Path("out"), base_url="https://x.invalid", rows=9, source="r.csv")
    end = datetime.now(UTC) + timedelta(seconds=90)
    folder.add([], {"succeeded": 4, "failed": 1, "unknown": 0})
    noted = {"rate": 4.0, "expected_end": f"{end}"}
    folder.note({**noted, "paused": "no network", "stopped": "no credits"})
    ran = midapi("batch", "--output", "out", "--status")
    found = midapi("batch", "--output", "out", "--status", "--json").json
    folder.close()
    assert ran.code == 0
    assert ran.lines[:6] == [
        f"out: 9 rows of r.csv, process {os.getpid()} is running it",
        "4 succeeded",
        "1 failed",
        "0 unknown",
        "0 running",
        "4 not submitted",
    ]
    assert ran.lines[6].startswith("4.0 a minute, about ")
    assert ran.lines[7:] == [
        "Pausing, then trying again: no network",
        "Submitting nothing more: no credits",
        "Gallery: out/gallery.html",
    ]
    assert (found["process"], found["rate"], found["paused"]) == (os.getpid(), 4.0, "no network")
    assert "Run the same command again to continue." not in ran.lines
    later = midapi("batch", "--output", "out", "--status", "--json").json
    assert (later["process"], later["rate"], later["stopped"]) == (None, None, "no credits")


@pytest.mark.midapi_sandbox(auto=False)
def test_the_status_of_a_batch_that_was_ended(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """Its tasks go on at MidAPI, but nothing is running here: the same command continues it."""
    with ctrl_c_when(lambda: len(midapi_sandbox.ledger.accepted) >= 2):
        assert midapi("batch", rows(3), "--output", "out", "--running", "2").code == 130
    ran = midapi("batch", "--output", "out", "--status")
    assert ran.lines == [
        "out: 3 rows of rows.txt, not running now",
        "0 succeeded",
        "0 failed",
        "0 unknown",
        "2 bought, not finished",
        "1 not submitted",
        "Run the same command again to continue.",
        "Gallery: out/gallery.html",
    ]


@pytest.mark.usefixtures("midapi_sandbox")
def test_a_status_without_the_journal_says_the_rest(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be opened on a full disk, nor on one that is read only."""
    assert midapi("batch", rows(2), "--output", "out").code == 0

    async def full(_: object) -> None:
        raise JournalError("no space left")

    monkeypatch.setattr(SQLiteJournal, "stats", full)
    ran = midapi("batch", "--output", "out", "--status")
    assert ran.code == 0
    assert "midapi: WARNING: it is not known what is running: no space left" in ran.err
    assert ran.lines[1:4] == ["2 succeeded", "0 failed", "0 unknown"]
    assert "running" not in "".join(ran.lines[1:])
    found = midapi("batch", "--output", "out", "--status", "--json").json
    assert (found["succeeded"], found["running"], found["not_submitted"]) == (2, None, None)


def test_a_status_that_cannot_be_read(midapi: Midapi) -> None:
    """It is an error, and no usage error."""
    BatchFolder.open(Path("out"), base_url="https://x.invalid", rows=9, source="r.csv").close()
    Path("out/results.jsonl").unlink()
    Path("out/results.jsonl").mkdir()
    ran = midapi("batch", "--output", "out", "--status")
    assert (ran.code, ran.error) == (1, "out/results.jsonl cannot be read: Is a directory")


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_what_happens_before_the_first_row(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_interrupted: bool,
) -> None:
    """Ctrl-C while the client is opened, or an error there: nothing was bought."""

    @asynccontextmanager
    async def opening(*_: object, **__: object) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        if not is_interrupted:
            raise JournalError("it is damaged")
        task.cancel()
        await asyncio.sleep(0)
        yield

    monkeypatch.setattr(batch, "receiving", opening)
    ran = midapi("batch", rows(1), "--output", "out")
    wanted = (130, "Interrupted. Nothing was bought.") if is_interrupted else (1, "it is damaged")
    assert (ran.code, ran.error) == wanted
    assert midapi_sandbox.ledger.requests == ()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_file_that_is_being_written_is_written_to_its_end(*, fails: bool) -> None:
    """Also after Ctrl-C, so that nothing else has it meanwhile."""
    begun, goes_on, is_over = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        goes_on.wait()
        is_over.set()
        if fails:
            raise OSError("no")

    task = asyncio.create_task(batch._uninterrupted(write))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_over.is_set()


@pytest.mark.midapi_sandbox(time_scale=240)
def test_ctrl_c_says_how_far_it_got_and_the_same_command_goes_on(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """POSTs that are under way get their answer, and nothing is bought twice."""
    midapi_sandbox.faults.on("submit", nth=4, do=delay(200))
    midapi_sandbox.faults.on("task", nth=3, do=never_end())
    with ctrl_c_when(lambda: len(midapi_sandbox.ledger.accepted) >= 4):
        ran = midapi("batch", rows(9), "--output", "out", "--running", "4", "--json")
    assert ran.code == 130
    assert "Waiting for MidAPI's answers to submissions that were sent" in ran.err
    error = ran.json["error"]
    assert error["type"] == "Interrupted"
    assert error["message"].startswith(f"Interrupted. {error['succeeded']} of 9 rows succeeded")
    assert "Run the same command again to continue" in error["message"]
    assert error["running"] + error["succeeded"] == len(midapi_sandbox.ledger.accepted)
    assert f"Paid for, but not downloaded yet: {error['running']}" in error["message"]
    assert error["not_submitted"] == 9 - len(midapi_sandbox.ledger.accepted)
    midapi_sandbox.finish(midapi_sandbox.ledger.accepted[2].task_id)
    assert midapi("batch", "rows.txt", "--output", "out").code == 0
    assert set(bought(midapi_sandbox).values()) == {1}
    assert len(results()) == len(bought(midapi_sandbox)) == 9


@pytest.mark.one_python  # SQLite, the kernel and a signal decide here
@pytest.mark.midapi_sandbox(time_scale=120)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_process_that_is_ended_goes_on_where_it_was(
    midapi: Midapi, midapi_sandbox: SandboxThread, number: signal.Signals
) -> None:
    """Meanwhile --status tells how far it is, and a second run is refused."""
    process = spawn("batch", rows(12), "--output", "out", "--running", "3", "--json")
    wait_until(lambda: len(results()) >= 3)
    found = midapi("batch", "--output", "out", "--status", "--json").json
    assert (found["process"], found["rows"], found["failed"]) == (process.pid, 12, 0)
    assert found["succeeded"] >= 3
    assert found["running"] >= 1
    second = midapi("batch", "rows.txt", "--output", "out")
    assert second.code == 2
    assert f"'out' is in use: process {process.pid} runs this batch" in second.error
    process.send_signal(number)
    ran = finish(process)
    assert ran.code == (-9 if number == signal.SIGKILL else 130)
    assert Path("out/batch.lock").exists()
    said = midapi("batch", "--output", "out", "--status")
    assert said.code == 0
    assert said.lines[0] == "out: 12 rows of rows.txt, not running now"
    last = midapi("batch", "rows.txt", "--output", "out", "--json")
    unknown = last.json["unknown"]  # a kill between a POST and its answer
    assert unknown <= (3 if number == signal.SIGKILL else 0)
    assert last.json["succeeded"] + unknown == 12
    keys = Counter(line["key"] for line in results())
    assert len(keys) == 12 - unknown
    assert set(keys.values()) == set(bought(midapi_sandbox).values()) == {1}
    named = Path("out/metadata.jsonl").read_text().splitlines()
    assert len(named) == len({json.loads(line)["file_name"] for line in named}) == 4 * len(keys)


@pytest.mark.one_python
@pytest.mark.midapi_sandbox(time_scale=60)
@pytest.mark.parametrize(
    ("numbers", "ignored"),
    [
        pytest.param([signal.SIGHUP], (), id="a terminal is closed"),
        pytest.param([signal.SIGHUP] * 3, (), id="and this is said three times"),
        pytest.param([signal.SIGTERM], [signal.SIGINT], id="started by a script with &"),
        pytest.param([signal.SIGHUP, signal.SIGTERM], [signal.SIGHUP], id="started with nohup"),
    ],
)
def test_other_signals_wait_for_answers_as_ctrl_c_does(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    numbers: list[signal.Signals],
    ignored: list[signal.Signals],
) -> None:
    """No row becomes unknown."""
    midapi_sandbox.faults.on("submit", do=delay(60))
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    process = spawn("batch", rows(3), "--output", "out", "--running", "2")
    for number, handler in before.items():
        signal.signal(number, handler)
    wait_until(lambda: len(midapi_sandbox.ledger.accepted) == 2)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    ran = finish(process)
    assert ran.code == 130
    assert "unknown" not in ran.err
    assert "Paid for, but not downloaded yet: 2. Run the same command again to continue" in ran.err
    assert len(midapi_sandbox.ledger.accepted) == 2


@pytest.mark.one_python
@pytest.mark.midapi_sandbox(time_scale=1, auto=False)
def test_a_second_sigterm_ends_at_once_where_ctrl_c_is_ignored(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """As a second Ctrl-C would."""
    midapi_sandbox.faults.on("submit", do=delay(60))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = spawn("batch", rows(1), "--output", "out")
    signal.signal(signal.SIGINT, before)
    wait_until(lambda: midapi_sandbox.ledger.accepted)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    ran = finish(process)
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "midapi: Interrupted."


@pytest.mark.midapi_sandbox(time_scale=1, auto=False)
def test_a_second_ctrl_c_ends_at_once(
    midapi: Midapi, midapi_sandbox: SandboxThread, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not wait for the answer to a POST; the next run knows that it was sent."""
    midapi_sandbox.faults.on("submit", do=delay(60))
    with ctrl_c_when(lambda: midapi_sandbox.ledger.accepted, times=2):
        ran = midapi("batch", rows(1), "--output", "out")
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "midapi: Interrupted."
    assert "unhandled" not in caplog.text
    found = midapi("journal", "list", "--folder", "out/journal", "--json").json
    assert only(found["intents"])["state"] in {"sending", "unknown"}


@pytest.mark.midapi_sandbox(time_scale=60)
def test_plain_lines_say_how_far_it_is(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stderr is no terminal: soon the first one, then fewer."""
    monkeypatch.setattr(_batch_display, "_FIRST_LINE", 0.3)
    ran = midapi("batch", rows(4), "--output", "out")
    assert ran.code == 0
    lines = [line for line in ran.err.splitlines() if line.startswith(("0 of 4", "1 of 4"))]
    assert lines, ran.err
    assert "running" in lines[0]


@pytest.mark.midapi_sandbox(time_scale=240)
def test_a_receiver_takes_the_callbacks(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for midapi generate, with the folder's own journal: a lost answer is settled by it."""
    port = free_port()
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", f"http://127.0.0.1:{port}/hooks")
    monkeypatch.setenv("MIDAPI_CALLBACK_PORT", str(port))
    monkeypatch.setenv("MIDAPI_JOURNAL", "elsewhere")
    midapi_sandbox.faults.on("submit", nth=2, do=lose_answer())
    ran = midapi("batch", rows(3), "--output", "out", "--json")
    assert (ran.code, ran.json["succeeded"]) == (0, 3), ran.err
    assert midapi_sandbox.ledger.callbacks
    assert not Path("elsewhere").exists()
