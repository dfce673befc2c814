"""Keys and tokens do not show where a program prints its values or the variables of a traceback."""

from __future__ import annotations

import traceback
from typing import Never, Self, SupportsIndex


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


def hidden(value: object) -> object:
    """The value; as a `Secret` if it is a string."""
    return Secret(value) if isinstance(value, str) else value


def clear_locals(error: BaseException) -> None:
    """Forget the local variables in an error's traceback, and in those of its causes.

    For functions that had to do with a secret: log handlers and error trackers can render local
    variables. Functions that still run keep theirs.
    """
    errors: list[BaseException | None] = [error]
    seen: set[int] = set()
    while errors:
        each = errors.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            errors += [each.__cause__, each.__context__]
