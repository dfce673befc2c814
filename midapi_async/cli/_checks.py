"""The checks of ``midapi doctor``; each returns its findings and raises nothing."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import re
import secrets
import time
from contextlib import AsyncExitStack, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import attrs
from yarl import URL

from midapi_async import CallbackReceiver, MemoryJournal, MidAPIClient, errors, sign_callback
from midapi_async.callbacks import Body, Headers
from midapi_async.callbacks.inbox import PROBE_INTERVAL, PROBES
from midapi_async.journal import Journal, State
from midapi_async.journal.sqlite import SQLiteJournal

from . import _env
from ._connect import Outcome, certificate_days, resolve, send
from ._env import Place
from ._errors import in_commands
from ._folder import opened_journal
from ._terminal import seconds
from .credits import amount

# Seconds. A lost answer is found by comparing MidAPI's times with ours, so a clock that is far off
# makes that fail.
_CLOCK_FAILED, _CLOCK_WARNING = 300.0, 30.0


@attrs.frozen
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        verdict: "ok", "warning" or "failed".
        text: what was found.
        hint: what to do about it; may be empty.
        unsure: whether it could not be found out if there is a problem.
    """

    name: str
    verdict: Literal["ok", "warning", "failed"]
    text: str
    hint: str = ""
    unsure: bool = False


# ─── the account ─────────────────────────────────────────────────────────────────────────────────


def proxy_settings(given: str | None) -> tuple[URL | None, list[Finding]]:
    """The proxy to use, if one is set, and what to say about it; its URL is not checked here."""
    text = _env.proxy(given)
    with suppress(ValueError):
        if (proxy := URL(text)).host:
            return proxy, [Finding("proxy", "ok", f"{proxy.host}:{proxy.port} gets the requests")]
    others = [] if text else _env.other_proxies()
    text = f"{' and '.join(others)} is set, and is not read by programs that use midapi_async"
    hint = "If MidAPI is to be reached through that proxy, set MIDAPI_PROXY to its URL, too."
    return None, [Finding("proxy", "warning", text, hint)] if others else []


async def account(
    proxy: str | None = None, *, api_key: str | None = None, base_url: str | None = None
) -> list[Finding]:
    """Checks a client's settings, the service, the clock and the API key.

    Args:
        proxy: as `MidAPIClient` takes it.
        api_key: as `MidAPIClient` takes it.
        base_url: as `MidAPIClient` takes it.
    """
    client, found = None, list[Finding]()
    try:
        client = MidAPIClient(api_key, base_url=base_url, journal=MemoryJournal(), proxy=proxy)
    except errors.InvalidRequestError as error:
        for field, problem in error.problems.items():
            name = field.replace("api_key", "API key")
            found.append(Finding(name, "failed", in_commands(problem)))
        if error.problems.keys() != {"api_key"}:
            return found
    url = URL(_env.base_url(base_url))
    outcome = await send(url.with_path("/"), url.raw_host or "", proxy=proxy_settings(proxy)[0])
    if outcome.fault:
        text = f"{url} cannot be reached: {outcome.fault}"
        return [*found, Finding("service", "failed", text, outcome.hint)]
    found.append(Finding("service", "ok", f"{url} answers in {seconds(outcome.seconds)}"))
    with suppress(TypeError, ValueError):  # the service did not send its time
        date = parsedate_to_datetime(outcome.headers.get("Date", ""))
        if _env.time_scale() == 1:  # else a sandbox has another time
            found.append(_clock(time.time() - date.timestamp()))
    if client is not None:
        found.append(await _credits(client, url))
    return found


def _clock(off: float) -> Finding:
    if abs(off) <= _CLOCK_WARNING:
        return Finding("clock", "ok", "agrees with MidAPI's")
    text = f"{seconds(abs(off))} {'ahead of' if off > 0 else 'behind'} MidAPI's"
    hint = "Let the system set its clock (NTP): lost answers are found by comparing times. For a "
    hint += "sandbox with --time-scale, set MIDAPI_TIME_SCALE to the same number."
    return Finding("clock", "failed" if abs(off) > _CLOCK_FAILED else "warning", text, hint)


