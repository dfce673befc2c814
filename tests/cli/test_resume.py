import asyncio
import os
import threading
from pathlib import Path

import pytest

from midapi_async import MemoryJournal, MidAPIClient, SubmissionUnknown
from midapi_async.cli import _resume
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.sandbox import SandboxThread, answer_code, fail_task, gone, lose_answer, never_end
from tests.cli.conftest import Midapi, Ran, ctrl_c_when, only, spawn, wait_until

pytestmark = [pytest.mark.real_time, pytest.mark.midapi_sandbox(time_scale=240)]


@pytest.fixture(autouse=True)
def journal(
    midapi_sandbox: SandboxThread, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of the journal that the environment names."""
    monkeypatch.setenv("MIDAPI_JOURNAL", "journal")
    return elsewhere / "journal"


def buy(*keys: str, namespace: str = "default") -> list[str]:
    """Submit, like a bot that ends before its tasks do; the ids of the tasks."""

    async def submit() -> list[str]:
        async with MidAPIClient(namespace=namespace, rate_limit=None) as client:
            return [(await client.generate("a fox", key=key)).task_id for key in keys]

    return asyncio.run(submit())


def taken(folder: Path) -> dict[str | None, bool]:
    """Which tasks are taken, by key."""

    async def read() -> dict[str | None, bool]:
        journal = SQLiteJournal(folder)
        rows = await journal.rows()
        await journal.aclose()
        return {row.key: row.taken for row in rows}

    return asyncio.run(read())


def task_ids(ran: Ran) -> list[str]:
    """The tasks that a command has printed, in order, each once."""
    return list(dict.fromkeys(line.split()[0] for line in ran.lines))


def test_what_bots_left_behind_is_fetched_once(midapi: Midapi, journal: Path) -> None:
    """A line with id and URL for each file, of every namespace; then there is nothing to do."""
    tasks = [*buy("a", "b"), *buy("c", namespace="other bot")]
    ran = midapi("journal", "resume")
    assert ran.code == 0
    assert sorted(task_ids(ran)) == sorted(tasks)
    assert len(ran.lines) == 12
    assert all(line.split()[1].startswith("http") for line in ran.lines)
    first, *_, last = ran.err.splitlines()  # there may be lines about the progress between them
    assert (first, last) == ("3 tasks are paid for and not taken.", "3 tasks are taken.")
    assert taken(journal) == {"a": True, "b": True, "c": True}
    again = midapi("journal", "resume")
    assert (again.code, again.out, again.err) == (0, "", "Nothing to fetch.\n")


def test_files_are_downloaded_into_a_folder(midapi: Midapi, elsewhere: Path) -> None:
    """The lines name their paths, and the files are there."""
    task = only(buy("a"))
    ran = midapi("journal", "resume", "--to", "new/files")
    paths = [Path(line.removeprefix(f"{task} ")) for line in ran.lines]
    assert len(paths) == 4
    assert all(path.stat().st_size and path.parent == Path("new/files") for path in paths)


def test_json_is_one_object_with_everything(midapi: Midapi, midapi_sandbox: SandboxThread) -> None:
    """What is done, what is left, and the counts of what is not its business."""
    midapi_sandbox.faults.on("task", nth=2, do=never_end())
    done, endless = buy("a", "b")
    ran = midapi("journal", "resume", "--timeout", "400", "--json")
    assert ran.code == 1
    task = only(ran.json["tasks"])
    assert (task["task_id"], task["key"], task["namespace"]) == (done, "a", "default")
    assert (task["status"], len(task["urls"]), task["files"]) == ("succeeded", 4, [])
    left = only(ran.json["left"])
    assert (left["task_id"], left["key"], left["problem"]) == (endless, "b", None)
    counts = {name: ran.json[name] for name in ("unknown", "of_running_programs", "other_services")}
    assert set(counts.values()) == {0}
    ran = midapi("journal", "resume", "--timeout", "0", "--json")
    assert (ran.json["tasks"], ran.json["left"]) == ([], [left])


def test_a_failed_task_is_said_and_taken(
    midapi: Midapi, midapi_sandbox: SandboxThread, journal: Path
) -> None:
    """Its reason is on stderr, and the exit code is 1; later it does not come again."""
    midapi_sandbox.faults.on("task", nth=1, do=fail_task("the fox ran away"))
    failed, done = buy("a", "b")
    ran = midapi("journal", "resume")
    assert (ran.code, task_ids(ran)) == (1, [done])
    line = only([line for line in ran.err.splitlines() if failed in line])
    assert "the fox ran away" in line
    assert "taken" in line
    assert ran.err.splitlines()[-1] == "2 tasks are taken, 1 of them failed."
    assert taken(journal) == {"a": True, "b": True}
    assert midapi("journal", "resume").code == 0


def test_a_result_is_taken_only_when_it_was_printed(
    midapi: Midapi, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that fails, the rest comes again, with or without JSON."""
    buy("a", "b", "c")
    first: list[str] = []

    def breaks(line: object) -> None:
        task_id = str(line).split()[0]
        if first and task_id != first[0]:
            raise OSError("disk full")
        first[:] = [task_id]

    def breaks_at_once(_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(_resume, "out_json", breaks_at_once)
        assert midapi("journal", "resume", "--json").code == 1
        assert set(taken(journal).values()) == {False}
        patch.setattr(_resume, "out", breaks)
        assert midapi("journal", "resume").code == 1
    assert sorted(taken(journal).values()) == [False, False, True]
    assert len(task_ids(midapi("journal", "resume"))) == 2


def test_a_result_is_taken_only_when_its_files_are_there(
    midapi: Midapi, midapi_sandbox: SandboxThread, journal: Path
) -> None:
    """A download that fails is said, and the next run tries it again."""
    bad, good = buy("a", "b")
    midapi_sandbox.faults.on("file", when=lambda call: bad in call.path, do=gone())
    ran = midapi("journal", "resume", "--to", "files")
    assert (ran.code, task_ids(ran)) == (1, [good])
    assert f"Task {bad} is left: " in ran.err
    assert taken(journal) == {"a": False, "b": True}
    midapi_sandbox.faults.clear()
    assert task_ids(midapi("journal", "resume", "--to", "files")) == [bad]


def test_a_killed_run_loses_nothing(midapi: Midapi) -> None:
    """Each task is printed by it or by the next run."""
    tasks = buy(*(f"key {n}" for n in range(12)))
    with spawn("journal", "resume") as process:
        assert process.stdout is not None
        printed = [process.stdout.readline().split()[0] for _ in range(6)]
        process.kill()
        printed += [line.split()[0] for line in process.stdout if line.endswith("\n")]
    assert set(printed) | set(task_ids(midapi("journal", "resume"))) == set(tasks)


def test_timeout_0_takes_only_what_is_finished(
    midapi: Midapi, midapi_sandbox: SandboxThread, journal: Path
) -> None:
    """One look at each task, which needs no callback and no earlier look."""
    midapi_sandbox.faults.on("task", nth=2, do=never_end())
    done, _ = buy("a", "b")
    wait_until(lambda: _is_final(done))
    ran = midapi("journal", "resume", "--timeout", "0")
    assert (ran.code, task_ids(ran)) == (1, [done])
    assert ran.err.splitlines()[-1] == "1 task is not finished: run this again later."
    assert taken(journal) == {"a": True, "b": False}


def _is_final(task_id: str) -> bool:
    async def look() -> bool:
        async with MidAPIClient(journal=MemoryJournal()) as client:
            return (await client.details(task_id)).is_final

    return asyncio.run(look())


def test_a_task_that_midapi_does_not_show_is_left(
    midapi: Midapi, midapi_sandbox: SandboxThread, journal: Path
) -> None:
    """With the reason; the others are fetched."""
    bad, good = buy("a", "b")
    midapi_sandbox.faults.on("look", task=bad, do=answer_code(500, "a bad moment"))
    ran = midapi("journal", "resume", "--timeout", "300")
    assert (ran.code, task_ids(ran)) == (1, [good])
    line = only([line for line in ran.err.splitlines() if line.startswith(f"Task {bad} is left")])
    assert "a bad moment" in line
    assert taken(journal) == {"a": False, "b": True}


def test_ctrl_c_leaves_the_rest(
    midapi: Midapi, midapi_sandbox: SandboxThread, journal: Path
) -> None:
    """Exit code 130, and one line says how to go on."""
    midapi_sandbox.faults.on("task", nth=2, do=never_end())
    done, _ = buy("a", "b")
    with ctrl_c_when(lambda: taken(journal)["a"]):
        ran = midapi("journal", "resume")
    assert (ran.code, task_ids(ran)) == (130, [done])
    assert "midapi journal resume again" in ran.error
    assert taken(journal) == {"a": True, "b": False}


def test_a_running_bot_keeps_its_tasks(midapi: Midapi, journal: Path) -> None:
    """They are counted, with its process, and it gets its result."""
    got: list[str] = []
    submitted, may_wait = threading.Event(), threading.Event()

    async def bot() -> None:
        async with MidAPIClient() as client:
            handle = await client.generate("a fox", key="its own")
            submitted.set()
            await asyncio.to_thread(may_wait.wait, 20)
            got.append((await handle).task_id)

    theirs = only(buy("left behind", namespace="dead bot"))
    thread = threading.Thread(target=lambda: asyncio.run(bot()))
    thread.start()
    try:
        wait_until(submitted.is_set)
        ran = midapi("journal", "resume")
        assert (ran.code, task_ids(ran)) == (0, [theirs])
        assert f"1 task is left to a running program (process {os.getpid()})." in ran.err
        assert taken(journal) == {"left behind": True, "its own": False}
    finally:
        may_wait.set()
        thread.join(20)
    assert len(got) == 1


def test_what_is_not_meant_stays(
    midapi: Midapi, midapi_sandbox: SandboxThread, journal: Path
) -> None:
    """Other namespaces, other services and unknown submissions; one line for each."""
    midapi_sandbox.faults.on("submit", nth=2, do=lose_answer())
    task = only(buy("a"))
    with pytest.raises(SubmissionUnknown):
        buy("b")
    buy("c", namespace="other")
    ran = midapi("journal", "resume", "--namespace", "default", "--folder", "journal")
    assert task_ids(ran) == [task]
    assert "midapi journal list unknown --folder journal" in only(
        [line for line in ran.err.splitlines() if "unknown" in line]
    )
    assert taken(journal) == {"a": True, "b": False, "c": False}
    ran = midapi("journal", "resume", "--base-url", "http://127.0.0.1:1")
    assert ran.err.splitlines() == [
        "Nothing to fetch.",
        "1 task is of another service: name it with --base-url.",
    ]
    assert taken(journal)["c"] is False


@pytest.mark.parametrize("arguments", [("--timeout", "-1"), ("--base-url", "nothing")])
def test_a_wrong_option_is_a_usage_error(midapi: Midapi, arguments: tuple[str, ...]) -> None:
    """Before anything is looked at."""
    buy("a")
    ran = midapi("journal", "resume", *arguments)
    assert (ran.code, ran.out) == (2, "")
