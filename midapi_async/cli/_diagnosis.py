"""What the doctor's probe shows, in words: what is wrong on the way to us, and what to do."""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import time
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

import attrs

from midapi_async import __version__, sign_callback

from . import _http1
from ._connect import ANSWER_SECONDS, Endpoint, Fault, Outcome
from ._terminal import seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from yarl import URL

    from ._capture import Arrival

SLOW_SECONDS = 5.0
_RENEW_DAYS = 14
_DAY = 86_400.0
_ACCESS_DENIED = {401, 403, 407, 511}

Verdict = Literal["ok", "warning", "failed"]


@attrs.frozen
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        verdict: "ok", "warning" or "failed".
        text: what was found.
        hint: what to do about it; may be empty.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str = ""


def _new_token() -> str:
    return f"mjt_{secrets.token_urlsafe(32)}"


@attrs.frozen
class Probe:
    """A callback that the doctor sends, and recognizes when it arrives.

    Attributes:
        url: the prefix of callback URLs.
        keys: the webhook keys; if empty, the token signs, so that lost headers are noticed.
        token: the last segment of the path; it looks like a real one, and no client knows it.
        signature: the headers with the signature.
    """

    url: URL
    keys: tuple[str, ...] = attrs.field(repr=False)
    token: str = attrs.field(factory=_new_token, repr=False)
    signature: Mapping[str, str] = attrs.field(init=False, repr=False)

    @signature.default
    def _sign(self) -> dict[str, str]:
        return sign_callback(self.keys[0] if self.keys else self.token, self.task_id)

    @property
    def task_id(self) -> str:
        """The task id in the body: a part of the token, so that no real task has it."""
        return self.token.removeprefix("mjt_")

    @property
    def path(self) -> str:
        """The path that it is sent to."""
        return f"{self.url.raw_path.rstrip('/')}/{self.token}"

    @property
    def body(self) -> bytes:
        """The body, as MidAPI documents it."""
        data = {"taskId": self.task_id, "promptJson": "{}", "resultUrls": []}
        return json.dumps({"code": 200, "msg": "success", "data": data}).encode()

    def request(self) -> bytes:
        """The whole request as bytes."""
        headers = {
            "Host": self.url.raw_authority,
            "User-Agent": f"midapi-async/{__version__}",
            "Accept": "*/*",
            "Content-Type": "application/json",
            **self.signature,
        }
        return _http1.encode(f"POST {self.path} HTTP/1.1", headers.items(), self.body)

    def is_in(self, arrival: Arrival) -> bool:
        """Whether this is what arrived, even if it was changed on the way."""
        message = arrival.message
        if message is None:
            return False
        head = " ".join((message.first, *(value for _, value in message.headers))).lower()
        return self.task_id.lower() in head or self.task_id.encode() in message.body

    def without_token(self, text: str) -> str:
        """The text with TOKEN in place of the token."""
        return re.sub(f"(mjt_)?{self.task_id}", "TOKEN", text, flags=re.IGNORECASE)

    def shown(self, path: str) -> str:
        """A path for people: short and without the token."""
        return self.without_token(path)[:120]


# ─── what arrived ────────────────────────────────────────────────────────────────────────────────


def changes(probe: Probe, arrived: _http1.Message) -> list[Finding]:
    """What was changed on the way, as far as it matters to a receiver."""
    found = [
        *_method_and_path(probe, arrived),
        *_body(probe, arrived),
        *_signature(probe, arrived),
    ]
    return [Finding("callback", *each) for each in found]


Problem = tuple[Verdict, str, str]  # a finding without its name


def _method_and_path(probe: Probe, arrived: _http1.Message) -> list[Problem]:
    found: list[Problem] = []
    if arrived.method != "POST":
        hint = "A redirect does that: make the proxy forward the POST and not redirect it."
        found.append(("failed", f"it was sent as POST and arrived as {arrived.method:.20}", hint))
    segments = [each for each in arrived.path.split("/") if each]
    last = segments[-1] if segments else ""
    if unquote(last) == probe.token:  # a receiver decodes the segment, too
        return found
    sent, came = probe.shown(probe.path), probe.shown(arrived.path)
    text = f"it was sent to {sent} and arrived at {came}"
    if probe.token in segments:
        hint = "Something was added after the last segment, which must stay the last one."
    elif last.lower() == probe.token.lower():
        hint = "Upper case became lower case; the last segment is a secret and must stay the same."
    elif last.endswith(probe.token):
        hint = "A slash is missing before the last segment: in nginx, at the end of proxy_pass."
    else:
        hint = (
            "The last segment was lost, which says which task the callback is for. Make the proxy "
            "keep it: check its rewrites, and in nginx the path after proxy_pass."
        )
    return [*found, ("failed", text, hint)]


