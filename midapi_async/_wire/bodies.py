"""Requests as JSON in MidAPI's spelling: written for submissions, read back from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import attrs

from ..errors import InvalidRequestError, shown
from ..requests import (
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
    camel,
    nearest,
    paths_of,
)
from .json import JSONObject, compact, dumps

_TASK_TYPES: Mapping[type[Request], str] = {
    TextToImage: "mj_txt2img",
    ImageToImage: "mj_img2img",
    StyleReference: "mj_style_reference",
    OmniReference: "mj_omni_reference",
    ImageToVideo: "mj_video",
    Upscale: "mj_upscale",
    Vary: "mj_vary",
    ExtendVideo: "mj_video_extend_auto",
}
_BY_TASK_TYPE: Mapping[object, type[Request]] = {
    **{name: cls for cls, name in _TASK_TYPES.items()},
    "mj_video_hd": ImageToVideo,
    "mj_video_extend_manual": ExtendVideo,
}


# The name of each field by MidAPI's spelling; MidAPI puts `hd` into the task type.
_FIELD_NAMES: Mapping[type[Request], Mapping[str, str]] = {
    cls: {camel(f.name): f.name for f in attrs.fields(cls) if f.name != "hd"} for cls in REQUESTS
}
_TEXTS = {"prompt", "taskId", "waterMark"}
_ALL_NAMES = sorted(
    {"taskType", "callBackUrl", "fileUrl", "fileHashes"}.union(*_FIELD_NAMES.values())
)


def task_type(request: Request) -> str:
    """MidAPI's name for the type of task that a request makes."""
    # `extra` may contain a task type that this release does not know.
    other = request.extra.get("taskType")
    return other if isinstance(other, str) else _own_task_type(request)


def _own_task_type(request: Request) -> str:
    if isinstance(request, ImageToVideo) and request.hd:
        return "mj_video_hd"
    if isinstance(request, ExtendVideo) and request.prompt is not None:
        return "mj_video_extend_manual"
    return _TASK_TYPES[type(request)]


def request_to_json(request: Request, *, as_sent: bool = False) -> JSONObject:
    """A request as a JSON body in MidAPI's spelling; the inverse of `request_from_json`.

    ``request_to_json(TextToImage("a red fox", speed="turbo"))`` is ``{"taskType": "mj_txt2img",
    "prompt": "a red fox", "speed": "turbo", "enableTranslation": False}``.

    Args:
        request: one of the eight requests.
        as_sent: give the body that a client sends, without its ``callBackUrl``: the fields of
            ``extra`` are not in a member ``extra`` but stand among the others, and those of
            `Upscale` and `Vary`, each of which has a path of its own, have no ``taskType``.
            Otherwise the hashes of uploaded files are in a member ``fileHashes``.

    Raises:
        InvalidRequestError: naming the argument that is wrong, or files that are not uploaded yet.
    """
    if not isinstance(request, REQUESTS):
        names = ", ".join(cls.__name__ for cls in REQUESTS)
        raise InvalidRequestError({"request": f"must be one of {names}; got {shown(request)}"})
    if not isinstance(as_sent, bool):
        raise InvalidRequestError({"as_sent": f"must be True or False, got {shown(as_sent)}"})
    hashes = _hashes(request)
    body: JSONObject = {"taskType": _own_task_type(request)}
    for name, field in _FIELD_NAMES[type(request)].items():
        # None means not set. Every other default is sent, because MidAPI's own defaults vary.
        if field != "extra" and (value := getattr(request, field)) is not None:
            body[name] = [*value] if isinstance(value, tuple) else value
    extra = json.loads(compact(request.extra)) if request.extra else {}
    if not as_sent:
        if any(hashes):
            body["fileHashes"] = hashes
        return {**body, "extra": extra} if extra else body
    if isinstance(request, Upscale | Vary):
        del body["taskType"]
    return {**body, **extra}


def _hashes(request: Request) -> list[str | None]:
    """The hash of each of a request's files; None where it is not known.

    Raises:
        InvalidRequestError: a file is not uploaded yet.
    """
    problem = "is a Path: await client.prepare(request) uploads it"
    if paths := paths_of(request):
        raise InvalidRequestError({f"file_urls[{index}]": problem for index in paths})
    return [getattr(each, "sha256", None) for each in getattr(request, "file_urls", ())]


def submit_body(request: Request, callback_url: str | None) -> bytes:
    """The body of a request's POST."""
    body = request_to_json(request, as_sent=True)
    if callback_url is not None:
        body["callBackUrl"] = callback_url
    return dumps(body)


