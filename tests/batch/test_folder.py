"""The output folder of a batch: a line for each row, whatever a kill or a full disk has left."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from midapi_async import (
    AuthenticationError,
    BadRequestError,
    BatchItem,
    DownloadError,
    ImageToImage,
    InvalidRequestError,
    MidAPIError,
    SubmissionUnknown,
    TaskDetails,
    TaskFailed,
    TaskStatus,
    TextToImage,
    TransportError,
    Upscale,
    WaitTimeout,
)
from midapi_async.batch import folder as module
from midapi_async.batch.folder import (
    COUNTS,
    BatchFolder,
    counts_of,
    line_of,
    lines_of,
    process_of,
    read_batch,
)
from midapi_async.errors import about
from tests.cli.conftest import only

NONE = dict.fromkeys(COUNTS, 0)
ORIGIN = "https://api.midapi.ai"


@contextmanager
def opened(path: Path, base_url: str = ORIGIN) -> Iterator[BatchFolder]:
    """The folder, locked for the block."""
    folder = BatchFolder.open(path, base_url=base_url, rows=3, source="rows.csv")
    try:
        yield folder
    finally:
        folder.close()


def done(key: str, prompt: str = "a fox", **metadata: str) -> dict[str, Any]:
    """The line of a row that has succeeded."""
    begun = datetime(2026, 1, 31, 12, tzinfo=UTC)
    details = TaskDetails(
        task_id=f"task-{key}",
        status=TaskStatus.SUCCEEDED,
        urls=("https://x.invalid/0.jpeg",),
        created_at=begun,
        completed_at=begun + timedelta(seconds=58.2),
    )
    item = BatchItem(
        index=4,
        request=TextToImage(prompt),
        key=key,
        metadata=metadata,
        intent_id="i1",
        details=details,
        paths=(Path(f"out/pictures/task-{key}_0.jpeg"),),
    )
    return line_of(item, 5)


def bad(key: str | None, error: MidAPIError, message: str = "") -> dict[str, Any]:
    """The line of a row that has an error."""
    return line_of(BatchItem(index=0, request=TextToImage("a"), key=key, error=error), 1, message)


def failed(key: str | None, task_id: str = "t1") -> dict[str, Any]:
    """The line of a row whose task has failed."""
    return bad(key, TaskFailed(task_id, TaskDetails(task_id=task_id, status=TaskStatus.FAILED)))


def keys(path: Path) -> list[object]:
    """The keys of a file, in order."""
    return [line["key"] for line in lines_of(path)]


def test_a_line_has_everything_about_its_row() -> None:
    """The row, its task, its files as paths in the folder."""
    line = done("a", "a red fox", place="here")
    assert line == {
        "key": "a",
        "line": 5,
        "index": 4,
        "metadata": {"place": "here"},
        "kind": "TextToImage",
        "request": {
            "taskType": "mj_txt2img",
            "prompt": "a red fox",
            "speed": "fast",
            "enableTranslation": False,
        },
        "prompt": "a red fox",
        "task_id": "task-a",
        "intent_id": "i1",
        "state": "succeeded",
        "created_at": "2026-01-31T12:00:00+00:00",
        "completed_at": "2026-01-31T12:00:58.200000+00:00",
        "seconds": 58.2,
        "urls": ["https://x.invalid/0.jpeg"],
        "files": ["pictures/task-a_0.jpeg"],
    }


@pytest.mark.parametrize(
    ("error", "state", "facts"),
    [
        (SubmissionUnknown("i1", reason="cut"), "unknown", {"reason": "cut"}),
        (BadRequestError(400, "no"), "refused", {"code": 400}),
        (
            about(AuthenticationError(401, "no"), task_id="t1"),
            "unfinished",
            {"code": 401},
        ),
        (about(TransportError("cut", sent=True), task_id="t1"), "unfinished", {}),
        (InvalidRequestError({"x": "is"}), "invalid", {"problems": {"x": "is"}}),
        (TaskFailed("t", TaskDetails(task_id="t", status=TaskStatus.FAILED)), "failed", {}),
        (WaitTimeout("t1"), "unfinished", {}),
        (DownloadError("https://x.invalid/0", "no"), "not_downloaded", {}),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_an_error_has_a_state_and_its_facts(
    error: MidAPIError, state: str, facts: dict[str, object]
) -> None:
    """And the message that it was given, which is for people who type commands."""
    line = bad("a", error, "do this")
    assert line["state"] == state
    assert (line["error"]["type"], line["error"]["message"]) == (type(error).__name__, "do this")
    assert facts.items() <= line["error"].items()
    assert bad("a", error)["error"]["message"] == str(error)
    json.dumps(line)


def test_rows_without_a_prompt_and_with_files_of_this_machine(tmp_path: Path) -> None:
    """A path stands where its URL would be."""
    picture = tmp_path / "a.png"
    item = BatchItem(index=0, request=ImageToImage("a", [picture, "https://x.invalid/b.png"]))
    assert line_of(item, 1)["request"]["fileUrls"] == [str(picture), "https://x.invalid/b.png"]
    assert line_of(BatchItem(index=0, request=Upscale("t1", 0)), None)["prompt"] is None
    assert line_of(BatchItem(index=0, request=None), 1)["request"] is None


def counts(path: Path) -> tuple[int, ...]:
    """How many rows of the last run have succeeded, failed, and are unknown."""
    found = counts_of(path, read_batch(path))
    return found["succeeded"], found["failed"], found["unknown"]


def test_each_key_has_one_line(tmp_path: Path) -> None:
    """In the same run and in the next one; a repeated failure is no news."""
    for _ in range(2):
        with opened(tmp_path) as folder:
            folder.add([done("a"), failed("b")], NONE)
            folder.add([done("a"), done("c"), failed("b")], NONE)
    assert keys(tmp_path / "results.jsonl") == ["a", "c"]
    assert keys(tmp_path / "errors.jsonl") == ["b"]
    assert [line["file_name"] for line in metadata(tmp_path)] == [
        "pictures/task-a_0.jpeg",
        "pictures/task-c_0.jpeg",
    ]


def upscaled(key: str, task_id: str) -> dict[str, Any]:
    """The line of a picture that was made larger."""
    return {**done(key), "prompt": None, "request": {"taskId": task_id}}


def metadata(path: Path) -> list[dict[str, Any]]:
    """The lines of metadata.jsonl."""
    return [json.loads(line) for line in (path / "metadata.jsonl").read_text().splitlines()]


def test_the_errors_of_a_key_that_succeeds_are_removed(tmp_path: Path) -> None:
    """At the end of a run; of each other key, the last line stays, and none without a key."""
    with opened(tmp_path) as folder:
        folder.add([failed("a"), failed("b"), failed(None)], NONE)
    with opened(tmp_path) as folder:
        folder.add([done("a"), failed("b", "t2"), failed(None)], NONE)
        assert keys(tmp_path / "errors.jsonl") == ["a", "b", "b", None]
        folder.tidy()
        assert keys(tmp_path / "errors.jsonl") == ["b"]
        folder.add([failed("d")], NONE)
    assert [line["task_id"] for line in lines_of(tmp_path / "errors.jsonl")] == ["t2", "t1"]
    assert counts(tmp_path) == (1, 2, 0)


@pytest.mark.parametrize("name", ["results.jsonl", "errors.jsonl", "metadata.jsonl"])
@pytest.mark.parametrize("left", [b'{"key": "z", "li', b"\0" * 100_000, b"{}\n[]\n\xff\n{"])
def test_what_a_kill_has_left_of_a_line_is_cut_off(tmp_path: Path, name: str, left: bytes) -> None:
    """The next line begins a line; lines of others are skipped by what reads them."""
    with opened(tmp_path) as folder:
        folder.add([done("a"), failed("b")], NONE)
    with (tmp_path / name).open("ab") as file:
        file.write(left)
    with opened(tmp_path) as folder:
        folder.add([done("a"), failed("b"), done("c")], NONE)
    assert keys(tmp_path / "results.jsonl") == ["a", "c"]
    assert keys(tmp_path / "errors.jsonl") == ["b"]
    assert [line["key"] for line in metadata(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize("name", ["results.jsonl", "errors.jsonl"])
@pytest.mark.parametrize(
    "line",
    [
        '{"key": 1}',
        '{"key": "x"}',
        '{"key": ["x"]}',
        '{"key": null}',
        r'{"key": "\ud800"}',
        '{"key": "x", "error": 1, "state": "failed"}',
        '{"key": "x", "error": {}, "state": null}',
        '{"key": "x", "error": {"type": ["X"]}, "state": "failed", "task_id": {}}',
        '{"key": "x", "files": [1], "metadata": {}, "prompt": "a", "request": {}, "task_id": "t"}',
        '{"key": "x", "files": "a", "metadata": [], "prompt": "a", "request": 1, "task_id": "t"}',
        json.dumps({**done("x"), "request": {"taskId": []}}),
        "[" * 100_000,
        '{"key": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "9" * 5000,
    ],
    ids=lambda text: text[:40],
)
def test_lines_of_others_are_skipped(tmp_path: Path, name: str, line: str) -> None:
    """Whatever they hold: the folder is opened, read and added to."""
    with opened(tmp_path) as folder:
        folder.add([done("a"), failed("b")], NONE)
    with (tmp_path / name).open("a") as file:
        file.write(f"{line}\n")
    assert counts(tmp_path) == (1, 1, 0)
    with opened(tmp_path) as folder:
        folder.add([done("a"), failed("b"), done("c")], NONE)
        folder.tidy()
    assert keys(tmp_path / "results.jsonl") == ["a", "c"]
    assert keys(tmp_path / "errors.jsonl") == ["b"]


def test_a_kill_between_two_files_is_repaired(tmp_path: Path) -> None:
    """The results are written first; the next run writes what they say into metadata.jsonl."""
    with opened(tmp_path) as folder:
        folder.add([done("a"), done("b")], NONE)
    (tmp_path / "metadata.jsonl").unlink()
    with opened(tmp_path):
        assert [line["key"] for line in metadata(tmp_path)] == ["a", "b"]
    with (tmp_path / "results.jsonl").open("ab") as file:  # as if two folders were joined
        file.write((tmp_path / "results.jsonl").read_bytes())
    with opened(tmp_path):
        assert [line["key"] for line in metadata(tmp_path)] == ["a", "b"]


def test_metadata_is_for_pictures_with_the_users_notes(tmp_path: Path) -> None:
    """Videos have no line. A picture that was made larger has the prompt of the one before."""
    with opened(tmp_path) as folder:
        video = {**done("v"), "files": ["pictures/v_0.mp4"]}
        folder.add([video, done("a", "füchse\u2028", place="here")], NONE)
        folder.add([upscaled("u", "task-a"), upscaled("o", "another")], NONE)
    with opened(tmp_path) as folder:
        folder.add([upscaled("w", "task-u")], NONE)
    lines = metadata(tmp_path)
    assert [line["text"] for line in lines] == ["füchse\u2028", "füchse\u2028", "", "füchse\u2028"]
    assert lines[0] == {
        "file_name": "pictures/task-a_0.jpeg",
        "text": "füchse\u2028",
        "key": "a",
        "task_id": "task-a",
        "index": 0,
        "metadata.place": "here",
    }


def test_a_line_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes a part of it; the same line can be written later."""
    with opened(tmp_path) as folder:
        folder.add([done("a")], NONE)
        before = (tmp_path / "results.jsonl").read_bytes()
        real = os.write

        room = [10]

        def full(descriptor: int, data: memoryview) -> int:
            if not room:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[: room.pop()])

        with monkeypatch.context() as patch:
            patch.setattr("midapi_async.batch.folder.os.write", full)
            with pytest.raises(OSError, match="No space"):
                folder.add([done("b")], NONE)
        assert (tmp_path / "results.jsonl").read_bytes() == before
        folder.add([done("b")], NONE)
    assert keys(tmp_path / "results.jsonl") == ["a", "b"]


