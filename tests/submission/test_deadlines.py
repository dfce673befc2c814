"""What `WaitTimeout` says about money: whether a POST is under way, and how to get back to it."""

import asyncio
import itertools
from typing import Any

import pytest

from midapi_async import (
    APIError,
    ClientClosed,
    Intent,
    MemoryJournal,
    MidAPIError,
    RateLimit,
    RateLimitError,
    RetryPolicy,
    State,
    SubmissionUnknown,
    WaitTimeout,
)
from midapi_async.journal import Claim
from tests.support.scripted import Received, ScriptedServer, Step, close, delay, hang, reply
from tests.world import TASK, accepted, client_of, looked, mid, refused, submits


@pytest.mark.fault("S13")
async def test_a_post_under_way_is_named_and_goes_on() -> None:
    """It may be bought: the error names its intent, and its key leads back to its task."""
    journal = MemoryJournal()
    async with (
        ScriptedServer(then=mid(delay(accepted(), 30), looked())) as server,
        client_of(server, journal=journal) as client,
    ):
        with pytest.raises(WaitTimeout) as caught:
            await client.generate_and_wait("a red fox", key="k", wait_timeout=10)
        row = await journal.find(intent_id=caught.value.intent_id)
        assert row is not None
        assert (row.key, row.state) == ("k", State.SENDING)
        assert caught.value.task_id is None
        again = await client.generate("a red fox", key="k")
        assert (again.task_id, again.intent_id) == (TASK, caught.value.intent_id)
        assert len(submits(server)) == 1


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.fault("S15")
async def test_one_that_waits_for_anothers_post_names_its_intent(*, is_shared: bool) -> None:
    """Whether the POST is its own client's or another's, the error leads to the same row."""
    journal = MemoryJournal()
    async with (
        ScriptedServer(then=mid(delay(accepted(), 30), looked())) as server,
        client_of(server, journal=journal) as one,
        client_of(server, journal=journal) as other,
    ):
        first = asyncio.create_task(one.generate("a red fox", key="k"))
        await server.arrived(1)
        second = one if is_shared else other
        with pytest.raises(WaitTimeout) as caught:
            await second.generate_and_wait("a red fox", key="k", wait_timeout=10)
        assert caught.value.intent_id == (await first).intent_id
        assert len(submits(server)) == 1


@pytest.mark.fault("S34")
async def test_one_that_rests_after_a_refusal_names_nothing() -> None:
    """Nothing was bought and nothing more is sent: there is no intent to ask about."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([refused(429, Retry_After="60")]) as server,
        client_of(server, journal=journal, retry=RetryPolicy(give_up_after=300)) as client,
    ):
        with pytest.raises(WaitTimeout) as caught:
            await client.generate_and_wait("a red fox", wait_timeout=10)
        assert (caught.value.intent_id, caught.value.task_id) == (None, None)
        await asyncio.sleep(200)
        assert len(submits(server)) == 1
        rows = await journal.rows(f"{server.url} default")
        assert [row.state for row in rows] == [State.REFUSED]


@pytest.mark.fault("S34")
@pytest.mark.parametrize("leaves", ["cancelled", "timeout", "stop", "close"])
async def test_nothing_is_sent_after_a_claim_that_nobody_waits_for(leaves: str) -> None:
    """A claim under way writes its row; a caller that leaves meanwhile pays for nothing."""

    class Slow(MemoryJournal):
        async def claim(self, *args: Any, **options: Any) -> Claim:
            claim = await super().claim(*args, **options)
            await asyncio.sleep(2)
            return claim

    journal = Slow()
    async with ScriptedServer(then=mid(submit=accepted())) as server:
        async with client_of(server, journal=journal) as client:
            timeout = 1 if leaves == "timeout" else None
            submit = asyncio.create_task(client.generate("a red fox", key="k", timeout=timeout))
            await asyncio.sleep(1)
            if leaves == "cancelled":
                submit.cancel()
            elif leaves == "stop":
                client.stop_waiting()
            elif leaves == "close":
                await client.aclose()
            with pytest.raises((asyncio.CancelledError, WaitTimeout, ClientClosed)):
                await submit
            await asyncio.sleep(10)
        assert submits(server) == []
        rows = await journal.rows(f"{server.url} default")
        assert [row.state for row in rows] == [State.REFUSED]


@pytest.mark.fault("S34")
async def test_a_wait_for_anothers_refused_post_names_no_intent() -> None:
    """The key is free again, and the second submission waits for a slot: nothing was bought."""
    journal, limit = MemoryJournal(), RateLimit(1, per=60)
    async with (
        ScriptedServer([delay(refused(422), 5)]) as server,
        client_of(server, journal=journal, rate_limit=limit) as one,
        client_of(server, journal=journal, rate_limit=limit) as other,
    ):
        first = asyncio.create_task(one.generate("a red fox", key="k"))
        await server.arrived(1)
        with pytest.raises(WaitTimeout) as caught:
            await other.generate("a red fox", key="k", timeout=20)
        with pytest.raises(APIError):
            await first
        assert (caught.value.intent_id, caught.value.task_id) == (None, None)
        assert len(submits(server)) == 1


async def test_a_timeout_of_the_journal_is_not_our_deadline() -> None:
    """A store of the user's own may raise anything; only a deadline that passed is WaitTimeout."""

    class Slow(MemoryJournal):
        async def find(self, **names: Any) -> Intent | None:
            if "intent_id" in names:
                raise TimeoutError("the database")
            return await super().find(**names)

    journal = Slow()
    async with (
        ScriptedServer([delay(accepted(), 5)]) as server,
        client_of(server, journal=journal) as one,
        client_of(server, journal=journal) as other,
    ):
        first = asyncio.create_task(one.generate("a red fox", key="k"))
        await server.arrived(1)
        with pytest.raises(TimeoutError, match="the database"):
            await other.generate("a red fox", key="k", timeout=60)
        assert (await first).task_id == TASK


