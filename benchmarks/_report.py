"""What all programs share: their options, and how they print and write what they measured."""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from midapi_async import __version__


@attrs.frozen
class Promise:
    """A figure that the SDK promises, and what was measured.

    Attributes:
        what: the figure, with its unit.
        measured: its value in this run.
        limit: the largest value that is allowed, or with `at_least` the smallest.
        at_least: whether the limit is a lower one.
    """

    what: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        limit = f"{'>=' if self.at_least else '<='} {self.limit:g}"
        return (
            f"{self.what:64}{self.measured:10.2f} {limit:8} {'holds' if self.holds else 'MISSED'}"
        )


def options(program: str, doc: str | None) -> argparse.ArgumentParser:
    """The options that every program has; each program adds its own."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short: only to see that it runs")
    parser.add_argument(
        "--json", type=Path, default=Path(f"{Path(program).stem}-benchmark.json"), help="results"
    )
    return parser


def report(file: Path, figures: Mapping[str, object], promises: Sequence[Promise]) -> None:
    """Print which promises hold, and write everything to a file."""
    print()
    for promise in promises:
        print(promise)
    about = {"python": platform.python_version(), "midapi_async": __version__}
    written = [attrs.asdict(each) | {"holds": each.holds} for each in promises]
    file.write_text(json.dumps({**about, **figures, "promises": written}, indent=1), "utf-8")
