"""The rows of a file: every request it means, and every problem with its line."""

import json
import time
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async import (
    ExtendVideo,
    ImageToImage,
    ImageToVideo,
    InvalidRequestError,
    OmniReference,
    Request,
    StyleReference,
    TextToImage,
    Upscale,
    Vary,
    request_to_json,
)
from midapi_async.batch.reading import KINDS, FileRow, Format, format_of, picks_of, rows_of
from midapi_async.batch.records import RowProblem
from midapi_async.requests import REQUESTS, has_several_jobs
from tests.files.samples import png

URL = "https://example.com/a.png"
TASK = "0123456789abcdef0123456789abcdef"


def read(text: str | bytes, form: Format = "csv", **options: Any) -> list[FileRow | RowProblem]:
    """Everything that a file gives."""
    data = text.encode() if isinstance(text, str) else text
    return list(rows_of(data, form, **options))


def requests(text: str | bytes, form: Format = "csv", **options: Any) -> list[Request]:
    """The requests of a file without problems."""
    rows = read(text, form, **options)
    assert not [row for row in rows if isinstance(row, RowProblem)]
    return [row.request for row in rows if isinstance(row, FileRow)]


def problems(text: str | bytes, form: Format = "csv", **options: Any) -> list[tuple[int, str]]:
    """The problems of a file, with their lines."""
    rows = read(text, form, **options)
    return [(row.line, row.problem) for row in rows if isinstance(row, RowProblem)]


def lines(*objects: object) -> str:
    """JSON Lines."""
    return "".join(json.dumps(each) + "\n" for each in objects)


# ─── the three formats ───────────────────────────────────────────────────────────────────────────


def test_a_csv_file_gives_requests_with_keys_and_notes() -> None:
    """An empty cell is not given; a row begins where its first cell does."""
    text = (
        "prompt,aspect_ratio,variety,enable_translation,key,metadata.sku,metadata\n"
        "a red fox,16:9,50,TRUE,fox,A-1,\n"
        '"a fox,\nin two ""lines""",,,,,,"{""a"": 1}"\n'
        "\n"
        " , ,,,,,\n"
        "a wolf,,,no,007,,\n"
    )
    assert read(text) == [
        FileRow(
            2,
            TextToImage("a red fox", aspect_ratio="16:9", variety=50, enable_translation=True),
            "fox",
            {"sku": "A-1"},
        ),
        FileRow(3, TextToImage('a fox,\nin two "lines"'), None, {"a": "1"}),
        FileRow(7, TextToImage("a wolf"), "007"),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"prompt,key\na fox,1\n",
        b"\xef\xbb\xbfprompt,key\r\na fox,1\r\n",
        b"\xef\xbb\xbfsep=;\r\nPrompt;Key\r\na fox;1\r\n",
        b'"prompt"\t"key"\n"a fox"\t"1"',
        b"prompt\rkey".replace(b"\r", b";") + b"\ra fox;1\r",
        b"prompt;metadata.a,b;key\na fox;;1\n",
        b"prompt,key,,\na fox,1,,\n",
        b"prompt,key\na fox,1,,\n",
        b"\n\nprompt,key\n\na fox,1",
    ],
)
def test_what_spreadsheet_programs_write_is_read(data: bytes) -> None:
    """A byte order mark, semicolons and tabs, line ends of all systems, and empty columns."""
    rows = read(data)
    assert [(row.request, row.key) for row in rows if isinstance(row, FileRow)] == [
        (TextToImage("a fox"), "1")
    ]
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("column", "cell", "field", "value"),
    [
        ("Aspect Ratio", "16:09:00", "aspect_ratio", "16:9"),
        ("aspectRatio", "01:02", "aspect_ratio", "1:2"),
        ("variety", "50.0", "variety", 50),
        ("version", "7.0", "version", "7"),
        ("version", "6.1", "version", "6.1"),
        ("enable-translation", "Yes", "enable_translation", True),
        ("extra", '{"tile": true}', "extra", {"tile": True}),
    ],
)
def test_a_cell_becomes_what_its_field_takes(
    column: str, cell: str, field: str, value: object
) -> None:
    """Spreadsheets take 16:9 for a time of day, and other programs write 50 as 50.0."""
    quoted = cell.replace('"', '""')
    [request] = requests(f'prompt,{column}\na fox,"{quoted}"\n')
    assert getattr(request, field) == value


