"""Requests as other people's programs send them: the sandbox and the SDK read them alike.

The sandbox shares no code with the SDK. A body that one of them accepts and the other refuses is a
mistake in one of the two, unless it stands in `DIFFERENT` with the reason.
"""

import json
import math
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from midapi_async import InvalidRequestError, Request, Upscale, Vary, request_from_json
from midapi_async._wire.bodies import submit_body
from midapi_async.sandbox import Sandbox
from midapi_async.sandbox._envelope import Refused
from midapi_async.sandbox._rules import check_body
from tests.sandbox.world import EXTEND, GENERATE, UPSCALE, VARY, Api

PICTURE = "https://files.example/a.png"
OTHER = "https://files.example/b.png"
BASIC = {"taskType": "mj_txt2img", "prompt": "a red fox", "speed": "fast"}
IMAGE = {**BASIC, "taskType": "mj_img2img", "fileUrls": [PICTURE]}
OMNI = {"taskType": "mj_omni_reference", "prompt": "a red fox", "fileUrls": [PICTURE]}
FILM = {"taskType": "mj_video", "prompt": "it runs", "fileUrls": [PICTURE]}
LONGER = {"taskType": "mj_video_extend_auto", "taskId": "FILM", "index": 0}
KINDS: dict[str, type[Request]] = {UPSCALE: Upscale, VARY: Vary}
# The SDK always sends these, since what the service does without them was seen to vary.
DEFAULTS = {"speed": "fast", "enableTranslation": False, "motion": "high", "videoBatchSize": 1}


@frozen
class Shape:
    """A kind of request: who sends it, and what."""

    sender: str
    body: Any
    path: str = GENERATE
    """Where it is sent to."""
    dropped: tuple[str, ...] = ()
    """Fields that this type of task does not have: stored by the service, not sent by the SDK."""

    def __str__(self) -> str:
        """The name of its test."""
        return self.sender


