"""One gate for all clients of an account: in one event loop, and in all processes of a folder."""

import asyncio
import errno
import fcntl
import gc
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midapi_async import ClientClosed, JournalError, MidAPIClient, RateLimit
from midapi_async._runtime.clock import Clock
from midapi_async._submission import gate as _ratelimit
from midapi_async._submission.gate import Gate, Line, shared_gate
from midapi_async.journal import _slots
from midapi_async.journal._slots import SlotFile, Table
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.testing import VirtualLoop
from tests.journal.world import quick_folder
from tests.support.scripted import Answer, Fault, Received, ScriptedServer, hang
from tests.support.secrets import API_KEY
from tests.support.stepper import cancel_at_each_step
from tests.test_ratelimit import busiest_window, now, through
from tests.world import accepted, refused, submits

ROOT = Path(__file__).parents[1]
TEN = RateLimit(10, per=10.0)


@contextmanager
def closing(gates: list[Gate]) -> Iterator[list[Gate]]:
    """Gates that are closed in the end."""
    try:
        yield gates
    finally:
        for gate in gates:
            gate.close()


def in_memory(number: int, limit: RateLimit | None, scale: float = 1.0) -> list[Gate]:
    """The gates of so many clients of one account in this loop."""
    return [shared_gate("account", limit, Clock(scale)) for _ in range(number)]


def on_file(folder: Path, number: int, limit: RateLimit | None) -> list[Gate]:
    """Gates that share a file and no line: as in so many processes, in one loop."""
    (folder / "gates").mkdir(parents=True, exist_ok=True)
    clock = Clock()
    return [
        Gate(limit, clock, Line(SlotFile(folder, "account", limit), clock.loop))
        for _ in range(number)
    ]


def file_of(gate: Gate) -> SlotFile:
    place = gate._line.place
    assert isinstance(place, SlotFile)
    return place


def die(gate: Gate) -> None:
    """What a SIGKILL does: the locks are gone, the files stay."""
    file_of(gate)._files.abandon()


async def one(gate: Gate, name: object, turns: list[object], latency: float = 0.0) -> None:
    """One POST."""
    await gate.enter()
    turns.append(name)
    await asyncio.sleep(latency)
    gate.leave()


