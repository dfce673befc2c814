"""From a submit's body to an order: checks, pictures, price and duration."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Final, final

from midapi_async.sandbox import _wire
from midapi_async.sandbox._envelope import Refused
from midapi_async.sandbox._hints import Failure, Outcome, read_hints
from midapi_async.sandbox._pictures import Picture
from midapi_async.sandbox._rules import check_body, file_urls, is_web_url
from midapi_async.sandbox._tasks import Order, Task, Tasks

Table = Mapping[tuple[str, str], float]

_JITTER: Final = 0.15
_PICTURES_OF_A_TASK: Final = 4
# The server stores these with every generate, asked or not.
_FILLED_IN: Final[Mapping[str, object]] = {
    "enableTranslation": True,
    "motion": "high",
    "videoBatchSize": 1,
}


def checked_table(name: str, table: Table | None) -> dict[tuple[str, str], float]:
    """Give a copy of a table of numbers by (task type, speed).

    Raises ValueError that names the table for a key or a number that cannot be meant.
    """
    known = (*_wire.IMAGE_TYPES, *_wire.MOVING_TYPES, _wire.UPSCALE_TYPE, _wire.VARY_TYPE)
    for (task_type, speed), value in (table or {}).items():
        if task_type not in (*known, _wire.ANY):
            message = f"{name}: unknown task type {task_type!r}; choose from {', '.join(known)}, *"
            raise ValueError(message)
        if speed not in (*_wire.SPEEDS, _wire.ANY):
            message = f"{name}: unknown speed {speed!r}; choose from {', '.join(_wire.SPEEDS)}, *"
            raise ValueError(message)
        if not 0 <= value < float("inf"):
            message = f"{name}: {value!r} for {task_type}, {speed} is not a number of at least 0"
            raise ValueError(message)
    return dict(table or {})


@final
class Orders:
    """Reads submits for one sandbox: its tasks, its prices, its durations."""

    def __init__(
        self,
        tasks: Tasks,
        owns_file: Callable[[str, str], bool | None],
        *,
        prices: Table | None,
        durations: Table | None,
        seed: int,
    ) -> None:
        """Keep the tables; ValueError when one cannot be meant.

        ``owns_file`` says whether a URL is a living file of this sandbox, None when it is not
        of this origin.
        """
        self._tasks = tasks
        self._owns_file = owns_file
        self._prices = checked_table("prices", prices)
        self._durations = checked_table("durations", durations)
        self._chance = Random(f"{seed}/durations")

    def read(self, path: str, body: Mapping[str, object], origin: str) -> Order:
        """Give the order that a submit's body is; raises the refusal of the service."""
        params = check_body(path, body)
        parent = self._parent(path, params)
        task_type = _task_type(path, params)
        speed = str(params.get("speed") or _wire.DEFAULT_SPEED)
        pictures = _pictures(path, params, parent)
        price = _look_up(self._prices, _wire.PRICES, task_type, speed)
        callback_url = params.get("callBackUrl")
        return Order(
            path=path,
            task_type=task_type,
            speed=speed,
            params=_stored(path, params),
            pictures=pictures,
            price=price * (len(pictures) if task_type in _wire.VIDEO_TYPES else 1),
            outcome=self._outcome(task_type, speed, params, origin),
            callback_url=str(callback_url) if callback_url else None,
            origin=origin,
        )

    def _parent(self, path: str, params: Mapping[str, object]) -> Task | None:
        """Give the task that an upscale, a variation or an extension goes on from."""
        if path == _wire.GENERATE:
            return None
        parent = self._tasks.find(str(params["taskId"]))
        if parent is None:
            raise Refused(_wire.UNPROCESSABLE, f"taskId: {_wire.RECORD_IS_NULL}")
        if parent.flag != _wire.SUCCEEDED:
            raise Refused(_wire.UNPROCESSABLE, "taskId must be a task that has succeeded")
        if parent.order.moving is not (path == _wire.EXTEND):
            kind = "a video" if path == _wire.EXTEND else "an image"
            raise Refused(_wire.UNPROCESSABLE, f"taskId must be {kind} task")
        _check_place(path, params, len(parent.order.pictures))
        return parent

    def _outcome(
        self, task_type: str, speed: str, params: Mapping[str, object], origin: str
    ) -> Outcome:
        """Give what becomes of the task: a jittered duration, then what its prompt asks."""
        factor = self._chance.lognormvariate(0, _JITTER)
        mine = _look_up(self._durations, {}, task_type, speed, default=-1)
        usual = _look_up({}, _wire.DURATIONS, task_type, speed)
        outcome = Outcome(usual * factor if mine < 0 else mine)
        references = () if task_type == "mj_txt2img" else file_urls(params)
        if not all(self._reachable(url, origin) for url in references):
            failure = Failure(message=_wire.CANNOT_FETCH)
            outcome = Outcome(outcome.seconds, failure)
        return read_hints(str(params.get("prompt") or ""), outcome)

    def _reachable(self, url: str, origin: str) -> bool:
        # A picture that cannot be fetched is no error at submit: the task fails later.
        return is_web_url(url) and self._owns_file(url, origin) is not False


