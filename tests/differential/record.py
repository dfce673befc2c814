"""Plays seeded scenarios against a frozen sandbox and prints what came of each as a line of JSON.

    python record.py FIRST LAST               in one process and in virtual time
    python record.py FIRST LAST --processes   two processes and one folder, in real time
    python record.py --plans < plans.jsonl    these plans, each as it stands in a printed line

It uses public names of `midapi_async` only, so that it runs unchanged against any two versions;
`compare.py` does that. It puts `frozen_sandbox` and `frozen_testing.py` on PYTHONPATH: the sandbox
and the virtual loop of one commit, so that both versions play against one service.

A scenario is a plan, plain JSON made of a seed. Facts come of it: values by kind and name.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib import import_module
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from midapi_async import MidAPIClient, TaskHandle

Plan = dict[str, Any]
Say = Callable[[str, Awaitable[object]], Awaitable[Any]]  # keeps the outcome of a call
API_KEY = "sk-test-key-123456"
EPOCH = 1_800_000_000  # the wall time at which virtual time begins
TASK_SECONDS = 60.0
LONGEST = 30_000.0  # virtual seconds of a scenario; whatever is still running then hangs
STUCK = 100  # real seconds of a scenario; whatever is still running then loops
SCALE = 40.0  # with several processes: seconds of the service in a real second
NAMES = r"<[^>]* #\d+>|\bID\b|\b(?:settle|adopt|resubmit|dismiss|wait)\(|[Nn]othing was \w+"
CHILD_START = 1.0  # real seconds until a process has imported the package

# ─── plans ───────────────────────────────────────────────────────────────────────────────────────

FLAVOURS = ("faults", "keys", "callbacks", "burst", "unknown", "leaving", "lives", "all")
# Calls of the sandbox's faults; what stands twice is twice as frequent.
SUBMIT_FAULTS = """lose_answer() lose_answer() lose_answer() refuse_connection() reset() hang()
answer_code(429) answer_code(429) answer_code(455) answer_code(402) answer_code(422)
answer_code(401) answer_code(433) answer_code(500) answer_code(501) answer_code(505)
answer_code(999) no_credits_as_500() redirect() bad_task_id('path') answer_status(429)
answer_status(500) answer_status(502) answer_status(503) answer_status(401)
answer_status(429,retry_after='7') answer_status(429,retry_after='70')
answer_status(429,retry_after='500') answer_status(403,page=True)
answer_status(502,page=True,accepted=True) delay(1) delay(20) delay(170) delay(200)
cut(20) cut(20,declared=False) garbage('html') garbage('empty') garbage('deep') garbage('array')
garbage('status_line')"""
UNCLEAR_FAULTS = "lose_answer() hang() answer_code(500) cut(20) reset()"
LOOK_FAULTS = """answer_code(422) answer_code(429) answer_code(500) answer_code(401)
answer_code(404) answer_code(501) answer_status(502) answer_status(503)
answer_status(429,retry_after='20') lose_answer() hang() delay(5) garbage('html')
variant('flag_missing')"""
CALLBACK_FAULTS = """never_call_back() early() duplicate(3) acknowledge_first() fail_callback()
late(3) late(90) like_record()"""


def make_plan(seed: int, *, processes: bool = False) -> Plan:
    """A scenario; equal seeds give equal plans."""
    pick = random.Random(f"{seed} {processes}")
    flavour = "processes" if processes else FLAVOURS[seed % len(FLAVOURS)]
    several = processes or (flavour in ("lives", "unknown", "all") and pick.random() < 0.7)
    two = processes or (flavour in ("keys", "all") and pick.random() < 0.5)
    lives = [
        _life(pick, flavour, number, 2 if two and not number else 1)
        for number in range(pick.randint(2, 3) if several else 1)
    ]
    if processes and pick.random() < 0.4:
        lives[0]["kill"] = [pick.randint(0, 1), pick.choice([15, 45, 80])]  # which client, when
    return {
        "seed": seed,
        "flavour": flavour,
        "folder": processes or flavour in ("lives", "unknown") or pick.random() < 0.5,
        "disk": pick.choice([0.0, 0.002, 0.03]) / (10 if _is_close(lives) else 1),
        "credits": pick.choice([10_000, 10_000, 40]) if flavour == "faults" else 10_000,
        "faults": _faults(pick, flavour, lives),
        "lives": lives,
    }


def _is_close(lives: list[Plan]) -> bool:
    """Whether two orders of a life come so close that a slow disk decides which is sent first.

    How long their writes queue up then says how many writes an order takes, and nothing else.
    """
    orders = [sorted(s[1] for s in life["steps"] if s[3] == "order") for life in lives]
    return any(b - a < 0.1 for each in orders for a, b in itertools.pairwise(each))


def _life(pick: random.Random, flavour: str, number: int, clients: int) -> Plan:
    """One life: clients that open together, and steps: number, seconds, client, what, options."""
    steps: list[list[object]] = []

    def add(at: float, client: int, what: str, **options: object) -> None:
        steps.append([len(steps), round(at, 2), client, what, options])

    is_real = flavour == "processes"  # real time: no short waits, no step that must win a race
    count = {"burst": pick.randint(22, 45), "processes": 5}.get(flavour, pick.randint(1, 8))
    at_once = flavour == "burst" or pick.random() < 0.3
    hints = ["fail=nsfw", "fail", "seconds=400", "seconds=5", "never"][: -1 if is_real else None]
    for index in range(count):
        key = pick.choice("abc") if pick.random() < (0.9 if flavour == "keys" else 0.3) else None
        is_other = bool(key) and pick.random() < 0.1
        hint = "" if key or pick.random() < 0.7 else f" [[sandbox: {pick.choice(hints)}]]"
        prompt = f"fox {key}" if key else f"wolf {number}.{index}{hint}"
        timeout = None if is_real else pick.choice([None, None, 5.1, 90.3, 600.7])
        client = pick.randrange(clients)
        at = 0.0 if at_once else 0.37 * index + pick.choice([0, 0, 30, 100])
        # Races that mean nothing are kept out: who of those at once comes first, a key in a burst,
        # an order beside a resume, in real time the second request under a key.
        at += 0.01 * (client if flavour == "keys" else index) + 8 * (is_real and is_other)
        at += 1 if (flavour == "burst" and key) or number else 0
        apart = pick.random() < (0.95 if timeout else 0.2)
        prompt = "another fox" if is_other else prompt
        add(at, client, "order", prompt=prompt, key=key, timeout=timeout, apart=apart)
    rarely = 0.0 if is_real else 0.8 if flavour == "leaving" else 0.1
    if pick.random() < rarely:
        add(pick.choice([0.55, 3.3, 41.2]), 0, "cancel", step=pick.randrange(count))
    for what in ("stop_waiting", "close"):
        if pick.random() < rarely / 2:
            add(pick.choice([1.3, 21.7, 71.9]), 0, what)
    for _ in range(pick.randint(1, 3) if flavour in ("unknown", "all") else 0):
        how = pick.choice(["settle", "adopt", "adopt_wrong", "resubmit", "dismiss"])
        # None at the same moment as another: which of two comes first is another such race.
        at = pick.choice([2.2, 30.6, 101.3, 402.1, 905.7]) + 5.0 * len(steps)
        add(at, 0, "mend", how=how)
    if number or (pick.random() < 0.3 and not is_real):
        at = pick.choice([0, 52.3, 203.1] if number else [52.3, 203.1])
        add(at, 0, "resume", ack=pick.random() < 0.8)
    share = {"callbacks": 1.0, "unknown": 0.7}.get(flavour, 0.5)
    made = [
        {"receiver": pick.random() < share, "ack": pick.choice(["auto", "auto", "manual"])}
        for _ in range(clients)
    ]
    if is_real:  # which process sends must not matter
        made = [{**each, "receiver": made[0]["receiver"]} for each in made]
    return {"clients": made, "steps": steps}


def _faults(pick: random.Random, flavour: str, lives: list[Plan]) -> list[list[object]]:
    """What goes wrong: operation, at how many requests, of which prompt (any if None), what.

    Requests are counted by prompt or by task, so that their order among each other is no matter.
    """
    steps = [step for life in lives for step in life["steps"] if step[3] == "order"]
    prompts = sorted({step[4]["prompt"] for step in steps})
    some = prompts if flavour == "processes" else [*prompts, None]
    faults: list[list[object]] = []
    for _ in range(pick.randint(*{"faults": (1, 4), "unknown": (1, 3)}.get(flavour, (0, 2)))):
        do = pick.choice((UNCLEAR_FAULTS if flavour == "unknown" else SUBMIT_FAULTS).split())
        first, prompt = pick.choice([1, 1, 2, 4]), pick.choice(some)
        faults += [["submit", first, each, do] for each in ([prompt] if prompt else prompts)]
    if pick.random() < {"faults": 0.7, "all": 0.7, "processes": 0.0}.get(flavour, 0.15):
        faults.append(["look", pick.randint(1, 3), None, pick.choice(LOOK_FAULTS.split())])
    for _ in range(pick.randint(1, 3) if flavour == "callbacks" else pick.random() < 0.3):
        faults.append(["callback", None, pick.choice(some), pick.choice(CALLBACK_FAULTS.split())])
    return faults


# ─── playing ─────────────────────────────────────────────────────────────────────────────────────


class Player:
    """Plays lives of a plan in this process, and keeps what was seen.

    Args:
        url: of the sandbox.
        folder: of the journal; None for one in memory that all lives share.
        scale: seconds of the service in a second of the loop.
        ledger: of the sandbox, to adopt what stands in it; None where it is in another process.
    """

    def __init__(self, url: str, folder: str | None, scale: float, ledger: Any = None) -> None:
        from midapi_async import MemoryJournal

        self._url = url
        self._memory = None if folder else MemoryJournal()
        self._folder = folder
        self._scale = scale
        self._ledger = ledger
        self._began = 0.0
        self._name = ""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.said: list[list[Any]] = []  # who, outcome, text, when
        self.facts: list[tuple[str, str, str]] = []

    async def play(self, name: str, life: Plan, only: int | None = None) -> None:
        """Play the steps of a life, those of one client only if it is given."""
        from midapi_async import MidAPIError

        async with AsyncExitStack() as stack:
            clients: dict[int, MidAPIClient] = {}
            for number, options in enumerate(life["clients"]):
                if only in (None, number):
                    clients[number] = await stack.enter_async_context(self._client(options))
            self._began, self._name = asyncio.get_running_loop().time(), name
            self.facts.append(("began", name, str(round(self._began * self._scale))))
            self._tasks = {
                number: asyncio.create_task(
                    self._step(number, at / self._scale, clients[client], what, options)
                )
                for number, at, client, what, options in life["steps"]
                if client in clients
            }
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            with suppress(MidAPIError):  # closed by a step
                stats = [client.stats() for client in clients.values()]
                for field in ("submits", "callbacks", "ignored_callbacks"):
                    total = sum(getattr(each, field) for each in stats)
                    self.facts.append(("stats", f"{name} {field}", str(total)))
        if only is None:
            await self._read_rows(name)

    def _client(self, options: Plan) -> MidAPIClient:
        from midapi_async import CallbackReceiver, MidAPIClient, PollPolicy, Timeouts

        longest = 3600 if self._scale == 1 else 400
        return MidAPIClient(
            API_KEY,
            base_url=self._url,
            receiver=CallbackReceiver(None, port=0) if options["receiver"] else None,
            journal=self._memory or self._folder,
            ack=options["ack"],
            # What has other defaults in other versions is given.
            timeouts=Timeouts(connect=10, submit=180, look=10, wait=longest),
            polling=PollPolicy(looks_per_second=20),
            time_scale=self._scale,
        )

    async def _read_rows(self, name: str) -> None:
        from midapi_async.journal.sqlite import SQLiteJournal

        journal = self._memory or SQLiteJournal(str(self._folder))
        scope = f"{self._url} default"
        await journal.take_over(scope)
        for row in await journal.rows(scope):  # in every version: of this scope, in any state
            asked = f"{name} {getattr(row.request, 'prompt', None)!r} {row.key}"
            others = len(row.other_task_ids)
            value = f"{row.state} taken={row.taken} task={row.task_id} others={others}"
            self.facts.append(("row", asked, value))
        if self._memory is None:
            await journal.aclose()

    async def _step(
        self, number: int, delay: float, client: MidAPIClient, what: str, options: Plan
    ) -> None:
        """Do a step after so many seconds of the loop, by the method of its name."""
        await asyncio.sleep(delay)
        if what == "cancel":
            if options["step"] in self._tasks:
                self._tasks[options["step"]].cancel()
        elif what == "stop_waiting":
            client.stop_waiting()
        else:
            say = partial(self._say, f"{self._name}.{number}")
            await getattr(self, f"_{what}")(client, say, **options)

    async def _say(self, who: str, what: str, call: Awaitable[object]) -> Any:
        """Keep the outcome of a call, and return it; None if it failed."""
        from midapi_async import MidAPIError

        answer = None
        try:
            answer = await call
        except MidAPIError as error:
            outcome, text = type(error).__name__, str(error)
        except asyncio.CancelledError:
            outcome, text = "cancelled", ""
        else:
            urls = len(getattr(answer, "urls", ()))
            task = getattr(answer, "task_id", None)
            outcome, text = f"{type(answer).__name__} {task} {urls}", ""
        at = (asyncio.get_running_loop().time() - self._began) * self._scale
        self.said.append([f"{who} {what}", outcome, text, at])
        return answer

    async def _order(
        self,
        client: MidAPIClient,
        say: Say,
        prompt: str,
        key: str | None,
        **options: Any,
    ) -> None:
        """Buy and wait, in one call or in two."""
        limit = options["timeout"] or ...
        if not options["apart"]:
            call = client.generate_and_wait(prompt, key=key, wait_timeout=limit)
            await say(f"order {prompt!r}", call)
        elif handle := await say(f"buy {prompt!r}", client.generate(prompt, key=key)):
            await say(f"wait {prompt!r}", handle.wait(limit))

    async def _close(self, client: MidAPIClient, say: Say) -> None:
        await say("close", client.aclose())

    async def _resume(self, client: MidAPIClient, say: Say, *, ack: bool) -> None:
        async def take(handle: TaskHandle) -> None:
            if await say(f"resumed {handle.task_id}", handle.wait(300)) and ack:
                await say(f"ack {handle.task_id}", handle.ack())

        await asyncio.gather(*map(take, await say("resume", client.resume()) or ()))

    async def _mend(self, client: MidAPIClient, say: Say, how: str) -> None:
        """Do something about every unknown submission."""

        async def unknown() -> Any:
            return await client.intents.unknown()

        for row in await say("unknown", unknown()) or ():
            prompt, intents = getattr(row.request, "prompt", ""), client.intents
            bought = [a.task_id for a in self._ledger.accepted if a.body["prompt"] == prompt]
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "settle": partial(intents.settle, row.intent_id, 100),
                "adopt": partial(intents.adopt, row.intent_id, [*bought, "f" * 32][-2:][0]),
                "adopt_wrong": partial(intents.adopt, row.intent_id, "e" * 32),
                "resubmit": partial(intents.resubmit, row.intent_id),
                "dismiss": partial(intents.dismiss, row.intent_id),
            }
            handle = await say(f"{how} {prompt!r}", calls[how]())
            if handle and how == "resubmit":
                await say(f"wait {prompt!r}", handle.wait(300))


# ─── the world ───────────────────────────────────────────────────────────────────────────────────


def _make_faults(plan: Plan) -> Any:
    frozen = import_module("frozen_sandbox.faults")
    faults = frozen.Faults()
    for operation, first, prompt, do in plan["faults"]:
        per = "task" if operation == "look" else None
        when = prompt and (lambda call, prompt=prompt: call.body.get("prompt") == prompt)
        action = eval(do, vars(frozen))  # noqa: S307 - from the lists above
        faults.on(operation, first=first, per=per, when=when, do=action)
    return faults


async def play(plan: Plan, scale: float = 1.0) -> Plan:
    """Play a plan; return its facts: values by kind and name."""
    folder = tempfile.mkdtemp(prefix="recorder-")
    try:
        async with import_module("frozen_sandbox").Sandbox(
            faults=_make_faults(plan),
            seed=plan["seed"],
            durations={("mj_txt2img", "*"): TASK_SECONDS},
            credits=plan["credits"],
            time_scale=scale,
        ) as box:
            player = Player(box.url, folder if plan["folder"] else None, scale, box.ledger)
            for number, life in enumerate(plan["lives"]):
                if len(life["clients"]) > 1 and scale != 1:
                    player.said += await _play_in_processes(f"life {number}", life, box.url, folder)
                else:
                    await player.play(f"life {number}", life)
        return _facts(player, box.ledger, in_time=scale == 1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _play_in_processes(name: str, life: Plan, *world: str) -> list[list[Any]]:
    """Play each client of a life in a process of its own; one may be killed."""
    begin, children = time.time() + CHILD_START, []
    for client in range(len(life["clients"])):
        command = sys.executable, __file__, "--child", json.dumps([name, client, begin, *world])
        child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        children.append(child.communicate(json.dumps(life).encode()))
    outputs = await asyncio.gather(*children)
    return [json.loads(line) for output, _ in outputs for line in output.splitlines()]


async def _be_child(name: str, client: int, begin: float, url: str, folder: str) -> None:
    player, life = Player(url, folder, SCALE), json.load(sys.stdin)
    await asyncio.sleep(begin - time.time())  # the package is imported by then
    if life.get("kill", [None])[0] == client:
        kill = partial(os.kill, os.getpid(), signal.SIGKILL)
        asyncio.get_running_loop().call_later(life["kill"][1] / SCALE, kill)
    await player.play(name, life, only=client)
    for said in player.said:
        print(json.dumps(said))


def _facts(player: Player, ledger: Any, *, in_time: bool) -> Plan:
    """What is compared; ids are replaced by names that are the same in every run."""
    labels: dict[str, str] = {}
    paid: Counter[str] = Counter()
    for accepted in ledger.accepted:
        prompt = str(accepted.body["prompt"]).partition(" [[")[0]
        labels[accepted.task_id] = f"<{prompt} #{paid[prompt]}>"
        paid[prompt] += 1

    def named(text: str) -> str:
        for pattern, name in {
            r"mjt_[\w-]+": "TOKEN",
            r"(https?://)?127\.0\.0\.1:\d+": "HOST",
            r"process \d+": "PROCESS",
            r"\S*/recorder-\w+": "FOLDER",
        }.items():
            text = re.sub(pattern, name, text)
        return re.sub(r"[0-9a-f]{32}", lambda found: labels.get(found[0], "ID"), text)

    facts = player.facts
    if not in_time:  # how often a key is refused depends on who comes when
        facts = [fact for fact in facts if fact[0] == "row" and "refused" not in fact[2]]
    facts += [("paid", prompt, str(count)) for prompt, count in paid.items()]
    tokens = Counter(accepted.callback_url for accepted in ledger.accepted)
    twice = sum(count > 1 for url, count in tokens.items() if url is not None)
    facts.append(("twice", "intents that were paid twice", str(twice)))
    rows = [(name, state) for kind, name, state in facts if kind == "row"]
    for prompt, count in paid.items():  # each life shows all rows, so the last one counts
        ours = [row for row in rows if f"'{prompt}'" in row[0] or f"'{prompt} [[" in row[0]]
        last = max((name.split()[1] for name, _ in ours), default="")
        kept = sum(name.split()[1] == last and "refused" not in state for name, state in ours)
        if kept < count:
            facts.append(("lost", f"paid for and no intent left: {prompt!r}", str(count - kept)))
    for who, outcome, text, at in player.said:
        facts.append(("outcome", who if in_time else re.sub(r"\.\d+ ", " ", who), outcome))
        if in_time:
            names = sorted({*re.findall(NAMES, named(text))})  # which stay when words change
            facts += [("text", who, text), ("names", who, " ".join(names))]
            facts.append(("time", who, str(round(at))))
    if in_time:
        facts += [("log", level, text) for level, text in Errors.seen]
        for asked in ledger.requests:
            at = str(round(asked.at))
            if asked.operation == "submit":
                facts += [("submit", f"status {asked.status}", at), ("submits", "all", "1")]
            elif asked.operation == "look":
                task = asked.task_id or "no task"
                facts += [("look", task, at), ("looks", task, "1")]
        for call in ledger.callbacks:
            facts.append(("callback", f"{call.task_id} {call.kind}", str(call.status)))
    found: dict[str, dict[str, list[str]]] = {}
    for kind, name, value in facts if in_time else sorted(facts):
        found.setdefault(kind, {}).setdefault(named(name), []).append(named(value))
    for kind in ("looks", "submits"):
        for name, values in found.get(kind, {}).items():
            found[kind][name] = [str(len(values))]
    return found


class Errors(logging.Handler):
    """Keeps what is logged as an error; "never retrieved" and the like come from asyncio."""

    seen: ClassVar[list[tuple[str, str]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if record.name.startswith(("midapi_async", "asyncio")):
            self.seen.append((record.levelname, f"{record.name}: {record.getMessage()}"[:200]))


class Clocks:
    """The machine's clocks as the package sees them: they show the virtual time of a loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.ticks = itertools.count()

    def install(self) -> None:
        """Replace the clocks, and make chance even; before the package is imported."""
        time.monotonic = time.clock_gettime = self._now
        time.time = lambda: EPOCH + self._now()
        random.random = lambda: 0.5

    def _now(self, _: object = None) -> float:
        # Each reading is a little later, so that a busy wait for some time to pass ends.
        return (self.loop.time() if self.loop else 0.0) + next(self.ticks) * 1e-8