async def _credits(client: MidAPIClient, url: URL) -> Finding:
    try:
        async with client:
            left = await client.credits()
    except errors.AuthenticationError:
        hint = "Is it complete and not revoked, and does it belong to this service?"
        return Finding("API key", "failed", f"{url} refuses it", hint)
    except errors.MidAPIError as error:
        return Finding("API key", "failed", f"it could not be checked: {in_commands(str(error))}")
    if left <= 0:
        return Finding("API key", "warning", "accepted, but no credits are left", "Buy credits.")
    return Finding("API key", "ok", f"accepted; {amount(left)} credits are left")


# ─── the journal ─────────────────────────────────────────────────────────────────────────────────


async def journal(folder: Path | None) -> Finding:
    """Checks whether a journal's folder can be used; no folder is made."""
    if folder is None:
        text = "in memory: keys and tasks are forgotten when a program ends"
        hint = "To keep them, set MIDAPI_JOURNAL to a folder, or to a postgresql:// URL."
        return Finding("journal", "warning", text, hint)
    try:
        opened = SQLiteJournal(folder)
    except errors.InvalidRequestError as error:
        return Finding("journal", "failed", error.problems["journal"])
    if not folder.exists():
        parent = next(each for each in folder.absolute().parents if each.exists())
        can = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
        text = f"{folder} does not exist; the first use {'makes it' if can else 'cannot make it'}"
        hint = "Check its spelling, the current folder, and who may write there."
        return Finding("journal", "warning" if can else "failed", text, hint)
    try:
        problems = await opened.check()
        count = 0 if problems else sum((await opened.stats()).counts.values())
    except (errors.JournalError, OSError) as error:
        return Finding("journal", "failed", in_commands(str(error)))
    finally:
        await opened.aclose()
    if problems:
        hint = "Restore it from a backup; midapi journal check shows all of the damage."
        return Finding("journal", "failed", f"{folder} is damaged: {problems[0]}", hint)
    if folder.stat().st_mode & 0o077:
        text = f"other users can read {folder}, which holds prompts and metadata"
        return Finding("journal", "warning", text, f"chmod 700 {folder}")
    text = f"{folder} is private, on a local disk, and not damaged; intents: {count}"
    return Finding("journal", "ok", text)


async def unknown(opened: Journal) -> list[Finding]:
    """An alarm if the journal contains submissions that a person must decide about."""
    count = (await opened.stats()).counts.get(State.UNKNOWN, 0)
    if not count:
        return []
    text = f"{count} of which it cannot be known whether they were paid; they are not sent again"
    hint = "For their prompts, and what to do: midapi journal list unknown"
    return [Finding("unknown submissions", "warning", text, hint)]


# ─── callbacks ───────────────────────────────────────────────────────────────────────────────────


class _Receiver(CallbackReceiver):
    """Stands in for the receiver of an application, and keeps the last segments that arrive."""

    arrived: list[str]

    async def handle(self, token: str, headers: Headers, body: Body) -> int:
        """See `CallbackReceiver.handle`."""
        self.arrived.append(token[:120] or "nothing")
        return await super().handle(token, headers, body)

    def _warn_of_signature(self, kind: str) -> None:
        """Log nothing: a finding says it."""


