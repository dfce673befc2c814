"""Task ids that callbacks have named for an intent, until it is known whose they are.

A callback's token names an intent. The task that it names is the intent's if MidAPI's record fits.
While the record cannot be read, the task id is stored with the intent as a candidate and looked at
again, with growing pauses. A leaked token would allow anyone to invent task ids, so the looks that
one intent can cause are limited.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextvars import Context

from .._runtime.background import OwnedTasks
from .._runtime.clock import Clock
from .._wire.protocol import fits, has_other_prompt
from .._wire.records import Record
from .._wire.tokens import has_token
from ..errors import ClientClosed, JournalError, MidAPIError, TaskNotFound
from ..journal import Intent, Journal, State
from ..requests import Request
from .outcomes import OutcomeRecorder

_log = logging.getLogger("midapi_async.callbacks")

# Callbacks for one intent can cause 5 looks in 30 s. MidAPI sends a callback that was not taken
# again after 1, 5 and 15 minutes, and then the intent has looks again.
LOOKS, STRETCH = 5, 30.0
COUNTED_INTENTS = 1_000  # for at most this many intents these looks are counted
# How many candidates of one intent are followed, and how many are stored.
MOST_FOLLOWED, MOST_STORED = 5, 10
# The pauses between the looks at one candidate. A record is found at most a quarter later.
FIRST_PAUSE, GROWTH = 1.0, 1.25
FOLLOWED_AT_ONCE = 8  # looks at candidates of all intents


class Candidates:
    """Finds out whether the tasks that callbacks name belong to the intents that they name.

    Args:
        outcomes: accepts a task for an intent.
        journal: stores the intents.
        look: one GET of a task's record; None while MidAPI does not know the task.
        hint: called with a task that may have changed.
        patience: service seconds for which to look at a candidate of a request.
        clock: the client's clock.
    """

    def __init__(
        self,
        outcomes: OutcomeRecorder,
        journal: Journal,
        *,
        look: Callable[[str], Awaitable[Record | None]],
        hint: Callable[[str], None],
        patience: Callable[[Request | None], float],
        clock: Clock,
    ) -> None:
        self._outcomes = outcomes
        self._journal = journal
        self._look = look
        self._hint = hint
        self._patience = patience
        self._clock = clock
        # The looks under way, by intent and task. Duplicates of a callback share one.
        self._checks: dict[tuple[str, str], asyncio.Task[Intent | MidAPIError]] = {}
        self._followed: dict[str, set[str]] = {}  # the candidates that are followed, by intent
        # By intent: the start of its stretch, and its looks since then; the latest intent is last.
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._turns = asyncio.Semaphore(FOLLOWED_AT_ONCE)
        self._tasks = OwnedTasks()
        self._is_closed = False

    async def check(self, row: Intent, task_id: str) -> Intent | None:
        """Find out whether a task that a callback has named for an intent is the intent's.

        Returns:
            The row as it is then; it has the task, as its own or among others, if that is proven.
            None if it cannot be known now; then the task is followed.

        Raises:
            JournalError: the journal cannot be used, or the candidate cannot be stored.
        """
        if (row.intent_id, task_id) not in self._checks and not self._may_look(row):
            return None
        checked = await self._check(row, task_id)
        if isinstance(checked, Intent):
            return checked
        if self._follow(row, task_id):
            _log.info(
                "a callback names task %s for intent %s; looking again: %s",
                task_id,
                row.intent_id,
                checked,
            )
            await self.store(row, task_id)
        return None

    async def store(self, row: Intent, task_id: str) -> bool:
        """Store a candidate of an intent whose task is not known; return whether it is stored.

        Raises:
            JournalError: it cannot be stored now.
        """
        is_new = task_id not in row.other_task_ids
        if is_new and (row.task_id is not None or len(row.other_task_ids) >= MOST_STORED):
            return False
        if is_new:
            await self._journal.advance(row.intent_id, candidate=task_id)
        return True

    def follow(self, row: Intent) -> None:
        """Look again at the candidates that are stored with an intent whose task is not known."""
        if row.task_id is None:
            for task_id in row.other_task_ids[-MOST_FOLLOWED:]:
                self._follow(row, task_id)

    def resume(self, scope: str) -> None:
        """In the background, follow the candidates of unknown submissions of this client."""
        self._tasks.start(self._resume(scope), context=Context())

    async def called_back(self, row: Intent, task_id: str) -> None:
        """After a callback for a task of an intent: look at it soon, here and in other processes.

        Raises:
            JournalError: it cannot be recorded now.
        """
        self._hint(task_id)
        # Record it once: later states include it, and a second task of the intent has no state.
        if task_id == row.task_id and row.state is State.ACCEPTED and self._journal.is_durable:
            await self._journal.advance(row.intent_id, State.CALLED_BACK)

    async def aclose(self) -> None:
        """Look at nothing more."""
        self._is_closed = True
        await self._tasks.finish()

    # ─── one look ────────────────────────────────────────────────────────────────────────────────

    def _may_look(self, row: Intent) -> bool:
        """Count a callback that needs a look; return whether the intent has a look left."""
        now = self._clock.time()
        since, count = self._counts.pop(row.intent_id, (now, 0))
        if now - since >= STRETCH:
            since, count = now, 0
        self._counts[row.intent_id] = since, count + 1
        if len(self._counts) > COUNTED_INTENTS:
            self._counts.popitem(last=False)
        if count == LOOKS:
            _log.warning(
                "callbacks for intent %s name more tasks than are looked at in %.0f s: MidAPI will "
                "send the true one again. Its callback URL may have leaked.",
                row.intent_id,
                STRETCH,
            )
        return count < LOOKS

    async def _check(self, row: Intent, task_id: str) -> Intent | MidAPIError:
        """Look at a task, together with all that ask at the same time.

        Returns:
            The row, see `check`; or why it cannot be known now.

        Raises:
            JournalError: the journal cannot be used.
        """
        name = row.intent_id, task_id
        look = self._checks.get(name)
        if look is None:
            work = self._look_at(row, task_id)
            look = self._checks[name] = self._tasks.start(work, context=Context())
            look.add_done_callback(lambda _: self._checks.pop(name, None))
        await asyncio.wait({look})
        found = ClientClosed() if look.cancelled() else look.result()
        if isinstance(found, JournalError):
            raise found
        return found

    async def _look_at(self, row: Intent, task_id: str) -> Intent | MidAPIError:
        """Accept a task for an intent if its record fits; an error is returned."""
        try:
            holder = await self._outcomes.holder(row, task_id)
            if holder is not None:
                _log.critical(
                    "a callback for intent %s names task %s, which belongs to intent %s: it is "
                    "ignored",
                    row.intent_id,
                    task_id,
                    holder.intent_id,
                )
                return await self._journal.advance(row.intent_id, foreign=task_id)
            record = await self._look(task_id)
            if record is None:
                return TaskNotFound(task_id)  # record-info may not know a new task yet
            is_ours = has_token(record.params.get("callBackUrl"), row.token_hash)
            if not fits(record, row.request, callback_url_matches=is_ours, since=row.created_at):
                return await self._journal.advance(row.intent_id, foreign=task_id)
            if has_other_prompt(record, row.request):
                _log.info(
                    "task %s of intent %s came back with a changed prompt", task_id, row.intent_id
                )
            return await self._outcomes.bind(row, task_id)
        except MidAPIError as error:
            return error

    # ─── following ───────────────────────────────────────────────────────────────────────────────

    def _follow(self, row: Intent, task_id: str) -> bool:
        """Follow a candidate in the background; return whether that is new."""
        names = self._followed.get(row.intent_id, set())
        if self._is_closed or task_id in names or len(names) >= MOST_FOLLOWED:
            return False
        self._followed.setdefault(row.intent_id, names).add(task_id)
        self._tasks.start(self._look_until_known(row, task_id), context=Context())
        return True

    async def _look_until_known(self, row: Intent, task_id: str) -> None:
        """Look at a candidate until its record is read, for as long as such a task may take."""
        pause, give_up_at = FIRST_PAUSE, self._clock.time() + self._patience(row.request)
        problem: MidAPIError | None = None
        try:
            while self._clock.time() < give_up_at:
                await asyncio.sleep(pause / self._clock.scale)
                pause *= GROWTH
                try:
                    now = await self._journal.find(intent_id=row.intent_id)
                    if now is None or now.task_id == task_id:
                        return  # pruned, or accepted by an answer or in another process
                    async with self._turns:
                        checked = await self._check(now, task_id)
                    if not isinstance(checked, Intent):
                        problem = checked
                        continue
                    if task_id in (checked.task_id, *checked.other_task_ids):
                        await self.called_back(checked, task_id)
                except JournalError as error:
                    problem = error
                else:
                    return
            _log.info(
                "gave up on task %s, which a callback named for intent %s: %s",
                task_id,
                row.intent_id,
                problem,
            )
        finally:
            names = self._followed[row.intent_id]
            names.discard(task_id)
            if not names:
                del self._followed[row.intent_id]

    async def _resume(self, scope: str) -> None:
        after = None
        try:
            while page := await self._journal.rows(
                scope, states=[State.UNKNOWN], taken=False, mine=True, after=after
            ):
                for row in page:
                    self.follow(row)
                after = page[-1].intent_id
        except JournalError:
            _log.exception("Cannot read the candidates of unknown submissions")
