"""Plans of what goes wrong, a readable line each.

    from midapi_async.sandbox import Faults, Sandbox, answer_status, lose_answer, variant

    plan = (
        Faults()
        .on("submit", nth=2, do=lose_answer())            # the second is paid for, unanswered
        .on("submit", nth=range(5, 8), do=answer_status(429, retry_after="7"))
        .on("look", first=3, per="task", do=answer_code(422))    # each task too new at first
        .on("look", chance=0.1, do=variant("flag_missing"))
        .on("file", task=task_id, do=cut(1000, declared=False))
        .on("callback", do=[duplicate(3), wrong_signature()])
    )
    async with Sandbox(faults=plan) as sandbox: ...

An action on a request is given to the first rule that fits it. Those on tasks and callbacks
add up: every rule that fits changes the outcome or the delivery further. A rule counts all
that it could have meant, whether or not another rule went first, so that ``nth=2`` is always
the second.

Seconds are the sandbox's: its ``time_scale`` divides them. ``accepted`` says whether the
request is handled before the fault strikes; for a submit that is whether it costs money.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Self, final

from attrs import evolve, field, frozen

from midapi_async.sandbox import _wire
from midapi_async.sandbox._actions import (
    JSON_REQUESTS,
    OPERATIONS,
    RAW_STATUS_LINE,
    Action,
    Answer,
    CallbackAction,
    ChangeCallback,
    ChangeTask,
    Close,
    Cut,
    Delay,
    Drip,
    Garbage,
    Hang,
    Huge,
    OtherContent,
    Raw,
    Redirect,
    RequestAction,
    Reset,
    Rewrite,
    TaskAction,
)
from midapi_async.sandbox._garbage import GARBAGE
from midapi_async.sandbox._hints import Failure
from midapi_async.sandbox._variants import BAD_TASK_IDS, VARIANTS

__all__ = [
    "BAD_TASK_IDS",
    "GARBAGE",
    "OPERATIONS",
    "VARIANTS",
    "Action",
    "Call",
    "CallbackAction",
    "Faults",
    "RequestAction",
    "Rule",
    "TaskAction",
    "acknowledge_first",
    "answer_code",
    "answer_status",
    "bad_task_id",
    "change_urls",
    "cut",
    "delay",
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
    "take",
    "variant",
    "wrong_signature",
]


@frozen
class Call:
    """What a rule may look at."""

    operation: str
    """One of `OPERATIONS`."""
    method: str
    """The HTTP method."""
    path: str
    """The path that was asked; for a task or a callback that of its submit."""
    task_id: str | None
    """The task, where the request names one in its query or path."""
    body: Mapping[str, object] = field(factory=dict)
    """A submit's JSON body, also for its task and its callback; empty for the others."""


@final
@frozen(eq=False)
class Rule:
    """When to do what; made by `Faults.on`."""

    operation: str
    """One of `OPERATIONS`."""
    actions: tuple[Action, ...]
    """What is done: one action on a request, one or more on a task or a callback."""
    nth: frozenset[int] | range | None = None
    """Which of them, counted from 1; None for all."""
    per_task: bool = False
    """Whether each task is counted by itself."""
    task: str | None = None
    """The only task id that it is for; None for any."""
    chance: float | None = None
    """How often it is done, 0 to 1; None for always."""
    when: Callable[[Call], bool] | None = None
    """Says whether it is done; None for always."""
    during: tuple[float, float] | None = None
    """From when to when, in seconds since the first accepted submit; None for always."""