EVERY_KIND: dict[str, Request] = {
    "text": TextToImage("a fox", speed="turbo", version="7"),
    "image": ImageToImage("a fox", [URL]),
    "style": StyleReference("a fox", [URL, URL], stylization=5),
    "omni": OmniReference("a fox", [URL], ow=5),
    "video": ImageToVideo("a fox", [URL], hd=True, motion="low", video_batch_size=2),
    "upscale": Upscale(TASK, 3, water_mark="me"),
    "vary": Vary(TASK, 4),
    "extend": ExtendVideo(TASK, 0, "it runs"),
}


def test_there_is_a_kind_for_each_class() -> None:
    """With the names of the commands of `midapi generate`."""
    assert set(KINDS.values()) == set(REQUESTS)
    assert {kind: type(request) for kind, request in EVERY_KIND.items()} == dict(KINDS)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_kind_of_request_can_be_a_row(kind: str) -> None:
    """As a CSV row, with our names, in MidAPI's own body, and in OpenAI's shape."""
    request = EVERY_KIND[kind]
    names = [each.name for each in type(request).__attrs_attrs__ if each.name != "extra"]
    values = {name: getattr(request, name) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    own = {**given, "kind": kind}
    if "file_urls" in given:
        own["file_urls"] = list(given["file_urls"])
    cells = {**own, "file_urls": " | ".join(own["file_urls"])} if "file_urls" in own else own
    assert requests(f"{','.join(cells)}\n{','.join(map(str, cells.values()))}\n") == [request]
    body = request_to_json(request)
    assert requests(lines(own, body, {"body": own}, {"body": body}), "jsonl") == [request] * 4


def test_a_cell_that_does_not_fit_is_named_with_its_column() -> None:
    """All cells of a row at once, and a cell that has no column."""
    text = "prompt,hd,extra,metadata,\nx,maybe,{,[1],\nx,,[],,\nx,,,,y\nx,,,[1],\n"
    assert problems("prompt,aspect_ratio\nx,wide\n")[0][1].startswith(
        "aspect_ratio: must be one of"
    )
    assert problems(text) == [
        (
            2,
            "hd: must be true or false, got 'maybe'; extra: must be a JSON object, got '{'",
        ),
        (3, "extra: must be a mapping, as in {'aspectRatio': '21:9'}, got a list"),
        (4, "has 'y' in a column without a name"),
        (5, "metadata: must be an object, got [1]"),
    ]


def test_json_lines_give_keys_and_notes_in_each_shape() -> None:
    """The `custom_id` of OpenAI's shape is the key; numbers are taken for texts."""
    text = lines(
        {"prompt": "a", "key": 7, "metadata": {"a": 1, "b": "x", "c": None}, "metadata.d": True},
        {"taskType": "mj_txt2img", "prompt": "b", "key": "k", "metadata": {"a": "1"}},
        {"custom_id": "c", "method": "POST", "url": "/v1/images", "body": {"prompt": "c"}},
        {"prompt": 'the "d"', "custom_id": "d", "version": 6.1, "variety": None, "speed": ""},
    )
    assert read("\ufeff" + text.replace("\n", "\r\n\n"), "jsonl") == [
        FileRow(1, TextToImage("a"), "7", {"a": "1", "b": "x", "d": "true"}),
        FileRow(3, TextToImage("b"), "k", {"a": "1"}),
        FileRow(5, TextToImage("c"), "c"),
        FileRow(7, TextToImage('the "d"', version="6.1"), "d"),
    ]


def test_a_line_of_text_is_a_prompt() -> None:
    """There are no comments and no quoting."""
    assert read(b'\xef\xbb\xbf# a fox\r\n\r\n  "an owl", {red}\n{', "text") == [
        FileRow(1, TextToImage("# a fox")),
        FileRow(3, TextToImage('"an owl", {red}')),
        FileRow(4, TextToImage("{")),
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "x"}, TextToImage),
        ({"prompt": "x", "aspect_ratio": "1:1"}, TextToImage),
        ({"prompt": "x", "file_urls": [URL], "ow": 1}, OmniReference),
        ({"prompt": "x", "file_urls": [URL], "motion": "low"}, ImageToVideo),
        ({"task_id": TASK, "index": 0}, ExtendVideo),
        ({"taskId": TASK, "index": 0}, ExtendVideo),
        ({"prompt": "x", "fileUrls": [URL], "ow": 1}, OmniReference),
        ({"prompt": "x", "file_urls": [URL]}, "image, style, omni, video"),
        ({"prompt": "x", "fileUrls": [URL]}, "image, style, omni, video"),
        ({"prompt": "x", "fileUrl": URL}, "image, style, omni, video"),
        ({"prompt": "x", "file_urls": [URL], "variety": 1}, "image, style, omni"),
        ({"task_id": TASK, "image_index": 0}, "upscale, vary"),
        ({"taskId": TASK, "imageIndex": 0}, "upscale, vary"),
    ],
)
def test_the_kind_may_be_left_out_where_only_one_fits(
    fields: dict[str, object], expected: type[Request] | str
) -> None:
    """Where several fit, a guess would buy the wrong thing."""
    if isinstance(expected, str):
        problem = f"kind: is missing; it must be one of {expected}"
        assert problems(lines(fields), "jsonl") == [(1, problem)]
    else:
        assert [type(each) for each in requests(lines(fields), "jsonl")] == [expected]


