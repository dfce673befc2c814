import json
from typing import Any

import pytest

from midapi_async.sandbox import Sandbox
from tests.sandbox.world import EXTEND, FOX, GENERATE, UPSCALE, VARY, VIDEO, Api

URL = "https://example.org/a.png"
TASKS = (
    {"taskType": "mj_txt2img"},
    {"taskType": "mj_img2img", "fileUrls": ["https://example.org/a.png"]},
    {"taskType": "mj_style_reference", "fileUrls": ["https://e.org/a.png", "https://e.org/b.png"]},
    {"taskType": "mj_omni_reference", "fileUrl": "https://example.org/a.png", "ow": 1000},
    {"taskType": "mj_video", "fileUrls": ["https://example.org/a.png"], "videoBatchSize": 4},
    {"taskType": "mj_video_hd", "fileUrl": "https://example.org/a.png", "motion": "low"},
)


@pytest.mark.parametrize("fields", TASKS, ids=lambda fields: str(fields["taskType"]))
async def test_every_task_type_is_accepted(api: Api, fields: dict[str, Any]) -> None:
    """Each documented task type makes a task of that type."""
    task_id = await api.submit(**fields)
    assert fields["taskType"] == (await api.look(task_id))["taskType"]
    assert len(task_id) == 32
    assert set(task_id) <= set("0123456789abcdef")


REFUSED: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({"taskType": None}, 400, "taskType"),
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": ""}, 400, "prompt"),
    ({"taskType": "mj_imagine"}, 422, "taskType"),
    ({"taskType": "mj_video_extend_auto"}, 422, "taskType"),
    ({"prompt": "x" * 2001}, 422, "prompt"),
    ({"prompt": 5}, 422, "prompt"),
    ({"prompt": " \n"}, 400, "prompt"),
    ({"speed": "Fast"}, 422, "The speed parameter is incorrect."),
    ({"speed": None}, 422, "The speed parameter is incorrect."),
    ({"speed": ""}, 422, "The speed parameter is incorrect."),
    ({"taskType": "mj_img2img", "fileUrl": URL, "speed": None}, 422, "speed"),
    ({"taskType": "mj_style_reference", "fileUrl": URL, "speed": None}, 422, "speed"),
    ({"aspectRatio": "5:4"}, 422, "aspectRatio"),
    ({"version": "v7"}, 422, "version"),
    ({"version": "niji 6"}, 422, "version"),
    ({"version": -7}, 422, "version"),
    ({"version": True}, 422, "version"),
    ({"variety": 101}, 422, "variety"),
    ({"stylization": 1001}, 422, "stylization"),
    ({"stylization": "100"}, 422, "stylization"),
    ({"stylization": True}, 422, "stylization"),
    ({"weirdness": -1}, 422, "weirdness"),
    ({"ow": 0}, 422, "ow"),
    ({"enableTranslation": "false"}, 422, "enableTranslation"),
    ({"videoBatchSize": 3}, 422, "videoBatchSize"),
    ({"videoBatchSize": True}, 422, "videoBatchSize"),
    ({"videoBatchSize": 1.0}, 422, "videoBatchSize"),
    ({"motion": "medium"}, 422, "motion"),
    ({"waterMark": 5}, 422, "waterMark"),
    ({"callBackUrl": "ftp://x/y"}, 422, "callBackUrl"),
    ({"callBackUrl": "http://["}, 422, "callBackUrl"),
    ({"callBackUrl": 7}, 422, "callBackUrl"),
    ({"fileUrls": "https://example.org/a.png"}, 422, "fileUrls"),
    ({"fileUrls": [1]}, 422, "fileUrls"),
    ({"taskType": "mj_img2img"}, 400, "fileUrls"),
    ({"taskType": "mj_style_reference", "fileUrls": []}, 400, "fileUrls"),
    ({"taskType": "mj_omni_reference", "fileUrl": ""}, 400, "fileUrls"),
    (
        {"taskType": "mj_video", "fileUrls": ["https://e.org/a", "https://e.org/b"]},
        422,
        "fileUrls",
    ),
    ({"taskType": "mj_img2img", "fileUrls": [URL, "data:image/png;base64,AA"]}, 422, "fileUrls"),
    ({"taskType": "mj_omni_reference", "fileUrl": " DATA:,x"}, 422, "fileUrls"),
)


