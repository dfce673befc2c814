"""The checks of ``midapi doctor``; each returns its findings and raises nothing."""

from __future__ import annotations

import os
import time
from contextlib import suppress
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
from midapi_async.journal.sqlite import SQLiteJournal

from . import _diagnosis, _env, _http1
from ._capture import PortTaken, RequestCapture
from ._connect import Endpoint, Fault, Outcome, place_of, resolve, send
from ._diagnosis import Finding, Probe, short
from ._errors import in_commands
from ._terminal import seconds
from .credits import amount

# Seconds. A lost answer is found by comparing MidAPI's times with ours, so a clock that is far off
# makes that fail.
_CLOCK_FAILED = 300.0
_CLOCK_WARNING = 30.0


@attrs.frozen(kw_only=True)
class CallbackSettings:
    """How callbacks are to be received.

    Attributes:
        public_url: as `CallbackReceiver` takes it.
        host: the address to listen on.
        port: the port; None if an application of the user listens.
        keys: the webhook keys.
    """

    public_url: str | None
    host: str
    port: int | None
    keys: tuple[str, ...] = attrs.field(repr=False)

    @property
    def target(self) -> str:
        """Where callbacks should arrive, for messages."""
        return f"{self.host}:{self.port}" if self.port is not None else "your application"

    @property
    def local(self) -> Endpoint:
        """How this machine connects to its own port."""
        own = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104 - compared, not listened on
        return Endpoint(own.get(self.host, self.host), self.port or 0)

    @property
    def url(self) -> URL:
        """The prefix of callback URLs."""
        if self.public_url is not None:
            return URL(self.public_url)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return URL(f"http://{host}:{self.port}")


# ─── the account ─────────────────────────────────────────────────────────────────────────────────


def proxy_settings(given: str | None) -> tuple[URL | None, list[Finding]]:
    """The proxy to use, if one is set, and what to say about it; its URL is not checked here."""
    text = _env.proxy(given)
    with suppress(ValueError):
        if (proxy := URL(text)).host:
            return proxy, [Finding("proxy", "ok", f"requests go through {place_of(proxy)}")]
    others = [] if text else _env.other_proxies()
    if not others:
        return None, []
    text = f"{' and '.join(others)} is set, and is not read by programs that use midapi_async"
    hint = "If MidAPI is to be reached through that proxy, set MIDAPI_PROXY to its URL, too."
    return None, [Finding("proxy", "warning", text, hint)]


async def account(
    proxy: str | None = None, *, api_key: str | None = None, base_url: str | None = None
) -> list[Finding]:
    """Checks a client's settings, the service, the clock and the API key.

    Args:
        proxy: as `MidAPIClient` takes it.
        api_key: as `MidAPIClient` takes it.
        base_url: as `MidAPIClient` takes it.
    """
    way = proxy_settings(proxy)[0]
    try:
        client = MidAPIClient(api_key, base_url=base_url, journal=MemoryJournal(), proxy=proxy)
    except InvalidRequestError as error:
        found = [
            Finding("API key" if field == "api_key" else field, "failed", in_commands(problem))
            for field, problem in error.problems.items()
        ]
        if {"base_url", "proxy"} & set(error.problems):
            return found
        return [*found, *await service(way, base_url)]
    found = await service(way, base_url)
    if any(each.verdict == "failed" for each in found if each.name == "service"):
        return found
    return [*found, await _credits(client, base_url)]


def service_url(base_url: str | None = None) -> URL:
    """The service's URL, which a client has accepted."""
    return URL(_env.base_url(base_url))


async def service(proxy: URL | None = None, base_url: str | None = None) -> list[Finding]:
    """Checks whether MidAPI can be reached, and compares its clock with ours."""
    url = service_url(base_url)
    request = _http1.encode("GET / HTTP/1.1", [("Host", url.raw_authority)], b"")
    try:
        outcome = await send((await resolve(url, proxy))[0], request)
    except Fault as fault:
        outcome = Outcome(Endpoint(url.raw_host or "", url.port or 0), fault=fault)
    if outcome.fault is not None:
        text, hint = _diagnosis.explain(outcome.fault, outcome.endpoint)
        return [Finding("service", "failed", f"{url} cannot be reached: {text}", hint)]
    found = [Finding("service", "ok", f"{url} answers in {short(outcome.seconds)}")]
    date = outcome.answer.value("Date") if outcome.answer else ""
    return [*found, *_clock(date)]


