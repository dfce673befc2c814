"""Snapshots of tasks: immutable, comparable, safe to store."""

import copy
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import attrs
import pytest

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