@pytest.mark.parametrize(
    ("name", "data", "template", "expected"),
    [
        ("a.csv", b"{", None, "csv"),
        ("a.TSV", b"", None, "csv"),
        ("a.jsonl", b"a fox", None, "jsonl"),
        ("a.ndjson", b"", None, "jsonl"),
        ("a.txt", b'{"prompt": 1}', None, "text"),
        ("-", b'\xef\xbb\xbf\n {"prompt": 1}', None, "jsonl"),
        ("-", b'[{"prompt": 1}]', None, "jsonl"),
        ("-", b'{red, blue} fox\n"an owl"', None, "text"),
        ("-", b"{}\n", None, "jsonl"),
        ("-", b"[\n{", None, "jsonl"),
        ("-", b"a red fox, in snow\n", None, "text"),
        ("-", b"Prompt\r\na fox", None, "csv"),
        ("-", b'"prompt";colour\n', None, "csv"),
        ("-", b"task_id,index\n", None, "csv"),
        ("-", b"sep=;\n", None, "csv"),
        ("-", b"animal,place\n", "a {{animal}}", "csv"),
        ("-", b"a fox\n", "{{ Prompt }}, in snow", "text"),
        ("-", b"", None, "text"),
        ("list", b"\xff\xfea\0", None, "text"),
    ],
)
def test_the_format_is_known_by_the_name_or_the_content(
    name: str, data: bytes, template: str | None, expected: Format
) -> None:
    """A header must never be bought as a prompt."""
    assert format_of(name, data, template) == expected


# ─── templates, permutations, files ──────────────────────────────────────────────────────────────


def test_a_template_is_filled_from_the_columns() -> None:
    """Values are inserted as they are; columns that are not used may be there."""
    text = (
        "Animal,the place,prompt,variety,notes\nfox,{{Animal}},x,5,n\n,Oslo,x,,\n,,x,,\ncat,Rome,,,"
    )
    assert read(text, template="a {{animal}} in {{ The-Place }}, {{animal}}") == [
        FileRow(2, TextToImage("a fox in {{Animal}}, fox", variety=5)),
        RowProblem(3, "for the template, 'animal' is empty or missing"),
        RowProblem(
            4, "for the template, 'animal' is empty or missing and 'The-Place' is empty or missing"
        ),
        FileRow(5, TextToImage("a cat in Rome, cat")),
    ]


