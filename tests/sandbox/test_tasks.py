import asyncio
import statistics

import pytest

from midapi_async.sandbox import Sandbox
from tests.sandbox.world import FOX, GENERATE, VIDEO, Api, api_of


async def duration(sandbox: Sandbox, fields: dict[str, object]) -> float:
    """Give the seconds that a task takes by its stamps; the window is waited for."""
    async with api_of(sandbox) as api:
        task_id = await api.submit(**fields)
        await asyncio.sleep(2000)
        record = await api.look(task_id)
        return float(record["completeTime"] - record["createTime"]) / 1000


@pytest.mark.parametrize(
    ("fields", "middle"),
    [
        ({"speed": "turbo"}, 30),
        ({"speed": "fast"}, 60),
        ({"speed": "relaxed"}, 250),
        ({"taskType": "mj_omni_reference", "fileUrl": "https://e.org/a.png"}, 250),
        (VIDEO, 180),
    ],
)
async def test_durations_scatter_around_what_was_measured(
    sandbox: Sandbox, fields: dict[str, object], middle: float
) -> None:
    """Each kind of task takes about as long as it does in life, not always the same."""
    seen = [await duration(sandbox, fields) for _ in range(15)]
    assert middle == pytest.approx(statistics.median(seen), rel=0.2)
    assert len(set(seen)) > 8


async def test_equal_seeds_give_equal_durations() -> None:
    """The jitter follows the seed; the task ids are never the same."""
    seen = []
    for seed in (1, 1, 2):
        async with Sandbox(seed=seed) as sandbox:
            seconds = [await duration(sandbox, {}) for _ in range(3)]
            seen.append((seconds, sandbox.ledger.accepted[0].task_id))
    assert seen[0][0] == seen[1][0] != seen[2][0]
    assert seen[0][1] != seen[1][1]


@pytest.mark.parametrize(
    ("table", "seconds"),
    [
        ({("mj_txt2img", "fast"): 1, ("mj_txt2img", "*"): 2, ("*", "fast"): 3}, 1),
        ({("mj_txt2img", "*"): 2, ("*", "fast"): 3, ("*", "*"): 4}, 2),
        ({("*", "fast"): 3, ("*", "*"): 4}, 3),
        ({("*", "*"): 4}, 4),
        ({("mj_txt2img", "fast"): 0}, 0),
    ],
)
async def test_durations_may_be_said(table: dict[tuple[str, str], float], seconds: float) -> None:
    """The closest entry wins, and is kept to exactly."""
    async with Sandbox(durations=table) as sandbox:
        assert seconds == await duration(sandbox, {})


async def test_prices_may_be_said() -> None:
    """The closest entry wins; what is not said costs as usual."""
    prices = {("mj_txt2img", "fast"): 0.5}
    async with Sandbox(prices=prices) as sandbox, api_of(sandbox) as api:
        await api.submit()
        await api.submit(speed="turbo")
    assert [entry.price for entry in sandbox.ledger.accepted] == [0.5, 16]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({("mj_txt2image", "fast"): 1.0}, "mj_txt2image"),
        ({("mj_txt2img", "Fast"): 1.0}, "Fast"),
        ({("*", "*"): -1.0}, "-1.0"),
        ({("*", "*"): float("nan")}, "nan"),
    ],
)
@pytest.mark.parametrize("name", ["durations", "prices"])
async def test_tables_are_checked(
    name: str, table: dict[tuple[str, str], float], text: str
) -> None:
    """A table that would never match says so at once."""
    with pytest.raises(ValueError, match=text) as caught:
        Sandbox(**{name: table})  # type: ignore[arg-type]  # one of two names
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("hint", "flag", "code", "message"),
    [
        ("[[sandbox: fail]]", 3, 500, "No response from MidJourney Official Website"),
        ("[[sandbox:fail=banned word; flag=2; code=501]]", 2, 501, "banned word"),
        ("[[sandbox: fail=one]] and [[sandbox: flag=2]]", 2, 500, "one"),
        ("[[sandbox: flag=2]]", 2, 500, "No response"),
        ("[[sandbox: seconds=5]]", 1, None, None),
        ("[[sandbox: seconds=0.5; seconds=5]]", 1, None, None),
    ],
)
async def test_a_prompt_may_say_what_becomes_of_it(
    api: Api, hint: str, flag: int, code: object, message: str | None
) -> None:
    """Hints change outcome and duration, in the seconds of the sandbox."""
    task_id = await api.submit(prompt=f"a fox {hint}")
    await asyncio.sleep(4.9 if "5" in hint.partition("sec")[2] else 1000)
    if "seconds" in hint:
        assert (await api.look(task_id))["successFlag"] == 0
        await asyncio.sleep(0.2)
    record = await api.look(task_id)
    assert (flag, code) == (record["successFlag"], record["errorCode"])
    assert (message or "") in (record["errorMessage"] or "")


