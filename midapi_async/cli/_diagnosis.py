"""What a probe's way tells, in plain words: what is wrong, and what to do about it."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

import attrs

from midapi_async import sign_callback
from midapi_async._version import __version__
from midapi_async._wire.tokens import new_token
from midapi_async.callbacks.signature import is_signed

from . import _wire
from ._route import GIVE_UP_SECONDS, Fault, Outcome, Place
from ._terminal import seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yarl import URL

    from ._recorder import Arrival

SLOW_SECONDS = 5.0
_RENEW_DAYS = 14
_DAY = 86_400.0
_NAMES = ("X-Webhook-Timestamp", "X-Webhook-Signature")
_LOGINS = {401, 403, 407, 511}

Verdict = Literal["ok", "warning", "failed"]


@attrs.frozen
class Finding:
    """One thing that was checked.

    Attributes:
        name: of what was checked.
        verdict: "ok", "warning" or "failed".
        text: what was seen.
        hint: what to do about it; may be empty.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str = ""


@attrs.frozen
class Probe:
    """A callback that only this doctor knows.

    Attributes:
        url: the prefix of callback URLs.
        keys: the webhook keys; without one it is signed with a key that nobody knows.
        token: the last segment of its path.
        task_id: what its body names.
    """

    url: URL
    keys: tuple[str, ...] = attrs.field(repr=False)
    token: str = attrs.field(factory=new_token, repr=False)

    @property
    def task_id(self) -> str:
        """What its body names: made of the token, and so unknown to others as well."""
        return self.token.removeprefix("mjt_")

    @property
    def path(self) -> str:
        """Where it is sent."""
        return f"{self.url.raw_path.rstrip('/')}/{self.token}"

    @property
    def body(self) -> bytes:
        """Its body, of the form that MidAPI documents."""
        data = {"taskId": self.task_id, "promptJson": "{}", "resultUrls": []}
        return json.dumps({"code": 200, "msg": "success", "data": data}).encode()

    def request(self) -> bytes:
        """All of it, as it is sent."""
        signed = sign_callback(self.keys[0] if self.keys else self.token, self.task_id)
        headers = {
            "Host": self.url.raw_authority,
            "User-Agent": f"midapi-async/{__version__}",
            "Accept": "*/*",
            "Content-Type": "application/json",
            **signed,
        }
        return _wire.written(f"POST {self.path} HTTP/1.1", headers.items(), self.body)

    def is_in(self, arrival: Arrival) -> bool:
        """Whether this is what arrived, whatever was done to it on its way."""
        message = arrival.message
        if message is None:
            return False
        marks = " ".join((message.first, *(value for _, value in message.headers))).lower()
        return self.task_id.lower() in marks or self.task_id.encode() in message.body

    def without_secrets(self, text: str) -> str:
        """A text without the token."""
        return re.sub(f"(mjt_)?{self.task_id}", "TOKEN", text, flags=re.IGNORECASE)

    def shown(self, path: str) -> str:
        """A path for people."""
        return self.without_secrets(path)[:120]


# ─── what arrived ────────────────────────────────────────────────────────────────────────────────


def changes(probe: Probe, arrived: _wire.Message) -> list[Finding]:
    """What was done to the probe on its way, as far as it matters to a receiver."""
    found = [
        *_method_and_path(probe, arrived),
        *_body(probe, arrived),
        *_signature(probe, arrived),
    ]
    return [Finding("callback", *each) for each in found]


Told = tuple[Verdict, str, str]


def _method_and_path(probe: Probe, arrived: _wire.Message) -> list[Told]:
    found: list[Told] = []
    if arrived.method != "POST":
        hint = "A redirect on the way does that: let the proxy pass POST on, and not redirect it."
        found.append(("failed", f"it was sent as POST and arrived as {arrived.method:.20}", hint))
    segments = [each for each in arrived.path.split("/") if each]
    if segments[-1:] == [probe.token] or _plain(segments[-1:]) == probe.token:
        return found
    sent, came = probe.shown(probe.path), probe.shown(arrived.path)
    told = f"it was sent to {sent} and arrived at {came}"
    if probe.token in segments:
        hint = "Something was put behind the last segment, which must stay the last."
    elif segments[-1:] and segments[-1].lower() == probe.token.lower():
        hint = "The letters' case was changed, and the last segment is a secret that must fit."
    elif segments[-1:] and segments[-1].endswith(probe.token):
        hint = "A slash is missing before the last segment: in nginx, at the end of proxy_pass."
    else:
        hint = (
            "The last segment was lost, which tells what the callback is about. Let the proxy pass "
            "it on: look at its rewrites, and in nginx at the path behind proxy_pass."
        )
    return [*found, ("failed", told, hint)]


def _plain(last: list[str]) -> str:
    """The last segment with its escapes undone: the receiver reads it so, too."""
    return unquote(last[0]) if last else ""


