"""What MidAPI answers with: read liberally in shape and strictly in kind, never with a secret."""

import json
import math
import pickle
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from midapi_async._wire.json import DEEPEST, dumps, loads
from midapi_async._wire.records import (
    KNOWN_FLAGS,
    Record,
    details_from_raw,
    details_of,
    object_in,
    read_envelope,
    read_record,
    readable,
    task_id_in,
    without_callback,
)
from midapi_async.errors import ProtocolError
from midapi_async.tasks import TaskDetails, TaskStatus
from tests.support import secrets

TASK = "0f3a9c52047dda21bb3df0488736cce5"
URLS = tuple(f"https://tempfile.aiquickdraw.com/m/{TASK}_0_{n}.jpeg" for n in range(4))
TOKEN = "mjt_" + "0aZ_-" * 8 + "xyz"  # the same in every run, as it stands in names of tests
CALLBACK = f"https://bot.example/hook/{TOKEN}"
# Section 4's recorded shape.
PARAMS = {
    "aspectRatio": "3:4",
    "callBackUrl": CALLBACK,
    "enableTranslation": True,
    "motion": "high",
    "prompt": "…",
    "speed": "fast",
    "stylization": 300,
    "taskType": "mj_txt2img",
    "version": "7",
    "videoBatchSize": 1,
    "weirdness": 150,
}
RECORD: dict[str, Any] = {
    "taskId": TASK,
    "taskType": "mj_txt2img",
    "paramJson": json.dumps(PARAMS),
    "completeTime": 1760608373000,
    "resultInfoJson": {"resultUrls": [{"resultUrl": url} for url in URLS]},
    "successFlag": 1,
    "createTime": 1760608306000,
    "errorCode": None,
    "errorMessage": None,
}
CREATED = datetime(2025, 10, 16, 9, 51, 46, tzinfo=UTC)
COMPLETED = datetime(2025, 10, 16, 9, 52, 53, tzinfo=UTC)


def record_of(**changes: object) -> Record:
    """The recorded shape with some members changed."""
    record = read_record({**RECORD, **changes})
    assert record is not None
    return record


def details(**changes: object) -> TaskDetails:
    """The public snapshot of the recorded shape with some members changed."""
    return details_of(record_of(**changes))


def everything_of(found: TaskDetails) -> str:
    """Every way in which a snapshot may be shown or stored."""
    stored = json.dumps([found.to_dict(), dict(found.raw)])
    return f"{found} {found!r} {found.to_dict()} {dict(found.params)} {dict(found.raw)} {stored}"


# ─── the envelope ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"code": 200, "msg": "success", "data": {"a": 1}}, (200, "success", {"a": 1})),
        ({"code": "200", "msg": "success", "data": None}, (200, "success", None)),
        ({"code": 402}, (402, None, None)),
        ({"code": -1, "msg": None, "data": 5.5}, (-1, None, 5.5)),
        ({"code": 200, "data": "text", "new": ["x"]}, (200, None, "text")),
    ],
)
def test_an_envelope_is_read(body: object, expected: tuple[object, ...]) -> None:
    """A code, a text and anything as data; what is new is ignored."""
    assert read_envelope(dumps(body)) == expected


@pytest.mark.fault("S11")
@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", "body"),
        (b"<html>", "body"),
        (b"null", "body"),
        (b"[]", "body"),
        (b'"x"', "body"),
        (b"200", "body"),
        (b"{}", "code"),
        (b'{"Code": 200}', "code"),
        (b'{"code": null}', "code"),
        (b'{"code": true}', "code"),
        (b'{"code": 200.0}', "code"),
        (b'{"code": "OK"}', "code"),
        (b'{"code": " 200"}', "code"),
        (b'{"code": "2\\u0663"}', "code"),
        (b'{"code": "200\\n"}', "code"),
        (b'{"code": [200]}', "code"),
        (b'{"code": {"code": 200}}', "code"),
        (b'{"code": 1' + b"0" * 400 + b"}", "code"),
        (b'{"code": 200, "msg": 5}', "msg"),
        (b'{"code": 200, "msg": {}}', "msg"),
    ],
)
def test_what_is_not_an_envelope_is_refused_with_its_path(body: bytes, path: str) -> None:
    """A value of the wrong kind is named, never coerced; the text is one short line."""
    with pytest.raises(ProtocolError) as caught:
        read_envelope(body)
    assert path == caught.value.path
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