@attrs.define(kw_only=True)
class CallbackSettings:
    """How callbacks are to be received, and how a probe travels.

    Attributes:
        public_url: as `CallbackReceiver` takes it.
        host: the address to listen on.
        port: the port; None if an application of the user listens.
        keys: the webhook keys.
        proxy: the proxy through which the Internet is reached, or None.
        journal: where the receiver looks for probes; in memory if its folder is not known.
        own: our own receiver; None if the application's receives.
    """

    public_url: str | None
    host: str = "127.0.0.1"
    port: int | None
    keys: tuple[str, ...] = attrs.field(repr=False)
    proxy: URL | None = None
    journal: Journal = attrs.field(factory=MemoryJournal)
    own: _Receiver | None = None

    @property
    def target(self) -> str:
        """Where callbacks should arrive, for messages."""
        return "your application" if self.port is None else f"{self.host}:{self.port}"


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
    except errors.InvalidRequestError as error:
        problems = {**error.problems, **problems}
    if problems:
        return [Finding(field, "failed", problem) for field, problem in problems.items()]
    return CallbackSettings(public_url=url, host=host, port=port, keys=keys)


async def callbacks(
    to: CallbackSettings, service: URL, place: Place | None = None, proxy: URL | None = None
) -> list[Finding]:
    """Sends a callback to our own public URL, and checks whether the receiver takes it.

    The receiver is one of our own if the port is free, else that of the application.

    Args:
        to: how callbacks are to be received.
        service: MidAPI's URL. One of https is on the Internet; another reaches private addresses.
        place: where the application's journal is; it exists, if that is a database.
        proxy: the proxy through which the Internet is reached, or None.
    """
    to.proxy = proxy if service.scheme == "https" else None
    signs = to.keys or (secrets.token_hex(),)  # without a key, to see whether headers are lost
    async with AsyncExitStack() as exits:
        reason, local = "", URL.build(scheme="http", host=to.host, port=to.port)
        if to.port is not None:
            own = _Receiver(to.public_url, host=to.host, port=to.port, webhook_key=signs)
            own.arrived, base = [], "http://127.0.0.1"  # which asks for nothing of a public URL
            client = MidAPIClient(
                "none", base_url=base, time_scale=1, proxy="", journal=to.journal, receiver=own
            )
            try:
                await exits.enter_async_context(client)
                to.own = own
            except errors.ReceiverError as error:
                reason = str(error)
        if to.own is None and place is not None and (isinstance(place, str) or place.exists()):
            to.journal = await exits.enter_async_context(opened_journal(place))
        url = URL(to.own.url if to.own else to.public_url or local)
        found = await _reach(to, url, signs[0], is_public=service.scheme == "https")
    if to.own is not None:
        text = f"{to.target} is free; a receiver of this check listens there"
        found.insert(0, Finding("port", "ok", text))
    elif to.port is not None and found[-1].verdict == "ok":
        found.insert(0, Finding("port", "ok", f"your application listens on {to.target}"))
    elif to.port is not None:
        hint = "If your application has this port, that is right. If it mounts the receiver in a "
        hint += "server of its own, leave out --port and unset MIDAPI_CALLBACK_PORT."
        found.insert(0, Finding("port", "warning", reason, hint))
    return found


async def _reach(to: CallbackSettings, url: URL, key: str, *, is_public: bool) -> list[Finding]:
    """Sends a callback to each address of the public URL."""
    host = url.raw_host or ""
    try:
        addresses = [host] if to.proxy else await resolve(url)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no name server answered"
        text = f"the name {host} does not resolve ({reason})"
        return [Finding("address", "failed", text, "Check its spelling, and its entry in the DNS.")]
    found = [check_address(each, is_public=is_public) for each in addresses if not to.proxy]
    if is_public and url.scheme == "http":
        hint = "Others can read the tokens on the network: use TLS and an https:// URL."
        found.append(Finding("TLS", "warning", "the public URL is plain http", hint))
    days = None if to.proxy or url.scheme == "http" else await certificate_days(url)
    if days is not None and days < 14:
        text, hint = f"the certificate expires in {days:.0f} days", "Has its renewal stopped?"
        found.append(Finding("TLS", "warning", text, hint))
    tries = [await _probe(to, url, key, each) for each in addresses]
    if len(tries) == 1:
        return [*found, tries[0]]
    for address, each in zip(addresses, tries, strict=True):
        # MidAPI may use any of the addresses: one that fails is a warning if another works.
        is_warning = each.verdict == "failed" and any(it.verdict != "failed" for it in tries)
        verdict = "warning" if is_warning else each.verdict
        text = f"through {address}: {each.text}"
        found.append(attrs.evolve(each, text=text, verdict=verdict))
    return found


