"""What happens to submissions while MidAPI, or something on the way to it, is out of order.

Each submission whose answer is lost may have been paid for, and its user has to find out. So after
three of them in a row, or after one page of a proxy or firewall, submissions pause. Then a free
request asks whether MidAPI answers; if it does, one submission is let through, and its outcome
decides. In a model with 200 prompts and an outage of ten minutes, 80 to 160 of them were unknown
without this rule, 22 to 27 with pauses alone, and 20 with the free request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from .._runtime.clock import RESOLUTION
from ..errors import APIError, MidAPIError, TransportError

_log = logging.getLogger("midapi_async.gate")

UNKNOWN_IN_A_ROW = 3  # submissions
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 120.0  # service seconds; each pause is twice as long as the last


class Outage:
    """Whether submissions of one account pause, and until when.

    Args:
        scale: service seconds in one second of the loop.

    Attributes:
        is_on: whether there is an outage.
        trying: the ticket of the submission that is let through during an outage, if there is one.
    """

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self.is_on = False
        self.trying: int | None = None
        self._unknown = 0  # submissions in a row
        self._next_pause = FIRST_PAUSE
        self._pauses_until = 0.0  # on the loop's clock
        self._is_answered = False  # the free request was; so the next submission is let through
        self._reason = ""  # what came in place of the last answer

    async def wait(
        self,
        ticket: int,
        ping: Callable[[], Awaitable[object]],
        stop: asyncio.Future[None],
        give_up_at: float,
    ) -> None:
        """Wait until a submission may be sent, or until `stop`.

        Args:
            ticket: names the submission.
            ping: makes a free request; raises `MidAPIError` if it fails.
            stop: done when the submission is not wanted any more.
            give_up_at: when to give up, on the loop's clock.

        Raises:
            TransportError: `give_up_at` has come.
        """
        loop = asyncio.get_running_loop()
        while self.is_on and not stop.done():
            now = loop.time()
            if now >= give_up_at:
                raise TransportError(
                    f"submissions pause after an outage; last problem: {self._reason}"
                )
            if now < self._pauses_until:
                until = min(self._pauses_until, give_up_at) + RESOLUTION
                await asyncio.wait({stop}, timeout=until - now)
            elif not self._is_answered:
                await self._ask(ping, stop)
            else:
                self.trying = ticket
                return

    async def _ask(self, ping: Callable[[], Awaitable[object]], stop: asyncio.Future[None]) -> None:
        asking: asyncio.Future[Any] = asyncio.ensure_future(ping())
        try:
            await asyncio.wait({asking, stop}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                asking.result()
                self._is_answered = True
        except MidAPIError as error:
            # An error that MidAPI wrote itself is an answer, too, but for one of its server.
            if isinstance(error, APIError) and error.own_envelope and error.code < 500:
                self._is_answered = True
            else:
                self._begin_pause(str(error))
        finally:
            asking.cancel()

    def _begin_pause(self, reason: str) -> None:
        self.is_on, self._is_answered, self.trying = True, False, None
        self._reason = reason
        loop = asyncio.get_running_loop()
        self._pauses_until = loop.time() + self._next_pause / self._scale
        self._next_pause = min(2 * self._next_pause, LONGEST_PAUSE)

    # ─── what became of submissions ──────────────────────────────────────────────────────────────

    def accepted(self) -> None:
        """A submission was accepted: the outage is over."""
        if self.is_on:
            _log.info("Submissions go on: MidAPI has accepted one")
        self.is_on, self.trying, self._unknown = False, None, 0
        self._next_pause = FIRST_PAUSE

    def refused(self) -> None:
        """MidAPI itself refused a submission: during an outage the next one may try at once."""
        self._unknown = 0

    def unknown(self, ticket: int, reason: str, *, is_page: bool) -> None:
        """It cannot be known whether a submission was accepted.

        Args:
            ticket: names the submission.
            reason: what came in place of an answer.
            is_page: whether that was a 4xx page of a proxy or firewall.
        """
        self._unknown += 1
        if self.trying == ticket:
            self._begin_pause(reason)
        elif not self.is_on and (is_page or self._unknown >= UNKNOWN_IN_A_ROW):
            self._begin_pause(reason)
            _log.warning(
                "Submissions pause, since MidAPI does not answer them (%s). Free requests find out "
                "when it does; nothing is sent again by itself.",
                reason.rstrip(". "),
            )

    def left(self, ticket: int) -> None:
        """A submission is over, or is not sent now; during an outage another one may try."""
        if self.trying == ticket:
            self.trying = None
