"""The working message: shows the state of an order, from the client's events, in a few edits.

Discord itself renders times ("2 minutes ago"), so no edit is needed only because time has passed.
The message of an order is usually edited three times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from weakref import WeakKeyDictionary

import discord

from midapi_async import MidAPIClient, Request, SubmissionUnknown, TaskFailed, events

from .deliver import DISCORD_ERRORS, NOBODY, Live, reason_of
from .strings import DEFAULT, MOST_REASON, Strings, harmless
from .views import text_view

_log = logging.getLogger("midapi_async.discord")

# Seconds of the loop. Discord allows about five edits in five seconds for one interaction.
EDIT_INTERVAL = 4.0
PAUSE_AFTER_ERROR = 15.0
LAST_EDIT = 60.0  # for an edit that is under way when the result is there


class _Doing:
    """The state of one order, as a line of text.

    Attributes:
        changed: set when the text has changed.
        others: how many submissions wait before it whose progress is not shown.
    """

    def __init__(self, client: MidAPIClient, request: Request | str | None, texts: Strings) -> None:
        self._expected = client.expected("a picture" if request is None else request)
        self._texts = texts
        self._since = int(time.time())
        self._line = texts.sending
        self._late: asyncio.TimerHandle | None = None
        self.changed = asyncio.Event()
        self.others = 0

    @property
    def text(self) -> str:
        """The text of the working message."""
        since = self._texts.since.format(since=f"<t:{self._since}:R>")
        return f"{self._line}\n{since}"

    def waits_behind(self, place: int) -> None:
        """The order waits in line behind ``place`` others."""
        self._say(self._texts.queued.format(place=place))

    def take(self, event: events.Event) -> None:
        """Take an event of the order."""
        texts = self._texts
        match event:
            case events.Sent():
                self._say(texts.sending)
            case events.Retrying(reason=reason):
                self._say(texts.retrying.format(reason=harmless(reason, MOST_REASON)))
            case events.Accepted():
                self._say(texts.generating.format(usually=_rounded(self._expected.median)))
                if self._late is None:
                    loop = asyncio.get_running_loop()
                    self._late = loop.call_later(self._expected.p90, self._say, texts.late)
            case events.Failed(error=SubmissionUnknown(can_settle=True)):
                self._say(texts.settling)
            case events.Failed(error=TaskFailed()):
                pass  # `deliver` tells the user
            case events.Failed(error=error, task_id=str()):
                # It was bought, and the client goes on to look for its result.
                self._say(texts.no_look.format(reason=texts.of_error(error)))

    def _say(self, line: str) -> None:
        if line != self._line:
            self._line = line
            self.changed.set()

    def close(self) -> None:
        """Forget the timer."""
        if self._late is not None:
            self._late.cancel()


class _Orders:
    """The orders of one client whose progress is shown, and which of them wait in its line.

    A client says how many wait before a submission only when it joins the line. Here the number
    goes down when one of them is sent.
    """

    def __init__(self) -> None:
        self._doing: dict[str, _Doing] = {}  # by key
        self._waiting: list[str] = []  # their keys, first come, first served
        self._observation = ExitStack()

    @contextmanager
    def shown(self, client: MidAPIClient, key: str, doing: _Doing) -> Iterator[None]:
        """Pass an order its events while the block runs."""
        if not self._doing:
            self._observation.enter_context(client.observe(self._take))
        self._doing[key] = doing
        try:
            yield
        finally:
            self._leave(key)
            self._doing.pop(key, None)
            doing.close()
            if not self._doing:
                self._observation.close()

    def _take(self, event: events.Event) -> None:
        key = event.key or ""
        doing = self._doing.get(key)
        if doing is None:
            return
        if isinstance(event, events.Queued):
            self._leave(key)
            doing.others = max(0, event.place - len(self._waiting))
            self._waiting.append(key)
            self._say_places()
        else:
            if isinstance(event, events.Sent):
                self._leave(key)
            doing.take(event)

    def _leave(self, key: str) -> None:
        if key in self._waiting:
            self._waiting.remove(key)
            self._say_places()

    def _say_places(self) -> None:
        for place, key in enumerate(self._waiting):
            self._doing[key].waits_behind(place + self._doing[key].others)


_orders: WeakKeyDictionary[MidAPIClient, _Orders] = WeakKeyDictionary()


@asynccontextmanager
async def progress(
    interaction: discord.Interaction,
    client: MidAPIClient,
    key: str,
    *,
    request: Request | str | None = None,
    strings: Strings = DEFAULT,
) -> AsyncIterator[None]:
    """Show the state of an order in the response to an interaction, while the block runs.

    The interaction must have been answered or deferred. From the first edit on the message consists
    of components (Components V2), and Discord does not allow it to change back: send the result as
    a `discord.ui.LayoutView`, too. Edits that Discord refuses are skipped.

    Args:
        interaction: the interaction; progress ends with its token, after 15 minutes.
        client: the client whose ``generate`` is called inside the block.
        key: the key of the order.
        request: what is ordered, to say how long it usually takes; None for a picture.
        strings: the texts.
    """
    doing = _Doing(client, request, strings)
    live, over = Live.now(interaction), asyncio.Event()
    with _orders.setdefault(client, _Orders()).shown(client, key, doing):
        editor = asyncio.create_task(_edit(live, doing, over))
        try:
            yield
        finally:
            over.set()
            # An edit that is under way is not cancelled: Discord might apply it after the edit
            # with the result, and overwrite it.
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
            except DISCORD_ERRORS as error:
                _log.debug("progress cannot be shown: %s", reason_of(error))
                status = error.status if isinstance(error, discord.HTTPException) else 500
                if 400 <= status < 500 and status != 429:
                    return  # the message was deleted, or the token has expired
                pause = PAUSE_AFTER_ERROR
                doing.changed.set()
            await asyncio.wait({ending}, timeout=pause)
            await doing.changed.wait()
    finally:
        ending.cancel()


def _rounded(seconds: float) -> str:
    """A duration, rounded for people."""
    if seconds < 90:
        return f"{max(10, round(seconds / 10) * 10)} s"
    return f"{round(seconds / 60)} min"
