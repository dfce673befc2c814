"""The programs in benchmarks/ run, compare like with like, and tell the truth about their figures.

No figure itself is tested here: this machine may be busy.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
OURS = ("midapi_async", "aiohttp")
PEERS = ("fal-client", "replicate", "openai", "runwayml")
pytestmark = pytest.mark.real_time  # each starts processes of its own


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in a folder of its own, with the package of this checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(ROOT)])},
    )


def measured(program: str, *options: str, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The lines that a benchmark printed, and the JSON that it wrote."""
    done = run(str(BENCHMARKS / program), *options, folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((folder / f"{Path(program).stem}-benchmark.json").read_text())
    return done.stdout.splitlines(), written


def changed(before: str, *options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What overhead.py does when this was run before it in the same interpreter."""
    code = f"import sys; {before}; import overhead; sys.argv[1:] = {list(options)}; overhead.main()"
    return run("-c", code, folder=folder)


def test_overhead_compares_each_case_and_says_which_figures_hold(tmp_path: Path) -> None:
    """Raw aiohttp is 1, each verdict fits the ratio beside it, and what was printed is written.

    Of SDKs that are not installed one line says so, and nothing else is missing.
    """
    nobody = f"sys.modules.update(dict.fromkeys({[name.replace('-', '_') for name in PEERS]}))"
    done = changed(nobody, "--quick", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [f"{name} is not installed and left out" for name in PEERS] == done.stdout.splitlines()[
        : len(PEERS)
    ]
    written = json.loads((tmp_path / "overhead-benchmark.json").read_text())
    assert list(written["cases"]) == ["submit", "look", "callback", "wake"]
    ratios = [ways["midapi_async"]["ratio"] for ways in written["cases"].values()]
    verdicts = re.findall(r"(holds|MISSED)$", done.stdout, re.MULTILINE)
    assert ["holds" if ratio <= written["hold"] else "MISSED" for ratio in ratios[:3]] == verdicts
    for ways in written["cases"].values():
        assert ways["raw aiohttp"]["ratio"] == 1.0
        for cost in ways.values():
            assert cost["us"] > 0
            assert cost["low"] <= cost["ratio"] <= cost["high"]


def test_overhead_measures_every_sdk_that_is_installed(tmp_path: Path) -> None:
    """Each stands in both tables, or in the line that says that it is left out."""
    options = ("--quick", "--slices", "2", "--only", "submit", "look")
    lines, written = measured("overhead.py", *options, folder=tmp_path)
    assert {*OURS} <= written["versions"].keys() <= {*OURS, *PEERS}
    for name in PEERS:
        is_left_out = f"{name} is not installed and left out" in lines
        assert is_left_out == (name not in written["versions"])
        for ways in written["cases"].values():
            assert is_left_out != any(way.startswith(f"{name} ") for way in ways)


@pytest.mark.parametrize(
    ("case", "change"),
    [("submit", "BODY.update(speed='turbo')"), ("look", "HEADERS.pop('Accept')")],
)
def test_overhead_has_no_reference_that_sends_other_bytes(
    case: str, change: str, tmp_path: Path
) -> None:
    """A ratio to something that does less, or else, would mean nothing: then there is none."""
    done = changed(f"import _raw; _raw.{change}", "--quick", "--only", case, folder=tmp_path)
    assert done.returncode != 0
    assert "the reference does not send the same bytes" in done.stderr
    assert not list(tmp_path.iterdir())


def test_overhead_shows_where_the_time_of_a_case_goes(tmp_path: Path) -> None:
    """The profile is of our client: its own functions are in it."""
    program = str(BENCHMARKS / "overhead.py")
    done = run(program, "--profile", "look", "--quick", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "read_look" in done.stdout
    assert not list(tmp_path.iterdir())


def test_latency_compares_both_journals_with_a_bare_handler(tmp_path: Path) -> None:
    """Each way woke every waiter, the reference is 1, and each verdict fits its figure."""
    lines, written = measured("latency.py", "--quick", folder=tmp_path)
    ways = written["ways"]
    ends = ("raw aiohttp", "memory", "folder")
    assert [f"{end}, {number} at once" for number in (1, 64) for end in ends] == list(ways)
    for name, figures in ways.items():
        assert figures["tasks"] == 64
        assert 0 < figures["p50 ms"] <= figures["p99 ms"] <= figures["worst ms"]
        if name.startswith("raw"):
            assert (figures["p50 ratio"], figures["p99 ratio"]) == (1.0, 1.0)
        else:
            (line,) = (line for line in lines if line.startswith(name))
            verdict = "holds" if figures["p99 ms"] < written["hold p99 ms"] else "MISSED"
            assert line.endswith(verdict)
    pace = written["default pace"]
    assert pace["callbacks"] == 8
    assert 0 < pace["p50 ms"] < pace["last ms"]
