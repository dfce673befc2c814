"""Snapshots of tasks: immutable, comparable, safe to store."""

import copy
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from types import MappingProxyType

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async._runtime.urls import is_http_url
from midapi_async.tasks import TaskDetails, TaskStatus

CREATED = datetime(2025, 10, 16, 9, 51, 46, tzinfo=UTC)
WHOLE = TaskDetails(
    task_id="t1",
    task_type="mj_txt2img",
    status=TaskStatus.SUCCEEDED,
    urls=("https://x/0.jpeg", "https://x/1.jpeg"),
    params={"prompt": "a fox", "videoBatchSize": 1},
    created_at=CREATED,
    completed_at=CREATED + timedelta(seconds=67),
    error_code=None,
    error_message=None,
    raw={"taskId": "t1", "successFlag": 1},
)


@pytest.mark.fault("P4")
@pytest.mark.parametrize(
    ("status", "urls", "expected"),
    [
        (TaskStatus.GENERATING, (), False),
        (TaskStatus.GENERATING, ("https://x/0",), False),
        (TaskStatus.SUCCEEDED, (), False),
        (TaskStatus.SUCCEEDED, ("https://x/0",), True),
        (TaskStatus.FAILED, (), True),
    ],
)
def test_a_success_is_final_with_its_files(
    status: TaskStatus, urls: tuple[str, ...], expected: bool
) -> None:
    """A success without URLs is not there yet; a failure is final as it is."""
    assert expected is TaskDetails(task_id="t", status=status, urls=urls).is_final


def test_duration_needs_both_ends() -> None:
    """None until the task is finished."""
    assert timedelta(seconds=67) == WHOLE.duration
    assert attrs.evolve(WHOLE, completed_at=None).duration is None
    assert attrs.evolve(WHOLE, created_at=None).duration is None


def test_nothing_can_be_changed() -> None:
    """Not a field, not an entry of a mapping; and the caller's own dict is not the snapshot's."""
    mine: dict[str, object] = {"prompt": "a fox"}
    details = TaskDetails(task_id="t", params=mine, raw=mine)
    mine["prompt"] = "a wolf"
    assert details.params == {"prompt": "a fox"}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        details.task_id = "u"  # type: ignore[misc]  # what is tested
    for mapping in (details.params, details.raw):
        with pytest.raises(TypeError):
            mapping["prompt"] = "a wolf"  # type: ignore[index]  # what is tested


def test_equal_by_value_hashable_and_raw_aside() -> None:
    """Two looks that say the same are equal, also where MidAPI's raw text differs."""
    same = attrs.evolve(WHOLE, raw={})
    assert same == WHOLE
    assert hash(same) == hash(WHOLE)
    assert attrs.evolve(WHOLE, params={}) != WHOLE


def test_the_repr_leaves_raw_out() -> None:
    """It is long, and says nothing that the fields do not."""
    assert "raw" not in repr(WHOLE)
    assert "a fox" in repr(WHOLE)


@pytest.mark.parametrize(
    "travel",
    [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))],  # noqa: S301 - ours
    ids=["copy", "deepcopy", "pickle"],
)
def test_it_travels_whole(travel: Callable[[TaskDetails], TaskDetails]) -> None:
    """Copied or pickled it is equal, its raw too, and still read-only."""
    arrived = travel(WHOLE)
    assert arrived == WHOLE
    assert arrived.raw == WHOLE.raw
    with pytest.raises(TypeError):
        arrived.raw["x"] = 1  # type: ignore[index]  # what is tested


def test_to_dict_is_json() -> None:
    """Every field but raw, with plain values; what is not there is null."""
    assert json.loads(json.dumps(WHOLE.to_dict(), allow_nan=False)) == {
        "task_id": "t1",
        "task_type": "mj_txt2img",
        "status": "succeeded",
        "urls": ["https://x/0.jpeg", "https://x/1.jpeg"],
        "params": {"prompt": "a fox", "videoBatchSize": 1},
        "created_at": "2025-10-16T09:51:46+00:00",
        "completed_at": "2025-10-16T09:52:53+00:00",
        "duration": 67.0,
        "error_code": None,
        "error_message": None,
    }
    empty = json.loads(json.dumps(TaskDetails(task_id="t").to_dict()))
    assert {k for k, v in empty.items() if v is not None} == {"task_id", "status", "urls", "params"}


def test_to_dict_is_a_copy() -> None:
    """Who changes it changes nothing of the snapshot."""
    told = WHOLE.to_dict()
    params = told["params"]
    assert isinstance(params, dict)
    params["prompt"] = "a wolf"
    assert WHOLE.params["prompt"] == "a fox"


def test_a_duration_of_zero_is_not_nothing() -> None:
    """Zero seconds is a number."""
    assert attrs.evolve(WHOLE, completed_at=CREATED).to_dict()["duration"] == 0.0


# ─── in a notebook ───────────────────────────────────────────────────────────────────────────────


