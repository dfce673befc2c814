"""What a client does with its callbacks.

A token identifies an intent and nothing else. The task of the intent comes from MidAPI's answer to
the POST, else from record-info, never from a callback alone. A durable journal records the callback
before it is answered, so that waits in other processes learn about it, and a wait after a restart
looks at once.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context

from .._runtime.background import OwnedTasks
from .._session import Session
from .._wire.protocol import Callback, fits
from .._wire.tokens import token_hash
from ..errors import JournalError, MidAPIError
from ..journal import Intent, State
from .relay import relay_hints

_log = logging.getLogger("midapi_async.callbacks")


class ClientInbox:
    """Takes the callbacks for one client's intents.

    Attributes:
        taken: how many callbacks were accepted.
        ignored: how many callbacks with a valid token named a task of another intent.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._checks: dict[tuple[str, str], asyncio.Task[Intent | None]] = {}
        self._tasks = OwnedTasks()
        self.taken = 0
        self.ignored = 0

    def open(self) -> None:
        """Begin to learn about callbacks that other processes take."""
        if self._session.journal.is_durable:
            self._tasks.start(relay_hints(self._session), context=Context())

    async def find(self, token_hash: str) -> Intent | None:
        """The intent that a token belongs to, if it is one of this client's."""
        row = await self._session.journal.find(token_hash=token_hash)
        return row if row is not None and row.scope == self._session.scope else None

    async def take(self, row: Intent, callback: Callback) -> int:
        """Handle a callback with this intent's token; return the HTTP status for the answer.

        Raises:
            JournalError: it cannot be recorded now.
        """
        task_id = callback.task_id
        if row.task_id is None:
            # The POST's answer was lost, or has not come yet. Duplicates share one check.
            name = row.intent_id, task_id
            check = self._checks.get(name)
            if check is None:
                check = self._checks[name] = self._tasks.start(self._bind(row, task_id))
                check.add_done_callback(lambda _: self._checks.pop(name, None))
            await asyncio.wait({check})
            checked = None if check.cancelled() else check.result()
            if checked is None:
                return 503  # MidAPI will send it again
            row = checked
        if task_id not in (row.task_id, *row.other_task_ids):
            self.ignored += 1
            _log.warning(
                "Ignored callback for intent %s: task %s is not its task", row.intent_id, task_id
            )
            return 200
        self.taken += 1
        if callback.is_acknowledgement:
            return 200
        self._session.tracker.hint(task_id)
        # Record it once: later states include it, and a second task of the intent has no state.
        if (
            task_id == row.task_id
            and row.state is State.ACCEPTED
            and self._session.journal.is_durable
        ):
            await self._session.journal.advance(row.intent_id, State.CALLED_BACK)
        return 200

    async def _bind(self, row: Intent, task_id: str) -> Intent | None:
        """Accept a task for an intent if its record fits.

        Returns:
            The row, with the task if it fits; None if that cannot be known now.
        """
        try:
            record = await self._session.api.look(task_id)
            if record is None:
                return None  # record-info may not know a new task yet
            url = record.params.get("callBackUrl")
            is_our_url = None
            if isinstance(url, str):
                is_our_url = token_hash(url.rstrip("/").rpartition("/")[2]) == row.token_hash
            if fits(record, row.request, callback_url_matches=is_our_url, since=row.created_at):
                return await self._session.submitter.bind(row, task_id)
        except JournalError:
            _log.exception("Cannot record a callback; MidAPI will send it again")
            return None
        except MidAPIError as error:
            _log.info("Cannot check a callback now; MidAPI will send it again: %s", error)
            return None
        return row

    async def aclose(self) -> None:
        """Cancel the checks that are still running, and learn nothing more."""
        await self._tasks.finish()
