"""``midapi demo``: order a picture, get called back and download it, and say each step."""
# ruff: noqa: D417 - the options in groups are described where the groups are

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from midapi_async import CallbackReceiver, MemoryJournal, MidAPIClient, TextToImage
from midapi_async.files.folders import make_folder

from . import _env
from ._common import Output, download, run_async, wait
from ._errors import CommandError, usage_error
from ._interrupt import submit
from ._options import Service
from ._progress import Progress
from ._receiving import receiving
from ._terminal import out, say, seconds
from .credits import amount

if TYPE_CHECKING:
    from midapi_async import TaskDetails

_TIME_SCALE = 20.0  # a picture that takes a minute is there after three seconds
# A shell takes these lines as they are.
_NEXT = """
What to try next:
{more}  # a local MidAPI to develop against, until Ctrl-C
  midapi sandbox --time-scale 20
{against}  # everything else
  midapi --help"""
_AGAINST_SANDBOX = """  # four pictures from it, in another terminal
  export MIDAPI_API_KEY=any MIDAPI_BASE_URL=http://127.0.0.1:8787
  MIDAPI_TIME_SCALE=20 midapi generate "a blue whale"
"""
_MORE_OF_REAL = """  # the first picture, larger; this costs credits
  midapi generate upscale {task_id} 0{options}
  # four other pictures; this costs credits
  midapi generate "a blue whale"{options}
"""

_SERVICE = Service()


def demo(
    *,
    folder: Path = Path("midapi-demo"),
    prompt: str = "a red fox in the snow",
    sandbox: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    yes: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    service: Service = _SERVICE,
) -> int:
    """Order a picture, receive MidAPI's callback, download it, and say what happens.

    It runs against a sandbox on this machine: no key, no network, no money. With an API key or
    a --base-url, it runs against that service and costs credits.

    Args:
        folder: Where to put the pictures.
        prompt: What to draw.
        sandbox: Use the sandbox, which costs nothing, even if an API key is set.
        yes: Do not ask before credits are spent; needed where there is no terminal to ask at.
    """
    is_named = service.base_url is not None or service.api_key_file is not None
    real = not sandbox and (is_named or _env.has_api_key())
    if real and not yes:
        _ask(_env.base_url(service.base_url))
    make_folder(folder)
    return run_async(_carry_out(prompt, folder, service if real else None), Output())


def _ask(url: str) -> None:
    """Ask whether to spend credits.

    Raises:
        CommandError: the answer is not yes, or there is no terminal to ask at.
    """
    free = "midapi demo --sandbox costs nothing"
    if sys.stdin is None or not sys.stdin.isatty():
        raise usage_error(f"This would use {url} and cost credits: add --yes; {free}")
    say(f"This uses {url} and costs credits; {free}. Go on? [y/N]")
    if sys.stdin.readline().strip().casefold() not in {"y", "yes"}:
        raise CommandError("Declined", f"Nothing was bought. {free}")


async def _carry_out(prompt: str, folder: Path, service: Service | None) -> None:
    async with AsyncExitStack() as exits:
        scale = _TIME_SCALE if service is None else _env.time_scale()
        progress = Progress(scale=scale)
        if service is None:
            client = await _open_sandbox(exits, progress)
        else:
            client = await _open_real(exits, progress, service)
        before = await client.credits()
        out(f"   The account has {amount(before)} credits.")
        details = await _order(client, progress, scale, prompt)
        _print_files(await download(client, details, folder, progress), folder)
        after = await client.credits()
        out(f"   The account has {amount(after)} credits: {amount(before - after)} fewer.")
    _print_next(details.task_id, service)


async def _open_sandbox(exits: AsyncExitStack, progress: Progress) -> MidAPIClient:
    """An open client for a sandbox."""
    from midapi_async.sandbox import Sandbox

    server = await exits.enter_async_context(Sandbox(time_scale=_TIME_SCALE))
    out(f"1  A local MidAPI serves at {server.url}: no key, no network, no money.")
    out(f"   Its time runs {_TIME_SCALE:g} times as fast as real time.")
    receiver = CallbackReceiver(None, port=0)
    client = await exits.enter_async_context(
        MidAPIClient(
            "demo",
            base_url=server.url,
            receiver=receiver,
            journal=MemoryJournal(),
            time_scale=_TIME_SCALE,
            proxy="",  # none leads to this machine, whatever MIDAPI_PROXY says
            on_event=progress.take,
        )
    )
    out(f"2  A client is open, and receives callbacks at {receiver.url}.")
    return client


async def _open_real(exits: AsyncExitStack, progress: Progress, service: Service) -> MidAPIClient:
    """An open client for the real service."""
    url = _env.base_url(service.base_url)
    out(f"1  An API key is set, so this uses {url} and costs credits.")
    out("   Ctrl-C stops this; midapi demo --sandbox costs nothing.")
    client, receiver = await exits.enter_async_context(receiving(service, progress.take))
    if receiver is not None:
        out(f"2  A client is open, and receives callbacks at {receiver.url}.")
    elif _env.public_url() is None:
        out("2  A client is open. MIDAPI_PUBLIC_URL is not set, so it polls: no callbacks.")
    else:
        out("2  A client is open, and polls: no callbacks.")
    return client


async def _order(
    client: MidAPIClient, progress: Progress, scale: float, prompt: str
) -> TaskDetails:
    """Submit, wait, and say how it ended."""
    request = TextToImage(prompt, aspect_ratio="16:9")
    progress.expected = usual = client.expected(request).median
    async with progress:
        handle = await submit(client, request)
    out(f'3  Submitted "{prompt}", 16:9: it is task {handle.task_id}.')
    here = "" if scale == 1 else f", here {seconds(usual / scale)}"
    out(f"   Such a task takes about {seconds(usual)}{here}. Waiting …")
    async with progress:
        details = await wait(handle, None)
    stats = client.stats()
    found_by = "Its callback came" if stats.callbacks else "A look found it"
    took = details.duration
    after = "" if took is None else f" after {seconds(took.total_seconds())}"
    out(f"4  {found_by}, and MidAPI's record says: {details.status}{after}.")
    out(f"   POSTs: {stats.submits}, looks: {stats.looks}, callbacks: {stats.callbacks}.")
    return details


def _print_files(files: list[Path], folder: Path) -> None:
    out(f"5  {len(files)} pictures are in {folder.resolve()}:")
    for path in files:
        out(f"     {path.name}  {path.stat().st_size / 1000:.0f} kB")


def _print_next(task_id: str, service: Service | None) -> None:
    if service is None:
        text = _NEXT.format(more="", against=_AGAINST_SANDBOX)
    else:
        given = {
            "--base-url": service.base_url,
            "--api-key-file": service.api_key_file,
            # A password in it is not printed.
            "--proxy": None if "@" in (service.proxy or "") else service.proxy,
        }
        chosen = [f" {name} {quote(str(it))}" for name, it in given.items() if it is not None]
        more = _MORE_OF_REAL.format(task_id=task_id, options="".join(chosen))
        text = _NEXT.format(more=more, against="")
    for line in text.splitlines():
        out(line)