# ─── in one event loop ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("clients", [2, 3])
async def test_several_clients_are_served_as_they_come(clients: int) -> None:
    """First come, first served, whichever client it came with; exact to the moment."""
    with closing(in_memory(clients, RateLimit(2, per=5))) as gates:
        turns, begun = list[object](), now()
        order = [random.Random(4).randrange(clients) for _ in range(12)]
        named = [(number, client) for number, client in enumerate(order)]
        moments = list[float]()

        async def post(name: tuple[int, int]) -> None:
            await one(gates[name[1]], name, turns)
            moments.append(now() - begun)

        await asyncio.gather(*map(post, named))
        assert named == turns
        assert [5.0 * (number // 2) for number in range(12)] == pytest.approx(moments, abs=1e-4)


async def test_together_they_stay_below_the_limit() -> None:
    """Three clients, one window: 20 in any 10 s, at nearly the whole rate."""
    with closing(in_memory(3, RateLimit(20, per=10))) as gates:
        arrivals, begun, chance = list[float](), now(), random.Random(8)
        posts = [through(gates[n % 3], chance.random(), 0.5, arrivals) for n in range(300)]
        await asyncio.gather(*posts)
        assert busiest_window(arrivals, 10.0) == 20
        assert 300 / (now() - begun) >= 0.9 * 2.0


async def test_others_do_not_share() -> None:
    """Another account, limit or time scale is another line; None is a limit of its own."""
    clock, other = Clock(), Clock(2.0)
    gates = [
        shared_gate("account", TEN, clock),
        shared_gate("other", TEN, clock),
        shared_gate("account", RateLimit(10, per=9.0), clock),
        shared_gate("account", TEN, other),
        shared_gate("account", None, clock),
    ]
    with closing(gates):
        assert len(gates) == len({gate._line for gate in gates})
        assert gates[0]._line is shared_gate("account", TEN, Clock())._line


async def test_the_registry_keeps_nothing_alive() -> None:
    """When the last gate is gone, its line is; the account's key is nowhere."""
    gates = in_memory(2, TEN)
    lines = _ratelimit._lines[asyncio.get_running_loop()]
    assert len(lines) == 1
    assert "account" not in repr(dict(lines))
    gates.pop()
    gc.collect()
    assert len(lines) == 1
    gates.pop()
    gc.collect()
    assert len(lines) == 0


async def test_closing_one_client_leaves_the_others_their_places() -> None:
    """Only its own waiters get ClientClosed; what it had in flight comes back to the others."""
    with closing(in_memory(2, RateLimit(1, per=5))) as (first, second):
        await first.enter()
        leaving, staying = asyncio.create_task(first.enter()), asyncio.create_task(second.enter())
        await asyncio.sleep(1)
        assert (first.waiting, second.waiting) == (1, 1)
        first.close()
        with pytest.raises(ClientClosed):
            await leaving
        with pytest.raises(ClientClosed):
            await first.enter()
        assert (first.waiting, second.waiting) == (0, 1)
        begun = now()
        first.leave()
        await staying
        assert 5.0 <= now() - begun <= 5.01


async def test_s06_a_429_of_one_client_pauses_all() -> None:
    """The limit is the account's, and so is its pause."""
    with closing(in_memory(2, TEN)) as (first, second):
        first.slow_down(3.0)
        begun = now()
        await second.enter()
        assert 3.0 <= now() - begun <= 3.01
        assert repr(second) == "<Gate 4 of 10 free, 0 waiting>"


# ─── with whole clients ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


@asynccontextmanager
async def clients_of(
    server: ScriptedServer, *journals: object, **options: object
) -> AsyncIterator[list[MidAPIClient]]:
    chosen = {"rate_limit": RateLimit(3, per=10.0), **options}
    clients = [
        MidAPIClient(API_KEY, base_url=server.url, journal=journal, **chosen)  # type: ignore[arg-type]
        for journal in journals
    ]
    try:
        for client in clients:
            await client.open()
        yield clients
    finally:
        for client in clients:
            await client.aclose()


@pytest.mark.parametrize("place", ["memory", "one folder", "two folders"])
async def test_clients_of_one_account_share_their_gate(folder: Path, place: str) -> None:
    """Two clients send no more than one may, unless their journals are in different places."""
    arrivals = list[float]()

    def answer(request: Received) -> Answer:
        arrivals.append(now())
        return accepted(f"task-{len(arrivals)}")

    journals = {
        "memory": (None, None),
        "one folder": (folder, folder),
        "two folders": (folder, folder.with_name("other")),
    }[place]
    async with (
        ScriptedServer(then=answer) as server,
        clients_of(server, *journals) as clients,
    ):
        posts = [client.generate("a red fox") for client in clients for _ in range(6)]
        await asyncio.gather(*posts)
    assert len(arrivals) == 12
    assert (6 if place == "two folders" else 3) == busiest_window(arrivals, 10.0)


async def test_a_journal_without_slots_has_no_shared_file(folder: Path) -> None:
    """`slots` is none of the seven methods: without it the gate is the loop's own."""

    class Bare:
        def __init__(self) -> None:
            self._inner = SQLiteJournal(folder)

        def __getattr__(self, name: str) -> object:
            if name == "slots":
                raise AttributeError(name)
            return getattr(self._inner, name)

    bare = Bare()
    async with (
        ScriptedServer(then=accepted()) as server,
        clients_of(server, bare) as (client,),
    ):
        await client.generate("a red fox")
    await bare._inner.aclose()
    assert not (folder / "gates").exists()


async def test_i5_nothing_in_the_folder_names_the_account(folder: Path) -> None:
    """No file's name or content holds the key; the files are private; none is open afterwards."""
    async with (
        ScriptedServer(then=accepted()) as server,
        clients_of(server, folder) as (client,),
    ):
        await client.generate("a red fox")
        files = [path for path in (folder / "gates").rglob("*") if path.is_file()]
        assert len(files) == 2
        for path in files:
            assert API_KEY not in str(path)
            assert API_KEY.encode() not in path.read_bytes()
            assert path.stat().st_mode & 0o777 == 0o600
        assert all(path.parent.stat().st_mode & 0o777 == 0o700 for path in files)
    assert [path.name for path in (folder / "gates").rglob("*") if path.is_file()] == ["slots"]


async def test_s18_giving_up_at_a_shared_gate_leaves_nothing(folder: Path) -> None:
    """Nothing is written and nothing sent, and the next one is not held up."""
    async with (
        ScriptedServer(then=accepted()) as server,
        clients_of(server, folder, rate_limit=RateLimit(1, per=30.0)) as (client,),
    ):
        await client.generate("a red fox")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await client.generate("a blue whale", key="order-17")
        await client.generate("a green frog")
        assert len(submits(server)) == 2


async def test_s05_a_429_pauses_another_process(folder: Path) -> None:
    """Its Retry-After holds for whoever shares the folder, as do the halved slots."""
    moments = list[float]()

    def answer(_: Received) -> Answer:
        moments.append(now())
        return refused(429, Retry_After="40") if len(moments) == 1 else accepted()

    async with ScriptedServer(then=answer) as server:
        first, second = SQLiteJournal(folder), SQLiteJournal(folder)
        async with clients_of(server, first, rate_limit=None) as (client,):
            refusal = asyncio.create_task(client.generate("a red fox"))
            await asyncio.sleep(1)
            _ratelimit._lines.clear()  # so that the next one shares the file only
            async with clients_of(server, second, rate_limit=None) as (other,):
                await other.generate("a blue whale")
                await refusal
        await first.aclose()
        await second.aclose()
    assert len(moments) == 3
    assert all(moment - moments[0] >= 40 for moment in moments[1:])


# ─── a file, in virtual time ─────────────────────────────────────────────────────────────────────


@settings(max_examples=60)
@given(
    count=st.integers(1, 5),
    posts=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.floats(0, 30),
            st.floats(0, 12),
            st.floats(0, 1),
            st.floats(0.1, 40),
        ),
        max_size=25,
    ),
)
def test_property_of_a_shared_file_never_too_many_never_stuck(
    count: int, posts: list[tuple[int, float, float, float, float]]
) -> None:
    """As for one gate: whenever they come at whichever, whoever gives up, the window holds."""
    arrivals: list[float] = []

    async def post(gate: Gate, start: float, latency: float, part: float, patience: float) -> None:
        await asyncio.sleep(start)
        try:
            async with asyncio.timeout(patience):
                await gate.enter()
        except TimeoutError:
            return
        await asyncio.sleep(latency * part)
        arrivals.append(now())
        await asyncio.sleep(latency * (1 - part))
        gate.leave()

    async def main(folder: Path) -> None:
        with closing(on_file(folder, 4, RateLimit(count, per=10.0))) as gates:
            await asyncio.gather(*(post(gates[which], *rest) for which, *rest in posts))
            assert not any(gate.waiting for gate in gates)
            begun = now()
            await gates[0].enter()
            assert now() - begun <= 10.001 + _slots.LOOK_EVERY
            gates[0].leave()

    with quick_folder() as folder, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main(folder))
    assert not arrivals or busiest_window(arrivals, 10.0) <= count


