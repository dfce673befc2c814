"""The programs in benchmarks/ run, compare like with like, and report what they measured.

Absolute times and tight ratios are not tested here: this machine may be busy.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PEERS = ("fal-client", "replicate", "openai", "runwayml")
# Each starts processes of its own.
pytestmark = [pytest.mark.real_time, pytest.mark.one_python]


def run(program: str, *arguments: str, folder: Path) -> list[str]:
    """Run a program in its short form in a folder; the lines that it printed."""
    # Coverage would be measured with it, and what runs here is covered by other tests.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), "--quick", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def measured(program: str, *arguments: str, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The lines that a program printed and the JSON that it wrote, with the same verdicts."""
    lines = run(program, *arguments, folder=folder)
    written = json.loads((folder / f"{Path(program).stem}-benchmark.json").read_text("utf-8"))
    promises = written["promises"]
    assert promises
    for promise, line in zip(promises, lines[-len(promises) :], strict=True):
        measured, limit = promise["measured"], promise["limit"]
        assert promise["holds"] == (measured >= limit if promise["at_least"] else measured <= limit)
        assert line.startswith(promise["what"])
        assert line.endswith("holds" if promise["holds"] else "MISSED")
    return lines, written


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program as a module, which finds its helpers beside itself."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    import overhead

    yield overhead
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_overhead_compares_the_sdk_and_every_installed_peer_with_raw_aiohttp(
    tmp_path: Path,
) -> None:
    """Raw aiohttp is 1, and each peer is in both tables or named as left out."""
    lines, written = measured("overhead.py", folder=tmp_path)
    assert list(written["cases"]) == ["submit", "look", "callback", "wake"]
    for ways in written["cases"].values():
        assert ways["raw aiohttp"]["ratio"] == 1.0
        assert 0.3 < ways["midapi_async"]["ratio"] < 4
        for cost in ways.values():
            assert cost["us"] > 0
            assert cost["low"] <= cost["ratio"] <= cost["high"]
    for name in PEERS:
        is_left_out = f"{name} is not installed and left out" in lines
        for case in ("submit", "look"):
            ways = written["cases"][case]
            assert is_left_out != any(way.startswith(f"{name} ") for way in ways)


