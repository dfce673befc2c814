"""The whole life of submissions as a state machine: two processes' worth of clients, one folder.

Hypothesis submits, loses, refuses, calls back (twice, early, late, forged), waits, cancels,
restarts, settles, adopts, resubmits, dismisses and lets time pass, in any order. I1, I2 and I5 hold
after every step, I3 and I4 at the end.
"""

import asyncio
import json
import logging
import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from midapi_async import (
    CallbackReceiver,
    MidAPIClient,
    MidAPIError,
    State,
    SubmissionUnknown,
    TaskHandle,
    Timeouts,
)
from midapi_async.journal import Intent
from midapi_async.testing import VirtualLoop
from tests.support.scripted import (
    Received,
    ScriptedServer,
    Step,
    cut,
    delay,
    hang,
    lose_answer,
    reply,
    reset,
)
from tests.support.secrets import API_KEY
from tests.world import accepted, looked, refused

KEYS = ("fox", "whale", "owl")
FATES = ("accepted", "late", "lost", "cut", "hangs", "never came", "refused", "limited", "broken")
who = st.sampled_from((0, 1))
keys = st.sampled_from(KEYS)
some = st.integers(0, 5)


class Service:
    """MidAPI as the machine plays it: its next submits' fates, and what it was paid for."""

    def __init__(self) -> None:
        self.fates: dict[str, list[str]] = {}
        self.paid: list[tuple[str, str, str]] = []  # key, token, task id
        self.server = ScriptedServer(then=self.step)

    def step(self, request: Received) -> Step:
        if request.method == "GET":
            return looked(request.target.rpartition("=")[2], 1, paramJson=None, taskType=None)
        body = json.loads(request.body)
        key, token = body["prompt"], body["callBackUrl"].rpartition("/")[2]
        fate = self.fates.get(key, []).pop() if self.fates.get(key) else "accepted"
        if fate in ("refused", "limited", "never came"):
            plays: dict[str, Step] = {
                "refused": refused(402),
                "limited": refused(429, status=429, Retry_After="3"),
                "never came": reset("body"),
            }
            return plays[fate]
        task_id = f"task-{len(self.paid)}"
        self.paid.append((key, token, task_id))
        answer = accepted(task_id)
        played: dict[str, Step] = {
            "accepted": answer,
            "late": delay(answer, 40),
            "lost": lose_answer(),
            "cut": cut(answer, body=30),
            "hangs": hang(),
            "broken": reply(502),
        }
        return played[fate]