def _look_up(mine: Table, usual: Table, task_type: str, speed: str, default: float = 0.0) -> float:
    """Give the closest entry: the exact one, its type's, its speed's; mine before the usual."""
    keys = ((task_type, speed), (task_type, _wire.ANY), (_wire.ANY, speed), (_wire.ANY, _wire.ANY))
    for table in (mine, usual):
        for key in keys:
            if key in table:
                return table[key]
    return default


def _check_place(path: str, params: Mapping[str, object], count: int) -> None:
    """Check that the picture or video is there; a variation may count from 0 or from 1."""
    name = "index" if path == _wire.EXTEND else "imageIndex"
    last = count if path == _wire.VARY else count - 1
    place = params[name]
    if isinstance(place, int) and place > last:
        raise Refused(_wire.UNPROCESSABLE, f"{name} must be between 0 and {last}")


def _task_type(path: str, params: Mapping[str, object]) -> str:
    fixed = {_wire.UPSCALE: _wire.UPSCALE_TYPE, _wire.VARY: _wire.VARY_TYPE}
    return fixed.get(path) or str(params["taskType"])


def _pictures(path: str, params: Mapping[str, object], parent: Task | None) -> tuple[Picture, ...]:
    """Give what the task's files will show."""
    if parent is None:
        prompt, ratio = str(params["prompt"]), str(params.get("aspectRatio") or "1:1")
        moving = params["taskType"] in _wire.VIDEO_TYPES
        count = _number(params, "videoBatchSize", 1) if moving else _PICTURES_OF_A_TASK
        return tuple(Picture(prompt, n, ratio) for n in range(count))
    shown = parent.order.pictures
    if path == _wire.EXTEND:
        prompt = str(params.get("prompt") or parent.order.prompt)
        return (Picture(f"{prompt} (extended)", 0, shown[0].aspect_ratio),)
    place = min(_number(params, "imageIndex", 0), len(shown) - 1)
    prompt, ratio = shown[place].prompt, shown[place].aspect_ratio
    if path == _wire.UPSCALE:
        return (Picture(f"{prompt} (upscaled #{shown[place].index})", 0, ratio),)
    varied = f"{prompt} (variation of #{shown[place].index})"
    return tuple(Picture(varied, n, ratio) for n in range(_PICTURES_OF_A_TASK))


def _number(params: Mapping[str, object], name: str, default: int) -> int:
    value = params.get(name, default)
    return value if isinstance(value, int) else default


def _stored(path: str, params: Mapping[str, object]) -> dict[str, object]:
    """Give the request as paramJson keeps it: sorted, with what the server fills in."""
    filled_in = dict(_FILLED_IN) if path == _wire.GENERATE else {}
    if params.get("taskType") == "mj_omni_reference":
        filled_in["speed"] = _wire.DEFAULT_SPEED
    return dict(sorted({**filled_in, **params}.items()))
