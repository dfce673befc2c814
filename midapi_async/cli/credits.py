"""``midapi credits``: the credits that the account has left."""

from __future__ import annotations

from midapi_async import MemoryJournal, MidAPIClient

from ._common import Output, run_async
from ._options import Service
from ._terminal import out, out_json

_SERVICE, _OUTPUT = Service(), Output()


def credits_left(*, service: Service = _SERVICE, output: Output = _OUTPUT) -> int:
    """Print the credits that the account has left. This costs nothing."""
    return run_async(_carry_out(service, output), output)


async def _carry_out(service: Service, output: Output) -> None:
    async with MidAPIClient(
        service.api_key(),
        base_url=service.base_url,
        journal=MemoryJournal(),
        proxy=service.proxy,
    ) as client:
        left = await client.credits()
    if output.as_json:
        out_json({"credits": left})
    else:
        out(amount(left))


def amount(credit: float) -> str:
    """Credits for people: two digits of a fraction, none for a whole number."""
    return f"{credit:.2f}".removesuffix(".00")
