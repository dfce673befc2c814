"""Requests in MidAPI's spelling: written exactly, read liberally, and every round trip equal."""

import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from midapi_async._tracking.verdict import kind_of
from midapi_async._wire.bodies import (
    fingerprint,
    make_request,
    request_from_json,
    request_to_json,
    submit_body,
    task_type,
)
from midapi_async._wire.json import dumps, loads
from midapi_async.errors import InvalidRequestError
from midapi_async.requests import (
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    OmniReference,
    Request,
    StyleReference,
    TextToImage,
    UploadedURL,
    Upscale,
    Vary,
)

TASK = "0f3a9c52047dda21bb3df0488736cce5"
TOKEN = "mjt_" + "0aZ_-" * 8 + "xyz"  # the same in every run, as it stands in names of tests
CALLBACK = f"https://bot.example/hook/{TOKEN}"
PICTURE = "https://files.example/a.png"
EIGHT: list[tuple[Request, dict[str, object]]] = [
    (
        TextToImage("a fox"),
        {"taskType": "mj_txt2img", "prompt": "a fox", "speed": "fast", "enableTranslation": False},
    ),
    (
        TextToImage(
            "a fox",
            speed="turbo",
            aspect_ratio="16:9",
            version="7",
            variety=0,
            stylization=0,
            weirdness=0,
            water_mark="",
            enable_translation=True,
        ),
        {
            "taskType": "mj_txt2img",
            "prompt": "a fox",
            "speed": "turbo",
            "aspectRatio": "16:9",
            "version": "7",
            "variety": 0,
            "stylization": 0,
            "weirdness": 0,
            "waterMark": "",
            "enableTranslation": True,
        },
    ),
    (
        ImageToImage("a fox", [PICTURE]),
        {
            "taskType": "mj_img2img",
            "prompt": "a fox",
            "fileUrls": [PICTURE],
            "speed": "fast",
            "enableTranslation": False,
        },
    ),
    (
        StyleReference("a fox", [PICTURE, PICTURE]),
        {
            "taskType": "mj_style_reference",
            "prompt": "a fox",
            "fileUrls": [PICTURE, PICTURE],
            "speed": "fast",
            "enableTranslation": False,
        },
    ),
    (
        OmniReference("a fox", [PICTURE], ow=500),
        {
            "taskType": "mj_omni_reference",
            "prompt": "a fox",
            "fileUrls": [PICTURE],
            "speed": "fast",
            "ow": 500,
            "enableTranslation": False,
        },
    ),
    (
        ImageToVideo("it runs", [PICTURE]),
        {
            "taskType": "mj_video",
            "prompt": "it runs",
            "fileUrls": [PICTURE],
            "motion": "high",
            "videoBatchSize": 1,
            "enableTranslation": False,
        },
    ),
    (
        ImageToVideo("it runs", [PICTURE], hd=True, motion="low", video_batch_size=4),
        {
            "taskType": "mj_video_hd",
            "prompt": "it runs",
            "fileUrls": [PICTURE],
            "motion": "low",
            "videoBatchSize": 4,
            "enableTranslation": False,
        },
    ),
    (Upscale(TASK, 0), {"taskType": "mj_upscale", "taskId": TASK, "imageIndex": 0}),
    (
        Vary(TASK, 4, water_mark="mine"),
        {"taskType": "mj_vary", "taskId": TASK, "imageIndex": 4, "waterMark": "mine"},
    ),
    (ExtendVideo(TASK, 0), {"taskType": "mj_video_extend_auto", "taskId": TASK, "index": 0}),
    (
        ExtendVideo(TASK, 1, "it stops"),
        {
            "taskType": "mj_video_extend_manual",
            "taskId": TASK,
            "index": 1,
            "prompt": "it stops",
        },
    ),
]


@pytest.mark.parametrize(("request_", "expected"), EIGHT)
def test_a_request_as_midapi_spells_it(request_: Request, expected: dict[str, object]) -> None:
    """The fields of sections 2 and 3, exactly; what was not set is left out, zeros are sent."""
    body = request_to_json(request_)
    assert (body, json.loads(json.dumps(body))) == (expected, expected)  # lists, no tuples
    assert request_from_json(body) == request_
    assert expected["taskType"] == task_type(request_)


