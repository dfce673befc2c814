"""``client.intents``: what was submitted, and what to do about unknown submissions."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Collection, Mapping
from types import EllipsisType
from typing import Never, Unpack

from ._session import Session
from ._tracking.verdict import read_answer
from ._wire.protocol import fits, has_other_prompt
from ._wire.records import Record
from ._wire.tokens import has_token
from .errors import InvalidRequestError, MidAPIError, SubmissionUnknown, about, naming, shown
from .handle import TaskHandle, deadline_of, handle_of, refuse_misnamed
from .journal import BOUGHT, Intent, State
from .journal.protocol import RowFilter
from .requests import HasTaskId, checked_task_id
from .tasks import TaskDetails

_log = logging.getLogger("midapi_async.submission")


class Intents:
    """The intents of one client's namespace, as ``client.intents``.

    Read them with `get`, `rows` and `unknown`. The other methods decide about an unknown
    submission: `settle` waits for its callback, `adopt` names its task, `resubmit` buys it again,
    and `dismiss` gives it up.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __reduce__(self) -> Never:
        raise TypeError("client.intents cannot be copied or pickled: use it at the client itself")

    async def get(self, intent_id: str) -> Intent | None:
        """The intent with this id; None if there is none in this namespace. Sends nothing.

        Args:
            intent_id: as errors, handles and events name it.

        Raises:
            InvalidRequestError: the id is not a str.
        """
        if not isinstance(intent_id, str):
            raise InvalidRequestError({"intent_id": f"must be a str, got {shown(intent_id)}"})
        with naming(intent_id=intent_id):
            self._session.check()
            row = await self._session.journal.find(intent_id=intent_id)
        return row if row is not None and row.scope == self._session.scope else None

    async def rows(
        self,
        *,
        states: Collection[State] = (),
        metadata: Mapping[str, str] | None = None,
        since: float | None = None,
    ) -> list[Intent]:
        """The intents of this namespace that match, of all processes, oldest first.

        Args:
            states: only intents in one of these states; empty for all.
            metadata: only intents with all of this metadata.
            since: only intents written at this time or later, in epoch seconds.

        Raises:
            InvalidRequestError: naming each argument that is wrong.
        """
        problems = {}
        if not isinstance(states, Collection) or not all(
            isinstance(each, State) for each in states
        ):
            problems["states"] = f"must be a collection of State, got {shown(states)}"
        if metadata is not None and not isinstance(metadata, Mapping):
            problems["metadata"] = f"must be a mapping of str to str, got {shown(metadata)}"
        is_number = isinstance(since, int | float) and not isinstance(since, bool)
        if since is not None and not (is_number and math.isfinite(since)):
            problems["since"] = f"must be epoch seconds, got {shown(since)}"
        if problems:
            raise InvalidRequestError(problems)
        self._session.check()
        pages = pages_of(self._session, states=states, metadata=metadata, since=since)
        return [row async for page in pages for row in page]

    async def unknown(self) -> list[Intent]:
        """The submissions that MidAPI may have accepted or not, oldest first."""
        self._session.check()
        pages = pages_of(self._session, states=[State.UNKNOWN])
        return [row async for page in pages for row in page]

    async def settle(
        self,
        intent_id: str | Intent | SubmissionUnknown,
        timeout: float | EllipsisType | None = ...,
        **misnamed: Never,
    ) -> TaskHandle:
        """Wait until a callback shows that an unknown submission was accepted; sends nothing.

        Args:
            intent_id: an id, a `SubmissionUnknown` or an `Intent`; also that of a submission that
                is still being sent.
            timeout: seconds; None waits without a limit; left out, ``Timeouts.wait``.
            **misnamed: refused with an error that names the right argument.

        Raises:
            SubmissionUnknown: no callback came in time.
        """
        refuse_misnamed(misnamed)
        session = self._session
        seconds = session.timeouts.wait if isinstance(timeout, EllipsisType) else timeout
        deadline = deadline_of(seconds, session)
        row = await self._row(intent_id)
        follow = session.candidates.follow
        follow(row)
        with naming(key=row.key, intent_id=row.intent_id):
            return handle_of(await session.submitter.settle(row, deadline, follow), session)

    async def adopt(
        self,
        intent_id: str | Intent | SubmissionUnknown,
        task_id: str | HasTaskId,
        *,
        force: bool = False,
    ) -> TaskHandle:
        """Give a submission its task, which you found in the list of your tasks at MidAPI.

        The task's record must fit the submission. A task that was adopted wrongly can be replaced.

        Args:
            intent_id: an id, a `SubmissionUnknown` or an `Intent`.
            task_id: MidAPI's id of the task.
            force: do not compare the task with its record now, and replace the intent's task if it
                has one. If the record has another submission's token, the first wait finds out.

        Raises:
            InvalidRequestError: the task id is malformed, belongs to another intent or to another
                submission, or the intent's state does not allow it.
            MidAPIError: the record cannot be read now.
        """
        task_id = checked_task_id(task_id)
        if not isinstance(force, bool):
            raise InvalidRequestError({"force": f"must be True or False, got {shown(force)}"})
        row = await self._row(intent_id)
        with naming(key=row.key, intent_id=row.intent_id, task_id=task_id):
            if row.task_id == task_id:
                return handle_of(row, self._session)
            if row.state not in (State.UNKNOWN, State.SUPERSEDED, *BOUGHT):
                raise _wrong_state(row, "only an unknown one can be changed")
            outcomes = self._session.outcomes
            if holder := await outcomes.holder(row, task_id):
                raise InvalidRequestError({"task_id": f"belongs to intent {holder.intent_id}"})
            record = None if force else await self._session.api.look(task_id)
            if not force and (problem := _misfit(row, task_id, record)):
                sure = "; check the id, or pass force=True if you are sure"
                raise InvalidRequestError({"task_id": f"{problem}{sure}"})
            if row.task_id is not None:
                await self._session.journal.advance(row.intent_id, foreign=row.task_id)
            bound = await outcomes.bind(row, task_id)
            if bound.task_id != task_id:
                raise _wrong_state(bound, "only an unknown one can be changed, to its own task")
            # It may have ended long ago: then nobody waits for it as for a new task.
            if isinstance(final := read_answer(record, is_seen=True), TaskDetails):
                write = self._session.recorder.write
                bound = await write(task_id, bound.intent_id, final, taken=False) or bound
            return handle_of(bound, self._session)

    async def resubmit(self, intent_id: str | Intent | SubmissionUnknown) -> TaskHandle:
        """Submit an unknown or a failed submission again; an unknown one may then be paid twice.

        A new intent with a new token takes over the key. If a callback for the old intent still
        comes, ``client.resume()`` returns its task.

        Args:
            intent_id: an id, a `SubmissionUnknown` or an `Intent`.

        Raises:
            SubmissionUnknown: it cannot be known whether the new submission was accepted.
            MidAPIError: any other error means that the new submission bought nothing.
        """
        row = await self._row(intent_id)
        if row.state not in (State.UNKNOWN, State.FAILED):
            raise _wrong_state(row, "only an unknown or a failed one can be submitted again")
        with naming(key=row.key, intent_id=row.intent_id):
            if row.request is None:
                raise InvalidRequestError(
                    {"intent_id": "its request was not stored: call generate() with it"}
                )
            bought, _ = await self._session.submitter.submit(
                row.request, key=row.key, metadata=row.metadata, supersedes=row.intent_id
            )
        return handle_of(bought, self._session)

    async def dismiss(self, intent_id: str | Intent | SubmissionUnknown) -> None:
        """Give up an unknown submission; its key cannot be used again.

        Args:
            intent_id: an id, a `SubmissionUnknown` or an `Intent`.

        Raises:
            InvalidRequestError: the intent is not unknown.
        """
        row = await self._row(intent_id)
        with naming(key=row.key, intent_id=row.intent_id):
            row = await self._session.journal.advance(row.intent_id, State.DISMISSED)
        if row.state is not State.DISMISSED:
            raise _wrong_state(row, "only an unknown one can be changed")

    async def _row(self, given: str | Intent | SubmissionUnknown) -> Intent:
        intent_id = getattr(given, "intent_id", given)
        if not isinstance(intent_id, str):
            problem = f"must be the intent_id of a SubmissionUnknown, got {shown(given)}"
            raise InvalidRequestError({"intent_id": problem})
        with naming(intent_id=intent_id):
            self._session.check()
            row = await self._session.journal.find(intent_id=intent_id)
        if row is None or row.scope != self._session.scope:
            raise InvalidRequestError(
                {"intent_id": f"no intent {shown(intent_id)} exists in this namespace"}
            )
        return row


