"""Plays the same scenarios with two versions of the package, and prints where they differ.

    python compare.py OLD_PYTHON NEW_PYTHON [N] [--processes N] [--shrink]

Each Python has one version installed, or finds it in ``--old-path`` or ``--new-path``. What differs
on purpose is in `intended.md` and does not count. Exit code 1: something else differs.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
FROZEN = "9a8411b"  # the commit whose sandbox and virtual loop both versions play with
TIMES = {"time", "submit", "look"}  # kinds whose values are seconds; one more or less is the same
AGAIN = 2  # how often a scenario in real time that differs is played again
Plan = dict[str, Any]
Facts = dict[str, dict[str, list[str]]]


class Difference(NamedTuple):
    """One fact that two versions give differently."""

    kind: str
    name: str
    old: list[str]
    new: list[str]
    at: float  # about when it came up, in seconds; infinite if that is not known

    def __str__(self) -> str:
        is_earlier = self.kind == "time" and [*map(float, self.new)] < [*map(float, self.old)]
        is_earlier &= len(self.old) == len(self.new)
        return f"{self.name}: {_shown(self.old)} → {_shown(self.new)}{' (earlier)' * is_earlier}"

    @property
    def prompts(self) -> set[str]:
        """The prompts whose tasks or calls it concerns; none if it is about all together."""
        found = re.findall(r"<([^>]*) #\d+>|'([^']*?)(?: \[\[[^']*)?'", f"{self}")
        paid = {self.name} if self.kind == "paid" else set()
        return paid | {task or call for task, call in found}

    @property
    def shape(self) -> str:
        """What it has in common with others of the same cause: no names of tasks, no times."""
        values = f"{_shown(self.old)} → {_shown(self.new)}"
        if self.kind in {*TIMES, "looks", "submits", "stats"}:
            values = ""
        what = re.sub(r"life \d+[.\d]*|'[^']*'|<[^>]*>", "", self.name)
        return f"{self.kind} {what.split()[:1]} {re.sub(r'<[^>]*>', '<task>', values)}"


class Intended(NamedTuple):
    """A row of `intended.md`.

    Attributes:
        what: its name.
        kind: of the differences that it is about.
        pattern: found in them.
        excused: kinds of further differences that follow from one, for the same prompt; with a
            star, for any prompt, if they come up at the same time or later.
    """

    what: str
    kind: str
    pattern: re.Pattern[str]
    excused: frozenset[str]

    def excuses(self, seen: Difference, other: Difference) -> bool:
        """Whether a difference follows from one that this row is about."""
        if other.kind == "paid" and sum(map(int, other.new)) > sum(map(int, other.old)):
            return False  # nothing explains that more was paid for
        is_later = f"{other.kind}*" in self.excused and other.at >= seen.at - 1
        return is_later or (other.kind in self.excused and bool(other.prompts & seen.prompts))


def _shown(values: list[str]) -> str:
    return " + ".join(values) if values else "nothing"


def _apart(these: list[str], others: list[str]) -> set[str]:
    """The times that none of the other times is within a second of."""
    return {each for each in these if all(abs(int(each) - int(other)) > 1 for other in others)}


def differences(old: Facts, new: Facts) -> list[Difference]:
    """Every fact in which two records of a scenario differ."""
    found = []
    # When each life began, after the first one: the times of its steps count from there.
    began = {name: float(values[0]) for name, values in old.get("began", {}).items()}
    first = min(began.values(), default=0.0)
    for kind in sorted({*old, *new} - {"began"}):
        before, after = old.get(kind, {}), new.get(kind, {})
        for name in sorted({*before, *after}):
            was, now = before.get(name, []), after.get(name, [])
            is_close = kind in TIMES and len(was) == len(now)
            if is_close and all(abs(int(a) - int(b)) <= 1 for a, b in zip(was, now, strict=True)):
                continue
            if was != now or kind == "crash":
                times = (
                    (_apart(was, now) | _apart(now, was)) or {*was} ^ {*now}
                    if kind in TIMES
                    else {
                        *old.get("time", {}).get(name, []),
                        *new.get("time", {}).get(name, []),
                    }
                )
                at = min(map(float, times), default=math.inf)
                if life := re.match(r"life \d+", name):
                    at += began.get(life[0], first) - first
                found.append(Difference(kind, name, was, now, at))
    order = ["outcome", "names", "time", "submit"]
    kinds = {kind: order.index(kind) if kind in order else len(order) for kind in {*old, *new}}
    return sorted(found, key=lambda each: (each.at, kinds[each.kind]))


def read_intended() -> list[Intended]:
    """The table of what differs on purpose."""
    rows = []
    for line in (HERE / "intended.md").read_text("utf-8").splitlines():
        if found := re.fullmatch(r"\| (.+?) \| (\w+) \| `(.+)` \| ([\w*, –]*) \| .+ \|", line):
            what, kind, pattern, excused = found.groups()
            excuses = frozenset(re.findall(r"\w+\*?", excused))
            rows.append(Intended(what, kind, re.compile(pattern.replace(r"\|", "|")), excuses))
    return rows


def split(found: list[Difference], table: list[Intended]) -> tuple[list[Difference], Counter[str]]:
    """The differences that count, and how often each row of the table was seen."""
    seen: Counter[str] = Counter()
    causes: list[tuple[Intended, Difference]] = []
    left = []
    for each in found:
        row = next((r for r in table if r.kind == each.kind and r.pattern.search(str(each))), None)
        if row is None:
            left.append(each)
        else:
            seen[row.what] += 1
            causes.append((row, each))
    left = [each for each in left if not any(row.excuses(cause, each) for row, cause in causes)]
    return left, seen


class Version:
    """One version of the package: a Python, and what goes before its installed packages."""

    def __init__(self, python: str, path: str, frozen: str) -> None:
        self._command = [python, str(HERE / "record.py")]
        self._env = {
            **{name: value for name, value in os.environ.items() if "MIDAPI" not in name},
            "PYTHONPATH": os.pathsep.join(filter(None, [path, frozen])),
            "PYTHONHASHSEED": "0",
        }

    def record(self, *arguments: str, plans: str = "") -> list[tuple[Plan, Facts]]:
        """Run the recorder."""
        ended = subprocess.run(
            [*self._command, *arguments],
            input=plans,
            env=self._env,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        lines = map(json.loads, ended.stdout.splitlines())
        return [(line["plan"], line["facts"]) for line in lines]


def freeze(folder: Path) -> None:
    """Copy the sandbox and the virtual loop of the frozen commit under names of their own."""
    names = ["midapi_async/sandbox", "midapi_async/testing.py"]
    archive = subprocess.run(
        ["git", "archive", FROZEN, *names], cwd=HERE.parents[1], stdout=subprocess.PIPE, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(folder, filter="data")
    for name in ("sandbox", "testing"):
        for file in (folder / "midapi_async").rglob("*.py"):
            text = file.read_text("utf-8").replace(f"midapi_async.{name}", f"frozen_{name}")
            file.write_text(text, "utf-8")
    (folder / "midapi_async/sandbox").rename(folder / "frozen_sandbox")
    (folder / "midapi_async/testing.py").rename(folder / "frozen_testing.py")
    (folder / "midapi_async").rmdir()


def without(plan: Plan, parts: set[tuple[int, int]]) -> Plan:
    """A plan that lacks some steps (life, step) and faults (-1, fault)."""
    made = deepcopy(plan)
    made["faults"] = [f for n, f in enumerate(plan["faults"]) if (-1, n) not in parts]
    for number, life in enumerate(made["lives"]):
        life["steps"] = [s for s in life["steps"] if (number, s[0]) not in parts]
    return made


class Comparison:
    """Two versions side by side."""

    def __init__(self, old: Version, new: Version) -> None:
        self._versions = old, new
        self._intended = read_intended()

    def run(
        self, *arguments: str, plans: str = ""
    ) -> Iterator[tuple[Plan, list[Difference], Counter[str]]]:
        """Each scenario's plan, its differences that count, and which intended ones it shows."""
        with ThreadPoolExecutor() as pool:
            records = pool.map(lambda each: each.record(*arguments, plans=plans), self._versions)
        for (plan, old), (_, new) in zip(*records, strict=True):
            yield plan, *split(differences(old, new), self._intended)

    def shrink(self, plan: Plan, shape: str) -> Plan:
        """The smallest plan that still shows a difference of this shape, block by block."""
        parts = {(-1, n) for n in range(len(plan["faults"]))}
        parts |= {(n, step[0]) for n, life in enumerate(plan["lives"]) for step in life["steps"]}
        gone: set[tuple[int, int]] = set()
        size = (len(parts) + 1) // 2
        while size:
            left = sorted(parts - gone)
            blocks = [{*left[at : at + size]} for at in range(0, len(left), size)]
            plans = "\n".join(json.dumps(without(plan, gone | block)) for block in blocks)
            results = [found for _, found, _ in self.run("--plans", plans=plans)]
            good = [
                b
                for b, found in zip(blocks, results, strict=True)
                if shape in {f.shape for f in found}
            ]
            if good:
                gone |= good[0]
            else:
                size //= 2
        return without(plan, gone)


