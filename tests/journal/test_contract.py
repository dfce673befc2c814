"""What every journal does, whichever it is."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import attrs
import pytest

from midapi_async.errors import JournalError
from midapi_async.journal import BOUGHT, TOLD, Experience, Intent, Journal, State
from midapi_async.journal.memory import MemoryJournal
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.testing import VirtualLoop
from tests.journal.world import FOX, SCOPE, intent

_WAYS: dict[State, tuple[State, ...]] = {
    State.SENDING: (),
    State.REFUSED: (State.REFUSED,),
    State.ACCEPTED: (State.ACCEPTED,),
    State.CALLED_BACK: (State.ACCEPTED, State.CALLED_BACK),
    State.UNKNOWN: (State.UNKNOWN,),
    State.DISMISSED: (State.UNKNOWN, State.DISMISSED),
    State.SUCCEEDED: (State.ACCEPTED, State.SUCCEEDED),
    State.FAILED: (State.ACCEPTED, State.FAILED),
}


async def in_state(journal: Journal, state: State, *, key: str | None = None) -> Intent:
    """An intent that was led to a state."""
    row = await journal.claim(intent(key=key))
    for step in _WAYS[state]:
        task_id = f"task-of-{row.intent_id}" if step is State.ACCEPTED else None
        row = await journal.advance(row.intent_id, step, task_id=task_id)
    assert state is row.state
    return row


async def test_what_is_claimed_can_be_found(any_journal: Journal) -> None:
    """By its id, its token's hash, its key and, once it has one, its task."""
    mine = intent(key="order-17", metadata={"channel": "42", "name": "ö"})
    assert mine == await any_journal.claim(mine)
    accepted = await any_journal.advance(mine.intent_id, State.ACCEPTED, task_id="t-1")
    expected = attrs.evolve(
        mine, state=State.ACCEPTED, task_id="t-1", accepted_at=accepted.accepted_at
    )
    found = [
        await any_journal.find(intent_id=mine.intent_id),
        await any_journal.find(token_hash=mine.token_hash),
        await any_journal.find(key=(SCOPE, "order-17")),
        await any_journal.find(task_id="t-1"),
    ]
    # Where prompts are not stored, these two are not either.
    assert [
        row and attrs.evolve(row, request=FOX, fingerprint=mine.fingerprint) for row in found
    ] == [expected] * 4
    assert accepted.accepted_at is not None
    assert accepted.accepted_at >= mine.created_at


async def test_what_is_not_there_is_none(any_journal: Journal) -> None:
    """Nothing is found by names that nobody has."""
    await any_journal.claim(intent(key="k"))
    assert await any_journal.find() is None
    assert await any_journal.find(intent_id="nobody's") is None
    assert await any_journal.find(token_hash="0" * 64) is None
    assert await any_journal.find(task_id="none") is None
    assert await any_journal.find(key=(SCOPE, "K")) is None
    assert await any_journal.find(key=("another scope", "k")) is None


@pytest.mark.parametrize("state", list(_WAYS))
async def test_s15_who_holds_a_key(any_journal: Journal, state: State) -> None:
    """A key is spent for good, unless it was refused: then the next one gets it."""
    first = await in_state(any_journal, state, key="k")
    second = intent(key="k")
    got = await any_journal.claim(second)
    holder = await any_journal.find(key=(SCOPE, "k"))
    assert holder is not None
    if state is State.REFUSED:
        assert second == got
        assert second.intent_id == holder.intent_id
    else:
        assert first.intent_id == got.intent_id == holder.intent_id
        assert state is got.state
        assert second.fingerprint == got.fingerprint
        assert await any_journal.find(intent_id=second.intent_id) is None
        assert await any_journal.find(token_hash=second.token_hash) is None
    assert (await any_journal.claim(intent(key="k", scope="another"))).scope == "another"


async def test_s15_twenty_coroutines_one_key(any_journal: Journal) -> None:
    """Whoever comes first has it; all are told the same."""
    claims = [any_journal.claim(intent(key="k")) for _ in range(20)]
    assert len({row.intent_id for row in await asyncio.gather(*claims)}) == 1
    assert len(await any_journal.rows(SCOPE)) == 1


async def test_a_refused_intent_that_lost_its_key(any_journal: Journal) -> None:
    """Its late callback is still taken, and the key stays with the one that took it over."""
    old = await in_state(any_journal, State.REFUSED, key="k")
    new = await any_journal.claim(intent(key="k"))
    late = await any_journal.advance(old.intent_id, State.ACCEPTED, task_id="late")
    assert (late.state, late.task_id) == (State.ACCEPTED, "late")
    holder = await any_journal.find(key=(SCOPE, "k"))
    assert holder is not None
    assert new.intent_id == holder.intent_id


