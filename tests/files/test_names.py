import json
import os
import string
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from midapi_async import InvalidRequestError, MidAPIClient, TaskDetails, TaskStatus, Upscale
from midapi_async.files.content import EXTENSIONS
from midapi_async.files.names import (
    DEFAULT_NAME,
    ResultFile,
    check_name,
    existing,
    file_name,
    sidecar_of,
    task_of,
    write_sidecar,
)

from .samples import SAMPLES, Sample

TASK = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
WHOLE = SAMPLES["jpeg"].data
NASTY = "a [/bold] fox\x1b]0;owned\x07 in\nthe \u202egnp.exe <script>alert(1)</script> \ud83d"

task_ids = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=128).filter(
    lambda text: not text.startswith("mjt_")
)
known_ids = st.uuids().map(lambda each: each.hex) | st.uuids().map(str)
fields = st.sampled_from(["{task_id}", "{index}", "{ext}"])
templates = st.lists(fields | st.text(max_size=20), max_size=8).map("".join)


def details(task_id: str = TASK, prompt: str = "a fox", count: int = 4) -> TaskDetails:
    return TaskDetails(
        task_id=task_id,
        status=TaskStatus.SUCCEEDED,
        urls=tuple(f"https://tempfile.example/m/{task_id}_0_{n}.jpeg" for n in range(count)),
        params={"prompt": prompt, "taskType": "mj_txt2img"},
        created_at=datetime(2026, 11, 26, 10, 0, tzinfo=UTC),
        completed_at=datetime(2026, 11, 26, 10, 1, tzinfo=UTC),
    )


def put(path: Path, data: bytes = WHOLE) -> Path:
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------------------------- templates


@pytest.mark.fault("D8")
@given(templates | templates.map(lambda text: text + "{ext}"), task_ids, st.integers(0, 20))
@example(DEFAULT_NAME, TASK, 4)
@example("{index}{ext}", "-rf", 1)
@example("fox\0{ext}", TASK, 1)
@example("\ud800{ext}", TASK, 1)
@example("{" * 300 + "{ext}", TASK, 1)
def test_a_template_that_is_accepted_makes_safe_names(name: str, task_id: str, count: int) -> None:
    """Each result has a name of its own, in the folder itself, that a file system takes."""
    try:
        check_name(name, task_id, count)
    except InvalidRequestError as error:
        problems, text = [*error.problems], str(error)
    else:
        problems, text = [], ""
    assert problems in ([], ["name"])
    assert text.isprintable()
    if problems:
        return
    names = [
        file_name(name, task_id, index, extension)
        for index in range(max(count, 1))
        for extension in EXTENSIONS
    ]
    assert len({*names}) == len(names)
    for each in names:
        assert each.endswith(EXTENSIONS)
        assert each.isprintable()
        assert not each.startswith(".")
        assert len(each.encode()) <= 200
        assert Path("folder", each).parent == Path("folder")
        assert not {*each} & {"/", "\\", "{", "}", "\0"}


WRONG: dict[str, tuple[object, str]] = {
    "no str": (None, "must be a str"),
    "no extension": ("{task_id}_{index}", "must end with {ext}"),
    "an extension of its own": ("{task_id}_{index}.png", "must end with {ext}"),
    "two extensions": ("{ext}_{index}{ext}", "must end with {ext}"),
    "no index": ("{task_id}{ext}", "needs {index}, because the task has 4 files"),
    "another field": ("{prompt}_{index}{ext}", "has only the fields {task_id}, {index} and {ext}"),
    "an attribute": ("{index.__class__}{index}{ext}", "has only the fields"),
    "a format": ("{index:05}{ext}", "has only the fields"),
    "a brace": ("{{index}}{index}{ext}", "has only the fields"),
    "a folder": ("../{index}{ext}", "must be a file's name without / "),
    "a Windows folder": ("..\\{index}{ext}", "must be a file's name without / "),
    "a hidden file": (".{index}{ext}", "must not begin with a dot"),
    "a NUL": ("fox\0{index}{ext}", "must not contain control characters"),
    "a prompt": (NASTY.replace("/", "") + "{index}{ext}", "must not contain control characters"),
    "too long": ("ü" * 98 + "{index}{ext}", "must not be longer than 200 bytes"),
}


