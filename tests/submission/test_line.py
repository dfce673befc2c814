"""The line at the gate, as users see it: clients of one account, and when their POSTs arrive."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midapi_async import (
    ClientClosed,
    MemoryJournal,
    MidAPIClient,
    RateLimit,
    RetryPolicy,
    TransportError,
)
from midapi_async.journal.sqlite import SQLiteJournal
from midapi_async.testing import VirtualLoop
from tests.support.scripted import Answer, Received, ScriptedServer, delay
from tests.support.secrets import API_KEY
from tests.support.stepper import cancel_at_each_step
from tests.world import accepted, refused


def now() -> float:
    return asyncio.get_running_loop().time()


def busiest_window(moments: list[float], per: float) -> int:
    """The most moments that any half-open window of the server holds."""
    ordered = sorted(moments)
    return max(sum(1 for m in ordered if start <= m < start + per) for start in ordered)


@attrs.define
class Account:
    """MidAPI: it accepts what comes, after some latency, and writes down when it came.

    Attributes:
        latency: seconds until a POST is answered, by its prompt.
        refusals: how many of the next POSTs get a 429.
        retry_after: the Retry-After of these, in seconds.
        arrivals: the prompt and the moment of each POST.
        clock: where the moments come from.
    """

    latency: Callable[[str], float] = lambda _: 0.0
    refusals: int = 0
    retry_after: int = 3
    arrivals: list[tuple[str, float]] = attrs.field(factory=list)
    clock: Callable[[], float] = now

    def __call__(self, request: Received) -> Answer:
        body = request.json()
        assert isinstance(body, dict)
        prompt = str(body["prompt"])
        self.arrivals.append((prompt, self.clock()))
        if self.refusals:
            self.refusals -= 1
            return refused(429, Retry_After=str(self.retry_after))
        return delay(accepted(f"task-{len(self.arrivals)}"), self.latency(prompt))

    @property
    def prompts(self) -> list[str]:
        """What came, in order."""
        return [prompt for prompt, _ in self.arrivals]

    @property
    def moments(self) -> list[float]:
        """When it came."""
        return [moment for _, moment in self.arrivals]


@asynccontextmanager
async def clients_of(
    account: Account, *options: dict[str, object]
) -> AsyncIterator[list[MidAPIClient]]:
    """A server for an account, and a client for each of the options."""
    async with ScriptedServer(then=account) as server:
        clients = []
        try:
            for chosen in options:
                api_key = str(chosen.pop("api_key", API_KEY))
                client = MidAPIClient(api_key, base_url=server.url, **chosen)  # type: ignore[arg-type]
                clients.append(client)
                await client.open()
            yield clients
        finally:
            for client in clients:
                await client.aclose()


def limited(count: int, per: float = 10.0, **options: object) -> dict[str, object]:
    """Options of a client with a limit."""
    return {"rate_limit": RateLimit(count, per=per), **options}


async def until_waiting(*clients: MidAPIClient) -> list[int]:
    """Let what was begun come to the gate; how many wait there, by client."""
    await asyncio.sleep(0.5)
    return [client.stats().at_the_gate for client in clients]


# ─── the order ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_clients_of_one_loop_are_served_as_they_come(number: int) -> None:
    """First come, first served, whichever client it came with, and as early as the limit allows."""
    account, chance = Account(), random.Random(4)
    async with clients_of(account, *[limited(2, 5.0) for _ in range(number)]) as clients:
        begun, posts = now(), []
        for n in range(12):
            posts.append(asyncio.create_task(chance.choice(clients).generate(f"prompt {n}")))
            await asyncio.sleep(0)
        await asyncio.gather(*posts)
    pairs = [set(account.prompts[n : n + 2]) for n in range(0, 12, 2)]
    assert pairs == [{f"prompt {n}", f"prompt {n + 1}"} for n in range(0, 12, 2)]
    passed = [moment - begun for moment in account.moments]
    assert passed == pytest.approx([5.0 * (n // 2) for n in range(12)], abs=0.01)


async def test_a_submission_that_was_refused_for_the_moment_goes_first() -> None:
    """After a 429 its turn comes before those who came later."""
    account = Account(refusals=1)
    async with clients_of(account, limited(1)) as (client,):
        posts = [asyncio.create_task(client.generate(f"prompt {n}")) for n in range(3)]
        await asyncio.gather(*posts)
    assert account.prompts == ["prompt 0", "prompt 0", "prompt 1", "prompt 2"]


@pytest.mark.fault("S18")
async def test_a_cancelled_waiter_passes_its_turn_on() -> None:
    """Cancelled while it waits, or in the moment of its turn: the next one is not held up."""
    account = Account()
    async with clients_of(account, limited(1, 5.0)) as (client,):
        await client.generate("prompt 0")
        begun = now()
        waiting = [asyncio.create_task(client.generate(f"prompt {n}")) for n in range(1, 5)]
        assert await until_waiting(client) == [4]
        waiting[0].cancel()
        asyncio.get_running_loop().call_at(begun + 5.0, waiting[1].cancel)
        await waiting[2]
        assert now() - begun <= 5.1
        await waiting[3]
    assert all(task.cancelled() for task in waiting[:2])
    assert account.prompts == ["prompt 0", "prompt 3", "prompt 4"]


@pytest.mark.fault("S18")
@pytest.mark.parametrize("journal", ["memory", "folder"])
async def test_giving_up_at_the_gate_leaves_nothing(tmp_path: Path, journal: str) -> None:
    """Nothing is sent or written, the key stays free, and the next one is not held up."""
    account = Account()
    place = MemoryJournal() if journal == "memory" else SQLiteJournal(tmp_path / "journal")
    async with clients_of(account, limited(1, 30.0, journal=place)) as (client,):
        await client.generate("a red fox")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await client.generate("a blue whale", key="order-17")
        assert [row.key for row in await place.rows()] == [None]
        await client.generate("a green frog", key="order-17")
    await place.aclose()
    assert account.prompts == ["a red fox", "a green frog"]
    assert account.moments[1] - account.moments[0] == pytest.approx(30.0, abs=0.01)


@pytest.mark.fault("S18")
@pytest.mark.parametrize("journal", ["memory", "folder"])
async def test_cancelled_at_each_step_no_slot_is_lost(tmp_path: Path, journal: str) -> None:
    """Wherever the cancellation strikes, a window later the next one has its turn."""
    for step in cancel_at_each_step():
        account = Account(latency=lambda _: 1.0)
        folder = tmp_path / repr(step)
        place: dict[str, Any] = {"journal": folder} if journal == "folder" else {}
        async with clients_of(account, limited(1, 5.0, **place)) as (client,):
            await client.generate("first")
            await step.run(client.generate("second"))
            await client.generate("third")
        begun = account.moments[0]
        assert account.prompts in (["first", "third"], ["first", "second", "third"]), step
        # Each POST takes a second, and five later the next one goes.
        expected = [begun + 6.0 * n for n in range(len(account.moments))]
        assert account.moments == pytest.approx(expected, abs=0.05), step


# ─── the limit ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("latency", [0.0, 0.3, 3.0, 12.0])
async def test_no_window_holds_more_than_the_limit(latency: float) -> None:
    """Whatever the latency, 20 in any 10 s and not one more."""
    chance = random.Random(7)
    account = Account(latency=lambda _: latency * 2 * chance.random())
    async with clients_of(account, limited(20), limited(20), limited(20)) as clients:
        begun = now()
        await asyncio.gather(*(clients[n % 3].generate(f"prompt {n}") for n in range(120)))
        took = now() - begun
    assert len(account.arrivals) == 120
    assert 18 <= busiest_window(account.moments, 10.0) <= 20
    if latency < 1:
        assert 120 / took >= 0.9 * 120 / 50  # the first 20 go at once, so five windows are needed


@settings(max_examples=25)
@given(
    count=st.integers(1, 5),
    posts=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 30), st.floats(0, 12), st.floats(0.1, 40)),
        max_size=20,
    ),
)
def test_property_never_too_many_never_stuck(
    count: int, posts: list[tuple[int, float, float, float]]
) -> None:
    """Whenever they come, however long they take, whichever gives up: the window holds."""
    latencies = {f"prompt {n}": latency for n, (_, _, latency, _) in enumerate(posts)}
    account = Account(latency=lambda prompt: latencies.get(prompt, 0.0))

    async def post(client: MidAPIClient, prompt: str, start: float, patience: float) -> None:
        await asyncio.sleep(start)
        try:
            async with asyncio.timeout(patience):
                await client.generate(prompt)
        except TimeoutError:
            pass

    async def main() -> None:
        async with clients_of(account, *[limited(count) for _ in range(3)]) as clients:
            await asyncio.gather(
                *(
                    post(clients[which], f"prompt {n}", start, patience)
                    for n, (which, start, _, patience) in enumerate(posts)
                )
            )
            # A POST under way is not ended by its caller; its slot is free when it is answered.
            begun = now()
            await clients[0].generate("the last one")
            assert now() - begun <= 12.0 + 10.0 + 0.1

    VirtualLoop.run(main())
    assert busiest_window(account.moments, 10.0) <= count


async def test_a_post_that_was_not_sent_leaves_its_slot() -> None:
    """MidAPI has counted nothing, so the retry need not wait for a window."""
    async with ScriptedServer() as server:
        # Nobody listens there any more, in a moment; it does not look like this machine.
        url = f"https://0.0.0.0:{server.port}"
    client = MidAPIClient(
        API_KEY,
        base_url=url,
        rate_limit=RateLimit(1, per=1000.0),
        retry=RetryPolicy(give_up_after=30.0),
    )
    async with client:
        begun = now()
        with pytest.raises(TransportError):
            await client.generate("a red fox")
        assert now() - begun <= 60.0
        assert client.stats().submits >= 3


async def test_time_scale_shortens_the_window() -> None:
    """A window of 10 s of the service is 0.1 s of the loop at a scale of 100."""
    account = Account()
    async with clients_of(account, limited(1, 10.0, time_scale=100.0)) as (client,):
        for n in range(3):
            await client.generate(f"prompt {n}")
    gaps = [later - earlier for earlier, later in pairwise(account.moments)]
    assert gaps == pytest.approx([0.1, 0.1], abs=0.01)


async def test_time_scale_shortens_the_pause_after_a_429() -> None:
    """For the client that got it, and for the others of its account."""
    account = Account(refusals=1, retry_after=40)
    scaled = limited(5, 10.0, time_scale=100.0)
    async with clients_of(account, scaled, dict(scaled)) as (first, second):
        refusal = asyncio.create_task(first.generate("a red fox"))
        await asyncio.sleep(0.2)
        await second.generate("a blue whale")
        await refusal
    begun = account.moments[0]
    assert len(account.arrivals) == 3
    assert all(0.4 <= moment - begun <= 0.5 for moment in account.moments[1:])


# ─── who shares it ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("case", "busiest"),
    [
        ("memory", 3),
        ("one memory journal", 3),
        ("one folder", 3),
        ("two namespaces", 3),
        ("two folders", 6),
        ("two keys", 6),
    ],
)
async def test_clients_of_one_account_share_the_limit(
    tmp_path: Path, case: str, busiest: int
) -> None:
    """In one event loop, and in one folder; another API key is another account."""
    first, second = limited(3), limited(3)
    if case == "one memory journal":
        first["journal"] = second["journal"] = MemoryJournal()
    elif case == "two keys":
        second["api_key"] = API_KEY[::-1]
    elif case != "memory":
        first["journal"] = second["journal"] = tmp_path / "one"
    if case == "two folders":
        second["journal"] = tmp_path / "two"
    if case == "two namespaces":
        second["namespace"] = "other"
    account = Account()
    async with clients_of(account, first, second) as clients:
        posts = [client.generate("a red fox") for client in clients for _ in range(6)]
        await asyncio.gather(*posts)
    assert len(account.arrivals) == 12
    assert busiest_window(account.moments, 10.0) == busiest


@pytest.mark.parametrize("journal", ["memory", "folder"])
async def test_the_smallest_of_several_limits_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, journal: str
) -> None:
    """Nobody can say which one is the account's: one warning names both."""
    place: dict[str, Any] = {"journal": tmp_path / "journal"} if journal == "folder" else {}
    account = Account()
    async with clients_of(account, limited(2, **place), limited(5, **place)) as (small, large):
        await small.generate("a red fox")
        await asyncio.gather(*(large.generate(f"prompt {n}") for n in range(6)))
        await asyncio.gather(*(small.generate(f"prompt {n}") for n in range(2)))
    assert busiest_window(account.moments[:3], 10.0) == 2
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1, warnings
    assert "2" in warnings[0]
    assert "5" in warnings[0]


