"""``midapi sandbox``: a local MidAPI to develop against."""

from __future__ import annotations

import asyncio
from functools import partial

from ._errors import FAILED, CommandError, usage_error
from ._terminal import out, say


def sandbox(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    api_key: str | None = None,
    webhook_key: str | None = None,
    credits: float = 10_000.0,
    time_scale: float = 1.0,
) -> int:
    """Serve a local MidAPI until Ctrl-C: no key, no network, no money.

    Prints its URL. Tasks, credits and files are kept in memory.

    Args:
        host: The address to listen on.
        port: The port; 0 picks a free one.
        api_key: The only key that is accepted; any if not given.
        webhook_key: Signs callbacks; they are unsigned if not given.
        credits: The balance to begin with.
        time_scale: How many times faster than real time it runs.
    """
    from midapi_async.sandbox import serve

    try:
        asyncio.run(
            serve(
                host=host,
                port=port,
                api_key=api_key,
                webhook_key=webhook_key,
                credits=credits,
                time_scale=time_scale,
                announce=partial(_announce, time_scale=time_scale, any_key=api_key is None),
            )
        )
    except ValueError as error:
        raise usage_error(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError("OSError", error.strerror or str(error), exit_code=FAILED) from None
    return 0


def _announce(url: str, *, time_scale: float, any_key: bool) -> None:
    out(url)
    scale = f" MIDAPI_TIME_SCALE={time_scale:g}" if time_scale != 1 else ""
    key = "anything" if any_key else "…"
    say(f"In another terminal: export MIDAPI_BASE_URL={url} MIDAPI_API_KEY={key}{scale}")
    say("Ctrl-C stops this.")