ACCEPTED = (
    Shape("a script that sends the least", BASIC),
    Shape(
        "a copy of the documented sample, with the fields of every task type",
        {
            **BASIC,
            "speed": "relaxed",
            "fileUrls": [PICTURE],
            "aspectRatio": "16:9",
            "version": "7",
            "variety": 10,
            "stylization": 1,
            "weirdness": 1,
            "ow": 500,
            "waterMark": "mine",
            "enableTranslation": False,
            "callBackUrl": "https://bot.example/hook?x=1",
            "videoBatchSize": 1,
            "motion": "high",
        },
        dropped=("fileUrls", "ow"),
    ),
    Shape(
        "a web form, with an empty text for each field that was left empty",
        {
            **BASIC,
            **dict.fromkeys(["fileUrl", "fileUrls", "aspectRatio", "version", "variety", "ow"], ""),
            **dict.fromkeys(["stylization", "weirdness", "motion", "videoBatchSize"], ""),
            "enableTranslation": "",
            "callBackUrl": "",
        },
    ),
    Shape(
        "a serializer that writes null for what is not set",
        {**BASIC, "fileUrls": None, "version": None, "variety": None, "callBackUrl": None},
    ),
    Shape("a page that always sends a list of files", {**BASIC, "fileUrls": []}),
    Shape(
        "a page that always sends a file, of which this type has none",
        {**BASIC, "fileUrl": "data:image/png;base64,AA"},
        dropped=("fileUrl",),
    ),
    Shape(
        "a bot that puts flags into the prompt", {**BASIC, "prompt": "fox --ar 9:16 --v 7 --sw 3"}
    ),
    Shape("a bot that puts pictures into the prompt", {**BASIC, "prompt": f"{PICTURE} a red fox"}),
    Shape("a prompt of the greatest length", {**BASIC, "prompt": "x" * 2000}),
    Shape("a prompt in any language", {**BASIC, "prompt": "füchse 狐 🦊\n\tlines"}),
    Shape("a version as a number", {**BASIC, "version": 7}),
    Shape("a version as a fraction", {**BASIC, "version": 6.1}),
    Shape("the version of a model for drawings", {**BASIC, "version": "niji7"}),
    Shape("a version that came after this release", {**BASIC, "version": "8"}),
    Shape("a slider that gives any number", {**BASIC, "variety": 7, "stylization": 333}),
    Shape("sliders at their ends", {**BASIC, "variety": 100, "stylization": 0, "weirdness": 3000}),
    Shape("a prompt to be translated", {**BASIC, "enableTranslation": True}),
    Shape("a picture to start from", IMAGE),
    Shape("a picture as the one fileUrl", {**IMAGE, "fileUrls": None, "fileUrl": PICTURE}),
    Shape(
        "a workflow's node, which sends fileUrl and an empty text for fileUrls",
        {**IMAGE, "fileUrls": "", "fileUrl": PICTURE},
    ),
    Shape("a program that sends both", {**IMAGE, "fileUrl": OTHER}, dropped=("fileUrl",)),
    Shape("two styles", {**IMAGE, "taskType": "mj_style_reference", "fileUrls": [PICTURE, OTHER]}),
    Shape("a person, without a speed", {**OMNI, "ow": 1000}),
    Shape("a person, with a speed", {**OMNI, "speed": "turbo", "version": "7"}),
    Shape("two views of a person", {**OMNI, "fileUrls": [PICTURE, OTHER]}),
    Shape("a video", FILM),
    Shape(
        "a video with everything",
        {**FILM, "motion": "low", "videoBatchSize": 4, "aspectRatio": "9:16"},
    ),
    Shape("a video in high definition", {**FILM, "taskType": "mj_video_hd", "videoBatchSize": 2}),
    Shape(
        "a video by a program that always sends speed",
        {**FILM, "speed": "fast"},
        dropped=("speed",),
    ),
    Shape("an upscale", {"taskId": "IMAGE", "imageIndex": 3}, UPSCALE),
    Shape(
        "an upscale with empty texts",
        {"taskId": "IMAGE", "imageIndex": 0, "waterMark": "", "callBackUrl": ""},
        UPSCALE,
    ),
    Shape("a variation, counted from 0", {"taskId": "IMAGE", "imageIndex": 0}, VARY),
    Shape(
        "a variation, counted from 1", {"taskId": "IMAGE", "imageIndex": 4, "waterMark": "w"}, VARY
    ),
    Shape(
        "an extension with a prompt",
        {"taskType": "mj_video_extend_manual", "taskId": "FILM", "index": 0, "prompt": "on"},
        EXTEND,
    ),
    Shape("an extension", LONGER, EXTEND),
    Shape(
        "an automatic extension with a prompt, which it does not have",
        {**LONGER, "prompt": "on"},
        EXTEND,
        dropped=("prompt",),
    ),
)

