"""Two SQLite journals on one folder against one in memory, through crashes and reopening."""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from midapi_async import TextToImage
from midapi_async.config import RateLimit
from midapi_async.errors import JournalError
from midapi_async.journal import Busy, Claimed, Intent, Journal, Standing, State
from midapi_async.journal.memory import MemoryJournal, _MemoryTable
from midapi_async.journal.postgres import PostgresJournal
from midapi_async.journal.postgres import session as session_module
from midapi_async.journal.postgres import table as table_module
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.testing import VirtualLoop
from tests.journal.world import claim, crash, intent, quick_folder
from tests.support.postgres import Server, new_schema

Work = Coroutine[object, object, object]
sides = st.sampled_from([0, 1])
scopes = st.sampled_from(["https://one here", "https://one there"])
requests = st.sampled_from([TextToImage("a fox"), TextToImage("a wolf")])
keys = st.sampled_from([None, "k1", "k2"])
limits = st.sampled_from([None, RateLimit(3), RateLimit(2, per=5.0)])
task_ids = st.none() | st.sampled_from(["t1", "t2", "t3"])


class Model(_MemoryTable):
    """Rows in memory with owners of our choice: two that can die and come back as others."""

    def __init__(self) -> None:
        super().__init__()
        self.lives = [0, 0]
        self.side = 0

    @property
    def me(self) -> str:
        """The side whose turn it is, in its present life."""
        return f"{self.side} {self.lives[self.side]}"

    def is_alive(self, owner: str) -> bool:
        """Whether that was not one of its former lives."""
        side, life = map(int, owner.split())
        return self.lives[side] == life


