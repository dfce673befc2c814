"""`Midjourney`: the slash commands, the buttons below results, and the delivery of every result.

The steps of an order: check the limits; answer Discord, which waits 3 seconds; call
``client.generate``, which writes the order and its place in Discord into the journal before it
sends it; show the progress. The order does not wait for its result: one loop over
``client.untaken()`` delivers every result, also those of orders from before a restart, so no result
depends on the task of its order.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Self, TypeGuard
from urllib.parse import parse_qs, urlsplit

import aiohttp
import attrs
import discord
from discord.ext import commands

from midapi_async import (
    ClientClosed,
    ImageToVideo,
    Intent,
    InvalidRequestError,
    MidAPIClient,
    MidAPIError,
    Request,
    SubmissionUnknown,
    TaskFailed,
    TaskHandle,
    TaskStatus,
    Upscale,
    Vary,
)

from .commands import commands_of
from .deliver import DISCORD_ERRORS, NOBODY, Live, deliver, find_sent, reason_of, tell
from .limits import Audit, Guard, Limits, Order
from .places import Place, place_of
from .progress import progress
from .strings import DEFAULT, MOST_REASON, Strings, harmless
from .views import (
    COG,
    MOST_CHARACTERS,
    ResultButton,
    intent_of_form,
    remix_form,
    submitted_prompt,
    text_view,
)

_log = logging.getLogger("midapi_async.discord")

REPEAT = 10.0  # seconds for which a second press of a button by the same user is refused
_MOST_PRESSES = 1_000
_MOST_ANCESTORS = 20  # results between a picture and the prompt that it was made from
SETTLING = 120.0  # seconds to wait for the callback of a lost answer, or longer for slow orders
LONGEST_SEARCH = 10.0  # seconds to search for the message of a result at a second click
LAST_WORDS = 5.0  # seconds to tell users, at shutdown, that their orders end
RESTART_LOOP = 30.0  # seconds until the delivery loop is restarted after an error
DELIVERIES = 16  # at the same time; each has the files of one result on the disk
MOST_CONTENT = 2_000  # characters of a message without components
_CDN = {"cdn.discordapp.com", "media.discordapp.net"}


class Midjourney(commands.Cog, name=COG):
    """Midjourney's commands for a bot: ``await bot.add_cog(Midjourney(client))``.

    It opens the client when it is loaded, and closes it when it is unloaded, unless the client is
    open already. Register the commands with Discord yourself: ``await bot.tree.sync()``.

    Args:
        client: use ``journal="a folder"``, without which a restart forgets all orders, and
            ``ack="manual"``.
        limits: who may order what, and how much; None for the defaults of `Limits`.
        strings: every text, for other languages.
        audit: called with each `Audit`; may be async. Its exceptions are logged.
    """

    _bot: commands.Bot

    def __init__(
        self,
        client: MidAPIClient,
        *,
        limits: Limits | None = None,
        strings: Strings = DEFAULT,
        audit: Callable[[Audit], object] | None = None,
    ) -> None:
        self.client = client
        self.strings = strings
        self._guard = Guard(limits or Limits(), strings)
        self._audit_hook = audit
        self._presses: dict[tuple[int, str], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_owner = False
        self._in_delivery: set[str | None] = set()  # ids of intents
        self._deliveries = asyncio.Semaphore(DELIVERIES)
        # discord.py adds these to the bot's tree; they are made here because of their texts.
        self.__cog_app_commands__ = [*commands_of(self)]

    async def _inject(self, bot: Any, *args: Any, **options: Any) -> Self:  # noqa: ANN401 - discord.py's own
        # The only place where a cog that is made without a bot learns of it.
        self._bot = bot
        return await super()._inject(bot, *args, **options)

    # ─── loading ─────────────────────────────────────────────────────────────────────────────────

    async def cog_load(self) -> None:
        """Open the client if it is not open, and start to deliver."""
        try:
            await self.client.open()
            self._is_owner = True
        except InvalidRequestError as error:
            if error.problems.keys() != {"client"}:
                raise
        self._bot.add_dynamic_items(ResultButton)
        self._start(self._deliver_all())

    async def cog_unload(self) -> None:
        """Cancel all tasks; results that were not delivered are delivered after a restart."""
        self._bot.remove_dynamic_items(ResultButton)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._is_owner:
            self._is_owner = False
            await self.client.aclose()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("an order or a delivery failed; no result is lost", exc_info=error)

    async def _audit(
        self,
        place: Place,
        action: str,
        outcome: str,
        *,
        request: Request | None = None,
        handle: TaskHandle | None = None,
        intent_id: str | None = None,
        reason: str = "",
    ) -> None:
        if self._audit_hook is None:
            return
        entry = Audit(
            action=action,
            outcome=outcome,
            user=place.user,
            guild=place.guild,
            channel=place.channel,
            request=handle.request if handle is not None else request,
            intent_id=handle.intent_id if handle is not None else intent_id,
            task_id=None if handle is None else handle.task_id,
            reason=reason,
        )
        try:
            result = self._audit_hook(entry)
            if inspect.isawaitable(result):
                await result
        except Exception:  # noqa: BLE001 - a bug of the hook must not stop an order
            _log.exception("the audit hook raised; orders go on")

    # ─── results ─────────────────────────────────────────────────────────────────────────────────

    async def _deliver_all(self) -> None:
        """Deliver the result of every order of this bot that is not taken, as it becomes final."""
        while True:
            try:
                # A cog may be added before the login, which tells whose bot it is; and what files
                # a server takes is known when the gateway has told it.
                await self._bot.wait_until_ready()
                await self._report_unknown()
                async with aclosing(self.client.untaken()) as untaken:
                    async for handle in untaken:
                        place = place_of(handle)
                        if self._is_ours(place):
                            self._start(self._deliver(handle, place))
                return  # the client was closed, or stops waiting
            except ClientClosed:
                return
            except Exception:  # noqa: BLE001 - without this loop, nothing is delivered any more
                _log.exception("delivery of results failed; it restarts in %.0f s", RESTART_LOOP)
                await asyncio.sleep(RESTART_LOOP)

    def _is_ours(self, place: Place | None) -> TypeGuard[Place]:
        return place is not None and place.application == self._bot.application_id

    async def _report_unknown(self) -> None:
        """Log how many orders are unknown, as after a kill while they were sent."""
        with suppress(MidAPIError):
            rows = await self.client.intents.unknown()
            if rows := [row for row in rows if self._is_ours(Place.found_in(row.metadata))]:
                _log.warning(
                    "unknown orders: %d. MidAPI may have accepted them, and they are not sent "
                    "again. `midapi journal list unknown` shows them, and what you can do",
                    len(rows),
                )

    async def _deliver(self, handle: TaskHandle, place: Place) -> None:
        order = self._guard.orders.get(handle.key or "")
        self._in_delivery.add(handle.intent_id)
        try:
            if order is not None:
                order.is_final.set()
                await order.progress_ended.wait()
            async with self._deliveries:
                message = await deliver(
                    self._bot,
                    self.client,
                    handle,
                    live=None if order is None else order.live,
                    prompt=await self._prompt_of(place),
                    strings=self.strings,
                )
        except ClientClosed:
            return  # it is delivered after the restart
        finally:
            self._in_delivery.discard(handle.intent_id)
            if order is not None:
                self._guard.end(order)
        outcome = "undelivered" if message is None else "delivered"
        await self._audit(place, _action_of(handle.request), outcome, handle=handle)

    async def _prompt_of(self, place: Place) -> str | None:
        """The prompt of the result that a picture was made from; None if that is not known."""
        above: Place | None = place
        for _ in range(_MOST_ANCESTORS):
            if above is None or above.parent is None:
                break
            row = None
            with suppress(MidAPIError):  # without the journal there is no prompt
                row = await self.client.intents.get(above.parent)
            if row is None:
                break
            prompt: str | None = getattr(row.request, "prompt", None)
            if prompt is not None:
                return prompt
            above = Place.found_in(row.metadata)
        return None

    # ─── orders ──────────────────────────────────────────────────────────────────────────────────

    async def ordered(
        self,
        interaction: discord.Interaction,
        action: str,
        make: Callable[[], Request],
        attachment: discord.Attachment | None = None,
        *,
        parent: Intent | None = None,
    ) -> None:
        """Start an order if it is allowed; the rest runs in a task of the cog.

        Args:
            interaction: the interaction of the order.
            action: the action for the audit.
            make: makes the request; may raise InvalidRequestError.
            attachment: the reference picture, or None.
            parent: the intent of the result whose button was pressed, or None.
        """
        text, request = None, None
        if attachment is not None and not (attachment.content_type or "").startswith("image/"):
            text = self.strings.not_a_picture
        else:
            try:
                request = make()
            except InvalidRequestError as error:
                text = self.strings.of_error(error)
        if request is not None:
            await self._take(interaction, action, request, f"discord:{interaction.id}", parent)
        elif text is not None:
            await self._decline(interaction, action, text)

    async def _take(
        self,
        interaction: discord.Interaction,
        action: str,
        request: Request,
        key: str,
        parent: Intent | None,
    ) -> None:
        if key in self._guard.orders:
            # The same click twice; or Discord repeats an interaction after a resume.
            await _answer(interaction, self.strings.running)
        elif text := self._guard.refusal(interaction, request):
            await self._decline(interaction, action, text)
        else:
            order = self._guard.begin(interaction, key, request)
            self._start(self._order(order, action, request, parent))

    async def _decline(self, interaction: discord.Interaction, action: str, text: str) -> None:
        await _answer(interaction, text)
        await self._audit(Place.of(interaction), action, "declined", reason=text)

    async def _order(
        self, order: Order, action: str, request: Request, parent: Intent | None
    ) -> None:
        """Carry out an order until its result is there; `_deliver` delivers it."""
        is_bought = False
        place = Place.of(order.live.interaction)
        try:
            place = await self._defer(order.live, parent)
            if text := await self._guard.refusal_of_journal(self.client, order):
                raise _Declined(text)
            async with progress(
                order.live.interaction,
                self.client,
                order.key,
                request=request,
                strings=self.strings,
            ):
                handle = await self._buy(order.key, request, place)
                is_bought = not handle.replayed
                if is_bought:
                    await self._audit(place, action, "bought", handle=handle)
                    await order.is_final.wait()
            if not is_bought:
                await self._show_existing(order.live, action, place, handle)
        except _Unanswered as error:
            _log.warning("an order could not be answered in time; nothing was bought: %s", error)
        except (_Declined, MidAPIError) as error:
            await self._explain(order.live, action, place, request, error)
        except asyncio.CancelledError:
            if not is_bought and place.message is not None:
                with suppress(TimeoutError):  # else the message would stay "waiting" for ever
                    async with asyncio.timeout(LAST_WORDS):
                        await tell(self._bot, place, order.live, self.strings.closing)
            raise
        finally:
            order.progress_ended.set()
            if not is_bought:
                self._guard.end(order)

    async def _defer(self, live: Live, parent: Intent | None) -> Place:
        """Defer the response within Discord's 3 seconds; return the order's place with its message.

        Raises:
            _Unanswered: Discord does not accept the response.
        """
        interaction = live.interaction
        try:
            try:
                answer = await interaction.response.defer(thinking=True)
                message = None if answer is None else answer.message_id
            except (OSError, aiohttp.ClientError):  # Discord may have taken it all the same
                message = (await interaction.original_response()).id
        except DISCORD_ERRORS as error:
            raise _Unanswered(reason_of(error)) from error
        place = Place.of(interaction, message=message)
        if parent is None:
            return place
        clicked = interaction.message
        url = None if clicked is None else clicked.jump_url
        return attrs.evolve(place, parent=parent.intent_id, parent_url=url)

    async def _buy(self, key: str, request: Request, place: Place) -> TaskHandle:
        """Submit an order; if the answer is lost, wait for its callback.

        Raises:
            MidAPIError: as in ``client.generate``.
        """
        try:
            return await self.client.generate(request, key=key, metadata=place.metadata)
        except SubmissionUnknown as unknown:
            if not unknown.can_settle:
                raise
            seconds = max(SETTLING, 3 * self.client.expected(request).p90)
            return await self.client.intents.settle(unknown, seconds)

    async def _explain(
        self, live: Live, action: str, place: Place, request: Request, error: Exception
    ) -> None:
        """Tell the user why there is no result, and log what the operator can do."""
        outcome, text, intent_id = "declined", str(error), None
        if isinstance(error, MidAPIError):
            outcome, text, intent_id = "failed", self.strings.of_error(error), error.intent_id
        if isinstance(error, SubmissionUnknown):
            outcome = "unknown"
            _log.warning(
                "an order of user %s in Discord is unknown: %s If it proves to be accepted, its "
                "result is delivered. `midapi journal show %s` shows it",
                *(place.user, error, intent_id),
            )
        elif outcome == "failed":
            _log.warning("an order in Discord has failed: %s", error)
        reason = str(error)
        await self._audit(
            place, action, outcome, request=request, intent_id=intent_id, reason=reason
        )
        await tell(self._bot, place, live, text)

    async def _show_existing(
        self, live: Live, action: str, place: Place, handle: TaskHandle
    ) -> None:
        """Answer a second click with a link to the result, or the result if its message is gone.

        Raises:
            MidAPIError: the journal cannot be read.
        """
        await self._audit(place, action, "shown", handle=handle)
        row = await self.client.intents.get(handle.intent_id or "")
        text, final = None, handle.final
        if final is None or row is None or row.intent_id in self._in_delivery:
            text = self.strings.running
        elif final.status is TaskStatus.FAILED:
            text = self.strings.of_error(TaskFailed(handle.task_id, final))
        elif row.taken and (first := place_of(handle)) is not None:
            message = None
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_SEARCH):
                    message = await find_sent(self._bot, first, row.intent_id)
            # A link to a direct message is of use only to the user who received it.
            if message is not None and (
                message.channel.id == first.channel or place.user == first.user
            ):
                text = self.strings.existing.format(link=first.url_of(message))
        if text is not None:
            await tell(self._bot, place, live, text)
            return
        await deliver(
            self._bot,
            self.client,
            handle,
            live=live,
            place=place,
            prompt=await self._prompt_of(place),
            strings=self.strings,
        )

    # ─── buttons ─────────────────────────────────────────────────────────────────────────────────

    async def pressed(self, interaction: discord.Interaction, button: ResultButton) -> None:
        """Handle a press of a button below a result."""
        strings, action = self.strings, button.action
        if action == "D":
            await self._delete(interaction, button)
            return
        if text := self._guard.not_allowed(interaction):
            await _answer(interaction, text)
            return
        row = await self._intent(interaction, button.intent_id)
        if row is None or row.request is None:
            return
        request, task_id, index = row.request, row.task_id, button.index
        if action == "R":
            form = remix_form(row, button.user_id, strings)
            with suppress(*DISCORD_ERRORS):
                await interaction.response.send_modal(form)
            form.stop()  # `on_interaction` takes the submitted form, also after a restart
        elif action == "A":
            if self._is_repeated(interaction, f"A:{row.intent_id}"):
                await _answer(interaction, strings.repeated)
            elif _is_stale(request):
                await _answer(interaction, strings.picture_gone)
            else:
                await self.ordered(interaction, "again", lambda: request, parent=row)
        elif task_id is not None and index is not None:
            wanted = Upscale(task_id, index) if action == "U" else Vary(task_id, index)
            await self._take_once(interaction, wanted, action, row)

    async def _take_once(
        self, interaction: discord.Interaction, wanted: Upscale | Vary, action: str, row: Intent
    ) -> None:
        """Order a U or V, which is bought once however often, and by whomever, it is pressed."""
        key, name = f"discord:{row.intent_id}:{action}{wanted.image_index}", _action_of(wanted)
        handle = None
        if key not in self._guard.orders:
            try:
                handle = await self.client.find(key)
            except MidAPIError as error:
                await _answer(interaction, self.strings.of_error(error))
                return
        if handle is None:
            await self._take(interaction, name, wanted, key, row)
            return
        # Showing an existing result costs nothing, so the limits do not apply.
        self._start(self._show(interaction, name, wanted, row, handle))

    async def _show(
        self,
        interaction: discord.Interaction,
        name: str,
        wanted: Request,
        parent: Intent,
        handle: TaskHandle,
    ) -> None:
        live, place = Live.now(interaction), Place.of(interaction)
        try:
            place = await self._defer(live, parent)
            await self._show_existing(live, name, place, handle)
        except _Unanswered as error:
            _log.info("a click could not be answered in time: %s", error)
        except MidAPIError as error:
            await self._explain(live, name, place, wanted, error)

    @commands.Cog.listener()
    async def on_interaction(self, interaction: discord.Interaction) -> None:
        """Take a submitted form for another prompt."""
        if interaction.type is not discord.InteractionType.modal_submit:
            return
        if (intent_id := intent_of_form(interaction.custom_id)) is None:
            return
        row = await self._intent(interaction, intent_id)
        if row is None or row.request is None:
            return
        request, prompt = row.request, submitted_prompt(interaction.data) or ""
        if self._is_repeated(interaction, f"R:{row.intent_id}"):
            await _answer(interaction, self.strings.repeated)
        elif _is_stale(request):
            await _answer(interaction, self.strings.picture_gone)
        else:
            # `prompt` is a field of every request that has this button.
            make = partial(attrs.evolve, request, prompt=prompt)
            await self.ordered(interaction, "remix", make, parent=row)

    async def _intent(self, interaction: discord.Interaction, intent_id: str) -> Intent | None:
        """The intent that a button belongs to; None if the user was told why there is none."""
        try:
            row = await self.client.intents.get(intent_id)
        except MidAPIError as error:
            await _answer(interaction, self.strings.of_error(error))
            return None
        if row is None or row.request is None:
            await _answer(interaction, self.strings.forgotten)
            return None
        return row

    async def _delete(self, interaction: discord.Interaction, button: ResultButton) -> None:
        if interaction.user.id != button.user_id:
            await _answer(interaction, self.strings.not_yours)
            return
        with suppress(*DISCORD_ERRORS):
            await interaction.response.defer()
            await interaction.delete_original_response()
            place = Place.of(interaction)
            await self._audit(place, "delete", "deleted", intent_id=button.intent_id)

    def _is_repeated(self, interaction: discord.Interaction, name: str) -> bool:
        """Whether the same user pressed the same button within the last `REPEAT` seconds."""
        now, press = asyncio.get_running_loop().time(), (interaction.user.id, name)
        if now < self._presses.get(press, -REPEAT) + REPEAT:
            return True
        self._presses.pop(press, None)  # to the end of the dict: the oldest entry is dropped first
        self._presses[press] = now
        if len(self._presses) > _MOST_PRESSES:
            del self._presses[next(iter(self._presses))]
        return False

    # ─── questions ───────────────────────────────────────────────────────────────────────────────

    async def show_credits(self, interaction: discord.Interaction) -> None:
        """``/credits``."""

        async def text() -> str:
            return self.strings.credits_left.format(credits=f"{await self.client.credits():g}")

        await self._tell_privately(interaction, text)

    async def show_task(self, interaction: discord.Interaction, task_id: str) -> None:
        """``/task``."""

        async def text() -> str:
            details = await self.client.details(task_id.strip(), max_age=5.0)
            said = self.strings.task_status.format(task=details.task_id, status=details.status)
            if details.error_message:
                said += f" {harmless(details.error_message, MOST_REASON)}"
            for index, url in enumerate(details.urls):
                link = f"\n[{self.strings.link.format(number=index + 1)}]({url})"
                said += link if len(said) + len(link) <= MOST_CHARACTERS else ""
            return said

        await self._tell_privately(interaction, text)

    async def _tell_privately(
        self, interaction: discord.Interaction, text: Callable[[], Awaitable[str]]
    ) -> None:
        """Answer privately with a text that may take longer than Discord's 3 seconds."""
        if refusal := self._guard.not_allowed(interaction):
            await _answer(interaction, refusal)
            return
        with suppress(*DISCORD_ERRORS):
            await interaction.response.defer(ephemeral=True, thinking=True)
            try:
                said = await text()
            except MidAPIError as error:
                said = self.strings.of_error(error)
            await interaction.edit_original_response(view=text_view(said), allowed_mentions=NOBODY)


