"""Requests: every documented rule, checked when a request is made."""

import copy
import enum
import inspect
import pickle
from collections.abc import Callable

import attrs
import pytest

from midapi_async.errors import InvalidRequestError
from midapi_async.requests import (
    REQUESTS,
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    OmniReference,
    Request,
    StyleReference,
    TextToImage,
    Upscale,
    Vary,
    task_id_problem,
)

URL = "https://files.example/a.png"
TASK = "0f3a9c52047dda21bb3df0488736cce5"

IMAGE = [
    "prompt",
    "speed",
    "aspect_ratio",
    "version",
    "variety",
    "stylization",
    "weirdness",
    "water_mark",
    "enable_translation",
]
# Sections 2 and 3 of the wire document: which fields each of the eight takes, and needs.
FIELDS: dict[type[Request], list[str]] = {
    TextToImage: IMAGE,
    ImageToImage: [*IMAGE, "file_urls"],
    StyleReference: [*IMAGE, "file_urls"],
    OmniReference: [*IMAGE, "file_urls", "ow"],
    ImageToVideo: [
        "prompt",
        "file_urls",
        "hd",
        "motion",
        "video_batch_size",
        "aspect_ratio",
        "water_mark",
        "enable_translation",
    ],
    Upscale: ["task_id", "image_index", "water_mark"],
    Vary: ["task_id", "image_index", "water_mark"],
    ExtendVideo: ["task_id", "index", "prompt", "water_mark"],
}
NEEDED: dict[type[Request], dict[str, object]] = {
    TextToImage: {"prompt": "a fox"},
    ImageToImage: {"prompt": "a fox", "file_urls": [URL]},
    StyleReference: {"prompt": "a fox", "file_urls": [URL]},
    OmniReference: {"prompt": "a fox", "file_urls": [URL]},
    ImageToVideo: {"prompt": "a fox", "file_urls": [URL]},
    Upscale: {"task_id": TASK, "image_index": 0},
    Vary: {"task_id": TASK, "image_index": 0},
    ExtendVideo: {"task_id": TASK, "index": 0},
}


class Tone(enum.StrEnum):
    """A str of somebody's own."""

    FOX = "a fox"


class Level(enum.IntEnum):
    """An int of somebody's own."""

    FIVE = 5


HUGE = [10**400, 10**5000, -(10**5000)]
NO_INT = [True, False, 5.0, float("nan"), "5", b"5", [], {}, object()]
NO_STR = [5, True, 1.5, b"a fox", ["a fox"], {"a": "fox"}, object()]
NO_BOOL = [None, 0, 1, "true", "false", b"", [], object()]
NO_CHOICE = ["", "x", None, 5, b"fast", ["fast"], {}, object(), float("nan"), "\ud800", *HUGE]