@pytest.mark.real_time
async def test_clients_of_several_loops_share_a_folder(tmp_path: Path) -> None:
    """Two threads with an event loop each are two owners of one limit."""
    account, per = Account(clock=time.monotonic), 0.4

    async def submit(url: str, name: str) -> None:
        async with MidAPIClient(
            API_KEY, base_url=url, journal=tmp_path / "journal", rate_limit=RateLimit(3, per=per)
        ) as client:
            await asyncio.gather(*(client.generate(f"{name} {n}") for n in range(6)))

    async with ScriptedServer(then=account) as server:
        await asyncio.gather(
            *(asyncio.to_thread(asyncio.run, submit(server.url, name)) for name in ("a", "b"))
        )
    assert len(account.arrivals) == 12
    assert busiest_window(account.moments, per) <= 3


async def test_a_known_key_needs_no_slot(tmp_path: Path) -> None:
    """A full gate does not delay the handle of what was bought, and nothing is sent for it."""
    account = Account()
    async with clients_of(account, limited(1, 1000.0, journal=tmp_path / "j")) as (client,):
        first = await client.generate("a red fox", key="order-17")
        waiting = asyncio.create_task(client.generate("a blue whale"))
        assert await until_waiting(client) == [1]
        begun = now()
        again = await client.generate("a red fox", key="order-17")
        assert again.task_id == first.task_id
        assert now() - begun <= 0.1
        waiting.cancel()
        await asyncio.wait({waiting})
    assert account.prompts == ["a red fox"]