def check_address(address: str, *, is_public: bool) -> Finding:
    """Whether MidAPI can reach an address.

    Args:
        address: an IP address.
        is_public: whether the service is on the Internet; a local one reaches private addresses.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_global or not is_public:
        return Finding("address", "ok", str(ip))
    kind = "this machine itself" if ip.is_loopback else "an address of a private network"
    hint = "Its name must lead to your public address. If it does elsewhere, run this there, too."
    return Finding("address", "failed", f"{ip} is {kind}: MidAPI cannot reach it", hint)


async def _probe(to: CallbackSettings, prefix: URL, key: str, address: str) -> Finding:
    """Sends a callback to one address; its token is a note in the receiver's journal."""
    token, task_id = f"mjt_{secrets.token_urlsafe(32)}", secrets.token_hex(16)
    name = hashlib.sha256(token.encode()).hexdigest()
    url = URL(f"{str(prefix).rstrip('/')}/{token}")
    headers = {"Content-Type": "application/json", **sign_callback(key, task_id)}
    data = {"taskId": task_id, "promptJson": "{}", "resultUrls": []}
    body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
    journal, expires, has_arrived = to.journal, time.time() + 300, False
    outcome = Outcome()
    if to.own is not None:
        to.own.arrived.clear()
    try:
        await journal.note(*PROBES, name, task_id, expires=expires)
        # Up to three times, because a receiver reads these notes rarely.
        for pause in (PROBE_INTERVAL * 1.2, PROBE_INTERVAL * 1.2, 0.0):
            outcome = await send(url, address, headers=headers, body=body, proxy=to.proxy)
            has_arrived = name not in await journal.notes(*PROBES)
            if has_arrived or not _is_unknown_token(outcome) or not (to.own or journal.is_durable):
                break
            await asyncio.sleep(pause)
    except errors.JournalError as error:
        return Finding("callback", "failed", in_commands(str(error)))
    finally:
        with suppress(errors.JournalError):
            await journal.note(*PROBES, name)
    return _judged(to, url, outcome, has_arrived=has_arrived)


# What has become of a probe, by a name or by the status of its answer | what to say | what to do.
_ENDS = """\
slow | it has arrived, but the answer took {took} | MidAPI gives up after 15 s: find what is slow.
replaced | it has arrived and was answered 200, but {answer} came back | MidAPI accepts only a \
200, and sends the callback again after anything else.
cut | it was sent to {path}, and its last segment arrived as {last} | The last one must stay last \
and unchanged: check the rewrites of the proxy, and in nginx the slashes of proxy_pass.
unsigned | its signature was lost or changed on the way | The proxy must forward both headers, \
X-Webhook-Timestamp and X-Webhook-Signature. Without a webhook key this does not matter.
other | {answer} came back: a receiver answers, and does not know the token of this check | Set \
MIDAPI_JOURNAL here as for your application; if it is right, a proxy changes the end of the path.
unsure | {answer} came back after {took}, as a receiver answers to an unknown token | To be sure, \
set MIDAPI_JOURNAL as for your application; or stop that, and run this again with --port.
2.. | {answer} came back: another program answered | MidAPI would take this for success, and lose \
the callback in silence. Is it a catch-all or login page? Route this path to the receiver.
3.. | {answer} came back: it is redirected to {to} | Use that as public_url, or remove the \
redirect: MidAPI may not follow it, and most redirects turn a POST into a GET.
400|408 | {answer} came back: its body was lost or changed, or it arrived in another protocol \
| Make the proxy forward the body, and use plain HTTP/1.1 for {target}: no TLS, no \
HTTP/2, no PROXY protocol. If the port itself uses TLS, the URL must be https.
401 | {answer} came back: a login comes first, or the signature is refused | Exempt this path from \
the login. If there is none: your application, MidAPI and this check (MIDAPI_WEBHOOK_KEY) need the \
same webhook key, and the proxy must forward X-Webhook-Timestamp and X-Webhook-Signature.
403|407|511 | {answer} came back: access is denied before the receiver | Exempt this path from \
logins, firewalls and bot filters.
405 | {answer} came back: it did not arrive as a POST, or at a web server for files | A redirect \
or rewrite may do that: make the proxy forward the POST to {target}.
413 | {answer} came back: bodies of this size are refused | Allow 64 KiB in the proxy.
415 | {answer} came back: its body arrived compressed | Switch off the compression of requests.
50[234] | {answer} came back: the proxy does not reach the receiver, or that has no open client | \
Does the application run, and does the proxy forward to {target} as plain HTTP/1.1 (no TLS, HTTP/2 \
or PROXY protocol)? Inside of a container, the receiver must listen with host 0.0.0.0.
... | {answer} came back, and not from the receiver | Does the application run? Does the proxy \
forward {path} to {target}, and is the receiver mounted at that path?
"""


