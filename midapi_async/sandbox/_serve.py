"""Serves a sandbox from a command line until it is told to stop."""

import asyncio
import signal
import sys
from collections.abc import Callable

from midapi_async.sandbox._sandbox import Sandbox


def _announce(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


async def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    api_key: str | None = None,
    webhook_key: str | None = None,
    credits: float = 10_000.0,
    time_scale: float = 1.0,
    announce: Callable[[str], None] = _announce,
) -> None:
    """Serve a sandbox until SIGINT or SIGTERM; for the arguments see `Sandbox`.

    Args:
        host: the address to listen on.
        port: the port; 0 picks a free one.
        api_key: the only key that is let in; None lets in any.
        webhook_key: signs callbacks.
        credits: the balance to begin with.
        time_scale: how much faster than life everything goes.
        announce: is given the URL when it can be used; writes it to stdout on a line of its
            own unless said otherwise.

    Raises:
        OSError: if the address cannot be listened on; the text names it.
        ValueError: for an argument that cannot be meant, or outside of the main thread,
            where Python allows no signal handlers.
    """
    stop = asyncio.Event()
    sandbox = Sandbox(
        host=host,
        port=port,
        api_key=api_key,
        webhook_key=webhook_key,
        credits=credits,
        time_scale=time_scale,
    )
    restore = _on_signals(stop)
    try:
        async with sandbox:
            announce(sandbox.url)
            await stop.wait()
    finally:
        restore()


def run(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    api_key: str | None = None,
    webhook_key: str | None = None,
    credits: float = 10_000.0,
    time_scale: float = 1.0,
) -> int:
    """Do what `serve` does in an event loop of its own, and give the exit status 0."""
    asyncio.run(
        serve(
            host=host,
            port=port,
            api_key=api_key,
            webhook_key=webhook_key,
            credits=credits,
            time_scale=time_scale,
        )
    )
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