@pytest.mark.fault("L17")
@pytest.mark.parametrize(
    ("submit", "look", "options"),
    [
        (delay(accepted(), 100), looked(), {}),
        (refused(429, Retry_After="100"), looked(), {"retry": RetryPolicy(give_up_after=3600)}),
        (close("accept"), looked(), {"retry": RetryPolicy(give_up_after=3600)}),
        (hang("accept"), looked(), {}),
        (accepted(), looked(flag=0), {}),
        (accepted(), hang(), {}),
        (reply(403, body="blocked"), looked(), {"retry": RetryPolicy(give_up_after=3600)}),
    ],
    ids=[
        "a slow POST",
        "rate limit",
        "dead service",
        "silent service",
        "a task that goes on",
        "a look that hangs",
        "an outage",
    ],
)
async def test_200_orders_end_within_their_timeout(
    submit: Step, look: Step, options: dict[str, object]
) -> None:
    """With a full gate, too; and each error says what it knows of the purchase."""
    ids = itertools.count()

    def bought(_: Received) -> Step:
        return accepted(f"{next(ids):032x}") if submit == accepted() else submit

    def record(request: Received) -> Step:
        if look == hang():
            return look
        return looked(request.target.rpartition("=")[2], flag=0)

    async with ScriptedServer(then=mid(bought, record)) as server:
        limit = RateLimit(20, per=10)
        async with client_of(server, rate_limit=limit, **options) as client:
            begun = asyncio.get_running_loop().time()
            ends = await asyncio.gather(
                *(client.generate_and_wait(f"fox {n}", wait_timeout=25) for n in range(200)),
                return_exceptions=True,
            )
            took = asyncio.get_running_loop().time() - begun
            assert took <= 26
            assert {type(end) for end in ends} <= {WaitTimeout, SubmissionUnknown}
            rows = {row.intent_id: row for row in await client._opened().journal.rows()}
            for end in ends:
                assert isinstance(end, MidAPIError)
                row = rows.get(end.intent_id or "")
                if end.task_id is not None:
                    assert end.task_id in {each.task_id for each in rows.values()}
                elif row is not None:
                    assert row.state in {State.SENDING, State.UNKNOWN}
            await asyncio.sleep(400)
            left = [row for row in await client._opened().journal.rows() if row.task_id is None]
            assert {row.state for row in left} <= {State.UNKNOWN, State.REFUSED}


async def test_a_timeout_between_two_retries_says_why_nothing_was_sent() -> None:
    """The last failure is in the text, and the cause."""
    async with (
        ScriptedServer(then=refused(429, "too many calls")) as server,
        client_of(server) as client,
    ):
        with pytest.raises(WaitTimeout, match=r"Nothing was bought.*too many calls") as caught:
            await client.generate("a red fox", timeout=5)
    assert isinstance(caught.value.__cause__, RateLimitError)
