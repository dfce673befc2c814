"""Four workers on three hosts order the same keys, while everything fails that can.

    unshare --net python -m tests.machines.play [--keys 10000] [--faults 30] [--stop 120] [--seed 0]

Each host is a network namespace, and has its own wall clock, up to an hour off. This process is
MidAPI (the sandbox), and the load balancer that gives its callbacks to the hosts in turn. Another
host has a PostgreSQL server, with its data on a disk. First nothing fails; then workers, server
processes, the whole server and cables are killed, stopped and cut. At the end every key must have
been paid once, and both of its orderers must know the task.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import attrs

from midapi_async.sandbox import Sandbox
from tests.machines.network import NETWORK, Host, Network, faketime
from tests.support.postgres import Server, new_folder, programs

ROOT = Path(__file__).parents[2]
WINDOW, COUNT = 10.0, 20
CLOCKS = (0, -3540, 3540)  # seconds that the wall clock of each host is off
QUIET = 9.0  # seconds after the last fault in which a late POST, or a callback, may still come


class Balancer:
    """Gives each connection to the next worker that takes it.

    Attributes:
        targets: the workers' addresses.
        arrivals: for each token, when a callback came, and at which host.
    """

    def __init__(self, targets: Sequence[tuple[str, int]]) -> None:
        self.targets = targets
        self.arrivals: dict[str, list[tuple[float, str]]] = defaultdict(list)
        self._next = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, which is one callback."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            token = head.split(b" ", 2)[1].decode().rpartition("/")[2]
            for _ in self.targets:
                self._next += 1
                host, port = self.targets[self._next % len(self.targets)]
                try:
                    async with asyncio.timeout(0.5):
                        to_reader, to_writer = await asyncio.open_connection(host, port)
                except (OSError, TimeoutError):
                    continue
                self.arrivals[token].append((time.monotonic(), host))
                to_writer.write(head)
                await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))
                return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()


@attrs.define(eq=False)
class Worker:
    """One worker: a process, and the one that replaces it when it is killed.

    Attributes:
        number: which one.
        host: where it runs.
        keys: what it orders.
        left: those of them that have not ended here.
        woken: for each key that has ended here, its task, since when it waited, and when it ended.
        said: how often it said what.
        restarts: how often it was started again.
    """

    number: int
    host: Host
    keys: list[str]
    left: set[str] = attrs.field(factory=set)
    woken: dict[str, tuple[str, float, float]] = attrs.field(factory=dict)
    said: Counter[str] = attrs.field(factory=Counter)
    errors: Counter[str] = attrs.field(factory=Counter)
    restarts: int = -1
    process: asyncio.subprocess.Process | None = None
    reading: asyncio.Task[None] | None = None
    ready: asyncio.Event = attrs.field(factory=asyncio.Event)
    resumed: asyncio.Future[int] = attrs.field(factory=asyncio.Future)
    is_killed: bool = False

    async def start(self, options: dict[str, Any]) -> None:
        """Start it, with all of its keys: what has ended costs nothing."""
        self.is_killed = False
        self.restarts += 1
        self.ready.clear()
        mine = {**options, "host": self.host.address, "port": 8000 + self.number}
        clock = CLOCKS[self.number % len(CLOCKS)]
        self.process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig=KILL", *self.host.enter),
            *("env", f"LD_PRELOAD={faketime()}", f"FAKETIME={clock:+}s"),
            *("FAKETIME_DONT_FAKE_MONOTONIC=1", sys.executable, "-m", "tests.machines.worker"),
            json.dumps(mine),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=1 << 24,
        )
        self.reading = asyncio.create_task(self._read(self.process, clock))
        self.tell(keys=self.keys if self.restarts == 0 else [*self.left, *self.keys[:20]])

    def tell(self, **command: object) -> None:
        """Have it do something."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(command)}\n".encode())

    async def _read(self, process: asyncio.subprocess.Process, clock: float) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if not line.endswith(b"\n"):
                break
            message = json.loads(line)
            self.said[next(iter(message))] += 1
            if "ready" in message:
                assert abs(message["ready"] - time.time() - clock) < 60, "libfaketime does nothing"
                self.ready.set()
            elif "done" in message:
                key, task = message["done"], message["task"]
                times = message["since"], message["at"]
                known = self.woken.setdefault(key, (task, *times))
                assert known[0] == task, f"{key} was {known[0]} and then {task}"
                self.left.discard(key)
            elif "resumed" in message:
                self.resumed.set_result(message["resumed"])
            elif "error" in message:
                self.errors[message["error"][:200]] += 1
            elif "stats" in message:
                print(f"worker {self.number}: {message['stats']}")
        code = await process.wait()
        for name in (f"faketime_shm_{process.pid}", f"sem.faketime_sem_{process.pid}"):
            Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108 - libfaketime's own
        assert self.is_killed or code == 0, f"worker {self.number} ended with {code}"