async def test_i5_nothing_in_the_folder_names_the_account(tmp_path: Path) -> None:
    """The API key is in no file and no name; everything is private."""
    account, folder = Account(), tmp_path / "journal"
    async with clients_of(account, limited(1, journal=folder)) as (client,):
        await client.generate("a red fox")
        found = list(folder.rglob("*"))
        files = [path for path in found if path.is_file()]
        assert files
        for path in files:
            assert API_KEY not in str(path)
            assert API_KEY.encode() not in path.read_bytes()
            assert path.stat().st_mode & 0o777 == 0o600, path
        for path in (folder, *(each for each in found if each.is_dir())):
            assert path.stat().st_mode & 0o777 == 0o700, path


async def test_a_client_without_a_limit_does_not_wait_behind_the_others() -> None:
    """Of the same account: it chose to have no limit, and the others keep to theirs."""
    account = Account()
    async with clients_of(account, limited(1, 60.0), {"rate_limit": None}) as (first, second):
        await first.generate("prompt 0")
        waiting = asyncio.create_task(first.generate("prompt 1"))
        assert await until_waiting(first) == [1]
        begun = now()
        await second.generate("prompt 2")
        assert now() - begun < 1.0
        assert not waiting.done()
        waiting.cancel()


# ─── after a 429 ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("S5")
@pytest.mark.parametrize("limit", [RateLimit(10, per=10.0), None])
@pytest.mark.parametrize("journal", ["memory", "folder"])
async def test_a_429_pauses_all_clients(
    tmp_path: Path, journal: str, limit: RateLimit | None
) -> None:
    """The limit is the account's, and so is its pause, also for clients without a limit."""
    place = {"journal": tmp_path / "journal"} if journal == "folder" else {}
    account = Account(refusals=1, retry_after=40)
    options = [dict[str, object](rate_limit=limit, **place) for _ in range(2)]
    async with clients_of(account, *options) as (first, second):
        refusal = asyncio.create_task(first.generate("a red fox"))
        await asyncio.sleep(1)
        await second.generate("a blue whale")
        await refusal
    assert len(account.arrivals) == 3
    begun = account.moments[0]
    assert all(40.0 <= moment - begun <= 50.0 for moment in account.moments[1:])


