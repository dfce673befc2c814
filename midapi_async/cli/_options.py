"""Options in groups that several commands share, most of them those of ``midapi generate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
from cyclopts import Group, Parameter

from midapi_async import InvalidRequestError
from midapi_async.files import DEFAULT_NAME
from midapi_async.files.names import check_name
from midapi_async.requests import JSON, AspectRatio, Motion, Speed, VideoBatchSize

from . import _env

PICTURE, VIDEO = Group("Picture", sort_key=10), Group("Video", sort_key=10)


@Parameter(name="*", group=PICTURE)
@attrs.frozen(kw_only=True)
class Picture:
    """Options of a picture; MidAPI chooses what is not given.

    Attributes:
        speed: How soon MidAPI makes it, which decides the price; fast if not given.
        aspect_ratio: Width to height of each picture; MidAPI chooses if not given.
        version: Midjourney's model, as in 7, 6.1 or niji6; MidAPI chooses if not given.
        variety: How much the four pictures differ, 0 to 100; MidAPI chooses if not given.
        stylization: How much of Midjourney's own style they have, 0 to 1000; MidAPI chooses if not
            given.
        weirdness: How unusual they are, 0 to 3000; MidAPI chooses if not given.
        water_mark: A text that marks each picture; none if not given.
        enable_translation: Have MidAPI translate the prompt to English first.
    """

    speed: Speed | None = None
    aspect_ratio: AspectRatio | None = None
    version: str | None = None
    variety: int | None = None
    stylization: int | None = None
    weirdness: int | None = None
    water_mark: str | None = None
    enable_translation: Annotated[bool | None, Parameter(negative="")] = None


@Parameter(name="*", group=VIDEO)
@attrs.frozen(kw_only=True)
class Video:
    """Options of a video; the SDK chooses what is not given.

    Attributes:
        hd: Make videos in high definition.
        motion: How much moves in a video; high if not given.
        video_batch_size: How many videos to make; 1 if not given. Each one costs credits.
        aspect_ratio: Width to height of each video; MidAPI chooses if not given.
        water_mark: A text that marks each video; none if not given.
        enable_translation: Have MidAPI translate the prompt to English first.
    """

    hd: Annotated[bool | None, Parameter(negative="")] = None
    motion: Motion | None = None
    video_batch_size: VideoBatchSize | None = None
    aspect_ratio: AspectRatio | None = None
    water_mark: str | None = None
    enable_translation: Annotated[bool | None, Parameter(negative="")] = None


@Parameter(name="*", group=Group("Files", sort_key=22))
@attrs.frozen(kw_only=True)
class Naming:
    """How downloaded files are named, and what is written beside them.

    Attributes:
        name: How to name the files, {task_id}_{index}{ext} if not given. The index counts from 0;
            {ext} is the extension for the content, such as .jpeg.
        overwrite: Also fetch files that are there already and whole, and replace them.
        sidecar: Also write a JSON file beside each, with the task's id, prompt and other
            parameters, and the file's size and SHA-256. From it, midapi upscale knows the task of a
            file that was renamed together with it.
    """

    name: Annotated[str, Parameter(show_default=False)] = DEFAULT_NAME
    overwrite: Annotated[bool, Parameter(negative="", show_default=False)] = False
    sidecar: Annotated[bool, Parameter(negative="", show_default=False)] = False

    def check(self, count: int = 1) -> None:
        """Check the name, before anything is sent.

        Args:
            count: how many files the task will have.

        Raises:
            InvalidRequestError: its files cannot be named so.
        """
        check_name(self.name, "0" * 32, count)


@Parameter(name="*", group=Group("Result", sort_key=20))
@attrs.frozen(kw_only=True)
class Result:
    """What to do with the result.

    Attributes:
        folder: Where to put the files; the current folder if not given.
        download: Download the files, which is the default; with --no-download, print their URLs
            only.
        wait: Wait for the result, which is the default; with --no-wait, print the task's id only.
        timeout: Seconds to wait for the result; 3600 if not given. The task goes on after that.
        key: Your own name for this request. The same key is never paid twice: the second time, you
            get the first task again. Later calls know it only if MIDAPI_JOURNAL is set, to a folder
            or a postgresql:// URL.
        metadata: A note of your own, NAME=VALUE, which is not sent; --json repeats it. May be given
            several times.
        dry_run: Check the request and print the body that would be sent, as JSON. Nothing is sent,
            and no API key is needed.
        extra: A field of MidAPI's that has no option here, or a value that its option refuses, as
            NAME=JSON: --extra 'aspectRatio="21:9"'. It is sent unchecked. May be given several
            times.
        naming: How the files are named.
    """

    folder: Annotated[Path, Parameter(show_default=False)] = Path()
    download: Annotated[bool, Parameter(name="--download", show_default=False)] = True
    wait: Annotated[bool, Parameter(name="--wait", show_default=False)] = True
    timeout: float | None = None
    key: str | None = None
    metadata: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False
    extra: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    naming: Naming = attrs.field(factory=Naming)


@Parameter(name="*", group=Group("Connection", sort_key=25))
@attrs.frozen(kw_only=True)
class Connection:
    """How to reach MidAPI.

    Attributes:
        proxy: The URL of an HTTP proxy; MIDAPI_PROXY if not given. If it has a password, use
            MIDAPI_PROXY: other users of this machine can see command lines.
        api_key_file: A file that contains the API key; if not given, the key is in MIDAPI_API_KEY,
            or in the file that MIDAPI_API_KEY_FILE names. There is no option for the key itself:
            other users of this machine can see command lines.
    """

    proxy: str | None = attrs.field(default=None, repr=False)
    api_key_file: Path | None = None

    def api_key(self) -> str | None:
        """The key in the given file; None if no file was given.

        Raises:
            InvalidRequestError: it cannot be read, or is empty.
        """
        return None if self.api_key_file is None else _env.api_key_in(self.api_key_file)


@Parameter(name="*", group=Group("Connection", sort_key=25))
@attrs.frozen(kw_only=True)
class Service(Connection):
    """Which MidAPI to use, and how to reach it.

    Attributes:
        base_url: The URL of MidAPI, or of a sandbox; MIDAPI_BASE_URL if not given, else
            https://api.midapi.ai.
    """

    base_url: str | None = None


@Parameter(name="*", group=Group("Connection", sort_key=25))
@attrs.frozen(kw_only=True)
class UploadService(Service):
    """Which MidAPI to use, and where pictures are uploaded.

    Attributes:
        upload_url: The URL of the server that takes uploads; MIDAPI_UPLOAD_URL if not given. MidAPI
            documents none; with a sandbox or kie.ai it is known. It gets your API key.
    """

    upload_url: str | None = None


# In place of a dash, which cyclopts takes for an option where it stands for a prompt. (With
# `allow_leading_hyphen` a misspelled option would be a prompt, and paid.) A process can be given no
# argument with a NUL in it.
_STDIN = "\0-"


def with_stdin(arguments: Sequence[str]) -> list[str]:
    """The arguments, so that a dash before a ``--`` can stand for stdin."""
    if "-" not in arguments or arguments[0] not in {"generate", "batch"}:
        return list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    marked = [_STDIN if each == "-" else each for each in arguments[:end]]
    return [*marked, *arguments[end:]]


def is_stdin(argument: str) -> bool:
    """Whether an argument is a dash, which stands for stdin."""
    return argument in {"-", _STDIN}


def given(options: Picture | Video) -> dict[str, Any]:
    """The fields that were given; only those are sent."""
    return {name: value for name, value in attrs.asdict(options).items() if value is not None}


def parse_extra(extra: tuple[str, ...]) -> dict[str, JSON]:
    """The fields in NAME=JSON texts.

    Raises:
        InvalidRequestError: one of them has no =, or no JSON behind it.
    """
    fields = {}
    for each in extra:
        name, sign, text = each.partition("=")
        try:
            fields[name] = json.loads(text)
        except (ValueError, RecursionError):
            sign = ""
        if not name or not sign:
            problem = f"must be NAME=JSON, as in 'aspectRatio=\"21:9\"', got {each!r:.60}"
            raise InvalidRequestError({"extra": problem})
    return fields


def parse_metadata(metadata: tuple[str, ...]) -> dict[str, str]:
    """The metadata in NAME=VALUE texts.

    Raises:
        InvalidRequestError: one of them has no =.
    """
    parts = [each.partition("=") for each in metadata]
    for name, sign, _ in parts:
        if not name or not sign:
            raise InvalidRequestError({"metadata": f"must be NAME=VALUE, got {name!r:.60}"})
    return {name: value for name, _, value in parts}
