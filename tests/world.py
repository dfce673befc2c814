"""What most tests of the client need: MidAPI's answers in a few words, and the invariants."""

import itertools
import json
import time
from collections.abc import Callable

from midapi_async import MemoryJournal, MidAPIClient, State, TaskDetails
from midapi_async.config import Settings, settings
from tests.support.scripted import Answer, Play, Received, ScriptedServer, reply
from tests.support.secrets import API_KEY, assert_none_in

TASK = "0f3a" * 8
URLS = tuple(f"https://tempfile.aiquickdraw.com/m/{TASK}_0_{n}.jpeg" for n in range(4))


def ok(data: object) -> Answer:
    """An answer with code 200."""
    return reply(json={"code": 200, "msg": "success", "data": data})


def accepted(task_id: str = TASK) -> Answer:
    """A submission that was accepted."""
    return ok({"taskId": task_id})


def refused(code: int, msg: str = "no", status: int = 200, **headers: str) -> Answer:
    """An error in MidAPI's envelope."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return reply(
        status, json={"code": code, "msg": msg, "data": None}, headers=named, accepted=False
    )


def record(task_id: str = TASK, flag: object = 1, **fields: object) -> dict[str, object]:
    """The data of record-info, as recorded, of a task of just now that took 67 s if it is done."""
    done = flag in (1, 2, 3)
    created = int(time.time() * 1000)
    return {
        "taskId": task_id,
        "taskType": "mj_txt2img",
        "paramJson": json.dumps({"prompt": "a red fox", "speed": "fast"}),
        "completeTime": created + 67_000 if done else None,
        "resultInfoJson": (
            {"resultUrls": [{"resultUrl": url} for url in URLS]} if flag == 1 else None
        ),
        "successFlag": flag,
        "createTime": created,
        "errorCode": None,
        "errorMessage": None,
    } | fields


def looked(task_id: str = TASK, flag: object = 1, **fields: object) -> Answer:
    """An answered look."""
    return ok(record(task_id, flag, **fields))


def selling() -> Callable[[Received], Answer]:
    """A step that gives each submission a task id of its own, and shows each task as finished."""
    count = itertools.count()

    def step(request: Received) -> Answer:
        if request.method == "POST":
            return accepted(f"{next(count):032x}")
        return looked(request.target.rpartition("=")[2])

    return step


def mid(
    submit: Play | None = None, look: Play | None = None, other: Play | None = None
) -> Callable[[Received], Answer]:
    """A step that answers by path: every submit, look and other request the same."""

    def step(request: Received) -> Answer:
        kind = submit if request.method == "POST" else look
        kind = other if kind is None else kind
        assert kind is not None, f"nobody expected {request.method} {request.target}"
        return kind(request) if callable(kind) else kind  # type: ignore[return-value]

    return step


def client_of(server: ScriptedServer | str, **options: object) -> MidAPIClient:
    """A client of a server, without a limit of its own unless one is asked for."""
    url = server if isinstance(server, str) else server.url
    chosen: dict[str, object] = {"rate_limit": None, **options}
    return MidAPIClient(API_KEY, base_url=url, **chosen)  # type: ignore[arg-type]


def settings_of(server: ScriptedServer) -> Settings:
    """The settings of such a client."""
    return settings(API_KEY, server.url)


def submits(server: ScriptedServer) -> list[Received]:
    """The POSTs that arrived, whole or not."""
    return [request for request in server.requests if request.method == "POST"]


def looks(server: ScriptedServer) -> list[Received]:
    """The looks that arrived."""
    return [request for request in server.requests if request.path.endswith("record-info")]


async def assert_nothing_lost(
    server: ScriptedServer, journal: MemoryJournal, scope: str | None = None
) -> None:
    """I1 and I2 for a world in which one intent was submitted."""
    posted = [request for request in server.accepted if request.method == "POST"]
    rows = await journal.rows(scope or f"{server.url} default")
    assert len(posted) <= 1, "paid twice"
    if posted:
        known = [row for row in rows if row.task_id is not None]
        unknown = [row for row in rows if row.state in (State.UNKNOWN, State.SENDING)]
        assert known or unknown, f"lost: {rows}"


def assert_secrets_are_kept(details: TaskDetails) -> None:
    """I5 for a snapshot."""
    assert_none_in(details, details.to_dict(), details.raw, dict(details.params))
