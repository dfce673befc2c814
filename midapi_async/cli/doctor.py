"""``midapi doctor``: check the settings, the journal, and whether callbacks arrive."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import attrs
from cyclopts import Parameter
from yarl import URL

from midapi_async import InvalidRequestError, JournalError

from . import _checks, _env
from ._checks import Finding
from ._common import Output, run_async
from ._env import Place
from ._errors import FAILED
from ._folder import JOURNAL_HELP, opened_journal
from ._options import Service
from ._terminal import one_line, out, out_json, say

_SERVICE, _OUTPUT = Service(), Output()
_MARKS = {"ok": "✓", "warning": "!", "failed": "✗"}


def doctor(
    *,
    public_url: str | None = None,
    host: Annotated[str, Parameter(show_default=False)] = "127.0.0.1",
    port: int | None = None,
    webhook_key: str | None = None,
    journal: Annotated[str | None, Parameter(show_default=False, help=JOURNAL_HELP)] = None,
    service: Service = _SERVICE,
    output: Output = _OUTPUT,
) -> int:
    """Check the API key, the clock, the journal, and whether callbacks arrive. This costs nothing.

    It sends a callback to your own public URL, through your proxies and tunnels. Run it on the
    machine of your program. If the program is running and uses the same MIDAPI_JOURNAL, its
    receiver takes that callback. If the program is stopped, give --port, and a receiver of this
    check listens there. Exit code 1 if something must be fixed.

    Args:
        public_url: The URL at which MidAPI reaches your receiver; MIDAPI_PUBLIC_URL if not given.
        host: The address on which the receiver listens; 127.0.0.1 if not given.
        port: Its port; MIDAPI_CALLBACK_PORT if not given.
        webhook_key: The key set at MidAPI; MIDAPI_WEBHOOK_KEY, or its _FILE, if not given.
    """
    findings: list[Finding] = []
    url = service.base_url
    settings = _checks.callback_settings(public_url, host, port, webhook_key)

    def add(*found: Finding) -> None:
        findings.extend(found)
        for each in found if not output.as_json else ():
            out(f"{_MARKS[each.verdict]} {each.name}: {one_line(each.text)}")
            if each.hint:
                out(f"    {one_line(each.hint)}")

    async def check() -> None:
        proxy, found = _checks.proxy_settings(service.proxy)
        add(*found)
        add(*await _checks.account(service.proxy, api_key=service.api_key(), base_url=url))
        usable, found = await _journal(place)
        add(*found)
        if isinstance(settings, list):
            add(*settings)
        elif any(each.name == "base_url" for each in findings):
            add(Finding("callbacks", "warning", "not checked, because base_url is wrong"))
        else:
            add(*await _checks.callbacks(settings, URL(_env.base_url(url)), usable, proxy))

    place = _env.journal(journal)
    code = run_async(check(), output)
    failed, notes = (sum(it.verdict == each for it in findings) for each in ("failed", "warning"))
    if output.as_json:
        out_json({"ok": not failed, "checks": [attrs.asdict(each) for each in findings]})
    else:
        said = [f"{failed} problem{'s'[: failed != 1]} must be fixed."] if failed else []
        said += ["Not everything could be checked."] if any(it.unsure for it in findings) else []
        see = f", but see the {notes} line{'s'[: notes != 1]} with !" if notes else ""
        say(" ".join(said) or f"No problems found{see}.")
    return FAILED if failed else code


async def _journal(place: Place | None) -> tuple[Place | None, list[Finding]]:
    """The place if there is a journal that can be used, and what is to be said about it."""
    if isinstance(place, str):
        try:
            from . import _database  # it needs asyncpg

            found = await _database.check(place)
        except InvalidRequestError as error:
            found = [Finding("journal", "failed", "; ".join(error.problems.values()))]
        exists = found[0].verdict == "ok"
    else:
        found = [await _checks.journal(place)]
        exists = place is not None and found[0].verdict != "failed" and place.exists()
    if place is None or not exists:
        return None, found
    with suppress(JournalError):  # it was all right a moment ago
        async with opened_journal(place) as opened:
            found += await _checks.unknown(opened)
    return place, found
