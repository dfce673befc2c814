"""``midapi sandbox``: a local MidAPI to develop against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import attrs
from cyclopts import Group, Parameter

from ._common import Output, run_async
from ._errors import FAILED, CommandError, in_commands, usage_error
from ._terminal import out, say

if TYPE_CHECKING:
    from midapi_async.sandbox import Faults, Sandbox

_Flag = Annotated[bool, Parameter(negative="", show_default=False)]
_Several = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]


@Parameter(name="*", group=Group("Addresses", sort_key=10))
@attrs.frozen(kw_only=True)
class Addresses:
    """Where it is found.

    Attributes:
        host: The address to listen on; 0.0.0.0 lets other machines in.
        port: The port to listen on; 0 picks a free one.
        files_url: Where the URLs of files begin, such as https://fox.example.org. If not given,
            they begin with the address that the program used, also behind ngrok or another proxy
            that sets X-Forwarded-Proto.
        tls: Serve https, with a certificate that is made now; prints how to make programs trust it.
        tls_ca: As --tls, but write the certificate that programs must trust to this file, and not
            to a temporary one.
    """

    host: str = "127.0.0.1"
    port: int = 8787
    files_url: str | None = None
    tls: _Flag = False
    tls_ca: Path | None = None


@Parameter(name="*", group=Group("Faults", sort_key=20))
@attrs.frozen(kw_only=True)
class Trouble:
    """What goes wrong.

    Attributes:
        http_errors: Refuse requests with the error's code as HTTP status; MidAPI mostly answers
            HTTP 200 and puts the code into the body, which is the default.
        acknowledge: Send a callback without a result as soon as a task is accepted, and the real
            one later.
        lose_answers: The share of submissions that are accepted and charged, but never answered:
            0.05 is one in twenty; none if not given.
        outage: Answer everything but files with 503 for this many seconds, divided by the time
            scale. It begins when the first submission was accepted. No outage if not given.
        fault: Any other fault, such as "look answer_status 503 chance=0.1" or "callback duplicate
            3"; may be given several times. --fault help lists all.
        seed: A number from which everything random follows, such as which answers are lost and how
            long tasks take. The same number gives the same run.
        shape: Answer as MidAPI was seen to do (recorded), or as its documentation says
            (documented).
    """

    http_errors: _Flag = False
    acknowledge: _Flag = False
    lose_answers: Annotated[float, Parameter(show_default=False)] = 0.0
    outage: float | None = None
    fault: _Several = ()
    seed: int = 0
    shape: Literal["recorded", "documented"] = "recorded"


def sandbox(
    *,
    api_key: _Several = (),
    webhook_key: str | None = None,
    credits: float = 10_000.0,
    time_scale: float = 1.0,
    log: _Flag = False,
    addresses: Addresses = Addresses(),
    trouble: Trouble = Trouble(),
) -> int:
    """Serve a local MidAPI until Ctrl-C: no key, no network, no money.

    Prints its URL. Tasks, credits and files are kept in memory.

    Args:
        api_key: An API key that is accepted; every key is accepted if not given. May be given
            several times, with credits of its own: --api-key A=100 --api-key B=0.
        webhook_key: The key with which callbacks are signed; they are not signed if not given.
        credits: How many credits a key has that has no number of its own.
        time_scale: How many times faster than real time it runs: 60 makes a minute a second.
        log: Print a line on stderr for each request, task and callback.
        addresses: Where it is found.
        trouble: What goes wrong.
    """
    from midapi_async.sandbox import Faults, Sandbox, describe_faults, serve

    if "help" in trouble.fault:
        for line in describe_faults().splitlines():
            out(line)
        return 0
    accounts = _accounts(api_key, credits)
    faults = Faults()
    _plan(faults, trouble)
    with _named_options():
        server = Sandbox(
            host=addresses.host,
            port=addresses.port,
            files_url=addresses.files_url,
            tls=addresses.tls_ca or addresses.tls,
            api_key=next(iter(accounts), None),  # so that only keys with an account are let in
            accounts=accounts,
            credits=credits,
            webhook_key=webhook_key,
            time_scale=time_scale,
            faults=faults,
            seed=trouble.seed,
            shape=trouble.shape,
            http_errors=trouble.http_errors,
            log=say if log else None,
        )

    def announce(url: str) -> None:
        _announce(url, server, time_scale=time_scale, any_key=not accounts)

    try:
        return run_async(serve(server, announce=announce), Output())
    except ImportError as error:
        raise usage_error(f"--{error}") from None
    except ValueError as error:
        raise usage_error(f"--tls: {error}") from None
    except BrokenPipeError:
        raise
    except OSError as error:
        problem = in_commands(error.strerror or str(error))
        raise CommandError("OSError", problem, exit_code=FAILED) from None


def _accounts(api_key: tuple[str, ...], credits: float) -> dict[str, float]:
    """The balances by their keys. No error contains a key.

    Raises:
        CommandError: a key is empty or there twice, or its balance is not a number.
    """
    accounts: dict[str, float] = {}
    for text in api_key:
        key, sign, balance = text.rpartition("=")
        if not balance:  # no "=", or one at its end, as base64 has it
            key, sign = text, ""
        elif not sign:
            key = text
        if not key or key in accounts:
            raise usage_error("--api-key: a key is empty or given twice")
        with suppress(ValueError):
            accounts[key] = float(balance) if sign else credits
        if not 0 <= accounts.get(key, -1) < inf:
            raise usage_error(
                "--api-key: the credits must be a number of at least 0, as in KEY=100"
            )
    return accounts


def _plan(faults: Faults, trouble: Trouble) -> None:
    """Turn the options into rules; the outage comes first, since the first rule that fits acts."""
    from midapi_async.sandbox import acknowledge_first, add_fault, lose_answer

    if trouble.outage is not None:
        with _named_options("--outage: "):
            faults.outage(trouble.outage)
    for line in trouble.fault:
        with _named_options("--fault: "):
            add_fault(faults, line)
    if trouble.lose_answers:
        with _named_options("--lose-answers: "):
            faults.on("submit", chance=trouble.lose_answers, do=lose_answer())
    if trouble.acknowledge:
        faults.on("callback", do=acknowledge_first())


@contextmanager
def _named_options(prefix: str = "") -> Iterator[None]:
    """Make a usage error of a ValueError, whose text begins with the name of an argument."""
    try:
        yield
    except ValueError as error:
        name, blank, rest = str(error).partition(" ")
        problem = f"{prefix}{error}" if prefix else f"--{name.replace('_', '-')}{blank}{rest}"
        raise usage_error(problem) from None


def _announce(url: str, server: Sandbox, *, time_scale: float, any_key: bool) -> None:
    out(url)
    key = "anything" if any_key else "…"
    say("In another terminal:")
    say(f"  export MIDAPI_BASE_URL={url} MIDAPI_API_KEY={key}")
    if time_scale != 1:
        say(f"  export MIDAPI_TIME_SCALE={time_scale:g}")
    if server.ca_file is not None:
        say(f"  export SSL_CERT_FILE={server.ca_file}")
    say("Ctrl-C stops this.")