def _body(probe: Probe, arrived: _wire.Message) -> list[Told]:
    encodings = [each for each in arrived.values("Content-Encoding") if each != "identity"]
    if encodings:
        hint = "The receiver refuses encoded bodies: switch off what compresses requests."
        return [("failed", f"its body arrived encoded ({encodings[0]:.20})", hint)]
    if not arrived.body:
        hint = "Let the proxy pass the body on (in nginx: no proxy_pass_request_body off)."
        return [("failed", "its body was lost on the way", hint)]
    try:
        same = json.loads(arrived.body) == json.loads(probe.body)
    except ValueError:
        same = False
    hint = "Something on the way changes what it passes on: a filter or a rewrite of the proxy."
    return [] if same else [("failed", "its body was changed on the way", hint)]


def _signature(probe: Probe, arrived: _wire.Message) -> list[Told]:
    given = {name.lower(): arrived.values(name) for name in _NAMES}
    keys = [key.encode() for key in probe.keys or (probe.token,)]
    if is_signed(keys, given, probe.task_id):
        return []
    lost = [name for name in _NAMES if not arrived.values(name)]
    told = f"{' and '.join(lost)} lost on the way" if lost else "its signature was changed"
    if probe.keys:
        hint = "Every callback will be refused (401): let the proxy pass these headers on once."
        return [("failed", told, hint)]
    return [("warning", told, "It matters only once a webhook key is set.")]


# ─── what came back ──────────────────────────────────────────────────────────────────────────────


def answered(outcome: Outcome) -> list[Finding]:
    """What is wrong with the answer to a probe that has arrived and was answered 200."""
    if outcome.fault is not None:
        text, hint = explained(outcome.fault, outcome.place)
        return [Finding("callback", "failed", f"it arrived, but then {text}", hint)]
    answer = outcome.answer or _wire.Message("")
    if answer.status != 200:
        hint = "MidAPI takes nothing but 200 for taken, and will send it again and again."
        told = f"it arrived and was answered 200, but {described(answer)} came back"
        return [Finding("callback", "failed", told, hint)]
    return slowness(outcome)


def slowness(outcome: Outcome) -> list[Finding]:
    """A word on an answer that took long."""
    if outcome.seconds < SLOW_SECONDS:
        return []
    text = f"it took {seconds(outcome.seconds)}; MidAPI gives up after {GIVE_UP_SECONDS:.0f} s"
    return [Finding("callback", "warning", text, "See what holds it up on the way.")]


def not_arrived(probe: Probe, outcome: Outcome, target: str) -> Finding:
    """Why the probe did not arrive.

    Args:
        probe: what was sent.
        outcome: what came back.
        target: where it should have arrived, as in ``127.0.0.1:8080``.
    """
    if outcome.fault is not None:
        text, hint = explained(outcome.fault, outcome.place)
        return Finding("callback", "failed", text, hint)
    answer = outcome.answer or _wire.Message("")
    text, hint = _meant(probe, answer, target)
    return Finding("callback", "failed", text, hint)


def _meant(probe: Probe, answer: _wire.Message, target: str) -> tuple[str, str]:
    """What an answer that is not the receiver's means, and what to do."""
    status, who = answer.status, probe.without_secrets(described(answer))
    if 300 <= status < 400:
        to = probe.shown(answer.value("Location") or "nowhere")
        hint = (
            "Give as public_url where it leads, or end the redirect: nobody knows whether MidAPI "
            "follows one, and 301, 302 and 303 make a GET of a POST."
        )
        return f"it was redirected ({status}) to {to}", hint
    if status in _LOGINS:
        hint = "A login, a firewall or a bot filter stands before it: let this path through."
        return f"{who} came back: somebody asks who you are", hint
    if status in {502, 503, 504}:
        hint = (
            f"Does the proxy lead to {target}? In a container or on another machine 127.0.0.1 is "
            "not this one: listen with host 0.0.0.0 there."
        )
        return f"{who} came back: the proxy does not reach the receiver", hint
    if status == 413:
        return f"{who} came back: the proxy takes no such bodies", "Allow it bodies of 64 KiB."
    if 200 <= status < 300:
        hint = (
            "Callbacks would be lost without a word. Is it another program, a catch-all page or a "
            "login page? Let this path lead to the receiver."
        )
        return f"somebody else answered: {who}", hint
    hint = (
        f"Does the proxy pass {probe.shown(probe.path)} on to {target}, and is the receiver "
        "mounted at that path?"
    )
    return f"{who} came back, and not from the receiver", hint


