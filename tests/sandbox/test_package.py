"""What the package is made of."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import midapi_async.sandbox as package

FOLDER = Path(package.__file__).parent
MODULES = sorted(FOLDER.glob("*.py"))


def imports(path: Path) -> set[str]:
    """Give the names of all modules that a file imports, wherever it does so."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_nothing_of_the_sdk_is_imported() -> None:
    """A fake that shares the client's code shares its mistakes."""
    for path in MODULES:
        ours = {name for name in imports(path) if name.split(".")[0] == "midapi_async"}
        foreign = [name for name in ours if not name.startswith("midapi_async.sandbox")]
        assert not foreign, path
    assert len(MODULES) > 20


def test_functions_are_short() -> None:
    """45 lines at the most, with the docstring and without the arguments."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.body[0].lineno + 1
                assert length <= 45, (path, node.name)


def test_every_public_name_is_there() -> None:
    """What `__all__` says can be imported, and has a docstring."""
    for name in package.__all__:
        assert getattr(package, name).__doc__, name


def test_the_list_of_names() -> None:
    """What dir() gives, imported or not, and everything that faults has."""
    from midapi_async.sandbox import faults

    assert dir(package) == sorted(package.__all__)
    assert set(faults.__all__) <= set(package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.real_time
def test_the_plugin_is_light() -> None:
    """pytest loads it at every start: no aiohttp, no Pillow, no attrs through it."""
    script = (
        "import sys, types\n"
        "parent = types.ModuleType('midapi_async')\n"
        f"parent.__path__ = [{str(FOLDER.parent)!r}]\n"
        "sys.modules['midapi_async'] = parent\n"
        "import midapi_async.sandbox.pytest_plugin\n"
        "print({'aiohttp', 'PIL', 'attrs', 'asyncio'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
