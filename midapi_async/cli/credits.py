"""``midapi credits``: what the account has left."""

from __future__ import annotations

from midapi_async import MemoryJournal, MidAPIClient

from ._terminal import out, out_json
from ._work import Output, run_async

_OUTPUT = Output()


def credits_left(*, output: Output = _OUTPUT) -> int:
    """Print the credits that the account has left. This costs nothing."""
    return run_async(_carry_out(output), output)


async def _carry_out(output: Output) -> None:
    async with MidAPIClient(journal=MemoryJournal()) as client:
        left = await client.credits()
    if output.as_json:
        out_json({"credits": left})
    else:
        out(amount(left))


def amount(credit: float) -> str:
    """Credits for people: without a fraction where there is none."""
    return f"{credit:.2f}".removesuffix(".00")
