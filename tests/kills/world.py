"""The world in which processes are killed: a server with a ledger, a journal, and what is true."""

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import attrs

from midapi_async import State
from midapi_async._wire.tokens import token_hash
from midapi_async.journal import Intent
from midapi_async.journal.sqlite import SQLiteJournal, store
from tests.kills.life import BETWEEN_CLAIM_AND_POST, ENDED, NO_JOURNAL, POINTS, STOPS, Life, live
from tests.kills.mixing import MixingProxy
from tests.support.scripted import Answer, Received, ScriptedServer, delay
from tests.world import accepted, looked, ok

SPAWNER = multiprocessing.get_context("forkserver")
SPAWNER.set_forkserver_preload(["tests.kills.life", "midapi_async.journal.sqlite"])

DATABASE, WAL, LOCK = "journal.sqlite", "journal.sqlite-wal", "journal.lock"
KILLED = -signal.SIGKILL
LONGEST_LIFE = 90.0  # seconds
DAMAGES = ("wal removed", "wal cut", "wal flipped", "database flipped")


@attrs.frozen
class Paid:
    """A POST that the server accepted."""

    key: str
    token: str
    task_id: str
    url: str


class World:
    """A server with a ledger behind a proxy, one journal, and the lives that were lived with them.

    Attributes:
        deaths: how many lives ended how, by the point where they were killed.
        done: how often each other thing was done to them.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.server = ScriptedServer(then=self.answer)
        self.proxy = MixingProxy(self.server, self.chance)
        self.paid: list[Paid] = []
        self.thrown_away: set[str] = set()  # keys that were bought with a damaged copy
        self.deaths: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.generation = 0
        self._alive: set[BaseProcess] = set()

    def answer(self, request: Received) -> Answer:
        """Accept every POST, a little later; every task is done."""
        if request.method == "POST":
            body = json.loads(request.body)
            key, url = body["prompt"].split()[1], body["callBackUrl"]
            task_id = f"task-{len(self.paid)}"
            self.paid.append(Paid(key, url.rpartition("/")[2], task_id, url))
            return delay(accepted(task_id), self.chance.random() * 0.02)
        if not request.path.endswith("record-info"):
            return ok(100)  # the credits, with which it finds out that an outage is over
        task_id = request.target.rpartition("=")[2]
        (paid,) = (each for each in self.paid if each.task_id == task_id)
        params = {"prompt": f"prompt {paid.key}", "callBackUrl": paid.url}
        return looked(task_id, paramJson=json.dumps(params))

    # ─── lives ───────────────────────────────────────────────────────────────────────────────────

    def keys_paid(self) -> list[str]:
        """The keys that money was spent for, in that order."""
        return list(dict.fromkeys(each.key for each in self.paid))

    def next_keys(self) -> tuple[str, ...]:
        """Six new keys, behind six that were used before."""
        self.generation += 1
        return tuple(f"{self.generation - back}-{n}" for back in (1, 0) for n in range(6))

    def start(self, keys: tuple[str, ...], **options: object) -> BaseProcess:
        """Start a life; see `Life` for the options."""
        chosen = {"url": self.proxy.url, "folder": str(self.folder), "keys": keys} | options
        process = SPAWNER.Process(target=live, args=(Life(**chosen),))  # type: ignore[arg-type]
        process.start()
        self._alive.add(process)
        return process

    async def end(
        self, process: BaseProcess, seconds: float | None = None, point: str | None = None
    ) -> int:
        """Wait until a life has ended, or kill it after some seconds; return its exit code."""
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(process.sentinel, gone.set)
        try:
            async with asyncio.timeout(LONGEST_LIFE):
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await gone.wait()
                if not gone.is_set():
                    process.kill()
                    await gone.wait()
        except TimeoutError:
            raise AssertionError("a life did not come to its end") from None
        finally:
            loop.remove_reader(process.sentinel)
        process.join()
        code = process.exitcode
        self._alive.discard(process)
        process.close()
        assert code in (ENDED, NO_JOURNAL, KILLED), f"a life ended with {code}"
        self.deaths[(point or "at random") if code == KILLED else "lived"] += 1
        return code

    def kill_all(self) -> None:
        """After a failure: kill the lives that nobody waits for any more."""
        while self._alive:
            process = self._alive.pop()
            process.kill()
            process.join()
            process.close()

    async def live(
        self, keys: tuple[str, ...], point: str | None = None, seconds: float | None = None
    ) -> int:
        """Live once, until the end, the point or the time; return the exit code."""
        process = self.start(keys, point=point, visit=self.chance.randint(1, 4))
        return await self.end(process, seconds, point)

    # ─── rounds ──────────────────────────────────────────────────────────────────────────────────

    async def kill(self) -> None:
        """One life that dies at a point or at random."""
        point = self.chance.choice([*POINTS, *[None] * len(POINTS)])
        seconds = None if point else self.chance.random() * 0.25
        await self.live(self.next_keys(), point, seconds)
        self.done["kills"] += 1

    async def lose_lock(self) -> None:
        """A life stops and loses its lock file, so that it is held for dead until it goes on.

        Meanwhile another one submits the same keys, and perhaps submits again what is unknown.
        """
        await self.stop(loses_lock=True)

    async def stop(self, *, loses_lock: bool = False) -> None:
        """A life stops at a point and goes on some seconds later; another one wants its keys."""
        chance, keys = self.chance, self.next_keys()
        point = chance.choice([*STOPS, *BETWEEN_CLAIM_AND_POST * 4])
        first = self.start(keys, point=point, visit=chance.randint(1, 4), blow=signal.SIGSTOP)
        pid = first.pid
        while f"stopped {pid}" not in self.notes():
            await asyncio.sleep(0.01)
            if not first.is_alive():  # it did not pass the point so often
                await self.end(first)
                return
        if loses_lock:
            for file in (self.folder / "owners").glob(f"{pid}-*"):
                file.unlink()
                self.done["lock files removed"] += 1
        resubmits = loses_lock and chance.random() < 0.5
        second = self.start(keys, resubmits=resubmits)
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(self.end(second))
            # A resubmission waits until 5 s after the claim of an owner that is held for dead.
            seconds = None if resubmits and chance.random() < 0.6 else chance.uniform(0.1, 2.5)
            await asyncio.wait({ending}, timeout=seconds)
            assert pid is not None
            os.kill(pid, signal.SIGKILL if chance.random() < 0.2 else signal.SIGCONT)
            group.create_task(self.end(first, point="while stopped"))
        self.done["stops"] += 1

    async def damage(self) -> None:
        """A life dies, its files are damaged, and the next one must not submit.

        The damage is done to a copy, so that the world can go on with the files as they were.
        """
        chance = self.chance
        await self.live(self.next_keys(), None, 0.05 + chance.random() * 0.25)
        await self.proxy.idle()  # what the dead one has sent is in the ledger
        copy = self.folder.with_name(f"damaged {self.folder.name}")
        for damage in chance.sample(DAMAGES, 2):
            if not (self.folder / WAL).exists() or not (self.folder / WAL).stat().st_size:
                return  # the life came to its end, and all is in the database
            shutil.copytree(self.folder, copy)
            _damage(copy, damage, chance)
            is_lost = _is_lost(copy)
            before = len(self.paid)
            self.proxy.remembers = False
            paid = [key for key in self.keys_paid() if key not in self.thrown_away][-20:]
            fresh = f"fresh-{self.generation}-{damage.replace(' ', '-')}"
            self.thrown_away.add(fresh)
            code = await self.end(self.start((*paid, fresh), folder=str(copy)))
            self.proxy.remembers = True
            self.done[damage] += 1
            if code == NO_JOURNAL:
                self.done[f"{damage}: JournalError"] += 1
            sent = {each.key for each in self.paid[before:]}
            assert sent <= {fresh}, f"{damage}: {sent} were paid twice"
            if is_lost:
                assert code == NO_JOURNAL, f"{damage}: commits are lost, and there was no error"
                assert not sent, f"{damage}: commits are lost, and something was sent"
            shutil.rmtree(copy)
            copy.with_suffix(".notes").unlink(missing_ok=True)

    async def mix_up(self) -> None:
        """Two lives at once, while a proxy gives answers to the wrong requests."""
        self.proxy.mixes = True
        keys = self.next_keys()
        point = self.chance.choice([*POINTS, *[None] * len(POINTS)])
        first = self.start(keys, point=point, visit=self.chance.randint(1, 4))
        async with asyncio.TaskGroup() as group:
            group.create_task(self.end(first, point=point))
            group.create_task(self.live(keys[::-1]))
        self.proxy.mixes = False
        self.done["mixed up"] += 1

    # ─── what must be true ───────────────────────────────────────────────────────────────────────

    async def check(self) -> None:
        """I1 and I2, from the server's ledger and the journal."""
        rows = await self._rows()
        self.done["resubmitted"] = 0
        paid = [each for each in self.paid if each.key not in self.thrown_away]
        tokens = Counter(each.token for each in paid)
        assert max(tokens.values(), default=0) <= 1, f"one intent was paid twice: {tokens}"
        by_token = {row.token_hash: row for row in rows}
        place = {token_hash(each.token): n for n, each in enumerate(paid)}

        holders = Counter(
            row.key for row in rows if row.holds_key and row.state is not State.REFUSED
        )
        resubmitted = Counter(row.key for row in rows if row.supersedes is not None)
        times = Counter(each.key for each in paid)
        twice = {key: n for key, n in times.items() if n > 1 + resubmitted[key]}
        assert not twice, f"paid twice: {twice}"

        for each in paid:
            row = by_token.get(token_hash(each.token))
            assert row is not None, f"lost: {each} has no row"
            is_open = row.state in (State.UNKNOWN, State.SENDING, State.SUPERSEDED)
            is_known = each.task_id in (row.task_id, *row.other_task_ids)
            assert is_known or is_open, f"lost: {each} is not in {row}"
            assert row.state is not State.REFUSED, f"refused though it was paid: {row}"
            assert holders[row.key] == 1, f"its key has {holders[row.key]} holders: {row}"

        by_id = {row.intent_id: row for row in rows}
        for row in rows:
            old = by_id.get(row.supersedes or "")
            self.done["resubmitted"] += old is not None
            if old is not None and {old.token_hash, row.token_hash} <= place.keys():
                came = place[old.token_hash or ""], place[row.token_hash or ""]
                assert came[0] < came[1], f"{old} was sent after it was superseded"
            if row.details is not None:
                assert row.details.task_id == row.task_id, f"another task's details: {row}"

        known = {task for row in rows for task in (row.task_id, *row.other_task_ids)}
        notes = self.notes()
        unknown = {row.key for row in rows if row.state in (State.UNKNOWN, State.SUPERSEDED)}
        given = [line.split()[1:] for line in notes if line.startswith("handle")]
        unsafe = [each for each in given if each[1] not in known and each[0] not in unknown]
        assert not unsafe, f"handles were given out before their task ids were safe: {unsafe}"
        taken = {row.task_id for row in rows if row.taken}
        noted = {line.split()[2] for line in notes if line.startswith("taken")}
        assert taken <= noted, "something counts as taken that nobody got"

    async def _rows(self) -> list[Intent]:
        journal = SQLiteJournal(self.folder)
        try:
            return await journal.rows(f"{self.proxy.url} default", limit=sys.maxsize)
        finally:
            await journal.aclose()

    def notes(self) -> list[str]:
        """What the lives noted, line by line."""
        file = self.folder.with_suffix(".notes")
        return file.read_text().splitlines() if file.exists() else []