def strangers(arrivals: Sequence[Arrival]) -> list[Finding]:
    """What arrived in the probe's place: often it is the probe, made unrecognisable."""
    kinds = (
        (b"\x16", "TLS", "The proxy speaks TLS to a port of plain http: let it speak http there."),
        (b"PROXY ", "the PROXY protocol", "Switch it off for this port (proxy_protocol)."),
        (b"\r", "the PROXY protocol", "Switch it off for this port (proxy_protocol)."),
        (b"PRI ", "HTTP/2", "Let the proxy speak HTTP/1.1 to this port."),
    )
    found = [
        Finding("callback", "failed", f"{what} came to the port, not plain HTTP/1.1", hint)
        for start, what, hint in kinds
        if any(each.start.startswith(start) for each in arrivals)
    ]
    requests = [each.message for each in arrivals if each.message is not None]
    if requests:
        text = f"another request came meanwhile: {requests[0].method:.20} {requests[0].path:.120}"
        hint = "Is that what the proxy made of it? Then it loses the path and the body."
        found.append(Finding("callback", "warning", text, hint))
    return found


def short(duration: float) -> str:
    """A duration for people that may be of milliseconds."""
    return seconds(duration) if duration >= 1 else f"{duration * 1000:.0f} ms"


def described(answer: _wire.Message) -> str:
    """An answer in a few words: who says what."""
    phrase = " ".join(answer.first.split(" ")[1:])[:60] or "nothing"
    who = answer.value("Server")[:40]
    page = re.search(rb"<title[^>]*>(.*?)</title", answer.body, re.IGNORECASE | re.DOTALL)
    title = " ".join(page[1].decode(errors="replace").split())[:60] if page else ""
    return phrase + (f" from {who}" if who else "") + (f', a page "{title}"' if title else "")


# ─── faults ──────────────────────────────────────────────────────────────────────────────────────

_FAULTS = {
    "name": (
        "its name does not resolve ({detail})",
        "Is it spelt right, and is there a DNS entry (A or AAAA) for it?",
    ),
    "refused": (
        "{place} refuses the connection",
        "Nothing listens there: is the proxy running, and is this its port?",
    ),
    "filtered": (
        "{place} does not answer",
        "Let this port through the firewall, or try from outside: some routers lead nobody back.",
    ),
    "unreachable": ("{place} cannot be reached: {detail}", "Is this address right?"),
    "tls_hangs": (
        "{place} takes the connection and says nothing more",
        "It is no TLS server, or it is overloaded.",
    ),
    "no_tls": (
        "{place} refuses TLS ({detail})",
        "Does it have a certificate, for this very name?",
    ),
    "plain_http": (
        "{place} speaks plain http, and the URL says https",
        "Write http:// there, or switch TLS on at this port.",
    ),
    "speaks_tls": (
        "{place} speaks TLS, and the URL says http",
        "Write https:// there.",
    ),
    "closed": (
        "{place} closed the connection without an answer",
        "Look into the log of what stands there.",
    ),
    "garbage": (
        "{place} answered what is no HTTP: {detail}",
        "Another kind of service stands there: is the port right?",
    ),
    "slow": (
        f"no answer came within {GIVE_UP_SECONDS:.0f} s, when MidAPI gives up",
        "See what holds it up on the way.",
    ),
}
_RENEW = "Renew it; what renews it by itself may have stopped."
_CHAIN = "Let the server send the whole chain (fullchain.pem), from a public authority."
_OTHER_NAME = "Get one for the name in the URL, or write the name that it is for."
_CERTIFICATES = {  # the codes of OpenSSL's X509_STORE_CTX_get_error
    9: "Is this machine's clock right? Then the certificate is used too early.",
    10: _RENEW,
    18: "It is signed by itself: get one from a public authority, as Let's Encrypt.",
    19: "Its authority is known to nobody: get one from a public authority, as Let's Encrypt.",
    20: _CHAIN,
    21: _CHAIN,
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}


def explained(fault: Fault, place: Place | None) -> tuple[str, str]:
    """A fault in words, and what to do about it."""
    kind, _, code = fault.kind.partition(" ")
    if kind == "certificate":
        hint = _CERTIFICATES.get(int(code), "Have the certificate checked.")
        return f"the certificate of {place} is not valid: {fault.detail}", hint
    text, hint = _FAULTS[kind]
    return text.format(place=place, detail=fault.detail[:80]), hint


def certificate(outcome: Outcome) -> list[Finding]:
    """A word on the certificate, where there is one."""
    if outcome.certificate_ends is None:
        return []
    days = int((outcome.certificate_ends - time.time()) / _DAY)
    text = f"the certificate holds for {days} more days"
    if days < _RENEW_DAYS:
        return [Finding("TLS", "warning", text, "Renew it before it ends.")]
    return [Finding("TLS", "ok", text)]


def address(place: Place, *, is_public: bool) -> Finding:
    """Whether MidAPI can reach an address.

    Args:
        place: it.
        is_public: whether MidAPI is the real one, out in the Internet.
    """
    found = ipaddress.ip_address(place.address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    if found.is_global or not is_public:
        return Finding("address", "ok", str(found))
    kind = "this machine itself" if found.is_loopback else "an address of a private network"
    hint = (
        "Let the name lead to the public address of your proxy, router or tunnel. If it leads "
        "elsewhere from outside than from here, run this outside, too."
    )
    return Finding("address", "failed", f"{found} is {kind}: MidAPI cannot reach it", hint)
