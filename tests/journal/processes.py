"""Several processes on one folder; run as a program by `test_processes.py`.

It forks from a process that has imported everything. A child reports through a pipe what the
journal has confirmed to it, so that its parent knows what must be there after it was killed.

    python -m tests.journal.processes kill FOLDER ROUNDS SEED
    python -m tests.journal.processes race FOLDER
    python -m tests.journal.processes fork FOLDER
    python -m tests.journal.processes outlive FOLDER
    python -m tests.journal.processes stop FOLDER
    python -m tests.journal.processes settle FOLDER
    python -m tests.journal.processes prompt FOLDER
"""

import asyncio
import fcntl
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path

import attrs
import pytest

from midapi_async.errors import JournalError
from midapi_async.journal import Claimed, State
from midapi_async.journal.sqlite import SQLiteJournal, locks
from tests.journal.world import (
    SCOPE,
    accepted,
    claim,
    claimed,
    ids,
    intent,
    late_locks_end,
    standing,
)

Main = Callable[[Callable[[str], None]], Coroutine[object, object, None]]


@attrs.frozen
class Child:
    """A forked process, and the pipe through which it reports."""

    process: int
    pipe: int

    def line(self) -> str:
        """The next line that it reports."""
        read = bytearray()
        while not read.endswith(b"\n"):
            some = os.read(self.pipe, 1)
            assert some, "the child ended"
            read += some
        return read.decode().rstrip("\n")

    def lines(self) -> list[str]:
        """Everything that it reports before it ends; the line that it died in is left out."""
        with os.fdopen(self.pipe, "rb") as pipe:
            return pipe.read().decode().split("\n")[:-1]

    def ended(self) -> int:
        """How it ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.process, number)


def fork(main: Main) -> Child:
    """Run a coroutine in a child, with a function that reports a line to its parent."""
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

    async def write(report: Callable[[str], None]) -> None:
        journal = SQLiteJournal(folder)
        await asyncio.gather(*(one_after_another(journal, report) for _ in range(8)))

    return write


async def one_after_another(journal: SQLiteJournal, report: Callable[[str], None]) -> None:
    """Report what is confirmed."""
    while True:
        row = await claimed(journal, intent(key=os.urandom(8).hex(), metadata={"n": "x" * 300}))
        report(f"sending {row.intent_id}")
        await journal.advance(row.intent_id, State.ACCEPTED, task_id=f"t-{row.intent_id}")
        report(f"accepted {row.intent_id}")
        await journal.advance(row.intent_id, State.SUCCEEDED, taken=True)
        report(f"succeeded {row.intent_id}")


def visitor(folder: Path) -> Main:
    """Comes and goes, as a command line does."""

    async def visit(report: Callable[[str], None]) -> None:
        while True:
            journal = SQLiteJournal(folder)
            await ids(journal, State.UNKNOWN)
            await claim(journal, intent())
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
            time.sleep(chance.choice([0.0, 0.01, 0.04, 0.12]) * chance.random())
            os.kill(child.process, signal.SIGKILL)
        for child in children:
            for line in child.lines():
                state, _, name = line.partition(" ")
                seen[name] = max(seen.get(name, 0), STEPS[State(state)])
            assert child.ended() == -signal.SIGKILL
        asyncio.run(verify(place, seen))
    print(f"{sum(map(len, confirmed.values()))} intents were confirmed and kept")


STEPS = {State.SENDING: 0, State.UNKNOWN: 0, State.ACCEPTED: 1, State.SUCCEEDED: 2}


async def verify(folder: Path, confirmed: dict[str, int]) -> None:
    """Everything confirmed is there, nothing is half there, and nothing seems to be being sent."""
    journal = SQLiteJournal(folder)
    await journal.take_over(SCOPE)
    untaken = await journal.rows(SCOPE, states=[State.ACCEPTED], mine=True, limit=10**6)
    rows = {row.intent_id: row for row in await journal.rows(SCOPE, limit=10**6)}
    for name, step in confirmed.items():
        assert step <= STEPS[rows[name].state], (name, step, rows[name])
    for row in rows.values():
        assert row.state is not State.SENDING
        assert (row.task_id == f"t-{row.intent_id}") == (STEPS[row.state] > 0)
    bought = [row.intent_id for row in rows.values() if row.state is State.ACCEPTED]
    assert [row.intent_id for row in untaken] == bought
    assert await journal.check() == []
    # No file of a dead owner is left; ours is there if there was anything to take over.
    owners = (await journal.stats()).owners
    assert owners == len(list((folder / "owners").iterdir())) <= 1
    await journal.aclose()


# ─── racing ──────────────────────────────────────────────────────────────────────────────────────


def racer(folder: Path, number: int) -> Main:
    """Claims 200 keys in an order of its own."""

    async def run(report: Callable[[str], None]) -> None:
        journal = SQLiteJournal(folder)
        keys = [f"key-{n}" for n in range(200)]
        random.Random(number).shuffle(keys)

        async def race_for(key: str) -> None:
            mine = intent(key=key)
            answer = await claim(journal, mine)
            won = isinstance(answer, Claimed)
            row = mine if won else answer.intent  # type: ignore[union-attr]  # never busy
            report(f"{key} {row.intent_id} {won}")

        for start in range(0, 200, 5):
            await asyncio.gather(*map(race_for, keys[start : start + 5]))
        await asyncio.sleep(0.5)  # those that still race must find us alive
        await journal.aclose()

    return run


def race(folder: Path) -> None:
    """Four processes, 200 keys, 200 winners, and all processes know which row won."""
    children = [fork(racer(folder, number)) for number in range(4)]
    lines = [line.split(" ") for child in children for line in child.lines()]
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
    for number in range(8):
        asyncio.run(write_a_row(journal))  # after the first one it tidies, while this thread forks
        busy = threading.Thread(
            target=lambda: [asyncio.run(write_a_row(journal)) for _ in range(5)]
        )
        busy.start()
        process = os.fork()
        if process == 0:
            asyncio.run(try_all_ways(journal, folder, f"elsewhere {number}"))
            sys.exit()  # with everything that happens at an interpreter's end
        busy.join()
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (folder / "journal.sqlite-wal").stat().st_size > 0
    asyncio.run(write_a_row(journal))
    assert len(asyncio.run(ids(journal))) == 49
    assert asyncio.run(journal.check()) == []
    asyncio.run(journal.aclose())
    look = fork(lambda report: expect(folder, State.UNKNOWN, 49))
    assert look.lines() == []
    assert look.ended() == 0
    print("the child was refused, and the parent went on")


async def write_a_row(journal: SQLiteJournal) -> None:
    """In an event loop that is closed afterwards, so that its owner is dead."""
    await claimed(journal)


async def try_all_ways(inherited: SQLiteJournal, folder: Path, name: str) -> None:
    """What a child may not do, and what it may."""
    another = SQLiteJournal(folder)
    await refused(inherited, "was opened in the parent process")
    await refused(another, "was open in the parent process when this process was forked")
    await inherited.aclose()
    await another.aclose()
    elsewhere = SQLiteJournal(folder.with_name(name))
    await claimed(elsewhere)
    await elsewhere.aclose()


async def refused(journal: SQLiteJournal, message: str) -> None:
    """It is an error that says so."""
    with pytest.raises(JournalError, match=message):
        await claimed(journal)


async def expect(folder: Path, state: State, count: int) -> None:
    """A process that was not forked with the journal open sees so many rows in a state."""
    journal = SQLiteJournal(folder)
    assert len(await ids(journal, state)) == count
    await journal.aclose()


def outlive(folder: Path) -> None:
    """A child that lives on does not make its dead parent an owner that lives."""

    async def leave_a_child(report: Callable[[str], None]) -> None:
        journal = SQLiteJournal(folder)
        await claimed(journal)
        if child := os.fork():
            report(str(child))
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


# ─── dead and stopped owners ─────────────────────────────────────────────────────────────────────


def stop(folder: Path) -> None:
    """A stopped process holds the lock: errors in time; the lock that comes late is given back.

    Its owner is alive all the while, so that its rows stay as they are.
    """

    async def hold(report: Callable[[str], None]) -> None:
        journal = SQLiteJournal(folder)
        await claimed(journal, intent(key="k"))
        report("ready")
        async with aclosing(journal.changes()) as changes:
            async for _ in changes:
                if await journal.notes(SCOPE, "go"):
                    break

        def work(_: object) -> None:
            report(str(os.getpid()))
            time.sleep(2)  # stopped here

        await journal._opened().do(work, writes=True)
        report("went on")
        await asyncio.sleep(60)

    async def wait(child: Child) -> None:
        journal = SQLiteJournal(folder)
        child.line()
        found = await journal.find(key=(SCOPE, "k"))
        assert found is not None
        await journal.note(SCOPE, "go", "now", "yes")
        child.line()
        child.signal(signal.SIGSTOP)
        started = time.monotonic()
        calls = [claim(journal, intent()) for _ in range(5)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        took = time.monotonic() - started
        assert [type(error) for error in errors] == [JournalError] * 5
        assert f"locked for more than 2 s by process {child.process}" in str(errors[0])
        assert 1.9 < took < 4
        assert await journal.rows(SCOPE) == [found]  # readers need no lock
        # The journal is closed while its late lock is waited for; a file that is opened then has
        # perhaps the number of that lock's descriptor, and must stay open.
        await journal.aclose()
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
        child.signal(signal.SIGCONT)
        assert child.line() == "went on"
        another = SQLiteJournal(folder)
        started = time.monotonic()
        await claimed(another)
        assert time.monotonic() - started < 5
        assert found.state is State.SENDING
        assert (await standing(another, intent(key="k"))).intent == found
        for descriptor in others:
            assert os.path.samestat(os.fstat(descriptor), Path(os.devnull).stat())
            os.close(descriptor)
        await late_locks_end()
        await another.aclose()

    child = fork(hold)
    assert locks.LOCK_TIMEOUT == 10.0
    locks.LOCK_TIMEOUT = 2.0
    try:
        asyncio.run(wait(child))
    finally:
        child.signal(signal.SIGKILL)
        child.ended()
    print("the late lock was given back")


def settle(folder: Path) -> None:
    """Of a killed process SENDING becomes UNKNOWN, RESTING REFUSED; the rest is ours."""

    async def work(report: Callable[[str], None]) -> None:
        journal = SQLiteJournal(folder)
        await claimed(journal, intent(key="sending"))
        answer = await claim(journal, intent(key="resting"))
        assert isinstance(answer, Claimed)
        await journal.release(answer.slot, sent=True)
        await accepted(journal, intent(key="accepted"))
        report("ready")
        await asyncio.sleep(60)

    async def states(journal: SQLiteJournal) -> dict[str | None, State]:
        return {row.key: row.state for row in await journal.rows(SCOPE)}

    async def look(child: Child) -> None:
        journal = SQLiteJournal(folder)
        await claimed(journal, intent(key="ours"))
        assert child.line() == "ready"
        before = {"sending": State.SENDING, "resting": State.RESTING, "accepted": State.ACCEPTED}
        assert await states(journal) == {"ours": State.SENDING} | before
        await journal.take_over(SCOPE)
        assert [row.key for row in await journal.rows(SCOPE, mine=True)] == ["ours"]
        child.signal(signal.SIGKILL)
        child.ended()
        after = {"sending": State.UNKNOWN, "resting": State.REFUSED, "accepted": State.ACCEPTED}
        assert await states(journal) == {"ours": State.SENDING} | after
        await journal.take_over(SCOPE)
        mine = [row.key for row in await journal.rows(SCOPE, mine=True)]
        assert sorted(map(str, mine)) == ["accepted", "ours", "sending"]
        await claimed(journal, intent(key="resting"))
        await journal.aclose()

    asyncio.run(look(fork(work)))
    print("the dead owner's rows were settled")


def prompt(folder: Path) -> None:
    """Four processes claim as fast as they can; how long a claim takes, 99 of 100 times.

    Beside it: the same with a blocking flock and nothing else, on a machine as busy as this one.
    """

    async def measure(step: Callable[[], Coroutine[object, object, object]]) -> str:
        took = []
        for _ in range(100):
            started = time.monotonic()
            await step()
            took.append(time.monotonic() - started)
            await asyncio.sleep(0.005)
        return " ".join(map(str, took))

    async def write(report: Callable[[str], None]) -> None:
        journal = SQLiteJournal(folder)
        report(await measure(lambda: claim(journal, intent())))
        await journal.aclose()

    async def only_lock(report: Callable[[str], None]) -> None:
        descriptor = os.open(folder / "reference", os.O_RDWR | os.O_CREAT)

        def hold() -> None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = time.thread_time() + 0.001
            while time.thread_time() < end:
                pass
            fcntl.flock(descriptor, fcntl.LOCK_UN)

        report(await measure(lambda: asyncio.to_thread(hold)))

    for name, main in (("claim", write), ("reference", only_lock)):
        children = [fork(main) for _ in range(4)]
        times = sorted(float(each) for child in children for each in child.lines()[0].split())
        assert [child.ended() for child in children] == [0] * 4
        print(f"{name} {times[len(times) * 99 // 100] * 1000:.1f} ms")


if __name__ == "__main__":
    what, where, *numbers = sys.argv[1:]
    if what == "kill":
        kill(Path(where), *map(int, numbers))
    else:
        {
            "race": race,
            "fork": fork_while_open,
            "outlive": outlive,
            "stop": stop,
            "settle": settle,
            "prompt": prompt,
        }[what](Path(where))