class _Declined(Exception):
    """The limits do not allow an order; the text is for the user."""


class _Unanswered(Exception):
    """Discord does not accept a response to an interaction."""


async def _answer(interaction: discord.Interaction, text: str) -> None:
    """Respond to an interaction with a text that only the user sees."""
    try:
        # As content: for an ephemeral view, discord.py keeps a timer of 15 minutes.
        await interaction.response.send_message(
            text[:MOST_CONTENT], ephemeral=True, allowed_mentions=NOBODY
        )
    except DISCORD_ERRORS as error:
        _log.info("an interaction could not be answered: %s", reason_of(error))


def _action_of(request: Request | None) -> str:
    """The action of an order for the audit, from its request alone."""
    if isinstance(request, Upscale | Vary):
        return f"{'U' if isinstance(request, Upscale) else 'V'}{request.image_index + 1}"
    return "video" if isinstance(request, ImageToVideo) else "imagine"


def _is_stale(request: Request) -> bool:
    """Whether a reference picture is at Discord and its link has expired, as after a day."""
    for url in getattr(request, "file_urls", ()):
        parts = urlsplit(str(url))
        until = parse_qs(parts.query).get("ex", [""])[0]
        with suppress(ValueError):
            if parts.hostname in _CDN and int(until, 16) < time.time():
                return True
    return False