def _judged(to: CallbackSettings, url: URL, outcome: Outcome, *, has_arrived: bool) -> Finding:
    """What has become of a probe, and what to do."""
    if outcome.fault:
        text = f"it has arrived, but then: {outcome.fault}" if has_arrived else outcome.fault
        return Finding("callback", "failed", text, outcome.hint)
    token, arrived, end = url.name, to.own.arrived if to.own else [], str(outcome.status)
    facts = {"answer": _described(outcome), "path": url.raw_path, "target": to.target}
    facts["took"] = seconds(outcome.seconds)
    if has_arrived and outcome.status == 200 and outcome.seconds < 5:
        text = "it has arrived at {target}, and was answered in {took}".format(**facts)
        return Finding("callback", "ok", text)
    if has_arrived:
        end = "slow" if outcome.status == 200 else "replaced"
    elif _is_unknown_token(outcome) and arrived:
        end = "cut"
    elif _is_unknown_token(outcome) and to.own is None:
        end = "other" if to.journal.is_durable else "unsure"
    elif end == "401" and token in arrived:
        end = "unsigned"
    facts |= {"to": outcome.headers.get("Location", "")[:120], "last": (arrived or [""])[-1]}
    rows = (line.split(" | ") for line in _ENDS.splitlines())
    text, hint = next(row[1:] for row in rows if re.fullmatch(row[0], end))
    # The token is not shown; one whose case was changed on the way is shown in lower case.
    text, hint = (
        re.sub(token, "token", each.format(**facts).replace(token, "TOKEN"), flags=re.IGNORECASE)
        for each in (text, hint)
    )
    is_warning = end in {"slow", "unsure"} or (end == "unsigned" and not to.keys)
    is_unsure = end == "unsure"
    return Finding("callback", "warning" if is_warning else "failed", text, hint, is_unsure)


def _is_unknown_token(outcome: Outcome) -> bool:
    """Whether a receiver answers like this to a token that it does not know."""
    return outcome.status == 404 and not outcome.page


def _described(outcome: Outcome) -> str:
    """An answer in a few words: status, server, and the title of its page, or how that begins."""
    server = outcome.headers.get("Server", "")[:40]
    title = re.search(rb"<title[^>]*>(.*?)</title", outcome.page, re.IGNORECASE | re.DOTALL)
    page = " ".join((title[1] if title else outcome.page).decode(errors="replace").split())[:60]
    parts = f"{outcome.status} {outcome.reason:.50}", server and f"from {server}"
    return " ".join(filter(None, parts)) + (f', a page "{page}"' if page else "")