class Life(RuleBasedStateMachine):
    """Two clients on one folder, each with a receiver that is fed by hand."""

    @initialize()
    def begin(self) -> None:
        logging.disable(logging.CRITICAL)
        self.folder = Path(tempfile.mkdtemp(prefix="midapi-life-"))
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.service = Service()
        self.clients: list[MidAPIClient] = []
        self.receivers: list[CallbackReceiver] = []
        self.tasks: list[asyncio.Task[object]] = []
        self.handles: list[TaskHandle] = []
        self.resubmits: Counter[str] = Counter()
        self.runner.run(self._begin())

    async def _begin(self) -> None:
        await self.service.server.__aenter__()
        for _ in range(2):
            self.receivers.append(CallbackReceiver("https://me.example"))
            self.clients.append(self._client(len(self.clients)))
            await self.clients[-1].open()

    def _client(self, number: int) -> MidAPIClient:
        return MidAPIClient(
            API_KEY,
            base_url=self.service.server.url,
            receiver=self.receivers[number],
            journal=self.folder / "journal",
            timeouts=Timeouts(submit=60, wait=600),
        )

    # ─── what may happen ─────────────────────────────────────────────────────────────────────────

    @rule(number=who, key=keys, fates=st.lists(st.sampled_from(FATES), max_size=3))
    def submit(self, number: int, key: str, fates: list[str]) -> None:
        self.service.fates[key] = fates
        self._start(self._generate(self.clients[number], key))

    @rule(number=who, key=keys, fate=st.sampled_from(FATES))
    def generate_and_wait(self, number: int, key: str, fate: str) -> None:
        self.service.fates[key] = [fate]
        self._start(self.clients[number].generate_and_wait(key, key=key))

    @rule(number=who, which=some, task=st.sampled_from(("right", "forged", "another")), times=some)
    def call_back(self, number: int, which: int, task: str, times: int) -> None:
        if not self.service.paid:
            return
        paid = self.service.paid
        _, token, task_id = paid[which % len(paid)]
        named = {"right": task_id, "forged": "../x", "another": paid[-1][2]}[task]
        if task == "another" and named != task_id:
            return  # the record would fit: only MidAPI itself could tell these two apart
        body = json.dumps({"code": 200, "data": {"taskId": named, "resultUrls": []}}).encode()

        async def call() -> None:
            each = [self.receivers[number].handle(token, {}, body) for _ in range(times + 1)]
            assert set(await asyncio.gather(*each)) <= {200, 400, 404, 503}

        self.runner.run(call())

    @rule(which=some, seconds=st.floats(0, 900))
    def wait(self, which: int, seconds: float) -> None:
        if self.handles:
            self._start(self.handles[which % len(self.handles)].wait(timeout=seconds))

    @rule(which=some)
    def cancel(self, which: int) -> None:
        running = [task for task in self.tasks if not task.done()]
        if running:
            running[which % len(running)].cancel()

    @rule(number=who)
    def restart(self, number: int) -> None:
        async def again() -> None:
            await self.clients[number].aclose()
            self.clients[number] = self._client(number)
            await self.clients[number].open()
            self.handles += await self.clients[number].resume()

        self.runner.run(again())

    @rule(number=who, what=st.sampled_from(("settle", "adopt", "resubmit", "dismiss")))
    def act_on_an_unknown(self, number: int, what: str) -> None:
        async def act() -> None:
            intents = self.clients[number].intents
            unknown = await intents.unknown()
            if not unknown:
                return
            row = unknown[0]
            tasks = [task for key, token, task in self.service.paid if key == row.key]
            if what == "settle":
                self._start(intents.settle(row.intent_id, timeout=30))
            elif what == "dismiss" and not tasks:
                await intents.dismiss(row.intent_id)
            elif what == "adopt" and len(tasks) == 1:
                await intents.adopt(row.intent_id, tasks[0])
            elif what == "resubmit":
                assert row.key is not None
                self.resubmits[row.key] += 1
                self._start(intents.resubmit(row.intent_id))

        self.runner.run(act())

    @rule(seconds=st.sampled_from((0.1, 5.0, 70.0, 700.0)))
    def let_time_pass(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    # ─── what must be true ───────────────────────────────────────────────────────────────────────

    @invariant()
    def i1_nobody_pays_twice(self) -> None:
        if not hasattr(self, "service"):
            return
        paid = Counter(key for key, _, _ in self.service.paid)
        for key, times in paid.items():
            assert times <= 1 + self.resubmits[key], f"{key} was paid {times} times"

    @invariant()
    def i2_nothing_paid_for_is_lost(self) -> None:
        if not hasattr(self, "service"):
            return
        rows = self.runner.run(self._rows())
        known = {task for row in rows for task in (row.task_id, *row.other_task_ids)}
        open_keys = {
            row.key for row in rows if row.state in (State.UNKNOWN, State.SENDING, State.SUPERSEDED)
        }
        for key, _, task in self.service.paid:
            assert task in known or key in open_keys, f"{task} for {key} is lost"

    @invariant()
    def i5_the_folder_holds_no_secret(self) -> None:
        if not hasattr(self, "service"):
            return
        written = b"".join(f.read_bytes() for f in self.folder.rglob("*") if f.is_file())
        assert API_KEY.encode() not in written
        for _, token, _ in self.service.paid:
            assert token.encode() not in written

    def teardown(self) -> None:
        if not hasattr(self, "service"):
            return
        self.runner.run(self._end())
        self.i1_nobody_pays_twice()
        self.runner.close()
        shutil.rmtree(self.folder)
        logging.disable(logging.NOTSET)

    async def _end(self) -> None:
        """I3: with time every wait ends, in exactly one outcome; I4: nothing is left running."""
        await asyncio.sleep(2000)
        assert all(task.done() for task in self.tasks), "a wait has no outcome"
        for client in self.clients:
            await client.aclose()
        await self.service.server.__aexit__(None, None, None)
        for task in self.tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, MidAPIError), repr(error)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    # ─── how ─────────────────────────────────────────────────────────────────────────────────────

    def _start(self, work: object) -> None:
        async def start() -> None:
            self.tasks.append(asyncio.ensure_future(work))  # type: ignore[call-overload]
            await asyncio.sleep(0.05)

        if asyncio._get_running_loop() is not None:
            self.tasks.append(asyncio.ensure_future(work))  # type: ignore[call-overload]
        else:
            self.runner.run(start())

    async def _generate(self, client: MidAPIClient, key: str) -> None:
        with suppress(SubmissionUnknown):
            self.handles.append(await client.generate(key, key=key, metadata={"key": key}))

    async def _rows(self) -> list[Intent]:
        return await self.clients[0]._journal.rows(f"{self.service.server.url} default")


# To shrink a failing example takes longer than a test may.
TestLife = pytest.mark.timeout(900)(Life.TestCase)
TestLife.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