async def test_a_burst_in_one_process_gets_the_whole_limit(folder: Path) -> None:
    """Shared, not divided: the three that idle waste nothing."""
    with closing(on_file(folder, 4, TEN)) as gates:
        begun = now()
        for _ in range(10):
            await gates[0].enter()
        assert begun == now()
        for _ in range(10):
            gates[0].leave()


async def test_a_batch_in_one_process_starves_nobody_in_another(folder: Path) -> None:
    """A single submission goes with the next slot, though a hundred came before it."""
    with closing(on_file(folder, 2, TEN)) as (batch, single):
        turns, begun = list[object](), now()
        hundred = [asyncio.create_task(one(batch, n, turns)) for n in range(100)]
        await asyncio.sleep(1)
        await one(single, "single", turns)
        await asyncio.sleep(0.01)
        for post in hundred:
            post.cancel()
        await asyncio.wait(hundred)
        assert 10 <= now() - begun <= 10.1
        assert len(turns) == 20, "what nobody else wants is the batch's"


@pytest.mark.parametrize(("theirs", "ours"), [(0, 10), (1, 9), (3, 7), (5, 5), (100, 5)])
def test_what_others_want_is_left_to_them(theirs: int, ours: int) -> None:
    """Whoever is first at ten free slots takes its share, and all that is left over."""
    other, mine = (Table(TEN, name * 16, lambda _: True) for name in (b"o", b"m"))
    other.look_again_at(50.0, theirs, 40.0)
    mine.decode(other.encode())
    assert ours == sum(mine.take(50.0, 45.0) for _ in range(100))


