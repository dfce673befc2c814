"""The whole life of submissions as a state machine: two owners with the same keys, one folder.

Hypothesis submits, loses, refuses, calls back (twice, early, late, forged), waits, cancels,
restarts, crashes, stalls, settles, adopts, resubmits, dismisses, removes a lock file, gives foreign
answers and lets time pass, in any order. I1, I2 and I5 hold after every step, I3 and I4 at the end.
"""

import asyncio
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from midapi_async import (
    CallbackReceiver,
    JournalError,
    MidAPIClient,
    MidAPIError,
    State,
    SubmissionUnknown,
    TaskDetails,
    TaskHandle,
    Timeouts,
)
from midapi_async._wire.protocol import Answer, Call
from midapi_async._wire.tokens import token_hash
from midapi_async.journal import Intent
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.journal.sqlite.journal import _Writer
from midapi_async.testing import VirtualLoop
from tests.journal.world import crash
from tests.support.scripted import Answer as Reply
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
from tests.world import accepted, looked, ok, refused

KEYS = ("fox", "whale", "owl", "hare", "wren")
FATES = (
    *("accepted", "late", "lost", "cut", "hangs", "never came", "refused", "limited", "broken"),
    # What something on the way answers in MidAPI's place; a page may hide that it was accepted.
    *("page", "page, accepted", "proxy's login", "challenge", "another's id", "another's record"),
)
LOOKS = ("another's record", "page", "login", "refused", "never came")
who = st.sampled_from((0, 1))
keys = st.sampled_from(KEYS)
some = st.integers(0, 5)


class Service:
    """MidAPI as the machine plays it: its next submits' fates, and what it was paid for."""

    def __init__(self, *, shows_params: bool) -> None:
        self.fates: dict[str, list[str]] = {}
        self.looks: list[str] = []  # what the next looks get in place of their records
        self.paid: list[tuple[str, str, str]] = []  # key, token, task id
        # The tasks that are in the journal: an answer that names one of them is seen to be foreign.
        self.known: list[str] = []
        self.shows_params = shows_params
        self.server = ScriptedServer(then=self.step)

    def record(self, task_id: str) -> Reply:
        """The record of a task; without parameters nothing shows whose it is."""
        fields: dict[str, object] = {"paramJson": None, "taskType": None}
        if self.shows_params:
            ((key, token),) = [(key, token) for key, token, task in self.paid if task == task_id]
            params = {"prompt": key, "callBackUrl": f"https://me.example/{token}"}
            fields = {"paramJson": json.dumps(params)}
        return looked(task_id, 1, **fields)

    def step(self, request: Received) -> Step:
        if request.method == "GET":
            return self.look(request)
        body = json.loads(request.body)
        key, token = body["prompt"], body["callBackUrl"].rpartition("/")[2]
        fate = self.fates.get(key, []).pop() if self.fates.get(key) else "accepted"
        plays: dict[str, Step] = {
            "refused": refused(402),
            "limited": refused(429, status=429, Retry_After="3"),
            "never came": reset("body"),
            "page": reply(403, body="<html>blocked</html>"),
            "proxy's login": reply(407, body="<html>who are you?</html>"),
            "challenge": reply(
                403, body="<html>robot?</html>", headers={"cf-mitigated": "challenge"}
            ),
        }
        if fate in plays:
            return plays[fate]
        task_id = f"task-{len(self.paid)}"
        self.paid.append((key, token, task_id))
        answer = accepted(task_id)
        another = self.known[-1] if self.known else None
        played: dict[str, Step] = {
            "accepted": answer,
            "late": delay(answer, 40),
            "lost": lose_answer(),
            "cut": cut(answer, body=30),
            "hangs": hang(),
            "broken": reply(502),
            "page, accepted": reply(403, body="<html>blocked</html>", accepted=True),
            "another's id": accepted(another) if another else lose_answer(),
            "another's record": self.record(another) if another else lose_answer(),
        }
        return played[fate]

    def look(self, request: Received) -> Step:
        if not request.path.endswith("record-info"):
            return ok(100)  # the credits, with which a client finds out that an outage is over
        task_id = request.target.rpartition("=")[2]
        others = [task for _, _, task in self.paid if task != task_id]
        fate = self.looks.pop() if self.looks else None
        foreign: dict[str | None, Step] = {
            "another's record": self.record(others[-1]) if others else reset("body"),
            "page": reply(403, body="<html>blocked</html>"),
            "login": reply(200, body="<html>who are you?</html>"),
            "refused": refused(402),
            "never came": reset("body"),
        }
        return foreign.get(fate) or self.record(task_id)


