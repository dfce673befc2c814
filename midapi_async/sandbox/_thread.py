"""A sandbox in a thread of its own, for programs and tests that do not await."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict, TypeVar, Unpack, final

from midapi_async.sandbox import _wire
from midapi_async.sandbox._actions import CallbackAction
from midapi_async.sandbox._ledger import Ledger
from midapi_async.sandbox._records import Shape
from midapi_async.sandbox._sandbox import Sandbox
from midapi_async.sandbox.faults import Faults

_T = TypeVar("_T")
# Closing takes about a second; beyond this something is broken and must be said.
_PATIENCE = 30.0


class SandboxOptions(TypedDict, total=False):
    """The arguments of `Sandbox`."""

    host: str
    port: int
    api_key: str | None
    webhook_key: str | None
    credits: float
    time_scale: float
    faults: Faults | None
    seed: int
    shape: Shape
    durations: Mapping[tuple[str, str], float] | None
    prices: Mapping[tuple[str, str], float] | None
    auto: bool
    files_url: str | None
    tls: bool | Path
    accounts: Mapping[str, float] | None
    http_errors: bool
    log: Callable[[str], None] | None


@final
class SandboxThread:
    """A `Sandbox` in its own thread and event loop, used with ``with``.

    Its methods do what those of `Sandbox` do, and may be called from any thread. `call_back`
    waits for an answer, so an async test awaits `acall_back` instead; all others take no time.
    Its clock is the real one: a loop with virtual time cannot see this thread.
    """

    def __init__(self, **options: Unpack[SandboxOptions]) -> None:
        """Take the arguments of `Sandbox`; nothing is opened yet.

        Raises:
            ValueError: for an argument that cannot be meant.
        """
        self._sandbox = Sandbox(**options)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def __repr__(self) -> str:
        return f"<SandboxThread of {self._sandbox!r}>"

    def __enter__(self) -> Self:
        """Start the thread and serve; OSError as from `Sandbox.open`."""
        opened: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._live(opened),), name="midapi-sandbox", daemon=True
        )
        self._thread.start()
        try:
            self._loop = opened.result(_PATIENCE)
        except BaseException:
            self.close()
            raise
        return self

    async def _live(self, opened: Future[asyncio.AbstractEventLoop]) -> None:
        """Be open until `close`; an error of opening is the caller's."""
        try:
            await self._sandbox.open()
        except Exception as error:  # noqa: BLE001  handed to the thread that waits
            opened.set_exception(error)
            return
        opened.set_result(asyncio.get_running_loop())
        try:
            await self._stop.wait()
        finally:
            await self._sandbox.aclose()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it: see `close`."""
        self.close()

    def close(self) -> None:
        """Stop serving and end the thread within about a second; again does nothing."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None:
            loop.call_soon_threadsafe(self._stop.set)
        if thread is not None:
            thread.join(_PATIENCE)

    @property
    def url(self) -> str:
        """Where it serves."""
        return self._sandbox.url

    @property
    def ca_file(self) -> Path | None:
        """The certificate to trust; see `Sandbox.ca_file`."""
        return self._sandbox.ca_file

    @property
    def ledger(self) -> Ledger:
        """What was accepted, requested and called back."""
        return self._sandbox.ledger

    @property
    def faults(self) -> Faults:
        """The plan of faults; rules may be added at any time."""
        return self._sandbox.faults

    @property
    def credits(self) -> float:
        """The account's balance; may be set."""
        return self._sandbox.credits

    @credits.setter  # noqa: A003  the property of the class is meant
    def credits(self, balance: float) -> None:
        self._sandbox.credits = balance

    def finish(self, task_id: str) -> None:
        """Let a task succeed now; see `Sandbox.finish`."""

        async def finish() -> None:
            self._sandbox.finish(task_id)

        self._do(finish())

    def fail(
        self,
        task_id: str,
        *,
        message: str | None = _wire.NO_RESPONSE,
        code: int | str | None = _wire.SERVER_ERROR,
        flag: int = _wire.GENERATION_FAILED,
    ) -> None:
        """Let a task fail now; see `Sandbox.fail`."""

        async def fail() -> None:
            self._sandbox.fail(task_id, message=message, code=code, flag=flag)

        self._do(fail())

    def call_back(
        self, task_id: str, *changes: CallbackAction, url: str | None = None
    ) -> int | None:
        """Send a task's callback now and give the answer's status; see `Sandbox.call_back`.

        Raises:
            RuntimeError: in a thread with a running event loop, where nothing could answer the
                callback meanwhile; await `acall_back` there.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._do(self._sandbox.call_back(task_id, *changes, url=url))
        message = "call_back() blocks the event loop; use `await sandbox.acall_back(...)` here"
        raise RuntimeError(message)

    async def acall_back(
        self, task_id: str, *changes: CallbackAction, url: str | None = None
    ) -> int | None:
        """Do what `call_back` does; the caller's event loop runs meanwhile."""
        sending = self._begin(self._sandbox.call_back(task_id, *changes, url=url))
        return await asyncio.wrap_future(sending)

    def _do(self, work: Coroutine[object, object, _T]) -> _T:
        return self._begin(work).result(_PATIENCE)

    def _begin(self, work: Coroutine[object, object, _T]) -> "Future[_T]":
        if self._loop is None:
            work.close()
            message = "the sandbox is not open; use `with SandboxThread() as sandbox`"
            raise RuntimeError(message)
        return asyncio.run_coroutine_threadsafe(work, self._loop)
