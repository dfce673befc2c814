"""How a task looks on the wire: record-info and the callbacks."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, final

from midapi_async.sandbox import _wire
from midapi_async.sandbox._tasks import Task

Shape = Literal["recorded", "documented"]


@final
class Records:
    """Writes tasks down in one of the two shapes.

    "recorded" is what was seen on the wire: integer milliseconds, all of whole seconds.
    "documented" is what the vendor's pages show: ISO strings, and the speed spelt "Relax".
    """

    def __init__(self, shape: Shape, stamp: Callable[[float], int]) -> None:
        """Write in this shape; ``stamp`` turns the clock's moments into epoch milliseconds."""
        self._documented = shape == "documented"
        self._stamp = stamp

    def record(self, task: Task) -> dict[str, object]:
        """Give the data of a look at the task."""
        failure = task.failure
        return {
            "taskId": task.id,
            "taskType": task.order.task_type,
            "paramJson": self.param_json(task),
            "completeTime": self._end(task),
            "resultInfoJson": _result_info(task) if task.urls else None,
            "successFlag": task.flag,
            "createTime": self._time(self._created(task)),
            "errorCode": failure.code if failure else None,
            "errorMessage": failure.message if failure else None,
        }

    def param_json(self, task: Task) -> str:
        """Give the request as it was stored, which is a JSON text."""
        params = dict(task.order.params)
        if self._documented and isinstance(speed := params.get("speed"), str):
            params["speed"] = _wire.DOCUMENTED_SPEEDS.get(speed, speed)
        return json.dumps(params, ensure_ascii=False, separators=(",", ":"))

    def acknowledgement(self, task: Task) -> dict[str, object]:
        """Give the callback that says no more than that there is a task."""
        data = {"taskId": task.id, "promptJson": self.param_json(task)}
        return {"code": _wire.OK, "msg": _wire.TEXTS[_wire.OK], "data": data}

    def callback(self, task: Task, urls: tuple[str, ...]) -> dict[str, object]:
        """Give the callback of a task that has ended, with plain URLs."""
        failed = task.failure is not None
        data = {
            "taskId": task.id,
            "promptJson": self.param_json(task),
            "resultUrls": [] if failed else list(urls),
        }
        return {**_outcome(task, failed=failed), "data": data}

    def record_callback(self, task: Task, urls: tuple[str, ...]) -> dict[str, object]:
        """Give the callback that looks like record-info, its errorCode a string."""
        failure = task.failure
        data = self.record(task)
        if failure is None:
            data["resultInfoJson"] = {"resultUrls": [{"resultUrl": url} for url in urls]}
        code = failure.code if failure else None
        data["errorCode"] = "" if code is None else str(code)
        return {**_outcome(task, failed=failure is not None), "data": data}

    def _end(self, task: Task) -> int | str | None:
        if task.completed is None:
            return None
        # Not the end's own second, which may be one more than the duration that was asked for.
        # A float may fall short of its second by a hair.
        duration = int(task.completed - task.created + 1e-6)
        return self._time(self._created(task) + 1000 * duration)

    def _created(self, task: Task) -> int:
        return self._stamp(task.created) // 1000 * 1000

    def _time(self, stamp: int) -> int | str:
        if not self._documented:
            return stamp
        return datetime.fromtimestamp(stamp / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _result_info(task: Task) -> dict[str, object]:
    return {"resultUrls": [{"resultUrl": url} for url in task.urls]}


def _outcome(task: Task, *, failed: bool) -> dict[str, object]:
    if not failed:
        return {"code": _wire.OK, "msg": _wire.TEXTS[_wire.OK]}
    text = _wire.CALLBACK_VIDEO_FAILED if task.order.moving else _wire.CALLBACK_FAILED
    return {"code": _wire.SERVER_ERROR, "msg": text}