@pytest.mark.parametrize(("request_", "expected"), EIGHT)
def test_the_body_of_a_post(request_: Request, expected: dict[str, object]) -> None:
    """With the callback URL where there is one; upscale and vary take no task type."""
    if isinstance(request_, Upscale | Vary):
        expected = {name: value for name, value in expected.items() if name != "taskType"}
    assert request_to_json(request_, as_sent=True) == expected
    assert json.loads(submit_body(request_, None)) == expected
    assert json.loads(submit_body(request_, CALLBACK)) == {**expected, "callBackUrl": CALLBACK}


SAMPLE = {
    "taskType": "mj_txt2img",
    "speed": "relaxed",
    "prompt": "Help me generate a sci-fi themed fighter jet",
    "fileUrls": ["https://example.com/image.jpg"],
    "aspectRatio": "16:9",
    "version": "7",
    "variety": 10,
    "stylization": 1,
    "weirdness": 1,
    "ow": 1,
    "waterMark": "",
    "enableTranslation": False,
    "callBackUrl": "https://api.example.com/callback",
    "videoBatchSize": 1,
    "motion": "high",
}
PROMPT = str(SAMPLE["prompt"])
FILES = ["https://example.com/image.jpg"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            TextToImage(
                PROMPT,
                speed="relaxed",
                aspect_ratio="16:9",
                version="7",
                variety=10,
                stylization=1,
                weirdness=1,
                water_mark="",
            ),
        ),
        (
            {"taskType": "mj_video"},
            ImageToVideo(PROMPT, FILES, aspect_ratio="16:9", water_mark=""),
        ),
        (
            {"taskType": "mj_video_hd"},
            ImageToVideo(PROMPT, FILES, hd=True, aspect_ratio="16:9", water_mark=""),
        ),
        (
            {"taskType": "mj_omni_reference"},
            OmniReference(
                PROMPT,
                FILES,
                speed="relaxed",
                aspect_ratio="16:9",
                version="7",
                variety=10,
                stylization=1,
                weirdness=1,
                water_mark="",
                ow=1,
            ),
        ),
    ],
)
def test_the_sample_of_the_documentation(changes: dict[str, object], expected: Request) -> None:
    """Irrelevant fields and all; its callBackUrl is dropped."""
    body = {**SAMPLE, **changes}
    assert request_from_json(body) == expected
    assert "callBackUrl" not in request_to_json(request_from_json(body))


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (
            {
                "taskId": "mj_task_abcdef123456",
                "imageIndex": 1,
                "waterMark": "w",
                "callBackUrl": "x",
            },
            Upscale,
            Upscale("mj_task_abcdef123456", 1, water_mark="w"),
        ),
        (
            {"taskId": "mj_task_abcdef123456", "imageIndex": 4, "callBackUrl": "x"},
            Vary,
            Vary("mj_task_abcdef123456", 4),
        ),
        (
            {"taskId": "t", "taskType": "mj_video_extend_manual", "index": 0, "prompt": "on"},
            None,
            ExtendVideo("t", 0, "on"),
        ),
        (
            {"taskId": "t", "taskType": "mj_video_extend_auto", "index": 0, "prompt": "ignored"},
            None,
            ExtendVideo("t", 0),
        ),
        ({"taskId": "t", "index": 3}, None, ExtendVideo("t", 3)),
        ({"prompt": "x"}, None, TextToImage("x")),
        ({"prompt": "x", "version": 7}, None, TextToImage("x", version="7")),
        ({"prompt": "x", "version": 7.0}, None, TextToImage("x", version="7")),
        ({"prompt": "x", "version": 6.1}, None, TextToImage("x", version="6.1")),
        ({"prompt": "x", "speed": None, "ow": None}, None, TextToImage("x")),
        (
            {"taskType": "mj_img2img", "prompt": "x", "fileUrl": PICTURE},
            None,
            ImageToImage("x", [PICTURE]),
        ),
        (
            {"taskType": "mj_img2img", "prompt": "x", "fileUrl": "ftp://h", "fileUrls": [PICTURE]},
            None,
            ImageToImage("x", [PICTURE]),
        ),
        (
            {"taskType": "mj_img2img", "prompt": "x", "fileUrl": PICTURE, "fileUrls": []},
            None,
            ImageToImage("x", [PICTURE]),
        ),
    ],
)
def test_other_bodies_of_the_documentation(
    body: dict[str, object], kind: type[Request] | None, expected: Request
) -> None:
    """The other three submits, a number as the version, one ``fileUrl``, nulls."""
    assert request_from_json(body, kind) == expected


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, {"prompt"}),
        ({"prompt": None}, {"prompt"}),
        ({"prompt": "", "speed": "Fast", "variety": 101}, {"prompt", "speed", "variety"}),
        ({"prompt": "x", "version": 10**5000}, {"version"}),
        ({"prompt": "x", "version": float("nan")}, {"version"}),
        ({"prompt": "x", "version": 1e22}, {"version"}),
        ({"prompt": "x", "version": True}, {"version"}),
        ({"prompt": "x", "enableTranslation": "false"}, {"enable_translation"}),
        ({"taskType": "mj_img2img", "prompt": "x"}, {"file_urls"}),
        ({"taskType": "mj_img2img", "prompt": "x", "fileUrl": 5}, {"file_urls"}),
        ({"taskType": "mj_video", "prompt": "x", "fileUrls": [PICTURE] * 2}, {"file_urls"}),
        ({"taskType": "mj_video_extend_manual", "taskId": "t", "index": 0}, {"prompt"}),
        ({"taskType": "mj_video_extend_auto"}, {"task_id", "index"}),
        ({"taskType": "MJ_TXT2IMG", "prompt": "x"}, {"taskType"}),
        ({"taskType": "mj_txt2img ", "prompt": "x"}, {"taskType"}),
        ({"taskType": ["mj_txt2img"], "prompt": "x"}, {"taskType"}),
        ({"taskType": 10**5000, "prompt": "x"}, {"taskType"}),
        ({"taskId": "t", "imageIndex": 0}, {"taskType"}),
        ({"prompt": "x", "nonsense": 1, 5: 1}, {"nonsense", "5"}),
    ],
)
def test_what_is_wrong_in_a_body_is_reported(body: Any, names: set[str]) -> None:
    """Every field that is wrong or missing, in one error on one line."""
    with pytest.raises(InvalidRequestError) as caught:
        request_from_json(body)
    assert names == set(caught.value.problems)
    assert str(caught.value).isprintable()