def _body(probe: Probe, arrived: _http1.Message) -> list[Problem]:
    encodings = [each for each in arrived.values("Content-Encoding") if each != "identity"]
    if encodings:
        hint = "The receiver refuses compressed bodies: switch off the compression of requests."
        return [("failed", f"its body arrived compressed ({encodings[0]:.20})", hint)]
    if not arrived.body:
        hint = "Make the proxy forward the body (in nginx: no proxy_pass_request_body off)."
        return [("failed", "its body was lost on the way", hint)]
    try:
        same = json.loads(arrived.body) == json.loads(probe.body)
    except ValueError:
        same = False
    hint = "Find what changes bodies on the way: a filter or a rewrite of the proxy."
    return [] if same else [("failed", "its body was changed on the way", hint)]


def _signature(probe: Probe, arrived: _http1.Message) -> list[Problem]:
    if all(arrived.values(name) == [value] for name, value in probe.signature.items()):
        return []
    lost = [name for name in probe.signature if not arrived.values(name)]
    text = f"{' and '.join(lost)} lost on the way" if lost else "its signature was changed"
    if probe.keys:
        hint = "Every callback will be refused (401): make the proxy forward these headers once."
        return [("failed", text, hint)]
    return [("warning", text, "This matters only after a webhook key is set.")]


# ─── what came back ──────────────────────────────────────────────────────────────────────────────


def check_answer(outcome: Outcome) -> list[Finding]:
    """Problems of the answer to a probe that arrived and was answered 200."""
    if outcome.fault is not None:
        text, hint = explain(outcome.fault, outcome.endpoint)
        return [Finding("callback", "failed", f"it arrived, but then {text}", hint)]
    answer = outcome.answer or _http1.Message("")
    if answer.status != 200:
        text = f"it arrived and was answered 200, but {describe(answer)} came back"
        hint = "MidAPI accepts only a 200, and sends the callback again after anything else."
        return [Finding("callback", "failed", text, hint)]
    return check_duration(outcome)


def check_duration(outcome: Outcome) -> list[Finding]:
    """A warning about an answer that took long."""
    if outcome.seconds < SLOW_SECONDS:
        return []
    text = f"it took {seconds(outcome.seconds)}; MidAPI gives up after {ANSWER_SECONDS:.0f} s"
    return [Finding("callback", "warning", text, "Find out what is slow on the way.")]


def not_arrived(probe: Probe, outcome: Outcome, target: str) -> Finding:
    """Why the probe did not arrive.

    Args:
        probe: what was sent.
        outcome: what came back.
        target: where it should have arrived, as in ``127.0.0.1:8080``.
    """
    if outcome.fault is not None:
        text, hint = explain(outcome.fault, outcome.endpoint)
    else:
        text, hint = _explain_answer(probe, outcome.answer or _http1.Message(""), target)
    return Finding("callback", "failed", text, hint)


def _explain_answer(probe: Probe, answer: _http1.Message, target: str) -> tuple[str, str]:
    """What an answer means that is not the receiver's, and what to do."""
    status, shown = answer.status, probe.without_token(describe(answer))
    if 300 <= status < 400:
        location = probe.shown(answer.value("Location") or "nowhere")
        hint = (
            "Use the URL behind the redirect as public_url, or remove the redirect: MidAPI may not "
            "follow it, and 301, 302 and 303 turn the POST into a GET."
        )
        return f"it was redirected ({status}) to {location}", hint
    if status in _ACCESS_DENIED:
        hint = "A login, a firewall or a bot filter answers first: exempt this path from it."
        return f"{shown} came back: access is denied before the receiver", hint
    if status in {502, 503, 504}:
        hint = (
            f"Does the proxy forward to {target}? In a container or on another machine, 127.0.0.1 "
            "is a different machine: listen with host 0.0.0.0 there."
        )
        return f"{shown} came back: the proxy does not reach the receiver", hint
    if status == 413:
        hint = "Allow bodies of 64 KiB in the proxy."
        return f"{shown} came back: the proxy refuses bodies of this size", hint
    if 200 <= status < 300:
        hint = (
            "MidAPI would take this for success, and callbacks would be lost in silence. Is it "
            "another program, a catch-all page or a login page? Route this path to the receiver."
        )
        return f"another program answered: {shown}", hint
    hint = (
        f"Does the proxy forward {probe.shown(probe.path)} to {target}, and is the receiver "
        "mounted at that path?"
    )
    return f"{shown} came back, and not from the receiver", hint


def other_arrivals(arrivals: Sequence[Arrival]) -> list[Finding]:
    """What arrived instead of the probe; often that is the probe, changed beyond recognition."""
    kinds = (
        (b"\x16", "TLS", "The proxy uses TLS for a port of plain http: make it use http."),
        (b"PROXY ", "the PROXY protocol", "Switch it off for this port (proxy_protocol)."),
        (b"\r", "the PROXY protocol", "Switch it off for this port (proxy_protocol)."),
        (b"PRI ", "HTTP/2", "Make the proxy use HTTP/1.1 for this port."),
    )
    found = [
        Finding("callback", "failed", f"{what} arrived at the port, not plain HTTP/1.1", hint)
        for start, what, hint in kinds
        if any(each.start.startswith(start) for each in arrivals)
    ]
    requests = [each.message for each in arrivals if each.message is not None]
    if requests:
        text = f"another request arrived: {requests[0].method:.20} {requests[0].path:.120}"
        hint = "If this is what the proxy made of the callback, it loses the path and the body."
        found.append(Finding("callback", "warning", text, hint))
    return found


