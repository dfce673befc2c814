"""Ctrl-C while a submission is on its way: what was bought?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._terminal import say
from ._trouble import unknown_text
from ._work import interrupted, left_running

if TYPE_CHECKING:
    from midapi_async import Intent, MidAPIClient, Request, TaskHandle

    from ._trouble import Trouble


async def find_out(
    client: MidAPIClient, request: Request, key: str | None, since: float
) -> Trouble:
    """What an interrupted submission came to; its answer is waited for, so that no id is lost.

    Args:
        client: the open client that submitted it; it is closed by this and opened again.
        request: what was submitted.
        key: its key, or None.
        since: epoch seconds before which it was not submitted.
    """
    say("Waiting for the answer to what was sent already (Ctrl-C again leaves it) …")
    await client.aclose()
    await client.open()

    def is_it(found: TaskHandle | Intent, at: float) -> bool:
        return (found.request, found.key) == (request, key) and (key is not None or at >= since)

    for handle in await client.resume():
        if handle.submitted_at and is_it(handle, handle.submitted_at.timestamp()):
            return left_running(handle.task_id)
    for intent in await client.intents.unknown():
        if is_it(intent, intent.created_at):
            text = unknown_text(intent.intent_id, "interrupted before the answer came")
            return interrupted(text, intent_id=intent.intent_id)
    return interrupted("Nothing was bought.")
