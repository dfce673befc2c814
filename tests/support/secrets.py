"""The secrets that the tests use, and how to find one where it must not be (I5)."""

import re
import traceback
from pathlib import Path
from types import CodeType

import midapi_async

API_KEY = "test-api-key-5b1f0c9e7d"
WEBHOOK_KEY = "test-webhook-key"  # of the wire document's test vector
TOKEN = re.compile(r"mjt_[A-Za-z0-9_-]{20,}")

_known = {API_KEY, WEBHOOK_KEY}


def known(secret: str) -> str:
    """Return a further secret, which from now on must show nowhere either."""
    _known.add(secret)
    return secret


def found_in(text: str) -> list[str]:
    """Return every secret that the text shows."""
    return sorted(secret for secret in _known if secret in text) + TOKEN.findall(text)


def assert_none_in(*values: object) -> None:
    """Fail if the `str` or the `repr` of a value shows a secret."""
    for value in values:
        for text in (str(value), repr(value)):
            assert not found_in(text), f"a {type(value).__name__} shows {found_in(text)}: {text}"


# The tests and the sandbox, which is a server, know secrets; their local variables are not ours.
_NOT_OURS = (
    str(Path(__file__).parents[1]),
    str(Path(midapi_async.__file__).parent / "sandbox"),
)
# Pure functions get MidAPI's answers, with our callback URL. Their callers clear what they leave.
_PURE = tuple(f"/_wire/{name}.py" for name in ("bodies", "json", "protocol", "records"))
_checked: set[tuple[object, ...]] = set()


def found_in_locals(error: BaseException, *, again: bool = True) -> list[str]:
    """Return each local variable of an error's traceback that shows a secret; causes included.

    Args:
        error: the error, with its traceback.
        again: whether to look at an error that came along the same lines as an earlier one.
    """
    found, frames, errors = [], [], [error]
    for each in errors:  # grows meanwhile
        more = [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
        errors += [other for other in more if other is not None and other not in errors]
        frames += [frame for frame, _ in traceback.walk_tb(each.__traceback__)]
    names: list[tuple[type, ...] | tuple[CodeType, int]]
    names = [tuple(map(type, errors)), *((each.f_code, each.f_lasti) for each in frames)]
    if tuple(names) in _checked and not again:
        return []
    _checked.add(tuple(names))
    files = [frame.f_code.co_filename for frame in frames]
    entry = next((file for file in files if not file.startswith(_NOT_OURS)), "")
    if entry.endswith(_PURE):
        return []
    for frame in frames:
        if frame.f_code.co_filename.startswith(_NOT_OURS):
            continue
        for name, value in frame.f_locals.items():
            if found_in(shown := _shown(value)):
                where = f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}"
                found.append(f"{name} in {where}: {shown:.200}")
    return found


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - an object that is not made whole yet
        return ""
