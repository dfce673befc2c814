"""The walk-through of docs/unknown.md, as a reader types it.

It needs a sandbox that loses answers, in a process of its own as on the page; the sandbox of
`test_blocks.py` answers everything.
"""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from tests.docs.blocks import REPOSITORY, blocks, commands
from tests.docs.test_blocks import check_output, elsewhere, new_ids, run_commands
from tests.support.waiting import SECONDS, free_port, wait_until

__all__ = ["elsewhere"]

# slow: on the newest Python only.
pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@contextmanager
def served(options: list[str], log: Path) -> Iterator[str]:
    """A sandbox in a process of its own, at a free port; its URL."""
    with log.open("w") as output:
        command = [sys.executable, "-m", "midapi_async", "sandbox", *options, "--port", "0"]
        serving = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "Ctrl-C" in log.read_text() or serving.poll() is not None)
        assert serving.poll() is None, log.read_text()
        yield log.read_text().splitlines()[0]
    finally:
        serving.terminate()
        serving.wait(SECONDS)


def test_the_walk_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command prints what the page shows; the ids of one are used by the next ones."""
    first, *others = [
        each
        for each in blocks("docs/unknown.md")
        if each.about.endswith(test_the_walk_through.__name__)
    ]
    [(sandbox, shown)] = commands(first)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    port = str(free_port())
    ids: dict[str, str] = {}
    log = tmp_path / "sandbox.log"
    with served(shlex.split(sandbox)[2:], log) as url:
        check_output(shown, log.read_text())
        for name, value in (("BASE_URL", url), ("API_KEY", "anything"), ("TIME_SCALE", "60")):
            monkeypatch.setenv(f"MIDAPI_{name}", value)
        for block in others:
            if block.language == "text":  # of the first terminal
                printed = "".join(log.read_text().splitlines(keepends=True)[5:7])
                check_output(block.text, printed)
                ids |= new_ids(block.text, printed)
            else:
                here = attrs.evolve(block, text=block.text.replace("8080", port))
                run_commands(here, ids, monkeypatch)
    assert log.read_text().count("accepted:") == 5  # nothing but what the page says was bought