async def test_who_all_want_more_than_their_share_get_the_same(folder: Path) -> None:
    """Four processes, each with more than it may send: each gets a quarter, in each window."""
    with closing(on_file(folder, 4, RateLimit(8, per=10.0))) as gates:
        turns = list[object]()
        posts = [
            asyncio.create_task(one(gate, number, turns, latency=0.3))
            for number, gate in enumerate(gates)
            for _ in range(60)
        ]
        await asyncio.sleep(100)
        assert len(turns) == 80
        for post in posts:
            post.cancel()
        await asyncio.wait(posts)
        shares = Counter(turns[8:])
        assert min(shares.values()) >= 0.9 * max(shares.values()), shares
        for gate in gates:
            assert not gate.waiting


async def test_who_wants_nothing_any_more_holds_nobody_up(folder: Path) -> None:
    """A process that was stopped while it waited has the next slot for a moment, not for ever."""
    with closing(on_file(folder, 2, RateLimit(1, per=10.0))) as (greedy, stopped):
        await greedy.enter()
        waiting = asyncio.create_task(stopped.enter())
        await asyncio.sleep(1)
        stopped._line._stop_timer()  # it has said that it waits, and does not look again
        greedy.leave()
        begun = now()
        await greedy.enter()
        assert 10.0 <= now() - begun <= 11.0
        waiting.cancel()
        await asyncio.wait({waiting})
        greedy.leave()


async def test_who_gives_up_holds_nobody_up(folder: Path) -> None:
    """The others know at once that a process wants nothing any more."""
    with closing(on_file(folder, 3, RateLimit(1, per=10.0))) as (first, second, third):
        await first.enter()
        leaving = asyncio.create_task(second.enter())
        await asyncio.sleep(0.1)
        staying = asyncio.create_task(third.enter())
        await asyncio.sleep(3 * _slots.LOOK_EVERY - 0.05)  # third looks next, and second after it
        leaving.cancel()
        await asyncio.wait({leaving})
        begun = now()
        first.hand_back()
        await staying
        assert now() - begun <= 0.06
        third.hand_back()


async def test_what_a_dead_process_had_in_flight_comes_back(folder: Path) -> None:
    """Its POSTs ended when it died at the latest: the slots come back a window after that."""
    with closing(on_file(folder, 2, RateLimit(3, per=10.0))) as (dead, alive):
        for _ in range(3):
            await dead.enter()
        await asyncio.sleep(100)
        waiting = asyncio.create_task(alive.enter())
        await asyncio.sleep(20)
        assert not waiting.done()
        die(dead)
        begun = now()
        await waiting
        assert 10.0 <= now() - begun <= 10.3
        alive.hand_back()
        with closing(on_file(folder, 1, RateLimit(3, per=10.0))) as (new,):
            await new.enter()
            new.hand_back()
            left = list(Path(file_of(new).where).iterdir())
            assert len(left) == 3, "nobody needs the dead one's file"


async def test_a_process_that_closes_keeps_what_is_in_flight(folder: Path) -> None:
    """A client that closes lets its POSTs answer: until then their slots are in use."""
    with closing(on_file(folder, 2, RateLimit(1, per=10.0))) as (first, second):
        await first.enter()
        first.close()
        waiting = asyncio.create_task(second.enter())
        await asyncio.sleep(60)
        assert not waiting.done()
        begun = now()
        first.leave()
        await waiting
        assert 10.0 <= now() - begun <= 10.3
        second.leave()


