"""The requests in a file for ``midapi batch``: CSV, JSON Lines, or plain text.

- CSV: the header names the columns. Upper case, blanks, ``_`` and ``-`` do not matter there. An
  empty cell means "not given".
- JSON Lines: each line is an object with our names of fields; or a body as MidAPI documents it; or
  ``{"custom_id": …, "body": …}`` as in OpenAI's batch files, with one of these two in ``body``.
- Plain text: each line is a prompt. There are no comments: a prompt may begin with ``#``.

The names are the fields of the eight requests, ``kind`` (a name of `KINDS`; needed only where the
fields fit several kinds), ``key``, ``metadata`` and ``metadata.NAME``. Several ``file_urls`` in one
cell are separated by ``|`` or a line break. Anything there that is not a URL is the path of a
local file, relative to the folder of the file that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias, cast

import attrs

from .._wire.bodies import make_request, request_from_json
from ..errors import InvalidRequestError, shown
from ..files.upload import file_problem
from ..requests import (
    REQUESTS,
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    OmniReference,
    Request,
    StyleReference,
    TextToImage,
    Upscale,
    Vary,
    camel,
    check_arguments,
    paths_of,
)
from .columns import BY_FOLDED, converted, header_problem, meant_by, own_name
from .expand import expanded
from .items import Keys
from .records import Record, Records, RowProblem, csv_records, json_records, text_records
from .template import Template, filled, folded, parsed_template, unknown_in

Format: TypeAlias = Literal["csv", "jsonl", "text"]

# As the commands of `midapi generate` name them.
KINDS: Mapping[str, type[Request]] = {
    "text": TextToImage,
    "image": ImageToImage,
    "style": StyleReference,
    "omni": OmniReference,
    "video": ImageToVideo,
    "upscale": Upscale,
    "vary": Vary,
    "extend": ExtendVideo,
}
_FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
}

_FIELDS = {cls: frozenset(attrs.fields_dict(cls)) for cls in REQUESTS}
_REQUIRED = {
    cls: frozenset(each.name for each in attrs.fields(cls) if each.default is attrs.NOTHING)
    for cls in REQUESTS
}
_OWN_NAMES = frozenset().union(*_FIELDS.values())
# MidAPI's spelling, where it is not ours too.
_WIRE_NAMES = {camel(name): name for name in _OWN_NAMES if camel(name) != name} | {
    "taskType": "",
    "callBackUrl": "",
    "fileHashes": "",
    "fileUrl": "file_urls",
}
_ALL_NAMES = _OWN_NAMES | _WIRE_NAMES.keys()
_PICKED = {"task_id", "index", "file"}  # members of each line that the gallery writes


@attrs.frozen
class FileRow:
    """One request of a file.

    Attributes:
        line: where its row begins in the file, from 1.
        request: what to buy.
        key: the user's own key for it, or None.
        metadata: the user's own notes.
        part: which of the requests of the row it is, from 1.
        parts: how many requests the row stands for; above 1 only with ``expand``.
    """

    line: int
    request: Request
    key: str | None = None
    metadata: dict[str, str] = attrs.field(factory=dict)
    part: int = 1
    parts: int = 1


def format_of(name: str, data: bytes, template: str | None = None) -> Format:
    """The format of a file: by the end of its name, else by its content.

    Args:
        name: its name; "-" for stdin.
        data: its content.
        template: the template for it. If it names anything but ``{{prompt}}``, the file cannot be
            plain text.

    Raises:
        InvalidRequestError: the template is wrong.
    """
    if known := _FORMATS.get(Path(name).suffix.casefold()):
        return known
    start = data[:10_000].removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb'\{\s*["}]|\[\s*[\[{"\]]', start):  # not {red, blue}
        return "jsonl"
    if template is not None and {folded(name) for name in parsed_template(template)[1::2]} != {
        "prompt"
    }:
        return "csv"
    # A header that was taken for a prompt would be bought, so one known name is enough.
    first = re.split("[\r\n]", start.decode(errors="replace"), maxsplit=1)[0]
    names = {folded(name.strip(' "')) for name in re.split("[,;\t]", first)}
    is_header = first.startswith("sep=") or names & {"prompt", "taskid"} or names <= {*BY_FOLDED}
    return "csv" if is_header else "text"


def rows_of(
    data: bytes,
    form: Format,
    *,
    template: str | None = None,
    expand: bool = False,
    folder: Path | None = None,
    check_files: bool = False,
) -> Iterator[FileRow | RowProblem]:
    """The requests of a file, and what is wrong with its rows; the lines are in order.

    Each row is read when the iterator comes to it. Nothing but the keys is kept in memory.

    Args:
        data: the file, in UTF-8.
        form: its format.
        template: how the prompts are made, as in ``a {{animal}} in {{place}}``, from the columns
            or members with these names. The line of a text file is ``{{prompt}}``. Other columns
            may be there that are not used.
        expand: make several requests of a prompt with ``{red, blue}`` or ``--repeat 4``. If its row
            has a key, they have the keys ``key/1``, ``key/2``, ….
        folder: the folder that paths in the file are relative to; None for the current folder.
        check_files: also read each local file, and refuse what is not a picture or video.

    Raises:
        InvalidRequestError: the template is wrong.
    """
    parts = None if template is None else parsed_template(template)
    if form == "csv":
        records = csv_records(data, lambda columns: header_problem(columns, parts))
    elif form == "jsonl":
        records = json_records(data)
    else:
        if parts and (problem := unknown_in(parts, ["prompt"])):
            problem += "; the line of a text file is {{prompt}}"
            raise InvalidRequestError({"template": problem})
        records = text_records(data)
    reader = _Reader(
        form=form,
        template=parts,
        expand=expand,
        folder=folder or Path(),
        check_files=check_files,
    )
    return reader.rows(records)


def picks_of(data: bytes, kind: type[Upscale | Vary]) -> Iterator[FileRow | RowProblem]:
    """A request for each line of ``picks.jsonl``, the pictures that were starred in the gallery.

    ``task_id`` and ``index``, from 0, are sent as they are. The other members are for people;
    ``key`` is the key of the row that made the picture.

    Args:
        data: the file.
        kind: what to buy for each picture.
    """
    lines: dict[tuple[str, object], int] = {}
    for record in json_records(data):
        if isinstance(record, RowProblem):
            yield record
            continue
        line, values = record
        try:
            fields = {"task_id": values.get("task_id"), "image_index": values.get("index")}
            request = make_request(kind, {k: v for k, v in fields.items() if v is not None})
        except InvalidRequestError as error:
            yield RowProblem(line, str(error).replace("image_index", "index"))
            continue
        first = lines.setdefault((str(fields["task_id"]), fields["image_index"]), line)
        if first != line:
            yield RowProblem(line, f"is the same picture as line {first}")
        else:
            yield FileRow(line, request)


# ─── a record becomes requests ───────────────────────────────────────────────────────────────────


@attrs.define(kw_only=True)
class _Reader:
    """Makes requests of records.

    Attributes:
        form: the format of the file.
        template: how prompts are made, or None.
        expand: whether a prompt may stand for several.
        folder: the folder that paths are relative to.
        check_files: whether pictures are looked into.
        keys: the keys so far.
        files: what is wrong with each picture so far, or None.
    """

    form: Format
    template: Template | None
    expand: bool
    folder: Path
    check_files: bool
    keys: Keys = attrs.field(factory=lambda: Keys("lines {} and {}"))
    files: dict[Path, str | None] = attrs.field(factory=dict)

    def rows(self, records: Records) -> Iterator[FileRow | RowProblem]:
        """The requests of all records, and what is wrong with them."""
        for record in records:
            if isinstance(record, RowProblem):
                yield record
                continue
            try:
                for row in self._rows_of(record):
                    self._check(row)
                    yield row
            except ValueError as error:  # InvalidRequestError is one
                yield RowProblem(record.line, str(error))

    def _rows_of(self, record: Record) -> Iterator[FileRow]:
        """The requests that a record stands for.

        Raises:
            ValueError: it is wrong; the text says why.
        """
        key, metadata, kind, fields = self._understood(record.values)
        is_wire = self.form == "jsonl" and not _WIRE_NAMES.keys().isdisjoint(fields)
        if kind is None and "taskType" not in fields:
            kind = _kind_for(frozenset({_WIRE_NAMES.get(name, name) for name in fields} - {""}))
        prompt = fields.get("prompt")
        parts, prompts = 1, iter([prompt])
        if self.expand and isinstance(prompt, str):
            try:
                parts, prompts = expanded(prompt)
            except ValueError as error:
                raise InvalidRequestError({"prompt": str(error)}) from None
        for part, each in enumerate(prompts, 1):
            own_key = f"{key}/{part}" if key is not None and parts > 1 else key
            check_arguments(own_key, metadata, None)
            if "prompt" in fields:
                fields["prompt"] = each
            if is_wire:
                request = request_from_json(fields, kind)
            else:
                request = make_request(kind or TextToImage, fields)
            yield FileRow(record.line, request, own_key, metadata, part, parts)

    def _understood(
        self, values: dict[str, object]
    ) -> tuple[str | None, dict[str, str], type[Request] | None, dict[str, object]]:
        """The key, the metadata, the kind if it is given, and the fields of a record.

        Raises:
            ValueError: it is wrong; the text says why.
        """
        if self.form == "csv":
            values = {own_name(column): cell for column, cell in values.items()}
        elif self.form == "jsonl":
            values = _unwrapped(values)
        prompt = filled(self.template, values) if self.template else None
        if self.form == "csv":
            values = converted(values)
        key, metadata, kind, fields = _split(values)
        if self.template:
            fields = _without_others(fields, self.template) | {"prompt": prompt}
        elif self.form == "jsonl" and fields.keys() >= _PICKED:
            raise ValueError("is a line of picks.jsonl from the gallery: give --upscale or --vary")
        if "version" in fields:
            fields["version"] = _version(fields["version"])
        for name in {"file_urls", "fileUrls", "fileUrl"} & fields.keys():
            fields[name] = _files(fields[name], self.folder, is_one=name == "fileUrl")
        return key, metadata, kind, fields

    def _check(self, row: FileRow) -> None:
        """Check a row against the earlier ones, and its pictures.

        Raises:
            InvalidRequestError: its key conflicts with another row's, or a picture cannot be used.
        """
        if row.key is not None:
            self.keys.add(row.line, row.key)
        if self.check_files:
            problems = [self._file_problem(path) for path in paths_of(row.request).values()]
            if text := "; ".join(filter(None, problems)):
                raise InvalidRequestError({"file_urls": text})

    def _file_problem(self, path: Path) -> str | None:
        """Why a file cannot be uploaded; None if it can."""
        if path not in self.files:
            hint = "; a path is relative to the folder of the file that names it"
            self.files[path] = file_problem(path, hint)
        return self.files[path]


def _unwrapped(values: dict[str, object]) -> dict[str, object]:
    """The members of a row, with those of its ``body`` if it has the shape of OpenAI's batches.

    Raises:
        ValueError: the body is no object, or a member is given twice.
    """
    if "body" in values:
        if not isinstance(body := values["body"], dict):
            raise InvalidRequestError({"body": f"must be an object, got {shown(body)}"})
        # OpenAI's method and URL are ignored.
        outer = {k: v for k, v in values.items() if k not in {"body", "method", "url"}}
        if twice := outer.keys() & body.keys():
            raise InvalidRequestError({min(twice): "is given twice, in the row and in its body"})
        values = {**outer, **body}
    if "custom_id" in values:
        if "key" in values:
            raise InvalidRequestError({"key": "is given twice, as key and as custom_id"})
        values = {**values, "key": values["custom_id"]}
        del values["custom_id"]
    return values


def _split(
    values: Mapping[str, object],
) -> tuple[str | None, dict[str, str], type[Request] | None, dict[str, object]]:
    """The key, metadata, kind and fields of a row.

    Raises:
        ValueError: one of them is wrong; the text names it.
    """
    key: object = None
    kind: type[Request] | None = None
    notes: dict[str, object] = {}
    fields: dict[str, object] = {}
    for name, value in values.items():
        if value is None or value == "":
            continue
        if name == "key":
            key = str(value) if type(value) is int else value
        elif name == "kind":
            kind = KINDS.get(value.casefold()) if isinstance(value, str) else None
            if kind is None:
                problem = f"must be one of {', '.join(KINDS)}; got {shown(value)}"
                raise InvalidRequestError({name: problem})
        elif name == "metadata":
            if not isinstance(value, dict):
                raise InvalidRequestError({name: f"must be an object, got {shown(value)}"})
            notes |= value
        elif name.startswith("metadata."):
            notes[name.removeprefix("metadata.")] = value
        else:
            fields[name] = value
    metadata = {}
    for name, value in notes.items():
        if isinstance(value, dict | list):
            problem = f"must be a text or a number, got {shown(value)}"
            raise InvalidRequestError({f"metadata.{name}": problem})
        if value is not None:
            metadata[name] = value if isinstance(value, str) else json.dumps(value)
    # A key that is not a str is refused later, by `check_arguments`.
    return cast("str | None", key), metadata, kind, fields


def _without_others(fields: Mapping[str, object], template: Template) -> dict[str, object]:
    """The fields of a row for a template, without members that are no fields.

    Raises:
        InvalidRequestError: one of these is not used, and seems to be a field that is misspelt.
    """
    known = {name: value for name, value in fields.items() if name in _ALL_NAMES}
    if len(known) < len(fields):
        used = {folded(name) for name in template[1::2]}
        others = [name for name in fields if name not in known and folded(name) not in used]
        problems = {
            name: f"is not used; did you mean {meant}?"
            for name in others
            if (meant := meant_by(name))
        }
        if problems:
            raise InvalidRequestError(problems)
    return known


@lru_cache(maxsize=1000)
def _kind_for(names: frozenset[str]) -> type[Request]:
    """The class whose fields these are.

    Raises:
        ValueError: there are several such classes.
    """
    wrong = {cls: len(names - _FIELDS[cls]) + len(_REQUIRED[cls] - names) for cls in REQUESTS}
    least = min(wrong.values())
    nearest_kinds = {kind: cls for kind, cls in KINDS.items() if wrong[cls] == least}
    # A prompt alone fits several kinds; it means TextToImage.
    if least == 0 and "text" not in nearest_kinds and len(nearest_kinds) > 1:
        problem = f"is missing; it must be one of {', '.join(nearest_kinds)}"
        raise InvalidRequestError({"kind": problem})
    return next(iter(nearest_kinds.values()))


def _files(value: object, folder: Path, *, is_one: bool) -> object:
    """URLs as they are, and other texts as paths; a value that is neither is refused later."""
    if isinstance(value, list):
        return [_files(each, folder, is_one=True) for each in value]
    if not isinstance(value, str):
        return value
    # A scheme that is not http is refused later, with the reason.
    is_path = "://" not in value and not value.casefold().startswith(("data:", "http:", "https:"))
    file = folder / value if is_path else value
    return file if is_one else [file]


def _version(value: object) -> object:
    """A version as a text; programs write it as a number, and 7 as 7.0."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        return re.sub(r"^([0-9]+)\.0+$", r"\1", value)
    return value
