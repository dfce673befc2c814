"""Several processes on one folder; run as a program by `test_processes.py`.

It forks from a process that has imported everything. A child tells through a pipe what the journal
has confirmed to it, so that its parent knows what must be there after it was killed.

    python -m tests.journal.processes kill FOLDER ROUNDS SEED
    python -m tests.journal.processes race FOLDER
    python -m tests.journal.processes fork FOLDER
    python -m tests.journal.processes outlive FOLDER
"""

import asyncio
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path

import attrs
import pytest

from midapi_async.errors import JournalError
from midapi_async.journal import State
from midapi_async.journal.sqlite import SQLiteJournal
from tests.journal.world import SCOPE, intent

Main = Callable[[Callable[[str], None]], Coroutine[object, object, None]]


@attrs.frozen
class Child:
    """A forked process, and the pipe through which it tells."""

    process: int
    pipe: int

    def told(self) -> list[str]:
        """Everything that it said before it ended; the line that it died in is left out."""
        with os.fdopen(self.pipe, "rb") as pipe:
            return pipe.read().decode().split("\n")[:-1]

    def ended(self) -> int:
        """How it ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def fork(main: Main) -> Child:
    """Run a coroutine in a child, with a function that tells the parent a line."""
    reads, writes = os.pipe()
    process = os.fork()
    if process:
        os.close(writes)
        return Child(process, reads)
    os.close(reads)
    status = 1
    try:
        asyncio.run(main(lambda line: (os.write(writes, f"{line}\n".encode()), None)[1]))
        status = 0
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(status)


# ─── killed at random ────────────────────────────────────────────────────────────────────────────


def writer(folder: Path) -> Main:
    """Claims and moves on, eight at a time, until it is killed."""

    async def write(tell: Callable[[str], None]) -> None:
        journal = SQLiteJournal(folder)
        await asyncio.gather(*(one_after_another(journal, tell) for _ in range(8)))

    return write


async def one_after_another(journal: SQLiteJournal, tell: Callable[[str], None]) -> None:
    """Tells what is confirmed."""
    while True:
        row = await journal.claim(intent(key=os.urandom(8).hex(), metadata={"n": "x" * 300}))
        tell(f"sending {row.intent_id}")
        await journal.advance(row.intent_id, State.ACCEPTED, task_id=f"t-{row.intent_id}")
        tell(f"accepted {row.intent_id}")
        await journal.advance(row.intent_id, State.SUCCEEDED, taken=True)
        tell(f"succeeded {row.intent_id}")


def visitor(folder: Path) -> Main:
    """Comes and goes, as a command line does."""

    async def visit(tell: Callable[[str], None]) -> None:
        while True:
            journal = SQLiteJournal(folder)
            await journal.rows(SCOPE, State.UNKNOWN)
            await journal.claim(intent())
            await journal.aclose()

    return visit


def kill(folder: Path, rounds: int, seed: int) -> None:
    """Kill writers and a visitor again and again; what was confirmed is always there."""
    chance = random.Random(seed)
    confirmed: dict[Path, dict[str, int]] = {}
    for number in range(rounds):
        place = folder / str(number // 4)
        seen = confirmed.setdefault(place, {})
        children = [fork(make(place)) for make in (writer, writer, visitor)]
        chance.shuffle(children)
        for child in children:
            time.sleep(chance.choice([0.0, 0.005, 0.02, 0.06]) * chance.random())
            os.kill(child.process, signal.SIGKILL)
        for child in children:
            for line in child.told():
                state, _, name = line.partition(" ")
                seen[name] = max(seen.get(name, 0), STEPS[State(state)])
            assert child.ended() == -signal.SIGKILL
        asyncio.run(verify(place, seen))
    print(f"{sum(map(len, confirmed.values()))} intents were confirmed and kept")


STEPS = {State.SENDING: 0, State.UNKNOWN: 0, State.ACCEPTED: 1, State.SUCCEEDED: 2}


async def verify(folder: Path, confirmed: dict[str, int]) -> None:
    """Everything that was confirmed is there, nothing is half there, nobody seems to send."""
    journal = SQLiteJournal(folder)
    untaken = await journal.take_over(SCOPE)
    rows = {row.intent_id: row for row in await journal.rows(SCOPE)}
    for name, step in confirmed.items():
        assert step <= STEPS[rows[name].state], (name, step, rows[name])
    for row in rows.values():
        assert row.state is not State.SENDING
        assert (row.task_id == f"t-{row.intent_id}") == (STEPS[row.state] > 0)
    accepted = [row.intent_id for row in rows.values() if row.state is State.ACCEPTED]
    assert accepted == [row.intent_id for row in untaken]
    report = await journal.check()
    assert (report.owners, report.problems) == (1, ())
    assert len(list((folder / "owners").iterdir())) == 1
    await journal.aclose()


# ─── racing ──────────────────────────────────────────────────────────────────────────────────────


def racer(folder: Path, number: int) -> Main:
    """Claims 200 keys in an order of its own."""

    async def run(tell: Callable[[str], None]) -> None:
        journal = SQLiteJournal(folder)
        keys = [f"key-{n}" for n in range(200)]
        random.Random(number).shuffle(keys)

        async def claim(key: str) -> None:
            mine = intent(key=key)
            row = await journal.claim(mine)
            tell(f"{key} {row.intent_id} {row.intent_id == mine.intent_id}")

        for start in range(0, 200, 5):
            await asyncio.gather(*map(claim, keys[start : start + 5]))
        await asyncio.sleep(0.5)  # who is still racing must find us alive
        await journal.aclose()

    return run


def race(folder: Path) -> None:
    """Four processes, 200 keys, 200 winners, and everybody knows who won."""
    children = [fork(racer(folder, number)) for number in range(4)]
    lines = [line.split(" ") for child in children for line in child.told()]
    assert [child.ended() for child in children] == [0] * 4
    assert len(lines) == 800
    assert len({(key, name) for key, name, _ in lines}) == 200
    assert sum(won == "True" for *_, won in lines) == 200
    print("200 keys, 200 winners")


# ─── forking with an open journal ────────────────────────────────────────────────────────────────


def fork_while_open(folder: Path) -> None:
    """A child neither uses nor disturbs what its parent has open, not even by ending."""
    # No loop lives while it forks: by ending, the child would close it for the parent.
    journal = SQLiteJournal(folder)
    for number in range(20):
        asyncio.run(claim(journal))  # after the first one it tidies, while this thread forks
        busy = threading.Thread(target=lambda: [asyncio.run(claim(journal)) for _ in range(5)])
        busy.start()
        process = os.fork()
        if process == 0:
            asyncio.run(try_all_ways(journal, folder, f"elsewhere {number}"))
            sys.exit()  # with everything that happens at an interpreter's end
        busy.join()
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (folder / "journal.sqlite-wal").stat().st_size > 0
    asyncio.run(claim(journal))
    assert len(asyncio.run(journal.rows(SCOPE, State.SENDING))) == 121
    assert asyncio.run(journal.check()).problems == ()
    asyncio.run(journal.aclose())
    look = fork(lambda tell: expect(folder, State.UNKNOWN, 121))
    assert look.told() == []
    assert look.ended() == 0
    print("the child was refused, and the parent went on")


async def claim(journal: SQLiteJournal) -> None:
    """Write a row."""
    await journal.claim(intent())


async def try_all_ways(inherited: SQLiteJournal, folder: Path, name: str) -> None:
    """What a child may not do, and what it may."""
    anew = SQLiteJournal(folder)
    await refused(inherited, "was opened in the parent process")
    await refused(anew, "was open in the parent process when this one was forked")
    await inherited.aclose()
    await anew.aclose()
    elsewhere = SQLiteJournal(folder.with_name(name))
    await elsewhere.claim(intent())
    await elsewhere.aclose()


async def refused(journal: SQLiteJournal, told: str) -> None:
    """It is an error that says so."""
    with pytest.raises(JournalError, match=told):
        await journal.claim(intent())


async def expect(folder: Path, state: State, count: int) -> None:
    """A process that was not forked with the journal open sees so many rows in a state."""
    journal = SQLiteJournal(folder)
    assert count == len(await journal.rows(SCOPE, state))
    await journal.aclose()


def outlive(folder: Path) -> None:
    """A child that lives on does not make its dead parent an owner that lives."""

    async def leave_a_child(tell: Callable[[str], None]) -> None:
        journal = SQLiteJournal(folder)
        await journal.claim(intent())
        if child := os.fork():
            tell(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # noqa: ASYNC251 - this process does nothing any more

    parent = fork(leave_a_child)
    with os.fdopen(parent.pipe) as pipe:
        child = int(pipe.readline())
        assert parent.ended() == -signal.SIGKILL
        try:
            time.sleep(0.5)  # a child lets go in its first moments
            asyncio.run(expect(folder, State.UNKNOWN, 1))
        finally:
            os.kill(child, signal.SIGKILL)
    print("the child lived, its parent did not")


if __name__ == "__main__":
    what, where, *numbers = sys.argv[1:]
    if what == "kill":
        kill(Path(where), *map(int, numbers))
    else:
        {"race": race, "fork": fork_while_open, "outlive": outlive}[what](Path(where))
