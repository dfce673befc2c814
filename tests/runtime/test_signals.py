"""At SIGTERM nothing more is bought, and what is under way is not lost."""

import asyncio
import itertools
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from midapi_async import State
from midapi_async._runtime.signals import before_signals
from midapi_async.journal.sqlite import SQLiteJournal
from tests.support.scripted import Received, ScriptedServer, Step, delay
from tests.support.secrets import API_KEY
from tests.world import accepted, looked, mid, submits

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, sys
from midapi_async import MidAPIClient, RateLimit

async def main(url, folder):
    limit = RateLimit(20, per=600)
    async with MidAPIClient("{key}", base_url=url, journal=folder, rate_limit=limit) as client:
        with client.stop_on_signals():
            orders = [asyncio.create_task(client.generate_and_wait(f"fox {n}")) for n in range(100)]
            ends = await asyncio.gather(*orders, return_exceptions=True)
            print(sorted({type(end).__name__ for end in ends}))
            await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.fault("L16")
@pytest.mark.real_time
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_with_a_hundred_orders_at_the_gate(
    tmp_path: Path, number: signal.Signals
) -> None:
    """20 POSTs are under way: their answers are kept, no other is sent, and the process ends."""
    folder = tmp_path / "journal"
    ids = itertools.count()

    def submit(_: Received) -> Step:
        return delay(accepted(f"{next(ids):032x}"), 1.0)

    async with ScriptedServer(then=mid(submit, looked(flag=0))) as server:
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM.replace("{key}", API_KEY), server.url, str(folder)),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await server.arrived(20)
        program.send_signal(number)
        _, errors = await asyncio.wait_for(program.communicate(), 30)
        assert len(submits(server)) == 20
        if number is signal.SIGTERM:
            assert program.returncode == 128 + number
            assert errors == b""
    journal = SQLiteJournal(folder)
    states = [row.state for row in await journal.rows()]
    assert states == [State.ACCEPTED] * 20
    await journal.aclose()


async def test_the_previous_handler_runs_after_us() -> None:
    """As uvicorn's does; and it is there again behind the block."""
    calls: list[str] = []

    def previous(*_: object) -> None:
        calls.append("previous")

    before = signal.signal(signal.SIGTERM, previous)
    try:
        with before_signals(lambda: calls.append("ours")):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.1)
        assert sorted(calls) == ["ours", "previous"]
        assert signal.getsignal(signal.SIGTERM) is previous
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_handler_of_the_loop_runs_too() -> None:
    """`loop.add_signal_handler` leaves a handler behind that does nothing by itself."""
    calls: list[str] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, calls.append, "loop")
    try:
        with before_signals(lambda: calls.append("ours")):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.1)
        assert sorted(calls) == ["loop", "ours"]
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_a_signal_that_is_ignored_only_calls_us() -> None:
    """As after `nohup`: the process goes on."""
    calls: list[str] = []
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with before_signals(lambda: calls.append("ours")):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.1)
        assert calls == ["ours"]
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_another_thread_gets_no_signals() -> None:
    """There it does nothing, as in the threads of test clients."""
    before = signal.getsignal(signal.SIGTERM)

    async def block() -> None:
        with before_signals(lambda: None):
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=asyncio.run, args=[block()])
    thread.start()
    await asyncio.to_thread(thread.join)
    assert signal.getsignal(signal.SIGTERM) is before