def short(duration: float) -> str:
    """A duration for people, in milliseconds below a second."""
    return seconds(duration) if duration >= 1 else f"{duration * 1000:.0f} ms"


def describe(answer: _http1.Message) -> str:
    """An answer in a few words: status, server and the title of its page."""
    status = " ".join(answer.first.split(" ")[1:])[:60] or "nothing"
    server = answer.value("Server")[:40]
    page = re.search(rb"<title[^>]*>(.*?)</title", answer.body, re.IGNORECASE | re.DOTALL)
    title = " ".join(page[1].decode(errors="replace").split())[:60] if page else ""
    return status + (f" from {server}" if server else "") + (f', a page "{title}"' if title else "")


# ─── faults ──────────────────────────────────────────────────────────────────────────────────────

_FAULTS = {
    "name": (
        "its name does not resolve ({detail})",
        "Check its spelling, and that DNS has an entry (A or AAAA) for it.",
    ),
    "refused": (
        "{endpoint} refuses the connection",
        "Nothing listens there: check that the proxy runs, and that this is its port.",
    ),
    "filtered": (
        "{endpoint} does not answer",
        "Open this port in the firewall. Some routers block their own network: try from outside.",
    ),
    "proxy": (
        "the proxy {detail}",
        "Check its URL (--proxy, MIDAPI_PROXY), and that it lets this machine through.",
    ),
    "unreachable": ("{endpoint} cannot be reached: {detail}", "Check this address."),
    "tls_hangs": (
        "{endpoint} accepts the connection and then sends nothing",
        "It is not a TLS server, or it is overloaded.",
    ),
    "no_tls": (
        "{endpoint} refuses TLS ({detail})",
        "Check that it has a certificate for exactly this name.",
    ),
    "plain_http": (
        "{endpoint} uses plain http, and the URL says https",
        "Use http:// in the URL, or switch on TLS for this port.",
    ),
    "speaks_tls": (
        "{endpoint} uses TLS, and the URL says http",
        "Use https:// in the URL.",
    ),
    "closed": (
        "{endpoint} closed the connection without an answer",
        "Look into the log of the program at that port.",
    ),
    "garbage": (
        "the answer of {endpoint} is not HTTP: {detail}",
        "Another kind of service listens there: check the port.",
    ),
    "slow": (
        f"no answer came within {ANSWER_SECONDS:.0f} s, when MidAPI gives up",
        "Find out what is slow on the way.",
    ),
}
_RENEW = "Renew it; the automatic renewal may have stopped."
_CHAIN = "Make the server send the whole chain (fullchain.pem), of a public authority."
_OTHER_NAME = "Get one for the name in the URL, or use the certificate's name in the URL."
_CERTIFICATES = {  # the codes of OpenSSL's X509_STORE_CTX_get_error
    9: "It is not valid yet, or the clock of this machine is wrong.",
    10: _RENEW,
    18: "It is self-signed: get one from a public authority such as Let's Encrypt.",
    19: "Its authority is not trusted: get one from a public authority such as Let's Encrypt.",
    20: _CHAIN,
    21: _CHAIN,
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}


def explain(fault: Fault, endpoint: Endpoint | None) -> tuple[str, str]:
    """A fault in words, and what to do about it."""
    kind, _, code = fault.kind.partition(" ")
    if kind == "certificate":
        hint = _CERTIFICATES.get(int(code), "Check the certificate with its issuer.")
        return f"the certificate of {endpoint} is not valid: {fault.detail}", hint
    text, hint = _FAULTS[kind]
    return text.format(endpoint=endpoint, detail=fault.detail[:120]), hint


def check_certificate(outcome: Outcome) -> list[Finding]:
    """How long the certificate is still valid; empty without TLS."""
    if outcome.certificate_ends is None:
        return []
    days = int((outcome.certificate_ends - time.time()) / _DAY)
    text = f"the certificate is valid for {days} more days"
    if days < _RENEW_DAYS:
        return [Finding("TLS", "warning", text, "Renew it before it expires.")]
    return [Finding("TLS", "ok", text)]


def check_address(endpoint: Endpoint, *, is_public: bool) -> Finding:
    """Whether MidAPI can reach an address.

    Args:
        endpoint: the address.
        is_public: whether the service is on the Internet; a local one reaches private addresses.
    """
    if endpoint.proxy is not None:
        text = f"{endpoint.address} is resolved by the proxy"
        return Finding("address", "ok", text)
    address = ipaddress.ip_address(endpoint.address.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_global or not is_public:
        return Finding("address", "ok", str(address))
    kind = "this machine itself" if address.is_loopback else "an address of a private network"
    hint = (
        "Make the name resolve to the public address of your proxy, router or tunnel. If it "
        "resolves differently outside of your network, run this outside, too."
    )
    return Finding("address", "failed", f"{address} is {kind}: MidAPI cannot reach it", hint)