# ─── records ─────────────────────────────────────────────────────────────────────────────────────


def test_the_recorded_shape() -> None:
    """Section 4, each value where it belongs."""
    found = details()
    assert found == TaskDetails(
        task_id=TASK,
        task_type="mj_txt2img",
        status=TaskStatus.SUCCEEDED,
        urls=URLS,
        params={name: value for name, value in PARAMS.items() if name != "callBackUrl"},
        created_at=CREATED,
        completed_at=COMPLETED,
    )
    assert found.is_final
    assert set(found.raw) == set(RECORD)


@pytest.mark.fault("P3")
@pytest.mark.fault("P4")
@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        # flags: 1 is success, 2 and 3 are failures, what is new or missing is generating
        ({"successFlag": 0}, "status", TaskStatus.GENERATING),
        ({"successFlag": "0"}, "status", TaskStatus.GENERATING),
        ({"successFlag": "1"}, "status", TaskStatus.SUCCEEDED),
        ({"successFlag": 2}, "status", TaskStatus.FAILED),
        ({"successFlag": "3"}, "status", TaskStatus.FAILED),
        ({"successFlag": 3}, "status", TaskStatus.FAILED),
        ({"successFlag": None}, "status", TaskStatus.GENERATING),
        ({"successFlag": 4}, "status", TaskStatus.GENERATING),
        ({"successFlag": -1}, "status", TaskStatus.GENERATING),
        # completeTime is set while still generating
        ({"successFlag": 0}, "completed_at", None),
        ({"successFlag": 2}, "completed_at", COMPLETED),
        # files are there when it succeeded, wherever they stand
        ({"successFlag": 0}, "urls", ()),
        ({"successFlag": 2}, "urls", ()),
        ({"resultInfoJson": {"resultUrls": list(URLS)}}, "urls", URLS),
        ({"resultInfoJson": {"resultUrls": [{"url": u} for u in URLS]}}, "urls", URLS),
        (
            {"resultInfoJson": {"resultUrls": [{"resultUrl": None, "url": URLS[0]}]}},
            "urls",
            URLS[:1],
        ),
        ({"resultInfoJson": json.dumps(RECORD["resultInfoJson"])}, "urls", URLS),
        ({"resultInfoJson": None, "resultUrls": list(URLS)}, "urls", URLS),
        ({"resultInfoJson": {}, "resultUrls": [{"resultUrl": u} for u in URLS]}, "urls", URLS),
        ({"resultInfoJson": {"resultUrls": []}, "resultUrls": list(URLS)}, "urls", URLS),
        ({"resultInfoJson": None, "response": {"resultUrls": list(URLS)}}, "urls", URLS),
        (
            {"resultInfoJson": "", "response": json.dumps({"resultUrls": list(URLS)})},
            "urls",
            URLS,
        ),
        # URLs that cannot be read are left out
        ({"resultInfoJson": {"resultUrls": [None, *URLS, 5, "x", {}]}}, "urls", URLS),
        ({"resultInfoJson": {"resultUrls": [{"resultUrl": 5, "url": URLS[0]}]}}, "urls", URLS[:1]),
        ({"resultInfoJson": 5, "resultUrls": list(URLS)}, "urls", URLS),
        ({"resultInfoJson": "[", "response": {"resultUrls": list(URLS)}}, "urls", URLS),
        # success without files is not there yet
        ({"resultInfoJson": None}, "urls", ()),
        ({"resultInfoJson": ""}, "urls", ()),
        ({"resultInfoJson": "null"}, "urls", ()),
        ({"resultInfoJson": {}}, "urls", ()),
        ({"resultInfoJson": {"resultUrls": None}}, "urls", ()),
        ({"resultInfoJson": {"resultUrls": []}}, "urls", ()),
        ({"resultInfoJson": None}, "is_final", False),
        ({"resultInfoJson": None, "response": 5}, "urls", ()),
        ({"resultInfoJson": None, "response": "x"}, "urls", ()),
        ({"resultInfoJson": None, "response": {"resultUrls": [5]}}, "urls", ()),
        # times
        ({"createTime": "2025-10-16T09:51:46Z"}, "created_at", CREATED),
        ({"createTime": "2025-10-16T11:51:46+02:00"}, "created_at", CREATED),
        ({"createTime": "2025-10-16 17:51:46"}, "created_at", CREATED),  # UTC+8, as a sister API
        ({"createTime": "1760608306000"}, "created_at", CREATED),
        ({"completeTime": "1760608373000"}, "completed_at", COMPLETED),
        ({"createTime": None}, "created_at", None),
        ({"completeTime": None}, "completed_at", None),
        ({"createTime": None}, "duration", None),
        # errors
        ({"errorCode": 500}, "error_code", 500),
        ({"errorCode": "500"}, "error_code", 500),
        ({"errorCode": "E_NSFW"}, "error_code", "E_NSFW"),
        ({"errorCode": ""}, "error_code", None),
        ({"errorCode": "null"}, "error_code", None),
        ({"errorCode": 0}, "error_code", None),
        ({"errorCode": 10**12}, "error_code", str(10**12)),
        ({"errorCode": "1" * 12}, "error_code", "1" * 12),
        ({"errorMessage": ""}, "error_message", None),
        ({"errorMessage": "a\nb\x1b[2J"}, "error_message", "a b [2J"),
        # the echo of our request may be broken; the result counts
        ({"paramJson": None}, "params", {}),
        ({"paramJson": ""}, "params", {}),
        ({"paramJson": "{"}, "params", {}),
        ({"paramJson": "null"}, "params", {}),
        ({"paramJson": "[1]"}, "params", {}),
        ({"paramJson": "[" * 5000}, "params", {}),
        ({"paramJson": {"prompt": "x"}}, "params", {"prompt": "x"}),
        # other new things
        ({"taskType": None}, "task_type", None),
        ({"taskType": "mj_new"}, "task_type", "mj_new"),
        ({"brandNew": {"x": [1]}}, "task_id", TASK),
    ],
)
def test_every_shape_of_section_9(changes: dict[str, object], field: str, expected: object) -> None:
    """Each variant that was handled in somebody's program reads as it should."""
    assert getattr(details(**changes), field) == expected


