"""Rules of `Faults` written as text, for command lines: ``submit lose_answer nth=2``."""

import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from inspect import Parameter
from typing import Any, Final, get_args

from midapi_async.sandbox import faults as library
from midapi_async.sandbox._actions import OPERATIONS, REQUESTS
from midapi_async.sandbox._wire import NO_RESPONSE
from midapi_async.sandbox.faults import Action, CallbackAction, Faults, RequestAction, TaskAction

_BOOLS: Final = {"yes": True, "no": False}
# What each operation can do, by the type of action that it takes.
_KINDS: Final[Mapping[str, type[Action]]] = {
    **dict.fromkeys(REQUESTS, RequestAction),
    "task": TaskAction,
    "callback": CallbackAction,
}
_LIMITS: Final = (
    ("nth=N", "only the Nth; also nth=1,4 and nth=2-5"),
    ("first=N", "only the first N"),
    ("per=task", "count for each task by itself"),
    ("task=ID", "only those of this task"),
    ("chance=P", "only so often, 0 to 1, by the sandbox's seed"),
    ("during=A-B", "only from A to B seconds after the first accepted submit"),
)


def add_fault(faults: Faults, line: str) -> None:
    """Add the rule that a line of text describes.

    Args:
        faults: the plan to add it to.
        line: an operation, an action, its arguments, and limits, in the words of `Faults.on` and
            of the actions' functions: ``look answer_status 503 page=yes chance=0.1``. What has
            blanks in it is put in quotes.

    Raises:
        ValueError: for a line that cannot be meant; the text says what could be.
    """
    operation, name, *words = [*shlex.split(line), "", ""]
    if operation not in OPERATIONS:
        message = f"unknown operation {operation!r}; choose from {', '.join(OPERATIONS)}"
        raise ValueError(message)
    actions = dict(_actions(_KINDS[operation]))
    if name not in actions:
        message = f"unknown action {name!r} for {operation}; choose from {', '.join(actions)}"
        raise ValueError(message)
    make = actions[name]
    parameters = inspect.signature(make).parameters
    plain, named, limits = list[str](), dict[str, str](), dict[str, Any]()
    for word in words[:-2]:
        option, sign, text = word.partition("=")
        if sign and option in _READERS:
            limits[option] = _READERS[option](option, text)
        elif sign and option in parameters:
            named[option] = text
        else:
            plain.append(word)
    faults.on(operation, do=_made(name, make, plain, named), **limits)


def describe_faults() -> str:
    """Give a text for people on all that `add_fault` understands."""
    lines = ["OPERATION ACTION [ARGUMENTS] [LIMITS], as in:"]
    lines += ['  "submit lose_answer nth=2"', '  "look answer_status 503 page=yes chance=0.1"']
    lines += ["", "Seconds are divided by the time scale.", "", "Limits:"]
    lines += [f"  {limit:<13} {text}" for limit, text in _LIMITS]
    for operations, kind in (
        (", ".join(REQUESTS), RequestAction),
        ("task", TaskAction),
        ("callback", CallbackAction),
    ):
        lines += ["", f"What {operations} can do:"]
        for name, make in _actions(kind):
            lines += [f"  {_usage(name, make)}", *_wrapped(_summary(make))]
    for what, names in (
        ("GARBAGE", (*library.GARBAGE, "status_line")),
        ("VARIANTS", library.VARIANTS),
        ("BAD_TASK_IDS", library.BAD_TASK_IDS),
    ):
        lines += ["", f"{what}:", *_wrapped(", ".join(names))]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 76, initial_indent="      ", subsequent_indent="      ")


def _summary(make: Callable[..., Action]) -> str:
    """Give the first line of a function's docstring, its arguments in the case of `_usage`."""
    parameters = inspect.signature(make).parameters

    def plain(found: re.Match[str]) -> str:
        argument = parameters.get(found[1])
        required = argument is not None and argument.default is Parameter.empty
        return found[1].upper() if required else found[1]

    return re.sub(r"`+(\w+)`+", plain, (inspect.getdoc(make) or "").partition("\n")[0])


def _actions(kind: type[Action]) -> Iterator[tuple[str, Callable[..., Action]]]:
    """Give the functions that make such actions; not `rewrite`, which takes a function."""
    for name in sorted(set(library.__all__) - {"rewrite"}):
        make = getattr(library, name)
        if inspect.isfunction(make) and inspect.signature(make).return_annotation is kind:
            yield name, make


def _usage(name: str, make: Callable[..., Action]) -> str:
    """Give what can be written for an action: ``cut AFTER [declared=yes]``."""
    words = [name]
    for each in inspect.signature(make).parameters.values():
        if each.kind is Parameter.VAR_POSITIONAL:
            words.append(f"{each.name.upper()}…")
        elif each.default is Parameter.empty:
            words.append(each.name.upper())
        else:
            default = {"True": "yes", "False": "no"}.get(str(each.default), each.default)
            words.append(f"[{each.name}={'…' if default in (None, NO_RESPONSE) else default}]")
    return " ".join(words)


def _made(
    name: str, make: Callable[..., Action], plain: list[str], named: Mapping[str, str]
) -> Action:
    """Make the action of its arguments' texts."""
    signature = inspect.signature(make)
    try:
        bound = signature.bind(*plain, **named)
    except TypeError as error:
        message = f"{error}; write: {_usage(name, make)}"
        raise ValueError(message) from None
    for option, text in bound.arguments.items():
        kind = signature.parameters[option].annotation
        bound.arguments[option] = text if isinstance(text, tuple) else _value(option, kind, text)
    return make(*bound.args, **bound.kwargs)


def _value(name: str, annotation: object, text: str) -> Any:  # noqa: ANN401  as annotated
    """Give the value that a text stands for; ValueError that names the argument."""
    kinds = get_args(annotation) or (annotation,)
    if bool in kinds:
        if text not in _BOOLS:
            message = f"{name} must be yes or no, not {text!r}"
            raise ValueError(message)
        return _BOOLS[text]
    if bytes in kinds:
        return text.replace("\\r", "\r").replace("\\n", "\n").encode()
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(text)
    if str in kinds:
        return text
    message = f"{name} must be a number, not {text!r}"
    raise ValueError(message)


def _nth(name: str, text: str) -> frozenset[int] | range:
    first, dash, last = text.partition("-")
    if dash:
        return range(_value(name, int, first), _value(name, int, last) + 1)
    return frozenset(_value(name, int, part) for part in text.split(","))


def _during(name: str, text: str) -> tuple[float, float]:
    first, _, last = text.partition("-")
    return _value(name, float, first), _value(name, float, last)


_READERS: Final[Mapping[str, Callable[[str, str], object]]] = {
    "nth": _nth,
    "first": lambda name, text: _value(name, int, text),
    "per": lambda _, text: text,
    "task": lambda _, text: text,
    "chance": lambda name, text: _value(name, float, text),
    "during": _during,
}