def test_a_body_and_a_kind_must_agree() -> None:
    """A variation is not bought for an upscale."""
    body = request_to_json(Upscale(TASK, 0))
    assert Upscale(TASK, 0) == request_from_json(body, Upscale)
    with pytest.raises(InvalidRequestError, match="mj_upscale is not Vary"):
        request_from_json(body, Vary)


@pytest.mark.parametrize("body", [None, [], "x", 5, [("prompt", "x")]])
def test_a_body_that_is_not_a_mapping_is_reported(body: Any) -> None:
    """As a problem like any other."""
    with pytest.raises(InvalidRequestError, match="must be a mapping"):
        request_from_json(body)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("callBackURL", "callBackUrl"),
        ("callbackUrl", "callBackUrl"),
        ("call_back_url", "callBackUrl"),
        ("watermark", "waterMark"),
        ("WATERMARK", "waterMark"),
        ("file_urls", "fileUrls"),
        ("fileURLs", "fileUrls"),
        ("Prompt", "prompt"),
        ("promt", "prompt"),
        ("aspect_ratio", "aspectRatio"),
        ("tasktype", "taskType"),
        ("stylisation", "stylization"),
    ],
)
def test_a_misspelt_name_is_an_error_with_a_suggestion(misspelt: str, meant: str) -> None:
    """MidAPI would ignore it in silence, and the money would be gone."""
    with pytest.raises(InvalidRequestError) as caught:
        request_from_json({"prompt": "x", misspelt: "y"})
    assert list(caught.value.problems) == [misspelt]
    assert caught.value.problems[misspelt].endswith(f"did you mean {meant}?")


