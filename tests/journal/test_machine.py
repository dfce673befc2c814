"""Two SQLite journals on one folder against one in memory, through crashes and reopening."""

from collections.abc import Coroutine
from contextlib import ExitStack
from typing import TypeVar

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from midapi_async import TextToImage
from midapi_async.errors import JournalError
from midapi_async.journal import BOUGHT, Intent, State
from midapi_async.journal.memory import MemoryJournal
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.testing import VirtualLoop
from tests.journal.world import crash, intent, quick_folder

T = TypeVar("T")
sides = st.sampled_from([0, 1])
scopes = st.sampled_from(["here", "there"])
requests = st.sampled_from([TextToImage("a fox"), TextToImage("a wolf")])


class Journals(RuleBasedStateMachine):
    """What is done to one of the two is done to the model; both must tell the same."""

    intents = Bundle("intents")

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.exits = ExitStack()
        folder = self.exits.enter_context(quick_folder())
        self.model = MemoryJournal()
        self.journals = [SQLiteJournal(folder), SQLiteJournal(folder)]
        self.owners: dict[str, int | None] = {}
        self.made = 0

    def run(self, work: Coroutine[object, object, T]) -> T | str:
        """What came of it, an error included."""
        try:
            return self.loop.run_until_complete(work)
        except JournalError as error:
            return str(error)

    @initialize(target=intents, side=sides, scope=scopes)
    def begin(self, side: int, scope: str) -> str:
        """One row to begin with."""
        return self.new(side, scope, TextToImage("a fox"), "k1", None)

    @rule(
        target=intents,
        side=sides,
        scope=scopes,
        request=requests,
        key=st.sampled_from([None, "k1", "k2"]),
        supersedes=st.none() | intents,
    )
    def claim(
        self, side: int, scope: str, request: TextToImage, key: str | None, supersedes: str | None
    ) -> str:
        """A new intent, or whoever stands in its way."""
        return self.new(side, scope, request, key, supersedes)

    def new(
        self, side: int, scope: str, request: TextToImage, key: str | None, supersedes: str | None
    ) -> str:
        """Claim, and compare."""
        self.made += 1
        mine = intent(
            request,
            intent_id=f"intent-{self.made}",
            token_hash=f"token-{self.made}",
            scope=scope,
            key=key,
            supersedes=supersedes,
        )
        self.same(self.journals[side].claim(mine), self.model.claim(mine))
        if mine.intent_id in self.model._rows:
            self.owners[mine.intent_id] = side
        return mine.intent_id

    @rule(
        side=sides,
        name=intents,
        to=st.none() | st.sampled_from(State),
        task=st.none() | st.sampled_from("ab"),
        taken=st.booleans(),
    )
    def advance(
        self, side: int, name: str, to: State | None, task: str | None, *, taken: bool
    ) -> None:
        """Any move, allowed or not."""
        task_id = task and f"{task}-{name}"
        self.same(
            self.journals[side].advance(name, to, task_id=task_id, taken=taken),
            self.model.advance(name, to, task_id=task_id, taken=taken),
        )

    @rule(side=sides, name=intents, number=st.integers(1, 5), key=st.sampled_from(["k1", "k2"]))
    def find(self, side: int, name: str, number: int, key: str) -> None:
        """By each name."""
        for by in (
            {"intent_id": name},
            {"token_hash": f"token-{number}"},
            {"task_id": f"a-{name}"},
            {"task_id": f"b-{name}"},
            {"key": ("here", key)},
        ):
            self.same(self.journals[side].find(**by), self.model.find(**by))

    @rule(side=sides, scope=scopes)
    def take_over(self, side: int, scope: str) -> None:
        """Ours and those of the dead; the other one keeps its own."""
        got = self.run(self.journals[side].take_over(scope))
        rows = self.loop.run_until_complete(self.model.rows(scope))
        for row in rows:
            if self.owners[row.intent_id] is None and not _is_over(row):
                self.owners[row.intent_id] = side
        expected = [
            row
            for row in rows
            if row.state in BOUGHT and not row.taken and self.owners[row.intent_id] == side
        ]
        assert _timeless(expected) == _timeless(got)

    @rule(side=sides, in_crash=st.booleans())
    def leave(self, side: int, *, in_crash: bool) -> None:
        """Close or crash; the next use opens it again, as somebody new."""
        journal = self.journals[side]
        self.run(crash(journal) if in_crash else journal.aclose())
        for name, owner in self.owners.items():
            if owner == side:
                self.owners[name] = None
                if self.model._rows[name].state is State.SENDING:
                    self.run(self.model.advance(name, State.UNKNOWN))

    @invariant()
    def all_the_same(self) -> None:
        """Every row, in both, in the same order."""
        for scope in ("here", "there"):
            for journal in self.journals:
                self.same(journal.rows(scope), self.model.rows(scope))

    def same(
        self, got: Coroutine[object, object, T], expected: Coroutine[object, object, T]
    ) -> None:
        """Both tell the same, but for the time of day."""
        assert _timeless(self.run(expected)) == _timeless(self.run(got))

    def teardown(self) -> None:
        """Close everything, and see that nothing is damaged."""
        assert self.loop.run_until_complete(self.journals[0].check()).problems == ()
        for journal in self.journals:
            self.run(journal.aclose())
        self.loop.close()
        self.exits.close()


def _is_over(row: Intent) -> bool:
    over = (State.REFUSED, State.SUPERSEDED, State.DISMISSED)
    return row.state in over or (row.taken and row.state in BOUGHT)


def _timeless(told: object) -> object:
    if isinstance(told, list):
        return [_timeless(each) for each in told]
    if isinstance(told, Intent) and told.accepted_at is not None:
        return attrs.evolve(told, accepted_at=0.0)
    return told


def _run(examples: int) -> None:
    run_state_machine_as_test(
        Journals,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_s15_like_one_in_memory() -> None:
    """A folder shared by two journals behaves as one memory would."""
    _run(25)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_s15_like_one_in_memory_for_long() -> None:
    """The same, with many more examples."""
    _run(400)