async def test_what_the_service_refuses_names_the_field(sandbox: Sandbox, api: Api) -> None:
    """A bad field is answered HTTP 200 with a code and its name, and costs nothing."""
    for fields, code, name in REFUSED:
        async with api.session.post(GENERATE, json={**FOX, **fields}) as response:
            assert response.status == 200
            envelope = await response.json()
        assert code == envelope["code"], fields
        assert name in envelope["msg"]
        assert envelope["data"] is None
    assert sandbox.ledger.accepted == ()
    assert sandbox.credits == 10_000


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x" * 2000},
        {"variety": 0, "stylization": 0, "weirdness": 3000},
        {"variety": 7},
        {"waterMark": "", "fileUrl": "", "fileUrls": [], "callBackUrl": "", "aspectRatio": ""},
        {"fileUrls": "", "version": "", "stylization": "", "motion": "", "ow": ""},
        {"version": None, "ow": None},
        {"fileUrl": "https://example.org/unused.png"},
        {"fileUrls": ["data:image/png;base64,AA"]},
        {"version": "niji7"},
        {"version": "8.1"},
        {**VIDEO, "speed": None},
        {**VIDEO, "speed": "fast"},
        {**VIDEO, "fileUrl": URL, "fileUrls": ""},
    ],
)
async def test_what_the_service_accepts(api: Api, fields: dict[str, Any]) -> None:
    """Values at the edges, and fields that were not set: absent, null, empty."""
    await api.submit(**fields)


async def test_a_misspelt_field_is_ignored_in_silence(sandbox: Sandbox, api: Api) -> None:
    """Code 200, and neither the record nor a callback knows of it; the ledger shows it."""
    task_id = await api.submit(callbackUrl="https://example.org/x", watermark="me")
    assert "example.org" not in (await api.look(task_id))["paramJson"]
    (entry,) = sandbox.ledger.accepted
    assert entry.body["watermark"] == "me"
    assert entry.callback_url is None


@pytest.mark.parametrize(
    ("sent", "stored"), [(7, "7"), (6.1, "6.1"), (6.0, "6"), ("7", "7"), (8, "8")]
)
async def test_a_version_may_be_a_number(api: Api, sent: object, stored: str) -> None:
    """A JSON number is stored as text."""
    task_id = await api.submit(version=sent)
    assert stored == json.loads((await api.look(task_id))["paramJson"])["version"]


async def test_param_json_is_what_was_recorded(api: Api) -> None:
    """Compact, keys sorted, unset fields left out, three filled in, the callback URL inside."""
    task_id = await api.submit(
        version="7", weirdness=150, callBackUrl="http://127.0.0.1:9/t", stylization=300, ow=None
    )
    assert (await api.look(task_id))["paramJson"] == (
        '{"callBackUrl":"http://127.0.0.1:9/t","enableTranslation":true,"motion":"high",'
        '"prompt":"a red fox","speed":"fast","stylization":300,"taskType":"mj_txt2img",'
        '"version":"7","videoBatchSize":1,"weirdness":150}'
    )


async def test_an_omni_reference_without_a_speed_is_stored_as_fast(
    sandbox: Sandbox, api: Api
) -> None:
    """And costs as much; one with a speed keeps it."""
    body = {"taskType": "mj_omni_reference", "fileUrl": URL}
    task_ids = [await api.submit(**body, speed=speed) for speed in (None, "", "relaxed")]
    params = [json.loads((await api.look(task_id))["paramJson"]) for task_id in task_ids]
    assert [each["speed"] for each in params] == ["fast", "fast", "relaxed"]
    assert [entry.price for entry in sandbox.ledger.accepted] == [8, 8, 3]


