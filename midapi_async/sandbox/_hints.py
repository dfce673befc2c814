"""What a prompt may ask of the sandbox, for people who develop bots against it.

``[[sandbox: fail]]``, ``[[sandbox: fail=nsfw content; flag=2; code=501]]``,
``[[sandbox: seconds=3]]``, ``[[sandbox: never]]``: words parted by semicolons. The prefix
keeps it from happening by accident. A word that is not known is refused with code 422, since
a typo that did nothing would cost its writer an evening.
"""

import re
from typing import Final

from attrs import evolve, frozen

from midapi_async.sandbox import _wire
from midapi_async.sandbox._envelope import Refused

_HINT: Final = re.compile(r"\[\[sandbox:([^\]]*)\]\]")
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_CODE: Final = re.compile(r"[0-9]{1,6}")


@frozen
class Failure:
    """How a task fails: ``message`` and ``code`` of the record, ``flag`` 2 or 3."""

    message: str | None = _wire.NO_RESPONSE
    code: int | str | None = 500
    flag: int = _wire.GENERATION_FAILED

    def __attrs_post_init__(self) -> None:
        """Refuse a flag that would not be a failure."""
        if self.flag not in (_wire.FAILED, _wire.GENERATION_FAILED):
            message = f"flag must be 2 or 3, not {self.flag!r}"
            raise ValueError(message)


@frozen
class Outcome:
    """What becomes of a task: after ``seconds`` (None: never) a success, or ``failure``."""

    seconds: float | None
    failure: Failure | None = None

    def failing(self) -> Failure:
        """Give the failure so far, or the usual one."""
        return self.failure or Failure()


def read_hints(prompt: str, outcome: Outcome) -> Outcome:
    """Give the outcome as the prompt's hints change it.

    Raises a 422 refusal that names the word for a hint that is not known.
    """
    for hint in _HINT.finditer(prompt):
        for word in hint[1].split(";"):
            name, _, value = word.partition("=")
            outcome = _obey(name.strip(), value.strip(), outcome)
    return outcome


def _obey(name: str, value: str, outcome: Outcome) -> Outcome:
    if name == "fail":
        failure = outcome.failing()
        return evolve(outcome, failure=evolve(failure, message=value or failure.message))
    if name == "flag" and value in ("2", "3"):
        return evolve(outcome, failure=evolve(outcome.failing(), flag=int(value)))
    if name == "code" and _CODE.fullmatch(value):
        return evolve(outcome, failure=evolve(outcome.failing(), code=int(value)))
    if name == "seconds" and _NUMBER.fullmatch(value):
        return evolve(outcome, seconds=float(value))
    if name == "never" and not value:
        return evolve(outcome, seconds=None)
    raise Refused(
        _wire.UNPROCESSABLE,
        f"prompt: {name!r} is no hint of the sandbox that way; "
        "it knows fail, fail=TEXT, flag=2, flag=3, code=N, seconds=N, never",
    )
