"""What ``midapi doctor`` looks at; each part gives its findings and raises nothing."""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import attrs
from yarl import URL

from midapi_async import (
    AuthenticationError,
    CallbackReceiver,
    InvalidRequestError,
    JournalError,
    MemoryJournal,
    MidAPIClient,
    MidAPIError,
)
from midapi_async.config import DEFAULT_BASE_URL, secret_from_env
from midapi_async.journal.sqlite import SQLiteJournal

from . import _diagnosis, _wire
from ._diagnosis import Finding, Probe, short
from ._recorder import PortTaken, Recorder
from ._route import Fault, Outcome, Place, ask, places
from ._terminal import seconds
from .credits import amount

_WRONG_CLOCK = 300.0  # seconds: a record that is so much older than its intent is not its
_ODD_CLOCK = 30.0


@attrs.frozen(kw_only=True)
class Callbacks:
    """How callbacks are to be received.

    Attributes:
        public_url: as `CallbackReceiver` takes it.
        host: where to listen.
        port: on which port; None where an application of the user's own listens.
        keys: the webhook keys.
    """

    public_url: str | None
    host: str
    port: int | None
    keys: tuple[str, ...] = attrs.field(repr=False)

    @property
    def target(self) -> str:
        """Where they are to arrive."""
        return f"{self.host}:{self.port}" if self.port is not None else "your application"

    @property
    def here(self) -> Place:
        """How this machine reaches its own port."""
        own = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104 - asked, not listened at
        return Place(own.get(self.host, self.host), self.port or 0)


# ─── the account ─────────────────────────────────────────────────────────────────────────────────


async def account() -> list[Finding]:
    """The settings of a client, the service behind them, the clock and the key."""
    try:
        client = MidAPIClient(journal=MemoryJournal())
    except InvalidRequestError as error:
        return [
            Finding("API key" if field == "api_key" else field, "failed", problem)
            for field, problem in error.problems.items()
        ] + ([] if "base_url" in error.problems else await service())
    found = await service()
    if any(each.verdict == "failed" for each in found if each.name == "service"):
        return found
    return [*found, await _credits(client)]


def base_url() -> URL:
    """The service's URL; it has been checked, or is reported as wrong."""
    return URL(os.environ.get("MIDAPI_BASE_URL", "").strip() or DEFAULT_BASE_URL)


async def service() -> list[Finding]:
    """Whether MidAPI is reached, and what time it has."""
    url = base_url()
    request = _wire.written("GET / HTTP/1.1", [("Host", url.raw_authority)], b"")
    try:
        outcome = await ask((await places(url))[0], request)
    except Fault as fault:
        outcome = Outcome(Place(url.raw_host or "", url.port or 0), fault=fault)
    if outcome.fault is not None:
        text, hint = _diagnosis.explained(outcome.fault, outcome.place)
        return [Finding("service", "failed", f"{url} is not reached: {text}", hint)]
    found = [Finding("service", "ok", f"{url} answers in {short(outcome.seconds)}")]
    told = outcome.answer.value("Date") if outcome.answer else ""
    return [*found, *_clock(told)]


def _clock(date: str) -> list[Finding]:
    try:
        off = time.time() - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return []
    told = f"{seconds(abs(off))} {'ahead of' if off > 0 else 'behind'} MidAPI's"
    if abs(off) <= _ODD_CLOCK:
        return [Finding("clock", "ok", "agrees with MidAPI's")]
    hint = "Let the system set its clock (NTP): what was bought when is told by it."
    return [Finding("clock", "failed" if abs(off) > _WRONG_CLOCK else "warning", told, hint)]


async def _credits(client: MidAPIClient) -> Finding:
    try:
        async with client:
            left = await client.credits()
    except AuthenticationError:
        hint = "Is it whole and not revoked, and does it belong to this service?"
        return Finding("API key", "failed", f"{base_url()} refuses it", hint)
    except MidAPIError as error:
        return Finding("API key", "failed", f"it could not be tried: {error}")
    if left <= 0:
        return Finding("API key", "warning", "accepted, but no credits are left", "Top up.")
    return Finding("API key", "ok", f"accepted; {amount(left)} credits are left")


# ─── the journal ─────────────────────────────────────────────────────────────────────────────────


