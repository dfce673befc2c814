"""Before the first byte of a POST is sent, its claim must not be old, and must still hold."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from midapi_async import (
    JournalError,
    MemoryJournal,
    MidAPIClient,
    RateLimit,
    RetryPolicy,
    State,
    SubmissionUnknown,
)
from midapi_async._wire.protocol import Answer, Call
from midapi_async.journal import Busy, Claim
from midapi_async.journal.sqlite import SQLiteJournal
from tests.support.scripted import ScriptedServer
from tests.support.secrets import API_KEY
from tests.world import TASK, accepted, client_of, looked, mid, refused, submits

pytestmark = pytest.mark.fault("S25")
ROOT = Path(__file__).parents[2]


class Journal(MemoryJournal):
    """Counts the claims, and gives one of them another answer."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = 0
        self.second: Claim | Exception | None = None

    async def claim(self, *args: object, **options: object) -> Claim:
        self.claims += 1
        if self.claims == 2 and self.second is not None:
            if isinstance(self.second, Exception):
                raise self.second
            return self.second
        return await super().claim(*args, **options)  # type: ignore[arg-type]


def stand_still(
    client: MidAPIClient, seconds: float, meanwhile: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Let time pass between the claim and the POST, once for each POST."""
    sender = client._opened().sender
    send = sender._send

    async def later(call: Call, confirm: Callable[[], Awaitable[object]]) -> Answer:
        await asyncio.sleep(seconds)
        if meanwhile is not None:
            await meanwhile()
        return await send(call, confirm)

    sender._send = later


@pytest.mark.parametrize(("seconds", "claims"), [(0.5, 1), (1.5, 2), (3600, 2)])
async def test_a_claim_holds_for_a_second(seconds: float, claims: int) -> None:
    """After that the row is claimed again, on the connection that is already there."""
    journal = Journal()
    async with (
        ScriptedServer([accepted()]) as server,
        client_of(server, journal=journal) as client,
    ):
        stand_still(client, seconds)
        assert (await client.generate("a red fox")).task_id == TASK
        assert journal.claims == claims
        assert server.connections == 1


@pytest.mark.parametrize("state", [State.UNKNOWN, State.ACCEPTED, State.REFUSED])
async def test_nothing_is_sent_for_a_row_that_was_moved_on(state: State) -> None:
    """Others held this process for dead, or the callback of another one's POST came."""
    journal = Journal()
    async with ScriptedServer() as server, client_of(server, journal=journal) as client:

        async def move() -> None:
            (row,) = await journal.rows()
            await journal.advance(
                row.intent_id, state, task_id="other" if state is State.ACCEPTED else None
            )

        stand_still(client, 5, move)
        if state is State.ACCEPTED:
            assert (await client.generate("a red fox", key="k")).task_id == "other"
        else:
            with pytest.raises(SubmissionUnknown if state is State.UNKNOWN else ValueError):
                await client.generate("a red fox", key="k")
        assert server.requests == []
        assert [row.state for row in await journal.rows()] == [state]


async def test_without_a_free_slot_it_goes_back_to_the_line() -> None:
    """A 429 came meanwhile: nothing is sent now, and it is sent when there is a slot."""
    journal = Journal()
    journal.second = Busy(7.0)
    async with (
        ScriptedServer([accepted()]) as server,
        client_of(server, journal=journal, rate_limit=RateLimit(1)) as client,
    ):
        stand_still(client, 5)
        assert (await client.generate("a red fox")).task_id == TASK
        assert len(submits(server)) == 1
        assert journal.claims == 4  # and one before each of two late POSTs
        assert (await journal.rows())[0].state is State.ACCEPTED


async def test_nothing_is_sent_when_the_journal_fails() -> None:
    """The row is refused, since it is certain that nothing was sent."""
    journal = Journal()
    journal.second = JournalError("the disk is full")
    async with ScriptedServer() as server, client_of(server, journal=journal) as client:
        stand_still(client, 5)
        with pytest.raises(JournalError, match="full"):
            await client.generate("a red fox")
        assert server.requests == []
        assert [row.state for row in await journal.rows()] == [State.REFUSED]


async def test_a_slot_of_a_late_claim_is_not_lost() -> None:
    """The POST times out while it claims again; the next one gets the only slot at once."""

    class Slow(Journal):
        async def claim(self, *args: object, **options: object) -> Claim:
            answer = await super().claim(*args, **options)
            if self.claims == 2:
                await asyncio.sleep(500)
            return answer

    journal = Slow()
    async with (
        ScriptedServer([accepted(), accepted("second")]) as server,
        client_of(
            server,
            journal=journal,
            rate_limit=RateLimit(1),
            retry=RetryPolicy(give_up_after=1000),
        ) as client,
    ):
        stand_still(client, 5)
        assert (await client.generate("a red fox")).task_id == TASK
        begun = asyncio.get_running_loop().time()
        assert (await client.generate("a blue whale")).task_id == "second"
        assert asyncio.get_running_loop().time() - begun < 20


CHILD = """
import asyncio, os, signal, sys
from midapi_async import MidAPIClient, MidAPIError

async def main(url, folder):
    async with MidAPIClient("{key}", base_url=url, journal=folder) as client:
        sender = client._opened().sender
        send = sender._send

        async def stop_first(call, confirm):
            # The journal prunes after its first claim; a stop during that would keep it locked.
            await client._opened().journal.find(intent_id="none")
            os.kill(os.getpid(), signal.SIGSTOP)
            return await send(call, confirm)

        sender._send = stop_first
        try:
            print((await client.generate("a red fox", key="k")).task_id)
        except MidAPIError as error:
            print(type(error).__name__)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.one_python
@pytest.mark.real_time
@pytest.mark.parametrize("is_removed", [True, False], ids=["lock file removed", "lock file kept"])
async def test_a_stopped_process_whose_lock_file_was_removed(
    tmp_path: Path, *, is_removed: bool
) -> None:
    """Its row is unknown and is submitted again elsewhere; when it wakes it sends nothing."""
    folder = tmp_path / "journal"
    async with ScriptedServer(then=mid(accepted(), looked())) as server:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD.replace("{key}", API_KEY), server.url, str(folder)),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        await asyncio.to_thread(os.waitid, os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        journal = SQLiteJournal(folder)
        (row,) = await journal.rows()
        assert row.state is State.SENDING
        if is_removed:
            (folder / "owners" / row.owner).unlink()
            async with client_of(server, journal=journal) as client:
                with pytest.raises(SubmissionUnknown):
                    await client.generate("a red fox", key="k")
                bought = await client.intents.resubmit(row.intent_id)
                assert bought.task_id == TASK
        else:
            await asyncio.sleep(1.5)
        child.send_signal(signal.SIGCONT)
        printed, _ = await child.communicate()
        assert child.returncode == 0
        assert printed.decode().strip() == ("InvalidRequestError" if is_removed else TASK)
        assert len(submits(server)) == 1
        assert json.loads(submits(server)[0].body)["prompt"] == "a red fox"
        await journal.aclose()


async def test_an_owner_whose_file_was_removed_is_replaced(tmp_path: Path) -> None:
    """What it submits from then on belongs to an owner that others see as alive."""
    async with (
        ScriptedServer([refused(402), accepted()]) as server,
        client_of(server, journal=tmp_path / "journal") as client,
    ):
        journal = client._opened().journal
        with pytest.raises(Exception, match="402"):
            await client.generate("a red fox")
        (old,) = (tmp_path / "journal" / "owners").iterdir()
        old.unlink()
        await client.generate("a red fox")
        owner = (await journal.rows())[-1].owner
        assert owner != old.name
        assert [each.name for each in old.parent.iterdir()] == [owner]
