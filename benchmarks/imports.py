"""What ``import midapi_async`` costs beside the imports that it cannot do without.

    python benchmarks/imports.py [--quick] [--runs N]

Both are measured by turns, each in a fresh interpreter: CPU of the import, user and system, the
interpreter's own start left out; medians.
"""

import os
import subprocess
import sys

import attrs

from _measure import Cost, cost_of
from _report import Promise, options, report

HOLD = 1.15
WAYS = {
    "aiohttp, attrs, cattrs, backoff": "aiohttp, attrs, cattrs, backoff",
    "ours": "midapi_async",
}
CODE = "import time; t = time.process_time(); import {}; print((time.process_time() - t) * 1e6)"


def import_once(modules: str) -> float:
    """µs of CPU for an import in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(modules)],
        # What is compiled is kept, as for a user.
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(done.stdout)


def compare(runs: int) -> dict[str, Cost]:
    """Both ways by turns."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(runs):
        for name in list(WAYS)[:: -1 if number % 2 else 1]:
            times[name].append(import_once(WAYS[name]))
    reference, *_ = times.values()
    return {name: cost_of(each, reference) for name, each in times.items()}


def main() -> int:
    """Measure, print and write."""
    parser = options(__file__, __doc__)
    parser.add_argument("--runs", type=int, help="of each; default 25, or 2 with --quick")
    given = parser.parse_args()
    costs = compare(given.runs or (2 if given.quick else 25))
    for name, cost in costs.items():
        print(f"{name:34}{cost.us / 1000:8.0f} ms{cost.ratio:8.2f}")
    promise = Promise("CPU of an import / its dependencies", costs["ours"].ratio, HOLD)
    ways = {name: attrs.asdict(cost) for name, cost in costs.items()}
    report(given.json, {"ways": ways}, [promise])
    return 0


if __name__ == "__main__":
    sys.exit(main())
