"""`client.find`: what a key has bought, without buying anything."""

import asyncio

import pytest

from midapi_async import ClientClosed, InvalidRequestError, MemoryJournal, State, SubmissionUnknown
from tests.support.scripted import ScriptedServer, delay, reply
from tests.world import TASK, accepted, client_of, looked, mid, refused, submits


async def test_a_bought_key_gives_its_handle() -> None:
    """It sends nothing, and its result can be awaited."""
    async with (
        ScriptedServer(then=mid(accepted(), looked())) as server,
        client_of(server) as client,
    ):
        assert await client.find("k") is None
        await client.generate("a red fox", key="k")
        found = await client.find("k")
        assert found is not None
        assert (found.task_id, found.key, found.replayed) == (TASK, "k", True)
        assert (await found).urls
        assert len(submits(server)) == 1


async def test_a_refused_key_is_free() -> None:
    """Nothing was bought with it."""
    async with ScriptedServer([refused(402)]) as server, client_of(server) as client:
        with pytest.raises(Exception, match="402"):
            await client.generate("a red fox", key="k")
        assert await client.find("k") is None


async def test_an_unknown_key_says_so_until_it_is_dismissed() -> None:
    """As `generate` with this key does."""
    async with ScriptedServer([reply(502)]) as server, client_of(server) as client:
        with pytest.raises(SubmissionUnknown) as caught:
            await client.generate("a red fox", key="k")
        with pytest.raises(SubmissionUnknown):
            await client.find("k")
        await client.intents.dismiss(caught.value.intent_id)
        with pytest.raises(InvalidRequestError) as dismissed:
            await client.find("k")
        assert dismissed.value.key == "k"


@pytest.mark.fault("S34")
@pytest.mark.parametrize("way", ["find", "settle"])
async def test_it_is_no_reason_to_send_a_submission_again(way: str) -> None:
    """The only caller of `generate` leaves while the submission rests: nothing more is sent."""
    script = [refused(429), accepted()]
    async with ScriptedServer(script) as server, client_of(server) as client:
        buying = asyncio.create_task(client.generate("a red fox", key="k"))
        await server.arrived(1)
        await asyncio.sleep(0.1)
        [row] = await client._opened().journal.rows(states=[State.RESTING])
        ask = client.find("k") if way == "find" else client.intents.settle(row.intent_id)
        asking = asyncio.create_task(ask)
        await asyncio.sleep(0.1)
        buying.cancel()
        await asyncio.wait({asking})
        if way == "find":
            assert asking.result() is None
        else:
            assert "nothing was bought" in str(asking.exception())
        assert len(submits(server)) == 1


@pytest.mark.parametrize("outcome", ["accepted", "refused", "closed"])
async def test_it_waits_while_the_post_is_under_way(outcome: str) -> None:
    """Also for the POST of another client on the same journal."""
    journal = MemoryJournal()
    answer = refused(402) if outcome == "refused" else accepted()
    async with (
        ScriptedServer([delay(answer, 30)]) as server,
        client_of(server, journal=journal) as buyer,
        client_of(server, journal=journal) as other,
    ):
        buying = asyncio.create_task(buyer.generate("a red fox", key="k"))
        await server.arrived(1)
        finding = [asyncio.create_task(client.find("k")) for client in (buyer, other)]
        await asyncio.sleep(1)
        assert not any(each.done() for each in finding)
        if outcome == "closed":
            other.stop_waiting()
            with pytest.raises(ClientClosed):
                await finding[1]
        found = [await each for each in finding[: 1 if outcome == "closed" else 2]]
        expected = None if outcome == "refused" else TASK
        assert {each and each.task_id for each in found} == {expected}
        await asyncio.wait({buying})
        assert (buying.exception() is None) == (outcome != "refused")


async def test_a_client_that_stops_says_that_the_post_of_another_may_buy_it() -> None:
    """`generate` waits for the POST of another client: its error has the intent."""
    journal = MemoryJournal()
    async with (
        ScriptedServer([delay(accepted(), 30)]) as server,
        client_of(server, journal=journal) as buyer,
        client_of(server, journal=journal) as other,
    ):
        buying = asyncio.create_task(buyer.generate("a red fox", key="k"))
        await server.arrived(1)
        asking = asyncio.create_task(other.generate("a red fox", key="k"))
        await asyncio.sleep(1)
        other.stop_waiting()
        with pytest.raises(ClientClosed, match="may have been accepted") as caught:
            await asking
        assert caught.value.intent_id == (await buying).intent_id