NO_BODIES: tuple[Any, ...] = (None, [], "text", 7)
BAD_OF_A_PICTURE: dict[str, tuple[Any, ...]] = {
    "variety": (-1, 101, "50", 2.5, True),
    "stylization": (-1, 1001, "100", 100.0, False),
    "weirdness": (-1, 3001, "0", [1]),
    "ow": (0, 1001, "100", {}),
    "enableTranslation": ("false", "true", 0, 1),
    "waterMark": (5, ["mine"]),
}
BAD_OF_A_VIDEO: dict[str, tuple[Any, ...]] = {
    "videoBatchSize": (0, 3, "1", 1.0, True),
    "motion": ("High", "medium", 1),
    "aspectRatio": ("5:4",),
}
REFUSED = (
    *(Shape(f"a body that is {body!r}", body) for body in NO_BODIES),
    *(
        Shape(f"a task type {name!r}", {**BASIC, "taskType": name})
        for name in ("txt2img", "MJ_TXT2IMG", "mj_imagine", "upscale", 1, ["mj_txt2img"])
    ),
    *(
        Shape(f"a prompt {str(prompt)[:9]!r}", {**BASIC, "prompt": prompt})
        for prompt in (None, "", " \n", 5, ["a fox"], {"text": "a fox"}, "x" * 2001)
    ),
    *(
        Shape(f"a speed {speed!r}, as pages show it", {**BASIC, "speed": speed})
        for speed in ("Fast", "FAST", "relax", "Relax", "slow", 1, True)
    ),
    *(
        Shape(f"an aspect ratio {ratio!r}", {**BASIC, "aspectRatio": ratio})
        for ratio in ("4:5", "21:9", "16/9", "16x9", "1024x1024", " 16:9", 1.5)
    ),
    *(
        Shape(f"a version {version!r}", {**BASIC, "version": version})
        for version in ("v7", "V7", "niji 6", "7 raw", "latest", "7.", -7, 1e9, 1e-7, True, [7])
    ),
    *(
        Shape(f"{name} {value!r}", {**OMNI, name: value})
        for name, values in BAD_OF_A_PICTURE.items()
        for value in values
    ),
    *(
        Shape(f"a video with {name} {value!r}", {**FILM, name: value})
        for name, values in BAD_OF_A_VIDEO.items()
        for value in values
    ),
    *(
        Shape(f"a reference fileUrls {str(urls)[:40]!r}", {**OMNI, "fileUrls": urls})
        for urls in (
            None,
            "",
            [],
            PICTURE,
            [None],
            [5],
            {"url": PICTURE},
            [[PICTURE]],
            ["data:image/png;base64,iVBORw0KGgo="],
            [PICTURE, "DATA:image/png;base64,AA"],
        )
    ),
    Shape("a reference as data in fileUrl", {**OMNI, "fileUrls": "", "fileUrl": "data:,x"}),
    Shape("a video without a picture", {**FILM, "fileUrls": []}),
    Shape("a video of two pictures", {**FILM, "fileUrls": [PICTURE, OTHER]}),
    *(
        Shape(f"an upscale of {fields}", fields, UPSCALE)
        for fields in (
            {"taskId": "IMAGE"},
            {"imageIndex": 0},
            {"taskId": "IMAGE", "index": 0},
            {"taskId": "IMAGE", "imageIndex": 4},
            {"taskId": "IMAGE", "imageIndex": "0"},
            {"taskId": "IMAGE", "imageIndex": None},
            {"taskId": "", "imageIndex": 0},
            {"taskId": 5, "imageIndex": 0},
            {"taskId": "a b", "imageIndex": 0},
        )
    ),
    Shape("a variation of the picture behind the last", {"taskId": "IMAGE", "imageIndex": 5}, VARY),
    *(
        Shape(f"an extension {fields}", {"taskId": "FILM", "index": 0, **fields}, EXTEND)
        for fields in (
            {"taskType": "mj_video_extend_manual"},
            {"taskType": "mj_video_extend_manual", "prompt": ""},
            {"taskType": "mj_video_extend_manual", "prompt": "  "},
            {"taskType": "mj_video_extend_manual", "prompt": "x" * 2001},
            {"taskType": "mj_video_extend_auto", "index": None},
            {"taskType": "mj_video_extend_auto", "index": "0"},
            {"taskType": "mj_video_extend_auto", "index": -1},
        )
    ),
)

SDK_ONLY = (
    *(
        (
            Shape(f"a picture with the speed {speed!r}", {**BASIC, "speed": speed}),
            "the service needs a speed; the SDK sends its own default",
        )
        for speed in (None, "")
    ),
    (
        Shape("a picture to start from, without a speed", {**IMAGE, "speed": None}),
        "the service needs a speed; the SDK sends its own default",
    ),
    (
        Shape("no task type", {"prompt": "a red fox", "speed": "fast"}),
        "the service needs a type; the SDK sends that of the class it has chosen",
    ),
    (
        Shape("a field of another type, out of its range", {**BASIC, "ow": 0, "motion": "none"}),
        "the service was not seen with such values, so the sandbox is strict; the SDK drops them",
    ),
    (
        Shape("a placeholder for the callback's URL", {**BASIC, "callBackUrl": "YOUR_URL_HERE"}),
        "the SDK has a callback URL of its own",
    ),
    (
        Shape(
            "an upscale sent to the wrong path",
            {"taskType": "mj_upscale", "taskId": "IMAGE", "imageIndex": 0},
        ),
        "the SDK sends it to its own path",
    ),
)

