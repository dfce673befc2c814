"""During an outage few submissions are tried, so that few of them end unknown."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from midapi_async import (
    ClientClosed,
    MemoryJournal,
    MidAPIClient,
    RateLimit,
    RetryPolicy,
    SubmissionUnknown,
    TransportError,
)
from midapi_async.journal import Claim
from tests.support.scripted import Received, ScriptedServer, Step, hang, reply
from tests.world import accepted, client_of, ok, refused, submits

pytestmark = pytest.mark.fault("S24")
PAGE = reply(403, body="<html>blocked</html>", accepted=True)
DOWN = reply(503, body="<html>bad gateway</html>")


def now() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()


class Service:
    """MidAPI behind a proxy: what it answers to POSTs and to the free request, and when each came.

    Args:
        post: the answer to a POST at a second since the beginning; None accepts it.
        free: the answer to the free request; None answers it.
    """

    def __init__(
        self, post: Callable[[float], Step | None], free: Callable[[float], Step | None]
    ) -> None:
        self.begun = now()
        self.post, self.free = post, free
        self.posts: list[float] = []
        self.asked: list[float] = []
        self.tasks = itertools.count()

    def __call__(self, request: Received) -> Step:
        second = now() - self.begun
        if request.method == "POST":
            self.posts.append(round(second))
            return self.post(second) or accepted(f"{next(self.tasks):032x}")
        self.asked.append(round(second))
        return self.free(second) or ok(100)


PATIENT = RetryPolicy(give_up_after=3600)


async def buy(client: MidAPIClient, prompt: str) -> str:
    """How a submission ends."""
    try:
        await client.generate(prompt)
    except Exception as error:  # noqa: BLE001 - the test compares it
        return type(error).__name__
    return "accepted"


async def test_after_three_unknown_submissions_the_others_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pauses of 10, 20, 40 s; the free request is answered after 50 s; then all go on."""
    caplog.set_level(logging.INFO, "midapi_async.gate")
    service = Service(
        lambda second: DOWN if second < 5 else None,
        lambda second: DOWN if second < 50 else None,
    )
    async with ScriptedServer(then=service) as server, client_of(server, retry=PATIENT) as client:
        for _ in range(3):
            assert await buy(client, "unlucky") == "SubmissionUnknown"
        ends = await asyncio.gather(*(buy(client, "waits") for _ in range(10)))
        assert ends == ["accepted"] * 10
        assert service.asked == [10, 30, 70]
        assert service.posts == [0] * 3 + [70] * 10
        begins, goes_on = [each for each in caplog.messages if each.startswith("Submissions")]
        assert begins == (
            "Submissions pause, since MidAPI does not answer them (a page that is not MidAPI's "
            "came (HTTP 503)). Free requests find out when it does; nothing is sent again by "
            "itself."
        )
        assert goes_on == "Submissions go on: MidAPI has accepted one"


@pytest.mark.parametrize("answer", [PAGE, reply(401, body="log in"), reply(429, body="slow")])
async def test_one_foreign_4xx_page_is_enough(answer: Step) -> None:
    """A firewall or portal that answers once will answer the next one, too."""
    service = Service(lambda second: answer if second < 5 else None, lambda _: None)
    async with ScriptedServer(then=service) as server, client_of(server, retry=PATIENT) as client:
        first = await buy(client, "first")
        assert first in {"SubmissionUnknown", "AuthenticationError", "RateLimitError"}
        assert await buy(client, "second") == "accepted"
        assert (service.posts, service.asked) == ([0, 10], [10])


async def test_one_submission_at_a_time_is_let_through() -> None:
    """The free request is answered although POSTs are not: each try doubles the pause."""
    service = Service(lambda second: DOWN if second < 100 else None, lambda _: None)
    async with ScriptedServer(then=service) as server, client_of(server, retry=PATIENT) as client:
        for _ in range(3):
            await buy(client, "unlucky")
        ends = await asyncio.gather(*(buy(client, "waits") for _ in range(6)))
        # 10 s after the third, then 20, 40, 80 s after each try.
        assert sorted(service.posts) == [0] * 3 + [10, 30, 70] + [150] * 3
        assert sorted(ends) == ["SubmissionUnknown"] * 3 + ["accepted"] * 3


async def test_a_refusal_of_midapi_lets_the_next_one_through_at_once() -> None:
    """It shows that MidAPI answers, but not yet that it accepts."""
    answers = iter([DOWN, DOWN, DOWN, refused(402), refused(402), None, None])
    service = Service(lambda _: next(answers), lambda _: None)
    async with ScriptedServer(then=service) as server, client_of(server, retry=PATIENT) as client:
        for _ in range(3):
            await buy(client, "unlucky")
        ends = await asyncio.gather(*(buy(client, "waits") for _ in range(4)))
        assert sorted(ends) == ["InsufficientCreditsError"] * 2 + ["accepted"] * 2
        assert (service.posts, service.asked) == ([0] * 3 + [10] * 4, [10])


@pytest.mark.parametrize("outcome", ["accepted", "refused"])
async def test_only_unknown_ones_in_a_row_count(outcome: str) -> None:
    """Two, then an answer of MidAPI, then two more: no pause."""
    between = None if outcome == "accepted" else refused(402)
    answers = iter([DOWN, DOWN, between, DOWN, DOWN, None])
    service = Service(lambda _: next(answers), lambda _: None)
    async with ScriptedServer(then=service) as server, client_of(server, retry=PATIENT) as client:
        for _ in range(6):
            await buy(client, "a red fox")
        assert service.posts == [0] * 6