def test_an_unknown_field_of_ours_is_reported_with_a_suggestion() -> None:
    """As ``client.generate("…", aspectratio=…)`` would give it."""
    with pytest.raises(InvalidRequestError) as caught:
        make_request(TextToImage, {"aspectratio": "1:1", "\n": 1})
    assert set(caught.value.problems) == {"aspectratio", "\n", "prompt"}
    assert "did you mean aspect_ratio?" in caught.value.problems["aspectratio"]
    assert str(caught.value).isprintable()


# ─── every request there is ──────────────────────────────────────────────────────────────────────

PROMPTS = st.text(min_size=1, max_size=40).filter(lambda text: text.strip())
FILE_URLS = st.lists(
    st.text(st.characters(categories=["L", "N"]), max_size=9).map(lambda t: f"https://h/{t}"),
    min_size=1,
    max_size=3,
)
TASK_IDS = st.from_regex(r"(?!mjt_)[A-Za-z0-9_-]{1,128}", fullmatch=True)
WATER_MARKS = st.none() | st.text(max_size=10)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**1023), 2**1023)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
# MidAPI's own names are used too: such a field is sent in place of ours.
EXTRA_NAMES = st.text(max_size=5) | st.sampled_from(["aspectRatio", "taskType", "prompt", "extra"])
EXTRA: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.dictionaries(
    EXTRA_NAMES, JSON_VALUES, max_size=3
)
RATIOS = st.none() | st.sampled_from(
    ["1:2", "9:16", "2:3", "3:4", "5:6", "6:5", "4:3", "3:2", "1:1", "16:9", "2:1"]
)
IMAGE: Mapping[str, st.SearchStrategy[Any]] = {
    "prompt": PROMPTS,
    "speed": st.sampled_from(["relaxed", "fast", "turbo"]),
    "aspect_ratio": RATIOS,
    "version": st.none() | st.from_regex(r"(niji)?[0-9]{1,3}(\.[0-9]{1,3})?", fullmatch=True),
    "variety": st.none() | st.integers(0, 100),
    "stylization": st.none() | st.integers(0, 1000),
    "weirdness": st.none() | st.integers(0, 3000),
    "water_mark": WATER_MARKS,
    "enable_translation": st.booleans(),
    "extra": EXTRA,
}
REFERENCED = {**IMAGE, "file_urls": FILE_URLS}
BY_CLASS: Mapping[type[Request], Mapping[str, st.SearchStrategy[Any]]] = {
    TextToImage: IMAGE,
    ImageToImage: REFERENCED,
    StyleReference: REFERENCED,
    OmniReference: {**REFERENCED, "ow": st.none() | st.integers(1, 1000)},
    ImageToVideo: {
        "prompt": PROMPTS,
        "file_urls": FILE_URLS.map(lambda urls: urls[:1]),
        "hd": st.booleans(),
        "motion": st.sampled_from(["high", "low"]),
        "video_batch_size": st.sampled_from([1, 2, 4]),
        "aspect_ratio": RATIOS,
        "water_mark": WATER_MARKS,
        "enable_translation": st.booleans(),
        "extra": EXTRA,
    },
    Upscale: {
        "task_id": TASK_IDS,
        "image_index": st.integers(0, 3),
        "water_mark": WATER_MARKS,
        "extra": EXTRA,
    },
    Vary: {
        "task_id": TASK_IDS,
        "image_index": st.integers(0, 4),
        "water_mark": WATER_MARKS,
        "extra": EXTRA,
    },
    ExtendVideo: {
        "task_id": TASK_IDS,
        "index": st.integers(0, 10),
        "prompt": st.none() | PROMPTS,
        "water_mark": WATER_MARKS,
        "extra": EXTRA,
    },
}