@pytest.mark.fault("D8")
@pytest.mark.fault("D12")
@pytest.mark.parametrize(("name", "problem"), WRONG.values(), ids=WRONG)
def test_a_wrong_template_is_refused_with_a_reason(name: str, problem: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        check_name(name, TASK, 4)
    assert raised.value.problems["name"].startswith(problem)
    assert str(raised.value).isprintable()


def test_the_longest_name_is_accepted() -> None:
    check_name("x" * 194 + "{index}{ext}", TASK, 4)
    with pytest.raises(InvalidRequestError):
        check_name("x" * 194 + "{index}{ext}", TASK, 11)


def test_one_file_needs_no_index() -> None:
    check_name("{task_id}{ext}", TASK, 1)
    assert file_name("{task_id}{ext}", TASK, 0, ".mp4") == f"{TASK}.mp4"


@pytest.mark.parametrize("task_id", ["../../etc/passwd", "", "a b", "x" * 129])
def test_a_task_id_that_is_none_names_no_file(task_id: str) -> None:
    with pytest.raises(InvalidRequestError, match="task_id"):
        check_name(DEFAULT_NAME, task_id, 4)


# ---------------------------------------------------------------------- files that are there


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_whole_file_is_found_with_any_extension(tmp_path: Path, sample: Sample) -> None:
    path = put(tmp_path / f"{TASK}_1{sample.extension}", sample.data)
    assert existing(tmp_path, DEFAULT_NAME, TASK, 1) == path
    assert existing(tmp_path, DEFAULT_NAME, TASK, 2) is None
    assert existing(tmp_path, DEFAULT_NAME, OTHER, 1) is None


def test_a_file_that_is_cut_is_not_found(tmp_path: Path) -> None:
    put(tmp_path / f"{TASK}_0.png", b"<html>")
    put(tmp_path / f"{TASK}_0.jpeg", WHOLE[:-1])
    assert existing(tmp_path, DEFAULT_NAME, TASK, 0) is None
    put(tmp_path / f"{TASK}_0.webp", SAMPLES["webp"].data)
    assert existing(tmp_path, DEFAULT_NAME, TASK, 0) == tmp_path / f"{TASK}_0.webp"


def test_neither_a_folder_nor_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / f"{TASK}_0.jpeg").mkdir()
    (tmp_path / f"{TASK}_1.jpeg").symlink_to(tmp_path / "nowhere")
    assert existing(tmp_path, DEFAULT_NAME, TASK, 0) is None
    assert existing(tmp_path, DEFAULT_NAME, TASK, 1) is None
    assert existing(tmp_path / "no folder", DEFAULT_NAME, TASK, 1) is None


@pytest.mark.parametrize(
    ("task_id", "index", "size"), [(OTHER, 0, 0), (TASK, 1, 0), (TASK, 0, 1), (TASK, 0, -1)]
)
def test_a_file_that_its_sidecar_does_not_describe_is_not_found(
    tmp_path: Path, task_id: str, index: int, size: int
) -> None:
    """Its task, its index and its size agree, or it is fetched again."""
    path = put(tmp_path / f"{TASK}_0.jpeg")
    write_sidecar(path, details(), 0, len(WHOLE), "")
    assert existing(tmp_path, DEFAULT_NAME, TASK, 0) == path
    write_sidecar(path, details(task_id), index, len(WHOLE) + size, "")
    assert existing(tmp_path, DEFAULT_NAME, TASK, 0) is None


def test_a_sidecar_that_cannot_be_read_does_not_count(tmp_path: Path) -> None:
    path = put(tmp_path / f"{TASK}_0.jpeg")
    sidecar_of(path).write_text("{")
    assert existing(tmp_path, DEFAULT_NAME, TASK, 0) == path