class Journals(RuleBasedStateMachine):
    """What is done to one of the two is done to the model; both must answer the same.

    Attributes:
        postgres: a server whose journals are tested; None for those in a folder.
    """

    postgres: Server | None = None

    intents = Bundle("intents")

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.exits = ExitStack()
        self.model = MemoryJournal()
        self.table = self.model._table = Model()
        self.journals: list[SQLiteJournal] | list[PostgresJournal]
        if self.postgres is not None:
            url, schema = self.postgres.url, new_schema()
            self.journals = [PostgresJournal(url, schema=schema) for _ in range(2)]
        else:
            folder = self.exits.enter_context(quick_folder())
            self.journals = [SQLiteJournal(folder) for _ in range(2)]
        self.slots: dict[str, tuple[str, str]] = {}
        self.wanted: dict[str, Intent] = {}

    @initialize(target=intents, side=sides, scope=scopes)
    def begin(self, side: int, scope: str) -> str:
        """One row to begin with."""
        return str(self.new(side, scope, TextToImage("a fox"), "k1", None, None))

    @rule(
        target=intents,
        side=sides,
        scope=scopes,
        request=requests,
        key=keys,
        supersedes=st.none() | intents,
        limit=limits,
    )
    def new(  # noqa: PLR0917 - hypothesis names them
        self,
        side: int,
        scope: str,
        request: TextToImage,
        key: str | None,
        supersedes: str | None,
        limit: RateLimit | None,
    ) -> str:
        """A new intent is claimed, or another row stands in its way, or no slot is free."""
        number = len(self.wanted) + 1
        mine = intent(
            request,
            intent_id=f"intent-{number}",
            token_hash=f"token-{number}",
            scope=scope,
            key=key,
            supersedes=supersedes,
        )
        self.wanted[mine.intent_id] = mine
        self.claim(side, mine.intent_id, limit)
        return mine.intent_id

    @rule(side=sides, name=intents, limit=limits)
    def claim(self, side: int, name: str, limit: RateLimit | None) -> None:
        """Claim an intent, perhaps again."""
        mine = self.wanted[name]
        got, expected = self.both(
            side, claim(self.journals[side], mine, limit), claim(self.model, mine, limit)
        )
        if isinstance(got, Claimed) and isinstance(expected, Claimed):
            self.slots[name] = got.slot, expected.slot

    @rule(side=sides, name=intents, sent=st.booleans(), pause=st.sampled_from([None, 3.0]))
    def release(self, side: int, name: str, *, sent: bool, pause: float | None) -> None:
        """A POST has ended, and the intent will be claimed again."""
        got, expected = self.slots.get(name, ("no slot", "no slot"))
        self.both(
            side,
            self.journals[side].release(got, sent=sent, pause=pause),
            self.model.release(expected, sent=sent, pause=pause),
        )

    @rule(
        side=sides,
        name=intents,
        to=st.none() | st.sampled_from(State),
        with_slot=st.booleans(),
        task_id=task_ids,
        candidate=task_ids,
        foreign=task_ids,
        taken=st.booleans(),
    )
    def advance(
        self,
        side: int,
        name: str,
        to: State | None,
        task_id: str | None,
        candidate: str | None,
        *,
        foreign: str | None,
        with_slot: bool,
        taken: bool,
    ) -> None:
        """Any move, allowed or not."""
        slots = self.slots.get(name, (None, None)) if with_slot else (None, None)
        journals: tuple[Journal, Journal] = self.journals[side], self.model
        got, expected = (
            journal.advance(
                name,
                to,
                slot=slot,
                task_id=task_id,
                candidate=candidate,
                foreign=foreign,
                taken=taken,
            )
            for journal, slot in zip(journals, slots, strict=True)
        )
        self.both(side, got, expected)

    @rule(side=sides, name=intents, scope=scopes, key=st.sampled_from(["k1", "k2"]))
    def find(self, side: int, name: str, scope: str, key: str) -> None:
        """By each name."""
        journal = self.journals[side]
        self.both(side, journal.find(intent_id=name), self.model.find(intent_id=name))
        token = self.wanted[name].token_hash
        self.both(side, journal.find(token_hash=token), self.model.find(token_hash=token))
        self.both(side, journal.find(key=(scope, key)), self.model.find(key=(scope, key)))
        for task_id in ("t1", "t2", "t3"):
            named = self.table._by_task_ids([task_id])
            # Of several that have it among others, any may be found.
            if len(named) < 2 or any(row.task_id == task_id for row in named):
                self.both(side, journal.find(task_id=task_id), self.model.find(task_id=task_id))

    @rule(side=sides, scope=scopes)
    def take_over(self, side: int, scope: str) -> None:
        """The rows of the dead become ours; the other side keeps its own."""
        self.both(side, self.journals[side].take_over(scope), self.model.take_over(scope))

    @rule(side=sides)
    def prune(self, side: int) -> None:
        """Everything that has ended goes, but for the keys."""
        before = time.time() + 100
        self.both(side, self.journals[side].prune(before), self.model.prune(before))

    @rule(side=sides, in_crash=st.booleans())
    def leave(self, side: int, *, in_crash: bool) -> None:
        """Close or crash; with its next use it is another owner."""
        journal = self.journals[side]
        self.loop.run_until_complete(crash(journal) if in_crash else journal.aclose())
        self.table.lives[side] += 1

    @precondition(lambda self: self.postgres is not None)
    @rule(side=sides)
    def lose_an_answer(self, side: int) -> None:
        """The next write of a PostgreSQL journal is committed, and its connection then ends."""
        journal = self.journals[side]
        assert isinstance(journal, PostgresJournal)
        if self.loop not in journal._sessions:
            return
        session = journal._sessions[self.loop]
        ask = session._ask

        async def cut(method: str, statement: str, *values: object) -> Any:
            answer = await ask(method, statement, *values)
            if "write_1" in statement:
                session._ask = ask  # type: ignore[method-assign]
                session._worker.terminate()
                raise ConnectionResetError
            return answer

        session._ask = cut  # type: ignore[method-assign]

    @rule(seconds=st.sampled_from([1.0, 6.0, 200.0]))
    def wait(self, seconds: float) -> None:
        """Slots become free."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @invariant()
    def all_the_same(self) -> None:
        """Every row, in both, in the same order, with the same owner."""
        for side, journal in enumerate(self.journals):
            for mine in (False, True):
                self.both(side, journal.rows(mine=mine), self.model.rows(mine=mine))

    def both(self, side: int, got: Work, expected: Work) -> tuple[object, object]:
        """What a journal and the model answer: the same, but for names and the time of day."""
        self.table.side = side
        answers = self.answer(got), self.answer(expected)
        assert _comparable(answers[0]) == _comparable(answers[1])
        return answers

    def answer(self, work: Work) -> object:
        """What came of it, an error included."""
        try:
            return self.loop.run_until_complete(work)
        except JournalError as error:
            return str(error)

    def teardown(self) -> None:
        """Close everything, and see that nothing is damaged."""
        assert list(self.loop.run_until_complete(self.journals[0].check())) == []
        for journal in self.journals:
            self.loop.run_until_complete(journal.aclose())
        self.loop.close()
        self.exits.close()


def _comparable(answer: object) -> object:
    if isinstance(answer, list):
        return [_comparable(each) for each in answer]
    if isinstance(answer, Standing):
        return _comparable(answer.intent), answer.same
    if isinstance(answer, Claimed):
        return attrs.evolve(answer, slot="", share=0.0)
    if isinstance(answer, Busy):
        return round(answer.retry_in, 6)
    if isinstance(answer, Intent):
        return attrs.evolve(
            answer,
            owner="",
            accepted_at=answer.accepted_at and 1.0,
            ended_at=answer.ended_at and 1.0,
        )
    return answer


def _run(examples: int, machine: type[Journals] = Journals) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.one_python
@pytest.mark.fault("S15")
def test_a_shared_folder_behaves_like_one_memory() -> None:
    """A folder shared by two journals behaves as one memory would, whoever crashes or closes."""
    _run(25)


@pytest.mark.one_python
@pytest.mark.fault("S15")
@pytest.mark.parametrize(
    "examples", [4, pytest.param(400, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])]
)
def test_a_shared_schema_behaves_like_one_memory(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    """The same on PostgreSQL: two journals, as on two machines; each recalls old states."""
    monkeypatch.setattr(table_module, "_READS_FIRST", 0.0)
    # Time would pass before a second try.
    monkeypatch.setattr(session_module, "random", SimpleNamespace(random=lambda: -0.5))
    _run(examples, type("PostgresJournals", (Journals,), {"postgres": postgres}))


@pytest.mark.fault("S15")
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_shared_folder_behaves_like_one_memory_for_long() -> None:
    """The same, with many more examples."""
    _run(400)
