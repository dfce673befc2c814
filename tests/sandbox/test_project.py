"""A project that tests its own code with the fixture, with nothing but what the README says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).with_name("project")

# slow: a type checker and a pytest of their own, on the newest Python only.
pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the project, far from this repository and its configuration."""
    return Path(shutil.copytree(PROJECT, tmp_path / "project"))


def run(folder: Path, *arguments: str) -> str:
    """What a Python module prints in that folder; it must end with 0.

    The package is the installed one, taken from this checkout.
    """
    checkout = {"PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
    developer = {
        "MIDAPI_JOURNAL": str(folder / "journal"),
        "MIDAPI_PUBLIC_URL": "https://x.example",
    }
    ran = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, **checkout, **developer},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_its_tests_pass_and_touch_nothing_of_the_developer_s(folder: Path) -> None:
    """A plain test, an async one, and one with callbacks, all warnings being errors."""
    # Left out, this option of pytest-asyncio is a warning.
    options = ["-W", "error", "-o", "asyncio_default_fixture_loop_scope=function"]
    assert "3 passed" in run(folder, "pytest", "-q", "-p", "no:cacheprovider", *options)
    assert not (folder / "journal").exists()


def test_its_types_are_strict(folder: Path) -> None:
    """What the fixture gives is a public class, and all that the tests use of it is typed."""
    assert "no issues found in 1 source file" in run(folder, "mypy", "--strict", "test_pictures.py")