@pytest.mark.fault("D8")
@pytest.mark.parametrize("data", [WHOLE, WHOLE[:-1], b"my notes"])
def test_a_file_of_an_unknown_task_is_never_taken_nor_replaced(tmp_path: Path, data: bytes) -> None:
    """A name without the task id proves nothing, whatever the file contains."""
    path = put(tmp_path / "fox_1.jpeg", data)
    with pytest.raises(InvalidRequestError, match="overwrite=True") as raised:
        existing(tmp_path, "fox_{index}{ext}", TASK, 1)
    assert str(path) in str(raised.value)
    assert [*raised.value.problems] == ["name"]
    assert existing(tmp_path, "fox_{index}{ext}", TASK, 0) is None
    write_sidecar(path, details(OTHER), 1, len(data), "")
    with pytest.raises(InvalidRequestError):
        existing(tmp_path, "fox_{index}{ext}", TASK, 1)
    write_sidecar(path, details(), 1, len(data), "")
    found = existing(tmp_path, "fox_{index}{ext}", TASK, 1)
    assert found == (path if data == WHOLE else None)


def test_a_broken_link_of_an_unknown_task_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "fox.jpeg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidRequestError):
        existing(tmp_path, "fox{ext}", TASK, 0)


# ------------------------------------------------------------------------------------ sidecars


def test_the_sidecar_describes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "fox.jpeg"
    write_sidecar(path, details(), 2, 7, "ab" * 32)
    assert [each.name for each in tmp_path.iterdir()] == ["fox.jpeg.json"]
    assert json.loads(sidecar_of(path).read_text()) == {
        "task_id": TASK,
        "index": 2,
        "url": f"https://tempfile.example/m/{TASK}_0_2.jpeg",
        "size": 7,
        "sha256": "ab" * 32,
        "prompt": "a fox",
        "params": {"prompt": "a fox", "taskType": "mj_txt2img"},
        "created_at": "2026-11-26T10:00:00+00:00",
        "completed_at": "2026-11-26T10:01:00+00:00",
    }


@pytest.mark.fault("D12")
def test_a_prompt_does_nothing_in_a_terminal_that_shows_its_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "fox.jpeg"
    write_sidecar(path, details(prompt=NASTY), 0, 7, "")
    text = sidecar_of(path).read_text(encoding="ascii")
    assert text.replace("\n", "").isprintable()
    assert json.loads(text)["prompt"] == NASTY.encode(errors="replace").decode()
    assert task_of(path) == ResultFile(TASK, 0)


def test_params_that_are_too_large_are_left_out(tmp_path: Path) -> None:
    """So that the sidecar can still be read."""
    path = tmp_path / "fox.jpeg"
    write_sidecar(path, details(prompt="x" * 70_000), 3, 7, "")
    assert sidecar_of(path).stat().st_size < 65_536
    assert task_of(path) == ResultFile(TASK, 3)


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_the_sidecar_has_the_permissions_of_a_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = put(tmp_path / "fox.jpeg")
        write_sidecar(path, details(), 0, 7, "")
    finally:
        os.umask(before)
    assert sidecar_of(path).stat().st_mode == path.stat().st_mode


@pytest.mark.fault("D5")
def test_a_sidecar_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "fox.jpeg"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_sidecar(path, details(), 0, 7, "")
    assert not [*tmp_path.iterdir()]


# ------------------------------------------------------------------- from a file to its task


@given(known_ids, st.integers(0, 99), st.sampled_from(EXTENSIONS))
@example("mj_task_abc123", 0, ".jpeg")
@example("0123456789_ABCDEF", 3, ".png")
def test_the_default_name_leads_back_to_its_task(task_id: str, index: int, extension: str) -> None:
    path = Path("pictures", file_name(DEFAULT_NAME, task_id, index, extension))
    assert task_of(path) == (task_id, index)
    assert task_of(str(path)) == ResultFile(task_id, index)


@pytest.mark.parametrize(
    "name", [f"{TASK}_0_3.jpeg", f"{TASK}_0_3.mp4", f"{TASK}_0_3 (1).jpeg", f"{TASK}_0_3(2).jpg"]
)
def test_the_names_that_a_browser_saves_lead_back_to_their_task(name: str) -> None:
    assert task_of(name) == ResultFile(TASK, 3)


