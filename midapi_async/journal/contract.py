"""Tests of what every journal has to do, for a store of your own.

    import pytest
    from midapi_async.journal.contract import JournalContract

    class TestMyJournal(JournalContract):
        @pytest.fixture(autouse=True)
        def folder(self, tmp_path):
            self.path = tmp_path / "journal"

        def make_journal(self):
            return MyJournal(self.path)

`SharedJournalContract` has more tests, for a store that several processes may use at once.
They need pytest, pytest-asyncio and the `VirtualLoop` of `midapi_async.testing` as the event loop
(its module shows how), since they let minutes pass. For assertions that show their values, put
``pytest.register_assert_rewrite("midapi_async.journal.contract")`` before the import.
"""
# ruff: noqa: S101 - assert is what tests do

from __future__ import annotations

import asyncio
import heapq
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import attrs
import pytest
import pytest_asyncio

from .._wire.records import details_from_raw
from ..config import RateLimit
from ..errors import JournalError
from ..requests import TextToImage
from ..tasks import TaskDetails
from .protocol import Busy, Claim, Claimed, Journal, Standing
from .states import BOUGHT, OVER, Intent, State

ORIGIN = "https://api.midapi.ai"
SCOPE = f"{ORIGIN} default"
ACCOUNT = "a" * 64
PER = 10.0  # seconds in a window
LONGEST_POST = 185.0  # seconds that a POST can take
SHORT = 0.001  # seconds before a slot is free
FLOAT = 1e-6  # seconds by which sums of floats may be wrong

# The moves in the picture of `states`; there are no others.
MOVES: Mapping[State, frozenset[State]] = {
    State.SENDING: frozenset({State.ACCEPTED, State.RESTING, State.REFUSED, State.UNKNOWN}),
    State.RESTING: frozenset({State.SENDING, State.REFUSED, State.ACCEPTED}),
    State.REFUSED: frozenset({State.ACCEPTED}),
    State.UNKNOWN: frozenset({State.ACCEPTED, State.SUPERSEDED, State.DISMISSED}),
    State.SUPERSEDED: frozenset({State.ACCEPTED}),
    State.DISMISSED: frozenset(),
    State.ACCEPTED: frozenset({State.CALLED_BACK, State.SUCCEEDED, State.FAILED, State.EXPIRED}),
    State.CALLED_BACK: frozenset({State.SUCCEEDED, State.FAILED, State.EXPIRED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.SUPERSEDED}),
    State.EXPIRED: frozenset(),
}
# How a SENDING intent gets to a state by `Journal.advance`.
_WAYS: Mapping[State, tuple[State, ...]] = {
    State.SENDING: (),
    State.RESTING: (),
    State.REFUSED: (State.REFUSED,),
    State.UNKNOWN: (State.UNKNOWN,),
    State.SUPERSEDED: (State.UNKNOWN,),
    State.DISMISSED: (State.UNKNOWN, State.DISMISSED),
    State.ACCEPTED: (State.ACCEPTED,),
    State.CALLED_BACK: (State.ACCEPTED, State.CALLED_BACK),
    State.SUCCEEDED: (State.ACCEPTED, State.SUCCEEDED),
    State.FAILED: (State.ACCEPTED, State.FAILED),
    State.EXPIRED: (State.ACCEPTED, State.EXPIRED),
}
# Characters with a meaning in query languages, patterns or paths of names.
_ODD_KEYS = (
    "50%", "50%_off", "50xyoff", "50%\\off", "order-17", "ORDER-17", "order_17", "ключ-17",
    "КЛЮЧ-17", "'; --", "\U0001f98a fox", "\U0010ffff", "\U0010ffff\U0010ffff", "[a-z]*", "50", "5",
)  # fmt: skip
_ODD_NOTES = ({"a.b": "1"}, {'a"b': "1"}, {"$": "%"}, {"ö": "_"}, {"": ""}, {"a": "1", "b": "2"})

T = TypeVar("T")


def an_intent(
    key: str | None = None,
    *,
    scope: str = SCOPE,
    fingerprint: str = "1" * 64,
    metadata: Mapping[str, str] | None = None,
    supersedes: str | None = None,
) -> Intent:
    """A new intent, with an id and a token of its own."""
    return Intent(
        intent_id=uuid.uuid4().hex,
        scope=scope,
        request=TextToImage("a red fox in the snow"),
        fingerprint=fingerprint if key is not None else "",
        token_hash=uuid.uuid4().hex * 2,
        created_at=time.time(),
        key=key,
        metadata=metadata or {},
        supersedes=supersedes,
    )


def expect(kind: type[T], answer: object) -> T:
    """The answer of a claim, of the kind that is expected."""
    assert isinstance(answer, kind), f"expected {kind.__name__}, got {answer!r}"
    return answer


async def ask(
    journal: Journal,
    intent: Intent | None = None,
    limit: RateLimit | None = None,
    *,
    account: str = ACCOUNT,
    longest_post: float = LONGEST_POST,
) -> Claim:
    """Claim an intent, or a new one; without a limit unless one is given."""
    return await journal.claim(intent or an_intent(), account, limit, longest_post=longest_post)


async def claimed(journal: Journal, intent: Intent) -> Claimed:
    """Claim an intent whose claim must succeed."""
    return expect(Claimed, await ask(journal, intent))


async def fill(journal: Journal, limit: RateLimit, *, account: str = ACCOUNT) -> list[str]:
    """Take every slot that is free."""
    slots = []
    while isinstance(got := await ask(journal, None, limit, account=account), Claimed):
        slots.append(got.slot)
        assert len(slots) <= limit.count, "more slots than the limit has"
    expect(Busy, got)
    return slots


async def free_slots(journal: Journal, limit: RateLimit, *, account: str = ACCOUNT) -> int:
    """How many slots are free; takes them all and releases them unsent."""
    slots = await fill(journal, limit, account=account)
    for slot in slots:
        await journal.release(slot, sent=False)
    return len(slots)


async def in_state(
    journal: Journal, state: State, key: str | None = None, *, intent: Intent | None = None
) -> Intent:
    """The row of an intent that was led to a state. Its slot's POST has ended, unless SENDING."""
    intent = intent or an_intent(key)
    slot: str | None = (await claimed(journal, intent)).slot
    if slot is not None and state is State.RESTING:
        await journal.release(slot, sent=False)
    for step in _WAYS[state]:
        task_id = f"task-of-{intent.intent_id}" if step is State.ACCEPTED else None
        await journal.advance(intent.intent_id, step, slot=slot, task_id=task_id)
        slot = None
    if state is State.SUPERSEDED:
        newer = an_intent(intent.key, scope=intent.scope, supersedes=intent.intent_id)
        await claimed(journal, newer)
    row = await row_of(journal, intent)
    assert row.state is state
    return row


async def row_of(journal: Journal, intent: Intent) -> Intent:
    """The row of an intent, as the journal holds it now."""
    row = await journal.find(intent_id=intent.intent_id)
    assert row is not None, f"no row of {intent!r}"
    return row


async def holder_of(journal: Journal, key: str, scope: str = SCOPE) -> Intent:
    """The row that holds a key."""
    row = await journal.find(key=(scope, key))
    assert row is not None, f"the key {key!r} is free"
    return row


def details_of(task_id: str, state: State = State.SUCCEEDED) -> TaskDetails:
    """Final details, as MidAPI's record gives them."""
    is_failed = state is State.FAILED
    urls = [{"resultUrl": f"https://files/{name}.jpeg"} for name in ("1", "ö")]
    record = {
        "taskId": task_id,
        "taskType": "mj_txt2img",
        "paramJson": '{"prompt": "a red fox", "nested": {"list": [1, 2.5, null, true, "ö"]}}',
        "completeTime": 1767323106000,
        "resultInfoJson": None if is_failed else {"resultUrls": urls},
        "successFlag": 2 if is_failed else 1,
        "createTime": 1767323045678,
        "errorCode": 500 if is_failed else None,
        "errorMessage": "banned words" if is_failed else None,
        "newField": [1, {"ö": None}],
    }
    details = details_from_raw(record)
    assert details.is_final
    return details


