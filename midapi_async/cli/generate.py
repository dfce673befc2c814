"""``midapi generate``: submit each of the eight kinds of request, wait, and download."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import attrs
from cyclopts import App, Parameter

from midapi_async import (
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    InvalidRequestError,
    OmniReference,
    Request,
    StyleReference,
    TaskDetails,
    TextToImage,
    UploadedURL,
    Upscale,
    Vary,
    request_from_json,
    request_to_json,
)
from midapi_async.events import Accepted
from midapi_async.files.folders import make_folder
from midapi_async.handle import check_seconds
from midapi_async.requests import check_arguments, paths_of

from . import _env
from ._common import Output, download, into, print_result, run_async, say_success, wait
from ._errors import usage_error
from ._files import is_file, picture_of, pictures_of, upload_pictures, with_files
from ._interrupt import submit
from ._options import (
    PICTURE,
    VIDEO,
    Picture,
    Result,
    Service,
    UploadService,
    Video,
    given,
    is_stdin,
    parse_extra,
    parse_metadata,
)
from ._progress import Progress
from ._receiving import receiving
from ._terminal import out, out_json, say, seconds

generate = App(name="generate", sort_key=2)

TaskId = Annotated[str, Parameter(name="TASK")]
Index = Annotated[int, Parameter(name="INDEX")]
Pictures = Annotated[list[str], Parameter(name="PICTURE")]
Prompt = Annotated[str, Parameter(name="PROMPT")]


def _several(name: str) -> str:
    return f"Usage: midapi generate {name} [OPTIONS] PROMPT PICTURE [PICTURE ...]"


def usage_of(name: str) -> str:
    """The usage of a command for one of the pictures of a task."""
    return f"Usage: midapi {name} [OPTIONS] PICTURE | TASK INDEX"


_PICTURE, _VIDEO, _RESULT = Picture(), Video(), Result()
_SERVICE, _UPLOADS, _OUTPUT = Service(), UploadService(), Output()


@generate.default
def text(
    prompt: Annotated[str | None, Parameter(name="PROMPT")] = None,
    /,
    *,
    from_json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    picture: Picture = _PICTURE,
    result: Result = _RESULT,
    service: Service = _SERVICE,
    output: Output = _OUTPUT,
) -> int:
    """Submit a request, wait for its pictures and download them. This costs credits.

    A prompt alone makes four pictures: midapi generate "a red fox in the snow". The commands below
    submit the other seven kinds of request. Results go to stdout, everything else to stderr.

    Args:
        prompt: What to draw; - reads it from stdin. Put -- before a prompt that is also the name of
            a command.
        from_json: A file with a whole request as JSON, spelt as in MidAPI's documentation; - reads
            it from stdin.
    """
    if from_json is None:
        if prompt is None:
            raise usage_error('The prompt is missing: midapi generate "a red fox", or see --help')
        if "." in prompt and is_file(prompt):
            command = f"midapi generate image PROMPT {shlex.quote(prompt)}"
            raise usage_error(f"The prompt is the name of a file. To start from it: {command}")
        return _submit(TextToImage(_prompt(prompt), **given(picture)), result, service, output)
    if prompt is not None or given(picture):
        raise usage_error(
            "--from-json is the whole request: no prompt or other field may be given with it"
        )
    return _submit(_read_request(from_json), result, service, output)


@generate.command(sort_key=1, usage=_several("image"))
def image(
    prompt: Prompt,
    pictures: Pictures,
    /,
    *,
    picture: Picture = _PICTURE,
    result: Result = _RESULT,
    service: UploadService = _UPLOADS,
    output: Output = _OUTPUT,
) -> int:
    """Four pictures from a prompt and other pictures.

    Args:
        prompt: What to draw; - reads it from stdin.
        pictures: The pictures to start from, one or several: files, which are uploaded, or http(s)
            URLs that MidAPI can reach.
    """
    request = ImageToImage(_prompt(prompt), pictures_of(pictures), **given(picture))
    return _submit(request, result, service, output)


@generate.command(sort_key=2, usage=_several("style"))
def style(
    prompt: Prompt,
    pictures: Pictures,
    /,
    *,
    picture: Picture = _PICTURE,
    result: Result = _RESULT,
    service: UploadService = _UPLOADS,
    output: Output = _OUTPUT,
) -> int:
    """Four pictures from a prompt, in the style of other pictures.

    Args:
        prompt: What to draw; - reads it from stdin.
        pictures: The pictures whose style to take, one or several: files, which are uploaded, or
            http(s) URLs that MidAPI can reach.
    """
    request = StyleReference(_prompt(prompt), pictures_of(pictures), **given(picture))
    return _submit(request, result, service, output)


@generate.command(sort_key=3, usage=_several("omni"))
def omni(
    prompt: Prompt,
    pictures: Pictures,
    /,
    *,
    ow: Annotated[int | None, Parameter(group=PICTURE)] = None,
    picture: Picture = _PICTURE,
    result: Result = _RESULT,
    service: UploadService = _UPLOADS,
    output: Output = _OUTPUT,
) -> int:
    """Four pictures from a prompt, with a person or thing of another picture in them.

    Args:
        prompt: What to draw; - reads it from stdin.
        pictures: The pictures of that person or thing, one or several: files, which are uploaded,
            or http(s) URLs that MidAPI can reach.
        ow: How closely to follow these pictures (the omni weight), 1 to 1000; MidAPI chooses if not
            given.
    """
    request = OmniReference(_prompt(prompt), pictures_of(pictures), ow=ow, **given(picture))
    return _submit(request, result, service, output)


@generate.command(sort_key=4)
def video(
    prompt: Prompt,
    picture: Annotated[str, Parameter(name="PICTURE")],
    /,
    *,
    video: Video = _VIDEO,
    result: Result = _RESULT,
    service: UploadService = _UPLOADS,
    output: Output = _OUTPUT,
) -> int:
    """Videos from a picture and a prompt.

    Args:
        prompt: What should happen; - reads it from stdin.
        picture: The picture that comes alive: a file, which is uploaded, or an http(s) URL that
            MidAPI can reach.
    """
    request = ImageToVideo(_prompt(prompt), pictures_of([picture]), **given(video))
    return _submit(request, result, service, output)


@generate.command(sort_key=5, usage=usage_of("generate upscale"))
def upscale(
    task: TaskId,
    index: Annotated[int | None, Parameter(name="INDEX")] = None,
    /,
    *,
    water_mark: Annotated[str | None, Parameter(group=PICTURE)] = None,
    result: Result = _RESULT,
    service: Service = _SERVICE,
    output: Output = _OUTPUT,
) -> int:
    """One of the four pictures of a task, larger. This costs credits.

    Args:
        task: The id of the finished task. Or, without INDEX, one of its downloaded pictures: its
            name says both, or else the JSON file beside it that --sidecar writes.
        index: Which of its pictures, 0 to 3; left out with a downloaded picture.
        water_mark: A text that marks the picture; none if not given.
    """
    request = Upscale(*picture_of(task, index), water_mark=water_mark)
    return _submit(request, result, service, output)


@generate.command(sort_key=6, usage=usage_of("generate vary"))
def vary(
    task: TaskId,
    index: Annotated[int | None, Parameter(name="INDEX")] = None,
    /,
    *,
    water_mark: Annotated[str | None, Parameter(group=PICTURE)] = None,
    result: Result = _RESULT,
    service: Service = _SERVICE,
    output: Output = _OUTPUT,
) -> int:
    """Variations of one of the four pictures of a task. This costs credits.

    Args:
        task: The id of the finished task. Or, without INDEX, one of its downloaded pictures: its
            name says both, or else the JSON file beside it that --sidecar writes.
        index: Which of its pictures; left out with a downloaded picture. MidAPI documents it both
            as 0 to 3 and as 1 to 4; it is sent unchanged.
        water_mark: A text that marks each picture; none if not given.
    """
    request = Vary(*picture_of(task, index), water_mark=water_mark)
    return _submit(request, result, service, output)


@generate.command(sort_key=7)
def extend(
    task: TaskId,
    index: Index,
    prompt: Annotated[str | None, Parameter(name="PROMPT")] = None,
    /,
    *,
    water_mark: Annotated[str | None, Parameter(group=VIDEO)] = None,
    result: Result = _RESULT,
    service: Service = _SERVICE,
    output: Output = _OUTPUT,
) -> int:
    """One of the videos of a task, longer.

    Args:
        task: The id of the finished video task.
        index: Which of its videos, counted from 0.
        prompt: What should happen next; - reads it from stdin; Midjourney chooses if not given.
        water_mark: A text that marks the video; none if not given.
    """
    request = ExtendVideo(task, index, prompt and _prompt(prompt), water_mark=water_mark)
    return _submit(request, result, service, output)


def _submit(request: Request, result: Result, service: Service, output: Output) -> int:
    metadata = parse_metadata(result.metadata)
    if result.extra:
        extra = {**request.extra, **parse_extra(result.extra)}
        request = attrs.evolve(request, extra=extra)
    if result.timeout is not None:
        check_seconds(result.timeout, "timeout")
    if isinstance(request, ImageToVideo):
        result.naming.check(request.video_batch_size)
    else:
        result.naming.check(1 if isinstance(request, Upscale | ExtendVideo) else 4)
    if result.dry_run:
        check_arguments(result.key, metadata, None)
        _print_body(request, output)
        return 0
    if result.wait and result.download:
        make_folder(result.folder)  # before anything is bought
    return run_async(_carry_out(request, metadata, result, service, output), output)


async def _carry_out(
    request: Request,
    metadata: dict[str, str],
    result: Result,
    service: Service,
    output: Output,
) -> None:
    progress = Progress(scale=_env.time_scale())
    async with receiving(service, progress.take) as (client, _):
        progress.expected = usual = client.expected(request).median
        async with progress:
            request = await upload_pictures(client, request, result.key, progress)
            handle = await submit(
                client, request, key=result.key, metadata=metadata, patience=result.timeout
            )
            if handle.replayed:
                say(f"Task {handle.task_id} was submitted before with this key; nothing is bought.")
                # No event of this client names the task.
                progress.take(Accepted(task_id=handle.task_id))
            else:
                task = f"Task {handle.task_id} was submitted"
                say(f"{task}; such a task takes about {seconds(usual)}.")
            details = await wait(handle, result.timeout) if result.wait else None
        named = {"key": handle.key, "metadata": metadata, "intent_id": handle.intent_id}
        if details is None:
            _print_task(handle.task_id, result.folder, output, named)
            return
        say_success(details)
        files: list[Path] = []
        if result.download:
            files = await download(client, details, result.folder, progress, result.naming)
        print_result(details, files, output, **named)


def _print_body(request: Request, output: Output) -> None:
    """Print what would be sent, in MidAPI's spelling, with a remark in place of each upload."""
    paths = paths_of(request)
    unsent = {index: UploadedURL("https://not-uploaded.invalid/") for index in paths}
    body = request_to_json(with_files(request, unsent), as_sent=True)
    if isinstance(urls := body.get("fileUrls"), list) and "fileUrls" not in request.extra:
        for index, path in paths.items():
            urls[index] = f"(upload of {path})"
    if output.as_json:
        out_json(body)
    else:
        for line in json.dumps(body, indent=2, ensure_ascii=False).split("\n"):
            # As JSON escapes them: no terminal must act on a prompt's control characters.
            out("".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line))
    files = ", ".join(map(str, paths.values()))
    first = f" These files would be uploaded first: {files}." if files else ""
    more = " A callBackUrl would be added." if _env.asks_for_callbacks() else ""
    say(f"Nothing was sent.{first}{more}")