async def test_what_was_not_set_is_not_stored(api: Api) -> None:
    """Fields that are empty are left out, like those that are not there."""
    empty = dict.fromkeys(["waterMark", "fileUrls", "fileUrl", "aspectRatio", "callBackUrl"], "")
    first, second = await api.submit(), await api.submit(**empty, ow=None)
    assert (await api.look(first))["paramJson"] == (await api.look(second))["paramJson"]


async def test_a_text_to_image_has_no_references(sandbox: Sandbox, api: Api) -> None:
    """What cannot be fetched does not fail a task that would not fetch it."""
    task_id = await api.submit(fileUrls=["", "data:,x"], prompt="x [[sandbox: seconds=0]]")
    assert (await api.look(task_id))["successFlag"] == 1


async def test_param_json_keeps_what_was_said(api: Api) -> None:
    """What the server would fill in is not changed when it was sent."""
    task_id = await api.submit(**{**VIDEO, "enableTranslation": False, "motion": "low"})
    params = json.loads((await api.look(task_id))["paramJson"])
    assert params["enableTranslation"] is False
    assert params["motion"] == "low"


async def finished(sandbox: Sandbox, api: Api, **fields: object) -> str:
    """Give a task that has succeeded."""
    task_id = await api.submit(**fields)
    sandbox.finish(task_id)
    return task_id


async def test_upscale_makes_one_picture_of_one(sandbox: Sandbox, api: Api) -> None:
    """An upscale is a task of its own, with one file of the same aspect ratio."""
    parent = await finished(sandbox, api, aspectRatio="16:9")
    child = await api.submit(UPSCALE, taskId=parent, imageIndex=3, waterMark="w")
    sandbox.finish(child)
    assert parent != child
    record = await api.look(child)
    assert json.loads(record["paramJson"]) == {"taskId": parent, "imageIndex": 3, "waterMark": "w"}
    (url,) = await api.urls(child)
    assert url.endswith(f"/m/{child}_0_0.jpeg")


@pytest.mark.parametrize("place", [0, 4])
async def test_vary_makes_four_and_counts_from_either_end(
    sandbox: Sandbox, api: Api, place: int
) -> None:
    """Its imageIndex is documented as 0-3 and as 1-4: both pass."""
    child = await api.submit(VARY, taskId=await finished(sandbox, api), imageIndex=place)
    sandbox.finish(child)
    assert len(await api.urls(child)) == 4


@pytest.mark.parametrize("prompt", [{}, {"prompt": "and it runs"}])
async def test_extend_makes_one_video(sandbox: Sandbox, api: Api, prompt: dict[str, str]) -> None:
    """An extension is a task whose type is the one that was asked for."""
    parent = await finished(sandbox, api, **VIDEO, videoBatchSize=2)
    child = await api.submit(
        EXTEND, taskId=parent, taskType="mj_video_extend_auto", index=1, **prompt
    )
    sandbox.finish(child)
    assert (await api.look(child))["taskType"] == "mj_video_extend_auto"
    (url,) = await api.urls(child)
    assert url.endswith(".mp4")