@asynccontextmanager
async def a_world(folder: Path, seed: int) -> AsyncIterator[World]:
    """A world with a journal in this folder."""
    world = World(folder / "journal", seed)
    async with world.server, world.proxy:
        try:
            yield world
        finally:
            world.kill_all()


def _damage(folder: Path, damage: str, chance: random.Random) -> None:
    """Do to a folder what a disk or a careless program does."""
    wal = folder / WAL
    size = wal.stat().st_size
    if damage == "wal removed":
        wal.unlink()
    elif damage == "wal cut":
        os.truncate(wal, chance.randrange(size))
    else:
        path = wal if damage == "wal flipped" else folder / DATABASE
        with path.open("r+b") as file:
            place = chance.randrange(path.stat().st_size)
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))


def _is_lost(folder: Path) -> bool:
    """Whether the database has fewer commits than the mark says, by asking SQLite itself."""
    copy = folder.with_name(f"{folder.name} read")
    shutil.copytree(folder, copy)
    try:
        with (copy / LOCK).open("rb") as file:
            file.seek(store._MARK_AT)
            marked, _ = store._MARK.unpack(file.read(store._MARK.size))
        database = sqlite3.connect(copy / DATABASE)
        try:
            (commits,) = database.execute("SELECT commits FROM meta").fetchone()
        finally:
            database.close()
        return bool(commits < marked)
    except sqlite3.DatabaseError:
        return True
    finally:
        shutil.rmtree(copy)