def make_loop(disk: float) -> Any:
    """A virtual loop in which a job of a thread takes so many virtual seconds, one after another.

    The loop stands still while it is done: so nothing depends on how threads are scheduled.
    """
    base: Any = import_module("frozen_testing").VirtualLoop
    free: dict[object, float] = {}  # when the thread of an executor has time
    loop: Any = base()

    def run_in_executor(executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        begin = threading.Event()
        future: asyncio.Future[Any] = loop.create_future()
        # It is asked for now, maybe under a lock, and begins when the loop has left its turn.
        pool = executor or loop._default_pool()
        loop.call_soon(
            do, executor, begin, pool.submit(lambda: begin.wait() and func(*args)), future
        )
        return future

    def do(executor: object, begin: threading.Event, job: Future[Any], *future: object) -> None:
        begin.set()
        wait([job])
        free[executor] = max(loop.time(), free.get(executor, 0.0)) + disk
        loop.call_at(free[executor], hand_over, job, *future)

    def hand_over(job: Future[object], future: asyncio.Future[object]) -> None:
        if future.done():
            return
        if error := job.exception():
            future.set_exception(error)
        else:
            future.set_result(job.result())

    select = loop._selector.select
    # What is ready at once is dealt with in an order that is the same in every run.
    loop._selector.select = lambda timeout=None: sorted(select(timeout), key=lambda e: e[0].fd)
    loop.run_in_executor = run_in_executor
    return loop


def run(plan: Plan, clocks: Clocks | None) -> Plan:
    """Run a plan in virtual time, or in real time without clocks; return its facts."""
    Errors.seen.clear()
    random.seed(plan["seed"])
    loop = make_loop(plan["disk"]) if clocks else asyncio.new_event_loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        if clocks:
            clocks.loop, clocks.ticks = loop, itertools.count()
        signal.alarm(STUCK)
        try:
            return runner.run(asyncio.wait_for(play(plan, 1.0 if clocks else SCALE), LONGEST))
        except Exception as error:  # noqa: BLE001 - the other version may not crash
            return {"crash": {"": [f"{type(error).__name__}: {error}"[:500]]}}
        finally:
            signal.alarm(0)


def _raise_stuck(*_: object) -> None:
    raise TimeoutError(f"the scenario ran for {STUCK} real seconds")


def main() -> None:
    """Play what the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("first", type=int, nargs="?", default=0)
    parser.add_argument("last", type=int, nargs="?", default=0)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--plans", action="store_true", help="read plans from the standard input")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    logging.getLogger().addHandler(Errors(logging.ERROR))
    if asked.child:
        asyncio.run(_be_child(*asked.child))
        return
    clocks = None if asked.processes else Clocks()
    if clocks:
        clocks.install()
    import_module("midapi_async")  # that it is not there is no outcome of a scenario
    signal.signal(signal.SIGALRM, _raise_stuck)
    plans = map(json.loads, sys.stdin)
    if not asked.plans:
        seeds = range(asked.first, asked.last)
        plans = map(partial(make_plan, processes=asked.processes), seeds)
    for plan in plans:
        print(json.dumps({"plan": plan, "facts": run(plan, clocks)}), flush=True)


if __name__ == "__main__":
    main()
