"""The gallery's page as text; tests/batch/test_gallery_browser.py opens it in a browser."""

import base64
import hashlib
import html.parser
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midapi_async import TextToImage, Upscale, Vary, request_to_json
from midapi_async.batch.gallery import write_gallery
from tests.batch.folders import errors, results, row

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script> --> ]]> {{groups}} {{script}}",
    "\u2028\u2029\u202egnp.exe\u0000\x1b[31m",
    "\"quotes\" 'and' `ticks` & &lt;",
    "\ud800 half a character",
    "x" * 10_000,
]


class Page(html.parser.HTMLParser):
    """The elements of a page as a browser finds them: its data, its scripts, its policy."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._in = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.texts:
            self.texts[tag].append("")
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in self.texts:
            self.texts[self._in][-1] += data

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.texts["script"][0]))

    @property
    def groups(self) -> list[dict[str, Any]]:
        return list(json.loads(self.texts["script"][1]))


def page_of(folder: Path) -> Page:
    write_gallery(folder)
    return Page((folder / "gallery.html").read_text("utf-8"))


def test_a_row_has_what_the_page_shows(tmp_path: Path) -> None:
    """Prompt, settings that were set, ids, time, notes, and each picture by its path."""
    request = request_to_json(TextToImage("a red fox", aspect_ratio="16:9", stylization=250))
    line = row("a red fox", 4, request=request, metadata={"shot": "12"}, seconds=58.2)
    results(tmp_path, line)
    assert page_of(tmp_path).groups == [
        {
            "prompt": "a red fox",
            "tasks": [
                {
                    "key": "batch/4",
                    "task": "task0004",
                    "state": "succeeded",
                    "kind": "TextToImage",
                    "settings": {"aspectRatio": "16:9", "stylization": "250"},
                    "metadata": {"shot": "12"},
                    "seconds": 58.2,
                    "completed": "2026-11-26T12:01:00+00:00",
                    "ratio": 1.7778,
                    "pictures": [[n, f"pictures/task0004_{n}.jpeg", None] for n in range(4)],
                }
            ],
        }
    ]


def test_rows_are_in_the_order_of_the_file_and_by_prompt(tmp_path: Path) -> None:
    """They are written as they end."""
    results(tmp_path, row("b", 3), row("a", 2), row("b", 1), row("c", 0))
    found = [(each["prompt"], [task["key"] for task in each["tasks"]]) for each in
             page_of(tmp_path).groups]  # fmt: skip
    assert found == [("c", ["batch/0"]), ("b", ["batch/1", "batch/3"]), ("a", ["batch/2"])]


def test_what_was_made_from_a_picture_is_with_its_prompt(tmp_path: Path) -> None:
    """Also what was made from that, and with the shape of the first picture."""
    first = row("dunes --ar 3:2", 7)
    up = row(None, 0, "up", kind="Upscale", request=request_to_json(Upscale("task0007", 2)))
    vary = row(None, 1, "vary", kind="Vary", request=request_to_json(Vary("task-up", 0)))
    stray = row(None, 2, "stray", kind="Upscale", request=request_to_json(Upscale("elsewhere", 1)))
    results(tmp_path, up, vary, stray, first)
    alone, dunes = page_of(tmp_path).groups
    assert [task["task"] for task in dunes["tasks"]] == ["task0007", "task-up", "task-vary"]
    parents = [task.get("parent") for task in dunes["tasks"]]
    assert parents == [None, ["task0007", 2], ["task-up", 0]]
    assert {task["ratio"] for task in dunes["tasks"]} == {1.5}
    assert (alone["prompt"], alone["tasks"][0]["parent"]) == (None, ["elsewhere", 1])


def test_tasks_that_name_each_other_as_their_origin_are_shown(tmp_path: Path) -> None:
    """No batch writes such a file, but a page must come of it."""
    results(
        tmp_path,
        *(
            row(None, n, name, request={"taskId": f"task-{of}"})
            for n, (name, of) in enumerate([("a", "b"), ("b", "c"), ("c", "b"), ("d", "d")])
        ),
    )
    names = [task["task"] for group in page_of(tmp_path).groups for task in group["tasks"]]
    assert sorted(names) == ["task-a", "task-b", "task-c", "task-d"]


def test_a_success_replaces_an_error(tmp_path: Path) -> None:
    """A row that was tried again is there once; of several errors the last one counts."""
    refused = {"type": "Refused", "code": 400, "message": "no"}
    errors(
        tmp_path,
        row("a", 1, state="failed", error=refused),
        row("b", 2, state="failed", error=refused),
        row("b", 2, state="unknown", error={"type": "SubmissionUnknown", "message": "lost"}),
    )
    results(tmp_path, row("a", 1))
    page = page_of(tmp_path)
    [a, b] = [group["tasks"] for group in page.groups]
    assert [(task["state"], task.get("error")) for task in a + b] == [
        ("succeeded", None),
        ("unknown", {"type": "SubmissionUnknown", "message": "lost"}),
    ]
    assert page.facts["done"] == 2


@pytest.mark.parametrize("torn", ['{"key": "x', '{"key": "x"}', "\x00", '"'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    """A line counts when its end is written."""
    results(tmp_path, row("a", 1))
    with (tmp_path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(torn)
    page = page_of(tmp_path)
    assert (page.facts["done"], page.facts["unreadable"]) == (1, {})


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    """The page says how many are missing from it."""
    lines = [b"\xff\xfe", b"[1]", b"{", b"", b"[" * 100_000, json.dumps(row("a", 1)).encode()]
    (tmp_path / "results.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "errors.jsonl").write_bytes(b"null\n")
    page = page_of(tmp_path)
    assert page.facts["unreadable"] == {"errors.jsonl": 1, "results.jsonl": 4}
    assert page.facts["done"] == 1


def test_a_folder_without_results_has_an_empty_page(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert (page.groups, page.facts["done"], page.facts["rows"]) == ([], 0, None)


@pytest.mark.parametrize(
    ("text", "rows"), [('{"rows": 12}', 12), ('{"rows": true}', None), ("[", None), ("{}", None)]
)
def test_the_number_of_rows_is_that_of_the_batch(
    tmp_path: Path, text: str, rows: int | None
) -> None:
    """Where it is known, the page can say how far the batch is."""
    (tmp_path / "batch.json").write_text(text)
    assert page_of(tmp_path).facts["rows"] == rows


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(HOSTILE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
MEMBERS = [*row("a", 1), "error", "intent_id"]


@given(
    lines=st.lists(
        st.dictionaries(st.sampled_from(MEMBERS), JSON, max_size=6)
        | st.builds(lambda index, extra: {**row("a", index), **extra}, st.integers(0, 3),
                    st.dictionaries(st.sampled_from(["request", "files", "urls", "metadata"]),
                                    JSON | st.dictionaries(st.sampled_from(
                                        ["taskId", "imageIndex", "aspectRatio", "extra", "prompt"]
                                    ), JSON | st.just("task0001")))),
        max_size=4,
    ),
    name=st.sampled_from(["results.jsonl", "errors.jsonl"]),
)  # fmt: skip
def test_whatever_a_line_holds_there_is_a_page(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]], name: str
) -> None:
    """Each row is on it once, the data can be parsed, and the page has no other script."""
    folder = tmp_path_factory.mktemp("any")
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(folder)
    keys = {line["key"] for line in lines if isinstance(line.get("key"), str) and line["key"]}
    without = sum(not (isinstance(line.get("key"), str) and line["key"]) for line in lines)
    assert sum(len(group["tasks"]) for group in page.groups) == len(keys) + without
    assert len(page.texts["script"]) == 3


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
def test_text_of_others_is_only_data(tmp_path: Path, text: str) -> None:
    """In a prompt, a key, a note or an error it adds no element to the page, and stays whole."""
    plain = Page(page_text(tmp_path, "a"))
    page = Page(page_text(tmp_path, text))
    assert page.elements == plain.elements
    assert page.texts["script"][2] == plain.texts["script"][2]
    assert page.groups[0]["prompt"] == text
    assert page.groups[0]["tasks"][0]["metadata"] == {text: text}


def page_text(folder: Path, text: str) -> str:
    line = row(text, 1, state="failed", metadata={text: text}, error={"message": text})
    errors(folder, {**line, "key": text})
    write_gallery(folder)
    return (folder / "gallery.html").read_text("utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../secret.jpeg",
        "pictures/../../secret.jpeg",
        "pictures\\..\\..\\secret.jpeg",
        "//example.com/a.jpeg",
        "./a.jpeg",
        "",
        "a\nb.jpeg",
        "\ud800.jpeg",
        7,
        None,
    ],
)
def test_a_file_outside_the_folder_is_left_out(tmp_path: Path, name: object) -> None:
    """What is not a plain relative path never becomes the address of a picture."""
    results(tmp_path, row("a", 1, files=[name], urls=[]))
    assert "pictures" not in page_of(tmp_path).groups[0]["tasks"][0]


def test_addresses_that_are_not_http_are_left_out(tmp_path: Path) -> None:
    """A result that was not downloaded has a link to it, if its address is one of the web."""
    urls = ["javascript:alert(1)", "https://cdn.example/1.jpeg", "data:text/html,x", 5]
    results(tmp_path, row("a", 1, files=["pictures/task0001_3.jpeg"], urls=urls))
    assert page_of(tmp_path).groups[0]["tasks"][0]["pictures"] == [
        [0, None, None],
        [1, None, "https://cdn.example/1.jpeg"],
        [2, None, None],
        [3, "pictures/task0001_3.jpeg", None],
    ]


def test_the_policy_names_the_one_script_and_the_one_style(tmp_path: Path) -> None:
    """Nothing else runs, and nothing is fetched but pictures and videos."""
    page = page_of(tmp_path)
    [policy] = [
        attrs["content"] or ""
        for tag, attrs in page.elements
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for kind, text in (("script", page.texts["script"][2]), ("style", page.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    named = [value for _, attrs in page.elements for name, value in attrs.items()
             if name in {"src", "href", "style"} or name.startswith("on")]  # fmt: skip
    assert set(named) <= {"data:,", "#main", None}


def test_the_page_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser never reads half a page, and a failure leaves the old one and no other file."""
    results(tmp_path, row("a", 1))
    write_gallery(tmp_path)
    before = (tmp_path / "gallery.html").read_bytes()
    results(tmp_path, row("b", 2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            write_gallery(tmp_path)
    assert (tmp_path / "gallery.html").read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["gallery.html", "results.jsonl"]


def fail(*_: object) -> None:
    raise OSError("no space")


def test_stars_are_stored_per_folder(tmp_path: Path) -> None:
    """All pages from ``file:`` share one store. The name stays when the folder is moved."""
    names = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        names.append(folder_id(page_of(folder)))
    assert len({*names}) == 2
    (tmp_path / "a").rename(tmp_path / "c")
    assert folder_id(page_of(tmp_path / "c")) == names[0]
    (tmp_path / "b" / "gallery.html").unlink()
    assert folder_id(page_of(tmp_path / "b")) == names[1]


def folder_id(page: Page) -> str:
    found = page.elements[0][1]["data-folder"] or ""
    assert re.fullmatch("[0-9a-f]{16}", found)
    return found


@pytest.mark.one_python
@pytest.mark.real_time
def test_20_000_pictures_are_written_within_two_seconds(tmp_path: Path) -> None:
    """While the batch runs it is done every five seconds; measured: 0.2 s, and 3 MB."""
    results(tmp_path, *(row(f"a red fox, number {n}", n) for n in range(5000)))
    start = time.perf_counter()
    write_gallery(tmp_path)
    assert time.perf_counter() - start < 2
    assert (tmp_path / "gallery.html").stat().st_size < 4e6