def most_in_a_window(posts: list[tuple[float, float]], per: float = PER) -> int:
    """The most POSTs that can arrive within one window of the server.

    Each may arrive at any moment from its claim to its end. So all those whose time from claim to
    end, made longer by a window, covers one moment may arrive in one window.
    """
    edges = sorted(
        [(begun + FLOAT, 1) for begun, _ in posts] + [(ended + per, -1) for _, ended in posts]
    )
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


class JournalContract:
    """What every journal has to do; see the module. A subclass says how a journal is made.

    Attributes:
        stores_prompts: False for a store that keeps no request, and no params of details.
    """

    pytestmark = pytest.mark.asyncio
    stores_prompts = True

    # ─── what a subclass may override ────────────────────────────────────────────────────────────

    def make_journal(self) -> Journal:
        """A journal object on the store of this test: each call makes another owner."""
        raise NotImplementedError

    async def advance_clock(self, seconds: float) -> None:
        """Let some seconds pass on the store's clock."""
        await asyncio.sleep(seconds)

    @pytest_asyncio.fixture
    async def journal(self) -> AsyncIterator[Journal]:
        """A journal."""
        journal = self.make_journal()
        yield journal
        await journal.aclose()

    @pytest.fixture
    def second(self, journal: Journal) -> Journal:
        """Another owner of the same store, if there can be one; else the first one again."""
        return journal

    def as_stored(self, row: Intent) -> Intent:
        """A row without what only the store knows, and without prompts where it keeps none."""
        row = attrs.evolve(row, owner="", holds_key=False)
        return row if self.stores_prompts else attrs.evolve(row, request=None, fingerprint="")

    async def moment(self) -> float:
        """A time in epoch seconds after all that was written, and before all that will be."""
        await self.advance_clock(0.005)
        await asyncio.to_thread(time.sleep, 0.005)
        now = time.time()
        await asyncio.to_thread(time.sleep, 0.005)
        await self.advance_clock(0.005)
        return now

    # ─── claims and keys ─────────────────────────────────────────────────────────────────────────

    async def test_a_claim_writes_the_intent(self, journal: Journal, second: Journal) -> None:
        """The row is there at once for every owner, with every field, by each of its names."""
        intent = an_intent("order-17", metadata={"channel": "42", "name": "ö"})
        got = await claimed(journal, intent)
        assert got.slot
        for reader in (journal, second):
            for found in (
                await reader.find(intent_id=intent.intent_id),
                await reader.find(token_hash=intent.token_hash),
                await reader.find(key=(SCOPE, "order-17")),
            ):
                assert found is not None
                assert self.as_stored(found) == self.as_stored(intent)
            (only,) = await reader.rows(SCOPE)
            assert self.as_stored(only) == self.as_stored(intent)
        assert (await row_of(journal, intent)).owner == (await row_of(second, intent)).owner

    async def test_a_claim_takes_one_slot(self, journal: Journal) -> None:
        """Each claim says how many more slots are free."""
        limit = RateLimit(3, per=PER)
        answers = [expect(Claimed, await ask(journal, None, limit)) for _ in range(3)]
        assert [each.free for each in answers] == [2, 1, 0]
        assert len({each.slot for each in answers}) == 3
        expect(Busy, await ask(journal, None, limit))

    async def test_unknown_names_are_not_found(self, journal: Journal) -> None:
        """Names are compared whole, and letters as they are."""
        await in_state(journal, State.ACCEPTED, "order-17")
        assert await journal.find(intent_id="f" * 32) is None
        assert await journal.find(token_hash="0" * 64) is None
        assert await journal.find(task_id="task-of-") is None
        assert await journal.find(key=(SCOPE, "ORDER-17")) is None
        assert await journal.find(key=(SCOPE, "order-1")) is None
        assert await journal.find(key=(f"{ORIGIN} other", "order-17")) is None

    @pytest.mark.parametrize("state", list(State))
    async def test_the_key_table(self, journal: Journal, second: Journal, state: State) -> None:
        """A key that is held by anything but a REFUSED intent is not given to another one."""
        row = await in_state(journal, state, "k")
        if state is State.REFUSED:
            newer = an_intent("k")
            await claimed(second, newer)
            assert (await holder_of(journal, "k")).intent_id == newer.intent_id
            return
        for claimer in (journal, second):
            for fingerprint, is_same in (("1" * 64, True), ("2" * 64, False)):
                newer = an_intent("k", fingerprint=fingerprint)
                got = expect(Standing, await ask(claimer, newer))
                assert got.same is is_same
                if state is not State.SUPERSEDED:  # its key is the newer one's, which is SENDING
                    assert self.as_stored(got.intent) == self.as_stored(row)
                assert await journal.find(intent_id=newer.intent_id) is None
                assert await journal.find(token_hash=newer.token_hash) is None
        assert (await row_of(journal, row)).state is state

    async def test_keys_belong_to_a_scope(self, journal: Journal) -> None:
        """Another scope's equal key is another key, and no key is no key."""
        first = await in_state(journal, State.ACCEPTED, "k")
        other = await in_state(
            journal, State.ACCEPTED, intent=an_intent("k", scope=f"{ORIGIN} other")
        )
        for _ in range(2):
            await in_state(journal, State.ACCEPTED)
        assert (await holder_of(journal, "k")).intent_id == first.intent_id
        assert (await holder_of(journal, "k", f"{ORIGIN} other")).intent_id == other.intent_id

    async def test_one_key_claimed_by_many_at_once(self, journal: Journal, second: Journal) -> None:
        """One of them gets it, and all others are shown its row."""
        claims = [ask(owner, an_intent("k")) for owner in (journal, second) for _ in range(10)]
        answers = await asyncio.gather(*claims)
        assert sum(isinstance(each, Claimed) for each in answers) == 1
        holder = await holder_of(journal, "k")
        shown = [each.intent.intent_id for each in answers if isinstance(each, Standing)]
        assert shown == [holder.intent_id] * 19
        assert len(await journal.rows(SCOPE)) == 1

    @pytest.mark.parametrize("state", list(State))
    async def test_an_intent_claimed_again(self, journal: Journal, state: State) -> None:
        """For its next POST, or the last check before one; not when it was moved on."""
        intent = an_intent("k")
        row = await in_state(journal, state, intent=intent)
        answer = await ask(journal, intent)
        now = await row_of(journal, intent)
        if state in {State.SENDING, State.RESTING}:
            expect(Claimed, answer)
            assert now.state is State.SENDING
        else:
            got = expect(Standing, answer)
            assert (got.intent.intent_id, got.same) == (row.intent_id, True)
            assert now == row

    async def test_an_intent_with_a_task_is_not_claimed_again(self, journal: Journal) -> None:
        """A RESTING intent that its callback proved is bought: it must not be sent again."""
        intent = an_intent()
        await in_state(journal, State.RESTING, intent=intent)
        await journal.advance(intent.intent_id, State.ACCEPTED, task_id="t")
        assert expect(Standing, await ask(journal, intent)).intent.task_id == "t"

    # ─── superseding ─────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("key", ["k", None])
    @pytest.mark.parametrize("state", list(State))
    async def test_superseding(self, journal: Journal, state: State, key: str | None) -> None:
        """An UNKNOWN or FAILED intent gives up its key; every other one stands in the way."""
        old = await in_state(journal, state, key)
        newer = an_intent(key, supersedes=old.intent_id)
        answer = await ask(journal, newer)
        if state in {State.UNKNOWN, State.FAILED}:
            expect(Claimed, answer)
            assert (await row_of(journal, old)).state is State.SUPERSEDED
            assert (await row_of(journal, newer)).supersedes == old.intent_id
            if key is not None:
                assert (await holder_of(journal, key)).intent_id == newer.intent_id
        else:
            expect(Standing, answer)
            assert await row_of(journal, old) == old
            assert await journal.find(intent_id=newer.intent_id) is None

    async def test_superseding_an_intent_that_is_not_there(self, journal: Journal) -> None:
        """It is an error, and nothing is written."""
        with pytest.raises(JournalError):
            await ask(journal, an_intent("k", supersedes="f" * 32))
        assert await journal.rows() == []

    async def test_a_superseded_intent_accepts_its_callback(self, journal: Journal) -> None:
        """Its token proves its task; the key stays with the one that took its place."""
        old = await in_state(journal, State.UNKNOWN, "k")
        newer = an_intent("k", supersedes=old.intent_id)
        await claimed(journal, newer)
        late = await journal.advance(old.intent_id, State.ACCEPTED, task_id="late")
        assert (late.state, late.task_id) == (State.ACCEPTED, "late")
        assert (await holder_of(journal, "k")).intent_id == newer.intent_id

    @pytest.mark.parametrize("state", [State.UNKNOWN, State.FAILED])
    async def test_a_refused_resubmission_gives_the_key_back(
        self, journal: Journal, state: State
    ) -> None:
        """The old intent is as it was before, holds its key, and can be superseded once more."""
        old = await in_state(journal, state, "k")
        for _ in range(2):
            newer = an_intent("k", supersedes=old.intent_id)
            slot = (await claimed(journal, newer)).slot
            refused = await journal.advance(newer.intent_id, State.REFUSED, slot=slot)
            assert refused.state is State.REFUSED
            assert await row_of(journal, old) == old
            assert await holder_of(journal, "k") == old
            assert expect(Standing, await ask(journal, an_intent("k"))).intent == old

    async def test_a_refused_resubmission_of_what_was_bought_gives_the_key_back(
        self, journal: Journal
    ) -> None:
        """The callback of the old intent came meanwhile: its key must not be free."""
        old = await in_state(journal, State.UNKNOWN, "k")
        newer = an_intent("k", supersedes=old.intent_id)
        slot = (await claimed(journal, newer)).slot
        await journal.advance(old.intent_id, State.ACCEPTED, task_id="late")
        await journal.advance(newer.intent_id, State.REFUSED, slot=slot)
        holder = await holder_of(journal, "k")
        assert (holder.intent_id, holder.state) == (old.intent_id, State.ACCEPTED)
        assert expect(Standing, await ask(journal, an_intent("k"))).intent == holder

    @pytest.mark.parametrize("state", [State.UNKNOWN, State.FAILED])
    async def test_a_bought_resubmission_keeps_the_key(
        self, journal: Journal, state: State
    ) -> None:
        """Whatever becomes of the old intent, the key leads to the task that was bought for it."""
        old = await in_state(journal, state, "k")
        newer = await in_state(
            journal, State.ACCEPTED, intent=an_intent("k", supersedes=old.intent_id)
        )
        await journal.advance(old.intent_id, state)
        assert (await holder_of(journal, "k")).intent_id == newer.intent_id

    async def test_late_news_of_a_failed_task_leaves_the_key(self, journal: Journal) -> None:
        """A repeated callback, or a wait for the old handle, says FAILED during a resubmission."""
        old = await in_state(journal, State.FAILED, "k")
        newer = an_intent("k", supersedes=old.intent_id)
        slot = (await claimed(journal, newer)).slot
        details = details_of(old.task_id or "", State.FAILED)
        await journal.advance(old.intent_id, State.FAILED, details=details, taken=True)
        assert (await holder_of(journal, "k")).intent_id == newer.intent_id
        await journal.advance(newer.intent_id, State.ACCEPTED, slot=slot, task_id="new")
        assert (await holder_of(journal, "k")).task_id == "new"

    async def test_a_refused_intent_that_lost_its_key(self, journal: Journal) -> None:
        """A late callback proves it, too, and the key stays with the one that took it."""
        old = await in_state(journal, State.REFUSED, "k")
        newer = an_intent("k")
        await claimed(journal, newer)
        late = await journal.advance(old.intent_id, State.ACCEPTED, task_id="late")
        assert (late.state, late.task_id) == (State.ACCEPTED, "late")
        assert (await holder_of(journal, "k")).intent_id == newer.intent_id

    # ─── moves ───────────────────────────────────────────────────────────────────────────────────

    async def test_all_moves(self, journal: Journal) -> None:
        """Between all pairs of states: what is not in the picture of `states` changes nothing."""
        wrong = []
        for state in State:
            for to in State:
                row = await in_state(journal, state)
                after = await journal.advance(row.intent_id, to)
                expected = row
                if to in MOVES[state]:
                    expected = attrs.evolve(row, state=to, ended_at=after.ended_at)
                is_over = after.ended_at is not None
                if not (after == await row_of(journal, row) == expected) or is_over is not (
                    after.state in OVER
                ):
                    wrong.append((state, to, after.state))
        assert wrong == []

    @pytest.mark.parametrize("state", [State.ACCEPTED, State.CALLED_BACK, State.SUCCEEDED])
    async def test_a_task_that_is_another_submissions(self, journal: Journal, state: State) -> None:
        """The intent is UNKNOWN and has no task and no result; and it can be accepted."""
        row = await in_state(journal, state, "k")
        task_id = row.task_id or ""
        assert await journal.advance(row.intent_id, State.UNKNOWN, foreign="other") == row
        after = await journal.advance(row.intent_id, foreign=task_id)
        expected = attrs.evolve(
            row,
            state=State.UNKNOWN,
            task_id=None,
            accepted_at=None,
            ended_at=None,
            details=None,
        )
        assert after == await row_of(journal, row) == expected
        assert await journal.find(task_id=task_id) is None
        assert await journal.find(key=(row.scope, "k")) == after
        other = an_intent()
        await claimed(journal, other)
        owner = await journal.advance(other.intent_id, State.ACCEPTED, task_id=task_id)
        assert owner.task_id == task_id
        again = await journal.advance(row.intent_id, State.ACCEPTED, task_id="mine")
        assert (again.state, again.task_id) == (State.ACCEPTED, "mine")

    async def test_a_move_of_an_intent_that_is_not_there(self, journal: Journal) -> None:
        """It is an error that names the intent."""
        with pytest.raises(JournalError, match="no-such-intent"):
            await journal.advance("no-such-intent", State.ACCEPTED)

    async def test_acceptance(self, journal: Journal, second: Journal) -> None:
        """The task id is kept with the time, and finds the row for every owner."""
        intent = an_intent()
        slot = (await claimed(journal, intent)).slot
        begun = time.time()
        row = await journal.advance(intent.intent_id, State.ACCEPTED, slot=slot, task_id="t-1")
        assert (row.state, row.task_id) == (State.ACCEPTED, "t-1")
        assert row.accepted_at is not None
        assert begun - 1 <= row.accepted_at <= time.time() + 1
        for reader in (journal, second):
            assert await reader.find(task_id="t-1") == row

    @pytest.mark.parametrize("state", [State.SENDING, State.UNKNOWN, State.RESTING, State.REFUSED])
    async def test_a_task_id_of_another_intent_is_not_taken(
        self, journal: Journal, state: State
    ) -> None:
        """A SENDING intent becomes UNKNOWN, every other stays; the task stays its holder's."""
        holder = await journal.advance(
            (await in_state(journal, State.UNKNOWN)).intent_id, State.ACCEPTED, task_id="t"
        )
        other = await in_state(journal, state)
        after = await journal.advance(other.intent_id, State.ACCEPTED, task_id="t")
        assert after == await row_of(journal, other)
        assert (after.task_id, after.other_task_ids) == (None, ())
        assert after.state is (State.UNKNOWN if state is State.SENDING else state)
        assert await journal.find(task_id="t") == holder

    async def test_a_second_task_id_of_another_intent_is_not_taken(self, journal: Journal) -> None:
        """A bought intent does not change when it gets the task id of another intent."""
        holder = await in_state(journal, State.ACCEPTED)
        other = await in_state(journal, State.ACCEPTED)
        after = await journal.advance(other.intent_id, State.SUCCEEDED, task_id=holder.task_id)
        assert (after.task_id, after.other_task_ids) == (other.task_id, ())
        assert holder.task_id is not None
        assert await journal.find(task_id=holder.task_id) == holder

    async def test_two_intents_accept_one_task_id_at_once(
        self, journal: Journal, second: Journal
    ) -> None:
        """One of them has it, the other is UNKNOWN."""
        rows = [await in_state(owner, State.SENDING) for owner in (journal, second)]
        answers = await asyncio.gather(
            journal.advance(rows[0].intent_id, State.ACCEPTED, task_id="t"),
            second.advance(rows[1].intent_id, State.ACCEPTED, task_id="t"),
        )
        assert {each.state for each in answers} == {State.ACCEPTED, State.UNKNOWN}
        assert sorted(str(each.task_id) for each in answers) == ["None", "t"]

    async def test_one_task_id_at_two_origins(self, journal: Journal) -> None:
        """A sandbox may count its tasks as another one does; a namespace is no other origin."""
        for origin in ("http://127.0.0.1:1", "http://127.0.0.1:2"):
            row = await in_state(
                journal, State.SENDING, intent=an_intent(scope=f"{origin} default")
            )
            after = await journal.advance(row.intent_id, State.ACCEPTED, task_id="t")
            assert (after.state, after.task_id) == (State.ACCEPTED, "t")
        other = an_intent(scope="http://127.0.0.1:1 other-namespace")
        await claimed(journal, other)
        after = await journal.advance(other.intent_id, State.ACCEPTED, task_id="t")
        assert (after.state, after.task_id) == (State.UNKNOWN, None)

    async def test_further_task_ids(self, journal: Journal) -> None:
        """The first one answers for the intent; others are kept once, and find it as well."""
        row = await in_state(journal, State.ACCEPTED)
        for _ in range(2):
            await journal.advance(row.intent_id, State.ACCEPTED, task_id="second")
        row = await journal.advance(row.intent_id, candidate="third")
        assert row.task_id == f"task-of-{row.intent_id}"
        assert row.other_task_ids == ("second", "third")
        for task_id in ("second", "third"):
            assert await journal.find(task_id=task_id) == row
        assert await journal.find(task_id="sec") is None

    async def test_candidates(self, journal: Journal) -> None:
        """Named and not proven: the intent stays UNKNOWN until one of them is accepted."""
        row = await in_state(journal, State.UNKNOWN)
        for candidate in ("one", "two", "one"):
            row = await journal.advance(row.intent_id, candidate=candidate)
        assert (row.state, row.task_id) == (State.UNKNOWN, None)
        assert row.other_task_ids == ("one", "two")
        assert await journal.find(task_id="two") == row
        row = await journal.advance(row.intent_id, candidate="three")
        for _ in range(2):
            row = await journal.advance(row.intent_id, foreign="three")
        assert row.other_task_ids == ("one", "two")
        assert await journal.find(task_id="three") is None
        row = await journal.advance(row.intent_id, State.ACCEPTED, task_id="two")
        assert (row.task_id, row.other_task_ids) == ("two", ("one",))
        assert await journal.find(task_id="one") == await journal.find(task_id="two") == row

    @pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED])
    async def test_details(self, journal: Journal, second: Journal, state: State) -> None:
        """What is read back is equal, for every owner; they are written once."""
        row = await in_state(journal, State.ACCEPTED)
        task_id = row.task_id or ""
        given = details_of(task_id, state)
        await journal.advance(row.intent_id, state, details=given)
        await journal.advance(row.intent_id, details=details_of("another"))
        if not self.stores_prompts:
            given = details_from_raw({k: v for k, v in given.raw.items() if k != "paramJson"})
        for reader in (journal, second):
            found = await reader.find(task_id=task_id)
            assert found is not None
            assert found.details is not None
            assert found.details == given
            assert dict(found.details.raw) == dict(given.raw)
            assert [each.details for each in await reader.rows(SCOPE)] == [given]

    @pytest.mark.parametrize("state", [State.ACCEPTED, State.SUCCEEDED])
    async def test_details_of_another_task(self, journal: Journal, state: State) -> None:
        """Nothing changes: the intent had that task before the user replaced it."""
        row = await in_state(journal, state)
        other = details_of("another", State.FAILED)
        assert await journal.advance(row.intent_id, State.FAILED, details=other, taken=True) == row
        assert await row_of(journal, row) == row

    async def test_details_of_an_intent_that_was_not_bought(self, journal: Journal) -> None:
        """There are none."""
        row = await in_state(journal, State.UNKNOWN)
        assert await journal.advance(row.intent_id, details=details_of("t")) == row

    @pytest.mark.parametrize("state", list(State))
    async def test_taken(self, journal: Journal, state: State) -> None:
        """A result is handed over once, and only one that was bought."""
        row = await in_state(journal, state)
        after = await journal.advance(row.intent_id, taken=True)
        assert after == await row_of(journal, row)
        assert after.taken is (state in BOUGHT)
        assert after.state is state

    # ─── rows ────────────────────────────────────────────────────────────────────────────────────

    async def test_rows_with_every_filter(self, journal: Journal, second: Journal) -> None:
        """Each filter alone and many of them together, in pages of any size, oldest first."""
        chance = random.Random(7)
        rows, mine = [], set()
        for n in range(48):
            intent = an_intent(
                _ODD_KEYS[n] if n < len(_ODD_KEYS) else chance.choice([None, f"key-{n}"]),
                scope=chance.choice([SCOPE, f"{ORIGIN} other"]),
                metadata=chance.choice(_ODD_NOTES) if chance.random() < 0.7 else None,
            )
            intent = attrs.evolve(intent, created_at=1000.0 + n)
            owner = chance.choice([journal, second])
            # No SUPERSEDED one: the intent that supersedes it would be a row more.
            states = [state for state in State if state is not State.SUPERSEDED]
            row = await in_state(owner, chance.choice(states), intent=intent)
            if chance.random() < 0.5:
                row = await owner.advance(row.intent_id, taken=True)
            rows.append(row)
            if owner is journal:
                mine.add(row.intent_id)
        for n in range(60):
            filters = _some_filters(chance, rows, n)
            expected = [row for row in rows if _matches(row, filters, mine)]
            got = await journal.rows(**filters)  # type: ignore[arg-type]  # by name
            assert [each.created_at for each in got] == [r.created_at for r in expected], filters
            assert list(map(self.as_stored, got)) == list(map(self.as_stored, expected))
            paged, size = list[Intent](), chance.randint(3, 20)
            while page := await journal.rows(
                **filters,  # type: ignore[arg-type]  # by name
                limit=size,
                after=paged[-1].intent_id if paged else None,
            ):
                assert len(page) <= size
                paged += page
            assert paged == got, filters

    async def test_pages_of_rows_written_at_the_same_time(self, journal: Journal) -> None:
        """Each row is in one page."""
        names = set()
        for _ in range(7):
            intent = attrs.evolve(an_intent(), created_at=1000.0)
            await claimed(journal, intent)
            names.add(intent.intent_id)
        paged = list[str]()
        while page := await journal.rows(after=paged[-1] if paged else None, limit=2):
            paged += [each.intent_id for each in page]
        assert len(paged) == 7
        assert set(paged) == names

    async def test_pages_of_rows_that_change_meanwhile(self, journal: Journal) -> None:
        """The last row of a page need not match any more when the next one is read."""
        names = [(await in_state(journal, State.ACCEPTED)).intent_id for _ in range(7)]
        seen = list[str]()
        while page := await journal.rows(
            SCOPE, taken=False, after=seen[-1] if seen else None, limit=2
        ):
            for each in page:
                seen.append(each.intent_id)
                await journal.advance(each.intent_id, State.SUCCEEDED, taken=True)
        assert seen == names

    async def test_rows_of_a_thousand_names(self, journal: Journal) -> None:
        """As many names as a batch has; none of them finds nothing."""
        rows = [await in_state(journal, State.ACCEPTED, f"key-{n}") for n in range(4)]
        for n, row in enumerate(rows):  # a candidate is not its task id
            rows[n] = await journal.advance(row.intent_id, candidate=f"no-{n}")
        keys = {f"key-{n}" for n in range(2, 3000)}
        tasks = {str(row.task_id) for row in rows[1:3]} | {f"no-{n}" for n in range(3000)}
        assert await journal.rows(SCOPE, keys=keys) == rows[2:]
        assert await journal.rows(SCOPE, task_ids=tasks) == rows[1:3]
        assert await journal.rows(SCOPE, keys=keys, task_ids=tasks) == rows[2:3]
        assert await journal.rows(SCOPE, keys=()) == []
        await in_state(journal, State.REFUSED, "key-9")
        second = await in_state(journal, State.ACCEPTED, "key-9")
        assert await journal.rows(SCOPE, keys=["key-9"]) == [second]
        assert await journal.rows(SCOPE, task_ids=()) == []

    async def test_closing_twice_and_going_on(self, journal: Journal) -> None:
        """A closed journal opens again with its next use, and has lost nothing."""
        row = await in_state(journal, State.ACCEPTED, "k")
        await journal.aclose()
        await journal.aclose()
        found = await holder_of(journal, "k")
        assert (found.intent_id, found.task_id) == (row.intent_id, row.task_id)
        await claimed(journal, an_intent())

    # ─── changes ─────────────────────────────────────────────────────────────────────────────────

    async def test_changes(self, journal: Journal, second: Journal) -> None:
        """Every listener hears at once that there may be some, and then of each kind of write."""
        intent, slots = an_intent(), list[str]()

        async def claim() -> None:
            slots.append((await claimed(second, intent)).slot)

        async def release() -> None:
            await second.release(slots.pop(), sent=False)

        async def accept() -> None:
            await second.advance(intent.intent_id, State.ACCEPTED, slot=slots.pop(), task_id="t")

        async def hand_over() -> None:
            await second.advance(intent.intent_id, State.FAILED, taken=True)

        async def prune() -> None:
            assert await second.prune(await self.moment()) == 1

        async with aclosing(journal.changes()) as one, aclosing(journal.changes()) as two:
            for listener in (one, two):
                await asyncio.wait_for(anext(listener), 1.0)
            for write in (claim, release, claim, accept, hand_over, prune):
                await write()
                for listener in (one, two):
                    await asyncio.wait_for(anext(listener), 5.0)

    async def test_changes_before_the_next_wait_are_not_missed(self, journal: Journal) -> None:
        """A listener that is busy with the last one hears of them when it comes back."""
        async with aclosing(journal.changes()) as changes:
            await anext(changes)
            await in_state(journal, State.ACCEPTED)
            await self.advance_clock(60.0)
            await asyncio.wait_for(anext(changes), 1.0)

    async def test_no_changes(self, journal: Journal) -> None:
        """While nothing happens a listener sleeps, and it can stop at any time."""
        await in_state(journal, State.ACCEPTED)
        async with aclosing(journal.changes()) as changes:
            await anext(changes)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(changes), 60.0)
        await in_state(journal, State.ACCEPTED)

    # ─── notes ───────────────────────────────────────────────────────────────────────────────────

    async def test_notes(self, journal: Journal, second: Journal) -> None:
        """One value for a scope, kind and name; the last one written, for every owner."""
        assert dict(await journal.notes(ORIGIN, "duration")) == {}
        await journal.note(ORIGIN, "duration", "fast", "1")
        await journal.note(ORIGIN, "duration", "ö %_'", "")
        await journal.note(ORIGIN, "upload", "fast", "2")
        await journal.note(SCOPE, "duration", "fast", "3")
        await second.note(ORIGIN, "duration", "fast", "4")
        for reader in (journal, second):
            expected = {"fast": "4", "ö %_'": ""}
            assert dict(await reader.notes(ORIGIN, "duration")) == expected
            assert dict(await reader.notes(ORIGIN, "upload")) == {"fast": "2"}
            assert dict(await reader.notes(SCOPE, "duration")) == {"fast": "3"}
        await journal.note(ORIGIN, "duration", "fast")
        await journal.note(ORIGIN, "duration", "never written")
        assert dict(await second.notes(ORIGIN, "duration")) == {"ö %_'": ""}
        assert await journal.rows() == []

    async def test_notes_expire(self, journal: Journal) -> None:
        """After that time they are gone; one that is replaced has the new one's time."""
        now = time.time()
        await journal.note(ORIGIN, "upload", "gone", "1", expires=now - 1)
        await journal.note(ORIGIN, "upload", "kept", "2", expires=now + 3600)
        await journal.note(ORIGIN, "upload", "for ever", "3", expires=now - 1)
        await journal.note(ORIGIN, "upload", "for ever", "4")
        await journal.note(ORIGIN, "upload", "no more", "5")
        await journal.note(ORIGIN, "upload", "no more", "6", expires=now - 1)
        assert dict(await journal.notes(ORIGIN, "upload")) == {"kept": "2", "for ever": "4"}

    # ─── pruning ─────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("state", list(State))
    async def test_pruning(self, journal: Journal, second: Journal, state: State) -> None:
        """What is over, or was accepted long ago, is removed; a key that was spent stays so."""
        early = await self.moment()
        row = await in_state(journal, state, "k")
        late = await self.moment()
        assert await journal.prune(early) == 0
        assert await row_of(journal, row) == row
        if state in {State.SENDING, State.RESTING, State.UNKNOWN}:
            assert await journal.prune(late) == 0
            assert await row_of(journal, row) == row
            return
        assert await journal.prune(late) == 1
        assert await journal.prune(late) == 0
        for reader in (journal, second):
            assert row.intent_id not in {each.intent_id for each in await reader.rows()}
            assert await reader.find(token_hash=row.token_hash) is None
        if state is State.REFUSED:
            assert await journal.find(key=(SCOPE, "k")) is None
            await claimed(journal, an_intent("k"))
        elif state is State.SUPERSEDED:
            assert (await holder_of(journal, "k")).supersedes == row.intent_id
        else:
            is_dismissed = state is State.DISMISSED
            for claimer in (journal, second):
                got = expect(Standing, await ask(claimer, an_intent("k")))
                assert got.intent.state is (State.DISMISSED if is_dismissed else State.EXPIRED)
                assert got.intent.task_id == row.task_id
            assert (await holder_of(journal, "k")).task_id == row.task_id
            assert (await journal.stats()).spent_keys == 1

    async def test_a_spent_key_holds_nothing_else(self, journal: Journal) -> None:
        """No request, notes, token or details are left in it; without a key nothing is left."""
        for key in ("k", None):
            intent = an_intent(key, metadata={"user": "Ada"})
            row = await in_state(journal, State.ACCEPTED, intent=intent)
            await journal.advance(
                row.intent_id, State.SUCCEEDED, details=details_of(row.task_id or "")
            )
        assert await journal.prune(await self.moment()) == 2
        left = await holder_of(journal, "k")
        assert (left.request, dict(left.metadata)) == (None, {})
        assert (left.token_hash, left.details) == (None, None)
        assert await journal.rows() == []
        stats = await journal.stats()
        assert (dict(stats.counts), stats.oldest_open, stats.spent_keys) == ({}, None, 1)

    async def test_pruning_between_old_and_new(self, journal: Journal) -> None:
        """It goes by when an intent was over, or accepted; not by when it was written."""
        old = [attrs.evolve(an_intent(), created_at=1000.0 + n) for n in range(2)]
        for intent in old:
            await claimed(journal, intent)
        goes = [await in_state(journal, state) for state in (State.FAILED, State.CALLED_BACK)]
        before = await self.moment()
        await journal.advance(old[0].intent_id, State.ACCEPTED, task_id="t")
        await journal.advance(old[1].intent_id, State.REFUSED)
        stays = [await in_state(journal, state) for state in (State.FAILED, State.CALLED_BACK)]
        assert await journal.prune(before) == len(goes)
        left = [each.intent_id for each in await journal.rows()]
        assert left == [each.intent_id for each in (*old, *stays)]

    # ─── figures ─────────────────────────────────────────────────────────────────────────────────

    async def test_stats(self, journal: Journal, second: Journal) -> None:
        """How many there are in each state, the oldest that is not over, and who is alive."""
        empty = await journal.stats()
        assert (dict(empty.counts), empty.oldest_open, empty.spent_keys) == ({}, None, 0)
        assert (dict(empty.last_day), empty.untaken) == ({}, 0)
        assert (empty.oldest_task, empty.oldest_unknown) == (None, None)
        for n, state in enumerate([State.REFUSED, State.SUCCEEDED, State.REFUSED]):
            assert state in OVER
            await in_state(journal, state, intent=attrs.evolve(an_intent(), created_at=100.0 + n))
        assert (await journal.stats()).oldest_open is None
        for n, state in enumerate([State.SENDING, State.ACCEPTED, State.UNKNOWN]):
            await in_state(second, state, intent=attrs.evolve(an_intent(), created_at=200.0 - n))
        stats = await journal.stats()
        assert dict(stats.counts) == {
            State.REFUSED: 2,
            State.SUCCEEDED: 1,
            State.UNKNOWN: 1,
            State.ACCEPTED: 1,
            State.SENDING: 1,
        }
        assert stats.oldest_open == 198.0
        assert stats.untaken == 2
        assert stats.oldest_unknown == 198.0
        assert stats.oldest_task is not None
        assert time.time() - 60 < stats.oldest_task <= time.time()
        assert dict(stats.last_day) == {}
        await in_state(journal, State.CALLED_BACK)
        [done] = await journal.rows(states=[State.SUCCEEDED])
        await journal.advance(done.intent_id, taken=True)
        later = await journal.stats()
        assert dict(later.last_day) == {State.CALLED_BACK: 1}
        assert (later.untaken, later.oldest_task) == (2, stats.oldest_task)
        assert stats.owners == (1 if second is journal else 2)
        assert stats.size >= 0

    async def test_a_whole_store_has_no_problems(self, journal: Journal) -> None:
        """After every kind of write the check finds nothing."""
        assert list(await journal.check()) == []
        for state in State:
            await in_state(journal, state, state.value)
        assert list(await journal.check()) == []
        await journal.prune(await self.moment())
        assert list(await journal.check()) == []

    # ─── the gate ────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("seed", range(8))
    async def test_no_window_holds_too_many(
        self, journal: Journal, second: Journal, seed: int
    ) -> None:
        """Whatever the latency, the outcomes and the 429s, and wherever in it a POST arrives."""
        chance = random.Random(seed)
        limit = RateLimit(chance.randint(2, 8), per=PER)
        number, now, paused_until = 40, 0.0, 0.0
        owners = [chance.choice([journal, second]) for _ in range(number)]
        intents = [an_intent() for _ in range(number)]
        begun, posts = dict[int, float](), list[tuple[float, float]]()
        asks_at = dict.fromkeys(owners, 0.0)  # after Busy an owner does not ask before this time
        # What is due: at which time, for which intent, and the slot whose POST ends; "" to claim.
        due = [(chance.choice([0.0, chance.uniform(0, 60)]), n, "") for n in range(number)]
        heapq.heapify(due)
        while due:
            at, n, slot = heapq.heappop(due)
            await self.advance_clock(max(at - now, 0.0))
            now, intent = max(at, now), intents[n]
            if not slot:
                if now < asks_at[owners[n]]:
                    heapq.heappush(due, (asks_at[owners[n]], n, ""))
                    continue
                got = await ask(owners[n], intent, limit)
                if isinstance(got, Busy):
                    assert 0 < got.retry_in <= LONGEST_POST + 2 * PER
                    asks_at[owners[n]] = now + got.retry_in + FLOAT
                    heapq.heappush(due, (asks_at[owners[n]], n, ""))
                    continue
                assert now >= paused_until - FLOAT, "claimed in the pause after a 429"
                begun[n] = now
                latency = chance.choice([0.0, 0.3, chance.uniform(0, 30)])
                if chance.random() < 0.08:
                    posts.append((now, now + LONGEST_POST))  # and never ends
                else:
                    heapq.heappush(due, (now + latency, n, expect(Claimed, got).slot))
                continue
            outcome = chance.choices(["bought", "refused", "429", "not sent"], [6, 1, 1, 2])[0]
            if outcome == "not sent":
                await owners[n].release(slot, sent=False)
                heapq.heappush(due, (now + 1.0, n, ""))
                continue
            posts.append((begun[n], now))
            if outcome == "429":
                pause = chance.uniform(1, 15)
                paused_until = max(paused_until, now + pause)
                await owners[n].release(slot, sent=True, pause=pause)
                heapq.heappush(due, (now + pause, n, ""))
            else:
                to = State.ACCEPTED if outcome == "bought" else State.REFUSED
                task_id = f"task-{n}" if outcome == "bought" else None
                await owners[n].advance(intent.intent_id, to, slot=slot, task_id=task_id)
        assert len(begun) == number
        assert most_in_a_window(posts) <= limit.count

    async def test_the_whole_rate_can_be_used(self, journal: Journal, second: Journal) -> None:
        """With POSTs that take no time, all slots are taken again in each window."""
        limit, times, now = RateLimit(4, per=PER), list[float](), 0.0
        for n in range(16):
            owner, intent = (journal, second)[n % 2], an_intent()
            while isinstance(got := await ask(owner, intent, limit), Busy):
                await self.advance_clock(got.retry_in + FLOAT)
                now += got.retry_in + FLOAT
            times.append(now)
            await owner.advance(intent.intent_id, State.REFUSED, slot=expect(Claimed, got).slot)
        assert times == pytest.approx([PER * (n // 4) for n in range(16)], abs=1e-4)

    async def test_many_claims_at_once(self, journal: Journal, second: Journal) -> None:
        """No more of them get a slot than there are."""
        limit = RateLimit(5, per=PER)
        claims = [ask(owner, None, limit) for owner in (journal, second) for _ in range(10)]
        answers = await asyncio.gather(*claims)
        assert sum(isinstance(each, Claimed) for each in answers) == 5
        assert sum(isinstance(each, Busy) for each in answers) == 15
        assert len(await journal.rows()) == 5

    async def test_a_slot_that_was_not_sent_is_free_at_once(self, journal: Journal) -> None:
        """MidAPI has not seen the POST, so it counts for nothing."""
        limit, intent = RateLimit(1, per=PER), an_intent()
        for _ in range(3):
            got = expect(Claimed, await ask(journal, intent, limit))
            await journal.release(got.slot, sent=False)
            assert (await row_of(journal, intent)).state is State.RESTING

    @pytest.mark.parametrize("ends", ["release", "accepted", "refused", "unknown"])
    async def test_a_slot_is_busy_for_a_window_after_its_end(
        self, journal: Journal, second: Journal, ends: str
    ) -> None:
        """Counted from the end of its POST, and ``retry_in`` says exactly how long."""
        limit, intent = RateLimit(1, per=PER), an_intent()
        slot = expect(Claimed, await ask(journal, intent, limit)).slot
        await self.advance_clock(30.0)
        if ends == "release":
            await journal.release(slot, sent=True)
        else:
            task_id = "t" if ends == State.ACCEPTED else None
            await journal.advance(intent.intent_id, State(ends), slot=slot, task_id=task_id)
        await self.advance_clock(2.0)
        if ends == "release":
            await journal.release(slot, sent=True)  # once more, because an answer was lost
        assert await self._free_again(second, limit) == pytest.approx(PER - 2.0, abs=FLOAT)

    async def test_a_slot_that_never_ends(self, journal: Journal, second: Journal) -> None:
        """It counts as ended when a POST can take no longer; so it does not jam the gate."""
        limit, waited = RateLimit(1, per=PER), 1.0
        expect(Claimed, await ask(journal, None, limit, longest_post=60.0))
        await self.advance_clock(1.0)
        while isinstance(got := await ask(second, None, limit), Busy):
            # Until then it may end at any moment, so it may be free in a window at the earliest.
            assert got.retry_in <= PER + FLOAT
            await self.advance_clock(got.retry_in + FLOAT)
            waited += got.retry_in + FLOAT
        expect(Claimed, got)
        assert waited == pytest.approx(60.0 + PER, abs=1e-4)

    async def test_a_post_that_ends_after_the_longest_time(self, journal: Journal) -> None:
        """Its slot may be forgotten, its intent may not."""
        limit, again, ends = RateLimit(1, per=PER), an_intent(), an_intent()
        slots = []
        for intent in (again, ends):
            got = expect(Claimed, await ask(journal, intent, limit, longest_post=5.0))
            slots.append(got.slot)
            await self.advance_clock(5.0 + PER + FLOAT)
        expect(Claimed, await ask(journal, None, limit))
        await journal.advance(ends.intent_id, State.ACCEPTED, slot=slots[1], task_id="t")
        assert (await row_of(journal, ends)).state is State.ACCEPTED
        await journal.release(slots[0], sent=True)
        await claimed(journal, again)

    async def test_retry_in_with_many_slots(self, journal: Journal) -> None:
        """Each of them is free again at its own time."""
        limit, intents = RateLimit(3, per=PER), [an_intent() for _ in range(3)]
        slots = [expect(Claimed, await ask(journal, each, limit)).slot for each in intents]
        for n in (1, 2, 0):
            await self.advance_clock(1.0)
            await journal.release(slots[n], sent=True)
        waits = [await self._free_again(journal, limit) for _ in range(3)]
        assert waits == pytest.approx([PER - 2.0, 1.0, 1.0], abs=1e-4)

    async def test_busy_writes_nothing(self, journal: Journal) -> None:
        """A claim that is Busy leaves no trace: no row, no key, no move."""
        old = await in_state(journal, State.UNKNOWN, "old")
        again = an_intent()
        resting = await in_state(journal, State.RESTING, intent=again)
        limit = RateLimit(1, per=PER)
        await fill(journal, limit)
        newer, superseding = an_intent("k"), an_intent("old", supersedes=old.intent_id)
        for intent in (newer, superseding, again):
            expect(Busy, await ask(journal, intent, limit))
        for intent in (newer, superseding):
            assert await journal.find(intent_id=intent.intent_id) is None
            assert await journal.find(token_hash=intent.token_hash) is None
        assert await journal.find(key=(SCOPE, "k")) is None
        assert await holder_of(journal, "old") == old
        assert await row_of(journal, resting) == resting

    async def test_a_standing_row_needs_no_slot(self, journal: Journal, second: Journal) -> None:
        """A known key is answered at a full gate, and takes no slot of a free one."""
        limit = RateLimit(3, per=PER)
        row = await in_state(journal, State.UNKNOWN, "k")
        await self.advance_clock(PER + FLOAT)
        for claimer in (journal, second):
            got = expect(Standing, await ask(claimer, an_intent("k"), limit))
            assert got.intent.intent_id == row.intent_id
        assert len(await fill(journal, limit)) == 3
        for claimer in (journal, second):
            expect(Standing, await ask(claimer, an_intent("k"), limit))

    async def test_a_429_pauses_the_account(self, journal: Journal, second: Journal) -> None:
        """For all clients of the account, with a limit or without one, and for no other account."""
        limit = RateLimit(4, per=PER)
        slots = [expect(Claimed, await ask(journal, None, limit)).slot for _ in range(2)]
        for slot, pause in zip(slots, (7.0, 2.0), strict=True):  # the longer one holds
            await journal.release(slot, sent=True, pause=pause)
        await self.advance_clock(1.0)
        for owner in (journal, second):
            for asked in (limit, None, RateLimit(100, per=PER)):
                got = expect(Busy, await ask(owner, None, asked))
                assert got.retry_in == pytest.approx(6.0, abs=FLOAT)
            expect(Claimed, await ask(owner, None, limit, account="b" * 64))
        assert await free_slots(journal, limit, account="c" * 64) == 4
        await self.advance_clock(6.0 - SHORT)
        expect(Busy, await ask(second, None, None))
        await self.advance_clock(SHORT + FLOAT)
        expect(Claimed, await ask(second, None, None))

    async def test_a_429_halves_the_limit(self, journal: Journal, second: Journal) -> None:
        """Half as many after the pause, then one more for each window without a 429."""
        limit = RateLimit(8, per=PER)
        slot = expect(Claimed, await ask(journal, None, limit)).slot
        await journal.release(slot, sent=True, pause=15.0)
        await self.advance_clock(15.0 + FLOAT)
        seen = []
        for _ in range(7):
            seen.append(await free_slots(second, limit))
            await self.advance_clock(PER / 2)
            assert await free_slots(journal, limit) == seen[-1]
            await self.advance_clock(PER / 2)
        assert seen == [4, 5, 6, 7, 8, 8, 8]

    async def test_the_429s_of_one_window_halve_once(self, journal: Journal) -> None:
        """POSTs that are refused in one window are one mistake, those of the next one another."""
        limit = RateLimit(8, per=PER)
        slots = await fill(journal, limit)
        for slot in slots[:6]:
            await journal.release(slot, sent=True, pause=1.0)
        await self.advance_clock(PER + FLOAT)
        # Two slots are open still, of four.
        assert await free_slots(journal, limit) == 2
        await journal.release(slots[6], sent=True, pause=1.0)
        await journal.release(slots[7], sent=True, pause=1.0)
        await self.advance_clock(1.0 + FLOAT)
        expect(Busy, await ask(journal, None, limit))
        await self.advance_clock(PER - 1.0)
        assert await free_slots(journal, limit) == 2

    async def test_one_slot_stays_after_many_429s(self, journal: Journal) -> None:
        """The gate never closes for good."""
        limit = RateLimit(4, per=PER)
        for _ in range(5):
            slot = expect(Claimed, await ask(journal, None, limit)).slot
            await journal.release(slot, sent=True, pause=1.0)
            await self.advance_clock(PER + FLOAT)
        assert await free_slots(journal, limit) == 1

    async def test_waiting_out_a_429(self, journal: Journal) -> None:
        """``retry_in`` knows when the pause ends and when a slot comes back; not too late."""
        limit = RateLimit(4, per=PER)
        slots = await fill(journal, limit)
        for slot in slots:
            await journal.release(slot, sent=True, pause=3.0)
        # Two of four are allowed, and all four are busy for 10 s; at 13 s a third one is allowed.
        now, taken = 0.0, list[float]()
        while len(taken) < 3:
            got = await ask(journal, None, limit)
            if isinstance(got, Busy):
                await self.advance_clock(got.retry_in + FLOAT)
                now += got.retry_in + FLOAT
            else:
                taken.append(now)
        assert taken == pytest.approx([PER, PER, 13.0], abs=1e-4)

    async def test_the_smallest_limit_holds(self, journal: Journal, second: Journal) -> None:
        """As long as slots that were taken with it are in the window, for all of the account."""
        small, large = RateLimit(2, per=PER), RateLimit(6, per=PER)
        slot = expect(Claimed, await ask(journal, None, small)).slot
        assert await free_slots(second, large) == 1
        await journal.release(slot, sent=True)
        await self.advance_clock(PER - SHORT)
        assert await free_slots(second, large) == 1
        await self.advance_clock(SHORT + FLOAT)
        assert await free_slots(second, large) == 6
        assert len(await fill(second, large)) == 6
        expect(Busy, await ask(journal, None, small))

    async def test_without_a_limit_no_claim_waits(self, journal: Journal) -> None:
        """Its slots count for those who have one."""
        for _ in range(30):
            expect(Claimed, await ask(journal, None, None))
        # One that waits for these may ask now and then, but not all the time.
        assert expect(Busy, await ask(journal, None, RateLimit(20, per=PER))).retry_in >= 0.1
        expect(Claimed, await ask(journal, None, None))

    async def test_accounts_do_not_share(self, journal: Journal) -> None:
        """A full gate of one is no gate of another."""
        limit = RateLimit(2, per=PER)
        await fill(journal, limit)
        assert len(await fill(journal, limit, account="b" * 64)) == 2

    async def test_a_slot_ends_once(self, journal: Journal) -> None:
        """An intent is given up during a rest: its slot is free ``per`` after its POST."""
        limit, intent = RateLimit(1, per=PER), an_intent()
        slot = expect(Claimed, await ask(journal, intent, limit)).slot
        await journal.release(slot, sent=True)
        await self.advance_clock(PER / 2)
        await journal.advance(intent.intent_id, State.REFUSED, slot=slot)
        await self.advance_clock(PER / 2 + FLOAT)
        expect(Claimed, await ask(journal, None, limit))

    async def _free_again(self, journal: Journal, limit: RateLimit) -> float:
        """Wait for a slot as ``retry_in`` says, and take it: never before, never after that."""
        wait = expect(Busy, await ask(journal, None, limit)).retry_in
        await self.advance_clock(wait - SHORT)
        rest = expect(Busy, await ask(journal, None, limit)).retry_in
        assert rest == pytest.approx(SHORT, abs=FLOAT)
        await self.advance_clock(SHORT + FLOAT)
        expect(Claimed, await ask(journal, None, limit))
        return wait


class SharedJournalContract(JournalContract):
    """What a journal has to do whose store several journal objects may use, as processes do."""

    async def kill_owner(self, journal: Journal) -> None:
        """Make the owner of a journal object dead, as a crash would, with POSTs under way."""
        await journal.aclose()

    @pytest_asyncio.fixture
    async def second(self, journal: Journal) -> AsyncIterator[Journal]:  # type: ignore[override]  # awaited
        """Another owner of the same store."""
        assert journal is not None
        second = self.make_journal()
        yield second
        await second.aclose()

    async def test_another_owners_intent_is_not_claimed(
        self, journal: Journal, second: Journal
    ) -> None:
        """Only the owner that wrote a row sends its POST."""
        for state in (State.SENDING, State.RESTING):
            intent = an_intent()
            row = await in_state(journal, state, intent=intent)
            assert expect(Standing, await ask(second, intent)).intent == row
            assert await row_of(journal, intent) == row

    async def test_an_owner_that_disowns_its_rows(self, journal: Journal, second: Journal) -> None:
        """What it was sending is UNKNOWN for others; an answer is written all the same."""
        row = await in_state(second, State.SENDING, "sending")
        await second.disown()
        assert (await row_of(journal, row)).state is State.UNKNOWN
        after = await second.advance(row.intent_id, State.ACCEPTED, task_id="t-1")
        assert (after.state, after.task_id) == (State.ACCEPTED, "t-1")
        await claimed(second, an_intent())

    @pytest.mark.parametrize("first_use", ["find", "by key", "by token", "rows", "claim", "stats"])
    async def test_pending_rows_of_a_dead_owner(
        self, journal: Journal, second: Journal, first_use: str
    ) -> None:
        """A POST that may have been sent is UNKNOWN, one that certainly was not is REFUSED."""
        rows = [
            await in_state(second, State.SENDING, "sending"),
            await in_state(second, State.RESTING, "resting"),
            await in_state(second, State.ACCEPTED, "accepted"),
        ]
        expected = [State.UNKNOWN, State.REFUSED, State.ACCEPTED]
        await self.kill_owner(second)
        found: list[Intent | None] = []
        if first_use == "find":
            found = [await journal.find(intent_id=row.intent_id) for row in rows]
        elif first_use == "by key":
            found = [await journal.find(key=(SCOPE, row.key or "")) for row in rows]
        elif first_use == "by token":
            found = [await journal.find(token_hash=row.token_hash) for row in rows]
        elif first_use == "rows":
            assert await journal.rows(states=[State.SENDING, State.RESTING]) == []
            found = list(await journal.rows())
        elif first_use == "claim":
            got = expect(Standing, await ask(journal, an_intent("sending")))
            found = [got.intent, *[await row_of(journal, row) for row in rows[1:]]]
            await claimed(journal, an_intent("resting"))
        else:
            stats = await journal.stats()
            assert dict(stats.counts) == dict.fromkeys(expected, 1)
            found = list(await journal.rows())
        assert [each and each.state for each in found] == expected

    async def test_pending_rows_of_a_living_owner(self, journal: Journal, second: Journal) -> None:
        """They are left alone by everyone else."""
        for state in (State.SENDING, State.RESTING):
            row = await in_state(second, state, state.value)
            await journal.take_over(SCOPE)
            assert await row_of(journal, row) == row
            assert await journal.rows(states=[state]) == [row]
            assert expect(Standing, await ask(journal, an_intent(state.value))).intent == row

    async def test_an_intent_of_a_dead_owner_is_not_claimed_again(
        self, journal: Journal, second: Journal
    ) -> None:
        """The last check before a POST: an owner that was held for dead must not send."""
        intents = {State.SENDING: an_intent(), State.RESTING: an_intent()}
        for state, intent in intents.items():
            await in_state(second, state, intent=intent)
        await self.kill_owner(second)
        for owner in (second, journal):
            sending = expect(Standing, await ask(owner, intents[State.SENDING]))
            assert sending.intent.state is State.UNKNOWN
            resting = expect(Standing, await ask(owner, intents[State.RESTING]))
            assert resting.intent.state is State.REFUSED

    async def test_taking_over(self, journal: Journal, second: Journal) -> None:
        """The rows of dead owners become ours, of this scope only; those of the living do not."""
        ours = await in_state(second, State.ACCEPTED)
        await in_state(second, State.ACCEPTED, intent=an_intent(scope=f"{ORIGIN} other"))
        await journal.take_over(SCOPE)
        assert await journal.rows(mine=True) == []
        await self.kill_owner(second)
        await journal.take_over(SCOPE)
        mine = await journal.rows(SCOPE, mine=True)
        assert [row.intent_id for row in mine] == [ours.intent_id]
        assert await journal.rows(f"{ORIGIN} other", mine=True) == []

    async def test_open_slots_of_a_dead_owner(self, journal: Journal, second: Journal) -> None:
        """Their POSTs were sent before it died: soon after a window they are free."""
        limit = RateLimit(2, per=PER)
        assert len(await fill(second, limit)) == 2
        await self.advance_clock(20.0)
        expect(Busy, await ask(journal, None, limit))
        await self.kill_owner(second)
        waited = 0.0
        while isinstance(got := await ask(journal, None, limit), Busy):
            await self.advance_clock(got.retry_in + FLOAT)
            waited += got.retry_in + FLOAT
        assert PER <= waited <= PER + 2.0
        assert len(await fill(journal, limit)) == 1

    async def test_shares(self, journal: Journal, second: Journal) -> None:
        """Each owner gets its own share of the busy slots; 0 when no other owner is alive."""
        limit = RateLimit(4, per=PER)
        for _ in range(3):
            assert expect(Claimed, await ask(journal, None, limit)).share == 0.0
        expect(Claimed, await ask(second, None, limit))
        await asyncio.to_thread(time.sleep, 1.1)  # who else is there may be looked at once a second
        shares = [expect(Busy, await ask(each, None, limit)).share for each in (journal, second)]
        assert shares == [0.75, 0.25]


def _some_filters(chance: random.Random, rows: list[Intent], number: int) -> dict[str, object]:
    """Arguments of `Journal.rows`: one filter in the first 14, then any of them together."""
    row = chance.choice(rows)
    prefix = (row.key or "")[: chance.randint(0, 4)]
    notes = dict(list(row.metadata.items())[: chance.randint(0, 2)])
    task_ids = [each.task_id for each in chance.sample(rows, 20) if each.task_id]
    values: list[tuple[str, object]] = [
        ("scope", row.scope),
        ("states", {row.state, chance.choice(rows).state}),
        ("keys", [each.key for each in chance.sample(rows, 20) if each.key is not None]),
        ("task_ids", task_ids),
        ("key_prefix", prefix),
        ("key_prefix", chance.choice(_ODD_KEYS)),
        ("metadata", notes),
        ("metadata", chance.choice(_ODD_NOTES)),
        ("since", row.created_at),
        ("since", row.created_at + 0.5),
        ("taken", True),
        ("taken", False),
        ("mine", True),
        ("mine", False),
    ]
    if number < len(values):
        return dict([values[number]])
    return dict(chance.sample(values, chance.randint(0, 4)))


def _matches(row: Intent, filters: Mapping[str, object], mine: set[str]) -> bool:
    """Whether a row is one of those that `Journal.rows` was asked for."""
    if filters.get("mine") and row.intent_id not in mine:
        return False
    return all(_FILTERS[name](row, value) for name, value in filters.items() if name != "mine")


_FILTERS: Mapping[str, Callable[[Intent, Any], bool]] = {
    "scope": lambda row, scope: row.scope == scope,
    "states": lambda row, states: row.state in states,
    "keys": lambda row, keys: row.holds_key and row.key in keys,
    "task_ids": lambda row, task_ids: row.task_id in task_ids,
    "key_prefix": lambda row, prefix: row.key is not None and row.key.startswith(prefix),
    "metadata": lambda row, notes: notes.items() <= row.metadata.items(),
    "since": lambda row, since: row.created_at >= since,
    "taken": lambda row, taken: row.taken is taken,
}