async def test_s06_a_429_halves_for_all_and_they_recover_together(folder: Path) -> None:
    """One process's 429 pauses all and halves what all may send; a clean window gives one back."""
    with closing(on_file(folder, 2, RateLimit(8, per=10.0))) as (first, second):
        await first.enter()
        await second.enter()
        first.leave()
        first.slow_down(5.0)
        second.leave()
        second.slow_down(1.0)  # the same window: no second time
        begun, turns = now(), list[object]()
        posts = [one(gate, number, turns) for gate in (first, second) for number in range(30)]
        tasks = [asyncio.create_task(post) for post in posts]
        await asyncio.sleep(4.9)
        assert not turns
        per_window = list[int]()
        for _ in range(7):
            before = len(turns)
            await asyncio.sleep(10)
            per_window.append(len(turns) - before)
        assert per_window[0] <= 4
        assert max(per_window) == 8
        assert per_window[0] < per_window[2] < 8
        await asyncio.gather(*tasks)
        assert len(turns) == 60
        assert now() > begun


async def test_s06_without_a_limit_a_429_pauses_all(folder: Path) -> None:
    """rate_limit=None has no slots, and shares the rest all the same."""
    with closing(on_file(folder, 2, None)) as (first, second):
        await asyncio.gather(*(second.enter() for _ in range(100)))
        first.slow_down(7.0)
        begun = now()
        await asyncio.gather(*(second.enter() for _ in range(100)))
        assert 7.0 <= now() - begun <= 7.3