async def test_superseding(any_journal: Journal) -> None:
    """An unknown intent gives its key to the one that supersedes it, and takes its callback yet."""
    old = await in_state(any_journal, State.UNKNOWN, key="k")
    new = intent(key="k", supersedes=old.intent_id)
    assert new == await any_journal.claim(new)
    row = await any_journal.find(intent_id=old.intent_id)
    assert row is not None
    assert State.SUPERSEDED is row.state
    late = await any_journal.advance(old.intent_id, State.ACCEPTED, task_id="late")
    assert State.ACCEPTED is late.state
    holder = await any_journal.find(key=(SCOPE, "k"))
    assert holder is not None
    assert (new.intent_id, old.intent_id) == (holder.intent_id, holder.supersedes)


@pytest.mark.parametrize("state", [state for state in _WAYS if state is not State.UNKNOWN])
async def test_superseding_what_is_not_unknown(any_journal: Journal, state: State) -> None:
    """It stands in the way, and nothing is written."""
    old = await in_state(any_journal, state, key="k")
    new = intent(key="k", supersedes=old.intent_id)
    got = await any_journal.claim(new)
    assert (old.intent_id, state) == (got.intent_id, got.state)
    assert await any_journal.find(intent_id=new.intent_id) is None


async def test_superseding_what_nobody_knows(any_journal: Journal) -> None:
    """Nothing of it is written."""
    with pytest.raises(JournalError, match="holds no intent"):
        await any_journal.claim(intent(key="k", supersedes="nobody"))
    assert await any_journal.rows(SCOPE) == []


@pytest.mark.parametrize("state", list(_WAYS))
@pytest.mark.parametrize("to", list(State))
async def test_moves(any_journal: Journal, state: State, to: State) -> None:
    """A move that is not allowed changes nothing and tells the row as it is."""
    row = await in_state(any_journal, state)
    after = await any_journal.advance(row.intent_id, to)
    found = await any_journal.find(intent_id=row.intent_id)
    assert found is not None
    assert after.state is found.state
    assert after.state in (state, to)
    if state in (State.SUCCEEDED, State.FAILED, State.DISMISSED):
        assert state is after.state


async def test_two_tasks_of_one_intent(any_journal: Journal) -> None:
    """The first one answers for it; the second one is kept, once, and finds it as well."""
    row = await in_state(any_journal, State.ACCEPTED)
    for _ in range(2):
        row = await any_journal.advance(row.intent_id, State.ACCEPTED, task_id="second")
    row = await any_journal.advance(row.intent_id, task_id="third")
    assert row.task_id == f"task-of-{row.intent_id}"
    assert row.other_task_ids == ("second", "third")
    for task_id in ("second", "third"):
        found = await any_journal.find(task_id=task_id)
        assert found is not None
        assert row.intent_id == found.intent_id
    assert await any_journal.find(task_id="sec") is None


async def test_a_move_of_what_nobody_knows(any_journal: Journal) -> None:
    """It is an error that names the intent."""
    with pytest.raises(JournalError, match="'nobody'"):
        await any_journal.advance("nobody", State.ACCEPTED)


async def test_l14_what_is_not_taken_comes_again(any_journal: Journal) -> None:
    """Bought and not taken, finished or not, oldest first; taken once, no more."""
    bought = [await in_state(any_journal, state) for state in _WAYS if state in BOUGHT]
    for state in _WAYS:
        if state not in BOUGHT:
            await in_state(any_journal, state)
    names = [row.intent_id for row in bought]
    assert names == [row.intent_id for row in await any_journal.take_over(SCOPE)]
    assert (await any_journal.advance(names[1], taken=True)).taken
    left = [row.intent_id for row in await any_journal.take_over(SCOPE)]
    assert left == [names[0], *names[2:]]
    assert await any_journal.take_over("another scope") == []


async def test_nothing_to_take_yet(any_journal: Journal) -> None:
    """What was not bought cannot be taken."""
    row = await in_state(any_journal, State.UNKNOWN)
    assert not (await any_journal.advance(row.intent_id, taken=True)).taken


async def test_rows(any_journal: Journal) -> None:
    """Those of a scope, in the states that are asked for, oldest first."""
    names = {state: (await in_state(any_journal, state)).intent_id for state in _WAYS}
    await any_journal.claim(intent(scope="another scope"))
    assert list(names.values()) == [row.intent_id for row in await any_journal.rows(SCOPE)]
    for state, name in names.items():
        assert [row.intent_id for row in await any_journal.rows(SCOPE, state)] == [name]
    some = await any_journal.rows(SCOPE, State.FAILED, State.SENDING, State.REFUSED)
    assert [row.state for row in some] == [State.SENDING, State.REFUSED, State.FAILED]