@pytest.mark.parametrize("which", ["results.jsonl", "metadata.jsonl", "errors.jsonl"])
def test_lines_can_be_added_again_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Whichever file has failed, each line is there once, and the error names the file."""
    real, is_full = os.write, [True]

    def write(descriptor: int, data: memoryview) -> int:
        if is_full and os.path.samestat(os.fstat(descriptor), (tmp_path / which).stat()):
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr("midapi_async.batch.folder.os.write", write)
    with opened(tmp_path) as folder:
        with pytest.raises(OSError, match="No space") as caught:
            folder.add([done("a"), failed("b")], NONE)
        assert caught.value.filename == str(tmp_path / which)
        is_full.clear()
        folder.add([done("a"), failed("b")], NONE)
        assert keys(tmp_path / "results.jsonl") == ["a"]
        assert keys(tmp_path / "errors.jsonl") == ["b"]
        assert [line["key"] for line in metadata(tmp_path)] == ["a"]


def test_a_disk_that_is_full_at_the_end_keeps_the_old_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced whole or not at all."""
    with opened(tmp_path) as folder:
        folder.add([failed("a"), done("a")], NONE)

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module, "sync", full)
            with pytest.raises(OSError, match="No space"):
                folder.tidy()
        assert keys(tmp_path / "errors.jsonl") == ["a"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".new"] == []
    with opened(tmp_path):
        assert keys(tmp_path / "errors.jsonl") == []


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """The second one is told which process has it; after a crash the lock is free."""
    assert process_of(tmp_path) is None
    with opened(tmp_path):
        assert process_of(tmp_path) == os.getpid()
        with pytest.raises(InvalidRequestError, match=f"process {os.getpid()} runs this batch"):
            BatchFolder.open(tmp_path, base_url=ORIGIN, rows=1, source="x")
        (tmp_path / "batch.lock").write_text("")
        assert process_of(tmp_path) == 0
        with pytest.raises(InvalidRequestError, match="another process runs this batch"):
            BatchFolder.open(tmp_path, base_url=ORIGIN, rows=1, source="x")
    assert process_of(tmp_path) is None
    with opened(tmp_path):
        pass