SANDBOX_ONLY = (
    *(
        (
            Shape(f"a misspelt or foreign field {name!r}", {**BASIC, name: "x"}),
            "the service ignores it in silence, and bills; the SDK refuses it",
        )
        for name in ("callbackUrl", "aspect_ratio", "webhook", "model", "negativePrompt", "seed")
    ),
    *(
        (
            Shape(f"a reference {url!r}", {**IMAGE, "fileUrls": [url]}),
            "the service takes it and the task fails later; the SDK refuses it before it is paid",
        )
        for url in ("/home/me/a.png", "C:\\a.png", "ftp://files.example/a.png", "iVBORw0KGgo=", "")
    ),
    (
        Shape("half of a character", {**BASIC, "prompt": "fox \ud83e"}),
        "JSON can hold it, UTF-8 cannot",
    ),
)

UNKNOWN_TO_THE_SDK = (
    (
        Shape("an upscale of nobody's task", {"taskId": "0" * 32, "imageIndex": 0}, UPSCALE),
        "only the service knows its tasks",
    ),
    (
        Shape("an upscale of a video", {"taskId": "FILM", "imageIndex": 0}, UPSCALE),
        "only the service knows of which type a task is",
    ),
    (
        Shape("an extension of a video that is not there", {**LONGER, "index": 7}, EXTEND),
        "only the service knows how many there are",
    ),
)


@pytest.fixture
async def parents(sandbox: Sandbox, api: Api) -> dict[str, str]:
    """Finished tasks, by the names that stand for them in the tables."""
    parents = {"IMAGE": await api.submit(), "FILM": await api.submit(**{"speed": None, **FILM})}
    for task_id in parents.values():
        sandbox.finish(task_id)
    return parents


def with_ids(shape: Shape, parents: dict[str, str]) -> Any:
    """The shape's body with true task ids in it."""
    if isinstance(shape.body, dict) and shape.body.get("taskId") in parents:
        return {**shape.body, "taskId": parents[shape.body["taskId"]]}
    return shape.body


async def stored(api: Api, path: str, body: object) -> dict[str, Any] | None:
    """The fields that the sandbox stores for a body; None if it refuses it."""
    envelope = await api.post(path, body)
    if envelope["code"] != 200:
        assert envelope["code"] in {400, 422}, envelope
        return None
    params: dict[str, Any] = json.loads((await api.look(envelope["data"]["taskId"]))["paramJson"])
    return params


def read(path: str, body: Any) -> Request | None:
    """The SDK's request for a body; None if it refuses it."""
    try:
        return request_from_json(body, KINDS.get(path))
    except InvalidRequestError:
        return None


@pytest.mark.parametrize("shape", ACCEPTED, ids=str)
async def test_both_accept(api: Api, parents: dict[str, str], shape: Shape) -> None:
    """And what the SDK sends in its place is stored with the same fields."""
    body = with_ids(shape, parents)
    request = read(shape.path, body)
    assert request is not None
    theirs = await stored(api, shape.path, body)
    ours = await stored(api, shape.path, json.loads(submit_body(request, None)))
    assert theirs is not None
    assert ours is not None
    theirs.pop("callBackUrl", None)
    for name in shape.dropped:
        assert theirs.pop(name) != ours.get(name), name
    if "fileUrl" in theirs:
        theirs["fileUrls"] = [theirs.pop("fileUrl")]
    said = {name for name, value in body.items() if value not in (None, "", [])}
    for name, value in DEFAULTS.items():
        if name not in said and name in ours:
            theirs[name] = value
    assert ours == theirs