def test_a_template_needs_no_column_for_the_prompt() -> None:
    """It makes the prompt."""
    assert read("animal\nfox\n", template="a {{animal}}") == [FileRow(2, TextToImage("a fox"))]


def test_a_template_takes_members_of_json_and_lines_of_text() -> None:
    """Numbers are inserted too; the line of a text file is the prompt."""
    text = lines(
        {"animal": "fox", "count": 3, "custom_id": "a", "other": []},
        {"custom_id": "b", "body": {"animal": "cat", "count": 1.5, "speed": "turbo"}},
        {"animal": ["fox"], "count": True},
        {"animal": " "},
    )
    problem = "for the template, 'count' must be a text or a number and 'animal' must be a text"
    assert read(text, "jsonl", template="{{count}} {{animal}}") == [
        FileRow(1, TextToImage("3 fox"), "a"),
        FileRow(2, TextToImage("1.5 cat", speed="turbo"), "b"),
        RowProblem(3, f"{problem} or a number"),
        RowProblem(
            4, "for the template, 'count' is empty or missing and 'animal' is empty or missing"
        ),
    ]
    assert requests("a fox\n", "text", template="{{prompt}} in snow") == [
        TextToImage("a fox in snow")
    ]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("a fox", "must name a column"),
        ("a {{animal} in {{place}}", "contains {{ or }} outside of a {{name}}"),
        ("a {{animal}} }}", "contains {{ or }} outside of a {{name}}"),
        ("a {{ }}", "contains {{}} without the name of a column"),
        ("", "must name a column"),
        ("a {{animal}}", "the line of a text file is {{prompt}}"),
    ],
)
def test_a_wrong_template_is_refused_at_once(template: str, problem: str) -> None:
    """Before the first row is asked for."""
    with pytest.raises(InvalidRequestError) as caught:
        rows_of(b"a fox", "text", template=template)
    assert problem in caught.value.problems["template"]


def test_a_prompt_for_several_jobs_becomes_several_rows() -> None:
    """A key of its own is numbered; without `expand` the rows can be counted for a warning."""
    text = 'prompt,key\n"a {red, blue} fox --r 2",fox\nan owl,owl\n"a {x, y}",\n'
    rows = [row for row in read(text) if isinstance(row, FileRow)]
    assert [has_several_jobs(row.request) for row in rows] == [True, False, True]
    assert read(text, expand=True) == [
        FileRow(2, TextToImage("a red fox"), "fox/1", {}, 1, 4),
        FileRow(2, TextToImage("a red fox"), "fox/2", {}, 2, 4),
        FileRow(2, TextToImage("a blue fox"), "fox/3", {}, 3, 4),
        FileRow(2, TextToImage("a blue fox"), "fox/4", {}, 4, 4),
        FileRow(3, TextToImage("an owl"), "owl"),
        FileRow(4, TextToImage("a x"), None, {}, 1, 2),
        FileRow(4, TextToImage("a y"), None, {}, 2, 2),
    ]
    body = lines({"taskType": "mj_txt2img", "prompt": "a {red, blue} fox"})
    assert len(requests(body, "jsonl", expand=True)) == 2
    long = "{" + ",".join(["a" * 100] * 30) + "}"
    assert len(requests(f'prompt\n"{long}"\n', expand=True)) == 30


def test_problems_of_permutations_name_their_row() -> None:
    """The first that is wrong ends its row."""
    text = lines(
        {"prompt": "{a,b}" * 40},
        {"prompt": "{a, " + "b" * 2001 + ", c}"},
        {"prompt": "{a,b}", "key": "k" * 199},
        {"key": "x/2", "prompt": "y"},
        {"key": "x", "prompt": "{a,b}"},
    )
    assert problems(text, "jsonl", expand=True) == [
        (1, "prompt: stands for more than 10,000 prompts"),
        (2, "prompt: must have at most 2,000 characters, has 2,001"),
        (3, "key: must be a str of 1 to 200 printable characters"),
        (5, "key: lines 4 and 5 have the same key 'x/2'; each row needs its own key"),
    ]