# Each field: what is taken (both sides of each bound), and what is refused.
GOOD: dict[str, list[object]] = {
    "prompt": ["x", "x" * 2000, " x ", "--ar 16:9 --sref https://x", "狐\n🦊", "\0", Tone.FOX],
    "speed": ["relaxed", "fast", "turbo"],
    "aspect_ratio": [
        *["1:2", "9:16", "2:3", "3:4", "5:6", "6:5", "4:3", "3:2", "1:1", "16:9", "2:1"],
        None,
    ],
    "version": ["7", "6.1", "6", "5.2", "5.1", "niji6", "niji7", "8", "8.25", "niji10.1", None],
    "variety": [0, 5, 95, 100, Level.FIVE, None],
    "stylization": [0, 1, 50, 999, 1000, None],  # multiples of 50 are only suggested
    "weirdness": [0, 1, 150, 2999, 3000, None],  # multiples of 100 are only suggested
    "ow": [1, 2, 999, 1000, None],
    "water_mark": ["", "mine", None],
    "enable_translation": [True, False],
    "file_urls": [
        [URL],
        (URL,),
        ["http://h/x"],
        ["HTTPS://H"],
        ["https://h:8443/p?q=1#f"],
        ["https://[::1]/x"],
        ["https://例え.jp/狐.png"],
        ["https://u:p@h/x"],
    ],
    "hd": [True, False],
    "motion": ["high", "low"],
    "video_batch_size": [1, 2, 4],
    "task_id": ["x", "x" * 128, "mj_task_abc", "0b2c6b1e-9d5c-4b1a-8f6e-2f0d1c3b4a59", "A-_9"],
    "image_index": [0, 1, 2, 3],
    "index": [0, 1, 4, 2**31 - 1],
}
BAD: dict[str, list[object]] = {
    "prompt": ["", " \n\t", "x" * 2001, "\ud800", "a\udfffb", *NO_STR],
    "speed": ["Fast", "FAST", "relax", "Relax", " fast", "fast ", *NO_CHOICE],
    "aspect_ratio": ["16:10", "16/9", "16x9", " 16:9", *NO_CHOICE[:2], *NO_CHOICE[3:]],
    "version": [
        "v7",
        "7.",
        ".1",
        "7.1.1",
        "Niji6",
        "niji",
        "niji 6",
        "٣",
        "7\n",
        "",
        "9" * 21,
        7,
        6.1,
        True,
        b"7",
        ["7"],
        object(),
        *HUGE,
    ],
    "variety": [-5, -1, 1, 99, 101, 105, *NO_INT, *HUGE],
    "stylization": [-1, 1001, *NO_INT, *HUGE],
    "weirdness": [-1, 3001, *NO_INT, *HUGE],
    "ow": [0, 1001, -1, *NO_INT, *HUGE],
    "water_mark": ["\ud800", *NO_STR],
    "enable_translation": [*NO_BOOL, *HUGE],
    "file_urls": [
        None,
        [],
        (),
        URL,
        URL.encode(),
        {URL},
        {URL: URL},
        5,
        iter([URL]),
        [None],
        [5],
        [URL.encode()],
        [[URL]],
        [""],
        ["picture.png"],
        ["/tmp/picture.png"],  # noqa: S108 - no file, a text
        ["file:///etc/passwd"],
        ["ftp://h/x"],
        ["data:image/png;base64,AAAA"],
        ["javascript:alert(1)"],
        ["https://"],
        ["https:h"],
        ["//h/x"],
        ["https://[::1"],
        ["https://h:99999"],
        ["https://h/a b"],
        ["https://h/a\nb"],
        [f" {URL}"],
        ["https://\ud800.com"],
        ["https://h/\udc00"],
        ["https://h\\@evil"],
    ],
    "hd": [*NO_BOOL],
    "motion": ["High", "medium", *NO_CHOICE],
    "video_batch_size": [0, 3, 5, -1, True, 1.0, "1", *NO_CHOICE[2:3], *NO_CHOICE[4:], *HUGE],
    "task_id": [
        None,
        "",
        "x" * 129,
        "../x",
        "a/b",
        "a\nb",
        "x\n",
        "a b",
        "é",
        "٣",
        "a?b",
        "a\0",
        "\ud800",
        5,
        b"x",
        ["x"],
        object(),
        "mjt_" + "A" * 43,
    ],
    "image_index": [None, -1, 5, *NO_INT, *HUGE],
    "index": [None, -1, 2**31, *NO_INT, *HUGE],
}


EACH_FIELD = [(cls, name) for cls, names in FIELDS.items() for name in names]
# What one class refuses and another takes.
BAD_FOR_ONE: dict[tuple[type[Request], str], list[object]] = {
    (ImageToVideo, "file_urls"): [[URL, URL]],
    (Upscale, "image_index"): [4],
    **{(cls, "prompt"): [None] for cls in REQUESTS if "prompt" in FIELDS[cls][:1]},
}


@pytest.mark.parametrize(("cls", "name"), EACH_FIELD)
def test_what_is_documented_is_taken(cls: type[Request], name: str) -> None:
    """Both sides of each bound, kept as given; what is only suggested is not enforced."""
    for value in GOOD[name]:
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(make(cls, **{name: value}), name) == expected


@pytest.mark.parametrize(("cls", "name"), EACH_FIELD)
def test_what_is_not_documented_is_refused(cls: type[Request], name: str) -> None:
    """When the object is made, naming the field and nothing else, on one short line."""
    for number, value in enumerate([*BAD[name], *BAD_FOR_ONE.get((cls, name), [])]):
        with pytest.raises(InvalidRequestError) as caught:
            pytest.fail(f"value {number} was taken: {make(cls, **{name: value})!r:.200}")
        assert list(caught.value.problems) == [name]
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def make(cls: type[Request], **fields: object) -> Request:
    """A request with what it needs, and these fields."""
    factory: Callable[..., Request] = cls
    return factory(**{**NEEDED[cls], **fields})


