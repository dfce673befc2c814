"""The FastAPI program of `examples`, which also tells which worker took what."""

import os
import runpy
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from midapi_async._wire.tokens import token_hash
from tests.callbacks.serving import EXAMPLES

Message = MutableMapping[str, Any]
program = runpy.run_path(str(EXAMPLES / "web_fastapi.py"))["app"]
LOG = Path(os.environ["TEST_WORKERS_LOG"])


def note(token: str) -> None:
    """This worker takes the callback of this token."""
    with LOG.open("a") as log:
        log.write(f"{token_hash(token)} {os.getpid()}\n")


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Name the worker in a header; write down which one took which callback."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-worker", b"%d" % os.getpid())]
        await send(message)

    if scope["type"] == "http" and scope["path"].startswith("/hooks/"):
        note(scope["path"].rpartition("/")[2])
    await program(scope, receive, tell)
