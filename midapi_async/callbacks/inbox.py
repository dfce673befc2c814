"""What a client does with a callback: bind it to its intent, hint, and write down that it came.

The order of trust: a token names an intent and nothing else; which task answers for the intent is
believed of MidAPI's answer to the POST, else of record-info; a callback alone is never believed.
Where other processes share the journal, that it came is in there before it is answered: so whoever
waits in another one hears of it, and whoever waits after a restart looks at once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from .._runtime.background import OwnedTasks
from .._wire import protocol as _protocol
from .._wire.tokens import token_hash
from ..errors import JournalError, MidAPIError
from ..journal import TOLD, State
from .relay import Relay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._submission.submitter import Submitter
    from .._tracking.tracker import Tracker
    from .._wire.protocol import Callback
    from .._wire.records import Record
    from ..journal import Intent, Journal

_log = logging.getLogger("midapi_async")


class ClientInbox:
    """Takes the callbacks of one client's intents.

    Args:
        journal: where the intents live.
        scope: which of them are the client's.
        submitter: gets task ids that only a callback told.
        tracker: gets the hints.
        look: one GET of a task's record.
        is_shared: whether other processes may use the journal.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        scope: str,
        submitter: Submitter,
        tracker: Tracker,
        look: Callable[[str], Awaitable[Record | None]],
        is_shared: bool,
    ) -> None:
        self._journal = journal
        self._scope = scope
        self._submitter = submitter
        self._tracker = tracker
        self._look = look
        self._is_shared = is_shared
        self._relay = Relay(journal=journal, scope=scope, tracker=tracker)
        self._binding: dict[tuple[str, str], asyncio.Task[int]] = {}
        self._tasks = OwnedTasks()
        self.taken = 0
        self.ignored = 0

    def open(self) -> None:
        """Hear of the callbacks that other processes take."""
        if self._is_shared:
            self._relay.open()

    async def find(self, token_hash: str) -> Intent | None:
        """The intent that a token names, if it is one of this client's."""
        row = await self._journal.find(token_hash=token_hash)
        return row if row is not None and row.scope == self._scope else None

    async def take(self, row: Intent, callback: Callback) -> int:
        """Act on a callback with this intent's token; return the status to answer."""
        if row.task_id is None:
            status = await self._bind_once(row, callback.task_id)
            if status != 200:
                return status
        elif callback.task_id not in (row.task_id, *row.other_task_ids):
            self.ignored += 1
            _log.warning("a callback for task %s names another task; ignored", row.task_id)
            return 200
        self.taken += 1
        if callback.is_acknowledgement:
            return 200
        self._tracker.hint(callback.task_id)
        if not self._is_shared or row.state in TOLD:
            return 200
        self._relay.knows(callback.task_id)
        return await self._write_down(row)

    async def _write_down(self, row: Intent) -> int:
        try:
            await self._journal.advance(row.intent_id, State.CALLED_BACK)
        except JournalError:
            _log.exception("a callback cannot be written down; MidAPI will send it again")
            return 503
        return 200

    async def _bind_once(self, row: Intent, task_id: str) -> int:
        """Duplicates that come together are checked once."""
        name = row.intent_id, task_id
        binding = self._binding.get(name)
        if binding is None:
            binding = self._binding[name] = self._tasks.start(self._bind(row, task_id))
            binding.add_done_callback(lambda _: self._binding.pop(name, None))
        await asyncio.wait({binding})
        return 503 if binding.cancelled() else binding.result()

    async def _bind(self, row: Intent, task_id: str) -> int:
        """The record must fit the intent; what cannot be checked now is sent again (503)."""
        try:
            record = await self._look(task_id)
            if record is None:
                return 503
            if _fits(record, row):
                await self._submitter.bind(row, task_id)
            else:
                self.ignored += 1
                _log.warning("a callback names a task that does not fit its intent; ignored")
        except JournalError:
            _log.exception("a callback cannot be written down; MidAPI will send it again")
            return 503
        except MidAPIError as error:
            _log.info("a callback cannot be checked now; MidAPI will send it again: %s", error)
            return 503
        return 200

    async def aclose(self) -> None:
        """Stop what is still being checked."""
        await self._relay.aclose()
        await self._tasks.finish()


def _fits(record: Record, row: Intent) -> bool:
    url = record.params.get("callBackUrl")
    ours = None
    if isinstance(url, str):
        ours = token_hash(url.rstrip("/").rpartition("/")[2]) == row.token_hash
    return _protocol.fits(record, row.request, callback_url_matches=ours, since=row.created_at)