def _print_task(task_id: str, folder: Path, output: Output, named: Mapping[str, object]) -> None:
    if output.as_json:
        print_result(TaskDetails(task_id=task_id), [], output, **named)
    else:
        out(task_id)
        say(f"Come back with: midapi task {task_id} --wait --download{into(folder)}")


def _prompt(text: str) -> str:
    """The prompt, from stdin if it is a dash.

    Raises:
        InvalidRequestError: stdin cannot be read, or is not text.
    """
    if not is_stdin(text):
        return text
    try:
        if sys.stdin.isatty():
            say("Type the prompt; Ctrl-D at the beginning of a line ends it.")
        return sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except (AttributeError, OSError, UnicodeDecodeError) as error:  # None if it was closed
        problem = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise InvalidRequestError({"prompt": f"stdin cannot be read: {problem}"}) from None


def _read_request(source: str) -> Request:
    """The request in a JSON file, or on stdin.

    Raises:
        InvalidRequestError: it cannot be read, or is not a request.
    """
    try:
        raw = sys.stdin.buffer.read() if is_stdin(source) else Path(source).read_bytes()
        body = json.loads(raw)
    except OSError as error:
        problem = f"{source!r} cannot be read: {error.strerror}"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError as error:  # not JSON, or not UTF-8
        problem = f"is not valid JSON: {error}"
    else:
        return _request(body)
    raise InvalidRequestError({"from-json": problem})


def _request(body: object) -> Request:
    if not isinstance(body, dict):
        raise InvalidRequestError({"from-json": "must be a JSON object, as MidAPI documents it"})
    if "imageIndex" in body and "taskType" not in body:
        raise InvalidRequestError(
            {"taskType": "is missing: mj_upscale and mj_vary look alike, so add one of these two"}
        )
    return request_from_json(body)