@pytest.mark.fault("S6")
async def test_after_a_429_half_the_rate_and_back() -> None:
    """A pause for all, half as many in a window, and one more for each window without a 429."""
    account = Account(refusals=1, retry_after=5)
    async with clients_of(account, limited(8), limited(8)) as clients:
        await asyncio.gather(*(clients[n % 2].generate(f"prompt {n}") for n in range(8)))
        await asyncio.gather(*(clients[n % 2].generate(f"prompt {n}") for n in range(60)))
    begun = account.moments[0]
    moments = [moment - begun for moment in account.moments[8:]]
    assert min(moments) >= 5.0
    per_window = [sum(1 for m in moments if a <= m < a + 10.0) for a in (5.0, 15.0, 35.0, 55.0)]
    assert per_window[0] <= 4
    assert per_window == sorted(per_window)
    assert per_window[-1] == 8
    assert busiest_window(account.moments, 10.0) <= 8


@pytest.mark.fault("S6")
async def test_the_429s_of_one_window_halve_once() -> None:
    """Ten POSTs under way that are all refused are one mistake."""
    account = Account(refusals=10, retry_after=1)
    async with clients_of(account, limited(10)) as (client,):
        await asyncio.gather(*(client.generate(f"prompt {n}") for n in range(10)))
    begun = account.moments[0]
    second_window = [moment for moment in account.moments if 9.0 <= moment - begun < 19.0]
    assert len(second_window) in (5, 6), "five are left of ten, and one may have come back"