REQUESTS = st.one_of(
    *(st.builds(cast("Callable[..., Request]", cls), **BY_CLASS[cls]) for cls in BY_CLASS)
)


@pytest.mark.parametrize("cls", BY_CLASS)
def test_the_strategy_has_each_field(cls: type[Request]) -> None:
    """The two properties below speak of every field."""
    assert set(attrs.fields_dict(cls)) == set(BY_CLASS[cls])


@hypothesis_settings(deadline=None, max_examples=300)
@given(REQUESTS)
def test_every_request_round_trips_through_its_body(request_: Request) -> None:
    """Written, sent as JSON and read again it is the same value."""
    body = loads(dumps(request_to_json(request_)))
    assert isinstance(body, dict)
    assert request_ == request_from_json(body)
    assert fingerprint(request_) == fingerprint(request_from_json(body))
    assert request_ == request_from_json({**body, "callBackUrl": CALLBACK})
    plain = attrs.evolve(request_, extra={})
    sent = loads(submit_body(plain, CALLBACK))
    assert isinstance(sent, dict)
    assert plain == request_from_json(sent, type(request_))


@hypothesis_settings(deadline=None, max_examples=300)
@given(REQUESTS)
def test_extra_is_sent_as_it_is_in_place_of_what_we_would_send(request_: Request) -> None:
    """Over the fields of the request without it; only the callback URL is ours in any case."""
    plain = json.loads(submit_body(attrs.evolve(request_, extra={}), CALLBACK))
    extra = json.loads(json.dumps(request_.extra))
    assert json.loads(submit_body(request_, CALLBACK)) == {**plain, **extra}
    assert json.loads(submit_body(request_, None)).items() >= extra.items()


@hypothesis_settings(deadline=None, max_examples=300)
@given(REQUESTS, REQUESTS, st.data())
def test_a_fingerprint_is_equal_for_equal_requests_only(
    one: Request, other: Request, data: st.DataObject
) -> None:
    """Equal for what asks for the same, different as soon as one field differs."""
    assert fingerprint(one) == fingerprint(pickle.loads(pickle.dumps(one)))  # noqa: S301 - ours
    assert (one == other) is (fingerprint(one) == fingerprint(other))
    name = data.draw(st.sampled_from(sorted(BY_CLASS[type(one)])))
    changed = attrs.evolve(one, **{name: data.draw(BY_CLASS[type(one)][name])})
    assert (one == changed) is (fingerprint(one) == fingerprint(changed))
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(one))


def test_a_fingerprint_is_of_what_the_user_set() -> None:
    """A default that is set counts as not set, so a later default of ours changes nothing."""
    assert fingerprint(TextToImage("x")) == fingerprint(TextToImage("x", speed="fast"))
    assert fingerprint(Upscale(TASK, 0)) != fingerprint(Vary(TASK, 0))
    # The text that stands in users' journals: it must never change.
    golden = "1b9f4d3ff71c6930fd4f42dd928ccb5e72516ae8f40edfa159a820bbfdd71f27"
    assert golden == fingerprint(TextToImage("x"))
    assert golden == fingerprint(TextToImage("x", extra={}))