@pytest.mark.parametrize("case", ["submits", "looks"])
async def test_overhead_refuses_a_reference_that_sends_other_bytes(
    case: str, overhead: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ratio to a reference that does less would mean nothing."""
    import _raw
    import _server

    async with _server.Service() as service:
        async with getattr(overhead, case)(service, ()) as ways:
            assert [way.name for way in ways] == ["raw aiohttp", "midapi_async"]
        monkeypatch.setitem(_raw.BODY, "speed", "turbo")
        monkeypatch.delitem(_raw.HEADERS, "Accept")
        with pytest.raises(AssertionError, match="does not send the same bytes"):
            async with getattr(overhead, case)(service, ()):
                pass


def test_overhead_profiles_a_case(tmp_path: Path) -> None:
    """The SDK's own functions are in the profile."""
    lines = run("overhead.py", "--profile", "look", folder=tmp_path)
    assert any("read_look" in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_latency_compares_both_journals_with_a_bare_handler(tmp_path: Path) -> None:
    """Every waiter resumed, alone and in a burst, and the reference is 1."""
    _, written = measured("latency.py", folder=tmp_path)
    ends = ("raw aiohttp", "memory", "folder")
    assert [f"{end}, {number} at once" for number in (1, 16) for end in ends] == list(
        written["ways"]
    )
    for name, figures in written["ways"].items():
        assert figures["tasks"] == 16
        assert 0 < figures["p50 ms"] <= figures["p99 ms"] <= figures["worst ms"]
        assert not name.startswith("raw") or figures["p50 ratio"] == figures["p99 ratio"] == 1.0
    burst = written["burst"]
    assert burst["ratio"] == burst["last waiter s"] / burst["GETs s"] > 0


def test_gate_never_exceeds_the_limit_and_shares_it(tmp_path: Path) -> None:
    """No window holds more than the limit, most of it is in use, and each process gets slots."""
    _, written = measured("gate.py", "--processes", "2", folder=tmp_path)
    assert [len(use["shares"]) for use in written["ways"].values()] == [1, 1, 2]
    for use in written["ways"].values():
        assert use["most"] <= written["count"]
        assert 0.5 < use["rate"] / use["ideal"] < 1.1
        assert min(use["shares"]) > 0
        assert sum(use["shares"]) == pytest.approx(1)


def test_a_batch_is_compared_with_a_script(tmp_path: Path) -> None:
    """Fewer requests for each row; none, and little more than reading its rows, for another run."""
    _, written = measured("batch.py", folder=tmp_path)
    assert len(written["ways"]) == 4
    for name, figures in written["ways"].items():
        assert figures["most in a window"] <= 20
        assert figures["requests again"] == 0
        assert figures["limit in use"] > 0
        assert figures["MB"] > 0
        if not name.startswith("script"):
            assert figures["refused"] == 0
            peer = written["ways"][name.replace("generate_many", "script")]
            assert figures["requests a row"] < 0.8 * peer["requests a row"]
            assert 0 < figures["again / reading"] < 10
    figures = written["keys"]
    assert figures["requests of the first run"] >= 2 * figures["keys"]
    assert figures["requests"] == 0
    for way in ("all at once", "one by one"):
        assert figures[f"again, {way} s"] < figures["first run s"]
        assert 1 < figures[f"{way} / reading"] < 1000


def test_downloads_are_compared_with_a_bare_one(tmp_path: Path) -> None:
    """A video and pictures, beside what people write and the same with a sync."""
    _, written = measured("files.py", folder=tmp_path)
    assert written["cases"].keys() == {"video", "pictures"}
    for figures in written["cases"].values():
        assert all(value > 0 for value in figures.values())


def test_journal_compares_with_a_bare_commit(tmp_path: Path) -> None:
    """A durable submit is a claim and an advance, and every callback was answered."""
    _, written = measured("journal.py", folder=tmp_path)
    submits = written["submits"]
    assert submits["ratio"] == submits["durable submit"] / submits["bare commit"] > 1
    assert submits["durable submit"] > max(submits["claim"], submits["advance"])
    assert list(written["callbacks"]) == ["raw aiohttp", "memory", "folder"]
    assert min(written["callbacks"].values()) > 0


def test_machines_compares_with_an_insert(tmp_path: Path) -> None:
    """On a real server, with every kind of figure."""
    _, written = measured("machines.py", folder=tmp_path)
    figures = written["figures"]
    # Those of the import are differences: of two imports, one may meet a quieter moment.
    assert min(value for name, value in figures.items() if not name.startswith("import,")) > 0
    assert 0.5 < figures["claim / INSERT + COMMIT"] < 20
    assert figures["wake elsewhere, p50 ms"] <= figures["wake elsewhere, p99 ms"] < 5000


def test_imports_are_compared_by_their_cpu(tmp_path: Path) -> None:
    """Our import includes the reference's, and little more."""
    _, written = measured("imports.py", folder=tmp_path)
    reference, ours = written["ways"].values()
    assert reference["ratio"] == 1.0
    assert ours["ratio"] < 2


def test_looks_plays_every_policy_on_the_same_tasks(tmp_path: Path) -> None:
    """Ours is not much worse than the optimum, and beats it by no more than chance."""
    picture = tmp_path / "looks.png"
    can_draw = importlib.util.find_spec("matplotlib") is not None
    options = ["--png", str(picture)] if can_draw else []
    _, written = measured("looks.py", *options, folder=tmp_path)
    assert can_draw == picture.exists()
    assert len(written["worlds"]) == 1
    for world in written["worlds"]:
        assert 0.9 < world["ratio"] < 1.3
        assert all(delay > 0 for delay, _ in world["fixed"].values())
        # A fixed interval looks as often as it fits into the task, and once more.
        assert world["fixed"]["0.1"][1] > 4 * world["fixed"]["0.5"][1]


def test_waiters_measures_memory_beyond_the_callers(tmp_path: Path) -> None:
    """A waiter takes about 2 KB more than a bare task, and each of 300 remembered records 3 KB."""
    _, written = measured("waiters.py", folder=tmp_path)
    assert list(written["kinds"]) == ["callers", "tasks"]
    beyond = {
        kind: 1e6 * figures["MB beyond"] / written["waiters"]
        for kind, figures in written["kinds"].items()
    }
    assert beyond["callers"] == 0 < beyond["tasks"] < 4000 + 3000
