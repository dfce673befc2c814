"""Serves a sandbox from a command line until it is told to stop."""

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Final, Unpack

from midapi_async.sandbox._sandbox import Sandbox
from midapi_async.sandbox._thread import SandboxOptions

_PORT: Final = 8787


def _announce(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


async def serve(
    sandbox: Sandbox | None = None,
    *,
    announce: Callable[[str], None] = _announce,
    **options: Unpack[SandboxOptions],
) -> None:
    """Serve a sandbox until SIGINT or SIGTERM.

    Args:
        sandbox: one that was made and is not open; None makes one of the options.
        announce: is given the URL when it can be used; writes it to stdout on a line of its
            own unless said otherwise.
        options: the arguments of `Sandbox`; the port is 8787 if not given.

    Raises:
        OSError: if the address cannot be listened on; the text names it.
        ValueError: for an argument that cannot be meant, or outside of the main thread,
            where Python allows no signal handlers.
    """
    stop = asyncio.Event()
    if sandbox is None:
        options.setdefault("port", _PORT)
        sandbox = Sandbox(**options)
    restore = _on_signals(stop)
    try:
        async with sandbox:
            announce(sandbox.url)
            await stop.wait()
    finally:
        restore()


def run(**options: Unpack[SandboxOptions]) -> int:
    """Do what `serve` does in an event loop of its own, and give the exit status 0."""
    asyncio.run(serve(**options))
    return 0


def _on_signals(stop: asyncio.Event) -> Callable[[], None]:
    """Set the event on SIGINT and SIGTERM; what is given back undoes that."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def wake(*_: object) -> None:
        loop.call_soon_threadsafe(stop.set)

    # Plain handlers: a loop's own are not there on Windows.
    for number in before:
        signal.signal(number, wake)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
