"""Plans: what may be written, and which requests a rule strikes."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from midapi_async.sandbox import (
    GARBAGE,
    VARIANTS,
    Action,
    Call,
    Faults,
    RequestAction,
    Sandbox,
    answer_code,
    answer_status,
    bad_task_id,
    change_urls,
    cut,
    delay,
    drip,
    duplicate,
    early,
    fail_task,
    garbage,
    gone,
    hang,
    huge,
    late,
    lose_answer,
    never_end,
    other_content,
    redirect,
    reset,
    take,
    variant,
)
from tests.sandbox.world import CREDIT, FOX, GENERATE, RECORD_INFO, Api, api_of


async def codes(api: Api, count: int) -> list[int]:
    """Give the codes of so many looks at nobody."""
    return [(await api.get(RECORD_INFO, taskId="nobody"))["code"] for _ in range(count)]


@pytest.mark.parametrize(
    ("rule", "struck"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"nth": 2}, [0, 1, 0, 0, 0]),
        ({"nth": (1, 4)}, [1, 0, 0, 1, 0]),
        ({"nth": range(2, 4)}, [0, 1, 1, 0, 0]),
        ({"nth": range(2, 10**12)}, [0, 1, 1, 1, 1]),
        ({"first": 3}, [1, 1, 1, 0, 0]),
        ({"chance": 0.0}, [0, 0, 0, 0, 0]),
        ({"chance": 1.0, "nth": (2, 3)}, [0, 1, 1, 0, 0]),
        ({"chance": 1}, [1, 1, 1, 1, 1]),
        ({"task": "somebody"}, [0, 0, 0, 0, 0]),
        ({"task": "nobody", "nth": 5}, [0, 0, 0, 0, 1]),
        ({"when": lambda call: call.task_id == "x"}, [0, 0, 0, 0, 0]),
        ({"when": lambda call: call.path.endswith("record-info")}, [1, 1, 1, 1, 1]),
    ],
)
async def test_which_requests_a_rule_strikes(rule: dict[str, Any], struck: list[int]) -> None:
    """The nth, a set, a range, the first few, by chance, by task, by a predicate."""
    faults = Faults().on("look", do=answer_code(505), **rule)
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        assert [505 if s else 422 for s in struck] == await codes(api, 5)


async def test_per_task_counts_for_each_task() -> None:
    """Each task is not found for its first two looks, whatever the order."""
    faults = Faults().on("look", first=2, per="task", do=answer_code(422))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        one, two = await api.submit(), await api.submit()
        seen = [
            (await api.get(RECORD_INFO, taskId=i))["code"] for i in (one, one, two, one, two, two)
        ]
    assert seen == [422, 422, 422, 200, 422, 200]


async def test_chance_follows_the_seed() -> None:
    """Equal seeds strike alike, others differently; the share is about what was asked."""
    seen = []
    for seed in (1, 1, 2):
        faults = Faults().on("look", chance=0.5, do=answer_code(505))
        async with Sandbox(faults=faults, seed=seed) as sandbox, api_of(sandbox) as api:
            seen.append(await codes(api, 60))
    assert seen[0] == seen[1] != seen[2]
    assert 15 < seen[0].count(505) < 45


async def test_the_first_rule_that_fits_strikes_and_all_count() -> None:
    """The third is the third, though an earlier rule took the first."""
    faults = (
        Faults().on("look", nth=1, do=answer_code(505)).on("look", first=3, do=answer_code(455))
    )
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        assert await codes(api, 4) == [505, 455, 455, 422]


async def test_rules_may_come_and_go(sandbox: Sandbox, api: Api) -> None:
    """A rule added later counts from then on; clear takes all back."""
    assert await codes(api, 1) == [422]
    sandbox.faults.on("look", nth=1, do=answer_code(505))
    assert await codes(api, 2) == [505, 422]
    sandbox.faults.on("look", do=answer_code(505))
    sandbox.faults.clear()
    assert sandbox.faults.rules == ()
    assert await codes(api, 1) == [422]


async def test_two_sandboxes_count_for_themselves() -> None:
    """One plan may serve several."""
    faults = Faults().on("look", nth=1, do=answer_code(505))
    for _ in range(2):
        async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
            assert await codes(api, 2) == [505, 422]


async def test_a_predicate_sees_the_body_of_a_submit() -> None:
    """Also of the task and the callback that come of it; a body that is none is empty."""
    seen: list[Call] = []

    def remember(call: Call) -> bool:
        seen.append(call)
        return call.body.get("prompt") == "two"

    faults = Faults().on("submit", when=remember, do=answer_code(433))
    faults.on("task", when=remember, do=never_end()).on("callback", when=remember, do=early())
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        await api.submit(prompt="one", callBackUrl="http://127.0.0.1:9/")
        assert (await api.post(GENERATE, {**FOX, "prompt": "two"}))["code"] == 433
        async with api.session.post(GENERATE, data=b"{") as response:
            assert (await response.json())["code"] == 400
        assert [c.operation for c in seen] == ["submit", "task", "callback", "submit", "submit"]
        assert [c.body.get("prompt") for c in seen] == ["one", "one", "one", "two", None]
        assert [c.task_id and True for c in seen] == [None, True, True, None, None]
        assert len(sandbox.ledger.accepted) == 1


@pytest.mark.parametrize(
    "operation", ["submit", "look", "credit", "download_url", "upload", "file"]
)
async def test_every_operation_can_be_struck(operation: str) -> None:
    """Each word of the plan means its requests and no other."""
    requests = {
        "submit": ("POST", GENERATE),
        "look": ("GET", RECORD_INFO),
        "credit": ("GET", CREDIT),
        "download_url": ("POST", "/api/v1/common/download-url"),
        "upload": ("POST", "/api/file-url-upload"),
        "file": ("GET", "/m/x_0_0.jpeg"),
    }
    faults = Faults().on(operation, do=answer_code(455))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        for word, (method, path) in requests.items():
            async with api.session.request(method, path) as response:
                code = (await response.json())["code"]
            assert (word == operation) is (code == 455), word
        assert [sandbox.ledger.count(word) for word in requests] == [1] * 6


async def test_several_changes_of_one_task_add_up() -> None:
    """Every rule on a task changes the outcome further."""
    faults = Faults().on("task", do=[take(5), fail_task("x")]).on("task", nth=2, do=take(0))
    async with Sandbox(faults=faults) as sandbox, api_of(sandbox) as api:
        one, two = await api.submit(), await api.submit()
        await api.look(two)
        assert (
            (await api.look(one))["successFlag"],
            (await api.look(two))["successFlag"],
        ) == (0, 3)


@pytest.mark.parametrize(
    ("operation", "rule", "text"),
    [
        ("poll", {"do": hang()}, "unknown operation 'poll'; choose from submit, look, credit"),
        ("submit", {"do": []}, "needs something to do"),
        ("submit", {"do": early()}, "early.* makes no sense for submit; only for callback"),
        ("callback", {"do": lose_answer()}, "makes no sense for callback; only for submit, look"),
        ("task", {"do": duplicate()}, "only for callback"),
        ("look", {"do": huge()}, "only for file"),
        ("file", {"do": variant("data_null")}, "only for submit, look"),
        ("submit", {"do": [hang(), hang()]}, "a request gets one action"),
        ("look", {"do": hang(), "nth": 0}, "count from 1"),
        ("look", {"do": hang(), "nth": ()}, "count from 1"),
        ("look", {"do": hang(), "first": 0}, "count from 1"),
        ("look", {"do": hang(), "nth": 1, "first": 1}, "either nth or first"),
        ("look", {"do": hang(), "chance": 1.1}, "chance"),
        ("look", {"do": hang(), "chance": float("nan")}, "chance"),
        ("look", {"do": hang(), "per": "request"}, "per"),
    ],
)
def test_a_plan_is_checked_when_it_is_made(operation: str, rule: dict[str, Any], text: str) -> None:
    """What would never strike is a ValueError that says what there is."""
    with pytest.raises(ValueError) as caught:
        Faults().on(operation, **rule)
    assert re.search(text, str(caught.value))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: garbage("xml"), "unknown garbage 'xml'; choose from html, empty"),
        (lambda: variant("x"), "unknown variant 'x'; choose from codes_as_strings"),
        (lambda: bad_task_id("x"), "unknown task id 'x'; choose from missing"),
        (lambda: answer_status(99), "status"),
        (lambda: answer_status(600), "status"),
        (lambda: gone(1), "status"),
        (lambda: redirect(200), "status"),
        (lambda: fail_task(flag=1), "flag"),
        (lambda: delay(-1), "seconds"),
        (lambda: delay(float("nan")), "seconds"),
        (lambda: late(-1), "seconds"),
        (lambda: take(-1), "seconds"),
        (lambda: cut(-1), "after"),
        (lambda: drip(piece=0), "piece"),
        (lambda: drip(seconds=-1), "seconds"),
        (lambda: duplicate(0), "times"),
        (lambda: huge(0), "size"),
    ],
)
def test_an_action_is_checked_when_it_is_made(make: Callable[[], Action], text: str) -> None:
    """A number or a name that cannot be meant is a ValueError that names it."""
    with pytest.raises(ValueError, match=re.escape(text)):
        make()


def test_the_names_are_what_the_documentation_says() -> None:
    """The tables that parametrize other people's tests are not empty."""
    assert {"html", "empty", "truncated", "deep", "duplicate_keys", "nan", "utf16"} <= set(GARBAGE)
    assert {"flag_missing", "another_task", "urls_under_data"} <= set(VARIANTS)
    assert isinstance(other_content("text/html", b"x"), RequestAction)
    assert "change_urls" in repr(change_urls("a"))
    assert reset() == reset(accepted=True)