async def test_rows_of_some_tasks(any_journal: Journal) -> None:
    """A thousand tasks at once; only those of the scope, in the states that are asked for."""
    rows = [await in_state(any_journal, state) for state in _WAYS for _ in range(2)]
    asked = {f"task-of-{row.intent_id}" for row in rows[::2]} | {f"no-{n}" for n in range(1000)}
    asked.add("")
    told = await any_journal.rows(SCOPE, *TOLD, task_ids=asked)
    assert {row.state for row in told} == TOLD
    assert len(TOLD) == len(told)
    assert {row.state for row in await any_journal.rows(SCOPE, task_ids=asked)} == BOUGHT
    assert await any_journal.rows("another scope", task_ids=asked) == []
    assert await any_journal.rows(SCOPE, task_ids=()) == []


async def test_called_back(any_journal: Journal) -> None:
    """Only what was accepted is called back; only the record makes it final."""
    row = await in_state(any_journal, State.UNKNOWN)
    assert State.UNKNOWN is (await any_journal.advance(row.intent_id, State.CALLED_BACK)).state
    await any_journal.advance(row.intent_id, State.ACCEPTED, task_id="t")
    for to, expected in (
        (State.CALLED_BACK, State.CALLED_BACK),
        (State.ACCEPTED, State.CALLED_BACK),
        (State.FAILED, State.FAILED),
        (State.CALLED_BACK, State.FAILED),
    ):
        assert expected is (await any_journal.advance(row.intent_id, to)).state


async def test_changes_of_ones_own(any_journal: Journal) -> None:
    """They are told at once, for each watcher; and first of all, that there may be some."""
    async with aclosing(any_journal.changes()) as one, aclosing(any_journal.changes()) as two:
        await anext(one)
        await anext(two)
        waits = [asyncio.ensure_future(anext(each)) for each in (one, two)]
        await asyncio.sleep(0)
        started = asyncio.get_running_loop().time()
        row = await any_journal.claim(intent())
        await asyncio.gather(*waits)
        assert started == asyncio.get_running_loop().time()
        # What happens between two waits is not missed.
        await any_journal.advance(row.intent_id, State.REFUSED)
        await anext(one)
        assert started == asyncio.get_running_loop().time()


async def test_no_changes(any_journal: Journal) -> None:
    """While nothing happens, nothing is told."""
    row = await any_journal.claim(intent())
    async with aclosing(any_journal.changes()) as changes:
        await anext(changes)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(changes), 60)
    assert State.SENDING is (await any_journal.advance(row.intent_id, State.SUCCEEDED)).state


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_l10_the_loop_that_was_sending_is_closed(kind: str, folder: Path) -> None:
    """What it was sending is unknown to the next loop, though the process lives."""
    journal: Journal = MemoryJournal() if kind == "memory" else SQLiteJournal(folder)
    first, elsewhere = intent(), intent(scope="another scope")

    async def begin() -> None:
        await journal.claim(first)
        await journal.claim(elsewhere)

    async def go_on() -> None:
        assert await journal.rows(SCOPE, State.SENDING) == [first]
        ours = await journal.claim(intent())
        assert await journal.take_over(SCOPE) == []
        assert [row.intent_id for row in await journal.rows(SCOPE, State.UNKNOWN)] == [
            first.intent_id
        ]
        assert await journal.rows(SCOPE, State.SENDING) == [ours]
        assert await journal.rows("another scope", State.SENDING) == [elsewhere]
        await journal.aclose()

    VirtualLoop.run(begin())
    VirtualLoop.run(go_on())


async def test_closing_twice_and_going_on(any_journal: Journal) -> None:
    """A closed journal opens again with its next use."""
    row = await in_state(any_journal, State.ACCEPTED)
    await any_journal.aclose()
    await any_journal.aclose()
    found = await any_journal.find(intent_id=row.intent_id)
    assert found is not None
    assert row.task_id == found.task_id
    assert [each.intent_id for each in await any_journal.take_over(SCOPE)] == [row.intent_id]


async def test_durations_are_kept_by_kind_and_origin(any_journal: Journal) -> None:
    """The last 64 of each kind, the newest last; others' are not touched."""
    assert isinstance(any_journal, Experience)
    fast, video = ("mj_txt2img", "fast"), ("mj_video", None)
    for n in range(70):
        await any_journal.learn("https://one", fast, float(n))
    await any_journal.learn("https://one", video, 180.5)
    await any_journal.learn("https://two", fast, 1.0)
    assert {
        kind: list(seen) for kind, seen in (await any_journal.durations("https://one")).items()
    } == {fast: [float(n) for n in range(6, 70)], video: [180.5]}
    assert await any_journal.durations("https://three") == {}