def test_a_path_is_relative_to_the_folder_of_its_file(tmp_path: Path) -> None:
    """A URL stays one; with `check_files` every picture is looked into."""
    (tmp_path / "a b.png").write_bytes(png())
    (tmp_path / "c.png").write_bytes(b"no picture")
    text = (
        f"kind,prompt,file_urls\nimage,x,a b.png|{URL}\nimage,x,{tmp_path / 'a b.png'}\n"
        "image,x,c.png\nimage,x,d.png\nimage,x,ftp://example.com/a.png\nimage,x,data:image/png\n"
    )
    rows = read(text, folder=tmp_path, check_files=True)
    assert rows[:2] == [
        FileRow(2, ImageToImage("x", [tmp_path / "a b.png", URL])),
        FileRow(3, ImageToImage("x", [tmp_path / "a b.png"])),
    ]
    found = [row.problem for row in rows if isinstance(row, RowProblem)]
    assert [row.line for row in rows[2:]] == [4, 5, 6, 7]
    assert "c.png is" in found[0]
    assert "not a picture or a video" in found[0]
    assert found[1] == (
        f"file_urls: {tmp_path / 'd.png'} does not exist; a path is relative to the folder of the "
        "file that names it"
    )
    assert "is not an http or https URL" in found[2]
    assert "is a data URL" in found[3]
    [row] = read(lines({"kind": "style", "prompt": "x", "fileUrl": "d.png"}), "jsonl")
    assert row == FileRow(1, StyleReference("x", [Path("d.png")]))


# ─── picks of the gallery ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [Upscale, Vary])
def test_a_picked_picture_is_upscaled_or_varied(kind: type[Upscale | Vary]) -> None:
    """The index is sent as it is; the key belongs to the row that made the picture."""
    pick = {"task_id": TASK, "index": 2, "file": "pictures/x.png", "prompt": "a fox", "key": "k"}
    text = lines(pick, {"task_id": TASK, "index": 0}, pick, {"task_id": "a b"}, {"index": "1"})
    assert list(picks_of(text.encode() + b"{", kind)) == [
        FileRow(1, kind(TASK, 2)),
        FileRow(2, kind(TASK, 0)),
        RowProblem(3, "is the same picture as line 1"),
        RowProblem(4, f"index: is missing; {kind.__name__} needs it"),
        RowProblem(5, f"task_id: is missing; {kind.__name__} needs it"),
        RowProblem(
            6,
            "is not valid JSON: Expecting property name enclosed in double quotes (column 2)",
        ),
    ]
    assert problems(lines(pick), "jsonl") == [
        (1, "is a line of picks.jsonl from the gallery: give --upscale or --vary")
    ]


# ─── what is wrong ───────────────────────────────────────────────────────────────────────────────


def test_equal_keys_are_refused_with_both_lines() -> None:
    """In every format, before anything is bought."""
    text = 'key,prompt\na,"x\ny"\nb,x\na,x\n'
    same = "key: lines {} and {} have the same key {!r}; each row needs its own key"
    assert problems(text) == [(5, same.format(2, 5, "a"))]
    text = lines({"prompt": "x", "key": "1"}, {"custom_id": 1, "body": {"prompt": "y"}})
    assert problems(text, "jsonl") == [(2, same.format(1, 2, "1"))]


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("prompt,aspct_ratio", "the column 'aspct_ratio' is not known; did you mean aspect_ratio?"),
        ("prompt;chaos", "the column 'chaos' is not known; did you mean variety?"),
        ("a fox in the snow", "the first row must name the columns"),
        ("animal,place", "not known as columns: 'animal', 'place'; the known columns are "),
        ("animal,place", "; --template makes prompts from others, "),
        ("Prompt,prompt", "the column 'prompt' occurs twice"),
        ("key,speed", "there is no column named prompt"),
        ("xy;z,a", 'contains "," and ";": it is not clear which of them separates the columns'),
        ('"prompt,key', "is the header, and has a quotation mark that is not closed"),
        ('"prompt"x,key', "is the header, and has text behind a closing quotation mark"),
    ],
)
def test_a_wrong_header_is_one_problem(header: str, problem: str) -> None:
    """The rows below cannot be understood, so they are not listed."""
    [(line, found)] = problems(f"\n{header}\nx,y\nz,y\n")
    assert (line, problem in found) == (2, True), found