def test_a_folder_belongs_to_one_service(tmp_path: Path) -> None:
    """Its tasks are not known elsewhere; another file is welcome."""
    with opened(tmp_path):
        pass
    with pytest.raises(InvalidRequestError, match="use another folder"):
        BatchFolder.open(tmp_path, base_url="https://kie.ai", rows=1, source="x")
    other = BatchFolder.open(tmp_path, base_url=ORIGIN, rows=1, source="other.csv")
    other.close()
    facts = read_batch(tmp_path)
    assert datetime.fromisoformat(facts.pop("started")).tzinfo is UTC
    assert facts.pop("progress")["succeeded"] == 0
    assert facts == {"version": 1, "base_url": ORIGIN, "rows": 1, "input": "other.csv"}


def test_the_progress_is_that_of_the_last_run(tmp_path: Path) -> None:
    """Lines of other files do not count; those since the last note do, as after a kill."""
    with opened(tmp_path) as folder:
        folder.add([done("a"), failed("b")], {"succeeded": 1, "failed": 1, "unknown": 0})
        assert counts(tmp_path) == (1, 1, 0)
        folder.note({})
        assert counts(tmp_path) == (1, 1, 0)
        now = {"succeeded": 2, "failed": 1, "unknown": 1}
        folder.add([done("b"), failed("e"), bad("c", SubmissionUnknown("i1"))], now)
        assert counts(tmp_path) == (2, 1, 1)
        folder.note({})
        assert counts(tmp_path) == (2, 1, 1)
    with opened(tmp_path):  # the same again
        assert counts(tmp_path) == (2, 1, 1)
    other = BatchFolder.open(tmp_path, base_url=ORIGIN, rows=3, source="other.csv")
    assert counts(tmp_path) == (0, 0, 0)
    other.add([done("d")], NONE)
    other.close()
    assert counts(tmp_path) == (1, 0, 0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, r"it has no batch\.json"),
        (b"{", "is not valid JSON"),
        (b"[1]", r"it has no batch\.json"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"version": 2, "base_url": ""}', "another version"),
        (b'{"version": 1}', "is damaged"),
        (b'{"version": 1, "base_url": "", "rows": 1, "input": "", "progress": 3}', "is damaged"),
        (b'{"version": 1, "base_url": "", "rows": 1, "input": "", "started": ""}', "is damaged"),
    ],
)
def test_a_folder_that_is_not_a_batchs(tmp_path: Path, content: bytes | None, problem: str) -> None:
    """It is not read as one; if it looks like one, it is not written to, either."""
    if content is not None:
        (tmp_path / "batch.json").write_bytes(content)
    with pytest.raises(InvalidRequestError, match=problem):
        read_batch(tmp_path)
    if content is not None:
        with pytest.raises(InvalidRequestError, match=problem):
            BatchFolder.open(tmp_path, base_url=ORIGIN, rows=1, source="x")
        assert process_of(tmp_path) is None


def test_a_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place, or in that of a folder above it; one that is read only."""
    with monkeypatch.context() as patch:
        patch.setattr("midapi_async.files.folders.os.access", lambda *_: False)
        with pytest.raises(InvalidRequestError, match="is not writable"):
            BatchFolder.open(tmp_path, base_url=ORIGIN, rows=1, source="x")
    (tmp_path / "file").write_text("")
    for path, problem in (
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "file" / "out", "cannot be used: Not a directory"),
        (Path("a\0b"), "cannot be used"),
    ):
        with pytest.raises(InvalidRequestError, match=problem):
            BatchFolder.open(path, base_url=ORIGIN, rows=1, source="x")
    with pytest.raises(InvalidRequestError, match=r"it has no batch\.json"):
        read_batch(tmp_path / "file")
    (tmp_path / "other" / "batch.json").mkdir(parents=True)
    with pytest.raises(InvalidRequestError, match="cannot be read: Is a directory"):
        read_batch(tmp_path / "other")
    (tmp_path / "other" / "batch.json").rmdir()
    (tmp_path / "other").rmdir()
    assert only([each.name for each in tmp_path.iterdir()]) == "file"
