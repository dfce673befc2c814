"""The short form of what `nox -s load` measures: the same senders, fewer, and no absolute times."""

import pytest

from midapi_async.callbacks.http import server
from tests.callbacks import load

MOST = 200
SENDERS = 300


@pytest.mark.one_python
@pytest.mark.real_time
@pytest.mark.fault("C14")
async def test_good_callbacks_among_slow_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than the server holds: none is refused, none is kept, good ones are all 200."""
    monkeypatch.setattr(server, "MOST_CONNECTIONS", MOST)
    for state in ("receiving", "idle"):
        monkeypatch.setitem(server.SECONDS, state, 2.0)
    held = await load.hold(SENDERS, seconds=2, rate=20, rest=1.0)
    assert {*held.statuses} == {"200"}
    assert held.statuses["200"] >= 20
    assert max(held.pulse.connections) <= MOST
    assert held.slow["refused"] == 0
    connected = held.slow["connections"]
    assert isinstance(connected, int)
    assert connected > SENDERS  # they were cut, and came again