def _clock(date: str) -> list[Finding]:
    try:
        difference = time.time() - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return []  # the service did not send its time
    if abs(difference) <= _CLOCK_WARNING:
        return [Finding("clock", "ok", "agrees with MidAPI's")]
    direction = "ahead of" if difference > 0 else "behind"
    text = f"{seconds(abs(difference))} {direction} MidAPI's"
    hint = "Let the system set its clock (NTP): lost answers are found by comparing times."
    is_failed = abs(difference) > _CLOCK_FAILED
    return [Finding("clock", "failed" if is_failed else "warning", text, hint)]


async def _credits(client: MidAPIClient, base_url: str | None) -> Finding:
    try:
        async with client:
            left = await client.credits()
    except AuthenticationError:
        hint = "Is it complete and not revoked, and does it belong to this service?"
        return Finding("API key", "failed", f"{service_url(base_url)} refuses it", hint)
    except MidAPIError as error:
        return Finding("API key", "failed", f"it could not be checked: {in_commands(str(error))}")
    if left <= 0:
        hint = "Top up the account."
        return Finding("API key", "warning", "accepted, but no credits are left", hint)
    return Finding("API key", "ok", f"accepted; {amount(left)} credits are left")


# ─── the journal ─────────────────────────────────────────────────────────────────────────────────


async def journal(folder: Path | None) -> Finding:
    """Checks whether a journal's folder can be used; no folder is made."""
    if folder is None:
        text = "in memory: keys and tasks are forgotten when a program ends"
        hint = "To keep them, set MIDAPI_JOURNAL to a folder."
        return Finding("journal", "warning", text, hint)
    try:
        opened = SQLiteJournal(folder)
    except InvalidRequestError as error:
        return Finding("journal", "failed", error.problems["journal"])
    if (problem := _folder_problem(folder)) is not None:
        return problem
    try:
        problems = await opened.check()
        stats = None if problems else await opened.stats()
    except (JournalError, OSError) as error:
        return Finding("journal", "failed", in_commands(str(error)))
    finally:
        await opened.aclose()
    if stats is None:
        hint = "Restore it from a backup; midapi journal check shows all of the damage."
        return Finding("journal", "failed", f"{folder} is damaged: {problems[0]}", hint)
    if _is_readable_by_others(folder):
        text = f"other users can read {folder}, which holds prompts and metadata"
        return Finding("journal", "warning", text, f"chmod 700 {folder}")
    count = sum(stats.counts.values())
    text = f"{folder} is private, on a local disk, and not damaged; intents: {count}"
    return Finding("journal", "ok", text)


def _is_readable_by_others(folder: Path) -> bool:
    return bool(folder.stat().st_mode & 0o077)


def _folder_problem(folder: Path) -> Finding | None:
    if folder.exists():
        return None
    parent = next((each for each in folder.absolute().parents if each.exists()), Path("/"))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        text = f"{folder} does not exist and cannot be made in {parent}"
        hint = "Choose another folder, or give this user permission to write there."
        return Finding("journal", "failed", text, hint)
    hint = "If it should exist already, check its spelling and the current folder."
    return Finding("journal", "warning", f"{folder} does not exist; the first use makes it", hint)


# ─── callbacks ───────────────────────────────────────────────────────────────────────────────────


def callback_settings(
    public_url: str | None, host: str, port: int | None, webhook_key: str | None
) -> CallbackSettings | list[Finding]:
    """How to receive callbacks: from the arguments, else as `CallbackReceiver.from_env` does."""
    problems: dict[str, str] = {}
    url = public_url or _env.public_url()
    keys = _env.webhook_keys(webhook_key, problems)
    if url is None and port is None:  # `from_env` ignores the other variables then, too
        text = "off: MIDAPI_PUBLIC_URL is not set, so programs poll for their results"
        hint = "To receive callbacks, set MIDAPI_PUBLIC_URL to a URL that MidAPI can reach."
        return [Finding("callbacks", "warning", text, hint)]
    port = _env.callback_port(port, problems)
    try:
        CallbackReceiver(url, host=host, port=port, webhook_key=keys or None)
    except InvalidRequestError as error:
        problems = {**error.problems, **problems}
    if problems:
        return [Finding(field, "failed", problem) for field, problem in problems.items()]
    return CallbackSettings(public_url=url, host=host, port=port, keys=keys)


async def callbacks(
    settings: CallbackSettings, *, is_public: bool, proxy: URL | None = None
) -> list[Finding]:
    """Sends a callback to our own public URL and checks what arrives at our port.

    Args:
        settings: how callbacks are to be received.
        is_public: whether the service is on the Internet; a local one reaches private addresses.
        proxy: the proxy through which the Internet is reached, or None.
    """
    way = proxy if is_public else None
    if settings.port is None:
        return await _reach(settings, None, way, is_public=is_public)
    try:
        async with RequestCapture(settings.host, settings.port) as capture:
            settings = attrs.evolve(settings, port=capture.port)
            found = [Finding("port", "ok", f"{settings.target} is free; waiting for a callback")]
            return found + await _reach(settings, capture, way, is_public=is_public)
    except PortTaken:
        found = [await _program_at_port(settings)]
        return found + await _reach(settings, None, way, is_public=is_public)
    except OSError as error:
        text = f"cannot listen on {settings.target}: {error.strerror or error}"
        hint = "Choose an address of this machine (--host), and a port above 1023."
        return [Finding("port", "failed", text, hint)]


