"""Journals for the tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from midapi_async.journal import Journal
from midapi_async.journal.memory import MemoryJournal
from midapi_async.journal.postgres import PostgresJournal
from midapi_async.journal.sqlite import SQLiteJournal
from tests.journal.world import late_locks_end, quick_folder
from tests.support.postgres import Server, new_schema


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a journal may be made."""
    with quick_folder() as folder:
        yield folder


@pytest.fixture(params=["memory", "sqlite", "sqlite without prompts", "postgres"])
async def any_journal(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Journal]:
    """Each kind of journal."""
    journal: Journal
    if request.param == "memory":
        journal = MemoryJournal()
    elif request.param == "postgres":
        server: Server = request.getfixturevalue("postgres")
        journal = PostgresJournal(server.url, schema=new_schema())
    else:
        journal = SQLiteJournal(folder, store_prompts=request.param == "sqlite")
    yield journal
    await journal.aclose()


@pytest.fixture
async def sqlite(folder: Path) -> AsyncIterator[SQLiteJournal]:
    """A journal in a folder."""
    journal = SQLiteJournal(folder)
    yield journal
    await journal.aclose()
    await late_locks_end()


@pytest.fixture
async def other(folder: Path) -> AsyncIterator[SQLiteJournal]:
    """A second journal in the same folder."""
    journal = SQLiteJournal(folder)
    yield journal
    await journal.aclose()
    await late_locks_end()
