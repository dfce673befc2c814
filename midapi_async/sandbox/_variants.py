"""Other ways in which the wire was seen to say the same thing: edits of a true answer.

Each takes the envelope of a success and gives the envelope to be sent. What does not concern
the answer (a flag, where there is none to be dropped) is left as it is.
"""

import json
from collections.abc import Callable, Mapping
from typing import Final

Envelope = dict[str, object]
Edit = Callable[[Envelope], Envelope]


def _on_data(change: Callable[[dict[str, object]], object]) -> Edit:
    """Change the envelope's data where it is an object."""

    def edit(envelope: Envelope) -> Envelope:
        data = envelope.get("data")
        return {**envelope, "data": change(data)} if isinstance(data, dict) else envelope

    return edit


def _set(**changes: object) -> Edit:
    return _on_data(lambda data: {**data, **changes})


def _drop(name: str) -> Edit:
    return _on_data(lambda data: {key: value for key, value in data.items() if key != name})


def _rename(old: str, new: str) -> Edit:
    return _on_data(lambda data: {(new if k == old else k): v for k, v in data.items()})


def data_of(envelope: Envelope) -> dict[str, object]:
    """Give the envelope's data; an empty object where it is something else."""
    data = envelope.get("data")
    return data if isinstance(data, dict) else {}


def _urls(envelope: Envelope) -> list[str]:
    info = data_of(envelope).get("resultInfoJson")
    urls = info.get("resultUrls") if isinstance(info, dict) else None
    return [str(item["resultUrl"]) for item in urls] if isinstance(urls, list) else []


def _result_info(make: Callable[[list[str]], object]) -> Edit:
    """Change what stands at resultInfoJson, where there are results."""

    def edit(envelope: Envelope) -> Envelope:
        urls = _urls(envelope)
        return _set(resultInfoJson=make(urls))(envelope) if urls else envelope

    return edit


def _codes_as_strings(envelope: Envelope) -> Envelope:
    flag = data_of(envelope).get("successFlag")
    edit = _on_data(dict) if flag is None else _set(successFlag=str(flag))
    return {**edit(envelope), "code": str(envelope["code"])}


def _urls_under_data(envelope: Envelope) -> Envelope:
    return _set(resultInfoJson=None, resultUrls=_urls(envelope))(envelope)


def _complete_time_set(envelope: Envelope) -> Envelope:
    data = data_of(envelope)
    return _set(completeTime=data.get("completeTime") or data.get("createTime"))(envelope)


def _error_code(envelope: Envelope, kind: type[int] | type[str]) -> Envelope:
    code = data_of(envelope).get("errorCode")
    return _set(errorCode=kind(str(code or 0)))(envelope)


def _objects(urls: list[str], name: str) -> dict[str, object]:
    return {"resultUrls": [{name: url} for url in urls]}


VARIANTS: Final[Mapping[str, Edit]] = {
    "codes_as_strings": _codes_as_strings,
    "flag_missing": _drop("successFlag"),
    "flag_null": _set(successFlag=None),
    "new_flag": _set(successFlag=7),
    "new_task_type": _set(taskType="mj_something_new"),
    "data_null": lambda envelope: {**envelope, "data": None},
    "data_as_string": lambda envelope: {**envelope, "data": json.dumps(envelope["data"])},
    "result_info_as_string": _result_info(lambda urls: json.dumps(_objects(urls, "resultUrl"))),
    "result_info_null": _set(resultInfoJson=None),
    "urls_as_strings": _result_info(lambda urls: {"resultUrls": urls}),
    "urls_as_url_objects": _result_info(lambda urls: _objects(urls, "url")),
    "urls_under_data": _urls_under_data,
    "no_urls": _result_info(lambda _: {"resultUrls": []}),
    "error_code_int": lambda envelope: _error_code(envelope, int),
    "error_code_string": lambda envelope: _error_code(envelope, str),
    "error_code_null": _set(errorCode=None),
    "complete_time_set": _complete_time_set,
    "another_task": _set(taskId="0" * 32),
    "snake_case_id": _rename("taskId", "task_id"),
    "file_url": _rename("downloadUrl", "fileUrl"),
}

BAD_TASK_IDS: Final[Mapping[str, Edit]] = {
    "missing": _drop("taskId"),
    "null": _set(taskId=None),
    "empty": _set(taskId=""),
    "number": _set(taskId=12345),
    "list": _set(taskId=["a"]),
    "huge": _set(taskId="a" * 10_240),
    "path": _set(taskId="../x"),
    "newline": _set(taskId="a\nb"),
}