# ─── closing ─────────────────────────────────────────────────────────────────────────────────────


async def test_closing_one_client_leaves_the_others_their_places() -> None:
    """Its own waiters get `ClientClosed` at once; the others go on when it is their turn."""
    account = Account(latency=lambda _: 2.0)
    async with clients_of(account, limited(1, 5.0), limited(1, 5.0)) as (first, second):
        sent = asyncio.create_task(first.generate("sent"))
        await asyncio.sleep(1)
        leaving = asyncio.create_task(first.generate("leaving"))
        staying = asyncio.create_task(second.generate("staying"))
        assert await until_waiting(first, second) == [1, 1]
        begun = now()
        closing = asyncio.create_task(first.aclose())
        with pytest.raises(ClientClosed):
            await leaving
        assert now() == begun
        await closing
        assert sent.done(), "a POST under way is answered before the client is closed"
        await staying
    assert account.prompts == ["sent", "staying"]
    # The POST took 2 s, and its slot is free 5 s later.
    assert account.moments[1] - account.moments[0] == pytest.approx(7.0, abs=0.05)


@pytest.mark.fault("L16")
async def test_stop_waiting_empties_the_line() -> None:
    """All who wait get `ClientClosed` at once, later ones too, and nothing is sent any more."""
    account = Account()
    async with clients_of(account, limited(1, 5.0)) as (client,):
        await client.generate("sent")
        waiting = [asyncio.create_task(client.generate(f"prompt {n}")) for n in range(3)]
        assert await until_waiting(client) == [3]
        begun = now()
        client.stop_waiting()
        for each in waiting:
            with pytest.raises(ClientClosed):
                await each
        with pytest.raises(ClientClosed):
            await client.generate("too late")
        assert now() == begun
        await asyncio.sleep(60)
    assert account.prompts == ["sent"]


async def test_a_client_that_is_gone_keeps_nothing_waiting() -> None:
    """What it had sent counts for the next client of the loop; its waiters do not."""
    account = Account()
    async with ScriptedServer(then=account) as server:
        for n in range(3):
            async with MidAPIClient(
                API_KEY, base_url=server.url, rate_limit=RateLimit(1, per=5.0)
            ) as client:
                await client.generate(f"prompt {n}")
                waiting = asyncio.create_task(client.generate("never sent"))
                assert await until_waiting(client) == [1]
            with pytest.raises(ClientClosed):
                await waiting
    assert account.prompts == ["prompt 0", "prompt 1", "prompt 2"]
    gaps = [later - earlier for earlier, later in pairwise(account.moments)]
    assert gaps == pytest.approx([5.0, 5.0], abs=0.05)