# Recorded before there was `extra`: requests with these keys are in users' journals.
RECORDED: list[tuple[Request, str]] = [
    (
        TextToImage(
            "a fox",
            speed="turbo",
            aspect_ratio="16:9",
            version="7",
            variety=5,
            stylization=100,
            weirdness=0,
            water_mark="",
            enable_translation=True,
        ),
        "47c5e188ae1d7327e3b369b90c57ec4f0ed17235949fd046227b22dc48507cb9",
    ),
    (
        ImageToImage("a fox", ["https://h/a.png"]),
        "498c11a404f23bcb802f26aed74ef78b30198b4384a2d2a72f4a38041b1940d1",
    ),
    (
        StyleReference("狐", ["https://h/a.png", "https://h/b.png"]),
        "38b4226262f58931d7a15a2d5c637af68d2eeb193ce2c5c1a5f42a9d4432e509",
    ),
    (
        OmniReference("a fox", ["https://h/a.png"], ow=500),
        "e5f9c33c3887c60747e38d701d790343c37c6d421c74ecab4aa8b6e0416bd807",
    ),
    (
        ImageToVideo("it runs", ["https://h/a.png"], hd=True, motion="low", video_batch_size=4),
        "86a1f86b46b0000f6af18b07ace92c7a6cd72deba19bc06ba792f4b5853e24fa",
    ),
    (Upscale("t1", 0), "b3cdba3e0d2996a8c9dff33223039fc18acf51f304cd41be51bda6f48208adc3"),
    (
        Vary("t1", 4, water_mark="mine"),
        "7673fce1236b90e9d98141717b681cdce79d5c9e4b44ba38c45e2d4d4042e974",
    ),
    (ExtendVideo("t1", 0), "76a3511cfec8b0b02ed67b7e0dcb46630ad340919772df4713d9a1b5de893d3d"),
    (
        ExtendVideo("t1", 1, "it stops"),
        "2246e7939bc2a933ee7333f1f98d59b5ac366b869a5a55cc15f8f1a757e7f307",
    ),
]


@pytest.mark.parametrize(("request_", "expected"), RECORDED)
def test_a_stored_fingerprint_is_found_again(request_: Request, expected: str) -> None:
    """So that a key which was paid with an earlier release stays the same request's."""
    assert fingerprint(request_) == expected
    assert fingerprint(attrs.evolve(request_, extra={"seed": 1})) != expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (TextToImage("x"), "mj_txt2img"),
        (TextToImage("x", extra={"taskType": "mj_new"}), "mj_new"),
        (Upscale(TASK, 0, extra={"taskType": "mj_new"}), "mj_new"),
        (TextToImage("x", extra={"taskType": 5}), "mj_txt2img"),
    ],
)
def test_the_task_type_in_extra_is_the_one_that_comes_back(
    request_: Request, expected: str
) -> None:
    """It is compared with the record of a task whose answer was lost."""
    assert task_type(request_) == expected
    kind = (expected, getattr(request_, "speed", None))
    assert kind_of(request_) == kind
    assert kind_of(attrs.evolve(request_, extra={"speed": "turbo"}))[1] == "turbo"
    assert kind_of(attrs.evolve(request_, extra={"speed": ["fast"]}))[1] is None


def test_extra_of_a_body() -> None:
    """A member of that name is the one way for fields that this release does not know."""
    body = {"prompt": "x", "extra": {"aspectRatio": "21:9", "seed": 5}}
    assert request_from_json(body) == TextToImage("x", extra={"aspectRatio": "21:9", "seed": 5})
    assert request_from_json({"prompt": "x", "extra": None}) == TextToImage("x")
    for request in (
        TextToImage("x", extra={"taskType": "mj_new"}),
        TextToImage("x", extra={"taskType": "mj_vary", "prompt": "y"}),
        Upscale(TASK, 0, extra={"taskType": "mj_vary", "imageIndex": 9}),
    ):
        written = request_to_json(request)
        assert request_from_json(written) == request
        sent = request_to_json(request, as_sent=True)
        assert {**written["extra"]}.items() <= sent.items()  # type: ignore[dict-item]  # an object
        assert json.loads(submit_body(request, None)) == sent
    nested = request_to_json(TextToImage("x", extra={"new": [{"a": (1, None)}]}), as_sent=True)
    assert nested["new"] == [{"a": [1, None]}]
    for wrong in ({"prompt": "x", "extra": 5}, {"prompt": "x", "extra": {"callBackUrl": "x"}}):
        with pytest.raises(InvalidRequestError) as caught:
            request_from_json(wrong)
        assert list(caught.value.problems) == ["extra"]
    with pytest.raises(InvalidRequestError, match="a new one goes into extra"):
        request_from_json({"prompt": "x", "seed": 5})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ar", "aspect_ratio"),
        ("aspect-ratio", "aspect_ratio"),
        ("aspectRatio", "aspect_ratio"),
        ("chaos", "variety"),
        ("stylize", "stylization"),
        ("v", "version"),
        ("w", "weirdness"),
        ("watermark", "water_mark"),
        ("image_urls", "file_urls"),
        ("wait_timeout", "timeout"),
        ("metdata", "metadata"),
    ],
)
def test_a_name_of_midjourneys_own_is_understood(name: str, meant: str) -> None:
    """Its flags are what users know; MidAPI calls them otherwise."""
    with pytest.raises(InvalidRequestError) as caught:
        make_request(ImageToImage, {"prompt": "x", name: 1}, ["timeout", "metadata"])
    assert caught.value.problems[name].endswith(f"; did you mean {meant}?")