@pytest.mark.parametrize("member", [name for name in RECORD if name != "taskId"])
def test_only_the_task_id_is_needed(member: str) -> None:
    """Whatever else is missing, or null, the record is read."""
    for data in ({k: v for k, v in RECORD.items() if k != member}, {**RECORD, member: None}):
        record = read_record(data)
        assert record is not None
        assert details_of(record).task_id == TASK


@pytest.mark.fault("P1")
@pytest.mark.parametrize("data", [None, "", "null", " null "])
def test_null_is_not_a_record(data: object) -> None:
    """Also as the string that holds it: MidAPI does not know the task."""
    assert read_record(data) is None


def test_a_record_may_be_a_string() -> None:
    """``data`` as a JSON string reads as the object that it holds, raw included."""
    record = read_record(json.dumps(RECORD))
    assert record is not None
    assert record == record_of()
    assert record.raw == RECORD
    found = details_of(record)
    assert details() == found
    assert details().raw == found.raw
    assert not secrets.found_in(everything_of(found))


INT, STR, LIST, DICT = 5, "x", [1], {"a": 1}


@pytest.mark.parametrize(
    ("member", "wrong", "path"),
    [
        ("taskId", [None, 5, True, "", "../x", "a\nb", "x" * 10_000, LIST, DICT], "taskId"),
        ("taskId", [f"mjt_{'A' * 43}"], "taskId"),
        ("resultInfoJson", [INT, True, "x", "[", LIST, "5", '"x"'], "resultInfoJson"),
        ("resultUrls", [INT, STR, True, DICT], "resultUrls"),
        ("resultUrls", [[None], [5], [""], ["x"], ["ftp://h/x"], [{}]], "resultUrls"),
        ("resultUrls", [["https://h/a b"], ["https://h/a\nb"], ["https://h/\x9b"]], "resultUrls"),
        ("resultUrls", [["https://h/\u202e"], ["https://h/\ud800"], ["https://"]], "resultUrls"),
        ("resultInfoJson", [{"resultUrls": STR}, {"resultUrls": [5]}], "resultInfoJson.resultUrls"),
        ("successFlag", [True, False, 1.0, "", "x", "1 ", "٣", LIST, DICT], "successFlag"),
        ("successFlag", [10**9, 10**400, "1" * 10], "successFlag"),
    ],
)
def test_what_decides_is_refused_with_its_path_if_it_is_of_the_wrong_kind(
    member: str, wrong: list[object], path: str
) -> None:
    """Nothing is coerced: "false" is no bool, 1.0 no flag. The error is one line.

    URLs decide only in a success that shows no good one elsewhere.
    """
    elsewhere = {"resultInfoJson": None} if member == "resultUrls" else {}
    for value in wrong:
        changes = elsewhere | {member: value}
        with pytest.raises(ProtocolError) as caught:
            pytest.fail(f"{value!r:.100} was read as {record_of(**changes)!r:.300}")
        assert caught.value.path == f"data.{path}"
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