def test_a_setting_that_is_misspelt_is_refused_also_with_a_template() -> None:
    """Though columns that are not used may be there."""
    assert problems("animal,stylisation,area\nfox,5,x\n", template="a {{animal}}") == [
        (1, "the column 'stylisation' is not used; did you mean stylization?")
    ]
    text = lines({"animal": "fox", "AspectRatio": "1:1", "a": 1}, {"animal": "fox", "promt": 1})
    assert problems(text, "jsonl", template="a {{animal}}") == [
        (1, "AspectRatio: is not used; did you mean aspect_ratio?"),
        (2, "promt: is not used; did you mean prompt?"),
    ]
    assert not problems(text, "jsonl", template="{{animal}} {{AspectRatio}}")[:-1]
    assert problems("animal\nfox\n", template="a {{anmal}}") == [
        (1, "the template names 'anmal', which the row does not have; did you mean 'animal'?")
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,b,c", "has 3 cells and the header 2; a text that contains the separator must stand in"),
        ("a", "has 1 cell and the header 2"),
        ('"a" b,c', "has text behind a closing quotation mark"),
        ('"a,b', "has a quotation mark that is not closed, so the rest of the file was not read"),
        ("a\rb,c", "contains a carriage return"),
        ("a,\x00", "contains a control character (U+0000); if the file is UTF-16"),
        ("a,\x1b[31m", "contains a control character (U+001B)"),
        (b"a,\xe9", "is not UTF-8 (byte 0xE9); save the file as UTF-8"),
        (b"a,\xc2\x85", "contains a control character (U+0085)"),
        (b"x" * 10_000_000 + b",1", "has 10,000,0"),
        ("a," + "1" * 5000, "variety: must be a whole number, got '111"),
        ("a,1_0", "variety: must be a whole number, got '1_0'"),
        ("a,٣", "variety: must be a whole number"),
        ("a,101", "variety: must be a whole number from 0 to 100, got 101"),
        ("a" * 2001 + ",1", "prompt: must have at most 2,000 characters"),
        (",1", "prompt: is missing"),
        ('"' + "a\n" * 100_000, "has a quotation mark that is not closed, so the rest of the file"),
    ],
)
def test_a_wrong_row_of_a_csv_file_is_named(row: str | bytes, problem: str) -> None:
    """By the line where it begins; the rows around it are read."""
    raw = row.encode() if isinstance(row, str) else row
    rows = read(b'prompt,variety\n"x\ny",1\n' + raw + b"\nz,2\n")
    assert rows[0] == FileRow(2, TextToImage("x\ny", variety=1))
    assert isinstance(rows[1], RowProblem)
    assert (rows[1].line, problem in rows[1].problem) == (4, True), rows[1].problem
    assert len(rows[1].problem) < 250
    assert rows[2:] == ([] if "rest" in problem else [FileRow(5, TextToImage("z", variety=2))])


