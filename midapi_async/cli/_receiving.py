"""Clients that receive callbacks, as far as the environment and the port allow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from midapi_async import CallbackReceiver, MidAPIClient, ReceiverError

from . import _env
from ._common import NAMESPACE
from ._errors import in_commands
from ._options import UploadService
from ._terminal import say

if TYPE_CHECKING:
    from midapi_async.events import Event

    from ._options import Service


@asynccontextmanager
async def receiving(
    service: Service,
    on_event: Callable[[Event], object],
    *,
    ack: Literal["auto", "manual"] = "auto",
    journal: Path | None = None,
) -> AsyncIterator[tuple[MidAPIClient, CallbackReceiver | None]]:
    """An open client and its receiver, which is None without MIDAPI_PUBLIC_URL.

    It listens on MIDAPI_CALLBACK_PORT. Where that is not possible, because a bot has the port or
    has mounted its receiver in a web application, the bot takes the callbacks for this client too,
    if they share a journal's folder. Otherwise the callbacks would reach a program that does not
    know them, and MidAPI is asked for none.

    Args:
        service: which MidAPI.
        on_event: called with each event of the client.
        ack: "manual": results do not count as taken.
        journal: the folder of a journal that no bot shares; None for the environment's.

    Raises:
        InvalidRequestError: a variable of the environment is wrong.
    """
    receiver = CallbackReceiver.from_env()
    listens = _env.callback_port(None, {}) is not None
    is_mounted = receiver is not None and not listens
    problem = "callbacks need MIDAPI_CALLBACK_PORT, which is not set" if is_mounted else ""
    choices: list[tuple[CallbackReceiver | None, str]] = []
    if receiver is not None and listens:
        choices.append((receiver, ""))
    if receiver is not None and journal is None and _env.journal() is not None:
        instead = "The program there takes them for this command if it shares MIDAPI_JOURNAL"
        choices.append((CallbackReceiver(_env.public_url()), instead if listens else ""))
    choices.append((None, "MidAPI is asked for no callbacks, and the result is found by polling"))
    async with AsyncExitStack() as exits:
        for chosen, instead in choices:
            client = MidAPIClient(
                service.api_key(),
                base_url=service.base_url,
                proxy=service.proxy,
                upload_url=service.upload_url if isinstance(service, UploadService) else None,
                receiver=chosen,
                journal=journal,
                namespace=NAMESPACE,
                ack=ack,
                on_event=on_event,
            )
            try:
                await exits.enter_async_context(client)
            except ReceiverError as error:
                problem = str(error).partition(". ")[0]  # the rest says what else to do
                continue
            if problem and instead:
                say(f"{in_commands(problem[0].upper() + problem[1:])}. {instead}.")
            yield client, chosen
            return
