"""benchmarks/receiver.py runs, and its verdicts are those of the figures beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "benchmarks" / "receiver.py"


@pytest.mark.real_time
def test_receiver_compares_every_way_at_every_number_of_connections(tmp_path: Path) -> None:
    """The reference is 1, and each verdict fits the figure that it is about."""
    done = subprocess.run(
        [sys.executable, PROGRAM, "--quick"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((tmp_path / "receiver-benchmark.json").read_text(encoding="utf-8"))
    told = {(each["way"], each["connections"]): each for each in written["ways"]}
    ways = ("raw aiohttp", "raw aiohttp, no router", "memory", "folder")
    assert [(way, number) for number in (1, 64) for way in ways] == list(told)
    for (way, _), figure in told.items():
        assert figure["rate"] > 0
        assert figure["us"] > 0
        assert way != "raw aiohttp" or figure["ratio"] == 1.0
    cpu, rate = written["verdicts"].values()
    middle = (told["memory", 1]["ratio"] + told["memory", 64]["ratio"]) / 2
    assert cpu["measured"] == pytest.approx(middle)
    assert (cpu["measured"] <= 1.3) == cpu["holds"]
    assert told["folder", 64]["rate"] == rate["measured"]
    assert (rate["measured"] >= 4000) == rate["holds"]
    lines = done.stdout.splitlines()[-2:]
    said = ["holds" if each["holds"] else "MISSED" for each in (cpu, rate)]
    assert said == [line.rpartition(" ")[2] for line in lines]
