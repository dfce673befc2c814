"""The fenced blocks of README and docs, and what the comment before each says about it.

A comment stands on a line of its own before the block, and no reader sees it:

- `<!-- inside: client -->`: statements, run in an async function with an open client.
- `<!-- module -->`: only imported, as the module of an application.
- `<!-- file: NAME -->`: a file in the folder of the page's later blocks.
- `<!-- same as: examples/… -->`: the whole of that file, which other tests run; it is in the folder
  of the page's later blocks, too.
- `<!-- run by: tests/…py::test_… -->`: another test runs it, or holds it.
- `<!-- not run: REASON -->`.

Without one a `python` block is a whole program, and a `text` block right behind it is its output;
a `console` block has commands after `$ ` with their output, and an `sh` block commands alone. A
file that a `{literalinclude}` shows is in the folder of the page's later blocks, too.
"""

import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs

REPOSITORY = Path(__file__).parents[2]
KINDS = ("inside", "module", "file", "same as", "run by", "not run")

_BLOCK = re.compile(
    r"(?:^[ \t]*<!-- *(?P<kind>[a-z ]+?)(?:: *(?P<about>.*?))? *-->[ \t]*\n(?:[ \t]*\n)?)?"
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,})(?P<language>[^\n`]*)\n"
    r"(?P<text>.*?)^(?P=indent)(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
INCLUDED = re.compile(r"^`{3,}\{literalinclude\} +(\S+)$", re.MULTILINE)


@attrs.frozen
class Block:
    """A fenced block.

    Attributes:
        page: where it is, relative to the repository.
        language: what stands behind the fence.
        text: without the fence.
        line: of its opening fence, from 1.
        kind: the word of the comment before it; empty without one.
        about: what the comment says behind the colon.
        follows: whether it stands right behind the block before it.
    """

    page: str
    language: str
    text: str
    line: int
    kind: str = ""
    about: str = ""
    follows: bool = False

    def __str__(self) -> str:
        """A name for a test."""
        return f"{self.page}:{self.line}"

    @property
    def is_program(self) -> bool:
        """Whether it is run as a program of its own."""
        return self.language == "python" and not self.kind

    @property
    def is_test(self) -> bool:
        """Whether it is a program for pytest."""
        return self.is_program and "def test_" in self.text

    @property
    def has_output(self) -> bool:
        """Whether a text block behind it is what it prints."""
        return self.language == "python" and self.kind in ("", "inside") and not self.is_test


def pages() -> list[str]:
    """README and every page of docs."""
    docs = sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / "docs").rglob("*.md"))
    return ["README.md", *map(str, docs)]


def _blocks(page: str) -> Iterator[Block]:
    source = (REPOSITORY / page).read_text("utf-8")
    end = 0
    for found in _BLOCK.finditer(source):
        language = found["language"].strip()
        follows = bool(end) and not source[end : found.start()].strip()
        end = found.end()
        if language.startswith("{"):  # a directive, for Sphinx
            continue
        line = source[: found.start("fence")].count("\n") + 1
        text, about = textwrap.dedent(found["text"]), found["about"] or ""
        yield Block(page, language, text, line, found["kind"] or "", about, follows)


@cache
def blocks(page: str) -> list[Block]:
    """The blocks of a page, in their order."""
    return list(_blocks(page))


def all_blocks() -> list[Block]:
    """Those of every page."""
    return [block for page in pages() for block in blocks(page)]


def output_of(block: Block) -> str | None:
    """The text block right behind a program; None without one."""
    here = blocks(block.page)
    behind = here[here.index(block) + 1 :][:1]
    if behind and behind[0].language == "text" and behind[0].follows and not behind[0].kind:
        return behind[0].text
    return None


def files_before(block: Block) -> dict[str, str]:
    """The files that the page has made, or included, up to this block."""
    page, here = REPOSITORY / block.page, blocks(block.page)
    above = "".join(page.read_text("utf-8").splitlines(keepends=True)[: block.line])
    included = [(page.parent / name).resolve() for name in INCLUDED.findall(above)]
    before = here[: here.index(block)]
    files = {path.name: path.read_text("utf-8") for path in included}
    made = [each for each in before if each.kind in ("file", "same as")]
    return files | {
        each.about if each.kind == "file" else Path(each.about).name: each.text for each in made
    }


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a `console` or `sh` block, each with its output."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        for line in text.splitlines():
            command = re.sub(r"(^|\s+)#.*", "", line).strip()
            if command:
                yield command, ""
        return
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command.strip(), output
