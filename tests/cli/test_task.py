import asyncio
from pathlib import Path

import pytest

from midapi_async import MidAPIClient
from midapi_async.sandbox import SandboxThread, answer_code
from tests.cli.conftest import Midapi, ctrl_c_when, only

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(auto=False)]


@pytest.fixture
def task_id(midapi: Midapi, midapi_sandbox: SandboxThread) -> str:
    """A task that is generating."""
    return str(only(midapi("generate", "a fox", "--no-wait").lines))


def test_one_look_at_an_unfinished_task(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """One request; nothing on stdout, since there are no files; success all the same."""
    ran = midapi("task", task_id)
    assert (ran.code, ran.out) == (0, "")
    assert f"Task {task_id} is generating." in ran.err
    assert midapi_sandbox.ledger.looks(task_id) == 1


def test_one_look_at_a_finished_task(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """Its URLs, and how long it took."""
    midapi_sandbox.finish(task_id)
    ran = midapi("task", task_id)
    assert ran.code == 0
    assert len(ran.lines) == 4
    assert ran.lines[0].startswith(midapi_sandbox.url)
    assert f"Task {task_id} succeeded after " in ran.err


def test_the_files_of_a_finished_task(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """--download: where they are now."""
    midapi_sandbox.finish(task_id)
    ran = midapi("task", task_id, "--download", "--folder", "here")
    assert ran.code == 0
    assert all(Path(line).parent == Path("here") and Path(line).is_file() for line in ran.lines)


def test_the_files_of_an_unfinished_task_are_not_there(midapi: Midapi, task_id: str) -> None:
    """--download without --wait is an error of the task, since a script counts on the files."""
    ran = midapi("task", task_id, "--download", "--json")
    assert ran.code == 1
    assert "Wait for it: midapi task " in ran.error
    assert (
        ran.json["error"]["type"],
        ran.json["error"]["details"]["status"],
    ) == ("NotFinished", "generating")


def test_an_unusable_folder_is_noticed_before_the_wait(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """A usage error, and no look."""
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


def test_l14_looking_at_a_task_of_a_bot_does_not_take_its_result(
    midapi: Midapi, midapi_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bot's `resume()` gives it all the same."""
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


def test_waiting_begins_also_with_a_look_that_fails(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """A passing fault ends no wait."""
    midapi_sandbox.finish(task_id)
    midapi_sandbox.faults.on("look", nth=1, do=answer_code(500))
    assert midapi("task", task_id, "--wait").code == 0


def test_a_look_that_fails_is_told(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str
) -> None:
    """Without --wait there is just that one look."""
    midapi_sandbox.faults.on("look", nth=1, do=answer_code(500, "a bad moment"))
    ran = midapi("task", task_id)
    assert ran.code == 1
    assert "MidAPI answered 500: a bad moment." in ran.error


@pytest.mark.parametrize("arguments", [[], ["--wait"], ["--download"]])
def test_a_failed_task_is_an_error(
    midapi: Midapi, midapi_sandbox: SandboxThread, task_id: str, arguments: list[str]
) -> None:
    """Exit code 1 and why, whether it was waited for or not."""
    midapi_sandbox.fail(task_id, message="nsfw [/]")
    ran = midapi("task", task_id, *arguments, "--json")
    assert ran.code == 1
    assert "nsfw [/]" in ran.error
    assert ("PromptRejected", task_id) == (ran.json["error"]["type"], ran.json["error"]["task_id"])


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
    [("nobody", 1, "is unknown to MidAPI"), ("../x", 2, "task_id: must be MidAPI's task id")],
)
def test_a_task_that_is_none(
    midapi: Midapi, midapi_sandbox: SandboxThread, name: str, code: int, says: str
) -> None:
    """Unknown to MidAPI, or no id at all."""
    ran = midapi("task", name)
    assert code == ran.code
    assert says in ran.error
