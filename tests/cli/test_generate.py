import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from midapi_async import _session
from midapi_async.sandbox import (
    RequestAction,
    SandboxThread,
    answer_code,
    cut,
    delay,
    gone,
    hang,
    lose_answer,
    other_content,
)
from tests.cli.conftest import Midapi, ctrl_c_when, only

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240)]

URL = "https://example.org/fox.png"
ESC, RIGHT_TO_LEFT = "\x1b[31m", "\u202e"


def bought(sandbox: SandboxThread) -> dict[str, Any]:
    """The body of the one submit that was accepted."""
    return dict(only(sandbox.ledger.accepted).body)


def test_a_prompt_makes_four_files_and_prints_their_paths(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """Stdout holds the paths and nothing else; messages go to stderr."""
    ran = midapi("generate", "a red fox", "--aspect-ratio", "16:9", "--folder", "pictures")
    assert ran.code == 0
    assert sorted(str(path) for path in Path("pictures").iterdir()) == sorted(ran.lines)
    assert len(ran.lines) == 4
    assert all(Path(line).read_bytes()[:3] == b"\xff\xd8\xff" for line in ran.lines)
    assert "was submitted; such a task takes about 60 s." in ran.err
    assert "succeeded after " in ran.err
    assert bought(midapi_sandbox)["aspectRatio"] == "16:9"


def test_the_json_is_one_object_with_everything_for_a_script(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """Ids, status, URLs, files, duration, the user's own notes."""
    ran = midapi(
        *("generate", "a fox", "--json", "--key", "order-17"),
        *("--metadata", "channel=42", "--metadata", "note=a=b"),
    )
    assert ran.code == 0
    found = ran.json
    assert found["task_id"] == only(midapi_sandbox.ledger.accepted).task_id
    assert found["status"] == "succeeded"
    assert len(found["urls"]) == 4
    assert all(Path(file).is_file() for file in found["files"])
    assert found["duration"] > 0
    assert found["key"] == "order-17"
    assert found["metadata"] == {"channel": "42", "note": "a=b"}
    assert len(found["intent_id"]) == 32
    assert "keys are kept in memory only" in ran.err


@pytest.mark.fault("I1")
def test_a_key_is_paid_once_while_the_journal_exists(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With MIDAPI_JOURNAL the second call finds the task of the first."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    first, second = (
        midapi("generate", "a fox", "--key", "order-17", "--json", "--no-download")
        for _ in range(2)
    )
    assert first.json["task_id"] == second.json["task_id"]
    assert "kept in memory" not in second.err
    assert f"Task {first.json['task_id']} was submitted; such a task takes" in first.err
    assert "was submitted before with this key; nothing is bought." in second.err
    assert len(midapi_sandbox.ledger.accepted) == 1
    other = midapi("generate", "a whale", "--key", "order-17", "--json")
    assert other.code == 2
    assert (other.json["error"]["type"], other.json["error"]["key"]) == ("KeyConflict", "order-17")


def test_the_progress_of_a_key_that_was_used_before_is_that_of_its_task(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event says that it was accepted; no line says that a submission is prepared."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    order = ("generate", "a fox [[sandbox: seconds=600]]", "--key", "order-17", "--no-download")
    first, second = midapi(*order, "--no-wait"), midapi(*order)
    assert second.code == 0
    assert f"Task {first.lines[0]} is generating: " in second.err
    assert "is prepared" not in second.err


def test_no_download_prints_the_urls(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """Four URLs, no file."""
    ran = midapi("generate", "a fox", "--no-download")
    assert len(ran.lines) == 4
    assert all(line.startswith(midapi_sandbox.url) for line in ran.lines)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.midapi_sandbox(auto=False)
def test_no_wait_prints_the_task_id(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Stderr says how to come back."""
    ran = midapi("generate", "a fox", "--no-wait")
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert ran.lines == [task_id]
    assert f"midapi task {task_id} --wait --download" in ran.err
    assert "--folder" not in ran.err
    again = midapi("generate", "a fox", "--no-wait", "--folder", "my foxes")
    assert "--wait --download --folder 'my foxes'" in again.err


@pytest.mark.midapi_sandbox(auto=False)
def test_the_json_of_no_wait_says_generating(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """It has the same names as for a finished task."""
    found = midapi("generate", "a fox", "--no-wait", "--json").json
    assert (
        found["status"],
        found["urls"],
        found["files"],
        found["duration"],
    ) == ("generating", [], [], None)


def test_options_that_are_not_given_are_not_sent(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """The body of a bare prompt holds only what the SDK always sends."""
    midapi("generate", "a fox", "--no-wait")
    assert set(bought(midapi_sandbox)) == {"taskType", "prompt", "speed", "enableTranslation"}


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (
            ["a fox", "--speed", "turbo", "--version", "niji6", "--variety", "5"],
            {"taskType": "mj_txt2img", "speed": "turbo", "version": "niji6", "variety": 5},
        ),
        (
            ["a fox", "--stylization", "100", "--weirdness", "7", "--water-mark", "me"],
            {"stylization": 100, "weirdness": 7, "waterMark": "me"},
        ),
        (["a fox", "--enable-translation"], {"enableTranslation": True}),
        (
            ["a fox", "--extra", 'speed="turbo"', "--extra", 'new={"a": [1, null]}'],
            {"speed": "turbo", "new": {"a": [1, None]}},
        ),
        (["--", "style"], {"taskType": "mj_txt2img", "prompt": "style"}),
        (
            ["image", "a fox", URL, URL + "?2", "--aspect-ratio", "2:1"],
            {"taskType": "mj_img2img", "fileUrls": [URL, URL + "?2"], "aspectRatio": "2:1"},
        ),
        (["style", "a fox", URL], {"taskType": "mj_style_reference", "fileUrls": [URL]}),
        (
            ["omni", "a fox", URL, "--ow", "400"],
            {"taskType": "mj_omni_reference", "fileUrls": [URL], "ow": 400},
        ),
        (
            ["video", "it runs", URL, "--motion", "low", "--video-batch-size", "2"],
            {"taskType": "mj_video", "fileUrls": [URL], "motion": "low", "videoBatchSize": 2},
        ),
        (["video", "it runs", URL, "--hd"], {"taskType": "mj_video_hd", "motion": "high"}),
    ],
)
def test_each_kind_of_request_is_sent(
    midapi: Midapi, midapi_sandbox: SandboxThread, arguments: list[str], body: dict[str, object]
) -> None:
    """The options are the fields of MidAPI's body."""
    wait = ["--no-wait"]  # behind the name of a command, before a --
    ran = midapi("generate", *(wait + arguments if "--" in arguments else arguments + wait))
    assert ran.code == 0, ran.err
    assert body.items() <= bought(midapi_sandbox).items()
    dry = ["--dry-run", "--json"]
    ran = midapi("generate", *(dry + arguments if "--" in arguments else arguments + dry))
    assert ran.json == bought(midapi_sandbox)


@pytest.mark.parametrize(
    ("parent", "arguments", "body"),
    [
        ("mj_txt2img", ["upscale", 3, "--water-mark", "me"], {"imageIndex": 3, "waterMark": "me"}),
        ("mj_txt2img", ["vary", 4], {"imageIndex": 4}),
        ("mj_video", ["extend", 0], {"index": 0, "taskType": "mj_video_extend_auto"}),
        (
            "mj_video",
            ["extend", 0, "it jumps"],
            {"prompt": "it jumps", "taskType": "mj_video_extend_manual"},
        ),
    ],
)
def test_requests_about_a_task_name_it(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    parent: str,
    arguments: list[object],
    body: dict[str, object],
) -> None:
    """Upscale, vary and extend send the task id and the index."""
    kind = ["video", "it runs", URL] if parent == "mj_video" else ["a fox"]
    task_id = only(midapi("generate", *kind, "--no-wait").lines)
    midapi_sandbox.finish(task_id)
    command, *rest = arguments
    ran = midapi("generate", command, task_id, *rest, "--no-wait")
    assert ran.code == 0, ran.err
    sent = midapi_sandbox.ledger.accepted[-1].body
    assert {"taskId": task_id, **body}.items() <= sent.items()
    assert midapi("generate", command, task_id, *rest, "--dry-run", "--json").json == sent


def test_a_request_is_read_from_a_file(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path
) -> None:
    """A body copied from MidAPI's documentation works; its callback URL is dropped."""
    body = {"taskType": "mj_txt2img", "prompt": "a fox", "version": 7, "callBackUrl": URL}
    (elsewhere / "body.json").write_text(json.dumps(body))
    assert midapi("generate", "--from-json", "body.json", "--no-wait").code == 0
    assert bought(midapi_sandbox)["version"] == "7"
    assert "callBackUrl" not in bought(midapi_sandbox)


def test_a_request_is_read_from_stdin(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With - for a file name."""
    raw = io.BytesIO('{"prompt": "ein Füchslein"}'.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    assert midapi("generate", "--from-json", "-", "--no-wait").code == 0
    assert bought(midapi_sandbox)["prompt"] == "ein Füchslein"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "from-json: is not valid JSON"),
        (b"\xff\xfe\x00", "from-json: is not valid JSON"),
        (b"[1]", "from-json: must be a JSON object"),
        (b"[" * 200_000, "from-json: is nested too deeply"),
        (b'{"taskId": "abc", "imageIndex": 0}', "mj_upscale and mj_vary look alike"),
        (b'{"promt": "a fox"}', "did you mean prompt?"),
    ],
)
def test_a_file_without_a_request_is_a_usage_error(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    elsewhere: Path,
    content: bytes,
    says: str,
) -> None:
    """Nothing is sent, and the error says what is wrong."""
    (elsewhere / "body.json").write_bytes(content)
    ran = midapi("generate", "--from-json", "body.json")
    assert ran.code == 2
    assert says in ran.error
    assert midapi_sandbox.ledger.requests == ()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "The prompt is missing"),
        (["a", "red", "fox"], "arguments: red fox. Put a prompt of several words in quotes"),
        (["as oil", "my fox.png"], "'my fox.png'. Put a prompt of several words in quotes; pict"),
        (["a fox", "--ar", "16:9"], "Midjourney's own flags belong in the prompt"),
        (["image", "a fox", "fox.png", "--v", "7"], "Midjourney's own flags belong in the prompt"),
        (["a fox", "--sped", "fast"], "Did you mean --speed?"),
        (["a fox", "--speed", "Fast"], "relaxed"),
        (["a fox", "--version", "newest"], "version: must be like '7'"),
        (["a fox", "--variety", "101"], "variety: must be a whole number from 0 to 100"),
        (["a fox", "--metadata", "channel"], "metadata: must be NAME=VALUE"),
        (["a fox", "--metadata", "=42"], "metadata: must be NAME=VALUE"),
        (["a fox", "--extra", "seed"], "extra: must be NAME=JSON"),
        (["a fox", "--extra", "=5"], "extra: must be NAME=JSON"),
        (["a fox", "--extra", "aspectRatio=21:9"], "extra: must be NAME=JSON"),
        (["a fox", "--extra", "seed=NaN"], "extra: contains nan, which is not JSON"),
        (["a fox", "--extra", "aspect_ratio=1"], "it spells it aspectRatio"),
        (["a fox", "--from-json", "-"], "no prompt or other field may be given with it"),
        (["--from-json", "-", "--speed", "fast"], "no prompt or other field may be given with it"),
        (["--from-json", "nowhere.json"], "'nowhere.json' cannot be read"),
        (["image", "a fox"], "PICTURE"),
        (["image", "a fox", "fox.png"], "picture: fox.png does not exist; give a file, or a URL"),
        (["image", "a fox", "-"], "picture: - does not exist; give a file"),
        (["style"], "PROMPT"),
        (["upscale", "../x", "0"], "task_id: must be MidAPI's task id"),
        (["upscale", "abc", "4"], "image_index: must be a whole number from 0 to 3"),
        (["a fox", "--timeout", "nan"], "timeout: must be a number of seconds"),
        (["a fox", "--key", ""], "key: must be a str of 1 to 200"),
    ],
)
def test_wrong_arguments_are_a_usage_error_and_nothing_is_sent(
    midapi: Midapi, midapi_sandbox: SandboxThread, arguments: list[str], says: str
) -> None:
    """Exit code 2, one line, no request."""
    ran = midapi("generate", *arguments)
    assert ran.code == 2
    assert says in ran.error
    assert ran.out == ""
    assert midapi_sandbox.ledger.requests == ()


def test_a_dry_run_checks_and_shows_and_sends_nothing(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: Path,
) -> None:
    """Without a key; what is printed is JSON whatever the prompt contains."""
    monkeypatch.delenv("MIDAPI_API_KEY")
    prompt = f"ein Füchslein {ESC} {RIGHT_TO_LEFT} \u2028 \x9b"
    ran = midapi("generate", prompt, "--dry-run", "--extra", "seed=5", "--folder", "pictures")
    assert (ran.code, ran.err) == (0, "Nothing was sent.\n")
    found = json.loads(ran.out)
    assert (found["prompt"], found["seed"]) == (prompt, 5)
    assert "ein Füchslein" in ran.out
    assert all(line.isprintable() for line in ran.out.split("\n"))
    monkeypatch.setenv("MIDAPI_PUBLIC_URL", "https://fox.example.org")
    assert midapi("generate", "a fox", "--dry-run").err == "Nothing was sent.\n"
    for name, value in (("MIDAPI_CALLBACK_PORT", "8080"), ("MIDAPI_JOURNAL", "journal")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert "A callBackUrl would be added." in midapi("generate", "a fox", "--dry-run").err
    for wrong in (["--variety", "101"], ["--key", ""], ["--metadata", f"a={'x' * 5000}"]):
        ran = midapi("generate", "a fox", "--dry-run", *wrong)
        assert (ran.code, ran.out) == (2, "")
    assert midapi_sandbox.ledger.requests == ()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["-"], ["image", "-", URL], ["video", "-", URL], ["extend", "abc", "0", "-"]]
)
def test_a_prompt_is_read_from_stdin(
    midapi: Midapi, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """In UTF-8, without the line break at its end; any kind of request that has a prompt."""
    raw = io.BytesIO("\ufeffein Füchslein,\nzwei\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="ascii"))
    ran = midapi("generate", *arguments, "--dry-run", "--json")
    assert ran.json["prompt"] == "ein Füchslein,\nzwei"


def test_a_prompt_of_stdin_is_sent(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is given on the command line."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a fox\n")))
    assert midapi("generate", "-", "--no-wait").code == 0
    assert bought(midapi_sandbox)["prompt"] == "a fox"


def test_a_stdin_without_a_prompt_is_a_usage_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent."""
    for stdin, problem in (
        (None, "stdin cannot be read"),
        (io.TextIOWrapper(io.BytesIO(b"\xff")), "it is not text"),
        (io.TextIOWrapper(io.BytesIO(b" \n")), "prompt: must"),
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        ran = midapi("generate", "-")
        assert ran.code == 2
        assert problem in ran.error
    assert not midapi_sandbox.ledger.requests


def test_usage_errors_are_printed_as_json(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """An InvalidRequestError names the problem of each field."""
    ran = midapi("generate", "a fox", "--variety", "101", "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "InvalidRequestError"
    assert set(ran.json["error"]["problems"]) == {"variety"}


def test_a_refused_submission_is_an_error(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Exit code 1, one line, and MidAPI's code in the JSON."""
    midapi_sandbox.credits = 0
    ran = midapi("generate", "a fox", "--json")
    assert ran.code == 1
    assert "Top up the account" in ran.error
    assert (
        ran.json["error"]["type"],
        ran.json["error"]["code"],
    ) == ("InsufficientCreditsError", 402)


def test_a_failed_task_is_an_error_with_its_details(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """Exit code 1; the JSON holds the task's id and its last snapshot."""
    ran = midapi("generate", "a fox [[sandbox: fail=nsfw content]]", "--json")
    assert ran.code == 1
    error = ran.json["error"]
    assert error["type"] == "PromptRejected"
    assert error["task_id"] == only(midapi_sandbox.ledger.accepted).task_id
    assert error["details"]["error_message"] == "nsfw content"


@pytest.mark.midapi_sandbox(auto=False)
def test_a_timeout_says_how_to_come_back(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """`midapi task` finds the task again; no look was due yet, so nothing more is known of it."""
    ran = midapi("generate", "a fox", "--timeout", "30")
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert ran.code == 1
    assert f"Wait again: midapi task {task_id} --wait --download" in ran.error
    assert f"Task {task_id} is generating: 20 s, usually about 60 s." in ran.err


@pytest.mark.midapi_sandbox(time_scale=1)
@pytest.mark.fault("S1")
def test_a_lost_answer_is_an_unknown_submission(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """It is not sent again, and the message says that it may have been paid."""
    midapi_sandbox.faults.on("submit", do=lose_answer())
    ran = midapi("generate", "a fox", "--json")
    assert ran.code == 1
    assert "It may have been paid, and was not sent again" in ran.err
    assert "WARNING" not in ran.err
    assert ran.json["error"]["type"] == "SubmissionUnknown"
    assert len(ran.json["error"]["intent_id"]) == 32
    assert len(midapi_sandbox.ledger.accepted) == 1


@pytest.mark.midapi_sandbox(time_scale=1)
@pytest.mark.fault("S1")
def test_an_unknown_submission_is_said_once(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the reason, and no warning beside it, except with --verbose."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    midapi_sandbox.faults.on("submit", do=lose_answer())
    lost = "the server closed the connection without an answer"
    ran = midapi("generate", "a fox", "--key", "fox")
    intent_id = only(midapi("journal", "list", "--json").json["intents"])["intent_id"]
    start = f"It is not known whether MidAPI accepted this: {lost}. It may have been paid, and was "
    assert ran.error.startswith(f"{start}not sent again (intent {intent_id}). Before")
    assert ran.err.count(lost) == 1
    again = midapi("generate", "a fox", "--key", "fox")
    assert "accepted this: it was sent earlier, and its answer was lost, or the" in again.error
    verbose = midapi("generate", "another fox", "--verbose")
    assert "midapi: WARNING: it cannot be known whether intent" in verbose.err
    [_, second] = midapi("journal", "list", "--json").json["intents"]
    ran = midapi("journal", "resubmit", second["intent_id"])
    assert ran.error.startswith(start)  # `error` demands one line


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (gone(410), "ResultExpired"),
        (gone(404), "DownloadError"),
        (other_content("text/html", b"<html>no picture</html>"), "UnexpectedContent"),
        (cut(10), "DownloadError"),
    ],
)
def test_a_failed_download_says_how_to_try_again(
    midapi: Midapi, midapi_sandbox: SandboxThread, fault: RequestAction, kind: str
) -> None:
    """The error names the paid task's id and URLs."""
    midapi_sandbox.faults.on("file", do=fault)
    ran = midapi("generate", "a fox", "--json", "--folder", "foxes")
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert ran.code == 1
    assert f"try again with: midapi task {task_id} --download --folder foxes" in ran.err
    error = ran.json["error"]
    assert (error["type"], error["task_id"], len(error["urls"])) == (kind, task_id, 4)


@pytest.mark.parametrize(
    ("folder", "says"),
    [("taken", "is not a folder"), ("taken/below", "cannot be used: Not a directory")],
)
def test_a_file_in_place_of_the_folder_is_a_usage_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, elsewhere: Path, folder: str, says: str
) -> None:
    """Before anything is bought."""
    (elsewhere / "taken").write_text("")
    ran = midapi("generate", "a fox", "--folder", folder)
    assert ran.code == 2
    assert f"folder: {folder!r} {says}" in ran.error
    assert midapi_sandbox.ledger.requests == ()


def test_a_folder_that_is_read_only_is_a_usage_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above; root may write anywhere, so the system's answer is faked."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    ran = midapi("generate", "a fox")
    assert ran.code == 2
    assert "folder: '.' is not writable" in ran.error
    assert midapi_sandbox.ledger.requests == ()


@pytest.mark.fault("D12")
def test_text_from_outside_is_escaped(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Markup is text; ESC, line breaks and right-to-left marks are escaped."""
    evil = f"[/] {ESC}[bold]\n{RIGHT_TO_LEFT}"
    midapi_sandbox.faults.on("submit", do=answer_code(422, evil), nth=1)
    for arguments in (["x"], ["x", f"{evil}"], [f"--{evil}"], ["x", "--speed", evil]):
        ran = midapi("generate", *arguments)
        assert ran.code != 0
        assert ran.error
        assert not any(mark in ran.out + ran.err for mark in (ESC, RIGHT_TO_LEFT))
    ran = midapi("generate", "x", "--folder", f"a{RIGHT_TO_LEFT}[/]b")
    assert ran.code == 0
    assert ran.lines[0].startswith("a\\u202e[/]b/")


@pytest.mark.midapi_sandbox(auto=False)
def test_ctrl_c_during_the_wait_says_how_to_come_back(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """Exit code 130 and the task's id, also as JSON."""
    with ctrl_c_when(lambda: midapi_sandbox.ledger.count("look")):
        ran = midapi("generate", "a fox", "--json")
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert ran.code == 130
    assert f"come back with: midapi task {task_id} --wait --download" in ran.err
    error = ran.json["error"]
    assert (error["type"], error["task_id"]) == ("Interrupted", task_id)


def test_ctrl_c_during_the_download_says_how_to_try_again(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """The task succeeded and is paid for."""
    midapi_sandbox.faults.on("file", do=hang())
    with ctrl_c_when(lambda: midapi_sandbox.ledger.count("file")):
        ran = midapi("generate", "a fox")
    assert ran.code == 130
    assert "try again with: midapi task " in ran.error


@pytest.mark.midapi_sandbox(time_scale=1, auto=False)
@pytest.mark.parametrize("key", [None, "order-17"])
@pytest.mark.parametrize("journal", ["", "journal"])
@pytest.mark.fault("S13")
def test_ctrl_c_during_the_post_loses_no_task(
    midapi: Midapi,
    midapi_sandbox: SandboxThread,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    journal: str,
) -> None:
    """The command waits for MidAPI's answer, and names the task."""
    monkeypatch.setenv("MIDAPI_JOURNAL", journal)
    midapi_sandbox.faults.on("submit", do=delay(1.0))
    with ctrl_c_when(lambda: midapi_sandbox.ledger.accepted):
        ran = midapi("generate", "a fox", *(["--key", key] if key else []))
    task_id = only(midapi_sandbox.ledger.accepted).task_id
    assert ran.code == 130
    assert "Waiting for MidAPI's answer" in ran.err
    assert f"midapi task {task_id} --wait --download" in ran.err


@pytest.mark.midapi_sandbox(time_scale=1, auto=False)
@pytest.mark.fault("S13")
def test_ctrl_c_names_only_the_interrupted_submission(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal also holds the same prompt with a task, and unknown."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    monkeypatch.setattr(_session, "CLOSE_PATIENCE", 0.3)
    midapi("generate", "a fox", "--no-wait")
    midapi_sandbox.faults.on("submit", nth=1, do=lose_answer())
    old = midapi("generate", "a fox", "--json").json["error"]["intent_id"]
    midapi_sandbox.faults.on("submit", nth=1, do=hang())
    with ctrl_c_when(lambda: len(midapi_sandbox.ledger.accepted) == 3):
        ran = midapi("generate", "a fox", "--json")
    assert ran.code == 130
    assert ran.json["error"]["intent_id"] != old


@pytest.mark.midapi_sandbox(time_scale=1)
@pytest.mark.fault("S13")
def test_ctrl_c_without_an_answer_is_an_unknown_submission(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says that it is not known, and names the intent."""
    monkeypatch.setattr(_session, "CLOSE_PATIENCE", 0.3)
    midapi_sandbox.faults.on("submit", do=hang())
    with ctrl_c_when(lambda: midapi_sandbox.ledger.accepted):
        ran = midapi("generate", "a fox", "--json")
    assert ran.code == 130
    assert "It is not known whether MidAPI accepted this: the command was interrupted" in ran.err
    assert len(ran.json["error"]["intent_id"]) == 32


@pytest.mark.midapi_sandbox(time_scale=1)
def test_ctrl_c_between_two_attempts_buys_nothing(
    midapi: Midapi, midapi_sandbox: SandboxThread
) -> None:
    """A refused submission that waits for its next attempt is given up."""
    midapi_sandbox.faults.on("submit", do=answer_code(455))
    with ctrl_c_when(lambda: midapi_sandbox.ledger.count("submit")):
        ran = midapi("generate", "a fox")
    assert ran.code == 130
    warning, error = [line for line in ran.err.splitlines() if line.startswith("midapi: ")]
    assert "is sent again in" in warning
    assert "455" in warning
    assert error == "midapi: Interrupted. Nothing was bought."
    assert midapi_sandbox.ledger.accepted == ()


@pytest.mark.midapi_sandbox(time_scale=1)
def test_a_second_ctrl_c_ends_at_once(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Exit code 130 and no traceback."""
    midapi_sandbox.faults.on("submit", do=hang())
    started = time.monotonic()
    with ctrl_c_when(lambda: midapi_sandbox.ledger.accepted, times=2):
        ran = midapi("generate", "a fox")
    assert ran.code == 130
    assert time.monotonic() - started < 15
    assert "Ctrl-C again ends this, too" in ran.err
    assert "Traceback" not in ran.err


def test_the_log_is_shown_only_with_verbose(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """Without a warning there is no log otherwise."""
    midapi_sandbox.faults.on("look", first=2, do=answer_code(500, "a bad moment"))
    plain = midapi("generate", "a fox", "--no-download")
    assert "midapi: " not in plain.err
    midapi_sandbox.faults.on("submit", do=answer_code(455), nth=2)
    loud = midapi("generate", "a fox", "--no-download", "--verbose")
    assert loud.code == 0
    assert os.environ["MIDAPI_API_KEY"] not in loud.err
