"""The contract of all journals, run with each of ours, and what it cannot ask of all."""
# ruff: noqa: E402 - assertions are rewritten in what is imported after that was asked for

from pathlib import Path

import attrs
import pytest

pytest.register_assert_rewrite("midapi_async.journal.contract")

from midapi_async.journal import Journal, State, memory
from midapi_async.journal.contract import (
    MOVES,
    SCOPE,
    JournalContract,
    SharedJournalContract,
    an_intent,
    claimed,
    in_state,
    row_of,
)
from midapi_async.journal.memory import MemoryJournal
from midapi_async.journal.postgres import PostgresJournal
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.journal.states import moved
from midapi_async.testing import VirtualLoop
from tests.support.postgres import Server, new_schema


class TestMemoryJournal(JournalContract):
    """It lives in one object."""

    def make_journal(self) -> Journal:
        return MemoryJournal()


class TestSQLiteJournal(SharedJournalContract):
    """Two objects on one folder are two owners, as two processes are."""

    @pytest.fixture(autouse=True)
    def place(self, folder: Path) -> None:
        self.folder = folder

    def make_journal(self) -> Journal:
        return SQLiteJournal(self.folder)


class TestSQLiteJournalWithoutPrompts(TestSQLiteJournal):
    """What was asked for is not on the disk, and all else holds."""

    stores_prompts = False

    def make_journal(self) -> Journal:
        return SQLiteJournal(self.folder, store_prompts=False)


@pytest.mark.one_python
class TestPostgresJournal(SharedJournalContract):
    """Two objects on one schema are two owners, as processes on two machines are."""

    @pytest.fixture(autouse=True)
    def place(self, postgres: Server) -> None:
        self.url, self.schema = postgres.url, new_schema()

    def make_journal(self) -> Journal:
        return PostgresJournal(self.url, schema=self.schema)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def journal_of_loops(request: pytest.FixtureRequest, folder: Path) -> Journal:
    """A journal of each kind, which event loops use in turn."""
    if request.param == "postgres":
        server: Server = request.getfixturevalue("postgres")
        return PostgresJournal(server.url, schema=new_schema())
    return MemoryJournal() if request.param == "memory" else SQLiteJournal(folder)


@pytest.mark.fault("L10")
def test_the_loop_that_was_sending_is_closed(journal_of_loops: Journal) -> None:
    """What it was sending is unknown to the next loop, though the process lives."""
    journal = journal_of_loops
    sending, resting = an_intent(), an_intent()

    async def begin() -> None:
        await claimed(journal, sending)
        await in_state(journal, State.RESTING, intent=resting)

    async def go_on() -> None:
        assert (await row_of(journal, sending)).state is State.UNKNOWN
        assert (await row_of(journal, resting)).state is State.REFUSED
        ours = an_intent()
        await claimed(journal, ours)
        await journal.take_over(SCOPE)
        assert (await row_of(journal, ours)).state is State.SENDING
        await journal.aclose()

    VirtualLoop.run(begin())
    VirtualLoop.run(go_on())


@pytest.mark.fault("L10")
def test_the_results_of_a_loop_that_is_closed(journal_of_loops: Journal) -> None:
    """The next loop takes over those that were not taken, finished or not."""
    journal = journal_of_loops
    states = [State.ACCEPTED, State.CALLED_BACK, State.SUCCEEDED, State.FAILED, State.UNKNOWN]
    intents = {state: an_intent() for state in states}
    taken, refused = an_intent(), an_intent()

    async def begin() -> None:
        for state, intent in intents.items():
            await in_state(journal, state, intent=intent)
        await in_state(journal, State.SUCCEEDED, intent=taken)
        await journal.advance(taken.intent_id, taken=True)
        await in_state(journal, State.REFUSED, intent=refused)

    async def go_on() -> None:
        await journal.take_over(SCOPE)
        assert {row.state for row in await journal.rows(mine=True)} == set(states)
        assert len(await journal.rows(mine=True)) == len(states)
        await journal.aclose()

    VirtualLoop.run(begin())
    VirtualLoop.run(go_on())


async def test_what_memory_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is over, has no key and, if it was bought, was taken; the oldest first."""
    monkeypatch.setattr(memory, "REMEMBERED", 3)
    journal = MemoryJournal()
    kept = [
        await in_state(journal, State.SUCCEEDED),
        await in_state(journal, State.FAILED),
        await in_state(journal, State.UNKNOWN),
        await in_state(journal, State.REFUSED, "k"),
    ]
    late = await in_state(journal, State.REFUSED)
    late = await journal.advance(late.intent_id, State.ACCEPTED, task_id="late")
    first, *others = [await in_state(journal, State.REFUSED) for _ in range(4)]
    assert await journal.rows() == [*kept, late, *others]
    assert await journal.find(token_hash=first.token_hash) is None
    assert await journal.find(token_hash=late.token_hash) == late


@pytest.mark.parametrize("state", list(State))
def test_moves_are_those_of_the_picture(state: State) -> None:
    """Without a store: one that is not allowed gives the very same row."""
    row = attrs.evolve(an_intent(), state=state)
    for to in State:
        after = moved(row, to, now=1.0)
        assert after.state is (to if to in MOVES[state] else state)
        assert (after is row) is (to not in MOVES[state])