def missing(folder: Path | None) -> Finding | None:
    """What there is to say where no journal is yet; None where there may be one."""
    if folder is None:
        text = "in memory: keys and tasks end with each program"
        return Finding("journal", "warning", text, "Name a folder in MIDAPI_JOURNAL to keep them.")
    return None if folder.exists() else _missing(folder)


async def journal(folder: Path) -> Finding:
    """Whether a journal's folder can be used, as any program that opens it would find out."""
    opened = SQLiteJournal(folder)
    try:
        report = await opened.check()
    except (JournalError, OSError) as error:
        return Finding("journal", "failed", str(error))
    finally:
        await opened.aclose()
    if report.problems:
        hint = "Restore it from a backup; midapi journal check shows all of it."
        return Finding("journal", "failed", f"{folder} is damaged: {report.problems[0]}", hint)
    if _others_can_read(folder):
        text = f"other users can look into {folder}, where prompts and metadata are"
        return Finding("journal", "warning", text, f"chmod 700 {folder}")
    count = sum(report.counts.values())
    return Finding("journal", "ok", f"{folder} is private, local and whole; intents: {count}")


def _others_can_read(folder: Path) -> bool:
    return bool(folder.stat().st_mode & 0o077)


def _missing(folder: Path) -> Finding:
    above = next((each for each in folder.absolute().parents if each.exists()), Path("/"))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        text = f"{folder} is not there and cannot be made in {above}"
        return Finding("journal", "failed", text, "Name another place, or let this user write it.")
    hint = "If there should be one already, look at its spelling and the current folder."
    return Finding("journal", "warning", f"{folder} is not there; the first use makes it", hint)


# ─── callbacks ───────────────────────────────────────────────────────────────────────────────────


def port_from_env(problems: dict[str, str]) -> int | None:
    """The port that MIDAPI_CALLBACK_PORT names; None if it names none."""
    named = os.environ.get("MIDAPI_CALLBACK_PORT", "").strip()
    if named.isascii() and named.isdigit():
        return int(named)
    if named:
        problems["port"] = f"MIDAPI_CALLBACK_PORT must be a port number, is {named!r}"
    return None


def chosen(
    public_url: str | None, host: str, port: int | None, webhook_key: str | None
) -> Callbacks | list[Finding]:
    """How callbacks are to be received: by the arguments, else as `CallbackReceiver.from_env`."""
    problems: dict[str, str] = {}
    url = public_url or os.environ.get("MIDAPI_PUBLIC_URL", "").strip() or None
    key = webhook_key or secret_from_env("MIDAPI_WEBHOOK_KEY", problems, "webhook_key")
    if url is None and port is None:  # as `from_env`, whatever the other variables say
        hint = "Programs look for their results. To be called back, set MIDAPI_PUBLIC_URL."
        return [Finding("callbacks", "warning", "nobody can call back", hint)]
    port = port if port is not None else port_from_env(problems)
    keys = tuple(key.splitlines())
    try:
        CallbackReceiver(url, host=host, port=port, webhook_key=keys or None)
    except InvalidRequestError as error:
        problems = {**error.problems, **problems}
    if problems:
        return [Finding(field, "failed", problem) for field, problem in problems.items()]
    return Callbacks(public_url=url, host=host, port=port, keys=keys)


async def callbacks(how: Callbacks, *, is_public: bool) -> list[Finding]:
    """Does it reach me? A callback is sent to the own public URL, through what stands before it.

    Args:
        how: they are to be received.
        is_public: whether MidAPI is the real one, out in the Internet.
    """
    if how.port is None:
        return await _reach(how, None, is_public=is_public)
    try:
        async with Recorder(how.host, how.port) as recorder:
            how = attrs.evolve(how, port=recorder.port)
            listens = Finding("port", "ok", f"{how.target} is free; a callback is awaited there")
            return [listens, *await _reach(how, recorder, is_public=is_public)]
    except PortTaken:
        found = [await _running(how)]
        return found + await _reach(how, None, is_public=is_public)
    except OSError as error:
        text = f"{how.target} cannot be listened on: {error.strerror or error}"
        hint = "Choose an address of this machine (--host), and a port above 1023."
        return [Finding("port", "failed", text, hint)]