def test_a_wrong_character_is_found_in_the_middle_of_a_row() -> None:
    """Its own line is named, not that of the row's beginning."""
    rows = read(b'prompt,key\n"a\nb\x07\nc\xff",1\n"d",2\n')
    assert rows == [
        RowProblem(3, "contains a control character (U+0007)"),
        FileRow(5, TextToImage("d"), "2"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a fox", "is not valid JSON: Expecting value (column 1)"),
        ('{"prompt": "a",}', "is not valid JSON: "),
        ('{"prompt": "a", "prompt": "b"}', "is not valid JSON: an object has the same name twice"),
        ('{"variety": NaN}', "is not valid JSON: NaN is not JSON"),
        ('{"variety": 1e999}', "is not valid JSON: a number is too large"),
        ('{"variety": ' + "1" * 5000 + "}", "is not valid JSON: a number is too large"),
        ('{"variety": ' + "1" * 400 + ', "prompt": "a"}', "variety: must be a whole number from 0"),
        ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ('{"prompt": ' + "[" * 90 + "]" * 90 + "}", "is not valid JSON: it is nested too deeply"),
        ("[1]", "must be a JSON object, got [1]"),
        ('{"prompt": "a\\u0000"}', "contains a control character (U+0000)"),
        ('{"prompt": "a", "extra": {"b": ["\\b"]}}', "contains a control character (U+0008)"),
        ('{"prompt": "a\\ud800"}', "contains a lone surrogate"),
        ('{"prompt": "a", "metadata": {"\\udc80": 1}}', "contains a lone surrogate"),
        ('{"prompt": "a", "kind": "image", "file_urls": ["\\udc80"]}', "contains a lone surrogate"),
        ('{"prompt": "a\x1b"}', "contains a control character (U+001B)"),
        (b'{"prompt": "\xff"}', "is not UTF-8 (byte 0xFF)"),
        ('{"prompt": "' + "a" * 10_000_000 + '"}', "has 10,000,0"),
        ("{}", "prompt: is missing; TextToImage needs it"),
        ('{"prompt": 5}', "prompt: must be a str, got a int"),
        ('{"prompt": "a", "apect_ratio": "1:1"}', "did you mean aspect_ratio?"),
        ('{"prompt": "a", "aspect_ratio": "1:1", "waterMark": "x"}', "did you mean aspectRatio?"),
        ('{"prompt": "a", "taskType": 5}', "taskType: must be one of"),
        ('{"prompt": "a", "taskType": "mj_video", "kind": "text"}', "is not TextToImage"),
        ('{"prompt": "a", "kind": "painting"}', "kind: must be one of text, image,"),
        ('{"prompt": "a", "kind": []}', "kind: must be one of text, image,"),
        ('{"prompt": "a", "kind": "upscale"}', "prompt: is not a field of Upscale"),
        ('{"prompt": "a", "file_urls": [5], "kind": "image"}', "file_urls: [0] must be a URL"),
        ('{"prompt": "a", "file_urls": {}, "kind": "image"}', "file_urls: must be a list"),
        ('{"prompt": "a", "version": true}', "version: must be a str"),
        ('{"prompt": "a", "extra": []}', "extra: must be a mapping"),
        ('{"prompt": "a", "key": 1.5}', "key: must be a str of 1 to 200 printable characters"),
        ('{"prompt": "a", "key": "a\\nb"}', "key: must be a str of 1 to 200 printable characters"),
        ('{"prompt": "a", "metadata": "b"}', "metadata: must be an object, got 'b'"),
        ('{"prompt": "a", "metadata": {"b": []}}', "metadata.b: must be a text or a number"),
        ('{"prompt": "a", "metadata.b": {}}', "metadata.b: must be a text or a number"),
        ('{"prompt": "a", "metadata.b": "' + "c" * 4096 + '"}', "metadata: must be at most 4,096"),
        ('{"custom_id": "a", "body": "b"}', "body: must be an object, got 'b'"),
        ('{"custom_id": "a", "body": {"key": "b"}}', "key: is given twice"),
        ('{"metadata": {}, "body": {"metadata": {}}}', "metadata: is given twice, in the row"),
        ('{"custom_id": "a", "body": {"prompt": "b", "n": 2}}', "n: is not a field of TextToImage"),
    ],
)
def test_a_wrong_line_of_json_is_named(line: str | bytes, problem: str) -> None:
    """The lines around it are read."""
    raw = line.encode() if isinstance(line, str) else line
    rows = read(b'\n{"prompt": "x"}\n' + raw + b'\n{"prompt": "z"}\n', "jsonl")
    assert isinstance(rows[1], RowProblem)
    assert (rows[1].line, problem in rows[1].problem) == (3, True), rows[1].problem
    assert len(rows[1].problem) < 400
    assert [rows[0], *rows[2:]] == [FileRow(2, TextToImage("x")), FileRow(4, TextToImage("z"))]