@pytest.mark.parametrize("left", [0, 20, 70, None])
async def test_l12_a_file_that_cannot_be_read_is_made_anew(
    folder: Path, left: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut or garbage: one line in the log, and all slots count as just used, rather than free."""
    with closing(on_file(folder, 2, TEN)) as (first, second):
        for _ in range(5):
            await first.enter()
        await second.enter()
        second.hand_back()
        file = Path(file_of(first).where, "slots")
        file.write_bytes(os.urandom(300) if left is None else file.read_bytes()[:left])
        begun = now()
        await second.enter()
        assert 10.0 <= now() - begun <= 10.3
        for _ in range(5):
            first.leave()
        second.leave()
        await second.enter()
        second.leave()
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["is made anew" in record.getMessage() for record in told] == [True]


async def test_l12_a_file_that_was_removed_is_found_again_by_all(folder: Path) -> None:
    """Nobody goes on with a file that others do not see."""
    with closing(on_file(folder, 2, RateLimit(2, per=10.0))) as (first, second):
        await first.enter()
        await second.enter()
        first.leave()
        second.leave()
        await asyncio.sleep(30)
        Path(file_of(first).where, "slots").unlink()
        begun, arrivals = now(), list[float]()
        posts = [through(gate, 0.1, 0.5, arrivals) for gate in (first, second) for _ in range(4)]
        await asyncio.gather(*posts)
        assert busiest_window(arrivals, 10.0) == 2
        assert min(arrivals) >= begun + 10.0


async def test_after_a_reboot_nobody_waits_for_the_times_of_before(folder: Path) -> None:
    """Moments that lie further ahead than any can are stale: of slots, pauses and waiters."""
    ahead = 1e6
    with closing(on_file(folder, 2, TEN)) as (before, after):
        await before.enter()
        with file_of(before) as slots:
            slots.give_back(now() + ahead)
            for _ in range(9):
                slots.take(now(), now())
                slots.give_back(now() + ahead)
            slots.slow_down(now() + ahead, 100.0)
            slots.look_again_at(now() + ahead, 100, now() + ahead)
        begun = now()
        await after.enter()
        assert begun == now()
        await asyncio.sleep(60)
        assert repr(after) == "<Gate 4 of 10 free, 0 waiting>"
        after.leave()
        assert repr(after) == "<Gate 9 of 10 free, 0 waiting>"
        after.slow_down(1.0)
        assert repr(after) == "<Gate 4 of 10 free, 0 waiting>"


async def test_a_table_of_a_thousand_slots(folder: Path) -> None:
    """What does not fit into a page is read whole."""
    with closing(on_file(folder, 2, RateLimit(1000, per=10.0))) as (first, second):
        for _ in range(500):
            await first.enter()
            await second.enter()
        waiting = asyncio.create_task(second.enter())
        await asyncio.sleep(1)
        assert not waiting.done()
        for _ in range(500):
            first.leave()
            second.leave()
        begun = now()
        await waiting
        assert 10.0 <= now() - begun <= 10.01
        second.leave()


# ─── a lock that somebody holds ──────────────────────────────────────────────────────────────────


@contextmanager
def held(gate: Gate) -> Iterator[None]:
    """Somebody else is at the slots."""
    descriptor = os.open(Path(file_of(gate).where, "slots"), os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


async def test_nothing_is_lost_while_the_slots_are_held(folder: Path) -> None:
    """Who comes waits; what ends meanwhile comes back, counted from its end; all in order."""
    with closing(on_file(folder, 1, RateLimit(2, per=10.0))) as (gate,):
        await gate.enter()
        await gate.enter()
        begun, turns = now(), list[object]()
        with held(gate):
            gate.leave()
            gate.hand_back()
            gate.slow_down(3.0)
            posts = [asyncio.create_task(one(gate, number, turns)) for number in range(3)]
            await asyncio.sleep(1.0)
            assert turns == []
        await asyncio.sleep(1.9)
        assert turns == [], "it was told to pause"
        await asyncio.gather(*posts)
        assert turns == [0, 1, 2]
        # Of two slots one is left, and comes back at 10 and 20; the other one is there from 13 on.
        assert 20.0 <= now() - begun <= 20.3


async def test_s18_giving_up_while_the_slots_are_held(folder: Path) -> None:
    """Then nobody tries any more, and nothing was taken; nor by those whose client closed."""
    with closing(on_file(folder, 2, TEN)) as (first, second):
        await first.enter()
        with held(first):
            leaving = asyncio.create_task(first.enter())
            closed = asyncio.create_task(second.enter())
            await asyncio.sleep(1)
            leaving.cancel()
            second.close()
            with pytest.raises(ClientClosed):
                await closed
            await asyncio.sleep(1)
            assert first._line._timer is None
            assert second._line._timer is None
        await first.enter()
        assert repr(first) == "<Gate 8 of 10 free, 0 waiting>"
        first.leave()
        first.leave()


async def test_s16_slots_that_are_held_for_too_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits gets an error that names the holder; the slot that is given back is not lost."""
    monkeypatch.setattr(_slots, "PATIENCE", 0.02)
    with closing(on_file(folder, 1, RateLimit(1, per=10.0))) as (gate,):
        await gate.enter()
        with held(gate):
            gate.leave()
            waiting = [asyncio.create_task(gate.enter()) for _ in range(3)]
            await asyncio.wait(waiting)
            for each in waiting:
                with pytest.raises(JournalError, match=f"process {os.getpid()}"):
                    await each
        begun = now()
        await gate.enter()
        assert now() - begun <= 10.3
        gate.leave()


async def test_s16_a_folder_that_cannot_be_used(folder: Path) -> None:
    """An error that names it, for who comes; nobody waits for ever."""
    (gate,) = on_file(folder, 1, TEN)
    (folder / "gates").rmdir()
    folder.rmdir()
    with pytest.raises(JournalError, match=r"the account's gate .* cannot be used"):
        await gate.enter()
    gate.slow_down(1.0)
    waiting = asyncio.create_task(gate.enter())
    with pytest.raises(JournalError, match="No such file"):
        await waiting
    (folder / "gates").mkdir(parents=True)
    begun = now()
    await gate.enter()
    assert 0.5 <= now() - begun <= 1.2, "the pause was told when it could be"
    gate.leave()
    gate.close()


async def test_s16_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written was not taken; what ended meanwhile comes back all the same."""

    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(on_file(folder, 1, TEN)) as (gate,):
        await gate.enter()
        with monkeypatch.context() as patch:
            patch.setattr(file_of(gate)._files, "write", full)
            with pytest.raises(JournalError, match="No space left"):
                await gate.enter()
        await gate.enter()
        assert repr(gate) == "<Gate 8 of 10 free, 0 waiting>"
        with monkeypatch.context() as patch:
            patch.setattr(file_of(gate)._files, "write", full)
            gate.leave()
            gate.leave()
        await asyncio.sleep(20)
        await gate.enter()
        assert repr(gate) == "<Gate 9 of 10 free, 0 waiting>"
        gate.leave()


@pytest.mark.real_time
async def test_i6_a_stopped_process_with_the_lock_does_not_block_the_loop(folder: Path) -> None:
    """SIGSTOP in the worst moment: the loop goes on, and so does the gate when the lock is free."""
    with closing(on_file(folder, 1, RateLimit(5, per=0.1))) as (gate,), ExitStack() as stack:
        await gate.enter()
        gate.leave()
        program = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True)"
        command = [sys.executable, "-c", f"{program}; sys.stdin.read()"]
        holder = subprocess.Popen(  # noqa: ASYNC220 - it is short
            [*command, Path(file_of(gate).where, "slots")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        stack.enter_context(holder)
        stack.callback(holder.kill)
        assert holder.stdout is not None
        await asyncio.to_thread(holder.stdout.readline)
        holder.send_signal(signal.SIGSTOP)
        waiting = [asyncio.create_task(gate.enter()) for _ in range(50)]
        ticks, begun = 0, now()
        while now() - begun < 0.5:
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks >= 10
        assert not any(each.done() for each in waiting)
        holder.kill()
        for _ in range(50):
            done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting = list(pending)
            for _ in done:
                gate.leave()
            if not pending:
                break


# ─── cancelled at each step ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["memory", "file"])
async def test_s18_cancelled_at_each_step_no_slot_is_lost(folder: Path, place: str) -> None:
    """Wherever the cancellation strikes, the next one gets its turn in the same window."""
    numbers = itertools.count()

    def fresh() -> list[Gate]:
        limit = RateLimit(1, per=5.0)
        if place == "memory":
            return in_memory(2, limit)
        return on_file(folder / str(next(numbers)), 2, limit)

    for step in cancel_at_each_step():
        with closing(fresh()) as (first, second):
            await first.enter()
            asyncio.get_running_loop().call_later(1.0, first.hand_back)
            task = await step.run(second.enter())
            if not task.cancelled():
                second.hand_back()
            begun = now()
            await first.enter()
            assert now() - begun <= 1.5
            first.hand_back()
            assert repr(first) == "<Gate 1 of 1 free, 0 waiting>"


# ─── real processes ──────────────────────────────────────────────────────────────────────────────


@attrs.define
class Account:
    """A server that keeps a ledger of when each process's submissions came.

    Attributes:
        arrivals: who sent, and when.
        silent: whose submissions are never answered.
        refuse_next: whether the next submission gets a 429.
        came: set with each arrival.
    """

    arrivals: list[tuple[str, float]] = attrs.field(factory=list)
    silent: set[str] = attrs.field(factory=set)
    refuse_next: bool = False
    came: asyncio.Event = attrs.field(factory=asyncio.Event)

    def answer(self, request: Received) -> Answer | Fault:
        """Accept at once, unless told otherwise."""
        name = json.loads(request.body)["prompt"].split()[0]
        self.arrivals.append((name, time.monotonic()))
        self.came.set()
        if self.refuse_next:
            self.refuse_next = False
            return refused(429, Retry_After="1")
        return hang() if name in self.silent else accepted(f"task-{len(self.arrivals)}")

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for arrivals until something is so."""
        while not is_so():
            self.came.clear()
            await self.came.wait()

    def moments(self, since: int = 0) -> list[float]:
        """When they came, from one of them on."""
        return [moment for _, moment in self.arrivals[since:]]

    def sent_by(self, name: str, since: int) -> int:
        """How many of them one process sent."""
        return sum(name == who for who, _ in self.arrivals[since:])


@asynccontextmanager
async def processes(
    number: int, server: ScriptedServer, folder: Path, limit: RateLimit, at_once: int = 6
) -> AsyncIterator[list[subprocess.Popen[str]]]:
    """Processes that submit as fast as they may, and have all begun."""
    command = [sys.executable, "-m", "tests.support.submitters"]
    with ExitStack() as stack:
        running = []
        for n in range(number):
            told = [f"p{n}", server.url, folder, limit.count, limit.per, at_once]
            process = subprocess.Popen(  # noqa: ASYNC220 - it is short
                [*command, *map(str, told)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
        for process in running:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        for process in running:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
        yield running
        for process in running:
            with suppress(ProcessLookupError):
                process.kill()


@pytest.mark.real_time
async def test_four_processes_share_one_limit(folder: Path) -> None:
    """No window of the server holds too many; the rate is used, and each gets about the same."""
    account, limit = Account(), RateLimit(8, per=0.4)
    async with (
        ScriptedServer(then=account.answer) as server,
        processes(4, server, folder, limit),
    ):
        await account.until(lambda: len({name for name, _ in account.arrivals}) == 4)
        since = len(account.arrivals)
        await account.until(lambda: len(account.arrivals) >= since + 96)
    moments = account.moments(since)[:96]
    assert busiest_window(account.moments(), limit.per) <= limit.count
    used = len(moments) / ((moments[-1] - moments[0]) / limit.per * limit.count)
    assert used >= 0.5, f"of the rate {used:.0%} was used"
    shares = Counter(name for name, _ in account.arrivals[since:][:96])
    print(f"of the rate {used:.0%} was used; {shares}")
    assert min(shares.values()) >= 0.5 * max(shares.values()), shares


@pytest.mark.real_time
async def test_a_process_is_killed_with_posts_in_flight(folder: Path) -> None:
    """SIGKILL: its slots come back, and not before the server's window is over."""
    account, limit = Account(), RateLimit(4, per=0.3)
    async with (
        ScriptedServer(then=account.answer) as server,
        processes(3, server, folder, limit, at_once=2) as running,
    ):
        await account.until(lambda: len({name for name, _ in account.arrivals}) == 3)
        account.silent.add("p0")
        since = len(account.arrivals)
        await account.until(lambda: account.sent_by("p0", since) == 2)
        at_kill = len(account.arrivals)
        running[0].kill()
        await asyncio.to_thread(running[0].wait)
        await account.until(lambda: len(account.arrivals) >= at_kill + 60)
    assert busiest_window(account.moments(), limit.per) <= limit.count
    # The first windows are those in which its slots come back.
    moments = account.moments(at_kill + 12)[:48]
    used = len(moments) / ((moments[-1] - moments[0]) / limit.per * limit.count)
    print(f"of the rate {used:.0%} was used")
    assert used >= 0.6, f"of the rate {used:.0%} was used: two of four slots are lost"


@pytest.mark.real_time
async def test_s05_a_429_in_one_process_pauses_the_others(folder: Path) -> None:
    """No other process sends for as long as MidAPI asked of one."""
    account, limit = Account(), RateLimit(4, per=0.2)
    async with (
        ScriptedServer(then=account.answer) as server,
        processes(3, server, folder, limit, at_once=2),
    ):
        await account.until(lambda: len({name for name, _ in account.arrivals}) == 3)
        account.refuse_next = True
        await account.until(lambda: not account.refuse_next)
        refused_at = len(account.arrivals) - 1
        await account.until(lambda: len(account.arrivals) >= refused_at + 12)
    moments = account.moments(refused_at)
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments[:8])]
    # What was let in before the answer came may arrive after it; then a second without any.
    assert max(gaps) >= 0.8, gaps
    assert busiest_window(account.moments(), limit.per) <= limit.count


@pytest.mark.real_time
def test_l10_a_fork_has_no_part_in_its_parents_slots(folder: Path) -> None:
    """A child that lives on does not make its dead parent seem alive, nor closes what it has."""
    program = (
        "import asyncio, os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from midapi_async import RateLimit\n"
        "from midapi_async.journal._slots import SlotFile\n"
        "place = SlotFile(Path(sys.argv[1]), 'account', RateLimit(1, per=0.1))\n"
        "with place as slots:\n"
        "    assert slots.take(time.monotonic(), 0.0)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.closerange(0, 3)\n"
        "    time.sleep(60)\n"
        "    os._exit(0)\n"
        "with place as slots:\n"
        "    assert slots.free() == 0\n"
        "print(child, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, folder], cwd=ROOT, check=False, capture_output=True
    )
    child = int(done.stdout)
    try:
        assert done.returncode == -signal.SIGKILL
        place = SlotFile(folder, "account", RateLimit(1, per=0.1))
        time.sleep(0.3)  # a child lets go in its first moments
        with place as slots:
            assert slots.free() == 0
            slots.look_again_at(time.monotonic(), 1, time.monotonic())
        time.sleep(0.2)
        with place as slots:
            slots.catch_up(time.monotonic())
            assert slots.free() == 1
        place.close()
    finally:
        os.kill(child, signal.SIGKILL)
