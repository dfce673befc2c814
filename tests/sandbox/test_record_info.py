import asyncio
import re
import time
from email.utils import parsedate_to_datetime

import pytest

from midapi_async.sandbox import Sandbox
from tests.sandbox.world import RECORD_INFO, VIDEO, Api, api_of


async def test_the_recorded_shape(sandbox: Sandbox, api: Api) -> None:
    """A finished task has exactly the keys that were recorded, in their order."""
    before = int(time.time() * 1000)
    task_id = await api.submit()
    sandbox.finish(task_id)
    record = await api.look(task_id)
    keys = "taskId taskType paramJson completeTime resultInfoJson successFlag createTime"
    assert list(record) == [*keys.split(), "errorCode", "errorMessage"]
    assert task_id == record["taskId"]
    assert record["successFlag"] == 1
    assert record["errorCode"] is record["errorMessage"] is None
    assert isinstance(record["createTime"], int)
    assert before - 60_000 <= record["createTime"] <= before + 60_000
    urls = [f"{sandbox.url}/m/{task_id}_0_{n}.jpeg" for n in range(4)]
    assert record["resultInfoJson"] == {"resultUrls": [{"resultUrl": url} for url in urls]}


async def test_a_running_task(api: Api) -> None:
    """While it generates, flag 0 and nothing that belongs to an end."""
    record = await api.look(await api.submit())
    assert record["successFlag"] == 0
    assert record["completeTime"] is record["resultInfoJson"] is record["errorMessage"] is None


async def test_a_failed_task(sandbox: Sandbox, api: Api) -> None:
    """A failure shows flag, code and text, and no files."""
    task_id = await api.submit()
    sandbox.fail(task_id, message="nsfw content", code="451", flag=2)
    record = await api.look(task_id)
    assert (
        record["successFlag"],
        record["errorCode"],
        record["errorMessage"],
    ) == (2, "451", "nsfw content")
    assert record["resultInfoJson"] is None
    assert record["completeTime"] is not None


async def test_an_unknown_task(api: Api) -> None:
    """Unknown ids are code 422 with the text that was seen; no id at all is 400."""
    unknown = await api.get(RECORD_INFO, taskId="nobody")
    assert unknown == {"code": 422, "msg": "recordInfo is null", "data": None}
    missing = await api.get(RECORD_INFO)
    assert (missing["code"], missing["msg"]) == (400, "taskId parameter is required")


@pytest.mark.parametrize("scale", [1.0, 60.0])
async def test_stamps_show_the_duration_that_is_played(scale: float) -> None:
    """completeTime − createTime is the duration of the sandbox, whatever the scale."""
    durations = {("mj_txt2img", "fast"): 65.0}
    async with Sandbox(time_scale=scale, durations=durations) as sandbox, api_of(sandbox) as api:
        task_id = await api.submit()
        await asyncio.sleep(64.9 / scale)
        assert (await api.look(task_id))["successFlag"] == 0
        await asyncio.sleep(0.2 / scale)
        record = await api.look(task_id)
    assert record["successFlag"] == 1
    assert record["completeTime"] - record["createTime"] == 65_000


async def test_stamps_are_whole_seconds(sandbox: Sandbox, api: Api) -> None:
    """As the recorded ones are, also where a task takes none; and none is in the future."""
    for pause in (0.0, 0.4, 0.7, 1.3):
        await asyncio.sleep(pause)
        task_id = await api.submit()
        await asyncio.sleep(pause)
        sandbox.finish(task_id)
        async with api.session.get(RECORD_INFO, params={"taskId": task_id}) as response:
            now = parsedate_to_datetime(response.headers["Date"]).timestamp()
            record = (await response.json())["data"]
        stamps = record["createTime"], record["completeTime"]
        assert [stamp % 1000 for stamp in stamps] == [0, 0]
        assert stamps[1] - stamps[0] == 1000 * int(pause)
        assert now - 2 * pause - 1 <= stamps[0] / 1000 <= stamps[1] / 1000 <= now


async def test_the_documented_shape() -> None:
    """Switched, the answer is as the vendor's pages show it."""
    async with Sandbox(shape="documented") as sandbox, api_of(sandbox) as api:
        task_id = await api.submit(speed="relaxed")
        sandbox.finish(task_id)
        record = await api.look(task_id)
        silent = await api.look(await api.submit(**VIDEO, speed=None))
    assert re.fullmatch(r"mj_task_[0-9a-f]{12}", task_id)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["createTime"])
    assert record["createTime"] == record["completeTime"]
    assert '"speed":"Relax"' in record["paramJson"]
    assert "speed" not in silent["paramJson"]