@pytest.mark.parametrize(
    ("data", "form", "problem"),
    [
        (b"[\n{},\n{}\n]\n", "jsonl", "begins a JSON array; JSON Lines has one object on each"),
        ("prompt\na fox\n".encode("utf-16"), "csv", "is UTF-16; save the file as UTF-8"),
        (b"\xfe\xff\0a", "text", "is UTF-16; save the file as UTF-8"),
        (b"PK\x03\x04\xff\n\xff", "csv", "begins a spreadsheet file"),
        (b"PK\x03\x04\xff\n\xff", "text", "begins a spreadsheet file"),
    ],
)
def test_a_file_of_another_kind_is_one_problem(data: bytes, form: Format, problem: str) -> None:
    """Not one for each of its lines."""
    [(line, found)] = problems(data, form)
    assert line == 1
    assert problem in found


# ─── any bytes, many rows ────────────────────────────────────────────────────────────────────────

PIECES = [
    b"\n",
    b"\r",
    b"\r\n",
    b",",
    b";",
    b"\t",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\\",
    b"\0",
]
PIECES += [b"prompt", b"key", b"kind", b"version", b"metadata.a", b"metadata", b"extra", b"speed"]
PIECES += [b'{"prompt": "a", "key": "', b'"}\n', b'"body": {', b"image", b"file_urls", b"a.png"]
PIECES += [b"\xff", b"\xef\xbb\xbf", "é".encode(), b"--r 2", b"{a, b}", b"{{prompt}}", b"9" * 20]
PIECES += [b"prompt,key\n", b"prompt,version,extra,metadata\n", b"null", b"1e9", b"\\ud800", b"fox"]


@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=30).map(b"".join),
    st.sampled_from(["csv", "jsonl", "text"]),
    st.sampled_from([None, "a {{prompt}}"]),
    st.booleans(),
)
def test_any_bytes_give_rows_or_problems(
    data: bytes, form: Format, template: str | None, expand: bool
) -> None:
    """Never another error; their lines are in order, and within the file."""
    format_of("-", data, template)
    rows = list(islice(rows_of(data, form, template=template, expand=expand), 1000))
    found = [row.line for row in rows]
    assert found == sorted(found)
    last = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
    assert all(1 <= line <= last for line in found)
    keys = [row.key for row in rows if isinstance(row, FileRow) and row.key is not None]
    assert len({*keys}) == len(keys)
    for row in rows:
        if isinstance(row, RowProblem):
            assert row.problem.isprintable()
            assert len(row.problem) < 2000
    for kind in (Upscale, Vary):
        assert all(isinstance(row, FileRow | RowProblem) for row in picks_of(data, kind))


def many(count: int) -> Iterator[tuple[Format, bytes]]:
    """A file of each format with so many rows."""
    numbers = range(count)
    rows = "".join(f"a red fox number {n} in the snow,16:9,50,k{n},s\n" for n in numbers)
    yield "csv", f"prompt,aspect_ratio,variety,key,metadata.sku\n{rows}".encode()
    bodies = ({"taskType": "mj_txt2img", "prompt": f"fox {n}", "speed": "turbo"} for n in numbers)
    yield (
        "jsonl",
        lines(*({"custom_id": f"k{n}", "body": b} for n, b in enumerate(bodies))).encode(),
    )
    yield "text", b"a red fox in the snow, {with a hat}\n" * count


@pytest.mark.one_python
def test_ten_thousand_rows_take_little_time_and_memory() -> None:
    """The keys are all that stays; a tenth of the time is usual here."""
    for form, data in many(10_000):
        started = time.perf_counter()
        count = sum(isinstance(row, FileRow) for row in rows_of(data, form, expand=True))
        taken = time.perf_counter() - started
        assert (form, count) == (form, 10_000)
        assert taken < 5, form
    for form, data in many(2_000):
        tracemalloc.start()
        try:
            for _ in rows_of(data, form, expand=True):
                pass
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000, form