@pytest.mark.fault("L16")
@pytest.mark.parametrize("moment", [5, 11], ids=["pause", "free request"])
async def test_stop_waiting_ends_the_wait(moment: float) -> None:
    """At once, and nothing is sent."""
    service = Service(lambda _: DOWN, lambda _: hang())
    async with ScriptedServer(then=service) as server, client_of(server, retry=PATIENT) as client:
        for _ in range(3):
            await buy(client, "unlucky")
        waiting = [asyncio.create_task(client.generate("waits")) for _ in range(3)]
        await asyncio.sleep(moment)
        client.stop_waiting()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [ClientClosed] * 3
        assert now() - service.begun == pytest.approx(moment, abs=0.5)
        assert len(submits(server)) == 3


async def test_a_caller_that_gives_up_hands_its_turn_on() -> None:
    """The head of the line times out during the pause; the next one goes."""
    service = Service(lambda second: DOWN if second < 5 else None, lambda _: None)
    async with ScriptedServer(then=service) as server, client_of(server, retry=PATIENT) as client:
        for _ in range(3):
            await buy(client, "unlucky")
        head = asyncio.create_task(client.generate("head", timeout=5))
        await asyncio.sleep(1)
        assert await buy(client, "next") == "accepted"
        assert service.posts == [0] * 3 + [10]
        with pytest.raises(TimeoutError):
            await head


async def test_the_one_that_is_let_through_may_leave_during_its_claim() -> None:
    """Nothing is sent for it, and the next one is let through."""

    class Slow(MemoryJournal):
        seconds = 0.0

        async def claim(self, *args: Any, **options: Any) -> Claim:
            claim = await super().claim(*args, **options)
            await asyncio.sleep(self.seconds)
            return claim

    journal = Slow()
    service = Service(lambda second: DOWN if second < 5 else None, lambda _: None)
    async with (
        ScriptedServer(then=service) as server,
        client_of(server, retry=PATIENT, journal=journal) as client,
    ):
        for _ in range(3):
            await buy(client, "unlucky")
        journal.seconds = 0.9
        first = asyncio.create_task(client.generate("leaves"))
        second = asyncio.create_task(client.generate("stays"))
        await asyncio.sleep(10.5)
        first.cancel()
        await second
        assert service.posts == [0, 0, 0, 12]


@pytest.mark.parametrize(
    ("free", "ends"),
    [
        (refused(401, status=401), True),
        (refused(455), True),
        (refused(500), False),
        (reply(401, body="log in"), False),
        (reply(200, body="<html>"), False),
        (reply(502), False),
    ],
)
async def test_what_counts_as_an_answer_to_the_free_request(free: Step, *, ends: bool) -> None:
    """Whatever MidAPI wrote itself, but for an error of its server."""
    service = Service(lambda second: DOWN if second < 5 else None, lambda second: free)
    async with ScriptedServer(then=service) as server, client_of(server, retry=PATIENT) as client:
        for _ in range(3):
            await buy(client, "unlucky")
        if ends:
            assert await buy(client, "next") == "accepted"
        else:
            with pytest.raises(TimeoutError):
                await client.generate("next", timeout=100)
        assert service.asked == ([10] if ends else [10, 30, 70])


async def test_the_key_of_a_known_task_need_not_wait() -> None:
    """What is in the journal is returned during an outage, too."""
    answers = iter([None, DOWN, DOWN, DOWN])
    service = Service(lambda _: next(answers), lambda _: DOWN)
    async with ScriptedServer(then=service) as server, client_of(server, retry=PATIENT) as client:
        bought = await client.generate("a red fox", key="k")
        for _ in range(3):
            await buy(client, "unlucky")
        assert (await client.generate("a red fox", key="k")).task_id == bought.task_id
        assert now() - service.begun < 1


async def test_after_a_minute_the_caller_is_told() -> None:
    """Nothing was sent; each caller waits no longer than for any other retry."""
    service = Service(lambda _: DOWN, lambda _: DOWN)
    async with ScriptedServer(then=service) as server, client_of(server) as client:
        for _ in range(3):
            await buy(client, "unlucky")
        begun = now()

        async def later(seconds: float) -> tuple[str, float]:
            await asyncio.sleep(seconds)
            with pytest.raises(TransportError) as caught:
                await client.generate("waits")
            assert not caught.value.sent
            return str(caught.value), round(now() - begun - seconds)

        told = await asyncio.gather(*(later(seconds) for seconds in (0, 0, 1, 30)))
        assert [seconds for _, seconds in told] == [60] * 4
        assert all("submissions pause" in text and "503" in text for text, _ in told)
        assert len(service.posts) == 3


async def test_200_prompts_in_an_outage_of_ten_minutes() -> None:
    """Few more than were on their way when it began, and all others are bought."""
    service = Service(
        lambda second: DOWN if 60 <= second < 660 else None,
        lambda second: DOWN if 60 <= second < 660 else None,
    )
    async with (
        ScriptedServer(then=service) as server,
        client_of(server, rate_limit=RateLimit(20), retry=PATIENT) as client,
    ):

        async def later(number: int) -> str:
            await asyncio.sleep(number % 100)
            return await buy(client, f"prompt {number}")

        ends = await asyncio.gather(*(later(number) for number in range(200)))
        assert set(ends) == {"accepted", SubmissionUnknown.__name__}
        assert ends.count(SubmissionUnknown.__name__) <= 22
        assert len(service.posts) == 200
