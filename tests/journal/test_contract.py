"""The contract of all journals, run with each of ours, and what it cannot ask of all."""
# ruff: noqa: E402 - assertions are rewritten in what is imported after that was asked for

from pathlib import Path

import attrs
import pytest

pytest.register_assert_rewrite("midapi_async.journal.contract")

from midapi_async.journal import Journal, State
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
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.journal.states import moved
from midapi_async.testing import VirtualLoop


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


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_l10_the_loop_that_was_sending_is_closed(kind: str, folder: Path) -> None:
    """What it was sending is unknown to the next loop, though the process lives."""
    journal: Journal = MemoryJournal() if kind == "memory" else SQLiteJournal(folder)
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


@pytest.mark.parametrize("state", list(State))
def test_moves_are_those_of_the_picture(state: State) -> None:
    """Without a store: one that is not allowed gives the very same row."""
    row = attrs.evolve(an_intent(), state=state)
    for to in State:
        after = moved(row, to, now=1.0)
        assert after.state is (to if to in MOVES[state] else state)
        assert (after is row) is (to not in MOVES[state])
