"""Requests: every documented rule, checked when a request is made."""

import copy
import enum
import inspect
import json
import pickle
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async._runtime.urls import url_problem
from midapi_async.errors import InvalidRequestError, WaitTimeout
from midapi_async.requests import (
    RANGES,
    REQUESTS,
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
    has_several_jobs,
    paths_of,
    task_id_problem,
)
from midapi_async.tasks import TaskDetails

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
    "extra",
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
        "extra",
    ],
    Upscale: ["task_id", "image_index", "water_mark", "extra"],
    Vary: ["task_id", "image_index", "water_mark", "extra"],
    ExtendVideo: ["task_id", "index", "prompt", "water_mark", "extra"],
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
CYCLE: list[object] = []
CYCLE.append(CYCLE)
DEEP: list[object] = []
for _ in range(99):
    DEEP = [DEEP]
NO_JSON = [
    *[b"x", {1}, object(), 1j, Decimal(1), float("nan"), float("inf"), -float("inf")],
    *["\ud800", "a\udfff", 2**1024, *HUGE, CYCLE, DEEP],
]
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
    "variety": [0, 1, 5, 7, 99, 100, Level.FIVE, None],  # steps of 5 are only suggested
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
        [Path("a.png")],
        (UploadedURL(URL, "0" * 64),),
    ],
    "hd": [True, False],
    "motion": ["high", "low"],
    "video_batch_size": [1, 2, 4],
    "task_id": ["x", "x" * 128, "mj_task_abc", "0b2c6b1e-9d5c-4b1a-8f6e-2f0d1c3b4a59", "A-_9"],
    "image_index": [0, 1, 2, 3],
    "index": [0, 1, 4, 2**31 - 1],
    "extra": [
        {},
        {"aspectRatio": "21:9"},
        {"taskType": "mj_new", "prompt": "x", "speed": None, "": ""},
        {"seed": 2**1024 - 1, "big": 1e308, "狐": "🦊", "on": True},
        MappingProxyType({"a": {"b": {"c": 1.5}}}),
    ],
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
    "variety": [-5, -1, 101, 105, *NO_INT, *HUGE],
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
        Path("a.png"),
        [PurePosixPath("a.png")],
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
        "mjt_" + "A" * 43,
        object(),
    ],
    "image_index": [None, -1, 5, *NO_INT, *HUGE],
    "index": [None, -1, 2**31, *NO_INT, *HUGE],
    "extra": [
        None,
        *[[], (), "aspectRatio", b"x", 5, True, object(), [("aspectRatio", "21:9")]],
        # what JSON cannot say, or not all programs read
        *({"new": value} for value in NO_JSON),
        *({"new": [{"deep": value}]} for value in NO_JSON),
        *[{5: 1}, {None: 1}, {b"new": 1}, {"\ud800": 1}, {"new": {5: 1}}, {"a": 1, 5: 1}],
        # never the user's own
        *[{"callBackUrl": URL}, {"callbackUrl": URL}, {"call_back_url": None}],
        # MidAPI would ignore these, and bill for the task
        *[{"aspect_ratio": "21:9"}, {"AspectRatio": "21:9"}, {"watermark": "x"}, {"file_urls": []}],
    ],
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


@pytest.mark.parametrize("cls", REQUESTS)
def test_extra_is_the_last_field(cls: type[Request]) -> None:
    """A `repr` begins with what the request is about."""
    assert repr(make(cls)).endswith(", extra={})")