@pytest.mark.parametrize("shape", REFUSED, ids=str)
async def test_both_refuse(api: Api, parents: dict[str, str], shape: Shape) -> None:
    """Neither takes money for what cannot be meant."""
    body = with_ids(shape, parents)
    assert await stored(api, shape.path, body) is None
    assert read(shape.path, body) is None


@pytest.mark.parametrize(("shape", "why"), SDK_ONLY, ids=str)
async def test_only_the_sdk_accepts(
    api: Api, parents: dict[str, str], shape: Shape, why: str
) -> None:
    """What it then sends is accepted."""
    assert why
    body = with_ids(shape, parents)
    assert await stored(api, shape.path, body) is None
    request = read(shape.path, body)
    assert request is not None
    path = UPSCALE if isinstance(request, Upscale) else shape.path
    assert await stored(api, path, json.loads(submit_body(request, None))) is not None


@pytest.mark.parametrize(("shape", "why"), SANDBOX_ONLY, ids=str)
async def test_only_the_sandbox_accepts(
    api: Api, parents: dict[str, str], shape: Shape, why: str
) -> None:
    """Where the service is known to take money for what was not meant."""
    assert why
    body = with_ids(shape, parents)
    assert await stored(api, shape.path, body) is not None
    assert read(shape.path, body) is None


@pytest.mark.parametrize(("shape", "why"), UNKNOWN_TO_THE_SDK, ids=str)
async def test_only_the_service_can_know(
    api: Api, parents: dict[str, str], shape: Shape, why: str
) -> None:
    """The SDK must ask, and the answer is a refusal."""
    assert why
    body = with_ids(shape, parents)
    assert read(shape.path, body) is not None
    assert await stored(api, shape.path, body) is None


FIELDS = (
    *("prompt", "speed", "aspectRatio", "version", "variety", "stylization", "weirdness", "ow"),
    *("waterMark", "enableTranslation", "fileUrls", "motion", "videoBatchSize"),
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 4000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5).filter(lambda text: text.isprintable()),
    st.sampled_from(
        ["fast", "relaxed", "16:9", "1:1", "7", "6.1", "niji6", "high", "low", PICTURE]
    ),
    st.from_regex(r"(niji)?[0-9]{1,25}(\.[0-9]{1,3})?", fullmatch=True),
    st.lists(st.sampled_from([PICTURE, OTHER, "data:,x"]), max_size=2),
    st.dictionaries(st.just("a"), st.just("b"), max_size=1),
)


def takes(body: dict[str, Any]) -> bool:
    """Whether the sandbox's table accepts a body."""
    try:
        check_body(GENERATE, body)
    except Refused:
        return False
    return True


@given(
    base=st.sampled_from([BASIC, OMNI, FILM]),
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2),
)
def test_both_agree_on_any_value(base: dict[str, Any], changes: dict[str, Any]) -> None:
    """Of the fields that a type of task has, but for the speed that the SDK sends by itself."""
    body = {**base, **changes}
    speed = changes.get("speed", "fast")
    others = {"motion", "videoBatchSize"} if base is not FILM else set(FIELDS[1:2] + FIELDS[3:7])
    others |= {"ow"} if base is not OMNI else set()
    others |= {"fileUrls"} if base is BASIC else set()
    if others & changes.keys() or (speed in (None, "", []) and base is BASIC):
        return
    request = read(GENERATE, body)
    assert (request is not None) == takes(body)
    assert request is None or takes(json.loads(submit_body(request, None)))


def test_the_numbers_of_versions() -> None:
    """JSON numbers are read as the same text by both, up to where neither reads them."""
    for number in (7, 7.0, 6.1, 5.25, 0, 999, 999.5, 1000, 1e300, 0.1 + 0.2, math.pi, -0.0):
        body = {**BASIC, "version": number}
        request = read(GENERATE, body)
        assert (request is not None) == takes(body), number
        if request is not None:
            sent = json.loads(submit_body(request, None))
            assert sent["version"] == check_body(GENERATE, body)["version"]