def fingerprint(request: Request) -> str:
    """A hash of the fields that the user set; equal for equal requests.

    A file that was uploaded counts by its content, so its URL may be another one each time.

    Raises:
        InvalidRequestError: it names files that are not uploaded yet.
    """
    hashes = _hashes(request)
    chosen = {
        field.name: value
        for field in attrs.fields(type(request))
        if (value := getattr(request, field.name)) != field.default
    }
    if any(hashes):
        files = zip(hashes, chosen["file_urls"], strict=True)
        chosen["file_urls"] = [f"sha256:{sha256}" if sha256 else url for sha256, url in files]
    named = [type(request).__name__, sorted(chosen.items())]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def request_from_json(body: Mapping[str, object], kind: type[Request] | None = None) -> Request:
    """The request for a JSON body as MidAPI documents it.

    A field that MidAPI knows but this type of task does not have is dropped, since MidAPI ignores
    it; so are ``callBackUrl`` and fields that are null or "". A ``fileUrl`` becomes the only one of
    ``file_urls``. Fields that this release does not know are taken from a member ``extra`` only.

    Args:
        body: the fields in MidAPI's spelling.
        kind: the class of the request, needed if the body has no ``taskType``: the fields of
            `Upscale` and `Vary` are the same. If both are given they must agree.

    Raises:
        InvalidRequestError: naming every field that is wrong, missing or misspelt. MidAPI itself
            silently ignores a misspelt field.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequestError({"body": f"must be a mapping, got {type(body).__name__}"})
    if kind is not None and kind not in [*REQUESTS]:
        raise InvalidRequestError({"kind": f"must be a class of requests, got {shown(kind)}"})
    misspelt = [str(name) for name in body if name not in _ALL_NAMES]
    if misspelt:
        raise InvalidRequestError(
            {
                name: "is not a field of MidAPI that this release knows (a new one goes into "
                f"extra){_did_you_mean(name, _ALL_NAMES)}"
                for name in misspelt
            }
        )
    cls = _class_of(body, kind)
    names = _FIELD_NAMES[cls]
    # Programs send "" for a field that they do not set; only in these fields can it be meant.
    fields = {
        names[name]: value
        for name, value in body.items()
        if name in names and value is not None and (value != "" or name in _TEXTS)
    }
    if "fileUrls" in names and not fields.get("file_urls") and body.get("fileUrl"):
        fields["file_urls"] = [body["fileUrl"]]
    if "fileUrls" in names and (hashes := body.get("fileHashes")):
        fields["file_urls"] = _hashed(fields.get("file_urls"), hashes)
    # MidAPI accepts the number 7 for the text "7".
    version = fields.get("version")
    if type(version) in {int, float} and abs(cast("float", version)) < 1000:
        fields["version"] = str(version).removesuffix(".0")
    # Three task types stand for a field of ours.
    named = body.get("taskType")
    if cls is ImageToVideo:
        fields["hd"] = named == "mj_video_hd"
    elif named == "mj_video_extend_auto":
        fields.pop("prompt", None)
    elif named == "mj_video_extend_manual":
        fields.setdefault("prompt", "")  # an error; without a prompt the type would be "auto"
    return make_request(cls, fields)


def _hashed(urls: object, hashes: object) -> list[object]:
    """The URLs of a stored request, with the hashes that were stored beside them."""
    if not isinstance(urls, list) or not isinstance(hashes, list) or len(urls) != len(hashes):
        raise InvalidRequestError({"fileHashes": "must be a list as long as fileUrls"})
    pairs = zip(urls, hashes, strict=True)
    return [url if sha256 is None else UploadedURL(url, sha256) for url, sha256 in pairs]


def _class_of(body: Mapping[str, object], kind: type[Request] | None) -> type[Request]:
    """The class of a body's request: by its task type, else by `kind`, else by its fields."""
    named = body.get("taskType")
    if named is not None:
        cls = _BY_TASK_TYPE.get(named) if isinstance(named, str) else None
        if cls is None:
            known = ", ".join(map(str, _BY_TASK_TYPE))
            raise InvalidRequestError({"taskType": f"must be one of {known}; got {shown(named)}"})
        if kind not in {None, cls}:
            raise InvalidRequestError({"taskType": f"{named} is not {kind.__name__}"})
        return cls
    if kind is not None:
        return kind
    if "imageIndex" in body:
        raise InvalidRequestError(
            {"taskType": "is missing: pass kind=Upscale or kind=Vary, which have the same fields"}
        )
    return ExtendVideo if "taskId" in body else TextToImage


def make_request(
    cls: type[Request], fields: Mapping[str, object], options: Iterable[str] = ()
) -> Request:
    """A request from named fields.

    Args:
        cls: its class.
        fields: the fields.
        options: other names that a misspelt one may mean.

    Raises:
        InvalidRequestError: naming every field that is wrong, missing or unknown.
    """
    known = attrs.fields_dict(cls)
    problems = {
        name: f"is not a field of {cls.__name__}{_did_you_mean(name, [*known, *options])}"
        for name in fields
        if name not in known
    } | {
        name: f"is missing; {cls.__name__} needs it"
        for name, field in known.items()
        if field.default is attrs.NOTHING and name not in fields
    }
    if problems:
        raise InvalidRequestError(problems)
    return cast("Callable[..., Request]", cls)(**fields)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known)
    return f"; did you mean {close}?" if close else f"; it has {', '.join(known)}"
