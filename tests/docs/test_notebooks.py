"""The cells of docs/notebooks.md, run one after another as in a notebook."""

import ast
import inspect
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from midapi_async import TaskDetails
from midapi_async.sandbox import SandboxThread
from midapi_async.sandbox.pytest_plugin import midapi_sandbox
from tests.docs.blocks import blocks

__all__ = ["midapi_sandbox"]  # also where the package is not installed

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.slow,
    # At a larger scale a wait of the page may end before its order is sent.
    pytest.mark.midapi_sandbox(time_scale=60),
]
CELLS = [block for block in blocks("docs/notebooks.md") if block.language in ("python", "text")]


async def test_the_cells_of_the_page_run_one_after_another(
    midapi_sandbox: SandboxThread,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One namespace, one event loop; a cell shows its last expression. They buy nothing twice."""
    monkeypatch.chdir(tmp_path)
    shown: list[object] = []
    names: dict[str, Any] = {"__name__": "__main__", "display": shown.append}
    for cell, behind in zip(CELLS, [*CELLS[1:], None], strict=True):
        if cell.language == "python":
            value = await run(cell.text, names)
            shown.extend([value] if value is not None else [])
            is_output = behind is not None and behind.language == "text"
            assert capsys.readouterr().out == (behind.text if behind and is_output else ""), cell
    assert sum(isinstance(each, TaskDetails) for each in shown) == 10
    sold = [str(each.body) for each in midapi_sandbox.ledger.accepted]
    assert len(sold) == len(set(sold)) == 8


async def run(source: str, names: dict[str, Any]) -> object:
    """Run a cell as IPython does; return the value of its last expression."""
    *statements, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        await _evaluate(ast.Module([*statements, last], []), "exec", names)
        return None
    await _evaluate(ast.Module(statements, []), "exec", names)
    return await _evaluate(ast.Expression(last.value), "eval", names)


async def _evaluate(tree: ast.Module | ast.Expression, mode: str, names: dict[str, Any]) -> object:
    code: CodeType = compile(tree, "cell", mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    value = eval(code, names)  # noqa: S307 - our own page
    return await value if code.co_flags & inspect.CO_COROUTINE else value