async def pages_of(
    session: Session,
    **which: Unpack[RowFilter],
) -> AsyncIterator[list[Intent]]:
    """All rows of a client's namespace that match, oldest first, in pages."""
    while page := await session.journal.rows(session.scope, **which):
        yield page
        which["after"] = page[-1].intent_id


def _misfit(row: Intent, task_id: str, record: Record | None) -> str | None:
    """Why a task cannot be the one of an intent; None if it can."""
    if record is None:
        return "is not known to MidAPI, which may take some seconds for a new task"
    is_ours = has_token(record.params.get("callBackUrl"), row.token_hash)
    if not fits(record, row.request, callback_url_matches=is_ours, since=row.created_at):
        return "is another submission's, as its record shows"
    if row.task_id is not None and not is_ours:
        return f"may be this submission's, but that has task {row.task_id} already"
    if not is_ours and has_other_prompt(record, row.request):  # MidAPI may have changed it
        _log.warning(
            "task %s shows another prompt than intent %s submitted; if it is a wrong one, "
            "adopt the right one with force=True",
            task_id,
            row.intent_id,
        )
    return None


def _wrong_state(row: Intent, rule: str) -> MidAPIError:
    problem = f"intent {row.intent_id} is {row.state}; {rule}"
    error = InvalidRequestError({"intent_id": problem})
    return about(error, key=row.key, intent_id=row.intent_id, task_id=row.task_id)
