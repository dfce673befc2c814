"""The service behind the wire: what a submit, a look and the rest do. No HTTP in here."""

import asyncio
import hashlib
import json
import secrets
import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import final

from attrs import frozen

from midapi_async.sandbox import _wire
from midapi_async.sandbox._account import Account
from midapi_async.sandbox._callbacks import Caller
from midapi_async.sandbox._clock import Clock
from midapi_async.sandbox._director import Director
from midapi_async.sandbox._envelope import Refused
from midapi_async.sandbox._files import Files
from midapi_async.sandbox._hints import Failure
from midapi_async.sandbox._ledger import Accepted, Book
from midapi_async.sandbox._log import Log
from midapi_async.sandbox._orders import Orders, Table
from midapi_async.sandbox._records import Records, Shape
from midapi_async.sandbox._tasks import Order, Task, Tasks
from midapi_async.sandbox.faults import Call, Faults


@frozen
class Settings:
    """What a sandbox was made with; see `Sandbox` for the meaning of each."""

    api_key: str | None
    webhook_key: str | None
    time_scale: float
    faults: Faults
    seed: int
    shape: Shape
    durations: Table | None
    prices: Table | None
    auto: bool
    files_url: str | None
    accounts: Mapping[str, float]
    http_errors: bool


@final
class Service:
    """Composes a sandbox's rooms; lives from its making in a running loop to `stop`."""

    def __init__(self, settings: Settings, book: Book, account: Account, log: Log) -> None:
        """Begin with no tasks; needs a running event loop."""
        self.clock = Clock(settings.time_scale)
        self.director = Director(settings.faults, settings.seed, self.clock.now)
        self.records = Records(settings.shape, self.clock.stamp)
        self.caller = Caller(self.clock, book, self.records, settings.webhook_key)
        self.tasks = Tasks(self.clock, self._after)
        self.files = Files(self.clock, self.tasks)
        self._account = account
        self._accounts = {key: Account(balance) for key, balance in settings.accounts.items()}
        self.book = book
        self.log = log
        self.settings = settings
        self._orders = Orders(
            self.tasks,
            self.files.owns,
            prices=settings.prices,
            durations=settings.durations,
            seed=settings.seed,
        )

    async def stop(self) -> None:
        """End every timer, wait and callback; what was asked before is still answered."""
        self.clock.stop()
        self.tasks.stop()
        await self.caller.aclose()

    def check_key(self, key: str) -> None:
        """Raise the 401 refusal for a key that opens nothing."""
        expected = self.settings.api_key
        if key in self._accounts:
            return
        given = key.encode("utf-8", "surrogateescape")
        if not given or (expected and not secrets.compare_digest(given, expected.encode())):
            raise Refused(_wire.UNAUTHORIZED)

    def _after(self, task: Task) -> None:
        """Do what follows the end of a task."""
        self.log.ended(task)
        self.caller.deliver(task)

    def account_of(self, key: str) -> Account:
        """Give the account of a key: its own, or the one that all others share."""
        return self._accounts.get(key, self._account)

    async def submit(self, path: str, body: Mapping[str, object], origin: str, key: str) -> str:
        """Do what a submit does and give the task id; raises the refusal of the service."""
        account = self.account_of(key)
        account.check_rate(self.clock.now())
        order = self._orders.read(path, body, origin)
        account.pay(order.price, self.clock.now())
        task = self._accept(order, body, key)
        if task.delivery.early and order.callback_url:
            # Only here: an event for each task would be a third of what a task weighs.
            task.called = asyncio.Event()
            self.tasks.end(task, task.outcome.failure)
            await task.called.wait()
        return task.id

    def _accept(self, order: Order, body: Mapping[str, object], key: str) -> Task:
        """Make the task of an order that is paid for."""
        task = self.tasks.add(self._new_id(), order)
        self.book.accept(
            Accepted(
                task_id=task.id,
                path=order.path,
                body=MappingProxyType(dict(body)),
                callback_url=order.callback_url,
                price=order.price,
                at=task.created,
                account=label_of(key),
            )
        )
        task.outcome = self.director.outcome(_call("task", task, body), order.outcome)
        if order.callback_url:
            task.delivery = self.director.delivery(_call("callback", task, body))
        self.caller.acknowledge(task)
        if self.settings.auto:
            self.tasks.run(task)
        return task

    def _new_id(self) -> str:
        # Random even with a seed: a client's journal may outlive the sandbox that it talked to.
        name = uuid.uuid4().hex
        return f"mj_task_{name[:12]}" if self.settings.shape == "documented" else name

    def look(self, task_id: str) -> dict[str, object]:
        """Give record-info's data; raises the refusal of the service."""
        if not task_id:
            raise Refused(_wire.BAD_REQUEST, "taskId parameter is required")
        task = self.tasks.find(task_id)
        if task is None:
            raise Refused(_wire.UNPROCESSABLE, _wire.RECORD_IS_NULL)
        return self.records.record(task)

    def end(self, task_id: str, failure: Failure | None) -> None:
        """End a task now; ValueError if it has ended the other way."""
        task = self.task(task_id)
        if task.is_final and (task.failure is None) is not (failure is None):
            message = f"task {task_id} has already ended: {self.state_of(task)}"
            raise ValueError(message)
        self.tasks.end(task, failure)

    def task(self, task_id: str) -> Task:
        """Give a task; KeyError for an id that this sandbox never gave out."""
        task = self.tasks.find(task_id)
        if task is None:
            message = f"no task {task_id!r} in this sandbox"
            raise KeyError(message)
        return task

    def state_of(self, task: Task) -> str:
        """Give the record as JSON, for messages."""
        return json.dumps(self.records.record(task), ensure_ascii=False)


def label_of(key: str) -> str:
    """Give a label of an API key: the same for the same key, and not the key."""
    return "key-" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _call(operation: str, task: Task, body: Mapping[str, object]) -> Call:
    return Call(operation, "POST", task.order.path, task.id, body)