@pytest.mark.parametrize("cls", REQUESTS)
def test_extra_cannot_be_changed_later(cls: type[Request]) -> None:
    """Neither by who has given it nor by who reads it, at no depth; a copy is equal."""
    mine: dict[str, Any] = {"a": {"b": [1, {"c": [2]}]}, "z": (3,)}
    made, same = make(cls, extra=mine), make(cls, extra=copy.deepcopy(mine))
    mine["a"]["b"][1]["c"].append("changed")
    mine["new"] = 1
    assert made == same
    assert hash(made) == hash(same)
    read: Any = made.extra
    changes: list[Callable[[], object]] = [
        lambda: read.update(new=1),
        read.clear,
        read.popitem,
        lambda: read.setdefault("new", 1),
        lambda: read.__setitem__("a", 1),
        lambda: read.__delitem__("a"),
        lambda: read.__ior__({"new": 1}),
        lambda: read["a"].pop("b"),
        lambda: read["a"]["b"].append(1),
        lambda: read["a"]["b"][1]["c"].append(1),
    ]
    for change in changes:
        with pytest.raises((TypeError, AttributeError)):
            change()
    for arrived in (
        copy.copy(made),
        copy.deepcopy(made),
        attrs.evolve(made),
        *(pickle.loads(pickle.dumps(made, number)) for number in range(6)),  # noqa: S301 - ours
    ):
        assert arrived == made
        assert repr(arrived) == repr(made)
    assert made != make(cls)
    assert json.loads(json.dumps(attrs.asdict(made)))["extra"] == json.loads(json.dumps(read))


@pytest.mark.parametrize(
    ("one", "other", "is_equal"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": [1]}, {"a": (1,)}, True),
        ({"a": Level.FIVE, "b": Tone.FOX}, {"a": 5, "b": "a fox"}, True),
        ({}, MappingProxyType({}), True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": None}, {}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
    ],
)
def test_extra_is_equal_if_its_json_is(one: Any, other: Any, is_equal: bool) -> None:
    """The order of the names does not count; 1, 1.0 and True are different."""
    assert (TextToImage("x", extra=one) == TextToImage("x", extra=other)) is is_equal
    assert len({TextToImage("x", extra=one), TextToImage("x", extra=other)}) == 2 - is_equal


def test_a_misspelt_name_in_extra_is_an_error() -> None:
    """The error has MidAPI's spelling; unknown names that resemble no known one are accepted."""
    with pytest.raises(InvalidRequestError, match="it spells it aspectRatio"):
        TextToImage("x", extra={"aspectratio": "21:9"})
    with pytest.raises(InvalidRequestError, match="a callback_url"):
        TextToImage("x", extra={"callBackURL": URL})
    assert TextToImage("x", extra={"aspectRatios": 1, "styleRaw": True}).extra["aspectRatios"] == 1


class Finished:
    """Anything with the id of a task, as `TaskDetails` and `TaskHandle` are."""

    task_id = TASK


@pytest.mark.parametrize("cls", [Upscale, Vary, ExtendVideo])
def test_details_or_a_handle_stand_for_their_task_id(cls: type[Request]) -> None:
    """The id alone is kept; an object without an id is refused by the name of the field."""
    assert make(cls, task_id=Finished()) == make(cls)
    assert make(cls, task_id=TaskDetails(task_id=TASK)) == make(cls)
    with pytest.raises(InvalidRequestError, match="task_id: must be MidAPI's task id"):
        make(cls, task_id=WaitTimeout(None, "an intent"))


def test_a_single_url_must_be_a_list() -> None:
    """A str is a sequence of str; each letter would count as a URL."""
    with pytest.raises(InvalidRequestError, match="put it into a list"):
        ImageToImage("x", URL)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {red, blue} fox", True),
        ("a {red,blue} fox {big, small}", True),
        ("{a {red, blue} fox, an owl}", True),
        ("a {, old} fox", True),
        ("a {red\n,\nblue} fox", True),
        (r"a {red\, white, blue} fox", True),
        ("a fox --repeat 4", True),
        ("a fox --r 4 --ar 16:9", True),
        ("a fox —repeat 4", True),
        ("--r  12", True),
        ("a fox", False),
        ("a {red} fox, an owl", False),
        ("a {red fox, an owl", False),
        ("a red} fox, an {owl", False),
        (r"a {red\, white} fox", False),
        ("a fox, repeat 4", False),
        ("a fox --repeat", False),
        ("a fox --raw --r", False),
        ("a fox --rows 4", False),
        ("pre--repeat 4", False),
        ("{" * 2000, False),
        ("{" + "," * 1999, False),
        ("{," * 1000, True),  # nested and never closed: warned of all the same
    ],
)
def test_a_prompt_for_several_jobs_is_known(prompt: str, expected: bool) -> None:
    """A comma in braces, unless it is escaped, and --repeat; also in `extra` and in videos."""
    assert has_several_jobs(TextToImage(prompt)) is expected
    assert has_several_jobs(ExtendVideo(TASK, 0, prompt)) is expected
    assert has_several_jobs(TextToImage("x", extra={"prompt": prompt})) is expected
    assert not has_several_jobs(ExtendVideo(TASK, 0))


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