class Journal(SQLiteJournal):
    """A journal whose process can die: from then on nothing is written or read."""

    is_dead = False

    def _opened(self) -> _Writer:
        if self.is_dead:
            raise JournalError("this process is dead")
        return super()._opened()

    async def crash(self) -> None:
        """Leave the folder as a killed process leaves it."""
        self.is_dead = True
        await crash(self)


class Life(RuleBasedStateMachine):
    """Two clients on one folder, each with a receiver that is fed by hand."""

    @initialize(shows_params=st.booleans())
    def begin(self, shows_params: bool) -> None:
        logging.disable(logging.CRITICAL)
        self.folder = Path(tempfile.mkdtemp(prefix="midapi-life-"))
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.service = Service(shows_params=shows_params)
        self.clients: list[MidAPIClient] = []
        self.journals: list[Journal] = []
        self.stalls = [0.0, 0.0]  # seconds for which each client stands still before its next POST
        self.receivers: list[CallbackReceiver] = []
        self.tasks: list[asyncio.Task[object]] = []
        self.handles: list[TaskHandle] = []
        self.resubmits: Counter[str] = Counter()
        self.runner.run(self._begin())

    async def _begin(self) -> None:
        await self.service.server.__aenter__()
        for _ in range(2):
            self.receivers.append(CallbackReceiver("https://me.example"))
            self.journals.append(Journal(self.folder / "journal"))
            self.clients.append(await self._client(len(self.clients)))

    async def _client(self, number: int) -> MidAPIClient:
        client = MidAPIClient(
            API_KEY,
            base_url=self.service.server.url,
            receiver=self.receivers[number],
            journal=self.journals[number],
            timeouts=Timeouts(submit=60, wait=600),
        )
        await client.open()
        sender = client._opened().sender
        send = sender._send

        async def send_later(call: Call, confirm: Callable[[], Awaitable[object]]) -> Answer:
            seconds, self.stalls[number] = self.stalls[number], 0.0
            await asyncio.sleep(seconds)
            return await send(call, confirm)

        sender._send = send_later
        return client

    # ─── what may happen ─────────────────────────────────────────────────────────────────────────

    @rule(
        orders=st.lists(
            st.tuples(who, keys, st.lists(st.sampled_from(FATES), max_size=3)),
            min_size=1,
            max_size=4,
        )
    )
    def submit(self, orders: list[tuple[int, str, list[str]]]) -> None:
        """Some orders at the same time, perhaps with the same key."""

        async def start() -> None:
            for number, key, fates in orders:
                self.service.fates[key] = fates
                self._start(self._generate(self.clients[number], key))
            await asyncio.sleep(0.05)

        self.runner.run(start())

    @rule(number=who, key=keys, fate=st.sampled_from(FATES))
    def generate_and_wait(self, number: int, key: str, fate: str) -> None:
        self.service.fates[key] = [fate]
        self._start(self._checked(self.clients[number].generate_and_wait(key, key=key)))

    @rule(number=who, which=some, task=st.sampled_from(("right", "forged", "another")), times=some)
    def call_back(self, number: int, which: int, task: str, times: int) -> None:
        if not self.service.paid:
            return
        paid = self.service.paid
        _, token, task_id = paid[which % len(paid)]
        named = {"right": task_id, "forged": "../x", "another": paid[-1][2]}[task]
        if task == "another" and named != task_id and not self.service.shows_params:
            return  # the record would fit: only MidAPI itself could tell these two apart
        body = json.dumps({"code": 200, "data": {"taskId": named, "resultUrls": []}}).encode()

        async def call() -> None:
            each = [self.receivers[number].handle(token, {}, body) for _ in range(times + 1)]
            assert set(await asyncio.gather(*each)) <= {200, 400, 404, 503}

        self.runner.run(call())

    @rule(which=some, seconds=st.floats(0, 900))
    def wait(self, which: int, seconds: float) -> None:
        if self.handles:
            handle = self.handles[which % len(self.handles)]
            self._start(self._checked(handle.wait(timeout=seconds), handle.task_id))

    @rule(which=some)
    def cancel(self, which: int) -> None:
        running = [task for task in self.tasks if not task.done()]
        if running:
            running[which % len(running)].cancel()

    @rule(number=who)
    def restart(self, number: int) -> None:
        async def again() -> None:
            await self.clients[number].aclose()
            await self.journals[number].aclose()
            self.clients[number] = await self._client(number)
            self.handles += await self.clients[number].resume()

        self.runner.run(again())

    @rule(number=who)
    def crash(self, number: int) -> None:
        """A process dies; its connections are cut and its journal writes nothing more."""

        async def die() -> None:
            client = self.clients[number]
            await self.journals[number].crash()
            await client._opened()._transport.aclose()
            with suppress(JournalError):
                await client.aclose()
            self.journals[number] = Journal(self.folder / "journal")
            self.clients[number] = await self._client(number)
            self.handles += await self.clients[number].resume()

        self.runner.run(die())

    @rule(number=who, key=keys, seconds=st.sampled_from((0.5, 3.0, 50.0)), is_dead=st.booleans())
    def stall(self, number: int, key: str, seconds: float, is_dead: bool) -> None:
        """A process stands still between a claim and its POST, and may be held for dead."""
        self.stalls[number] = seconds
        self._start(self._generate(self.clients[number], key))
        if is_dead:
            self.remove_the_lock_file(number)

    @rule(number=who)
    def remove_the_lock_file(self, number: int) -> None:
        """A process that is alive is held for dead by the others."""
        writer = self.journals[number]._writer
        for owner in writer._store.owners._mine if writer is not None else ():
            (self.folder / "journal" / "owners" / owner).unlink(missing_ok=True)

    @rule(looks=st.lists(st.sampled_from(LOOKS), min_size=1, max_size=6))
    def mix_up_looks(self, looks: list[str]) -> None:
        self.service.looks = looks

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
        self.service.known = [row.task_id for row in rows if row.task_id is not None]
        states = {row.token_hash: row.state for row in rows}
        may_be_paid = (State.UNKNOWN, State.SENDING, State.SUPERSEDED, State.DISMISSED)
        for key, token, task in self.service.paid:
            state = states[token_hash(token)]
            assert task in known or state in may_be_paid, f"{task} for {key} ({state}) is lost"
        place = {token_hash(token): n for n, (_, token, _) in enumerate(self.service.paid)}
        tokens = {row.intent_id: row.token_hash for row in rows}
        for row in rows:
            assert row.details is None or row.details.task_id == row.task_id, row
            old = tokens.get(row.supersedes or "")
            if old in place and row.token_hash in place:
                assert place[old] < place[row.token_hash], f"sent after {row} superseded it"

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
        for journal in self.journals:
            await journal.aclose()
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

    async def _checked(
        self, waiting: Awaitable[TaskDetails], task_id: str | None = None
    ) -> TaskDetails:
        details = await waiting
        assert task_id in (None, details.task_id), f"{details.task_id} was given for {task_id}"
        return details

    async def _generate(self, client: MidAPIClient, key: str) -> None:
        with suppress(SubmissionUnknown):
            self.handles.append(await client.generate(key, key=key, metadata={"key": key}))

    async def _rows(self) -> list[Intent]:
        return await self.clients[0]._journal.rows(f"{self.service.server.url} default")


pytestmark = [
    pytest.mark.fault("I1"),
    pytest.mark.fault("I2"),
    pytest.mark.fault("I3"),
    pytest.mark.fault("I4"),
    pytest.mark.fault("I5"),
]
# To shrink a failing example takes longer than a test may.
TestLife = pytest.mark.timeout(7200)(Life.TestCase)
TestLife.settings = settings(
    max_examples=int(os.environ.get("MIDAPI_TEST_LIFE", "30")),
    stateful_step_count=20,
    deadline=None,
    derandomize="MIDAPI_TEST_LIFE" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
