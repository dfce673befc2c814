"""Decides which faults strike, for one sandbox."""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import final
from weakref import WeakKeyDictionary

from attrs import field, frozen

from midapi_async.sandbox._actions import CallbackAction, RequestAction, TaskAction
from midapi_async.sandbox._delivery import Delivery
from midapi_async.sandbox._hints import Outcome
from midapi_async.sandbox.faults import Call, Faults, Rule


@frozen(eq=False)
class _Memory:
    """What one rule has seen: how many, and its own chance."""

    chance: Random
    counts: Counter[str | None] = field(factory=Counter)


@final
class Director:
    """Counts for every rule of a plan and picks the actions."""

    def __init__(self, faults: Faults, seed: int, now: Callable[[], float]) -> None:
        """Follow a plan, by the sandbox's clock; equal seeds and requests strike alike."""
        self._faults = faults
        self._now = now
        self._begun: float | None = None
        self._seed = seed
        self._made = 0
        self._memories: WeakKeyDictionary[Rule, _Memory] = WeakKeyDictionary()

    def wants_body(self, operation: str) -> bool:
        """Say whether a rule will look at the body of such a request."""
        rules = self._faults.rules
        return any(rule.operation == operation and rule.when is not None for rule in rules)

    def request(self, call: Call) -> RequestAction | None:
        """Give the action for a request, or None for the truth."""
        # Every rule counts, also those behind the one that strikes.
        actions = [a for rule in self._striking(call) for a in rule.actions]
        return next((a for a in actions if isinstance(a, RequestAction)), None)

    def outcome(self, call: Call, outcome: Outcome) -> Outcome:
        """Give what becomes of a task that has just been accepted."""
        if self._begun is None:
            self._begun = self._now()
        for rule in self._striking(call):
            for action in rule.actions:
                if isinstance(action, TaskAction):
                    outcome = action.change(outcome)
        return outcome

    def delivery(self, call: Call) -> Delivery:
        """Give how the callback of a task that has just been accepted is sent."""
        delivery = Delivery()
        for rule in self._striking(call):
            for action in rule.actions:
                if isinstance(action, CallbackAction):
                    delivery = action.change(delivery)
        return delivery

    def _striking(self, call: Call) -> list[Rule]:
        return [rule for rule in self._faults.rules if self._strikes(rule, call)]

    def _strikes(self, rule: Rule, call: Call) -> bool:
        if rule.operation != call.operation or rule.task not in (None, call.task_id):
            return False
        if rule.when is not None and not rule.when(call):
            return False
        if rule.during is not None:
            since = -1.0 if self._begun is None else self._now() - self._begun
            if not rule.during[0] <= since < rule.during[1]:
                return False
        memory = self._memory(rule)
        key = call.task_id if rule.per_task else None
        memory.counts[key] += 1
        if rule.nth is not None and memory.counts[key] not in rule.nth:
            return False
        return rule.chance is None or memory.chance.random() < rule.chance

    def _memory(self, rule: Rule) -> _Memory:
        memory = self._memories.get(rule)
        if memory is None:
            chance = Random(f"{self._seed}/rule {self._made}")
            memory = self._memories[rule] = _Memory(chance)
            self._made += 1
        return memory