@pytest.mark.parametrize(
    ("path", "fields", "code", "name"),
    [
        (UPSCALE, {"taskId": "IMAGE"}, 400, "imageIndex"),
        (UPSCALE, {"imageIndex": 0}, 400, "taskId"),
        (UPSCALE, {"taskId": "IMAGE", "imageIndex": 4}, 422, "imageIndex"),
        (UPSCALE, {"taskId": "IMAGE", "imageIndex": -1}, 422, "imageIndex"),
        (UPSCALE, {"taskId": "IMAGE", "imageIndex": "0"}, 422, "imageIndex"),
        (UPSCALE, {"taskId": "UPSCALED", "imageIndex": 1}, 422, "imageIndex"),
        (UPSCALE, {"taskId": "nobody", "imageIndex": 0}, 422, "taskId: recordInfo is null"),
        (UPSCALE, {"taskId": "RUNNING", "imageIndex": 0}, 422, "taskId"),
        (UPSCALE, {"taskId": "FAILED", "imageIndex": 0}, 422, "taskId"),
        (UPSCALE, {"taskId": "VIDEO", "imageIndex": 0}, 422, "taskId must be an image"),
        (VARY, {"taskId": "IMAGE", "imageIndex": 5}, 422, "imageIndex"),
        (VARY, {"taskId": "UPSCALED", "imageIndex": 2}, 422, "imageIndex"),
        (EXTEND, {"taskId": "IMAGE", "taskType": "mj_video_extend_auto", "index": 0}, 422, "video"),
        (EXTEND, {"taskId": "VIDEO", "taskType": "mj_video", "index": 0}, 422, "taskType"),
        (EXTEND, {"taskId": "VIDEO", "taskType": "mj_video_extend_auto"}, 400, "index"),
        (EXTEND, {"taskId": "VIDEO", "taskType": "mj_video_extend_auto", "index": 1}, 422, "index"),
        (
            EXTEND,
            {"taskId": "VIDEO", "taskType": "mj_video_extend_manual", "index": 0},
            400,
            "prompt",
        ),
    ],
)
async def test_what_goes_on_from_a_task_needs_the_right_one(  # noqa: PLR0917  pytest gives them by name
    sandbox: Sandbox, api: Api, path: str, fields: dict[str, Any], code: int, name: str
) -> None:
    """A parent must be there, have succeeded, be of the kind, and have that picture."""
    image = await finished(sandbox, api)
    failed = await api.submit()
    sandbox.fail(failed)
    upscaled = await api.submit(UPSCALE, taskId=image, imageIndex=0)
    sandbox.finish(upscaled)
    ids = {
        "IMAGE": image,
        "RUNNING": await api.submit(),
        "FAILED": failed,
        "UPSCALED": upscaled,
        "VIDEO": await finished(sandbox, api, **VIDEO),
    }
    before = sandbox.ledger.accepted
    task_id = ids.get(fields.get("taskId", ""), fields.get("taskId"))
    envelope = await api.post(path, {**fields, "taskId": task_id})
    assert code == envelope["code"], envelope
    assert name in envelope["msg"]
    assert before == sandbox.ledger.accepted


@pytest.mark.parametrize(
    ("fields", "price"),
    [
        ({"speed": "relaxed"}, 3),
        ({"speed": "fast"}, 8),
        ({"speed": "turbo"}, 16),
        (VIDEO, 15),
        ({**VIDEO, "videoBatchSize": 4}, 60),
    ],
)
async def test_documented_prices(
    sandbox: Sandbox, api: Api, fields: dict[str, Any], price: float
) -> None:
    """The price is taken when the submit is accepted, and the ledger says how much."""
    await api.submit(**fields)
    assert price == sandbox.ledger.accepted[0].price
    assert 10_000 - price == sandbox.credits


async def test_the_price_of_an_extension(sandbox: Sandbox, api: Api) -> None:
    """No page says it; two users say 60."""
    parent = await finished(sandbox, api, **VIDEO)
    await api.submit(EXTEND, taskId=parent, taskType="mj_video_extend_auto", index=0)
    assert sandbox.ledger.accepted[1].price == 60


async def test_a_reference_that_cannot_be_fetched_fails_later(sandbox: Sandbox, api: Api) -> None:
    """It is no error at submit; the task fails, also for a file of ours that is not there."""
    for url in ("not a url", f"{sandbox.url}/m/{'0' * 32}_0_0.jpeg", f"{sandbox.url}/u/a/b.png"):
        task_id = await api.submit(
            taskType="mj_img2img", fileUrls=[url], prompt="x [[sandbox: seconds=0]]"
        )
        record = await api.look(task_id)
        assert record["successFlag"] == 3
        assert "reference image" in record["errorMessage"]


async def test_a_reference_that_the_sandbox_made_can_be_fetched(sandbox: Sandbox, api: Api) -> None:
    """A result may be the reference of the next task."""
    url = (await api.urls(await finished(sandbox, api)))[0]
    task_id = await api.submit(
        taskType="mj_img2img", fileUrls=[url], prompt="x [[sandbox: seconds=0]]"
    )
    assert (await api.look(task_id))["successFlag"] == 1