@pytest.mark.fault("P15")
@pytest.mark.parametrize(
    ("member", "wrong", "field"),
    [
        ("taskType", [INT, True, LIST, DICT], "task_type"),
        ("paramJson", [INT, True, LIST, 1.5, "{"], "params"),
        ("completeTime", [True, "", "x", 1.5, LIST, DICT, 10**18, 10**400], "completed_at"),
        ("createTime", [False, "soon", -(10**18), "0001-01-01T00:00+14:00"], "created_at"),
        ("createTime", ["2025-13-01", "\ud800", "٢٣٢٣-٢٣-٢٣", "9" * 5000, "9" * 30], "created_at"),
        ("errorCode", [True, 1.5, LIST, DICT], "error_code"),
        ("errorMessage", [INT, False, LIST, DICT], "error_message"),
    ],
)
def test_what_decides_nothing_is_missing_if_it_is_of_the_wrong_kind(
    member: str, wrong: list[object], field: str
) -> None:
    """It is None, or empty, and the result is there; ``raw`` has the value."""
    for value in wrong:
        found = details(**{member: value})
        assert not getattr(found, field)
        assert found.urls == URLS
        assert found.raw[member] == value


@pytest.mark.fault("P15")
@pytest.mark.parametrize("flag", [None, 0, 2, 3, 7])
def test_urls_decide_nothing_unless_the_task_succeeded(flag: int | None) -> None:
    """A failed task is failed, and a generating one is generating, whatever its URLs are."""
    for wrong in (INT, "[", [None], {"resultUrls": [5]}):
        found = details(successFlag=flag, resultInfoJson=wrong, resultUrls=wrong, response=wrong)
        assert found.urls == ()
        assert (found.status is TaskStatus.FAILED) == (flag in (2, 3))


@pytest.mark.parametrize("data", [5, True, 1.5, [], [RECORD], "x", "5", "[]", "{", "[" * 5000])
def test_what_is_not_an_object_is_not_a_record(data: object) -> None:
    """Refused at its place."""
    with pytest.raises(ProtocolError) as caught:
        read_record(data)
    assert caught.value.path == "data"


def test_the_path_of_a_missing_member() -> None:
    """Reported as missing, in MidAPI's spelling."""
    with pytest.raises(ProtocolError, match=r"data\.taskId is missing"):
        read_record({})