# ─── files of this machine ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "tells"),
    [
        ("a.png", "Path('a.png')"),
        ("./a.png", "Path("),
        ("~/a.png", "Path("),
        ("C:\\a.png", "Path("),
        ("\\\\host\\a.png", "Path("),
        ("file:///a.png", "Path("),
        ("/a.png", "Path("),
        ("data:image/png;base64,AAAA", "client.upload()"),
        (" DATA:,x", "client.upload()"),
        ("https://h/a b.png", "MidAPI must be able to fetch it"),
        (b"a.png", "must be a URL or a Path, got a bytes"),
        (PurePosixPath("a.png"), "must be a URL or a Path, got a PurePosixPath"),
    ],
)
def test_a_text_that_is_no_url_is_answered_with_what_to_write(value: Any, tells: str) -> None:
    """A str is never taken for a path."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageToImage("x", [URL, value])
    assert caught.value.problems["file_urls"].startswith("[1] ")
    assert tells in str(caught.value)


def test_one_path_in_place_of_a_list_is_answered_with_the_list() -> None:
    """As one URL is."""
    one: Any = Path("a.png")
    with pytest.raises(InvalidRequestError, match=r"put it into a list, \[Path\(…\)\]"):
        ImageToImage("x", one)


@given(st.text() | st.text().map("https://h/{}".format))
def test_a_text_is_a_url_or_is_refused(text: str) -> None:
    """Never a path, and never anything else; a Path of the same text is one."""
    is_url = url_problem(text) is None
    if is_url:
        made = ImageToImage("x", [text])
        assert made.file_urls == (text,)
        assert paths_of(made) == {}
    else:
        with pytest.raises(InvalidRequestError) as caught:
            ImageToImage("x", [text])
        assert list(caught.value.problems) == ["file_urls"]
    path = Path(text)
    assert paths_of(ImageToImage("x", [URL, path])) == {1: path}


@given(st.text(), st.none() | st.from_regex("[0-9a-f]{64}", fullmatch=True))
def test_an_uploaded_url_keeps_its_hash_wherever_it_goes(text: str, sha256: str | None) -> None:
    """Copied, pickled in each way, as a field, and in a changed request; it is its text."""
    url = UploadedURL(text, sha256)
    assert (url, hash(url), str(url), type(str(url))) == (text, hash(text), text, str)
    arrived = [copy.copy(url), copy.deepcopy([url])[0]]
    arrived += [pickle.loads(pickle.dumps(url, n)) for n in range(6)]  # noqa: S301 - ours
    request = ImageToImage("x", (URL, UploadedURL(URL, sha256)))
    changed = pickle.loads(pickle.dumps(attrs.evolve(request, prompt="y")))  # noqa: S301 - ours
    assert changed.file_urls[1].sha256 == sha256
    for each in arrived:
        assert type(each) is UploadedURL
        assert (each, each.sha256) == (text, sha256)


@pytest.mark.parametrize("bad", ["", "0" * 63, "A" * 64, "0" * 65, 5, b"0" * 64, f"{'0' * 64}\n"])
def test_a_hash_that_is_none_is_refused(bad: Any) -> None:
    """It decides what a key belongs to."""
    with pytest.raises(InvalidRequestError, match="sha256: must be 64"):
        UploadedURL(URL, bad)


@pytest.mark.parametrize(("name", "span"), RANGES.items())
def test_ranges_are_what_the_requests_allow(name: str, span: tuple[int, int]) -> None:
    """Programs offer them to people. Vary allows one more index; see its docstring."""
    cls: Any = next(cls for cls, fields in FIELDS.items() if name in fields)
    for value in span:
        cls(**{**NEEDED[cls], name: value})
    for value in (span[0] - 1, span[1] + 1):
        with pytest.raises(InvalidRequestError, match=name):
            cls(**{**NEEDED[cls], name: value})
