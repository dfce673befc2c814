"""Keys and tokens do not show where a program prints its values or the variables of a traceback."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Never, Self, SupportsIndex, TypeVar, cast

T = TypeVar("T")


class Secret(str):
    """A string that shows as ``***``, in containers as well; only `str` and f-strings show it.

    It is a `str`, so that it can be used as a header, in JSON and in a URL. It cannot be pickled.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "***"

    def __getitem__(self, index: SupportsIndex | slice) -> Secret:
        return Secret(super().__getitem__(index))  # programs that print long strings cut them first

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __reduce__(self) -> Never:
        raise TypeError(
            "a secret cannot be pickled; give the other process its environment variable, or make "
            "the object there"
        )


def hidden(value: T) -> T:
    """The value, as a `Secret` if it is a string: for an argument that may be a secret."""
    return cast("T", Secret(value)) if isinstance(value, str) else value


_PACKAGE = str(Path(__file__).parents[1])
_CAN_BE_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def clear_locals(error: BaseException) -> None:
    """Forget the local variables of our functions in an error's traceback, and in its causes'.

    For functions that read MidAPI's answers, which contain our callback URL: log handlers and error
    trackers can render local variables. Functions that still run keep theirs. So do coroutines:
    they may be suspended, and before Python 3.13 this would close them.
    """
    errors: list[BaseException | None] = [error]
    for each in errors:  # grows meanwhile
        if each is None:
            continue
        errors += [other for other in (each.__cause__, each.__context__) if other not in errors]
        for frame, _ in traceback.walk_tb(each.__traceback__):
            code = frame.f_code
            if code.co_filename.startswith(_PACKAGE) and not code.co_flags & _CAN_BE_SUSPENDED:
                with suppress(RuntimeError):
                    frame.clear()


@contextmanager
def clearing_locals() -> Iterator[None]:
    """Call `clear_locals` with an error that the block raises."""
    try:
        yield
    except Exception as error:
        clear_locals(error)
        raise
