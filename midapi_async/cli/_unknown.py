"""``midapi journal settle``, ``adopt``, ``resubmit`` and ``dismiss``: unknown submissions."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from midapi_async import (
    CallbackReceiver,
    Intent,
    Journal,
    MidAPIClient,
    MidAPIError,
    State,
    TaskHandle,
)
from midapi_async.journal import PENDING

from . import _env
from ._common import Output, run_async
from ._env import Place
from ._errors import CommandError, command_error, usage_error
from ._folder import ID_HELP, Folder, facts_of, find_rows, opened_journal, option_of, place_of
from ._interrupt import interrupted
from ._options import Connection
from ._terminal import one_line, out, out_json, say, seconds

IntentIds = Annotated[str, Parameter(name="INTENT", required=True, help=ID_HELP)]
# A call of ``client.intents`` for the intent with this id.
Act = Callable[[MidAPIClient, str], Awaitable[TaskHandle | None]]
_CONNECTION, _OUTPUT = Connection(), Output()


def settle(
    intent_id: Annotated[str, Parameter(name="INTENT", help=ID_HELP)],
    /,
    *,
    timeout: float = 600.0,
    folder: Folder = None,
    connection: Connection = _CONNECTION,
    output: Output = _OUTPUT,
) -> int:
    """Wait until a callback shows that an unknown submission was accepted.

    The callback must reach a program that has the journal open, such as a bot.

    Args:
        timeout: Seconds to wait.
    """

    async def act(client: MidAPIClient, intent_id: str) -> TaskHandle:
        return await client.intents.settle(intent_id, timeout)

    return _run([(intent_id, act)], folder, connection, output, timeout=timeout)


def adopt(
    *pairs: Annotated[str, Parameter(name="INTENT TASK", required=True)],
    force: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    folder: Folder = None,
    connection: Connection = _CONNECTION,
    output: Output = _OUTPUT,
) -> int:
    """Name the task of an unknown submission, which you found on MidAPI's website.

    The task's record must fit the submission. A task that was adopted wrongly can be replaced.

    Args:
        pairs: The intent, as `midapi journal list` shows it (the first digits are enough), and
            MidAPI's id of its task. More pairs may follow.
        force: Do not look at the record, and replace the task whatever it is.
    """
    if len(pairs) % 2:
        given = "1 argument" if len(pairs) == 1 else f"{len(pairs)} arguments"
        problem = f"Each INTENT needs its TASK after it, got {given}:"
        raise usage_error(f"{problem} midapi journal adopt INTENT TASK [INTENT TASK ...]")

    async def act(task_id: str, client: MidAPIClient, intent_id: str) -> TaskHandle:
        return await client.intents.adopt(intent_id, task_id, force=force)

    acts = [
        (intent_id, partial(act, task_id))
        for intent_id, task_id in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    return _run(acts, folder, connection, output, needs_key=not force)


def resubmit(
    *intent_ids: IntentIds,
    folder: Folder = None,
    connection: Connection = _CONNECTION,
    output: Output = _OUTPUT,
) -> int:
    """Submit unknown or failed requests again. An unknown one may then be paid twice.

    Prints the id of the new task; with several intents, each intent's id and that of its new task.
    """

    async def act(client: MidAPIClient, intent_id: str) -> TaskHandle:
        return await client.intents.resubmit(intent_id)

    acts = [(each, act) for each in intent_ids]
    return _run(acts, folder, connection, output, needs_key=True)


def dismiss(*intent_ids: IntentIds, folder: Folder = None, output: Output = _OUTPUT) -> int:
    """Give up unknown submissions. Their keys cannot be used again."""

    async def act(client: MidAPIClient, intent_id: str) -> None:
        await client.intents.dismiss(intent_id)

    return _run([(each, act) for each in intent_ids], folder, _CONNECTION, output)


def _run(
    acts: Sequence[tuple[str, Act]],
    folder: str | None,
    connection: Connection,
    output: Output,
    *,
    needs_key: bool = False,
    timeout: float | None = None,
) -> int:
    async def act() -> None:
        place = place_of(folder)
        if timeout is not None:
            await _say_what_is_awaited(place, acts[0][0], timeout, option_of(folder))
        await _act_on_all(acts, place, connection, output, needs_key=needs_key)

    return run_async(act(), output)


async def _say_what_is_awaited(place: Place, digits: str, timeout: float, option: str) -> None:
    """Say how long `settle` may wait, and for which program; it prints nothing else until then."""
    async with opened_journal(place) as opened:
        [row] = await find_rows(opened, [digits])
        running = (await opened.stats()).owners
    if row.state not in {State.UNKNOWN, *PENDING}:
        return
    must = "A program that has this journal open must receive it"
    if row.token_hash is None:
        must = "It was submitted without a receiver, so probably none comes"
    elif running:
        must += f"; {running} {'is' if running == 1 else 'are'} running"
    else:  # a program that has submitted nothing is not counted
        must += ", and none is running that has submitted anything"
    say(f"Waiting up to {seconds(timeout)} for a callback. {must}.")
    if row.token_hash is None or not running:
        say("If none can come, press Ctrl-C, and decide with one of these:")
        for verb, task in (("adopt", " TASK"), ("resubmit", ""), ("dismiss", "")):
            say(f"  midapi journal {verb} {row.intent_id}{task}{option}")


async def _act_on_all(
    acts: Sequence[tuple[str, Act]],
    place: Place,
    connection: Connection,
    output: Output,
    *,
    needs_key: bool,
) -> None:
    """Act on each intent in turn, and print what became of it. After an error the others go on.

    Args:
        acts: the first digits of each intent's id, and what to do with it.
        place: where the journal is.
        connection: how to reach MidAPI.
        output: what to print.
        needs_key: whether MidAPI is asked for something.

    Raises:
        InvalidRequestError: nothing was done, because an intent or a setting is wrong.
        CommandError: it failed, for the only intent or for some of several; or interrupted.
    """
    done: list[Intent] = []
    failed: dict[str, CommandError] = {}
    async with opened_journal(place) as opened, AsyncExitStack() as stack:
        # Nothing is changed before all intents are found and all clients are open.
        rows = await find_rows(opened, [intent_id for intent_id, _ in acts])
        clients: dict[str, MidAPIClient] = {}
        for row in rows:
            if row.scope not in clients:
                client = _client_of(row, opened, connection, needs_key=needs_key)
                clients[row.scope] = await stack.enter_async_context(client)
        for row, (_, act) in zip(rows, acts, strict=True):
            try:
                handle = await act(clients[row.scope], row.intent_id)
                new_id = handle.intent_id if handle is not None else None
                after = await opened.find(intent_id=new_id or row.intent_id) or row
            except MidAPIError as error:
                failed[row.intent_id] = problem = command_error(error)
                if len(rows) > 1:
                    say(f"midapi: intent {row.intent_id}: {one_line(problem.message)}")
            except asyncio.CancelledError:
                # Not re-raised: this runs in the main task, which only Ctrl-C cancels.
                raise interrupted(
                    f"Done: {len(done)} of {len(rows)}. What was sent is in the journal: midapi "
                    "journal list",
                    **_facts(done, failed),
                ) from None
            else:
                done.append(after)
                if not output.as_json:
                    _print(row, after, is_only=len(rows) == 1)
    if failed:
        raise _failure(done, failed)
    if output.as_json:
        out_json(facts_of(done[0]) if len(done) == 1 else _facts(done, failed))


def _client_of(
    row: Intent, opened: Journal, connection: Connection, *, needs_key: bool
) -> MidAPIClient:
    """A client for the service and namespace of an intent.

    Callbacks for what it submits reach the bot, which finds their intent in the same journal.
    """
    origin, _, namespace = row.scope.partition(" ")
    public_url = _env.public_url()
    key = connection.api_key()
    return MidAPIClient(
        key if key or needs_key or _env.has_api_key() else "not-used",
        base_url=origin,
        journal=opened,
        namespace=namespace,
        receiver=CallbackReceiver(public_url) if public_url else None,
        proxy=connection.proxy,
    )


def _print(row: Intent, after: Intent, *, is_only: bool) -> None:
    """Print what became of an intent; with several, also which one it was."""
    if after.task_id is None:
        say(f"Intent {after.intent_id} is {after.state}.")
    else:
        out(after.task_id if is_only else f"{row.intent_id} {after.task_id}")


def _facts(done: list[Intent], failed: Mapping[str, CommandError]) -> dict[str, object]:
    return {
        "intents": [facts_of(row) for row in done],
        "failed": [
            {"intent_id": intent_id, "type": error.kind, "message": error.message}
            for intent_id, error in failed.items()
        ],
    }


def _failure(done: list[Intent], failed: dict[str, CommandError]) -> CommandError:
    """The error of the command: that of the only intent, or how many of several have failed."""
    count = len(done) + len(failed)
    if count == 1:
        return next(iter(failed.values()))
    message = f"{len(failed)} of {count} intents failed; each has a line above."
    return CommandError("IntentsFailed", message, facts=_facts(done, failed))
