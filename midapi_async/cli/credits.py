"""``midapi credits``: the credits that the account has left."""

from __future__ import annotations

from midapi_async import MemoryJournal, MidAPIClient

from ._common import Output, run_async
from ._options import Connection
from ._terminal import out, out_json

_CONNECTION, _OUTPUT = Connection(), Output()


def credits_left(*, connection: Connection = _CONNECTION, output: Output = _OUTPUT) -> int:
    """Print the credits that the account has left. This costs nothing."""
    return run_async(_carry_out(connection, output), output)


async def _carry_out(connection: Connection, output: Output) -> None:
    async with MidAPIClient(journal=MemoryJournal(), proxy=connection.proxy) as client:
        left = await client.credits()
    if output.as_json:
        out_json({"credits": left})
    else:
        out(amount(left))


def amount(credit: float) -> str:
    """Credits for people: two digits of a fraction, none for a whole number."""
    return f"{credit:.2f}".removesuffix(".00")
