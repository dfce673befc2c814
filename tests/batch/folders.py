"""The files of a batch's output folder, as ``midapi batch`` writes them."""

import json
from pathlib import Path


def row(prompt: str | None, index: int, name: str = "", **members: object) -> dict[str, object]:
    """One row that succeeded, with four pictures; `members` replace or add to its members."""
    task_id = f"task-{name}" if name else f"task{index:04}"
    return {
        "key": f"batch/{name or index}",
        "line": index + 1,
        "index": index,
        "metadata": {},
        "kind": "TextToImage",
        "request": {"taskType": "mj_txt2img", "prompt": prompt, "speed": "fast"},
        "prompt": prompt,
        "task_id": task_id,
        "intent_id": None,
        "state": "succeeded",
        "created_at": "2026-11-26T12:00:00+00:00",
        "completed_at": "2026-11-26T12:01:00+00:00",
        "seconds": 60.0,
        "urls": [f"https://cdn.example/{task_id}/{n}.jpeg" for n in range(4)],
        "files": [f"pictures/{task_id}_{n}.jpeg" for n in range(4)],
        **members,
    }


def results(folder: Path, *rows: dict[str, object]) -> None:
    """Write results.jsonl."""
    _write(folder / "results.jsonl", rows)


def errors(folder: Path, *rows: dict[str, object]) -> None:
    """Write errors.jsonl; its rows have no files."""
    _write(folder / "errors.jsonl", [{**row, "files": [], "urls": []} for row in rows])


def _write(path: Path, rows: object) -> None:
    assert isinstance(rows, list | tuple)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
