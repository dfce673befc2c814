"""The working message: what an order is doing, from the client's events, in a few edits.

Times are shown by Discord itself ("2 minutes ago"), so that nothing is edited only because time has
passed. An order is usually edited three times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import discord

from midapi_async import MidAPIClient, Request, SubmissionUnknown, TaskFailed, events

from .deliver import NOBODY, Live
from .strings import DEFAULT, MOST_REASON, Strings, harmless
from .views import text_view

_log = logging.getLogger("midapi_async.discord")

# Seconds of the loop. Discord allows about five edits in five seconds for one interaction.
EDIT_INTERVAL = 4.0
PAUSE_AFTER_429 = 15.0
LAST_EDIT = 10.0  # for an edit that is under way when the order is ready


class _Doing:
    """What one order is doing, as a line of text."""

    def __init__(
        self, client: MidAPIClient, key: str, request: Request | str | None, strings: Strings
    ) -> None:
        self._key = key
        self._strings = strings
        self._since = int(time.time())
        expected = client.expected(request) if request is not None else None
        self._p90 = expected.p90 if expected is not None else None
        self._usually = _rounded(expected.median) if expected is not None else "a minute"
        self._place: int | None = None  # in the line; None while it is in none
        self._line = strings.sending
        self._late: asyncio.TimerHandle | None = None
        self.changed = asyncio.Event()

    @property
    def text(self) -> str:
        """The text of the working message."""
        since = self._strings.since.format(since=f"<t:{self._since}:R>")
        return f"{self._line}\n{since}"

    def take(self, event: events.Event) -> None:
        """Take an event of the client."""
        if event.key != self._key:
            # Somebody before it has left the line.
            if isinstance(event, events.Sent) and self._place:
                self._place -= 1
                self._say(self._strings.queued.format(place=self._place))
            return
        strings = self._strings
        match event:
            case events.Queued(place=place):
                self._place = place
                self._say(strings.queued.format(place=place))
            case events.Sent():
                self._place = None
                self._say(strings.sending)
            case events.Retrying(reason=reason):
                self._say(strings.retrying.format(reason=harmless(reason, MOST_REASON)))
            case events.Accepted():
                self._say(strings.generating.format(usually=self._usually))
                if self._p90 is not None and self._late is None:
                    loop = asyncio.get_running_loop()
                    self._late = loop.call_later(self._p90, self._say, strings.late)
            case events.Failed(error=SubmissionUnknown(can_settle=True)):
                self._say(strings.settling)
            case events.Failed(error=TaskFailed()):
                pass  # its end, which `deliver` tells
            case events.Failed(error=error, task_id=str()):
                # It was bought, and the client goes on to look for its result.
                self._say(strings.no_look.format(reason=strings.of_error(error)))

    def _say(self, line: str) -> None:
        if line != self._line:
            self._line = line
            self.changed.set()

    def close(self) -> None:
        """Forget the timer."""
        if self._late is not None:
            self._late.cancel()


@asynccontextmanager
async def progress(
    interaction: discord.Interaction,
    client: MidAPIClient,
    key: str,
    *,
    request: Request | str | None = None,
    strings: Strings = DEFAULT,
) -> AsyncIterator[None]:
    """Show in the answer to an interaction what an order is doing, while the block runs.

    The interaction was answered or deferred. The message is one of components from the first edit
    on, because a message can become one but never cease to be one: give its result a
    `discord.ui.LayoutView`, too. An edit that Discord does not take is left out.

    Args:
        interaction: the interaction; its token lives for 15 minutes, and the progress with it.
        client: the client that the order is given to inside the block.
        key: the key of the order.
        request: what is ordered, to say how long that usually takes.
        strings: the texts.
    """
    doing = _Doing(client, key, request, strings)
    live, over = Live.now(interaction), asyncio.Event()
    with client.observe(doing.take):
        editor = asyncio.create_task(_edit(live, doing, over))
        try:
            yield
        finally:
            doing.close()
            over.set()
            # An edit that is under way is not cancelled: Discord might carry it out after the
            # result's, and the result would be gone.
            doing.changed.set()
            await asyncio.wait({editor}, timeout=LAST_EDIT)
            editor.cancel()
            await asyncio.wait({editor})


async def _edit(live: Live, doing: _Doing, over: asyncio.Event) -> None:
    """Edit the message after each change, but not too often."""
    ending = asyncio.create_task(over.wait())
    try:
        while live.is_open and not over.is_set():
            doing.changed.clear()
            pause = EDIT_INTERVAL
            try:
                await live.interaction.edit_original_response(
                    view=text_view(doing.text), allowed_mentions=NOBODY
                )
            except discord.HTTPException as error:
                _log.debug("progress cannot be shown: %s", error)
                if 400 <= error.status < 500 and error.status != 429:
                    return  # the message was deleted, or the token is dead
                pause = PAUSE_AFTER_429
                doing.changed.set()
            except (OSError, aiohttp.ClientError) as error:
                _log.debug("progress cannot be shown: %s", error)
            await asyncio.wait({ending}, timeout=pause)
            await doing.changed.wait()
    finally:
        ending.cancel()


def _rounded(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{max(10, round(seconds / 10) * 10)} s"
    return f"{round(seconds / 60)} min"