@pytest.mark.parametrize("cls", REQUESTS)
def test_each_class_has_just_its_fields(cls: type[Request]) -> None:
    """The fields that the mode takes; what is needed has no default."""
    found = attrs.fields_dict(cls)
    assert set(FIELDS[cls]) == set(found)
    assert set(NEEDED[cls]) == {n for n, f in found.items() if f.default is attrs.NOTHING}
    with pytest.raises(TypeError):
        make(cls, nonsense=1)


def test_there_are_eight() -> None:
    """The tables above are whole."""
    assert set(FIELDS) == set(REQUESTS)
    assert len(REQUESTS) == 8


@pytest.mark.parametrize("cls", REQUESTS)
def test_all_problems_are_reported_at_once(cls: type[Request]) -> None:
    """With every field wrong, one error names every field."""
    with pytest.raises(InvalidRequestError) as caught:
        make(cls, **{name: BAD[name][-1] for name in FIELDS[cls]})
    assert set(FIELDS[cls]) == set(caught.value.problems)
    assert all(caught.value.problems.values())


@pytest.mark.parametrize(
    ("made", "field", "expected"),
    [
        (TextToImage("x"), "speed", "fast"),
        (TextToImage("x"), "enable_translation", False),
        (ImageToVideo("x", [URL]), "motion", "high"),
        (ImageToVideo("x", [URL]), "video_batch_size", 1),
        (ImageToVideo("x", [URL]), "hd", False),
        (Vary(TASK, 4), "image_index", 4),
        (ExtendVideo(TASK, 0), "prompt", None),
        (StyleReference("x", [URL, URL]), "file_urls", (URL, URL)),
        (OmniReference("x", [URL, URL], ow=1), "ow", 1),
    ],
)
def test_defaults_and_differences(made: Request, field: str, expected: object) -> None:
    """What the wire document says of one class alone, and the defaults."""
    assert getattr(made, field) == expected


@pytest.mark.parametrize("cls", REQUESTS)
def test_a_request_is_a_value(cls: type[Request]) -> None:
    """Frozen, hashable, equal by value, copied and pickled whole, slotted."""
    made = make(cls)
    assert made == make(cls)
    assert len({made, make(cls), copy.deepcopy(made)}) == 1
    assert made == pickle.loads(pickle.dumps(made))  # noqa: S301 - ours
    assert made != make(cls, water_mark="mine")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.water_mark = "mine"  # type: ignore[misc]  # what is tested
    assert not hasattr(made, "__dict__")


def test_requests_of_two_kinds_are_never_equal() -> None:
    """With the same fields an upscale is no variation."""
    assert make(Upscale) != make(Vary)
    assert make(ImageToImage) != make(StyleReference)


def test_a_list_given_is_not_the_list_kept() -> None:
    """Who changes their list does not change the request."""
    mine = [URL]
    made = ImageToImage("x", mine)
    mine.append("file:///etc/passwd")
    assert made.file_urls == (URL,)


def test_a_changed_copy_is_checked_too() -> None:
    """`attrs.evolve` cannot make what the class cannot."""
    with pytest.raises(InvalidRequestError):
        attrs.evolve(TextToImage("x"), prompt="")


@pytest.mark.parametrize("cls", REQUESTS)
def test_each_field_has_a_line_in_a_docstring(cls: type[Request]) -> None:
    """Of its own class, or of `TextToImage` where it says so."""
    found = (inspect.getdoc(cls) or "") + (inspect.getdoc(TextToImage) or "")
    assert not [name for name in FIELDS[cls] if f"{name}: " not in found]


@pytest.mark.parametrize("value", GOOD["task_id"])
def test_a_task_id_is_good(value: object) -> None:
    """The rule that `client.task` uses, too."""
    assert task_id_problem(value) is None


@pytest.mark.fault("S10")
@pytest.mark.parametrize("value", BAD["task_id"])
def test_a_task_id_is_bad(value: object) -> None:
    """Nothing that could change a URL, a log line or a file name passes; nor a token of ours."""
    problem = task_id_problem(value)
    assert problem is not None
    assert problem.isprintable()
