"""``client.intents``: submissions of which nobody knows whether they were accepted."""

from __future__ import annotations

from types import EllipsisType

from ._submission.submitter import Order, Submitter
from .errors import InvalidRequestError
from .handle import Desk, TaskHandle, check_seconds, handle_of
from .journal import Intent, Journal, State
from .requests import task_id_problem


class Intents:
    """The intents of one client's namespace.

    Args:
        journal: where they live.
        scope: which of them are the client's.
        submitter: buys, settles and binds.
        desk: what handles need.
        patience: seconds that `settle` waits if it is not told; None for ever.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        scope: str,
        submitter: Submitter,
        desk: Desk,
        patience: float | None,
    ) -> None:
        self._journal = journal
        self._scope = scope
        self._submitter = submitter
        self._desk = desk
        self._patience = patience

    async def unknown(self) -> list[Intent]:
        """The submissions of which nobody knows whether they were accepted, oldest first."""
        self._desk.check()
        return await self._journal.rows(self._scope, State.UNKNOWN)

    async def settle(
        self,
        intent_id: str,
        timeout: float | EllipsisType | None = ...,
    ) -> TaskHandle:
        """Wait until a callback tells that an unknown submission was accepted.

        Args:
            intent_id: as in `SubmissionUnknown`.
            timeout: seconds; None for ever; left out, ``Timeouts.wait``.

        Raises:
            SubmissionUnknown: no callback came in time. Nothing was sent.
        """
        seconds = self._patience if isinstance(timeout, EllipsisType) else timeout
        if seconds is not None:
            check_seconds(seconds)
        row = await self._submitter.settle(await self._row(intent_id), seconds)
        return handle_of(row, self._desk)

    async def adopt(self, intent_id: str, task_id: str) -> TaskHandle:
        """Say which task an unknown submission became, as MidAPI's own log shows it.

        Raises:
            InvalidRequestError: the task id is none, or belongs to another intent; or the intent is
                not unknown.
        """
        if problem := task_id_problem(task_id):
            raise InvalidRequestError({"task_id": problem})
        row = await self._row(intent_id)
        holder = await self._journal.find(task_id=task_id)
        if holder is not None and holder.intent_id != intent_id:
            raise InvalidRequestError({"task_id": f"belongs to intent {holder.intent_id}"})
        if row.state not in (State.UNKNOWN, State.SUPERSEDED) and row.task_id != task_id:
            raise _not_unknown(row)
        return handle_of(await self._submitter.bind(row, task_id), self._desk)

    async def resubmit(self, intent_id: str) -> TaskHandle:
        """Buy what an unknown submission asked for, again: it may then be paid twice.

        A new intent with a new token takes over the key. A callback of the old one is still taken:
        its task then shows up in ``client.resume()``.

        Raises:
            SubmissionUnknown: of the new submission.
            MidAPIError: any other means that nothing was bought by this.
        """
        row = await self._row(intent_id)
        if row.state is not State.UNKNOWN:
            raise _not_unknown(row)
        if row.request is None:
            raise InvalidRequestError({"intent_id": "its request was not stored; submit it anew"})
        order = Order(request=row.request, key=row.key, metadata=row.metadata)
        row = await self._submitter.submit(order, supersedes=intent_id)
        return handle_of(row, self._desk)

    async def dismiss(self, intent_id: str) -> None:
        """Forget an unknown submission; its key stays spent.

        Raises:
            InvalidRequestError: the intent is not unknown.
        """
        row = await self._journal.advance((await self._row(intent_id)).intent_id, State.DISMISSED)
        if row.state is not State.DISMISSED:
            raise _not_unknown(row)

    async def _row(self, intent_id: str) -> Intent:
        self._desk.check()
        row = await self._journal.find(intent_id=intent_id)
        if row is None or row.scope != self._scope:
            raise InvalidRequestError(
                {"intent_id": f"no intent {intent_id!r:.60} in this namespace"}
            )
        return row


def _not_unknown(row: Intent) -> InvalidRequestError:
    told = f"intent {row.intent_id} is {row.state}; only an unknown one can be changed"
    return InvalidRequestError({"intent_id": told})