def test_ten_thousand_files_are_read() -> None:
    """Many are no problem, and wrong ones among them are left out and counted."""
    many = [f"https://h/{n}" for n in range(10_000)]
    assert tuple(many) == details(resultInfoJson={"resultUrls": many}).urls
    record = record_of(resultInfoJson={"resultUrls": ["x", *many, None]})
    assert (record.urls, record.unreadable_urls) == (tuple(many), 2)
    with pytest.raises(ProtocolError, match=r"\[0\] is not a URL"):
        record_of(resultInfoJson={"resultUrls": ["x"] * 10_000})


def test_known_flags_are_those_of_the_document() -> None:
    """What is not among them is warned of."""
    assert {None, 0, 1, 2, 3} == KNOWN_FLAGS


# ─── secrets ─────────────────────────────────────────────────────────────────────────────────────

SPELLINGS = [
    "callBackUrl",
    "callbackUrl",
    "callbackurl",
    "call_back_url",
    "callback_url",
    "CALLBACKURL",
    "callback",
    "callBack",
    "call-back-url",
    "callBackURL",
    "userCallbackUrl",
]


@pytest.mark.fault("I5")
@pytest.mark.parametrize("name", SPELLINGS)
def test_our_callback_url_is_taken_out_however_it_is_spelt(name: str) -> None:
    """In params and raw, in objects and in strings that hold JSON."""
    url = "https://bot.example/hook/somebodys-own-secret"  # not even of our form
    inside = {"prompt": "a fox", name: url}
    text = json.dumps(inside)
    for value in (inside, text, f" {text}", json.dumps(text)):
        found = everything_of(details(paramJson=value))
        assert "bot.example" not in found
        assert "a fox" in found
        assert "bot.example" not in str(without_callback({"x": [value]}))


@pytest.mark.fault("I5")
@pytest.mark.parametrize(
    "text",
    [
        f'{{"callBackUrl": "{CALLBACK}", "prompt": "cut he',
        f'{{"callBackUrl": "{CALLBACK[:-20]}',
        f'{{"prompt": "{"ß" * 200}", "callBackUrl": "{CALLBACK}", "x',
        f'{{"prompt": "{"İ" * 200}", "call_back_url": "https://h/{TOKEN[:12]}',
        f'{{"callBackUrl": "{CALLBACK}", "prompt": "\\ud800"}}',
        f'{{"callBackUrl": "{CALLBACK}", "a": 1, "a": 2}}',
        f'{{"callBackUrl": "{CALLBACK}", "a": {"[" * 100}{"]" * 100}}}',
        json.dumps({"callBackUrl": CALLBACK}).replace("B", "\\u0042").replace("mjt_", "mjt\\u005f"),
        json.dumps(
            {"x": json.dumps({"y": json.dumps({"z": json.dumps({"callBackUrl": CALLBACK})})})}
        ),
        CALLBACK,
        f"see {CALLBACK}!",
        TOKEN[:30],
    ],
)
def test_a_broken_text_shows_no_token(text: str) -> None:
    """A cut, doubled, escaped, nested or deep text: no part of the token is left."""
    for found in (
        str(without_callback(text)),
        everything_of(details(paramJson=text)),
        everything_of(details(somethingNew=[text])),
    ):
        assert TOKEN[:12] not in found
        assert TOKEN[4:30] not in found
        assert "mjt\\u005f" not in found


@pytest.mark.parametrize(
    "prompt", ['{"callback" is a fox', "a callback fox", "[call back]", "…", ""]
)
def test_a_prompt_stays_readable(prompt: str) -> None:
    """What merely looks like it is kept, at least up to the word."""
    kept = str(details(paramJson={"prompt": prompt}).params["prompt"])
    assert kept == prompt or (kept.endswith("…") and prompt.startswith(kept[:-1]))


