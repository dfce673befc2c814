"""``midapi journal resume``: fetch results that were paid for and not taken."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import attrs
from cyclopts import Parameter

from midapi_async import (
    Intent,
    Journal,
    MidAPIClient,
    MidAPIError,
    State,
    TaskHandle,
    TaskStatus,
    WaitTimeout,
)
from midapi_async.config import settings
from midapi_async.errors import process_of
from midapi_async.events import Event, Looked
from midapi_async.files.folders import make_folder
from midapi_async.handle import check_seconds
from midapi_async.journal import BOUGHT

from . import _env
from ._common import Output, run_async
from ._env import Place
from ._errors import FAILED, command_error
from ._folder import Folder, opened_journal, option_of, place_of
from ._interrupt import interrupted
from ._options import Naming, Service
from ._progress import Progress
from ._terminal import one_line, out, out_json, say

_NAMING, _SERVICE, _OUTPUT = Naming(), Service(), Output()
_AT_ONCE = 8  # tasks whose files are downloaded, or that get a last look, at the same time
_PRINTED_AT_ONCE = 100  # results; after a kill, so many may be printed again


def resume(
    *,
    to: Annotated[Path | None, Parameter(show_default=False)] = None,
    timeout: float | None = None,
    namespace: str | None = None,
    folder: Folder = None,
    naming: Naming = _NAMING,
    service: Service = _SERVICE,
    output: Output = _OUTPUT,
) -> int:
    """Fetch the results that were paid for and that no program has taken. This costs nothing.

    Prints a line for each file: the task's id and the file's URL, or with --to its path. A result
    counts as taken when its lines are printed, so an interrupted run can simply be repeated. A
    failed task is taken, too, and stderr says why it failed. Exit code 1 if a task failed, or is
    left for later.

    Tasks of a program that is still running are left to it. A program that starts while this
    waits does not get the tasks that this waits for.

    Args:
        to: Download the files into this folder.
        timeout: Seconds to wait; 0 fetches only what is finished. If not given, each task has 3600
            from its submission.
        namespace: Fetch only what clients with this namespace submitted; all if not given.
    """
    if timeout is not None:
        timeout = check_seconds(timeout, "timeout", least=0.0)
    naming.check()
    source = place_of(folder)
    if to is not None:
        make_folder(to)
    run = _Run(to, naming, timeout, service, output, option_of(folder))
    code = run_async(_resume(run, source, namespace), output)
    return FAILED if run.left or any(each.has_failed for each in run.fetched) else code


@attrs.define
class _Result:
    """What became of a task.

    Attributes:
        handle: of the task.
        namespace: of its client.
        problem: why there is no result, or why the task failed; None if it succeeded, or is not
            finished.
        files: those that were downloaded.
    """

    handle: TaskHandle
    namespace: str
    problem: str | None = None
    files: list[Path] = attrs.field(factory=list)

    @property
    def has_failed(self) -> bool:
        """Whether the task itself has failed."""
        return self.handle.final is not None and self.handle.final.status is TaskStatus.FAILED

    @property
    def is_complete(self) -> bool:
        """Whether it can be printed and taken."""
        return self.handle.final is not None and (self.problem is None or self.has_failed)

    def to_dict(self) -> dict[str, object]:
        """All of it, for JSON."""
        handle = self.handle
        named = {
            "key": handle.key,
            "metadata": dict(handle.metadata),
            "intent_id": handle.intent_id,
            "namespace": self.namespace,
        }
        if handle.final is None or not self.is_complete:
            return {"task_id": handle.task_id, **named, "problem": self.problem}
        return {**handle.final.to_dict(), "files": [str(path) for path in self.files], **named}


@attrs.define
class _Run:
    """One run of the command.

    Attributes:
        to: the folder for the files; None prints URLs.
        naming: how to name the files.
        timeout: seconds to wait, or None.
        service: which MidAPI to use.
        output: what to print.
        where: the option that names the journal to the next command.
        fetched: results that are complete.
        taken: how many of them are marked as taken.
        left: what is left for later.
    """

    to: Path | None
    naming: Naming
    timeout: float | None
    service: Service
    output: Output
    where: str
    fetched: list[_Result] = attrs.field(factory=list)
    taken: int = 0
    left: list[_Result] = attrs.field(factory=list)
    _turns: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def fetch(self, client: MidAPIClient, handle: TaskHandle, namespace: str) -> _Result:
        """Wait for a task, and download its files if that was asked for."""
        result = _Result(handle, namespace)
        try:
            if await self._is_finished(handle) and handle.final is not None and self.to is not None:
                async with self._turns:
                    result.files = await client.download(
                        handle.final, self.to, **attrs.asdict(self.naming)
                    )
        except MidAPIError as error:  # the task's own failure, too
            result.problem = command_error(error).message
        return result

    async def _is_finished(self, handle: TaskHandle) -> bool:
        """Wait for a task; return whether it has succeeded, False if it is still generating.

        Raises:
            MidAPIError: it failed, or it is not known how it is.
        """
        try:
            await (handle.wait() if self.timeout is None else handle.wait(self.timeout))
        except WaitTimeout:
            # Looks are planned, so there may have been none for some time.
            async with self._turns:
                details = await handle.details(max_age=self.timeout or 0.0)
            if not details.is_final:
                return False
            await handle.wait()  # returns or raises at once, and records the details
        return True

    async def deliver(self, results: list[_Result]) -> None:
        """Print results, and then mark them as taken; with JSON, `finish` does both."""
        printed: list[_Result] = []
        try:
            printed.extend(result for result in results if self._print(result))
        finally:  # what was printed before stdout failed, too
            self.fetched += printed
            if not self.output.as_json:
                await self.take(printed)

    def _print(self, result: _Result) -> bool:
        """Print a result; return whether it is complete."""
        final, task_id = result.handle.final, result.handle.task_id
        if final is None or not result.is_complete:
            self.left.append(result)
            if result.problem is not None:
                say(f"Task {task_id} is left: {one_line(result.problem)}")
            return False
        if result.has_failed:
            say(f"{one_line(result.problem)} The task is taken, too.")
        if not self.output.as_json:
            for each in result.files or final.urls:
                out(f"{task_id} {each}")
        return True

    async def take(self, results: list[_Result]) -> None:
        """Mark results as taken. If this never happens, the next run prints them again."""
        # Together, because then they share the journal's transactions.
        await asyncio.gather(*(result.handle.ack() for result in results))
        self.taken += len(results)

    async def finish(self, notes: dict[str, int]) -> None:
        """Print what is to be said at the end; with JSON, everything."""
        if self.output.as_json:
            tasks, left = ([each.to_dict() for each in some] for some in (self.fetched, self.left))
            out_json({"tasks": tasks, "left": left, **notes})
            await self.take(self.fetched)
        failed = sum(result.has_failed for result in self.fetched)
        unfinished = sum(result.problem is None for result in self.left)
        if self.fetched:
            of_them = f", {failed} of them failed" if failed else ""
            say(f"{_tasks(self.taken)} taken{of_them}.")
        if unfinished:
            say(f"{_tasks(unfinished)} not finished: run this again later.")


async def _resume(run: _Run, source: Place, namespace: str | None) -> None:
    """Fetch the results of one namespace, or of all.

    Raises:
        CommandError: interrupted.
    """
    try:
        async with opened_journal(source) as journal, AsyncExitStack() as clients:
            await _resume_in(run, journal, clients, namespace)
    except asyncio.CancelledError:
        # Not re-raised: this runs in the main task, which only Ctrl-C cancels.
        rest = "What was not printed is not taken: run midapi journal resume again"
        raise interrupted(rest, taken=run.taken) from None


async def _resume_in(
    run: _Run, journal: Journal, clients: AsyncExitStack, namespace: str | None
) -> None:
    origin = str(settings("not-used", run.service.base_url).base_url.origin())
    progress = Progress("The command", scale=_env.time_scale())

    def take(event: Event) -> None:
        if isinstance(event, Looked):  # each other event is about one of many tasks
            progress.take(event)

    def is_meant(row: Intent) -> bool:
        row_origin, _, row_namespace = row.scope.partition(" ")
        return row_origin == origin and namespace in {None, row_namespace}

    scopes, elsewhere = dict[str, None](), 0
    async for row in _rows(journal, *BOUGHT):
        if is_meant(row):
            scopes[row.scope] = None
        elsewhere += not row.scope.startswith(f"{origin} ")
    found: list[tuple[MidAPIClient, TaskHandle, str]] = []
    for scope in scopes:
        name = scope.partition(" ")[2]
        client = MidAPIClient(
            run.service.api_key(),
            base_url=run.service.base_url,
            proxy=run.service.proxy,
            journal=journal,
            namespace=name,
            ack="manual",
            on_event=take,
        )
        await clients.enter_async_context(client)
        found += [(client, handle, name) for handle in await client.resume()]
    ours = {handle.intent_id for _, handle, _ in found}
    # The others' owners are alive; `resume` has taken over the tasks of dead ones.
    rows = [row async for row in _rows(journal, *BOUGHT) if is_meant(row)]
    theirs = [row for row in rows if row.intent_id not in ours]
    unknown = len([row async for row in _rows(journal, State.UNKNOWN) if is_meant(row)])
    _say_what_there_is(run, len(found), theirs, unknown, elsewhere)
    tasks = [asyncio.create_task(run.fetch(*each)) for each in found]
    try:
        await _deliver_all(run, tasks, progress)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
    running, other = len(theirs), elsewhere
    await run.finish({"of_running_programs": running, "unknown": unknown, "other_services": other})


async def _deliver_all(run: _Run, tasks: list[asyncio.Task[_Result]], progress: Progress) -> None:
    """Deliver the result of each task, in the order in which they end."""
    ready: asyncio.Queue[asyncio.Task[_Result]] = asyncio.Queue()
    for task in tasks:
        task.add_done_callback(ready.put_nowait)
    await asyncio.sleep(0)  # those that are finished need no progress
    left = len(tasks)
    while left:
        ended: list[asyncio.Task[_Result]] = []
        if ready.empty():
            progress.describe(f"waits for {_tasks(left, are=False)}")
            # It ends before anything is printed, because it may be drawn on the same terminal.
            async with progress:
                ended.append(await ready.get())
        while not ready.empty() and len(ended) < _PRINTED_AT_ONCE:
            ended.append(ready.get_nowait())
        await run.deliver([task.result() for task in ended])
        left -= len(ended)


def _say_what_there_is(
    run: _Run, count: int, theirs: list[Intent], unknown: int, elsewhere: int
) -> None:
    if count:
        say(f"{_tasks(count)} paid for and not taken.")
    else:
        say("Nothing to fetch.")
    if theirs:
        processes = ", ".join(sorted({process_of(row.process, row.host) for row in theirs}))
        say(f"{_tasks(len(theirs))} left to a running program ({processes}).")
    if elsewhere:
        say(f"{_tasks(elsewhere)} of another service: name it with --base-url.")
    if unknown:
        are = "1 submission is" if unknown == 1 else f"{unknown} submissions are"
        say(f"{are} unknown, and left so: midapi journal list unknown{run.where}")


def _tasks(count: int, *, are: bool = True) -> str:
    """As in "1 task is" and "2 tasks are"."""
    noun, verb = ("task", "is") if count == 1 else ("tasks", "are")
    return f"{count} {noun} {verb}" if are else f"{count} {noun}"


async def _rows(journal: Journal, *states: State) -> AsyncIterator[Intent]:
    """Every intent in these states that is not taken."""
    after = None
    while page := await journal.rows(states=sorted(states), taken=False, after=after):
        for row in page:
            yield row
        after = page[-1].intent_id