# ─── uploads ─────────────────────────────────────────────────────────────────────────────────────

HASH = "0123456789abcdef" * 4
HASHES = st.from_regex("[0-9a-f]{64}", fullmatch=True)
WITH_FILES = st.sampled_from([ImageToImage, StyleReference, OmniReference])


@hypothesis_settings(deadline=None)
@given(WITH_FILES, st.lists(st.tuples(FILE_URLS, st.none() | HASHES), min_size=1, max_size=4))
def test_an_upload_round_trips_through_the_journal_and_counts_by_its_content(
    cls: type[ImageToImage], files: list[tuple[list[str], str | None]]
) -> None:
    """Its URL may be another one each time; the hash is stored, and never sent."""
    one = cls("x", [UploadedURL(urls[0], sha256) for urls, sha256 in files])
    stored = request_from_json(cast("dict[str, object]", loads(dumps(request_to_json(one)))))
    assert isinstance(stored, cls)
    assert stored == one
    assert [getattr(each, "sha256", None) for each in stored.file_urls] == [h for _, h in files]
    assert fingerprint(stored) == fingerprint(one)
    moved = cls(
        "x", [UploadedURL(f"https://h2/{n}", sha256) for n, (_, sha256) in enumerate(files)]
    )
    assert (fingerprint(moved) == fingerprint(one)) is all(sha256 for _, sha256 in files)
    sent = json.loads(submit_body(one, CALLBACK))
    assert sent == json.loads(submit_body(cls("x", [urls[0] for urls, _ in files]), CALLBACK))
    assert "fileHashes" not in sent


@hypothesis_settings(deadline=None)
@given(st.lists(HASHES, min_size=2, max_size=4, unique=True), st.data())
def test_other_files_are_another_order(hashes: list[str], data: st.DataObject) -> None:
    """So are the same files in another order, or one that is left out."""
    urls = [UploadedURL(PICTURE, sha256) for sha256 in hashes]
    one = fingerprint(ImageToImage("x", urls))
    assert fingerprint(ImageToImage("x", urls[1:])) != one
    mixed = data.draw(st.permutations(urls))
    is_same = [each.sha256 for each in mixed] == hashes
    assert (fingerprint(ImageToImage("x", mixed)) == one) is is_same
    assert fingerprint(ImageToImage("x", [PICTURE] * len(urls))) != one


@pytest.mark.parametrize(
    "use", [request_to_json, fingerprint, lambda each: submit_body(each, None)]
)
def test_a_path_is_never_sent_stored_or_compared(use: Callable[[Request], object]) -> None:
    """It says what to call first."""
    with pytest.raises(InvalidRequestError, match="await client") as caught:
        use(ImageToImage("x", [PICTURE, Path("a.png"), Path("b.png")]))
    assert list(caught.value.problems) == ["file_urls[1]", "file_urls[2]"]


@pytest.mark.parametrize(
    "hashes", [[HASH, HASH], "x", {"a": 1}, 5, [5], ["x"], [HASH.upper()], [[HASH]], [""]]
)
def test_stored_hashes_that_are_none_are_refused(hashes: object) -> None:
    """A row of a damaged journal is read without its request."""
    body = {"taskType": "mj_img2img", "prompt": "x", "fileUrls": [PICTURE], "fileHashes": hashes}
    with pytest.raises(InvalidRequestError):
        request_from_json(body)
    other = {"taskType": "mj_txt2img", "prompt": "x", "fileHashes": hashes}
    assert request_from_json(other) == TextToImage("x")