async def test_a_prompt_may_ask_never_to_end(api: Api) -> None:
    """A task that never ends is still generating after a month."""
    task_id = await api.submit(prompt="a fox [[sandbox: never]]")
    await asyncio.sleep(30 * 86_400)
    assert (await api.look(task_id))["successFlag"] == 0


@pytest.mark.parametrize("word", ["fial", "flag=1", "flag", "code=x", "seconds=-1", "never=1", ""])
async def test_a_typo_in_a_hint_is_refused(sandbox: Sandbox, api: Api, word: str) -> None:
    """A hint that would do nothing is code 422, with what there is."""
    envelope = await api.post(GENERATE, {**FOX, "prompt": f"[[sandbox: {word}]]"})
    assert envelope["code"] == 422
    assert "seconds=N" in envelope["msg"]
    assert sandbox.ledger.accepted == ()


@pytest.mark.parametrize(
    "prompt",
    ["[[fail]]", "[[seconds=3]]", "sandbox: fail]]", "[sandbox: fail]]", "[[sandbox: fail]"],
)
async def test_no_hint_by_accident(api: Api, prompt: str) -> None:
    """Brackets alone mean nothing."""
    task_id = await api.submit(prompt=prompt)
    await asyncio.sleep(1000)
    assert (await api.look(task_id))["successFlag"] == 1


async def test_without_auto_only_a_word_ends_a_task() -> None:
    """auto=False waits for finish and fail, whatever the prompt says."""
    async with Sandbox(auto=False) as sandbox, api_of(sandbox) as api:
        first, second = await api.submit(), await api.submit(prompt="x [[sandbox: seconds=1]]")
        await asyncio.sleep(100_000)
        assert (await api.look(first))["successFlag"] == 0
        assert (await api.look(second))["successFlag"] == 0
        sandbox.finish(first)
        sandbox.fail(second)
        assert (await api.look(first))["successFlag"] == 1
        assert (await api.look(second))["successFlag"] == 3


async def test_a_task_ends_once(sandbox: Sandbox, api: Api) -> None:
    """The same end again does nothing, the other one is an error, the timer comes too late."""
    good, bad = await api.submit(), await api.submit()
    sandbox.finish(good)
    sandbox.fail(bad, message="first")
    record = await api.look(good)
    await asyncio.sleep(1000)
    sandbox.finish(good)
    sandbox.fail(bad, message="second")
    assert record == await api.look(good)
    assert (await api.look(bad))["errorMessage"] == "first"
    with pytest.raises(ValueError, match=good):
        sandbox.fail(good)
    with pytest.raises(ValueError, match=bad):
        sandbox.finish(bad)


async def test_ending_what_is_not_there(sandbox: Sandbox) -> None:
    """An unknown id is a KeyError that names it; a flag that is no failure a ValueError."""
    with pytest.raises(KeyError, match="nobody"):
        sandbox.finish("nobody")
    with pytest.raises(ValueError, match="flag must be 2 or 3"):
        sandbox.fail("nobody", flag=1)
