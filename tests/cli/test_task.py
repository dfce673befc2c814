import asyncio
from pathlib import Path

import pytest

from midapi_async import MidAPIClient
from midapi_async.sandbox import SandboxThread, answer_code
from tests.cli.conftest import Midapi, ctrl_c_when, only

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(auto=False, time_scale=60)]


@pytest.fixture
def task_id(midapi: Midapi, midapi_sandbox: SandboxThread) -> str:
    """A task that is generating."""
    return str(only(midapi("generate", "a fox", "--no-wait").lines))


def test_one_look_at_an_unfinished_task(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """One request, exit code 0; stdout is empty, as there are no files."""
    ran = midapi("task", task_id)
    assert (ran.code, ran.out) == (0, "")
    assert f"Task {task_id} is generating." in ran.err
    assert midapi_sandbox.ledger.looks(task_id) == 1


def test_one_look_at_a_finished_task(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """It prints the URLs, and how long the task took."""
    midapi_sandbox.finish(task_id)
    ran = midapi("task", task_id)
    assert ran.code == 0
    assert len(ran.lines) == 4
    assert ran.lines[0].startswith(midapi_sandbox.url)
    assert f"Task {task_id} succeeded after " in ran.err


def test_download_prints_the_paths_of_the_files(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """--download."""
    midapi_sandbox.finish(task_id)
    ran = midapi("task", task_id, "--download", "--folder", "here")
    assert ran.code == 0
    assert all(Path(line).parent == Path("here") and Path(line).is_file() for line in ran.lines)


def test_download_of_an_unfinished_task_is_an_error(midapi: Midapi, task_id: str) -> None:
    """Without --wait; a script relies on the files."""
    ran = midapi("task", task_id, "--download", "--json")
    assert ran.code == 1
    assert "Wait for it: midapi task " in ran.error
    assert (
        ran.json["error"]["type"],
        ran.json["error"]["details"]["status"],
    ) == ("NotFinished", "generating")


def test_an_unusable_folder_is_a_usage_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """Before any request."""
    Path("taken").write_text("")
    ran = midapi("task", task_id, "--wait", "--download", "--folder", "taken")
    assert ran.code == 2
    assert midapi_sandbox.ledger.looks(task_id) == 0


@pytest.mark.midapi_sandbox(auto=True)
def test_waiting_for_a_task(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """--wait ends when the task does."""
    task_id = only(midapi("generate", "a fox [[sandbox: seconds=30]]", "--no-wait").lines)
    ran = midapi("task", task_id, "--wait", "--json")
    assert ran.code == 0
    assert (ran.json["status"], ran.json["files"]) == ("succeeded", [])
    assert f"Task {task_id} is generating: 10 s." in ran.err


@pytest.mark.fault("L14")
def test_a_look_does_not_take_the_result_from_a_bot(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bot's `resume()` still returns the task."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")

    async def order() -> str:
        async with MidAPIClient() as client:
            return (await client.generate("a fox")).task_id

    async def left() -> list[str]:
        async with MidAPIClient() as client:
            return [handle.task_id for handle in await client.resume()]

    task_id = asyncio.run(order())
    midapi_sandbox.finish(task_id)
    midapi_sandbox.faults.on("look", nth=1, do=answer_code(500))  # so that it has to wait
    assert midapi("task", task_id, "--wait").code == 0
    assert midapi("generate", "another fox", "--no-wait").code == 0
    assert asyncio.run(left()) == [task_id]


def test_wait_continues_after_a_failed_first_look(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """A transient fault does not end the wait."""
    midapi_sandbox.finish(task_id)
    midapi_sandbox.faults.on("look", nth=1, do=answer_code(500))
    assert midapi("task", task_id, "--wait").code == 0


def test_a_failed_look_is_an_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """Without --wait there is only one look."""
    midapi_sandbox.faults.on("look", nth=1, do=answer_code(500, "a bad moment"))
    ran = midapi("task", task_id)
    assert ran.code == 1
    assert "MidAPI answered 500: a bad moment." in ran.error


@pytest.mark.parametrize("arguments", [[], ["--wait"], ["--download"]])
def test_a_failed_task_is_an_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str, arguments: list[str]
) -> None:
    """Exit code 1 and the reason, with and without --wait."""
    midapi_sandbox.fail(task_id, message="nsfw [/]")
    ran = midapi("task", task_id, *arguments, "--json")
    assert ran.code == 1
    assert "nsfw [/]" in ran.error
    error = ran.json["error"]
    assert (error["type"], error["task_id"]) == ("PromptRejected", task_id)


def test_ctrl_c_says_how_to_come_back(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """Exit code 130."""
    with ctrl_c_when(lambda: midapi_sandbox.ledger.looks(task_id)):
        ran = midapi("task", task_id, "--wait")
    assert ran.code == 130
    assert f"midapi task {task_id} --wait --download" in ran.error


def test_a_timeout_is_an_error(midapi: Midapi, task_id: str) -> None:
    """Exit code 1, and how to come back."""
    ran = midapi("task", task_id, "--wait", "--timeout", "5")
    assert ran.code == 1
    assert "It goes on: midapi task " in ran.error


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("no-such-task", 1, "is not known to MidAPI"),
        ("../x", 2, "task_id: must be MidAPI's task id"),
    ],
)
def test_an_unknown_or_malformed_task_id_is_an_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, name: str, code: int, says: str
) -> None:
    """Exit code 1 if MidAPI does not know it, 2 if it is malformed."""
    ran = midapi("task", name)
    assert ran.code == code
    assert says in ran.error
