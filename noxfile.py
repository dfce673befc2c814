"""The project's checks, each in an environment of its own: `nox` runs lint, types and tests."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.11.12"
nox.options.sessions = ["lint", "types", "tests"]
# A missing interpreter is skipped and said, also where CI is set: any one supported Python will do.
nox.options.error_on_missing_interpreters = False
# What runs is what is installed here; no interpreter is fetched behind anybody's back.
nox.options.download_python = "never"

# The package before the refactoring of issue 9.
OLD_COMMIT = "9a8411b"
PROJECT = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text("utf-8"))["project"]
PYTHONS: list[str] = [
    found[1]
    for line in PROJECT["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
]


@nox.session
def lint(session: nox.Session) -> None:
    """Check the code with ruff: every rule without a reason against it, and the format."""
    dev = PROJECT["optional-dependencies"]["dev"]
    session.install(*(requirement for requirement in dev if requirement.startswith("ruff")))
    session.run("ruff", "check", *(session.posargs or ["."]))
    session.run("ruff", "format", "--check", *(session.posargs or ["."]))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy, strictly, in the package and in everything around it."""
    # mypy reads sources: to compile them takes half of the time of the installation.
    session.install("--no-compile", "-e", ".[dev,browser,docs]", "nox", "matplotlib")
    session.run("mypy", "--strict", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests; on the newest Python that is here also what is slow, and hold the coverage.

    One gate, and on the newest: a machine with one Python is held to the same figure as a machine
    with four, and the others need not pay for measuring. Coverage starts pytest and not the other
    way round, since our own pytest plugin is imported before any plugin of coverage could look.

    asyncio's debug mode is on for the oldest Python that is here. It takes half as much CPU again,
    and together with coverage, which follows it into each stack that it keeps, far more.

    The tests wait for disks, timers and other processes for a third of their time, so there are
    three workers for two cores. Who has run out of tests takes some of another worker's.

    The gallery and the site are tested in a browser where Chromium is installed; .ci/run installs
    it. The tests build the site, so CI needs no session for that.
    """
    older, newer = _neighbours(str(session.python))
    session.install("-e", ".[dev]" if newer else ".[dev,browser,docs]")
    session.env["PYTHONDONTWRITEBYTECODE"] = ""  # the many small processes shall compile once
    workers = str(_cores() * 3 // 2)
    spread = ["-n", workers, "--dist", "worksteal"] if not session.posargs else []
    options = [*spread, "-o", f"asyncio_debug={'false' if older else 'true'}"]
    if newer:
        session.run("pytest", "-m", "not one_python", *options, *session.posargs)
        return
    data = Path(session.env_dir).resolve() / "coverage"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    session.env["COVERAGE_FILE"] = str(data / "data")
    session.run("coverage", "run", "-m", "pytest", "--slow", *options, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    if session.posargs:
        session.log("arguments were given, so this may be a part of the tests: no coverage gate")
    session.run("coverage", "report", *(["--fail-under=0"] if session.posargs else []))


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill, stop and confuse processes that submit: nothing is paid twice, and nothing is lost.

    1,000 kills, and 1,000 rounds of everything else, or as many as the argument says; as many
    examples of the state machine.
    """
    session.install("-e", ".[dev]")
    times = session.posargs[0] if session.posargs else "1000"
    session.env["MIDAPI_TEST_KILLS"] = session.env["MIDAPI_TEST_LIFE"] = times
    options = ["--slow", "--chaos", "-s", "--timeout=7200"]
    rooms = ("tests/kills", "tests/journal", "tests/files", "tests/batch", "tests/test_life.py")
    session.run("pytest", *options, *rooms)


@nox.session
def machines(session: nox.Session) -> None:
    """Let four workers on three hosts share a PostgreSQL journal while everything fails.

    It takes half an hour. The hosts are network namespaces, so it needs Linux and root. Arguments
    go to tests/machines/play.py: ``--keys``, ``--faults``, ``--seed``.
    """
    session.install("-e", ".[dev]")
    tests = ("tests/machines", "tests/journal/test_postgres.py", "tests/journal/test_failover.py")
    session.run("pytest", "--slow", "-s", *tests)
    play = ("unshare", "--net", "python", "-m", "tests.machines.play")
    session.run(*play, *session.posargs, external=True)


@nox.session
def load(session: nox.Session) -> None:
    """Hold the receiver to its word among 5,000 slow senders and 1,000 hints a second."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "tests.callbacks.load", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Send what no one expects to the receiver, 100,000 times or as often as the argument says."""
    session.install("-e", ".[dev]")
    session.env["MIDAPI_TEST_FUZZ"] = session.posargs[0] if session.posargs else "100000"
    session.env["CI"] = ""  # new examples each time
    options = ["-n", "auto", "--timeout=7200", "-p", "no:logging"]  # which would keep all of it
    session.run("pytest", *options, "tests/callbacks/test_raw_fuzz.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Run every benchmark beside its reference, or those that the arguments name.

    Each prints whether its figures hold; a figure that does not is no error.
    """
    session.install("-e", ".[dev,bench]")
    programs = session.posargs or sorted(map(str, Path("benchmarks").glob("[!_]*.py")))
    for program in programs:
        session.run("python", program)


@nox.session
def differential(session: nox.Session) -> None:
    """Play the same scenarios with the package before its refactoring and with this one.

    Arguments go to tests/differential/compare.py: how many, ``--shrink``, ``--causes``. Not in CI.
    """
    session.install("-e", ".[dev]")
    folder = Path(session.create_tmp()).resolve()
    archive = folder / "old.tar"
    session.run("git", "archive", "-o", str(archive), OLD_COMMIT, external=True)
    shutil.rmtree(folder / "old", ignore_errors=True)
    shutil.unpack_archive(archive, folder / "old")
    session.run("python", "-m", "venv", "--clear", str(folder / "venv"))
    old_python = str(next((folder / "venv").glob("[bS]*/python*")))
    session.run(old_python, "-m", "pip", "install", "-q", str(folder / "old"), external=True)
    compare = "tests/differential/compare.py"
    session.run("python", compare, old_python, "python", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into ``build/docs``; a warning, also one of a dead link, is an error."""
    dev = PROJECT["optional-dependencies"]["dev"]
    pytest = [requirement for requirement in dev if requirement.startswith("pytest")]
    session.install("-e", ".[docs,discord,postgres,sandbox]", *pytest)  # public names need pytest
    options = ("-W", "-q", "-d", "build/doctrees", *session.posargs)
    session.run("sphinx-build", *options, "docs", "build/docs")
    session.log("open build/docs/index.html")


@nox.session
def pictures(session: nox.Session) -> None:
    """Make the picture of a gallery in docs/images again; it needs Chromium."""
    session.install("-e", ".[cli,sandbox,browser]")
    session.run("python", "-m", "tests.docs.gallery_picture")


@nox.session
def demo(session: nox.Session) -> None:
    """Show the SDK against the local sandbox, as a user installs it; arguments go to the demo."""
    session.install(".[cli,sandbox]")
    session.run("midapi", "demo", *session.posargs)
    session.log(f"the command midapi is in {session.bin}")


def _cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _neighbours(version: str) -> tuple[bool, bool]:
    """Whether an older, and whether a newer supported Python runs on this machine."""
    index = PYTHONS.index(version)
    return any(map(_runs, PYTHONS[:index])), any(map(_runs, PYTHONS[index + 1 :]))


def _runs(version: str) -> bool:
    """Whether this Python starts: a pyenv shim is on the PATH also when it does not."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return True
    program = shutil.which(f"python{version}")
    if program is None:
        return False
    return subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0
