"""``midapi demo``: the whole way of a picture, step by step."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
from cyclopts import Parameter

from midapi_async import CallbackReceiver, MemoryJournal, MidAPIClient, TextToImage
from midapi_async.config import DEFAULT_BASE_URL

from ._interrupt import find_out
from ._terminal import Pace, out, seconds
from ._work import NAMESPACE, Output, download, make_folder, run_async, time_scale, wait
from .credits import amount

if TYPE_CHECKING:
    from midapi_async import TaskDetails

_TIME_SCALE = 20.0  # a picture of a minute in three seconds
_NEXT = """
What to try next:
  midapi sandbox --time-scale 20    a MidAPI of your own, to develop against
  midapi generate "a blue whale"    four pictures (with MIDAPI_API_KEY set, or against a sandbox)
  midapi --help                     everything else"""
_NEXT_REAL = """  midapi generate upscale {task_id} 0
                                    the first of them, larger; it costs credits, too"""


def demo(
    *,
    folder: Path = Path("midapi-demo"),
    prompt: str = "a red fox in the snow",
    sandbox: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> int:
    """Order a picture, get called back, download it, and say what happens.

    It runs against a sandbox on this machine: no key, no network, no money. With MIDAPI_API_KEY
    set, the same program runs against the real service, and costs credits.

    Args:
        folder: Where the pictures go.
        prompt: What to draw.
        sandbox: Use the sandbox though MIDAPI_API_KEY is set.
    """
    real = not sandbox and (_is_set("MIDAPI_API_KEY") or _is_set("MIDAPI_API_KEY_FILE"))
    make_folder(folder)
    return run_async(_carry_out(prompt, folder, real=real), Output())


def _is_set(name: str) -> bool:
    return bool(os.environ.get(name, "").strip())


@attrs.frozen
class _Stage:
    """Where the demo plays.

    Attributes:
        client: an open client.
        scale: how much faster than life.
    """

    client: MidAPIClient
    scale: float


async def _carry_out(prompt: str, folder: Path, *, real: bool) -> None:
    async with AsyncExitStack() as exits:
        stage = await (_real_stage(exits) if real else _sandbox_stage(exits))
        before = await stage.client.credits()
        out(f"   The account has {amount(before)} credits.")
        details = await _order(stage, prompt)
        await _fetch(stage, details, folder)
        after = await stage.client.credits()
        out(f"   The account has {amount(after)} credits: {amount(before - after)} fewer.")
    _tell_next(details.task_id if real else None)


async def _sandbox_stage(exits: AsyncExitStack) -> _Stage:
    from midapi_async.sandbox import Sandbox

    server = await exits.enter_async_context(Sandbox(time_scale=_TIME_SCALE))
    out(f"1  A local MidAPI serves at {server.url}: no key, no network, no money.")
    out(f"   Its time runs {_TIME_SCALE:g} times as fast as life.")
    if find_spec("PIL") is None:
        out('   Its pictures are plain grey without Pillow: pip install "midapi-async[sandbox]"')
    receiver = CallbackReceiver(None, port=0)
    client = await exits.enter_async_context(
        MidAPIClient(
            "demo",
            base_url=server.url,
            receiver=receiver,
            journal=MemoryJournal(),
            time_scale=_TIME_SCALE,
        )
    )
    out(f"2  A client is open, and takes callbacks at {receiver.url}.")
    return _Stage(client, _TIME_SCALE)


async def _real_stage(exits: AsyncExitStack) -> _Stage:
    receiver = CallbackReceiver.from_env()
    client = MidAPIClient(receiver=receiver, namespace=NAMESPACE)
    server = os.environ.get("MIDAPI_BASE_URL", "").strip() or DEFAULT_BASE_URL
    out(f"1  An API key is set, so this is {server}, and it costs credits.")
    out("   Ctrl-C stops it; midapi demo --sandbox costs nothing.")
    await exits.enter_async_context(client)
    if receiver is None:
        out(
            "2  A client is open. Nobody can call back (MIDAPI_PUBLIC_URL is not set), so it looks."
        )
    else:
        out(f"2  A client is open, and takes callbacks at {receiver.url}.")
    return _Stage(client, time_scale())


async def _order(stage: _Stage, prompt: str) -> TaskDetails:
    """Submit, wait, and say what came."""
    client, request = stage.client, TextToImage(prompt, aspect_ratio="16:9")
    started = time.time()
    try:
        handle = await client.generate(request)
    except asyncio.CancelledError:
        # Not passed on: this is the main task, and Ctrl-C the only one who cancels it.
        raise await find_out(client, request, None, started) from None
    usual = client.expected(request).median
    out(f'3  Submitted "{prompt}", 16:9: MidAPI calls it task {handle.task_id}.')
    here = "" if stage.scale == 1 else f", here {seconds(usual / stage.scale)}"
    out(f"   Such a task takes about {seconds(usual)}{here}. Waiting …")
    details = await wait(handle, None, Pace(expected=usual, scale=stage.scale))
    stats = client.stats()
    woken = "Its callback came" if stats.callbacks else "A look found it"
    took = details.duration
    after = "" if took is None else f" after {seconds(took.total_seconds())}"
    out(f"4  {woken}, and MidAPI's record says: {details.status}{after}.")
    out(f"   POSTs: {stats.submits}, looks: {stats.looks}, callbacks: {stats.callbacks}.")
    return details


async def _fetch(stage: _Stage, details: TaskDetails, folder: Path) -> None:
    files = await download(stage.client, details, folder)
    _tell_files(files, folder)


def _tell_files(files: list[Path], folder: Path) -> None:
    out(f"5  {len(files)} pictures are in {folder.resolve()}:")
    for path in files:
        out(f"     {path.name}  {path.stat().st_size / 1000:.0f} kB")


def _tell_next(task_id: str | None) -> None:
    lines = _NEXT if task_id is None else f"{_NEXT}\n{_NEXT_REAL.format(task_id=task_id)}"
    for line in lines.splitlines():
        out(line)