@attrs.define(eq=False)
class World:
    """MidAPI, its callbacks, a server, the hosts with their workers; and what is done to them."""

    options: argparse.Namespace
    network: Network
    database: Host
    server: Server
    sandbox: Sandbox
    balancer: Balancer
    workers: list[Worker]
    settings: dict[str, Any]
    chance: random.Random
    done: Counter[str] = attrs.field(factory=Counter)
    slots: list[float] = attrs.field(factory=list)
    quiet_from: int = 0
    quiet_until: float = 0.0
    latencies: list[float] = attrs.field(factory=list)

    # ─── faults ──────────────────────────────────────────────────────────────────────────────────

    async def kill_a_worker(self) -> None:
        """As the kernel does when there is no memory left; it is started again a little later."""
        worker = self.chance.choice(self.workers)
        assert worker.process is not None
        assert worker.reading is not None
        worker.is_killed = True
        worker.process.kill()
        await worker.reading
        await asyncio.sleep(self.chance.uniform(0.0, 1.0))
        await worker.start(self.settings)

    async def stop_a_worker(self) -> None:
        """It stands still, and goes on as if nothing had happened."""
        worker = self.chance.choice(self.workers)
        assert worker.process is not None
        await self._stop(worker.process.pid)

    async def stop_a_server_process(self) -> None:
        """One that serves a worker, or one of the server's own."""
        await self._stop(await self._server_process())

    async def kill_a_server_process(self) -> None:
        """The server then ends all connections and reads its log again."""
        os.kill(await self._server_process(), signal.SIGKILL)

    async def _server_process(self) -> int:
        assert self.server.process is not None
        children = await self._run("pgrep", "-P", str(self.server.process.pid))
        return int(self.chance.choice(children.split()))

    async def _stop(self, process: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
        await asyncio.sleep(self.options.stop * self.chance.uniform(0.5, 1.0))
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)

    async def kill_the_server(self) -> None:
        """As a power failure does it, after an INSERT and before its COMMIT."""
        hold = (
            "CREATE OR REPLACE FUNCTION midapi.hold() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON midapi.intents "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION midapi.hold()"
        )
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        # Another fault may be in the way: then it is killed at any moment.
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            async with asyncio.timeout(5), self._connected() as connection:
                await connection.execute(hold)
                while not await connection.fetchval(waiting):  # noqa: ASYNC110 - the server's state
                    await asyncio.sleep(0.02)
                self.done["killed before a commit"] += 1
        await asyncio.to_thread(self._power_failure)
        await asyncio.sleep(self.chance.uniform(0.0, 1.0))
        await asyncio.to_thread(self.server.start)
        is_dropped = False
        while not is_dropped:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                async with asyncio.timeout(5), self._connected() as connection:
                    await connection.execute("DROP TRIGGER IF EXISTS hold ON midapi.intents")
                    is_dropped = True

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        connection = await asyncpg.connect(self.server.url)
        try:
            yield connection
        finally:
            connection.terminate()

    def _power_failure(self) -> None:
        for (
            process
        ) in self.database.processes():  # one that is stopped would not see the others end
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.server.kill()
        while self.database.processes():
            time.sleep(0.01)

    def _have_a_server(self) -> None:
        """It ends by itself if it is hit again while it recovers; an operator starts it again."""
        try:
            self.server.wait()
        except AssertionError:
            self.done["server started again"] += 1
            self._power_failure()
            self.server.start()

    async def cut_a_cable(self) -> None:
        """Of a worker's host, of the server's, or of MidAPI's."""
        hosts = {worker.host.port for worker in self.workers}
        port = self.chance.choice(sorted({*hosts, self.database.port, "port1"}))
        self.network.cut(port)
        await asyncio.sleep(self.options.cut * self.chance.uniform(0.5, 1.0))
        self.network.restore(port)
        await asyncio.sleep(1.0)  # addresses are asked for again

    async def _run(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
        return output.decode()

    # ─── the run ─────────────────────────────────────────────────────────────────────────────────

    async def play(self) -> None:
        """Order all keys, with faults after a quiet time; then settle what is left."""
        begun = time.monotonic()
        for worker in self.workers:
            await worker.start(self.settings)
        # The first part runs undisturbed, so that the use of the limit can be measured.
        for worker in self.workers:
            await asyncio.wait_for(worker.ready.wait(), 60)
        self.quiet_from = len(self.sandbox.ledger.accepted) + COUNT
        quiet = max(self.options.keys * self.options.quiet, self.quiet_from)
        measuring = asyncio.create_task(self._measure_slots())
        while len(self.sandbox.ledger.accepted) < quiet:
            await asyncio.sleep(0.1)
            self._assert_workers_live()
        self.quiet_until = self.sandbox.ledger.accepted[-1].at
        self.latencies = self.callbacks_elsewhere()
        measuring.cancel()
        names = (
            *("kill_a_worker", "kill_the_server", "cut_a_cable"),
            *("stop_a_worker", "kill_a_server_process", "stop_a_server_process"),
        )
        rest = (self.options.keys - quiet) * 0.9 / max(1, self.options.faults)
        for number in range(self.options.faults):
            # Not before its turn: something must be under way when it comes.
            while len(self.sandbox.ledger.accepted) < quiet + number * rest:
                await asyncio.sleep(0.05)
                self._assert_workers_live()
            now = [names[number % len(names)]]
            if self.chance.random() < self.options.twice:
                now.append(self.chance.choice([name for name in names if name not in now]))
            at = len(self.sandbox.ledger.accepted)
            async with asyncio.TaskGroup() as group:
                for name in now:
                    group.create_task(getattr(self, name)())
            await asyncio.to_thread(self._have_a_server)
            self.done.update(now)
            name = " and ".join(now)
            await asyncio.sleep(self.chance.uniform(0.2, 1.0))
            self._assert_workers_live()
            passed = time.monotonic() - begun
            after = len(self.sandbox.ledger.accepted)
            print(f"{passed:6.1f} s {name}: {at} → {after} paid", flush=True)
        await self._settle()
        print(f"all keys ended after {time.monotonic() - begun:.0f} s; {dict(self.done)}")

    async def _settle(self) -> None:
        """Wait until all keys have ended; what was never paid is submitted again by its user."""
        resubmitted: set[str] = set()
        left, since = -1, time.monotonic()
        while any(worker.left for worker in self.workers):
            await asyncio.sleep(0.5)
            self._assert_workers_live()
            now = sum(len(worker.left) for worker in self.workers)
            if now != left:
                left, since = now, time.monotonic()
            elif time.monotonic() - since > QUIET:
                rows = await self.server.execute(
                    "SELECT intent_id, token_hash, key FROM midapi.intents WHERE state = 'unknown'"
                )
                paid = {_prompt(each)[7:] for each in self.sandbox.ledger.accepted}
                again = [
                    row["intent_id"]
                    for row in rows
                    if row["key"] not in paid and row["intent_id"] not in resubmitted
                ]
                if again:
                    print(f"{left} left, {len(rows)} unknown; {len(again)} are submitted again")
                    resubmitted.update(again)
                    self.done["submitted again"] += len(again)
                    self.workers[0].tell(resubmit=again)
                    since = time.monotonic()
                elif time.monotonic() - since > self.options.patience:
                    raise AssertionError(await self._what_is_left())

    async def _what_is_left(self) -> str:
        keys = sorted({key for worker in self.workers for key in worker.left})[:20]
        rows = await self.server.execute(
            "SELECT key, state, task_id, owner, supersedes, holds_key FROM midapi.intents "
            "WHERE key = ANY($1)",
            keys,
        )
        errors = [dict(worker.errors.most_common(5)) for worker in self.workers]
        counts = [len(worker.left) for worker in self.workers]
        return f"left {counts}, such as {keys}: {list(map(dict, rows))}\n{errors}"

    def _assert_workers_live(self) -> None:
        for worker in self.workers:
            if worker.reading is not None and worker.reading.done():
                worker.reading.result()

    async def _measure_slots(self) -> None:
        """How long a POST takes with its claim, by the server's clock."""
        seconds = "SELECT avg(ends_at - started) FROM midapi.slots WHERE NOT is_open"
        async with self._connected() as connection:
            while True:
                await asyncio.sleep(0.25)
                with suppress(asyncpg.PostgresError):  # the schema may not be there yet
                    if (found := await connection.fetchval(seconds)) is not None:
                        self.slots.append(float(found))

    async def end(self) -> None:
        """Let the workers end in peace; then one takes what could not be recorded as taken."""
        await asyncio.gather(*(self._end(worker) for worker in self.workers))
        last = self.workers[0]
        await last.start(self.settings)
        last.tell(resume=True)
        print(f"{await asyncio.wait_for(last.resumed, 60)} results are given out once more")
        await self._end(last)

    async def _end(self, worker: Worker) -> None:
        assert worker.process is not None
        assert worker.process.stdin is not None
        assert worker.reading is not None
        worker.process.stdin.close()
        await asyncio.wait_for(worker.reading, 30)

    # ─── what must be true ───────────────────────────────────────────────────────────────────────

    async def check(self) -> None:
        """Once paid each, no window too full, all known; and the figures."""
        ledger = self.sandbox.ledger
        paid = Counter(_prompt(each) for each in ledger.accepted)
        twice = {key: n for key, n in paid.items() if n > 1}
        assert not twice, f"paid twice: {twice}"
        wanted = {f"prompt {key}" for worker in self.workers for key in worker.keys}
        assert paid.keys() == wanted, f"not paid: {sorted(wanted - paid.keys())[:20]}"
        tasks = {_prompt(each)[7:]: each.task_id for each in ledger.accepted}
        for worker in self.workers:
            got = {key: task for key, (task, *_) in worker.woken.items()}
            assert got == {key: tasks[key] for key in worker.keys}, "another task's handle"
        states = await self.server.execute(
            "SELECT state, count(*) FROM midapi.intents GROUP BY state ORDER BY state"
        )
        print(f"rows: {[tuple(row) for row in states]}")
        assert {row["state"] for row in states} <= {"succeeded", "superseded", "refused"}

        arrivals = sorted(each.at for each in ledger.requests if each.operation == "submit")
        first, fullest = 0, 0
        for n, at in enumerate(arrivals):
            while arrivals[first] <= at - WINDOW:
                first += 1
            fullest = max(fullest, n - first + 1)
        print(f"{len(arrivals)} submissions, at most {fullest} in {WINDOW} s of MidAPI")
        self.print_use()
        self.print_latency()
        for worker in self.workers:
            said, errors = dict(worker.said), dict(worker.errors.most_common(4))
            print(f"worker {worker.number}: {worker.restarts} restarts, said {said}, {errors}")
        assert fullest <= COUNT, f"{fullest} submissions in a window of {COUNT}"

    def print_use(self) -> None:
        """How much of the limit was used while nothing failed."""
        moments = [a.at for a in self.sandbox.ledger.accepted if a.at <= self.quiet_until]
        moments = moments[self.quiet_from :]
        if len(moments) < COUNT * 2 or not self.slots:
            return
        whole = (len(moments) - 1) // COUNT * COUNT  # they come in bursts: whole windows of them
        rate = whole / (moments[whole] - moments[0])
        scale = self.options.scale
        post = statistics.fmean(self.slots) * scale
        used = rate * (WINDOW + post) / COUNT
        print(
            f"{used:.1%} of the limit was used (a POST with its claim took {post / scale:.4f} s "
            f"in a window of {WINDOW / scale} s; {rate * scale:.1f} POSTs/s)"
        )
        if self.options.use:
            assert used >= self.options.use

    def callbacks_elsewhere(self) -> list[float]:
        """Milliseconds from a callback's arrival at one host to the waiters at others."""
        took = []
        urls = {each.task_id: each.callback_url or "" for each in self.sandbox.ledger.accepted}
        for worker in self.workers:
            for task, since, at in worker.woken.values():
                token = urlsplit(urls[task]).path.rpartition("/")[2]
                came, host = min(self.balancer.arrivals[token], default=(at, ""))
                if since < came < at and host != worker.host.address:
                    took.append((at - came) * 1000)
        return took

    def print_latency(self) -> None:
        """How long waiters waited after that, while nothing failed."""
        if len(self.latencies) > 10:
            hundred = statistics.quantiles(self.latencies, n=100, method="inclusive")
            print(
                f"a callback woke a waiter at another host after {hundred[49]:.0f} ms (p50), "
                f"{hundred[98]:.0f} ms (p99, goal 100 ms), of {len(self.latencies)}"
            )


def _prompt(accepted: Any) -> str:
    return str(accepted.body["prompt"])


def orders(workers: Sequence[Worker], keys: int) -> None:
    """Give each key to two workers at different hosts."""
    for number in range(keys):
        first = workers[number % len(workers)]
        others = [each for each in workers if each.host is not first.host]
        for worker in (first, others[number // len(workers) % len(others)]):
            worker.keys.append(f"k{number}")
            worker.left.add(f"k{number}")


async def main(options: argparse.Namespace) -> None:
    """Build the world, play in it, and look at the ledger."""
    async with AsyncExitStack() as stack:
        network = Network()
        stack.callback(network.close)
        database, *hosts = (network.add() for _ in range(4))
        folder = stack.enter_context(new_folder())
        server = Server(
            folder / "data", {"log_min_messages": "fatal"},
            address=database.address, enter=database.enter,
        )  # fmt: skip
        await asyncio.to_thread(server.create)
        with (server.folder / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {NETWORK} trust\n")
        server.start()
        stack.callback(server.kill)
        sandbox = Sandbox(
            host=network.address,
            credits=1e9,
            time_scale=options.scale,
            seed=options.seed,
        )
        await stack.enter_async_context(sandbox)
        workers = [Worker(n, hosts[n % 3], []) for n in range(4)]
        orders(workers, options.keys)
        balancer = Balancer([(each.host.address, 8000 + each.number) for each in workers])
        listener = await asyncio.start_server(balancer.serve, network.address, 0)
        stack.callback(listener.close)
        port = listener.sockets[0].getsockname()[1]
        settings = {
            "midapi": sandbox.url,
            "journal": server.url,
            "callbacks": f"http://{network.address}:{port}/midapi",
            "scale": options.scale,
        }
        chance = random.Random(options.seed)
        world = World(
            options, network, database, server, sandbox, balancer, workers, settings, chance
        )
        try:
            await world.play()
            await world.end()
            await world.check()
        finally:
            for worker in workers:
                if worker.process is not None and worker.process.returncode is None:
                    worker.is_killed = True
                    worker.process.kill()
                if worker.reading is not None:
                    await asyncio.wait({worker.reading})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--scale", type=float, default=4.0, help="how fast MidAPI's time passes")
    parser.add_argument("--stop", type=float, default=120.0, help="seconds that a process stands")
    parser.add_argument("--cut", type=float, default=30.0, help="seconds that a cable is cut")
    parser.add_argument("--twice", type=float, default=0.3, help="how often two faults meet")
    parser.add_argument("--quiet", type=float, default=0.1, help="the part without faults")
    parser.add_argument("--use", type=float, default=0.98, help="of the limit, at least")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds without progress")
    parser.add_argument("--seed", type=int, default=0)
    programs()
    asyncio.run(main(parser.parse_args()))