async def _running(how: Callbacks) -> Finding:
    """Whether the program that holds the port is a receiver."""
    outcome = await ask(how.here, _probe(how).request())
    if outcome.answer is None:
        text, _ = _diagnosis.explained(outcome.fault or Fault("closed"), outcome.place)
        hint = "Stop it, or choose another port."
        return Finding("port", "failed", f"a program holds {how.target}, but {text}", hint)
    if not _is_a_receivers(outcome.answer):
        text = f"a program holds {how.target} that is no receiver: it answered"
        hint = (
            "Is that your application, which mounts the receiver? Then leave --port away (and "
            "MIDAPI_CALLBACK_PORT unset). Else stop it, or choose another port."
        )
        return Finding("port", "failed", f"{text} {_diagnosis.described(outcome.answer)}", hint)
    if outcome.answer.status == 503:
        text = f"the receiver at {how.target} has no client that is open"
        return Finding("port", "warning", text, "Callbacks are sent again until one is.")
    return Finding("port", "ok", f"{how.target} is held by a receiver; that one is asked")


def _is_a_receivers(answer: _wire.Message) -> bool:
    """Whether a receiver may have answered so to a token that it does not know."""
    return answer.status in {404, 503} and not answer.body


def _url(how: Callbacks) -> URL:
    if how.public_url is not None:
        return URL(how.public_url)
    host = f"[{how.host}]" if ":" in how.host else how.host
    return URL(f"http://{host}:{how.port}")


def _probe(how: Callbacks) -> Probe:
    return Probe(_url(how), how.keys)


async def _reach(how: Callbacks, recorder: Recorder | None, *, is_public: bool) -> list[Finding]:
    url = _url(how)
    try:
        found_places = await places(url)
    except Fault as fault:
        text, hint = _diagnosis.explained(fault, None)
        return [Finding("address", "failed", f"{url.host}: {text}", hint)]
    found = [_diagnosis.address(place, is_public=is_public) for place in found_places]
    if is_public and url.scheme == "http":
        hint = "Tokens can be read on the way: put TLS before it and write https://."
        found.append(Finding("TLS", "warning", "the public URL is plain http", hint))
    tries = [await _one_place(how, place, recorder) for place in found_places]
    works = [not any(each.verdict == "failed" for each in findings) for findings in tries]
    for place, findings, works_here in zip(found_places, tries, works, strict=True):
        found += [
            _of_many(each, place, elsewhere=any(works) and not works_here) for each in findings
        ] if len(tries) > 1 else findings  # fmt: skip
    return found


def _of_many(finding: Finding, place: Place, *, elsewhere: bool) -> Finding:
    """The finding about one address of several; one that fails is not the end."""
    verdict = "warning" if elsewhere and finding.verdict == "failed" else finding.verdict
    text = f"by way of {place.address}: {finding.text}"
    return attrs.evolve(finding, text=text, verdict=verdict)


async def _one_place(how: Callbacks, place: Place, recorder: Recorder | None) -> list[Finding]:
    probe = _probe(how)
    before = len(recorder.arrivals) if recorder else 0
    outcome = await ask(place, probe.request())
    found = _diagnosis.certificate(outcome)
    if recorder is None:
        return found + _by_the_answer(how, probe, outcome)
    arrivals = recorder.arrivals[before:]
    ours = next((each.message for each in arrivals if probe.is_in(each)), None)
    if ours is None:
        return [
            *found,
            _diagnosis.not_arrived(probe, outcome, how.target),
            *_diagnosis.strangers(arrivals),
        ]
    wrong = [*_diagnosis.changes(probe, ours), *_diagnosis.answered(outcome)]
    text = f"one arrived as it was sent, and was answered in {short(outcome.seconds)}"
    return found + (wrong or [Finding("callback", "ok", text)])


def _by_the_answer(how: Callbacks, probe: Probe, outcome: Outcome) -> list[Finding]:
    """What can be told without having listened oneself."""
    if outcome.answer is None or not _is_a_receivers(outcome.answer):
        return [_diagnosis.not_arrived(probe, outcome, how.target)]
    text = (
        f"{outcome.answer.status} came back, as a receiver answers to what it does not know; "
        "whether it is yours cannot be told"
    )
    hint = "To be certain, stop your program and run this with --port and its port."
    return [Finding("callback", "warning", text, hint), *_diagnosis.slowness(outcome)]
