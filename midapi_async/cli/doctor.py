"""``midapi doctor``: does everything here work, and does MidAPI reach me?"""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import attrs
from cyclopts import Parameter

from . import _checkup
from ._checkup import Callbacks
from ._diagnosis import Finding
from ._terminal import one_line, out, out_json, say
from ._trouble import FAILED
from ._work import Output, run_async

_OUTPUT = Output()
_MARKS = {"ok": "✓", "warning": "!", "failed": "✗"}


def doctor(
    *,
    public_url: str | None = None,
    host: Annotated[str, Parameter(show_default=False)] = "127.0.0.1",
    port: int | None = None,
    webhook_key: str | None = None,
    journal: Annotated[Path | None, Parameter(show_default=False)] = None,
    output: Output = _OUTPUT,
) -> int:
    """Check the API key, the clock, the journal, and whether callbacks arrive. It costs nothing.

    It sends a callback to your own public URL, through whatever stands before it, and sees what
    arrives. Run it where your program runs, while that is stopped; with a program at the port it
    asks that one, and can tell less. Exit code 1 if something must be mended.

    Args:
        public_url: As for CallbackReceiver; MIDAPI_PUBLIC_URL if not given.
        host: Where the receiver listens; 127.0.0.1 if not given.
        port: On which port; MIDAPI_CALLBACK_PORT if not given.
        webhook_key: As set at MidAPI; MIDAPI_WEBHOOK_KEY, or its _FILE, if not given.
        journal: The journal's folder; MIDAPI_JOURNAL if not given.
    """
    findings: list[Finding] = []
    how = _checkup.chosen(public_url, host, port, webhook_key)
    folder = _folder(journal)
    kept = _checkup.missing(folder) or folder
    code = run_async(_carry_out(how, kept, findings, output), output)
    return FAILED if any(each.verdict == "failed" for each in findings) else code


def _folder(given: Path | None) -> Path | None:
    named = os.environ.get("MIDAPI_JOURNAL", "").strip()
    return given or (Path(named) if named else None)


async def _carry_out(
    how: Callbacks | list[Finding],
    kept: Path | Finding | None,
    findings: list[Finding],
    output: Output,
) -> None:
    def tell(*found: Finding) -> None:
        findings.extend(found)
        if not output.as_json:
            _tell(found)

    tell(*await _checkup.account())
    if kept is not None:
        tell(await _checkup.journal(kept) if isinstance(kept, Path) else kept)
    if isinstance(how, Callbacks):
        is_public = _checkup.base_url().scheme == "https"
        tell(*await _checkup.callbacks(how, is_public=is_public))
    else:
        tell(*how)
    failed = sum(each.verdict == "failed" for each in findings)
    if output.as_json:
        out_json({"ok": not failed, "checks": [attrs.asdict(each) for each in findings]})
    else:
        things = "thing needs" if failed == 1 else "things need"
        say(f"{failed} {things} mending." if failed else "Nothing needs mending.")


def _tell(findings: tuple[Finding, ...]) -> None:
    for each in findings:
        out(f"{_MARKS[each.verdict]} {each.name}: {one_line(each.text)}")
        if each.hint:
            out(f"    {one_line(each.hint)}")