class Shown(HTMLParser):
    """What a browser makes of a page: its elements in order, and its text."""

    def __init__(self, details: TaskDetails) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(details._repr_html_())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_notebook_shows_the_files() -> None:
    """Pictures are loaded when they are scrolled to, and videos can be played; queries are kept."""
    urls = ("https://x/0.jpeg", "https://x/1.MP4?a=1&b=2", "http://x/2", "javascript:alert(1)")
    shown = Shown(attrs.evolve(WHOLE, urls=urls))
    assert [image["src"] for image in shown.of("img")] == ["https://x/0.jpeg", "http://x/2"]
    for image in shown.of("img"):
        assert (image["loading"], image["referrerpolicy"]) == ("lazy", "no-referrer")
        assert int(image["width"] or 0) > 0
    [video] = shown.of("video")
    assert video["src"] == "https://x/1.MP4?a=1&b=2"
    assert "controls" in video
    assert "t1 succeeded" in shown.text
    assert "a fox" in shown.text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"status": TaskStatus.GENERATING, "urls": ()}, "Task t1 is generating"),
        (
            {"status": TaskStatus.FAILED, "urls": (), "error_code": 500, "error_message": "busy"},
            "Task t1 failed: 500 busy",
        ),
        ({"params": {"prompt": ["no", "text"]}}, "Task t1 succeeded"),
    ],
)
def test_a_notebook_shows_the_state_in_words(changes: dict[str, object], text: str) -> None:
    """Where there is no picture."""
    assert text in Shown(attrs.evolve(WHOLE, **changes)).text  # type: ignore[arg-type]


@pytest.mark.fault("D12")
def test_a_notebook_shows_texts_as_plain_text() -> None:
    """Tags, quotes, direction marks and controls of a prompt or a message, and endless ones."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>'\"&amp;\u202egnp\x1b[31m\n"
    details = TaskDetails(
        task_id="t1",
        status=TaskStatus.FAILED,
        params={"prompt": evil},
        error_code=evil,
        error_message=evil * 100,
    )
    shown = Shown(details)
    assert {tag for tag, _ in shown.elements} == {"div", "p", "br", "em"}
    assert shown.text.count("<script>alert(1)</script><img src=x onerror=alert(1)>'\"&amp;") > 2
    assert "\u202e" not in details._repr_html_()
    assert "\x1b" not in details._repr_html_()
    assert len(shown.text) < 1200


texts = st.text(alphabet=st.sampled_from("<>'\"&/= \n\u202e\ud800abchtps:.script"), max_size=60)


@pytest.mark.fault("D12")
@given(texts, texts, st.lists(texts.map("https://x/".__add__), max_size=3))
def test_no_text_becomes_an_element(prompt: str, message: str, urls: list[str]) -> None:
    """Whatever MidAPI sends, the page has our elements and their attributes."""
    details = TaskDetails(
        task_id="t1",
        status=TaskStatus.SUCCEEDED,
        urls=tuple(urls),
        params={"prompt": prompt},
        error_message=message,
    )
    shown = Shown(details)
    allowed = {"src", "width", "loading", "referrerpolicy", "alt", "controls", "preload"}
    for tag, attributes in shown.elements:
        assert tag in {"div", "p", "br", "em", "img", "video"}
        assert set(attributes) <= allowed
    sources = [image["src"] for image in shown.of("img") + shown.of("video")]
    assert sorted(filter(None, sources)) == sorted(filter(is_http_url, urls))


# ─── JSON encoders ───────────────────────────────────────────────────────────────────────────────


def _pydantic(value: object) -> str:
    from pydantic import TypeAdapter

    return TypeAdapter(dict[str, object]).dump_json(value).decode()  # type: ignore[arg-type]


def _fastapi(value: object) -> str:
    from fastapi.encoders import jsonable_encoder

    return json.dumps(jsonable_encoder(value))


def _starlette(value: object) -> str:
    from starlette.responses import JSONResponse

    return bytes(JSONResponse(value).body).decode()


def _django(value: object) -> str:
    from django.core.serializers.json import DjangoJSONEncoder  # type: ignore[import-untyped]  # it has no types

    return json.dumps(value, cls=DjangoJSONEncoder)


def _msgspec(value: object) -> str:
    import msgspec.json

    return msgspec.json.encode(value).decode()


def _litestar(value: object) -> str:
    from litestar.serialization import encode_json

    return encode_json(value).decode()


def _aiohttp(value: object) -> str:
    from aiohttp import web

    return str(web.json_response(value).text)


ENCODERS: dict[str, Callable[[object], str]] = {
    "json": json.dumps,
    "strict json": lambda value: json.dumps(value, allow_nan=False),
    "Pydantic": _pydantic,
    "FastAPI": _fastapi,
    "Starlette": _starlette,
    "Django": _django,
    "msgspec": _msgspec,
    "Litestar": _litestar,
    "aiohttp": _aiohttp,
}
SNAPSHOTS = {
    "whole": WHOLE,
    "generating": TaskDetails(task_id="t1"),
    "failed": attrs.evolve(
        WHOLE, status=TaskStatus.FAILED, urls=(), error_code=500, error_message="no"
    ),
    "nested": attrs.evolve(
        WHOLE, params={"list": [{"a": (1, 2.5, None, True)}], "map": MappingProxyType({"b": "ü"})}
    ),
    "half a character": attrs.evolve(WHOLE, params={"prompt": "fox \ud83e", "\ud83e": ["\udd8a"]}),
}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_every_json_encoder_takes_to_dict(encoder: str, snapshot: str) -> None:
    """Those of web frameworks, too, and they all write the same; it can be sent as UTF-8."""
    told = SNAPSHOTS[snapshot].to_dict()
    written = ENCODERS[encoder](told)
    written.encode()
    assert json.loads(written) == told


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_status_is_a_string_for_every_json_encoder(encoder: str) -> None:
    """It is a `StrEnum`, so it needs no `.value`."""
    written = ENCODERS[encoder]({"status": TaskStatus.SUCCEEDED})
    assert json.loads(written) == {"status": "succeeded"}


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    """Everything else is as MidAPI has stored it."""
    told = SNAPSHOTS["half a character"].to_dict()
    assert told["params"] == {"prompt": "fox ?", "?": ["?"]}