async def test_an_outage() -> None:
    """It begins with the first accepted submit, meets looks and further submits, and is over."""
    async with Sandbox(faults=Faults().outage(30)) as sandbox, api_of(sandbox) as api:

        async def statuses() -> list[int]:
            """Give the statuses of a look, a submit, and a file."""
            look = api.session.get(RECORD_INFO, params={"taskId": "x"})
            submit = api.session.post(GENERATE, json=FOX)
            file = api.session.get("/m/x")
            async with look as looked, submit as submitted, file as got:
                return [looked.status, submitted.status, got.status]

        await asyncio.sleep(100)
        assert (await api.get(CREDIT))["code"] == 200
        await api.submit()
        async with api.session.get(CREDIT) as answer:
            assert (answer.status, answer.content_type) == (503, "text/html")
        assert await statuses() == [503, 503, 404]
        await asyncio.sleep(29)
        assert await statuses() == [503, 503, 404]
        assert len(sandbox.ledger.accepted) == 1
        await asyncio.sleep(2)
        assert await statuses() == [200, 200, 404]


async def test_an_outage_that_comes_later() -> None:
    """Some seconds after the first submit; the time scale divides them."""
    async with Sandbox(faults=Faults().outage(10, after=50), time_scale=10) as sandbox:
        async with api_of(sandbox) as api:
            await api.submit()
            seen = []
            for _ in range(7):
                async with api.session.get(CREDIT) as answer:
                    seen.append(answer.status)
                await asyncio.sleep(1)
    assert seen == [200, 200, 200, 200, 200, 503, 200]


@pytest.mark.parametrize("during", [(1, 1), (2, 1), (-1, 5)])
def test_times_that_cannot_be(during: tuple[float, float]) -> None:
    """The second must be the later one, and none before the first submit."""
    with pytest.raises(ValueError, match="during must be two times"):
        Faults().on("look", during=during, do=hang())
    with pytest.raises(ValueError, match="seconds must be at least"):
        Faults().outage(0)