@given(task_ids, st.integers(0, 99), st.sampled_from(EXTENSIONS), templates)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
def test_a_sidecar_leads_back_to_any_task(
    tmp_path: Path, task_id: str, index: int, extension: str, name: str
) -> None:
    """Whatever the file is called, if its name is not that of another task."""
    name += "{ext}"
    try:
        check_name(name, task_id, 1)
    except InvalidRequestError:
        assume(False)
    path = tmp_path / file_name(name, task_id, index, extension)
    write_sidecar(path, details(task_id, count=100), index, 7, "")
    assert task_of(path) == ResultFile(task_id, index)
    sidecar_of(path).unlink()


def test_a_file_leads_to_the_next_request() -> None:
    """`MidAPIClient.task_of` needs no open client; what it gives fits where a task id is wanted."""
    task_id, index = MidAPIClient.task_of(f"pictures/{TASK}_2.jpeg")
    assert Upscale(task_id, index) == Upscale(TASK, 2)


def test_a_name_that_looks_like_a_task_counts_less_than_the_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "a_fox_in_the_snow_of_2026_1.jpeg"
    assert task_of(path) == ResultFile("a_fox_in_the_snow_of_2026", 1)
    write_sidecar(path, details(), 0, 7, "")
    assert task_of(path) == ResultFile(TASK, 0)
    # A name with an id of MidAPI's own shape is as good as can be.
    path = tmp_path / f"{TASK}_1.jpeg"
    write_sidecar(path, details(OTHER), 0, 7, "")
    assert task_of(path) == ResultFile(TASK, 1)


@pytest.mark.parametrize(
    "name",
    ["IMG_1234.jpeg", "a_red_fox_in_the_snow_2.png", f"{TASK}.jpeg", f"{TASK}_1.txt", "", "..",
     f"{TASK}_1.jpeg.json", f"{TASK}_1000.jpeg", f"{TASK}_\u0663.jpeg",
     "mjt_0123456789abcdef_0.jpeg", "fox\0.jpeg", "\u202e\x1b\n.jpeg"],
)  # fmt: skip
def test_other_names_are_refused_with_what_was_looked_for(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"TASKID_INDEX\.jpeg") as raised:
        task_of(name)
    assert [*raised.value.problems] == ["path"]
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("path", [None, 5, b"fox.jpeg"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequestError, match="must be a path"):
        task_of(path)


GOOD = {"task_id": TASK, "index": 1, "size": 7}
BAD_SIDECARS = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "too deep": b"[" * 60_000,
    "no task": json.dumps({**GOOD, "task_id": None}).encode(),
    "a wrong task id": json.dumps({**GOOD, "task_id": "../x"}).encode(),
    "a token": json.dumps({**GOOD, "task_id": "mjt_0123456789abcdef"}).encode(),
    "no index": json.dumps({**GOOD, "index": "1"}).encode(),
    "a bool": json.dumps({**GOOD, "index": True}).encode(),
    "a negative index": json.dumps({**GOOD, "index": -1}).encode(),
    "a large index": json.dumps({**GOOD, "index": 10**9}).encode(),
    "no size": json.dumps({**GOOD, "size": 7.0}).encode(),
    "too large": json.dumps({**GOOD, "more": "x" * 65_536}).encode(),
    "twice": b'{"task_id": "a", ' + json.dumps(GOOD).encode()[1:],
}


@pytest.mark.parametrize("data", BAD_SIDECARS.values(), ids=BAD_SIDECARS)
def test_a_sidecar_is_not_believed_blindly(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fox.jpeg"
    sidecar_of(path).write_bytes(json.dumps(GOOD).encode())
    assert task_of(path) == ResultFile(TASK, 1)
    sidecar_of(path).write_bytes(data)
    with pytest.raises(InvalidRequestError, match=r"fox\.jpeg\.json"):
        task_of(path)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_a_sidecar_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fox.jpeg"
    sidecar_of(path).write_bytes(data)
    with pytest.raises(InvalidRequestError):
        task_of(path)


@pytest.mark.skipif(os.name == "nt", reason="pipes are POSIX's")
def test_a_pipe_as_a_sidecar_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fox.jpeg.json")
    with pytest.raises(InvalidRequestError):
        task_of(tmp_path / "fox.jpeg")
