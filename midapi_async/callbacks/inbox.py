"""What a client does with its callbacks.

A token identifies an intent and nothing else. The task of the intent comes from MidAPI's answer to
the POST, else from record-info, never from a callback alone. A durable journal records the callback
before it is answered, so that waits in other processes learn about it, and a wait after a restart
looks at once. It may belong to another namespace, as those of ``midapi generate`` do while a bot
has the port.

A probe is a callback that ``midapi doctor`` sends to its own public URL. Its token is a note in the
journal, and belongs to no intent; the inbox removes the note, by which the doctor sees that the
probe came to this application, and not only to some web server.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from contextvars import Context

from .._runtime.background import OwnedTasks
from .._session import Session
from .._wire.protocol import Callback
from ..events import CalledBack
from ..journal import Intent
from .relay import relay_hints

_log = logging.getLogger("midapi_async.callbacks")

# Scope and kind of the notes about probes: the token's hash, and the task id in the body.
PROBES = ("midapi doctor", "probe")
PROBE_INTERVAL = 1.0  # seconds, at least, from one read of these notes to the next


class ClientInbox:
    """Takes the callbacks for one client's intents.

    Attributes:
        taken: how many callbacks were accepted.
        ignored: how many callbacks with a valid token named a task that is not their intent's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tasks = OwnedTasks()
        self._probes: Mapping[str, str] = {}
        self._probes_read_at = -math.inf  # on the loop's clock
        self.taken = 0
        self.ignored = 0

    def open(self) -> None:
        """Begin to learn about callbacks that other processes take."""
        if self._session.journal.is_durable:
            self._tasks.start(relay_hints(self._session), context=Context())

    async def find(self, token_hash: str) -> Intent | str | None:
        """The intent of a token, if it was sent to this client's service; or a probe's hash."""
        row = await self._session.journal.find(token_hash=token_hash)
        if row is not None:
            return row if row.origin == self._session.origin else None
        # At most one more read in a second, however many unknown tokens come.
        now = self._session.loop.time()
        if now - self._probes_read_at >= PROBE_INTERVAL:
            self._probes_read_at = now
            self._probes = await self._session.journal.notes(*PROBES)
        return token_hash if token_hash in self._probes else None

    def task_ids(self, found: Intent | str) -> Collection[str]:
        """The intent's tasks; the one that a probe is sent for."""
        if isinstance(found, str):
            return [self._probes[found]] if found in self._probes else []
        return [found.task_id, *found.other_task_ids] if found.task_id is not None else []

    async def take(self, row: Intent | str, callback: Callback | None) -> int:
        """Handle a callback with this intent's token; return the HTTP status for the answer.

        Raises:
            JournalError: it cannot be recorded now.
        """
        if isinstance(row, str):
            if callback is None or callback.task_id not in self.task_ids(row):
                return 400  # its body was lost or changed on the way; the doctor says so
            await self._session.journal.note(*PROBES, row)
            _log.info("The probe of midapi doctor has arrived")
            return 200
        # A callback that cannot be read is a hint for the task that is known already.
        task_id = row.task_id if callback is None else callback.task_id
        if task_id is None:
            return 503  # MidAPI will send it again; its body may be whole then, or its task known
        candidates, is_known = self._session.candidates, task_id in self.task_ids(row)
        may_be_final = callback is None or not callback.is_acknowledgement
        if row.scope != self._session.scope:
            # A client of its own namespace, perhaps of another account, looks at the task.
            if is_known and may_be_final:
                await candidates.called_back(row, task_id)
            return 200 if is_known or await candidates.store(row, task_id) else 503
        if not is_known:
            # The POST's answer was lost, or has not come yet; or the POST bought two tasks.
            checked = await candidates.check(row, task_id)
            if checked is None:
                return 503  # MidAPI will send it again, in case that this process ends before
            row = checked
        if task_id not in (row.task_id, *row.other_task_ids):
            self.ignored += 1
            _log.warning(
                "Ignored callback for intent %s: task %s is not its task", row.intent_id, task_id
            )
            return 200
        self.taken += 1
        if may_be_final:
            self._session.report(CalledBack(key=row.key, intent_id=row.intent_id, task_id=task_id))
            await candidates.called_back(row, task_id)
        return 200

    async def aclose(self) -> None:
        """Learn nothing more."""
        await self._tasks.finish()
