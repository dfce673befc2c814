"""A local MidAPI for development and tests: no key, no network, no money.

    from midapi_async.sandbox import Faults, Sandbox, lose_answer

    plan = Faults().on("submit", nth=2, do=lose_answer())
    async with Sandbox(time_scale=60, faults=plan) as sandbox:
        print(sandbox.url)

Every program that speaks to MidAPI or kie.ai works against it by a change of its base URL.
For tests there is the pytest fixture `midapi_sandbox`, and `SandboxThread` behind it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midapi_async.sandbox._fault_lines import add_fault, describe_faults
    from midapi_async.sandbox._ledger import Accepted, Asked, CalledBack, Ledger
    from midapi_async.sandbox._sandbox import Sandbox
    from midapi_async.sandbox._serve import run, serve
    from midapi_async.sandbox._thread import SandboxThread
    from midapi_async.sandbox.faults import (
        BAD_TASK_IDS,
        GARBAGE,
        OPERATIONS,
        VARIANTS,
        Action,
        Call,
        CallbackAction,
        Faults,
        RequestAction,
        Rule,
        TaskAction,
        acknowledge_first,
        answer_code,
        answer_status,
        bad_task_id,
        change_urls,
        cut,
        delay,
        drip,
        duplicate,
        early,
        fail_callback,
        fail_task,
        garbage,
        gone,
        hang,
        huge,
        late,
        like_record,
        lose_answer,
        never_call_back,
        never_end,
        no_credits_as_500,
        old_timestamp,
        other_content,
        raw_answer,
        redirect,
        refuse_connection,
        reset,
        rewrite,
        take,
        variant,
        wrong_signature,
    )

__all__ = [
    "BAD_TASK_IDS",
    "GARBAGE",
    "OPERATIONS",
    "VARIANTS",
    "Accepted",
    "Action",
    "Asked",
    "Call",
    "CallbackAction",
    "CalledBack",
    "Faults",
    "Ledger",
    "RequestAction",
    "Rule",
    "Sandbox",
    "SandboxThread",
    "TaskAction",
    "acknowledge_first",
    "add_fault",
    "answer_code",
    "answer_status",
    "bad_task_id",
    "change_urls",
    "cut",
    "delay",
    "describe_faults",
    "drip",
    "duplicate",
    "early",
    "fail_callback",
    "fail_task",
    "garbage",
    "gone",
    "hang",
    "huge",
    "late",
    "like_record",
    "lose_answer",
    "never_call_back",
    "never_end",
    "no_credits_as_500",
    "old_timestamp",
    "other_content",
    "raw_answer",
    "redirect",
    "refuse_connection",
    "reset",
    "rewrite",
    "run",
    "serve",
    "take",
    "variant",
    "wrong_signature",
]

# Whatever is not here is a part of `faults`.
_HOMES = {
    "Accepted": "_ledger",
    "Asked": "_ledger",
    "CalledBack": "_ledger",
    "Ledger": "_ledger",
    "Sandbox": "_sandbox",
    "SandboxThread": "_thread",
    "add_fault": "_fault_lines",
    "describe_faults": "_fault_lines",
    "run": "_serve",
    "serve": "_serve",
}


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for: pytest loads the plugin in here at every start."""
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    home = _HOMES.get(name, "faults")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Give the public names, imported or not."""
    return __all__