def test_a_lone_surrogate_costs_nothing_of_raw() -> None:
    """MidAPI may cut an emoji in half; the rest of the text is kept."""
    found = details(paramJson=json.dumps({"callBackUrl": CALLBACK, "prompt": "x\ud83e", "z": 1}))
    assert json.loads(str(found.raw["paramJson"])) == {"prompt": "x\ud83e", "z": 1}


KEYS = st.sampled_from([*RECORD, *PARAMS, "callbackurl", "x", TOKEN, CALLBACK]) | st.text(
    max_size=5
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=10)
    | st.sampled_from([TASK, TOKEN, CALLBACK, f"x {CALLBACK} y", TOKEN[:40], URLS[0], "1", "200"])
)


def jsons(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any JSON, with strings that hold JSON."""
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(KEYS, inner, max_size=4)
            | inner.map(json.dumps)
        ),
        max_leaves=12,
    )


ANY_RECORD = st.fixed_dictionaries(
    {"taskId": st.just(TASK)},
    optional={
        "taskType": st.sampled_from(["mj_txt2img", TOKEN, CALLBACK, "a\nb"]) | LEAVES,
        "paramJson": jsons(LEAVES),
        "resultInfoJson": st.just({"resultUrls": [f"https://h/{TOKEN}"]}) | jsons(LEAVES),
        "resultUrls": st.lists(st.sampled_from([CALLBACK, URLS[0], {"url": CALLBACK}])),
        "successFlag": st.sampled_from([0, 1, 2, 3, "1", None]),
        "errorCode": st.sampled_from([500, "E", TOKEN, "a\nb\x1b"]) | LEAVES,
        "errorMessage": st.sampled_from(["nsfw", CALLBACK, f"cut {TOKEN[:30]}"]) | LEAVES,
        "createTime": st.integers() | st.just(1760608306000),
        "other": jsons(LEAVES),
        TOKEN: jsons(LEAVES),
    },
)


def assert_harmless(error: ProtocolError) -> None:
    """It names a place in the record, on one line, without a secret."""
    secrets.assert_none_in(error)
    assert str(error).isprintable()
    assert error.path.startswith("data")


@pytest.mark.fault("I5")
@hypothesis_settings(deadline=None, max_examples=400)
@given(ANY_RECORD, st.booleans())
def test_no_token_in_anything_public(data: dict[str, Any], as_text: bool) -> None:
    """Whatever record MidAPI sends, it is refused or shown without a secret."""
    given_data: object = json.dumps(data) if as_text else data
    try:
        record = read_record(given_data)
    except ProtocolError as error:
        assert_harmless(error)
        return
    assert record is not None
    found = details_of(record)
    assert not secrets.found_in(everything_of(found))
    assert found == pickle.loads(pickle.dumps(found))  # noqa: S301 - ours
    for text in (found.task_type, found.error_message, str(found.error_code), *found.urls):
        assert text is None or text.isprintable()
    json.dumps(found.to_dict(), allow_nan=False)
    hash(found)


@hypothesis_settings(deadline=None, max_examples=400)
@given(ANY_RECORD, st.booleans())
def test_a_snapshot_is_rebuilt_from_its_raw(data: dict[str, Any], is_plain: bool) -> None:
    """Stored as JSON text and read again, ``raw`` gives equal details; also of a plain record."""
    if is_plain:
        data = {name: value for name, value in data.items() if name in RECORD}
        is_plain = not secrets.found_in(json.dumps(data))
    try:
        record = read_record(data, is_plain=is_plain)
    except ProtocolError:
        return
    assert record is not None
    found = details_of(record)
    stored = json.dumps(dict(found.raw))
    rebuilt = details_from_raw(json.loads(stored))
    assert rebuilt == found
    assert rebuilt.raw == found.raw


def test_what_is_not_the_raw_of_a_snapshot_is_refused() -> None:
    """As a record that cannot be read is: with the path."""
    with pytest.raises(ProtocolError, match=r"data\.taskId is missing"):
        details_from_raw({})


def test_a_task_id_that_looks_like_a_token_leads_to_its_task() -> None:
    """It was paid for under that name, so it is not cut."""
    odd = f"x{TOKEN}"
    assert details_of(record_of(taskId=odd)).task_id == odd


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_record_carries_what_it_was_read_from(is_plain: bool) -> None:
    """``raw`` is the object itself, with the callback URL, so the repr leaves it out."""
    record = read_record(RECORD, is_plain=is_plain)
    assert record is not None
    assert record.raw is RECORD
    assert record.is_plain is is_plain
    secrets.assert_none_in(record)


SHAPES: dict[str, dict[str, Any]] = {
    "recorded": {},
    "documented": {"createTime": "2025-10-16T09:51:46Z", "completeTime": "2025-10-16T09:52:53Z"},
    "flag as text": {"successFlag": "1"},
    "results as text": {"resultInfoJson": json.dumps(RECORD["resultInfoJson"])},
    "URLs as strings": {"resultInfoJson": {"resultUrls": list(URLS)}},
    "URLs as objects": {"resultInfoJson": {"resultUrls": [{"url": url} for url in URLS]}},
    "URLs in the record": {"resultInfoJson": None, "resultUrls": list(URLS)},
    "URLs in the response": {"resultInfoJson": None, "response": {"resultUrls": list(URLS)}},
    "failed": {"successFlag": 3, "errorCode": "500", "errorMessage": "no response"},
    "failed, with numbers": {"successFlag": "2", "errorCode": 500, "resultInfoJson": {}},
}
# What says how a task ended, in each shape: everything else decides nothing.
DECIDES = {"taskId", "successFlag"}
WITH_URLS = {"URLs in the record": "resultUrls", "URLs in the response": "response"}


@pytest.mark.fault("P15")
@hypothesis_settings(deadline=None, max_examples=500)
@given(
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from([*RECORD, "resultUrls", "response", "msg", "raw", "urls", "shown_at", "new"]),
    jsons(LEAVES),
    st.booleans(),
)
def test_no_field_that_does_not_decide_costs_a_result(
    shape: str, member: str, value: object, as_text: bool
) -> None:
    """Any field in any shape of a good record is replaced by any JSON: the end is read."""
    data = {**RECORD, **SHAPES[shape]}
    is_failed = shape.startswith("failed")
    is_result = member == WITH_URLS.get(shape, "resultInfoJson") and not is_failed
    if member not in DECIDES and not is_result:
        data[member] = value
    record = read_record(json.dumps(data) if as_text else data)
    assert record is not None
    found = details_of(record)
    assert found.is_final
    assert (found.status is TaskStatus.FAILED) == is_failed
    if member not in {"resultInfoJson", "resultUrls", "response"} and not is_failed:
        assert found.urls == URLS


@pytest.mark.fault("P15")
@hypothesis_settings(deadline=None, max_examples=300)
@given(st.lists(jsons(LEAVES), max_size=5), st.lists(jsons(LEAVES), max_size=5))
def test_one_good_url_is_a_result(before: list[object], behind: list[object]) -> None:
    """Whatever stands beside it in the list."""
    found = details(resultInfoJson={"resultUrls": [*before, URLS[0], *behind]})
    assert URLS[0] in found.urls


@hypothesis_settings(deadline=None)
@given(jsons(LEAVES))
def test_any_json_is_a_record_or_refused(data: object) -> None:
    """Nothing but a `ProtocolError` comes out, and it shows no secret."""
    try:
        record = read_record(data)
    except ProtocolError as error:
        assert_harmless(error)
    else:
        assert record is None or details_of(record).task_id == record.task_id


def test_a_deep_value_in_a_record_can_be_shown_and_stored() -> None:
    """The deepest that is read can be walked, shown, pickled and written."""
    deep: object = "x"
    for _ in range(DEEPEST - 4):
        deep = [deep]
    data = loads(dumps({**RECORD, "other": deep, "paramJson": json.dumps({"deep": deep})}))
    record = read_record(data)
    assert record is not None
    assert everything_of(details_of(record))


@pytest.mark.fault("S11")
def test_texts_within_texts_do_not_use_up_the_stack() -> None:
    """Each text may be as deep as one is read, and hold another: only the first two are opened."""
    text = json.dumps({"callBackUrl": CALLBACK})
    for _ in range(15):
        text = "[" * (DEEPEST - 1) + json.dumps({"callback": 1, "x": text}) + "]" * (DEEPEST - 1)
    assert len(text) < 1 << 20
    assert not secrets.found_in(everything_of(details(other=text, paramJson=text)))


def test_a_wide_record_is_read_in_one_pass() -> None:
    """1 MiB of nested JSON costs a few steps a byte: counted, not timed."""
    wide = json.dumps({"a": [{"b": [1]}] * 50_000, "callBackUrl": CALLBACK})
    assert len(wide) > 500_000
    steps = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal steps
        steps += event == "call"

    sys.setprofile(count)
    try:
        found = details(paramJson=wide)
    finally:
        sys.setprofile(None)
    assert steps < 2 * len(wide)
    assert len(found.params["a"]) == 50_000  # type: ignore[arg-type]  # a list, as above


# ─── texts ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("D12")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ""),
        ("", ""),
        ("Credits insufficient", "Credits insufficient"),
        ("a\r\nb\tc", "a  b c"),
        ("\x1b[31mred\x9b", " [31mred "),
        ("a\u2028b\u202ec\u200bd\ud800e\0f", "a b c d e f"),
        (f"no {CALLBACK}", "no https://bot.example/hook/mjt_…"),
        ("x" * 501, "x" * 499 + "…"),
        ("x" * 500, "x" * 500),
        ("狐🦊", "狐🦊"),
    ],
)
def test_text_of_a_server_is_made_readable(text: str | None, expected: str) -> None:
    """Short, one line, no controls, no marks, no token."""
    assert readable(text) == expected


@pytest.mark.fault("D12")
@given(st.text(st.characters(exclude_categories=())), st.integers(1, 50))
def test_a_readable_text_is_one_short_line(text: str, limit: int) -> None:
    """Whatever came."""
    clean = readable(f"{text}{TOKEN}{text}", limit)
    assert clean.isprintable()
    assert len(clean) <= limit
    assert TOKEN[:20] not in clean


def test_a_text_of_a_mebibyte_is_cut() -> None:
    """And a token across the cut does not show."""
    assert len(readable("x\n" * (1 << 19))) == 500
    for place in range(440, 510):
        assert TOKEN[:14] not in readable("x" * place + TOKEN)


# ─── small readers ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        (None, {}),
        ("x", {}),
        ("5", {}),
        ([], {}),
        (5, {}),
    ],
)
def test_an_object_or_nothing(value: object, expected: object) -> None:
    """An object, or a string that holds one; an empty one for all else."""
    assert object_in(value) == expected


@pytest.mark.fault("S10")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"taskId": TASK}, TASK),
        (json.dumps({"taskId": TASK}), TASK),
        ({"taskId": "mj_task_abc-1"}, "mj_task_abc-1"),
        *((nothing, None) for nothing in (None, 5, "", "[]", "{}", TASK)),
        ([], None),
        ({}, None),
        ({"taskid": TASK}, None),
        ({"task_id": TASK}, None),
        *(({"taskId": bad}, None) for bad in (None, 5, True, "", "../x", "a\nb", "x\n", "é")),
        ({"taskId": "x" * 129}, None),
        ({"taskId": "x" * 10_000}, None),
        ({"taskId": TOKEN}, None),
        ({"taskId": [TASK]}, None),
    ],
)
def test_a_task_id_or_none(data: object, expected: str | None) -> None:
    """Only a str of the documented alphabet and length is one."""
    assert task_id_in(data) == expected


def test_no_infinity_gets_into_a_snapshot() -> None:
    """Python reads 1e999 as infinity, which no other JSON reader accepts."""
    with pytest.raises(ProtocolError):
        read_record('{"taskId": "x", "cost": 1e999}')
    assert math.isfinite(float(str(loads(b"1e308"))))