async def _program_at_port(settings: CallbackSettings) -> Finding:
    """Checks whether the program that has the port is a receiver."""
    outcome = await send(settings.local, Probe(settings.url, settings.keys).request())
    if outcome.answer is None:
        text, _ = _diagnosis.explain(outcome.fault or Fault("closed"), outcome.endpoint)
        hint = "Stop that program, or choose another port."
        return Finding("port", "failed", f"a program has {settings.target}, but {text}", hint)
    if not _may_be_a_receiver(outcome.answer):
        answer = _diagnosis.describe(outcome.answer)
        text = f"a program has {settings.target} that is not a receiver: it answered {answer}"
        hint = (
            "If that is your application, which mounts the receiver, leave out --port and unset "
            "MIDAPI_CALLBACK_PORT. If not, stop it, or choose another port."
        )
        return Finding("port", "failed", text, hint)
    if outcome.answer.status == 503:
        text = f"the receiver at {settings.target} has no open client"
        return Finding("port", "warning", text, "MidAPI sends callbacks again until one is open.")
    text = f"a receiver has {settings.target}; the callback goes to that one"
    return Finding("port", "ok", text)


def _may_be_a_receiver(answer: _http1.Message) -> bool:
    """Whether a receiver answers like this to a token that it does not know."""
    return answer.status in {404, 503} and not answer.body


async def _reach(
    settings: CallbackSettings,
    capture: RequestCapture | None,
    proxy: URL | None,
    *,
    is_public: bool,
) -> list[Finding]:
    """Sends a callback to each address of the public URL."""
    url = settings.url
    try:
        endpoints = await resolve(url, proxy)
    except Fault as fault:
        text, hint = _diagnosis.explain(fault, None)
        return [Finding("address", "failed", f"{url.host}: {text}", hint)]
    found = [_diagnosis.check_address(each, is_public=is_public) for each in endpoints]
    if is_public and url.scheme == "http":
        hint = "Others can read the tokens on the network: use TLS and an https:// URL."
        found.append(Finding("TLS", "warning", "the public URL is plain http", hint))
    tries = [await _try_endpoint(settings, each, capture) for each in endpoints]
    if len(tries) == 1:
        return found + tries[0]
    failed = [any(each.verdict == "failed" for each in findings) for findings in tries]
    for endpoint, findings in zip(endpoints, tries, strict=True):
        for each in findings:
            # MidAPI may use any of the addresses: one that fails is a warning if another works.
            is_warning = each.verdict == "failed" and not all(failed)
            verdict = "warning" if is_warning else each.verdict
            text = f"through {endpoint.address}: {each.text}"
            found.append(attrs.evolve(each, text=text, verdict=verdict))
    return found


async def _try_endpoint(
    settings: CallbackSettings, endpoint: Endpoint, capture: RequestCapture | None
) -> list[Finding]:
    probe = Probe(settings.url, settings.keys)
    before = len(capture.arrivals) if capture else 0
    outcome = await send(endpoint, probe.request())
    found = _diagnosis.check_certificate(outcome)
    if capture is None:
        # Another program has the port: only the answer can be judged.
        if outcome.answer is None or not _may_be_a_receiver(outcome.answer):
            return [*found, _diagnosis.not_arrived(probe, outcome, settings.target)]
        text = (
            f"{outcome.answer.status} came back, as a receiver answers to a token that it does not "
            "know; it may not be your receiver"
        )
        hint = "To be certain, stop your program and run this again with --port and its port."
        found.append(Finding("callback", "warning", text, hint))
        return found + _diagnosis.check_duration(outcome)
    arrivals = capture.arrivals[before:]
    arrived = next((each.message for each in arrivals if probe.is_in(each)), None)
    if arrived is None:
        return [
            *found,
            _diagnosis.not_arrived(probe, outcome, settings.target),
            *_diagnosis.other_arrivals(arrivals),
        ]
    problems = [*_diagnosis.changes(probe, arrived), *_diagnosis.check_answer(outcome)]
    text = f"one arrived unchanged, and its answer came back in {short(outcome.seconds)}"
    return found + (problems or [Finding("callback", "ok", text)])