def main() -> int:
    """Compare, print, and tell whether anything differs that should not."""
    parser = argparse.ArgumentParser(description="Compare two versions of midapi_async.")
    parser.add_argument("old_python")
    parser.add_argument("new_python")
    parser.add_argument("count", type=int, nargs="?", default=200)
    parser.add_argument("--old-path", default="", help="goes before what old_python has installed")
    parser.add_argument("--new-path", default="")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=8, help="scenarios of two processes")
    parser.add_argument("--shrink", action="store_true", help="find small scenarios that differ")
    parser.add_argument("--causes", action="store_true", help="only the first of each scenario")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as frozen:
        freeze(Path(frozen))
        old = Version(asked.old_python, asked.old_path, frozen)
        new = Version(asked.new_python, asked.new_path, frozen)
        comparison = Comparison(old, new)
        first, last = str(asked.first), str(asked.first + asked.count)
        results = list(comparison.run(first, last))
        last = str(asked.first + asked.processes)
        for plan, found, seen in comparison.run(first, last, "--processes"):
            # In real time a busy machine makes differences, too: others come up again each time.
            again = [(plan, found, seen)]
            for _ in range(AGAIN):
                if again[0][1]:
                    options = ["--plans", "--processes"]
                    again = [*comparison.run(*options, plans=json.dumps(plan))]
            results += again
        intended: Counter[str] = Counter()
        groups: dict[str, list[tuple[Plan, Difference]]] = defaultdict(list)
        for plan, found, seen in results:
            intended.update(dict.fromkeys(seen, 1))
            for each in found[: 1 if asked.causes else None]:
                groups[each.shape].append((plan, each))
        differing = sum(bool(found) for _, found, _ in results)
        print(f"{differing} of {len(results)} scenarios differ unintendedly")
        for what, count in intended.most_common():
            print(f"  intended, in {count} scenarios: {what}")
        for shape, members in sorted(groups.items(), key=lambda group: -len(group[1])):
            scenarios = {plan["seed"] for plan, _ in members}
            print(f"\n{shape}\n  {len(members)} differences in {len(scenarios)} scenarios")
            for plan, each in members:
                print(f"  {plan['flavour']} {plan['seed']}: {each}")
            if asked.shrink and members[0][0]["flavour"] != "processes":
                print("  smallest:", json.dumps(comparison.shrink(members[0][0], shape)))
    return bool(groups)


if __name__ == "__main__":
    sys.exit(main())