@final
class Faults:
    """A plan: rules in the order in which they were added.

    Rules may be added while a sandbox runs; they count from then on. One plan may serve
    several sandboxes, each of which counts for itself.
    """

    def __init__(self) -> None:
        """Plan nothing yet."""
        self._rules: tuple[Rule, ...] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules so far."""
        return self._rules

    def clear(self) -> None:
        """Remove all rules; requests that are under way go on."""
        self._rules = ()

    def on(
        self,
        operation: str,
        *,
        do: Action | Iterable[Action],
        nth: int | Iterable[int] | None = None,
        first: int | None = None,
        per: Literal["task"] | None = None,
        task: str | None = None,
        chance: float | None = None,
        when: Callable[[Call], bool] | None = None,
        during: tuple[float, float] | None = None,
    ) -> Self:
        """Add a rule and return the plan, so that calls can be chained.

        Args:
            operation: "submit", "look", "credit", "download_url", "upload" or "file" for a
                request; "task" for what becomes of an accepted task; "callback" for how its
                callback is sent.
            do: one action; several for tasks and callbacks.
            nth: which of them, counted from 1: a number, a range or a set; all if None.
            first: how many of the first requests; short for ``nth=range(1, first + 1)``.
            per: "task" counts separately for each task.
            task: only requests that name this task id.
            chance: the probability, 0 to 1, from the sandbox's seed.
            when: a function that returns whether the rule applies.
            during: only between these two times, in seconds from the moment when
                the first submit was accepted.

        Raises:
            ValueError: for an operation that is not known (with the choices), an action
                that does not fit the operation, or a number that cannot be meant.
        """
        actions = (do,) if isinstance(do, Action) else tuple(do)
        _check_operation(operation, actions)
        _check_limits(per, chance, during)
        numbers = _numbers(nth, first)
        rule = Rule(operation, actions, numbers, per == "task", task, chance, when, during)
        self._rules = (*self._rules, rule)
        return self

    def outage(self, seconds: float, *, after: float = 0.0) -> Self:
        """Answer everything but files with a page and status 503 for some seconds.

        It begins ``after`` seconds after the first submit was accepted, whose answer still gets
        through: so it meets a client that waits for a task.

        Args:
            seconds: how long it lasts.
            after: when it begins.

        Raises:
            ValueError: for a number that cannot be meant.
        """
        _at_least("seconds", seconds, 0.001)
        _at_least("after", after, 0)
        for operation in JSON_REQUESTS:
            action = answer_status(503, page=True)
            self.on(operation, do=action, during=(after, after + seconds))
        return self


def _check_operation(operation: str, actions: tuple[Action, ...]) -> None:
    if operation not in OPERATIONS:
        message = f"unknown operation {operation!r}; choose from {', '.join(OPERATIONS)}"
        raise ValueError(message)
    if not actions:
        message = f"a rule on {operation} needs something to do"
        raise ValueError(message)
    for action in actions:
        if operation not in action.operations:
            choices = ", ".join(action.operations)
            message = f"{action!r} makes no sense for {operation}; only for {choices}"
            raise ValueError(message)
        if isinstance(action, RequestAction) and len(actions) > 1:
            message = f"a request gets one action, not {len(actions)}"
            raise ValueError(message)


def _check_limits(
    per: str | None, chance: float | None, during: tuple[float, float] | None
) -> None:
    if chance is not None and not 0 <= chance <= 1:
        message = f"chance must be between 0 and 1, not {chance!r}"
        raise ValueError(message)
    if per not in (None, "task"):
        message = f"per must be 'task' or None, not {per!r}"
        raise ValueError(message)
    if during is not None and not 0 <= during[0] < during[1]:
        message = f"during must be two times, the later one second, not {during!r}"
        raise ValueError(message)


def _numbers(nth: int | Iterable[int] | None, first: int | None) -> frozenset[int] | range | None:
    if nth is not None and first is not None:
        message = "say either nth or first"
        raise ValueError(message)
    if first is not None:
        nth = range(1, first + 1)
    if nth is None:
        return None
    numbers = nth if isinstance(nth, range) else frozenset((nth,) if isinstance(nth, int) else nth)
    # A range may be as long as it likes: only its ends are looked at.
    ends = [numbers[0], numbers[-1]] if isinstance(numbers, range) and numbers else numbers
    if not numbers or min(ends) < 1:
        message = f"nth and first count from 1, not {nth!r}"
        raise ValueError(message)
    return numbers


def _one_of(what: str, name: str, choices: Iterable[str]) -> str:
    if name not in (known := tuple(choices)):
        message = f"unknown {what} {name!r}; choose from {', '.join(known)}"
        raise ValueError(message)
    return name


def _at_least(what: str, value: float, least: float) -> None:
    if not value >= least:
        message = f"{what} must be at least {least}, not {value!r}"
        raise ValueError(message)


# ------------------------------------------------------------------- the connection


def lose_answer() -> RequestAction:
    """Accept the request and close the connection without an answer."""
    return Close(accepted=True)


def refuse_connection() -> RequestAction:
    """Close the connection without an answer; nothing was accepted."""
    return Close(accepted=False)


def reset(*, accepted: bool = True) -> RequestAction:
    """Reset the connection (RST): after all was done, or before the body is read."""
    return Reset(accepted=accepted)


def hang(*, accepted: bool = True) -> RequestAction:
    """Never answer; the connection stays open until the sandbox closes."""
    return Hang(accepted=accepted)


def delay(seconds: float) -> RequestAction:
    """Handle the request at once and answer ``seconds`` later."""
    _at_least("seconds", seconds, 0)
    return Delay(seconds)


def cut(after: int, *, declared: bool = True) -> RequestAction:
    """Close the connection when ``after`` bytes of the body were sent.

    ``declared`` claims the whole length in Content-Length; without it no length is claimed,
    and the answer ends as if it were whole.
    """
    _at_least("after", after, 0)
    return Cut(after, declared)


def drip(*, piece: int = 1, seconds: float = 1.0) -> RequestAction:
    """Send ``piece`` bytes of the body every ``seconds``."""
    _at_least("piece", piece, 1)
    _at_least("seconds", seconds, 0)
    return Drip(piece, seconds)


def raw_answer(data: bytes, *, accepted: bool = True) -> RequestAction:
    """Write these bytes, status line and all, and close the connection."""
    return Raw(data, accepted)


# ----------------------------------------------------------------------- the answer


def garbage(kind: str, *, accepted: bool = True) -> RequestAction:
    """Answer 200 with a body of this ``kind``: one of `GARBAGE`, or "status_line".

    Raises:
        ValueError: for a kind that is not known, with the choices.
    """
    if _one_of("garbage", kind, (*GARBAGE, "status_line")) == "status_line":
        return Raw(RAW_STATUS_LINE, accepted)
    return Garbage(kind, accepted)


def answer_code(code: int, msg: str | None = None, *, accepted: bool = False) -> RequestAction:
    """Answer HTTP 200 with this ``code`` in the envelope; ``msg`` None takes its usual text."""
    return Answer(code, msg, _wire.OK, accepted=accepted)


def answer_status(
    status: int,
    msg: str | None = None,
    *,
    retry_after: str | None = None,
    page: bool = False,
    accepted: bool = False,
) -> RequestAction:
    """Answer this as the real HTTP status, and as the envelope's code.

    Args:
        status: 200 to 599.
        msg: the envelope's text; None takes the code's usual one.
        retry_after: the value of a Retry-After header, whatever it says.
        page: an HTML page in place of the envelope, as a proxy would send.
        accepted: whether the request is handled first.
    """
    if status not in range(200, 600):
        message = f"status must be between 200 and 599, not {status!r}"
        raise ValueError(message)
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Answer(status, msg, status, headers, page, accepted)


def no_credits_as_500() -> RequestAction:
    """Answer the text of insufficient credits with code 500, as was seen once."""
    return Answer(_wire.SERVER_ERROR, _wire.TEXTS[_wire.NO_CREDITS], _wire.OK)


def redirect(status: int = 307, to: str | None = None, *, accepted: bool = False) -> RequestAction:
    """Redirect to the URL ``to``; None is the same place once more."""
    if status not in range(300, 400):
        message = f"status must be between 300 and 399, not {status!r}"
        raise ValueError(message)
    return Redirect(status, to, accepted)


def variant(name: str) -> RequestAction:
    """Give the right answer in another form that was seen: ``name`` is one of `VARIANTS`.

    Raises:
        ValueError: for a name that is not known, with the choices.
    """
    return Rewrite(VARIANTS[_one_of("variant", name, VARIANTS)])


def bad_task_id(kind: str) -> RequestAction:
    """Accept the submission and answer with a bad task id: ``kind`` is one of `BAD_TASK_IDS`.

    Raises:
        ValueError: for a kind that is not known, with the choices.
    """
    return Rewrite(BAD_TASK_IDS[_one_of("task id", kind, BAD_TASK_IDS)])


def rewrite(edit: Callable[[dict[str, object]], dict[str, object]]) -> RequestAction:
    """Answer a success with the envelope as ``edit`` changes it."""
    return Rewrite(edit)


# -------------------------------------------------------------------------- files


def gone(status: int = 404) -> RequestAction:
    """Answer 404, 403 or 410 instead of the file."""
    return answer_status(status, "The file is gone")


def other_content(content_type: str, body: bytes) -> RequestAction:
    """Answer with this content instead of the file."""
    return OtherContent(content_type, body)


def huge(size: int = 10_000_000_000, *, declared: bool = True) -> RequestAction:
    """Send zeros after the end of the file, up to ``size`` bytes in total."""
    _at_least("size", size, 1)
    return Huge(size, declared)


# -------------------------------------------------------------------------- tasks


def fail_task(
    message: str | None = _wire.NO_RESPONSE, *, code: int | str | None = 500, flag: int = 3
) -> TaskAction:
    """Let the task fail with this errorMessage, errorCode and successFlag (2 or 3).

    Args:
        message: the record's errorMessage.
        code: the record's errorCode.
        flag: the record's successFlag, 2 or 3.
    """
    failure = Failure(message, code, flag)
    return ChangeTask("fail_task", lambda outcome: evolve(outcome, failure=failure))


def take(seconds: float) -> TaskAction:
    """Let the task take this many ``seconds``."""
    _at_least("seconds", seconds, 0)
    return ChangeTask("take", lambda outcome: evolve(outcome, seconds=seconds))


def never_end() -> TaskAction:
    """Let the task go on for ever."""
    return ChangeTask("never_end", lambda outcome: evolve(outcome, seconds=None))


# ---------------------------------------------------------------------- callbacks


def acknowledge_first() -> CallbackAction:
    """Send a callback with only taskId and promptJson as soon as the task is accepted."""
    return ChangeCallback("acknowledge_first", lambda delivery: evolve(delivery, acknowledge=True))


def duplicate(times: int = 2) -> CallbackAction:
    """Send the callback several times at once."""
    _at_least("times", times, 1)
    return ChangeCallback("duplicate", lambda delivery: evolve(delivery, times=times))


def early() -> CallbackAction:
    """End the task and send its callback before the submit is answered."""
    return ChangeCallback("early", lambda delivery: evolve(delivery, early=True))


def late(seconds: float) -> CallbackAction:
    """Send the callback this many ``seconds`` after the end of the task."""
    _at_least("seconds", seconds, 0)
    return ChangeCallback("late", lambda delivery: evolve(delivery, seconds=seconds))


def never_call_back() -> CallbackAction:
    """Send no callback at all."""
    return ChangeCallback("never_call_back", lambda delivery: evolve(delivery, never=True))


def fail_callback() -> CallbackAction:
    """Say in the callback that the task failed, whatever its record says."""
    return ChangeCallback("fail_callback", lambda delivery: evolve(delivery, failed=True))


def like_record() -> CallbackAction:
    """Send a callback that looks like record-info, as a video extension's does."""
    return ChangeCallback("like_record", lambda delivery: evolve(delivery, like_record=True))


def wrong_signature() -> CallbackAction:
    """Sign the callback with another key; needs a sandbox with a webhook_key."""
    return ChangeCallback(
        "wrong_signature", lambda delivery: evolve(delivery, wrong_signature=True)
    )


def old_timestamp(seconds: float = 3600.0) -> CallbackAction:
    """Sign the callback with an older timestamp, in real seconds; negative is in the future."""
    return ChangeCallback("old_timestamp", lambda delivery: evolve(delivery, age=seconds))


def change_urls(*urls: str) -> CallbackAction:
    """Send these URLs in place of the record's."""
    return ChangeCallback("change_urls", lambda delivery: evolve(delivery, urls=urls))
